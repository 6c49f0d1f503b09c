"""Rotary embedding against an fp64 oracle of its own, forward and backward."""

import random

import numpy as np
import pytest
import torch

from kernelbench.kernels import rotary
from kernelbench.kernels.rotary import (
    RotaryConfig,
    _overlap,
    _overlaps_itself,
    apply_rotary,
    configs,
)

RELATIVE = {torch.float32: 3e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def dtype(request, device):
    if device == "cpu" and request.param is torch.bfloat16:
        pytest.skip("bf16 arithmetic is wrong in Triton's interpreter")
    return request.param


def oracle(x_BSHD, cos, sin, interleaved):
    """Each pair as a complex number times exp(i·angle), in fp64."""
    x = x_BSHD.double()
    D = x.shape[-1]
    pairs = x.unflatten(-1, (D // 2, 2)) if interleaved else x.unflatten(-1, (2, D // 2)).mT
    turned = torch.view_as_complex(pairs.contiguous()) * torch.complex(
        cos.double(), sin.double()
    ).unsqueeze(-2)
    turned = torch.view_as_real(turned)
    return (turned if interleaved else turned.mT).flatten(-2)


def angles(*shape, device, dtype=torch.float32):
    angle = torch.rand(*shape, device=device) * 6.3
    return angle.cos().to(dtype), angle.sin().to(dtype)


def draw(B, S, H, D, dtype, device, storage="BSHD"):
    if storage == "BHSD":
        return torch.randn(B, H, S, D, device=device, dtype=dtype).transpose(1, 2)
    return torch.randn(B, S, H, D, device=device, dtype=dtype)


def close(got, expected):
    assert got.shape == expected.shape
    error = (got.double() - expected).abs().max() / expected.abs().max()
    assert error <= RELATIVE[got.dtype], float(error)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("B", "S", "HQ", "HK", "D"),
    [
        (1, 1, 1, 1, 2),
        (2, 7, 3, 1, 64),
        (1, 9, 8, 2, 48),
        (3, 5, 4, 4, 80),
        (1, 3, 12, 3, 96),
        (2, 4, 9, 5, 128),
        (1, 3, 2, 1, 256),
    ],
)
def test_forward_and_gradients(B, S, HQ, HK, D, interleaved, dtype, device):
    torch.manual_seed(D + S)
    q = draw(B, S, HQ, D, dtype, device).requires_grad_()
    k = draw(B, S, HK, D, dtype, device).requires_grad_()
    cos, sin = angles(S, D // 2, device=device)
    dq, dk = torch.randn_like(q), torch.randn_like(k)
    got = apply_rotary(q, k, cos, sin, interleaved=interleaved)
    grads = torch.autograd.grad(got, (q, k), (dq, dk))

    q64, k64 = q.detach().double().requires_grad_(), k.detach().double().requires_grad_()
    expected = tuple(oracle(x, cos, sin, interleaved) for x in (q64, k64))
    expected_grads = torch.autograd.grad(expected, (q64, k64), (dq.double(), dk.double()))
    for one, other in zip((*got, *grads), (*expected, *expected_grads), strict=True):
        assert one.dtype == dtype
        close(one, other)


@pytest.mark.parametrize("storage_q", ["BSHD", "BHSD"])
@pytest.mark.parametrize("storage_k", ["BSHD", "BHSD"])
def test_outputs_keep_the_strides_of_their_inputs(storage_q, storage_k, device):
    q = draw(2, 6, 4, 32, torch.float32, device, storage_q)
    k = draw(2, 6, 2, 32, torch.float32, device, storage_k)
    cos, sin = angles(6, 16, device=device)
    q_out, k_out = apply_rotary(q, k, cos, sin)
    assert (q_out.stride(), k_out.stride()) == (q.stride(), k.stride())
    close(q_out, oracle(q, cos, sin, False))
    close(k_out, oracle(k, cos, sin, False))


@pytest.mark.parametrize("table", [torch.float32, torch.float16])
def test_angles_of_each_sequence_in_either_dtype(table, device):
    q = draw(3, 5, 2, 16, torch.float16, device)
    k = draw(3, 5, 2, 16, torch.float16, device)
    cos, sin = angles(3, 5, 8, device=device, dtype=table)
    for got, x in zip(apply_rotary(q, k, cos, sin), (q, k), strict=True):
        close(got, oracle(x, cos, sin, False))


def test_one_row_of_angles_serves_every_sequence(device):
    q, k = (draw(3, 5, 2, 16, torch.float32, device) for _ in range(2))
    cos, sin = angles(1, 5, 8, device=device)
    close(apply_rotary(q, k, cos, sin)[0], oracle(q, cos, sin, False))


def test_tables_may_be_slices_of_wider_ones(device):
    q, k = (draw(1, 5, 2, 16, torch.float32, device) for _ in range(2))
    cos, sin = angles(5, 16, device=device)
    got = apply_rotary(q, k, cos[:, :8], sin[:, :8])[1]
    close(got, oracle(k, cos[:, :8], sin[:, :8], False))


@pytest.mark.parametrize("shape", [(2, 9, 8, 64), (1, 20, 3, 48), (1, 4, 16, 128)])
def test_every_config_is_right(shape, device):
    B, S, H, D = shape
    q, k = draw(B, S, H, D, torch.float32, device), draw(B, S, 2, D, torch.float32, device)
    cos, sin = angles(S, D // 2, device=device)
    candidates = configs(S, H, D, arch="sm_90")
    assert 1 < len(candidates) <= 12
    assert len(set(candidates)) == len(candidates)
    for config in candidates:
        for got, x in zip(apply_rotary(q, k, cos, sin, config=config), (q, k), strict=True):
            close(got, oracle(x, cos, sin, False))


def test_in_place_on_views_of_a_packed_qkv(device):
    qkv = draw(2, 5, 8, 32, torch.float32, device)
    before = qkv.clone()
    q, k = qkv[:, :, :4], qkv[:, :, 4:6]
    cos, sin = angles(5, 16, device=device)
    version = qkv._version
    q_out, k_out = apply_rotary(q, k, cos, sin, inplace=True)
    assert q_out is q and k_out is k
    assert qkv._version > version, "autograd must know that the memory changed"
    close(qkv[:, :, :4], oracle(before[:, :, :4], cos, sin, False))
    close(qkv[:, :, 4:6], oracle(before[:, :, 4:6], cos, sin, False))
    assert torch.equal(qkv[:, :, 6:], before[:, :, 6:]), "v is not to be touched"


LAYOUTS = {
    "heads of a token": lambda qkv: (qkv[:, :, :4], qkv[:, :, 4:6]),
    "tokens of a head": lambda qkv: (qkv.transpose(1, 2)[:, :, :3], qkv.transpose(1, 2)[:, :, 3:]),
    "halves of a head": lambda qkv: (qkv[..., :16], qkv[..., 16:]),
    "heads in turn": lambda qkv: (qkv[:, :, ::2], qkv[:, :, 1::2]),
    "tokens in turn": lambda qkv: (qkv[:, ::2], qkv[:, 1::2]),
    "samples": lambda qkv: (qkv[:1], qkv[1:]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_place_on_views_whose_elements_lie_between_each_other(layout, device):
    qkv = draw(2, 6, 6, 32, torch.float32, device)
    before = LAYOUTS[layout](qkv.clone())
    given = LAYOUTS[layout](qkv)
    cos, sin = angles(given[0].shape[1], given[0].shape[3] // 2, device=device)
    for got, x in zip(apply_rotary(*given, cos, sin, inplace=True), before, strict=True):
        close(got, oracle(x, cos, sin, False))


def windows(x):
    """Each two tokens of the first sample that follow each other, as samples of their own."""
    return x[0].unfold(0, 2, 1).permute(0, 3, 1, 2)


SHARED = {
    "q and k are one tensor": lambda x: (x[:2], None),
    "q and k share memory": lambda x: (x[:2], x[1:]),
    "q and k share": lambda x: (x[:2], x[:2]),
    "k has elements that share memory": lambda x: (x[:1], x.as_strided((1, 6, 2, 8), (0, 4, 8, 1))),
    "q has elements that share memory": lambda x: (windows(x), windows(x).clone()),
}


@pytest.mark.parametrize("message", SHARED)
def test_memory_that_would_be_written_twice_is_refused(message, device):
    x = draw(3, 6, 6, 8, torch.float32, device)
    before = x.clone()
    q, k = SHARED[message](x)
    k = q if k is None else k[: q.shape[0], : q.shape[1]]
    cos, sin = angles(q.shape[1], 4, device=device)
    with pytest.raises(ValueError, match=f"{message}.*clone.*inplace=False"):
        apply_rotary(q, k, cos, sin, inplace=True)
    assert torch.equal(x, before)
    for got, given in zip(apply_rotary(q, k, cos, sin), (q, k), strict=True):
        close(got, oracle(given, cos, sin, False))


@pytest.mark.parametrize("table", ["cos", "sin"])
@pytest.mark.parametrize("name", ["q", "k"])
def test_tables_that_would_be_overwritten_are_refused(name, table, device):
    given = {each: draw(1, 4, 1, 8, torch.float32, device) for each in "qk"}
    given |= dict(zip(("cos", "sin"), angles(4, 4, device=device), strict=True))
    given[table] = given[name][0, :, 0, 4:]
    with pytest.raises(ValueError, match=f"{name} and {table} share memory"):
        apply_rotary(**given, inplace=True)
    given[table] = given[table].clone()
    apply_rotary(**given, inplace=True)


def test_what_is_known_of_memory_is_of_these_addresses(device):
    """Calls alike in shapes and strides, one right and one wrong, in both orders."""
    x = draw(1, 5, 4, 8, torch.float32, device)
    cos, sin = angles(5, 4, device=device)
    for _ in range(2):
        apply_rotary(x[:, :, :2], x[:, :, 2:], cos, sin, inplace=True)
        with pytest.raises(ValueError, match="q and k share memory"):
            apply_rotary(x[:, :, :2], x[:, :, 1:3], cos, sin, inplace=True)


def test_overlaps_are_found_exactly(device):
    """Against a list of all addresses, for views with any small strides."""
    generator = random.Random(0)
    memory = torch.zeros(400, device=device)

    def view():
        shape = [generator.randint(1, 3) for _ in range(3)] + [generator.choice((2, 4))]
        strides = [generator.randint(1, 14) for _ in range(3)] + [1]
        return memory.as_strided(shape, strides, generator.randint(0, 40))

    seen = set()
    places = torch.arange(400, device=device)
    for _ in range(300):
        x, y = view(), view()
        at_x, at_y = (
            places.as_strided(a.shape, a.stride(), a.storage_offset()).flatten().tolist()
            for a in (x, y)
        )
        assert _overlap(x, y) == bool(set(at_x) & set(at_y))
        assert _overlaps_itself(x) == (len(set(at_x)) < len(at_x))
        seen |= {_overlap(x, y), _overlaps_itself(x)}
    assert seen == {False, True}


@pytest.mark.parametrize("graded", ["q", "k"])
@pytest.mark.parametrize("packed", [False, True])
def test_in_place_only_what_requires_grad_becomes_part_of_a_graph(packed, graded, device):
    leaf = draw(1, 5, 2, 8, torch.float32, device).requires_grad_()
    plain = draw(1, 5, 4, 8, torch.float32, device)[:, :, : 2 if packed else 4]
    plain = plain if packed else plain.clone()
    before, version = plain.clone(), plain._version
    cos, sin = angles(5, 4, device=device)
    upstream = torch.randn_like(leaf)
    for _ in range(2):
        turned = leaf * 1
        q, k = (turned, plain) if graded == "q" else (plain, turned)
        q, k = apply_rotary(q, k, cos, sin, inplace=True)
        assert turned.requires_grad and not plain.requires_grad and plain.grad_fn is None
        (grad,) = torch.autograd.grad(turned, leaf, upstream)
        close(turned, oracle(leaf, cos, sin, False))
        close(grad, oracle(upstream, cos, -sin, False))
    assert plain._version > version
    close(plain, oracle(oracle(before, cos, sin, False), cos, sin, False))


@pytest.mark.parametrize("packed", [True, False])
def test_in_place_is_differentiable(packed, device):
    x = draw(2, 5, 6, 16, torch.float32, device).requires_grad_()
    cos, sin = angles(5, 8, device=device)
    upstream = torch.randn_like(x)

    def rotated(source, rotate):
        whole = source * 2
        q, k = whole[:, :, :4], whole[:, :, 4:]
        if not packed:
            q, k = q.clone(), k.clone()
        q, k = rotate(q, k)
        return torch.cat((q, k), 2)

    got = rotated(x, lambda q, k: apply_rotary(q, k, cos, sin, inplace=True))
    (grad,) = torch.autograd.grad(got, x, upstream)
    x64 = x.detach().double().requires_grad_()
    expected = rotated(x64, lambda q, k: (oracle(q, cos, sin, False), oracle(k, cos, sin, False)))
    (expected_grad,) = torch.autograd.grad(expected, x64, upstream.double())
    close(got, expected)
    close(grad, expected_grad)


def test_a_gradient_that_does_not_arrive_is_none(device):
    q = draw(1, 5, 4, 16, torch.float32, device).requires_grad_()
    k = draw(1, 5, 2, 16, torch.float32, device).requires_grad_()
    cos, sin = angles(5, 8, device=device)
    _, k_out = apply_rotary(q, k, cos, sin)
    upstream = torch.randn_like(k)
    dq, dk = torch.autograd.grad(k_out, (q, k), upstream, allow_unused=True)
    assert dq is None
    close(dk, oracle(upstream, cos, -sin, False))


@pytest.mark.parametrize("layout", ["scalar", "heads", "transposed"])
def test_gradients_of_any_strides(layout, device):
    q = draw(2, 6, 4, 16, torch.float32, device).requires_grad_()
    k = draw(2, 6, 4, 16, torch.float32, device).requires_grad_()
    cos, sin = angles(6, 8, device=device)
    upstream = {
        "scalar": torch.ones((), device=device).expand(2, 6, 4, 16),
        "heads": torch.randn(2, 6, 1, 16, device=device).expand(2, 6, 4, 16),
        "transposed": torch.randn(2, 6, 16, 4, device=device).transpose(2, 3),
    }[layout]
    for grad in torch.autograd.grad(apply_rotary(q, k, cos, sin), (q, k), (upstream, upstream)):
        close(grad, oracle(upstream, cos, -sin, False))


@pytest.mark.parametrize("shape", [(0, 3, 2, 8), (2, 0, 2, 8), (2, 3, 0, 8)])
def test_empty_tensors(shape, device):
    q = torch.empty(shape, device=device, requires_grad=True)
    k = torch.empty(shape, device=device, requires_grad=True)
    cos, sin = angles(shape[1], 4, device=device)
    outs = apply_rotary(q, k, cos, sin)
    assert all(out.shape == shape for out in outs)
    grads = torch.autograd.grad(outs, (q, k), [torch.ones_like(out) for out in outs])
    assert all(grad.shape == shape for grad in grads)


def ok(device, **changed):
    q, k = (torch.ones(2, 3, 4, 8, device=device) for _ in range(2))
    cos, sin = angles(3, 4, device=device)
    return apply_rotary(**({"q": q, "k": k, "cos": cos, "sin": sin} | changed))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"k": torch.ones(2, 3, 4, 8).half()}, TypeError, "of one dtype.*float32 and torch.float1"),
        ({"q": torch.ones(2, 3, 4, 8).double()}, TypeError, "of one dtype.*float64"),
        ({"k": torch.ones(2, 3, 4, 6)}, ValueError, r"takes q \(B,S,Hq,D\)"),
        ({"q": torch.ones(2, 3, 8)}, ValueError, r"takes q \(B,S,Hq,D\)"),
        ({"q": torch.ones(2, 3, 4, 7), "k": torch.ones(2, 3, 4, 7)}, ValueError, "must be even"),
        ({"cos": torch.ones(3, 5)}, ValueError, r"cos of shape.*here \(3, 4\).*got \(3, 5\)"),
        ({"rotary_dim": 10}, ValueError, "rotary_dim must be even and from 2 to D = 8, got 10"),
        ({"rotary_dim": 3}, ValueError, "rotary_dim must be even and from 2 to D = 8, got 3"),
        ({"rotary_dim": 2}, ValueError, r"here \(3, 1\), or with each angle twice \(3, 2\)"),
        ({"offsets": 1}, ValueError, "offsets from 0 to 0, as cos has 3 positions.*got 1"),
        ({"offsets": torch.zeros(3, dtype=torch.int32)}, ValueError, r"here \(2,\), of int32"),
        ({"offsets": torch.zeros(2)}, ValueError, "of int32 or int64, got .* of torch.float32"),
        ({"sin": torch.ones(3, 4).double()}, TypeError, "sin of float32 or q's.*float64"),
        ({"cos": torch.ones(3, 4, requires_grad=True)}, ValueError, "gets none.*detach it"),
        ({"q": torch.ones(2, 3, 8, 4).mT}, ValueError, r"q with its last axis.*\.contiguous\(\)"),
        ({"sin": torch.ones(4, 3).mT}, ValueError, r"sin with its last axis"),
        (
            {"q": torch.ones(2, 3, 1, 8).expand(2, 3, 4, 8), "inplace": True},
            ValueError,
            "q is expanded.*clone it",
        ),
        (
            {"k": torch.ones(2, 3, 4, 8, requires_grad=True), "inplace": True},
            ValueError,
            "k is a leaf that requires grad.*inplace=False",
        ),
    ],
)
def test_errors_say_what_to_do(changed, error, message, device):
    on_device = {
        name: value.detach()
        .to(device)
        .as_strided(value.shape, value.stride())
        .requires_grad_(value.requires_grad)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in changed.items()
    }
    with pytest.raises(error, match=message):
        ok(device, **on_device)


def test_a_config_must_be_powers_of_two():
    with pytest.raises(ValueError, match="RotaryConfig: block_h is 3, not a power of two"):
        RotaryConfig(4, 3, 4)


def test_distances_are_forgotten_beyond_a_limit(monkeypatch, device):
    monkeypatch.setattr(rotary, "_MOST_DISTANCES", 2)
    memory = draw(1, 3, 9, 8, torch.float32, device)
    cos, sin = angles(3, 4, device=device)
    plan = rotary._RotaryPlan(memory[:, :, :1], memory[:, :, 1:2], cos, sin, None, False, None)
    for head in range(1, 9):
        plan.check_writable(memory[:, :, :1], memory[:, :, head : head + 1], cos, sin)
        assert len(plan._apart) <= 2


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_tables_that_hold_each_angle_twice(interleaved, batch, device):
    """As Hugging Face hands them over: halves of a row alike, or neighbours."""
    q, k = draw(2, 5, 3, 16, torch.float32, device), draw(2, 5, 1, 16, torch.float32, device)
    cos, sin = angles(*batch, 5, 8, device=device)
    twice = [
        t.repeat_interleave(2, -1) if interleaved else torch.cat([t, t], -1) for t in (cos, sin)
    ]
    expected = apply_rotary(q, k, cos, sin, interleaved=interleaved)
    assert all(map(torch.equal, apply_rotary(q, k, *twice, interleaved=interleaved), expected))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("storage", ["BSHD", "BHSD"])
@pytest.mark.parametrize(("D", "turned"), [(16, 12), (48, 32), (7, 2), (128, 96)])
def test_the_first_elements_of_a_head_may_turn_alone(
    D, turned, storage, interleaved, inplace, device
):
    q = draw(2, 5, 3, D, torch.float32, device, storage)
    k = draw(2, 5, 2, D, torch.float32, device, storage)
    cos, sin = angles(5, turned // 2, device=device)
    expected = [
        torch.cat([oracle(x[..., :turned], cos, sin, interleaved), x[..., turned:].double()], -1)
        for x in (q, k)
    ]
    options = {"interleaved": interleaved, "rotary_dim": turned}
    if not inplace:
        leaves = [x.detach().requires_grad_() for x in (q, k)]
        outs = apply_rotary(*leaves, cos, sin, **options)
        upstream = [torch.randn_like(x) for x in outs]
        back = apply_rotary(*upstream, cos, -sin, **options)
        assert all(map(torch.equal, torch.autograd.grad(outs, leaves, upstream), back))
    for found, right in zip(apply_rotary(q, k, cos, sin, inplace=inplace, **options), expected,
                            strict=True):  # fmt: skip
        close(found, right)


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_positions_may_begin_elsewhere(kind, batch, device):
    q, k = draw(2, 5, 3, 16, torch.float32, device), draw(2, 5, 1, 16, torch.float32, device)
    cos, sin = angles(*batch, 11, 8, device=device)
    starts = (6, 2)
    rows = [
        torch.stack([(t[b] if batch else t)[n : n + 5] for b, n in enumerate(starts)])
        for t in (cos, sin)
    ]
    expected = apply_rotary(q, k, *rows)
    offsets = torch.tensor([6, 0, 2, 0], dtype=kind, device=device)[::2]
    leaves = [x.requires_grad_() for x in (q, k)]
    found = apply_rotary(*leaves, cos, sin, offsets=offsets)
    assert all(map(torch.equal, found, expected))
    back = apply_rotary(*found, *(rows[0], -rows[1]))
    assert all(map(torch.equal, torch.autograd.grad(found, leaves, found), back))
    whole = apply_rotary(q, k, cos, sin, offsets=3)
    assert torch.equal(whole[0], apply_rotary(q, k, cos[..., 3:8, :], sin[..., 3:8, :])[0])


def test_positions_that_a_table_lacks_are_nan(device):
    q = torch.ones(2, 5, 3, 16, device=device)
    cos, sin = angles(7, 8, device=device)
    offsets = torch.tensor([4, -1], device=device)
    out, _ = apply_rotary(q, q.clone(), cos, sin, offsets=offsets)
    assert out.isnan().any(-1).any(-1).tolist() == [[0, 0, 0, 1, 1], [1, 0, 0, 0, 0]]


def test_partial_rotation_from_elsewhere_is_an_operator(device):
    q, k = draw(2, 5, 3, 16, torch.float32, device), draw(2, 5, 1, 16, torch.float32, device)
    cos, sin = angles(9, 6, device=device)
    offsets = torch.tensor([4, 0], device=device)

    def call(q, k):
        return apply_rotary(q, k, cos, sin, rotary_dim=12, offsets=offsets)

    graph = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, graph(q, k), call(q, k)))
    leaves = q.requires_grad_(), k.requires_grad_()
    torch.library.opcheck(rotary._operator, (*leaves, cos, sin, offsets, True, [], False))


def test_what_is_overwritten_is_held_against_the_rows_that_are_read(device):
    memory = torch.randn(64, device=device)
    q, k = memory[16:48].view(1, 2, 2, 8), torch.randn(1, 2, 1, 8, device=device)
    table = memory[:24].view(6, 4)
    other = torch.ones(6, 4, device=device)
    apply_rotary(q, k, table, other, inplace=True, offsets=1)
    with pytest.raises(ValueError, match="q and cos share memory"):
        apply_rotary(q, k, table, other, inplace=True, offsets=4)


@pytest.mark.parametrize("offsets", [2.5, "x", [3]])
def test_offsets_are_whole_numbers(offsets, device):
    with pytest.raises(TypeError, match="offsets as a whole number or a tensor"):
        ok(device, offsets=offsets)
    q, k = draw(1, 3, 1, 8, torch.float32, device), draw(1, 3, 1, 8, torch.float32, device)
    cos, sin = angles(6, 4, device=device)
    found = apply_rotary(q, k, cos, sin, offsets=np.int64(2))
    assert all(map(torch.equal, found, apply_rotary(q, k, cos[2:5], sin[2:5])))


def test_what_a_part_of_the_head_takes_is_refused_for_all_of_it(device):
    """Also after a call that turned that part, whose plan is of the same tables."""
    q, k = draw(1, 3, 2, 64, torch.float32, device), draw(1, 3, 1, 64, torch.float32, device)
    cos, sin = angles(3, 16, device=device)
    for _ in range(2):
        with pytest.raises(ValueError, match="takes cos of shape"):
            apply_rotary(q, k, cos, sin)
        apply_rotary(q, k, cos, sin, rotary_dim=32)
        rotary._operator(q, k, cos, sin, None, False, [], False)
