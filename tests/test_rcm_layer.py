"""The families of a layer and of a block with a skip: oracle, inputs, costs and byte models."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from kernelbench.families import dit_block, rcm_layer
from kernelbench.families._rcm import Parametrization, coefficients, slopes
from kernelbench.families.dit_block.case import DiTBlockCase, Norm
from kernelbench.families.rcm_layer import FAMILY, RCMLayerCase
from kernelbench.kernels.launch import INTERPRETED
from kernelbench.measure.inputs import Draw
from kernelbench.nn import RCMAttention
from kernelbench.spec import Cost, Device, DType, Family, Mode

KINDS = list(Parametrization)
SMALL = RCMLayerCase(B=2, N=7, C=12, H=3, dtype=DType.fp32, mode=Mode.full)
BLOCK = DiTBlockCase(B=2, N=7, C=12, H=3, dtype=DType.fp32, mode=Mode.full)
H200 = Device(kind="cuda", name="H200", capability=(9, 0), total_bytes=141 * 10**9)
CPU = Device(kind="cpu", name="cpu")


def in_fp64(family: Family[Any], case: RCMLayerCase, seed: int = 1) -> dict[str, Tensor]:
    drawn = family.inputs(case, Draw(case, "cpu", seed))
    return {name: tensor.double() for name, tensor in drawn.items()}


def whole(family: Family[Any], case: RCMLayerCase, a: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the oracle says of y and every gradient, its pieces put together."""
    shapes = {"y": a["x"], **{f"d{name}": a[name] for name in family.grads(case)}}
    found = {name: torch.full_like(like, math.nan) for name, like in shapes.items()}
    for name, index, piece, *_ in family.oracle(case, a):
        if name in found:
            found[name][index] = piece
    return found


def attention(h: Tensor, a: Mapping[str, Tensor], H: int) -> Tensor:
    """proj(attention(qkv(h))), as the definition has it."""
    qkv = torch.einsum("bnc,dc->bnd", h, a["w_qkv"]) + a["b_qkv"]
    q, k, v = (part.unflatten(-1, (H, -1)) for part in qkv.chunk(3, -1))
    score = torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(q.shape[-1])
    mixed = torch.einsum("bhnm,bmhd->bnhd", score.exp() / score.exp().sum(-1, True), v)
    return torch.einsum("bnc,dc->bnd", mixed.flatten(2), a["w_proj"]) + a["b_proj"]


def layer(case: RCMLayerCase, a: Mapping[str, Tensor], h: Tensor) -> Tensor:
    c_skip, c_out = coefficients(a["t"], case.parametrization, case.sigma)
    f = attention(h, a, case.H)
    return torch.einsum("b,bnc->bnc", c_skip, a["x"]) + torch.einsum("b,bnc->bnc", c_out, f)


def block(case: DiTBlockCase, a: Mapping[str, Tensor]) -> Tensor:
    def norm(h: Tensor, name: str) -> Tensor:
        return h / (h.pow(2).mean(-1, True) + 1e-6).sqrt() * a[name] if name in a else h

    y1 = layer(case, a, norm(a["x"], "w_norm1"))
    u = norm(y1, "w_norm2") @ a["w_up"].mT + a["b_up"]
    return y1 + F.gelu(u, approximate="tanh") @ a["w_down"].mT + a["b_down"]


