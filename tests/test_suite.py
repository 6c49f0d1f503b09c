"""Suites: what the grammar means, which are shipped, and how jobs are chosen."""

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

import kernelbench
from kernelbench import families, suite
from kernelbench.spec import Case, Family, Job, Measure, Mode, Provider, Role, UsageError, axis
from kernelbench.suite import Suite, find, json_schema, load, narrow, shipped

Casting = StrEnum("Casting", ["fp32", "llama", "gemma", "none"])
Layout = StrEnum("Layout", ["bshd", "bhsd"])
Tables = StrEnum("Tables", ["s", "bs"])
Skip = StrEnum("Skip", ["edm", "cm", "trigflow", "none"])


@dataclass(frozen=True, kw_only=True)
class Norm(Case):
    M: int = axis("rows")
    N: int = axis("hidden size")
    eps: float = axis("added to the mean square", 1e-6)
    casting: Casting = axis("where it rounds", Casting.fp32)
    residual: bool = axis("adds a residual first", False)

    def __post_init__(self) -> None:
        if self.M < 1:
            raise ValueError(f"M must be above 0, got {self.M}")


@dataclass(frozen=True, kw_only=True)
class Rotary(Case):
    B: int = axis("batch")
    S: int = axis("sequence")
    Hq: int = axis("heads of q")
    Hk: int = axis("heads of k")
    D: int = axis("head dimension")
    layout: Layout = axis("storage order", Layout.bshd)
    interleaved: bool = axis("pairs neighbours", False)
    inplace: bool = axis("overwrites its inputs", False)
    tables: Tables = axis("cos and sin", Tables.s)
    name: str = axis("a word", "")

    def __post_init__(self) -> None:
        if self.Hq % self.Hk:
            raise ValueError("Hq must be a multiple of Hk")


@dataclass(frozen=True, kw_only=True)
class Attention(Case):
    B: int = axis("batch")
    N: int = axis("tokens")
    H: int = axis("heads")
    D: int = axis("head size")
    causal: bool = axis("masks what is to come", False)
    parametrization: Skip = axis("coefficients of t", Skip.edm)
    sigma_data: float = axis("deviation of the data", 0.0)


def _nothing(*args: Any) -> Any:
    raise AssertionError("a suite asks a family for its case and providers alone")


def _toy(name: str, case: type[Case], providers: str) -> Family[Any]:
    roles = {
        "eager": Role.baseline,
        "baseline": Role.baseline,
        "triton_fused": Role.triton_fused,
    }
    return Family(
        name=name,
        title=f"toy {name}",
        case=case,
        inputs=_nothing,
        outputs=_nothing,
        oracle=_nothing,
        cost=_nothing,
        checks=(),
        providers=tuple(
            Provider(name=p, role=roles.get(p, Role.peer), build=_nothing)
            for p in providers.split()
        ),
    )


TOYS = {
    "rms_norm": _toy("rms_norm", Norm, "eager torch_fused compile triton_fused liger quack"),
    "rotary": _toy("rotary", Rotary, "eager torch_fused triton_fused liger quack"),
    "rcm_attention": _toy(
        "rcm_attention", Attention, "baseline torch_fused triton_fused triton_unfused naive"
    ),
}
HEAD = "name: a\nfamilies:\n  rms_norm:\n"  # what follows begins in line 4
ONE = HEAD + "    cases: [{M: 1, N: 2}]\n"


def read(text: str, *overrides: str) -> Suite:
    return load("a.yaml", TOYS, text=text, overrides=overrides)


def ids(text: str, *overrides: str) -> list[str]:
    return [job.id.removeprefix("rms_norm/") for job in read(text, *overrides).jobs]


