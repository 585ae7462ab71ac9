"""Initial values of the parameters of recurrent layers."""

import copy
import itertools
import math

import numpy as np
import pytest
from support.cells import LAYERS, gates_of, is_trained, make_layer, parameter_shapes
from support.compare import assert_same_bits

import rnnfast
from rnnfast import initializers
from rnnfast.functional import CELLS
from rnnfast.layers import saving

STACK = {"num_layers": 2, "bidirectional": True}
ENDS = ["_l0", "_l0_reverse", "_l1", "_l1_reverse"]
PLAIN = [cell for cell in LAYERS if not CELLS[cell].elementwise]  # test_elementwise_cells.py has the others
# Each init with the cells that accept it.
FITTING = [
    *itertools.product(["torch", "keras", "orthogonal"], PLAIN),
    *itertools.product([("chrono", 100)], ["lstm", "gru", "gru_reset_before"]),
    *itertools.product(["forget", ("forget", 2.5)], ["lstm"]),
    ("identity", "rnn_relu"),
]


def make(cell, I, H, *args, **options):
    kind, own = LAYERS[cell]
    return kind(I, H, *args, **{"rng": 0, "dtype": np.float64, **own, **options})


def gates(cell, array):
    """The rows of each gate, by its letter."""
    return dict(zip(CELLS[cell].gates, np.split(array, gates_of(cell)), strict=True))


def assert_uniform(values, low, high):
    """The Kolmogorov-Smirnov distance; more than 1.95 / sqrt(n) has a probability below 0.001."""
    values = np.sort(np.ravel(values))
    assert low <= values[0]
    assert values[-1] <= high
    steps = np.arange(len(values) + 1) / len(values)
    expected = (values - low) / (high - low)
    assert max(np.abs(steps[1:] - expected).max(), np.abs(steps[:-1] - expected).max()) < 1.95 / math.sqrt(len(values))


@pytest.mark.parametrize("options", [{}, {"init": "torch"}])
@pytest.mark.parametrize("cell", PLAIN)
def test_default_bits_are_drawn_one_array_after_the_other(cell, options, dtype):
    layer = make(cell, 3, 5, dtype=dtype, rng=7, **STACK, **options)
    rng = np.random.default_rng(7)
    every = parameter_shapes(cell, 3, 5, **STACK)
    shapes = {name: shape for name, shape in every.items() if is_trained(cell, name)}
    assert list(layer.parameters) == list(shapes)
    for name, shape in shapes.items():
        expected = rng.uniform(-1 / math.sqrt(5), 1 / math.sqrt(5), shape).astype(dtype)
        assert layer.parameters[name].tobytes() == expected.tobytes(), name
    assert layer._rng.random() == rng.random()  # dropout draws next


def test_default_bits_with_projection_and_peepholes():
    layer = rnnfast.LSTM(3, 5, proj_size=2, peepholes=True, rng=7)
    rng = np.random.default_rng(7)
    for name, shape in {
        "weight_ih_l0": (20, 3),
        "weight_hh_l0": (20, 2),
        "bias_ih_l0": (20,),
        "bias_hh_l0": (20,),
        "weight_hr_l0": (2, 5),
        "peephole_l0": (3, 5),
    }.items():
        expected = rng.uniform(-1 / math.sqrt(5), 1 / math.sqrt(5), shape).astype(np.float32)
        assert layer.parameters[name].tobytes() == expected.tobytes(), name


@pytest.mark.parametrize(("init", "cell"), FITTING)
def test_same_seed_gives_the_same_numbers(init, cell):
    first, again, other = (make(cell, 3, 5, init=init, rng=rng, **STACK) for rng in (7, 7, 8))
    for name, array in first.parameters.items():
        assert array.tobytes() == again.parameters[name].tobytes(), name
        assert np.isfinite(array).all()
    assert first.parameters["weight_ih_l0"].tobytes() != other.parameters["weight_ih_l0"].tobytes()


@pytest.mark.parametrize(("init", "cell"), FITTING)
def test_float32_has_the_numbers_of_float64_rounded(init, cell):
    wide, narrow = (make(cell, 3, 5, init=init, dtype=dtype) for dtype in (np.float64, np.float32))
    for name, array in wide.parameters.items():
        np.testing.assert_array_equal(narrow.parameters[name], array.astype(np.float32))


