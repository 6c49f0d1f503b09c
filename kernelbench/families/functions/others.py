"""Code of others, which may raise anything."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kernelbench.spec import PluginError, UsageError
from kernelbench.spec.raised import trace_of, words_of


@dataclass(frozen=True)
class Raised:
    """What a call raised in place of a value."""

    error: BaseException


def attempted(call: Callable[[], Any]) -> Any:
    """What a call returns, or Raised. A UsageError goes on: it says what is wrong."""
    try:
        return call()
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001
        return Raised(error)


def named(text: str, call: Callable[[], Any]) -> Any:
    """What a call returns. Raises PluginError, with the traceback, that names what was called."""
    value = attempted(call)
    if isinstance(value, Raised):
        message = f"{text}: {words_of(value.error)}"
        raise PluginError(message, trace_of(value.error)) from None
    return value


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The generators of PyTorch, Python and NumPy under a seed; afterwards they are as before,
    those of the GPUs too."""
    with drawn_apart():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield


@contextmanager
def drawn_apart() -> Iterator[None]:
    """After the block these generators are as before."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(gpus):
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)
