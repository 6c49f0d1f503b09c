"""Kernels compiled with no GPU. What the compiler makes of all of them: tests/test_inspect.py."""

import os
import subprocess
import sys

import pytest
import torch

from kernelbench.kernels import rcm_attention
from kernelbench.kernels.ahead_of_time import ahead_of_time
from kernelbench.kernels.launch import INTERPRETED, Launch
from kernelbench.kernels.rcm import formula_of


@pytest.mark.skipif(not INTERPRETED, reason="the kernels were made for a GPU")
def test_interpreted_kernels_have_no_code() -> None:
    x, t = torch.ones(1, 16, 16), torch.ones(1)
    launch = rcm_attention.skip_launch(x, x, t, x, formula=formula_of("edm", None, False, None, 16))
    assert isinstance(launch, Launch)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1 cannot be compiled: unset it"):
        ahead_of_time(launch, "sm_90")


# Tokens so far apart that offsets take 64 bits: the interpreter minds no change of type, the
# compiler does. Prints the kernels.
WIDE = """
import torch
from kernelbench.kernels.ahead_of_time import ahead_of_time
from kernelbench.kernels.launch import Target, described_for
from kernelbench.kernels.projection import project_and_skip
from kernelbench.kernels.rcm_attention import rcm_attention
from kernelbench.kernels.rcm_int8 import rcm_attention_int8

def far(*shape):
    strides = torch.empty(shape, device="meta")[:, :1].contiguous().stride()
    strides = (strides[0], 1 << 28, *strides[2:])
    return torch.empty_strided(shape, strides, dtype=torch.float16, device="meta").requires_grad_()

q, k, v, x, dy = *(far(2, 100, 1, 32) for _ in "qkv"), far(2, 100, 32), far(2, 100, 32)
t, weight = torch.empty(2, device="meta"), torch.empty(32, 32, device="meta").half()
with described_for(Target("sm_80", 108)) as launches:
    rcm_attention(q, k, v, x, t, causal=True).backward(dy)
    with torch.no_grad():
        rcm_attention_int8(q, k, v, x, t)
        project_and_skip(far(2, 128, 32), weight, None, far(2, 128, 32), t)
for launch in launches:
    if launch.constexprs.get("WIDE"):
        ahead_of_time(launch, "sm_80")
        print(launch.kernel.__module__, launch.kernel.__name__)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton, and its ptxas, are for Linux")
def test_kernels_for_offsets_of_64_bits_compile() -> None:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", WIDE], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [line.removeprefix("kernelbench.kernels.") for line in done.stdout.splitlines()]
    assert found == [
        "rcm_attention _attend",
        "rcm_attention _differentiate_skip",
        "rcm_attention _differentiate_keys",
        "rcm_attention _differentiate_queries",
        "rcm_int8 _quantise_queries",
        "rcm_int8 _quantise_pairs",
        "rcm_int8 _attend",
        "projection _project",
    ]
