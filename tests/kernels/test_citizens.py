"""The claims of citizens.py, which docs/pytorch.md shows: each is right, or refused in words."""

from functools import partial

import pytest
import torch
from citizens import CLAIMS, FUNCTIONS, YES
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint


def close(found, right, tolerance=1e-4):
    assert len(found) == len(right)
    for one, other in zip(found, right, strict=True):
        error = (one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-9)
        assert one.shape == other.shape and error <= tolerance, error


def same(found, right):
    assert len(found) == len(right) and all(map(torch.equal, found, right))


def loss(results):
    return sum(y.pow(3).sum() for y in results)


def leaves(function, tensors):
    given = [tensor.detach().clone() for tensor in tensors]
    return [t.requires_grad_(i < function.asked) for i, t in enumerate(given)]


def gradients(function, call, tensors, **options):
    given = leaves(function, tensors)
    return torch.autograd.grad(loss(call(*given)), given[: function.asked], **options)


def longer(function, tensors):
    """The same with three samples."""
    return [torch.cat([t, t[:1]]) if t.shape[0] == 2 else t for t in tensors]


def compiles(function, tensors, dynamic):
    torch._dynamo.reset()
    graph = torch.compile(function.call, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for given in (tensors, longer(function, tensors)):
        with torch.no_grad():
            same(graph(*given), function.call(*given))
        if function.graded:
            same(gradients(function, graph, given), gradients(function, function.call, given))


def exports(function, tensors):
    class Module(torch.nn.Module):
        def forward(self, *given):
            return function.call(*given)

    program = torch.export.export(Module(), tuple(tensors))
    assert any("kernelbench" in str(node.target) for node in program.graph.nodes)
    same(program.module()(*tensors), function.call(*tensors))


def has_a_shape(function, tensors):
    right = function.call(*tensors)
    with FakeTensorMode() as mode:
        fake = function.call(*map(mode.from_tensor, tensors))
    meta = function.call(*(tensor.to("meta") for tensor in tensors))
    for found in (fake, meta):
        for one, other in zip(found, right, strict=True):
            assert one.shape == other.shape and one.stride() == other.stride()
            assert one.dtype is other.dtype


def is_checked(function, tensors):
    given = leaves(function, tensors) if function.graded else tensors
    torch.library.opcheck(function.operator, (*given, *function.rest))


def of_func(call, tensors, count):
    numbers = tuple(range(count))
    return torch.func.grad(lambda *given: loss(call(*given)), numbers)(*tensors)


def func_grad(function, tensors):
    found = of_func(function.call, tensors, function.asked)
    close(found, of_func(function.right, tensors, function.asked))


def maps(function, tensors):
    stacked = [torch.stack([tensor, tensor]) for tensor in tensors]
    right = [torch.stack([y, y]) for y in function.call(*tensors)]
    same(torch.func.vmap(function.call)(*stacked), right)


def pushes(function, tensors):
    held = tensors[function.graded :]
    tangents = tuple(torch.randn_like(t) for t in tensors[: function.asked])
    primals = tuple(tensors[: len(tangents)])
    held = tensors[len(tangents) :]
    _, found = torch.func.jvp(lambda *given: function.call(*given, *held), primals, tangents)
    _, right = torch.func.jvp(lambda *given: function.right(*given, *held), primals, tangents)
    close(found, right)
    for number, tangent in enumerate(tangents):
        one = [torch.zeros_like(t) for t in tangents]
        one[number] = tangent
        _, right = torch.func.jvp(lambda *given: function.right(*given, *held), primals, tuple(one))
        with forward_ad.dual_level():
            dual = list(tensors)
            dual[number] = forward_ad.make_dual(tensors[number], tangent)
            results = [forward_ad.unpack_dual(y) for y in function.call(*dual)]
            found = [
                torch.zeros_like(y.primal) if y.tangent is None else y.tangent for y in results
            ]
        close(found, right)


def second(call, tensors, number, upstream):
    """Of the gradient of one tensor. upstream: what comes down to the kernel's gradient requires
    grad itself, or is constant, as of a sum."""
    given = [tensor.detach().clone() for tensor in tensors]
    given[number].requires_grad_()
    results = call(*given)
    total = loss(results) if upstream else sum(y.sum() for y in results)
    (gradient,) = torch.autograd.grad(total, given[number], create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), given[number])


