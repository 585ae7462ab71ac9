"""Bidirectional: merging of outputs, and parameters shared with its two layers."""

import numpy as np
import pytest
from support.compare import assert_close, assert_same_bits, central_differences
from support.layers import H, I, N, T, like, make
from support.problems import TOLERANCE

import rnnfast


def pair(merge="concat", **options):
    return rnnfast.Bidirectional(
        make("lstm", num_layers=2, dtype=np.float64, **options),
        make("gru", dtype=np.float64, reverse=True, **options),
        merge,
    )


def test_bidirectional_is_torchs(torch, rng):
    other = torch.nn.LSTM(I, H, bidirectional=True)
    layer = rnnfast.Bidirectional(make("lstm"))
    assert layer.backward_layer.reverse
    names = {name.replace("_reverse", ""): value for name, value in other.state_dict().items() if "_reverse" in name}
    layer.forward_layer.load_state_dict(other.state_dict(), strict=False)
    layer.backward_layer.load_state_dict(names)
    x = rng.standard_normal((T, N, I)).astype(np.float32)
    y, (h, c) = other(torch.tensor(x))
    got, ((h_f, c_f), (h_b, c_b)) = layer(x)
    assert_close(
        {"y": got, "h": np.concatenate((h_f, h_b)), "c": np.concatenate((c_f, c_b))},
        {"y": y.detach().numpy(), "h": h.detach().numpy(), "c": c.detach().numpy()},
        TOLERANCE[np.dtype(np.float32)],
    )


MERGED = {
    "concat": lambda f, b: np.concatenate((f, b), axis=-1),
    "sum": lambda f, b: f + b,
    "mul": lambda f, b: f * b,
    "mean": lambda f, b: (f + b) / 2,
    None: lambda f, b: (f, b),
}


@pytest.mark.parametrize("merge", MERGED)
def test_merge(merge, rng):
    layer = pair(merge)
    x = rng.standard_normal((T, N, I))
    (y_f, state_f), (y_b, state_b) = layer.forward_layer(x), layer.backward_layer(x)
    expected = MERGED[merge](y_f, y_b)
    state = like(state_f, rng), like(state_b, rng)
    y, end = layer(x)
    for got in (y, layer.forward(x)[0]):
        np.testing.assert_array_equal(np.array(got), np.array(expected))
    np.testing.assert_array_equal(end[0][1], state_f[1])
    np.testing.assert_array_equal(end[1], state_b)

    dy = tuple(map(np.cos, y)) if merge is None else np.cos(y)
    dstate = like(state_f, rng), like(state_b, rng)

    def loss():
        y, end = layer(x, state)
        ends = [*end[0], end[1]]
        return np.vdot(y, dy) + sum(map(np.vdot, ends, [*dstate[0], dstate[1]]))

    y, _, tape = layer.forward(x, state)
    grads = layer.backward(tape, dy, dstate)
    assert list(grads.parameters) == list(layer.parameters)
    variables = [x, *state[0], state[1], *layer.parameters.values()]
    for array, got in zip(
        variables, [grads.x, *grads.state[0], grads.state[1], *grads.parameters.values()], strict=True
    ):
        np.testing.assert_allclose(got, central_differences(loss, array), rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(T, N, I), (T, I)])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("merge", ["concat", None])
def test_backward_layer_without_reverse_is_turned(merge, batch_first, shape, rng):
    reverse = pair(merge, batch_first=batch_first)
    plain = make("gru", dtype=np.float64, batch_first=batch_first)
    turned = rnnfast.Bidirectional(make("lstm", num_layers=2, dtype=np.float64, batch_first=batch_first), plain, merge)
    x = rng.standard_normal(shape)
    for got, expected in zip(turned(x)[0], reverse(x)[0], strict=True):
        np.testing.assert_array_equal(got, expected)
    y, _, tape = turned.forward(x)
    y_reverse, _, tape_reverse = reverse.forward(x)
    got, expected = turned.backward(tape, y), reverse.backward(tape_reverse, y_reverse)
    np.testing.assert_array_equal(got.x, expected.x)
    assert_same_bits(got.parameters, expected.parameters)
    assert turned.backward(tape, None).x.shape == shape


def test_bidirectional_shares_its_layers():
    layer = pair()
    parameters = layer.parameters
    assert parameters["forward.weight_ih_l1"] is layer.forward_layer.parameters["weight_ih_l1"]
    assert parameters["backward.bias_hh_l0"] is layer.backward_layer.parameters["bias_hh_l0"]
    x = np.ones((T, N, I))
    y, _ = layer(x)
    layer.freeze()
    assert not any(array.flags.writeable for array in parameters.values())
    np.testing.assert_array_equal(layer(x)[0], y)
    layer.unfreeze()
    assert all(array.flags.writeable for array in parameters.values())


def test_second_layer_is_like_the_first():
    layer = rnnfast.Bidirectional(make("gru_reset_before", num_layers=2, bias=False, dtype=np.float64, rng=0))
    assert repr(layer.backward_layer).replace(", reverse=True", "") == repr(layer.forward_layer)
    first, second = (one.parameters["weight_hh_l1"] for one in (layer.forward_layer, layer.backward_layer))
    assert not np.array_equal(first, second)
    again = rnnfast.Bidirectional(make("gru_reset_before", num_layers=2, bias=False, dtype=np.float64, rng=0))
    assert_same_bits(layer.state_dict(), again.state_dict())


def test_one_layer_in_both_directions_is_refused():
    layer = make("lstm")
    with pytest.raises(ValueError, match="backward_layer must be a different layer from forward_layer"):
        rnnfast.Bidirectional(layer, layer)


def test_options_of_both_layers():
    layer = rnnfast.Bidirectional(rnnfast.LSTM(3, 4, batch_first=True, dtype=np.float64))
    assert (layer.input_size, layer.hidden_size, layer.batch_first, layer.dtype) == (3, 4, True, np.float64)
    layer = rnnfast.Bidirectional(rnnfast.LSTM(3, 4), rnnfast.GRU(3, 5))
    assert (layer.hidden_size, layer.batch_first) == ((4, 5), False)
    with pytest.raises(AttributeError):
        layer.batch_first = True
