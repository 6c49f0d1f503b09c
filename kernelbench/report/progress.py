"""Progress of a run: a live view on a terminal, plain lines elsewhere."""

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass
from threading import Lock
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from kernelbench.metrics import median_ns
from kernelbench.report.waits import Say, Slow
from kernelbench.spec import Job, RunRecord, Status

LATEST = 12


def result(record: RunRecord) -> str:
    """One record in a few words: its time, or its status."""
    if record.status is not Status.ok:
        reason = record.reason.splitlines()[0] if record.reason else ""
        return f"{record.status}: {reason}" if reason else record.status.value
    ns = median_ns(record)
    timer = record.timing.timer if record.timing else ""
    if ns is None or timer == "host":
        return "ok"
    return f"{ns / 1e3:.2f} µs" + (f" ({timer})" if timer != "gated" else "")


def wall(spent_s: Mapping[str, float]) -> str:
    """The time of a run by phase: `wall 3 min 10 s: compile 2 min 8 s, measure 59 s, other 2.4 s`.

    The longest first; phases under 1 % of the whole are summed as `other`.
    """
    total = sum(spent_s.values())
    long = {phase: seconds for phase, seconds in spent_s.items() if seconds >= total / 100}
    phases = sorted(long.items(), key=lambda item: -item[1])
    phases.append(("other", total - sum(long.values())))
    parts = [f"{phase} {_duration(seconds)}" for phase, seconds in phases if round(seconds, 1)]
    return f"wall {_duration(total)}: {', '.join(parts)}"


def _duration(seconds: float) -> str:
    """In its two largest units: `2 h 5 min`, `1 min 2 s`, `58 s`, `3.4 s`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


class Silent:
    """Print nothing but notes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was begun."""

    def of(self, gpu: str) -> "Silent":
        """Progress on one of several GPUs; in `with`, as long as this one is."""
        return self

    def machine(self, machine: Mapping[str, Any]) -> None:
        """The machine the worker runs on."""

    def note(self, text: str) -> None:
        self._console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)

    def job(self, job: Job, number: int, total: int) -> None:
        """A job begins."""

    def at(self, provider: str, phase: str) -> None:
        """A provider begins a phase."""

    def recorded(self, records: Sequence[RunRecord]) -> None:
        """Records were written to disk."""


class Plain(Silent):
    """One line a job and a provider, for logs; one for a long phase or, verbose, for each phase."""

    def __init__(self, console: Console, *, verbose: bool = False, gpu: str = "") -> None:
        super().__init__(console)
        self._verbose = verbose
        self._gpu = f"GPU {gpu}: " if gpu else ""
        self._last = ("", "")
        self._slow = Slow(None)
        self._parts = ExitStack()

    def __enter__(self) -> "Plain":
        self._slow = Slow(self._line)
        return self

    def __exit__(self, *error: Any) -> None:
        self._slow.end()
        self._parts.close()

    def of(self, gpu: str) -> "Plain":
        return self._parts.enter_context(Plain(self._console, verbose=self._verbose, gpu=gpu))

    def _line(self, text: str) -> None:
        line = f"{self._gpu}{text}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def machine(self, machine: Mapping[str, Any]) -> None:
        versions = machine["versions"]
        used = len(machine.get("used") or [0])
        parts = [
            f"{used} × {machine['name']}" if used > 1 else machine["name"],
            machine["arch"],
            f"torch {versions.get('torch', '?')}",
        ]
        if "triton" in versions:
            parts.append(f"triton {versions['triton']}")
        if machine["kind"] == "cpu":
            parts.append("no GPU: a smoke run, which says nothing about speed")
        self._line(", ".join(dict.fromkeys(parts)))

    def job(self, job: Job, number: int, total: int) -> None:
        self._slow.begin("")
        label = f"  {job.label}" if job.label else ""
        again = f"  in process {job.process + 1}" if job.process else ""
        self._line(f"[{number}/{total}] {job.id}{again}{label}")

    def at(self, provider: str, phase: str) -> None:
        line = f"    … {provider}: {phase}" if provider else f"    … {phase}"
        if not self._verbose:
            self._slow.begin(line)
        elif (provider, phase) != self._last:
            self._last = (provider, phase)
            self._line(line)

    def recorded(self, records: Sequence[RunRecord]) -> None:
        self._slow.begin("")
        for record in records:
            self._line(f"    {record.provider:<14} {result(record)}")


class LiveView(Plain):
    """A bar with the time left, the current provider, and the latest results."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bar = Progress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=24 * 3600,  # a job may take minutes
        )
        self._task = self._bar.add_task("jobs", total=None)
        self._rows: deque[tuple[str, str, str]] = deque(maxlen=LATEST)
        self._now: dict[str, list[str]] = {}  # job and phase, by GPU
        self._gpu = ""
        self._lock = Lock()  # several GPUs have a thread each
        self._live = Live(self._view(), console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> "LiveView":
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def _view(self) -> Group:
        table = Table(box=None, pad_edge=False, show_header=False)
        for row in self._rows:
            table.add_row(*(Text(cell, overflow="ellipsis", no_wrap=True) for cell in row))
        now = [
            Text(f"{gpu}{job}  {phase}", overflow="ellipsis", no_wrap=True)
            for gpu, (job, phase) in sorted(self._now.items())
        ]
        return Group(table, *now, self._bar)

    def of(self, gpu: str) -> "LiveView":
        """This view, in which each GPU has a line of its own."""
        part = copy(self)
        part._gpu = f"GPU {gpu}: "
        return part

    def job(self, job: Job, number: int, total: int) -> None:
        name = f"{job.id} in process {job.process + 1}" if job.process else job.id
        with self._lock:
            self._now[self._gpu] = [name, ""]
            self._bar.update(self._task, completed=number - 1, total=total)
            self._live.update(self._view())

    def at(self, provider: str, phase: str) -> None:
        now = f"{provider}: {phase}" if provider else phase
        with self._lock:
            self._now.setdefault(self._gpu, ["", ""])[1] = now
            self._live.update(self._view())

    def recorded(self, records: Sequence[RunRecord]) -> None:
        rows = [(r.case, r.provider, result(r)) for r in records]
        with self._lock:
            self._rows.extend(rows)
            self._live.update(self._view())


@dataclass(frozen=True)
class Output:
    """The output streams: results to stdout, progress to stderr."""

    console: Console
    errors: Console
    quiet: bool = False
    verbose: bool = False
    as_json: bool = False

    def view(self) -> Silent:
        """How to show progress: not at all, a live view on a terminal, or plain lines."""
        if self.quiet or self.as_json:
            return Silent(self.errors)
        if self.errors.is_terminal and not self.errors.no_color and not self.verbose:
            return LiveView(self.errors)
        return Plain(self.errors, verbose=self.verbose)

    def note(self, text: str) -> None:
        """Print a default that was chosen; not where only results are wanted."""
        if not (self.quiet or self.as_json):
            self.err(text)

    @property
    def waits(self) -> Say | None:
        """Where to print what a wait is for."""
        return None if self.quiet or self.as_json else self.err

    def err(self, text: str) -> None:
        """Print a line on stderr: a default, or the last line before an exit code that is not 0."""
        self.errors.print(text, highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning: what could not be read, or is doubtful."""
        self.errors.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
