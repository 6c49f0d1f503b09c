"""A run over all GPUs of a host, where there are several."""

import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from kernelbench import store
from kernelbench.cli import app

COUNT = torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(COUNT < 2, reason="needs two CUDA GPUs"),
]
SUITE = """
name: several
device: cuda
measure: {processes: 2, max_seconds: 0.5}
families:
  rms_norm:
    providers: [eager, triton_fused]
    cases: [{M: [1024, 2048, 4096, 8192], N: [1024, 4096], dtype: bf16}]
"""


def test_all_gpus_share_a_suite(tmp_path: Path) -> None:
    suite, out = tmp_path / "several.yaml", tmp_path / "out"
    suite.write_text(SUITE)
    spent = {}
    for gpus in ("0", "all"):
        begun = time.monotonic()
        command = ["run", str(suite), "--gpus", gpus, "--out", str(out / gpus)]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        spent[gpus] = time.monotonic() - begun
    (run,) = store.find_runs([out / "all"])
    records = store.read_apart(run)
    assert len(records) == 8 * 2 * 2
    uuids = {record.gpu_uuid for record in records}
    assert uuids == {f"GPU-{torch.cuda.get_device_properties(n).uuid}" for n in range(COUNT)}
    for case in {record.case for record in records}:
        assert len({record.gpu_uuid for record in records if record.case == case}) == 1
    assert {*store.read_manifest(run)["gpus"]} == uuids
    assert f"each case on one of {COUNT} GPUs" in done.output
    assert spent["all"] < spent["0"], spent
