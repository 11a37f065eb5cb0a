"""The one door to NVML: the GPUs that the driver reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gpuboss.errors import GPUBossError
from gpuboss.events import DeviceObserved

MIB = 1024 * 1024
MARGIN_LEAST_MIB = 256  # never lent on a real device: contexts and fragmentation need room that nobody asked for


class NvmlUnavailable(GPUBossError):
    """There is no GPU to read, and none is simulated."""


def observe(node: str, margin_mib: int | None) -> list[DeviceObserved]:
    """The devices that NVML sees, in its order (that of the PCI bus). Raises `NvmlUnavailable`."""
    with _opened() as pynvml:
        count = pynvml.nvmlDeviceGetCount()
        if count == 0:
            raise NvmlUnavailable(
                'NVML sees no GPU; check the driver, or simulate devices with --devices "cuda:0=24576"'
            )
        return [_observe_one(pynvml, node, index, margin_mib) for index in range(count)]


def used_mib() -> dict[str, int]:
    """What is used on each device, by UUID, without what the driver keeps for itself, rounded up (MiB). Raises
    `NvmlUnavailable`. A driver that hangs holds this up for as long."""
    with _opened() as pynvml:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return {_text(pynvml.nvmlDeviceGetUUID(each)): -(-int(_memory(pynvml, each).used) // MIB) for each in handles}


@contextmanager
def _opened() -> Iterator[Any]:
    """The binding, with the driver's library at hand. Raises `NvmlUnavailable`, also for what fails inside."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlUnavailable(
            f"no GPU can be read through NVML ({error}); install the NVIDIA driver, or simulate devices with "
            '--devices "cuda:0=24576"'
        ) from None
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise NvmlUnavailable(
            f'NVML failed ({error}); check `nvidia-smi`, or simulate devices with --devices "cuda:0=24576"'
        ) from None
    finally:
        with suppress(pynvml.NVMLError):  # what was read stays true, and what failed is what to tell
            pynvml.nvmlShutdown()


def _observe_one(pynvml: Any, node: str, index: int, margin_mib: int | None) -> DeviceObserved:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = _memory(pynvml, handle)
    total_mib = int(memory.total) // MIB
    return DeviceObserved(
        node=node,
        device=f"cuda:{index}",
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        total_mib=total_mib,
        reserved_mib=-(-int(getattr(memory, "reserved", 0)) // MIB),
        margin_mib=max(MARGIN_LEAST_MIB, total_mib // 100) if margin_mib is None else margin_mib,
    )


def _memory(pynvml: Any, handle: Any) -> Any:
    """`total`, `used` and, by itself, what the driver keeps, `reserved` (bytes). Old drivers count that as used."""
    try:
        return pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except (pynvml.NVMLError, AttributeError):
        return pynvml.nvmlDeviceGetMemoryInfo(handle)


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
