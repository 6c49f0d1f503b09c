"""Where the tests run: on the GPU that is there, else on the CPU in Triton's interpreter."""

import gc
import os
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.distributed.nn  # before a test makes a group, which it would hold for good

if not torch.cuda.is_available():  # before any @triton.jit is applied
    os.environ["TRITON_INTERPRET"] = "1"

    from interpreter import look_once

    look_once()

from kernelbench.families import plugins

# Tensors are small: threads that wait for each other take longer than what they compute, all the
# more beside other workers. Programs that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Every job begins by collecting garbage; spare it a walk over all that was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test finds what another one has imported from its folder, or lets it find its own."""
    before = {*sys.modules}
    others = [each for each in sys.meta_path if not isinstance(each, plugins._Neighbours)]
    monkeypatch.setattr(sys, "meta_path", others)
    yield
    for name in {*sys.modules} - before:
        if "pytest-of" in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(autouse=torch.cuda.is_available())
def memory_goes_back() -> Iterator[None]:
    """No test keeps gigabytes from those beside it, or from programs that the next one starts."""
    yield
    if torch.cuda.memory_reserved() > 2**32:
        gc.collect()
        torch.cuda.empty_cache()


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that no other test and no user has."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
