"""The leaky RNN: its values and gradients against the reference, its option, its files."""

import json
import pickle

import numpy as np
import pytest
from support.layers import reference_parameters, refused

import rnnfast
from rnnfast import reference
from rnnfast.diagnostics import gradient_flow
from rnnfast.layers import saving

T, N, I, H = 7, 3, 4, 5
UNITS = np.linspace(0.1, 1, H)
STACKS = {
    "plain": {},
    "reverse": {"reverse": True},
    "deep both": {"num_layers": 2, "bidirectional": True},
}
LEAKS = {"number": 0.3, "per unit": UNITS}


def arrays(rng, *shape):
    return rng.standard_normal(shape)


@pytest.mark.parametrize("leak", LEAKS.values(), ids=list(LEAKS))
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("stack", STACKS.values(), ids=list(STACKS))
def test_matches_the_reference(stack, nonlinearity, leak, rng):
    layer = rnnfast.RNN(I, H, nonlinearity=nonlinearity, leak=leak, dtype=np.float64, rng=0, **stack)
    x = arrays(rng, T, N, I)
    y, h, tape = layer.forward(x)
    dy, dh = arrays(rng, *y.shape), arrays(rng, *h.shape)
    grads = layer.backward(tape, dy, dh)
    parameters = reference_parameters(layer) if isinstance(leak, float) else with_leak(layer, leak)
    cell = f"rnn_{nonlinearity}_leaky"
    expected_y, expected_h, expected = reference.forward(cell, parameters, x, None, **stack)
    np.testing.assert_allclose(y, expected_y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(h, expected_h, rtol=1e-12, atol=1e-12)
    dx, dh0, dparameters = reference.backward(expected, dy, dh)
    np.testing.assert_allclose(grads.x, dx, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(grads.state, dh0, rtol=1e-10, atol=1e-12)
    assert grads.parameters.keys() == dparameters.keys() == layer.parameters.keys()
    for name, gradient in grads.parameters.items():
        np.testing.assert_allclose(gradient, dparameters[name], rtol=1e-10, atol=1e-12)


def with_leak(layer, leak):
    """The layer's parameters and the leak under the names of the reference."""
    parameters = dict(layer.parameters)
    for name in layer.parameters:
        if name.startswith("weight_ih"):
            parameters[name.replace("weight_ih", "leak")] = leak[np.newaxis]
    return parameters


def test_gradients_match_central_differences(rng):
    layer = rnnfast.RNN(I, H, 2, leak=UNITS, dtype=np.float64, rng=0)
    x, h0 = arrays(rng, T, N, I), arrays(rng, 2, N, H)
    weights = arrays(rng, T, N, H)
    _, _, tape = layer.forward(x, h0)
    grads = layer.backward(tape, weights)
    for array, gradient in [
        (x, grads.x),
        (h0, grads.state),
        *((layer.parameters[k], g) for k, g in grads.parameters.items()),
    ]:
        for at in rng.integers(0, array.size, 4):
            before, losses = array.flat[at], []
            for step in (1e-6, -1e-6):
                array.flat[at] = before + step
                losses.append((layer(x, h0)[0] * weights).sum())
            array.flat[at] = before
            assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(gradient.flat[at], rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_way_to_run_gives_the_same_bits(dtype, rng):
    layer = rnnfast.RNN(I, H, 2, leak=UNITS, dtype=dtype, rng=0)
    x = arrays(rng, T, N, I).astype(dtype)
    y, h, tape = layer.forward(x)
    first, state = layer(x[:3])
    second, last = layer(x[3:], state)
    assert np.concatenate([first, second]).tobytes() == y.tobytes()
    assert last.tobytes() == h.tobytes()
    stream, pool = layer.stream(N), rnnfast.StreamPool(layer, N)
    ids = [pool.join() for _ in range(N)]
    for x_t, y_t in zip(x, y, strict=True):
        assert stream.step(x_t).tobytes() == pool.step(ids, x_t).tobytes() == y_t.tobytes()
    checkpointed = layer.forward(x, checkpoint=2)[2]
    dy = arrays(rng, *y.shape).astype(dtype)
    for ours, others in zip(layer.backward(tape, dy)[:2], layer.backward(checkpointed, dy)[:2], strict=True):
        assert ours.tobytes() == others.tobytes()
    layer.freeze()
    for _ in range(2):
        assert layer(x)[0].tobytes() == y.tobytes()


def test_ragged_rows_equal_rows_alone(rng):
    layer = rnnfast.RNN(I, H, bidirectional=True, leak=0.4, rng=0)
    x, lengths = arrays(rng, T, N, I).astype(np.float32), [T, 2, 4]
    y, h = layer(x, lengths=lengths)
    masked, _ = layer(x, mask=np.arange(T)[:, np.newaxis] < lengths, zero_masked=True)
    for row, length in enumerate(lengths):
        alone, state = layer(x[:length, row])
        assert y[:length, row].tobytes() == masked[:length, row].tobytes() == alone.tobytes()
        assert h[:, row].tobytes() == state.tobytes()


def test_a_leak_of_one_is_the_plain_rnn(rng):
    plain, leaky = rnnfast.RNN(I, H, rng=0), rnnfast.RNN(I, H, leak=1, rng=0)
    x = arrays(rng, T, N, I)
    assert plain(x)[0].tobytes() == leaky(x)[0].tobytes()


def test_option_is_kept(tmp_path, rng):
    x = arrays(rng, T, N, I)
    for leak in (0.25, list(UNITS), [[0.5], [0.25]], np.full((2, H), 0.5)):
        layer = rnnfast.RNN(I, H, 2, leak=leak, rng=0)
        layer.save(tmp_path / "layer")
        twins = [rnnfast.load(tmp_path / "layer"), pickle.loads(pickle.dumps(layer)), eval(repr(layer), vars(rnnfast))]
        twins[2].load_state_dict(layer.state_dict())
        for twin in twins:
            assert twin.leak == layer.leak
            assert twin(x)[0].tobytes() == layer(x)[0].tobytes()
    assert "leak" not in "".join(layer.state_dict())
    with pytest.raises(ValueError, match=r"rnnfast\.load"):
        rnnfast.RNN(I, H, 2).load(tmp_path / "layer")
    pair = rnnfast.Bidirectional(rnnfast.RNN(I, H, leak=0.25, rng=0))
    assert pair.backward_layer.leak == 0.25


def test_option_is_read_only():
    layer = rnnfast.RNN(I, H, leak=0.5, rng=0)
    with pytest.raises(AttributeError):
        layer.leak = 0.25
    assert layer.leak == 0.5


def test_files_without_the_option_load(tmp_path):
    layer = rnnfast.RNN(I, H, rng=0)
    layer.save(tmp_path / "plain")
    with np.load(tmp_path / "plain") as content:
        assert "leak" not in content["rnnfast"].item()  # earlier versions can read it
    description = {name: value for name, value in saving.to_json(layer).items() if name != "leak"}
    header = json.dumps({"format": 1, "layer": description})
    with open(tmp_path / "old", "wb") as file:
        np.savez(file, rnnfast=np.array(header), **layer.parameters)
    layer.load(tmp_path / "old")
    assert rnnfast.load(tmp_path / "old").leak is None


def test_gradient_flow_of_slow_units():
    slow = gradient_flow(rnnfast.RNN(I, H, leak=0.01, dtype=np.float64, rng=0), np.zeros((20, 1, I)))
    fast = gradient_flow(rnnfast.RNN(I, H, dtype=np.float64, rng=0), np.zeros((20, 1, I)))
    assert slow.decay["l0"] > 0.98 > fast.decay["l0"]
    assert slow.saturation["l0"] == {}


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"leak": 0}, ValueError, "leak must be above 0 and at most 1, in float32, got 0"),
        ({"leak": 1.5}, ValueError, "leak must be above 0 and at most 1, in float32, got 1.5"),
        ({"leak": [0.5, np.nan, 0.5, 0.5, 0.5]}, ValueError, "leak must be above 0 .*, got nan"),
        ({"leak": True}, TypeError, "leak must be a number or an array of numbers, got True"),
        ({"leak": [True] * H}, TypeError, "leak must be a number or an array of numbers"),
        ({"leak": 1e-50}, ValueError, "leak must be above 0 .* in float32, got 1e-50"),
        ({"leak": "fast"}, TypeError, "leak must hold real numbers"),
        (
            {"leak": [0.5] * (H + 1)},
            ValueError,
            r"leak must be one number, or an array that broadcasts to .*, got shape \(6,\)",
        ),
        ({"leak": np.full((2, H), 0.5)}, ValueError, r"\(num_layers \* directions, hidden_size\) = \(1, 5\)"),
        ({"leak": 0.5, "clip": 1.0}, ValueError, "leak and clip are mutually exclusive"),
        ({"leak": 0.5, "activations": ["elu"]}, ValueError, "leak and activations are mutually exclusive"),
    ],
)
def test_errors(options, error, match):
    with pytest.raises(error, match=match):
        rnnfast.RNN(I, H, **options)


def test_refused_calls_leave_the_layer_as_it_is():
    layer = rnnfast.RNN(I, H, leak=0.5, rng=0)
    refused(layer, lambda: layer.load_state_dict({**layer.state_dict(), "leak_l0": [0.5]}), ValueError, "leak_l0 is no")


@pytest.mark.filterwarnings("error")
def test_a_leak_that_overflows_float32_is_refused_without_a_warning():
    with pytest.raises(ValueError, match="leak must be above 0"):
        rnnfast.RNN(3, 4, leak=1e308)
