"""The proof of one job's providers: what is right, what a baseline may err by, who is wrong."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from kernelbench.measure import check, diagnosis
from kernelbench.measure.answer import Contract, ContractError, Form
from kernelbench.measure.check import Answer
from kernelbench.measure.deviation import Deviation, Oracle, deviations
from kernelbench.measure.dump import Dump
from kernelbench.measure.environment import TORCH_DTYPES
from kernelbench.measure.inputs import CaseInputs
from kernelbench.measure.workload import Workload
from kernelbench.spec import Case, Family, OutputError, Provider, Trial


@dataclass
class ProofVerdict:
    """errors: beside their budgets. reason: why the provider is incorrect, or nothing."""

    errors: tuple[OutputError, ...] = ()
    reason: str = ""
    detail: str = ""
    strides: tuple[str, ...] = ()  # outputs that do not lie in memory as the baseline's do
    proven: dict[str, torch.Tensor] = field(default_factory=dict)  # the answer, if it was kept
    deviations: Mapping[str, Deviation] = field(default_factory=dict)


class Proof:
    """Judges answers for the inputs as they are drawn now. The baseline is to be judged first."""

    def __init__(
        self,
        family: Family[Any],
        case: Case,
        inputs: CaseInputs,
        dump: Dump,
        undo: Callable[[], None],
    ) -> None:
        """undo: takes back what the provider that is at work changed of the process."""
        self._undo = undo
        self.family, self.case, self._dump = family, case, dump
        self.oracle = Oracle(family, case, inputs)
        self._inputs = inputs
        self.contract = self._asked()
        self.baseline: Mapping[str, Deviation] | None = None  # errors of a baseline that is right

    def _asked(self) -> Contract:
        """Dtypes that the family or the case states; a gradient has its input's."""
        own, others = TORCH_DTYPES[self.case.dtype], self.family.dtypes(self.case)
        tensors = self._inputs.tensors
        forms = {
            name: Form(getattr(torch, others[name]), "the family", fixed=True)
            if name in others
            else Form(own, "the case")
            for name in self.family.outputs(self.case)
        }
        graded = self.family.grads(self.case)
        forms |= {f"d{name}": Form(tensors[name].dtype, "its input") for name in graded}
        return Contract(next(iter(tensors.values())).device, forms)

    def redrawn(self, *, alike: bool = True) -> None:
        """The inputs were drawn anew; alike: from the same distribution as before."""
        self.oracle.forget()
        if not alike:
            self.baseline = None

    def judge(
        self, provider: Provider[Any], workload: Workload, *, keep: bool = False
    ) -> ProofVerdict:
        """By one hardened call. keep: the answer, if it is right."""
        return self._judged(provider, workload, keep, "", check.produce)

    def judge_trial(
        self, provider: Provider[Any], workload: Workload, name: str, trial: Trial
    ) -> ProofVerdict:
        """By one plain call on the inputs of a trial."""
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
            return ProofVerdict(reason=str(error))
        if provider is self.family.baseline and not trial:
            self._take_form(answer)
        verdict = self.verdict(provider, answer, trial, gross=gross)
        verdict.strides = tuple(self.contract.other_strides(answer.outputs))
        if keep and not verdict.reason:
            verdict.proven = answer.outputs
        else:
            spend(answer.outputs)
        return verdict

    def _take_form(self, answer: Answer) -> None:
        """What the baseline returns, others must: shapes, and dtypes that nobody states."""
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
        """Only a baseline that is right sets the budget. gross: see `spec.Trial`."""
        self._undo()  # whoever is judged has a say in nothing that judges
        deviation = deviations(self.oracle, answer.outputs)
        is_baseline = provider is self.family.baseline
        yardstick = deviation if is_baseline else self.baseline
        inputs = (str(self.case.inputs), *([trial] if trial else []))
        others = bool(trial) and not is_baseline  # those of a trial follow from a baseline's
        errors = check.judge(deviation, yardstick, self.case.dtype, provider, *inputs, trial=others)
        if gross:
            errors = check.gross(errors, deviation, self.case.dtype)
        reason = check.verdict(errors, answer.faults)
        if is_baseline:
            self.baseline = None if reason else deviation
            if reason and not trial:
                self.contract = self._asked()
        if reason or not trial:
            self._dump.keep(provider.name, self.oracle, answer.outputs, trial)
        verdict = ProofVerdict(errors, reason, deviations=deviation)
        if reason:
            self._explain(verdict, answer)
        return verdict

    def _explain(self, verdict: ProofVerdict, answer: Answer) -> None:
        """Where the bad elements lie, for whoever wrote the kernel."""
        limits = {
            error.name: error.worst_budget * verdict.deviations[error.name].unit
            for error in verdict.errors
            if not error.ok
        }
        diagnoses = diagnosis.explain(answer.outputs, self.oracle.pieces(), limits)
        words = [f"{name}: {one.words}" for name, one in diagnoses.items() if one.words]
        verdict.reason = "; ".join([verdict.reason, *words])
        verdict.detail = "\n".join(f"{n}\n{one.map}" for n, one in diagnoses.items() if one.map)


def spend(outputs: Mapping[str, torch.Tensor]) -> None:
    """No right answer is left behind in free memory."""
    with torch.inference_mode():  # where a provider left one of that kind, too
        for tensor in outputs.values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
