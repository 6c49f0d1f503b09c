"""The zigzag llama3 path of the package's forks: the attention of a rank's two chunks to the keys
that were gathered."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from kernelbench.integrations.ring_flash_attn.comparison import compare
from kernelbench.integrations.ring_flash_attn.flags import Flags
from kernelbench.kernels.zigzag_attention import zigzag_attention

Result = tuple[Tensor, Tensor, dict[str, Any]]


def replaced(original: Callable[..., Result], flags: Flags) -> Callable[..., Result]:
    """Ours in its place."""

    def execute_grouped_attention(*args: Any, **options: Any) -> Result:
        with flags.range():
            found = grouped_attention(*args[:15], **_known(options))
        if flags.verifies:
            compare({"o": found[0], "lse": found[1]}, original(*args, **options)[:2])
        return found

    return execute_grouped_attention


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """Without the switch of one fork between its own ways to cut keys."""
    return {name: value for name, value in options.items() if name != "use_triton_kernel"}


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
