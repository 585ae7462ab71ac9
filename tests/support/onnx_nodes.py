"""Random recurrent nodes of ONNX, and the equations of the standard in NumPy."""

from types import SimpleNamespace

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from rnnfast.backends.onnx import ops

GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
PLACES = {"RNN": 1, "LSTM": 3, "GRU": 2}
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}
NOT_MODELS = {"no bytes": b"", "another message": b"\x08\x07", "text": b"not a model", "zeros": bytes(100)}
NEWEST = max(row[2] for row in helper.VERSION_TABLE)


# ---- the standard's equations

FUNCTIONS = {
    "Relu": lambda x: np.maximum(x, 0),
    "Tanh": np.tanh,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Affine": lambda x, alpha=1.0, beta=0.0: alpha * x + beta,
    "LeakyRelu": lambda x, alpha=0.01: np.where(x >= 0, x, alpha * x),
    "ThresholdedRelu": lambda x, alpha=1.0: np.where(x >= alpha, x, 0),
    "ScaledTanh": lambda x, alpha=1.0, beta=1.0: alpha * np.tanh(beta * x),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: np.minimum(np.maximum(alpha * x + beta, 0), 1),
    "Elu": lambda x, alpha=1.0: np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0))),
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Softplus": lambda x: np.logaddexp(0, x),
}
TAKES = {"Affine": 2, "LeakyRelu": 1, "ThresholdedRelu": 1, "ScaledTanh": 2, "HardSigmoid": 2, "Elu": 1}


