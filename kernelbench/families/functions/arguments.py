"""The arguments of a function in one line: `x=MxN:bf16, w=N:bf16*0.02, k=8, causal=true`.

    NAME=DIMxDIM:DTYPE        a tensor, drawn from the case's distribution; *0.02 scales it
    NAME=DIM:int64[0:V]       whole numbers from 0 up to V, without V; int8, int32 and uint8, too
    NAME=DIM:bool             true or false, as often
    NAME=cu_seqlens(B,T)      B + 1 offsets in int32, from 0 to T: where B sequences begin and end
    NAME=8, 1e-5, true, gelu  a Python number, bool or str; none is None; N is the size's value
    NAME                      what the function of `inputs` makes of it

A DIM is a number, a size (in capitals, given its values apart), or a formula of both with + - * //.
`{…}` around a dim, the dtype of the first floating tensor, or a scalar lists values: a sweep. The
dtype of the first floating tensor is the case's, and whatever has the same follows it.
"""

import ast
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kernelbench.spec import DTYPE_ALIASES, Case, DType, UsageError, suggest

SIZE = re.compile(r"[A-Z][A-Z0-9_]*")
FLOATING = {
    **{member.value: member.value for member in DType},
    **DTYPE_ALIASES,
    "fp64": "float64",
    "float64": "float64",
    "float8_e4m3fn": "float8_e4m3fn",
    "float8_e5m2": "float8_e5m2",
    "fp8": "float8_e4m3fn",
}
WHOLE = ("int8", "uint8", "int16", "int32", "int64")
RESERVED = {*dir(Case), *keyword.kwlist, "label", "zip", "providers", "world"}
MOST_VALUES = 1000
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TENSOR = re.compile(
    r"(?P<dims>[^:\[\]]+):(?P<dtype>\{[^}]*\}|[a-z0-9_]+)"
    r"(?:\[(?P<low>[^:\[\]]+):(?P<high>[^:\[\]]+)\])?(?:\*(?P<scale>[0-9.eE+-]+))?"
)
_OFFSETS = re.compile(r"cu_seqlens\(([^,()]+),([^,()]+)\)")
_WORD = re.compile(r"[A-Za-z0-9_.=-]+")

Sizes = Mapping[str, Any]


@dataclass(frozen=True)
class TensorArgument:
    """dims: numbers, sizes or formulas. dtype: torch's or the harness's name, "" for the case's.

    bounds: of whole numbers. literal: all dims are numbers, so they are an axis of the case.
    """

    name: str
    dims: tuple[str, ...]
    dtype: str
    bounds: tuple[str, str] | None = None
    scale: float = 1.0

    @property
    def literal(self) -> bool:
        return all(dim.isdigit() for dim in self.dims)

    @property
    def shape(self) -> str:
        """The value of its axis."""
        return "x".join(self.dims)

    def dims_at(self, sizes: Sizes) -> tuple[int, ...]:
        """Its shape at a case. Raises UsageError for a dim that is negative there."""
        dims = str(sizes[self.name]).split("x") if self.literal else self.dims
        shape = tuple(value_of(dim, sizes, self.name) for dim in dims)
        if min(shape) < 0:
            raise UsageError(f"argument {self.name}: a dim of {shape} is negative")
        return shape


@dataclass(frozen=True)
class OffsetsArgument:
    """Where `count` sequences of `total` rows begin and end."""

    name: str
    count: str
    total: str


@dataclass(frozen=True)
class ScalarArgument:
    """A Python value: an axis of the case, or what `formula` says of its sizes, or None."""

    name: str
    formula: str = ""
    is_axis: bool = True


@dataclass(frozen=True)
class MadeArgument:
    """A tensor, or a number, that the function of `inputs` makes."""

    name: str


Argument = TensorArgument | OffsetsArgument | ScalarArgument | MadeArgument


@dataclass(frozen=True)
class Arguments:
    """What a function is called with, in order, and the axes that say how.

    sizes: those whose values are given apart. axes: of the other axes their values, by name.
    dtypes: those of the case.
    """

    arguments: tuple[Argument, ...]
    sizes: tuple[str, ...]
    axes: Mapping[str, tuple[Any, ...]]
    dtypes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(argument.name for argument in self.arguments)


