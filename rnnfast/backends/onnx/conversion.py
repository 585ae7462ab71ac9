"""Convert nodes to layers, and layers to models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from rnnfast import layers, options
from rnnfast._types import Array
from rnnfast.backends._common import reject, reorder
from rnnfast.layers import saving

from . import models
from .nodes import INPUTS, OPERATORS, PEEPHOLES, Operator, build

__all__ = ["layer_from_onnx", "to_onnx"]


def layer_from_onnx(model: Any, node: str | Sequence[str] | None = None) -> layers.Recurrent[Any]:
    """Convert a recurrent node to a layer with its weights and options.

    Parameters
    ----------
    model : onnx.ModelProto, bytes, str or os.PathLike
        A model, its bytes, or the path of its file. W, R, B and P must be initializers, or computed from constants
        only. X, initial_h, initial_c and sequence_lens become arguments of a call of the layer. A node of layout 1
        becomes a layer with batch_first=True; its y and states have the shapes of all layers, (N, T, D*H) and
        (D, N, H). The weights of a com.microsoft.DynamicQuantizeLSTM are dequantized.
    node : str or list of str, optional
        Name of the node, or of one of its outputs; optional if the model has only one recurrent node. The node may lie
        in a body of If, Loop or Scan, or in a function. A list of stacked nodes, lowest first, becomes one layer whose
        num_layers is the number of nodes.

    Returns
    -------
    RNN, LSTM or GRU
        Bidirectional if the node is. The parameters are the node's weights, with both biases.

    Raises
    ------
    ValueError
        If `model` is not an ONNX model, has no such node or computes the weights, if the initial state or the lengths
        are constants of the model, or if stacked nodes differ in more than their weights.
    NotImplementedError
        If the node has an opset before 7, or element types other than float32 and float64.
    TypeError
        If `model` is neither a ModelProto nor bytes nor a path.

    Examples
    --------
    >>> import rnnfast
    >>> model = to_onnx(rnnfast.GRU(4, 8, num_layers=2, rng=0))
    >>> layer_from_onnx(model, "GRU_l1")
    GRU(8, 8)  # 432 parameters
    >>> layer_from_onnx(model, ["GRU_l0", "GRU_l1"])
    GRU(4, 8, num_layers=2)  # 768 parameters
    """
    model = models.inline(models.load(model))
    opset = models.opset(model)
    parts = []
    for one in _find(models.find(model, defaults=True), node):
        parts.append(models.part(one, opset))
        require_no_state(one)
    for part in parts[1:]:
        if (part.operator, part.options) != (parts[0].operator, parts[0].options):
            raise ValueError(
                f"the nodes {node} have different options, so they cannot form one layer: {parts[0].options} and "
                f"{part.options}; convert them one by one"
            )
    return build(parts)


def require_no_state(one: models.RecurrentNode) -> None:
    """Raise an error if a model fixes the initial state or the lengths of a node, which are no parts of a layer."""
    for name in ("sequence_lens", "initial_h", "initial_c"):
        value = one.constants.get(name)
        if value is not None and (value.any() or name == "sequence_lens"):
            raise ValueError(
                f"{name} of node {one.name!r} is a constant of the model, but a layer does not store it: make it "
                "an input of the model, and pass it to each call of the layer"
            )


def _find(nodes: list[models.RecurrentNode], node: str | Sequence[str] | None) -> list[models.RecurrentNode]:
    """The recurrent nodes of these names."""
    listed = ", ".join(f"{one.name!r} ({one.op_type})" for one in nodes) or "none"
    if node is None:
        if len(nodes) != 1:
            raise ValueError(
                f"node must name a recurrent node unless the model has exactly one, got None: the model has {listed}"
            )
        return nodes
    found = []
    for name in [node] if isinstance(node, str) else node:
        fitting = [one for one in nodes if name and name in (one.name, *one.node.output)]
        if len(fitting) != 1:
            raise ValueError(
                f"node must be the name of a recurrent node or of its output, got {name!r}: the model has {listed}"
            )
        found += fitting
    if not found:
        raise ValueError(f"node must name at least one node, got {node!r}")
    return found


# ---- to ONNX


def to_onnx(
    layer: layers.Recurrent[Any], opset: int = 14, *, state: bool = False, lengths: bool = False
) -> onnx.ModelProto:
    """Convert a layer to a model that computes the same results as a call of the layer.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        Any options except proj_size and leak, which ONNX does not support. Dropout acts only in training, so it is
        omitted.
    opset : int, default 14
        At least 7.
    state : bool, default False
        Whether the model has inputs for the initial state, which is zero otherwise.
    lengths : bool, default False
        Whether the model has an input for the lengths of the rows. The final state of a row of length 0 is zero.

    Returns
    -------
    onnx.ModelProto
        Inputs are ``x`` in the layer's layout and, if requested, ``lengths`` (N,) of int32, ``h_0`` and for an LSTM
        ``c_0``. Outputs are ``y``, ``h_n`` and for an LSTM ``c_n``. Shapes are the layer's, with dynamic T and N. Layer
        k becomes a node named after its operator, ``LSTM_l{k}``, of layout 0, with the initializers ``W_l{k}``,
        ``R_l{k}``, ``B_l{k}`` and ``P_l{k}``. The nodes between the layers only transpose and reshape.

    Raises
    ------
    TypeError
        If `layer` is not an RNN, LSTM or GRU.
    ValueError
        If the layer has a projection or a leak, if a number in the options of a float64 layer is not exact in float32,
        in which ONNX stores it, or if onnx does not support the opset.

    Examples
    --------
    >>> import rnnfast
    >>> model = to_onnx(rnnfast.LSTM(4, 8, num_layers=2, rng=0), state=True)
    >>> [node.name for node in model.graph.node if node.op_type == "LSTM"]
    ['LSTM_l0', 'LSTM_l1']
    >>> [value.name for value in model.graph.input], [value.name for value in model.graph.output]
    (['x', 'h_0', 'c_0'], ['y', 'h_n', 'c_n'])
    """
    if not isinstance(layer, (layers.RNN, layers.LSTM, layers.GRU)):
        raise TypeError(f"layer must be an RNN, LSTM or GRU, got {type(layer).__name__}")
    known = "num_layers", "nonlinearity", "reset_after", "reverse", "activations", "clip", "peepholes", "coupled"
    reject(layer, "ONNX", *known)
    newest = max(row[2] for row in helper.VERSION_TABLE)
    if not 7 <= opset <= newest:
        raise ValueError(
            f"opset must be from 7 to {newest}, the newest that onnx {onnx.__version__} knows, got {opset}"
        )
    op_type = saving.kind(layer).__name__
    operator, D, H = OPERATORS[op_type], 1 + layer.bidirectional, layer.hidden_size
    nodes, constants, given = [], {"shape": np.array([0, 0, D * H])}, {"sequence_lens": "lengths"} if lengths else {}
    attributes = _attributes(layer, op_type)
    x = "x"
    if layer.batch_first:
        nodes.append(helper.make_node("Transpose", [x], ["x_time_first"], perm=[1, 0, 2]))
        x = "x_time_first"
    for k in range(layer.num_layers):
        weights = {f"{name}_l{k}": array for name, array in _weights(layer, operator, k).items()}
        constants.update(weights)
        given.update({"X": x, **{name[0]: name for name in weights}})
        if state:
            constants[f"states_l{k}"] = np.arange(k * D, (k + 1) * D)
            for member in operator.states:
                given[f"initial_{member}"] = f"{member}_0_l{k}"
                nodes.append(helper.make_node("Gather", [f"{member}_0", f"states_l{k}"], [f"{member}_0_l{k}"], axis=0))
        inputs = [given.get(name, "") for name in INPUTS]
        while not inputs[-1]:
            inputs.pop()
        outputs = [f"Y_l{k}", *(f"{member}_n_l{k}" for member in operator.states)]
        nodes.append(helper.make_node(op_type, inputs, outputs, f"{op_type}_l{k}", **attributes))
        last = k == layer.num_layers - 1
        x, perm = "y" if last else f"y_l{k}", [2, 0, 1, 3] if last and layer.batch_first else [0, 2, 1, 3]
        nodes.append(helper.make_node("Transpose", [f"Y_l{k}"], [f"Y_l{k}_rows"], perm=perm))
        nodes.append(helper.make_node("Reshape", [f"Y_l{k}_rows", "shape"], [x]))
    for member in operator.states:
        ends = [f"{member}_n_l{k}" for k in range(layer.num_layers)]
        nodes.append(helper.make_node("Concat", ends, [f"{member}_n"], axis=0))

    rows: tuple[Any, Any] = ("N", "T") if layer.batch_first else ("T", "N")
    states = (layer.num_layers * D, "N", H)
    dtype = helper.np_dtype_to_tensor_dtype(layer.dtype)
    start = [helper.make_tensor_value_info("x", dtype, (*rows, layer.input_size))]
    if lengths:
        start.append(helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, ("N",)))
    if state:
        start += [helper.make_tensor_value_info(f"{member}_0", dtype, states) for member in operator.states]
    end = [helper.make_tensor_value_info("y", dtype, (*rows, D * H))]
    end += [helper.make_tensor_value_info(f"{member}_n", dtype, states) for member in operator.states]
    tensors = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "rnnfast", start, end, tensors)
    opsets = [helper.make_opsetid("", opset)]
    # IR version 3, the minimum for opsets before 9, would require all initializers to be inputs too.
    version = max(4, helper.find_min_ir_version_for(opsets))
    return helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="rnnfast")


def _attributes(layer: layers.Recurrent[Any], op_type: str) -> dict[str, Any]:
    """The attributes of a layer's nodes."""
    plain = options.DEFAULTS[layer.engine.cell]
    functions = list(layer.activations or plain)
    functions *= len(plain) * (1 + layer.bidirectional) // len(functions)
    names: list[str] = []
    numbers: tuple[list[float], list[float]] = [], []
    for one in functions:
        function, *given = [one] if isinstance(one, str) else one
        names.append("".join(word.capitalize() for word in function.split("_")))
        own = options.FUNCTIONS[function]
        for values, value, default in zip(numbers, (*given, *own[len(given) :]), own, strict=False):
            values.append(value if value == default else _rounded("activations", value, layer.dtype))
    attributes = {
        "activation_alpha": numbers[0],
        "activation_beta": numbers[1],
        "clip": None if layer.clip is None else _rounded("clip", layer.clip, layer.dtype),
    }
    direction = "bidirectional" if layer.bidirectional else "reverse" if layer.reverse else "forward"
    flags = {name: int(getattr(layer, option)) for name, option in OPERATORS[op_type].flags.items()}
    attributes = {name: value for name, value in attributes.items() if value}
    return {"hidden_size": layer.hidden_size, "direction": direction, "activations": names, **attributes, **flags}


def _rounded(name: str, value: float, dtype: Any) -> float:
    """Round a number in the options of a layer to float32, in which ONNX stores it."""
    rounded = float(np.float32(value))
    if dtype == np.float64 and rounded != value:
        raise ValueError(
            f"{name} of a float64 layer is {value}, but ONNX stores it in float32: build the layer with {rounded}"
        )
    return rounded


def _weights(layer: layers.Recurrent[Any], operator: Operator, k: int) -> dict[str, Array]:
    """W, R, B and P of layer k: the inverse of `_parameters`."""
    gates, own, sides = [int(k) for k in np.argsort(operator.gates)], layer.parameters, []
    for suffix in (f"_l{k}", f"_l{k}_reverse")[: 1 + layer.bidirectional]:
        side = {"W": reorder(own["weight_ih" + suffix], gates), "R": reorder(own["weight_hh" + suffix], gates)}
        if layer.bias:
            side["B"] = np.concatenate([reorder(own[bias + suffix], gates) for bias in ("bias_ih", "bias_hh")])
        if layer.peepholes:
            side["P"] = own["peephole" + suffix][PEEPHOLES].ravel()
        sides.append(side)
    return {name: np.stack([side[name] for side in sides]) for name in sides[0]}
