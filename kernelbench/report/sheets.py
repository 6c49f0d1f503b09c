"""Tables beside the default ones: each a `Sheet` of text, for a terminal or for Markdown."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from kernelbench import audit
from kernelbench.report.tables import figures, percent, short_time, within_noise
from kernelbench.spec import Measured, Tool, UsageError, suggest

if TYPE_CHECKING:
    from pandas import DataFrame

Row = Mapping[str, Any]
TOKENS = (("M",), ("B", "N"), ("B", "S"))  # the first of these that a case has: its tokens
LEAST_POINTS = 3  # of a scaling table


@dataclass(frozen=True)
class Sheet:
    """A table as text. left: how many columns, the first ones, are words and not numbers."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    left: int = 1


@dataclass(frozen=True)
class Source:
    """What sheets are made from. against: the provider that speedups hold up, or the baseline."""

    rows: Sequence[Row]
    measured: Sequence[Measured]
    manifests: Mapping[str, Mapping[str, Any]]
    axes: Sequence[str]
    against: str = ""

    def parts(self) -> Iterator[tuple[str, list[Row]]]:
        """Rows that ran on a GPU, by family, mode, dtype, GPU and run, each with its title."""
        found: dict[tuple[str, ...], list[Row]] = {}
        for row in self.rows:
            if row["status"] == "ok" and row["timer"] == "gated":
                names = ("family", "mode", "dtype", "gpu", "run_id")
                found.setdefault(tuple(str(row[name]) for name in names), []).append(row)
        several = len({key[-1] for key in found}) > 1
        for key, rows in found.items():
            yield " · ".join(key if several else key[:-1]), rows

    def is_baseline(self, row: Row) -> bool:
        return bool(row["provider"] == self.against if self.against else row["role"] == "baseline")


