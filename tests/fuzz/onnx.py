"""Recurrent nodes of ONNX: valid ones against the equations of the standard, invalid ones refused as documented.

Where ONNX Runtime is installed, a session must give the same bits as the backend, and a valid node is compared with
ONNX Runtime's own, if that follows the standard.
"""

import copy

import numpy as np
import onnx
from support.onnx_nodes import NEWEST, TOLERANCE, WEIGHTS, assert_close, by_numpy, drawn, model_of

from fuzz import assume, outcome
from rnnfast.backends.onnx import Backend, layer_from_onnx, to_onnx

try:
    import onnxruntime
except ImportError:
    onnxruntime = None
else:
    from rnnfast.backends.onnx import session

    onnxruntime.set_default_logger_severity(4)

ERRORS = ValueError, TypeError, NotImplementedError, onnx.checker.ValidationError

ATTRIBUTES = {
    "hidden_size": [0, -1, 1, 1 << 40, "3", 2.5],
    "direction": ["", "backward", "FORWARD", "é", 1],
    "activations": [
        [],
        ["Tanh"],
        ["Tanh"] * 7,
        ["Sinus"] * 6,
        [""] * 2,
        ["tanh", "TANH"],
        ["Leaky_Relu"] * 2,
        "Tanh",
        [1, 2],
    ],
    "activation_alpha": [[], [0.5], [0.5] * 20, [float("nan")] * 6, [float("inf")], [-1.0] * 6, 0.5, [1e38] * 6],
    "activation_beta": [[], [0.5], [0.5] * 20, [float("nan")] * 6, 0.5],
    "clip": [0.0, -1.0, float("nan"), float("inf"), 1e-45, 1e38, 3, "a"],
    "layout": [0, 1, 2, -1],
    "input_forget": [0, 1, 2, -1],
    "linear_before_reset": [0, 1, 2, -1],
    "unknown": [1],
    "output_sequence": [0, 1],
}
INPUTS = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
SHAPES = ["one axis less", "one axis more", "one less", "one more", "empty", "no rows", "no axes", "transposed"]
DTYPES = ["float16", "float64", "float32", "int32", "int64", "bool", "complex64", "object"]
LENGTHS = [-1, 0, 1, 1 << 20, 1 << 40, -(1 << 31)]


def generate(random):
    case = {
        "seed": random.getrandbits(24),
        "dtype": random.choice(["float32", "float32", "float64"]),
        "opset": random.choice([7, 14, 22, NEWEST]),
        "constants": random.choice([[], list(WEIGHTS), ["W"], ["W", "R"]]),
        "raw": random.random() < 0.7,
        "edits": [],
        "bytes": [],
    }
    if random.random() < 0.6:
        case["edits"] = [edit(random) for _ in range(random.choice([1, 1, 2]))]
        case["opset"] = random.choice([1, 6, 7, 13, 14, 22, NEWEST, NEWEST + 1, 0, 1 << 40])
    elif random.random() < 0.3:
        case["bytes"] = [[random.randrange(1 << 16), random.randrange(256)] for _ in range(random.choice([1, 2, 8]))]
    return case


def edit(random):
    kind = random.choice(["attribute", "shape", "dtype", "missing", "lengths", "add"])
    e = {"kind": kind, "input": random.choice(INPUTS)}
    if kind == "attribute":
        e["name"] = random.choice(list(ATTRIBUTES))
        e["value"] = random.choice(ATTRIBUTES[e["name"]])
    elif kind == "shape":
        e["how"] = random.choice(SHAPES)
    elif kind == "dtype":
        e["dtype"] = random.choice(DTYPES)
    elif kind == "lengths":
        e["value"], e["dtype"] = random.choice(LENGTHS), random.choice(["int32", "int32", "int64", "float32"])
    return e


def edited(p, e):
    name, feeds = e["input"], p.feeds
    if e["kind"] == "attribute":
        p.attributes[e["name"]] = e["value"]
    elif e["kind"] == "missing":
        feeds.pop(name, None)
    elif e["kind"] == "lengths":
        with np.errstate(all="ignore"):
            feeds["sequence_lens"] = np.full(np.shape(feeds.get("X", 0))[1:2] or 1, e["value"]).astype(e["dtype"])
    elif name not in feeds:
        return
    elif e["kind"] == "dtype":
        with np.errstate(all="ignore"):
            feeds[name] = feeds[name].astype(e["dtype"])
    elif e["kind"] == "shape":
        a = feeds[name]
        assume(a.ndim and a.size)
        feeds[name] = {
            "one axis less": lambda: a[0],
            "one axis more": lambda: a[np.newaxis],
            "one less": lambda: a[..., :-1],
            "one more": lambda: np.concatenate([a, a[..., :1]], -1),
            "empty": lambda: a[:0],
            "no rows": lambda: a[:, :0] if a.ndim > 1 else a[:0],
            "no axes": lambda: a.reshape(-1)[0],
            "transposed": lambda: a.T,
        }[e["how"]]()
        feeds[name] = np.asarray(feeds[name])


