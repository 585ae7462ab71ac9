"""Keras's recurrent layers on rnnfast against Keras's own loop and tests, and conversion in both directions."""

import gc
import os
import pathlib
import re
import subprocess
import sys
import weakref

import numpy as np
import pytest

import rnnfast

os.environ.setdefault("KERAS_BACKEND", "numpy")
keras = pytest.importorskip("keras", reason="keras on NumPy is not installed: pip install 'keras>=3.10' h5py jax")
if keras.backend.backend() != "numpy":
    pytest.skip(f"keras runs on {keras.backend.backend()}: set KERAS_BACKEND=numpy", allow_module_level=True)

from rnnfast.backends import keras as backend  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    # Of Keras's own loop, in float32 and with values that masks hide.
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning"),
    # Of releases that do not hand masks from layer to layer on NumPy.
    pytest.mark.filterwarnings("ignore:The NumPy backend does not support masking:UserWarning"),
]

LAYERS = {"SimpleRNN": keras.layers.SimpleRNN, "LSTM": keras.layers.LSTM, "GRU": keras.layers.GRU}
# From 3.12 on, Keras's operations on NumPy round what is float64 to float32.
ROUNDS = keras.ops.matmul(np.ones((1, 1)), np.ones((1, 1))).dtype == np.float32
TOLERANCE = {
    dtype: {"rtol": eps, "atol": eps} for dtype, eps in [("float32", 2e-5), ("float64", [1e-11, 2e-5][ROUNDS])]
}


@pytest.fixture(autouse=True)
def fresh():
    """Disable the backend and reset its counters before and after each test."""
    backend.disable()
    backend.reset_calls()
    yield
    backend.disable()


def draw(rng, name):
    """A layer with random options and weights, and the arguments of a call of it."""
    pick = rng.choice
    two = rng.random() < 0.3
    dtype = str(pick(["float32", "float64"]))
    units, features, N, T = (int(rng.integers(1, most)) for most in (20, 10, 6, 12))
    options = {
        "activation": str(pick(list(backend.ACTIVATIONS))) if rng.random() < 0.5 else "tanh",
        "use_bias": bool(pick([True, True, False])),
        "return_sequences": bool(pick([True, False])),
        "return_state": bool(pick([True, False])),
        "go_backwards": bool(pick([True, False])) and not two,
        "unroll": bool(pick([True, False])),
        "stateful": bool(pick([True, False])),
        "zero_output_for_mask": bool(pick([True, False])),
        "dtype": dtype,
    }
    if name != "SimpleRNN":
        gates = str(pick(["sigmoid", "hard_sigmoid", "tanh", "softsign"]))
        options |= {"recurrent_activation": gates, "implementation": int(pick([1, 2]))}
    if two and options["stateful"]:
        options["return_state"] = False  # with a mask as well, Keras's own Bidirectional.compute_mask fails
    if name == "GRU":
        options["reset_after"] = bool(pick([True, False]))
    layer = LAYERS[name](units, **options)
    if two:
        layer = keras.layers.Bidirectional(layer, merge_mode=pick(["concat", "sum", "mul", "ave", None]))
    layer.build((N, T, features))
    layer.set_weights([0.3 * rng.standard_normal(weight.shape) for weight in layer.get_weights()])
    x = rng.standard_normal((N, T, features)).astype(dtype)
    arguments = {}
    if rng.random() < 0.5:
        arguments["mask"] = rng.random((N, T)) < pick([0.0, 0.3, 0.7, 1.0])
        x[~arguments["mask"]] = pick([1.0, np.nan])
    if rng.random() < 0.5:
        states = (2 if name == "LSTM" else 1) * (1 + two)
        arguments["initial_state"] = [rng.standard_normal((N, units)).astype(dtype) for _ in range(states)]
    return layer, x, arguments, options


