"""A family whose providers look faster, or more right, than they are; and who must not get away.

y = x · w over rows of N, on a GPU. What must become of each stands in CAUGHT.
"""

import ctypes
import itertools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernelbench.measure.flush import L2SetAside, Window
from kernelbench.spec import Case, Cost, Distribution, DType, Family, Provider, Role, Traffic, axis

# provider: (status, what its reason or its flags say); all that is said of those below is ok.
CAUGHT = {
    "wrong": ("incorrect", "budget"),
    "half": ("incorrect", "NaN in y"),
    "overwrites": ("incorrect", "changed its input x"),
    "remembers": ("incorrect", "NaN in y"),
    "remembers_copy": ("incorrect", "on fresh inputs, after timing"),
    "other_stream": ("incorrect", ""),
    "skips_repeats": ("implausible", ""),
    "sets_l2_aside": ("incorrect", "MiB of the L2 aside instead of"),
    "leaves_a_window": ("incorrect", "left an access policy window"),
    "synchronises": ("ok", "ungated"),
}
# provider: the honest one than which it is no faster, where its gate held.
GAINS_NOTHING = {
    "allocates": "honest",
    "loads_modules": "honest",
    "keeps_a_window": "honest",
    "tunes_at_first": "honest_triton",
    "tunes_when_timed": "honest_triton",
    "keeps_l2": "honest_triton",
}


@dataclass(frozen=True, kw_only=True)
class LiarCase(Case):
    R: int = axis("rows")
    N: int = axis("columns")


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


_tuned = triton.autotune([triton.Config({"BLOCK": b}) for b in (512, 1024, 2048)], key=["N"])(
    _scale
)


def scaled(a, keep=False):
    y = torch.empty_like(a["x"])
    rows, n = y.shape
    _scale[(rows,)](a["x"], a["w"], y, n, keep, triton.next_power_of_2(n))
    return y


def right(case, config):
    return lambda a: a["x"] * a["w"]


def liar(call):
    return lambda case, config: call


def half(a):
    y = torch.empty_like(a["x"])
    torch.mul(a["x"][::2], a["w"], out=y[::2])
    return y


def overwrites(a):
    y = a["x"] * a["w"]
    a["x"].mul_(1.5)
    return y


def remembers(case, config):
    kept = []

    def call(a):
        kept[:] = kept or [a["x"] * a["w"]]
        return kept[0]

    return call


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
        y = torch.empty(case.R, case.N, dtype=torch.bfloat16, device="cuda")
        seen = torch.zeros(16, dtype=torch.bfloat16, device="cuda")

        def call(a):
            block = triton.next_power_of_2(case.N)
            _scale_unseen[(case.R,)](a["x"], a["w"], y, seen, case.N, zeros, block)
            _note[(1,)](a["x"], seen)
            return y

        return call

    return build


def synchronises(a):
    y = a["x"] * a["w"]
    torch.cuda.synchronize()
    return y


def allocates(a):
    """Past torch's own cache: freeing synchronises."""
    driver, memory = ctypes.CDLL("libcuda.so.1"), ctypes.c_uint64()
    assert driver.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(1 << 20)) == 0
    y = a["x"] * a["w"]
    assert driver.cuMemFree_v2(memory) == 0
    return y


_numbers = itertools.count()


def loads_modules(a):
    """A kernel that was never compiled before, every time."""
    _nothing[(1,)](a["x"], next(_numbers))
    return a["x"] * a["w"]


def five_thousand(a):
    y = a["x"] * a["w"]
    scratch = y[0, :1].clone()
    for _ in range(5000):
        scratch.add_(1)
    return y


def tunes_at_first(a):
    y = torch.empty_like(a["x"])
    _tuned[(y.shape[0],)](a["x"], a["w"], y, y.shape[1], False)
    return y


def tunes_when_timed(case, config):
    calls = itertools.count()

    def call(a):
        if next(calls) == 60:
            for _ in range(200):
                scaled(a)
            torch.cuda.synchronize()
        return scaled(a)

    return call


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


def inputs(case, draw):
    return {"x": draw(case.R, case.N), "w": draw(case.N)}


def oracle(case, a):
    yield "y", ..., a["x"].double() * a["w"].double()


def cost(case):
    size = 2 * case.R * case.N
    return Cost(case.R * case.N, size + 2 * case.N, size)


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
        Provider(
            "honest",
            Role.baseline,
            right,
            traffic=lambda case: (Traffic("all", read=cost(case).read, write=cost(case).write),),
        ),
        Provider("honest_triton", Role.triton_fused, liar(scaled)),
        Provider("wrong", Role.peer, liar(lambda a: a["x"] * a["w"] * 1.01)),
        Provider("half", Role.peer, liar(half)),
        Provider("overwrites", Role.peer, liar(overwrites)),
        Provider("remembers", Role.peer, remembers),
        Provider("remembers_copy", Role.peer, remembers_copy),
        Provider("other_stream", Role.peer, other_stream),
        Provider("skips_repeats", Role.peer, unseen(zeros=False)),
        Provider("fast_for_zeros", Role.peer, unseen(zeros=True)),
        Provider("synchronises", Role.peer, liar(synchronises)),
        Provider("allocates", Role.peer, liar(allocates)),
        Provider("loads_modules", Role.peer, liar(loads_modules)),
        Provider("five_thousand", Role.peer, liar(five_thousand)),
        Provider("tunes_at_first", Role.peer, liar(tunes_at_first)),
        Provider("tunes_when_timed", Role.peer, tunes_when_timed),
        Provider("keeps_l2", Role.peer, liar(lambda a: scaled(a, keep=True))),
        Provider("keeps_a_window", Role.peer, persisting()),
        Provider("leaves_a_window", Role.peer, persisting(left=True)),
        Provider("sets_l2_aside", Role.peer, persisting(aside=True)),
    ),
)

SMALL = LiarCase(R=1024, N=4096, dtype=DType.bf16)  # 8 MiB a tensor: what the L2 could keep
LARGE = LiarCase(R=16384, N=4096, dtype=DType.bf16)
ZEROS = LiarCase(R=16384, N=4096, dtype=DType.bf16, inputs=Distribution.zeros)
