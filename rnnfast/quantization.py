"""Measure what storing weights in fewer bytes costs in accuracy and gains in speed: see :meth:`rnnfast.LSTM.freeze`.

Examples
--------
>>> import numpy as np, rnnfast
>>> from rnnfast.quantization import choose, report
>>> model = rnnfast.Sequential(rnnfast.GRU(16, 64, rng=0), rnnfast.Linear(64, 4, rng=1))
>>> x = np.random.default_rng(0).normal(size=(30, 8, 16)).astype(np.float32)
>>> found = report(model, x)
>>> found.modes["bfloat16"].y.largest < found.modes["int8"].y.largest < 0.02
True
>>> list(found.modes["int8"].parts)[:2]  # the gates and layers that lose most
['1.weight', '0.l0 n']
>>> model.freeze(weights=choose(model, x, tolerance=0.02))
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np

from . import arguments, narrow
from ._types import Array, ArrayLike
from .layers import saving
from .layers.base import Layer

__all__ = ["MODES", "Mode", "Report", "Size", "choose", "report"]

MODES = {  # of a report: the arguments of freeze
    weights if activations == "float32" else f"{weights} products": (weights, activations)
    for weights, activations in narrow.KINDS
}
_ROUNDS = 9  # of which the fastest counts
_SECONDS = 0.004  # of one measurement of a time, at least
_STEPS = 32  # steps of x that a stream is timed with, at most
_SHOWN = 6  # parts in the table

Rows = list[tuple[Array, slice]]  # of parameters


class Size(NamedTuple):
    """The size of an array, such as an error: its largest magnitude, and its root mean square.

    Attributes
    ----------
    largest, rms : float
    """

    largest: float
    rms: float


@dataclass(frozen=True, eq=False)
class Mode:
    """What :func:`report` measures for weights that are stored in one way.

    Attributes
    ----------
    bytes : int
        Bytes of all parameters in a file that ``save`` writes, including scales and biases.
    y : Size
        The error of y against float32.
    state : Size or None
        The error of the final state, over all of its arrays; None if a call returns no state.
    seconds : float
        Time of a call with x of the frozen layer, by this process on this machine.
    stream_seconds : float or None
        Time of a step of a stream with one row; None if the layer cannot be streamed.
    parts : dict of str to Size
        The error of y if only one part of the weights is rounded, sorted by its root mean square, the largest first. A
        part is a gate of one layer and direction, ``"l0 i"`` or in a model ``"0.l0_reverse i"``; a projection, ``"l0
        projection"``; or the ``weight`` of a Linear or an Embedding. Empty for float32, and for "int8 products", whose
        weights are those of "int8".
    """

    bytes: int
    y: Size
    state: Size | None
    seconds: float
    stream_seconds: float | None
    parts: dict[str, Size]


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """The result of :func:`report`. Its repr is a table.

    Attributes
    ----------
    layer : str
        The constructor call of the measured layer, or the class of a model.
    shape : tuple of int
        The shape of x.
    y : Size
        The size of y itself in float32.
    state : Size or None
        The size of the final state in float32.
    modes : dict of str to Mode
        For each of "float32", "bfloat16" and "int8", and for "int8 products", which stands for weights="int8" and
        activations="int8".
    """

    layer: str
    shape: tuple[int, ...]
    y: Size
    state: Size | None
    modes: dict[str, Mode]

    def __repr__(self) -> str:
        first = self.modes["float32"]
        table = [["", "bytes", "error of y", "rms"]]
        table[0] += ["error of state", "rms"] if self.state else []
        table[0] += ["time of a call"] + (["of a stream's step"] if first.stream_seconds else [])
        for name, mode in self.modes.items():
            table.append([name, str(mode.bytes), *_texts(mode.y), *_texts(mode.state)])
            for own, full in ((mode.seconds, first.seconds), (mode.stream_seconds, first.stream_seconds)):
                if own and full:
                    table[-1].append(_duration(own) if mode is first else f"{own / full:.2f}x")
        table.append(["size in float32", "", *_texts(self.y), *_texts(self.state)])
        widths = [max(map(len, column)) for column in itertools.zip_longest(*table, fillvalue="")]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        lines.append("rms error of y if only one part is rounded:")
        for name, mode in self.modes.items():
            worst = list(mode.parts.items())[:_SHOWN]
            if worst:
                lines.append(f"{name:10}" + "   ".join(f"{part} {size.rms:.2g}" for part, size in worst))
        return "\n".join([f"Weights of {self.layer} in fewer bytes, x of shape {self.shape}", *lines])


def _duration(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} µs"


def _texts(size: Size | None) -> list[str]:
    return [] if size is None else [f"{value:.3g}" for value in size]


def report(layer: Layer, x: ArrayLike, lengths: ArrayLike | None = None) -> Report:
    """Measure accuracy, size and speed of a layer or model for each way in which its weights can be stored.

    The layer is not changed: copies are measured. Errors are those of this `x`, so pass data that the layer was trained
    for. They are exact and repeatable; times depend on the machine, and on what else runs on it.

    Parameters
    ----------
    layer : RNN, LSTM, GRU, Bidirectional, Linear, Embedding, Sequential or Model
        Of dtype float32, and with weights that are finite. A frozen layer is compared with its float32 parameters.
    x, lengths
        As for a call of the layer. Padding does not count.

    Returns
    -------
    Report

    Raises
    ------
    TypeError
        If `layer` is not a layer, or does not take `lengths`, or as for a call.
    ValueError
        If the layer has no weights that can be stored in fewer bytes, is not of dtype float32, or has a weight that is
        not finite; if `x` has no valid step, or y is not finite; or as for a call.

    Notes
    -----
    Each part of the weights takes a call for each of the two modes, and each time is the best of nine, in which the
    modes take turns. The state of a model is whatever its ``call`` returns after y.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> from rnnfast.quantization import report
    >>> found = report(rnnfast.LSTM(4, 8, rng=0), np.ones((5, 2, 4)))
    >>> [(name, mode.bytes) for name, mode in found.modes.items()]
    [('float32', 1792), ('bfloat16', 1024), ('int8', 896), ('int8 products', 896)]
    >>> print(str(found).splitlines()[0])
    Weights of LSTM(4, 8) in fewer bytes, x of shape (5, 2, 4)
    """
    trial = _Trial(layer, x, lengths)
    frozen = {name: trial.frozen(name) for name in MODES}
    times = _times({name: _calling(trial, one) for name, one in frozen.items()})
    streams = {name: _stepping(trial, one) for name, one in frozen.items()}
    steps = _times({name: step for name, step in streams.items() if step is not None})
    modes = {}
    for name, one in frozen.items():
        y, state = trial.errors(one)
        modes[name] = Mode(_bytes(one), y, state, times[name], steps.get(name), trial.parts(name))
    called = type(layer).__name__ if hasattr(layer, "named_layers") else saving.describe(layer)
    return Report(called, trial.x.shape, *trial.sizes, modes)


def choose(layer: Layer, x: ArrayLike, tolerance: float, lengths: ArrayLike | None = None) -> str:
    """Return the argument `weights` of ``freeze`` that takes the fewest bytes within a tolerance.

    The layer is not changed. Activations stay float32: :func:`report` shows what int8 would cost, and what it would
    gain.

    Parameters
    ----------
    layer, x, lengths
        As for :func:`report`.
    tolerance : float
        The largest error that an element of y may have, at least 0.

    Returns
    -------
    {"float32", "bfloat16", "int8"}
        "float32", which has no error, if no other is within the tolerance.

    Raises
    ------
    TypeError, ValueError
        As for :func:`report`, or if `tolerance` is not a number or is below 0.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> from rnnfast.quantization import choose
    >>> layer, x = rnnfast.GRU(8, 16, rng=0), np.ones((20, 1, 8))
    >>> [choose(layer, x, tolerance) for tolerance in (0, 0.003, 0.1)]
    ['float32', 'bfloat16', 'int8']
    """
    tolerance = arguments.number("tolerance", tolerance)
    trial = _Trial(layer, x, lengths)
    frozen = {name: trial.frozen(name) for name, (_, activations) in MODES.items() if activations == "float32"}
    by_bytes = sorted(frozen, key=lambda name: _bytes(frozen[name]))
    return next(name for name in by_bytes if trial.errors(frozen[name])[0].largest <= tolerance)


class _Trial:
    """A copy of a layer, an input, and the results in float32."""

    def __init__(self, layer: Any, x: Any, lengths: Any) -> None:
        if not isinstance(layer, Layer):
            raise TypeError(f"layer must be a layer or model of rnnfast, got {type(layer).__name__}")
        for part in saving.parts(layer):
            if part.dtype != np.float32:
                raise ValueError(
                    f"layer must have dtype float32, but this {type(part).__name__} has dtype {part.dtype}: load its "
                    "parameters into a layer of dtype float32"
                )
        narrow.require_finite(layer.parameters)
        if lengths is not None and not hasattr(layer, "batch_first"):
            raise TypeError(f"lengths is taken by recurrent layers and models, not by {type(layer).__name__}")
        self.layer = cast("Any", copy.deepcopy(layer))
        if not _parts(self.layer):
            raise ValueError(f"layer must have weights to store in fewer bytes, got {layer!r}")
        self.layer.unfreeze()
        x = arguments.array("x", x)
        self.x = x.astype(np.float32) if x.dtype.kind == "f" else x  # once, not in each call that is timed
        self.options = {} if lengths is None else {"lengths": lengths}
        self.valid: Array | None = None
        outputs = self.layer(self.x, **self.options)  # which validates the lengths
        if lengths is not None:
            turned = self.layer.batch_first and np.ndim(lengths) == 1
            valid = np.less.outer(np.arange(self.x.shape[1 if turned else 0]), lengths)
            self.valid = valid.T if turned else valid
        first = outputs
        while isinstance(first, (tuple, list)):
            first = first[-1] if first is outputs else first[0]
        self.is_batched = np.ndim(first) != 2  # a state, if there is any
        self.exact = self._read(outputs)
        y, _ = self.exact
        if not y.size:
            raise ValueError(f"x must have at least one valid step of one row, got shape {self.x.shape}")
        if not np.isfinite(y).all():
            raise ValueError("y is not finite: x or the biases are not finite, or are too large")

    @property
    def sizes(self) -> tuple[Size, Size | None]:
        """The sizes of y and of the state in float32."""
        y, state = self.exact
        return _size(y), None if state is None else _size(state)

    def frozen(self, mode: str) -> Any:
        """Return a frozen copy."""
        layer = copy.deepcopy(self.layer)
        layer.freeze(*MODES[mode])
        return layer

    def errors(self, layer: Any) -> tuple[Size, Size | None]:
        """Return the errors of y and of the state that another layer computes."""
        (y, state), (exact_y, exact_state) = self._read(layer(self.x, **self.options)), self.exact
        return _size(y - exact_y), None if state is None or exact_state is None else _size(state - exact_state)

    def parts(self, mode: str) -> dict[str, Size]:
        """Return the error of y if only one part is rounded, for each part, the largest first."""
        kind = narrow.KINDS[MODES[mode]]
        if kind in ("full", "int8_products"):
            return {}
        found = {}
        for name, rows in _parts(self.layer).items():
            before = [array[part].copy() for array, part in rows]
            for (array, part), values in zip(rows, before, strict=True):
                array[part] = narrow.decode(kind, narrow.encode(kind, values))
            found[name], _ = self.errors(self.layer)
            for (array, part), values in zip(rows, before, strict=True):
                array[part] = values
        return dict(sorted(found.items(), key=lambda item: -item[1].rms))

    def _read(self, outputs: Any) -> tuple[Array, Array | None]:
        """Return the elements of y at valid steps, and those of the state."""
        y, *state = outputs if isinstance(outputs, tuple) else (outputs,)
        return _flat(y, self.valid), _flat(state) if state else None


def _flat(value: Any, valid: Array | None = None) -> Array:
    """Return the elements of arrays, at valid steps if they have steps."""
    if isinstance(value, (tuple, list)):
        return np.concatenate([_flat(one, valid) for one in value])
    array = np.asarray(value, np.float64)
    if valid is not None and array.ndim > valid.ndim and array.shape[: valid.ndim] == valid.shape:
        array = array[valid]
    return array.reshape(-1)


def _size(values: Array) -> Size:
    return Size(float(np.abs(values).max(initial=0)), math.sqrt(np.square(values).mean()) if values.size else 0.0)


def _bytes(layer: Any) -> int:
    _, arrays = saving.contents(layer)
    return sum(array.nbytes for array in arrays.values())


def _parts(layer: Any) -> dict[str, Rows]:
    """Return the rows of the weights of each part."""
    owners = {id(array): part for part in saving.parts(layer) for array in part.parameters.values()}
    parts: dict[str, Rows] = {}
    for name, array in layer.parameters.items():
        if array.ndim != 2 or not narrow.is_matrix(name):
            continue
        prefix, dot, own = str(name).rpartition(".")
        if own == "weight":
            parts[str(name)] = [(array, slice(None))]
            continue
        _, kind, suffix = own.split("_", 2)
        place, owner = f"{prefix}{dot}{suffix}", owners[id(array)]
        if kind == "hr":
            parts[f"{place} projection"] = [(array, slice(None))]
            continue
        for k, gate in enumerate(owner.engine.info.gates):
            rows = slice(k * owner.hidden_size, (k + 1) * owner.hidden_size)
            parts.setdefault(f"{place} {gate}", []).append((array, rows))
    return parts


def _times(calls: Mapping[str, tuple[Callable[[], object], int]]) -> dict[str, float]:
    """Return the best time of each call, divided by its number of steps."""
    clock, best, order = time.perf_counter, dict.fromkeys(calls, math.inf), list(calls)
    repeats = 1
    for call, _ in calls.values():
        call()
        start = clock()
        call()
        repeats = max(repeats, int(_SECONDS / (clock() - start)))
    for turn in range(_ROUNDS):
        first = turn % len(order) if order else 0
        for name in order[first:] + order[:first]:
            call, steps = calls[name]
            start = clock()
            for _ in range(repeats):
                call()
            best[name] = min(best[name], (clock() - start) / (repeats * steps))
    return best


def _calling(trial: _Trial, layer: Any) -> tuple[Callable[[], object], int]:
    return lambda: layer(trial.x, **trial.options), 1


def _stepping(trial: _Trial, layer: Any) -> tuple[Callable[[], object], int] | None:
    """Return a function that steps a stream of one row, and the number of steps that it takes, if there can be one.

    The time depends neither on the values of the steps nor on the state, which goes on from call to call. Steps are
    taken along the first axis of x, even if that is the batch.
    """
    if not hasattr(layer, "stream"):
        return None
    x = trial.x if trial.is_batched else trial.x[:, np.newaxis]
    rows = [np.ascontiguousarray(row) for row in x[:_STEPS, :1]]
    try:
        stream = layer.stream()
        stream.step(rows[0])
    except ValueError:  # it needs the whole sequence, or its call takes no state
        return None

    def walk() -> None:
        for row in rows:
            stream.step(row)

    return walk, len(rows)
