"""Invalid arguments raise an error that names the argument and what was expected, and change nothing."""

import numpy as np
import pytest
from support.layers import refused

import rnnfast

T, N, I, H = 3, 2, 4, 5
X = np.ones((T, N, I), np.float32)
LINEAR = rnnfast.Linear(I, 3)


def lstm(**options):
    return rnnfast.LSTM(I, H, **{"rng": 0, **options})


# ---- options

SIZES = {
    rnnfast.RNN: ["input_size", "hidden_size", "num_layers"],
    rnnfast.LSTM: ["input_size", "hidden_size", "num_layers"],
    rnnfast.GRU: ["input_size", "hidden_size", "num_layers"],
    rnnfast.Linear: ["in_features", "out_features"],
    rnnfast.Embedding: ["num_embeddings", "embedding_dim"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in SIZES.items() for name in names])
def test_sizes(kind, name):
    good = dict.fromkeys(SIZES[kind], 2)
    assert getattr(kind(**{**good, name: np.uint8(3)}), name) == 3
    for value in (0, -1, np.int64(-5)):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got {value}"):
            kind(**{**good, name: value})
    for value in (2.0, "2", None, True, np.True_, [2], 1j):
        with pytest.raises(TypeError, match=f"{name} must be an integer, got"):
            kind(**{**good, name: value})


@pytest.mark.parametrize("name", ["bias", "batch_first", "bidirectional", "reverse"])
@pytest.mark.parametrize("kind", [rnnfast.RNN, rnnfast.LSTM, rnnfast.GRU])
def test_flags(kind, name):
    assert getattr(kind(2, 3, **{name: np.True_}), name) is True
    for value in (1, 0, None, "yes", []):
        with pytest.raises(TypeError, match=f"{name} must be True or False, got"):
            kind(2, 3, **{name: value})


@pytest.mark.parametrize("kind", SIZES)
def test_dtype_and_rng(kind):
    for value in (np.float16, int, "f2", np.complex64, None, "no such", object(), np.dtype(">f4").newbyteorder()):
        if value != np.float32:
            with pytest.raises(ValueError, match=r"dtype must be numpy\.float32 or numpy\.float64, got"):
                kind(2, 3, dtype=value)
    for value in ("seed", 1.5, object()):
        with pytest.raises(TypeError, match=r"rng must be None, a seed or a numpy\.random\.Generator, got"):
            kind(2, 3, rng=value)
    with pytest.raises(ValueError, match=r"rng must be .* got -1"):
        kind(2, 3, rng=-1)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (
            lambda: rnnfast.RNN(2, 3, nonlinearity="sigmoid"),
            ValueError,
            "nonlinearity must be one of 'tanh', 'relu', got",
        ),
        (lambda: rnnfast.RNN(2, 3, nonlinearity=None), ValueError, "nonlinearity must be one of"),
        (lambda: rnnfast.RNN(2, 3, nonlinearity=["tanh"]), ValueError, "nonlinearity must be one of"),
        (lambda: rnnfast.GRU(2, 3, reset_after=1), TypeError, "reset_after must be True or False, got 1"),
        (lambda: rnnfast.Linear(2, 3, bias=0), TypeError, "bias must be True or False, got 0"),
        (lambda: rnnfast.LSTM(2, 3, proj_size=3), ValueError, "proj_size must be below hidden_size=3, got 3"),
        (lambda: rnnfast.LSTM(2, 3, proj_size=-1), ValueError, "proj_size must be at least 0, got -1"),
        (lambda: rnnfast.LSTM(2, 3, proj_size=1.0), TypeError, "proj_size must be an integer"),
        (lambda: rnnfast.LSTM(2, 3, 2, dropout=1.5), ValueError, "dropout must be from 0 to 1, got 1.5"),
        (lambda: rnnfast.LSTM(2, 3, 2, dropout=-0.1), ValueError, "dropout must be from 0 to 1"),
        (lambda: rnnfast.LSTM(2, 3, 2, dropout=np.nan), ValueError, "dropout must be from 0 to 1, got nan"),
        (lambda: rnnfast.LSTM(2, 3, 2, dropout=True), TypeError, "dropout must be a number, got True"),
        (lambda: rnnfast.LSTM(2, 3, 2, dropout="0.5"), TypeError, "dropout must be a number, got '0.5'"),
        (
            lambda: rnnfast.LSTM(2, 3, bidirectional=True, reverse=True),
            ValueError,
            "bidirectional=True and reverse=True",
        ),
        (lambda: rnnfast.LSTM(2, 3, proj=1), TypeError, "proj"),
        (lambda: rnnfast.LSTM(2, 3, 1, True), TypeError, "positional"),
    ],
)
def test_options(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: rnnfast.LSTM(2**62, 2**62),
        lambda: rnnfast.LSTM(3, 2**40),
        lambda: rnnfast.RNN(2**70, 3),
        lambda: rnnfast.GRU(3, 2**20, 2**30),
        lambda: rnnfast.Linear(2**40, 2**40),
        lambda: rnnfast.Embedding(2**40, 2**40),
    ],
)
def test_sizes_that_overflow(make):
    with pytest.raises(ValueError, match="more bytes than an address can count"):
        make()


