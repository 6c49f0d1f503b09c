"""The lowest version that pyproject.toml allows of everything that is needed at run time.

    python tools/minimum.py            # for pip's -c: lower bounds; torch and tools as pinned
    python tools/minimum.py --check    # is that what this interpreter finds? exit code 1 if not

Of torch, which is large, the version pinned in constraints.txt is taken. What the rest brings along
is found by pip, and as pinned where it is not needed by them alone.
"""

import argparse
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
AS_PINNED = "torch"
FREE = {"pydantic-core"}  # each pydantic requires one, exactly


def lowest() -> dict[str, str]:
    """The lower bound of each run-time dependency, and of the extra `report`, but for torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated = [*project["dependencies"], *project["optional-dependencies"]["report"]]
    found = {}
    for requirement in map(Requirement, stated):
        bounds = [each.version for each in requirement.specifier if each.operator == ">="]
        if len(bounds) != 1:
            raise SystemExit(f"pyproject.toml: {requirement} needs one lower bound, name>=version")
        found[canonicalize_name(requirement.name)] = bounds[0]
    del found[AS_PINNED]
    return found


def pinned() -> list[str]:
    """The lines of constraints.txt for everything else."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    other = {*lowest(), *FREE}
    return [
        line
        for line in lines
        if not line.startswith("#") and canonicalize_name(line.partition("==")[0]) not in other
    ]


def differing() -> list[str]:
    """What this interpreter finds in another version, or not at all."""
    found = []
    for name, version in lowest().items():
        there = metadata.version(name)
        if there not in Requirement(f"{name}=={version}").specifier:
            found.append(f"{name} {there} is installed, not {version}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="The lowest versions that pyproject.toml allows.")
    parser.add_argument("--check", action="store_true", help="compare with what is installed here")
    if not parser.parse_args().check:
        print(*(f"{name}=={version}" for name, version in lowest().items()), *pinned(), sep="\n")
        return 0
    print(*(f"{name} {metadata.version(name)}" for name in [AS_PINNED, *lowest()]), sep=", ")
    print(*differing(), sep="\n", file=sys.stderr)
    return int(bool(differing()))


if __name__ == "__main__":
    raise SystemExit(main())