def results(layer, x, arguments):
    """The results of two calls, and the final state of a stateful layer, which is then reset."""
    returned = [layer(x, **arguments), layer(x[:, ::-1], **arguments)]
    if layer.stateful:
        returned.append([np.array(state.value) for state in layer.states])
        layer.reset_state()
    return keras.tree.flatten(returned)


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("name", LAYERS)
def test_random_options(name, part):
    for seed in range(part, 80, 4):
        layer, x, arguments, options = draw(np.random.default_rng(seed), name)
        expected = results(layer, x, arguments)
        assert backend.calls() == 0
        with backend.enable():
            got = results(layer, x, arguments)
        said = f"seed {seed}: {type(layer).__name__} {options} {list(arguments)}"
        assert backend.calls() == 2 * (1 + isinstance(layer, keras.layers.Bidirectional)), said
        backend.reset_calls()
        assert len(got) == len(expected)
        for ours, theirs in zip(got, expected, strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours, theirs, **TOLERANCE[options["dtype"]], err_msg=said)


def both(call):
    """The results of a call on Keras's own loop and on rnnfast, and the number of loops that rnnfast ran."""
    expected = call()
    backend.reset_calls()
    with backend.enable():
        return expected, call(), backend.calls()


def test_models():
    """Layers inside models, with predict and integer input; the rest of the model is unchanged."""
    inputs = keras.Input((7,), dtype="int32")
    y = keras.layers.Embedding(20, 5)(inputs)
    y = keras.layers.RNN(keras.layers.GRUCell(6), return_sequences=True)(y)
    forward = keras.layers.LSTM(4, return_sequences=True)
    backward = keras.layers.GRU(4, "relu", go_backwards=True, return_sequences=True)
    y = keras.layers.Bidirectional(forward, backward_layer=backward)(y)
    model = keras.Model(inputs, keras.layers.SimpleRNN(3)(y))
    x = np.random.default_rng(0).integers(0, 20, (9, 7))
    expected, got, calls = both(lambda: model.predict(x, batch_size=4, verbose=0))
    assert calls == 3 * 4
    np.testing.assert_allclose(got, expected, **TOLERANCE["float32"])
    layer = keras.layers.LSTM(4)
    expected, got, calls = both(lambda: layer(x[:, :, np.newaxis]))
    assert calls == 1
    np.testing.assert_allclose(got, expected, **TOLERANCE["float32"])
    expected, got, calls = both(lambda: layer(np.ones((0, 5, 1), "float32")))
    assert calls == 1
    assert got.shape == expected.shape == (0, 4)


class Derived(keras.layers.LSTMCell):
    """A cell of a class unknown to rnnfast."""

    def call(self, inputs, states, training=False):
        h, states = super().call(inputs, states, training)
        return 2 * h, states


DECLINED = {
    "activation": lambda: keras.layers.LSTM(4, activation="selu"),
    "recurrent activation": lambda: keras.layers.GRU(4, recurrent_activation="exponential"),
    "callable": lambda: keras.layers.SimpleRNN(4, activation=np.tanh),
    "derived cell": lambda: keras.layers.RNN(Derived(4)),
    "stack of cells": lambda: keras.layers.RNN([keras.layers.LSTMCell(4), keras.layers.GRUCell(3)]),
    "half": lambda: keras.layers.LSTM(4, recurrent_initializer="glorot_uniform", dtype="float16"),
    "cell of another dtype": lambda: keras.layers.RNN(keras.layers.GRUCell(4, dtype="mixed_float16"), dtype="float32"),
    "mixed": lambda: keras.layers.GRU(4, dtype="mixed_float16"),
}


@pytest.mark.parametrize("make", DECLINED.values(), ids=DECLINED)
def test_declined(make):
    layer, x = make(), np.random.default_rng(1).standard_normal((2, 5, 3)).astype("float32")
    expected, got, calls = both(lambda: layer(x))
    assert calls == 0
    np.testing.assert_array_equal(got, expected)


