"""thinc on rnnfast: outputs, gradients, and conversion of weights in both directions."""

import importlib.util
import os
import re
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("thinc", reason="thinc is not installed: pip install thinc, on a Python that has its wheel")

from thinc.api import LSTM, Adam, NumpyOps, Relu, get_ops, use_ops, with_padded

import rnnfast
from rnnfast.backends import thinc as backend

CASES = [
    pytest.param(depth, dirs, sizes, id=f"{depth} {dirs} {len(sizes)}")
    for depth, dirs in [(1, 1), (1, 2), (2, 1), (3, 2)]
    for sizes in ([4, 4, 3, 1, 1], [3, 3, 3], [1])
]
I, O = 3, 5


def arguments_of(depth, dirs, sizes, dtype=np.float32):
    """params, H0, C0, X, size_at_t and dY."""
    rng = np.random.default_rng(depth + 10 * dirs + len(sizes))
    size = LSTM(O * dirs, I, depth=depth, bi=dirs == 2).initialize().get_param("LSTM").size
    draws = [rng.uniform(-1, 1, size), *rng.normal(size=(2, depth, dirs, O)), rng.normal(size=(sum(sizes), I))]
    dY = rng.normal(size=(sum(sizes), O * dirs)).astype(dtype)
    return [*(draw.astype(dtype) for draw in draws), np.array(sizes, np.int32)], dY


def model_of(ops, lengths, depth=1, bi=False, **options):
    """A model with weights other than the initial ones, and sequences for it."""
    rng = np.random.default_rng(0)
    Xs = [rng.normal(size=(length, I)).astype(np.float32) for length in lengths]
    with use_ops(ops):
        model = with_padded(LSTM(O * (1 + bi), I, depth=depth, bi=bi, **options)).initialize(X=Xs)
    node = model.layers[0]
    node.set_param("LSTM", rng.uniform(-1, 1, node.get_param("LSTM").shape).astype(np.float32))
    return model, node, Xs


def differences(loss, array, step):
    """The gradient of a loss by central differences."""
    gradient = np.empty(array.shape, np.float64)
    for place in np.ndindex(array.shape):
        before = array[place]
        losses = []
        for sign in (1, -1):
            array[place] = before + sign * step
            losses.append(loss())
        array[place] = before
        gradient[place] = (losses[0] - losses[1]) / (2 * step)
    return gradient


def test_registration():
    ops = get_ops("rnnfast")
    assert isinstance(ops, backend.RnnfastOps)
    with use_ops("rnnfast"):
        model = with_padded(LSTM(2, 2))
        assert all(isinstance(node.ops, backend.RnnfastOps) for node in model.walk())
    assert ops.relu(np.array([[-1, 1]], np.float32)).tolist() == [[0, 1]]


@pytest.mark.parametrize(("depth", "dirs", "sizes"), CASES)
def test_outputs_are_thincs(depth, dirs, sizes):
    given, _ = arguments_of(depth, dirs, sizes)
    ops = get_ops("rnnfast")
    expected = NumpyOps().lstm_forward_inference(*given)
    y = ops.lstm_forward_inference(*given)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected, atol=1e-6)
    trained, _ = ops.lstm_forward_training(*given)
    assert (trained == y).all()


@pytest.mark.parametrize(("depth", "dirs", "sizes"), CASES)
def test_gradients_of_the_operations(depth, dirs, sizes):
    given, dY = arguments_of(depth, dirs, sizes, np.float64)
    params, _, _, X, size_at_t = given
    copies = [array.copy() for array in (*given, dY)]
    ops = get_ops("rnnfast")
    Y, kept = ops.lstm_forward_training(*given)
    dX, dparams = ops.backprop_lstm(dY, size_at_t, params, kept)
    assert all((array == copy).all() for array, copy in zip((*given, dY), copies, strict=True))
    again = ops.backprop_lstm(dY, size_at_t, params, kept)
    assert (again[0] == dX).all()
    assert (again[1] == dparams).all()

    def loss():
        return np.sum(ops.lstm_forward_inference(*given) * dY)

    assert loss() == np.sum(Y * dY)
    np.testing.assert_allclose(dX, differences(loss, X, 1e-6), atol=1e-7)
    np.testing.assert_allclose(dparams, differences(loss, params, 1e-6), atol=1e-7)


@pytest.mark.parametrize(("depth", "dirs", "sizes"), CASES)
def test_state_is_thincs(depth, dirs, sizes):
    """The private state of the forward pass, which tests of thinc read."""
    given, _ = arguments_of(depth, dirs, sizes)
    _, expected = NumpyOps().lstm_forward_training(*given)
    Y, state = get_ops("rnnfast").lstm_forward_training(*given)
    assert len(state) == len(expected) == 4
    for found, wanted in zip(state, expected, strict=True):
        assert found.shape == wanted.shape
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert (state[0][-1].swapaxes(0, 1).reshape(Y.shape) == Y).all()


