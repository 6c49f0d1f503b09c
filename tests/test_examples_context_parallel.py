"""The example of training over several GPUs, as its docstring starts it: on a CPU, over gloo."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from gloo import LEFT, watched

from kernelbench.kernels.launch import INTERPRETED

EXAMPLE = Path(__file__).parent.parent / "examples" / "context_parallel.py"


def losses(folder: Path, *launcher: str) -> list[float]:
    """Of one run, step by step. As where there is no GPU: ranks may be more than there are."""
    done = subprocess.run(
        [sys.executable, *launcher, str(EXAMPLE), "--tiny"],
        env=watched(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and LEFT not in done.stderr, done.stdout + done.stderr
    return [float(each) for each in re.findall(r"loss (\S+) +\d+ tokens/s", done.stdout)]


@pytest.mark.slow
def test_losses_are_the_same_with_two_ranks(tmp_path: Path) -> None:
    if not INTERPRETED:
        pytest.skip("ranks of the CPU need Triton's interpreter")
    alone = losses(tmp_path)
    assert len(alone) == 4 and alone[-1] < alone[0] - 0.3
    two = losses(tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    assert two == pytest.approx(alone, abs=2e-4)
