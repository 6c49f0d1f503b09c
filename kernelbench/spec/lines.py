"""Dataclasses as lines of strict JSON, and back, each field checked against its annotation."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from kernelbench.spec.errors import KernelbenchError
from kernelbench.spec.migrations import Migrations, migrate

M = TypeVar("M")

_MOST = 2**62  # whole numbers stay below, so that a sum of two fits 64 bits
_ENDLESS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}  # JSON has no such numbers


def to_line(value: Any) -> str:
    """A dataclass as one line of strict JSON. Fields that are empty are left out.

    A float that is no number of JSON is the text "inf", "-inf" or "nan".
    """
    facts = {k: v for k, v in asdict(value).items() if not _empty(v)}
    return json.dumps(_plain(facts), separators=(",", ":"), allow_nan=False)


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
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _made(kind: type[M], facts: Mapping[str, Any]) -> M:
    """A dataclass from a JSON object. Raises ValueError naming the field that is wrong, or
    TypeError naming those that are missing."""
    known, found = get_type_hints(kind), {}
    for name, value in facts.items():
        if name not in known:
            raise ValueError(f"unknown field {name!r}")
        try:
            found[name] = _read(known[name], value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return kind(**found)


def _read(kind: Any, value: Any) -> Any:
    """A JSON value as the annotation `kind` wants it. Raises ValueError where it is another."""
    given: type[Any] = type(value)
    if kind is Any:
        nested: dict[Any, Any] = {dict: Mapping[str, Any], list: tuple[Any, ...]}
        kind = nested.get(given, given)
    elif isinstance(kind, UnionType):
        kinds = get_args(kind)
        kind = given if given in kinds else kinds[0]
    if kind is int and (given is int or (given is float and value.is_integer())):
        if abs(value) >= _MOST:
            raise ValueError("a whole number of more than 62 bits")
        return int(value)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple and given is list:
        return tuple([_read(inner[0], each) for each in value])
    if origin is Mapping and given is dict:
        return {_read(str, name): _read(inner[1], each) for name, each in value.items()}
    if given is dict and isinstance(kind, type) and is_dataclass(kind):
        return _made(kind, value)
    if kind is float and (given in (int, float) or (given is str and value in _ENDLESS)):
        return float(_ENDLESS.get(value, value))
    if given is str and isinstance(kind, type) and issubclass(kind, str):
        return kind(value.encode(errors="replace").decode())  # half a surrogate prints nowhere
    if kind in (bool, NoneType) and given is kind:
        return value
    raise ValueError(f"{given.__name__}, not {getattr(kind, '__name__', kind)}")
