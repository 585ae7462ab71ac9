"""The cells of rnnfast.backends.torch against those of torch.nn."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: its back end is not tested")
fast = pytest.importorskip("rnnfast.backends.torch")

from support.torch_layers import assert_close, operators  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")  # torch's own calls

CASES = [("RNNCell", {}), ("RNNCell", {"nonlinearity": "relu"}), ("LSTMCell", {}), ("GRUCell", {})]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-11}


def pair(kind, dtype=torch.float32, **options):
    """torch's cell and ours with the same parameters."""
    torch.manual_seed(0)
    theirs, ours = (getattr(module, kind)(4, 8, dtype=dtype, **options) for module in (torch.nn, fast))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def members(state):
    return list(state) if isinstance(state, tuple) else [state]


def given(kind, states):
    return tuple(states) if kind == "LSTMCell" else states[0]


@pytest.mark.parametrize("start", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize("batch", [(), (1,), (3,)], ids=["unbatched", "one", "three"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_results_and_gradients_are_torchs(kind, options, dtype, bias, batch, start):
    xs = torch.randn(4, *batch, 4, dtype=dtype)
    states = [torch.randn(*batch, 8, dtype=dtype) for _ in range(1 + (kind == "LSTMCell"))]
    results = []
    for cell in pair(kind, dtype, bias=bias, **options):
        inputs = xs.clone().requires_grad_()
        starts = [one.clone().requires_grad_() for one in states]
        state = given(kind, starts) if start else None
        found = []
        for x in inputs:
            state = cell(x, state)
            found += members(state)
        with torch.no_grad():
            found += members(cell(xs[0], given(kind, states)))
        sum((one.sin() * torch.arange(1, 9)).sum() for one in found).backward()
        gradients = [one.grad for one in starts] if start else []
        results.append([*found, inputs.grad, *gradients, *(one.grad for one in cell.parameters())])
    assert_close(results[1], results[0], TOLERANCE[dtype])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_as_a_module(kind, options):
    theirs, ours = pair(kind, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    x = torch.randn(3, 4)
    for one in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(one) is type(ours)
        assert all(map(torch.equal, members(one(x)), members(ours(x))))
    assert operators(lambda: ours(x)) == ["forward"]
    with torch.no_grad():
        assert operators(lambda: ours(x)) == ["infer"]
        traced = torch.jit.trace(ours, (x,))
        x = torch.randn(2, 4)
        assert all(map(torch.equal, members(traced(x)), members(ours(x))))


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_first_and_second_derivatives(kind, options):
    _, ours = pair(kind, torch.float64, **options)
    names = [name for name, _ in ours.named_parameters()]
    states = [torch.randn(2, 8, dtype=torch.float64) for _ in range(1 + (kind == "LSTMCell"))]

    def run(x, *rest):
        values = dict(zip(names, rest[len(states) :], strict=True))
        return torch.func.functional_call(ours, values, (x, given(kind, rest[: len(states)])))

    x = torch.randn(2, 4, dtype=torch.float64)
    inputs = [one.requires_grad_() for one in (x, *states, *ours.parameters())]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_the_result_may_be_changed_in_place():
    results = []
    for cell in pair("LSTMCell"):
        h, c = cell(torch.ones(3, 4))
        (h.mul_(2).sum() + c.add_(1).sum()).backward()
        results.append([one.grad for one in cell.parameters()])
    assert_close(results[1], results[0], 1e-5)


@pytest.mark.parametrize(("kind", "options"), CASES)
@pytest.mark.parametrize(
    ("shape", "state"), [((3, 5), None), ((2, 3, 4), None), ((3, 4), (2, 8)), ((3, 4), (8,)), ((4,), (9,))]
)
def test_wrong_shapes_are_torchs_errors(kind, options, shape, state):
    errors = []
    for cell in pair(kind, **options):
        states = None if state is None else given(kind, [torch.zeros(state)] * 2)
        with pytest.raises((RuntimeError, ValueError)) as raised:
            cell(torch.zeros(shape), states)
        errors.append((raised.type, str(raised.value)))
    assert errors[0] == errors[1]


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_an_empty_batch_and_transforms_are_torchs():
    theirs, ours = pair("GRUCell")
    assert ours(torch.zeros(0, 4)).shape == (0, 8)
    x = torch.randn(3, 4)
    results = [torch.func.jvp(cell, (x,), (x,)) for cell in (theirs, ours)]
    assert all(map(torch.equal, *results))
    assert torch.equal(torch.func.vmap(ours)(x), torch.func.vmap(theirs)(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled():
    import torch._dynamo

    torch._dynamo.reset()
    cell = fast.LSTMCell(4, 8)

    def run(xs):
        state = None
        for x in xs:
            state = cell(x, state)
        return state[0] + state[1]

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    xs, results = torch.randn(3, 2, 4), []
    for call in (run, compiled):
        cell.zero_grad()
        x = xs.clone().requires_grad_()
        y = call(x)
        y.sin().sum().backward()
        results.append([y, x.grad, *(one.grad for one in cell.parameters())])
    assert_close(results[1], results[0], 1e-6)
