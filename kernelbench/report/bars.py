"""Bars case by case, of one family in one run: speedups, and measured over modelled bytes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any

from kernelbench.metrics import audit, kinds_of
from kernelbench.report.figures import (
    SMALL,
    WIDTH,
    Figure,
    Look,
    Row,
    box,
    canvas,
    code,
    log_axes,
    parts,
    short,
    svg,
    text,
)
from kernelbench.report.means import FEWEST, common, within_noise
from kernelbench.report.tables import figures as digits
from kernelbench.spec import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 40  # of bars in one figure at most; the rest goes on in the next
_ROW, _HEAD, _FOOT = 15, 24, 34


def name_of(case: str, mode: str, dtype: str) -> str:
    """A case's id without the dtype and mode, which the figure's title has."""
    return case.removesuffix(f"-{dtype}-{mode}") or case


def margin(names: Sequence[str], most: int = 22) -> float:
    """Room for the names left of the bars."""
    return 5.4 * max((len(short(name, most)) for name in names), default=0) + 14


def speedups(
    rows: Sequence[Row], look: Mapping[str, Look], where: str, baseline: str
) -> Iterator[Figure]:
    """Bars from the baseline at 1, a figure a mode and dtype, split where there are many.

    baseline: what 1 is, in words.
    """
    for (mode, dtype), part in parts(rows, "mode", "dtype").items():
        if all(math.isnan(row["speedup"]) for row in part):
            continue
        chunks = _chunks(list(parts(part, "case").values()))
        for number, chunk in enumerate(chunks, 1):
            of = f" ({number} of {len(chunks)})" if len(chunks) > 1 else ""
            yield _speedups(chunk, look, f"{where} {mode} {dtype}: speedup{of}", baseline)


def _chunks(cases: Sequence[list[Row]]) -> list[list[list[Row]]]:
    """Split the cases into the fewest figures, of about equal length."""
    total = sum(map(len, cases))
    most = total / math.ceil(total / ROWS)
    chunks: list[list[list[Row]]] = [[]]
    placed = 0
    for case in cases:
        if chunks[-1] and placed + len(case) / 2 > most * len(chunks):
            chunks.append([])
        chunks[-1].append(case)
        placed += len(case)
    return chunks


def _has_bar(row: Row) -> bool:
    """Whether a row has a speedup with an interval: not the row that others are compared with."""
    return math.isfinite(row["speedup"]) and math.isfinite(row["speedup_lo"])


def _speedups(
    cases: Sequence[Sequence[Row]], look: Mapping[str, Look], title: str, baseline: str
) -> Figure:
    rows = [row for row in chain(*cases) if _has_bar(row)]
    extra_lines = sum(bool(_missing_by_reason(case)) for case in cases)
    height = _ROW * (len(rows) + extra_lines) + _HEAD * len(cases) + _FOOT
    left = margin([row["provider"] for row in rows])
    with canvas(height, left=left, right=52, top=2, bottom=32) as (figure, axes):
        axes.set_ylim(height - _FOOT, 0)
        log_axes(axes, "x", _ends(rows), lambda value: f"{value:.3g}×", base=2)
        _bare(axes)
        y, whiskers = 0.0, list[tuple[float, float, float]]()
        for case in cases:
            y = _case(axes, case, look, y, whiskers)
        xs = chain.from_iterable((lo, hi, math.nan) for lo, hi, _ in whiskers)
        ys = chain.from_iterable((at, at, math.nan) for _, _, at in whiskers)
        axes.plot([*xs], [*ys], color=code("--ink"), linewidth=1.1)
        xs = chain.from_iterable((v, v, math.nan) for *ends, _ in whiskers for v in ends)
        ys = chain.from_iterable((at - 3, at + 3, math.nan) * 2 for _, _, at in whiskers)
        axes.plot([*xs], [*ys], color=code("--ink"), linewidth=1.1)
        axes.set_xlabel(f"× as fast as {short(baseline, 40)}")
        message = _speedup_message(rows, baseline)
        return Figure(
            title,
            message,
            "Bars start at 1, the baseline, whose time is at the right of the case; whiskers are "
            "95 % intervals. The shaded band is the job's noise floor: a difference inside it is "
            "printed as ~. Hatched: approximate.",
            kinds_of("median_us", "speedup"),
            svg(figure, title, message),
        )


def _ends(rows: Sequence[Row]) -> tuple[float, float]:
    """The ends of the axis: every bar, whisker and noise band fits."""
    noise = [row["noise_pct"] / 100 for row in rows if math.isfinite(row["noise_pct"])]
    widest = min(max(noise, default=0), 0.9)
    ends = [row[n] for row in rows for n in ("speedup", "speedup_lo", "speedup_hi") if row[n] > 0]
    return min([1 - widest, *ends]) / 1.12, max([1 + widest, 1.3, *ends]) * 1.08


def _case(
    axes: "Axes",
    case: Sequence[Row],
    look: Mapping[str, Look],
    y: float,
    whiskers: list[tuple[float, float, float]],
) -> float:
    """Draw a case from y on and return where it ends; collect its whiskers for one path."""
    _heading(axes, case[0], y + _HEAD - 8, _yardstick(case))
    y += _HEAD
    bars = [row for row in case if _has_bar(row)]
    if bars:
        _band(axes, bars, y, len(bars) * _ROW)
    for row in bars:
        _bar(axes, row, look[str(row["provider"])], y + _ROW / 2)
        whiskers.append((row["speedup_lo"], row["speedup_hi"], y + _ROW / 2))
        y += _ROW
    if missing := _missing_by_reason(case):
        _at_left(axes, short(missing, 84), y + _ROW / 2, "--muted")
        y += _ROW
    return y


def _yardstick(case: Sequence[Row]) -> str:
    """The time of the row that the others are compared with."""
    times = [row["median_us"] for row in case if row["speedup"] == 1 and not _has_bar(row)]
    return f"{digits(times[0], 4)} µs" if times else ""


def _missing_by_reason(case: Sequence[Row]) -> str:
    """`skipped: naive, sage1; failed: liger`: the providers without a speedup, by reason."""
    by_reason: dict[str, list[str]] = {}
    for row in case:
        if not math.isfinite(row["speedup"]):
            why = str(row["status"]) if row["status"] != "ok" else "no speedup"
            by_reason.setdefault(why, []).append(text(row["provider"]))
    return "; ".join(f"{why}: {', '.join(names)}" for why, names in by_reason.items())


def _bare(axes: "Axes") -> None:
    """Remove the frame: names stand in place of the vertical axis."""
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_yticks([])
    axes.tick_params(length=0)


def _heading(axes: "Axes", row: Row, y: float, right: str = "") -> None:
    """Write the case's name above its rows, on a plain background."""
    case = name_of(str(row["case"]), str(row["mode"]), str(row["dtype"]))
    line = " · ".join(filter(None, (text(row.get("label", "")), text(case))))
    axes.axhspan(y - _HEAD + 8, y + 6, color=code("--paper"), linewidth=0, zorder=0.6)
    _at_left(axes, short(line, 74 - len(right)), y, "--ink", weight="bold")
    if right:
        _at_right(axes, right, y, "--muted")


