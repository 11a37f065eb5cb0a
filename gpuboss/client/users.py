"""Who uses a resident model, and who waits for it."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

import anyio

from gpuboss.client.pace import Alarm
from gpuboss.errors import GPUBossError

M = TypeVar("M")


class Refusal:
    """No model, because of `why`."""

    def __init__(self, why: Exception) -> None:
        self.why = why


class User:
    """One use. Its `block` is cancelled if the model is taken away from it, because of `over`."""

    def __init__(self) -> None:
        self.block = anyio.CancelScope()
        self.over: GPUBossError | None = None


class Users(Generic[M]):
    """All users of one model. `bell` rings whenever one comes or leaves."""

    def __init__(self, bell: Alarm) -> None:
        self.waiting: dict[User, asyncio.Future[M | Refusal]] = {}
        self.using: dict[User, None] = {}
        self._bell = bell

    async def come(self) -> tuple[User, M]:
        """Wait for the model, and use it until `leave`. Raises what it is refused with."""
        user = User()
        self.waiting[user] = told = asyncio.get_running_loop().create_future()
        self._bell.ring()
        try:
            answer = await told
            if isinstance(answer, Refusal):
                raise answer.why
        except BaseException:
            self.leave(user)  # also if it was admitted, and cancelled before it heard of that
            raise
        return user, answer

    def leave(self, user: User) -> None:
        """Somebody is done, or waits no more."""
        self.waiting.pop(user, None)
        self.using.pop(user, None)
        self._bell.ring()

    def admit(self, model: M) -> None:
        """Whoever waits may use the model."""
        self.using |= dict.fromkeys(self.waiting)
        self._tell(model)

    def refuse(self, why: Exception) -> None:
        """Whoever waits does so in vain."""
        self._tell(Refusal(why))

    def stop(self, why: GPUBossError) -> None:
        """Nobody may use the model any more."""
        for user in self.using:
            user.over = user.over or why
            user.block.cancel()
        self._bell.ring()

    def _tell(self, answer: M | Refusal) -> None:
        waiting, self.waiting = self.waiting, {}
        for told in waiting.values():
            if not told.done():  # else it was cancelled, and is about to leave
                told.set_result(answer)
