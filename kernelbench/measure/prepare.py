"""The first stage of a job: which providers can run, the inputs, and each provider's workload."""

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
from kernelbench.measure.team import meet
from kernelbench.measure.workload import Workload, why_not
from kernelbench.spec import Cost, Provider, Status

TUNE_BATCH = ROUND  # samples of a config between two looks at the total time
TUNE_NS = 300_000_000  # no further batch of a config is taken after this time


@dataclass(frozen=True)
class Prepared:
    """What the providers of a job have in common."""

    inputs: CaseInputs
    proof: Proof
    cost: Cost


def runnable(task: Task, names: Iterable[str]) -> Stage[list[Provider[Any]]]:
    """Yield records of providers that cannot run the case; returns the others."""
    providers = []
    for provider in (task.family.provider(name) for name in names):
        failure = why_unable(task, provider)
        if failure is None:
            providers.append(provider)
        else:
            yield [task.failed(provider, failure)]
    return providers


def why_unable(task: Task, provider: Provider[Any]) -> Failure | None:
    """Why a provider cannot run the case, or why it failed to say so; None if it can run."""

    def ask() -> Failure | None:
        if task.job.world != task.session.team.world:
            return Failure(
                Status.skipped, f"needs {task.job.world} GPUs, of which each has a process"
            )
        reason = why_not(provider, task.case, task.session.device)
        return None if reason is None else Failure(Status.skipped, reason)

    answer: Failure | None = task.guard.attempt(ask, provider.name)
    return answer


def prepare(task: Task) -> Prepared | Failure:
    """Draw the inputs, in memory that holds nothing of an earlier job."""
    task.guard.tell("", "inputs")
    drawn: Prepared | Failure = task.guard.attempt(partial(_draw, task))
    return drawn


def _draw(task: Task) -> Prepared:
    torch._dynamo.reset()
    task.session.release_memory()
    family, case, request = task.family, task.case, task.request
    cost = cost_of(family, case)
    inputs = CaseInputs(family, case, task.session.device.kind, request.context.seed)
    team = task.session.team
    dump = Dump("" if team.rank else request.dump, family, case)
    proof = Proof(family, case, inputs, dump, task.guard.undo, team)
    return Prepared(inputs, proof, cost)


def workload(task: Task, prepared: Prepared, provider: Provider[Any], config: Any) -> Workload:
    """Build a provider with a config, and call it for the first time.

    Raises ContractError where it returns no valid answer, and what the provider raises.
    """
    contract = prepared.proof.contract
    built = Workload(task.family, task.case, provider, prepared.inputs, config)
    task.guard.blame(provider.name)  # what `build` imported may have changed switches
    with check.watching(built, contract):
        built.ready()
        with built.grad_mode():
            outputs = built.call()
    contract.check(outputs, built.names)
    task.session.synchronize()
    meet(task.session.team)  # before another call, which would wait for who failed in this one
    check.fill_with_nan(outputs, built)
    return built


def config(task: Task, prepared: Prepared, provider: Provider[Any]) -> tuple[Any, str]:
    """(the config to measure a provider with, its origin); (None, "") if it has no configs."""
    if provider.configs is None:
        return None, ""
    session = task.session
    configs = list(provider.configs(task.case, session.device))
    facts = tune.identity(session.device, task.request.context, task.job, provider)
    search = task.request.tune and not task.job.process  # others read the first one's choice
    search = search and task.job.world == 1
    if not (search and session.device.kind == "cuda"):
        return tune.choose(configs, facts)
    times: list[float | None] = []
    for i, choice in enumerate(configs):
        task.guard.tell(provider.name, f"tune {i + 1}/{len(configs)}")
        step = partial(_config_ns, task, prepared, provider, choice)
        ns = task.guard.attempt(step, provider.name)
        times.append(None if isinstance(ns, Failure) else ns)
    return tune.keep_fastest(configs, times, facts)


def _config_ns(
    task: Task, prepared: Prepared, provider: Provider[Any], choice: Any
) -> float | None:
    """Median ns of one config, None if its answer is wrong."""
    built = workload(task, prepared, provider, choice)
    if prepared.proof.judge(provider, built).reason:
        return None
    built.ready()
    samples: list[int] = []
    while len(samples) < 3 * TUNE_BATCH and sum(samples) < TUNE_NS:
        samples += task.session.clock.batch(built, TUNE_BATCH).samples_ns
    return median(samples)
