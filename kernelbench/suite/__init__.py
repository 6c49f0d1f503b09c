"""YAML → jobs. Strict: all errors of a file at once, each as `file:line:col: message`.

    name: my-sweep                  # [A-Za-z0-9_.-]+, the only key required besides `families`
    description: what it is for
    device: auto                    # auto, cpu, cuda
    gpu: H200                       # the GPU that its sizes were made for; or, for fanout:
    # gpus: [A100, H100]            # every job on each
    # executor: {partition: gpu}    # where: docs/scale.md
    defaults: {dtype: [bf16, fp16]} # axes of every family that has them
    measure: {max_seconds: 1}       # fields of spec.Measure
    families:
      rms_norm:
        providers: [eager, triton_fused]      # all, if not given
        modes: [fwd, bwd]                     # axis `mode` of the blocks below
        cases:
          - {M: 4096, N: [1024, 2048]}        # a cartesian grid; a scalar is a list of one
          - label: Small (single frame)
            zip: true                         # lock-step; lists of equal length, scalars repeat
            M: [16, 32]
            N: [384, 768]
            providers: eager                  # of this block alone

    functions:                      # families made of a function and its reference
      mine: {against: my.py:reference, candidates: {fused: my.py:fused}, args: "x=MxN:bf16"}

A block's axis comes before the family's `modes`, and that before `defaults`; a zipped block is
crossed with what it inherits. Providers are measured in the family's order. A case that stands
twice is one job, with its first label and the providers of both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernelbench.spec import Declaration, Job, Measure, UsageError
from kernelbench.suite.choose import find, narrow, shipped
from kernelbench.suite.executor import Executor
from kernelbench.suite.expand import expand, measure_of
from kernelbench.suite.grammar import Families, check, json_schema, shown
from kernelbench.suite.reader import Node, Problem, Where, read, read_file, read_option, refusal

__all__ = ["Executor", "Suite", "declared", "find", "json_schema", "load", "narrow", "shipped"]


@dataclass(frozen=True)
class Suite:
    """What one YAML file asks for."""

    name: str
    description: str
    device: str  # auto, cpu or cuda
    gpu: str  # the GPU it was made for, or empty
    jobs: tuple[Job, ...]
    text: str  # the YAML as it was read, without overrides
    path: Path
    gpus: tuple[str, ...] = ()  # those on which a fan-out runs it; else that one, if any
    executor: Executor = field(default_factory=Executor.default)


def load(
    path: str | Path,
    families: Families,
    *,
    overrides: Sequence[str] = (),
    text: str | None = None,
) -> Suite:
    """Read a suite. Raises UsageError with every error of the file, and nothing else.

    overrides: `key=value` with a dotted key (`measure.max_seconds=1`, `families.rms_norm.modes=
    [fwd]`, `families.rms_norm.cases.0.M=128`) and a YAML value, set before anything is checked.
    text: the YAML, when it was kept elsewhere; `path` then only names it in errors.
    """
    path = Path(path)
    text = read_file(path) if text is None else text
    root = _overridden(_root(text, str(path)), overrides)
    problems_at = check(root, families)
    bad = [loc for loc, _ in problems_at]
    problems = [problem for _, problem in problems_at]
    measure, wrong = Measure(), list[Problem]()
    if not any(loc[:1] == ("measure",) for loc in bad):
        measure, wrong = measure_of(root)
    jobs, more = expand(root, families, measure, bad)
    problems += wrong + more
    if problems:
        raise refusal(problems)
    data = root.plain()
    return Suite(
        name=data["name"],
        description=data.get("description", ""),
        device=data.get("device", "auto"),
        gpu=data.get("gpu", ""),
        gpus=_gpus(data),
        executor=Executor.model_validate(data.get("executor", {})),
        jobs=tuple(jobs),
        text=text,
        path=path,
    )


def declared(path: str | Path, overrides: Sequence[str] = ()) -> tuple[str, ...]:
    """The families that a suite declares under `functions`, each as a plugin of a run; files in it
    are named from its folder. What is wrong with its other keys is left to `load`.

    Raises UsageError with every error of its declarations.
    """
    path = Path(path)
    root = _overridden(_root(read_file(path), str(path)), overrides)
    if not isinstance(root.value, dict) or "functions" not in root.value:
        return ()
    problems = [p for loc, p in check(root, {}) if loc[:1] == ("functions",)]
    if problems:
        raise refusal(problems)
    plugins, functions = [], root.plain()["functions"]
    for name, facts in functions.items():
        try:
            declaration = Declaration.of(name, facts)
        except UsageError as error:
            raise refusal([Problem(root.spot(("functions", name)), str(error))]) from None
        plugins.append(declaration.moved(path.parent).as_json())
    return tuple(plugins)


def _gpus(data: Mapping[str, Any]) -> tuple[str, ...]:
    many = data.get("gpus", [data["gpu"]] if data.get("gpu") else [])
    return tuple(dict.fromkeys(many if isinstance(many, list) else [many]))


def _root(text: str, source: str) -> Node:
    root = read(text, source)
    if root.value is None:
        raise refusal([Problem(Where(source, 1, 1), "empty; a suite has a name and families")])
    if not isinstance(root.value, dict):
        message = f"a suite is a mapping with a name and families, got {shown(root.value)}"
        raise refusal([Problem(root.where, message)])
    return root


def _overridden(root: Node, overrides: Sequence[str]) -> Node:
    errors = []
    for option in overrides:
        try:
            path, value = read_option(option)
            root = root.put(path, value)
        except ValueError as error:
            key = option.partition("=")[0].strip()
            errors.append(f"--set {key}: {error}")
        except UsageError as error:
            errors.append(str(error))
    if errors:
        raise UsageError("\n".join(errors))
    return root
