"""What fails a comparison, and how much it must decide to pass."""

import re
from dataclasses import dataclass

from kernelbench.spec import UsageError

LIMIT_PCT = 3.0
LEAST_PCT = 90.0
MOST_PCT = 1000.0
KINDS = ("slower", "broken", "gone", "unjudged")
FAIL_ON = f"slower:{LIMIT_PCT:g}%,broken,gone,unjudged"
_SLOWER = re.compile(r"slower:([0-9]+(?:\.[0-9]+)?)%")


@dataclass(frozen=True)
class Gate:
    """limit_pct: a change within ± this much counts as no change.

    fails: kinds of findings that fail it, of KINDS: a row that is slower by more than the limit,
    that was right and is not, that is not there any more, or whose times can no longer be judged.
    least_pct: of the rows that the earlier side has times of, how many must be judged.
    """

    limit_pct: float = LIMIT_PCT
    fails: frozenset[str] = frozenset(KINDS)
    least_pct: float = LEAST_PCT


def gate_of(fail_on: str, least: str = f"{LEAST_PCT:g}%") -> Gate:
    """`slower:3%,broken` and `90%` → a gate.

    Raises UsageError for anything else.
    """
    limit, fails = LIMIT_PCT, set[str]()
    for word in map(str.strip, fail_on.split(",")):
        kind = word.partition(":")[0]
        match = _SLOWER.fullmatch(word)
        if kind in fails:
            raise UsageError(f"--fail-on: {kind} stands twice in {fail_on!r}: name it once")
        if match and 0 < float(match[1]) <= MOST_PCT:
            limit = float(match[1])
        elif kind == "slower" or kind not in KINDS:
            raise UsageError(
                f"--fail-on: {word!r} is none of {', '.join(KINDS)}, where slower is "
                f"slower:PERCENT%, above 0 and at most {MOST_PCT:g}. By default {FAIL_ON}"
            )
        fails.add(kind)
    share = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)%?", least.strip())
    if not share or not 0 <= float(share[1]) <= 100:
        raise UsageError(f"--least: {least!r} is no percentage from 0% to 100%")
    return Gate(limit, frozenset(fails), float(share[1]))
