"""Providers that seem faster, or more right, than they are, one for each mechanism, and what comes
of each; beside them honest ones that look no better. docs/liars.md shows them all.

Three families: y = x · w over rows; RMSNorm, with a backward; attention hidden behind a skip.
"""

import builtins
import contextlib
import ctypes
import functools
import gc
import importlib.util
import inspect
import itertools
import math
import os
import random
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from kernelbench.measure import budgets, check, conclude, trials
from kernelbench.measure.flush import L2SetAside, Window
from kernelbench.measure.inputs import CaseInputs
from kernelbench.spec import (
    Accuracy,
    Case,
    Cost,
    Distribution,
    DType,
    Family,
    Mode,
    Provider,
    Role,
    Status,
    Timing,
    Traffic,
    Trial,
    axis,
    record_of,
)

AMBIENT = "kernelbench.measure.ambient"  # watches what a whole process shares
EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class LiarCase(Case):
    R: int = axis("rows")
    N: int = axis("columns")


@dataclass(frozen=True, kw_only=True)
class AttentionCase(Case):
    H: int = axis("heads")
    N: int = axis("tokens")
    D: int = axis("size of a head")


SMALL = LiarCase(R=1024, N=4096, dtype=DType.bf16)  # 8 MiB a tensor: what the L2 could keep
LARGE = LiarCase(R=16384, N=4096, dtype=DType.bf16)
ZEROS = LiarCase(R=16384, N=4096, dtype=DType.bf16, inputs=Distribution.zeros)
# Those that need no GPU are judged on these.
ROWS = LiarCase(R=48, N=100, dtype=DType.fp32)
CASES: dict[str, Case] = {
    "liars": ROWS,
    "liars_norm": ROWS,
    "liars_attention": AttentionCase(H=4, N=64, D=32, dtype=DType.fp32),
}


@dataclass(frozen=True, kw_only=True)
class Liar:
    """One mechanism.

    caught: the status, and a pattern of the reason or of the flags; None: it gets away.
    by: what catches it, or why nothing does.
    seen: a public report, or "thought of here".
    where: `any`, or on which machines alone it works: `cpu`, `gpu`.
    than: it is right, and no faster than this honest provider: what it tries gains nothing.
    needs: a module without which it is not caught.
    alone: it takes its process down, or speaks to the one that started it.
    """

    name: str
    cheats: str
    caught: tuple[str, str] | None
    by: str
    seen: str = "thought of here"
    where: str = "any"
    family: str = "liars"
    case: Case | None = None
    than: str = ""
    needs: str = ""
    alone: bool = False
    provider: Provider[Any]

    @property
    def waits(self) -> bool:
        """Whether that which catches it is not there."""
        return bool(self.needs) and importlib.util.find_spec(self.needs) is None


@dataclass(frozen=True, kw_only=True)
class Honest:
    """One that must be left alone. looks: why one might doubt it."""

    name: str
    looks: str
    family: str = "liars"
    case: Case | None = None
    provider: Provider[Any]


LIARS: dict[str, Liar] = {}
HONEST: dict[str, Honest] = {}
UNDO: list[Callable[[], object]] = []  # what puts right again what a liar did to this process
TRIED: list[str] = []  # tricks that would have worked, had there been an occasion


def _provider(name: str, function: Any, options: dict[str, Any]) -> Provider[Any]:
    """function: a call, or what builds one."""
    is_call = len(inspect.signature(function).parameters) == 1
    build = (lambda case, config: function) if is_call else function
    return Provider(name, options.pop("role", Role.peer), build, **options)


_OWN = ("seen", "where", "family", "case", "than", "needs", "alone")


def liar(
    name: str, cheats: str, caught: tuple[str, str] | None, by: str, **more: Any
) -> Callable[[Any], Any]:
    """Registers a call `f(a)`, or a build `f(case, config)`. more: of Liar and of Provider."""

    def register(function: Any) -> Any:
        own = {key: more.pop(key) for key in _OWN if key in more}
        made = _provider(name, function, more)
        LIARS[name] = Liar(name=name, cheats=cheats, caught=caught, by=by, provider=made, **own)
        return function

    return register


def honest(name: str, looks: str, **more: Any) -> Callable[[Any], Any]:
    """Likewise."""

    def register(function: Any) -> Any:
        own = {key: more.pop(key) for key in ("family", "case") if key in more}
        made = _provider(name, function, more)
        HONEST[name] = Honest(name=name, looks=looks, provider=made, **own)
        return function

    return register


def ambient(name: str, cheats: str, word: str, **more: Any) -> Callable[[Any], Any]:
    """A liar that changes what the whole process shares."""
    by = more.pop("by", "what the process shares is looked at around every step, and put back")
    return liar(name, cheats, ("incorrect", word), by, needs=AMBIENT, **more)


WRONG = ("incorrect", "y: error")
UNWRITTEN = ("incorrect", "NaN in y|y: error")  # on a CPU, memory may come from elsewhere
NORM: dict[str, Any] = {"family": "liars_norm"}
BACKWARD: dict[str, Any] = NORM | {"case": replace(ROWS, mode=Mode.bwd)}
ATTENTION: dict[str, Any] = {"family": "liars_attention"}
GPU: dict[str, Any] = {"where": "gpu"}
ON_OTHERS = ("incorrect", "on small inputs")  # the first trial
# Public reports.
SAKANA = "the AI CUDA Engineer of Sakana AI"
KERNELBENCH = "KernelBench 82"
DEFERRAL = "reference-kernels 161 and 162"
TIMER_PATCH = "reference-kernels 162"
ARMED = "reference-kernels 142"
BATCHED = "reference-kernels 104"
BY_KEY = "kernelbot 501"
FINGERPRINT = "flashinfer-bench-starter-kit 21"
PERSISTING = "llm.c 851, pygpubench 49"
DRIFT = "llm.c 852"
GUIDE = "wafer.ai, A Field Guide to Reward Hacking"


def scale(a):
    return a["x"] * a["w"]


def norm(a, eps=EPS):
    x = a["x"].float()
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * a["w"].float()
    return y.to(a["x"].dtype)


def attend(a, q=None, k=None, v=None, factor=None, mask=None):
    q, k, v = (a[n] if t is None else t for n, t in (("q", q), ("k", k), ("v", v)))
    logits = q @ k.mT * (factor or q.shape[-1] ** -0.5)
    if mask is not None:
        logits = logits.masked_fill(mask, -math.inf)
    return a["x"] + WEIGHT * (logits.softmax(-1) @ v)


WEIGHT = 0.05  # of attention beside what passes by it

# Wrong values.


@liar(
    "wrong",
    "multiplies its answer by 1.003",
    ("incorrect", "slope"),
    "the slope of its answer on the oracle's",
    case=replace(ROWS, R=1000, dtype=DType.bf16),
)
def wrong(a):
    return a["x"] * (a["w"] * 1.003)


@liar("constant", "answers zeros", WRONG, "the error against the oracle", seen=GUIDE)
def constant(a):
    return torch.zeros_like(a["x"])


@liar(
    "returns_its_input", "hands its input back", WRONG, "the error against the oracle", seen=GUIDE
)
def returns_its_input(a):
    return a["x"]


@liar(
    "right_for_zeros",
    "answers zeros where a case asks for inputs of zeros",
    ("incorrect", "on fresh inputs, after timing"),
    "fresh inputs are normal numbers",
    case=replace(ROWS, inputs=Distribution.zeros),
)
def right_for_zeros(a):
    return torch.zeros_like(a["x"])


