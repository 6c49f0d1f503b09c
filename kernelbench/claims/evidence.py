"""What the records say of a claim: the value that its metric has there, and how it is known."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from kernelbench import metrics
from kernelbench.claims.peaks import same
from kernelbench.claims.words import Bytes, Claim, Compare, Metric, Nature
from kernelbench.metrics import audit
from kernelbench.numbers import times
from kernelbench.numbers.statistics import FEWEST_SAMPLES, Interval
from kernelbench.spec import Measured, Role, RunRecord, Status, Tool

Group = Sequence[RunRecord]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """value: in the unit of the claim's metric, its interval widened by the noise floor where that
    is the larger; None where there is none, and `why`. kind: of the number."""

    value: Interval | None = None
    kind: str = ""
    why: str = ""
    gpu: str = ""
    run_id: str = ""
    case: str = ""


def find(
    claim: Claim, gpus: Sequence[str], records: Group, measured: Sequence[Measured]
) -> Evidence:
    """The newest evidence on a GPU that the claim names, else the newest on any. A record that is
    incorrect or failed is an answer: no older one is looked for behind it."""
    compare = claim.compare
    if compare is None:
        return Evidence(why=claim.unmeasured or "the claim names no case of kernelbench")
    if compare.bytes is Bytes.measured:
        lines = [line for line in measured if line.tool is Tool.ncu and _fits(compare, line)]
        return _counted(claim, compare, gpus, lines)
    fitting = [record for record in records if _fits(compare, record)]
    mine = [record for record in fitting if record.provider == compare.provider]
    if not mine:
        return Evidence(why=f"no record of {_asked(compare)}")
    if several := _several(mine):
        return Evidence(why=several)
    ordered = _best_first(mine, gpus)
    found = [_of_record(claim, record, records) for record in ordered]
    answers = [
        one
        for one, of in zip(found, ordered, strict=True)
        if one.value is not None or of.status.bad
    ]
    return [*answers, *found][0]


def _fits(compare: Compare, line: RunRecord | Measured) -> bool:
    return (
        (line.family, line.mode, line.dtype) == (compare.family, compare.mode, compare.dtype)
        and line.provider in (compare.provider, compare.against)
        and all(line.axes.get(axis) == value for axis, value in compare.axes.items())
    )


def _asked(compare: Compare) -> str:
    axes = " ".join(f"{axis}={value}" for axis, value in compare.axes.items())
    return f"{compare.family} {axes} {compare.dtype} {compare.mode} {compare.provider}"


def _several(lines: Sequence[RunRecord | Measured]) -> str:
    cases = sorted({line.case for line in lines})
    return f"{len(cases)} cases fit; give more axes: {', '.join(cases)}" if len(cases) > 1 else ""


def _best_first(mine: Group, gpus: Sequence[str]) -> list[RunRecord]:
    return sorted(mine, key=lambda record: (same(gpus, record.gpu), record.utc), reverse=True)


def _of_record(claim: Claim, record: RunRecord, others: Group) -> Evidence:
    compare, job = claim.compare, list[RunRecord]()
    against = None
    if compare and compare.against:
        job = [r for r in others if (r.run_id, *r.key[:2]) == (record.run_id, *record.key[:2])]
        against = next((r for r in job if r.provider == compare.against), None)
    value, kind, why = _value(claim, record, against, job)
    where = {"gpu": record.gpu, "run_id": record.run_id, "case": record.case}
    return Evidence(value=value, kind=kind, why=why, **where)


def _value(
    claim: Claim, record: RunRecord, against: RunRecord | None, job: Group
) -> tuple[Interval | None, str, str]:
    for one in (record, against):
        if one is not None and one.status is not Status.ok:
            said = one.reason.splitlines()[0] if one.reason else "no reason given"
            return None, "", f"{one.provider} is {one.status}: {said}"
    if claim.sort.pair and against is None:
        other = claim.compare.against if claim.compare else ""
        return None, "", f"{other} was not measured beside {record.provider}"
    if change := _OF_SPEEDUP.get(claim.metric):
        value = _mapped(_speedup(record, against or record, job), change)
    else:
        value = _READ[claim.metric](claim, record, against or record)
    if value is not None and _of_times(claim) and _few(record, against):
        value = Interval(value.mid, -inf, inf)  # nothing says how far it may be off
    kind = _KIND.get(claim.metric, metrics.kind_of("speedup"))
    missing = f"{record.case} {record.provider} has no {claim.metric}"
    return value, kind, "" if value else missing


def _of_times(claim: Claim) -> bool:
    absolute = claim.sort.nature is Nature.absolute
    return absolute or claim.metric in _OF_SPEEDUP


def _few(*records: RunRecord | None) -> bool:
    """Whether a time of theirs is one process's, by fewer samples than an interval needs."""
    timings = [metrics.timings(record) for record in records if record is not None]
    return any(
        len(some) == 1 and sum(map(len, some[0].blocks_ns)) < FEWEST_SAMPLES for some in timings
    )


def _speedup(record: RunRecord, against: RunRecord, job: Group) -> Interval | None:
    """Its interval, or the noise floor of its job where that reaches farther."""
    found = metrics.speedup(record, against)
    if found is None:
        return None
    ratio = found.over
    twice = [r for r in job if r.role is Role.baseline and r.group == record.group]
    floors = [metrics.noise_pct(baseline) for baseline in twice]
    floor = max((one for one in floors if one is not None), default=0.0) / 100
    low, high = ratio.mid / (1 + floor), ratio.mid * (1 + floor)
    return Interval(ratio.mid, min(ratio.lo, low), max(ratio.hi, high))


