"""The forward of attention for Hopper: o = softmax(q kᵀ·scale) v.

A consumer multiplies the next scores while it takes the softmax of the last ones. Programs stay and
take tile after tile, so that the next tile's loads run during this one's epilogue. What else an
operator computes of a tile is a hook, for which a tile of another tensor, x, may have been fetched
meanwhile.

Shapes: as in `attention.forward`; M is 64.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kernelbench.kernels.attention.forward import Forward
from kernelbench.kernels.attention.hopper.channel import (
    LOG2E,
    arm,
    descriptor,
    first_tile,
    in_gluon,
    listed,
    load,
    new_barrier,
    new_barriers,
    next_tile,
    of_heads,
    publish,
    store,
    store_rows,
)
from kernelbench.kernels.attention.hopper.order import (
    heads_of_section,
    lies_packed,
    list_launch,
    order_of,
    starts_of,
)
from kernelbench.kernels.attention.places import Packed, most_tiles
from kernelbench.kernels.attention.tiles import pitch
from kernelbench.kernels.launch import Launch, ceil_div, sm_count

_LEAST = gl.constexpr(-1e30)  # below any score; unlike -inf it can be subtracted from itself
_LN2 = gl.constexpr(math.log(2))
_pitch = in_gluon(pitch)
_starts_of = in_gluon(starts_of)


@dataclass(frozen=True)
class HopperHook:
    """What the kernel does besides, as `tiles.Hook`, in three steps.

    begin: BEGIN(extra, b, KIND), early in a tile of sample b, of what takes a while to arrive.
    settle: SETTLE(begun, extra, KIND), once it has, and the tile's softmax has ended.
    finish: FINISH(settled, o_MD, x_MD) is what is written to y in the place of o_MD.
    x: (B,N,H·D), of which a tile is fetched. y: (B,N,H·D).
    """

    begin: Any = None
    settle: Any = None
    finish: Any = None
    extra: tuple[Any, ...] | None = None
    kind: str = ""
    x: Tensor | None = None
    y: Tensor | None = None

    def constexprs(self) -> dict[str, Any]:
        """Of a kernel that calls them."""
        return {
            "BEGIN": in_gluon(self.begin),
            "SETTLE": in_gluon(self.settle),
            "FINISH": in_gluon(self.finish),
            "KIND": self.kind,
        }


NO_HOPPER_HOOK = HopperHook()


class Tiles(NamedTuple):
    """Shared memory: q and y (x before it) of each consumer, buffers of k and v; places of the
    tiles to come, where sequences are packed."""

    q: Any
    k: Any
    v: Any
    y: Any
    mail: Any


class Barriers(NamedTuple):
    """Whether tiles are there (full), and whether they have been read (empty); `mail` is what
    `_schedule` says of them."""

    q_full: Any
    q_empty: Any
    k_full: Any
    k_empty: Any
    v_full: Any
    v_empty: Any
    x_full: Any
    x_empty: Any
    mail_full: Any
    mail_empty: Any


class Descriptors(NamedTuple):
    """What the copy engine reads and writes; y is what is wanted first, o what is besides. late_q,
    late_y: of late sequences whose rows are tensors of their own."""

    q: Any
    k: Any
    v: Any
    x: Any
    y: Any
    o: Any
    late_q: Any
    late_y: Any


class Call(NamedTuple):
    """What is the same for every tile: the rows of this launch, sizes, and what a hook reads.

    begin, tiles: the first row, and tiles of each head from there; total: of all heads.
    order: tiles of each program, see `order.py`; None where they take turns. scale: to base 2.
    packed: of sequences one after another; None for one a sample. late: where there are such twice,
    see `order.list_tiles`: then lse is the natural one, and what is behind the last key has no
    result.
    """

    begin: Any
    tiles: Any
    N: Any
    H: Any
    total: Any
    order: Any
    extra: Any
    scale: Any
    lse_ptr: Any
    packed: Any
    late: Any


class Late(NamedTuple):
    """What late sequences write: lse, and o, (N,H,D)."""

    lse_ptr: Any
    o_ptr: Any
    N: Any


class Sequences(NamedTuple):
    """Sequences one after another, and their tiles.

    place: where they lie, for LIES. listed: what `order.list_tiles` writes. heads: of a section.
    o_ptr: (N,H,D), of rows that are `o_heads` heads apart, for those of a tile within which a
    sequence ends.
    """

    place: Any
    listed: Any
    heads: Any
    o_ptr: Any
    o_heads: Any


class Variant(NamedTuple):
    """What a kernel is compiled for; see `HopperTile` and `HopperHook`."""

    CAUSAL: Any
    RAGGED: Any
    POLYNOMIAL: Any
    LATE: Any
    HELD: Any
    HALVES: Any
    BEGIN: Any
    SETTLE: Any
    FINISH: Any
    KIND: Any


def _exponentials(n: int) -> str:
    """PTX of n times 2^x, the last of them by a polynomial of degree 3 of the fraction."""
    looked_up = "".join(f"ex2.approx.ftz.f32 ${i}, ${n + i};\n" for i in range(n - 1))
    return f"""
{{
.reg .f32 z, r, n, f, p;
.reg .b32 e, q;
{looked_up}max.f32 z, ${2 * n - 1}, 0fC2FC0000;
add.rn.f32 r, z, 0f4B400000;
sub.rn.f32 n, r, 0f4B400000;
sub.rn.f32 f, z, n;
fma.rn.f32 p, f, 0f3D61FBAE, 0f3E786F0D;
fma.rn.f32 p, p, f, 0f3F31798D;
fma.rn.f32 p, p, f, 0f3F7FFB49;
shl.b32 e, r, 23;
mov.b32 q, p;
add.s32 q, q, e;
mov.b32 ${n - 1}, q;
}}
"""


_EXP2_OF_4 = gl.constexpr(_exponentials(4))
_EXP2_OF_8 = gl.constexpr(_exponentials(8))


@gluon.jit
def _exp2(x, POLYNOMIAL: gl.constexpr):
    """2^x; one in POLYNOMIAL elements, 4 or 8, by arithmetic and not by the one slow unit."""
    if POLYNOMIAL == 4:
        y = gl.inline_asm_elementwise(
            _EXP2_OF_4, "=f,=f,=f,=f,f,f,f,f", [x], dtype=gl.float32, is_pure=True, pack=4
        )
    elif POLYNOMIAL == 8:
        y = gl.inline_asm_elementwise(
            _EXP2_OF_8,
            "=f,=f,=f,=f,=f,=f,=f,=f,f,f,f,f,f,f,f,f",
            [x],
            dtype=gl.float32,
            is_pure=True,
            pack=8,
        )
    else:
        y = gl.exp2(x)
    return y


@gluon.jit
def _no_sums():
    """Of rows, one in each of the four threads that share a row, (M,4)."""
    layout: gl.constexpr = gl.DistributedLinearLayout(
        reg_bases=[[8, 0]],
        lane_bases=[[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]],
        warp_bases=[[16, 0], [32, 0]],
        block_bases=[],
        shape=[64, 4],
    )
    return gl.full([64, 4], 0.0, gl.float32, layout)


@gluon.jit
def _add_weights(sum_ML, weight_MN):
    N: gl.constexpr = weight_MN.shape[1]
    layout: gl.constexpr = sum_ML.type.layout
    of_pairs = gl.sum(gl.reshape(weight_MN, [64, N // 8, 4, 2]), 3)
    return sum_ML + gl.convert_layout(gl.sum(of_pairs, 1), layout)


@gluon.jit
def _scaled(x_MD, factor_M):
    layout: gl.constexpr = gl.SliceLayout(1, x_MD.type.layout)
    return x_MD * gl.expand_dims(gl.convert_layout(factor_M, layout), 1)


@gluon.jit
def _softmax(
    score_MN, max_M, sum_ML, scale, start, seen, DTYPE: gl.constexpr, MASKED: gl.constexpr, variant
):
    """Weights of these keys, the decay of what was summed before, and the new maximum and sums,
    which stay apart by thread until the tile ends.

    Weights are rounded here: kept in fp32 until they meet the values they cost a warpgroup twice
    the registers, which three of them do not have.
    """
    if MASKED:
        BLOCK_N: gl.constexpr = score_MN.shape[1]
        layout: gl.constexpr = score_MN.type.layout
        key_N = start + gl.arange(0, BLOCK_N, gl.SliceLayout(0, layout))
        if variant.CAUSAL:
            row_M = seen[0] + gl.arange(0, 64, gl.SliceLayout(1, layout))
            if variant.RAGGED:
                row_M = gl.minimum(row_M, seen[1] - 1)
            seen_MN = gl.expand_dims(key_N, 0) <= gl.expand_dims(row_M, 1)
        else:
            seen_MN = gl.expand_dims(key_N, 0) < gl.expand_dims(
                gl.full([64], 0, gl.int32, gl.SliceLayout(1, layout)) + seen[1], 1
            )
        score_MN = gl.where(seen_MN, score_MN, float("-inf"))
    new_M = gl.maximum(max_M, gl.max(score_MN, 1) * scale)
    weight_MN = _exp2(score_MN * scale - gl.expand_dims(new_M, 1), variant.POLYNOMIAL)
    decay_M = gl.exp2(max_M - new_M)
    sum_ML = _add_weights(_scaled(sum_ML, decay_M), weight_MN)
    return weight_MN.to(DTYPE), decay_M, new_M, sum_ML


@gluon.jit
def _place(index, call, ROWS: gl.constexpr, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr):
    """Where a tile is: its first row, among all and among its sequence's keys; head and sample;
    blocks of keys; the sequence's first key, its keys, and the row behind its last. Tiles of a head
    follow each other."""
    bh = index // call.tiles
    tile = index % call.tiles
    if CAUSAL:  # the longest first
        tile = call.tiles - 1 - tile
    row = call.begin + tile * ROWS
    end = call.N
    if CAUSAL:
        end = gl.minimum(row + ROWS, call.N)
    blocks = (end + BLOCK_N - 1) // BLOCK_N
    return row, row, bh % call.H, bh // call.H, blocks, 0, call.N, call.N


@gluon.jit
def _schedule(
    smem,
    bars,
    call,
    ROWS: gl.constexpr,
    BLOCK_N: gl.constexpr,
    CAUSAL: gl.constexpr,
    LIES: gl.constexpr,
):
    """Take tiles of packed sequences as programs get free, and mail where they are; the last one
    has no blocks."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    field = gl.arange(0, 8, layout)
    of = call.packed
    each = gl.load(of.listed + 1)
    done = 0
    index = gl.atomic_add(of.listed, 1)
    while index < each * call.H:
        section = index // (each * of.heads)
        rest = index % (each * of.heads)
        h = section * of.heads + rest % of.heads
        tile = of.listed + 2 + 2 * (rest // of.heads)
        s = gl.load(tile)
        number = gl.load(tile + 1)
        late = 0
        if call.late is not None:
            late = s // (of.place.S + 1)
            s = s % (of.place.S + 1)
        starts = _starts_of(of.place, late, call.late is not None)
        q0, rows, ahead, key, keys = LIES(of.place, starts, s, late, call.N)
        end = q0 + rows
        row = q0 + number * ROWS
        last = keys
        if CAUSAL:
            last = gl.minimum(keys, gl.minimum(row + ROWS, end) - q0 + ahead)
        blocks = gl.maximum((last + BLOCK_N - 1) // BLOCK_N, 1)
        mail = gl.where(field == 0, row, 0)
        mail = gl.where(field == 1, row - q0 + ahead, mail)
        mail = gl.where(field == 2, h, mail)
        mail = gl.where(field == 3, late, mail)
        mail = gl.where(field == 4, blocks, mail)
        mail = gl.where(field == 5, key, mail)
        mail = gl.where(field == 6, keys, mail)
        mail = gl.where(field == 7, end, mail)
        _post(smem, bars, done, mail)
        done += 1
        index = gl.atomic_add(of.listed, 1)
    _post(smem, bars, done, gl.full([8], 0, gl.int32, layout))


@gluon.jit
def _post(smem, bars, done, mail):
    slot = done % 2
    mbarrier.wait(bars.mail_empty.index(slot), (done // 2 & 1) ^ 1)
    smem.mail.index(slot).store(mail)
    mbarrier.arrive(bars.mail_full.index(slot), count=1)


@gluon.jit
def _uniform(x):
    """x, which all threads of a warp have, known to the compiler as one value."""
    return gl.inline_asm_elementwise(
        "shfl.sync.idx.b32 $0, $1, 0, 31, 0xffffffff;",
        "=r,r",
        [x],
        dtype=gl.int32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def _received(smem, bars, done, WARPS: gl.constexpr):
    """The place of tile number `done`, as `_place` has it; in the place of the sample whether its
    sequence is a late one."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    field = gl.arange(0, 8, layout)
    slot = done % 2
    mbarrier.wait(bars.mail_full.index(slot), done // 2 & 1)
    mail = smem.mail.index(slot).load(layout)
    mbarrier.arrive(bars.mail_empty.index(slot), count=1)
    row = _uniform(gl.sum(gl.where(field == 0, mail, 0), 0))
    first = _uniform(gl.sum(gl.where(field == 1, mail, 0), 0))
    h = _uniform(gl.sum(gl.where(field == 2, mail, 0), 0))
    b = _uniform(gl.sum(gl.where(field == 3, mail, 0), 0))
    blocks = _uniform(gl.sum(gl.where(field == 4, mail, 0), 0))
    key = _uniform(gl.sum(gl.where(field == 5, mail, 0), 0))
    keys = _uniform(gl.sum(gl.where(field == 6, mail, 0), 0))
    end = _uniform(gl.sum(gl.where(field == 7, mail, 0), 0))
    return row, first, h, b, blocks, key, keys, end


@gluon.jit
def _produce_tile(
    smem,
    bars,
    descs,
    place,
    taken,
    done,
    GROUPS: gl.constexpr,
    SHARED: gl.constexpr,
    TWICE: gl.constexpr,
):
    row, _, h, b, blocks, key, _, _ = place
    BUFFERS: gl.constexpr = smem.k.shape[0]
    BLOCK_N: gl.constexpr = smem.k.shape[1]
    D: gl.constexpr = smem.k.shape[2]
    phase = done & 1
    mbarrier.wait(bars.q_empty, phase ^ 1)
    mbarrier.expect(bars.q_full, GROUPS * 64 * D * 2)
    if TWICE:
        late = b
        b = 0
    for g in gl.static_range(GROUPS):
        if descs.late_q is not None:
            if late > 0:
                load(descs.late_q, bars.q_full, smem.q.index(g), b, row + g * 64, h)
            else:
                load(descs.q, bars.q_full, smem.q.index(g), b, row + g * 64, h)
        else:
            load(descs.q, bars.q_full, smem.q.index(g), b, row + g * 64, h)
    kv_h = h // SHARED
    for i in range(blocks):
        start = key + (blocks - 1 - i) * BLOCK_N
        buffer = taken % BUFFERS
        turn = (taken // BUFFERS) & 1
        mbarrier.wait(bars.k_empty.index(buffer), turn ^ 1)
        mbarrier.expect(bars.k_full.index(buffer), BLOCK_N * D * 2)
        load(descs.k, bars.k_full.index(buffer), smem.k.index(buffer), b, start, kv_h)
        mbarrier.wait(bars.v_empty.index(buffer), turn ^ 1)
        mbarrier.expect(bars.v_full.index(buffer), BLOCK_N * D * 2)
        load(descs.v, bars.v_full.index(buffer), smem.v.index(buffer), b, start, kv_h)
        taken += 1
    if descs.x is not None:
        for g in gl.static_range(GROUPS):
            mbarrier.wait(bars.x_empty.index(g), phase ^ 1)
            mbarrier.expect(bars.x_full.index(g), 64 * D * 2)
            load(descs.x, bars.x_full.index(g), smem.y.index(g), b, row + g * 64, h)
    return taken


@gluon.jit
def _produce(
    smem, bars, descs, call, GROUPS: gl.constexpr, CAUSAL: gl.constexpr, SHARED: gl.constexpr
):
    BLOCK_N: gl.constexpr = smem.k.shape[1]
    taken = 0
    done = 0
    if call.packed is not None:
        TWICE: gl.constexpr = call.late is not None
        place = _received(smem, bars, 0, 1)
        while place[4] > 0:
            taken = _produce_tile(smem, bars, descs, place, taken, done, GROUPS, SHARED, TWICE)
            done += 1
            place = _received(smem, bars, done, 1)
    else:
        index = first_tile(call.order)
        while index < call.total:
            after = listed(call.order, done + 1)  # it arrives during this tile
            place = _place(index, call, GROUPS * 64, BLOCK_N, CAUSAL)
            taken = _produce_tile(smem, bars, descs, place, taken, done, GROUPS, SHARED, False)
            done += 1
            index = next_tile(call.order, index, after)


@gluon.jit
def _multiply(acc_MD, weight_MN, q, smem, bars, taken):
    """Queue the scores of a block of keys, and behind them the weights of the block before by its
    values."""
    BUFFERS: gl.constexpr = smem.k.shape[0]
    BLOCK_N: gl.constexpr = smem.k.shape[1]
    acc_layout: gl.constexpr = acc_MD.type.layout
    score_layout: gl.constexpr = weight_MN.type.layout
    p_layout: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=acc_layout, k_width=2)
    p_MN = gl.convert_layout(weight_MN, p_layout)
    last = (taken - 1) % BUFFERS
    score = warpgroup_mma(
        q,
        smem.k.index(taken % BUFFERS).permute((1, 0)),
        gl.zeros([64, BLOCK_N], gl.float32, score_layout),
        use_acc=False,
        is_async=True,
    )
    mbarrier.wait(bars.v_full.index(last), ((taken - 1) // BUFFERS) & 1)
    acc = warpgroup_mma(p_MN, smem.v.index(last), acc_MD, is_async=True)
    return score, acc


@gluon.jit
def _step(state, q, smem, bars, call, taken, start, seen, variant):
    """The scores of one block of keys while the one before meets its values.

    seen: the last key that row 0 sees where causal, and the number of keys.
    state: the result so far, the weights of the block before, what the result is to be multiplied
    by before these are added, and the largest score and the sums of weights so far.
    """
    acc_MD, weight_MN, decay_M, max_M, sum_ML = state
    BUFFERS: gl.constexpr = smem.k.shape[0]
    buffer = taken % BUFFERS
    mbarrier.wait(bars.k_full.index(buffer), (taken // BUFFERS) & 1)
    score, acc = _multiply(_scaled(acc_MD, decay_M), weight_MN, q, smem, bars, taken)
    score_MN = warpgroup_mma_wait(1, deps=(score,))
    if not variant.LATE:
        mbarrier.arrive(bars.k_empty.index(buffer), count=1)
    weight_MN, decay_M, max_M, sum_ML = _softmax(
        score_MN, max_M, sum_ML, call.scale, start, seen, smem.q.dtype, False, variant
    )
    acc_MD = warpgroup_mma_wait(0, deps=(acc,))
    if variant.LATE:
        mbarrier.arrive(bars.k_empty.index(buffer), count=1)
    mbarrier.arrive(bars.v_empty.index((taken - 1) % BUFFERS), count=1)
    return acc_MD, weight_MN, decay_M, max_M, sum_ML


@gluon.jit
def _halves(x):
    N: gl.constexpr = x.shape[1]
    return gl.split(gl.permute(gl.reshape(x, [64, 2, N // 2]), (0, 2, 1)))


@gluon.jit
def _joined(left, right, layout: gl.constexpr):
    N: gl.constexpr = left.shape[1]
    whole = gl.reshape(gl.permute(gl.join(left, right), (0, 2, 1)), [64, 2 * N])
    return gl.convert_layout(whole, layout)


@gluon.jit
def _rounded(x, DTYPE: gl.constexpr):
    """x in 16 bits, here and not where it is used: the compiler does not look through this."""
    x = x.to(DTYPE)
    if x.dtype == gl.float16:
        x = gl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [x], dtype=gl.float16, is_pure=True, pack=2
        )
    else:
        x = gl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [x], dtype=gl.bfloat16, is_pure=True, pack=2
        )
    return x


@gluon.jit
def _halved_step(state, q, smem, bars, call, taken, start, variant):
    """As `_step`, with half of the exponentials in front of the wait for the block before, where
    they run beside it, and half behind. ptxas moves that wait to the front of a basic block: the
    wait for the next block's keys, if there is one, begins another. The result has its decay
    already."""
    acc_MD, weight_MN, decay_M, max_M, sum_ML = state
    BUFFERS: gl.constexpr = smem.k.shape[0]
    DTYPE: gl.constexpr = smem.q.dtype
    score, acc = _multiply(acc_MD, weight_MN, q, smem, bars, taken)
    score_MN = warpgroup_mma_wait(1, deps=(score,))
    if not variant.LATE:
        mbarrier.arrive(bars.k_empty.index(taken % BUFFERS), count=1)
    new_M = gl.maximum(max_M, gl.max(score_MN, 1) * call.scale)
    decay_M = gl.exp2(max_M - new_M)
    left, right = _halves(score_MN)
    half_layout: gl.constexpr = gl.SliceLayout(1, left.type.layout)
    half_M = gl.convert_layout(new_M, half_layout)
    left = gl.exp2(left * call.scale - gl.expand_dims(half_M, 1))
    sum_ML = _add_weights(_scaled(sum_ML, decay_M), left)
    left = _rounded(left, DTYPE)
    after = taken + 1
    mbarrier.wait(bars.k_full.index(after % BUFFERS), (after // BUFFERS) & 1, pred=start > 0)
    acc_MD = warpgroup_mma_wait(0, deps=(acc,))
    if variant.LATE:
        mbarrier.arrive(bars.k_empty.index(taken % BUFFERS), count=1)
    mbarrier.arrive(bars.v_empty.index((taken - 1) % BUFFERS), count=1)
    acc_MD = _scaled(acc_MD, decay_M)
    right = gl.exp2(right * call.scale - gl.expand_dims(half_M, 1))
    sum_ML = _add_weights(sum_ML, right)
    score_layout: gl.constexpr = score_MN.type.layout
    weight_MN = _joined(left, _rounded(right, DTYPE), score_layout)
    return acc_MD, weight_MN, decay_M, new_M, sum_ML


@gluon.jit
def _scores(q, smem, bars, taken, layout: gl.constexpr):
    BUFFERS: gl.constexpr = smem.k.shape[0]
    BLOCK_N: gl.constexpr = smem.k.shape[1]
    buffer = taken % BUFFERS
    mbarrier.wait(bars.k_full.index(buffer), (taken // BUFFERS) & 1)
    score_MN = warpgroup_mma(
        q,
        smem.k.index(buffer).permute((1, 0)),
        gl.zeros([64, BLOCK_N], gl.float32, layout),
        use_acc=False,
    )
    mbarrier.arrive(bars.k_empty.index(buffer), count=1)
    return score_MN


@gluon.jit
def _whole_step(acc_MD, max_M, sum_ML, q, smem, bars, call, taken, start, seen, variant):
    """All of one block of keys. Were its weights left to the next step, a loop of such steps would
    hand them to the loop behind it in registers of one weight each."""
    BUFFERS: gl.constexpr = smem.k.shape[0]
    acc_layout: gl.constexpr = acc_MD.type.layout
    score_layout: gl.constexpr = max_M.type.layout.parent
    p_layout: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=acc_layout, k_width=2)
    score_MN = _scores(q, smem, bars, taken, score_layout)
    weight_MN, decay_M, max_M, sum_ML = _softmax(
        score_MN, max_M, sum_ML, call.scale, start, seen, smem.q.dtype, True, variant
    )
    buffer = taken % BUFFERS
    mbarrier.wait(bars.v_full.index(buffer), (taken // BUFFERS) & 1)
    acc_MD = warpgroup_mma(
        gl.convert_layout(weight_MN, p_layout), smem.v.index(buffer), _scaled(acc_MD, decay_M)
    )
    mbarrier.arrive(bars.v_empty.index(buffer), count=1)
    return acc_MD, max_M, sum_ML


@gluon.jit
def _forget_others(smem, bars, taken, rows):
    """Zeros in the rows of a block of values from `rows` on, if it has as many: they are another
    sequence's, and may be no numbers. Other warpgroups that use the block write the same."""
    BUFFERS: gl.constexpr = smem.v.shape[0]
    BLOCK_N: gl.constexpr = smem.v.shape[1]
    D: gl.constexpr = smem.v.shape[2]
    STEP: gl.constexpr = 16
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    if rows < BLOCK_N:
        mbarrier.wait(bars.v_full.index(taken % BUFFERS), (taken // BUFFERS) & 1)
        for i in gl.static_range(BLOCK_N // STEP):
            if rows < (i + 1) * STEP:
                part = smem.v.index(taken % BUFFERS).slice(i * STEP, STEP)
                row = i * STEP + gl.arange(0, STEP, gl.SliceLayout(1, layout))
                values = part.load(layout)
                zeros = gl.full([STEP, D], 0, values.dtype, layout)
                part.store(gl.where(gl.expand_dims(row, 1) < rows, values, zeros))
        publish()


@gluon.jit
def _attend_tile(
    smem,
    bars,
    descs,
    call,
    place,
    taken,
    phase,
    G: gl.constexpr,
    variant,
):
    """64 query rows against all their keys, from the last block to the first."""
    row, first, h, b, blocks, _, keys, end = place
    BUFFERS: gl.constexpr = smem.k.shape[0]
    BLOCK_N: gl.constexpr = smem.k.shape[1]
    ROWS: gl.constexpr = smem.q.shape[0] * 64
    D: gl.constexpr = smem.k.shape[2]
    PACKED: gl.constexpr = call.packed is not None
    TWICE: gl.constexpr = call.late is not None
    if TWICE:
        late = b
        b = 0
    MASKED: gl.constexpr = variant.CAUSAL or variant.RAGGED
    score_layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_N, 16]
    )
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16]
    )
    p_layout: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=acc_layout, k_width=2)
    row_layout: gl.constexpr = gl.SliceLayout(1, score_layout)
    first_M = row + G * 64
    seen = (first + G * 64, keys)
    max_M = gl.full([64], _LEAST, gl.float32, row_layout)
    sum_ML = _no_sums()
    acc_MD = gl.zeros([64, D], gl.float32, acc_layout)
    q = smem.q.index(G)
    if variant.FINISH is not None:
        begun = variant.BEGIN(call.extra, b, variant.KIND)
    mbarrier.wait(bars.q_full, phase)
    if variant.HELD:
        q_layout: gl.constexpr = gl.DotOperandLayout(
            operand_index=0, parent=score_layout, k_width=2
        )
        q = q.load(q_layout)
        mbarrier.arrive(bars.q_empty, count=1)
    start = (blocks - 1) * BLOCK_N
    if PACKED:
        _forget_others(smem, bars, taken, keys - start)
    if variant.CAUSAL and (PACKED or ROWS > BLOCK_N or ROWS % BLOCK_N != 0):
        while start > gl.maximum(first, 0):  # the next block has hidden keys, too
            acc_MD, max_M, sum_ML = _whole_step(
                acc_MD, max_M, sum_ML, q, smem, bars, call, taken, start, seen, variant
            )
            taken += 1
            start -= BLOCK_N
    score_MN = _scores(q, smem, bars, taken, score_layout)
    weight_MN, decay_M, max_M, sum_ML = _softmax(
        score_MN, max_M, sum_ML, call.scale, start, seen, smem.q.dtype, MASKED, variant
    )
    taken += 1
    if variant.HALVES:
        weight_MN = _rounded(weight_MN, smem.q.dtype)
        acc_MD = _scaled(acc_MD, decay_M)
        mbarrier.wait(bars.k_full.index(taken % BUFFERS), (taken // BUFFERS) & 1, pred=start > 0)
    state = (acc_MD, weight_MN, decay_M, max_M, sum_ML)
    for i in range(start // BLOCK_N):
        start -= BLOCK_N
        if variant.HALVES:
            state = _halved_step(state, q, smem, bars, call, taken, start, variant)
        else:
            state = _step(state, q, smem, bars, call, taken, start, seen, variant)
        taken += 1
    acc_MD, weight_MN, decay_M, max_M, sum_ML = state
    if not variant.HELD:
        mbarrier.arrive(bars.q_empty, count=1)
    last = (taken - 1) % BUFFERS
    if not variant.HALVES:
        acc_MD = _scaled(acc_MD, decay_M)
    mbarrier.wait(bars.v_full.index(last), ((taken - 1) // BUFFERS) & 1)
    acc = warpgroup_mma(
        gl.convert_layout(weight_MN, p_layout), smem.v.index(last), acc_MD, is_async=True
    )
    y = smem.y.index(G)
    x_MD = None
    if descs.x is not None and descs.o is not None:  # x makes room for it
        mbarrier.wait(bars.x_full.index(G), phase)
        x_MD = y.load(acc_layout).to(gl.float32)
    acc_MD = warpgroup_mma_wait(0, deps=(acc,))
    mbarrier.arrive(bars.v_empty.index(last), count=1)
    sum_M = gl.convert_layout(gl.sum(sum_ML, 1), row_layout)
    share_M = 1.0 / sum_M
    if PACKED:  # a row may see no key
        share_M = gl.where(sum_M > 0, share_M, 0.0)
    o_MD = _scaled(acc_MD, share_M)
    lse_M = max_M + gl.log2(sum_M)
    if TWICE:
        real_M = seen[0] + gl.arange(0, 64, row_layout) < keys
        lse_M = gl.where(real_M, lse_M * _LN2, float("-inf"))
        real_M = gl.convert_layout(real_M, gl.SliceLayout(1, acc_layout))
        o_MD = gl.where(gl.expand_dims(real_M, 1), o_MD, 0.0)
    if call.lse_ptr is not None:
        row_M = first_M + gl.arange(0, 64, row_layout)
        lse_ptr = call.lse_ptr
        N = call.N
        if TWICE and late > 0:
            lse_ptr = call.late.lse_ptr
            N = call.late.N
        lse_ptr += (b * call.H + h).to(gl.int64) * _pitch(N)
        gl.store(lse_ptr + row_M, lse_M, mask=row_M < end)
    if variant.FINISH is not None:
        settled = variant.SETTLE(begun, call.extra, variant.KIND)
        if descs.o is not None:
            store(descs.o, y, o_MD, b, first_M, h)
        elif descs.x is not None:
            mbarrier.wait(bars.x_full.index(G), phase)
            x_MD = y.load(acc_layout).to(gl.float32)
        o_MD = variant.FINISH(settled, o_MD, x_MD)
    if PACKED:
        if first_M + 64 > end:
            o_ptr = call.packed.o_ptr
            if TWICE and late > 0:
                o_ptr = call.late.o_ptr
            store_rows(y, o_MD, o_ptr, first_M, h, call.packed.o_heads, end)
        elif descs.late_y is not None:
            if late > 0:
                store(descs.late_y, y, o_MD, b, first_M, h)
            else:
                store(descs.y, y, o_MD, b, first_M, h)
        else:
            store(descs.y, y, o_MD, b, first_M, h)
    else:
        store(descs.y, y, o_MD, b, first_M, h)
    if descs.x is not None:
        mbarrier.arrive(bars.x_empty.index(G), count=1)
    return taken


@gluon.jit
def _consume(
    smem,
    bars,
    descs,
    call,
    G: gl.constexpr,
    variant,
):
    """Tile after tile, in step with the producer."""
    BLOCK_N: gl.constexpr = smem.k.shape[1]
    taken = 0
    done = 0
    if call.packed is not None:
        place = _received(smem, bars, 0, 4)
        while place[4] > 0:
            taken = _attend_tile(smem, bars, descs, call, place, taken, done & 1, G, variant)
            done += 1
            place = _received(smem, bars, done, 4)
    else:
        index = first_tile(call.order)
        while index < call.total:
            after = listed(call.order, done + 1)  # it arrives during this tile
            place = _place(index, call, smem.q.shape[0] * 64, BLOCK_N, variant.CAUSAL)
            taken = _attend_tile(smem, bars, descs, call, place, taken, done & 1, G, variant)
            done += 1
            index = next_tile(call.order, index, after)


@gluon.jit(do_not_specialize=("begin", "tiles", "N", "H", "total"))
def attend(
    q_desc,
    k_desc,
    v_desc,
    x_desc,
    y_desc,
    o_desc,
    late_q_desc,
    late_y_desc,
    extra,
    lse_ptr,
    order_ptr,
    packed,
    late,
    scale,
    begin,
    tiles,
    N,
    H,
    total,
    GROUPS: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BUFFERS: gl.constexpr,
    REGISTERS: gl.constexpr,
    CAUSAL: gl.constexpr,
    RAGGED: gl.constexpr,
    POLYNOMIAL: gl.constexpr,
    LATE: gl.constexpr,
    HELD: gl.constexpr,
    HALVES: gl.constexpr,
    LEADS: gl.constexpr,
    FOLLOWS: gl.constexpr,
    SHARED: gl.constexpr,
    BEGIN: gl.constexpr,
    SETTLE: gl.constexpr,
    FINISH: gl.constexpr,
    KIND: gl.constexpr,
    LIES: gl.constexpr,
):
    """Tiles of 64·GROUPS query rows of a head, one after another. SHARED: heads of q that share one
    of k and v. LEADS, FOLLOWS: of launches that overlap. BEGIN, SETTLE, FINISH, KIND: see
    `HopperHook`. LIES: where sequences lie, see `order.lies_packed`."""
    if LEADS:  # what follows reads nothing that is written here
        tl.extra.cuda.gdc_launch_dependents()
    D: gl.constexpr = q_desc.block_type.shape[3]
    dtype: gl.constexpr = q_desc.dtype
    q_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, D], dtype)
    kv_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, D], dtype)
    q_smem = gl.allocate_shared_memory(dtype, [GROUPS, 64, D], q_layout)
    k_smem = gl.allocate_shared_memory(dtype, [BUFFERS, BLOCK_N, D], kv_layout)
    v_smem = gl.allocate_shared_memory(dtype, [BUFFERS, BLOCK_N, D], kv_layout)
    y_smem = gl.allocate_shared_memory(dtype, [GROUPS, 64, D], q_layout)
    mail = None
    mail_full = None
    mail_empty = None
    if packed is not None:
        mail_layout: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, order=[0])
        mail = gl.allocate_shared_memory(gl.int32, [2, 8], mail_layout)
        mail_full = new_barriers(2)
        mail_empty = new_barriers(2)
        arm(mail_full, 1)
        arm(mail_empty, GROUPS + 1)
    q_full = new_barrier()
    q_empty = new_barrier()
    k_full = new_barriers(BUFFERS)
    k_empty = new_barriers(BUFFERS)
    v_full = new_barriers(BUFFERS)
    v_empty = new_barriers(BUFFERS)
    x_full = new_barriers(GROUPS)
    x_empty = new_barriers(GROUPS)
    arm(q_full, 1)
    arm(q_empty, GROUPS)
    arm(k_full, 1)
    arm(k_empty, GROUPS)
    arm(v_full, 1)
    arm(v_empty, GROUPS)
    arm(x_full, 1)
    arm(x_empty, 1)
    fence_async_shared()
    smem = Tiles(q_smem, k_smem, v_smem, y_smem, mail)
    bars = Barriers(
        q_full, q_empty, k_full, k_empty, v_full, v_empty, x_full, x_empty, mail_full, mail_empty
    )
    descs = Descriptors(q_desc, k_desc, v_desc, x_desc, y_desc, o_desc, late_q_desc, late_y_desc)
    call = Call(begin, tiles, N, H, total, order_ptr, extra, scale * LOG2E, lse_ptr, packed, late)
    if packed is not None:
        gl.warp_specialize(
            [
                (
                    _consume,
                    (
                        smem,
                        bars,
                        descs,
                        call,
                        0,
                        Variant(
                            CAUSAL, RAGGED, POLYNOMIAL, LATE, HELD, HALVES, None, None, None, KIND
                        ),
                    ),
                ),
                (
                    _consume,
                    (
                        smem,
                        bars,
                        descs,
                        call,
                        1,
                        Variant(
                            CAUSAL, RAGGED, POLYNOMIAL, LATE, HELD, HALVES, None, None, None, KIND
                        ),
                    ),
                ),
                (_produce, (smem, bars, descs, call, GROUPS, CAUSAL, SHARED)),
                (_schedule, (smem, bars, call, GROUPS * 64, BLOCK_N, CAUSAL, LIES)),
            ],
            [4, 1, 1],
            [REGISTERS, 24, 24],
        )
    elif GROUPS == 2:
        gl.warp_specialize(
            [
                (
                    _consume,
                    (
                        smem,
                        bars,
                        descs,
                        call,
                        0,
                        Variant(
                            CAUSAL,
                            RAGGED,
                            POLYNOMIAL,
                            LATE,
                            HELD,
                            HALVES,
                            BEGIN,
                            SETTLE,
                            FINISH,
                            KIND,
                        ),
                    ),
                ),
                (
                    _consume,
                    (
                        smem,
                        bars,
                        descs,
                        call,
                        1,
                        Variant(
                            CAUSAL,
                            RAGGED,
                            POLYNOMIAL,
                            LATE,
                            HELD,
                            HALVES,
                            BEGIN,
                            SETTLE,
                            FINISH,
                            KIND,
                        ),
                    ),
                ),
                (_produce, (smem, bars, descs, call, GROUPS, CAUSAL, SHARED)),
            ],
            [4, 1],
            [REGISTERS, 24],
        )
    else:
        gl.warp_specialize(
            [
                (
                    _consume,
                    (
                        smem,
                        bars,
                        descs,
                        call,
                        0,
                        Variant(
                            CAUSAL,
                            RAGGED,
                            POLYNOMIAL,
                            LATE,
                            HELD,
                            HALVES,
                            BEGIN,
                            SETTLE,
                            FINISH,
                            KIND,
                        ),
                    ),
                ),
                (
                    _consume,
                    (
                        smem,
                        bars,
                        descs,
                        call,
                        1,
                        Variant(
                            CAUSAL,
                            RAGGED,
                            POLYNOMIAL,
                            LATE,
                            HELD,
                            HALVES,
                            BEGIN,
                            SETTLE,
                            FINISH,
                            KIND,
                        ),
                    ),
                ),
                (
                    _consume,
                    (
                        smem,
                        bars,
                        descs,
                        call,
                        2,
                        Variant(
                            CAUSAL,
                            RAGGED,
                            POLYNOMIAL,
                            LATE,
                            HELD,
                            HALVES,
                            BEGIN,
                            SETTLE,
                            FINISH,
                            KIND,
                        ),
                    ),
                ),
                (_produce, (smem, bars, descs, call, GROUPS, CAUSAL, SHARED)),
            ],
            [4, 4, 1],
            [REGISTERS, REGISTERS, 24],
        )
    if FOLLOWS:  # whoever waits for this launch waits for the one in front of it, too
        tl.extra.cuda.gdc_wait()


@dataclass(frozen=True)
class HopperTile:
    """How the Hopper forward cuts up its work.

    groups: consumer warpgroups of 64 query rows each, 2 or 3.
    block_n: keys at a time, 64 or 128, in `buffers` buffers, 2 or more.
    registers: of a consumer's thread.
    polynomial: one in so many exponentials, 4 or 8, is computed, not looked up; none for 0.
    late: buffers of keys are freed with those of values, after the softmax.
    tiles, rest: no more than so many tiles of each head, and what cuts up its other rows, in a
        launch of its own.
    early: programs of the launch of `rest` begin as those of this one end.
    held: a consumer keeps its queries in registers.
    halves: exponentials of a block of keys come in two halves, with the wait for the block before
        between them; without a polynomial.

    Raises ValueError for what is none of these.
    """

    groups: int
    block_n: int
    buffers: int
    registers: int
    polynomial: int = 0
    late: bool = False
    tiles: int | None = None
    rest: "HopperTile | None" = None
    early: bool = False
    held: bool = False
    halves: bool = False

    def __post_init__(self) -> None:
        if self.groups not in (2, 3):
            raise ValueError(f"HopperTile: groups is 2 or 3, got {self}")
        if self.block_n not in (64, 128):
            raise ValueError(f"HopperTile: block_n is 64 or 128, got {self}")
        if self.buffers < 2:
            raise ValueError(f"HopperTile: buffers is 2 or more, got {self}")
        if self.tiles is not None and self.tiles < 1:
            raise ValueError(f"HopperTile: tiles is 1 or more, got {self}")
        if self.polynomial not in (0, 4, 8):
            raise ValueError(f"HopperTile: polynomial is 0, 4 or 8, got {self}")
        if (self.tiles is None) != (self.rest is None):
            raise ValueError(f"HopperTile: tiles and rest go together, got {self}")
        if self.halves and self.polynomial:
            raise ValueError(f"HopperTile: halves are without a polynomial, got {self}")
        if self.early and (self.rest is None or self.rest.rest is not None):
            raise ValueError(f"HopperTile: early is for one rest, got {self}")


def forward_launches(
    tensors: Forward,
    *,
    scale: float,
    causal: bool,
    tile: HopperTile,
    hook: HopperHook = NO_HOPPER_HOOK,
) -> tuple[Launch, ...]:
    """What `attention.forward.forward_launch` describes, by the kernel for Hopper, of tensors that
    `suits` all: a launch of `tile` and of each `rest`, in any order, without those that no row is
    left for. o is wanted, or what a hook makes of it, or both. Raises ValueError for causal
    attention with a `rest`, whose rows would begin within a block of keys.
    """
    if causal and tile.rest is not None:
        raise ValueError(f"causal attention takes a tile without rest, got {tile}")
    N = tensors.q.shape[1]
    launches: list[Launch] = []
    begin = 0
    part: HopperTile | None = tile
    while part is not None:
        rows = part.groups * 64
        rows_left = N - begin
        tiles = (
            ceil_div(rows_left, rows) if part.tiles is None else min(part.tiles, rows_left // rows)
        )
        if tiles > 0:
            follows = tile.early and len(launches) > 0
            part_launch = _part_launch(tensors, scale, causal, part, hook, (begin, tiles), follows)
            launches.append(part_launch)
        begin += tiles * rows
        part = part.rest
    return tuple(launches)


def _part_launch(
    tensors: Forward,
    scale: float,
    causal: bool,
    tile: HopperTile,
    hook: HopperHook,
    part: tuple[int, int],
    follows: bool,
) -> Launch:
    """The launch for a part of each head's rows: the first of them, and how many tiles from there.

    follows: it may begin before the launch in front of it, which is `early`, has ended.
    """
    q, k = tensors.q, tensors.k
    (B, N, H, _), (begin, tiles) = q.shape, part
    total = tiles * H * B
    programs, group = min(total, sm_count(q.device)), H // k.shape[2]
    cut: dict[str, int] = {"rows": tile.groups * 64, "keys": tile.block_n, "programs": programs}
    order = order_of(q, B * H, N, causal=causal, key_bytes=2 * k.nbytes, **cut)
    args = _arguments(tensors, tile, hook, scale) | {
        "order_ptr": order,
        "packed": None,
        "late": None,
        "begin": begin,
        "tiles": tiles,
        "total": total,
    }
    constexprs = _constexprs(tile, hook, causal, N % tile.block_n != 0, group)
    constexprs |= {"LEADS": tile.early, "FOLLOWS": follows}
    options = {"num_warps": 4, "launch_pdl": follows}
    return Launch(attend, (programs,), args, constexprs, options, own=order)


def _arguments(
    tensors: Forward, tile: HopperTile, hook: HopperHook, scale: float
) -> dict[str, Any]:
    """What all launches have."""
    q, k, v, o, lse = tensors
    N, H, _ = q.shape[-3:]
    y, o = (o, None) if hook.y is None else (hook.y, o)
    return {
        "q_desc": descriptor(q, 64),
        "k_desc": descriptor(k, tile.block_n),
        "v_desc": descriptor(v, tile.block_n),
        "x_desc": of_heads(hook.x, H),
        "y_desc": of_heads(y, H),
        "o_desc": of_heads(o, H),
        "late_q_desc": None,
        "late_y_desc": None,
        "extra": hook.extra,
        "lse_ptr": lse,
        "scale": scale,
        "N": N,
        "H": H,
    }


def _constexprs(
    tile: HopperTile, hook: HopperHook, causal: bool, ragged: bool, group: int
) -> dict[str, Any]:
    return {
        "GROUPS": tile.groups,
        "BLOCK_N": tile.block_n,
        "BUFFERS": tile.buffers,
        "REGISTERS": tile.registers,
        "CAUSAL": causal,
        "RAGGED": ragged,
        "POLYNOMIAL": tile.polynomial,
        "LATE": tile.late,
        "HELD": tile.held,
        "HALVES": tile.halves,
        "SHARED": group,
        "LIES": None,
        **hook.constexprs(),
    }


def packed_launches(
    tensors: Forward,
    place: Packed,
    listed: Tensor,
    *,
    scale: float,
    causal: bool,
    tile: HopperTile,
) -> tuple[Launch, ...]:
    """As `forward_launches`, of packed sequences, which are one sample. The rest: see
    `placed_launches`."""
    if place.chunk is None:  # a tuple within another holds no None: Triton 3.6
        place = place._replace(chunk=-1)
    return placed_launches(
        tensors, place, lies_packed, listed, scale=scale, causal=causal, tile=tile
    )


def placed_launches(
    tensors: Forward,
    place: Any,
    lies: Any,
    listed: Tensor,
    *,
    scale: float,
    causal: bool,
    tile: HopperTile,
    late: Forward | None = None,
    rows: int | None = None,
) -> tuple[Launch, ...]:
    """As `packed_launches`, of sequences that lie as an operator has it: their tiles are listed by
    a launch in front.

    tensors: the axis of samples may be missing. place, lies: see `order.lies_packed`. listed:
    `order.listed_size` of int32. late: q, o and lse of late sequences, which have the same keys;
    `tensors` itself where they lie there. Then lse is the natural one, and rows behind the last key
    are zeros, and -inf. rows: of all sequences, or of all late ones if these are more; those of q
    unless given. Raises ValueError for a tile of other than 2 groups, with a `rest`, or with a
    `polynomial`, which is not 0 for a hidden key.
    """
    if tile.groups != 2 or tile.rest is not None or tile.polynomial:
        raise ValueError(
            f"packed sequences take a tile of 2 groups without rest or polynomial, got {tile}"
        )
    assert tensors.o is not None
    (N, H, D), G = tensors.q.shape[-3:], tensors.k.shape[-2]
    rows, twice = N if rows is None else rows, late is not None
    heads = heads_of_section(H, G, 2 * tensors.k.nbytes)
    others = None if late is None else Late(late.lse, late.o, late.q.shape[-3])
    args = _arguments(tensors._replace(o=None), tile, NO_HOPPER_HOOK, scale) | {
        "y_desc": descriptor(tensors.o, 64),
        "order_ptr": None,
        "packed": Sequences(place, listed, heads, tensors.o, tensors.o.stride(-3) // D),
        "late": others,
        "begin": 0,
        "tiles": 0,
        "total": 0,
    }
    if late is not None and late is not tensors:
        assert late.o is not None
        args |= {"late_q_desc": descriptor(late.q, 64), "late_y_desc": descriptor(late.o, 64)}
    constexprs = _constexprs(tile, NO_HOPPER_HOOK, causal, True, H // G)
    constexprs |= {"LEADS": False, "FOLLOWS": False, "LIES": in_gluon(lies)}
    cut = tile.groups * 64
    tiles = most_tiles(rows, place.S, cut) * (2 if twice else 1)
    lists = list_launch(place, lies, listed, rows, cut, causal, twice)
    programs = (min(tiles * H, sm_count(tensors.q.device)),)
    return lists, Launch(attend, programs, args, constexprs, {"num_warps": 4})
