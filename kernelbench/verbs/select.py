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
from kernelbench.metrics import RANKS
from kernelbench.report import sheet
from kernelbench.report.progress import Output
from kernelbench.report.sheet import Sheet
from kernelbench.report.tables import figures, percent
from kernelbench.report.waits import waiting
from kernelbench.spec import RunRecord, Status, UsageError, architecture, suggest
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
    """Records of all runs, their manifests by run, who won twice, what could not be read, and the
    exit code of a run that was interrupted."""

    records: list[RunRecord] = field(default_factory=list)
    manifests: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    confirmed: set[select.Row] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    interrupted: int = 0

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
    if request.verify is not None and (request.out or request.python):
        raise UsageError("--verify makes no table: leave out --out and --python")
    table = _table(request.verify) if request.verify is not None else None
    measured = _measured(request, output)
    if measured.interrupted:
        output.err(f"exit {measured.interrupted}: interrupted. Nothing was chosen; the run is kept")
        return measured.interrupted
    _refuse_unknown(request, measured.records)
    measured.records, older = select.current(measured.records)
    for line in (*measured.problems, *older):
        output.warn(line)
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


def _refuse_unknown(request: SelectRequest, records: Sequence[RunRecord]) -> None:
    families, providers = ({getattr(r, n) for r in records} for n in ("family", "provider"))
    asked = (
        ("--family", request.families, families),
        ("--provider", request.rules.providers, providers),
    )
    for option, names, known in asked:
        for name in names:
            if name not in known:
                raise UsageError(
                    f"{option}: no {name!r} in these runs{suggest(name, sorted(known))}"
                )


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
        measured.interrupted = outcome.interrupted
        again = [] if measured.interrupted else _again(each, records, request.rules, output)
        if again:
            once = replace(each, jobs=tuple(again))
            outcome, folder = run_one(once, Options(), request.runs, output)
            twice = select.winners(measured.read([folder], ()), request.rules)
            measured.confirmed |= select.suspects(records, request.rules) & twice
            measured.interrupted = outcome.interrupted
        if measured.interrupted:
            return


def _again(
    run_plan: "Plan",
    records: Sequence[RunRecord],
    rules: select.Rules,
    output: Output,
) -> "list[Job]":
    """The jobs to measure besides, and why is said."""
    doubtful = {row[:2] for row in select.suspects(records, rules)}
    full = {record.row[:2] for record in records if record.status is Status.oom}
    jobs = []
    for job in run_plan.jobs:
        key = job.family, job.case.id
        if key in doubtful:
            output.note(f"{'/'.join(key)}: won under suspicion, so it is measured once more")
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
    """The job at half of its largest size, if there is such a case."""
    numbers = {n: v for n, v in job.case.as_axes().items() if type(v) is int and n != RANKS}
    sizes = {name: value for name, value in numbers.items() if value > 1}
    if not sizes:
        return None
    largest = max(sizes, key=lambda name: sizes[name])
    axes = {**job.case.as_axes(), largest: sizes[largest] // 2}
    try:
        case = type(job.case).from_axes(axes)
    except UsageError:  # half of that is no case
        return None
    return replace(job, case=case, label=f"{job.label} (half)".strip())


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
    own = replace(rules, margin=table.margin, approximate=table.approximate)
    regrets = select.verify(dispatch, measured.records, own)
    held_out = [each.pct for each in regrets if each.choice.how != "measured"]
    if not held_out:
        raise UsageError("the table has every case of these that has a baseline with a time")
    mean, worst = fmean(held_out), max(held_out)
    if output.as_json:
        cases = [asdict(each) | {"pct": _number(each.pct)} for each in regrets]
        facts = {"mean_pct": _number(mean), "worst_pct": _number(worst), "cases": cases}
        print(json.dumps(facts, allow_nan=False))
    else:
        _show_regrets(regrets, output)
        cases_text = f"{len(held_out)} case{'s' * (len(held_out) > 1)} that the table has not"
        output.console.print(
            f"\n{cases_text}: mean regret {percent(mean)}, worst {percent(worst)}, derived from "
            f"medians; accepted: mean {MEAN_PCT:g}%, worst {WORST_PCT:g}%"
        )
    return int(mean >= MEAN_PCT or worst >= WORST_PCT)


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


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
