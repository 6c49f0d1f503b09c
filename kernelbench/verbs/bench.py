"""`kernelbench bench`: functions against their reference, without a family file."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kernelbench import families, files
from kernelbench.families.functions import arguments as grammar
from kernelbench.families.functions import preflight
from kernelbench.families.functions.targets import find, takes, word_of
from kernelbench.report.progress import Output
from kernelbench.report.waits import waiting
from kernelbench.run.plan import Plan
from kernelbench.run.runner import Options
from kernelbench.spec import COMPILE, Declaration, UsageError
from kernelbench.suite import request as asking
from kernelbench.suite.request import Selection
from kernelbench.verbs import run as runs
from kernelbench.verbs.list import show_jobs

HEAD = "# kernelbench run"  # how a suite begins that was written here


@dataclass(frozen=True, kw_only=True)
class BenchRequest(Selection):
    """What `kernelbench bench` is asked. candidates: TARGET, or NAME=TARGET. against, args, inputs,
    oracle, imports, grad, max_error: see spec.Declaration. sizes: `M=1024,4096`. compile: whether
    the reference runs compiled, too. save: the file of a suite. measure: of the suite, by key.
    """

    candidates: tuple[str, ...] = ()
    against: str = ""
    args: str = ""
    sizes: tuple[str, ...] = ()
    grad: tuple[str, ...] = ()
    compile: bool = False
    inputs: str = ""
    oracle: str = ""
    imports: tuple[str, ...] = ()
    max_error: tuple[str, ...] = ()
    name: str = ""
    processes: int = 1
    save: Path | None = None
    out: Path = Path("results")
    timeout_s: float = 300.0
    dry_run: bool = False


def bench(request: BenchRequest, output: Output) -> int:
    """Prove the candidates right by the reference, time them together, store and show. Exit code 1
    where one is incorrect or failed, 130 or 143 where it was interrupted.

    Raises UsageError for functions, arguments and options that cannot be used.
    """
    declared = declaration_of(request)
    with waiting("importing the functions, and torch", output.waits):
        selection = replace(request, plugins=(*request.plugins, declared.as_json()))
        known = families.load(selection.plugins)
        cases = cases_of(request, declared)
    text = json.dumps(suite_of(declared, cases, request.processes), indent=2)
    loaded, jobs = asking.load(selection, known, f"{declared.name}.yaml", text=text)
    preflight.refuse(known[declared.name], [job.case for job in jobs])
    if request.save is not None:
        _hold_suite(request.save)
        moved = declared.from_folder(request.save.resolve().parent)
        facts = suite_of(moved, cases, request.processes)
        files.deliver(request.save, saved(facts, request.save))
    plan = Plan(loaded, jobs, selection)
    if request.dry_run:
        show_jobs([plan], output)
        return 0
    options = Options(timeout=request.timeout_s)
    return runs.measure([plan], options, request.out, output)


def declaration_of(request: BenchRequest) -> Declaration:
    """Raises UsageError for what does not go together."""
    if not request.against:
        raise UsageError("--against names the reference: --against my.py:reference")
    if not request.candidates and not request.compile:
        raise UsageError(
            "nothing to hold against the reference: name a function, my.py:fused, or --compile"
        )
    candidates = named(request.candidates)
    return Declaration(
        name=request.name or families.unlike(_name(next(iter(candidates), request.against))),
        against=request.against,
        candidates=candidates,
        args=request.args,
        grad=request.grad,
        compile=tuple(COMPILE) if request.compile else (),
        inputs=request.inputs,
        oracle=request.oracle,
        imports=request.imports,
        max_error=_errors(request.max_error, candidates),
    )


def _hold_suite(path: Path) -> None:
    """Raises UsageError for a file that is no suite's, whatever is in it."""
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"--save {path}: a suite's file ends in .yaml")
    if path.exists() and not path.read_bytes().startswith(HEAD.encode()):
        raise UsageError(f"--save {path}: is there, and was not written by bench: name another")


def named(targets: Sequence[str]) -> dict[str, str]:
    """Candidates by name: `fast=my.py:fused`, or what the target is called, with its file's name
    before it where two are called alike."""
    found: dict[str, str] = {}
    for target in targets:
        match = re.match(r"([A-Za-z_][\w-]*)=(.+)", target)
        name, text = (match[1], match[2]) if match else (_name(target), target)
        if name in found:
            place = Path(text.partition(":")[0]).stem
            name = f"{_name(place)}_{name}"
        if name in found:
            raise UsageError(f"{target}: a second candidate {name!r}: say NAME={text}")
        found[name] = text
    return found


def _name(target: str) -> str:
    """`my.py:ops.Model(dim=3)` → `ops_Model`."""
    bare = target.partition("(")[0]
    last = bare.rpartition(":")[2] if ":" in bare else bare.removesuffix(".pt2")
    last = last.rpartition(".")[2] if last.startswith("torch.ops.") else last
    return word_of(last)


def _errors(options: Sequence[str], candidates: Mapping[str, str]) -> dict[str, float]:
    """`0.05`, of every candidate, or `fused=0.05`."""
    errors: dict[str, float] = {}
    for option in options:
        name, equals, text = option.rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 < value < 1:
            raise UsageError(
                f"--max-error {option}: a relative error such as 0.05, or NAME=0.05 for one"
            )
        errors |= {name: value} if equals else dict.fromkeys(candidates, value)
    return errors


def cases_of(request: BenchRequest, declared: Declaration) -> dict[str, Any]:
    """The values of every axis of its cases, a list of one without its brackets. Raises UsageError
    for arguments and sizes that do not fit."""
    make = find(declared.inputs, declared.imports) if declared.inputs else None
    arguments = grammar.parse(declared.args, takes(make))
    axes = grammar.with_sizes(arguments, grammar.sizes_of(request.sizes))
    return {name: _bare(values) for name, values in {**axes, "dtype": arguments.dtypes}.items()}


def suite_of(declared: Declaration, cases: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """A suite of one family, as plain data."""
    function = {
        key: _bare(value) if isinstance(value, tuple) else value
        for key, value in vars(declared).items()
        if key != "name" and value
    }
    modes = ["fwd", "bwd"] if declared.grad else ["fwd"]
    return {
        "name": declared.name,
        "functions": {declared.name: function},
        **({"measure": {"processes": processes}} if processes > 1 else {}),
        "families": {declared.name: {"modes": modes, "cases": [cases]}},
    }


def _bare(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else list(values)


def saved(facts: Mapping[str, Any], path: Path) -> str:
    """The YAML of a suite."""
    import yaml

    text = yaml.safe_dump(facts, sort_keys=False, default_flow_style=None, width=98)
    return f"{HEAD} {path.name}\n{text}"
