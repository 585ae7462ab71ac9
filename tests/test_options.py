"""Options of cells: activations, clipping, peepholes and coupled gates, forward and backward.

Forward is compared with a loop in NumPy that is written here, backward with central differences of forward.
"""

import copy
import json
import pickle

import numpy as np
import pytest
from support.compare import assert_close, assert_same, assert_same_bits, central_differences, members, named

import rnnfast
from rnnfast import functional, options
from rnnfast.layers import saving

T, N, I, H = 5, 3, 4, 6
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-13}


# ---- the equations, as the ONNX standard has them

FORMULAS = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "affine": lambda x, alpha=1.0, beta=0.0: alpha * x + beta,
    "leaky_relu": lambda x, alpha=0.01: np.where(x >= 0, x, alpha * x),
    "thresholded_relu": lambda x, alpha=1.0: np.where(x >= alpha, x, 0),
    "scaled_tanh": lambda x, alpha=1.0, beta=1.0: alpha * np.tanh(beta * x),
    "hard_sigmoid": lambda x, alpha=0.2, beta=0.5: np.clip(alpha * x + beta, 0, 1),
    "elu": lambda x, alpha=1.0: np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0))),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "softplus": lambda x: np.logaddexp(0, x),
}

# Each function with an alpha and beta other than the defaults.
GIVEN = {
    "affine": ("affine", 0.7, 0.1),
    "leaky_relu": ("leaky_relu", 0.3),
    "thresholded_relu": ("thresholded_relu", 0.2),
    "scaled_tanh": ("scaled_tanh", 0.8, 1.3),
    "hard_sigmoid": ("hard_sigmoid", 0.6, 0.4),
    "elu": ("elu", 0.6),
}


def function(one, clip):
    name, *numbers = (one,) if isinstance(one, str) else one

    def bounded(x):
        return FORMULAS[name](x if clip is None else np.clip(x, -clip, clip), *numbers)

    return bounded


def lstm_step(p, f, g, h_of, layer, a, q, h, c):
    peephole = p.get("peephole", np.zeros((3, c.shape[1])))
    i, forget, new, o = np.split(a + q(p["weight_hh"]), 4, axis=1)
    i = f(i + peephole[0] * c)
    forget = 1 - i if layer.coupled else f(forget + peephole[1] * c)
    c = forget * c + i * g(new)
    h = f(o + peephole[2] * c) * h_of(c)
    return h @ p["weight_hr"].T if "weight_hr" in p else h, c


def gru_step(p, f, g, layer, a, q, h):
    a_r, a_z, a_n = np.split(a, 3, axis=1)
    q_r, q_z, q_n = np.split(q(p["weight_hh"]), 3, axis=1)
    r, z = f(a_r + q_r), f(a_z + q_z)
    if layer.reset_after:
        n = g(a_n + r * q_n)
    else:
        w_n, b_n = np.split(p["weight_hh"], 3)[2], np.split(p["bias_hh"], 3)[2]
        n = g(a_n + (r * h) @ w_n.T + b_n)
    return ((1 - z) * n + z * h,)


def rnn_step(p, f, layer, a, q, h):  # noqa: ARG001
    return (f(a + q(p["weight_hh"])),)


STEPS = {rnnfast.LSTM: lstm_step, rnnfast.GRU: gru_step, rnnfast.RNN: rnn_step}
PLAIN = {rnnfast.LSTM: ["sigmoid", "tanh", "tanh"], rnnfast.GRU: ["sigmoid", "tanh"]}


