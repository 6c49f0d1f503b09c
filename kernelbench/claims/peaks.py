"""Peaks of GPUs as NVIDIA publishes them: quoted, not measured. Dense rates, in 16 bits with the
faster accumulator, of the fastest board of each name.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

MARGIN = 1.15  # a board may clock above the boost of its datasheet


@dataclass(frozen=True, kw_only=True)
class Peak:
    """tflops: by dtype, TFLOP/s (FMA = 2). gbps: decimal GB/s of DRAM. l2_mib: its L2, as the
    device reports it."""

    tflops: Mapping[str, float]
    gbps: float
    l2_mib: float
    source: str


def _peak(gbps: float, l2_mib: float, source: str, **tflops: float) -> Peak:
    return Peak(tflops=tflops, gbps=gbps, l2_mib=l2_mib, source=f"NVIDIA {source}")


# fmt: off
PEAKS: Mapping[str, Peak] = {
    "GTX 1080": _peak(320, 2, "GeForce GTX 1080 whitepaper", fp32=8.87, fp16=0.14),
    "P100": _peak(732, 4, "Tesla P100 datasheet", fp32=10.6, fp16=21.2),
    "V100": _peak(1134, 6, "V100 datasheet (V100S)", fp32=16.4, fp16=130),
    "T4": _peak(320, 4, "T4 datasheet", fp32=8.1, fp16=65, int8=130),
    "A10": _peak(600, 6, "A10 datasheet", fp32=31.2, tf32=62.5, fp16=125, bf16=125, int8=250),
    "A100": _peak(2039, 40, "A100 datasheet (SXM, 80 GB)",
                  fp32=19.5, tf32=156, fp16=312, bf16=312, int8=624),
    "A6000": _peak(768, 6, "RTX A6000 datasheet",
                   fp32=38.7, tf32=77.4, fp16=154.8, bf16=154.8, int8=309.7),
    "RTX 3090": _peak(936, 6, "GA102 whitepaper",
                      fp32=35.6, tf32=35.6, fp16=142, bf16=71, int8=284),
    "RTX 4090": _peak(1008, 72, "Ada whitepaper",
                      fp32=82.6, tf32=82.6, fp16=330.3, bf16=165.2, fp8=660.6, int8=660.6),
    "L4": _peak(300, 48, "L4 datasheet", fp32=30.3, tf32=60, fp16=121, bf16=121, fp8=242, int8=242),
    "L40S": _peak(864, 96, "L40S datasheet",
                  fp32=91.6, tf32=183, fp16=362, bf16=362, fp8=733, int8=733),
    "H100": _peak(3900, 50, "H100 datasheet (SXM; memory of the NVL)",
                  fp32=67, tf32=494.7, fp16=989.4, bf16=989.4, fp8=1978.9, int8=1978.9),
    "H200": _peak(4800, 60, "H200 datasheet (SXM)",
                  fp32=67, tf32=494.7, fp16=989.4, bf16=989.4, fp8=1978.9, int8=1978.9),
}
# fmt: on

_MODEL = re.compile(r"(?:[abhlmv]|gb|gh|mi)\d{2,3}[a-z]{0,2}|[1-9]\d{3}")
DTYPES = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8")


def model_of(gpu: str) -> str | None:
    """`NVIDIA A100-SXM4-80GB` → `A100`; None for a GPU that is not in the table."""
    words = _words(gpu)
    hits = [name for name in PEAKS if _within(_words(name), words)]
    return max(hits, key=len, default=None)


def models_in(text: str) -> tuple[str, ...]:
    """The GPUs that a text names: those of the table, and words that look like another one."""
    words = _words(text)
    known = tuple(name for name in PEAKS if _within(_words(name), words))
    known_words = {word for name in known for word in _words(name)}
    others = (word for word in words if _MODEL.fullmatch(word) and word not in known_words)
    return known + tuple(dict.fromkeys(others)) if known else ()


def same(claimed: Sequence[str], gpu: str) -> bool:
    """Whether a record's GPU is one of those that a claim names."""
    return any(_within(_words(name), _words(gpu)) for name in claimed)


def rate(peak: Peak, dtype: str) -> float:
    """The highest TFLOP/s. fp32 is granted TF32, which PyTorch may use; any dtype is granted fp32,
    to which it may be converted; a dtype that is not stated or not in the datasheet, the fastest.
    int8 without a rate in the datasheet has no limit: plain cores multiply it too."""
    if dtype == "int8" and dtype not in peak.tflops:
        return inf
    if dtype not in peak.tflops:
        return max(peak.tflops.values())
    also = ("fp32", "tf32") if dtype == "fp32" else ("fp32", dtype)
    return max(peak.tflops.get(name, 0.0) for name in also)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _within(part: list[str], whole: list[str]) -> bool:
    """Whether a text has these words in a row, and no suffix that makes it another board."""
    ends = [at + len(part) for at in range(len(whole)) if whole[at : at + len(part)] == part]
    return any(whole[end : end + 1] not in (["ti"], ["super"]) for end in ends)