@pytest.mark.parametrize(("init", "cell"), FITTING)
def test_options_do_not_know_of_it(init, cell, tmp_path):
    layer, plain = make(cell, 3, 5, init=init), make(cell, 3, 5)
    assert repr(layer) == repr(plain)
    assert saving.options(layer) == saving.options(plain)
    layer.save(tmp_path / "layer")
    plain.load(tmp_path / "layer")
    for same in (plain, rnnfast.load(tmp_path / "layer"), copy.deepcopy(layer)):
        for name, array in layer.parameters.items():
            assert same.parameters[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("cell", PLAIN)
def test_keras_closed_forms(cell):
    I, H = 300, 40
    layer = make(cell, I, H, init="keras", **STACK)
    for end in ENDS:
        kernel = layer.parameters["weight_ih" + end]
        recurrent = layer.parameters["weight_hh" + end]
        # Of keras's kernel (inputs, gates * units): limit = sqrt(6 / (fan_in + fan_out)).
        limit = math.sqrt(6 / (kernel.shape[1] + gates_of(cell) * H))
        assert_uniform(kernel, -limit, limit)
        np.testing.assert_allclose(recurrent.T @ recurrent, np.eye(H), rtol=0, atol=1e-13)
        assert not layer.parameters["bias_hh" + end].any()
        for gate, bias in gates(cell, layer.parameters["bias_ih" + end]).items():
            assert (bias == (gate == "f")).all(), gate


def test_keras_values_where_keras_has_nothing():
    layer = rnnfast.LSTM(6, 50, proj_size=20, peepholes=True, init="keras", dtype=np.float64, rng=0)
    recurrent = layer.parameters["weight_hh_l0"]
    assert recurrent.shape == (200, 20)
    np.testing.assert_allclose(recurrent.T @ recurrent, np.eye(20), rtol=0, atol=1e-13)
    assert_uniform(layer.parameters["weight_hr_l0"], -math.sqrt(6 / 70), math.sqrt(6 / 70))
    assert not layer.parameters["peephole_l0"].any()
    without = rnnfast.LSTM(6, 50, bias=False, init="keras", rng=0)
    assert list(without.parameters) == ["weight_ih_l0", "weight_hh_l0"]


@pytest.mark.parametrize("cell", PLAIN)
def test_orthogonal_matrix_of_each_gate(cell):
    layer = make(cell, 8, 30, init="orthogonal", **STACK)
    seen = []
    for end in ENDS:
        for matrix in gates(cell, layer.parameters["weight_hh" + end]).values():
            np.testing.assert_allclose(matrix @ matrix.T, np.eye(30), rtol=0, atol=1e-13)
            seen.append(matrix)
        others = [layer.parameters[kind + end] for kind in ("weight_ih", "bias_ih", "bias_hh")]
        assert_uniform(np.concatenate([other.ravel() for other in others]), -1 / math.sqrt(30), 1 / math.sqrt(30))
    assert all(np.abs(a - b).max() > 0.1 for a, b in itertools.combinations(seen, 2))


def test_orthogonal_with_projection_has_orthonormal_columns():
    layer = rnnfast.LSTM(3, 12, proj_size=5, init="orthogonal", dtype=np.float64, rng=0)
    for matrix in gates("lstm", layer.parameters["weight_hh_l0"]).values():
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(5), rtol=0, atol=1e-13)
    assert_uniform(layer.parameters["weight_hr_l0"], -1 / math.sqrt(12), 1 / math.sqrt(12))


def test_orthogonal_matrices_are_equally_likely():
    """Orthogonal matrices are uniform: every angle and both signs of the determinant are equally likely."""
    matrices = [rnnfast.RNN(1, 2, init="orthogonal", dtype=np.float64, rng=seed) for seed in range(2000)]
    matrices = np.array([layer.parameters["weight_hh_l0"] for layer in matrices])
    assert_uniform(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]), -np.pi, np.pi)
    assert abs((np.linalg.det(matrices) > 0).mean() - 0.5) < 0.04


@pytest.mark.parametrize(("init", "value"), [("forget", 1), (("forget", 2.5), 2.5), (("forget", -1), -1)])
@pytest.mark.parametrize("options", [STACK, {"proj_size": 3}], ids=["stack", "projected"])
def test_forget_sets_these_rows_and_no_others(init, value, options):
    layer, plain = (make("lstm", 3, 5, init=one, **options) for one in (init, "torch"))
    for name, array in layer.parameters.items():
        expected = plain.parameters[name].copy()
        if name.startswith("bias"):
            gates("lstm", expected)["f"][...] = value if name.startswith("bias_ih") else 0
        np.testing.assert_array_equal(array, expected, err_msg=name)


