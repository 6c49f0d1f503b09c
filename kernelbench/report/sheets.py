"""Tables beside the default ones: each a `Sheet` of text, for a terminal or for Markdown."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from kernelbench import metrics
from kernelbench.metrics import kind_of, said
from kernelbench.report.means import has_time, within_noise
from kernelbench.report.tables import figures, fold, short_time
from kernelbench.spec import Measured

if TYPE_CHECKING:
    from pandas import DataFrame

Row = Mapping[str, Any]
Lines = tuple[tuple[str, ...], ...]
TOKENS = (("M",), ("B", "N"), ("B", "S"))  # the first of these that a case has: its tokens
RUN = {"machine": "name", "torch": "versions.torch", "triton": "versions.triton"}
GAP = 2
LEAST_CONFIG, LEAST_WORD = 24, 9  # columns that words keep before they fold
COMMIT = 12  # characters of a commit
_CLOCKS = {
    "host, CPU time to submit a call": "host_us",
    "GPU, median, L2 cold": "median_us",
    "graph, replay, L2 warm, not comparable": "graph_us",
}
_EARNED = {"compile and tune s": "compile_s", "saved µs and calls": "speedup_best"}
LEAST_POINTS = 3  # of a scaling table


@dataclass(frozen=True)
class Sheet:
    """A table as text. left: how many columns, the first ones, are words and not numbers; the last
    one, too, with last_left. Without heads it is a title and a note."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    left: int = 1
    last_left: bool = False

    def is_word(self, column: int) -> bool:
        return column < self.left or (self.last_left and column == len(self.heads) - 1)


@dataclass(frozen=True)
class Source:
    """What sheets are made from. against: the provider that speedups hold up, or the baseline."""

    rows: Sequence[Row]
    measured: Sequence[Measured]
    manifests: Mapping[str, Mapping[str, Any]]
    axes: Sequence[str]
    against: str = ""

    @cached_property
    def short(self) -> dict[str, str]:
        """Numbers for runs; none where there is only one."""
        runs = dict.fromkeys([*(str(row["run_id"]) for row in self.rows), *self.manifests])
        return {run: str(n) for n, run in enumerate(runs, 1)} if len(runs) > 1 else {}

    def parts(self) -> Iterator[tuple[str, list[Row]]]:
        """Rows that ran on a GPU, by family, mode, dtype, GPU and run, each with its title."""
        found: dict[tuple[str, ...], list[Row]] = {}
        for row in self.rows:
            if has_time(row):
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
    rows = metrics.dicts(frame)
    return Source(rows, measured, manifests or {}, axes, against)


def show(sheet: Sheet, console: Console) -> None:
    """Print it: its title, the table, its note. Words fold where it is wider than the console,
    labels are cut short; no number is, however wide that makes it."""
    console.print(Text(sheet.title, style="bold"))
    widths = _widths(sheet, console.width) if sheet.heads else []
    for row in (sheet.heads, *sheet.rows) if sheet.heads else ():
        for line in zip(*_folded(sheet, row, widths), strict=True):
            console.print(Text((" " * GAP).join(line).rstrip()), soft_wrap=True)
    if sheet.note:
        console.print(Text(sheet.note))


def _folded(sheet: Sheet, row: Sequence[str], widths: Sequence[int]) -> Iterator[list[str]]:
    """Each cell as equally many lines of its column's width; heads stand at the bottom."""
    cells = []
    for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
        cut = sheet.last_left and number == len(row) - 1 and cell_len(cell) > width
        lines = [f"{cell[: width - 1]}…"] if cut else cell.split("\n")
        whole = (part for line in lines for part in fold(line, width).split("\n"))
        cells.append([part for line in whole for part in chop_cells(line, width) or [""]])
    high = max(map(len, cells))
    for number, (lines, width) in enumerate(zip(cells, widths, strict=True)):
        missing = [""] * (high - len(lines))
        padded = [*missing, *lines] if row is sheet.heads else [*lines, *missing]
        yield [_aligned(line, width, left=sheet.is_word(number)) for line in padded]


def _aligned(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - cell_len(text))
    return text + space if left else space + text


def _widths(sheet: Sheet, width: int) -> list[int]:
    """Of each column: what it needs; of words less where that is too much: of labels first, then
    of configs, then of the others."""
    needed = [
        max(1, *(cell_len(text) for text in (*head.split("\n"), *(row[n] for row in sheet.rows))))
        for n, head in enumerate(sheet.heads)
    ]
    over = sum(needed) + GAP * (len(needed) - 1) - width
    last = len(needed) - 1
    for number in (last, *range(last)):
        if over > 0 and sheet.is_word(number):
            least = LEAST_CONFIG if number == 0 else LEAST_WORD
            gained = min(over, max(0, needed[number] - least))
            needed[number] -= gained
            over -= gained
    return needed


def config(row: Row) -> str:
    """A case without what the title of its table says."""
    return str(row["case"]).removesuffix(f"-{row['dtype']}-{row['mode']}")


def _by_case(rows: Sequence[Row], cells: Callable[[Row], Sequence[str] | None]) -> Lines:
    """A line a row: its case, said once, what `cells` says of it, its label, said once."""
    lines, before = list[tuple[str, ...]](), ("", "")
    for row in rows:
        found, case = cells(row), (config(row), str(row["label"]))
        if found is not None:
            shown = case if case != before else ("", "")
            lines.append((shown[0], *found, shown[1]))
            before = case
    return tuple(lines)


