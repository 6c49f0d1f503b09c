"""A causal language model of the modules here: RMSNorm, rotary positions, attention, SwiGLU.

Shapes: B samples, S tokens, C = d_model channels, V words.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernelbench.nn.attention import Attention
from kernelbench.nn.choosing import PROVIDERS, Impl, check_impl
from kernelbench.nn.mlp import MLP
from kernelbench.nn.norm import RMSNorm
from kernelbench.nn.rotary import RotaryEmbedding

OPS = tuple(PROVIDERS)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of a `Transformer`, and how it computes.

    vocab_size: V. d_model: C, a multiple of n_heads. n_kv_heads: divides n_heads, and is as many
        unless given. d_ff: channels of the SwiGLU block's gate. max_seq_len: most tokens of a
        sample.
    norm_eps, rope_base: of every RMSNorm, and of the rotary positions.
    impl: of every operator, or by operator (`rms_norm`, `rotary`, `attention`, `swiglu`; `auto` for
        what is left out): `auto`, `eager`, `compile`, `triton`. What is given is what runs; `auto`
        asks `nn.use_dispatch`'s table.

    Raises ValueError for an unknown operator or impl, and sizes below 1; modules check the rest.
    """

    vocab_size: int
    d_model: int = 384
    n_heads: int = 8
    n_kv_heads: int | None = None
    n_layers: int = 6
    d_ff: int = 1536
    max_seq_len: int = 512
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    impl: Impl | Mapping[str, Impl] = field(default="auto")

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_heads", "n_layers", "d_ff", "max_seq_len"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"ModelConfig takes {name} of at least 1, got {self.__dict__[name]}"
                )
        by_op = {} if isinstance(self.impl, str) else dict(self.impl)
        if unknown := sorted({*by_op} - {*OPS}):
            raise ValueError(f"ModelConfig has no operator {unknown[0]!r}. Known: {', '.join(OPS)}")
        for impl in [self.impl] if isinstance(self.impl, str) else by_op.values():
            check_impl("ModelConfig", impl)

    def impl_of(self, op: str) -> Impl:
        """How an operator is computed."""
        return self.impl if isinstance(self.impl, str) else self.impl.get(op, "auto")


class TransformerBlock(nn.Module):
    """h = r + attention(norm(r)), then h + mlp(norm(h)); additions are left to the norms behind
    them, which fuse them where their impl does.

    rotary: positions that blocks share; made anew unless given.
    """

    def __init__(
        self,
        config: ModelConfig,
        rotary: RotaryEmbedding | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        norm, C = {"impl": config.impl_of("rms_norm"), **at}, config.d_model
        self.attention_norm = RMSNorm(C, config.norm_eps, **norm)
        self.attention = Attention(
            C,
            config.n_heads,
            config.n_kv_heads,
            rotary=rotary_of(config, device) if rotary is None else rotary,
            impl=config.impl_of("attention"),
            **at,
        )
        self.mlp_norm = RMSNorm(C, config.norm_eps, **norm)
        self.mlp = MLP(C, config.d_ff, impl=config.impl_of("swiglu"), **at)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Two tensors, (B,S,C), whose sum is the block's result, from two whose sum is its input,
        or from its input alone."""
        if residual is None:
            normed, residual = self.attention_norm(x), x
        else:
            normed, residual = self.attention_norm(x, residual)
        normed, residual = self.mlp_norm(self.attention(normed), residual)
        return self.mlp(normed), residual


class Transformer(nn.Module):
    """Embedding, blocks, RMSNorm, and a projection onto words that shares the embedding's weight.

    Parameters and state_dict are the same for every impl. Weights are drawn from N(0, 0.02²), those
    of projections that a residual is added to from N(0, 0.02²/(2·n_layers)), biases there are none.
    `torch.compile` makes one graph of it.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.config = config
        rotary = rotary_of(config, device)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model, **at)
        self.blocks = nn.ModuleList(
            TransformerBlock(config, rotary, **at) for _ in range(config.n_layers)
        )
        self.norm = RMSNorm(config.d_model, config.norm_eps, impl=config.impl_of("rms_norm"), **at)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, RMSNorm):
                module.reset_parameters()
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            for last in (block.attention.out, block.mlp.down):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * self.config.n_layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, (B,S,V), of tokens, (B,S) of int64. Raises ValueError for more tokens than
        max_seq_len."""
        if tokens.dim() != 2 or tokens.shape[1] > self.config.max_seq_len:
            raise ValueError(
                f"Transformer takes tokens of shape (B, S), S up to {self.config.max_seq_len}, got "
                f"{tuple(tokens.shape)}"
            )
        x, residual = self.embedding(tokens), None
        for block in self.blocks:
            x, residual = block(x, residual)
        y, _ = self.norm(x, residual)
        return F.linear(y, self.embedding.weight)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy of targets, (B,S), in fp32."""
        return F.cross_entropy(self(tokens).flatten(0, 1).float(), targets.flatten())


def rotary_of(config: ModelConfig, device: torch.device | str | None) -> RotaryEmbedding:
    """The positions of a model. Raises ValueError where n_heads does not divide d_model."""
    if config.d_model % config.n_heads:
        raise ValueError(
            f"ModelConfig takes a d_model that is a multiple of n_heads, got {config.d_model} and "
            f"{config.n_heads}"
        )
    return RotaryEmbedding(
        config.d_model // config.n_heads,
        config.max_seq_len,
        config.rope_base,
        impl=config.impl_of("rotary"),
        device=device,
    )
