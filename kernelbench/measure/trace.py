"""GPU spans of named calls, from a CUPTI trace of torch.profiler."""

import bisect
import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

WINDOW = "kb.call."
LAUNCH = re.compile("cu(da)?[A-Z]")  # names of the runtime's and the driver's calls
LATE_NS = 500
MAX_NS = 1 << 63


@dataclass(frozen=True)
class Spans:
    """CUPTI spans of one part's calls in ns.

    event_ns: what event pairs around the same calls read. late: calls with a kernel that still ran
    when the stream had begun what was queued next. held: whether the gate held.
    """

    ns: tuple[int, ...] = ()
    event_ns: tuple[int, ...] = ()
    late: int = 0
    held: bool = True


@contextlib.contextmanager
def tracing() -> Iterator[Any]:
    """A CUPTI trace of what runs inside; its events are `.profiler.kineto_results.events()`."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with warnings.catch_warnings():
        # Autograd's profiler warns when it is started twice in one process, as is intended here.
        warnings.simplefilter("ignore")
        with torch.profiler.profile(activities=activities) as profile:
            yield profile


def spans(events: Sequence[Any]) -> dict[str, Spans]:
    """The GPU spans of calls in a kineto trace, by window name without WINDOW and number."""
    windows = sorted(
        (event.start_ns(), event.start_ns() + event.duration_ns(), event.name())
        for event in events
        if event.name().startswith(WINDOW) and not on_gpu(event)
    )
    launched = {
        event.correlation_id(): event.start_ns()
        for event in events
        if LAUNCH.match(event.name()) and not on_gpu(event)
    }
    inside: dict[str, tuple[int, int]] = {}  # the span of each window's kernels
    after: dict[str, int] = {}  # when the first kernel that was launched after a window began
    for event in events:
        if not on_gpu(event) or event.is_user_annotation():
            continue
        launch = launched.get(event.correlation_id())
        i = bisect.bisect_right(windows, (launch, MAX_NS, "")) - 1 if launch is not None else -1
        if i < 0 or launch is None:
            continue
        _, closed, name = windows[i]
        start, end = event.start_ns(), event.start_ns() + event.duration_ns()
        if launch <= closed:
            low, high = inside.get(name, (start, end))
            inside[name] = (min(low, start), max(high, end))
        else:
            after[name] = min(after.get(name, start), start)
    return _by_part([name for _, _, name in windows], inside, after)


def _by_part(
    names: Sequence[str], inside: Mapping[str, tuple[int, int]], after: Mapping[str, int]
) -> dict[str, Spans]:
    spans: dict[str, Spans] = {}
    for name in names:
        part = name.removeprefix(WINDOW).rpartition(".")[0]
        before = spans.get(part, Spans())
        if name in inside:
            start, end = inside[name]
            late = after.get(name, end) < end - LATE_NS
            spans[part] = Spans((*before.ns, end - start), late=before.late + late)
    return spans


def on_gpu(event: Any) -> bool:
    """Whether an event is something that a GPU did."""
    return bool(event.device_type() == torch.profiler.DeviceType.CUDA)
