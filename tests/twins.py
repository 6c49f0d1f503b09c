"""Which cases are left to `make test-slow`: those that another one shows but for its dtype."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from kernelbench.spec import Case, DType, Mode


def with_marks(cases: Iterable[Any]) -> Iterator[tuple[Any, list[pytest.MarkDecorator]]]:
    """Each case and its marks. Slow are those that differ from an earlier one in their dtype alone,
    but for forward and backward together in fp16."""
    seen = set[Case]()
    for case in cases:
        wide = replace(case, dtype=DType.fp32)
        again = wide in seen and (case.dtype, case.mode) != (DType.fp16, Mode.full)
        seen.add(wide)
        yield case, [pytest.mark.slow] * again
