"""`kernelbench repro`: finds a record, and writes the script that reproduces it."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kernelbench import families, files, metrics, store
from kernelbench.repro import declared
from kernelbench.repro.needed import Needed
from kernelbench.repro.script import write
from kernelbench.source import OURS, beside_of, source_hash
from kernelbench.spec import Family, Role, RunRecord, UsageError, beside, is_declared, suggest

RESULTS = Path("results")


def repro(
    case: str,
    provider: str,
    run: Path | None,
    plugins: Sequence[str] = (),
    out: Path | None = None,
) -> tuple[str, list[str]]:
    """The script of one record, or "" where it was written to a file; and a message for every line
    of a run that could not be read.

    case: its id, or FAMILY/ID where several families have it.
    provider: its name; else our headline's, else the baseline.
    run: a run folder, or one of runs, of which the newest that holds the record is taken.
    Raises UsageError for a case, provider or family that is not there; KernelbenchError for a file
    that cannot be written.
    """
    problems: list[str] = []
    with beside(problems):
        records, folder = _records(case, provider, run or RESULTS, problems)
        record = _choose(records, provider, case)
    families_by_name = families.load(tuple(plugins) or _plugins(folder))
    if record.family not in families_by_name:
        raise UsageError(
            f"{folder}: family {record.family!r} is not here; name its file: --plugin FILE"
        )
    text = script_of(record, records, families_by_name[record.family])
    if out is None:
        return text, problems
    files.deliver(out, text)
    return "", problems


def script_of(record: RunRecord, group: Sequence[RunRecord], family: Family[Any]) -> str:
    """group: the records of its job, for its speedup.

    Raises UsageError for a job over several GPUs.
    """
    if (world := int(record.axes.get("world", 1))) > 1:
        raise UsageError(
            f"{record.case}: {world} ranks did this together, and a script is one process: "
            "run its case alone, kernelbench run SUITE --case CASE-ID"
        )
    if family.declared:
        sources, module = declared.sources(family, record.provider)
    else:
        sources, module = _sources(family, record.provider)
    notes = ""
    if record.source and record.source != source_hash(family):
        notes = "The sources below are newer than what was measured then."
    return write(_facts(record, group), sources, module, notes)


def _sources(family: Family[Any], provider: str) -> tuple[dict[str, str], str]:
    """Text by path, and the module that has FAMILY."""
    path = Path(family.origin).resolve()
    ours = family.provider(provider)
    module = _module_of(path)
    needed = Needed(path, module, device_code="triton" in ours.requires, beside=beside_of(family))
    needed.add({provider, family.baseline.name})
    return needed.files(), module


def _module_of(path: Path) -> str:
    """The name of a family's module in the script."""
    if not path.is_relative_to(OURS):
        return re.sub(r"\W", "_", f"family_{path.stem}")
    parts = path.relative_to(OURS.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _records(
    case: str, provider: str, where: Path, problems: list[str]
) -> tuple[list[RunRecord], Path]:
    """The records of the newest run that has the case (and the provider, if any run has both)."""
    cases: dict[str, None] = {}
    candidates: list[tuple[bool, str, list[RunRecord], Path]] = []
    for run in store.find_runs([where]):
        records, damaged = store.read_with_problems(run)
        problems += damaged
        cases |= dict.fromkeys(f"{r.family}/{r.case}" for r in records)
        matching = [r for r in records if case in (r.case, f"{r.family}/{r.case}")]
        if matching:
            has_provider = provider in [r.provider for r in matching]
            candidates.append((has_provider, max(r.utc for r in matching), matching, run))
    names = sorted({r.family for *_, matching, _ in candidates for r in matching})
    if len(names) > 1:
        raise UsageError(f"{case}: a case of {', '.join(names)}; say which: {names[0]}/{case}")
    if candidates:
        newest = max(range(len(candidates)), key=lambda n: (candidates[n][:2], n))
        return candidates[newest][2:]
    if not cases:
        raise UsageError(f"no record in {where}: kernelbench run smoke, or --run DIR")
    ids = list(cases) if "/" in case else [name.partition("/")[2] for name in cases]
    near = suggest(case, list(dict.fromkeys(ids))).partition(" Known: ")[0]
    raise UsageError(f"{where}: no case {case!r}{near} `kernelbench report {where}` shows them")


def _choose(records: Sequence[RunRecord], provider: str, case: str) -> RunRecord:
    names = [record.provider for record in records]
    if provider:
        if provider not in names:
            raise UsageError(f"--provider: {case} has no {provider!r}{suggest(provider, names)}")
        return records[names.index(provider)]
    order = [Role.triton_fused, Role.baseline]
    ranked = sorted(
        records, key=lambda r: (r.role not in order, r.role != order[0], r.status != "ok")
    )
    return ranked[0]


def _plugins(folder: Path) -> tuple[str, ...]:
    request = store.read_manifest(folder).get("asked")
    plugins = request.get("plugins", []) if isinstance(request, dict) else []
    return tuple(str(p) for p in plugins if is_declared(str(p)) or Path(str(p)).is_file())


def _facts(record: RunRecord, group: Sequence[RunRecord]) -> dict[str, Any]:
    timing = record.timing
    return {
        "family": record.family,
        "case": record.case,
        "provider": record.provider,
        "axes": dict(record.axes),
        "seed": record.seed,
        "config": dict(record.config) if record.config is not None else None,
        "overhead_us": timing.overhead_ns / 1e3 if timing else None,
        "errors": {error.name: _error(asdict(error)) for error in record.errors},
        "expected": _expected(record, group),
    }


def _error(error: dict[str, Any]) -> dict[str, Any]:
    return {name: error[name] for name in ("rel", "rel_budget")}


def _expected(record: RunRecord, group: Sequence[RunRecord]) -> str:
    """The recorded time in words; nothing where there is none."""
    if not metrics.timed(record):
        return ""
    rows = metrics.dicts(metrics.frame([r for r in group if r.run_id == record.run_id]))
    row = next(r for r in rows if r["provider"] == record.provider)
    text = (
        f"median {row['median_us']:.4g} µs, 95 % [{row['lo_us']:.4g}, {row['hi_us']:.4g}] µs on "
        f"{record.gpu}, {record.utc[:10]} ({metrics.kind_of('median_us')})"
    )
    if row["speedup_lo"] == row["speedup_lo"]:
        text += (
            f"; {row['speedup']:.3g} × the baseline [{row['speedup_lo']:.3g}, "
            f"{row['speedup_hi']:.3g}] ({metrics.kind_of('speedup')})"
        )
    return text
