"""Zigzag attention on Hopper: which tiles are listed, how keys are put in order and their gradients
back, when it is launched, and on a GPU whether it is right."""

import random
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from compiling import printed_without_interpreter
from test_zigzag_attention import SEEDS, check_all_ranks, sample, starts_of
from torch import Tensor

from kernelbench.kernels.ahead_of_time import ahead_of_time
from kernelbench.kernels.attention.hopper.backward import HopperFusedTile
from kernelbench.kernels.attention.hopper.forward import HopperTile
from kernelbench.kernels.attention.hopper.order import list_launch, listed_size
from kernelbench.kernels.launch import INTERPRETED, Launch, Target, ceil_div, described_for
from kernelbench.kernels.zigzag_attention import ZigzagConfig, parts, zigzag_attention
from kernelbench.kernels.zigzag_attention.configs import configs
from kernelbench.kernels.zigzag_attention.hopper import (
    Cuts,
    Seen,
    lies_cut,
    ordering_launch,
    restoring_launch,
    sees_cut,
)
from kernelbench.kernels.zigzag_attention.lengths import How, chunk_rows, rows_of_chunk
from kernelbench.kernels.zigzag_attention.places import Keys

interpreted = pytest.mark.skipif(not INTERPRETED, reason="the interpreter's answer serves any GPU")
on_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9,
    reason="needs a GPU of sm_90",
)
TILES = {D: HopperTile(2, 128, 2 if D == 128 else 4, 240) for D in (64, 128)}


@interpreted
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_tiles_of_both_chunks_are_listed_once_each_and_the_longest_first(
    seed: int, causal: bool
) -> None:
    draw = random.Random(seed)
    rows, W = 16, draw.choice([1, 2, 4])
    rank = draw.randrange(W)
    numbers = rank, 2 * W - 1 - rank
    lengths = [draw.choice([0, 1, 2 * W, draw.randrange(1000)]) for _ in range(9)]
    chunks = [[rows_of_chunk(length, n, 2 * W) for length in lengths] for n in numbers]
    for s in (2, 5):  # whole ones, this rank's or another's
        chunks[0][s], chunks[1][s] = (lengths[s], 0) if s == 2 else (0, 0)
    behind = draw.choice([0, 40])
    T = [sum(of) + behind for of in chunks]
    starts = [starts_of(of, "cpu") for of in (*chunks, lengths)]
    place = Cuts(starts[0], starts[1], starts[2], starts[2], 9, *numbers, *T, 2 * W, 1)
    listed = torch.full((listed_size(max(T), 9, rows, twice=True),), -7, dtype=torch.int32)
    list_launch(place, lies_cut, listed, max(T), rows, causal, twice=True).run()

    wanted: dict[tuple[int, int], int] = {}
    for late, of in enumerate(chunks):
        for s, n in enumerate([*of, behind]):
            c = 1 if s == 9 else ceil_div(lengths[s], 2 * W)
            keys = 0 if s == 9 else lengths[s]
            ahead = 0 if n == keys else numbers[late] * c
            for i in range(ceil_div(n, rows)):
                wanted[s + 10 * late, i] = ahead // rows + i if causal else keys // rows
    found = [tuple(x) for x in listed[2 : 2 + 2 * len(wanted)].view(-1, 2).tolist()]
    assert listed[:2].tolist() == [0, len(wanted)] and sorted(found) == sorted(wanted)
    lengths_found = [wanted[each] for each in found]
    assert lengths_found == sorted(lengths_found, reverse=True)


@triton.jit
def lies_of_all(place, found, LIES: tl.constexpr):
    for late in range(2):
        for s in range(place.S + 1):
            q0, rows, ahead, key, keys = LIES(place, place.q_starts, s, late, 0)
            at = found + (late * (place.S + 1) + s) * 5
            tl.store(at, q0)
            tl.store(at + 1, rows)
            tl.store(at + 2, ahead)
            tl.store(at + 3, key)
            tl.store(at + 4, keys)