def by_numpy(layer, x, state, real=None, held=True):
    """The results of a call, time first. real: (T, N), the valid steps; held: y is held elsewhere."""
    directions = 1 + layer.bidirectional
    plain = PLAIN.get(type(layer)) or [layer.nonlinearity]
    chosen = list(layer.activations or plain)
    chosen = chosen * (directions * len(plain) // len(chosen))
    real = np.ones(x.shape[:2], bool) if real is None else real
    ends = []
    for k in range(layer.num_layers):
        outputs = []
        for d in range(directions):
            suffix = f"_l{k}" + "_reverse" * d
            p = {name[: -len(suffix)]: value for name, value in layer.parameters.items() if name.endswith(suffix)}
            p = {"bias_ih": np.zeros(len(p["weight_ih"])), "bias_hh": np.zeros(len(p["weight_ih"])), **p}
            functions = [function(one, layer.clip) for one in chosen[d * len(plain) : (d + 1) * len(plain)]]
            last = [member[k * directions + d] for member in members(state)]
            y = np.zeros((*x.shape[:2], last[0].shape[1]), x.dtype)
            shown = np.zeros_like(last[0])
            for t in range(len(x))[:: -1 if d or layer.reverse else 1]:
                h = last[0]
                a = x[t] @ p["weight_ih"].T + p["bias_ih"]
                bias = p["bias_hh"]
                after = STEPS[type(layer)](p, *functions, layer, a, lambda w, h=h, b=bias: h @ w.T + b, *last)
                last = [np.where(real[t][:, None], new, old) for new, old in zip(after, last, strict=True)]
                shown = np.where(real[t][:, None], last[0], shown if held else 0)
                y[t] = shown
            outputs.append(y)
            ends.append(last)
        x = np.concatenate(outputs, axis=2)
    ends = tuple(np.stack(member) for member in zip(*ends, strict=True))
    return x, ends if len(ends) > 1 else ends[0]


# ---- the cases


def turn(k, count):
    """Functions k, k + 3, k + 6 ..., so that each function is used in each position with varying others."""
    names = list(FORMULAS)
    return [GIVEN.get(name, name) for name in (names[(k + 3 * i) % len(names)] for i in range(count))]


CASES = {
    "lstm peepholes": (rnnfast.LSTM, {"peepholes": True}),
    "lstm coupled": (rnnfast.LSTM, {"coupled": True}),
    "lstm clip": (rnnfast.LSTM, {"clip": 0.3}),
    "lstm all": (rnnfast.LSTM, {"peepholes": True, "coupled": True, "clip": 0.4, "activations": turn(7, 3)}),
    "lstm peepholes clip": (rnnfast.LSTM, {"peepholes": True, "clip": 0.3}),
    "lstm projected": (rnnfast.LSTM, {"peepholes": True, "clip": 0.5, "activations": turn(6, 3), "proj_size": 4}),
    "gru clip": (rnnfast.GRU, {"clip": 0.3}),
    "gru_before clip": (rnnfast.GRU, {"clip": 0.3, "reset_after": False}),
    "rnn clip": (rnnfast.RNN, {"clip": 0.3}),
    "relu clip": (rnnfast.RNN, {"clip": 0.3, "nonlinearity": "relu"}),
}
for k, name in enumerate(FORMULAS):
    CASES[f"lstm {name}"] = (rnnfast.LSTM, {"activations": turn(k, 3)})
    CASES[f"gru {name}"] = (rnnfast.GRU, {"activations": turn(k, 2)})
    CASES[f"gru_before {name}"] = (rnnfast.GRU, {"activations": turn(k, 2), "reset_after": False})
    CASES[f"rnn {name}"] = (rnnfast.RNN, {"activations": turn(k, 1)})

FEW = ["lstm all", "lstm projected", "gru clip", "gru_before elu", "gru softplus", "rnn hard_sigmoid", "lstm peepholes"]

STACKS = {
    "forward": {},
    "reverse": {"reverse": True, "bias": False},
    "both": {"bidirectional": True},
    "deep": {"num_layers": 2},
    "deep both": {"num_layers": 2, "bidirectional": True},
}

UNEVEN = {
    "even": {},
    "lengths": {"lengths": [2, 0, 5]},
    "mask": {"mask": np.random.default_rng(3).random((T, N)) < 0.6},
    "zero masked": {"mask": np.random.default_rng(4).random((T, N)) < 0.6, "zero_masked": True},
}


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def make(case, stack="forward", sizes=(I, H), **given):
    kind, own = CASES[case]
    own = {**own, **STACKS[stack], "rng": 0, **given}
    if own.get("bidirectional") and own.get("activations"):  # the other direction has others
        k = list(FORMULAS).index(own["activations"][0] if isinstance(own["activations"][0], str) else "elu")
        own["activations"] = own["activations"] + turn(k + 4, len(own["activations"]))
    return kind(*sizes, **own)


def values(layer, shape=(T, N, I)):
    """x, state, dy and dstate for a layer, small enough that unbounded activations do not overflow."""
    rng = np.random.default_rng(5)

    def like(array):
        return rng.standard_normal(array.shape).astype(layer.dtype)

    for array in layer.parameters.values():
        if array.flags.writeable:
            array *= 0.8
    x = rng.standard_normal(shape).astype(layer.dtype)
    y, state = layer(x)
    state, dstate = (tuple(map(like, members(state))) if isinstance(state, tuple) else like(state) for _ in range(2))
    return x, state, like(y), dstate


def results(layer, x, state, dy=None, dstate=None, checkpoint=None, **uneven):
    y, end, tape = layer.forward(x, state, checkpoint=checkpoint, **uneven)
    return named(y, end, *layer.backward(tape, dy, dstate))


def real_steps(uneven):
    lengths = uneven.get("lengths")
    return uneven.get("mask", None if lengths is None else np.arange(T)[:, None] < np.array(lengths))


def rows(values, which):
    return tuple(v[:, which] for v in values) if isinstance(values, tuple) else values[:, which]


# ---- results


@pytest.mark.parametrize("stack", STACKS)
def test_forward_is_that_of_numpy(case, stack, dtype, isa):
    with functional.use_isa(isa):
        layer = make(case, stack, dtype=dtype)
        assert layer.engine.options is not None or PLAIN.get(type(layer), ["tanh"]) == list(layer.activations)
        x, state, _, _ = values(layer)
        y, end = layer(x, state)
    exact = make(case, stack, dtype=np.float64)
    exact.load_state_dict(layer.parameters)
    want = by_numpy(exact, x.astype(np.float64), tuple(map(np.float64, state)) if len(members(state)) == 2 else state)
    for got, expected in zip((y, *members(end)), (want[0], *members(want[1])), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[dtype] * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("uneven", list(UNEVEN)[1:])
@pytest.mark.parametrize("stack", ["reverse", "deep both"])
def test_forward_of_uneven_rows_is_that_of_numpy(case, stack, uneven):
    layer = make(case, stack, dtype=np.float64)
    x, state, _, _ = values(layer)
    given = UNEVEN[uneven]
    y, end = layer(x, state, **given)
    want = by_numpy(layer, x, state, real_steps(given), held=uneven == "mask")
    for got, expected in zip((y, *members(end)), (want[0], *members(want[1])), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13 * max(1, np.abs(expected).max()))


def test_values_lie_on_both_sides_of_the_clip():
    """The values of these tests lie on both sides of the clip."""
    layer = make("lstm clip", dtype=np.float64)
    x, state, _, _ = values(layer)
    a = np.abs(x @ layer.parameters["weight_ih_l0"].T)
    assert 0.05 < (a < layer.clip).mean() < 0.95
    assert np.abs(layer(x, state)[0] - make("lstm clip", clip=None, dtype=np.float64)(x, state)[0]).max() > 0.1


GRADIENTS = [(case, stack, "even") for case in CASES for stack in STACKS]
GRADIENTS += [
    (case, stack, uneven) for case in FEW for stack in ("reverse", "deep both") for uneven in list(UNEVEN)[1:]
]


@pytest.mark.parametrize(("case", "stack", "uneven"), GRADIENTS)
def test_gradients_are_central_differences(case, stack, uneven):
    layer = make(case, stack, sizes=(2, 5 if case == "lstm projected" else 3), dtype=np.float64)
    x, state, dy, dstate = values(layer, (T, N, 2))
    given = UNEVEN[uneven]

    def loss():
        y, end = layer(x, state, **given)
        ends = zip(members(end), members(dstate), strict=True)
        return np.vdot(y, dy) + sum(np.vdot(e, d) for e, d in ends)

    _, _, tape = layer.forward(x, state, **given)
    got = layer.backward(tape, dy, dstate)
    want = {"dx": central_differences(loss, x)}
    want.update({f"dstate {i}": central_differences(loss, member) for i, member in enumerate(members(state))})
    want.update({f"d{name}": central_differences(loss, value) for name, value in layer.parameters.items()})
    gradients = {"dx": got.x, **{f"dstate {i}": member for i, member in enumerate(members(got.state))}}
    gradients.update({f"d{name}": gradient for name, gradient in got.parameters.items()})
    assert_close(gradients, want, 1e-7)


@pytest.mark.parametrize("stack", ["reverse", "deep both"])
def test_gradients_agree_on_every_instruction_set(case, stack, dtype, isa):
    exact = make(case, stack, dtype=np.float64)
    given = values(exact)
    with functional.use_isa(isa):
        layer = make(case, stack, dtype=dtype)
    layer.load_state_dict(exact.parameters)
    assert layer.engine.isa == isa
    assert_close(results(layer, *given), results(exact, *given), 4 * TOLERANCE[dtype])


@pytest.mark.parametrize("name", [*GIVEN, "relu"])
def test_slopes_at_corners(name):
    """At a corner the slope is that of one of the two sides."""
    corners = {"leaky_relu": [0], "thresholded_relu": [0.2], "elu": [0], "hard_sigmoid": [-2 / 3, 1], "relu": [0]}
    layer = rnnfast.RNN(1, 1, activations=[GIVEN.get(name, name)], bias=False, dtype=np.float64)
    layer.load_state_dict({"weight_ih_l0": [[1.0]], "weight_hh_l0": [[0.0]]})

    def slope(x):
        y, _, tape = layer.forward([[[x]]])
        return layer.backward(tape, np.ones_like(y)).x.item()

    for corner in corners.get(name, []):
        sides = [slope(corner - 1e-3), slope(corner + 1e-3)]
        assert min(abs(slope(corner) - side) for side in sides) < 1e-2


# ---- the same bits


@pytest.mark.parametrize("stack", ["reverse", "deep both"])
def test_a_row_alone(case, stack, dtype, isa):
    with functional.use_isa(isa):
        layer = make(case, stack, sizes=(I, 21), dtype=dtype)
    x, state, dy, dstate = values(layer, (T, 13, I))
    together = results(layer, x, state, dy, dstate)
    for n in (0, 7, 12):
        one = slice(n, n + 1)
        alone = results(layer, x[:, one], rows(state, one), dy[:, one], rows(dstate, one))
        for key, value in alone.items():
            if not key.startswith(("dweight", "dbias", "dpeephole")):
                np.testing.assert_array_equal(value, together[key][:, one], err_msg=key)


def test_rows_by_lengths_are_rows_alone(case, dtype):
    layer = make(case, "deep both", dtype=dtype)
    x, state, dy, dstate = values(layer)
    lengths = [2, 5, 3]
    dy[np.arange(T)[:, None] >= np.array(lengths)] = 0
    together = results(layer, x, state, dy, dstate, lengths=lengths)
    for n, length in enumerate(lengths):
        one = slice(n, n + 1)
        alone = results(layer, x[:length, one], rows(state, one), dy[:length, one], rows(dstate, one))
        for key, value in alone.items():
            if not key.startswith(("dweight", "dbias", "dpeephole")):
                want = together[key][: len(value), one] if key in ("y", "dx") else together[key][:, one]
                np.testing.assert_array_equal(value, want, err_msg=key)


@pytest.mark.parametrize("checkpoint", [1, 8])
@pytest.mark.parametrize("stack", ["reverse", "deep both"])
def test_checkpoints(case, stack, checkpoint):
    layer = make(case, stack)
    given = values(layer, (23, 64, I))
    for uneven in ({}, {"lengths": np.arange(64) % 24}):
        assert_same(results(layer, *given, checkpoint=checkpoint, **uneven), results(layer, *given, **uneven))


@pytest.mark.cover(1)
@pytest.mark.parametrize("shape", [(4, 2, I), (7, 40, I), (300, 3, I)])
def test_any_number_of_threads(threads, case, shape):
    layer = make(case, "deep both", sizes=(I, 40))
    given = values(layer, shape)
    threads(1)
    want = results(layer, *given)
    for count in (2, 5):
        threads(count)
        assert_same(results(layer, *given), want)


def test_call_forward_frozen_chunks_and_stream(case, dtype):
    layer = make(case, "deep", dtype=dtype)
    x, state, dy, dstate = values(layer)
    y, end, tape = layer.forward(x, state)
    gradients = layer.backward(tape, dy, dstate)
    before, after = layer(x[:2], state), None
    after = layer(x[2:], before[1])
    np.testing.assert_array_equal(np.concatenate([before[0], after[0]]), y)
    layer.freeze()
    stream = layer.stream(N)
    stream.state = state
    np.testing.assert_array_equal([stream.step(step) for step in x], y)
    for _ in range(3):
        for got, want in zip((layer(x, state)[0], *members(layer(x, state)[1])), (y, *members(end)), strict=True):
            np.testing.assert_array_equal(got, want)
    again = layer.backward(layer.forward(x, state)[2], dy, dstate)
    assert_same(named(y, end, *again), named(y, end, *gradients))


@pytest.mark.parametrize("place", ["x", "state"])
def test_nan_stays_in_its_row(case, place, dtype, isa):
    with functional.use_isa(isa):
        layer = make(case, dtype=dtype)
    x, state, dy, dstate = values(layer)
    clean = results(layer, x, state, dy, dstate)
    (x if place == "x" else members(state)[-1])[0, 1, 0] = np.nan
    got = results(layer, x, state, dy, dstate)
    assert np.isnan(got["y"][0, 1]).any()
    for key in ("y", "dx", *(key for key in clean if key.startswith(("state", "dstate")))):
        np.testing.assert_array_equal(got[key][:, [0, 2]], clean[key][:, [0, 2]], err_msg=key)


@pytest.mark.parametrize("name", FORMULAS)
def test_far_from_zero(name, dtype, isa):
    """Activations of very large values, and of infinity where the function has a limit."""
    largest = float(np.finfo(dtype).max)
    with functional.use_isa(isa):
        layer = rnnfast.RNN(1, 1, activations=[GIVEN.get(name, name)], clip=largest, bias=False, dtype=dtype)
    layer.load_state_dict({"weight_ih_l0": [[1.0]], "weight_hh_l0": [[0.0]]})
    x = np.array([-np.inf, -largest, -1e4, -50, 0, 50, 1e4, largest, np.inf], dtype).reshape(1, -1, 1)
    with np.errstate(over="ignore"):
        want = function(GIVEN.get(name, name), largest)(x.astype(np.float64)).astype(dtype)
    y, _, tape = layer.forward(x)
    np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-13)
    assert np.isfinite(layer.backward(tape, np.ones_like(y)).x).all()


def test_limits():
    layer = rnnfast.RNN(1, 1, activations=["thresholded_relu"], bias=False)
    layer.load_state_dict({"weight_ih_l0": [[1.0]], "weight_hh_l0": [[0.0]]})
    y, _ = layer(np.array([-np.inf, 0.5, np.inf, np.nan], np.float32).reshape(1, 4, 1))
    np.testing.assert_array_equal(y.ravel(), np.array([0, 0, np.inf, np.nan], np.float32))


# ---- plain cells and saved options


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    ("kind", "names", "given"),
    [
        (rnnfast.LSTM, ["sigmoid", "tanh", "tanh"], {}),
        (rnnfast.GRU, ["sigmoid", "tanh"], {}),
        (rnnfast.GRU, ["sigmoid", "tanh"], {"reset_after": False}),
        (rnnfast.RNN, ["tanh"], {}),
        (rnnfast.RNN, ["relu"], {"nonlinearity": "relu"}),
    ],
)
def test_default_options_run_the_plain_cell(kind, names, given, bidirectional):
    plain = kind(I, H, bidirectional=bidirectional, rng=0, **given)
    x = np.random.default_rng(0).standard_normal((T, N, I)).astype(np.float32)
    for chosen in (names, [(name,) for name in names], names * (1 + bidirectional)):
        layer = kind(I, H, bidirectional=bidirectional, rng=0, activations=chosen, clip=None, **given)
        assert layer.engine.options is None
        assert layer.engine.packed_size == plain.engine.packed_size
        np.testing.assert_array_equal(layer(x)[0], plain(x)[0])


