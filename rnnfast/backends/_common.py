"""Helpers shared by the adapters: versions of hosts, the order of gates, and options that a framework lacks."""

from __future__ import annotations

from typing import Any, NamedTuple

from rnnfast import functional
from rnnfast._types import Array
from rnnfast.layers import saving

SUPPORTED = ("input_size", "hidden_size", "bias", "batch_first", *saving.DROPOUTS, "bidirectional", "dtype")  # by all
ACTIVATION_LAYERS = ("tanh", "sigmoid", "relu")  # those of rnnfast.Activation


class Content(NamedTuple):
    """What a reader of model files found in a file."""

    form: str  # of the file, with its article
    parts: dict[str, Any]  # the layers by their names, in the order of the file
    left_out: dict[str, str]  # what has no equivalent or belongs to no layer: its name, and what it is
    notes: dict[str, str]  # what affects the results and is not in a layer, by the name of the layer; "" means all
    plain: bool | None  # whether the parts form a chain in their order; None if the file does not say


def require_version(user: str, host: str, module: Any, least: tuple[int, int]) -> None:
    """Raise an ImportError if the module of a host is older than `user` needs."""
    if tuple(map(int, module.__version__.split(".")[:2])) < least:
        oldest, found = ".".join(map(str, least)), module.__version__
        raise ImportError(
            f"{user} needs {host} {oldest} or newer, found {found}: pip install '{module.__name__}>={oldest}'"
        )


def positions(cell: str, theirs: str) -> list[int]:
    """Return where a framework stores the gates of a cell, in rnnfast's order, as indices for `reorder`.

    Parameters
    ----------
    cell : str
        A key of ``functional.CELLS``.
    theirs : str
        The framework's order, with rnnfast's letters for the gates.

    Examples
    --------
    >>> positions("gru", "zrn")
    [1, 0, 2]
    """
    return [theirs.index(gate) for gate in functional.CELLS[cell].gates]


def reorder(array: Array, gates: list[int]) -> Array:
    """Reorder the first axis of an array, which holds one block of rows for each gate."""
    return array.reshape(len(gates), -1, *array.shape[1:])[gates].reshape(array.shape)


def reject(layer: Any, framework: str, *supported: str, hint: str = "use a layer without") -> None:
    """Raise an error if a layer has non-default options that a framework does not support."""
    found = []
    for name, parameter in saving.signature(saving.kind(layer)).items():
        value = getattr(layer, name)
        if name not in (*SUPPORTED, *supported) and value != parameter.default:
            found.append(f"{name}={value!r}")
    if found:
        raise ValueError(f"layer has {', '.join(found)}, which {framework} does not support: {hint}")
