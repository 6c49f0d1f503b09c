"""Attention: one point of a sweep, and its inputs."""

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from kernelbench.families._documents import Documents, lengths_of
from kernelbench.spec import Case, Draw, Mode, Tensors, axis


@dataclass(frozen=True, kw_only=True)
class AttentionCase(Case):
    """q (B,N,Hq,D), k and v (B,K,Hk,D); of documents q (N,Hq,D), k and v (N,Hk,D), cu_seqlens
    (S+1,) in int32."""

    B: int = axis("batch")
    N: int = axis("queries of a sample, or of all documents")
    Nk: int = axis("keys of a sample; 0 for as many as queries", 0)
    Hq: int = axis("heads of q")
    Hk: int = axis("heads of k and v")
    D: int = axis("head size")
    causal: bool = axis("a query attends up to its own position, the last one to all keys", False)
    documents: Documents = axis("what N tokens are packed of: lists of lengths", Documents.none)

    def __post_init__(self) -> None:
        if min(self.B, self.N, self.Hq, self.Hk, self.D) < 1 or self.Nk < 0:
            raise ValueError("B, N, Hq, Hk and D must be at least 1, Nk at least 0")
        if self.Hq % self.Hk:
            raise ValueError(f"Hk must divide Hq, got {self.Hk} and {self.Hq}")
        if self.packed and (self.B > 1 or self.Nk):
            raise ValueError("documents are one sample with keys of their own: B is 1, Nk is 0")
        if self.causal and self.keys < self.N:
            raise ValueError(
                f"causal takes at least as many keys as queries, got {self.keys} and {self.N}: the "
                "first queries would see none"
            )

    @property
    def keys(self) -> int:
        """Keys of a sample, or of all documents."""
        return self.Nk or self.N

    @property
    def packed(self) -> bool:
        """Whether documents are packed."""
        return self.documents != Documents.none

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of the documents."""
        return lengths_of(self.documents, self.N)

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each document begins, and the last one ends."""
        return (0, *accumulate(self.lengths))

    @property
    def longest(self) -> int | None:
        """The longest document; None where there are none."""
        return max(self.lengths) if self.packed else None

    @property
    def spans(self) -> list[slice]:
        """The rows of each document."""
        return [slice(*ends) for ends in pairwise(self.starts)]

    @property
    def pairs(self) -> int:
        """Queries by the keys that each sees, of one head."""
        if self.packed:
            return sum(_pairs(n, n, self.causal) for n in self.lengths)
        return self.B * _pairs(self.N, self.keys, self.causal)


def _pairs(N: int, K: int, causal: bool) -> int:
    return N * (K - N) + N * (N + 1) // 2 if causal else N * K


def inputs(case: AttentionCase, draw: Draw) -> Tensors:
    batch = () if case.packed else (case.B,)
    tensors = {"q": draw(*batch, case.N, case.Hq, case.D)}
    tensors |= {name: draw(*batch, case.keys, case.Hk, case.D) for name in ("k", "v")}
    if case.packed:
        starts = torch.tensor(case.starts, dtype=torch.int32)
        tensors["cu_seqlens"] = starts.to(draw.device)
    if case.mode is not Mode.fwd:
        tensors["grad_o"] = draw(*batch, case.N, case.Hq, case.D)
    return tensors
