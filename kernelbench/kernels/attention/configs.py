"""How kernels of attention cut up their work: configs, and the table that chooses among them."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from kernelbench.kernels.attention.hopper.backward import (
    HopperBackwardTile,
    HopperFusedTile,
    HopperQueriesTile,
)
from kernelbench.kernels.attention.hopper.channel import HEADS
from kernelbench.kernels.attention.hopper.forward import HopperTile
from kernelbench.kernels.launch import (
    ceil_div,
    check_blocks,
    check_counts,
    check_powers_of_2,
    power_of_2,
    shared_memory,
)


@dataclass(frozen=True)
class AttentionConfig:
    """How the kernels cut up their work. Blocks, at least 16, and warps are powers of two.

    block_m, block_n: query rows of a program, and keys it takes at a time, in a software pipeline
        of `stages`.
    warps: of a forward program.
    hopper: the forward by `hopper.forward`, which the four above then say nothing about; for
        tensors that it `suits`.
    bwd_*: the same of the backward, where `bwd_block_n` is what a program keeps, keys for dk and
        dv, query rows for dq, and `bwd_block_m` what it takes at a time of the other.
    bwd_hopper: the backward by `hopper.backward`, likewise; with its `fused`, the
        bits of dq differ from call to call.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int
    bwd_block_m: int
    bwd_block_n: int
    bwd_warps: int
    bwd_stages: int
    hopper: HopperTile | None = None
    bwd_hopper: HopperBackwardTile | None = None

    def __post_init__(self) -> None:
        check_blocks(self, "block_m", "block_n", "bwd_block_m", "bwd_block_n")
        check_powers_of_2(self, "warps", "bwd_warps")
        check_counts(self, "stages", "bwd_stages")

    def repeatable(self) -> "AttentionConfig":
        """The same, its gradients with the same bits on every call."""
        if self.bwd_hopper is None or self.bwd_hopper.fused is None:
            return self
        return replace(self, bwd_hopper=replace(self.bwd_hopper, fused=None))

    def plainly(self) -> "AttentionConfig":
        """The same, its backward by `tl` kernels."""
        return replace(self, bwd_hopper=None)


class Pattern(NamedTuple):
    """Which queries meet which keys. keys: of a sample, None for as many as queries. group: heads
    of q that share one of k and v. plain: one sequence a sample, and no mask besides causal.
    packed: `places.Packed`, and no mask besides causal."""

    keys: int | None = None
    group: int = 1
    plain: bool = True
    packed: bool = False


SQUARE = Pattern()
_Tile = tuple[int, int, int, int]  # block_m, block_n, warps, stages


@dataclass(frozen=True)
class _Choice:
    """A row of the table: tiles for heads of at most `D` elements of at most `itemsize` bytes.

    The first tile that fits an architecture's shared memory is its choice. archs: where the row
    holds; everywhere when empty.
    """

    D: int
    itemsize: int
    forward: tuple[_Tile, ...]
    backward: tuple[_Tile, ...]
    archs: tuple[str, ...] = ()


# None of these spills registers on the architectures of its row, causal or not (triton 3.6).
_TABLE = (
    _Choice(
        64,
        2,
        ((64, 128, 4, 2), (128, 64, 8, 3), (128, 128, 8, 2), (64, 64, 4, 3)),
        ((64, 128, 8, 2), (64, 64, 4, 2), (32, 64, 4, 2)),
        ("sm_90",),
    ),
    _Choice(
        128,
        2,
        ((128, 128, 8, 2), (128, 64, 8, 3), (64, 64, 4, 3)),
        ((32, 128, 8, 2), (32, 64, 4, 2)),
        ("sm_90",),
    ),
    _Choice(
        256,
        2,
        ((128, 64, 8, 2), (128, 32, 8, 2), (64, 32, 4, 2)),
        ((16, 64, 8, 2), (32, 32, 4, 1)),
        ("sm_90",),
    ),
    _Choice(
        64,
        2,
        ((128, 64, 8, 3), (64, 64, 4, 3), (64, 128, 4, 2)),
        ((64, 128, 8, 2), (32, 128, 8, 3), (64, 64, 4, 2), (32, 64, 4, 2)),
    ),
    _Choice(
        128,
        2,
        ((128, 64, 8, 2), (128, 64, 8, 3), (64, 64, 4, 3)),
        ((32, 64, 4, 2), (32, 64, 8, 2)),
    ),
    _Choice(
        256,
        2,
        ((64, 64, 8, 2), (64, 32, 8, 2), (32, 32, 4, 2)),
        ((32, 64, 8, 2), (16, 64, 8, 2)),
    ),
    _Choice(
        64,
        4,
        ((64, 32, 8, 2), (32, 32, 8, 2), (32, 32, 4, 2)),
        ((32, 32, 8, 2), (32, 32, 8, 1), (16, 32, 4, 2)),
    ),
    _Choice(
        128,
        4,
        ((32, 16, 8, 2), (32, 16, 4, 1), (16, 32, 4, 2)),
        ((16, 32, 8, 1), (16, 32, 4, 2)),
    ),
    _Choice(
        256,
        4,
        ((32, 16, 8, 1), (16, 16, 4, 1), (32, 32, 8, 1)),
        ((16, 32, 8, 1), (16, 16, 8, 1)),
    ),
)