def parse(text: str, made_of: Sequence[str] | None = None) -> Arguments:
    """The arguments of a line. made_of: what the function of `inputs` takes, None without one.

    Raises UsageError for what is not understood.
    """
    arguments: list[Argument] = []
    axes: dict[str, tuple[Any, ...]] = {}
    dtypes: tuple[str, ...] = ()
    for part in _split(text):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if made_of is not None and not equals and _NAME.fullmatch(name):
            arguments.append(MadeArgument(name))
            continue
        _hold_name(part, name, bool(equals and value), [a.name for a in arguments])
        if offsets := _OFFSETS.fullmatch(value.replace(" ", "")):
            arguments.append(OffsetsArgument(name, offsets[1], offsets[2]))
        elif ":" in value:
            tensor, listed, own = _tensor(name, value, dtypes)
            axes |= listed
            dtypes = dtypes or own
            arguments.append(tensor)
            if tensor.literal:
                axes[name] = (tensor.shape,)
        else:
            scalar, values = _scalar(name, value)
            arguments.append(scalar)
            if scalar.is_axis:
                axes[name] = values
    if not arguments:
        raise UsageError("--args names no argument; such as --args 'x=MxN:bf16, w=N:bf16'")
    sizes = _sizes(arguments, axes, made_of or ())
    return Arguments(tuple(arguments), sizes, axes, dtypes or ("fp32",))


