"""Cells with an elementwise recurrence: their equations, extreme gates, SRU's highway, options and files."""

import copy

import numpy as np
import pytest
from support.cells import DIRECTIONS
from support.compare import assert_close, assert_same_bits, members
from support.guards import assert_central_differences, run_engine
from support.layers import outputs, refused
from support.problems import TOLERANCE, of_rows, problem, rows, run_reference

import rnnfast
from rnnfast import IndRNN, MinGRU, MinLSTM, functional, reference
from rnnfast.functional import CELLS

ELEMENTWISE = [cell for cell, info in CELLS.items() if info.elementwise]
T, N, H = 9, 3, 5


def sru(T, N, H, **options):
    """A problem of the SRU that adds x itself, whose inputs have H features."""
    p = problem("sru", T, N, H, H, **options)
    p.variant = "sru"
    return p


# --- the highway of SRU that adds x itself; the generic tests cover all other cells


@pytest.mark.parametrize(("T", "N", "H"), [(1, 1, 1), (9, 1, 17), (300, 2, 4), (5, 13, 33), (3, 300, 8)])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_sru_agrees_with_the_reference(T, N, H, direction, dtype, isa):
    p = sru(T, N, H, dtype=dtype, **DIRECTIONS[direction])
    assert_close(run_engine(p, isa), run_reference(p, np.float64), TOLERANCE[p.dtype])


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_stacks_of_sru_agree_with_the_reference(direction, dtype, isa):
    p = sru(20, 4, 11, num_layers=3, dropout=True, dtype=dtype, **DIRECTIONS[direction])
    assert_close(run_engine(p, isa), run_reference(p, np.float64), TOLERANCE[p.dtype])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradients_of_sru_are_central_differences(direction):
    p = sru(5, 3, 4, **DIRECTIONS[direction])
    assert_central_differences(p)


def test_rows_of_sru_alone_or_in_a_batch(dtype, isa):
    p = sru(7, 29, 21, bidirectional=True, dtype=dtype)
    batch = run_engine(p, isa)
    for which in (slice(0, 1), slice(28, 29), slice(1, 5)):
        assert_same_bits(of_rows(run_engine(rows(p, which), isa), slice(None)), of_rows(batch, which))


@pytest.mark.parametrize("N", [1, 2, 29])
def test_sru_on_any_number_of_threads(threads, N, isa):
    p = sru(300, N, 70, bidirectional=True, dtype=np.float32)
    threads(1)
    expected = run_engine(p, isa)
    for count in (2, 3):
        threads(count)
        assert_same_bits(run_engine(p, isa), expected)


