"""The top of the page: what was measured where, what is wrong, and the mean speedups of ours."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kernelbench.metrics import audit
from kernelbench.report.cases import record_anchor
from kernelbench.report.figures import Row, parts, text
from kernelbench.report.grid import Cell, Grid, Head, Line
from kernelbench.report.means import Mean, mean, over_what
from kernelbench.report.tables import figures
from kernelbench.spec import Measured, Status

NAMED = 12  # problems of one kind that are listed one by one
FEW = 3  # suites or GPUs that a title names


@dataclass(frozen=True)
class Problem:
    """href: the anchor of its record, or nothing. doubt: it only makes numbers doubtful; else
    something is wrong."""

    text: str
    href: str = ""
    doubt: bool = False


def title(
    rows: Sequence[Row], measured: Sequence[Measured], manifests: Mapping[str, Mapping[str, Any]]
) -> str:
    """`h200 on NVIDIA H200`: suites and GPUs by name, or their number where there are many."""
    suites, gpus = _subjects(rows, measured, manifests)
    what = _name_or_count(suites, "suites") or "kernel benchmarks"
    where = f" on {_name_or_count(gpus, 'GPUs')}" if gpus else ""
    runs = f", {len(manifests)} runs" if len(manifests) > 1 else ""
    return f"{what}{where}{runs}"


def _subjects(
    rows: Sequence[Row], measured: Sequence[Measured], manifests: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], list[str]]:
    """The distinct suites and GPUs."""
    suites = dict.fromkeys(text(m["suite"]) for m in manifests.values() if m.get("suite"))
    gpus = dict.fromkeys(text(g) for g in (*(r["gpu"] for r in rows), *(m.gpu for m in measured)))
    return [*suites], [*gpus]


def _name_or_count(names: Sequence[str], what: str) -> str:
    return ", ".join(names) if len(names) <= FEW else f"{len(names)} {what}"


def machine(
    rows: Sequence[Row], measured: Sequence[Measured], manifests: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """(fact, value): suites and GPUs that the title does not name, versions, dates, the number of
    runs, and statuses of records."""
    known = list(manifests.values())
    subjects = zip(("suite", "GPU"), _subjects(rows, measured, manifests), strict=True)
    versions = [(manifest.get("machine") or {}).get("versions") or {} for manifest in known]
    values_of: dict[str, Iterable[Any]] = {
        **{name: names for name, names in subjects if len(names) > FEW},
        **{name: [v.get(name) for v in versions] for name in ("torch", "triton", "cuda", "driver")},
        "kernelbench": [manifest.get("kernelbench") for manifest in known],
        "date": sorted(
            day for m in known if (day := str(m.get("utc", ""))[:10])
        ) or sorted(str(row["utc"])[:10] for row in rows),
    }  # fmt: skip
    entries = [
        (name, ", ".join(dict.fromkeys(text(value) for value in values if value)))
        for name, values in values_of.items()
    ]
    statuses = Counter(str(row["status"]) for row in rows)
    counts = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    return [
        *((name, value) for name, value in entries if value),
        *([("runs", str(len(manifests)))] if len(manifests) > 1 else []),
        ("records", f"{len(rows)}: {counts}" if rows else "none"),
        *([("intervals", over)] if (over := over_what(rows)) else []),
        *([("profiled", f"{len(measured)} calls")] if measured else []),
    ]


def problems(rows: Sequence[Row], measured: Sequence[Measured]) -> list[Problem]:
    """Failures first, then what makes numbers doubtful."""
    bad = [row for row in rows if row["record"].status.bad]
    entries = [
        Problem(f"{_record_name(row)}: {_why(row)}", f"#{record_anchor(row)}")
        for row in bad[:NAMED]
    ]
    if more := len(bad) - NAMED:
        entries += [Problem(f"… and {more} more that are wrong, in the tables")] if more > 0 else []
    entries += _audit_problems(measured)
    failed = [call for call in measured if call.status.bad]
    if failed:
        calls = "1 call" if len(failed) == 1 else f"{len(failed)} calls"
        entries.append(Problem(f"{calls} could not be profiled: {_first_reason(failed)}"))
    return [*entries, *_flag_problems(rows)]


def _record_name(row: Row) -> str:
    return " ".join(text(row[name]) for name in ("family", "case", "provider"))


def _why(row: Row) -> str:
    reason = text(str(row["reason"]).strip().partition("\n")[0])
    return f"{row['status']}: {reason[:160]}" if reason else str(row["status"])


def _audit_problems(measured: Sequence[Measured]) -> Iterator[Problem]:
    """A line a family: providers whose measured reads differ from their models."""
    off: dict[str, list[str]] = {}
    for call in audit.failed_audits(measured):
        error = audit.model_error_pct(call) or 0.0
        off.setdefault(call.family, []).append(f"{text(call.provider)} {call.mode} {error:+.0f} %")
    for family, names in off.items():
        yield Problem(
            f"{text(family)}: HBM reads measured are not those modelled, within "
            f"{audit.AUDIT_PCT:.0f} %: {', '.join(names)}",
            doubt=True,
        )


def _first_reason(measured: Sequence[Measured]) -> str:
    call = measured[0]
    reason = text(call.reason.strip().partition("\n")[0])[:160] or str(call.status)
    return f"{text(call.family)} {text(call.case)} {text(call.provider)}: {reason}"


def _flag_problems(rows: Sequence[Row]) -> Iterator[Problem]:
    """A line a flag and family; the timer `ungated` counts as a flag."""
    by_flag: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        flags = [flag for flag in str(row["flags"]).split(";") if flag and flag != "prepacked"]
        if row["timer"] in ("ungated", "profiled"):
            flags.append(f"timer {row['timer']}: no speedup")
        for flag in flags:
            by_flag.setdefault((flag, str(row["family"])), []).append(row)
    for (flag, family), flagged in by_flag.items():
        plural = "s" if len(flagged) != 1 else ""
        yield Problem(
            f"{text(family)}: {len(flagged)} record{plural} flagged {text(flag)}",
            f"#{record_anchor(flagged[0])}",
            doubt=True,
        )


def headlines(rows: Sequence[Row], baseline: str = "") -> Grid | None:
    """Each of our kernels by family, mode and run against the best other and the baseline."""
    ours = [r for r in rows if r["role"] == "triton_fused" and not r["smoke"] and _has_speedup(r)]
    if not ours:
        return None
    several = len({row["run_id"] for row in ours}) > 1
    columns = (
        ("family", "mode", "provider", "run_id") if several else ("family", "mode", "provider")
    )
    heads = [
        *(Head("run" if name == "run_id" else name, number=False) for name in columns),
        Head("× best other", "speedup_best"),
        Head("95 % interval", "speedup_best_hi"),
        Head("range", "speedup_best"),
        Head(f"× {text(baseline) or 'baseline'}", "speedup"),
        Head("95 % interval", "speedup_hi"),
        Head("cases", number=False),
        Head("of these", number=False),
        Head("against", number=False),
    ]
    lines = [
        Line(
            "",
            [
                *(
                    Cell(text(part[0][name]) + _approximate(part[0], name), False)
                    for name in columns
                ),
                *_numbers(part, rows),
            ],
        )
        for part in parts(ours, *columns).values()
    ]
    return Grid("Geometric means", heads, lines)


def _approximate(row: Row, name: str) -> str:
    return " ≈" if name == "provider" and row["accuracy"] == "approximate" else ""


def _has_speedup(row: Row) -> bool:
    return row["status"] == Status.ok and not (
        math.isnan(row["speedup_best"]) and math.isnan(row["speedup"])
    )


def _numbers(ours: Sequence[Row], rows: Sequence[Row]) -> Iterator[Cell]:
    best = mean(ours, rows)
    yield from _middle(best)
    low, high = best.range if best else (math.nan, math.nan)
    yield Cell(f"{figures(low)} to {figures(high)}" if best else "", sort=f"{high - low:.6g}")
    yield from _middle(mean(ours, rows, "speedup"))
    yield Cell(best.cases.removesuffix(" cases") if best else _too_few(ours), False)
    counts = best.counts if best else {}
    yield Cell(", ".join(f"{count} {what}" for what, count in counts.items() if count), False)
    yield Cell(", ".join(map(text, best.opponents)) if best else "", False)


def _too_few(ours: Sequence[Row]) -> str:
    compared = [row for row in ours if not math.isnan(row["speedup_best"])]
    if not compared:
        return "no opponent of its accuracy"
    return "1 case: no mean" if len(compared) == 1 else "no two cases in which all others ran"


def _middle(average: Mean | None) -> Iterator[Cell]:
    if average is None:
        yield from (Cell(""), Cell(""))
        return
    yield Cell(figures(average.mid), sort=f"{average.mid:.6g}")
    within = f"{figures(average.lo, 4)} to {figures(average.hi, 4)}"
    yield Cell(within, sort=f"{average.hi - average.lo:.6g}")
