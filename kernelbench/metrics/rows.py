"""The table of all derived numbers: one row a record, as plain rows and as a frame."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from statistics import median
from typing import TYPE_CHECKING, Any

from kernelbench.metrics import record as of
from kernelbench.numbers import times
from kernelbench.spec import Role, RunRecord

if TYPE_CHECKING:
    from pandas import DataFrame

RANKS = "world"  # the axis that says how many GPUs do a job together
# fmt: off
IDENTITY = [
    "schema", "run_id", "utc", "family", "provider", "role", "accuracy", "mode", "dtype",
    "case", "label",
]
RESULT = [
    "status", "reason", "flags", "timer", "samples", "processes", "median_us", "lo_us", "hi_us",
    "kernel_us", "p20_us", "p80_us", "iqr_pct", "host_us", "graph_us", "graph_nodes", "compile_s",
    "config", "speedup", "speedup_lo", "speedup_hi", "speedup_each",
    "speedup_best", "speedup_best_lo", "speedup_best_hi", "speedup_best_each", "best_other",
    "noise_pct", "flops", "bytes_min", "model_read_mib", "model_write_mib",
    "hbm_saved_pct", "gbps", "tflops", "sol_pct", "bound", "peak_mem_mib", "error_rel",
    "error_max", "error_budget", "error_max_budget", "baseline_error", "cosine", "promised",
    "unproven", "one_gpu_pct", "one_gpu_lo_pct", "one_gpu_hi_pct", "exposed_us", "exposed_pct",
    "overlap_slowdown", "received_mib", "sm_mhz", "power_w", "temp_c", "gpu", "gpu_uuid", "method",
]
_WHOLE = {"schema", "samples", "processes", "flops", "bytes_min", "method"}
_TEXT = {"status", "reason", "flags", "timer", "config", "best_other", "bound", "gpu"}
_TEXT |= {"promised", "unproven", "gpu_uuid", "speedup_each", "speedup_best_each"}
# fmt: on


def csv_columns(records: Sequence[RunRecord]) -> list[str]:
    """The columns of `frame(records)` in their order."""
    return [*IDENTITY, *axis_columns([r.axes for r in records]), *RESULT]


def axis_columns(cases: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Column → axis. An axis that is named like another column is called `axis_<name>`."""
    axes = dict.fromkeys(chain(*cases))
    taken = {*IDENTITY, *RESULT}
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

    return pd.DataFrame(
        {name: pd.Series(values, dtype=dtype) for name, values, dtype in _columns(rows)}
    )


def plain_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `frame_of` in types of Python, with None where a number does not apply. For a
    few rows: to make a frame takes longer than all else that is done with them."""
    columns = [
        (name, [float(v) if dtype == "float64" and v is not None else v for v in values])
        for name, values, dtype in _columns(rows)
    ]
    return [
        {name: None if (v := values[n]) != v else v for name, values in columns}
        for n in range(len(rows))
    ]


def _columns(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Any], Any]]:
    """(name, values, dtype) of each column."""
    axes = axis_columns(row["axes"] for row in rows)
    for name in (*IDENTITY, *axes, *RESULT):
        values: list[Any] = [row.get(name) for row in rows]
        if name in axes:
            values = [row["axes"].get(axes[name]) for row in rows]
            yield name, values, _axis_dtype(values)
        elif name in _TEXT or name in IDENTITY[1:]:
            yield name, ["" if value is None else str(value) for value in values], "object"
        else:
            yield name, values, "Int64" if name in _WHOLE else "float64"


def filled(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `rows_of` with every column but the axes', as the rows of `frame_of` have them and
    without pandas: of what does not apply, text is "", a real number NaN, a whole one None."""
    nothing: dict[str, Any] = dict.fromkeys((*IDENTITY, *RESULT), math.nan)
    nothing |= dict.fromkeys((*IDENTITY[1:], *_TEXT), "") | dict.fromkeys(_WHOLE)
    return [
        nothing | {name: value for name, value in row.items() if value is not None} for row in rows
    ]


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
    rows = share_of(records, against)
    return [rows[number] for number in range(len(records))]


def share_of(
    records: Sequence[RunRecord], against: str = "", part: int = 0, parts: int = 1
) -> dict[int, dict[str, Any]]:
    """The rows of `rows_of` by their number, of every group whose own number is `part` modulo
    `parts`."""
    groups: dict[tuple[str, ...], list[int]] = {}
    models: dict[tuple[str, ...], RunRecord] = {}
    for number, record in enumerate(records):
        case = (record.run_id, record.family, record.case)
        groups.setdefault((*case, record.group), []).append(number)
        if _is_yardstick(record, against) and record.traffic is not None:
            models[case] = record
    ones = {_work(record): record for record in records if record.axes.get(RANKS) == 1}
    rows: dict[int, dict[str, Any]] = {}
    for key, numbers in islice(groups.items(), part, None, parts):
        group = [records[number] for number in numbers]
        for number, record, comparison in zip(
            numbers, group, _comparisons(group, against), strict=True
        ):
            rows[number] = {
                **_facts(record, models.get(key[:3])),
                **_of_ranks(record, ones.get(_work(record))),
                **comparison,
            }
    return rows


