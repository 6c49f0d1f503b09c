"""What a number rests on: of every column of results.csv and measured.csv, said here alone."""

from collections.abc import Mapping
from enum import StrEnum


class Kind(StrEnum):
    """In the order in which tables name them."""

    measured = "measured"
    derived = "derived"
    modelled = "modelled"
    mixed = "mixed"
    quoted = "quoted"
    fact = "fact"


MEANING: Mapping[Kind, str] = {
    Kind.measured: "read off a clock, a counter or a comparison on the machine that `gpu` names",
    Kind.derived: "computed from measured numbers alone",
    Kind.modelled: "follows from shapes and an account of bytes or flops; nothing was observed",
    Kind.mixed: "computed from a modelled amount and a measured one",
    Kind.quoted: "claimed by somebody else's document; lives in `configs/claims/`, never in a run",
    Kind.fact: "an identity, a setting or an outcome",
}

_COLUMNS: Mapping[Kind, str] = {
    Kind.measured: (
        "samples median_us lo_us hi_us kernel_us p20_us p80_us host_us graph_us graph_nodes "
        "compile_s peak_mem_mib error_rel error_max baseline_error cosine sm_mhz power_w temp_c "
        "kernels launches busy_us span_us gaps_us dram_read_mib dram_write_mib l2_mib dram_pct "
        "sm_pct occupancy_pct registers received_mib"
    ),
    Kind.derived: (
        "iqr_pct speedup speedup_lo speedup_hi speedup_each speedup_best speedup_best_lo "
        "speedup_best_hi speedup_best_each best_other noise_pct error_budget error_max_budget "
        "audit one_gpu_pct one_gpu_lo_pct one_gpu_hi_pct exposed_us exposed_pct overlap_slowdown"
    ),
    Kind.modelled: "flops bytes_min model_read_mib model_write_mib hbm_saved_pct",
    Kind.mixed: "gbps tflops sol_pct bound model_error_pct",
}
_KINDS = {column: kind for kind, names in _COLUMNS.items() for column in names.split()}


def kind_of(column: str) -> Kind:
    """Of a column of results.csv or measured.csv; one that has no kind of its own is a fact."""
    return _KINDS.get(column, Kind.fact)


def kinds_of(*columns: str) -> tuple[Kind, ...]:
    """Theirs, each once."""
    present = {*map(kind_of, columns)}
    return tuple(kind for kind in Kind if kind in present)


def said(columns: Mapping[str, str]) -> str:
    """`measured: time. derived: speedups (×).`, of columns by what a reader calls them."""
    by_kind: dict[Kind, list[str]] = {}
    for name, column in columns.items():
        by_kind.setdefault(kind_of(column), []).append(name)
    return " ".join(f"{kind}: {', '.join(by_kind[kind])}." for kind in Kind if kind in by_kind)
