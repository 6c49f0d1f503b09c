"""The details of each case on the page: commands that reproduce it, and its full records."""

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from kernelbench.report.figures import Row, parts, text
from kernelbench.report.tables import figures
from kernelbench.spec import RunRecord, Timing

_NOTHING: tuple[Any, ...] = (None, "", [], {})


@dataclass(frozen=True)
class RecordView:
    anchor: str
    summary: str
    facts: str


@dataclass(frozen=True)
class CaseView:
    """A case in one run: its commands and its records.

    shared: the facts that all its records have in common.
    """

    anchor: str
    name: str
    about: str
    commands: str
    shared: str
    records: Sequence[RecordView]


def cases(rows: Sequence[Row], manifests: Mapping[str, Mapping[str, Any]]) -> Iterator[CaseView]:
    """Every case of one family, run by run."""
    several = len({row["run_id"] for row in rows}) > 1
    for (run, family, case), part in parts(rows, "run_id", "family", "case").items():
        about = " · ".join(filter(None, (text(part[0]["label"]), text(run) if several else "")))
        shared, own_facts = facts([row["record"] for row in part])
        yield CaseView(
            case_anchor(part[0]),
            text(case),
            about,
            commands(family, case, manifests.get(run, {})),
            shared,
            [
                RecordView(record_anchor(row), _summary(row), own)
                for row, own in zip(part, own_facts, strict=True)
            ],
        )


def commands(family: str, case: str, manifest: Mapping[str, Any]) -> str:
    """The lines that measure, repeat and profile this case, as a shell takes them."""
    request = manifest.get("asked") or {}
    argv = [str(word) for word in manifest.get("argv") or ()]
    files = [word for word in argv if word.endswith((".yaml", ".yml")) and word[0] != "-"]
    suite = files[0] if files else str(manifest.get("suite") or "SUITE")
    plugins = [w for name in request.get("plugins") or () for w in ("--plugin", str(name))]
    seed = ["--seed", str(request["seed"])] if request.get("seed") else []
    words = [suite, "--family", family, "--case", case, *plugins, *seed]
    overrides = [w for value in request.get("overrides") or () for w in ("--set", str(value))]
    lines = (
        ["kernelbench", "run", *words, *overrides],
        ["kernelbench", "repro", f"{family}/{case}", *plugins],
        ["kernelbench", "profile", "--ncu", *words],
    )
    return "\n".join(text(shlex.join(line)) for line in lines)


def _summary(row: Row) -> str:
    us = row["median_us"]
    time = "" if row["smoke"] or math.isnan(us) else f"{figures(us, 4)} µs"
    return " · ".join(filter(None, (text(row["provider"]), str(row["status"]), time)))


def facts(records: Sequence[RunRecord]) -> tuple[str, list[str]]:
    """The records of a case as JSON, a field a line: the shared fields, and each record's own.

    Without empty fields; real numbers to six figures; samples only by their count; traffic as
    [bytes read, bytes written] of each tensor.
    """
    fields_of = [_fields(record) for record in records]
    shared = {
        name: value
        for name, value in fields_of[0].items()
        if len(fields_of) > 1 and all(other.get(name) == value for other in fields_of[1:])
    }
    return _lines(shared), [
        _lines({name: value for name, value in fields.items() if name not in shared})
        for fields in fields_of
    ]


def _fields(record: RunRecord) -> dict[str, Any]:
    timing = record.timing
    samples = _samples(timing) if timing else {}
    nothing: dict[str, Any] = dict.fromkeys(samples, ())
    hollow = replace(timing, **nothing) if timing else None
    fields = json.loads(replace(record, timing=hollow, further=()).to_json())
    fields["traffic"] = {item.tensor: [item.read, item.write] for item in record.traffic or ()}
    if timing:
        fields["timing"] |= samples
    return {name: _short(value) for name, value in fields.items() if value not in _NOTHING}


def _samples(timing: Timing) -> dict[str, str]:
    """The number of samples in each of its lists that is not empty."""
    lists = {name: value for name, value in vars(timing).items() if isinstance(value, tuple)}
    return {name: _sample_count(value) for name, value in lists.items() if value}


def _sample_count(values: Sequence[Any]) -> str:
    return f"{sum(len(value) if isinstance(value, tuple) else 1 for value in values)} samples"


def _short(value: Any) -> Any:
    """Drop empty values, and digits beyond six."""
    if isinstance(value, dict):
        return {name: _short(item) for name, item in value.items() if item not in _NOTHING}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _lines(fields: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}: {json.dumps(v, ensure_ascii=False)}" for name, v in fields.items())


def anchor(kind: str, *words: str) -> str:
    """An id on this page: a hash, so that it holds no user text."""
    return f"{kind}-{sha256('|'.join(map(repr, words)).encode()).hexdigest()[:10]}"


def case_anchor(row: Row) -> str:
    return anchor("case", *(str(row[name]) for name in ("run_id", "family", "case")))


def record_anchor(row: Row) -> str:
    return anchor("record", *(str(row[n]) for n in ("run_id", "family", "case", "provider")))
