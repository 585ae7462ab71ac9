"""Recurrent nodes as layers: operators, attributes and weights of ONNX in rnnfast's terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx

from rnnfast import functional, layers, options
from rnnfast._types import Array
from rnnfast.backends._common import positions, reorder


class Operator(NamedTuple):
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


OPERATORS = {
    "RNN": Operator(layers.RNN, "rnn_tanh", "h", {}),
    "LSTM": Operator(layers.LSTM, "lstm", "iofg", {"input_forget": "coupled"}),
    "GRU": Operator(layers.GRU, "gru", "zrn", {"linear_before_reset": "reset_after"}),
}
PEEPHOLES = [0, 2, 1]  # ONNX has i, o, f, and rnnfast i, f, o; the permutation is its own inverse
QUANTIZED = "com.microsoft", "DynamicQuantizeLSTM"  # ONNX Runtime's LSTM, whose first eight inputs are the standard's
SCALES = ("W_scale", "W_zero_point", "R_scale", "R_zero_point")
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P", *SCALES)
WEIGHTS = ("W", "R", "B", "P", *SCALES)
_DIRECTIONS: dict[str, dict[str, Any]] = {
    "forward": {},
    "reverse": {"reverse": True},
    "bidirectional": {"bidirectional": True},
}
# ONNX spells leaky_relu as LeakyRelu. Names are case-insensitive, as in ONNX Runtime.
_FUNCTIONS = {name.replace("_", ""): name for name in options.FUNCTIONS}
_VERSIONS = (7, 14, 22)


class Part(NamedTuple):
    """A node as a layer: its operator, (I, H), options and parameters."""

    operator: Operator
    sizes: tuple[int, int]
    options: dict[str, Any]
    parameters: dict[str, Array]


def check_opset(op_type: str, opset: int) -> None:
    """Raise an error unless rnnfast supports the operator as an opset defines it."""
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


def dequantize(weights: Mapping[str, Array]) -> dict[str, Array]:
    """Return the weights of an LSTM, given those of a DynamicQuantizeLSTM.

    Its W (D, I, 4H) and R (D, H, 4H) are transposed and hold integers, which stand for (integer - zero_point) * scale.
    Scales and zero points have shape (D,) or, with one for each column, (D, 4H).
    """
    plain = {name: array for name, array in weights.items() if name not in SCALES}
    for name in "WR":
        if name not in plain or f"{name}_scale" not in weights:
            raise ValueError(f"DynamicQuantizeLSTM must have the inputs {name} and {name}_scale")
        integers, scale = plain[name], weights[f"{name}_scale"]
        zero = weights.get(f"{name}_zero_point", np.zeros(scale.shape, integers.dtype))
        if integers.ndim != 3 or integers.dtype not in (np.int8, np.uint8):
            raise ValueError(
                f"{name} of DynamicQuantizeLSTM must hold int8 or uint8 and have three axes, got {integers.dtype} of "
                f"shape {integers.shape}"
            )
        shapes = integers.shape[:1], integers.shape[::2]
        if scale.shape not in shapes or zero.shape not in shapes:
            raise ValueError(
                f"{name}_scale and {name}_zero_point of DynamicQuantizeLSTM must have shape {shapes[0]} or "
                f"{shapes[1]}, got {scale.shape} and {zero.shape}"
            )
        scale, zero = (array.astype(np.float32).reshape(len(integers), 1, -1) for array in (scale, zero))
        plain[name] = np.ascontiguousarray(((integers.astype(np.float32) - zero) * scale).transpose(0, 2, 1))
    return plain


def read(op_type: str, attributes: Mapping[str, Any], weights: Mapping[str, Array], dtype: Any) -> Part:
    """Check the attributes and weights of a node, and translate them to those of a layer."""
    operator = OPERATORS[op_type]
    W, R, B, P = (weights.get(name) for name in WEIGHTS[:4])
    if W is None or R is None:
        raise ValueError(f"{op_type} has no input {'W' if W is None else 'R'}: both W and R are required")
    if dtype not in (np.float32, np.float64):
        raise NotImplementedError(
            f"{op_type} of {dtype} is not supported: cast inputs and weights to float32 or float64"
        )
    direction = attributes.get("direction") or "forward"
    if direction not in _DIRECTIONS:
        raise ValueError(f"direction of {op_type} must be one of {', '.join(_DIRECTIONS)}, got {direction!r}")
    for name, weight in (("W", W), ("R", R)):
        if weight.ndim != 3:
            raise ValueError(f"{name} of {op_type} must have three axes, got shape {weight.shape}")
    D, G = 2 if direction == "bidirectional" else 1, len(operator.order)
    I, H = W.shape[-1], attributes.get("hidden_size") or R.shape[-1]
    shapes = {"W": (D, G * H, I), "R": (D, G * H, H), "B": (D, 2 * G * H), "P": (D, 3 * H)}
    for name, shape in shapes.items():
        array = weights.get(name)
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
    return Part(operator, (I, H), chosen, _parameters(operator, W, R, B, P))


def _activations(op_type: str, attributes: Mapping[str, Any], directions: int) -> tuple[Any, ...]:
    """The option `activations` of a layer. Values of alpha and beta go, in order, to the functions that take them."""
    plain = options.DEFAULTS[OPERATORS[op_type].cell]
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


def _parameters(operator: Operator, W: Array, R: Array, B: Array | None, P: Array | None) -> dict[str, Array]:
    parameters = {}
    for d, suffix in enumerate(("_l0", "_l0_reverse")[: len(W)]):
        named = {"weight_ih": W[d], "weight_hh": R[d]}
        if B is not None:
            named["bias_ih"], named["bias_hh"] = np.split(B[d], 2)
        parameters.update({name + suffix: reorder(array, operator.gates) for name, array in named.items()})
        if P is not None:
            parameters["peephole" + suffix] = P[d].reshape(3, -1)[PEEPHOLES]
    return parameters


def build(parts: Sequence[Part]) -> layers.Recurrent[Any]:
    """A layer from one node, or from several stacked nodes."""
    first = parts[0]
    layer = first.operator.layer(*first.sizes, num_layers=len(parts), init=None, **first.options)
    parameters = {}
    for k, part in enumerate(parts):
        parameters.update({name.replace("_l0", f"_l{k}"): array for name, array in part.parameters.items()})
    layer.load_state_dict(parameters)
    return layer
