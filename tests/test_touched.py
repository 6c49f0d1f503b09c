"""What a provider touches, counted on a CPU, is what its `traffic` says; liars are caught.

Our kernels are counted as their `tl` twins in Triton's interpreter; what only a GPU runs is named.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import toy
import triton
import triton.language as tl
from twins import with_marks

from kernelbench import families, provide
from kernelbench.kernels.launch import Launch
from kernelbench.profile.touched import Count, discrepancies, touched, uncovered
from kernelbench.profile.touched import kernels as touched_kernels
from kernelbench.profile.touched.operators import Operators, Use
from kernelbench.spec import (
    Case,
    Device,
    DType,
    Family,
    KernelbenchError,
    Mode,
    Provider,
    Role,
    Traffic,
)

pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret,
    reason="bytes are counted in Triton's interpreter; here kernels run on the GPU",
)

FAMILIES = families.load()
CPU = Device("cpu", "a CPU")

# Sizes that no block divides, large enough that 1 % of the bytes is more than a row.
CASES: dict[str, list[dict[str, Any]]] = {
    "rms_norm": [
        {"M": 301, "N": 257, "dtype": "fp32", "residual": True},
        {"M": 203, "N": 384, "dtype": "fp16", "casting": "llama"},
        {"M": 301, "N": 130, "dtype": "fp16", "casting": "none"},
        {"M": 97, "N": 257, "dtype": "fp16", "casting": "gemma", "residual": True},
    ],
    "rotary": [
        {"B": 2, "S": 37, "Hq": 4, "Hk": 2, "D": 48, "dtype": "fp16", "interleaved": True},
        {"B": 2, "S": 37, "Hq": 3, "Hk": 1, "D": 64, "dtype": "fp32", "layout": "bhsd"},
        {"B": 2, "S": 37, "Hq": 4, "Hk": 2, "D": 48, "dtype": "fp32", "interleaved": True},
        {"B": 2, "S": 21, "Hq": 2, "Hk": 2, "D": 80, "dtype": "fp16", "tables": "bs"},
        {"B": 1, "S": 37, "Hq": 4, "Hk": 2, "D": 64, "dtype": "fp16", "inplace": True},
    ],
    "swiglu": [
        {"M": 37, "F": 257, "dtype": "fp32"},
        {"M": 41, "F": 384, "dtype": "fp16", "packed": True},
        {"M": 37, "F": 129, "dtype": "fp32", "packed": True},
    ],
    "empty": [
        {"M": 37, "N": 257, "dtype": "fp32"},
        {"M": 37, "N": 256, "dtype": "fp16"},
    ],
    "attention": [
        {"B": 2, "N": 97, "Hq": 4, "Hk": 2, "D": 32, "dtype": "fp16"},
        {"B": 1, "N": 67, "Nk": 131, "Hq": 2, "Hk": 2, "D": 64, "dtype": "fp32", "causal": True},
        {"B": 1, "N": 97, "Hq": 2, "Hk": 1, "D": 48, "dtype": "fp16", "documents": "four"},
    ],
    "zigzag_attention": [
        {"W": 2, "rank": 1, "N": 512, "Hq": 2, "Hk": 1, "D": 16, "dtype": "fp16"},
        {"W": 1, "rank": 0, "N": 128, "Hq": 1, "Hk": 1, "D": 32, "dtype": "fp32", "causal": False},
    ],
    "dilated_attention": [
        {"B": 1, "N": 256, "branches": "64r1_128r2", "H": 2, "D": 32, "dtype": "fp16"},
        {"B": 1, "N": 96, "branches": "32r2_96r4", "H": 3, "D": 32, "dtype": "fp32"},
        {"B": 1, "N": 128, "branches": "64r1", "H": 2, "D": 32, "dtype": "fp16", "causal": True},
        {
            **{"B": 1, "N": 96, "branches": "32r1_96r3", "H": 2, "D": 32, "dtype": "fp16"},
            **{"combine": "mean", "order": "tile"},
        },
    ],
    "rcm_attention": [
        {"B": 2, "N": 97, "H": 2, "D": 32, "dtype": "fp16"},
        {"B": 1, "N": 131, "H": 2, "D": 64, "dtype": "fp32", "causal": True},
        {"B": 1, "N": 97, "H": 2, "D": 48, "dtype": "fp16", "parametrization": "none"},
        {"B": 1, "N": 256, "H": 2, "D": 64, "dtype": "fp16"},
    ],
    "rcm_layer": [
        {"B": 2, "N": 97, "C": 96, "H": 3, "dtype": "fp16"},
        {"B": 1, "N": 97, "C": 96, "H": 3, "dtype": "fp32"},
        {"B": 1, "N": 131, "C": 64, "H": 1, "dtype": "fp32", "parametrization": "none"},
    ],
    "dit_block": [
        {"B": 1, "N": 131, "C": 96, "H": 3, "dtype": "fp16"},
        {"B": 1, "N": 131, "C": 96, "H": 3, "dtype": "fp32"},
        {"B": 1, "N": 67, "C": 64, "H": 2, "dtype": "fp32", "norm": "none"},
    ],
}

# Tensors that a model leaves out, or states for a GPU alone: on neither side of the comparison.
PARTIAL = "one row a program: their number is the GPU's, not the case's"
LEFT_OUT: dict[tuple[str, str], dict[str, str]] = {
    ("rms_norm", "triton_fused"): {"partial": PARTIAL},
    ("dit_block", "triton_fused"): {"partial": PARTIAL},
    ("rcm_attention", "triton_int8"): {
        "partial": PARTIAL,
        "q_scale": "one number a tile",
        "k_scale": "one number a tile",
        "v_scale": "one number a column",
        "v8": "fp16 on a CPU, where a GPU of sm_89 or later has fp8",
    },
}
LEFT_OUT["rcm_attention", "triton_int8_prepacked"] = LEFT_OUT["rcm_attention", "triton_int8"]

# Families without a model of bytes: what they move goes from GPU to GPU, which none of this counts,
# or is that of every operator of a step.
UNMODELLED = ("dilated_parallel", "train_step", "zigzag_parallel")
COMPILED, GPU = "compile", "GPU|not installed|sm_90"
UNCOUNTED = {
    ("zigzag_attention", "torch_fused"): "compiled for a CPU, FlexAttention is wrong",
    ("zigzag_attention", "torch_one_call"): "GPUs alone|no gradients",
    ("zigzag_attention", "fa3"): GPU,
    ("zigzag_attention", "fa4"): GPU,
    ("zigzag_attention", "zigzag_ring"): "one document alone",
    ("dilated_attention", "torch_fused"): COMPILED,
    ("attention", "torch_fused"): COMPILED,
    ("attention", "torch_varlen"): "for packed documents alone",
    ("attention", "triton_deterministic"): "a forward has the same bits anyway",
    ("attention", "fa3"): GPU,
    ("attention", "fa3_fp8"): GPU + "|heads that share keys",
    ("attention", "fa3_fp8_prepacked"): GPU + "|heads that share keys",
    ("attention", "fa4"): GPU,
    ("rms_norm", "compile"): COMPILED,
    ("rms_norm", "compile_max_autotune"): GPU,
    ("rms_norm", "liger"): GPU,
    ("rms_norm", "quack"): GPU,
    ("rms_norm", "quack_tuned"): GPU,
    ("empty", "compile"): COMPILED,
    ("rotary", "torch_fused"): COMPILED,
    ("rotary", "compile_max_autotune"): GPU,
    ("rotary", "liger"): GPU,
    ("rotary", "quack"): GPU,
    ("swiglu", "compile"): COMPILED,
    ("swiglu", "compile_max_autotune"): GPU,
    ("swiglu", "liger"): GPU,
    ("rcm_attention", "torch_fused"): COMPILED,
    ("rcm_attention", "compile_max_autotune"): GPU,
    ("rcm_attention", "fa3"): GPU,
    ("rcm_attention", "fa3_fp8"): GPU,
    ("rcm_attention", "fa3_fp8_prepacked"): GPU,
    ("rcm_attention", "fa4"): GPU,
    ("rcm_attention", "sage1"): GPU,
    ("rcm_layer", "compile"): COMPILED,
    ("rcm_layer", "compile_max_autotune"): GPU,
    ("dit_block", "compile"): COMPILED,
    ("dit_block", "compile_max_autotune"): GPU,
    ("dit_block", "triton_compiled"): COMPILED,
}


def cases(family: Family[Any]) -> Iterator[Case]:
    for axes in CASES.get(family.name, []):
        for mode in family.modes:
            yield from family.case.grid(mode=mode, **axes)


def known(family: Family[Any], provider: Provider[Any], case: Any) -> str | None:
    """Why a model cannot be held against what runs on a CPU, or that there is nothing to hold."""
    if reason := provider.unsupported(case, CPU):
        return reason
    if case.mode is Mode.jvp and provider.role is not Role.triton_fused:
        return "what PyTorch makes of forward mode is modelled as a bound, or by other operators"
    narrow, back = case.dtype.bytes == 2, case.mode is not Mode.fwd
    attends = family.name in ("attention", "rcm_attention")
    theirs = attends and provider.name == "baseline"
    if family.name == "zigzag_attention" and provider.name == "baseline" and back:
        return "autograd fills up and adds what slices of keys have of gradients"
    if provider.name == "triton_gather" and back:
        return "our attention is one operator there, of which only a bound is modelled"
    apart = family.name == "zigzag_attention" and provider.name == "baseline" and case.causal
    if apart or (family.name == "attention" and theirs and case.keys != case.N):
        return "a dispatch mode, which counts, cannot make PyTorch's CausalBias"
    if narrow and back and (theirs or family.name in ("rcm_layer", "dit_block")):
        return "PyTorch's attention in 16 bits is three kernels backward on CUDA: ncu"
    if family.name == "rcm_attention":
        eight = "int8" in provider.name
        if eight and (case.N % 128 or case.D != 64 or not case.skips):
            return "the model of 8 bits is that of D = 64 or 128, without padding"
        if provider.name.startswith("triton") and back and case.D == 64 and narrow:
            return "the model is that of attention.hopper.fused, in Gluon; a CPU runs its twins"
    return None


def without_ours(family: Family[Any], case: Any) -> bool:
    """A backward without a skip, whose attention on a CPU is PyTorch's."""
    return family.name == "rcm_layer" and case.mode is Mode.bwd and not case.skips


