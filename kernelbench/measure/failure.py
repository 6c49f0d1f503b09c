"""Why a provider failed, as the facts of a record."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from kernelbench.measure.answer import ContractError
from kernelbench.spec import Status
from kernelbench.spec.raised import trace_of, words_of

_OOM = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class Failure:
    """Why a provider has no result. detail: the traceback within the provider's code, or ""."""

    status: Status
    reason: str
    detail: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """The fields of a record."""
        return asdict(self)


def failure_of(error: Exception, build: Any = None) -> Failure:
    """The failure that an error is: its status, its first line, and where in the provider's code it
    was raised. The status is `incorrect` for a ContractError, else `oom` or `failed`.

    build: of the provider at work, which is named where Python itself could not call it.
    """
    if isinstance(error, ContractError):
        return Failure(Status.incorrect, str(error))
    if type(error).__module__ != "builtins":  # the harness's own messages name the place
        build = None
    oom = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    oom = oom or any(words in str(error) for words in _OOM)
    return Failure(
        Status.oom if oom else Status.failed, words_of(error, function=build), trace_of(error)
    )