def against_autograd(family: Family[Any], case: Any, define: Any) -> None:
    a = in_fp64(family, case)
    order = family.grads(case)
    leaves = {name: a[name].clone().requires_grad_() for name in order}
    y = define(case, {**a, **leaves})
    wanted = torch.autograd.grad(y, list(leaves.values()), a["grad_y"])
    found = whole(family, case, a)
    torch.testing.assert_close(found["y"], y.detach(), rtol=1e-11, atol=1e-11)
    for name, right in zip(order, wanted, strict=True):
        torch.testing.assert_close(found[f"d{name}"], right, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("sigma", [0.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_oracle_is_the_definition_and_its_autograd(
    kind: Parametrization, sigma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rcm_layer, "ORACLE_ELEMENTS", 3 * SMALL.H * SMALL.N)  # chunks of 3, 3, 1
    sigma = 0.0 if kind is Parametrization.trigflow else sigma
    case = replace(SMALL, parametrization=kind, sigma_data=sigma)
    against_autograd(FAMILY, case, lambda case, a: layer(case, a, a["x"]))


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("kind", KINDS)
def test_oracle_of_the_block_is_its_definition(
    kind: Parametrization, norm: Norm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rcm_layer, "ORACLE_ELEMENTS", 3 * BLOCK.H * BLOCK.N)
    against_autograd(dit_block.FAMILY, replace(BLOCK, parametrization=kind, norm=norm), block)


@pytest.mark.parametrize(("family", "case"), [(FAMILY, SMALL), (dit_block.FAMILY, BLOCK)])
def test_oracle_yields_no_gradient_in_mode_fwd(family: Family[Any], case: Any) -> None:
    fwd = replace(case, mode=Mode.fwd)
    assert {name for name, *_ in family.oracle(fwd, in_fp64(family, fwd))} == {"y"}


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU `check` proves the provider")
def test_our_block_is_one_graph_with_our_kernels_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`triton_compiled`, without Inductor: as `triton_fused`, its gradients, too."""
    targets = []

    def backend(graph: Any, given: Any) -> Any:
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    graph = partial(torch.compile, fullgraph=True, backend=aot_autograd(fw_compiler=backend))
    monkeypatch.setattr(dit_block.providers, "compiled", graph)
    case = replace(BLOCK, C=48, norm=Norm.rms)
    drawn = dit_block.FAMILY.inputs(case, Draw(case, "cpu", 1))
    names = dit_block.FAMILY.grads(case)
    found = []
    for build in (dit_block.providers.triton_fused, dit_block.providers.triton_compiled):
        leaves = {n: t.detach().requires_grad_(n in names) for n, t in drawn.items()}
        y = build(case, None)(leaves)
        wanted = [leaves[name] for name in names]
        found.append([y, *torch.autograd.grad(y, wanted, drawn["grad_y"])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    for name in ("rms_norm", "project_and_skip", "rms_norm_backward", "project_and_skip_backward"):
        assert f"kernelbench.{name}.default" in targets


def test_the_layer_is_the_module() -> None:
    case = replace(SMALL, mode=Mode.fwd, parametrization=Parametrization.cm)
    a = in_fp64(FAMILY, case)
    module = RCMAttention(case.C, case.H, parametrization="cm", impl="eager").double()
    names = {"qkv.weight": "w_qkv", "qkv.bias": "b_qkv", "proj.weight": "w_proj"}
    names["proj.bias"] = "b_proj"
    module.load_state_dict({theirs: a[ours] for theirs, ours in names.items()})
    with torch.no_grad():
        y = module(a["x"], a["t"])
    torch.testing.assert_close(y, whole(FAMILY, case, a)["y"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_both_terms_of_dt_are_above_their_noise(kind: Parametrization) -> None:
    """c_skip'·Σ dy⊙x and c_out'·Σ dy⊙F have one sign, so that dt is no small difference."""
    case = replace(SMALL, B=16, N=256, C=64, H=4, parametrization=kind)
    a = in_fp64(FAMILY, case)
    d_skip, d_out = slopes(a["t"], kind, case.sigma)
    f = attention(a["x"], a, case.H)
    of_x = d_skip * (a["grad_y"] * a["x"]).sum((1, 2))
    of_f = d_out * (a["grad_y"] * f).sum((1, 2))
    size = (of_x**2 + of_f**2).sqrt()
    assert ((of_x + of_f).abs() > 0.3 * size).all()


# By hand: u = B·N·C·2, in bf16; fp32 t of 4·B bytes; lse, 4·B·H·N bytes, apart.

B, N, C, H = 2, 64, 32, 4
U, W, BIAS, T, LSE = B * N * C * 2, 4 * C * C * 2, 4 * C * 2, 4 * B, 4 * B * H * N
LARGE = RCMLayerCase(B=B, N=N, C=C, H=H)


def test_costs_by_hand() -> None:
    linear, scores = 8 * B * N * C * C, 4 * B * N * N * C
    assert FAMILY.cost(LARGE) == Cost(linear + scores, U + W + BIAS + T, U)
    bwd = FAMILY.cost(replace(LARGE, mode=Mode.bwd))
    assert bwd == Cost(2 * linear + scores * 5 // 2, 2 * U + W + T, U + W + BIAS + T)
    more = dit_block.FAMILY.cost(DiTBlockCase(B=B, N=N, C=C, H=H))
    assert more.flops == linear + scores + 16 * B * N * C * C
    assert more.read == U + W + BIAS + T + 8 * C * C * 2 + 5 * C * 2 + 2 * C * 2


def moved(name: str, case: RCMLayerCase) -> tuple[int, int]:
    rows = FAMILY.provider(name).traffic
    assert rows is not None
    return sum(r.read for r in rows(case)), sum(r.write for r in rows(case))


@pytest.mark.parametrize(
    ("provider", "units"),
    [
        ("baseline", 17),
        ("compile", 13),
        ("compile_max_autotune", 13),
        ("triton_fused", 11),
        ("triton_unfused", 13),
    ],
)
def test_passes_over_the_activations_forward(provider: str, units: int) -> None:
    """17 : 13 : 11, of eager, a kernel for the skip, and an epilogue."""
    assert sum(moved(provider, LARGE)) == units * U + W + BIAS + T


def test_without_a_skip_nothing_is_left_of_it() -> None:
    case = replace(LARGE, parametrization=Parametrization.none)
    for provider in FAMILY.providers:
        assert sum(moved(provider.name, case)) == 10 * U + W + BIAS


@pytest.mark.parametrize("provider", [p.name for p in FAMILY.providers])
def test_a_backward_writes_every_gradient_and_full_is_both(provider: str) -> None:
    fwd, bwd, full = (moved(provider, replace(LARGE, mode=mode)) for mode in FAMILY.modes)
    assert bwd[1] >= U + W + BIAS + T
    assert full[0] == fwd[0] + bwd[0] and full[1] == fwd[1] + bwd[1] + LSE


def test_unsupported() -> None:
    tf32 = replace(LARGE, dtype=DType.tf32)
    ours, autotuned = FAMILY.provider("triton_fused"), FAMILY.provider("compile_max_autotune")
    assert "never as TF32" in str(ours.unsupported(tf32, H200))
    assert ours.unsupported(LARGE, H200) is None
    assert "GPU" in str(autotuned.unsupported(LARGE, CPU))
    assert autotuned.unsupported(LARGE, H200) is None


def test_a_backward_has_nothing_to_tune() -> None:
    configs = FAMILY.provider("triton_fused").configs
    assert configs is not None
    assert len(configs(LARGE, H200)) > 4
    assert len(configs(replace(LARGE, mode=Mode.bwd), H200)) == 1


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"C": 10, "H": 3}, "C a multiple of H"),
        ({"N": 0}, "at least 1"),
        ({"sigma_data": -1.0}, "sigma_data must be positive"),
        ({"parametrization": Parametrization.trigflow, "sigma_data": 2.0}, "sigma_data 1"),
    ],
)
def test_cases_that_make_no_sense_are_refused(axes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **axes)
