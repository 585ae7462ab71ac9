"""ONNX models as exporters write them: unknown shapes, computed weights, nodes in bodies, quantized weights."""

import numpy as np
import pytest

import rnnfast
from rnnfast import functional

onnx = pytest.importorskip("onnx", reason="onnx is not installed: nothing of rnnfast.backends.onnx is tested")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from support.onnx_nodes import (  # noqa: E402
    NOT_MODELS,
    PLACES_OF_NODES,
    TOLERANCE,
    WEIGHTS,
    assert_close,
    by_numpy,
    computed,
    lstm,
    model_of,
    nested,
    quantized,
    run,
)

from rnnfast.backends.onnx import Backend, layer_from_onnx, ops, to_onnx  # noqa: E402


def assert_same_parameters(got, want):
    assert got.parameters.keys() == want.parameters.keys()
    for name, array in want.parameters.items():
        np.testing.assert_array_equal(got.parameters[name], array, err_msg=name)


@pytest.mark.parametrize("lacks", ["shape", "type"])
def test_outputs_without_shape(lacks):
    layer = rnnfast.GRU(4, 6, rng=0)
    model = to_onnx(layer)
    for value in model.graph.output:
        if lacks == "shape":
            value.type.tensor_type.ClearField("shape")
        else:
            value.ClearField("type")
    text = model.SerializeToString()
    x = np.ones((5, 3, 4), np.float32)
    y, h = Backend.run_model(model, [x])
    np.testing.assert_array_equal(y, layer(x)[0])
    np.testing.assert_array_equal(h, layer(x)[1])
    assert model.SerializeToString() == text


def test_models_that_are_invalid_otherwise_are_rejected():
    model = to_onnx(rnnfast.GRU(4, 6, rng=0))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.node[0].op_type = ""
    with pytest.raises(onnx.checker.ValidationError):
        Backend.prepare(model)


# ---- computed weights


@pytest.mark.parametrize("by", ["ops", "Backend"])
def test_computed_weights_are_packed_once(by, monkeypatch):
    problem, packed, built = lstm(), [], []
    want = run(model_of(problem, constants=WEIGHTS), problem.feeds)
    pack, init = functional.pack, rnnfast.LSTM.__init__
    monkeypatch.setattr(functional, "pack", lambda *args: (packed.append(args), pack(*args)))
    monkeypatch.setattr(rnnfast.LSTM, "__init__", lambda *args, **own: (built.append(args), init(*args, **own))[1])
    model, feeds = computed(problem), {"X": problem.feeds["X"]}
    runs = ReferenceEvaluator(model, new_ops=ops).run if by == "ops" else None
    prepared = Backend.prepare(model)
    for _ in range(3):
        got = runs(None, feeds) if runs else prepared.run(feeds)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)
    assert (len(packed), len(built)) == (1, 1)


def test_computed_weights_are_folded_when_a_model_is_prepared():
    problem, calls = lstm(), []

    class Cast(onnx.reference.op_run.OpRun):
        op_domain = ""

        def _run(self, x, **_):
            calls.append(x)
            return (x.astype(np.float32),)

    model = computed(problem)
    ReferenceEvaluator(model, new_ops=[*ops, Cast]).run(None, {"X": problem.feeds["X"]})
    assert len(calls) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rnnfast.backends.onnx.evaluation.ops", [*ops, Cast])
        prepared = Backend.prepare(model)
        want = run(model, {"X": problem.feeds["X"]})
        for a, b in zip(prepared.run([problem.feeds["X"]]), want, strict=True):
            np.testing.assert_array_equal(a, b)
    assert len(calls) == 1


def test_weights_with_new_values_in_the_same_array_are_seen():
    """A cached layer compares the content of arrays that can be written to."""
    problem = lstm()
    model = model_of(problem)
    evaluator = ReferenceEvaluator(model, new_ops=ops)
    for factor in (1, 1, 0.5, -0.0):
        problem.feeds["R"] *= np.float32(factor)
        assert_close(evaluator.run(None, problem.feeds), by_numpy(problem), TOLERANCE[np.float32])


