"""The kernels that jobs would launch on a GPU that need not be here, from calls on meta tensors.

Nothing is compiled or run. The second call of a provider is described: what it does only once is
left out, as in what is timed.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from kernelbench import families
from kernelbench.kernels import stream
from kernelbench.kernels.ahead_of_time import identity
from kernelbench.kernels.launch import Launch, Target, described_for
from kernelbench.measure.workload import Workload
from kernelbench.profile.inspect.target import Limits
from kernelbench.profile.meta import MetaInputs
from kernelbench.spec import Case, Family, Job, Provider
from kernelbench.spec.case import AxisValue

HARNESS = "harness"  # the family of the harness's own kernels, in rows
_TILE = re.compile(r"BLOCK|GROUP|STAGES|BUFFERS|REGISTERS|HELD|PARTS")
_OPTIONS = {"num_warps": "warps", "num_stages": "stages", "maxnreg": "maxnreg"}


@dataclass(frozen=True)
class Place:
    """The place of a launch, from which another process can describe it again.

    config: index among the provider's configs. launch: index in the call.
    """

    family: str
    axes: tuple[tuple[str, AxisValue], ...]
    provider: str
    config: int
    launch: int
    limits: Limits
    plugins: tuple[str, ...]


@dataclass(frozen=True)
class Description:
    """One specialised kernel of a family, and the first place that launches it.

    kernel: the identity of the compiled kernel; None with an `error`, which says why the provider
        could not be called on tensors without memory.
    config: tile and options, as text. others: how many more (case, provider) run it.
    """

    place: Place
    case: str
    name: str
    config: str
    gluon: bool
    kernel: str | None
    others: int = 0
    error: str = ""


def describe(
    known: Mapping[str, Family[Any]],
    jobs: Sequence[Job],
    limits: Limits,
    *,
    every: bool,
    harness: bool,
    plugins: tuple[str, ...] = (),
) -> list[Description]:
    """Every kernel that the jobs' providers would launch, once a family.

    every: for all configs of the tables. Otherwise for the tables' choices; of the other configs
        only kernels that earlier ones do not launch for the same case and provider.
    harness: also the kernels with which the harness measures.
    """
    by_kernel: dict[tuple[str, str], Description] = {}
    runs: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for d in _every_launch(known, jobs, limits, every, harness, plugins):
        key = d.place.family, d.kernel or f"{d.case} {d.place.provider}"
        by_kernel.setdefault(key, d)
        runs.setdefault(key, set()).add((d.case, d.place.provider))
    return [replace(d, others=len(runs[key]) - 1) for key, d in by_kernel.items()]


def _every_launch(
    known: Mapping[str, Family[Any]],
    jobs: Sequence[Job],
    limits: Limits,
    every: bool,
    harness: bool,
    plugins: tuple[str, ...],
) -> Iterator[Description]:
    for job in jobs:
        family = known[job.family]
        axes = tuple(job.case.as_axes().items())
        for name in job.providers:
            provider = family.provider(name)
            if ours(provider) and provider.unsupported(job.case, limits.device) is None:
                place = Place(job.family, axes, name, 0, 0, limits, plugins)
                yield from _of_provider(family, job.case, place, every)
    if harness:
        place = Place(HARNESS, (), HARNESS, 0, 0, limits, plugins)
        yield from _rows_of(launches_at(place), place, HARNESS)


def ours(provider: Provider[Any]) -> bool:
    """Whether a provider launches only Triton kernels of this package or of a plugin."""
    return provider.role.ours and provider.requires == ("triton",)


def _of_provider(
    family: Family[Any], case: Case, place: Place, every: bool
) -> Iterator[Description]:
    provider, names = family.provider(place.provider), set[str]()
    count = len(provider.configs(case, place.limits.device)) if provider.configs else 1
    for number in range(count):
        at = replace(place, config=number)
        try:
            launches = launches_at(at)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            reason = f"cannot be called on tensors without memory: {type(error).__name__}: {error}"
            yield Description(at, case.id, "", "", False, None, error=reason)
            return
        for row in _rows_of(launches, at, case.id):
            if every or number == 0 or row.name not in names:
                yield row
        names |= {launch.kernel.__name__ for launch in launches}


def _rows_of(launches: Sequence[Launch], place: Place, case: str) -> Iterator[Description]:
    for number, launch in enumerate(launches):
        at = replace(place, launch=number)
        kernel = identity(launch, place.limits.arch)
        name = launch.kernel.__name__
        yield Description(at, case, name, _config_of(launch), launch.kernel.is_gluon(), kernel)


def _config_of(launch: Launch) -> str:
    """`BLOCK_M=64 BLOCK_N=128 warps=4 stages=2`."""
    words = [
        f"{name}={value}"
        for name, value in launch.constexprs.items()
        if _TILE.match(name) and isinstance(value, int)
    ]
    options = launch.options
    words += [f"{word}={options[name]}" for name, word in _OPTIONS.items() if options.get(name)]
    return " ".join(words)


@lru_cache(maxsize=64)
def launches_at(place: Place) -> tuple[Launch, ...]:
    """All launches of the call at a place, not only the launch that it names."""
    if place.family == HARNESS:
        return _of_harness()
    family = families.load(place.plugins)[place.family]
    case: Case = family.case.from_axes(dict(place.axes))
    provider = family.provider(place.provider)
    device = place.limits.device
    config = provider.configs(case, device)[place.config] if provider.configs else None
    launches, second = calls_of(family, case, provider, config, place.limits.target)
    return tuple(launches[second:])


def calls_of(
    family: Family[Any], case: Case, provider: Provider[Any], config: Any, target: Target
) -> tuple[list[Launch], int]:
    """All launches of a provider that is made ready and called twice, and how many come before the
    second call."""
    with described_for(target) as launches:
        workload = Workload(family, case, provider, MetaInputs(family, case), config)
        workload.ready()
        with workload.grad_mode():
            workload.call()
            second = len(launches)
            workload.call()
    return launches, second


def _of_harness() -> tuple[Launch, ...]:
    """The launches of `measure.flush`, `measure.probes` and `measure.lot`."""
    wide, half = (torch.empty(1 << 20, dtype=d, device="meta") for d in (torch.float32, torch.half))
    sink = wide[:1]
    return (
        stream.claim(wide, sink),
        stream.write_and_release(wide, wide),
        stream.read(wide, sink),
        stream.copy(half, half, 2048, 8),
        stream.write(wide, 2048),
        stream.differ(half, half, 0.0, wide),
    )
