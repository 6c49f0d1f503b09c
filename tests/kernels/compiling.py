"""Kernels compiled in a process of its own: those of this one are made for the interpreter."""

import os
import subprocess
import sys
from pathlib import Path


def printed_without_interpreter(module: str, function: str) -> str:
    """What a function of a module of this folder prints, run without Triton's interpreter."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", f"from {module} import {function}; {function}()"],
        cwd=Path(__file__).parent, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
