"""What lies between two samples: nothing of use left in the L2, and an even mix of launch slots.

How long the front end of a GPU takes from one event to the next depends on where in a cycle of
four launches the timed one falls (by about 1 µs on an H200). `settle` therefore spends 0, 1, 2,
3 launches before the samples in turn: in eight samples every place comes up twice, however many
kernels the timed call launches.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch

from kernelbench.spec import Device

CYCLE = 4  # launches after which the front end's timing repeats
ROUND = 2 * CYCLE  # samples in which every place of the cycle comes up as often as any other
TAIL = 24  # launches that keep the front end as busy behind the last sample as before it
_PAGE = 4096  # elements: what the kernels of `stream` take at a time


def settle(launches: int) -> None:
    """Spend this many launches of next to no work."""
    for _ in range(launches):
        torch.cuda._sleep(0)


class ColdL2:
    """Evicts what a timed call could find in the L2.

    Called, it writes twice the L2's size and then reads that: writing evicts, reading leaves no
    dirty lines. From sm_80 on, the lines that were to persist are claimed first (`kernels.stream`).
    """

    def __init__(self, device: Device) -> None:
        words = max(2 * device.l2_bytes, 64 << 20) // 4 // _PAGE * _PAGE
        self._buffer = torch.zeros(words, device="cuda")
        self._sink = torch.zeros(1, device="cuda")
        self._steps = self._by_torch() if device.no_triton else self._by_triton(device)
        for _ in range(2):  # compile
            self()
        settle(1)
        torch.cuda.synchronize()
        # ROCm has no such part of the L2, and no such library.
        self._aside = None if torch.version.hip else L2SetAside(ctypes.CDLL("libcuda.so.1"))

    def __call__(self) -> None:
        for step in self._steps:
            step()

    def disturbed(self) -> str:
        """What was changed of the L2's set-aside since the start, and is now undone; or nothing."""
        return self._aside.undo() if self._aside else ""

    def _by_torch(self) -> tuple[Callable[[], object], ...]:
        total = torch.zeros((), device="cuda")
        return (self._buffer.zero_, lambda: torch.sum(self._buffer, dim=0, out=total))

    def _by_triton(self, device: Device) -> tuple[Callable[[], object], ...]:
        from kernelbench.kernels import stream

        # No device sets more than three quarters of its L2 aside.
        words = max(device.l2_bytes * 3 // 4 // 4 // _PAGE, 1) * _PAGE
        claimed = torch.zeros(words, device="cuda")
        return (
            stream.claim(claimed, self._sink).run,
            stream.write_and_release(self._buffer, claimed).run,
            stream.read(self._buffer, self._sink).run,
        )


class L2SetAside:
    """The part of the L2 that the driver keeps for lines that are to persist (libcuda, cuda.h).

    Needs a CUDA context. Where the driver knows no such thing, before sm_80, none is changed.
    driver: libcuda, or what answers in its place.
    """

    LIMIT = 6  # CU_LIMIT_PERSISTING_L2_CACHE_SIZE
    WINDOW = 1  # CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._bytes = self._limit()

    def undo(self) -> str:
        """What of it a provider changed, put right again; or nothing."""
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
        """None where the driver knows none, or can no longer be asked."""
        limit = ctypes.c_size_t()
        error = self._driver.cuCtxGetLimit(ctypes.byref(limit), self.LIMIT)
        return None if error else limit.value


class Window(ctypes.Structure):
    """CUaccessPolicyWindow, padded to the union that a stream's attribute is."""

    _fields_ = (
        ("base", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("hit_ratio", ctypes.c_float),
        ("hit", ctypes.c_int),
        ("miss", ctypes.c_int),
        ("rest", ctypes.c_char * 64),
    )
