"""The tensors that the 8-bit kernels pass to each other, and how they cut up their work."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernelbench.kernels.launch import check_counts, check_powers_of_2


@dataclass(frozen=True)
class RcmInt8Config:
    """How the kernels cut up their work. Blocks and warps are powers of two.

    block_m, block_n: query rows of a program, at least 16, and keys it takes at a time, at least
        32, in a software pipeline of `stages`. Each block of q and of k has a scale.
    warps: of an attention program.
    biased: scores become floating point by the bits that the products start with, instead of by
        a conversion; the numbers are the same but for rounding in fp32.
    quantise_warps: of a program of the other two kernels.
    hopper: attention by `hopper`, on sm_90 and for tensors that it `suits`.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int
    biased: bool = False
    quantise_warps: int = 8
    hopper: bool = False

    def __post_init__(self) -> None:
        check_powers_of_2(self, "block_m", "block_n", "warps", "quantise_warps")
        check_counts(self, "stages")
        for name, least in (("block_m", 16), ("block_n", 32)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"RcmInt8Config: {name} is {getattr(self, name)}, but a dot takes {least}"
                )


@dataclass(frozen=True)
class Packed:
    """What attention reads of q, k and v, made by `prepack`; all tensors are contiguous.

    q8, k8: INT8 (G,·,E), rows up to whole blocks and channels up to E being 0.
    v8: (G,T,E,block_n), tiles of transposed v of which each channel is scaled to 448 at most.
    q_scale, k_scale: fp32 (G,tiles), of blocks; q_scale has scale·log2 e in it.
    v_scale: fp32 (G,E). permuted: whether the keys of a tile of v8 lie in the order of
        `_quantise_pairs`, which FP8 products want.
    dtype, B, N, H, D: of q. scale: of the scores.
    """

    q8: Tensor
    k8: Tensor
    v8: Tensor
    q_scale: Tensor
    k_scale: Tensor
    v_scale: Tensor
    permuted: bool
    dtype: torch.dtype
    B: int
    N: int
    H: int
    D: int
    scale: float
    config: RcmInt8Config

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        return self.q8, self.k8, self.v8, self.q_scale, self.k_scale, self.v_scale
