"""Sessions of ONNX Runtime whose recurrent nodes run on rnnfast."""

import contextlib
import gc
import weakref

import numpy as np
import pytest
from support.concurrency import in_threads
from support.host_calls import INVALID, RECORD, changed
from support.processes import python

import rnnfast

onnx = pytest.importorskip("onnx", reason="onnx is not installed: nothing of rnnfast.backends.onnx is tested")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: sessions are not tested")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from support.onnx_nodes import (  # noqa: E402
    NOT_MODELS,
    PLACES_OF_NODES,
    TOLERANCE,
    WEIGHTS,
    assert_close,
    by_numpy,
    computed,
    drawn,
    lstm,
    model_of,
    nested,
    quantized,
    run,
)

from rnnfast import _core  # noqa: E402
from rnnfast.backends.onnx import session, to_onnx  # noqa: E402
from rnnfast.backends.onnx.sessions import replace  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    ort.set_default_logger_severity(4)  # errors that these tests expect
    yield
    ort.set_default_logger_severity(2)


def assert_same(got, want):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def weights_of(problem):
    return [name for name in WEIGHTS if name in problem.feeds]


def theirs(model):
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("first", range(5000, 5100, 25))
def test_random_nodes(first, dtype):
    """Bits are those of rnnfast's layers, for both layouts and any inputs, attributes and lengths."""
    for seed in range(first, first + 25):
        problem = drawn(seed, dtype, layouts=2)
        weights = weights_of(problem)
        model = model_of(problem, constants=weights)
        feeds = {name: array for name, array in problem.feeds.items() if name not in weights}
        own = session(model)
        assert (own.nodes, own.left) == (["node"], {})
        got = own.run(None, feeds)
        assert all(a.dtype == dtype for a in got)
        assert_same(got, run(model, feeds))
        assert_close(got, by_numpy(problem), TOLERANCE[dtype])


@pytest.mark.parametrize("outputs", [["Y"], ["", "Y_h"], ["", "", "Y_c"], ["Y", "", "Y_c"]])
@pytest.mark.parametrize("layout", [0, 1])
def test_missing_outputs(outputs, layout):
    problem = lstm(layout=layout)
    model = model_of(problem, constants=WEIGHTS, outputs=outputs)
    names = [name for name in outputs if name]
    feeds = {"X": problem.feeds["X"]}
    want = dict(zip(("Y", "Y_h", "Y_c"), run(model_of(problem, constants=WEIGHTS), feeds), strict=True))
    own = session(model)
    assert_same(own.run(None, feeds), [want[name] for name in names])
    assert [value.name for value in own.get_outputs()] == names
    assert_same(own.run(names[-1:], feeds), [want[name] for name in names[-1:]])


def test_whole_models():
    """The other nodes run in ONNX Runtime, and shapes after a recurrent node are known."""
    for layer in (
        rnnfast.LSTM(4, 6, num_layers=2, bidirectional=True, rng=0),
        rnnfast.GRU(4, 6, num_layers=3, batch_first=True, reset_after=False, rng=0),
        rnnfast.RNN(4, 6, nonlinearity="relu", bias=False, rng=0),
    ):
        model = to_onnx(layer, state=True, lengths=True)
        own = session(model)
        assert len(own.nodes) == layer.num_layers
        x, lengths = np.random.default_rng(0).standard_normal((5, 5, 4)).astype(np.float32), np.array([5, 3, 2, 5, 1])
        state = layer(x)[1]
        states = dict(zip(["h_0", "c_0"], state if isinstance(state, tuple) else [state], strict=False))
        feeds = {"x": x, "lengths": lengths.astype(np.int32), **states}
        for got, want in zip(own.run(None, feeds), theirs(model).run(None, feeds), strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)
        names = ["x", "lengths", *states]
        assert [value.name for value in own.get_inputs()] == names
        assert [value.shape for value in own.get_outputs()] == [value.shape for value in theirs(model).get_outputs()]


@pytest.mark.parametrize("dims", [(5, 3, 4), ("t", 3, 4), ("t", "n", 4), (None, None, None)])
@pytest.mark.parametrize("declared", [None, [None] * 4, [None, 2, "rows", "units"], [5, 2, 3, 6]])
def test_shapes_of_results(dims, declared):
    """Shapes that a model does not declare are those that ONNX Runtime infers."""
    model = model_of(lstm(), constants=WEIGHTS)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("X", TensorProto.FLOAT, dims))
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    if declared:
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("Y", TensorProto.FLOAT, declared))
    got, want = ([value.shape for value in one.get_outputs()] for one in (session(model), theirs(model)))
    assert [len(shape) for shape in got] == [4, 3, 3]
    assert got == want


