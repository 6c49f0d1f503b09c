"""Tables that are shown on request."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kernelbench.metrics import MIB, RANKS, kind_of, said
from kernelbench.report.means import within_noise
from kernelbench.report.sheet import Row, Sheet, Source, by_row, without_empty_columns
from kernelbench.report.tables import figures, percent, short_time

TOKENS = (("M",), ("B", "N"), ("B", "S"))  # the first that a case has gives its tokens
RUN = {"machine": "name", "torch": "versions.torch", "triton": "versions.triton"}
COMMIT = 12  # characters of a commit
_CLOCKS = {
    "host, CPU time to submit a call": "host_us",
    "GPU, median, L2 cold": "median_us",
    "graph, replay, L2 warm, not comparable": "graph_us",
    "nodes of a call in that graph": "graph_nodes",
}
_TRAFFIC = {"read, written": "model_read_mib", "the least": "bytes_min", "less": "hbm_saved_pct"}
_RANKS = {
    "time": "median_us",
    "% of one GPU, exposed, kernels": "one_gpu_pct",
    "received, peak": "received_mib",
}
_EARNED = {"compile and tune s": "compile_s", "saved µs and calls": "speedup_best"}
LEAST_POINTS = 3  # of a scaling table
WORDS = frozenset({"Config", "provider", "best other", "bound by", ""})


def tokens(row: Row) -> int | None:
    """The number of tokens of a case: M rows, B·N or B·S; None without such axes."""
    for names in TOKENS:
        sizes = [row.get(name) for name in names]
        if all(isinstance(size, int) for size in sizes):
            return math.prod(size for size in sizes if isinstance(size, int))
    return None


def memory(source: Source) -> Iterator[Sheet]:
    """Tokens a second, and the memory of a call beyond its inputs."""

    def cells(row: Row) -> Sequence[str] | None:
        count, time = tokens(row), row["median_us"]
        rate = figures(count / time, 4) if count and time else ""
        peak = figures(row["peak_mem_mib"], 4)
        return (row["provider"], rate, peak) if rate or peak else None

    for title, rows in source.parts():
        heads = ("Config", "provider", "million\ntokens/s", "peak MiB\nover inputs", "")
        note = f"{said({'peak': 'peak_mem_mib'})} tokens/s: tokens of the case over the median."
        lines = by_row(rows, cells)
        yield Sheet(f"{title} · throughput and memory", heads, lines, note, WORDS, labelled=True)


def traffic(source: Source) -> Iterator[Sheet]:
    """HBM bytes by each provider's model, beside the minimum."""

    def cells(row: Row) -> Sequence[str] | None:
        read, write, least = row["model_read_mib"], row["model_write_mib"], row["bytes_min"]
        if math.isnan(read):
            return None
        over = (read + write) * MIB / least if least else math.nan
        saved = percent(row["hbm_saved_pct"])
        return (row["provider"], *(figures(v, 4) for v in (read, write, over)), saved)

    for title, rows in source.parts():
        heads = ("Config", "provider", "read\nMiB", "written\nMiB", "× the\nleast",
                 f"less than\n{source.against or 'baseline'}", "")  # fmt: skip
        note = f"{said(_TRAFFIC)} Least: each input read once, each output written once."
        lines = by_row(rows, cells)
        yield without_empty_columns(
            Sheet(f"{title} · HBM bytes, modelled", heads, lines, note, WORDS, labelled=True)
        )


