"""A family whose kernels are right by luck: beyond a tensor, in a race, from unwritten memory."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernelbench.spec import Case, Cost, DType, Family, Provider, Role, axis

BLOCK, WARPS = 128, 4  # an element a thread


@dataclass(frozen=True, kw_only=True)
class UnsafeCase(Case):
    """n numbers to double, fewer than a block has."""

    n: int = axis("how many")


def oracle(case, a):
    yield "y", ..., 2 * a["x"].double()


@triton.jit
def doubled_within(x, y, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, 2 * tl.load(x + at, mask=at < n), mask=at < n)


@triton.jit
def doubled_beyond(x, y, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, 2 * tl.load(x + at, mask=at < n))  # no mask


@triton.jit
def doubled_in_a_race(x, y, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    seen = tl.inline_asm_elementwise(
        """{
        .shared .align 4 .b32 cell;
        st.volatile.shared.b32 [cell], $1;
        ld.volatile.shared.b32 $0, [cell];
        }""",
        "=r,r",
        [at],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )  # every warp writes the cell and reads it, and no barrier is between them
    tl.store(y + at, 2 * tl.load(x + at, mask=at < n), mask=(at < n) & (seen >= 0))


@triton.jit
def doubled_from_unwritten(x, y, scratch, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    seen = tl.load(scratch + at, mask=at < n)
    tl.store(y + at, 2 * tl.load(x + at, mask=at < n), mask=(at < n) & (seen != 123456789))


def of(kernel, *, scratch=False):
    def build(case, config):
        def call(a):
            y = torch.empty_like(a["x"])
            more = [torch.empty_like(y, dtype=torch.int32)] if scratch else []
            kernel[(1,)](a["x"], y, *more, case.n, BLOCK=BLOCK, num_warps=WARPS)
            return y

        return call

    return build


def on_a_gpu(case, device):
    return None if device.kind == "cuda" else "what it does wrong, it does on a GPU"


def provider(name, *build, **options):
    return Provider(
        name, Role.peer, of(*build, **options), requires=("triton",), unsupported=on_a_gpu
    )


FAMILY = Family(
    name="unsafe",
    title="Doubling, by kernels that a sanitizer must find",
    case=UnsafeCase,
    inputs=lambda case, draw: {"x": draw(case.n)},
    outputs=lambda case: ("y",),
    oracle=oracle,
    cost=lambda case: Cost(case.n, 4 * case.n, 4 * case.n),
    checks=tuple(UnsafeCase.grid(n=[100, 101], dtype=DType.fp32)),
    providers=(
        Provider("eager", Role.baseline, lambda case, config: lambda a: a["x"] * 2),
        provider("within", doubled_within),
        provider("beyond", doubled_beyond),
        provider("race", doubled_in_a_race),
        provider("unwritten", doubled_from_unwritten, scratch=True),
    ),
)
