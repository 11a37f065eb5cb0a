"""Somebody who reads the log of a namespace while it is written, and remembers all of it."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

from tests.real.redis_view import RedisView
from tests.real.servers import RealServer

Raw = tuple[str, list[bytes]]


class Witness:
    """From `start` to `stop`. It must keep up: what is trimmed before it was read is not seen."""

    def __init__(self, server: RealServer, namespace: str = "gpuboss") -> None:
        self._server = server
        self._namespace = namespace
        self._seen: list[Raw] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def contradicts(self, told: list[Raw]) -> list[str]:
        """What is wrong with a log as somebody else tells it: entries that are missing, doubled, changed or made up."""
        self.stop()
        if told == self._seen:
            return []
        ids, seen = [entry_id for entry_id, _ in told], {entry_id for entry_id, _ in self._seen}
        missing, extra = sorted(seen - set(ids)), sorted(set(ids) - seen)
        return [
            f"of {len(seen)} entries that were seen {len(told)} are told, {len(ids) - len(set(ids))} of them twice; "
            f"missing: {missing[:5]}; nobody saw: {extra[:5]}"
        ]

    def stop(self) -> None:
        """Read what is there, and no more."""
        self._stopping.set()
        self._thread.join()

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _watch(self) -> None:
        with self._server.client() as client:
            view = RedisView(client, self._namespace)
            after = "0-0"
            while True:
                is_last = self._stopping.is_set()
                found: Any = client.xread({view.key("events"): after}, block=None if is_last else 50)
                page = found[0][1] if found else []
                self._seen += [(entry_id.decode(), fields) for entry_id, fields in page]
                if page:
                    after = page[-1][0].decode()
                elif is_last:
                    return
