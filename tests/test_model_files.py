"""rnnfast.from_file and ``rnnfast convert``: layers from the files of other programs."""

import json
import os
import warnings

import numpy as np
import pytest
from support.command_line import failure, main
from support.processes import python

import rnnfast

RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (5, 2, 3)).astype(np.float32)


def random(*shape):
    return RNG.uniform(-1, 1, shape)


def state_dict(**layers):
    """The parameters of layers under torch's names, like those of a module with these attributes."""
    return {
        f"{prefix.replace('__', '.')}.{name}": array
        for prefix, layer in layers.items()
        for name, array in layer.parameters.items()
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model"


def saved(path, arrays):
    rnnfast.save_arrays(path, arrays)
    return path


def quietly(*arguments):
    """The layer in a file, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return rnnfast.from_file(*arguments)


def assert_same(got, expected):
    assert repr(got) == repr(expected)
    for name, array in expected.parameters.items():
        assert got.parameters[name].tobytes() == array.tobytes(), name


EMBEDDING, LSTM, GRU = rnnfast.Embedding(20, 3, rng=0), rnnfast.LSTM(3, 4, 2, rng=1), rnnfast.GRU(8, 5, rng=2)
BOTH, LINEAR = rnnfast.LSTM(3, 4, bidirectional=True, rng=3), rnnfast.Linear(4, 2, rng=4)
CONV = {"conv.weight": np.ones((4, 3, 5), np.float32), "conv.bias": np.ones(4, np.float32)}

# ---- arrays under torch's names


@pytest.mark.parametrize(
    "layer",
    [LSTM, GRU, rnnfast.Bidirectional(rnnfast.GRU(3, 4, rng=0), rnnfast.LSTM(3, 2, reverse=True, rng=0))],
    ids=repr,
)
@pytest.mark.parametrize("prefix", ["model__encoder", "forward_pass"])
def test_a_file_with_one_layer_needs_no_name(layer, prefix, path):
    assert_same(quietly(saved(path, state_dict(**{prefix: layer}))), layer)
    assert_same(quietly(saved(path, layer.parameters)), layer)


def test_a_chain_whose_sizes_fit_in_one_order(path):
    saved(path, state_dict(readout=LINEAR, embedding=EMBEDDING, lstm=LSTM))
    with pytest.warns(UserWarning, match="a safetensors file; built: 'embedding' .*does not hold the graph") as record:
        model = rnnfast.from_file(path)
    assert_same(model, rnnfast.Sequential(EMBEDDING, LSTM, LINEAR))
    assert "'embedding' can be an Embedding or a Linear without bias: the name suggests an Embedding" in str(
        record[0].message
    )
    assert record[0].filename == __file__


def test_numbers_are_the_order_of_a_sequential(path):
    layers = [rnnfast.GRU(3, 3, rng=k) for k in range(11)]
    saved(path, state_dict(**{f"net__{2 * k}": layer for k, layer in enumerate(layers)}))
    with pytest.warns(UserWarning, match="graph"):
        model = rnnfast.from_file(path)
    assert_same(model, rnnfast.Sequential(*layers))


def test_a_matrix_that_fits_only_as_a_table_is_an_embedding(path):
    """Also by a name that says nothing."""
    saved(path, {f"{k}.{n}": v for k, one in enumerate((EMBEDDING, LSTM, LINEAR)) for n, v in one.parameters.items()})
    for name in (None, ["0", "1", "2"]):
        with pytest.warns(UserWarning, match="Embedding or a Linear without bias: only an Embedding fits what follows"):
            model = rnnfast.from_file(path, name)
        assert_same(model, rnnfast.Sequential(EMBEDDING, LSTM, LINEAR))


def test_an_order_that_is_not_unique_is_an_error(path):
    one, other = rnnfast.GRU(3, 3, rng=0), rnnfast.GRU(3, 3, rng=1)
    saved(path, state_dict(a=one, b=other))
    with pytest.raises(ValueError, match=r"fit in several orders, such as \['a', 'b'\] or \['b', 'a'\]: set name to"):
        rnnfast.from_file(path)
    assert_same(quietly(path, "b"), other)
    assert_same(quietly(path, ["b", "a"]), rnnfast.Sequential(other, one))


def test_other_arrays_are_left_out_with_a_warning(path):
    arrays = state_dict(lstm=LSTM, head=LINEAR) | CONV | {"steps": np.array(3), "q.weight": np.ones((2, 2), np.int8)}
    saved(path, arrays)
    left_out = (
        r"left out: 'head' \(Linear\(4, 2\)\), '' \(steps \(\)\), 'conv' \(weight \(4, 3, 5\), bias \(4,\)\), 'q' "
    )
    with pytest.warns(UserWarning, match=left_out):
        assert_same(rnnfast.from_file(path), LSTM)
    assert_same(quietly(path, ["lstm", "head"]), rnnfast.Sequential(LSTM, LINEAR))
    assert_same(quietly(path, "head"), LINEAR)


def test_the_start_of_names_selects_the_layers_below(path):
    saved(path, state_dict(tagger__lstm=BOTH, tagger__head=rnnfast.Linear(8, 2, rng=0), other__gru=GRU) | CONV)
    with pytest.raises(ValueError, match="a safetensors file with 2 recurrent layers, which form no plain chain: "):
        rnnfast.from_file(path)
    with pytest.warns(UserWarning, match="graph"):
        model = rnnfast.from_file(path, "tagger")
    assert_same(model, rnnfast.Sequential(BOTH, rnnfast.Linear(8, 2, rng=0)))
    assert_same(quietly(path, "other."), GRU)


def test_the_nonlinearity_of_an_rnn_is_not_in_a_file(path):
    saved(path, state_dict(a=rnnfast.RNN(2, 3), b=GRU))
    with pytest.warns(UserWarning, match="nonlinearity of 'a' is not in the file: tanh is assumed"):
        rnnfast.from_file(path, "a")
    assert_same(quietly(path, "b"), GRU)


@pytest.mark.parametrize(
    ("arrays", "name", "message"),
    [
        ({}, None, "a safetensors file with no recurrent layer: it is empty"),
        (CONV, None, "with no recurrent layer: 'conv': weight"),
        (state_dict(a=LINEAR), None, r"with no recurrent layer: 'a': Linear\(4, 2\)"),
        (
            state_dict(a=GRU),
            "b",
            "name must be that of a layer in the file, got 'b': it is a safetensors file with 'a': GRU",
        ),
        (state_dict(a=GRU, b=LINEAR), ["b", "a"], r"layers\[0\], Linear\(4, 2\), returns 2 features, but .* takes 8"),
        (
            {"a.weight_ih_l0": np.ones((10, 3)), "a.weight_hh_l0": np.ones((10, 5))},
            None,
            "recurrent .*imply 2 gates",
        ),
        ({"a.weight_ih_l0": np.ones((10, 3))}, "a", "'a': arrays have no 'weight_hh_l0', so they can be"),
    ],
)
def test_errors_list_what_was_found(arrays, name, message, path):
    with pytest.raises(ValueError, match=f"rnnfast cannot load '.*model': .*{message}"):
        rnnfast.from_file(saved(path, arrays), name)


def test_layers_of_a_chain_have_one_dtype(path):
    saved(path, state_dict(a=rnnfast.GRU(2, 3, dtype=np.float64), b=rnnfast.Linear(3, 1)))
    with pytest.raises(ValueError, match=r"rnnfast cannot load .* dtype"):
        rnnfast.from_file(path)
    assert rnnfast.from_file(path, "b").dtype == np.float32


@pytest.mark.parametrize("name", [3, [], [3], ["a", None]])
def test_names_are_strings(name, path):
    with pytest.raises(TypeError, match="name must be a string or a sequence of strings"):
        rnnfast.from_file(saved(path, state_dict(a=GRU)), name)


def test_many_layers_of_one_size_end_quickly(path):
    saved(path, state_dict(**{f"part{k}": rnnfast.GRU(3, 3, rng=k) for k in range(30)}))
    with pytest.raises(ValueError, match=r"30 recurrent layers, which form no plain chain: .* and 21 more; set name"):
        rnnfast.from_file(path)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_files_of_torch(torch, dtype, path):
    torch.manual_seed(0)
    module = torch.nn.ModuleDict(
        {"emb": torch.nn.Embedding(9, 4), "rec": torch.nn.GRU(4, 5, bidirectional=True), "out": torch.nn.Linear(10, 2)}
    ).to(getattr(torch, dtype))
    torch.save({"state_dict": module.state_dict(), "epoch": 3}, path)
    with pytest.warns(UserWarning, match="a file of torch.save; built: 'state_dict.emb'"):
        model = rnnfast.from_file(path)
    assert model.dtype == (np.float64 if dtype == "float64" else np.float32)
    ids = np.arange(8).reshape(4, 2)
    with torch.no_grad():
        module.to(torch.float64)
        expected = module["out"](module["rec"](module["emb"](torch.from_numpy(ids)))[0])
    np.testing.assert_allclose(model(ids)[0], expected, atol=1e-5)
    assert np.array_equal(model[0].parameters["weight"], module["emb"].weight.detach())  # without rounding


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_program_of_torch_is_named(torch, path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), path)
    with pytest.raises(ValueError, match=r"TorchScript|torch\.load"):
        rnnfast.from_file(path)


# ---- models for audio


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def nam_output(config, weights, x):
    """What NeuralAmpModelerCore computes, in float64: samples one by one, the state from the file at the first."""
    I, H, L, O = (config.get(name, 1) for name in ("input_size", "hidden_size", "num_layers", "out_channels"))
    numbers = iter(weights)

    def take(*shape):
        return np.array([next(numbers) for _ in range(np.prod(shape))]).reshape(shape)

    cells = [[take(4 * H, (I if k == 0 else H) + H), take(4 * H), take(H), take(H)] for k in range(L)]
    weight, bias = take(O, H), take(O)
    assert next(numbers, None) is None
    y = []
    for value in x:
        for cell in cells:
            W, b, h, c = cell
            i, f, g, o = np.split(W @ np.concatenate([value, h]) + b, 4)
            cell[3] = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            value = cell[2] = sigmoid(o) * np.tanh(cell[3])
        y.append(weight @ value + bias)
    return np.array(y)


@pytest.mark.parametrize(
    "config",
    [
        {"input_size": 1, "hidden_size": 3, "num_layers": 1},
        {"input_size": 1, "hidden_size": 4, "num_layers": 3},
        {"input_size": 2, "hidden_size": 3, "num_layers": 2, "in_channels": 2, "out_channels": 2},
    ],
)
def test_nam(config, path):
    I, H, L, O = (config.get(name, 1) for name in ("input_size", "hidden_size", "num_layers", "out_channels"))
    count = sum(4 * H * ((H if k else I) + H) + 6 * H for k in range(L)) + O * (H + 1)
    about = {"version": "0.5.4", "architecture": "LSTM", "config": config, "weights": random(count).tolist()}
    path.write_text(json.dumps({**about, "metadata": {"gear": ["amp"]}, "sample_rate": 48000}))
    model, x = quietly(path), random(20, I)
    np.testing.assert_allclose(model(x)[0], nam_output(config, about["weights"], x), atol=1e-5)
    stream = model.stream()
    y = [stream.step(value)[0] for value in x.astype(np.float32)[:, np.newaxis]]
    np.testing.assert_array_equal(y, model(x.astype(np.float32))[0])
    assert_same(quietly(path, "lstm"), model[0])


def rtneural_output(layers, x):
    """What RTNeural computes, in float64."""
    for one in layers:
        weights = [np.array(array) for array in one["weights"]]
        if one["type"] in ("dense", "time-distributed-dense"):
            x = x @ weights[0] + (weights[1] if len(weights) > 1 else 0)
            functions = {"": lambda x: x, "tanh": np.tanh, "relu": lambda x: np.maximum(x, 0), "sigmoid": sigmoid}
            x = functions[one["activation"]](x)
            continue
        W, U, b = weights
        h, c, y = np.zeros(len(U)), np.zeros(len(U)), []
        for value in x:
            if one["type"] == "lstm":
                i, f, g, o = np.split(value @ W + h @ U + b, 4)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
            else:
                (z, r, n), (hz, hr, hn) = np.split(value @ W + b[0], 3), np.split(h @ U + b[1], 3)
                z, r = sigmoid(z + hz), sigmoid(r + hr)
                h = (1 - z) * np.tanh(n + r * hn) + z * h
            y.append(h)
        x = np.array(y)
    return x


def rtneural_layer(kind, I, H, activation=""):
    gates = {"lstm": 4, "gru": 3}.get(kind)
    bias = {"lstm": (4 * H,), "gru": (2, 3 * H)}.get(kind, (H,))
    weights = [random(I, gates * H), random(H, gates * H)] if gates else [random(I, H)]
    return {
        "type": kind,
        "activation": activation,
        "shape": [None, None, H],
        "weights": [array.tolist() for array in (*weights, random(*bias))],
    }


RTNEURAL = [
    [rtneural_layer("lstm", 1, 4), rtneural_layer("dense", 4, 1)],
    [rtneural_layer("gru", 1, 4), rtneural_layer("dense", 4, 1)],
    [
        rtneural_layer("time-distributed-dense", 2, 3, "tanh"),
        rtneural_layer("gru", 3, 4, "tanh"),
        rtneural_layer("lstm", 4, 2),
        rtneural_layer("dense", 2, 5, "relu"),
        rtneural_layer("dense", 5, 1, "sigmoid"),
    ],
]


@pytest.mark.parametrize("layers", RTNEURAL, ids=lambda layers: "-".join(one["type"] for one in layers))
def test_rtneural(layers, path):
    path.write_text(json.dumps({"in_shape": [None, None, 1], "layers": layers}, indent=1))
    model, x = quietly(path), random(20, len(layers[0]["weights"][0]))
    np.testing.assert_allclose(model(x)[0], rtneural_output(layers, x), atol=1e-5)


def test_what_surrounds_an_rtneural_model_is_said(path):
    path.write_text(json.dumps({"in_shape": [1], "layers": RTNEURAL[0], "in_skip": 1, "out_gain": -3.5}))
    with pytest.warns(
        UserWarning, match=r"an RTNeural model; .*out_gain=-3.5 \(dB\) is not applied; .* adds the input"
    ):
        rnnfast.from_file(path)
    layers = [rtneural_layer("gru", 1, 4), rtneural_layer("dense", 4, 2, "softmax")]
    path.write_text(json.dumps({"in_shape": [1], "layers": layers}))
    with pytest.warns(UserWarning, match="left out: '1.activation' .activation 'softmax'"):
        assert len(rnnfast.from_file(path)) == 2
    path.write_text(json.dumps({"in_shape": [1], "layers": [*layers, rtneural_layer("dense", 2, 1)]}))
    with pytest.warns(UserWarning, match="left out: '1' .Linear.4, 2.., '2' .Linear.2, 1.., '1.activation'"):
        assert isinstance(rnnfast.from_file(path), rnnfast.GRU)
    layers.insert(1, {"type": "conv1d", "weights": [[[1.0]]]})
    path.write_text(json.dumps({"in_shape": [1], "layers": layers}))
    with pytest.warns(UserWarning, match="'1' .layer of type 'conv1d'"):
        assert isinstance(rnnfast.from_file(path), rnnfast.GRU)


@pytest.mark.parametrize("skip", [0, 1])
def test_arrays_in_json(skip, path):
    rec, lin = rnnfast.GRU(1, 4, rng=0), rnnfast.Linear(4, 1, rng=1)
    arrays = {name: array.tolist() for name, array in state_dict(rec=rec, lin=lin).items()}
    expected = rnnfast.Sequential(rec, lin)
    about = {"model": "SimpleRNN", "unit_type": "GRU", "skip": skip}
    path.write_text(json.dumps({"model_data": about, "state_dict": arrays}))
    if skip:
        with pytest.warns(UserWarning, match="a GuitarML model; .*adds the input to the output"):
            assert_same(rnnfast.from_file(path), expected)
    else:
        assert_same(quietly(path), expected)
    path.write_text(json.dumps(arrays))
    with pytest.raises(ValueError, match=r"a JSON file with .*fit in several orders"):
        rnnfast.from_file(path)
    assert_same(quietly(path, ["rec", "lin"]), expected)


def nam(**changes):
    config = {"input_size": 1, "hidden_size": 2, "num_layers": 1} | changes.pop("config", {})
    return {"architecture": "LSTM", "config": config, "weights": [0.5] * 39, **changes}


def rtneural(**changes):
    return {"in_shape": [1], "layers": [rtneural_layer("gru", 1, 2) | changes]}


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({}, "neither a model of NAM"),
        ({"a": [1.0], "b": 2}, "JSON with the names 'a', 'b', but neither"),
        ({"rec.weight_ih_l0": [[1.0], [1.0, 2.0]]}, "inhomogeneous"),
        ({"rec.weight_ih_l0": [["1"]]}, "rec.weight_ih_l0 must be nested lists of numbers"),
        ({"rec.weight_ih_l0": [[True]]}, "nested lists of numbers"),
        ({"rec.weight_ih_l0": [[10**400]]}, "nested lists of numbers"),
        ({"model_data": {"model": "SimpleRNN"}, "state_dict": {"weight": [[1.0]]}}, "no 'weight_ih_l0'"),
        (nam(weights=[0.5] * 40), "weights has 40 numbers, but an LSTM with input_size=1, .* needs 39"),
        (nam(weights=[[0.5]] * 39), "weights has 39 numbers"),
        (nam(weights=None), "nested lists"),
        (nam(weights=["a"] * 39), "nested lists"),
        (nam(config={"hidden_size": 10**12}), "needs 4000000000011000000000001"),
        (nam(config={"num_layers": 10**12}), "needs"),
        (nam(config={"num_layers": 0}), "must have a positive integer num_layers, got 0"),
        (nam(config={"input_size": 1.0}), "positive integer input_size, got 1.0"),
        (nam(config={"out_channels": True}), "positive integer out_channels, got True"),
        (nam() | {"config": None}, "positive integer input_size, got None"),
        (nam(architecture="WaveNet"), "a NAM model of the architecture 'WaveNet', but rnnfast reads only 'LSTM'"),
        (nam(architecture=[]), "architecture"),
        (rtneural(type="lstm"), r"layers\[0\] of type 'lstm' .* \(1, 6\), \(2, 6\), .*which do not fit"),
        (rtneural(shape=[None, 3]), r"has the shape \[None, 3\]"),
        (rtneural(shape=None), "has the shape None"),
        (rtneural(weights=[[[1.0]]]), "must have 3 arrays of weights"),
        (rtneural(weights=[1.0, 2.0, 3.0]), r"layers\[0\].weights\[0\] must be nested lists"),
        (rtneural(weights=[[], [], []]), "do not fit"),
        (rtneural(weights={"a": 1}), "must have 3 arrays"),
        (rtneural(weights=[[[1.0] * 6], [[1.0] * 6] * 2, [1.0] * 6]), "do not fit"),  # of reset_after=False
        (rtneural(type=["gru"]), "no recurrent layer"),
        ({"in_shape": [1], "layers": {}}, "a list of objects with a type"),
        ({"in_shape": [1], "layers": [1]}, "a list of objects with a type"),
        ({"in_shape": [1], "layers": []}, "no recurrent layer|at least one layer"),
    ],
)
def test_wrong_json_is_an_error(about, message, path):
    path.write_text(json.dumps(about))
    with pytest.raises(ValueError, match=rf"rnnfast cannot load '.*': .*(?:{message})"):
        rnnfast.from_file(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"architecture": "LSTM"', "Expecting"),
        ('{"a": NaN}', "not JSON"),
        ('{"a": 1, "a": 2}', "twice"),
        ('{"a":' * 100_000, "RecursionError"),
        ('{"weight": ' + "[" * 900 + "]" * 900 + "}", "RecursionError|nested lists|dimension"),
        ('{"\udc80": 1}', "codec"),
    ],
)
def test_damaged_json_is_an_error(text, message, path):
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        rnnfast.from_file(path)


# ---- ONNX


def onnx_model(onnx, nodes, initializers, x=("T", "N", 3), ids=False):
    helper = onnx.helper
    dtype = onnx.TensorProto.INT64 if ids else onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(op_type, inputs, outputs, outputs[0], **given) for op_type, inputs, outputs, given in nodes],
        "model",
        [helper.make_tensor_value_info("x", dtype, x)],
        [onnx.ValueInfoProto(name=nodes[-1][2][0])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def recurrent_nodes(layer, x, y, last=False):
    """The nodes and weights of an LSTM for (T, N, I), as exporters write them."""
    H, D, order = layer.hidden_size, 1 + layer.bidirectional, [0, 3, 1, 2]
    sides = ["_l0", "_l0_reverse"][:D]
    weights = {
        name + y: np.stack(
            [np.concatenate([layer.parameters[p + side].reshape(4, H, -1)[order] for p in parts]) for side in sides]
        )
        for name, parts in {"W": ["weight_ih"], "R": ["weight_hh"], "B": ["bias_ih", "bias_hh"]}.items()
    }
    shapes = {"W": (D, 4 * H, -1), "R": (D, 4 * H, -1), "B": (D, 8 * H)}
    weights = {name: array.reshape(shapes[name[0]]) for name, array in weights.items()}
    given = {"hidden_size": H, "direction": "bidirectional" if D == 2 else "forward"}
    outputs = ["", f"{y}_h"] if last else [f"{y}_raw"]
    axes = [1, 0, 2] if last else [0, 2, 1, 3]
    shape = np.array([0, D * H] if last else [0, 0, D * H])
    nodes = [
        ("LSTM", [x, f"W{y}", f"R{y}", f"B{y}"], outputs, given),
        ("Transpose", [outputs[-1]], [f"{y}_t"], {"perm": axes}),
        ("Reshape", [f"{y}_t", f"shape{y}"], [y], {}),
    ]
    return nodes, weights | {f"shape{y}": shape}


@pytest.fixture
def onnx():
    return pytest.importorskip("onnx", reason="onnx is not installed: no ONNX models are read")


@pytest.mark.parametrize(
    "layer", [LSTM, BOTH, GRU, rnnfast.GRU(3, 4, 2, batch_first=True, bidirectional=True, rng=0)], ids=repr
)
def test_models_of_to_onnx(onnx, layer, path):
    from rnnfast.backends.onnx import to_onnx

    onnx.save(to_onnx(layer), path)
    model = quietly(os.fsencode(path))
    assert len(model) == layer.num_layers if layer.num_layers > 1 else type(model) is type(layer)
    assert model.batch_first == layer.batch_first
    x = random(5, 4, layer.input_size).astype(np.float32)
    np.testing.assert_array_equal(model(x)[0], layer(x)[0])


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_an_onnx_chain(onnx, last, batch_first, path):
    embedding, lstm = EMBEDDING.parameters["weight"], BOTH
    one, other = rnnfast.Linear(8, 5, rng=0).parameters, rnnfast.Linear(5, 2, rng=1).parameters
    nodes, weights = recurrent_nodes(lstm, "rows", "y", last)
    turn = batch_first and not last
    model = onnx_model(
        onnx,
        [
            ("Gather", ["E", "x"], ["e"], {}),
            ("Transpose" if batch_first else "Identity", ["e"], ["rows"], {"perm": [1, 0, 2]} if batch_first else {}),
            *nodes,
            ("Transpose" if turn else "Identity", ["y"], ["turned"], {"perm": [1, 0, 2]} if turn else {}),
            ("MatMul", ["turned", "A"], ["product"], {}),
            ("Add", ["a", "product"], ["sum"], {}),
            ("Relu", ["sum"], ["relu"], {}),
            ("Gemm" if last else "MatMul", ["relu", "B", *["b"] * last], ["logits"], {}),
            ("Softmax", ["logits"], ["out"], {}),
        ],
        weights | {"E": embedding, "A": one["weight"].T, "a": one["bias"], "B": other["weight"].T, "b": other["bias"]},
        x=("N", "T") if batch_first else ("T", "N"),
        ids=True,
    )
    onnx.save(model, path)
    with pytest.warns(UserWarning, match=r"an ONNX model; .*left out: 'out' \(Softmax\)$"):
        chain = rnnfast.from_file(path)
    names = ["Embedding", "LSTM", "Pool", "Linear", "Activation", "Linear"]
    assert [type(layer).__name__ for layer in chain.layers] == [name for name in names if last or name != "Pool"]
    ids = np.arange(12).reshape(3, 4)
    logits = chain(ids)[0]
    [expected] = onnx.reference.ReferenceEvaluator(model).run(None, {"x": ids})
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), expected, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        ("Reshape", ["y", "mixed"], ["out"], {}),  # moves features between steps
        ("Mul", ["y", "y"], ["out"], {}),
        ("Transpose", ["y"], ["out"], {"perm": [1, 0, 2]}),  # the batch first in the output, but not in x
    ],
)
def test_onnx_models_that_are_no_chain(onnx, change, path):
    nodes, weights = recurrent_nodes(BOTH, "x", "y")
    mixed = np.array([-1, 4, 4])
    onnx.save(onnx_model(onnx, [*nodes, change], weights | {"mixed": mixed}), path)
    with pytest.warns(UserWarning, match=f"left out: 'nodes' .*{change[0]}"):
        assert_same(rnnfast.from_file(path), BOTH)


def test_names_of_layers_that_do_not_follow_each_other(onnx, path):
    lstm = rnnfast.LSTM(3, 3, rng=0)
    nodes, weights = recurrent_nodes(lstm, "part.first", "y")
    linear = np.eye(3, dtype=np.float32)
    nodes = [("MatMul", ["x", "A"], ["part.first"], {}), *nodes, ("MatMul", ["y", "A"], ["part.second"], {})]
    onnx.save(onnx_model(onnx, nodes, weights | {"A": linear}), path)
    assert len(quietly(path)) == 3
    with pytest.raises(ValueError, match=r"ONNX model with no recurrent layer: .part\.first.: Linear"):
        rnnfast.from_file(path, "part")
    assert len(quietly(path, ["part.first", "part.second"])) == 2


def test_an_onnx_model_with_two_paths_is_no_chain(onnx, path):
    (one, first), (other, second) = recurrent_nodes(BOTH, "x", "a"), recurrent_nodes(BOTH, "x", "b")
    onnx.save(onnx_model(onnx, [*one, *other, ("Add", ["a", "b"], ["out"], {})], first | second), path)
    with pytest.raises(ValueError, match="an ONNX model with 2 recurrent layers, which form no plain chain: 'a_raw': "):
        rnnfast.from_file(path)
    assert_same(quietly(path, "b_raw"), BOTH)


# ---- Keras


def keras_file(path, layers, weights, kind="Sequential"):
    """Write a model of Keras 2; `layers` have (class, name, options)."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: no files of Keras are read")
    described = [{"class_name": of, "config": {"name": name, **given}} for of, name, given in layers]
    with h5py.File(path, "w") as root:
        root.attrs["model_config"] = json.dumps({"class_name": kind, "config": {"name": "m", "layers": described}})
        root.attrs["keras_version"] = "2.4.0"
        group = root.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in weights]
        for name, arrays in weights.items():
            inner = group.create_group(name)
            inner.attrs["weight_names"] = [f"{name}/{short}:0".encode() for short in arrays]
            for short, array in arrays.items():
                inner[f"{name}/{short}:0"] = array.astype(np.float32)