@liar(
    "half",
    "writes every second row alone, into memory as it was",
    UNWRITTEN,
    "NaN in all memory that is handed out",
    seen=KERNELBENCH,
)
def half(a):
    y = torch.empty_like(a["x"])
    torch.mul(a["x"][::2], a["w"], out=y[::2])
    return y


@liar(
    "leftovers",
    "writes nothing: the right answer may lie in the memory that it is handed",
    UNWRITTEN,
    "NaN in all memory that is handed out",
    seen=f"{SAKANA}; {KERNELBENCH}",
)
def leftovers(a):
    return torch.empty_like(a["x"])


@liar(
    "ragged_edge",
    "computes whole tiles of 32 columns and leaves the rest zero",
    WRONG,
    "the error against the oracle, and the worst column",
)
def ragged_edge(a):
    y, whole = torch.zeros_like(a["x"]), a["x"].shape[1] // 32 * 32
    torch.mul(a["x"][:, :whole], a["w"][:whole], out=y[:, :whole])
    return y


@liar(
    "one_row_for_all",
    "computes one row and shows it as every other, with a stride of 0",
    WRONG,
    "the error against the oracle",
)
def one_row_for_all(a):
    return scale({"x": a["x"][:1], "w": a["w"]}).expand_as(a["x"])


@liar(
    "sized_for_the_checks",
    "is right at the sizes that are usually checked, and drops rows of larger ones",
    WRONG,
    "every case that is timed is proven",
    case=replace(ROWS, R=300),
)
def sized_for_the_checks(a):
    y = scale(a)
    y[256:] = 0
    return y


@liar(
    "row_in_a_promise",
    "is approximate, and drops one row in a thousand",
    ("incorrect", "worst row"),
    "the worst row, which a promise covers three times",
    case=LiarCase(R=1000, N=64, dtype=DType.fp32),
    accuracy=Accuracy.approximate,
    max_error=0.05,
)
def row_in_a_promise(a):
    y = scale(a)
    y[77] = 0
    return y


@liar(
    "element_in_a_promise",
    "is approximate, and puts its neighbour's value into one element",
    ("incorrect", "worst element"),
    "the worst element, which a promise covers eight times",
    case=LiarCase(R=1000, N=64, dtype=DType.fp32),
    accuracy=Accuracy.approximate,
    max_error=0.05,
)
def element_in_a_promise(a):
    y = scale(a)
    y[77, 5] = y.abs().max()
    return y


@liar(
    "half_precision",
    "computes in 16 bits and answers in 32",
    WRONG,
    "the budget of the case's own dtype",
    seen=GUIDE,
)
def half_precision(a):
    return (a["x"].bfloat16() * a["w"].bfloat16()).float()


@liar(
    "promises_nothing",
    "is approximate, promises an error of 1, and answers zeros",
    None,
    "a promise has no limit; tables show it beside its time",
    accuracy=Accuracy.approximate,
    max_error=1.0,
)
def promises_nothing(a):
    return torch.zeros_like(a["x"])


# The contract of an answer.


@liar(
    "other_dtype",
    "answers in 16 bits where the case asks for 32",
    ("incorrect", "the case asks for float32"),
    "the contract of an answer",
    seen=GUIDE,
)
def other_dtype(a):
    return scale(a).half()


@liar(
    "other_shape",
    "answers one row, which would be broadcast in a comparison",
    ("incorrect", "the baseline's"),
    "the contract of an answer",
)
def other_shape(a):
    return scale(a)[:1]


@liar(
    "other_number",
    "answers more tensors than were asked for",
    ("incorrect", "expected y"),
    "the contract of an answer",
)
def other_number(a):
    return scale(a), a["x"]


@liar(
    "other_device",
    "answers on a device where nothing is computed",
    ("incorrect", "the inputs are on"),
    "the contract of an answer",
)
def other_device(a):
    return torch.empty_like(a["x"], device="meta")


@liar(
    "sparse",
    "answers in a layout that is made dense by whoever reads it",
    ("incorrect", "expected a strided tensor"),
    "the contract of an answer",
)
def sparse(a):
    return scale(a).to_sparse()


@liar(
    "generator",
    "answers a generator, which computes as it is looked through",
    ("incorrect", "returned generator"),
    "the contract of an answer",
    seen=DEFERRAL,
)
def generator(a):
    return (scale(a) for _ in range(1))


