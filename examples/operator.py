"""An operator of torch.library, named as PyTorch knows it.

    kernelbench bench torch.ops.example.swiglu --import examples/operator.py \
        --against examples/operator.py:reference --args 'gate=4096x1024:bf16, up=4096x1024:bf16'
"""

import torch
import torch.nn.functional as F


def reference(gate, up):
    return F.silu(gate) * up


@torch.library.custom_op("example::swiglu", mutates_args=())
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    g = gate.float()
    return (g * torch.sigmoid(g) * up.float()).to(gate.dtype)


@swiglu.register_fake
def _(gate, up):
    return torch.empty_like(gate)
