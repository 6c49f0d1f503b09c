"""RMSNorm by third parties: Liger and QuACK, each called as its authors do."""

from typing import Any

from kernelbench.families.providing import no_jvp
from kernelbench.spec import Call, Device

LIGER_MOST = 65536  # columns
LIGER = {
    "fp32": ("gemma", 0.0),  # gemma rounds once; its 1 + w is the offset
    "llama": ("llama", 0.0),
    "gemma": ("gemma", 1.0),
    "none": ("none", 0.0),
}


def liger(case: Any, config: Any) -> Call:
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    mode, offset = LIGER[case.casting]
    if case.residual:
        return lambda a: LigerFusedAddRMSNormFunction.apply(
            a["x"], a["residual"], a["weight"], case.eps, offset, mode, False
        )
    return lambda a: LigerRMSNormFunction.apply(a["x"], a["weight"], case.eps, offset, mode, False)


def gpu_only(case: Any, device: Device) -> str | None:
    return None if device.kind == "cuda" else "a GPU package; there is no GPU here"


def liger_serves(case: Any, device: Device) -> str | None:
    if case.N > LIGER_MOST:
        return f"Liger takes rows of at most {LIGER_MOST}"
    return no_jvp(case, device) or gpu_only(case, device)


def quack(case: Any, config: Any) -> Call:
    from quack import rmsnorm

    offset = 1.0 if case.casting == "gemma" else 0.0
    if case.residual:
        return lambda a: rmsnorm(
            a["x"],
            a["weight"],
            residual=a["residual"],
            eps=case.eps,
            prenorm=True,
            weight_offset=offset,
        )
    return lambda a: rmsnorm(a["x"], a["weight"], eps=case.eps, weight_offset=offset)


def quack_tuned(case: Any, config: Any) -> Call:
    """QuACK with its launch chosen by an exhaustive search, which counts as compiling."""
    from kernelbench.families.rms_norm.quack import Tuned

    offset = 1.0 if case.casting == "gemma" else 0.0
    apply: Any = Tuned.apply
    return lambda a: apply(a["x"], a["weight"], a.get("residual"), case.eps, offset)


def quack_serves(case: Any, device: Device) -> str | None:
    if case.casting == "none":
        return "QuACK computes in fp32; it has no casting=none"
    if case.N * case.dtype.bytes % 4:
        return "QuACK copies rows asynchronously, in units of 4 bytes"
    if device.capability is not None and device.capability < (9, 0):
        return f"QuACK needs sm_90 or newer, this GPU is {device.arch}"
    return no_jvp(case, device) or gpu_only(case, device)
