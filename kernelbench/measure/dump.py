"""What `check --dump` keeps of a case, for whoever wants to look at it in Python."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kernelbench import files
from kernelbench.measure.deviation import Oracle
from kernelbench.spec import Family

Tensors = Mapping[str, torch.Tensor]


class Dump:
    """Files of one case: `inputs.pt`, `oracle.pt` and `<provider>.pt`, each a dict of tensors.

    folder: the one that `family/case/` is made in; nothing is kept where it is empty.
    """

    def __init__(self, folder: str, family: Family[Any], case: Any) -> None:
        self._folder = Path(folder, family.name, case.id) if folder else None
        self._told: set[str] = set()  # trials whose inputs and oracle are there

    def keep(self, provider: str, oracle: Oracle, produced: Tensors, trial: str = "") -> None:
        """What a provider answered; beside the first, what it was asked, and what is right.

        trial: the one whose inputs these are, which has a folder of its own.
        """
        if self._folder is None:
            return
        folder = self._folder / trial
        folder.mkdir(parents=True, exist_ok=True)
        _save(folder / f"{provider}.pt", produced)
        if trial not in self._told:
            _save(folder / "inputs.pt", oracle.inputs.whole())
            _save(folder / "oracle.pt", self._assembled(oracle, produced))
            self._told.add(trial)

    def _assembled(self, oracle: Oracle, produced: Tensors) -> dict[str, torch.Tensor]:
        """Whole outputs from the oracle's pieces, NaN where it says nothing."""
        tensors = {
            name: torch.full(tensor.shape, torch.nan, dtype=torch.float64)
            for name, tensor in produced.items()
        }
        for name, index, ref, *_ in oracle.pieces():
            if name not in tensors:
                continue
            tensors[name][_on_cpu(index)] = ref.cpu()
        return tensors


def _save(file: Path, tensors: Tensors) -> None:
    """Copies, or a view would bring all it is of."""
    packed = io.BytesIO()
    torch.save({name: t.detach().cpu().clone() for name, t in tensors.items()}, packed)
    files.write(file, packed.getvalue())


def _on_cpu(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_on_cpu, index))
    return index.cpu() if isinstance(index, torch.Tensor) else index