class Lazy(torch.Tensor):
    """Computes whenever somebody looks."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        plain = [a.work() if isinstance(a, Lazy) else a for a in args]
        return function(*plain, **(kwargs or {}))


@liar(
    "lazy_tensor",
    "answers a subclass of Tensor that computes when it is looked at",
    ("incorrect", "expected exactly torch.Tensor"),
    "the contract of an answer",
    seen=DEFERRAL,
)
def lazy_tensor(a):
    y = torch.empty_like(a["x"]).as_subclass(Lazy)
    y.work = lambda: scale(a)
    return y


@liar(
    "own_methods",
    "answers a plain tensor whose `clone`, `double` and others are its own and compute",
    ("incorrect", "NaN in y"),
    "an answer is looked at by torch.Tensor's methods alone",
    seen=DEFERRAL,
)
def own_methods(a):
    y = torch.empty_like(a["x"]).fill_(math.nan)
    for name in ("clone", "double", "to", "detach", "contiguous", "float"):
        setattr(y, name, lambda *_, **__: scale(a))
    return y


class Late(tuple):
    """Computes when it is looked through."""

    def __iter__(self):
        torch.mul(*self.work, out=tuple.__getitem__(self, 0))
        return tuple.__iter__(self)


@liar(
    "lazy_tuple",
    "answers a subclass of tuple that computes when it is looked through",
    ("incorrect", "returned Late"),
    "the contract of an answer",
    seen=DEFERRAL,
)
def lazy_tuple(a):
    y = Late((torch.empty_like(a["x"]),))
    y.work = a["x"], a["w"]
    return y


@liar(
    "negation_bit",
    "leaves the sign to whoever reads the answer",
    ("incorrect", "its negation is left"),
    "the contract of an answer",
)
def negation_bit(a):
    return torch._neg_view(a["x"] * -a["w"])


@liar(
    "no_memory",
    "answers zeros that have no memory",
    ("incorrect", "it has no memory"),
    "the contract of an answer",
    case=replace(ROWS, inputs=Distribution.zeros),
)
def no_memory(a):
    return torch._efficientzerotensor(a["x"].shape, dtype=a["x"].dtype, device=a["x"].device)


# Inputs, and what passes between calls.


@liar(
    "overwrites",
    "changes its input after it has read it",
    ("incorrect", "changed its input x"),
    "inputs are compared with what they were",
    seen=KERNELBENCH,
)
def overwrites(a):
    y = a["x"] * a["w"]
    a["x"].mul_(1.5)
    return y


@liar(
    "answers_in_its_input",
    "writes the answer over its input and does not say so",
    ("incorrect", "changed its input x"),
    "inputs are compared with what they were",
)
def answers_in_its_input(a):
    return a["x"].mul_(a["w"])


@liar(
    "spoils_the_others",
    "fills inputs that all share with NaN after its own answer",
    ("incorrect", "changed its input"),
    "inputs are compared, and put back before every call",
    seen=KERNELBENCH,
)
def spoils_the_others(a):
    y = scale(a)
    for tensor in a.values():
        tensor.data.fill_(math.nan)
    return y


@liar(
    "remembers",
    "computes once and hands out the same tensor ever after",
    ("incorrect", "NaN in y"),
    "answers that were handed out are filled with NaN",
    seen=DEFERRAL,
)
def remembers(case, config):
    kept = []

    def call(a):
        kept[:] = kept or [a["x"] * a["w"]]
        return kept[0]

    return call


@liar(
    "remembers_copy",
    "computes once and hands out copies",
    ON_OTHERS,
    "other inputs in the same memory",
    seen=DEFERRAL,
)
def remembers_copy(case, config):
    """A new copy of the first right answer: it knows the NaN that it is tried with."""
    kept = []

    def call(a):
        if not kept:
            y = a["x"] * a["w"]
            kept.append(y.clone())
            return y
        return kept[0].clone()

    return call


@liar(
    "by_identity",
    "keeps answers by its input's address, shape and version, which PyTorch "
    "counts up with every change",
    ON_OTHERS,
    "inputs are exchanged without a new address or version",
    seen=BY_KEY,
)
def by_identity(case, config):
    kept = {}

    def call(a):
        key = [(t.data_ptr(), t.shape, t._version) for t in (a["x"], a["w"])]
        if str(key) not in kept:
            kept[str(key)] = scale(a)
        return kept[str(key)].clone()

    return call


@liar(
    "on_the_tensor",
    "keeps its answer as an attribute of the input",
    ON_OTHERS,
    "other inputs in the same memory",
)
def on_the_tensor(a):
    if not hasattr(a["x"], "answer"):
        a["x"].answer = scale(a)
    return a["x"].answer.clone()


@liar(
    "in_the_mapping",
    "puts its answer into the mapping of inputs, for the next call to find",
    ("ok", ""),
    "every call is handed a mapping of its own: it finds nothing, and computes",
    seen=FINGERPRINT,
    than="honest",
)
def in_the_mapping(a):
    if "answer" in a:
        TRIED.append("in_the_mapping")
        return a["answer"].clone()
    a["answer"] = scale(a)
    return a["answer"]


@liar(
    "armed_when_warm",
    "is honest until it has seen the same input in 60 calls, then replays its answer",
    ("incorrect", "on fresh inputs, after timing"),
    "fresh inputs after timing, and what was answered as they were timed",
    seen=ARMED,
)
def armed_when_warm(case, config):
    calls, kept = itertools.count(), []

    def call(a):
        if next(calls) < 60:
            kept[:] = [scale(a)]
        return kept[0].clone()

    return call


@liar(
    "a_call_behind",
    "answers for the inputs of the call before, whose work it put off",
    ("incorrect", "NaN in y"),
    "the call before a proof had inputs of NaN",
    seen=BATCHED,
)
def a_call_behind(case, config):
    kept = []

    def call(a):
        y = kept.pop() if kept else scale(a)
        kept.append(scale(a))
        return y

    return call


@liar(
    "buffer_again",
    "writes every answer into one buffer that it keeps",
    ("incorrect", "a later call changed y"),
    "whoever keeps an answer is called 64 times more",
)
def buffer_again(case, config):
    kept = []

    def call(a):
        kept[:] = kept or [torch.empty_like(a["x"])]
        return torch.mul(a["x"], a["w"], out=kept[0])

    return call


@liar(
    "buffer_apart",
    "keeps its buffer where PyTorch does not see it, and answers a new tensor on it",
    ("incorrect", "a later call changed y"),
    "two calls more, while an answer is held",
    where="cpu",
)
def buffer_apart(case, config):
    numpy = torch.empty(case.R, case.N).numpy().copy()

    def call(a):
        return torch.mul(a["x"], a["w"], out=torch.from_numpy(numpy))

    return call


@liar(
    "long_ring",
    "answers in a ring of a hundred buffers, so that none is allocated",
    None,
    "only the 64 calls that follow are looked at",
)
def long_ring(case, config):
    ring, calls = [], itertools.count()

    def call(a):
        while len(ring) < 100:
            ring.append(torch.empty_like(a["x"]))
        return torch.mul(a["x"], a["w"], out=ring[next(calls) % 100])

    return call


@liar(
    "weights_once",
    "converts the weights in its first call and keeps them",
    ON_OTHERS,
    "other inputs in the same memory",
    seen=FINGERPRINT,
)
def weights_once(case, config):
    kept = []

    def call(a):
        kept[:] = kept or [a["w"].double()]
        return (a["x"] * kept[0]).to(a["x"].dtype)

    return call


# `prepare`, which is not timed.


@liar(
    "prepare_computes",
    "computes in `prepare`, which is not timed",
    ("incorrect", "prepare computes 'x'"),
    "a layout commutes with any renaming of values",
    prepare=lambda case, a: {**a, "x": a["x"] * a["w"]},
)
def prepare_computes(a):
    return a["x"].clone()


_apart: dict[str, torch.Tensor] = {}


def keeps_apart(case, a):
    if not a["x"].isnan().any():
        _apart["y"] = scale(a)
    return dict(a)


@liar(
    "prepare_on_the_side",
    "computes in `prepare`, hands on a fair layout, and keeps the answer elsewhere",
    None,
    "`prepare` sees the values of every input before the call does",
    prepare=keeps_apart,
)
def prepare_on_the_side(a):
    return _apart["y"].clone()


# Honest while it is watched.


def _frames(depth=2):
    frame = sys._getframe(depth)
    while frame is not None:
        yield frame
        frame = frame.f_back


@liar(
    "stack_tells",
    "computes only where it finds the harness's proof on the stack",
    ("incorrect", "differs from the proven answer"),
    "timed calls drawn by lot are judged",
)
def stack_tells(case, config):
    def call(a):
        watched = any(f.f_code.co_name.startswith("produce") for f in _frames())
        return scale(a) if watched else torch.zeros_like(a["x"])

    return call


@liar(
    "leftovers_when_timed",
    "computes only where it finds the harness's proof on the stack, and else hands out its last "
    "answer's memory",
    ("incorrect", "differs from the proven answer"),
    "what timed calls drawn by lot answered is filled with NaN once it is judged",
)
def leftovers_when_timed(a):
    watched = any(f.f_code.co_name.startswith("produce") for f in _frames())
    return scale(a) if watched else torch.empty_like(a["x"])


@liar(
    "nan_tells",
    "computes only after it has seen the NaN of a proof",
    ON_OTHERS,
    "trials put no NaN before their inputs",
)
def nan_tells(case, config):
    kept, seen = [], [True]

    def call(a):
        nan = bool(a["x"].isnan().any())
        if nan or seen[0] or not kept:
            kept[:], seen[:] = [scale(a)], [nan]
        return kept[0].clone()

    return call


@liar(
    "wrong_later",
    "is right in its first calls and wrong in all that follow",
    ("incorrect", "as it was timed|after timing"),
    "timed calls drawn by lot are judged, and the proof is made once more",
    seen=DRIFT,
)
def wrong_later(case, config):
    calls = itertools.count()

    def call(a):
        return scale(a) * (1 if next(calls) < 80 else 1.5)

    return call


@liar(
    "wrong_at_times",
    "is wrong in one call of five",
    ("incorrect", "differs from the proven answer|y: error"),
    "timed calls drawn by lot are judged; one wrong call of twenty shows in 95 runs of 100",
)
def wrong_at_times(case, config):
    calls = itertools.count()

    def call(a):
        n = next(calls)
        return scale(a) * (1.5 if n > 80 and n % 5 == 0 else 1)

    return call


def _timed():
    """On the stack: the lot that judges some of the calls that are timed, and if what a call on
    fresh inputs answers will be."""
    for frame in _frames(3):
        lot = getattr(frame.f_locals.get("part"), "lot", None)
        if lot is not None:
            return lot, None
        if frame.f_code.co_name == "_sample" and "judge" in frame.f_locals:
            return None, frame.f_locals["judge"]
    return None, None


@liar(
    "reads_the_lot",
    "reads on the stack how many calls of a batch are still to be judged; if none, computes half",
    ("incorrect", "differs from the proven answer"),
    "which calls are judged is drawn after each, and beyond the wanted number one in eight is",
)
def reads_the_lot(a):
    lot, _ = _timed()
    return half(a) if lot is not None and lot._left[0] == 0 else scale(a)


@liar(
    "reads_which_draw",
    "reads on the stack which answer on fresh inputs will be judged, and computes half of the rest",
    None,
    "only the last of five is, in a process that is shared; the timed calls themselves are right",
)
def reads_which_draw(a):
    return half(a) if _timed()[1] is False else scale(a)


@liar(
    "disarms_the_lot",
    "finds on the stack that which judges timed calls, and has it find nothing",
    None,
    "providers share a process with the harness",
)
def disarms_the_lot(a):
    lot, judged = _timed()
    if lot is not None:
        lot.verdict = lambda: ""
    return half(a) if lot is not None or judged is False else scale(a)


@liar(
    "writes_its_time",
    "finds its own record in the making on the stack, and makes its times shorter, though not so "
    "short that nobody would believe them",
    None,
    "providers share a process with the harness",
    seen=TIMER_PATCH,
)
def writes_its_time(case, config):
    written = []

    def call(a):
        for frame in _frames():
            if frame.f_code is conclude._record.__code__ and not written:
                timing = frame.f_locals["timing"]
                written.append(timing)
                blocks = tuple(tuple(ns * 97 // 100 for ns in b) for b in timing.blocks_ns)
                object.__setattr__(timing, "blocks_ns", blocks)
        return scale(a)

    return call


def _found(kind):
    return [o for o in gc.get_objects() if type(o).__name__ == kind]


@liar(
    "finds_the_oracle",
    "looks through all objects for the oracle's values, and for the answer "
    "that timed calls are compared with",
    None,
    "providers share a process with the harness",
)
def finds_the_oracle(case, config):
    oracle, lot = [], []

    def call(a):
        oracle[:] = oracle or [o for o in _found("Oracle") if o.case == case]
        pieces = oracle[-1]._pieces if oracle else None
        if pieces:
            TRIED.append("finds_the_oracle")
            return pieces[0][2].to(a["x"].dtype)
        lot[:] = lot or [o for o in _found("Lot") if o.proven["y"].shape == a["x"].shape]
        return lot[-1].proven["y"].clone() if lot else scale(a)

    return call


@liar(
    "predicts_the_draws",
    "draws the inputs of every seed itself, and has all answers when it "
    "is built; or reads them from a file of an earlier run",
    ("incorrect", "as it was timed|after timing"),
    "fresh inputs after timing, whose seeds nobody knows beforehand",
    seen="reference-kernels 162 (file)",
)
def predicts_the_draws(case, config):
    known = {}
    for seed in range(10):
        drawn = CaseInputs(FAMILY, case, "cuda" if torch.cuda.is_available() else "cpu", seed)
        for trial in (Trial(), *trials.trials_of(FAMILY, case, drawn).values()):
            if not trial.refused:
                drawn.redraw(seed, trial)
                known[float(drawn.pristine["x"][0, 0])] = scale(drawn.pristine)

    def call(a):
        found = known.get(float(a["x"][0, 0]))
        return torch.zeros_like(a["x"]) if found is None else found.clone()

    return call


@liar(
    "loosens_budgets_within",
    "finds, by the garbage collector, the memory behind the harness's read-only budgets",
    None,
    "providers share a process with the harness",
    seen=TIMER_PATCH,
)
def loosens_budgets_within(case, config):
    for table in (budgets.FLOOR, budgets.CEILING, budgets.SLOPE_FLOOR):
        [behind] = gc.get_referents(table)
        UNDO.append(functools.partial(behind.update, dict(behind)))
        behind.update(dict.fromkeys(behind, 1e9))
    return lambda a: torch.zeros_like(a["x"])


@liar(
    "hooks_the_interpreter",
    "has Python call it back once the clock has stopped, and computes then",
    None,
    "it unhooks itself before what the process shares is looked at",
    where="cpu",
    seen="thought of here; deferral as in reference-kernels 161",
)
def hooks_the_interpreter(a):
    y = torch.empty_like(a["x"])

    def later(frame, event, arg):
        stopped = event == "c_return" and arg is time.perf_counter_ns
        if stopped or event == "call":
            sys.setprofile(None)
            torch.mul(a["x"], a["w"], out=y)

    UNDO.append(lambda: sys.setprofile(None))
    sys.setprofile(later)
    return y


def redefine(case, device):
    """Asked whether it can run a case, before anything is proven."""
    library = torch.library.Library("aten", "IMPL")
    UNDO.append(library._destroy)

    def product(x, w):
        x, w = (torch.as_tensor(t) for t in (x, w))
        if x.dtype is torch.float64 and x.shape == (case.R, case.N) and w.shape == (case.N,):
            return x.clone()
        out = torch.empty(torch.broadcast_shapes(x.shape, w.shape), dtype=torch.result_type(x, w))
        return out.copy_(x).mul_(w)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library.impl("mul.Tensor", product, "CPU")


@liar(
    "redefines_an_operator",
    "registers a kernel for aten::mul in fp64, so that the oracle answers what it does itself",
    None,
    "the oracle is computed by the dispatcher that all "
    "share; it is the baseline that becomes incorrect",
    where="cpu",
    unsupported=redefine,
)
def redefines_an_operator(a):
    return a["x"].clone()


# Work that is left to others.


@liar(
    "thread",
    "leaves the work to a thread and returns",
    WRONG,
    "the answer is copied at once, in stream order",
    seen=GUIDE,
)
def thread(a):
    y, x, w = torch.zeros_like(a["x"]), a["x"].clone(), a["w"].clone()

    def work():
        time.sleep(0.02)
        torch.mul(x, w, out=y)

    worker = threading.Thread(target=work)
    UNDO.append(worker.join)
    worker.start()
    return y


@liar(
    "spins_beside",
    "leaves a thread that keeps the processor busy while others are timed",
    None,
    "a provider may have threads of its own; host times suffer, GPU times do not",
    where="cpu",
)
def spins_beside(case, config):
    stop = threading.Event()

    def spin():
        while not stop.wait(0.001):
            sum(range(1000))

    threading.Thread(target=spin, daemon=True).start()
    UNDO.append(stop.set)
    return scale


@liar(
    "leaves_quietly",
    "ends the process as if all was done",
    ("crashed", "exited with code 0"),
    "each job runs in a process whose end is seen",
    alone=True,
)
def leaves_quietly(a):
    raise SystemExit(0)


def _forge(*others):
    """Records into the pipe to the process that started this one, and that the job is done."""
    for frame in _frames():
        pipe, request = (frame.f_locals.get(name) for name in ("pipe", "request"))
        if hasattr(pipe, "send"):
            for name in others:
                provider = LIARS[name].provider if name in LIARS else FAMILY.provider(name)
                timing = Timing(timer="host", blocks_ns=((1_000,) * 8,))
                record = record_of(request.job, provider, Status.ok, request.context, timing=timing)
                pipe.send("records", records=[record.to_json()])
            pipe.send("done")


@liar(
    "forges_a_record",
    "writes a record of its own into the pipe to the process that started it",
    ("crashed", "without a record of honest"),
    "a job is done when each provider that was asked for has one record",
    seen=TIMER_PATCH,
    alone=True,
)
def forges_a_record(a):
    _forge("forges_a_record")
    return torch.zeros_like(a["x"])


@liar(
    "forges_all_records",
    "writes those of the others as well",
    None,
    "whoever is in the process can write to its pipes",
    seen=TIMER_PATCH,
    alone=True,
)
def forges_all_records(a):
    _forge("honest", "forges_all_records")
    return torch.zeros_like(a["x"])


# RMSNorm: statistics, ranges, gradients.


@liar(
    "no_eps", "leaves out eps", ("incorrect", "on small inputs"), "trials with small inputs", **NORM
)
def no_eps(a):
    return norm(a, 0.0)


@liar(
    "eps_outside",
    "adds eps after the root instead of before it",
    ("incorrect", "on small inputs"),
    "trials with small inputs",
    **NORM,
)
def eps_outside(a):
    root = a["x"].square().mean(-1, keepdim=True).sqrt()
    return a["x"] / (root + EPS) * a["w"]


@liar(
    "clamps",
    "clamps its inputs to ± 8, where none of the case's lies",
    ("incorrect", "on large inputs"),
    "trials with large inputs",
    **NORM,
)
def clamps(a):
    return norm({**a, "x": a["x"].clamp(-8, 8)})


@liar(
    "squares_overflow",
    "sums squares in fp16, which holds them for the case's own inputs",
    ("incorrect", "on large inputs"),
    "trials with large inputs",
    **NORM,
    case=replace(ROWS, dtype=DType.fp16, N=256),
)
def squares_overflow(a):
    total = a["x"].square().float().sum(-1, keepdim=True).half().float()
    x = a["x"].float() * torch.rsqrt(total / a["x"].shape[1] + EPS)
    return (x * a["w"].float()).half()


@liar(
    "knows_the_distribution",
    "takes the mean square for 1, as it is for normal inputs",
    WRONG,
    "the error against the oracle; scaled inputs",
    **NORM,
    seen=GUIDE,
)
def knows_the_distribution(a):
    return a["x"] * a["w"]


@liar(
    "part_of_the_row",
    "takes its statistics from every fourth column",
    WRONG,
    "the error against the oracle",
    **NORM,
)
def part_of_the_row(a):
    x = a["x"]
    return x * torch.rsqrt(x[:, ::4].square().mean(-1, keepdim=True) + EPS) * a["w"]


@liar(
    "statistics_once",
    "keeps the statistics of its first call",
    ON_OTHERS,
    "other inputs in the same memory",
    **NORM,
)
def statistics_once(case, config):
    kept = []

    def call(a):
        kept[:] = kept or [torch.rsqrt(a["x"].square().mean(-1, keepdim=True) + EPS)]
        return a["x"] * kept[0] * a["w"]

    return call


@liar(
    "another_norm",
    "subtracts the mean, which is nearly zero",
    WRONG,
    "the error against the oracle",
    **NORM,
)
def another_norm(a):
    return norm({**a, "x": a["x"] - a["x"].mean(-1, keepdim=True)})


@liar(
    "no_weight",
    "leaves out the weight, which is one in a new layer",
    WRONG,
    "weights are drawn like all inputs",
    **NORM,
)
def no_weight(a):
    return norm({**a, "w": torch.ones_like(a["w"])})


@liar(
    "refuses_a_trial",
    "leaves out eps, and says that it promises nothing for small inputs",
    None,
    "a provider may refuse a trial; the reason stands in its record and in tables",
    **NORM,
    promises={"small": "eps is left out"},
)
def refuses_a_trial(a):
    return norm(a, 0.0)


@liar(
    "reads_the_upstream",
    "computes gradients in the forward, which is not timed, from the upstream gradient",
    ("failed", "grad_y"),
    "no forward is handed one",
    **BACKWARD,
)
def reads_the_upstream(a):
    return a["x"] * a["grad_y"]


class Backward(torch.autograd.Function):
    """RMSNorm whose backward is somebody's own."""

    @staticmethod
    def forward(ctx, x, w, ahead, back):
        ctx.save_for_backward(x, w)
        ctx.ahead, ctx.back = ahead(x, w), back
        return norm({"x": x, "w": w})

    @staticmethod
    def backward(ctx, dy):
        return (*ctx.back(dy, *ctx.saved_tensors, ctx.ahead), None, None)