def test_shapes_of_stacked_nodes():
    """They depend on the shapes of other nodes' results."""
    model = to_onnx(rnnfast.LSTM(4, 6, num_layers=2, bidirectional=True, rng=0))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, (5, 3, 4)))
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    got, want = ([value.shape for value in one.get_outputs()] for one in (session(model), theirs(model)))
    assert got == want
    assert got[0] == [5, 3, 12]


@pytest.mark.parametrize("declared", [None, [None] * 4])
def test_loops_without_iterations(declared):
    """The shape of a scan output is that of the results of a node, even if the node never runs."""
    problem = lstm()
    model, _ = nested("Loop", problem)
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.array(0), "once"))
    body = model.graph.node[0].attribute[0].g
    if declared is None:
        body.output[1].type.tensor_type.ClearField("shape")
    feeds = {"X": problem.feeds["X"], "condition": np.array(True)}
    (got,), (want,) = (one.run(None, feeds) for one in (session(model), theirs(model)))
    assert got.shape == want.shape
    assert got.shape[2::2] == (2, 6)


def test_nodes_without_names():
    layer = rnnfast.LSTM(4, 6, num_layers=2, rng=0)
    model = to_onnx(layer)
    for node in model.graph.node:
        node.name = ""
    own = session(model)
    assert own.nodes == ["Y_l0", "Y_l1"]
    x = np.ones((5, 3, 4), np.float32)
    assert_same(own.run(["y"], {"x": x}), [layer(x)[0]])


@pytest.mark.parametrize("where", PLACES_OF_NODES)
def test_nodes_in_bodies(where):
    problem = lstm()
    model, feeds = nested(where, problem)
    own = session(model)
    assert [name.partition("__")[0] for name in own.nodes] == ["node"]  # inlining appends "__1"
    assert own.left == {}
    (got,) = own.run(None, feeds)
    assert_same([got.reshape(5, 2, 3, 6)], run(model_of(problem, constants=WEIGHTS), {"X": problem.feeds["X"]})[:1])
    np.testing.assert_allclose(got, theirs(model).run(None, feeds)[0], rtol=0, atol=2e-6)
    if "If" in where:
        feeds["condition"] = np.array(False)
        assert_same(own.run(None, feeds), [-feeds["X"]])


def test_computed_and_quantized_weights():
    problem = lstm()
    feeds = {"X": problem.feeds["X"]}
    own = session(computed(problem))
    assert own.left == {}
    assert_same(own.run(None, feeds), run(model_of(problem, constants=WEIGHTS), feeds))
    model, plain = quantized(problem, True, np.int8)
    own = session(model, dequantize=True)
    assert own.left == {}
    assert_same(own.run(None, feeds), run(model_of(plain, constants=WEIGHTS), feeds))
    own = session(model)
    assert own.left == {"node": "it is quantized, and dequantize=True was not passed"}
    assert_same(own.run(None, feeds), theirs(model).run(None, feeds))


def test_replaced_weights_leave_the_model():
    """Only the packed weights remain, once for equal nodes; the caller's model does not change."""
    problem = lstm()
    model, feeds = nested("If", problem)
    branches = {one.name: one.g for one in model.graph.node[0].attribute}
    branches["else_branch"].CopyFrom(branches["then_branch"])
    branches["else_branch"].node[0].name = "second"
    text = model.SerializeToString()
    replaced = replace(model)
    assert sorted(replaced.nodes) == ["node", "second"]
    assert [tensor.name for tensor in replaced.model.graph.initializer] == list(replaced.weights)
    assert len(replaced.weights) == 1
    assert model.SerializeToString() == text
    first = session(model).run(None, feeds)
    assert_same(session(model).run(None, {**feeds, "condition": np.array(False)}), first)


def test_all_initializers_of_old_models_are_inputs():
    problem = lstm()
    model = model_of(problem, opset=7, constants=WEIGHTS)
    model.ir_version = 3
    for name in WEIGHTS:
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, problem.feeds[name].shape))
    own = session(model)
    assert own.nodes == ["node"]
    assert [value.name for value in own.get_inputs()] == ["X"]
    assert_close(own.run(None, {"X": problem.feeds["X"]}), by_numpy(problem), TOLERANCE[np.float32])