def test_forget_gate_opens():
    """The state of a layer without weights is multiplied by sigmoid(value) at every step."""
    layer = rnnfast.LSTM(2, 3, init=("forget", 2.5), dtype=np.float64, rng=0)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        layer.parameters[name][...] = 0
    for name in ("bias_ih_l0", "bias_hh_l0"):
        gates("lstm", layer.parameters[name])["g"][...] = 0
    _, (_, c) = layer(np.zeros((4, 1, 2)), (np.zeros((1, 1, 3)), np.ones((1, 1, 3))))
    np.testing.assert_allclose(c, (1 / (1 + math.exp(-2.5))) ** 4, rtol=1e-12)


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_chrono_gates(cell):
    layer, plain = (make(cell, 3, 600, init=init, **STACK) for init in (("chrono", 50), "torch"))
    signs = {"f": 1, "i": -1} if cell == "lstm" else {"z": 1}
    for end in ENDS:
        drawn = gates(cell, layer.parameters["bias_ih" + end])
        cleared = gates(cell, layer.parameters["bias_hh" + end])
        for gate in CELLS[cell].gates:
            if gate in signs:
                assert not cleared[gate].any()
                assert_uniform(np.exp(signs[gate] * drawn[gate]), 1, 49)
            else:
                assert_uniform(np.concatenate([drawn[gate], cleared[gate]]), -1 / math.sqrt(600), 1 / math.sqrt(600))
        if cell == "lstm":
            np.testing.assert_array_equal(drawn["i"], -drawn["f"])
    np.testing.assert_array_equal(layer.parameters["weight_hh_l0"], plain.parameters["weight_hh_l0"])


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_chrono_keeps_a_state_for_up_to_t_max_steps(cell):
    """Without weights a unit forgets at the rate 1 - sigmoid(log u) = 1 / (1 + u), within 2 to T_max steps."""
    layer = make(cell, 2, 300, init=("chrono", 80))
    for name, array in layer.parameters.items():
        if name.startswith("weight"):
            array[...] = 0
        else:
            gates(cell, array)["g" if cell == "lstm" else "n"][...] = 0
    ones = np.ones((1, 1, 300))
    _, end = layer(np.zeros((1, 1, 2)), (ones, ones) if cell == "lstm" else ones)
    lasts = 1 / (1 - (end[1] if cell == "lstm" else end))
    assert_uniform(lasts, 2, 80)


def test_identity():
    layer = rnnfast.RNN(400, 30, nonlinearity="relu", init="identity", dtype=np.float64, rng=0, **STACK)
    for end in ENDS:
        np.testing.assert_array_equal(layer.parameters["weight_hh" + end], np.eye(30))
        for kind in ("bias_ih", "bias_hh"):
            assert not layer.parameters[kind + end].any()
    inputs = layer.parameters["weight_ih_l0"]
    assert inputs.std() == pytest.approx(0.001, rel=0.03)
    assert abs((np.abs(inputs) < 0.001).mean() - math.erf(1 / math.sqrt(2))) < 0.02  # of a normal distribution
    assert rnnfast.RNN(2, 3, activations=["relu"], init="identity", rng=0).parameters["weight_hh_l0"][0, 0] == 1


@pytest.mark.parametrize("cell", PLAIN)
def test_without_initial_values(cell):
    rng = np.random.default_rng(7)
    layer = make(cell, 3, 5, init=None, rng=rng, **STACK)
    assert list(layer.parameters) == list(make(cell, 3, 5, **STACK).parameters)
    for array in layer.parameters.values():
        assert not array.any()
    assert rng.random() == np.random.default_rng(7).random()  # nothing has been drawn
    both = rnnfast.Bidirectional(make(cell, 3, 5, init=None))
    assert not any(array.any() for array in both.parameters.values())


@pytest.mark.parametrize(
    "layer",
    [
        rnnfast.LSTM(3, 4, rng=0),
        rnnfast.Bidirectional(rnnfast.GRU(3, 4)),
        rnnfast.Linear(3, 4),
        rnnfast.Embedding(3, 4),
    ],
    ids=repr,
)
def test_values_that_are_given_are_not_drawn(layer, tmp_path, monkeypatch):
    layer.save(tmp_path / "layer")
    monkeypatch.setattr(initializers, "drawn", None)
    for same in (rnnfast.load(tmp_path / "layer"), type(layer).from_state_dict(layer.parameters)):
        assert_same_bits(same.state_dict(), layer.state_dict())


def test_bidirectional_makes_its_second_layer_alike():
    layer = rnnfast.Bidirectional(rnnfast.LSTM(3, 5, init=("forget", 3), rng=0))
    for side in (layer.forward_layer, layer.backward_layer):
        assert (gates("lstm", side.parameters["bias_ih_l0"])["f"] == 3).all()