def _across(axes: "Axes") -> Any:
    """A transform: x over the whole figure, y in the units of the axes."""
    from matplotlib.transforms import blended_transform_factory

    return blended_transform_factory(axes.figure.transFigure, axes.transData)


def _band(axes: "Axes", case: Sequence[Row], y: float, height: float) -> None:
    """Draw the noise floor, and the line at 1 that bars start from."""
    noise = [row["noise_pct"] / 100 for row in case if math.isfinite(row["noise_pct"])]
    if noise:
        low = max(1 - noise[0], 0.1)
        style = {"color": code("--band"), "linewidth": 0, "zorder": 0.5}
        box(axes, (low, 1 + noise[0]), y + height / 2, height, **style)
    axes.plot([1, 1], [y, y + height], color=code("--muted"), linewidth=1)


def _bar(axes: "Axes", row: Row, look: Look, y: float) -> None:
    _name(axes, row, y)
    box(
        axes,
        (1, row["speedup"]),
        y,
        _ROW - 5,
        facecolor=code("--paper") if look.hatch else look.colour,
        edgecolor=look.colour,
        hatch=look.hatch or None,
        linewidth=1 if look.hatch else 0,
    )
    _at_right(axes, "~" if within_noise(row) else f"{digits(row['speedup'])} ×", y)


def _name(axes: "Axes", row: Row, y: float) -> None:
    ours = row["role"] == "triton_fused"
    _at_left(axes, short(row["provider"], 22), y, "--ink" if ours else "--muted")


