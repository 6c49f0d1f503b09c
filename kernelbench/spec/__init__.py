"""The words: case, family, provider, job, record. Standard library only."""

from kernelbench.spec.case import Axis, Case, Distribution, DType, Mode, axis
from kernelbench.spec.errors import KernelbenchError, UsageError, suggest
from kernelbench.spec.family import (
    Accuracy,
    Cost,
    Device,
    Draw,
    Family,
    Provider,
    Role,
    Traffic,
)
from kernelbench.spec.job import Job, Measure
from kernelbench.spec.record import (
    SCHEMA,
    OutputError,
    RunRecord,
    Status,
    Timing,
)

__all__ = [
    "SCHEMA",
    "Accuracy",
    "Axis",
    "Case",
    "Cost",
    "DType",
    "Device",
    "Distribution",
    "Draw",
    "Family",
    "Job",
    "KernelbenchError",
    "Measure",
    "Mode",
    "OutputError",
    "Provider",
    "Role",
    "RunRecord",
    "Status",
    "Timing",
    "Traffic",
    "UsageError",
    "axis",
    "suggest",
]
