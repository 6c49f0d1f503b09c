"""For writing providers: what `kernelbench.families.providing` has, under its public name."""

from kernelbench.families.providing import (
    DTYPES,
    MAX_AUTOTUNE,
    MetaDraw,
    compiled,
    eager_traffic,
    no_autotuner,
    no_compiler,
    no_jvp,
    pushed,
)

__all__ = [
    "DTYPES",
    "MAX_AUTOTUNE",
    "MetaDraw",
    "compiled",
    "eager_traffic",
    "no_autotuner",
    "no_compiler",
    "no_jvp",
    "pushed",
]
