"""A service that loads a model into a real GPU: it allocates through CUDA's driver, with nothing but ctypes.

    python -m tests.real.gpu_service URL NAME MODEL_MIB HOLD_S [--no-lease]

Prints one line once it is done: `loaded`, or what CUDA said.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
from collections.abc import Iterator

from gpuboss import GPUBoss

MIB = 1024 * 1024
END_S = 100.0


class CudaError(Exception):
    """A call of the driver that failed, with its number: 2 is out of memory."""


class Card:
    """The CUDA device of that ordinal, with a context of this process on it. Raises `CudaError`."""

    def __init__(self, ordinal: int) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._call("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), ordinal)
        self._call("cuCtxCreate_v2", ctypes.byref(context), 0, device)

    @contextlib.contextmanager
    def model(self, mib: int) -> Iterator[None]:
        """So much memory, in parts as a model's layers are, given back at the end. Raises `CudaError`."""
        parts: list[ctypes.c_void_p] = []
        try:
            for left_mib in range(mib, 0, -1024):
                part = ctypes.c_void_p()
                self._call("cuMemAlloc_v2", ctypes.byref(part), ctypes.c_size_t(min(1024, left_mib) * MIB))
                parts.append(part)
            yield
        finally:
            for part in parts:
                self._call("cuMemFree_v2", part)

    def _call(self, name: str, *arguments: object) -> None:
        error = getattr(self._cuda, name)(*arguments)
        if error:
            raise CudaError(f"{name} failed with {error}")


async def serve(url: str, name: str, model_mib: int, hold_s: float, asks: bool) -> None:
    """Load once, hold, unload."""
    if not asks:
        with Card(0).model(model_mib):
            await asyncio.sleep(hold_s)
        return
    # A context takes room of its own; a lease is for all that the process takes.
    async with GPUBoss(url, name) as boss, boss.lease(vram_mib=model_mib + 1024, wait_timeout=END_S) as device:
        with Card(int(device.removeprefix("cuda:"))).model(model_mib):
            await asyncio.sleep(hold_s)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("name")
    parser.add_argument("model_mib", type=int)
    parser.add_argument("hold_s", type=float)
    parser.add_argument("--no-lease", action="store_true")
    given = parser.parse_args()
    try:
        asyncio.run(serve(given.url, given.name, given.model_mib, given.hold_s, not given.no_lease))
    except CudaError as error:
        print(error)
    else:
        print("loaded")


if __name__ == "__main__":
    main()
