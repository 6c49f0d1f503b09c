"""`kernelbench select`: a dispatch table from runs, without torch, or by measuring suites now."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from kernelbench import files, select, store
from kernelbench.dispatch import Dispatch, Entry, Table, TableError, as_python
from kernelbench.report import sheet
from kernelbench.report.progress import Output
from kernelbench.report.sheet import Sheet
from kernelbench.report.tables import figures, percent
from kernelbench.report.waits import waiting
from kernelbench.spec import RunRecord, Status, UsageError, architecture
from kernelbench.verbs.list import facts_of

if TYPE_CHECKING:
    from kernelbench.run.plan import Plan
    from kernelbench.spec import Job

MEAN_PCT, WORST_PCT = 1.0, 5.0  # regrets that `--verify` accepts
KINDS = (
    "measured: speedups, of their runs. derived: regret, what the choice may take longer than the "
    "fastest, at the bad end of the interval of their ratio."
)


@dataclass(frozen=True, kw_only=True)
class SelectRequest:
    """What `kernelbench select` is asked.

    sources: run folders, or folders of them; or suites, which are measured first. families: those
        to choose for, all unless given.
    out, python: the files of the table and of the tree. verify: a table that is held against these
        measurements, instead of making one. runs: where new runs go.
    """

    sources: tuple[str, ...]
    families: tuple[str, ...] = ()
    rules: select.Rules = field(default_factory=select.Rules)
    out: Path | None = None
    python: Path | None = None
    verify: Path | None = None
    plugins: tuple[str, ...] = ()
    runs: Path = Path("results")


def rules(margin: float, approximate: bool, providers: tuple[str, ...]) -> select.Rules:
    """Raises UsageError for a margin that is none."""
    if not 1 <= margin < math.inf:
        raise UsageError(f"--margin is a ratio of at least 1, got {margin:g}")
    return select.Rules(margin=margin, approximate=approximate, providers=providers)


@dataclass
class _Measured:
    """Records of all runs, their manifests by run, the cases that were measured twice, and what
    could not be read."""

    records: list[RunRecord] = field(default_factory=list)
    manifests: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    confirmed: set[tuple[str, str]] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def read(self, folders: Sequence[Path], families: Sequence[str]) -> list[RunRecord]:
        """Add these runs; returns their records."""
        found = list[RunRecord]()
        for folder in folders:
            records, damaged = store.read_with_problems(folder)
            found += [r for r in records if not families or r.family in families]
            self.manifests[folder.name] = store.read_manifest(folder)
            self.problems += damaged
        self.records += found
        return found


def select_(request: SelectRequest, output: Output) -> int:
    """Make a table, show it, and write it where asked; or verify one. Exit code 1 where regrets
    exceed what is accepted, or where a line could not be read.

    Raises UsageError for what cannot be chosen from, KernelbenchError for runs and tables that
    cannot be read.
    """
    if not request.sources:
        raise UsageError("name runs, as results/, or suites, which are measured first")
    table = _table(request.verify) if request.verify is not None else None
    measured = _measured(request, output)
    for problem in measured.problems:
        output.warn(problem)
    rules = replace(request.rules, confirmed=frozenset(measured.confirmed))
    code = int(bool(measured.problems))
    if table is not None:
        return _verify(table, measured, rules, output) or code
    defaults = {
        facts["name"]: {axis["name"]: axis["default"] for axis in facts["axes"]}
        for facts in facts_of(request.plugins)
    }
    known = {
        name: {k: v for k, v in each.items() if v is not None} for name, each in defaults.items()
    }
    where = select.where_of([*measured.manifests.values()])
    made = select.select(measured.records, where, known, rules, [*measured.manifests])
    if request.out is not None:
        files.deliver(request.out, made.to_json())
    if request.python is not None:
        files.deliver(request.python, as_python(made))
    if output.as_json:
        print(made.to_json(), end="")
    else:
        _show(made, output)
    return code


def _table(path: Path) -> Table:
    try:
        return Table.read(path)
    except TableError as error:
        raise UsageError(f"--verify: {error}") from None


def _measured(request: SelectRequest, output: Output) -> _Measured:
    measured = _Measured()
    folders = [Path(source) for source in request.sources if Path(source).is_dir()]
    suites = [source for source in request.sources if not Path(source).is_dir()]
    with waiting("reading the runs", output.waits):
        measured.read(store.find_runs(folders) if folders else [], request.families)
    if suites:
        _measure(suites, request, measured, output)
    return measured


def _measure(
    suites: Sequence[str], request: SelectRequest, measured: _Measured, output: Output
) -> None:
    """Measure suites, then once more what won under suspicion, and at half the size what had no
    room."""
    from kernelbench.run import plan
    from kernelbench.run.runner import Options
    from kernelbench.suite.request import Selection
    from kernelbench.verbs.run import LOADING, run_one

    narrow = {"family": list(request.families)}
    with waiting(LOADING, output.waits):
        plans = plan.new(suites, Selection(plugins=request.plugins, narrow=narrow))
    for each in plans:
        outcome, folder = run_one(each, Options(), request.runs, output)
        records = measured.read([folder], ())
        again = _again(each, records, request.rules, measured, output)
        if again and not outcome.interrupted:
            _, folder = run_one(replace(each, jobs=tuple(again)), Options(), request.runs, output)
            measured.read([folder], ())


def _again(
    run_plan: "Plan",
    records: Sequence[RunRecord],
    rules: select.Rules,
    measured: _Measured,
    output: Output,
) -> "list[Job]":
    """The jobs to measure besides, and why is said."""
    doubtful = select.suspects(records, rules)
    full = {record.row[:2] for record in records if record.status is Status.oom}
    jobs = []
    for job in run_plan.jobs:
        key = job.family, job.case.id
        if key in doubtful:
            output.note(f"{'/'.join(key)}: won under suspicion, so it is measured once more")
            measured.confirmed.add(key)
            jobs.append(job)
        elif key in full:
            half = _half(job)
            output.note(
                f"{'/'.join(key)}: out of memory, which keeps the baseline; "
                + (f"{half.case.id} is measured instead" if half else "it has no smaller size")
            )
            jobs += [half] if half else []
    return jobs


def _half(job: "Job") -> "Job | None":
    """The job at half of its largest size."""
    sizes = {n: v for n, v in job.case.as_axes().items() if type(v) is int and v > 1}
    if not sizes:
        return None
    largest = max(sizes, key=lambda name: sizes[name])
    axes = {**job.case.as_axes(), largest: sizes[largest] // 2}
    return replace(job, case=type(job.case).from_axes(axes), label=f"{job.label} (half)".strip())


def _show(table: Table, output: Output) -> None:
    heads = ("Config", "choice", "× baseline\n[95% interval]", "runner-up", "regret", "why")
    kinds: dict[tuple[str, str, str], list[Entry]] = {}
    for name, entry in table.entries():
        kinds.setdefault((name, entry.mode, entry.dtype), []).append(entry)
    for key, entries in kinds.items():
        axes = entries[0].axes
        swept = {n for n in axes if len({e.axes.get(n) for e in entries}) > 1} or {*axes}
        lines = tuple(_line(entry, swept, table.families[key[0]].baseline) for entry in entries)
        words = frozenset({"Config", "choice", "runner-up", "why"})
        output.console.print()
        sheet.show(Sheet(" · ".join(key), heads, lines, words=words), output.console)
    within = sorted({entry.processes for _, entry in table.entries()})
    over = " or ".join("one process" if n == 1 else f"{n} processes" for n in within)
    output.console.print(f"\n{table.where}; margin {table.margin:g}. {KINDS} Intervals: of {over}.")
    known = architecture(table.where.arch)
    for line in known.advice({entry.dtype for _, entry in table.entries()}) if known else ():
        output.note(line)


def _line(entry: Entry, swept: set[str], baseline: str) -> tuple[str, ...]:
    option, kept = entry.options[0], entry.choice == baseline
    config = " ".join(f"{name}={value}" for name, value in entry.axes.items() if name in swept)
    ends = "" if kept else f" [{figures(option.lo)}, {figures(option.hi)}]"
    speed = f"{figures(option.speedup)}{ends}"
    plain, _, why = entry.reason.partition("; ")  # the former stands in the other columns
    why = plain if kept else why
    return (config, entry.choice, speed, entry.runner_up, percent(entry.regret_pct), why)


def _verify(table: Table, measured: _Measured, rules: select.Rules, output: Output) -> int:
    """Hold a table against measurements of other cases. Exit code 1 where it loses too much."""
    here = select.where_of([*measured.manifests.values()])
    sources = {record.family: record.source for record in measured.records}
    dispatch = Dispatch(table, here, sources, say=output.warn)
    regrets = select.verify(dispatch, measured.records, rules)
    if not regrets:
        raise UsageError("no case of these has a baseline with a time of a GPU")
    mean, worst = fmean(each.pct for each in regrets), max(each.pct for each in regrets)
    if output.as_json:
        facts = {"mean_pct": mean, "worst_pct": worst, "cases": [asdict(each) for each in regrets]}
        print(json.dumps(facts))
    else:
        _show_regrets(regrets, output)
        output.console.print(
            f"\n{len(regrets)} case{'s' * (len(regrets) > 1)}: mean regret {percent(mean)}, worst "
            f"{percent(worst)}, derived from medians; accepted: mean {MEAN_PCT:g}%, worst "
            f"{WORST_PCT:g}%"
        )
    return int(mean >= MEAN_PCT or worst >= WORST_PCT)


def _show_regrets(regrets: Sequence[select.Regret], output: Output) -> None:
    for family in dict.fromkeys(each.family for each in regrets):
        of = [each for each in regrets if each.family == family]
        lines = [
            (each.case, each.choice.provider, each.choice.how, each.best, percent(each.pct))
            for each in of
        ]
        heads = ("Case", "choice", "how", "fastest", "regret")
        words = frozenset({*heads} - {"regret"})
        output.console.print()
        sheet.show(Sheet(f"{family} · choices", heads, tuple(lines), words=words), output.console)
        everywhere = dict.fromkeys(name for each in of for name in each.always)
        always = [
            (name, str(len(found)), percent(fmean(found)), percent(max(found)))
            for name in everywhere
            if (found := [each.always[name] for each in of if name in each.always])
        ]
        output.console.print()
        heads_of = ("always", "cases", "mean regret", "worst")
        title = f"{family} · without a choice"
        sheet.show(
            Sheet(title, heads_of, tuple(always), words=frozenset({"always"})), output.console
        )