@pytest.mark.parametrize("form", ["ModelProto", "bytes", "str", "path"])
def test_forms_of_models(form, tmp_path):
    layer = rnnfast.GRU(4, 6, rng=0)
    model, path = to_onnx(layer), tmp_path / "model.onnx"
    onnx.save(model, path)
    given = {"ModelProto": model, "bytes": path.read_bytes(), "str": str(path), "path": path}[form]
    x = np.ones((5, 3, 4), np.float32)
    own = session(given)
    assert isinstance(own, ort.InferenceSession)
    assert_same(own.run(["y"], {"x": x}), [layer(x)[0]])


# ---- nodes that stay in ONNX Runtime


def left_by(model, text):
    with pytest.warns(RuntimeWarning, match=f"the recurrent node 'node' runs in ONNX Runtime: .*{text}"):
        own = session(model)
    assert own.nodes == []
    assert list(own.left) == ["node"]
    return own


def test_weights_that_can_change_stay_in_onnx_runtime():
    problem = lstm()
    own = left_by(model_of(problem), "W of node 'node' is 'W', an input or a computed value")
    assert_close(own.run(None, problem.feeds), by_numpy(problem), TOLERANCE[np.float32])
    model = model_of(problem, constants=WEIGHTS)
    model.graph.input.append(helper.make_tensor_value_info("R", TensorProto.FLOAT, problem.feeds["R"].shape))
    own = left_by(model, "R of node 'node' is 'R', an input")
    problem.feeds["R"] = problem.feeds["R"] / 2
    got = own.run(None, {"X": problem.feeds["X"], "R": problem.feeds["R"]})
    assert_close(got, by_numpy(problem), TOLERANCE[np.float32])


def test_functions_of_other_opsets_stay_in_onnx_runtime(monkeypatch):
    model, feeds = nested("function", lstm())
    want = theirs(model).run(None, feeds)

    def fail(*_):
        raise ValueError("opsets differ")

    monkeypatch.setattr(onnx.inliner, "inline_local_functions", fail)
    assert_same(left_by(model, "it lies in the function 'Own'").run(None, feeds), want)


def test_models_without_recurrent_nodes():
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "graph", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    with pytest.warns(RuntimeWarning, match="no recurrent node: all of it runs in ONNX Runtime"):
        own = session(model)
    assert own.run(None, {"x": np.ones(3, np.float32)})[0].tolist() == [-1, -1, -1]


# ---- sessions


def test_options_of_sessions(tmp_path):
    """Options are passed on, and can serve several sessions."""
    model = to_onnx(rnnfast.GRU(4, 6, rng=0))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    first, second = session(model, options), session(model, options, providers=["CPUExecutionProvider"])
    x = np.ones((5, 3, 4), np.float32)
    assert_same(first.run(None, {"x": x}), second.run(None, {"x": x}))
    with open(first.end_profiling()) as file:
        assert "Recurrent32" in file.read()
    second.end_profiling()
    entry = session(model).get_session_options().get_session_config_entry("session.intra_op.spin_duration_us")
    assert entry == "100"


def test_weights_live_as_long_as_their_session():
    """ONNX Runtime reads the packed weights where rnnfast packed them."""
    layer, x = rnnfast.LSTM(64, 300, rng=0), np.ones((3, 1, 64), np.float32)
    options = ort.SessionOptions()
    first = session(to_onnx(layer), options)
    session(to_onnx(rnnfast.LSTM(64, 300, rng=1)), options)
    del options
    gc.collect()
    want = layer(x)[0]
    others = [np.full(1 << 21, 7, np.uint8) for _ in range(8)]  # would take the place of weights that were freed
    assert_same(first.run(["y"], {"x": x}), [want])
    (_, weights), _ = first._weights.values()
    weights[:] = 0
    assert_same(first.run(["y"], {"x": x}), [np.zeros_like(want)])
    reference = weakref.ref(weights)
    del first, weights, others
    gc.collect()
    assert reference() is None


def test_sessions_with_the_same_options_share_equal_weights():
    model, options = to_onnx(rnnfast.LSTM(4, 6, num_layers=2, rng=0)), ort.SessionOptions()
    first = session(model, options)
    assert len(first._weights) == 2
    want = first.run(None, {"x": np.ones((5, 3, 4), np.float32)})
    del first
    second = session(model, options)
    assert len(second._weights) == 2
    assert_same(second.run(None, {"x": np.ones((5, 3, 4), np.float32)}), want)


