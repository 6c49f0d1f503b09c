"""`kernelbench inspect`: what is described, compiled, counted, and let through."""

import ast
import itertools
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelbench import families, suite
from kernelbench.profile import inspect
from kernelbench.profile.inspect import KernelRow, gate
from kernelbench.profile.inspect.code import of_ptx, of_sass
from kernelbench.profile.inspect.table import problems
from kernelbench.profile.inspect.target import TARGETS, targets
from kernelbench.spec import KernelbenchError, UsageError
from kernelbench.verbs import inspect as inspecting

HERE = Path(__file__).parent
ROOT = HERE.parent
PLUGIN = HERE / "plugins/greedy.py"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Triton, and its ptxas, are for Linux")

ROW = KernelRow(
    family="rms_norm",
    provider="triton_fused",
    case="M8-N64-bf16-fwd",
    mode="fwd",
    others=0,
    kernel="normalise_rows",
    config="BLOCK_N=64 warps=1",
    target="sm_90",
    triton="3.7.1",
    registers=100,
    instructions=640,
    smem_bytes=1024,
    smem_limit=TARGETS["sm_90"].smem_bytes,
    warps=1,
)


def kb(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Without the interpreter, in which the tests run where there is no GPU."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "kernelbench", "inspect", *arguments],
        cwd=ROOT, env=env | more, capture_output=True, text=True, check=False,
    )  # fmt: skip


def rows_of(*arguments: str, code: int = 0) -> list[dict[str, Any]]:
    done = kb(*arguments, "--json")
    assert done.returncode == code, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def judged(
    now: Sequence[KernelRow], before: Sequence[KernelRow] | None, fail_on: str
) -> gate.Judgement:
    old = None if before is None else [json.loads(json.dumps(row.as_json())) for row in before]
    return gate.judge(now, old, gate.bounds(fail_on, before is not None))


# What a target has.


@pytest.mark.parametrize(
    ("arch", "registers", "smem", "warps", "fit"),
    [
        ("sm_90", 32, 0, 4, 16),  # 64 warps
        ("sm_90", 33, 0, 4, 12),  # 40 registers: 51 warps fit, 48 in four equal parts
        ("sm_90", 255, 0, 8, 1),
        ("sm_90", 168, 227 * 1024, 12, 1),
        ("sm_90", 32, 227 * 1024 + 1, 4, 0),  # cannot be launched
        ("sm_80", 32, 81 * 1024, 4, 2),  # and 1 KiB of each
        ("sm_80", 32, 82 * 1024, 4, 1),
        ("sm_86", 32, 0, 16, 3),  # 48 warps
        ("sm_90", 16, 0, 1, 16),  # one warp has a quarter's place for itself
        ("sm_89", 16, 0, 4, 12),
    ],
)
def test_programs_that_fit(arch: str, registers: int, smem: int, warps: int, fit: int) -> None:
    limits = TARGETS[arch]
    assert limits.blocks_per_sm(registers, smem, warps) == fit
    assert limits.occupancy_pct(fit, warps) == 100 * fit * warps / limits.warps


def test_targets_are_named() -> None:
    assert [limits.arch for limits in targets(["sm_80,sm_90", "sm_80"])] == ["sm_80", "sm_90"]
    assert TARGETS["sm_100"].device.arch == "sm_100" and TARGETS["sm_80"].target.sms == 108
    with pytest.raises(UsageError, match=r"no target 'sm_9'; did you mean 'sm_90'\? Known: sm_80"):
        targets(["sm_9"])
    with pytest.raises(UsageError, match="name one or several of sm_80"):
        targets([","])


# What a kernel is made of.

