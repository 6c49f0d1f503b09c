"""Figures of one family in one run: error against speed, and the samples of noisy cases."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from statistics import geometric_mean
from typing import TYPE_CHECKING

from kernelbench import metrics
from kernelbench.report.figures import (
    SMALL,
    WIDTH,
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
    scientific,
    short,
    svg,
    text,
)
from kernelbench.report.means import common, has_time
from kernelbench.report.tables import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOISY_PCT = 1.0
STRIPS = 6
_SIDE = 3  # strips in one figure


def accuracy(rows: Sequence[Row], look: Mapping[str, Look], where: str) -> Iterator[Figure]:
    """Error against speed, a figure a mode and dtype, with the Pareto front of providers' means."""
    good = [r for r in rows if r["speedup"] > 0 and 0 < r["error_rel"] < math.inf]
    for (mode, dtype), part in parts(good, "mode", "dtype").items():
        names, shared = parts(part, "provider"), parts(common(part), "provider")
        if len(names) < 2 or not shared:
            continue
        title = f"{where} {mode} {dtype}: error against speed"
        means = {
            name: (
                geometric_mean([row["speedup"] for row in mine]),
                geometric_mean([row["error_rel"] for row in mine]),
            )
            for (name,), mine in shared.items()
        }
        yield _accuracy(names, means, look, title)


def _accuracy(
    names: Mapping[tuple[str, ...], Sequence[Row]],
    means: Mapping[str, tuple[float, float]],
    look: Mapping[str, Look],
    title: str,
) -> Figure:
    top = legend_height(len(names), 3)
    with canvas(250 + top, left=52, top=top) as (figure, axes):
        for (name,), rows in names.items():
            colour, marker = look[name].colour, look[name].marker
            xs, ys = ([row[column] for row in rows] for column in ("speedup", "error_rel"))
            axes.plot(xs, ys, marker, color=colour, markersize=3.5, alpha=0.45, markeredgewidth=0)
            label = f"{short(name, 20)} ({len(rows)})"
            axes.plot(*means[name], marker, color=colour, markersize=8, label=label,
                      markeredgecolor=code("--paper"))  # fmt: skip
        front = _front(means)
        corners = [means[name] for name in front]
        axes.plot(*zip(*corners, strict=True), color=code("--muted"), linewidth=1, zorder=1,
                  drawstyle="steps-post", linestyle=(0, (4, 3)))  # fmt: skip
        all_rows = list(chain(*names.values()))
        speeds, errors = ([row[column] for row in all_rows] for column in ("speedup", "error_rel"))
        log_axes(axes, "x", around(speeds, 1.15), lambda value: f"{value:.3g}×", base=2)
        log_axes(axes, "y", around(errors, 2), scientific)
        axes.set_xlabel("speedup over the baseline → faster")
        axes.set_ylabel("relative error ↓ better")
        legend(axes, 3)
        message = f"No provider is both faster and more accurate than: {', '.join(front)}."
        return Figure(
            title,
            message,
            "Error against the fp64 oracle. Small: single cases (how many, in brackets); large: "
            "the geometric mean over those that all ran; dashed: the front of these means.",
            metrics.kinds_of("error_rel", "speedup"),
            svg(figure, title, message),
        )


def _front(means: Mapping[str, tuple[float, float]]) -> list[str]:
    """The providers that no other beats in both, from the slowest to the fastest."""
    order = sorted(means, key=lambda name: (-means[name][0], means[name][1]))
    front, least = list[str](), math.inf
    for name in order:
        if means[name][1] < least:
            front.append(name)
            least = means[name][1]
    return front[::-1]


def noisy(rows: Sequence[Row]) -> list[Row]:
    """The STRIPS widest intervals of rows that are flagged or wider than ± 1 %."""
    doubtful = [
        row for row in rows
        if has_time(row)
        and (row["flags"] or arm_pct(row) > NOISY_PCT)
    ]  # fmt: skip
    return sorted(doubtful, key=arm_pct, reverse=True)[:STRIPS]


def arm_pct(row: Row) -> float:
    """The longer arm of the median's interval in %; 0 where there is none."""
    mid = row["median_us"]
    arm = max(row["hi_us"] - mid, mid - row["lo_us"]) / mid * 100 if mid else math.nan
    return float(arm) if math.isfinite(arm) else 0.0


def strips(rows: Sequence[Row], look: Mapping[str, Look], where: str) -> Iterator[Figure]:
    """The raw samples of noisy cases, in the order of measurement."""
    chosen = noisy(rows)
    several = len(chosen) > _SIDE
    for first in range(0, len(chosen), _SIDE):
        part = chosen[first : first + _SIDE]
        which = f" ({first + 1} to {first + len(part)})" if several else ""
        yield _strips(part, look, f"{where}: raw samples of noisy measurements{which}")


def _strips(chosen: Sequence[Row], look: Mapping[str, Look], title: str) -> Figure:
    height, cell = 86 * len(chosen) + 24, 86
    with canvas(height, left=46, right=10, top=2, bottom=22) as (figure, axes):
        axes.set_axis_off()
        for number, row in enumerate(chosen):
            at = 1 - (cell * number + 30) / height
            box = (46 / WIDTH, at - (cell - 38) / height, 1 - 56 / WIDTH, (cell - 38) / height)
            _strip(figure.add_axes(box), row, look[str(row["provider"])])
        figure.text(46 / WIDTH, 6 / height, "samples in their order, % from the median",
                    fontsize=SMALL, color=code("--muted"))  # fmt: skip
        widest = chosen[0]
        message = (
            f"The widest interval is ± {percent(arm_pct(widest))}: {text(widest['provider'])} on "
            f"{text(widest['case'])}."
        )
        return Figure(
            title,
            message,
            "Every sample that was taken, process by process, none removed; the band is the "
            "median's 95 % interval. Chosen: flagged, or an interval wider than "
            f"± {NOISY_PCT:g} %; the {STRIPS} widest.",
            metrics.kinds_of("median_us"),
            svg(figure, title, message),
        )


def _strip(axes: "Axes", row: Row, look: Look) -> None:
    timings = metrics.timings(row["record"])
    samples = [ns for timing in timings for block in timing.blocks_ns for ns in block]
    mid = metrics.median_ns(row["record"]) or 1.0
    raw = sorted(samples)[len(samples) // 2]
    deviations = [(ns - raw) / mid * 100 for ns in samples]
    band = [(row[name] - row["median_us"]) / row["median_us"] * 100 for name in ("lo_us", "hi_us")]
    axes.axhspan(*band, color=code("--band"), linewidth=0, zorder=0.5)
    axes.axhline(0, color=code("--muted"), linewidth=0.8)
    at = chain.from_iterable((n, n, math.nan) for n in range(len(deviations)))
    ends = chain.from_iterable((0, value, math.nan) for value in deviations)
    axes.plot([*at], [*ends], color=look.colour, linewidth=0.9)
    axes.set_xlim(-1, len(deviations))
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    reach = max(map(abs, [*deviations, *band])) or 1.0
    axes.set_yticks(
        [min(deviations), max(deviations)] if reach and min(deviations) < max(deviations) else [0]
    )
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.2g}%")
    axes.tick_params(length=0)
    axes.grid(visible=False)
    flags = f" · {text(row['flags'])}" if row["flags"] else ""
    case = short(row["case"], 34)
    title = f"{short(row['provider'], 22)} · {case} · ±{percent(arm_pct(row))}{short(flags, 26)}"
    axes.set_title(title, fontsize=SMALL, loc="left", x=-0.1, pad=9)
