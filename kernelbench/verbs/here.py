"""`kernelbench.bench`: the same as the command, from Python, of functions that are at hand.

Everything runs in this process: what the command isolates in a worker of its own (a crash, a
hang, switches that a function sets) is then the caller's.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console

from kernelbench import families, store, suite
from kernelbench.families import functions as made
from kernelbench.families.functions import arguments as grammar
from kernelbench.families.functions import preflight
from kernelbench.families.functions.at_hand import arguments_of, target_of
from kernelbench.families.functions.targets import takes
from kernelbench.measure.ambient import Ambient
from kernelbench.measure.environment import settled
from kernelbench.report.progress import Silent
from kernelbench.report.records import Records
from kernelbench.run.here import here
from kernelbench.run.loop import prove_jobs, run_jobs
from kernelbench.run.plan import Plan
from kernelbench.run.runner import Options
from kernelbench.spec import (
    COMPILE,
    Declaration,
    Family,
    Job,
    Measure,
    Mode,
    UsageError,
    suggest,
)
from kernelbench.suite.request import Selection

Function = Callable[..., Any] | str
Sizes = Mapping[str, int | Sequence[int]]


def bench(
    *candidates: Function,
    against: Function | None = None,
    args: str | Mapping[str, Any] = "",
    sizes: Sizes | None = None,
    grad: bool | Sequence[str] = False,
    compile: bool = False,
    inputs: Function | None = None,
    oracle: Function | None = None,
    max_error: float | Mapping[str, float] | None = None,
    name: str = "",
    device: str = "auto",
    seed: int = 0,
    timing: bool = True,
    out: str | Path | None = None,
    measure: Mapping[str, Any] | None = None,
    providers: Sequence[str] = (),
    **axes: Any,
) -> Records:
    """Prove functions right by a reference, and time them together, in this process.

    candidates: functions, nn.Modules, or targets as the command line names them (`my.py:fused`);
        or the name of one family, of whose cases `axes` are: `bench("rms_norm", M=8, N=[5, 6])`.
    against: the reference: the baseline and, in fp64, the oracle.
    args: `"x=4096x1024:bf16, w=1024:bf16"` (families.functions.arguments), or tensors and numbers
        by name: a floating tensor stands for its shape and dtype, values are drawn.
    sizes: values of the sizes in args, `{"M": [1024, 4096]}`.
    grad: whether the backward is measured, too; of which arguments.
    compile: the reference compiled is measured, too, static and max-autotune.
    inputs, oracle, max_error, name: as `kernelbench bench --help` says.
    device: `cuda`, `cpu` or `auto`. On a CPU nothing is timed.
    timing: False only proves, and keeps nothing.
    out: the folder that run folders are made in; None keeps nothing.
    measure: fields of `spec.Measure`, such as `{"max_seconds": 0.5}`.
    providers: of a family, those that are measured beside its baseline; all unless given.

    Returns the records, which print as tables. Raises UsageError for what cannot be measured, and
    NoGPUError for a GPU that is not there.
    """
    if against is None:
        if args or sizes or grad or compile or inputs or oracle or max_error:
            raise UsageError(
                "bench: args and the like are for functions: name a reference, against=…"
            )
        family, cases = _of_family(candidates, axes)
    else:
        if axes:
            raise UsageError(f"bench: {', '.join(axes)}: with `against` arguments stand in `args`")
        family, cases = _of_functions(
            candidates, against, args, sizes or {}, grad, compile, inputs, oracle, max_error, name
        )
    names = _providers(family, providers)
    jobs = [
        Job(
            family=family.name,
            case=case,
            providers=names,
            measure=_measure(measure or {}),
        )
        for case in cases
    ]
    return measured(family, jobs, Selection(device=device, seed=seed), timing=timing, out=out)


def _providers(family: Family[Any], asked: Sequence[str]) -> tuple[str, ...]:
    """Those to measure, in the family's order."""
    known = [provider.name for provider in family.providers]
    for name in asked:
        if name not in known:
            raise UsageError(f"bench: {family.name} has no provider {name!r}{suggest(name, known)}")
    wanted = {family.baseline.name, *asked}
    return tuple(
        p.name for p in family.providers if (p.name in wanted if asked else not p.on_request)
    )


def _measure(facts: Mapping[str, Any]) -> Measure:
    known = [f.name for f in fields(Measure)]
    for name in facts:
        if name not in known:
            raise UsageError(f"bench: measure: no field {name!r}{suggest(name, known)}")
    return Measure(**facts)