def source(
    frame: "DataFrame",
    axes: Sequence[str],
    measured: Sequence[Measured] = (),
    manifests: Mapping[str, Mapping[str, Any]] | None = None,
    against: str = "",
) -> Source:
    """axes: the columns of the frame that are axes."""
    rows = [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]
    return Source(rows, measured, manifests or {}, axes, against)


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The kinds of sheets that were asked for, `all` being every one.

    Raises UsageError for one that there is not.
    """
    for name in names:
        if name != "all" and name not in KINDS:
            raise UsageError(f"--tables: no table {name!r}{suggest(name, [*KINDS, 'all'])}")
    return tuple(KINDS) if "all" in names else tuple(dict.fromkeys(names))


def made(names: Sequence[str], given: Source) -> list[Sheet]:
    """The sheets of these kinds that have a row."""
    return [sheet for name in names for sheet in KINDS[name](given) if sheet.rows]


def as_table(sheet: Sheet) -> Table:
    """For a terminal."""
    table = Table(
        title=Text(sheet.title, style="bold"),
        title_justify="left",
        caption=Text(sheet.note) if sheet.note else None,
        caption_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        min_width=min(len(sheet.title), 100),
    )
    for number, head in enumerate(sheet.heads):
        justify: Any = "left" if number < sheet.left else "right"
        table.add_column(Text(head), justify=justify, overflow="fold")
    for row in sheet.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _cases(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((str(row["label"]), str(row["case"])), []).append(row)
    for (label, case), part in found.items():
        yield "  ".join(word for word in (label, case) if word), part


def _fastest(rows: Sequence[Row], role: str) -> Row | None:
    exact = [row for row in rows if row["role"] == role and row["accuracy"] == "exact"]
    return min(exact, key=lambda row: float(row["median_us"]), default=None)


def documents(given: Source) -> Iterator[Sheet]:
    """One row a case: the baseline, the best of PyTorch, ours."""
    reads = {
        (m.run_id, m.family, m.case, m.provider): audit.per_call(m, "dram_read_bytes")
        for m in given.measured
        if m.tool is Tool.ncu
    }
    head = given.against or "baseline"
    heads = ("Config", head, "torch fused", "triton fused", "speedup", "HBM ↓ (modelled)")
    for title, rows in given.parts():
        lines = []
        for case, part in _cases(rows):
            base = next((row for row in part if given.is_baseline(row)), None)
            best, ours = _fastest(part, "torch_fused"), _fastest(part, "triton_fused")
            times = (short_time(row["median_us"]) if row else "" for row in (base, best, ours))
            speedup = f"{figures(ours['speedup'])}×" if ours and ours["speedup"] > 0 else ""
            told = "~" if ours and within_noise(ours) else speedup
            saved = percent(ours["hbm_saved_pct"]) if ours else ""
            lines.append((case, *times, told, saved, _saved_reads(reads, base, ours)))
        width = 7 if any(line[-1] for line in lines) else 6
        yield Sheet(
            title,
            (*heads, "HBM reads ↓ (measured)")[:width],
            tuple(line[:width] for line in lines),
            "Times and speedup are measured, each the fastest exact provider of its kind.",
        )


def _saved_reads(
    reads: Mapping[tuple[str, ...], float | None], base: Row | None, ours: Row | None
) -> str:
    if base is None or ours is None:
        return ""
    theirs, mine = (
        reads.get(tuple(str(row[n]) for n in ("run_id", "family", "case", "provider")))
        for row in (base, ours)
    )
    return percent((theirs - mine) / theirs * 100) if theirs and mine is not None else ""


def tokens(row: Row) -> int | None:
    """How many tokens a case works on: M rows, B·N or B·S; None where it has no such axes."""
    for names in TOKENS:
        sizes = [row.get(name) for name in names]
        if all(isinstance(size, int) for size in sizes):
            return math.prod(size for size in sizes if isinstance(size, int))
    return None


def memory(given: Source) -> Iterator[Sheet]:
    """Tokens a second, and the memory that a call takes over its inputs."""
    for title, rows in given.parts():
        lines = []
        for case, part in _cases(rows):
            for row in part:
                count, time = tokens(row), row["median_us"]
                rate = figures(count / time, 4) if count and time else ""
                lines.append((case, row["provider"], rate, figures(row["peak_mem_mib"], 4)))
        if any(line[2] or line[3] for line in lines):
            heads = ("Config", "provider", "million tokens/s", "peak MiB over inputs")
            note = "tokens/s: tokens of the case over the measured median. peak: measured."
            yield Sheet(f"{title} · throughput and memory", heads, tuple(lines), note, 2)


def scaling(given: Source) -> Iterator[Sheet]:
    """Time and rate against each axis that was swept while the others stood still."""
    for title, rows in given.parts():
        for axis in given.axes:
            if not all(type(row[axis]) in (int, float) for row in rows):
                continue
            swept: dict[tuple[Any, ...], list[Row]] = {}
            for row in rows:
                rest = tuple(str(row[name]) for name in given.axes if name != axis)
                swept.setdefault(rest, []).append(row)
            for rest, part in swept.items():
                if len({row[axis] for row in part}) >= LEAST_POINTS:
                    named = zip([a for a in given.axes if a != axis], rest, strict=True)
                    fixed = " ".join(
                        f"{name}={v}" for name, v in named if v not in ("nan", "<NA>", "None")
                    )
                    yield _sweep(f"{title} · over {axis} ({fixed})", axis, part)


def _sweep(title: str, axis: str, rows: Sequence[Row]) -> Sheet:
    compute = any(row["bound"] == "compute" for row in rows)
    rate, unit = ("tflops", "TFLOP/s") if compute else ("gbps", "GB/s")
    providers = list(dict.fromkeys(str(row["provider"]) for row in rows))
    cells = {(row[axis], row["provider"]): row for row in rows}

    def cell(value: Any, provider: str) -> str:
        row = cells.get((value, provider))
        if row is None:
            return ""
        return f"{short_time(row['median_us'])} · {figures(row[rate], 4)}"

    lines = tuple(
        (str(value), *(cell(value, provider) for provider in providers))
        for value in sorted({row[axis] for row in rows})
    )
    note = f"time (measured) · {unit} (modelled {'flops' if compute else 'bytes'} over that time)"
    return Sheet(title, (axis, *providers), lines, note)


def launch(given: Source) -> Iterator[Sheet]:
    """What a call costs the CPU beside the GPU, and which calls the CPU holds back."""
    for title, rows in given.parts():
        lines = []
        for case, part in _cases(rows):
            for row in part:
                host, time = row["host_us"], row["median_us"]
                bound = "" if math.isnan(host) else "launch" if host > time else "GPU"
                times = (figures(value, 4) for value in (host, time, row["graph_us"]))
                lines.append((case, row["provider"], *times, bound))
        heads = ("Config", "provider", "host µs", "GPU µs", "graph µs", "bound by")
        note = (
            "measured. host: CPU time to submit a call; GPU: median, L2 cold; graph: replay, L2 "
            "warm, not comparable. launch: submitting takes longer than running."
        )
        yield Sheet(f"{title} · launches", heads, tuple(lines), note, 2)


def breakeven(given: Source) -> Iterator[Sheet]:
    """After how many calls ours has earned what it took to compile and tune."""
    for title, rows in given.parts():
        lines = []
        for case, part in _cases(rows):
            times = {row["provider"]: row["median_us"] for row in part}
            for row in part:
                if row["role"] != "triton_fused" or row["best_other"] not in times:
                    continue
                saved = times[row["best_other"]] - row["median_us"]
                calls = math.ceil(row["compile_s"] * 1e6 / saved) if _pays(row, saved) else None
                lines.append(
                    (
                        case,
                        row["provider"],
                        str(row["best_other"]),
                        figures(row["compile_s"]),
                        figures(saved),
                        "never" if calls is None else f"{calls:,}",
                    )
                )
        heads = ("Config", "provider", "best other", "compile s", "saved µs a call", "calls")
        note = "measured. calls: compile time over time saved. never: no faster beyond noise."
        yield Sheet(f"{title} · break-even", heads, tuple(lines), note, 3)


def _pays(row: Row, saved: float) -> bool:
    known = not math.isnan(row["compile_s"])
    return known and saved > 0 and not within_noise(row, "speedup_best")


def environment(given: Source) -> Iterator[Sheet]:
    """What differs between the machines and versions of the runs."""
    runs = list(given.manifests)
    differing = differences(given.manifests)
    lines = tuple((name, *values) for name, values in differing.items())
    yield Sheet("Runs differ in", ("", *runs), lines, "", len(runs) + 1)


def differences(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Facts of machine, versions and source that are not the same in all runs, run by run."""
    flat = [_flat(manifest) for manifest in manifests.values()]
    found = {name: tuple(facts.get(name, "") for facts in flat) for facts in flat for name in facts}
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def _flat(manifest: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    kept = ("kernelbench", "machine", "git")
    for name, value in manifest.items():
        if prefix or name in kept:
            if isinstance(value, Mapping):
                found |= _flat(value, f"{prefix}{name}.")
            else:
                found[f"{prefix}{name}".removeprefix("machine.")] = str(value)
    return found


KINDS: dict[str, Callable[[Source], Iterator[Sheet]]] = {
    "documents": documents,
    "memory": memory,
    "scaling": scaling,
    "launch": launch,
    "breakeven": breakeven,
    "environment": environment,
}
