"""`/health`, `/livez` and `/readyz`: whether there is VRAM to lend, whether the process lives, whether it is of use."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from gpuboss.core.projections import DeviceRow
from gpuboss.keys import Keys
from gpuboss_scheduler.status import Status

if TYPE_CHECKING:
    import redis

HUNG_S = 30.0  # a loop that has not gone round for so long will not do so again

_ROW = msgspec.json.Decoder(DeviceRow)


class Health:
    """The answers. Reading devices from Redis, so that leader and standby answer alike."""

    def __init__(self, client: redis.Redis, keys: Keys, node: str, status: Status) -> None:
        self._client = client
        self._keys = keys
        self._node = node
        self._status = status

    async def health(self, request: Request) -> Response:
        """Total and free VRAM of this node's healthy devices, in MiB; 503 if there is none to be had."""
        total_mib, free_mib = await run_in_threadpool(self._vram_mib)
        available = total_mib > 0 and self._status.role in ("leading", "standing by")
        body = {"gpu_available": available, "vram_total": total_mib, "vram_free": free_mib}
        # Spaced as people and documents write it, so that comparing the text works too.
        text = json.dumps(body)
        return Response(text, status_code=200 if available else 503, media_type="application/json")

    async def livez(self, request: Request) -> PlainTextResponse:
        """Whether the loop goes round. Redis is not asked: restarting this process would not mend it."""
        hung = self._status.silent_s() > HUNG_S
        return PlainTextResponse("hung" if hung else "alive", status_code=503 if hung else 200)

    async def readyz(self, request: Request) -> PlainTextResponse:
        """Whether it leads or could take over at once; 503 with the reason if not."""
        ready = self._status.role in ("leading", "standing by") and not self._status.problem
        answer = self._status.role if ready else self._status.problem or self._status.role
        if self._status.trouble:
            answer += f"; {self._status.trouble}"
        return PlainTextResponse(answer, status_code=200 if ready else 503)

    def _vram_mib(self) -> tuple[int, int]:
        import redis

        try:
            stored = cast(dict[bytes, bytes], self._client.hgetall(self._keys.devices))
            rows = [_ROW.decode(row) for key, row in stored.items() if key.decode().partition("/")[0] == self._node]
        except (redis.RedisError, msgspec.MsgspecError, UnicodeDecodeError):
            return 0, 0
        healthy = [row for row in rows if row.healthy]
        return sum(row.total_mib for row in healthy), sum(max(0, row.free_mib) for row in healthy)


def application(health: Health) -> Starlette:
    """The HTTP application; it only ever reads."""
    return Starlette(
        routes=[
            Route("/health", health.health),
            Route("/livez", health.livez),
            Route("/readyz", health.readyz),
        ]
    )