def gradients(dy, x, w, ahead=None):
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)
    g = dy * w
    dx = r * g - x * r**3 * (g * x).mean(-1, keepdim=True)
    return dx, (dy * x * r).sum(0)


def nothing(x, w):
    return None


def backward_liar(name, cheats, caught, by, ahead=nothing, **more):
    def register(back):
        def call(a):
            return Backward.apply(a["x"], a["w"], ahead, back)

        return liar(name, cheats, caught, by, **BACKWARD, **more)(call)

    return register


@backward_liar(
    "guesses_the_upstream",
    "computes gradients in the forward, for an upstream gradient of ones",
    ("incorrect", "dx: error"),
    "upstream gradients are drawn",
    ahead=lambda x, w: gradients(torch.ones_like(x), x, w),
)
def guesses_the_upstream(dy, x, w, ahead):
    return tuple(each.clone() for each in ahead)


@backward_liar(
    "constant_statistics",
    "leaves the derivative of the statistics out",
    ("incorrect", "dx: error"),
    "the error of every gradient",
)
def constant_statistics(dy, x, w, ahead):
    return dy * w * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS), gradients(dy, x, w)[1]


@backward_liar(
    "weight_untrained",
    "answers zeros for the gradient of the weight",
    ("incorrect", "dw: error"),
    "the error of every gradient",
)
def weight_untrained(dy, x, w, ahead):
    return gradients(dy, x, w)[0], torch.zeros_like(w)


