"""Finds an Nsight Systems that can be used."""

import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from kernelbench.profile import tool
from kernelbench.profile.tool import ToolError

CACHE = platformdirs.user_cache_path("kernelbench", appauthor=False) / "nsys"
PLACES = (
    "/opt/nvidia/nsight-systems/*/bin/nsys",
    "/opt/nvidia/nsight-systems*/*/target-linux-*/nsys",
    "/usr/local/cuda*/bin/nsys",
    "/usr/lib/nsight-systems/*/nsys",
    "/usr/lib/*/nsight-systems/target-linux-*/nsys",
    f"{CACHE}/nsys/bin/nsys",
    "/opt/nvidia/nsight-compute/*/host/target-linux-*/nsys",  # captures, cannot import
)
IMPORTERS = (
    "/opt/nvidia/nsight-systems*/*/host-linux-*/QdstrmImporter",
    "/usr/lib/nsight-systems/host-linux-*/QdstrmImporter",
    f"{CACHE}/nsys/host-linux-*/QdstrmImporter",
)
HOW_TO_GET = (
    "Install Debian's package nsight-systems or NVIDIA's CUDA toolkit, or, without being root, "
    f"run tools/nsys_bundle.sh {CACHE} in a checkout of kernelbench"
)
OLDEST = (2021, 4)  # earlier versions write .qdrep files
QUICK_S = 60.0


@dataclass(frozen=True)
class Program:
    """An nsys.

    importer: its QdstrmImporter, without which it captures but may make no report.
    """

    path: Path
    version: str
    importer: Path | None = None


def find(env: Mapping[str, str] = os.environ) -> Program:
    """The nsys on the PATH, or the first usable one in `PLACES`.

    Raises ToolError, which names the places, why each nsys there is unusable, and the remedy.
    """
    on_path = shutil.which("nsys", path=env.get("PATH", os.defpath))
    paths = [Path(on_path)] if on_path else []
    bad: list[str] = []
    for path in itertools.chain(paths, *map(_matching, PLACES)):
        try:
            return _checked(path, env)
        except ToolError as error:
            bad.append(str(error))
    raise ToolError(
        f"nsys (Nsight Systems) was looked for on the PATH and as {', '.join(PLACES)}: "
        f"{'; '.join(bad) or 'there is none'}. {HOW_TO_GET}"
    )


def _matching(place: str) -> list[Path]:
    """Executables that match an absolute glob, the newest by name first."""
    paths = Path("/").glob(place.lstrip("/"))
    return sorted((p for p in paths if p.is_file() and os.access(p, os.X_OK)), reverse=True)


def _checked(path: Path, env: Mapping[str, str]) -> Program:
    """The nsys at `path`. Raises ToolError, with the reason, where it is unusable."""
    if " " in str(path.resolve()):
        raise ToolError(f"{path}: nsys cannot start its parts from a folder with a space; move it")
    answer = output_of([path, "--version"], env)
    match = re.search(r"version ((\d+)\.(\d+)[\w.-]*)", answer)
    if match is None:
        raise ToolError(f"{path} does not say its version, but {answer[-200:] or 'nothing'!r}")
    if (int(match[2]), int(match[3])) < OLDEST:
        raise ToolError(
            f"{path} is version {match[1]}; before {'.'.join(map(str, OLDEST))} reports were of "
            "another format"
        )
    beside = f"{path.resolve().parent.parent}/host-linux-*/QdstrmImporter"
    importers = itertools.chain.from_iterable(map(_matching, (beside, *IMPORTERS)))
    return Program(path, match[1], next(importers, None))


def output_of(command: Sequence[str | Path], env: Mapping[str, str]) -> str:
    """The output of a quick command, also when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        return tool.run(command, Path(folder) / "log", QUICK_S, tool.environment(env)).tail