EVERY = [
    pytest.param(family, case, provider, id=f"{name}-{provider.name}-{case.id}", marks=marks)
    for name, family in FAMILIES.items()
    if name not in UNMODELLED
    for case, marks in with_marks(cases(family))
    for provider in family.providers
    if (name, provider.name) not in UNCOUNTED and known(family, provider, case) is None
]


@pytest.mark.parametrize(("family", "case", "provider"), EVERY)
def test_what_is_touched_is_what_is_modelled(
    family: Family[Any], case: Any, provider: Provider[Any]
) -> None:
    left_out = LEFT_OUT.get((family.name, provider.name), {})
    assert provider.traffic is not None
    model = [row for row in provider.traffic(case) if row.tensor not in left_out]
    count = touched(family, case, provider)
    assert not discrepancies(count.without(*left_out), model), count.rows
    if provider.name.startswith("triton") and not without_ours(family, case):
        assert count.kernels, "no kernel of ours was counted"


@pytest.mark.parametrize("name", UNMODELLED)
def test_what_goes_from_gpu_to_gpu_or_is_a_whole_step_has_no_model(name: str) -> None:
    assert all(provider.traffic is None for provider in FAMILIES[name].providers)


@pytest.mark.parametrize(("family", "provider"), UNCOUNTED)
def test_who_is_not_counted_says_why(family: str, provider: str) -> None:
    found = FAMILIES[family]
    case = replace(found.case(**CASES[family][0]), dtype=DType.fp16)
    with pytest.raises(KernelbenchError, match=UNCOUNTED[family, provider]):
        touched(found, case, found.provider(provider))


