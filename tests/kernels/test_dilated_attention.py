"""`dilated_attention` against LongNet's definition in fp64, which knows sets of positions and no
strides: results, gradients, which tokens are left out, orders, and what is refused."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kernelbench.kernels.attention.configs import AttentionConfig, configs
from kernelbench.kernels.dilated_attention import coverage, dilated_attention
from kernelbench.kernels.dilated_attention.checks import RULES
from kernelbench.kernels.dilated_attention.orders import (
    ORDERS,
    hilbert,
    key_of,
    list_rows,
    morton,
    square,
)
from kernelbench.kernels.launch import Target, described_for

FLOOR = {torch.float32: 1e-6, torch.float16: 2.5e-4, torch.bfloat16: 2e-3}
SLOW = pytest.mark.slow
pytestmark = pytest.mark.filterwarnings("ignore:dilated_attention. no branch covers")


def kept_positions(j: int, i: int, H: int, N: int, w: int, r: int, rule: str) -> list[int]:
    """Which positions of the sequence head j has in segment i."""
    s = {"head_mod": j % r, "head_group": j // math.ceil(H / r), "segment_index": i % r}[rule]
    return [p for p in range(i * w, min((i + 1) * w, N)) if (p - i * w) in range(s, w, r)]


def seen(N: int, H: int, w: int, r: int, rule: str, causal: bool, at: Sequence[int]) -> Tensor:
    """Whether, of each head, each query sees each key, (H,N,N). at: where tokens of the sequence
    were before it was put in order."""
    mask = torch.zeros(H, N, N, dtype=torch.bool)
    for j in range(H):
        for i in range(math.ceil(N / w)):
            together = {at[p] for p in kept_positions(j, i, H, N, w, r, rule)}
            for query in together:
                mask[j, query, [key for key in together if key <= query or not causal]] = True
    return mask


def right(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    branches: Sequence[tuple[int, int]],
    *,
    causal: bool = False,
    offset_rule: str = "head_mod",
    combine: str = "lse",
    order: str = "identity",
    grid: tuple[int, int] | None = None,
    reorder: bool = False,
    scale: float | None = None,
) -> Tensor:
    """In fp64. `order` counts only where all tokens are put in order."""
    N, H, D = q.shape[1:]
    at = range(N)
    if reorder:
        at = key_of(order, torch.arange(N), grid or square(N)).argsort().tolist()
    k, v = (x.repeat_interleave(H // k.shape[2], 2) for x in (k, v))
    score = torch.einsum("bnhd,bmhd->bhnm", q, k) * (scale or D**-0.5)
    os, lses = [], []
    for w, r in branches:
        mask = seen(N, H, min(w, N), r, offset_rule, causal, at).to(q.device)
        alone = ~mask.any(-1, keepdim=True)  # keeps −∞ out of the gradients
        masked = score.masked_fill(~(mask | alone), -math.inf)
        o = torch.einsum("bhnm,bmhd->bnhd", masked.softmax(-1), v)
        os.append(o.masked_fill(alone.transpose(0, 1), 0))
        lses.append(masked.logsumexp(-1).masked_fill(alone[..., 0], -1e9))
    if combine == "mean":
        return torch.stack(os).mean(0)
    weights = torch.stack(lses).softmax(0)
    return sum(a.transpose(1, 2)[..., None] * o for a, o in zip(weights, os, strict=True))


def draw(
    N: int,
    H: int,
    G: int,
    D: int = 16,
    dtype: torch.dtype = torch.float32,
    B: int = 1,
    seed: int = 0,
) -> list[Tensor]:
    """q, k, v and the gradient of the result."""
    generator = torch.Generator().manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [
        torch.randn(B, N, heads, D, generator=generator).to(device, dtype) for heads in (H, G, G, H)
    ]


def close(found: Tensor, wanted: Tensor, dtype: torch.dtype, tolerance: float = 4) -> None:
    assert found.shape == wanted.shape and found.isfinite().all()
    error = (found.double() - wanted).norm()
    assert error <= tolerance * FLOOR[dtype] * wanted.norm().clamp(min=1)


def check(
    given: Sequence[Tensor],
    branches: Sequence[tuple[int, int]],
    config: AttentionConfig | None = None,
    **how: Any,
) -> None:
    """o, dq, dk and dv."""
    *tensors, do = given
    leaves = [x.detach().requires_grad_() for x in tensors]
    lengths, rates = zip(*branches, strict=True)
    o = dilated_attention(*leaves, lengths, rates, config=config, **how)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    wanted = right(*wide, branches, **how)
    dtype = tensors[0].dtype
    close(o, wanted.detach(), dtype)
    found = torch.autograd.grad(o, leaves, do)
    for one, other in zip(found, torch.autograd.grad(wanted, wide, do.double()), strict=True):
        close(one, other, dtype)


# N, H, G, branches: H that r does not divide, N that w does not divide, w > N, a single branch with
# gaps, a last segment that is shorter than an offset, r > w, the same branch twice.
CASES: dict[str, tuple[int, int, int, list[tuple[int, int]]]] = {
    "dense": (20, 2, 2, [(32, 1)]),
    "paper": (14, 3, 3, [(8, 1), (16, 2)]),
    "ragged": (19, 3, 3, [(12, 2), (100, 3)]),
    "gaps": (10, 3, 1, [(8, 3)]),
    "shared": (15, 4, 2, [(15, 1), (12, 4)]),
    "short": (8, 2, 1, [(5, 4), (3, 5)]),
    "twice": (10, 1, 1, [(6, 2), (6, 2)]),
}


@pytest.mark.parametrize("case", CASES)
def test_position_sets(case: str) -> None:
    *sizes, branches = CASES[case]
    check(draw(*sizes), branches, causal=case not in ("ragged", "gaps"))


@pytest.mark.parametrize("rule", RULES[1:])
def test_the_other_rules_of_offsets(rule: str) -> None:
    check(draw(9, 4, 2), [(6, 4), (9, 2)], offset_rule=rule, causal=True)


@pytest.mark.parametrize("causal", [True, pytest.param(False, marks=SLOW)])
def test_the_mean_of_branches(causal: bool) -> None:
    check(draw(11, 2, 1), [(8, 2), (16, 3)], combine="mean", causal=causal)


@pytest.mark.parametrize("order, reorder", [("hilbert", False), ("random", True)])
def test_orders(order: str, reorder: bool) -> None:
    """Within segments the result is that of the identity; before they are cut, another one."""
    how = {"order": order, "reorder": reorder, "grid": (3, 6), "causal": True}
    check(draw(18, 1, 1), [(12, 2), (18, 1)], **how)


@SLOW
@pytest.mark.parametrize("combine", ["lse", "mean"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_every_rule(case: str, rule: str, causal: bool, combine: str) -> None:
    *sizes, branches = CASES[case]
    given = draw(*sizes, seed=sum(map(ord, rule)), B=2)
    check(given, branches, offset_rule=rule, causal=causal, combine=combine)


@SLOW
@pytest.mark.parametrize("combine", ["lse", "mean"])
@pytest.mark.parametrize("reorder", [True, False])
@pytest.mark.parametrize("grid", [None, (3, 7), (7, 3)])
@pytest.mark.parametrize("order", ORDERS)
def test_every_order(order: str, grid: tuple[int, int] | None, reorder: bool, combine: str) -> None:
    for causal, rule in ((True, "head_mod"), (False, "segment_index"), (True, "head_group")):
        how = {"order": order, "grid": grid, "reorder": reorder, "combine": combine}
        check(draw(21, 4, 2), [(12, 1), (20, 4), (5, 2)], causal=causal, offset_rule=rule, **how)


@pytest.mark.parametrize(
    "D, dtype",
    [
        (24, torch.float16),
        *(pytest.param(D, torch.float16, marks=SLOW) for D in (64, 128, 256)),
        pytest.param(64, torch.bfloat16, marks=SLOW),
        pytest.param(128, torch.float32, marks=SLOW),
    ],
)
def test_head_sizes_and_dtypes(D: int, dtype: torch.dtype, device: str) -> None:
    if device == "cpu" and dtype is torch.bfloat16:
        pytest.skip("bf16 arithmetic is wrong in Triton's interpreter")
    check(draw(12, 2, 1, D, dtype), [(8, 2), (12, 1)], causal=True)


@SLOW
def test_tiles_of_many_rows() -> None:
    """Several tiles a segment, of every config that a tuner may pick."""
    known = configs(1, 90, 2, 16, arch="sm_80", mode="full")
    for config in [c for c in known if not (c.hopper or c.bwd_hopper)]:
        check(draw(300, 2, 1, dtype=torch.float16), [(200, 2), (300, 3)], config, causal=True)
        check(draw(200, 2, 1, dtype=torch.float16), [(200, 1)], config, order="morton", causal=True)


def torchscale(q: Tensor, k: Tensor, v: Tensor, branches: Sequence[tuple[int, int]]) -> Tensor:
    """As torchscale's DilatedAttention computes it: heads in r groups, of which group number g
    takes row g of every r, by a diagonal; branches weighed by the softmax of their lse."""
    B, N, H, D = q.shape
    os, lses = [], []
    for w, r in branches:

        def diagonal(x: Tensor, w: int = w, r: int = r) -> Tensor:
            x = x.reshape(B * (N // w), w // r, r, r, H // r, -1)
            return x.diagonal(0, 2, 3).permute(0, 1, 4, 2, 3).flatten(2, 3)  # rows, (r, H/r)

        qs, ks, vs = map(diagonal, (q, k, v))
        score = torch.einsum("bnhd,bmhd->bhnm", qs, ks) / D**0.5
        o, lse = torch.einsum("bhnm,bmhd->bnhd", score.softmax(-1), vs), score.logsumexp(-1)

        def scattered(x: Tensor, empty: float, w: int = w, r: int = r) -> Tensor:
            full = x.new_full((B * (N // w), w // r, r, r, H // r, x.shape[-1]), empty)
            for g in range(r):
                full[:, :, g, g] = x.unflatten(2, (r, H // r))[:, :, g]
            return full.reshape(B, N, H, -1)

        os.append(scattered(o, 0.0))
        lses.append(scattered(lse.transpose(1, 2)[..., None], -1e8))
    weights = torch.stack(lses).softmax(0)
    return sum(a * o for a, o in zip(weights, os, strict=True))


def test_torchscale_agrees_where_heads_divide() -> None:
    branches = [(8, 2), (8, 4), (4, 1)]
    tensors = [x.double() for x in draw(8, 4, 4)[:3]]
    wanted = torchscale(*tensors, branches)
    given = [x.float() for x in tensors]
    o = dilated_attention(*given, *zip(*branches, strict=True), offset_rule="head_group")
    close(o, wanted, torch.float32)


def test_what_no_branch_covers_is_zero_and_said() -> None:
    q, k, v, do = draw(12, 3, 1)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    with pytest.warns(UserWarning, match=r"covers 24 of 12 tokens × 3 heads \(66\.7%\)"):
        o = dilated_attention(*leaves, [11], [3], scale=0.37)
    missing = coverage(12, 3, [11], [3]).to(o.device) == 0
    assert (o[0][missing] == 0).all() and (o[0][~missing] != 0).all()
    dq, dk, dv = torch.autograd.grad(o, leaves, do)
    assert (dq[0][missing] == 0).all()
    wanted = torch.autograd.grad(right(*leaves, [(11, 3)], scale=0.37), leaves, do)
    for found, other in zip((dq, dk, dv), wanted, strict=True):
        close(found, other.double(), torch.float32)


def test_nothing_is_said_where_one_branch_has_all() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dilated_attention(*draw(5, 1, 1)[:3], [4, 2**31 - 1], [1, 3])


def test_coverage() -> None:
    """The document's configuration: 37.5 % of tokens are in no branch, 50 % in one."""
    counts = coverage(8192, 2, [2048, 4096], [2, 4], offset_rule="segment_index")
    assert (counts.flatten().bincount() / counts.numel()).tolist() == [0.375, 0.5, 0.125]
    for rule in RULES:
        found = coverage(23, 5, [7, 40], [3, 4], offset_rule=rule)
        wanted = sum(
            seen(23, 5, min(w, 23), r, rule, False, range(23)).any(-1).int()
            for w, r in ((7, 3), (40, 4))
        )
        assert torch.equal(found, wanted.T.int())