def measured(
    family: Family[Any],
    jobs: Sequence[Job],
    selection: Selection,
    *,
    timing: bool = True,
    out: str | Path | None = None,
) -> Records:
    """Jobs of one family, in this process, which they leave as it was, kept in a run folder below
    `out` if that is given."""
    if settled(selection.device) == "cuda":
        torch.cuda.init()  # else the state of its generators could not be read
    with _unchanged():
        return _measured(family, jobs, selection, timing, out)


@contextmanager
def _unchanged() -> Iterator[None]:
    """What measuring sets in a process is put back after the block: how precise fp32 is, what
    torch.compile does when it compiles once too often, and whatever else `Ambient` knows, as the
    state of generators."""
    ambient = Ambient()
    dynamo, functorch = torch._dynamo.config, torch._functorch.config
    falls, donated = dynamo.fail_on_recompile_limit_hit, functorch.donated_buffer
    try:
        yield
    finally:
        dynamo.fail_on_recompile_limit_hit, functorch.donated_buffer = falls, donated
        ambient.undo_changes()


def _measured(
    family: Family[Any],
    jobs: Sequence[Job],
    selection: Selection,
    timing: bool,
    out: str | Path | None,
) -> Records:
    known = {family.name: family}
    options = Options(
        device=selection.device, seed=selection.seed, timing=timing, executor=here(known)
    )
    watcher = Silent(Console(file=io.StringIO()))
    if not timing:
        return Records(chain.from_iterable(prove_jobs(jobs, known, options, watcher)))
    with _folder(out) as folder:
        asked = suite.Suite(family.name, family.title, "auto", "", tuple(jobs), "", Path("here"))
        make = partial(_store, Plan(asked, tuple(jobs), selection), folder)
        outcome, opened = run_jobs(jobs, known, options, watcher, make, folder)
        opened.close()
        if outcome.interrupted:
            raise KeyboardInterrupt
        return Records(store.read(opened.path), None if out is None else opened.path)


def _store(plan: Plan, folder: Path, machine: dict[str, Any]) -> store.Store:
    facts = {**plan.manifest(machine), "argv": [], "process": "the caller's"}
    return store.create(folder, plan.suite.name, machine["name"], facts)


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        yield Path(out)
        return
    with TemporaryDirectory() as folder:
        yield Path(folder)


def _of_family(candidates: Sequence[Function], axes: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    if len(candidates) != 1 or not isinstance(candidates[0], str):
        raise UsageError("bench: name a reference, against=…, or one family: bench('rms_norm', …)")
    known = families.load()
    if candidates[0] not in known:
        raise UsageError(
            f"bench: no family {candidates[0]!r}. Known: {', '.join(known)}; a function has a "
            "reference, against=…"
        )
    family = known[candidates[0]]
    return family, list(family.case.grid(**axes))


def _of_functions(
    candidates: Sequence[Function],
    against: Function,
    args: str | Mapping[str, Any],
    sizes: Sizes,
    grad: bool | Sequence[str],
    compile: bool,
    inputs: Function | None,
    oracle: Function | None,
    max_error: float | Mapping[str, float] | None,
    name: str,
) -> tuple[Family[Any], list[Any]]:
    targets = {target.name: target for target in map(target_of, candidates)}
    if len(targets) < len(candidates):
        raise UsageError("bench: two candidates of one name; give one a __name__ of its own")
    reference, make = target_of(against), None if inputs is None else target_of(inputs)
    if isinstance(args, str):
        arguments = grammar.parse(args, takes(make))
    else:
        arguments, make = arguments_of(args, make)
    errors = max_error if isinstance(max_error, Mapping) else dict.fromkeys(targets, max_error)
    declared = Declaration(
        name=name or families.unlike(next(iter(targets), reference.name)),
        against=reference.text,
        candidates={word: target.text for word, target in targets.items()},
        args=args if isinstance(args, str) else ", ".join(args),
        grad=("all",) if grad is True else tuple(grad or ()),
        compile=tuple(COMPILE) if compile else (),
        max_error={word: value for word, value in errors.items() if value is not None},
    )
    parts = made.Functions(
        name=declared.name,
        reference=reference,
        candidates=targets,
        arguments=arguments,
        grad=declared.grad,
        make=make,
        oracle_target=None if oracle is None else target_of(oracle),
    )
    family = made.family_of(parts, declared)
    values_of_sizes = {k: [v] if isinstance(v, int) else [*v] for k, v in sizes.items()}
    values = grammar.with_sizes(arguments, values_of_sizes)
    modes = [Mode.fwd, Mode.bwd] if declared.grad else [Mode.fwd]
    cases = list(family.case.grid(**values, dtype=list(arguments.dtypes), mode=modes))
    preflight.refuse(family, cases)
    return family, cases
