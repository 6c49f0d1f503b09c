"""NVTX ranges: structure a profiler's timeline, and assign kernels to cases.

Without an attached profiler nothing is imported, and no range is opened.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from kernelbench.spec import KernelbenchError

DOMAIN = "kernelbench"
# (a variable that a tool sets for the process it profiles, the tool). The last is set for any
# library that NVTX injects.
SIGNS = (
    ("NSYS_PROFILING_SESSION_ID", "nsys"),
    ("NV_COMPUTE_PROFILER_PERFWORKS_DIR", "ncu"),
    ("NVTX_INJECTION64_PATH", "nvtx"),
)
REMEDY = "pip install 'nvtx==0.2.17'"


def attached(env: Mapping[str, str] = os.environ) -> str:
    """The attached tool: `nsys`, `ncu`, `nvtx` for an unknown one, or "" for none."""
    return next((tool for variable, tool in SIGNS if env.get(variable)), "")


def name_of(*parts: str) -> str:
    """A range's name without characters that are special in a tool's filter.

    Such as `kb.rms_norm.M4096-bf16-fwd`.
    """
    return re.sub(r"[^A-Za-z0-9_.=-]", "_", ".".join(parts))


class Ranges:
    """Push/pop ranges and marks of one domain; each thread has its own stack.

    Names come from `name_of`, and are few: each is registered with the tool once. Without a tool,
    a push and a pop of a real domain together cost under 2 µs (a test checks the median).
    """

    def __init__(self, domain: Any) -> None:
        self._domain = domain
        self._attributes: dict[str, Any] = {}

    def push(self, name: str, payload: float | None = None) -> None:
        """Open a range; payload: a number that the tool shows beside the name."""
        self._domain.push_range(self._named(name, payload))

    def pop(self) -> None:
        """Close the range that this thread opened last."""
        self._domain.pop_range()

    def mark(self, name: str, payload: float | None = None) -> None:
        """Mark a moment; parameters as of `push`."""
        self._domain.mark(self._named(name, payload))

    def _named(self, name: str, payload: float | None) -> Any:
        if payload is not None:  # not cached: another thread may be about to push the same name
            return self._domain.get_event_attributes(message=name, payload=payload)
        known = self._attributes.get(name)
        if known is None:
            known = self._attributes[name] = self._domain.get_event_attributes(message=name)
        return known


def open_ranges() -> Ranges:
    """The ranges of `DOMAIN`, real ones even where the nvtx package returns a dummy.

    nvtx ≥ 0.2.12 asks the tool whether it wants the domain. Nsight Systems 2023.4 does not support
    that, and would silently record nothing, so the domain is made in any case.
    Raises KernelbenchError when nvtx is not installed, or is so new that this is impossible.
    """
    try:
        import nvtx
    except ImportError:
        raise KernelbenchError(
            f"nvtx is not installed, so a profiler cannot tell kernels apart. {REMEDY}"
        ) from None
    domain = nvtx.get_domain(DOMAIN)
    return Ranges(_forced() if type(domain).__name__ == "DummyDomain" else domain)


def _forced() -> Any:
    """The domain that `nvtx.Domain` returns when the tool wants it, by the private API of nvtx."""
    import nvtx

    try:
        from nvtx._lib import lib

        domain = object.__new__(lib.Domain)
        domain.handle = lib.DomainHandle(DOMAIN)
        domain.__init__(DOMAIN)
        domain.get_event_attributes(message=DOMAIN)
    except (ImportError, AttributeError, TypeError) as error:
        version = getattr(nvtx, "__version__", "of an unknown version")
        raise KernelbenchError(
            f"nvtx {version} hands out a domain that records nothing, and cannot be made to give "
            f"a real one ({error}): a profiler would see no range. {REMEDY}"
        ) from None
    return domain
