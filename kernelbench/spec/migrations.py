"""How a line of an older schema becomes one of the next: schema → function of its JSON object.

A function returns the new object, and invents nothing: a fact that was not taken then stays
missing. Lines of a schema that is not in the table are named and left out.
"""

from collections.abc import Callable, Mapping
from typing import Any

from kernelbench.spec.errors import KernelbenchError

Facts = dict[str, Any]
Migrations = Mapping[int, Callable[[Facts], Facts]]


def _first_method(facts: Facts) -> Facts:
    """Schema 1 had no `method`: it was the first, or, where the order of rounds was drawn already,
    one between it and the second that has no number."""
    drawn = "places" in (facts.get("timing") or {})
    return {**facts, "method": 0 if drawn else 1}


def _as_it_is(facts: Facts) -> Facts:
    """Schema 2 knew nothing of `messages`, schema 3 nothing of `graph_nodes`."""
    return facts


RECORDS: dict[int, Callable[[Facts], Facts]] = {1: _first_method, 2: _as_it_is, 3: _as_it_is}
MEASURED: dict[int, Callable[[Facts], Facts]] = {}


def migrate(facts: Facts, schema: int, migrations: Migrations) -> Facts:
    """An object of `schema`, step by step.

    Raises KernelbenchError for one that is newer, and for one that nothing can turn into it.
    """
    version = int(facts["schema"])
    if version > schema:
        raise KernelbenchError(
            f"schema {version}, this version reads schema {schema}: upgrade kernelbench to read it"
        )
    while version < schema:
        if version not in migrations:
            raise KernelbenchError(
                f"schema {version}, this version reads schema {schema} and cannot turn one into "
                "the other: report it with the version that wrote it"
            )
        version += 1
        facts = {**migrations[version - 1](facts), "schema": version}
    return facts
