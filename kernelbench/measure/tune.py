"""The config that a provider runs with: the table's choice, or one that a search stored."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import platformdirs

from kernelbench.spec import Context, Device, Job, Provider


def cache_dir() -> Path:
    """The folder of searched configs, in the user's cache: `…/kernelbench/tuned`."""
    return platformdirs.user_cache_path("kernelbench", appauthor=False) / "tuned"


def cached_files() -> list[Path]:
    """The files of searched configs, sorted by name."""
    return sorted(cache_dir().glob("*.json")) if cache_dir().is_dir() else []


def identity(device: Device, context: Context, job: Job, provider: Provider[Any]) -> dict[str, str]:
    """What a searched config depends on: GPU, versions, source, family, case and provider."""
    from kernelbench.measure.environment import (
        versions,
    )  # imports torch

    return {
        "gpu": device.name,
        "torch": versions().get("torch", ""),
        "triton": versions().get("triton", ""),
        "source": context.source,
        "family": job.family,
        "case": job.case.id,
        "provider": provider.name,
    }


def _file(facts: Mapping[str, str]) -> Path:
    name = sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    return cache_dir() / f"{name}.json"


def choose(configs: Sequence[Any], facts: Mapping[str, str]) -> tuple[Any, str]:
    """(config, origin): that of an earlier search, if `configs` still has it; else the table's."""
    try:
        stored = json.loads(_file(facts).read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, TypeError, KeyError):  # no file, or not one of ours
        return configs[0], "table"
    for config in configs:
        if json.loads(json.dumps(asdict(config))) == stored:
            return config, "tuned"
    return configs[0], "table"


def keep_fastest(
    configs: Sequence[Any], times: Sequence[float | None], facts: Mapping[str, str]
) -> tuple[Any, str]:
    """Store the fastest of the right configs; returns it and its origin.

    times: median ns of each config, None for a wrong one. Where all are wrong, nothing is stored
    and the table's choice is returned.
    """
    right = [(ns, i) for i, ns in enumerate(times) if ns is not None]
    if not right:
        return configs[0], "table"
    ns, best = min(right)
    file = _file(facts)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".tmp")
    entry = {"config": asdict(configs[best]), "median_ns": ns, **facts}
    partial.write_text(json.dumps(entry, indent=1), encoding="utf-8")
    partial.replace(file)
    return configs[best], "tuned"


def clear() -> int:
    """Delete every searched config; returns how many there were."""
    files = cached_files()
    for file in files:
        file.unlink()
    return len(files)
