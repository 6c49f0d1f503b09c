"""Where the wall time of a run went, and what of it nobody could save.

python cost.py RUN      anywhere; RUN is a run folder
"""

import json
import sys
from pathlib import Path

FLUSH_US = 86.0  # of one flush on this GPU: 20 of them between event pairs, median
UNROLLED = 10  # calls in one replay of a CUDA graph


def main(run: Path) -> None:
    spent = json.loads((run / "manifest.json").read_text())["spent_s"]
    timings = []
    for line in (run / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record.get("timing"):
            timings.append(record["timing"])
    gated = [ns for t in timings for block in (*t["blocks_ns"], *t["again_ns"]) for ns in block]
    traced = [ns for t in timings for ns in t["kernel_event_ns"]]
    fresh = [ns for t in timings for ns in t["fresh_ns"]]
    graph = sum(sum(t["graph_ns"]) * UNROLLED for t in timings)
    samples = len(gated) + len(traced) + len(fresh)
    parts = {
        "compilation": spent["compile"] + spent.get("tune", 0.0),
        "calls on the GPU": (sum(gated) + sum(traced) + sum(fresh) + graph) / 1e9,
        "flushes": samples * FLUSH_US / 1e6,
    }
    wall = sum(spent.values())
    for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"{name:16} {seconds:7.1f} s")
    print(f"{'wall':16} {wall:7.1f} s, {samples} samples; without which none can do:")
    for name, seconds in parts.items():
        print(f"{name:16} {seconds:7.1f} s")
    print(f"wall over these: {wall / sum(parts.values()):.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
