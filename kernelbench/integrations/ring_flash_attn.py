"""ring_flash_attn's zigzag llama3 path on our kernels.

    from kernelbench.integrations import ring_flash_attn
    patch = ring_flash_attn.patch()
    …
    patch.undo()

That path (`ring_flash_attn.zigzag_llama3_flash_attn_varlen`) exists in forks of the package, which
gather keys and values and then call a function of 15 arguments for the attention of a rank's two
chunks; this function is replaced. Its backward goes on from our o and lse.

Environment variables, read when it is patched:
    ZIGZAG_USE_FUSED_TRITON_V2: 0 for the package's own function all the same; 1 unless set.
    ZIGZAG_VERIFY_CORRECTNESS: 1 to call both and compare; an error beyond the budget of the dtype
        raises.
    ZIGZAG_PROFILE_KERNELS: 1 for an NVTX range around each call.
"""

import importlib
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernelbench.kernels.zigzag_attention import zigzag_attention

PATH = "ring_flash_attn.zigzag_llama3_flash_attn_varlen"
NAMES = ("execute_grouped_attention", "execute_two_kernels_mode")  # as forks call it
# Relative to the norm of the answer: what the gate of kernelbench allows at most.
BUDGETS = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 2e-5}

Result = tuple[Tensor, Tensor, dict[str, Any]]


class WrongAttentionError(RuntimeError):
    """Ours differs from the package's own by more than the budget of the dtype."""


class Flags(NamedTuple):
    """What the environment says."""

    fused: bool = True
    verifies: bool = False
    profiles: bool = False

    @staticmethod
    def of(environment: Mapping[str, str]) -> "Flags":
        """Raises ValueError for values that are neither 0 nor 1."""

        def read(name: str, default: str) -> bool:
            value = environment.get(name, default)
            if value not in ("0", "1"):
                raise ValueError(f"{name} is 0 or 1, got {value!r}")
            return value == "1"

        return Flags(
            read("ZIGZAG_USE_FUSED_TRITON_V2", "1"),
            read("ZIGZAG_VERIFY_CORRECTNESS", "0"),
            read("ZIGZAG_PROFILE_KERNELS", "0"),
        )


@dataclass
class Patch:
    """What was replaced in a module; `undo`, or the end of a `with`, puts it back."""

    module: ModuleType
    originals: dict[str, Any]

    def undo(self) -> None:
        """Put the package's own functions back; once more is no matter."""
        for name, original in self.originals.items():
            setattr(self.module, name, original)
        self.originals = {}

    def __enter__(self) -> "Patch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()


def patch(module: ModuleType | None = None, flags: Flags | None = None) -> Patch:
    """Replace the attention of ring_flash_attn's zigzag llama3 path by `zigzag_attention`.

    module: where that path is; `ring_flash_attn.zigzag_llama3_flash_attn_varlen` unless given.
    flags: instead of the environment.

    Raises ImportError where that module, or all of the functions, are not there.
    """
    flags = Flags.of(os.environ) if flags is None else flags
    if module is None:
        try:
            module = importlib.import_module(PATH)
        except ImportError as error:
            raise ImportError(
                f"{PATH} cannot be imported ({error}): the zigzag llama3 path is in forks of "
                "ring_flash_attn, not in the released package"
            ) from None
    originals = {name: getattr(module, name) for name in NAMES if hasattr(module, name)}
    if not originals:
        raise ImportError(f"{module.__name__} has none of the functions {', '.join(NAMES)}")
    for name, original in originals.items():
        setattr(module, name, _replacement(original, flags))
    return Patch(module, originals)


def _replacement(original: Callable[..., Result], flags: Flags) -> Callable[..., Result]:
    if not flags.fused:
        return original

    def execute_grouped_attention(*args: Any, **options: Any) -> Result:
        with _range(flags.profiles):
            found = grouped_attention(*args[:15], **_known(options))
        if flags.verifies:
            _verify(found, original(*args, **options))
        return found

    return execute_grouped_attention


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """Without the switch of one fork between its own ways to cut keys."""
    return {name: value for name, value in options.items() if name != "use_triton_kernel"}


