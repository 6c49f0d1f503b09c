"""What a human would see in the places that are bad: words for rows and columns, a map of tiles."""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch.nn.functional import pad

MOST_ROWS, MOST_COLUMNS = 16, 48  # cells of a map
FEW = 4  # places that are named one by one
SIGMAS = 5.0  # of χ², beyond which places are not bad by chance
LEGEND = "· right, 1 to 9 tenths of it bad, █ all of it"


def pattern(bad: torch.Tensor, looked_at: torch.Tensor, noun: str) -> str:
    """`the last row`, `rows 3 to 9`, `every 64th row from row 3`; empty where there is no pattern.

    bad, seen: of each row (or column) if it is, on the CPU. What was not seen is not bad, and
    nothing is said of it.
    """
    at = bad.nonzero().flatten()
    right = (looked_at & ~bad).nonzero().flatten()
    if not (at.numel() and right.numel()):
        return ""
    first, last = int(at[0]), int(at[-1])
    if bool(((right > first) & (right < last)).any()):
        few = f"{noun}s {', '.join(str(int(i)) for i in at)}" if at.numel() <= FEW else ""
        return _repeated(at, right, bad.numel(), noun) or few
    count = last - first + 1
    one = f"{noun} {first}" if count == 1 else f"{noun}s {first} to {last}"
    if not bool(looked_at.all()):
        return one
    some = noun if count == 1 else f"{count} {noun}s"
    if last == bad.numel() - 1:
        return f"the last {some}"
    return f"the first {some}" if first == 0 else one


def _repeated(at: torch.Tensor, right: torch.Tensor, n: int, noun: str) -> str:
    """Words for one range in every period. at, right: where it is bad, and where it is not."""
    for period in _periods(at, n):
        places, others = (at % period).unique(), (right % period).unique()
        low, high, width = int(places[0]), int(places[-1]), places.numel()
        known = width + others.numel() == period  # each place is bad always or never, and all are
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
    """Those that the distances of the first ranges suggest, and powers of two."""
    starts = [int(at[0]), *(int(i) for i in at[1:][at.diff() > 1][:2])]
    periods = {b - a for a, b in pairwise(starts)}
    periods |= {1 << i for i in range(1, n.bit_length())}
    yield from sorted(period for period in periods if 1 < period < n)


def _ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def tile_map(bad: torch.Tensor, looked_at: torch.Tensor) -> str:
    """A drawing of which tiles are bad, and by how much; empty where all are alike.

    bad, seen: of each element of a matrix if it is. A cell stands for a tile whose sides are
    powers of two; one of which nothing was seen is blank.
    """
    height = _side(bad.shape[0], MOST_ROWS)
    width = _side(bad.shape[1], MOST_COLUMNS)
    wrong, known = _tiles(bad, height, width), _tiles(looked_at, height, width)
    if not _uneven(wrong, known):
        return ""
    label = len(str(bad.shape[0] - 1))
    lines = [f"a cell is {height} × {width} (rows × columns): {LEGEND}"]
    for i, (row, all_) in enumerate(zip(wrong.tolist(), known.tolist(), strict=True)):
        cells = "".join(_cell(int(b), int(s)) for b, s in zip(row, all_, strict=True))
        lines.append(f"{i * height:>{label}} {cells}".rstrip())
    return "\n".join(lines)


def _side(size: int, most: int) -> int:
    """The smallest power of two of which at most so many cover the size."""
    return 1 << (-(-size // most) - 1).bit_length()


def _tiles(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """How many elements of each tile are set, on the CPU."""
    rows = []
    for top in range(0, mask.shape[0], height):
        counts = mask[top : top + height].sum(0)
        rows.append(pad(counts, (0, -counts.numel() % width)).view(-1, width).sum(1))
    return torch.stack(rows).cpu().double()


def _uneven(wrong: torch.Tensor, known: torch.Tensor) -> bool:
    """Whether tiles, or rows or columns of them, differ by more than chance alone would have it."""
    sums = [(wrong, known), *((wrong.sum(dim), known.sum(dim)) for dim in (0, 1))]
    return any(_beyond_chance(*each) for each in sums)


def _beyond_chance(wrong: torch.Tensor, known: torch.Tensor) -> bool:
    """By χ² against the same share everywhere."""
    share = float(wrong.sum() / known.sum())
    wrong, known = wrong[known > 0], known[known > 0]
    freedom = known.numel() - 1
    if share in (0.0, 1.0) or freedom < 1:
        return False
    off = (wrong - known * share).square() / (known * share * (1 - share))
    return float(off.sum()) > freedom + SIGMAS * math.sqrt(2 * freedom)


def _cell(bad: int, looked_at: int) -> str:
    if not looked_at:
        return " "
    if bad in (0, looked_at):
        return "█" if bad else "·"
    return str(min(-(-10 * bad // looked_at), 9))
