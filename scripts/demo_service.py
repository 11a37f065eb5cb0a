"""A service that wants VRAM now and then: the other half of `scripts/demo` and of compose.yaml.

It does what a real one does: asks, loads its model on the device that it is granted, works, gives the VRAM back. With
--resident it keeps its model on the card between uses, until it is asked back. Loading and working are waits here;
everything else is real.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time

from gpuboss import Device, GPUBoss, GPUBossError, LeaseDenied, LeaseLost
from gpuboss.config import parse_duration_ms


def read_arguments() -> argparse.Namespace:
    """The options; durations as in 3s, 500ms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service", required=True)
    parser.add_argument("--model", help="what it says that it loads", default="its model")
    parser.add_argument("--vram", type=float, required=True, metavar="GB", help="on each device")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--device", help="cuda:N to be pinned there")
    parser.add_argument("--priority", default="normal", choices=["low", "normal", "high"])
    parser.add_argument("--resident", action="store_true", help="keep the model warm between uses")
    parser.add_argument("--load", default="500ms", type=parse_duration_ms, metavar="DURATION", help="of --resident")
    parser.add_argument("--hold", default="3s", type=parse_duration_ms, metavar="DURATION")
    parser.add_argument("--every", default="1s", type=parse_duration_ms, metavar="DURATION")
    parser.add_argument("--times", type=int, default=0, help="0: until it is told to stop")
    return parser.parse_args()


async def serve(options: argparse.Namespace) -> None:
    """Ask, hold, give back; again and again."""
    who = f"{options.service} [{options.priority}]"
    each = f" on each of {options.gpus} GPUs" if options.gpus > 1 else ""
    asked = 0
    async with GPUBoss(service=options.service, priority=options.priority) as gpu_boss:
        while not options.times or asked < options.times:
            asked += 1
            say(f"{who} asks for {options.vram:g} GB{each}")
            try:
                async with gpu_boss.lease(vram_gb=options.vram, gpus=options.gpus, device=options.device) as device:
                    where = ", ".join(device.lease.devices)
                    say(f"{who} got {where}: loads {options.model}")
                    await asyncio.sleep(options.hold / 1000)
                say(f"{who} gave {where} back")
            except LeaseLost as lost:
                say(f"{who} lost it: {lost.reason}")
            except LeaseDenied as denied:
                say(f"{who} was denied: {denied.detail}")
            await asyncio.sleep(options.every / 1000)


async def serve_warm(options: argparse.Namespace) -> None:
    """Load once, use it again and again, unload when it is asked back, and load it anew for the next use."""
    who = f"{options.service} [{options.priority}]"

    def load(device: Device) -> str:
        say(f"{who} got {device}: loads {options.model}")
        time.sleep(options.load / 1000)
        return str(options.model)

    def unload(model: str) -> None:
        say(f"{who} unloads {model}")

    used = 0
    async with GPUBoss(service=options.service, priority=options.priority) as gpu_boss:
        resident = gpu_boss.resident(load=load, unload=unload, vram_gb=options.vram, device=options.device)
        while not options.times or used < options.times:
            used += 1
            async with resident.use() as model:
                say(f"{who} uses {model}")
                await asyncio.sleep(options.hold / 1000)
            say(f"{who} keeps it warm")
            await asyncio.sleep(options.every / 1000)


def say(line: str) -> None:
    """One line, at once."""
    print(line, flush=True)


def main() -> int:
    """Exit code 0 when it is done or told to stop, 69 where there is no scheduler to ask."""
    try:
        with contextlib.suppress(KeyboardInterrupt):
            options = read_arguments()
            asyncio.run(serve_warm(options) if options.resident else serve(options))
    except GPUBossError as error:
        print(error, file=sys.stderr)
        return 69
    return 0


if __name__ == "__main__":
    sys.exit(main())
