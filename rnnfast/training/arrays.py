"""Validation of arrays and of mappings from names to arrays, shared by the modules of this package."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .. import arguments
from .._types import Array, Arrays

# Elements that a norm processes at a time: they fit in the L2 cache.
CHUNK = 32768


def real(name: str, value: Any) -> Array:
    """Convert `value` to an array of native float32 or float64; real dtypes other than these become float64."""
    array = arguments.array(name, value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    native = array.dtype.newbyteorder("=")
    return array.astype(native if native in arguments.DTYPES else np.float64, copy=False)


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


def float_arrays(argument: str, mapping: Any) -> dict[str, Array]:
    """Return the mapping as a dict after checking that its values are float32 or float64 arrays."""
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{argument} must be a mapping from names to arrays, got a {type(mapping).__name__}")
    for name, array in mapping.items():
        if not isinstance(array, np.ndarray) or array.dtype not in arguments.DTYPES:
            came = f"an array of {array.dtype}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
            raise TypeError(f"{argument}[{name!r}] must be a NumPy array of float32 or float64, got {came}")
        arguments.refuse_masked(f"{argument}[{name!r}]", array)
    return dict(mapping)


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
    missing, extra = sorted(shapes.keys() - arrays.keys()), sorted(arrays.keys() - shapes.keys())
    if missing or extra:
        lists = [f"{words} {', '.join(names)}" for words, names in (("lacks", missing), ("also has", extra)) if names]
        raise ValueError(f"{argument} must have the names {', '.join(shapes)}, but it {' and '.join(lists)}")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{argument}[{name!r}] must have shape {shape}, got shape {arrays[name].shape}")
