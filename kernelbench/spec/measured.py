"""What a profiler saw of one (job, provider): one line of measured.jsonl, beside the records.

Nothing here is a latency to quote: a profiler slows down what it looks at.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kernelbench.spec import migrations
from kernelbench.spec.case import AxisValue
from kernelbench.spec.family import Role
from kernelbench.spec.lines import from_line, to_line
from kernelbench.spec.record import Status

SCHEMA = 1


class Tool(StrEnum):
    """Who looked."""

    nsys = "nsys"
    ncu = "ncu"
    torch = "torch"


@dataclass(frozen=True, kw_only=True)
class KernelUse:
    """One kernel (or, on a CPU, one operator) in the profiled calls of a provider, summed over
    all of its launches in all of these calls. What the tool does not tell is None.

    gpu_ns: time on the GPU; host_ns: on the CPU, without what it called (torch on a CPU).
    dram_*_bytes, l2_bytes: counted by the hardware (ncu).
    dram_pct, sm_pct, occupancy_pct: of the peak while it ran, weighted by time.
    registers: of a thread; shared_bytes: of a block; the most of any launch.
    """

    name: str
    launches: int
    gpu_ns: int | None = None
    host_ns: int | None = None
    dram_read_bytes: int | None = None
    dram_write_bytes: int | None = None
    l2_bytes: int | None = None
    dram_pct: float | None = None
    sm_pct: float | None = None
    occupancy_pct: float | None = None
    registers: int | None = None
    shared_bytes: int | None = None
    shapes: str = ""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One (job, provider) as one tool saw it.

    calls: how many calls were profiled; `kernels` hold their sums.
    span_ns: from the first kernel's start to the last one's end, summed over the calls; gaps_ns:
        how long no kernel of the call ran meanwhile (nsys).
    host_ns: length of the calls' NVTX ranges on the CPU, summed (nsys).
    model_*_bytes: of one call, modelled: the provider's traffic. None where it has no model.
    largest_bytes: of the largest tensor; l2_bytes: the GPU's L2. Both say whether reads can be
        audited: a tensor of at least 4 × L2 cannot stay there.
    files: what the tool wrote, relative to the run folder.
    """

    schema: int = SCHEMA
    run_id: str
    utc: str
    tool: Tool
    tool_version: str
    status: Status
    reason: str = ""
    family: str
    provider: str
    role: Role
    case: str
    mode: str
    dtype: str
    axes: Mapping[str, AxisValue]
    gpu: str = ""
    source: str = ""  # as of a record
    config: Mapping[str, Any] | None = None
    calls: int = 0
    kernels: tuple[KernelUse, ...] = ()
    span_ns: int | None = None
    gaps_ns: int | None = None
    host_ns: int | None = None
    model_read_bytes: int | None = None
    model_write_bytes: int | None = None
    largest_bytes: int | None = None
    l2_bytes: int | None = None
    files: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, str, str]:
        """A newer line of the same key replaces an older one."""
        return (self.tool, self.family, self.case, self.provider)

    def to_json(self) -> str:
        """One line of strict JSON, see `lines.to_line`."""
        return to_line(self)

    @staticmethod
    def from_json(line: str) -> "Measured":
        """The inverse of `to_json`. Raises KernelbenchError saying what is wrong with the line."""
        return from_line(Measured, line, SCHEMA, migrations.MEASURED)
