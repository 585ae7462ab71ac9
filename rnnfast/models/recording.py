"""Recording of a forward pass: the values in it, and the operations that backward reverses.

While a model is recorded, its ``call`` runs on a copy of the model, which holds `RecordedLayer` in place of layers, and
on `Value` in place of arrays. Each call of such a layer, and each operation with a value, computes its result at once,
and appends to the record a function that propagates gradients from the results to the operands.

These functions know values by their indices in the record. A value refers to its record, so a function that kept a
value would be in a reference cycle, and the memory of the forward pass would not be freed with its tape.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn

import numpy as np

from rnnfast._types import Array
from rnnfast.layers.base import Layer

__all__ = ["Record", "RecordedLayer", "Sums", "Value", "arrays_of", "detach", "positional"]


class Record:
    """The operations of a forward pass, in order, and the shapes and dtypes of the values in it, by index."""

    def __init__(self) -> None:
        self.operations: list[Callable[[Sums], None]] = []
        self.shapes: list[tuple[int, ...]] = []
        self.dtypes: list[np.dtype[Any]] = []

    def wrap(self, result: Any) -> Any:
        """Return a new value for an array, or a tuple of values for a tuple of arrays."""
        if isinstance(result, tuple):
            return tuple(map(self.wrap, result))
        self.shapes.append(result.shape)
        self.dtypes.append(result.dtype)
        return Value(self, len(self.shapes) - 1, result)

    def index(self, value: Any) -> Any:
        """Return the index of a value, or a tuple of indices for a tuple or list; None for what is not a value."""
        if isinstance(value, Value):
            if value.record is not self:
                raise ValueError("call of a model used a value of an earlier forward pass: keep its array instead")
            return value.index
        return tuple(map(self.index, value)) if isinstance(value, (tuple, list)) else None

    def backward(self, outputs: Any, gradients: Any) -> Sums:
        """Propagate gradients from the outputs of the pass, which are given by index."""
        sums = Sums(self)
        with np.errstate(all="ignore"):  # infinities and NaN are valid data
            sums.add(outputs, gradients)
            for propagate in reversed(self.operations):
                propagate(sums)
        return sums


class Sums:
    """Sums of gradients: of each value of a record by index, and of the parameters by name."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._totals: list[Array | None] = [None] * len(record.shapes)
        self._owned = [False] * len(record.shapes)  # whether nothing else refers to a total
        self.parameters: dict[str, Array] = {}

    def of(self, index: int) -> Array | None:
        """Return the total of a value, or None if it is 0."""
        return self._totals[index]

    def take(self, index: Any) -> Any:
        """Return the total of a value and free it, because all operations with the value have been reversed."""
        if isinstance(index, tuple):
            totals = tuple(map(self.take, index))
            return None if all(total is None for total in totals) else totals
        if index is None:
            return None
        total, self._totals[index] = self._totals[index], None
        return total

    def zeros(self, index: int) -> Array:
        """Return zeros in place of the total of a value."""
        return np.zeros(self._record.shapes[index], self._record.dtypes[index])

    def add(self, index: Any, gradient: Any) -> None:
        """Add a gradient to the total of a value. What is not a value, with the index None, needs none."""
        if index is None or gradient is None:
            return
        if isinstance(index, tuple):
            for member, part in zip(index, gradient, strict=True):
                self.add(member, part)
            return
        total, dtype = self._totals[index], self._record.dtypes[index]
        if total is None:
            self._totals[index] = np.asarray(gradient, dtype)
        elif self._owned[index]:
            total += gradient
        else:
            self._totals[index], self._owned[index] = np.asarray(total + gradient, dtype), True

    def add_at(self, index: int, elements: Any, gradient: Array) -> None:
        """Add a gradient to some elements of the total of a value."""
        before = self._totals[index]
        total = before
        if total is None or not self._owned[index]:
            total = self.zeros(index) if total is None else total.copy()
            self._totals[index], self._owned[index] = total, True
        if _may_repeat(elements):
            np.add.at(total, elements, gradient)
        elif before is None:
            total[elements] = gradient
        else:
            total[elements] += gradient

    def add_parameters(self, prefix: str, gradients: dict[str, Array]) -> None:
        for name, gradient in gradients.items():
            if prefix + name in self.parameters:
                self.parameters[prefix + name] += gradient
            else:
                self.parameters[prefix + name] = gradient


def _fixed_index(index: Any, top: bool = True) -> Any:
    """Return an index in which sequences are arrays, which the caller cannot change."""
    if isinstance(index, tuple) and top:
        return tuple(_fixed_index(one, False) for one in index)
    return np.array(index) if isinstance(index, (np.ndarray, list, tuple, range)) else index


def _may_repeat(index: Any) -> bool:
    """Return whether an index may select an element more than once."""
    members = index if isinstance(index, tuple) else (index,)
    return any(isinstance(one, np.ndarray) and one.ndim > 0 and one.dtype.kind in "iu" for one in members)


