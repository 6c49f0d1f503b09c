"""The family of attention with a skip: its oracle, inputs, costs and byte models."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from kernelbench import families, suite
from kernelbench.families import rcm_attention as family
from kernelbench.families._rcm import Parametrization
from kernelbench.families.rcm_attention import FAMILY, RCMAttentionCase
from kernelbench.measure.inputs import Draw
from kernelbench.nn.sdpa import backends
from kernelbench.spec import Cost, Device, Distribution, DType, Mode

KINDS = list(Parametrization)
SMALL = RCMAttentionCase(B=2, N=7, H=3, D=4, dtype=DType.fp32, mode=Mode.full)
H200 = Device(kind="cuda", name="H200", capability=(9, 0), total_bytes=141 * 10**9)


def drawn(case: RCMAttentionCase, seed: int = 1) -> dict[str, Tensor]:
    return dict(FAMILY.inputs(case, Draw(case, "cpu", seed)))


def in_fp64(case: RCMAttentionCase, seed: int = 1) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in drawn(case, seed).items()}


def whole(case: RCMAttentionCase, a: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the oracle says of y and every gradient, its pieces put together."""
    shapes = {"y": a["x"], **{f"d{name}": a[name] for name in ("q", "k", "v", "x", "t")}}
    found = {name: torch.full_like(like, math.nan) for name, like in shapes.items()}
    for name, index, piece, *_ in FAMILY.oracle(case, a):
        found[name][index] = piece
    return found


# The coefficients. Numbers by hand: σ 1 and t 1; σ 0.5 and t 0.502; σ 1 and t π/4 and π/2.


@pytest.mark.parametrize(
    ("kind", "t", "c_skip", "c_out"),
    [
        ("edm", 0.0, 1.0, 0.0),
        ("edm", 1.0, 0.5, math.sqrt(0.5)),
        ("edm", 1e4, 1e-8, 1.0),
        ("cm", 0.002, 1.0, 0.0),
        ("cm", 0.502, 0.5, 0.25 / math.sqrt(0.25 + 0.502**2)),
        ("trigflow", 0.0, 1.0, 0.0),
        ("trigflow", math.pi / 4, math.sqrt(0.5), -0.5),
        ("trigflow", math.pi / 2, 1.0, -1.0),
        ("none", 0.7, 0.0, 1.0),
    ],
)
def test_coefficients_by_hand(kind: str, t: float, c_skip: float, c_out: float) -> None:
    case = replace(SMALL, parametrization=Parametrization(kind))
    time = torch.tensor(t, dtype=torch.float64)
    found = family.coefficients(time, case.parametrization, case.sigma)
    assert [float(c) for c in found] == pytest.approx([c_skip, c_out], rel=1e-7, abs=1e-15)


def test_for_long_times_edm_leaves_sigma_times_the_attention() -> None:
    for sigma in (0.5, 2.0):
        time = torch.tensor(1e6, dtype=torch.float64)
        c_skip, c_out = family.coefficients(time, Parametrization.edm, sigma)
        assert float(c_skip) < 1e-10 and float(c_out) == pytest.approx(sigma)


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_slopes_are_derivatives(kind: Parametrization, sigma: float) -> None:
    t = torch.linspace(0, 1.5, 31, dtype=torch.float64, requires_grad=True)
    for value, slope in zip(
        family.coefficients(t, kind, sigma), family.slopes(t, kind, sigma), strict=True
    ):
        [wanted] = torch.autograd.grad(value.sum(), t, retain_graph=True)
        torch.testing.assert_close(slope, wanted, rtol=1e-12, atol=1e-14)


# The oracle, against autograd of the definition written with einsum, in fp64.


