"""`kernelbench new`: files to begin with, complete and right, to be edited.

They are made from the templates beside this file; docs/add-a-family.md shows the family's.
"""

import importlib.metadata
import keyword
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from string import Template

from kernelbench import files
from kernelbench.report.progress import Output
from kernelbench.spec import UsageError
from kernelbench.verbs import list as listing


@dataclass(frozen=True, kw_only=True)
class FamilyRequest:
    """What `kernelbench new family` is asked. out: the folder of the files, made where need be."""

    name: str
    out: Path = Path()


def family(request: FamilyRequest, output: Output) -> int:
    """Write a family and its test, and say what to run next.

    Raises UsageError for a name that no family can have, for files that are there already and for
    a folder that cannot be made; UnwritableError for files that cannot be written.
    """
    name, out = request.name, request.out
    _refuse(name)
    texts = {out / f"{name}.py": family_text(name), out / f"test_{name}.py": test_text(name)}
    for path in texts:
        if path.exists() or path.is_symlink():
            raise UsageError(
                f"{path}: it is there already, and stays; choose another name, or another --out"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be made ({error.strerror})") from None
    for path, text in texts.items():
        files.write(path, text)
    file, test = (shlex.quote(str(path)) for path in texts)
    output.say(f"{file}: a family, complete: it computes a softmax until you edit it")
    output.say(f"{test}: its test")
    output.say("next:")
    output.say(f"  kernelbench check --plugin {file} --family {name}")
    output.say(f"  python -m pytest {test}")
    return 0


def family_text(name: str) -> str:
    """The file of a family of this name."""
    parts = (part[:1].upper() + part[1:] for part in name.split("_"))
    return _filled("family", name=name, case=f"{''.join(parts)}Case")


def test_text(name: str) -> str:
    """The test of that file, beside it."""
    return _filled("test", name=name)


def _filled(template: str, **words: str) -> str:
    path = Path(__file__).with_name(f"{template}.template")
    return Template(path.read_text(encoding="utf-8")).substitute(words)


def _refuse(name: str) -> None:
    """Raises UsageError for a name that is no module's, or that is taken."""
    if not name.isidentifier() or keyword.iskeyword(name) or not name[0].isalpha():
        raise UsageError(
            f"{name!r}: not the name of a Python module: letters, digits and underscores, a letter "
            "first, and no keyword, such as my_softmax"
        )
    if name in listing.names():
        raise UsageError(
            f"{name!r}: there is a family of that name already (kernelbench list --family {name}); "
            "choose another"
        )
    if name in {*sys.stdlib_module_names, *importlib.metadata.packages_distributions()}:
        raise UsageError(f"{name!r}: the name of a module that is installed; choose another")
