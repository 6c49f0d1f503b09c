"""The modules of a language model: right whatever computes them, and how `auto` chooses."""

import copy
import threading
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode

from kernelbench.dispatch import Dispatch, Entry, FamilyTable, Option, Table, Where
from kernelbench.families.rotary.case import turn
from kernelbench.nn import (
    MLP,
    Attention,
    ModelConfig,
    RMSNorm,
    RotaryEmbedding,
    Transformer,
    TransformerBlock,
    choosing,
    use_dispatch,
)

TINY: dict[str, Any] = {
    "vocab_size": 50,
    "d_model": 32,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_layers": 2,
    "d_ff": 48,
    "max_seq_len": 24,
}
IMPLS: list[Any] = [
    "eager",
    "triton",
    {"rms_norm": "triton", "rotary": "triton", "attention": "eager", "swiglu": "eager"},
]


@pytest.fixture(autouse=True)
def no_table() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a CPU is warned of, once
        yield
    use_dispatch(None)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "why_not", lambda device, dtype: "")


def model_of(impl: Any, **more: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(**{**TINY, **more}, impl=impl))


def words(seed: int = 0) -> tuple[Tensor, Tensor]:
    drawn = torch.randint(
        TINY["vocab_size"], (2, 2, 17), generator=torch.Generator().manual_seed(seed)
    )
    return drawn[0], drawn[1]


def gradient(model: Transformer, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.parameters()])])


