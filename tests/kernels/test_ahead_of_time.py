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


# What may be left out: the interpreter takes any default and any branch, the compiler does not.
LEFT_OUT = """
import torch
from kernelbench.kernels.ahead_of_time import ahead_of_time
from kernelbench.kernels.launch import Target, described_for
from kernelbench.kernels.rms_norm import push_launch, rms_norm
from kernelbench.kernels.rotary import apply_rotary
from kernelbench.kernels.swiglu import swiglu

def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")

with described_for(Target("sm_90", 132)) as launches:
    for N in (256, 4096, 131072):  # whole rows, rows that are read twice, split rows
        x, weight, rstd = meta(64, N), meta(N), meta(64, dtype=torch.float32)
        rms_norm(x)
        rms_norm(meta(64, N).requires_grad_(), residual=x)[0].backward(x)
        rms_norm(x, weight.clone().requires_grad_()).backward(x)
        launches.append(push_launch(x, x, weight, weight, rstd, x, casting="fp32"))
        launches.append(push_launch(x, None, None, weight, rstd, x, casting="gemma"))
    for F in (1, 16, 1001):
        for asked in (0, 1):
            given = [meta(64, 2 * F), meta(64, 3, 2 * F)[:, 0]]
            given[asked].requires_grad_()
            swiglu(*given).sum().backward()
    q, k, table = meta(2, 128, 8, 128), meta(2, 128, 2, 128), meta(256, 48)
    starts = meta(2, dtype=torch.int32)
    for interleaved in (False, True):
        more = {"rotary_dim": 96, "interleaved": interleaved}
        apply_rotary(q, k, table, table, offsets=starts, **more)
        apply_rotary(q, k, table, table, offsets=64, inplace=True, **more)
for launch in launches:
    ahead_of_time(launch, "sm_90")
    print(launch.kernel.__module__, launch.kernel.__name__)
"""


# What attention's core does for sequences that are packed, or have other numbers of keys, and for
# heads that share keys.
PLACED = """
import torch
from kernelbench.kernels.ahead_of_time import ahead_of_time
from kernelbench.kernels.attention.backward import Gradients, keys_launch, queries_launch
from kernelbench.kernels.attention.forward import Forward, forward_launch
from kernelbench.kernels.attention.places import Packed
from kernelbench.kernels.attention.tiles import statistic_of

def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")

starts = meta(9, dtype=torch.int32)
for place, rows in ((Packed(starts, starts, 8, 4096), 4096), (None, 1000)):
    q, do = meta(1, rows, 32, 128), meta(1, rows, 4096)
    k, v, dk, dv = (meta(1, 4096, 8, 128) for _ in range(4))
    lse = statistic_of(q)
    how = {"scale": 0.1, "causal": True, "place": place}
    gradients, blocks = Gradients(do, q, k, v, lse, lse, do), (32, 64, 4, 2)
    for launch in (
        forward_launch(Forward(q, k, v, do, lse), blocks=(128, 64, 8, 2), **how),
        keys_launch(gradients, dk, dv, blocks=blocks, adds=True, **how),
        queries_launch(gradients, q, blocks=blocks, **how),
    ):
        ahead_of_time(launch, "sm_80")
        print(launch.kernel.__module__, launch.kernel.__name__)
"""


# Rows that lie apart, or in a list, of heads that share keys; and both ways to combine branches.
DILATED = """
import torch
from kernelbench.kernels.ahead_of_time import ahead_of_time
from kernelbench.kernels.dilated_attention import dilated_attention
from kernelbench.kernels.launch import Target, described_for

def meta(heads):
    return torch.empty(2, 600, heads, 64, dtype=torch.bfloat16, device="meta").requires_grad_()

q, k, v = meta(8), meta(2), meta(2)
with described_for(Target("sm_90", 132)) as launches:
    for more in ({"causal": True}, {"order": "hilbert", "causal": True}, {"combine": "mean"}):
        dilated_attention(q, k, v, [128, 300], [1, 3], **more).backward(q)
for arch in ("sm_80", "sm_90"):
    for launch in launches:
        ahead_of_time(launch, arch)
        print(launch.kernel.__module__, launch.kernel.__name__)
"""


def compiled_by(script: str) -> list[str]:
    """The kernels that a script prints, in a process where they can be compiled."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [line.removeprefix("kernelbench.kernels.") for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton, and its ptxas, are for Linux")
def test_kernels_for_offsets_of_64_bits_compile() -> None:
    assert compiled_by(WIDE) == [
        "attention.forward attend",
        "rcm_attention _differentiate_skip",
        "attention.backward differentiate_keys",
        "attention.backward differentiate_queries",
        "rcm_int8 _quantise_queries",
        "rcm_int8 _quantise_pairs",
        "rcm_int8 _attend",
        "projection _project",
    ]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton, and its ptxas, are for Linux")
def test_kernels_compile_without_what_may_be_left_out() -> None:
    found = compiled_by(LEFT_OUT)
    names = {name.rpartition(" ")[2] for name in found}
    assert len(found) > 20 and names == {
        "normalise_rows", "normalise_wide_rows", "normalise_split_rows", "differentiate",
        "differentiate_split_rows", "sum_partials", "push_rows", "_rotate",
        "_activate", "_differentiate",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton, and its ptxas, are for Linux")
def test_kernels_compile_for_packed_sequences_and_shared_heads() -> None:
    assert compiled_by(PLACED) == 2 * [
        "attention.forward attend",
        "attention.backward differentiate_keys",
        "attention.backward differentiate_queries",
    ]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton, and its ptxas, are for Linux")
def test_kernels_compile_for_rows_that_lie_apart() -> None:
    attends = ["attention.forward attend"] * 2
    gradients = [
        "attention.backward differentiate_keys",
        "attention.backward differentiate_queries",
    ]
    merged = [*attends, "attention.backward find_deltas", *gradients * 2]
    mean = [*attends, *[attends[0], *gradients] * 2]
    assert compiled_by(DILATED) == [*merged, *merged, *mean] * 2