def test_activations_stand_in_place_of_the_nonlinearity():
    x = np.random.default_rng(0).standard_normal((T, N, I))
    relu, tanh = (rnnfast.RNN(I, H, nonlinearity=name, rng=0, dtype=np.float64) for name in ("relu", "tanh"))
    layer = rnnfast.RNN(I, H, nonlinearity="relu", activations=["tanh"], rng=0, dtype=np.float64)
    np.testing.assert_allclose(layer(x)[0], tanh(x)[0], rtol=1e-14)
    assert np.abs(relu(x)[0] - tanh(x)[0]).max() > 0.1


@pytest.mark.parametrize("name", GIVEN)
def test_alpha_and_beta_are_numbers_of_the_dtype(name):
    """alpha and beta are rounded to float32, as a file stores them."""
    x = (np.random.default_rng(0).standard_normal((T, N, I)) - 1).astype(np.float32)
    numbers = [0.1, 0.3][: len(options.FUNCTIONS[name])]
    ours, rounded = (
        rnnfast.RNN(I, H, activations=[(name, *given)], rng=0) for given in (numbers, map(float, np.float32(numbers)))
    )
    np.testing.assert_array_equal(ours(x)[0], rounded(x)[0])


@pytest.mark.parametrize("name", GIVEN)
def test_alpha_and_beta_where_they_are_not_given(name):
    x = np.random.default_rng(0).standard_normal((T, N, I))
    bare, full = (rnnfast.RNN(I, H, activations=[one], rng=0) for one in (name, (name, *options.FUNCTIONS[name])))
    np.testing.assert_array_equal(bare(x)[0], full(x)[0])
    first = rnnfast.RNN(I, H, activations=[(name, options.FUNCTIONS[name][0])], rng=0)
    np.testing.assert_array_equal(first(x)[0], full(x)[0])


