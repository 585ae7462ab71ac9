"""Ragged batches against the reference, for every cell, dtype, instruction set, direction and depth."""

from copy import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.arrays import FORMS, FORMS_OF_FLAGS
from support.cells import DIRECTIONS, has_c, make_layer
from support.compare import assert_close, assert_same_bits, members
from support.problems import TOLERANCE
from support.ragged import (
    KINDS,
    WITHOUT_RESET_STATE,
    in_float64,
    isas,
    layer_of,
    of_rows,
    over_members,
    problems,
    run,
    run_all,
    solved,
    swapped,
    unbatched,
    uneven,
    uneven_problem,
)

import rnnfast

# --- results


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_reference(variant, kind, direction, num_layers, dtype, isa):
    options = {"num_layers": num_layers, "dropout": num_layers > 1}
    p, expected = solved(kind, variant, direction, 7, 9, 5, 11, dtype, **options)
    assert_close(run(layer_of(p, isa), p), expected, TOLERANCE[p.dtype])


@pytest.mark.parametrize(
    ("T", "N", "I", "H"), [(1, 1, 1, 1), (1, 5, 3, 4), (9, 1, 4, 17), (3, 300, 3, 5), (300, 2, 3, 4), (5, 13, 33, 65)]
)
@pytest.mark.parametrize("kind", WITHOUT_RESET_STATE)
def test_sizes(variant, kind, T, N, I, H, isa):
    dtype, direction = (np.float32, np.float64)[(T + N) % 2], list(DIRECTIONS)[(list(KINDS).index(kind) + T) % 3]
    p, expected = solved(kind, variant, direction, T, N, I, H, dtype)
    assert_close(run(layer_of(p, isa), p), expected, 4 * TOLERANCE[p.dtype])


@given(problems(), isas, st.sampled_from([None, 1, 2, "auto"]))
def test_any_shape(p, isa, checkpoint):
    expected = run_all(in_float64(p))
    if checkpoint is not None:
        expected.pop("cells", None)
    assert_close(run(layer_of(p, isa), p, checkpoint), expected, 4 * TOLERANCE[p.dtype])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_plain_steps_from_inside(variant, direction, dtype):
    """Inner states and their gradients are available for full batches too."""
    p, expected = solved(None, variant, direction, 6, 5, 4, 9, dtype, num_layers=2)
    assert_close(run(layer_of(p), p), expected, TOLERANCE[p.dtype])


# --- layouts and forms of arguments


@pytest.mark.parametrize("checkpoint", [None, 2])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_layouts_agree(variant, kind, direction, checkpoint):
    for seed in range(3):
        options = {"num_layers": 2, "dropout": True, "dtype": np.float32, "seed": seed, **DIRECTIONS[direction]}
        p = uneven_problem(kind, variant, 5, 4, 3, 9, **options)
        expected = run(layer_of(p), p, checkpoint)
        first = run(layer_of(p, batch_first=True), swapped(p), checkpoint)
        for name in ("y", "dx"):
            first[name] = first[name].swapaxes(0, 1)
        assert_same_bits(first, expected)
        one = unbatched(p)
        for batch_first in (False, True):
            layer = layer_of(one, batch_first=batch_first)
            got = of_rows(
                {
                    k: np.expand_dims(v, 2 if k in ("dh", "cells") else 1)
                    for k, v in run(layer, one, checkpoint).items()
                },
                [0],
            )
            assert_same_bits(got, of_rows(expected, [0]))
            y, state = layer(one.x, one.state, **uneven(one))
            assert y.shape == one.dy.shape
            assert [m.shape for m in members(state)] == [m.shape for m in members(one.state)]


