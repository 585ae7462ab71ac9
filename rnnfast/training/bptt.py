"""Truncated back-propagation through time for sequences that are too long to train on as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from .. import arguments
from .._types import Array, ArrayLike


class Window(NamedTuple):
    """One window of :func:`truncated_bptt`.

    Attributes
    ----------
    steps : slice
        The time steps of the window, with start and stop. If time is axis 0 of `target`, ``target[steps]`` are the
        targets for `y`.
    y : ndarray
        The outputs at these steps, as the layer's ``forward`` returned them.
    state : ndarray, or for LSTM the pair (h, c)
        The state after the last step, from which the next window starts. You can write to it, for example to zero it
        where a new sequence begins.
    tape
        The tape to pass to the layer's ``backward``.
    """

    steps: slice
    y: Any
    state: Any
    tape: Any


def truncated_bptt(layer: Any, x: ArrayLike, window: int, state: Any = None) -> Iterator[Window]:
    """Run a layer over a long sequence in windows, for training by truncated back-propagation through time.

    The state is carried from window to window, but gradients are not. Memory use and the time between updates are
    those of one window, and the gradients cover dependencies over at most `window` steps. The outputs equal those of
    one call on the whole sequence, unless parameters change between windows or dropout is active.

    Each window is computed when the loop asks for it, so an update of the parameters takes effect in the next window.

    Source: R. Williams and J. Peng, "An efficient gradient-based algorithm for on-line training of recurrent network
    trajectories", 1990.

    Parameters
    ----------
    layer : RNN, LSTM or GRU, or a model that contains such layers
        A model needs a method ``forward(x, state)`` that returns ``(y, state, tape)`` and accepts ``state=None``. If
        it has an attribute ``batch_first``, that is used. No part of it may run backward in time.
    x : array_like, (T, ...), or (N, T, ...) if batch_first and at least three axes
        The input of the layer, with at least one time step. An array is neither copied nor converted. Tapes
        reference it, so do not modify it before the last ``backward``.
    window : int
        Number of time steps in a window, at least 1. The last window is shorter if T is not a multiple of it.
    state : optional
        The initial state, in the form that the layer accepts. None means the layer's own; pass the state of an earlier
        run to continue it.

    Returns
    -------
    iterator of Window
        One tuple ``(steps, y, state, tape)`` for each window.

    Raises
    ------
    TypeError
        If `layer` has no ``forward`` method or `window` is not an integer.
    ValueError
        If `layer` runs backward in time, `x` has no time steps or is not an array, or `window` is below 1. Other errors
        are raised by the layer when the first window is requested.

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
            "layer must be an RNN, LSTM or GRU, or a model whose forward(x, state) returns (y, state, tape), "
            f"got {name}"
        )
    # Layers are recognized by attributes, so that user-defined models work too. Bidirectional has a backward_layer.
    for option in ("bidirectional", "reverse", "backward_layer"):
        if getattr(layer, option, False):
            came = name if option == "backward_layer" else f"{name} with {option}=True"
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
    return _windows(layer, x, axis, arguments.size("window", window), state)


def _windows(layer: Any, x: Array, axis: int, length: int, state: Any) -> Iterator[Window]:
    for start in range(0, x.shape[axis], length):
        steps = slice(start, min(start + length, x.shape[axis]))
        y, state, tape = layer.forward(x[:, steps] if axis else x[steps], state)
        yield Window(steps, y, state, tape)
        del y, tape  # If the caller has released them too, the next window reuses their memory.
