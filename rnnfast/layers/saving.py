"""The options of a layer as text and JSON, and the files that rebuild a layer.

A file of :mod:`rnnfast.files` holds the parameters and a header ``{"format": 1, "layer": {"class": ..., options}}``.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from rnnfast import files
from rnnfast._types import Array, Path

__all__ = ["CLASSES", "describe", "from_json", "kind", "load", "options", "signature", "to_json"]

CLASSES: dict[str, type[Any]] = {}  # the public classes by name, from which `load` builds layers

FREE = ("batch_first", "dropout", "dtype")  # options that may differ between a file and the layer that loads it
# Options that files of earlier versions lack, with the values to assume for them.
LATER = {"activations": None, "clip": None, "peepholes": False, "coupled": False, "leak": None}


def kind(layer: Any) -> type[Any]:
    """Return the public class that a layer is an instance of, directly or through a subclass."""
    return next(one for one in type(layer).__mro__ if one in CLASSES.values())


def signature(of: type[Any]) -> dict[str, inspect.Parameter]:
    """Return the options of a class: the parameters of its constructor, except rng and init."""
    parameters = inspect.signature(of).parameters
    return {name: value for name, value in parameters.items() if name not in ("rng", "init")}


def options(layer: Any) -> dict[str, Any]:
    """Return the constructor's arguments for a layer like this one, except rng and init."""
    return {name: getattr(layer, name) for name in signature(kind(layer))}


def describe(layer: Any) -> str:
    """Return the constructor call of a layer like this one, without options that have their default values."""
    given = []
    for name, parameter in signature(kind(layer)).items():
        value = getattr(layer, name)
        if value != parameter.default:
            text = describe(value) if isinstance(value, tuple(CLASSES.values())) else repr(_plain(value))
            text = text if len(text) <= 500 else f"<array of shape {np.shape(value)}>"
            given.append(text if parameter.default is parameter.empty else f"{name}={text}")
    return f"{type(layer).__name__}({', '.join(given)})"


def to_json(layer: Any) -> dict[str, Any]:
    """Return the class and options of a layer as JSON types."""
    given = {name: _plain(value) for name, value in options(layer).items()}
    # Earlier versions, which lack an option, can read the file of a layer that does not use it.
    return {"class": kind(layer).__name__} | {name: value for name, value in given.items() if _matters(name, value)}


def from_json(description: dict[str, Any]) -> Any:
    """Create a layer from the description that `to_json` returned, with fresh parameters."""
    given = {name: from_json(value) if isinstance(value, dict) else value for name, value in description.items()}
    return CLASSES[given.pop("class")](**given)


def _plain(option: Any) -> Any:
    """Return an option as JSON types."""
    if isinstance(option, tuple):
        return [_plain(one) for one in option]
    if isinstance(option, np.dtype):
        return option.name
    return to_json(option) if isinstance(option, tuple(CLASSES.values())) else option


def fits(description: Any, own: Any) -> bool:
    """Return whether layers with these two descriptions compute the same results from the same parameters."""
    return bool(_essence(description) == _essence(own))


def _matters(name: str, value: Any) -> bool:
    return name not in LATER or value != LATER[name]


def _essence(description: Any) -> Any:
    """Return the part of a description that affects results."""
    if not isinstance(description, dict):
        return description
    essence = {name: _essence(value) for name, value in description.items() if name not in FREE}
    return {name: value for name, value in essence.items() if _matters(name, value)}


def read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the description and the parameters in the file of a layer."""
    header, arrays = files.read(path)
    if not {"format", "layer"} <= header.keys():
        raise ValueError(f"{path!r} does not hold a layer of rnnfast")
    version, description = header["format"], header["layer"]
    if version != 1:
        raise ValueError(
            f"{path!r} has format {version!r}, but this version of rnnfast reads format 1: install a newer one"
        )
    return description, arrays


def load(path: Path) -> Any:
    """Create a layer from a file that ``save`` wrote, with the class, options and parameters in the file.

    Parameters
    ----------
    path : str or os.PathLike
        A file that ``layer.save(path)`` wrote.

    Returns
    -------
    RNN, LSTM, GRU, Bidirectional, Linear or Embedding
        The layer is not frozen, and has a new random generator for dropout.

    Raises
    ------
    ValueError
        If the file was not saved by a layer of rnnfast, or is damaged.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import os, tempfile, rnnfast
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "model")
    ...     rnnfast.GRU(4, 8, rng=0).save(path)
    ...     rnnfast.load(path)
    GRU(4, 8)  # 336 parameters
    """
    description, arrays = read(path)
    try:
        layer = from_json(description)
        layer.load_state_dict(arrays)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path!r} does not describe a layer of rnnfast: {error}") from error
    return layer