def scaling(source: Source) -> Iterator[Sheet]:
    """Time and rate against each axis that was swept while the others were fixed."""
    for title, rows in source.parts():
        for axis in source.axes:
            if not all(type(row[axis]) in (int, float) and row[axis] == row[axis] for row in rows):
                continue
            swept: dict[tuple[Any, ...], list[Row]] = {}
            for row in rows:
                rest = tuple(str(row[name]) for name in source.axes if name != axis)
                swept.setdefault(rest, []).append(row)
            for rest, part in swept.items():
                if len({row[axis] for row in part}) >= LEAST_POINTS:
                    fixed_axes = zip([a for a in source.axes if a != axis], rest, strict=True)
                    fixed = " ".join(
                        f"{name}={v}" for name, v in fixed_axes if v not in ("nan", "<NA>", "None")
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
    return Sheet(title, (axis, *providers), lines, note, frozenset({axis}))


def ranks(source: Source) -> Iterator[Sheet]:
    """Of jobs over several GPUs, what spreading the work costs."""

    def cells(row: Row) -> Sequence[str] | None:
        world = row["axes"].get(RANKS)
        if not isinstance(world, int) or world < 2:
            return None
        share, low, high = (figures(row[f"one_gpu_{name}pct"]) for name in ("", "lo_", "hi_"))
        return (
            row["provider"],
            str(world),
            short_time(row["median_us"]),
            f"{share} [{low}, {high}]" if share else "",
            percent(row["exposed_pct"]),
            figures(row["overlap_slowdown"]),
            *(figures(row[name], 4) for name in ("received_mib", "peak_mem_mib")),
        )

    for title, rows in source.parts():
        heads = ("Config", "provider", "GPUs", "time", "% of one GPU\n[95% interval]", "exposed",
                 "kernels\n×", "received\nMiB", "peak MiB\nover inputs", "")  # fmt: skip
        note = (
            f"{said(_RANKS)} % of one GPU: its time for all of the work, divided by the GPUs, over "
            "theirs. Exposed: of the time, what the same call takes less with nothing sent. "
            "Kernels: their time beside messages over that without. Received, peak: of the rank "
            "that has most."
        )
        lines, title = by_row(rows, cells), f"{title} · over several GPUs"
        yield without_empty_columns(Sheet(title, heads, lines, note, WORDS, labelled=True))


def launch(source: Source) -> Iterator[Sheet]:
    """CPU time of a call beside its GPU time, and which calls are bound by the CPU."""

    def cells(row: Row) -> Sequence[str]:
        host, time = row["host_us"], row["median_us"]
        bound = "" if math.isnan(host) else "launch" if host > time else "GPU"
        clocks = (figures(v, 4) for v in (host, time, row["graph_us"]))
        nodes = "" if math.isnan(row["graph_nodes"]) else f"{row['graph_nodes']:.6g}"
        return (row["provider"], *clocks, nodes, bound)

    for title, rows in source.parts():
        heads = ("Config", "provider", "host µs", "GPU µs", "graph µs", "nodes", "bound by", "")
        note = f"{said(_CLOCKS)} launch: submitting takes longer than running."
        lines, title = by_row(rows, cells), f"{title} · launches"
        yield without_empty_columns(Sheet(title, heads, lines, note, WORDS, labelled=True))


def breakeven(source: Source) -> Iterator[Sheet]:
    """After how many calls ours makes up for its longer time to compile and tune than the best
    other."""
    for title, rows in source.parts():
        row_of = {(row["case"], row["provider"]): row for row in rows}

        def cells(row: Row, row_of: Mapping[Any, Row] = row_of) -> Sequence[str] | None:
            other = row_of.get((row["case"], row["best_other"]))
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
        yield Sheet(f"{title} · break-even", heads, by_row(rows, cells), note, WORDS, labelled=True)


def _calls(row: Row, other: Row, saved: float) -> str:
    """The number of calls; nothing where a compile time is not known."""
    if saved <= 0 or within_noise(row, "speedup_best"):
        return "never"
    longer = row["compile_s"] - other["compile_s"]
    return "" if math.isnan(longer) else f"{max(0, math.ceil(longer * 1e6 / saved)):,}"


def runs(source: Source) -> Iterator[Sheet]:
    """Which run each number means."""
    lines = []
    for run, number in source.short.items():
        facts = _flat(source.manifests.get(run, {}))
        lines.append((number, run, *(facts.get(name, "") for name in RUN.values())))
    heads = ("run", "id", *RUN)
    yield Sheet("Runs", heads, tuple(lines), words=frozenset(heads))


def environment(source: Source) -> Iterator[Sheet]:
    """What differs between the machines and versions of the runs."""
    values_of = differences(source.manifests)
    order = sorted(source.manifests, key=lambda run: int(source.short.get(run, 0)))
    heads = ("", *(source.short.get(run, run) for run in order))
    places = [list(source.manifests).index(run) for run in order]
    lines = tuple((name, *(values[n] for n in places)) for name, values in values_of.items())
    yield Sheet("What differs between the runs", heads, lines, words=frozenset(heads))


def differences(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Facts of machine, versions and source that differ between runs, run by run."""
    flat = [_flat(manifest) for manifest in manifests.values()]
    values_of = {
        name: tuple(facts.get(name, "") for facts in flat) for facts in flat for name in facts
    }
    return {name: values for name, values in values_of.items() if len(set(values)) > 1}


def _flat(manifest: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    facts: dict[str, str] = {}
    sections = ("kernelbench", "machine", "git")
    for name, value in manifest.items():
        if prefix or name in sections:
            if isinstance(value, Mapping):
                facts |= _flat(value, f"{prefix}{name}.")
            else:
                name = f"{prefix}{name}".removeprefix("machine.")
                facts[name] = str(value)[:COMMIT] if name == "git.commit" else str(value)
    return facts


MORE: dict[str, Callable[[Source], Iterator[Sheet]]] = {
    "traffic": traffic,
    "memory": memory,
    "scaling": scaling,
    "ranks": ranks,
    "launch": launch,
    "breakeven": breakeven,
    "environment": environment,
}
