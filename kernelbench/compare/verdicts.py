"""What became of every row from one side to the other, by how much, and what it is put down to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from kernelbench import metrics
from kernelbench.compare import noise
from kernelbench.compare.attribution import Cause, Difference, Shift, cause, differences, why
from kernelbench.compare.noise import Seen
from kernelbench.compare.sides import Side, of_one_machine
from kernelbench.spec import KernelbenchError, Role, RunRecord, Status
from kernelbench.statistics import Floats, false_discovery, t_reach, two_sided_p

LIMIT_PCT = 3.0
FALSE_SHARE = 0.05  # of the calls over the whole table that may be false
CLOCKS_DIFFER = 0.01
CONTROLS = 12  # rows that are not ours, from which on they say how noisy a comparison is
Key = tuple[str, str, str, str]  # family, case, provider, GPU


class Verdict(StrEnum):
    """What became of a row from A to B."""

    slower = "SLOWER"  # beyond noise, and not known to be within the limit
    faster = "FASTER"
    same = "SAME"  # the whole 95 % interval lies within the limit
    unsure = "UNSURE"  # neither
    broken = "BROKEN"  # it was right, and now it is wrong, or does not run
    fixed = "FIXED"  # the other way round
    bad = "BAD"  # on both sides
    new = "NEW"
    gone = "GONE"
    unjudged = "UNJUDGED"  # it has no times that may be compared, and why

    @property
    def moved(self) -> bool:
        return self in (Verdict.slower, Verdict.faster)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A (family, case, provider) from A to B.

    ratio: time of B over time of A, so above 1 is slower; lo, hi: its 95 % interval. raw: from
    the clock of the GPU as it ran; normalised: in cycles instead, where the sides' SM clocks
    differ by more than 1 %. used: which of them `ratio` is, `raw` or `normalised`. p: of no
    change; adjusted: for the number of rows. floor_pct: the larger noise floor of the two sides.
    """

    family: str
    case: str
    provider: str
    gpu: str
    role: Role
    mode: str
    dtype: str
    label: str
    verdict: Verdict
    runs_a: int = 0
    runs_b: int = 0
    a_us: float | None = None
    b_us: float | None = None
    ratio: float | None = None
    lo: float | None = None
    hi: float | None = None
    raw: float | None = None
    normalised: float | None = None
    used: str = ""
    a_mhz: float | None = None
    b_mhz: float | None = None
    floor_pct: float | None = None
    p: float | None = None
    adjusted: float | None = None
    cause: str = ""
    why: str = ""
    regression: bool = False

    @property
    def change_pct(self) -> float | None:
        """How much longer B takes than A."""
        return None if self.ratio is None else (self.ratio - 1) * 100


@dataclass(frozen=True)
class Comparison:
    """Every row, and what else differs between the sides.

    limit_pct: see `compare`. widened: by what every interval was multiplied, because rows that
    are not ours lay farther apart than their errors allow.
    """

    a: Side
    b: Side
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    limit_pct: float
    one_gpu: bool
    widened: float = 1.0

    @property
    def exit_code(self) -> int:
        """3 where a row regressed, else 0."""
        return 3 if any(row.regression for row in self.rows) else 0


def compare(a: Side, b: Side, limit_pct: float = LIMIT_PCT) -> Comparison:
    """Judge every row of two sides.

    limit_pct: a change within ± this much is the same for the caller. A row that is SLOWER by
    more, and not because of its environment, is a regression, as is one that is BROKEN.

    Raises KernelbenchError where the sides have no row in common, or none that can be judged.
    """
    a, b, one_gpu = of_one_machine(a, b)
    found = [_by_key(side, one_gpu) for side in (a, b)]
    if not set(found[0]) & set(found[1]):
        raise KernelbenchError(_nothing_common(a, b, found))
    seen = [_seen(side, one_gpu) for side in (a, b)]
    judged: dict[Key, _Judged] = {}
    rows: dict[Key, Row] = {}
    for key in dict.fromkeys([*found[0], *found[1]]):
        sides = [records.get(key, []) for records in found]
        state = _state(*sides)
        pair = [where.get(key, []) for where in seen]
        rows[key] = _row(key, *sides, *state)
        if state[0] is None and all(pair):
            judged[key] = _Judged(*pair)
        elif state[0] is None:
            rows[key] = replace(rows[key], verdict=Verdict.unjudged, why=_untimed(*sides))
    settled = {Verdict.broken, Verdict.fixed}
    if not judged and not any(row.verdict in settled for row in rows.values()):
        told = dict.fromkeys(row.why for row in rows.values() if row.verdict is Verdict.unjudged)
        raise KernelbenchError(
            f"no row can be judged: {'; '.join(told) or 'nothing was timed on both sides'}. "
            "Measure both builds on a GPU without a profiler"
        )
    differing = differences(a, b)
    widened = 1.0 if any(d.system for d in differing) else _widened(rows, judged)
    rows |= _judge(rows, judged, limit_pct, widened)
    rows |= _attribute(rows, judged, differing)
    limit = 1 + limit_pct / 100
    final = (
        replace(r, regression=one_gpu and _regressed(r, limit))
        for r in rows.values()
        if r.why != _SKIPPED
    )
    return Comparison(a, b, tuple(final), differing, limit_pct, one_gpu, widened)


