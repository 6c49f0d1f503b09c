"""How many blocks of scores a pattern on a grid leaves, by the order of its tokens, for
docs/dilated.md: arithmetic, nothing is measured."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, one_hot

from kernelbench.kernels.dilated_attention.orders import ORDERS, sequence

SIDE, BLOCK = 128, 128  # a grid of 128 x 128 tokens; blocks of 128 queries by 128 keys

# Of sets of queries, (sets,side,side) of 0 and 1, all keys that any of a set sees.
Pattern = Callable[[Tensor], Tensor]


def square(queries: Tensor, width: int) -> Tensor:
    """Those of its own of the squares that the grid is cut into."""
    keys = max_pool2d(queries, width, stride=width)
    return keys.repeat_interleave(width, 1).repeat_interleave(width, 2)


def around(queries: Tensor, width: int) -> Tensor:
    """Those of the square around it, moved inwards at the edges, as NATTEN has it. width: odd."""
    half, side = width // 2, queries.shape[1]
    token = torch.arange(side)
    centre = token.clamp(half, side - 1 - half)
    for axis in (1, 2):
        queries = torch.zeros_like(queries).index_add_(axis, centre, queries)
    return max_pool2d(queries, width, stride=1, padding=half)


PATTERNS: dict[str, Pattern] = {
    "squares of 8 × 8": partial(square, width=8),
    "squares of 16 × 16": partial(square, width=16),
    "7 × 7 around each": partial(around, width=7),
    "15 × 15 around each": partial(around, width=15),
    "31 × 31 around each": partial(around, width=31),
}


def active(pattern: Pattern, order: str, side: int = SIDE, block: int = BLOCK) -> float:
    """The share of blocks in which any query sees any key, where tokens lie in that order."""
    tokens = side * side
    number = torch.empty(tokens, dtype=torch.int64)
    number[sequence(tokens, order, (side, side))] = torch.arange(tokens) // block
    of_block = one_hot(number).T.float()
    keys = pattern(of_block.view(-1, side, side)).flatten(1)
    return float((keys @ of_block.T > 0).float().mean())


def table() -> None:
    import cog

    cog.outl(f"| a token sees | {' | '.join(ORDERS)} |")
    cog.outl("|---" * (len(ORDERS) + 1) + "|")
    for name, pattern in PATTERNS.items():
        shares = (active(pattern, order) for order in ORDERS)
        cog.outl(f"| {name} | {' | '.join(f'{100 * share:.2f}' for share in shares)} |")
