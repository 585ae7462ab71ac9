"""Models of guitar amplifiers and effects in JSON: the files of NAM, RTNeural, AIDA-X, Proteus and NeuralPi.

NAM (Neural Amp Modeler, architecture "LSTM")
    ``weights`` is one list. For each layer of the LSTM it holds the matrix (4*H, I + H) of x and h row by row, the bias
    (4*H), and the initial h and c (H each), with torch's order of gates; then the weight (O, H) and the bias (O) of the
    readout. Source: ``NAM/lstm.cpp`` of NeuralAmpModelerCore and ``nam/models/recurrent.py`` of neural-amp-modeler.
RTNeural and AIDA-X
    ``layers`` is a list of layers with Keras's weights: kernel (I, G*H), recurrent kernel (H, G*H), and the bias, which
    is (2, 3*H) for a GRU with reset_after. Gates are i, f, c, o and z, r, c. Source: ``RTNeural/model_loader.h``.
Proteus and NeuralPi (GuitarML)
    ``state_dict`` is that of torch, as nested lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rnnfast import arguments, layers
from rnnfast._types import Array
from rnnfast.layers import saving

from ._common import ACTIVATION_LAYERS, Content, positions, reorder

__all__ = ["read_model"]

FLOAT32 = np.dtype(np.float32)
_GATES: dict[str, tuple[Any, str, str]] = {
    "lstm": (layers.LSTM, "lstm", "ifgo"),
    "gru": (layers.GRU, "gru", "zrn"),
}  # RTNeural's name: the class, its cell, and RTNeural's order of the gates in rnnfast's letters


def read_model(about: Mapping[str, Any]) -> Content | dict[str, Array]:
    """Build the layers that a JSON object describes, or return the arrays that it holds under torch's names."""
    if "architecture" in about:
        return _nam(about)
    if "layers" in about and "in_shape" in about:
        return _rtneural(about)
    inner = about.get("state_dict")
    arrays = {
        name: _array(name, value)
        for name, value in (inner if isinstance(inner, dict) else about).items()
        if isinstance(value, list) and name.rpartition(".")[2].startswith(("weight", "bias"))
    }
    if not arrays:
        raise ValueError(
            f"it is JSON with the names {', '.join(map(repr, list(about)[:9]))}, but neither a model of NAM "
            "(architecture, config, weights) or RTNeural (in_shape, layers) nor arrays under torch's names"
        )
    model = about.get("model_data")
    if isinstance(model, dict) and model.get("model") == "SimpleRNN":
        rec, lin = (_with_prefix(arrays, prefix) for prefix in ("rec.", "lin."))
        parts = {"rec": saving.from_state_dict(rec), "lin": layers.Linear.from_state_dict(lin)}
        return Content("a GuitarML model", parts, {}, _notes(model.get("skip"), {}), True)
    return arrays


