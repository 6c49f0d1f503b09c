"""`kernelbench fanout`: a suite over many machines, and one report of what they found."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from kernelbench import __version__
from kernelbench.fanout import gather, state, watch
from kernelbench.fanout.shards import Shard, cut
from kernelbench.fanout.state import State, Where
from kernelbench.report.progress import Output
from kernelbench.report.waits import waiting
from kernelbench.run import plan
from kernelbench.run.plan import Plan
from kernelbench.spec import UsageError, suggest
from kernelbench.suite import Executor
from kernelbench.suite.request import RunRequest
from kernelbench.verbs.report import ReportRequest, report
from kernelbench.verbs.run import LOADING

__all__ = ["FanoutRequest", "RunRequest", "fanout"]

ENGINES = ("slurm", "ray")


@dataclass(frozen=True, kw_only=True)
class FanoutRequest:
    """What `kernelbench fanout` is asked.

    run: as for `kernelbench run`: a suite to begin, or in `resume` the folder of a fan-out to go on
    with. flags: of the suite's `executor`, which they replace. wait: until all shards have ended.
    """

    engine: str
    run: RunRequest
    count: int
    by: str = "hash"
    flags: Mapping[str, str | int] = field(default_factory=dict)
    local: bool = False
    wait: bool = True


def fanout(request: FanoutRequest, output: Output) -> int:
    """Submit what is to be measured, wait, and report. Exit code 1 where a provider is bad, or a
    shard lost.

    Raises UsageError for what cannot be asked, KernelbenchError for what cannot be submitted.
    """
    _refuse(request)
    folder = request.run.resume
    if folder is None:
        planned, shards = _begin(request, output)
        if request.run.dry_run:
            return _show(shards, output)
        _package(request.engine)
        folder = _create(request, planned, shards).folder
    with state.held(folder):
        found = _resumed(request, folder)
        output.note(f"fan-out: {found.folder}")
        engine = _engine(request, found)
        try:
            watch.watch(found, engine, output.note, wait=request.wait)
        except KeyboardInterrupt:
            gather.gather(found)
            output.err(f"interrupted. Go on: {_again(found)}")
            raise
        return _report(found, output)


def _refuse(request: FanoutRequest) -> None:
    if request.engine not in ENGINES:
        raise UsageError(
            f"no way to fan out by {request.engine!r}{suggest(request.engine, ENGINES)}"
        )
    if len(request.run.suites) != (request.run.resume is None):
        raise UsageError("fanout takes one suite; with --resume none, since it is known")
    if request.run.resume:
        asked = replace(request.run, resume=None, narrow={})
        if asked != RunRequest() or request.run.narrows:
            raise UsageError("--resume goes on as it was begun; only --partition, --gres, --time")
    if not request.wait and (request.local or request.engine == "ray"):
        raise UsageError("--no-wait is for a Slurm cluster: other shards end with this program")
    if request.engine == "ray" and request.flags:
        raise UsageError(f"--{next(iter(request.flags))} is Slurm's; Ray goes by the suite's gpus")


def _begin(request: FanoutRequest, output: Output) -> tuple[Plan, list[Shard]]:
    with waiting(LOADING, output.waits):
        flags = [f"executor.{name}={json.dumps(value)}" for name, value in request.flags.items()]
        overrides = (*request.run.overrides, *flags)
        [found] = plan.new(request.run.suites, replace(request.run, overrides=overrides))
    plan.refuse_many([found], request.run.yes)
    gpus = found.suite.gpus
    return found, cut(found.jobs, request.count, request.by, gpus, device=found.device)


def _create(request: FanoutRequest, planned: Plan, shards: Sequence[Shard]) -> State:
    suite, asked, manifest = planned.suite, request.run, planned.manifest({})
    facts = {name: manifest[name] for name in ("git", "argv", "asked", "suite_text")}
    facts |= {"suite": suite.name, "kernelbench": __version__}
    known = State(Path(), request.engine, suite.executor, planned.device, facts, [])
    options = options_of(replace(asked, device=planned.device))
    return state.create(asked.out, shards, suite.path, asked.plugins, options, known)


def options_of(asked: RunRequest) -> list[str]:
    """What was asked of `kernelbench run`, as its options, but for which jobs and where."""
    pairs = [("--set", value) for value in asked.overrides]
    for name in ("provider", "skip"):
        pairs += [(f"--{name}", value) for value in asked.narrow.get(name, ())]
    pairs += [("--device", asked.device), ("--seed", str(asked.seed))]
    pairs += [("--timeout", f"{asked.timeout_s:g}")]
    return [*(word for pair in pairs for word in pair), *["--quick"] * asked.quick]


def _resumed(request: FanoutRequest, folder: Path) -> State:
    """Lost shards, and those not begun, are to be submitted again, perhaps elsewhere."""
    found = state.load(folder)
    engine = request.engine
    if found.engine != engine and found.of(Where.submitted):
        raise UsageError(f"{folder}: some shards are still with {found.engine}; resume there")
    found.engine = engine
    for entry in found.of(Where.lost):
        entry.where = Where.waiting
    found.executor = Executor.model_validate({**found.executor.model_dump(), **request.flags})
    return found


def _package(engine: str) -> None:
    """Raises UsageError for one that is not installed, before anything is made."""
    if engine == "ray":
        from kernelbench.fanout import ray

        ray.package()
    else:
        from kernelbench.fanout import slurm

        slurm.submitit()


def _engine(request: FanoutRequest, found: State) -> watch.Engine:
    name = f"kernelbench-{found.facts['suite']}"
    if request.engine == "ray":
        from kernelbench.fanout.ray import Ray

        return Ray(found.folder, found.executor, local=request.local)
    from kernelbench.fanout.slurm import Local, Slurm

    if request.local:
        return Local(found.folder, found.executor, name, gpu=found.device != "cpu")
    return Slurm(found.folder, found.executor, name)


def _report(found: State, output: Output) -> int:
    runs, lost = gather.gather(found), found.of(Where.lost)
    open_ = found.of(Where.submitted)
    code = 0
    if runs and not open_:
        format = "json" if output.as_json else "table"
        code = report(ReportRequest(folders=tuple(runs), format=format), output)
    if open_:
        output.err(f"{len(open_)} shards submitted. Their state, and a report: {_again(found)}")
    for entry in lost:
        output.warn(watch.told(entry))
    if lost:
        names = ", ".join(entry.shard.name for entry in lost)
        output.err(f"exit 1: lost shard {names}. Only what is missing: {_again(found)}")
    elif not open_:
        output.note(f"all of it: kernelbench report {found.folder}")
    return code or int(bool(lost))


def _again(found: State) -> str:
    return f"kernelbench fanout {found.engine} --resume {found.folder}"


def _show(shards: Sequence[Shard], output: Output) -> int:
    """The shards, instead of submitting them."""
    if output.as_json:
        print(json.dumps([asdict(shard) for shard in shards]))
        return 0
    for shard in shards:
        output.say(f"{_line(shard)}")
        if not output.quiet:
            output.say("".join(f"  {job}\n" for job in shard.jobs).rstrip())
    return 0


def _line(shard: Shard) -> str:
    where: Sequence[str] = [f"{shard.gpus} × {shard.gpu or 'GPU'}"] if shard.gpus else ["no GPU"]
    return f"shard {shard.name}: {len(shard.jobs)} jobs, {where[0]}"
