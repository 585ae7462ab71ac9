"""Layers against torch and the reference; layouts, parameters and repr."""

import numpy as np
import pytest
from support.cells import TORCH_CLASSES, VARIANTS
from support.compare import assert_close, assert_same_bits, members, named
from support.layers import STACKS, H, I, N, T, make, problem, reference_parameters, results
from support.problems import TOLERANCE

import rnnfast
from rnnfast import reference

# --- against other implementations


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("layout", ["time first", "batch first", "unbatched"])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("variant", [name for name, (cell, _) in VARIANTS.items() if cell in TORCH_CLASSES])
def test_torch(torch, variant, stack, layout, dtype, rng):
    torch.set_num_threads(1)  # its own team costs more than these sizes take
    options = {**STACKS[stack], "batch_first": layout == "batch first"}
    layer = make(variant, dtype=dtype, **options)
    own = {"nonlinearity": variant[4:]} if variant.startswith("rnn") else {"proj_size": layer.proj_size}
    if variant == "gru":
        own = {}
    other = getattr(torch.nn, type(layer).__name__)(
        I, layer.hidden_size, **own, dtype=getattr(torch, np.dtype(dtype).name), **options
    )
    assert list(layer.parameters) == list(other.state_dict())
    layer.load_state_dict(other.state_dict())

    x, state, dy, dstate = problem(layer, rng, {"time first": (T, N, I), "batch first": (N, T, I)}.get(layout, (T, I)))
    leaves = [torch.tensor(array, requires_grad=True) for array in (x, *members(state))]
    y, end = other(leaves[0], tuple(leaves[1:]) if isinstance(state, tuple) else leaves[1])
    ends = [torch.tensor(array) for array in (dy, *members(dstate))]
    torch.autograd.backward([y, *members(end)], ends)
    dx, *dinitial = (leaf.grad.numpy() for leaf in leaves)
    expected = named(
        y.detach().numpy(),
        tuple(member.detach().numpy() for member in members(end)),
        dx,
        tuple(dinitial),
        {name: parameter.grad.numpy() for name, parameter in other.named_parameters()},
    )
    assert_close(results(layer, x, state, dy, dstate), expected, TOLERANCE[np.dtype(dtype)])


@pytest.mark.parametrize("reverse", [False, True])
def test_reference(variant, reverse, dtype, rng):
    layer = make(variant, num_layers=2, reverse=reverse, dtype=dtype)
    cell = variant.removesuffix("_projected")
    x, state, dy, dstate = problem(layer, rng)
    y, end, tape = reference.forward(cell, reference_parameters(layer), x, state, num_layers=2, reverse=reverse)
    expected = named(y, end, *reference.backward(tape, dy, dstate))
    assert_close(results(layer, x, state, dy, dstate), expected, TOLERANCE[np.dtype(dtype)])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 4, 3, 5), (2, 0, 5)])
def test_linear_torch(torch, bias, shape, dtype, rng):
    layer = rnnfast.Linear(5, 7, bias, dtype=dtype)
    other = torch.nn.Linear(5, 7, bias, dtype=getattr(torch, np.dtype(dtype).name))
    layer.load_state_dict(other.state_dict())
    x = rng.standard_normal(shape).astype(dtype)
    leaf = torch.tensor(x, requires_grad=True)
    expected = other(leaf)
    dy = rng.standard_normal(expected.shape).astype(dtype)
    expected.backward(torch.tensor(dy))

    y, tape = layer.forward(x)
    grads = layer.backward(tape, dy)
    np.testing.assert_array_equal(layer(x), y)
    assert grads.state is None
    got = {"y": y, "dx": grads.x, **grads.parameters}
    wanted = {name: parameter.grad.numpy() for name, parameter in other.named_parameters()}
    assert_close(got, {"y": expected.detach().numpy(), "dx": leaf.grad.numpy(), **wanted}, TOLERANCE[np.dtype(dtype)])