def _comparisons(group: list[RunRecord], against: str) -> Iterator[dict[str, Any]]:
    """What holds between the records of one group. Its noise is always the baseline's."""
    ran_twice = next((r for r in group if r.role is Role.baseline), None)
    noise = of.noise_pct(ran_twice) if ran_twice and ran_twice.group else None
    baseline = next((r for r in group if _is_yardstick(r, against)), None)
    bests = {accuracy: of.best_other(group, accuracy) for accuracy in {r.accuracy for r in group}}
    for record in group:
        best = bests[record.accuracy]
        speedups = _against(record, baseline, "speedup")
        if best is baseline:
            again = {f"speedup_best{k.removeprefix('speedup')}": v for k, v in speedups.items()}
        else:
            again = _against(record, best, "speedup_best")
        named = best.provider if best and again else None
        noted = noise if of.timed(record) else None
        yield {**speedups, **again, "best_other": named, "noise_pct": noted}


def _against(record: RunRecord, other: RunRecord | None, column: str) -> dict[str, float | str]:
    if other is record:
        return {column: 1.0} if of.timed(record) and record.group else {}
    speedup = of.speedup(record, other) if other else None
    if speedup is None:
        return {}
    over, process = speedup.over, speedup.each
    slots = (f"{process[n]:.6g}" if n in process else "" for n in range(max(process) + 1))
    return {
        column: over.mid,
        f"{column}_lo": over.lo,
        f"{column}_hi": over.hi,
        f"{column}_each": ";".join(slots) if len(process) > 1 else "",
    }


def _facts(record: RunRecord, baseline: RunRecord | None) -> dict[str, Any]:
    """What follows from one record, and the baseline's byte model beside it."""
    share, model = of.share_of_ceiling(record), of.modelled_bytes(record)
    near, worst = of.tightest(record), of.worst_element(record)
    more = ["prepacked"] if record.prepacked else []
    if record.timing and times.differs_when_traced(record.timing):
        more.append("differs-when-traced")
    same = (*IDENTITY, "status", "reason", "gpu", "gpu_uuid", "method")
    return {
        **{name: getattr(record, name) for name in same},
        "axes": dict(record.axes),
        "flags": ";".join((*record.flags, *more)),
        **times.columns(of.timings(record), [t for r in record.processes if (t := r.timing)]),
        "compile_s": record.compile_s,
        "config": " ".join(f"{k}={v}" for k, v in (record.config or {}).items()),
        "flops": record.flops,
        "bytes_min": of.bytes_min(record),
        "model_read_mib": model[0] / of.MIB if model else None,
        "model_write_mib": model[1] / of.MIB if model else None,
        "hbm_saved_pct": of.hbm_saved_pct(record, baseline) if baseline else None,
        "gbps": of.gbps(record),
        "tflops": of.tflops(record),
        "sol_pct": share[0] if share else None,
        "bound": share[1] if share else None,
        "peak_mem_mib": None if record.peak_bytes is None else record.peak_bytes / of.MIB,
        "error_rel": of.finite(near.rel) if near else None,
        "error_max": of.finite(worst.worst) if worst else None,
        "error_budget": near.rel_budget if near else None,
        "error_max_budget": worst.worst_budget if worst else None,
        "baseline_error": near.baseline_rel if near else None,
        "cosine": near.cosine if near else None,
        "promised": record.promise,
        "unproven": record.unproven,
        **{name: _told(record, name) for name in ("sm_mhz", "power_w", "temp_c")},
    }


def _work(record: RunRecord) -> tuple[Any, ...]:
    """What is done, by however many ranks."""
    rest = tuple((name, value) for name, value in record.axes.items() if name != RANKS)
    return (record.run_id, record.family, record.provider, record.gpu, record.mode, *rest)


def _of_ranks(record: RunRecord, one: RunRecord | None) -> dict[str, Any]:
    """What a job over several GPUs comes to. one: the same provider's, of the same work on one."""
    ranks, messages = record.axes.get(RANKS), record.messages
    if not isinstance(ranks, int) or ranks < 2:
        return {}
    share = of.share_of_one(record, one, ranks) if one else None
    exposed, time = of.exposed_ns(record), record.timing and times.median_ns(record.timing)
    return {
        "one_gpu_pct": share.mid if share else None,
        "one_gpu_lo_pct": share.lo if share else None,
        "one_gpu_hi_pct": share.hi if share else None,
        "exposed_us": exposed / 1e3 if exposed is not None else None,
        "exposed_pct": exposed / time * 100 if exposed is not None and time else None,
        "overlap_slowdown": of.overlap_slowdown(record),
        "received_mib": messages.received_bytes / of.MIB if messages else None,
    }


def _told(record: RunRecord, name: str) -> float | None:
    """The median of what telemetry told of its processes."""
    readings = [(process.telemetry or {}).get(name) for process in record.processes]
    values = [value for value in readings if value is not None]
    return median(values) if values else None