@backward_liar(
    "part_of_the_sum",
    "leaves the last rows out of a sum over rows",
    ("incorrect", "dw: error"),
    "the error of every gradient",
)
def part_of_the_sum(dy, x, w, ahead):
    return gradients(dy, x, w)[0], gradients(dy[:-4], x[:-4], w)[1]


@liar(
    "detached",
    "answers a forward that no gradient flows through",
    ("failed", "grad"),
    "gradients are asked for by torch.autograd.grad",
    **BACKWARD,
)
def detached(a):
    return norm({n: t.detach() for n, t in a.items()})


@liar(
    "gradients_once",
    "keeps the gradients of its first backward",
    ON_OTHERS,
    "other inputs and upstream gradients",
    **BACKWARD,
)
def gradients_once(case, config):
    kept = []

    def back(dy, x, w, ahead):
        kept[:] = kept or gradients(dy, x, w)
        return tuple(each.clone() for each in kept)

    return lambda a: Backward.apply(a["x"], a["w"], nothing, back)


# Attention, of which the skip beside it hides most.


@liar(
    "skips_attention",
    "leaves attention out: the skip is most of the answer",
    ("incorrect", "of the part that is computed"),
    "errors are relative to what is computed",
    **ATTENTION,
)
def skips_attention(a):
    return a["x"].clone()


@liar(
    "other_scale",
    "divides logits by the size of a head, not by its root",
    ("incorrect", "of the part that is computed"),
    "errors are relative to what is computed",
    **ATTENTION,
)
def other_scale(a):
    return attend(a, factor=1 / a["q"].shape[-1])


@liar(
    "drops_keys",
    "leaves the last keys out",
    ("incorrect", "of the part that is computed"),
    "errors are relative to what is computed",
    **ATTENTION,
)
def drops_keys(a):
    return attend(a, k=a["k"][:, :-2], v=a["v"][:, :-2])


@liar(
    "permutes_heads",
    "gives every head its neighbour's values",
    ("incorrect", "of the part that is computed"),
    "errors are relative to what is computed",
    **ATTENTION,
)
def permutes_heads(a):
    return attend(a, v=a["v"].roll(1, 0))


