"""Models: read them, find their recurrent nodes wherever they stand, and fold the constants that nodes read."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from rnnfast._types import Array

from .nodes import INPUTS, OPERATORS, QUANTIZED, WEIGHTS, Part, check_opset, dequantize, read

Dimension = onnx.TensorShapeProto.Dimension
_LONGEST_SHAPE = 64  # elements of a constant from which shapes may be computed
STANDARD = ("", "ai.onnx")
# Their results differ from call to call, so they are not constants.
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}


class RecurrentNode(NamedTuple):
    """A recurrent node of a model."""

    graph: onnx.GraphProto
    node: onnx.NodeProto
    op_type: str  # RNN, LSTM or GRU
    given: dict[str, str]  # the names of its values, by input
    constants: dict[str, Array]  # by input, those whose value the model fixes

    @property
    def is_quantized(self) -> bool:
        return bool(self.node.domain == QUANTIZED[0])

    @property
    def name(self) -> str:
        """The name of the node, or of its first output."""
        return self.node.name or next(filter(None, self.node.output), "")


def load(model: Any) -> onnx.ModelProto:
    """Return a model, given as a ModelProto, its bytes, or the path of its file."""
    if isinstance(model, onnx.ModelProto):
        return model
    is_path = isinstance(model, (str, os.PathLike))
    if not is_path and not isinstance(model, (bytes, bytearray, memoryview)):
        raise TypeError(f"model must be an onnx.ModelProto, bytes or a path, got {type(model).__name__}")
    try:
        if is_path:
            loaded = onnx.load(os.fspath(model), load_external_data=False)
        else:
            loaded = onnx.load_model_from_string(bytes(model))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # onnx raises errors of many types
        raise ValueError(f"model is not an ONNX model: {error}") from error
    if not loaded.HasField("graph"):
        raise ValueError("model is not an ONNX model: it has no graph")
    if is_path:
        onnx.load_external_data_for_model(loaded, os.path.dirname(os.fspath(model)))
    return loaded


def declare(graph: onnx.GraphProto, name: str, element_type: int, shape: Sequence[Any]) -> None:
    """Declare the type and shape of a value, or complete what a graph declares of it."""
    for value in (*graph.output, *graph.value_info):
        if value.name == name:
            break
    else:
        value = graph.value_info.add(name=name)
    tensor = value.type.tensor_type
    tensor.elem_type = tensor.elem_type or element_type
    if not tensor.HasField("shape"):
        tensor.shape.dim.extend([Dimension()] * len(shape))
    if len(tensor.shape.dim) == len(shape):
        for known, own in zip(shape, tensor.shape.dim, strict=True):
            if not own.WhichOneof("value") or (known.HasField("dim_value") and not own.HasField("dim_value")):
                own.CopyFrom(known)


def infer(model: onnx.ModelProto) -> None:
    """Declare the shapes of the results of recurrent nodes, as far as onnx infers them."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for graph in graphs(light.graph):
        for tensor in graph.initializer:
            if math.prod(tensor.dims) > _LONGEST_SHAPE:  # copies of weights would take most of the time
                tensor.CopyFrom(onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type))
    try:
        inferred = onnx.shape_inference.infer_shapes(light)
    except Exception:  # onnx raises errors of many types; ONNX Runtime says what is wrong
        return
    for graph, other in zip(graphs(model.graph), graphs(inferred.graph), strict=True):
        known = {value.name: value.type.tensor_type for value in (*other.value_info, *other.output)}
        for name in [name for node in graph.node if kind(node) for name in node.output if name in known]:
            dims = known[name].shape.dim
            for dim in dims:
                if dim.dim_param.startswith("unk__"):  # a name that onnx gives to unknown dims
                    dim.Clear()
            if known[name].HasField("shape"):
                declare(graph, name, known[name].elem_type, dims)