def errors(text: str, *overrides: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        read(text, *overrides)
    return str(caught.value).split("\n")


def test_a_suite_with_every_key() -> None:
    text = """
name: my-sweep_1.0
description: two
device: cpu
gpu: H200
defaults: {dtype: [bf16, fp16], D: 64, mode: bwd}
measure: {max_seconds: 1, interval_pct: 1e0, timers: [host], interleave: false}
families:
  rms_norm:
    providers: [liger, eager]
    modes: fwd
    cases:
      - {label: Small (one frame), M: 4, N: [8, 16]}
      - {M: 4, N: 8, dtype: fp32, mode: [full, fwd], providers: quack}
  rotary:
    cases: [{B: 1, S: 2, Hq: 4, Hk: 2, layout: bhsd}]
"""
    got = read(text)
    facts = (got.name, got.description, got.device, got.gpu, got.text, got.path)
    assert facts == ("my-sweep_1.0", "two", "cpu", "H200", text, Path("a.yaml"))
    assert [(job.id, job.label, job.providers) for job in got.jobs[:6]] == [
        ("rms_norm/M4-N8-bf16-fwd", "Small (one frame)", ("eager", "liger")),
        ("rms_norm/M4-N8-fp16-fwd", "Small (one frame)", ("eager", "liger")),
        ("rms_norm/M4-N16-bf16-fwd", "Small (one frame)", ("eager", "liger")),
        ("rms_norm/M4-N16-fp16-fwd", "Small (one frame)", ("eager", "liger")),
        ("rms_norm/M4-N8-fp32-full", "", ("quack",)),
        ("rms_norm/M4-N8-fp32-fwd", "", ("quack",)),
    ]
    assert [job.id for job in got.jobs[6:]] == [
        "rotary/B1-S2-Hq4-Hk2-D64-layout=bhsd-bf16-bwd",
        "rotary/B1-S2-Hq4-Hk2-D64-layout=bhsd-fp16-bwd",
    ]
    assert got.jobs[6].providers == tuple(p.name for p in TOYS["rotary"].providers)
    expected = Measure(max_seconds=1.0, interval_pct=1.0, timers=("host",), interleave=False)
    assert {job.measure for job in got.jobs} == {expected}
    assert isinstance(got.jobs[0].measure.max_seconds, float)


def test_what_is_not_said_has_a_default() -> None:
    got = read(ONE)
    assert (got.description, got.device, got.gpu) == ("", "auto", "")
    assert got.jobs[0].measure == Measure()
    assert ids(ONE) == ["M1-N2-bf16-fwd"]


def test_zip_is_lock_step_and_is_crossed_with_what_it_inherits() -> None:
    block = "    modes: [fwd, bwd]\n    cases: [{zip: true, M: [1, 2], N: [3, 4], residual: true}]"
    assert ids(HEAD + block) == [
        "M1-N3-residual-bf16-fwd",
        "M1-N3-residual-bf16-bwd",
        "M2-N4-residual-bf16-fwd",
        "M2-N4-residual-bf16-bwd",
    ]
    assert ids(HEAD + "    cases: [{zip: true, M: [1], N: 3}]") == ["M1-N3-bf16-fwd"]


def test_a_case_that_stands_twice_is_one_job() -> None:
    job, other = read(
        HEAD
        + """    cases:
      - {label: first, M: [1, 1], N: 2, providers: [liger, liger]}
      - {label: second, M: [1, 2], N: 2, providers: eager}
"""
    ).jobs
    assert (job.label, job.providers) == ("first", ("eager", "liger"))
    assert (other.label, other.providers) == ("second", ("eager",))


@pytest.mark.parametrize(
    ("value", "case"),
    [
        ("eps: 1e-5", "M1-N2-eps=1e-05-bf16-fwd"),
        ("eps: 1.5E-5", "M1-N2-eps=1.5e-05-bf16-fwd"),
        ("eps: .5", "M1-N2-eps=0.5-bf16-fwd"),
        ("eps: 1", "M1-N2-eps=1.0-bf16-fwd"),
        ("residual: True", "M1-N2-residual-bf16-fwd"),
        ("dtype: !  fp16", "M1-N2-fp16-fwd"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(value: str, case: str) -> None:
    assert ids(HEAD + f"    cases: [{{M: 1, N: 2, {value}}}]") == [case]
    assert ids(HEAD + "    cases: [{M: 1024, N: +2}]") == ["M1024-N2-bf16-fwd"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("M: 1_", "1_ is no number of YAML 1.2"),
        ("M: 1_024", "1_024 is no number of YAML 1.2"),
        ("M: 1, eps: 1_0.5e-3", "no number of YAML 1.2"),
        ("M: 1, eps: 1e-400", "the number 1e-400 is too small: 0"),
        ("M: 1, eps: 1e400", "is not finite"),
    ],
)
def test_what_is_no_number_of_yaml_1_2_is_no_other_number(value: str, told: str) -> None:
    assert any(told in error for error in errors(HEAD + f"    cases: [{{N: 2, {value}}}]"))


def test_dtypes_have_the_names_of_torch_too() -> None:
    text = HEAD + "    cases: [{M: 1, N: 2, dtype: [float32, half, bfloat16, tf32]}]"
    assert ids(text) == [f"M1-N2-{dtype}-fwd" for dtype in ("fp32", "fp16", "bf16", "tf32")]
    jobs = read(text).jobs
    assert len(narrow(jobs, families.load(), dtype=["float32", "fp16"])) == 2


def test_keys_of_the_top_level_that_begin_with_x_hold_anchors() -> None:
    text = "x-sizes: &sizes [1, 2]\nx-more: {any: [thing]}\n"
    assert ids(text + HEAD + "    cases: [{M: *sizes, N: 2}]") == [
        "M1-N2-bf16-fwd",
        "M2-N2-bf16-fwd",
    ]
    assert errors(text.replace("x-", "y-") + HEAD + "    cases: [{M: 1, N: 2}]")


def test_words_of_yaml_1_1_stay_words() -> None:
    for word in ("no", "on", "yes", "off", "1:30", "010", "0x10", "2026-01-01"):
        got = read(HEAD + f"    cases: [{{M: 1, N: 2, label: {word}}}]")
        assert got.jobs[0].label == word


def test_anchors_and_merge_keys() -> None:
    text = """
name: a
families:
  rms_norm:
    cases:
      - &base {M: 1, N: &n [2, 3], dtype: fp16}
      - {<<: *base, M: 4}
      - {<<: [{M: 5}, *base], N: *n}
"""
    assert [i.removesuffix("-fp16-fwd") for i in ids(text)] == [
        *("M1-N2", "M1-N3"),
        *("M4-N2", "M4-N3"),
        *("M5-N2", "M5-N3"),
    ]
    assert errors(text.replace("<<: *base", "<<: 3")) == [
        "a.yaml:7:14: '<<' takes a mapping or a list of them"
    ]


def test_overrides() -> None:
    text = "defaults: {dtype: fp32}\n" + HEAD + "    modes: fwd\n    cases: [{M: [1, 2], N: &n 2}]"
    assert ids(text, "defaults.dtype=[bf16]", "families.rms_norm.modes=[fwd, bwd]") == [
        *("M1-N2-bf16-fwd", "M1-N2-bf16-bwd", "M2-N2-bf16-fwd", "M2-N2-bf16-bwd")
    ]
    assert ids(text, "families.rms_norm.cases.0.M=7") == ["M7-N2-fp32-fwd"]
    got = read(text, "measure.max_seconds=1e-1", "name=b")
    assert (got.name, got.jobs[0].measure.max_seconds, got.text) == ("b", 0.1, text)


def test_find(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(ONE)
    assert find(str(file)) == file
    assert find("smoke") == shipped()["smoke"]
    with pytest.raises(
        UsageError, match=r"smok\.yaml: no such file, and .*mean 'smoke'\? Known: a"
    ):
        find("configs/smok.yaml")
    with pytest.raises(UsageError, match=r"is a directory, and no suite"):
        find(str(tmp_path))
    for name in ("", "\0", "x" * 5000):
        with pytest.raises(
            UsageError, match=r"no such file, and no suite of kernelbench\. Known: "
        ):
            find(name)


@pytest.fixture
def jobs() -> tuple[Job, ...]:
    block = "    modes: [fwd, bwd]\n    cases: [{M: 1, N: [2, 22], dtype: [bf16, fp32]}]\n"
    rotary = "  rotary: {cases: [{B: 1, S: 1, Hq: 1, Hk: 1, D: 4, providers: [eager, liger]}]}"
    return read(HEAD + block + rotary).jobs


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, 9),
        ({"family": ["rms_norm"]}, 8),
        ({"family": ["rotary", "rms_norm"]}, 9),
        ({"mode": ["bwd"], "dtype": ["fp32"]}, 2),
        ({"filter": "N2-.*fwd$"}, 2),
        ({"filter": "^rotary/"}, 1),
        ({"case": ["M1-N2-bf16-fwd", "M1-N2-bf16-bwd"]}, 2),
        ({"provider": ["quack"]}, 8),
        ({"skip": ["eager", "liger"]}, 8),
    ],
)
def test_narrow(jobs: tuple[Job, ...], options: dict[str, Any], left: int) -> None:
    assert len(narrow(jobs, TOYS, **options)) == left


def test_narrow_takes_providers_out(jobs: tuple[Job, ...]) -> None:
    got = narrow(jobs, TOYS, provider=["liger", "eager", "quack"], skip=["quack"])
    assert {job.providers for job in got} == {("eager", "liger")}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"family": ["rotry"]}, r"--family: no family 'rotry'; did you mean 'rotary'\? Known: rms"),
        ({"provider": ["ligr"]}, r"--provider: no provider 'ligr'; did you mean 'liger'\?"),
        ({"skip": ["ligr"]}, r"--skip: no provider 'ligr'; did you mean 'liger'\? Known: eager, "),
        ({"case": ["M1-N2"]}, r"--case: no case 'M1-N2'; did you mean 'M1-N2-.*'\? Known: M1-N2-b"),
        ({"mode": ["forward"]}, r"--mode: no mode 'forward'.* Known: fwd, bwd, full"),
        ({"dtype": ["bf61"]}, r"--dtype: no dtype 'bf61'; did you mean 'bf16'\?"),
        ({"filter": "("}, r"--filter: '\(' is no regular expression: missing \)"),
        ({"filter": "a{99999999999}"}, r"--filter: .* is no regular expression"),
        ({"family": ["rotary"], "mode": ["bwd"]}, r"--family rotary --mode bwd leaves no job of 9"),
        (
            {"filter": "zzz"},
            r"(?s)--filter zzz leaves no job of 9\. There are\n  families: rms_norm",
        ),
        (
            {"provider": ["eager"], "skip": ["eager"]},
            r"--provider eager --skip eager leaves no job",
        ),
    ],
)
def test_errors_of_narrow(jobs: tuple[Job, ...], options: dict[str, Any], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        narrow(jobs, TOYS, **options)


def test_a_long_list_of_cases_is_cut_short() -> None:
    many = read(HEAD + f"    cases: [{{M: {list(range(1, 101))}, N: 1}}]").jobs
    with pytest.raises(UsageError) as caught:
        narrow(many, TOYS, case=["M55-N1"])
    assert "did you mean 'M55-N1-bf16-fwd'?" in str(caught.value)
    assert str(caught.value).endswith(", … (100 in all)") and len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["smoke", "a100", "h100", "h200"])
