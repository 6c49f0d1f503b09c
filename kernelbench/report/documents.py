"""A line a case, as papers on kernels print it: the baseline, the best of PyTorch, ours."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from kernelbench.metrics import audit, said
from kernelbench.report.means import has_time, within_noise
from kernelbench.report.sheet import Row, Sheet, Source, by_case, without_empty_columns
from kernelbench.report.tables import answer, figures, percent, short_time
from kernelbench.spec import Tool

_NAMES = {
    "times": "median_us",
    "speedup": "speedup",
    "× best other (the fastest exact provider that is not ours)": "speedup_best",
    "HBM ↓": "hbm_saved_pct",
}
NOTE = (
    f"{said(_NAMES)} torch, triton: the fastest exact one of its kind. ~: no difference beyond "
    "noise. !: flagged."
)
Cells = tuple[str, ...]


def documents(source: Source) -> Iterator[Sheet]:
    """One sheet a family, mode and dtype; the lines of a case that several runs have stand
    together, each with its run. Cases without a time are counted below, with the reason."""
    reads: dict[tuple[str, ...], float | None] = {
        (m.run_id, m.family, m.case, m.provider): audit.per_call(m, "dram_read_bytes")
        for m in source.measured
        if m.tool is Tool.ncu
    }
    parts: dict[tuple[str, ...], list[Row]] = {}
    for row in source.rows:
        parts.setdefault(tuple(str(row[n]) for n in ("family", "mode", "dtype")), []).append(row)
    for key, rows in parts.items():
        timed = [row for row in rows if has_time(row)]
        if timed:
            gpus = dict.fromkeys(str(row["gpu"]) for row in timed)
            yield _sheet(" · ".join((*key, *gpus)), source, timed, reads, untimed_reasons(rows))
        elif others := untimed_reasons(rows):
            yield Sheet(" · ".join(key), (), (), "\n".join(others))


def _sheet(
    title: str,
    source: Source,
    rows: Sequence[Row],
    reads: Mapping[tuple[str, ...], float | None],
    others: Sequence[str],
) -> Sheet:
    heads = ("Config", "run", source.against or "baseline", "torch\nfused", "triton\nfused",
             "speedup", "× best\nother", "HBM ↓\nmodelled", "reads ↓\nmeasured", "")  # fmt: skip
    lines = by_case(source, rows, lambda part: _cells(source, part, reads))
    words = frozenset({"Config", "run", ""})
    return without_empty_columns(
        Sheet(title, heads, lines, "\n".join(others), words, labelled=True)
    )


def _cells(
    source: Source, part: Sequence[Row], reads: Mapping[tuple[str, ...], float | None]
) -> Cells:
    base = next((row for row in part if source.is_baseline(row)), None)
    ours = _fastest(part, "triton_fused")
    times = (_time(row) for row in (base, _fastest(part, "torch_fused"), ours))
    if ours is None:
        return (*times, "", "", "", "")
    ratios = (_ratio(ours, name) for name in ("speedup", "speedup_best"))
    return (*times, *ratios, percent(ours["hbm_saved_pct"]), _saved_reads(reads, base, ours))


def _fastest(rows: Sequence[Row], role: str) -> Row | None:
    exact = [row for row in rows if row["role"] == role and row["accuracy"] == "exact"]
    return min(exact, key=lambda row: float(row["median_us"]), default=None)


def _time(row: Row | None) -> str:
    return f"{short_time(row['median_us'])}{'!' * bool(row['flags'])}" if row else ""


def _ratio(row: Row, name: str) -> str:
    text = figures(row[name])
    return "~" if within_noise(row, name) else f"{text}×" if text else ""


def _saved_reads(reads: Mapping[tuple[str, ...], float | None], base: Row | None, ours: Row) -> str:
    if base is None:
        return ""
    theirs, mine = (
        reads.get(tuple(str(row[n]) for n in ("run_id", "family", "case", "provider")))
        for row in (base, ours)
    )
    return percent((theirs - mine) / theirs * 100) if theirs and mine is not None else ""


def untimed_reasons(rows: Sequence[Row]) -> list[str]:
    """Why providers have no time: a line a reason, with the number of cases."""
    counts = Counter((str(row["provider"]), answer(row)) for row in rows if row["status"] != "ok")
    return [
        f"{provider}: {why}{f' ({count} cases)' if count > 1 else ''}"
        for (provider, why), count in counts.items()
    ]