def test_bound_inputs_and_outputs():
    """A state tensor that stays in ONNX Runtime's memory, written by one run and read by the next."""
    layer = rnnfast.LSTM(4, 6, rng=0)
    own = session(to_onnx(layer, state=True))
    x = np.random.default_rng(0).standard_normal((6, 1, 4)).astype(np.float32)
    states = [ort.OrtValue.ortvalue_from_numpy(np.zeros((1, 1, 6), np.float32)) for _ in range(2)]
    binding = own.io_binding()
    for name, value in zip(("h_0", "c_0"), states, strict=True):
        binding.bind_ortvalue_input(name, value)
    for name, value in zip(("h_n", "c_n"), states, strict=True):
        binding.bind_ortvalue_output(name, value)
    binding.bind_output("y")
    for t in range(6):
        binding.bind_cpu_input("x", x[t : t + 1])
        own.run_with_iobinding(binding)
        np.testing.assert_array_equal(binding.get_outputs()[-1].numpy(), layer(x[: t + 1])[0][t:])


def test_concurrent_runs(threads):
    """Several threads can run a session at once, each with its own shape, for any number of threads of rnnfast."""
    problem = lstm()
    own = session(changeable(model_of(problem, constants=WEIGHTS)))
    inputs = [np.tile(problem.feeds["X"], (count, 1, 1)) for count in (1, 2, 7)]
    threads(1)
    want = [own.run(None, {"X": X}) for X in inputs]
    threads(2)
    for k, results in enumerate(in_threads(3, lambda k: [own.run(None, {"X": inputs[k]}) for _ in range(20)])):
        for got in results:
            assert_same(got, want[k])


def test_empty_batches():
    problem = lstm()
    own = session(changeable(model_of(problem, constants=WEIGHTS)))
    shapes = [a.shape for a in own.run(None, {"X": np.zeros((5, 0, 4), np.float32)})]
    assert shapes == [(5, 2, 0, 6), (2, 0, 6), (2, 0, 6)]


# ---- invalid inputs


def changeable(model):
    """The model with inputs of any shape, so that not ONNX Runtime but the operator has to check them."""
    for value in model.graph.input:
        value.type.tensor_type.ClearField("shape")
    return model


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("X", np.zeros((0, 3, 4)), "X has no time steps, but must have at least one"),
        ("X", np.zeros((5, 3, 5)), "X has 5 features, but the node has weights for 4"),
        ("X", np.zeros((5, 3, 4, 1)), "input 0 must have 3 axes"),
        ("initial_h", np.zeros((1, 3, 6)), "initial state must have 3 rows of 6 units for each direction"),
        ("initial_c", np.zeros((2, 3, 7)), "initial state must have 3 rows of 6 units for each direction"),
        ("initial_c", np.zeros((2, 4, 6)), "initial state must have 3 rows of 6 units for each direction"),
        ("sequence_lens", np.array([5, 5, 6]), "sequence_lens must be from 0 to 5, got 6"),
        ("sequence_lens", np.array([-1, 5, 5]), "sequence_lens must be from 0 to 5, got -1"),
        ("sequence_lens", np.array([5, 5]), "sequence_lens has 2 elements for 3 rows"),
    ],
)
def test_invalid_inputs(name, value, text):
    problem = lstm()
    problem.feeds["initial_h"] = problem.feeds["initial_c"] = np.zeros((2, 3, 6), np.float32)
    problem.feeds["sequence_lens"] = np.array([5, 1, 3], np.int32)
    own = session(changeable(model_of(problem, constants=WEIGHTS)))
    feeds = {key: array for key, array in problem.feeds.items() if key not in WEIGHTS}
    own.run(None, feeds)
    with pytest.raises(Exception, match=f"rnnfast: .*{text}"):
        own.run(None, {**feeds, name: value.astype(feeds[name].dtype)})
    assert_close(own.run(None, feeds), by_numpy(problem), TOLERANCE[np.float32])


def test_models_that_a_session_rejects():
    with pytest.raises(TypeError, match=r"model must be an onnx.ModelProto, bytes or a path, got int"):
        session(1)
    for content in (*NOT_MODELS.values(), bytearray(100)):
        with pytest.raises(ValueError, match="model is not an ONNX model: "):
            session(content)
    with pytest.raises(FileNotFoundError):
        session("no such file")
    with pytest.raises(TypeError, match="dequantize must be True or False, got 'yes'"):
        session(to_onnx(rnnfast.RNN(4, 6, rng=0)), dequantize="yes")
    with pytest.raises(TypeError, match=r"sess_options must be an onnxruntime.SessionOptions or None, got 1"):
        session(to_onnx(rnnfast.RNN(4, 6, rng=0)), 1)
    for where in PLACES_OF_NODES:  # the operators trust their weights, so they must not come from a model
        model, _ = nested(where, lstm())
        own = replace(model).model
        for _ in range(2):
            with pytest.raises(ValueError, match="the model uses the domain 'rnnfast', which is reserved"):
                session(own)
            del own.opset_import[-1]  # ONNX Runtime runs the operators without it too
    model, _ = nested("function", lstm())
    model.functions[0].node[0].domain = "rnnfast"
    with pytest.raises(ValueError, match="the model uses the domain 'rnnfast', which is reserved"):
        session(model)
    for function in (model.functions[0], model):
        function.opset_import.append(helper.make_opsetid("rnnfast", 1))
        with pytest.raises(ValueError, match="the model uses the domain 'rnnfast', which is reserved"):
            session(model)


