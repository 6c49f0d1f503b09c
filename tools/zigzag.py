"""What zigzag's fused kernel saves of the reads of keys, modelled, for docs/zigzag.md."""

import json
from pathlib import Path

import cog

from kernelbench.families.zigzag_attention import FAMILY, ZigzagCase
from kernelbench.families.zigzag_attention.traffic import zigzag_traffic

RUN = Path(__file__).parent.parent / "results/h200/20261130T202128Z-h200-h200"


def saved() -> None:
    """A row a rank, forward, by the ceilings that a run measured."""
    ceilings = json.loads((RUN / "manifest.json").read_text(encoding="utf-8"))["ceilings"]
    size, ns = ceilings["bandwidth"]["read"][-1]
    bandwidth, rate = size / ns * 1e9, ceilings["tflops"]["bf16"] * 1e12
    heads = "rank", "chunks read, apart", "together", "saved", "saved, MB", "of the time"
    cog.outl(f"| {' | '.join(heads)} |")
    cog.outl("|---" * len(heads) + "|")
    for rank in range(8):
        case = ZigzagCase(W=8, rank=rank, N=65536, Hq=32, Hk=8, D=128)
        chunk = case.N // (2 * case.W)
        apart, together = (case.seen(0) + case.seen(1)) // chunk, case.seen_by_any // chunk
        less = _keys_read(False, case) - _keys_read(True, case)
        share = less / bandwidth / (FAMILY.cost(case).flops / rate)
        cells = rank, apart, together, f"{1 - together / apart:.0%}", round(less / 1e6)
        cog.outl(f"| {' | '.join(map(str, cells))} | {share:.1%} |")


def _keys_read(together: bool, case: ZigzagCase) -> int:
    return sum(row.read for row in zigzag_traffic(together, case) if row.tensor in ("k", "v"))
