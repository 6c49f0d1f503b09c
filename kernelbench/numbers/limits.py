"""The shortest time that a machine's measured ceilings allow for a cost, and what bounds it."""

from collections.abc import Mapping

PLAUSIBLE = 1.05  # a measured rate above this multiple of its ceiling is refused


def floors_ns(read: int, write: int, flops: int, ceilings: Mapping[str, float]) -> dict[str, float]:
    """The time in ns that each resource needs at the machine's own measured limit.

    read, write: bytes; flops: FMA = 2. ceilings: `read_gbps`, `write_gbps`, `copy_gbps` (decimal
    GB/s = bytes/ns, at this footprint, copy counting bytes read and written) and `tflops` (of the
    precision mix). A ceiling that was not measured sets no limit.
    """
    memory = [
        amount / ceilings[name]
        for name, amount in (
            ("read_gbps", read),
            ("write_gbps", write),
            ("copy_gbps", read + write),
        )
        if ceilings.get(name)
    ]
    floors = {"memory": max(memory)} if memory else {}
    if ceilings.get("tflops"):
        floors["compute"] = flops / (ceilings["tflops"] * 1e3)
    return floors


def fastest_plausible_ns(read: int, flops: int, ceilings: Mapping[str, float]) -> float:
    """The shortest time in ns that a correct call can take; a faster one did not do its work.

    read: bytes; flops: FMA = 2. ceilings: `peak_read_gbps` (decimal GB/s = bytes/ns) and `tflops`.
    Reads alone are compared with the best read rate at any footprint: dirty lines that stay in L2
    make writes look free.
    """
    times = [0.0]
    if ceilings.get("peak_read_gbps"):
        times.append(read / ceilings["peak_read_gbps"])
    if ceilings.get("tflops"):
        times.append(flops / (ceilings["tflops"] * 1e3))
    return max(times) / PLAUSIBLE
