"""What a record says of an error: where in the provider's own code it was raised, named as whoever
ran it would."""

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from test_metrics import record
from toy import Script, provider, right, run, toy

from kernelbench.report.details import details
from kernelbench.spec import Provider, Role, Status
from kernelbench.spec.raised import MOST

MY = """
import json
import torch


class Kernel:
    def launch(self, a):
        return a["nope"]


def deep(a):
    return Kernel().launch(a)


def in_torch(a):
    return torch.empty(3) @ torch.empty(4)


def in_stdlib(a):
    return json.loads("{")


def chained(a):
    try:
        deep(a)
    except KeyError as error:
        raise RuntimeError("no launch") from error


def long(a):
    raise ValueError("x" * 1000)


def several_lines(a):
    raise ValueError("\\n\\x1b[31mred\\x1b[0m\\nand the rest of it")


def endless(a):
    return endless(a)


def reads(a):
    return open("/no/such/folder/file.bin")


def silent(a):
    raise RuntimeError


def hungry(a):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The provider's code lies where the command is given."""
    monkeypatch.chdir(tmp_path)


def module(folder: Path, text: str = MY, name: str = "my") -> ModuleType:
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def line(words: str) -> int:
    return next(n for n, text in enumerate(MY.splitlines(), 1) if words in text)


def one(bad: Provider[Any]) -> Any:
    return run(toy(bad), timing=False)[bad.name]


@pytest.mark.parametrize(
    ("name", "reason", "at"),
    [
        ("deep", "KeyError: 'nope'", 'a["nope"]'),
        ("in_torch", "RuntimeError: .*", "torch.empty(3)"),
        ("in_stdlib", "JSONDecodeError: Expecting property name .*", "json.loads"),
        ("chained", "RuntimeError: no launch", "raise RuntimeError"),
        ("several_lines", "ValueError: red", 'ValueError("\\n'),
        ("endless", "RecursionError: .*", "return endless"),
        ("reads", r"FileNotFoundError: .* '…/file.bin'", "open("),
        ("silent", "RuntimeError: ", "raise RuntimeError\n"),
        ("long", "ValueError: x+…", "x"),
    ],
)
def test_a_reason_names_the_line_of_the_providers_own_code(tmp_path, name, reason, at):
    found = one(provider("bad", getattr(module(tmp_path), name)))
    assert found.status is Status.failed
    match = re.fullmatch(rf"{reason} \(my\.py:(\d+)(?:: (.*))?\)", found.reason)
    assert match, found.reason
    stands = MY.splitlines()[int(match[1]) - 1].strip()
    assert at.strip() in stands
    assert match[2] == (None if "raise " in stands + " " else stands)
    assert len(found.reason) <= MOST
    assert len(found.detail) < 9000
    assert "my.py" in found.detail and "/my.py" not in found.detail
    assert "job.py" not in found.detail and "workload.py" not in found.detail
    assert str(tmp_path) not in found.detail + found.reason


def test_the_traceback_begins_where_the_harness_called(tmp_path):
    found = one(provider("bad", module(tmp_path).deep))
    assert found.detail.splitlines() == [
        "Traceback (most recent call last):",
        f'  File "my.py", line {line("return Kernel()")}, in deep',
        "    return Kernel().launch(a)",
        f'  File "my.py", line {line("nope")}, in launch',
        '    return a["nope"]',
        "KeyError: 'nope'",
    ]


def test_memory_that_does_not_suffice_is_named_by_its_line_too(tmp_path):
    found = one(provider("bad", module(tmp_path).hungry))
    assert found.status is Status.oom
    assert found.reason.endswith(f"2 GiB (my.py:{line('OutOfMemory')})")


def test_a_chain_is_told_whole(tmp_path):
    detail = one(provider("bad", module(tmp_path).chained)).detail
    assert detail.index("KeyError: 'nope'") < detail.index("direct cause")
    assert detail.endswith("RuntimeError: no launch")
    assert not re.search(r'File ".*/', detail)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\nprint(\n", "SyntaxError: '(' was never closed (other.py:2: print()"),
        ("import no_such_module_at_all\n", "ModuleNotFoundError: No module named "
         "'no_such_module_at_all' (other.py:1: import no_such_module_at_all)"),
        ("from torch import nope\n", "ImportError: cannot import name 'nope' from 'torch' "
         "(…/__init__.py) (other.py:1: from torch import nope)"),
    ],
)  # fmt: skip
def test_what_build_imports_is_named_by_its_own_line(tmp_path, monkeypatch, text, reason):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "other.py").write_text(text)
    my = module(tmp_path, "def build(case, config):\n    import other\n")
    found = one(Provider("bad", Role.peer, my.build))
    sys.modules.pop("other", None)
    assert (found.status, found.reason) == (Status.failed, reason)
    assert '  File "my.py", line 2, in build' in found.detail
    assert str(tmp_path) not in found.detail


def test_an_installed_plugin_is_its_own_code_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setattr("kernelbench.spec.raised._LIBRARIES", (str(tmp_path / "site-packages"),))
    package = tmp_path / "site-packages" / "softmax_plugin"
    package.mkdir(parents=True)
    found = one(provider("bad", module(package).in_torch))
    assert found.reason.endswith(f"(softmax_plugin/my.py:{line('torch.empty(3)')})")


def test_what_a_library_wraps_is_named_by_the_line_inside():
    made: dict[str, Any] = {}  # as Triton's interpreter does with what a kernel raises
    wrapper = "def wrap(error):\n    raise RuntimeError(repr(error)) from error"
    exec(compile(wrapper, "<made>", "exec"), made)

    def kernel(a: Any) -> Any:
        try:
            raise KeyError("inside")
        except KeyError as error:
            made["wrap"](error)

    found = one(provider("bad", kernel))
    [number] = re.findall(
        r"RuntimeError: KeyError\('inside'\) \(.*test_failure\.py:(\d+)\)", found.reason
    )
    assert 'KeyError("inside")' in Path(__file__).read_text().splitlines()[int(number) - 1]


def test_what_the_harness_says_itself_has_no_line_and_no_detail():
    found = one(provider("bad", lambda a: torch.zeros(1)))
    assert found.reason == "returns 1 outputs, expected y, m"
    assert found.detail == ""


def test_details_of_several_cases_stand_once():
    bad = [
        record(provider="bad", case=case, status=Status.failed, detail="Traceback\n  File")
        for case in ("a", "b", "c")
    ]
    other = record(provider="worse", case="a", status=Status.failed, detail="Another")
    family = other.family
    assert details([*bad, other, record()]) == [
        "",
        f"{family}/a and 2 other cases bad: failed",
        "    Traceback",
        "      File",
        "",
        f"{family}/a worse: failed",
        "    Another",
    ]
    assert details([record()]) == []


def test_who_failed_while_timed_alone_is_to_blame() -> None:
    """Also for what it changed: the step began with another one."""

    def bad(a: Any) -> Any:
        if clock.runs:
            os.environ["LEFT_BY_ONE"] = "1"
            raise RuntimeError("no")
        return right(a)

    class Runs(Script):
        runs = False

        def batch(self, part: Any, n: int) -> Any:
            self.runs = True
            return super().batch(part, n)

    clock = Runs()
    found = run(toy(provider("one", bad), provider("two", right)), clock=clock)
    assert found["one"].status is Status.failed
    assert found["two"].status is Status.ok, found["two"].reason
    assert "LEFT_BY_ONE" not in os.environ
