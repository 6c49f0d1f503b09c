"""Orders of positions along curves that fill a grid, and the lists of rows that kernels read.

A grid of h rows and w columns has position p at row p // w, column p % w.
"""

import torch
from torch import Tensor

from kernelbench.kernels.launch import ceil_div

ORDERS = ("identity", "hilbert", "morton", "tile", "random")
TILE = (8, 16)  # rows and columns: as many positions as a tile of keys has, mostly
_SEED = 0


def hilbert(row: Tensor, column: Tensor, bits: int) -> Tensor:
    """How far along Hilbert's curve each position of a grid of 2^bits by 2^bits is. The curve goes
    from the first to the last position of row 0, and every step is to a neighbour.

    Hilbert, Ueber die stetige Abbildung einer Linie auf ein Flächenstück, 1891.
    """
    distance = torch.zeros_like(row)
    last = (1 << bits) - 1
    for bit in reversed(range(bits)):
        low, right = (row >> bit) & 1, (column >> bit) & 1
        distance += ((3 * right) ^ low) << (2 * bit)
        turned, mirrored = low == 0, (low == 0) & (right == 1)
        row, column = (torch.where(mirrored, last - x, x) for x in (row, column))
        row, column = torch.where(turned, column, row), torch.where(turned, row, column)
    return distance


def morton(row: Tensor, column: Tensor, bits: int) -> Tensor:
    """How far along Morton's curve each position is: the bits of row and column in turn."""
    distance = torch.zeros_like(row)
    for bit in range(bits):
        distance |= (((row >> bit) & 1) << (2 * bit + 1)) | (((column >> bit) & 1) << (2 * bit))
    return distance


def key_of(order: str, position: Tensor, grid: tuple[int, int]) -> Tensor:
    """Numbers by which positions of a grid are sorted: no two have the same. A grid that is no
    square of a power of two is a part of the smallest that holds it."""
    if order == "identity":
        return position
    h, w = grid
    if order == "random":
        generator = torch.Generator().manual_seed(_SEED)
        return torch.randperm(h * w, generator=generator)[position]
    row, column = position // w, position % w
    if order == "tile":
        rows, columns = TILE
        tile = row // rows * ceil_div(w, columns) + column // columns
        return tile * (rows * columns) + row % rows * columns + column % columns
    curve = {"hilbert": hilbert, "morton": morton}[order]
    return curve(row, column, (max(h, w) - 1).bit_length())


def square(count: int) -> tuple[int, int]:
    """The smallest grid that holds so many positions: a square whose side is a power of two."""
    side = 1
    while side * side < count:
        side *= 2
    return side, side


def sequence(N: int, order: str, grid: tuple[int, int] | None) -> Tensor:
    """Which of N tokens comes first, which next: along the order, on the grid or their `square`."""
    return key_of(order, torch.arange(N), grid or square(N)).argsort()


def list_rows(
    N: int, length: int, rate: int, order: str, grid: tuple[int, int] | None, reorder: bool
) -> Tensor:
    """Rows 0 to N−1, (N,) of int32, as a branch of dilated attention takes them: segment after
    segment, in each those of offset 0, of offset 1, and so on, up to `rate`.

    Those of an offset are in the order of their places on the grid; without one, in that of their
    numbers among each other on the `square` that holds those of a segment. reorder: all N rows, on
    the grid or their `square`, are in order before they are cut.
    """
    position = torch.arange(N)
    segment, within = position // length, position % length
    part = segment * rate + within % rate
    if reorder:
        return sequence(N, order, grid)[part.argsort(stable=True)].int()
    if grid is None:
        key = key_of(order, within // rate, square(ceil_div(length, rate)))
    else:
        key = key_of(order, position, grid)
    return (part * (int(key.max()) + 1 if N else 1) + key).argsort().int()
