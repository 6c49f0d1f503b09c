"""`attention` and its two primitives against fp64: shapes, packed documents, windows, strides, what
is refused, and parts of the keys that make the whole."""

import math
import warnings
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kernelbench.kernels.attention import attention
from kernelbench.kernels.attention.checks import How
from kernelbench.kernels.attention.configs import (
    AttentionConfig,
    Pattern,
    choose,
    configs,
)
from kernelbench.kernels.attention.parts import attend, backward, delta_of, forward
from kernelbench.kernels.attention.tiles import statistic_of
from kernelbench.kernels.launch import Target, described_for

FLOOR = {torch.float32: 1e-6, torch.float16: 2.5e-4, torch.bfloat16: 2e-3}
CAUSAL = pytest.mark.parametrize("causal", [False, True])


SLOW = pytest.mark.slow


@pytest.fixture(
    params=[torch.float32, pytest.param(torch.float16, marks=SLOW), torch.bfloat16], ids=str
)
def dtype(request: Any, device: str) -> torch.dtype:
    if device == "cpu" and request.param is torch.bfloat16:
        pytest.skip("bf16 arithmetic is wrong in Triton's interpreter")
    return request.param


def draw(
    B: int, N: int, K: int, H: int, G: int, D: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(N * K + D)
    shapes = (B, N, H, D), (B, K, G, D), (B, K, G, D)
    q, k, v = (torch.randn(*shape, generator=generator).to(device, dtype) for shape in shapes)
    return q, k, v


def right(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """o and lse in fp64; rows that see no key are zeros, and −∞."""
    q, k, v = (tensor.double() for tensor in (q, k, v))
    k, v = (tensor.repeat_interleave(q.shape[2] // k.shape[2], 2) for tensor in (k, v))
    N, K = q.shape[1], k.shape[1]
    score = torch.einsum("bnhd,bmhd->bhnm", q, k) * (scale or q.shape[-1] ** -0.5)
    key = torch.arange(K, device=q.device)
    query = torch.arange(N, device=q.device)[:, None] + K - N
    left, right_ = window
    seen = key <= (query if causal else K)
    seen = seen & (key >= query - (left if left >= 0 else N + K))
    seen = seen & (key <= query + (right_ if right_ >= 0 else N + K))
    weight = torch.softmax(score.masked_fill(~seen, -1e300), -1) * seen
    lse = torch.logsumexp(score.masked_fill(~seen, -math.inf), -1)
    return torch.einsum("bhnm,bmhd->bnhd", weight, v), lse


def close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """By the norm of the error over that of the answer."""
    assert found.shape == wanted.shape
    assert torch.equal(found.isfinite(), wanted.isfinite())
    found, wanted = (x.double().nan_to_num(0, 0, 0) for x in (found, wanted))
    assert (found - wanted).norm() <= 4 * FLOOR[dtype] * wanted.norm().clamp(min=1)


def check(inputs: tuple[Tensor, ...], options: dict[str, Any], **more: Any) -> None:
    """o, lse and all gradients, from upstream gradients of both. options: for both sides."""
    dtype = inputs[0].dtype
    given = [tensor.detach().requires_grad_() for tensor in inputs]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    o, lse = attention(*given, **options, **more, return_lse=True)
    right_o, right_lse = right(*exact, **options)
    assert (o.dtype, lse.dtype, o.is_contiguous()) == (dtype, torch.float32, True)
    close(o, right_o, dtype)
    close(lse, right_lse, dtype)
    generator = torch.Generator().manual_seed(0)
    do = torch.randn(o.shape, generator=generator).to(o)
    dlse = torch.randn(lse.shape, generator=generator).to(lse) * right_lse.isfinite()
    found = torch.autograd.grad([o, lse], given, [do, dlse])
    finite = torch.where(right_lse.isfinite(), right_lse, 0)
    total = (right_o * do.double()).sum() + (finite * dlse.double()).sum()
    for one, other in zip(found, torch.autograd.grad(total, exact), strict=True):
        close(one, other, dtype)


@CAUSAL
@pytest.mark.parametrize(
    "shape",
    [
        (2, 40, 40, 4, 1, 64),  # MQA
        (1, 33, 70, 4, 2, 40),
        (1, 70, 33, 2, 2, 16),  # queries in front of the first key see none
        (1, 1, 50, 8, 2, 128),  # one query
        (1, 50, 1, 2, 1, 8),  # one key
        (1, 20, 20, 1, 1, 256),
    ],
    ids=str,
)
def test_dense(shape: tuple[int, ...], causal: bool, dtype: torch.dtype, device: str) -> None:
    check(draw(*shape, dtype, device), {"causal": causal})


@pytest.mark.parametrize("causal", [False, pytest.param(True, marks=SLOW)])
@pytest.mark.parametrize("window", [(5, 3), (0, 0), (7, -1), (-1, 2), (-1, -1), (1000, 1000)])
@pytest.mark.parametrize(
    ("N", "K"), [(33, 70), pytest.param(40, 40, marks=SLOW), pytest.param(70, 33, marks=SLOW)]
)
def test_windows(window: tuple[int, int], N: int, K: int, causal: bool, device: str) -> None:
    inputs = draw(1, N, K, 2, 1, 16, torch.float32, device)
    check(inputs, {"causal": causal, "window": window, "scale": 0.4})


LENGTHS = {
    "ragged": ((5, 33, 1, 20), (5, 33, 1, 20)),
    "empty ones": ((0, 8, 0, 31, 0), (0, 8, 0, 31, 0)),
    "other keys": ((3, 64, 20), (70, 64, 7)),
    "no keys": ((4, 6), (0, 9)),
    "one": ((16,), (16,)),
}


def check_packed(
    lengths: tuple[tuple[int, ...], tuple[int, ...]],
    padding: int,
    causal: bool,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    device: str,
    **more: Any,
) -> None:
    """Each sequence as if alone; the rows behind, NaN, get zeros and reach nobody. lengths: of
    queries, and of keys. shape: H, G, D. Gradients are by δ of the o that was returned, as if lse
    had the gradient that this adds: of a few keys all else cancels."""
    of_queries, of_keys = lengths
    T, U = sum(of_queries) + padding, sum(of_keys) + padding
    q, k, v = (x[0] for x in draw(1, T, U, *shape, dtype, device))
    for tensor in (q, k, v):
        tensor[len(tensor) - padding :] = math.nan
    starts = [
        torch.tensor([0, *torch.tensor(each).cumsum(0)], dtype=torch.int32, device=device)
        for each in (of_queries, of_keys)
    ]
    given = [tensor.requires_grad_() for tensor in (q, k, v)]
    names = dict(zip(("cu_seqlens_q", "cu_seqlens_k"), starts, strict=True))
    if of_queries == of_keys:
        del names["cu_seqlens_k"]
    o, lse = attention(*given, **names, **more, causal=causal, return_lse=True)
    assert (o.shape, lse.shape) == (q.shape, (shape[0], T))
    do = torch.randn_like(o)
    grads = torch.autograd.grad(o, given, do)
    for at, of in zip(*(pairwise(each.tolist()) for each in starts), strict=True):
        rows, keys = slice(*at), slice(*of)
        own = [x.detach()[None, part] for x, part in ((q, rows), (k, keys), (v, keys))]
        own = [x.double().requires_grad_() for x in own]
        right_o, right_lse = right(*own, causal=causal)
        close(o[rows], right_o[0], dtype)
        close(lse[:, rows], right_lse[0], dtype)
        upstream = do[None, rows].double()
        dlse = (upstream * (right_o - o[rows].double())).sum(-1).transpose(1, 2).detach()
        seen = right_lse.isfinite()
        total = (right_o * upstream).sum() + (right_lse.where(seen, 0) * dlse).sum()
        wanted = torch.autograd.grad(total, own)
        for found, part, other in zip(grads, (rows, keys, keys), wanted, strict=True):
            close(found[part], other[0], dtype)
    for tensor, size in ((o, T), *zip(grads, (T, U, U), strict=True)):
        assert (tensor[size - padding :] == 0).all()


@pytest.mark.parametrize("causal", [pytest.param(False, marks=SLOW), True])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("padding", [pytest.param(0, marks=SLOW), 19])
def test_packed(lengths: str, padding: int, causal: bool, device: str) -> None:
    check_packed(LENGTHS[lengths], padding, causal, (4, 1, 16), torch.float32, device)


def test_strides_and_one_tensor_three_times(device: str) -> None:
    qkv = torch.randn(2, 24, 3, 2, 16, device=device)
    check(tuple(qkv.unbind(2)), {"causal": True})
    heads_first = torch.randn(3, 2, 2, 24, 16, device=device).transpose(2, 3)
    check(tuple(heads_first.unbind(0)), {})
    last = torch.randn(2, 16, 2, 24, device=device).permute(0, 3, 2, 1)
    check((last, last, last), {})
    wide = torch.randn(2, 24, 2, 16, device=device)
    expanded = wide[:1].expand(2, 24, 2, 16)
    close(attention(expanded, wide, wide), right(expanded, wide, wide)[0], torch.float32)


def test_nothing_to_attend_to_or_with(device: str) -> None:
    none, some = torch.zeros(2, 0, 2, 16, device=device), torch.randn(2, 5, 2, 16, device=device)
    k = some.clone().requires_grad_()
    o = attention(none, k, some)
    assert o.shape == none.shape
    o.sum().backward()
    assert (k.grad == 0).all()
    o, lse = attention(some, none, none, return_lse=True)
    assert (o == 0).all() and (lse == -math.inf).all()
    starts = torch.tensor([0, 0], dtype=torch.int32, device=device)
    assert attention(none[0], none[0], none[0], cu_seqlens_q=starts).shape == (0, 2, 16)


def test_every_config_that_a_tuner_may_pick(device: str) -> None:
    arch = "sm_80" if device == "cpu" else "sm_90"
    inputs = draw(1, 70, 33, 2, 1, 32, torch.float16, device)
    for mode in ("fwd", "full"):
        for config in configs(1, 70, 2, 32, arch=arch, mode=mode, pattern=Pattern(33, 2)):
            check(inputs, {"causal": True}, config=config)


def is_hopper() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


HOPPER = pytest.mark.skipif(not is_hopper(), reason="needs a Hopper GPU: Gluon has no interpreter")


@HOPPER
@CAUSAL
@pytest.mark.parametrize("N", [1, 70, 200, 1000])
@pytest.mark.parametrize("H,G", [(2, 2), (4, 2), (4, 1)])
@pytest.mark.parametrize("D", [64, 128])
def test_hoppers_kernels(D: int, H: int, G: int, N: int, causal: bool) -> None:
    inputs = draw(2, N, N, H, G, D, torch.bfloat16, "cuda")
    found = configs(
        2, N, H, D, arch="sm_90", mode="full", causal=causal, pattern=Pattern(group=H // G)
    )
    for config in (c for c in found if c.hopper or c.bwd_hopper):
        check(inputs, {"causal": causal}, config=config)


@HOPPER
@CAUSAL
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("H,G", [(2, 2), (8, 2), (5, 1)])
@pytest.mark.parametrize("D", [64, 128])
def test_hoppers_kernels_of_packed_sequences(
    D: int, H: int, G: int, lengths: str, causal: bool
) -> None:
    """Of lengths that tiles of 128 divide, and not."""
    pattern = Pattern(None, H // G, plain=False, packed=True)
    how = {"arch": "sm_90", "mode": "full", "causal": causal, "pattern": pattern}
    found = [c for c in configs(1, 2048, H, D, **how) if c.hopper]
    assert {config.bwd_hopper is None for config in found} == {True, False}
    for times in (1, 17, 64):
        of = tuple(tuple(times * n for n in each) for each in LENGTHS[lengths])
        for config in found:
            check_packed(of, 19, causal, (H, G, D), torch.bfloat16, "cuda", config=config)


def fused_configs(H: int, G: int, D: int, causal: bool, packed: bool) -> list[AttentionConfig]:
    """Whose gradients are Hopper's, each only once."""
    pattern = Pattern(None, H // G, plain=not packed, packed=packed)
    how: dict[str, Any] = {"causal": causal, "pattern": pattern}
    found = configs(1, 2048, H, D, arch="sm_90", mode="bwd", **how)
    return [config for config in found if config.bwd_hopper and config.bwd_hopper.fused]


@HOPPER
@CAUSAL
@pytest.mark.parametrize("N", [1, 63, 129, 777, 2048])
@pytest.mark.parametrize("H,G", [(8, 2), (32, 8), (8, 1)])
@pytest.mark.parametrize("D", [64, 128])
def test_gradients_of_heads_that_share_keys_on_hopper(
    D: int, H: int, G: int, N: int, causal: bool
) -> None:
    """Several times: programs add to dq in any order."""
    inputs = draw(2, N, N, H, G, D, torch.bfloat16, "cuda")
    for config in fused_configs(H, G, D, causal, packed=False):
        for _ in range(3):
            check(inputs, {"causal": causal}, config=config)


RAGGED = {
    "ends at blocks": (128, 256, 64, 512),
    "about a block": (127, 1, 129, 0, 0, 255, 128, 1),
    "many short ones": tuple(i % 7 for i in range(200)),
    "one long one": (3, 1900, 5),
    "nothing": (0, 0, 0),
}


@HOPPER
@CAUSAL
@pytest.mark.parametrize("lengths", RAGGED)
@pytest.mark.parametrize("H,G", [(2, 2), (8, 2), (32, 8)])
@pytest.mark.parametrize("D", [64, 128])
def test_gradients_of_packed_sequences_on_hopper(
    D: int, H: int, G: int, lengths: str, causal: bool
) -> None:
    for config in fused_configs(H, G, D, causal, packed=True):
        for padding in (19, 200):
            of = RAGGED[lengths], RAGGED[lengths]
            check_packed(of, padding, causal, (H, G, D), torch.bfloat16, "cuda", config=config)


@HOPPER
@CAUSAL
@pytest.mark.parametrize("W", [1, 3])
@pytest.mark.parametrize("D", [64, 128])
def test_chunks_of_sequences_on_hopper(D: int, W: int, causal: bool) -> None:
    """Chunk c of 2W of every sequence sees its first (c+1)/2W, or all of it."""
    of = 5, 0, 64, 177
    lengths = [[n * m for m in of] for n in (1, 2 * W)]
    starts = [torch.tensor([0, *accumulate(each)]).int().cuda() for each in lengths]
    T, U = (int(each[-1]) for each in starts)
    q, k, v = (x[0] for x in draw(1, T, U, 8, 2, D, torch.bfloat16, "cuda"))
    for chunk in range(2 * W):
        how = How(causal=causal, chunk=chunk)
        o, lse = forward(q, k, v, starts=(starts[0], starts[1]), how=how)
        for at, (first, end) in zip(*(pairwise(each.tolist()) for each in starts), strict=True):
            seen = slice(first, first + (chunk + 1) * (at[1] - at[0]) if causal else end)
            rows = slice(*at)
            own = (x[None, part] for x, part in ((q, rows), (k, seen), (v, seen)))
            wanted, wanted_lse = right(*own, causal)
            close(o[rows], wanted[0], torch.bfloat16)
            close(lse[0, :, rows] * math.log(2), wanted_lse[0], torch.bfloat16)


@HOPPER
@CAUSAL
@pytest.mark.parametrize("H", [2, 8])
@pytest.mark.parametrize("D", [64, 128])
def test_what_is_no_number_stays_in_its_sequence_on_hopper(D: int, H: int, causal: bool) -> None:
    """The middle one of three that share tiles is NaN, and its gradients; theirs have the bits that
    they have beside zeros, but for dq, whose parts are added in any order."""
    G = 2
    starts = torch.tensor([0, 70, 120, 420], dtype=torch.int32, device="cuda")
    q, k, v = (x[0] for x in draw(1, 420, 420, H, G, D, torch.bfloat16, "cuda"))
    do = torch.randn_like(q)
    for config in fused_configs(H, G, D, causal, packed=True):
        found = []
        for value in (0.0, math.nan, math.inf):
            given = [x.clone() for x in (q, k, v)]
            for x in given:
                x[70:120] = value
                x.requires_grad_()
            o = attention(*given, cu_seqlens_q=starts, causal=causal, config=config)
            found.append(torch.autograd.grad(o, given, do))
        for grads in found[1:]:
            for i, (one, other) in enumerate(zip(found[0], grads, strict=True)):
                for part in (one[:70], other[:70]), (one[120:], other[120:]):
                    close(*part, torch.bfloat16)
                    assert i == 0 or torch.equal(*part)
                assert not other[70:120].isfinite().all()


@HOPPER
def test_packed_sequences_of_many_heads_run_in_sections() -> None:
    """k and v of more bytes than a section's: heads are shared out, and none is left out."""
    lengths = ((9000, 1, 8191, 8000),) * 2
    pattern = Pattern(None, 2, plain=False, packed=True)
    found = configs(1, 25192, 12, 128, arch="sm_90", mode="full", causal=True, pattern=pattern)
    config = next(each for each in found if each.hopper)
    for H in (12, 10):
        check_packed(lengths, 0, True, (H, H // 2, 128), torch.bfloat16, "cuda", config=config)


@HOPPER
@pytest.mark.parametrize("packed", [False, True])
def test_prepared_launches_serve_other_tensors(packed: bool) -> None:
    """The first call of a layout prepares what the next ones repeat at other addresses."""
    shape = (4, 2048, 2048, 8, 8, 128)
    starts = torch.tensor([0, 700, 2048], dtype=torch.int32, device="cuda")
    for seed in range(3):
        torch.manual_seed(seed)
        inputs = [torch.randn_like(x) for x in draw(*shape, torch.bfloat16, "cuda")]
        if packed:
            q, k, v = (x[0].requires_grad_() for x in inputs)
            ends = starts + torch.tensor([0, 100 * seed, 0], device="cuda").int()
            o = attention(q, k, v, cu_seqlens_q=ends, causal=True)
            parts = [slice(*each) for each in pairwise(ends.tolist())]
            wanted = [right(q[None, at], k[None, at], v[None, at], True)[0] for at in parts]
            close(o, torch.cat(wanted, 1)[0], torch.bfloat16)
            o.sum().backward()
        else:
            check(tuple(inputs), {"causal": True})


def test_the_table_knows_what_hoppers_kernels_take() -> None:
    def first(keys: int = 4096, group: int = 1, plain: bool = True) -> AttentionConfig:
        pattern = Pattern(keys, group, plain)
        return choose((2, 4096, 8, 128), "sm_90", 2, True, True, True, False, False, pattern)

    assert first().hopper and first().bwd_hopper
    assert first(group=4).hopper and first(group=4).bwd_hopper
    for other in (first(keys=4097), first(plain=False)):
        assert not (other.hopper or other.bwd_hopper)
    unsuited = choose((2, 4096, 8, 128), "sm_90", 2, True, False, True, False, False)
    assert (
        unsuited
        == first(plain=False)
        == configs(
            2, 4096, 8, 128, arch="sm_90", mode="full", causal=True, pattern=Pattern(plain=False)
        )[0]
    )
    packed = Pattern(None, 4, plain=False, packed=True)
    others = [Pattern(None, 4, plain=False), Pattern(4097, 4)]
    for pattern, runs in [(packed, True), *((other, False) for other in others)]:
        how: dict[str, Any] = {"arch": "sm_90", "pattern": pattern}
        found = configs(1, 4096, 8, 128, mode="fwd", **how)
        assert (found[0].hopper is not None) == runs
        for mode in ("bwd", "full"):
            first, *more = configs(1, 4096, 8, 128, mode=mode, **how)
            assert (first.bwd_hopper is not None) == runs
            assert any(config.bwd_hopper is None for config in more)


@pytest.mark.parametrize("packed", [False, True])
def test_what_has_no_repeatable_kernel_of_hopper_s_repeats_by_tl(packed: bool, device: str) -> None:
    """Heads that share keys, and packed sequences: by one kernel where all gradients are wanted."""

    def kernels(needs: tuple[bool, bool, bool], **options: Any) -> list[str]:
        with described_for(Target("sm_90", 132)) as launches:
            q, k, v = (
                torch.empty(4096, H, 128, dtype=torch.bfloat16, device="meta") for H in (8, 2, 2)
            )
            given = [x.requires_grad_(need) for x, need in zip((q, k, v), needs, strict=True)]
            if packed:
                starts = torch.empty(6, dtype=torch.int32, device="meta")
                attention(*given, cu_seqlens_q=starts, **options).backward(q)
            else:
                attention(*(x[None] for x in given), **options).backward(q[None])
        names = [launch.kernel.fn.__name__ for launch in launches]
        return names[names.index("find_deltas") + 1 :]

    fused = [*["list_tiles"][:packed], "differentiate", "scale_queries"]
    by_tl = ["differentiate_keys", "differentiate_queries"]
    for causal in (False, True):
        assert kernels((True, True, True), causal=causal) == fused
        assert kernels((True, True, True), causal=causal, deterministic=True) == by_tl
    assert kernels((True, False, False)) == by_tl[1:]
    assert kernels((False, True, True)) == by_tl[:1]


def test_chunks_are_one_launch_of_hopper_s_and_their_gradients_tl_s() -> None:
    with described_for(Target("sm_90", 132)) as launches:
        q, k = (torch.empty(n, 8, 128, dtype=torch.bfloat16, device="meta") for n in (4096, 16384))
        starts = torch.empty(5, dtype=torch.int32, device="meta")
        given = [x.requires_grad_() for x in (q, k, k.clone())]
        how = How(causal=True, chunk=3)
        o, _ = attend(*given, starts=(starts, starts.clone()), how=how)
        o.backward(q)
    names = [launch.kernel.fn.__name__ for launch in launches]
    gradients = ["find_deltas", "differentiate_keys", "differentiate_queries"]
    assert names == ["list_tiles", "attend", *gradients]


def test_what_is_launched_for_a_gpu(device: str) -> None:
    """D of 64 and 128 in Gluon, causal, too; heads may share keys there."""

    def kernels(*shape: int, **options: Any) -> list[str]:
        B, N, K, H, G, D = shape
        with described_for(Target("sm_90", 132)) as launches:
            q = torch.empty(B, N, H, D, dtype=torch.bfloat16, device="meta")
            k = torch.empty(B, K, G, D, dtype=torch.bfloat16, device="meta")
            attention(q, k, k.clone(), **options)
        return [launch.kernel.fn.__module__.rpartition("kernels.")[2] for launch in launches]

    for D in (64, 128):
        assert kernels(4, 4096, 4096, 8, 2, D, causal=True) == ["attention.hopper.forward"]
    assert kernels(4, 4096, 4096, 8, 2, 96) == ["attention.forward"]
    assert kernels(4, 4096, 8192, 8, 8, 128) == ["attention.forward"]
    assert kernels(4, 4096, 4096, 8, 8, 128, window=(64, 0)) == ["attention.forward"]


def test_what_is_launched_for_packed_sequences(device: str) -> None:
    """In Gluon, behind a list of the tiles; by `tl` where these would be few, and with a window."""
    pattern = Pattern(None, 4, plain=False, packed=True)
    config = configs(1, 4096, 8, 128, arch="sm_90", mode="fwd", causal=True, pattern=pattern)[0]

    def kernels(config: AttentionConfig | None, rows: int = 4096, **options: Any) -> list[str]:
        with described_for(Target("sm_90", 132)) as launches:
            q = torch.empty(rows, 8, 128, dtype=torch.bfloat16, device="meta")
            k = torch.empty(rows, 2, 128, dtype=torch.bfloat16, device="meta")
            starts = torch.empty(6, dtype=torch.int32, device="meta")
            attention(q, k, k, cu_seqlens_q=starts, causal=True, config=config, **options)
        return [launch.kernel.fn.__name__ for launch in launches]

    assert kernels(config) == kernels(None) == ["list_tiles", "attend"]
    assert kernels(None, rows=1000) == kernels(None, window=(64, 0)) == ["attend"]
    with pytest.raises(ValueError, match=r"without a window: .* or packed sequences"):
        kernels(config, window=(64, 0))
    assert config.hopper
    for other in ({"groups": 3}, {"polynomial": 4}):
        with pytest.raises(ValueError, match="a tile of 2 groups without rest or polynomial"):
            kernels(replace(config, hopper=replace(config.hopper, **other)))


def test_gradients_have_the_same_bits_on_request(device: str) -> None:
    inputs = [x.requires_grad_() for x in draw(1, 70, 70, 2, 1, 64, torch.float16, device)]
    do = torch.randn(1, 70, 2, 64, device=device).half()

    def gradients() -> tuple[Tensor, ...]:
        o = attention(*inputs, causal=True, deterministic=True)
        return torch.autograd.grad(o, inputs, do)

    first = gradients()
    assert all(map(torch.equal, gradients(), first))


@CAUSAL
@pytest.mark.parametrize("packed", [False, True])
def test_parts_of_the_keys_make_the_whole(causal: bool, packed: bool, device: str) -> None:
    """Forward merged by lse; gradients added up in fp32, fed lse and δ of the whole.

    Causal: the second part is what the last queries see besides the first, all of which they see.
    """
    q, k, v = draw(1, 24, 48, 4, 2, 16, torch.float32, device)
    do = torch.randn_like(q)
    given = [x.clone().requires_grad_() for x in (q, k, v)]
    whole, lse = attention(*given, causal=causal, return_lse=True)
    wanted = torch.autograd.grad(whole, given, do)
    hows = How(), How(causal=causal)
    parts = [(k[:, :24], v[:, :24]), (k[:, 24:], v[:, 24:])]
    starts = None
    if packed:
        q, do = q[0], do[0]
        parts = [(a[0], b[0]) for a, b in parts]
        at = torch.tensor([0, 24], dtype=torch.int32, device=device)
        starts = at, at
    done = [forward(q, *of, starts=starts, how=how) for of, how in zip(parts, hows, strict=True)]
    total = torch.logaddexp2(done[0][1], done[1][1])
    close(total * math.log(2), lse.double(), torch.float32)
    weights = [(each - total).exp2().transpose(1, 2)[..., None] for _, each in done]
    o = sum(w * each for w, (each, _) in zip(weights, done, strict=True))
    o = o[0] if packed else o
    close(o.view(whole.shape), whole.double(), torch.float32)
    statistic = statistic_of(q if not packed else q[None]).copy_(total)
    delta, sums = delta_of(do, o), torch.zeros_like(q)
    found = []
    for of, how in zip(parts, hows, strict=True):
        dk, dv = (torch.full_like(x, 2.0) for x in of)
        dq, dk, dv = backward(
            do, q, *of, statistic, delta, starts=starts, how=how, accumulate=(sums, dk, dv)
        )
        assert dq is sums
        found.append((dk - 2, dv - 2))
    close(sums.view(wanted[0].shape), wanted[0].double(), torch.float32)
    for place in (0, 1):
        joined = torch.cat([each[place].view(1, 24, 2, 16) for each in found], 1)
        close(joined, wanted[1 + place].double(), torch.float32)
    alone = backward(do, q, *parts[0], statistic, delta, starts=starts, how=hows[0])
    close(alone[1], found[0][0].double(), torch.float32)


BAD = [
    (lambda q, k, v, s: attention(q.double(), k, v), TypeError, "of one dtype"),
    (lambda q, k, v, s: attention(q[0], k[0], v[0]), ValueError, "packed need cu_seqlens_q"),
    (lambda q, k, v, s: attention(q, k, v[:, 1:]), ValueError, r"takes q \(B,N,H,D\)"),
    (lambda q, k, v, s: attention(q, k[..., :8], v[..., :8]), ValueError, "same B and D"),
    (lambda q, k, v, s: attention(q[:, :, :3], k, v), ValueError, "divides that of q, got 2 and 3"),
    (lambda q, k, v, s: attention(*[x.repeat(1, 1, 1, 20) for x in (q, k, v)]), ValueError,
     "1 to 256 elements, got D = 320"),
    (lambda q, k, v, s: attention(q, k, v, cu_seqlens_q=s), ValueError, r"q \(T,H,D\)"),
    (lambda q, k, v, s: attention(q, k, v, cu_seqlens_k=s), ValueError, "got it alone"),
    (lambda q, k, v, s: attention(q[0], k[0], v[0], cu_seqlens_q=s.long()), TypeError, "of int32"),
    (lambda q, k, v, s: attention(q[0], k[0], v[0], cu_seqlens_q=s, cu_seqlens_k=s[:2]), ValueError,
     r"cu_seqlens_k of shape \(S\+1,\)"),
    (lambda q, k, v, s: attention(q, k, v, scale=0.0), ValueError, "positive, finite scale"),
    (lambda q, k, v, s: attention(q, k, v, scale=q[0, 0, 0, 0]), TypeError, r"pass \.item\(\)"),
    (lambda q, k, v, s: attention(q, k, v, window=4), TypeError, r"window as \(left, right\)"),
    (lambda q, k, v, s: attention(q, k, v, window=(-2, 0)), TypeError, "−1 for no limit"),
    (lambda q, k, v, s: attention(q, k, v, window=(3.0, 1)), TypeError, "−1 for no limit"),
    (lambda q, k, v, s: attention(q, k, v, causal=s[0] > 0), TypeError, r"causal as True or False"),
    (lambda q, k, v, s: attention(q, k, v, causal="no"), TypeError, "causal as True or False"),
    (lambda q, k, v, s: attention(q, k, v, deterministic="x"), TypeError, "deterministic as True"),
    (lambda q, k, v, s: attention(q, k, v, deterministic=s[:1] > 0), TypeError, "deterministic as"),
    (lambda q, k, v, s: forward(q, k, v, how=How(causal=s[0] > 0)), TypeError, "causal as True"),
    (lambda q, k, v, s: attention(q, k, v, config={}), TypeError, "config as an AttentionConfig"),
    (lambda q, k, v, s: attention(q.tolist(), k, v), TypeError, "q as a tensor, got list"),
    (lambda q, k, v, s: attention(q[0], k[0], v[0], cu_seqlens_q=[0, 6]), TypeError,
     "cu_seqlens_q as a tensor, got list"),
    (lambda q, k, v, s: attention(q.to("meta"), k, v), RuntimeError, "several devices"),
]  # fmt: skip


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_what_it_does_not_take_is_said(
    call: Any, error: type, words: str, warm: bool, device: str
) -> None:
    """warm: also where an argument that is equal, but of the right kind, has been seen before."""
    q, k, v = draw(1, 6, 6, 4, 2, 16, torch.float32, device)
    starts = torch.tensor([0, 2, 6], dtype=torch.int32, device=device)
    if warm:
        attention(q, k, v, window=(3, 1), causal=True)
    with pytest.raises(error, match=words):
        call(q, k, v, starts)


def test_numbers_of_numpy_are_numbers(device: str) -> None:
    inputs = draw(1, 6, 6, 2, 2, 16, torch.float32, device)
    window = (np.int64(2), 2**70)
    found = attention(*inputs, causal=np.bool_(True), scale=np.float32(0.5), window=window)
    assert torch.equal(found, attention(*inputs, causal=True, scale=0.5, window=(2, -1)))


def test_a_request_for_the_same_bits_goes_before_a_config() -> None:
    """PyTorch's switch does not, as a config that is passed decides for itself."""

    def launched(asked: bool | None, switch: bool, given: bool) -> bool:
        """Whether gradients are the kernel that adds in any order."""
        shape = 4, 4096, 16, 64
        config = configs(*shape, arch="sm_90", mode="full")[0] if given else None
        torch.use_deterministic_algorithms(switch)
        try:
            with described_for(Target("sm_90", 132)) as launches:
                q, k, v = (
                    torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=True)
                    for _ in "qkv"
                )
                attention(q, k, v, config=config, deterministic=asked).sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
        return any(launch.kernel.fn.__name__ == "differentiate" for launch in launches)

    for given in (False, True):
        assert launched(None, False, given) and launched(False, True, given)
        assert not launched(True, False, given)
        assert launched(None, True, given) == given


def test_the_number_of_sequences_may_be_dynamic(device: str) -> None:
    class Packed(torch.nn.Module):
        def forward(self, x: Tensor, starts: Tensor) -> Tensor:
            return attention(x, x, x, cu_seqlens_q=starts)

    given = torch.randn(6, 2, 16, device=device), torch.tensor([0, 2, 5], device=device).int()
    sizes = {"x": {0: torch.export.Dim("T", min=2)}, "starts": {0: torch.export.Dim("S", min=2)}}
    program = torch.export.export(Packed(), given, dynamic_shapes=sizes).module()
    x, starts = (
        torch.randn(9, 2, 16, device=device),
        torch.tensor([0, 1, 4, 9], device=device).int(),
    )
    assert torch.equal(program(x, starts), Packed()(x, starts))


def test_what_the_primitives_do_not_take_is_said(device: str) -> None:
    q, k, v = draw(2, 6, 6, 2, 2, 16, torch.float32, device)
    do = torch.randn_like(q)
    o, lse = forward(q, k, v)
    delta = delta_of(do, o)
    right_ones = backward(do, q, k, v, lse, delta)
    for found, wanted in zip(
        backward(
            torch._neg_view(-do), torch._neg_view(-q), k, v, lse.clone(), delta.contiguous()
        ),
        right_ones, strict=True,
    ):  # fmt: skip
        assert torch.equal(found, wanted)
    sums = [torch.zeros_like(x) for x in (q, k, v)]
    backward(do, q, k, v, lse, delta, accumulate=tuple(sums))
    assert all(map(torch.equal, sums, right_ones)) and all(x._version for x in sums)
    turned = [torch.zeros(2, 2, 6, 16, device=device).transpose(1, 2) for _ in "qkv"]
    for options, words in (
        ({"accumulate": sums[:2]}, r"as \(dq, dk, dv\), got 2"),
        ({"accumulate": [x[:1] for x in sums]}, "contiguous dq of a floating dtype and of shape"),
        ({"accumulate": turned}, "contiguous dq"),
        ({"accumulate": [x.int() for x in sums]}, "floating dtype"),
        ({"delta": delta[:1]}, "delta of shape"),
        ({"lse": lse[0]}, "lse of shape"),
        ({"delta": delta.double()}, "float32"),
        ({"do": do[:, :3]}, "do of q's shape"),
        ({"do": do.half()}, "do of q's shape and dtype"),
    ):
        given: dict[str, Any] = {"do": do, "lse": lse, "delta": delta} | options
        with pytest.raises(ValueError, match=words):
            backward(q=q, k=k, v=v, **given)


def test_a_tile_of_hopper_is_refused_where_it_does_not_run(device: str) -> None:
    tile = configs(2, 4096, 8, 64, arch="sm_90", mode="full")[0]
    q, k, v = draw(1, 6, 8, 4, 2, 64, torch.float16, device)
    with pytest.raises(ValueError, match=r"as many queries as keys.*config=None"):
        attention(q, k, v, config=tile)


def test_no_value_of_a_device_is_read(device: str) -> None:
    """Where sequences begin stays on the GPU: no call waits for it."""
    if device == "cpu":
        pytest.skip("a CPU has nothing to wait for")
    q, k, v = (x[0].requires_grad_() for x in draw(1, 64, 64, 4, 2, 64, torch.float16, device))
    starts = torch.tensor([0, 20, 64], dtype=torch.int32, device=device)
    attention(q, k, v, cu_seqlens_q=starts).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attention(q, k, v, cu_seqlens_q=starts).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
