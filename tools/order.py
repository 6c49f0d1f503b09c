"""Tables of docs/attention.md: of the order of causal tiles, of where queries are held, and of
packed sequences, from runs of studies/attention/forward.py, and what its model predicts."""

import csv
import io
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path

import cog

ROOT = Path(__file__).parents[1]
OURS = {
    64: ("wide/turn", "narrow0/turn", "narrow0/s32"),
    128: ("base/turn", "base/turn", "base/s32"),
}


WRONG = [f"wide/{name}" for name in ("half", "halflane", "halflanecp")]  # where causal


def rows_of(path: str) -> Iterator[dict[str, str]]:
    """path: a .csv.xz below the project's root."""
    yield from csv.DictReader(io.StringIO(lzma.decompress((ROOT / path).read_bytes()).decode()))


def print_table(lines: list[list[str]]) -> None:
    """The first line is the head."""
    head, *rest = lines
    cog.outl("\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rest]))


def times_of(path: str) -> dict[tuple[str, str], dict[str, float]]:
    """µs by (shape, causal) and variant. path: a .csv.xz below the project's root."""
    us: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows_of(path):
        us.setdefault((row["shape"], row["causal"]), {})[row["variant"]] = float(row["us"])
    return us


def held(path: str) -> None:
    """Print the table of where queries are held."""
    heads = ["B, N, H, D", "causal", "in memory", "in registers", "rescaled less often", "FA3"]
    lines = [heads]
    for (shape, causal), of in times_of(path).items():
        if "held/s24" not in of:
            continue
        least = min(time for name, time in of.items() if name in ("base/s24", "narrow0/s24"))
        times = [least, of["held/s24"], of["lazy/s24"], of["fa3"]]
        sizes = shape.strip("()")
        lines.append([sizes, {"True": "yes"}.get(causal, "no"), *(f"{time:.0f}" for time in times)])
    print_table(lines)


WAITS = {  # of a tile, the columns of `waits`
    "before": "base",
    "scaled among scores": "nohoist",
    "sums apart": "lanesum",
    "halves": "half",
    "both": "halflane",
    "both, no barrier": "halflanecp",
}


def waits(path: str, tiles: dict[int, tuple[str, ...]]) -> None:
    """Print the table of what was tried against a wait, by FlashAttention-3. tiles: by D."""
    heads = ["B, N, H, D", "causal", "tile", *WAITS]
    lines = [heads]
    for (shape, causal), of in times_of(path).items():
        sizes = shape.strip("()")
        for tile in tiles[int(sizes.split(", ")[3])]:
            names = [f"{tile}/{name}" for name in WAITS.values()]
            shares = [
                "wrong" if causal == "True" and name in WRONG else f"{of['fa3'] / of[name]:.2f}"
                for name in names
            ]
            lines.append([sizes, {"True": "yes"}.get(causal, "no"), tile, *shares])
    print_table(lines)


def orders(path: str) -> None:
    """Print the table of the backward's orders: FlashAttention-4's time by that of each."""
    us = times_of(path)
    names = [name for name in next(iter(us.values())) if not name.startswith("fa4")]
    lines = [["order", *(shape.strip("()") for shape, _ in us)]]
    for name in names:
        label = "the table's" if name == "choice" else f"`{name}`"
        lines.append([label, *(f"{of['fa4'] / of[name]:.2f}" for of in us.values())])
    print_table(lines)


def shared(path: str) -> None:
    """Print the table of the backward of heads that share keys."""
    by_case: dict[str, dict[str, tuple[float, str]]] = {}
    for row in rows_of(path):
        by_case.setdefault(row["case"], {})[row["variant"]] = float(row["us"]), row["TFLOP/s"]
    lines = [["N", "D", "causal", "tl", "one kernel", "times as fast", "TFLOP/s"]]
    for case, of in by_case.items():
        _, _, N, D, causal = case.split()
        before, (us, rate) = of.pop("tl")[0], min(of.values())
        times = [f"{before:.0f}", f"{us:.0f}", f"{before / us:.2f}", rate]
        lines.append([N, D.removeprefix("D="), {"causal": "yes"}.get(causal, "no"), *times])
    print_table(lines)


def packed(before: str, now: str) -> None:
    """Print the table of packed sequences: first form, `tl`, this form, FlashAttention-3's."""
    first, us = times_of(before), times_of(now)
    variants = ["tl", "packed", "held", "fa3"]
    heads = ["documents", "D", "first, of FA3", *variants[:3], "FA3", "best of FA3"]
    lines = [heads]
    for key, of in us.items():
        if "packed" not in of:
            continue
        documents, *_, D = key[0].strip("()").split(", ")
        was = first[key]["fa3"] / first[key]["first"]
        best = of["fa3"] / min(of["packed"], of["held"])
        times = [f"{of[name]:.0f}" for name in variants]
        lines.append([documents.strip("'"), D, f"{was:.2f}", *times, f"{best:.2f}"])
    print_table(lines)


def table(path: str) -> None:
    """Print the table of the order."""
    sys.path.insert(0, str(ROOT / "studies/attention"))
    from forward import predicted

    us = times_of(path)
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
    lines = [heads]
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
    print_table(lines)
