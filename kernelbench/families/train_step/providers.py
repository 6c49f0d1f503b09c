"""A training step by PyTorch's operators and by our kernels: `nn.Transformer`, autograd, AdamW."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kernelbench.families.providing import DTYPES, MAX_AUTOTUNE, compiled
from kernelbench.families.train_step.case import (
    ADAMW,
    BASE,
    NORM_EPS,
    STATE,
    STEPS,
    TrainStepCase,
    averages,
    by_kind,
)
from kernelbench.spec import Call, Device, DType, Tensors

Impls = Mapping[str, str] | str
LARGEST_SCALE = 2.0**16  # where torch.amp.GradScaler begins
NORM_AND_ROTARY = {
    "rms_norm": "triton",
    "rotary": "triton",
    "attention": "eager",
    "swiglu": "eager",
}


class Step:
    """The call of a provider: its first makes model and optimizer, whose tensors are views of the
    inputs; what a call finds elsewhere than the one before is viewed anew.

    impl: of the model's operators, see `nn.ModelConfig`. compile: makes what is called of its loss.
    """

    def __init__(
        self, case: TrainStepCase, impl: Impls, compile: Callable[..., Any] | None = None
    ) -> None:
        self.case, self.impl, self.compiled = case, impl, compile is not None
        self.model: Any = None
        self._compile = compile or (lambda function: function)
        self._viewed: tuple[Any, ...] = ()
        self._updated: tuple[Tensor, ...] = ()  # views that are outputs

    def __call__(self, a: Tensors) -> tuple[Tensor, ...]:
        viewed = a["params"].device, *(a[name].data_ptr() for name in STATE)
        if viewed != self._viewed:
            self._view(a)
            self._viewed = viewed
        self._steps.fill_(STEPS)
        with torch.enable_grad():
            with self._autocast(a["params"].device.type):
                loss = self.loss(a["tokens"], a["targets"])
            (loss if self._scale == 1 else loss * self._scale).backward()
        if not loss.is_meta:  # where kernels are described: AdamW needs values, and is PyTorch's
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach(), *self._updated

    def _autocast(self, device: str) -> AbstractContextManager[Any]:
        narrow = DTYPES[self.case.dtype]
        if narrow is torch.float32:
            return nullcontext()
        return torch.autocast(device, dtype=narrow)

    def _view(self, a: Tensors) -> None:
        if self.model is None or self._viewed[0] != a["params"].device:
            self._make(a)
        self._updated = updated(self.case, a)
        views = {n: parts(self.case, a[n]) for n in STATE} | {"step": self._steps.unbind()}
        for i, name in enumerate(places(self.case)):
            parameter = self.model.get_parameter(name)
            parameter.data = views["params"][i]
            self.optimizer.state[parameter] = {
                key: views[key][i] for key in ("step", "exp_avg", "exp_avg_sq")
            }

    def _make(self, a: Tensors) -> None:
        case, device = self.case, a["params"].device
        self.model = model_of(case, self.impl, parts(case, a["params"]))
        parameters = [self.model.get_parameter(name) for name in places(case)]
        self._steps = torch.zeros(len(parameters), device=device)
        self.optimizer = torch.optim.AdamW(
            parameters,
            **ADAMW,
            fused=device.type in ("cuda", "cpu"),
            capturable=device.type == "cuda",
        )
        self._scale = loss_scale(case)
        if self._scale != 1:  # as torch.amp.GradScaler hands it to a fused optimizer
            of_scaler = torch.full((), self._scale, device=device), torch.zeros((), device=device)
            vars(self.optimizer).update(zip(("grad_scale", "found_inf"), of_scaler, strict=True))
        self.loss = self._compile(self.model.loss)


def loss_scale(case: TrainStepCase) -> float:
    """By what a loss in fp16 is multiplied, so that its gradients do not vanish: the gradient of a
    logit is about as large as its share of the probability."""
    if case.dtype is not DType.fp16:
        return 1.0
    return min(2.0 ** (case.tokens.bit_length() - 1), LARGEST_SCALE)


def model_of(case: TrainStepCase, impl: Impls, weights: list[Tensor]) -> nn.Module:
    """A Transformer whose parameters are `weights`, in the order of `places`."""
    from kernelbench.nn import ModelConfig, Transformer

    config: Any = ModelConfig(
        vocab_size=case.V,
        d_model=case.C,
        n_heads=case.H,
        n_kv_heads=case.kv_heads,
        n_layers=case.layers,
        d_ff=case.hidden,
        max_seq_len=case.S,
        norm_eps=NORM_EPS,
        rope_base=BASE,
        impl=impl,  # type: ignore[arg-type]
    )
    model = Transformer(config, device="meta")
    model.load_state_dict(dict(zip(places(case), weights, strict=True)), assign=True)
    return model


def places(case: TrainStepCase) -> Iterator[str]:
    """The names of the model's parameters, in the order in which they lie."""
    blocks = [f"blocks.{i}." for i in range(case.layers)]
    yield "embedding.weight"
    for block in blocks:
        yield f"{block}attention_norm.weight"
        yield f"{block}mlp_norm.weight"
    yield "norm.weight"
    for name in ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down"):
        yield from (f"{block}{name}.weight" for block in blocks)


def parts(case: TrainStepCase, flat: Tensor) -> list[Tensor]:
    """Views of a flat tensor, of the parameters' shapes."""
    matrices = by_kind(case, flat.detach())
    return [m[0] if kind == "norms" else m for kind, all_of in matrices.items() for m in all_of]


def updated(case: TrainStepCase, a: Tensors) -> tuple[Tensor, ...]:
    """The outputs behind the loss: views of inputs."""
    found = {"avg_sq": a["exp_avg_sq"][:: case.every], "updated": a["params"][:: case.every]}
    for kind, values in by_kind(case, a["exp_avg"]).items():
        found |= averages(case, kind, values)
    return tuple(found[name] for name in case.names[1:])


def eager(case: TrainStepCase, config: Any) -> Call:
    """PyTorch's operators, SDPA on the backend that `nn.sdpa` puts first."""
    return Step(case, "eager")


def compile_step(case: TrainStepCase, config: Any) -> Call:
    """The forward with its loss as one graph, the backward as another; the optimizer is not."""
    return Step(case, "eager", compiled)


def compile_max_autotune(case: TrainStepCase, config: Any) -> Call:
    """As `compile`, its matrix products and their epilogues chosen by trial."""
    return Step(case, "eager", partial(compiled, mode=MAX_AUTOTUNE))


def triton_norm_and_rotary(case: TrainStepCase, config: Any) -> Call:
    """Our RMSNorm and our rotary embedding, the rest as `eager`."""
    return Step(case, NORM_AND_ROTARY)


def triton_all(case: TrainStepCase, config: Any) -> Call:
    """Our RMSNorm, rotary embedding, attention and SwiGLU, the rest as `eager`."""
    return Step(case, "triton")


def triton_compile(case: TrainStepCase, config: Any) -> Call:
    """As `triton_all`, compiled: our kernels are operators of the graph."""
    return Step(case, "triton", compiled)


def serves(case: TrainStepCase, device: Device) -> str | None:
    if case.dtype is DType.tf32:
        return "our kernels multiply fp32 exactly, never as TF32"
    return None if case.head <= 256 else f"our kernels take heads of up to 256, not {case.head}"


def on_a_gpu(case: TrainStepCase, device: Device) -> str | None:
    if device.kind == "cpu":
        return "what torch.compile makes of interpreted kernels tells nothing"
    return serves(case, device)
