"""From records to a dispatch table: who is worth it, and why; and what its choices cost elsewhere.

A provider beats the baseline where it is right and the lower end of the 95 % interval of its
speedup exceeds the margin. Of those the fastest is chosen, unless a simpler one is as fast: what
cannot be told from it, within the interval of their ratio, and comes earlier in `SIMPLER`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from kernelbench import metrics
from kernelbench.dispatch import Choice, Dispatch, Entry, FamilyTable, Option, Table, Where
from kernelbench.dispatch.table import MARGIN, Axis
from kernelbench.numbers import times
from kernelbench.spec import Accuracy, Role, RunRecord, Status, UsageError

SIMPLER = (Role.baseline, Role.torch_fused, Role.triton_fused, Role.peer, Role.ablation)
SUSPICIOUS = ("shared", "throttled", "beyond-model")  # flags, to a colon
SUSPECT = "suspicious"
FIELDS = tuple(each.name for each in fields(Where))
NO_SIZES = ("dtype", "mode", "inputs")  # axes that are none of an entry's


Row = tuple[str, str, str]  # family, case, provider


@dataclass(frozen=True, kw_only=True)
class Rules:
    """margin: what the lower end of a speedup exceeds. approximate: whether such providers may be
    chosen. providers: those that may be, beside the baseline; all unless given. confirmed: who won
    twice, whose flags do not count: (family, case, provider)."""

    margin: float = MARGIN
    approximate: bool = False
    providers: tuple[str, ...] = ()
    confirmed: frozenset[Row] = frozenset()

    def bars(self, record: RunRecord) -> str:
        """Why a provider that is not the baseline may never be chosen, or ""."""
        reasons = (
            (bool(self.providers) and record.provider not in self.providers, "not asked for"),
            (record.accuracy is Accuracy.approximate and not self.approximate, "approximate"),
            (record.prepacked, "prepacked"),
            (record.role is Role.ablation, "an ablation"),
        )
        return next((why for holds, why in reasons if holds), "")

    def excludes(self, record: RunRecord, over_baseline: metrics.Speedup | None) -> str:
        """Why it may not be chosen at this case, or ""."""
        if record.status is not Status.ok:
            return f"{record.status.value}: {record.reason}"
        if why := self.bars(record):
            return why
        if over_baseline is None:
            return "it was not timed beside the baseline"
        flags = _doubts(record)
        if flags and over_baseline.over.lo > self.margin and record.row not in self.confirmed:
            return f"{SUSPECT} ({', '.join(flags)}): it has to win twice"
        return ""


def _doubts(record: RunRecord) -> list[str]:
    """The flags that make a win suspicious."""
    flags = [flag for flag in record.flags if flag.partition(":")[0] in SUSPICIOUS]
    timings = (process.timing for process in record.processes)
    traced = any(timing and times.differs_when_traced(timing) for timing in timings)
    return [*flags, *(["differs-when-traced"] if traced else [])]


def current(records: Sequence[RunRecord]) -> tuple[list[RunRecord], list[str]]:
    """Of each family the records of the code and the method that were measured last, which alone
    say something of what runs today; and in words what is left out."""
    newest: dict[str, RunRecord] = {}
    for record in sorted(records, key=lambda each: each.utc):
        newest[record.family] = record
    build = {name: (each.source, each.method) for name, each in newest.items()}
    kept = [each for each in records if (each.source, each.method) == build[each.family]]
    left = Counter(r.family for r in records) - Counter(r.family for r in kept)
    return kept, [
        f"{name}: {count} records of older code or of another method are left out"
        for name, count in left.items()
    ]


def select(
    records: Sequence[RunRecord],
    where: Where,
    defaults: Mapping[str, Mapping[str, Axis]],
    rules: Rules | None = None,
    runs: Sequence[str] = (),
) -> Table:
    """The table of these records, which are of one machine, processes of a run together, as far as
    they are `current`; of a case that several runs have, the last one whose baseline has a time.

    defaults: of the axes, by family. Raises UsageError where no case can be decided.
    """
    rules, entries = rules or Rules(), dict[str, dict[str, Entry]]()
    baselines: dict[str, RunRecord] = {}
    for baseline, group in _cases(current(records)[0]):
        baselines[baseline.family] = baseline
        entry = _entry(baseline, group, rules)
        entries.setdefault(baseline.family, {})[baseline.case] = entry
    if not entries:
        raise UsageError(
            "no case has a baseline with a time of a GPU, which a choice needs: measure one, "
            "kernelbench run SUITE"
        )
    families = {
        name: FamilyTable(
            baseline=baselines[name].provider,
            source=baselines[name].source,
            defaults=_sizes(defaults.get(name, {})),
            entries=tuple(found.values()),
        )
        for name, found in entries.items()
    }
    return Table(
        where=where,
        families=families,
        margin=rules.margin,
        approximate=rules.approximate,
        runs=tuple(runs),
    )


def _sizes(axes: Mapping[str, Any]) -> dict[str, Axis]:
    return {name: value for name, value in axes.items() if name not in NO_SIZES}


def _cases(records: Iterable[RunRecord]) -> Iterator[tuple[RunRecord, list[RunRecord]]]:
    """Of each case the baseline and all records, of the last run in which the former has a time."""
    cases: dict[tuple[str, str], dict[str, list[RunRecord]]] = {}
    for record in records:
        if record.axes.get("inputs", "normal") == "normal":
            runs = cases.setdefault(record.row[:2], {})
            runs.setdefault(record.run_id, []).append(record)
    for runs in cases.values():
        timed = [(b, group) for group in runs.values() if (b := _baseline(group)) is not None]
        if timed:
            yield max(timed, key=lambda each: max(record.utc for record in each[1]))


def _baseline(group: Sequence[RunRecord]) -> RunRecord | None:
    return next((r for r in group if r.role is Role.baseline and metrics.timed(r)), None)


def suspects(records: Sequence[RunRecord], rules: Rules) -> set[Row]:
    """Who has to win twice."""
    return {
        (*baseline.row[:2], provider)
        for baseline, group in _cases(records)
        for provider, why in _entry(baseline, group, rules).excluded.items()
        if why.startswith(SUSPECT)
    }


def winners(records: Sequence[RunRecord], rules: Rules) -> set[Row]:
    """Who is worth it, flagged or not."""
    trusting = replace(rules, confirmed=frozenset(record.row for record in records))
    return {
        (*baseline.row[:2], option.provider)
        for baseline, group in _cases(records)
        for option in _entry(baseline, group, trusting).options
        if option.lo > rules.margin
    }


def _entry(baseline: RunRecord, group: Sequence[RunRecord], rules: Rules) -> Entry:
    excluded = dict[str, str]()
    able: list[_Able] = [(baseline, Option(baseline.provider, 1.0, 1.0, 1.0))]
    for record in group:
        if record is baseline:
            continue
        found = metrics.speedup(record, baseline)
        if why := rules.excludes(record, found):
            excluded[record.provider] = why
        elif found is not None:
            over = found.over
            able.append((record, Option(record.provider, over.mid, over.lo, over.hi)))
    ranked = [*_ranked(able, rules.margin)]
    return Entry(
        dtype=baseline.dtype,
        mode=baseline.mode,
        axes=_sizes(baseline.axes),
        options=tuple(option for _, option in ranked),
        excluded=excluded,
        reason=_reason(ranked, rules.margin),
        regret_pct=_regret(ranked),
        processes=len(baseline.processes),
    )


_Able = tuple[RunRecord, Option]


def _ranked(able: Sequence[_Able], margin: float) -> Iterator[_Able]:
    """The baseline first of `able`, then the others. Yields the best first, until it is the
    baseline; behind it the fastest first."""
    baseline, *others = able
    worth = [each for each in others if each[1].lo > margin]
    behind = [each for each in others if each[1].lo <= margin]
    while worth:
        best = _best(worth)
        worth.remove(best)
        yield best
    yield baseline
    yield from sorted(behind, key=lambda each: -each[1].speedup)


def _best(worth: Sequence[_Able]) -> _Able:
    """The simplest of those that are as fast as the fastest, as far as can be told."""
    fastest = max(worth, key=lambda each: each[1].speedup)
    as_fast = [each for each in worth if each is fastest or _as_fast(each[0], fastest[0])]
    return min(as_fast, key=lambda each: (SIMPLER.index(each[0].role), -each[1].speedup))


def _as_fast(record: RunRecord, fastest: RunRecord) -> bool:
    lead = metrics.speedup(fastest, record)
    return lead is not None and lead.over.lo <= 1


def _reason(ranked: Sequence[_Able], margin: float) -> str:
    (record, option), *others = ranked
    if record.role is not Role.baseline:
        faster = [other.provider for _, other in others if other.speedup > option.speedup]
        text = f"{option.speedup:.3g} × the baseline, at least {option.lo:.3g}"
        names = ", ".join(faster)
        return f"{text}; simpler than {names}, which cannot be told from it" if faster else text
    if not others:
        return "nothing else may be chosen"
    best = others[0][1]
    return f"{best.provider} is {best.speedup:.3g} ×, at least {best.lo:.3g}, not beyond {margin:g}"


def _regret(ranked: Sequence[_Able]) -> float:
    """In %, what the chosen one may take longer than the fastest, at the bad end of an interval."""
    chosen, others = ranked[0][0], [record for record, _ in ranked[1:]]
    leads = [lead.over.hi for other in others if (lead := metrics.speedup(other, chosen))]
    return max(0.0, (max(leads, default=1.0) - 1) * 100)


@dataclass(frozen=True)
class Regret:
    """What a table's choice costs at a case that it was not made from. pct: by how much it takes
    longer than the fastest that may be chosen; infinite where it has no time there. always: the
    same of each of those."""

    family: str
    case: str
    choice: Choice
    best: str
    pct: float
    always: Mapping[str, float]


def verify(dispatch: Dispatch, records: Sequence[RunRecord], rules: Rules) -> list[Regret]:
    """The regret of every case of these records that has a baseline with a time. A caller has all
    that the rules do not bar, whether it is right there or not."""
    regrets = []
    for baseline, group in _cases(records):
        entry = _entry(baseline, group, rules)
        speed = {option.provider: option.speedup for option in entry.options}
        others = [r.provider for r in group if r is not baseline and not rules.bars(r)]
        choice = dispatch.choose(
            baseline.family,
            entry.dtype,
            entry.mode,
            tuple(entry.axes.items()),
            (baseline.provider, *others),
        )
        best = max(speed, key=lambda name: speed[name])
        always = {name: (speed[best] / each - 1) * 100 for name, each in speed.items()}
        pct = always.get(choice.provider, math.inf)
        regrets.append(Regret(*baseline.row[:2], choice, best, pct, always))
    return regrets


def where_of(manifests: Sequence[Mapping[str, Any]]) -> Where:
    """The machine of these runs. Raises UsageError where they are of several, saying so."""
    places = dict.fromkeys(map(_where, manifests))
    if len(places) > 1:
        values = ((name, {getattr(place, name) for place in places}) for name in FIELDS)
        several = (
            f"{name} {' and '.join(sorted(found or 'unknown' for found in each))}"
            for name, each in values
            if len(each) > 1
        )
        raise UsageError(
            f"these runs are of different machines or versions: {', '.join(several)}. A table is "
            "of one: name runs of one"
        )
    return next(iter(places), Where())


def _where(manifest: Mapping[str, Any]) -> Where:
    machine = manifest.get("machine", {})
    versions = machine.get("versions", {})
    return Where(
        gpu=str(machine.get("name", "")),
        arch=str(machine.get("arch") or ""),
        driver=str(versions.get("driver", "")),
        torch=str(versions.get("torch", "")),
        triton=str(versions.get("triton", "")),
    )
