"""How a provider fell, in the words of a record."""

import re
from dataclasses import dataclass

import torch

from kernelbench.spec import Status

_OOM = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class Failure:
    """Why a provider has no result."""

    status: Status
    reason: str


def failure_of(error: Exception) -> Failure:
    """`oom` or `failed`, and the error's first line without colours."""
    oom = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    oom = oom or any(words in str(error) for words in _OOM)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # compilers colour what they say
    first = next((line for line in plain.splitlines() if line.strip()), "")
    reason = f"{type(error).__name__}: {first.strip()}"[:300]
    return Failure(Status.oom if oom else Status.failed, reason)