DROPOUT = {
    "dropout": {"dropout": 0.5},
    "recurrent": {"recurrent_dropout": 0.5},
    "both": {"dropout": 0.25, "recurrent_dropout": 0.5},
    "everything": {"dropout": 1.0},
    "implementation": {"dropout": 0.5, "implementation": 1, "use_cudnn": False},
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("options", DROPOUT)
@pytest.mark.parametrize("masked", [False, True])
def test_dropout(name, options, masked):
    """Inference always runs on rnnfast; training where Keras draws one mask for all gates, with the same mask."""
    if name == "SimpleRNN" and options == "implementation":
        pytest.skip("SimpleRNN has no such option")
    x = np.random.default_rng(1).standard_normal((3, 6, 5)).astype("float32")
    mask = np.random.default_rng(2).random((3, 6)) < 0.7 if masked else None
    first = LAYERS[name](4)
    first.build(x.shape)

    def call(training):
        layer = LAYERS[name](4, seed=7, go_backwards=True, return_sequences=True, **DROPOUT[options])
        layer.build(x.shape)
        layer.set_weights(first.get_weights())
        return np.stack([layer(x, mask=mask, training=training) for _ in range(2)])

    assert both(lambda: call(False))[2] == 2
    expected, got, calls = both(lambda: call(True))
    supported = options in ("dropout", "recurrent", "both") if name == "SimpleRNN" else options == "dropout"
    assert calls == 2 * supported
    np.testing.assert_allclose(got, expected, **TOLERANCE["float32"])
    assert options == "everything" or not np.array_equal(got[0], got[1])


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
def test_arguments_that_keras_broadcasts_or_rejects_are_left_to_it():
    layer, x = keras.layers.GRU(4), np.random.default_rng(2).standard_normal((3, 5, 2)).astype("float32")
    for arguments in [{"initial_state": [np.ones((1, 4), "float32")]}, {"mask": np.ones((3, 5, 1), bool)}]:
        expected, got, calls = both(lambda arguments=arguments: layer(x, **arguments))
        assert calls == 0
        np.testing.assert_array_equal(got, expected)
    assert both(lambda: layer(x + 1j))[2] == 0
    with backend.enable(), pytest.raises(ValueError, match="mismatch"):
        layer(np.ones((3, 5, 7), "float32"))
    with backend.enable(), pytest.raises(ValueError, match="use_cudnn=True"):
        keras.layers.LSTM(4, use_cudnn=True)(x)


def test_new_weights_act_at_once():
    layer, x = keras.layers.LSTM(5), np.random.default_rng(3).standard_normal((2, 6, 3)).astype("float32")
    layer.build(x.shape)
    backend.enable()
    layer(x)
    packed = backend._packed[layer.cell].layer
    layer(x)
    assert backend._packed[layer.cell].layer is packed  # packed once while nothing changes

    def assign():
        layer.cell.kernel.assign(2 * layer.cell.kernel.value)

    def write():
        layer.cell.recurrent_kernel.value[...] *= -1

    def replace():
        layer.set_weights([weight + np.float32(0.1) for weight in layer.get_weights()])

    def swap():
        layer.cell.activation = keras.activations.relu

    for change in (assign, write, replace, swap):
        before = layer(x)
        change()
        after = layer(x)
        backend.disable()
        np.testing.assert_allclose(after, layer(x), **TOLERANCE["float32"])
        assert np.abs(after - before).max() > 1e-2
        backend.enable()
    assert backend.calls() == 2 + 2 * 4


def test_packed_weights_stay_as_long_as_their_layer():
    layer, x = keras.layers.GRU(5), np.ones((2, 6, 3), "float32")
    packed = []
    for _ in range(2):
        with backend.enable():
            layer(x)
        layer(x)
        packed.append(backend._packed[layer.cell].layer)
    assert packed[0] is packed[1]
    cell = weakref.ref(layer.cell)
    del layer
    gc.collect()
    assert cell() is None
    assert not any(one.layer is packed[0] for one in backend._packed.values())


def test_enabled_until_disabled():
    layer, x = keras.layers.LSTM(4), np.ones((2, 5, 3), "float32")

    def counts():
        before = backend.calls()
        layer(x)
        return backend.calls() > before

    assert not counts()
    with backend.enable():
        assert counts()
        with backend.enable():  # it was enabled already, so this one's end is nothing
            assert counts()
        assert counts()
    assert not counts()
    backend.enable()
    assert counts()
    backend.disable()
    backend.disable()
    assert not counts()
    assert keras.layers.RNN.inner_loop is backend._KERAS_LOOP
    with pytest.raises(KeyError), backend.enable():
        raise KeyError
    assert not counts()
    assert backend.calls() == 4
    backend.reset_calls()
    assert backend.calls() == 0


# ------------------------------------------------------------------------------------------- Keras's own tests

PLUGIN = """
import os

from rnnfast.backends import keras

def pytest_configure(config):
    if os.environ["ENABLE"] == "1":
        keras.enable()

def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"rnnfast ran {keras.calls()} loops")
"""


def keras_tests(files, folder, enabled):
    """Counts of Keras's own tests that pass, fail and are skipped, the failures, and the loops that rnnfast ran."""
    (folder / "with_rnnfast.py").write_text(PLUGIN)
    root = pathlib.Path(rnnfast.__file__).parents[1]
    environment = {**os.environ, "KERAS_BACKEND": "numpy", "ENABLE": "01"[enabled]}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(root), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-rf", "-p", "with_rnnfast", "-p", "no:cacheprovider", "-c", os.devnull]
    run = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, env=environment, cwd=folder)
    assert run.returncode in (0, 1), run.stdout + run.stderr
    last = run.stdout.strip().splitlines()[-1]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    failed = sorted(re.findall(r"^FAILED \S*::(\S+::\S+)", run.stdout, re.MULTILINE))
    return counts, failed, int(re.search(r"rnnfast ran (\d+) loops", run.stdout)[1])


