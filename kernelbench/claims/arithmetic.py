"""Find what is wrong with a claim from its own figures alone: no run is needed."""

import re
from collections.abc import Mapping

from kernelbench.claims.peaks import MARGIN, PEAKS, model_of, models_in, rate
from kernelbench.claims.words import Bound, Claim, Document, Metric

MIB = 2**20
_COUNT = re.compile(r"\b(\d{1,5}) ?[x×](?= ?[A-Za-z])|(?<![A-Za-z])[x×] ?(\d{1,3})\b")


def gpus_of(claim: Claim, document: Document) -> tuple[str, ...]:
    """The GPUs that a claim is about: as listed, else those that its hardware mentions, else the
    text itself. The document's, where the claim states no hardware of its own."""
    if claim.gpus is not None:
        return claim.gpus
    if claim.hardware is None and document.gpus:
        return document.gpus
    hardware = hardware_of(claim, document)
    return models_in(hardware) or ((hardware,) if hardware else ())


def gpu_count_of(claim: Claim, document: Document) -> int:
    """As stated, else the most of `2x NVIDIA …`, `8 × …` and `H100 x8` in the hardware, else 1."""
    if count := claim.gpu_count or document.gpu_count:
        return count
    counts = _COUNT.findall(hardware_of(claim, document))
    return max((int(before or behind) for before, behind in counts), default=1) or 1


def hardware_of(claim: Claim, document: Document) -> str:
    """As the document states it; nothing where it does not."""
    return document.hardware if claim.hardware is None else claim.hardware


def impossible(claim: Claim, document: Document) -> str:
    """Why no named GPU can reach the figure; nothing where one can, or none is known.

    The figure is granted all GPUs of the machine, 15 % above the datasheet, the best of several
    models, and an L2 full of its bytes. A bound or a range is taken at its slower end.
    """
    known = [name for gpu in gpus_of(claim, document) if (name := model_of(gpu))]
    if not known or len(known) < len(gpus_of(claim, document)):
        return ""
    count = gpu_count_of(claim, document)
    reasons = [_beyond(claim, name, count) for name in known]
    return reasons[0] if all(reasons) else ""


def _beyond(claim: Claim, gpu: str, count: int) -> str:
    peak, work, ms = PEAKS[gpu], claim.work, slowest_ms(claim)
    machine = f"{count} × {gpu}" if count > 1 else gpu
    dtype = work.dtype if work else ""
    flops = implied_gflops(claim, ms)
    most = rate(peak, dtype) * count * 1e3
    if flops and flops > most * MARGIN:
        how = f"{work.flops:,} flops / {ms:g} ms = " if work and ms else ""
        kind = f" in {dtype}" if dtype else ""
        return (
            f"{how}{flops:,.0f} GFLOP/s, {flops / most:.2f} × the peak of {machine}{kind} "
            f"({most:,.0f}: {peak.source})"
        )
    moved = implied_gbps(claim, ms, peak.l2_mib * count)
    if moved and moved > peak.gbps * count * MARGIN:
        l2 = f"{peak.l2_mib * count:g} MiB of L2"
        how = f"({work.bytes:,} bytes − {l2}) / {ms:g} ms = " if work and ms else ""
        return (
            f"{how}{moved:,.0f} GB/s, {moved / peak.gbps / count:.2f} × the bandwidth of {machine} "
            f"({peak.gbps * count:,.0f}: {peak.source})"
        )
    return ""


def slowest_ms(claim: Claim) -> float | None:
    """The longest time of one call that the figure allows."""
    low, high = claim.value
    if claim.metric is Metric.ms and claim.bound is not Bound.at_least:
        return high
    fits = claim.metric is Metric.tokens_per_s and claim.bound is not Bound.at_most
    if fits and claim.work and claim.work.tokens and low > 0:
        return claim.work.tokens / low * 1e3
    return None


def implied_gflops(claim: Claim, ms: float | None) -> float | None:
    if claim.metric is Metric.gflops and claim.bound is not Bound.at_most:
        return claim.value[0]
    return claim.work.flops / ms / 1e6 if claim.work and claim.work.flops and ms else None


def implied_gbps(claim: Claim, ms: float | None, l2_mib: float) -> float | None:
    """DRAM bandwidth: only bytes that do not fit the L2 count."""
    if claim.metric is Metric.gbps and claim.bound is not Bound.at_most:
        return claim.value[0]
    if not (claim.work and claim.work.bytes and ms):
        return None
    return max(0.0, claim.work.bytes - l2_mib * MIB) / ms / 1e6


def contradiction(claim: Claim, others: Mapping[str, Claim]) -> str:
    """Why a ratio is not that of the two figures that it names; nothing where it is."""
    if not claim.ratio_of:
        return ""
    above, below = (others[name] for name in claim.ratio_of)
    ends = [_quotient(above.reach[i], below.reach[1 - i]) for i in (0, 1)]
    low, high = claim.reach
    if ends[0] <= high and low <= ends[1]:
        return ""
    ratio = _quotient(above.value[0], below.value[0])
    return f"the document's own {above.id} / {below.id} is {ratio:.3g}"


def _quotient(above: float, below: float) -> float:
    return above / below if below > 0 else float("inf")
