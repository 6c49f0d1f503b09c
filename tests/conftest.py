"""Where the tests run: on the GPU that is there, else on the CPU in Triton's interpreter."""

import os

import pytest
import torch

if not torch.cuda.is_available():  # before any @triton.jit is applied
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
