"""Plans of calls of zigzag attention: checked once for a layout, with prepared launches."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernelbench.kernels.attention.backward import deltas_launch
from kernelbench.kernels.attention.places import most_tiles
from kernelbench.kernels.attention.tiles import is_wide, load_tile, statistic_of
from kernelbench.kernels.launch import (
    Launch,
    Plans,
    Repeats,
    arch_of,
    check_device,
    layout_of,
    layouts_of,
    packed_rows,
    power_of_2,
)
from kernelbench.kernels.zigzag_attention.backward import differentiate_chunks, differentiate_keys
from kernelbench.kernels.zigzag_attention.checks import NAMES, How, Inputs, check, check_values
from kernelbench.kernels.zigzag_attention.configs import ZigzagConfig, configs
from kernelbench.kernels.zigzag_attention.forward import attend_chunks
from kernelbench.kernels.zigzag_attention.places import Chunk, Keys, load_zigzag

Pair = tuple[Any, Any]  # of the early chunk, and the late one


class _Tensors(NamedTuple):
    """What a plan's launches take. do: (1,T,H·D); statistics: (1,H,T), see `statistic_of`."""

    q0: Tensor
    q1: Tensor
    k: Tensor
    v: Tensor
    early: Tensor
    lengths: Tensor
    late: Tensor | None
    padded: Tensor | None
    o0: Tensor
    o1: Tensor
    lse0: Tensor | None
    lse1: Tensor | None
    do0: Tensor | None = None
    do1: Tensor | None = None
    dlse0: Tensor | None = None
    dlse1: Tensor | None = None
    delta0: Tensor | None = None
    delta1: Tensor | None = None
    dq0: Tensor | None = None
    dq1: Tensor | None = None
    dk: Tensor | None = None
    dv: Tensor | None = None


