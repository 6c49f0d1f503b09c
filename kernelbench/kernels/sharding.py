"""How DTensor may shard what the operators take: rules of torch.distributed.tensor.

A rule says along which axis each result and each tensor of an operator may be cut: an axis, WHOLE
on every rank, PARTIAL sums, or None for what is no tensor here. Whole everywhere is always allowed.
The rules are registered when the first DTensor arrives: importing DTensor takes half a second.
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
    """Register rule(*arguments), which yields ways to cut: of the results, and of the arguments
    that may be tensors."""
    _RULES[operator] = rule


def optional(tensor: Any, cut: Cut) -> Cut:
    """The cut of a tensor that may be left out."""
    return None if tensor is None else cut


def needed_cut(result: Any, cut: Cut) -> Cut:
    """The cut of a result; one that is not needed has no elements, and is whole."""
    return cut if result else WHOLE


@cache
def announce() -> None:
    """Register the rules with DTensor."""
    from torch.distributed.tensor.experimental import register_sharding

    for operator, rule in _RULES.items():
        register_sharding(operator._opoverload)(partial(_placements, rule))


def _placements(rule: Rule, *arguments: Any) -> list[tuple[list[Any], list[Any]]]:
    from torch.distributed.tensor import Partial, Replicate, Shard

    def placed(cuts: Sequence[Cut], count: int) -> list[Any]:
        placements = {WHOLE: Replicate(), PARTIAL: Partial(), None: None}
        placed_cuts = [Shard(cut) if isinstance(cut, int) else placements[cut] for cut in cuts]
        return placed_cuts + [None] * (count - len(placed_cuts))

    ways = list(rule(*arguments))
    results, argument_cuts = ways[0]
    replicated = [WHOLE] * len(results), [optional(cut, WHOLE) for cut in argument_cuts]
    return [
        (placed(out, len(out)), placed(cut, len(arguments))) for out, cut in (replicated, *ways)
    ]
