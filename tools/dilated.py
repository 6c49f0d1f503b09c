"""What travels in dilated attention over ranks, modelled, for docs/dilated.md."""

import cog

from kernelbench.families.dilated_parallel.case import ParallelDilatedCase
from kernelbench.families.dilated_parallel.messages import of_all_keys, of_kept_rows

LONGNET = "2048r1_4096r2_8192r4_16384r6_32768r12"
ROWS = 8192


def received() -> None:
    """A row for a number of ranks, of 8192 tokens each."""
    heads = "W", "all keys", "LongNet", "with w = N, r = 2W"
    cog.outl(f"| {' | '.join(heads)} |")
    cog.outl("|---" * len(heads) + "|")
    for world in (1, 2, 4, 8):
        N = ROWS * world
        cells = [str(world)]
        for branches in ("1r1", LONGNET, f"{LONGNET}_{N}r{2 * world}"):
            axes = {"world": world, "N": N, "branches": branches, "H": 12, "D": 128}
            of = of_all_keys if branches == "1r1" else of_kept_rows
            each = [of(ParallelDilatedCase.from_axes({**axes, "mode": m})) for m in ("fwd", "bwd")]
            cells.append(" / ".join(f"{size / 1e6:.0f}" for size in each))
        cog.outl(f"| {' | '.join(cells)} |")
