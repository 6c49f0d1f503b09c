"""The zigzag paths of the released package: what stands in for their autograd.Functions."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

from kernelbench.integrations.ring_flash_attn.comparison import Compared
from kernelbench.integrations.ring_flash_attn.flags import Flags
from kernelbench.kernels.zigzag_attention.lengths import values_of
from kernelbench.parallel import ZigzagLayout, zigzag_attention_func


class Communication(NamedTuple):
    """How keys and values come, as `zigzag_attention_func` takes it."""

    cp_comm_type: str
    heads_k_stride: int


class Options(NamedTuple):
    """The last arguments of the package's functions."""

    dropout_p: float
    softmax_scale: float | None
    causal: bool
    window_size: tuple[int, int]
    alibi_slopes: Tensor | None
    deterministic: bool
    return_softmax: bool
    group: Any


@dataclass(frozen=True)
class Zigzag:
    """Stands in for the package's autograd.Function `original`.

    packed: of documents in one row of tokens, whose cu_seqlens, of a rank's rows, and longest one
        follow q, k and v; else of B samples of one length.
    """

    original: Any
    flags: Flags
    communication: Communication
    packed: bool

    def apply(self, q: Tensor, k: Tensor, v: Tensor, *given: Any) -> Tensor:
        """o, like q: (T,H,D), or (B,N,H,D).

        Raises NotImplementedError for what `patch` says, ValueError for documents of which a rank
        has an odd number of rows, and what `zigzag_attention_func` raises.
        """
        options = Options(*given[-len(Options._fields) :])
        _check(options)
        lengths = [q.shape[1]] * len(q)
        if self.packed:
            lengths = values_of("cu_seqlens", given[0], False).lengths()
        attend = partial(self._attend, lengths, options)
        with self.flags.range():
            if not self.flags.verifies:
                return attend(q, k, v)
            both = attend, lambda *tensors: self.original.apply(*tensors, *given)
            o: Tensor = Compared.apply(q, k, v, both, partial(_worst, options.group))  # type: ignore[no-untyped-call]
            return o

    def _attend(
        self, lengths: list[int], options: Options, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        if any(length % 2 for length in lengths):
            raise ValueError(
                "a rank has two chunks of one length of every document, so an even number of rows, "
                f"got {lengths}"
            )
        ranks = dist.get_world_size(options.group)
        whole = tuple(ranks * length for length in lengths)
        layout = ZigzagLayout(whole, (None,) * len(whole), ranks)
        shape = q.shape
        if not self.packed:
            q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        return zigzag_attention_func(
            *(q, k, v, layout, options.group),
            softmax_scale=options.softmax_scale,
            cp_comm_type=self.communication.cp_comm_type,
            heads_k_stride=self.communication.heads_k_stride,
        ).view(shape)


def _check(options: Options) -> None:
    served = {
        "dropout_p": not options.dropout_p,
        "causal": options.causal,
        "window_size": tuple(options.window_size) == (-1, -1),
        "alibi_slopes": options.alibi_slopes is None,
        "return_attn_probs": not options.return_softmax,
    }
    for name, fits in served.items():
        if not fits:
            value = getattr(options, name, True)
            raise NotImplementedError(
                f"ring_flash_attn's zigzag path, as kernelbench patches it, takes no {name}="
                f"{value}: undo the patch for such calls"
            )


def _worst(group: Any, figures: Tensor) -> Tensor:
    dist.all_reduce(figures, dist.ReduceOp.MAX, group=group)
    return figures
