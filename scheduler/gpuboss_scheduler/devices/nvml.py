"""The one door to NVML: the GPUs that the driver reports."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from gpuboss.errors import GPUBossError
from gpuboss.events import DeviceObserved

MIB = 1024 * 1024
MARGIN_LEAST_MIB = 256  # never lent on a real device: contexts and fragmentation need room that nobody asked for


class NvmlUnavailable(GPUBossError):
    """There is no GPU to read, and none is simulated."""


def observe(node: str, margin_mib: int | None) -> list[DeviceObserved]:
    """The devices that NVML sees, in its order (that of the PCI bus). Raises `NvmlUnavailable`."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlUnavailable(
            f"no GPU can be read through NVML ({error}); install the NVIDIA driver, or simulate devices with "
            '--devices "cuda:0=24576"'
        ) from None
    try:
        count = pynvml.nvmlDeviceGetCount()
        if count == 0:
            raise NvmlUnavailable(
                'NVML sees no GPU; check the driver, or simulate devices with --devices "cuda:0=24576"'
            )
        return [_observe_one(pynvml, node, index, margin_mib) for index in range(count)]
    except pynvml.NVMLError as error:
        raise NvmlUnavailable(
            f'NVML failed ({error}); check `nvidia-smi`, or simulate devices with --devices "cuda:0=24576"'
        ) from None
    finally:
        with suppress(pynvml.NVMLError):  # what was read stays true, and what failed is what to tell
            pynvml.nvmlShutdown()


def _observe_one(pynvml: Any, node: str, index: int, margin_mib: int | None) -> DeviceObserved:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    total_mib, reserved_mib = _memory_mib(pynvml, handle)
    return DeviceObserved(
        node=node,
        device=f"cuda:{index}",
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        total_mib=total_mib,
        reserved_mib=reserved_mib,
        margin_mib=max(MARGIN_LEAST_MIB, total_mib // 100) if margin_mib is None else margin_mib,
    )


def _memory_mib(pynvml: Any, handle: Any) -> tuple[int, int]:
    """Total, rounded down, and what the driver keeps for itself, rounded up (MiB). Old drivers do not tell that."""
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except (pynvml.NVMLError, AttributeError):
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    reserved = int(getattr(memory, "reserved", 0))
    return int(memory.total) // MIB, -(-reserved // MIB)


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
