"""What passes through an output (a skip, a residual, a bias) hides no error of what is computed.

Attention is about 5 % of y at 1024 tokens. Providers are the families' own baselines around an
attention that is wrong on purpose, or honest in another way; all in plain torch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from toy import FAST, Script

from kernelbench.families import dit_block, rcm_attention, rcm_layer, rms_norm
from kernelbench.families._rcm import skip
from kernelbench.families.dit_block import DiTBlockCase
from kernelbench.families.rcm_attention import RCMAttentionCase
from kernelbench.families.rcm_attention.peers import INT8_ERROR, OUTLIERS_ERROR
from kernelbench.families.rcm_layer import RCMLayerCase
from kernelbench.families.rms_norm import RMSNormCase
from kernelbench.measure import environment
from kernelbench.measure.ceilings import Ceilings
from kernelbench.measure.job import Request, Session, run_job
from kernelbench.measure.telemetry import Telemetry
from kernelbench.provide import DTYPES
from kernelbench.spec import (
    Accuracy,
    Case,
    Context,
    Family,
    Job,
    Provider,
    Role,
    RunRecord,
    Status,
    Tensors,
)

SHARE = 0.8  # of its budget that an honest figure may use
ONE_THREAD = 1  # several wait for one another where a machine is shared
Attend = Callable[..., torch.Tensor]


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(ONE_THREAD)
    yield
    torch.set_num_threads(before)


def judged(
    family: Family[Any], case: Case, providers: list[Provider[Any]], seed: int = 3
) -> dict[str, RunRecord]:
    """Records of the baseline and of these providers, proven and tried but not timed."""
    family = replace(family, providers=(family.baseline, *providers))
    session = Session(environment.device("cpu"), Script(), Ceilings(), Telemetry.open(None))
    names = tuple(p.name for p in family.providers)
    job = Job(family=family.name, case=case, providers=names, measure=FAST)
    request = Request(job, Context(run_id="r", gpu="g", seed=seed, source="s"), timing=False)
    batches = run_job(family, request, session, lambda provider, phase: None)
    return {record.provider: record for batch in batches for record in batch}


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float = 0.0, missing: float = 0.0
) -> torch.Tensor:
    """Of (B,N,H,D) in fp32, rounded once; (B,N,H,D). missing: this share of the keys is left out.
    The scores' scale is 1/√D unless told."""
    q, k, v = (tensor.float().transpose(1, 2) for tensor in (q, k, v))
    left = round(k.shape[2] * (1 - missing))
    k, v = k[:, :, :left], v[:, :, :left]
    scores = q @ k.mT * (scale or 1 / math.sqrt(q.shape[-1]))
    return (scores.softmax(-1) @ v).transpose(1, 2)


def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return attention(q, k, v).to(q.dtype).flatten(2)


