"""Attention with a skip, y = c_skip(t)·x + c_out(t)·proj(attention(x)), by each implementation.

Run it from the repository's root: `python examples/rcm.py`. On a GPU it runs the kernels, elsewhere
Triton's interpreter, for correctness alone.
"""

import importlib.util
import os
import sys
from pathlib import Path

import torch

if not torch.cuda.is_available():  # before any kernel is made
    os.environ.setdefault("TRITON_INTERPRET", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

from kernelbench.nn import RCMAttention

B, N, DIM, HEADS = 2, 64, 64, 4
CUDA = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)
CLASS = {"eager": 0.0, "triton": 1e-2 if CUDA else 1e-5, "triton_int8": 5e-2}


def boundaries() -> None:
    """At t = 0 the layer is the identity; late, the skip is gone and c_out has come to sigma."""
    print("   t      c_skip    c_out   (edm, sigma_data = 1)")
    layer = RCMAttention(DIM, HEADS)
    for t in (0.0, 0.5, 1.0, 100.0):
        c_skip, c_out = layer.get_skip_coefficients(t)
        print(f"{t:6.1f}  {c_skip:9.6f} {c_out:9.6f}")
    c_skip, c_out = RCMAttention(DIM, HEADS, sigma_data=0.5).get_skip_coefficients(100.0)
    print(f" 100.0  {c_skip:9.6f} {c_out:9.6f}   (sigma_data = 0.5)")


def layers() -> dict[str, RCMAttention]:
    """One state, loaded into every implementation that is there."""
    torch.manual_seed(0)
    names = ["eager", "triton"]
    if CUDA and importlib.util.find_spec("kernelbench.kernels.rcm_int8"):
        names.append("triton_int8")
    found = {n: RCMAttention(DIM, HEADS, impl=n).to(DEVICE, DTYPE) for n in names}  # type: ignore[arg-type]
    for layer in found.values():
        layer.load_state_dict(found["eager"].state_dict())
    return found


def main() -> None:
    boundaries()
    x = torch.randn(B, N, DIM, device=DEVICE, dtype=DTYPE)
    t = torch.tensor([0.3, 1.7], device=DEVICE)
    made = layers()
    with torch.no_grad():
        right = made["eager"](x, t).double()
        for name, layer in made.items():
            error = float((layer(x, t).double() - right).norm() / right.norm())
            verdict = "agree" if error <= CLASS[name] else "DIFFER"
            print(f"eager and {name:12} {verdict}: relative error {error:.1e}")
            same = torch.equal(layer(x, 0.0), x)
            print(f"{name:22} at t = 0 y {'is x, bit by bit' if same else 'IS NOT x'}")
            if verdict == "DIFFER" or not same:
                raise SystemExit(1)
    loss = made["triton"](x, t).float().square().mean()
    loss.backward()
    sizes = {name: f"{p.grad.norm():.3f}" for name, p in made["triton"].named_parameters()}
    print(f"triton trains: loss {loss:.4f}, norms of the gradients {sizes}")


if __name__ == "__main__":
    main()
