"""Trains a small language model, on the kernels that were measured to be right and faster here.

    python examples/train.py --size small --out runs/small
    torchrun --nproc-per-node 2 examples/train.py --size medium --out runs/medium

The text is docs/*.md, its tokens are bytes, and the last tenth is held out. At the start every
operator of the model is timed at the very sizes that it will have, and PyTorch's is kept unless
ours is right and clearly faster; see docs/train.md. Without a GPU there is nothing to choose by,
and PyTorch's operators run, or with --impl triton Triton's interpreter: there, add --tiny.
"""

import argparse
import csv
import importlib.util
import io
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group, which it would hold beyond its end
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

if not torch.cuda.is_available():  # before any kernel is made
    os.environ.setdefault("TRITON_INTERPRET", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import kernelbench
from kernelbench.dispatch import Choice, Dispatch, Where
from kernelbench.nn import PROVIDERS, ModelConfig, Transformer, use_dispatch

CUDA = torch.cuda.is_available()
DEVICE = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if CUDA else "cpu")
DOCS = Path(__file__).parent.parent / "docs"
NAMES = {"rms_norm": "RMSNorm", "rotary": "Rotary", "swiglu": "SwiGLU", "attention": "Attention"}
IMPLS = {"eager": "PyTorch", "compile": "Compiled", "triton": "Triton"}
NO_SPEEDS, HELD_OUT, CLIP, DECAY = "without a GPU there are no speeds", 0.1, 1.0, 0.1


class Size(NamedTuple):
    batch: int  # of all ranks
    tokens: int
    d_model: int
    heads: int
    layers: int
    rate: float
    steps: int
    validation: int  # batches


SIZES = {
    "tiny": Size(2, 16, 32, 2, 1, 3e-3, 6, 1),
    "small": Size(16, 256, 384, 8, 6, 1e-3, 1000, 8),
    "medium": Size(32, 512, 768, 12, 12, 6e-4, 1000, 8),
    "large": Size(64, 1024, 1024, 16, 24, 3e-4, 1000, 8),
}


