"""The words: case, family, provider, job, record. Standard library only."""

from kernelbench.spec.case import Axis, Case, Distribution, DType, Mode, axis
from kernelbench.spec.errors import KernelbenchError, NoGPUError, UsageError, suggest
from kernelbench.spec.family import (
    Accuracy,
    Call,
    Cost,
    Device,
    Draw,
    Family,
    Provider,
    Role,
    Tensors,
    Traffic,
    Trial,
)
from kernelbench.spec.job import Job, Measure
from kernelbench.spec.measured import KernelUse, Measured, Tool
from kernelbench.spec.record import (
    SCHEMA,
    Context,
    OutputError,
    Prepared,
    RunRecord,
    Status,
    Timing,
    TrialErrors,
    record_of,
)

__all__ = [
    "SCHEMA",
    "Accuracy",
    "Axis",
    "Call",
    "Case",
    "Context",
    "Cost",
    "DType",
    "Device",
    "Distribution",
    "Draw",
    "Family",
    "Job",
    "KernelUse",
    "KernelbenchError",
    "Measure",
    "Measured",
    "Mode",
    "NoGPUError",
    "OutputError",
    "Prepared",
    "Provider",
    "Role",
    "RunRecord",
    "Status",
    "Tensors",
    "Timing",
    "Tool",
    "Traffic",
    "Trial",
    "TrialErrors",
    "UsageError",
    "axis",
    "record_of",
    "suggest",
]
