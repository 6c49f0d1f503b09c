"""What hardware counters say of a provider's calls, where a GPU and its counters are to be had."""

import gc
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from kernelbench import store
from kernelbench.cli import app
from kernelbench.metrics import audit
from kernelbench.profile import ncu
from kernelbench.profile.tool import ToolError
from kernelbench.spec import Measured, Status, Tool

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
SUITE = """
name: bytes
device: cuda
defaults: {dtype: bf16}
families:
  rms_norm:
    providers: [eager, triton_fused]
    cases: [{M: 16384, N: 8192, mode: [fwd, bwd]}]
"""


def profiled(tmp_path: Path, *options: str) -> dict[tuple[str, str], Measured]:
    """Lines by mode and provider."""
    suite, out = tmp_path / "bytes.yaml", tmp_path / "out"
    suite.write_text(SUITE)
    done = CliRunner().invoke(app, ["profile", str(suite), *options, "--out", str(out)])
    assert done.exit_code == 0, done.output
    (run,) = store.find_runs([out])
    found, problems = store.read_measured(run)
    assert not problems
    return {(one.mode, one.provider): one for one in found}


@pytest.fixture(autouse=True)
def room() -> None:
    """The profiled processes need memory that other tests left in this one's cache."""
    gc.collect()
    torch.cuda.empty_cache()


def counters() -> str:
    """Why they cannot be read here, or nothing."""
    try:
        ncu.find()
    except ToolError as error:
        return str(error)
    return ncu.why_not() or ""


@pytest.mark.skipif(bool(counters()), reason=f"no counters: {counters()}")
def test_reads_are_what_is_modelled_and_backward_ranges_hold_kernels(tmp_path: Path) -> None:
    found = profiled(tmp_path, "--ncu", "--calls", "2")
    assert {one.status for one in found.values()} == {Status.ok}
    for mode in ("fwd", "bwd"):
        assert audit.audit(found[mode, "triton_fused"]) == "ok"
    names = [kernel.name for kernel in found["bwd", "triton_fused"].kernels]
    assert "differentiate" in names
    assert all(kernel.launches == 2 for kernel in found["fwd", "triton_fused"].kernels)
    eager, ours = (
        audit.per_call(found["fwd", who], "dram_read_bytes") for who in ("eager", "triton_fused")
    )
    assert eager is not None and ours is not None and eager > 8 * ours


def test_torch_tells_kernels_and_leaves_the_memory_of_a_call(tmp_path: Path) -> None:
    found = profiled(tmp_path, "--torch")
    for one in found.values():
        assert one.tool is Tool.torch and one.status is Status.ok
        assert all(kernel.gpu_ns for kernel in one.kernels)
        assert any(name.endswith(".memory.pickle") for name in one.files)
