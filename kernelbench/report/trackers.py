"""Records in Weights & Biases and TensorBoard: optional packages, one run a results folder."""

import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelbench import metrics
from kernelbench.report.export import METRICS, fastest_exact, timed_rows
from kernelbench.spec import KernelbenchError

if TYPE_CHECKING:
    from pandas import DataFrame

Row = Mapping[str, Any]
COLUMNS = ("family", "case", "label", "mode", "dtype", "provider", "role", "status", "reason",
           "median_us", "lo_us", "hi_us", "speedup", "speedup_best", "best_other", "noise_pct",
           "gbps", "tflops", "sol_pct", "peak_mem_mib", "error_rel", "error_budget", "config",
           "flags", "gpu")  # fmt: skip
SELECTED = ("family", "case", "provider", "role", "config", "median_us", "speedup",
            "speedup_best")  # fmt: skip


def log(
    target: str,
    frame: "DataFrame",
    manifests: Mapping[str, Mapping[str, Any]],
    folder: Path,
) -> list[str]:
    """Log each run separately; return a line for each.

    folder: for the package's own files. wandb obeys WANDB_MODE, `offline` included. Raises
    KernelbenchError where the package is not installed.
    """
    package = _package(target)
    write = {"wandb": _wandb, "tensorboard": _tensorboard}[target]
    return [
        write(package, run, frame[frame["run_id"] == run], manifests.get(run, {}), folder)
        for run in dict.fromkeys(frame["run_id"])
    ]


def _package(target: str) -> Any:
    module = {"wandb": "wandb", "tensorboard": "tensorboard.summary"}[target]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise KernelbenchError(
            f"--to {target}: {target} cannot be imported ({error}): "
            f"pip install 'kernelbench[{target}]'"
        ) from None


def _wandb(
    wandb: Any, run_id: str, frame: "DataFrame", manifest: Mapping[str, Any], folder: Path
) -> str:
    facts = {k: v for k, v in manifest.items() if k not in ("ceilings", "suite_text")}
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project="kernelbench",
        name=run_id,
        id=run_id,
        job_type="benchmark",
        config=facts,
        dir=str(folder),
        reinit="finish_previous",
    )
    rows = metrics.dicts(frame)
    best = fastest_exact(timed_rows(frame))
    run.log(
        {
            "records": wandb.Table(columns=list(COLUMNS), data=_cells(rows, COLUMNS)),
            "selected": wandb.Table(columns=list(SELECTED), data=_cells(best, SELECTED)),
        }
    )
    for tag, value in _scalars(best):
        run.summary[tag] = value
    where = str(run.dir)
    run.finish()
    return f"wandb: {run_id}: {len(rows)} records, {len(best)} selected kernels in {where}"


def _tensorboard(
    summary: Any, run_id: str, frame: "DataFrame", manifest: Mapping[str, Any], folder: Path
) -> str:
    path = folder / run_id
    writer = summary.Writer(str(path))
    rows = timed_rows(frame)
    count = 0
    for tag, value in _scalars(rows):
        writer.add_scalar(tag, value, 0)
        count += 1
    writer.close()
    return f"tensorboard: {run_id}: {count} scalars of {len(rows)} records in {path}"


def _scalars(rows: Sequence[Row]) -> list[tuple[str, float]]:
    return [
        (f"{row['family']}/{row['case']}/{row['provider']}/{metric}", float(row[metric]))
        for row in rows
        for metric in METRICS
        if math.isfinite(row[metric])
    ]


def _cells(rows: Sequence[Row], columns: Sequence[str]) -> list[list[Any]]:
    """The values of columns, None where a number does not apply."""
    return [[None if row[c] != row[c] else row[c] for c in columns] for row in rows]
