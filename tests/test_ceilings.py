"""What measured limits say about a call; the measuring itself needs a GPU."""

import json
from dataclasses import replace
from typing import Any

import pytest
from toy import BASELINE, CASE

from kernelbench.measure import ceilings
from kernelbench.measure.ceilings import Ceilings, Overhead, tighten, too_fast
from kernelbench.measure.probes import Probe
from kernelbench.measure.sampling import Batch
from kernelbench.spec import Cost, Distribution, DType, KernelbenchError, Timing

KNOWN = Ceilings(
    bandwidth={
        "read": ((1_000, 10.0), (1_000_000, 1_000.0), (100_000_000, 50_000.0)),
        "copy": ((1_000, 20.0), (1_000_000, 2_000.0), (100_000_000, 25_000.0)),
    },
    tflops={"bf16": 800.0, "int8": 1600.0, "fp8": 1200.0},
    overhead=Overhead(2_500, 2_900, "event time minus CUPTI span"),
    missing={"fp32": "no"},
)


def test_at_a_measured_footprint_the_rate_is_the_measured_one() -> None:
    found = KNOWN.at(Cost(0, 500_000, 500_000), {"bf16": 1.0})
    assert found["read_gbps"] == 1000.0  # bytes a ns
    assert found["copy_gbps"] == 500.0
    assert found["tflops"] == 800.0


def test_between_two_footprints_time_is_linear_in_bytes() -> None:
    size = (1_000_000 + 100_000_000) // 2
    assert KNOWN.at(Cost(0, size, 0), {})["read_gbps"] == pytest.approx(size / 25_500, rel=1e-3)


def test_beyond_the_measured_footprints() -> None:
    below, above = KNOWN.at(Cost(0, 100, 0), {}), KNOWN.at(Cost(0, 10**12, 0), {})
    assert below["read_gbps"] == 10.0  # the smallest one's time
    assert above["read_gbps"] == 2000.0  # the largest one's rate


def test_the_best_read_rate_is_the_best_of_any_footprint_and_of_a_copy() -> None:
    assert KNOWN.at(Cost(0, 100, 0), {})["peak_read_gbps"] == 4000.0


def test_a_mix_of_precisions_runs_at_the_harmonic_mean() -> None:
    assert KNOWN.at(Cost(1, 1, 1), {"int8": 0.5, "fp8": 0.5})["tflops"] == pytest.approx(1371.43)
    assert "tflops" not in KNOWN.at(Cost(1, 1, 1), {"int8": 0.5, "fp4": 0.5})


def test_nothing_is_known_of_a_machine_that_was_not_measured() -> None:
    assert Ceilings().at(Cost(1, 1, 1), {"bf16": 1.0}) == {}


def test_there_and_back() -> None:
    assert Ceilings.from_json(json.loads(json.dumps(KNOWN.as_json()))) == KNOWN


def test_impossible_is_an_error_and_only_of_gated_times() -> None:
    limits = {"peak_read_gbps": 4000.0, "tflops": 800.0}
    cost = Cost(flops=0, read=4_000_000, write=0)  # 1,000 ns; 952.4 ns with the margin

    def timing(ns: int, timer: str = "gated") -> Timing:
        return Timing(timer=timer, blocks_ns=((ns,), (ns,)), overhead_ns=2_000)

    assert too_fast(timing(2_953), cost, limits) == ""
    assert too_fast(timing(2_950), cost, limits).startswith("0.95 µs, but this machine")
    assert too_fast(timing(2_950, "host"), cost, limits) == ""
    assert too_fast(timing(2_950, "ungated"), cost, limits) == ""
    assert too_fast(timing(2_950), cost, {}) == ""
    assert too_fast(timing(1_990), Cost(0, 0, 0), limits) == "", "an empty kernel has no least time"
    assert too_fast(timing(1_990), cost, {}).startswith("-0.01 µs")
    assert "1600000000 flops" in too_fast(timing(3_000), Cost(1_600_000_000, 0, 0), limits)


def test_a_slow_probe_is_no_low_ceiling():
    found = tighten(
        {
            "copy": ((2, 30.0), (4, 20.0), (8, 40.0)),
            "read": ((2, 90.0), (4, 35.0), (8, 50.0)),
            "write": ((2, 5.0), (4, 5.0), (8, 200.0)),
        }
    )
    assert found["copy"] == ((2, 20.0), (4, 20.0), (8, 40.0))
    assert found["read"] == ((2, 20.0), (4, 35.0), (8, 50.0))  # a copy of 2 moves 4: 20 ns
    assert found["write"] == ((2, 5.0), (4, 5.0), (8, 80.0))  # beyond 8 at its rate: 16 in 80 ns


@pytest.mark.parametrize("inputs", [Distribution.zeros, Distribution.ones])
def test_a_matmul_rate_on_random_data_is_no_limit_for_idle_bits(inputs: Distribution) -> None:
    case = replace(CASE, dtype=DType.bf16)
    assert KNOWN.of(case, BASELINE, Cost(1, 1, 1))["tflops"] == 800.0
    found = KNOWN.of(replace(case, inputs=inputs), BASELINE, Cost(1, 1, 1))
    assert "tflops" not in found
    assert found["read_gbps"] == KNOWN.of(case, BASELINE, Cost(1, 1, 1))["read_gbps"]


def test_a_machine_that_cannot_hold_a_bare_call_is_refused() -> None:
    class Busy:
        overhead_ns = 0

        def batch(self, part: Any, n: int) -> Batch:
            return Batch((1_000,) * n, held=False)

    with pytest.raises(KernelbenchError, match="copy 7: this machine's CPU is too busy"):
        ceilings._ns(Busy(), Probe("copy 7", lambda: None))  # type: ignore[arg-type]
