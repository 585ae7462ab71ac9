"""rnnfast.online: gradients by traces, the learner's interface, and what errors leave unchanged."""

import copy
import itertools
import pickle

import numpy as np
import pytest
from support.cells import LAYERS, VARIANTS, make_layer
from support.compare import assert_close, assert_same_bits

import rnnfast
from rnnfast import GRU, LSTM, RNN, SRU, IndRNN, Linear, MinGRU, MinLSTM, Sequential, _core, functional
from rnnfast.functional import CELLS
from rnnfast.online import Learner
from rnnfast.reference import sigmoid
from rnnfast.training import SGD, Adam, RMSprop, mean_squared_error, softmax_cross_entropy

T, N, I, H = 9, 3, 5, 6
TOLERANCE = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 1e-13}
ELEMENTWISE = [cell for cell in LAYERS if CELLS[cell].elementwise]
GATED = [
    name for name in VARIANTS if name not in ELEMENTWISE and "reset_before" not in name and VARIANTS[name][0] in LAYERS
]


def sums_of_gradients(learner, x, dy):
    """Step over x; return the predictions, and the sums of the gradients of all steps."""
    predictions, total = [], {}
    for x_t, dy_t in zip(x, dy, strict=True):
        predictions.append(learner.step(x_t))
        for name, gradient in learner.backward(dy_t).items():
            total[name] = total.get(name, 0) + gradient
    return np.stack(predictions), total


def compare_with_bptt(layer, rng, rows=N, steps=T):
    x = rng.standard_normal((steps, rows, layer.input_size)).astype(layer.dtype)
    y, _, tape = layer.forward(x)
    dy = rng.standard_normal(y.shape).astype(layer.dtype)
    predictions, total = sums_of_gradients(Learner(layer, batch_size=rows), x, dy)
    np.testing.assert_array_equal(predictions, y)
    assert_close(total, layer.backward(tape, dy).parameters, TOLERANCE[layer.dtype])


# --- gradients


@pytest.mark.parametrize("rows", [1, N])
@pytest.mark.parametrize("options", [{"init_state": True}, {"bias": False}], ids=str)
@pytest.mark.parametrize("cell", ELEMENTWISE)
def test_elementwise_cells_have_the_gradient_of_bptt(cell, options, rows, dtype, isa, rng):
    maker, own = LAYERS[cell]
    width = H if CELLS[cell].reads_x else I
    with functional.use_isa(isa):
        layer = maker(width, H, dtype=dtype, rng=0, **own, **options)
    for name, array in layer.parameters.items():
        if name[1:].startswith("0_l"):
            array[...] = rng.uniform(-1, 1, H)
    compare_with_bptt(layer, rng, rows)


@pytest.mark.parametrize("units", [1, 17, 33])
def test_other_sizes(units, rng):
    compare_with_bptt(MinGRU(3, units, dtype=np.float64, rng=0), rng, 2, 40)


@pytest.mark.parametrize("variant", GATED)
def test_gated_cells_have_the_gradient_of_bptt_without_weight_hh(variant, dtype, isa, rng):
    with functional.use_isa(isa):
        layer = make_layer(variant, I, H, dtype=dtype)
    layer.parameters["weight_hh_l0"][...] = 0
    compare_with_bptt(layer, rng)


@pytest.mark.parametrize(
    "options",
    [
        {"peepholes": True},
        {"coupled": True},
        {"clip": 0.5},
        {"activations": ["sigmoid", "tanh", "relu"]},
        {"bias": False},
    ],
    ids=str,
)
def test_options_of_lstm_without_weight_hh(options, rng):
    layer = LSTM(I, H, dtype=np.float64, rng=0, **options)
    layer.parameters["weight_hh_l0"][...] = 0
    compare_with_bptt(layer, rng)


def outer(factors, values):
    return factors[:, np.newaxis] * values