@pytest.mark.parametrize(
    ("kind", "options", "init", "error", "message"),
    [
        (rnnfast.RNN, {}, "xavier", ValueError, "init must be one of 'torch', 'keras', .*, got 'xavier'"),
        (rnnfast.RNN, {}, (None, 1), ValueError, "init=None takes no number"),
        (rnnfast.RNN, {}, 0, ValueError, "init must be one of .* None, got 0"),
        (rnnfast.RNN, {}, (), ValueError, r"init must be one of .* got \(\)"),
        (rnnfast.RNN, {}, ("chrono", 100), ValueError, "is for a gated layer only: choose another"),
        (rnnfast.RNN, {}, "forget", ValueError, "init='forget' is for a layer with a forget gate"),
        (rnnfast.GRU, {}, "forget", ValueError, "init='forget' is for a layer with a forget gate"),
        (rnnfast.RNN, {}, "identity", ValueError, "init='identity' is for an RNN with relu"),
        (rnnfast.LSTM, {}, "identity", ValueError, "init='identity' is for an RNN with relu"),
        (
            rnnfast.RNN,
            {"nonlinearity": "relu", "activations": ["tanh"]},
            "identity",
            ValueError,
            "is for an RNN with relu",
        ),
        (rnnfast.LSTM, {"bias": False}, "forget", ValueError, "use bias=True, or another scheme"),
        (rnnfast.GRU, {"bias": False}, ("chrono", 9), ValueError, "use bias=True, or another scheme"),
        (rnnfast.LSTM, {"coupled": True}, "forget", ValueError, "but with coupled=True that gate is 1 - i"),
        (rnnfast.LSTM, {}, "chrono", ValueError, r"needs T_max, .*: pass a tuple such as \('chrono', 100\)"),
        (rnnfast.LSTM, {}, ("chrono",), ValueError, "needs T_max"),
        (rnnfast.LSTM, {}, ("chrono", 1.5), ValueError, "a finite number of at least 2, T_max.* got"),
        (rnnfast.LSTM, {}, ("chrono", math.inf), ValueError, "a finite number of at least 2"),
        (rnnfast.LSTM, {}, ("chrono", "100"), TypeError, "takes a number, T_max"),
        (rnnfast.LSTM, {}, ("forget", True), TypeError, "takes a number, the bias"),
        (rnnfast.LSTM, {}, ("forget", math.nan), ValueError, "takes a finite number, the bias"),
        (rnnfast.LSTM, {}, ("forget", 1, 2), ValueError, "takes one number, the bias, got"),
        (rnnfast.LSTM, {}, ("torch", 1), ValueError, "init='torch' takes no number, got"),
    ],
)
def test_invalid_inits(kind, options, init, error, message):
    with pytest.raises(error, match=message):
        kind(3, 5, init=init, rng=0, **options)


# --- the values of the default init


@pytest.mark.parametrize(
    ("layer", "bound"),
    [
        (rnnfast.LSTM(30, 100, 2, proj_size=40, bidirectional=True, rng=0), 0.1),
        (rnnfast.GRU(30, 100, rng=0), 0.1),
        (rnnfast.Linear(400, 50, rng=0), 0.05),
    ],
)
def test_initial_values_are_uniform(layer, bound):
    for array in layer.parameters.values():
        assert np.abs(array).max() <= bound
        assert np.abs(array).max() > 0.85 * bound
        assert abs(array.mean()) < 0.2 * bound
        np.testing.assert_allclose(array.std(), bound / np.sqrt(3), rtol=0.2)


def test_embedding_is_normal():
    weight = rnnfast.Embedding(200, 100, rng=0).parameters["weight"]
    np.testing.assert_allclose([weight.mean(), weight.std(), (weight**4).mean()], [0, 1, 3], atol=0.1)


def test_random_generator():
    seeded, same, other = (make_layer("lstm", 4, 6, rng=seed).state_dict() for seed in (5, np.random.default_rng(5), 6))
    assert_same_bits(seeded, same)
    assert not np.array_equal(seeded["weight_ih_l0"], other["weight_ih_l0"])
    assert not np.array_equal(*(make_layer("lstm", 4, 6, rng=None).parameters["weight_ih_l0"] for _ in range(2)))
    shared = np.random.default_rng(5)
    assert_same_bits(make_layer("lstm", 4, 6, rng=shared).state_dict(), seeded)
    assert shared.bit_generator.state != np.random.default_rng(5).bit_generator.state
