"""Activations on every instruction set: error bounds, limits, NaN and symmetry.

ulp_exhaustive.py is a program that checks every float32 value.
"""

from pathlib import Path

import numpy as np
import pytest
from ulp_exhaustive import SIGN, examine

import rnnfast
from rnnfast import functional

LARGEST_ERROR = 4  # ulp, in float64


@pytest.fixture(params=["sigmoid", "tanh"])
def function(request):
    return request.param


def around(points, count, dtype):
    """Each point, and `count` neighbouring floats on either side of it."""
    integer = {np.float32: np.int32, np.float64: np.int64}[dtype]
    bits = np.abs(np.asarray(points, dtype)).view(integer)[:, None] + np.arange(-count, count + 1)
    return np.unique(np.maximum(bits, 0)).astype(integer).view(dtype)


def ends(dtype):
    """The inputs where the range reduction changes, the functions saturate, or results become subnormal."""
    steps = np.arange(0.5, 140) * np.log(2)
    limits = np.log(np.finfo(dtype).max), -np.log(np.finfo(dtype).tiny), -np.log(np.finfo(dtype).eps)
    special = [np.finfo(dtype).tiny, np.finfo(dtype).eps, np.finfo(dtype).max, 1, 10, 20, 88, 88.5, 709, 709.5, 1e6]
    steps = np.concatenate([steps, steps / 2, np.arange(0.5, 30) / 2.72])
    return np.concatenate([steps, limits, np.divide(limits, 2), special]).astype(dtype)


def test_float32(function, isa):
    everywhere, dense = np.arange(0, SIGN, 4001, dtype=np.uint32), around(ends(np.float32), 500, np.float32)
    positive = np.unique(np.concatenate([everywhere, dense.view(np.uint32)]))
    for bits in [positive, positive + np.uint32(SIGN)]:
        assert examine(function, [isa], bits)[isa].faults == []


def float64_sample():
    rng = np.random.default_rng(0)
    spread = [rng.uniform(0, bound, 700) for bound in (1, 3, 22, 750)]
    tiny_to_huge = np.exp(rng.uniform(np.log(5e-324), np.log(1e300), 700))
    x = np.concatenate([*spread, tiny_to_huge, around(ends(np.float64), 1, np.float64), [0.0]])
    return np.concatenate([x, -x])


@pytest.fixture(scope="module")
def float64_right():
    mpmath = pytest.importorskip("mpmath", reason="mpmath is not installed: no comparison with it")
    mpmath.mp.prec = 140
    x = [mpmath.mpf(float(value)) for value in float64_sample()]
    return {"sigmoid": [1 / (1 + mpmath.exp(-value)) for value in x], "tanh": [mpmath.tanh(value) for value in x]}


def test_float64(function, isa, float64_right):
    x = float64_sample()
    for value, y, right in zip(x, functional.activation(function, x, isa), float64_right[function], strict=True):
        if function == "sigmoid" and right < np.finfo(np.float64).tiny:
            assert 0 <= y <= np.finfo(np.float64).tiny
        else:
            assert abs(y - right) <= LARGEST_ERROR * np.spacing(abs(float(right))), value


def test_limits(function, isa, dtype):
    x = np.array([-np.inf, -1e30, -0.0, 0.0, 1e30, np.inf], dtype)
    right = np.array([0, 0, 0.5, 0.5, 1, 1] if function == "sigmoid" else [-1, -1, -0.0, 0.0, 1, 1], dtype)
    assert functional.activation(function, x, isa).tobytes() == right.tobytes()


def test_nan_passes(function, isa, dtype):
    x = np.array([np.nan, -np.nan, 0, np.nan], dtype)
    assert np.isnan(functional.activation(function, x, isa)).tolist() == [True, True, False, True]


def test_tanh_is_odd_and_itself_for_tiny_inputs(isa, dtype):
    x = np.concatenate([np.random.default_rng(0).normal(size=1000) * 5, [0, np.inf]]).astype(dtype)
    assert functional.activation("tanh", -x, isa).tobytes() == (-functional.activation("tanh", x, isa)).tobytes()
    tiny = np.geomspace(np.finfo(dtype).smallest_subnormal, np.finfo(dtype).eps / 8, 1000, dtype=dtype)
    assert functional.activation("tanh", tiny, isa).tobytes() == tiny.tobytes()


