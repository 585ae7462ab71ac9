"""Weights survive conversion through several frameworks in any order."""

import itertools
import os

import numpy as np
import pytest

import rnnfast

os.environ.setdefault("KERAS_BACKEND", "numpy")
for host in ("torch", "onnx", "keras", "thinc"):
    pytest.importorskip(host, reason=f"{host} is not installed: conversions need torch, onnx, keras and thinc")

from rnnfast.backends import keras, onnx, thinc, torch  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def through_torch(layer):
    import torch as host

    kind = {rnnfast.LSTM: torch.LSTM, rnnfast.GRU: torch.GRU, rnnfast.RNN: torch.RNN}[type(layer)]
    module = kind(layer.input_size, layer.hidden_size, layer.num_layers, bidirectional=layer.bidirectional)
    module.load_state_dict({name: host.from_numpy(array) for name, array in layer.state_dict().items()})
    options = {"num_layers": layer.num_layers, "bidirectional": layer.bidirectional}
    back = type(layer)(layer.input_size, layer.hidden_size, **options)
    back.load_state_dict(module.state_dict())
    return back


def through_onnx(layer):
    model = onnx.to_onnx(layer)
    nodes = [node.name for node in model.graph.node if node.op_type in ("RNN", "LSTM", "GRU")]
    return onnx.layer_from_onnx(model, nodes if len(nodes) > 1 else nodes[0])


def through_thinc(layer):
    return thinc.layer_from_thinc(thinc.layer_to_thinc(layer))


def through_keras(layer):
    return keras.layer_from_keras(keras.layer_to_keras(layer))


def assert_same_parameters(layer, other):
    assert layer.parameters.keys() == other.parameters.keys()
    for name, value in layer.parameters.items():
        assert other.parameters[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("way", list(itertools.permutations((through_torch, through_onnx, through_thinc))))
def test_two_biases_survive(way, bidirectional):
    layer = rnnfast.LSTM(3, 4, 2, bidirectional=bidirectional, rng=0)
    for through in way:
        assert_same_parameters(layer, through(layer))
    on = layer
    for through in way:
        on = through(on)
    assert_same_parameters(layer, on)


@pytest.mark.parametrize("kind", [rnnfast.LSTM, rnnfast.GRU, rnnfast.RNN])
@pytest.mark.parametrize("way", list(itertools.permutations((through_torch, through_onnx, through_keras))))
def test_keras_keeps_the_biases_that_it_has(way, kind):
    """Both biases of a GRU that resets after the product; the sum of the two for other cells."""
    layer = kind(3, 4, rng=0)
    on = layer
    for through in way:
        on = through(on)
    weights = {name: value for name, value in layer.parameters.items() if kind is rnnfast.GRU or "weight" in name}
    for name, value in weights.items():
        assert on.parameters[name].tobytes() == value.tobytes(), name
    sums = [one.parameters["bias_ih_l0"] + one.parameters["bias_hh_l0"] for one in (layer, on)]
    np.testing.assert_array_equal(*sums)
