"""Masks besides the causal one."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from kernelbench.kernels.attention.tiles import NO_MASK, Mask


class Window(NamedTuple):
    """How many keys in front of its own position a query sees, and how many behind."""

    left: Any
    right: Any


@triton.jit
def _within(window, query, key):
    left, right = window
    return (key >= query - left) & (key <= query + right)


@triton.jit
def _keys_within(window, first, end):
    left, right = window
    return tl.maximum(first - left, 0), end + right


@triton.jit
def _queries_within(window, first, end):
    left, right = window
    return first - right, end + left


def window_mask(left: int, right: int, causal: bool, most: int) -> Mask:
    """A sliding window, −1 for no limit on a side; causal: none behind. most: queries and keys."""
    if left < 0 and right < 0:
        return NO_MASK
    left = most if left < 0 else min(left, most)
    right = 0 if causal else most if right < 0 else min(right, most)
    return Mask(_within, _keys_within, _queries_within, Window(left, right))
