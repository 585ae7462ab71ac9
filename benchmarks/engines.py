"""The engines that are timed.

An engine is a function of a problem, whether to train, and the number of threads. It prepares all that can be prepared
once (weights in the engine's own form, its own kind of arrays) and returns two functions: call(), which is what is
timed, and read(), which takes what call() returned and gives it as NumPy arrays under torch's conventions: y and state,
and in training the gradients of x, of the state and of the parameters. Training is forward and backward, for all of
these gradients. A problem is what support.problems.problem makes, or one of a linear layer, whose state is ().
"""

import numpy as np
import pytest
from support.compare import members

import rnnfast
from rnnfast import reference

CLASSES = {"rnn_tanh": "RNN", "lstm": "LSTM", "gru": "GRU", "linear": "Linear"}


def layer_of(package, problem):
    """The layer of rnnfast, or of torch.nn, that the problem is about."""
    options = {name: problem.options[name] for name in ("num_layers", "bidirectional") if name in problem.options}
    return getattr(package, CLASSES[problem.cell])(problem.input_size, problem.hidden_size, **options)


def with_rnnfast(problem, training, threads):
    rnnfast.set_num_threads(threads)
    layer = layer_of(rnnfast, problem)
    layer.load_state_dict(problem.parameters)
    x, state, dy, dstate = problem.x, problem.state, problem.dy, problem.dstate
    if not training:
        layer.freeze()

    if problem.cell == "linear":

        def infer():
            return layer(x), ()

        def train():
            y, tape = layer.forward(x)
            gradients = layer.backward(tape, dy)
            return y, (), gradients.x, (), gradients.parameters

    else:

        def infer():
            return layer(x, state)

        def train():
            y, end, tape = layer.forward(x, state)
            return y, end, *layer.backward(tape, dy, dstate)

    return train if training else infer, lambda result: result


def with_reference(problem, training, threads):  # noqa: ARG001 (its threads are those of NumPy, see conftest.py)
    parameters, x, state, dy, dstate = problem.parameters, problem.x, problem.state, problem.dy, problem.dstate

    if problem.cell == "linear":

        def infer():
            return x @ parameters["weight"].T + parameters["bias"], ()

        def train():
            dparameters = {"weight": np.tensordot(dy, x, axes=([0, 1], [0, 1])), "bias": dy.sum((0, 1))}
            return *infer(), dy @ parameters["weight"], (), dparameters

    else:

        def infer():
            return reference.forward(problem.cell, parameters, x, state, **problem.options)[:2]

        def train():
            y, end, tape = reference.forward(problem.cell, parameters, x, state, **problem.options)
            return y, end, *reference.backward(tape, dy, dstate)

    return train if training else infer, lambda result: result


def with_torch(problem, training, threads):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.set_num_threads(threads)
    layer = layer_of(torch.nn, problem)
    layer.load_state_dict({name: torch.from_numpy(value) for name, value in problem.parameters.items()})
    x, *state = (torch.from_numpy(a).requires_grad_(training) for a in [problem.x, *members(problem.state)])
    inputs = [x, tuple(state) if len(state) == 2 else state[0]] if state else [x]
    sources = [x, *state, *layer.parameters()]
    d_outputs = [torch.from_numpy(a) for a in [problem.dy, *members(problem.dstate)]]

    def outputs(result):
        """y, and each part of the state."""
        y, end = result if state else (result, ())
        return [y, *members(end)]

    def infer():
        with torch.inference_mode():
            return outputs(layer(*inputs)), ()

    def train():
        ends = outputs(layer(*inputs))
        return ends, torch.autograd.grad(ends, sources, d_outputs)

    def read(result):
        (y, *end), gradients = ([a.detach().numpy() for a in part] for part in result)
        if not training:
            return y, tuple(end)
        dx, *gradients = gradients
        dstate, dparameters = gradients[: len(state)], gradients[len(state) :]
        return y, tuple(end), dx, tuple(dstate), dict(zip(problem.parameters, dparameters, strict=True))

    return train if training else infer, read


def with_onnxruntime(problem, training, threads):
    assert not training, "ONNX Runtime only infers"
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed: ONNX Runtime is given no model")
    model, inputs = onnx_linear(problem) if problem.cell == "linear" else onnx_recurrent(problem)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    parts = len(members(problem.state))

    def read(result):
        y, *ends = result
        return y, tuple(np.concatenate(ends[part::parts]) for part in range(parts))

    return lambda: session.run(None, inputs), read


def onnx_model(nodes, constants, inputs, outputs):
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "benchmark",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8), inputs


def onnx_linear(problem):
    from onnx import helper

    nodes = [helper.make_node("MatMul", ["x", "W"], ["xW"]), helper.make_node("Add", ["xW", "B"], ["y"])]
    constants = {"W": problem.parameters["weight"].T, "B": problem.parameters["bias"]}
    return onnx_model(nodes, constants, {"x": problem.x}, ["y"])


def onnx_recurrent(problem):
    """A node for each layer, and its y brought from ONNX's (T, directions, N, H) to torch's (T, N, directions * H)."""
    from onnx import helper

    # Where ONNX's gates stand in torch's order: LSTM i, o, f, g of i, f, g, o; GRU z, r, n of r, z, n.
    order = {"lstm": [0, 3, 1, 2], "gru": [1, 0, 2], "rnn_tanh": [0]}[problem.cell]
    options = {"linear_before_reset": 1} if problem.cell == "gru" else {}
    directions = 1 + problem.options["bidirectional"]
    options["direction"] = ("forward", "bidirectional")[directions - 1]
    parts = ["h", "c"] if problem.cell == "lstm" else ["h"]
    T, N, _ = problem.x.shape
    nodes, inputs, ends, y = [], {"x": problem.x}, [], "x"
    constants = {"shape": np.array([T, N, directions * problem.hidden_size])}

    for layer in range(problem.options["num_layers"]):
        suffixes = [f"_l{layer}", f"_l{layer}_reverse"][:directions]

        def gates(kind, suffixes=suffixes):
            """A parameter of both directions with its gates in ONNX's order."""
            values = (np.split(problem.parameters[kind + suffix], len(order)) for suffix in suffixes)
            return np.stack([np.concatenate([blocks[gate] for gate in order]) for blocks in values])

        constants[f"W{layer}"], constants[f"R{layer}"] = gates("weight_ih"), gates("weight_hh")
        constants[f"B{layer}"] = np.concatenate([gates("bias_ih"), gates("bias_hh")], axis=1)
        starts = [f"{part}{layer}" for part in parts]
        for name, member in zip(starts, members(problem.state), strict=True):
            inputs[name] = member[layer * directions :][:directions]
        last = [f"{name}_end" for name in starts]
        ends += last
        weights = [f"W{layer}", f"R{layer}", f"B{layer}"]
        nodes += [
            helper.make_node(
                CLASSES[problem.cell],
                [y, *weights, "", *starts],
                [f"Y{layer}", *last],
                hidden_size=problem.hidden_size,
                **options,
            ),
            helper.make_node("Transpose", [f"Y{layer}"], [f"transposed{layer}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"transposed{layer}", "shape"], [f"y{layer}"]),
        ]
        y = f"y{layer}"
    return onnx_model(nodes, constants, inputs, [y, *ends])


ENGINES = {
    "rnnfast": with_rnnfast,
    "reference": with_reference,
    "torch": with_torch,
    "onnxruntime": with_onnxruntime,
}
