"""Batches whose rows are not all of one length: what lengths, masks and resets mean, in the engine's sequences.

A row is one sequence after another, cut at its resets, and the steps that are masked or beyond its length are gaps, in
no sequence. The engine runs sequences, each from a state of its own; here states of rows become states of sequences and
back, and the gaps of what the engine leaves alone are filled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import arguments, functional

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["Ragged", "read"]


class Ragged:
    """The sequences of a batch, for one engine.

    Attributes
    ----------
    order : functional.Order
    sizes : functional.Sizes
    """

    def __init__(
        self,
        engine: functional.Engine,
        T: int,
        N: int,
        lengths: Array | None,
        mask: Array | None,
        reset: Array | None,
        held: bool,
        repeats: bool,
    ) -> None:
        self.order, self._sequences, self._rows = functional.arrange(T, N, lengths, mask, reset)
        self.sizes = engine.sizes(T, N, self.order)
        self._engine = engine
        self._held, self._repeats = held, repeats  # what gaps show: the state that is held, the output before
        self._cut = len(self._sequences) > N
        states = engine.num_layers * engine.directions
        self._turned = [engine.reverse or (engine.bidirectional and state % 2 == 1) for state in range(states)]

    def _source(self, state: int, repeats: bool) -> int:
        """What a direction's gaps show, as `Order.fill` has it: the step walked before, or zeros."""
        return (1 if self._turned[state] else -1) if repeats else 0

    def _ends(self, state: int) -> Array:
        """Of each row the sequence that a direction walks last."""
        if not self._cut:
            return self._sequences
        return self._sequences[self._rows[:-1] if self._turned[state] else self._rows[1:] - 1]

    def spread(self, initial: Array | None) -> Array | None:
        """States of sequences from those of their rows."""
        if initial is None:
            return None
        of_rows = np.empty_like(self._sequences)
        of_rows[self._sequences] = np.repeat(np.arange(len(self._rows) - 1), np.diff(self._rows))
        return initial.take(of_rows, axis=1)

    def last(self, states: Array, out: Array) -> None:
        """The states of rows after their last step, from those of all sequences."""
        if not self._cut:
            states.take(self._sequences, axis=1, out=out, mode="clip")  # any mode: they are all there
            return
        for state, values in enumerate(states):
            values.take(self._ends(state), axis=0, out=out[state])

    def spread_last(self, dstates: Array | None) -> Array | None:
        """The gradient of `last`."""
        if dstates is None:
            return None
        out = np.zeros((dstates.shape[0], len(self._sequences), dstates.shape[2]), dstates.dtype)
        for state, values in enumerate(dstates):
            out[state][self._ends(state)] = values
        return out

    def sum_starts(self, dinitial: Array, out: Array) -> None:
        """The gradient of `spread`."""
        of_rows = dinitial.take(self._sequences, axis=1)
        out[...] = np.add.reduceat(of_rows, self._rows[:-1], axis=1) if self._cut else of_rows

    def states(self, width: int, dtype: Any) -> Array:
        return np.empty((len(self._turned), len(self._sequences), width), dtype)

    def fill_outputs(self, y: Array) -> None:
        """Write the gaps of y."""
        width = self._engine.output_size
        for direction in range(self._engine.directions):
            columns = slice(direction * width, (direction + 1) * width)
            self.order.fill(self._source(direction, self._repeats), y[..., columns])

    def fold_outputs(self, dy: Array | None) -> Array | None:
        """The gradient of `fill_outputs`."""
        if dy is None or not self._repeats:
            return dy
        dy = dy.copy()
        functional.fold(self._engine, dy, self.order)
        return dy

    def clear(self, array: Array) -> None:
        """Write zeros to the gaps of an array (T, N, features)."""
        self.order.fill(0, array)

    def fill_cells(self, cells: Array, c0: Array | None) -> None:
        """Write the gaps of cells (layers * directions, T, N, H): at masked steps the one that is held, else zeros."""
        gaps = self.order.gaps
        for state, turned in enumerate(self._turned):
            self.order.fill(self._source(state, self._held), cells[state])
            if self._held and c0 is not None:
                step, row = gaps[gaps[:, 3 if turned else 2] < 0, :2].T
                cells[state, step, row] = c0[state, row]


def read(
    engine: functional.Engine,
    T: int,
    N: int | None,
    batch_first: bool,
    lengths: Any,
    mask: Any,
    reset: Any,
    repeats: bool,
    turned: bool = False,
) -> Ragged | None:
    """Check what a caller gave, with N None for an x without a batch axis; None where all rows have all steps.

    `turned`: the engine will be given the steps in the opposite order.
    """
    if lengths is not None and mask is not None:
        raise ValueError("lengths and mask exclude each other: give lengths as a mask, or leave one out")
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
    if turned:
        if lengths is not None:
            mask = np.arange(T)[:, np.newaxis] < lengths
            reset = None if reset is None else reset & mask
            lengths = None
        if mask is not None:
            mask = mask[::-1]
        if reset is not None:  # what was cut before a step is cut behind it
            reset = np.concatenate([reset[:1], reset[:0:-1]])
    return Ragged(engine, T, 1 if N is None else N, lengths, mask, reset, held, held and repeats)


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
    """A mask or a reset as (T, N)."""
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
