"""Which query rows a block of keys meets in the backward for Hopper: the arithmetic of its kernel,
in Python."""

import random
from itertools import pairwise, product

import pytest

from kernelbench.kernels.attention.hopper.walk import (
    Place,
    Span,
    before,
    head_of,
    row_of,
    span_of,
    step_of,
)
from kernelbench.kernels.launch import ceil_div

KEYS = 128
LENGTHS = [1, 2, 63, 64, 65, 127, 128, 129, 200, 256, 257, 383, 384, 385, 700]


def place_of(
    rows: int,
    keys: int,
    number: int,
    block: int,
    causal: bool,
    rotated: bool,
    ahead: int | None = None,
) -> Place:
    """Of a sequence whose first query is row 1000 and whose first key is key 2000. ahead: of a
    chunk of one, whose first query is at that position."""
    least, ahead = (1, keys - rows) if ahead is None else (0, ahead)
    first, tiles, masked, tail, turn = span_of.fn(
        rows, ahead, keys, number, least, block, causal, rotated
    )
    ends = 2000 + keys, 2000 + keys
    span = Span(
        1000 + first, 1000 + rows, *ends, 1000 + ahead, masked, tail, turn, heads=1, steps=0
    )
    return Place(0, 0, 0, 2000 + number * KEYS, tiles, 0, span)


def check_walk(
    rows: int, keys: int, block: int, causal: bool, rotated: bool, ahead: int | None = None
) -> None:
    """Every pair of a query and a key that it sees is met once, by rows of the sequence; what is
    not masked has no other pairs."""
    met = {}
    for number in range(ceil_div(keys, KEYS)):
        place = place_of(rows, keys, number, block, causal, rotated, ahead)
        span = place.span
        assert min(2 * span.tail, place.tiles) <= span.masked <= place.tiles  # see `span_of`
        for i in range(place.tiles):
            row = row_of.fn(i, place, block, causal, rotated)
            assert row >= 1000
            if row + block > span.end:
                assert i == 0 and span.masked > 0  # what is not the sequence's comes first
            ends = row + block <= span.end
            whole = ends and place.key + KEYS <= span.keys_end
            sees_all = not causal or place.key + KEYS - 1 <= row + span.shift
            assert i < span.masked or (whole and sees_all)
            if row < span.end:
                assert (number, row) not in met
                met[number, row] = None
    for number, query in product(range(ceil_div(keys, KEYS)), range(rows)):
        sees = not causal or number * KEYS <= query + (keys - rows if ahead is None else ahead)
        times = sum(r <= 1000 + query < r + block for n, r in met if n == number)
        assert times == 1 if sees else times <= 1


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize(("causal", "rotated"), [(False, False), (False, True), (True, False)])
def test_each_pair_of_a_query_and_a_key_is_met_once(
    block: int, causal: bool, rotated: bool
) -> None:
    for length in LENGTHS:
        check_walk(length, length, block, causal, rotated)
    draw = random.Random(block)
    for _ in range(60):
        rows, keys = (draw.choice([0, 1, 64, 128, draw.randint(1, 600)]) for _ in range(2))
        check_walk(rows, keys, block, causal, rotated)


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize(("causal", "rotated"), [(False, False), (False, True), (True, False)])
def test_each_pair_of_a_chunk_s_queries_too(block: int, causal: bool, rotated: bool) -> None:
    """No tile where no query sees the keys."""
    assert place_of(100, 900, 4, block, True, rotated, 300).tiles == 0
    draw = random.Random(block)
    for _ in range(60):
        chunk, number = draw.choice([0, 1, 64, 128, draw.randint(1, 300)]), draw.randrange(4)
        check_walk(chunk, 4 * chunk, block, causal, rotated, number * chunk)


@pytest.mark.parametrize("N", [1, 64, 128, 130, 300, 512])
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize(("causal", "rotated"), [(False, False), (False, True), (True, False)])
def test_without_packed_sequences_too(N: int, block: int, causal: bool, rotated: bool) -> None:
    """As many rows as a sample has, up to a multiple of 128: those beyond are zeros."""
    for number in range(ceil_div(N, KEYS)):
        key = number * KEYS
        tiles = ceil_div(N - key if causal else N, KEYS) * (KEYS // block)
        place = Place(0, 0, 0, key, tiles, N, None)
        rows = sorted(row_of.fn(i, place, block, causal, rotated) for i in range(tiles))
        first = key if causal else 0
        assert rows == [first + i * block for i in range(tiles)] and rows[-1] + block >= N


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("tiles", [1, 2, 5])
def test_tiles_of_heads_that_share_keys_follow_each_other(group: int, tiles: int) -> None:
    place = Place(0, 3, 7, 0, tiles, 0, None)
    walk = [(i, member) for member in range(group) for i in range(tiles)]
    assert [step_of.fn(i, member, place, group) for i, member in walk] == [*range(len(walk))]
    for one, other in pairwise(walk):
        assert before.fn(*other, place, group) == one
    span = Span(0, 0, 0, 0, 0, 0, 0, 0, heads=1, steps=9)  # behind those of another sequence
    late = [step_of.fn(i, member, place._replace(span=span), group) for i, member in walk]
    assert late == [*range(9, 9 + len(walk))]
    heads = [head_of.fn(place.h, member, group) for member in range(group)]
    assert heads == [place.h * group + member for member in range(group)]
