"""Evidence for a claim in the records: the value of its metric, and the kind of that value."""

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


def evidence_for(
    claim: Claim, gpus: Sequence[str], records: Group, measured: Sequence[Measured]
) -> Evidence:
    """The newest evidence on a GPU that the claim names, else the newest on any GPU. A record that
    is incorrect or failed counts: no older record replaces it."""
    compare = claim.compare
    if compare is None:
        return Evidence(why=claim.unmeasured or "the claim names no case of kernelbench")
    if compare.bytes is Bytes.measured:
        lines = [line for line in measured if line.tool is Tool.ncu and _fits(compare, line)]
        return _counter_evidence(claim, compare, gpus, lines)
    fitting = [record for record in records if _fits(compare, record)]
    mine = [record for record in fitting if record.provider == compare.provider]
    if not mine:
        return Evidence(why=f"no record of {_description(compare)}")
    if several := _ambiguity(mine):
        return Evidence(why=several)
    ordered = _best_first(mine, gpus)
    evidence = [_record_evidence(claim, record, records) for record in ordered]
    answers = [
        candidate
        for candidate, record in zip(evidence, ordered, strict=True)
        if candidate.value is not None or record.status.bad
    ]
    return [*answers, *evidence][0]


def _fits(compare: Compare, line: RunRecord | Measured) -> bool:
    return (
        (line.family, line.mode, line.dtype) == (compare.family, compare.mode, compare.dtype)
        and line.provider in (compare.provider, compare.against)
        and all(line.axes.get(axis) == value for axis, value in compare.axes.items())
    )


def _description(compare: Compare) -> str:
    axes = " ".join(f"{axis}={value}" for axis, value in compare.axes.items())
    return f"{compare.family} {axes} {compare.dtype} {compare.mode} {compare.provider}"


def _ambiguity(lines: Sequence[RunRecord | Measured]) -> str:
    cases = sorted({line.case for line in lines})
    return f"{len(cases)} cases fit; give more axes: {', '.join(cases)}" if len(cases) > 1 else ""


def _best_first(mine: Group, gpus: Sequence[str]) -> list[RunRecord]:
    return sorted(mine, key=lambda record: (same(gpus, record.gpu), record.utc), reverse=True)


def _record_evidence(claim: Claim, record: RunRecord, others: Group) -> Evidence:
    compare, job = claim.compare, list[RunRecord]()
    against = None
    if compare and compare.against:
        job = [r for r in others if (r.run_id, *r.key[:2]) == (record.run_id, *record.key[:2])]
        against = next((r for r in job if r.provider == compare.against), None)
    value, kind, why = _value(claim, record, against, job)
    source = {"gpu": record.gpu, "run_id": record.run_id, "case": record.case}
    return Evidence(value=value, kind=kind, why=why, **source)


def _value(
    claim: Claim, record: RunRecord, against: RunRecord | None, job: Group
) -> tuple[Interval | None, str, str]:
    for measured in (record, against):
        if measured is not None and measured.status is not Status.ok:
            reason = measured.reason.splitlines()[0] if measured.reason else "no reason given"
            return None, "", f"{measured.provider} is {measured.status}: {reason}"
    if claim.sort.pair and against is None:
        name = claim.compare.against if claim.compare else ""
        return None, "", f"{name} was not measured beside {record.provider}"
    if change := _OF_SPEEDUP.get(claim.metric):
        value = _mapped(_speedup(record, against or record, job), change)
    else:
        value = _READ[claim.metric](claim, record, against or record)
    if value is not None and _of_times(claim) and _too_few_samples(record, against):
        value = Interval(value.mid, -inf, inf)  # its error is unknown
    kind = _KIND.get(claim.metric, metrics.kind_of("speedup"))
    missing = f"{record.case} {record.provider} has no {claim.metric}"
    return value, kind, "" if value else missing


def _of_times(claim: Claim) -> bool:
    absolute = claim.sort.nature is Nature.absolute
    return absolute or claim.metric in _OF_SPEEDUP


def _too_few_samples(*records: RunRecord | None) -> bool:
    """Whether one of the records has a single process, with too few samples for an interval."""
    timings = [metrics.timings(record) for record in records if record is not None]
    return any(
        len(processes) == 1 and sum(map(len, processes[0].blocks_ns)) < FEWEST_SAMPLES
        for processes in timings
    )


def _speedup(record: RunRecord, against: RunRecord, job: Group) -> Interval | None:
    """The speedup with its interval, widened to the noise floor of its job."""
    interval = metrics.speedup(record, against)
    if interval is None:
        return None
    ratio = interval.over
    baselines = [r for r in job if r.role is Role.baseline and r.group == record.group]
    floors = [metrics.noise_pct(baseline) for baseline in baselines]
    floor = max((noise for noise in floors if noise is not None), default=0.0) / 100
    low, high = ratio.mid / (1 + floor), ratio.mid * (1 + floor)
    return Interval(ratio.mid, min(ratio.lo, low), max(ratio.hi, high))


def _mapped(interval: Interval | None, change: Callable[[float], float]) -> Interval | None:
    if interval is None:
        return None
    ends = sorted((change(interval.lo), change(interval.hi)))
    return Interval(change(interval.mid), *ends)


def _ms(claim: Claim, record: RunRecord, against: RunRecord) -> Interval | None:
    interval = times.of_processes(metrics.timings(record)) if metrics.timed(record) else None
    return Interval(interval.mid / 1e6, interval.lo / 1e6, interval.hi / 1e6) if interval else None


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
        total = amount(claim, record)
        return (
            _mapped(_ms(claim, record, against), lambda ms: total / ms if ms else inf)
            if total
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
    deviation = metrics.tightest(record)
    return _exactly(deviation.cosine if deviation else None)


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
# A metric without a column has the kind of a speedup: derived from measured times.
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


def _counter_evidence(
    claim: Claim, compare: Compare, gpus: Sequence[str], lines: Sequence[Measured]
) -> Evidence:
    """DRAM reads that the hardware counted. Not writes: dirty lines in the L2 are not counted."""
    if several := _ambiguity(lines):
        return Evidence(why=several)
    for line in sorted(lines, key=lambda m: (same(gpus, m.gpu), m.utc), reverse=True):
        if line.provider != compare.provider or line.status is not Status.ok:
            continue
        against = next(
            (o for o in lines if o.provider == compare.against and o.run_id == line.run_id), None
        )
        mine = audit.per_call(line, "dram_read_bytes")
        theirs = audit.per_call(against, "dram_read_bytes") if against else None
        if mine is None or (claim.sort.pair and not theirs):
            continue
        value = (1 - mine / theirs) * 100 if theirs else mine / audit.MIB
        source = {"gpu": line.gpu, "run_id": line.run_id, "case": line.case}
        return Evidence(
            value=_exactly(value), kind=f"{metrics.Kind.measured} (DRAM reads)", **source
        )
    return Evidence(why=f"no DRAM counters of {_description(compare)}: kernelbench profile --ncu")