class Ranks(NamedTuple):
    """This process among those that train together."""

    rank: int
    count: int

    def mean(self, x: Tensor) -> Tensor:
        if self.count > 1:
            dist.all_reduce(x)
        return x / self.count


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The flags; what does not fit together ends with one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--size", choices=SIZES, default="small", help="of the model and of a batch")
    add("--tiny", action="store_const", const="tiny", dest="size", help="for a CPU, in a minute")
    add("--steps", type=int, help="of the whole schedule")
    add("--stop", type=int, metavar="STEP", help="stop there; --resume goes on")
    add("--seed", type=int, default=0)
    add("--impl", choices=("auto", *IMPLS), default="auto", help="of every operator")
    add("--op", action="append", default=[], metavar="OPERATOR=IMPL", help="of one, forced")
    add("--no-benchmark", action="store_true", help="choose nothing: PyTorch unless forced")
    add("--dispatch", type=Path, metavar="FILE", help="choose by a table of kernelbench select")
    add("--compile", action="store_true", help="compile the whole model, as one graph")
    add("--out", type=Path, metavar="DIR", help="checkpoint, losses.csv, choices")
    add("--every", type=int, help="steps between validations and checkpoints; a quarter of all")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--log", choices=("none", "tensorboard", "wandb"), default="none")
    args = parser.parse_args(argv)
    size = SIZES[args.size]
    ranks = int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1
    args.steps = size.steps if args.steps is None else args.steps
    args.stop = args.steps if args.stop is None else args.stop
    args.every = max(1, args.steps // 4) if args.every is None else args.every
    args.forced = {} if args.impl == "auto" else dict.fromkeys(NAMES, args.impl)
    for text in args.op:
        op, _, impl = text.partition("=")
        if op not in NAMES or impl not in IMPLS:
            parser.error(f"--op {text}: one of {', '.join(NAMES)}, =, one of {', '.join(IMPLS)}")
        args.forced[op] = impl
    kept = bool(args.out) and (args.out / "checkpoint.pt").is_file()
    absent = args.log != "none" and importlib.util.find_spec(args.log) is None
    for wrong, why in (
        (min(args.steps, args.every, args.stop) < 1, "--steps, --stop, --every: 1 or more"),
        (args.dispatch and args.no_benchmark, "--dispatch contradicts --no-benchmark"),
        (args.dispatch and not args.dispatch.is_file(), f"--dispatch: no file {args.dispatch}"),
        (args.resume and not kept, f"--resume: no checkpoint in --out {args.out}"),
        (kept and not args.resume, f"{args.out} has a checkpoint: --resume, or another --out"),
        (size.batch % ranks, f"a batch of {size.batch} cannot be split over {ranks} ranks"),
        (absent, f"--log {args.log} needs a package: pip install 'kernelbench[{args.log}]'"),
    ):
        if wrong:
            parser.error(why)
    return args


class Data:
    """Windows of the text: drawn at random for training, always the same ones for validation.
    Where it has got to is the state of its generator. Every rank draws a whole batch and takes
    every so many rows of it."""

    def __init__(self, size: Size, seed: int, ranks: Ranks) -> None:
        texts = b"\n".join(path.read_bytes() for path in sorted(DOCS.glob("*.md")))
        text = torch.frombuffer(bytearray(texts), dtype=torch.uint8)
        cut = int(len(text) * (1 - HELD_OUT))
        self.training, self.held_out, self.size, self.ranks = text[:cut], text[cut:], size, ranks
        self.generator = torch.Generator().manual_seed(seed)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Tokens, and those that follow them, (B,S)."""
        starts = len(self.training) - self.size.tokens
        places = torch.randint(starts, (self.size.batch,), generator=self.generator)
        return self._windows(self.training, places)

    def validation(self) -> list[tuple[Tensor, Tensor]]:
        last = len(self.held_out) - self.size.tokens - 1
        places = torch.linspace(0, last, self.size.validation * self.size.batch).long()
        return [self._windows(self.held_out, part) for part in places.split(self.size.batch)]

    def _windows(self, text: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        mine = places[self.ranks.rank :: self.ranks.count, None]
        windows = text[mine + torch.arange(self.size.tokens + 1)].long().to(DEVICE)
        return windows[:, :-1], windows[:, 1:]


class Loss(nn.Module):
    """The model as one function of a batch, for torch.compile and DistributedDataParallel."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=CUDA):
            return self.model.loss(tokens, targets)


def choose(args: argparse.Namespace, loss: Loss, batch: Any, ranks: Ranks, say: Any) -> Dispatch:
    """Set, on all ranks alike, what operators that are not forced use; say why.

    batch: one of a step, whatever is in it. Operators ask for their choices in it once, so that
    these can be listed, and a graph that is compiled later finds them made.
    """
    kept = args.out / "dispatch.json" if args.out else Path()
    path = args.dispatch or (kept if args.resume and kept.is_file() else None)
    if not CUDA or args.no_benchmark:
        if {*NAMES} - {*args.forced}:
            why = "--no-benchmark" if CUDA else NO_SPEEDS
            say(f"Nothing is chosen: {why}. PyTorch's operators run where none is forced.")
        dispatch = Dispatch(None, Where(), enabled=False)
    elif path:
        say(f"Kernels are chosen by {path}.")
        dispatch = kernelbench.dispatch_from(path)
    else:
        say("Auto-benchmarking kernels for this run...")
        step, first = partial(loss, *batch), ranks.rank == 0
        shared = [kernelbench.choose_kernels(step, say=say) if first else None]
        if ranks.count > 1:
            dist.broadcast_object_list(shared)
        dispatch = Dispatch(shared[0], shared[0].where if shared[0] else Where())
        if args.out and first and shared[0]:
            write(kept, shared[0].to_json().encode())
    use_dispatch(dispatch)
    if CUDA:
        loss(*batch)
    for case, choice in dispatch.decisions.items():
        if path and case.endswith("-full"):
            say(f"  {case}: {choice.provider} ({choice.reason})")
    return dispatch


def summary_of(dispatch: Dispatch, forced: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Every choice that was made, speedup and reason, in plain types, by operator and case."""
    found = dispatch.summary()
    for op, providers in PROVIDERS.items():
        if op in forced or not CUDA:
            provider = providers.get(forced.get(op, "eager"), providers["eager"])
            how = ("forced", "the user wants it") if op in forced else ("off", NO_SPEEDS)
            found[op] = asdict(Choice(provider, *how))
    return found


def selection_of(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The choices for training in a line."""
    parts = []
    for op, name in NAMES.items():
        impl_of = {provider: impl for impl, provider in PROVIDERS[op].items()}
        names = dict.fromkeys(
            IMPLS[impl_of[choice["provider"]]] + " (forced)" * (choice["how"] == "forced")
            for case, choice in summary.items()
            if case == op or (case.startswith(f"{op}/") and case.endswith("-full"))
        )
        parts.append(f"{name}={' and '.join(names)}")
    return f"Kernel selection: {', '.join(parts)}"


def rate_at(step: int, steps: int, most: float) -> float:
    """Up in a straight line for a tenth of all steps, then down to a tenth along a cosine."""
    warm = max(1, steps // 10)
    if step < warm:
        return most * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return most * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def write(path: Path, content: bytes) -> None:
    """Replace a file in one step: whatever happens, the old or the new one is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


@dataclass
class State:
    """All that training goes on from. curve: [step, loss, validation loss or None]."""

    model: Transformer
    optimizer: torch.optim.Optimizer
    data: Data
    settings: dict[str, Any]
    step: int = 0
    curve: list[list[Any]] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        facts = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "data": self.data.generator.get_state(),
            "random": [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if CUDA else [])],
            **{name: getattr(self, name) for name in ("settings", "step", "curve")},
        }
        content = io.BytesIO()
        torch.save(facts, content)
        write(folder / "checkpoint.pt", content.getvalue())
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([["step", "loss", "val"], *self.curve])
        write(folder / "losses.csv", text.getvalue().encode())

    def load(self, folder: Path) -> None:
        """Ends the program where the checkpoint is of another run."""
        facts = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
        if facts["settings"] != self.settings:
            print(f"--resume: {folder} is of {facts['settings']}", file=sys.stderr)
            raise SystemExit(2)
        self.model.load_state_dict(facts["model"])
        self.optimizer.load_state_dict(facts["optimizer"])
        self.data.generator.set_state(facts["data"])
        torch.set_rng_state(facts["random"][0])
        if CUDA and len(facts["random"]) == 1 + torch.cuda.device_count():
            torch.cuda.set_rng_state_all(facts["random"][1:])
        self.step, self.curve = facts["step"], facts["curve"]


class Log:
    """What a tracker is told: losses as they come, and the choices at the end."""

    def __init__(self, kind: str, folder: Path, settings: Mapping[str, Any]) -> None:
        self.kind = kind
        if kind == "wandb":
            folder.mkdir(parents=True, exist_ok=True)
            self.to = importlib.import_module("wandb").init(
                project="kernelbench-train", dir=folder, config=dict(settings)
            )
        elif kind == "tensorboard":
            self.to = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        if self.kind == "wandb":
            self.to.log(dict(values), step=step)
        elif self.kind == "tensorboard":
            for name, value in values.items():
                self.to.add_scalar(name, value, step)

    def close(self, summary: Mapping[str, Any]) -> None:
        if self.kind == "wandb":
            self.to.summary.update({"kernels": summary})
            self.to.finish()
        elif self.kind == "tensorboard":
            self.to.add_text("kernels", f"```\n{json.dumps(summary, indent=1)}\n```")
            self.to.close()


def train(args: Any, state: State, loss: Any, ranks: Ranks, log: Log, console: Console) -> None:
    """Steps up to the last one, each followed by what is due after it."""
    size, data, often = SIZES[args.size], state.data, 10 if CUDA else 1
    last = min(args.steps, args.stop)
    figures = TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:.0f} tokens/s")
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), figures
    pending: list[Tensor] = []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=args.steps, completed=state.step, loss=math.nan, speed=0)
        began = time.perf_counter()
        while state.step < last:
            for group in state.optimizer.param_groups:
                group["lr"] = rate_at(state.step, args.steps, size.rate)
            value = loss(*data.batch())
            value.backward()
            nn.utils.clip_grad_norm_(state.model.parameters(), CLIP)
            state.optimizer.step()
            state.optimizer.zero_grad()
            state.step += 1
            pending.append(value.detach())
            due = state.step % args.every == 0 or state.step == last
            if not due and state.step % often:
                continue
            values = ranks.mean(torch.stack(pending)).tolist()  # waits for the GPU
            speed = len(values) * size.batch * size.tokens / (time.perf_counter() - began)
            for n, each in enumerate(values, state.step - len(values) + 1):
                state.curve.append([n, each, None])
                log.add(n, {"loss": each})
            progress.update(task, completed=state.step, loss=values[-1], speed=speed)
            pending.clear()
            if due:
                with torch.no_grad():
                    found = torch.stack([loss(*batch) for batch in data.validation()]).mean()
                state.curve[-1][2] = val = ranks.mean(found).item()
                log.add(state.step, {"val": val, "tokens_per_s": speed})
                console.print(f"step {n}  loss {each:.4f}  val {val:.4f}  {speed:.0f} tokens/s")
                if args.out and ranks.rank == 0:
                    state.save(args.out)
            began = time.perf_counter()


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    size, launched = SIZES[args.size], dist.is_torchelastic_launched()
    if CUDA:
        torch.cuda.set_device(DEVICE)
    if launched:
        dist.init_process_group("nccl" if CUDA else "gloo")
    ranks = Ranks(dist.get_rank(), dist.get_world_size()) if launched else Ranks(0, 1)
    console = Console(quiet=ranks.rank > 0, soft_wrap=True, highlight=False)
    say = partial(console.print, markup=False)
    torch.manual_seed(args.seed)  # the same weights on every rank
    left = {} if CUDA else dict.fromkeys(NAMES, "eager")  # auto would come to the same, and warn
    config = ModelConfig(
        vocab_size=256, d_model=size.d_model, n_heads=size.heads, n_layers=size.layers,
        d_ff=4 * size.d_model, max_seq_len=size.tokens, impl={**left, **args.forced},
    )  # fmt: skip
    model = Transformer(config, device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), size.rate, weight_decay=DECAY, fused=CUDA)
    settings = {"size": args.size, "steps": args.steps, "seed": args.seed}
    state = State(model, optimizer, Data(size, args.seed, ranks), settings)
    if args.resume:
        state.load(args.out)
    loss: nn.Module = Loss(model)
    some = torch.zeros(size.batch // ranks.count, size.tokens, dtype=torch.long, device=DEVICE)
    dispatch = choose(args, loss, (some, some), ranks, say)
    if args.compile:
        loss = torch.compile(loss, fullgraph=True)
    if launched:
        loss = DistributedDataParallel(loss, broadcast_buffers=False)  # they are constants
    log = Log(args.log if ranks.rank == 0 else "none", args.out or Path("runs"), settings)
    say(selection_of(summary_of(dispatch, args.forced)))
    train(args, state, loss, ranks, log, console)
    summary = summary_of(dispatch, args.forced)
    log.close(summary)
    if args.out and ranks.rank == 0:
        write(args.out / "kernels.json", json.dumps(summary, indent=1).encode())
    if launched:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