def _with_prefix(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _notes(skip: Any, about: Mapping[str, Any]) -> dict[str, str]:
    """Describe what the programs compute around the layers."""
    notes = [f"{name}={about[name]!r} (dB) is not applied" for name in ("in_gain", "out_gain") if about.get(name)]
    notes += ["the program adds the input to the output, which the layers do not"] if skip else []
    return {"": "; ".join(notes)} if notes else {}


def _array(name: str, value: Any) -> Array:
    """Return nested lists of numbers as an array."""
    array: Array = np.asarray(value)  # raises a ValueError where the lists are of different lengths
    if array.dtype.kind not in "fi" or not array.ndim:
        raise ValueError(f"{name} must be nested lists of numbers")
    return arguments.real(name, array, FLOAT32)


def _sizes(about: Any, *names: str, **defaults: int) -> list[int]:
    """Return positive integers from an object."""
    values: list[Any] = [about.get(name, defaults.get(name)) if isinstance(about, dict) else None for name in names]
    for name, value in zip(names, values, strict=True):
        if type(value) is not int or value < 1:
            raise ValueError(f"its config must have a positive integer {name}, got {value!r}")
    return values


def _nam(about: Mapping[str, Any]) -> Content:
    if about["architecture"] != "LSTM":
        raise ValueError(
            f"it is a NAM model of the architecture {about['architecture']!r}, but rnnfast reads only 'LSTM'"
        )
    config = about.get("config")
    I, H, L = _sizes(config, "input_size", "hidden_size", "num_layers")
    [O] = _sizes(config, "out_channels", out_channels=1)
    weights = _array("weights", about.get("weights"))
    # The matrix, the bias and both states of each layer; the readout.
    needed = 4 * H * (I + H) + (L - 1) * 4 * H * 2 * H + L * 6 * H + O * (H + 1)
    if weights.shape != (needed,):
        raise ValueError(
            f"weights has {weights.size} numbers, but an LSTM with input_size={I}, hidden_size={H}, num_layers={L} and "
            f"out_channels={O} needs {needed}"
        )
    parameters: dict[str, Array] = {}
    at = 0
    for k in range(L):
        width = (H if k else I) + H
        matrix, bias, h, c, at = *_split(weights, at, 4 * H * width, 4 * H, H, H), at + 4 * H * width + 6 * H
        matrix = matrix.reshape(4 * H, width)
        parameters |= {f"weight_ih_l{k}": matrix[:, :-H], f"weight_hh_l{k}": matrix[:, -H:], f"bias_ih_l{k}": bias}
        parameters |= {f"bias_hh_l{k}": np.full_like(bias, -0.0), f"h0_l{k}": h, f"c0_l{k}": c}
    weight, bias = _split(weights, at, O * H, O)
    parts = {
        "lstm": layers.LSTM.from_state_dict(parameters),
        "head": layers.Linear.from_state_dict({"weight": weight.reshape(O, H), "bias": bias}),
    }
    return Content("a NAM model", parts, {}, {}, True)


def _split(array: Array, at: int, *sizes: int) -> list[Array]:
    """Return consecutive pieces of an array, from `at` on."""
    return np.split(array[at : at + sum(sizes)], np.cumsum(sizes)[:-1])


def _rtneural(about: Mapping[str, Any]) -> Content:
    listed = about["layers"]
    if not isinstance(listed, list) or not all(isinstance(one, dict) and "type" in one for one in listed):
        raise ValueError("its layers must be a list of objects with a type")
    parts: dict[str, Any] = {}
    left_out = {}
    plain = True
    for k, one in enumerate(listed):
        kind, function = one["type"], one.get("activation") or ""
        name = f"{k}"
        if kind in ("lstm", "gru"):
            parts[name] = _recurrent(k, one)  # RTNeural ignores its activation
            continue
        if kind in ("dense", "time-distributed-dense"):
            parts[name] = _dense(k, one)
            name += ".activation"
        elif kind != "activation":
            left_out[name], plain = f"layer of type {kind!r}", False
            continue
        if function in ACTIVATION_LAYERS:
            parts[name] = layers.Activation(function)  # type: ignore[arg-type]
        elif function:
            left_out[name] = f"activation {function!r}"
            plain = plain and k == len(listed) - 1
    return Content("an RTNeural model", parts, left_out, _notes(about.get("in_skip"), about), plain)


def _weights(k: int, about: Mapping[str, Any], least: int, most: int) -> Iterator[Array]:
    arrays = about.get("weights")
    if not isinstance(arrays, list) or not least <= len(arrays) <= most:
        raise ValueError(f"layers[{k}] of type {about['type']!r} must have {most} arrays of weights")
    return (_array(f"layers[{k}].weights[{j}]", array) for j, array in enumerate(arrays))


def _require(k: int, about: Mapping[str, Any], width: int, *pairs: tuple[Array, tuple[int, ...]]) -> None:
    """Require that arrays have shapes, and that `shape` of the layer ends with the number of its outputs."""
    shape = about.get("shape")
    stated = shape[-1] if isinstance(shape, list) and shape else None
    if stated != width or any(array.shape != needed for array, needed in pairs):
        raise ValueError(
            f"layers[{k}] of type {about['type']!r} has the shape {shape!r:.100} and weights of shapes "
            f"{', '.join(str(array.shape) for array, _ in pairs)}, which do not fit: weights of {width} units are "
            f"{', '.join(str(needed) for _, needed in pairs)}"
        )


def _recurrent(k: int, about: Mapping[str, Any]) -> Any:
    of, cell, order = _GATES[about["type"]]
    kernel, recurrent, bias = _weights(k, about, 3, 3)
    G, H = len(order), len(recurrent)
    I = len(kernel)
    biases = bias if cell == "gru" else np.stack([bias, np.full_like(bias, -0.0)])
    _require(k, about, H, (kernel, (I, G * H)), (recurrent, (H, G * H)), (biases, (2, G * H)))
    named = {"weight_ih_l0": kernel.T, "weight_hh_l0": recurrent.T, "bias_ih_l0": biases[0], "bias_hh_l0": biases[1]}
    return of.from_state_dict({name: reorder(array, positions(cell, order)) for name, array in named.items()})


def _dense(k: int, about: Mapping[str, Any]) -> Any:
    kernel, *bias = _weights(k, about, 1, 2)
    width = kernel.shape[-1]
    _require(k, about, width, (kernel, (len(kernel), width)), *((array, (width,)) for array in bias))
    return layers.Linear.from_state_dict({"weight": kernel.T, **dict(zip(["bias"], bias, strict=False))})
