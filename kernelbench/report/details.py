"""The full details of failures, for the author of a provider."""

from collections.abc import Sequence

from kernelbench.spec import RunRecord

MORE = "-v shows more of what went wrong"


def details(records: Sequence[RunRecord]) -> list[str]:
    """The lines of every record's `detail`, each after an empty line; cases share a detail."""
    groups: dict[tuple[str, str, str], list[RunRecord]] = {}
    for record in records:
        if record.detail:
            key = (record.family, record.provider, record.detail)
            groups.setdefault(key, []).append(record)
    lines = []
    for group in groups.values():
        first, others = group[0], len(group) - 1
        also = f" and {others} other case{'s' * (others > 1)}" if others else ""
        lines += ["", f"{first.family}/{first.case}{also} {first.provider}: {first.status}"]
        lines += [f"    {line}".rstrip() for line in first.detail.splitlines()]
    return lines
