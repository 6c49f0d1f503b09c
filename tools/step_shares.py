"""Where the time of a training step goes, by operator, of one provider beside another:

    python tools/step_shares.py eager triton_all B=16 S=256 C=384 H=8

B=16 and the like are axes of the family `train_step`. On a GPU shares are of the kernels' time, on
a CPU of that of PyTorch's operators and the Python between them, Triton's interpreter included.

Steps run under torch.profiler, not as they are timed. Modules open a range while they run forward;
what runs in the innermost counts for it: `norm` (with the residual's addition), `rotary`,
`attention` (without projections), `swiglu`, `products` (linear layers, their weights' casts, and
logits), `loss`, `optimizer`. Backward, a node of autograd counts for the operator that made it, by
the profiler's sequence numbers. The embedding, gradients that are added up or scaled, and kernels
that no operator launched are `rest`.

Limits. What torch.compile makes has no modules: matrix products, attention and our kernels count by
their names, and all that Inductor generates is `fused`, where norms, rotary, swiglu and loss are no
longer apart. Shares are of busy time: nothing counts where the GPU idles, and kernels side by side
count each.
"""

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

RANGE = "step_shares."
GROUPS = ["norm", "rotary", "attention", "swiglu", "products", "fused", "loss", "optimizer", "rest"]
OF_MODULES = {
    "RMSNorm": "norm",
    "RotaryEmbedding": "rotary",
    "Attention": "attention",
    "MLP": "swiglu",
    "Linear": "products",
    "Embedding": "rest",
    "Transformer": "products",  # what it does itself: logits
}
COMPILED = re.compile("Torch-Compiled Region|CompiledFunction")
NODE = "autograd::engine::evaluate_function: "
OF_NAMES = (  # in graphs of torch.compile, the first that an operator or one around it is called
    ("norm", re.compile("kernelbench::rms_norm")),
    ("rotary", re.compile("kernelbench::.*rotary")),
    ("swiglu", re.compile("kernelbench::swiglu")),
    ("attention", re.compile("kernelbench::att|scaled_dot_product|_attention_")),
    ("products", re.compile(r"aten::(mm|bmm|addmm|baddbmm)\b|triton_tem_")),
)


@contextmanager
def ranges(call: Any) -> Iterator[None]:
    """Inside, a step's loss and its modules open ranges while they run; compiled modules would be
    compiled anew, and do not."""
    opened: list[Any] = []
    whole = call.loss

    def ranged(*args: Any) -> Any:
        with record_function(RANGE + "loss"):
            return whole(*args)

    def enter(module: Any, args: Any) -> None:
        opened.append(record_function(RANGE + OF_MODULES[type(module).__name__]))
        opened[-1].__enter__()

    def leave(module: Any, args: Any, result: Any) -> None:
        opened.pop().__exit__(None, None, None)

    modules = () if call.compiled else call.model.modules()
    held = [module for module in modules if type(module).__name__ in OF_MODULES]
    hooks = [module.register_forward_pre_hook(enter) for module in held]
    hooks += [module.register_forward_hook(leave) for module in held]
    call.loss = ranged
    try:
        yield
    finally:
        call.loss = whole
        for hook in hooks:
            hook.remove()


def above(event: Any) -> Iterator[Any]:
    """An event, and those around it from the innermost on."""
    while event is not None:
        yield event
        event = event.cpu_parent


def forward_group(event: Any) -> str | None:
    """The group of what runs forward or in the optimizer; None of what nothing of that holds."""
    chain = [each.name for each in above(event)]
    if any(COMPILED.search(name) for name in chain):
        return next((g for g, p in OF_NAMES if any(map(p.search, chain))), "fused")
    for name in chain:
        if name.startswith(RANGE):
            return name.removeprefix(RANGE)
        if name.startswith("Optimizer."):
            return "optimizer"
    return None


def group(event: Any, made: Mapping[int, str]) -> str:
    """made: by sequence number, the group of the operator that made a node."""
    found = forward_group(event)
    if found is None:
        nodes = (each for each in above(event) if each.name.startswith(NODE))
        found = next((made.get(node.sequence_nr) for node in nodes), None)
    return found or "rest"


def makers(events: Sequence[Any]) -> dict[int, str]:
    """By sequence number, the group of the operator that made a node: the last that had it."""
    made = {}
    for event in sorted(events, key=lambda e: (e.time_range.start, -e.time_range.end)):
        if event.sequence_nr >= 0 and not any(each.name.startswith(NODE) for each in above(event)):
            made[event.sequence_nr] = forward_group(event) or "rest"
    return made


def times(events: Sequence[Any], device: str) -> dict[str, float]:
    """Microseconds by group."""
    host = [e for e in events if e.device_type == torch.autograd.DeviceType.CPU]
    made, found = makers(host), dict.fromkeys(GROUPS, 0.0)
    for event in host:
        on_gpu, on_cpu = event.self_device_time_total, event.self_cpu_time_total
        found[group(event, made)] += on_gpu if device == "cuda" else on_cpu
    if device == "cuda":
        kernels = (e for e in events if e.device_type == torch.autograd.DeviceType.CUDA)
        whole = sum(e.time_range.elapsed_us() for e in kernels if not e.is_user_annotation)
        found["rest"] += max(whole - sum(found.values()), 0.0)
    return found


def of_step(case: Any, provider: Any, inputs: Mapping[str, Any], steps: int) -> dict[str, float]:
    """Microseconds of a step by group, the mean of so many steps behind three others."""
    device = inputs["params"].device.type
    call = provider.build(case, None)
    with torch.no_grad():
        for _ in range(3):
            call(inputs)
        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
        with ranges(call), profile(activities=kinds) as profiled:
            for _ in range(steps):
                call(inputs)
            if device == "cuda":
                torch.cuda.synchronize()
    return {name: us / steps for name, us in times(profiled.events(), device).items()}


def table(columns: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Lines: a row a group, for each provider its time and its share."""
    yield "".join([f"{'group':12}", *(f"{name:>16} {'share':>8}" for name in columns)])
    totals = {name: sum(column.values()) for name, column in columns.items()}
    for each in (*GROUPS, "step"):
        row = [f"{each:12}"]
        for name, column in columns.items():
            us = column.get(each, totals[name])
            row.append(f"{us / 1e3:13.3f} ms {us / totals[name]:8.1%}")
        yield "".join(row)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("words", nargs="+", metavar="PROVIDER or AXIS=VALUE")
    parser.add_argument("--steps", type=int, default=5)
    asked = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")
    from kernelbench import families
    from kernelbench.measure.inputs import Draw

    family = families.load()["train_step"]
    axes = dict(word.split("=", 1) for word in asked.words if "=" in word)
    case = family.case.from_axes({k: int(v) if v.isdecimal() else v for k, v in axes.items()})
    columns = {}
    for name in (word for word in asked.words if "=" not in word):
        inputs = family.inputs(case, Draw(case, device, seed=0))
        columns[name] = of_step(case, family.provider(name), inputs, asked.steps)
    print(case.id, f"on {torch.cuda.get_device_name() if device == 'cuda' else 'a CPU'}")
    print(*table(columns), sep="\n")


if __name__ == "__main__":
    main()
