"""Suites: every error with its place, all at once, and that nothing else ever escapes."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from test_suite import HEAD, ONE, TOYS, errors, read

from kernelbench.spec import UsageError
from kernelbench.suite import Suite, load

RMS_AXES = "M, N, eps, casting, residual, inputs, dtype, mode"
FILE_KEYS = "name, description, device, gpu, gpus, executor, defaults, functions, measure, families"
PROVIDERS = "eager, torch_fused, compile, triton_fused, liger, quack"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "1:1: empty; a suite has a name and families"),
        ("# nothing\n", "1:1: empty; a suite has a name and families"),
        ("- 1", "1:1: a suite is a mapping with a name and families, got a list"),
        ("smoke", "1:1: a suite is a mapping with a name and families, got 'smoke' (text)"),
        ("a: [1\nb: 2", "2:2: not YAML: while parsing a flow sequence: expected ',' or ']'"),
        ("a: 1\n\tb: 2", "2:1: not YAML: while scanning for the next token: found character"),
        ("a: *b", "1:4: alias '*b' stands for nothing that ended above it"),
        ("a: &b [*b]", "1:8: alias '*b' stands for nothing that ended above it"),
        ("a: 1\n---\nb: 2", "2:1: a second document; a file holds one"),
        ('a: "\\U00110000"', "1:7: not YAML: chr() arg not in range"),
        ('a: "\\ud800"', "1:4: half a character in"),
        ("a: 1\nb: \x00", "2:4: the character '\\x00' may not stand here"),
        ("a: 1\nb: {c: 1, c: 2}", "2:11: duplicate key 'c' (first at line 2)"),
        ("1: 2", "1:1: a key is a word, got 1"),
        ("? [a]\n: 2", "1:3: a key is a word, got a list"),
        ("a: !!python/object:os.system {}", "1:4: tag '!!python/object:os.system': a suite has no"),
        ("a: !!int 3", "1:4: tag '!!int': a suite has no tags"),
        ("a: .nan", "1:4: the number .nan is not finite"),
        ("a: [1, -.inf]", "1:8: the number -.inf is not finite"),
        ("a: 1e999", "1:4: the number 1e999 is not finite"),
        ("a: 1000000000000000000", "1:4: the number 1000000000000000000… is too large"),
        ("a: " + "[" * 30, "1:27: nested deeper than 24 levels"),
        ("a: " + "[" * 100_000, "1:27: nested deeper than 24 levels"),
        ("nam: a\n" + ONE, f"1:1: no key 'nam'; did you mean 'name'? Known: {FILE_KEYS}"),
        (ONE.replace("name: a", "gpu: a"), "1:1: missing key 'name'"),
        (ONE.replace("a\n", "a b\n"), "1:7: 'name' takes a word of A-Z a-z 0-9 _ . -, got 'a b'"),
        (ONE.replace("a\n", "3\n"), "1:7: 'name' takes text, got 3; put it in quotes"),
        ("device: gpu\n" + ONE, "1:9: 'device': no value 'gpu'; did you mean 'cpu'? Known: auto, "),
        ('gpu: "a\\nb"\n' + ONE, "1:6: 'gpu' takes one line of text, got 'a\\nb' (text)"),
        ('description: "\\e"\n' + ONE, "1:14: 'description' takes text without control"),
        ("name: a", "1:1: missing key 'families'"),
        ("name: a\nfamilies: {}", "2:1: 'families' is empty; nothing to measure"),
        ("name: a\nfamilies:", "2:10: 'families' takes a mapping, got nothing"),
        ("name: a\nfamilies: {rms_nrm: {}}", "2:12: no family 'rms_nrm'; did you mean 'rms_norm'?"),
        (HEAD + "    providers: eager", "3:3: missing key 'cases' of rms_norm"),
        (HEAD + "    cases: []", "4:5: 'cases' of rms_norm is empty"),
        (HEAD + "    cases: {M: 1}", "4:12: 'cases' of rms_norm takes a list, got a mapping"),
        (HEAD + "    cases: [3]", "4:13: a block of rms_norm's cases takes a mapping, got 3"),
        (HEAD + "    mode: fwd\n    cases: []", "4:5: no key 'mode' of rms_norm; did you"),
        (HEAD + "    providers: ligr", f"4:16: 'providers' of rms_norm: no value 'ligr'; did you "
         f"mean 'liger'? Known: {PROVIDERS}"),
        (HEAD + "    modes: [fwd, bw]", "4:18: 'modes' of rms_norm: no value 'bw'; did you mean"),
        (HEAD + "    modes: []", "4:5: 'modes' of rms_norm is empty"),
        ("measure: {max_second: 1}\n" + ONE, "1:11: no key 'max_second' of measure; did you mean"),
        ("measure: {max_seconds: -1}\n" + ONE, "1:24: measure: interval_pct and max_seconds must"),
        ("measure: {block: true}\n" + ONE, "1:18: 'block' of measure takes a whole number, got"),
        ("measure: {max_samples: 5}\n" + ONE, "1:24: measure: 2 <= min_samples <= max_samples"),
        ("measure: {min_samples: 50, max_samples: 40}\n" + ONE, "1:10: measure: 2 <= min_samples"),
        ("measure: {timers: [kernal]}\n" + ONE, "1:19: measure: no timer 'kernal'. Known: kernel"),
        ("defaults: {n: 1}\n" + ONE, "1:12: no family of this suite has an axis 'n'; did you mean"),
        ("defaults: {D: 1}\n" + ONE, "1:12: no family of this suite has an axis 'D'"),
        ("defaults: {dtype: [bf16, f16]}\n" + ONE, "1:26: axis 'dtype': no value 'f16'; did you"),
        ("defaults: {modes: fw}\n" + ONE, "1:19: axis 'mode': no value 'fw'; did you mean 'fwd'"),
        ("defaults: {mode: fwd, modes: fwd}\n" + ONE, "1:23: 'mode' and 'modes' are the same"),
        ("defaults: 3\n" + ONE, "1:11: 'defaults' takes a mapping, got 3"),
    ],
)  # fmt: skip
def test_errors_of_a_file(text: str, error: str) -> None:
    assert any(line.startswith("a.yaml:" + error) for line in errors(text)), errors(text)


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("M: 1, N: 2, n: 3", f"25: no rms_norm axis 'n'; did you mean 'N'? Known: {RMS_AXES}, "),
        ('M: "4096", N: 2', "16: rms_norm axis 'M' takes a whole number, got '4096' (text)"),
        ("M: true, N: 2", "16: rms_norm axis 'M' takes a whole number, got true"),
        ("M: 1.0, N: 2", "16: rms_norm axis 'M' takes a whole number, got 1.0"),
        ("M: [1, [2]], N: 2", "20: rms_norm axis 'M' takes a whole number, got a list"),
        ("M: , N: 2", "15: rms_norm axis 'M' takes a whole number, got nothing"),
        ("M: [], N: 2", "13: rms_norm axis 'M' is empty"),
        ("M: 1, N: 2, eps: x", "30: rms_norm axis 'eps' takes a number, got 'x' (text)"),
        ("M: 1, N: 2, eps: true", "30: rms_norm axis 'eps' takes a number, got true"),
        ("M: 1, N: 2, residual: no", "35: rms_norm axis 'residual' takes true or false, got 'no'"),
        ("M: 1, N: 2, residual: 1", "35: rms_norm axis 'residual' takes true or false, got 1"),
        ("M: 1, N: 2, casting: lama", "34: rms_norm axis 'casting': no value 'lama'; did you mean"),
        ("M: 1, N: 2, dtype: 16", "32: rms_norm axis 'dtype' takes a word, got 16. Known: fp32,"),
        ("M: 1, N: 2, label: 3", "32: 'label' of rms_norm takes text, got 3; put it in quotes"),
        ("M: 1, N: 2, zip: 1", "30: 'zip' of rms_norm takes true or false, got 1"),
        ("M: 1, N: 2, providers: [x]", "37: 'providers' of rms_norm: no value 'x'"),
        ("M: 1", "12: rms_norm needs a value for N"),
        ("", "12: rms_norm needs a value for M, N"),
        ("zip: true, M: [1, 2], N: [1]", "35: zip takes lists of equal length: M has 2, N has 1"),
        ("M: [1, 0], N: 2", "12: rms_norm refuses M=0, N=2: M must be above 0, got 0"),
    ],
)
def test_errors_of_a_block(block: str, error: str) -> None:
    got = errors(HEAD + f"    cases: [{{{block}}}]")
    column, message = error.split(": ", 1)
    assert got[0].startswith(f"a.yaml:4:{int(column) + 1}: {message}")
    assert len(got) == 1


def test_all_errors_at_once_in_the_order_of_the_file() -> None:
    got = errors("""name: a b
