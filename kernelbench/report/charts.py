"""Figures of one family in one run: speedups, bytes, accuracy, and the samples of noisy cases."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any

from kernelbench import audit, metrics
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
    scientific,
    short,
    svg,
    text,
)
from kernelbench.report.tables import figures as digits
from kernelbench.report.tables import percent, within_noise
from kernelbench.spec import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 44  # of bars in one figure; what does not fit goes on in the next
NOISY_PCT = 1.0
STRIPS = 6
_ROW, _HEAD = 15, 23


def name_of(case: str, mode: str, dtype: str) -> str:
    """A case's id without what the figure's title says of all its cases."""
    return case.removesuffix(f"-{dtype}-{mode}") or case


def parts(rows: Sequence[Row], *names: str) -> dict[tuple[str, ...], list[Row]]:
    """Rows by the values of these columns, in the order of the rows."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(str(row[name]) for name in names), []).append(row)
    return found


def margin(names: Sequence[str], most: int = 22) -> float:
    """Room for the names left of the bars."""
    return 5.4 * max(len(short(name, most)) for name in names) + 14


def speedups(
    rows: Sequence[Row], look: Mapping[str, Look], where: str, baseline: str
) -> Iterator[Figure]:
    """Bars from the baseline at 1, a figure a mode and dtype, split where there are many.

    baseline: what 1 is, in words.
    """
    for (mode, dtype), part in parts(rows, "mode", "dtype").items():
        if all(math.isnan(row["speedup"]) for row in part):
            continue
        chunks = list(_chunks(list(parts(part, "case").values())))
        for number, chunk in enumerate(chunks, 1):
            of = f" ({number} of {len(chunks)})" if len(chunks) > 1 else ""
            yield _speedups(chunk, look, f"{where} {mode} {dtype}: speedup{of}", baseline)


def _chunks(cases: Sequence[list[Row]]) -> Iterator[list[list[Row]]]:
    chunk: list[list[Row]] = []
    for case in cases:
        if chunk and sum(map(len, chunk)) + len(case) > ROWS:
            yield chunk
            chunk = []
        chunk.append(case)
    yield chunk


def _speedups(
    cases: Sequence[Sequence[Row]], look: Mapping[str, Look], title: str, baseline: str
) -> Figure:
    rows = list(chain(*cases))
    height = _ROW * len(rows) + _HEAD * len(cases) + 34
    ends = [1.0, *(v for row in rows for n in ("speedup", "speedup_lo", "speedup_hi")
                   if math.isfinite(v := row[n]) and v > 0)]  # fmt: skip
    left = margin([row["provider"] for row in rows])
    with canvas(height, left=left, right=52, top=2, bottom=32) as (figure, axes):
        axes.set_ylim(height - 34, 0)
        log_axes(axes, "x", (min(ends) / 1.12, max(*ends, 1.3) * 1.08), lambda value: f"{value:.3g}×", base=2)
        _bare(axes)
        axes.axvline(1, color=code("--muted"), linewidth=1)
        y = 0.0
        for case in cases:
            _heading(axes, case[0], y + _HEAD - 8)
            y += _HEAD
            _band(axes, case, y)
            for row in case:
                _bar(axes, row, look[str(row["provider"])], y + _ROW / 2)
                y += _ROW
        axes.set_xlabel(f"× faster than {short(baseline, 40)}")
        message = _told(rows, baseline)
        return Figure(
            title,
            message,
            "Bars start at 1, the baseline; whiskers are 95 % intervals. The shaded band is the "
            "job's noise floor: a difference inside it is printed as ~. Hatched: approximate.",
            ("measured",),
            svg(figure, title, message),
        )


def _bare(axes: "Axes") -> None:
    """No frame: names stand where the vertical axis was."""
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_yticks([])
    axes.tick_params(length=0)


