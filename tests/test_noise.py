"""How often a table is called that did not move, and a row found that did. Simulated.

Processes of one build scatter by a standard deviation, as Gaussian or as Student's t of 3 degrees
of freedom, scaled to it. Rows are of 100 µs and more, so that launches do not rule them.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kernelbench.compare import noise
from kernelbench.compare.decision import Decided, decide, more
from kernelbench.numbers.significance import assumed_p, t_reach

LAWS = ("gaussian", "t3")
WITHIN = 0.0005  # of a run's own median


def drawn(law: str, size: tuple[int, ...], sd: float, random: np.random.Generator) -> np.ndarray:  # type: ignore[type-arg]
    if law == "gaussian":
        return random.normal(0, sd, size)
    return random.standard_t(3, size) / math.sqrt(3) * sd


def table(
    law: str, rows: int, processes: int, sd: float, random: np.random.Generator,
    planted: float = 0.0, earlier: int = 0, kinds: int = 6,
) -> Decided:  # fmt: skip
    """A comparison of so many rows; the first one moved by `planted`."""
    a, b = drawn(law, (2, rows, processes), sd, random)
    b[0] += math.log1p(planted)
    past = drawn(law, (rows, earlier), sd, random)
    variance = noise.ASSUMED**2 + WITHIN**2
    spreads = [
        noise.Spread(
            kind=str(n % kinds),
            a=tuple(a[n]),
            b=tuple(b[n]),
            variances=(variance,) * (2 * processes),
            least=WITHIN**2,
            earlier=(tuple(past[n]),) if earlier else (),
        )
        for n in range(rows)
    ]
    moves = b.mean(axis=1) - a.mean(axis=1)
    return decide(spreads, [(move, move) for move in moves.tolist()])


def share(
    law: str, rows: int, processes: int, sd: float, tables: int, planted: float = 0.0,
    earlier: int = 0,
) -> float:  # fmt: skip
    """Of so many tables, those with any call; with something planted, those that found it."""
    random = np.random.default_rng([LAWS.index(law), rows, processes, round(sd * 1e4), tables])
    hits = 0
    for _ in range(tables):
        called = table(law, rows, processes, sd, random, planted, earlier).moved
        hits += bool(called[0] if planted else called.any())
    return hits / tables


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("sd", [0.002, 0.005, 0.01])
@pytest.mark.parametrize("law", LAWS)
def test_a_table_of_13_rows_that_did_not_move_is_called_in_at_most_5_percent(
    law: str, sd: float, processes: int
) -> None:
    assert share(law, 13, processes, sd, 400) <= 0.05


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("law", LAWS)
def test_neither_is_one_of_247_rows(law: str, processes: int) -> None:
    assert share(law, 247, processes, 0.01, 60) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("sd", [0.005, 0.01])
@pytest.mark.parametrize("law", LAWS)
def test_neither_is_one_of_247_rows_in_many(law: str, sd: float, processes: int) -> None:
    assert share(law, 247, processes, sd, 1000) <= 0.05


@pytest.mark.parametrize(("rows", "tables"), [(13, 200), (247, 40)])
@pytest.mark.parametrize("law", LAWS)
def test_5_percent_is_found_at_half_a_percent_of_noise(law: str, rows: int, tables: int) -> None:
    assert share(law, rows, 3, 0.005, tables, planted=0.05) >= 0.95


@pytest.mark.parametrize("law", LAWS)
def test_single_runs_find_it_where_earlier_ones_tell_the_noise(law: str) -> None:
    assert share(law, 13, 1, 0.005, 200, planted=0.05) <= 0.2  # by the assumption alone
    assert share(law, 13, 1, 0.003, 200, planted=0.05, earlier=6) >= 0.85
    assert share(law, 13, 1, 0.01, 400, earlier=6) <= 0.08  # estimated from six


def test_the_probability_of_two_values_is_the_larger_of_both_laws() -> None:
    random = np.random.default_rng(1)
    for law in LAWS:
        one, two = drawn(law, (2, 400_000), 1.0, random)
        apart = np.abs(one - two)
        for size in (0.5, 1.0, 2.0, 4.0, 8.0):
            seen = float((apart > size).mean())
            assert seen <= float(assumed_p(np.array(size))) * 1.02 + 1e-4
    ends: Sequence[float] = [float(assumed_p(np.array(x))) for x in (0.0, 2.0, 16.0)]
    assert ends == pytest.approx([1.0, math.erfc(1.0), 2.109e-4], rel=1e-3)


@pytest.mark.parametrize(
    ("now", "size", "reach", "limit", "found"),
    [
        (1, 0.0, 0.06, 0.03, 3),  # a quarter of the variance
        (3, 0.0, 0.03, 0.02, 4),
        (3, 0.05, 0.06, 0.03, 2),  # until 0 lies outside
        (1, 0.03, 0.04, 0.03, None),  # on the limit nothing decides
        (1, 0.0, math.inf, 0.03, None),
        (1, 0.0, 1.0, 0.03, None),  # more than anybody runs
    ],
)
def test_how_many_more_would_decide(
    now: int, size: float, reach: float, limit: float, found: int | None
) -> None:
    one = np.array([0.9])
    error = np.array([reach / t_reach(noise.ASSUMED_RUNS)])
    assert more(now, size, limit, Decided(error, one, one, error, 0.0, np.zeros(1)), 0) == found


def test_no_number_of_processes_decides_what_two_cards_may_differ_by() -> None:
    error, p = np.array([0.001, 0.025]), np.array([0.9, 0.9])
    decided = Decided(error, p, p, error, 0.01 * math.sqrt(2), np.zeros(2))
    assert more(3, 0.005, 0.03, decided, 0) is None  # ± 2.8 % stay
    alike = Decided(error, p, p, error, 0.0, np.zeros(2))
    assert more(3, 0.005, 0.03, alike, 0) == 1
    alone = Decided(error[1:], p[1:], p[1:], error[1:], 0.0, np.zeros(1))
    assert (more(3, 0.04, 0.03, alike, 1) or 0) > (more(3, 0.04, 0.03, alone, 0) or 0)
    called = replace(alike, adjusted=np.array([0.01, 0.9]))  # the other one is, so it is easier
    assert more(3, 0.04, 0.03, called, 1) == more(3, 0.04, 0.03, alone, 0)


def test_the_table_of_the_documentation_is_what_is_simulated() -> None:
    with (Path(__file__).parent.parent / "docs" / "compare.csv").open(newline="") as file:
        told = {(r["law"], r["rows"], r["processes_a_side"], r["noise_pct"]): r["found_pct"]
                for r in csv.DictReader(file)}  # fmt: skip
    for law in LAWS:
        size = float(told[law, "13", "3", "0.5"]) / 100
        assert share(law, 13, 3, 0.005, 100, size) >= 0.95
        assert share(law, 13, 3, 0.005, 100, size * 0.7) < 0.95
