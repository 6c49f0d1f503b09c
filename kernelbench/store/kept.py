"""Lines of records as runs that are kept have them: a sample is a character, so many steps on.

A clock has a step, so that its readings are small whole numbers apart. As text of one character
each they pack by a quarter better than as decimals: what is left is their noise. Nothing is lost.
"""

import json
import math
from itertools import islice
from typing import Any

_LEAST = 8  # samples that are worth it
_FIRST = 0x30
# Left out, from and to: controls, ends of lines, surrogates.
_GAPS = ((0x7F, 0xA1), (0x2028, 0x2070), (0xD800, 0xE000))
_MOST = 0x110000 - _FIRST - sum(to - start for start, to in _GAPS)  # counts that have a character
_PACKED = {"from", "step", "each", "text"}


def packed(line: bytes) -> bytes:
    """A line whose samples in `timing` are {"from": ns, "step": ns, "each": …, "text": …}.

    text: a character a sample, whose number among those in use, from `_FIRST` on and without
    `_GAPS`, is how many steps it lies above `from`. each: null for a list of samples; of a list of
    lists how many each has, one number for all where they have equally many.
    """
    record = json.loads(line)
    timing = record.get("timing")
    if timing is None:
        return line
    for name, value in timing.items():
        samples = [*_numbers(value)]
        if not samples:
            continue
        least = min(samples)
        step = math.gcd(*(ns - least for ns in samples)) or 1
        counts = [(ns - least) // step for ns in samples]
        if max(counts) < _MOST:
            text = "".join(map(_character, counts))
            timing[name] = {"from": least, "step": step, "each": _lengths(value), "text": text}
    try:
        return json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a character is no text to be written
        return line


def unpacked(line: bytes) -> bytes:
    """The line that `packed` was given; others, and damaged ones, as they are."""
    if b'"each":' not in line:
        return line
    try:
        record = json.loads(line)
        for name, value in record["timing"].items():
            if isinstance(value, dict) and {*value} == _PACKED:
                least, step = int(value["from"]), int(value["step"])
                samples = [least + step * count for count in map(_count, value["text"])]
                record["timing"][name] = _cut(samples, value["each"])
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
        return line
    return json.dumps(record, separators=(",", ":")).encode()


def _numbers(value: Any) -> list[int]:
    """All samples of a list, or of lists; none where it is something else, or short."""
    if not isinstance(value, list) or len({isinstance(each, list) for each in value}) != 1:
        return []
    flat = [ns for each in value for ns in (each if isinstance(each, list) else [each])]
    return flat if len(flat) >= _LEAST and all(type(ns) is int for ns in flat) else []


def _lengths(value: list[Any]) -> int | list[int] | None:
    if not isinstance(value[0], list):
        return None
    lengths = [len(each) for each in value]
    return lengths[0] if len({*lengths}) == 1 else lengths


def _cut(samples: list[int], lengths: int | list[int] | None) -> list[Any]:
    """The list, or the lists of those lengths, that samples are. Raises ValueError where they do
    not fill these."""
    if lengths is None:
        return samples
    if isinstance(lengths, int):
        lengths = [lengths] * (len(samples) // lengths)
    if sum(lengths) != len(samples):
        raise ValueError("another number of samples")
    rest = iter(samples)
    return [[*islice(rest, length)] for length in lengths]


def _character(count: int) -> str:
    code = _FIRST + count
    for start, to in _GAPS:
        if code >= start:
            code += to - start
    return chr(code)


def _count(character: str) -> int:
    code = ord(character)
    for start, to in reversed(_GAPS):
        if code >= to:
            code -= to - start
    return code - _FIRST