def test_too_large_for_memory():
    for make in (lambda: rnnfast.LSTM(4, 2**22), lambda: rnnfast.Linear(2**23, 2**23)):
        with pytest.raises(MemoryError):
            make()
    layer = lstm()
    endless = np.broadcast_to(np.float32(1), (2**40, 1, I))
    for call in (lambda: layer(endless), lambda: layer.forward(endless)):
        refused(layer, call, MemoryError, r"no room|Unable to allocate")


def test_results_that_overflow():
    x = np.lib.stride_tricks.as_strided(X, (2**60, 1, 1), (0, 0, X.itemsize))
    layer = rnnfast.RNN(1, 64)
    for call in (layer, layer.forward):
        refused(layer, lambda call=call: call(x), ValueError, rf"x has {2**60} steps and 1 rows: .* more bytes than")
    layer = rnnfast.Linear(1, 64)
    refused(layer, lambda: layer(x), ValueError, r"y would have shape .* more bytes than an address can count")


# ---- x

RESULT = r"^x is a tuple, such as the \(y, state\) .*: pass its first element, y, as in readout\(lstm\(x\)\[0\]\)$"
BAD_X = [
    (np.ones(4), ValueError, r"x must have layout \(T, N, I\), or unbatched \(T, I\), for this LSTM, got shape \(4,\)"),
    (np.ones((1, 2, 3, 4)), ValueError, r"x must have layout .* got shape \(1, 2, 3, 4\)"),
    (3.0, ValueError, r"x must have layout .* got shape \(\)"),
    (np.ones((3, 2, 5)), ValueError, "x has 5 features on its last axis, but this LSTM was built with input_size=4"),
    (np.ones((3, 5)), ValueError, r"x has 5 features .* the layout is \(T, I\), got \(3, 5\)"),
    (np.ones((3, 2, 0)), ValueError, "x has 0 features"),
    (
        np.ones((0, 2, 4)),
        ValueError,
        r"x has no time steps: its layout must be \(T, N, I\) with T >= 1, got \(0, 2, 4\)",
    ),
    (np.ones((0, 4)), ValueError, r"x has no time steps: its layout must be \(T, I\)"),
    (np.ones((0, 0, 4)), ValueError, "x has no time steps"),
    ([[1, 2], [3]], ValueError, "x cannot be read as an array"),
    (
        np.ones((3, 2, 4), complex),
        TypeError,
        "x must hold real numbers, to be converted to float32, but its dtype is complex128",
    ),
    (np.ones((3, 2, 4), object), TypeError, "x must hold real numbers.* object"),
    (np.ones((3, 2, 4), "M8[s]"), TypeError, "x must hold real numbers.* datetime64"),
    (np.full((3, 2, 4), "1"), TypeError, "x must hold real numbers.* <U1"),
    ("text", TypeError, "x must hold real numbers"),
    (None, TypeError, "x must hold real numbers"),
    (rnnfast.LSTM(3, I)(np.ones((5, 2, 3))), TypeError, RESULT),
    (rnnfast.GRU(3, I).forward(np.ones((5, 2, 3))), TypeError, RESULT),
    ((np.ones((2, 2, I)), np.ones((2, 2, I))), TypeError, RESULT),  # (h, c), which NumPy would stack
]


