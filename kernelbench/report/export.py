"""Records in the formats that other dashboards import."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kernelbench import metrics
from kernelbench.report.means import has_time
from kernelbench.spec import UsageError, suggest

if TYPE_CHECKING:
    from pandas import DataFrame

Row = Mapping[str, Any]
FILES = ("github", "hud")  # of JSON
TRACKERS = ("wandb", "tensorboard")  # packages
TARGETS = (*FILES, *TRACKERS)
METRICS = ("median_us", "kernel_us", "host_us", "graph_us", "speedup", "speedup_best", "gbps",
           "tflops", "sol_pct", "peak_mem_mib", "compile_s", "error_rel", "noise_pct")  # fmt: skip


def valid_target(target: str) -> str:
    """The target. Raises UsageError for an unknown one."""
    if target not in TARGETS:
        raise UsageError(f"--to: no {target!r}{suggest(target, TARGETS)}")
    return target


def timed_rows(frame: "DataFrame") -> list[Row]:
    """The rows of right providers with a time of a GPU."""
    rows = metrics.dicts(frame)
    return [row for row in rows if has_time(row)]


def github(frame: "DataFrame") -> list[dict[str, Any]]:
    """Entries of github-action-benchmark, tool `customSmallerIsBetter`: the measured medians."""
    return [
        {
            "name": f"{row['family']}/{row['case']} {row['provider']} ({row['gpu']})",
            "value": row["median_us"],
            "unit": "µs",
            "range": f"{row['lo_us']:.6g}..{row['hi_us']:.6g}",
            "extra": _extra(row),
        }
        for row in timed_rows(frame)
    ]


def _extra(row: Row) -> str:
    facts = {
        "role": row["role"],
        "speedup": _figure(row["speedup"]),
        "speedup_best": _figure(row["speedup_best"]),
        "best_other": row["best_other"],
        "noise_pct": _figure(row["noise_pct"]),
        "run": row["run_id"],
        "flags": row["flags"],
    }
    return "\n".join(f"{name}: {value}" for name, value in facts.items() if value != "")


def _figure(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def hud(frame: "DataFrame", manifests: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """PyTorch HUD benchmark records: one a record and metric, intervals beside their metric."""
    return [
        {
            "benchmark": {
                "name": "kernelbench",
                "mode": row["mode"],
                "dtype": row["dtype"],
                "extra_info": _run_facts(row, manifests.get(row["run_id"], {})),
            },
            "model": {
                "name": row["family"],
                "type": "kernel",
                "backend": row["provider"],
                "origins": [row["role"]],
            },
            "metric": {
                "name": metric,
                "benchmark_values": [row[metric]],
                "target_value": None,
                "extra_info": _interval(row, metric),
            },
            "shape": row["case"],
        }
        for row in timed_rows(frame)
        for metric in METRICS
        if math.isfinite(row[metric])
    ]


def _run_facts(row: Row, manifest: Mapping[str, Any]) -> dict[str, Any]:
    machine = manifest.get("machine")
    versions = machine.get("versions", {}) if isinstance(machine, Mapping) else {}
    return {
        "device": "cuda",
        "arch": row["gpu"],
        "run_id": row["run_id"],
        "utc": row["utc"],
        "accuracy": row["accuracy"],
        "config": row["config"],
        "flags": row["flags"],
        **{name: str(versions[name]) for name in ("torch", "triton") if name in versions},
    }


def _interval(row: Row, metric: str) -> dict[str, float]:
    stem = "" if metric == "median_us" else f"{metric}_"
    unit = "_us" if metric == "median_us" else ""
    ends = {end: row.get(f"{stem}{end}{unit}", math.nan) for end in ("lo", "hi")}
    return {end: value for end, value in ends.items() if math.isfinite(value)}


def fastest_exact(rows: Sequence[Row]) -> list[Row]:
    """The fastest exact provider of each case, by median: the one that a user should take."""
    best: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = tuple(str(row[name]) for name in ("run_id", "family", "case"))
        exact = row["accuracy"] == "exact" and "prepacked" not in row["flags"]
        if exact and (key not in best or row["median_us"] < best[key]["median_us"]):
            best[key] = row
    return list(best.values())