def with_sizes(arguments: Arguments, sizes: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
    """The values of every axis. Raises UsageError for a size without a value, and for one that no
    argument has."""
    lacking = [name for name in arguments.sizes if name not in sizes]
    if lacking:
        raise UsageError(
            f"--args: {', '.join(lacking)} has no value: --size {lacking[0]}=1024, say, or a list, "
            f"{lacking[0]}=1024,4096"
        )
    for name in sizes:
        if name not in arguments.sizes:
            hint = suggest(name, arguments.sizes) if arguments.sizes else ""
            raise UsageError(f"--size {name}: no argument has this size{hint}")
    axes = {name: list(sizes[name]) for name in arguments.sizes}
    return axes | {name: list(values) for name, values in arguments.axes.items()}


def sizes_of(options: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`M=1024,4096` or `M=1024..8192` (each twice the last) or `M=1..9+2` → the values of sizes."""
    sizes: dict[str, tuple[int, ...]] = {}
    for option in options:
        name, equals, text = (piece.strip() for piece in option.partition("="))
        if name in sizes:
            raise UsageError(f"--size {name} stands twice: give its values in one, {name}=4,8")
        if not equals or not SIZE.fullmatch(name):
            raise UsageError(
                f"--size {option}: expected NAME=VALUES, a name in capitals, such as M=1024,4096 "
                "or M=1024..8192"
            )
        sizes[name] = _numbers(f"--size {option}", text)
    return sizes


def value_of(text: str, sizes: Sizes, name: str) -> int:
    """A number, size or formula at a case. Raises UsageError for what is none."""
    try:
        value = _evaluated(ast.parse(text.strip(), mode="eval").body, sizes)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError) as error:
        why = f" ({error})" if isinstance(error, (ZeroDivisionError, OverflowError)) else ""
        raise UsageError(
            f"argument {name}: {text!r} is no number, size or formula{why}. A size is in "
            "capitals; a formula has + - * //"
        ) from None
    return value


_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
}


def _evaluated(node: ast.expr, sizes: Sizes) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluated(node.operand, sizes)
    if isinstance(node, ast.Name) and isinstance(sizes.get(node.id), int):
        return int(sizes[node.id])
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        operation = _OPERATIONS[type(node.op)]
        return operation(_evaluated(node.left, sizes), _evaluated(node.right, sizes))
    raise ValueError(ast.unparse(node))


def _split(text: str) -> list[str]:
    """At commas outside of brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


def _hold_name(part: str, name: str, whole: bool, taken: Sequence[str]) -> None:
    if not whole or not _NAME.fullmatch(name):
        raise UsageError(
            f"--args: {part!r} is no NAME=VALUE. A tensor is x=4096x1024:bf16, a number k=8"
        )
    hold_free(name)
    if name in taken:
        raise UsageError(f"--args: {name!r} stands twice")


def hold_free(name: str) -> None:
    """Raises UsageError for an argument's name that means something else."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"--args: {name!r} is no name of an argument")
    if name in RESERVED or name.startswith(("grad_", "tangent_")):
        raise UsageError(
            f"--args: {name!r} is a word of Python or kernelbench: call the argument otherwise; "
            "functions that do not know that name are called by position"
        )


def _tensor(
    name: str, value: str, dtypes: tuple[str, ...]
) -> tuple[TensorArgument, dict[str, tuple[Any, ...]], tuple[str, ...]]:
    """A tensor, the axes of the lists among its dims, and the case's dtypes if it says them."""
    match = _TENSOR.fullmatch(value.replace(" ", "").replace("×", "x"))
    if match is None:
        raise UsageError(
            f"--args: {name}={value}: expected DIMxDIM:DTYPE, such as {name}=MxN:bf16, "
            f"{name}=M:int64[0:100] or {name}=M:bf16*0.02"
        )
    axes: dict[str, tuple[Any, ...]] = {}
    dims = []
    for at, dim in enumerate(re.split(r"x(?![^{]*\})", match["dims"])):
        if dim.startswith("{"):
            axes[f"{name}_{at}"] = _numbers(f"--args: {name}={value}", dim.strip("{}"))
            dim = f"{name}_{at}"
        dims.append(dim)
    kinds = _dtypes(name, match["dtype"], bool(dtypes))
    whole = kinds[0] in (*WHOLE, "bool")
    bounds = None if match["low"] is None else (match["low"], match["high"])
    if whole != (bounds is not None or kinds[0] == "bool"):
        raise UsageError(
            f"--args: {name}={value}: whole numbers say their range, {name}={match['dims']}:"
            f"int64[0:100] (without the end), and other dtypes have none"
        )
    own = () if whole or dtypes or kinds[0] not in {*DType} else tuple(kinds)
    follows = bool(own) or kinds[0] == next(iter(dtypes), None)
    dtype = "" if follows else kinds[0]
    return TensorArgument(name, tuple(dims), dtype, bounds, float(match["scale"] or 1)), axes, own


def _dtypes(name: str, text: str, has_dtype: bool) -> list[str]:
    listed = [word for word in text.strip("{}").split(",") if word]
    known = {**FLOATING, **dict.fromkeys((*WHOLE, "bool"))}
    for word in listed:
        if word not in known:
            raise UsageError(f"--args: argument {name}: no dtype {word!r}{suggest(word, known)}")
    if not listed or (len(listed) > 1 and has_dtype):
        raise UsageError(
            f"--args: argument {name}: one dtype; the list of a sweep stands at the first "
            "floating tensor, and what has the first dtype of that list follows it"
        )
    return [FLOATING.get(word, word) for word in listed]


def _scalar(name: str, text: str) -> tuple[ScalarArgument, tuple[Any, ...]]:
    words = [word.strip() for word in text.strip("{}").split(",")]
    if len(words) == 1 and words[0].lower() == "none":
        return ScalarArgument(name, is_axis=False), ()
    if len(words) == 1 and any(SIZE.fullmatch(word) for word in re.findall(r"\w+", words[0])):
        return ScalarArgument(name, formula=words[0], is_axis=False), ()
    values = tuple(_literal(name, word) for word in words)
    kinds = {type(value) for value in values}
    if kinds == {int, float}:
        values = tuple(float(value) for value in values)
    elif len(kinds) > 1:
        raise UsageError(f"--args: {name}={text}: the values of a list are of one type")
    return ScalarArgument(name), values


def _literal(name: str, word: str) -> int | float | bool | str:
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    try:
        return int(word)
    except ValueError:
        pass
    try:
        return float(word)
    except ValueError:
        pass
    word = word.strip("'\"")
    if re.fullmatch(r"\d+(x[\dA-Z]+)+", word):
        raise UsageError(f"--args: {name}={word}: a tensor says its dtype: {name}={word}:bf16")
    if not _WORD.fullmatch(word):
        raise UsageError(
            f"--args: {name}={word}: a number, true, false, none, or a word of A-Z a-z 0-9 _ . = -"
        )
    return word


def _numbers(where: str, text: str) -> tuple[int, ...]:
    """`8,16`, `8..64` (doubling) or `8..64+8`."""
    values: list[int] = []
    for word in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d+)(?:\.\.(\d+)(?:\+(\d+))?)?", word)
        if match is None:
            raise UsageError(f"{where}: {word!r} is no whole number and no range 1024..8192")
        first, last, step = int(match[1]), match[2], match[3]
        if last is None:
            values.append(first)
            continue
        if first < 1 or int(last) < first or step == "0":
            raise UsageError(f"{where}: {word!r} is empty: a range begins at 1 or more, and rises")
        while first <= int(last) and len(values) < MOST_VALUES:
            values.append(first)
            first = first + int(step) if step else 2 * first
    return tuple(dict.fromkeys(values))


def _sizes(
    arguments: Sequence[Argument], axes: Mapping[str, Any], made_of: Sequence[str]
) -> tuple[str, ...]:
    """The sizes that formulas name, and that the function of `inputs` takes. Raises UsageError for
    a formula that is none."""
    formulas = [(a.name, formula) for a in arguments for formula in _formulas(a)]
    words = [word for _, formula in formulas for word in re.findall(r"[A-Za-z_]\w*", formula)]
    words += [word for word in made_of if SIZE.fullmatch(word)]
    for word in words:
        if word not in axes and not SIZE.fullmatch(word):
            raise UsageError(f"--args: {word!r} is no size: a size is in capitals")
    ones = dict.fromkeys([*words, *axes], 1)
    for name, formula in formulas:
        value_of(formula, ones, name)
    return tuple(dict.fromkeys(word for word in words if word not in axes))


def _formulas(argument: Argument) -> tuple[str, ...]:
    if isinstance(argument, TensorArgument):
        return (*argument.dims, *(argument.bounds or ()))
    if isinstance(argument, OffsetsArgument):
        return argument.count, argument.total
    return (argument.formula,) if isinstance(argument, ScalarArgument) and argument.formula else ()
