"""The processes that do one job together, one a GPU: how they agree on what each of them saw.

Ranks take the same steps in the same order, or they would wait for each other forever. So whatever
decides on the next step is agreed on first: a failure, a verdict, a time, a seed.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from typing import Any, Protocol, TypeVar

from kernelbench.measure.failure import Failure
from kernelbench.measure.sampling import Batch

Value = TypeVar("Value")
PATIENCE = timedelta(seconds=30)  # that who has failed has with those who may wait for it
LONG = timedelta(days=1)


class PeerFailedError(Exception):
    """A rank failed in this step, the first of those that did. provider: who was at work there."""

    def __init__(self, failure: Failure, provider: str) -> None:
        super().__init__(failure.reason)
        self.failure, self.provider = failure, provider


class DeadlockError(Exception):
    """This rank failed while others wait for it in a call, where they cannot be told."""


class Team(Protocol):
    """rank: which of them this process is. world: how many they are."""

    rank: int
    world: int

    def gather(self, value: Value) -> list[Value]:
        """Everyone's value, by rank. Raises PeerFailedError where one has failed instead."""

    def fail(self, failure: Failure, provider: str) -> PeerFailedError:
        """Tell the others, in place of the next that they gather; returns what they hear.

        Raises DeadlockError where they do not come to hear it.
        """

    def start_line(self) -> None:
        """Wait for all, in the order of the GPU's stream: the next kernels begin together."""


class Alone:
    """A process that does its jobs by itself."""

    rank, world = 0, 1

    def gather(self, value: Value) -> list[Value]:
        return [value]

    def fail(self, failure: Failure, provider: str) -> PeerFailedError:
        return PeerFailedError(failure, provider)

    def start_line(self) -> None:
        """Nobody is waited for."""


@dataclass
class Ranks:
    """store: one of torch.distributed, that they share and providers do not use. barrier: makes the
    stream wait for all."""

    rank: int
    world: int
    store: Any
    barrier: Callable[[], None] = lambda: None
    _numbers: Any = field(default_factory=count, init=False)

    def gather(self, value: Value) -> list[Value]:
        said = self._exchanged((None, value), LONG)
        if failed := next((failed for failed, _ in said if failed), None):
            raise PeerFailedError(*failed)
        return [value for _, value in said]

    def fail(self, failure: Failure, provider: str) -> PeerFailedError:
        own = replace(failure, reason=f"rank {self.rank}: {failure.reason}")
        try:
            said = self._exchanged(((own, provider), None), PATIENCE)
        except RuntimeError as error:
            raise DeadlockError(f"{own.reason}; the others wait for it") from error
        return PeerFailedError(*next(failed for failed, _ in said if failed))

    def start_line(self) -> None:
        self.barrier()

    def _exchanged(self, said: Any, patience: timedelta) -> list[Any]:
        """What each rank said. Raises torch's error (a RuntimeError) where one says nothing."""
        number = next(self._numbers)
        self.store.set(f"{number}/{self.rank}", pickle.dumps(said))
        self.store.wait([f"{number}/{rank}" for rank in range(self.world)], patience)
        found = [pickle.loads(self.store.get(f"{number}/{rank}")) for rank in range(self.world)]
        if number and self.rank == 0:  # whoever says this has read what was said before
            for rank in range(self.world):
                self.store.delete_key(f"{number - 1}/{rank}")
        return found


def meet(team: Team) -> None:
    """Come to where all come. Raises PeerFailedError where one has failed on the way."""
    team.gather(None)


def slowest(team: Team, batch: Batch) -> Batch:
    """A batch whose calls several ranks make together: each takes as long as on the slowest."""
    if team.world == 1:
        return batch
    ranks = tuple(team.gather(batch.samples_ns))
    return replace(batch, samples_ns=tuple(map(max, zip(*ranks, strict=True))), ranks=ranks)


def first_reason(team: Team, reason: str) -> str:
    """Why the first rank with a reason has one, or ""."""
    if team.world == 1:
        return reason
    found = enumerate(team.gather(reason))
    return next((f"rank {rank}: {why}" for rank, why in found if why), "")
