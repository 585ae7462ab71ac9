"""Ragged batches: translate lengths, masks and resets to the engine's sequences.

Resets divide a row into sequences. The engine processes sequences, each with its own state, and neither reads nor
writes steps that are masked out or padded. This module converts the states of rows to states of sequences and back, and
fills in the masked-out and padded steps of the results.

Each row has an initial state, with which its first sequence starts, and a reset state, with which its other sequences
start. Without a reset state, all of them start from the initial state.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import arguments, functional
from ._types import Array
from .functional import InputGradients, Inputs, OutputGradients, Outputs

__all__ = ["INITIAL", "RESET_STATES", "Pattern", "Ragged", "State", "check_lengths", "read"]

INITIAL = "initial"  # the default of reset_state
RESET_STATES = INITIAL, "zeros"  # what stands for a reset state
State = tuple[Array | None, Array | None]  # h and c of rows in the engine's layout, where None stands for zeros


class Pattern(NamedTuple):
    """The valid steps of a batch, as checked, time-first arrays."""

    T: int
    N: int
    lengths: Array | None  # (N,)
    mask: Array | None  # (T, N)
    reset: Array | None  # (T, N)
    held: bool  # whether a mask was passed: the state is then kept at the steps that are not valid

    def valid(self) -> Array | None:
        """Return the valid steps (T, N), or None if all of them are valid."""
        return self.mask if self.lengths is None else np.arange(self.T)[:, np.newaxis] < self.lengths

    def turned(self) -> Pattern:
        """Return the pattern of the steps in reverse order."""
        T, N, lengths, mask, reset, held = self
        if lengths is not None:
            mask = self.valid()
            reset = None if reset is None else reset & mask
        if mask is not None:
            mask = mask[::-1]
        if reset is not None:  # what is the first step of a sequence becomes the last
            reset = np.concatenate([np.zeros_like(reset[:1]), reset[:0:-1]])
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
        self._lengths, self._reset = pattern.lengths, pattern.reset
        states = engine.num_layers * engine.directions
        self._turned = [engine.reverse or (engine.bidirectional and state % 2 == 1) for state in range(states)]

    def inputs(self, inputs: Inputs, reset_state: State | None) -> Inputs:
        """Return the inputs of the engine, with states and recurrent masks of sequences instead of rows."""
        h_reset, c_reset = (inputs.h0, inputs.c0) if reset_state is None else reset_state
        h0, c0 = self._spread(inputs.h0, h_reset), self._spread(inputs.c0, c_reset)
        masks = inputs.recurrent_masks
        if masks is not None:
            masks = masks.take(self._of_rows(), axis=1)
        return Inputs(inputs.x, h0, c0, inputs.masks, self.order, masks, inputs.zoneout_masks)

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

    def finish_gradients(self, own: InputGradients, gradients: InputGradients, dreset_state: State | None) -> None:
        """Write zeros to the steps of dx and dh that are not valid, and the gradients of the states of rows."""
        self.order.fill(0, gradients.dx)
        for values in () if gradients.dh is None else gradients.dh:
            self.order.fill(0, values)
        dh_reset, dc_reset = dreset_state or (None, None)
        self._sum(own.dh0, gradients.dh0, dh_reset)
        self._sum(own.dc0, gradients.dc0, dc_reset)

    def _sum(self, states: Array | None, initial: Array | None, reset: Array | None) -> None:
        """Write the gradients of initial and reset states of rows; without the latter, those of both to `initial`."""
        if states is None or initial is None:
            return
        if reset is not None:
            initial[...] = 0
            for state, turned in enumerate(self._turned):
                rows, sequences = self._continuing(turned)
                initial[state, rows] = states[state, sequences]
                states[state, sequences] = 0
        of_rows = states.take(self._sequences, axis=1)
        total = initial if reset is None else reset
        total[...] = np.add.reduceat(of_rows, self._rows[:-1], axis=1) if self._cut else of_rows

    def _source(self, state: int, repeats: bool) -> int:
        """Return the argument of `Order.fill`: the previous step of a direction, or zeros."""
        return (1 if self._turned[state] else -1) if repeats else 0

    def _ends(self, turned: bool) -> Array:
        """Return, for each row, the sequence that a direction processes last."""
        if not self._cut:
            return self._sequences
        ends: Array = self._sequences[self._rows[:-1] if turned else self._rows[1:] - 1]
        return ends

    def _continuing(self, turned: bool) -> tuple[Array, Array]:
        """Return the rows that a direction starts from their initial states, and the sequences that it starts with."""
        lengths, reset = self._lengths, self._reset
        if turned or reset is None:
            rows = np.arange(len(self._rows) - 1)
        else:  # a reset in the padding has no effect
            rows = np.flatnonzero(~reset[0] if lengths is None else ~reset[0] | (lengths == 0))
        return rows, self._ends(not turned)[rows]

    def _sequence_at(self, step: Array, row: Array) -> Array:
        """Return the sequences at some steps and rows of a batch without lengths."""
        index, reset = self._rows[row], self._reset
        if reset is not None:
            index += np.cumsum(reset, axis=0)[step, row] - reset[0, row]  # step 0 always starts the first sequence
        sequences: Array = self._sequences[index]
        return sequences

    def _states(self, like: Array | None) -> Array | None:
        """Return an uninitialised array for states of sequences, or None."""
        if like is None:
            return None
        return np.empty((len(self._turned), len(self._sequences), like.shape[2]), like.dtype)

    def _of_rows(self) -> Array:
        """Return the row of each sequence."""
        rows = np.empty_like(self._sequences)
        rows[self._sequences] = np.repeat(np.arange(len(self._rows) - 1), np.diff(self._rows))
        return rows

    def _spread(self, initial: Array | None, reset: Array | None) -> Array | None:
        """Return the states with which sequences start, given the initial states and the reset states of rows."""
        if reset is not None:
            states = reset.take(self._of_rows(), axis=1)
        elif initial is not None:
            states = np.zeros((len(self._turned), len(self._sequences), initial.shape[2]), initial.dtype)
        else:
            return None
        for state, turned in enumerate(self._turned if reset is not initial else ()):
            rows, sequences = self._continuing(turned)
            states[state, sequences] = 0 if initial is None else initial[state, rows]
        return states

    def _last(self, states: Array, out: Array) -> None:
        """Write the final states of rows, given those of sequences."""
        if not self._cut:
            states.take(self._sequences, axis=1, out=out, mode="clip")  # all indices are valid in any mode
            return
        for state, values in enumerate(states):
            values.take(self._ends(self._turned[state]), axis=0, out=out[state])

    def _spread_last(self, dstates: Array | None) -> Array | None:
        """Return the gradients of states of sequences, given those of the final states of rows."""
        if dstates is None:
            return None
        out = np.zeros((dstates.shape[0], len(self._sequences), dstates.shape[2]), dstates.dtype)
        for state, values in enumerate(dstates):
            out[state][self._ends(self._turned[state])] = values
        return out

    def fill_cells(self, cells: Array, c0: Array | None, reset_state: State | None) -> None:
        """Fill in the steps of cells (layers * directions, T, N, H) that are not valid: kept values, or zeros."""
        masked, starts = self.order.masked_steps, self._spread(c0, c0 if reset_state is None else reset_state[1])
        for state, turned in enumerate(self._turned):
            self.order.fill(self._source(state, self._held), cells[state])
            if self._held and starts is not None:
                step, row = masked[masked[:, 3 if turned else 2] < 0, :2].T
                cells[state, step, row] = starts[state, self._sequence_at(step, row)]


def read(
    T: int, N: int | None, batch_first: bool, lengths: Any, mask: Any, reset: Any, has_reset_state: bool = False
) -> Pattern | None:
    """Check lengths, mask and reset; return None if every step is valid and nothing is reset.

    N is None if x is unbatched. A reset at step 0 only matters if there is a reset state (`has_reset_state`). The
    pattern holds copies, and only the copies are checked, because another thread may write to the arguments at any
    time.
    """
    if lengths is not None and mask is not None:
        raise ValueError("lengths and mask are mutually exclusive: leave one out, or write the lengths into the mask")
    held = mask is not None
    if lengths is not None:
        lengths = check_lengths(lengths, T, () if N is None else (N,)).reshape(-1)
        if (lengths == T).all():
            lengths = None
    if mask is not None:
        mask = _flags("mask", mask, T, N, batch_first)
        if mask.all():
            mask = None
    if reset is not None:
        reset = _flags("reset", reset, T, N, batch_first)
        if not reset[0 if has_reset_state else 1 :].any():
            reset = None
    if lengths is None and mask is None and reset is None:
        return None
    return Pattern(T, 1 if N is None else N, lengths, mask, reset, held)


def check_lengths(value: Any, T: int, shape: tuple[int, ...] | None = None) -> Array:
    """Check lengths and return a copy. `shape` is () if x is unbatched, and None to accept any shape."""
    lengths = np.array(arguments.array("lengths", value))
    if lengths.dtype.kind not in "iu" and lengths.size:
        raise TypeError(f"lengths must hold integers, but its dtype is {lengths.dtype}")
    if shape is not None and lengths.shape != shape:
        layout = f"have shape (N,) = {shape}" if shape else "be one integer, as x is unbatched"
        raise ValueError(f"lengths must {layout}, got shape {lengths.shape}")
    wrong = (lengths < 0) | (lengths > T)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(f"lengths must be from 0 to T = {T}, the steps of x, got {lengths.ravel()[at]} for row {at}")
    return lengths.astype(np.intp, copy=False)


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
