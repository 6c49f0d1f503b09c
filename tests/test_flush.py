"""What lies between two samples, as far as a machine without a GPU can tell."""

import ctypes
from typing import Any

import pytest

from kernelbench.measure import flush
from kernelbench.measure.flush import CYCLE, ROUND, L2SetAside, Window

MIB = 1 << 20


@pytest.mark.parametrize("launches", range(1, 12))
@pytest.mark.parametrize("start", range(CYCLE))
def test_a_round_comes_by_every_launch_slot_as_often(launches: int, start: int) -> None:
    """launches: of the flush and the timed call together."""
    slots, at = [], start
    for i in range(ROUND):
        at += i % CYCLE
        slots.append((at + 3) % CYCLE)
        at += launches
    assert all(slots.count(slot) == ROUND // CYCLE for slot in range(CYCLE))


class Driver:
    """libcuda's four calls about the L2's set-aside."""

    def __init__(self, limit: int) -> None:
        self.limit, self.window, self.resets = limit, 0, 0

    def cuCtxGetLimit(self, found: Any, which: int) -> int:  # noqa: N802
        assert which == L2SetAside.LIMIT
        found._obj.value = self.limit
        return 0

    def cuCtxSetLimit(self, which: int, size: ctypes.c_size_t) -> int:  # noqa: N802
        assert which == L2SetAside.LIMIT
        self.limit = size.value
        return 0

    def cuCtxResetPersistingL2Cache(self) -> int:  # noqa: N802
        self.resets += 1
        return 0

    def cuStreamGetAttribute(self, stream: Any, which: int, found: Any) -> int:  # noqa: N802
        assert which == L2SetAside.WINDOW
        found._obj.bytes = self.window
        return 0

    def cuStreamSetAttribute(self, stream: Any, which: int, given: Any) -> int:  # noqa: N802
        assert which == L2SetAside.WINDOW
        self.window = given._obj.bytes
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    class Stream:
        cuda_stream = 7

    monkeypatch.setattr(flush.torch.cuda, "current_stream", Stream)
    return Driver(11 * MIB)


def test_what_was_not_changed_is_not_mentioned(driver: Driver) -> None:
    assert L2SetAside(driver).undo_changes() == ""
    assert driver.resets == 0


def test_all_that_was_changed_is_said_at_once_and_undone(driver: Driver) -> None:
    aside = L2SetAside(driver)
    driver.limit, driver.window = 37 * MIB, MIB
    assert aside.undo_changes() == (
        "set 37 MiB of the L2 aside instead of 11 and left an access policy window on the stream, "
        "which every other call would feel"
    )
    assert (driver.limit, driver.window, driver.resets) == (11 * MIB, 0, 1)
    assert aside.undo_changes() == ""


def test_an_older_gpu_knows_no_such_limit(driver: Driver) -> None:
    class Older(Driver):
        def cuCtxGetLimit(self, found: Any, which: int) -> int:  # noqa: N802
            return 215

        def cuStreamGetAttribute(self, stream: Any, which: int, found: Any) -> int:  # noqa: N802
            return 1

    assert L2SetAside(Older(0)).undo_changes() == ""


def test_a_lost_context_is_nobodys_set_aside(driver: Driver, monkeypatch: Any) -> None:
    aside = L2SetAside(driver)
    monkeypatch.setattr(driver, "cuCtxGetLimit", lambda found, which: 700)
    monkeypatch.setattr(driver, "cuStreamGetAttribute", lambda stream, which, found: 700)
    assert aside.undo_changes() == ""


def test_a_window_is_as_large_as_the_driver_may_write() -> None:
    assert ctypes.sizeof(Window) >= 64
