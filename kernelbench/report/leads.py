"""The page's first figures, case by case on linear axes: × best other around 1, and % of ceiling
with the best other's beside it. Both have the same rows, to be read side by side.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from kernelbench.metrics import kinds_of
from kernelbench.report.figures import SMALL, Figure, Look, Row, box, canvas, code, short, svg, text
from kernelbench.report.means import FEWEST, counts, over_what, within_noise
from kernelbench.report.panels import Panel, with_number
from kernelbench.report.tables import figures as digits
from kernelbench.report.tables import fold

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 40  # cases in one figure at most; the rest goes on in the next
WIDTH = 380  # of a figure, in its own units: px on a phone
NAME, OTHER = 24, 12  # characters in a line of a case's name; of the best other's
BEST, CEILING = "× best other", "% of ceiling"
_LETTER, _ROW, _LINE, _HEAD, _FOOT = 5.3, 15.0, 10.5, 18.0, 20.0
_VALUE, _RIGHT = 34.0, 112.0  # right of the axis: where values end, and the whole width
_LEAST = 0.05  # the least reach of an axis from 1: less would magnify noise
_STEPS = tuple(m * 10.0**e for e in range(-2, 7) for m in (1, 2, 5))


@dataclass(frozen=True)
class Lead:
    """A panel's figures, each with its name; about: how many cases, and of which run."""

    name: str
    about: str
    figures: Sequence[tuple[str, Figure]]


class Place(NamedTuple):
    """The place of a case in a figure: the middle of its row, and its height."""

    row: Row
    name: str
    y: float
    height: float


def leads(panel: Panel, look: Mapping[str, Look]) -> Iterator[Lead]:
    """One lead of a panel with speeds, more where it has many cases; none for a single case, since
    the verdict has it."""
    speedy = with_number(panel.ours, "speedup_best_lo") or with_number(panel.ours, "sol_pct")
    if not speedy or len(panel.ours) < FEWEST:
        return
    count = math.ceil(len(panel.ours) / ROWS)
    most = math.ceil(len(panel.ours) / count)
    for number in range(count):
        rows = panel.ours[number * most : (number + 1) * most]
        of = f" ({number + 1} of {count})" if count > 1 else ""
        where = f"{panel.name}{f' · {panel.run}' if panel.run else ''}"
        places = _places(rows, panel.mode)
        yield Lead(
            f"{panel.family} {panel.mode}",
            _about(panel, rows, of),
            [
                (name, draw(panel, places, look, f"{where}: {name}{of}"))
                for name, column, draw in (
                    (BEST, "speedup_best_lo", _best),
                    (CEILING, "sol_pct", _ceiling),
                )
                if with_number(rows, column)
            ],
        )


def caption(name: str, rows: Sequence[Row]) -> str:
    """How to read such a figure of these rows, and what its intervals are over."""
    if name == CEILING:
        return (
            "% of ceiling: the time that this machine's measured limits allow for the modelled "
            "bytes and flops, over the measured time. Filled: ours; hollow: the best other, which "
            "the figure before names."
        )
    return (
        "× best other: bars start at 1, the fastest right provider of the same accuracy that is "
        "not ours, named at the right; right of 1 ours is faster. Whiskers: 95 % intervals, "
        f"{over_what(rows)}. Shaded: the job's noise floor; a difference inside it, or an interval "
        "that holds 1, is printed as ~. !: flagged. Hatched: approximate."
    )


def _about(panel: Panel, rows: Sequence[Row], of: str) -> str:
    cases = f"{len(rows)} case{'s' * (len(rows) != 1)}{of}"
    dtype = _usual(rows) if len({row["dtype"] for row in rows}) > 1 else ""
    unsaid = f"{text(dtype)} if not said" if dtype else ""
    return ", ".join(filter(None, (panel.provider, cases, unsaid, panel.run)))


def _usual(rows: Sequence[Row]) -> str:
    """The most common dtype, which names leave out."""
    return Counter(str(row["dtype"]) for row in rows).most_common(1)[0][0]


def _places(rows: Sequence[Row], mode: str) -> list[Place]:
    """Stack the cases; their names leave out the mode and the usual dtype."""
    usual = _usual(rows)
    places, y = [], _HEAD
    for row in rows:
        case = text(row["case"]).removesuffix(f"-{mode}").removesuffix(f"-{usual}")
        lines = fold(short(case, 3 * NAME), NAME)
        height = _ROW + _LINE * lines.count("\n")
        places.append(Place(row, lines, y + height / 2, height))
        y += height
    return places


