"""Proves every provider on other inputs than the case's own as well: scaled down, scaled up, and
with outliers. These expose a forgotten eps, clamps, and squares that overflow.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from kernelbench.measure.team import first_reason
from kernelbench.spec import Case, Distribution, DType, Family, Trial, TrialErrors

NAMES = ("small", "large", "outliers")
SMALL, LARGE = 2.0**-10, 2.0**5
SMALLEST = 16  # × the smallest normal number of a dtype: the least rms that it rounds well


class Trials:
    """Proves candidates on the inputs of one trial after another."""

    def __init__(
        self,
        inputs: CaseInputs,
        proof: Proof,
        attempt: Attempt,
        tell: Tell,
        release: Callable[[], None],
    ) -> None:
        """release: returns free memory to the driver."""
        self._inputs, self._proof, self._attempt, self._tell = inputs, proof, attempt, tell
        self._release = release
        self._outputs: set[str] = set()  # outputs that the mode produces

    def run(
        self, candidates: Sequence[Candidate], reference: Candidate | None, seed: int
    ) -> Iterator[tuple[Candidate, ProofVerdict | Failure]]:
        """Yield the candidates that are wrong on some trial's inputs, or fail there.

        The facts of all candidates get their errors. Inputs and budgets are restored afterwards.
        reference: the baseline, which sets each trial's budget.
        """
        remaining = [*candidates]
        self._outputs = {name for candidate in remaining for name in candidate.workload.names}
        trials = self._attempt(
            partial(trials_of, self._proof.family, self._proof.case, self._inputs), ""
        )
        if isinstance(trials, Failure):
            yield from ((candidate, trials) for candidate in remaining)
            return
        for name, trial in trials.items() if remaining else ():
            unproven = trial.refused
            if not unproven:
                self._tell("", f"trial {name}")
                outcome = self._attempt(partial(self._begin, name, trial, reference, seed), "")
                unproven = outcome.reason if isinstance(outcome, Failure) else outcome
            for candidate in [*remaining]:
                verdict = self._prove(candidate, name, trial, unproven)
                if verdict is not None:
                    remaining.remove(candidate)
                    yield candidate, verdict
        failure = self._attempt(partial(self._draw_own, seed), "")
        if isinstance(failure, Failure):
            yield from ((candidate, failure) for candidate in remaining)
        self._proof.baseline = reference.deviations if reference else None

    def _draw_own(self, seed: int) -> None:
        """Draw the case's own inputs again, where they pin no larger block that a trial used."""
        self._proof.inputs_changed()
        self._inputs.pristine = {}
        self._release()
        self._inputs.redraw(seed, Trial())

    def _begin(self, name: str, trial: Trial, reference: Candidate | None, seed: int) -> str:
        """Draw a trial's inputs and set its budget. Returns why it can prove nothing, or ""."""
        self._inputs.redraw(seed, trial)
        self._proof.inputs_changed()
        judged = self._outputs - set(trial.apart)
        pieces = (piece for piece in self._proof.oracle.pieces() if piece[0] in judged)
        reason = first_reason(self._proof.team, out_of_range(pieces, self._proof.case.dtype))
        if reason or reference is None:
            return reason
        provider, workload = reference.provider, reference.workload
        verdict = self._proof.judge_trial(provider, workload, name, trial)
        return f"the baseline itself is not right there: {verdict.reason}" if verdict.reason else ""

    def _prove(
        self, candidate: Candidate, name: str, trial: Trial, unproven: str
    ) -> ProofVerdict | Failure | None:
        """Prove a candidate on a trial's inputs; returns None unless it is wrong or fails."""
        provider, workload = candidate.provider, candidate.workload
        promised = promise(provider, str(self._proof.case.inputs), name)
        unproven = unproven or (promised if isinstance(promised, str) else "")
        errors, wrong = TrialErrors(trial=name, unproven=unproven), None
        if not unproven:
            self._tell(candidate.name, f"trial {name}")
            step = partial(self._proof.judge_trial, provider, workload, name, trial)
            verdict: ProofVerdict | Failure = self._attempt(step, candidate.name)
            workload.release()
            if isinstance(verdict, Failure):
                return verdict
            errors = replace(errors, errors=verdict.errors)
            if verdict.reason:
                wrong = replace(verdict, reason=f"on {name} inputs: {verdict.reason}")
        candidate.facts["trials"] = (*candidate.facts.get("trials", ()), errors)
        return wrong


def trials_of(family: Family[Any], case: Case, inputs: CaseInputs) -> dict[str, Trial]:
    """The trials of a case by name: the family's own, or those of NAMES on all drawn inputs.

    Raises ValueError where the family's own lack one of NAMES.
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
    return {name: _refused_if_useless(name, trial, case) for name, trial in trials.items()}


def _refused_if_useless(name: str, trial: Trial, case: Case) -> Trial:
    """The trial, refused where all inputs are 0 or where it would repeat the case's own check."""
    if case.inputs is Distribution.zeros:
        return Trial(refused="all inputs of the case are zero")
    if name == "outliers" and case.inputs is Distribution.outliers:
        return Trial(refused="the case's own inputs have outliers")
    return trial


def out_of_range(pieces: Iterable[tuple[Any, ...]], dtype: DType) -> str:
    """Why the dtype cannot represent these right answers well enough to judge by them; or ""."""
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