def keras_gru(I, H):
    return {"kernel": random(I, 3 * H), "recurrent_kernel": random(H, 3 * H), "bias": random(2, 3 * H)}


GRU_OPTIONS = {"activation": "tanh", "recurrent_activation": "sigmoid", "reset_after": True}
KERAS_LAYERS = [
    ("InputLayer", "input", {}),
    ("Embedding", "words", {"mask_zero": True}),
    ("GRU", "below", {**GRU_OPTIONS, "return_sequences": True}),
    ("Dropout", "drop", {"rate": 0.5}),
    ("GRU", "above", {**GRU_OPTIONS, "return_sequences": False}),
    ("Dense", "hidden", {"activation": "tanh"}),
    ("Dense", "scores", {"activation": "softmax"}),
]
KERAS_WEIGHTS = {
    "words": {"embeddings": random(9, 3)},
    "below": keras_gru(3, 4),
    "above": keras_gru(4, 5),
    "hidden": {"kernel": random(5, 6), "bias": random(6)},
    "scores": {"kernel": random(6, 2), "bias": random(2)},
}


def test_a_sequential_model_of_keras(path):
    keras_file(path, KERAS_LAYERS, KERAS_WEIGHTS)
    with pytest.warns(
        UserWarning, match="left out: 'scores.activation' .softmax.*'words' .* masks steps: pass lengths"
    ):
        model = rnnfast.from_file(path)
    names = [type(layer).__name__ for layer in model.layers]
    assert names == ["Embedding", "GRU", "GRU", "Pool", "Linear", "Activation", "Linear"]
    from rnnfast.backends.keras_files import load_layers

    layers, ids = load_layers(path), np.arange(8).reshape(2, 4)
    h = layers["above"](layers["below"](layers["words"](ids))[0])[1][0]
    np.testing.assert_array_equal(model(ids)[0], layers["scores"](np.tanh(layers["hidden"](h))))
    assert_same(quietly(path, "below"), layers["below"])


