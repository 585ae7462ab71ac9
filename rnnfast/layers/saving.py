"""The options of a layer as text and JSON, and the files that rebuild a layer.

A file of :mod:`rnnfast.files` holds the parameters and a header ``{"format": 1, "layer": {"class": ..., options}}``.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from rnnfast import files
from rnnfast._types import Path

__all__ = ["CLASSES", "construct", "describe", "kind", "load", "options", "read", "signature", "to_json"]

CLASSES: dict[str, type[Any]] = {}  # the public classes by name, from which `load` builds layers

FREE = ("batch_first", "dropout", "dtype")  # options that may differ between a file and the layer that loads it
# Options that files of earlier versions lack, with the values to assume for them.
LATER = {"activations": None, "clip": None, "peepholes": False, "coupled": False, "leak": None, "init_state": False}
SIDES = {"forward_layer": "forward.", "backward_layer": "backward."}  # options that are layers: names of parameters


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


def _plain(option: Any) -> Any:
    """Return an option as JSON types."""
    if isinstance(option, tuple):
        return [_plain(one) for one in option]
    if isinstance(option, np.dtype):
        return option.name
    return to_json(option) if isinstance(option, tuple(CLASSES.values())) else option


def _matters(name: str, value: Any) -> bool:
    return name not in LATER or value != LATER[name]


def _essence(description: Any) -> Any:
    """Return the part of a description that affects results."""
    if not isinstance(description, dict):
        return description
    essence = {name: _essence(value) for name, value in description.items() if name not in FREE}
    return {name: value for name, value in essence.items() if _matters(name, value)}


def construct(of: type[Any], archive: files.Archive, prefix: str = "", **given: Any) -> Any:
    """Create a layer whose parameters are read from an archive, where their names start with `prefix`.

    Nothing is drawn, and no array is allocated that does not have the shape and dtype that the options imply.
    """
    layers, arrays = given.get("num_layers"), len(archive.shapes)
    if isinstance(layers, int) and layers > arrays:
        raise ValueError(f"num_layers is {layers}, but it has only {arrays} arrays")
    layer: Any = object.__new__(of)
    layer._source = lambda name, shape: archive.take(prefix + name, shape, layer.dtype)
    layer.__init__(**given)
    return layer


def _from_json(description: Any, archive: files.Archive, prefix: str = "") -> Any:
    """Create a layer from the description that `to_json` returned."""
    if not isinstance(description, dict) or description.get("class") not in CLASSES:
        raise ValueError("it does not describe a layer of rnnfast")
    of = CLASSES[description["class"]]
    known = signature(of).keys()
    given = {name: value for name, value in description.items() if name != "class"}
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"{of.__name__} has no option {unknown[0]!r}")
    sides = {
        name: _from_json(given.get(name), archive, prefix + start) for name, start in SIDES.items() if name in known
    }
    return of(**given | sides) if sides else construct(of, archive, prefix, **given)


def read(path: Path, own: Any = None) -> Any:
    """Create the layer in a file. If `own` is a layer, require that both compute the same from the same parameters."""
    with files.opening(path) as archive:
        if not {"format", "layer"} <= archive.about.keys():
            raise ValueError("it does not hold a layer of rnnfast")
        version, description = archive.about["format"], archive.about["layer"]
        if version != 1:
            raise ValueError(
                f"it has format {version!r}, but this version of rnnfast reads format 1: install a newer one"
            )
        if own is not None and _essence(description) != _essence(to_json(own)):
            raise ValueError(
                f"it holds {description}, but this is {to_json(own)}; rnnfast.load(path) creates the layer in the file"
            )
        layer = _from_json(description, archive)
        archive.finish()
    return layer


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
        If the file cannot be read, is not a regular file, or does not fit into memory.

    Notes
    -----
    Reading a file takes time and memory in proportion to its size: the shapes and dtypes of all arrays must agree with
    the options before any is allocated. Compressed archives are refused.

    Examples
    --------
    >>> import os, tempfile, rnnfast
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "model")
    ...     rnnfast.GRU(4, 8, rng=0).save(path)
    ...     rnnfast.load(path)
    GRU(4, 8)  # 336 parameters
    """
    return read(path)
