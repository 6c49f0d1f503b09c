"""The inputs of a case: drawn from a seed, and redrawn, into memory that its providers share."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from kernelbench.measure.environment import TORCH_DTYPES
from kernelbench.measure.parts import inputs_of
from kernelbench.spec import Case, Distribution, Family, Trial

Tensors = dict[str, torch.Tensor]
OUTLIER, RARE = 100, 1024  # one value in RARE is OUTLIER times as large


class Draw:
    """Draws inputs from the case's distribution, reproducibly from a seed (see spec.Draw)."""

    def __init__(self, case: Case, device: str, seed: int) -> None:
        self.device = torch.device(device)
        self.dtype = TORCH_DTYPES[case.dtype]
        self._kind = case.inputs
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._drawn: list[torch.Tensor] = []

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        out = self._values(torch.empty(shape, dtype=dtype or self.dtype, device=self.device))
        self._drawn.append(out)
        return out

    def has_drawn(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is one of those drawn, or a view of one."""
        storage = tensor.untyped_storage().data_ptr()
        return any(t.untyped_storage().data_ptr() == storage for t in self._drawn)

    def _values(self, out: torch.Tensor) -> torch.Tensor:
        match self._kind:
            case Distribution.zeros:
                return out.zero_()
            case Distribution.ones:
                return out.fill_(1)
            case Distribution.uniform:
                return out.uniform_(-1, 1, generator=self._generator)
            case Distribution.normal:
                return out.normal_(generator=self._generator)
            case Distribution.outliers:
                out.normal_(generator=self._generator)
                out.view(-1)[::RARE] *= OUTLIER
                return out

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self._generator, device=self.device)


class CaseInputs:
    """The inputs of one case, shared by its providers, and a pristine copy of them.

    tensors: the shared inputs by name. pristine: their copies. drawn: names of inputs that are
    values of the distribution, and not derived from such. constant: whether all values are equal.
    Upstream gradients are not among them: `upstream` draws those whenever a backward needs them.
    """

    def __init__(self, family: Family[Any], case: Case, device: str, seed: int) -> None:
        self._family, self._case, self._device, self._seed = family, case, device, seed
        self._drawn_as = case  # the case whose distribution is drawn from
        self._trial = Trial()
        graded = case.mode.graded
        self._gradients = {f"grad_{name}" for name in family.outputs(case)} if graded else set()
        draw = Draw(case, device, seed)
        self.tensors: Tensors = self._own(inputs_of(family, case, draw))
        self.drawn = tuple(name for name, t in self.tensors.items() if draw.has_drawn(t))
        self.pristine: Tensors = {name: t.clone() for name, t in self.tensors.items()}
        self.constant = case.inputs in (Distribution.zeros, Distribution.ones)

    def upstream(self) -> Tensors:
        """The upstream gradients that belong to the current inputs, in new memory.

        Each call draws them again, with all that is drawn before them.
        """
        if not self._gradients:
            return {}
        return {n: t for n, t in self._drawn().items() if n in self._gradients}

    def with_upstream(self) -> Tensors:
        """Pristine inputs and upstream gradients, as the family's oracle takes them."""
        return self.pristine | self.upstream()

    def redraw(self, seed: int, trial: Trial | None = None) -> None:
        """Draw other values, which `Workload.ready` copies into the same memory.

        A cached answer is then wrong. Where all values of the case are equal, fresh ones would be
        the same, so they are drawn from a normal distribution.
        trial: how to change the values of the case's own distribution.
        """
        self.pristine = {}
        if self.constant and trial is None:
            self._drawn_as = replace(self._case, inputs=Distribution.normal)
        self._seed, self._trial = seed, trial or Trial()
        self.pristine = self._own(self._drawn())

    def _own(self, drawn: Tensors) -> Tensors:
        return {name: t for name, t in drawn.items() if name not in self._gradients}

    def _drawn(self) -> Tensors:
        draw = Draw(self._drawn_as, self._device, self._seed)
        drawn = inputs_of(self._family, self._case, draw)
        return {name: apply_trial(name, tensor, self._trial) for name, tensor in drawn.items()}


def apply_trial(name: str, tensor: torch.Tensor, trial: Trial) -> torch.Tensor:
    """The input `name` with the outliers and the scale of a trial."""
    if name in trial.outliers:
        factor = torch.ones(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
        factor[::RARE] = OUTLIER
        tensor = tensor * factor.view(tensor.shape)
    return tensor * trial.scale[name] if trial.scale.get(name, 1.0) != 1.0 else tensor


def copy_into(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy, also into a tensor expanded by a layout (stride 0), whose elements are stored once."""
    for dim, (size, stride) in enumerate(zip(target.shape, target.stride(), strict=True)):
        if stride == 0 and size > 1:
            target, source = target.narrow(dim, 0, 1), source.narrow(dim, 0, 1)
    target.data.copy_(source)


def storage_addresses(tensors: Mapping[str, torch.Tensor]) -> set[int]:
    """The addresses of the tensors' storages."""
    return {t.untyped_storage().data_ptr() for t in tensors.values()}


def referenced_elsewhere(tensor: Any, outputs: Sequence[torch.Tensor]) -> bool:
    """Whether a tensor or its storage is referenced from elsewhere than these outputs, such as by a
    graph that returns what it saved."""
    storage = tensor.untyped_storage()
    own = sum(part.untyped_storage()._cdata == storage._cdata for part in outputs)
    users = torch._C._storage_Use_Count(storage._cdata) - 1  # without `storage` itself
    return bool(users > own or tensor._use_count() > 1)
