"""What the functions of a family have in common: the parts that its Family is made of."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from kernelbench.families.functions.arguments import Arguments, MadeArgument, ScalarArgument
from kernelbench.families.functions.callee import Callee, Parameters
from kernelbench.families.functions.drawing import RealDraw, drawn, scalar, seed_of
from kernelbench.families.functions.exact import widely
from kernelbench.families.functions.others import Raised, attempted, seeded
from kernelbench.families.functions.probe import Facts, flat, probe
from kernelbench.families.functions.targets import Target
from kernelbench.families.providing import DTYPES, MetaDraw, compiled
from kernelbench.spec import Call, Cost, Draw, Mode, Tensors, UsageError

SAME_FP64, SAME_FP32 = 1e-9, 1e-4  # relative difference of two calls that differ by order alone
ALL = "all"
FP32_ORACLE = "oracle-fp32"
# What a reference raises that does not take another dtype than its own.
OTHERWISE = (NotImplementedError, RuntimeError, TypeError, ValueError, AssertionError, KeyError)


@dataclass
class Functions:
    """What the functions of the family have in common; its methods are parts of the Family."""

    name: str
    reference: Target
    candidates: Mapping[str, Target]
    arguments: Arguments
    grad: tuple[str, ...] = ()
    make: Target | None = None  # of the arguments, in place of those that are drawn
    oracle_target: Target | None = None  # the oracle, in place of the reference in fp64
    _facts: dict[str, Facts] = field(default_factory=dict, init=False)
    _constants: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)
    _steady: set[str] = field(default_factory=set, init=False)  # cases whose oracle answers alike
    _narrow: set[str] = field(default_factory=set, init=False)  # cases whose oracle is in fp32

    def __post_init__(self) -> None:
        names = self.arguments.names
        self.parameters = Parameters(self.reference, names) if self.reference.is_module else None
        self.callee = Callee(self.reference, names, self.parameters)
        self.oracle_callee = Callee(self.oracle_target or self.reference, names, self.parameters)
        self.callees = {n: Callee(t, names, self.parameters) for n, t in self.candidates.items()}
        known = [a.name for a in self.arguments.arguments if not isinstance(a, ScalarArgument)]
        known += self.parameters.keys if self.parameters else ()
        for name in self.grad:
            if name != ALL and name not in known:
                message = f"{self.name}: grad: no tensor {name!r}. Known: {', '.join(known)}"
                raise UsageError(message)

    def tensor_names(self, case: Any) -> tuple[str, ...]:
        """Every tensor that goes in, in order, parameters last."""
        constants = self.constants(case)
        own = [name for name in self.arguments.names if name not in constants]
        return (*own, *(self.parameters.keys if self.parameters else ()))

    def constants(self, case: Any) -> dict[str, Any]:
        """The arguments that are no tensors."""
        if case.id not in self._constants:
            axes = case.as_axes()
            constants = {
                a.name: scalar(a, axes)
                for a in self.arguments.arguments
                if isinstance(a, ScalarArgument)
            }
            arguments = attempted(partial(self._made_arguments, case, MetaDraw(DTYPES[case.dtype])))
            if isinstance(arguments, Raised):  # whatever it is, real tensors will tell
                arguments = self._made_arguments(case, RealDraw(DTYPES[case.dtype], "cpu"))
            constants |= {n: v for n, v in arguments.items() if not isinstance(v, torch.Tensor)}
            self._constants[case.id] = constants
        return self._constants[case.id]

    def tensors(self, case: Any, draw: Draw) -> dict[str, Any]:
        """The tensors that go in, without upstream gradients."""
        axes, arguments = case.as_axes(), self._made_arguments(case, draw)
        tensors = {
            a.name: arguments[a.name] if isinstance(a, MadeArgument) else drawn(a, axes, draw)
            for a in self.arguments.arguments
            if not isinstance(a, ScalarArgument)
        }
        if self.parameters is not None:
            tensors |= self.parameters.drawn(seed_of(draw), draw.device, DTYPES[case.dtype])
        return {name: t for name, t in tensors.items() if isinstance(t, torch.Tensor)}

    def _made_arguments(self, case: Any, draw: Draw) -> dict[str, Any]:
        """What the function of `inputs` makes, by name."""
        if self.make is None:
            return {}
        names = [a.name for a in self.arguments.arguments if isinstance(a, MadeArgument)]
        known = {
            **case.as_axes(),
            "dtype": draw.dtype,
            "device": draw.device,
            "seed": seed_of(draw),
        }
        signature = self.make.signature()
        takes = known if signature is None else signature.parameters
        with seeded(known["seed"]):
            arguments = self.make.function(**{name: known[name] for name in takes if name in known})
        if not isinstance(arguments, Mapping):
            values = arguments if isinstance(arguments, (tuple, list)) else (arguments,)
            arguments = dict(zip(names, values, strict=False))
        if lacking := [name for name in names if name not in arguments]:
            raise UsageError(
                f"{self.make.text} makes {', '.join(arguments)}, but no {lacking[0]!r}"
            )
        return {name: arguments[name] for name in names}

    def inputs(self, case: Any, draw: Draw) -> Tensors:
        drawn = self.tensors(case, draw)
        if case.mode.graded:
            for output in self.facts(case).outputs:
                if output.graded:
                    drawn[f"grad_{output.name}"] = draw(*output.shape, dtype=output.dtype)
        return drawn

    def facts(self, case: Any) -> Facts:
        """What the reference returns and does: without memory, or else on real tensors."""
        if case.id not in self._facts and isinstance(self.without_memory(case), Raised):
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self._facts[case.id] = self._facts_on(case, RealDraw(DTYPES[case.dtype], device))
        return self._facts[case.id]

    def without_memory(self, case: Any) -> Facts | Raised:
        """The same without memory alone, or what the reference raises there."""
        draw = MetaDraw(DTYPES[case.dtype])
        facts: Facts | Raised = attempted(partial(self._facts_on, case, draw))
        if not isinstance(facts, Raised):
            self._facts[case.id] = facts
        return facts

    def _facts_on(self, case: Any, draw: Draw) -> Facts:
        drawn, constants = self.tensors(case, draw), self.constants(case)
        call, names = self.callee.pure, tuple(drawn)
        graded = [n for n in names if drawn[n].is_floating_point() and self._wants(n)]
        by_position = _by_position(call, names, constants)
        return probe(by_position, [*drawn.values()], graded, names)

    def _wants(self, name: str) -> bool:
        buffers = self.parameters.buffers if self.parameters else ()
        return name not in buffers and (name in self.grad or ALL in self.grad)

    def outputs(self, case: Any) -> tuple[str, ...]:
        return tuple(output.name for output in self.facts(case).outputs)

    def grads(self, case: Any) -> tuple[str, ...]:
        return self.facts(case).reached

    def dtypes(self, case: Any) -> Mapping[str, str]:
        return {o.name: str(o.dtype).removeprefix("torch.") for o in self.facts(case).outputs}

    def cost(self, case: Any) -> Cost:
        """Modelled, from the reference's operators: every argument that is read, once, every
        output written once; backward: upstream gradients and what a graph saves of arguments and
        outputs in, gradients out."""
        facts = self.facts(case)
        written = sum(output.bytes for output in facts.outputs if not output.aliases)
        upstream = sum(output.bytes for output in facts.outputs if output.graded)
        if case.mode is Mode.fwd:
            return Cost(facts.flops, facts.read, written)
        if case.mode is Mode.bwd:
            return Cost(facts.backward_flops, upstream + facts.needed, facts.gradients)
        flops = facts.flops + facts.backward_flops
        return Cost(flops, facts.read + upstream, written + facts.gradients)

    def oracle(self, case: Any, a: Tensors) -> Iterator[tuple[Any, ...]]:
        """The reference in fp64, and its gradients by autograd."""
        if case.id not in self._narrow:
            try:
                pieces = self._answer(case, a, torch.float64)
            except torch.OutOfMemoryError:
                raise
            except OTHERWISE:
                self._narrow.add(case.id)
        if case.id in self._narrow:
            pieces = self._in_fp32(case, a)
        yield from pieces

    def _in_fp32(self, case: Any, a: Tensors) -> list[tuple[str, Any, torch.Tensor]]:
        try:
            return self._answer(case, a, torch.float32)
        except torch.OutOfMemoryError:
            raise
        except OTHERWISE as error:
            raise UsageError(
                f"the reference {self.oracle_callee.target.text} runs neither in fp64 nor in fp32: "
                f"{error or type(error).__name__}. Name a function that does: --oracle FILE.py:NAME"
            ) from None

    def _answer(
        self, case: Any, a: Tensors, dtype: torch.dtype
    ) -> list[tuple[str, Any, torch.Tensor]]:
        facts, names = self.facts(case), self.tensor_names(case)
        graded = facts.reached if case.mode.graded else ()
        tensors = [a[n].detach().requires_grad_(n in graded) for n in names]
        call = _by_position(self.oracle_callee.pure, names, self.constants(case))
        with torch.set_grad_enabled(bool(graded)):
            returned, wide = widely(call, tensors, dtype)
        names_out = [output.name for output in facts.outputs]
        outputs = flat(returned, names_out)
        if len(outputs) != len(facts.outputs):
            raise UsageError(
                f"{self.oracle_callee.target.text} returns {len(outputs)} tensors as the oracle, "
                f"the reference {len(facts.outputs)}"
            )
        if case.id not in self._steady:
            self._hold_same(call, tensors, outputs, dtype)
            self._steady.add(case.id)
        pieces = [
            (name, ..., t.detach().double()) for name, t in zip(names_out, outputs, strict=True)
        ]
        if graded:
            roots = [t for t, o in zip(outputs, facts.outputs, strict=True) if o.graded]
            upstream = [a[f"grad_{o.name}"].to(dtype) for o in facts.outputs if o.graded]
            leaves = [t for n, t in zip(names, wide, strict=True) if n in graded]
            gradients = torch.autograd.grad(roots, leaves, upstream, allow_unused=True)
            pieces += [
                (f"d{name}", ..., g.double())
                for name, g in zip([n for n in names if n in graded], gradients, strict=True)
                if g is not None
            ]
        return pieces

    def _hold_same(
        self,
        call: Callable[..., Any],
        tensors: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
        dtype: torch.dtype,
    ) -> None:
        """Raises UsageError for a reference that answers otherwise when it is asked again, or that
        is NaN."""
        with torch.no_grad():
            again = flat(widely(call, tensors, dtype)[0])
        text = self.oracle_callee.target.text
        most = SAME_FP64 if dtype is torch.float64 else SAME_FP32
        for first, second in zip(outputs, again, strict=True):
            one, two = first.detach().double(), second.double()
            if nan := int(one.isnan().sum()):
                raise UsageError(
                    f"the reference {text} gives NaN in {nan} of {one.numel()} elements, in "
                    f"{str(dtype).removeprefix('torch.')}: nothing can be held against it"
                )
            difference = (one - two).nan_to_num(0.0).norm()
            if difference > most * two.nan_to_num(0.0, 0.0, 0.0).norm():
                raise UsageError(
                    f"the reference {text} is not deterministic, two calls differ by "
                    f"{float(difference / one.norm()):.1e}: make its random numbers arguments"
                )

    def flags(self, case: Any) -> tuple[str, ...]:
        """What records say of the oracle."""
        return (FP32_ORACLE,) if case.id in self._narrow else ()

    def build(self, callee: Callee, case: Any, config: Any) -> Call:
        call, constants = callee.instance(), self.constants(case)
        names = self.outputs(case)
        if constants:
            return lambda a: flat(call({**a, **constants}), names)
        return lambda a: flat(call(a), names)

    def build_compiled(self, mode: str, case: Any, config: Any) -> Call:
        names = self.tensor_names(case)
        call = compiled(_by_position(self.callee.pure, names, self.constants(case)), mode)
        outputs = self.outputs(case)
        return lambda a: flat(call(*[a[name] for name in names]), outputs)


def _by_position(
    call: Callable[[Mapping[str, Any]], Any], names: Sequence[str], constants: Mapping[str, Any]
) -> Callable[..., Any]:
    """A function of the tensors in the order of their names."""
    return lambda *tensors: call({**constants, **dict(zip(names, tensors, strict=True))})