def _range(profiles: bool) -> AbstractContextManager[Any]:
    if not profiles:
        return nullcontext()
    import nvtx

    annotation: AbstractContextManager[Any] = nvtx.annotate(
        "zigzag_attention", domain="kernelbench"
    )
    return annotation


class Grouped(NamedTuple):
    """The 15 arguments.

    chunk_q_list: the early chunks' rows of q, and the late ones', (T,H,D), with cu_seqlens and the
        local rows that they are.
    kv_buffer: (2,W·L,G,D), as ranks were gathered.
    kv_slices: of each group, where the keys that it sees begin and end in each sequence.
    cu_seqlens_k: of one rank's rows.
    """

    chunk_q_list: list[Tensor]
    chunk_cu_seqlens_q_list: list[Tensor]
    chunk_indices_list: list[Tensor]
    kv_buffer: Tensor
    kv_slices: list[tuple[list[tuple[int, int]], Tensor]]
    nheads: int
    head_dim: int
    softmax_scale: float | None
    dropout_p: float
    causal: bool
    window_size: tuple[int, int]
    alibi_slopes: Tensor | None
    deterministic: bool
    world_size: int
    cu_seqlens_k: Tensor


def grouped_attention(*args: Any, **options: Any) -> Result:
    """o (L,H,D) of a rank's rows as they lie, lse (H,L), natural, and what the path's own backward
    wants to know. Takes what `Grouped` has, by place or name.

    Raises what `zigzag_attention` raises: NotImplementedError for windows, ALiBi and dropout.
    """
    a = Grouped(*args, **options)
    q0, q1 = a.chunk_q_list
    k, v = a.kv_buffer.unbind(0)
    starts = (a.cu_seqlens_k * a.world_size).int()
    early, late = _numbers(a)
    o0, o1, lse0, lse1 = zigzag_attention(
        *(q0, q1, k, v, *(x.int() for x in a.chunk_cu_seqlens_q_list), starts),
        chunk_idx_0=early,
        chunk_idx_1=late,
        total_chunks=2 * a.world_size,
        softmax_scale=a.softmax_scale,
        causal=a.causal,
        kv_order="zigzag",
        window_size=a.window_size,
        alibi_slopes=a.alibi_slopes,
        dropout_p=a.dropout_p,
        validate=False,  # the package has cut them itself
    )
    rows = len(q0) + len(q1)
    o, lse = q0.new_empty(rows, *q0.shape[1:]), lse0.new_empty(len(lse0), rows)
    for place, part, logarithm in zip(a.chunk_indices_list, (o0, o1), (lse0, lse1), strict=True):
        o[place], lse[:, place] = part, logarithm
    names = "chunk_indices_list", "chunk_cu_seqlens_q_list", "kv_slices"
    return o, lse, {name: getattr(a, name) for name in names}


def _numbers(a: Grouped) -> tuple[int, int]:
    """Which chunks the two groups are, by how far into a sequence their keys reach: chunk n of 2W
    sees n+1 of them."""
    early, late = (ranges for ranges, _ in a.kv_slices)
    reach = max(end - start for start, end in late)
    least = max(end - start for start, end in early)
    chunk = (reach + least) // (2 * a.world_size + 1)  # r+1 and 2W−r chunks are 2W+1
    return least // chunk - 1, reach // chunk - 1


def _verify(found: Result, right: Result) -> None:
    for name, one, other in zip(("o", "lse"), found[:2], right[:2], strict=True):
        budget = BUDGETS[found[0].dtype]
        apart = (one.double() - other.double()).abs()
        error = (apart.norm() / other.double().norm().clamp(min=1e-30)).item()
        if not error <= budget:
            raise WrongAttentionError(
                f"zigzag_attention's {name} differs from the package's own by {error:.2g} of its "
                f"norm, {apart.max().item():.3g} at most, where {budget:g} is allowed in "
                f"{found[0].dtype}"
            )
