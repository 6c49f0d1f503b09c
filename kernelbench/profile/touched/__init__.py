"""The bytes that a provider touches in memory, counted on a CPU, against the model it states.

Our kernels run in Triton's interpreter, PyTorch's operators as they are. Counted are distinct
bytes of a launch or operator: what a kernel reads again comes from a cache. The counts say nothing
of time.
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

SLACK = 0.01  # of a model's total that may be touched beside it
HOPPER = Device("cuda", "a GPU of sm_90", (9, 0), sms=132)


@dataclass(frozen=True)
class Touched:
    """One tensor (its storage), in distinct bytes of each launch or operator, summed over them.

    tensor: the name of an input or output; else of a kernel's parameter, else of the operator that
        touched it first.
    names: all names that it goes by: inputs' and outputs' where it has such, else parameters';
        none for what PyTorch's operators make for each other or for a kernel.
    by: kernels and operators that touched it.
    issued_*: every lane's bytes, repeats included; masked lanes are in none of the counts.
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
    rows: tuple[Touched, ...]
    uncovered: tuple[str, ...]

    @property
    def read(self) -> int:
        return sum(row.read for row in self.rows)

    @property
    def written(self) -> int:
        return sum(row.written for row in self.rows)

    def without(self, *tensors: str) -> "Count":
        """The same without some tensors, by name."""
        rows = tuple(row for row in self.rows if row.tensor not in tensors)
        return Count(self.kernels, self.operators, rows, self.uncovered)


def touched(
    family: Family[Any], case: Case, provider: Provider[Any], config: Any = None, seed: int = 0
) -> Count:
    """Run a provider once in the case's mode on CPU tensors, and count what the call touches.

    config: one of the provider's, the table's choice if None.
    Raises KernelbenchError where a kernel reaches out of bounds or is not interpreted, and where
    the provider does not run on a CPU, or is compiled.
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
    """The timed call. Nothing that it touches is freed before the end: addresses stay apart."""
    operators = Operators(uses.append)
    kernels = Kernels(uses.append)

    def watcher(launch: Launch) -> Any:
        if not operators.counting:
            return launch.queue()
        with operators.counted(False):
            return kernels(launch)

    with workload.grad_mode(), operators, AsOnGPU(operators), watched(watcher):
        with watched(lambda launch: None):  # what a first call makes and keeps is not timed
            workload.ready()
            workload.call()
        workload.ready()
        with operators.counted(True):
            return workload.call()


def _names(workload: Workload, results: Sequence[Tensor]) -> dict[int, list[str]]:
    """Of inputs and outputs, by the address of their storage."""
    names: dict[int, list[str]] = {}
    tensors = workload.all_tensors()
    for name, tensor in (*tensors.items(), *zip(workload.names, results, strict=True)):
        known = names.setdefault(tensor.untyped_storage().data_ptr(), [])
        if name not in known:
            known.append(name)
    return names


def _rows(uses: Sequence[Use], names: dict[int, list[str]]) -> tuple[Touched, ...]:
    by_storage: dict[int, list[Use]] = {}
    for use in uses:
        by_storage.setdefault(use.storage.data_ptr(), []).append(use)
    rows = []
    for address, found in by_storage.items():
        ours = all(use.names or use.by in CLEARING for use in found)
        parameters = dict.fromkeys(name for use in found if ours for name in use.names)
        known = tuple(names.get(address) or parameters)
        rows.append(
            Touched(
                known[0] if known else f"of {found[0].by}",
                known,
                tuple(dict.fromkeys(use.by for use in found)),
                sum(use.read for use in found),
                sum(use.written for use in found),
                sum(use.issued_read for use in found),
                sum(use.issued_written for use in found),
            )
        )
    return tuple(sorted(rows, key=lambda row: (-row.read - row.written, row.tensor)))


@contextmanager
def _uncompiled(who: str) -> Iterator[None]:
    """Raises KernelbenchError where torch.compile is called."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise KernelbenchError(
            f"{who} is compiled: Inductor's kernels for a GPU are not those that it makes on a "
            "CPU. Nsight Compute (ncu) counts theirs"
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

    Those in Gluon, which no interpreter runs, and those whose programs wait for each other, which
    an interpreter runs one after another. Nothing is run; Nsight Compute (ncu) counts their bytes.
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
    """Where what was touched and a model differ; none where the model is a right one.

    Totals read and written may differ by less than 1 % either way: a model that says too much
    flatters whoever moves less. A tensor of 1 % of the total and more that has a name must be in
    the model: a row's words, apart at ", " and spaces, name tensors, or operators.
    """
    texts = []
    for what, model, counted in (
        ("read", sum(row.read for row in traffic), count.read),
        ("written", sum(row.write for row in traffic), count.written),
    ):
        if abs(counted - model) >= SLACK * max(model, 1):
            percent = f"{(counted - model) / model:+.1%}" if model else "nothing is modelled"
            texts.append(f"{what}: {counted} bytes are touched, {model} are modelled ({percent})")
    words = {word for row in traffic for word in row.tensor.replace(",", " ").split()}
    least = SLACK * (count.read + count.written)
    texts += [
        f"{row.tensor} is in no row of the model: {row.read} bytes read, {row.written} written by "
        f"{', '.join(row.by)}"
        for row in count.rows
        if row.names and row.read + row.written >= least and not words & {*row.names, *row.by}
    ]
    return texts
