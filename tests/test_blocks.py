"""tools/blocks.py: shares of active blocks, against sets of tokens."""

import sys
from functools import partial
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import blocks  # noqa: E402

from kernelbench.kernels.dilated_attention.orders import ORDERS, sequence  # noqa: E402

SIDE, BLOCK = 16, 32


def sees(name: str, width: int, query: tuple[int, int], key: tuple[int, int]) -> bool:
    if name == "square":
        return all(q // width == k // width for q, k in zip(query, key, strict=True))
    first = [min(max(q - width // 2, 0), SIDE - width) for q in query]
    return all(0 <= k - f < width for k, f in zip(key, first, strict=True))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("name", "width"), [("square", 4), ("around", 5), ("around", 9)])
def test_shares_are_those_of_the_definition(name: str, width: int, order: str) -> None:
    tokens = sequence(SIDE * SIDE, order, (SIDE, SIDE)).tolist()
    number = {divmod(token, SIDE): at // BLOCK for at, token in enumerate(tokens)}
    seen = {(number[q], number[k]) for q, k in product(number, number) if sees(name, width, q, k)}
    share = blocks.active(partial(getattr(blocks, name), width=width), order, SIDE, BLOCK)
    assert share == pytest.approx(len(seen) / (SIDE * SIDE // BLOCK) ** 2)
