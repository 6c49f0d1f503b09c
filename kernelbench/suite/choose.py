"""Which suite, and which of its jobs: `find` and `narrow`."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from kernelbench.spec import DTYPE_ALIASES, DType, Family, Job, Mode, UsageError, suggest


def shipped() -> dict[str, Path]:
    """The suites of the installed package, by name."""
    folder = Path(str(files("kernelbench"))) / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(name_or_path: str) -> Path:
    """The file of a suite: a path, or the name of a suite that kernelbench ships."""
    path = Path(name_or_path)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):
        pass  # no path at all: too long, or with a character that no path may hold
    known = shipped()
    if name_or_path in known:
        return known[name_or_path]
    message = "is a directory" if path.name and _is_dir(path) else "no such file"
    hint = suggest(path.stem if path.suffix in (".yaml", ".yml") else name_or_path, known)
    raise UsageError(f"{name_or_path}: {message}, and no suite of kernelbench{hint}")


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def narrow(
    jobs: Sequence[Job],
    families_known: Mapping[str, Family[Any]],
    *,
    family: Sequence[str] = (),
    provider: Sequence[str] = (),
    skip: Sequence[str] = (),
    case: Sequence[str] = (),
    filter: str = "",
    mode: Sequence[str] = (),
    dtype: Sequence[str] = (),
) -> tuple[Job, ...]:
    """The jobs that every option lets through, with the providers that are left.

    case: ids, exactly. filter: a regular expression for `job.id`. skip: providers to take out.
    Raises UsageError for a name that nothing has, and when no job is left.
    """
    providers = [p.name for f in families_known.values() for p in f.providers]
    providers += [name for job in jobs for name in job.providers]
    _known("--family", family, [*families_known, *(job.family for job in jobs)])
    _known("--provider", provider, providers)
    _known("--skip", skip, providers)
    _known("--case", case, [job.case.id for job in jobs])
    _known("--mode", mode, [member.value for member in Mode])
    dtype = [DTYPE_ALIASES.get(name, name) for name in dtype]
    _known("--dtype", dtype, [member.value for member in DType])
    matches = _pattern(filter)
    left = [
        replace(job, providers=kept)
        for job in jobs
        if (not family or job.family in family)
        and (not case or job.case.id in case)
        and (not mode or job.case.mode.value in mode)
        and (not dtype or job.case.dtype.value in dtype)
        and matches(job.id)
        and (kept := _kept(job.providers, provider, skip))
    ]
    if not left:
        options = {"family": family, "provider": provider, "skip": skip, "case": case}
        options |= {"filter": [filter] * bool(filter), "mode": mode, "dtype": dtype}
        raise UsageError(_nothing(jobs, options))
    return tuple(left)


def _known(option: str, options: Sequence[str], names: Iterable[str]) -> None:
    known = list(dict.fromkeys(names))
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, n=8, cutoff=0.0) if len(known) > 40 else known
            more = f", … ({len(known)} in all)" if len(known) > len(near) else ""
            what = "provider" if option == "--skip" else option.strip("-")
            raise UsageError(f"{option}: no {what} {name!r}{suggest(name, near)}{more}")


def _pattern(text: str) -> Callable[[str], Any]:
    try:
        return re.compile(text).search
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"--filter: {text!r} is no regular expression: {error}") from None


def _kept(have: Sequence[str], only: Sequence[str], skip: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in have if (not only or name in only) and name not in skip)


def _nothing(jobs: Sequence[Job], options: Mapping[str, Sequence[str]]) -> str:
    asked = " ".join(
        f"--{option} {value}" for option, values in options.items() for value in values
    )
    there = {
        "families": [job.family for job in jobs],
        "providers": [name for job in jobs for name in job.providers],
        "modes": [job.case.mode.value for job in jobs],
        "dtypes": [job.case.dtype.value for job in jobs],
        "cases": [job.id for job in jobs],
    }
    lines = [f"  {what}: {_some(list(dict.fromkeys(names)))}" for what, names in there.items()]
    return "\n".join([f"{asked or 'the suite'} leaves no job of {len(jobs)}. There are", *lines])


def _some(names: Sequence[str], most: int = 12) -> str:
    more = f", … and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more