def test_shipped_suites(name: str) -> None:
    got = load(find(name), families.load())
    assert got.name == name and got.description and len(got.jobs) <= 50
    assert {job.family for job in got.jobs} >= {"rms_norm", "rotary"}
    assert Path(__file__).parents[1].joinpath("configs", f"{name}.yaml").read_text() == got.text
    if name == "smoke":
        assert got.device == "auto" and {j.case.mode for j in got.jobs} == {"fwd", "bwd", "full"}
    else:
        assert (got.device, got.gpu) == ("cuda", name.upper())


def test_shipped_suites_load_with_the_real_families() -> None:
    real = families.load()
    for path in shipped().values():
        assert load(path, real).jobs
    assert {job.family for job in load(find("smoke"), real).jobs} == set(real)


def test_smoke_shows_pytorch_fused_beside_ours_and_compiles_few_graphs() -> None:
    real = families.load()
    graphs, roles = 0, dict[str, set[Role]]()
    for job in load(find("smoke"), real).jobs:
        shown = [real[job.family].provider(name) for name in job.providers]
        assert {Role.baseline, Role.triton_fused} <= {p.role for p in shown}, job.id
        roles.setdefault(job.family, set()).update(p.role for p in shown)
        compiled = [
            p
            for p in shown
            if p.name == "compile" or {"compiled", "compile"} & {*p.build.__code__.co_names}
        ]
        graphs += len(compiled) * (1 if job.case.mode is Mode.fwd else 2)
    assert graphs == 5  # 3 to 12 s each on a CPU
    without = {name for name, shown in roles.items() if Role.torch_fused not in shown}
    assert without == {"train_step"}, "whose fused form is two graphs, of forward and backward"


