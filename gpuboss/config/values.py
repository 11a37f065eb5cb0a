"""Single settings as people write them: read into what the code uses, or refused, passwords never shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote_plus, urlsplit

import msgspec

from gpuboss.errors import ConfigError
from gpuboss.fields import DeviceWish, ServiceName

T = TypeVar("T")

SHOWN_CHARACTERS_MAX = 80
URL_SCHEMES = ("redis", "rediss", "unix")
_SECRET_WORDS = ("pass", "secret", "token", "credential")
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
# Braces are Redis Cluster's hash tag: one pair at most, never empty, or a script's keys lie on two nodes.
_NAMESPACE = re.compile(r"(?=.{1,63}\Z)(?=[A-Za-z0-9{])[A-Za-z0-9._-]*(\{[A-Za-z0-9._-]+\})?[A-Za-z0-9._-]*\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")
_ADDRESS = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})\Z")
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]*\]|[^][:/?#]*)(:[0-9]*)?(?=[/?#]|\Z)")
_DATABASE = re.compile(r"/?[0-9]{0,5}\Z")
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}\Z")


# ---------------------------------------------------------------- showing what was given


def redact_url(url: str) -> str:
    """The URL with `***` for every password in it; where in doubt it hides too much rather than too little.

    An unescaped password may hold `/`, `#`, `?` or `@`, where a URL parser cuts in the wrong place. So all
    before the last `@` counts as credentials.
    """
    scheme, mark, rest = url.partition("://")
    if not mark or "@" in scheme:
        scheme, mark, rest = "", "", url
    credentials, at, address = rest.rpartition("@")
    if "?" in credentials:  # a password in the query, or a `?` in a password: no telling where it ends
        return f"{scheme}{mark}***"
    if at:
        user, colon, _ = credentials.partition(":")
        user = f"{user}:" if colon and not set(user) & set("/#") else ""
        return f"{scheme}{mark}{user}***@{_redact_query(address)}"
    if mark and not _HOST_AND_PORT.match(rest):  # maybe `redis://user:password`, the host forgotten
        return f"{scheme}{mark}{re.split('[][/?#]', rest)[0].partition(':')[0]}:***"
    return f"{scheme}{mark}{_redact_query(rest)}"


def _redact_query(text: str) -> str:
    head, mark, query = text.partition("?")
    pairs = []
    for pair in query.split("&"):
        name, equals, value = pair.partition("=")
        secret = any(word in unquote_plus(name).lower() for word in _SECRET_WORDS)
        pairs.append(f"{name}={'***' if secret else value}" if equals else pair)
    return f"{head}{mark}{'&'.join(pairs)}"


def shown(value: object) -> str:
    """What was given, fit for an error message: short, printable, without passwords."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true (a boolean)" if value else "false (a boolean)"
    if isinstance(value, str):
        return repr(_shortened(redact_url(value)))
    if isinstance(value, int | float | Decimal):
        try:
            return f"{_shortened(str(value))} (a number)"
        except ValueError:  # Python refuses to print integers of more than 4,300 digits
            return "a number of thousands of digits"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return f"an object of type {type(value).__name__}"


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[: SHOWN_CHARACTERS_MAX - 1] + "…"


# ---------------------------------------------------------------- reading


def optional(read: Callable[[object], T]) -> Callable[[object], T | None]:
    """A reader that takes null for "none", and everything else as `read` does."""
    return lambda value: None if value is None else read(value)


def read_boolean(value: object) -> bool:
    """True or false, or a word for it. Raises `ConfigError`."""
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else ""
    if word not in _TRUE | _FALSE:
        raise ConfigError(f"{shown(value)} is neither yes nor no; expected true or false, for example true")
    return word in _TRUE


def whole_number(minimum: int, maximum: int) -> Callable[[object], int]:
    """A reader of integers from `minimum` to `maximum`."""

    def read(value: object) -> int:
        number = value
        if isinstance(value, str) and _WHOLE_NUMBER.match(value.strip()):
            number = int(value)
        if not isinstance(number, int) or isinstance(number, bool) or not minimum <= number <= maximum:
            raise ConfigError(
                f"{shown(value)} does not fit; expected a whole number from {minimum} to {maximum}, "
                f"for example {max(minimum, 1)}"
            )
        return number

    return read


