"""What `zigzag_attention` takes, and what is said of the rest."""

import operator
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

from torch import Tensor

from kernelbench.kernels.attention.checks import DTYPES, MOST_D, check_starts
from kernelbench.kernels.operators import as_flag, as_scale
from kernelbench.kernels.zigzag_attention.configs import ZigzagConfig
from kernelbench.kernels.zigzag_attention.lengths import (
    How,
    check_lengths,
    readable,
    values_of,
)

ORDERS = ("sequence", "zigzag")
NAMES = (
    *("q0", "q1", "k", "v"),
    *("cu_seqlens_q0", "cu_seqlens_k", "cu_seqlens_q1", "cu_seqlens_padded"),
)
# q0, q1, k, v; where documents begin in q0, and the sums of their keys; where they begin in q1,
# None for as in q0, and in k, None for by these sums.
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def how_of(
    chunk_idx_0: Any, chunk_idx_1: Any, total_chunks: Any, scale: Any, causal: Any, kv_order: Any
) -> How:
    """The arguments as `How` has them. Raises TypeError or ValueError for what they cannot be."""
    early, late, chunks = (
        _whole(name, value)
        for name, value in (
            ("chunk_idx_0", chunk_idx_0),
            ("chunk_idx_1", chunk_idx_1),
            ("total_chunks", total_chunks),
        )
    )
    if not 2 <= chunks < 1 << 31 or chunks % 2:
        raise ValueError(
            "zigzag_attention takes total_chunks as an even number, two for each rank, got "
            f"{chunks}"
        )
    for name, number in (("chunk_idx_0", early), ("chunk_idx_1", late)):
        if not 0 <= number < chunks:
            raise ValueError(
                f"zigzag_attention takes {name} from 0 to total_chunks − 1, here {chunks - 1}, got "
                f"{number}"
            )
    if early > late:
        raise ValueError(
            "zigzag_attention takes the early chunk first, chunk_idx_0 no greater than "
            f"chunk_idx_1, got {early} and {late}"
        )
    scale = as_scale("zigzag_attention", "softmax_scale", scale)
    if not isinstance(kv_order, str) or kv_order not in ORDERS:
        raise ValueError(
            f"zigzag_attention takes kv_order as one of {', '.join(ORDERS)}, got {kv_order!r}"
        )
    causal = as_flag("zigzag_attention", "causal", causal)
    return How(early, late, chunks, scale, causal, kv_order == "zigzag")


def _whole(name: str, value: Any) -> int:
    try:
        if isinstance(value, (bool, Tensor)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"zigzag_attention takes {name} as a whole number, got {type(value).__name__}"
        ) from None


def check_types(tensors: Any, config: Any) -> None:
    """Raise TypeError for arguments that are of no kind that `zigzag_attention` takes."""
    for name, tensor in zip(NAMES, tensors, strict=True):
        optional = name == "cu_seqlens_padded" and tensor is None
        if not isinstance(tensor, Tensor) and not optional:
            raise TypeError(
                f"zigzag_attention takes {name} as a tensor, got {type(tensor).__name__}"
            )
    if config is not None and not isinstance(config, ZigzagConfig):
        raise TypeError(
            f"zigzag_attention takes config as a ZigzagConfig or None, got {type(config).__name__}"
        )


def check(
    q0: Tensor,
    q1: Tensor,
    k: Tensor,
    v: Tensor,
    q0_starts: Tensor,
    k_starts: Tensor,
    q1_starts: Tensor | None,
    k_places: Tensor | None,
    how: How,
) -> None:
    """Raise TypeError or ValueError unless `zigzag_attention` takes these, wherever they are."""
    dtypes = [tensor.dtype for tensor in (q0, q1, k, v)]
    if dtypes[0] not in DTYPES or len({*dtypes}) > 1:
        raise TypeError(
            "zigzag_attention takes q0, q1, k and v of one dtype, bfloat16, float16 or float32, "
            f"got {', '.join(map(str, dtypes))}: convert them with .to()"
        )
    _check_shapes([tuple(tensor.shape) for tensor in (q0, q1, k, v)], how)
    starts = q0_starts, k_starts, q1_starts, k_places
    named = dict(zip(NAMES[4:], starts, strict=True))
    check_starts("zigzag_attention", "S documents", named)


