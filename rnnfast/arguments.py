"""Validation of single arguments. Each function returns the valid value, or raises an error that names the argument.

An error states what is wrong, what was expected, and if it helps, how to fix it.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
import sys
from typing import Any

import numpy as np

from ._types import Array

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
_DEVICES = {2: "cuda", 4: "opencl", 7: "vulkan", 8: "metal", 10: "rocm", 14: "oneapi"}  # from dlpack.h
_PLAIN = {float, int, bool, str, np.ndarray, *np.sctypeDict.values()}  # types without a mask


def size(name: str, value: Any, least: int = 1) -> int:
    """Check an integer that is at least `least`."""
    try:
        size = operator.index(value)
    except TypeError:
        size = None
    if size is None or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if size < least:
        raise ValueError(f"{name} must be at least {least}, got {size}")
    return size


def flag(name: str, value: Any) -> bool:
    """Check a boolean."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def any_number(name: str, value: Any) -> float:
    """Check a number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a number within the range of float64, got a larger one") from None


def fraction(name: str, value: Any) -> float:
    """Check a number from 0 to 1."""
    if not 0 <= (fraction := any_number(name, value)) <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {value!r}")
    return fraction


def number(name: str, value: Any, below: float | None = None, positive: bool = False) -> float:
    """Check a number that is at least 0, or above 0 if `positive`, and below `below` if that is not None."""
    number = any_number(name, value)
    if not number >= 0 or (positive and number == 0) or (below is not None and number >= below):
        bounds = ("above 0" if positive else "at least 0") + ("" if below is None else f" and below {below}")
        raise ValueError(f"{name} must be {bounds}, got {value!r}")
    return number


def choice(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """Check that a value is one of `choices`."""
    if not (value is None or isinstance(value, str)) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def dtype(value: Any) -> np.dtype[Any]:
    """Check the option dtype; return the instance that NumPy uses for native arrays of this dtype."""
    with contextlib.suppress(TypeError, ValueError):
        if value is not None and np.dtype(value) in DTYPES:
            return DTYPES[DTYPES.index(np.dtype(value))]
    raise ValueError(f"dtype must be numpy.float32 or numpy.float64, got {value!r}")


def generator(rng: Any) -> np.random.Generator:
    """Check the option rng: None, a seed, or a Generator, which is then shared with the caller."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(f"rng must be None, a seed or a numpy.random.Generator, got {rng!r}") from error


def array(name: str, value: Any) -> Array:
    """Return `value` as an array, without a copy if it supports the buffer protocol, or DLPack on the CPU.

    Subclasses become plain arrays, so ``numpy.matrix`` stays two-dimensional, and quantities lose their units.

    Raises
    ------
    ValueError
        If its elements cannot be combined into an array, or if some of them are masked.
    TypeError
        If its library does not provide access to its memory.
    """
    if type(value) is np.ndarray:
        return value
    refuse_masked(name, value)
    try:
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        result = np.asanyarray(value)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as an array: {error}") from error
    except (TypeError, RuntimeError, BufferError) as error:
        raise TypeError(f"{name} cannot be read as an array: {_obstacle(value) or error}") from error
    refuse_masked(name, result)  # what the method __array__ of another class returned
    return np.asarray(result)


def refuse_masked(name: str, value: Any) -> None:
    """Raise if `value` is a masked array with masked elements, or a list that contains one.

    NumPy would read what lies under the mask.
    """
    if _is_masked(value):
        raise ValueError(
            f"{name} has masked elements, but every element must have a value: fill them, for example with filled(0) "
            "of a NumPy masked array, or leave them out. Layers have the argument mask to exclude steps"
        )


def refuse_result(name: str, value: Any) -> None:
    """Raise if `value` is what a recurrent layer returns: (y, state) or (y, state, tape), or an LSTM's state (h, c).

    NumPy would stack h and c, which have one shape.
    """
    if isinstance(value, tuple) and len(value) in (2, 3) and isinstance(value[0], np.ndarray):
        raise TypeError(
            f"{name} is a tuple, such as the (y, state) that a recurrent layer returns, but must be one array: pass "
            "its first element, y, as in readout(lstm(x)[0])"
        )