def test_every_function_is_known_everywhere():
    assert set(FORMULAS) == set(options.FUNCTIONS) == set(functional.FUNCTIONS)


@pytest.mark.parametrize("stack", ["reverse", "deep both"])
def test_kept(case, stack, tmp_path):
    layer = make(case, stack)
    x = values(layer)[0]
    layer.save(tmp_path / "layer")
    twins = [rnnfast.load(tmp_path / "layer"), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)]
    twins.append(eval(repr(layer), vars(rnnfast).copy()))
    twins[-1].load(tmp_path / "layer")
    for twin in twins:
        assert repr(twin) == repr(layer)
        assert saving.options(twin) == saving.options(layer)
        assert twin.engine.options == layer.engine.options
        np.testing.assert_array_equal(twin(x)[0], layer(x)[0])


def test_a_file_is_of_its_options(tmp_path):
    rnnfast.LSTM(I, H, clip=2, peepholes=True).save(tmp_path / "layer")
    for other, differs in (
        (rnnfast.LSTM(I, H), "clip=2.0, peepholes=True, but this one has clip=None, peepholes=False"),
        (rnnfast.LSTM(I, H, clip=3, peepholes=True), "clip=2.0, but this one has clip=3.0"),
        (rnnfast.LSTM(I, H, clip=2), "peepholes=True, but this one has peepholes=False"),
    ):
        with pytest.raises(ValueError, match=f"holds a layer with {differs}"):
            other.load(tmp_path / "layer")


