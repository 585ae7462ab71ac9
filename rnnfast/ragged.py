"""Ragged batches: what lengths, masks and resets mean in terms of the engine's sequences.

A row holds one sequence after another, cut at its resets. Steps that are masked out or padded belong to no sequence;
they are the gaps of an order. The engine runs sequences, each from its own state. This module turns the states of rows
into states of sequences and back, and fills the gaps, which the engine does not touch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import arguments, functional
from ._types import Array
from .functional import InputGradients, Inputs, OutputGradients, Outputs

__all__ = ["Pattern", "Ragged", "read"]


class Pattern(NamedTuple):
    """Which steps of a batch count, in time-first arrays that are checked."""

    T: int
    N: int
    lengths: Array | None  # (N,)
    mask: Array | None  # (T, N)
    reset: Array | None  # (T, N)
    held: bool  # whether a mask was given, so that gaps hold the state

    def turned(self) -> Pattern:
        """Return the pattern of the steps in the reverse order."""
        T, N, lengths, mask, reset, held = self
        if lengths is not None:
            mask = np.arange(T)[:, np.newaxis] < lengths
            reset = None if reset is None else reset & mask
        if mask is not None:
            mask = mask[::-1]
        if reset is not None:  # a cut before a step becomes a cut after it
            reset = np.concatenate([reset[:1], reset[:0:-1]])
        return Pattern(T, N, None, mask, reset, held)


class Ragged:
    """The sequences of a batch, for one engine.

    Parameters
    ----------
    repeats : bool
        Whether y at masked steps repeats the output before, instead of zeros.

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
        """Return the inputs with the states of sequences in place of those of rows."""
        return Inputs(inputs.x, self._spread(inputs.h0), self._spread(inputs.c0), inputs.masks, self.order)

    def outputs(self, outputs: Outputs) -> Outputs:
        """Return the outputs with new arrays for the states of sequences."""
        return Outputs(outputs.y, self._states(outputs.h_n), self._states(outputs.c_n))

    def finish_outputs(self, own: Outputs, outputs: Outputs) -> None:
        """Fill the gaps of y, and write the last states of rows to `outputs`."""
        width = self._engine.output_size
        for direction in range(self._engine.directions):
            columns = slice(direction * width, (direction + 1) * width)
            self.order.fill(self._source(direction, self._repeats), outputs.y[..., columns])
        for states, last in ((own.h_n, outputs.h_n), (own.c_n, outputs.c_n)):
            if last is not None:
                self._last(states, last)

    def output_gradients(self, gradients: OutputGradients) -> OutputGradients:
        """Return the gradients with respect to what the engine writes."""
        dy = gradients.dy
        if dy is not None and self._repeats:
            dy = dy.copy()
            functional.fold(self._engine, dy, self.order)
        return OutputGradients(dy, self._spread_last(gradients.dh_n), self._spread_last(gradients.dc_n))

    def input_gradients(self, gradients: InputGradients) -> InputGradients:
        """Return the gradients with new arrays for the states of sequences."""
        dh0, dc0 = self._states(gradients.dh0), self._states(gradients.dc0)
        return InputGradients(gradients.dx, dh0, dc0, gradients.dparameters, gradients.dh)

    def finish_gradients(self, own: InputGradients, gradients: InputGradients) -> None:
        """Write zeros to the gaps of dx and dh, and the gradients of the states of rows to `gradients`."""
        self.order.fill(0, gradients.dx)
        for values in () if gradients.dh is None else gradients.dh:
            self.order.fill(0, values)
        for states, initial in ((own.dh0, gradients.dh0), (own.dc0, gradients.dc0)):
            if initial is not None:
                of_rows = states.take(self._sequences, axis=1)
                initial[...] = np.add.reduceat(of_rows, self._rows[:-1], axis=1) if self._cut else of_rows

    def _source(self, state: int, repeats: bool) -> int:
        """Return what fills a direction's gaps, as `Order.fill` takes it: the step walked before, or zeros."""
        return (1 if self._turned[state] else -1) if repeats else 0

    def _ends(self, state: int) -> Array:
        """Return, for each row, the sequence that a direction walks last."""
        if not self._cut:
            return self._sequences
        return self._sequences[self._rows[:-1] if self._turned[state] else self._rows[1:] - 1]

    def _states(self, like: Array | None) -> Array | None:
        """Return an array for states of sequences; None for None."""
        if like is None:
            return None
        return np.empty((len(self._turned), len(self._sequences), like.shape[2]), like.dtype)

    def _spread(self, initial: Array | None) -> Array | None:
        """Return states of sequences from those of their rows."""
        if initial is None:
            return None
        of_rows = np.empty_like(self._sequences)
        of_rows[self._sequences] = np.repeat(np.arange(len(self._rows) - 1), np.diff(self._rows))
        return initial.take(of_rows, axis=1)

    def _last(self, states: Array, out: Array) -> None:
        """Write the states of rows after their last step, from those of all sequences."""
        if not self._cut:
            states.take(self._sequences, axis=1, out=out, mode="clip")  # every index is valid, whatever the mode
            return
        for state, values in enumerate(states):
            values.take(self._ends(state), axis=0, out=out[state])

    def _spread_last(self, dstates: Array | None) -> Array | None:
        """Return the gradient of `_last`."""
        if dstates is None:
            return None
        out = np.zeros((dstates.shape[0], len(self._sequences), dstates.shape[2]), dstates.dtype)
        for state, values in enumerate(dstates):
            out[state][self._ends(state)] = values
        return out

    def fill_cells(self, cells: Array, c0: Array | None) -> None:
        """Fill the gaps of cells (layers * directions, T, N, H): the value held at masked steps, else zeros."""
        gaps = self.order.masked_steps
        for state, turned in enumerate(self._turned):
            self.order.fill(self._source(state, self._held), cells[state])
            if self._held and c0 is not None:
                step, row = gaps[gaps[:, 3 if turned else 2] < 0, :2].T
                cells[state, step, row] = c0[state, row]


def read(T: int, N: int | None, batch_first: bool, lengths: Any, mask: Any, reset: Any) -> Pattern | None:
    """Check lengths, mask and reset. N is None for an x without a batch axis.

    Returns None if every row has every step and no reset.
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
    lengths = arguments.array("lengths", value)
    shape = () if N is None else (N,)
    if lengths.dtype.kind not in "iu" and lengths.size:
        raise TypeError(f"lengths must hold integers, but its dtype is {lengths.dtype}")
    if lengths.shape != shape:
        layout = "be one integer for an x without a batch axis" if N is None else f"have shape (N,) = {shape}"
        raise ValueError(f"lengths must {layout}, got shape {lengths.shape}")
    wrong = (lengths < 0) | (lengths > T)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(f"lengths must lie from 0 to T = {T}, the steps of x, got {lengths.ravel()[at]} for row {at}")
    return np.array(lengths, np.intp).reshape(-1)


def _flags(name: str, value: Any, T: int, N: int | None, batch_first: bool) -> Array:
    """Check a mask or reset and return it as (T, N)."""
    array = arguments.array(name, value)
    if array.dtype != bool and array.size:
        raise TypeError(f"{name} must hold booleans, but its dtype is {array.dtype}: compare, as in {name} != 0")
    shape = (T,) if N is None else (N, T) if batch_first else (T, N)
    if array.shape != shape:
        layout = "(T,)" if N is None else "(N, T)" if batch_first else "(T, N)"
        raise ValueError(f"{name} must have shape {layout} = {shape}, got {array.shape}")
    if N is None:
        return array[:, np.newaxis]
    return array.T if batch_first else array