class ZigzagPlan:
    """Calls that differ only in their tensors' addresses: checked once, with prepared launches."""

    def __init__(self, tensors: Inputs, how: How, config: ZigzagConfig | None, save: bool) -> None:
        """save: for a gradient to come."""
        check(*tensors, how)
        device = check_device(**dict(zip(NAMES, tensors, strict=True)))
        q0, q1, k, *_ = tensors
        D = q0.shape[2]
        self._how = how
        self._scale = D**-0.5 if how.scale is None else how.scale
        if config is None:
            arch, mode = arch_of(device), "full" if save else "fwd"
            rows = max(len(q0), len(q1))
            [config, *_] = configs(
                rows, len(k), q0.shape[1], D, arch=arch, itemsize=q0.element_size(), mode=mode
            )
        self.config = config
        self._repeats = Repeats(device)

    def forward(self, tensors: Inputs, save: bool) -> tuple[Pair, Pair]:
        """o of both chunks, like q and contiguous, and lse, (1,H,T), or None unless `save`."""
        qs = tensors[:2]
        os = tuple([q.new_empty((1, *q.shape)) for q in qs])
        lses = tuple([statistic_of(q.unsqueeze(0)) if save else None for q in qs])
        self._repeats.run(save, _Tensors(*tensors, *os, *lses), self._forward_launches)
        return (os[0][0], os[1][0]), (lses[0], lses[1])

    def _forward_launches(self, _: Hashable, tensors: Sequence[Any]) -> Sequence[Launch]:
        t, c = _Tensors(*tensors), self.config
        constexprs = {"BLOCK_M": c.block_m, "BLOCK_N": c.block_n, "SHARED": c.shared}
        tiles = most_tiles(len(t.q0), len(t.early) - 1, c.block_m)
        options = {"num_warps": c.warps, "num_stages": c.stages}
        return (self._launch(attend_chunks, t, (t.o0, t.o1), tiles, constexprs, options),)

    def _launch(
        self,
        kernel: Any,
        t: _Tensors,
        outs: Pair,
        tiles: int,
        constexprs: dict[str, Any],
        options: dict[str, int],
    ) -> Launch:
        """A launch of so many tiles of a head. outs: what belongs to the chunks' rows."""
        _, H, D = t.q0.shape
        heads = H if kernel is not differentiate_keys else t.k.shape[1]
        rows = max(constexprs["BLOCK_M"], constexprs["BLOCK_N"])
        args = {"scale": self._scale, "H": H}
        args |= {"early": self._chunk(t, 0, outs), "late": self._chunk(t, 1, outs)}
        args["keys"] = self._keys(t)
        wide = *(x.unsqueeze(0) for x in (t.q0, t.q1, t.k, t.v)), t.o0, t.o1, t.do0, t.do1
        constexprs |= {
            "D": D,
            "BLOCK_D": max(16, power_of_2(D)),
            "CAUSAL": self._how.causal,
            "WIDE": is_wide(rows, *wide),
            "STAGES": options["num_stages"],
            "GROUP": H // t.k.shape[1],
            "ZIGZAG": self._how.zigzag,
            "LOAD": load_zigzag if self._how.zigzag else load_tile,
        }
        return Launch(kernel, (tiles * heads,), args, constexprs, options)

    def _chunk(self, t: _Tensors, which: int, outs: Pair) -> Chunk:
        q, starts, lse, do, delta, number = (
            (t.q0, t.early, t.lse0, t.do0, t.delta0, self._how.early),
            (t.q1, t.early if t.late is None else t.late, t.lse1, t.do1, t.delta1, self._how.late),
        )[which]
        step = None if do is None else do.stride(1)
        row, head, _ = q.stride()
        return Chunk(q, row, head, do, step, lse, delta, outs[which], starts, number, len(q))

    def _keys(self, t: _Tensors) -> Keys:
        how = self._how
        starts = t.lengths if t.padded is None else t.padded
        return Keys(
            k=t.k,
            k_stride_T=t.k.stride(0),
            k_stride_H=t.k.stride(1),
            v=t.v,
            v_stride_T=t.v.stride(0),
            v_stride_H=t.v.stride(1),
            dk=t.dk,
            dv=t.dv,
            lengths=t.lengths,
            starts=starts,
            chunks=how.chunks,
            ranks=how.chunks // 2,
            S=len(starts) - 1,
            T=len(t.k),
        )

    def results(
        self, tensors: Inputs, needs: Sequence[bool]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """For `Planned`: both o and lse, and what `gradients` takes."""
        os, lses = self.forward(tensors, save=True)
        return (*os, *lses), (*tensors, *os, *lses)

    def gradients(
        self, grads: Sequence[Tensor | None], saved: Sequence[Any], needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """For `Planned`: of q0, q1, k and v, where needed, and None for where documents begin."""
        if not any(grad is not None for grad in grads):
            return (None,) * len(needs)
        tensors, results = saved[:8], saved[8:]
        return *self.backward(grads, inputs_of(*tensors), results, needs[:4]), *(None,) * 4

    def backward(
        self,
        grads: Sequence[Tensor | None],
        tensors: Inputs,
        results: Sequence[Tensor],
        needs: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        """dq0, dq1, dk, dv, each where it is needed. grads: of both o, and both lse."""
        packed = torch.contiguous_format
        wanted = (*(any(needs[:2]),) * 2, *(any(needs[2:]),) * 2)
        outs = [
            torch.empty_like(x, memory_format=packed) if want else None
            for x, want in zip(tensors[:4], wanted, strict=True)
        ]
        os = [o.contiguous().unsqueeze(0) for o in results[:2]]
        lses = [_as_statistic(lse, o) for lse, o in zip(results[2:], os, strict=True)]
        dos = [
            torch.zeros_like(o).flatten(2) if do is None else packed_rows(do.flatten(1))[None]
            for do, o in zip(grads[:2], os, strict=True)
        ]
        dlses = [None if dlse is None else dlse.contiguous() for dlse in grads[2:]]
        deltas = [statistic_of(o) for o in os]
        t = _Tensors(*tensors, *os, *lses, *dos, *dlses, *deltas, *outs)
        given = map(layout_of, (*dos, *dlses))
        self._repeats.run((*wanted, *given), t, self._backward_launches)
        return tuple([x if need else None for x, need in zip(outs, needs, strict=True)])

    def _backward_launches(self, _: Hashable, tensors: Sequence[Any]) -> Sequence[Launch]:
        t, c = _Tensors(*tensors), self.config
        options = {"num_warps": c.bwd_warps, "num_stages": c.bwd_stages}
        launches = []
        for do, o, delta, dlse in (
            (t.do0, t.o0, t.delta0, t.dlse0),
            (t.do1, t.o1, t.delta1, t.dlse1),
        ):
            assert do is not None and delta is not None
            launches.append(deltas_launch(do, o, o, delta, None, dlse))
        S = len(t.early) - 1
        if t.dk is not None:
            blocks = {"BLOCK_M": c.bwd_block_m, "BLOCK_N": c.bwd_block_n}
            tiles = most_tiles(len(t.k), S, c.bwd_block_n)
            launches.append(
                self._launch(differentiate_keys, t, (None, None), tiles, blocks, options)
            )
        if t.dq0 is not None:
            blocks = {"BLOCK_M": c.bwd_block_n, "BLOCK_N": c.bwd_block_m}
            tiles = most_tiles(len(t.q0), S, c.bwd_block_n)
            outs = t.dq0, t.dq1
            launches.append(self._launch(differentiate_chunks, t, outs, tiles, blocks, options))
        return launches


def _as_statistic(lse: Tensor, o: Tensor) -> Tensor:
    """With the layout that kernels take: hooks on saved tensors may change strides."""
    statistic = statistic_of(o)
    if lse.stride() == statistic.stride() and lse.data_ptr() % 16 == 0:
        return lse
    return statistic.copy_(lse)


_PLANS: Plans[ZigzagPlan] = Plans()


def plan_of(
    tensors: Inputs, how: How, config: ZigzagConfig | None, save: bool, validate: bool | None
) -> ZigzagPlan:
    """tensors: with packed rows. save: for a gradient to come."""
    key = (*layouts_of(tensors), how, config, save)
    plan = _PLANS.get(key)
    if plan is None:
        plan = _PLANS.add(key, ZigzagPlan(tensors, how, config, save))
    check_values(tensors, how, validate)
    return plan


def inputs_of(
    q0: Tensor,
    q1: Tensor,
    k: Tensor,
    v: Tensor,
    early: Tensor,
    lengths: Tensor,
    late: Tensor | None,
    padded: Tensor | None,
) -> Inputs:
    """What takes part, with rows as the kernels read them."""
    late, padded = (None if x is None else x.contiguous() for x in (late, padded))
    rows = packed_rows(q0), packed_rows(q1), packed_rows(k), packed_rows(v)
    return *rows, early.contiguous(), lengths.contiguous(), late, padded