def test_every_provider_is_counted_or_named() -> None:
    counted = {(p.values[0].name, p.values[2].name) for p in EVERY}  # type: ignore[attr-defined,union-attr]
    here = {
        (name, provider.name)
        for name, family in FAMILIES.items()
        if name not in UNMODELLED
        for provider in family.providers
    }
    assert counted | set(UNCOUNTED) == here, "a family needs CASES, a provider without a reason"
    assert not counted & set(UNCOUNTED)
    assert set(LEFT_OUT) <= counted


@pytest.mark.parametrize(
    ("family", "axes", "names"),
    [
        (
            "rcm_attention",
            {"B": 2, "N": 4096, "H": 16, "D": 64},
            {"attention.hopper.forward.attend", "attention.hopper.fused.differentiate"},
        ),
        (
            "rcm_layer",
            {"B": 2, "N": 4096, "C": 1024, "H": 16},
            {
                "attention.hopper.forward.attend",
                "attention.hopper.fused.differentiate",
                "projection.hopper.project",
            },
        ),
        (
            "rms_norm",
            {"M": 8, "N": 131072},
            {"rms_norm.device.normalise_split_rows", "rms_norm.device.differentiate_split_rows"},
        ),
    ],
)
def test_what_only_a_gpu_runs_is_named(family: str, axes: dict[str, Any], names: set[str]) -> None:
    found = FAMILIES[family]
    (case,) = found.case.grid(dtype="fp16", mode="full", **axes)
    alone = uncovered(found, case, found.provider("triton_fused"))
    assert names <= set(alone)
    assert set(uncovered(found, case, found.provider("triton_fused"), counted=alone[:1])) == set(
        alone[1:]
    )
    assert uncovered(found, case, found.baseline) == ()