@interpreted
def test_where_chunks_lie() -> None:
    """In tensors of their own and next to each other; first query, queries, the position of the
    first, first key and keys. The last document is not cut: it begins at 0."""
    ends = [0, 3, 5, 9], [0, 11, 19, 23], [0, 12, 20, 24]
    starts = [torch.tensor(each, dtype=torch.int32) for each in ends]
    apart = Cuts(starts[0], *starts, 3, 1, 2, 11, 11, 4, 1)
    found = torch.full((2, 2, 4, 5), -1, dtype=torch.int32)
    for place, into in zip((apart, apart._replace(step=2)), found, strict=True):
        lies_of_all[(1,)](place, into, lies_cut)
    first, second = found.tolist()
    assert first[0] == [[0, 3, 3, 0, 11], [3, 2, 2, 12, 8], [5, 4, 0, 20, 4], [9, 2, 1, 24, 0]]
    assert first[1] == [[0, 3, 6, 0, 11], [3, 2, 4, 12, 8], [5, 4, 0, 20, 4], [9, 2, 2, 24, 0]]
    assert [row[0] for row in second[0]] == [0, 6, 10, 18]
    assert [row[0] for row in second[1]] == [3, 8, 14, 20]


@triton.jit
def sees_of_all(place, found, SEES: tl.constexpr):
    for late in tl.static_range(2):
        for s in range(place.cuts.S + 1):
            q0, rows, ahead, key, keys, stored = SEES(place, s, late)
            at = found + (late * (place.cuts.S + 1) + s) * 6
            tl.store(at, q0)
            tl.store(at + 1, rows)
            tl.store(at + 2, ahead)
            tl.store(at + 3, key)
            tl.store(at + 4, keys)
            tl.store(at + 5, stored)


@interpreted
def test_which_rows_see_keys() -> None:
    """As above, of late chunks behind the early ones: none that is padded; and the keys that have
    gradients, padded ones, too, and those behind the last document."""
    ends = [0, 3, 5, 9], [0, 11, 19, 23], [0, 12, 20, 24]
    starts = [torch.tensor(each, dtype=torch.int32) for each in ends]
    place = Seen(Cuts(starts[0], *starts, 3, 1, 3, 11, 11, 4, 1), 30, 11)
    found = torch.full((2, 4, 6), -1, dtype=torch.int32)
    sees_of_all[(1,)](place, found, sees_cut)
    early, late = found.tolist()
    assert early == [
        [0, 3, 3, 0, 11, 12],
        [3, 2, 2, 12, 8, 8],
        [5, 4, 0, 20, 4, 4],
        [9, 0, 1, 24, 0, 6],
    ]
    assert late == [
        [11, 2, 9, 0, 11, 12],
        [14, 2, 6, 12, 8, 8],
        [16, 4, 0, 20, 4, 4],
        [20, 0, 3, 24, 0, 6],
    ]


