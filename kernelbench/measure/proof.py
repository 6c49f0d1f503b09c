"""Judges the providers of one job against the oracle and the baseline's errors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from kernelbench.measure import check, diagnosis
from kernelbench.measure.answer import Contract, ContractError, Form
from kernelbench.measure.check import Answer
from kernelbench.measure.deviation import Deviation, Oracle, deviations, kept_bytes
from kernelbench.measure.dump import Dump
from kernelbench.measure.environment import TORCH_DTYPES
from kernelbench.measure.inputs import CaseInputs
from kernelbench.measure.team import Team, first_reason
from kernelbench.measure.workload import Workload
from kernelbench.spec import Case, Family, OutputError, Provider, Trial


@dataclass
class ProofVerdict:
    """The verdict on one answer.

    errors: beside their budgets. reason: why the provider is incorrect, or "". detail: maps of the
    bad elements. strides: outputs whose strides are not the baseline's. proven: the answer, if it
    is right and was asked for.
    """

    errors: tuple[OutputError, ...] = ()
    reason: str = ""
    detail: str = ""
    strides: tuple[str, ...] = ()
    proven: dict[str, torch.Tensor] = field(default_factory=dict)
    deviations: Mapping[str, Deviation] = field(default_factory=dict)


class Proof:
    """Judges answers for the current inputs. The baseline must be judged first."""

    def __init__(
        self,
        family: Family[Any],
        case: Case,
        inputs: CaseInputs,
        dump: Dump,
        undo: Callable[[], None],
        team: Team,
    ) -> None:
        """undo: undoes what the provider at work changed of the process. team: who
        judges together with this process."""
        self.team = team
        self._undo = undo
        self.family, self.case, self._dump = family, case, dump
        self._inputs = inputs
        self.contract = self._stated_contract()
        # Of ranks, some might hold it and others not, and its sums over ranks need all of them.
        most = kept_bytes(self.contract.device) if team.world == 1 else 0
        self.oracle = Oracle(family, case, inputs, most)
        self.baseline: Mapping[str, Deviation] | None = None  # errors of a baseline that is right

    def _stated_contract(self) -> Contract:
        """Dtypes that the family or the case states; a gradient has its input's."""
        default, others = TORCH_DTYPES[self.case.dtype], self.family.dtypes(self.case)
        tensors = self._inputs.tensors
        forms = {
            name: Form(getattr(torch, others[name]), "the family", fixed=True)
            if name in others
            else Form(default, "the case")
            for name in self.family.outputs(self.case)
        }
        graded = self.family.grads(self.case)
        forms |= {f"d{name}": Form(tensors[name].dtype, "its input") for name in graded}
        return Contract(next(iter(tensors.values())).device, forms)

    def inputs_changed(self) -> None:
        """Drop the oracle's values and the baseline's errors: both are of other inputs."""
        self.oracle.forget()
        self.baseline = None

    def judge(
        self, provider: Provider[Any], workload: Workload, *, keep: bool = False
    ) -> ProofVerdict:
        """The verdict on one hardened call. keep: whether it has the answer, if that is right."""
        return self._judged(provider, workload, keep, "", partial(check.produce, team=self.team))

    def judge_trial(
        self, provider: Provider[Any], workload: Workload, name: str, trial: Trial
    ) -> ProofVerdict:
        """The verdict on one plain call on the inputs of a trial."""
        produce = partial(check.produce_plainly, apart=trial.apart)
        return self._judged(provider, workload, False, name, produce, gross=trial.gross)

    def _judged(
        self,
        provider: Provider[Any],
        workload: Workload,
        keep: bool,
        trial: str,
        produce: Any,
        *,
        gross: bool = False,
    ) -> ProofVerdict:
        try:
            answer = produce(workload, self.contract)
        except ContractError as error:
            if self.team.world > 1:
                raise  # for the others to hear of
            return ProofVerdict(reason=str(error))
        if provider is self.family.baseline and not trial:
            self._adopt_forms(answer)
        verdict = self.verdict(provider, answer, trial, gross=gross)
        verdict.strides = tuple(self.contract.other_strides(answer.outputs))
        if keep and not verdict.reason:
            verdict.proven = answer.outputs
        else:
            erase(answer.outputs)
        return verdict

    def _adopt_forms(self, answer: Answer) -> None:
        """Demand the baseline's shapes of all others, and its dtypes where none is stated."""
        forms = {
            name: replace(
                self.contract.forms[name],
                shape=tensor.shape,
                stride=tensor.stride(),
                fixed=True,
                dtype=tensor.dtype,
            )
            for name, tensor in answer.outputs.items()
        }
        self.contract = replace(self.contract, forms={**self.contract.forms, **forms})

    def verdict(
        self, provider: Provider[Any], answer: Answer, trial: str = "", *, gross: bool = False
    ) -> ProofVerdict:
        """The verdict on an answer. trial: the name of the trial. gross: see `spec.Trial`.

        A baseline that is right sets the budgets of the others.
        """
        self._undo()  # before judging, so that the provider cannot have patched the judge
        deviation = deviations(self.oracle, answer.outputs)
        is_baseline = provider is self.family.baseline
        reference = deviation if is_baseline else self.baseline
        inputs = (str(self.case.inputs), *([trial] if trial else []))
        others = bool(trial) and not is_baseline  # a baseline in a trial has the usual budgets
        errors = check.judge(deviation, reference, self.case.dtype, provider, *inputs, trial=others)
        if gross:
            errors = check.gross(errors, deviation, self.case.dtype)
        reason = first_reason(self.team, check.verdict(errors, answer.faults))
        if is_baseline:
            self.baseline = None if reason else deviation
            if reason and not trial:
                self.contract = self._stated_contract()
        if reason or not trial:
            self._dump.keep(provider.name, self.oracle, answer.outputs, trial)
        verdict = ProofVerdict(errors, reason, deviations=deviation)
        if reason:
            self._explain(verdict, answer)
        return verdict

    def _explain(self, verdict: ProofVerdict, answer: Answer) -> None:
        """Add to the verdict where the bad elements are."""
        limits = {
            error.name: error.worst_budget * verdict.deviations[error.name].unit
            for error in verdict.errors
            if not error.ok
        }
        diagnoses = diagnosis.explain(answer.outputs, self.oracle.pieces(), limits)
        words = [f"{name}: {d.words}" for name, d in diagnoses.items() if d.words]
        verdict.reason = "; ".join([verdict.reason, *words])
        verdict.detail = "\n".join(f"{name}\n{d.map}" for name, d in diagnoses.items() if d.map)


def erase(outputs: Mapping[str, torch.Tensor]) -> None:
    """Fill outputs with NaN, so that no right answer stays in free memory."""
    with torch.inference_mode():  # allows inference tensors, which a provider may have returned
        for tensor in outputs.values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