def configs(
    B: int,
    N: int,
    H: int,
    D: int,
    *,
    arch: str,
    mode: str,
    itemsize: int = 2,
    causal: bool = False,
    mixes: bool = False,
    deterministic: bool = False,
    pattern: Pattern = SQUARE,
) -> tuple[AttentionConfig, ...]:
    """The table's choice for B samples of N queries, H heads of D elements, then what else a tuner
    may pick.

    arch: `sm_90` and the like, or `cpu` for the interpreter. mode: `fwd` and `bwd` vary what that
    pass uses, `full` varies both. itemsize: bytes of an element of q, 2 or 4. causal: what they
    are for. mixes: whether a skip is mixed in by the kernel. deterministic: those whose gradients
    have the same bits on every call come first. Raises ValueError for an unknown mode.
    """
    if mode not in ("fwd", "bwd", "full"):
        raise ValueError(f"no mode {mode!r}. Known: fwd, bwd, full")
    keys = N if pattern.keys is None else pattern.keys
    forward, backward = _tiles(D, arch, itemsize)
    runs = arch == "sm_90" and itemsize == 2
    plain = runs and pattern.plain and keys == N
    hopper: tuple[HopperTile, ...] = ()
    if plain:
        hopper = _hopper_tiles(B, N, H, D, causal, mixes, mode)
    elif runs and pattern.packed:
        hopper = _packed_tiles(D)
    first = [_capped(tile, backward[0], N, keys) for tile in forward]
    pairs = [replace(first[0], hopper=tile) for tile in hopper]
    if hopper and ceil_div(N, _SMALL[0]) * B * H <= _HOPPER_SMS:
        pairs.insert(0, _capped(_SMALL, backward[0], N, keys))
    pairs += first
    if mode == "fwd":
        return tuple(dict.fromkeys(pairs))
    if mode == "bwd":
        pairs = pairs[:1]
    candidates = []
    for i in range(max(len(pairs), len(backward))):
        either = _capped(forward[0], backward[i % len(backward)], N, keys)
        pair = pairs[min(i, len(pairs) - 1)]
        m, n, warps, stages = pair.block_m, pair.block_n, pair.warps, pair.stages
        candidates.append(
            replace(either, block_m=m, block_n=n, warps=warps, stages=stages, hopper=pair.hopper)
        )
    if D in HEADS and (plain or (runs and pattern.packed)):
        tiles = _backward_tiles(D, causal, pattern)
        if deterministic:
            tiles.sort(key=lambda tile: tile is not None and tile.fused is not None)
        candidates[:0] = [replace(candidates[0], bwd_hopper=tile) for tile in tiles]
    return tuple(dict.fromkeys(candidates))


def _backward_tiles(D: int, causal: bool, pattern: Pattern) -> list[HopperBackwardTile | None]:
    """By how long they take, the last with the same bits on every call; None for `tl`: packed
    sequences, and heads that share keys, have no kernels of Hopper's but the fused one."""
    early, fused = (_hopper_backward(D, late) for late in (False, causal))
    if pattern.packed:
        return [early, None]
    if pattern.group == 1:
        return [fused, replace(fused, fused=None)]
    return [*dict.fromkeys((fused, early)), None]


def _hopper_backward(D: int, late: bool) -> HopperBackwardTile:
    if D == 64:
        return HopperBackwardTile(64, 2, 2, fused=HopperFusedTile(2, 2, rotated=True))
    fused = HopperFusedTile(2, 2, late=late)
    return HopperBackwardTile(64, 4, 3, queries=HopperQueriesTile(64, 3), fused=fused)


_HOPPER_SMS = 132  # of an H100 or H200 with SXM
_ANOTHER_LAUNCH = 400  # at most 3 µs for a second launch, in rounds of 128 rows by one key
_SMALL = (64, 128, 4, 3)  # where even 64 rows a program leave no multiprocessor a second one
_WIDE = HopperTile(3, 128, 4, 160, late=True)  # D = 64; no registers are left for queries
_HALVED = replace(_WIDE, halves=True)
_NARROW = {64: HopperTile(2, 128, 4, 240), 128: HopperTile(2, 128, 2, 240)}
_HELD = {D: replace(tile, held=True) for D, tile in _NARROW.items()}
_LONG_CAUSAL = 4096  # from more queries of D = 64 on, wide tiles are faster: halved.csv.xz
_WIDE_ROUND = 1.38  # of 192 rows at D = 64, in rounds of 128: measured on an H200
# Of halved ones, a + b/N rounds of held ones: fitted to waits.csv.xz, in results/h200/tuning.
_HALVED_ROUND = 1.32, 115