def scaled(factor: float, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (attention(q, k, v) * factor).to(q.dtype).flatten(2)


def of_scale_one_over_d(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return attention(q, k, v, scale=1 / q.shape[-1]).to(q.dtype).flatten(2)


def without_keys(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return attention(q, k, v, missing=0.01).to(q.dtype).flatten(2)


def heads_permuted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return attention(q, k, v).roll(1, 2).to(q.dtype).flatten(2)


def tile_permuted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    out = attention(q, k, v).to(q.dtype).flatten(2)
    rows = out[:1, 64:128].roll(1, 1)
    return torch.cat([torch.cat([out[:1, :64], rows, out[:1, 128:]], 1), out[1:]])


def in_8_bits(x: torch.Tensor, dim: int) -> torch.Tensor:
    step = x.float().abs().amax(dim, keepdim=True) / 127
    return (x.float() / step).round() * step


def int8(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """q and k to 8 bits for each row, v for each channel."""
    out = attention(in_8_bits(q, -1), in_8_bits(k, -1), in_8_bits(v, 1))
    return out.to(q.dtype).flatten(2)


def fp8(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Probabilities and values in e4m3, as SageAttention 2 has them; q and k in 8 bits."""
    q8, k8 = (in_8_bits(each, -1).transpose(1, 2) for each in (q, k))
    top = v.float().abs().amax(1, keepdim=True) / 448
    v8 = ((v.float() / top).to(torch.float8_e4m3fn).float() * top).transpose(1, 2)
    scores = q8 @ k8.mT / math.sqrt(q.shape[-1])
    p = (scores - scores.amax(-1, keepdim=True)).exp()
    p8 = (p * 448).to(torch.float8_e4m3fn).float() / 448
    return (p8 @ v8 / p.sum(-1, keepdim=True)).transpose(1, 2).to(q.dtype).flatten(2)


WRONG: dict[str, Attend] = {
    "zero": partial(scaled, 0.0),
    "10 % too large": partial(scaled, 1.10),
    "scale 1/D": of_scale_one_over_d,
    "heads permuted": heads_permuted,
    "a tile permuted": tile_permuted,
}
WRONG_IF_EXACT: dict[str, Attend] = {
    "3 % too large": partial(scaled, 1.03),
    "1 % of the keys missing": without_keys,
}


def around(case: Any, attend: Attend, wide: bool = False) -> Any:
    """The baseline of a case's family around an attention. wide: what follows is in fp32."""
    dtype = torch.float32 if wide else DTYPES[case.dtype]
    if isinstance(case, RCMAttentionCase):
        return rcm_attention.providers._joined(
            case, attend, skip(case.parametrization, case.sigma, dtype)
        )
    layer, block = rcm_layer.providers, dit_block.providers
    finish = layer.skipping(case, dtype)
    if isinstance(case, DiTBlockCase):
        return block._as_call(case, block._block(case, attend, finish, block._rms))
    return layer._as_call(layer.joined(case.H, attend, finish))


def made(name: str, attend: Attend, *, exact: bool = True, wide: bool = False) -> Provider[Any]:
    return promising(Provider(name, Role.peer, lambda case, _: around(case, attend, wide)), exact)


def promising(provider: Provider[Any], exact: bool) -> Provider[Any]:
    """The provider, with the promises of the families' 8 bits unless it is to be exact."""
    promises = {"outliers": OUTLIERS_ERROR}
    more = {"accuracy": Accuracy.approximate, "max_error": INT8_ERROR, "promises": promises}
    name = provider.name if exact else f"~{provider.name}"
    return replace(provider, name=name, **({} if exact else more))


HONEST = (made("fused", fused, wide=True),)
HONEST_FORWARD = (*HONEST, made("int8", int8, exact=False), made("fp8", fp8, exact=False))


def figures(record: RunRecord) -> Iterator[tuple[float, str]]:
    """Error over budget, and of what, on the case's inputs and on those of trials."""
    found = [("own", record.errors), *((trial.trial, trial.errors) for trial in record.trials)]
    for inputs, errors in found:
        for error in errors:
            for what, value, budget in error.figures:
                yield value / budget, f"{what} of {error.name}, {inputs} inputs"


def hold(
    family: Family[Any], case: Case, honest: Sequence[Provider[Any]], wrong: Sequence[Provider[Any]]
) -> RunRecord:
    """The honest are right by a margin, the others are not right; -s shows by how much. The
    baseline's record."""
    found = judged(family, case, [*honest, *wrong])
    for provider in (family.baseline, *honest):
        record = found[provider.name]
        most, where = max(figures(record))
        print(f"{family.name} {case.id} {provider.name}: {most:.2f} of its budget ({where})")
        assert record.status is Status.ok, (provider.name, record.reason)
        assert most <= SHARE, (provider.name, where)
    passed = [p.name for p in wrong if found[p.name].status is not Status.incorrect]
    assert passed == []
    return found[family.baseline.name]


WRONG_EXACT = [made(name, attend) for name, attend in (WRONG | WRONG_IF_EXACT).items()]
WRONG_APPROXIMATE = [made(name, attend, exact=False) for name, attend in WRONG.items()]


BOTH = pytest.mark.parametrize("dtype", ["bf16", "fp16"])


@BOTH
@pytest.mark.parametrize("kind", ["edm", "trigflow", pytest.param("cm", marks=pytest.mark.slow)])
def test_a_skip_does_not_hide_attention(kind: str, dtype: str) -> None:
    [case] = RCMAttentionCase.grid(B=1, N=1024, H=2, D=64, dtype=dtype, parametrization=kind)
    hold(rcm_attention.FAMILY, case, HONEST_FORWARD, [*WRONG_EXACT, *WRONG_APPROXIMATE])


@BOTH
def test_nor_where_it_is_four_hundredths_of_the_answer(dtype: str) -> None:
    [case] = RCMAttentionCase.grid(B=1, N=2048, H=1, D=64, dtype=dtype, parametrization="trigflow")
    wrong = [made("10 % too large", partial(scaled, 1.10)), made("keys missing", without_keys)]
    wrong += [made("zero", partial(scaled, 0.0), exact=exact) for exact in (True, False)]
    part = hold(rcm_attention.FAMILY, case, HONEST, wrong).errors[0].part
    assert part is not None
    assert part < 0.05


@BOTH
@pytest.mark.parametrize("mode", ["bwd", pytest.param("full", marks=pytest.mark.slow)])
def test_a_skip_does_not_hide_the_gradients_of_attention(dtype: str, mode: str) -> None:
    [case] = RCMAttentionCase.grid(B=1, N=512, H=2, D=64, dtype=dtype, mode=mode)
    hold(rcm_attention.FAMILY, case, HONEST, WRONG_EXACT)


@BOTH
@pytest.mark.parametrize("mode", ["fwd", pytest.param("bwd", marks=pytest.mark.slow)])
def test_a_projection_and_a_skip_do_not_hide_attention(dtype: str, mode: str) -> None:
    [case] = RCMLayerCase.grid(B=1, N=512, C=128, H=2, dtype=dtype, mode=mode)
    forward = mode == "fwd"
    wrong = [*WRONG_EXACT, *(WRONG_APPROXIMATE if forward else ())]
    hold(rcm_layer.FAMILY, case, HONEST_FORWARD if forward else HONEST, wrong)


@BOTH
@pytest.mark.parametrize("mode", ["fwd", pytest.param("bwd", marks=pytest.mark.slow)])
def test_an_mlp_does_not_hide_attention(dtype: str, mode: str) -> None:
    [case] = DiTBlockCase.grid(B=1, N=512, C=128, H=2, dtype=dtype, mode=mode)
    forward = mode == "fwd"
    wrong = [*WRONG_EXACT, *(WRONG_APPROXIMATE if forward else ())]
    hold(dit_block.FAMILY, case, HONEST_FORWARD if forward else HONEST, wrong)


def residual_norm(forward: float = 1.0, backward: float = 1.0) -> Any:
    """RMSNorm of x + r in fp32, rounded once, times `forward`; its gradient times `backward`."""

    def call(a: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        h = a["x"] + a["residual"]
        wide = h.float() * backward + h.detach().float() * (1 - backward)
        rs = torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        return (wide * rs * a["weight"].float() * forward).to(h.dtype), h

    return lambda case, config: call


@pytest.mark.parametrize("mode", ["fwd", "bwd"])
@BOTH
def test_a_residual_does_not_hide_the_norm(dtype: str, mode: str) -> None:
    [case] = RMSNormCase.grid(M=64, N=512, residual=True, dtype=dtype, mode=mode)
    which = "forward" if mode == "fwd" else "backward"
    wrong = [
        promising(Provider(str(factor), Role.peer, residual_norm(**{which: factor})), exact)
        for factor, exact in ((0.0, True), (1.1, True), (1.03, True), (0.0, False), (1.1, False))
    ]
    fine = Provider("fused", Role.peer, residual_norm())
    hold(rms_norm.FAMILY, case, (fine,), wrong)