def test_keras_own_tests(tmp_path):
    folder = pathlib.Path(keras.__file__).parent / "src" / "layers" / "rnn"
    files = [folder / f"{name}_test.py" for name in ("lstm", "gru", "bidirectional", "simple_rnn", "rnn")]
    if not files[0].exists():
        pytest.skip(f"the wheel of keras {keras.__version__} ships no tests: only the differential test runs here")
    without, with_ours = (keras_tests(files, tmp_path, enabled) for enabled in (False, True))
    print(f"keras {keras.__version__}: without rnnfast {without}, with rnnfast {with_ours}")
    assert without[0]["passed"] > 20
    assert without[2] == 0
    assert with_ours[:2] == without[:2]  # the same ones pass, the same ones fail, as some do on NumPy in some releases
    assert with_ours[2] > 50


# -------------------------------------------------------------------------------------------------- conversions


def bits(arrays):
    return [(array.shape, array.dtype, array.tobytes()) for array in map(np.asarray, arrays)]


def random_weights(layer, seed=0):
    rng = np.random.default_rng(seed)
    layer.set_weights([0.4 * rng.standard_normal(weight.shape) for weight in layer.get_weights()])
    return layer


CONVERTED = {
    "LSTM": (keras.layers.LSTM, {}),
    "LSTM with other activations": (keras.layers.LSTM, {"activation": "elu", "recurrent_activation": "hard_sigmoid"}),
    "LSTM without bias": (keras.layers.LSTM, {"use_bias": False}),
    "GRU reset after": (keras.layers.GRU, {}),
    "GRU reset before": (keras.layers.GRU, {"reset_after": False}),
    "GRU without bias": (keras.layers.GRU, {"use_bias": False, "reset_after": False}),
    "SimpleRNN": (keras.layers.SimpleRNN, {}),
    "SimpleRNN with relu": (keras.layers.SimpleRNN, {"activation": "relu"}),
    "SimpleRNN without activation": (keras.layers.SimpleRNN, {"activation": None}),
}


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("make", "options"), CONVERTED.values(), ids=CONVERTED)
def test_round_trip(make, options, dtype, backwards):
    options = {**options, "return_sequences": True, "return_state": True, "go_backwards": backwards, "dtype": dtype}
    layer = make(5, **options)
    layer.build((None, None, 3))
    random_weights(layer)
    ours = backend.layer_from_keras(layer)
    assert ours.reverse is backwards
    assert ours.activations is None or "hard" in str(ours.activations) or options["activation"] is None

    x = np.random.default_rng(1).standard_normal((2, 6, 3)).astype(dtype)
    y, *states = layer(x)
    got, state = ours(x)
    np.testing.assert_allclose(got[:, ::-1] if backwards else got, y, **TOLERANCE[dtype])
    for h, theirs in zip(state if isinstance(state, tuple) else (state,), states, strict=True):
        np.testing.assert_allclose(h[0], theirs, **TOLERANCE[dtype])

    back = backend.layer_to_keras(ours, return_state=True)
    assert type(back) is type(layer)
    assert bits(back.get_weights()) == bits(layer.get_weights())
    config, before = back.get_config(), layer.get_config()
    for name in ["activation", "recurrent_activation", "use_bias", "reset_after", "go_backwards", "units", "dtype"]:
        assert config.get(name) == before.get(name), name
    assert all(np.array_equal(one, other) for one, other in zip(back(x), layer(x), strict=True))
    again = backend.layer_from_keras(back)
    assert bits(again.parameters.values()) == bits(ours.parameters.values())
    assert repr(again) == repr(ours)


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave", None])
@pytest.mark.parametrize("name", LAYERS)
def test_bidirectional_round_trip(name, merge):
    backward = keras.layers.GRU(4, go_backwards=True, return_sequences=True)
    forward = LAYERS[name](4, return_sequences=True)
    layer = keras.layers.Bidirectional(forward, merge_mode=merge, backward_layer=backward)
    layer.build((None, None, 3))
    random_weights(layer)
    ours = backend.layer_from_keras(layer)
    back = backend.layer_to_keras(ours)
    assert back.merge_mode == merge
    assert bits(back.get_weights()) == bits(layer.get_weights())
    x = np.random.default_rng(1).standard_normal((2, 6, 3)).astype("float32")
    for other in (ours(x)[0], back(x)):
        for got, expected in zip(keras.tree.flatten(other), keras.tree.flatten(layer(x)), strict=True):
            np.testing.assert_allclose(got, expected, **TOLERANCE["float32"])


