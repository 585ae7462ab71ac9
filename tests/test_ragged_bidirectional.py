"""Bidirectional on ragged batches, against the reference in both directions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cells import VARIANTS, has_c, make_layer
from support.compare import assert_close, assert_same_bits, members, named
from support.problems import TOLERANCE
from support.ragged import (
    KINDS,
    WITHOUT_RESET_STATE,
    extras_of,
    is_real,
    isas,
    layer_of,
    problems,
    run,
    shown,
    swapped,
    unbatched,
    uneven,
    uneven_problem,
)

import rnnfast
from rnnfast import functional, reference

MERGES = {
    "concat": (lambda f, b: np.concatenate((f, b), -1), lambda dy, _f, _b: np.split(dy, 2, -1)),
    "sum": (lambda f, b: f + b, lambda dy, _f, _b: (dy, dy)),
    "mul": (lambda f, b: f * b, lambda dy, f, b: (dy * b, dy * f)),
    "mean": (lambda f, b: (f + b) / 2, lambda dy, _f, _b: (dy / 2, dy / 2)),
    None: (lambda f, b: (f, b), lambda dy, _f, _b: dy),
}


def two_layers(kind, seed=0, dtype=np.float64, other="gru"):
    """Problems for a forward LSTM of two layers and for a backward layer, on the same batch."""
    p = uneven_problem(kind, "lstm", 7, 90, 3, 4, num_layers=2, dtype=dtype, seed=seed)
    q = uneven_problem(kind, other, 7, 90, 3, 4, reverse=True, dtype=dtype, seed=seed)
    q.x = p.x
    return p, q


@pytest.mark.parametrize("checkpoint", [None, 2])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", ["gru", "lstm_projected"])
def test_bidirectional(kind, merge, turned, checkpoint, other, dtype):
    for seed in range(1):
        p, q = two_layers(kind, seed, dtype, other=other)
        back = layer_of(q)
        if turned:
            q.options["reverse"] = False
            back = layer_of(q)
            q.options["reverse"] = True
        layer = rnnfast.Bidirectional(layer_of(p), back, merge)
        combine, split = MERGES[merge]

        y_f, end_f, tape_f = reference.forward(p.cell, p.parameters, p.x, p.state, **p.options)
        y_b, end_b, tape_b = reference.forward(q.cell, q.parameters, p.x, q.state, **q.options)
        expected_y = combine(y_f, y_b)
        rng = np.random.default_rng(seed)
        width = np.shape(expected_y)[-1]
        dy = (p.dy, q.dy) if merge is None else rng.uniform(-1, 1, (7, 90, width)).astype(dtype)
        dy_f, dy_b = split(dy, y_f, y_b)
        ours = reference.backward(tape_f, dy_f, p.dstate, per_step=True)
        theirs = reference.backward(tape_b, dy_b, q.dstate, per_step=True)
        expected = {"y": np.asarray(expected_y), "dx": ours[0] + theirs[0], "dh 0": ours[3], "dh 1": theirs[3]}
        expected.update({f"dforward.{name}": value for name, value in ours[2].items()})
        expected.update({f"dbackward.{name}": value for name, value in theirs[2].items()})
        if checkpoint is None and other != "gru":
            expected.update({"cells 0": tape_f.cells, "cells 1": tape_b.cells})
        for name, pair in {"state": (end_f, end_b), "dstate": (ours[1], theirs[1])}.items():
            for k in range(2):
                expected.update({f"{name} {k} {i}": member for i, member in enumerate(members(pair[k]))})

        given = uneven(p)
        if "reset_state" in given:
            given["reset_state"] = p.options["reset_state"], q.options["reset_state"]
            expected.update(
                {f"dreset {k} {i}": member for k in range(2) for i, member in enumerate(members((ours, theirs)[k][4]))}
            )
        y, end, tape = layer.forward(p.x, (p.state, q.state), **given, checkpoint=checkpoint)
        grads = layer.backward(tape, dy, (p.dstate, q.dstate), per_step=True)
        got = {"y": np.asarray(y), "dx": grads.x, "dh 0": grads.h[0], "dh 1": grads.h[1]}
        got.update({f"d{name}": value for name, value in grads.parameters.items()})
        if "reset_state" in given:
            got.update({f"dreset {k} {i}": m for k in range(2) for i, m in enumerate(members(grads.reset_state[k]))})
        if checkpoint is None and other != "gru":
            got.update({f"cells {k}": cells for k, cells in enumerate(tape.cells)})
        for name, pair in {"state": end, "dstate": grads.state}.items():
            for k in range(2):
                got.update({f"{name} {k} {i}": member for i, member in enumerate(members(pair[k]))})
        assert_close(got, expected, TOLERANCE[np.dtype(dtype)])
        called, end = layer(p.x, (p.state, q.state), **given)
        assert np.asarray(called).tobytes() == got["y"].tobytes()
        for k in range(2):
            for i, member in enumerate(members(end[k])):
                assert member.tobytes() == got[f"state {k} {i}"].tobytes()


@given(problems(WITHOUT_RESET_STATE), st.sampled_from(list(VARIANTS)), isas, st.booleans(), st.sampled_from([None, 1]))
def test_a_backward_layer_with_and_without_reverse(p, other, isa, batch_first, checkpoint):
    """The bits agree, except in sums over the parts of a row."""
    p.options["masks"] = None
    I, H = p.input_size, p.proj_size or p.hidden_size
    options = {"dtype": p.dtype, "batch_first": batch_first}
    with functional.use_isa(isa):
        ours = make_layer(other, I, H, **options)
        theirs = [make_layer(p.variant, I, H, reverse=reverse, **options) for reverse in (True, False)]
    q = swapped(p) if batch_first else p
    start = tuple(member[:1] for member in members(p.state))
    start = start if has_c(p.cell) else start[0]
    results = []
    for layer in (rnnfast.Bidirectional(ours, one) for one in theirs):
        y, (_, end), tape = layer.forward(q.x, (None, start), **uneven(q), checkpoint=checkpoint)
        grads = layer.backward(tape, np.cos(y), (None, end), per_step=True)
        own = {**named(y, end, grads.x, grads.state[1], grads.parameters), "dh": grads.h[1]}
        if checkpoint is None and has_c(p.cell) and has_c(other):
            own["cells"] = tape.cells[1]
        results.append(own)
    exact = [{k: v for k, v in r.items() if k in ("y", "dx", "dh", "cells") or k.startswith("state")} for r in results]
    assert_same_bits(*exact)
    if "reset" not in p.options:
        assert_same_bits(*results)
    else:
        assert_close(*results, 4 * TOLERANCE[p.dtype])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", WITHOUT_RESET_STATE)
def test_bidirectional_is_a_layer_of_both_directions(variant, kind, turned):
    p = uneven_problem(kind, variant, 7, 6, 3, 5, dtype=np.float32, bidirectional=True)
    expected = run(layer_of(p), p)
    I, H = 3, 5
    extra = [{name: value[k : k + 1] for name, value in extras_of(p).items()} for k in range(2)]
    layer = rnnfast.Bidirectional(
        make_layer(variant, I, H, **extra[0]), make_layer(variant, I, H, reverse=not turned, **extra[1])
    )
    names = layer.forward_layer.parameters
    ours = {name: p.parameters[name] for name in names}
    theirs = {name: p.parameters[name + "_reverse"] for name in names}
    layer.forward_layer.load_state_dict(ours)
    layer.backward_layer.load_state_dict(theirs)

    def halves(state):
        parts = [tuple(member[k : k + 1] for member in members(state)) for k in range(2)]
        return parts if isinstance(state, tuple) else [part[0] for part in parts]

    y, end, tape = layer.forward(p.x, halves(p.state), **uneven(p))
    grads = layer.backward(tape, p.dy, halves(p.dstate), per_step=True)

    def joined(pair):
        arrays = tuple(np.concatenate(both) for both in zip(*map(members, pair), strict=True))
        return arrays if has_c(p.cell) else arrays[0]

    names = {f"forward.{k}": k for k in ours} | {f"backward.{k}": f"{k}_reverse" for k in theirs}
    parameters = {names[k]: v for k, v in grads.parameters.items()}
    got = named(y, joined(end), grads.x, joined(grads.state), parameters)
    got["dh"] = np.concatenate(grads.h)
    if has_c(p.cell):
        got["cells"] = np.concatenate(tape.cells)
    assert_close({k: got[k] for k in expected}, expected, TOLERANCE[p.dtype])
    assert got["y"].tobytes() == expected["y"].tobytes()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("merge", ["concat", "sum", "mean"])
@pytest.mark.parametrize("kind", WITHOUT_RESET_STATE)
def test_bidirectional_masked_out_steps_affect_nothing(kind, merge, turned):
    p, _ = two_layers(kind)
    layer = rnnfast.Bidirectional(
        make_layer("gru", 3, 4, dtype="f8"), make_layer("lstm", 3, 4, reverse=not turned, dtype="f8"), merge
    )
    p.options.update(bidirectional=True)
    gaps = ~is_real(p)
    # dy where neither direction shows anything.
    D = p.dy.shape[2]
    p.dy = np.concatenate([p.dy, p.dy], -1)
    ignored = ~shown(p)
    results = []
    for value in (0, np.nan, -np.inf):
        x = np.where(gaps[..., None], value, p.x)
        y, _, tape = layer.forward(x, **uneven(p))
        dy = np.ones_like(y)
        nothing = ignored if merge == "concat" else ignored[..., :D] & ignored[..., D:]
        dy[nothing] = value
        grads = layer.backward(tape, dy, per_step=True)
        assert not grads.x[gaps].any()
        results.append({"y": y, "dx": grads.x, "h0": grads.h[0], "h1": grads.h[1], **grads.parameters})
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", WITHOUT_RESET_STATE)
def test_bidirectional_layouts(kind, turned):
    p, _ = two_layers(kind)
    layers = [
        rnnfast.Bidirectional(
            make_layer("lstm", 3, 4, batch_first=first), make_layer("lstm", 3, 4, batch_first=first, reverse=not turned)
        )
        for first in (False, True)
    ]
    q, one = swapped(p), unbatched(p)
    y, end, tape = layers[0].forward(p.x, **uneven(p))
    grads = layers[0].backward(tape, y, per_step=True)
    y_first, _, tape_first = layers[1].forward(q.x, **uneven(q))
    first = layers[1].backward(tape_first, y_first, per_step=True)
    assert_same_bits({"y": y_first.swapaxes(0, 1), "dx": first.x.swapaxes(0, 1)}, {"y": y, "dx": grads.x})
    assert_same_bits(first.parameters, grads.parameters)
    for k in range(2):
        assert_same_bits({"h": first.h[k], "c": tape_first.cells[k]}, {"h": grads.h[k], "c": tape.cells[k]})
    for layer in layers:
        y_one, end_one, tape_one = layer.forward(one.x, **uneven(one))
        alone = layer.backward(tape_one, y_one, per_step=True)
        assert_same_bits({"y": y_one, "dx": alone.x}, {"y": y[:, 0], "dx": grads.x[:, 0]})
        for k in range(2):
            assert_same_bits(
                {"h": alone.h[k], "cells": tape_one.cells[k], "end": end_one[k][1]},
                {"h": grads.h[k][:, :, 0], "cells": tape.cells[k][:, :, 0], "end": end[k][1][:, 0]},
            )
