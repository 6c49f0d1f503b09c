"""The canvas of the page's figures: drawn by matplotlib, coloured by CSS, described in a sentence.

A figure becomes inline SVG. Its colours are names, which page.css gives a value for light and for
dark; its text stays text, in the page's own font; the same records give the same bytes.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from itertools import chain
from typing import TYPE_CHECKING, Any

from kernelbench.spec import KernelbenchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Row = Mapping[str, Any]

WIDTH = 460  # of a figure, in its own units; about px on a phone
TEXT, SMALL = 10.5, 9.5
HUES = {
    "baseline": ("--base",),
    "torch_fused": ("--torch-1", "--torch-2", "--torch-3"),
    "triton_fused": ("--ours-1", "--ours-2", "--ours-3"),
    "ablation": ("--part-1", "--part-2", "--part-3"),
    "peer": ("--peer-1", "--peer-2", "--peer-3", "--peer-4"),
}  # of each role
INKS = ("--ink", "--muted", "--rule", "--band", "--paper", "--bad")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h", "*")
_CODES = {
    name: f"#a1{number:04x}" for number, name in enumerate((*chain(*HUES.values()), *INKS), 1)
}
_NAMES = {code: name for name, code in _CODES.items()}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold a $
    "path.simplify": False,
    "font.size": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _CODES["--rule"],
    "axes.labelcolor": _CODES["--muted"],
    "axes.labelsize": SMALL,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _CODES["--rule"],
    "grid.linewidth": 0.6,
    "hatch.linewidth": 1.2,
    "text.color": _CODES["--ink"],
    "xtick.color": _CODES["--rule"],
    "ytick.color": _CODES["--rule"],
    "xtick.labelcolor": _CODES["--muted"],
    "ytick.labelcolor": _CODES["--muted"],
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
}


@dataclass(frozen=True)
class Figure:
    """message: what it shows, in words, for screen readers; kinds: of its numbers."""

    title: str
    message: str
    caption: str
    kinds: tuple[str, ...]
    svg: str


@dataclass(frozen=True)
class Look:
    """How a provider is drawn in all figures of its family: never distinguished by colour alone."""

    colour: str
    marker: str
    hatch: str = ""


def code(name: str) -> str:
    """The colour to draw with for a name of page.css, as `--ink`."""
    return _CODES[name]


def require() -> None:
    """Raise KernelbenchError, with the remedy, where the page cannot be made."""
    try:
        import jinja2
        import matplotlib
    except ImportError as error:
        raise KernelbenchError(
            f"the page needs {error.name}, which is not installed: "
            "pip install 'kernelbench[report]'; the other formats do without it"
        ) from None
    del jinja2, matplotlib


def looks(rows: Sequence[Row]) -> dict[str, Look]:
    """A look for each provider: its role's colours in turn, a marker of its own, approximate ones
    hatched. Where a role has more providers than colours, markers distinguish them."""
    facts = {str(row["provider"]): (str(row["role"]), row["accuracy"]) for row in rows}
    used: dict[str, int] = {}
    look_of = dict[str, Look]()
    for number, name in enumerate(sorted(facts, key=lambda name: facts[name][0] != "baseline")):
        role, accuracy = facts[name]
        hues, turn = HUES[role], used.get(role, 0)
        used[role] = turn + 1
        hatch = "////" if accuracy == "approximate" else ""
        look_of[name] = Look(_CODES[hues[turn % len(hues)]], MARKERS[number % len(MARKERS)], hatch)
    return look_of


def parts(rows: Sequence[Row], *names: str) -> dict[tuple[str, ...], list[Row]]:
    """Rows by the values of these columns, in the order of the rows."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row[name]) for name in names), []).append(row)
    return groups


def text(value: object) -> str:
    """Replace control characters, which no document may hold."""
    return re.sub(
        r"[^\x20-\U0010ffff]|[\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", str(value)
    )


def short(value: object, most: int) -> str:
    """Cut a name in its middle, where the cases of a family differ least."""
    name = text(value)
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most - most // 2) :]}"


@contextmanager
def style() -> Iterator[None]:
    """Set matplotlib's defaults and ours on them, for all figures, whatever the user's are."""
    import matplotlib.style

    with matplotlib.style.context(["default", _STYLE], after_reset=True):
        yield


