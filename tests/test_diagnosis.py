"""What is said of a wrong answer: how many elements, where, in which pattern, and a map."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernelbench.measure.diagnosis import Diagnosis, diagnose, explain
from kernelbench.measure.patterns import pattern

Break = Callable[[torch.Tensor], Any]


def broken(shape: tuple[int, ...], bad: Any, value: float = 0.0, **more: Any) -> Diagnosis:
    """Of an answer that holds `value` at the index `bad`."""
    ref = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64).view(shape)
    out = ref.float()
    out[bad] = value
    return diagnose("y", out, [(..., ref)], tolerance=0.5, **more)


ALL = slice(None)


def test_a_line_has_all_that_is_asked_for() -> None:
    found = broken((64, 64), 63)
    assert found.words == (
        "64 of 4096 elements bad, in 1 of 64 rows (the last row), all 64 columns; "
        "first at (63, 0): got 0, want 4033; worst at (63, 63): got 0, want 4096"
    )
    assert (found.name, found.bad, found.checked) == ("y", 64, 4096)


@pytest.mark.parametrize(
    ("shape", "bad", "said"),
    [
        ((64, 64), slice(60, None), "in 4 of 64 rows (the last 4 rows), all 64 columns"),
        ((64, 64), 0, "in 1 of 64 rows (the first row), all 64 columns"),
        ((64, 64), slice(0, 3), "in 3 of 64 rows (the first 3 rows), all"),
        ((64, 64), 7, "in 1 of 64 rows (row 7), all"),
        ((256, 8), slice(128, 192), "in 64 of 256 rows (rows 128 to 191), all 8 columns"),
        ((256, 8), slice(3, None, 64), "in 4 of 256 rows (every 64th row from row 3), all 8"),
        ((256, 8), slice(0, None, 64), "in 4 of 256 rows (every 64th row), all 8"),
        ((99, 8), slice(2, None, 3), "in 33 of 99 rows (every 3rd row from row 2), all 8"),
        ((8, 99), (ALL, slice(1, None, 21)), "all 8 rows, 5 of 99 columns (every 21st column from "
         "column 1)"),
        ((8, 8), slice(1, None, 2), "in 4 of 8 rows (odd rows), all 8"),
        ((8, 8), (ALL, slice(0, None, 2)), "all 8 rows, 4 of 8 columns (even columns)"),
        ((4, 512), (ALL, [i for i in range(512) if 64 <= i % 256 < 128]),
         "all 4 rows, 128 of 512 columns (columns 64 to 127 of every 256)"),
        ((4, 100), (ALL, slice(96, None)), "all 4 rows, 4 of 100 columns (the last 4 columns)"),
        ((4, 100), (ALL, slice(-1, None)), "all 4 rows, 1 of 100 columns (the last column)"),
        ((64, 4), [3, 17, 40], "in 3 of 64 rows (rows 3, 17, 40), all"),
        ((64, 4), [10, 50], "in 2 of 64 rows (rows 10, 50), all"),
        ((64, 4), [1, 4, 5, 19, 33], "in 5 of 64 rows, all 4"),
        ((2, 16, 8, 4), (ALL, ALL, 2), "in 32 of 256 rows (head 2 of 8), all 4"),
        ((2, 16, 8, 4), (1, [3, 5, 9], 2), "in 3 of 256 rows (only in head 2 of 8), all 4"),
        ((2, 16, 8, 4), (ALL, ALL, [2, 5]), "in 64 of 256 rows, all 4"),
        ((2, 16, 8, 4), (1, 15), "in 8 of 256 rows (the last 8 rows), all 4"),
        ((2, 3, 8), (1, 2, 7), "1 of 48 elements bad, in 1 of 6 rows (the last row), 1 of 8 "
         "columns (the last column); at (1, 2, 7): got 0, want 48"),
        ((64, 64), ..., "4096 of 4096 elements bad, in all 64 rows, all 64 columns; first at"),
        ((7,), slice(5, None), "2 of 7 elements bad, 2 of 7 columns (the last 2 columns); first at "
         "5: got 0, want 6; worst at 6: got 0, want 7"),
        ((), ..., "1 of 1 element bad; got 0, want 1"),
        ((5, 1), 4, "1 of 5 elements bad, in 1 of 5 rows (the last row); at (4, 0): got 0, want 5"),
    ],
    ids=str,
)  # fmt: skip
def test_patterns_are_seen(shape: tuple[int, ...], bad: Any, said: str) -> None:
    assert said in broken(shape, bad).words


def test_what_is_right_has_no_words() -> None:
    found = broken((4, 4), slice(0, 0))
    assert (found.bad, found.checked, found.words, found.map) == (0, 16, "", "")
    assert diagnose("y", torch.zeros(0, 3), [(..., torch.zeros(0, 3).double())], 0.0).words == ""


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tolerance", [0.5, math.inf])
def test_nan_and_misplaced_infinities_are_bad_whatever_is_allowed(
    value: float, tolerance: float
) -> None:
    ref = torch.ones(4, 4, dtype=torch.float64)
    out = ref.float()
    out[2, 1] = value
    words = diagnose("y", out, [(..., ref)], tolerance).words
    assert words.startswith(
        "1 of 16 elements bad, in 1 of 4 rows (row 2), 1 of 4 columns (column 1)"
    )
    assert words.endswith(f"at (2, 1): got {value:.4g}, want 1")


def test_right_infinities_are_those_of_the_rounded_value() -> None:
    ref = torch.tensor([70000.0, -math.inf, 1.0, 70000.0, math.inf], dtype=torch.float64)
    out = torch.tensor([math.inf, -math.inf, 1.0, -math.inf, 65504.0], dtype=torch.float16)
    found = diagnose("y", out, [(..., ref)], 1.0)
    assert found.bad == 2
    assert "first and worst at 3: got -inf, want 7e+04" in found.words


def test_the_tolerance_is_absolute_and_inclusive() -> None:
    ref = torch.zeros(8, dtype=torch.float64)
    out = torch.linspace(0, 0.875, 8)
    assert diagnose("y", out, [(..., ref)], 0.5).bad == 3
    assert diagnose("y", out, [(..., ref)], 0.0).bad == 7


def test_whole_numbers_and_truths_are_compared_as_they_are() -> None:
    ref = torch.arange(6, dtype=torch.float64)
    out = torch.arange(6)
    out[4] = 7
    assert diagnose("i", out, [(..., ref)], 0.0).words.endswith("at 4: got 7, want 4")
    truth = torch.tensor([True, False])
    assert diagnose("b", truth, [(..., torch.ones(2).double())], 0.5).bad == 1


PIECES = {
    "chunks": [slice(0, 3), slice(3, 8)],
    "from the end": [slice(3, 8), slice(0, 3)],
    "rows": [*range(8)],
    "tuples": [(slice(0, 8), slice(0, 5)), (..., slice(5, 6))],
    "tensors in disorder": [torch.tensor([7, 2, 0]), torch.tensor([6, 5, 4, 3, 1])],
    "a mask": [torch.arange(8) < 5, torch.arange(8) >= 5],
    "lists": [[1, 0, 3, 2], [7, 6, 5, 4]],
}


@pytest.mark.parametrize("indices", PIECES.values(), ids=PIECES)
def test_pieces_may_come_as_they_like(indices: list[Any]) -> None:
    ref = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).double()
    out = ref.float()
    out[2:, 4] += 1
    out[5, 4] += 1
    whole = diagnose("y", out, [(..., ref)], 0.5)
    parts = diagnose("y", out, [(index, ref[index], ref[index]) for index in indices], 0.5)
    assert parts == whole
    assert re.search(r"first at \(2, 4\).*worst at \(5, 4\)", whole.words)


def test_a_sample_is_called_one_and_nothing_is_said_of_what_was_not_seen() -> None:
    ref = torch.ones(64, 8, dtype=torch.float64)
    out = torch.zeros(64, 8)
    out[:40] = 1
    rows = [0, 9, 20, 41, 63]
    found = diagnose("y", out, [(row, ref[row]) for row in rows], 0.5)
    assert found.words.startswith(
        "16 of 40 sampled elements bad, in 2 of 5 rows (rows 41 to 63), all 8 columns; first and "
        "worst at (41, 0)"
    )
    only = diagnose("y", out, [(63, ref[63])], 0.5)
    assert only.words.startswith("8 of 8 sampled elements bad, in the one row seen, all 8 columns")
    seen = torch.arange(64) % 5 == 0
    even = seen & (torch.arange(64) % 2 == 0)
    assert pattern(even, seen, "row") == "even rows"


def test_chance_has_no_pattern_and_no_map() -> None:
    spots = torch.rand(256, 256, generator=torch.Generator().manual_seed(1)) < 0.01
    found = broken((256, 256), spots)
    assert "(" not in found.words.split(";")[0]
    assert found.map == ""
    assert broken((64, 64), (3, 3)).map == broken((64, 64), ...).map == ""


def test_a_map_shows_a_tile_that_is_bad() -> None:
    bad = torch.zeros(256, 256, dtype=torch.bool)
    bad[64:128, 128:192] = True
    bad[64:96, 192:200] = True
    lines = broken((256, 256), bad).map.splitlines()
    assert lines[0].startswith("a cell is 16 × 8 (rows × columns): · right")
    assert len(lines) == 17
    empty = "·" * 32
    assert [line.split()[1] for line in lines[1:5]] == [empty] * 4
    assert lines[5] == " 64 " + "·" * 16 + "█" * 9 + "·" * 7
    assert lines[7] == " 96 " + "·" * 16 + "█" * 8 + "·" * 8


def test_a_map_has_shares_blanks_and_a_bound() -> None:
    bad = torch.zeros(1000, 5000, dtype=torch.bool)
    bad[10:20] = True  # of the first 64 rows
    lines = broken((1000, 5000), bad).map.splitlines()
    assert len(lines) <= 17 and max(map(len, lines[1:])) <= 4 + 48
    assert lines[1] == "  0 " + "2" * 40
    ref = torch.ones(4, 64, dtype=torch.float64)
    out = torch.ones(4, 64)
    out[3] = 0
    found = diagnose("y", out, [(0, ref[0]), (3, ref[3])], 0.5)
    assert [line[2:] for line in found.map.splitlines()[1:]] == ["·" * 32, "", "", "█" * 32]


def test_one_pass_explains_several_outputs() -> None:
    ref = torch.ones(4, dtype=torch.float64)
    produced = {"y": torch.zeros(4), "m": torch.ones(4), "dx": torch.zeros(4)}
    pieces = [(name, ..., ref) for name in ("y", "m", "dx", "dw")]
    found = explain(produced, pieces, {"y": 0.5, "m": 0.5})
    assert {name: each.bad for name, each in found.items()} == {"y": 4, "m": 0}
