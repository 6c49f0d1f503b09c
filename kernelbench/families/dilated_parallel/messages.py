"""What goes from rank to rank, by the definition of what branches keep: a model, in bytes."""

from collections import Counter

from kernelbench.families.dilated_attention.case import Offsets
from kernelbench.families.dilated_parallel.case import ParallelDilatedCase
from kernelbench.kernels.launch import ceil_div
from kernelbench.spec import Mode


def of_all_keys(case: ParallelDilatedCase) -> int:
    """What a rank receives where k and v of all ranks are gathered, and their gradients summed."""
    others = (case.world - 1) * case.rows * 2 * case.H * case.D
    return others * case.dtype.bytes * (2 if case.mode is Mode.full else 1)


def of_kept_rows(case: ParallelDilatedCase) -> int:
    """What that rank which receives most receives of `RingDilatedAttention`: rows of k and v, and
    their gradients in fp32."""
    most = max(
        sum(_rows(case, w, r, rank) for w, r in case.whole.pairs_of if w > case.rows)
        for rank in range(case.world)
    )
    e = case.dtype.bytes
    return most * 2 * case.D * {Mode.fwd: e, Mode.bwd: 4, Mode.full: e + 4}[case.mode]


def _rows(case: ParallelDilatedCase, w: int, r: int, rank: int) -> int:
    """Of k, of all heads, that come to a rank for a branch; ranks send as many each."""
    segment = rank * case.rows // w
    start = segment * w
    ranks = range(start // case.rows, ceil_div(min(start + w, case.N), case.rows))
    rows = 0
    for offset, heads in _heads(case, r, segment).items():
        begins = [(offset + start - other * case.rows) % r for other in ranks]
        rows += heads * max(len(range(begin, case.rows, r)) for begin in begins)
    return rows * (len(ranks) - 1)


def _heads(case: ParallelDilatedCase, r: int, segment: int) -> dict[int, int]:
    """How many heads keep rows of a segment from each offset on."""
    offsets = {
        Offsets.head_mod: (h % r for h in range(case.H)),
        Offsets.head_group: (h // ceil_div(case.H, r) for h in range(case.H)),
        Offsets.segment_index: (segment % r for _ in range(case.H)),
    }
    return Counter(offsets[case.offsets])
