"""Files of Keras 1, 2 and 3. Those of versions 1 and 2 are built here, dataset by dataset, as these versions write."""

import json
import os
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import rnnfast

h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install h5py")

from rnnfast.backends.keras_files import load_layers, load_weights  # noqa: E402

I, H = 3, 4
X = np.linspace(-2, 2, 2 * 5 * I).reshape(2, 5, I).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.h5"


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def recurrent(gates, bias=True, inputs=I, reset_after=False):
    """The weights of a recurrent layer in Keras 2 and 3."""
    biases = [random(2, gates * H) if reset_after else random(gates * H)] if bias else []
    return [random(inputs, gates * H), random(H, gates * H), *biases]


NAMES = ["kernel", "recurrent_kernel", "bias"]


def under(prefix, weights, names=NAMES, end=":0"):
    """Weights by their names in Keras 2."""
    return {f"{prefix}/{name}{end}": array for name, array in zip(names, weights, strict=False)}


def write(path, layers, config=None, version="2.2.4", split=False):
    """Write a file of weights, or with `config` of a model."""
    with h5py.File(path, "w") as root:
        weights = root if config is None else root.create_group("model_weights")
        for group in {root.name: root, weights.name: weights}.values():
            if version is not None:
                group.attrs["keras_version"] = version.encode()
        if config is not None:
            root.attrs["model_config"] = json.dumps(config).encode()
        set_names(weights, "layer_names", list(layers), split)
        for layer, arrays in layers.items():
            group = weights.create_group(layer)
            set_names(group, "weight_names", list(arrays), split)
            for name, array in arrays.items():
                group[name] = array


def set_names(group, name, values, split):
    values = [value.encode() for value in values]
    if not split:
        group.attrs[name] = values
    for k in range(0, len(values) if split else 0, 2):
        group.attrs[f"{name}{k // 2}"] = values[k : k + 2]


def about(kind, name, **config):
    return {"class_name": kind, "config": {"name": name, **config}}


def model(*layers, kind="Sequential"):
    return {"class_name": kind, "config": {"name": "model", "layers": list(layers)}}


def parameters_of(weights, order):
    """torch's parameters; `order` has the places of torch's gates in Keras."""

    def turned(array):
        return np.concatenate([np.split(array, len(order), axis=-1)[k] for k in order], axis=-1).T

    kernel, recurrent_kernel, *bias = weights
    expected = {"weight_ih_l0": turned(kernel), "weight_hh_l0": turned(recurrent_kernel)}
    for array in bias:
        both = array if array.ndim == 2 else (array, 0 * array)
        expected |= {"bias_ih_l0": turned(both[0]), "bias_hh_l0": turned(both[1])}
    return expected


def assert_parameters(layer, weights, order, prefix=""):
    expected = parameters_of(weights, order)
    assert {name for name in layer.parameters if name.startswith(prefix)} == {prefix + name for name in expected}
    for name, array in expected.items():
        np.testing.assert_array_equal(layer.parameters[prefix + name], array, err_msg=name)


LSTM, GRU, RNN = [0, 1, 2, 3], [1, 0, 2], [0]
HARD = [("hard_sigmoid", 0.2, 0.5), "tanh", "tanh"]


