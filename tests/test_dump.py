"""What `check --dump` keeps: inputs, answers and oracle of every provider that was judged."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import CASE, provider, right, run, toy
from typer.testing import CliRunner

from kernelbench.cli import app
from kernelbench.spec import Mode, Status, Tensors

PLUGIN = str(Path(__file__).parent / "plugins" / "falls.py")


def wrong(a: Tensors) -> Any:
    y, m = right(a)
    return y + 1, m


def kept(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {file.stem: torch.load(file) for file in folder.iterdir()}


@pytest.mark.parametrize("mode", [Mode.fwd, Mode.bwd, Mode.full])
def test_all_that_was_judged_is_kept(tmp_path: Path, mode: Mode) -> None:
    case = replace(CASE, mode=mode)
    family = toy(provider("wrong", wrong), provider("raises", lambda a: a["x"].foo))
    found = run(family, case, timing=False, dump=str(tmp_path))
    files = kept(tmp_path / "toy" / case.id)
    assert set(files) == {"inputs", "oracle", "eager", "wrong"}
    inputs, oracle = files["inputs"], files["oracle"]
    assert [*inputs] == ["x", "w", "grad_y"][: 2 if mode is Mode.fwd else 3]
    names = {Mode.fwd: {"y", "m"}, Mode.bwd: {"dx", "dw"}, Mode.full: {"y", "m", "dx", "dw"}}[mode]
    assert set(oracle) == set(files["eager"]) == set(files["wrong"]) == names
    assert {tensor.dtype for tensor in oracle.values()} == {torch.float64}
    for name, tensor in oracle.items():
        torch.testing.assert_close(files["eager"][name].double(), tensor, rtol=1e-5, atol=1e-5)
    if mode is not Mode.bwd:
        assert torch.equal(files["eager"]["y"], inputs["x"] * inputs["w"])
        assert torch.equal(files["wrong"]["y"], files["eager"]["y"] + 1)
    assert found["wrong"].status is (Status.ok if mode is Mode.bwd else Status.incorrect)


def test_what_the_oracle_does_not_say_is_nan(tmp_path: Path) -> None:
    case = replace(CASE, sampled=True)
    run(toy(), case, timing=False, dump=str(tmp_path))
    y = kept(tmp_path / "toy" / case.id)["oracle"]["y"]
    assert y.shape == (7, 64)
    assert not y[0].isnan().any() and y[1:].isnan().all()


def test_pieces_by_tensors_are_put_where_they_belong(tmp_path: Path) -> None:
    def oracle(case: Any, a: Tensors) -> Any:
        x, w = a["x"].double(), a["w"].double()
        for rows in (torch.tensor([5, 1, 3]), torch.tensor([0, 2, 4, 6])):
            yield "y", (rows, slice(None)), x[rows] * w
        yield "m", ..., x.amax(-1)

    found = run(toy(oracle=oracle), timing=False, dump=str(tmp_path))
    assert found["eager"].status is Status.ok
    files = kept(tmp_path / "toy" / CASE.id)
    torch.testing.assert_close(files["oracle"]["y"], files["eager"]["y"].double())


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(toy(), timing=False)
    assert not list(tmp_path.iterdir())


def check(*arguments: str) -> Any:
    plugin = ("--plugin", PLUGIN, "--family", "falls", "--provider", "wrong")
    return CliRunner().invoke(app, ["check", *plugin, *arguments])


def test_the_verb_says_where_the_files_are(tmp_path: Path) -> None:
    done = check("--dump", str(tmp_path / "new" / "folder"))
    assert done.exit_code == 1
    assert f"{tmp_path}/new/folder/FAMILY/CASE/*.pt" in done.stdout.replace("\n", "")
    files = kept(tmp_path / "new" / "folder" / "falls" / "n8-fp32-fwd")
    assert set(files) == {"inputs", "oracle", "plain", "wrong"}  # the baseline was judged, too


def test_a_file_that_is_to_stay_stays_and_is_named(tmp_path: Path) -> None:
    file = tmp_path / "falls" / "n8-fp32-fwd" / "plain.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    file.chmod(0o444)
    done = check("--dump", str(tmp_path))
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {file}: cannot be written (read-only")
    assert file.read_bytes() == b"mine"


def test_a_folder_that_cannot_be_written_is_said_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in ("/proc/none", str(tmp_path / "file"), str(tmp_path / "file" / "below")):
        done = check("--dump", folder)
        assert done.exit_code == 2
        assert f"error: --dump {folder}: cannot be written (" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
