"""The family `dilated_attention`: what its cases keep and count, against positions one by one."""

from itertools import product
from typing import Any

import pytest
import torch

from kernelbench.families.dilated_attention import FAMILY, DilatedCase
from kernelbench.nn.branches import Piece, as_rows, of_segments, strided
from kernelbench.spec import Mode, UsageError

CASES = [
    {"N": 48, "branches": "8r1_16r2"},
    {"N": 37, "branches": "8r2_16r4_64r3", "H": 5},
    {"N": 21, "branches": "4r3", "H": 2, "B": 2},
    {"N": 3, "branches": "8r4"},
]


def made(**axes: Any) -> DilatedCase:
    return DilatedCase.from_axes({"B": 1, "H": 3, "D": 8, "dtype": "fp32", **axes})


def kept(case: DilatedCase, w: int, r: int) -> set[tuple[int, int, int]]:
    """(segment, head, position), by the definition."""
    group = -(-case.H // r)
    found = set()
    for p, h in product(range(case.N), range(case.H)):
        i = p // w
        s = {"head_mod": h % r, "head_group": h // group, "segment_index": i % r}[case.offsets]
        if p - i * w >= s and (p - i * w - s) % r == 0:
            found.add((i, h, p))
    return found


@pytest.mark.parametrize("offsets", ["head_mod", "head_group", "segment_index"])
@pytest.mark.parametrize("axes", CASES, ids=str)
def test_pieces_are_what_the_definition_keeps_and_pairs_count_it(
    axes: dict[str, Any], offsets: str
) -> None:
    cases = [made(**axes, offsets=offsets, causal=causal) for causal in (False, True)]
    full = causal = 0
    for pieces, (w, r) in zip(cases[0].pieces, cases[0].pairs_of, strict=True):
        wanted = kept(cases[0], w, r)
        found = [
            (p // w, h, p)
            for piece in pieces
            for segment in range(piece.segments)
            for j in range(piece.rows)
            for h in range(*piece.heads.indices(cases[0].H))
            for p in [piece.first + segment * piece.apart + j * piece.rate]
        ]
        assert len(found) == len(set(found)) and set(found) == wanted
        for segment, head in {(i, h) for i, h, _ in wanted}:
            m = sum((i, h) == (segment, head) for i, h, _ in wanted)
            full, causal = full + m * m, causal + m * (m + 1) // 2
    assert [case.pairs for case in cases] == [cases[0].B * full, cases[0].B * causal]
    assert FAMILY.cost(cases[0]).flops == 4 * 8 * cases[0].B * full


def test_longnets_flops_are_the_paper_s() -> None:
    """4·N·(w/r)·D/r of each branch and head, where r divides w and all heads' offsets are alike."""
    case = made(N=1 << 15, branches="2048r1_4096r2_8192r4", H=4, D=128, dtype="bf16")
    each = [w // r for w, r in case.pairs_of]
    flops = sum(
        4 * 4 * case.N // w * m * m * 128 for (w, _), m in zip(case.pairs_of, each, strict=True)
    )
    assert FAMILY.cost(case).flops == flops


def test_a_piece_is_a_view_and_back() -> None:
    x = torch.arange(2 * 24 * 3 * 2).view(2, 24, 3, 2)
    piece = Piece(first=1, segments=3, apart=8, rows=4, rate=2, heads=slice(1, 3, 2))
    rows = strided(x, piece)
    at = [[1 + 8 * i + 2 * j for j in range(4)] for i in range(3)]
    assert torch.equal(rows, torch.stack([x[:, row][:, :, 1:3:2] for row in at], 1))
    assert rows.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    one = x[:1]
    assert of_segments(one, piece).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert torch.equal(as_rows(of_segments(x, piece), piece, 2), rows)


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"branches": "2048"}, "branches are like 2048r1_4096r2: w, the letter r, r, got '2048'"),
        ({"branches": "8r0"}, "branches are like"),
        ({"height": 5}, "height divides N, or is 0, got 5 and N 48"),
        ({"reorder": True}, "reorder takes an order, and no causal"),
        ({"reorder": True, "order": "tile", "causal": True}, "reorder takes an order"),
        ({"N": 0}, "must be at least 1"),
    ],
)
def test_cases_that_make_no_sense_are_refused(axes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        made(**{"N": 48, "branches": "8r1", **axes})


def test_what_is_not_kept_is_not_counted_as_read() -> None:
    case = made(N=48, branches="8r2_16r4", H=1)
    rows = {p for w, r in case.pairs_of for _, _, p in kept(case, w, r)}
    assert FAMILY.cost(case).read == 3 * len(rows) * 8 * 4
    trained = made(N=48, branches="8r2_16r4", H=1, mode=Mode.bwd.value)
    assert FAMILY.cost(trained).read == 4 * len(rows) * 8 * 4
