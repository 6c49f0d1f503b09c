"""How every row changed from one side to the other, by how much, and why."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kernelbench.compare import noise
from kernelbench.compare.attribution import (
    Cause,
    Difference,
    Shift,
    cause,
    differences,
    evidence_for,
    other_card,
)
from kernelbench.compare.decision import decide, more
from kernelbench.compare.gate import Gate
from kernelbench.compare.noise import LogMedian
from kernelbench.compare.pairs import Pair
from kernelbench.compare.rows import Change, Comparison, Key, RowChange
from kernelbench.compare.sides import Run, Side, of_one_machine
from kernelbench.spec import KernelbenchError, Role, RunRecord, Status

EXCUSED = (Cause.environment, Cause.card, Cause.policy)  # causes outside the build
WORK: Mapping[str, Callable[[RunRecord], Any]] = {
    "its case states other work (flops or bytes)": lambda r: (r.flops, r.read_bytes, r.write_bytes),
    "its inputs are prepared in another way (prepacked)": lambda r: r.prepacked,
    "it promises another accuracy": lambda r: r.accuracy,
    "it has another role": lambda r: r.role,
}
CONTROLS = 12  # the fewest rows not ours from which the noise of a comparison is estimated


def compare(a: Side, b: Side, gate: Gate | None = None, earlier: Sequence[Run] = ()) -> Comparison:
    """Judge every row of two sides.

    gate: which change counts as none, and what a regression is: a row that is SLOWER by more, and
    not because of its environment, one that is BROKEN, and one that had times and has none.
    earlier: runs of other builds on this machine, to measure how far processes lie apart.

    Raises KernelbenchError where the sides have no row in common, or none that can be judged.
    """
    gate = gate or Gate()
    shared_a, shared_b, one_gpu = of_one_machine(a, b)
    records_a, records_b = _by_key(a, one_gpu), _by_key(b, one_gpu)
    if not set(records_a) & set(records_b):
        raise KernelbenchError(_nothing_common(a, b, (records_a, records_b)))
    medians_a = _medians(a, one_gpu)
    rows, timed = _by_status(records_a, records_b, medians_a, _medians(b, one_gpu))
    builds, counts = _by_build(earlier, one_gpu), (_of_cases(a), _of_cases(b))
    judged = {
        key: Pair(*sides, builds.get(key, ()), (counts[0][key[:2]], counts[1][key[:2]]))
        for key, sides in timed.items()
    }
    if not judged and not any(r.verdict in (Change.broken, Change.fixed) for r in rows.values()):
        raise KernelbenchError(_nothing_judged(rows.values()))
    differing = differences(shared_a, shared_b)
    widened = 1.0 if any(d.system for d in differing) else _widened(rows, judged)
    card = noise.CARD if other_card(differing) else 0.0
    rows |= _judge(rows, judged, gate.limit_pct, widened, card)
    rows |= _attribute(rows, judged, differing, math.log1p(gate.limit_pct / 100))
    final = {
        key: replace(
            row, regression=_regressed(row, gate, one_gpu, records_a.get(key, ()), key in medians_a)
        )
        for key, row in rows.items()
    }
    decided = sum(_decided(final[key], gate.limit_pct) for key in medians_a if key in final)
    return Comparison(
        a,
        b,
        tuple(final.values()),
        differing,
        gate,
        one_gpu,
        len(medians_a),
        decided,
        widened,
        max((pair.earlier_processes for pair in judged.values()), default=0),
        max((pair.processes for pair in judged.values()), default=0),
    )


def _by_status(
    records_a: Mapping[Key, Sequence[RunRecord]],
    records_b: Mapping[Key, Sequence[RunRecord]],
    medians_a: Mapping[Key, Sequence[LogMedian]],
    medians_b: Mapping[Key, Sequence[LogMedian]],
) -> tuple[dict[Key, RowChange], dict[Key, tuple[Sequence[LogMedian], Sequence[LogMedian]]]]:
    """All rows, with a verdict where statuses decide it; and, where times decide, the medians of
    both sides. What was skipped on both sides is no row."""
    rows, timed = (
        dict[Key, RowChange](),
        dict[Key, tuple[Sequence[LogMedian], Sequence[LogMedian]]](),
    )
    for key in dict.fromkeys([*records_a, *records_b]):
        a, b = records_a.get(key, []), records_b.get(key, [])
        if all(record.status is Status.skipped for record in (*a, *b)):
            continue
        verdict, reason = _state(a, b)
        if verdict in (None, Change.fixed, Change.bad) and (key in medians_a or verdict is None):
            before, after = medians_a.get(key, []), medians_b.get(key, [])
            if problem := _methods(before, after) if before and after else _untimed(a, b):
                verdict, reason = Change.unjudged, "; ".join(filter(None, [reason, problem]))
            else:
                timed[key] = before, after
        rows[key] = _row(key, a, b, verdict, reason)
    return rows, timed


def _methods(a: Sequence[LogMedian], b: Sequence[LogMedian]) -> str:
    """Why their times cannot be compared, or nothing."""
    methods = [{median.record.method for median in side} for side in (a, b)]
    if len(methods[0] | methods[1]) == 1:
        return ""
    names = (
        f"{name} by {', '.join(map(str, sorted(numbers)))}"
        for name, numbers in zip("AB", methods, strict=True)
    )
    return (
        f"timed by different methods ({', '.join(names)}): a changed clock would look like a "
        "changed kernel. Measure both builds with one version of kernelbench (docs/method.md)"
    )


def _regressed(
    row: RowChange, gate: Gate, one_gpu: bool, before: Sequence[RunRecord], had_times: bool
) -> bool:
    """Whether it is worse than the caller allows; on two GPUs only what is wrong is. before: its
    records of the earlier side."""
    if row.verdict is Change.slower:
        beyond = one_gpu and (row.ratio or 0) > 1 + gate.limit_pct / 100
        return "slower" in gate.fails and beyond and row.cause not in EXCUSED
    if row.verdict is Change.broken:
        return "broken" in gate.fails
    was_right = any(record.status is Status.ok for record in before)
    lost = {Change.gone: ("gone", was_right), Change.unjudged: ("unjudged", had_times)}
    kind, was_there = lost.get(row.verdict, ("", False))
    return one_gpu and was_there and kind in gate.fails


def _decided(row: RowChange, limit_pct: float) -> bool:
    """Whether its times have a verdict, or are known within the limit."""
    if row.verdict.moved:
        return True
    if not row.ratio or not row.lo or row.hi is None:
        return False
    return max(row.ratio / row.lo, row.hi / row.ratio) <= 1 + limit_pct / 100


def _key(record: RunRecord, one_gpu: bool) -> Key:
    return (*record.row, record.gpu if one_gpu else "")


def _by_key(side: Side, one_gpu: bool) -> dict[Key, list[RunRecord]]:
    records: dict[Key, list[RunRecord]] = {}
    for run in side.runs:
        for record in run.records:
            records.setdefault(_key(record, one_gpu), []).append(record)
    return records


def _of_cases(side: Side) -> dict[tuple[str, str], int]:
    """In how many processes each case was measured."""
    counts: dict[tuple[str, str], int] = {}
    for run in side.runs:
        own: dict[tuple[str, str], int] = {}
        for record in run.records:
            case = record.row[:2]
            own[case] = max(own.get(case, 0), len(record.processes))
        for case, count in own.items():
            counts[case] = counts.get(case, 0) + count
    return counts


def _medians(side: Side, one_gpu: bool) -> dict[Key, list[LogMedian]]:
    medians: dict[Key, list[LogMedian]] = {}
    for median in noise.observe([run.records for run in side.runs]):
        medians.setdefault(_key(median.record, one_gpu), []).append(median)
    return medians


def _by_build(runs: Sequence[Run], one_gpu: bool) -> dict[Key, list[list[LogMedian]]]:
    """The medians of each build's processes; a build is the runs of one commit on one card."""
    builds: dict[str, list[Run]] = {}
    for run in runs:
        commit = str((run.manifest.get("git") or {}).get("commit"))
        card = str((run.manifest.get("machine") or {}).get("uuid"))
        builds.setdefault(f"{commit} {card}", []).append(run)
    by_key: dict[Key, list[list[LogMedian]]] = {}
    for build in builds.values():
        for key, medians in _medians(Side("", tuple(build)), one_gpu).items():
            by_key.setdefault(key, []).append(medians)
    return by_key