def eprop_of_lstm(p, x, dy):
    """e-prop as G. Bellec et al. define it: eligibility vectors of c, and a learning signal through o and tanh only."""
    h = c = np.zeros(H)
    vectors, total = [], {}
    for x_t, dh in zip(x, dy, strict=True):
        values = {"weight_ih_l0": x_t, "weight_hh_l0": h, "bias_ih_l0": np.ones(1), "bias_hh_l0": np.ones(1)}
        a = p["weight_ih_l0"] @ x_t + p["bias_ih_l0"] + p["weight_hh_l0"] @ h + p["bias_hh_l0"]
        i, f, g, o = np.split(a, 4)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        slopes = g * i * (1 - i), c * f * (1 - f), i * (1 - g * g)
        c = f * c + i * g
        h, signal = o * np.tanh(c), dh * o * (1 - np.tanh(c) ** 2)
        vectors = vectors or [dict.fromkeys(values, 0.0) for _ in slopes]
        for vector, slope in zip(vectors, slopes, strict=True):
            for name, value in values.items():
                vector[name] = f[:, np.newaxis] * vector[name] + outer(slope, value)
        for name, value in values.items():
            terms = [
                outer(signal, vector[name]) if np.ndim(vector[name]) == 1 else signal[:, None] * vector[name]
                for vector in vectors
            ]
            terms.append(outer(dh * np.tanh(c) * o * (1 - o), value))
            total[name] = total.get(name, 0) + np.concatenate(terms).reshape(p[name].shape)
    return total


def eprop_of_gru(p, x, dy):
    """e-prop of the GRU of torch: the eligibility vectors decay by z."""
    h, vectors, total = np.zeros(H), None, {}
    for x_t, dh in zip(x, dy, strict=True):
        a_r, a_z, a_n = np.split(p["weight_ih_l0"] @ x_t + p["bias_ih_l0"], 3)
        q_r, q_z, q_n = np.split(p["weight_hh_l0"] @ h + p["bias_hh_l0"], 3)
        r, z = sigmoid(a_r + q_r), sigmoid(a_z + q_z)
        n = np.tanh(a_n + r * q_n)
        dn = (1 - z) * (1 - n * n)
        slopes = [dn * q_n * r * (1 - r), (h - n) * z * (1 - z), dn]
        of_h = [*slopes[:2], dn * r]
        terms = {
            "weight_ih_l0": [outer(slope, x_t) for slope in slopes],
            "weight_hh_l0": [outer(slope, h) for slope in of_h],
            "bias_ih_l0": [slope[:, None] for slope in slopes],
            "bias_hh_l0": [slope[:, None] for slope in of_h],
        }
        stacked = {name: np.stack(term) for name, term in terms.items()}
        if vectors is not None:
            stacked = {name: z[:, None] * vectors[name] + term for name, term in stacked.items()}
        vectors, h = stacked, (1 - z) * n + z * h
        for name, vector in vectors.items():
            total[name] = total.get(name, 0) + (dh[:, None] * vector).reshape(p[name].shape)
    return total


@pytest.mark.parametrize(("maker", "eprop"), [(LSTM, eprop_of_lstm), (GRU, eprop_of_gru)])
def test_lstm_and_gru_learn_by_eprop(maker, eprop, rng):
    layer = maker(I, H, dtype=np.float64, rng=0)
    x, dy = rng.standard_normal((T, 1, I)), rng.standard_normal((T, 1, H))
    _, total = sums_of_gradients(Learner(layer), x, dy)
    assert_close(total, eprop(layer.parameters, x[:, 0], dy[:, 0]), 1e-13)
    _, _, tape = layer.forward(x)
    exact = layer.backward(tape, dy).parameters
    angle = sum((total[name] * exact[name]).sum() for name in exact)
    norms = [np.sqrt(sum((one[name] ** 2).sum() for name in exact)) for one in (total, exact)]
    assert 0.9 < angle / np.prod(norms) < 1 - 1e-6  # an approximation, and not the gradient itself


def test_a_plain_rnn_learns_from_the_current_step(rng):
    layer = RNN(I, H, dtype=np.float64, rng=0)
    learner, x = Learner(layer), rng.standard_normal((T, 1, I))
    for x_t in x:
        before = learner.state_dict()["h_l0"]
        learner.step(x_t)
    dy = rng.standard_normal((1, H))
    _, _, tape = layer.forward(x[-1:], before[np.newaxis])
    assert_close(learner.backward(dy), layer.backward(tape, dy[np.newaxis]).parameters, 1e-14)


# --- several layers


