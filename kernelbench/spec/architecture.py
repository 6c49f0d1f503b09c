"""What NVIDIA's architectures have, and what is expected to pay on them: one table.

NVIDIA, CUDA C++ Programming Guide, Compute Capabilities. That something is expected to pay is no
measurement; `kernelbench select` makes one.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

LEAST = (8, 0)  # capability that our kernels need


@dataclass(frozen=True)
class Architecture:
    """tensor: what its tensor cores multiply. shared_kib: shared memory of a multiprocessor. tma:
    whether it has a Tensor Memory Accelerator."""

    capability: tuple[int, int]
    generation: str
    tensor: tuple[str, ...]
    shared_kib: int
    tma: bool = False

    @property
    def arch(self) -> str:
        return f"sm_{self.capability[0]}{self.capability[1]}"

    @property
    def ours(self) -> str:
        """Which of our kernels run there."""
        if self.capability < LEAST:
            return "none of ours: PyTorch's are taken"
        return "ours in Triton and Gluon" if self.arch == "sm_90" else "ours in Triton"

    def __str__(self) -> str:
        cores = f"tensor cores for {', '.join(self.tensor)}" if self.tensor else "no tensor cores"
        facts = (cores, "TMA" if self.tma else "", f"{self.shared_kib} KiB of shared memory")
        return f"{self.generation}: {'; '.join((*filter(None, facts), self.ours))}"

    def advice(self, dtypes: Collection[str]) -> Iterator[str]:
        """What is not as fast as it could be, of these dtypes on this architecture, in words."""
        if "fp32" in dtypes and self.tensor:
            faster = [name for name in ("tf32", "bf16", "fp16") if name in self.tensor]
            yield (
                "fp32 is multiplied without tensor cores: several times as slow as "
                f"{' or '.join(faster)} where products bound a kernel"
            )
        if "bf16" in dtypes and self.tensor and "bf16" not in self.tensor:
            yield "bf16 has no tensor cores here, fp16 has"
        if self.capability < LEAST:
            yield f"Triton kernels of ours need sm_80, this is {self.arch}: PyTorch's are taken"


_AMPERE = ("fp16", "bf16", "tf32", "int8")
_ADA = (*_AMPERE, "fp8")

ARCHITECTURES = {
    each.arch: each
    for each in (
        Architecture((6, 0), "Pascal", (), 64),
        Architecture((6, 1), "Pascal", (), 96),
        Architecture((7, 0), "Volta", ("fp16",), 96),
        Architecture((7, 5), "Turing", ("fp16", "int8"), 64),
        Architecture((8, 0), "Ampere", _AMPERE, 164),
        Architecture((8, 6), "Ampere", _AMPERE, 100),
        Architecture((8, 7), "Ampere", _AMPERE, 164),
        Architecture((8, 9), "Ada", _ADA, 100),
        Architecture((9, 0), "Hopper", _ADA, 228, tma=True),
        Architecture((10, 0), "Blackwell", (*_ADA, "fp4"), 228, tma=True),
        Architecture((10, 3), "Blackwell", (*_ADA, "fp4"), 228, tma=True),
        Architecture((12, 0), "Blackwell", (*_ADA, "fp4"), 100, tma=True),
    )
}


def architecture(arch: str) -> Architecture | None:
    """Of `sm_90` and the like; None for one that the table does not have."""
    return ARCHITECTURES.get(arch)
