"""Patterns of bad elements: words for rows and columns, and a map of tiles."""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch.nn.functional import pad

MOST_ROWS, MOST_COLUMNS = 16, 48  # cells of a map
FEW = 4  # rows or columns that are listed one by one
SIGMAS = 5.0  # standard deviations of χ² beyond which a pattern is not chance
LEGEND = "· right, 1 to 9 tenths of it bad, █ all of it"


def pattern(bad: torch.Tensor, checked: torch.Tensor, noun: str) -> str:
    """`the last row`, `rows 3 to 9`, `every 64th row from row 3`; empty where there is no pattern.

    bad, checked: for each row (or column) whether it is, bools on the CPU. One that was not checked
    is not bad, and is left out.
    """
    at = bad.nonzero().flatten()
    right = (checked & ~bad).nonzero().flatten()
    if not (at.numel() and right.numel()):
        return ""
    first, last = int(at[0]), int(at[-1])
    if bool(((right > first) & (right < last)).any()):
        few = f"{noun}s {', '.join(str(int(i)) for i in at)}" if at.numel() <= FEW else ""
        return _repeated(at, right, bad.numel(), noun) or few
    count = last - first + 1
    span = f"{noun} {first}" if count == 1 else f"{noun}s {first} to {last}"
    if not bool(checked.all()):
        return span
    counted = noun if count == 1 else f"{count} {noun}s"
    if last == bad.numel() - 1:
        return f"the last {counted}"
    return f"the first {counted}" if first == 0 else span


def _repeated(at: torch.Tensor, right: torch.Tensor, n: int, noun: str) -> str:
    """Words for one bad range a period. at, right: indices that are bad, and that are not."""
    for period in _periods(at, n):
        places, others = (at % period).unique(), (right % period).unique()
        low, high, width = int(places[0]), int(places[-1]), places.numel()
        known = width + others.numel() == period  # each place of a period is always bad or never
        enough = at.numel() >= (2 if period.bit_count() == 1 else 3) * width
        if not (known and enough and high - low + 1 == width):
            continue
        if period == 2:
            return f"{'odd' if low else 'even'} {noun}s"
        if width == 1:
            return f"every {_ordinal(period)} {noun}" + (f" from {noun} {low}" if low else "")
        return f"{noun}s {low} to {high} of every {period}"
    return ""


def _periods(at: torch.Tensor, n: int) -> Iterator[int]:
    """Candidates: the distances between the first ranges, and powers of two; ascending."""
    starts = [int(at[0]), *(int(i) for i in at[1:][at.diff() > 1][:2])]
    periods = {b - a for a, b in pairwise(starts)}
    periods |= {1 << i for i in range(1, n.bit_length())}
    yield from sorted(period for period in periods if 1 < period < n)


def _ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def tile_map(bad: torch.Tensor, checked: torch.Tensor) -> str:
    """A drawing of which tiles are bad, and how much of them; empty where all tiles are equal.

    bad, checked: for each element of a matrix whether it is. A cell stands for a tile whose sides
    are powers of two; it is blank where no element of the tile was checked.
    """
    height = _side(bad.shape[0], MOST_ROWS)
    width = _side(bad.shape[1], MOST_COLUMNS)
    wrong, known = _tiles(bad, height, width), _tiles(checked, height, width)
    if not _uneven(wrong, known):
        return ""
    label = len(str(bad.shape[0] - 1))
    lines = [f"a cell is {height} × {width} (rows × columns): {LEGEND}"]
    for i, (row, totals) in enumerate(zip(wrong.tolist(), known.tolist(), strict=True)):
        cells = "".join(_cell(int(b), int(n)) for b, n in zip(row, totals, strict=True))
        lines.append(f"{i * height:>{label}} {cells}".rstrip())
    return "\n".join(lines)


def _side(size: int, most: int) -> int:
    """The smallest power of two of which at most `most` cover `size`."""
    return 1 << (-(-size // most) - 1).bit_length()


def _tiles(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The number of set elements of each tile, fp64 on the CPU."""
    rows = []
    for top in range(0, mask.shape[0], height):
        counts = mask[top : top + height].sum(0)
        rows.append(pad(counts, (0, -counts.numel() % width)).view(-1, width).sum(1))
    return torch.stack(rows).cpu().double()


def _uneven(wrong: torch.Tensor, known: torch.Tensor) -> bool:
    """Whether tiles, or rows or columns of tiles, differ by more than chance explains."""
    sums = [(wrong, known), *((wrong.sum(dim), known.sum(dim)) for dim in (0, 1))]
    return any(_beyond_chance(*counts) for counts in sums)


def _beyond_chance(wrong: torch.Tensor, known: torch.Tensor) -> bool:
    """By a χ² test of the hypothesis that the same share is bad everywhere."""
    share = float(wrong.sum() / known.sum())
    wrong, known = wrong[known > 0], known[known > 0]
    freedom = known.numel() - 1
    if share in (0.0, 1.0) or freedom < 1:
        return False
    off = (wrong - known * share).square() / (known * share * (1 - share))
    return float(off.sum()) > freedom + SIGMAS * math.sqrt(2 * freedom)


def _cell(bad: int, checked: int) -> str:
    if not checked:
        return " "
    if bad in (0, checked):
        return "█" if bad else "·"
    return str(min(-(-10 * bad // checked), 9))
