"""Every derived number, one function each, from records alone; and the table of them all.

A number that does not apply is None here and empty in tables and files, never 0. Speeds (rates,
shares of a ceiling, speedups) exist only for a record that is `timed`: correct, and measured
behind a gate that held.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelbench import times
from kernelbench.limits import floors_ns
from kernelbench.spec import KernelbenchError, OutputError, Role, RunRecord, Status
from kernelbench.statistics import Interval, noise_floor, ratio_interval
from kernelbench.times import again_ns, blocks_ns

if TYPE_CHECKING:
    from pandas import DataFrame, Series

MIB = 2**20

# fmt: off
_IDENTITY = [
    "schema", "run_id", "utc", "family", "provider", "role", "accuracy", "mode", "dtype",
    "case", "label",
]
_RESULT = [
    "status", "reason", "flags", "timer", "samples", "median_us", "lo_us", "hi_us", "kernel_us",
    "p20_us", "p80_us", "iqr_pct", "host_us", "graph_us", "compile_s", "config", "speedup",
    "speedup_lo", "speedup_hi", "speedup_best", "speedup_best_lo", "speedup_best_hi",
    "best_other", "noise_pct", "flops", "bytes_min", "model_read_mib", "model_write_mib",
    "hbm_saved_pct", "gbps", "tflops", "sol_pct", "bound", "peak_mem_mib", "error_rel",
    "error_max", "error_budget", "baseline_error", "cosine", "promised", "unproven", "sm_mhz",
    "power_w", "temp_c", "gpu",
]
_WHOLE = {"schema", "samples", "flops", "bytes_min"}
_TEXT = {"status", "reason", "flags", "timer", "config", "best_other", "bound", "gpu"}
_TEXT |= {"promised", "unproven"}
# fmt: on


def median_ns(record: RunRecord) -> float | None:
    """The median of the corrected samples, in ns."""
    return times.median_ns(record.timing) if record.timing else None


def timed(record: RunRecord) -> bool:
    """Whether speeds may be derived: status ok, timer gated, and a time above the overhead."""
    gated = record.timing is not None and record.timing.timer == "gated"
    return record.status is Status.ok and gated and bool(median_ns(record))


def _time_ns(record: RunRecord) -> float | None:
    return median_ns(record) if timed(record) else None


def gbps(record: RunRecord) -> float | None:
    """Compulsory bytes / median time, in decimal GB/s (= bytes per ns)."""
    time, needed = _time_ns(record), bytes_min(record)
    return needed / time if time and needed else None


def tflops(record: RunRecord) -> float | None:
    """Flops of the algorithm (FMA = 2) / median time, in TFLOP/s."""
    time = _time_ns(record)
    return record.flops / time / 1e3 if time and record.flops else None


def bytes_min(record: RunRecord) -> int | None:
    """Compulsory bytes: each input read once, each output written once."""
    if record.read_bytes is None or record.write_bytes is None:
        return None
    return record.read_bytes + record.write_bytes


def share_of_ceiling(record: RunRecord) -> tuple[float, str] | None:
    """(percent, bound): the larger floor time / median time · 100, and which floor it is.

    A floor is the time that a resource needs at this machine's own measured limit: `memory` for
    the compulsory bytes, `compute` for the flops.
    """
    time = _time_ns(record)
    if not time or not record.ceilings:
        return None
    floors = floors_ns(
        record.read_bytes or 0, record.write_bytes or 0, record.flops or 0, record.ceilings
    )
    bound = max(floors, key=lambda name: floors[name], default=None)
    return (floors[bound] / time * 100, bound) if bound and floors[bound] else None


def modelled_bytes(record: RunRecord) -> tuple[int, int] | None:
    """(read, written): HBM bytes that the provider's own model says it moves."""
    if record.traffic is None:
        return None
    return sum(t.read for t in record.traffic), sum(t.write for t in record.traffic)


def hbm_saved_pct(record: RunRecord, baseline: RunRecord) -> float | None:
    """(baseline − this) / baseline · 100 of the modelled bytes; below 0 where more are moved."""
    ours, theirs = modelled_bytes(record), modelled_bytes(baseline)
    if ours is None or theirs is None or not sum(theirs):
        return None
    return (sum(theirs) - sum(ours)) / sum(theirs) * 100


def speedup(record: RunRecord, against: RunRecord) -> Interval | None:
    """median(against) / median(record) with its 95 % interval; above 1 this record is faster.

    Only inside one group, that is, one interleaved measurement.
    """
    mine, theirs = record.timing, against.timing
    if not (timed(record) and timed(against) and mine and theirs):
        return None
    if not record.group or record.group != against.group:
        return None
    try:
        return ratio_interval(blocks_ns(theirs), blocks_ns(mine), quantum=mine.quantum_ns)
    except ValueError:  # no common round, or nothing above the overhead in those
        return None


def noise_pct(baseline: RunRecord) -> float | None:
    """The difference in % that the baseline's job cannot tell from none, by its second run."""
    timing = baseline.timing
    if not timed(baseline) or timing is None:
        return None
    try:
        return noise_floor(blocks_ns(timing), again_ns(timing)) * 100
    except ValueError:
        return None