# ---- Keras 2


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("cell", ["", "/{}_cell", "/{}_cell_3"])
def test_weights(path, cell, split):
    lstm, gru, after, rnn = recurrent(4), recurrent(3), recurrent(3, reset_after=True), recurrent(1, bias=False)
    forward = recurrent(4, inputs=2)
    backward = [-array for array in forward]
    dense, table = [random(5, 2), random(2)], random(7, 3)
    layers = {
        "input_1": {},
        "a": under("a" + cell.format("lstm"), lstm),
        "b": under("b" + cell.format("gru"), gru),
        "c": under("c" + cell.format("gru"), after),
        "d": under("d" + cell.format("simple_rnn"), rnn),
        "e": {
            **under("e_1/forward_lstm_2" + cell.format("lstm"), forward),
            **under("e_1/backward_lstm_2" + cell.format("lstm"), backward),
        },
        "f": under("f", dense, ["kernel", "bias"]),
        "g": {"g/embeddings:0": table},
        "h": under("h", [random(4), random(4)], ["gamma", "beta"]),
        "i": {"i/kernel:0": random(2, 3, 4)},
        "attention": {"attention/attention_W:0": random(4, 1)},
    }
    write(path, layers, split=split)
    found = load_layers(path, recurrent_activation="hard_sigmoid")
    assert list(found) == list("abcdefg")
    assert repr(found["a"]) == repr(rnnfast.LSTM(I, H, batch_first=True, activations=HARD))
    assert repr(found["b"]) == repr(rnnfast.GRU(I, H, reset_after=False, batch_first=True, activations=HARD[:2]))
    assert repr(found["c"]) == repr(rnnfast.GRU(I, H, batch_first=True, activations=HARD[:2]))
    assert repr(found["d"]) == repr(rnnfast.RNN(I, H, bias=False, batch_first=True))
    side = rnnfast.LSTM(2, H, batch_first=True, activations=HARD)
    assert repr(found["e"]) == repr(rnnfast.Bidirectional(side))
    for name, weights, order in (("a", lstm, LSTM), ("b", gru, GRU), ("c", after, GRU), ("d", rnn, RNN)):
        assert_parameters(found[name], weights, order)
    assert_parameters(found["e"], forward, LSTM, "forward.")
    assert_parameters(found["e"], backward, LSTM, "backward.")
    np.testing.assert_array_equal(found["f"].parameters["weight"], dense[0].T)
    np.testing.assert_array_equal(found["f"].parameters["bias"], dense[1])
    np.testing.assert_array_equal(found["g"].parameters["weight"], table)

    ours = rnnfast.LSTM(I, H)
    load_weights(ours, path, "a")
    assert_parameters(ours, lstm, LSTM)
    both = rnnfast.LSTM(2, H, bidirectional=True)
    load_weights(both, path)
    np.testing.assert_array_equal(both.parameters["weight_ih_l0_reverse"], backward[0].T)
    half = rnnfast.LSTM(2, H)
    load_weights(half, path, "backward_lstm_2")
    assert_parameters(half, backward, LSTM)


def test_options_in_the_file(path):
    lstm, gru, rnn = recurrent(4), recurrent(3, bias=False), recurrent(1)
    sides = [recurrent(1), recurrent(1, bias=False)]
    dense = [random(2, 5)]
    inner = model(about("LSTM", "in", activation="softsign", recurrent_activation="tanh"), about("Dense", "last"))
    cell = about("GRUCell", "cell", activation="relu", recurrent_activation="sigmoid", reset_after=True)
    config = model(
        about("InputLayer", "input_1"),
        about("LSTM", "a", activation="linear", recurrent_activation="hard_sigmoid", go_backwards=True),
        about("RNN", "b", cell=cell, go_backwards=False),
        about("SimpleRNN", "c", activation="relu"),
        about("Bidirectional", "d", merge_mode="ave", layer=about("SimpleRNN", "rnn", activation=None)),
        about("TimeDistributed", "e", layer=about("Dense", "dense_1", activation="softmax")),
        {**inner, "config": {**inner["config"], "name": "f"}},
        about("MyLSTM", "g", activation="tanh", recurrent_activation="sigmoid"),
        kind="Model",
    )
    layers = {
        "input_1": {},
        "a": under("a", lstm),
        "b": under("b/gru_cell", gru),
        "c": under("c", rnn),
        "d": {**under("d/forward_rnn", sides[0]), **under("d/backward_rnn", sides[1])},
        "e": under("e", dense, ["kernel"]),
        "f": {**under("in/lstm_cell_1", lstm), **under("last", [random(2, 3), random(3)], ["kernel", "bias"])},
        "g": under("g", lstm),
    }
    expected = {
        "a": "LSTM(3, 4, batch_first=True, reverse=True, "
        "activations=[['hard_sigmoid', 0.2, 0.5], ['affine', 1.0, 0.0], ['affine', 1.0, 0.0]])",
        "b": "GRU(3, 4, bias=False, batch_first=True, activations=['sigmoid', 'relu'])",
        "c": "RNN(3, 4, nonlinearity='relu', batch_first=True)",
        "d": "Bidirectional(RNN(3, 4, batch_first=True, activations=[['affine', 1.0, 0.0]]), "
        "backward_layer=RNN(3, 4, bias=False, batch_first=True, reverse=True, activations=[['affine', 1.0, 0.0]]), "
        "merge='mean')",
        "e": "Linear(2, 5, bias=False)",
        "f/in": "LSTM(3, 4, batch_first=True, activations=['tanh', 'softsign', 'softsign'])",
        "f/last": "Linear(2, 3)",
    }
    for version in ("2.2.4", "2.4.0", "3.1.0"):
        if version[0] == "3":
            expected["a"] = expected["a"].replace("0.2", str(1 / 6))
        write(path, layers, config, version)
        assert {name: repr(layer).partition("  #")[0] for name, layer in load_layers(path).items()} == expected
        write(path, layers, version="2.4.0")
        for given in (json.dumps({**config, "keras_version": version}), {**config, "keras_version": version}):
            found = load_layers(path, given)
            assert {name: repr(layer).partition("  #")[0] for name, layer in found.items()} == expected


