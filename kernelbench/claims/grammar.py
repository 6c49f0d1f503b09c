"""YAML → claims. Strict: every error of a file at once, as `file:line:col: message`."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kernelbench.claims.peaks import DTYPES
from kernelbench.claims.words import Claim, ClaimsFile, Compare, Document, Doubt, Work
from kernelbench.spec import UsageError, suggest
from kernelbench.suite.grammar import TAKES, shown
from kernelbench.suite.reader import Node, Problem, Where, read, read_file, refusal

Loc = tuple[str | int, ...]
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_PARTS = {"document": Document, "work": Work, "compare": Compare, "doubts": Doubt}
_TAKES = {
    **TAKES,
    "tuple_type": "takes a list",
    "dataclass_type": "takes a mapping",
    "missing_keyword_only": "",
}


def load(paths: Sequence[Path]) -> list[ClaimsFile]:
    """The claims files at and below these, folders in the order of names.

    Raises UsageError with all errors of the first file that has any, for a path without a claims
    file, and for a document that two files describe.
    """
    files = [_file(path) for path in _expanded(paths)]
    twice = [name for name, n in Counter(f.document.id for f in files).items() if n > 1]
    if twice:
        raise UsageError(f"document {twice[0]!r} is described by two files; give one of them")
    return files


def _expanded(paths: Sequence[Path]) -> list[Path]:
    files: dict[Path, Path] = {}
    for path in paths:
        inside = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        if not inside:
            raise UsageError(f"{path}: no *.yaml in this folder; docs/claims.md has the format")
        files |= {file.resolve(): file for file in inside}
    return list(files.values())


def _file(path: Path) -> ClaimsFile:
    return parse(read_file(path), str(path))


def parse(text: str, source: str) -> ClaimsFile:
    """One file. Raises UsageError with all of its errors."""
    root = read(text, source)
    if not isinstance(root.value, dict):
        expected = "a claims file is a mapping with a document and its claims"
        raise refusal([Problem(Where(source, 1, 1), f"{expected}, got {shown(root.value)}")])
    try:
        claims_file = TypeAdapter(ClaimsFile).validate_json(json.dumps(root.plain()))
    except ValidationError as error:
        raise refusal([_problem_of(e, root) for e in error.errors(include_url=False)]) from None
    if problems := [
        Problem(root.spot(loc, key=on_key), message)
        for loc, message, on_key in _inconsistencies(claims_file)
    ]:
        raise refusal(problems)
    return claims_file


def _problem_of(error: Any, root: Node) -> Problem:
    kind, loc, value = error["type"], error["loc"], error["input"]
    on_key = kind in ("unexpected_keyword_argument", "missing_keyword_only", "missing")
    return Problem(root.spot(_existing(loc, root), key=on_key), _message(kind, loc, value, error))


def _existing(loc: Loc, root: Node) -> Loc:
    """A location without the parts that pydantic adds for members of a union."""
    node, parts = root, list[str | int]()
    for part in loc:
        inside: Any = node.value
        if isinstance(inside, list):
            there = isinstance(part, int) and part < len(inside)
        else:
            there = isinstance(inside, dict) and part in inside
        if there:
            node = inside[part]
            parts.append(part)
    return tuple(parts)


def _message(kind: str, loc: Loc, value: Any, error: Mapping[str, Any]) -> str:
    key = next((part for part in reversed(loc) if isinstance(part, str)), "file")
    if kind == "unexpected_keyword_argument":
        return f"no key {key!r}{_of(loc)}{suggest(key, _keys(loc))}"
    if kind in ("missing_keyword_only", "missing"):
        return f"missing key {key!r}{_of(loc)}"
    if kind == "enum":
        values = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        word = repr(value) if isinstance(value, str) else shown(value)
        return f"{key!r}: no value {word}{suggest(str(value), values)}"
    if loc[-1] in ("int", "float", "bool", "str") and "axes" in loc:  # members of its union
        return f"{loc[-2]!r} takes a number, a word, true or false, got {shown(value)}"
    if kind == "value_error":
        return f"{key!r} {error['ctx']['error']}, got {shown(value)}"
    return f"{key!r} {_TAKES.get(kind, error['msg'])}, got {shown(value)}"


def _part(loc: Loc) -> str:
    """The mapping that the last key of a location stands in."""
    above = [part for part in loc[:-1] if isinstance(part, str)]
    return above[-1] if above else ""


def _of(loc: Loc) -> str:
    part = _part(loc)
    return f" of {'a claim' if part == 'claims' else part}" if part else ""


def _keys(loc: Loc) -> list[str]:
    part = _part(loc)
    kind: Any = _PARTS.get(part, Claim if part == "claims" else ClaimsFile)
    return [f.name for f in fields(kind)]


def _inconsistencies(claims_file: ClaimsFile) -> Iterator[tuple[Loc, str, bool]]:
    """(place, message, whether the key is meant) of errors that no single value shows."""
    if not _NAME.fullmatch(claims_file.document.id):
        yield ("document", "id"), "'id' takes a word of a-z 0-9 _ . -", False
    if claims_file.document.gpu_count is not None and claims_file.document.gpu_count < 1:
        yield ("document", "gpu_count"), "'gpu_count' is at least 1", False
    if not claims_file.claims:
        yield ("claims",), "'claims' is empty; a document without figures needs no file", True
    first: dict[str, int] = {}
    for at, claim in enumerate(claims_file.claims):
        here: Loc = ("claims", at)
        if not _NAME.fullmatch(claim.id):
            yield (*here, "id"), "'id' takes a word of a-z 0-9 _ . -", False
        if claim.id in first:
            yield (*here, "id"), f"a second claim {claim.id!r}", False
        first.setdefault(claim.id, at)
    for at, claim in enumerate(claims_file.claims):
        yield from _claim(claim, ("claims", at), first)


def _amounts(claim: Claim, here: Loc) -> Iterator[tuple[Loc, str, bool]]:
    if claim.sort.positive and claim.value[0] <= 0:
        yield (*here, "value"), f"{claim.metric.value!r} is above 0", False
    if work := claim.work:
        for name in ("flops", "bytes", "tokens"):
            if getattr(work, name) < 0:
                yield (*here, "work", name), f"{name!r} is at least 0", False
        if work.dtype and work.dtype not in DTYPES:
            message = f"no dtype {work.dtype!r}{suggest(work.dtype, DTYPES)}"
            yield (*here, "work", "dtype"), message, False


def _claim(claim: Claim, here: Loc, names: Mapping[str, int]) -> Iterator[tuple[Loc, str, bool]]:
    yield from _amounts(claim, here)
    if claim.line < 1:
        yield (*here, "line"), "'line' counts from 1", False
    if claim.decimals is not None and not 0 <= claim.decimals <= 12:
        yield (*here, "decimals"), "'decimals' takes 0 to 12", False
    if claim.gpu_count is not None and claim.gpu_count < 1:
        yield (*here, "gpu_count"), "'gpu_count' is at least 1", False
    for name in claim.ratio_of:
        if name not in names:
            yield (*here, "ratio_of"), f"no claim {name!r}{suggest(name, names)}", False
    if claim.ratio_of and len(claim.ratio_of) != 2:
        yield (*here, "ratio_of"), "'ratio_of' takes two claims: above, below", False
    compare, sort = claim.compare, claim.sort
    if compare is None:
        return
    spot = (*here, "compare")
    if claim.unmeasured:
        yield spot, "'compare' beside 'unmeasured': give one", True
    if not sort.measurable:
        yield spot, f"no record holds {claim.metric.value!r}; leave 'compare' out", True
    elif sort.pair and not compare.against:
        yield spot, f"missing key 'against' of compare: {claim.metric.value!r} is of two", True
    elif not sort.pair and compare.against:
        yield (*spot, "against"), f"{claim.metric.value!r} is of one provider; leave it out", True
    if claim.metric.value == "tokens_per_s" and not (claim.work and claim.work.tokens):
        yield spot, "tokens per second need work.tokens, those of one call", True
