"""Learned initial states: where they stand in for zeros, their gradients, and their files."""

import pickle

import numpy as np
import pytest
from support.cells import make_layer
from support.compare import assert_same_bits, central_differences, members, named
from support.layers import outputs

import rnnfast
from rnnfast.diagnostics import gradient_flow
from rnnfast.training import Adam

T, N, I, H = 6, 3, 4, 5
STACKS = {
    "plain": {},
    "reverse": {"reverse": True},
    "deep both": {"num_layers": 2, "bidirectional": True},
    "batch first": {"batch_first": True, "num_layers": 2},
}
RAGGED = {
    "whole": {},
    "lengths": {"lengths": [6, 0, 3]},
    "resets": {"reset": np.arange(T * N).reshape(T, N) % 4 == 1},
}


def learned(variant, rng, **options):
    """A layer with random initial states, and one without that has the same other parameters."""
    layer = make_layer(variant, I, H, init_state=True, **options)
    plain = make_layer(variant, I, H, **options)
    own = [name for name in layer.parameters if name not in plain.parameters]
    for name in own:
        assert not layer.parameters[name].any()
        layer.parameters[name][:] = rng.standard_normal(layer.parameters[name].shape)
    for name, array in plain.parameters.items():
        assert layer.parameters[name].tobytes() == array.tobytes()  # the same seed, the same values
    return layer, plain, own


def state_of(layer, own, rows):
    """The learned states in the form of the argument `state`, for some rows or, if that is None, unbatched."""
    kinds = ["h0", "c0"][: 1 + layer.engine.info.has_c]
    stacked = (np.stack([layer.parameters[name] for name in own if name.startswith(kind)]) for kind in kinds)
    states = tuple(one if rows is None else np.repeat(one[:, None], rows, axis=1) for one in stacked)
    return states if len(states) == 2 else states[0]


@pytest.mark.parametrize("ragged", RAGGED.values(), ids=list(RAGGED))
@pytest.mark.parametrize("stack", STACKS.values(), ids=list(STACKS))
def test_stand_in_for_a_state_that_is_not_passed(variant, stack, ragged, dtype, rng):
    layer, plain, own = learned(variant, rng, dtype=dtype, **stack)
    assert own == [
        f"{kind}_l{k}{end}"
        for kind in ["h0", "c0"][: 1 + layer.engine.info.has_c]
        for k in range(layer.num_layers)
        for end in ["", "_reverse"][: 1 + layer.bidirectional]
    ]
    first = layer.batch_first
    ragged = {name: np.array(value).T if first else value for name, value in ragged.items()}
    x = rng.standard_normal((N, T, I) if first else (T, N, I)).astype(dtype)
    state = state_of(layer, own, N)
    expected = outputs(*plain(x, state, **ragged))
    for _ in range(3):  # later calls would be prepared
        assert_same_bits(outputs(*layer(x, **ragged)), expected)
    layer.freeze()
    for _ in range(3):
        assert_same_bits(outputs(*layer(x, **ragged)), expected)
    dy = rng.standard_normal(expected["y"].shape).astype(dtype)
    y, end, tape = plain.forward(x, state, **ragged)
    of_plain = plain.backward(tape, dy, end)
    for options in ({}, {"checkpoint": 2}):
        y, end, tape = layer.forward(x, **ragged, **options)
        grads = layer.backward(tape, dy, end)
        own_grads = {name: grads.parameters.pop(name) for name in own}
        assert_same_bits(named(y, end, *grads), named(y, end, *of_plain))
        exact = (row.sum(axis=0, dtype=np.float64) for member in members(of_plain.state) for row in member)
        sums = [one.astype(dtype) for one in exact]
        assert_same_bits(own_grads, dict(zip(own, sums, strict=True)))


def test_unbatched_and_empty(variant, rng):
    layer, plain, own = learned(variant, rng, num_layers=2)
    x = rng.standard_normal((T, I)).astype(np.float32)
    assert_same_bits(outputs(*layer(x)), outputs(*plain(x, state_of(layer, own, None))))
    y, _, tape = layer.forward(x)
    grads = layer.backward(tape, y)
    assert_same_bits(
        {name: grads.parameters[name] for name in own},
        dict(zip(own, (row for member in members(grads.state) for row in member), strict=True)),
    )
    y, _, tape = layer.forward(np.empty((T, 0, I), np.float32))
    assert not any(grad.any() for grad in layer.backward(tape, y).parameters.values())


def test_gradients_match_central_differences(variant, rng):
    layer, _, own = learned(variant, rng, num_layers=2, dtype=np.float64)
    x, w = rng.standard_normal((T, N, I)), rng.standard_normal((T, N, H))
    _, _, tape = layer.forward(x, lengths=[6, 4, 1])
    grads = layer.backward(tape, w).parameters
    for name in own:
        expected = central_differences(lambda: (w * layer(x, lengths=[6, 4, 1])[0]).sum(), layer.parameters[name])
        np.testing.assert_allclose(grads[name], expected, rtol=1e-6, atol=1e-8, err_msg=name)


def test_a_state_that_is_passed_gives_them_no_gradient(rng):
    layer, plain, own = learned("lstm", rng)
    x = rng.standard_normal((T, N, I)).astype(np.float32)
    h, c = state_of(layer, own, N)
    other = rng.standard_normal(h.shape).astype(np.float32)
    for given, whole, without in [
        ((other, other), (other, other), own),
        ((other, None), (other, c), own[:1]),
        ((None, other), (h, other), own[1:]),
    ]:
        assert_same_bits(outputs(*layer(x, given)), outputs(*plain(x, whole)))
        y, _, tape = layer.forward(x, given)
        grads = layer.backward(tape, y).parameters
        assert {name for name in own if not grads[name].any()} == set(without)


