"""What may stand in a suite: pydantic models made from the families, and their errors in words."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import StrEnum
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, create_model

from kernelbench.spec import COMPILE, DTYPE_ALIASES, Axis, DType, Family, Measure, Mode, suggest
from kernelbench.suite.executor import ENV, LINE, Executor, Strict
from kernelbench.suite.reader import Node, Problem

Families = Mapping[str, Family[Any]]
Loc = tuple[str | int, ...]

NAME = r"^[A-Za-z0-9_.-]+$"
WORD = r"^[A-Za-z0-9_.=-]+$"  # what a case's id may hold
TEXT = r"^[^\x00-\x08\x0b-\x1f\x7f]*$"
BLOCK_KEYS = ("label", "zip", "providers")


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _many(kind: Any) -> Any:
    """A list that is not empty; a scalar is a list of one."""
    several: Any = Annotated[list[kind], Field(min_length=1)]
    before = BeforeValidator(_listed, json_schema_input_type=kind | several)
    return Annotated[list[kind], Field(min_length=1), before]


def _kind(ax: Axis, family: Family[Any]) -> Any:
    if ax.type is Mode:
        return Literal[tuple(mode.value for mode in family.modes)]
    if issubclass(ax.type, StrEnum):
        aliases = DTYPE_ALIASES if ax.type is DType else ()
        return Literal[(*(member.value for member in ax.type), *aliases)]
    if ax.type is str:
        return Annotated[str, Field(pattern=WORD)]
    return ax.type


class _Block(Strict):
    label: str = Field(
        "", pattern=LINE, description="what tables call these cases, such as 'Small (one frame)'"
    )
    zip: bool = Field(False, description="lists in lock-step; else their cartesian product")


_Words: Any = _many(str)
_Modes: Any = _many(Literal[tuple(COMPILE)])
_Lines: Any = _many(Annotated[str, Field(pattern=LINE, min_length=1)])


class _Function(Strict):
    """See spec.Declaration."""

    against: str = Field(description="the reference: FILE.py:NAME, or module:NAME")
    candidates: dict[str, str] = Field({}, description="what is held against it, by name")
    args: str = Field("", description="what they are called with: 'x=MxN:bf16, w=N:bf16'")
    grad: _Words = Field([], description="arguments that have a gradient; all for all")
    compile: _Modes = Field(
        [], description="modes of torch.compile in which the reference runs, too"
    )
    inputs: str = Field("", description="a function that makes arguments: FILE.py:NAME")
    oracle: str = Field("", description="what is right, in place of the reference in fp64")
    imports: _Words = Field([], description="files and modules to import first")
    max_error: dict[str, float] = Field(
        {}, description="of approximate candidates, the relative error that they promise"
    )


class _Suite(Strict):
    name: str = Field(pattern=NAME, description="names the run's directory")
    description: str = Field("", pattern=TEXT, description="what this suite is for")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where it runs")
    gpu: str = Field("", pattern=LINE, description="the GPU that its sizes were made for")
    gpus: _Lines = Field(
        [], description="GPU models, on each of which `kernelbench fanout` runs every job"
    )
    executor: Executor = Field(
        default_factory=Executor.default, description="where `kernelbench fanout` runs jobs"
    )
    defaults: dict[str, Any] = Field({}, description="axes of every family that has them")
    functions: dict[Annotated[str, Field(pattern=NAME)], _Function] = Field(
        {}, description="families made of a function and its reference, by name"
    )


_Key = tuple[Any, Any, str]  # its type, its default, what it means


def _made(name: str, base: type[BaseModel], keys: Mapping[str, _Key]) -> Any:
    """A model whose keys may have any name, also one that pydantic keeps for itself."""
    typed: dict[str, Any] = {
        f"field_{at}": (kind, Field(default, alias=key, description=doc or None))
        for at, (key, (kind, default, doc)) in enumerate(keys.items())
    }
    return create_model(name, __base__=base, **typed)


def _axes(family: Family[Any], base: type[BaseModel] = Strict, **more: _Key) -> Any:
    """The family's axes, all optional: where they are required, defaults may supply them."""
    keys = {
        ax.name: (_many(_kind(ax, family)), None, f"{ax.doc} (required)")
        if ax.required
        else (_many(_kind(ax, family)), ax.default, ax.doc)
        for ax in family.case.axes()
    }
    return _made(f"{family.name}_axes", base, keys | more)


def _family(family: Family[Any]) -> Any:
    providers = _many(Literal[tuple(provider.name for provider in family.providers)])
    modes = _many(Literal[tuple(mode.value for mode in family.modes)])
    block: Any = _axes(family, _Block, providers=(providers, None, "which to measure here"))
    cases = Annotated[list[block], Field(min_length=1)]
    keys = {
        "providers": (providers, None, "which to measure; all, if not given"),
        "modes": (modes, None, "the axis `mode` of blocks that have none"),
        "cases": (cases, ..., "blocks of axes: each a grid or, with zip: true, lock-step lists"),
    }
    return _made(f"{family.name}_family", Strict, keys)


