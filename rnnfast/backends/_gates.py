"""Reordering of gates between rnnfast, whose order is torch's, and other frameworks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rnnfast import functional

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


def positions(cell: str, theirs: str) -> list[int]:
    """Where a framework stores the gates of a cell, in rnnfast's order, as indices for `reorder`.

    Parameters
    ----------
    cell : str
        A key of ``functional.CELLS``.
    theirs : str
        The framework's order, in rnnfast's letters for the gates.

    Examples
    --------
    >>> positions("gru", "zrn")
    [1, 0, 2]
    """
    return [theirs.index(gate) for gate in functional.CELLS[cell].gates]


def reorder(array: Array, gates: list[int]) -> Array:
    """Reorder the first axis of an array, which holds one block of rows for each gate."""
    return array.reshape(len(gates), -1, *array.shape[1:])[gates].reshape(array.shape)
