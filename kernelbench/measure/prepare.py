"""The first stage of a job: who can take part, the inputs, and each provider's workload."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from kernelbench.measure import check, tune
from kernelbench.measure.dump import Dump
from kernelbench.measure.failure import Failure
from kernelbench.measure.flush import ROUND
from kernelbench.measure.inputs import CaseInputs
from kernelbench.measure.parts import cost_of
from kernelbench.measure.proof import Proof
from kernelbench.measure.task import Stage, Task
from kernelbench.measure.workload import Workload, why_not
from kernelbench.spec import Cost, Provider, Status

TRIAL = ROUND  # samples of a config between two looks at how long it takes
TRIAL_NS = 300_000_000


@dataclass(frozen=True)
class Prepared:
    """What the providers of a job have in common."""

    inputs: CaseInputs
    proof: Proof
    cost: Cost


def able(task: Task, names: Iterable[str]) -> Stage[list[Provider[Any]]]:
    """The providers that can run the case; the others are skipped, each for its reason."""
    left = []
    for provider in (task.family.provider(name) for name in names):
        reason = unable(task, provider)
        if reason is None:
            left.append(provider)
        else:
            yield [task.failed(provider, reason)]
    return left


def unable(task: Task, provider: Provider[Any]) -> Failure | None:
    """Why a provider cannot run the case, if it cannot, or how it fell when it was asked."""

    def ask() -> Failure | None:
        if task.job.world > 1:
            return Failure(Status.skipped, f"needs {task.job.world} GPUs, and a worker has one")
        reason = why_not(provider, task.case, task.session.device)
        return None if reason is None else Failure(Status.skipped, reason)

    answer: Failure | None = task.guard.attempt(ask, provider.name)
    return answer


def prepare(task: Task) -> Prepared | Failure:
    """Draw the inputs, in memory that nothing of an earlier job is left in."""
    task.guard.tell("", "inputs")
    drawn: Prepared | Failure = task.guard.attempt(partial(_draw, task))
    return drawn


def _draw(task: Task) -> Prepared:
    torch._dynamo.reset()
    task.session.hand_back()
    family, case, request = task.family, task.case, task.request
    cost = cost_of(family, case)
    inputs = CaseInputs(family, case, task.session.device.kind, request.context.seed)
    dump = Dump(request.dump, family, case)
    return Prepared(inputs, Proof(family, case, inputs, dump, task.guard.undo), cost)


def workload(task: Task, prepared: Prepared, provider: Provider[Any], config: Any) -> Workload:
    """A provider built with a config, and called for the first time."""
    contract = prepared.proof.contract
    built = Workload(task.family, task.case, provider, prepared.inputs, config)
    task.guard.blame(provider.name)  # what `build` imported may have meddled with switches
    with check.watching(built, contract):
        built.ready()
        with built.grad_mode():
            outputs = built.call()
    contract.check(outputs, built.names)
    task.session.synchronize()
    check.leave_nan(outputs, built)
    return built


def config(task: Task, prepared: Prepared, provider: Provider[Any]) -> tuple[Any, str]:
    """The config to measure a provider with, and where it comes from; None, "" without any."""
    if provider.configs is None:
        return None, ""
    session = task.session
    configs = list(provider.configs(task.case, session.device))
    facts = tune.identity(session.device, task.request.context, task.job, provider)
    search = task.request.tune and not task.job.process  # what the first found is on the disk
    if not (search and session.device.kind == "cuda"):
        return tune.choose(configs, facts)
    times: list[float | None] = []
    for i, one in enumerate(configs):
        task.guard.tell(provider.name, f"tune {i + 1}/{len(configs)}")
        ns = task.guard.attempt(partial(_trial, task, prepared, provider, one), provider.name)
        times.append(None if isinstance(ns, Failure) else ns)
    return tune.settle(configs, times, facts)


def _trial(task: Task, prepared: Prepared, provider: Provider[Any], one: Any) -> float | None:
    """Median ns of one config, None if its answer is wrong."""
    built = workload(task, prepared, provider, one)
    if prepared.proof.judge(provider, built).reason:
        return None
    built.ready()
    samples: list[int] = []
    while len(samples) < 3 * TRIAL and sum(samples) < TRIAL_NS:
        samples += task.session.clock.batch(built, TRIAL).samples_ns
    return median(samples)