def _at_left(axes: "Axes", label: str, y: float, colour: str, weight: str = "normal") -> None:
    axes.text(
        6 / WIDTH, y, label, transform=_across(axes), va="center", fontsize=SMALL,
        color=code(colour), weight=weight,
    )  # fmt: skip


def _at_right(axes: "Axes", label: str, y: float, colour: str = "--ink") -> None:
    axes.text(
        1 - 6 / WIDTH, y, label, transform=_across(axes), va="center", ha="right", fontsize=SMALL,
        color=code(colour),
    )  # fmt: skip


def _speedup_message(rows: Sequence[Row], baseline: str) -> str:
    """`triton_fused 13.4 × (1.02 to 22), …, over the 12 cases that all ran`."""
    good = common([r for r in rows if math.isfinite(r["speedup"]) and r["speedup"] > 0])
    by_provider: dict[str, list[float]] = {}
    for row in good:
        by_provider.setdefault(text(row["provider"]), []).append(row["speedup"])
    cases = len({(row["run_id"], row["case"]) for row in good})
    if cases < FEWEST:
        return f"Against {text(baseline)}; no mean, which would be over cases that all ran."
    means = [
        f"{name} {digits(geometric_mean(values))} × ({digits(min(values))} to "
        f"{digits(max(values))})"
        for name, values in by_provider.items()
        if name != baseline
    ]
    return (
        f"Against {text(baseline)}, geometric mean over the {cases} cases that all ran: "
        f"{', '.join(means) or 'nothing else'}."
    )


def bytes_moved(measured: Sequence[Measured], look: Mapping[str, Look], where: str) -> list[Figure]:
    """Figures of DRAM reads counted by ncu over modelled ones, a row a provider."""
    rows = [row for row in map(audit.row, measured) if math.isfinite(row["model_error_pct"])]
    cases = list(parts(rows, "case").values())
    chunks = _chunks(cases) if cases else []
    figures = []
    for number, chunk in enumerate(chunks, 1):
        of = f" ({number} of {len(chunks)})" if len(chunks) > 1 else ""
        figures.append(_bytes(chunk, look, f"{where}: HBM reads, measured over modelled{of}"))
    return figures


def _bytes(cases: Sequence[Sequence[Row]], look: Mapping[str, Look], title: str) -> Figure:
    rows = list(chain(*cases))
    ratios = [1 + row["model_error_pct"] / 100 for row in rows]
    height = _ROW * len(rows) + _HEAD * len(cases) + _FOOT
    left = margin([row["provider"] for row in rows])
    with canvas(height, left=left, right=104, top=2, bottom=32) as (figure, axes):
        axes.set_ylim(height - _FOOT, 0)
        reach = max(0.1, *(abs(ratio - 1) for ratio in ratios)) * 1.1
        left_end = min(1 - 0.1 * reach, *(r - 0.1 * reach for r in ratios))
        axes.set_xlim(left_end, 1 + reach)
        _bare(axes)
        share = audit.AUDIT_PCT / 100
        ends = max(1 - share, left_end), 1 + share  # nothing clips it
        axes.axvspan(*ends, color=code("--band"), linewidth=0, zorder=0.5)
        axes.axvline(1, color=code("--muted"), linewidth=1, zorder=0.55)
        y = 0.0
        for case in cases:
            _heading(axes, case[0], y + _HEAD - 8, f"{case[0]['mode']} {case[0]['dtype']}")
            y += _HEAD
            for row in case:
                _ratio(axes, row, look[str(row["provider"])], y + _ROW / 2)
                y += _ROW
        axes.set_xlabel("measured / modelled reads; right: MiB measured / modelled")
        off = [f"{row['provider']} on {row['case']}" for row in rows if row["audit"] == "off"]
        judged = sum(row["audit"] in ("ok", "off") for row in rows)
        message = f"{judged} of {len(rows)} can be audited; " + (
            f"the model misses {len(off)}: {', '.join(off)}." if off else "the model holds."
        )
        return Figure(
            title,
            message,
            "Reads that ncu counted, over those that the provider's model says. Filled: audited, "
            f"within {audit.AUDIT_PCT:.0f} % (shaded) or ✗ not; hollow: not audited, since no "
            "tensor is 4 × the L2.",
            kinds_of("dram_read_mib", "model_read_mib"),
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