def inline(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with the bodies of its functions in place of their calls, where opsets allow that."""
    if model.functions:
        with contextlib.suppress(Exception):  # onnx raises errors of many types
            return onnx.inliner.inline_local_functions(model)
    return model


def opset(model: onnx.ModelProto) -> int:
    """Return the version of the standard's operators."""
    return next((entry.version for entry in model.opset_import if entry.domain in STANDARD), 1)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node, with decoded strings."""
    return {one.name: _decoded(onnx.helper.get_attribute_value(one)) for one in node.attribute}


def _decoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return [_decoded(one) for one in value] if isinstance(value, (list, tuple)) else value


def kind(node: onnx.NodeProto) -> str | None:
    """Return the operator of a recurrent node, RNN, LSTM or GRU; None for other nodes."""
    if (node.domain, node.op_type) == QUANTIZED:
        return "LSTM"
    return node.op_type if node.domain in STANDARD and node.op_type in OPERATORS else None


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs in the attributes of a node."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def graphs(graph: Any) -> Iterator[Any]:
    """Yield a graph or function, and the graphs in the attributes of its nodes."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from graphs(body)


def find(model: onnx.ModelProto, defaults: bool = False) -> list[RecurrentNode]:
    """Find the recurrent nodes of a model, those in the bodies of other nodes too.

    An initializer that is also an input can be replaced in a run. It is a constant only with `defaults`, and before
    version 4 of the format, where all initializers are inputs.
    """
    variable = set() if defaults or model.ir_version < 4 else {value.name for value in model.graph.input}
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    found: list[RecurrentNode] = []
    _walk(model.graph, {}, _needed(model.graph), variable, opsets, found)
    return found


def _needed(graph: onnx.GraphProto) -> set[str]:
    """The values that recurrent nodes read, except X, and the values from which they are computed."""
    needed: set[str] = set()
    for node in reversed(graph.node):
        if kind(node):
            needed.update(node.input[1:])
        for body in bodies(node):
            needed |= _needed(body)
        if needed.intersection(node.output):
            needed.update(node.input)
    return needed - {""}


def _walk(
    graph: onnx.GraphProto,
    outer: Mapping[str, Array],
    needed: set[str],
    variable: set[str],
    opsets: dict[str, int],
    found: list[RecurrentNode],
) -> None:
    """Compute the constants among the needed values of a graph, and list its recurrent nodes."""
    constants = dict(outer)
    for tensor in graph.initializer:
        if tensor.name in needed and tensor.name not in variable:
            constants[tensor.name] = array(tensor)
    for node in graph.node:
        if op_type := kind(node):
            given = {name: value for name, value in zip(INPUTS, node.input, strict=False) if value}
            known = {name: constants[value] for name, value in given.items() if value in constants}
            found.append(RecurrentNode(graph, node, op_type, given, known))
        elif needed.intersection(node.output) and all(name in constants for name in node.input if name):
            constants.update(_computed(node, constants, opsets))
        for body in bodies(node):
            _walk(body, constants, needed, set(), opsets, found)


def array(tensor: onnx.TensorProto) -> Array:
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except Exception as error:  # onnx raises errors of many types
        raise ValueError(f"the constant {tensor.name!r} of the model cannot be read: {error!r}") from error


def _computed(node: onnx.NodeProto, constants: Mapping[str, Array], opsets: dict[str, int]) -> dict[str, Array]:
    """The results of a node whose inputs are constants; nothing if it cannot be computed before a run."""
    if node.op_type in _RANDOM or node.domain not in STANDARD or any(bodies(node)):
        return {}
    inputs, outputs = ([name for name in names if name] for names in (node.input, node.output))
    ends = [[onnx.ValueInfoProto(name=name) for name in names] for names in (dict.fromkeys(inputs), outputs)]
    graph = onnx.helper.make_graph([node], "constants", *ends)
    try:
        results = ReferenceEvaluator(graph, opsets=opsets).run(None, {name: constants[name] for name in inputs})
    except Exception:  # the run of the model reports it, if it reaches the node
        return {}
    return {name: array for name, array in zip(outputs, results, strict=True) if isinstance(array, np.ndarray)}


def part(one: RecurrentNode, opset: int) -> Part:
    """Translate a recurrent node to a layer's options and parameters; raise an error if rnnfast cannot run it."""
    if not one.is_quantized:
        check_opset(one.op_type, opset)
        _check(one.node, opset)
    for name in WEIGHTS:
        if name in one.given and name not in one.constants:
            raise ValueError(
                f"{name} of node {one.name!r} is {one.given[name]!r}, an input or a computed value of the model: it "
                "must be an initializer, or computed from constants only"
            )
    weights = {name: one.constants[name] for name in WEIGHTS if name in one.given}
    if one.is_quantized:
        weights = dequantize(weights)
    return read(one.op_type, attributes(one.node), weights, weights["W"].dtype if "W" in weights else None)


def _check(node: onnx.NodeProto, opset: int) -> None:
    """Check the attributes and the numbers of inputs and outputs against the standard."""
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = onnx.IR_VERSION, {"": opset}
    try:
        onnx.checker.check_node(node, context)
    except onnx.checker.ValidationError as error:
        raise ValueError(f"node {node.name!r} does not conform to the ONNX standard: {error}") from error


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model in which computed weights of recurrent nodes are initializers."""
    folded = onnx.ModelProto()
    folded.CopyFrom(inline(model))
    stored = {tensor.name for graph in graphs(folded.graph) for tensor in graph.initializer}
    for number, one in enumerate(find(folded)):
        for name in WEIGHTS:
            if name in one.constants and one.given[name] not in stored:
                value = np.ascontiguousarray(one.constants[name])
                tensor = numpy_helper.from_array(value, f"<{name} of recurrent node {number}>")
                one.graph.initializer.append(tensor)
                one.node.input[INPUTS.index(name)] = tensor.name
    prune(folded.graph)
    return folded


def prune(graph: onnx.GraphProto) -> set[str]:
    """Remove nodes and initializers that do not affect the results of a graph. Return the names that it uses."""
    used = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            kept.append(node)
            used.update(node.input)
            used.update(*map(prune, bodies(node)))
    if len(kept) < len(graph.node):
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
        del graph.node[:]
        graph.node.extend(nodes)
    unused = [place for place, tensor in enumerate(graph.initializer) if tensor.name not in used]
    gone = {graph.initializer[place].name for place in unused}
    for place in reversed(unused):
        del graph.initializer[place]
    for place in reversed([place for place, value in enumerate(graph.input) if value.name in gone]):
        del graph.input[place]
    return used
