"""The verb `list` without a suite: the families that there are, their axes and providers.

What kernelbench itself ships is told by a file that is generated (`make schema`), so that nothing
of torch is imported; plugins, and families that were edited since, are asked themselves.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from kernelbench import families
from kernelbench.report import catalogue
from kernelbench.report.catalogue import Facts
from kernelbench.spec import UsageError, suggest

SHIPPED = Path(__file__).parent.parent / "families.json"


def show_families(
    names: Sequence[str], plugins: tuple[str, ...], console: Console, as_json: bool
) -> None:
    """Every family, or those of these names. Raises UsageError for a name that none has."""
    known = {facts["name"]: facts for facts in _facts(plugins)}
    for name in names:
        if name not in known:
            raise UsageError(f"--family: no family {name!r}{suggest(name, known)}")
    shown = [facts for name, facts in known.items() if not names or name in names]
    catalogue.show(shown, console, as_json)


def asked(plugins: tuple[str, ...] = ()) -> list[Facts]:
    """Of the families themselves, which import torch."""
    return [catalogue.facts_of(family) for family in families.load(plugins).values()]


def text() -> str:
    """What the generated file holds: the families, and the source that they were made from."""
    return json.dumps({"source": families.fingerprint(), "families": asked()}, indent=1) + "\n"


def _facts(plugins: tuple[str, ...]) -> list[Facts]:
    if plugins or families.installed():
        return asked(plugins)
    kept = json.loads(SHIPPED.read_text(encoding="utf-8"))
    found: list[Facts] = kept["families"]
    return found if kept["source"] == families.fingerprint() else asked()
