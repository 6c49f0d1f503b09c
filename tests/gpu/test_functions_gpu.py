"""Functions of others on a GPU: proven, timed, wrong ones caught; as a line and as a test would."""

from pathlib import Path
from typing import Any

import pytest
import torch

import kernelbench
from kernelbench.spec import Status

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
OTHERS = Path(__file__).parent.parent / "functions" / "others.py"
QUICK: dict[str, Any] = {"measure": {"max_seconds": 0.1}}
TEN = {
    "layer_norm": "x=16384x256:bf16, weight=256:bf16, bias=256:bf16",
    "softmax": "logits=4096x1024:fp16",
    "cross_entropy": "logits=2048x8192:fp32, target=2048:int64[0:8192]",
    "geglu": "gate=4096x1024:bf16, up=4096x1024:bf16",
    "rope": "q=2x16x1024x64:bf16, k=2x16x1024x64:bf16, cos=2x1024x64:bf16, sin=2x1024x64:bf16",
    "scatter": "src=4096x512:fp32, index=4096:int64[0:16]",
    "top_k": "x=512x4096:fp32, k=5",
    "fp8_quantise": "x=4096x1024:bf16",
    "MLP": "x=4096x64:bf16",
    "varlen": "q=1024x4x64:fp16, k=1024x4x64:fp16, v=1024x4x64:fp16, cu_seqlens=cu_seqlens(5,1024)",
}


@pytest.mark.parametrize("name", TEN)
def test_ten_functions_of_others(name: str) -> None:
    words = (name, f"{name}_wrong", f"{name}_reference")
    if name == "MLP":
        words = ("FusedMLP(dim=64)", "WrongMLP(dim=64)", "MLP(dim=64)")
    right, wrong, reference = (f"{OTHERS}:{word}" for word in words)
    records = kernelbench.bench(right, wrong, against=reference, args=TEN[name], **QUICK)
    by_name = {record.provider: record for record in records}
    caught = by_name.pop(next(word for word in by_name if "wrong" in word.lower()))
    assert caught.status is Status.incorrect, records
    assert {record.status for record in by_name.values()} == {Status.ok}, records
    assert all(record.timing is not None for record in by_name.values())


def test_compiled_references_take_part(tmp_path: Path) -> None:
    records = kernelbench.bench(
        f"{OTHERS}:geglu",
        against=f"{OTHERS}:geglu_reference",
        args=TEN["geglu"],
        compile=True,
        grad=True,
        out=tmp_path,
        **QUICK,
    )
    ok = {(r.provider, r.mode) for r in records if r.status is Status.ok}
    assert {("compile", "fwd"), ("compile", "bwd"), ("geglu", "bwd")} <= ok, records