@pytest.mark.parametrize("gates", [4, 3])
def test_cudnn(path, gates):
    """cuDNN's layout, made by the inverse of the conversion in Keras 2."""
    kernel, recurrent_kernel, bias = recurrent(gates, reset_after=True)
    kernels = [np.ascontiguousarray(one.T).reshape(one.shape) for one in np.split(kernel, gates, axis=1)]
    recurrents = [one.T for one in np.split(recurrent_kernel, gates, axis=1)]
    weights = [np.concatenate(kernels, axis=1), np.concatenate(recurrents, axis=1), bias.reshape(-1)]
    write(path, {"a": under("a", weights)})
    [layer] = load_layers(path).values()
    kind = rnnfast.LSTM if gates == 4 else rnnfast.GRU
    assert repr(layer) == repr(kind(I, H, batch_first=True))
    assert_parameters(layer, [kernel, recurrent_kernel, bias], LSTM if gates == 4 else GRU)
    ours = kind(I, H)
    load_weights(ours, path)
    assert_parameters(ours, [kernel, recurrent_kernel, bias], LSTM if gates == 4 else GRU)
    write(path, {"a": under("a", weights)}, model(about("CuDNNLSTM" if gates == 4 else "CuDNNGRU", "a")))
    assert repr(load_layers(path)["a"]) == repr(layer)
    with pytest.raises(ValueError, match="has arrays of shapes"):
        load_weights(kind(I, H, bias=False), path)


# ---- Keras 1


def hard_sigmoid(x):
    return np.clip(0.2 * x + 0.5, 0, 1)


def steps(equations, states):
    outputs = []
    for t in range(X.shape[1]):
        states = equations(X[:, t].astype(np.float64), *states)
        outputs.append(states[0])
    return np.stack(outputs, axis=1)


@pytest.mark.parametrize("end", ["", ":0"])
@pytest.mark.parametrize("version", [None, "1.2.2"])
def test_keras_1(path, end, version):
    """One array for each gate, and the equations of Keras 1."""
    shapes = {"W": (I, H), "U": (H, H), "b": (H,)}
    rng = np.random.default_rng(0)
    w = {f"{name}_{g}": rng.standard_normal(shapes[name]).astype("f4") for g in "icfozrh" for name in "WUb"}

    def named(layer, gates):
        return {f"{layer}_{name}_{g}{end}": w[f"{name}_{g}"] for g in gates for name in "WUb"}

    layers = {
        "lstm_1": named("lstm_1", "icfo"),
        "bidirectional_1": {**named("forward_gru_1", "zrh"), **named("backward_gru_1", "zrh")},
        "rnn": {f"rnn_{name}{end}": w[f"{name}_h"] for name in "WUb"},
        "dense": {f"dense_{name}{end}": w[f"{name}_i"] for name in "Wb"},
        "table": {f"table_W{end}": w["W_i"]},
    }
    write(path, layers, version=version)
    found = load_layers(path, recurrent_activation="hard_sigmoid")
    assert list(found) == ["lstm_1", "bidirectional_1", "rnn", "dense"]

    def gate(g, x, h):
        return x @ w[f"W_{g}"] + w[f"b_{g}"] + h @ w[f"U_{g}"]

    def lstm(x, h, c):
        c = hard_sigmoid(gate("f", x, h)) * c + hard_sigmoid(gate("i", x, h)) * np.tanh(gate("c", x, h))
        return hard_sigmoid(gate("o", x, h)) * np.tanh(c), c

    def gru(x, h):
        z, r = hard_sigmoid(gate("z", x, h)), hard_sigmoid(gate("r", x, h))
        return (z * h + (1 - z) * np.tanh(x @ w["W_h"] + w["b_h"] + (r * h) @ w["U_h"]),)

    zeros = np.zeros((2, H))
    np.testing.assert_allclose(found["lstm_1"](X)[0], steps(lstm, (zeros, zeros)), atol=1e-5)
    np.testing.assert_allclose(found["bidirectional_1"](X)[0][..., :H], steps(gru, (zeros,)), atol=1e-5)
    rnn = steps(lambda x, h: (np.tanh(gate("h", x, h)),), (zeros,))
    np.testing.assert_allclose(found["rnn"](X)[0], rnn, atol=1e-5)

    config = model(
        about("LSTM", "lstm_1", inner_activation="sigmoid", activation="tanh", output_dim=H),
        about("Bidirectional", "bidirectional_1", merge_mode="sum", layer=about("GRU", "gru_1", activation="tanh")),
        about("Embedding", "table"),
    )
    write(path, layers, config, version)
    found = load_layers(path)
    assert repr(found["lstm_1"]) == repr(rnnfast.LSTM(I, H, batch_first=True))
    assert found["bidirectional_1"].merge == "sum"
    assert repr(found["table"]) == repr(rnnfast.Embedding(I, H))
    ours = rnnfast.GRU(I, H, reset_after=False)
    load_weights(ours, path, "backward_gru_1")
    np.testing.assert_array_equal(ours.parameters["weight_ih_l0"][:H], w["W_r"].T)