defaults: {dtype: bf17}
measure: {block: x, max_seconds: 1}
families:
  rotary:
    cases: [{B: 1, S: 1, Hq: 3, Hk: 0, D: 4, name: a/b}]
  rms_norm:
    cases:
      - {M: x, N: 1}
      - {M: 1}
      - {zip: true, M: [1, 2], N: [1, 2, 3], q: 1}
  other: {}
""")
    assert [line.split(" ")[0] for line in got] == [
        *("a.yaml:1:7:", "a.yaml:2:19:", "a.yaml:3:18:", "a.yaml:6:52:", "a.yaml:9:13:"),
        *("a.yaml:10:9:", "a.yaml:11:32:", "a.yaml:11:46:", "a.yaml:12:3:"),
    ]
    many = errors(HEAD + "    cases:\n" + "      - {M: x, N: 1}\n" * 150)
    assert (len(many), many[-1]) == (101, "… and 50 more")


def test_a_case_that_fails_on_a_value_is_a_refusal() -> None:
    rotary = "name: a\nfamilies: {rotary: {cases: [{B: 1, S: 1, Hq: [4, 3], Hk: [2, 0], D: 4}]}}"
    assert errors(rotary) == [
        "a.yaml:2:29: rotary refuses B=1, S=1, Hq=4, Hk=0, D=4: integer modulo by zero",
        "a.yaml:2:29: rotary refuses B=1, S=1, Hq=3, Hk=2, D=4: Hq must be a multiple of Hk",
    ]


def test_expanding_stays_bounded() -> None:
    began = time.perf_counter()
    tens = "[" + ", ".join("1" * 10) + "]"
    bomb = f"a: &a {tens}\n" + "".join(
        f"{to}: &{to} [{', '.join(['*' + of] * 10)}]\n"
        for of, to in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert errors(bomb) == ["a.yaml:6:4: its aliases expand to more than 200000 values"]
    keys = ", ".join(f"k{i}: 1" for i in range(1000))
    merges = f"a: &a {{{keys}}}\nb: [{', '.join(['{<<: *a}'] * 1000)}]"
    assert "merge keys expand to more than" in errors(merges)[0]
    deep = "a: &a [[[[[[[[[[1]]]]]]]]]]\nb: &b [[[[[[[[[*a]]]]]]]]]\nc: [[[[*b]]]]"
    assert errors(deep) == ["a.yaml:3:8: nested deeper than 24 levels"]
    grid = HEAD + "    cases:\n      - {M: 1, N: 1}\n      - {M: &v [%s], N: *v, eps: *v}"
    many = grid % ", ".join(str(i) for i in range(1, 101))
    assert errors(many) == ["a.yaml:6:9: the suite has more than 100000 points from here on"]
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("foo", "--set foo: expected key=value, such as measure.max_seconds=1"),
        ("=1", "--set : expected key=value"),
        ("a..b=1", "--set a..b: expected key=value"),
        ("measure.x=1", "--set measure.x: no key 'x' of measure. Known: min_samples"),
        ("measure.block=", "--set measure.block: 'block' of measure takes a whole number, got"),
        ("measure.block=1\n---\n2", "--set measure.block: a second document"),
        ("measure.min_samples=1", "--set measure.min_samples: measure: 2 <= min_samples"),
        ("defaults.dtype=[fp32", "--set defaults.dtype: not YAML: while parsing a flow sequence"),
        ("defaults.dtype=[fp23]", "--set defaults.dtype: axis 'dtype': no value 'fp23'; did you"),
        ("families.rotary.modes=fwd", "--set families.rotary.modes: missing key 'cases' of rotary"),
        ("families.rms_norm.cases.1.M=1", "--set families.rms_norm.cases.1.M: '1' is none of the"),
        ("families.rms_norm.cases.0.M=x", "--set families.rms_norm.cases.0.M: rms_norm axis 'M' t"),
        ("name.x=1", "--set name.x: 'x' leads into 'a', which is not a mapping"),
        ("name=!!int 3", "--set name: tag '!!int': a suite has no tags"),
        ("a" + ".a" * 5000 + "=1", "--set a.a"),
    ],
)  # fmt: skip
def test_errors_of_overrides(override: str, error: str) -> None:
    assert errors(ONE, override)[0].startswith(error)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def fails(path: str | Path) -> str:
        with pytest.raises(UsageError) as caught:
            load(path, TOYS)
        return str(caught.value).removeprefix(str(path))

    assert fails(tmp_path / "x.yaml") == ": cannot be read: No such file or directory"
    assert fails(tmp_path) == ": cannot be read: Is a directory"
    assert fails("\0").endswith("cannot be read: embedded null byte")
    assert "cannot be read" in fails("x" * 5000)
    bad = tmp_path / "bad.yaml"
    bad.write_bytes("name: a\n# µ".encode() + b"\xff")
    assert fails(bad) == ":2:4: not UTF-8: byte 0xff"
    bad.write_bytes(b"#" * (1 << 21))
    assert fails(bad) == ": larger than 1 MiB, which no suite is"
    bad.write_bytes(b"\xef\xbb\xbf" + ONE.replace("\n", "\r\n").encode())
    assert [job.id for job in load(bad, TOYS).jobs] == ["rms_norm/M1-N2-bf16-fwd"]


def _only_usage_errors(call: Callable[[], object]) -> None:
    try:
        assert isinstance(call(), Suite)
    except UsageError as error:
        assert str(error)
        str(error).encode()


WORDS = [
    *("name", "families", "rms_norm", "rotary", "cases", "defaults", "measure", "M", "N", "dtype"),
    *("zip", "label", "modes", "mode", "providers", "eager", "fp16", "fwd", "timers", "block", "D"),
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
VALUES = st.recursive(
    SCALARS | st.sampled_from(WORDS) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.text() | st.text("[]{}:,&*!|>'\"%@-?# \n\tab1", max_size=30))
def test_any_text_is_a_suite_or_a_usage_error(text: str) -> None:
    _only_usage_errors(lambda: read(text))
    _only_usage_errors(lambda: read(ONE, text))
    _only_usage_errors(lambda: read(ONE, f"families.rms_norm.cases={text}"))


@settings(max_examples=60, deadline=None)
@given(VALUES, st.sampled_from(WORDS), VALUES)
def test_any_structure_is_a_suite_or_a_usage_error(block: Any, key: str, value: Any) -> None:
    rms_norm = {"cases": [{"M": 1, "N": 2, key: value}, block], key: value}
    odd = {"name": "a", key: value, "families": {"rms_norm": rms_norm, "rotary": block}}
    for data in (block, odd):
        _only_usage_errors(lambda data=data: read(yaml.safe_dump(data, allow_unicode=True)))
    _only_usage_errors(lambda: read(yaml.safe_dump(yaml.safe_load(ONE) | {key: value})))
