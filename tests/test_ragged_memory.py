"""Ownership of the arrays of a call with lengths, masks or resets."""

from copy import copy

import numpy as np
import pytest
from support.compare import assert_same_bits, members
from support.ragged import (
    KINDS,
    WITHOUT_RESET_STATE,
    cast,
    cells_of,
    layer_of,
    over_members,
    run,
    run_backward,
    uneven,
    uneven_problem,
)

import rnnfast

# --- ownership


@pytest.mark.parametrize("checkpoint", [None, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_backward_does_not_see_later_changes(variant, kind, checkpoint):
    """Lengths, masks, resets, initial states and parameters may change after forward."""
    p = uneven_problem(kind, variant, 70, 6, 3, 4, dtype=np.float32, bidirectional=True, num_layers=2)
    q = copy(p)
    q.state = cast(p.state, np.float32)
    q.options = {**p.options, **{k: over_members(v, np.array) for k, v in uneven(p).items() if k != "zero_masked"}}
    expected = run(layer_of(p), p, checkpoint)
    for frozen in (False, True):
        layer = layer_of(p)
        if frozen:
            layer.freeze()
        y, state, tape = layer.forward(q.x, q.state, **uneven(q), checkpoint=checkpoint)
        layer.unfreeze()
        given = [one for name in KINDS[kind] if name != "zero_masked" for one in members(q.options[name])]
        arrays = [*layer.parameters.values(), *members(q.state), *given]
        before = [array.copy() for array in arrays]
        for array in arrays:
            array[...] = 1 - array
        other = layer.forward(q.x, q.state, checkpoint=checkpoint)  # which uses what memory there is
        layer.backward(other[2], other[0])
        results = {**run_backward(layer, p, y, state, tape), **cells_of(p, tape, checkpoint)}
        assert_same_bits(results, expected)
        assert_same_bits({**run_backward(layer, p, y, state, tape), **cells_of(p, tape, checkpoint)}, expected)
        for array, values in zip(arrays, before, strict=True):
            array[...] = values


@pytest.mark.parametrize("checkpoint", [None, 1])
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_arguments_are_not_written_to(kind, checkpoint):
    p = uneven_problem(kind, "lstm", 40, 7, 3, 4, dtype=np.float32, bidirectional=True)
    layer = layer_of(p)
    given = [one for name, value in uneven(p).items() if name != "zero_masked" for one in members(value)]
    arrays = [p.x, p.dy, *members(p.state), *members(p.dstate), *given, *layer.parameters.values()]
    before = [array.copy() for array in arrays]
    results = run(layer, p, checkpoint)
    for array, values in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, values)
    assert not any(np.may_share_memory(array, value) for array in arrays for value in results.values())
    for name, value in results.items():
        assert value.flags.writeable == (name != "y"), name


def test_cells_are_copies():
    p = uneven_problem("mask", "lstm", 5, 3, 2, 4)
    y, state, tape = layer_of(p).forward(p.x, p.state, **uneven(p))
    cells = tape.cells
    kept = cells.copy()
    cells[...] = np.nan
    assert tape.cells.tobytes() == kept.tobytes()
    assert run_backward(tape._owner, p, y, state, tape)["dx"].tobytes() == run(layer_of(p), p)["dx"].tobytes()


# --- the same bits


@pytest.mark.cover(1, full=1)
@pytest.mark.parametrize("kind", WITHOUT_RESET_STATE)
def test_memory_of_large_results_is_not_reused_while_in_use(variant, kind):
    """Memory of large results is reused, never while an array of it is alive, and old values affect nothing."""
    p = uneven_problem(kind, variant, 60, 32, 8, 200, dtype=np.float32)
    layer = layer_of(p)
    expected = {name: value.copy() for name, value in run(layer, p).items()}
    assert expected["y"].nbytes >= rnnfast.buffers.LARGE
    for _ in range(3):
        y, _ = layer(p.x, p.state, **uneven(p))
        assert y.tobytes() == expected["y"].tobytes()
        kept = run(layer, p)
        y[...] = np.nan
        del y
        grads = layer.backward(layer.forward(p.x)[2], p.dy, per_step=True)
        for array in (grads.x, grads.h, *grads.parameters.values()):
            array[...] = np.nan
        del grads, array
        assert_same_bits(kept, expected)