@pytest.mark.parametrize(
    "change",
    [
        ("Conv1D", "conv", {}),
        ("GRU", "below", {**GRU_OPTIONS, "return_sequences": True, "go_backwards": True}),
        ("Activation", "elu", {"activation": "elu"}),
        "Functional",
    ],
    ids=str,
)
def test_other_models_of_keras(change, path):
    layers = [change if one[1] == change[1] else one for one in KERAS_LAYERS]
    if change not in layers and change != "Functional":
        layers.insert(3, change)
    keras_file(path, layers, KERAS_WEIGHTS, "Functional" if change == "Functional" else "Sequential")
    with pytest.raises(
        ValueError, match=r"a file of Keras with 2 recurrent layers, .* 'words': Embedding\(9, 3\), 'below'"
    ):
        rnnfast.from_file(path)
    assert rnnfast.from_file(path, "above").hidden_size == 5


def test_a_file_of_weights_of_keras(path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: no files of Keras are read")
    keras_file(path, KERAS_LAYERS, KERAS_WEIGHTS)
    with h5py.File(path, "r+") as root:
        del root.attrs["model_config"]
    with pytest.raises(ValueError, match=r"not the options of the layers: call .*load_layers"):
        rnnfast.from_file(path)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_file_that_keras_wrote(path):
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    keras = pytest.importorskip("keras", reason="keras is not installed: no files that it writes are read")
    keras.utils.set_random_seed(0)
    theirs = keras.Sequential(
        [
            keras.Input((None, 3)),
            keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True)),
            keras.layers.Bidirectional(keras.layers.GRU(5)),
            keras.layers.Dense(2, "relu"),
        ]
    )
    theirs.save(path.with_suffix(".keras"))
    model, x = quietly(path.with_suffix(".keras")), X.swapaxes(0, 1)
    np.testing.assert_allclose(model(x)[0], np.asarray(theirs(x)), atol=1e-5)


