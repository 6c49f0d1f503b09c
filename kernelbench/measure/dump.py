"""The files of `check --dump`: a case's tensors, to be examined in Python."""

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

    folder: in which `family/case/` is made; nothing is written where it is "".
    """

    def __init__(self, folder: str, family: Family[Any], case: Any) -> None:
        self._folder = Path(folder, family.name, case.id) if folder else None
        self._written: set[str] = set()  # trials whose inputs and oracle are written

    def keep(self, provider: str, oracle: Oracle, produced: Tensors, trial: str = "") -> None:
        """Write a provider's outputs; for the first provider also the inputs and the oracle.

        trial: the trial that drew the inputs, which has its own folder; "" for the case's own.
        """
        if self._folder is None:
            return
        folder = self._folder / trial
        folder.mkdir(parents=True, exist_ok=True)
        _save(folder / f"{provider}.pt", produced)
        if trial not in self._written:
            _save(folder / "inputs.pt", oracle.inputs.with_upstream())
            _save(folder / "oracle.pt", self._assembled(oracle, produced))
            self._written.add(trial)

    def _assembled(self, oracle: Oracle, produced: Tensors) -> dict[str, torch.Tensor]:
        """Whole outputs from the oracle's pieces, NaN where it has no values."""
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
    """Save copies: a view would be saved with its whole storage."""
    packed = io.BytesIO()
    torch.save({name: t.detach().cpu().clone() for name, t in tensors.items()}, packed)
    files.write(file, packed.getvalue())


def _on_cpu(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_on_cpu, index))
    return index.cpu() if isinstance(index, torch.Tensor) else index