def _is_masked(value: Any, depth: int = 64) -> bool:
    if isinstance(value, (list, tuple)):
        plain = depth == 0 or set(map(type, value)) <= _PLAIN
        return not plain and any(_is_masked(member, depth - 1) for member in value)
    # Not isinstance, because importing numpy.ma takes time, and because there are other masked arrays, as in Astropy.
    mask = getattr(value, "mask", None)
    if isinstance(mask, np.ndarray) and mask.dtype.names:  # of a structured array, with a boolean for each field
        return b"\1" in mask.tobytes()
    return isinstance(mask, (np.ndarray, np.bool_, bool)) and bool(np.any(mask))


def _obstacle(value: Any) -> str | None:
    """Return why a library does not provide access to the memory of its array, and the remedy, if known."""
    if getattr(value, "requires_grad", False) is True:
        return "it requires grad, but rnnfast would not propagate one: pass x.detach(), or use rnnfast.backends.torch"
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":
        return "NumPy has no bfloat16: pass x.float()"
    with contextlib.suppress(Exception):  # an error here must not hide the original one
        kind, number = map(int, value.__dlpack_device__())
        if kind != 1:
            device = f"{_DEVICES.get(kind, f'number {kind} of DLPack')}:{number}"
            return f"it is on the device {device}: pass a copy on the CPU, for a torch tensor x.cpu()"
    return None


def real(name: str, value: Any, dtype: np.dtype[Any]) -> Array:
    """Return `value` as an array that the kernels can read, copying it only if necessary.

    Such an array has the native `dtype`, aligned memory, strides of whole elements, and unit stride on the last axis.
    """
    if type(value) is np.ndarray and value.dtype is dtype and value.flags.carray:
        return value
    result = array(name, value)
    if result.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, to be converted to {dtype}, but its dtype is {result.dtype}")
    whole = result.flags.aligned and not any(stride % dtype.itemsize for stride in result.strides)
    if result.dtype != dtype or not whole or result.strides[-1:] != (dtype.itemsize,):
        try:
            result = np.array(result, dtype, order="C")
        except ValueError as error:
            raise ValueError(f"{name} of shape {result.shape} cannot be converted to {dtype}: {error}") from error
    return result if result.dtype is dtype else result.view(dtype)  # its dtype may be another instance


def floating(name: str, value: Any) -> Array:
    """Convert `value` to an array of native float32 or float64; real dtypes other than these become float64."""
    result = array(name, value)
    if result.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got dtype {result.dtype}")
    native = result.dtype.newbyteorder("=")
    return result.astype(native if native in DTYPES else np.float64, copy=False)


def shaped(
    name: str, value: Any, dtype: np.dtype[Any], shape: tuple[int, ...], layout: str = "the shape of the tape's y"
) -> Array | None:
    """Return `value` as `real` does, and check its shape. None, which stands for zeros, remains None."""
    if value is None:
        return None
    array = real(name, value, dtype)
    if array.shape != shape:
        raise ValueError(f"{name} must have {layout} = {shape}, got {array.shape}")
    return array


def pair(name: str, value: Any, members: str) -> tuple[Any, Any]:
    """Check that `value` is a pair, and return its elements. `members` describes the pair."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        got = f"{len(value)} elements" if isinstance(value, (tuple, list)) else type(value).__name__
        raise ValueError(f"{name} must be the pair {members}, got {got}")
    return value[0], value[1]


def countable(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Check that an array of this shape fits into the address space; NumPy's own error would not name the array."""
    if math.prod(shape) > sys.maxsize // 8:
        raise ValueError(f"{name} would have shape {shape}, more bytes than an address can count: use smaller sizes")
    return shape