def test_a_file_of_before_the_options(tmp_path):
    """Files of version 0.1.0 do not name them."""
    layer = rnnfast.LSTM(I, H, rng=0)
    description = {
        k: v for k, v in saving.to_json(layer).items() if k not in ("activations", "clip", "peepholes", "coupled")
    }
    header = np.array(json.dumps({"format": 1, "layer": description}))
    np.savez(tmp_path / "old.npz", rnnfast=header, **layer.parameters)
    rnnfast.LSTM(I, H).load(tmp_path / "old.npz")
    assert repr(rnnfast.load(tmp_path / "old.npz")) == repr(layer)


def test_repr():
    given = ["sigmoid", ("leaky_relu", 0.1), "tanh"]
    layer = rnnfast.LSTM(4, 8, activations=given, clip=3, peepholes=True, coupled=True)
    text = "LSTM(4, 8, activations=['sigmoid', ['leaky_relu', 0.1], 'tanh'], clip=3.0, peepholes=True, coupled=True)"
    assert repr(layer) == f"{text}  # 472 parameters"
    assert repr(rnnfast.RNN(4, 8, activations=["elu"])) == "RNN(4, 8, activations=['elu'])  # 112 parameters"


def test_peepholes_are_parameters():
    layer = rnnfast.LSTM(I, H, num_layers=2, bidirectional=True, peepholes=True, rng=0)
    names = [name for name in layer.parameters if name.startswith("peephole")]
    assert names == ["peephole_l0", "peephole_l0_reverse", "peephole_l1", "peephole_l1_reverse"]
    assert all(layer.parameters[name].shape == (3, H) for name in names)
    with pytest.raises(ValueError, match="peephole_l0 is missing"):
        layer.load_state_dict(rnnfast.LSTM(I, H, num_layers=2, bidirectional=True).parameters)


