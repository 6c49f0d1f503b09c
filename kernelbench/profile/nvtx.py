"""NVTX ranges: what a profiler shows of the harness, and how kernels are told apart by case.

Only where a tool looks on: without one nothing is imported, and no range is opened.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from kernelbench.spec import KernelbenchError

DOMAIN = "kernelbench"
# A variable that a tool sets for what it looks at, and the tool; the last is any injected library.
SIGNS = (
    ("NSYS_PROFILING_SESSION_ID", "nsys"),
    ("NV_COMPUTE_PROFILER_PERFWORKS_DIR", "ncu"),
    ("NVTX_INJECTION64_PATH", "nvtx"),
)
REMEDY = "pip install 'nvtx==0.2.17'"


def attached(env: Mapping[str, str] = os.environ) -> str:
    """Which tool looks on: `nsys`, `ncu`, `nvtx` for one that is not known, or none, ``."""
    return next((tool for variable, tool in SIGNS if env.get(variable)), "")


def name_of(*parts: str) -> str:
    """A range's name that every tool's filter reads as it is: `kb.rms_norm.M4096-bf16-fwd`."""
    return re.sub(r"[^A-Za-z0-9_.=-]", "_", ".".join(parts))


class Ranges:
    """Push/pop ranges and marks of one domain, each thread with a stack of its own.

    Names come from `name_of`, and are few: each is registered with the tool once. A push and pop
    of a real domain that nobody looks at cost together under 2 µs (a test holds the median).
    """

    def __init__(self, domain: Any) -> None:
        self._domain = domain
        self._attributes: dict[str, Any] = {}

    def push(self, name: str, payload: float | None = None) -> None:
        """Open a range; payload: a number that the tool shows beside the name."""
        self._domain.push_range(self._named(name, payload))

    def pop(self) -> None:
        """Close what this thread opened last."""
        self._domain.pop_range()

    def mark(self, name: str, payload: float | None = None) -> None:
        """A moment, as `push`."""
        self._domain.mark(self._named(name, payload))

    def _named(self, name: str, payload: float | None) -> Any:
        if payload is not None:  # not kept: another thread may be about to push the same name
            return self._domain.get_event_attributes(message=name, payload=payload)
        known = self._attributes.get(name)
        if known is None:
            known = self._attributes[name] = self._domain.get_event_attributes(message=name)
        return known


def open_ranges() -> Ranges:
    """The ranges of `DOMAIN`, real ones even where the nvtx package hands out a dummy.

    nvtx ≥ 0.2.12 asks the tool whether it wants the domain; Nsight Systems 2023.4 knows no such
    question, and nothing at all would be recorded, without a word. So the domain is made anyway.
    Raises KernelbenchError when nvtx is not installed, or is so new that this cannot be done.
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
    """What `nvtx.Domain` returns when the tool wants the domain; private API of the package."""
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
