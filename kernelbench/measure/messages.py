"""What the messages of a job's ranks cost: how many bytes come to a rank in a call, how long the
call takes without them, and how long its kernels take beside them.

Without them means that torch.distributed's operators do nothing: the same kernels run, on whatever
lies where others' rows would have come. Such a call's answer is never looked at.
"""

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch

from kernelbench.measure.failure import Failure
from kernelbench.measure.session import Candidate, Session
from kernelbench.measure.task import Task
from kernelbench.measure.team import Team
from kernelbench.measure.timer import Timed
from kernelbench.measure.trace import on_gpu, tracing
from kernelbench.measure.workload import Standing, Workload
from kernelbench.spec import Messages

SAMPLES = 30
TRACED = 5  # calls
CARRIER = re.compile("nccl|Memcpy PtoP", re.IGNORECASE)  # GPU work that carries messages


def _bytes(tensors: Any) -> int:
    """Of a tensor, or of lists of them."""
    if isinstance(tensors, torch.Tensor):
        return tensors.numel() * tensors.element_size()
    return sum(map(_bytes, tensors))


def _exchanged(group: Any, out: Any, sent: Any, splits: Any = (), *_: Any) -> int:
    """Of an all-to-all, all but a rank's own part. splits: rows of `out` by rank, or as many of
    each; of a list of tensors, each is a rank's."""
    rank, ranks = int(group.rank()), int(group.size())
    if not isinstance(out, torch.Tensor):
        return _bytes(out) - _bytes(out[rank])
    own = splits[rank] / max(sum(splits), 1) if splits else 1 / ranks
    return round(_bytes(out) * (1 - own))


# What a rank receives by an operator of c10d, in bytes, of the group and the other arguments. Of
# sums each rank is taken to receive as in a ring, the least there can be.
RECEIVED: Mapping[str, Callable[..., int]] = {
    **dict.fromkeys(
        (
            "_allgather_base_",
            "allgather_",
            "allgather_coalesced_",
            "allgather_into_tensor_coalesced_",
        ),
        lambda group, out, own, *_: _bytes(out) - _bytes(own),
    ),
    **dict.fromkeys(
        ("_reduce_scatter_base_", "reduce_scatter_", "reduce_scatter_tensor_coalesced_"),
        lambda group, out, own, *_: _bytes(own) - _bytes(out),
    ),
    **dict.fromkeys(
        ("allreduce_", "allreduce_coalesced_"),
        lambda group, x, *_: 2 * _bytes(x) * (group.size() - 1) // group.size(),
    ),
    **dict.fromkeys(("alltoall_base_", "alltoall_"), _exchanged),
    **dict.fromkeys(("recv_", "recv_any_source_"), lambda group, x, *_: _bytes(x)),
    **dict.fromkeys(("send", "barrier", "monitored_barrier_"), lambda *_: 0),
    "broadcast_": lambda group, x, root, *_: 0 if root == group.rank() else _bytes(x),
    "scatter_": lambda group, out, sent, root, *_: 0 if root == group.rank() else _bytes(out),
    "gather_": lambda group, out, own, *_: max(0, _bytes(out) - _bytes(own)),
    "reduce_": lambda group, x, op, root, *_: _bytes(x) if root == group.rank() else 0,
}

SUMS = ("allreduce_", "allreduce_coalesced_", "reduce_")  # in place: one's own is there
COMES = {*RECEIVED} - {*SUMS, "send", "barrier", "monitored_barrier_"}


@cache
def _operators() -> Mapping[str, tuple[Any, int]]:
    """The operators of this torch that `RECEIVED` knows, and which argument of each is the group.

    Raises NotImplementedError where there are others that several ranks do together.
    """
    found, kind = {}, "c10d.ProcessGroup"
    for schema in torch._C._jit_get_all_schemas():
        space, _, name = schema.name.partition("::")
        places = [i for i, each in enumerate(schema.arguments) if kind in str(each.type)]
        if space == "c10d" and places:
            if name not in RECEIVED:
                raise NotImplementedError(
                    f"this torch has c10d::{name}, of which it is not known what it sends"
                )
            found[name] = getattr(torch.ops.c10d, name).default, places[0]
    return found


@dataclass
class Unsent:
    """Bytes that would have come to this rank."""

    received: int = 0


