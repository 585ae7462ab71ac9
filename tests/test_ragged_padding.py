"""Padding and masked-out steps affect nothing; rows and batches may have no step at all."""

from copy import copy

import numpy as np
import pytest
from support.cells import DIRECTIONS
from support.compare import assert_close, assert_same_bits, members
from support.layers import outputs
from support.ragged import (
    KINDS,
    WITHOUT_RESET_STATE,
    is_real,
    layer_of,
    of_rows,
    run,
    shown,
    swapped,
    uneven,
    uneven_problem,
    without_cells,
)

# --- padding affects nothing


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("checkpoint", [None, 1])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_masked_out_steps_affect_nothing(variant, kind, direction, checkpoint, value):
    p = uneven_problem(
        kind, variant, 20, 30, 4, 9, num_layers=2, dropout=True, dtype=np.float32, **DIRECTIONS[direction]
    )
    expected = run(layer_of(p), p, checkpoint)
    real, ignored = is_real(p), ~shown(p)
    if kind != "reset":
        assert ignored.any()
        assert not real.all()
    assert not expected["y"][ignored].any()
    assert not expected["dx"][~real].any()
    assert not expected["dh"][:, ~real].any()
    assert expected["dx"][real].any(axis=-1).mean() > 0.9
    q = copy(p)
    q.x, q.dy, q.options = p.x.copy(), p.dy.copy(), {**p.options, "masks": p.options["masks"].copy()}
    q.x[~real] = q.dy[ignored] = value
    q.options["masks"][:, ~real] = np.nan
    for frozen in (False, True):
        layer = layer_of(q)
        if frozen:
            layer.freeze()
        assert_same_bits(run(layer, q, checkpoint), expected)
        called = outputs(*layer(q.x, q.state, **uneven(q)))
        assert_same_bits(called, outputs(*layer(p.x, p.state, **uneven(p))))