@contextmanager
def _rows(places: Sequence[Place], heads: tuple[str, str]) -> "Iterator[tuple[Any, Axes]]":
    """A figure with the names of its rows, and two columns of text at their right."""
    names = [line for place in places for line in place.name.split("\n")]
    left = _LETTER * max(len(name) for name in names) + 10
    height = _HEAD + sum(place.height for place in places) + _FOOT
    margins = {"left": left, "right": _RIGHT, "top": 0.0, "bottom": _FOOT}
    with canvas(height, width=WIDTH, **margins) as (figure, axes):
        axes.set_ylim(height - _FOOT, 0)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.set_yticks([])
        axes.tick_params(length=0, pad=3)
        _two_columns(axes, heads, _HEAD / 2, "--muted")
        for place in places:
            _text(axes, 0, place.y, place.name, "--ink", linespacing=1.05)
        yield figure, axes


def _text(axes: "Axes", x: float, y: float, label: str, colour: str, **more: Any) -> None:
    """Write a text. x: in the figure's units from its left, y: in those of the axes."""
    from matplotlib.transforms import blended_transform_factory

    across = blended_transform_factory(axes.figure.transFigure, axes.transData)
    axes.text(x / WIDTH, y, label, transform=across, va="center", fontsize=SMALL,
              color=code(colour), **more)  # fmt: skip


def _two_columns(axes: "Axes", texts: tuple[str, str], y: float, colour: str = "--ink") -> None:
    """Write a value and its name right of the axis."""
    _text(axes, WIDTH - _RIGHT + _VALUE, y, texts[0], colour, ha="right")
    _text(axes, WIDTH - _RIGHT + _VALUE + 8, y, texts[1], "--muted")


def _missing(axes: "Axes", place: Place, absent: str) -> None:
    """Write why a row is empty."""
    status = str(place.row["status"])
    bad = place.row["record"].status.bad
    label = f"✗ {status}" if bad else absent if status == "ok" else status
    _text(axes, WIDTH - _RIGHT + 8, place.y, label, "--bad" if bad else "--muted")


def _mark(row: Row) -> str:
    return " !" if row["flags"] else ""


def _best(panel: Panel, places: Sequence[Place], look: Mapping[str, Look], title: str) -> Figure:
    compared = with_number([place.row for place in places], "speedup_best_lo")
    with _rows(places, ("×", "best other")) as (figure, axes):
        low, high = _ends(axes, with_number(panel.ours, "speedup_best_lo"))
        axes.set_xlim(low, high)
        bars = [place for place in places if math.isfinite(place.row["speedup_best_lo"])]
        _noise(axes, bars, low)
        axes.axvline(1, color=code("--muted"), linewidth=1, ymax=1 - _HEAD / axes.get_ylim()[0])
        for place in places:
            if place in bars:
                _bar(axes, place, look[str(place.row["provider"])])
            else:
                _missing(axes, place, "no opponent")
        _whiskers(axes, bars)
        message = _outcome_message(compared)
        return Figure(
            title,
            message,
            caption(BEST, compared),
            kinds_of("speedup_best", "noise_pct"),
            svg(figure, title, message),
        )


def _ends(axes: "Axes", rows: Sequence[Row]) -> tuple[float, float]:
    """Ends as far left of 1 as right, but not below 0; and ticks, one of them at 1.

    rows: a panel's, so that all its figures have one axis.
    """
    names = ("speedup_best", "speedup_best_lo", "speedup_best_hi")
    distances = [abs(row[name] - 1) for row in rows for name in names]
    noise = [row["noise_pct"] / 100 for row in with_number(rows, "noise_pct")]
    reach = max(_LEAST, *distances, *noise) * 1.06
    step = next((step for step in _STEPS if step * 2.6 >= reach), reach)
    low, high = max(1 - reach, 0.0), 1 + reach
    ticks = [1 + step * n for n in range(-2, 3) if low <= 1 + step * n <= high]
    axes.set_xticks(ticks, [f"{tick:.4g}" for tick in ticks])
    return low, high


def _noise(axes: "Axes", places: Sequence[Place], low: float) -> None:
    for place in places:
        noise = place.row["noise_pct"] / 100
        if math.isfinite(noise):
            ends = max(1 - noise, low), 1 + noise
            style = {"color": code("--band"), "linewidth": 0, "zorder": 0.6}
            box(axes, ends, place.y, place.height, **style)


def _bar(axes: "Axes", place: Place, look: Look) -> None:
    row = place.row
    box(
        axes,
        (1, row["speedup_best"]),
        place.y,
        8,
        facecolor=code("--paper") if look.hatch else look.colour,
        edgecolor=look.colour,
        hatch=look.hatch or None,
        linewidth=1 if look.hatch else 0,
    )
    same = within_noise(row, "speedup_best")
    value = ("~" if same else digits(row["speedup_best"], 4)) + _mark(row)
    _two_columns(axes, (value, short(row["best_other"], OTHER)), place.y)