@pytest.mark.parametrize("make", [rnnfast.LSTM, rnnfast.GRU, rnnfast.RNN])
@pytest.mark.parametrize("two", [False, True])
def test_from_ours(make, two):
    """Convert a layer with two biases; where Keras has one, it is their sum."""
    ours = make(3, 5, bidirectional=two, batch_first=True, rng=0)
    theirs = backend.layer_to_keras(ours, return_state=True)
    x = np.random.default_rng(1).standard_normal((2, 6, 3)).astype("float32")
    y, *states = theirs(x)
    got, state = ours(x)
    np.testing.assert_allclose(y, got, **TOLERANCE["float32"])
    states = np.stack(states)
    if make is rnnfast.LSTM:
        np.testing.assert_allclose(states[1::2], state[1], **TOLERANCE["float32"])
        states, state = states[::2], state[0]
    np.testing.assert_allclose(states, state, **TOLERANCE["float32"])
    again = backend.layer_from_keras(theirs)
    single = again.forward_layer if two else again
    for name in ("weight_ih_l0", "weight_hh_l0"):
        assert bits([single.parameters[name]]) == bits([ours.parameters[name]])
    sums = [layer.parameters["bias_ih_l0"] + layer.parameters["bias_hh_l0"] for layer in (single, ours)]
    assert bits(sums[:1]) == bits(sums[1:])
    if make is rnnfast.GRU:
        assert bits([single.parameters["bias_hh_l0"]]) == bits([ours.parameters["bias_hh_l0"]])