# ---- formats


def test_files_of_rnnfast(path):
    for layer in (LSTM, LINEAR, rnnfast.Sequential(LSTM, rnnfast.Pool("last"), LINEAR)):
        layer.save(path)
        assert_same(quietly(path), layer)
    assert_same(quietly(path, "2"), LINEAR)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is in an unknown format, but from_file reads safetensors, torch.save, ONNX, Keras, NAM, RTNeural"),
        (b"\x80\x04.", "it is a pickle, but from_file reads"),
        (b"\x1c\0\0\0TFL3", "a TensorFlow Lite model"),
        (b"PK\x03\x04" + bytes(100), "zip archive.*pass numpy.load"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "damaged HDF5"),
        (b"\x08\x07", "not an ONNX model"),
        (b"\x08" + b"{" * 100, "not an ONNX model"),
    ],
)
def test_other_formats_are_named(content, message, path):
    if message == "damaged HDF5":
        pytest.importorskip("h5py", reason="h5py is not installed: no files of Keras are read")
    if "ONNX model" in message:
        pytest.importorskip("onnx", reason="onnx is not installed: no ONNX models are read")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"rnnfast cannot load '.*model': .*{message}"):
        rnnfast.from_file(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        rnnfast.from_file(path)


def test_readers_are_imported_at_first_use(path):
    saved(path, LSTM.parameters)
    later = "'torch', 'onnx', 'h5py', 'rnnfast.backends._audio_files'"
    code = f"import sys, rnnfast; print('rnnfast.backends' in sys.modules); rnnfast.from_file({str(path)!r})"
    run = python(code=f"{code}; print([name for name in ({later}) if name in sys.modules])")
    assert run.stdout.split("\n")[:2] == ["False", "[]"], run.stderr


# ---- the command


def test_convert(tmp_path, capsys):
    source, target = saved(tmp_path / "model.safetensors", state_dict(lstm=LSTM, head=LINEAR) | CONV), tmp_path / "out"
    assert main(["convert", str(source), str(target)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == [
        f"{source} is a safetensors file",
        "  built    lstm  LSTM(3, 4, num_layers=2)  # 304 parameters",
        "  left out head  Linear(4, 2)",
        "  left out conv  weight (4, 3, 5), bias (4,)",
        f"Saved to {target}",
    ]
    assert_same(rnnfast.load(target), LSTM)
    assert main(["convert", str(source), str(target), "--name", "lstm", "--name", "head"]) == 0
    assert_same(rnnfast.load(target), rnnfast.Sequential(LSTM, LINEAR))
    assert "left out" not in capsys.readouterr().out


def test_convert_says_what_is_wrong(tmp_path, capsys):
    source, target = saved(tmp_path / "model", state_dict(a=LSTM, b=GRU) | CONV), tmp_path / "out"
    assert "2 recurrent layers, which form no plain chain" in failure(capsys, "convert", source, target)
    assert "got 'c'" in failure(capsys, "convert", source, target, "--name", "c")
    assert "cannot read" in failure(capsys, "convert", tmp_path / "missing", target)
    assert "are the same file" in failure(capsys, "convert", source, source)
    assert not target.exists()


def test_convert_shows_no_control_characters(tmp_path, capsys):
    source = saved(tmp_path / "model", {f"\x1b[31m.{name}": array for name, array in LSTM.parameters.items()})
    assert main(["convert", str(source), str(tmp_path / "out")]) == 0
    assert "\x1b" not in capsys.readouterr().out