@pytest.mark.parametrize(("x", "error", "match"), BAD_X)
def test_x(x, error, match):
    layer = lstm(num_layers=2, dropout=0.5)
    for call in (
        layer,
        layer.forward,
        rnnfast.Bidirectional(layer, lstm()),
        rnnfast.Bidirectional(layer, lstm()).forward,
    ):
        refused(layer, lambda call=call: call(x), error, match)


def test_x_batch_first():
    layer = lstm(batch_first=True)
    refused(layer, lambda: layer(np.ones((2, 0, I))), ValueError, r"no time steps: its layout must be \(N, T, I\)")
    refused(layer, lambda: layer(np.ones((2, 3, 5))), ValueError, r"the layout is \(N, T, I\)")
    refused(layer, lambda: layer(np.ones(5)), ValueError, r"layout \(N, T, I\), or unbatched")


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (
            np.ones((2, 3)),
            ValueError,
            r"x must have layout \(\.\.\., in_features\) with in_features=4, got shape \(2, 3\)",
        ),
        (1.0, ValueError, r"in_features=4, got shape \(\)"),
        (np.ones((2, 4), complex), TypeError, "x must hold real numbers"),
        *BAD_X[-3:],
    ],
)
def test_linear_x(x, error, match):
    for call in (LINEAR, LINEAR.forward):
        refused(LINEAR, lambda call=call: call(x), error, match)


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        ([[0, 5]], ValueError, r"x must hold ids from 0 to num_embeddings - 1 = 4, got 5"),
        ([3, -1], ValueError, "got -1"),
        (np.array([2**63], np.uint64), ValueError, "got 9223372036854775808"),
        ([1.0], TypeError, "x must hold integer ids, but its dtype is float64"),
        ([True], TypeError, "its dtype is bool"),
        (["a"], TypeError, "x must hold integer ids"),
        ([[1], [1, 2]], ValueError, "x cannot be read as an array"),
    ],
)
def test_embedding_x(x, error, match):
    layer = rnnfast.Embedding(5, 2)
    for call in (layer, layer.forward):
        refused(layer, lambda call=call: call(x), error, match)


# ---- states

h, c = np.zeros((1, N, H)), np.zeros((1, N, H))
BAD_STATES = [
    (h, r"{}\ must be the pair \(h, c\) of shapes \(1, 2, 5\) and \(1, 2, 5\), got ndarray"),
    ((h,), r"{}\ must be the pair .* got 1 elements"),
    ((h, c, c), "got 3 elements"),
    ([], "got 0 elements"),
    ({"h": h, "c": c}, "got dict"),
    (
        (h[0], c),
        r"{}\[0\] \(h\) must have shape \(num_layers \* directions, N, hidden_size\) = \(1, 2, 5\), got \(2, 5\)",
    ),
    ((h, np.zeros((N, 1, H))), r"{}\[1\] \(c\) must have shape .* got \(2, 1, 5\)"),
    ((np.zeros((2, N, H)), c), r"got \(2, 2, 5\)"),
    ((h, np.zeros((1, N, H + 1))), r"got \(1, 2, 6\)"),
    ((h, 0.0), r"got \(\)"),
]