def test_bias_of_minus_zero_survives():
    layer = keras.layers.LSTM(2)
    layer.build((None, None, 1))
    layer.cell.bias.assign(np.full(8, -0.0, np.float32))
    back = backend.layer_to_keras(backend.layer_from_keras(layer))
    assert bits([back.cell.bias.value]) == bits([layer.cell.bias.value])


def built(layer):
    layer.build((None, None, 3))
    return layer


REFUSED = {
    "not built": (lambda: backend.layer_from_keras(keras.layers.LSTM(4)), ValueError, "no weights yet.*build"),
    "activation": (
        lambda: backend.layer_from_keras(built(keras.layers.LSTM(4, "selu"))),
        ValueError,
        "among.*softsign",
    ),
    "cell": (
        lambda: backend.layer_from_keras(built(keras.layers.RNN(Derived(4)))),
        ValueError,
        "LSTMCell.*got Derived",
    ),
    "half": (lambda: backend.layer_from_keras(built(DECLINED["half"]())), ValueError, "float32"),
    "Dense": (lambda: backend.layer_from_keras(keras.layers.Dense(4)), TypeError, "must be a keras.layers.LSTM.*Dense"),
    "layers": (lambda: backend.layer_to_keras(rnnfast.LSTM(3, 4, 2)), ValueError, "num_layers=2.*for each"),
    "options": (
        lambda: backend.layer_to_keras(rnnfast.LSTM(3, 4, proj_size=2, peepholes=True, coupled=True, clip=1.0)),
        ValueError,
        "proj_size=2, clip=1.0, peepholes=True, coupled=True",
    ),
    "leak": (lambda: backend.layer_to_keras(rnnfast.RNN(3, 4, leak=0.5)), ValueError, "leak=0.5"),
    "alpha": (
        lambda: backend.layer_to_keras(rnnfast.GRU(3, 4, activations=["hard_sigmoid", "tanh"])),
        ValueError,
        "activations.*hard_sigmoid.*GRU",
    ),
    "g and c": (
        lambda: backend.layer_to_keras(rnnfast.LSTM(3, 4, activations=["sigmoid", "tanh", "relu"])),
        ValueError,
        "'activation', 'activation'.*LSTM",
    ),
    "Linear": (lambda: backend.layer_to_keras(rnnfast.Linear(3, 4)), TypeError, "must be an rnnfast LSTM.*Linear"),
    "backwards first": (
        lambda: backend.layer_from_keras(
            built(
                keras.layers.Bidirectional(keras.layers.LSTM(4, go_backwards=True), backward_layer=keras.layers.LSTM(4))
            )
        ),
        ValueError,
        "goes backwards",
    ),
}