@contextmanager
def canvas(
    height: float,
    *,
    left: float,
    right: float = 14,
    top: float = 10,
    bottom: float = 40,
    width: float = WIDTH,
) -> Iterator[tuple["Canvas", "Axes"]]:
    """An empty figure and its axes with such margins, all in the figure's units; see `style`."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(width / 72, height / 72))
    box = (
        left / width,
        bottom / height,
        1 - (left + right) / width,
        1 - (top + bottom) / height,
    )
    yield figure, figure.add_axes(box)


def svg(figure: "Canvas", title: str, message: str) -> str:
    """Inline SVG with its name and its message for screen readers.

    title: unique on its page; the ids inside follow from it.
    """
    import matplotlib

    out = io.StringIO()
    nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": title}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has its own fonts
        figure.savefig(out, format="svg", metadata=nothing, transparent=True)
    drawn = out.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", drawn, flags=re.DOTALL)
    body = drawn[drawn.index(">", drawn.index("<svg")) + 1 : drawn.rindex("</svg>")]
    name = f"f{sha256(title.encode()).hexdigest()[:8]}"
    view = re.search(r'viewBox="[^"]*"', drawn)
    return (
        f'<svg role="img" aria-labelledby="{name}t {name}d" {view[0] if view else ""}>'
        f'<title id="{name}t">{escape(text(title))}</title>'
        f'<desc id="{name}d">{escape(text(message))}</desc>{_tidy(body)}</svg>'
    )


def _tidy(body: str) -> str:
    """Name colours, use the page's font, one decimal, no clipping, and only those ids that are
    referred to. Styles that all figures share are in page.css."""
    body = re.sub(r"<!--.*?-->|<defs>\s*<clipPath.*?</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("xlink:href", "href")
    body = re.sub(r' clip-path="[^"]*"| transform="rotate\(-0 [^"]*"', "", body)
    body = re.sub(r'<path d="[^"]*" style="fill: none"/>', "", body)
    body = re.sub(r' fill="(#[0-9a-f]{6})"', r' style="fill: \1"', body)  # of a hatch
    body = re.sub(r' style="[^"]*"', lambda match: _style(match[0]), body)
    body = re.sub(
        r' (?:d|x|y|points|transform|width|height)="[^"]*"',
        lambda match: re.sub(r"-?\d+\.\d+", _one_decimal, match[0]).replace("\n", ""),
        body,
    )
    body = re.sub(r"\s*\n\s*", "", body)
    while (less := re.sub(r"<g>\s*</g>|<g/>|<defs>\s*</defs>", "", body)) != body:
        body = less
    return body


_SAID_ONCE = (
    r"(?:font-family: [^;\"]*|stroke-line(?:cap: square|join: miter)|text-anchor: start);?\s*"
)


def _style(style: str) -> str:
    style = re.sub(r"font: (?:(\w+) )?([\d.]+px) [^;\"]*", _font, style)
    style = re.sub(_SAID_ONCE, "", style).replace(f"font-size: {SMALL:g}px; ", "")
    style = re.sub(r"#[0-9a-f]{6}", lambda match: f"var({_NAMES.get(match[0], '--ink')})", style)
    style = re.sub(r"([:;]) ", r"\1", style).replace(';"', '"')
    return "" if style == ' style=""' else style


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}"


def _one_decimal(number: re.Match[str]) -> str:
    short = f"{float(number[0]):.1f}".removesuffix(".0")
    return "0" if short == "-0" else short


def box(axes: "Axes", ends: tuple[float, float], y: float, height: float, **style: Any) -> None:
    """Draw a bar from end to end with its middle at y: a fast `axes.barh`."""
    from matplotlib.patches import Rectangle

    low, high = ends
    axes.add_artist(Rectangle((low, y - height / 2), high - low, height, **style))


def log_axes(
    axes: "Axes",
    which: str,
    ends: tuple[float, float],
    form: Callable[[float], str],
    base: int = 10,
) -> None:
    """Set a logarithmic axis (`x` or `y`) from end to end, with at least two readable ticks."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = ends
    getattr(axes, f"set_{which}scale")("log", base=base)
    getattr(axes, f"set_{which}lim")(low, high)
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(FixedLocator(_ticks(low, high, base)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))


def _ticks(low: float, high: float, base: int) -> list[float]:
    """Powers of the base inside, eight at most; finer steps where there are few."""
    powers = range(
        math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9) + 1
    )
    ticks = [float(base) ** power for power in powers]
    if len(ticks) >= 3:
        return ticks[:: math.ceil(len(ticks) / 8)]
    steps = (1, 1.25, 1.5, 1.75) if base == 2 else (1, 2, 5)
    wider = range(powers.start - 1, powers.stop + 1)
    fine = [step * float(base) ** power for power in wider for step in steps]
    inside = [value for value in fine if low <= value <= high]
    return inside if len(inside) > 1 else [low, high]


def around(values: Iterable[float], factor: float) -> tuple[float, float]:
    """Ends that leave this factor of room on either side of positive values."""
    numbers = list(values)
    return min(numbers) / factor, max(numbers) * factor


def plain(value: float) -> str:
    """Format a tick: 4096, 0.25, 16k."""
    if value >= 1e4:
        for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if value >= size:
                return f"{value / size:.3g}{unit}"
    return f"{value:.4g}"


def tokens(value: float) -> str:
    """Format a value of a swept axis: 1024 stays, 16384 is 16Ki."""
    for size, unit in ((2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki")):
        if value >= 8 * size and not value % size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.6g}"


def scientific(value: float) -> str:
    """1.6e-3; 0 and inf as they are, nothing for NaN."""
    if not value or not math.isfinite(value):
        return "" if math.isnan(value) else f"{value:.0f}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits}e{int(power)}"


def legend(axes: "Axes", columns: int = 4) -> None:
    """List the providers above the axes, each with its marker."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=columns,
        handletextpad=0.3,
        columnspacing=1.1,
        borderaxespad=0.2,
        labelspacing=0.35,
    )


def legend_height(entries: int, columns: int = 4) -> float:
    """The height of such a legend above the axes."""
    return 14 * math.ceil(entries / columns) + 12
