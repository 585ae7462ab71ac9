"""Random recurrent nodes of ONNX, and the equations of the standard in NumPy."""

from types import SimpleNamespace

import numpy as np
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from rnnfast.backends.onnx import ops

GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
PLACES = {"RNN": 1, "LSTM": 3, "GRU": 2}
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}
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


def run(model, feeds):
    return ReferenceEvaluator(model, new_ops=ops).run(None, feeds)


def assert_close(got, want, tolerance):
    assert [a.shape for a in got] == [b.shape for b in want]
    for name, a, b in zip(("Y", "Y_h", "Y_c"), got, want, strict=False):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max(initial=0)), err_msg=name)