@pytest.mark.parametrize("name", ["attention", "h200", "launch", "rcm_seed"])
def test_the_parts_of_a_long_suite_are_all_of_it(name: str) -> None:
    known = families.load()
    whole = load(find(name), known)
    parts = re.findall(r"^#   '(.*)'$", whole.text, re.MULTILINE)
    found = [job.id for part in parts for job in narrow(whole.jobs, known, filter=part)]
    assert len(parts) > 3 and sorted(found) == sorted(job.id for job in whole.jobs)


def test_schema_says_what_the_grammar_is() -> None:
    schema = json_schema(TOYS)

    def values(of: dict[str, Any]) -> Any:
        name = of.get("$ref", "").removeprefix("#/$defs/")
        return (schema["$defs"][name] if name else of)["anyOf"]

    block = schema["$defs"]["rms_norm_axes"]
    assert block["additionalProperties"] is False
    assert list(block["properties"])[:3] == ["label", "zip", "M"]
    assert values(block["properties"]["casting"])[0]["enum"] == [*Casting]
    assert block["properties"]["eps"]["description"] == "added to the mean square"
    assert values(block["properties"]["M"])[0] == {"type": "integer"}
    assert values(schema["properties"]["defaults"]["properties"]["D"])
    assert set(schema["$defs"]["measure"]["properties"]) == set(Measure.__dataclass_fields__)
    assert schema["required"] == ["name", "families"]