def _mapped(found: Interval | None, change: Callable[[float], float]) -> Interval | None:
    if found is None:
        return None
    ends = sorted((change(found.lo), change(found.hi)))
    return Interval(change(found.mid), *ends)


def _ms(claim: Claim, record: RunRecord, against: RunRecord) -> Interval | None:
    found = times.of_processes(metrics.timings(record)) if metrics.timed(record) else None
    return Interval(found.mid / 1e6, found.lo / 1e6, found.hi / 1e6) if found else None


def _overhead_ms(claim: Claim, record: RunRecord, against: RunRecord) -> Interval | None:
    mine, theirs = _ms(claim, record, against), _ms(claim, against, record)
    if mine is None or theirs is None:
        return None
    return Interval(mine.mid - theirs.mid, mine.lo - theirs.hi, mine.hi - theirs.lo)


def _per_ms(
    amount: Callable[[Claim, RunRecord], float],
) -> Callable[[Claim, RunRecord, RunRecord], Interval | None]:
    """amount: what a rate is of, per ms."""

    def rate(claim: Claim, record: RunRecord, against: RunRecord) -> Interval | None:
        done = amount(claim, record)
        return (
            _mapped(_ms(claim, record, against), lambda ms: done / ms if ms else inf)
            if done
            else None
        )

    return rate


def _hbm_saved(claim: Claim, record: RunRecord, against: RunRecord) -> Interval | None:
    return _exactly(metrics.hbm_saved_pct(record, against))


def _hbm(claim: Claim, record: RunRecord, against: RunRecord) -> Interval | None:
    moved = metrics.modelled_bytes(record)
    return _exactly(sum(moved) / metrics.MIB if moved else None)


def _memory_saved(claim: Claim, record: RunRecord, against: RunRecord) -> Interval | None:
    if record.peak_bytes is None or not against.peak_bytes:
        return None
    return _exactly((1 - record.peak_bytes / against.peak_bytes) * 100)


def _error(claim: Claim, record: RunRecord, against: RunRecord) -> Interval | None:
    worst = metrics.worst_element(record)
    return _exactly(metrics.finite(worst.worst) if worst else None)


def _cosine(claim: Claim, record: RunRecord, against: RunRecord) -> Interval | None:
    near = metrics.tightest(record)
    return _exactly(near.cosine if near else None)


def _exactly(value: float | None) -> Interval | None:
    return None if value is None else Interval(value, value, value)


_COLUMN = {
    Metric.hbm_saved_pct: "hbm_saved_pct",
    Metric.hbm_mib: "model_read_mib",
    Metric.ms: "median_us",
    Metric.gflops: "tflops",
    Metric.gbps: "gbps",
    Metric.max_error: "error_max",
    Metric.cosine: "cosine",
}
# Of what is no column it is that of a speedup: formed from what was measured.
_KIND = {metric: metrics.kind_of(column) for metric, column in _COLUMN.items()}
_OF_SPEEDUP: Mapping[Metric, Callable[[float], float]] = {
    Metric.speedup: lambda x: x,
    Metric.slowdown: lambda x: 1 / x,
    Metric.gain_pct: lambda x: (x - 1) * 100,
    Metric.overhead_pct: lambda x: (1 / x - 1) * 100,
}
_READ: Mapping[Metric, Callable[[Claim, RunRecord, RunRecord], Interval | None]] = {
    Metric.hbm_saved_pct: _hbm_saved,
    Metric.memory_saved_pct: _memory_saved,
    Metric.hbm_mib: _hbm,
    Metric.max_error: _error,
    Metric.cosine: _cosine,
    Metric.ms: _ms,
    Metric.overhead_ms: _overhead_ms,
    Metric.tokens_per_s: _per_ms(lambda c, r: (c.work.tokens if c.work else 0) * 1e3),
    Metric.gflops: _per_ms(lambda c, r: (r.flops or 0) / 1e6),
    Metric.gbps: _per_ms(lambda c, r: (metrics.bytes_min(r) or 0) / 1e6),
}


def _counted(
    claim: Claim, compare: Compare, gpus: Sequence[str], lines: Sequence[Measured]
) -> Evidence:
    """DRAM reads that the hardware counted; what is dirty in the L2 hides from writes."""
    if several := _several(lines):
        return Evidence(why=several)
    for line in sorted(lines, key=lambda one: (same(gpus, one.gpu), one.utc), reverse=True):
        if line.provider != compare.provider or line.status is not Status.ok:
            continue
        other = next(
            (o for o in lines if o.provider == compare.against and o.run_id == line.run_id), None
        )
        mine = audit.per_call(line, "dram_read_bytes")
        theirs = audit.per_call(other, "dram_read_bytes") if other else None
        if mine is None or (claim.sort.pair and not theirs):
            continue
        value = (1 - mine / theirs) * 100 if theirs else mine / audit.MIB
        where = {"gpu": line.gpu, "run_id": line.run_id, "case": line.case}
        return Evidence(
            value=_exactly(value), kind=f"{metrics.Kind.measured} (DRAM reads)", **where
        )
    return Evidence(why=f"no DRAM counters of {_asked(compare)}: kernelbench profile --ncu")
