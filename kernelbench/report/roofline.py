"""Figures against this machine's measured ceilings: the roofline, and scaling curves."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from kernelbench import metrics
from kernelbench.report.figures import (
    SMALL,
    Figure,
    Look,
    Row,
    around,
    canvas,
    code,
    legend,
    legend_height,
    log_axes,
    parts,
    plain,
    short,
    svg,
    text,
    tokens,
)
from kernelbench.report.tables import figures as digits
from kernelbench.spec import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL = 0.2  # share of the width that the name of the slope needs
SWEPT = 3  # values of an axis that make a curve
NEAR = 30  # the ridge is drawn up to so many times right of the last point


def roof(manifest: Mapping[str, Any]) -> tuple[float, dict[str, float]] | None:
    """(GB/s, TFLOP/s by precision) that this machine reached: the best rate of reading or copying
    at any footprint. None where no bandwidth was measured."""
    ceilings = manifest.get("ceilings") or {}
    rates = [
        size / ns
        for kind in ("read", "copy")
        for size, ns in (ceilings.get("bandwidth") or {}).get(kind, ())
        if ns
    ]
    return (max(rates), dict(ceilings.get("tflops") or {})) if rates else None


def intensity(record: RunRecord) -> float | None:
    """Flops over compulsory HBM bytes, both modelled: the same for all providers of a case, so that
    the distance to the roof is what is left to gain, and a wrong byte model moves no point."""
    moved = metrics.bytes_min(record)
    return record.flops / moved if moved and record.flops else None


def plateaus(rows: Sequence[Row], tflops: Mapping[str, float]) -> dict[str, float]:
    """The matmul rates that bound these rows, by precision; one for a mix of precisions."""
    names = {round(rate, 2): name for name, rate in tflops.items()}
    rates = {
        rate
        for row in rows
        if math.isfinite(row["tflops"]) and (rate := (row["record"].ceilings or {}).get("tflops"))
    }
    return {names.get(rate, "mixed precision"): rate for rate in sorted(rates)}


def roofline(
    rows: Sequence[Row], look: Mapping[str, Look], where: str, manifest: Mapping[str, Any]
) -> Iterator[Figure]:
    """Every provider under the machine's measured roof, a figure a mode."""
    limits = roof(manifest)
    for (mode,), part in parts(rows, "mode").items():
        points: dict[str, list[tuple[float, float]]] = {}
        for row in part:
            at = intensity(row["record"])
            if at and math.isfinite(row["tflops"]):
                points.setdefault(str(row["provider"]), []).append((at, row["tflops"]))
        if limits and points:
            tops = plateaus(part, limits[1])
            yield _roofline(points, look, f"{where} {mode}: roofline", limits[0], tops)


def _roofline(
    points: Mapping[str, Sequence[tuple[float, float]]],
    look: Mapping[str, Look],
    title: str,
    gbps: float,
    tops: Mapping[str, float],
) -> Figure:
    flat = list(chain(*points.values()))
    ridge = max(tops.values(), default=math.inf) * 1e3 / gbps
    low, high = min(x for x, _ in flat) / 1.6, max(x for x, _ in flat) * 1.6
    ridge_shown = ridge < high * NEAR
    if ridge_shown:
        high = max(high, ridge * 2.5)
    top = legend_height(len(points), 3)
    with canvas(270 + top, left=50, top=top) as (figure, axes):
        for name, mine in points.items():
            axes.plot(*zip(*mine, strict=True), look[name].marker, color=look[name].colour,
                      markersize=6, alpha=0.85, markeredgecolor=code("--paper"),
                      markeredgewidth=0.5, label=short(name, 22))  # fmt: skip
        _limits(axes, gbps, tops if ridge_shown else {}, low, high)
        highest = min(high * gbps / 1e3, max(tops.values(), default=math.inf))
        log_axes(axes, "x", (low, high), plain)
        log_axes(axes, "y", around([highest, *(y for _, y in flat)], 1.7), plain)
        axes.set_xlabel("flops / compulsory byte, modelled")
        axes.set_ylabel("TFLOP/s")
        legend(axes, 3)
        best = max(points, key=lambda name: max(_share(p, gbps, tops) for p in points[name]))
        share = max(_share(point, gbps, tops) for point in points[best])
        beyond = (
            ""
            if ridge_shown or not tops
            else f" The ridge is beyond, at {digits(ridge)} flop/byte."
        )
        message = (
            f"The roof is {digits(gbps / 1e3)} TB/s"
            + "".join(f", {digits(rate)} TFLOP/s in {name}" for name, rate in tops.items())
            + f". Nearest to it: {text(best)}, at {share * 100:.0f} %.{beyond}"
        )
        return Figure(
            title,
            message,
            "Roof: the best rates that this machine was measured at. Points: measured time over "
            "modelled flops and compulsory bytes. A small footprint has a lower roof, which % of "
            "ceiling in the table is against.",
            metrics.kinds_of("tflops", "sol_pct"),
            svg(figure, title, message),
        )


def _share(point: tuple[float, float], gbps: float, tops: Mapping[str, float]) -> float:
    flops, rate = point
    return rate / min(flops * gbps / 1e3, max(tops.values(), default=math.inf))


