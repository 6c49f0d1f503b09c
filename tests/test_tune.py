"""Searched configs: what they are kept by, and when they are not used."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from toy import CASE, Script, provider, right, run, toy

from kernelbench.measure import environment, tune
from kernelbench.spec import Context, Device, Job, Status


@dataclass(frozen=True)
class Config:
    BLOCK: int
    tiles: tuple[int, int] = (1, 1)


CONFIGS = [Config(64), Config(128, (2, 2)), Config(256)]
DEVICE = Device(kind="cuda", name="NVIDIA H200")
CONTEXT = Context(run_id="r", gpu="g", seed=0, source="abc")
JOB = Job(family="toy", case=CASE, providers=("p",))
PROVIDER = provider("p", right)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tune, "cache_dir", lambda: tmp_path / "tuned")
    return tmp_path / "tuned"


def facts(**changed: Any) -> dict[str, str]:
    return {**tune.identity(DEVICE, CONTEXT, JOB, PROVIDER), **changed}


def test_without_a_search_the_table_chooses() -> None:
    assert tune.choose(CONFIGS, facts()) == (CONFIGS[0], "table")
    assert tune.clear() == 0


def test_the_fastest_right_config_is_kept() -> None:
    assert tune.keep_fastest(CONFIGS, [30.0, 20.0, None], facts()) == (CONFIGS[1], "tuned")
    assert tune.choose(CONFIGS, facts()) == (CONFIGS[1], "tuned")
    [file] = tune.cached_files()
    kept = json.loads(file.read_text())
    assert (kept["median_ns"], kept["gpu"], kept["provider"]) == (20.0, "NVIDIA H200", "p")


@pytest.mark.parametrize("name", ["gpu", "torch", "triton", "source", "family", "case", "provider"])
def test_it_is_kept_for_this_machine_and_source_alone(name: str) -> None:
    tune.keep_fastest(CONFIGS, [30.0, 20.0, 40.0], facts())
    assert tune.choose(CONFIGS, facts(**{name: "another"})) == (CONFIGS[0], "table")


def test_what_the_identity_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "versions", lambda: {"torch": "2.11.0", "triton": "3.6.0"})
    assert facts() == {
        "gpu": "NVIDIA H200",
        "torch": "2.11.0",
        "triton": "3.6.0",
        "source": "abc",
        "family": "toy",
        "case": "R7-N64-fp32-fwd",
        "provider": "p",
    }


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": 3}', '"x"', "\u00e9{"])
def test_a_file_that_is_not_ours_is_ignored(text: str) -> None:
    tune.keep_fastest(CONFIGS, [30.0, 20.0, 40.0], facts())
    [file] = tune.cached_files()
    file.write_text(text)
    assert tune.choose(CONFIGS, facts()) == (CONFIGS[0], "table")


def test_a_config_that_may_no_longer_be_picked_is_ignored() -> None:
    tune.keep_fastest(CONFIGS, [30.0, 20.0, 40.0], facts())
    left = [CONFIGS[0], replace(CONFIGS[1], BLOCK=32)]
    assert tune.choose(left, facts()) == (CONFIGS[0], "table")


def test_when_no_config_is_right_nothing_is_kept() -> None:
    assert tune.keep_fastest(CONFIGS, [None, None, None], facts()) == (CONFIGS[0], "table")
    assert tune.cached_files() == []


def test_clear_says_how_many_there_were() -> None:
    tune.keep_fastest(CONFIGS, [1.0, 2.0, 3.0], facts())
    tune.keep_fastest(CONFIGS, [1.0, 2.0, 3.0], facts(gpu="another"))
    assert (tune.clear(), tune.clear()) == (2, 0)


def test_a_search_passes_over_configs_that_are_wrong_or_raise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The device claims to be a GPU for `config` alone; everything runs on the CPU."""
    from kernelbench.measure import guard, prove, session

    def build(case: Any, config: Config) -> Any:
        def call(a: Any) -> Any:
            if config.BLOCK == 64:
                raise RuntimeError("out of resource: shared memory")
            y, m = right(a)
            return (y * 1.5, m) if config.BLOCK == 128 else (y, m)

        return call

    tuned = replace(PROVIDER, build=build, configs=lambda case, device: CONFIGS)
    search = prove.config

    def as_if_on_a_gpu(task: Any, prepared: Any, provider: Any) -> Any:
        device = replace(task.session.device, kind="cuda")
        there = replace(task, session=replace(task.session, device=device))
        return search(there, prepared, provider)

    monkeypatch.setattr(prove, "config", as_if_on_a_gpu)
    monkeypatch.setattr(session.Session, "synchronize", lambda self: None)
    monkeypatch.setattr(guard.Guard, "_survive", lambda self, provider, reason: None)
    clock = Script()
    record = run(toy(tuned), clock=clock, tune=True)["p"]
    assert (record.status, record.config_origin) == (Status.ok, "tuned")
    assert record.config == {"BLOCK": 256, "tiles": (1, 1)}