def test_the_last_recurrent_layer_has_the_gradient_of_bptt(rng):
    layer = SRU(I, H, 2, dtype=np.float64, rng=0)
    x = rng.standard_normal((T, N, I))
    y, _, tape = layer.forward(x)
    dy = rng.standard_normal(y.shape)
    predictions, total = sums_of_gradients(Learner(layer, batch_size=N), x, dy)
    exact = layer.backward(tape, dy).parameters
    np.testing.assert_array_equal(predictions, y)
    assert total.keys() == exact.keys()
    of_last, of_first = ([name for name in exact if f"_l{k}" in name] for k in (1, 0))
    assert_close({name: total[name] for name in of_last}, {name: exact[name] for name in of_last}, 1e-13)
    assert all(np.abs(total[name] - exact[name]).max() > 1e-3 for name in of_first)


def test_all_layers_have_it_if_the_later_ones_keep_nothing(rng):
    layer = MinGRU(I, H, 3, dtype=np.float64, rng=0)
    for k in (1, 2):
        layer.parameters[f"bias_ih_l{k}"][:H] = 60  # u = 1
    compare_with_bptt(layer, rng)


def test_a_stack_is_a_sequence_of_its_layers(rng):
    stack = MinLSTM(I, H, 2, rng=0)
    parts = MinLSTM(I, H), MinLSTM(H, H)
    for k, part in enumerate(parts):
        part.load_state_dict({f"{n[:-1]}0": a for n, a in stack.parameters.items() if n.endswith(str(k))})
    x, dy = rng.standard_normal((T, N, I)), rng.standard_normal((T, N, H))
    y, total = sums_of_gradients(Learner(stack, batch_size=N), x, dy)
    others, sums = sums_of_gradients(Learner(Sequential(*parts), batch_size=N), x, dy)
    np.testing.assert_array_equal(y, others)
    assert_same_bits({f"{n[-1]}.{n[:-1]}0": a for n, a in total.items()}, sums)


def test_layers_around_the_recurrent_one(rng):
    """Those after it have the gradient of back-propagation through time, and those before it that of single steps."""
    head = Sequential(rnnfast.LayerNorm(H, dtype=np.float64), Linear(H, 4, dtype=np.float64, rng=2))
    options = {"dtype": np.float64, "rng": 1}
    model = Sequential(rnnfast.Embedding(7, I, **options), MinGRU(I, H, **options), rnnfast.Activation("tanh"), head)
    ids = rng.integers(0, 7, (T, N))
    y, _, tape = model.forward(ids)
    dy = rng.standard_normal(y.shape)
    predictions, total = sums_of_gradients(Learner(model, batch_size=N), ids, dy)
    np.testing.assert_allclose(predictions, y, rtol=1e-13)
    exact, state = model.backward(tape, dy).parameters, None
    exact["0.weight"] = 0
    for ids_t, dy_t in zip(ids, dy, strict=True):
        _, state, tape = model.forward(ids_t[np.newaxis], state)
        exact["0.weight"] += model.backward(tape, dy_t[np.newaxis]).parameters["0.weight"]
    assert_close(total, exact, 1e-13)


# --- the same bits


@pytest.mark.parametrize("maker", [MinGRU, SRU, LSTM])
def test_rows_are_independent(maker, rng):
    layer, rows = maker(I, H, rng=0), 70
    x = rng.standard_normal((T, rows, I)).astype(np.float32)
    states = []
    for which in (slice(0, rows), slice(3, 4), slice(60, 70)):
        learner = Learner(layer, batch_size=which.stop - which.start)
        y = [learner.step(x_t[which]) for x_t in x]
        states.append({"y": np.stack(y, axis=1), **learner.state_dict()})
    for which, state in ((slice(3, 4), states[1]), (slice(60, 70), states[2])):
        assert_same_bits(state, {name: array[which] for name, array in states[0].items()})


def test_any_number_of_threads(threads, rng):
    x, dy = rng.standard_normal((4, 64, 40)), rng.standard_normal((4, 64, 50))
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(sums_of_gradients(Learner(MinLSTM(40, 50, rng=0), batch_size=64), x, dy)[1])
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


# --- learning


def drifting(steps):
    t = np.arange(steps + 1)
    return np.sin(t * (0.2 + t / (20 * steps))).astype(np.float32)


