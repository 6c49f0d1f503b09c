"""What a provider's `traffic` reads is what an H200 was seen to read, by `profile hbm --ncu`."""

from dataclasses import replace

import pytest

from kernelbench import families
from kernelbench.families.rms_norm.traffic import f_rms_norm_passes
from kernelbench.spec import Mode

FAMILIES = families.load()
CASES = {
    "rms_norm": {"M": 16384, "N": 8192},
    "rotary": {"B": 8, "S": 4096, "Hq": 32, "Hk": 8, "D": 128},
    "rcm_attention": {"B": 16, "N": 4096, "H": 16, "D": 128},
    "rcm_layer": {"B": 16, "N": 8192, "C": 1024, "H": 16},
}
# MiB read from DRAM, caches flushed before each kernel, in bf16: forward, backward.
MEASURED = {
    ("rms_norm", "eager"): (2816.8, None),
    ("rms_norm", "torch_fused"): (None, 1535.2),
    ("rms_norm", "compile"): (256.1, 544.2),
    ("rms_norm", "triton_fused"): (256.1, 516.2),
    ("rms_norm", "liger"): (256.0, 516.4),
    ("rms_norm", "quack"): (256.0, 516.3),
    ("rotary", "eager"): (1608.6, 1768.5),
    ("rotary", "torch_fused"): (329.6, 329.6),
    ("rotary", "triton_fused"): (328.0, 328.0),
    ("rotary", "liger"): (327.5, 327.6),
    ("rotary", "quack"): (329.1, 329.1),
    ("rcm_attention", "baseline"): (1792.3, 4630.9),
    ("rcm_attention", "torch_fused"): (1280.1, 3613.6),
    ("rcm_attention", "triton_fused"): (1032.9, 2835.5),
    ("rcm_attention", "triton_unfused"): (1285.3, 2837.6),
    ("rcm_attention", "naive"): (19609.8, None),
    ("rcm_attention", "triton_int8"): (1921.6, None),
    ("rcm_attention", "triton_int8_prepacked"): (640.3, None),
    ("rcm_attention", "fa4"): (1280.2, 3621.0),
    ("rcm_layer", "baseline"): (2562.9, 9650.8),
    ("rcm_layer", "compile"): (2050.9, None),
    ("rcm_layer", "compile_max_autotune"): (2050.8, 8618.8),
    ("rcm_layer", "triton_fused"): (2307.4, 8381.5),
    ("rcm_layer", "triton_unfused"): (2563.6, 8380.9),
}
LOWER_BOUND = {
    ("rms_norm", "torch_fused", Mode.fwd): 443.1,  # it reads wide rows again from HBM
}
UNSEEN = {
    ("rms_norm", "eager", Mode.bwd): (7425.9, 512.0),  # pow(h, 1) is a copy, not a kernel
}


def modelled(family: str, provider: str, mode: Mode, **axes: int) -> float:
    found = FAMILIES[family]
    (case,) = found.case.grid(dtype="bf16", mode=mode, **(CASES[family] | axes))
    model = found.provider(provider).traffic
    assert model is not None
    return sum(row.read for row in model(case)) / 2**20


@pytest.mark.parametrize(
    ("family", "provider", "mode", "measured"),
    [
        (*names, mode, reads)
        for names, both in MEASURED.items()
        for mode, reads in zip((Mode.fwd, Mode.bwd), both, strict=True)
        if reads is not None
    ],
)
def test_modelled_reads_are_those_measured(
    family: str, provider: str, mode: Mode, measured: float
) -> None:
    assert modelled(family, provider, mode) == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("provider", ["compile", "compile_max_autotune"])
def test_what_the_l2_holds_is_read_once(provider: str) -> None:
    """88.6 MiB as measured, its products by Triton; 92.8 by cuBLAS, a third of x again."""
    small = {"B": 4, "N": 2048, "C": 768, "H": 12}
    assert modelled("rcm_layer", provider, Mode.fwd, **small) == pytest.approx(88.6, rel=0.03)


def test_what_differs_says_by_how_much() -> None:
    for names, measured in LOWER_BOUND.items():
        assert modelled(*names) < measured
    for names, (measured, unseen) in UNSEEN.items():
        assert modelled(*names) == pytest.approx(measured + unseen, rel=0.03)


def test_passes_of_f_rms_norm_depend_on_the_bytes_of_a_row() -> None:
    assert [f_rms_norm_passes(N, 2) for N in (1024, 8192)] == [2, 3]
    assert f_rms_norm_passes(8192, 2) == f_rms_norm_passes(4096, 4)


def test_partial_sums_of_compiled_rms_norm() -> None:
    """One kernel for many rows of few columns, else two, which leave no partial sums."""
    family = FAMILIES["rms_norm"]
    (case,) = family.case.grid(M=16384, N=8192, mode="bwd")
    model = family.provider("compile").traffic
    assert model is not None
    for axes, rows in ({}, 1024), ({"M": 1 << 18, "N": 1024}, 2048), ({"M": 8192}, 0):
        shape = replace(case, **axes)
        partial = sum(row.write for row in model(shape) if "partial" in row.tensor)
        assert partial == 4 * shape.N * rows
