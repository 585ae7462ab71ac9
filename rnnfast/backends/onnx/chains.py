"""Models that are a plain chain of layers: recognize them, and check that the chain returns what the model returns."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from rnnfast import layers
from rnnfast._types import Array
from rnnfast.backends._common import Content
from rnnfast.models import Sequential

from . import models
from .conversion import require_no_state
from .evaluation import ops
from .nodes import build

__all__ = ["read_model"]

_LAYOUT = {"Transpose", "Squeeze", "Unsqueeze", "Reshape", "Identity", "Dropout"}
_SHAPES = {"Constant", "ConstantOfShape", "Shape"}  # they compute sizes and states of zeros
_FUNCTIONS = {"Tanh": "tanh", "Sigmoid": "sigmoid", "Relu": "relu"}
_TOLERANCE = {np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-10}  # relative to the largest element
_LARGEST = 1 << 24  # numbers in the inputs for which a chain is compared with its model


class _NoChainError(Exception):
    """The model is more than a chain of layers that rnnfast has."""


def read_model(path: str) -> Content:
    """Build the layers of a model: all of them if it is a plain chain, otherwise the recurrent nodes."""
    model = models.inline(models.load(path))
    try:
        return _chain(model)
    except (_NoChainError, NotImplementedError, ValueError):
        opset, parts, left_out = models.opset(model), {}, {}
    for one in models.find(model, defaults=True):
        name = next(name for name in _numbered(one.name) if name not in parts and name not in left_out)
        try:
            require_no_state(one)
            parts[name] = build([models.part(one, opset)])
        except (NotImplementedError, ValueError) as error:
            left_out[name] = str(error)
    nodes = [node for graph in models.graphs(model.graph) for node in graph.node if not models.kind(node)]
    others = sorted({node.op_type for node in nodes} - _SHAPES)
    return Content("an ONNX model", parts, left_out | ({"nodes": ", ".join(others)} if others else {}), {}, False)


def _numbered(name: str) -> Iterator[str]:
    """Yield a name, and variants of it for nodes that have the same."""
    yield name
    yield from (f"{name} ({k})" for k in itertools.count(2))


def _chain(model: onnx.ModelProto) -> Content:
    """Follow the first input of a model to its first output through nodes that rnnfast has layers for."""
    graph = model.graph
    constants = {tensor.name: models.array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].type == onnx.AttributeProto.TENSOR:
            constants[node.output[0]] = models.array(node.attribute[0].t)
    recurrent = {one.node.output[0] or one.name: one for one in models.find(model, defaults=True) if one.graph is graph}
    inputs = [value for value in graph.input if value.name not in constants]
    if not (inputs and graph.output and recurrent):
        raise _NoChainError
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for value in node.input if node.op_type != "Shape" else ():
            readers.setdefault(value, []).append(node)
    at, end = inputs[0].name, graph.output[0].name
    steps: dict[str, tuple[str, Any]] = {}
    left_out = {}
    while at != end:
        if len(readers.get(at, ())) != 1:
            raise _NoChainError
        [node] = readers[at]
        name, following = next(filter(None, (node.name, *node.output))), node.output[0]
        operands = [constants.get(value) for value in node.input]
        given = [array for array in operands if array is not None]
        last = next(reversed(steps.values()), None)
        if node.op_type in _LAYOUT and node.input[0] == at:
            pass
        elif models.kind(node):
            one = recurrent.get(following or name)
            if one is None or one.given.get("X") != at:
                raise _NoChainError
            part = models.part(one, models.opset(model))
            steps[name] = "recurrent", part
            if not following or (following not in readers and following != end):
                following = node.output[1]
                steps[f"{name}.last"] = "last", bool(part.options.get("bidirectional"))
        elif step := _step(node, operands):
            steps[name] = step
        elif node.op_type == "Add" and len(given) == 1 and last is not None and last[0] == "linear":
            if last[1].setdefault("bias", given[0]) is not given[0]:
                raise _NoChainError
        elif following == end and len(given) == len([value for value in node.input if value]) - 1:
            left_out[name], end = node.op_type, at  # what ends the model, such as a softmax
            break
        else:
            raise _NoChainError
        at = following
    for batch_first in (False, True):
        try:
            parts = {name: _build(*step, batch_first) for name, step in steps.items()}
            same = _same(model, inputs, end, list(parts.values()))
        except (AttributeError, NotImplementedError, TypeError, ValueError):  # the sizes do not fit
            continue
        if same:
            return Content("an ONNX model", parts, left_out, {}, True)
    raise _NoChainError


def _step(node: onnx.NodeProto, operands: Sequence[Array | None]) -> tuple[str, Any] | None:
    """Return the kind of the layer that a node is, and what the layer is built from."""
    given = models.attributes(node)
    if node.op_type in _FUNCTIONS:
        return "activation", _FUNCTIONS[node.op_type]
    if node.op_type == "Gather" and operands[0] is not None and not given.get("axis"):
        return "embedding", {"weight": operands[0]}
    if node.op_type == "Gather" and operands[1] is not None and operands[1].size == 1 and operands[1].item() == -1:
        return "last", False
    if node.op_type in ("MatMul", "Gemm") and operands[0] is None and operands[1] is not None:
        if given.get("alpha", 1) != 1 or given.get("beta", 1) != 1 or given.get("transA"):
            return None
        bias = {"bias": operands[2]} if len(operands) > 2 else {}
        return "linear", {"weight": operands[1] if given.get("transB") else operands[1].T, **bias}
    return None


def _build(kind: str, value: Any, batch_first: bool) -> Any:
    if kind == "recurrent":
        return build([value._replace(options={**value.options, "batch_first": batch_first})])
    if kind == "last":
        return layers.Pool("last", batch_first=batch_first, bidirectional=value)
    if kind == "activation":
        return layers.Activation(value)
    of: Any = {"embedding": layers.Embedding, "linear": layers.Linear}[kind]
    return of.from_state_dict(value, dtype=value["weight"].dtype)


def _same(model: onnx.ModelProto, inputs: list[onnx.ValueInfoProto], end: str, parts: list[Any]) -> bool:
    """Return whether a chain gives the output of a model for random numbers, from a state of zeros."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.output[:]
    changed.graph.output.append(onnx.ValueInfoProto(name=end))
    models.prune(changed.graph)
    if any(True for node in changed.graph.node for _ in models.bodies(node)):
        return False
    sizes: dict[str, int] = {}
    feeds, rng = {}, np.random.default_rng(0)
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        for dim in dims:  # different sizes, so that no layout is taken for another
            sizes.setdefault(dim.dim_param, len(sizes) + 2)
        shape = [dim.dim_value or sizes[dim.dim_param] for dim in dims]
        if math.prod(shape) > _LARGEST:
            return False
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if value is not inputs[0]:
            feeds[value.name] = np.zeros(shape, dtype)
        elif isinstance(parts[0], layers.Embedding):
            feeds[value.name] = rng.integers(0, parts[0].num_embeddings, shape, dtype)
        else:
            feeds[value.name] = rng.uniform(-1, 1, shape).astype(dtype)
    feeds = {name: array for name, array in feeds.items() if name in {value.name for value in changed.graph.input}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = Sequential(*parts)(feeds[inputs[0].name])
        try:
            [expected] = ReferenceEvaluator(changed, new_ops=ops).run(None, feeds)
        except Exception:  # onnx raises errors of many types
            return False
    y = got[0] if isinstance(got, tuple) else got
    error = _TOLERANCE[y.dtype] * max(1.0, float(np.abs(expected).max(initial=0)))
    return y.shape == expected.shape and bool(np.abs(y - expected).max(initial=0) <= error)