def differentiates_twice(function, tensors):
    for number in range(function.asked):
        for upstream in (True, False):
            try:
                right = second(function.right, tensors, number, upstream)
            except RuntimeError:  # what is linear has a constant gradient
                with pytest.raises(RuntimeError, match=r"not require grad|no gradients"):
                    second(function.call, tensors, number, upstream)
            else:
                close(second(function.call, tensors, number, upstream), right)


def func_twice(function, tensors):
    first, *others = tensors

    def once(call):
        return lambda x: torch.func.grad(lambda x: loss(call(x, *others)))(x).square().sum()

    def pushed(call):
        return torch.func.jvp(once(call), (first,), (torch.ones_like(first),))

    def pulled(call):
        return [torch.func.grad(once(call))(first)]

    for outer in (pulled, pushed):
        close(outer(function.call), outer(function.right))


def transposed(tensor):
    """The same values, the last two axes laid out the other way round."""
    if tensor.dim() < 2:
        return torch.stack([tensor, tensor], -1)[..., 0]
    return tensor.mT.contiguous().mT


def hooks(function, tensors):
    def call(*given):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, transposed):
            return function.call(*given)

    close(gradients(function, call, tensors), gradients(function, function.right, tensors))


def checkpoints(function, tensors):
    right = gradients(function, function.call, tensors)
    for reentrant in (True, False):
        given = leaves(function, tensors)
        loss(checkpoint(function.call, *given, use_reentrant=reentrant)).backward()
        same([t.grad for t in given[: function.graded]], right)


def some_alone(function, tensors):
    for number in range(function.asked):
        found, right = (of_one(call, tensors, number) for call in (function.call, function.right))
        close([found], [right])


def of_one(call, tensors, number):
    given = [tensor.detach().clone() for tensor in tensors]
    given[number].requires_grad_()
    return torch.autograd.grad(loss(call(*given)), given[number])[0]


def negates(function, tensors):
    for number, tensor in enumerate(tensors):
        if number < function.asked and tensor.dim() > 1:  # a time is positive
            given = list(tensors)
            given[number] = torch._neg_view(tensor)
            right = list(tensors)
            right[number] = -tensor
            same(function.call(*given), function.call(*right))
    if function.graded:
        call = lambda *given: function.call(torch._neg_view(given[0]), *given[1:])  # noqa: E731
        right = lambda *given: function.right(-given[0], *given[1:])  # noqa: E731
        close(gradients(function, call, tensors), gradients(function, right, tensors))


def lies_otherwise(function, tensors):
    given = [tensor[:1].expand_as(tensor) if tensor.dim() > 2 else tensor for tensor in tensors]
    close(function.call(*given), function.right(*given), function.close)
    given = [transposed(t) if t.dim() == 3 else t for t in tensors]
    close(function.call(*given), function.right(*given), function.close)


def autocasts(function, tensors):
    with torch.autocast(tensors[0].device.type, torch.bfloat16):
        found = function.call(*tensors)
    same(found, function.call(*tensors))


def repeats(function, tensors):
    torch.use_deterministic_algorithms(True)
    try:
        same(function.call(*tensors), function.call(*tensors))
        if function.graded:
            one, other = (gradients(function, function.call, tensors) for _ in range(2))
            same(one, other)
    finally:
        torch.use_deterministic_algorithms(False)