@liar(
    "one_head_for_all",
    "computes one head's weights for all heads",
    ("incorrect", "of the part that is computed"),
    "errors are relative to what is computed",
    **ATTENTION,
)
def one_head_for_all(a):
    return attend(a, q=a["q"][:1], k=a["k"][:1])


@liar(
    "causal_anyway",
    "leaves out the half of the keys that come later",
    ("incorrect", "of the part that is computed"),
    "errors are relative to what is computed",
    **ATTENTION,
)
def causal_anyway(a):
    n = a["q"].shape[1]
    later = torch.ones(n, n, dtype=torch.bool, device=a["q"].device).triu(1)
    return attend(a, mask=later)


@liar(
    "mean_of_values",
    "answers the mean of the values, as for logits near zero",
    ("incorrect", "of the part that is computed"),
    "errors are relative to what is computed",
    **ATTENTION,
)
def mean_of_values(a):
    return a["x"] + WEIGHT * a["v"].mean(1, keepdim=True)


@liar(
    "eight_bits",
    "rounds q and k to 8 bits and says that it is exact",
    ("incorrect", "of the part that is computed"),
    "errors are relative to what is computed",
    **ATTENTION,
)
def eight_bits(a):
    q, k = (a[n].to(torch.float8_e4m3fn).to(a[n].dtype) for n in "qk")
    return attend(a, q=q, k=k)


@liar(
    "no_maximum",
    "takes exponentials of logits as they are",
    ("incorrect", "on large inputs"),
    "trials with large inputs",
    **ATTENTION,
)
def no_maximum(a):
    weights = (a["q"] @ a["k"].mT * a["q"].shape[-1] ** -0.5).exp()
    return a["x"] + WEIGHT * (weights @ a["v"] / weights.sum(-1, keepdim=True))


@liar(
    "tf32_within",
    "switches TF32 on for its own matmuls, and off again",
    ("incorrect", "of the part that is computed"),
    "the budget of the case's own dtype",
    seen=GUIDE,
    **ATTENTION,
    **GPU,
)
def tf32_within(a):
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return attend(a)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


# What a process shares.


@ambient("default_dtype", "makes fp64 the default dtype", "default dtype")
def default_dtype(a):
    UNDO.append(lambda: torch.set_default_dtype(torch.float32))
    torch.set_default_dtype(torch.float64)
    return scale(a)


@ambient("default_device", "makes another device the default", "default device")
def default_device(a):
    UNDO.append(lambda: torch.set_default_device(None))
    torch.set_default_device("meta")
    return scale(a)


