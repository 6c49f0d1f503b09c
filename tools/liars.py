"""The tables of docs/liars.md, from the registry of tests/plugins/liars.py."""

import importlib.util
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cog

PLUGIN = Path(__file__).parent.parent / "tests/plugins/liars.py"


def _plugin() -> Any:
    """The plugin, which is called like this file."""
    spec = importlib.util.spec_from_file_location("liars_plugin", PLUGIN)
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


liars = _plugin()

WHERE = {"any": "", "cpu": " (CPU)", "gpu": " (GPU)"}


def _kinds() -> dict[str, list[Any]]:
    """All liars: those that get away, those that nothing catches yet, and the others."""
    found: dict[str, list[Any]] = {"away": [], "waits": [], "vain": [], "caught": []}
    for each in liars.LIARS.values():
        if each.caught is None:
            kind = "away"
        elif each.waits:
            kind = "waits"
        else:
            kind = "vain" if each.than or each.caught[0] == "ok" else "caught"
        found[kind].append(each)
    return found


def counts() -> None:
    """In one sentence: how many there are, and what becomes of them."""
    kinds = _kinds()
    said = [
        f"**{len(liars.LIARS)} mechanisms**: **{len(kinds['away'])} get away**",
        f"{len(kinds['caught'])} are caught",
        f"{len(kinds['vain'])} gain nothing by it",
    ]
    if kinds["waits"]:
        said.append(
            f"{len(kinds['waits'])} wait for `{kinds['waits'][0].needs}`, which is not there"
        )
    text = (
        f"{', '.join(said[:-1])}, and {said[-1]}. Beside them stand {len(liars.HONEST)} honest "
        "providers that look no better and must be left alone."
    )
    cog.outl(textwrap.fill(text, 100, break_on_hyphens=False))


def _row(*cells: str) -> None:
    cog.outl("| " + " | ".join(cells) + " |")


def _caught(each: Any) -> str:
    status, pattern = each.caught
    return f"`{status}`: {pattern.split('|')[0]}" if pattern else f"`{status}`"


def _table(entries: Iterable[Any]) -> None:
    _row("name", "what it does", "seen", "caught as", "by what")
    cog.outl("|---" * 5 + "|")
    for each in entries:
        what = each.cheats + WHERE[each.where]
        _row(f"`{each.name}`", what, each.seen, _caught(each), each.by)


def away() -> None:
    """Those that get away, and why."""
    _row("name", "what it does", "seen", "why nothing catches it")
    cog.outl("|---" * 4 + "|")
    for each in _kinds()["away"]:
        _row(f"`{each.name}`", each.cheats + WHERE[each.where], each.seen, each.by)


def waits() -> None:
    """Those for which something is to be merged."""
    if entries := _kinds()["waits"]:
        cog.outl("\n## What nothing catches yet\n")
        _table(entries)


def caught() -> None:
    """Those that are caught, and those that gain nothing."""
    kinds = _kinds()
    _table([*kinds["caught"], *kinds["vain"]])


def honest() -> None:
    """Those that must be left alone."""
    _row("name", "why one might doubt it")
    cog.outl("|---" * 2 + "|")
    for each in liars.HONEST.values():
        _row(f"`{each.name}`", each.looks)
