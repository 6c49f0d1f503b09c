"""PyTorch's attention inside `context_parallel` is zigzag attention over the mesh, and buffers are
a rank's rows; what is not served is said."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from gloo import drawn, exact, together, worst_token
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor import experimental as torchs
from torch.nn.functional import scaled_dot_product_attention as by_another_name
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import checkpoint

from kernelbench.parallel import ZigzagLayout, context_parallel

Meshes = Callable[..., DeviceMesh]
Case = tuple[list[int], bool, bool, str]  # lengths, packed or a batch, causal, how


def _attend_to_all(rank: int, ranks: int, cases: list[Case]) -> None:
    mesh = init_device_mesh("cpu", (ranks,))
    for lengths, packed, causal, comm in cases:
        draw = drawn(sum(lengths), 0)
        B = 1 if packed else len(lengths)
        # (T,H,D) to (B,H,N,D): lengths of a batch are the same.
        buffers = [x.unflatten(0, (B, -1)).transpose(1, 2).contiguous() for x in draw]
        before = [x.clone() for x in buffers]
        options: dict[str, Any] = {"cp_comm_type": comm}
        if packed:
            options["lengths"] = ZigzagLayout.of(lengths, ranks, least=4)
        with context_parallel(
            mesh, buffers=buffers, buffer_seq_dims=[2, 2, -2, 2], **options
        ) as layout:
            q, k, v = (x.detach().requires_grad_() for x in buffers[:3])
            o = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
            found = [o, *torch.autograd.grad(o, (q, k, v), buffers[3])]
            found = [layout.unshard(x, mesh.get_group(), dim=2) for x in found]
        assert all(torch.equal(x, y) for x, y in zip(buffers, before, strict=True))
        for one, right in zip(found, exact(draw, lengths, causal), strict=True):
            assert worst_token(one.transpose(1, 2).flatten(0, 1), right) < 4e-6, (lengths, comm)


FEW: list[Case] = [([9, 9], False, True, "all_gather")]
MANY: list[Case] = [
    *(
        (lengths, packed, True, comm)
        for lengths, packed, _, comm in FEW
        for comm in ("all_gather", "p2p")
    ),
    ([7, 7, 7], False, False, "all_gather"),
    ([3, 9, 2], True, True, "all_gather"),  # all of them whole
]


@pytest.mark.parametrize(
    "ranks, cases",
    [
        pytest.param(2, FEW, id="2"),
        *(pytest.param(n, MANY, id=f"{n} more", marks=pytest.mark.slow) for n in (1, 2, 4)),
    ],
)
def test_attention_inside_is_that_of_the_whole(ranks: int, cases: list[Case]) -> None:
    together(_attend_to_all, ranks, cases)


@pytest.fixture
def meshes(device: str) -> Iterator[Meshes]:
    """Of ranks that are not there, but for this one."""

    def made(ranks: int, rank: int = 0, shape: tuple[int, ...] | None = None) -> DeviceMesh:
        dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
        return init_device_mesh(device, shape or (ranks,))

    yield made
    dist.destroy_process_group()


def test_buffers_are_a_ranks_rows_and_come_back(meshes: Meshes, device: str) -> None:
    mesh = meshes(2, rank=1)
    text = torch.arange(1, 23, device=device).view(2, 11)
    tokens, labels = text[:, :-1], text[:, 1:]  # of the same memory
    table = torch.arange(20.0, device=device).view(10, 2)
    kept, own = torch.arange(10, device=device), tokens.data_ptr()
    with context_parallel(
        mesh,
        buffers=[tokens, labels, table, kept],
        buffer_seq_dims=[1, -1, 0, 0],
        no_restore_buffers={kept},
        padding_values=[0, -100, 0, -1],
    ) as layout:
        assert layout.rows(1).tolist() == kept.tolist() == [3, 4, 5, 6, 7, 8]
        assert tokens.tolist() == [[4, 5, 6, 7, 8, 9], [15, 16, 17, 18, 19, 20]]
        assert labels.tolist() == [[5, 6, 7, 8, 9, 10], [16, 17, 18, 19, 20, 21]]
        assert table[:, 0].tolist() == [6, 8, 10, 12, 14, 16]
        tokens.zero_()
    assert tokens.data_ptr() == own and table.shape == (10, 2) and len(kept) == 6
    assert tokens.flatten().tolist() == [*range(1, 11), *range(12, 22)]
    assert labels.flatten().tolist() == [*range(2, 12), *range(13, 23)]


def test_padded_rows_hold_what_is_asked_for(meshes: Meshes, device: str) -> None:
    labels, tokens = torch.arange(1, 6, device=device), torch.arange(1, 6, device=device)
    with (
        pytest.raises(KeyError),
        context_parallel(
            meshes(2),
            buffers=[labels, tokens],
            buffer_seq_dims=[0, 0],
            padding_values=(-100, 0),
        ),
    ):
        assert labels.tolist() == [1, 2, -100, -100] and tokens.tolist() == [1, 2, 0, 0]
        raise KeyError
    assert labels.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("rank", [0, 2])
def test_rows_are_those_of_torchs_own(rank: int, meshes: Meshes, device: str) -> None:
    mesh = meshes(4, rank)
    ours, theirs = (torch.arange(48, device=device).view(2, 24) for _ in range(2))
    options: Any = {"buffer_seq_dims": [1]}
    with context_parallel(mesh, buffers=[ours], **options):
        found = ours.clone()
    with torchs.context_parallel(mesh, buffers=[theirs], **options):
        assert torch.equal(found, theirs)


def _inputs(device: str, *lengths: int) -> list[Tensor]:
    shapes = (1, 2, sum(lengths), 16), (1, 1, sum(lengths), 16), (1, 1, sum(lengths), 16)
    return [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return by_another_name(q * 2, k, v, is_causal=True, scale=0.3, enable_gqa=True)


def _attend_apart(inputs: list[Tensor], *lengths: int) -> Tensor:
    parts = zip(*(x.split(lengths, 2) for x in inputs), strict=True)
    return torch.cat([_attend(*part) for part in parts], 2)


def _near(one: Tensor | None, other: Tensor) -> bool:
    assert one is not None
    return bool((one - other).norm() < 3e-6 * other.norm())


@pytest.mark.parametrize("again", [False, True])
def test_attention_is_ours_by_every_name_and_in_checkpoints(
    again: bool, meshes: Meshes, device: str
) -> None:
    inputs = _inputs(device, 5, 4)
    wanted = _attend_apart(inputs, 5, 4)
    gradients = torch.autograd.grad(wanted.square().sum(), inputs)
    with context_parallel(meshes(1), lengths=[5, 4]):
        o = checkpoint(_attend, *inputs, use_reentrant=again)
        o.square().sum().backward()
        assert _near(o, wanted)
        assert all(_near(x.grad, other) for x, other in zip(inputs, gradients, strict=True))
        if not again:
            o = checkpoint(_attend, *inputs, use_reentrant=False)
            found = torch.autograd.grad(o.square().sum(), inputs)
            assert all(map(_near, found, gradients))
    assert not _near(_attend(*inputs), wanted)


@pytest.mark.slow
def test_a_compiled_model_is_compiled_anew_inside(meshes: Meshes, device: str) -> None:
    inputs = _inputs(device, 5, 4)
    compiled = torch.compile(_attend, backend="aot_eager")
    outside, apart = compiled(*inputs), _attend_apart(inputs, 5, 4)
    with context_parallel(meshes(1), lengths=[5, 4]):
        assert _near(compiled(*inputs), apart)
    assert torch.equal(compiled(*inputs), outside)


def test_autocast_casts_as_before(meshes: Meshes, device: str) -> None:
    inputs = _inputs(device, 5)
    with torch.autocast(device, torch.float16):
        wanted = _attend(*inputs)
        with context_parallel(meshes(1), lengths=[5]):
            o = _attend(*inputs)
    assert o.dtype is wanted.dtype is torch.float16
    assert (o - wanted).float().norm() < 2e-3 * wanted.float().norm()


def _of_module(q: Tensor, k: Tensor, v: Tensor) -> None:
    attention = torch.nn.MultiheadAttention(16, 1, device=q.device)
    attention(q[0, 0], q[0, 0], q[0, 0], need_weights=False)


def _of_dtensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    mesh = DeviceMesh(q.device.type, [0, 1])
    F.scaled_dot_product_attention(
        *(DTensor.from_local(x, mesh, [Replicate()], run_check=False) for x in (q, k, v))
    )


def _sdpa(**options: Any) -> Callable[..., Any]:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


REFUSED: dict[str, tuple[type[Exception], Callable[..., Any], str]] = {
    "mask": (NotImplementedError, _sdpa(attn_mask=torch.ones(6, 6) > 0), "has no attn_mask: is_c"),
    "dropout": (NotImplementedError, _sdpa(dropout_p=0.1), "has no dropout_p=0.1"),
    "gqa": (ValueError, _sdpa(), "fewer heads of k and v with enable_gqa=True, got \\(1, 2, 6, 16"),
    "other rows": (
        ValueError,
        lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :, :3], v[:, :, :3]),
        "where rank 1 has n = 6 rows of 11 tokens, got",
    ),
    "heads": (ValueError, lambda q, k, v: _attend(q, k[..., :8], v[..., :8]), "n = 6 rows"),
    "three axes": (ValueError, lambda q, k, v: _attend(q[0], k[0], v[0]), "takes q \\(B,H,n,D\\)"),
    "batch": (
        ValueError,
        lambda *inputs: _attend(*(x.expand(2, -1, -1, -1) for x in inputs)),
        "B = 1 where lengths are given",
    ),
    "not causal": (ValueError, _sdpa(enable_gqa=True), "p2p where causal"),
    "double": (TypeError, lambda *inputs: _attend(*(x.double() for x in inputs)), "one dtype"),
    "a module": (NotImplementedError, _of_module, "not serve nn.MultiheadAttention"),
    "flex": (
        NotImplementedError,
        lambda q, k, v: torch.ops.higher_order.flex_attention(q, k, v, None, None, 1.0, {}),
        "not serve flex_attention",
    ),
    "DTensor": (TypeError, _of_dtensors, "plain tensors, got DTensor, DTensor, DTensor: of a DT"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_served_is_said(name: str, meshes: Meshes, device: str) -> None:
    kind, call, words = REFUSED[name]
    layout = ZigzagLayout.of([11], 2, least=0)
    inputs = [x.detach() for x in _inputs(device, 6)]
    with (
        context_parallel(meshes(2, rank=1), lengths=layout, cp_comm_type="p2p"),
        pytest.raises(kind, match=words),
    ):
        call(*inputs)


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, "buffers or lengths, which say how long"),
        ({"buffers": [torch.ones(8)]}, "got 1 buffers, 0 and 1"),
        ({"padding_values": [0.0, 1.0]}, "got 1 buffers, 1 and 2"),
        ({"buffer_seq_dims": [1]}, "got 1 for buffer 0 of shape \\(8,\\)"),
        ({"lengths": [3, 4]}, "got 7 tokens over 2 ranks, and buffers of 8 over 2"),
        ({"lengths": ZigzagLayout.of([8], 3)}, "got 8 tokens over 3 ranks, and buffers of 8 over"),
        ({"no_restore_buffers": {torch.ones(8)}}, "no_restore_buffers that are among buffers"),
        ({"buffers": [torch.ones(8, requires_grad=True)]}, "a Tensor that requires grad: what"),
        ({"buffers": [torch.nn.Parameter(torch.ones(8))]}, "got buffer 0, a Parameter: what"),
    ],
    ids=["nothing", "dims", "values", "axis", "lengths", "ranks", "kept", "grad", "parameter"],
)
def test_buffers_that_do_not_fit_are_said(
    options: dict[str, Any], words: str, meshes: Meshes
) -> None:
    buffer = torch.arange(8)
    if options and "buffers" not in options:
        options = {"buffers": [buffer], "buffer_seq_dims": [0], **options}
    elif words.startswith(("a Tensor", "got buffer")):
        options = {"buffer_seq_dims": [0], **options}
    with pytest.raises(ValueError, match=words), context_parallel(meshes(2), **options):
        raise AssertionError
    assert buffer.tolist() == [*range(8)]


def test_a_mesh_has_one_axis_and_a_buffer_is_named_once(meshes: Meshes) -> None:
    mesh, buffer = meshes(4, shape=(2, 2)), torch.arange(8)
    with pytest.raises(ValueError, match="a mesh of one axis, got 2: pass mesh"):
        context_parallel(mesh, lengths=[8]).__enter__()
    with pytest.raises(ValueError, match="takes a buffer once, got buffer 1 again"):
        context_parallel(
            DeviceMesh(mesh.device_type, [0, 1]), buffers=[buffer] * 2, buffer_seq_dims=[0, 0]
        ).__enter__()
