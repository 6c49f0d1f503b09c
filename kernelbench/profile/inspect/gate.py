"""Judges compiled kernels by limits, and by comparison with an earlier output.

A kernel that does not compile fails, unless it did not compile before. New rows are judged by the
limits alone; missing rows are named, and are no failure.
"""

import json
import lzma
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelbench import files
from kernelbench.profile.inspect import KernelRow
from kernelbench.spec import UsageError, suggest

KEY = ("family", "provider", "case", "kernel", "config", "target")
COMPARED = ("registers", "spill_bytes", "smem_bytes", "instructions", "serialized", "error")
SAVED = (*KEY, "triton", *COMPARED)
PACKED = ".xz"  # the end of the name of a file that is packed
SHARES = ("registers", "instructions")  # limited by how much they grow
KINDS = ("spills", "smem", "serialized", *SHARES)
_TYPES: dict[str, type] = dict.fromkeys((*KEY, "triton", "error"), str)
_TYPES |= dict.fromkeys((*SHARES, "spill_bytes", "smem_bytes"), int) | {"serialized": list}

Key = tuple[str, ...]
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Bounds:
    """Which rows fail.

    registers_pct, instructions_pct: by how many per cent a kernel's may grow; None for no limit.
    """

    spills: bool = False
    smem: bool = False
    serialized: bool = False
    registers_pct: float | None = None
    instructions_pct: float | None = None


def bounds(text: str, against: bool) -> Bounds:
    """The bounds in a text such as `spills,smem,serialized,registers:10%,instructions:0%`.

    against: whether there is an output to compare with, which shares need.
    Raises UsageError for anything else in the text.
    """
    fields: dict[str, Any] = {}
    for word in (part.strip() for part in text.split(",") if part.strip()):
        kind, colon, share = word.partition(":")
        if kind not in KINDS:
            raise UsageError(f"--fail-on: no limit {kind!r}{suggest(kind, KINDS)}")
        if kind not in SHARES:
            if colon:
                raise UsageError(f"--fail-on {word}: {kind} takes no number")
            fields[kind] = True
        elif not re.fullmatch(r"(\d+(\.\d+)?%)?", share) or bool(colon) != bool(share):
            raise UsageError(f"--fail-on {word}: a share of what it was, such as {kind}:10%")
        elif not against:
            raise UsageError(f"--fail-on {word}: more than what? Name --against FILE")
        else:
            fields[f"{kind}_pct"] = float(share.rstrip("%") or 0)
    return Bounds(**fields)


def key_of(facts: Facts) -> Key:
    """The identity of a row: its values of KEY."""
    return tuple(str(facts[name]) for name in KEY)


def read(path: Path) -> list[Facts]:
    """The rows in a file of `--json` or `--save`. Raises UsageError, which names the fault."""
    try:
        content = path.read_bytes()
        text = (lzma.decompress(content) if path.suffix == PACKED else content).decode()
        lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, lzma.LZMAError) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else error
        raise UsageError(f"--against {path}: cannot be read: {reason}") from None
    rows: list[Any]
    if lines and lines[0] == list(SAVED):
        rows = [dict(zip(SAVED, line, strict=False)) for line in lines[1:] if line]
    else:
        rows = lines[0] if len(lines) == 1 and isinstance(lines[0], list) else lines
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UsageError(f"--against {path}: row {number} is no object but {row!r}")
        wrong = [name for name, kind in _TYPES.items() if type(row.get(name)) is not kind]
        if wrong:
            raise UsageError(
                f"--against {path}: row {number} is not of `kernelbench inspect --json`: "
                f"{wrong[0]} is {row.get(wrong[0])!r}"
            )
    return rows


def save(rows: Sequence[KernelRow], path: Path) -> None:
    """Write only what is compared, for `read`: a line of names, then one line a row, packed in a
    file whose name ends in .xz.

    Raises KernelbenchError where the file cannot be written.
    """
    values = [[getattr(row, name) for name in SAVED] for row in rows]
    lines = [json.dumps(line, separators=(",", ":")) for line in (SAVED, *values)]
    content = "".join(f"{line}\n" for line in lines).encode()
    files.deliver(path, lzma.compress(content, preset=9) if path.suffix == PACKED else content)


@dataclass(frozen=True)
class Judgement:
    """The verdict on all rows, as text.

    failed: rows and why. changed, new, gone: compared with the earlier output. versions: earlier
    versions of Triton that are not in use now.
    """

    failed: tuple[str, ...]
    changed: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()


def judge(rows: Sequence[KernelRow], before: Sequence[Facts] | None, limits: Bounds) -> Judgement:
    """Judge rows by limits and, if there is one, by comparison with an earlier output.

    Only rows of targets, families and providers that are there now count as gone.
    """
    was, today = _by_key(rows, before or ()), {key_of(row.as_json()): row for row in rows}
    failed, changed, new = [], [], []
    for key, row in today.items():
        old = was.get(key)
        failed += [f"{title(key)}: {fault}" for fault in _faults(row, old, limits)]
        if old is not None and (changes := _changes(row, old)):
            changed.append(f"{title(key)}: {changes}")
        elif old is None and before is not None:
            new.append(title(key))
    present = {(row.target, row.family, row.provider) for row in rows}
    gone = [
        title(key)
        for key, old in was.items()
        if key not in today and (old["target"], old["family"], old["provider"]) in present
    ]
    others = {str(old["triton"]) for old in was.values()} - {row.triton for row in rows}
    return Judgement(tuple(failed), tuple(changed), tuple(new), tuple(gone), tuple(sorted(others)))


def title(key: Key) -> str:
    """`sm_90 FAMILY/CASE PROVIDER KERNEL [CONFIG]`."""
    family, provider, case, kernel, config, target = key
    where = f"{family}/{case}" if case != family else family
    return f"{target} {where} {provider} {kernel} [{config}]"


def _by_key(rows: Sequence[KernelRow], before: Sequence[Facts]) -> dict[Key, Facts]:
    """Earlier rows by key; of two with different versions of Triton, that of today's version."""
    today = {row.triton for row in rows}
    return {key_of(old): old for old in sorted(before, key=lambda old: old["triton"] in today)}


def _faults(row: KernelRow, old: Facts | None, limits: Bounds) -> Iterator[str]:
    if row.error:
        if old is None or not old["error"]:
            yield row.error
        return
    was: Facts = old or {"spill_bytes": 0, "registers": 0, "instructions": 0, "serialized": []}
    compared = "before" if old else "are allowed"
    if limits.spills and row.spill_bytes > was["spill_bytes"]:
        yield f"spills {row.spill_bytes} bytes, {was['spill_bytes']} {compared}"
    if limits.smem and row.smem_bytes > row.smem_limit:
        yield f"{row.smem_bytes} bytes of shared memory, the target has {row.smem_limit}"
    added = [note for note in row.serialized if note not in was["serialized"]]
    if limits.serialized and added:
        yield f"wgmma are waited for one by one ({', '.join(added)})"
    for name, percent in zip(SHARES, (limits.registers_pct, limits.instructions_pct), strict=True):
        now, before = getattr(row, name), was[name]
        if percent is not None and before and now > before * (1 + percent / 100):
            yield f"{now} {name}, {before} before (+{(now / before - 1) * 100:.3g}%)"


def _changes(row: KernelRow, old: Facts) -> str:
    now = row.as_json()
    pairs = ((name, old[name], now[name]) for name in COMPARED)
    return ", ".join(
        f"{name} {_text(before)} → {_text(after)}"
        for name, before, after in pairs
        if _text(before) != _text(after)
    )


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(value) or "none"
    return str(value) or "none"
