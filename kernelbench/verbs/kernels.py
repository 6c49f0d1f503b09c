"""`kernelbench.choose_kernels`: what the modules of `kernelbench.nn` ask for in a program's step,
measured before it begins."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from kernelbench import metrics
from kernelbench.dispatch import Dispatch, Entry, Table, Where
from kernelbench.dispatch.table import Axis
from kernelbench.families.functions.others import drawn_apart
from kernelbench.nn.choosing import PROVIDERS, use_dispatch
from kernelbench.spec import KernelbenchError, RunRecord
from kernelbench.verbs.choosing import table_from
from kernelbench.verbs.here import bench

NAMES = {"rms_norm": "RMSNorm", "rotary": "Rotary", "swiglu": "SwiGLU", "attention": "Attention"}
IMPLS = {"eager": "PyTorch", "compile": "Compiled", "triton": "Triton"}
_EAGER = {op: providers["eager"] for op, providers in PROVIDERS.items()}
Case = tuple[str, str, str, tuple[tuple[str, Axis], ...]]  # family, dtype, mode, axes
Say = Callable[[str], None]


def choose_kernels(step: Callable[[], Any], *, say: Say = print) -> Table | None:
    """The choices for the operators of a model, by measuring each at the sizes that it has in it.

    step: runs the model once, forward, with gradients to come, as if nothing of it were compiled;
        where it checkpoints with use_reentrant=True, backward, too. Operators whose impl is `auto`
        are noted, and then timed by `bench`, forward and backward together, with nothing of the
        step in memory. By the rules of `kernelbench select` what is right and faster than PyTorch's
        by the margin is chosen, in place of PyTorch's.
    say: is told the figures of each, what is chosen, and why.

    Returns None where nothing could be measured, as on a machine without a GPU. Leaves the state of
    generators as it was, and `auto` without a table: hand `Dispatch(table, table.where)` to
    `nn.use_dispatch` before anything compiled is called again. Graphs that torch.compile made
    before are dropped, as they would keep what they chose then.
    """
    measured = list[RunRecord]()
    for case in _asked(step):
        family, dtype, mode, axes = case
        sizes: dict[str, Any] = dict(axes)
        say(f"  Benchmarking {NAMES[family]} ({_shown(case)})...")
        try:
            among = [*PROVIDERS[family].values()]
            records = bench(family, providers=among, dtype=dtype, mode=mode, **sizes)
            table = table_from(records, _EAGER)
        except KernelbenchError as error:
            say(f"    Using:    PyTorch (not measured: {error})")
            continue
        [(_, entry)] = table.entries()
        for line in _lines(family, records, entry):
            say(line)
        measured += records
    if not measured:
        return None
    torch.compiler.reset()
    return table_from(measured, _EAGER)


def _asked(step: Callable[[], Any]) -> list[Case]:
    """Of a table, for a gradient to come; each case once."""
    cases = {"full": dict[Case, None](), "fwd": dict[Case, None](), "bwd": dict[Case, None]()}

    def note(family: str, dtype: str, mode: str, axes: Mapping[str, Axis]) -> None:
        cases[mode][family, dtype, "full", tuple(axes.items())] = None

    use_dispatch(Dispatch(None, Where(), measure=note))
    try:
        # A graph would keep what it is told now.
        with drawn_apart(), torch.compiler.set_stance("force_eager"):
            step()
    finally:
        use_dispatch(None)
    without = [case for case in cases["fwd"] if case not in cases["full"]]
    if without or not cases["full"]:
        what = ", ".join(f"{NAMES[case[0]]} ({_shown(case)})" for case in without)
        warnings.warn(
            f"choose_kernels: the step did not ask for {what or 'any operator whose impl is auto'} "
            "with a gradient to come, so nothing is chosen. In a checkpoint with "
            "use_reentrant=True one is to come only in the backward, which step has to run, too",
            stacklevel=3,
        )
    return list(cases["full"])


def _shown(case: Case) -> str:
    _, dtype, mode, axes = case
    return " ".join([*(f"{name}={value}" for name, value in axes), dtype, mode])


def _lines(family: str, records: Sequence[RunRecord], entry: Entry) -> list[str]:
    """The figures of a case, and what follows from them."""
    names = PROVIDERS[family]
    rows = {row["provider"]: row for row in metrics.rows_of(records, names["eager"])}
    found = {IMPLS[impl]: _time(rows.get(name, {}), entry, name) for impl, name in names.items()}
    for option in entry.options:
        if option.provider == names["triton"]:
            interval = f"95 % interval {option.lo:.3g} to {option.hi:.3g}"
            found["Speedup"] = f"{option.speedup:.3g}x ({interval})"
    error = rows[entry.choice].get("error_rel")
    found["Error"] = "not known" if error is None else f"{error:.1e} of fp64's, relative"
    [impl] = (impl for impl, name in names.items() if name == entry.choice)
    found["Using"] = f"{IMPLS[impl]} ({entry.reason})"
    return [f"    {f'{name}:':<10}{text}" for name, text in found.items()]


def _time(row: Mapping[str, Any], entry: Entry, provider: str) -> str:
    why = entry.excluded.get(provider, "")
    time = row.get("median_us")
    if time is None:
        return f"no time ({why or 'not measured'})"
    return f"{time / 1e3:.4f} ms{f' ({why})' if why else ''}"