@pytest.mark.parametrize("shape", [(), (9,), (4, 5), (0, 3)])
def test_embedding_torch(torch, shape, dtype, rng):
    layer = rnnfast.Embedding(6, 3, dtype=dtype)
    other = torch.nn.Embedding(6, 3, dtype=getattr(torch, np.dtype(dtype).name))
    layer.load_state_dict(other.state_dict())
    ids = rng.integers(0, 6, shape)
    expected = other(torch.tensor(ids))
    dy = rng.standard_normal(expected.shape).astype(dtype)
    expected.backward(torch.tensor(dy))

    y, tape = layer.forward(ids)
    grads = layer.backward(tape, dy)
    np.testing.assert_array_equal(y, expected.detach().numpy())
    np.testing.assert_array_equal(layer(ids.astype(np.uint8)), y)
    np.testing.assert_allclose(
        grads.parameters["weight"], other.weight.grad.numpy(), rtol=0, atol=TOLERANCE[np.dtype(dtype)]
    )
    assert grads.x is None
    assert grads.state is None


def test_embedding_gradient_of_many():
    layer = rnnfast.Embedding(3, 1)
    y, tape = layer.forward(np.ones(10**6, int))
    gradient = layer.backward(tape, np.full_like(y, 0.1)).parameters["weight"]
    np.testing.assert_allclose(gradient[:, 0], [0, 1e5, 0], rtol=1e-7)


# --- layouts


@pytest.mark.parametrize("stack", STACKS)
def test_layouts_agree(variant, stack, rng):
    layer, first = make(variant, **STACKS[stack]), make(variant, batch_first=True, **STACKS[stack])
    arguments = problem(layer, rng)
    expected = results(layer, *arguments)
    x, state, dy, dstate = arguments
    got = results(first, x.swapaxes(0, 1), state, dy.swapaxes(0, 1), dstate)
    assert got["y"].shape == (N, T, expected["y"].shape[2])
    for name in ("y", "dx"):
        got[name] = got[name].swapaxes(0, 1)
    assert_same_bits(got, expected)

    def row(state):
        values = tuple(member[:, 1] for member in members(state))
        return values if isinstance(state, tuple) else values[0]

    for one in (layer, first):
        alone = results(one, x[:, 1], row(state), dy[:, 1], row(dstate))
        assert alone["y"].shape == (T, expected["y"].shape[2])
        for name, value in expected.items():
            if name.removeprefix("d") not in layer.parameters:
                np.testing.assert_array_equal(alone[name], value[:, 1], err_msg=name)


def test_shapes():
    layer = rnnfast.LSTM(I, H, num_layers=2, proj_size=5, bidirectional=True)
    y, (h, c) = layer(np.zeros((T, N, I)))
    assert (y.shape, h.shape, c.shape) == ((T, N, 10), (4, N, 5), (4, N, H))
    y, (h, c) = layer(np.zeros((T, I)))
    assert (y.shape, h.shape, c.shape) == ((T, 10), (4, 5), (4, H))


@pytest.mark.parametrize("shape", [(T, 0, I), (0, T, I)])
def test_no_rows(variant, shape):
    layer = make(variant, num_layers=2, dropout=0.5, batch_first=shape[0] == 0)
    y, state = layer(np.zeros(shape))
    assert y.shape == (*shape[:2], H)
    assert all(member.shape[:2] == (2, 0) for member in members(state))
    got = results(layer, np.zeros(shape), state, y, state)
    assert got["dx"].shape == shape
    assert not any(array.any() for name, array in got.items() if name.startswith(("dweight", "dbias")))


