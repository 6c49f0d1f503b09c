"""What each function that a kernel computes supports of PyTorch: the claims of docs/pytorch.md,
held by test_citizens.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from kernelbench.kernels import (
    attention,
    dilated_attention,
    projection,
    rcm_attention,
    rcm_int8,
    rms_norm,
    rotary,
    swiglu,
    zigzag_attention,
)
from kernelbench.nn import skip

YES = "yes"


@dataclass(frozen=True)
class Function:
    """draw: tensors; call: of them, a tuple of results; right: the same by PyTorch's operators.

    graded: how many of the tensors, the first ones, have gradients. operator: of torch.library, and
    what it is given after the tensors. cuts: axes along which ranks may share the work, of each
    tensor; None for whole.
    """

    draw: Callable[[torch.device], list[torch.Tensor]]
    call: Callable[..., tuple[torch.Tensor, ...]]
    right: Callable[..., tuple[torch.Tensor, ...]]
    graded: int
    operator: Any
    rest: tuple[Any, ...]
    cuts: dict[str, tuple[int | None, ...]]
    close: float = 1e-4

    @property
    def asked(self) -> int:
        """Of how many a gradient is asked for, though there may be none."""
        return max(self.graded, 1)


def _draw(*shapes: tuple[int, ...]) -> Callable[[torch.device], list[torch.Tensor]]:
    return lambda device: [torch.randn(shape, device=device) for shape in shapes]


def _normed(x, weight, residual):
    total = x + residual
    return F.rms_norm(total, total.shape[-1:], weight, 1e-6), total


def _angles(device):
    angles = torch.randn(4, 8, device=device)
    return [angles.cos(), angles.sin()]


def _turned(x, cos, sin):
    one, two = x.chunk(2, -1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)


def _with_time(*shapes):
    drawn = _draw(*shapes)
    return lambda device: [*drawn(device), torch.rand(2, device=device) + 0.3]


def _mixed(f, x, t):
    c_skip, c_out = 1 / (t * t + 1), t / (t * t + 1).sqrt()
    return (c_skip[:, None, None] * x + c_out[:, None, None] * f,)


def _attended(q, k, v, x, t):
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
    a = torch.einsum("bhnm,bmhd->bnhd", scores.float().softmax(-1).to(v.dtype), v)
    return _mixed(a.flatten(2), x, t)


def _softmaxed(q, k, v):
    """Causal, the last query at the last key; heads of q share those of k and v."""
    k, v = (tensor.repeat_interleave(q.shape[2] // k.shape[2], 2) for tensor in (k, v))
    N, K = q.shape[1], k.shape[1]
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
    key, last = torch.arange(K, device=q.device), torch.arange(N, device=q.device) + K - N
    scores = scores.masked_fill(key > last[:, None], -torch.inf)
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v), scores.logsumexp(-1)


_LENGTHS = (4, 5)


def _packed(device):
    drawn = _draw(*[(9, 2, 16)] * 3)(device)
    return [*drawn, torch.tensor([0, 4, 9], dtype=torch.int32, device=device)]


def _softmaxed_apart(q, k, v, starts):
    parts = zip(*(tensor.split(_LENGTHS) for tensor in (q, k, v)), strict=True)
    results = [_softmaxed(*(tensor[None] for tensor in part)) for part in parts]
    o, lse = zip(*results, strict=True)
    return torch.cat([each[0] for each in o]), torch.cat([each[0] for each in lse], 1)


def _chunks(device):
    """Two documents of 8 and 4 keys, chunks 1 and 2 of 4."""
    drawn = _draw((3, 2, 16), (3, 2, 16), (12, 2, 16), (12, 2, 16))(device)
    starts = [0, 2, 3], [0, 8, 12]
    return [*drawn, *(torch.tensor(x, dtype=torch.int32, device=device) for x in starts)]


def _softmaxed_chunks(q0, q1, k, v, q_starts, k_starts):
    k, v = (x.split((8, 4)) for x in (k, v))
    results = []
    for number, q in ((1, q0), (2, q1)):
        parts = []
        for rows, keys, values in zip(q.split((2, 1)), k, v, strict=True):
            end = (number + 1) * len(rows)
            parts.append(_softmaxed(rows[None], keys[None, :end], values[None, :end]))
        o, lse = zip(*parts, strict=True)
        results.append((torch.cat([x[0] for x in o]), torch.cat([x[0] for x in lse], 1)))
    (o0, lse0), (o1, lse1) = results
    return o0, o1, lse0, lse1


_DILATED = [5, 3], [2, 1]  # segment lengths, dilation rates


def _softmaxed_branches(q, k, v):
    """Head j has every second position of all from j on, and every one of each three."""
    position, H = torch.arange(q.shape[1], device=q.device), q.shape[2]
    k, v = (tensor.repeat_interleave(H // k.shape[2], 2) for tensor in (k, v))
    sparse = [position % 2 == j % 2 for j in range(H)]
    seen = torch.stack([one[:, None] & one for one in sparse])
    both = (seen, (position[:, None] // 3 == position // 3).expand_as(seen))
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
    weights = sum(scores.exp() * mask for mask in both)
    weights = weights / weights.sum(-1, keepdim=True)
    return (torch.einsum("bhnm,bmhd->bnhd", weights, v),)


_HEADS = [(2, 5, 2, 16)] * 3
_SKIP = {"parametrization": "edm", "sigma_data": 1.0}
_OF_ATTENTION = {"batch": (0, 0, 0, 0, 0), "heads": (2, 2, 2, 2, None)}

FUNCTIONS = {
    "rms_norm": Function(
        _draw((2, 4, 16), (16,), (2, 4, 16)),
        lambda x, w, r: rms_norm.rms_norm(x, w, residual=r),
        _normed,
        3,
        rms_norm._operator,
        (1e-6, "fp32", [], True),
        {"batch": (0, None, 0), "rows": (1, None, 1)},
    ),
    "apply_rotary": Function(
        lambda device: [*_draw((2, 4, 4, 16), (2, 4, 2, 16))(device), *_angles(device)],
        rotary.apply_rotary,
        lambda q, k, cos, sin: (_turned(q, cos, sin), _turned(k, cos, sin)),
        2,
        rotary._operator,
        (None, False, [], False),
        {"batch": (0, 0, None, None), "tokens": (1, 1, 0, 0), "heads": (2, 2, None, None)},
    ),
    "swiglu": Function(
        _draw((2, 4, 16), (2, 4, 16)),
        lambda gate, up: (swiglu.swiglu(gate, up),),
        lambda gate, up: (F.silu(gate) * up,),
        2,
        swiglu._operator,
        ([],),
        {"batch": (0, 0), "rows": (1, 1), "columns": (2, 2)},
    ),
    "attention": Function(
        _draw((2, 3, 4, 16), (2, 5, 2, 16), (2, 5, 2, 16)),
        lambda q, k, v: attention.attention(q, k, v, causal=True, return_lse=True),
        _softmaxed,
        3,
        attention.operator._operator,
        (None, None, True, None, -1, -1, None, [], True),
        {"batch": (0, 0, 0), "heads": (2, 2, 2)},
    ),
    "attention, packed": Function(
        _packed,
        lambda q, k, v, starts: attention.attention(
            q, k, v, cu_seqlens_q=starts, causal=True, return_lse=True
        ),
        _softmaxed_apart,
        3,
        attention.operator._operator,
        (None, True, None, -1, -1, None, [], True),
        {"heads": (1, 1, 1, None)},
    ),
    "zigzag_attention": Function(
        _chunks,
        lambda q0, q1, k, v, q_starts, k_starts: zigzag_attention.zigzag_attention(
            *(q0, q1, k, v, q_starts, q_starts, k_starts),
            chunk_idx_0=1,
            chunk_idx_1=2,
            total_chunks=4,
        ),
        _softmaxed_chunks,
        4,
        zigzag_attention.operator._operator,
        (None, None, [1, 2, 4], None, True, False, None, []),
        {"heads": (1, 1, 1, 1, None, None)},
    ),
    "dilated_attention": Function(
        _draw((2, 5, 2, 16), (2, 5, 1, 16), (2, 5, 1, 16)),
        lambda q, k, v: (dilated_attention.dilated_attention(q, k, v, *_DILATED),),
        _softmaxed_branches,
        3,
        dilated_attention.operator._operator,
        (*_DILATED, False, "head_mod", "lse", "identity", [], False, None, [], True),
        {"batch": (0, 0, 0)},
    ),
    "rcm_attention": Function(
        _with_time(*_HEADS, (2, 5, 32)),
        lambda *given: (rcm_attention.rcm_attention(*given),),
        _attended,
        5,
        rcm_attention._operator,
        (None, "edm", False, None, [], True, True),
        _OF_ATTENTION,
    ),
    "rcm_attention_int8": Function(
        lambda device: [
            *(each.half() for each in _draw(*_HEADS, (2, 5, 32))(device)),
            torch.rand(2, device=device) + 0.3,
        ],
        lambda *given: (rcm_int8.rcm_attention_int8(*given),),
        _attended,
        0,
        rcm_int8._operator,
        (None, "edm", False, None, []),
        _OF_ATTENTION,
        close=0.1,
    ),
    "project_and_skip": Function(
        _with_time((2, 4, 16), (32, 16), (32,), (2, 4, 32)),
        lambda *given: (projection.project_and_skip(*given),),
        lambda a, weight, bias, x, t: _mixed(F.linear(a, weight, bias), x, t),
        5,
        projection._operator,
        (None, "edm", [], True),
        {
            "batch": (0, None, None, 0, 0),
            "rows": (1, None, None, 1, None),
            "columns": (None, 0, 0, 2, None),
        },
    ),
    "skip": Function(
        _with_time((2, 4, 16), (2, 4, 16)),
        lambda *given: (skip.skip(*given, **_SKIP),),
        _mixed,
        3,
        skip._operator,
        ("edm", 1.0),
        {"batch": (0, 0, 0), "rows": (1, 1, None), "columns": (2, 2, None)},
    ),
}


@dataclass(frozen=True)
class Refused:
    """By an error of this kind, whose text matches `words`. says: what the table says."""

    error: type[Exception] | tuple[type[Exception], ...]
    words: str
    says: str = "refused"


def _all(claim: Any = YES, **others: Any) -> dict[str, Any]:
    return {name: others.get(name, claim) for name in FUNCTIONS}


_NO_GRADIENT = Refused(RuntimeError, "has no gradients", "no gradient")
_NO_SECOND = Refused(RuntimeError, r"cannot be differentiated again|not have been used")
_NO_TANGENT = Refused(NotImplementedError, "no forward-mode derivative")

# Of each feature what each function makes of it.
CLAIMS: dict[str, dict[str, Any]] = {
    "`torch.compile(fullgraph=True)`, static shapes: eager's bits, gradients, too": _all(),
    "the same with dynamic shapes": _all(),
    "`torch.export`": _all(),
    "fake and meta tensors: shapes, dtypes, strides": _all(),
    "`torch.library.opcheck`": _all(),
    "`torch.func.grad`": _all(rcm_attention_int8=_NO_GRADIENT),
    "`torch.func.vmap`, one call after another": _all(),
    "forward mode, `torch.func.jvp`": _all(_NO_TANGENT, rms_norm=YES, apply_rotary=YES, swiglu=YES),
    "second derivatives": _all(_NO_SECOND, apply_rotary=YES, rcm_attention_int8=_NO_GRADIENT),
    "second derivatives by `torch.func`": _all(
        Refused((RuntimeError, NotImplementedError), "cannot be differentiated again"),
        apply_rotary=YES,
        rcm_attention_int8=_NO_GRADIENT,
    ),
    "saved-tensor hooks that hand back other strides": _all(rcm_attention_int8=_NO_GRADIENT),
    "activation checkpointing, both forms": _all(rcm_attention_int8=_NO_GRADIENT),
    "gradients of some tensors alone": _all(rcm_attention_int8=_NO_GRADIENT),
    "negative views": _all(),
    "expanded and transposed tensors": _all(),
    "autocast: takes what it is given": _all(),
    "`use_deterministic_algorithms`: the same bits": _all(),
    "CUDA graphs, once it has run": _all(),
    "gradients in a batch, `is_grads_batched`": _all(
        Refused(RuntimeError, "doesn't have storage|Batching rule not implemented"),
        rcm_attention_int8=_NO_GRADIENT,
        skip=YES,
    ),
    "nested tensors": _all(Refused(TypeError, "takes no nested tensors")),
    "tensors without memory": _all(Refused(RuntimeError, "has no memory")),
    "nested tensors, strided": _all(Refused(TypeError, "takes no nested tensors")),
    "sparse tensors": _all(Refused(TypeError, "layout torch.sparse_coo|takes no torch.sparse")),
}


def table() -> list[str]:
    """The rows of docs/pytorch.md."""
    rows = [f"| | {' | '.join(f'`{name}`' for name in FUNCTIONS)} |"]
    rows.append("|---" * (len(FUNCTIONS) + 1) + "|")
    for feature, claims in CLAIMS.items():
        cells = (claim if claim == YES else claim.says for claim in claims.values())
        rows.append(f"| {feature} | {' | '.join(cells)} |")
    cells = (", ".join(function.cuts) for function in FUNCTIONS.values())
    rows.append(f"| DTensor, sharded along | {' | '.join(cells)} |")
    return rows
