"""The connection on which the log is read and commits are sent: redis-py's, without what its clients add.

One command through `redis.Redis` costs 45 us here beside the socket; the loop sends two for each batch, and a
request waits for both.
"""

from __future__ import annotations

from typing import Any, cast

from redis.exceptions import NoScriptError

from gpuboss.connection import connect
from gpuboss.log import Entry
from gpuboss_scheduler.commit import Argument
from gpuboss_scheduler.scripts import Script

BLOCK_MS = 1_000
SEND_TIMEOUT_S = BLOCK_MS / 1000 + 2.0  # the server's own timer is coarse, and on a clock that may jump
BATCH_MAX = 1_000


class Wire:
    """One connection. At most one read of the log is under way on it at a time."""

    def __init__(self, url: str) -> None:
        self._client = connect(url, SEND_TIMEOUT_S)
        self._connection = cast(Any, self._client.connection_pool.make_connection())  # its methods are not annotated
        self._connection.connect()
        self._asked = False

    def close(self) -> None:
        """Close the connection; a read that is under way is given up."""
        self._connection.disconnect()
        self._client.close()

    def ask(self, stream: str, after: str) -> None:
        """Ask for the entries behind `after`, unless that was asked already; the server waits for one to come."""
        if not self._asked:
            command = ("XREAD", "COUNT", BATCH_MAX, "BLOCK", BLOCK_MS, "STREAMS", stream, after)
            self._connection.send_command(*command)
            self._asked = True

    def answered(self, timeout_s: float) -> bool:
        """Whether the answer to `ask` is there, or comes within `timeout_s`."""
        return bool(self._connection.can_read(timeout=max(0.0, timeout_s)))

    def entries(self) -> list[Entry]:
        """The answer to `ask`; empty if nothing came while the server waited."""
        self._asked = False
        answer: Any = self._connection.read_response()
        if not answer:
            return []
        return [Entry(entry_id.decode(), fields) for entry_id, fields in answer[0][1]]

    def send_script(self, script: Script, keys: list[str], arguments: list[Argument]) -> None:
        """Send a script's call. No read of the log may be under way."""
        assert not self._asked
        self._connection.send_command("EVALSHA", script.sha, len(keys), *keys, *arguments)

    def script_answer(self, script: Script, keys: list[str], arguments: list[Argument]) -> list[Any]:
        """The answer to `send_script`, status and all."""
        try:
            answer: Any = self._connection.read_response()
        except NoScriptError:
            self._connection.send_command("EVAL", script.text, len(keys), *keys, *arguments)
            answer = self._connection.read_response()
        return list(answer)