def _limits(axes: "Axes", gbps: float, tops: Mapping[str, float], low: float, high: float) -> None:
    """Draw the slope of the memory, unless it is left of the figure, with its name where there is
    room; and a plateau for each precision."""
    most = max(tops.values(), default=math.inf)
    end = min(high, most * 1e3 / gbps)
    if end > low:
        axes.plot(
            [low, end], [low * gbps / 1e3, end * gbps / 1e3], color=code("--ink"), linewidth=1.2
        )
        middle = math.sqrt(low * end)
        if math.log(middle / low) > LABEL * math.log(high / low):
            axes.annotate(
                f"HBM {digits(gbps / 1e3)} TB/s", (middle, middle * gbps / 1e3), (-6, 6),
                textcoords="offset points", ha="right", fontsize=SMALL,
            )  # fmt: skip
    for name, rate in tops.items():
        axes.plot(
            [max(low, rate * 1e3 / gbps), high], [rate, rate], color=code("--ink"), linewidth=1.2
        )
        axes.annotate(
            f"{name} {digits(rate)}", (high, rate), (-4, 4), textcoords="offset points",
            ha="right", fontsize=SMALL,
        )  # fmt: skip


def scaling(rows: Sequence[Row], look: Mapping[str, Look], where: str) -> Iterator[Figure]:
    """Rates along each axis with three values or more in cases that are otherwise alike."""
    for (mode, dtype), part in parts(rows, "mode", "dtype").items():
        timed = [row for row in part if math.isfinite(row["gbps"])]
        for axis, others, cases in _sweeps(timed):
            fixed = ", ".join(f"{name}={value}" for name, value in others)
            title = f"{where} {mode} {dtype}: scaling with {axis} at {fixed}"
            yield _scaling(cases, look, title, axis)


def _sweeps(rows: Sequence[Row]) -> Iterator[tuple[str, list[tuple[str, Any]], list[Row]]]:
    """(axis, the other axes that vary with their values, rows)."""
    axes = [row["record"].axes for row in rows]
    names = list(dict.fromkeys(chain(*axes)))
    varied = [name for name in names if len({str(axis.get(name)) for axis in axes}) > 1]
    for name in varied:
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            mine = row["record"].axes
            if type(mine.get(name)) is int:
                key = tuple(str(mine.get(axis_name)) for axis_name in names if axis_name != name)
                groups.setdefault(key, []).append(row)
        for group in groups.values():
            first = group[0]["record"].axes
            if len({row["record"].axes[name] for row in group}) >= SWEPT:
                yield name, [(n, first.get(n)) for n in varied if n != name and n in first], group


def _scaling(rows: Sequence[Row], look: Mapping[str, Look], title: str, axis: str) -> Figure:
    compute = sum(row["bound"] == "compute" for row in rows) * 2 > len(rows)
    column, unit = ("tflops", "TFLOP/s") if compute else ("gbps", "GB/s")
    names = parts(rows, "provider")
    top = legend_height(len(names) + 1, 3)
    with canvas(240 + top, left=54, top=top) as (figure, axes):
        for (name,), mine in names.items():
            axes.plot(*_line(mine, axis, column), marker=look[name].marker, markersize=5,
                      color=look[name].colour, linewidth=1.4, label=short(name, 22))  # fmt: skip
        limits = [row for row in rows if row["sol_pct"] > 0]
        most: dict[float, float] = {}
        for row in limits:
            at = row["record"].axes[axis]
            most[at] = max(most.get(at, 0), row[column] / row["sol_pct"] * 100)
        if most:
            axes.plot(*zip(*sorted(most.items()), strict=True), color=code("--ink"),
                      linewidth=1.2, linestyle=(0, (5, 2)), label="measured ceiling")  # fmt: skip
        log_axes(axes, "x", around((row["record"].axes[axis] for row in rows), 1.1), tokens, 2)
        log_axes(axes, "y", around([*most.values(), *(row[column] for row in rows)], 1.25), plain)
        axes.set_xlabel(text(axis))
        axes.set_ylabel(unit)
        legend(axes, 3)
        message = _scaling_message(names, axis, column, unit, most)
        return Figure(
            title,
            message,
            f"{'Flops' if compute else 'Compulsory bytes'} (modelled) over the median time "
            "(measured), L2 cold. Dashed: what this machine was measured to reach at each "
            "footprint.",
            metrics.kinds_of(column),
            svg(figure, title, message),
        )


def _line(rows: Sequence[Row], axis: str, column: str) -> tuple[list[float], list[float]]:
    pairs = sorted((row["record"].axes[axis], row[column]) for row in rows)
    return [x for x, _ in pairs], [y for _, y in pairs]


def _scaling_message(
    names: Mapping[tuple[str, ...], Sequence[Row]],
    axis: str,
    column: str,
    unit: str,
    most: Mapping[float, float],
) -> str:
    """The rate of each provider at the largest value."""
    reached, last = list[str](), max(row["record"].axes[axis] for row in chain(*names.values()))
    for (name,), rows in names.items():
        values = [row[column] for row in rows if row["record"].axes[axis] == last]
        reached += [f"{text(name)} {digits(values[0], 4)}"] if values else []
    limit = f", of {digits(most[last], 4)} measured" if last in most else ""
    return f"At {text(axis)} = {tokens(last)}, in {unit}: {', '.join(reached)}{limit}."
