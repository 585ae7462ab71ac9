"""Products of integers (weights="int8", activations="int8"); tests/test_narrow.py has what all kinds have in common."""

import numpy as np
import pytest
from support.cells import DIRECTIONS, make_layer
from support.compare import members
from support.layers import reference_parameters
from support.narrow import IntegerProducts, freeze, integer_product, linear_of
from support.streams import sequence

from rnnfast import functional, narrow, reference

UNIT = 2.0**-24  # the largest relative error of one operation of float32


@pytest.mark.parametrize("sizes", [(1, 1), (5, 16), (7, 33), (70, 20)])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_products_of_integers_agree_with_the_reference(variant, direction, sizes, isa, rng):
    """Where h differs by a rounding, it may be rounded to another integer, so a few of the rows may differ more."""
    options = {"num_layers": 2, **DIRECTIONS[direction]}
    with functional.use_isa(isa):
        layer = make_layer(variant, *sizes, **options)
    parameters = {
        name: array.astype(np.float64).view(IntegerProducts if narrow.is_matrix(name) else np.ndarray)
        for name, array in reference_parameters(layer).items()
    }
    freeze(layer, "int8_products")
    x = sequence(rng, 5, 13, features=sizes[0])
    y, state, _ = reference.forward(layer.engine.cell, parameters, x.astype(np.float64), None, **options)
    got, end = layer(x)
    for one, other in zip([got, *members(end)], [y, *members(state)], strict=True):
        error, size = np.abs(one - other), max(1, np.abs(other).max())
        assert error.max() < 0.05 * size
        assert np.mean(error.max(axis=(0, 2)) < 1e-5 * size) > 0.6


@pytest.mark.parametrize("M", [1, 2, 5, 13, 50])
@pytest.mark.parametrize(("features", "O"), [(1, 3), (4, 16), (33, 70), (300, 130), (1024, 40), (1025, 64), (2500, 33)])
def test_products_of_integers_are_exact(M, features, O, isa, rng):
    """The sum of a block takes part in three roundings, and so does each later sum."""
    with functional.use_isa(isa):
        layer = linear_of(rng.standard_normal((O, features)).astype(np.float32))
    layer.parameters["bias"][...] = rng.standard_normal(O)
    x = (rng.standard_normal((M, features)) * 10.0 ** rng.integers(-30, 30, (M, 1))).astype(np.float32)
    x[::4, ::3] = 0
    freeze(layer, "int8_products")
    weight, bias = layer.parameters["weight"], layer.parameters["bias"]
    largest = integer_product(np.abs(x), np.abs(weight)) + np.abs(bias)
    assert (np.abs(layer(x) - (integer_product(x, weight) + bias)) <= 8 * UNIT * largest).all()


def test_rows_beyond_the_range_of_integers(isa, rng):
    """Rows of zeros and of tiny values count as 0; rows that are not finite result in NaN, and change no others."""
    with functional.use_isa(isa):
        layer = linear_of(rng.standard_normal((40, 9)).astype(np.float32), bias=3)
    freeze(layer, "int8_products")
    x = rng.standard_normal((9, 9)).astype(np.float32)
    plain = layer(x)
    x[[0, 3]], x[1], x[4, 2], x[5, 8], x[7, 0] = 0, 1e-37, np.nan, np.inf, -np.inf
    x[8] *= np.float32(2.0**110)
    y = layer(x)
    assert (y[[0, 1, 3]] == 3).all()
    assert np.isnan(y[[4, 5, 7]]).all()
    assert y[[2, 6]].tobytes() == plain[[2, 6]].tobytes()
    np.testing.assert_allclose(y[8] * 2.0**-110, plain[8] - 3, rtol=1e-5, atol=1e-6)
    assert np.isnan(layer(x[4])).all()