def _hopper_tiles(
    B: int, N: int, H: int, D: int, causal: bool, mixes: bool, mode: str
) -> tuple[HopperTile, ...]:
    """The forward tiles of `hopper` by how long they take for these sizes.

    Programs take tiles in rounds: a half-empty last round costs as much as a full one. Wide tiles
    cost less a row; where they leave a round half empty, some of a head's rows go to narrow ones,
    in a second launch. Causal tiles have an order of their own (`hopper.order`), and narrow ones
    are masked less. Queries held in registers, and halves, were not measured beside a skip, where
    one in 8 exponentials by a polynomial is 6 % faster than one in 4, and 6 % slower without.
    """
    if D not in HEADS:
        return ()
    narrow, held = _NARROW[D], _HELD[D]
    if D == 128:
        return (narrow, held) if mixes else (held, narrow)
    # in halves, registers do not suffice for the mask of a last block that is not whole
    halves = not mixes and (causal or N % _HALVED.block_n == 0)
    wide = _HALVED if halves else _WIDE
    if causal:
        best = narrow if mixes else wide if N > _LONG_CAUSAL else held
        return tuple(dict.fromkeys((best, held, narrow, wide)))
    computed = replace(narrow, polynomial=8 if mixes and mode == "fwd" else 4)
    small = computed if mixes else held
    wide_round = _WIDE_ROUND if mixes else _HALVED_ROUND[0] + _HALVED_ROUND[1] / N

    def rounds(wides: int) -> float:
        """In rounds of 128 rows, when each head has that many wide tiles, the rest narrow."""
        first = ceil_div(wides * B * H, _HOPPER_SMS)
        second = ceil_div(max(0, ceil_div(N - 192 * wides, 128)) * B * H, _HOPPER_SMS)
        between = _ANOTHER_LAUNCH / N if first and second else 0.0
        return wide_round * first + second + between

    wides = ceil_div(N, 192)
    costs = {small: rounds(0), wide: rounds(wides)}
    if wides > 1:
        tiles = min(range(1, wides), key=rounds)
        costs[replace(wide, tiles=tiles, rest=small, early=True)] = rounds(tiles)
    return *sorted(costs, key=lambda tile: costs[tile]), held if mixes else computed


def _packed_tiles(D: int) -> tuple[HopperTile, ...]:
    """The same of packed sequences."""
    if D not in HEADS:
        return ()
    return (_NARROW[D], _HELD[D]) if D == 128 else (_HELD[D], _NARROW[D])


@lru_cache(maxsize=4096)
def choose(
    shape: tuple[int, int, int, int],
    arch: str,
    itemsize: int,
    graded: bool,
    suited: bool,
    causal: bool,
    mixes: bool,
    deterministic: bool,
    pattern: Pattern = SQUARE,
) -> AttentionConfig:
    """The first of `configs` for q's shape that takes the tensors. graded: gradients are to come.
    suited: whether Hopper's copy engine takes the tensors."""
    if not suited:
        pattern = pattern._replace(plain=False, packed=False)
    return configs(
        *shape,
        arch=arch,
        mode="full" if graded else "fwd",
        itemsize=itemsize,
        causal=causal,
        mixes=mixes,
        deterministic=deterministic,
        pattern=pattern,
    )[0]


def _tiles(D: int, arch: str, itemsize: int) -> tuple[list[_Tile], list[_Tile]]:
    """The table's forward and backward tiles that fit the architecture's shared memory."""
    row = next(
        c
        for c in _TABLE
        if c.D >= D and c.itemsize >= itemsize and (not c.archs or arch in c.archs)
    )
    limit = shared_memory(arch, 1)
    row_bytes = max(16, power_of_2(D)) * itemsize
    forward = [tile for tile in row.forward if _forward_bytes(tile, row_bytes) <= limit]
    backward = [tile for tile in row.backward if _backward_bytes(tile, row_bytes) <= limit]
    return forward, backward


def _forward_bytes(tile: _Tile, row_bytes: int) -> int:
    block_m, block_n, _, stages = tile
    return (block_m + 2 * stages * block_n) * row_bytes


def _backward_bytes(tile: _Tile, row_bytes: int) -> int:
    block_m, block_n, _, stages = tile
    tiles = (2 * block_n + max(2 * stages, 3) * block_m) * row_bytes
    return tiles + 8 * stages * block_m


def _capped(forward: _Tile, backward: _Tile, N: int, keys: int) -> AttentionConfig:
    """A config whose blocks are no larger than so many queries and keys need."""
    queries, keys = (max(16, power_of_2(rows)) for rows in (N, keys))
    block_m, block_n, warps, stages = forward
    bwd_block_m, bwd_block_n, bwd_warps, bwd_stages = backward
    return AttentionConfig(
        min(block_m, queries),
        min(block_n, keys),
        warps,
        stages,
        min(bwd_block_m, queries),
        min(bwd_block_n, max(queries, keys)),
        bwd_warps,
        bwd_stages,
    )