def test_streams_start_from_them(variant, rng):
    layer, _, own = learned(variant, rng, num_layers=2)
    x = rng.standard_normal((T, N, I)).astype(np.float32)
    expected = outputs(*layer(x))
    stream, initial = layer.stream(N), members(state_of(layer, own, N))
    for name in own:
        layer.parameters[name][:] = 7  # streams have their own copy
    for start in (lambda: None, stream.reset, lambda: setattr(stream, "state", None)):
        start()
        assert [one.tobytes() for one in members(stream.state)] == [one.tobytes() for one in initial]
        y = np.concatenate([stream(x[:2]), stream.step(x[2])[None], stream(x[3:])])
        assert_same_bits(outputs(y, stream.state), expected)
    stream.reset([1])
    for one, start, end in zip(members(stream.state), initial, list(expected.values())[1:], strict=True):
        np.testing.assert_array_equal(one[:, 1], start[:, 1])
        np.testing.assert_array_equal(one[:, ::2], end[:, ::2])


def test_pools_start_from_them(variant, rng):
    layer, _, own = learned(variant, rng, num_layers=2)
    x = rng.standard_normal((2, I)).astype(np.float32)
    pool = rnnfast.StreamPool(layer, 3)
    for _ in range(2):  # the second time in slots that were used
        ids = [pool.join(), pool.join()]
        assert pool.step(ids, x).tobytes() == layer(x[None])[0][0].tobytes()
        pool.leave(ids[0])
        pool.leave(ids[1])
    fresh = pool.leave(pool.join())
    for one, start in zip(members(fresh), members(state_of(layer, own, None)), strict=True):
        assert one.tobytes() == start.tobytes()


def test_the_flow_of_gradients_starts_from_them(variant, rng):
    layer, _, own = learned(variant, rng, num_layers=2, dtype=np.float64)
    x = rng.standard_normal((T, N, I))
    ours, given = gradient_flow(layer, x), gradient_flow(layer, x, state_of(layer, own, N))
    for name in ("norms", "singular_values", "state_singular_values", "saturation"):
        np.testing.assert_equal(getattr(ours, name), getattr(given, name))


def test_gradients_over_many_rows_are_accurate(rng):
    layer = rnnfast.RNN(1, 2, init_state=True, rng=0)
    x = rng.standard_normal((1, 300_000, 1)).astype(np.float32)
    y, _, tape = layer.forward(x)
    grads = layer.backward(tape, np.ones_like(y))
    exact = grads.state.astype(np.float64).sum(axis=(0, 1))
    np.testing.assert_allclose(grads.parameters["h0_l0"], exact, rtol=1e-6)


def test_changes_of_the_layout_are_refused(rng):
    layer, _, _ = learned("gru", rng)
    x = rng.standard_normal((T, N, I)).astype(np.float32)
    layer.parameters["h0_l0"].dtype = np.int32
    for call in (lambda: layer(x), lambda: layer.forward(x), layer.stream):
        with pytest.raises(ValueError, match="the dtype or the layout of parameters"):
            call()


def test_bidirectional(rng):
    layer = rnnfast.Bidirectional(rnnfast.LSTM(I, H, init_state=True, rng=0))
    assert layer.backward_layer.init_state
    for name, array in layer.parameters.items():
        if "0_l0" in name:
            array[:] = rng.standard_normal(H)
    x = rng.standard_normal((T, N, I)).astype(np.float32)
    sides = (layer.forward_layer(x), layer.backward_layer(x))
    y, _, tape = layer.forward(x)
    assert y.tobytes() == np.concatenate([side[0] for side in sides], axis=-1).tobytes()
    assert all(grad.any() for grad in layer.backward(tape, y).parameters.values())


def test_files(tmp_path, rng):
    layer, plain, own = learned("gru", rng, num_layers=2)
    assert repr(layer).startswith("GRU(4, 5, num_layers=2, init_state=True)")
    x = rng.standard_normal((T, N, I)).astype(np.float32)
    layer.save(tmp_path / "model")
    stored = rnnfast.load(tmp_path / "model"), rnnfast.from_state_dict(layer.state_dict())
    for other in (*stored, pickle.loads(pickle.dumps(layer))):
        assert other.init_state
        assert_same_bits(outputs(*other(x)), outputs(*layer(x)))
    with pytest.raises(ValueError, match=r"rnnfast\.load"):
        plain.load(tmp_path / "model")
    with pytest.raises(ValueError, match="h0_l0 is missing; h0_l1 is missing"):
        layer.load_state_dict(plain.state_dict())
    with pytest.raises(AttributeError, match="init_state"):
        layer.init_state = False
    with pytest.raises(TypeError, match="init_state must be True or False"):
        rnnfast.GRU(I, H, init_state=1)
    layer.freeze()
    with pytest.raises(ValueError, match="read-only"):
        layer.parameters[own[0]][0] = 1


def test_learning():
    """The task is to output a constant before any input has arrived."""
    layer = rnnfast.GRU(1, 8, init_state=True, rng=0)
    readout, x = rnnfast.Linear(8, 1, rng=1), np.zeros((1, 4, 1), np.float32)
    optimizer = Adam(layer.parameters, lr=0.05)
    losses = []
    for _ in range(100):
        h, _, tape = layer.forward(x)
        y, readout_tape = readout.forward(h)
        losses.append(float(((y - 0.5) ** 2).mean()))
        dh = readout.backward(readout_tape, 2 * (y - 0.5) / y.size).x
        optimizer.step(layer.backward(tape, dh).parameters)
    assert losses[-1] < 1e-3 * losses[0]
    assert layer.parameters["h0_l0"].any()