@pytest.mark.parametrize(("function", "low", "high"), [("sigmoid", -760, -2), ("sigmoid", 14, 40), ("tanh", 6.1, 25)])
def test_monotone_at_the_ends(function, low, high, isa):
    x = np.linspace(low, high, 200_001, dtype=np.float32)
    assert (np.diff(functional.activation(function, x, isa)) >= 0).all()


def test_the_place_in_an_array_does_not_matter(function, isa, dtype):
    x = np.random.default_rng(0).normal(size=37).astype(dtype)
    alone = [functional.activation(function, x[i : i + 1], isa)[0] for i in range(len(x))]
    assert functional.activation(function, x, isa).tobytes() == np.array(alone).tobytes()


# --- ELU and softplus, which only layers apply


def applied(name, x, isa):
    """An activation of x and its slope, from a layer that computes h = f(x)."""
    with functional.use_isa(isa):
        layer = rnnfast.RNN(1, 1, activations=[name], bias=False, dtype=x.dtype)
    layer.load_state_dict({"weight_ih_l0": [[1.0]], "weight_hh_l0": [[0.0]]})
    y, _, tape = layer.forward(x[np.newaxis, :, np.newaxis])
    return y.ravel(), layer.backward(tape, np.ones_like(y)).x.ravel()


@pytest.fixture(scope="module")
def exponential_right():
    """Inputs, with ELU, its slope and softplus of each."""
    mpmath = pytest.importorskip("mpmath", reason="mpmath is not installed: no comparison with it")
    mpmath.mp.prec = 140
    rng = np.random.default_rng(0)
    spread = [rng.uniform(-85, 85, 300), rng.uniform(-2, 2, 1000), -np.exp(rng.uniform(-60, 4.4, 500))]
    x = np.concatenate([*spread, around(np.arange(0.5, 60) * np.log(2), 2, np.float32), [0.0]]).astype(np.float32)
    x = np.concatenate([x, -x[-301:]])
    values = [mpmath.mpf(float(value)) for value in x]
    exponential = [mpmath.exp(min(value, 0)) for value in values]
    elu = [value if value >= 0 else mpmath.expm1(value) for value in values]
    softplus = [max(value, 0) + mpmath.log1p(mpmath.exp(-abs(value))) for value in values]
    return x, elu, exponential, softplus


def test_elu_and_softplus(exponential_right, isa, dtype):
    x, *right = exponential_right
    got = *applied("elu", x.astype(dtype), isa), applied("softplus", x.astype(dtype), isa)[0]
    for values, expected in zip(got, right, strict=True):
        ulps = [np.spacing(dtype(abs(want))) for want in expected]
        errors = [abs(y - want) / ulp for y, want, ulp in zip(values.tolist(), expected, ulps, strict=True)]
        assert max(errors) <= LARGEST_ERROR, x[np.argmax(errors)]


def test_limits_of_elu_and_softplus(isa, dtype):
    x = np.array([-np.inf, -1e30, 0, 1e30, np.inf, np.nan], dtype)
    y, slope = applied("elu", x, isa)
    np.testing.assert_array_equal(y, np.array([-1, -1, 0, 1e30, np.inf, np.nan], dtype))
    np.testing.assert_array_equal(slope[:5], np.array([0, 0, 1, 1, 1], dtype))
    y, slope = applied("softplus", x, isa)
    np.testing.assert_array_equal(y, np.array([0, 0, np.log(2), 1e30, np.inf, np.nan], dtype))
    np.testing.assert_array_equal(slope[:5], np.array([0, 0, 0.5, 1, 1], dtype))


def test_kernels_call_no_mathematical_function_of_the_c_library():
    """Its last bits differ between glibc, musl and others, and with glibc between processors."""
    csrc = Path(__file__).parents[1] / "csrc"
    if not csrc.is_dir():
        pytest.skip("the tests do not lie in a checkout of rnnfast, so there are no sources")
    assert [path.name for path in csrc.glob("*.[ch]") if "math.h" in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("name", ["relu", "Tanh", ""])
def test_only_the_two_functions_of_cells_have_a_name(name):
    with pytest.raises(ValueError, match=f"name is '{name}', but must be 'sigmoid' or 'tanh'"):
        functional.activation(name, np.ones(3))