def choice(*choices: str) -> Callable[[object], str]:
    """A reader of one word out of `choices`."""

    def read(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ConfigError(
                f"{shown(value)} does not fit; expected one of {', '.join(choices)}, for example {choices[0]}"
            )
        return value

    return read


def read_name(value: object) -> str:
    """The name of a service, an instance or a node. Raises `ConfigError`."""
    try:
        return msgspec.convert(value, ServiceName)
    except msgspec.ValidationError:
        hint = "" if isinstance(value, str) else "; put it in quotes if it is meant as a name"
        raise ConfigError(
            f"{shown(value)} is not a name; expected 1 to 63 of a-z 0-9 . _ -, the first a letter or a digit, "
            f"such as imajin-diffusion{hint}"
        ) from None


def read_namespace(value: object) -> str:
    """The prefix of all keys in Redis. Raises `ConfigError`."""
    if not isinstance(value, str) or not _NAMESPACE.match(value):
        raise ConfigError(
            f"{shown(value)} is not a namespace; expected 1 to 63 of A-Z a-z 0-9 . _ -, the first a letter "
            "or a digit, one part maybe in braces, for example gpuboss, or {gpuboss} on Redis Cluster"
        )
    return value


def read_path(value: object) -> str:
    """The path of a file or folder, as text or as a `Path`; it need not exist. Raises `ConfigError`."""
    path = str(value) if isinstance(value, Path) else value
    if not isinstance(path, str) or not path or not path.isprintable():
        raise ConfigError(f"{shown(value)} is not a path; expected text, for example ./gpuboss-data")
    return path


def read_variable_name(value: object) -> str:
    """The name of an environment variable. Raises `ConfigError`."""
    if not isinstance(value, str) or not _VARIABLE.match(value):
        raise ConfigError(
            f"{shown(value)} names no environment variable; expected letters, digits and underscores, "
            "for example IMAGE_GEN_ANIME_DEVICE"
        )
    return value


def read_device(value: object) -> str:
    """A device by its place (`cuda:0`) or by its GPU or MIG UUID. Raises `ConfigError`."""
    try:
        return msgspec.convert(value, DeviceWish)
    except msgspec.ValidationError:
        raise ConfigError(
            f"{shown(value)} names no device; expected cuda:N or a UUID that begins with GPU- or MIG-, "
            "for example cuda:0"
        ) from None


def read_redis_url(value: object) -> str:
    """Where Redis is. The message of the `ConfigError` that it raises shows no password."""
    expected = (
        f"expected one of {', '.join(scheme + '://…' for scheme in URL_SCHEMES)}, what is special in a password "
        "percent-encoded, for example redis://localhost:6379/0"
    )
    if not isinstance(value, str) or not value.isprintable() or " " in value:
        raise ConfigError(f"{shown(value)} is not a Redis URL; {expected}")
    try:
        parts = urlsplit(value)
        _ = parts.port  # parsed only when asked for
    except ValueError:
        # `from None`: urllib's own message repeats the part that it could not read, maybe a password.
        raise ConfigError(f"{shown(value)} has no valid host and port; {expected}") from None
    if "://" not in value or parts.scheme not in URL_SCHEMES:
        raise ConfigError(f"{shown(value)} is not a Redis URL; {expected}")
    if parts.scheme == "unix":
        if not parts.path:
            raise ConfigError(f"{shown(value)} names no socket; {expected}, or unix:///run/redis.sock")
    elif parts.fragment or not _DATABASE.match(parts.path):
        # What redis-py cannot read here it takes for database 0: `redis://:12/34@host` is localhost:12 to it.
        raise ConfigError(f"{shown(value)} has no valid database number; {expected}")
    return value


def read_http_address(value: object) -> tuple[str, int] | None:
    """Host and port to serve HTTP at, or None for `off`. Raises `ConfigError`."""
    if value is False or (isinstance(value, str) and value.lower() == "off"):  # YAML reads a bare `off` as false
        return None
    match = _ADDRESS.match(value) if isinstance(value, str) else None
    if match is None or int(match[2]) > 65535:
        raise ConfigError(f"{shown(value)} is no address; expected HOST:PORT or off, for example 127.0.0.1:8003")
    return match[1].strip("[]"), int(match[2])