@pytest.mark.parametrize("maker", [MinGRU, MinLSTM, SRU, IndRNN, RNN, LSTM, GRU])
def test_losses_fall_on_a_drifting_series(maker):
    wave = drifting(1500)
    learner = Learner(maker(1, 12, rng=0), Linear(12, 1, rng=1), clip=1.0)
    learner.optimizer.lr = 0.01
    losses = []
    for value, following in itertools.pairwise(wave):
        learner.step([value], [following])
        losses.append(learner.last_loss)
    assert np.mean(losses[-300:]) < 0.2 * np.mean(losses[:100])


def test_step_with_target_is_step_and_learn():
    results = []
    for joint in (False, True):
        layer, readout = MinGRU(I, H, rng=0), Linear(H, 2, rng=1)
        learner = Learner(layer, readout, optimizer=SGD([layer, readout], lr=0.1), batch_size=N)
        generator = np.random.default_rng(0)
        for _ in range(T):
            x, target = generator.standard_normal((N, I)), generator.standard_normal((N, 2))
            if joint:
                learner.step(x, target)
            else:
                learner.step(x)
                assert learner.learn(target) == learner.last_loss
        results.append({**learner.model.state_dict(), **learner.state_dict()})
    assert_same_bits(*results)


def test_an_update_is_a_step_of_the_optimizer(rng):
    layer, readout = MinGRU(I, H, rng=0), Linear(H, 2, rng=1)
    learner = Learner(layer, readout, optimizer=SGD([layer, readout], lr=0.5), batch_size=N)
    y, target = learner.step(rng.standard_normal((N, I))), rng.standard_normal((N, 2)).astype(np.float32)
    loss, dy = mean_squared_error(y, target)
    before, gradients = learner.model.state_dict(), learner.backward(dy)
    assert learner.learn(target) == loss
    expected = {name: array - np.float32(0.5) * gradients[name] for name, array in before.items()}
    assert_same_bits(learner.model.state_dict(), expected)


def test_clipping_scales_the_gradients(rng):
    layer = MinGRU(I, H, rng=0)
    learner = Learner(layer, optimizer=SGD(layer, lr=1), clip=1e-3)
    before = layer.state_dict()
    learner.step(rng.standard_normal(I), np.full(H, 100.0))
    moved = sum(((layer.parameters[name] - array) ** 2).sum() for name, array in before.items())
    assert np.sqrt(moved) == pytest.approx(1e-3, rel=1e-2)


def test_an_optimizer_of_some_parameters_leaves_the_others(rng):
    layer, readout = MinGRU(I, H, rng=0), Linear(H, 2, rng=1)
    learner = Learner(layer, readout, optimizer=RMSprop({"w": readout.parameters["weight"]}))
    before = learner.model.state_dict()
    learner.step(rng.standard_normal(I), np.ones(2))
    changed = [name for name, array in learner.model.parameters.items() if (array != before[name]).any()]
    assert changed == ["1.weight"]


def test_rows_without_a_target(rng):
    def learner():
        layer = MinGRU(I, H, rng=0)
        return Learner(layer, optimizer=SGD(layer, lr=0.1), batch_size=2)

    both, one = learner(), learner()
    x, target = rng.standard_normal((2, I)), rng.standard_normal((2, H))
    both.step(x)
    both.learn(np.where([[True], [False]], target, np.nan), mask=[True, False])
    one.step(np.stack([x[0], x[0]]), np.stack([target[0], target[0]]))
    assert_close(both.model.state_dict(), one.model.state_dict(), 1e-6)


def test_classes_one_row_at_a_time():
    model = Sequential(rnnfast.Embedding(5, 8, rng=0), MinGRU(8, 16, rng=1), Linear(16, 5, rng=2))
    learner = Learner(model, loss=softmax_cross_entropy, optimizer=Adam(model, lr=0.01))
    text = np.arange(600) ** 2 % 5
    for code, following in itertools.pairwise(text):
        assert learner.step(code).shape == (5,)
        learner.learn(following)
    assert learner.last_loss < 0.1


def test_weights_that_are_not_finite_are_the_callers(rng):
    layer = MinGRU(I, H, rng=0)
    learner = Learner(layer)
    learner.step(rng.standard_normal(I), np.full(H, np.nan))
    assert np.isnan(learner.last_loss)
    assert np.isnan(layer.parameters["weight_ih_l0"]).any()


