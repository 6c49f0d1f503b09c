"""NVML: clocks, power, temperature, throttle reasons and other processes, around a job."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

# Clock event reasons that mean the GPU ran slower than it could (nvml.h).
THROTTLE = {
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}
SLOWED = sum(THROTTLE)
NEAR = 0.99  # a clock above this share of the highest does not count as slowed


def driver_version() -> str:
    """The version of NVIDIA's driver, such as `580.159.03`; "" without a driver or NVML."""
    try:
        import pynvml
    except ImportError:
        return ""
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return ""


@dataclass
class Telemetry:
    """NVML snapshots of one job. What cannot be read is absent; `missing` says why all is."""

    uuid: str | None
    missing: str = ""
    _nvml: Any = None
    _handle: Any = None
    _samples: list[dict[str, float]] = field(default_factory=list)
    _reasons: int = 0
    _others: set[int] = field(default_factory=set)

    @classmethod
    def open(cls, uuid: str | None) -> "Telemetry":
        """For the GPU with this UUID (`GPU-…`); for None, or without NVML, one without readings."""
        if uuid is None:
            return cls(None, missing="no GPU")
        try:
            import pynvml

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except ImportError:
            return cls(uuid, missing="nvidia-ml-py is not installed")
        except pynvml.NVMLError as error:
            return cls(uuid, missing=f"NVML: {error}")
        return cls(uuid, _nvml=pynvml, _handle=handle)

    def policy(self) -> dict[str, float]:
        """The driver's settings, those that can be read: power_limit_w and power_limit_default_w in
        W; sm_max_mhz, the highest clock, and sm_set_mhz, the application clock, in MHz."""
        if self._nvml is None:
            return {}
        nvml, handle = self._nvml, self._handle
        sm = nvml.NVML_CLOCK_SM
        limits = {
            "power_limit_w": self._try(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3),
            "power_limit_default_w": self._try(
                lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) / 1e3
            ),
            "sm_max_mhz": self._try(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, sm)),
            "sm_set_mhz": self._try(lambda: nvml.nvmlDeviceGetApplicationsClock(handle, sm)),
        }
        return {name: float(value) for name, value in limits.items() if value is not None}

    def reset(self) -> None:
        """Drop the snapshots, when a job begins."""
        self._samples.clear()
        self._others.clear()
        self._reasons = 0

    def clock(self) -> tuple[int, bool]:
        """(SM clock in MHz, 0 if it cannot be read; whether a power or temperature limit keeps it
        below its highest)."""
        if self._nvml is None:
            return 0, False
        nvml, handle = self._nvml, self._handle
        mhz = self._try(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)) or 0
        most = self._try(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)) or 0
        reasons = self._try(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)) or 0
        slowed = bool(reasons & SLOWED) and mhz < NEAR * most
        self._reasons |= reasons if slowed else 0
        return int(mhz), slowed

    def sample(self) -> None:
        """Take one snapshot, in well under a millisecond. Not to be called inside a gate."""
        if self._nvml is None:
            return
        nvml, handle = self._nvml, self._handle
        reading: dict[str, float] = {}
        for name, read in (
            ("sm_mhz", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            ("power_w", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
            ("temp_c", lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        ):
            value = self._try(read)
            if value is not None:
                reading[name] = float(value)
        self._samples.append(reading)
        self._reasons |= self._try(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)) or 0
        running = self._try(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
        pids = sorted(p.pid for p in running)
        if os.getpid() in pids:
            pids.remove(os.getpid())
        else:  # in a container, NVML may have another number for this process
            pids = pids[1:]
        self._others |= set(pids)

    def _try(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except self._nvml.NVMLError:
            return None

    def facts(self) -> dict[str, float]:
        """Medians over the job's snapshots: sm_mhz, power_w, temp_c, as far as they were read."""
        names = {name for reading in self._samples for name in reading}
        return {n: median(s[n] for s in self._samples if n in s) for n in sorted(names)}

    def flags(self) -> tuple[str, ...]:
        """`throttled:<reason>` and `shared`: reasons to doubt this job's times."""
        throttled = [f"throttled:{name}" for bit, name in THROTTLE.items() if self._reasons & bit]
        return (*throttled, "shared") if self._others else tuple(throttled)
