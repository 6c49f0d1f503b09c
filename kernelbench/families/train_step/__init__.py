"""A step of training a causal language model, `nn.Transformer`: forward, backward, AdamW.

    loss = mean over tokens of −ln softmax(logits)[target],  g = d loss / d params
    m ← β1·m + (1−β1)·g,  v ← β2·v + (1−β2)·g²
    params ← (1 − lr·decay)·params − lr·m/(1−β1ᵗ) / (√(v/(1−β2ᵗ)) + ε)

with t = 101, lr = 1e-3, β = (0.9, 0.95), ε = 1e-8, decay = 0.1 of all parameters. The model: x =
embedding[tokens]; blocks h = x + out(attention(norm(x))), x = h + down(silu(g)·u) with g, u the
halves of gate_up(norm(h)); logits = norm(x) embeddingᵀ. Attention is causal, its q and k turned by
rotary positions, H heads of q that share Hk of k and v. No biases.

Inputs: tokens and targets (B,S), int64; params, exp_avg (m) and exp_avg_sq (v), all parameters in
one flat fp32 tensor (P,), by kind (`TrainStepCase.kinds`). A call trains on them in place: they are
restored before each. dtype fp32: all in fp32. bf16, fp16: torch.autocast over the forward, while
parameters, their gradients, state and residuals are fp32; in fp16 the loss is scaled by a constant.

Mode `fwd` alone: the call is the whole step, with its own backward, and that is what is timed;
between calls nothing is kept but a model and an optimizer whose tensors are views of the inputs.

Outputs: the loss, fp32, and what was updated, views of the inputs that cost nothing: m by kind of
parameter (q and k apart from v), `avg_sq` v, `updated` params. Gradients are proven by m: of it
(1−β1)·g is the part that is computed. An update changes some 1 % of params: what `updated` may err
by is wide in 16 bits, but for its slope on the change, and not in fp32. Of more than 2²⁷ parameters
one row, or element, of 61 is judged; where a step takes more than 2⁵⁰ flops the loss alone is.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kernelbench.families.providing import no_autotuner, no_compiler
from kernelbench.families.train_step.case import (
    ADAMW,
    BASE,
    NORM_EPS,
    STATE,
    STEPS,
    TrainStepCase,
    averages,
    by_kind,
    inputs,
)
from kernelbench.families.train_step.providers import (
    compile_max_autotune,
    compile_step,
    eager,
    on_a_gpu,
    serves,
    triton_all,
    triton_compile,
    triton_norm_and_rotary,
)
from kernelbench.spec import Cost, DType, Family, Mode, Provider, Role, Tensors, Trial
from kernelbench.spec.family import always

LR, (BETA1, BETA2), EPS, DECAY = ADAMW.values()
Piece = tuple[Any, ...]
Weights = dict[str, list[Tensor]]  # by kind, as `by_kind` has them


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS) * weight


def _turned(x: Tensor) -> Tensor:
    """x (S,H,D), pairs (i, i + D/2) of token s turned by s·base^(−2i/D)."""
    S, _, D = x.shape
    half = torch.arange(0, D, 2, dtype=torch.float64, device=x.device)
    position = torch.arange(S, dtype=torch.float64, device=x.device)
    angle = (position[:, None] * BASE ** (-half / D))[:, None]
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def _attention(case: TrainStepCase, x: Tensor, qkv: Tensor) -> Tensor:
    H, G = case.H, case.kv_heads
    q, k, v = (x @ qkv.mT).unflatten(-1, (-1, case.head)).split((H, G, G), 1)
    q, k, v = _turned(q), *(t.repeat_interleave(H // G, 1) for t in (_turned(k), v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(case.head)
    later = torch.ones(case.S, case.S, dtype=torch.bool, device=x.device).triu(1)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -math.inf).softmax(-1), v)


def _block(case: TrainStepCase, x: Tensor, *weights: Tensor) -> Tensor:
    norm1, norm2, qkv, out, gate_up, down = weights
    h = x + _attention(case, _norm(x, norm1), qkv).flatten(1) @ out.mT
    gate, up = (_norm(h, norm2) @ gate_up.mT).chunk(2, -1)
    return h + (gate * torch.sigmoid(gate) * up) @ down.mT


def _loss(case: TrainStepCase, w: Weights, tokens: Tensor, targets: Tensor) -> Tensor:
    """The sum over the tokens of a sample."""
    [embedding] = w["embedding"]
    *norms, last = w["norms"]
    x = embedding[tokens]
    matrices = (w[kind] for kind in ("qkv", "out", "gate_up", "down"))
    for layer in zip(norms[::2], norms[1::2], *matrices, strict=True):
        x = checkpoint(_block, case, x, *layer, use_reentrant=False, preserve_rng_state=False)
    logits = _norm(x, last) @ embedding.mT
    return (logits.logsumexp(-1) - logits.gather(-1, targets[:, None])[:, 0]).sum()


def oracle(case: TrainStepCase, a: Tensors) -> Iterator[Piece]:
    """In fp64, a sample at a time, by torch.autograd; blocks are computed twice."""
    whole = len(case.names) > 1
    w: Weights = {
        kind: [m.double().requires_grad_(whole) for m in matrices]
        for kind, matrices in by_kind(case, a["params"]).items()
    }
    total = torch.zeros((), dtype=torch.float64, device=a["params"].device)
    for tokens, targets in zip(a["tokens"], a["targets"], strict=True):
        with torch.set_grad_enabled(whole):
            loss = _loss(case, w, tokens, targets) / case.tokens
        if whole:
            loss.backward()
        total += loss.detach()
    yield "loss", ..., total
    if whole:
        yield from _updates(case, a, w)


def _updates(case: TrainStepCase, a: Tensors, w: Weights) -> Iterator[Piece]:
    """m, v and params after the update, a matrix at a time, as outputs show them."""
    state = {name: by_kind(case, a[name]) for name in STATE}
    first, t = 0, STEPS + 1  # first: place of the matrix
    for kind, matrices in w.items():
        for i, matrix in enumerate(matrices):
            params, m, v = (state[name][kind][i].double() for name in STATE)
            assert matrix.grad is not None
            g, matrix.grad = matrix.grad, None
            m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g.square()
            root = (v / (1 - BETA2**t)).sqrt() + EPS
            change = -LR * (DECAY * params + m / (1 - BETA1**t) / root)
            own = dict(averages(case, kind, (1 - BETA1) * g))
            yield from ((name, i, of, own[name]) for name, of in averages(case, kind, m))
            places = range(-first % case.every, g.numel(), case.every)
            start = (first + case.every - 1) // case.every
            index, taken = slice(start, start + len(places)), slice(places.start, None, case.every)
            v, params, change = (x.flatten()[taken] for x in (v, params, change))
            yield "avg_sq", index, v
            yield "updated", index, params + change, change
            first += g.numel()


def trials(case: TrainStepCase) -> Mapping[str, Trial]:
    """Smaller and larger weights, norms' too, and another state: what any may err by there is not
    known. In fp16 nothing is proven on them."""
    if case.dtype is DType.fp16:
        why = "averages of gradients, though fp32, are smaller than what fp16 rounds well"
        return dict.fromkeys(("small", "large", "outliers"), Trial(refused=why))
    return {
        "small": Trial({"params": 0.5, "exp_avg": 2.0**-4}, gross=True),
        "large": Trial({"params": 2.0, "exp_avg": 8.0, "exp_avg_sq": 64.0}, gross=True),
        "outliers": Trial(outliers=("exp_avg",), gross=True),
    }


def cost(case: TrainStepCase) -> Cost:
    """Flops: of matrix products alone, those of attention for keys that a query sees. Bytes: tokens
    and targets in; params, exp_avg and exp_avg_sq in and out once, the loss out. Gradients and all
    that a forward keeps for its backward are left out: they could stay on the chip."""
    state = len(STATE) * 4 * case.parameters
    return Cost(case.flops, 2 * 8 * case.tokens + state, state + 4)


def _checks(dtypes: str, **axes: Any) -> Iterator[TrainStepCase]:
    return TrainStepCase.grid(dtype=dtypes.split(), layers=1, V=20, C=16, H=2, **axes)


def _provider(
    name: str, role: Role, build: Any, unsupported: Any = always, *requires: str
) -> Provider[TrainStepCase]:
    facts: Any = {"mutates": lambda case: STATE, "unsupported": unsupported, "requires": requires}
    return Provider(name, role, build, **facts)


FAMILY = Family(
    name="train_step",
    title="A training step of a causal transformer: forward, backward, AdamW",
    case=TrainStepCase,
    inputs=inputs,
    outputs=lambda case: case.names,
    dtypes=lambda case: dict.fromkeys(case.names, "float32"),
    oracle=oracle,
    cost=cost,
    trials=trials,
    checks=(*_checks("fp32 bf16", B=2, S=8, Hk=1), *_checks("fp16", B=1, S=9)),
    modes=(Mode.fwd,),
    back_to_back=True,
    providers=(
        _provider("eager", Role.baseline, eager),
        _provider("compile", Role.torch_fused, compile_step, no_compiler),
        _provider("compile_max_autotune", Role.torch_fused, compile_max_autotune, no_autotuner),
        _provider("triton", Role.ablation, triton_norm_and_rotary, always, "triton"),
        _provider("triton_all", Role.triton_fused, triton_all, serves, "triton"),
        _provider("triton_compile", Role.ablation, triton_compile, on_a_gpu, "triton"),
    ),
)
