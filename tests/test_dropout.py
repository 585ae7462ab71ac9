"""Dropout between the layers of a stack."""

import numpy as np
import pytest

import rnnfast


def _copier(dropout, num_layers=2, **options):
    """An RNN whose layers return non-negative inputs unchanged, so that y shows what was dropped."""
    layer = rnnfast.RNN(50, 50, num_layers, nonlinearity="relu", bias=False, dropout=dropout, rng=0, **options)
    for name, array in layer.parameters.items():
        array[...] = np.eye(50) if "_ih_" in name else 0
    return layer


@pytest.mark.parametrize("dropout", [0.0, 0.2, 0.75, 1.0])
def test_dropout(dropout, dtype):
    layer = _copier(dropout, dtype=dtype)
    x = np.ones((40, 5, 50), dtype)
    np.testing.assert_array_equal(layer(x)[0], x)
    y, _, tape = layer.forward(x)
    factor = dtype(1 / (1 - dropout)) if dropout < 1 else 0
    assert set(np.unique(y)) <= {0, factor}
    np.testing.assert_allclose((y == 0).mean(), dropout, atol=0.02)
    for axis in range(3):
        along = np.moveaxis(y, axis, 0)
        assert dropout in (0, 1) or not np.array_equal(along[0], along[1])
    np.testing.assert_array_equal(layer.backward(tape, x).x, y)
    again, _, _ = layer.forward(x)
    assert dropout in (0, 1) or not np.array_equal(again, y)


def test_dropout_follows_the_seed():
    x = np.ones((4, 3, 50))
    one, same = _copier(0.5), _copier(0.5)
    for _ in range(3):
        y = one.forward(x)[0]
        same(x)  # draws nothing
        np.testing.assert_array_equal(same.forward(x)[0], y)


def test_dropout_acts_between_layers_only():
    y, _, _ = _copier(0.5, num_layers=4).forward(np.ones((40, 5, 50)))
    assert set(np.unique(y)) == {0, 8}
    np.testing.assert_allclose((y == 8).mean(), 1 / 8, atol=0.02)
    with pytest.warns(UserWarning, match="num_layers=1"):
        layer = _copier(0.5, num_layers=1)
    np.testing.assert_array_equal(layer.forward(np.ones((4, 5, 50)))[0], 1)
