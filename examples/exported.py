"""A package of torch.export and AOTInductor, as it is deployed.

    python examples/exported.py gelu.pt2
    kernelbench bench gelu.pt2 --against examples/exported.py:reference --args 'x=512x1024:fp32'

A package is compiled for the shapes, dtype and device of its example inputs.
"""

import sys

import torch


def reference(x):
    return 0.5 * x * (1 + torch.erf(x * 0.5**0.5))


class Gelu(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.gelu(x)


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    program = torch.export.export(Gelu(), (torch.randn(512, 1024, device=device),))
    print(torch._inductor.aoti_compile_and_package(program, package_path=sys.argv[1]))
