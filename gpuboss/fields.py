"""What a field of an event may hold: types with the bounds that are checked at the door, and small structs."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated, Literal

from msgspec import Meta, Struct, ValidationError

VRAM_MIB_MAX = 16_777_216  # 16 TiB on one device: more than anything sold, small enough for exact sums anywhere
GPUS_MAX = 1024
TOTAL_MIB_MAX = VRAM_MIB_MAX * GPUS_MAX  # on all devices together: of one lease, or of a service
WAITING_MAX = 10_000_000  # of one service: more than any queue should hold
RESERVATIONS_MAX = 1024
MS_MAX = 2**53 - 1  # what every JSON reader holds exactly: 285,000 years

# `$` alone also matches before a trailing newline, hence the look-ahead.
SERVICE_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}(?!\n)$"
LEASE_ID = r"^[A-Za-z0-9_-]{8,64}(?!\n)$"
ServiceName = Annotated[str, Meta(pattern=SERVICE_NAME)]
LeaseId = Annotated[str, Meta(pattern=LEASE_ID)]
SessionId = LeaseId
# The same where the door of the core has them checked by `check_names`: msgspec asks three times the price of each.
SentServiceName = Annotated[str, Meta(extra_json_schema={"pattern": SERVICE_NAME})]
SentLeaseId = Annotated[str, Meta(extra_json_schema={"pattern": LEASE_ID})]
DeviceName = Annotated[str, Meta(pattern=r"^cuda:(0|[1-9][0-9]{0,3})(?!\n)$")]
# A GPU by its place on a node, or a GPU or MIG slice by its UUID as NVML prints it.
DeviceWish = Annotated[
    str, Meta(pattern=r"^(cuda:(0|[1-9][0-9]{0,3})|(GPU|MIG)-[A-Za-z0-9][A-Za-z0-9/_-]{0,94})(?!\n)$")
]
Mib = Annotated[int, Meta(ge=0, le=VRAM_MIB_MAX)]
TotalMib = Annotated[int, Meta(ge=0, le=TOTAL_MIB_MAX)]
AskedMib = Annotated[int, Meta(ge=1, le=VRAM_MIB_MAX)]
Ms = Annotated[int, Meta(ge=0, le=MS_MAX)]
DurationMs = Annotated[int, Meta(ge=1, le=MS_MAX)]
WaitingCap = Annotated[int, Meta(ge=1, le=WAITING_MAX)]
Text = Annotated[str, Meta(max_length=512)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}(?!\n)$")]
StreamId = Annotated[str, Meta(pattern=r"^[0-9]{1,20}-[0-9]{1,20}(?!\n)$")]
Priority = Literal["low", "normal", "high"]
Preemption = Literal["off", "idle", "lower"]

is_service_name = re.compile(SERVICE_NAME).match
is_lease_id = re.compile(LEASE_ID).match


def check_names(lease_id: str, service: str, session: str | None = None) -> None:
    """Raises `msgspec.ValidationError`, in msgspec's own words, for the first of these that is no such name."""
    if is_lease_id(lease_id) is None:
        raise _mismatch("lease_id", LEASE_ID)
    _check_service(service)
    if session is not None:
        _check_session(session)


# The same few services and sessions come with every request.
@lru_cache(maxsize=1024)
def _check_service(service: str) -> None:
    if is_service_name(service) is None:
        raise _mismatch("service", SERVICE_NAME)


@lru_cache(maxsize=1024)
def _check_session(session: str) -> None:
    if is_lease_id(session) is None:
        raise _mismatch("session", LEASE_ID)


def _mismatch(field: str, pattern: str) -> ValidationError:
    return ValidationError(f"Expected `str` matching regex {pattern!r} - at `$.{field}`")


class HeadStart(Struct, frozen=True, forbid_unknown_fields=True):
    """How long before its submission a request of each priority counts as submitted, in ms (policy, rule 2)."""

    low: Ms = 0
    normal: Ms = 900_000
    high: Ms = 3_600_000


class PreemptAfter(Struct, frozen=True, forbid_unknown_fields=True):
    """How long a request of each priority waits, in ms, before held leases of lower ones may be asked back for it."""

    normal: Ms = 60_000
    high: Ms = 5_000


class ServiceRules(Struct, frozen=True, omit_defaults=True):
    """What holds for one service alone. `max_waiting`: of its requests, at most so many may wait (null: any number).
    Its leases never hold more than `limit_mib` on all devices together (null: no limit); of those that are not
    preemptible, `guarantee_mib` is protected. No request of it counts as more than `max_priority`."""

    max_waiting: WaitingCap | None = None
    guarantee_mib: TotalMib = 0
    limit_mib: TotalMib | None = None
    max_priority: Priority = "high"
