"""Dataclasses as lines of strict JSON, and back, each field checked against its annotation."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, partial
from itertools import chain
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from kernelbench.spec.errors import KernelbenchError
from kernelbench.spec.migrations import Migrations, migrate

M = TypeVar("M")

_MOST = 2**62  # whole numbers stay below, so that a sum of two fits 64 bits
NEVER = {"further"}  # fields that no line has
_ENDLESS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}  # JSON has no such numbers


def to_line(value: Any) -> str:
    """A dataclass as one line of strict JSON. Fields that are empty are left out.

    A float that is no number of JSON is the text "inf", "-inf" or "nan".
    """
    facts = {
        name: item for name, item in _fields_of(value) if not _empty(item) and name not in NEVER
    }
    return json.dumps(_plain(facts), separators=(",", ":"), allow_nan=False)


def _fields_of(value: Any) -> list[tuple[str, Any]]:
    return [(name, getattr(value, name)) for name in _names(cast(Any, type(value)))]


@cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(each.name for each in fields(kind))


def from_line(kind: type[M], line: str, schema: int, migrations: Migrations) -> M:
    """The inverse; a line of an older schema is migrated first.

    Raises KernelbenchError saying what is wrong with the line.
    """
    try:
        facts = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise KernelbenchError(f"not JSON ({error})") from None
    if not isinstance(facts, dict) or type(facts.get("schema")) is not int:
        raise KernelbenchError("not a record: no 'schema'")
    try:
        if facts["schema"] != schema:
            facts = migrate(facts, schema, migrations)
        return _made(kind, facts)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise KernelbenchError(f"not a record of schema {schema}: {error}") from None


def _empty(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, (str, tuple, dict)) and not value)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(float(value))
    if isinstance(value, (tuple, list)):
        samples = set(map(type, value)) == {int}
        return value if samples else [_plain(item) for item in value]
    if is_dataclass(value):
        return {name: _plain(item) for name, item in _fields_of(value)}
    return (
        {name: _plain(item) for name, item in value.items()}
        if isinstance(value, Mapping)
        else value
    )


Read = Callable[[Any], Any]


def _made(kind: type[M], facts: Mapping[str, Any]) -> M:
    """A dataclass from a JSON object. Raises ValueError naming the field that is wrong, or
    TypeError naming those that are missing."""
    known, values = _readers(cast(Any, kind)), {}
    for name, value in facts.items():
        if name not in known or name in NEVER:
            raise ValueError(f"unknown field {name!r}")
        try:
            values[name] = known[name](value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return kind(**values)


@cache
def _readers(kind: type[Any]) -> dict[str, Read]:
    return {name: _reader(hint) for name, hint in get_type_hints(kind).items()}


@cache
def _reader(kind: Any) -> Read:
    """What turns a JSON value into what the annotation `kind` wants, and raises ValueError where
    it is another. Chosen once an annotation: a run has millions of values."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return _anything
    if isinstance(kind, UnionType):
        return partial(_one_of, {item: _reader(item) for item in inner}, _reader(inner[0]))
    if kind is int:
        return _whole
    if kind is float:
        return _real
    if origin is tuple:
        if inner[0] == tuple[int, ...]:
            return _rounds
        return _wholes if inner[0] is int else partial(_tuple, kind, _reader(inner[0]))
    if origin is Mapping:
        return partial(_mapping, kind, _reader(inner[1]))
    if isinstance(kind, type) and is_dataclass(kind):
        return partial(_dataclass, kind)
    if isinstance(kind, type) and issubclass(kind, str):
        return partial(_text, kind)
    return partial(_itself, kind)


def _refuse(kind: Any, value: Any) -> ValueError:
    return ValueError(f"{type(value).__name__}, not {getattr(kind, '__name__', kind)}")


def _anything(value: Any) -> Any:
    nested: dict[Any, Any] = {dict: Mapping[str, Any], list: tuple[Any, ...]}
    return _reader(nested.get(type(value), type(value)))(value)


def _one_of(readers: Mapping[Any, Read], first: Read, value: Any) -> Any:
    return readers.get(type(value), first)(value)


def _whole(value: Any) -> int:
    if type(value) is int or (type(value) is float and value.is_integer()):
        if abs(value) >= _MOST:
            raise ValueError("a whole number of more than 62 bits")
        return int(value)
    raise _refuse(int, value)


def _wholes(value: Any) -> tuple[int, ...]:
    if type(value) is list and set(map(type, value)) == {int}:
        if max(value) < _MOST and min(value) > -_MOST:
            return tuple(value)
        raise ValueError("a whole number of more than 62 bits")
    return cast(tuple[int, ...], _tuple(tuple[int, ...], _whole, value))


def _rounds(value: Any) -> tuple[tuple[int, ...], ...]:
    """Whole numbers in lists, looked at all at once."""
    if type(value) is list and set(map(type, value)) == {list}:
        flat = [*chain.from_iterable(value)]
        if set(map(type, flat)) == {int} and max(flat) < _MOST and min(flat) > -_MOST:
            return tuple(map(tuple, value))
    return cast(tuple[tuple[int, ...], ...], _tuple(tuple[tuple[int, ...], ...], _wholes, value))


def _tuple(kind: Any, inner: Read, value: Any) -> tuple[Any, ...]:
    if type(value) is not list:
        raise _refuse(kind, value)
    return tuple([inner(item) for item in value])


def _mapping(kind: Any, inner: Read, value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise _refuse(kind, value)
    return {_text(str, name): inner(item) for name, item in value.items()}


def _dataclass(kind: type[Any], value: Any) -> Any:
    if type(value) is not dict:
        raise _refuse(kind, value)
    return _made(kind, value)


def _real(value: Any) -> float:
    if type(value) in (int, float):
        return float(value)
    if type(value) is str and value in _ENDLESS:
        return _ENDLESS[value]
    raise _refuse(float, value)


def _text(kind: type[str], value: Any) -> str:
    if type(value) is not str:
        raise _refuse(kind, value)
    if not value.isascii():
        value = value.encode(errors="replace").decode()  # half a surrogate prints nowhere
    return value if kind is str else kind(value)


def _itself(kind: Any, value: Any) -> Any:
    if type(value) is not kind:
        raise _refuse(kind, value)
    return value