def _heading(axes: "Axes", row: Row, y: float) -> None:
    """The case above its rows: its label, and its id in a quieter voice."""
    case = name_of(str(row["case"]), str(row["mode"]), str(row["dtype"]))
    line = " · ".join(filter(None, (text(row.get("label", "")), text(case))))
    axes.text(
        6 / WIDTH, y, short(line, 74), transform=_across(axes), fontsize=SMALL, weight="bold"
    )


def _across(axes: "Axes") -> Any:
    """x over the whole figure, y in the units of the axes."""
    from matplotlib.transforms import blended_transform_factory

    return blended_transform_factory(axes.figure.transFigure, axes.transData)


def _band(axes: "Axes", case: Sequence[Row], y: float) -> None:
    noise = [row["noise_pct"] / 100 for row in case if math.isfinite(row["noise_pct"])]
    if noise:
        axes.fill_betweenx(
            [y, y + _ROW * len(case)],
            1 - min(noise[0], 0.9),
            1 + noise[0],
            color=code("--band"),
            linewidth=0,
            zorder=0.5,
        )


def _bar(axes: "Axes", row: Row, look: Look, y: float) -> None:
    _name(axes, row, y)
    value, lo, hi = (row[name] for name in ("speedup", "speedup_lo", "speedup_hi"))
    if not math.isfinite(value):
        said = str(row["status"]) if row["status"] != "ok" else "no speedup"
        axes.text(1, y, f" {said}", va="center", fontsize=SMALL, color=code("--muted"))
        return
    axes.barh(
        y,
        value - 1,
        left=1,
        height=_ROW - 5,
        facecolor=code("--paper") if look.hatch else look.colour,
        edgecolor=look.colour,
        hatch=look.hatch or None,
        linewidth=1,
    )
    if math.isfinite(lo):
        axes.plot([lo, hi], [y, y], color=code("--ink"), linewidth=1.1)
        for end in (lo, hi):
            axes.plot([end, end], [y - 3, y + 3], color=code("--ink"), linewidth=1.1)
    said = "~" if within_noise(row) else digits(value)
    _at_right(axes, f"{said} ×" if said != "~" else said, y)


def _name(axes: "Axes", row: Row, y: float) -> None:
    ours = row["role"] == "triton_fused"
    axes.text(
        6 / WIDTH,
        y,
        short(row["provider"], 22),
        transform=_across(axes),
        va="center",
        fontsize=SMALL,
        color=code("--ink" if ours else "--muted"),
    )


def _at_right(axes: "Axes", said: str, y: float) -> None:
    axes.text(
        1 - 6 / WIDTH, y, said, transform=_across(axes), va="center", ha="right", fontsize=SMALL
    )


def _told(rows: Sequence[Row], baseline: str) -> str:
    """`triton_fused is 13.4 × (1.02 to 22) as fast as eager over 12 cases; …`"""
    found: dict[str, list[float]] = {}
    for row in rows:
        if math.isfinite(row["speedup"]) and row["speedup"] > 0:
            found.setdefault(text(row["provider"]), []).append(row["speedup"])
    told = [
        f"{name} {digits(geometric_mean(values))} × ({digits(min(values))} to "
        f"{digits(max(values))}) over {len(values)} case{'s' * (len(values) != 1)}"
        for name, values in found.items()
        if name != baseline
    ]
    return f"Against {text(baseline)}, geometric mean: {'; '.join(told) or 'nothing else'}."


def bytes_moved(measured: Sequence[Measured], look: Mapping[str, Look], where: str) -> list[Figure]:
    """DRAM reads that ncu counted over those modelled, a row a provider."""
    rows = [row for row in map(audit.row, measured) if math.isfinite(row["model_error_pct"])]
    cases = list(parts(rows, "case").values())
    chunks = list(_chunks(cases)) if cases else []
    found = []
    for number, chunk in enumerate(chunks, 1):
        of = f" ({number} of {len(chunks)})" if len(chunks) > 1 else ""
        found.append(_bytes(chunk, look, f"{where}: HBM reads, measured over modelled{of}"))
    return found


