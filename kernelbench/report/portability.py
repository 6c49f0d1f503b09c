"""The same cases on several GPU models: how near each provider comes to each one's own ceiling."""

import math
from collections.abc import Iterator, Sequence
from statistics import harmonic_mean

from kernelbench.metrics import said
from kernelbench.report.means import has_time
from kernelbench.report.sheet import Row, Sheet, Source, config
from kernelbench.report.tables import percent

WORDS = frozenset({"Config", "provider", ""})


def portability(source: Source) -> Iterator[Sheet]:
    """A sheet a family, mode and dtype, a line a case and provider, a column a GPU; nothing where
    only one GPU model was measured."""
    parts: dict[tuple[str, ...], list[Row]] = {}
    for row in source.rows:
        if has_time(row) and not math.isnan(row["sol_pct"]):
            key = tuple(str(row[name]) for name in ("family", "mode", "dtype"))
            parts.setdefault(key, []).append(row)
    for key, rows in parts.items():
        gpus = list(dict.fromkeys(str(row["gpu"]) for row in rows))
        if len(gpus) > 1:
            yield _sheet(" · ".join((*key, "across GPUs")), gpus, rows)


def _sheet(title: str, gpus: Sequence[str], rows: Sequence[Row]) -> Sheet:
    shares: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in rows:
        line = (config(row), str(row["provider"]), str(row["label"]))
        shares.setdefault(line, {})[str(row["gpu"])] = row["sol_pct"]
    lines = tuple(
        (case, provider, *(percent(of.get(gpu, math.nan)) for gpu in gpus), _all(of, gpus), label)
        for (case, provider, label), of in shares.items()
    )
    heads = ("Config", "provider", *(gpu.removeprefix("NVIDIA ") for gpu in gpus), "all", "")
    note = (
        f"{said({'shares': 'sol_pct'})} Of each GPU's own measured ceiling. All: their harmonic "
        "mean, where none is missing. Of several runs on one GPU the last is shown."
    )
    return Sheet(title, heads, lines, note, WORDS, labelled=True)


def _all(shares: dict[str, float], gpus: Sequence[str]) -> str:
    return percent(harmonic_mean(shares.values())) if len(shares) == len(gpus) else ""
