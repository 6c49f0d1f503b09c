"""What a DiT block moves through HBM, by provider."""

from kernelbench.families.dit_block.case import RATIO, DiTBlockCase, Norm, names
from kernelbench.families.rcm_layer.case import WEIGHTS
from kernelbench.families.rcm_layer.traffic import layer_traffic, sizes
from kernelbench.families.rms_norm.traffic import f_rms_norm_passes
from kernelbench.spec import Mode, Traffic

_UP_AND_DOWN = (("n", 1, 0), ("u", 4, 4), ("g", 4, 4), ("y1", 1, 0), ("y", 0, 1))
_BACK = (  # of down, gelu and up
    ("grad_y", 2, 0), ("dg", 4, 4), ("g", 4, 0), ("u", 4, 0), ("du", 8, 4), ("n", 1, 0),
    ("dn", 1, 1), ("du, db", 4, 0), ("grad_y, db", 1, 0),
)  # fmt: skip


_SUM_BACK = (("grad_y", 1, 0), ("dy1", 0, 1))


def mlp_sizes(case: DiTBlockCase) -> tuple[int, int, int]:
    """Bytes of the MLP's matrices, of its biases, of the norms' weights."""
    item, C = case.dtype.bytes, case.C
    norms = 2 * C * item if case.norm is Norm.rms else 0
    return 2 * RATIO * C * C * item, (RATIO + 1) * C * item, norms


def block_traffic(kind: str, back: str, case: DiTBlockCase) -> tuple[Traffic, ...]:
    """The traffic of `rcm_layer`, whose y is y1 here, with norms and MLP; kind and back as there.

    As measured in `rcm_layer`, separate kernels sum biases. Assumed, not measured: products of the
    MLP read each operand once, and compiled norms h and dn once, too.
    """
    u = sizes(case)[0]
    w, b, norms = mlp_sizes(case)
    weights = names(case)[len(WEIGHTS) :]
    fused = back == "back kernel"
    rows: list[tuple[str, int, int]] = []
    traffic = [*layer_traffic(kind, back, case)]
    if case.mode is not Mode.bwd:
        rows += _UP_AND_DOWN if fused else (*_UP_AND_DOWN, ("down", 1, 1))
        if norms:
            rows += [("norm1", 1, 1), ("norm2", 0 if fused else 1, 1)]
        traffic.append(Traffic(", ".join(weights), w + b + norms))
    if case.mode is not Mode.fwd:
        rows += _BACK if fused else (*_BACK, *_SUM_BACK)
        if norms:
            passes = f_rms_norm_passes(case.C, case.dtype.bytes) if back == "back eager" else 1
            read = 2 * passes
            rows += [("norm1, backward", read, 1), ("norm2, backward", read, 1)]
        traffic.append(Traffic(", ".join(weights), w + norms))
        traffic.append(Traffic(", ".join(f"d{name}" for name in weights), write=w + b + norms))
    return (*traffic, *(Traffic(name, read * u, write * u) for name, read, write in rows))
