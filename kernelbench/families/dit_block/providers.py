"""A DiT block by PyTorch and by our kernels."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel

from kernelbench.families._rcm import Function, attention
from kernelbench.families.dit_block.case import EPS, DiTBlockCase, names
from kernelbench.families.providing import DTYPES, MAX_AUTOTUNE, compiled
from kernelbench.families.rcm_layer import providers as layer
from kernelbench.families.rcm_layer.case import WEIGHTS
from kernelbench.nn.sdpa import backends, unordered_sdpa
from kernelbench.spec import Call, Device, Tensors


def _block(case: DiTBlockCase, attend: Function, finish: Function, norm: Function) -> Function:
    """x, t and the weights in the order of `names`, to y."""
    layer_weights = WEIGHTS

    def block(x: torch.Tensor, t: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        w_qkv, b_qkv, w_proj, b_proj, w_up, b_up, w_down, b_down = weights[: len(layer_weights) + 4]
        w_norm1, w_norm2 = weights[len(layer_weights) + 4 :] or (None, None)
        h = x if w_norm1 is None else norm(x, w_norm1)
        q, k, v = F.linear(h, w_qkv, b_qkv).unflatten(2, (3, case.H, -1)).unbind(2)
        y1 = finish(attend(q, k, v), w_proj, b_proj, x, t)
        n = y1 if w_norm2 is None else norm(y1, w_norm2)
        return y1 + F.linear(F.gelu(F.linear(n, w_up, b_up), approximate="tanh"), w_down, b_down)

    return block


def _rms(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(h, (h.shape[-1],), w, EPS)


def _as_call(case: DiTBlockCase, block: Function) -> Call:
    order = names(case)
    return lambda a: block(a["x"], a["t"], *(a[name] for name in order))


def baseline(case: DiTBlockCase, config: Any) -> Call:
    """PyTorch's operators, SDPA on the backend that `backends` puts first; eager."""
    finish = layer.skipping(case, DTYPES[case.dtype])
    return _as_call(case, _block(case, attention(), finish, _rms))


def compile_block(case: DiTBlockCase, config: Any, mode: str = "default") -> Call:
    """The whole block compiled, on the baseline's SDPA backend."""
    finish = layer.skipping(case, torch.float32)
    call = _as_call(case, compiled(_block(case, unordered_sdpa, finish, _rms), mode))

    def on_backend(a: Tensors) -> Any:
        with sdpa_kernel(backends(a["x"].device), set_priority=True):
            return call(a)

    return on_backend


def compile_max_autotune(case: DiTBlockCase, config: Any) -> Call:
    """As `compile`, its matrix products and their epilogues chosen by trial."""
    return compile_block(case, config, MAX_AUTOTUNE)


def _ours(case: DiTBlockCase, config: Any) -> Function:
    from kernelbench.kernels.projection import project_and_skip
    from kernelbench.kernels.rms_norm import rms_norm
    from kernelbench.nn.attend import attend

    kind, sigma = case.parametrization.value, case.sigma
    finish = partial(project_and_skip, parametrization=kind, sigma_data=sigma, config=config)
    norm: Any = partial(rms_norm, eps=EPS, casting="fp32")
    return _block(case, attend, finish, norm)


def triton_fused(case: DiTBlockCase, config: Any) -> Call:
    """Our norms and our projection with the skip, our attention or PyTorch's, whichever is faster;
    the other products and gelu are PyTorch's."""
    return _as_call(case, _ours(case, config))


def triton_compiled(case: DiTBlockCase, config: Any) -> Call:
    """`triton_fused` inside torch.compile: our kernels are operators of its graph, and Inductor
    fuses what lies between them."""
    return _as_call(case, compiled(_ours(case, config)))


def on_a_gpu(case: DiTBlockCase, device: Device) -> str | None:
    if device.kind == "cpu":
        return "what torch.compile makes of interpreted kernels tells nothing"
    return layer.serves(case, device)


def triton_configs(case: DiTBlockCase, device: Device) -> tuple[Any, ...]:
    return layer.triton_configs(case, device)