def as_written(state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """The model's formula in fp64, with a mask and complex rotations."""
    w = {name: value.double() for name, value in state.items()}
    H, G, D, S = 4, 2, 8, tokens.shape[1]
    turn = torch.polar(
        torch.ones(S, D // 2, dtype=torch.float64),
        torch.arange(S)[:, None] * 10000.0 ** (-torch.arange(0, D, 2).double() / D),
    )

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def turned(x: Tensor) -> Tensor:
        y = torch.complex(*x.chunk(2, -1)) * turn[:, None]
        return torch.cat([y.real, y.imag], -1)

    x = w["embedding.weight"][tokens]
    for i in range(TINY["n_layers"]):
        own = {name.removeprefix(f"blocks.{i}."): value for name, value in w.items()}
        h = norm(x, own["attention_norm.weight"]) @ own["attention.qkv.weight"].mT
        q, k, v = h.unflatten(-1, (-1, D)).split((H, G, G), 2)
        q, (k, v) = turned(q), (each.repeat_interleave(H // G, 2) for each in (turned(k), v))
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / D**0.5
        later = torch.ones(S, S, dtype=torch.bool).triu(1)
        o = torch.einsum("bhij,bjhd->bihd", scores.masked_fill(later, -torch.inf).softmax(-1), v)
        x = x + o.flatten(2) @ own["attention.out.weight"].mT
        gate, up = (norm(x, own["mlp_norm.weight"]) @ own["mlp.gate_up.weight"].mT).chunk(2, -1)
        x = x + (gate * gate.sigmoid() * up) @ own["mlp.down.weight"].mT
    return norm(x, w["norm.weight"]) @ w["embedding.weight"].mT


@pytest.mark.parametrize("impl", IMPLS, ids=str)
def test_a_model_computes_what_it_says_with_any_impl(impl: Any) -> None:
    model, (tokens, targets) = model_of(impl), words()
    for name, weight in model.named_parameters():  # norms of ones would hide a weight
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    state = {
        name: value.detach().clone().requires_grad_() for name, value in model.state_dict().items()
    }
    logits = as_written(state, tokens)
    torch.testing.assert_close(model(tokens).double(), logits, atol=1e-5, rtol=1e-5)
    right = torch.autograd.grad(
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()), [*state.values()]
    )
    found = gradient(model, model.loss(tokens, targets))
    torch.testing.assert_close(
        found.double(), torch.cat([g.double().flatten() for g in right]), atol=1e-6, rtol=1e-4
    )


def test_parameters_are_the_same_for_every_impl() -> None:
    states = [model_of(impl).state_dict() for impl in ("auto", "compile", *IMPLS)]
    for state in states[1:]:
        assert [*state] == [*states[0]]
        assert all(state[name].equal(states[0][name]) for name in state)
    assert not [name for name in states[0] if "rotary" in name], "tables are no state"
    spread = states[0]["blocks.1.mlp.down.weight"].std()
    assert 0.008 < spread < 0.012, "0.02 / √(2·2)"


@pytest.mark.parametrize(
    ("impl", "dynamic"),
    [
        ("triton", False),
        *(
            pytest.param(impl, dynamic, marks=pytest.mark.slow)
            for impl, dynamic in [("triton", True), ("eager", False), ("auto", True)]
        ),
    ],
)
def test_all_of_it_is_one_graph(impl: Any, dynamic: bool) -> None:
    torch.compiler.reset()
    model, (tokens, targets) = model_of(impl, n_layers=1), words()
    compiled = torch.compile(model.loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for S in (17, 12) if dynamic else (17,):
        right = model.loss(tokens[:, :S], targets[:, :S])
        loss = compiled(tokens[:, :S], targets[:, :S])
        torch.testing.assert_close(loss, right)
        torch.testing.assert_close(gradient(model, loss), gradient(model, right))


@pytest.mark.slow
def test_operators_are_compiled_for_themselves() -> None:
    tokens, targets = words()
    losses = []
    for impl in ("compile", "eager"):
        model = model_of(impl, n_layers=1)
        losses += [model.loss(tokens, targets)]
    torch.testing.assert_close(*losses)


def test_compiled_operators_are_of_any_number_of_models_and_shapes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.compiler.reset()
    graphs = list[Any]()

    def note(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=note))
    for dim, dtype, grad in product((64, 96), (torch.float32, torch.bfloat16), (True, False)):
        norm = RMSNorm(dim, impl="compile", dtype=dtype)
        for rows in ((4,), (9,), (7,), (2, 3), (3, 5), (1, 6), (5, 5)):
            x = torch.randn(*rows, dim, dtype=dtype)
            with torch.set_grad_enabled(grad):
                wanted = F.rms_norm(x, (dim,), norm.weight, norm.eps)
                torch.testing.assert_close(norm(x), wanted)
    assert len(graphs) <= 8 * 5, "any number of rows after a second one"


def test_under_autocast_a_wide_residual_stays_wide() -> None:
    tokens, targets = words()
    losses = []
    for impl in ("eager", "triton"):
        model = model_of(impl)
        with torch.autocast("cpu", torch.float16):
            block = model.blocks[0]
            _, residual = block(model.embedding(tokens))
            losses.append(model.loss(tokens, targets))
        assert residual.dtype == torch.float32
        losses[-1].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(*losses, atol=2e-3, rtol=0)


def test_tables_of_positions_stay_in_fp32() -> None:
    with torch.device("meta"):
        made = RotaryEmbedding(8, 20)
    assert made.cos.is_meta
    made = made.to_empty(device="cpu").to(torch.bfloat16)
    at_5 = torch.tensor([5 * 10000.0 ** (-2 * i / 8) for i in range(4)])
    torch.testing.assert_close(made.cos[5], at_5.cos())
    torch.testing.assert_close(made.sin[5], at_5.sin())
    q, k = torch.randn(1, 12, 2, 8), torch.randn(1, 12, 1, 8)
    whole, part = made(q, k), made(q[:, 4:], k[:, 4:], offset=4)
    for all_of_it, end in zip(whole, part, strict=True):
        assert end.equal(all_of_it[:, 4:])
    norms = [x.norm(dim=-1) for x in (*whole, q, k)]
    torch.testing.assert_close(norms[:2], norms[2:])


def test_tables_stay_what_they_are_in_any_move() -> None:
    made, q = RotaryEmbedding(8, 20), torch.randn(1, 6, 2, 8, requires_grad=True)
    cos = made.cos
    assert made.share_memory().cos is cos and cos.is_shared()
    wanted = cos.clone()
    with torch.inference_mode():
        made.double().to("cpu")
        moved = RotaryEmbedding(8, 20, device="meta").to_empty(device="cpu")
    made.to_empty(device="cpu")
    for each in (made, moved):
        assert each.cos.equal(wanted)
        each(q, q)[0].sum().backward()


def test_tables_that_blocks_share_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = Transformer(ModelConfig(**TINY), device="meta"), list[Any]()
    make = RotaryEmbedding.reset_parameters
    monkeypatch.setattr(
        RotaryEmbedding, "reset_parameters", lambda self: (made.append(self), make(self))
    )
    model.to_empty(device="cpu").float()
    assert len(made) == 1 < TINY["n_layers"]


def test_a_model_on_meta_takes_the_weights_of_another() -> None:
    real, (tokens, _) = model_of("eager"), words()
    model = Transformer(ModelConfig(**TINY, impl="eager"), device="meta")
    model.load_state_dict(real.state_dict(), assign=True)
    assert copy.deepcopy(model)(tokens).equal(real(tokens))
    x = torch.ones(1, 3, 2, 8)
    with pytest.raises(RuntimeError, match=r"on meta, q is on cpu: call .to_empty\(device='cpu'\)"):
        RotaryEmbedding(8, 20, device="meta")(x, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_positions_by_pytorch_are_what_the_family_times(dtype: torch.dtype) -> None:
    q, k = torch.randn(2, 5, 2, 8).to(dtype), torch.randn(2, 5, 1, 8).to(dtype)
    made = RotaryEmbedding(8, 20, impl="eager")
    tables = made.cos[:5].to(dtype), made.sin[:5].to(dtype)
    for found, x in zip(made(q, k), (q, k), strict=True):
        assert found.equal(turn(x, *tables, interleaved=False))


def test_a_norm_of_mixed_dtypes(as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    why = {torch.float64: "no kernel"}
    monkeypatch.setattr(choosing, "why_not", lambda device, dtype: why.get(dtype, ""))
    x = torch.randn(3, 8, dtype=torch.float64)
    right = F.rms_norm(x, (8,), eps=1e-5)
    torch.testing.assert_close(RMSNorm(8)(x), right)
    wide = RMSNorm(8, dtype=torch.float64)
    torch.testing.assert_close(wide(x.float()), right.float())
    dispatch = table(("full", "triton_fused", 3))
    use_dispatch(dispatch)
    RMSNorm(8).requires_grad_(False)(x.float(), x.float().requires_grad_())
    assert next(iter(dispatch.decisions)).endswith("-full"), "a residual has a gradient, too"


def test_a_norm_of_a_sum_gives_the_sum_too() -> None:
    x, r = torch.randn(3, 8), torch.randn(3, 8, dtype=torch.float64).bfloat16()
    for impl in ("eager", "triton"):
        norm = RMSNorm(8, impl=impl)  # type: ignore[arg-type]
        y, total = norm(x, r)
        assert total.equal(x + r.float()) and y.dtype == torch.float32
        torch.testing.assert_close(y, norm(total))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: RMSNorm(8, impl="fast"), "RMSNorm has no impl 'fast'. Known: auto, eager"),
        (lambda: RMSNorm(0), "a dim of at least 1"),
        (lambda: RMSNorm(8)(torch.ones(8, 1)), r"\(..., 8\), got \(8, 1\)"),
        (lambda: RMSNorm(8, impl="eager")(torch.ones(2, 8), torch.ones(8)), r"got \(8,\)"),
        (lambda: RotaryEmbedding(8, 4)(torch.ones(2, 3, 1, 8), torch.ones(1, 3, 1, 8)), "heads, 8"),
        (lambda: RotaryEmbedding(7, 8), "an even head_dim, got 7"),
        (lambda: RotaryEmbedding(8, 0), "max_seq_len = 0"),
        (lambda: RotaryEmbedding(8, 4)(*[torch.ones(1, 5, 2, 8)] * 2), "0 to 3, got 0 to 4"),
        (lambda: RotaryEmbedding(8, 4)(torch.ones(1, 3, 8), torch.ones(1, 3, 8)), "heads, 8"),
        (lambda: Attention(32, 4, 3), "num_kv_heads divides, got 4 and 3"),
        (lambda: Attention(30, 4), "dim = 30 and num_heads = 4: or pass head_dim"),
        (lambda: Attention(32, 4, rotary=RotaryEmbedding(4, 8)), "heads of 8, its rotary of 4"),
        (lambda: MLP(8, 16, impl="fused"), "MLP has no impl 'fused'"),  # type: ignore[arg-type]
        (lambda: ModelConfig(vocab_size=0), "vocab_size of at least 1, got 0"),
        (
            lambda: ModelConfig(vocab_size=9, impl={"norm": "triton"}),
            "no operator 'norm'. Known: rms",
        ),
        (lambda: ModelConfig(vocab_size=9, impl={"rotary": "on"}), "no impl 'on'"),  # type: ignore[dict-item]
        (lambda: Transformer(ModelConfig(vocab_size=9, d_model=30)), "multiple of n_heads, got 30"),
        (lambda: model_of("eager")(torch.zeros(1, 25, dtype=torch.int64)), "S up to 24, got"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make()


def test_q_and_k_are_of_one_dtype() -> None:
    q = torch.ones(1, 3, 2, 8)
    with pytest.raises(TypeError, match=r"one dtype, got torch.float32, torch.float16"):
        RotaryEmbedding(8, 4, impl="eager")(q, q.half())


def test_heads_may_be_of_another_size_than_their_share_of_channels() -> None:
    y = Attention(24, 2, 1, head_dim=16, impl="eager")(torch.randn(2, 5, 24))
    assert y.shape == (2, 5, 24)


def test_a_block_makes_its_own_positions() -> None:
    block = TransformerBlock(ModelConfig(**TINY))
    assert block.attention.rotary is not None
    found, residual = block(torch.randn(1, 6, 32))
    assert found.shape == residual.shape == (1, 6, 32)


def test_on_a_cpu_auto_is_pytorch_and_says_so_once() -> None:
    choosing._said.clear()
    norm, x = RMSNorm(8), torch.ones(2, 8)
    with pytest.warns(
        UserWarning, match="takes PyTorch's operators, not our kernels: tensors on cpu"
    ):
        assert choosing.chosen("rms_norm", "auto", tuple, x) == "eager"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        norm(x)


class Sharded(Tensor):
    """A subclass that dispatches for itself."""


def test_of_subclasses_auto_takes_those_that_stand_for_a_plain_tensor(as_on_a_gpu: None) -> None:
    choosing._said.clear()
    x = torch.ones(2, 8)
    with FakeTensorMode() as mode:
        assert choosing.chosen("rms_norm", "auto", tuple, mode.from_tensor(x)) == "triton"
    graph = torch.export.export(RMSNorm(8), (x,), strict=False).graph
    assert "kernelbench.rms_norm" in {
        str(node.target).removesuffix(".default") for node in graph.nodes
    }
    with pytest.warns(UserWarning, match="not our kernels: tensors of Sharded"):
        choosing.chosen("rms_norm", "auto", tuple, x.as_subclass(Sharded))


def test_auto_without_a_table(as_on_a_gpu: None) -> None:
    x = torch.ones(2, 8)
    assert choosing.chosen("rms_norm", "auto", tuple, x) == "triton"
    assert choosing.chosen("rms_norm", "auto", tuple, x.as_subclass(Sharded)) == "eager"
    assert choosing.chosen("rms_norm", "compile", tuple, x) == "compile"


def test_a_table_may_go_while_it_is_asked(as_on_a_gpu: None) -> None:
    use_dispatch(table(("fwd", "compile", 4)))

    def axes() -> Any:
        use_dispatch(None)
        return ("M", 4), ("N", 8)

    assert choosing.chosen("rms_norm", "auto", axes, torch.ones(4, 8)) == "triton"


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("how", ["dynamic", "automatic", "marked"])
def test_a_graph_of_any_size_is_no_case_of_a_table(
    as_on_a_gpu: None, how: str, forced: bool
) -> None:
    torch.compiler.reset()
    choosing._said.clear()
    dispatch = table(("fwd", "triton_fused", 4), ("fwd", "triton_fused", 6))
    dispatch.forced |= {"rms_norm": "triton_fused"} if forced else {}
    use_dispatch(dispatch)
    norm, graphs = RMSNorm(8).requires_grad_(False), list[str]()

    def note(graph: Any, inputs: Any) -> Any:
        graphs.append(str(graph.graph))
        return graph.forward

    compiled = torch.compile(
        norm, fullgraph=True, backend=note, dynamic=True if how == "dynamic" else None
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for M in (4, 5, 7):
            x = torch.randn(M, 8)
            if how == "marked":
                torch._dynamo.mark_dynamic(x, 0)
            torch.testing.assert_close(compiled(x), norm(x))
    found = ["kernelbench.rms_norm" in graph for graph in graphs]
    assert found == [True, forced][how != "automatic" :]
    assert sum("leaves sizes open" in str(each.message) for each in said) == (not forced)


def table(*entries: tuple[str, str, int], source: str = "") -> Dispatch:
    """Of RMSNorm in fp32: mode, winner, M; N is 8."""
    others = ("torch_fused", 1.5), ("triton_fused", 1.4), ("eager", 1.0)
    made = [
        Entry(
            dtype="fp32",
            mode=mode,
            axes={"M": M, "N": 8, "residual": False},
            options=tuple(
                Option(name, by, by, by)
                for name, by in ((winner, 2.0), *(each for each in others if each[0] != winner))
            ),
            reason="measured",
            regret_pct=0.0,
        )
        for mode, winner, M in entries
    ]
    defaults = {"residual": False}
    family = FamilyTable(baseline="eager", source=source, defaults=defaults, entries=tuple(made))
    whole = Table(where=Where(), families={"rms_norm": family})
    return Dispatch(whole, Where(), {"rms_norm": "now"} if source else None)


def choice(M: int, *, grad: bool = False) -> str:
    x = torch.ones(M, 8, requires_grad=grad)
    return choosing.chosen("rms_norm", "auto", lambda: (("M", M), ("N", 8)), x)


@pytest.mark.parametrize(
    ("entries", "grad", "wanted"),
    [
        ([("fwd", "triton_fused", 4)], False, "triton"),
        ([("fwd", "compile", 4)], False, "compile"),
        ([("fwd", "liger", 4)], False, "eager"),  # not to be had here: the next that is
        ([("bwd", "triton_fused", 4)], False, "eager"),
        ([("full", "triton_fused", 4), ("fwd", "compile", 4)], True, "triton"),
        ([("fwd", "triton_fused", 4), ("bwd", "triton_fused", 4)], True, "triton"),
        ([("fwd", "triton_fused", 4), ("bwd", "compile", 4)], True, "eager"),
        ([("fwd", "triton_fused", 2), ("fwd", "triton_fused", 16)], False, "triton"),
        ([("fwd", "triton_fused", 16)], False, "eager"),
    ],
)
def test_auto_asks_the_table(
    as_on_a_gpu: None, entries: Sequence[tuple[str, str, int]], grad: bool, wanted: str
) -> None:
    use_dispatch(table(*entries))
    assert choice(4, grad=grad) == wanted


def test_a_stale_table_leaves_pytorch(as_on_a_gpu: None) -> None:
    use_dispatch(table(("fwd", "triton_fused", 4), source="then"))
    assert choice(4) == "eager"
    use_dispatch(None)
    assert choice(4) == "triton"


def test_decisions_can_be_listed_and_a_forced_impl_is_none(as_on_a_gpu: None) -> None:
    dispatch = table(("fwd", "triton_fused", 4))
    use_dispatch(dispatch)
    RMSNorm(8, impl="eager")(torch.ones(4, 8))
    assert not dispatch.decisions
    with torch.no_grad():
        RMSNorm(8)(torch.ones(4, 8))
    [(case, found)] = dispatch.summary().items()
    assert case == "rms_norm/M4-N8-fp32-fwd" and found["provider"] == "triton_fused"


def test_a_weight_that_is_trained_has_a_gradient_to_come(as_on_a_gpu: None) -> None:
    dispatch = table(("full", "triton_fused", 4))
    use_dispatch(dispatch)
    RMSNorm(8)(torch.ones(4, 8))
    assert [*dispatch.decisions] == ["rms_norm/M4-N8-fp32-full"]


def test_a_table_is_asked_in_a_graph_and_from_threads(as_on_a_gpu: None) -> None:
    torch.compiler.reset()
    use_dispatch(table(("fwd", "triton_fused", 4), ("fwd", "torch_fused", 6)))
    norm = RMSNorm(8).requires_grad_(False)
    names = []

    def note(graph: Any, inputs: Any) -> Any:
        names.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    compiled = torch.compile(norm, fullgraph=True, backend=note, dynamic=False)
    for M in (4, 6):
        x = torch.randn(M, 8)
        torch.testing.assert_close(compiled(x), F.rms_norm(x, (8,), norm.weight, 1e-5))
    assert [
        "rms_norm" in " ".join(found) and "kernelbench" in " ".join(found) for found in names
    ] == [
        True,
        False,
    ]
    answers = list[str]()
    threads = [threading.Thread(target=lambda: answers.append(choice(4))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["triton"] * 8