SASS = """
 /*0000*/  LDC R1, c[0x0][0x28] ;
 /*0b50*/  HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;
 /*0b60*/  @P0 HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;
 /*0b70*/  @!UP0 UTMALDG.4D [UR8], [UR4] ;
 /*0b80*/  UTMASTG.3D [UR8], [UR4] ;
 /*0b90*/  UTMAREDG.3D.ADD [UR8], [UR4] ;
 /*0ba0*/  HMMA.16816.F32.BF16 R24, R4, R8, R24 ;
 /*0bb0*/  HFMA2.MMA R5, -RZ, RZ, 0, 0 ;
 /*0bc0*/  UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8] ;
 /*0bd0*/  LDG.E.EF.128 R4, [R2.64] ;
 /*0be0*/  @P1 LDGSTS.E.BYPASS.128 [R2], [R4.64] ;
 /*0bf0*/  LDG.E R4, [R2.64] ;
 /*0c00*/  LDGDEPBAR ;
"""
PTX = """
	wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%r1}, %rd1, %rd2, 1, 1, 1, 0, 1;
	@%p1 cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier [%r1], [%rd1];
	cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%rd1], [%r1];
	mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %r1 }, { %r2 };
	@%p2 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
	ld.global.b32 { %r1 }, [ %rd1 + 0 ];
	cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;
	cp.async.ca.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x4, %r2;
"""


def test_instructions_of_sass() -> None:
    found = of_sass(SASS, 512)
    assert found.wgmma == {"HGMMA.64x128x16.F32.BF16": 2}
    assert (found.mma, found.tcgen05) == ({"HMMA.16816.F32.BF16": 1}, {"UTCHMMA": 1})
    assert (found.tma_loads, found.tma_stores) == (1, 2)
    assert (found.loads, found.loads_128, found.code_bytes) == (3, 2, 512)


def test_instructions_of_ptx_where_the_disassembler_is_missing() -> None:
    found = of_ptx(PTX, 512)
    assert found.counted_in == "PTX"
    assert found.wgmma == {"wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16": 1}
    assert list(found.mma.values()) == [1] and not found.tcgen05
    assert (found.tma_loads, found.tma_stores, found.loads, found.loads_128) == (1, 1, 4, 2)


def test_problems_are_told_in_words() -> None:
    bad = replace(ROW, spill_bytes=8, smem_bytes=240 * 1024, serialized=("C7510",))
    assert problems(ROW) == [] and problems(replace(ROW, error="no")) == ["no"]
    assert problems(bad) == [
        "a thread spills 8 bytes",
        "240.0 KiB of shared memory, sm_90 has 227: it cannot be launched",
        "wgmma are waited for one by one (C7510)",
    ]


def test_a_process_that_dies_costs_its_own_kernel_alone() -> None:
    """The second of four kills whatever compiles it; two processes are at work at first."""
    calls = []

    def run(numbers: Iterable[int], processes: int) -> dict[int, Any]:
        calls.append((list(numbers), processes))
        done = [0] if processes > 1 else itertools.takewhile(lambda n: n != 1, calls[-1][0])
        return {number: f"row {number}" for number in done}

    found = inspect._compiled(4, 2, run)
    assert [getattr(each, "error", each) for each in found] == [
        "row 0", inspect.CRASHED, "row 2", "row 3",
    ]  # fmt: skip
    assert calls == [([0, 1, 2, 3], 2), ([1, 2, 3], 1), ([2, 3], 1)]


# The gate.


