"""`kernelbench.dispatch_from`: a dispatch table as it holds on this machine, with this code."""

import atexit
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from kernelbench import families, select
from kernelbench.dispatch import Dispatch, Entry, Table, TableError, Where
from kernelbench.dispatch.choice import OnMiss
from kernelbench.dispatch.table import Axis
from kernelbench.measure import environment
from kernelbench.source import source_hash
from kernelbench.spec import KernelbenchError, Role, RunRecord, Status, UsageError
from kernelbench.verbs.here import bench
from kernelbench.verbs.list import facts_of

Tune = Literal["never", "first-call", "monitor"]
TUNE: tuple[Tune, ...] = get_args(Tune)
SECONDS = 600  # for measuring a case again


def dispatch_from(
    path: str | Path,
    *,
    on_miss: OnMiss = "baseline",
    forced: Mapping[str, str] | None = None,
    benchmark_kernels: bool = True,
    tune: Tune = "never",
    every: int = 1000,
    plugins: Sequence[str] = (),
) -> Dispatch:
    """The choices of a table that `kernelbench select` wrote, as far as they hold here.

    Entries of another GPU, driver, torch, triton or source of ours are not used, which is warned
    of once; a file that is no table likewise, and everything is then the baseline.
    on_miss: where nothing like a case was measured: `baseline`, `nearest` measured case, `error`.
    forced: a provider by family that is used whatever was measured.
    benchmark_kernels: False takes the baseline for all that is not forced.
    tune: `first-call` measures what is not in the table when it is first asked for, in this
        process, by `kernelbench.bench`, which takes seconds and the GPU's memory. `monitor`
        measures one decision again after every so many calls of the `step` of what is returned, in
        a process of its own on the caller's GPU, beside the caller's work, and warns of drift.
        `never` measures nothing, in any case.
    every: steps, of `monitor`.
    plugins: files of families that are not installed, as `--plugin` takes them.

    Raises ValueError for an `on_miss`, a `tune` or an `every` that is none.
    """
    if tune not in TUNE:
        raise ValueError(f"tune is one of {', '.join(TUNE)}, got {tune!r}")
    table: Table | None = None
    try:
        table = Table.read(Path(path))
    except TableError as error:
        warn(f"{error}; every choice is the baseline")
    known = families.load(tuple(plugins))
    reached = {name: known[name] for name in (table.families if table else ()) if name in known}
    return Dispatch(
        table,
        here(),
        {name: source_hash(family) for name, family in reached.items()},
        on_miss=on_miss,
        forced=forced,
        enabled=benchmark_kernels,
        measure=measure if tune == "first-call" else None,
        watch=partial(measure_apart, plugins, _current_gpu()) if tune == "monitor" else None,
        every=every,
        say=warn,
    )


def table_from(records: Sequence[RunRecord], against: Mapping[str, str] | None = None) -> Table:
    """The table that `kernelbench select` would make of records that `bench` measured here.

    against: by family the provider that the program uses otherwise, in place of the family's
        baseline: it is what others have to beat by the margin.

    Raises UsageError where no case can be decided.
    """
    asked = against or {}
    defaults = {
        facts["name"]: {
            axis["name"]: axis["default"] for axis in facts["axes"] if axis["default"] is not None
        }
        for facts in facts_of(())
    }
    kept = [_rebased(record, asked.get(record.family, "")) for record in records]
    return select.select([each for each in kept if each], here(), defaults)


def _rebased(record: RunRecord, baseline: str) -> RunRecord | None:
    """A record as it is where this provider is the baseline; None of the one that was."""
    if record.provider == baseline:
        return replace(record, role=Role.baseline)
    return None if baseline and record.role is Role.baseline else record


def measure(family: str, dtype: str, mode: str, axes: Mapping[str, Axis]) -> Entry | None:
    """The entry of a case, measured now; None, with a warning, where there is no time of a GPU."""
    case: dict[str, Any] = {"dtype": dtype, "mode": mode, **axes}
    try:
        records = bench(family, **case)
    except KernelbenchError as error:
        warn(f"{family} cannot be chosen for: {error}")
        return None
    full = [record.provider for record in records if record.status is Status.oom]
    if full:
        warn(f"{family}: out of memory while choosing, so not chosen: {', '.join(full)}")
    try:
        made = select.select(records, here(), {})
    except UsageError as error:
        warn(f"{family} cannot be chosen for: {error}")
        return None
    return next(entry for _, entry in made.entries())


def measure_apart(
    plugins: Sequence[str],
    gpu: Mapping[str, str],
    family: str,
    dtype: str,
    mode: str,
    axes: Mapping[str, Axis],
) -> Entry | None:
    """As `measure`, by a process of its own, whatever the GPU does meanwhile.

    gpu: variables of its environment that say which GPU.
    """
    cases = {"modes": [mode], "cases": [dict(axes)]}
    suite = {"name": "monitor", "defaults": {"dtype": dtype}, "families": {family: cases}}
    with tempfile.TemporaryDirectory(prefix="kernelbench-") as folder:
        path, made = Path(folder, "monitor.yaml"), Path(folder, "table.json")
        path.write_text(json.dumps(suite), encoding="utf-8")
        command = [sys.executable, "-m", "kernelbench", "select", str(path), "--out", str(made)]
        command += ["--runs", folder]
        for plugin in plugins:
            command += ["--plugin", plugin]
        said = _ended(command, gpu)
        try:
            table = Table.read(made)
        except TableError:
            warn(f"{family} cannot be measured again: {said}")
            return None
    return next((entry for _, entry in table.entries()), None)


def _current_gpu() -> dict[str, str]:
    """That of this thread, for the environment of another process."""
    if not torch.cuda.is_available():
        return {}
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {"CUDA_VISIBLE_DEVICES": f"GPU-{device.uuid}"}


def _ended(command: Sequence[str], variables: Mapping[str, str]) -> str:
    """The last line that a command prints; it is interrupted when it takes too long, or this
    process ends."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **variables},
    ) as process:
        atexit.register(process.terminate)
        try:
            printed, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()
            return f"it took more than {SECONDS} s"
        finally:
            atexit.unregister(process.terminate)
    return (printed.strip().splitlines() or [f"it ended with {process.returncode}"])[-1]


def here() -> Where:
    """This machine and its versions; no GPU where there is none."""
    device, versions = environment.device(environment.settled("auto")), environment.versions()
    return Where(
        gpu=device.name,
        arch=device.arch or "",
        driver=versions.get("driver", ""),
        torch=versions.get("torch", ""),
        triton=versions.get("triton", ""),
    )


def warn(line: str) -> None:
    warnings.warn(line, stacklevel=3)