def _summed_to(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum the gradient of a broadcast operand over the axes along which it was repeated."""
    extra = gradient.ndim - len(shape)
    axes = *range(extra), *(extra + k for k, size in enumerate(shape) if size == 1 != gradient.shape[extra + k])
    return gradient.sum(axis=axes, keepdims=True).reshape(shape) if axes else gradient


_REMEDY = (
    "use layers that are attributes of the model (such as rnnfast.Activation), +, -, * and / with a constant divisor, "
    "indexing, sum, mean, reshape, swapaxes, numpy.concatenate and numpy.stack; rnnfast.models.detach returns the "
    "array, through which no gradient flows"
)

_COMPARISONS = (np.greater, np.greater_equal, np.less, np.less_equal, np.equal, np.not_equal)
# For each ufunc: the gradients of both operands, given the gradient of the result and the operands.
_BINARY: dict[Any, Any] = {
    np.add: (lambda d, _a, _b: d, lambda d, _a, _b: d),
    np.subtract: (lambda d, _a, _b: d, lambda d, _a, _b: -d),
    np.multiply: (lambda d, _a, b: d * b, lambda d, a, _b: d * a),
    np.true_divide: (lambda d, _a, b: d / b, None),
}


class Value(np.lib.mixins.NDArrayOperatorsMixin):
    """An array that depends on the input or the parameters of a model, while its ``forward`` runs ``call``.

    It supports the operations whose gradients a model derives; any other raises TypeError. Comparisons return plain
    arrays, as :func:`detach` does.
    """

    __slots__ = ("array", "index", "record")

    def __init__(self, record: Record, index: int, array: Array) -> None:
        self.record = record
        self.index = index
        self.array = array

    shape = property(lambda self: self.array.shape)
    ndim = property(lambda self: self.array.ndim)
    dtype = property(lambda self: self.array.dtype)
    size = property(lambda self: self.array.size)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a value that a model records has no {name!r}: {_REMEDY}")

    def __len__(self) -> int:
        return len(self.array)

    def __repr__(self) -> str:
        return f"<value of shape {self.shape} in a recorded forward pass>"

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(f"a value that a model records cannot become a plain array: {_REMEDY}")

    def __bool__(self) -> NoReturn:
        raise TypeError(f"a value that a model records has no truth value: {_REMEDY}")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if method == "__call__" and not options:
            if ufunc in _COMPARISONS:
                return ufunc(*map(arrays_of, inputs))
            if ufunc is np.negative:
                own = self.index
                return self._derived(-self.array, lambda sums, gradient: sums.add(own, -gradient))
            if ufunc in _BINARY and not (ufunc is np.true_divide and isinstance(inputs[1], Value)):
                return self._combine(ufunc, *inputs)
        if "out" in options:
            raise TypeError("a value that a model records cannot be changed in place: write h = h + x, not h += x")
        raise TypeError(f"numpy.{ufunc.__name__} cannot be applied to a value that a model records: {_REMEDY}")

    def __array_function__(self, function: Any, _types: Any, arguments: Any, options: Any) -> Any:
        if function in (np.concatenate, np.stack):
            return self._join(function, *arguments, **options)
        raise TypeError(f"numpy.{function.__name__} cannot be applied to a value that a model records: {_REMEDY}")

    def _combine(self, ufunc: Any, a: Any, b: Any) -> Value:
        # Constants are copied, because the caller may change them before backward.
        one, other = (x.array if isinstance(x, Value) else np.array(x) if np.ndim(x) else x for x in (a, b))
        indices = self.record.index((a, b))

        def propagate(sums: Sums, gradient: Array) -> None:
            for index, operand, derive in zip(indices, (one, other), _BINARY[ufunc], strict=True):
                if index is not None:
                    sums.add(index, _summed_to(derive(gradient, one, other), operand.shape))

        with np.errstate(all="ignore"):
            return self._derived(ufunc(one, other), propagate)

    def _join(self, function: Any, members: Any, axis: int = 0) -> Value:
        members = tuple(members)
        if axis is None:
            raise TypeError("axis must be an integer in the call of a model, got None")
        arrays = [m.array if isinstance(m, Value) else np.asarray(m) for m in members]
        indices, ends = self.record.index(members), np.cumsum([array.shape[axis] for array in arrays[:-1]])

        def propagate(sums: Sums, gradient: Array) -> None:
            if function is np.stack:
                parts = list(np.moveaxis(gradient, axis, 0))
            else:
                parts = np.split(gradient, ends, axis=axis)
            sums.add(indices, parts)

        return self._derived(function(arrays, axis=axis), propagate)

    def __getitem__(self, index: Any) -> Value:
        if any(isinstance(one, Value) for one in (index if isinstance(index, tuple) else (index,))):
            raise TypeError(f"an index cannot be a value that a model records: {_REMEDY}")
        own, index = self.index, _fixed_index(index)
        return self._derived(np.asarray(self.array[index]), lambda sums, gradient: sums.add_at(own, index, gradient))

    def sum(self, axis: Any = None, keepdims: bool = False) -> Value:
        """Sum over axes, as ``numpy.ndarray.sum`` does."""
        return self._reduced(self.array.sum(axis=axis, keepdims=keepdims), axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Value:
        """Average over axes, as ``numpy.ndarray.mean`` does."""
        return self._reduced(self.array.mean(axis=axis, keepdims=keepdims), axis, keepdims, mean=True)

    def _reduced(self, result: Any, axis: Any, keepdims: bool, mean: bool = False) -> Value:
        own, shape, result = self.index, self.shape, np.asarray(result)
        count = self.size / result.size if mean and result.size else 1

        def propagate(sums: Sums, gradient: Array) -> None:
            whole = gradient if keepdims or axis is None else np.expand_dims(gradient, axis)
            sums.add(own, np.broadcast_to(whole / count if mean else whole, shape))

        return self._derived(result, propagate)

    def reshape(self, *shape: Any) -> Value:
        """Return the elements in another shape, as ``numpy.ndarray.reshape`` does."""
        own, before = self.index, self.shape
        return self._derived(self.array.reshape(*shape), lambda sums, gradient: sums.add(own, gradient.reshape(before)))

    def swapaxes(self, axis1: int, axis2: int) -> Value:
        """Exchange two axes, as ``numpy.ndarray.swapaxes`` does."""
        own = self.index
        return self._derived(
            self.array.swapaxes(axis1, axis2), lambda sums, gradient: sums.add(own, gradient.swapaxes(axis1, axis2))
        )

    def _derived(self, array: Array, propagate: Callable[[Sums, Array], None]) -> Value:
        """Return the value of a result whose gradient `propagate` adds to those of the operands."""
        result: Value = self.record.wrap(array)
        index = result.index

        def run(sums: Sums) -> None:
            gradient = sums.take(index)
            if gradient is not None:
                propagate(sums, gradient)

        self.record.operations.append(run)
        return result


def detach(value: Any) -> Array:
    """Return the array of a value in ``call`` of a model. No gradient flows through it.

    Parameters
    ----------
    value : Value or array_like
        In inference, ``call`` has arrays, which are returned as they are.

    Returns
    -------
    ndarray
        Read-only if it comes from a value.
    """
    if not isinstance(value, Value):
        return np.asarray(value)
    array = value.array.view()
    array.flags.writeable = False
    return array


def arrays_of(value: Any) -> Any:
    """Return the array of a value, or a tuple or list with the arrays of its values; anything else as it is."""
    if isinstance(value, Value):
        return value.array
    return type(value)(map(arrays_of, value)) if type(value) in (tuple, list) else value


@cache
def positional(method: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the positional parameters of a method in a class, without self."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(method).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)[1:]


class RecordedLayer:
    """A layer in a recorded forward pass. Its calls are in training mode."""

    def __init__(self, layer: Layer, record: Record, prefix: str) -> None:
        self._layer = layer
        self._record = record
        self._prefix = prefix

    # So that isinstance works in the call of a model.
    __class__ = property(lambda self: type(self._layer))

    def __getattr__(self, name: str) -> Any:
        if name in ("forward", "backward"):
            raise AttributeError(f"in the call of a model, layers are called: layer(x), not layer.{name}(x)")
        if name in ("parameters", "state_dict"):
            raise AttributeError(f"{name} of a layer cannot be used in the call of a model: they would get no gradient")
        return getattr(self._layer, name)

    def __repr__(self) -> str:
        return repr(self._layer)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        layer: Any = self._layer
        record, prefix = self._record, self._prefix
        *results, tape = layer.forward(*map(arrays_of, inputs), **{name: arrays_of(o) for name, o in options.items()})
        outputs = record.wrap(tuple(results))
        names, ends = positional(type(layer).forward), record.index(outputs)
        origins = dict(zip(names, map(record.index, inputs), strict=False))
        origins.update((name, record.index(option)) for name, option in options.items())

        def propagate(sums: Sums) -> None:
            gradients = [sums.take(end) for end in ends]
            if all(gradient is None for gradient in gradients):
                return
            found = layer.backward(tape, *gradients)
            sums.add_parameters(prefix, found.parameters)
            if names[1:] == ("state",):
                sums.add(origins[names[0]], found.x)
                sums.add(origins.get("state"), found.state)
                sums.add(origins.get("reset_state"), found.reset_state)
            else:
                # Several inputs have a tuple of gradients.
                for name, gradient in zip(names, found.x if len(names) > 1 else (found.x,), strict=True):
                    sums.add(origins[name], gradient)

        record.operations.append(propagate)
        return outputs[0] if len(outputs) == 1 else outputs
