"""Every derived number, from records alone: of a record, as rows of a table, as files.

A number that does not apply is None here and empty in tables and files, never 0.
"""

from kernelbench.metrics.files import (
    append_csv,
    cell,
    csv_of,
    csv_text,
    dicts,
    json_of,
    rows_json,
    to_csv,
)
from kernelbench.metrics.kinds import MEANING, Kind, kind_of, kinds_of, said
from kernelbench.metrics.record import (
    MIB,
    Speedup,
    best_other,
    bytes_min,
    clocked,
    finite,
    gbps,
    hbm_saved_pct,
    median_ns,
    modelled_bytes,
    noise_pct,
    share_of_ceiling,
    speedup,
    tflops,
    tightest,
    timed,
    timings,
    worst_element,
)
from kernelbench.metrics.rows import axis_columns, csv_columns, filled, frame, frame_of, rows_of
from kernelbench.numbers.significance import t_reach
from kernelbench.numbers.statistics import Interval, over_processes

__all__ = [
    "MEANING",
    "MIB",
    "Interval",
    "Kind",
    "Speedup",
    "append_csv",
    "axis_columns",
    "best_other",
    "bytes_min",
    "cell",
    "clocked",
    "csv_columns",
    "csv_of",
    "csv_text",
    "dicts",
    "filled",
    "finite",
    "frame",
    "frame_of",
    "gbps",
    "hbm_saved_pct",
    "json_of",
    "kind_of",
    "kinds_of",
    "median_ns",
    "modelled_bytes",
    "noise_pct",
    "over_processes",
    "rows_json",
    "rows_of",
    "said",
    "share_of_ceiling",
    "speedup",
    "t_reach",
    "tflops",
    "tightest",
    "timed",
    "timings",
    "to_csv",
    "worst_element",
]