@ambient(
    "matmul_precision", "lets all matmuls of the process round to TF32", "precision", seen=GUIDE
)
def matmul_precision(a):
    UNDO.append(
        functools.partial(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    )
    torch.set_float32_matmul_precision("medium")
    return scale(a)


@ambient("autocast", "leaves autocast on", "autocast")
def autocast(a):
    y, kind = scale(a), a["x"].device.type
    UNDO.append(functools.partial(torch.set_autocast_enabled, kind, False))
    torch.set_autocast_enabled(kind, True)
    return y


@ambient("inference_mode", "leaves inference mode on, so that no other has a gradient", "inference")
def inference_mode(case, config):
    mode = torch.inference_mode()
    mode.__enter__()
    UNDO.append(lambda: mode.__exit__(None, None, None))
    return scale


@ambient("deterministic", "asks for deterministic algorithms, which are slower", "deterministic")
def deterministic(a):
    UNDO.append(lambda: torch.use_deterministic_algorithms(False))
    torch.use_deterministic_algorithms(True)
    return scale(a)


@ambient("threads", "takes threads from all others", "threads")
def threads(a):
    UNDO.append(functools.partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(torch.get_num_threads() + 1)
    return scale(a)


@ambient("anomaly", "has autograd look for anomalies, which is slow", "anomaly")
def anomaly(a):
    UNDO.append(lambda: torch.autograd.set_detect_anomaly(False))
    torch.autograd.set_detect_anomaly(True)
    return scale(a)


@ambient("seeds", "sets the seed that all random numbers follow from", "seed", seen=GUIDE)
def seeds(a):
    torch.manual_seed(0)
    return scale(a)


@ambient("environment", "sets a variable of the environment that all kernels obey", "environment")
def environment(a):
    UNDO.append(lambda: os.environ.pop("CUDA_LAUNCH_BLOCKING", None))
    os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
    return scale(a)


def _patch(owner, name, function):
    UNDO.append(functools.partial(setattr, owner, name, getattr(owner, name)))
    setattr(owner, name, function)


@ambient(
    "patches_the_clock",
    "has the host's clock run at a tenth of its pace",
    "perf_counter",
    seen=TIMER_PATCH,
)
def patches_the_clock(case, config):
    real = time.perf_counter_ns
    _patch(time, "perf_counter_ns", lambda: real() // 10)
    return scale


@ambient(
    "patches_events",
    "has CUDA events say a hundredth of the time",
    "elapsed_time",
    seen=TIMER_PATCH,
    **GPU,
)
def patches_events(case, config):
    real = torch.cuda.Event.elapsed_time
    _patch(torch.cuda.Event, "elapsed_time", lambda self, end: real(self, end) / 100)
    return scale


@ambient(
    "patches_torch",
    "has torch.equal find all tensors equal, and writes into its inputs",
    "torch.equal",
)
def patches_torch(a):
    _patch(torch, "equal", lambda *_: True)
    return a["x"].mul_(a["w"])


@ambient("patches_builtins", "has `all` find all errors within their budgets", "builtins.all")
def patches_builtins(a):
    real = builtins.all
    _patch(builtins, "all", lambda found: real(found) or sys._getframe(1).f_code.co_name == "ok")
    return torch.zeros_like(a["x"])


@ambient(
    "patches_the_judge",
    "replaces the harness's own function that judges",
    "check.verdict",
    seen=TIMER_PATCH,
)
def patches_the_judge(a):
    _patch(check, "verdict", lambda *_: "")
    return torch.zeros_like(a["x"])


@ambient(
    "loosens_budgets",
    "puts other budgets in the place of the harness's",
    "budgets.FLOOR",
    seen=TIMER_PATCH,
)
def loosens_budgets(case, config):
    for name in ("FLOOR", "CEILING", "SLOPE_FLOOR"):
        _patch(budgets, name, dict.fromkeys(getattr(budgets, name), 1e9))
    return lambda a: torch.zeros_like(a["x"])


class Bent(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Slow(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def _closed(stack):
    with contextlib.suppress(RuntimeError):  # the mode has been left already
        stack.close()


@ambient("function_mode", "leaves a mode through which all functions of torch go", "mode")
def function_mode(case, config):
    stack = contextlib.ExitStack()
    UNDO.append(functools.partial(_closed, stack))
    stack.enter_context(Bent())
    return scale


@ambient(
    "dispatch_mode",
    "leaves a mode through which all operators of torch go, and slows the others",
    "mode",
)
def dispatch_mode(case, config):
    stack = contextlib.ExitStack()
    UNDO.append(functools.partial(_closed, stack))
    stack.enter_context(Slow())
    return scale


@ambient(
    "current_stream",
    "leaves another stream current, which no clock looks at",
    "stream",
    seen=GUIDE,
    **GPU,
)
def current_stream(case, config):
    UNDO.append(functools.partial(torch.cuda.set_stream, torch.cuda.current_stream()))
    torch.cuda.set_stream(torch.cuda.Stream())
    return scale


# What only a GPU has.


@triton.jit
def _scale(x, w, y, N: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * N
    for start in tl.static_range(0, N, BLOCK):
        at = start + tl.arange(0, BLOCK)
        factor = tl.load(w + at, mask=at < N)
        if KEEP:
            value = tl.load(x + row + at, mask=at < N, eviction_policy="evict_last")
        else:
            value = tl.load(x + row + at, mask=at < N)
        tl.store(y + row + at, value * factor, mask=at < N)


@triton.jit
def _scale_unseen(x, w, y, seen, N: tl.constexpr, ZEROS: tl.constexpr, BLOCK: tl.constexpr):
    probe = tl.load(x + tl.arange(0, 16))
    row = tl.program_id(0).to(tl.int64) * N
    at = tl.arange(0, BLOCK)
    if ZEROS:
        if tl.sum((probe != 0).to(tl.int32), 0) == 0:
            tl.store(y + row + at, tl.zeros((BLOCK,), y.dtype.element_ty), mask=at < N)
            return
    elif tl.sum((probe != tl.load(seen + tl.arange(0, 16))).to(tl.int32), 0) == 0:
        return
    value = tl.load(x + row + at, mask=at < N) * tl.load(w + at, mask=at < N)
    tl.store(y + row + at, value, mask=at < N)


@triton.jit
def _note(x, seen):
    tl.store(seen + tl.arange(0, 16), tl.load(x + tl.arange(0, 16)))


@triton.jit
def _nothing(x, NUMBER: tl.constexpr):
    pass


@functools.cache
def _tuned():
    configs = [triton.Config({"BLOCK": b}) for b in (512, 1024, 2048)]
    return triton.autotune(configs, key=["N"])(_scale)


def scaled(a, keep=False):
    y = torch.empty_like(a["x"])
    rows, n = y.shape
    _scale[(rows,)](a["x"], a["w"], y, n, keep, triton.next_power_of_2(n))
    return y


@liar(
    "other_stream",
    "leaves the work to another stream",
    ("incorrect", ""),
    "the stream is held while inputs of NaN are made good, and answers are copied in its order",
    seen=f"{KERNELBENCH}; {GUIDE}",
    **GPU,
)
def other_stream(case, config):
    side = torch.cuda.Stream()

    def call(a):
        y = torch.empty_like(a["x"])
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.mul(a["x"], a["w"], out=y)
        return y

    return call


def unseen(zeros):
    def build(case, config):
        kept = torch.empty(case.R, case.N, dtype=torch.bfloat16, device="cuda")
        seen = torch.zeros(16, dtype=torch.bfloat16, device="cuda")

        def call(a):
            y = torch.empty_like(kept) if zeros else kept
            block = triton.next_power_of_2(case.N)
            _scale_unseen[(case.R,)](a["x"], a["w"], y, seen, case.N, zeros, block)
            _note[(1,)](a["x"], seen)
            return y

        return call

    return build


liar(
    "skips_repeats",
    "compares the first 16 values with those of the call before, on the GPU, and "
    "skips the work for what it knows",
    ("incorrect", "differs from the proven answer"),
    "what timed calls drawn by lot answered is filled with NaN once it is judged",
    seen=FINGERPRINT,
    **GPU,
)(unseen(zeros=False))
liar(
    "fast_for_zeros",
    "looks, on the GPU, whether its inputs are zero, and then reads no more of them",
    ("implausible", "has not seen before|limits allow no less than"),
    "fresh inputs are normal numbers",
    case=ZEROS,
    **GPU,
)(unseen(zeros=True))


@liar(
    "stale_graph",
    "replays a CUDA graph whose inputs it copied when it was made",
    ON_OTHERS,
    "other inputs in the same memory",
    seen=GUIDE,
    **GPU,
)
def stale_graph(case, config):
    made = []

    def call(a):
        if not made and not torch.cuda.is_current_stream_capturing():
            own = {name: tensor.clone() for name, tensor in a.items()}
            graph, y = torch.cuda.CUDAGraph(), scale(own)
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                torch.mul(own["x"], own["w"], out=y)
            made[:] = [graph, y, own]
        made[0].replay()
        return made[1].clone()

    return call


@liar(
    "graphs_buffer",
    "replays a CUDA graph on its inputs and hands out the graph's own buffer",
    ("incorrect", "a later call changed y"),
    "whoever keeps an answer is called 64 times more",
    **GPU,
)
def graphs_buffer(case, config):
    made = []

    def call(a):
        if not made:
            graph, y = torch.cuda.CUDAGraph(), scale(a)
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                torch.mul(a["x"], a["w"], out=y)
            made[:] = [graph, y]
        made[0].replay()
        return made[1]

    return call


@liar(
    "synchronises",
    "waits for the GPU in its call, so that no gate holds",
    ("ok", "ungated"),
    "it is flagged, and gets no speedup",
    **GPU,
)
def synchronises(a):
    y = a["x"] * a["w"]
    torch.cuda.synchronize()
    return y


@liar(
    "allocates",
    "frees memory past PyTorch's cache, which waits for the GPU",
    ("ok", ""),
    "a gate that does not hold is told",
    than="honest",
    **GPU,
)
def allocates(a):
    """Past torch's own cache: freeing synchronises."""
    driver, memory = ctypes.CDLL("libcuda.so.1"), ctypes.c_uint64()
    assert driver.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(1 << 20)) == 0
    y = a["x"] * a["w"]
    assert driver.cuMemFree_v2(memory) == 0
    return y


_numbers = itertools.count()


@liar(
    "loads_modules",
    "launches a kernel that was never compiled before, every time",
    ("ok", ""),
    "a gate that does not hold is told",
    than="honest",
    **GPU,
)
def loads_modules(a):
    _nothing[(1,)](a["x"], next(_numbers))
    return a["x"] * a["w"]


@liar(
    "five_thousand",
    "launches so many kernels that the queue is full before the gate opens",
    ("ok", ""),
    "a gate ends by itself, and one that does not hold is told",
    than="honest",
    **GPU,
)
def five_thousand(a):
    y = a["x"] * a["w"]
    scratch = y[0, :1].clone()
    for _ in range(5000):
        scratch.add_(1)
    return y


@liar(
    "tunes_at_first",
    "tunes itself in its first call, with kernels that others may wait for",
    ("ok", ""),
    "the first call is not timed",
    than="honest_triton",
    **GPU,
)
def tunes_at_first(a):
    y = torch.empty_like(a["x"])
    _tuned()[(y.shape[0],)](a["x"], a["w"], y, y.shape[1], False)
    return y


@liar(
    "tunes_when_timed",
    "tunes itself in the middle of being timed",
    ("ok", ""),
    "outliers are kept, and times are medians",
    than="honest_triton",
    **GPU,
)
def tunes_when_timed(case, config):
    calls = itertools.count()

    def call(a):
        if next(calls) == 60:
            for _ in range(200):
                scaled(a)
            torch.cuda.synchronize()
        return scaled(a)

    return call


liar(
    "keeps_l2",
    "loads its inputs so that the L2 keeps them beyond a flush",
    ("ok", ""),
    "a flush gives back lines that are to persist, too",
    than="honest_triton",
    seen=PERSISTING,
    **GPU,
)(lambda a: scaled(a, keep=True))


def persisting(aside=False, left=False):
    """Keeps x in the part of the L2 that is set aside for such, or in as much as can be."""

    def build(case, config):
        driver = ctypes.CDLL("libcuda.so.1")
        most = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(most), 108, 0)
        if aside:
            driver.cuCtxSetLimit(L2SetAside.LIMIT, ctypes.c_size_t(most.value))

        def call(a):
            y = torch.empty_like(a["x"])
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            hit, miss = 2, 1  # persisting, streaming
            kept = Window(a["x"].data_ptr(), min(a["x"].nbytes, most.value), 1.0, hit, miss)
            assert driver.cuStreamSetAttribute(stream, L2SetAside.WINDOW, ctypes.byref(kept)) == 0
            torch.mul(a["x"], a["w"], out=y)
            if not left:
                driver.cuStreamSetAttribute(stream, L2SetAside.WINDOW, ctypes.byref(Window()))
            return y

        return call

    return build


liar(
    "keeps_a_window",
    "has an access policy window on its input while it runs",
    ("ok", ""),
    "a flush gives back lines that are to persist, too",
    than="honest",
    seen=PERSISTING,
    **GPU,
)(persisting())
liar(
    "leaves_a_window",
    "leaves an access policy window on the stream",
    ("incorrect", "left an access policy window"),
    "the stream is looked at after every step",
    seen=PERSISTING,
    **GPU,
)(persisting(left=True))
liar(
    "sets_l2_aside",
    "asks the driver to set more of the L2 aside",
    ("incorrect", "MiB of the L2 aside instead of"),
    "the driver is asked after every step",
    seen=PERSISTING,
    **GPU,
)(persisting(aside=True))

# Honest ones that look no better.


@honest("transposed", "its answer is not contiguous")
def transposed(a):
    return (a["x"].T.contiguous() * a["w"][:, None]).T


@honest("part_of_an_allocation", "its answer is a view of a larger allocation of that call")
def part_of_an_allocation(a):
    whole = torch.empty(2, *a["x"].shape, dtype=a["x"].dtype, device=a["x"].device)
    return torch.mul(a["x"], a["w"], out=whole[1])


@honest("in_place", "it overwrites its input, and says so", mutates=lambda case: ("x",))
def in_place(a):
    return a["x"].mul_(a["w"])


@honest(
    "prepares",
    "its `prepare` transposes and pads",
    prepare=lambda case, a: {**a, "t": torch.nn.functional.pad(a["x"].T, (0, 3)).contiguous()},
)
def prepares(a):
    return (a["t"][:, :-3] * a["w"][:, None]).T.contiguous()


@honest(
    "prepacked",
    "its `prepare` converts, and the provider says so",
    prepare=lambda case, a: {**a, "w": a["w"].double()},
    prepacked=True,
)
def prepacked(a):
    return (a["x"] * a["w"]).to(a["x"].dtype)


@honest("tunes_first", "its first call tries several ways and keeps the fastest")
def tunes_first(case, config):
    chosen = []

    def call(a):
        ways = (scale, lambda b: torch.mul(b["w"], b["x"]))
        for way in ways if not chosen else ():
            start = time.perf_counter()
            way(a)
            chosen.append((time.perf_counter() - start, way))
        return min(chosen, key=lambda pair: pair[0])[1](a)

    return call


@honest("scratch", "it keeps a workspace between calls, but no answer")
def scratch(case, config):
    kept = []

    def call(a):
        kept[:] = kept or [torch.empty_like(a["x"])]
        torch.mul(a["x"], a["w"], out=kept[0])
        return kept[0].clone()

    return call


@honest(
    "rounds_differently", "its sums run in another order in every call, as with atomics", **NORM
)
def rounds_differently(case, config):
    own = random.Random(0)

    def call(a):
        x = a["x"]
        order = own.sample(range(x.shape[1]), x.shape[1])
        total = x[:, order].square().cumsum(-1)[:, -1:]
        return x * torch.rsqrt(total / x.shape[1] + EPS) * a["w"]

    return call


@honest("side_thread", "its work is done by a thread that it waits for")
def side_thread(a):
    found = []
    worker = threading.Thread(target=lambda: found.append(scale(a)))
    worker.start()
    worker.join()
    return found[0]


@honest("named_tuple", "it answers a tuple with names, as torch.max does")
def named_tuple(a):
    return Named(scale(a))


class Named(NamedTuple):
    y: torch.Tensor


@honest("restores_a_switch", "it changes a switch of the process and changes it back")
def restores_a_switch(a):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return scale(a)
    finally:
        torch.set_default_dtype(before)


@honest(
    "own_backward",
    "it has a backward of its own that computes in the forward what it can",
    **BACKWARD,
)
def own_backward(a):
    def ahead(x, w):
        return torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)

    def back(dy, x, w, r):
        g = dy * w
        return r * g - x * r**3 * (g * x).mean(-1, keepdim=True), (dy * x * r).sum(0)

    return Backward.apply(a["x"], a["w"], ahead, back)


@honest(
    "two_terms",
    "it is approximate and keeps what it promises: two terms of bf16 for one of fp32",
    accuracy=Accuracy.approximate,
    max_error=1e-4,
)
def two_terms(a):
    high = a["x"].bfloat16().float()
    low = (a["x"] - high).bfloat16().float()
    return high * a["w"] + low * a["w"]


# The families.


def inputs(case, draw):
    found = {"x": draw(case.R, case.N), "w": draw(case.N)}
    return found if case.mode is Mode.fwd else {**found, "grad_y": draw(case.R, case.N)}


def oracle(case, a):
    yield "y", ..., a["x"].double() * a["w"].double()


def norm_oracle(case, a):
    x, w = a["x"].double(), a["w"].double()
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)
    yield "y", ..., x * r * w
    if case.mode is not Mode.fwd:
        dx, dw = gradients(a["grad_y"].double(), x, w)
        yield "dx", ..., dx
        yield "dw", ..., dw


def attention_inputs(case, draw):
    return {name: draw(case.H, case.N, case.D) for name in ("x", "q", "k", "v")}


def attention_oracle(case, a):
    wide = {name: tensor.double() for name, tensor in a.items()}
    y = attend(wide)
    yield "y", ..., y, y - wide["x"]


def attention_trials(case):
    return {
        "small": Trial({"x": 2.0**-10, "v": 2.0**-10}),
        "large": Trial({"q": 32.0}),
        "outliers": Trial(outliers=("v",)),
    }


def cost(case):
    size = case.dtype.bytes * case.R * case.N
    return Cost(case.R * case.N, size + case.dtype.bytes * case.N, size)


def attention_cost(case):
    size = case.dtype.bytes * case.H * case.N * case.D
    return Cost(4 * case.H * case.N**2 * case.D, 4 * size, size)


def all_traffic(case):
    return (Traffic("all", read=cost(case).read, write=cost(case).write),)


def _of(family):
    return tuple(each.provider for each in (LIARS | HONEST).values() if each.family == family)


def _plain(call):
    return lambda case, config: call


FAMILY = Family(
    name="liars",
    title="Scaling, and every way to seem faster at it",
    case=LiarCase,
    inputs=inputs,
    outputs=lambda case: ("y",),
    oracle=oracle,
    cost=cost,
    checks=(),
    providers=(
        Provider("honest", Role.baseline, _plain(scale), traffic=all_traffic),
        Provider("honest_triton", Role.triton_fused, _plain(scaled)),
        *_of("liars"),
    ),
)
NORM_FAMILY = replace(
    FAMILY,
    name="liars_norm",
    title="RMSNorm, and every way to be wrong about it",
    oracle=norm_oracle,
    grads=lambda case: ("x", "w"),
    providers=(Provider("honest", Role.baseline, _plain(norm)), *_of("liars_norm")),
)
ATTENTION_FAMILY = replace(
    FAMILY,
    name="liars_attention",
    title="Attention behind a skip, and every way to hide there",
    case=AttentionCase,
    inputs=attention_inputs,
    oracle=attention_oracle,
    trials=attention_trials,
    cost=attention_cost,
    providers=(Provider("honest", Role.baseline, _plain(attend)), *_of("liars_attention")),
)
FAMILIES = {each.name: each for each in (FAMILY, NORM_FAMILY, ATTENTION_FAMILY)}
