"""Between two samples: evicts the L2, and shifts the next sample in the cycle of launches.

The time that a GPU's front end takes from one event to the next depends on the position of the
timed launch in a cycle of four launches (by about 1 µs on an H200). So `launch_empty` makes 0, 1,
2, 3 empty launches before the samples in turn: in eight samples every position comes up twice,
however many kernels the timed call launches.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch

from kernelbench.spec import Device

CYCLE = 4  # launches after which the front end's timing repeats
ROUND = 2 * CYCLE  # samples in which every position of the cycle comes up equally often
TAIL = 24  # launches that keep the front end as busy after the last sample as before it
_PAGE = 4096  # elements that the kernels of `stream` process at a time


def launch_empty(launches: int) -> None:
    """Make this many launches that do next to nothing."""
    for _ in range(launches):
        torch.cuda._sleep(0)


class ColdL2:
    """Evicts from the L2 all data that a timed call could use.

    A call writes twice the L2's size and then reads it: writing evicts, reading leaves no dirty
    lines. From sm_80 on, it first claims the lines that are set to persist (`kernels.stream`).
    """

    def __init__(self, device: Device) -> None:
        words = max(2 * device.l2_bytes, 64 << 20) // 4 // _PAGE * _PAGE
        self._buffer = torch.zeros(words, device="cuda")
        self._sink = torch.zeros(1, device="cuda")
        self._steps = self._by_torch() if device.no_triton else self._by_triton(device)
        for _ in range(2):  # compile
            self()
        launch_empty(1)
        torch.cuda.synchronize()
        # ROCm has neither a set-aside nor this library.
        self._set_aside = None if torch.version.hip else L2SetAside(ctypes.CDLL("libcuda.so.1"))

    def __call__(self) -> None:
        for step in self._steps:
            step()

    def undo_changes(self) -> str:
        """Undo changes of the L2's set-aside since the start; their description, or ""."""
        return self._set_aside.undo_changes() if self._set_aside else ""

    def _by_torch(self) -> tuple[Callable[[], object], ...]:
        total = torch.zeros((), device="cuda")
        return (self._buffer.zero_, lambda: torch.sum(self._buffer, dim=0, out=total))

    def _by_triton(self, device: Device) -> tuple[Callable[[], object], ...]:
        from kernelbench.kernels import stream

        # No device can set more than three quarters of its L2 aside.
        words = max(device.l2_bytes * 3 // 4 // 4 // _PAGE, 1) * _PAGE
        claimed = torch.zeros(words, device="cuda")
        return (
            stream.claim(claimed, self._sink).run,
            stream.write_and_release(self._buffer, claimed).run,
            stream.read(self._buffer, self._sink).run,
        )


class L2SetAside:
    """The part of the L2 that the driver reserves for persisting lines (libcuda, cuda.h).

    Needs a CUDA context. Before sm_80 the driver has no set-aside, and nothing is changed.
    driver: libcuda, or a stand-in for it.
    """

    LIMIT = 6  # CU_LIMIT_PERSISTING_L2_CACHE_SIZE
    WINDOW = 1  # CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._bytes = self._limit()

    def undo_changes(self) -> str:
        """Undo changes of its size and of the stream's window; their description, or ""."""
        changes = [*self._undo_limit(), *self._undo_window()]
        return f"{' and '.join(changes)}, which every other call would feel" if changes else ""

    def _undo_limit(self) -> list[str]:
        limit = self._limit()
        if limit is None or self._bytes is None or limit == self._bytes:
            return []
        self._driver.cuCtxSetLimit(self.LIMIT, ctypes.c_size_t(self._bytes))
        self._driver.cuCtxResetPersistingL2Cache()
        before = f"{self._bytes / 2**20:.4g}"
        return [f"set {limit / 2**20:.4g} MiB of the L2 aside instead of {before}"]

    def _undo_window(self) -> list[str]:
        window = Window()
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        error = self._driver.cuStreamGetAttribute(stream, self.WINDOW, ctypes.byref(window))
        if error or not window.bytes:
            return []
        self._driver.cuStreamSetAttribute(stream, self.WINDOW, ctypes.byref(Window()))
        return ["left an access policy window on the stream"]

    def _limit(self) -> int | None:
        """Bytes; None where the driver has no set-aside, or no longer answers."""
        limit = ctypes.c_size_t()
        error = self._driver.cuCtxGetLimit(ctypes.byref(limit), self.LIMIT)
        return None if error else limit.value


class Window(ctypes.Structure):
    """CUaccessPolicyWindow, padded to the size of a stream attribute, which is a union."""

    _fields_ = (
        ("base", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("hit_ratio", ctypes.c_float),
        ("hit", ctypes.c_int),
        ("miss", ctypes.c_int),
        ("rest", ctypes.c_char * 64),
    )