def test_keras_1_with_joined_gates(path):
    """The option consume_less="gpu" of Keras 1."""
    weights = recurrent(4)
    write(path, {"a": {f"a_{name}": array for name, array in zip("WUb", weights, strict=True)}}, version="1.1.0")
    assert_parameters(load_layers(path, recurrent_activation="sigmoid")["a"], weights, LSTM)


# ---- Keras 3, by Keras itself


@pytest.fixture(scope="module")
def keras_model():
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    keras = pytest.importorskip("keras", reason="keras is not installed: no files written by it")
    inputs = keras.Input((None, I))
    y = keras.layers.LSTM(4, return_sequences=True, recurrent_activation="hard_sigmoid", name="first")(inputs)
    y = keras.layers.Bidirectional(keras.layers.GRU(4, return_sequences=True), merge_mode="mul", name="both")(y)
    stack = keras.Sequential([keras.layers.GRU(5, return_sequences=True, reset_after=False, name="in")], name="stack")
    y = keras.layers.SimpleRNN(2, return_sequences=True, use_bias=False, name="rnn")(stack(y))
    return keras.Model(inputs, keras.layers.Dense(3, name="dense")(y))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".h5", ".keras", ".weights.h5"])
def test_files_of_keras_3(keras_model, tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    (keras_model.save_weights if suffix == ".weights.h5" else keras_model.save)(path)
    found = load_layers(path, keras_model.to_json() if suffix == ".weights.h5" else None)
    stacked = "stack" if suffix == ".h5" else "in"
    assert set(found) == {"first", "both", stacked, "rnn", "dense"}
    y = X
    for name in ("first", "both", stacked, "rnn"):
        y = found[name](y)[0]
    np.testing.assert_allclose(found["dense"](y), keras_model(X), atol=2e-5)


def test_keras_is_not_imported(path):
    write(path, {"a": under("a", recurrent(1))})
    code = f"import sys; from rnnfast.backends.keras_files import load_layers; print(load_layers({str(path)!r})['a']);"
    code += "assert not {'keras', 'tensorflow', 'jax', 'torch'} & sys.modules.keys()"
    folder = os.path.dirname(os.path.dirname(rnnfast.__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *sys.path])}
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment)
    assert run.stdout.startswith("RNN(3, 4, batch_first=True)"), run.stderr


# ---- errors


def test_weights_without_options(path):
    write(path, {"a": under("a", recurrent(4))})
    with pytest.raises(ValueError, match=r"'a' at 'a/a': .*pass recurrent_activation=\"sigmoid\".*to_json\(\) as"):
        load_layers(path)
    with pytest.raises(ValueError, match=r"must be one of linear, sigmoid, .*, got 'hard'"):
        load_layers(path, recurrent_activation="hard")
    with pytest.raises(TypeError, match=r"config must be the text of model.to_json\(\).* got list"):
        load_layers(path, [])
    write(path, {"a": under("a", recurrent(3, bias=False))})
    with pytest.raises(ValueError, match="without bias does not tell its reset_after"):
        load_layers(path, recurrent_activation="sigmoid")


