"""A family made of a function and its reference: what `kernelbench bench` and a suite's
`functions` measure.

The reference is the baseline and, in fp64 (`exact`), the oracle; where an operator of it has no
fp64 form, fp32 is the oracle, and records say so. What it returns, how much work it is and which
arguments have a gradient is found by running it on tensors without memory (`probe`).
"""

from collections.abc import Mapping
from dataclasses import make_dataclass
from functools import partial
from typing import Any

from kernelbench.families.functions import arguments as grammar
from kernelbench.families.functions.arguments import Arguments, TensorArgument
from kernelbench.families.functions.functions import Functions
from kernelbench.families.functions.targets import files_of, find, takes
from kernelbench.families.providing import MAX_AUTOTUNE, no_autotuner, no_compiler
from kernelbench.spec import (
    COMPILE,
    Accuracy,
    Case,
    Declaration,
    Family,
    Mode,
    Provider,
    Role,
    axis,
)

__all__ = ["Functions", "case_of", "family_of", "of_declaration"]


def case_of(name: str, arguments: Arguments) -> type[Case]:
    """The case of a family: an axis for each size, each scalar, each shape made of numbers."""
    fields: list[Any] = [(size, int, axis("a size")) for size in arguments.sizes]
    for key, values in arguments.axes.items():
        argument = next((a for a in arguments.arguments if a.name == key), None)
        doc = "a dim" if argument is None else "an argument"
        if isinstance(argument, TensorArgument):
            doc = f"the shape of {key}"
        fields.append((key, type(values[0]), axis(doc)))
    case = make_dataclass(f"{name}_case", fields, bases=(Case,), frozen=True, kw_only=True)
    case.__module__ = __name__
    return case


def family_of(functions: Functions, declared: Declaration) -> Family[Any]:
    """The Family. declared: what it is made from, and how its providers are."""
    reference = functions.reference
    baseline = Provider(
        _unlike(reference.name, functions.candidates),
        Role.baseline,
        partial(functions.build, functions.callee),
    )
    compilers = [
        Provider(
            COMPILE[mode],
            Role.torch_fused,
            partial(functions.build_compiled, "default" if mode == "default" else MAX_AUTOTUNE),
            unsupported=no_compiler if mode == "default" else no_autotuner,
        )
        for mode in declared.compile
    ]
    candidates = [
        _candidate(name, functions, declared.max_error.get(name)) for name in functions.candidates
    ]
    modes = (Mode.fwd, Mode.bwd, Mode.full) if functions.grad else (Mode.fwd,)
    targets = [reference, *functions.candidates.values(), functions.make, functions.oracle_target]
    files = files_of([target for target in targets if target is not None])
    return Family(
        name=functions.name,
        title=f"{reference.text} of {declared.args or declared.inputs}",
        case=case_of(functions.name, functions.arguments),
        inputs=functions.inputs,
        outputs=functions.outputs,
        grads=functions.grads,
        oracle=functions.oracle,
        cost=functions.cost,
        dtypes=functions.dtypes,
        flags=functions.flags,
        providers=(baseline, *compilers, *candidates),
        checks=(),
        modes=modes,
        origin=files[0] if files else "",
        files=files,
        declared=declared.as_json(),
    )


def _unlike(name: str, taken: Mapping[str, Any]) -> str:
    """The reference's name, where no candidate is called so."""
    used = {*taken, *COMPILE.values()}
    return next(n for n in (name, "reference", "the_reference", "against") if n not in used)


def _candidate(name: str, functions: Functions, max_error: float | None) -> Provider[Any]:
    target = functions.candidates[name]
    return Provider(
        name,
        Role.torch_fused if target.of_torch else Role.triton_fused,
        partial(functions.build, functions.callees[name]),
        accuracy=Accuracy.exact if max_error is None else Accuracy.approximate,
        max_error=max_error,
    )


def of_declaration(declared: Declaration) -> Family[Any]:
    """Its family. Raises UsageError or PluginError for what a declaration has wrong."""
    imports = declared.imports
    make = find(declared.inputs, imports) if declared.inputs else None
    arguments = grammar.parse(declared.args, takes(make))
    functions = Functions(
        name=declared.name,
        reference=find(declared.against, imports),
        candidates={name: find(text, imports) for name, text in declared.candidates.items()},
        arguments=arguments,
        grad=declared.grad,
        make=make,
        oracle_target=find(declared.oracle, imports) if declared.oracle else None,
    )
    return family_of(functions, declared)
