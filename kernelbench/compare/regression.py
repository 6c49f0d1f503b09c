"""Records held against earlier ones, row by row, by the rules of a comparison."""

from collections.abc import Sequence
from pathlib import Path

from kernelbench import store
from kernelbench.compare.gate import gate_of
from kernelbench.compare.rows import RowChange
from kernelbench.compare.sides import Run, Side, read_runs
from kernelbench.compare.tables import interval, time
from kernelbench.compare.verdicts import compare
from kernelbench.compare.wording import reasons
from kernelbench.spec import RunRecord, UsageError


def regressions(records: Sequence[RunRecord], than: Path, by: str) -> list[str]:
    """A line for each row that is slower than before by more than `by`, was right and is not, or
    cannot be judged; none where all is well.

    than: a run folder, or a file of records, a JSON object a line. by: `3%`. Raises UsageError
    where there is nothing to hold it against, and KernelbenchError where nothing can be judged.
    """
    keys = {(r.family, r.case, r.provider) for r in records}
    before = [r for run in _runs(than) for r in run.records if r.key[:3] in keys]
    if not before:
        raise UsageError(f"{than}: has none of these records: {_some(keys)}")
    share = by if by.endswith("%") else f"{by}%"
    gate = gate_of(f"slower:{share},broken,unjudged", "0%")
    earlier = Side(str(than), (Run(than, {}, tuple(before)),))
    now = Side("now", (Run(Path("now"), {}, tuple(records)),))
    return [_line(row) for row in compare(earlier, now, gate).rows if row.regression]


def _runs(than: Path) -> Sequence[Run]:
    if not than.is_file() or than.name.startswith("records.jsonl"):
        return read_runs(than)[0]
    records, problems = store.read_with_problems(than.parent, than.read_bytes().split(b"\n"))
    if not records:
        why = f": {problems[0]}" if problems else ""
        raise UsageError(f"{than}: no record{why}")
    return (Run(than, {}, tuple(records)),)


def _line(row: RowChange) -> str:
    """`softmax M4096 fused: SLOWER 12.1 µs → 13.0 µs, [+6.9, +7.9] %`, and why."""
    times = f"{time(row.a_us)} → {time(row.b_us)}, {interval(row)} %" if row.ratio else ""
    words = [f"{row.family} {row.case} {row.provider}:", str(row.verdict), times, reasons(row)]
    return " ".join(word for word in words if word)


def _some(keys: set[tuple[str, str, str]]) -> str:
    return ", ".join(" ".join(key) for key in sorted(keys)[:4])
