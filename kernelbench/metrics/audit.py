"""What profilers measured, as columns; DRAM reads that hardware counted beside those modelled.

Reads are audited: a tensor of at least 4 × L2 cannot stay there between two kernels, so what is
read of it comes from DRAM, and the model must be right within 3 %. Writes are only reported: what
is dirty in the L2 when a kernel ends has not been written yet.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelbench import files
from kernelbench.spec import KernelUse, Measured, Status

if TYPE_CHECKING:
    from pandas import DataFrame

MIB = 2**20
AUDIT_PCT = 3.0
AUDIT_L2 = 4  # times the L2
COLUMNS = (
    "run_id", "tool", "family", "case", "provider", "role", "mode", "dtype", "gpu", "status",
    "reason", "calls", "kernels", "launches", "busy_us", "span_us", "gaps_us", "host_us",
    "dram_read_mib", "model_read_mib", "model_error_pct", "audit", "dram_write_mib",
    "model_write_mib", "l2_mib", "dram_pct", "sm_pct", "occupancy_pct", "registers", "files",
)  # fmt: skip


def audit(measured: Measured) -> str:
    """`ok`, `off` (more than 3 % from the model), `small` (tensors that the L2 may keep),
    `no model`, or nothing where no counter was read."""
    read = per_call(measured, "dram_read_bytes")
    if read is None:
        return ""
    error = model_error_pct(measured)
    if error is None:
        return "no model"
    if not measured.l2_bytes or (measured.largest_bytes or 0) < AUDIT_L2 * measured.l2_bytes:
        return "small"
    return "ok" if abs(error) <= AUDIT_PCT else "off"


def model_error_pct(measured: Measured) -> float | None:
    """(measured − modelled) / modelled DRAM reads in %; None without one of them."""
    read, model = per_call(measured, "dram_read_bytes"), measured.model_read_bytes
    return None if read is None or not model else (read - model) / model * 100


def per_call(measured: Measured, name: str) -> float | None:
    """A sum over the kernels of one call; None where a kernel's was not measured."""
    values = [getattr(kernel, name) for kernel in measured.kernels]
    if not values or not measured.calls or any(value is None for value in values):
        return None
    return float(sum(values)) / measured.calls


def _weighted(kernels: Sequence[KernelUse], name: str) -> float | None:
    """By the time that each kernel took."""
    pairs = [(getattr(kernel, name), kernel.gpu_ns) for kernel in kernels]
    total = sum(ns or 0 for _, ns in pairs)
    if not total or any(value is None or ns is None for value, ns in pairs):
        return None
    return float(sum(value * ns for value, ns in pairs)) / total


def _most(kernels: Sequence[KernelUse], name: str) -> int | None:
    values = [value for kernel in kernels if (value := getattr(kernel, name)) is not None]
    return max(values, default=None)


def row(measured: Measured) -> dict[str, Any]:
    """COLUMNS of one line: times in µs and bytes in MiB of one call."""

    def each(value: float | None, unit: float) -> float:
        return math.nan if value is None or not measured.calls else value / measured.calls / unit

    def sum_of(name: str, unit: float) -> float:
        value = per_call(measured, name)
        return math.nan if value is None else value / unit

    def model(value: int | None) -> float:
        return math.nan if value is None else value / MIB

    kernels = measured.kernels
    error = model_error_pct(measured)
    on_gpu = any(kernel.gpu_ns is not None for kernel in kernels)
    facts = {name: getattr(measured, name) for name in COLUMNS if hasattr(measured, name)}
    return {
        **facts,
        "kernels": len(kernels),
        "launches": each(sum(kernel.launches for kernel in kernels), 1),
        "busy_us": sum_of("gpu_ns" if on_gpu else "host_ns", 1e3),
        "span_us": each(measured.span_ns, 1e3),
        "gaps_us": each(measured.gaps_ns, 1e3),
        "host_us": each(measured.host_ns, 1e3),
        "dram_read_mib": sum_of("dram_read_bytes", MIB),
        "model_read_mib": model(measured.model_read_bytes),
        "model_error_pct": math.nan if error is None else error,
        "audit": audit(measured),
        "dram_write_mib": sum_of("dram_write_bytes", MIB),
        "model_write_mib": model(measured.model_write_bytes),
        "l2_mib": sum_of("l2_bytes", MIB),
        **{
            name: _nan(_weighted(kernels, name)) for name in ("dram_pct", "sm_pct", "occupancy_pct")
        },
        "registers": _nan(_most(kernels, "registers")),
        "files": " ".join(measured.files),
    }


def _nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def frame(measured: Sequence[Measured]) -> "DataFrame":
    """A table of COLUMNS, a line a row."""
    import pandas as pd

    return pd.DataFrame([row(entry) for entry in measured], columns=list(COLUMNS))


def to_csv(measured: Sequence[Measured], path: Path) -> None:
    """COLUMNS of every line, written in one step. Raises KernelbenchError where it cannot be."""
    files.write(path, frame(measured).to_csv(index=False, float_format="%.6g"))


def failed_audits(measured: Sequence[Measured]) -> list[Measured]:
    """Those whose reads the model misses."""
    return [entry for entry in measured if entry.status is Status.ok and audit(entry) == "off"]