def test_a_neighbours_nan_stays_out() -> None:
    """Rows of another segment, or another offset, lie in the same tiles' reach."""
    q, k, v, do = draw(11, 1, 1)
    for x in (q, k, v, do):
        x[:, 5:] = math.nan
    leaves = [x.requires_grad_() for x in (q, k, v)]
    o = dilated_attention(*leaves, [5, 5], [2, 1])
    assert o[:, :5].isfinite().all() and o[:, 5:].isnan().all()
    gradients = torch.autograd.grad(o, leaves, do)
    assert all(x[:, :5].isfinite().all() for x in gradients)


def test_layouts() -> None:
    packed = torch.randn(2, 7, 3, 2, 16, device=draw(1, 1, 1)[0].device)
    q, k, v = packed.unbind(2)
    *_, do = draw(7, 2, 2, B=2)
    branches = [(7, 2)]
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    last = q.transpose(1, 3).contiguous().transpose(1, 3)
    check((q, turned[1], v, do), branches)
    check((last, k, v[:1].expand(2, 7, 2, 16), do), branches)


def test_gradients_have_the_same_bits() -> None:
    *tensors, do = draw(8, 2, 1, dtype=torch.float16)
    leaves = [x.requires_grad_() for x in tensors]

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(dilated_attention(*leaves, [8, 6], [2, 1]), leaves, do)

    first = gradients()
    assert all(map(torch.equal, gradients(), first))