# --- states and files


def test_reset_of_rows(rng):
    layer = SRU(I, H, rng=0, init_state=True)
    layer.parameters["c0_l0"][...] = 1
    learner, fresh = Learner(layer, batch_size=N), Learner(layer, batch_size=N)
    start = fresh.state_dict()
    learner.step(rng.standard_normal((N, I)))
    before = learner.state_dict()
    dy = rng.standard_normal((N, H))
    gradients = learner.backward(dy)
    learner.reset([0, 2])
    after = learner.state_dict()
    for name, array in after.items():
        np.testing.assert_array_equal(array[[0, 2]], start[name][[0, 2]], err_msg=name)
        np.testing.assert_array_equal(array[1], before[name][1], err_msg=name)
    assert_same_bits(learner.backward(dy), gradients)  # those of the step before the reset
    learner.reset()
    assert_same_bits(learner.state_dict(), start)
    with pytest.raises(IndexError, match="rows does not index a batch of 3 rows"):
        learner.reset(3)


def test_changed_initial_states_count_from_the_next_reset():
    layer = MinGRU(I, H, rng=0, init_state=True)
    learner = Learner(layer, batch_size=N)
    layer.parameters["h0_l0"][...] = 2
    assert not learner.state_dict()["h_l0"].any()
    learner.reset()
    assert (learner.state_dict()["h_l0"] == 2).all()


def new_learner(maker=LSTM):
    layer, readout = maker(I, H, rng=0), Linear(H, 2, rng=1)
    return Learner(layer, readout, optimizer=Adam([layer, readout], lr=0.01), batch_size=N)


@pytest.mark.parametrize("maker", [MinGRU, LSTM])
def test_a_loaded_learner_continues_exactly(maker, tmp_path, rng):
    x, targets = rng.standard_normal((2 * T, N, I)), rng.standard_normal((2 * T, N, 2))
    learner, other = new_learner(maker), new_learner(maker)
    for t in range(T):
        learner.step(x[t], targets[t])
    learner.save(tmp_path / "learner")
    other.load(tmp_path / "learner")
    for t in range(T, 2 * T):
        np.testing.assert_array_equal(learner.step(x[t], targets[t]), other.step(x[t], targets[t]))
    for one in ("model", "optimizer"):
        assert_same_bits(getattr(learner, one).state_dict(), getattr(other, one).state_dict())
    assert_same_bits(learner.state_dict(), other.state_dict())


def everything(learner):
    return {**learner.model.state_dict(), **learner.optimizer.state_dict(), **learner.state_dict()}


def test_files_of_other_learners_change_nothing(tmp_path, rng):
    learner, other = new_learner(MinGRU), Learner(MinGRU(I, H), Linear(H, 2), batch_size=N + 1)
    other.save(tmp_path / "other")
    learner.step(rng.standard_normal((N, I)), np.ones((N, 2)))
    before = everything(learner)
    with pytest.raises(ValueError, match="online"):
        learner.load(tmp_path / "other")
    rnnfast.training.save_checkpoint(tmp_path / "plain", learner.model, learner.optimizer)
    with pytest.raises(ValueError, match="online"):
        learner.load(tmp_path / "plain")
    assert_same_bits(everything(learner), before)


def test_state_dicts(rng):
    learner = new_learner()
    learner.step(rng.standard_normal((N, I)), np.ones((N, 2)))
    state = learner.state_dict()
    assert state["0.c_l0"].shape == (N, H)
    assert state["0.trace.weight_ih_l0"].shape == (N, 4 * H, I)
    other = new_learner()
    other.load_state_dict({name: array.tolist() for name, array in state.items()})
    assert_same_bits(other.state_dict(), state)
    with pytest.raises(RuntimeError, match="no step to learn from"):
        other.learn(np.ones((N, 2)))
    with pytest.raises(ValueError, match=r"lacks 0\.c_l0"):
        other.load_state_dict({name: array for name, array in state.items() if name != "0.c_l0"})
    with pytest.raises(ValueError, match=r"arrays\['0.h_l0'\] must have shape"):
        other.load_state_dict({**state, "0.h_l0": np.ones((N, H + 1))})
    with pytest.raises(TypeError, match="arrays must be a mapping"):
        other.load_state_dict([1])
    assert_same_bits(other.state_dict(), state)