_SKIPPED = "skipped on both sides"


def _regressed(row: Row, limit: float) -> bool:
    slower = row.verdict is Verdict.slower and (row.ratio or 0) > limit
    return row.verdict is Verdict.broken or (slower and row.cause != Cause.environment)


def _key(record: RunRecord, one_gpu: bool) -> Key:
    return (*record.key, record.gpu if one_gpu else "")


def _by_key(side: Side, one_gpu: bool) -> dict[Key, list[RunRecord]]:
    found: dict[Key, list[RunRecord]] = {}
    for run in side.runs:
        for record in run.records:
            found.setdefault(_key(record, one_gpu), []).append(record)
    return found


def _seen(side: Side, one_gpu: bool) -> dict[Key, list[Seen]]:
    found: dict[Key, list[Seen]] = {}
    for seen in noise.observe([run.records for run in side.runs]):
        found.setdefault(_key(seen.record, one_gpu), []).append(seen)
    return found


def _nothing_common(a: Side, b: Side, found: Sequence[Mapping[Key, object]]) -> str:
    told = [
        f"{side.name} has {len(keys)} rows"
        + (f", such as {' '.join(next(iter(keys))[:3])}" if keys else "")
        for side, keys in zip((a, b), found, strict=True)
    ]
    return f"no row in common: {'; '.join(told)}. Compare runs of the same suite"


def _state(a: Sequence[RunRecord], b: Sequence[RunRecord]) -> tuple[Verdict | None, str]:
    """The verdict that follows from statuses alone, and why; None where times decide."""
    ran_a, ran_b = ([r for r in side if r.status is not Status.skipped] for side in (a, b))
    bad_a, bad_b = ([r for r in side if r.status.bad] for side in (ran_a, ran_b))
    if not ran_a and not ran_b:
        return Verdict.unjudged, _SKIPPED
    if not ran_a:
        return Verdict.new, _told(bad_b or [r for r in a if r.reason])
    if not ran_b:
        return Verdict.gone, _told(b)
    if bad_a and bad_b:
        return Verdict.bad, _told(bad_b)
    if bad_a or bad_b:
        bad, ran = (bad_a, ran_a) if bad_a else (bad_b, ran_b)
        some = f"{len(bad)} of {len(ran)} runs: " if len(bad) < len(ran) else ""
        return (Verdict.fixed if bad_a else Verdict.broken), some + _told(bad)
    works = [{(r.flops, r.read_bytes, r.write_bytes) for r in side} for side in (ran_a, ran_b)]
    if works[0] != works[1]:
        return Verdict.unjudged, "its case states other work (flops or bytes) than before"
    return None, ""


def _told(records: Sequence[RunRecord]) -> str:
    if not records:
        return ""
    reason = (records[0].reason.strip().splitlines() or [""])[0]
    return f"{records[0].status}: {reason}" if reason else str(records[0].status)


def _untimed(a: Sequence[RunRecord], b: Sequence[RunRecord]) -> str:
    """Why a row that is right on both sides has no times to compare."""
    told = []
    for name, side in (("A", a), ("B", b)):
        if not any(noise.gated(record) for record in side):
            timers = sorted({r.timing.timer if r.timing else "not timed" for r in side})
            told.append(f"{'/'.join(timers)} in {name}")
    return ", ".join(told) or "no time above the clock's own overhead"


def _row(
    key: Key, a: Sequence[RunRecord], b: Sequence[RunRecord], verdict: Verdict | None, why: str
) -> Row:
    record = (b or a)[0]
    return Row(
        family=record.family,
        case=record.case,
        provider=record.provider,
        gpu=key[3] or " → ".join(dict.fromkeys(r.gpu for r in (*a, *b))),
        role=record.role,
        mode=record.mode,
        dtype=record.dtype,
        label=record.label,
        verdict=verdict or Verdict.unsure,
        runs_a=len(a),
        runs_b=len(b),
        why=why,
    )


