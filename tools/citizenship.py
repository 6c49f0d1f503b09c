"""The table of docs/pytorch.md: what each function supports, as its tests have it."""

import os
import sys
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "kernels"))


def table() -> None:
    """A row a feature, a column a function."""
    import citizens
    import cog

    for row in citizens.table():
        cog.outl(row)
