"""What the environment says of a patch."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple


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

    def range(self) -> AbstractContextManager[Any]:
        """An NVTX range, where it is asked for."""
        if not self.profiles:
            return nullcontext()
        import nvtx

        annotation: AbstractContextManager[Any] = nvtx.annotate(
            "zigzag_attention", domain="kernelbench"
        )
        return annotation
