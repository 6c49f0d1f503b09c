"""Functions against their references: arguments, targets, the fp64 form, and ten of others."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import kernelbench
from kernelbench.families.functions import arguments as grammar
from kernelbench.families.functions import family_of, of_declaration
from kernelbench.families.functions.exact import widely
from kernelbench.families.functions.functions import FP32_ORACLE, Functions
from kernelbench.families.functions.others import seeded
from kernelbench.families.functions.targets import find, of_callable
from kernelbench.source import source_hash
from kernelbench.spec import Declaration, PluginError, Status, UsageError

OTHERS = Path(__file__).parent / "functions" / "others.py"
QUICK: dict[str, Any] = {"device": "cpu", "measure": {"max_seconds": 0.05, "timers": ()}}


def of_others(name: str) -> Any:
    return find(f"{OTHERS}:{name}").function


def status(records: Any) -> dict[str, Status]:
    """Of each provider, the worst in any case."""
    order = [Status.ok, Status.skipped]
    return {
        r.provider: max(
            (s.status for s in records if s.provider == r.provider),
            key=lambda s: order.index(s) if s in order else len(order),
        )
        for r in records
    }


# One line each: the function, its arguments, and what has a gradient.
TEN = {
    "layer_norm": ("x=37x257:fp32, weight=257:fp32, bias=257:fp32", True),
    "softmax": ("logits=33x130:fp16", True),
    "cross_entropy": ("logits=64x100:bf16, target=64:int64[0:100]", True),
    "geglu": ("gate=17x96:bf16, up=17x96:bf16", True),
    "rope": ("q=2x3x17x64:bf16, k=2x3x17x64:bf16, cos=2x17x64:bf16, sin=2x17x64:bf16", True),
    "scatter": ("src=64x33:fp32, index=64:int64[0:16]", ["src"]),
    "top_k": ("x=16x101:fp32, k=5", False),
    "fp8_quantise": ("x=16x128:bf16", False),
    "MLP": ("x=32x64:bf16", True),
    "varlen": ("q=96x2x32:fp16, k=96x2x32:fp16, v=96x2x32:fp16, "
               "cu_seqlens=cu_seqlens(5,96)", True),
}  # fmt: skip


@pytest.mark.parametrize("name", TEN)
def test_ten_functions_of_others_are_proven_and_wrong_ones_caught(name: str) -> None:
    args, grad = TEN[name]
    names = (name, f"{name}_wrong", f"{name}_reference")
    if name == "MLP":
        right, wrong, reference = (
            f"{OTHERS}:{word}(dim=64)" for word in ("FusedMLP", "WrongMLP", "MLP")
        )
    else:
        right, wrong, reference = (f"{OTHERS}:{word}" for word in names)
    records = kernelbench.bench(right, wrong, against=reference, args=args, grad=grad, **QUICK)
    found = status(records)
    wrong_name = next(n for n in found if "wrong" in n.lower())
    assert found.pop(wrong_name).bad, records
    assert {*found.values()} == {Status.ok}, records
    assert len(found) == 2 and all(not r.flags or "oracle" not in r.flags[0] for r in records)


def test_the_arguments_of_a_line() -> None:
    parsed = grammar.parse(
        "x=MxN:{bf16,fp16}, w=N:bf16*0.02, s=3*M+1xN:fp32, i=M:int64[0:V], m=M:bool, k=8, "
        "eps={1e-5,1e-6}, n=N, act=gelu, b=none, cu=cu_seqlens(B,M), z={8..32}x3:bf16, y=4x5:bf16"
    )
    assert parsed.names == ("x", "w", "s", "i", "m", "k", "eps", "n", "act", "b", "cu", "z", "y")
    assert parsed.sizes == ("M", "N", "V", "B") and parsed.dtypes == ("bf16", "fp16")
    assert parsed.axes == {
        "k": (8,), "eps": (1e-5, 1e-6), "act": ("gelu",), "z_0": (8, 16, 32), "y": ("4x5",),
    }  # fmt: skip
    by_name = {argument.name: argument for argument in parsed.arguments}
    assert isinstance(by_name["w"], grammar.TensorArgument) and by_name["w"].dtype == ""
    assert isinstance(by_name["s"], grammar.TensorArgument)
    assert by_name["s"].dims_at({"M": 5, "N": 7}) == (16, 7) and by_name["s"].dtype == "fp32"
    sizes = grammar.sizes_of(["M=1..9+4", "N=1024..4096", "V=10,12", "B=3"])
    assert sizes == {"M": (1, 5, 9), "N": (1024, 2048, 4096), "V": (10, 12), "B": (3,)}
    assert grammar.with_sizes(parsed, sizes)["N"] == [1024, 2048, 4096]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no argument"),
        ("x", "no NAME=VALUE"),
        ("x=3x:bf16", "is no number, size or formula"),
        ("x=3:bf17", "no dtype 'bf17'; did you mean 'bf16'"),
        ("i=3:int64", "whole numbers say their range"),
        ("x=3:bf16[0:2]", "other dtypes have none"),
        ("x=3:bf16, x=4:bf16", "stands twice"),
        ("mode=3", "a word of Python or kernelbench"),
        ("id=3", "a word of Python or kernelbench"),
        ("class=3", "a word of Python or kernelbench"),
        ("x=8x8", "a tensor says its dtype: x=8x8:bf16"),
        ("x=m:bf16", "a size is in capitals"),
        ("x=3:bf16, y=3:{bf16,fp16}", "stands at the first floating tensor"),
        ("k={1,a}", "of one type"),
        ("x=M/2:bf16", "a formula has"),
        ("k=a b", "a word of A-Z"),
        ("x=M:bf16:3", "expected DIMxDIM:DTYPE"),
    ],
)
def test_arguments_that_are_none_are_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        grammar.parse(text)


def test_sizes_are_given_and_used() -> None:
    parsed = grammar.parse("x=MxN:bf16")
    with pytest.raises(UsageError, match="N has no value: --size N=1024"):
        grammar.with_sizes(parsed, {"M": (1,)})
    with pytest.raises(UsageError, match="--size K: no argument has this size"):
        grammar.with_sizes(parsed, {"M": (1,), "N": (2,), "K": (3,)})
    for bad in ("M", "m=3", "M=x", "M=8..4", "M=0..4", "M=1..4+0"):
        with pytest.raises(UsageError, match="--size"):
            grammar.sizes_of([bad])


def test_the_fp64_form_rounds_nowhere() -> None:
    """Whatever a reference says of its precision."""

    def rms(x: Any, w: Any) -> Any:
        h = x.float()
        scale = torch.tensor(1.0, dtype=torch.float16) * torch.ones(1)
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * scale
        return h.to(x.dtype) * w, torch.softmax(x, -1, dtype=torch.float32), x.argmax(-1)

    x = torch.randn(5, 64, dtype=torch.bfloat16, requires_grad=True)
    w = torch.randn(64, dtype=torch.bfloat16)
    (y, p, index), (wide, *_) = widely(rms, [x, w], torch.float64)
    h = x.detach().double()
    assert y.dtype == p.dtype == torch.float64 and index.dtype == torch.int64
    assert torch.equal(y, h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * w.double())
    assert torch.equal(p, torch.softmax(h, -1))
    (dx,) = torch.autograd.grad(y.sum(), [wide])
    assert dx.dtype == torch.float64


def test_a_reference_without_an_fp64_form_is_the_oracle_in_fp32_and_records_say_so() -> None:
    def reference(x: Any) -> Any:
        if x.dtype == torch.float64:
            raise NotImplementedError("no fp64 here")
        return torch.relu(x)

    records = kernelbench.bench(torch.relu, against=reference, args="x=8x9:bf16", **QUICK)
    assert [(r.status, r.flags) for r in records] == [(Status.ok, (FP32_ORACLE,))] * 2


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (lambda x: x + torch.randn_like(x), "is not deterministic, two calls differ by"),
        (lambda x: x.log(), "gives NaN in .* of 72 elements, in float64"),
        (
            lambda x: x.view(torch.int16).to(torch.float32).to(x.dtype),
            "runs neither in fp64 nor in fp32: .* --oracle FILE.py:NAME",
        ),
    ],
)
def test_a_reference_that_nothing_can_be_held_against_is_named(reference: Any, said: str) -> None:
    records = kernelbench.bench(torch.relu, against=reference, args="x=8x9:bf16", **QUICK)
    assert {r.status for r in records} == {Status.failed}
    assert all(re.search(said, record.reason) for record in records), records[0].reason


def test_another_oracle_takes_the_place_of_the_reference() -> None:
    records = kernelbench.bench(
        torch.relu,
        against=lambda x: torch.relu(x).mul(1.5),
        oracle=torch.relu,
        args="x=8x9:fp32",
        **QUICK,
    )
    assert {r.provider: r.status for r in records} == {
        "lambda": Status.incorrect,
        "relu": Status.ok,
    }


def test_what_does_not_fit_is_named_before_anything_is_measured() -> None:
    def product(a: Any, b: Any) -> Any:
        return a @ b

    with pytest.raises(UsageError, match=r"refuses a \(3, 4\) bfloat16, b \(5, 6\) bfloat16"):
        kernelbench.bench(product, against=product, args="a=3x4:bf16, b=5x6:bf16", **QUICK)
    with pytest.raises(UsageError, match=r"product\(a: Any, b: Any\).*missing a required argument"):
        kernelbench.bench(product, against=product, args="a=3x4:bf16", **QUICK)
    with pytest.raises(UsageError, match="no family 'nothing'"):
        kernelbench.bench("nothing", M=3)
    with pytest.raises(UsageError, match="stand in `args`"):
        kernelbench.bench(product, against=product, args="a=3x4:bf16", M=3)
    with pytest.raises(UsageError, match="are for functions"):
        kernelbench.bench("rms_norm", M=3, N=8, grad=True)
    with pytest.raises(UsageError, match="no field 'max_second'; did you mean 'max_seconds'"):
        kernelbench.bench("rms_norm", M=3, N=8, measure={"max_second": 1})
    with pytest.raises(UsageError, match=r"grad: no tensor 'c'\. Known: a, b"):
        kernelbench.bench(product, against=product, args="a=3x4:bf16, b=4x3:bf16", grad=["c"])
    with pytest.raises(UsageError, match="returns no tensor"):
        kernelbench.bench(torch.relu, against=lambda a: None, args="a=3x4:bf16", **QUICK)


def test_targets(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "class ops:\n    fused = staticmethod(torch.relu)\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, dim): super().__init__(); self.fc = torch.nn.Linear(dim, dim)\n"
        "    def forward(self, x): return self.fc(x)\n"
        "VALUE = 3\n"
    )
    assert find(f"{file}:ops.fused").name == "ops_fused"
    assert find("torch.nn.functional:layer_norm").of_torch
    assert find("torch.ops.aten.mm").function is torch.ops.aten.mm
    assert find(f"{file}:Net(dim=4)").is_module
    for text, error, said in (
        (f"{file}:fuse", UsageError, "there is no 'fuse'. Known: Net, ops"),
        (f"{file}:VALUE", UsageError, "is a int, no function"),
        (f"{file}:Net", UsageError, r"say how it is made: '.*Net\(dim=512\)'"),
        (f"{file}:Net(nope=4)", PluginError, "unexpected keyword argument 'nope'"),
        (f"{file}:Net(x)", UsageError, "stand literals"),
        (f"{file}:ops()", UsageError, r"makes no nn.Module"),
        ("none.py:f", UsageError, "no file none.py"),
        ("no.such.module:f", UsageError, "no module 'no' is installed"),
        ("torch.ops.nothing.here", UsageError, "--import the file"),
        ("nothing", UsageError, "expected FILE.py:NAME"),
        ("none.pt2", UsageError, "no such file"),
    ):
        with pytest.raises(error, match=said):
            find(text)
    file.write_text("raise RuntimeError('boom')")
    with pytest.raises(PluginError, match="boom"):
        find(f"{file}:f")


def test_modules_get_the_same_weights_and_are_told_where_they_cannot() -> None:
    class Same(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(6, 6))
            self.register_buffer("shift", torch.randn(6))

        def forward(self, x: Any) -> Any:
            return x @ self.weight + self.shift

    class Other(Same):
        def __init__(self) -> None:
            super().__init__()
            self.more = torch.nn.Parameter(torch.randn(6))

    records = kernelbench.bench(Same(), against=Same(), args="x=5x6:fp32", grad=True, **QUICK)
    assert {r.status for r in records} == {Status.ok}
    assert {e.name for r in records if r.mode == "bwd" for e in r.errors} == {"dx", "dweight"}
    with pytest.raises(UsageError, match="lacks nothing, and has more besides"):
        kernelbench.bench(Other(), against=Same(), args="x=5x6:fp32", **QUICK)


def test_every_weight_counts_and_the_users_module_stays_as_it_is() -> None:
    """Ones and zeros, which a candidate could leave out unseen, too."""

    class Norm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.LayerNorm(16)

        def forward(self, x: Any) -> Any:
            return self.norm(x)

    class Unweighted(Norm):
        def forward(self, x: Any) -> Any:
            return torch.nn.functional.layer_norm(x, (16,))

    module = Norm().train()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    records = kernelbench.bench(Unweighted(), Norm(), against=module, args="x=4x16:bf16", **QUICK)
    found = {r.provider: r.status for r in records}
    assert found["Unweighted"] is Status.incorrect and found["Norm"] is Status.ok, records
    assert module.training and all(p.requires_grad for p in module.parameters())
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())


def test_a_candidate_without_a_backward_is_told_so() -> None:
    def no_backward(x: Any) -> Any:
        return torch.relu(x.detach())

    records = kernelbench.bench(no_backward, against=torch.relu, args="x=4x8:fp32", grad=True,
                                **QUICK)  # fmt: skip
    (record,) = (r for r in records if r.provider == "no_backward" and r.mode == "bwd")
    assert record.status is Status.failed
    assert "it has no backward, which a torch.autograd.Function would give it" in record.reason


def test_tied_weights_are_one_input() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(8, 8, bias=False)
            self.second = torch.nn.Linear(8, 8, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Any) -> Any:
            return self.second(torch.relu(self.first(x)))

    records = kernelbench.bench(Tied(), against=Tied(), args="x=4x8:bf16", grad=True, **QUICK)
    assert {r.status for r in records} == {Status.ok}, records


def test_modules_that_cannot_be_given_weights_are_refused() -> None:
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = torch.nn.Parameter(torch.randn(8))

        def forward(self, x: Any) -> Any:
            return x * self.x

    with pytest.raises(UsageError, match="both its x and another argument"):
        kernelbench.bench(Own(), against=Own(), args="x=4x8:fp32", **QUICK)
    with pytest.raises(UsageError, match="the reference, a function, has none to give it"):
        kernelbench.bench(torch.nn.Linear(8, 8), against=torch.relu, args="x=4x8:fp32", **QUICK)
    records = kernelbench.bench(torch.nn.SiLU(), against=torch.nn.functional.silu,
                                args="input=4x8:fp32", **QUICK)  # fmt: skip
    assert {r.status for r in records} == {Status.ok}


def test_outputs_of_every_kind() -> None:
    @dataclass
    class Pair:
        low: Any
        high: Any

    def parts(x: Any) -> dict[str, Any]:
        return {"low": x.clamp(max=0), "high": x.clamp(min=0)}

    def other_order(x: Any) -> dict[str, Any]:
        return {"high": x.clamp(min=0), "low": x.clamp(max=0)}

    def swapped(x: Any) -> dict[str, Any]:
        return {"low": x.clamp(min=0), "high": x.clamp(max=0)}

    def as_dataclass(x: Any) -> Pair:
        return Pair(**parts(x))

    records = kernelbench.bench(other_order, as_dataclass, swapped, against=parts,
                                args="x=4x8:fp32", **QUICK)  # fmt: skip
    found = {r.provider: r.status for r in records}
    assert found.pop("swapped") is Status.incorrect and {*found.values()} == {Status.ok}, records
    assert {e.name for r in records for e in r.errors} == {"low", "high"}

    records = kernelbench.bench(lambda x: x > 0, lambda_wrong, against=torch.signbit,
                                args="x=4x8:fp32", **QUICK)  # fmt: skip
    assert [r.status.bad for r in records if r.provider == "signbit"] == [False]
    for reference, said in (
        (lambda x: torch.fft.rfft(x), "complex numbers: return torch.view_as_real"),
        (lambda x: (x, 3.5), "returns float beside tensors"),
        (lambda x: None, "returns no tensor but NoneType"),
    ):
        with pytest.raises(UsageError, match=said):
            kernelbench.bench(torch.relu, against=reference, args="x=4x8:fp32", **QUICK)
    with pytest.raises(UsageError, match="no gradient leads"):
        kernelbench.bench(torch.sign, against=lambda x: x > 0, args="x=4:fp32", grad=True, **QUICK)


def lambda_wrong(x: Any) -> Any:
    return x > 0.5


def test_what_inputs_draw_of_torchs_generator_is_nobodys_fault() -> None:
    def make(M: int, device: Any) -> Any:
        return torch.randn(M, 8, device=device)

    records = kernelbench.bench(torch.relu, against=torch.relu, name="r", args="x", inputs=make,
                                sizes={"M": 5}, **QUICK)  # fmt: skip
    assert {r.status for r in records} == {Status.ok}, records


def test_the_generators_of_gpus_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {0: torch.ones(16), 1: torch.zeros(16)}  # of two GPUs that are in use
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(states))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda i: states[i].clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, i: states.update({i: state}))
    with seeded(1):
        states.update({0: torch.full((16,), 5.0), 1: torch.full((16,), 6.0)})
    assert [float(state[0]) for state in states.values()] == [1, 0]


def test_modules_may_draw_their_weights_of_any_generator(tmp_path: Path) -> None:
    """They are initialised alike, and nobody is to blame for it."""
    file = tmp_path / "drawn.py"
    file.write_text(
        "import random\nimport numpy as np\nimport torch\nfrom torch import nn\n\n"
        "class Scale(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        drawn = [random.random(), np.random.rand(), *torch.rand(2).tolist()]\n"
        "        self.w = nn.Parameter(torch.tensor(drawn, dtype=torch.float32))\n"
        "    def forward(self, x):\n        return x * self.w\n\n"
        "class Same(Scale): pass\n"
    )
    records = kernelbench.bench(f"{file}:Same()", against=f"{file}:Scale()", args="x=8x4:fp32")
    assert {record.status for record in records} == {Status.ok}, records
    target = find(f"{file}:Scale()")
    one, same, other = (target.module(seed).w.tolist() for seed in (1, 1, 2))
    assert one == same and not set(one) & set(other)


def test_tensors_at_hand_stand_for_their_like() -> None:
    table, index = torch.randn(10, 4), torch.tensor([[1, 2], [9, 0]])
    embedding = torch.nn.functional.embedding
    args = {"input": index, "weight": table}
    records = kernelbench.bench(embedding, against=lambda i, w: w[i], args=args, **QUICK)
    assert {r.status for r in records} == {Status.ok}
    assert records[0].read_bytes == index.numel() * 8 + 4 * 4 * 4  # not the whole table
    with pytest.raises(UsageError, match="weight is not contiguous"):
        kernelbench.bench(embedding, against=embedding, args={"input": index, "weight": table.t()})


def test_a_function_makes_what_cannot_be_said() -> None:
    def make(M: int, device: Any, seed: int) -> Any:
        x = torch.linspace(0, 1 + seed % 7, M, device=device)
        return {"x": x, "k": 3}

    records = kernelbench.bench(
        lambda x, k: x * k,
        against=lambda x, k: k * x,
        args="x, k",
        inputs=make,
        sizes={"M": [5, 8]},
        **QUICK,
    )
    assert {r.status for r in records} == {Status.ok} and {r.axes["M"] for r in records} == {5, 8}


def test_costs_are_modelled_from_the_operators() -> None:
    declared = Declaration(
        name="mm", against="torch:matmul", args="a=MxK:bf16, b=KxN:bf16", grad=("all",)
    )
    family = of_declaration(declared)
    fwd, bwd = (
        family.case.from_axes({"M": 8, "N": 4, "K": 16, "mode": mode}) for mode in ("fwd", "bwd")
    )
    cost = family.cost(fwd)
    assert (cost.flops, cost.read, cost.write) == (2 * 8 * 4 * 16, (8 * 16 + 16 * 4) * 2, 64)
    cost = family.cost(bwd)  # dy, a and b in, da and db out
    assert (cost.flops, cost.read, cost.write) == (4 * 8 * 4 * 16, 64 + 384, 384)

    def cost_of(function: Any, args: str) -> Any:
        target = of_callable(function, "f")
        functions = Functions("f", target, {}, grammar.parse(args))
        made = family_of(functions, Declaration(name="f", against="f", args=args))
        axes = {name: values[0] for name, values in functions.arguments.axes.items()}
        return made.cost(made.case.from_axes({**axes, "dtype": "fp32"}))

    table = "i=64:int64[0:1000], w=1000x32:fp32"
    cost = cost_of(torch.nn.functional.embedding, table)
    assert (cost.read, cost.write) == (64 * 8 + 64 * 32 * 4, 64 * 32 * 4)
    assert cost_of(lambda x, y: torch.empty_like(x).copy_(y), "x=8:fp32, y=8:fp32").read == 32
    put = cost_of(lambda w, i, v: w.index_copy_(0, i, v),
                  "w=1000x32:fp32, i=4:int64[0:1000], v=4x32:fp32")  # fmt: skip
    assert (put.read, put.write) == (4 * 8 + 4 * 32 * 4, 0)


def test_the_source_hash_follows_the_files_and_what_was_declared(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from helper import f\ndef fused(x): return f(x)\n")
    (tmp_path / "helper.py").write_text("def f(x): return x.relu()\n")

    def of(args: str = "x=8:bf16") -> str:
        text = f"{file}:fused"
        declared = Declaration(name="f", against="torch:relu", candidates={"f": text}, args=args)
        return source_hash(of_declaration(declared))

    first = of()
    assert of() == first != of("x=9:bf16")
    (tmp_path / "helper.py").write_text("def f(x): return x.clamp(min=0)\n")
    from kernelbench.source import _imported

    _imported.cache_clear()
    assert of() != first


def test_a_declaration_is_the_same_after_its_way_through_json() -> None:
    declared = Declaration(
        name="f",
        against="a/my.py:ref",
        candidates={"f": "a/my.py:f", "t": "torch:relu", "p": "a/m.pt2"},
        args="x=3:bf16",
        grad=("x",),
        compile=("default",),
        max_error={"f": 0.1},
    )
    assert Declaration.from_json(declared.as_json()) == declared
    moved = declared.from_folder(Path("a"))
    assert moved.against == "my.py:ref" and moved.candidates["p"] == "m.pt2"
    assert moved.moved(Path("a")) == declared
    for bad, said in (
        ({"compile": ("fast",)}, "no mode 'fast'"),
        ({"max_error": {"g": 0.1}}, "no candidate 'g'"),
        ({"args": ""}, "nothing to call it with"),
    ):
        facts: dict[str, Any] = {"name": "f", "against": "x:y", "args": "x=3:bf16"}
        with pytest.raises(UsageError, match=said):
            Declaration(**{**facts, **bad})
    with pytest.raises(UsageError, match="not understood"):
        Declaration.from_json("{}")


def test_whole_numbers_have_no_floor_where_the_baseline_is_exact() -> None:
    """One in 4096 would hide in what a bf16 value may err by."""
    args = "x=4x4096:bf16"

    def index(x: Any) -> Any:
        return torch.arange(4096, device=x.device).expand(4, -1) * (x == x)

    def off(x: Any) -> Any:
        found = index(x).clone()
        found[0, -1] += 1
        return found

    records = kernelbench.bench(off, against=index, args=args, **QUICK)
    assert {r.provider: r.status for r in records} == {"index": "ok", "off": "incorrect"}


def test_records_print_as_tables_and_as_html(tmp_path: Path) -> None:
    records = kernelbench.bench(torch.relu, against=torch.relu, name="r", args="x=8x9:bf16",
                                out=tmp_path, **QUICK)  # fmt: skip
    assert "2 records: 2 ok" in str(records) and "x8x9-bf16-fwd" in str(records)
    html = records._repr_html_()
    assert "<table>" in html and "x8x9-bf16-fwd" in html and html.count("<tr>") >= 3
    assert records.folder is not None and (records.folder / "results.csv").is_file()
    assert kernelbench.bench("rms_norm", M=2, N=8, dtype="fp16", device="cpu").folder is None


def test_the_file_of_ten_is_parsed_by_every_python() -> None:
    ast.parse(OTHERS.read_text(encoding="utf-8"))