@pytest.mark.parametrize(("state", "match"), BAD_STATES)
def test_states(state, match):
    layer = lstm(num_layers=1)
    both = rnnfast.Bidirectional(layer, lstm())
    for call in (layer, layer.forward):
        refused(layer, lambda call=call: call(X, state), ValueError, match.format("state"))
    for call in (both, both.forward):
        refused(both, lambda call=call: call(X, (None, state)), ValueError, match.format(r"state\[1\]"))
    y, _, tape = layer.forward(X)
    refused(layer, lambda: layer.backward(tape, y, state), ValueError, match.format("dstate"))
    y, _, tape = both.forward(X)
    refused(both, lambda: both.backward(tape, y, (state, None)), ValueError, match.format(r"dstate\[0\]"))


def test_states_of_other_layers():
    layer = lstm(proj_size=3)
    refused(
        layer, lambda: layer(X, (h, c)), ValueError, r"state\[0\] \(h\) must have shape .*, proj_size\) = \(1, 2, 3\)"
    )
    refused(
        layer, lambda: layer(X[:, 0], (h, c)), ValueError, r"shape \(num_layers \* directions, proj_size\) = \(1, 3\)"
    )
    gru = rnnfast.GRU(I, H, 2, batch_first=True, bidirectional=True)
    refused(
        gru, lambda: gru(X, np.zeros((N, 4, H))), ValueError, r"state must have shape .* = \(4, 3, 5\), got \(2, 4, 5\)"
    )
    refused(gru, lambda: gru(X, (h, c)), ValueError, "state must have shape")
    refused(gru, lambda: gru(X, np.zeros((4, 3, H), complex)), TypeError, "state must hold real numbers")
    refused(gru, lambda: gru(X, "zeros"), TypeError, "state must hold real numbers")


@pytest.mark.parametrize("merge", ["concat", None])
def test_pair_of_states(merge):
    layer = rnnfast.Bidirectional(lstm(num_layers=2, dropout=0.5), rnnfast.GRU(I, H, reverse=True), merge)
    y, _, tape = layer.forward(X)
    for bad in (h, (h,), (h, h, h)):
        match = r"must be the pair \(forward_layer's, backward_layer's\), got"
        for call in (layer, layer.forward):
            refused(layer, lambda call=call, bad=bad: call(X, bad), ValueError, f"^state {match}")
        refused(layer, lambda bad=bad: layer.backward(tape, y, bad), ValueError, f"^dstate {match}")
        if merge is None:
            refused(layer, lambda bad=bad: layer.backward(tape, bad), ValueError, f"^dy {match}")
    # Both are checked before anything is drawn for dropout.
    refused(layer, lambda: layer.forward(X, (None, h[:, :1])), ValueError, r"^state\[1\] must have shape")


# ---- tape and dy


def test_tape_of_another_layer():
    layers = [lstm(), lstm(), rnnfast.Bidirectional(lstm()), LINEAR, rnnfast.Embedding(3, 2)]
    for layer in layers:
        tape = layer.forward(np.zeros((T, N), int) if isinstance(layer, rnnfast.Embedding) else X)[-1]
        for other in layers:
            if other is not layer:
                refused(
                    other, lambda o=other, t=tape: o.backward(t, None), ValueError, "^tape comes from another layer"
                )
        for wrong in (None, X, (tape,), layer):
            refused(
                layer, lambda o=layer, t=wrong: o.backward(t, None), TypeError, "^tape must be the Tape that forward"
            )


