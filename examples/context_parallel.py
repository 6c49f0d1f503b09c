"""A small language model, trained on packed documents whose tokens are spread over the GPUs.

    python examples/context_parallel.py
    torchrun --nproc-per-node 2 examples/context_parallel.py

Losses are the same for any number of ranks. Documents are parts of docs/*.md, and tokens their
bytes. Each rank embeds, attends for, and predicts what follows its own rows; attention is the one
place where rows meet, and the sum of the gradients the other one where ranks do.

Without a GPU it runs over gloo, in Triton's interpreter: there, add --tiny.
"""

import argparse
import os
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

if not torch.cuda.is_available():  # before any kernel is made
    os.environ.setdefault("TRITON_INTERPRET", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

from kernelbench.parallel import ZigzagLayout, zigzag_attention_func

CUDA = torch.cuda.is_available()
DOCS = Path(__file__).parent.parent / "docs"
IGNORED = -100  # as F.cross_entropy has it


class Sizes(NamedTuple):
    layers: int
    heads: int
    kv_heads: int
    head: int
    tokens: int  # of a batch, at most
    steps: int
    rate: float
    end: str  # of a document
    least: int  # rows of a chunk; documents that are too short for that are not cut


FULL = Sizes(6, 8, 2, 64, 32768, 100, 1e-3, "\n## ", 64)
TINY = Sizes(2, 2, 1, 16, 160, 4, 1e-2, "\n", 16)


def rotated(x, position):
    """Rotary embedding of x, (L,H,D): a row's position is that in its document."""
    half = x.shape[-1] // 2
    frequency = 10000 ** (-torch.arange(half, device=x.device) / half)
    angle = position[:, None, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Block(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        dim, self.kv_heads, self.head = sizes.heads * sizes.head, sizes.kv_heads, sizes.head
        self.norm, self.mlp_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.qkv = nn.Linear(dim, dim + 2 * sizes.kv_heads * sizes.head, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x, position, layout):
        qkv = self.qkv(self.norm(x)).unflatten(-1, (-1, self.head))
        k, v = qkv[:, -2 * self.kv_heads :].chunk(2, 1)
        q, k = rotated(qkv[:, : -2 * self.kv_heads], position), rotated(k, position)
        x = x + self.out(zigzag_attention_func(q, k, v, layout).flatten(1))
        return x + self.mlp(self.mlp_norm(x))


class Model(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        dim = sizes.heads * sizes.head
        self.embed = nn.Embedding(256, dim)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm, self.head = nn.RMSNorm(dim), nn.Linear(dim, 256, bias=False)

    def forward(self, tokens, position, layout):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, position, layout)
        return self.head(self.norm(x))


def batches(sizes):
    """Tokens, those that follow them, and positions, of documents one after another; lengths."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))]
    parts = [part.encode()[: sizes.tokens + 1] for part in sizes.end.join(texts).split(sizes.end)]
    batch, room = [], sizes.tokens
    for document in cycle(torch.tensor([*part]) for part in parts if len(part) > 1):
        if len(document) - 1 > room:
            lengths = [len(each) - 1 for each in batch]
            tokens = torch.cat([each[:-1] for each in batch])
            following = torch.cat([each[1:] for each in batch])
            yield tokens, following, torch.cat([torch.arange(n) for n in lengths]), lengths
            batch, room = [], sizes.tokens
        batch.append(document)
        room -= len(document) - 1


def main(sizes):
    launched = dist.is_torchelastic_launched()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if CUDA else "cpu"
    if CUDA:
        torch.cuda.set_device(device)
    if launched:
        dist.init_process_group("nccl" if CUDA else "gloo")
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if launched else (0, 1)
    torch.manual_seed(0)  # the same weights on every rank
    model = Model(sizes).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=sizes.rate)
    began = time.perf_counter()
    for step, (*packed, lengths) in zip(range(sizes.steps), batches(sizes), strict=False):
        layout = ZigzagLayout.of(lengths, ranks, sizes.least)
        tokens, following, position = (
            layout.shard(x.to(device), rank, fill=fill)  # fill: of rows that are padded
            for x, fill in zip(packed, (0, IGNORED, 0), strict=True)
        )
        with torch.autocast("cuda", torch.bfloat16, enabled=CUDA):
            logits = model(tokens, position, layout)
        # The mean over all tokens of all ranks, of which each rank has some summands: losses and
        # gradients add up. (DDP takes the mean of gradients: there, multiply by the ranks.)
        total = F.cross_entropy(logits.float(), following, ignore_index=IGNORED, reduction="sum")
        loss = total / sum(lengths)
        loss.backward()
        if launched:
            for summand in (loss.detach(), *(p.grad for p in model.parameters())):
                dist.all_reduce(summand)
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0:
            value, now = loss.item(), time.perf_counter()
            speed = sum(lengths) / (now - began)
            print(f"step {step:3}  loss {value:.5f}  {speed:9.0f} tokens/s", flush=True)
            began = now
    if launched:
        dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="for a CPU, in a minute")
    main(TINY if parser.parse_args().tiny else FULL)
