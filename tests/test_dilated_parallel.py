"""The family `dilated_parallel`: what its ranks see, cost and send, and that what is wrong over two
ranks is found out."""

import json
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from kernelbench.families.dilated_attention import FAMILY as WHOLE
from kernelbench.families.dilated_parallel import FAMILY
from kernelbench.families.dilated_parallel.case import ParallelDilatedCase
from kernelbench.families.dilated_parallel.messages import of_all_keys, of_kept_rows
from kernelbench.nn.branches import Piece
from kernelbench.parallel import segments
from kernelbench.spec import Device, Status, UsageError
from kernelbench.store import read

PLUGIN = Path(__file__).parent / "plugins" / "dilated_ranks.py"
CASES = [
    {"N": 48, "branches": "8r1_16r2_48r3", "world": 3},
    {"N": 44, "branches": "8r2_16r4_64r3", "H": 5, "world": 4},
    {"N": 16, "branches": "16r16", "H": 2, "world": 2},
]
OFFSETS = ["head_mod", "head_group", "segment_index"]


def made(**axes: Any) -> ParallelDilatedCase:
    return ParallelDilatedCase.from_axes({"H": 3, "D": 8, "dtype": "fp32", **axes})


def positions(piece: Piece, H: int) -> set[tuple[int, int, int]]:
    """(segment, head, position) of a piece."""
    return {
        (segment, head, piece.first + segment * piece.apart + row * piece.rate)
        for segment in range(piece.segments)
        for row in range(piece.rows)
        for head in range(*piece.heads.indices(H))
    }


@pytest.mark.parametrize(
    ("axes", "offsets", "causal"), [*product(CASES, OFFSETS, [False, True])], ids=str
)
def test_ranks_see_what_one_does_that_has_everything(
    axes: dict[str, Any], offsets: str, causal: bool
) -> None:
    case = made(**axes, offsets=offsets, causal=causal)
    for number, (w, _) in enumerate(case.whole.pairs_of):
        wanted = {
            (head, query, key)
            for piece in case.whole.pieces[number]
            for one, head, query in positions(piece, case.H)
            for other, same, key in positions(piece, case.H)
            if (one, head) == (other, same) and (key <= query or not causal)
        }
        found = []
        for rank in range(case.world):
            for q, k, masked in case.spans(rank)[number]:
                found += [
                    (head, query + rank * case.rows, key)
                    for one, head, query in positions(q, case.H)
                    for other, same, key in positions(k, case.H)
                    if (one, head) == (other, same)
                    and (key <= query + rank * case.rows or not masked)
                ]
        assert len(found) == len({*found}) and {*found} == wanted, w
        assert all(query // w == key // w for _, query, key in found)


def test_costs_of_one_rank_are_those_of_the_operator_and_ranks_share_them() -> None:
    for mode in ("fwd", "bwd", "full"):
        axes = {"N": 48, "branches": "8r2_48r3", "causal": True, "mode": mode}
        one = made(world=1, **axes)
        assert FAMILY.cost(one) == WHOLE.cost(one.whole)
        parts = [FAMILY.cost(made(world=world, **axes)) for world in (1, 2, 4)]
        assert [part.flops for part in parts] == [parts[0].flops // n for n in (1, 2, 4)]
        assert [part.write for part in parts] == [parts[0].write // n for n in (1, 2, 4)]
        assert parts[2].read < parts[0].read < 4 * parts[2].read  # keys are read by several


def test_kept_rows_that_travel_stay_few_however_many_ranks_there_are() -> None:
    for world in (1, 2, 4, 8):
        N = 8192 * world
        branches = f"8192r4_32768r12_{N}r{2 * world}"
        case = made(world=world, N=N, branches=branches, H=12, D=128, dtype="bf16")
        every = 2 * 12 * 128 * 2 * 8192  # of a rank, in bytes
        assert of_all_keys(case) == (world - 1) * every
        assert (of_kept_rows(case) > 0) == (world > 1) and of_kept_rows(case) < 0.8 * every


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"world": 5}, "world is at least 1 and divides N, got 5 and N 48"),
        ({"branches": "48"}, "branches are like"),
        ({"H": 0}, "must be at least 1"),
    ],
)
def test_cases_that_make_no_sense_are_refused(axes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        made(**{"world": 2, "N": 48, "branches": "8r1", **axes})


def test_segments_that_a_rank_does_not_divide_are_the_baselines_alone() -> None:
    case, cpu = made(world=3, N=48, branches="24r2"), Device("cpu", "cpu")
    assert FAMILY.baseline.unsupported(case, cpu) is None
    for name in ("torch_fused", "triton_fused"):
        why = FAMILY.provider(name).unsupported(case, cpu)
        assert why is not None and "divide a rank's 16 tokens" in why
    fits = made(world=3, N=48, branches="99r2")  # all tokens
    assert FAMILY.provider("torch_fused").unsupported(fits, cpu) is None


def test_groups_that_would_wait_for_ever_are_the_baselines_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case, cpu = made(world=3, N=48, branches="16r1_32r2"), Device("cpu", "cpu")
    dist.init_process_group("fake", rank=1, world_size=3, store=FakeStore())
    try:
        for bound in (False, True):
            monkeypatch.setattr(segments, "_is_bound", lambda bound=bound: bound)
            assert FAMILY.baseline.unsupported(case, cpu) is None
            for name in ("torch_fused", "triton_fused"):
                why = FAMILY.provider(name).unsupported(case, cpu) or ""
                assert ("groups of 2 of 3 ranks, which would wait for ever" in why) is bound
    finally:
        dist.destroy_process_group()


def run(folder: Path, modes: list[str], cases: list[dict[str, Any]]) -> list[Any]:
    """Records of a run on a CPU."""
    path = folder / "ranks.yaml"
    families = {"dilated_ranks": {"modes": modes, "cases": cases}}
    path.write_text(json.dumps({"name": "ranks", "device": "cpu", "families": families}))
    words = ["run", str(path), "--plugin", str(PLUGIN), "--out", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "kernelbench", *words], capture_output=True, text=True, check=False
    )
    [manifest] = folder.glob("*/manifest.json")
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return [*read(manifest.parent)]


