"""The ONNX backend against the tests of the standard, ONNX Runtime, and the equations of the standard in NumPy."""

import re
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from support.compare import members

import rnnfast
from rnnfast import functional

onnx = pytest.importorskip("onnx", reason="onnx is not installed: nothing of rnnfast.backends.onnx is tested")

from onnx import helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from support.onnx_nodes import (  # noqa: E402
    FUNCTIONS,
    GATES,
    INPUTS,
    NEWEST,
    TOLERANCE,
    WEIGHTS,
    assert_close,
    by_numpy,
    drawn,
    lstm,
    model_of,
    run,
)

from rnnfast.backends.onnx import Backend, layer_from_onnx, ops, to_onnx  # noqa: E402

# ---- the standard's own tests


@pytest.fixture(scope="module")
def node_tests():
    from onnx.backend.test import BackendTest

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the cases of other operators, which it computes
        return BackendTest(Backend, __name__).test_cases["OnnxBackendNodeModelTest"]


STANDARD = [
    f"test_{prefix}_{what}_cpu"
    for prefix, third in (("simple_rnn", None), ("lstm", "with_peepholes"), ("gru", "seq_length"))
    for what in ("defaults", "with_initial_bias", third, "batchwise", "reverse", "bidirectional")
    if what
] + ["test_rnn_seq_length_cpu"]


@pytest.mark.parametrize("name", STANDARD)
def test_standard(node_tests, name):
    if not hasattr(node_tests, name):
        pytest.skip(f"onnx {onnx.__version__} has no {name}")
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rnnfast.layers.Recurrent, "__call__", counted(rnnfast.layers.Recurrent.__call__, calls))
        getattr(node_tests(name), name)()
    assert len(calls) == 1


def test_standard_has_no_other_tests(node_tests):
    """STANDARD lists every test of the standard for recurrent nodes on the CPU."""
    there = {name for name in dir(node_tests) if re.match(r"test_(simple_)?(rnn|lstm|gru)_.*_cpu$", name)}
    assert len(there & set(STANDARD)) >= 12
    assert not there - set(STANDARD)


def counted(function, calls):
    def wrapper(*args, **kwargs):
        calls.append(args)
        return function(*args, **kwargs)

    return wrapper


# ---- against ONNX Runtime, and against the equations

BATCH = 25


@pytest.mark.parametrize("first", range(0, 600, BATCH))
def test_onnx_runtime(first):
    """Where ONNX Runtime deviates from the standard, rnnfast is compared with the equations only.

    - It does not clip the input of h, the LSTM's third function (onnxruntime#27224); it is compared with the equations
      as it has them.
    - Alpha and beta that are not given are 0 for Affine, ThresholdedRelu and ScaledTanh, where the standard has those
      of the operators of these names: 1 and 0, 1, 1 and 1.
    """
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: no comparison with it")
    ort.set_default_logger_severity(4)
    for seed in range(first, first + BATCH):
        problem = drawn(seed)
        names = problem.attributes.get("activations", ())
        model = model_of(problem)
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        theirs, ours = session.run(None, problem.feeds), run(model, problem.feeds)
        if "activation_alpha" not in problem.attributes and {"Affine", "ThresholdedRelu", "ScaledTanh"} & set(names):
            assert_close(ours, by_numpy(problem), TOLERANCE[np.float32])
        elif problem.op_type == "LSTM" and "clip" in problem.attributes:
            assert_close(ours, by_numpy(problem), TOLERANCE[np.float32])
            assert_close(theirs, by_numpy(problem, clip_h=False), TOLERANCE[np.float32])
        else:
            assert_close(ours, theirs, TOLERANCE[np.float32])


@pytest.mark.parametrize("opset", [7, 14, 22, NEWEST])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("first", [1000, 2000, 3000])
def test_equations(first, dtype, opset):
    """The random nodes include both layouts, every function with and without alpha and beta, and float64."""
    if opset > NEWEST:
        pytest.skip(f"onnx {onnx.__version__} has no opset {opset}")
    for seed in range(first, first + BATCH):
        problem = drawn(seed, dtype, layouts=1 if opset < 14 else 2)
        got = run(model_of(problem, opset), problem.feeds)
        assert all(a.dtype == dtype for a in got)
        assert_close(got, by_numpy(problem), TOLERANCE[dtype])


