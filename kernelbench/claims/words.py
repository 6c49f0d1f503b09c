"""The types of a claims file: a document, and the figures that it publishes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from math import inf
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import BeforeValidator, ConfigDict

from kernelbench.spec import DType, Mode
from kernelbench.spec.case import AxisValue

STRICT = ConfigDict(extra="forbid", strict=True)
_NUMBER = re.compile(r"(\d[\d,]*)(?:\.(\d+))?")


class Nature(StrEnum):
    """How a figure depends on the hardware."""

    ratio = "ratio"  # of two figures of one machine: comparable on another
    amount = "amount"  # bytes, errors, tokens: follows from shapes and code
    absolute = "absolute"  # a time or a rate: means nothing on another machine


class Metric(StrEnum):
    """The quantity of a figure."""

    speedup = "speedup"
    slowdown = "slowdown"
    gain_pct = "gain_pct"
    overhead_pct = "overhead_pct"
    hbm_saved_pct = "hbm_saved_pct"
    memory_saved_pct = "memory_saved_pct"
    scaling_pct = "scaling_pct"
    training_speedup = "training_speedup"
    training_gain_pct = "training_gain_pct"
    hbm_mib = "hbm_mib"
    tokens = "tokens"
    max_error = "max_error"
    cosine = "cosine"
    cycles = "cycles"
    ms = "ms"
    overhead_ms = "overhead_ms"
    tokens_per_s = "tokens_per_s"
    gflops = "gflops"
    gbps = "gbps"


class Sort(NamedTuple):
    """unit: as printed. more_is_better. measurable: from records, `pair` of them if so."""

    unit: str
    more_is_better: bool
    nature: Nature
    measurable: bool
    pair: bool = False

    @property
    def positive(self) -> bool:
        """Whether a value must be above 0: times, rates and their quotients."""
        return self.unit.startswith("×") or (self.nature is Nature.absolute and not self.pair)


# fmt: off
SORTS: Mapping[Metric, Sort] = {
    Metric.speedup: Sort("×", True, Nature.ratio, True, True),
    Metric.slowdown: Sort("× slower", False, Nature.ratio, True, True),
    Metric.gain_pct: Sort("% faster", True, Nature.ratio, True, True),
    Metric.overhead_pct: Sort("% overhead", False, Nature.ratio, True, True),
    Metric.hbm_saved_pct: Sort("% HBM saved", True, Nature.ratio, True, True),
    Metric.memory_saved_pct: Sort("% memory saved", True, Nature.ratio, True, True),
    Metric.scaling_pct: Sort("% scaling", True, Nature.ratio, False),
    Metric.training_speedup: Sort("× training", True, Nature.ratio, False),
    Metric.training_gain_pct: Sort("% training", True, Nature.ratio, False),
    Metric.hbm_mib: Sort("MiB", False, Nature.amount, True),
    Metric.tokens: Sort("tokens", True, Nature.amount, False),
    Metric.max_error: Sort("max error", False, Nature.amount, True),
    Metric.cosine: Sort("cosine", True, Nature.amount, True),
    Metric.cycles: Sort("cycles", False, Nature.absolute, False),
    Metric.ms: Sort("ms", False, Nature.absolute, True),
    Metric.overhead_ms: Sort("ms overhead", False, Nature.absolute, True, True),
    Metric.tokens_per_s: Sort("tokens/s", True, Nature.absolute, True),
    Metric.gflops: Sort("GFLOP/s", True, Nature.absolute, True),
    Metric.gbps: Sort("GB/s", True, Nature.absolute, True),
}
# fmt: on


class Bound(StrEnum):
    exact = "exact"
    at_least = "at_least"
    at_most = "at_most"


class Said(StrEnum):
    """How the document presents a figure."""

    measured = "measured"
    expected = "expected"
    theoretical = "theoretical"


class Bytes(StrEnum):
    """Which account of HBM bytes a claim is held against."""

    modelled = "modelled"
    measured = "measured"


class Fault(StrEnum):
    """Why no measurement could confirm or refute a figure."""

    hardware = "hardware"
    impossible = "impossible"
    jit = "jit"
    flops = "flops"
    unequal_work = "unequal work"
    wrong_output = "wrong output"
    unspecified = "unspecified"
    definition = "by definition"


def _span(value: Any) -> Any:
    """A number, or [low, high] → both ends."""

    def number(end: Any) -> bool:
        return isinstance(end, (int, float)) and not isinstance(end, bool)

    if number(value):
        return float(value), float(value)
    if isinstance(value, list) and len(value) == 2 and all(map(number, value)):
        if value[0] >= value[1]:
            raise ValueError("takes [low, high] with low below high")
        return float(value[0]), float(value[1])
    raise ValueError("takes a number or [low, high]")


def _places(value: float, quote: str) -> int:
    """Decimals of a number in a quote; of one that is not in it, as few as it needs."""
    for whole, decimals in _NUMBER.findall(quote):
        if float(f"{whole.replace(',', '')}.{decimals or 0}") == value:
            return len(decimals)
    exponent = Decimal(repr(value)).normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one call must do. dtype: of the matrix products, as stated; unstated, the fastest of
    the GPU is granted. tokens: of one call."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    flops: int = 0
    bytes: int = 0
    dtype: str = ""
    tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Compare:
    """The records that a claim is held against. `bytes` is for HBM figures alone."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    family: str
    provider: str
    axes: dict[str, AxisValue]
    against: str = ""
    mode: Mode = Mode.fwd
    dtype: DType = DType.bf16
    bytes: Bytes = Bytes.modelled


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """A fault of the figure that arithmetic cannot find, and how it is known."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    fault: Fault
    why: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One published figure. Empty texts and lists: the document does not say."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    id: str
    metric: Metric
    value: Annotated[tuple[float, float], BeforeValidator(_span)]
    section: str
    line: int
    quote: str
    bound: Bound = Bound.exact
    decimals: int | None = None
    said: Said = Said.measured
    of: str = ""
    against: str = ""
    hardware: str | None = None
    gpus: tuple[str, ...] | None = None
    gpu_count: int | None = None
    shape: str = ""
    also: tuple[int, ...] = ()
    ratio_of: tuple[str, ...] = ()
    work: Work | None = None
    compare: Compare | None = None
    unmeasured: str = ""
    doubts: tuple[Doubt, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def sort(self) -> Sort:
        return SORTS[self.metric]

    @property
    def places(self) -> int:
        """Decimals that the figure was printed with."""
        if self.decimals is not None:
            return self.decimals
        return max(_places(end, self.quote) for end in self.value)

    @property
    def reach(self) -> tuple[float, float]:
        """The values that would be printed like this: half a step of the last decimal around the
        figure or range, open on one side for a bound."""
        low, high = self.value
        if self.bound is Bound.at_least:
            return low, inf
        if self.bound is Bound.at_most:
            return -inf, high
        half = 0.5 * 10.0**-self.places
        return low - half, high + half


@dataclass(frozen=True, kw_only=True)
class Document:
    """Where the claims of one file come from. hardware: as it states it; gpus and gpu_count: where
    that text does not name them. They hold for claims that do not name their own."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    id: str
    title: str
    repository: str = ""
    path: str = ""
    sha256: str = ""
    hardware: str = ""
    gpus: tuple[str, ...] = ()
    gpu_count: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ClaimsFile:
    """One YAML file."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    document: Document
    claims: tuple[Claim, ...] = field(default=())