def _check_shapes(shapes: list[tuple[int, ...]], how: How) -> None:
    """shapes: of q0, q1, k and v."""
    if any(len(shape) != 3 for shape in shapes) or shapes[2] != shapes[3]:
        raise _wrong(shapes, "")
    heads, D = shapes[0][1:]
    if shapes[1][1:] != (heads, D) or shapes[2][2] != D:
        raise _wrong(shapes, " of the same H and D")
    if not 1 <= D <= MOST_D:
        raise ValueError(f"zigzag_attention takes heads of 1 to {MOST_D} elements, got D = {D}")
    shared = shapes[2][1]
    if 0 in (shared, heads) or heads % shared:
        raise ValueError(
            "zigzag_attention takes heads of k and v, one or more, whose number divides that of q, "
            f"got {shared} and {heads}"
        )
    if how.zigzag and shapes[2][0] % (how.chunks // 2):
        raise ValueError(
            "zigzag_attention takes k and v in zigzag order of as many rows from each rank, got "
            f"{shapes[2][0]} rows of {how.chunks // 2} ranks"
        )


def _wrong(shapes: list[tuple[int, ...]], besides: str) -> ValueError:
    return ValueError(
        f"zigzag_attention takes q0 (T0,H,D), q1 (T1,H,D), k and v (Tk,G,D){besides}, got "
        f"{', '.join(map(str, shapes))}"
    )


def check_values(tensors: Inputs, how: How, validate: bool | None) -> None:
    """Check where documents begin: once for a tensor; not at all where `validate` is False, nor
    where values cannot be read; anew where it is True."""
    q0, q1, k, _, *starts = tensors
    if validate is not False and readable(*tensors):
        _check_values((len(q0), len(q1), len(k)), starts, how, bool(validate))


def check_rows_of_all(tensors: Inputs, how: How, anew: bool) -> None:
    """Check where documents begin, of q, k and v of all ranks, from which chunks are to be cut.
    Raises RuntimeError where that cannot be read."""
    if not readable(*tensors):
        raise RuntimeError(
            "zigzag_attention_qkvpacked cuts chunks out of q by cu_seqlens, which it cannot read "
            "of meta tensors, nor while a CUDA graph is captured: pass q0 and q1 to "
            "zigzag_attention"
        )
    _check_values((None, None, len(tensors[2])), tensors[4:], how, anew)


def _check_values(
    rows: tuple[int | None, int | None, int],
    starts: Sequence[Tensor | None],
    how: How,
    anew: bool,
) -> None:
    early, keys, late, padded = (
        None if tensor is None else values_of(name, tensor, anew)
        for name, tensor in zip(NAMES[4:], starts, strict=True)
    )
    assert early is not None and keys is not None
    check_lengths(early, late or early, keys, padded, how, rows)


def _never(value: Any) -> bool:
    return False


def _is_unlimited(value: Any) -> bool:
    return isinstance(value, Iterable) and [*map(int, value)] == [-1, -1]


# Which values are as good as none, and what to do instead of others.
_REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "window_size": (_is_unlimited, "attention(window=…) of whole sequences has windows"),
    "alibi_slopes": (_never, "take torch.nn.attention.flex_attention"),
    "dropout_p": (
        lambda value: isinstance(value, Real) and value == 0,
        "train without dropout in attention, as Llama does",
    ),
    "local_k_slice": (_never, "pass the slice itself as k and v"),
}


def refuse(others: dict[str, Any]) -> None:
    """Raise NotImplementedError for what others' functions have and this does not, TypeError for
    what none has."""
    for name, value in others.items():
        if name not in _REFUSED:
            raise TypeError(f"zigzag_attention has no argument {name!r}")
        is_neutral, remedy = _REFUSED[name]
        if value is not None and not is_neutral(value):
            raise NotImplementedError(f"zigzag_attention has no {name}, got {value!r}: {remedy}")