def test_layers_of_computed_weights():
    problem = lstm()
    want = layer_from_onnx(model_of(problem, constants=WEIGHTS))
    assert_same_parameters(layer_from_onnx(computed(problem)), want)


def test_random_weights_are_not_constants():
    problem = lstm()
    model = model_of(problem, constants=("R", "B", "P"))
    del model.graph.input[1]
    node = helper.make_node("RandomNormal", [], ["W"], shape=problem.feeds["W"].shape, scale=0.1)
    model.graph.node.insert(0, node)
    with pytest.raises(ValueError, match="W of node 'node' is 'W', an input or a computed value"):
        layer_from_onnx(model)
    prepared = Backend.prepare(model)
    first, second = (prepared.run([problem.feeds["X"]])[0] for _ in range(2))
    assert np.abs(first - second).max() > 1e-4


def test_nodes_that_fail_are_not_constants():
    """A node of constants that cannot be computed is reported by the run that reaches it."""
    problem = lstm()
    model = model_of(problem, constants=WEIGHTS)
    model.graph.node[0].input[3] = "B_of_4"
    model.graph.initializer.append(numpy_helper.from_array(np.array([4, -1]), "shape"))
    model.graph.node.insert(0, helper.make_node("Reshape", ["B", "shape"], ["B_of_4"]))
    with pytest.raises(ValueError, match=r"B of LSTM has shape .4, 24."):
        layer_from_onnx(model)
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.array([5, -1]), "shape"))
    with pytest.raises(ValueError, match="B of node 'node' is 'B_of_4', an input or a computed value"):
        layer_from_onnx(model)
    with pytest.raises(Exception, match="reshape"):
        Backend.run_model(model, [problem.feeds["X"]])


def test_initializers_that_are_inputs_can_be_replaced_in_a_run():
    problem = lstm()
    model = model_of(problem, constants=WEIGHTS)
    W = problem.feeds["W"]
    model.graph.input.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, W.shape))
    model.graph.node[0].input[1] = "W_same"
    model.graph.node.insert(0, helper.make_node("Identity", ["W"], ["W_same"]))
    assert_same_parameters(layer_from_onnx(model), layer_from_onnx(model_of(problem, constants=WEIGHTS)))
    prepared = Backend.prepare(model)
    X = problem.feeds["X"]
    assert_close(prepared.run({"X": X}), by_numpy(problem), TOLERANCE[np.float32])
    problem.feeds["W"] = W * 2
    assert_close(prepared.run({"X": X, "W": W * 2}), by_numpy(problem), TOLERANCE[np.float32])


# ---- nodes in bodies and functions


@pytest.mark.parametrize("where", PLACES_OF_NODES)
def test_nodes_in_bodies(where, monkeypatch):
    problem, packed = lstm(), []
    model, feeds = nested(where, problem)
    want = by_numpy(problem)[:1]
    if where == "Scan":
        try:
            ReferenceEvaluator(model, new_ops=ops).run(None, feeds)
        except RuntimeError as error:
            pytest.skip(f"the evaluator of onnx {onnx.__version__} does not show outer values to a Scan: {error}")
    assert_same_parameters(layer_from_onnx(model), layer_from_onnx(model_of(problem, constants=WEIGHTS)))
    pack = functional.pack
    monkeypatch.setattr(functional, "pack", lambda *args: (packed.append(args), pack(*args)))
    prepared = Backend.prepare(model)
    for _ in range(2):
        (Y,) = prepared.run(feeds)
        assert_close([Y.reshape(want[0].shape)], want, TOLERANCE[np.float32])
    assert len(packed) == 1


def test_nodes_in_bodies_are_listed():
    problem = lstm()
    model, _ = nested("If", problem)
    branch = next(one.g for one in model.graph.node[0].attribute if one.name == "else_branch")
    branch.node[0].CopyFrom(next(one.g for one in model.graph.node[0].attribute if one.name == "then_branch").node[0])
    branch.node[0].name = "second"
    with pytest.raises(ValueError, match=r"the model has 'second' .LSTM., 'node' .LSTM."):
        layer_from_onnx(model)
    assert_same_parameters(layer_from_onnx(model, "second"), layer_from_onnx(model, "node"))