def _measure() -> Any:
    hints = get_type_hints(Measure)
    keys = {}
    for f in fields(Measure):
        kind = list[str] if hints[f.name] == tuple[str, ...] else hints[f.name]
        keys[f.name] = (kind, f.default, "")
    return _made("measure", Strict, keys)


def model(families: Families) -> Any:
    """The pydantic model of a whole suite."""
    every = _made("families", Strict, {n: (_family(f), None, f.title) for n, f in families.items()})
    keys = {
        "measure": (_measure(), None, "when to stop sampling, and what else to read"),
        "families": (every, ..., "what to measure, family by family"),
    }
    return _made("suite", _Suite, keys)


def check(root: Node, families: Families) -> list[tuple[Loc, Problem]]:
    """What is wrong with a suite as far as one value tells, each with its location."""
    data = {k: v for k, v in root.plain().items() if not str(k).startswith(SHARED)}
    problems = _errors(model(families), root, (), data, families)
    listed = data.get("families")
    if listed == {}:
        problems.append((("families",), Problem(root.spot(("families",), key=True), _EMPTY)))
    if data.get("gpu") and data.get("gpus"):
        where = root.spot(("gpus",), key=True)
        problems.append((("gpus",), Problem(where, "'gpu' and 'gpus' are alternatives; give one")))
    defaults = data.get("defaults")
    if isinstance(defaults, dict) and isinstance(listed, dict):
        problems += _defaults(root, defaults, {n: f for n, f in families.items() if n in listed})
    return problems


SHARED = "x-"  # keys of a suite that hold anchors for others, and mean nothing by themselves
_EMPTY = "'families' is empty; nothing to measure"


def _defaults(root: Node, given: Mapping[str, Any], listed: Families) -> list[tuple[Loc, Problem]]:
    """Defaults mean what they mean in each family of the file that has such an axis."""
    problems: list[tuple[Loc, Problem]] = []
    known = dict.fromkeys(ax.name for f in listed.values() for ax in f.case.axes())
    if "mode" in given and "modes" in given:
        where = root.spot(("defaults", "modes"), key=True)
        problems.append(
            (("defaults",), Problem(where, "'mode' and 'modes' are the same; give one"))
        )
    for key in given:
        if listed and key not in known and key != "modes":
            where = root.spot(("defaults", key), key=True)
            message = f"no family of this suite has an axis {key!r}{suggest(key, known)}"
            problems.append((("defaults", key), Problem(where, message)))
    for family in listed.values():
        own = {ax.name for ax in family.case.axes()}
        part = {key: value for key, value in given.items() if key in own}
        problems += _errors(_axes(family), root, ("defaults",), part, {family.name: family})
        if "modes" in given:
            renamed = {"mode": given["modes"]}
            for (_, __, *rest), problem in _errors(
                _axes(family), root, ("defaults",), renamed, {family.name: family}
            ):
                where = root.spot(("defaults", "modes", *rest))
                problems.append((("defaults", "modes"), Problem(where, problem.message)))
    return problems


def _errors(
    made: Any, root: Node, at: Loc, data: Any, families: Families
) -> list[tuple[Loc, Problem]]:
    try:
        made.model_validate(data)
    except ValidationError as error:
        problems = []
        for one in error.errors(include_url=False, include_context=True):
            loc = (*at, *one["loc"])
            on_key = one["type"] in ("extra_forbidden", "missing", "too_short")
            where = root.spot(loc, key=on_key)
            problems.append((loc, Problem(where, _message(one, loc, families))))
        return problems
    return []


_ALLOWED = {
    NAME: "a word of A-Z a-z 0-9 _ . -",
    WORD: "a word of A-Z a-z 0-9 _ . = -",
    LINE: "one line of text",
    TEXT: "text without control characters",
    ENV: "the name of an environment variable",
}
TAKES = {
    "int_type": "takes a whole number",
    "float_type": "takes a number",
    "bool_type": "takes true or false",
    "string_type": "takes text",
    "list_type": "takes a list",
    "dict_type": "takes a mapping",
    "model_type": "takes a mapping",
}


def _message(error: Any, loc: Loc, families: Families) -> str:
    kind, value = error["type"], error["input"]
    context = error.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown(str(loc[-1]), loc[:-1], families)
    if kind == "missing":
        return f"missing key {loc[-1]!r}{_of(loc[:-1])}"
    thing = _thing(loc)
    if kind == "too_short":
        return f"{thing} is empty"
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        if not isinstance(value, str):
            return f"{thing} takes a word, got {shown(value)}. Known: {', '.join(known)}"
        return f"{thing}: no value {value!r}{suggest(value, known)}"
    if kind == "string_pattern_mismatch":
        return f"{thing} takes {_ALLOWED[context['pattern']]}, got {shown(value)}"
    takes = TAKES.get(kind, error["msg"])
    quote = "; put it in quotes" if kind == "string_type" and _is_scalar(value) else ""
    return f"{thing} {takes}, got {shown(value)}{quote}"