def _bytes(cases: Sequence[Sequence[Row]], look: Mapping[str, Look], title: str) -> Figure:
    rows = list(chain(*cases))
    ratios = [1 + row["model_error_pct"] / 100 for row in rows]
    height = _ROW * len(rows) + _HEAD * len(cases) + 34
    left = margin([row["provider"] for row in rows])
    with canvas(height, left=left, right=104, top=2, bottom=32) as (figure, axes):
        axes.set_ylim(height - 34, 0)
        reach = max(0.1, *(abs(ratio - 1) for ratio in ratios)) * 1.1
        axes.set_xlim(min(1 - 0.1 * reach, *(r - 0.1 * reach for r in ratios)), 1 + reach)
        _bare(axes)
        share = audit.AUDIT_PCT / 100
        axes.axvspan(1 - share, 1 + share, color=code("--band"), linewidth=0, zorder=0.5)
        axes.axvline(1, color=code("--muted"), linewidth=1)
        y = 0.0
        for case in cases:
            _heading(axes, case[0], y + _HEAD - 8)
            y += _HEAD
            for row in case:
                _ratio(axes, row, look[str(row["provider"])], y + _ROW / 2)
                y += _ROW
        axes.set_xlabel("measured / modelled reads; right: MiB measured / modelled")
        off = [f"{row['provider']} on {row['case']}" for row in rows if row["audit"] == "off"]
        judged = sum(row["audit"] in ("ok", "off") for row in rows)
        message = (
            f"{judged} of {len(rows)} can be audited; "
            + (f"the model misses {len(off)}: {', '.join(off)}." if off else "the model holds.")
        )
        return Figure(
            title,
            message,
            "Reads that ncu counted, over those that the provider's model says. Filled: audited, "
            f"within {audit.AUDIT_PCT:.0f} % (shaded) or ✗ not; hollow: not audited, since no "
            "tensor is 4 × the L2.",
            ("measured", "modelled"),
            svg(figure, title, message),
        )


def _ratio(axes: "Axes", row: Row, look: Look, y: float) -> None:
    _name(axes, row, y)
    ratio = 1 + row["model_error_pct"] / 100
    filled = row["audit"] in ("ok", "off")
    axes.plot([1, ratio], [y, y], color=look.colour, linewidth=1.4)
    axes.plot(
        ratio,
        y,
        marker=look.marker,
        markersize=6,
        markeredgecolor=look.colour,
        markerfacecolor=look.colour if filled else code("--paper"),
    )
    amounts = f"{digits(row['dram_read_mib'], 4)} / {digits(row['model_read_mib'], 4)}"
    _at_right(axes, f"{amounts}{' ✗' if row['audit'] == 'off' else ''}", y)