def test_draws_are_of_all_kinds():
    """The random problems above cover every input, attribute and activation."""
    problems = [drawn(seed, layouts=2) for seed in range(300)]
    there = {key for problem in problems for key in (*problem.feeds, *problem.attributes, problem.op_type)}
    attributes = {name for op_type in GATES for name in onnx.defs.get_schema(op_type, NEWEST).attributes}
    assert there == {*INPUTS, *GATES, *attributes}
    assert {name for problem in problems for name in problem.attributes.get("activations", ())} == set(FUNCTIONS)
    assert any(
        (problem.feeds.get("sequence_lens", np.ones(1)) == 0).any()
        for problem in problems
        if "initial_h" in problem.feeds
    )


def test_alpha_and_beta_are_taken_in_order():
    """alpha and beta go to the functions that take them; the remaining functions use their defaults."""
    problem = lstm(
        activations=["Sigmoid", "LeakyRelu", "Tanh", "HardSigmoid", "ScaledTanh", "Elu"],
        activation_alpha=[0.3, 0.4, 0.5],
        activation_beta=[0.6],
    )
    layer = layer_from_onnx(model_of(problem, constants=WEIGHTS))
    rounded = [float(np.float32(n)) for n in (0.3, 0.4, 0.6, 0.5)]
    assert layer.activations == (
        *("sigmoid", ("leaky_relu", rounded[0]), "tanh"),
        *(("hard_sigmoid", rounded[1], rounded[2]), ("scaled_tanh", rounded[3], 1.0), "elu"),
    )
    assert_close(run(model_of(problem), problem.feeds), by_numpy(problem), TOLERANCE[np.float32])


@pytest.mark.parametrize(
    "names", [["sigmoid", "tanh", "tanh"], ["SIGMOID", "Tanh", "tanh"], ["Sigmoid", "Tanh", "Tanh"]]
)
def test_names_of_functions_in_any_case(names):
    problem = lstm(activations=names * 2)
    layer = layer_from_onnx(model_of(problem, constants=WEIGHTS))
    assert layer.activations is None
    assert layer_from_onnx(model_of(lstm(), constants=WEIGHTS)).engine.options == layer.engine.options


# ---- ways to run a model


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("by", ["ops", "Backend"])
def test_constant_weights_are_packed_once(by, raw, monkeypatch):
    problem = lstm()
    model, calls = model_of(problem, constants=WEIGHTS, raw=raw), []
    feeds = {"X": problem.feeds["X"]}
    want = run(model_of(problem), problem.feeds)
    monkeypatch.setattr(functional, "pack", counted(functional.pack, calls))
    if by == "ops":
        evaluator = ReferenceEvaluator(model, new_ops=ops)
        results = [evaluator.run(None, feeds) for _ in range(4)]
    else:
        prepared = Backend.prepare(model)
        results = [prepared.run([feeds["X"]]) for _ in range(4)]
    assert len(calls) == 1
    for result in results:
        for a, b in zip(result, want, strict=True):
            np.testing.assert_array_equal(a, b)


def test_weights_that_change_are_seen():
    problem = lstm()
    evaluator = ReferenceEvaluator(model_of(problem), new_ops=ops)
    first = evaluator.run(None, problem.feeds)[0]
    problem.feeds["W"] *= 2
    second = evaluator.run(None, problem.feeds)
    assert np.abs(first - second[0]).max() > 0.01
    assert_close(second, by_numpy(problem), TOLERANCE[np.float32])
    frozen = problem.feeds["R"][...]
    frozen.flags.writeable = False  # a view: what it shows can change
    evaluator.run(None, {**problem.feeds, "R": frozen})
    problem.feeds["R"] *= 0.5
    assert_close(evaluator.run(None, {**problem.feeds, "R": frozen}), by_numpy(problem), TOLERANCE[np.float32])