@contextlib.contextmanager
def silence() -> Iterator[Unsent]:
    """While it lasts, torch.distributed sends nothing from this process, on any of its threads, and
    leaves what would have been received as it is, whole numbers 0; counts what that is.

    Raises NotImplementedError where that cannot be known.
    """
    unsent, library = Unsent(), torch.library.Library("c10d", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that operators have kernels already
        try:
            for name, (operator, place) in _operators().items():
                does_nothing = _does_nothing(name, operator, place, unsent)
                for key in ("CPU", "CUDA"):
                    library.impl(name, does_nothing, key)
            yield unsent
        finally:
            library._destroy()


def _clear(tensors: Any) -> None:
    """Whole numbers that would have come may be counts or indices: what lies there is not."""
    if not isinstance(tensors, torch.Tensor):
        for each in tensors:
            _clear(each)
    elif not tensors.is_floating_point():
        tensors.zero_()


def _does_nothing(name: str, operator: Any, place: int, unsent: Unsent) -> Callable[..., Any]:
    from torch._C._distributed_c10d import FakeWork, ProcessGroup

    returns, received = len(operator._schema.returns), RECEIVED[name]

    def run(*arguments: Any) -> Any:
        group = ProcessGroup.unbox(arguments[place])
        unsent.received += received(group, *arguments[:place], *arguments[place + 1 :])
        if name in COMES:
            _clear(arguments[0])
        if not returns:
            return None
        work = FakeWork().boxed()
        return work if returns == 1 else (arguments[0], work)

    return run


@dataclass(eq=False)  # a key of the clock's plans
class Quiet(Standing):
    """A workload, for a clock, whose calls send nothing; no answer of it is judged."""

    received: int = 0

    def call(self) -> None:
        with silence() as unsent:
            self.workload.call()
        self.received = unsent.received


def read_messages(task: Task, candidates: Sequence[Candidate]) -> None:
    """Add to the candidates' facts what their messages are and cost, or to their timing why not."""
    for candidate in candidates:
        task.guard.tell(candidate.name, "messages")
        for read in (_count, _cost):
            step = partial(read, task.session, candidate.workload, candidate.facts)
            found = task.guard.attempt(step, candidate.name)
            if isinstance(found, Failure):
                _miss(candidate, found.reason)
                break


def _miss(candidate: Candidate, reason: str) -> None:
    if candidate.timing is not None:
        missing = {**candidate.timing.missing, "messages": reason}
        candidate.timing = replace(candidate.timing, missing=missing)


def _count(session: Session, workload: Workload, facts: dict[str, Any]) -> None:
    """What comes to a rank in a call; no fact where nothing does."""
    quiet = Quiet(workload)
    quiet.ready()
    with quiet.grad_mode():
        quiet.call()
    session.synchronize()
    received = max(session.team.gather(quiet.received))
    if received:
        facts["messages"] = Messages(received_bytes=received)


def _cost(session: Session, workload: Workload, facts: dict[str, Any]) -> None:
    """How long the same calls, and their kernels, take without messages."""
    counted, quiet = facts.get("messages"), Quiet(workload)
    if counted is None or not session.clock.times:
        return
    batch = session.clock.batch(quiet, SAMPLES)
    if not batch.held:
        raise RuntimeError("the gate did not hold for calls without messages")
    facts["messages"] = replace(counted, without_ns=batch.samples_ns)
    with_them, without = (_kernels_ns(part, session.team) for part in (workload, quiet))
    every = session.team.gather((with_them, without))
    slowest = max(every, key=lambda each: each[0] / max(each[1], 1))
    facts["messages"] = replace(
        facts["messages"], kernels_ns=slowest[0], kernels_without_ns=slowest[1]
    )


def _kernels_ns(part: Timed, team: Team) -> int:
    """GPU time of a call's kernels and copies, but for those that carry messages; L2 warm."""
    torch.cuda.synchronize()
    with tracing() as profile, part.grad_mode():
        for _ in range(TRACED):
            part.restore()
            team.start_line()
            part.call()
        torch.cuda.synchronize()
    return computing_ns(profile.profiler.kineto_results.events()) // TRACED


def computing_ns(events: Sequence[Any]) -> int:
    """How long what a GPU did took, one added to another, but for what carries messages."""
    return sum(
        event.duration_ns()
        for event in events
        if on_gpu(event) and not event.is_user_annotation() and not CARRIER.search(event.name())
    )