@interpreted
@pytest.mark.parametrize("W", [1, 3])
def test_keys_are_put_in_the_order_of_documents(W: int) -> None:
    """What is padded, NaN, becomes zeros; heads and rows may lie apart. Gradients go back to where
    their keys lie."""
    padded = [2 * W * n for n in (1, 0, 40, 7)]
    lengths = [2 * W, 0, 80 * W - 3, 14 * W]
    T, G, D = sum(padded), 2, 16
    ordered = torch.randn(T, G, 2 * D, dtype=torch.float16)
    starts, lies = starts_of(lengths, "cpu"), starts_of(padded, "cpu")
    for start, length, room in zip(lies.tolist(), lengths, padded, strict=False):
        ordered[start + length : start + room] = torch.nan
    given = torch.empty_like(ordered)
    for number in range(2 * W):
        of = starts_of([n // (2 * W) for n in padded], "cpu")
        at = chunk_rows(of, lies, number, 2 * W, T)
        given[at] = ordered[chunk_rows(of, lies, number, 2 * W)]
    k, v = given[..., :D], given[..., D:]
    strides = T and (*k.stride()[:2], v, *v.stride()[:2])
    keys = Keys(k, *strides, None, None, None, starts, lies, 2 * W, W, 4, T)
    outs = [torch.full((T, G, D), 7.0, dtype=torch.float16) for _ in range(2)]
    ordering_launch(keys, *outs).run()
    for out, wanted in zip(outs, (ordered[..., :D], ordered[..., D:]), strict=True):
        assert out.equal(wanted.nan_to_num(0.0))
    back = [torch.full((T, G, D), 7.0, dtype=torch.float16) for _ in range(2)]
    like = keys._replace(dk=back[0], dv=back[1], d_stride_T=back[0].stride(0))
    restoring_launch(like, *outs).run()
    for out, wanted in zip(back, (k, v), strict=True):
        assert out.equal(wanted.nan_to_num(0.0))


def test_what_is_launched_for_a_gpu() -> None:
    """The list and one kernel for both chunks, behind a copy of keys in zigzag order; `tl` where
    there is little to do, for fp32, other heads, rows at odd addresses, and other GPUs."""

    def kernels(
        T: int = 4096,
        D: int = 128,
        dtype: torch.dtype = torch.bfloat16,
        order: str = "sequence",
        arch: str = "sm_90",
        offset: int = 0,
        **options: Any,
    ) -> list[str]:
        def empty(rows: int, H: int) -> Tensor:
            size = torch.empty(rows, H, D + offset, dtype=dtype, device="meta")
            return size[..., offset:]

        with described_for(Target(arch, 132)) as launches:
            starts = torch.empty(4, dtype=torch.int32, device="meta")
            zigzag_attention(
                *(empty(T, 8), empty(T, 8), empty(4 * T, 2), empty(4 * T, 2)),
                *(starts, starts, starts.clone()),
                chunk_idx_0=1,
                chunk_idx_1=6,
                total_chunks=8,
                kv_order=order,
                **options,
            )
        return [launch.kernel.__name__ for launch in launches]

    theirs = ["attend_chunks"]
    assert kernels() == ["list_tiles", "attend"] == kernels(D=64, dtype=torch.float16)
    assert kernels(order="zigzag") == ["order_keys", "list_tiles", "attend"]
    assert kernels(T=64) == theirs == kernels(D=96) == kernels(dtype=torch.float32)
    assert kernels(arch="sm_80") == theirs == kernels(offset=1)
    tile = ZigzagConfig(16, 16, 4, 1, 16, 16, 4, 1, hopper=TILES[64])
    with pytest.raises(ValueError, match=r"D of 64 or 128, .* D = 128 on sm_80"):
        kernels(arch="sm_80", config=tile)


def launched(order: str, needs: tuple[bool, bool], **more: Any) -> list[Launch]:
    """Both ways by one kernel each, for sm_90; needs: gradients of queries, and of keys."""
    with described_for(Target("sm_90", 132)) as launches:
        shapes = [(512, 8), (512, 8), (2048, 2), (2048, 2)]
        q0, q1, k, v = (torch.empty(*x, 128, device="meta").bfloat16() for x in shapes)
        given = [
            x.requires_grad_(need)
            for x, need in ((q0, needs[0]), (q1, needs[0]), (k, needs[1]), (v, needs[1]))
        ]
        starts = torch.empty(4, dtype=torch.int32, device="meta")
        results = zigzag_attention(
            *(*given, starts, starts, starts.clone()),
            chunk_idx_0=0,
            chunk_idx_1=3,
            total_chunks=4,
            kv_order=order,
            config=with_tile(128, fused=True),
            **more,
        )
        wanted = [x for x in given if x.requires_grad]
        found = torch.autograd.grad(results[0].sum() + results[1].sum(), wanted)
    # results of an operator of torch.library share no memory
    assert len({x.untyped_storage()._cdata for x in found}) == len(wanted)
    return launches


def compile_each() -> None:
    """For a process without the interpreter."""
    for order in ("sequence", "zigzag"):
        for launch in launched(order, (True, True)):
            compiled = ahead_of_time(launch, "sm_90")
            assert not compiled.serialised and compiled.shared_bytes <= 232448, compiled.kernel
            print(compiled.kernel)


@pytest.mark.slow
def test_what_a_config_alone_launches_compiles() -> None:
    names = printed_without_interpreter("test_zigzag_hopper", "compile_each").split()
    assert {"differentiate", "restore_keys"} < {*names}


def test_gradients_by_one_kernel_are_launched_where_a_config_says_so() -> None:
    """Behind a copy of keys in zigzag order, and one of their gradients back; `tl` where dq or
    those of keys alone are wanted."""

    def kernels(order: str, needs: tuple[bool, bool], **more: Any) -> list[str]:
        names = [launch.kernel.fn.__name__ for launch in launched(order, needs, **more)]
        return names[names.index("attend") + 1 :]

    one = ["find_deltas", "list_tiles", "differentiate", "scale_queries"]
    assert kernels("sequence", (True, True)) == one
    assert kernels("zigzag", (True, True)) == ["order_keys", *one, "restore_keys"]
    assert "differentiate" not in kernels("sequence", (True, False))
    with pytest.raises(ValueError, match="deterministic=True is not what"):
        kernels("sequence", (True, True), deterministic=True)
    with pytest.raises(ValueError, match="bwd_hopper is not late, halves or flat"):
        replace(with_tile(128), bwd_hopper=HopperFusedTile(2, 2, late=True))


def test_one_tensor_twice_is_two_chunks() -> None:
    """Chunks lie next to each other where an operator says so, not where tensors are the same."""
    places = []
    for same in (False, True):
        with described_for(Target("sm_90", 132)) as launches:
            q = torch.empty(4096, 8, 128, dtype=torch.bfloat16, device="meta")
            k = torch.empty(8192, 2, 128, dtype=torch.bfloat16, device="meta")
            starts = torch.empty(4, dtype=torch.int32, device="meta")
            zigzag_attention(
                *(q, q if same else q.clone(), k, k.clone(), starts, starts, starts.clone()),
                chunk_idx_0=0,
                chunk_idx_1=1,
                total_chunks=2,
            )
        lists, attends = launches
        assert attends.args["late_q_desc"] is not None and attends.args["late"].N == 4096
        places.append([lists.args["place"]._asdict()[name] for name in ("step", "T", "late_T")])
    assert places[0] == places[1] == [1, 4096, 4096]


def test_the_table_knows_what_hoppers_kernel_takes() -> None:
    for D, T, arch, size, first in [
        (128, 4096, "sm_90", 2, True),
        (64, 4096, "sm_90", 2, True),
        (128, 64, "sm_90", 2, False),
        (96, 4096, "sm_90", 2, False),
        (128, 4096, "sm_90", 4, False),
        (128, 4096, "sm_80", 2, False),
    ]:
        for mode in ("fwd", "bwd", "full"):
            found = configs(T, 8 * T, 8, D, arch=arch, itemsize=size, mode=mode)
            assert (found[0].hopper is not None) == first, (D, T, arch, mode)
        anywhere = any(c.hopper for c in configs(T, 8 * T, 8, D, arch=arch, itemsize=size))
        assert anywhere == (arch == "sm_90" and size == 2 and D != 96)


def with_tile(D: int, held: bool = False, fused: bool = False) -> ZigzagConfig:
    tile = HopperTile(2, 128, 2 if D == 128 else 4, 240, held=held)
    backward = HopperFusedTile(2, 2, rotated=D == 64) if fused else None
    return ZigzagConfig(32, 32, 4, 2, 32, 32, 4, 2, hopper=tile, bwd_hopper=backward)


FUSED = pytest.mark.parametrize("fused", [False, True])


@on_hopper
@pytest.mark.parametrize("order", ["sequence", "zigzag"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("W", [1, 2, 3, 8])
def test_every_rank(W: int, D: int, causal: bool, order: str) -> None:
    """Chunks that are no multiple of a tile, an empty document, one of 2W tokens."""
    lengths = [2 * W, 0, 200 * W, 2 * W * 129, 6 * W]
    for seed, tiles in enumerate(((False, False), (True, False), (False, True))):
        s = sample(lengths, 4, 1, D, torch.bfloat16, "cuda", causal, seed)
        options = {"causal": causal, "config": with_tile(D, *tiles)}
        check_all_ranks(s, lengths, W, zigzag=order == "zigzag", **options)


@on_hopper
@FUSED
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("order", ["sequence", "zigzag"])
def test_padded_rows_may_hold_anything(order: str, D: int, causal: bool, fused: bool) -> None:
    """Twice, of other numbers: launches are prepared then."""
    lengths, padded = [5, 0, 24, 350, 1, 511], [8, 4, 24, 400, 4, 512]
    options = {"causal": causal, "config": with_tile(D, fused=fused)}
    for seed in range(2):
        s = sample(lengths, 2, 1, D, torch.float16, "cuda", causal, seed)
        check_all_ranks(s, lengths, 2, padded=padded, zigzag=order == "zigzag", **options)


@on_hopper
@FUSED
def test_short_documents_are_given_whole_to_a_rank(fused: bool) -> None:
    lengths: list[int] = [400, 130, 3, 240, 9, 1]
    s = sample(lengths, 2, 1, 64, torch.bfloat16, "cuda")
    owners = [None, 0, 1, None, 1, 0]
    check_all_ranks(s, lengths, 2, owners=owners, config=with_tile(64, fused=fused))


@on_hopper
@FUSED
@pytest.mark.parametrize("name", [*SEEDS])
def test_the_documents_of_the_benchmark(name: str, fused: bool) -> None:
    lengths = SEEDS[name]
    s = sample(lengths, 8, 2, 128, torch.bfloat16, "cuda")
    config = with_tile(128, fused=fused)
    check_all_ranks(s, lengths, 4, zigzag=name != "uneven", config=config)


@on_hopper
@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("zigzag", [False, True])
def test_chunks_next_to_each_other(zigzag: bool, D: int) -> None:
    """As ranks have them, some heads of more: the same bits as of chunks apart."""
    W, rank, padded = 2, 1, [4 * 100, 4 * 257, 4]
    H, G, T = 4, 2, sum(padded)
    generator = torch.Generator("cuda").manual_seed(D)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda").bfloat16()

    k, v = drawn(T, G, D), drawn(T, G, D)
    of = [n // (2 * W) for n in padded]
    chunks, lies = starts_of(of, "cuda"), starts_of(padded, "cuda")
    q = drawn(T // W, H + 2, D)[:, 1 : H + 1]
    numbers = rank, 2 * W - 1 - rank
    how = How(*numbers, 2 * W, None, True, zigzag)
    o = torch.full((T // W, H + 2, D), torch.nan, device="cuda", dtype=torch.bfloat16)
    lse = torch.full((1, H + 2, T // W), torch.nan, device="cuda")
    documents = parts.Joined(chunks, lies, lies)
    inner = o[:, 1 : H + 1], lse[:, 1 : H + 1]
    parts.forward(q, k, v, documents, *inner, how=how, config=with_tile(D))
    assert o[:, [0, H + 1]].isnan().all() and lse[:, [0, H + 1]].isnan().all()

    begins = [0, *accumulate(2 * n for n in of)]
    halves = [
        torch.cat(
            [
                torch.arange(b + n * which, b + n * (which + 1))
                for b, n in zip(begins, of, strict=False)
            ]
        )
        for which in (0, 1)
    ]
    o0, o1, lse0, lse1 = zigzag_attention(
        *(q[half] for half in halves),
        *(k, v, chunks, chunks, lies),
        chunk_idx_0=numbers[0],
        chunk_idx_1=numbers[1],
        total_chunks=2 * W,
        kv_order="zigzag" if zigzag else "sequence",
        config=with_tile(D),
    )
    for half, o_right, lse_right in zip(halves, (o0, o1), (lse0, lse1), strict=True):
        assert inner[0][half].equal(o_right) and inner[1][0][:, half].equal(lse_right)
