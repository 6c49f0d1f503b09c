"""Dilated attention over ranks, with a mistake."""

from dataclasses import replace

import torch

from kernelbench.families._ranks import all_rows
from kernelbench.families.dilated_parallel import FAMILY as REAL
from kernelbench.families.dilated_parallel.case import shards
from kernelbench.nn.spans import Way
from kernelbench.parallel.dilated import spread
from kernelbench.spec import Provider, Role


def own_gradients_alone(case, config):
    """Gradients of keys are not summed over the ranks."""
    spans, own = case.spans(case.rank), case.own

    def call(a):
        k, v = (
            torch.cat([every[: own.start], x[0], every[own.stop :]])[None]
            for x in (a["k"], a["v"])
            for every in [all_rows(x[0]).detach()]
        )
        return spread(a["q"], k, v, spans, False, Way())

    return call


WRONG = Provider("wrong", Role.torch_fused, own_gradients_alone, prepare=shards)
FAMILY = replace(REAL, name="dilated_ranks", providers=(*REAL.providers, WRONG))
