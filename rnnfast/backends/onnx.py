"""ONNX: run the recurrent nodes of models on rnnfast, and convert nodes to layers and layers to models.

ops
    Classes for ``onnx.reference.ReferenceEvaluator(model, new_ops=ops)``: rnnfast runs the RNN, LSTM and GRU nodes of a
    model, including those in the bodies of loops and branches.
Backend
    An ``onnx.backend.base.Backend`` for whole models. The reference evaluator runs the other nodes.
layer_from_onnx(model, node)
    Convert a node to a layer with its weights and options, to train or call it.
to_onnx(layer)
    Convert a layer to a model.

The operators are supported as the standard defines them, in float32 and float64: all directions, sequence_lens, initial
states, peepholes, clip, input_forget, activations with alpha and beta, linear_before_reset, both layouts, and all
optional inputs and outputs. Weights that cannot change (those of initializers) are packed once.

Supported: onnx 1.16 and later; versions 7, 14 and 22 of the operators, which cover opset 7 and all later opsets so far.
Other element types, such as float16 and bfloat16, and opsets before 7 raise NotImplementedError. For a row with
sequence_lens 0, the final state is zero, as in ONNX Runtime; an rnnfast layer returns the row's initial state. X must
have at least one time step.

Examples
--------
>>> import numpy as np, rnnfast
>>> from onnx.reference import ReferenceEvaluator
>>> layer = rnnfast.LSTM(4, 8, bidirectional=True, rng=0)
>>> model = to_onnx(layer)
>>> x = np.ones((5, 2, 4), np.float32)
>>> y, h, c = ReferenceEvaluator(model, new_ops=ops).run(None, {"x": x})
>>> y.shape, bool((y == layer(x)[0]).all())
((5, 2, 16), True)
>>> layer_from_onnx(model)
LSTM(4, 8, bidirectional=True)  # 896 parameters
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnfast._types import Array

try:
    import onnx
    import onnx.backend.base
    import onnx.reference
    from onnx import helper, numpy_helper
    from onnx.reference.op_run import OpRun
except ImportError as error:
    raise ImportError("rnnfast.backends.onnx needs onnx 1.16 or newer: pip install 'rnnfast[onnx]'") from error

from rnnfast import functional, layers, options
from rnnfast.backends._common import positions, reject, reorder
from rnnfast.layers import saving

if tuple(map(int, onnx.__version__.split(".")[:2])) < (1, 16):
    raise ImportError(
        f"rnnfast.backends.onnx needs onnx 1.16 or newer, found {onnx.__version__}: pip install 'onnx>=1.16'"
    )

__all__ = ["Backend", "layer_from_onnx", "ops", "to_onnx"]


class _Operator(NamedTuple):
    layer: Callable[..., layers.Recurrent[Any]]
    cell: str
    order: str  # of ONNX's gates, in rnnfast's letters
    flags: Mapping[str, str]  # attributes that correspond to an option of another name

    @property
    def gates(self) -> list[int]:
        return positions(self.cell, self.order)

    @property
    def states(self) -> str:
        return "hc" if functional.CELLS[self.cell].has_c else "h"


_OPERATORS = {
    "RNN": _Operator(layers.RNN, "rnn_tanh", "h", {}),
    "LSTM": _Operator(layers.LSTM, "lstm", "iofg", {"input_forget": "coupled"}),
    "GRU": _Operator(layers.GRU, "gru", "zrn", {"linear_before_reset": "reset_after"}),
}
_PEEPHOLES = [0, 2, 1]  # ONNX has i, o, f, and rnnfast i, f, o; the permutation is its own inverse
_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
_WEIGHTS = ("W", "R", "B", "P")
_DIRECTIONS: dict[str, dict[str, Any]] = {
    "forward": {},
    "reverse": {"reverse": True},
    "bidirectional": {"bidirectional": True},
}
# ONNX spells leaky_relu as LeakyRelu. Names are case-insensitive, as in ONNX Runtime.
_FUNCTIONS = {name.replace("_", ""): name for name in options.FUNCTIONS}
_VERSIONS = (7, 14, 22)


# ---- from ONNX


class _Part(NamedTuple):
    """A node as a layer: its operator, (I, H), options and parameters."""

    operator: _Operator
    sizes: tuple[int, int]
    options: dict[str, Any]
    parameters: dict[str, Array]


def _check_opset(op_type: str, opset: int) -> None:
    try:
        version = onnx.defs.get_schema(op_type, opset, "").since_version
    except onnx.defs.SchemaError:
        raise ValueError(
            f"{op_type} does not exist in opset {opset}: the model must import an opset from 7 to "
            f"{onnx.defs.onnx_opset_version()}"
        ) from None
    if version not in _VERSIONS:
        versions = ", ".join(map(str, _VERSIONS))
        raise NotImplementedError(
            f"{op_type} of opset {opset} is not supported, only the operator's versions {versions}: convert the model "
            "to opset 7 or later with onnx.version_converter.convert_version(model, 14)"
        )


def _read(op_type: str, attributes: Mapping[str, Any], weights: Mapping[str, Array | None], dtype: Any) -> _Part:
    """Check the attributes and weights of a node, and translate them to those of a layer."""
    operator = _OPERATORS[op_type]
    W, R, B, P = (weights[name] for name in _WEIGHTS)
    if W is None or R is None:
        raise ValueError(f"{op_type} has no input {'W' if W is None else 'R'}: both W and R are required")
    if dtype not in (np.float32, np.float64):
        raise NotImplementedError(
            f"{op_type} of {dtype} is not supported: cast inputs and weights to float32 or float64"
        )
    direction = attributes.get("direction") or "forward"
    if direction not in _DIRECTIONS:
        raise ValueError(f"direction of {op_type} must be one of {', '.join(_DIRECTIONS)}, got {direction!r}")
    for name, array in (("W", W), ("R", R)):
        if array.ndim != 3:
            raise ValueError(f"{name} of {op_type} must have three axes, got shape {array.shape}")
    D, G = 2 if direction == "bidirectional" else 1, len(operator.order)
    I, H = W.shape[-1], attributes.get("hidden_size") or R.shape[-1]
    shapes = {"W": (D, G * H, I), "R": (D, G * H, H), "B": (D, 2 * G * H), "P": (D, 3 * H)}
    for name, shape in shapes.items():
        array = weights[name]
        if array is not None and array.shape != shape:
            raise ValueError(
                f"{name} of {op_type} has shape {array.shape}, but hidden_size={H} and direction={direction!r} need "
                f"{shape}: correct the attribute or the weights"
            )
    chosen: dict[str, Any] = {option: bool(attributes.get(name)) for name, option in operator.flags.items()}
    plain, activations = options.DEFAULTS[operator.cell] * D, _activations(op_type, attributes, D)
    if op_type == "RNN" and set(activations) == {"relu"}:
        chosen["nonlinearity"], plain = "relu", activations
    if activations != plain:
        forward, backward = activations[: len(plain) // D], activations[len(plain) // D :]
        chosen["activations"] = forward if forward == backward else activations
    if P is not None:
        chosen["peepholes"] = True
    chosen.update(_DIRECTIONS[direction], bias=B is not None, clip=attributes.get("clip"), dtype=dtype)
    chosen["batch_first"] = bool(attributes.get("layout"))
    return _Part(operator, (I, H), chosen, _parameters(operator, W, R, B, P))


def _activations(op_type: str, attributes: Mapping[str, Any], directions: int) -> tuple[Any, ...]:
    """The option `activations` of a layer. Values of alpha and beta go, in order, to the functions that take them."""
    plain = options.DEFAULTS[_OPERATORS[op_type].cell]
    names = attributes.get("activations") or plain * directions
    if op_type == "RNN" and list(names) == ["Tanh", "Tanh"]:  # the standard's default, even for one direction
        names = names[:directions]
    if len(names) != len(plain) * directions:
        raise ValueError(f"activations of {op_type} must be {len(plain) * directions} names, got {list(names)}")
    unused = [list(attributes.get(name) or ()) for name in ("activation_alpha", "activation_beta")]
    functions = []
    for name in names:
        function = _FUNCTIONS.get(name.lower().replace("_", ""))
        if function is None:
            raise ValueError(f"activations of {op_type} must be functions of the ONNX standard, got {name!r}")
        own = options.FUNCTIONS[function]
        numbers = tuple(_number(values, default) for values, default in zip(unused, own, strict=False))
        functions.append(function if numbers == own else (function, *numbers))
    return tuple(functions)


def _number(values: list[float], default: float) -> float:
    """Take the next value. ONNX stores float32: the float32 nearest to a default, such as 0.2, means the default."""
    value = values.pop(0) if values else default
    return default if value == np.float32(default) else value


def _parameters(operator: _Operator, W: Array, R: Array, B: Array | None, P: Array | None) -> dict[str, Array]:
    parameters = {}
    for d, suffix in enumerate(("_l0", "_l0_reverse")[: len(W)]):
        named = {"weight_ih": W[d], "weight_hh": R[d]}
        if B is not None:
            named["bias_ih"], named["bias_hh"] = np.split(B[d], 2)
        parameters.update({name + suffix: reorder(array, operator.gates) for name, array in named.items()})
        if P is not None:
            parameters["peephole" + suffix] = P[d].reshape(3, -1)[_PEEPHOLES]
    return parameters


def _build(parts: Sequence[_Part]) -> layers.Recurrent[Any]:
    """A layer from one node, or from several stacked nodes."""
    first = parts[0]
    layer = first.operator.layer(*first.sizes, num_layers=len(parts), **first.options)
    parameters = {}
    for k, part in enumerate(parts):
        parameters.update({name.replace("_l0", f"_l{k}"): array for name, array in part.parameters.items()})
    layer.load_state_dict(parameters)
    return layer


def _constant(array: Any) -> bool:
    """Whether an array cannot be written to, or is missing."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return False
        array = array.base
    return array is None or isinstance(array, bytes)


