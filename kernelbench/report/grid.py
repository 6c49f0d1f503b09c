"""The page's sortable tables: a row a record, every column with the kind of its numbers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kernelbench.metrics import kind_of
from kernelbench.report.figures import Row, scientific, text
from kernelbench.report.means import within_noise
from kernelbench.report.tables import figures, percent


@dataclass(frozen=True)
class Head:
    """of: the column of the record that its numbers come from."""

    name: str
    of: str = ""
    number: bool = True

    @property
    def kind(self) -> str:
        return kind_of(self.of) if self.of else ""


@dataclass(frozen=True)
class Cell:
    """sort: the sort key, where that is not the text."""

    text: str
    number: bool = True
    sort: str | None = None
    href: str = ""


@dataclass(frozen=True)
class Line:
    style: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Grid:
    title: str
    heads: Sequence[Head]
    rows: Sequence[Line]


Anchor = Callable[[Row], str]
_Column = tuple[Head, Callable[[Row], Cell]]


def _value(name: str, form: Callable[[float], str]) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        value = float(row[name])
        return Cell("") if math.isnan(value) else Cell(form(value), sort=f"{value:.6g}")

    return cell


def _ratio(name: str) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        value = float(row[name])
        if math.isnan(value):
            return Cell("")
        return Cell("~" if within_noise(row, name) else figures(value), sort=f"{value:.6g}")

    return cell


def _interval(row: Row) -> Cell:
    lo, hi = row["speedup_lo"], row["speedup_hi"]
    if math.isnan(lo):
        return Cell("")
    return Cell(f"{figures(lo, 4)} to {figures(hi, 4)}", sort=f"{hi - lo:.6g}")


def _arm(row: Row) -> Cell:
    mid = row["median_us"]
    if math.isnan(mid) or not mid:
        return Cell("")
    arm = max(row["hi_us"] - mid, mid - row["lo_us"]) / mid * 100
    return Cell(percent(arm), sort=f"{arm:.6g}")


def _moved(row: Row) -> Cell:
    total = row["model_read_mib"] + row["model_write_mib"]
    return Cell("") if math.isnan(total) else Cell(figures(total, 4), sort=f"{total:.6g}")


def _used(row: Row) -> Cell:
    if math.isnan(row["error_rel"]):
        return Cell("")
    used = row["error_rel"] / row["error_budget"] * 100 if row["error_budget"] else math.inf
    return Cell(percent(used), sort=f"{used:.6g}")


def _outcome(row: Row) -> Cell:
    """The status with its reason, and the flags."""
    lines = str(row["reason"]).strip().splitlines()
    words = [str(row["status"]), *lines[:1]] if row["status"] != "ok" else ["ok"]
    return Cell(text(": ".join(filter(None, [*words, str(row["flags"])]))), number=False)


def _four(value: float) -> str:
    return figures(value, 4)


_SPEEDS: Sequence[_Column] = (
    (Head("time µs", "median_us"), _value("median_us", _four)),
    (Head("± 95 %", "hi_us"), _arm),
    (Head("× best other", "speedup_best"), _ratio("speedup_best")),
    (Head("× baseline", "speedup"), _ratio("speedup")),
    (Head("its 95 % interval", "speedup_hi"), _interval),
    (Head("% of ceiling", "sol_pct"), _value("sol_pct", percent)),
    (Head("GB/s", "gbps"), _value("gbps", _four)),
    (Head("TFLOP/s", "tflops"), _value("tflops", figures)),
    (Head("HBM MiB", "model_read_mib"), _moved),
    (Head("saved", "hbm_saved_pct"), _value("hbm_saved_pct", percent)),
    (Head("error", "error_rel"), _value("error_rel", scientific)),
    (Head("% of budget", "error_budget"), _used),
    (Head("outcome", "", number=False), _outcome),
)
_CHECKS: Sequence[_Column] = (
    (Head("outcome", "", number=False), _outcome),
    (Head("relative error", "error_rel"), _value("error_rel", scientific)),
    (Head("budget", "error_budget"), _value("error_budget", scientific)),
    (Head("worst element", "error_max"), _value("error_max", scientific)),
)


def speeds(rows: Sequence[Row], record: Anchor, case: Anchor) -> Grid:
    """Times, speedups, shares, bytes and errors, without empty columns.

    record, case: the anchors of a row's record and case on the page.
    """
    return _grid("Every record", rows, _SPEEDS, record, case)


def checks(rows: Sequence[Row], record: Anchor, case: Anchor) -> Grid:
    """Verdicts and errors of runs without a GPU: no times, no speeds."""
    return _grid("Correctness", rows, _CHECKS, record, case)


def _grid(
    title: str, rows: Sequence[Row], columns: Sequence[_Column], record: Anchor, case: Anchor
) -> Grid:
    cells_of = [(head, [make(row) for row in rows]) for head, make in columns]
    shown = [(head, cells) for head, cells in cells_of if any(cell.text for cell in cells)]
    several = len({row["run_id"] for row in rows}) > 1
    lines = []
    for number, row in enumerate(rows):
        approximate = " ≈" if row["accuracy"] == "approximate" else ""
        first_cells = [
            Cell(text(row["case"]), False, href=f"#{case(row)}"),
            Cell(text(row["provider"]) + approximate, False, href=f"#{record(row)}"),
            *([Cell(text(row["run_id"]), False)] if several else []),
        ]
        style = "bad" if row["record"].status.bad else ""
        style = style or ("ours" if row["role"] == "triton_fused" else "")
        lines.append(Line(style, [*first_cells, *(cells[number] for _, cells in shown)]))
    names = ["case", "provider", *(["run"] if several else [])]
    heads = [*(Head(name, number=False) for name in names), *(head for head, _ in shown)]
    return Grid(title, heads, lines)
