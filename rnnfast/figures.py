"""Axes for the functions that plot, with matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["axes"]


def axes(ax: Axes | None, function: str) -> Axes:
    """Return the argument `ax` of a function, or the axes of a new figure if it is None."""
    if ax is not None:
        if not hasattr(ax, "plot"):
            raise TypeError(
                f"ax must be a matplotlib Axes, got {type(ax).__name__}: pass one element of an array of Axes"
            )
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(f"{function} needs matplotlib: pip install 'rnnfast[plot]'") from error
    created: Axes = pyplot.subplots()[1]
    return created
