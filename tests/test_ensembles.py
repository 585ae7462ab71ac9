"""Ensembles: each member gets bitwise the results of its layer alone; and the errors of their arguments."""

import copy
import pickle

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


@pytest.mark.parametrize("threads", [2, 3])
def test_any_number_of_threads_gives_the_same_bits(threads):
    ensemble = rnnfast.Ensemble([rnnfast.LSTM(32, 64, rng=seed) for seed in range(23)])
    x = np.random.default_rng(0).standard_normal((40, 4, 32), np.float32)
    before, results = rnnfast.get_num_threads(), []
    try:
        for n in (1, threads):
            rnnfast.set_num_threads(n)
            y, _, tape = ensemble.forward(x)
            results.append(bits(y, *ensemble.backward(tape, np.ones_like(y)).parameters.values()))
    finally:
        rnnfast.set_num_threads(before)
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
    with pytest.raises(TypeError, match=r"layers\[0\] must be an RNN"):
        rnnfast.Ensemble([rnnfast.Linear(I, H)])
    with pytest.raises(ValueError, match=r"layers\[1\] has hidden_size=9"):
        rnnfast.Ensemble([rnnfast.GRU(I, H), rnnfast.GRU(I, 9)])
    with pytest.raises(ValueError, match=r"layers\[1\] has the class RNN"):
        rnnfast.Ensemble([rnnfast.GRU(I, H), rnnfast.RNN(I, H)])
    with pytest.raises(ValueError, match="init_state or dropout"):
        rnnfast.Ensemble([rnnfast.GRU(I, H, init_state=True)])
    ensemble = rnnfast.Ensemble([rnnfast.GRU(I, H)] * 2)
    with pytest.raises(ValueError, match="3 members on its first axis, but this ensemble has 2"):
        ensemble(np.ones((3, T, N, I)))
    with pytest.raises(ValueError, match="must be"):
        ensemble(np.ones((T, I)))
    with pytest.raises(ValueError, match="state must have"):
        ensemble(np.ones((T, N, I)), np.ones((1, N, H)))
    with pytest.raises(TypeError, match="tape must be the Tape"):
        ensemble.backward(None, None)
