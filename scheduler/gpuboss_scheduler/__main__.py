"""`gpuboss-scheduler`: reads the options, wires the parts together, runs until SIGTERM."""

from __future__ import annotations

import gc
import math
import os
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gpuboss.config import Config, PolicyConfig, load_config, load_policy, parse_duration_ms, redact_url
from gpuboss.config.settings import CONFIG_VARIABLE
from gpuboss.connection import connect
from gpuboss.errors import ConfigError, GPUBossError, SchedulerUnavailable
from gpuboss.keys import Keys
from gpuboss.log import LogDamaged
from gpuboss_scheduler.devices import observe
from gpuboss_scheduler.known_log import KnownLog
from gpuboss_scheduler.rules import Rules
from gpuboss_scheduler.scheduler import Scheduler
from gpuboss_scheduler.status import Status
from gpuboss_scheduler.talk import say

EXIT_LOG_DAMAGED = 1
EXIT_CONFIG = 3
EXIT_UNAVAILABLE = 69
PING_EVERY_S = 0.2
FOR_EVER = "for-ever"

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


HELP = """Lends the VRAM of this machine's GPUs, in turn and by priority: the sidecar of GPUBoss.

Each option is also a setting of config.yaml (under `scheduler`) and a GPUBOSS_* variable; options win. SIGHUP has the
policy read again: from --policy FILE, or else from config.yaml.

\b
  gpuboss-scheduler --embedded --devices "cuda:0=24GB"          no GPU, no Redis: try it out
  gpuboss-scheduler --redis-url redis://localhost:6379 --wait   the GPUs that NVML sees
  gpuboss-scheduler --http off                                  a second one stands by, and takes over
"""


MemoryFile = Annotated[
    Path | None, typer.Option(help="Where to remember the log's end: a lost log is noticed after a restart too.")
]
RetentionAge = Annotated[str | None, typer.Option(help="How long entries stay in the log: 7d (default: for ever).")]
RetentionCount = Annotated[str | None, typer.Option(help="How many entries stay in the log, about (default: all).")]
ArchiveFolder = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Where entries go before they are taken out of the log.")
]
Wait = Annotated[str | None, typer.Option(help="Wait for Redis to answer at first, so long (30s); bare: for ever.")]


@app.command(help=HELP)
def serve(
    redis_url: Annotated[
        str | None, typer.Option(help="Where Redis or Valkey is: redis://, rediss://, unix://.")
    ] = None,
    embedded: Annotated[
        bool | None, typer.Option("--embedded", help="Start a server of our own, and print its URL.")
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder of the embedded server's data.")] = None,
    durability: Annotated[str | None, typer.Option(help="Of the embedded server: standard or strict.")] = None,
    devices: Annotated[str | None, typer.Option(help='Simulated GPUs: "cuda:0=24576,cuda:1=24GB" (MiB).')] = None,
    node: Annotated[str | None, typer.Option(help="This machine's name (default: its host name).")] = None,
    namespace: Annotated[str | None, typer.Option(help="Prefix of all keys (default: gpuboss).")] = None,
    http: Annotated[str | None, typer.Option(help="HOST:PORT of /health (default: 127.0.0.1:8003), or off.")] = None,
    config: Annotated[Path | None, typer.Option(help="config.yaml.")] = None,
    policy: Annotated[Path | None, typer.Option(help="The scheduling policy, as a file of its own.")] = None,
    session_ttl: Annotated[str | None, typer.Option(help="A silent service is dead after: 15s, 500ms.")] = None,
    lock_delay: Annotated[str | None, typer.Option(help="VRAM of a dead service is lent again after: 60s.")] = None,
    memory_file: MemoryFile = None,
    retention_age: RetentionAge = None,
    retention_count: RetentionCount = None,
    archive: ArchiveFolder = None,
    wait: Wait = None,
) -> None:
    arguments: dict[str, object] = {
        "gpu.redis_url": redis_url,
        "gpu.namespace": namespace,
        "gpu.node": node,
        "scheduler.node": node,
        "scheduler.embedded": embedded,
        "scheduler.data_dir": data_dir,
        "scheduler.durability": durability,
        "scheduler.devices": devices,
        "scheduler.http": http,
        "scheduler.session_ttl": session_ttl,
        "scheduler.lock_delay": lock_delay,
        "scheduler.retention.age": retention_age,
        "scheduler.retention.count": retention_count,
        "scheduler.archive": None if archive is None else str(archive),
        "scheduler.memory_file": None if memory_file is None else str(memory_file),
    }
    settings = load_config(config, arguments=arguments)
    if policy is not None:
        settings = _with_policy(settings, load_policy(policy))
    wait_ms = 0.0 if wait is None else math.inf if wait == FOR_EVER else parse_duration_ms(wait)
    run(settings, wait_ms, _policy_reader(policy, config, arguments))


def run(config: Config, wait_ms: float, read_policy: Callable[[], PolicyConfig] | None) -> None:
    """Serve with these settings; `read_policy` reads the policy again, if it is in a file. Raises `GPUBossError`."""
    # The state holds no cycles; looking for them in hundreds of thousands of leases would stop the loop for long.
    gc.set_threshold(100_000, 50, 1000)
    stop, hang_up = _StopFlag(), _HangUpFlag()
    node = config.scheduler.node or _host_name()
    devices = observe(config.scheduler, node)
    with _server(config) as config:
        _await_redis(config.gpu.redis_url, wait_ms, stop)
        status = Status()
        name = f"{node}:{os.getpid()}:{secrets.token_hex(4)}"
        with _web(config, node, status):
            rules = Rules(config.scheduler, node, devices, read_policy, hang_up.take)
            Scheduler(config, rules, name, status, stop.asked, _known_log(config)).run()


class _StopFlag:
    """SIGTERM and SIGINT ask to stop; the loop looks at it several times a second, between commits."""

    def __init__(self) -> None:
        self._asked = False
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, self._ask)

    def _ask(self, signum: int, frame: object) -> None:
        self._asked = True

    def asked(self) -> bool:
        return self._asked