def chosen_functions(op_type, attributes, directions, clip_h=True):
    default = {"RNN": ["Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}
    alphas, betas = (iter(attributes.get(f"activation_{name}", ())) for name in ("alpha", "beta"))
    clip, chosen = attributes.get("clip", np.inf), []
    for i, name in enumerate(attributes.get("activations", default[op_type] * directions)):
        numbers = [n for values in (alphas, betas)[: TAKES.get(name, 0)] if (n := next(values, None)) is not None]
        limit = clip if clip_h or op_type != "LSTM" or i % 3 != 2 else np.inf
        chosen.append(lambda x, f=FUNCTIONS[name], n=numbers, c=limit: f(np.clip(x, -c, c), *n))
    return [chosen[d * PLACES[op_type] : (d + 1) * PLACES[op_type]] for d in range(directions)]


def by_numpy(problem, clip_h=True):
    """Y, Y_h and, of LSTM, Y_c of one node, in float64."""
    attributes, feeds = problem.attributes, problem.feeds
    feeds = {name: a if name == "sequence_lens" else a.astype(np.float64) for name, a in feeds.items()}
    batch_first = attributes.get("layout", 0)
    X = feeds["X"].transpose(1, 0, 2) if batch_first else feeds["X"]
    (T, N, _), (D, _, H) = X.shape, feeds["R"].shape
    G, lens = GATES[problem.op_type], feeds.get("sequence_lens", np.full(N, T))
    functions = chosen_functions(problem.op_type, attributes, D, clip_h)
    Y, ends = np.zeros((T, D, N, H)), []
    for d in range(D):
        split = {name: np.split(feeds[name][d], G) for name in "WR"}
        Wb, Rb = np.split(feeds.get("B", np.zeros((D, 2 * G * H)))[d].reshape(2, G, H), 2)
        P = np.split(feeds.get("P", np.zeros((D, 3 * H)))[d], 3)
        rows = []
        for n in range(N):
            state = {}
            for member in "hc":
                initial = feeds.get(f"initial_{member}", np.zeros((N, D, H) if batch_first else (D, N, H)))
                state[member] = initial[n, d] if batch_first else initial[d, n]
            steps = range(lens[n])
            for t in reversed(steps) if attributes["direction"] == "reverse" or d else steps:
                step(problem, state, functions[d], X[t, n], split, Wb[0], Rb[0], P)
                Y[t, d, n] = state["h"]
            rows.append([member if lens[n] else np.zeros(H) for member in state.values()])
        ends.append(np.array(rows).transpose(1, 0, 2))
    last = list(np.array(ends).transpose(1, 0, 2, 3))[: 2 if problem.op_type == "LSTM" else 1]
    if batch_first:
        return Y.transpose(2, 0, 1, 3), *(end.transpose(1, 0, 2) for end in last)
    return Y, *last


def step(problem, state, functions, x, split, Wb, Rb, P):
    h, attributes = state["h"], problem.attributes
    a = [W @ x + b for W, b in zip(split["W"], Wb, strict=True)]
    q = [R @ h + b for R, b in zip(split["R"], Rb, strict=True)]
    if problem.op_type == "RNN":
        state["h"] = functions[0](a[0] + q[0])
    elif problem.op_type == "GRU":
        f, g = functions
        z, r = f(a[0] + q[0]), f(a[1] + q[1])
        after = attributes.get("linear_before_reset")
        new = g(a[2] + r * q[2]) if after else g(a[2] + split["R"][2] @ (r * h) + Rb[2])
        state["h"] = (1 - z) * new + z * h
    else:
        f, g, h_of = functions
        i = f(a[0] + q[0] + P[0] * state["c"])
        forget = 1 - i if attributes.get("input_forget") else f(a[2] + q[2] + P[2] * state["c"])
        state["c"] = forget * state["c"] + i * g(a[3] + q[3])
        o = f(a[1] + q[1] + P[1] * state["c"])
        state["h"] = o * h_of(state["c"])


# ---- models of one node


def drawn(seed, dtype=np.float32, layouts=1):
    """A random node with small results; unbounded activations may produce large ones."""
    problem = draw(seed, dtype, layouts)
    with np.errstate(over="ignore", invalid="ignore"):
        return problem if np.abs(by_numpy(problem)[0]).max() < 10 else drawn(seed + 10**6, dtype, layouts)


def draw(seed, dtype, layouts):
    """A random node: its operator, attributes and inputs."""
    rng = np.random.default_rng(seed)
    op_type = list(GATES)[rng.integers(3)]
    direction = ("forward", "reverse", "bidirectional")[rng.integers(3)]
    D, G = 1 + (direction == "bidirectional"), GATES[op_type]
    T, N, I, H = (int(rng.integers(1, most)) for most in (7, 5, 6, 20))
    layout = int(rng.integers(layouts))

    def values(*shape, scale=0.7):
        return (rng.uniform(-scale, scale, shape)).astype(dtype)

    state = (N, D, H) if layout else (D, N, H)
    feeds = {
        "X": values(*((N, T) if layout else (T, N)), I),
        "W": values(D, G * H, I, scale=0.5),
        "R": values(D, G * H, H, scale=0.7 / H**0.5),
    }
    maybe = {
        "B": (0.7, lambda: values(D, 2 * G * H)),
        "sequence_lens": (0.4, lambda: rng.integers(0, T + 1, N).astype(np.int32)),
        "initial_h": (0.5, lambda: values(*state)),
        "initial_c": (0.5 * (op_type == "LSTM"), lambda: values(*state)),
        "P": (0.4 * (op_type == "LSTM"), lambda: values(D, 3 * H)),
    }
    feeds.update({name: make() for name, (share, make) in maybe.items() if rng.random() < share})
    attributes = {"hidden_size": H, "direction": direction}
    if rng.random() < 0.6:
        names = [list(FUNCTIONS)[k] for k in rng.integers(len(FUNCTIONS), size=PLACES[op_type] * D)]
        attributes["activations"] = names
        if rng.random() < 0.8:
            numbers = rng.uniform(0.1, 1.0, 12).astype(np.float32).tolist()
            for least, name in ((1, "activation_alpha"), (2, "activation_beta")):
                count = sum(TAKES.get(one, 0) >= least for one in names)
                if count:
                    attributes[name] = [numbers.pop() for _ in range(count)]
    if rng.random() < 0.3:
        attributes["clip"] = float(np.float32(rng.uniform(0.1, 2)))
    if op_type == "LSTM" and rng.random() < 0.3:
        attributes["input_forget"] = 1
    if op_type == "GRU":
        attributes["linear_before_reset"] = int(rng.integers(2))
    if layout:
        attributes["layout"] = layout
    return SimpleNamespace(op_type=op_type, feeds=feeds, attributes=attributes)


def model_of(problem, opset=14, constants=(), raw=True, outputs=None):
    """A model with only that node; some of its inputs are initializers."""
    inputs = [name if name in problem.feeds else "" for name in INPUTS]
    while not inputs[-1]:
        inputs.pop()
    outputs = outputs or ["Y", "Y_h", "Y_c"][: 2 + (problem.op_type == "LSTM")]
    node = helper.make_node(problem.op_type, inputs, outputs, "node", **problem.attributes)
    kinds = {name: helper.np_dtype_to_tensor_dtype(a.dtype) for name, a in problem.feeds.items()}
    given = [
        helper.make_tensor_value_info(name, kinds[name], a.shape)
        for name, a in problem.feeds.items()
        if name not in constants
    ]
    found = [
        helper.make_tensor_value_info(name, kinds["X"], [None] * (4 if name == "Y" else 3)) for name in outputs if name
    ]
    tensors = [
        numpy_helper.from_array(problem.feeds[name], name)
        if raw
        else helper.make_tensor(name, kinds[name], problem.feeds[name].shape, problem.feeds[name].ravel())
        for name in constants
    ]
    graph = helper.make_graph([node], "graph", given, found, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def lstm(**attributes):
    """A plain problem: T=5, N=3, I=4, H=6, two directions."""
    rng = np.random.default_rng(0)
    shapes = {"X": (5, 3, 4), "W": (2, 24, 4), "R": (2, 24, 6), "B": (2, 48), "P": (2, 18)}
    feeds = {name: rng.uniform(-0.5, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    attributes = {"hidden_size": 6, "direction": "bidirectional", **attributes}
    return SimpleNamespace(op_type="LSTM", feeds=feeds, attributes=attributes)


WEIGHTS = ("W", "R", "B", "P")


def computed(problem):
    """The model of a problem whose weights other nodes compute from constants, as exporters write them."""
    model = model_of(problem, constants=WEIGHTS)
    graph, D = model.graph, len(problem.feeds["W"])
    W, R, B, P = (problem.feeds[name] for name in WEIGHTS)
    tensors = {f"W_{d}": W[d : d + 1].astype(np.float64) for d in range(D)}
    tensors |= {"R_transposed": R.transpose(2, 0, 1), "B_long": np.concatenate([B] * 3), "P_stacked": P[np.newaxis]}
    tensors |= {"zero": np.array([0]), "start": np.array([D]), "end": np.array([2 * D])}
    nodes = [
        helper.make_node("Concat", [f"W_{d}" for d in range(D)], ["W_double"], axis=0),
        helper.make_node("Cast", ["W_double"], ["W"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["R_transposed"], ["R"], perm=[1, 2, 0]),
        helper.make_node("Slice", ["B_long", "start", "end", "zero"], ["B"]),
        helper.make_node("Squeeze", ["P_stacked", "zero"], ["P"]),
    ]
    del graph.initializer[:]
    graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in tensors.items())
    for node in reversed(nodes):
        graph.node.insert(0, node)
    return model


PLACES_OF_NODES = ("If", "Loop", "Scan", "function", "If in function")


def nested(where, problem):
    """A model of inputs X and condition whose LSTM lies in a body or a function, and its feeds."""
    info, FLOAT = helper.make_tensor_value_info, TensorProto.FLOAT
    given = ["condition", "X", *WEIGHTS]
    node = helper.make_node("LSTM", ["X", "W", "R", "B", "", "", "", "P"], ["Y"], "node", **problem.attributes)
    branch = helper.make_graph([node], "then", [], [info("Y", FLOAT, [None] * 4)])
    other = helper.make_graph([helper.make_node("Neg", ["X"], ["-X"])], "else", [], [info("-X", FLOAT, None)])
    call = helper.make_node("If", ["condition"], ["result"], then_branch=branch, else_branch=other)
    X, tensors, functions = problem.feeds["X"], {name: problem.feeds[name] for name in WEIGHTS}, []
    opsets = [helper.make_opsetid("", 14), helper.make_opsetid("own", 1)]
    if where == "Loop":
        i, go, end = (
            info("i", TensorProto.INT64, ()),
            info("go", TensorProto.BOOL, ()),
            info("end", TensorProto.BOOL, ()),
        )
        nodes = [helper.make_node("Identity", ["go"], ["end"]), node]
        body = helper.make_graph(nodes, "body", [i, go], [end, *branch.output])
        call, tensors["once"] = helper.make_node("Loop", ["once", "condition"], ["result"], body=body), np.array(1)
    elif where == "Scan":
        node.input[0] = "x"
        body = helper.make_graph([node], "body", [info("x", FLOAT, X.shape)], branch.output)
        call, X = helper.make_node("Scan", ["X"], ["result"], body=body, num_scan_inputs=1), X[np.newaxis]
    elif where != "If":
        inner = call if where == "If in function" else node
        functions = [helper.make_function("own", "Own", given, inner.output, [inner], opsets)]
        call = helper.make_node("Own", given, ["result"], domain="own")
    start = [info("X", FLOAT, X.shape), info("condition", TensorProto.BOOL, ())]
    tensors = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph([call], "graph", start, [info("result", FLOAT, None)], tensors)
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)
    return model, {"X": X, "condition": np.array(True)}


def quantized(problem, per_channel, kind):
    """A model of one DynamicQuantizeLSTM, and the LSTM of its dequantized weights."""
    plain, tensors, info = dict(problem.feeds), {}, np.iinfo(kind)
    for name in "WR":
        array = problem.feeds[name].transpose(0, 2, 1)
        if per_channel:  # ONNX Runtime then requires a zero point in the middle
            scale = np.abs(array).max(1, keepdims=True) / np.float32(127)
            zero = np.full(scale.shape, (info.max + info.min + 1) // 2, kind)
        else:
            low, high = array.min((1, 2), keepdims=True), array.max((1, 2), keepdims=True)
            scale = (high - low) / np.float32(info.max - info.min)
            zero = np.round(info.min - low / scale).astype(kind)
        integers = np.clip(np.round(array / scale) + zero, info.min, info.max).astype(kind)
        plain[name] = np.ascontiguousarray(((integers - zero.astype(np.float32)) * scale).transpose(0, 2, 1))
        shape = array.shape[::2] if per_channel else array.shape[:1]
        tensors |= {name: integers, f"{name}_scale": scale.reshape(shape), f"{name}_zero_point": zero.reshape(shape)}
    plain = SimpleNamespace(op_type="LSTM", feeds=plain, attributes=problem.attributes)
    model = model_of(plain, constants=WEIGHTS)
    inputs = [name if name in problem.feeds else "" for name in INPUTS]
    inputs += [f"{name}_{what}" for name in "WR" for what in ("scale", "zero_point")]
    [node] = model.graph.node
    node.op_type, node.domain = "DynamicQuantizeLSTM", "com.microsoft"
    node.input[:] = inputs
    for place in reversed([i for i, tensor in enumerate(model.graph.initializer) if tensor.name in tensors]):
        del model.graph.initializer[place]
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model, plain


def run(model, feeds):
    return ReferenceEvaluator(model, new_ops=ops).run(None, feeds)


def assert_close(got, want, tolerance):
    assert [a.shape for a in got] == [b.shape for b in want]
    for name, a, b in zip(("Y", "Y_h", "Y_c"), got, want, strict=False):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max(initial=0)), err_msg=name)