@pytest.mark.parametrize("uneven", [{}, {"lengths": [9, 1, 4]}, {"mask": "mask"}, {"reset": "reset"}], ids=str)
@pytest.mark.parametrize("checkpoint", [None, 1])
def test_a_linear_highway_can_be_the_identity(uneven, checkpoint, dtype, rng):
    uneven = {name: rng.random((T, N)) < 0.7 if isinstance(value, str) else value for name, value in uneven.items()}
    layer = rnnfast.SRU(H, H, 2, highway="identity", dtype=dtype, rng=0)
    linear = rnnfast.SRU(H, H, 2, highway="linear", dtype=dtype)
    for name, array in linear.parameters.items():
        array[: len(layer.parameters[name])] = layer.parameters[name]
        if len(array) == 4 * H:
            array[3 * H :] = np.eye(H) if array.ndim == 2 else 0
    x, state = rng.standard_normal((T, N, H)).astype(dtype), tuple(rng.standard_normal((2, 2, N, H)).astype(dtype))
    found = [one.forward(x, state, checkpoint=checkpoint, **uneven) for one in (layer, linear)]
    assert_same_bits(outputs(*found[0][:2]), outputs(*found[1][:2]))
    dy, dstate = rng.standard_normal((T, N, H)).astype(dtype), tuple(rng.standard_normal((2, 2, N, H)).astype(dtype))
    own, of_linear = (one.backward(tape, dy, dstate) for one, (_, _, tape) in zip((layer, linear), found, strict=True))
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(own.x, of_linear.x, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(own.state[1], of_linear.state[1], rtol=tolerance, atol=tolerance)
    assert not own.state[0].any()
    for name, array in own.parameters.items():
        expected = of_linear.parameters[name][: len(array)]
        np.testing.assert_allclose(array, expected, rtol=tolerance, atol=10 * tolerance, err_msg=name)


# --- equations that the reference shares with nobody


def test_mingru_computes_the_equations_of_the_paper(rng):
    layer, x, h = MinGRU(4, H, dtype=np.float64, rng=0), 3 * rng.standard_normal((T, N, 4)), rng.random((N, H))
    y, _ = layer(x, h[np.newaxis])
    u, n = np.split(x @ layer.parameters["weight_ih_l0"].T + layer.parameters["bias_ih_l0"], 2, axis=2)
    for t in range(T):
        gate, candidate = 1 / (1 + np.exp(-u[t])), np.where(n[t] >= 0, n[t] + 0.5, 1 / (1 + np.exp(-n[t])))
        h = (1 - gate) * h + gate * candidate
        np.testing.assert_allclose(y[t], h, rtol=1e-12)


def test_minlstm_computes_the_equations_of_the_paper(rng):
    layer = MinLSTM(4, H, candidate="identity", dtype=np.float64, rng=0)
    x, h = 3 * rng.standard_normal((T, N, 4)), rng.random((N, H))
    y, _ = layer(x, h[np.newaxis])
    f, i, n = np.split(x @ layer.parameters["weight_ih_l0"].T + layer.parameters["bias_ih_l0"], 3, axis=2)
    for t in range(T):
        keep, take = 1 / (1 + np.exp(-f[t])), 1 / (1 + np.exp(-i[t]))
        h = keep / (keep + take) * h + take / (keep + take) * n[t]
        np.testing.assert_allclose(y[t], h, rtol=1e-12, atol=1e-14)


EXTREMES = [-1e30, -3e3, -200, -90, -20, -1, 0, 1, 20, 90, 200, 3e3, 1e30]


@pytest.mark.parametrize("candidate", ["identity", "positive"])
def test_gates_of_minlstm_that_vanish_keep_their_ratio(candidate, dtype, isa):
    """f and i are 0 in floating point for most of these pre-activations, and their quotient is not."""
    with functional.use_isa(isa):
        layer = MinLSTM(3, 1, candidate=candidate, bias=False, dtype=dtype, init=None)
    layer.parameters["weight_ih_l0"][...] = np.eye(3)
    f, i = np.meshgrid(EXTREMES, EXTREMES)
    x = np.stack([f.ravel(), i.ravel(), np.full(f.size, 0.25)], axis=1)[np.newaxis].astype(dtype)
    h0 = np.full((1, f.size, 1), 3, dtype)
    y, _, tape = layer.forward(x, h0)
    parameters = {name: array.astype(np.float64) for name, array in layer.parameters.items()}
    cell = "minlstm" + ("_positive" if candidate == "positive" else "")
    expected, _, kept = reference.forward(cell, parameters, x.astype(np.float64), h0.astype(np.float64))
    np.testing.assert_allclose(y, expected, rtol=4e-6 if dtype == np.float32 else 1e-14)
    grads, (dx, *_) = layer.backward(tape, np.ones_like(y)), reference.backward(kept, np.ones_like(expected))
    np.testing.assert_allclose(grads.x, dx, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", ELEMENTWISE)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_stay_in_their_row(cell, value, isa):
    p = problem(cell, 5, 4, H, H, dtype=np.float32)
    expected = run_engine(p, isa)
    p.x[2, 1] = value
    got = run_engine(p, isa)
    others = [0, 2, 3]
    np.testing.assert_array_equal(got["y"][:, others], expected["y"][:, others])
    np.testing.assert_array_equal(got["y"][:2], expected["y"][:2])
    if np.isnan(value):
        assert np.isnan(got["y"][2, 1]).all()


# --- options, initial values, files

LAYERS = {
    "mingru": lambda **options: MinGRU(4, H, 2, **options),
    "minlstm": lambda **options: MinLSTM(4, H, candidate="identity", bidirectional=True, **options),
    "sru": lambda **options: rnnfast.SRU(H, H, 2, **options),
    "sru linear": lambda **options: rnnfast.SRU(4, H, 2, bidirectional=True, **options),
    "indrnn": lambda **options: IndRNN(4, H, nonlinearity="tanh", bias=False, **options),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_files_hold_the_layer(name, weights, tmp_path, rng):
    layer = LAYERS[name](rng=0, init_state=True)
    x = rng.standard_normal((T, N, layer.input_size)).astype(np.float32)
    layer.freeze(weights)
    layer.save(tmp_path / "layer.npz")
    loaded = rnnfast.load(tmp_path / "layer.npz")
    assert repr(loaded) == repr(layer)
    loaded.freeze(weights)
    assert_same_bits(outputs(*loaded(x)), outputs(*layer(x)))
    assert_same_bits(outputs(*copy.deepcopy(layer)(x)), outputs(*layer(x)))


@pytest.mark.parametrize("name", LAYERS)
def test_state_dicts_rebuild_the_layer(name, rng):
    layer = LAYERS[name](rng=0)
    options = {} if name != "minlstm" else {"candidate": "identity"}
    options |= {"nonlinearity": "tanh"} if name == "indrnn" else {}
    built = type(layer).from_state_dict(layer.state_dict(), **options)
    x = rng.standard_normal((T, N, layer.input_size)).astype(np.float32)
    assert_same_bits(outputs(*built(x)), outputs(*layer(x)))
    with pytest.raises(ValueError, match=r"have no .weight_hh_l0., so they can be those of rnnfast\.MinGRU or"):
        rnnfast.from_state_dict(layer.state_dict())


def test_state_dicts_of_another_class_are_refused():
    with pytest.raises(ValueError, match=r"imply 3 gates, but IndRNN has 1"):
        IndRNN.from_state_dict({"weight_ih_l0": np.ones((15, 4)), "recurrent_l0": np.ones((1, 5))})
    with pytest.raises(ValueError, match="must contain a matrix peephole_l0"):
        rnnfast.SRU.from_state_dict(MinLSTM(4, 5).state_dict())
    with pytest.raises(ValueError, match=r"imply 2\.5 gates, but MinGRU has 2"):
        MinGRU.from_state_dict({"weight_ih_l0": np.ones((5, 4))})


@pytest.mark.parametrize("sizes", [{"input_size": 4}, {"num_layers": 2, "bidirectional": True}])
def test_sru_refuses_a_highway_that_does_not_fit(sizes):
    given = {"input_size": 5, "hidden_size": 5, **sizes}
    with pytest.raises(ValueError, match=r"highway='identity' adds the input .* use highway='linear'"):
        rnnfast.SRU(**given, highway="identity")
    assert rnnfast.SRU(**given).engine.cell == rnnfast.SRU(**given, highway="linear").engine.cell == "sru_linear"


def test_unknown_choices_are_refused():
    for kind, option in ((MinGRU, "candidate"), (MinLSTM, "candidate"), (rnnfast.SRU, "highway")):
        with pytest.raises(ValueError, match=f"{option} must be one"):
            kind(2, 3, **{option: "log"})
    with pytest.raises(ValueError, match="nonlinearity must be"):
        IndRNN(2, 3, nonlinearity="sigmoid")


@pytest.mark.parametrize("name", LAYERS)
def test_inputs_can_be_dropped_for_a_whole_row(name, rng):
    layer = LAYERS[name](rng=0, input_dropout=0.4)
    x = rng.standard_normal((T, N, layer.input_size)).astype(np.float32)
    y, _, tape = layer.forward(x)
    assert not np.array_equal(y, layer(x)[0])
    dx = layer.backward(tape, np.ones_like(y)).x
    dropped = (dx == 0).all(axis=0)
    assert 0 < dropped.sum() < dropped.size
    assert ((dx == 0) == dropped).mean() > 0.9
    with pytest.raises(ValueError, match="recurrent_dropout must be 0, as a"):
        layer.recurrent_dropout = 0.5


def test_chrono_gates_keep_the_state():
    """With x = 0, the share of the state that a step keeps is 1 - 1 / t for t from 2 to T_max."""
    for kind in (MinGRU, MinLSTM, rnnfast.SRU):
        layer = kind(2, 400, init=("chrono", 100), rng=0, **({} if kind is rnnfast.SRU else {"candidate": "identity"}))
        for name, array in layer.parameters.items():
            if name.startswith(("weight", "peephole")):
                array[...] = 0
        state = np.ones((1, 1, 400), np.float32)
        _, after = layer(np.zeros((1, 1, 2)), (state, state) if kind is rnnfast.SRU else state)
        _, other = layer(np.zeros((1, 1, 2)), (state, 2 * state) if kind is rnnfast.SRU else 2 * state)
        keeps = (members(other)[-1] - members(after)[-1]).ravel()
        assert 0.4 < keeps.min() < 0.9
        assert 0.985 < keeps.max() < 0.991


@pytest.mark.parametrize("name", LAYERS)
def test_keras_and_torch_values(name):
    bound = {"torch": lambda _: H**-0.5, "keras": lambda shape: (6 / sum(shape)) ** 0.5}
    for init, limit in bound.items():
        parameters = LAYERS[name](init=init, rng=0).parameters
        weight = parameters["weight_ih_l0"]
        assert 0.7 * limit(weight.shape) < abs(weight).max() <= limit(weight.shape)
        bias = parameters.get("bias_ih_l0")
        if init == "keras" and bias is not None:
            assert bias.sum() == (H if name in ("minlstm", "sru", "sru linear") else 0)  # of a forget gate
        again = LAYERS[name](init=init, rng=0).parameters
        assert all((again[name] == array).all() for name, array in parameters.items())


def test_recurrent_weights_of_indrnn_start_between_0_and_1():
    w = IndRNN(4, 1000, rng=0).parameters["recurrent_l0"]
    assert w.shape == (1, 1000)
    assert 0 <= w.min() < 0.01
    assert 0.99 < w.max() < 1
    assert (IndRNN(4, 5, init="identity", rng=0).parameters["recurrent_l0"] == 1).all()
    assert not IndRNN(4, 5, init=None).parameters["recurrent_l0"].any()


def test_schemes_for_other_layers_are_refused():
    refused(MinGRU(2, 3), lambda: MinGRU(2, 3, init="forget"), ValueError, "a layer with a forget gate only")
    refused(MinGRU(2, 3), lambda: IndRNN(2, 3, init=("chrono", 9)), ValueError, "a gated layer only")