def test_two_ranks_are_right_or_found_out_and_send_what_is_modelled(tmp_path: Path) -> None:
    names = ["baseline", "torch_fused", "wrong"]
    case = {"world": 2, "N": 28, "branches": "7r1_14r2_28r3_28r4", "H": 3, "D": 8}
    case |= {"dtype": "fp32", "causal": True, "providers": names}
    found = {record.provider: record for record in run(tmp_path, ["full"], [case])}
    model = ParallelDilatedCase.from_axes(found["baseline"].axes)
    for name, received in zip(names, (of_all_keys(model), of_kept_rows(model)), strict=False):
        assert found[name].status is Status.ok, found[name].reason
        assert found[name].messages.received_bytes == received > 0
    assert found["wrong"].status is Status.incorrect
    assert re.match("rank .: d[kv]: error", found["wrong"].reason)


@pytest.mark.slow
def test_four_ranks_are_right_by_all_providers_and_send_what_is_modelled(tmp_path: Path) -> None:
    shape = {"world": 4, "N": 32, "H": 3, "D": 16, "branches": "4r2_8r1_16r5_32r3"}
    torchs = ["baseline", "torch_fused"]
    cases = [
        {
            "dtype": "fp32",
            "causal": True,
            "providers": [*torchs, "triton_fused", "triton_all_keys"],
        },
        {"dtype": "fp16", "offsets": "segment_index", "combine": "mean", "providers": torchs},
        {"dtype": "fp32", "offsets": "head_group", "providers": torchs},
    ]
    records = run(tmp_path, ["full"], [shape | case for case in cases])
    assert len(records) == 8
    for record in records:
        assert record.status is Status.ok, record.reason
        gathers = record.provider in ("baseline", "triton_all_keys")
        model = of_all_keys if gathers else of_kept_rows
        case = ParallelDilatedCase.from_axes(record.axes)
        assert record.messages.received_bytes == model(case) > 0
