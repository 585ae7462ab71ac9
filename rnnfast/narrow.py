"""Weights in fewer bytes: the values that frozen layers and their files can hold in place of float32.

The kernels round weights by the same rules (csrc/packing.h). Rounding twice changes nothing, so a layer that is saved
and loaded computes the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import arguments
from ._types import Array

# The arguments of freeze, weights and activations, and what the kernels call them together. Layers without products
# treat the last two alike.
KINDS = {
    ("float32", "float32"): "full",
    ("bfloat16", "float32"): "bfloat16",
    ("int8", "float32"): "int8",
    ("int8", "int8"): "int8_products",
}
# About 3.38e38. It is 127 times a scale, so rounding never exceeds it.
LARGEST = float.fromhex("0x1.fc8eep+127")


def is_matrix(name: str) -> bool:
    """Return whether the parameter of this name is stored in fewer bytes: all weights, but no bias."""
    return str(name).rpartition(".")[2].startswith("weight")


def require_finite(parameters: Mapping[str, Array]) -> None:
    """Raise an error if a weight cannot be rounded."""
    for name, array in parameters.items():
        with np.errstate(all="ignore"):
            is_finite = not is_matrix(name) or bool((np.abs(array) <= LARGEST).all())
        if not is_finite:
            raise ValueError(
                f"{name} must be finite and at most {LARGEST:.3g} in magnitude to be stored in fewer bytes"
            )


def require_full(kind: str, layer: Any) -> None:
    """Raise an error if a layer that is to be trained is frozen with weights in fewer bytes."""
    if kind != "full":
        weights, activations = arguments_of(kind)
        frozen = f"weights={weights!r}" + (f", activations={activations!r}" if activations != "float32" else "")
        raise ValueError(f"this {type(layer).__name__} is frozen with {frozen}: call unfreeze() to train it")


def encode(kind: str, weight: Array) -> dict[str, Array]:
    """Return what represents a weight, (rows, columns): arrays by the ends of their names.

    "bfloat16": the upper halves of the elements, rounded to nearest even. "int8": integers from -127 to 127, and one
    scale per row, that of its largest element divided by 127, rounded up to 16 significant bits, with which all
    multiples are exact in float32. A scale below 2**-126 is replaced by 0, as are the weights of its row.
    """
    if kind == "bfloat16":
        bits = weight.view(np.uint32)
        return {"": ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)}
    with np.errstate(all="ignore"):  # subnormal weights are valid
        largest = np.abs(weight).max(axis=1, initial=0) / np.float32(127)
        scale = (largest.view(np.uint32) + np.uint32(0xFF) & np.uint32(0xFFFFFF00)).view(np.float32)
        scale[largest < np.finfo(np.float32).tiny] = 0  # it would have fewer bits
        codes = weight / _repeated(
            np.where(scale > 0, scale, np.float32(1)), weight
        )  # 0 / 1 is 0, and so is a subnormal, rounded
    return {"": np.rint(codes, out=codes).astype(np.int8), ".scale": scale}


def decode(kind: str, parts: Mapping[str, Array]) -> Array:
    """Return the float32 values that the result of `encode` represents. They are exact."""
    if kind == "bfloat16":
        return (parts[""].astype(np.uint32) << 16).view(np.float32)
    values: Array = parts[""].astype(np.float32)
    with np.errstate(all="ignore"):
        values *= _repeated(parts[".scale"], values)
    return values


def _repeated(scale: Array, like: Array) -> Array:
    """Return the scales of the rows of an array for each of its elements.

    Broadcasting would need no memory for them, but NumPy crashes where it cannot allocate the iterator.
    """
    return np.repeat(scale, like.shape[-1]).reshape(like.shape)


def decode_exactly(kind: str, name: str, parts: Mapping[str, Array]) -> Array:
    """Return what `decode` does for parts from a file. Raise an error unless they are what `encode` returns."""
    values = decode(kind, parts)
    with np.errstate(all="ignore"):
        is_finite = bool((np.abs(values) <= LARGEST).all())
    if not is_finite or not np.array_equal(decode(kind, encode(kind, values)), values):
        raise ValueError(f"its array {name!r} does not hold weights that were rounded to {kind}")
    return values


def stored(kind: str, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return the shapes and dtypes of the result of `encode`."""
    if kind == "bfloat16":
        return {"": (shape, np.dtype(np.uint16))}
    return {"": (shape, np.dtype(np.int8)), ".scale": (shape[:1], np.dtype(np.float32))}


def kind_of(weights: Any, activations: Any, dtype: Any, owner: str) -> str:
    """Check the arguments of freeze, of which None is float32, and return what the kernels call them together."""
    known = [list(dict.fromkeys(one)) for one in zip(*KINDS, strict=True)]
    weights = "float32" if weights is None else arguments.choice("weights", weights, tuple(known[0]))
    activations = "float32" if activations is None else arguments.choice("activations", activations, tuple(known[1]))
    if (weights, activations) not in KINDS:
        raise ValueError(f"activations={activations!r} needs weights='int8', got weights={weights!r}")
    if dtype != np.float32:
        raise ValueError(f"weights={weights!r} needs a layer of dtype float32, but this {owner} has dtype {dtype}")
    return KINDS[weights, activations]


def arguments_of(kind: str) -> tuple[str, str]:
    """Return the arguments of freeze that have this kind: weights and activations."""
    return next(given for given, name in KINDS.items() if name == kind)
