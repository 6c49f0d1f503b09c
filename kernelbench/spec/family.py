"""A family: one operator, how to draw its inputs, what is right, what it must cost, who does it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

from kernelbench.spec.case import Case, Mode

Tensor = Any  # torch.Tensor; this room knows the standard library alone
Tensors = Mapping[str, Tensor]
Call = Callable[[Tensors], Tensor | tuple[Tensor, ...]]
C = TypeVar("C", bound=Case)


class Role(StrEnum):
    """What a provider is in the comparison."""

    baseline = "baseline"  # unfused PyTorch, as people write it, on the best backend
    torch_fused = "torch_fused"  # the best that PyTorch itself offers
    triton_fused = "triton_fused"  # ours
    ablation = "ablation"  # same function, isolates one cause
    peer = "peer"  # a third-party package

    @property
    def ours(self) -> bool:
        """Whether a provider of this role can be the headline, and so never a yardstick of it."""
        return self in (Role.triton_fused, Role.ablation)


class Accuracy(StrEnum):
    """`exact`: the function up to rounding. `approximate`: a stated looser class."""

    exact = "exact"
    approximate = "approximate"


@dataclass(frozen=True)
class Cost:
    """The work that the algorithm must do: each input read once, each output written once."""

    flops: int
    read: int  # bytes
    write: int  # bytes

    @property
    def bytes(self) -> int:
        return self.read + self.write


@dataclass(frozen=True)
class Traffic:
    """One row of a provider's byte model: HBM bytes of one tensor, read and written."""

    tensor: str
    read: int = 0
    write: int = 0


@dataclass(frozen=True)
class Trial:
    """Inputs besides the case's own, on which every provider is proven, too; none is timed on them.

    scale: by what an input is multiplied, by its name.
    outliers: inputs of which one value in 1024 becomes a hundred times as large.
    gross: only gross errors count, of an output as a whole, above 10 × what any may err by.
    apart: outputs that mean nothing there, and are not judged: sums that cancel.
    refused: why the formula does not allow such inputs; then nothing is proven on them.
    """

    scale: Mapping[str, float] = field(default_factory=dict)
    outliers: tuple[str, ...] = ()
    gross: bool = False
    apart: tuple[str, ...] = ()
    refused: str = ""


@dataclass(frozen=True)
class Device:
    """What a provider may ask about the machine."""

    kind: str  # "cuda" or "cpu"
    name: str
    capability: tuple[int, int] | None = None
    total_bytes: int = 0
    l2_bytes: int = 0
    sms: int = 0
    no_triton: str = ""  # why Triton cannot run here; empty when it can

    @property
    def arch(self) -> str:
        """`sm_90`, or `cpu`."""
        return f"sm_{self.capability[0]}{self.capability[1]}" if self.capability else self.kind


class Draw(Protocol):
    """Draws one input tensor after another, reproducibly, on the right device."""

    @property
    def device(self) -> Any: ...

    @property
    def dtype(self) -> Any: ...

    def __call__(self, *shape: int, dtype: Any = None) -> Tensor:
        """A tensor drawn from the case's distribution, in the case's dtype unless told."""

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers in [low, high), int64."""


def as_they_are(case: Any, inputs: Tensors) -> Tensors:
    """The default `prepare`: the family's own layout."""
    return inputs


def nothing(case: Any) -> tuple[str, ...]:
    """The default `mutates`, `grads` and `flags`."""
    return ()


def no_others(case: Any) -> Mapping[str, str]:
    """The default `dtypes`."""
    return {}


def always(case: Any, device: Device) -> None:
    """The default `unsupported`: every case, everywhere."""