class _HangUpFlag:
    """SIGHUP asks to read the policy again; the scheduler looks at it several times a second, between commits."""

    def __init__(self) -> None:
        self._asked = False
        signal.signal(signal.SIGHUP, self._ask)

    def _ask(self, signum: int, frame: object) -> None:
        self._asked = True

    def take(self) -> bool:
        """Whether it was asked for since this was last called."""
        asked, self._asked = self._asked, False
        return asked


@contextmanager
def _server(config: Config) -> Iterator[Config]:
    """The embedded server, if one is wanted, for as long as this lasts."""
    if not config.scheduler.embedded:
        yield config
        return
    from msgspec.structs import replace

    from gpuboss_scheduler.embedded import default_data_dir, start_embedded

    data_dir = Path(config.scheduler.data_dir) if config.scheduler.data_dir else default_data_dir()
    with start_embedded(data_dir, durability=config.scheduler.durability) as server:
        print(server.url, flush=True)
        scheduler = config.scheduler
        if scheduler.memory_file is None:
            scheduler = replace(scheduler, memory_file=str(data_dir / "known-log.json"))
        yield replace(config, gpu=replace(config.gpu, redis_url=server.url), scheduler=scheduler)


def _known_log(config: Config) -> KnownLog:
    """The embedded server's is in the folder of its data."""
    file = config.scheduler.memory_file
    return KnownLog(None if file is None else Path(file))


@contextmanager
def _web(config: Config, node: str, status: Status) -> Iterator[None]:
    if config.scheduler.http is None:
        yield
        return
    from gpuboss_scheduler.web.health import Health, application
    from gpuboss_scheduler.web.server import WebServer

    client = connect(config.gpu.redis_url, timeout_s=2.0)
    health = Health(client, Keys(config.gpu.namespace), node, status)
    server = WebServer(application(health), *config.scheduler.http)
    server.start()
    try:
        yield
    finally:
        server.stop()
        client.close()


def _await_redis(url: str, wait_ms: float, stop: _StopFlag) -> None:
    """Raises `SchedulerUnavailable` if Redis does not answer within `wait_ms`."""
    import redis

    deadline_s = time.monotonic() + wait_ms / 1000
    client = connect(url)
    while True:
        try:
            client.ping()
            return
        except (redis.AuthenticationError, redis.ResponseError) as error:
            raise ConfigError(f"Redis at {redact_url(url)} refuses: {error}") from None
        except (redis.ConnectionError, redis.TimeoutError) as error:
            if stop.asked():
                return
            if time.monotonic() >= deadline_s:
                raise SchedulerUnavailable(
                    f"Redis at {redact_url(url)} does not answer ({error}); start it, wait for it with --wait 30s, "
                    "or start one of our own with --embedded"
                ) from None
            time.sleep(PING_EVERY_S)
        finally:
            client.close()


def _with_policy(config: Config, policy: PolicyConfig) -> Config:
    from msgspec.structs import replace

    return replace(config, scheduler=replace(config.scheduler, policy=policy))


def _policy_reader(
    policy: Path | None, config: Path | None, arguments: dict[str, object]
) -> Callable[[], PolicyConfig] | None:
    """What reads the policy again from where it was read first; None if that was no file."""
    if policy is not None:
        return partial(load_policy, policy)
    if config is None and not os.environ.get(CONFIG_VARIABLE):
        return None
    return lambda: load_config(config, arguments=arguments).scheduler.policy


def _host_name() -> str:
    """The host's name as a node may be called."""
    name = re.sub(r"[^a-z0-9._-]", "-", socket.gethostname().partition(".")[0].lower())[:63]
    return name if re.match(r"[a-z0-9]", name) else f"node{name}"[:63]


def main() -> None:
    """The console script; exit codes as the contract has them."""
    try:
        app(_spelled_out(sys.argv[1:]), standalone_mode=True)
    except LogDamaged as error:
        _fail(error, EXIT_LOG_DAMAGED)
    except SchedulerUnavailable as error:
        _fail(error, EXIT_UNAVAILABLE)
    except GPUBossError as error:
        _fail(error, EXIT_CONFIG)


def _spelled_out(arguments: list[str]) -> list[str]:
    """A bare `--wait` means for ever; the parser wants that said."""
    said = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        said.append(f"--wait={FOR_EVER}" if argument == "--wait" and following.startswith("--") else argument)
    return said


def _fail(error: Exception, code: int) -> None:
    say(f"gpuboss-scheduler: {error}")
    sys.exit(code)


if __name__ == "__main__":
    main()