# By hand, and planted liars.

R, N = 37, 257
SIZE, ROW = 4 * R * N, 4 * N


@triton.jit
def scale_rows(x_ptr, w_ptr, extra_ptr, y_ptr, stride, N, BLOCK: tl.constexpr, END: tl.constexpr):
    c = tl.arange(0, BLOCK)
    row = tl.program_id(0)
    inside = c < END
    y = tl.load(x_ptr + row * stride + c, mask=inside, other=0.0)
    y *= tl.load(w_ptr + c, mask=inside, other=0.0)
    if extra_ptr is not None:
        y += tl.load(extra_ptr + row * N + c, mask=inside, other=0.0)
    tl.store(y_ptr + row * N + c, y, mask=inside)


@triton.jit
def add_up(x_ptr, sum_ptr, N, BLOCK: tl.constexpr):
    c = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + tl.program_id(0) * N + c, mask=c < N, other=0.0)
    tl.atomic_add(sum_ptr + c, x, mask=c < N)


@triton.jit
def copy_tiles(x_ptr, y_ptr, R, N, BLOCK: tl.constexpr):
    x = tl.make_tensor_descriptor(x_ptr, [R, N], [N, 1], [BLOCK, BLOCK])
    y = tl.make_block_ptr(y_ptr, (R, N), (N, 1), (0, 0), (BLOCK, BLOCK), (1, 0))
    tl.store(y, x.load([0, 0]), boundary_check=(0, 1))


@triton.jit
def idle(x_ptr, BLOCK: tl.constexpr):
    tl.arange(0, BLOCK)


def scaled(
    a: Any, *, extra: Any = None, times: int = 1, end: int = N, x: Any = None
) -> torch.Tensor:
    x, y = a["x"] if x is None else x, torch.empty(R, N)
    args = {"x_ptr": x, "w_ptr": a["w"], "extra_ptr": extra, "y_ptr": y}
    sizes = {"stride": x.stride(0), "N": N}
    for _ in range(times):
        Launch(scale_rows, (R,), args | sizes, {"BLOCK": 512, "END": end}, {}).run()
    return y


def counted(call: Any, mode: Mode = Mode.fwd) -> Count:
    """What a provider of the toy family touches that makes y alone."""
    mine = toy.provider("mine", call)
    family = toy.toy(mine, outputs=lambda case: ("y",))
    return touched(family, replace(toy.CASE, R=R, N=N, mode=mode), mine)


def rows(count: Count) -> dict[str, tuple[int, int]]:
    return {row.tensor: (row.read, row.written) for row in count.rows}