def tokens(row: Row) -> int | None:
    """How many tokens a case works on: M rows, B·N or B·S; None where it has no such axes."""
    for names in TOKENS:
        sizes = [row.get(name) for name in names]
        if all(isinstance(size, int) for size in sizes):
            return math.prod(size for size in sizes if isinstance(size, int))
    return None


def memory(given: Source) -> Iterator[Sheet]:
    """Tokens a second, and the memory that a call takes over its inputs."""

    def cells(row: Row) -> Sequence[str] | None:
        count, time = tokens(row), row["median_us"]
        rate = figures(count / time, 4) if count and time else ""
        peak = figures(row["peak_mem_mib"], 4)
        return (row["provider"], rate, peak) if rate or peak else None

    for title, rows in given.parts():
        heads = ("Config", "provider", "million\ntokens/s", "peak MiB\nover inputs", "")
        note = f"{said({'peak': 'peak_mem_mib'})} tokens/s: tokens of the case over the median."
        lines = _by_case(rows, cells)
        yield Sheet(f"{title} · throughput and memory", heads, lines, note, 2, True)


def scaling(given: Source) -> Iterator[Sheet]:
    """Time and rate against each axis that was swept while the others stood still."""
    for title, rows in given.parts():
        for axis in given.axes:
            if not all(type(row[axis]) in (int, float) and row[axis] == row[axis] for row in rows):
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
    what = "flops" if compute else "compulsory bytes"
    note = f"time ({kind_of('median_us')}) · {unit} ({kind_of(rate)}: {what} over that time)"
    return Sheet(title, (axis, *providers), lines, note)


def launch(given: Source) -> Iterator[Sheet]:
    """What a call costs the CPU beside the GPU, and which calls the CPU holds back."""

    def cells(row: Row) -> Sequence[str]:
        host, time = row["host_us"], row["median_us"]
        bound = "" if math.isnan(host) else "launch" if host > time else "GPU"
        return (row["provider"], *(figures(v, 4) for v in (host, time, row["graph_us"])), bound)

    for title, rows in given.parts():
        heads = ("Config", "provider", "host µs", "GPU µs", "graph µs", "bound by", "")
        note = f"{said(_CLOCKS)} launch: submitting takes longer than running."
        yield Sheet(f"{title} · launches", heads, _by_case(rows, cells), note, 2, True)


def breakeven(given: Source) -> Iterator[Sheet]:
    """After how many calls ours has earned what it took longer to compile and tune than the best
    other."""
    for title, rows in given.parts():
        found = {(row["case"], row["provider"]): row for row in rows}

        def cells(row: Row, found: Mapping[Any, Row] = found) -> Sequence[str] | None:
            other = found.get((row["case"], row["best_other"]))
            if row["role"] != "triton_fused" or other is None:
                return None
            saved = other["median_us"] - row["median_us"]
            took = (figures(row["compile_s"]), figures(other["compile_s"]))
            names = (row["provider"], str(row["best_other"]))
            return (*names, *took, figures(saved), _calls(row, other, saved))

        heads = ("Config", "provider", "best other", "compile\nand tune s", "its\ncompile s",
                 "saved µs\na call", "calls", "")  # fmt: skip
        note = (
            f"{said(_EARNED)} calls: how much longer it took to compile and tune, over the time "
            "saved; 0: no longer. never: no faster beyond noise. A kernel that an earlier case "
            "compiled, or a disk cache held, costs almost nothing here."
        )
        yield Sheet(f"{title} · break-even", heads, _by_case(rows, cells), note, 3, True)


def _calls(row: Row, other: Row, saved: float) -> str:
    """Nothing where it is not known what compiling took."""
    if saved <= 0 or within_noise(row, "speedup_best"):
        return "never"
    longer = row["compile_s"] - other["compile_s"]
    return "" if math.isnan(longer) else f"{max(0, math.ceil(longer * 1e6 / saved)):,}"


def runs(given: Source) -> Iterator[Sheet]:
    """Which runs the numbers stand for."""
    lines = []
    for run, number in given.short.items():
        facts = _flat(given.manifests.get(run, {}))
        lines.append((number, run, *(facts.get(name, "") for name in RUN.values())))
    yield Sheet("Runs", ("run", "id", *RUN), tuple(lines), "", 2 + len(RUN))


def environment(given: Source) -> Iterator[Sheet]:
    """What differs between the machines and versions of the runs."""
    found = differences(given.manifests)
    order = sorted(given.manifests, key=lambda run: int(given.short.get(run, 0)))
    heads = ("", *(given.short.get(run, run) for run in order))
    places = [list(given.manifests).index(run) for run in order]
    lines = tuple((name, *(values[n] for n in places)) for name, values in found.items())
    yield Sheet("What differs between the runs", heads, lines, "", len(heads))


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
                name = f"{prefix}{name}".removeprefix("machine.")
                found[name] = str(value)[:COMMIT] if name == "git.commit" else str(value)
    return found


MORE: dict[str, Callable[[Source], Iterator[Sheet]]] = {
    "memory": memory,
    "scaling": scaling,
    "launch": launch,
    "breakeven": breakeven,
    "environment": environment,
}