@pytest.mark.parametrize(
    ("dy", "error", "match"),
    [
        (np.ones((T, N, H + 1)), ValueError, r"dy must have the shape of the tape's y = \(3, 2, 5\), got \(3, 2, 6\)"),
        (np.ones((N, T, H)), ValueError, r"got \(2, 3, 5\)"),
        (np.ones((T - 1, N, H)), ValueError, r"got \(2, 2, 5\)"),
        (1.0, ValueError, r"got \(\)"),
        (np.ones((T, N, H), complex), TypeError, "dy must hold real numbers"),
        ("ones", TypeError, "dy must hold real numbers"),
    ],
)
def test_dy(dy, error, match):
    layers = [lstm(), rnnfast.Bidirectional(lstm(), merge="sum"), rnnfast.Linear(I, H)]
    for layer in layers:
        tape = layer.forward(X)[-1]
        refused(
            layer, lambda o=layer, t=tape: o.backward(t, dy), error, f"^{match}" if match.startswith("dy") else match
        )
    layer = rnnfast.Embedding(3, H)
    tape = layer.forward(np.zeros((T, N), int))[-1]
    refused(layer, lambda: layer.backward(tape, dy), error, match)
    layer = rnnfast.Bidirectional(lstm(), merge=None)
    tape = layer.forward(X)[-1]
    refused(layer, lambda: layer.backward(tape, (None, dy)), error, match.replace("dy", r"dy\[1\]"))


# ---- Bidirectional


def test_bidirectional_layers():
    forward, backward = lstm(), rnnfast.GRU(I, H, reverse=True)
    for bad in (None, LINEAR, "LSTM", rnnfast.Bidirectional(forward)):
        with pytest.raises(TypeError, match="forward_layer must be a recurrent layer, got"):
            rnnfast.Bidirectional(bad, backward)
        if bad is not None:
            with pytest.raises(TypeError, match="backward_layer must be a recurrent layer, got"):
                rnnfast.Bidirectional(forward, bad)
    for name, layers in (
        ("forward", (lstm(bidirectional=True), None)),
        ("backward", (forward, lstm(bidirectional=True))),
    ):
        with pytest.raises(ValueError, match=f"{name}_layer must run in one direction, got LSTM"):
            rnnfast.Bidirectional(*layers)
    with pytest.raises(ValueError, match="forward_layer must run from the first step to the last, got GRU"):
        rnnfast.Bidirectional(backward)
    for merge in ("ave", "", 0, True, ["sum"]):
        with pytest.raises(ValueError, match="merge must be one of 'concat', 'sum', 'mul', 'mean', None, got"):
            rnnfast.Bidirectional(forward, backward, merge)


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (rnnfast.LSTM(I + 1, H), "backward_layer must have input_size=4, as forward_layer has, got 5"),
        (rnnfast.LSTM(I, H, dtype="f8"), "backward_layer must have dtype=float32, as forward_layer has, got float64"),
        (
            rnnfast.LSTM(I, H, batch_first=True),
            "backward_layer must have batch_first=False, as forward_layer has, got True",
        ),
    ],
)
def test_bidirectional_layers_agree(other, match):
    with pytest.raises(ValueError, match=match):
        rnnfast.Bidirectional(lstm(), other)


def test_merged_widths_agree():
    rnnfast.Bidirectional(lstm(), rnnfast.LSTM(I, H + 1, proj_size=H), "sum")
    for merge in ("sum", "mul", "mean"):
        with pytest.raises(ValueError, match=f"merge='{merge}' needs layers of equal output size, got 5 and 4"):
            rnnfast.Bidirectional(lstm(), rnnfast.LSTM(I, H, proj_size=4), merge)


# ---- load_state_dict

LAYERS = {
    "lstm": lambda: lstm(num_layers=2),
    "bidirectional": lambda: rnnfast.Bidirectional(lstm(), rnnfast.GRU(I, H)),
    "linear": lambda: rnnfast.Linear(I, H),
    "embedding": lambda: rnnfast.Embedding(I, H),
}