def of_text(text):
    return lambda path: path.write_bytes(text)


def of_arrays(layers, **options):
    return lambda path: write(path, layers, **options)


def npz(path):
    with open(path, "wb") as file:
        np.savez(file, a=np.ones(3))


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.weights.h5", "")
        archive.writestr("config.json", "{}")


def hdf5(path, **attributes):
    with h5py.File(path, "w") as file:
        file["a"] = np.ones(3)
        file.attrs.update(attributes)


def sparse(path):
    write(path, {"a": under("a", recurrent(4))})
    with h5py.File(path, "a") as file:
        del file["a/a/kernel:0"]
        file["a"].create_dataset("a/kernel:0", (2**20, 2**20), "f4", chunks=(2**10, 2**10))


def cut(path):
    write(path, {"a": under("a", recurrent(4))})
    path.write_bytes(path.read_bytes()[:3000])


def with_config(text):
    def make(path):
        write(path, {"a": under("a", recurrent(4))})
        with h5py.File(path, "a") as file:
            file.attrs["model_config"] = text

    return make


def wrong(*weights):
    return of_arrays({"a": under("a", weights)}, config=model(about("LSTM", "a", activation="tanh")))


BAD = {
    "empty": (of_text(b""), "in an unknown format"),
    "text": (of_text(b"no model at all"), "in an unknown format"),
    "npz": (npz, "a zip archive, such as .npz"),
    "keras without weights": (zipped, "a zip archive"),
    "npy": (of_text(b"\x93NUMPY\x01\x00"), "an .npy file"),
    "pickle": (of_text(b"\x80\x04."), "a pickle"),
    "lite": (of_text(b"\x1c\x00\x00\x00TFL3"), "a TensorFlow Lite model"),
    "checkpoint": (of_text(bytes(50) + bytes.fromhex("57fb808b247547db")), "the index of a TensorFlow checkpoint"),
    "safetensors": (lambda path: rnnfast.save_arrays(path, {"a": 1.0}), "a safetensors file"),
    "cut": (cut, "a damaged HDF5 file"),
    "other": (hdf5, "HDF5 without layers of Keras"),
    "Keras 0": (lambda path: hdf5(path, nb_layers=1), "a weight file of Keras 0"),
    "no layers": (of_arrays({"a": {}}), "contains no recurrent, Dense or Embedding layer"),
    "sparse": (sparse, "4398046511104 bytes, but they are not in the file"),
    "integers": (wrong(np.ones((3, 16), int), random(4, 16)), "not one of real numbers"),
    "two gates": (wrong(random(3, 8), random(4, 8)), "no known number of gates"),
    "sizes": (wrong(random(3, 16), random(4, 12)), "not those of a recurrent layer"),
    "no units": (wrong(random(3, 0), random(0, 0)), "not those of a recurrent layer"),
    "bias": (wrong(random(3, 16), random(4, 16), random(5)), "bias of shape \\(5,\\) does not fit"),
    "no json": (with_config("{"), "Expecting"),
    "odd json": (with_config('{"class_name": "TimeDistributed"}'), "KeyError"),
    "activation": (
        of_arrays({"a": under("a", recurrent(4))}, config=model(about("LSTM", "a", activation="selu"))),
        "layer 'a' at .*activations must be among linear, .*, got .*'selu'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name, path):
    make, message = BAD[name]
    make(path)
    with pytest.raises(ValueError, match=rf"rnnfast cannot load {re.escape(repr(str(path)))}: (?s:.*){message}"):
        load_layers(path, recurrent_activation="sigmoid")


def test_missing_files(path, tmp_path):
    with pytest.raises(FileNotFoundError):
        load_layers(path)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(ValueError, match="is a TensorFlow SavedModel"):
        load_layers(tmp_path)


def test_a_failed_load_changes_nothing(path):
    layer = rnnfast.LSTM(I, H, rng=0)
    before = layer.state_dict()
    write(path, {"a": under("a", recurrent(4)[:2])})
    with pytest.raises(ValueError, match=r"'a/a' has arrays of shapes \[\(3, 16\), \(4, 16\)\], but LSTM\(3, 4\)"):
        load_weights(layer, path)
    for name, array in layer.parameters.items():
        np.testing.assert_array_equal(array, before[name])
