"""What NVML says around a job, from a pynvml of our own."""

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kernelbench.measure.telemetry import Telemetry, driver_version


class NVMLError(Exception):
    pass


class Nvml(ModuleType):
    """As much of pynvml as is used; `answers` maps a function's name to what it returns."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    def __init__(self, **answers: Any) -> None:
        super().__init__("pynvml")
        self.answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlDeviceGetHandleByUUID": "handle",
            "nvmlDeviceGetClockInfo": 1980,
            "nvmlDeviceGetMaxClockInfo": 1980,
            "nvmlDeviceGetPowerUsage": 650_500,
            "nvmlDeviceGetTemperature": 41,
            "nvmlDeviceGetCurrentClocksEventReasons": 0x1,  # idle
            "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=os.getpid())],
            **answers,
        }

    def __getattr__(self, name: str) -> Any:
        def answer(*args: Any) -> Any:
            value = self.answers[name]
            if isinstance(value, Exception):
                raise value
            return value

        if not name.startswith("nvml"):
            raise AttributeError(name)
        return answer


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    fake = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_facts_are_medians_of_a_jobs_snapshots(nvml: Nvml) -> None:
    telemetry = Telemetry.open("GPU-1")
    for mhz in (1980, 1500, 1700):
        nvml.answers["nvmlDeviceGetClockInfo"] = mhz
        telemetry.sample()
    assert telemetry.facts() == {"power_w": 650.5, "sm_mhz": 1700.0, "temp_c": 41.0}
    assert telemetry.flags() == ()
    telemetry.reset()
    assert telemetry.facts() == {}


def test_reasons_that_slow_a_gpu_are_flags_of_the_job_they_were_seen_in(nvml: Nvml) -> None:
    telemetry = Telemetry.open("GPU-1")
    nvml.answers["nvmlDeviceGetCurrentClocksEventReasons"] = 0x4 | 0x1
    telemetry.sample()
    nvml.answers["nvmlDeviceGetCurrentClocksEventReasons"] = 0x40
    telemetry.sample()
    assert telemetry.flags() == ("throttled:sw_power_cap", "throttled:hw_thermal_slowdown")
    telemetry.reset()
    assert telemetry.flags() == ()


@pytest.mark.parametrize(
    ("pids", "flags"),
    [
        ([], ()),
        ([os.getpid()], ()),
        ([os.getpid(), 1], ("shared",)),
        ([4_000_001], ()),  # this very process, by the number it has outside its container
        ([4_000_001, 4_000_002], ("shared",)),
    ],
)
def test_other_processes_make_a_gpu_shared(nvml: Nvml, pids: list[int], flags: Any) -> None:
    running = [SimpleNamespace(pid=pid) for pid in pids]
    nvml.answers["nvmlDeviceGetComputeRunningProcesses"] = running
    telemetry = Telemetry.open("GPU-1")
    telemetry.sample()
    assert telemetry.flags() == flags


def test_what_cannot_be_read_is_absent(nvml: Nvml) -> None:
    nvml.answers["nvmlDeviceGetPowerUsage"] = NVMLError("not supported")
    nvml.answers["nvmlDeviceGetCurrentClocksEventReasons"] = NVMLError("not found")
    nvml.answers["nvmlDeviceGetComputeRunningProcesses"] = NVMLError("no permission")
    telemetry = Telemetry.open("GPU-1")
    telemetry.sample()
    assert telemetry.facts() == {"sm_mhz": 1980.0, "temp_c": 41.0}
    assert telemetry.flags() == ()


def test_what_the_driver_was_told(nvml: Nvml) -> None:
    nvml.answers |= {
        "nvmlDeviceGetEnforcedPowerLimit": 500_000,
        "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
        "nvmlDeviceGetMaxClockInfo": 1980,
        "nvmlDeviceGetApplicationsClock": NVMLError("deprecated"),
    }
    assert Telemetry.open("GPU-1").policy() == {
        "power_limit_w": 500.0,
        "power_limit_default_w": 700.0,
        "sm_max_mhz": 1980.0,
    }
    assert Telemetry.open(None).policy() == {}


def test_without_nvml_nothing_is_known_and_why(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.answers["nvmlInit"] = NVMLError("Driver Not Loaded")
    known_nothing = [Telemetry.open("GPU-1"), Telemetry.open(None)]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    known_nothing.append(Telemetry.open("GPU-1"))
    assert [t.missing for t in known_nothing] == [
        "NVML: Driver Not Loaded",
        "no GPU",
        "nvidia-ml-py is not installed",
    ]
    for telemetry in known_nothing:
        telemetry.sample()
        assert (telemetry.facts(), telemetry.flags()) == ({}, ())


def test_the_drivers_version_is_known_or_empty(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.answers["nvmlSystemGetDriverVersion"] = "580.159.03"
    assert driver_version() == "580.159.03"
    nvml.answers["nvmlInit"] = NVMLError("Driver Not Loaded")
    assert driver_version() == ""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert driver_version() == ""


@pytest.mark.parametrize(
    ("mhz", "reasons", "slowed"),
    [
        (1700, 0x4, True),
        (1700, 0x40 | 0x1, True),
        (1975, 0x4, False),  # a limit that costs next to nothing
        (1700, 0x1, False),  # slow for want of work
        (1700, 0x2, False),  # the user's own clock
    ],
)
def test_a_card_is_slowed_by_a_limit_that_costs_it_clock(
    nvml: Nvml, mhz: int, reasons: int, slowed: bool
) -> None:
    telemetry = Telemetry.open("GPU-1")
    nvml.answers["nvmlDeviceGetClockInfo"] = mhz
    nvml.answers["nvmlDeviceGetCurrentClocksEventReasons"] = reasons
    assert telemetry.clock() == (mhz, slowed)
    assert bool(telemetry.flags()) is slowed


def test_a_clock_that_cannot_be_read_is_not_known(nvml: Nvml) -> None:
    telemetry = Telemetry.open("GPU-1")
    nvml.answers["nvmlDeviceGetClockInfo"] = NVMLError("no")
    assert telemetry.clock() == (0, False)
    assert Telemetry.open(None).clock() == (0, False)
