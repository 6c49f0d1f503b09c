"""A script of this folder under ncu: one metric of every kernel in its NVTX ranges."""

import csv
import os
import re
import shutil
import subprocess
import sys

ENVIRONMENT = ("PATH", "HOME", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "CUDA_HOME")


def by_range(script: str, prefix: str, metric: str) -> dict[str, list[float]]:
    """The metric of each kernel, in order, by what follows `prefix` in its range's name.

    Empty where ncu is not on the PATH. The GPU's clocks and caches are left alone; the script is
    called with `--under-ncu`, and sees no more of the environment than it needs.
    """
    if shutil.which("ncu") is None:
        return {}
    command = ["ncu", "--nvtx", "--nvtx-include", f"regex:{prefix}.*/", "--clock-control", "none"]
    command += ["--cache-control", "none", "--metrics", metric, "--csv"]
    done = subprocess.run(
        [*command, sys.executable, script, "--under-ncu"],
        env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, list[float]] = {}
    for row in csv.DictReader(line for line in done.stdout.splitlines() if line.startswith('"')):
        match = re.search(rf"{prefix}(\w+)", " ".join(row.values()))
        assert match, row
        found.setdefault(match[1], []).append(float(row["Metric Value"].replace(",", "")))
    return found