def _nothing_common(a: Side, b: Side, records: Sequence[Mapping[Key, object]]) -> str:
    counts = [
        f"{side.name} has {len(keys)}"
        + "".join(f", such as {' '.join(k[:3])}" for k in [*keys][:1])
        for side, keys in zip((a, b), records, strict=True)
    ]
    return (
        f"no case and provider in common: {'; '.join(counts)}. Compare runs of the same suite "
        "(kernelbench report DIR shows what a run holds)"
    )


def _nothing_judged(rows: Iterable[RowChange]) -> str:
    reasons = dict.fromkeys(row.why for row in rows if row.verdict is Change.unjudged)
    return (
        f"no row can be judged: {'; '.join(reasons) or 'nothing was timed on both sides'}. Measure "
        "both builds on a GPU without a profiler"
    )


def _state(a: Sequence[RunRecord], b: Sequence[RunRecord]) -> tuple[Change | None, str]:
    """The verdict from statuses alone, and why; None where times decide."""
    ran_a, ran_b = ([r for r in side if r.status is not Status.skipped] for side in (a, b))
    bad_a, bad_b = ([r for r in side if r.status.bad] for side in (ran_a, ran_b))
    if not ran_a:
        return Change.new, _reason(bad_b or [r for r in a if r.reason])
    if not ran_b:
        return Change.gone, _reason(b)
    if bad_b:
        worse = len(bad_b) * len(ran_a) > len(bad_a) * len(ran_b)  # a larger share of the runs
        some = f"{len(bad_b)} of {len(ran_b)} runs: " if len(bad_b) < len(ran_b) else ""
        before = f", before {len(bad_a)} of {len(ran_a)} runs" if worse and bad_a else ""
        return (Change.broken if worse else Change.bad), some + _reason(bad_b) + before
    if bad_a:
        some = f"{len(bad_a)} of {len(ran_a)} runs: " if len(bad_a) < len(ran_a) else ""
        return Change.fixed, some + _reason(bad_a)
    for what, facts in WORK.items():
        works = [{facts(record) for record in side} for side in (ran_a, ran_b)]
        if works[0] != works[1]:
            return Change.unjudged, f"{what} than before"
    return None, ""


