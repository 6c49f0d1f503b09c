"""Counts on a CPU the bytes that a provider touches in memory, to compare them with its byte model.

Our kernels run in Triton's interpreter, PyTorch's operators as they are. Distinct bytes of a launch
or operator are counted, since what a kernel reads again comes from a cache. The counts are no
measure of time.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernelbench.kernels.launch import Launch, Target, described_for, watched
from kernelbench.measure.inputs import CaseInputs
from kernelbench.measure.workload import Workload, why_not
from kernelbench.profile.meta import MetaInputs
from kernelbench.profile.touched.kernels import Kernels, kernel_name
from kernelbench.profile.touched.operators import CLEARING, AsOnGPU, Operators, Use
from kernelbench.spec import Case, Device, Family, KernelbenchError, Provider, Traffic

SLACK = 0.01  # of a model's total, by which the count may differ
HOPPER = Device("cuda", "a GPU of sm_90", (9, 0), sms=132)


@dataclass(frozen=True)
class TouchedTensor:
    """One tensor (its storage): distinct bytes of each launch or operator, summed over these.

    tensor: the name of an input or output; else of a kernel's parameter, else of the operator that
        touched it first.
    names: all its names: those of inputs and outputs if it has any, else of parameters; none for
        temporaries that PyTorch's operators make for each other or for a kernel.
    by: kernels and operators that touched it.
    issued_*: every lane's bytes, repeats included. No count includes masked lanes.
    """

    tensor: str
    names: tuple[str, ...]
    by: tuple[str, ...]
    read: int
    written: int
    issued_read: int
    issued_written: int


@dataclass(frozen=True)
class Count:
    """What one call of a provider touched.

    kernels: Triton kernels in the order of their launches. operators: PyTorch's.
    uncovered: kernels that an H200 would run instead of those counted here, see `uncovered`.
    """

    kernels: tuple[str, ...]
    operators: tuple[str, ...]
    rows: tuple[TouchedTensor, ...]
    uncovered: tuple[str, ...]

    @property
    def read(self) -> int:
        """Distinct bytes read, summed over all tensors."""
        return sum(row.read for row in self.rows)

    @property
    def written(self) -> int:
        """Distinct bytes written, summed over all tensors."""
        return sum(row.written for row in self.rows)

    def without(self, *tensors: str) -> "Count":
        """The count without these tensors."""
        rows = tuple(row for row in self.rows if row.tensor not in tensors)
        return Count(self.kernels, self.operators, rows, self.uncovered)


def touched(
    family: Family[Any], case: Case, provider: Provider[Any], config: Any = None, seed: int = 0
) -> Count:
    """Run a provider once in the case's mode on CPU tensors, and count what the call touches.

    config: one of the provider's; the table's choice if None.
    Raises KernelbenchError where a kernel accesses memory out of bounds or is not interpreted, and
    where the provider does not run on a CPU, or is compiled.
    """
    cpu = Device("cpu", "a CPU")
    if reason := why_not(provider, case, cpu):
        raise KernelbenchError(f"{family.name} {provider.name} {case.id}: {reason}")
    if config is None and provider.configs:
        config = provider.configs(case, cpu)[0]
    inputs = CaseInputs(family, case, "cpu", seed)
    uses: list[Use] = []
    with _uncompiled(f"{family.name} {provider.name}"):
        workload = Workload(family, case, provider, inputs, config)
        results = _run(workload, uses)
    names = _names(workload, results)
    kernels = tuple(dict.fromkeys(use.by for use in uses if use.names))
    return Count(
        kernels,
        tuple(dict.fromkeys(use.by for use in uses if not use.names)),
        _rows(uses, names),
        uncovered(family, case, provider, kernels),
    )


def _run(workload: Workload, uses: list[Use]) -> tuple[Tensor, ...]:
    """The timed call. Nothing that it touches is freed before the end: addresses are unique."""
    operators = Operators(uses.append)
    kernels = Kernels(uses.append)

    def watcher(launch: Launch) -> Any:
        if not operators.counting:
            return launch.queue()
        with operators.counted(False):
            return kernels(launch)

    with workload.grad_mode(), operators, AsOnGPU(operators), watched(watcher):
        with watched(lambda launch: None):  # what only a first call does is not timed
            workload.ready()
            workload.call()
        workload.ready()
        with operators.counted(True):
            return workload.call()


def _names(workload: Workload, results: Sequence[Tensor]) -> dict[int, list[str]]:
    """The names of inputs and outputs by the address of their storage."""
    names: dict[int, list[str]] = {}
    for name, tensor in (
        *workload.all_tensors().items(),
        *zip(workload.names, results, strict=True),
    ):
        known = names.setdefault(tensor.untyped_storage().data_ptr(), [])
        if name not in known:
            known.append(name)
    return names


def _rows(uses: Sequence[Use], names: dict[int, list[str]]) -> tuple[TouchedTensor, ...]:
    by_storage: dict[int, list[Use]] = {}
    for use in uses:
        by_storage.setdefault(use.storage.data_ptr(), []).append(use)
    rows = []
    for address, group in by_storage.items():
        ours = all(use.names or use.by in CLEARING for use in group)
        parameters = dict.fromkeys(name for use in group if ours for name in use.names)
        known = tuple(names.get(address) or parameters)
        rows.append(
            TouchedTensor(
                known[0] if known else f"of {group[0].by}",
                known,
                tuple(dict.fromkeys(use.by for use in group)),
                sum(use.read for use in group),
                sum(use.written for use in group),
                sum(use.issued_read for use in group),
                sum(use.issued_written for use in group),
            )
        )
    return tuple(sorted(rows, key=lambda row: (-row.read - row.written, row.tensor)))


@contextmanager
def _uncompiled(provider: str) -> Iterator[None]:
    """Inside, torch.compile raises KernelbenchError."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise KernelbenchError(
            f"{provider} is compiled: Inductor's kernels for a GPU are not those that it makes on "
            "a CPU. Nsight Compute (ncu) counts theirs"
        )

    original = torch.compile
    torch.compile = refuse
    try:
        yield
    finally:
        torch.compile = original


