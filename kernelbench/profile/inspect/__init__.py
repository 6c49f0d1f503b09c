"""Compiles kernels ahead of time for GPUs that need not be here: one row a kernel and target.

Rows are compiled in separate processes, which describe their launch again: neither kernels nor meta
tensors can be sent to another process.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import triton

from kernelbench.kernels.ahead_of_time import CompileError, ahead_of_time
from kernelbench.profile.inspect.code import BYTES, Code, code_of, size_of
from kernelbench.profile.inspect.launches import Description, Place, launches_at
from kernelbench.profile.inspect.target import Limits

CRASHED = "the compiler died: a crash, or out of memory"


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """One kernel as compiled for one target. With an `error`, what is unknown is 0.

    case: the first that runs it; others: how many more (case, provider) of the family do.
    config: its tile and options. triton: the version that compiled it.
    registers: of a thread, at the launch. instructions: of its code, padding included.
    spill_bytes: stores and loads of a thread, each instruction once. smem_bytes: of a program;
    smem_limit: the most that the target permits.
    blocks_per_sm, occupancy_pct: modelled from registers, shared memory and warps; 0 where the
        kernel cannot be launched.
    wgmma, mma, tcgen05, tma_loads, tma_stores, loads, loads_128, code_bytes, counted_in: see
        `Code`; empty where instructions were not counted.
    serialized: ptxas's notes (C7510 to C7515) on wgmma that are waited for one by one.
    error: why it could not be compiled, or why its provider could not be called.
    """

    family: str
    provider: str
    case: str
    mode: str
    others: int
    kernel: str
    config: str
    target: str
    triton: str
    registers: int = 0
    instructions: int = 0
    spill_bytes: int = 0
    smem_bytes: int = 0
    smem_limit: int = 0
    warps: int = 0
    blocks_per_sm: int = 0
    occupancy_pct: float = 0.0
    wgmma: Mapping[str, int] = field(default_factory=dict)
    mma: Mapping[str, int] = field(default_factory=dict)
    tcgen05: Mapping[str, int] = field(default_factory=dict)
    tma_loads: int = 0
    tma_stores: int = 0
    loads: int = 0
    loads_128: int = 0
    code_bytes: int = 0
    counted_in: str = ""
    serialized: tuple[str, ...] = ()
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Outcome:
    """The result of compiling one place; code is None where instructions were not counted."""

    registers: int = 0
    instructions: int = 0
    spill_bytes: int = 0
    smem_bytes: int = 0
    warps: int = 0
    serialized: tuple[str, ...] = ()
    code: Code | None = None
    error: str = ""


def rows(
    descriptions: Sequence[Description],
    processes: int | None = None,
    done: Callable[[int], object] = lambda count: None,
    counts: bool = True,
) -> list[KernelRow]:
    """Compile each described kernel once a target; returns a row for each description, in order.

    processes: at once, by default one a processor. done: is called with 1 after each kernel.
    counts: whether instructions are counted, which takes a third of the time.
    """
    places: dict[tuple[str, str], Place] = {}
    for description in sorted(descriptions, key=lambda d: not d.gluon):  # the slowest first
        if description.kernel is not None:
            place = description.place
            places.setdefault((description.kernel, place.limits.arch), place)
    run = partial(_compile_in_pool, list(places.values()), counts, done)
    outcomes = dict(zip(places, _compiled(len(places), processes, run), strict=True))
    table, numbers = [], dict[tuple[Any, ...], int]()
    for d in descriptions:
        arch = d.place.limits.arch
        outcome = outcomes[d.kernel, arch] if d.kernel else _Outcome(error=d.error)
        text = (d.place.family, d.place.provider, d.case, d.name, d.config, arch)
        numbers[text] = number = numbers.get(text, 0) + 1
        table.append(_row(d, outcome, number))
    return table


def _row(description: Description, outcome: _Outcome, number: int) -> KernelRow:
    """number: among the rows whose text is the same."""
    place, limits = description.place, description.place.limits
    again = f" #{number}" if number > 1 else ""
    facts: dict[str, Any] = {}
    if not outcome.error:
        blocks = limits.blocks_per_sm(outcome.registers, outcome.smem_bytes, outcome.warps)
        facts = {name: getattr(outcome, name) for name in _MEASURED} | {"blocks_per_sm": blocks}
        facts["occupancy_pct"] = round(limits.occupancy_pct(blocks, outcome.warps), 1)
    if outcome.code is not None:
        facts |= vars(outcome.code)
    return KernelRow(
        family=place.family,
        provider=place.provider,
        case=description.case,
        mode=str(dict(place.axes).get("mode", "")),
        others=description.others,
        kernel=description.name,
        config=f"{description.config}{again}".strip(),
        target=limits.arch,
        triton=triton.__version__,
        smem_limit=limits.smem_bytes,
        error=outcome.error,
        **facts,
    )


_MEASURED = ("registers", "instructions", "spill_bytes", "smem_bytes", "warps", "serialized")


def _compiled(
    count: int, processes: int | None, run: Callable[[Iterable[int], int], dict[int, _Outcome]]
) -> list[_Outcome]:
    """Compile `count` places. After a process dies, the rest is compiled by one process at a time,
    in order, so that the place at which it dies is known."""
    outcomes = run(range(count), processes or os.cpu_count() or 1)
    while left := [number for number in range(count) if number not in outcomes]:
        outcomes |= run(left, 1)
        culprit = next((number for number in left if number not in outcomes), None)
        if culprit is not None:
            outcomes[culprit] = _Outcome(error=CRASHED)
    return [outcomes[number] for number in range(count)]


def _compile_in_pool(
    places: Sequence[Place],
    counts: bool,
    done: Callable[[int], object],
    numbers: Iterable[int],
    processes: int,
) -> dict[int, _Outcome]:
    """The outcomes of the numbered places that were compiled before a process died, if one did."""
    outcomes: dict[int, _Outcome] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        try:
            futures = {pool.submit(_compile, places[number], counts): number for number in numbers}
            future: Future[_Outcome]
            for future in as_completed(futures):
                outcomes[futures[future]] = future.result()
                done(1)
        except BrokenProcessPool:
            pass
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return outcomes


def _compile(place: Place, counts: bool) -> _Outcome:
    """Compile the launch at a place, in a process of its own."""
    limits: Limits = place.limits
    try:
        compiled = ahead_of_time(launches_at(place)[place.launch], limits.arch)
    except CompileError as error:
        return _Outcome(error=str(error))
    return _Outcome(
        registers=compiled.registers,
        instructions=size_of(compiled.cubin) // BYTES,
        spill_bytes=compiled.spill_stores + compiled.spill_loads,
        smem_bytes=compiled.shared_bytes,
        warps=compiled.warps,
        serialized=compiled.serialised,
        code=code_of(compiled.cubin, compiled.ptx) if counts else None,
    )
