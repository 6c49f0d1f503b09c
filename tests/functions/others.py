"""Ten functions as other people write them: each with a reference, and a variant that is wrong."""

import torch
import torch.nn.functional as F
from torch import nn


def layer_norm_reference(x, weight, bias, eps=1e-5):
    mean = x.float().mean(-1, keepdim=True)
    var = x.float().var(-1, keepdim=True, unbiased=False)
    return (((x.float() - mean) * torch.rsqrt(var + eps)) * weight.float() + bias.float()).to(
        x.dtype
    )


def layer_norm(x, weight, bias, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def layer_norm_wrong(x, weight, bias, eps=1e-5):
    var, mean = torch.var_mean(x.float(), -1, keepdim=True)  # unbiased: N − 1
    y = (x.float() - mean) * torch.rsqrt(var + eps)
    return (y * weight.float() + bias.float()).to(x.dtype)


def softmax_reference(logits, dim=-1):
    e = torch.exp(logits - logits.max(dim=dim, keepdim=True).values)
    return e / e.sum(dim=dim, keepdim=True)


def softmax(logits, dim=-1):
    return torch.softmax(logits, dim)


def softmax_wrong(logits, dim=-1):
    e = torch.exp(logits.clamp(max=2.0))  # a large logit is cut off
    return e / e.sum(dim=dim, keepdim=True)


def cross_entropy_reference(logits, target):
    return F.nll_loss(F.log_softmax(logits.float(), dim=-1), target)


def cross_entropy(logits, target):
    return F.cross_entropy(logits.float(), target)


def cross_entropy_wrong(logits, target):
    return F.cross_entropy(logits.float(), target, label_smoothing=0.05)


def geglu_reference(gate, up):
    return F.gelu(gate.float(), approximate="tanh").to(gate.dtype) * up


def geglu(gate, up):
    g = gate.float()
    inner = 0.7978845608028654 * (g + 0.044715 * g * g * g)
    return (0.5 * g * (1 + torch.tanh(inner)) * up.float()).to(gate.dtype)


def geglu_wrong(gate, up):
    return (F.silu(gate.float()) * up.float()).to(gate.dtype)


def _rotate_half(x):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


def rope_reference(q, k, cos, sin):
    """Hugging Face's apply_rotary_pos_emb."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return q * cos + _rotate_half(q) * sin, k * cos + _rotate_half(k) * sin


def rope(q, k, cos, sin):
    def turn(x):
        half = x.shape[-1] // 2
        c, s = cos[:, None].float(), sin[:, None].float()
        a, b = x[..., :half].float(), x[..., half:].float()
        first = a * c[..., :half] - b * s[..., :half]
        second = b * c[..., half:] + a * s[..., half:]
        return torch.cat((first, second), -1).to(x.dtype)

    return turn(q), turn(k)


def rope_wrong(q, k, cos, sin):
    rotated, _ = rope(q, k, cos, sin)
    return rotated, k  # k is left as it was


def scatter_reference(src, index, rows=16):
    out = src.new_zeros(rows, src.shape[1])
    return out.index_add(0, index, src)


def scatter(src, index, rows=16):
    out = torch.zeros(rows, src.shape[1], dtype=torch.float32, device=src.device)
    return out.index_add_(0, index, src.float()).to(src.dtype)


def scatter_wrong(src, index, rows=16):
    out = src.new_zeros(rows, src.shape[1])
    out[index] = src  # the last one wins; nothing is added
    return out


def top_k_reference(x, k):
    values, indices = torch.sort(x, dim=-1, descending=True, stable=True)
    return values[..., :k], indices[..., :k]


def top_k(x, k):
    found = torch.topk(x, k, dim=-1)
    return found.values, found.indices


def top_k_wrong(x, k):
    found = torch.topk(x, k, dim=-1)
    return found.values, found.indices.flip(-1)


E4M3 = torch.finfo(torch.float8_e4m3fn).max


def fp8_quantise_reference(x):
    """A scale for each row, and what it scales."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / E4M3
    return (x.float() / scale).clamp(-E4M3, E4M3).to(torch.float8_e4m3fn), scale


def fp8_quantise(x):
    most = torch.linalg.vector_norm(x.float(), ord=float("inf"), dim=-1, keepdim=True)
    scale = most.clamp(min=1e-12) / E4M3
    return (x.float() * (1 / scale)).clamp(-E4M3, E4M3).to(torch.float8_e4m3fn), scale


def fp8_quantise_wrong(x):
    scale = x.abs().amax().float().clamp(min=1e-12) / E4M3  # one scale for all rows
    scale = scale.expand(x.shape[0], 1).contiguous()
    return (x.float() / scale).clamp(-E4M3, E4M3).to(torch.float8_e4m3fn), scale


class MLP(nn.Module):
    def __init__(self, dim=64, hidden=96):
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.up(x)))


class FusedMLP(MLP):
    def forward(self, x):
        h = torch.addmm(self.up.bias, x, self.up.weight.t())
        return (h * torch.sigmoid(h)) @ self.down.weight.t()


class WrongMLP(MLP):
    def forward(self, x):
        return self.down(F.silu(F.linear(x, self.up.weight)))  # without the bias


def varlen_reference(q, k, v, cu_seqlens, causal=True):
    """A loop over the sequences."""
    out = torch.empty_like(q)
    for begin, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        parts = (t[begin:end].transpose(0, 1) for t in (q, k, v))
        out[begin:end] = F.scaled_dot_product_attention(*parts, is_causal=causal).transpose(0, 1)
    return out


def varlen(q, k, v, cu_seqlens, causal=True):
    """One product with a mask of blocks."""
    rows = torch.arange(q.shape[0], device=q.device)
    sequence = torch.bucketize(rows, cu_seqlens[1:].to(rows.dtype), right=True)
    mask = sequence[:, None] == sequence[None, :]
    if causal:
        mask = mask & (rows[:, None] >= rows[None, :])
    parts = (t.transpose(0, 1) for t in (q, k, v))
    return F.scaled_dot_product_attention(*parts, attn_mask=mask).transpose(0, 1).contiguous()


def varlen_wrong(q, k, v, cu_seqlens, causal=True):
    parts = (t.transpose(0, 1) for t in (q, k, v))  # across the sequences
    return F.scaled_dot_product_attention(*parts, is_causal=causal).transpose(0, 1).contiguous()
