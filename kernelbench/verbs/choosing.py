"""`kernelbench.dispatch_from`: a dispatch table as it holds on this machine, with this code."""

import warnings
from collections.abc import Mapping
from pathlib import Path

from kernelbench import families
from kernelbench.dispatch import Dispatch, Table, TableError, Where
from kernelbench.dispatch.choice import OnMiss
from kernelbench.measure import environment
from kernelbench.source import source_hash


def dispatch_from(
    path: str | Path,
    *,
    on_miss: OnMiss = "baseline",
    forced: Mapping[str, str] | None = None,
    benchmark_kernels: bool = True,
) -> Dispatch:
    """The choices of a table that `kernelbench select` wrote, as far as they hold here.

    Entries of another GPU, driver, torch, triton or source of ours are not used, which is warned
    of once; a file that is no table likewise, and everything is then the baseline.
    on_miss: where nothing like a case was measured: `baseline`, `nearest` measured case, `error`.
    forced: a provider by family that is used whatever was measured.
    benchmark_kernels: False takes the baseline for all that is not forced.

    Nothing is measured. Raises ValueError for an `on_miss` that is none.
    """
    table: Table | None = None
    try:
        table = Table.read(Path(path))
    except TableError as error:
        warn(f"{error}; every choice is the baseline")
    known = families.load(())
    reached = {name: known[name] for name in (table.families if table else ()) if name in known}
    return Dispatch(
        table,
        here(),
        {name: source_hash(family) for name, family in reached.items()},
        on_miss=on_miss,
        forced=forced,
        enabled=benchmark_kernels,
        say=warn,
    )


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
