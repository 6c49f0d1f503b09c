"""What the rotary embedding moves through HBM, tensor by tensor, by whoever computes it."""

from typing import Any

from kernelbench.spec import Mode, Traffic


def size_of(case: Any) -> int:
    size: int = case.B * case.S * (case.Hq + case.Hk) * case.D * case.dtype.bytes
    return size


def table_size(case: Any) -> int:
    batch = case.B if case.tables == "bs" else 1
    size: int = batch * case.S * case.D * case.dtype.bytes  # cos and sin of D/2 each
    return size


def fused_traffic(case: Any, kernels: int = 1) -> tuple[Traffic, ...]:
    """Every tensor once in and once out, forward and backward alike, and the tables once a kernel.

    Left out: what is read of them again where q and k are larger than the L2, for all sequences
    share them (7 of 328 MiB at B = 8, S = 4096, Hq = 32, Hk = 8, D = 128 on an H200).
    """
    unit = case.B * case.S * case.D * case.dtype.bytes
    table = kernels * table_size(case)
    rows: list[Traffic] = []
    if case.mode is not Mode.bwd:
        rows += [
            Traffic("q", read=case.Hq * unit),
            Traffic("k", read=case.Hk * unit),
            Traffic("q_out", write=case.Hq * unit),
            Traffic("k_out", write=case.Hk * unit),
            Traffic("cos, sin", read=table),
        ]
    if case.mode is Mode.jvp:
        rows += [
            Traffic("tangent_q", read=case.Hq * unit),
            Traffic("tangent_k", read=case.Hk * unit),
            Traffic("tangent_q_out", write=case.Hq * unit),
            Traffic("tangent_k_out", write=case.Hk * unit),
            Traffic("cos, sin (tangents)", read=table),
        ]
    if case.mode.graded:
        rows += [
            Traffic("grad_q_out", read=case.Hq * unit),
            Traffic("grad_k_out", read=case.Hk * unit),
            Traffic("dq", write=case.Hq * unit),
            Traffic("dk", write=case.Hk * unit),
            Traffic("cos, sin (backward)", read=table),
        ]
    return tuple(rows)


def compiled_traffic(case: Any) -> tuple[Traffic, ...]:
    """Inductor makes a kernel for each of q and k, or one for both where they are as large."""
    return fused_traffic(case, kernels=1 if case.Hq == case.Hk else 2)


def quack_traffic(case: Any) -> tuple[Traffic, ...]:
    """A launch for each of q and k."""
    return fused_traffic(case, kernels=2)


def liger_traffic(case: Any) -> tuple[Traffic, ...]:
    """As fused, and a copy of q and k (and of their gradients) from (B,H,S,D) storage."""
    rows = fused_traffic(case)
    if case.layout == "bshd":
        return rows
    copies = 2 if case.mode is Mode.full else 1
    size = copies * size_of(case)
    return (*rows, Traffic("copy to (B,S,H,D)", read=size, write=size))