def test_one_step_is_the_chain(variant, rng):
    layer = make(variant, num_layers=2)
    x, state, *_ = problem(layer, rng)
    y, end = layer(x, state)
    for t in range(T):
        y_t, state = layer(x[t : t + 1], state)
        np.testing.assert_array_equal(y_t[0], y[t])
    for got, expected in zip(members(state), members(end), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_many_shapes_in_turn(rng):
    layer = make("lstm")
    x = rng.standard_normal((200, 2, I)).astype(np.float32)
    y, _ = layer(x)
    for length in [*range(1, 101), 1]:
        np.testing.assert_array_equal(layer(x[:length])[0], y[:length])


# --- ownership


def test_parameters_are_seen_by_the_next_call(variant, rng):
    layer, other = make(variant), make(variant, rng=3)
    x, *_ = problem(layer, rng)
    for name, array in layer.parameters.items():
        array[...] = other.parameters[name]
    np.testing.assert_array_equal(layer(x)[0], other(x)[0])
    np.testing.assert_array_equal(layer.forward(x)[0], other(x)[0])
    with pytest.raises(TypeError):
        layer.parameters["weight_ih_l0"] = np.zeros((1, 1))


def test_parameters_can_be_exchanged():
    layer = make("gru")
    before = layer.state_dict()
    one, other = layer.parameters["bias_ih_l0"], layer.parameters["bias_hh_l0"]
    layer.load_state_dict({"bias_ih_l0": other, "bias_hh_l0": one}, strict=False)
    np.testing.assert_array_equal(one, before["bias_hh_l0"])
    np.testing.assert_array_equal(other, before["bias_ih_l0"])


# --- repr


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (rnnfast.RNN(4, 6), "RNN(4, 6)  # 72 parameters"),
        (
            rnnfast.RNN(4, 6, nonlinearity="relu", bias=False),
            "RNN(4, 6, nonlinearity='relu', bias=False)  # 60 parameters",
        ),
        (
            rnnfast.LSTM(4, 6, 2, proj_size=3, dtype="f8"),
            "LSTM(4, 6, num_layers=2, proj_size=3, dtype='float64')  # 444 parameters",
        ),
        (
            rnnfast.GRU(4, 6, reset_after=False, reverse=True),
            "GRU(4, 6, reset_after=False, reverse=True)  # 216 parameters",
        ),
        (rnnfast.Linear(4, 6, bias=False), "Linear(4, 6, bias=False)  # 24 parameters"),
        (rnnfast.Embedding(4, 6), "Embedding(4, 6)  # 24 parameters"),
        (
            rnnfast.Bidirectional(rnnfast.RNN(4, 6), merge=None),
            "Bidirectional(RNN(4, 6), backward_layer=RNN(4, 6, reverse=True), merge=None)  # 144 parameters",
        ),
    ],
)
def test_repr(layer, text):
    assert repr(layer) == text
    assert repr(eval(text, vars(rnnfast).copy())) == text


def test_gru_whose_update_gate_weights_the_candidate(rng):
    """With the rows of z negated, as docs/layers.md says."""
    shapes = {"weight_ih_l0": (3 * H, I), "weight_hh_l0": (3 * H, H), "bias_ih_l0": (3 * H,), "bias_hh_l0": (3 * H,)}
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    x, h, expected = rng.standard_normal((5, 1, I)), np.zeros((1, H)), []
    for x_t in x:
        a = x_t @ arrays["weight_ih_l0"].T + arrays["bias_ih_l0"]
        b = h @ arrays["weight_hh_l0"].T + arrays["bias_hh_l0"]
        r, z = (1 / (1 + np.exp(-a[:, part] - b[:, part])) for part in (slice(H), slice(H, 2 * H)))
        h = (1 - z) * h + z * np.tanh(a[:, 2 * H :] + r * b[:, 2 * H :])
        expected.append(h)
    for array in arrays.values():
        array[H : 2 * H] *= -1
    layer = rnnfast.GRU(I, H, dtype=np.float64)
    layer.load_state_dict(arrays)
    np.testing.assert_allclose(layer(x)[0], expected, rtol=1e-12, atol=1e-14)