def _reason(records: Sequence[RunRecord]) -> str:
    if not records:
        return ""
    reason = (records[0].reason.strip().splitlines() or [""])[0]
    return f"{records[0].status}: {reason}" if reason else str(records[0].status)


def _untimed(a: Sequence[RunRecord], b: Sequence[RunRecord]) -> str:
    """Why a row that is right on both sides has no times to compare."""
    reasons = []
    for name, side in (("A", a), ("B", b)):
        if not any(noise.gated(record) for record in side):
            reasons.append(f"{'/'.join(sorted({*map(_timer, side)}))} in {name}")
    return ", ".join(reasons) or "no time above the clock's own overhead"


def _timer(record: RunRecord) -> str:
    if "shared" in record.flags:
        return "another process used the GPU"
    return record.timing.timer if record.timing else "not timed"


def _row(
    key: Key, a: Sequence[RunRecord], b: Sequence[RunRecord], verdict: Change | None, why: str
) -> RowChange:
    record = (b or a)[0]
    return RowChange(
        family=record.family,
        case=record.case,
        provider=record.provider,
        gpu=key[3] or " → ".join(dict.fromkeys(r.gpu for r in (*a, *b))),
        role=record.role,
        mode=record.mode,
        dtype=record.dtype,
        label=record.label,
        verdict=verdict or Change.unsure,
        processes_a=sum(len(record.processes) for record in a),
        processes_b=sum(len(record.processes) for record in b),
        why=why,
    )


def _widened(rows: Mapping[Key, RowChange], judged: Mapping[Key, Pair]) -> float:
    """By what factor rows that are not ours (baselines, PyTorch's own, peers) scatter more than
    their errors allow, on the same system. At least 1."""
    logs = np.array([pair.log_ratio for pair in judged.values()])
    error = np.array([e for e, _ in noise.errors([p.spread() for p in judged.values()])])
    t = (logs / error)[[not rows[key].role.ours for key in judged]]
    if len(t) < CONTROLS:
        return 1.0
    return max(1.0, 1.4826 * float(np.median(np.abs(t - np.median(t)))))