@pytest.mark.parametrize(
    ("fail_on", "change", "told"),
    [
        ("spills", {"spill_bytes": 4}, "spills 4 bytes, 0 before"),
        ("smem", {"smem_bytes": 232449}, "232449 bytes of shared memory, the target has 232448"),
        ("serialized", {"serialized": ("C7511",)}, "are waited for one by one (C7511)"),
        ("registers:10%", {"registers": 111}, "111 registers, 100 before (+11%)"),
        ("registers", {"registers": 101}, "101 registers, 100 before (+1%)"),
        ("instructions:0%", {"instructions": 648}, "648 instructions, 640 before (+1.25%)"),
        ("", {"error": "CompileError: no"}, "CompileError: no"),
    ],
)
def test_what_fails_against_an_earlier_output(
    fail_on: str, change: dict[str, Any], told: str
) -> None:
    worse = replace(ROW, **change)
    found = judged([worse], [ROW], fail_on)
    assert len(found.failed) == 1 and found.failed[0].endswith(told)
    assert found.failed[0].startswith("sm_90 rms_norm/M8-N64-bf16-fwd triton_fused normalise_rows")
    assert len(found.changed) == 1
    every = "spills,serialized,registers:10%" if change.get("smem_bytes") else fail_on
    assert judged([worse], [worse], every).failed == (), "as it was"
    if not worse.error:
        others = ",".join(kind for kind in gate.KINDS if not fail_on.startswith(kind))
        assert judged([worse], [ROW], others).failed == (), "not what was asked"


def test_registers_within_the_share_pass() -> None:
    assert judged([replace(ROW, registers=110)], [ROW], "registers:10%").failed == ()
    assert judged([replace(ROW, instructions=704)], [ROW], "instructions:10%").failed == ()


def test_without_an_earlier_output_the_limits_are_absolute() -> None:
    spills = replace(ROW, spill_bytes=4)
    assert judged([spills], None, "spills").failed[0].endswith("spills 4 bytes, 0 are allowed")
    assert judged([spills], None, "smem,serialized").failed == ()


def test_what_is_new_is_held_to_the_limits_and_what_is_gone_is_named() -> None:
    new, other = replace(ROW, kernel="new"), replace(ROW, family="rotary")
    found = judged([new], [ROW, other], "spills,smem,serialized,registers:10%")
    assert found.failed == () and "new" in found.new[0]
    assert len(found.gone) == 1 and "normalise_rows" in found.gone[0]
    assert len(judged([replace(new, spill_bytes=4)], [ROW], "spills").failed) == 1


def test_another_version_of_triton_is_compared_and_said() -> None:
    old = replace(ROW, triton="3.6.0", registers=80)
    found = judged([ROW], [old], "registers:10%")
    assert found.versions == ("3.6.0",) and len(found.failed) == 1
    assert judged([ROW], [ROW, old], "registers:10%").failed == (), "today's version counts"


@pytest.mark.parametrize(
    ("fail_on", "told"),
    [
        ("spill", r"no limit 'spill'; did you mean 'spills'\? Known: spills, smem"),
        ("spills:3", "spills takes no number"),
        ("registers:ten", "a share of what it was, such as registers:10%"),
        ("registers:", "a share of what it was"),
    ],
)
def test_limits_that_are_none(fail_on: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        gate.bounds(fail_on, against=True)


def test_more_registers_than_nothing() -> None:
    with pytest.raises(UsageError, match="more than what"):
        gate.bounds("registers:10%", against=False)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "No such file"),
        ("[{", "cannot be read"),
        ("[3]", "row 1 is no object but 3"),
        ('{"family": "a"}', "row 1 is not of .* provider is None"),
        (json.dumps([ROW.as_json(), ROW.as_json() | {"registers": "x"}]), "row 2 .*registers is"),
    ],
)
def test_files_that_are_no_output(tmp_path: Path, text: str | None, told: str) -> None:
    path = tmp_path / "before.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=told):
        gate.read(path)


def test_what_is_saved_is_read_as_what_is_printed(tmp_path: Path) -> None:
    rows, saved, printed = [ROW, replace(ROW, kernel="other")], tmp_path / "a", tmp_path / "b"
    gate.save(rows, saved)
    printed.write_text(json.dumps([row.as_json() for row in rows]))
    assert len(saved.read_text().splitlines()) == 3
    packed = tmp_path / "a.json.xz"
    gate.save(rows, packed)
    assert lzma.decompress(packed.read_bytes()) == saved.read_bytes()
    for path in (saved, printed, packed):
        found = gate.judge(rows, gate.read(path), gate.bounds("spills", against=True))
        assert found == gate.Judgement(failed=())
    with pytest.raises(KernelbenchError, match="none/a: cannot be written"):
        gate.save(rows, tmp_path / "none" / "a")
    packed.write_bytes(saved.read_bytes())
    with pytest.raises(UsageError, match=r"a\.json\.xz: cannot be read: .*format"):
        gate.read(packed)