def check(case):
    valid = not case["edits"] and not case["bytes"]
    p = copy.deepcopy(drawn(case["seed"], np.dtype(case["dtype"]).type, layouts=1 if case["opset"] < 14 else 2))
    for e in case["edits"]:
        edited(p, e)
    constants = [name for name in case["constants"] if name in p.feeds]
    if valid:
        model = model_of(p, case["opset"], constants, case["raw"])
        valid_node(p, model, constants, case)
        return
    try:
        model = model_of(p, case["opset"], constants, case["raw"])
        raw = bytearray(model.SerializeToString())
        for at, value in case["bytes"]:
            raw[at % len(raw)] = value
        model = onnx.ModelProto.FromString(bytes(raw))
    except Exception:  # onnx itself cannot make or read such a model
        assume(False)
    invalid_node(p, model, constants, case)


def valid_node(p, model, constants, case):
    expected = by_numpy(p)
    tolerance = TOLERANCE[np.dtype(case["dtype"]).type]
    feeds = {name: a for name, a in p.feeds.items() if name not in constants}
    prepared = Backend.prepare(model)
    for _ in range(2):  # the second time with weights that are packed
        got = prepared.run(feeds)
        assert all(a.dtype == case["dtype"] for a in got)
        assert_close(got, expected, tolerance)
    if {"W", "R"} <= set(constants) and not {"B", "P"} & (p.feeds.keys() - set(constants)):
        as_layer(p, model, expected, tolerance, case)
        if onnxruntime is not None:
            for a, b in zip(session(model).run(None, feeds), got, strict=True):
                np.testing.assert_array_equal(a, b)
    if (
        onnxruntime is not None
        and case["dtype"] == "float32"
        and not p.attributes.get("layout")
        and follows_the_standard(p)
    ):
        theirs = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        assert_close(got, theirs.run(None, feeds), tolerance)


def follows_the_standard(p):
    """Whether ONNX Runtime computes such a node as the standard defines it."""
    names = p.attributes.get("activations", ())
    if "activation_alpha" not in p.attributes and {"Affine", "ThresholdedRelu", "ScaledTanh"} & set(names):
        return False
    return not (p.op_type == "LSTM" and "clip" in p.attributes)


def as_layer(p, model, expected, tolerance, case):
    """The node as a layer, and the layer as a model again."""
    layer = layer_from_onnx(model)
    first = bool(p.attributes.get("layout"))
    states = [p.feeds.get(f"initial_{member}") for member in ("hc" if p.op_type == "LSTM" else "h")]
    states = [None if s is None else s.transpose(1, 0, 2) if first else s for s in states]
    y, _ = layer(p.feeds["X"], states[0] if len(states) == 1 else states, lengths=p.feeds.get("sequence_lens"))
    want = expected[0] if first else expected[0].transpose(0, 2, 1, 3)
    assert_close([y], [want.reshape(y.shape)], tolerance)
    again, error = outcome(lambda: to_onnx(layer, case["opset"]), ValueError)
    if error is None:  # a float64 layer may have options that ONNX, which stores float32, cannot hold
        back = layer_from_onnx(again)
        assert repr(back) == repr(layer) or first
        for name, array in layer.parameters.items():
            np.testing.assert_array_equal(back.parameters[name], array)


def invalid_node(p, model, constants, case):
    layer, error = outcome(lambda: layer_from_onnx(model), *ERRORS)
    described(error)
    if layer is not None:
        repr(layer)
    if case["bytes"]:
        return
    feeds = {name: a for name, a in p.feeds.items() if name not in constants}

    def run():
        return Backend.prepare(model).run(feeds)

    got, error = outcome(run, *ERRORS)
    described(error)
    if got is not None:
        assert all(isinstance(a, np.ndarray) for a in got)
    if layer is None or onnxruntime is None:
        return
    for value in model.graph.input:  # so that the operator, not ONNX Runtime, has to check them
        value.type.tensor_type.ClearField("shape")

    def run_session():
        own = session(model)
        return own.run(None, feeds) if own.nodes else None

    found, error = outcome(run_session, Exception)  # ONNX Runtime raises errors of many types
    described(error)
    if found is not None and got is not None:
        for a, b in zip(found, got, strict=True):
            np.testing.assert_array_equal(a, b)


def described(error):
    assert error is None or str(error).strip(), "an error without a message"
