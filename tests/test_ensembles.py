"""Ensembles: each member gets bitwise the results of its layer alone; and the errors of their arguments."""

import copy
import os
import pickle
import time

import numpy as np
import pytest
from support.cells import VARIANTS, make_layer

import rnnfast
from rnnfast.functional import isas, use_isa

M, T, N, I, H = 5, 7, 3, 4, 6
OPTIONS = [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True, "reverse": True}]


def bits(*values):
    return [value.tobytes() for value in values]


def as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


def members_of(state, m):
    return tuple(one[m] for one in state) if isinstance(state, tuple) else state[m]


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shared", [False, True])
def test_members_get_the_bits_of_their_layers(variant, options, dtype, isa, shared):
    with use_isa(isa):
        layers = [make_layer(variant, I, H, dtype=dtype, **options | {"rng": seed}) for seed in range(M)]
        ensemble = rnnfast.Ensemble(layers)
    rng = np.random.default_rng(0)
    shape = (N, T, I) if options.get("batch_first") else (T, N, I)
    x = rng.standard_normal(shape if shared else (M, *shape)).astype(dtype)
    y, last = ensemble(x)
    state = tuple(rng.standard_normal(one.shape).astype(dtype) for one in as_tuple(last))
    state = state if isinstance(last, tuple) else state[0]
    y, last, tape = ensemble.forward(x, state)
    assert bits(y, *as_tuple(last)) == bits(ensemble(x, state)[0], *as_tuple(ensemble(x, state)[1]))
    dy = rng.standard_normal(y.shape).astype(dtype)
    found = ensemble.backward(tape, dy, state)
    dx = []
    for m, layer in enumerate(layers):
        own_y, own_last, own_tape = layer.forward(x if shared else x[m], members_of(state, m))
        assert bits(y[m], *as_tuple(members_of(last, m))) == bits(own_y, *as_tuple(own_last))
        own = layer.backward(own_tape, dy[m], members_of(state, m))
        assert bits(*as_tuple(members_of(found.state, m))) == bits(*as_tuple(own.state))
        for name, gradient in own.parameters.items():
            assert bits(found.parameters[name][m]) == bits(gradient)
        dx.append(own.x)
    np.testing.assert_array_equal(found.x, np.sum(dx, axis=0) if shared else np.stack(dx))


@pytest.mark.parametrize("variant", VARIANTS)
def test_frozen_ensembles_have_the_same_bits(variant):
    layers = [make_layer(variant, I, H, dtype=np.float32, rng=seed) for seed in range(M)]
    x = np.random.default_rng(0).standard_normal((T, N, I), np.float32)
    ensemble = rnnfast.Ensemble(layers)

    def results():
        y, last, tape = ensemble.forward(x)
        found = ensemble.backward(tape, y)
        return bits(ensemble(x)[0], y, *as_tuple(last), found.x, *as_tuple(found.state), *found.parameters.values())

    before = results()
    ensemble.freeze()
    ensemble.freeze()
    for array in ensemble.parameters.values():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    with pytest.raises(ValueError, match="read-only"):
        rnnfast.training.SGD(ensemble, lr=0.1).step(dict(ensemble.parameters))
    assert results() == before
    ensemble.unfreeze()
    assert results() == before
    for array in ensemble.parameters.values():
        array[...] *= 0.5
    assert results() != before


def test_a_tape_keeps_the_weights_of_its_call():
    ensemble = rnnfast.Ensemble([rnnfast.GRU(I, H, rng=seed) for seed in range(M)])
    x = np.ones((T, N, I), np.float32)
    y, _, tape = ensemble.forward(x)
    before = ensemble.backward(tape, y).x
    ensemble.parameters["weight_hh_l0"][...] = 0
    ensemble.freeze()
    assert ensemble.forward(x)[0].tobytes() != y.tobytes()
    assert ensemble.backward(tape, y).x.tobytes() == before.tobytes()
    with pytest.raises(ValueError, match="read-only"):
        y[...] = 0


def test_members_can_be_taken_out():
    layers = [rnnfast.RNN(I, H, rng=seed) for seed in range(M)]
    ensemble = rnnfast.Ensemble(layers)
    ensemble.freeze()
    for m in (-1, -M, 0, np.int64(2)):
        member = ensemble[m]
        assert bits(*member.parameters.values()) == bits(*layers[m].parameters.values())
        member.parameters["weight_ih_l0"][...] = 0  # a copy, and not frozen
    part = ensemble[1::2]
    assert isinstance(part, rnnfast.Ensemble)
    assert [bits(*one.parameters.values()) for one in part] == [bits(*one.parameters.values()) for one in layers[1::2]]
    assert repr(part) == "Ensemble(2 x RNN(4, 6))"
    for m in (M, -M - 1):
        with pytest.raises(IndexError, match=f"index {m} is out of range for an ensemble of {M} members"):
            ensemble[m]
    with pytest.raises(TypeError, match="integer"):
        ensemble["0"]


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_batch_without_rows_has_empty_results(batch_first):
    ensemble = rnnfast.Ensemble([rnnfast.LSTM(I, H, batch_first=batch_first, rng=0)] * M)
    x = np.ones((0, T, I) if batch_first else (T, 0, I), np.float32)
    assert ensemble(x)[0].shape == (M, *x.shape[:2], H)
    y, (h, c), tape = ensemble.forward(np.stack([x] * M))
    assert h.shape == c.shape == (M, 1, 0, H)
    found = ensemble.backward(tape, y)
    assert found.x.shape == (M, *x.shape)
    assert not any(array.any() for array in found.parameters.values())