# --- errors


def _raise(*_):
    raise OverflowError("of the loss")


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize(
    ("target", "options", "error", "message"),
    [
        (np.ones((N, 3)), {}, ValueError, "shape"),
        (np.ones(N), {}, ValueError, "shape"),
        ("abc", {}, TypeError, "target"),
        (np.ones((N, 2)), {"mask": [1, 0, 1]}, TypeError, "mask must be boolean"),
        (np.ones((N, 2)), {"unknown": 1}, TypeError, "unknown"),
    ],
)
def test_errors_of_the_loss_change_nothing(target, options, error, message, joint, rng):
    learner = new_learner()
    learner.step(rng.standard_normal((N, I)), np.ones((N, 2)))
    x = rng.standard_normal((N, I))
    if joint:
        before = everything(learner)
        with pytest.raises(error, match=message):
            learner.step(x, target, **options)
        assert_same_bits(everything(learner), before)
        return
    y = learner.step(x)
    before = everything(learner)
    with pytest.raises(error, match=message):
        learner.learn(target, **options)
    assert_same_bits(everything(learner), before)
    assert learner.learn(y) == 0  # still possible


def test_errors_of_the_optimizer_change_nothing(rng):
    learner = new_learner()
    learner.step(rng.standard_normal((N, I)))
    learner.model.freeze()
    before = everything(learner)
    with pytest.raises(ValueError, match="read-only"):
        learner.learn(np.ones((N, 2)))
    learner.model.unfreeze()
    learner.optimizer.lr = -1
    with pytest.raises(ValueError, match="lr must be"):
        learner.learn(np.ones((N, 2)))
    learner.optimizer.lr = 0.01
    learner.loss = _raise
    with pytest.raises(OverflowError, match="of the loss"):
        learner.learn(np.ones((N, 2)))
    learner.loss = lambda _y, _target: (1.0, np.ones((N, 3)))
    with pytest.raises(ValueError, match=r"dy must have the shape of the prediction, \(3, 2\), got \(3, 3\)"):
        learner.learn(np.ones((N, 2)))
    assert_same_bits(everything(learner), before)
    assert learner.last_loss is None


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (
            np.ones((N, I + 1)),
            ValueError,
            r"x must hold one step, of shape \(rows, features\) = \(3, 5\), got \(3, 6\)",
        ),
        (np.ones((T, N, I)), ValueError, r"got \(9, 3, 5\)"),
        (np.ones(I), ValueError, r"got \(5,\)"),
        (np.ones((N, I), complex), TypeError, "x must hold real numbers"),
    ],
)
def test_invalid_steps_change_nothing(x, error, message, rng):
    learner = new_learner()
    y = learner.step(rng.standard_normal((N, I)))
    before = everything(learner)
    with pytest.raises(error, match=message):
        learner.step(x)
    assert_same_bits(everything(learner), before)
    assert learner.learn(y) == 0


def test_ids_out_of_range():
    learner = Learner(Sequential(rnnfast.Embedding(4, I, rng=0), GRU(I, H, rng=1)), batch_size=N)
    learner.step([0, 1, 2])
    with pytest.raises(ValueError, match="x must hold ids from 0 to num_embeddings - 1 = 3, got 4"):
        learner.step([0, 1, 4])
    with pytest.raises(ValueError, match=r"x must hold one step, of shape \(rows,\) = \(3\), got \(2,\)"):
        learner.step([0, 1])
    learner.learn(np.ones((N, H)))


def test_learning_needs_a_step(rng):
    learner = new_learner()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="call step first; each step allows one call of learn"):
            learner.learn(np.ones((N, 2)))
        with pytest.raises(RuntimeError, match="call step first"):
            learner.backward(np.ones((N, 2)))
        learner.step(rng.standard_normal((N, I)), np.ones((N, 2)))
    with pytest.raises(TypeError, match="mask is an option of the loss, which needs a target"):
        learner.step(rng.standard_normal((N, I)), mask=[True])


