"""A layer around attention by PyTorch and by our kernels."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel

from kernelbench.families._rcm import Function, attention, skip
from kernelbench.families.providing import DTYPES, MAX_AUTOTUNE, compiled
from kernelbench.families.rcm_layer.case import WEIGHTS, RCMLayerCase
from kernelbench.nn.sdpa import backends, unordered_sdpa
from kernelbench.spec import Call, Case, Device, DType, Mode, Tensors


def joined(H: int, attend: Function, finish: Function) -> Function:
    """The layer: attention on views of a packed qkv, then `finish`, which makes y of A, x and t."""

    def layer(
        x: torch.Tensor,
        t: torch.Tensor,
        w_qkv: torch.Tensor,
        b_qkv: torch.Tensor,
        w_proj: torch.Tensor,
        b_proj: torch.Tensor,
    ) -> torch.Tensor:
        q, k, v = F.linear(x, w_qkv, b_qkv).unflatten(2, (3, H, -1)).unbind(2)
        return finish(attend(q, k, v), w_proj, b_proj, x, t)

    return layer


def skipping(case: RCMLayerCase, dtype: torch.dtype) -> Function:
    """PyTorch's projection, then the skip in a dtype (see `_rcm.skip`), if there is one."""
    mix = skip(case.parametrization, case.sigma, dtype)

    def finish(a: Any, w: Any, b: Any, x: Any, t: Any) -> torch.Tensor:
        f = F.linear(a, w, b)
        return mix(f, x, t) if case.skips else f

    return finish


def _as_call(layer: Function) -> Call:
    return lambda a: layer(a["x"], a["t"], *(a[name] for name in WEIGHTS))


def _on_backend(graph: Function) -> Call:
    """Trace and run the graph with the baseline's SDPA backend first."""

    def call(a: Tensors) -> torch.Tensor:
        with sdpa_kernel(backends(a["x"].device), set_priority=True):
            return graph(a["x"], a["t"], *(a[name] for name in WEIGHTS))

    return call


def baseline(case: RCMLayerCase, config: Any) -> Call:
    """F.linear, SDPA on the backend that `backends` puts first, F.linear, the skip; eager."""
    return _as_call(joined(case.H, attention(), skipping(case, DTYPES[case.dtype])))


def compile_layer(case: RCMLayerCase, config: Any) -> Call:
    """The whole layer compiled, on the baseline's SDPA backend."""
    return _on_backend(compiled(joined(case.H, unordered_sdpa, skipping(case, torch.float32))))


def compile_max_autotune(case: RCMLayerCase, config: Any) -> Call:
    """As `compile`, its matrix products and their epilogues chosen by trial."""
    layer = joined(case.H, unordered_sdpa, skipping(case, torch.float32))
    return _on_backend(compiled(layer, MAX_AUTOTUNE))


def ours(fused: bool) -> Callable[[RCMLayerCase, Any], Call]:
    """Our projection; attention by our kernel or PyTorch's, whichever is faster there."""

    def build(case: RCMLayerCase, config: Any) -> Call:
        from kernelbench.kernels import projection
        from kernelbench.nn.attend import attend

        fused_skip, unfused_skip = projection.project_and_skip, projection.project_and_skip_unfused
        kind, sigma = case.parametrization.value, case.sigma
        options = {"parametrization": kind, "sigma_data": sigma, "config": config}
        return _as_call(
            joined(case.H, attend, partial(fused_skip if fused else unfused_skip, **options))
        )

    return build


def triton_configs(case: RCMLayerCase, device: Device) -> tuple[Any, ...]:
    from kernelbench.kernels.projection import configs

    M, C, item = case.B * case.N, case.C, case.dtype.bytes
    table = configs(M, C, C, arch=device.arch, itemsize=item, N=case.N)
    return table[:1] if case.mode is Mode.bwd else table


def serves(case: Case, device: Device) -> str | None:
    if case.dtype is DType.tf32:
        return "our kernels multiply fp32 exactly, never as TF32"
    return None
