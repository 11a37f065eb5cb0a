"""The policy as it is set, read again when somebody asks for it (SIGHUP), and the devices of this node: what of both
the log does not say yet is appended to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, cast

import msgspec
from msgspec.structs import replace

from gpuboss.config import PolicyConfig, SchedulerConfig, check_guarantees
from gpuboss.core.ledger import device_key
from gpuboss.core.projections import DeviceRow
from gpuboss.core.state import State
from gpuboss.errors import GPUBossError
from gpuboss.events import DeviceLost, DeviceObserved, Event
from gpuboss.keys import Keys
from gpuboss_scheduler.devices import observe
from gpuboss_scheduler.reign import Reign
from gpuboss_scheduler.talk import say

if TYPE_CHECKING:
    import redis


class Rules:
    """What one scheduler would have the log say of the rules, and of the devices of its node."""

    def __init__(
        self,
        config: SchedulerConfig,
        node: str,
        devices: Sequence[DeviceObserved],
        read: Callable[[], PolicyConfig] | None = None,
        asked: Callable[[], bool] = lambda: False,
    ) -> None:
        """`read` reads the policy's file again (None: there is none); `asked`: whether that was asked for since it was
        last looked."""
        self._config = config
        self._node = node
        self._devices = devices
        self._read = read
        self._asked = asked
        self._is_due = False  # to be read again, also where Redis breaks off meanwhile

    def check(self, client: redis.Redis, keys: Keys) -> None:
        """Raises `ConfigError` if more is guaranteed than the devices of this node, and of others, can lend."""
        self._check(self._config.policy, self._devices, client, keys)

    def facts(self, state: State) -> list[Event]:
        """What the log does not say: the rules and the devices."""
        policy = self._config.policy.recorded(self._config.session_ttl_ms, self._config.lock_delay_ms)
        is_new = policy != state.policy or not state.policy_recorded
        return [*([policy] if is_new else []), *_device_facts(state, self._node, self._devices)]

    def reread(self, client: redis.Redis, keys: Keys) -> bool:
        """Read the policy again, if that was asked for. False if not, or if there is a mistake in it: that is told, and
        the policy stays as it was."""
        self._is_due = self._asked() or self._is_due
        if not self._is_due:
            return False
        if self._read is None:
            self._is_due = False
            say("there is no policy to be read again; start with --policy FILE or --config FILE")
            return False
        try:
            policy = self._read()
            config, devices = replace(self._config, policy=policy), self._devices
            if policy.margin_mib != self._config.policy.margin_mib:
                devices = observe(config, self._node)
            self._check(policy, devices, client, keys)
        except GPUBossError as error:
            self._is_due = False
            say(f"the policy stays as it was: {error}")
            return False
        say("the policy was read again, and is as it was" if config == self._config else "the policy was read again")
        self._config, self._devices, self._is_due = config, devices, False
        return True

    def follow(self, reign: Reign, state: State) -> None:
        """Of whoever leads: read the policy again, if that was asked for, and append what differs."""
        if self.reread(reign.client, reign.keys) and (facts := self.facts(state)):
            reign.append(facts)

    def _check(self, policy: PolicyConfig, devices: Iterable[DeviceObserved], client: redis.Redis, keys: Keys) -> None:
        here_mib = sum(each.total_mib - each.reserved_mib - each.margin_mib for each in devices)
        check_guarantees(policy, here_mib + _elsewhere_mib(client, keys, self._node))


def _elsewhere_mib(client: redis.Redis, keys: Keys, node: str) -> int:
    """What the devices of other nodes can lend, as Redis shows them; a row that cannot be read counts for nothing."""
    sum_mib = 0
    for key, row in cast(dict[bytes, bytes], client.hgetall(keys.devices)).items():
        if key.partition(b"/")[0] != node.encode():
            try:
                device = msgspec.json.decode(row, type=DeviceRow)
            except msgspec.DecodeError:
                continue
            sum_mib += device.leased_mib + device.reclaiming_mib + device.foreign_mib + device.free_mib
    return sum_mib


def _device_facts(state: State, node: str, devices: Sequence[DeviceObserved]) -> list[Event]:
    """What the log does not know of this node's devices yet."""
    known = {key: device.observed for key, device in state.ledger.devices.items()}
    here = {device_key(device.node, device.device): device for device in devices}
    gone = [
        DeviceLost(node=node, device=observed.device)
        for key, observed in known.items()
        if observed.node == node and key not in here
    ]
    return [*gone, *(device for key, device in here.items() if known.get(key) != device)]