@pytest.mark.parametrize("outputs", [["Y"], ["", "Y_h"], ["", "", "Y_c"], ["Y", "", "Y_c"]])
def test_missing_outputs(outputs):
    """The evaluator passes a value named "" to missing inputs, so no output may have that name."""
    problem = lstm()
    want = dict(zip(("Y", "Y_h", "Y_c"), run(model_of(problem), problem.feeds), strict=True))
    model = model_of(problem, outputs=outputs)
    model.graph.node.append(helper.make_node("Clip", ["B", "", "most"], ["Z"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "most"))
    model.graph.output.append(helper.make_tensor_value_info("Z", onnx.TensorProto.FLOAT, [None] * 2))
    *got, Z = Backend.prepare(model).run(problem.feeds)
    for name, array in zip([name for name in outputs if name], got, strict=True):
        np.testing.assert_array_equal(array, want[name])
    np.testing.assert_array_equal(Z, np.minimum(problem.feeds["B"], np.float32(0.1)))


def test_missing_inputs_behind_missing_outputs_of_others():
    problem = lstm()
    del problem.feeds["B"], problem.feeds["P"]
    model = model_of(problem)
    model.graph.node[0].input.extend(["", "", "", ""])
    model.graph.node.insert(0, helper.make_node("TopK", ["W", "one"], ["", "places"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    assert_close(run(model, problem.feeds), by_numpy(problem), TOLERANCE[np.float32])


def test_results_belong_to_the_caller():
    problem = lstm()
    prepared = Backend.prepare(model_of(problem, constants=WEIGHTS))
    first = prepared.run([problem.feeds["X"]])
    kept = [array.copy() for array in first]
    for array in first:
        array += 1
    for array, want in zip(prepared.run([problem.feeds["X"]]), kept, strict=True):
        np.testing.assert_array_equal(array, want)


def test_bodies_of_loops_and_functions(monkeypatch):
    """A node in an If inside a function of the model, whose weights come from the caller of the function."""
    problem, calls = lstm(), []
    node = helper.make_node("LSTM", ["X", "W", "R"], ["y"], **problem.attributes)
    value = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * 4)
    branches = {name: helper.make_graph([node], name, [], [value]) for name in ("then_branch", "else_branch")}
    domain = [helper.make_opsetid("", 14), helper.make_opsetid("own", 1)]
    function = helper.make_function(
        "own",
        "Maybe",
        ["condition", "X", "W", "R"],
        ["Y"],
        [helper.make_node("If", ["condition"], ["Y"], **branches)],
        domain,
    )
    inputs = [helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, ())]
    inputs += [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, problem.feeds[name].shape) for name in "XWR"]
    output = helper.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, [None] * 4)
    call = helper.make_node("Maybe", ["condition", "X", "W", "R"], ["Y"], domain="own")
    graph = helper.make_graph([call], "graph", inputs, [output])
    model = helper.make_model(graph, opset_imports=domain, functions=[function], ir_version=8)
    monkeypatch.setattr(rnnfast.LSTM, "__call__", counted(rnnfast.LSTM.__call__, calls))
    (Y,) = Backend.prepare(model).run([np.array(True), *(problem.feeds[name] for name in "XWR")])
    assert len(calls) == 1
    problem.feeds = {name: problem.feeds[name] for name in "XWR"}
    assert_close([Y], by_numpy(problem)[:1], TOLERANCE[np.float32])


def test_run_node_and_run_model():
    problem = lstm(layout=1)
    problem.feeds["X"] = problem.feeds["X"].transpose(1, 0, 2)
    want = by_numpy(problem)
    model = model_of(problem)
    arrays = list(problem.feeds.values())
    for got in (
        Backend.run_model(model, arrays),
        Backend.run_model(model, dict(zip(problem.feeds, arrays, strict=True))),
        Backend.run_node(model.graph.node[0], arrays),
        Backend.run_node(model.graph.node[0], arrays, opset_version=14),
    ):
        assert_close(got, want, TOLERANCE[np.float32])
    assert Backend.supports_device("CPU")
    assert not Backend.supports_device("CUDA")
    (y,) = Backend.run_node(helper.make_node("Add", ["a", "a"], ["b"]), [np.ones(3), np.ones(3)])
    assert y.tolist() == [2, 2, 2]


# ---- layers

LAYERS = {
    "rnn": (rnnfast.RNN, {}),
    "relu": (rnnfast.RNN, {"nonlinearity": "relu", "clip": 2.0}),
    "rnn activations": (rnnfast.RNN, {"activations": [("affine", 0.5, 0.25)]}),
    "lstm": (rnnfast.LSTM, {}),
    "lstm options": (
        rnnfast.LSTM,
        {"peepholes": True, "coupled": True, "clip": 1.5, "activations": ["sigmoid", ("leaky_relu", 0.1), "softsign"]},
    ),
    "gru": (rnnfast.GRU, {}),
    "gru before": (rnnfast.GRU, {"reset_after": False, "activations": ["hard_sigmoid", ("elu", 1.5)]}),
}
STACKS = {
    "one": {},
    "reverse": {"reverse": True, "bias": False},
    "both": {"bidirectional": True, "batch_first": True},
    "deep": {"num_layers": 3},
    "deep both": {"num_layers": 2, "bidirectional": True, "bias": False},
}