# What is looked at.


def test_names_are_suites_and_families() -> None:
    known = families.load()
    every, harness = inspecting.jobs_of((), known, ())
    assert {job.family for job in every} == set(known) and harness
    only, harness = inspecting.jobs_of(("rotary",), known, ())
    assert {job.family for job in only} == {"rotary"} and not harness
    assert [*inspecting.jobs_of(("smoke",), known, ())[0]] == [
        *suite.load(suite.find("smoke"), known).jobs
    ]
    with pytest.raises(UsageError, match="no suite or family 'rotry'; did you mean 'rotary'"):
        inspecting.jobs_of(("rotry",), known, ())
    with pytest.raises(UsageError, match="no such file"):
        inspecting.jobs_of(("rotry.yaml",), known, ())


def test_the_suite_of_inspect_has_every_family() -> None:
    found = suite.load(suite.find(inspecting.ALL), families.load())
    assert {job.family for job in found.jobs} == set(families.load())
    assert found.description.endswith("It is no benchmark.")


def kernels() -> set[str]:
    """Functions made by `jit` that code of the host passes on first, to `Launch` or to a function,
    as it does no hook, and that none of these calls. As `module.name`."""
    made, called, passed = set[str](), set[str](), set[str]()
    for path in sorted((ROOT / "kernelbench/kernels").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        names = dict[str, str]()  # what a name stands for that was imported
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                names |= {alias.asname or alias.name: f"{node.module}.{alias.name}"
                          for alias in node.names}  # fmt: skip
            if isinstance(node, ast.FunctionDef) and any(
                "jit" in ast.unparse(decorator) for decorator in node.decorator_list
            ):
                made.add(f"{module}.{node.name}")
                used = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
                called |= {names.get(name, f"{module}.{name}") for name in used}
                continue
            for call in ast.walk(node):
                if isinstance(call, ast.Call) and call.args:
                    to, name = ast.unparse(call.func), ast.unparse(call.args[0])
                    if to == "Launch" or to.islower():
                        passed.add(names.get(name, f"{module}.{name}"))
    return made & passed - called


# In no table, but for a config alone. test_attention_fused_orders.py, test_zigzag_hopper.py compile
# them.
BY_CONFIG = {
    "kernelbench.kernels.attention.hopper.fused.unfold_queries",
    "kernelbench.kernels.zigzag_attention.hopper.restore_keys",
}

DESCRIBED = """
import json, sys
from kernelbench import families
from kernelbench.verbs import inspect as inspecting
from kernelbench.profile.inspect.launches import describe, launches_at
from kernelbench.profile.inspect.target import targets
known = families.load()
jobs, harness = inspecting.jobs_of((), known, ())
def name(each):
    function = launches_at(each.place)[each.place.launch].kernel.fn
    return f"{function.__module__}.{function.__name__}"
print(json.dumps({limits.arch: [(name(each), each.kernel, each.error) for each in
      describe(known, jobs, limits, every=False, harness=harness)]
      for limits in targets(sys.argv[1:])}))
"""


def described(*order: str) -> dict[str, list[list[Any]]]:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBED, *order],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, list[list[Any]]] = json.loads(done.stdout)
    return found


@LINUX
@pytest.mark.slow
def test_every_kernel_is_described_and_for_each_target_alike_in_any_order() -> None:
    there = described("sm_80", "sm_90")
    assert there == described("sm_90", "sm_80"), "what was kept of one GPU served another"
    names = {arch: {name for name, _, _ in each} for arch, each in there.items()}
    assert len(kernels()) > 40 and kernels() > BY_CONFIG
    assert names["sm_90"] == kernels() - BY_CONFIG, "a case of inspect.yaml must reach each kernel"
    assert {name for name in names["sm_80"] if "hopper" in name} == set()
    assert not [error for each in there.values() for _, _, error in each if error]