def with_operators(model):
    options = ort.SessionOptions()
    options.register_custom_ops_library(_core.__file__)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def test_packed_weights_of_any_address():
    """Packed weights that do not begin at a cache line are copied; too few are an error."""
    problem = lstm()
    model = replace(model_of(problem, constants=WEIGHTS)).model
    packed = numpy_helper.to_array(model.graph.initializer[0])
    name = model.graph.initializer[0].name
    del model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.UINT8, [None]))
    own, feeds = with_operators(model), {"X": problem.feeds["X"]}
    want = run(model_of(problem, constants=WEIGHTS), feeds)
    memory = np.empty(packed.size + 128, np.uint8)
    start = -_core.address(memory) % 64
    for shift in (0, 4, 32):
        memory[start + shift : start + shift + packed.size] = packed
        assert_same(own.run(None, {**feeds, name: memory[start + shift : start + shift + packed.size]}), want)
    with pytest.raises(Exception, match=rf"rnnfast: the packed weights have \d+ bytes, but must have {packed.size}"):
        own.run(None, {**feeds, name: packed[:-1]})


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda call: call[:-1], "holds no call of this operator"),
        (lambda call: b"\xff" + call[1:], "version .* of rnnfast's interface"),
        (lambda call: call[:4] + b"none" + call[8:], "compiled for none"),
    ],
)
def test_invalid_calls(call, text):
    model = replace(model_of(lstm(), constants=WEIGHTS)).model
    [attribute] = model.graph.node[0].attribute
    attribute.s = call(attribute.s)
    with pytest.raises(Exception, match=f"rnnfast: .*{text}"):
        with_operators(model)
    attribute.name = "other"
    with pytest.raises(Exception, match="call"):
        with_operators(model)


@pytest.mark.parametrize("layer", [rnnfast.LSTM(4, 6, rng=0), rnnfast.GRU(4, 6, clip=1.0, rng=0)])
def test_calls_of_impossible_layers(layer):
    """A record that the kernels cannot run is an error, whatever its bytes."""
    model = replace(to_onnx(layer)).model
    [attribute] = model.graph.node[0].attribute
    call, x = attribute.s, np.ones((5, 3, 4), np.float32)
    for field, value in [*INVALID, ("layers", 2)]:
        attribute.s = changed(call, field, value)
        with pytest.raises(Exception, match=r"rnnfast: the (program|attribute)"):
            with_operators(model)
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(call)
        for place in rng.integers(RECORD.itemsize, size=rng.integers(1, 4)):
            damaged[place] = rng.integers(256) if rng.random() < 0.5 else rng.integers(4)
        attribute.s = bytes(damaged)
        with contextlib.suppress(Exception):
            with_operators(model).run(None, {"x": x})


def test_operators_of_the_other_dtype():
    model = replace(model_of(lstm(), constants=WEIGHTS)).model
    model.graph.node[0].op_type = "Recurrent64"
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    with pytest.raises(Exception, match="holds no call of this operator"):
        with_operators(model)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("sys.modules['onnxruntime'] = None", "session needs onnxruntime 1.16 or newer: pip install 'rnnfast[onnx]'"),
        ("import onnxruntime; onnxruntime.__version__ = '1.15.1'", "found 1.15.1: pip install 'onnxruntime>=1.16'"),
    ],
)
def test_a_missing_or_old_onnxruntime(change, text):
    code = f"import sys; {change}; from rnnfast.backends.onnx import to_onnx; from rnnfast.backends.onnx import session"
    last = python(code=code).stderr.splitlines()[-1]
    assert "ImportError" in last
    assert last.endswith(text)


def test_the_adapter_does_not_import_onnxruntime():
    run = python(code="import sys, rnnfast.backends.onnx; print('onnxruntime' in sys.modules)")
    assert run.stdout.split() == ["False"], run.stderr
    run = python(code="import rnnfast.backends.onnx as adapter; adapter.nothing")
    assert "AttributeError: module 'rnnfast.backends.onnx' has no attribute 'nothing'" in run.stderr
