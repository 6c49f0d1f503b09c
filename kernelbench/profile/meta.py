"""Inputs without memory, for calls that are described and not run."""

from typing import Any

from kernelbench.families.providing import DTYPES, MetaDraw
from kernelbench.measure.inputs import CaseInputs
from kernelbench.spec import Case, Family


class MetaInputs(CaseInputs):
    """Inputs on the meta device. They have no values, so that the pristine copy is themselves."""

    def __init__(self, family: Family[Any], case: Case) -> None:
        drawn = dict(family.inputs(case, MetaDraw(DTYPES[case.dtype])))
        graded = [f"grad_{o}" for o in family.outputs(case)] if case.mode.graded else []
        self._drawn_gradients = {name: t for name, t in drawn.items() if name in graded}
        self.tensors = {name: t for name, t in drawn.items() if name not in graded}
        self.pristine = self.tensors

    def upstream(self) -> dict[str, Any]:
        return self._drawn_gradients
