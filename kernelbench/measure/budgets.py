"""What any implementation may err by, and what none may, by dtype."""

from dataclasses import dataclass
from types import MappingProxyType

import torch

from kernelbench.spec import DType

# Relative error that any implementation may have, and that none may pass, whatever the baseline.
Limits = MappingProxyType[DType, float]
FLOOR: Limits = MappingProxyType(
    {DType.bf16: 2e-3, DType.fp16: 2.5e-4, DType.tf32: 2e-4, DType.fp32: 1e-6}
)
CEILING: Limits = MappingProxyType(
    {DType.bf16: 1e-2, DType.fp16: 2e-3, DType.tf32: 2e-3, DType.fp32: 2e-5}
)
SLOPE_FLOOR: Limits = MappingProxyType(
    {DType.bf16: 2.5e-4, DType.fp16: 6e-5, DType.tf32: 6e-5, DType.fp32: 5e-7}
)
# How much larger they are of an output in a dtype that rounds more than any case's: by its unit
# roundoff beside bf16's.
COARSE = MappingProxyType({torch.float8_e4m3fn: 16.0, torch.float8_e5m2: 32.0})
_OF_TORCH = {torch.float16: DType.fp16, torch.bfloat16: DType.bf16}


@dataclass(frozen=True)
class Limit:
    """Of one output: `FLOOR`, `CEILING` and `SLOPE_FLOOR` of the coarser of its dtype and the
    case's. Whole numbers are not rounded: they have no floor."""

    floor: float
    ceiling: float
    slope_floor: float

    @staticmethod
    def of(case: DType, output: torch.dtype | None) -> "Limit":
        if output is None:
            return Limit(FLOOR[case], CEILING[case], SLOPE_FLOOR[case])
        if not output.is_floating_point:
            return Limit(0.0, CEILING[case], 0.0)
        if output in COARSE:
            times, rough = COARSE[output], DType.bf16
        else:
            times, rough = 1.0, max(case, _OF_TORCH.get(output, case), key=FLOOR.__getitem__)
        return Limit(*(times * limits[rough] for limits in (FLOOR, CEILING, SLOPE_FLOOR)))