LAYER = MinGRU(I, H, rng=0)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((LSTM(I, H, bidirectional=True),), {}, ValueError, "runs backward in time, so it cannot learn online"),
        ((MinGRU(I, H, reverse=True),), {}, ValueError, "runs backward in time"),
        ((GRU(I, H, reset_after=False),), {}, ValueError, "use reset_after=True"),
        ((MinGRU(I, H, 2, dropout=0.1),), {}, ValueError, "has dropout, which a learner does not apply"),
        ((LSTM(I, H, recurrent_dropout=0.1),), {}, ValueError, "has dropout"),
        ((LSTM(I, H, zoneout=0.1),), {}, ValueError, "has zoneout, which a learner does not support"),
        ((Linear(I, H),), {}, ValueError, "model must have a recurrent layer"),
        ((Sequential(LAYER, rnnfast.Dropout(0.1)),), {}, TypeError, "layer 1 of model must be a recurrent layer"),
        ((Sequential(LAYER, rnnfast.Pool("last")),), {}, TypeError, "train other models with truncated_bptt"),
        ((rnnfast.Bidirectional(GRU(I, H)),), {}, TypeError, "model must be a recurrent layer"),
        (("GRU",), {}, TypeError, "model must be a recurrent layer.*got str"),
        ((LAYER, "Linear"), {}, TypeError, "readout must be a layer of rnnfast, got str"),
        ((LAYER, Linear(H + 1, 1)), {}, ValueError, "returns 6 features"),
        ((LAYER,), {"loss": "mse"}, TypeError, "loss must be a function, got 'mse'"),
        ((LAYER,), {"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ((LAYER,), {"clip": 0}, ValueError, "clip must be above 0"),
        ((LAYER,), {"optimizer": Adam}, TypeError, "optimizer must be one such as"),
        ((LAYER,), {"optimizer": Adam(Linear(2, 2))}, ValueError, "optimizer must update the parameters of the model"),
        ((LAYER,), {"batch_size": 1 << 60}, MemoryError, "cannot allocate"),
    ],
)
def test_what_is_not_supported(arguments, options, error, message):
    with pytest.raises(error, match=message):
        Learner(*arguments, **options)


def test_narrow_weights_cannot_learn():
    layer = GRU(I, H, rng=0)
    layer.freeze(weights="int8")
    with pytest.raises(ValueError, match="unfreeze"):
        Learner(layer)


def test_learners_are_fixed_and_not_copied():
    learner = new_learner()
    assert repr(learner).startswith("Learner(Sequential")
    with pytest.raises(AttributeError, match="batch_size of this Learner is fixed"):
        learner.batch_size = 2
    for function in (copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="save it, and load it into a new learner"):
            function(learner)


# --- the kernel


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 5, 1), (2, 3, 4, 7), (1, 2, 3, 33)])
def test_add_scaled(shape, summed, dtype, rng):
    source, factors = rng.standard_normal(shape).astype(dtype), rng.standard_normal((shape[0], shape[2])).astype(dtype)
    target = rng.standard_normal(shape[1:] if summed else shape).astype(dtype)
    scaled = factors[:, np.newaxis, :, np.newaxis] * source
    expected = target.copy()
    for one in scaled if summed else [scaled]:
        expected += one
    _core.add_scaled([target], factors, [source])
    np.testing.assert_array_equal(target, expected)


@pytest.mark.parametrize(
    ("target", "factors", "source"),
    [
        (np.ones(12), np.ones((1, 3)), np.ones((1, 2, 3, 3))),
        (np.ones(18), np.ones((2, 3)), np.ones((1, 2, 3, 3))),
        (np.ones(18), np.ones((1, 2)), np.ones((1, 2, 3, 3))),
        (np.ones(18, np.float32), np.ones((1, 3)), np.ones((1, 2, 3, 3))),
        (np.ones(18), np.ones(3), np.ones((1, 2, 3, 3))),
        (np.ones(18), np.ones((1, 3), int), np.ones((1, 2, 3, 3))),
        (np.ones(18), np.ones((1, 3)), np.ones((2, 3, 3))),
        (np.ones(18), np.ones((1, 3)), np.ones((1, 2, 3, 6))[..., ::2]),
    ],
)
def test_add_scaled_refuses_arrays_that_do_not_fit(target, factors, source):
    before = target.copy()
    with pytest.raises((ValueError, TypeError, BufferError)):
        _core.add_scaled([target], factors, [source])
    np.testing.assert_array_equal(target, before)
