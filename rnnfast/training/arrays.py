"""Validation of arrays and of mappings from names to arrays, shared by the modules of this package."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .. import _core, arguments
from .._types import Array, Arrays
from ..names import require_distinct

# Elements that a norm processes at a time: they fit in the L2 cache.
CHUNK = 32768


def boolean(name: str, value: Any) -> Array:
    """Convert `value` to an array, which must be boolean."""
    array = arguments.array(name, value)
    if array.dtype != bool:
        raise TypeError(f"{name} must be boolean, with True at valid positions, got dtype {array.dtype}")
    return array


def integers(name: str, value: Any) -> Array:
    """Convert `value` to an array, which must hold integers."""
    array = arguments.array(name, value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    return array


def require_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...], source: str) -> None:
    """Raise unless `shape` is `expected`, which is the value of the expression `source`."""
    if shape != expected:
        raise ValueError(f"{name} must have shape {expected}, equal to {source}, got shape {shape}")


def sum_of_squares(arrays: Iterable[Array]) -> tuple[float, int]:
    """Sum the squares of all elements in float64. Return (total, exponent), which stands for ``total * 4**exponent``.

    The total neither overflows nor underflows.
    """
    arrays = list(arrays)
    total = sum(_sum_of_squares(array, 0) for array in arrays)
    if 2.0**-900 < total < math.inf or math.isnan(total):
        return total, 0
    largest = max((max(float(array.max()), -float(array.min())) for array in arrays if array.size), default=0.0)
    exponent = math.frexp(largest)[1]
    return sum(_sum_of_squares(array, exponent) for array in arrays), exponent


def _sum_of_squares(array: Array, exponent: int) -> float:
    """Sum the squares of all elements times ``2**-exponent``, chunk by chunk."""
    chunks = np.nditer(
        array, ["external_loop", "buffered", "zerosize_ok"], ["readonly"], op_dtypes=[np.float64], buffersize=CHUNK
    )
    total = 0.0
    for chunk in chunks:
        scaled = np.ldexp(chunk, -exponent) if exponent else chunk
        # einsum, because a dot product would start BLAS threads, which compete with rnnfast's threads for the cores.
        total += float(np.einsum("i,i->", scaled, scaled))
    return total


def float_arrays(argument: str, given: Any) -> dict[str, Array]:
    """Return float32 or float64 arrays by name: those of a mapping, of a layer or gradients, or of a list of these.

    Names from a list start with the index in it, as in "0.weight".
    """
    if not is_list(given):
        return _of_one(argument, given)
    joined: dict[str, Array] = {}
    for index, member in enumerate(given):
        arrays = _of_one(f"{argument}[{index}]", member)
        twin = next((k for k in range(index) if given[k] is member), None)
        if twin is not None:
            raise ValueError(f"{argument}[{index}] is {argument}[{twin}] again: list each layer once")
        joined.update((f"{index}.{name}", array) for name, array in arrays.items())
    return joined


def is_list(given: Any) -> bool:
    """Return whether the arguments of an optimizer are a list; gradients are a tuple, but have parameters."""
    return isinstance(given, (list, tuple)) and not hasattr(given, "parameters")


def _of_one(argument: str, given: Any) -> dict[str, Array]:
    mapping = given if isinstance(given, Mapping) else getattr(given, "parameters", None)
    if not isinstance(mapping, Mapping):
        raise TypeError(
            f"{argument} must be a mapping from names to arrays, a layer or gradients, whose attribute parameters is "
            f"one, or a list of these, got a {type(given).__name__}"
        )
    for name, array in mapping.items():
        if not isinstance(array, np.ndarray) or array.dtype not in arguments.DTYPES:
            came = f"an array of {array.dtype}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
            raise TypeError(f"{argument}[{name!r}] must be a NumPy array of float32 or float64, got {came}")
        if type(array) is not np.ndarray:
            arguments.refuse_masked(f"{argument}[{name!r}]", array)
    require_distinct(argument, mapping)
    return dict(mapping)


def require_disjoint(argument: str, arrays: Arrays) -> None:
    """Raise if two of the arrays share memory."""
    values = list(arrays.values())
    for i, j in _core.overlaps(values):
        names = list(arrays)
        # Ranges of bytes overlap. Whether elements do may be hard to determine, so the effort is limited.
        if np.may_share_memory(values[i], values[j], max_work=10_000):  # type: ignore[arg-type]  # NumPy takes any int
            raise ValueError(
                f"{argument}[{names[i]!r}] and {argument}[{names[j]!r}] must not share memory: pass what they share "
                "once, and gradients in arrays of their own"
            )


def require_writeable(argument: str, arrays: Arrays) -> None:
    """Raise if one of the arrays is read-only."""
    for name, array in arrays.items():
        if not array.flags.writeable:
            raise ValueError(
                f"{argument}[{name!r}] must be writeable, but is read-only (the arrays of a frozen layer are: call the "
                "layer's unfreeze(), or leave them out)"
            )


def require_match(argument: str, arrays: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless the arrays have exactly the given names and shapes."""
    if arrays.keys() != shapes.keys():
        missing, extra = sorted(shapes.keys() - arrays.keys()), sorted(arrays.keys() - shapes.keys())
        lists = [f"{words} {', '.join(names)}" for words, names in (("lacks", missing), ("also has", extra)) if names]
        raise ValueError(f"{argument} must have the names {', '.join(shapes)}, but it {' and '.join(lists)}")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{argument}[{name!r}] must have shape {shape}, got shape {arrays[name].shape}")


def matching(argument: str, given: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Return the arrays of `float_arrays`, which must have the given names and shapes."""
    arrays = float_arrays(argument, given)
    try:
        require_match(argument, arrays, shapes)
    except ValueError:
        if is_list(given):
            for index in range(len(given)):  # to name the member that is wrong
                prefix = f"{index}."
                expected = {name.removeprefix(prefix): shapes[name] for name in shapes if name.startswith(prefix)}
                own = {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
                if expected:
                    require_match(f"{argument}[{index}]", own, expected)
        raise
    return arrays


def load_state(arrays: Arrays, count_name: str, count: Array, own: Mapping[str, Array]) -> None:
    """Copy a number of steps and arrays from a state dict. If this raises, nothing is changed."""
    if not isinstance(arrays, Mapping):
        raise TypeError(f"arrays must be a mapping from names to arrays, got a {type(arrays).__name__}")
    given = {name: arguments.array(f"arrays[{name!r}]", array) for name, array in arrays.items()}
    require_match("arrays", given, {count_name: (), **{name: array.shape for name, array in own.items()}})
    steps = given.pop(count_name)
    if steps.dtype.kind not in "iu":
        raise TypeError(f"arrays[{count_name!r}] must be an integer, got dtype {steps.dtype}")
    if steps < 0:
        raise ValueError(f"arrays[{count_name!r}] must be at least 0, got {steps}")
    float_arrays("arrays", given)
    values = [np.array(given[name], array.dtype, order="C") for name, array in own.items()]
    _core.assign([count, *own.values()], [steps.astype(np.int64), *values])


def layers_of(model: Any) -> dict[str, Any]:
    """Return the layers of a model by name; a layer is its own, under the name ""."""
    return dict(model.named_layers()) if hasattr(model, "named_layers") else {"": model}