HONEST = (Traffic("x", read=SIZE), Traffic("w", read=ROW), Traffic("y", write=SIZE))


def test_distinct_and_issued_bytes_of_lanes_that_are_not_masked() -> None:
    count = counted(scaled)
    assert rows(count) == {"x": (SIZE, 0), "y": (0, SIZE), "w": (ROW, 0)}
    [w] = [row for row in count.rows if row.tensor == "w"]
    assert (w.issued_read, w.issued_written) == (R * ROW, 0), "each program reads it"
    assert count.kernels == ("test_touched.scale_rows",)
    assert discrepancies(count, HONEST) == []


def test_a_second_launch_reads_again() -> None:
    count = counted(lambda a: scaled(a, times=2))
    assert rows(count) == {"x": (2 * SIZE, 0), "y": (0, 2 * SIZE), "w": (2 * ROW, 0)}
    assert len(discrepancies(count, HONEST)) == 2


def test_a_tensor_that_no_row_names_is_found_whatever_the_totals() -> None:
    extra = torch.zeros(R, N)
    model = (Traffic("x", read=2 * SIZE), *HONEST[1:])
    [found] = discrepancies(counted(lambda a: scaled(a, extra=extra)), model)
    assert "extra is in no row of the model" in found and "scale_rows" in found


@pytest.mark.parametrize("what", ["read", "write"])
@pytest.mark.parametrize(("share", "wrong"), [(0.98, 1), (0.995, 0), (1.005, 0), (1.02, 1)])
def test_a_model_may_be_off_by_less_than_a_hundredth(what: str, share: float, wrong: int) -> None:
    model = [replace(row, **{what: int(share * getattr(row, what))}) for row in HONEST]
    found = discrepancies(counted(scaled), model)
    assert len(found) == wrong
    assert all(what.rstrip("e") in line for line in found)


def test_lanes_out_of_bounds_are_caught() -> None:
    with pytest.raises(KernelbenchError, match="scale_rows reads out of bounds"):
        counted(lambda a: scaled(a, end=N + 1))


def test_lanes_between_the_rows_of_a_view_are_out_of_bounds() -> None:
    wide = torch.zeros(R, N + 7)
    assert rows(counted(lambda a: scaled(a, x=wide[:, :N])))["x"] == (SIZE, 0)
    weights = {"w": torch.zeros(N + 1)}
    call = lambda a: scaled(weights, x=wide[:, :N], end=N + 1)  # noqa: E731
    with pytest.raises(KernelbenchError, match=r"out of bounds.*beside x"):
        counted(call)


def test_atomics_read_and_write() -> None:
    def call(a: Any) -> torch.Tensor:
        y = torch.zeros(N)
        Launch(add_up, (R,), {"x_ptr": a["x"], "sum_ptr": y, "N": N}, {"BLOCK": 512}, {}).run()
        return y

    assert rows(counted(call)) == {"x": (SIZE, 0), "y": (ROW, 2 * ROW)}  # cleared, added to


def test_descriptors_and_block_pointers_are_seen() -> None:
    x = torch.zeros(30, 20)

    def call(a: Any) -> torch.Tensor:
        y = torch.empty(30, 20)
        sizes = {"x_ptr": x, "y_ptr": y, "R": 30, "N": 20}
        Launch(copy_tiles, (1,), sizes, {"BLOCK": 16}, {}).run()
        return y

    count = counted(call)
    tile = 4 * 16 * 16
    assert [(row.tensor, row.read, row.written) for row in count.rows if row.names] == [
        ("x", tile, 0),
        ("y", 0, tile),
    ]


def test_a_kernel_that_touches_nothing_is_an_error() -> None:
    def call(a: Any) -> Any:
        Launch(idle, (1,), {"x_ptr": a["x"]}, {"BLOCK": 16}, {}).run()
        return a["x"]

    with pytest.raises(KernelbenchError, match="idle ran without a load or a store"):
        counted(call)