@pytest.mark.parametrize("form", FORMS_OF_FLAGS)
@pytest.mark.parametrize("kind", KINDS)
def test_forms_of_arrays(kind, form):
    p = uneven_problem(kind, "lstm", 6, 5, 3, 4, dtype=np.float32, bidirectional=True)
    expected = run(layer_of(p), p)
    q = copy(p)
    given = {k: v if k == "zero_masked" else over_members(v, FORMS[form]) for k, v in uneven(p).items()}
    q.options = {**p.options, **given}
    assert_same_bits(run(layer_of(p), q), expected)


def test_broadcast_flags():
    """Flags with strides of zero."""
    p = uneven_problem("mask and reset", "gru", 6, 5, 3, 4, dtype=np.float32)
    q = copy(p)
    for axis in (0, 1):
        views = {k: np.broadcast_to(p.options[k].take([0], axis), (6, 5)) for k in ("mask", "reset")}
        copies = {k: view.copy() for k, view in views.items()}
        p.options, q.options = {**p.options, **copies}, {**p.options, **views}
        assert_same_bits(run(layer_of(p), q), run(layer_of(p), p))


@pytest.mark.parametrize("other", [np.int8, np.uint8, np.int32, np.int64, np.uint64, ">i4", ">u8"])
def test_dtypes_of_lengths(other):
    p = uneven_problem("lengths", "lstm", 6, 5, 3, 4, dtype=np.float32)
    expected = run(layer_of(p), p)
    q = copy(p)
    q.options = {**p.options, "lengths": np.array(p.options["lengths"]).astype(other)}
    assert_same_bits(run(layer_of(p), q), expected)
    one = unbatched(p)
    for length in (np.dtype(other).type(3), 3, np.array(3, other)):
        one.options["lengths"] = length
        y, _ = layer_of(one)(one.x, **uneven(one))
        assert y[:3].any(axis=1).all()
        assert not y[3:].any()


def test_arguments_have_names():
    layer = make_layer("gru", 3, 4)
    x = np.ones((2, 3, 3))
    for call in (layer, layer.forward, rnnfast.Bidirectional(layer), rnnfast.Bidirectional(layer).forward):
        with pytest.raises(TypeError, match="positional"):
            call(x, None, [1, 2, 2])


# --- the same bits


@pytest.mark.parametrize("absent", [{"dy": None}, {"dstate": None}, {"state": None}, {"dy": None, "dstate": None}])
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_none_is_zeros(variant, kind, absent):
    p = uneven_problem(kind, variant, 9, 40, 3, 5, dtype=np.float32, num_layers=2, bidirectional=True)
    layer, zeros, none = layer_of(p), copy(p), copy(p)
    for name in absent:
        setattr(none, name, None)
        value = getattr(p, name)
        filled = tuple(map(np.zeros_like, members(value)))
        setattr(zeros, name, filled if isinstance(value, tuple) else filled[0])
    for checkpoint in (None, 1):
        assert_same_bits(run(layer, none, checkpoint), run(layer, zeros, checkpoint))
    if has_c(p.cell) and "dy" not in absent:
        name = next(iter(absent))
        for k in range(2):
            setattr(none, name, tuple(None if j == k else m for j, m in enumerate(getattr(p, name))))
            setattr(zeros, name, tuple(np.zeros_like(m) if j == k else m for j, m in enumerate(getattr(p, name))))
            for checkpoint in (None, 1):
                assert_same_bits(run(layer, none, checkpoint), run(layer, zeros, checkpoint))


# --- no rows and no steps


def test_cells_and_steps_of_shapes():
    layer = rnnfast.LSTM(3, 5, num_layers=2, proj_size=2, bidirectional=True)
    for x, batch in ((np.ones((7, 4, 3)), (4,)), (np.ones((7, 3)), ())):
        y, _, tape = layer.forward(x)
        assert tape.cells.shape == (4, 7, *batch, 5)
        assert layer.backward(tape, y, per_step=True).h.shape == (4, 7, *batch, 2)
        assert layer.backward(tape, y).h is None
        assert len(layer.backward(tape, y, per_step=True)) == 3
