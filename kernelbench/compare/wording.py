"""A comparison in words: the text above and below the table, in every format."""

from collections import Counter
from collections.abc import Iterator

from kernelbench.compare.attribution import other_card
from kernelbench.compare.gate import KINDS as KINDS_OF_FINDINGS
from kernelbench.compare.noise import ASSUMED, ASSUMED_NS, CARD
from kernelbench.compare.rows import Change, Comparison, RowChange
from kernelbench.compare.sides import Side
from kernelbench.metrics import said

NOTABLE = (Change.broken, Change.slower, Change.faster, Change.fixed)
_NAMES = {
    "times, medians of a GPU's clock, L2 cold": "median_us",
    "change, of B's time against A's, with its 95 % interval; above 0 is slower": "speedup",
}
KINDS = said(_NAMES).removesuffix(".")


def title(comparison: Comparison) -> list[str]:
    """A line a side."""
    return [f"{name}: {_side(side)}" for name, side in (("A", comparison.a), ("B", comparison.b))]


def _side(side: Side) -> str:
    runs = f"{len(side.runs)} run{'s' * (len(side.runs) != 1)}"
    return f"{side.name} ({runs}, {', '.join(side.gpus)})"


def verdicts(comparison: Comparison) -> str:
    """`13 rows: 10 SAME, 3 UNSURE; no regression beyond 3 %`."""
    counts = Counter(row.verdict for row in comparison.rows)
    tally = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Change if counts[verdict])
    worse = sum(row.regression for row in comparison.rows)
    beyond = f"{worse or 'no'} regression{'s' * (worse > 1)}"
    if "slower" in comparison.gate.fails:
        beyond += f" beyond {comparison.limit_pct:g} %"
    if ignored := [kind for kind in KINDS_OF_FINDINGS if kind not in comparison.gate.fails]:
        beyond += f" ({', '.join(ignored)} not asked for)"
    if not comparison.one_gpu:
        beyond = "two GPUs: nothing slower is a regression"
        beyond += f"; {worse} worse otherwise" if worse else ""
    elif comparison.undecided:
        beyond += f", but only {comparison.judged} of {comparison.earlier} rows are judged"
    return f"{len(comparison.rows)} row{'s' * (len(comparison.rows) != 1)}: {tally}; {beyond}"


def notable_rows(comparison: Comparison) -> list[RowChange]:
    """What moved or broke, regressions first."""
    rows = [row for row in comparison.rows if row.verdict in NOTABLE]
    return sorted(rows, key=lambda row: (not row.regression, NOTABLE.index(row.verdict)))


def reasons(row: RowChange) -> str:
    """`this provider (baseline +0.1%; same source)`."""
    why = f" ({row.why})" if row.cause and row.why else row.why
    return f"{row.cause}{why}"


def untimed_lines(comparison: Comparison, *, regressed: bool) -> list[str]:
    """Why rows have no times to compare, where they did not break; a line a case and reason.

    regressed: those that fail the gate, or the others.
    """
    timed = (Change.same, Change.unsure, *NOTABLE)
    providers: dict[tuple[str, ...], list[str]] = {}
    for row in comparison.rows:
        if row.verdict not in timed and row.regression is regressed:
            key = (f"{row.verdict}  {row.family} {row.case}", row.why)
            providers.setdefault(key, []).append(row.provider)
    return [
        f"{head}  {', '.join(names)}{f': {why}' if why else ''}"
        for (head, why), names in providers.items()
    ]


def rows_of_both(comparison: Comparison) -> list[RowChange]:
    """The rows that both sides have."""
    return [row for row in comparison.rows if row.verdict not in (Change.new, Change.gone)]


def difference_lines(comparison: Comparison) -> list[str]:
    """`versions torch: 2.11.0 → 2.12.0`, first what can change an unchanged kernel's speed."""
    ordered = sorted(comparison.differences, key=lambda difference: not difference.system)
    return [
        f"{d.part if d.part == d.what else f'{d.part} {d.what}'}: {d.a or '—'} → {d.b or '—'}"
        for d in ordered
    ]


def notes(comparison: Comparison) -> list[str]:
    return list(_notes(comparison))


def _scatter(comparison: Comparison) -> str:
    """Where the noise from process to process is known from."""
    processes = [side.processes for side in (comparison.a, comparison.b)]
    assumed = f"{ASSUMED:.1%} and {ASSUMED_NS:g} ns a launch"
    if comparison.processes <= 1 and not comparison.noise_from:
        return (
            "Noise from process to process: one a side cannot tell, so it is assumed "
            f"({assumed}, modelled), with what each says of itself: its rounds, and its baseline "
            "against the baseline's second run. Several measure it: more runs a side, "
            "measure.processes=3, or earlier runs of this machine by --noise-from."
        )
    if comparison.processes <= 1:
        return (
            f"Noise from process to process: measured from {comparison.noise_from} earlier ones, "
            f"beside an assumption ({assumed}, modelled) that is worth eight more."
        )
    earlier = f", and {comparison.noise_from} earlier ones" if comparison.noise_from else ""
    return (
        f"Noise from process to process: measured from {processes[0]} + {processes[1]} of "
        f"them{earlier}, beside an assumption ({assumed}, modelled) that is worth eight more."
    )


def _processes_needed(comparison: Comparison) -> str:
    """How many more processes would decide the unsure rows, where any number would."""
    needed = sorted(row.more for row in comparison.rows if row.more is not None)
    if not needed:
        return "No number of processes that anybody runs would; a wider limit does."
    half, most = needed[(len(needed) - 1) // 2], needed[-1]
    unsure = sum(row.verdict is Change.unsure for row in comparison.rows)
    all_of = "all" if len(needed) == unsure else f"{len(needed)} of {unsure}"
    if half == most:
        return f"By what is known of it, {_processes(most)} would decide {all_of} of them."
    return (
        f"By what is known of it, {_processes(half)} would decide half of them, "
        f"{_processes(most)} {all_of}."
    )


def _processes(count: int) -> str:
    return f"{count} more process{'es' * (count > 1)} a side"


def _notes(comparison: Comparison) -> Iterator[str]:
    yield _scatter(comparison)
    if other_card(comparison.differences):
        yield (
            f"The sides ran on different cards of one model, which may lie {CARD:.1%} apart "
            "(assumed): every interval is wider by that."
        )
    if comparison.widened > 1.05:
        yield (
            f"Every interval is {comparison.widened:.1f} × as wide as that: rows that no change of "
            "ours can move lie that far apart."
        )
    if any(row.normalised is not None for row in comparison.rows):
        yield (
            "The SM clocks of some rows differ by more than 1 %. Where flops bound a row it is "
            "judged in cycles; any other counts as moved only if it did so in time and in cycles."
        )
    for side in (comparison.a, comparison.b):
        commits = {str((run.manifest.get("git") or {}).get("commit")) for run in side.runs}
        if len(commits) > 1:
            yield f"{side.name} holds runs of {len(commits)} commits, taken for one build here."
        if not all(run.manifest for run in side.runs):
            yield f"{side.name} has a run without manifest.json: versions are not compared."
    if any(row.verdict is Change.unsure for row in comparison.rows):
        yield (
            f"UNSURE: it may have moved, or lie within ± {comparison.limit_pct:g} %; the noise "
            f"does not tell. {_processes_needed(comparison)}"
        )
