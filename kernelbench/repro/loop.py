"""What a script of `kernelbench repro` does with its record: check, then time, one provider.

Written into the script as it stands here; it needs torch alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

SAMPLES = 64
BLOCK = 8  # samples queued behind one gate
GATE_CYCLES = 40_000_000  # about 20 ms, in which the CPU queues a block
DTYPES = {
    "fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16,
}  # fmt: skip


class Draw:
    """Inputs of the record's distribution from its seed."""

    def __init__(self, dtype: torch.dtype, kind: str, seed: int, device: str) -> None:
        self.device, self.dtype, self._kind = torch.device(device), dtype, kind
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        out = torch.empty(shape, dtype=dtype or self.dtype, device=self.device)
        if self._kind in ("zeros", "ones"):
            return out.fill_(self._kind == "ones")
        if self._kind == "uniform":
            return out.uniform_(-1, 1, generator=self._generator)
        out.normal_(generator=self._generator)
        if self._kind == "outliers":
            out.view(-1)[::1024] *= 100
        return out

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self._generator, device=self.device)


def reproduce(family: Any, record: Mapping[str, Any]) -> int:
    """Print the provider's errors and, on a GPU, its time next to the recorded one.

    Returns an exit code: 1 where an error is above its budget.
    """
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    case = family.case.from_axes(record["axes"])
    torch.backends.cuda.matmul.allow_tf32 = case.dtype == "tf32"
    torch.backends.cudnn.allow_tf32 = case.dtype == "tf32"
    provider = family.provider(record["provider"])
    print(f"{record['family']} {record['case']} · {provider.name} · {_machine(kind)}")
    if kind == "cpu" and case.dtype == "bf16" and "triton" in provider.requires:
        print("skipped: bf16 arithmetic is wrong in Triton's interpreter; a GPU is needed")
        return 0
    draw = Draw(DTYPES[case.dtype], str(case.inputs), record["seed"], kind)
    inputs = dict(family.inputs(case, draw))
    for name, tensor in inputs.items():
        print(f"  {name}: {tuple(tensor.shape)}, strides {tensor.stride()}, {tensor.dtype}")
    config = _config(provider, case, kind, record["config"])
    _, call = bind(family, case, provider, inputs, config)
    ours = dict(zip(names_of(family, case), call(), strict=True))
    _, other = bind(family, case, family.baseline, inputs, None)
    theirs = dict(zip(names_of(family, case), other(), strict=True))
    wrong = _compare(family, case, inputs, ours, theirs, record["errors"])
    if kind == "cpu":
        print("no GPU: correctness only, no time")
    else:
        restore, call = bind(family, case, provider, inputs, config)
        _print_time(record, time(restore, call))
    return int(wrong)


def names_of(family: Any, case: Any) -> list[str]:
    """Names of what a call returns: outputs, and gradients unless it is a forward alone."""
    graded = family.grads(case) if case.mode != "fwd" else ()
    return [*(family.outputs(case) if case.mode != "bwd" else ()), *(f"d{g}" for g in graded)]


def bind(
    family: Any, case: Any, provider: Any, inputs: Mapping[str, torch.Tensor], config: Any
) -> tuple[Callable[[], None], Callable[[], tuple[torch.Tensor, ...]]]:
    """A function that restores inputs that a call overwrites, untimed; and the call itself."""
    graded = family.grads(case) if case.mode != "fwd" else ()
    mutated = provider.mutates(case)
    own = {name: t.clone() if name in mutated else t for name, t in inputs.items()}
    args = {
        name: tensor.detach().requires_grad_(name in graded)
        for name, tensor in provider.prepare(case, own).items()
    }
    backup = {name: args[name].detach().clone() for name in mutated if name in args}
    function = provider.build(case, config)
    leaves = [args[name] for name in graded]
    pairs = [(i, args.get(f"grad_{name}")) for i, name in enumerate(family.outputs(case))]
    chosen = [i for i, upstream in pairs if upstream is not None]
    upstream = [tensor for _, tensor in pairs if tensor is not None]

    def forward() -> tuple[torch.Tensor, ...]:
        with torch.set_grad_enabled(case.mode != "fwd"):
            out = function(args)
        return out if isinstance(out, tuple) else (out,)

    graph = forward() if case.mode == "bwd" else ()

    def call() -> tuple[torch.Tensor, ...]:
        if case.mode == "fwd":
            return forward()
        out = graph or forward()
        roots, again = [out[i] for i in chosen], bool(graph)
        dleaves = torch.autograd.grad(roots, leaves, upstream, retain_graph=again)
        return dleaves if graph else (*(o.detach() for o in out), *dleaves)

    def restore() -> None:
        for name, tensor in backup.items():
            args[name].data.copy_(tensor)

    restore()
    return restore, call


