"""The engine's linear map against NumPy."""

import numpy as np
import pytest
from support.compare import assert_close, assert_same_bits
from support.linear import linear_by_numpy, linear_problem, run_linear
from support.problems import EDGES, TOLERANCE


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("M", [1, 5, 6, 7, 13, 600])
def test_linear_agrees_with_numpy(M, bias, dtype, isa):
    for k, O in enumerate(EDGES):
        arrays = linear_problem(M, EDGES[-1 - k], O, dtype, bias)
        results = run_linear(*arrays, isa)
        assert_close(results, linear_by_numpy(*arrays), TOLERANCE[np.dtype(dtype)])
        assert_same_bits(run_linear(*arrays, isa, layout="gaps"), results)
        assert_same_bits(run_linear(*arrays, isa, layout="backwards"), results)


def test_linear_gradients_are_added(dtype, isa):
    arrays = linear_problem(7, 5, 9, dtype, True)
    plain, added = run_linear(*arrays, isa), run_linear(*arrays, isa, start=1.0)
    added["dweight"] -= 1
    added["dbias"] -= 1
    assert_close(added, plain, TOLERANCE[np.dtype(dtype)])


@pytest.mark.parametrize(("M", "I", "O"), [(9000, 40, 50), (1, 700, 900), (64, 700, 300)])
def test_linear_gives_the_same_bits(threads, M, I, O, dtype, isa):
    x, weight, bias, dy = linear_problem(M, I, O, dtype, True)
    threads(1)
    expected = run_linear(x, weight, bias, dy, isa)
    for count in (2, 3):
        threads(count)
        assert_same_bits(run_linear(x, weight, bias, dy, isa), expected)
    for row in {0, M // 2, M - 1}:
        which = slice(row, row + 1)
        alone = run_linear(x[which].copy(), weight, bias, dy[which].copy(), isa)
        assert_same_bits({k: alone[k] for k in ("y", "dx")}, {k: expected[k][which] for k in ("y", "dx")})


def test_linear_gradients_are_sums_of_a_million_rows(isa):
    rng = np.random.default_rng(0)
    x, dy = rng.uniform(0.5, 1, (2, 10**6, 1)).astype(np.float32)
    results = run_linear(x, np.ones((1, 1), np.float32), np.zeros(1, np.float32), dy, isa)
    assert results["dweight"].item() == pytest.approx(np.vdot(dy.astype(np.float64), x), rel=1e-5)
    assert results["dbias"].item() == pytest.approx(dy.sum(dtype=np.float64), rel=1e-5)
