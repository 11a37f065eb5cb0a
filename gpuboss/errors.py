"""Every error that a user of GPUBoss can meet, with what it says about itself."""

from __future__ import annotations


class GPUBossError(Exception):
    """The base of all of them: catch this to catch everything that GPUBoss raises on purpose."""


class ConfigError(GPUBossError):
    """A setting, a file, a variable or an argument is wrong; the message says which, and what was expected."""


class SchedulerUnavailable(GPUBossError):
    """Redis does not answer, or no scheduler leads. No lease was granted: do not use the GPU."""


class LeaseDenied(GPUBossError):
    """The scheduler said no.

    `reason` is the log's word for it (`impossible`, `timeout`, `cancelled`, `quota`, `session_lost`, or the
    reason of an `EventRejected`), `detail` the sentence for a person, with the numbers.
    """

    def __init__(self, lease_id: str, reason: str, detail: str) -> None:
        super().__init__(f"lease {lease_id} denied ({reason}): {detail}")
        self.lease_id = lease_id
        self.reason = reason
        self.detail = detail


class LeaseTimeout(LeaseDenied):
    """No lease within `wait_timeout`. The request is gone; ask again, wait longer, or answer 503."""


class LeaseImpossible(LeaseDenied):
    """No device could ever hold this request. Ask for less, or add a larger card."""


class LeaseLost(GPUBossError):
    """A lease that was held is over without having been released: its VRAM belongs to somebody else now.

    `reason` is `revoked`, `expired`, `session_lost` or `device_lost`.
    """

    def __init__(self, lease_id: str, reason: str) -> None:
        super().__init__(f"lease {lease_id} was lost ({reason}): stop using its device")
        self.lease_id = lease_id
        self.reason = reason
