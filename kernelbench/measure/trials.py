"""Other inputs than a case's own, on which every provider is proven, too: scaled down and up, and
with outliers. An eps that is forgotten, clamps and squares that overflow show there.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from kernelbench.measure.check import promise
from kernelbench.measure.environment import TORCH_DTYPES
from kernelbench.measure.failure import Failure
from kernelbench.measure.inputs import CaseInputs
from kernelbench.measure.proof import Proof, ProofVerdict
from kernelbench.measure.session import Attempt, Candidate, Tell
from kernelbench.spec import Case, Distribution, DType, Family, Trial, TrialErrors

NAMES = ("small", "large", "outliers")
SMALL, LARGE = 2.0**-10, 2.0**5
SMALLEST = 16  # times the smallest normal number of a dtype: the least rms that it can round well


class Trials:
    """Proves candidates on other inputs, one trial after another."""

    def __init__(self, inputs: CaseInputs, proof: Proof, attempt: Attempt, tell: Tell) -> None:
        self._inputs, self._proof, self._attempt, self._tell = inputs, proof, attempt, tell
        self._asked: set[str] = set()  # outputs that the mode produces

    def run(
        self, candidates: Sequence[Candidate], yardstick: Candidate | None, seed: int
    ) -> Iterator[tuple[Candidate, ProofVerdict | Failure]]:
        """Those that are wrong on some trial's inputs, or fail there; the others' facts get their
        errors. Inputs and budgets are afterwards as they were before.

        yardstick: the baseline, which sets each trial's budget.
        """
        left = [*candidates]
        self._asked = {name for candidate in left for name in candidate.workload.names}
        trials = self._attempt(partial(of, self._proof.family, self._proof.case, self._inputs), "")
        if isinstance(trials, Failure):
            yield from ((candidate, trials) for candidate in left)
            return
        for name, trial in trials.items() if left else ():
            unproven = trial.refused
            if not unproven:
                self._tell("", f"trial {name}")
                begun = self._attempt(partial(self._begin, name, trial, yardstick, seed), "")
                unproven = begun.reason if isinstance(begun, Failure) else begun
            for candidate in [*left]:
                fallen = self._one(candidate, name, trial, unproven)
                if fallen is not None:
                    left.remove(candidate)
                    yield candidate, fallen
        again = self._attempt(partial(self._inputs.redraw, seed, Trial()), "")
        if isinstance(again, Failure):
            yield from ((candidate, again) for candidate in left)
        self._proof.redrawn()
        self._proof.baseline = yardstick.deviations if yardstick else None

    def _begin(self, name: str, trial: Trial, yardstick: Candidate | None, seed: int) -> str:
        """Draw a trial's inputs. Why it proves nothing, or nothing: then its budget is set."""
        self._inputs.redraw(seed, trial)
        self._proof.redrawn(alike=False)
        judged = self._asked - set(trial.apart)
        pieces = (piece for piece in self._proof.oracle.pieces() if piece[0] in judged)
        reason = out_of_range(pieces, self._proof.case.dtype)
        if reason or yardstick is None:
            return reason
        provider, workload = yardstick.provider, yardstick.workload
        verdict = self._proof.judge_trial(provider, workload, name, trial)
        return f"the baseline itself is not right there: {verdict.reason}" if verdict.reason else ""

    def _one(
        self, candidate: Candidate, name: str, trial: Trial, unproven: str
    ) -> ProofVerdict | Failure | None:
        """What is wrong with it on a trial's inputs."""
        provider, workload = candidate.provider, candidate.workload
        promised = promise(provider, str(self._proof.case.inputs), name)
        unproven = unproven or (promised if isinstance(promised, str) else "")
        errors, fallen = TrialErrors(trial=name, unproven=unproven), None
        if not unproven:
            self._tell(candidate.name, f"trial {name}")
            step = partial(self._proof.judge_trial, provider, workload, name, trial)
            verdict: ProofVerdict | Failure = self._attempt(step, candidate.name)
            workload.rest()
            if isinstance(verdict, Failure):
                return verdict
            errors = replace(errors, errors=verdict.errors)
            if verdict.reason:
                fallen = replace(verdict, reason=f"on {name} inputs: {verdict.reason}")
        candidate.facts["trials"] = (*candidate.facts.get("trials", ()), errors)
        return fallen


def of(family: Family[Any], case: Case, inputs: CaseInputs) -> dict[str, Trial]:
    """The trials of a case by name: the family's own, or those of NAMES for all that is drawn.

    Raises ValueError where the family's leave one of NAMES out.
    """
    if family.trials is not None:
        trials = dict(family.trials(case))
        for name in NAMES:
            if name not in trials:
                raise ValueError(f"{family.name}: no trial {name!r}; refuse it with a reason")
    else:
        drawn = inputs.drawn
        trials = {
            "small": Trial(dict.fromkeys(drawn, SMALL), gross=True),
            "large": Trial(dict.fromkeys(drawn, LARGE), gross=True),
            "outliers": Trial(outliers=drawn, gross=True),
        }
    return {name: _own(name, trial, case) for name, trial in trials.items()}


def _own(name: str, trial: Trial, case: Case) -> Trial:
    """Nothing is proven twice, or on zeros."""
    if case.inputs is Distribution.zeros:
        return Trial(refused="all inputs of the case are zero")
    if name == "outliers" and case.inputs is Distribution.outliers:
        return Trial(refused="the case's own inputs have outliers")
    return trial


def out_of_range(pieces: Iterable[tuple[Any, ...]], dtype: DType) -> str:
    """Why the dtype cannot hold these right answers well enough to judge by; or nothing."""
    limits = torch.finfo(TORCH_DTYPES[dtype])
    sums: dict[str, list[float]] = {}
    for name, _, ref, *_ in pieces:
        if ref.numel():
            most, square = torch.stack([ref.abs().max(), ref.square().sum()]).tolist()
            before = sums.setdefault(name, [0.0, 0.0, 0])
            sums[name] = [max(before[0], most), before[1] + square, before[2] + ref.numel()]
    return _out_of_range({n: (most, math.sqrt(s / c)) for n, (most, s, c) in sums.items()}, limits)


def _out_of_range(sizes: Mapping[str, tuple[float, float]], limits: Any) -> str:
    for name, (most, rms) in sizes.items():
        if not most <= limits.max:
            return f"{name} reaches {most:.2g}, beyond {limits.dtype}'s {limits.max:.2g}"
        if 0 < rms < SMALLEST * limits.tiny:
            return f"{name} is about {rms:.2g}, too small for {limits.dtype} to round well"
    return ""