def test_nothing_to_attend_to() -> None:
    none = torch.zeros(2, 0, 2, 16, device=draw(1, 1, 1)[0].device, requires_grad=True)
    for order in ("identity", "hilbert"):
        o = dilated_attention(none, none, none, [4], [2], order=order)
        assert o.shape == none.shape
        o.sum().backward()
    assert dilated_attention(*(none[:0],) * 3, [4], [1]).shape == (0, 0, 2, 16)


def test_rows_are_read_where_they_are() -> None:
    """One launch a branch, forward, two, backward, and no copy of q, k or v, in order or not."""

    def kernels(**how: Any) -> list[str]:
        with described_for(Target("sm_90", 132)) as launches:
            q, k, v = (
                torch.empty(1, 96, heads, 64, dtype=torch.bfloat16, device="meta").requires_grad_()
                for heads in (6, 2, 2)
            )
            o = dilated_attention(q, k, v, [32, 64], [1, 3], **how)
            forward = len(launches)
            o.backward(o)
        for launch in launches[:forward]:
            assert launch.args["q_ptr"] is q and launch.args["k_ptr"] is k
        return [launch.kernel.fn.__name__ for launch in launches]

    gradients = ["differentiate_keys", "differentiate_queries"] * 2
    for order in ("identity", "hilbert"):
        assert kernels(order=order) == ["attend", "attend", "find_deltas", *gradients]


