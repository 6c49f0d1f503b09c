"""Where the tests run: on the GPU that is there, else on the CPU in Triton's interpreter."""

import os

import pytest
import torch

if not torch.cuda.is_available():  # before any @triton.jit is applied
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that no other test and no user has."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