def test_shipped_schema_is_current() -> None:
    """Renew it: json.dump(json_schema(families.load()), file, indent=0), and a newline."""
    shipped_schema = Path(kernelbench.__file__).with_name("suite.schema.json").read_text()
    assert shipped_schema == json.dumps(json_schema(families.load()), indent=0) + "\n"


def test_an_axis_may_have_any_name_and_mean_different_things() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd(Case):
        copy: int = axis("a name of pydantic's own")
        model_config: bool = axis("another", False)
        layout: int = axis("not rotary's layout", 3)

    both = {**TOYS, "odd": _toy("odd", Odd, "eager"), "measure": _toy("measure", Odd, "eager")}
    text = "name: a\ndefaults: {layout: %s}\nfamilies:\n  odd: {cases: [{copy: 1}]}\n"
    rotary = "  rotary: {cases: [{B: 1, S: 1, Hq: 1, Hk: 1, D: 2}]}\n"
    assert load("a", both, text=text % 4).jobs[0].id == "odd/copy1-layout=4-bf16-fwd"
    with pytest.raises(UsageError, match=r"a:2:20: axis 'layout' takes a word, got 4\. Known: bs"):
        load("a", both, text=text % 4 + rotary)
    layout = json_schema(both)["properties"]["defaults"]["properties"]["layout"]
    assert len(layout["anyOf"]) == 2


def test_the_package_says_what_it_offers() -> None:
    offers = {"Executor", "Suite", "declared", "find", "json_schema", "load", "narrow", "shipped"}
    assert set(suite.__all__) == offers
