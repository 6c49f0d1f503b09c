"""The table of docs/attention.md on the order of causal tiles, from a run of
studies/attention/forward.py, and what its model predicts."""

import csv
import io
import lzma
import sys
from pathlib import Path

import cog

ROOT = Path(__file__).parents[1]
OURS = {
    64: ("wide/turn", "narrow0/turn", "narrow0/s32"),
    128: ("base/turn", "base/turn", "base/s32"),
}


def table(path: str) -> None:
    """Print it. path: a .csv.xz below the project's root."""
    sys.path.insert(0, str(ROOT / "studies/attention"))
    from forward import predicted

    us: dict[tuple[str, str], dict[str, float]] = {}
    for row in csv.DictReader(io.StringIO(lzma.decompress((ROOT / path).read_bytes()).decode())):
        us.setdefault((row["shape"], row["causal"]), {})[row["variant"]] = float(row["us"])
    heads = [
        "B, N, H, D",
        "before",
        "the same tile in turn",
        "by order",
        "gain",
        "predicted",
        "FA3",
        "cuDNN",
    ]
    lines = [heads, ["---"] * len(heads)]
    for (shape, causal), of in us.items():
        if causal != "True":
            continue
        sizes = tuple(map(int, shape.strip("()").split(",")))
        before, turn, order = (of[name] for name in OURS[sizes[3]])
        says = predicted(sizes)
        times = [f"{time:.0f}" for time in (before, turn, order)]
        gains = [f"{turn / order:.2f}", f"{says['turn'] / says['s32']:.2f}"]
        peers = [f"{of[name]:.0f}" for name in ("fa3", "cudnn")]
        lines.append([", ".join(map(str, sizes)), *times, *gains, *peers])
    cog.outl("\n".join(f"| {' | '.join(line)} |" for line in lines))
