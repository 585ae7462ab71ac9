"""Ragged batches: translate lengths, masks and resets to the engine's sequences.

Resets divide a row into sequences. The engine processes sequences, each with its own state, and neither reads nor
writes steps that are masked out or padded. This module converts the states of rows to states of sequences and back, and
fills in the masked-out and padded steps of the results.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import arguments, functional
from ._types import Array
from .functional import InputGradients, Inputs, OutputGradients, Outputs

__all__ = ["Pattern", "Ragged", "read"]


class Pattern(NamedTuple):
    """The valid steps of a batch, as checked, time-first arrays."""

    T: int
    N: int
    lengths: Array | None  # (N,)
    mask: Array | None  # (T, N)
    reset: Array | None  # (T, N)
    held: bool  # whether a mask was passed: the state is then kept at the steps that are not valid

    def turned(self) -> Pattern:
        """Return the pattern of the steps in reverse order."""
        T, N, lengths, mask, reset, held = self
        if lengths is not None:
            mask = np.arange(T)[:, np.newaxis] < lengths
            reset = None if reset is None else reset & mask
        if mask is not None:
            mask = mask[::-1]
        if reset is not None:  # what is the first step of a sequence becomes the last
            reset = np.concatenate([reset[:1], reset[:0:-1]])
        return Pattern(T, N, None, mask, reset, held)


class Ragged:
    """The sequences of a ragged batch, for one engine.

    Parameters
    ----------
    repeats : bool
        Whether y repeats the previous output at masked-out steps, instead of being 0.

    Attributes
    ----------
    order : functional.Order
    sizes : functional.Sizes
    """

    def __init__(self, engine: functional.Engine, pattern: Pattern, repeats: bool) -> None:
        T, N, *steps, held = pattern
        self.order, self._sequences, self._rows = functional.arrange(T, N, *steps)
        self.sizes = engine.sizes(T, N, self.order)
        self._engine = engine
        self._held, self._repeats = held, held and repeats
        self._cut = len(self._sequences) > N
        states = engine.num_layers * engine.directions
        self._turned = [engine.reverse or (engine.bidirectional and state % 2 == 1) for state in range(states)]

    def inputs(self, inputs: Inputs) -> Inputs:
        """Return the inputs of the engine, with states of sequences instead of rows."""
        return Inputs(inputs.x, self._spread(inputs.h0), self._spread(inputs.c0), inputs.masks, self.order)

    def outputs(self, outputs: Outputs) -> Outputs:
        """Return the outputs of the engine, with new arrays for the states of sequences."""
        return Outputs(outputs.y, self._states(outputs.h_n), self._states(outputs.c_n))

    def finish_outputs(self, own: Outputs, outputs: Outputs) -> None:
        """Fill in the steps of y that are not valid, and write the final states of rows to `outputs`."""
        width = self._engine.output_size
        for direction in range(self._engine.directions):
            columns = slice(direction * width, (direction + 1) * width)
            self.order.fill(self._source(direction, self._repeats), outputs.y[..., columns])
        for states, last in ((own.h_n, outputs.h_n), (own.c_n, outputs.c_n)):
            if last is not None:
                self._last(states, last)

    def output_gradients(self, gradients: OutputGradients) -> OutputGradients:
        """Return the gradients with respect to the outputs of the engine."""
        dy = gradients.dy
        if dy is not None and self._repeats:
            dy = dy.copy()
            functional.fold(self._engine, dy, self.order)
        return OutputGradients(dy, self._spread_last(gradients.dh_n), self._spread_last(gradients.dc_n))

    def input_gradients(self, gradients: InputGradients) -> InputGradients:
        """Return the gradients that the engine writes, with new arrays for the states of sequences."""
        dh0, dc0 = self._states(gradients.dh0), self._states(gradients.dc0)
        return InputGradients(gradients.dx, dh0, dc0, gradients.dparameters, gradients.dh)

    def finish_gradients(self, own: InputGradients, gradients: InputGradients) -> None:
        """Write zeros to the steps of dx and dh that are not valid, and the gradients of the initial states of rows."""
        self.order.fill(0, gradients.dx)
        for values in () if gradients.dh is None else gradients.dh:
            self.order.fill(0, values)
        for states, initial in ((own.dh0, gradients.dh0), (own.dc0, gradients.dc0)):
            if initial is not None:
                of_rows = states.take(self._sequences, axis=1)
                initial[...] = np.add.reduceat(of_rows, self._rows[:-1], axis=1) if self._cut else of_rows

    def _source(self, state: int, repeats: bool) -> int:
        """Return the argument of `Order.fill`: the previous step of a direction, or zeros."""
        return (1 if self._turned[state] else -1) if repeats else 0

    def _ends(self, state: int) -> Array:
        """Return, for each row, the sequence that a direction processes last."""
        if not self._cut:
            return self._sequences
        return self._sequences[self._rows[:-1] if self._turned[state] else self._rows[1:] - 1]

    def _states(self, like: Array | None) -> Array | None:
        """Return an uninitialised array for states of sequences, or None."""
        if like is None:
            return None
        return np.empty((len(self._turned), len(self._sequences), like.shape[2]), like.dtype)

    def _spread(self, initial: Array | None) -> Array | None:
        """Return the states of sequences, given those of rows."""
        if initial is None:
            return None
        of_rows = np.empty_like(self._sequences)
        of_rows[self._sequences] = np.repeat(np.arange(len(self._rows) - 1), np.diff(self._rows))
        return initial.take(of_rows, axis=1)

    def _last(self, states: Array, out: Array) -> None:
        """Write the final states of rows, given those of sequences."""
        if not self._cut:
            states.take(self._sequences, axis=1, out=out, mode="clip")  # all indices are valid in any mode
            return
        for state, values in enumerate(states):
            values.take(self._ends(state), axis=0, out=out[state])

    def _spread_last(self, dstates: Array | None) -> Array | None:
        """Return the gradients of states of sequences, given those of the final states of rows."""
        if dstates is None:
            return None
        out = np.zeros((dstates.shape[0], len(self._sequences), dstates.shape[2]), dstates.dtype)
        for state, values in enumerate(dstates):
            out[state][self._ends(state)] = values
        return out

    def fill_cells(self, cells: Array, c0: Array | None) -> None:
        """Fill in the steps of cells (layers * directions, T, N, H) that are not valid: kept values, or zeros."""
        masked = self.order.masked_steps
        for state, turned in enumerate(self._turned):
            self.order.fill(self._source(state, self._held), cells[state])
            if self._held and c0 is not None:
                step, row = masked[masked[:, 3 if turned else 2] < 0, :2].T
                cells[state, step, row] = c0[state, row]


def read(T: int, N: int | None, batch_first: bool, lengths: Any, mask: Any, reset: Any) -> Pattern | None:
    """Check lengths, mask and reset; return None if every step is valid and nothing is reset.

    N is None if x is unbatched. The pattern holds copies, and only the copies are checked: another thread may write to the
    arguments at any time.
    """
    if lengths is not None and mask is not None:
        raise ValueError("lengths and mask are mutually exclusive: leave one out, or write the lengths into the mask")
    held = mask is not None
    if lengths is not None:
        lengths = _lengths(lengths, T, N)
        if (lengths == T).all():
            lengths = None
    if mask is not None:
        mask = _flags("mask", mask, T, N, batch_first)
        if mask.all():
            mask = None
    if reset is not None:
        reset = _flags("reset", reset, T, N, batch_first)
        if not reset[1:].any():
            reset = None
    if lengths is None and mask is None and reset is None:
        return None
    return Pattern(T, 1 if N is None else N, lengths, mask, reset, held)


def _lengths(value: Any, T: int, N: int | None) -> Array:
    lengths = np.array(arguments.array("lengths", value))
    shape = () if N is None else (N,)
    if lengths.dtype.kind not in "iu" and lengths.size:
        raise TypeError(f"lengths must hold integers, but its dtype is {lengths.dtype}")
    if lengths.shape != shape:
        layout = "be one integer, as x is unbatched" if N is None else f"have shape (N,) = {shape}"
        raise ValueError(f"lengths must {layout}, got shape {lengths.shape}")
    wrong = (lengths < 0) | (lengths > T)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(f"lengths must be from 0 to T = {T}, the steps of x, got {lengths.ravel()[at]} for row {at}")
    return lengths.astype(np.intp, copy=False).reshape(-1)


def _flags(name: str, value: Any, T: int, N: int | None, batch_first: bool) -> Array:
    """Check a mask or reset and return a copy as (T, N)."""
    array = np.array(arguments.array(name, value))
    if array.dtype != bool and array.size:
        raise TypeError(f"{name} must hold booleans, but its dtype is {array.dtype}: pass {name} != 0")
    shape = (T,) if N is None else (N, T) if batch_first else (T, N)
    if array.shape != shape:
        layout = "(T,)" if N is None else "(N, T)" if batch_first else "(T, N)"
        raise ValueError(f"{name} must have shape {layout} = {shape}, got {array.shape}")
    if N is None:
        return array[:, np.newaxis]
    return array.T if batch_first else array
