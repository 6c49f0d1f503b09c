"""A case: one point of a sweep, with typed axes and one identity."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from functools import cache
from itertools import product
from typing import Any, Self, get_type_hints

from kernelbench.spec.errors import UsageError, suggest

AxisValue = int | float | bool | str


class DType(StrEnum):
    """The precision of a case. `fp32` is IEEE fp32 everywhere; `tf32` is a dtype of its own. By
    torch's names, too: `float32`, `float16`, `half`, `bfloat16`."""

    fp32 = "fp32"
    tf32 = "tf32"
    fp16 = "fp16"
    bf16 = "bf16"

    @classmethod
    def _missing_(cls, value: object) -> "DType | None":
        known = DTYPE_ALIASES.get(str(value))
        return None if known is None else cls(known)

    @property
    def bytes(self) -> int:
        """Bytes of one element in memory."""
        return 4 if self in (DType.fp32, DType.tf32) else 2


DTYPE_ALIASES = {
    "float32": "fp32",
    "float": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
}


class Mode(StrEnum):
    """What is timed: forward without a graph, backward alone, or both; `jvp`, forward mode: the
    outputs and, from a tangent of each input that has a gradient, theirs."""

    fwd = "fwd"
    bwd = "bwd"
    full = "full"
    jvp = "jvp"

    @property
    def graded(self) -> bool:
        """Whether there is a backward."""
        return self in (Mode.bwd, Mode.full)


class Distribution(StrEnum):
    """How input values are drawn. Data moves a GPU's clock, so it is an axis.

    `outliers`: normal, with one value in 1024 a hundred times as large.
    """

    normal = "normal"
    zeros = "zeros"
    ones = "ones"
    uniform = "uniform"
    outliers = "outliers"


@dataclass(frozen=True)
class Axis:
    """One axis of a family's case: its name, type, default (`MISSING` when required), meaning."""

    name: str
    type: type
    default: Any
    doc: str

    @property
    def required(self) -> bool:
        return self.default is MISSING


def axis(doc: str, default: Any = MISSING) -> Any:
    """Declare an axis in a Case: `M: int = axis("rows")`."""
    return field(default=default, metadata={"doc": doc})


_COMMON = ("inputs", "dtype", "mode")  # in this order at the end of an id


@dataclass(frozen=True, kw_only=True)
class Case:
    """One point of a sweep. Families subclass it; every field is an axis.

    Axis types are int, float, bool and StrEnum. A subclass may refuse values that make no
    sense in `__post_init__` by raising ValueError with a message for the user.
    """

    dtype: DType = axis("precision of inputs and outputs", DType.bf16)
    mode: Mode = axis("what is timed", Mode.fwd)
    inputs: Distribution = axis("how input values are drawn", Distribution.normal)

    @classmethod
    @cache
    def axes(cls) -> tuple[Axis, ...]:
        """The family's own axes in the order of declaration, then inputs, dtype and mode."""
        hints = get_type_hints(cls)
        axes = {
            f.name: Axis(f.name, hints[f.name], f.default, f.metadata.get("doc", ""))
            for f in fields(cls)
        }
        own = [name for name in axes if name not in _COMMON]
        return tuple(axes[name] for name in [*own, *_COMMON])

    @property
    def id(self) -> str:
        """The one identity of a case, of `[A-Za-z0-9_.=-]`: `M4096-N1024-bf16-fwd`.

        Required axes always stand in it, optional ones when they differ from their default.
        """
        parts = []
        for ax in self.axes():
            value = getattr(self, ax.name)
            if ax.name in ("dtype", "mode"):
                parts.append(str(value))
            elif ax.required:
                parts.append(f"{ax.name}{_text(value)}")
            elif value != ax.default:
                named = value is True
                parts.append(ax.name if named else f"{ax.name}={_text(value)}")
        return "-".join(parts)

    def as_axes(self) -> dict[str, AxisValue]:
        """Every axis with a plain value, for records and for the way to the worker."""
        return {
            ax.name: str(v) if isinstance(v := getattr(self, ax.name), StrEnum) else v
            for ax in self.axes()
        }

    @classmethod
    def from_axes(cls, values: Mapping[str, AxisValue]) -> Self:
        """The inverse of `as_axes`. Raises UsageError for an unknown axis or value."""
        known = {ax.name: ax for ax in cls.axes()}
        for name in values:
            if name not in known:
                raise UsageError(f"no axis {name!r}{suggest(name, known)}")
        typed: dict[str, Any] = {name: _typed(known[name], value) for name, value in values.items()}
        missing = [ax.name for ax in known.values() if ax.required and ax.name not in typed]
        if missing:
            raise UsageError(f"missing axes: {', '.join(missing)}")
        try:
            return cls(**typed)
        except ValueError as error:
            raise UsageError(str(error)) from None

    @classmethod
    def grid(cls, **axes: Any) -> Iterator[Self]:
        """The cartesian product of lists; a single value stands for a list of one."""
        lists = [v if isinstance(v, (list, tuple)) else [v] for v in axes.values()]
        for point in product(*lists):
            yield cls.from_axes(dict(zip(axes, point, strict=True)))


def _text(value: AxisValue) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _typed(ax: Axis, value: AxisValue) -> AxisValue:
    if issubclass(ax.type, StrEnum):
        try:
            return ax.type(str(value))
        except ValueError:
            names = [member.value for member in ax.type]
            message = f"axis {ax.name!r}: no value {value!r}{suggest(str(value), names)}"
            raise UsageError(message) from None
    if ax.type is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not ax.type:
        raise UsageError(
            f"axis {ax.name!r} takes {_NAMES[ax.type]}, got {value!r} ({type(value).__name__})"
        )
    return value


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
