"""Comparisons of named arrays, and gradients by central differences."""

import numpy as np

from support.cells import is_trained


def members(state):
    """The arrays of a state as a list: [h] or [h, c]."""
    return list(state) if isinstance(state, tuple) else [state]


def named(y, state, dx, dstate, dparameters):
    """The results of forward and backward in one dict."""
    results = {"y": y, "dx": dx}
    results.update({f"state {i}": member for i, member in enumerate(members(state))})
    results.update({f"dstate {i}": member for i, member in enumerate(members(dstate))})
    results.update({f"d{name}": gradient for name, gradient in dparameters.items() if gradient is not None})
    return results


def assert_close(got, expected, tolerance):
    """Compare dicts of arrays: errors must be below `tolerance` times the largest expected magnitude (at least 1)."""
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        assert got[name].shape == want.shape, name
        largest = max(1.0, np.abs(want).max(initial=0.0))
        np.testing.assert_allclose(got[name], want, rtol=0, atol=tolerance * largest, err_msg=name)


def assert_same(got, expected):
    """Require equal values, shapes and dtypes under the same names; NaN equals NaN."""
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        np.testing.assert_array_equal(got[name], want, err_msg=name, strict=True)


def assert_same_bits(got, expected):
    """Require equal bits and shapes under the same names."""
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        assert got[name].shape == want.shape, name
        assert got[name].tobytes() == want.tobytes(), f"{name} differs by {np.abs(got[name] - want).max()}"


def central_differences(loss, array, step=1e-5):
    """The gradient of loss() with respect to a float64 array that loss() reads."""
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + step
        above = loss()
        array[index] = value - step
        below = loss()
        array[index] = value
        gradient[index] = (above - below) / (2 * step)
    return gradient


def gradient_by_differences(p, run_forward):
    """Gradients by central differences, under the names of `named`; run_forward(p) returns y and the state."""

    def loss():
        y, state = run_forward(p)
        ends = zip(members(state), members(p.dstate), strict=True)
        return np.vdot(y, p.dy) + sum(np.vdot(end, d) for end, d in ends)

    results = {"dx": central_differences(loss, p.x)}
    results.update({f"dstate {i}": central_differences(loss, member) for i, member in enumerate(members(p.state))})
    resets = members(p.options["reset_state"]) if "reset_state" in p.options else []
    results.update({f"dreset {i}": central_differences(loss, member) for i, member in enumerate(resets)})
    trained = {name: value for name, value in p.parameters.items() if is_trained(p.cell, name)}
    results.update({f"d{name}": central_differences(loss, value) for name, value in trained.items()})
    return results
