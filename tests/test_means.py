"""Means over cases: who took part, how many, and the interval."""

import math
from typing import Any

import pytest

from kernelbench.report.means import _interval, common, mean

OTHERS = ("eager", "peer")


def row(case: str, provider: str, ratio: float = 1.0, **facts: Any) -> dict[str, Any]:
    role = {"ours": "triton_fused", "eager": "baseline", "unfused": "ablation"}.get(
        provider, "peer"
    )
    found = {"run_id": "r", "family": "f", "case": case, "provider": provider, "role": role}
    found |= {"accuracy": "exact", "status": "ok", "timer": "gated", "median_us": 9.0, "flags": ""}
    found |= {"noise_pct": 0.5}
    for column in ("speedup", "speedup_best"):
        found |= {column: ratio, f"{column}_lo": ratio / 1.1, f"{column}_hi": ratio * 1.1}
    return found | facts


def cases(ratios: dict[str, float], *providers: str, **facts: Any) -> list[dict[str, Any]]:
    return [
        row(name, who, ratio if who == "ours" else 1.0, **facts)
        for name, ratio in ratios.items()
        for who in ("ours", *providers)
    ]


def ours(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in rows if each["provider"] == "ours"]


def test_the_mean_and_its_interval_are_those_of_the_formula() -> None:
    rows = cases({"a": 2, "b": 8}, *OTHERS)
    found = mean(ours(rows), rows)
    assert found is not None
    arm = math.exp(math.log(1.1) / math.sqrt(2))
    assert (found.mid, found.lo, found.hi) == pytest.approx((4, 4 / arm, 4 * arm))
    assert (found.cases, found.range, found.opponents) == ("2 cases", (2, 8), OTHERS)


def test_it_is_over_the_cases_in_which_every_opponent_ran() -> None:
    rows = cases({"a": 1.1, "b": 1.2}, *OTHERS) + cases({"c": 4.0}, "eager")
    found = mean(ours(rows), rows)
    assert found is not None
    assert (found.cases, found.range) == ("2 of 3 cases", (1.1, 1.2))
    baseline_alone = mean(ours(rows), rows, "speedup")
    assert baseline_alone is not None
    assert baseline_alone.cases == "3 cases"


@pytest.mark.parametrize(
    "absent",
    [
        {"status": "incorrect"},
        {"timer": "ungated"},
        {"median_us": math.nan},
        {"accuracy": "approximate"},
        {"flags": "prepacked"},
        {"role": "ablation"},
        {"case": "z"},
        {"run_id": "another"},
    ],
)
def test_who_did_not_run_or_is_no_opponent_takes_no_part(absent: dict[str, Any]) -> None:
    rows = cases({"a": 1.1, "b": 1.2}, *OTHERS) + cases({"c": 4.0}, "eager")
    rows.append(row("c", "peer") | absent)
    found = mean(ours(rows), rows)
    assert found is not None
    assert found.cases == "2 of 3 cases"
    rows.append(row("c", "peer"))
    found = mean(ours(rows), rows)
    assert found is not None
    assert found.cases == "3 cases"


def test_one_case_has_no_mean_nor_have_those_without_a_common_one() -> None:
    rows = cases({"a": 2.0}, *OTHERS)
    assert mean(ours(rows), rows) is None
    rows = cases({"a": 2.0}, "one") + cases({"b": 2.0}, "two")
    assert mean(ours(rows), rows) is None
    rows = cases({"a": math.nan, "b": math.nan}, *OTHERS)
    assert mean(ours(rows), rows) is None
    assert mean([], rows) is None


def test_counts_of_faster_slower_equal_and_flagged() -> None:
    ratios = {"a": 1.5, "b": 0.6, "c": 1.003, "d": 1.05}
    rows = cases(ratios, *OTHERS)
    rows[3]["flags"] = "throttled:sw_power_cap"
    found = mean(ours(rows), rows)
    assert found is not None
    assert found.counts == {"faster": 1, "within noise": 2, "slower": 1, "flagged": 1}


def test_common_rows_are_of_cases_that_all_ran() -> None:
    rows = cases({"a": 2.0, "b": 3.0}, *OTHERS) + cases({"c": 4.0}, "eager")
    assert {each["case"] for each in common(rows)} == {"a", "b"}
    assert common([]) == []


def test_a_mean_is_no_surer_than_its_cases_whose_processes_agree_by_chance() -> None:
    """An arm that is one process's own, not Student's, is taken for 1.96 standard errors."""

    def case(name: str, arm: float) -> dict[str, Any]:
        return {"run_id": "r", "family": "f", "case": name, "s": 2.0, "s_lo": 2 / arm,
                "s_hi": 2 * arm, "s_each": "2;2.0001;1.9999"}  # fmt: skip

    found, processes = _interval([case(f"c{n}", 1.02) for n in range(4)], "s")
    assert processes == 3
    assert math.log(found[2] / found[0]) == pytest.approx(math.log(1.02) / 2, rel=0.02)