def _is_scalar(value: Any) -> bool:
    return value is not None and not isinstance(value, (dict, list))


def shown(value: Any) -> str:
    """A value as it stands in YAML, cut short, with its type where that is the point."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "…"
    return f"{text} (text)" if isinstance(value, str) else text


def _axis_at(loc: Loc) -> str:
    """`rms_norm axis 'M'`, or nothing where the location is not one of an axis."""
    if loc[0] == "defaults" and len(loc) > 1:
        return f"axis {loc[1]!r}"
    in_block = len(loc) > 4 and loc[0] == "families" and loc[2] == "cases"
    return f"{loc[1]} axis {loc[4]!r}" if in_block and loc[4] not in BLOCK_KEYS else ""


def _thing(loc: Loc) -> str:
    if not loc:
        return "a suite"
    if axis := _axis_at(loc):
        return axis
    if len(loc) == 4 and loc[2] == "cases":
        return f"a block of {loc[1]}'s cases"
    words = [part for part in loc if isinstance(part, str)]
    return f"{words[-1]!r}{_of(tuple(words[:-1]))}"


def _of(loc: Loc) -> str:
    """` of rms_norm`: whose key it is."""
    if len(loc) >= 2 and loc[0] == "families":
        return f" of {loc[1]}"
    return f" of {loc[0]}" if loc and loc[0] != "families" else ""


def _unknown(key: str, parent: Loc, families: Families) -> str:
    if not parent:
        return f"no key {key!r}{suggest(key, [*_Suite.model_fields, 'measure', 'families'])}"
    if parent == ("families",):
        return f"no family {key!r}{suggest(key, families)}"
    if parent == ("measure",):
        return f"no key {key!r} of measure{suggest(key, [f.name for f in fields(Measure)])}"
    if parent == ("executor",):
        return f"no key {key!r} of executor{suggest(key, Executor.model_fields)}"
    if len(parent) == 2:
        message = f"no key {key!r} of {parent[1]}"
        return message + suggest(key, ["providers", "modes", "cases"])
    axes = [ax.name for ax in families[str(parent[1])].case.axes()]
    return f"no {parent[1]} axis {key!r}{suggest(key, [*axes, *BLOCK_KEYS])}"


def json_schema(families: Families) -> dict[str, Any]:
    """JSON Schema of a suite, for editors: every key, axis and value, with its meaning."""
    schema: dict[str, Any] = model(families).model_json_schema()
    defaults: dict[str, list[Any]] = {}
    definitions = schema["$defs"]
    for name, family in families.items():
        block = definitions[f"{name}_axes"]["properties"]
        for ax in family.case.axes():
            known = defaults.setdefault(ax.name, [])
            if block[ax.name] not in known:
                known.append(block[ax.name])
        defaults.setdefault("modes", [definitions[f"{name}_family"]["properties"]["modes"]])
    schema["properties"]["defaults"] |= {
        "properties": {k: v[0] if len(v) == 1 else {"anyOf": v} for k, v in defaults.items()},
        "additionalProperties": False,
    }
    schema["patternProperties"] = {f"^{SHARED}": {"description": "holds anchors; else unread"}}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    titled: dict[str, Any] = _tidy(schema)
    titled["$defs"] |= _share_values(titled)
    return head | titled | {"title": "a kernelbench suite"}


def _share_values(schema: dict[str, Any]) -> dict[str, Any]:
    """Definitions of the values that several axes may have, to which these then refer."""
    users: dict[str, list[tuple[str, dict[str, Any]]]] = {}

    def collect(at: Any) -> None:
        for key, value in at.items() if isinstance(at, dict) else enumerate(at):
            if isinstance(value, dict) and "anyOf" in value:
                users.setdefault(json.dumps(value["anyOf"]), []).append((str(key), value))
            if isinstance(value, (dict, list)):
                collect(value)

    collect(schema)
    shared: dict[str, Any] = {}
    for of in users.values():
        if len(of) > 1:
            name = f"{of[0][0]}_values{len(shared)}"
            for _, value in of:
                shared[name] = {"anyOf": value.pop("anyOf")}
                value["$ref"] = f"#/$defs/{name}"
    return shared


def _tidy(schema: Any, names: bool = False) -> Any:
    """Without generated titles, and without the null that stands for `not given`."""
    if isinstance(schema, Sequence) and not isinstance(schema, str):
        return [_tidy(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _tidy(value, names=key in ("properties", "$defs") and not names)
        for key, value in schema.items()
        if names or not (key == "title" or (key == "default" and value is None))
    }
