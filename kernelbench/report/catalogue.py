"""`kernelbench list`: the families, with their axes and providers."""

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.table import Table

from kernelbench.spec import Axis, Family, Provider

Facts = dict[str, Any]  # of one family, as JSON


def show(families: Sequence[Facts], console: Console, as_json: bool) -> None:
    """Two tables a family, or JSON."""
    if as_json:
        print(json.dumps(families))
        return
    for family in families:
        console.print(f"{family['name']}: {family['title']}", style="bold", highlight=False)
        axes = _table("axis", "type", "default", "meaning")
        for axis in family["axes"]:
            default = "required" if axis["required"] else str(axis["default"])
            axes.add_row(
                axis["name"], " ".join(axis["values"]) or axis["type"], default, axis["doc"]
            )
        console.print(axes)
        console.print()
        providers = _table("provider", "role", "accuracy", "requires")
        for provider in family["providers"]:
            words = [provider[key] for key in ("name", "role", "accuracy")]
            providers.add_row(*words, ", ".join(provider["requires"]))
        console.print(providers)
        console.print()


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def _values(axis: Axis) -> list[str]:
    return [str(value) for value in axis.type] if issubclass(axis.type, StrEnum) else []


def facts_of(family: Family[Any]) -> Facts:
    """What `list` prints of a family."""
    return {
        "name": family.name,
        "title": family.title,
        "axes": [_axis(axis) for axis in family.case.axes()],
        "providers": [_provider(provider) for provider in family.providers],
    }


def _axis(axis: Axis) -> dict[str, Any]:
    return {
        "name": axis.name,
        "type": axis.type.__name__,
        "values": _values(axis),
        "required": axis.required,
        "default": None if axis.required else axis.default,
        "doc": axis.doc,
    }


def _provider(provider: Provider[Any]) -> dict[str, Any]:
    return {
        "name": provider.name,
        "role": provider.role.value,
        "accuracy": provider.accuracy.value,
        "requires": list(provider.requires),
    }