def test_another_interpreter_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import interpreter

    class Renamed:
        load = store = atomic_rmw = staticmethod(len)

    x = torch.zeros(R, N)
    args = {"x_ptr": x, "w_ptr": x, "extra_ptr": None, "y_ptr": x, "stride": N, "N": N}
    launch = Launch(scale_rows, (1,), args, {"BLOCK": 512, "END": N}, {})
    monkeypatch.setattr(interpreter, "_interpreter", Renamed)
    with pytest.raises(KernelbenchError, match=r"reaches memory by .*teach"):
        touched_kernels.Kernels(lambda use: None)(launch)


def test_the_interpreter_is_left_as_it_was() -> None:
    module = touched_kernels._interpreter()
    before = [getattr(module, name) for name in touched_kernels._ACCESSES]
    with pytest.raises(KernelbenchError):
        counted(lambda a: scaled(a, end=N + 1))
    assert [getattr(module, name) for name in touched_kernels._ACCESSES] == before


def test_a_hidden_copy_of_an_eager_provider_is_found() -> None:
    assert discrepancies(counted(lambda a: a["x"] * a["w"]), HONEST) == []
    found = discrepancies(counted(lambda a: a["x"].clone() * a["w"]), HONEST)
    assert [line.partition(":")[0] for line in found] == ["read", "written"]


def test_what_is_compiled_is_not_counted_as_something_else() -> None:
    call = lambda a: provide.compiled(lambda x: x + 1)(a["x"])  # noqa: E731
    with pytest.raises(KernelbenchError, match="is compiled"):
        counted(call)


def test_a_backward_is_counted_without_its_forward() -> None:
    """y = x·w: dx = dy·w, and dw the sum of dy·x over rows."""
    count = counted(lambda a: a["x"] * a["w"], Mode.bwd)
    assert count.operators == ("mul", "sum", "view") or count.operators == ("mul", "sum")
    found = rows(count)
    assert found["x"] == (SIZE, 0) and found["grad_y"] == (2 * SIZE, 0)
    assert found["dx"] == (0, SIZE) and found["dw"] == (0, ROW)
    assert (count.read, count.written) == (4 * SIZE + ROW, 2 * SIZE + ROW)


def moved(call: Any) -> tuple[int, int]:
    """Bytes that operators read and write."""
    uses: list[Use] = []
    with Operators(uses.append) as operators, operators.counted(True):
        call()
    return sum(use.read for use in uses), sum(use.written for use in uses)


X, V = torch.ones(8, 6), torch.ones(6)


@pytest.mark.parametrize(
    ("call", "read", "written"),
    [
        (lambda: X + V.expand(8, 6), 192 + 24, 192),
        (lambda: X * X, 192, 192),
        (lambda: X[:, ::2] + 1, 96, 96),
        (lambda: X.t().reshape(6, 8).unsqueeze(0), 0, 0),
        (lambda: X.t().reshape(-1), 192, 192),
        (lambda: X.add_(1), 192, 192),
        (lambda: X[2:4].mul_(V), 48 + 24, 48),
        (lambda: X.copy_(V), 24, 192),
        (lambda: X.zero_(), 0, 192),
        (lambda: torch.empty_like(X), 0, 0),
        (lambda: torch.ones_like(X), 0, 192),
        (lambda: torch.cat([X, X]), 192, 384),
        (lambda: X.masked_fill(X > 0, 1.0), 192 + 192 + 192 + 48, 192 + 192 + 48),
        (
            lambda: torch.ops.aten.slice_backward(X[:, :3], [8, 6], 1, 0, 3, 1),
            96,
            192 + 96,
        ),
        (lambda: X.sum(0), 192, 24),
    ],
)
def test_operators_by_hand(call: Any, read: int, written: int) -> None:
    assert moved(call) == (read, written)


def test_rms_norm_of_pytorch_is_counted_as_on_a_gpu() -> None:
    """x and w in, y and rstd out; backward dx by a kernel, dw by another."""

    def call(a: Any) -> torch.Tensor:
        return F.rms_norm(a["x"], (N,), weight=a["w"], eps=1e-6)

    count = counted(call)
    assert (count.read, count.written) == (SIZE + ROW, SIZE + 4 * R)
    count = counted(call, Mode.bwd)
    assert (count.read, count.written) == (4 * SIZE + ROW + 8 * R, SIZE + ROW)
