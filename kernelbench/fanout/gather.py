"""What a fan-out comes to: one manifest of all its runs, and which shards it lost."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernelbench import files, store
from kernelbench.fanout.state import State, Where
from kernelbench.fanout.watch import told

MANIFEST = "fanout.json"  # not `manifest.json`, which makes a folder a run


def gather(state: State) -> list[Path]:
    """Write the manifest of the whole; the runs that there are."""
    runs = [state.folder / run for entry in state.entries for run in entry.runs]
    facts = {
        **state.facts,
        "engine": state.engine,
        "jobs": sum(len(entry.shard.jobs) for entry in state.entries),
        "missing": {e.shard.name: e.missing for e in state.of(Where.lost)},
        "lost": [told(entry) for entry in state.of(Where.lost)],
        "open": [e.shard.name for e in state.of(Where.submitted, Where.waiting)],
        "hosts": sorted({e.ended["host"] for e in state.entries if e.ended}),
        "gpus": sorted({str(store.read_manifest(run).get("gpu")) for run in runs}),
        "runs": [str(run.relative_to(state.folder)) for run in runs],
    }
    files.write(state.folder / MANIFEST, json.dumps(facts, indent=1) + "\n")
    return runs


def gaps(folder: Path) -> list[str]:
    """What a report of this folder lacks, if it is a fan-out's: lost shards, and open ones."""
    try:
        facts: Mapping[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        still = [f"shard {name}: not measured yet" for name in facts["open"]]
        return [*facts["lost"], *still]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{folder / MANIFEST}: cannot be read ({error})"]
