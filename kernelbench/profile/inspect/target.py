"""The GPUs that kernels are compiled for, and how many programs fit on one multiprocessor.

Limits: NVIDIA, CUDA C++ Programming Guide, Technical Specifications per Compute Capability.
Allocation of registers and warps: the occupancy calculator of Nsight Compute.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kernelbench.kernels.launch import Target
from kernelbench.spec import Device, UsageError, suggest
from kernelbench.spec.architecture import ARCHITECTURES

_REGISTERS = 1 << 16  # of a multiprocessor
_REGISTER_UNIT = 256  # registers that a warp is allocated at a time
_WARP_UNIT = 4  # a multiprocessor has four parts, each with its share of warps
_SHARED_UNIT = 128
_RESERVED = 1024  # bytes of shared memory of every program that the system uses


@dataclass(frozen=True)
class Limits:
    """The limits of one architecture's multiprocessor, and a GPU that represents it.

    gpu, sms, l2_mib: configs depend on these. warps, blocks: resident at once on a multiprocessor.
    """

    arch: str
    gpu: str
    sms: int
    l2_mib: int
    warps: int
    blocks: int

    @property
    def shared_kib(self) -> int:
        """Of a multiprocessor; a program may have all but `_RESERVED` of it."""
        return ARCHITECTURES[self.arch].shared_kib

    @property
    def target(self) -> Target:
        return Target(self.arch, self.sms)

    @property
    def smem_bytes(self) -> int:
        """The most shared memory that a program may have."""
        return self.shared_kib * 1024 - _RESERVED

    @property
    def device(self) -> Device:
        """The GPU as providers are given it."""
        number = int(self.arch.removeprefix("sm_"))
        return Device(
            kind="cuda",
            name=self.gpu,
            capability=divmod(number, 10),
            l2_bytes=self.l2_mib << 20,
            sms=self.sms,
        )

    def blocks_per_sm(self, registers: int, smem_bytes: int, warps: int) -> int:
        """How many programs fit on a multiprocessor at once; 0 where not even one does."""
        if smem_bytes > self.smem_bytes:
            return 0
        warps = _up(warps, _WARP_UNIT)
        shared = _up(smem_bytes + _RESERVED, _SHARED_UNIT)
        with_registers = _REGISTERS // _up(32 * max(registers, 1), _REGISTER_UNIT)
        with_registers -= with_registers % _WARP_UNIT
        return min(
            self.blocks,
            self.warps // warps,
            with_registers // warps,
            self.shared_kib * 1024 // shared,
        )

    def occupancy_pct(self, blocks: int, warps: int) -> float:
        """The warps of `blocks` programs, in per cent of the most that can be resident."""
        return 100 * blocks * warps / self.warps


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


TARGETS = {
    limits.arch: limits
    for limits in (
        Limits("sm_80", "NVIDIA A100", 108, 40, 64, 32),
        Limits("sm_86", "NVIDIA A40", 84, 6, 48, 16),
        Limits("sm_89", "NVIDIA L40S", 142, 96, 48, 24),
        Limits("sm_90", "NVIDIA H100 or H200", 132, 50, 64, 32),
        Limits("sm_100", "NVIDIA B200", 148, 126, 64, 32),
    )
}


def targets(names: Sequence[str]) -> tuple[Limits, ...]:
    """The targets that texts such as `sm_80,sm_90` name. Raises UsageError for unknown names."""
    archs = [name.strip() for text in names for name in text.split(",") if name.strip()]
    for name in archs:
        if name not in TARGETS:
            raise UsageError(f"--target: no target {name!r}{suggest(name, TARGETS)}")
    if not archs:
        raise UsageError(f"--target: name one or several of {', '.join(TARGETS)}")
    return tuple(TARGETS[name] for name in dict.fromkeys(archs))
