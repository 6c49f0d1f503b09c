"""The page's first lines: is each of our kernels right, faster than the best other, and how near
the machine's limit is it?"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from kernelbench.metrics import kind_of
from kernelbench.report import means
from kernelbench.report.cases import anchor, record_anchor
from kernelbench.report.figures import Row, text
from kernelbench.report.means import mean
from kernelbench.report.panels import Panel, bad, with_number
from kernelbench.report.tables import figures
from kernelbench.spec import Status

NEAR = 90.0  # median % of ceiling from which a kernel is near its limit
NAMED = 2  # failed cases of one kind that are named
HEADS = (
    ("right?", kind_of("error_rel")),
    ("faster than the best other?", kind_of("speedup_best")),
    ("near this machine's limit?", kind_of("sol_pct")),
)
ABOUT = (
    "Right: within its error budget against the fp64 oracle, and nothing else wrong, of the cases "
    "that were not skipped.",
    "Faster: × best other in the geometric mean over the cases in which every opponent ran, with "
    "its 95 % interval; of one case, that case's. The best other is the fastest right provider of "
    "the same accuracy that is not ours, in the same job.",
    "% of ceiling: the time that this machine's measured limits allow for the modelled bytes and "
    f"flops, over the measured time; the median over cases, and their range. Near: {NEAR:.0f} % or "
    "more. The bar is ours, the line across it the best other's.",
)  # of each of HEADS


@dataclass(frozen=True)
class Note:
    """alarm: `bad` for what is wrong, `doubt` for what is doubtful."""

    text: str
    href: str = ""
    alarm: str = ""


@dataclass(frozen=True)
class Answer:
    """tone: good, bad, doubt or even, which its mark and word repeat. unit: of its value.

    meter: (% of ours, % of the best other or nothing), to be drawn as a bar.
    """

    tone: str
    word: str
    value: str = ""
    unit: str = ""
    notes: Sequence[Note] = ()
    meter: tuple[float, float | None] | None = None

    @property
    def mark(self) -> str:
        return {"good": "✓", "bad": "✗", "doubt": "!", "even": "–"}[self.tone]


@dataclass(frozen=True)
class CaseVerdict:
    """An answer to each of HEADS; for a CPU's run, to the first alone."""

    name: str
    provider: str
    run: str
    href: str
    answers: Sequence[Answer]


def verdicts(panels: Sequence[Panel]) -> list[CaseVerdict]:
    return [
        CaseVerdict(
            f"{panel.family} {panel.mode}",
            panel.provider,
            panel.run,
            f"#{anchor('family', str(panel.rows[0]['family']))}",
            [_right(panel), *([] if panel.rows[0]["smoke"] else [_faster(panel), _near(panel)])],
        )
        for panel in panels
    ]


def _right(panel: Panel) -> Answer:
    """Whether our kernel's cases are right; in a family without one, every provider's."""
    rows = panel.ours or panel.rows
    what = "case" if panel.ours else "record"
    tried = [row for row in rows if row["status"] != Status.skipped]
    notes = [*_failure_notes(rows)]
    if skipped := len(rows) - len(tried):
        notes.append(Note(f"{skipped} skipped"))
    if panel.ours:
        notes += _other_notes(panel.others)
    if not tried:
        return Answer("even", "not tried", notes=notes)
    wrong = bad(tried)
    fields = f"{len(tried) - len(wrong)} of {len(tried)}", f"{what}s", notes
    if not wrong:
        return Answer("good", "right", *fields)
    incorrect = any(row["status"] == Status.incorrect for row in wrong)
    return Answer("bad", "wrong" if incorrect else str(wrong[0]["status"]), *fields)


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _failure_notes(rows: Sequence[Row]) -> Iterator[Note]:
    """What failed and where; the first cases of each kind are named."""
    by_status: dict[str, list[Row]] = {}
    for row in bad(rows):
        by_status.setdefault(str(row["status"]), []).append(row)
    for status, failed in by_status.items():
        more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
        cases = ", ".join(text(row["case"]) for row in failed[:NAMED])
        yield Note(f"{status}: {cases}{more}", f"#{record_anchor(failed[0])}", "bad")


