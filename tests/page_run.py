"""Runs that were made up so that the page has something to draw in every figure."""

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from test_metrics import blocks, error, fused, ours, record, timing

from kernelbench.spec import Accuracy, KernelUse, Measured, Role, RunRecord, Status, Tool

MANIFEST: dict[str, Any] = {
    "utc": "2026-07-30T12:00:00Z",
    "suite": "h200",
    "kernelbench": "0.1.0",
    "gpu": "NVIDIA H200",
    "machine": {"arch": "sm_90", "sms": 132, "versions": {"torch": "2.11.0", "triton": "3.6.0"}},
    "argv": ["run", "configs/h200.yaml"],
    "asked": {"seed": 0, "plugins": [], "overrides": []},
    "ceilings": {
        "bandwidth": {"read": [[2**30, 2**30 / 4500]], "copy": [[2**30, 2**30 / 4300]]},
        "tflops": {"bf16": 500.0},
        "overhead": {"ns": 3136},
    },
}
VOID = {"meta", "link", "input", "br"}


def case(n: int, mode: str = "fwd", **facts: Any) -> list[RunRecord]:
    """A baseline that ran twice, PyTorch's best, ours, a peer, and one that was skipped."""
    name = f"M1024-N{n}-bf16-{mode}"
    known: dict[str, Any] = {
        "case": name,
        "mode": mode,
        "group": name,
        "axes": {"M": 1024, "N": n, "dtype": "bf16", "mode": mode},
        "read_bytes": 2048 * n,
        "write_bytes": 2048 * n,
        "flops": 4096 * n,
        "errors": (error("y", 1.7e-3, 6e-3),),
    } | facts
    us = n / 100
    return [
        record(timing=timing(us, again_ns=blocks(us * 1.01)), **known),
        fused(timing=timing(us / 2), **known),
        ours(timing=timing(us / 4), **known),
        ours("fast", **known | {"timing": timing(us / 5), "accuracy": Accuracy.approximate,
                                "errors": (error("y", 2e-2, 5e-2),)}),
        record("liger", Role.peer, **known | {"timing": timing(us / 3),
                                              "errors": (error("y", 1.5e-3, 6e-3),)}),
        record("quack", Role.peer, **known | {"timing": None, "status": Status.skipped,
                                              "reason": "needs quack"}),
    ]  # fmt: skip


def sweep(**facts: Any) -> list[RunRecord]:
    return [one for n in (1024, 2048, 4096, 8192) for one in case(n, **facts)]


def noisy(record: RunRecord, *flags: str) -> RunRecord:
    """The same record with samples that are far apart, and these flags."""
    assert record.timing is not None
    far = tuple(
        tuple(round(ns * (1.3 if (place + number) % 2 else 0.8)) for number, ns in enumerate(block))
        for place, block in enumerate(record.timing.blocks_ns)
    )
    return replace(record, timing=replace(record.timing, blocks_ns=far), flags=flags)


def counted(provider: str = "triton", read: int = 2**30, **facts: Any) -> Measured:
    """What ncu counted of one call of which 2³⁰ bytes of reads are modelled."""
    known: dict[str, Any] = {
        "run_id": "run",
        "utc": "2026-07-30T12:00:00Z",
        "tool": Tool.ncu,
        "tool_version": "2025.3",
        "status": Status.ok,
        "family": "rms_norm",
        "provider": provider,
        "role": Role.triton_fused,
        "case": "M1024-N8192-bf16-fwd",
        "mode": "fwd",
        "dtype": "bf16",
        "axes": {},
        "gpu": "NVIDIA H200",
        "calls": 1,
        "kernels": (KernelUse(name="k", launches=1, dram_read_bytes=read, gpu_ns=1000),),
        "model_read_bytes": 2**30,
        "largest_bytes": 2**30,
        "l2_bytes": 60 * 2**20,
    }
    return Measured(**(known | facts))


class Seen(HTMLParser):
    """The page's elements in their order as (tag, attributes), and the text inside each.

    Fails at an end tag that has no start, since then nesting is not what it seems.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._open: list[tuple[str, int]] = []
        self.feed(page)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.texts.append("")
        if tag not in VOID:
            self._open.append((tag, len(self.texts) - 1))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> without a start"
        last, _ = self._open.pop()
        assert last == tag, f"<{last}> is closed by </{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        for _, place in self._open:
            self.texts[place] += data

    def of(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag in tags]

    def text_of(self, *tags: str) -> list[str]:
        pairs = zip(self.elements, self.texts, strict=True)
        return [text for (tag, _), text in pairs if tag in tags]