@pytest.mark.parametrize("name", LAYERS)
def test_load_state_dict(name):
    layer = LAYERS[name]()
    good = {name: array + 1 for name, array in layer.state_dict().items()}
    *_, last = good
    load = layer.load_state_dict

    missing = {name: array for name, array in good.items() if name != last}
    refused(layer, lambda: load(missing), ValueError, f"arrays do not fit .*: {last} is missing$")
    refused(
        layer, lambda: load({**good, "extra": 1, 3: 4}), ValueError, "extra is not a parameter .*; 3 is not a parameter"
    )
    for strict in (True, False):
        for value in (good[last][:-1], good[last][None], 0.0):
            match = rf"{last} must have shape \({len(good[last])},.*, got \("
            refused(layer, lambda v=value, s=strict: load({**good, last: v}, s), ValueError, match)
        for value in (good[last].astype(complex), good[last].astype(str), None):
            match = rf"arrays\['{last}'\] must hold real numbers"
            refused(layer, lambda v=value, s=strict: load({**good, last: v}, s), TypeError, match)
    first = next(iter(good))
    all_at_once = {**missing, first: 0.0, "extra": 1}
    match = f"{first} must have shape .*; extra is not a parameter of this layer" + f"; {last} is missing" * (
        first != last
    )
    refused(layer, lambda: load(all_at_once), ValueError, match)
    refused(layer, lambda: load([*good.items()]), TypeError, "arrays must be a mapping of names to arrays, got list")
    refused(layer, lambda: load(None), TypeError, "arrays must be a mapping")
    refused(layer, lambda: load(good, strict="no"), TypeError, "strict must be True or False")

    layer.freeze()
    for strict in (True, False):
        refused(layer, lambda s=strict: load(good, s), ValueError, r"is frozen: call unfreeze\(\)")
    layer.unfreeze()
    before = layer.parameters[last].copy()
    load({**missing, "extra": np.zeros(3)}, strict=False)
    for key, array in layer.parameters.items():
        np.testing.assert_array_equal(array, before if key == last else good[key])


def test_half_frozen():
    layer = rnnfast.Bidirectional(lstm())
    layer.backward_layer.freeze()
    refused(layer, lambda: layer.load_state_dict(layer.state_dict()), ValueError, "frozen")


def test_layers_beyond_memory_are_refused_at_once():
    with pytest.raises((MemoryError, ValueError)):
        rnnfast.GRU(1, 1, 2**44)


def test_parameters_cannot_be_resized():
    layer = rnnfast.LSTM(4, 8)
    with pytest.raises(ValueError, match="does not own its data"):
        layer.parameters["weight_ih_l0"].resize(1, refcheck=False)


@pytest.mark.parametrize("frozen", [False, True])
def test_read_only_cannot_be_undone(frozen):
    layer = rnnfast.GRU(4, 8)
    if frozen:
        layer.freeze()
        with pytest.raises(ValueError, match="WRITEABLE"):
            layer.parameters["weight_hh_l0"].setflags(write=True)
    y, _, _ = layer.forward(np.zeros((2, 1, 4), np.float32))
    with pytest.raises(ValueError, match="WRITEABLE"):
        y.setflags(write=True)


def test_sizes_that_cannot_be_converted_name_the_argument():
    x = np.broadcast_to(np.int8(1), (2**57, 8, 4))
    with pytest.raises(ValueError, match="x of shape"):
        rnnfast.LSTM(4, 8)(x)


def test_a_tape_is_made_by_forward_alone():
    with pytest.raises(TypeError):
        rnnfast.Tape()


@pytest.mark.parametrize("number", [10**400, -(10**400)], ids=["large", "-large"])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("dropout", lambda number: rnnfast.RNN(2, 3, 2, dropout=number)),
        ("clip", lambda number: rnnfast.LSTM(2, 3, clip=number)),
        (r"activations\[0\]", lambda number: rnnfast.LSTM(2, 3, activations=[("affine", number, 1), "tanh", "tanh"])),
        ("init='chrono'", lambda number: rnnfast.LSTM(2, 3, init=("chrono", number))),
        ("lr", lambda number: rnnfast.training.Adam({}, lr=number)),
        ("max_norm", lambda number: rnnfast.training.clip_grad_norm({}, number)),
    ],
)
def test_integers_beyond_float64_are_refused_by_name(name, call, number):
    with pytest.raises(ValueError, match=f"^{name} must be a number within the range of float64"):
        call(number)