def _judge(
    rows: Mapping[Key, RowChange],
    judged: Mapping[Key, Pair],
    limit_pct: float,
    widened: float,
    card: float,
) -> dict[Key, RowChange]:
    """The rows that times decide. Significance is computed over all of them at once.

    card: standard deviation of each side's card.
    """
    if not judged:
        return {}
    ends = [pair.ends for pair in judged.values()]
    decided = decide([pair.spread() for pair in judged.values()], ends, widened, card)
    limit = math.log1p(limit_pct / 100)
    judged_rows = {}
    for n, (key, pair) in enumerate(judged.items()):
        reach = float(decided.reach[n])
        lo, hi = ends[n][0] - reach, ends[n][1] + reach
        moved = bool(decided.moved[n])
        verdict = _verdict(pair.log_ratio, max(-lo, hi) <= limit, moved)
        now, unsure = min(len(pair.a), len(pair.b)), verdict is Change.unsure
        settled = rows[key].verdict in (Change.fixed, Change.bad) and not verdict.moved
        why = "; ".join(filter(None, [rows[key].why, pair.clocks, _missing_times(pair)]))
        judged_rows[key] = replace(
            rows[key],
            verdict=rows[key].verdict if settled else verdict,
            why=why,
            more=more(now, abs(pair.log_ratio), limit, decided, n) if unsure else None,
            processes_a=len(pair.a),
            processes_b=len(pair.b),
            ratio=math.exp(pair.log_ratio),
            lo=math.exp(lo),
            hi=_exp(hi),
            p=float(decided.p[n]),
            adjusted=float(decided.adjusted[n]),
            **_facts(pair),
        )
    return judged_rows


def _facts(pair: Pair) -> dict[str, Any]:
    """A row's columns about its sides that no noise enters."""
    times = [[s.log_ns for s in side] for side in (pair.a, pair.b)]
    a_us, b_us = (math.exp(math.fsum(side) / len(side)) / 1e3 for side in times)
    return {
        "a_us": a_us,
        "b_us": b_us,
        "raw": math.exp(pair.raw),
        "normalised": None if pair.in_cycles is None else math.exp(pair.in_cycles),
        "used": "normalised" if pair.normalised else "raw",
        "a_mhz": pair.mhz[0] or None,
        "b_mhz": pair.mhz[1] or None,
        "floor_pct": max(s.reach for s in (*pair.a, *pair.b)) * 100 or None,
    }


def _missing_times(pair: Pair) -> str:
    """Which side's runs lack times of the row, in words."""
    texts = [f"times of {len(side)} of {total} processes in {name}"
             for name, side, total in zip("AB", (pair.a, pair.b), pair.most, strict=True)
             if len(side) < total]  # fmt: skip
    return ", ".join(texts)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _verdict(log_ratio: float, within: bool, moved: bool) -> Change:
    if within:
        return Change.same
    if not moved:
        return Change.unsure
    return Change.slower if log_ratio > 0 else Change.faster


def _attribute(
    rows: Mapping[Key, RowChange],
    judged: Mapping[Key, Pair],
    differing: Sequence[Difference],
    limit: float,
) -> dict[Key, RowChange]:
    """The rows that moved, with the cause and the evidence for it."""
    shifts: dict[tuple[str, str, str], list[Shift]] = {}
    shift_of: dict[Key, Shift] = {}
    for key in judged:
        row = rows[key]
        log_ratio, reach = math.log(row.ratio or 1), math.log((row.hi or 1) / (row.ratio or 1))
        shift_of[key] = Shift(
            row.provider, row.role is Role.baseline, row.role.ours, log_ratio, reach
        )
        shifts.setdefault((key[0], key[1], key[3]), []).append(shift_of[key])
    moved = {}
    for key, pair in judged.items():
        if rows[key].verdict.moved:
            mates = [s for s in shifts[key[0], key[1], key[3]] if s is not shift_of[key]]
            reason, changed = evidence_for(shift_of[key], mates, pair.a, pair.b)
            attribution = cause(shift_of[key], mates, differing, changed, limit)
            words = "; ".join(filter(None, [reason, rows[key].why]))
            moved[key] = replace(rows[key], cause=attribution.value, why=words)
    return moved
