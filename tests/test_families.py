"""One test for all families: every provider, on every check, is right or says why it cannot be.

A new family needs nothing here. Below are the promises that a family makes about itself: its
oracle's gradients, its costs, its byte models, and what `load` says about a plugin that is wrong.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad
from twins import with_marks

from kernelbench import families, source
from kernelbench.families.empty import EmptyCase, Kernel
from kernelbench.families.rms_norm import RMSNormCase
from kernelbench.families.rotary import RotaryCase
from kernelbench.families.swiglu import SwigluCase
from kernelbench.measure import environment
from kernelbench.measure.ceilings import Ceilings
from kernelbench.measure.inputs import Draw
from kernelbench.measure.job import Request, Session, run_job
from kernelbench.measure.telemetry import Telemetry
from kernelbench.measure.timer import CudaClock, HostClock
from kernelbench.spec import (
    Case,
    Context,
    Cost,
    DType,
    Family,
    Job,
    Mode,
    Provider,
    RunRecord,
    Status,
    UsageError,
)

ROOT = Path(__file__).parent.parent
FAMILIES = families.load()


# Every provider on every check.


def compiles(provider: Provider[Any]) -> bool:
    """Whether its `build` calls torch.compile, by way of `families._torch.compiled`."""
    return bool({"compiled", "compile"} & {*provider.build.__code__.co_names})


def compiled_on_cpu(family: Family[Any], provider: Provider[Any]) -> list[Case]:
    """The checks whose graphs are compiled on a CPU, too, where one takes 2 to 25 s.

    The first fp32 check of each mode, and those in which inputs are overwritten: they show that
    the provider is put together right. Every check is compiled on a GPU.
    """
    wide = [case for case in family.checks if case.dtype is DType.fp32]
    first = [next((c for c in wide if c.mode is mode), None) for mode in Mode]
    return [case for case in wide if case in first or provider.mutates(case)]


# Two kernels of many programs for every provider of ours, trial and repetition of a check, and of
# every branch: how many checks are not slow.
LONG = {
    "attention": 4,
    "dilated_attention": 2,
    "dilated_parallel": 2,
    "zigzag_attention": 4,
    "zigzag_parallel": 4,
}


def every_check() -> Iterator[Any]:
    for family in FAMILIES.values():
        for number, (case, marks) in enumerate(with_marks(family.checks)):
            if number >= LONG.get(family.name, number + 1):
                marks = [*marks, pytest.mark.slow]
            yield pytest.param(family, case, id=f"{family.name}-{case.id}", marks=marks)


@pytest.fixture(scope="module")
def session(device: str) -> Session:
    """What a worker would have on this machine, but for its ceilings: nothing is timed."""
    found = environment.device(device)
    clock = CudaClock(found) if device == "cuda" else HostClock()
    return Session(found, clock, Ceilings(), Telemetry.open(None))


def checked(
    family: Family[Any], case: Case, names: Sequence[str], session: Session
) -> dict[str, RunRecord]:
    """The records of one job, by provider."""
    job = Job(family=family.name, case=case, providers=tuple(names))
    context = Context(run_id="test", gpu=session.device.name, seed=0, source="")
    request = Request(job, context, timing=False)
    batches = run_job(family, request, session, lambda provider, phase: None)
    records = [record for batch in batches for record in batch]
    assert sorted(record.provider for record in records) == sorted(names)
    return {record.provider: record for record in records}


@pytest.mark.parametrize(("family", "case"), list(every_check()))
def test_providers_are_right_or_say_why_not(
    family: Family[Any], case: Case, session: Session
) -> None:
    left_out = [  # torch.compile takes 2 to 25 s a graph on a CPU
        provider
        for provider in family.providers
        if session.device.kind == "cpu"
        and compiles(provider)
        and case not in compiled_on_cpu(family, provider)
    ]
    names = [provider.name for provider in family.providers if provider not in left_out]
    assert family.trials is not None
    refused = [trial.refused for trial in family.trials(case).values()]
    for name, record in checked(family, case, names, session).items():
        assert record.case == case.id
        if record.status is Status.skipped:
            assert record.reason.strip(), f"{name}: a skip is an answer: it needs a reason"
            continue
        assert record.status is Status.ok, f"{name}: {record.status}: {record.reason}"
        assert record.errors and all(error.ok for error in record.errors), name
        assert record.trials, name
        unproven = {trial.unproven for trial in record.trials} - {""}
        promises = family.provider(name).promises.values()
        assert unproven <= {*refused, *map(str, promises)}, name


def test_a_wrong_provider_is_found_out(session: Session) -> None:
    """The test above can fail: eager, off by one part in a hundred."""
    family = FAMILIES["rms_norm"]
    eager = family.baseline.build

    def off(case: Any, config: Any) -> Any:
        call = eager(case, config)
        return lambda a: call(a) * 1.01

    bad = Provider("off", family.baseline.role, off)
    case = RMSNormCase(M=4, N=64, dtype=DType.fp32)
    record = checked(replace(family, providers=(bad,)), case, ["off"], session)["off"]
    assert record.status is Status.incorrect
    assert "y: error 0.01" in record.reason


# What a family says about itself.

EVERY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@EVERY
def test_checks_have_ids_of_their_own_that_name_files(family: Family[Any]) -> None:
    ids = [case.id for case in family.checks]
    assert len(set(ids)) == len(ids), f"twice: {sorted({i for i in ids if ids.count(i) > 1})}"
    assert all(re.fullmatch(r"[A-Za-z0-9_.=-]+", name) for name in ids)
    assert all(family.case.from_axes(case.as_axes()) == case for case in family.checks)


@EVERY
def test_checks_cover_the_modes_and_the_dtypes(family: Family[Any]) -> None:
    assert {case.dtype for case in family.checks} >= {DType.fp32, DType.fp16, DType.bf16}
    if any(family.grads(case) for case in family.checks):
        assert {case.mode for case in family.checks} == set(family.modes)


def pieces(family: Family[Any], case: Case, inputs: Any) -> dict[str, list[tuple[Any, Any]]]:
    found: dict[str, list[tuple[Any, Any]]] = {}
    for name, index, right, *_ in family.oracle(case, inputs):
        found.setdefault(name, []).append((index, right))
    return found


def test_oracle_tangents_are_forward_mode_of_its_forward() -> None:
    """In fp64 both, likewise."""
    tried = 0
    for family in FAMILIES.values():
        for case in family.checks if Mode.jvp in family.modes else ():
            if case.mode is not Mode.jvp:
                continue
            drawn = family.inputs(case, Draw(case, "cpu", seed=1))
            wide = {n: t.double() if t.is_floating_point() else t for n, t in drawn.items()}
            stated = pieces(family, case, wide)
            with forward_ad.dual_level():
                for name in family.grads(case):
                    wide[name] = forward_ad.make_dual(wide[name], wide[f"tangent_{name}"])
                for name, parts in pieces(family, replace(case, mode=Mode.fwd), wide).items():
                    for (_, right), (_, said) in zip(parts, stated[f"tangent_{name}"], strict=True):
                        tangent = forward_ad.unpack_dual(right).tangent
                        torch.testing.assert_close(said, tangent, rtol=1e-10, atol=1e-10)
                        tried += 1
    assert tried


@EVERY
def test_oracle_gradients_are_autograd_of_its_forward(family: Family[Any]) -> None:
    """In fp64 both, from the oracle's own forward: a formula that is wrong has no second witness.

    Rounding leaves 1e-16 for each of the operations; 1e-10 is far from that and from any mistake.
    """
    tried = 0
    for case in family.checks:
        if case.mode is not Mode.full or not family.grads(case):
            continue
        drawn = family.inputs(case, Draw(case, "cpu", seed=1))
        wide = {n: t.double() if t.is_floating_point() else t for n, t in drawn.items()}
        leaves = [wide[name].requires_grad_() for name in family.grads(case)]
        forward = pieces(family, replace(case, mode=Mode.fwd), wide)
        assert set(forward) == set(family.outputs(case)), "mode fwd yields every output, no more"
        total = sum(
            (right * wide[f"grad_{name}"][index]).sum()
            for name, parts in forward.items()
            for index, right in parts
        )
        wanted = torch.autograd.grad(total, leaves)
        stated = pieces(family, case, {name: t.detach() for name, t in wide.items()})
        for name, right in zip(family.grads(case), wanted, strict=True):
            whole = torch.full_like(right, float("nan"))
            for index, part in stated[f"d{name}"]:
                whole[index] = part
            scale = max(right.norm().item(), 1e-6 * wide[name].norm().item()) or 1.0  # if empty
            error = (whole - right).norm().item() / scale
            assert error < 1e-10, f"{case.id}: d{name} is off by {error:.2g}, or has gaps"
            tried += 1
    assert tried or not any(family.grads(case) for case in family.checks)


@EVERY
def test_the_oracle_covers_every_element_of_every_check(family: Family[Any]) -> None:
    for case in family.checks:
        drawn = family.inputs(case, Draw(case, "cpu", seed=1))
        with torch.no_grad():
            call = family.baseline.build(case, None)
            made = call({name: t.clone() for name, t in drawn.items()})
        made = made if isinstance(made, tuple) else (made,)
        stated = pieces(family, case, drawn)
        for name, tensor in zip(family.outputs(case), made, strict=True):
            seen = torch.zeros(tensor.shape, dtype=torch.int64)
            for index, right in stated[name]:
                assert right.dtype is torch.float64 and right.shape == tensor[index].shape
                seen[index] += 1
            assert (seen == 1).all(), f"{case.id}: {name} is not covered once everywhere"


@EVERY
def test_costs_are_whole_and_of_both_ways(family: Family[Any]) -> None:
    for case in family.checks:
        cost = family.cost(case)
        assert all(type(n) is int and n >= 0 for n in (cost.flops, cost.read, cost.write)), case.id
        if case.mode is Mode.full:
            parts = [family.cost(replace(case, mode=mode)) for mode in (Mode.fwd, Mode.bwd)]
            assert cost.flops == sum(part.flops for part in parts), case.id
            assert max(p.bytes for p in parts) < cost.bytes <= sum(p.bytes for p in parts), case.id


@pytest.mark.parametrize(
    ("case", "cost"),
    [
        # RMSNorm, 2 × 8 in bf16: x, y, dy, dx take 32 bytes each, weight and its gradient 16.
        (RMSNormCase(M=2, N=8), Cost(flops=4 * 16, read=32 + 16, write=32)),
        (RMSNormCase(M=2, N=8, mode=Mode.bwd), Cost(160, 32 + 32 + 16, 32 + 16)),
        # both at once: x need not be read again, nor the weight
        (RMSNormCase(M=2, N=8, mode=Mode.full), Cost(64 + 160, 48 + 32, 32 + 48)),
        # and a residual: one more in, its sum out, one more addition an element
        (RMSNormCase(M=2, N=8, residual=True), Cost(5 * 16, 32 + 32 + 16, 32 + 32)),
        # Rotary, B 1, S 2, 2 + 1 heads of 4, fp32: 24 elements of 4 bytes in 12 pairs, 6 flops a
        # pair; cos and sin 2 × 2 each, together 32 bytes.
        (
            RotaryCase(B=1, S=2, Hq=2, Hk=1, D=4, dtype=DType.fp32),
            Cost(flops=12 * 6, read=96 + 32, write=96),
        ),
        (
            RotaryCase(B=1, S=2, Hq=2, Hk=1, D=4, dtype=DType.fp32, mode=Mode.full),
            Cost(flops=2 * 12 * 6, read=2 * 96 + 32, write=2 * 96),
        ),
        # SwiGLU, 2 × 8 in bf16: 32 bytes a tensor, whether packed or not.
        (SwigluCase(M=2, F=8), Cost(5 * 16, 2 * 32, 32)),
        (SwigluCase(M=2, F=8, mode=Mode.bwd, packed=True), Cost(11 * 16, 3 * 32, 2 * 32)),
        # y = 2·x + z, 2 × 8 in bf16: an FMA an element. Of an empty kernel nothing.
        (EmptyCase(M=2, N=8), Cost(flops=2 * 16, read=2 * 32, write=32)),
        (EmptyCase(M=2, N=8, kernel=Kernel.empty), Cost(0, 0, 0)),
    ],
    ids=lambda value: value.id if isinstance(value, Case) else "",
)
def test_costs_counted_by_hand(case: Case, cost: Cost) -> None:
    [family] = [f for f in FAMILIES.values() if f.case is type(case)]
    assert family.cost(case) == cost


# What a provider says that it moves.


def test_traffic_rows_are_whole_bytes_of_named_tensors() -> None:
    for family in FAMILIES.values():
        modelled = family.baseline.traffic is not None
        between_gpus = "world" in {axis.name for axis in family.case.axes()}
        unmodelled = between_gpus or family.name == "train_step"  # what a whole step moves is not
        assert modelled != unmodelled, f"{family.name}: the baseline has no byte model"
        for provider in family.providers:
            for case in family.checks if provider.traffic else ():
                rows = provider.traffic(case)
                where = f"{family.name} {provider.name} {case.id}"
                assert rows and all(row.tensor for row in rows), where
                assert all(type(n) is int and n >= 0 for r in rows for n in (r.read, r.write)), (
                    where
                )


def moved(provider: Provider[Any], case: Case, without: str = "") -> tuple[int, int]:
    assert provider.traffic is not None
    rows = [row for row in provider.traffic(case) if row.tensor != without]
    return sum(row.read for row in rows), sum(row.write for row in rows)


@EVERY
def test_no_provider_moves_less_than_it_must(family: Family[Any]) -> None:
    """Read and written apart. An unfused baseline moves more: that is what fusion is for."""
    for case in family.checks:
        cost = family.cost(case)
        for provider in family.providers:
            if provider.prepacked:
                continue  # it reads what was packed instead of the inputs
            if provider.traffic and provider.unsupported(case, environment.device("cpu")) is None:
                read, write = moved(provider, case)
                where = f"{provider.name} {case.id}"
                assert read >= cost.read and write >= cost.write, where
                several = family.name not in ONE_OPERATOR and cost.bytes > 0
                if provider is family.baseline and several:
                    assert read + write > cost.bytes, where


# Whose baseline is one operator of PyTorch, so that nothing is there to be fused.
ONE_OPERATOR = ("attention",)

# Who claims a single pass, in modes fwd and bwd; `rstd` is saved for a backward, at its own cost.
ONE_PASS = (
    ("rms_norm", "triton_fused"),
    ("rms_norm", "liger"),
    ("rms_norm", "quack"),
    ("rotary", "triton_fused"),
    ("swiglu", "triton_fused"),
    ("swiglu", "liger"),
    ("empty", "triton_fused"),
)


@pytest.mark.parametrize(("family", "provider"), ONE_PASS)
def test_one_pass_moves_the_compulsory_bytes(family: str, provider: str) -> None:
    for case in FAMILIES[family].checks:
        if case.mode in (Mode.fwd, Mode.bwd):
            cost = FAMILIES[family].cost(case)
            read, write = moved(FAMILIES[family].provider(provider), case, without="rstd")
            assert (read, write) == (cost.read, cost.write), case.id


@pytest.mark.parametrize(
    ("provider", "Hk", "kernels"),
    [("torch_fused", 2, 1), ("torch_fused", 1, 2), ("quack", 2, 2), ("triton_fused", 1, 1)],
)
def test_each_kernel_that_turns_reads_the_tables(provider: str, Hk: int, kernels: int) -> None:
    case = RotaryCase(B=1, S=2, Hq=2, Hk=Hk, D=4, dtype=DType.fp32)
    read, write = moved(FAMILIES["rotary"].provider(provider), case)
    assert (read, write) == (write + kernels * 32, FAMILIES["rotary"].cost(case).write)


# Which code a family's records stand for.


def test_the_source_hash_is_the_same_in_every_process() -> None:
    code = (
        "from kernelbench import families, source\n"
        "for name, family in families.load().items(): print(name, source.source_hash(family))"
    )
    env = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    here = {name: source.source_hash(family) for name, family in FAMILIES.items()}
    assert dict(line.split() for line in done.stdout.splitlines()) == here
    assert len(set(here.values())) == len(here)


def test_the_source_hash_covers_what_a_family_reaches_and_no_more() -> None:
    start = ROOT / "kernelbench/families/rms_norm/__init__.py"
    reached = {path.relative_to(ROOT / "kernelbench").as_posix() for path in source.reached(start)}
    assert {"families/rms_norm/__init__.py", "families/providing.py", "spec/family.py"} <= reached
    assert "kernels/rms_norm/__init__.py" in reached, "imported inside a function"
    assert not reached & {
        "families/rotary/__init__.py",
        "kernels/rotary.py",
        "measure/job.py",
        "cli/app.py",
    }


def test_the_source_hash_changes_with_the_code(tmp_path: Path) -> None:
    path = tmp_path / "copy.py"
    path.write_text(PLUGIN, encoding="utf-8")
    family = families.load((str(path),))["copy"]
    before = source.source_hash(family)
    path.write_text(f"{PLUGIN}# changed\n", encoding="utf-8")
    assert source.source_hash(family) != before


# What `load` says about plugins.

PLUGIN = """
from kernelbench.spec import Case, Cost, Family, Provider, Role

