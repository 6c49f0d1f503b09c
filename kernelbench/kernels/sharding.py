"""How DTensor may shard what the operators take: rules of torch.distributed.tensor.

A rule says, of an operator's arguments, along which axis each result and each tensor may be cut: an
axis, WHOLE on every rank, PARTIAL sums, or None for what is no tensor here. Whole everywhere is
always allowed. Rules are handed to DTensor when the first one arrives: importing it takes half a
second.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, Final

WHOLE: Final = "whole"
PARTIAL: Final = "partial"
Cut = int | str | None
Ways = Iterator[tuple[Sequence[Cut], Sequence[Cut]]]
Rule = Callable[..., Ways]

_RULES: dict[Any, Rule] = {}


def sharded(operator: Any, rule: Rule) -> None:
    """rule(*arguments): ways to cut, each of results and of the arguments that may be tensors."""
    _RULES[operator] = rule


def optional(tensor: Any, cut: Cut) -> Cut:
    """The cut of a tensor that may be left out."""
    return None if tensor is None else cut


def wanted(result: Any, cut: Cut) -> Cut:
    """The cut of a result; one that was not wanted has no elements, and is whole."""
    return cut if result else WHOLE


@cache
def announce() -> None:
    """Hand the rules to DTensor."""
    from torch.distributed.tensor.experimental import register_sharding

    for operator, rule in _RULES.items():
        register_sharding(operator._opoverload)(partial(_placements, rule))


def _placements(rule: Rule, *arguments: Any) -> list[tuple[list[Any], list[Any]]]:
    from torch.distributed.tensor import Partial, Replicate, Shard

    def placed(cuts: Sequence[Cut], count: int) -> list[Any]:
        known = {WHOLE: Replicate(), PARTIAL: Partial(), None: None}
        found = [Shard(cut) if isinstance(cut, int) else known[cut] for cut in cuts]
        return found + [None] * (count - len(found))

    ways = list(rule(*arguments))
    results, given = ways[0]
    whole = [WHOLE] * len(results), [optional(cut, WHOLE) for cut in given]
    return [(placed(out, len(out)), placed(cut, len(arguments))) for out, cut in (whole, *ways)]
