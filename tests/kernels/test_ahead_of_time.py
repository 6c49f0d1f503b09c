"""Kernels compiled with no GPU. What the compiler makes of all of them: tests/test_inspect.py."""

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