def _other_notes(rows: Sequence[Row]) -> Iterator[Note]:
    """Whether the other providers are right."""
    wrong = bad(rows)
    if wrong:
        counts = Counter((text(row["provider"]), str(row["status"])) for row in wrong)
        summary = ", ".join(f"{name} {n} {status}" for (name, status), n in counts.items())
        yield Note(f"others: {summary}", f"#{record_anchor(wrong[0])}", "doubt")
        return
    right = {text(row["provider"]) for row in rows if row["status"] == Status.ok}
    if right:
        yield Note(f"{_plural(len(right), 'other provider')} right")


def _faster(panel: Panel) -> Answer:
    compared = with_number(panel.ours, "speedup_best_lo")
    if not panel.ours:
        return Answer("even", "no kernel of ours")
    if not compared:
        return Answer("even", "no opponent", notes=[Note("of the same accuracy in the same job")])
    average = mean(compared, panel.rows)
    if average is None and len(compared) > 1:
        reason = Note("in no two cases did all opponents run")
        return Answer("even", "no mean", notes=[reason, *_outcome_notes(compared)])
    mid, lo, hi = (average.mid, average.lo, average.hi) if average else _single_case(compared[0])
    within = average.within if average else means.over_what(compared).partition(",")[0]
    of = f", mean of {average.cases.removesuffix(' cases')}" if average else ""
    interval = Note(f"95 %: {figures(lo, 4)} to {figures(hi, 4)} {within}{of}")
    notes = [interval, *_outcome_notes(compared)]
    return Answer(*_tone(lo, hi, compared), f"{figures(mid, 4)} ×", "the best other", notes)


def _single_case(row: Row) -> tuple[float, float, float]:
    return row["speedup_best"], row["speedup_best_lo"], row["speedup_best_hi"]


def _tone(lo: float, hi: float, rows: Sequence[Row]) -> tuple[str, str]:
    """No difference where the interval holds 1, or every case is within its noise."""
    if lo <= 1 <= hi or all(means.within_noise(row, "speedup_best") for row in rows):
        return "even", "no difference"
    counts = means.counts(rows)
    if lo > 1:
        return "good", "faster in the mean" if counts["slower"] else "faster"
    return "doubt", "slower in the mean" if counts["faster"] else "slower"


def _outcome_notes(rows: Sequence[Row]) -> Iterator[Note]:
    """The outcomes of all cases, also those outside the mean; the range against whom; and the
    number flagged."""
    counts = means.counts(rows)
    outcomes = {what: counts[what] for what in ("faster", "within noise", "slower") if counts[what]}
    single = len(outcomes) == 1
    summary = ", ".join(f"{'all' if single else count} {what}" for what, count in outcomes.items())
    best = _shares(Counter(text(row["best_other"]) for row in rows))
    if len(rows) == 1:
        yield Note(f"1 case, against {best}")
    else:
        low, high = (end(row["speedup_best"] for row in rows) for end in (min, max))
        yield Note(f"{len(rows)} cases: {summary}")
        yield Note(f"{figures(low)} to {figures(high)} × {best}")
    if counts["flagged"]:
        yield Note(f"{counts['flagged']} flagged", alarm="doubt")


def _shares(names: Counter[str]) -> str:
    """`quack`, or `quack (7), liger (3)`: the number of cases of each, where there are several."""
    several = len(names) > 1
    return ", ".join(f"{name} ({n})" if several else name for name, n in names.most_common())


def _near(panel: Panel) -> Answer:
    compared = with_number(panel.ours, "sol_pct")
    if not compared:
        return Answer("even", "not known", notes=[Note("no ceiling was measured, or no time")])
    mid = median(row["sol_pct"] for row in compared)
    theirs = with_number([o for row in compared if (o := panel.best_other(row))], "sol_pct")
    other = median(row["sol_pct"] for row in theirs) if theirs else None
    bound = _shares(Counter(text(row["bound"]) for row in compared))
    notes = [Note(f"{_range(compared)}, bound by {bound}")]
    if other is not None:
        spread = f", {_range(theirs)}" if len(theirs) > 1 else ""
        notes.append(Note(f"best other {figures(other)} %{spread}"))
    tone, word = ("good", "near") if mid >= NEAR else ("even", "not near")
    return Answer(tone, word, f"{figures(mid)} %", "of ceiling", notes, (mid, other))


def _range(rows: Sequence[Row]) -> str:
    """`85.4 to 101 % over 15 cases`."""
    shares = [row["sol_pct"] for row in rows]
    if len(shares) == 1:
        return "1 case"
    return f"{figures(min(shares))} to {figures(max(shares))} % over {len(shares)} cases"