class _Recurrent(OpRun):
    """A recurrent node, called by the reference evaluator."""

    op_domain = ""

    def __init__(self, onnx_node: onnx.NodeProto, run_params: dict[str, Any]) -> None:
        super().__init__(onnx_node, run_params)
        _check_opset(self.op_type, run_params["opsets"][self.domain])
        self._kept: tuple[Any, ...] | None = None

    @property
    def output(self) -> Sequence[str]:
        # A result stored under the empty name would be used for the optional inputs that are missing.
        return [name or f"<output {i} of {self.op_type}>" for i, name in enumerate(self.onnx_node.output)]

    def _layer(self, attributes: dict[str, Any], weights: dict[str, Array | None], dtype: Any) -> Any:
        key = attributes, dtype
        if self._kept is not None:
            kept_key, kept, layer = self._kept
            if kept_key == key and all(kept[name] is weights[name] for name in _WEIGHTS):
                return layer
        layer = _build([_read(self.op_type, attributes, weights, dtype)])
        if all(map(_constant, weights.values())):
            layer.freeze()
            self._kept = key, weights, layer
        return layer

    def _run(self, *inputs: Any, **attributes: Any) -> tuple[Array, ...]:
        given = {name: value for name, value, own in zip(_INPUTS, inputs, self.input, strict=False) if own}
        x, lengths = given["X"], given.get("sequence_lens")
        layer = self._layer(attributes, {name: given.get(name) for name in _WEIGHTS}, x.dtype)
        if x.ndim != 3:
            raise ValueError(f"X of {self.op_type} must have three axes, got shape {x.shape}")
        states = [given.get(f"initial_{member}") for member in _OPERATORS[self.op_type].states]
        if layer.batch_first:
            states = [None if state is None else state.transpose(1, 0, 2) for state in states]
        y, state = layer(x, states[0] if len(states) == 1 else states, lengths=lengths)
        ends = [state] if len(states) == 1 else list(state)
        if lengths is not None:
            for end in ends:
                end[:, np.asarray(lengths) == 0] = 0
        y = y.reshape(*y.shape[:2], -1, layer.hidden_size)
        if layer.batch_first:
            return y, *(end.transpose(1, 0, 2) for end in ends)
        return y.transpose(0, 2, 1, 3), *ends