def defined(case: RCMAttentionCase, q: Tensor, k: Tensor, v: Tensor, x: Tensor, t: Tensor) -> Any:
    score = torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(case.D)
    if case.causal:
        score = score + torch.full_like(score[0, 0], -math.inf).triu(1)
    attention = torch.einsum("bhnm,bmhd->bnhd", score.exp() / score.exp().sum(-1, True), v)
    σ = case.sigma
    match case.parametrization:
        case Parametrization.edm:
            c_skip, c_out = σ**2 / (t**2 + σ**2), σ * t / (σ**2 + t**2).sqrt()
        case Parametrization.cm:
            u = t - 0.002
            c_skip, c_out = σ**2 / (u**2 + σ**2), σ * u / (σ**2 + t**2).sqrt()
        case Parametrization.trigflow:
            both = t.cos() + t.sin()
            c_skip, c_out = 1 / both, -t.sin() / both
        case Parametrization.none:
            c_skip, c_out = 0 * t, 1 + 0 * t
    return torch.einsum("b,bnc->bnc", c_skip, x) + torch.einsum(
        "b,bnc->bnc", c_out, attention.reshape(x.shape)
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sigma", [0.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_oracle_is_the_definition_and_its_autograd(
    kind: Parametrization, sigma: float, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind is Parametrization.trigflow:
        sigma = 0.0
    monkeypatch.setattr(family, "ORACLE_ELEMENTS", 3 * SMALL.H * SMALL.N)  # 3 rows a chunk: 3, 3, 1
    case = replace(SMALL, parametrization=kind, sigma_data=sigma, causal=causal)
    a = in_fp64(case)
    leaves = [a[name].clone().requires_grad_() for name in ("q", "k", "v", "x", "t")]
    y = defined(case, *leaves)
    wanted = torch.autograd.grad(y, leaves, a["grad_y"])
    found = whole(case, a)
    torch.testing.assert_close(found["y"], y.detach(), rtol=1e-12, atol=1e-12)
    for name, right in zip(("dq", "dk", "dv", "dx", "dt"), wanted, strict=True):
        if name[1:] in FAMILY.grads(case):
            torch.testing.assert_close(found[name], right, rtol=1e-11, atol=1e-12)


def test_oracle_yields_no_gradient_in_mode_fwd() -> None:
    case = replace(SMALL, mode=Mode.fwd)
    assert {name for name, *_ in FAMILY.oracle(case, drawn(case))} == {"y"}


# Inputs.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", list(Distribution))
def test_times_are_uniform_and_the_rest_is_as_the_case_says(
    kind: Parametrization, values: Distribution
) -> None:
    case = RCMAttentionCase(
        B=4096, N=1, H=1, D=16, parametrization=kind, inputs=values, dtype=DType.fp16
    )
    a = drawn(case)
    low, high = (0, math.pi / 2) if kind is Parametrization.trigflow else (0.002, 3)
    t = a["t"].double()
    assert a["t"].dtype is torch.float32 and a["t"].shape == (4096,)
    assert low - 1e-6 <= t.min() < low + 0.01 and high - 0.01 < t.max() <= high + 1e-6
    assert t.mean() == pytest.approx((low + high) / 2, abs=0.06)
    assert torch.equal(a["t"], drawn(case)["t"]) and not torch.equal(a["t"], drawn(case, 2)["t"])
    for name in ("q", "k", "v", "x"):
        assert a[name].dtype is torch.float16
        if values in (Distribution.zeros, Distribution.ones):
            assert (a[name] == float(values is Distribution.ones)).all()
    assert "grad_y" not in a


def test_a_mean_is_added_to_the_keys_alone() -> None:
    """It shifts all scores of a row alike, which softmax does not see."""
    case = replace(SMALL, D=16, dtype=DType.fp32)
    plain, moved = drawn(case), drawn(replace(case, k_mean=8.0))
    assert torch.equal(moved["k"], plain["k"] + 8)
    assert all(torch.equal(moved[name], plain[name]) for name in ("q", "v", "x", "t"))
    y, other = (
        whole(case, {n: a.double() for n, a in found.items()})["y"] for found in (plain, moved)
    )
    torch.testing.assert_close(other, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_both_terms_of_dt_are_well_above_their_noise(kind: Parametrization) -> None:
    """Of one sign, and a few times √(NC), so that dt is no difference of two large numbers."""
    case = RCMAttentionCase(
        B=64, N=48, H=4, D=64, parametrization=kind, mode=Mode.bwd, dtype=DType.fp32
    )
    a = in_fp64(case)
    y = defined(replace(case, parametrization=Parametrization.none), *(a[n] for n in "qkvxt"))
    noise = math.sqrt(case.N * case.H * case.D)
    along_x, along_attention = ((a["grad_y"] * tensor).sum((1, 2)) for tensor in (a["x"], y))
    assert along_x.min() > 2 * noise
    sign = 1 if kind is Parametrization.trigflow else -1
    assert (sign * along_attention).min() > 2 * noise


# Costs and bytes. B 2, N 3, H 2, D 16 in bf16: a tensor of (B,N,C) has 384 bytes, t and dt 8.

HAND = RCMAttentionCase(B=2, N=3, H=2, D=16)
FLOPS = 4 * 2 * 2 * 9 * 16


@pytest.mark.parametrize(
    ("axes", "cost"),
    [
        ({}, Cost(FLOPS, 4 * 384 + 8, 384)),
        ({"causal": True}, Cost(FLOPS // 2, 4 * 384 + 8, 384)),
        ({"mode": Mode.bwd}, Cost(FLOPS * 5 // 2, 5 * 384 + 8, 4 * 384 + 8)),
        ({"mode": Mode.full}, Cost(FLOPS * 7 // 2, 5 * 384 + 8, 5 * 384 + 8)),
        ({"parametrization": Parametrization.none}, Cost(FLOPS, 3 * 384, 384)),
        (
            {"parametrization": Parametrization.none, "mode": Mode.bwd},
            Cost(FLOPS * 5 // 2, 4 * 384, 3 * 384),
        ),
    ],
)
def test_costs_by_hand(axes: dict[str, Any], cost: Cost) -> None:
    assert FAMILY.cost(replace(HAND, **axes)) == cost


def passes(provider: str, mode: Mode, **axes: Any) -> float:
    """Bytes moved but for t, dt and statistics of rows, in tensors of (B,N,C)."""
    model = FAMILY.provider(provider).traffic
    assert model is not None
    rows = model(replace(HAND, mode=mode, **axes))
    small = ("t, dt", "lse, delta")
    return sum(row.read + row.write for row in rows if row.tensor not in small) / 384


@pytest.mark.parametrize(
    ("provider", "fwd", "bwd", "full"),
    [
        # fwd: q k v in, attention out: 4; the skip adds 2 + 2 + 3, or 3, or 1. bwd of PyTorch:
        # q k v, attention and its gradient in, dq dk dv out: 8; the skip adds 2 + 2 + 3 + 1 + 3 + 1
        # (two products are summed by kernels of their own), or dy x attention in, then dy in, dx
        # and c_out·dy out: 6. In 16 bits, three kernels: c_out·dy is read twice, and dq is cleared,
        # added to and converted in fp32: 1 + 8. Ours: dy x attention in, dx out, and q k v dy
        # twice, dq dk dv out: 15. full: the epilogue writes the attention, too.
        ("baseline", 11, 29, 40),
        ("torch_fused", 7, 23, 30),
        ("triton_fused", 5, 15, 21),
        ("triton_unfused", 7, 15, 22),
    ],
)
def test_bytes_by_hand(provider: str, fwd: int, bwd: int, full: int) -> None:
    assert [passes(provider, mode) for mode in FAMILY.modes] == [fwd, bwd, full]


def test_without_a_skip_nothing_is_left_of_it() -> None:
    none = {"parametrization": Parametrization.none}
    for provider in ("baseline", "torch_fused", "triton_fused", "triton_unfused"):
        assert passes(provider, Mode.fwd, **none) == 4
    assert passes("torch_fused", Mode.bwd, **none) == 17
    assert passes("triton_fused", Mode.bwd, **none) == 13


def test_in_fp32_attention_of_pytorch_is_one_kernel_backward() -> None:
    for provider, expected in (("baseline", 20), ("torch_fused", 14)):
        assert passes(provider, Mode.bwd, dtype=DType.fp32) == 2 * expected, "4 bytes, not 2"


@pytest.mark.parametrize(
    ("B", "N", "H", "D", "expected"),
    [(16, 8192, 16, 64, 2), (4, 2048, 12, 64, 1), (16, 4096, 16, 128, 1), (1, 256, 2, 64, 1)],
)
def test_our_forward_reads_keys_once_a_launch(
    B: int, N: int, H: int, D: int, expected: int
) -> None:
    """Launches as ncu counted them on an H200, but for the last, a small one."""
    case = RCMAttentionCase(B=B, N=N, H=H, D=D, parametrization=Parametrization.none)
    unit = B * N * H * D * 2
    for provider in ("triton_fused", "triton_unfused"):
        rows = FAMILY.provider(provider).traffic(case)
        assert sum(row.read for row in rows) == (1 + 2 * expected) * unit
    assert sum(row.read for row in FAMILY.baseline.traffic(case)) == 3 * unit


def test_statistics_of_rows() -> None:
    """B·H·N numbers in fp32: lse and δ. Ours: each read by two kernels."""
    row = 2 * 2 * 3 * 4
    for name, mode, read, write in (
        ("baseline", Mode.bwd, 2, 1),
        ("baseline", Mode.full, 2, 2),
        ("triton_fused", Mode.bwd, 4, 1),
        ("triton_fused", Mode.full, 4, 2),
    ):
        [found] = [
            r for r in FAMILY.provider(name).traffic(replace(HAND, mode=mode)) if "lse" in r.tensor
        ]
        assert (found.read, found.write) == (read * row, write * row), (name, mode)


def test_naive_moves_the_scores() -> None:
    case = RCMAttentionCase(B=1, N=512, H=2, D=16)
    scores = 2 * 512 * 512 * 2
    moved = sum(row.read + row.write for row in FAMILY.provider("naive").traffic(case))
    fused = sum(row.read + row.write for row in FAMILY.provider("triton_fused").traffic(case))
    assert 4 * scores <= moved < 4 * scores + 5 * fused


# Who cannot, and why.


def why(provider: str, device: Device = H200, **axes: Any) -> str | None:
    case = replace(RCMAttentionCase(B=1, N=1024, H=8, D=64), **axes)
    return FAMILY.provider(provider).unsupported(case, device)


def test_unsupported() -> None:
    assert all(why(provider.name) is None for provider in FAMILY.providers)
    for mode in (Mode.bwd, Mode.full):
        assert "rounded to bf16" in (why("naive", mode=mode) or "")
        assert why("naive", mode=mode, dtype=DType.fp16) is None
    for name in ("triton_fused", "triton_unfused"):
        assert "16 to 256, not 320" in (why(name, D=320) or "")
        assert "not 8" in (why(name, D=8) or "")
        assert why(name, D=256) is None
        assert "TF32" in (why(name, dtype=DType.tf32) or "")
    assert why("baseline", D=320) is None


def test_naive_is_left_out_where_its_scores_take_two_fifths_of_the_memory() -> None:
    """B·H·N²·2 bytes: 55 GB of 141 pass, 58 do not; a backward holds three of them, not two."""
    assert why("naive", B=1, H=26, N=32768) is None
    assert why("naive", B=1, H=27, N=32768) == "scores of 58 GB: too large for 141 GB"
    backward = {"N": 32768, "mode": Mode.bwd, "dtype": DType.fp16}
    assert "too large" in (why("naive", B=1, H=18, **backward) or "")
    assert why("naive", B=1, H=16, **backward) is None
    assert why("naive", Device(kind="cpu", name="a CPU"), B=1, H=27, N=32768) is None


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"N": 0}, "at least 1"),
        ({"sigma_data": -1.0}, "must be positive"),
        ({"sigma_data": math.nan}, "must be positive"),
        ({"k_mean": math.inf}, "k_mean must be finite"),
        ({"parametrization": Parametrization.trigflow, "sigma_data": 0.5}, "sigma_data 1, got 0.5"),
    ],
)
def test_cases_that_make_no_sense_are_refused(axes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(HAND, **axes)


def test_sigma_is_the_parametrizations_own_unless_given() -> None:
    own = {kind.value: replace(HAND, parametrization=kind).sigma for kind in KINDS}
    assert own == {"edm": 1.0, "cm": 0.5, "trigflow": 1.0, "none": 1.0}
    assert replace(HAND, sigma_data=2.0).sigma == 2.0


def test_backends_are_in_order() -> None:
    """Without a GPU the order is that of Hopper; PyTorch takes the first that can run."""
    order = backends(torch.device("cpu"))
    assert order == [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]


def test_views_of_a_packed_qkv_are_served_without_a_copy() -> None:
    """What SDPA is handed lies where the inputs lie."""
    case = replace(SMALL, mode=Mode.fwd, D=16)
    a = drawn(case)
    packed = torch.stack([a["q"], a["k"], a["v"]], 2)
    views = dict(zip("qkv", packed.unbind(2), strict=True))
    seen = []

    def spy(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        seen.extend(t.untyped_storage().data_ptr() for t in (q, k, v))
        return real(q, k, v, **options)

    real = torch.nn.functional.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        y = FAMILY.baseline.build(case, None)({**a, **views})
    assert set(seen) == {packed.untyped_storage().data_ptr()}
    torch.testing.assert_close(y.double(), whole(case, in_fp64(case))["y"], rtol=1e-5, atol=1e-5)


# The sweep of the documents' shapes.


def test_rcm_seed_has_the_documents_shapes_under_their_labels() -> None:
    found = suite.load(suite.find("rcm_seed"), families.load())
    jobs = [
        job
        for job in found.jobs
        if job.family == "rcm_attention"
        and job.case.parametrization is Parametrization.edm
        and job.case.inputs is Distribution.normal
        and job.case.k_mean == 0
        and not job.case.causal
        and job.case.N < 65536
    ]
    shapes = [
        (job.label.split(" ")[0], job.case.B, job.case.N, job.case.H * job.case.D, job.case.H)
        for job in jobs
        if job.case.mode is Mode.fwd
    ]
    assert shapes == [
        ("Small", 1, 1024, 512, 8),
        ("Medium", 2, 2048, 512, 8),
        ("Large", 4, 4096, 768, 12),
        ("Batch", 8, 2048, 1024, 16),
        ("Very", 1, 8192, 512, 8),
        ("Profiled", 4, 2048, 768, 12),
        ("D", 4, 2048, 2048, 16),
        ("D", 4, 8192, 2048, 16),
        ("D", 1, 32768, 2048, 16),
    ]
    assert {job.case.mode for job in jobs} == {Mode.fwd, Mode.bwd} and len(jobs) == 18
    assert (found.device, found.gpu) == ("cuda", "H200")


@pytest.mark.parametrize("name", ["fa3_fp8", "fa3_fp8_prepacked"])
def test_fp8_promises_nothing_where_nothing_holds(name: str) -> None:
    provider = FAMILY.provider(name)
    assert "rows get other values" in str(provider.promises["outliers"])
    outlying = replace(HAND, inputs=Distribution.outliers, D=64)
    assert provider.unsupported(outlying, H200) == provider.promises["outliers"]
    shifted = provider.unsupported(replace(HAND, k_mean=8.0, D=64), H200)
    assert shifted is not None and "mean off the keys" in shifted
