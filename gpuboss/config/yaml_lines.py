"""A YAML file as plain values that remember their lines, so that a mistake can be pointed at."""

from __future__ import annotations

import os
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from gpuboss.config.values import shown
from gpuboss.errors import ConfigError

if TYPE_CHECKING:
    from yaml import Node, ScalarNode, YAMLError

FILE_BYTES_MAX = 1024 * 1024
DEPTH_MAX = 32

Value: TypeAlias = "str | int | Decimal | bool | list[Located] | dict[str, Located] | None"


class Located(NamedTuple):
    """A value, and the line on which it, or the key before it, stands (the first is 1)."""

    value: Value
    line: int


def read_yaml(path: str | os.PathLike[str]) -> Located:
    """The file's one document. Numbers with a fraction come as `Decimal`, exactly as written.

    Raises `ConfigError`, with the line where there is one, for a file that cannot be read, is above
    `FILE_BYTES_MAX`, is not UTF-8 or not YAML, and for duplicate keys, aliases, tags and deep nesting.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read {name!r}: {cause}; expected the path of a YAML file") from None
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(f"{name}: larger than {FILE_BYTES_MAX} bytes; expected a configuration, of a few kilobytes")
    return _parsed(raw, name)


def _parsed(raw: bytes, name: str) -> Located:
    import yaml  # 25 ms of CPU that only those who have a file should pay

    try:
        text = raw.decode("utf-8-sig")
        _refuse_hostile(text, name)
        node = yaml.compose(text, Loader=_loader())
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(f"{name}:{line}: not UTF-8; save the file as UTF-8") from None
    except yaml.YAMLError as error:
        # `from None`: the parser's own message quotes the line, which may hold a password.
        raise ConfigError(_complaint(error, raw, name)) from None
    return Located(None, 1) if node is None else Located(_value(node, name), node.start_mark.line + 1)


def _refuse_hostile(text: str, name: str) -> None:
    """Looks at the flat events first: composing recurses, and would expand aliases without end."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=_loader()):
        where = f"{name}:{event.start_mark.line + 1 if event.start_mark else 1}"
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{where}: an alias (*name) is not supported; write the value out")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            raise ConfigError(f"{where}: the tag {shown(event.tag)} is not supported; expected plain values")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH_MAX:
            raise ConfigError(f"{where}: nested deeper than {DEPTH_MAX} levels; expected at most five")


def _loader() -> Any:
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # some builds of PyYAML lack the fast one


def _complaint(error: YAMLError, raw: bytes, name: str) -> str:
    mark = getattr(error, "problem_mark", None)
    line = mark.line if mark else raw[: getattr(error, "position", 0)].count(b"\n")
    words = [getattr(error, name, None) for name in ("context", "problem", "reason")]
    return f"{name}:{line + 1}: not YAML: {', '.join(word for word in words if word)}"


def _value(node: Node, name: str) -> Value:
    import yaml

    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [Located(_value(item, name), item.start_mark.line + 1) for item in node.value]
    values: dict[str, Located] = {}
    for key, item in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{name}:{line}: a list or a mapping as a key; expected a name")
        if key.value in values:
            first = values[key.value].line
            raise ConfigError(f"{name}:{line}: {shown(key.value)} is there twice, first on line {first}; remove one")
        values[key.value] = Located(_value(item, name), line)
    return values


def _scalar(node: ScalarNode) -> str | int | Decimal | bool | None:
    text: str = node.value
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("true", "yes", "on")
    # What YAML 1.1 reads otherwise than people do (1:30 is 90, 010 is 8) stays text, for the reader to judge.
    if kind == "int" and re.fullmatch(r"[-+]?(0|[1-9][0-9]{0,17})", text):
        return int(text)
    if kind == "float":
        number = text.lower().replace(".inf", "Infinity").replace(".nan", "NaN")
        if re.fullmatch(r"[-+]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+][0-9]{1,3})?|Infinity|NaN)", number):
            return Decimal(number)
    return text
