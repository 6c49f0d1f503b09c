"""What `dilated_attention` takes, what is said of the rest, and which tokens its branches see."""

import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernelbench.kernels.attention.checks import DTYPES, MOST_D
from kernelbench.kernels.attention.configs import AttentionConfig
from kernelbench.kernels.dilated_attention.orders import ORDERS
from kernelbench.kernels.launch import ceil_div
from kernelbench.kernels.operators import as_flag, as_scale

RULES = ("head_mod", "head_group", "segment_index")
COMBINES = ("lse", "mean")
_MOST = 2**31 - 1  # rows


class How(NamedTuple):
    """What is computed, apart from sizes: see `dilated_attention`. branches: pairs of a segment
    length and a dilation rate."""

    branches: tuple[tuple[int, int], ...]
    causal: bool = False
    rule: str = "head_mod"
    combine: str = "lse"
    order: str = "identity"
    grid: tuple[int, int] | None = None
    reorder: bool = False
    scale: float | None = None


def how_of(segment_lengths: Any, dilation_rates: Any, **others: Any) -> How:
    """The arguments as `How` has them. Raises TypeError or ValueError for what they cannot be.

    others: those of `dilated_attention`, by their names there.
    """
    grid = others["grid"]
    return How(
        _branches(segment_lengths, dilation_rates),
        as_flag("dilated_attention", "causal", others["causal"]),
        _one_of("offset_rule", others["offset_rule"], RULES),
        _one_of("combine", others["combine"], COMBINES),
        _one_of("order", others["order"], ORDERS),
        None if grid is None else _grid(grid),
        as_flag("dilated_attention", "reorder", others["reorder"]),
        as_scale("dilated_attention", "scale", others["scale"]),
    )


def _branches(segment_lengths: Any, dilation_rates: Any) -> tuple[tuple[int, int], ...]:
    lengths = _whole("segment_lengths", segment_lengths)
    rates = _whole("dilation_rates", dilation_rates)
    if len(lengths) != len(rates) or not lengths:
        raise ValueError(
            "dilated_attention takes as many segment_lengths as dilation_rates, one or more, got "
            f"{len(lengths)} and {len(rates)}"
        )
    return tuple(zip(lengths, rates, strict=True))


def _grid(grid: Any) -> tuple[int, int]:
    sides = _whole("grid", grid)
    if len(sides) != 2:
        raise ValueError(f"dilated_attention takes grid as (h, w), got {len(sides)} numbers")
    return sides[0], sides[1]


def _whole(name: str, values: Any) -> tuple[int, ...]:
    try:
        if isinstance(values, (str, bytes, Tensor)) or not isinstance(values, Iterable):
            raise TypeError
        given = tuple(values)
        if any(isinstance(value, bool) for value in given):
            raise TypeError
        numbers = tuple(map(operator.index, given))
    except TypeError:
        raise TypeError(
            f"dilated_attention takes {name} as a sequence of whole numbers, got {values!r}"
        ) from None
    if any(not 1 <= number <= _MOST for number in numbers):
        raise ValueError(
            f"dilated_attention takes {name} from 1 to 2³¹ − 1, got {', '.join(map(str, numbers))}"
        )
    return numbers


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in known:
        raise ValueError(
            f"dilated_attention takes {name} as one of {', '.join(known)}, got {value!r}"
        )
    return value


def refuse_dropout(dropout_p: Any) -> None:
    """Raise NotImplementedError unless no weight is to be dropped."""
    if dropout_p is not None and dropout_p != 0:
        raise NotImplementedError(
            f"dilated_attention has no dropout_p, got {dropout_p!r}: drop elements of its result"
        )


def check_types(tensors: Any, config: Any) -> None:
    """Raise TypeError for arguments that are of no kind that `dilated_attention` takes."""
    for name, tensor in zip("qkv", tensors, strict=True):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"dilated_attention takes {name} as a tensor, got {type(tensor).__name__}"
            )
    if config is not None and not isinstance(config, AttentionConfig):
        raise TypeError(
            "dilated_attention takes config as an AttentionConfig or None, got "
            f"{type(config).__name__}"
        )


def check(q: Tensor, k: Tensor, v: Tensor, how: How) -> None:
    """Raise TypeError or ValueError unless `dilated_attention` takes these, wherever they are."""
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise TypeError(
            "dilated_attention takes q, k and v of one dtype, float32, float16 or bfloat16, got "
            f"{q.dtype}, {k.dtype} and {v.dtype}: convert them with .to()"
        )
    check_shapes(q, k, v, how)


def check_shapes(q: Tensor, k: Tensor, v: Tensor, how: How) -> None:
    """Raise ValueError unless these are q, k and v of one call, of any dtype."""
    same = q.dim() == k.dim() == 4 and k.shape == v.shape
    if not same or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(
            "dilated_attention takes q (B,N,H,D), k and v (B,N,G,D) of the same B, N and D, got "
            f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    N, heads, shared, D = q.shape[1], q.shape[2], k.shape[2], q.shape[3]
    if 0 in (heads, shared) or heads % shared:
        raise ValueError(
            "dilated_attention takes heads of k and v, one or more, whose number divides that of "
            f"q, got {shared} and {heads}"
        )
    if not 1 <= D <= MOST_D:
        raise ValueError(f"dilated_attention takes heads of 1 to {MOST_D} elements, got D = {D}")
    if how.grid is not None and how.grid[0] * how.grid[1] != N:
        raise ValueError(
            f"dilated_attention takes a grid that has N positions, here {N}, got "
            f"{how.grid[0]} × {how.grid[1]}"
        )


def offsets_of(rule: str, H: int, rate: int) -> tuple[int, int]:
    """a and b by which head h, in segment i, has rows from offset (h // a + i·b) mod rate on."""
    return {"head_mod": (1, 0), "head_group": (ceil_div(H, rate), 0), "segment_index": (H, 1)}[rule]


def coverage(
    N: int,
    H: int,
    segment_lengths: Iterable[int],
    dilation_rates: Iterable[int],
    *,
    offset_rule: str = "head_mod",
) -> Tensor:
    """How many branches each of N tokens of each of H heads is in, (N,H) of int32, on the CPU: 0
    where `dilated_attention` gives zeros. Under `reorder` tokens are those of the order.

    `(coverage(…) == 0).float().mean()` is the share that is left out. Raises as `dilated_attention`
    does.
    """
    branches = _branches(segment_lengths, dilation_rates)
    rule = _one_of("offset_rule", offset_rule, RULES)
    counts = torch.zeros(N, H, dtype=torch.int32)
    position, head = torch.arange(N)[:, None], torch.arange(H)
    for length, rate in branches:
        heads, turn = offsets_of(rule, H, rate)
        segment = position // length
        offset = (head // heads + segment * turn) % rate
        counts += (position - segment * length) % rate == offset
    return counts