def accuracy(rows: Sequence[Row], look: Mapping[str, Look], where: str) -> Iterator[Figure]:
    """Error against speed, a figure a mode and dtype; the front through providers' means."""
    good = [r for r in rows if r["speedup"] > 0 and 0 < r["error_rel"] < math.inf]
    for (mode, dtype), part in parts(good, "mode", "dtype").items():
        names = parts(part, "provider")
        if len(names) < 2:
            continue
        title = f"{where} {mode} {dtype}: error against speed"
        means = {
            name: (
                geometric_mean([row["speedup"] for row in mine]),
                geometric_mean([row["error_rel"] for row in mine]),
            )
            for (name,), mine in names.items()
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
        every = list(chain(*names.values()))
        speeds, errors = ([row[column] for row in every] for column in ("speedup", "error_rel"))
        log_axes(axes, "x", around(speeds, 1.15), lambda value: f"{value:.3g}×", base=2)
        log_axes(axes, "y", around(errors, 2), scientific)
        axes.set_xlabel("speedup over the baseline → faster")
        axes.set_ylabel("relative error ↓ better")
        legend(axes, 3)
        message = f"No provider is both faster and more accurate than: {', '.join(front)}."
        return Figure(
            title,
            message,
            "Error against the fp64 oracle. Small: single cases; large: the geometric mean of the "
            "cases that a provider ran (number in brackets); dashed: the front of these means.",
            ("measured",),
            svg(figure, title, message),
        )


def _front(means: Mapping[str, tuple[float, float]]) -> list[str]:
    """Those that no other beats in both, from the slowest to the fastest."""
    order = sorted(means, key=lambda name: (-means[name][0], means[name][1]))
    front, least = list[str](), math.inf
    for name in order:
        if means[name][1] < least:
            front.append(name)
            least = means[name][1]
    return front[::-1]


def noisy(rows: Sequence[Row]) -> list[Row]:
    """Those with the widest intervals of what is flagged or wider than ± 1 %."""
    found = [
        row for row in rows
        if row["timer"] == "gated" and row["status"] == "ok"
        and (row["flags"] or arm_pct(row) > NOISY_PCT)
    ]  # fmt: skip
    return sorted(found, key=arm_pct, reverse=True)[:STRIPS]


def arm_pct(row: Row) -> float:
    """The longer arm of the median's interval in %; 0 where there is none."""
    mid = row["median_us"]
    arm = max(row["hi_us"] - mid, mid - row["lo_us"]) / mid * 100 if mid else math.nan
    return float(arm) if math.isfinite(arm) else 0.0


def strips(rows: Sequence[Row], look: Mapping[str, Look], where: str) -> list[Figure]:
    """The raw samples, in their order, of the cases that are noisy."""
    chosen = noisy(rows)
    if not chosen:
        return []
    title = f"{where}: raw samples of {len(chosen)} noisy measurements"
    height, cell = 80 * len(chosen) + 34, 80
    with canvas(height, left=46, right=10, top=2, bottom=32) as (figure, axes):
        axes.set_axis_off()
        for number, row in enumerate(chosen):
            at = 1 - (2 + cell * number + 24) / height
            box = (46 / WIDTH, at - (cell - 34) / height, 1 - 56 / WIDTH, (cell - 34) / height)
            _strip(figure.add_axes(box), row, look[str(row["provider"])])
        figure.text(46 / WIDTH, 10 / height, "samples in their order, % from the median",
                    fontsize=SMALL, color=code("--muted"))  # fmt: skip
        widest = chosen[0]
        message = (
            f"The widest interval is ± {percent(arm_pct(widest))}: {widest['provider']} on "
            f"{widest['case']}."
        )
        return [
            Figure(
                title,
                message,
                "Every sample that was taken, none removed; the band is the median's 95 % "
                f"interval. Chosen: flagged, or an interval wider than ± {NOISY_PCT:g} %; the "
                f"{STRIPS} widest.",
                ("measured",),
                svg(figure, title, message),
            )
        ]


def _strip(axes: "Axes", row: Row, look: Look) -> None:
    samples = [ns for block in row["record"].timing.blocks_ns for ns in block]
    mid = metrics.median_ns(row["record"]) or 1.0
    raw = sorted(samples)[len(samples) // 2]
    off = [(ns - raw) / mid * 100 for ns in samples]
    band = [(row[name] - row["median_us"]) / row["median_us"] * 100 for name in ("lo_us", "hi_us")]
    axes.axhspan(*band, color=code("--band"), linewidth=0, zorder=0.5)
    axes.axhline(0, color=code("--muted"), linewidth=0.8)
    at = chain.from_iterable((n, n, math.nan) for n in range(len(off)))
    ends = chain.from_iterable((0, value, math.nan) for value in off)
    axes.plot([*at], [*ends], color=look.colour, linewidth=0.9)
    axes.set_xlim(-1, len(off))
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    reach = max(map(abs, [*off, *band])) or 1.0
    axes.set_yticks([min(off), max(off)] if reach and min(off) < max(off) else [0])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.2g}%")
    axes.tick_params(length=0)
    axes.grid(visible=False)
    flags = f" · {text(row['flags'])}" if row["flags"] else ""
    case = short(row["case"], 34)
    said = f"{short(row['provider'], 22)} · {case} · ±{percent(arm_pct(row))}{short(flags, 26)}"
    axes.set_title(said, fontsize=SMALL, loc="left", x=-0.09, pad=4)

