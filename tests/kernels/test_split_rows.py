"""Split rows of RMSNorm on GPUs that are not there: their programs run at once, or none waits."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import pytest
import torch

from kernelbench.families.rms_norm import RMSNormCase, triton_configs
from kernelbench.kernels.launch import Launch, Target, ceil_div, described_for, watched
from kernelbench.kernels.rms_norm import RmsNormConfig, configs, rms_norm
from kernelbench.spec import Device

REGISTERS = 1 << 16  # of a multiprocessor, in every architecture since sm_80
SPLIT = RmsNormConfig(1, 64, 1, 1, 64, 1, 2, 1, split=True, stages=2, bwd_split=True)
SPLIT_FORWARD = ["normalise_split_rows"]
SPLIT_BACKWARD = ["differentiate_split_rows", "sum_partials"]
REREAD = ["normalise_wide_rows"]
TWO_KERNELS = ["project_wide_rows", "differentiate", "sum_partials"]


@dataclass(frozen=True)
class Gpu:
    """NVIDIA, CUDA C++ Programming Guide, Technical Specifications per Compute Capability.

    threads, blocks, shared_kib: of a multiprocessor.
    """

    name: str
    arch: str
    sms: int
    threads: int
    blocks: int
    shared_kib: int

    def __str__(self) -> str:
        return self.name

    def at_once(self, launch: Launch) -> int:
        """Programs of a cooperative launch that run at once: the least that any resource allows."""
        threads = 32 * launch.options["num_warps"]
        shared = pipeline_bytes(launch) + 3 * 1024  # the driver's, and what reductions take
        return self.sms * min(
            self.threads // threads,
            self.blocks,
            REGISTERS // (threads * launch.options["maxnreg"]),
            self.shared_kib * 1024 // shared,
        )


def pipeline_bytes(launch: Launch) -> int:
    """Of the blocks on their way: of x and a residual; backward of the weight and dy, too."""
    names = ["x_ptr", "residual_ptr", "dy_ptr", "dsum_ptr"]
    names += ["weight_ptr"] if "dy_ptr" in launch.args else []
    read = [tensor for name in names if (tensor := launch.args.get(name)) is not None]
    block = launch.constexprs["BLOCK_N"] * sum(tensor.element_size() for tensor in read)
    return (launch.constexprs["STAGES"] - 1) * block


H100 = Gpu("H100 SXM", "sm_90", 132, 2048, 32, 228)
H100_PCIE = Gpu("H100 PCIe", "sm_90", 114, 2048, 32, 228)
H20 = Gpu("H20", "sm_90", 78, 2048, 32, 228)
H200_SLICE = Gpu("H200 MIG 1g", "sm_90", 16, 2048, 32, 228)
A100 = Gpu("A100", "sm_80", 108, 2048, 32, 164)
A100_SLICE = Gpu("A100 MIG 1g", "sm_80", 14, 2048, 32, 164)
A40 = Gpu("A40", "sm_86", 84, 1536, 16, 100)
L4 = Gpu("L4", "sm_89", 58, 1536, 24, 100)
RTX_4090 = Gpu("RTX 4090", "sm_89", 128, 1536, 24, 100)
B200 = Gpu("B200", "sm_100", 148, 2048, 32, 228)
RTX_5090 = Gpu("RTX 5090", "sm_120", 170, 1536, 24, 100)
GPUS = (
    H100, H100_PCIE, H20, H200_SLICE, A100, A100_SLICE, A40, L4, RTX_4090, B200, RTX_5090,
)  # fmt: skip


def call(
    M: int,
    N: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    with_residual: bool = False,
    config: RmsNormConfig | None = None,
) -> None:
    """Forward and backward of meta tensors, all of which have a gradient."""
    x, residual = (
        torch.empty(M, N, dtype=dtype, device="meta", requires_grad=True) for _ in range(2)
    )
    weight = torch.empty(N, dtype=dtype, device="meta", requires_grad=True)
    out = rms_norm(x, weight, residual=residual if with_residual else None, config=config)
    outs = out if isinstance(out, tuple) else (out,)
    torch.autograd.grad(outs, (x, weight), [torch.empty_like(y) for y in outs])


def names(launches: list[Launch]) -> list[str]:
    return [launch.kernel.__name__ for launch in launches]


def on(gpu: Gpu, M: int, N: int, **options: object) -> list[Launch]:
    """What `call` launches on a GPU."""
    with described_for(Target(gpu.arch, gpu.sms)) as launches:
        call(M, N, **options)
        return list(launches)


@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gpu", GPUS, ids=str)
def test_every_width_is_launched_and_what_waits_runs_at_once(gpu, dtype, with_residual):
    for N in (64, 8192, 16_385, 65_536, 114_689, 262_144, 1_200_000, 4_000_001):
        for M in (1, 20, 1 << 16):
            launches = on(gpu, M, N, dtype=dtype, with_residual=with_residual)
            assert names(launches)[-1] == "sum_partials"
            for launch in launches:
                assert all(n < 1 << (31 if axis == 0 else 16) for axis, n in enumerate(launch.grid))
                if "launch_cooperative_grid" in launch.options:
                    assert prod(launch.grid) <= gpu.at_once(launch), (M, N, launch.kernel.__name__)


@pytest.mark.parametrize(
    ("gpu", "N", "expected"),
    [
        (H100, 1_000_000, SPLIT_FORWARD + SPLIT_BACKWARD),
        (H100, 1_200_000, SPLIT_FORWARD + TWO_KERNELS),
        (H100, 2_200_000, REREAD + TWO_KERNELS),
        (H100_PCIE, 1_000_000, SPLIT_FORWARD + TWO_KERNELS),
        (H20, 600_000, SPLIT_FORWARD + SPLIT_BACKWARD),
        (H20, 700_000, SPLIT_FORWARD + TWO_KERNELS),
        (A100, 1_000_000, SPLIT_FORWARD + TWO_KERNELS),
        (L4, 500_000, SPLIT_FORWARD + TWO_KERNELS),
        (L4, 1_200_000, REREAD + TWO_KERNELS),
        (A100_SLICE, 131_072, SPLIT_FORWARD + TWO_KERNELS),
        (A100_SLICE, 262_144, REREAD + TWO_KERNELS),
        (B200, 1_200_000, SPLIT_FORWARD + SPLIT_BACKWARD),
    ],
    ids=str,
)
def test_rows_are_split_as_long_as_the_programs_of_one_run_at_once(gpu, N, expected):
    assert names(on(gpu, 8, N)) == expected


def test_the_widest_split_rows_are_those_of_the_document():
    text = (Path(__file__).parents[2] / "docs/rms_norm.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \| (\d+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    assert len(rows) == 9
    for sms, *widest in (map(int, row) for row in rows):
        for N, field in zip(widest, ("split", "bwd_split"), strict=True):
            for width, split in ((N, True), (N + 1, False)):
                chosen = configs(8, width, arch="sm_80", mode="fwd", itemsize=2, sms=sms)[0]
                assert getattr(chosen, field) is split, (sms, width)


@pytest.mark.parametrize("mode", ["fwd", "bwd", "full"])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("gpu", GPUS, ids=str)
def test_a_tuner_is_offered_only_what_runs_at_once(gpu, itemsize, mode):
    for N in (40_000, 131_072, 1_200_000, 4_000_001):
        found = configs(8, N, arch=gpu.arch, mode=mode, itemsize=itemsize, sms=gpu.sms)
        assert len(set(found)) == len(found) > 1
        for config in found:
            if config.split:
                assert ceil_div(N, config.block) <= 16 // config.warps * gpu.sms
            if config.bwd_split:
                assert ceil_div(N, config.bwd_block) <= 16 // config.bwd_warps * gpu.sms


def test_the_family_s_configs_are_those_of_the_gpu():
    case = RMSNormCase(M=8, N=1_200_000)
    small = Device("cuda", "a slice", (8, 0), sms=14)
    assert not any(c.split or c.bwd_split for c in triton_configs(case, small))
    assert triton_configs(case, Device("cuda", "large", (8, 0), sms=160))[0].bwd_split


WIDE = 64 * 257  # in blocks of 64, a program more than 16 a multiprocessor of 16 can be


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            SPLIT,
            "rms_norm: bwd_split rows of 16448 columns in blocks of bwd_block=64 take 257 programs "
            "at once, more than the 256 that 16 multiprocessors run: give a config with "
            "bwd_split=False, or none",
        ),
        (
            replace(SPLIT, bwd_split=False),
            "rms_norm: split rows of 16448 columns in blocks of block=64 take 257 programs "
            "at once, more than the 256 that 16 multiprocessors run: give a config with "
            "split=False, or none",
        ),
    ],
    ids=["backward", "forward"],
)
def test_a_given_config_that_cannot_run_is_refused_in_the_forward(config, message):
    with described_for(Target("sm_90", 16)) as launches:
        with pytest.raises(ValueError) as raised:
            call(2, WIDE, config=config)
        assert str(raised.value).startswith(message)
        assert launches == []
    with described_for(Target("sm_90", 17)) as launches:
        call(2, WIDE, config=config)
        assert names(launches)[0] == "normalise_split_rows"


def test_without_a_gradient_to_come_the_backward_s_config_does_not_matter():
    x, weight = torch.empty(2, WIDE, device="meta"), torch.empty(WIDE, device="meta")
    with described_for(Target("sm_90", 16)) as launches:
        rms_norm(x, weight, config=replace(SPLIT, split=False, reread=True))
        assert names(launches) == REREAD


@contextmanager
def refused(words: str, kernels: tuple[str, ...]) -> Iterator[list[Launch]]:
    """An H100 whose driver refuses to launch some kernels, as for a green context."""
    ran: list[Launch] = []

    def driver(launch: Launch) -> None:
        if launch.kernel.__name__ in kernels:
            raise RuntimeError(f"Triton Error [CUDA]: {words}")
        ran.append(launch)

    with described_for(Target("sm_90", 132)), watched(driver):
        yield ran


TOO_LARGE = "too many blocks in cooperative launch"
ALL = ("normalise_split_rows", "differentiate_split_rows")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        (ALL, REREAD + TWO_KERNELS),
        (ALL[:1], REREAD + SPLIT_BACKWARD),
        (ALL[1:], SPLIT_FORWARD + TWO_KERNELS),
    ],
    ids=["both", "forward", "backward"],
)
def test_where_the_driver_refuses_rows_are_not_split(kernels, expected, with_residual, dtype):
    with refused(TOO_LARGE, kernels) as ran:
        for _ in range(2):
            call(64, 262_144, dtype=dtype, with_residual=with_residual)
        assert names(ran) == 2 * expected


def test_a_driver_that_refused_once_is_asked_again():
    with refused(TOO_LARGE, ALL) as ran:
        call(64, 262_144)
        with watched(ran.append):
            call(64, 262_144)
        assert names(ran) == REREAD + TWO_KERNELS + SPLIT_FORWARD + SPLIT_BACKWARD


def test_a_given_config_that_the_driver_refuses_is_a_mistake():
    with (
        refused(TOO_LARGE, ALL),
        pytest.raises(ValueError, match=r"fewer than the GPU's 132 .*\(a green context\): give a"),
    ):
        call(2, 640, config=SPLIT)


def test_other_errors_of_the_driver_are_raised():
    with refused("an illegal memory access", ALL), pytest.raises(RuntimeError, match="an illegal"):
        call(64, 262_144)
