"""Layers accept arrays of any layout, dtype and container."""

import numpy as np
import pytest
from support.arrays import FORMS
from support.compare import assert_same_bits, members
from support.layers import H, I, N, T, make, problem, results

import rnnfast
from rnnfast import arguments


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_arrays(variant, form, rng):
    layer = make(variant, bidirectional=True)
    x, state, dy, dstate = problem(layer, rng)
    expected = results(layer, x, state, dy, dstate)

    def convert(value):
        return tuple(map(FORMS[form], value)) if isinstance(value, tuple) else FORMS[form](value)

    given = [convert(value) for value in (x, state, dy, dstate)]
    assert_same_bits(results(layer, *given), expected)
    for array, original in zip(given, (x, state, dy, dstate), strict=True):
        for member, value in zip(members(array), members(original), strict=True):
            np.testing.assert_array_equal(member, value)  # not written to
    np.testing.assert_array_equal(layer(given[0], given[1])[0], expected["y"])

    linear = rnnfast.Linear(I, H, rng=0)
    y, tape = linear.forward(given[0])
    grads = linear.backward(tape, FORMS[form](y))
    np.testing.assert_array_equal(y, linear(x))
    assert_same_bits(grads.parameters, linear.backward(tape, y).parameters)


@pytest.mark.parametrize("form", FORMS)
def test_kernels_can_read_any_form(form, dtype, rng):
    array = rng.standard_normal((T, N, I)).astype(np.float32).astype(dtype)
    got = arguments.real("x", FORMS[form](array), np.dtype(dtype))
    np.testing.assert_array_equal(got, array)
    assert got.dtype == dtype
    assert got.flags.aligned
    assert got.strides[-1] == got.itemsize
    assert not any(stride % got.itemsize for stride in got.strides)


@pytest.mark.parametrize("view", ["rows", "every second", "backwards", "batch inside"])
def test_views_are_not_copied(view, dtype):
    memory = np.zeros((T, N, 2 * I), dtype)
    views = {
        "rows": memory[1:, :-1],
        "every second": memory[::2, :, 1 : 1 + I],
        "backwards": memory[::-1, ::-1],
        "batch inside": memory.transpose(1, 0, 2),
    }
    assert arguments.real("x", views[view], np.dtype(dtype)) is views[view]


@pytest.mark.parametrize("other", [bool, np.int8, np.uint64, np.float16])
def test_other_dtypes_are_converted(other, dtype, rng):
    layer = make("lstm", dtype=dtype)
    x = rng.integers(0, 2, (T, N, I)).astype(other)
    np.testing.assert_array_equal(layer(x)[0], layer(x.astype(dtype))[0])
    assert layer(x)[0].dtype == dtype


def test_broadcast_input():
    layer = make("gru")
    x = np.ones((T, N, I), np.float32)
    np.testing.assert_array_equal(layer(np.broadcast_to(np.float32(1), x.shape))[0], layer(x)[0])
    np.testing.assert_array_equal(layer(np.broadcast_to(x[:1], x.shape))[0], layer(x)[0])


def test_list_as_state_pair(rng):
    layer = make("lstm")
    x, (h, c), *_ = problem(layer, rng)
    np.testing.assert_array_equal(layer(x, [h, c])[0], layer(x, (h, c))[0])


def test_none_is_zeros(variant, rng):
    layer = make(variant, num_layers=2)
    x, state, dy, dstate = problem(layer, rng)
    zeros = [tuple(map(np.zeros_like, s)) if isinstance(s, tuple) else np.zeros_like(s) for s in (state, dy)]
    assert_same_bits(results(layer, x, None, dy, None), results(layer, x, zeros[0], dy, zeros[0]))
    assert_same_bits(results(layer, x, state, None, dstate), results(layer, x, state, zeros[1], dstate))
    if isinstance(state, tuple):
        for k in range(2):
            one = tuple(None if j == k else member for j, member in enumerate(state))
            filled = tuple(np.zeros_like(member) if j == k else member for j, member in enumerate(state))
            assert_same_bits(results(layer, x, one, dy, one), results(layer, x, filled, dy, filled))


def test_nan_stays_in_its_row(variant, rng):
    layer = make(variant, num_layers=2, bidirectional=True)
    x, state, dy, dstate = problem(layer, rng)
    expected = results(layer, x, state, dy, dstate)
    x[2, 1, 0], members(state)[0][0, 1, 0] = np.nan, np.inf
    for name, value in results(layer, x, state, dy, dstate).items():
        if name.removeprefix("d") not in layer.parameters:
            np.testing.assert_array_equal(value[:, [0, 2]], expected[name][:, [0, 2]], err_msg=name)
            is_unused = name == "dstate 0" and "sru" in variant
            assert is_unused or not np.array_equal(value[:, 1], expected[name][:, 1]), name