def oracle(case, a):
    yield "y", ..., a["x"].double()

def build(case, config):
    return lambda a: a["x"].clone()

FAMILY = Family(
    name="copy", title="y = x", case=Case, inputs=lambda case, draw: {"x": draw(8)},
    outputs=lambda case: ("y",), oracle=oracle, cost=lambda case: Cost(0, 16, 16),
    checks=(Case(),), providers=(Provider("clone", Role.baseline, build),),
)
"""


def loaded(tmp_path: Path, text: str, name: str = "mine.py") -> dict[str, Family[Any]]:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return families.load((str(path),))


def test_a_plugin_stands_beside_the_families_of_the_package(
    tmp_path: Path, session: Session
) -> None:
    found = loaded(tmp_path, PLUGIN)
    assert set(found) == {*FAMILIES, "copy"}
    assert "copy" not in families.load()
    name = found["copy"].baseline.name
    record = checked(found["copy"], Case(), [name], session)[name]
    assert record.status is Status.ok, record.reason


ROW = 'Provider("clone", Role.baseline, build),'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("FAMILY =", "OTHER ="), r"no `FAMILY = Family\(…\)` \(see docs/add-a-family.md\)"),
        (("FAMILY = Family(", "FAMILY = dict("), r"no `FAMILY = Family\(…\)`"),
        (('name="copy"', 'name="rms_norm"'), "there is a family 'rms_norm' already"),
        ((ROW, f'{ROW} Provider("b", Role.baseline, build),'), r"got \['clone', 'b'\]"),
        (("Cost(0, 16, 16)", "Cost(0, 16, 16), grads=1 / 0"), r"by zero \(\S*mine\.py:12\)$"),
        (("def build", "None.x\ndef build"), r"AttributeError: .*'x' \(\S*mine\.py:7: None\.x\)$"),
        ((ROW, ""), r"exactly one provider has the role baseline, got \[\]"),
        ((ROW, ROW * 2), "two providers of one name"),
        (("case=Case", "case=dict"), "`case` must be a subclass of Case"),
        (
            ("def oracle", "def oracle oracle"),
            r"SyntaxError: .* \(\S*mine\.py:4: def .*\)$",
        ),
        (("title=", "titel="), r"TypeError: .*titel.* \(\S*mine\.py:10\)$"),
        (("import Case, Cost", "import Case, Price, Cost"), "ImportError: .*Price"),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else value,
)
def test_a_wrong_plugin_is_named_with_what_is_wrong(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    text = PLUGIN.replace(*change)
    assert text != PLUGIN
    with pytest.raises(UsageError, match=message) as caught:
        loaded(tmp_path, text)
    assert os.path.relpath(tmp_path / "mine.py") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.py", "missing", "."])
def test_a_plugin_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such Python file"):
        families.load((str(tmp_path / name),))


def test_a_plugin_may_postpone_annotations(tmp_path: Path) -> None:
    """Dataclasses look their module up by its name then."""
    case = (
        "from dataclasses import dataclass\n\n@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Case):\n    K: int = 3\n\n"
    )
    text = PLUGIN.replace("def oracle", f"{case}def oracle").replace("case=Case", "case=Mine")
    text = text.replace("(Case(),)", "(Mine(),)")
    found = loaded(tmp_path, f"from __future__ import annotations\n{text}", "postponed.py")
    assert found["copy"].case.from_axes({"K": 4}).id == "K=4-bf16-fwd"