def uncovered(
    family: Family[Any], case: Case, provider: Provider[Any], counted: Collection[str] = ()
) -> tuple[str, ...]:
    """Kernels that an H200 would launch and that are not among the counted ones.

    These are kernels in Gluon, which has no interpreter, and kernels whose programs wait for each
    other, which an interpreter runs one after another. Nothing is run here; Nsight Compute (ncu)
    can count their bytes.
    """
    if "triton" not in provider.requires or why_not(provider, case, HOPPER):
        return ()
    config = provider.configs(case, HOPPER)[0] if provider.configs else None
    inputs = MetaInputs(family, case)
    with described_for(Target(HOPPER.arch, HOPPER.sms)) as launches:
        workload = Workload(family, case, provider, inputs, config)
        with workload.grad_mode():
            workload.ready()
            launches.clear()
            workload.call()
    return tuple(n for n in dict.fromkeys(map(kernel_name, launches)) if n not in counted)


def discrepancies(count: Count, traffic: Sequence[Traffic]) -> list[str]:
    """Differences between the count and a byte model, in words; empty where the model is right.

    The totals read and written must differ by less than 1 %, in either direction: too high a model
    flatters a provider that moves less. A named tensor with at least 1 % of the total must be in
    the model: the words of a row, separated by ", " and spaces, name tensors or operators.
    """
    texts = []
    for direction, model, counted in (
        ("read", sum(row.read for row in traffic), count.read),
        ("written", sum(row.write for row in traffic), count.written),
    ):
        if abs(counted - model) >= SLACK * max(model, 1):
            percent = f"{(counted - model) / model:+.1%}" if model else "nothing is modelled"
            texts.append(
                f"{direction}: {counted} bytes are touched, {model} are modelled ({percent})"
            )
    words = {word for row in traffic for word in row.tensor.replace(",", " ").split()}
    least = SLACK * (count.read + count.written)
    texts += [
        f"{row.tensor} is in no row of the model: {row.read} bytes read, {row.written} written by "
        f"{', '.join(row.by)}"
        for row in count.rows
        if row.names and row.read + row.written >= least and not words & {*row.names, *row.by}
    ]
    return texts
