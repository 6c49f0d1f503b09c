"""Floors and the least plausible time, by hand."""

import pytest

from kernelbench.numbers.limits import PLAUSIBLE, fastest_plausible_ns, floors_ns

LIMITS = {"read_gbps": 4000.0, "write_gbps": 3000.0, "copy_gbps": 3500.0, "tflops": 800.0}


def test_floors() -> None:
    # 8 MB in: 2,000 ns; 3 MB out: 1,000 ns; 11 MB through: 3,142.9 ns; 1.6 GFLOP: 2,000 ns
    found = floors_ns(8_000_000, 3_000_000, 1_600_000_000, LIMITS)
    assert found == {"memory": pytest.approx(3142.857, rel=1e-6), "compute": 2000.0}
    assert floors_ns(8_000_000, 0, 0, {"read_gbps": 4000.0}) == {"memory": 2000.0}
    assert floors_ns(1, 1, 1, {}) == {}
    assert floors_ns(1, 1, 1, {"read_gbps": 0.0}) == {}


def test_the_least_plausible_time() -> None:
    limits = {"peak_read_gbps": 4000.0, "tflops": 800.0}
    assert PLAUSIBLE == 1.05
    assert fastest_plausible_ns(8_400_000, 0, limits) == pytest.approx(2000.0)
    assert fastest_plausible_ns(0, 1_680_000_000, limits) == pytest.approx(2000.0)
    assert fastest_plausible_ns(8_400_000, 3_360_000_000, limits) == pytest.approx(4000.0)
    assert fastest_plausible_ns(8_400_000, 1, {}) == 0.0
