"""What size of change `compare` finds: simulated, for docs/compare.md.

    python tools/changes.py      simulates anew and writes docs/compare.csv (a minute)

With cog, `table()` prints what that file holds.
"""

import csv
import sys
from itertools import product
from pathlib import Path

HERE = Path(__file__).parent.parent
FILE = HERE / "docs" / "compare.csv"
ROWS, PROCESSES, NOISE = (13, 247), (1, 3, 5), (0.002, 0.005, 0.01)
SIZES = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
TABLES = {13: 100, 247: 40}
WANTED = 0.95


def simulate() -> None:
    sys.path.insert(0, str(HERE / "tests"))
    from test_noise import share

    with FILE.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["law", "rows", "processes_a_side", "noise_pct", "found_pct"])
        for law, rows, processes, sd in product(("gaussian", "t3"), ROWS, PROCESSES, NOISE):
            found = next(
                (s for s in SIZES if share(law, rows, processes, sd, TABLES[rows], s) >= WANTED),
                None,
            )
            size = "" if found is None else f"{found * 100:g}"
            out.writerow([law, rows, processes, f"{sd * 100:g}", size])


def table() -> None:
    """A line a number of processes; a column a number of rows and noise."""
    import cog

    with FILE.open(newline="") as file:
        found = {
            (r["law"], int(r["rows"]), int(r["processes_a_side"]), float(r["noise_pct"])): r
            for r in csv.DictReader(file)
        }
    heads = [f"{rows} rows, {sd * 100:g} %" for rows, sd in product(ROWS, NOISE)]
    cog.outl(f"| processes a side | {' | '.join(heads)} |")
    cog.outl("|---" * (1 + len(heads)) + "|")
    for processes in PROCESSES:
        cells = []
        for rows, sd in product(ROWS, NOISE):
            both = [
                found[law, rows, processes, round(sd * 100, 6)]["found_pct"]
                for law in ("gaussian", "t3")
            ]
            told = [f"{float(size):g} %" if size else "> 30 %" for size in both]
            cells.append(told[0] if told[0] == told[1] else " / ".join(told))
        cog.outl(f"| {processes} | {' | '.join(cells)} |")


if __name__ == "__main__":
    simulate()