@pytest.mark.parametrize(("depth", "bi"), [(1, False), (1, True), (2, True)])
def test_gradients_of_the_layer(depth, bi):
    """thinc has no such check, and its own gradients fail it."""
    model, node, Xs = model_of("rnnfast", [2, 4, 1], depth, bi)
    weights = [np.random.default_rng(i).normal(size=(len(X), O * (1 + bi))) for i, X in enumerate(Xs)]
    _, backprop = model.begin_update(Xs)
    dXs = backprop([weight.astype(np.float32) for weight in weights])

    def loss():
        return sum(np.sum(y * weight) for y, weight in zip(model.predict(Xs), weights, strict=True))

    for X, dX in zip(Xs, dXs, strict=True):
        np.testing.assert_allclose(dX, differences(loss, X, 1e-2), atol=2e-3)
    params = node.get_param("LSTM")
    np.testing.assert_allclose(node.get_grad("LSTM"), differences(loss, params, 1e-2), atol=2e-3)


def test_memory_is_used_again():
    # Large enough for it; gradients are summed up, so what a call left behind would show in the next one.
    rng = np.random.default_rng(0)
    with use_ops("rnnfast"):
        model = with_padded(LSTM(64, 16)).initialize()
    x = [rng.normal(size=(150, 16)).astype("f") for _ in range(20)]
    results = []
    for _ in range(3):
        y, backward = model.begin_update(x)
        results.append((np.concatenate(y), np.concatenate(backward([np.ones_like(one) for one in y]))))
        del y, backward
    for y, dx in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_array_equal(dx, results[0][1])
    assert len(backend._memory) > 0


def test_dropout_of_weights():
    model, node, Xs = model_of("rnnfast", [3, 2], dropout=0.5)
    ys, backprop = model.begin_update(Xs)
    assert not np.allclose(ys[0], model.predict(Xs)[0])
    backprop(ys)
    dropped = node.get_grad("LSTM") == 0
    assert 0.3 < dropped.mean() < 0.7


def test_training():
    model, _, Xs = model_of("rnnfast", [7, 4, 5], 2, True)
    targets = [np.tanh(np.cumsum(X, axis=0) @ np.ones((I, 2 * O), np.float32)) / 2 for X in Xs]
    optimizer, losses = Adam(0.02), []
    for _ in range(60):
        ys, backprop = model.begin_update(Xs)
        errors = [y - target for y, target in zip(ys, targets, strict=True)]
        losses.append(sum(np.sum(error**2) for error in errors))
        backprop([2 * error for error in errors])
        model.finish_update(optimizer)
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(("depth", "bi"), [(1, False), (2, True)])
def test_layer_from_thinc(depth, bi):
    """A layer with the weights of the model gives the same bits."""
    model, node, Xs = model_of("rnnfast", [2, 6, 3], depth, bi)
    layer = backend.layer_from_thinc(model)
    assert (layer.input_size, layer.hidden_size, layer.num_layers, layer.bidirectional) == (I, O, depth, bi)
    lengths = [len(X) for X in Xs]
    x = np.zeros((max(lengths), len(Xs), I), np.float32)
    for row, X in enumerate(Xs):
        x[: len(X), row] = X
    y, _, tape = layer.forward(x, lengths=lengths)
    ys, backprop = model.begin_update(Xs)
    dy = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    dXs = backprop([dy[:length, row] for row, length in enumerate(lengths)])
    gradients = layer.backward(tape, dy)
    for row, length in enumerate(lengths):
        assert (ys[row] == y[:length, row]).all()
        assert (dXs[row] == gradients.x[:length, row]).all()
    of_model = backend.from_flat(node.get_grad("LSTM"), I, O, depth, bi).parameters
    for name, gradient in gradients.parameters.items():
        assert (of_model[name] == gradient).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", [{}, {"num_layers": 3, "bidirectional": True}])
def test_weights_round_trip(dtype, options):
    layer = rnnfast.LSTM(I, O, dtype=dtype, rng=0, **options)
    flat = backend.to_flat(layer)
    back = backend.from_flat(flat, I, O, layer.num_layers, layer.bidirectional)
    assert back.dtype == dtype
    assert layer.parameters.keys() == back.parameters.keys()
    for name, array in layer.parameters.items():
        assert (array == back.parameters[name]).all()
    if dtype == np.float32:
        again = backend.layer_from_thinc(backend.layer_to_thinc(layer))
        assert (backend.to_flat(again) == flat).all()


def test_the_flat_vector():
    """Wx, bx, Wh, bh, each with its rows f, i, o, c."""
    layer = rnnfast.LSTM(1, 1, rng=0)
    for first, name in enumerate(["weight_ih_l0", "bias_ih_l0", "weight_hh_l0", "bias_hh_l0"]):
        layer.parameters[name].flat[:] = [10 * first + gate for gate in range(4)]
    rows = [1, 0, 3, 2]
    assert backend.to_flat(layer).tolist() == [10 * first + row for first in range(4) for row in rows]
    assert not backend.to_flat(rnnfast.LSTM(1, 1, bias=False))[[*range(4, 8), *range(12, 16)]].any()