# ---- models as bytes and files


@pytest.mark.parametrize("form", ["bytes", "str", "path"])
def test_layers_of_files(form, tmp_path):
    layer = rnnfast.LSTM(4, 6, rng=0)
    path = tmp_path / "model.onnx"
    onnx.save(to_onnx(layer), path)
    model = {"bytes": path.read_bytes(), "str": str(path), "path": path}[form]
    assert_same_parameters(layer_from_onnx(model), layer)


@pytest.mark.parametrize("read", [layer_from_onnx, Backend.prepare])
@pytest.mark.parametrize("content", NOT_MODELS.values(), ids=list(NOT_MODELS))
def test_files_that_hold_no_model(read, content, tmp_path):
    """They raise ValueError, whatever error onnx raises for them."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    for model in (content, path):
        with pytest.raises(ValueError, match="model is not an ONNX model: "):
            read(model)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing.onnx")
    with pytest.raises(TypeError, match=r"model must be an onnx.ModelProto, bytes or a path, got int"):
        read(1)


def test_weights_in_other_files(tmp_path):
    layer, path = rnnfast.LSTM(4, 6, rng=0), tmp_path / "model.onnx"
    onnx.save(to_onnx(layer), path, save_as_external_data=True, location="weights", size_threshold=0)
    assert_same_parameters(layer_from_onnx(path), layer)
    (tmp_path / "weights").unlink()
    with pytest.raises(Exception, match="weights") as error:
        layer_from_onnx(path)
    assert "not an ONNX model" not in str(error.value)


# ---- quantized weights


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_quantized_weights(direction, per_channel, kind):
    """Results are those of the dequantized weights, and near those of ONNX Runtime, which quantizes X and h too."""
    problem = lstm(direction=direction)
    for name in WEIGHTS:
        problem.feeds[name] = problem.feeds[name][: 1 + (direction == "bidirectional")]
    model, plain = quantized(problem, per_channel, kind)
    feeds = {"X": problem.feeds["X"]}
    want = run(model_of(plain, constants=WEIGHTS), feeds)
    assert np.abs(want[0] - run(model_of(problem, constants=WEIGHTS), feeds)[0]).max() > 1e-5
    for got in (run(model, feeds), Backend.run_model(model, feeds)):
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)
    assert_same_parameters(layer_from_onnx(model), layer_from_onnx(model_of(plain, constants=WEIGHTS)))
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: no comparison with it")
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for a, b in zip(session.run(None, feeds), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("W", np.zeros((2, 4, 24), np.int32), "W of DynamicQuantizeLSTM must hold int8 or uint8 .* got int32"),
        ("R", np.zeros((6, 24), np.int8), "R of DynamicQuantizeLSTM must .* three axes, got int8 of shape .6, 24."),
        ("W_scale", np.ones(3, np.float32), r"W_scale and W_zero_point .* shape \(2,\) or \(2, 24\), got \(3,\)"),
        ("R_zero_point", np.zeros((2, 6), np.int8), r"R_scale and R_zero_point .* got \(2,\) and \(2, 6\)"),
    ],
)
def test_quantized_weights_that_do_not_fit(name, value, text):
    model, _ = quantized(lstm(), False, np.int8)
    place = [tensor.name for tensor in model.graph.initializer].index(name)
    model.graph.initializer[place].CopyFrom(numpy_helper.from_array(value, name))
    with pytest.raises(ValueError, match=text):
        layer_from_onnx(model)


def test_quantized_nodes_need_scales():
    model, _ = quantized(lstm(), False, np.int8)
    model.graph.node[0].input[8] = ""
    with pytest.raises(ValueError, match="DynamicQuantizeLSTM must have the inputs W and W_scale"):
        layer_from_onnx(model)
