"""Truncated back-propagation through time for sequences that are too long to train on as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import arguments, ragged
from .._types import Array, ArrayLike
from .arrays import layers_of


class Window(NamedTuple):
    """One window of :func:`truncated_bptt`.

    Attributes
    ----------
    steps : slice
        The time steps of the window, with start and stop. If time is axis 0 of `target`, ``target[steps]`` are the
        targets for `y`.
    y : ndarray
        The outputs at these steps, as the layer's ``forward`` returned them. Only with `mask`, masked-out steps at the
        start of a window repeat the last output of the window before. A gradient with respect to them has no effect.
    state : ndarray, or for LSTM the pair (h, c)
        The state after the last step, from which the next window starts. You can write to it.
    tape
        The tape to pass to the layer's ``backward``.
    """

    steps: slice
    y: Any
    state: Any
    tape: Any


def truncated_bptt(
    layer: Any,
    x: ArrayLike,
    window: int,
    state: Any = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    reset: ArrayLike | None = None,
    reset_state: Any = ragged.INITIAL,
) -> Iterator[Window]:
    """Run a layer over a long sequence in windows, for training by truncated back-propagation through time.

    The state is carried from window to window, but gradients are not. Memory use and the time between updates are
    those of one window, and the gradients cover dependencies over at most `window` steps. The outputs equal those of
    one call on the whole sequence, unless parameters change between windows or dropout is active.

    Each window is computed when the loop asks for it, so an update of the parameters takes effect in the next window.

    Source: R. Williams and J. Peng, "An efficient gradient-based algorithm for on-line training of recurrent network
    trajectories", 1990.

    Parameters
    ----------
    layer : recurrent layer, such as LSTM, or a model that contains such layers
        A model needs a method ``forward(x, state)`` that returns ``(y, state, tape)`` and accepts ``state=None``. The
        following arguments are passed by name, and only those that are given. If it has an attribute ``batch_first``,
        that is used. No part of it may run backward in time.
    x : array_like, (T, ...), or (N, T, ...) if batch_first and at least three axes
        The input of the layer, with at least one time step. An array is neither copied nor converted. Tapes
        reference it, so do not modify it before the last ``backward``.
    window : int
        Number of time steps in a window, at least 1. The last window is shorter if T is not a multiple of it.
    state : optional
        The initial state, in the form that the layer accepts. None means the layer's own; pass the state of an earlier
        run to continue it.
    lengths : array_like of int, (N,), unbatched one integer, optional
        The number of steps of each row, from 0 to T. In a window that begins after the end of a row, its length is 0,
        so the last state of a row is that after its last step.
    mask, reset : array_like of bool, with the first two axes of `x`, unbatched (T,), optional
        As for a call of a layer.
    reset_state : optional
        As for a call of a layer. "initial", the default, is the initial state of the whole run, not that of the window:
        if `reset` is given, all windows but the first are passed ``reset_state=state``, with the `state` of this call.

    Returns
    -------
    iterator of Window
        One tuple ``(steps, y, state, tape)`` for each window.

    Raises
    ------
    TypeError
        If `layer` has no ``forward`` method, or `window` or `lengths` are not integers.
    ValueError
        If `layer` runs backward in time, `x` has no time steps or is not an array, `window` is below 1, `lengths` are
        not from 0 to T, or `mask` or `reset` do not have the steps of `x`. Other errors are raised by the layer when
        the first window is requested.

    Examples
    --------
    Train a model to predict the next value of a sine wave:

    >>> import numpy as np, rnnfast
    >>> from rnnfast.training import Adam, mean_squared_error, truncated_bptt
    >>> wave = np.sin(np.arange(2001) / 5).astype(np.float32).reshape(-1, 1, 1)
    >>> x, target = wave[:-1], wave[1:]
    >>> layer, readout = rnnfast.LSTM(1, 8, rng=0), rnnfast.Linear(8, 1, rng=1)
    >>> optimizer = Adam({**layer.parameters, **readout.parameters}, lr=0.01)
    >>> losses = []
    >>> for steps, y, state, tape in truncated_bptt(layer, x, window=20):
    ...     prediction, readout_tape = readout.forward(y)
    ...     loss, dprediction = mean_squared_error(prediction, target[steps])
    ...     readout_grads = readout.backward(readout_tape, dprediction)
    ...     layer_grads = layer.backward(tape, readout_grads.x)
    ...     optimizer.step({**layer_grads.parameters, **readout_grads.parameters})
    ...     losses.append(loss)
    >>> len(losses), losses[0] > 0.3, losses[-1] < 0.01
    (100, True, True)
    """
    name = type(layer).__name__
    if not callable(getattr(layer, "forward", None)):
        raise TypeError(
            f"layer must be a recurrent layer, or a model whose forward(x, state) returns (y, state, tape), got {name}"
        )
    # Layers are recognized by attributes, so that user-defined models work too. Bidirectional has a backward_layer.
    for path, part in {"": layer, **layers_of(layer)}.items():
        for option in ("bidirectional", "reverse", "backward_layer"):
            if not getattr(part, option, False):
                continue
            which = name if part is layer else f"{name} whose layer {path} is a {type(part).__name__}"
            came = which if option == "backward_layer" else f"{which} with {option}=True"
            raise ValueError(
                f"layer must run forward in time only, got {came}: a reverse direction starts at the end of the "
                "sequence, so the previous window has no state for it; use a layer with one direction, or run this "
                "one on the whole sequence"
            )
    x = arguments.array("x", x)
    batch_first = bool(getattr(layer, "batch_first", False)) and x.ndim >= 3
    axis = 1 if batch_first else 0
    if x.ndim == 0 or x.shape[axis] == 0:
        layout = "(N, T, ...)" if batch_first else "(T, ...)"
        raise ValueError(f"x must have at least one time step: layout {layout} with T >= 1, got shape {x.shape}")
    T = x.shape[axis]
    flags = {
        name: _by_steps(name, value, T, axis) for name, value in (("mask", mask), ("reset", reset)) if value is not None
    }
    if lengths is not None:
        lengths = ragged.check_lengths(lengths, T)
    return _windows(layer, x, axis, arguments.size("window", window), state, lengths, flags, reset_state)


def _by_steps(name: str, value: Any, T: int, axis: int) -> Array:
    """Check that an argument has the steps of x."""
    array = arguments.array(name, value)
    if array.ndim <= axis or array.shape[axis] != T:
        raise ValueError(f"{name} must have the {T} steps of x on axis {axis}, got shape {array.shape}")
    return array


def _windows(
    layer: Any,
    x: Array,
    axis: int,
    length: int,
    state: Any,
    lengths: Any,
    flags: dict[str, Array],
    reset_state: Any,
) -> Iterator[Window]:
    initial, last = state, None
    shared = isinstance(reset_state, str) and reset_state == ragged.INITIAL
    for start in range(0, x.shape[axis], length):
        steps = slice(start, min(start + length, x.shape[axis]))
        index = (slice(None), steps) if axis else steps
        given: dict[str, Any] = {name: array[index] for name, array in flags.items()}
        if lengths is not None:
            given["lengths"] = np.clip(lengths - start, 0, steps.stop - start)
        if not shared:
            given["reset_state"] = reset_state
        elif start and "reset" in given:
            given["reset_state"] = initial
        y, state, tape = layer.forward(x[index], state, **given)
        if "mask" in given and isinstance(y, np.ndarray):
            y = _continued(y, last, axis, given["mask"], given.get("reset"))
            last = y.take([-1], axis)
        yield Window(steps, y, state, tape)
        del y, tape  # If the caller has released them too, the next window reuses their memory.


def _continued(y: Array, last: Array | None, axis: int, mask: Array, reset: Array | None) -> Array:
    """Return y where its first steps repeat the last output of the window before, as long as they are masked out."""
    if last is None or y.shape[: mask.ndim] != mask.shape:  # as the outputs of a model may be
        return y
    repeats = np.logical_and.accumulate(~mask if reset is None else ~(mask | reset), axis)
    return np.where(repeats.reshape(repeats.shape + (1,) * (y.ndim - repeats.ndim)), last, y) if repeats.any() else y
