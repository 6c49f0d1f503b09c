"""How zigzag attention's kernels cut up their work, and the table that chooses."""

from dataclasses import dataclass, replace
from functools import partial

from kernelbench.kernels.attention.configs import Pattern
from kernelbench.kernels.attention.configs import configs as configs_of_attention
from kernelbench.kernels.attention.hopper.backward import HopperFusedTile
from kernelbench.kernels.attention.hopper.forward import HopperTile
from kernelbench.kernels.launch import (
    check_blocks,
    check_counts,
    check_powers_of_2,
    power_of_2,
    shared_memory,
)
from kernelbench.kernels.operators import as_flag


@dataclass(frozen=True)
class ZigzagConfig:
    """Blocks, at least 16, and warps are powers of two.

    block_m, block_n: query rows of each of a program's two chunks, and keys it takes at a time, in
        a software pipeline of `stages`.
    warps: of a forward program.
    shared: a tile of keys that both chunks see is read once for both; else one chunk comes after
        the other.
    hopper: the forward by `attention.hopper.forward`, which the five above then say nothing about;
        for tensors that `hopper.takes`.
    bwd_hopper: gradients by `attention.hopper.fused`, likewise, where those of q and of keys are
        wanted; dq has other bits on every call. For a config alone.
    bwd_*: the same of the backward, where `bwd_block_n` is what a program keeps, keys for dk and
        dv, query rows for dq, and `bwd_block_m` what it takes at a time of the other.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int
    bwd_block_m: int
    bwd_block_n: int
    bwd_warps: int
    bwd_stages: int
    shared: bool = True
    hopper: HopperTile | None = None
    bwd_hopper: HopperFusedTile | None = None

    def __post_init__(self) -> None:
        check_blocks(self, "block_m", "block_n", "bwd_block_m", "bwd_block_n")
        check_powers_of_2(self, "warps", "bwd_warps")
        check_counts(self, "stages", "bwd_stages")
        as_flag("ZigzagConfig", "shared", self.shared)
        tile = self.bwd_hopper
        if tile is not None and (tile.late or tile.halves or tile.flat):
            raise ValueError(f"ZigzagConfig: bwd_hopper is not late, halves or flat, got {tile}")


# Two chunks take twice the registers and the shared memory of one: block_m, block_n, warps, stages
# of heads of at most so many elements, of so many bytes.
_TABLE = (
    (64, 2, ((128, 64, 8, 2), (64, 64, 4, 2), (32, 32, 4, 2))),
    (128, 2, ((64, 64, 8, 2), (64, 32, 8, 2), (32, 32, 4, 2))),
    (256, 2, ((32, 32, 8, 2), (32, 32, 8, 1), (16, 16, 4, 1))),
    (64, 4, ((32, 32, 8, 2), (16, 32, 4, 1))),
    (128, 4, ((16, 16, 8, 2), (16, 16, 4, 1))),
    (256, 4, ((16, 16, 8, 1), (16, 16, 4, 1))),
)


def configs(
    T: int, K: int, H: int, D: int, *, arch: str, itemsize: int = 2, mode: str = "full"
) -> tuple[ZigzagConfig, ...]:
    """The table's choice for T rows of a chunk and K keys, then what else a tuner may pick.

    arch: `sm_90` and the like, or `cpu` for the interpreter. itemsize: bytes of an element, 2 or 4.
    mode: `fwd` and `bwd` vary what that pass uses, `full` varies both. Raises ValueError for an
    unknown mode, and for larger heads and elements than there are kernels for.
    """
    if _TABLE[-1][0] < D or itemsize > 4:
        raise ValueError(f"no tiles for heads of {D} elements of {itemsize} bytes: up to 256 of 4")
    if mode not in ("fwd", "bwd", "full"):
        raise ValueError(f"no mode {mode!r}. Known: fwd, bwd, full")
    tiles = next(tiles for most, size, tiles in _TABLE if most >= D and size >= itemsize)
    rows, keys = (max(16, power_of_2(n)) for n in (T, K))
    of_attention = partial(configs_of_attention, arch=arch, itemsize=itemsize, causal=True)
    cores = of_attention(1, T, H, D, mode="bwd", pattern=Pattern(K, plain=False))
    limit = shared_memory(arch, 1)
    row_bytes = max(16, power_of_2(D)) * itemsize
    forward = [
        (min(m, rows), min(n, keys), warps, stages)
        for m, n, warps, stages in tiles
        if (2 * m + 2 * stages * n) * row_bytes <= limit
    ]
    forward = forward if mode != "bwd" else forward[:1]
    backward = [(c.bwd_block_m, c.bwd_block_n, c.bwd_warps, c.bwd_stages) for c in cores]
    backward = backward if mode != "fwd" else backward[:1]
    made = []
    for i in range(max(len(forward), len(backward))):
        both = *forward[min(i, len(forward) - 1)], *backward[min(i, len(backward) - 1)]
        made.append(ZigzagConfig(*both))
    packed = Pattern(K, plain=False, packed=True)
    hoppers = [c.hopper for c in of_attention(1, 2 * T, H, D, mode="fwd", pattern=packed)]
    if mode == "bwd":
        return tuple(dict.fromkeys(replace(config, hopper=hoppers[0]) for config in made))
    tried = [replace(made[0], hopper=tile) for tile in hoppers if tile]
    if hoppers[0]:
        others = made[1:] if mode == "full" else []
        made = [*tried, *(replace(config, hopper=hoppers[0]) for config in others), *made]
    else:
        made += tried
    core = cores[0]  # one tile of queries at a time, as large as attention's
    tile = core.block_m, core.block_n, core.warps, core.stages
    return *dict.fromkeys(made), ZigzagConfig(*tile, *backward[0], shared=False)