@pytest.mark.parametrize("view", [np.s_[::-1], np.s_[:, ::-1], np.s_[..., ::-1], np.s_[::2, :, :]])
def test_x_may_have_any_strides(view):
    ensemble = rnnfast.Ensemble([rnnfast.GRU(I, H, rng=seed) for seed in range(M)])
    x = np.random.default_rng(0).standard_normal((T, N, I))[view]
    assert ensemble(x)[0].tobytes() == ensemble(np.ascontiguousarray(x, np.float32))[0].tobytes()


@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2 if hasattr(os, "sched_getaffinity") else True, reason="one processor"
)
def test_a_second_thread_takes_members_of_a_small_ensemble(threads):
    """It takes its share of the calling thread's processor time, in the best of some attempts."""
    ensemble = rnnfast.Ensemble([rnnfast.LSTM(16, 16, rng=0)] * 64)
    x = np.ones((20, 1, 16), np.float32)
    ensemble.freeze()

    def own_time(count):
        threads(count)
        begin = time.thread_time()
        for _ in range(20):
            ensemble(x)
        return time.thread_time() - begin

    end = time.monotonic() + 30  # other programs may keep the second processor busy for a while
    while not (is_shared := own_time(2) < 0.8 * own_time(1)) and time.monotonic() < end:
        pass
    assert is_shared


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_threads_gives_the_same_bits(threads, count):
    ensemble = rnnfast.Ensemble([rnnfast.LSTM(32, 64, rng=seed) for seed in range(23)])
    x = np.random.default_rng(0).standard_normal((40, 4, 32), np.float32)
    results = []
    for n in (1, count):
        threads(n)
        y, _, tape = ensemble.forward(x)
        results.append(bits(y, *ensemble.backward(tape, np.ones_like(y)).parameters.values()))
    assert results[0] == results[1]


def test_an_optimizer_updates_each_member_as_its_layer():
    layers = [rnnfast.GRU(I, H, rng=seed) for seed in range(M)]
    ensemble = rnnfast.Ensemble(layers)
    x = np.ones((T, N, I), np.float32)
    for network in (ensemble, *layers):
        y, _, tape = network.forward(x)
        rnnfast.training.Adam(network).step(network.backward(tape, np.ones_like(y)))
    for m, layer in enumerate(layers):
        assert bits(*ensemble[m].parameters.values()) == bits(*layer.parameters.values())


@pytest.mark.parametrize("again", [copy.copy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_have_the_same_parameters_in_their_own_memory(again):
    ensemble = rnnfast.Ensemble([rnnfast.RNN(I, H, rng=seed) for seed in range(M)])
    other = again(ensemble)
    assert len(other) == M
    assert bits(*other.parameters.values()) == bits(*ensemble.parameters.values())
    other.parameters["weight_ih_l0"][...] = 0
    assert ensemble.parameters["weight_ih_l0"].all()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="layers is empty"):
        rnnfast.Ensemble([])
    with pytest.raises(TypeError, match=r"layers\[0\] must be a recurrent layer"):
        rnnfast.Ensemble([rnnfast.Linear(I, H)])
    with pytest.raises(ValueError, match=r"layers\[1\] has hidden_size=9"):
        rnnfast.Ensemble([rnnfast.GRU(I, H), rnnfast.GRU(I, 9)])
    with pytest.raises(ValueError, match=r"layers\[1\] has the class RNN"):
        rnnfast.Ensemble([rnnfast.GRU(I, H), rnnfast.RNN(I, H)])
    with pytest.raises(ValueError, match="init_state, zoneout or dropout"):
        rnnfast.Ensemble([rnnfast.GRU(I, H, init_state=True)])
    ensemble = rnnfast.Ensemble([rnnfast.GRU(I, H)] * 2)
    for shape in [(3, T, N, I), (T, I), (2, 2, T, N, I)]:
        with pytest.raises(
            ValueError, match=r"but the 2 members need \(T, N, I\), which they share, or \(2, T, N, I\)"
        ):
            ensemble(np.ones(shape))
    with pytest.raises(ValueError, match="x has no time steps"):
        ensemble(np.ones((2, 0, N, I)))
    with pytest.raises(ValueError, match="x has 5 features"):
        ensemble(np.ones((T, N, 5)))
    with pytest.raises(TypeError, match="x is a tuple"):
        ensemble(ensemble(np.ones((T, N, I))))
    with pytest.raises(ValueError, match="state must have"):
        ensemble(np.ones((T, N, I)), np.ones((1, N, H)))
    _, _, tape = ensemble.forward(np.ones((T, N, I)))
    with pytest.raises(ValueError, match=r"tape comes from another layer, Ensemble\(2 x GRU\(4, 6\)\)"):
        ensemble[0].backward(tape, None)
    with pytest.raises(ValueError, match="tape comes from another ensemble"):
        copy.copy(ensemble).backward(tape, None)
    with pytest.raises(AttributeError, match="it comes from an ensemble"):
        tape.cells  # noqa: B018
    with pytest.raises(ValueError, match="layers is empty"):
        ensemble[1:1]
    with pytest.raises(TypeError, match="tape must be the Tape"):
        ensemble.backward(None, None)
