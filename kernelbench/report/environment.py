"""The environment of each run, for the page, and where several runs differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kernelbench.report.figures import text
from kernelbench.report.tables import figures

Manifest = Mapping[str, Any]
GIB = 2**30


@dataclass(frozen=True)
class Run:
    id: str
    facts: list[tuple[str, str]]


def view(run: str, manifest: Manifest) -> Run:
    """The facts of one run; none where it has no manifest."""
    return Run(text(run), [*facts(manifest).items()])


def facts(manifest: Manifest) -> dict[str, str]:
    """Name → value: the machine, versions, the commit, the measured ceilings."""
    if not manifest:
        return {}
    machine = manifest.get("machine") or {}
    git = manifest.get("git") or {}
    values: dict[str, Any] = {
        "GPU": manifest.get("gpu"),
        "suite": manifest.get("suite"),
        "measured at": manifest.get("utc"),
        "kernelbench": manifest.get("kernelbench"),
        "commit": f"{str(git.get('commit', ''))[:12]}{' with changes' * bool(git.get('dirty'))}",
        "UUID": machine.get("uuid"),
        **_policy(machine.get("policy") or {}),
        "architecture": machine.get("arch"),
        "SMs": machine.get("sms"),
        "memory": f"{b / GIB:.1f} GiB" if (b := machine.get("total_bytes")) else "",
        "L2": f"{b / 2**20:.0f} MiB" if (b := machine.get("l2_bytes")) else "",
        **(machine.get("versions") or {}),
        **_ceilings(manifest.get("ceilings") or {}),
    }
    return {text(name): text(value) for name, value in values.items() if value not in (None, "")}


def _policy(policy: Manifest) -> dict[str, str]:
    """The driver's settings."""
    units = {
        "power limit": ("power_limit_w", "W"),
        "power limit by default": ("power_limit_default_w", "W"),
        "SM clock, at most": ("sm_max_mhz", "MHz"),
        "SM clock, as set": ("sm_set_mhz", "MHz"),
    }
    return {name: f"{policy[key]:g} {unit}" for name, (key, unit) in units.items() if key in policy}


def _ceilings(ceilings: Manifest) -> dict[str, str]:
    """The best measured rate of each kind."""
    rates = {}
    for kind, points in (ceilings.get("bandwidth") or {}).items():
        best = max((size / ns for size, ns in points if ns), default=0)
        rates[f"{kind}, measured"] = f"{figures(best, 4)} GB/s" if best else ""
    for dtype, rate in (ceilings.get("tflops") or {}).items():
        rates[f"{dtype}, measured"] = f"{figures(rate, 4)} TFLOP/s"
    overhead = (ceilings.get("overhead") or {}).get("ns")
    rates["event pair, measured"] = f"{overhead} ns" if overhead else ""
    return rates


def differences(manifests: Mapping[str, Manifest]) -> list[tuple[str, list[str]]]:
    """(fact, its value in each run) where runs differ, except in when they were measured."""
    facts_of = [facts(manifest) for manifest in manifests.values()]
    names = dict.fromkeys(name for run_facts in facts_of for name in run_facts)
    return [
        (name, values)
        for name in names
        if name != "measured at"
        and len(set(values := [run_facts.get(name, "—") for run_facts in facts_of])) > 1
    ]