def captures(function, tensors):
    if not tensors[0].is_cuda:
        pytest.skip("CUDA graphs need a GPU")
    right = function.call(*tensors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = function.call(*tensors)
    graph.replay()
    same(found, right)


def in_a_batch(function, tensors):
    def pulled(call):
        given = leaves(function, tensors)
        y = call(*given)[0]
        upstream = torch.stack([torch.ones_like(y), torch.full_like(y, 2.0)])
        return torch.autograd.grad(y, given[:1], upstream, is_grads_batched=True)

    close(pulled(function.call), pulled(function.right))


def strided_nested(function, tensors):
    function.call(torch.nested.nested_tensor([*tensors[0]]), *tensors[1:])


def is_nested(function, tensors):
    nested = torch.nested.nested_tensor([*tensors[0]], layout=torch.jagged)
    function.call(nested, *tensors[1:])


def without_memory(function, tensors):
    nothing = torch._efficientzerotensor(
        tensors[0].shape, dtype=tensors[0].dtype, device=tensors[0].device
    )
    function.call(nothing, *tensors[1:])


def sparse(function, tensors):
    function.call(tensors[0].to_sparse(), *tensors[1:])


PROBES = dict(
    zip(
        CLAIMS,
        (
            partial(compiles, dynamic=False),
            partial(compiles, dynamic=True),
            exports,
            has_a_shape,
            is_checked,
            func_grad,
            maps,
            pushes,
            differentiates_twice,
            func_twice,
            hooks,
            checkpoints,
            some_alone,
            negates,
            lies_otherwise,
            autocasts,
            repeats,
            captures,
            in_a_batch,
            is_nested,
            without_memory,
            strided_nested,
            sparse,
        ),
        strict=True,
    )
)


LONG = [*CLAIMS][:2] + [*CLAIMS][4:5]  # what compiles, and opcheck
# These take half a minute and more; three other functions on attention's core stay among the fast.
LONGEST = ("attention, packed", "dilated_attention")


@pytest.mark.parametrize(
    ("feature", "name"),
    [
        pytest.param(
            *(feature, name),
            marks=[pytest.mark.slow] if feature in LONG and name in LONGEST else [],
        )
        for feature in CLAIMS
        for name in FUNCTIONS
    ],
)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_each_claim_holds(feature, name, device):
    torch.manual_seed(0)
    function, claim = FUNCTIONS[name], CLAIMS[feature][name]
    probe = partial(PROBES[feature], function, function.draw(device))
    if claim == YES:
        probe()
    else:
        with pytest.raises(claim.error, match=claim.words):
            probe()


def test_a_gradient_keeps_the_tangent_that_comes_down_or_says_that_it_cannot(device):
    for name, function in FUNCTIONS.items():
        if not function.graded:
            continue
        given = leaves(function, function.draw(device))
        y = function.call(*given)[0]
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y))
            if name == "apply_rotary":
                (found,) = torch.autograd.grad(y, given[0], dual)
                assert forward_ad.unpack_dual(found).tangent is not None
            else:
                with pytest.raises(NotImplementedError, match="no tangents"):
                    torch.autograd.grad(y, given[0], dual)


def test_a_negative_upstream_gradient(device):
    for function in FUNCTIONS.values():
        if function.graded:
            tensors = function.draw(device)
            results = []
            for call in (function.call, function.right):
                given = leaves(function, tensors)
                y = call(*given)[0]
                upstream = torch._neg_view(torch.ones_like(y))
                results.append(torch.autograd.grad(y, given[0], upstream))
            close(*results)


def test_a_first_derivative_of_a_checkpoint_that_may_be_differentiated_again(device):
    for function in FUNCTIONS.values():
        if function.graded:
            tensors = function.draw(device)
            call = partial(checkpoint, function.call, use_reentrant=False)
            found = gradients(function, call, tensors, create_graph=True)
            close(found, gradients(function, function.right, tensors))


def test_it_is_right_at_all(device):
    for function in FUNCTIONS.values():
        tensors = function.draw(device)
        close(function.call(*tensors), function.right(*tensors), function.close)


def test_a_gradient_that_is_only_kept_may_have_a_graph(device):
    for function in FUNCTIONS.values():
        if function.graded:
            tensors = function.draw(device)
            plain = gradients(function, function.call, tensors)
            same(gradients(function, function.call, tensors, create_graph=True), plain)


def test_forward_mode_without_a_tangent_is_a_plain_call(device):
    for function in FUNCTIONS.values():
        tensors = function.draw(device)
        with forward_ad.dual_level():
            same(function.call(*tensors), function.call(*tensors))