def test_weights_across_thinc():
    """A layer converted to thinc and run by thinc's own operations gives the outputs of the layer."""
    layer = rnnfast.LSTM(I, O, 2, bidirectional=True, rng=0)
    with use_ops("numpy"):
        model = with_padded(backend.layer_to_thinc(layer))
    x = np.random.default_rng(0).normal(size=(7, I)).astype(np.float32)
    np.testing.assert_allclose(model.predict([x])[0], layer(x)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size_at_t": np.array([3, 4])}, r"size_at_t is \[3, 4\], .* never increasing, and 7 in total"),
        ({"size_at_t": np.array([4, 2])}, r"size_at_t is \[4, 2\], .* 7 in total, as X has 7 rows"),
        ({"size_at_t": np.array([], int)}, r"size_at_t is \[\], .* at least one"),
        (
            {"params": np.zeros(7, np.float32)},
            r"params has shape \(7,\), but nI=3, nO=5, .* need a vector of 200 elements",
        ),
        ({"params": np.zeros(200, np.int64)}, "dtype must be numpy.float32 or numpy.float64"),
        ({"H0": np.zeros(5)}, r"H0 must have shape \(depth, dirs, nO\), got shape \(5,\)"),
        ({"C0": np.zeros((1, 1, 4))}, r"C0 must have the shape of H0, .*\(1, 1, 5\), got \(1, 1, 4\)"),
    ],
)
def test_errors(change, message):
    given, _ = arguments_of(1, 1, [4, 3])
    given = {**dict(zip(["params", "H0", "C0", "X", "size_at_t"], given, strict=True)), **change}
    with pytest.raises(ValueError, match=message):
        get_ops("rnnfast").lstm_forward_inference(**given)


def test_state_of_other_ops():
    given, dY = arguments_of(1, 1, [2, 1])
    _, state = NumpyOps().lstm_forward_training(*given)
    with pytest.raises(TypeError, match=r"fwd_state must be .* got tuple: run both passes with the same ops"):
        get_ops("rnnfast").backprop_lstm(dY, given[4], given[0], state)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"proj_size": 2}, "layer has proj_size=2, which thinc's LSTM does not support"),
        ({"reverse": True, "peepholes": True}, "layer has reverse=True, peepholes=True"),
        ({"clip": 1.0, "coupled": True}, "layer has clip=1.0, coupled=True"),
        ({"activations": ["relu", "tanh", "tanh"]}, "layer has activations="),
    ],
)
def test_declined_layers(option, message):
    with pytest.raises(ValueError, match=message):
        backend.layer_to_thinc(rnnfast.LSTM(I, O, **option))


def test_declined_models():
    with pytest.raises(TypeError, match=r"layer must be an rnnfast.LSTM, .* got GRU"):
        backend.to_flat(rnnfast.GRU(I, O))
    with pytest.raises(ValueError, match=r"model must contain exactly one LSTM, got 'with_padded.* with 0"):
        backend.layer_from_thinc(with_padded(Relu(2, 2)))
    with pytest.raises(ValueError, match="has no parameters yet: call its initialize"):
        backend.layer_from_thinc(LSTM(2, 2))
    model, node, _ = model_of("numpy", [2])
    node.set_param("HC0", node.get_param("HC0") + 1)
    with pytest.raises(ValueError, match="nonzero initial state HC0"):
        backend.layer_from_thinc(model)


# ------------------------------------------------------------------------------------------------- thinc's own tests

PLUGIN = """
import thinc.api
from rnnfast.backends.thinc import RnnfastOps

calls = dict.fromkeys(["lstm_forward_inference", "lstm_forward_training", "backprop_lstm"], 0)

class Counted(RnnfastOps):
    pass

def count(name):
    def method(self, *args):
        calls[name] += 1
        return getattr(RnnfastOps, name)(self, *args)
    setattr(Counted, name, method)

for name in calls:
    count(name)
thinc.api.NumpyOps = Counted
thinc.api.set_current_ops(Counted())

def pytest_unconfigure(config):
    print("\\nCALLS", *calls.values())
"""


def test_thincs_own_tests(tmp_path):
    """Run thinc's own tests of the layer, and of its operations, with NumpyOps replaced."""
    if importlib.util.find_spec("thinc.tests") is None or importlib.util.find_spec("hypothesis") is None:
        pytest.skip("this wheel of thinc has no tests, or hypothesis, which they need, is not installed")
    (tmp_path / "on_rnnfast.py").write_text(PLUGIN)
    home = os.path.dirname(os.path.dirname(rnnfast.__file__))
    path = os.pathsep.join([str(tmp_path), home, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = ["-W", "ignore", "-m", "pytest", "-q", "-p", "on_rnnfast", "-p", "no:cacheprovider", "--pyargs"]
    files = [f"thinc.tests.{name}" for name in ("layers.test_lstm", "layers.test_layers_api", "backends.test_ops")]
    done = subprocess.run(
        [sys.executable, *command, *files, "-k", "lstm or LSTM"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    calls = re.search(r"CALLS (\d+) (\d+) (\d+)", done.stdout)
    assert min(map(int, calls.groups())) > 0