ops: list[type[OpRun]] = [
    type(name, (_Recurrent,), {"__module__": __name__, "__doc__": f"The operator {name} of the ONNX standard."})
    for name in _OPERATORS
]


class _Evaluator(onnx.reference.ReferenceEvaluator):
    """The reference evaluator with `ops`, also for the bodies of functions."""

    def __init__(self, proto: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(proto, *args, **{**kwargs, "new_ops": ops})
        for name, array in self.rt_inits_.items():
            if isinstance(array, np.ndarray) and not _constant(array):
                self.rt_inits_[name] = array = array.copy()
                array.flags.writeable = False


class _Prepared(onnx.backend.base.BackendRep):
    """A model that is ready to run."""

    def __init__(self, evaluator: _Evaluator) -> None:
        self._evaluator = evaluator
        self._names = [name for name in evaluator.input_names if name not in evaluator.rt_inits_]

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:  # noqa: ARG002
        """Run the model once.

        Parameters
        ----------
        inputs : sequence or mapping
            Arrays for the graph's inputs without an initializer: in their order, or by name.

        Returns
        -------
        tuple of ndarray
            In the order of the graph's outputs.

        Raises
        ------
        ValueError
            If the number of inputs is wrong.
        """
        if not hasattr(inputs, "keys"):
            inputs = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
            if len(inputs) != len(self._names):
                raise ValueError(f"inputs must be {len(self._names)} arrays, {self._names}, got {len(inputs)}")
            inputs = dict(zip(self._names, inputs, strict=True))
        return tuple(self._evaluator.run(None, inputs))


class Backend(onnx.backend.base.Backend):
    """Run models in ONNX's reference evaluator, and their recurrent nodes on rnnfast.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> prepared = Backend.prepare(to_onnx(rnnfast.GRU(4, 8, rng=0)))
    >>> y, h = prepared.run([np.ones((5, 2, 4), np.float32)])
    >>> y.shape, h.shape
    ((5, 2, 8), (1, 2, 8))
    """

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> _Prepared:
        """Check a model and prepare it for any number of runs.

        Raises
        ------
        onnx.checker.ValidationError
            If the model is not valid.
        ValueError
            If the device is not the CPU.
        NotImplementedError
            If a recurrent node has an opset before 7.
        """
        _check_device(device)
        super().prepare(model, device, **kwargs)
        return _Prepared(_Evaluator(model))

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Run a node on arrays for its named inputs; ``opset_version`` is the newest opset by default.

        Raises
        ------
        onnx.checker.ValidationError, ValueError, NotImplementedError
            As for `prepare`.
        """
        _check_device(device)
        super().run_node(node, inputs, device, outputs_info, **kwargs)
        names = [[name for name in side if name] for side in (node.input, node.output)]
        ends = [[onnx.ValueInfoProto(name=name) for name in side] for side in names]
        graph = helper.make_graph([node], "node", *ends)
        opset = kwargs.get("opset_version") or onnx.defs.onnx_opset_version()
        return _Prepared(_Evaluator(graph, opsets={node.domain: opset})).run(inputs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Return whether the device is the CPU."""
        return device.split(":")[0] == "CPU"


def _check_device(device: str) -> None:
    if not Backend.supports_device(device):
        raise ValueError(f"device must be 'CPU', got {device!r}: rnnfast runs on the CPU only")


def layer_from_onnx(model: onnx.ModelProto, node: str | Sequence[str] | None = None) -> layers.Recurrent[Any]:
    """Convert a recurrent node to a layer with its weights and options.

    Parameters
    ----------
    model : onnx.ModelProto
        W, R, B and P must be initializers or constants. X, initial_h, initial_c and sequence_lens become arguments of a
        call of the layer. A node of layout 1 becomes a layer with batch_first=True; its y and states have the shapes
        of all layers, (N, T, D*H) and (D, N, H).
    node : str or list of str, optional
        Name of the node, or of one of its outputs; optional if the model has only one recurrent node. A list of stacked
        nodes, lowest first, becomes one layer whose num_layers is the number of nodes.

    Returns
    -------
    RNN, LSTM or GRU
        Bidirectional if the node is. The parameters are the node's weights, with both biases.

    Raises
    ------
    ValueError
        If the model has no such node or computes the weights, if the initial state or the lengths are constants of
        the model, or if stacked nodes differ in more than their weights.
    NotImplementedError
        If the node has an opset before 7, or element types other than float32 and float64.
    TypeError
        If `model` is not a ModelProto.

    Examples
    --------
    >>> import rnnfast
    >>> model = to_onnx(rnnfast.GRU(4, 8, num_layers=2, rng=0))
    >>> layer_from_onnx(model, "GRU_l1")
    GRU(8, 8)  # 432 parameters
    >>> layer_from_onnx(model, ["GRU_l0", "GRU_l1"])
    GRU(4, 8, num_layers=2)  # 768 parameters
    """
    if not isinstance(model, onnx.ModelProto):
        raise TypeError(f"model must be an onnx.ModelProto, as onnx.load returns, got {type(model).__name__}")
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    constants = _constants(model.graph)
    parts = []
    for one in _find(model.graph, node):
        _check_opset(one.op_type, opset)
        _check_node(one, opset)
        given = dict(zip(_INPUTS, one.input, strict=False))
        for name in ("sequence_lens", "initial_h", "initial_c"):
            value = _array(constants, given.get(name, ""))
            if value is not None and (value.any() or name == "sequence_lens"):
                raise ValueError(
                    f"{name} of node {one.name!r} is a constant of the model, but a layer does not store it: make it "
                    "an input of the model, and pass it to each call of the layer"
                )
        for name in _WEIGHTS:
            if given.get(name) and given[name] not in constants:
                raise ValueError(
                    f"{name} of node {one.name!r} is {given[name]!r}, an input or a computed value of the model: it "
                    "must be an initializer or a Constant"
                )
        attributes = {attribute.name: _plain(helper.get_attribute_value(attribute)) for attribute in one.attribute}
        weights = {name: _array(constants, given.get(name, "")) for name in _WEIGHTS}
        parts.append(_read(one.op_type, attributes, weights, None if weights["W"] is None else weights["W"].dtype))
    for part in parts[1:]:
        if (part.operator, part.options) != (parts[0].operator, parts[0].options):
            raise ValueError(
                f"the nodes {node} have different options, so they cannot form one layer: {parts[0].options} and "
                f"{part.options}; convert them one by one"
            )
    return _build(parts)


def _plain(value: Any) -> Any:
    """An attribute with decoded strings."""
    if isinstance(value, bytes):
        return value.decode()
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _check_node(node: onnx.NodeProto, opset: int) -> None:
    """Check the attributes and the numbers of inputs and outputs against the standard."""
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = onnx.IR_VERSION, {"": opset}
    try:
        onnx.checker.check_node(node, context)
    except onnx.checker.ValidationError as error:
        raise ValueError(f"node {node.name!r} does not conform to the ONNX standard: {error}") from error


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """All constants of a graph, by name."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        name = node.output[0] if node.output else ""
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[name] = node.attribute[0].t
        elif node.op_type == "Identity" and node.input and node.input[0] in constants:
            constants[name] = constants[node.input[0]]
    return constants


def _array(constants: Mapping[str, onnx.TensorProto], name: str) -> Array | None:
    """The constant of this name as an array, or None if there is none."""
    if name not in constants:
        return None
    try:
        return np.asarray(numpy_helper.to_array(constants[name]))
    except Exception as error:  # onnx raises errors of many types
        raise ValueError(f"the constant {name!r} of the model cannot be read: {error!r}") from error


def _find(graph: onnx.GraphProto, node: str | Sequence[str] | None) -> list[onnx.NodeProto]:
    """The recurrent nodes of these names."""
    nodes = [one for one in graph.node if one.op_type in _OPERATORS and one.domain in ("", "ai.onnx")]
    listed = ", ".join(f"{one.name!r} ({one.op_type})" for one in nodes) or "none"
    if node is None:
        if len(nodes) != 1:
            raise ValueError(
                f"node must name a recurrent node unless the model has exactly one, got None: the model has {listed}"
            )
        return nodes
    found = []
    for name in [node] if isinstance(node, str) else node:
        fitting = [one for one in nodes if name and name in (one.name, *one.output)]
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
    if not isinstance(layer, layers.Recurrent):
        raise TypeError(f"layer must be an RNN, LSTM or GRU, got {type(layer).__name__}")
    known = "num_layers", "nonlinearity", "reset_after", "reverse", "activations", "clip", "peepholes", "coupled"
    reject(layer, "ONNX", *known)
    newest = max(row[2] for row in helper.VERSION_TABLE)
    if not 7 <= opset <= newest:
        raise ValueError(
            f"opset must be from 7 to {newest}, the newest that onnx {onnx.__version__} knows, got {opset}"
        )
    op_type = saving.kind(layer).__name__
    operator, D, H = _OPERATORS[op_type], 1 + layer.bidirectional, layer.hidden_size
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
        inputs = [given.get(name, "") for name in _INPUTS]
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
    flags = {name: int(getattr(layer, option)) for name, option in _OPERATORS[op_type].flags.items()}
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


def _weights(layer: layers.Recurrent[Any], operator: _Operator, k: int) -> dict[str, Array]:
    """W, R, B and P of layer k: the inverse of `_parameters`."""
    gates, own, sides = [int(k) for k in np.argsort(operator.gates)], layer.parameters, []
    for suffix in (f"_l{k}", f"_l{k}_reverse")[: 1 + layer.bidirectional]:
        side = {"W": reorder(own["weight_ih" + suffix], gates), "R": reorder(own["weight_hh" + suffix], gates)}
        if layer.bias:
            side["B"] = np.concatenate([reorder(own[bias + suffix], gates) for bias in ("bias_ih", "bias_hh")])
        if layer.peepholes:
            side["P"] = own["peephole" + suffix][_PEEPHOLES].ravel()
        sides.append(side)
    return {name: np.stack([side[name] for side in sides]) for name in sides[0]}
