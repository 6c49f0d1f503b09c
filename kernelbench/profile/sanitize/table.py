"""What compute-sanitizer found, as a table that reads well at 100 columns, and as JSON."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kernelbench.profile.sanitize import Look

WIDTH = 100
HEADS = (("tool", 9), ("kernel", 26), ("line", 20), ("what", 30), ("count", 7))


def render(looks: Sequence[Look], console: Console) -> None:
    """Print the findings, below the case and provider that they are of; then what was not seen.
    At least 100 columns wide, so that a pipe cuts nothing."""
    narrow = console.width
    console.width = max(narrow, WIDTH)
    try:
        with_findings = sorted((look for look in looks if look.findings), key=_name)
        if with_findings:
            console.print(_grid([tuple(name for name, _ in HEADS)]))
        for name, part in groupby(with_findings, _name):
            console.print(Text(name, "cyan"), soft_wrap=True)
            console.print(_grid([row for look in part for row in _rows(look)]))
        for look in looks:
            if look.unseen:
                text = Text(f"{_name(look)}: {look.check} could not look: {look.unseen}", "yellow")
                console.print(text, soft_wrap=True)
    finally:
        console.width = narrow


def _rows(look: Look) -> Iterator[tuple[str, ...]]:
    for one in look.findings:
        yield look.check, one.kernel, one.line, one.kind, f"{one.count:,}"


def _grid(rows: Iterable[Sequence[str]]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, width in HEADS:
        grid.add_column(
            width=width, overflow="fold", justify="right" if name == "count" else "left"
        )
    for row in rows:
        grid.add_row(*map(Text, row))
    return grid


def _name(look: Look) -> str:
    return f"{look.family}/{look.case} {look.provider}"


def why(looks: Sequence[Look]) -> str:
    """Why the exit code is 1, in a line; nothing where all was looked at and nothing found."""
    with_findings = [look for look in looks if look.findings]
    unseen = [look for look in looks if look.unseen]
    if with_findings:
        count, first = sum(len(look.findings) for look in with_findings), with_findings[0]
        return (
            f"exit 1: {count} findings, the first {first.check} {_name(first)}: "
            f"{first.findings[0].kind}"
        )
    if unseen and len(unseen) == len(looks):
        return f"exit 1: nothing could be looked at: {unseen[0].unseen}"
    if unseen:
        return (
            f"exit 1: {len(unseen)} of {len(looks)} could not be looked at, the first "
            f"{unseen[0].check} {_name(unseen[0])}"
        )
    return "" if looks else "exit 1: there was nothing that could be looked at"


def as_json(look: Look) -> dict[str, Any]:
    """One look, with its findings."""
    return {
        "tool": look.check.value,
        "family": look.family,
        "provider": look.provider,
        "case": look.case,
        "findings": [asdict(one) for one in look.findings],
        "could_not_look": look.unseen,
        "notes": list(look.notes),
    }
