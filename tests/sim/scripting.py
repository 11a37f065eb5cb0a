"""Running Lua scripts as the server does: the same language, the same two ways to call a command, the same answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from itertools import count, takewhile
from typing import Any

from lupa import lua51

from tests.sim.resp import Answer, Error, Refused, Status
from tests.sim.words import as_text, number_text

Execute = Callable[[list[bytes]], Answer]

# The part of the server's sandbox that is written in Lua. What a script runs on stays the same from call to call, so
# neither a script nor what it leaves behind may change it.
_PRELUDE = b"""
local execute = ...
local type, error, setmetatable, rawset, tostring, xpcall = type, error, setmetatable, rawset, tostring, xpcall
local globals = _G

-- An array comes as its elements, behind a true, which nothing else is: that is the cheapest way in.
local function told(answer, ...)
  if answer == true then return {...} end
  return answer
end

redis = {}
function redis.pcall(...) return told(execute(...)) end
function redis.call(...)
  local answer = told(execute(...))
  if type(answer) == 'table' and answer.err then error(answer) end
  return answer
end
function redis.status_reply(text) return {ok = text} end
function redis.error_reply(text)
  text = string.gsub(text, '^-', '')
  return {err = string.find(text, ' ', 1, true) and text or 'ERR ' .. text}
end

-- What the server does not have, and what it has in a form of its own that no script of ours needs.
for _, name in ipairs({
  'python', 'os', 'io', 'require', 'module', 'package', 'dofile', 'loadfile', 'print', 'pcall', 'xpcall', 'coroutine',
}) do globals[name] = nil end
math.random, math.randomseed = nil, nil
setmetatable(globals, {
  __newindex = function() error('Attempt to modify a readonly table', 2) end,
  __index = function(_, name)
    error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2)
  end,
})

local function explain(trouble)
  if type(trouble) == 'userdata' or type(trouble) == 'table' then return trouble end
  return {err = 'ERR ' .. tostring(trouble)}
end

return function(script, keys, arguments)
  rawset(globals, 'KEYS', keys)
  rawset(globals, 'ARGV', arguments)
  local done, answer = xpcall(script, explain)
  if done and type(answer) == 'table' and not answer.err and not answer.ok then
    local size = #answer
    if size > 0 and size < 1000 then return 'array', unpack(answer) end -- the cheapest way out
  end
  return done, answer
end
"""


class Interpreter:
    """One Lua for all simulated servers of a process: making one takes longer than most scripts, and one that knows a
    server is never freed with it. It keeps nothing of theirs."""

    def __init__(self) -> None:
        self._lua: Any = lua51.LuaRuntime(encoding=None, unpack_returned_tuples=True, register_eval=False)
        self._table = self._lua.table_from
        self._compile = self._lua.globals().loadstring
        self._enter = self._compile(_PRELUDE, b"=prelude")(self._execute)
        self._scripts: dict[str, Any] = {}
        self._current: Execute | None = None

    def load(self, sha: str, text: bytes) -> None:
        """Compile a script, to be run by its hash. Raises `Refused`."""
        if sha not in self._scripts:
            compiled = self._compile(text, b"@user_script")
            if isinstance(compiled, tuple):
                raise Refused(f"Error compiling script (new function): {as_text(compiled[1])}")
            self._scripts[sha] = compiled

    def run(self, sha: str, keys: list[bytes], arguments: list[bytes], execute: Execute) -> Answer:
        """Run a script that was loaded; `execute` carries out the commands that it calls. An error does not say
        where in the script it came from."""
        table = self._table
        self._current = execute
        try:
            done, *answers = self._enter(self._scripts[sha], table(keys), table(arguments))
        finally:
            self._current = None
        if done == b"array":
            return _list(answers)
        if isinstance(answers[0], Exception):
            raise answers[0]
        return _answer(answers[0])

    def _execute(self, *words: Any) -> Any:
        """What `redis.call` and `redis.pcall` come to."""
        assert self._current is not None
        try:
            said = [word if type(word) is bytes else _word(word) for word in words]
            if not said:
                raise Refused("Please specify at least one argument for this redis lib call")
            answer = self._current(said)
            if type(answer) is list:
                return True, *[each if type(each) is bytes else self._told(each) for each in answer]
            return answer if type(answer) is bytes or type(answer) is int else self._told(answer)
        except Refused as refused:
            return self._told(refused.answer)

    def _told(self, answer: Answer) -> Any:
        """An answer as a script sees it."""
        if answer is None:
            return False
        if isinstance(answer, list):
            return self._table([self._told(each) for each in answer])
        if isinstance(answer, Status | Error):
            return self._table({b"err" if isinstance(answer, Error) else b"ok": answer.encode("latin-1")})
        return answer


@functools.cache
def interpreter() -> Interpreter:
    """The one of this process, made when it is first needed."""
    return Interpreter()


def _word(value: Any) -> bytes:
    if type(value) is int or type(value) is float:
        return number_text(float(value))
    raise Refused("Lua redis lib command arguments must be strings or integers")


def _answer(value: Any) -> Answer:
    """What a script returned, as the server answers it."""
    if value is None or value is False:
        return None
    if value is True:
        return 1
    if isinstance(value, bytes | int):
        return value
    if isinstance(value, float):
        return int(value)
    if (error := value[b"err"]) is not None:
        return Error(as_text(error))
    if (status := value[b"ok"]) is not None:
        return Status(as_text(status))
    return _list(value[at] for at in count(1))


def _list(values: Iterable[Any]) -> list[Answer]:
    """An array ends where nothing stands."""
    return [each if type(each) is bytes else _answer(each) for each in takewhile(lambda each: each is not None, values)]