def best_other(group: Iterable[RunRecord], accuracy: str) -> RunRecord | None:
    """The yardstick of `speedup_best`: the fastest record of the group that is timed, of this
    accuracy, not ours, and not prepacked."""
    others = [
        r
        for r in group
        if r.accuracy == accuracy and not r.role.ours and not r.prepacked and timed(r)
    ]
    return min(others, key=lambda r: median_ns(r) or math.inf, default=None)


def worst_element(record: RunRecord) -> float | None:
    """The largest element error over rms(oracle), over the outputs; infinite where one is NaN."""
    return max((_finite(e.worst) for e in record.errors), default=None)


def tightest(record: RunRecord) -> OutputError | None:
    """The output that is nearest to its relative budget, or farthest above it."""

    def used(error: OutputError) -> float:
        return _finite(error.rel) / error.rel_budget if error.rel_budget else math.inf

    return max(record.errors, key=used, default=None)


def _finite(value: float) -> float:
    return math.inf if math.isnan(value) else value


def csv_columns(records: Sequence[RunRecord]) -> list[str]:
    """The columns of `frame(records)` in their order."""
    return [*_IDENTITY, *axis_columns([r.axes for r in records]), *_RESULT]


def axis_columns(cases: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Column → axis. An axis that is named like another column is called `axis_<name>`."""
    axes = dict.fromkeys(chain(*cases))
    taken = {*_IDENTITY, *_RESULT}
    return {f"axis_{a}" if a in taken else a: a for a in axes if a not in ("dtype", "mode")}


def frame(records: Sequence[RunRecord], against: str = "") -> "DataFrame":
    """One row a record in their order, every column of results/README.md in its order.

    against: the provider that `speedup` and `hbm_saved_pct` hold up, instead of the baseline.
    """
    return frame_of(rows_of(records, against))


def frame_of(rows: Sequence[Mapping[str, Any]]) -> "DataFrame":
    """The frame of `rows_of`, of one run or of several.

    Whole numbers are `Int64`, real ones `float64` with NaN where they do not apply, text is ""
    there; axes take the narrowest of these that holds their values.
    """
    import pandas as pd

    axes = axis_columns(row["axes"] for row in rows)
    columns: dict[str, Series[Any]] = {}
    for name in (*_IDENTITY, *axes, *_RESULT):
        values: list[Any] = [row.get(name) for row in rows]
        if name in axes:
            values = [row["axes"].get(axes[name]) for row in rows]
            columns[name] = pd.Series(values, dtype=_axis_dtype(values))
        elif name in _TEXT or name in _IDENTITY[1:]:
            text = ["" if value is None else str(value) for value in values]
            columns[name] = pd.Series(text, dtype="object")
        else:
            columns[name] = pd.Series(values, dtype="Int64" if name in _WHOLE else "float64")
    return pd.DataFrame(columns)


def _axis_dtype(values: list[Any]) -> Any:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "boolean"
    if kinds == {int}:
        return "Int64"
    return "float64" if kinds and kinds <= {int, float} else "object"


def _is_yardstick(record: RunRecord, against: str) -> bool:
    return record.provider == against if against else record.role is Role.baseline


def rows_of(records: Sequence[RunRecord], against: str = "") -> list[dict[str, Any]]:
    """What `frame_of` makes a frame from: a record a row in plain types, its `axes` apart. The
    records of one group must come together; those of several runs may come run by run."""
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    models: dict[tuple[str, ...], RunRecord] = {}
    for record in records:
        case = (record.run_id, record.family, record.case)
        groups.setdefault((*case, record.group), []).append(record)
        if _is_yardstick(record, against) and record.traffic is not None:
            models[case] = record
    rows = {
        id(record): {**_facts(record, models.get(key[:3])), **found}
        for key, group in groups.items()
        for record, found in zip(group, _comparisons(group, against), strict=True)
    }
    return [rows[id(record)] for record in records]


def _comparisons(group: list[RunRecord], against: str) -> Iterator[dict[str, Any]]:
    """What holds between the records of one group. Its noise is always the baseline's."""
    ran_twice = next((r for r in group if r.role is Role.baseline), None)
    noise = noise_pct(ran_twice) if ran_twice and ran_twice.group else None
    baseline = next((r for r in group if _is_yardstick(r, against)), None)
    bests = {accuracy: best_other(group, accuracy) for accuracy in {r.accuracy for r in group}}
    for record in group:
        best = bests[record.accuracy]
        found = _against(record, baseline, "speedup")
        if best is baseline:
            again = {f"speedup_best{k.removeprefix('speedup')}": v for k, v in found.items()}
        else:
            again = _against(record, best, "speedup_best")
        named = best.provider if best and again else None
        noted = noise if timed(record) else None
        yield {**found, **again, "best_other": named, "noise_pct": noted}


def _against(record: RunRecord, other: RunRecord | None, column: str) -> dict[str, float]:
    if other is record:
        return {column: 1.0} if timed(record) and record.group else {}
    ratio = speedup(record, other) if other else None
    if ratio is None:
        return {}
    return {column: ratio.mid, f"{column}_lo": ratio.lo, f"{column}_hi": ratio.hi}


def _facts(record: RunRecord, baseline: RunRecord | None) -> dict[str, Any]:
    """What follows from one record, and the baseline's byte model beside it."""
    share, model, near = share_of_ceiling(record), modelled_bytes(record), tightest(record)
    more = ["prepacked"] if record.prepacked else []
    if record.timing and times.differs_when_traced(record.timing):
        more.append("differs-when-traced")
    telemetry = record.telemetry or {}
    return {
        **{name: getattr(record, name) for name in (*_IDENTITY, "status", "reason", "gpu")},
        "axes": dict(record.axes),
        "flags": ";".join((*record.flags, *more)),
        **(times.columns(record.timing) if record.timing else {}),
        "compile_s": record.compile_s,
        "config": " ".join(f"{k}={v}" for k, v in (record.config or {}).items()),
        "flops": record.flops,
        "bytes_min": bytes_min(record),
        "model_read_mib": model[0] / MIB if model else None,
        "model_write_mib": model[1] / MIB if model else None,
        "hbm_saved_pct": hbm_saved_pct(record, baseline) if baseline else None,
        "gbps": gbps(record),
        "tflops": tflops(record),
        "sol_pct": share[0] if share else None,
        "bound": share[1] if share else None,
        "peak_mem_mib": None if record.peak_bytes is None else record.peak_bytes / MIB,
        "error_rel": _finite(near.rel) if near else None,
        "error_max": worst_element(record),
        "error_budget": near.rel_budget if near else None,
        "baseline_error": near.baseline_rel if near else None,
        "cosine": near.cosine if near else None,
        "promised": record.promise,
        "unproven": record.unproven,
        **{name: telemetry.get(name) for name in ("sm_mhz", "power_w", "temp_c")},
    }


def to_csv(records: Sequence[RunRecord], path: Path) -> None:
    """Write the canonical CSV in UTF-8.

    The file is replaced in one step, so a reader or a crash never meets half of it.
    Raises KernelbenchError when it cannot be written.
    """
    _replace(path, csv_text(records))


def append_csv(records: Sequence[RunRecord], path: Path) -> None:
    """Add the rows of one job: all its records, since speedups are formed among them.

    Costs what the job costs, not what the file holds; a job that brings a new axis has the file
    rewritten with that column. This file is for reading along: rows that were measured again
    stay, and a kill may tear the last one, until the next `to_csv`.
    Raises KernelbenchError when it cannot be written.
    """
    if not path.exists():
        return to_csv(records, path)
    ours = csv_columns(records)
    rows = [dict(zip(ours, cells, strict=True)) for cells in _cells(frame(records))]
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, restval="")
        header = list(reader.fieldnames or [])
        if set(ours) <= set(header):
            return _write(path, "ab", _text([row.get(n, "") for n in header] for row in rows))
        rows = [*reader, *rows]
    axes = [n for n in (*header, *ours) if n not in (*_IDENTITY, *_RESULT)]
    columns = [*_IDENTITY, *dict.fromkeys(axes), *_RESULT]
    return _replace(path, _text([columns, *([row.get(n, "") for n in columns] for row in rows)]))