def time(restore: Callable[[], None], call: Callable[[], Any]) -> list[float]:
    """Samples in µs with a cold L2. Blocks whose gate did not hold are measured again, three
    times as long; raises RuntimeError where none of them holds."""
    words = max(2 * torch.cuda.get_device_properties(0).L2_cache_size, 64 << 20) // 4
    flush, total = torch.zeros(words, device="cuda"), torch.zeros((), device="cuda")
    cycles, samples = GATE_CYCLES, list[float]()
    for _ in range(3):
        restore()
        call()
    while len(samples) < SAMPLES:
        torch.cuda.synchronize()
        pairs = [_events() for _ in range(BLOCK)]
        torch.cuda._sleep(cycles)
        for begin, end in pairs:
            restore()
            flush.zero_()  # writing evicts, reading leaves no dirty lines
            torch.sum(flush, dim=0, out=total)
            begin.record()
            call()
            end.record()
        gate_held = not pairs[0][0].query()
        torch.cuda.synchronize()
        if gate_held:
            samples += [begin.elapsed_time(end) * 1e3 for begin, end in pairs]
        elif (cycles := cycles * 3) > GATE_CYCLES * 100:
            raise RuntimeError(
                "the queue runs dry however long the gate: times would hold launches"
            )
    return samples


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def _print_time(record: Mapping[str, Any], samples: list[float]) -> None:
    overhead = record["overhead_us"] or 0.0
    ordered = sorted(max(sample - overhead, 0.0) for sample in samples)
    low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
    print(f"measured now: median {median(ordered):.4g} µs, quartiles [{low:.4g}, {high:.4g}] µs,")
    print(f"  {len(ordered)} samples less the {overhead:.3g} µs that the recorded run took off")
    print(f"recorded:     {record['expected'] or 'no time'}")


def _machine(kind: str) -> str:
    return torch.cuda.get_device_name() if kind == "cuda" else "no GPU"


def _config(provider: Any, case: Any, kind: str, recorded: Any) -> Any:
    """The recorded config, or this machine's first where it has no such config."""
    if provider.configs is None:
        return None
    configs = list(provider.configs(case, _device(kind)))
    for config in configs:
        if asdict(config) == recorded:
            return config
    if kind == "cuda" and recorded and recorded.keys() == asdict(configs[0]).keys():
        return replace(configs[0], **recorded)
    if recorded:
        print(f"config: not the recorded one, which this machine has not, but {configs[0]}")
    return configs[0]


def _device(kind: str) -> Any:
    if kind == "cpu":
        return SimpleNamespace(
            kind="cpu", name="cpu", arch="cpu", capability=None, total_bytes=0, l2_bytes=0,
            sms=0, no_triton="",
        )  # fmt: skip
    p = torch.cuda.get_device_properties(0)
    return SimpleNamespace(
        kind="cuda", name=p.name, arch=f"sm_{p.major}{p.minor}", capability=(p.major, p.minor),
        total_bytes=p.total_memory, l2_bytes=p.L2_cache_size, sms=p.multi_processor_count,
        no_triton="",
    )  # fmt: skip


def _compare(
    family: Any,
    case: Any,
    inputs: Mapping[str, torch.Tensor],
    outputs: Mapping[str, torch.Tensor],
    theirs: Mapping[str, torch.Tensor],
    recorded: Mapping[str, Any],
) -> bool:
    """Print relative errors against the fp64 oracle; whether one is above its budget."""
    sums = {name: [0.0, 0.0, 0.0] for name in outputs}
    for name, index, right, *computed in family.oracle(case, inputs):
        if name in outputs:
            gaps = [f[name][index].double() - right for f in (outputs, theirs)]
            judged = torch.stack(computed).sum(0) if computed else right
            for i, part in enumerate([*gaps, judged]):
                sums[name][i] += float(part.square().sum())
    wrong = False
    for name, (ours, baseline, norm) in sums.items():
        error, other = ((part / (norm or 1.0)) ** 0.5 for part in (ours, baseline))
        limits = recorded.get(name, {})
        note = (
            f"; recorded {limits['rel']:.2e}, budget {limits['rel_budget']:.2e}" if limits else ""
        )
        bad = bool(limits) and not error <= limits["rel_budget"]
        wrong |= bad
        print(f"{name}: relative error {error:.2e}, the baseline's {other:.2e}{note}{' ✗' * bad}")
    return wrong