@pytest.mark.parametrize("checkpoint", [None, 1])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_held_outputs_take_gradients(variant, direction, checkpoint):
    """dy at a masked-out step adds to dy of the step whose output it repeats."""
    p = uneven_problem("mask", variant, 9, 90, 3, 5, **DIRECTIONS[direction])
    q = copy(p)
    q.options = {**p.options, "zero_masked": True}
    q.dy = np.zeros_like(p.dy)
    mask, D = p.options["mask"], 1 + p.options["bidirectional"]
    for k, back in enumerate([False, True] if D == 2 else [p.options["reverse"]]):
        columns = slice(k * p.dy.shape[2] // D, (k + 1) * p.dy.shape[2] // D)
        for n in range(90):
            source = None
            for t in range(9)[:: -1 if back else 1]:
                source = t if mask[t, n] else source
                if source is not None:
                    q.dy[source, n, columns] += p.dy[t, n, columns]
    got, expected = run(layer_of(p), p, checkpoint), run(layer_of(q), q, checkpoint)
    del got["y"], expected["y"]
    assert_close(got, expected, 1e-14)


@pytest.mark.parametrize("checkpoint", [None, 1])
@pytest.mark.parametrize("kind", ["lengths", "mask", "zero_masked", "mask and reset", "lengths and reset"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_rows_without_steps(variant, kind, direction, checkpoint):
    """Rows without steps return their initial state, even NaN, and pass its gradient through."""
    p = uneven_problem(kind, variant, 6, 9, 3, 5, dtype=np.float32, **DIRECTIONS[direction])
    none = np.arange(9) % 3 == 1
    for name, value in uneven(p).items():
        if name in ("lengths", "mask"):
            value[..., none] = 0
    if "reset" in p.options:
        p.options["reset"][1:, none] = False
    expected = run(layer_of(p), p, checkpoint)
    for member, start in ((p.state, "state"), (p.dstate, "dstate")):
        for i, array in enumerate(members(member)):
            np.testing.assert_array_equal(expected[f"{start} {i}"][:, none], array[:, none])
    for name in ("y", "dx"):
        assert not expected[name][:, none].any()
    for state in (p.state, p.dstate):
        for array in members(state):
            array[:, none] = np.nan
    got = run(layer_of(p), p, checkpoint)
    for name, value in got.items():
        if "state" in name:
            assert np.isnan(value[:, none]).all(), name
        elif name == "cells" and "mask" in p.options:
            assert np.isnan(value[:, :, none]).all()
    some = np.flatnonzero(~none)
    assert_same_bits(of_rows(got, some), of_rows(expected, some))
    assert_same_bits(
        *({k: v for k, v in r.items() if k.startswith(("dweight", "dbias", "y", "dx"))} for r in (got, expected))
    )


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_nan_stays_in_its_row(variant, kind):
    p = uneven_problem(kind, variant, 9, 7, 4, 9, num_layers=2, dtype=np.float32, bidirectional=True)
    for name in set(uneven(p)) & {"lengths", "mask"}:
        p.options[name][..., 3] = 9
    clean = run(layer_of(p), p)
    others = [0, 1, 2, 4, 5, 6]
    for place in ("x", "state", "dy", "dstate"):
        q = copy(p)
        values = tuple(member.copy() for member in members(getattr(p, place)))
        for value in values:
            value[2 if place in ("x", "dy") else 0, 3, 0] = np.nan
        setattr(q, place, values if isinstance(getattr(p, place), tuple) else values[0])
        for checkpoint in (None, 1):
            got = run(layer_of(p), q, checkpoint)
            expected = clean if checkpoint is None else without_cells(clean)
            assert_same_bits(of_rows(got, others), of_rows(expected, others))
            assert any(np.isnan(value).any() for value in got.values())


# --- no rows and no steps


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("checkpoint", [None, 1, "auto"])
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_no_rows(variant, kind, checkpoint, batch_first):
    p = uneven_problem(kind, variant, 4, 0, 3, 5, num_layers=2, bidirectional=True, dtype=np.float32)
    q = swapped(p) if batch_first else p
    for lists in (False, True):
        if lists:
            for name in {"lengths"} | ({"mask", "reset"} if not batch_first else set()):
                if name in q.options:
                    q.options[name] = q.options[name].tolist()
        layer = layer_of(p, batch_first=batch_first)
        results = run(layer, q, checkpoint)
        assert results["y"].shape == ((0, 4) if batch_first else (4, 0)) + (10,)
        assert results["dx"].shape == q.x.shape
        assert results["dh"].shape == (4, 4, 0, 5)
        assert results.get("cells", np.empty((4, 4, 0))).shape[:3] == (4, 4, 0)
        assert not any(value.any() for value in results.values())
        y, state = layer(q.x, q.state, **uneven(q))
        assert y.shape == results["y"].shape
        assert all(member.shape[:2] == (4, 0) for member in members(state))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("checkpoint", [None, 1, "auto"])
@pytest.mark.parametrize("kind", [*WITHOUT_RESET_STATE, "lengths and reset to a state"])
def test_no_steps(variant, kind, checkpoint, direction):
    """If no row has a step, the state and its gradient pass through unchanged."""
    if kind == "reset":
        return
    p = uneven_problem(kind, variant, 6, 5, 3, 4, num_layers=2, dropout=True, **DIRECTIONS[direction])
    for name in {"lengths", "mask"} & set(p.options):
        p.options[name][...] = 0
    p.x[...] = p.dy[...] = np.nan
    for start in (p.state, None):
        p.state = start
        results = run(layer_of(p), p, checkpoint)
        for i, member in enumerate(members(p.dstate)):
            np.testing.assert_array_equal(results[f"state {i}"], 0 if start is None else members(start)[i])
            np.testing.assert_array_equal(results[f"dstate {i}"], member)
        if "cells" in results:
            held = (
                0
                if start is None or "mask" not in p.options
                else np.broadcast_to(start[1][:, None], results["cells"].shape)
            )
            np.testing.assert_array_equal(results["cells"], held)
        for name, value in results.items():
            assert "state" in name or name == "cells" or not value.any(), name
        y, state = layer_of(p)(p.x, p.state, **uneven(p))
        assert not y.any()
        for i, member in enumerate(members(state)):
            assert member.tobytes() == results[f"state {i}"].tobytes()
