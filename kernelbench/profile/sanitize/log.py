"""Reads the log of compute-sanitizer, which has a form of its own for each of its tools.

Lines of the tool begin with `=========`; others are the program's. A report is a headline and what
is indented below it.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

LINE = re.compile(r"=========(?P<indent> *)(?P<text>.*)")
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)s?(.*)")
RACE = re.compile(r"(?:(Warning|Error|Info): )?Race reported between (\w+) access at (.+)")
SECOND = re.compile(r"(\w+) access at (.+?)(?: \[([\d,]+) hazards?\])?")
AND = re.compile(r"\s+and (?=\w+ access at )")
# `kernel(int *)+0x90 in file.cu:13`, up to 2022 `0x90 in /a/file.cu:13:kernel(int*)`
PLACES = (
    re.compile(r"(?P<kernel>.+?)\+0x[0-9a-f]+(?: in (?P<line>.+:\d+))?"),
    re.compile(r"0x[0-9a-f]+ in (?:(?P<line>[^()]+?:\d+):)?(?P<kernel>.+)"),
)
AT = re.compile(r"(?:^|.*\s)at (.+)")
FRAME = re.compile(r"Device Frame:\s*(.+)")
ADDRESS = re.compile(r" at (?:\S+ ){0,3}0x[0-9a-f]+.*")
AMISS = re.compile(r"0x[0-9a-f]+ is (out of bounds|misaligned)")
PARAMETERS = re.compile(r"\([^()]*\)$")
REFUSED = re.compile(r"Device not supported|injection library|not compatible", re.I)
FAULT = re.compile(r"(?:Internal Sanitizer Error|Error|Fatal)\b", re.I)
OF_THE_HOST = ("Host API", "Program hit")  # reports without a kernel
# The first line, and what follows from the exit code of the program, which is known otherwise.
USUAL = ("COMPUTE-SANITIZER", "Error: process didn't terminate", "Target application returned")


@dataclass(frozen=True)
class Finding:
    """What a tool reports, with how often it did so alike: of how many threads, or hazards.

    line: `file:line`, empty where the kernel has no line information.
    """

    kind: str
    kernel: str
    line: str
    count: int = 1


@dataclass(frozen=True)
class Reading:
    """What a log says. summed: errors by its summary, None where it has none, so that the tool did
    not get to its end. unprinted: how many of them it left out. faults: why it may not have seen
    all. refused: one of these is of the machine. notes: what else it says.
    """

    findings: tuple[Finding, ...] = ()
    summed: int | None = None
    unprinted: int = 0
    faults: tuple[str, ...] = ()
    refused: bool = False
    notes: tuple[str, ...] = ()


def read(text: str) -> Reading:
    """The findings of a log, alike ones as one, the most frequent first; and what it says of how
    the tool fared."""
    counts: Counter[Finding] = Counter()
    summed, unprinted = None, 0
    faults, notes = dict[str, None](), dict[str, None]()
    for block in _blocks(text):
        head = block[0]
        if summary := SUMMARY.fullmatch(head):
            if "not printed" in summary[2]:
                unprinted += int(summary[1])
            else:
                summed = (summed or 0) + int(summary[1])
        elif found := [*_findings(block)]:
            for one in found:
                counts[replace(one, count=1)] += one.count
        elif REFUSED.search(head) or (FAULT.match(head) and not head.startswith(USUAL)):
            faults[" ".join(block)] = None
        elif not head.startswith((*USUAL, "LEAK SUMMARY")):
            notes[" ".join(block)] = None
    return Reading(
        findings=tuple(replace(one, count=count) for one, count in counts.most_common()),
        summed=summed,
        unprinted=unprinted,
        faults=tuple(faults),
        refused=any(map(REFUSED.search, faults)),
        notes=tuple(notes),
    )


def _blocks(text: str) -> Iterator[list[str]]:
    """Each headline with what is indented below it."""
    block = list[str]()
    for line in text.splitlines():
        match = LINE.fullmatch(line.rstrip())
        if match is None:
            continue
        if len(match["indent"]) > 1 and block:
            block.append(match["text"])
            continue
        if block:
            yield block
        block = [match["text"]] if match["text"] else []
    if block:
        yield block


def _findings(block: Sequence[str]) -> Iterator[Finding]:
    """What a block reports: of a race each pair of accesses, else one thing or nothing."""
    if RACE.match(block[0]):
        yield from _races(block)
        return
    places = [place for place in map(_at, block[1:]) if place]
    if not places and not block[0].startswith(OF_THE_HOST):
        return
    kernel, line = places[0] if places else ("", "")
    frames = [FRAME.fullmatch(text) for text in block[1:]]
    callers = [place for frame in frames if frame and (place := _place(frame[1]))]
    if callers:
        kernel = callers[-1][0]  # that calls the function in which it happened
    amiss = AMISS.search(" ".join(block[1:]))
    kind = ADDRESS.sub("", block[0].removeprefix("Error: ")).rstrip(" .:")
    yield Finding(f"{kind}, {amiss[1]}" if amiss else kind, kernel, line)


def _races(block: Sequence[str]) -> Iterator[Finding]:
    first, *others = AND.split(" ".join(block))
    match = RACE.fullmatch(first)
    assert match is not None
    level, access, where = match.groups()
    kernel, line = _place(where) or (where, "")
    for other in others:
        second = SECOND.fullmatch(other)
        if second is None:
            continue
        there = (_place(second[2]) or ("", ""))[1]
        kind = f"race between {access} and {second[1]}" + (f" at {there}" if there else "")
        count = int((second[3] or "1").replace(",", ""))
        yield Finding(f"warning: {kind}" if level == "Warning" else kind, kernel, line, count)


def _at(text: str) -> tuple[str, str] | None:
    match = AT.fullmatch(text)
    return _place(match[1]) if match else None


def _place(text: str) -> tuple[str, str] | None:
    """Kernel, without its parameters, and line."""
    for pattern in PLACES:
        if match := pattern.fullmatch(text):
            return PARAMETERS.sub("", match["kernel"]), match["line"] or ""
    return None