def _whiskers(axes: "Axes", places: Sequence[Place]) -> None:
    ends = [(p.row["speedup_best_lo"], p.row["speedup_best_hi"], p.y) for p in places]
    lines = [((lo, y), (hi, y)) for lo, hi, y in ends]
    lines += [((x, y - 2.5), (x, y + 2.5)) for *both, y in ends for x in both]
    _lines(axes, lines, code("--ink"), 1.1)


def _lines(axes: "Axes", lines: Iterable[Any], colour: str, width: float) -> None:
    """Draw many lines as one path."""
    points = [*chain.from_iterable((*line, (math.nan, math.nan)) for line in lines)]
    axes.plot(*zip(*points, strict=True), color=colour, linewidth=width)


def _outcome_message(rows: Sequence[Row]) -> str:
    """`10 faster, 2 within noise; from 0.909 × quack on … to 1.05 × liger on …`."""
    outcomes = ", ".join(f"{count} {what}" for what, count in counts(rows).items() if count)
    low, high = (end(rows, key=lambda row: row["speedup_best"]) for end in (min, max))
    ends = " to ".join(
        f"{digits(row['speedup_best'])} × {text(row['best_other'])} on {text(row['case'])}"
        for row in (low, high)
    )
    return f"Of {len(rows)} cases: {outcomes}. From {ends}."


def _ceiling(panel: Panel, places: Sequence[Place], look: Mapping[str, Look], title: str) -> Figure:
    ours = {p.y: p.row for p in places if math.isfinite(p.row["sol_pct"])}
    best = {y: other for y, row in ours.items() if (other := panel.best_other(row))}
    theirs = {y: other for y, other in best.items() if math.isfinite(other["sol_pct"])}
    with _rows(places, ("ours", "best other")) as (figure, axes):
        most = max(row["sol_pct"] for row in (*ours.values(), *theirs.values()))
        axes.set_xlim(0, max(100, most) * 1.02)
        axes.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
        axes.axvline(100, color=code("--ink"), linewidth=1, ymax=1 - _HEAD / axes.get_ylim()[0])
        _gaps(axes, ours, theirs)
        _points(axes, theirs, look, hollow=True)
        _points(axes, ours, look, hollow=False)
        for place in places:
            if place.y in ours:
                other = theirs.get(place.y)
                label = digits(other["sol_pct"]) if other else "none"
                _two_columns(axes, (digits(place.row["sol_pct"]), label), place.y)
            else:
                _missing(axes, place, "not known")
        message = _ceiling_message([*ours.values()], [*theirs.values()])
        return Figure(
            title,
            message,
            caption(CEILING, [*ours.values()]),
            kinds_of("sol_pct"),
            svg(figure, title, message),
        )


def _gaps(axes: "Axes", ours: Mapping[float, Row], theirs: Mapping[float, Row]) -> None:
    """Draw lines from the best other to ours."""
    lines = [((ours[y]["sol_pct"], y), (row["sol_pct"], y)) for y, row in theirs.items()]
    if lines:
        _lines(axes, lines, code("--muted"), 1)


def _points(
    axes: "Axes", rows: Mapping[float, Row], look: Mapping[str, Look], *, hollow: bool
) -> None:
    """Draw rows at their heights."""
    paper, by_provider = code("--paper"), dict[str, list[tuple[float, float]]]()
    for y, row in rows.items():
        by_provider.setdefault(str(row["provider"]), []).append((row["sol_pct"], y))
    for name, points in by_provider.items():
        colour = look[name].colour
        axes.plot(
            *zip(*points, strict=True),
            linestyle="none",
            marker=look[name].marker,
            markersize=5 if hollow else 6,
            markerfacecolor=paper if hollow else colour,
            markeredgecolor=colour if hollow else paper,
            markeredgewidth=1 if hollow else 0.5,
        )


def _ceiling_message(ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    """The medians, and the case of ours farthest from the limit."""
    least = min(ours, key=lambda row: row["sol_pct"])
    mid = digits(median(row["sol_pct"] for row in ours))
    beside = (
        f", the best other's {digits(median(o['sol_pct'] for o in theirs))} %" if theirs else ""
    )
    return (
        f"Median of ours {mid} %{beside}. Least of ours: {digits(least['sol_pct'])} % on "
        f"{text(least['case'])}, bound by {text(least['bound'])}."
    )
