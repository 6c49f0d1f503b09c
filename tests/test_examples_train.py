"""The example of training on chosen kernels, on a CPU."""

import csv
import importlib.util
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from gloo import LEFT, watched
from test_choose_kernels import records
from test_metrics import timing

from kernelbench import nn
from kernelbench.kernels.launch import INTERPRETED
from kernelbench.nn import choosing
from kernelbench.spec import RunRecord, UsageError
from kernelbench.verbs import kernels

EXAMPLE = Path(__file__).parent.parent / "examples" / "train.py"
EAGER = ("--tiny", "--impl", "eager")
RANKS = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="as where there is no GPU")


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("train_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_example", module)
    spec.loader.exec_module(module)
    yield module
    nn.use_dispatch(None)


def losses(folder: Path) -> list[float]:
    with (folder / "losses.csv").open(encoding="utf-8") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def apart(folder: Path, *flags: str, launcher: tuple[str, ...] = ()) -> list[float]:
    """The losses of a run in a process of its own, or in several."""
    command = [sys.executable, *launcher, str(EXAMPLE), *flags, "--out", str(folder)]
    done = subprocess.run(
        command, env=watched(folder.parent), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and LEFT not in done.stderr, done.stdout + done.stderr
    return losses(folder)


def test_it_learns_and_says_what_it_uses(
    train: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main(["--tiny", "--op", "rotary=triton", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "Nothing is chosen: without a GPU there are no speeds." in printed
    assert (
        "Kernel selection: RMSNorm=PyTorch, Rotary=Triton (forced), SwiGLU=PyTorch, "
        "Attention=PyTorch\n" in printed
    )
    assert " ms" not in printed and "Speedup" not in printed
    found = losses(tmp_path)
    assert len(found) == 6 and found[-1] < found[0]
    kernels = json.loads((tmp_path / "kernels.json").read_text(encoding="utf-8"))
    assert [kernels[op]["how"] for op in train.NAMES] == ["off", "forced", "off", "off"]
    assert kernels["rotary"]["provider"] == "triton_fused"


def test_what_was_measured_is_used_listed_and_kept_for_a_resumed_run(
    train: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, by times that are made: of RMSNorm alone."""

    def bench(family: str, **axes: Any) -> list[RunRecord]:
        if family != "rms_norm":
            raise UsageError("no times")
        own = {name: axes[name] for name in ("M", "N", "residual") if name in axes}
        return records(own, timing=timing(3))

    monkeypatch.setattr(train, "CUDA", True)
    monkeypatch.setattr(choosing, "why_not", lambda device, dtype: "")
    monkeypatch.setattr(kernels, "bench", bench)
    sizes = {"vocab_size": 9, "d_model": 8, "n_heads": 1, "n_layers": 1, "d_ff": 8}
    config = nn.ModelConfig(**sizes, max_seq_len=4, impl={"rotary": "eager"})
    loss, tokens = train.Loss(nn.Transformer(config)), torch.zeros(1, 4, dtype=torch.long)
    warnings.filterwarnings("ignore", message=".*cuda.*")  # autocast, which is not for a CPU
    args = train.arguments(["--tiny", "--op", "rotary=eager", "--out", str(tmp_path)])
    said: list[str] = []
    dispatch = train.choose(args, loss, (tokens, tokens), train.Ranks(0, 1), said.append)
    summary = train.summary_of(dispatch, args.forced)
    assert train.selection_of(summary) == (
        "Kernel selection: RMSNorm=Triton, Rotary=PyTorch (forced), SwiGLU=PyTorch, "
        "Attention=PyTorch"
    )
    assert summary["rms_norm/M4-N8-residualTrue-fp32-full"]["speedup"] == pytest.approx(5 / 3)
    assert sum("Speedup:  1.67x" in line for line in said) == 2
    args.resume = True
    said.clear()
    train.choose(args, loss, (tokens, tokens), train.Ranks(0, 1), said.append)
    assert said[0] == f"Kernels are chosen by {tmp_path / 'dispatch.json'}."
    why = "1.67 × the baseline, at least 1.67"
    assert f"  rms_norm/M4-N8-fp32-full: triton_fused ({why})" in said


def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(
    train: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = [*EAGER, "--steps", "6", "--every", "3"]
    train.main([*flags, "--out", str(whole)])
    train.main([*flags, "--out", str(parts), "--stop", "4"])
    assert len(losses(parts)) == 4
    torch.rand(3)  # whatever has been drawn since
    train.main([*flags, "--out", str(parts), "--resume"])
    assert losses(parts) == losses(whole)
    one, other = (torch.load(each / "checkpoint.pt") for each in (whole, parts))
    assert all(torch.equal(x, other["model"][name]) for name, x in one["model"].items())
    assert not [*tmp_path.rglob("*.part")]
    for more, why in (([], "has a checkpoint"), (["--resume", "--seed", "1"], "'seed': 0")):
        with pytest.raises(SystemExit) as ended:
            train.main([*flags, "--out", str(parts), *more])
        assert ended.value.code == 2 and why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--op", "rmsnorm=triton"], "--op rmsnorm=triton: one of rms_norm, rotary, swiglu"),
        (["--impl", "cuda"], "invalid choice: 'cuda'"),
        (["--stop", "0"], "--steps, --stop, --every: 1 or more"),
        (["--resume"], "--resume: no checkpoint in --out None"),
        (["--dispatch", "gone.json"], "--dispatch: no file gone.json"),
        (["--log", "wandb"], "--log wandb needs a package: pip install 'kernelbench[wandb]'"),
    ],
)
def test_what_does_not_fit_ends_with_one_line(
    train: ModuleType,
    flags: list[str],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        train.main(["--tiny", *flags])
    assert ended.value.code == 2
    assert why in capsys.readouterr().err.splitlines()[-1]


def test_ranks_exchange_gradients_alone(
    train: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables of positions are the same on all: sent anew, they break a second forward."""
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in {**ranks, "TORCHELASTIC_RUN_ID": "a test"}.items():
        monkeypatch.setenv(name, value)
    made = list[Any]()

    def parallel(loss: Any, **how: Any) -> Any:
        made.append(torch.nn.parallel.DistributedDataParallel(loss, **how))
        return made[0]

    monkeypatch.setattr(train, "DistributedDataParallel", parallel)
    train.main([*EAGER, "--steps", "1", "--out", str(tmp_path)])
    assert len(losses(tmp_path)) == 1 and not made[0].broadcast_buffers


def test_the_page_says_how_far_seeds_are_apart() -> None:
    docs = EXAMPLE.parent.parent / "docs"
    with (docs / "train.csv").open(encoding="utf-8") as file:
        rows = [[float(row[f"eager_{seed}"]) for seed in range(3)] for row in csv.DictReader(file)]
    apart = [abs(x - y) for row in rows for x, y in combinations(row, 2)]
    text = " ".join((docs / "train.md").read_text(encoding="utf-8").split())
    assert f"two seeds differ by {sum(apart) / len(apart):.2f} on average" in text


@pytest.mark.slow
def test_losses_are_the_same_with_two_ranks(tmp_path: Path) -> None:
    alone = apart(tmp_path / "one", *EAGER)
    two = apart(tmp_path / "two", *EAGER, launcher=RANKS)
    assert len(alone) == 6 and two == pytest.approx(alone, abs=2e-4)


@pytest.mark.slow
def test_our_kernels_learn_what_pytorchs_operators_do(tmp_path: Path) -> None:
    """Of 200 steps, the last ten in the mean: nearer than seeds are to each other."""

    def last(impl: str, seed: int) -> float:
        flags = ["--tiny", "--impl", impl, "--steps", "200", "--every", "200"]
        found = apart(tmp_path / f"{impl}{seed}", *flags, "--seed", str(seed))
        return sum(found[-10:]) / 10

    eager = [last("eager", seed) for seed in (0, 1, 2)]
    assert abs(last("triton", 0) - eager[0]) < max(eager) - min(eager)