@pytest.mark.parametrize(("call", "error", "match"), REFUSED.values(), ids=REFUSED)
def test_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((None, 3))
    y = keras.layers.LSTM(4, return_sequences=True, name="first")(inputs)
    y = keras.layers.Bidirectional(keras.layers.GRU(4, return_sequences=True, reset_after=False), name="both")(y)
    y = keras.layers.GRU(5, return_sequences=True, name="third")(y)
    model = keras.Model(inputs, keras.layers.SimpleRNN(2, use_bias=False)(y))
    rng = np.random.default_rng(0)
    model.set_weights([rng.standard_normal(weight.shape) for weight in model.get_weights()])
    return model


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_files(model, tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    (model.save if suffix == ".keras" else model.save_weights)(path)
    cases = [
        (rnnfast.LSTM(3, 4), "first", "first"),
        (rnnfast.LSTM(3, 4), "first", "layers/lstm"),
        (rnnfast.GRU(4, 4, bidirectional=True, reset_after=False), "both", "both"),
        (rnnfast.Bidirectional(rnnfast.GRU(4, 4, reset_after=False)), "both", "both"),
        (rnnfast.GRU(8, 5), "third", "third"),
        (rnnfast.RNN(5, 2, bias=False), "simple_rnn", "layers/simple_rnn"),
    ]
    for ours, name, said in cases:
        backend.load_weights(ours, path, said)
        layer = next(layer for layer in model.layers if layer.name.startswith(name))
        expected = backend.layer_from_keras(layer)
        assert bits(ours.parameters.values()) == bits(expected.parameters.values())
    only = rnnfast.Bidirectional(rnnfast.GRU(4, 4, reset_after=False))
    backend.load_weights(only, path)
    assert bits(only.parameters.values()) == bits(cases[3][0].parameters.values())
    with pytest.raises(
        ValueError, match=r"contains 5 recurrent layers.*'third' at 'layers/gru', 'first' at 'layers/lstm'"
    ):
        backend.load_weights(rnnfast.LSTM(3, 4), path)
    with pytest.raises(ValueError, match=r"contains 0 recurrent layers named 'fourth'"):
        backend.load_weights(rnnfast.LSTM(3, 4), path, "fourth")
    kept = rnnfast.GRU(8, 5, reset_after=False, rng=0)
    before = bits(kept.parameters.values())
    for wrong in (kept, rnnfast.LSTM(8, 5), rnnfast.GRU(8, 6), rnnfast.GRU(8, 5, bias=False)):
        with pytest.raises(ValueError, match=r"'layers/gru' has arrays of shapes \[\(8, 15\), \(5, 15\)"):
            backend.load_weights(wrong, path, "third")
    assert bits(kept.parameters.values()) == before


def test_no_such_files(tmp_path):
    layer, path = rnnfast.LSTM(3, 4), tmp_path / "x.keras"
    with pytest.raises(FileNotFoundError):
        backend.load_weights(layer, path)
    path.write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"x.keras.*in an unknown format, not a file of Keras"):
        backend.load_weights(layer, path)
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    with pytest.raises(ValueError, match=r"a zip archive, such as \.npz, not a file of Keras"):
        backend.load_weights(layer, tmp_path / "x.npz")
    with pytest.raises(TypeError, match="must be an rnnfast LSTM"):
        backend.load_weights(rnnfast.Linear(3, 4), path)


OTHERS = {
    "another backend": (
        "jax",
        """
import keras, numpy, rnnfast, rnnfast.backends.keras as backend
layer = keras.layers.GRU(4, return_sequences=True)
x = numpy.random.default_rng(0).standard_normal((2, 5, 3)).astype("float32")
y = layer(x)
ours = backend.layer_from_keras(layer)
numpy.testing.assert_allclose(ours(x)[0], y, atol=1e-5)
numpy.testing.assert_allclose(backend.layer_to_keras(ours)(x), y, atol=1e-5)
backend.enable()
""",
        "RuntimeError: Keras uses the backend 'jax', .*: set the environment variable KERAS_BACKEND=numpy",
    ),
    "old": (
        "numpy",
        "import keras; keras.__version__ = '3.9.2'; import rnnfast.backends.keras",
        "ImportError: .*needs Keras 3.10 or newer, found 3.9.2: pip install",
    ),
    "none": (
        "numpy",
        "import sys; sys.modules['keras'] = None; import rnnfast.backends.keras",
        "ImportError: .*needs the module 'keras', which is not installed.*pip install 'rnnfast.keras.'",
    ),
}


@pytest.mark.parametrize(("name", "code", "match"), OTHERS.values(), ids=OTHERS)
def test_other_places(name, code, match):
    environment = {**os.environ, "KERAS_BACKEND": name}
    environment["PYTHONPATH"] = os.pathsep.join([str(pathlib.Path(rnnfast.__file__).parents[1]), *sys.path])
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment)
    assert re.search(match, run.stderr.strip().splitlines()[-1]), run.stderr
