"""Counts the instructions of a compiled kernel in its SASS, or without a disassembler in its PTX,
which has the same instructions under other names, before they are unrolled."""

import re
import struct
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from tempfile import NamedTemporaryFile

import triton

BYTES = 16  # of an instruction, from sm_70 on

_SASS = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
_PTX = re.compile(r"^\s*(?:@!?%\w+\s+)?((?:wgmma|mma|tcgen05|cp|ld|st|red)\.[\w.:]+)", re.MULTILINE)


@dataclass(frozen=True)
class Code:
    """The instructions of a kernel, each counted once for every place in the code.

    counted_in: `SASS` or `PTX`. wgmma, mma, tcgen05: products of tensor cores by kind.
    tma_loads, tma_stores: of tiles and of bulk memory; stores include those that add.
    loads: from global memory, not by TMA, loads_128: those of 16 bytes. code_bytes: of SASS.
    """

    counted_in: str
    wgmma: Mapping[str, int]
    mma: Mapping[str, int]
    tcgen05: Mapping[str, int]
    tma_loads: int
    tma_stores: int
    loads: int
    loads_128: int
    code_bytes: int


def code_of(cubin: bytes, ptx: str) -> Code:
    """Count the instructions of a kernel."""
    sass = _disassembled(cubin)
    size = size_of(cubin)
    return of_ptx(ptx, size) if sass is None else of_sass(sass, size)


def _disassembled(cubin: bytes) -> str | None:
    """The SASS; None where Triton has no NVIDIA disassembler, or that cannot read the code."""
    try:
        tool = triton.knobs.nvidia.nvdisasm.path
        with NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            command = [
                tool,
                "-c",
                "-ndf",
                file.name,
            ]  # no data flow, which would double the time
            done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, RuntimeError, subprocess.CalledProcessError):
        return None
    return done.stdout


def of_sass(text: str, size: int) -> Code:
    """From lines such as `/*0b50*/  @P0 HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;`."""
    counts = Counter(_SASS.findall(text))
    return Code(
        "SASS",
        wgmma=_kinds(counts, r"[HQI]GMMA\."),
        mma=_kinds(counts, r"[HIQOD]MMA\."),
        tcgen05=_kinds(counts, r"UTC\w*MMA"),
        tma_loads=_total(counts, r"UTMALDG|UBLKCP\.S"),
        tma_stores=_total(counts, r"UTMASTG|UTMAREDG|UBLKCP\.G|UBLKRED"),
        loads=_total(counts, r"LDG\.|LDG$|LDGSTS"),
        loads_128=_total(counts, r"(LDG|LDGSTS)\b.*\.128"),
        code_bytes=size,
    )


def of_ptx(text: str, size: int) -> Code:
    """From lines such as `wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {…`."""
    counts = Counter(_PTX.findall(text))
    vectors = r"(ld\.global.*\.v4\.(b|u|s|f)32)|(ld\.global.*\.v2\.(b|u|s|f)64)"
    copies = len(re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*, 0x10[,; ]", text))
    return Code(
        "PTX",
        wgmma=_kinds(counts, r"wgmma\.mma_async"),
        mma=_kinds(counts, r"mma\.sync"),
        tcgen05=_kinds(counts, r"tcgen05\.mma"),
        tma_loads=_total(counts, r"cp\.async\.bulk(\.tensor\.\w+)?\.shared"),
        tma_stores=_total(counts, r"cp\.(async|reduce\.async)\.bulk(\.tensor\.\w+)?\.global"),
        loads=_total(counts, r"ld\.global|cp\.async\.c[ag]\."),
        loads_128=_total(counts, vectors) + copies,
        code_bytes=size,
    )


def _kinds(counts: Mapping[str, int], pattern: str) -> dict[str, int]:
    return {name: count for name, count in sorted(counts.items()) if re.match(pattern, name)}


def _total(counts: Mapping[str, int], pattern: str) -> int:
    return sum(_kinds(counts, pattern).values())


_TEXT = b".text."
_HEADER, _SECTION = struct.Struct("<40xQ10xHHH"), struct.Struct("<I20xQQ24x")


def size_of(cubin: bytes) -> int:
    """The bytes of the code sections of a cubin, which is a 64-bit ELF file."""
    start, size, count, names = _HEADER.unpack_from(cubin)
    sections = [_SECTION.unpack_from(cubin, start + size * i) for i in range(count)]
    at = sections[names][1]
    return sum(length for name, _, length in sections if cubin.startswith(_TEXT, at + name))
