"""What the loop says to Redis and hears from it: reads of the log, and commits, on one connection."""

from __future__ import annotations

import functools
import time
from typing import Any, cast

import hiredis
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gpuboss_scheduler.commit import Argument, Commit
from gpuboss_scheduler.failpoints import failpoint
from gpuboss_scheduler.line import Line
from gpuboss_scheduler.readback import Raw
from gpuboss_scheduler.scripts import Script

BLOCK_MS = 1_000
ANSWER_WITHIN_S = BLOCK_MS / 1000 + 2.0  # the server's own timer is coarse, and on a clock that may jump
BATCH_MAX = 1_000


class Wire:
    """One connection. At most one read of the log is under way on it at a time."""

    def __init__(self, url: str, script: Script) -> None:
        """Connects. The script is loaded at once: a server that forgets it later forgets the connection too."""
        self._line = Line(url, ANSWER_WITHIN_S)
        self._reader = hiredis.Reader()
        self._answer: Any = False  # False: none yet, as hiredis has it
        self._asked_s: float | None = None
        self._before: list[Raw] = []  # what comes before the answer to `ask`
        self._line.send(_packed("SCRIPT", "LOAD", script.text))
        self._await()

    def close(self) -> None:
        """Close the connection; a read that is under way is given up."""
        self._line.close()

    def ask(self, stream: str, after: str, *, wait: bool = True) -> None:
        """Ask for the entries behind `after`, unless that was asked already; if there are none, the server waits for
        one to come, or does not."""
        if self._asked_s is None:
            self._line.send(_question(stream, after, wait=wait))
            self._asked_s = time.monotonic()

    def answered(self, timeout_s: float) -> bool:
        """Whether the answer to `ask` is there, or comes within `timeout_s`. Raises redis' `TimeoutError` if the
        server is silent for longer than it was asked to wait, and `ConnectionError`."""
        assert self._asked_s is not None
        if self._receive(timeout_s):
            return True
        if time.monotonic() - self._asked_s > ANSWER_WITHIN_S:
            raise RedisTimeoutError(f"no answer to XREAD within {ANSWER_WITHIN_S} s")
        return False

    def entries(self) -> list[Raw]:
        """The answer to `ask`, once it is there; empty if there are none."""
        self._asked_s = None
        answer = self._await()
        before, self._before = self._before, []
        return [*before, *answer[0][1]] if answer else before

    def put_before(self, entries: list[Raw]) -> None:
        """If a question was asked together with a commit, it was about what comes behind ids that others took: these
        entries come before its answer, which is there already, for what is crowded out has later ids."""
        if self._asked_s is not None:
            self._before = entries

    def call(self, script: Script, commit: Commit, then_ask: str | None = None) -> None:
        """Send a commit, and with it, where it is known what its entries will be called, the question for what comes
        behind them in the stream `then_ask`. A read that is under way already must be one that does not wait."""
        call = _packed("EVALSHA", script.sha, len(commit.keys), *commit.keys, *commit.arguments)
        if then_ask is not None and commit.last_id is not None:
            call += _question(then_ask, commit.last_id)
            self._asked_s = time.monotonic()
        self._line.send(call)
        failpoint("commit-sent")

    def answer(self) -> list[Any]:
        """The answer to `call`, status and all."""
        return list(self._await())

    def _await(self) -> Any:
        if self._answer is False:
            until_s = time.monotonic() + ANSWER_WITHIN_S
            while not self._receive(until_s - time.monotonic()):
                if time.monotonic() >= until_s:
                    raise RedisTimeoutError(f"no answer within {ANSWER_WITHIN_S} s")
        answer, self._answer = self._answer, False
        if isinstance(answer, hiredis.ReplyError):
            raise ResponseError(str(answer))
        return answer

    def _receive(self, timeout_s: float) -> bool:
        """Whether a whole answer is there, after waiting for more bytes at most once."""
        if self._answer is False:
            self._answer = self._reader.gets()
        if self._answer is not False:
            return True
        received = self._line.receive(timeout_s)
        if received:
            self._reader.feed(received)
            self._answer = self._reader.gets()
        return self._answer is not False


def _packed(*command: Argument) -> bytes:
    return cast(bytes, hiredis.pack_command(cast(Any, command)))


def _question(stream: str, after: str, *, wait: bool = True) -> bytes:
    # All but the id is the same each time, and to put a dozen words together costs as much as a decision.
    return b"%b$%d\r\n%b\r\n" % (_question_about(stream, wait), len(after), after.encode())


@functools.cache
def _question_about(stream: str, wait: bool) -> bytes:
    """All of the question but the last word, the id."""
    blocking = ("BLOCK", BLOCK_MS) if wait else ()
    return _packed("XREAD", "COUNT", BATCH_MAX, *blocking, "STREAMS", stream, "").removesuffix(b"$0\r\n\r\n")