class _Judged:
    """The observations of a row, raw, and in cycles where the clocks of the sides differ."""

    def __init__(self, a: Sequence[Seen], b: Sequence[Seen]) -> None:
        self.a, self.b = a, b
        self.mhz = [_mean([s.mhz for s in side if s.mhz]) for side in (a, b)]
        self.cycles = all(s.mhz for s in (*a, *b)) and self.clocks_differ
        record = b[0].record
        self.normalised = self.cycles and _bound(record) == "compute"
        slowed = any(s.throttled for s in (*a, *b))
        self.kind = f"{record.family} {record.mode} {record.role} {slowed}"
        self.raw = _mean([s.log_ns for s in b]) - _mean([s.log_ns for s in a])
        self.in_cycles = self.raw + self._log_clock(b) - self._log_clock(a) if self.cycles else None

    @property
    def clocks_differ(self) -> bool:
        before, after = self.mhz
        return bool(before and after) and abs(after / before - 1) > CLOCKS_DIFFER

    @staticmethod
    def _log_clock(side: Sequence[Seen]) -> float:
        return _mean([math.log(s.mhz) for s in side if s.mhz])

    @property
    def log_ratio(self) -> float:
        return self.in_cycles if self.normalised and self.in_cycles is not None else self.raw

    def observed(self) -> noise.Row:
        """As `noise` wants it. A clock that was read is uncertain, and one that differs where
        nothing says whether the row depends on it makes the row so."""
        more = noise.CLOCK_READING**2 if self.normalised else 0.0
        if self.clocks_differ and not self.normalised and _bound(self.b[0].record) is None:
            more = math.log(self.mhz[1] / self.mhz[0]) ** 2
        sides = [
            tuple(s.log_ns + (math.log(s.mhz) if self.normalised and s.mhz else 0) for s in side)
            for side in (self.a, self.b)
        ]
        both = (*self.a, *self.b)
        least = _mean([s.within**2 for s in both])
        return noise.Row(self.kind, *sides, tuple(s.variance + more for s in both), least)


def _bound(record: RunRecord) -> str | None:
    share = metrics.share_of_ceiling(record)
    return share[1] if share else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _measures(judged: Mapping[Key, _Judged]) -> tuple[Floats, Floats, Floats]:
    """Of each row: the logarithm of B over A, its standard error, its degrees of freedom."""
    logs = np.array([each.log_ratio for each in judged.values()])
    pairs = noise.errors([each.observed() for each in judged.values()])
    error, degrees = np.array(pairs, np.float64).reshape(-1, 2).T
    return logs, error, degrees


def _widened(rows: Mapping[Key, Row], judged: Mapping[Key, _Judged]) -> float:
    """How much farther apart than their errors allow those rows lie that no change of ours can
    move: baselines, PyTorch's own and peers, on the same system. At least 1."""
    logs, error, _ = _measures(judged)
    t = (logs / error)[[not rows[key].role.ours for key in judged]]
    if len(t) < CONTROLS:
        return 1.0
    return max(1.0, 1.4826 * float(np.median(np.abs(t - np.median(t)))))


def _judge(
    rows: Mapping[Key, Row], judged: Mapping[Key, _Judged], limit_pct: float, widened: float
) -> dict[Key, Row]:
    """The rows that times decide. Significance is settled over all of them at once."""
    logs, error, degrees = _measures(judged)
    error = error * widened
    p = two_sided_p(logs / error, degrees)
    adjusted = false_discovery(p)
    limit = math.log1p(limit_pct / 100)
    found = {}
    for n, (key, each) in enumerate(judged.items()):
        reach = t_reach(int(degrees[n])) * error[n]
        verdict = _verdict(float(logs[n]), float(reach), adjusted[n] <= FALSE_SHARE, limit)
        found[key] = replace(
            rows[key],
            verdict=verdict,
            runs_a=len(each.a),
            runs_b=len(each.b),
            a_us=math.exp(_mean([s.log_ns for s in each.a])) / 1e3,
            b_us=math.exp(_mean([s.log_ns for s in each.b])) / 1e3,
            ratio=math.exp(logs[n]),
            lo=math.exp(logs[n] - reach),
            hi=_exp(logs[n] + reach),
            raw=math.exp(each.raw),
            normalised=None if each.in_cycles is None else math.exp(each.in_cycles),
            used="normalised" if each.normalised else "raw",
            a_mhz=each.mhz[0] or None,
            b_mhz=each.mhz[1] or None,
            floor_pct=max(s.reach for s in (*each.a, *each.b)) * 100 or None,
            p=float(p[n]),
            adjusted=float(adjusted[n]),
        )
    return found


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _verdict(log_ratio: float, reach: float, called: bool, limit: float) -> Verdict:
    if abs(log_ratio) + reach <= limit:
        return Verdict.same
    if not called:
        return Verdict.unsure
    return Verdict.slower if log_ratio > 0 else Verdict.faster


def _attribute(
    rows: Mapping[Key, Row], judged: Mapping[Key, _Judged], differing: Sequence[Difference]
) -> dict[Key, Row]:
    """The rows that moved, with what that is put down to."""
    shifts: dict[tuple[str, str, str], list[Shift]] = {}
    of: dict[Key, Shift] = {}
    for key in judged:
        row = rows[key]
        log_ratio, reach = math.log(row.ratio or 1), math.log((row.hi or 1) / (row.ratio or 1))
        of[key] = Shift(row.provider, row.role is Role.baseline, log_ratio, reach)
        shifts.setdefault((key[0], key[1], key[3]), []).append(of[key])
    found = {}
    for key, each in judged.items():
        if rows[key].verdict.moved:
            mates = [s for s in shifts[key[0], key[1], key[3]] if s is not of[key]]
            told, changed = why(of[key], mates, each.a, each.b)
            put_down = cause(of[key], mates, differing, changed)
            found[key] = replace(rows[key], cause=put_down.value, why=told)
    return found
