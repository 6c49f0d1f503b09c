"""The sources of a family that was declared: its functions' files, and what makes a family of them.

The script imports the functions as modules, from the folder that its sources are unpacked in.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kernelbench.repro.needed import Needed
from kernelbench.source import reached
from kernelbench.spec import Declaration, Family, UsageError

FAMILY = '''"""A function and its reference, as they were declared."""

from kernelbench.families.functions import of_declaration
from kernelbench.spec import Declaration

FAMILY = of_declaration(declared=Declaration.from_json({text!r}))
'''


def sources(family: Family[Any], provider: str) -> tuple[dict[str, str], str]:
    """Text by path, and the module that has FAMILY.

    Raises UsageError for code that cannot be put into a script, and for two files of one name.
    """
    declared = Declaration.from_json(family.declared)
    candidates = {n: text for n, text in declared.candidates.items() if n == provider}
    errors = {name: value for name, value in declared.max_error.items() if name in candidates}
    declared = replace(declared, candidates=candidates, max_error=errors)
    modules, texts = _modules(declared)
    module = f"family_{family.name}".replace("-", "_").replace(".", "_")
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{module}.py"
        path.write_text(FAMILY.format(text=_by_module(declared, modules).as_json()))
        needed = Needed(path, module, device_code=False)
        needed.add({provider, family.baseline.name})
        files = needed.files()
    return {**files, **texts}, module


def _modules(declared: Declaration) -> tuple[dict[str, str], dict[str, str]]:
    """The module that each file is to be, and the text of every file by its place."""
    modules: dict[str, str] = {}
    texts: dict[str, str] = {}
    for text in _targets(declared):
        place = text if text.endswith(".pt2") else text.partition(":")[0]
        if place.endswith(".pt2"):
            raise UsageError(f"{place}: a compiled package cannot be put into a script")
        if not place.endswith(".py"):
            continue
        path = Path(place).resolve()
        modules[place] = path.stem
        for file in sorted(reached(path, path.parent)):
            if not file.is_relative_to(path.parent):
                continue  # of this package, and put there with it
            at, content = file.relative_to(path.parent).as_posix(), file.read_text("utf-8")
            if texts.setdefault(at, content) != content:
                raise UsageError(f"two files {at} of different folders: a script has one folder")
    return modules, texts


def _targets(declared: Declaration) -> list[str]:
    own = [declared.against, *declared.candidates.values(), declared.inputs, declared.oracle]
    return [text for text in (*own, *declared.imports) if text]


def _by_module(declared: Declaration, modules: Mapping[str, str]) -> Declaration:
    """With modules named where files were."""

    def renamed(text: str) -> str:
        place, colon, rest = text.partition(":")
        return f"{modules.get(place, place)}{colon}{rest}"

    return replace(
        declared,
        against=renamed(declared.against),
        candidates={name: renamed(text) for name, text in declared.candidates.items()},
        inputs=renamed(declared.inputs),
        oracle=renamed(declared.oracle),
        imports=tuple(renamed(text) for text in declared.imports),
    )