@pytest.mark.parametrize("opset", [7, 14, NEWEST])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("name", LAYERS)
def test_models_of_layers(name, stack, opset, dtype):
    """Exported models agree with the layer and can be imported again."""
    kind, own = LAYERS[name]
    if dtype == np.float64 and name == "lstm options":  # 0.1 is no number of float32
        own = {**own, "activations": ["sigmoid", ("leaky_relu", 0.125), "softsign"]}
    layer = kind(4, 6, **own, **STACKS[stack], dtype=dtype, rng=0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 5, 4) if layer.batch_first else (5, 3, 4)).astype(dtype)
    model = to_onnx(layer, opset)
    onnx.checker.check_model(model, full_check=True)
    y, state = layer(x)
    for got, want in zip(Backend.run_model(model, [x]), (y, *members(state)), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[dtype] / 10)

    state = tuple(rng.standard_normal(member.shape).astype(dtype) for member in members(state))
    lengths = np.array([5, 1, 3], np.int32)
    model = to_onnx(layer, opset, state=True, lengths=True)
    onnx.checker.check_model(model, full_check=True)
    y, end = layer(x, state if len(state) == 2 else state[0], lengths=lengths)
    for got, want in zip(Backend.run_model(model, [x, lengths, *state]), (y, *members(end)), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[dtype] / 10)

    twin = layer_from_onnx(model, [f"{kind.__name__}_l{k}" for k in range(layer.num_layers)])
    assert type(twin) is type(layer)
    assert twin.dtype == layer.dtype
    assert twin.parameters.keys() == layer.parameters.keys()
    for key, array in layer.parameters.items():
        np.testing.assert_array_equal(twin.parameters[key], array, err_msg=key)
    twin_x = x.transpose(1, 0, 2) if layer.batch_first else x
    got = twin(twin_x)[0]
    np.testing.assert_array_equal(got.transpose(1, 0, 2) if layer.batch_first else got, layer(x)[0])
    again, tape = twin.forward(twin_x)[::2]
    assert np.abs(twin.backward(tape, np.ones_like(again)).x).max() > 0
    assert model.SerializeToString() == to_onnx(layer, opset, state=True, lengths=True).SerializeToString()


