"""What is known of NVIDIA's architectures, and where it is said."""

from itertools import pairwise

import pytest

from kernelbench.profile.inspect.target import TARGETS
from kernelbench.spec.architecture import ARCHITECTURES, LEAST, architecture
from kernelbench.verbs.doctor import of_architecture


def test_every_target_of_inspect_is_known_and_newer_ones_lack_nothing() -> None:
    assert set(TARGETS) <= set(ARCHITECTURES)
    assert TARGETS["sm_90"].smem_bytes == 227 * 1024 and TARGETS["sm_86"].shared_kib == 100
    order = sorted(ARCHITECTURES.values(), key=lambda each: each.capability)
    for older, newer in pairwise(order):
        assert set(older.tensor) <= set(newer.tensor), newer
        assert older.tma <= newer.tma
    assert next(each.arch for each in order if each.tma) == "sm_90"


@pytest.mark.parametrize(
    ("arch", "dtypes", "told"),
    [
        ("sm_90", {"bf16", "fp16", "tf32"}, []),
        (
            "sm_90",
            {"fp32", "bf16"},
            ["fp32 is multiplied without tensor cores: several times as slow as tf32 or bf16"],
        ),
        ("sm_75", {"bf16"}, ["bf16 has no tensor cores here", "need sm_80, this is sm_75"]),
        ("sm_75", {"fp32"}, ["as slow as fp16 where", "this is sm_75"]),
        ("sm_61", {"fp32", "fp16", "bf16"}, ["need sm_80, this is sm_61"]),
    ],
)
def test_what_is_not_as_fast_as_it_could_be(arch: str, dtypes: set[str], told: list[str]) -> None:
    known = architecture(arch)
    assert known is not None
    lines = [*known.advice(dtypes)]
    assert len(lines) == len(told)
    assert all(part in line for part, line in zip(told, lines, strict=True)), lines


def test_doctor_says_what_a_gpu_has() -> None:
    hopper = of_architecture("sm_90")
    assert hopper.ok and hopper.found == (
        "Hopper: tensor cores for fp16, bf16, tf32, int8, fp8; TMA; 228 KiB of shared memory; "
        "ours in Triton and Gluon"
    )
    assert hopper.remedy.startswith("fp32 is multiplied without tensor cores")
    pascal = of_architecture("sm_61")
    assert "no tensor cores" in pascal.found and "none of ours" in pascal.found
    unknown = of_architecture("sm_130")
    assert unknown.ok is None and "sm_130 is not in the table" in unknown.found
    assert architecture("cpu") is None and LEAST == (8, 0)