# Compiled, in a process without the interpreter.


@LINUX
@pytest.mark.slow
def test_rows_of_a_kernel_for_two_targets(tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    found = rows_of(
        "rcm_attention", "smoke", "-p", "triton_int8", "--target", "sm_80,sm_90",
        "--save", str(saved),
    )  # fmt: skip
    kernels = {(row["kernel"], row["target"]) for row in found}
    assert ("attend", "sm_90") in kernels and ("attend", "sm_80") not in kernels
    hopper = next(row for row in found if row["kernel"] == "attend")
    assert hopper["registers"] and hopper["warps"] == 12 and hopper["tma_loads"]
    assert sum(hopper["wgmma"].values()) and not hopper["mma"] and hopper["code_bytes"] > 4096
    assert hopper["counted_in"] == "SASS" and hopper["smem_limit"] == 232448
    ampere = next(row for row in found if row["kernel"] == "_attend" and row["target"] == "sm_80")
    assert sum(ampere["mma"].values()) and not ampere["wgmma"] and ampere["occupancy_pct"] > 0
    assert len(gate.read(saved)) == len(found)


@pytest.mark.slow
@LINUX
def test_what_is_divisible_by_16_is_loaded_16_bytes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "widths.yaml"
    path.write_text(
        "name: widths\nfamilies: {rms_norm: {providers: triton_fused, "
        "cases: [{M: 4096, N: [1000, 1001], dtype: bf16}]}}\n"
    )
    even, odd = (
        next(row for row in rows_of(str(path), "--target", "sm_90") if f"N{N}-" in row["case"])
        for N in (1000, 1001)
    )
    assert even["loads_128"] == even["loads"] > 0 and odd["loads_128"] == 0 < odd["loads"]


@LINUX
@pytest.mark.slow
def test_a_greedy_plugin_is_caught(tmp_path: Path) -> None:
    """It spills, wants more shared memory than there is, and has a kernel that does not compile."""
    arguments = ("greedy", "--plugin", str(PLUGIN), "--target", "sm_90")
    saved = tmp_path / "saved.json"
    done = kb(*arguments, "--fail-on", "spills,smem", "--save", str(saved))
    assert done.returncode == 1, done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED: ")]
    assert len(failed) == 3
    for words in ("hoard [BLOCK=", "cram [BLOCK=", "refuse [BLOCK="):
        assert any(words in line for line in failed), done.stdout
    told = " ".join(done.stdout.split())
    assert "! hoard: a thread spills" in told and "it cannot be launched" in told
    after = kb(*arguments, "--fail-on", "spills,registers:0%", "--against", str(saved))
    assert after.returncode == 0, after.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--target", "sm_9"), "did you mean 'sm_90'"),
        (("--fail-on", "spill"), "did you mean 'spills'"),
        (("--against", "nowhere.json"), "--against nowhere.json: cannot be read"),
        (("-p", "triton_fuse"), "did you mean 'triton_fused'"),
        (("rms_norm", "-p", "eager"), "none of these providers launches a Triton kernel"),
    ],
)
def test_bad_input_is_exit_code_2(arguments: tuple[str, ...], told: str) -> None:
    done = kb(*arguments)
    assert done.returncode == 2 and told in done.stderr, done.stderr
    assert not done.stdout
    *waits, said = done.stderr.splitlines()  # a slow machine says what it waits for
    assert said.startswith("error: ") and all(line.endswith(" …") for line in waits)


def test_the_interpreter_has_no_code_to_look_at() -> None:
    done = kb(TRITON_INTERPRET="1")
    assert done.returncode == 2
    assert "unset it (env -u TRITON_INTERPRET kernelbench inspect" in done.stderr
