"""A training step: one point of a sweep, where its parameters lie, and its inputs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from kernelbench.spec import Case, Draw, Tensors, axis

STATE = ("params", "exp_avg", "exp_avg_sq")
ADAMW: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
STEPS = 100  # that were taken before
NORM_EPS, BASE = 1e-5, 10000.0
SAMPLED, EVERY = 2**27, 61  # of more parameters than this one row, or element, of so many is judged
MOST_FLOPS = 2**50  # beyond, the loss alone is judged: fp64 takes a GPU half a minute for as many

# Typical gradients, of a mean loss over T tokens that are drawn: these / √(T·C), of the embedding
# / √(T·V).
_GRADIENT = {"embedding": 1.5, "norms": 0.4, "qkv": 0.7, "out": 2.0, "gate_up": 0.15, "down": 0.8}
_QK = 0.07  # of that, in rows of q and k
_KEPT = 0.4  # of that: what an average of gradients without a trend comes to


class Kind(NamedTuple):
    """All weights of a kind, which lie next to each other: `many` matrices of rows x columns."""

    name: str
    many: int
    rows: int
    columns: int

    @property
    def elements(self) -> int:
        return self.many * self.rows * self.columns


@dataclass(frozen=True, kw_only=True)
class TrainStepCase(Case):
    """tokens, targets (B,S); params, exp_avg, exp_avg_sq (P,)."""

    B: int = axis("samples")
    S: int = axis("tokens of a sample")
    C: int = axis("channels (d_model)")
    H: int = axis("heads of q")
    Hk: int = axis("heads of k and v; 0: as many as of q", 0)
    layers: int = axis("blocks", 6)
    F: int = axis("hidden channels of the MLP (d_ff); 0: 4·C", 0)
    V: int = axis("words", 8192)

    def __post_init__(self) -> None:
        if min(self.B, self.S, self.C, self.H, self.layers, self.V) < 1 or min(self.Hk, self.F) < 0:
            raise ValueError("B, S, C, H, layers and V must be at least 1, Hk and F at least 0")
        if self.C % (2 * self.H):
            raise ValueError(f"C must be an even multiple of H, got C={self.C}, H={self.H}")
        if self.H % self.kv_heads:
            raise ValueError(f"H must be a multiple of Hk, got H={self.H}, Hk={self.Hk}")

    @property
    def head(self) -> int:
        """Its size."""
        return self.C // self.H

    @property
    def kv_heads(self) -> int:
        return self.Hk or self.H

    @property
    def hidden(self) -> int:
        return self.F or 4 * self.C

    @property
    def tokens(self) -> int:
        return self.B * self.S

    @property
    def qk_rows(self) -> int:
        """Rows of a qkv weight that make q and k."""
        return (self.H + self.kv_heads) * self.head

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The order in which parameters lie; within a kind that of layers. Norms: of a block that
        before attention, then that before the MLP; the last norm last."""
        C, L, F = self.C, self.layers, self.hidden
        return (
            Kind("embedding", 1, self.V, C),
            Kind("norms", 2 * L + 1, 1, C),
            Kind("qkv", L, self.qk_rows + self.kv_heads * self.head, C),
            Kind("out", L, C, C),
            Kind("gate_up", L, 2 * F, C),
            Kind("down", L, C, F),
        )

    @property
    def parameters(self) -> int:
        return sum(kind.elements for kind in self.kinds)

    @property
    def every(self) -> int:
        """One row, or element, of so many is an output."""
        return EVERY if self.parameters > SAMPLED else 1

    @property
    def flops(self) -> int:
        """Of matrix products: 6 a token and weight, of which the embedding's are the logits', and
        twelve a channel of each query and key that it sees."""
        weights = self.parameters - self.kinds[1].elements
        pairs = self.B * self.S * (self.S + 1) // 2
        return 6 * weights * self.tokens + 12 * self.C * pairs * self.layers

    @property
    def names(self) -> tuple[str, ...]:
        """Of the outputs."""
        if self.flops > MOST_FLOPS:
            return ("loss",)
        kinds = "embedding", "norms", "qk", "v", "out", "gate_up", "down"
        return ("loss", *(f"avg_{kind}" for kind in kinds), "avg_sq", "updated")


def by_kind(case: TrainStepCase, flat: Any) -> dict[str, Any]:
    """Views of a flat tensor, (many, rows, columns) a kind."""
    sizes = [kind.elements for kind in case.kinds]
    pieces = zip(case.kinds, flat.split(sizes), strict=True)
    return {kind.name: piece.view(kind[1:]) for kind, piece in pieces}


def averages(case: TrainStepCase, kind: str, values: Any) -> Iterator[tuple[str, Any]]:
    """What outputs show of values (..., rows, columns) of a kind, by the name of the output."""
    if kind != "qkv":
        yield f"avg_{kind}", values[..., :: case.every, :]
        return
    yield "avg_qk", values[..., : case.qk_rows : case.every, :]
    yield "avg_v", values[..., case.qk_rows :: case.every, :]


def _std(case: TrainStepCase, kind: Kind) -> float:
    """0.02 at 625 inputs, and of projections that a residual is added to 1/√(2·layers) of that."""
    residual = 2 * case.layers if kind.name in ("out", "down") else 1
    return 0.5 / math.sqrt(kind.columns * residual)


def inputs(case: TrainStepCase, draw: Draw) -> Tensors:
    tensors = {name: draw.integers(0, case.V, case.B, case.S) for name in ("tokens", "targets")}
    for name in STATE:
        tensors[name] = draw(case.parameters, dtype=torch.float32)
    weights, average, square = (by_kind(case, tensors[name]) for name in STATE)
    for kind in case.kinds:
        name, fans = kind.name, case.V if kind.name == "embedding" else case.C
        weights[name].mul_(0.1).add_(1) if name == "norms" else weights[name].mul_(_std(case, kind))
        gradient = _GRADIENT[name] / math.sqrt(case.tokens * fans)
        average[name].mul_(_KEPT * gradient)
        square[name].square_().add_(0.5).mul_(gradient**2)
    average["qkv"][:, : case.qk_rows].mul_(_QK)
    square["qkv"][:, : case.qk_rows].mul_(_QK**2)
    return tensors