@pytest.mark.parametrize("bits", range(7))
def test_hilberts_curve_goes_from_neighbour_to_neighbour(bits: int) -> None:
    side = 1 << bits
    position = torch.arange(side * side)
    distance = hilbert(position // side, position % side, bits)
    assert torch.equal(distance.sort().values, position)
    along = distance.argsort()
    row, column = along // side, along % side
    steps = row.diff().abs() + column.diff().abs()
    assert (steps == 1).all() and along[0] == 0 and along[-1] == side - 1


def test_mortons_curve() -> None:
    row, column = torch.tensor([0, 0, 1, 1, 2, 5]), torch.tensor([0, 1, 0, 1, 2, 3])
    assert morton(row, column, 3).tolist() == [0, 1, 2, 3, 12, 0b100111]


@pytest.mark.parametrize("grid", [(1, 1), (9, 17), (40, 3), (16, 32)])
@pytest.mark.parametrize("order", ORDERS)
def test_orders_are_permutations(order: str, grid: tuple[int, int]) -> None:
    count = grid[0] * grid[1]
    key = key_of(order, torch.arange(count), grid)
    assert key.unique().numel() == count
    if order == "tile":
        first = key.argsort()[: min(count, 128)]
        assert grid != (16, 32) or {*first.tolist()} == {
            32 * row + column for row in range(8) for column in range(16)
        }
    if order == "random":
        assert torch.equal(key, key_of(order, torch.arange(count), grid))
        assert count == 1 or not torch.equal(key.sort().indices, torch.arange(count))


@pytest.mark.parametrize("reorder", [True, False])
@pytest.mark.parametrize("grid", [None, (5, 9)])
@pytest.mark.parametrize("order", ORDERS)
def test_lists_of_rows(order: str, grid: tuple[int, int] | None, reorder: bool) -> None:
    """Each segment's rows of an offset stand together, and are the right ones."""
    N, w, r = 45, 14, 4
    rows = list_rows(N, w, r, order, grid, reorder).tolist()
    at = key_of(order, torch.arange(N), grid or square(N)).argsort().tolist()
    begin = 0
    for i in range(4):
        for s in range(r):
            kept = kept_positions(s, i, r, N, w, r, "head_mod")
            found = rows[begin : begin + len(kept)]
            begin += len(kept)
            assert not reorder or found == [at[p] for p in kept]
            assert reorder or sorted(found) == kept
            if not reorder and grid is not None:
                key = key_of(order, torch.tensor(found, dtype=torch.int64), grid)
                assert torch.equal(key, key.sort().values)
    assert begin == N


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda q, k, v, d: d(q.double(), k, v, [4], [1]), TypeError, "of one dtype"),
    (lambda q, k, v, d: d(q.tolist(), k, v, [4], [1]), TypeError, "q as a tensor, got list"),
    (lambda q, k, v, d: d(q[0], k, v, [4], [1]), ValueError, r"takes q \(B,N,H,D\), k and v"),
    (lambda q, k, v, d: d(q, k[:, 1:], v[:, 1:], [4], [1]), ValueError, "of the same B, N and D"),
    (lambda q, k, v, d: d(q[:, :, :3], k, v, [4], [1]), ValueError, "divides that of q, got 2"),
    (lambda q, k, v, d: d(*[x.repeat(1, 1, 1, 20) for x in (q, k, v)], [4], [1]), ValueError,
     "1 to 256 elements, got D = 320"),
    (lambda q, k, v, d: d(q, k, v, [4, 8], [1]), ValueError, "got 2 and 1"),
    (lambda q, k, v, d: d(q, k, v, [], []), ValueError, "one or more, got 0 and 0"),
    (lambda q, k, v, d: d(q, k, v, 4, [1]), TypeError, "segment_lengths as a sequence of whole"),
    (lambda q, k, v, d: d(q, k, v, [4], "1"), TypeError, "dilation_rates as a sequence of whole"),
    (lambda q, k, v, d: d(q, k, v, [4.0], [1]), TypeError, r"segment_lengths .* got \[4.0\]"),
    (lambda q, k, v, d: d(q, k, v, [4], [True]), TypeError, "dilation_rates as a sequence"),
    (lambda q, k, v, d: d(q, k, v, [0], [1]), ValueError, "segment_lengths from 1 to 2³¹ − 1"),
    (lambda q, k, v, d: d(q, k, v, [4], [-1]), ValueError, "dilation_rates from 1"),
    (lambda q, k, v, d: d(q, k, v, [2**31], [1]), ValueError, "got 2147483648"),
    (lambda q, k, v, d: d(q, k, v, torch.tensor([4]), [1]), TypeError, "segment_lengths as a seq"),
    (lambda q, k, v, d: d(q, k, v, [4], [1], offset_rule="mod"), ValueError, "one of head_mod, h"),
    (lambda q, k, v, d: d(q, k, v, [4], [1], combine="max"), ValueError, "one of lse, mean, got"),
    (lambda q, k, v, d: d(q, k, v, [4], [1], order=None), ValueError, "order as one of identity"),
    (lambda q, k, v, d: d(q, k, v, [4], [1], grid=6), TypeError, "grid as a sequence of whole"),
    (lambda q, k, v, d: d(q, k, v, [4], [1], grid=(6,)), ValueError, r"grid as \(h, w\), got 1"),
    (lambda q, k, v, d: d(q, k, v, [4], [1], grid=(2, 2)), ValueError, "here 6, got 2 × 2"),
    (lambda q, k, v, d: d(q, k, v, [4], [1], causal="yes"), TypeError, "causal as True or False"),
    (lambda q, k, v, d: d(q, k, v, [4], [1], reorder=q[0, 0, 0, 0] > 0), TypeError, "reorder as T"),
    (lambda q, k, v, d: d(q, k, v, [4], [1], scale=-1), ValueError, "positive, finite scale"),
    (lambda q, k, v, d: d(q, k, v, [4], [1], scale=q[0, 0, 0, 0]), TypeError, r"pass \.item\(\)"),
    (lambda q, k, v, d: d(q, k, v, [4], [1], dropout_p=0.1), NotImplementedError,
     "has no dropout_p, got 0.1: drop elements"),
    (lambda q, k, v, d: d(q, k, v, [4], [1], config={}), TypeError, "config as an AttentionConfig"),
    (lambda q, k, v, d: d(q.to("meta"), k, v, [4], [1]), RuntimeError, "several devices"),
    (lambda q, k, v, d: coverage(8, 2, [4], [1], offset_rule="x"), ValueError, "offset_rule as"),
]  # fmt: skip


@pytest.fixture(scope="module")
def warm() -> list[Tensor]:
    """What has been seen with arguments that equal some of those in BAD, but are of the right
    kind."""
    q, k, v, _ = draw(6, 4, 2)
    dilated_attention(q, k, v, [4], [1])
    return [q, k, v]


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_what_it_does_not_take_is_said(
    call: Any, error: type, words: str, warm: list[Tensor]
) -> None:
    q, k, v = warm
    with pytest.raises(error, match=words):
        call(q, k, v, dilated_attention)


def test_a_tile_of_hopper_is_refused() -> None:
    [tile, *_] = configs(2, 4096, 8, 64, arch="sm_90", mode="full")
    with pytest.raises(ValueError, match="config=None for a kernel that"):
        dilated_attention(*draw(6, 2, 2, 64, torch.float16)[:3], [4], [1], config=tile)


def test_numbers_of_numpy_are_numbers() -> None:
    tensors = draw(6, 1, 1)[:3]
    lengths, rates = np.array([4, 6]), np.array([1, 2])
    found = dilated_attention(*tensors, lengths, rates, causal=np.bool_(True), scale=np.float32(1))
    assert torch.equal(found, dilated_attention(*tensors, [4, 6], (1, 2), causal=True, scale=1.0))