@pytest.mark.parametrize("backward", [None, {"activations": ["elu", "tanh", "tanh"]}])
def test_bidirectional_of_two_layers(backward):
    ours = rnnfast.LSTM(I, H, peepholes=True, clip=0.5, rng=0)
    other = None if backward is None else rnnfast.LSTM(I, H, reverse=True, rng=1, **backward)
    both = rnnfast.Bidirectional(ours, other)
    assert both.backward_layer.clip == (0.5 if backward is None else None)
    assert both.backward_layer.peepholes == (backward is None)
    x = np.random.default_rng(0).standard_normal((T, N, I)).astype(np.float32)
    np.testing.assert_array_equal(both(x)[0][..., H:], both.backward_layer(x)[0])


# ---- rejected models


@pytest.mark.parametrize(
    ("kind", "given", "error", "text"),
    [
        (rnnfast.LSTM, {"activations": "tanh"}, TypeError, "activations must be a list with 3 names, got 'tanh'"),
        (rnnfast.LSTM, {"activations": ["tanh"]}, ValueError, "activations must have length 3, for this cell, got 1"),
        (rnnfast.GRU, {"activations": ["tanh"] * 4}, ValueError, "must have length 2, for this cell, got 4"),
        (
            rnnfast.RNN,
            {"activations": ["tanh"] * 3, "bidirectional": True},
            ValueError,
            "must have length 1, or 2 with those of the reverse direction last, for this cell, got 3",
        ),
        (rnnfast.RNN, {"activations": ["Tanh"]}, ValueError, "activations.0. must be one of sigmoid, .*got 'Tanh'"),
        (rnnfast.RNN, {"activations": [3]}, ValueError, "activations.0. must be one of .*got 3"),
        (rnnfast.RNN, {"activations": [()]}, ValueError, "activations.0. must be one of"),
        (rnnfast.RNN, {"activations": [("tanh", 1)]}, ValueError, "tanh takes neither alpha nor beta"),
        (rnnfast.RNN, {"activations": [("elu", 1, 2)]}, ValueError, "elu takes only alpha"),
        (rnnfast.RNN, {"activations": [("affine", 1, 2, 3)]}, ValueError, "affine takes alpha and beta"),
        (rnnfast.RNN, {"activations": [("elu", "1")]}, TypeError, "must have numbers as alpha and beta"),
        (rnnfast.RNN, {"activations": [("elu", True)]}, TypeError, "must have numbers as alpha and beta"),
        (rnnfast.RNN, {"activations": [("elu", np.nan)]}, ValueError, "must have finite numbers"),
        (rnnfast.LSTM, {"clip": 0}, ValueError, "clip must be None, or a finite number of at least 2..-126, got 0"),
        (rnnfast.LSTM, {"clip": 1e-60}, ValueError, "clip must be None, or a finite number of at least"),
        (rnnfast.LSTM, {"clip": -1.0}, ValueError, "clip must be None, or a finite number"),
        (rnnfast.LSTM, {"clip": np.inf}, ValueError, "clip must be None, or a finite number"),
        (rnnfast.LSTM, {"clip": np.nan}, ValueError, "clip must be None, or a finite number"),
        (rnnfast.LSTM, {"clip": True}, TypeError, "clip must be a number or None, got True"),
        (rnnfast.LSTM, {"clip": "3"}, TypeError, "clip must be a number or None, got '3'"),
        (rnnfast.LSTM, {"peepholes": 1}, TypeError, "peepholes must be"),
        (rnnfast.LSTM, {"coupled": "yes"}, TypeError, "coupled must be"),
        (rnnfast.GRU, {"peepholes": True}, TypeError, "peepholes"),
        (rnnfast.RNN, {"coupled": True}, TypeError, "coupled"),
    ],
)
def test_refused(kind, given, error, text):
    with pytest.raises(error, match=text):
        kind(I, H, **given)


def test_fewer_units_than_threads_have_vectors(threads, dtype, rng):
    """Workers without units of their own must not touch the sums for the gradient of the peepholes."""
    layer = rnnfast.LSTM(200, 3, peepholes=True, dtype=dtype, rng=0)
    x = rng.standard_normal((300, 40, 200)).astype(dtype)
    found = []
    for count in (1, 3):
        threads(count)
        for _ in range(5):
            y, _, tape = layer.forward(x)
            found.append(layer.backward(tape, y).parameters)
    for gradients in found[1:]:
        assert_same_bits(gradients, found[0])