@pytest.mark.parametrize("stack", ["one", "both", "deep both"])
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "lstm options"])  # the clip of h: see above
def test_models_of_layers_run_by_onnx_runtime(name, stack):
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: no comparison with it")
    kind, own = LAYERS[name]
    layer = kind(4, 6, **own, **STACKS[stack], rng=0)
    x = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32)
    session = ort.InferenceSession(to_onnx(layer).SerializeToString(), providers=["CPUExecutionProvider"])
    y, state = layer(x)
    for got, want in zip(session.run(None, {"x": x}), (y, *members(state)), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


def test_layers_of_nodes():
    """A layer takes its options and weights from one node, found by any of its names."""
    for seed in range(60):
        problem = drawn(seed, layouts=2)
        constants = [name for name in WEIGHTS if name in problem.feeds]
        layer = layer_from_onnx(model_of(problem, constants=constants), ("node", "Y", None)[seed % 3])
        assert type(layer).__name__ == problem.op_type
        feeds, batch_first = problem.feeds, problem.attributes.get("layout", 0)
        states = [feeds.get(f"initial_{member}") for member in ("hc" if problem.op_type == "LSTM" else "h")]
        states = [None if s is None else s.transpose(1, 0, 2) if batch_first else s for s in states]
        lengths = feeds.get("sequence_lens")
        lengths = None if lengths is None else np.maximum(lengths, 1)
        y, state = layer(feeds["X"], states if len(states) == 2 else states[0], lengths=lengths)
        if lengths is not None:
            problem.feeds = {**feeds, "sequence_lens": lengths}
        Y, *ends = by_numpy(problem)
        ends = [end.transpose(1, 0, 2) for end in ends] if batch_first else ends
        want = Y if batch_first else Y.transpose(0, 2, 1, 3)
        assert_close((y, *members(state)), (want.reshape(y.shape), *ends), TOLERANCE[np.float32])


def test_weights_from_constants():
    """Weights may come through Constant and Identity nodes."""
    problem = lstm()
    model = model_of(problem, constants=["R", "B", "P"])
    want = layer_from_onnx(model_of(problem, constants=WEIGHTS)).parameters
    model.graph.node[0].input[1] = "W_same"
    model.graph.node.insert(0, helper.make_node("Identity", ["W"], ["W_same"]))
    model.graph.node.insert(
        0, helper.make_node("Constant", [], ["W"], value=numpy_helper.from_array(problem.feeds["W"]))
    )
    got = layer_from_onnx(model, "node").parameters
    assert all((got[key] == want[key]).all() for key in want)


def test_repr_of_converted_layers():
    for layer in (
        rnnfast.LSTM(4, 6, clip=1.5, peepholes=True),
        rnnfast.GRU(4, 6, num_layers=2, bidirectional=True, activations=["softsign", "tanh"]),
        rnnfast.RNN(4, 6, nonlinearity="relu", reverse=True),
    ):
        nodes = [f"{type(layer).__name__}_l{k}" for k in range(layer.num_layers)]
        assert repr(layer_from_onnx(to_onnx(layer), nodes)) == repr(layer)


# ---- layers that stay with the host


def changed(**arrays):
    problem = lstm()
    problem.feeds.update(arrays)
    return model_of(problem, constants=WEIGHTS)


def damaged(model):
    """A model whose first initializer has an element type that does not exist."""
    model.graph.initializer[0].data_type = 108
    return model


@pytest.mark.parametrize(
    ("model", "node", "error", "text"),
    [
        (object(), None, TypeError, "model must be an onnx.ModelProto, bytes or a path, got object"),
        (to_onnx(rnnfast.RNN(2, 3, num_layers=2)), None, ValueError, "node must name a .* 'RNN_l0' .RNN., 'RNN_l1'"),
        (changed(), "other", ValueError, "node must be the name of .* got 'other': the model has 'node' .LSTM."),
        (changed(), [], ValueError, "node must name at least one node"),
        (model_of(lstm()), "node", ValueError, "W of node 'node' is 'W', an input or a computed value"),
        (model_of(lstm(), 1, WEIGHTS), "node", NotImplementedError, "LSTM of opset 1 .* onnx.version_converter"),
        (
            changed(W=np.zeros((2, 24, 4), np.float16)),
            "node",
            NotImplementedError,
            "LSTM of float16 is not supported: cast inputs",
        ),
        (
            changed(R=np.zeros((2, 24, 5), np.float32)),
            "node",
            ValueError,
            "R of LSTM has shape .2, 24, 5., .* need .2, 24, 6.",
        ),
        (
            changed(B=np.zeros((2, 24), np.float32)),
            "node",
            ValueError,
            "B of LSTM has shape .2, 24., .* need .2, 48.",
        ),
        (model_of(lstm(direction="back"), 14, WEIGHTS), "node", ValueError, "direction of LSTM must be one of forward"),
        (model_of(lstm(activations=["Tanh"]), 14, WEIGHTS), "node", ValueError, "activations of LSTM must be 6 names"),
        (model_of(lstm(activations=["Mish"] * 6), 14, WEIGHTS), "node", ValueError, "of the ONNX standard, got 'Mish'"),
        (model_of(lstm(clip=-1.0), 14, WEIGHTS), "node", ValueError, "clip must be None, or a finite"),
        (
            model_of(lstm(activations=[1, 2]), 14, WEIGHTS),
            "node",
            ValueError,
            "node 'node' does not conform to the ONNX",
        ),
        (model_of(lstm(hidden_size=2.5), 14, WEIGHTS), "node", ValueError, "node 'node' does not conform to the ONNX"),
        (model_of(lstm(), 0, WEIGHTS), "node", ValueError, "LSTM does not exist in opset 0: the model must import"),
        (changed(W=np.array(1, np.float32)), "node", ValueError, "W of LSTM must have three axes, got shape"),
        (damaged(model_of(lstm(), 14, WEIGHTS)), "node", ValueError, "the constant 'W' of the model cannot be read"),
    ],
)
def test_layer_from_onnx_declines(model, node, error, text):
    with pytest.raises(error, match=text):
        layer_from_onnx(model, node)


def test_layer_from_onnx_rejects_unsupported_nodes():
    problem = lstm()
    problem.feeds["initial_h"] = np.zeros((2, 3, 6), np.float32)
    layer_from_onnx(model_of(problem, constants=(*WEIGHTS, "initial_h")))
    problem.feeds["initial_h"][0, 0, 0] = 1
    with pytest.raises(ValueError, match="initial_h of node 'node' is a constant of the model, but a layer does not"):
        layer_from_onnx(model_of(problem, constants=(*WEIGHTS, "initial_h")))
    layer_from_onnx(model_of(problem, constants=WEIGHTS))
    problem.feeds["sequence_lens"] = np.zeros(3, np.int32)
    with pytest.raises(ValueError, match="sequence_lens of node 'node' is a constant of the model"):
        layer_from_onnx(model_of(problem, constants=(*WEIGHTS, "sequence_lens")))
    two = to_onnx(rnnfast.GRU(4, 4, num_layers=2))
    next(a for a in two.graph.node[-4].attribute if a.name == "linear_before_reset").i = 0
    with pytest.raises(ValueError, match="cannot form one layer"):
        layer_from_onnx(two, ["GRU_l0", "GRU_l1"])


@pytest.mark.parametrize(
    ("layer", "opset", "error", "text"),
    [
        (rnnfast.Linear(2, 3), 14, TypeError, "layer must be an RNN, LSTM or GRU, got Linear"),
        (rnnfast.LSTM(2, 3, proj_size=1), 14, ValueError, "layer has proj_size=1, which ONNX does not support"),
        (rnnfast.RNN(2, 3, leak=0.5), 14, ValueError, "layer has leak=0.5, which ONNX does not support"),
        (rnnfast.GRU(2, 3), 6, ValueError, f"opset must be from 7 to {NEWEST}"),
        (rnnfast.GRU(2, 3), NEWEST + 1, ValueError, f"opset must be from 7 to {NEWEST}"),
        (
            rnnfast.GRU(2, 3, clip=0.1, dtype=np.float64),
            14,
            ValueError,
            "clip of a float64 layer is 0.1, .* with 0.10000000149",
        ),
        (
            rnnfast.RNN(2, 3, activations=[("elu", 0.1)], dtype=np.float64),
            14,
            ValueError,
            "activations of a float64 layer is 0.1, but ONNX stores it in float32",
        ),
    ],
)
def test_to_onnx_declines(layer, opset, error, text):
    with pytest.raises(error, match=text):
        to_onnx(layer, opset)


def test_running_declines():
    problem = lstm()
    with pytest.raises(NotImplementedError, match="LSTM of opset 6"):
        ReferenceEvaluator(model_of(problem, 6), new_ops=ops)
    half = {name: array.astype(np.float16) for name, array in problem.feeds.items()}
    with pytest.raises(NotImplementedError, match="LSTM of float16"):
        run(model_of(SimpleNamespace(**{**vars(problem), "feeds": half})), half)
    model = model_of(problem)
    with pytest.raises(ValueError, match=r"inputs must be 5 arrays, .'X', 'W', .* got 1"):
        Backend.run_model(model, [problem.feeds["X"]])
    with pytest.raises(ValueError, match="device must be 'CPU', got 'CUDA:1'"):
        Backend.prepare(model, "CUDA:1")
    with pytest.raises(onnx.checker.ValidationError):
        Backend.prepare(onnx.ModelProto())
    with pytest.raises(ValueError, match="X of LSTM must have three axes"):
        run(model, {**problem.feeds, "X": problem.feeds["X"][0]})
    with pytest.raises(ValueError, match="x has no time steps"):
        run(model, {**problem.feeds, "X": problem.feeds["X"][:0]})
    model.graph.node[0].input[2] = ""
    with pytest.raises(ValueError, match="LSTM has no input R: both W and R are required"):
        run(model, problem.feeds)


# ---- time


def test_faster_than_the_reference_evaluator(threads):
    """The bound is on CPU time and much weaker than what an idle machine reaches, because this one may be busy."""
    threads(1)
    model = to_onnx(rnnfast.GRU(32, 64, rng=0))
    feeds = {"x": np.ones((100, 8, 32), np.float32)}
    evaluators = [ReferenceEvaluator(model), ReferenceEvaluator(model, new_ops=ops)]
    times = [[], []]
    for _ in range(5):
        for evaluator, own in zip(evaluators, times, strict=True):
            start = time.process_time()
            evaluator.run(None, feeds)
            own.append(time.process_time() - start)
    assert min(times[0]) > 4 * min(times[1])
