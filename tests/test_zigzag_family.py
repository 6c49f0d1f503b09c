"""The family `zigzag_attention`: what its cases count, against brute force; which documents go
whole to a rank; what is read together and apart."""

import pytest
import torch

from kernelbench.families.zigzag_attention import FAMILY, ZigzagCase
from kernelbench.families.zigzag_attention.case import places
from kernelbench.families.zigzag_attention.traffic import zigzag_traffic
from kernelbench.kernels.zigzag_attention.lengths import owners_of
from kernelbench.spec import DType, Mode

CASES = [
    {"N": 100},
    {"N": 100, "documents": "uneven"},
    {"N": 128, "documents": "mixed", "least": 3},
    {"N": 96, "documents": "two", "order": "zigzag"},
    {"N": 64, "causal": False},
]


@pytest.mark.parametrize("axes", CASES, ids=str)
@pytest.mark.parametrize("W", [2, 4])
def test_ranks_have_every_row_once_and_count_what_they_see(W: int, axes: dict[str, object]) -> None:
    rows, pairs = [], 0
    for rank in range(W):
        case = ZigzagCase(W=W, rank=rank, Hq=1, Hk=1, D=8, dtype=DType.fp32, **axes)  # type: ignore[arg-type]
        seen = [set[int](), set[int]()]
        for chunk, pieces in enumerate(case.pieces):
            for piece in pieces:
                for position in range(piece.first, piece.first + piece.rows):
                    rows.append(piece.start + position)
                    last = position + 1 if case.causal else piece.keys
                    pairs += last
                    seen[chunk] |= set(range(piece.start, piece.start + last))
        assert [case.seen(0), case.seen(1)] == [len(keys) for keys in seen]
        assert case.seen_by_any == len(seen[0] | seen[1])
        assert case.rows == tuple(sum(p.rows for p in pieces) for pieces in case.pieces)
    assert sorted(rows) == list(range(case.N))
    assert pairs == sum(
        ZigzagCase(W=W, rank=rank, Hq=1, Hk=1, D=8, dtype=DType.fp32, **axes).pairs  # type: ignore[arg-type]
        for rank in range(W)
    )


def test_ranks_have_the_same_work() -> None:
    cases = [ZigzagCase(W=8, rank=r, N=1 << 16, Hq=32, Hk=8, D=128) for r in range(8)]
    assert len({FAMILY.cost(case).flops for case in cases}) == 1


@pytest.mark.parametrize("W", [1, 4, 8])
def test_of_a_document_2w_plus_1_chunks_are_read_apart_and_2w_less_r_together(W: int) -> None:
    for rank in range(W):
        case = ZigzagCase(W=W, rank=rank, N=1024, Hq=4, Hk=1, D=64)
        chunk = 1024 // (2 * W) * 64 * 2
        apart, together = (
            {row.tensor: row.read for row in zigzag_traffic(both, case)} for both in (False, True)
        )
        assert apart["k"] == apart["v"] == (2 * W + 1) * chunk
        assert together["k"] == together["v"] == (2 * W - rank) * chunk
        assert together["q0"] + together["q1"] == 2 * 1024 // (2 * W) * 4 * 64 * 2


def test_keys_lie_as_an_all_gather_leaves_them() -> None:
    case = ZigzagCase(W=2, rank=0, N=24, Hq=1, Hk=1, D=8, documents="two", order="zigzag")  # type: ignore[arg-type]
    lying = torch.empty(24, dtype=torch.int64)
    lying[places(case)] = torch.arange(24)
    first = [0, 1, 2, 9, 10, 11, 12, 13, 14, 21, 22, 23]  # chunks 0 and 3 of both documents
    assert lying.tolist() == [*first, *(i for i in range(24) if i not in first)]


def test_short_documents_go_whole_to_the_rank_with_the_least_work() -> None:
    lengths = [5000, 100, 30, 90, 20, 1008, 1009]
    assert owners_of(lengths, 8) == (None, 1, 3, 2, 4, 0, None)
    assert owners_of([10, 10, 10, 10], 2) == (0, 1, 0, 1)
    assert owners_of([50, 30, 30, 20], 2, least=100) == (0, 1, 1, 1)
    assert owners_of(lengths, 8, least=0) == (None,) * 7
    assert owners_of([252, 253], 2) == (0, None)  # chunks of 63 and of 64 rows
    with pytest.raises(ValueError, match="ranks from 1 on"):
        owners_of(lengths, 0)


@pytest.mark.parametrize(
    "axes, words",
    [
        ({"rank": 2}, "rank must be from 0 to W − 1, here 1, got 2"),
        ({"N": 30, "order": "zigzag"}, "of multiples of 2W = 4 tokens"),
        ({"Hk": 3}, "Hk must divide Hq"),
        ({"N": 1, "rank": 1}, "rank 1 of 2 has no row"),
        ({"least": -1}, "least at least 0"),
    ],
)
def test_what_a_case_cannot_be_is_said(axes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ZigzagCase(**({"W": 2, "rank": 0, "N": 32, "Hq": 2, "Hk": 1, "D": 8} | axes))  # type: ignore[arg-type]


def test_gradients_of_keys_that_nobody_sees_are_written_too() -> None:
    case = ZigzagCase(W=2, rank=1, N=64, Hq=1, Hk=1, D=8, dtype=DType.fp32, mode=Mode.bwd)
    cost = FAMILY.cost(case)
    assert case.seen_by_any == 48
    row = 8 * 4
    assert (cost.read, cost.write) == ((2 * 32 + 2 * 48) * row, (32 + 2 * 64) * row)
