"""What can be found wrong with functions and their arguments before anything is measured."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from kernelbench.families.functions.functions import ALL, Functions
from kernelbench.families.functions.others import Raised, attempted
from kernelbench.families.functions.probe import Facts
from kernelbench.families.providing import DTYPES, MetaDraw
from kernelbench.spec import Case, Family, UsageError
from kernelbench.spec.raised import words_of

# What a reference that does not run without memory says, which real tensors will not.
_NO_MEMORY = ("meta", "item()", "data-dependent", "storage", "data_ptr", "fake", "0 active drivers")


def refuse(family: Family[Any], cases: Sequence[Case]) -> None:
    """Raises UsageError where the reference refuses the arguments of a case, on tensors without
    memory; one that runs only on real ones is left to the worker."""
    functions = family.inputs.__self__  # type: ignore[attr-defined]
    assert isinstance(functions, Functions)
    for case in cases:
        draw = MetaDraw(DTYPES[case.dtype])
        facts = functions.without_memory(case)
        if not isinstance(facts, Raised):
            _hold_gradients(functions, facts)
            continue
        if isinstance(facts.error, NotImplementedError):
            continue
        if functions.make and isinstance(attempted(partial(functions.tensors, case, draw)), Raised):
            continue  # it makes real tensors alone
        if not any(word in str(facts.error).lower() for word in _NO_MEMORY):
            raise UsageError(_refused(functions, case, draw, facts.error)) from None


def _hold_gradients(functions: Functions, facts: Facts) -> None:
    """Raises UsageError for arguments that are to have a gradient, and to which none leads."""
    lacking = [n for n in functions.grad if n != ALL and n not in facts.reached]
    if functions.grad and not facts.reached:
        lacking = lacking or ["any argument"]
    if lacking:
        raise UsageError(
            f"{functions.reference.text}: no gradient leads from what it returns to {lacking[0]}: "
            "leave it out of the backward"
        )


def _refused(functions: Functions, case: Case, draw: MetaDraw, error: BaseException) -> str:
    drawn = attempted(partial(functions.tensors, case, draw))
    tensors = {} if isinstance(drawn, Raised) else drawn
    shapes = ", ".join(
        f"{name} {tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}"
        for name, t in tensors.items()
    )
    constants = ", ".join(f"{name} {value!r}" for name, value in functions.constants(case).items())
    shown = ", ".join(filter(None, [shapes, constants]))
    return f"{functions.reference.text} refuses {shown}: {words_of(error)}"