def csv_text(records: Sequence[RunRecord], against: str = "") -> str:
    """The canonical CSV: RFC 4180, floats to 6 significant digits, NaN empty."""
    return csv_of(frame(records, against))


def csv_of(table: "DataFrame") -> str:
    """A `frame` as `csv_text` gives it."""
    return _text([list(table.columns), *_cells(table)])


def rows_json(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """The rows of `frame`, as `json_of` gives them."""
    return json_of(frame(records))


def dicts(table: "DataFrame") -> list[dict[str, Any]]:
    """The rows of a `frame`, by the names of its columns."""
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]


def json_of(table: "DataFrame") -> list[dict[str, Any]]:
    """The rows of a `frame` for strict JSON: floats in full, null where a number does not apply,
    and the text "inf" for what JSON has no number for."""
    rows = _plain(table).to_dict("records")
    ends = (math.inf, -math.inf)
    return [{str(k): str(v) if v in ends else v for k, v in row.items()} for row in rows]


def _plain(table: "DataFrame") -> "DataFrame":
    """In types of Python, with None where a number does not apply."""
    return table.astype(object).where(table.notna(), None)


def _cells(table: "DataFrame") -> list[list[str]]:
    rows = _plain(table).itertuples(index=False, name=None)
    return [[_cell(value) for value in row] for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _text(rows: Iterable[Iterable[str]]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    _write(part, "wb", text)
    part.replace(path)


def _write(path: Path, how: str, text: str) -> None:
    try:
        with path.open(how) as file:
            file.write(text.encode())
    except OSError as error:
        raise KernelbenchError(f"{path}: cannot be written ({error.strerror})") from None