@dataclass(frozen=True)
class Provider(Generic[C]):
    """One implementation of a family.

    build: untimed (compile, choose); what it returns is timed. It is handed the config that
        was chosen, None for a provider without `configs`, and returns a function from the named
        inputs to the family's outputs in their order.
    prepare: untimed, layout only. What a caller would pay on each call (quantisation, say)
        belongs in the call, unless `prepacked` says otherwise, which tables show.
    configs: every config that a tuner may pick; the first is the table's choice.
    traffic: HBM bytes that this implementation moves, tensor by tensor.
    mutates: inputs that the call overwrites; they are restored, untimed, before every call.
    requires: modules that must be importable.
    unsupported: the reason why a case cannot run on a device, or None.
    max_error: for an approximate provider, the relative error that it promises.
    max_slope: likewise how far the slope of its answer on the right one may be from 1; without it,
        as far as `max_error`.
    promises: what it promises for other inputs, by the name of a trial or of a distribution: for an
        approximate provider the relative error there, where that is not `max_error` (if it is
        more, of the whole output alone); for any, the reason why it promises nothing there. Tables
        show it.
    on_request: it takes part only where a suite or `--provider` names it.
    precision: which rate its matmul flops run at, by share: {"int8": 0.5, "fp8": 0.5}.
    """

    name: str
    role: Role
    build: Callable[[C, Any], Call]
    accuracy: Accuracy = Accuracy.exact
    prepare: Callable[[C, Tensors], Tensors] = as_they_are
    configs: Callable[[C, Device], Sequence[Any]] | None = None
    traffic: Callable[[C], tuple[Traffic, ...]] | None = None
    mutates: Callable[[C], tuple[str, ...]] = nothing
    requires: tuple[str, ...] = ()
    unsupported: Callable[[C, Device], str | None] = always
    max_error: float | None = None
    max_slope: float | None = None
    promises: Mapping[str, float | str] = field(default_factory=dict)
    precision: Mapping[str, float] = field(default_factory=dict)
    prepacked: bool = False
    on_request: bool = False


Piece = tuple[Any, ...]  # name, index, right values, and the parts of them that were computed


@dataclass(frozen=True, kw_only=True)
class Family(Generic[C]):
    """One operator.

    inputs: the named input tensors of a case, and for each output `o` that takes part in the
        backward its upstream gradient `grad_o`, which no provider's forward or `prepare` is handed.
    outputs: names of what a call returns, in order.
    grads: names of the inputs that have a gradient; theirs are called `dx` for input `x`.
    oracle: yields (name, index, fp64 tensor): the right values of `output[index]`, in pieces so
        that a large case fits in memory. Together the pieces cover what the mode produces; an
        expensive oracle may yield a sample of rows. It yields gradients only when they are asked
        for (`case.mode.graded`). Pieces of outputs that are not asked for are ignored.
        Where a value holds something that passes through (a skip, a residual, a bias), the parts
        that the kernel had to compute follow, fp64 tensors like the value: (name, index, value,
        part, …). Errors are then relative to the sum of the parts, and each part's scale is judged.
    cost: the work the algorithm must do in the case's mode.
    checks: small cases that every provider must pass everywhere; of those made for each Mode, the
        ones of `modes` are kept when the family is loaded.
    trials: other inputs on which every provider is proven, by name; `small`, `large` and `outliers`
        at least, each of which may be refused with a reason. Without it, the inputs that are draws
        as they are, but no upstream gradients, are scaled by 2⁻¹⁰ and by 32, and have outliers,
        and gross errors alone count there. One on which the baseline itself is not right, or which
        leaves the dtype's range, proves nothing: the record says so.
    modes: those that it has. In `jvp` its `outputs` are those of the forward, then `tangent_y` for
        each such output y, and its `inputs` hold a `tangent_x` for each x of `grads`.
    dtypes: torch's names of the dtypes of outputs that are not of the case's, by output.
    flags: what records of a case carry of its oracle, once it has answered.
    back_to_back: a call is a whole step of a program, of more launches than a gate can hold, and
        the host's time is part of its own: calls are timed one after another, each from an idle
        GPU on.
    origin: the file it was loaded from; `families.load` fills it in.
    files: others that its code stands in, where its functions do not tell. declared: what it was
        made from, where that is no file.
    """

    name: str
    title: str
    case: type[C]
    inputs: Callable[[C, Draw], Tensors]
    outputs: Callable[[C], tuple[str, ...]]
    oracle: Callable[[C, Tensors], Iterable[Piece]]
    cost: Callable[[C], Cost]
    providers: tuple[Provider[C], ...]
    checks: tuple[C, ...]
    grads: Callable[[C], tuple[str, ...]] = nothing
    trials: Callable[[C], Mapping[str, Trial]] | None = None
    modes: tuple[Mode, ...] = (Mode.fwd, Mode.bwd, Mode.full)
    dtypes: Callable[[C], Mapping[str, str]] = no_others
    flags: Callable[[C], tuple[str, ...]] = nothing
    back_to_back: bool = False
    origin: str = ""
    files: tuple[str, ...] = ()
    declared: str = ""

    def provider(self, name: str) -> Provider[C]:
        return next(p for p in self.providers if p.name == name)

    @property
    def baseline(self) -> Provider[C]:
        return next(p for p in self.providers if p.role is Role.baseline)
