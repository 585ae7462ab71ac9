"""The options of a layer as text and JSON, and the files and arrays that rebuild a layer.

A file of :mod:`rnnfast.files` holds the parameters and a header ``{"format": 1, "layer": {"class": ..., options}}``.
With weights in fewer bytes the format is 2, and ``"weights"`` has the kind of each by name (:mod:`rnnfast.narrow`).
"""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from rnnfast import arguments, files, functional, narrow
from rnnfast._types import Array, ArrayLike, Path

__all__ = [
    "CLASSES",
    "DROPOUTS",
    "agreed",
    "construct",
    "create",
    "describe",
    "differences",
    "fit",
    "from_state_dict",
    "kind",
    "load",
    "options",
    "public",
    "read",
    "recurrent_options",
    "said",
    "selected",
    "signature",
    "to_json",
]

CLASSES: dict[str, type[Any]] = {}  # the public classes by name, from which `load` builds layers

DROPOUTS = "dropout", "recurrent_dropout", "input_dropout"  # of recurrent layers
FREE = (
    "batch_first",
    *DROPOUTS,
    "p",
    "dtype",
    "name",
)  # options that may differ between a file and the layer that loads it
# Options that files of earlier versions lack, with the values to assume for them.
LATER = {
    "activations": None,
    "clip": None,
    "peepholes": False,
    "coupled": False,
    "leak": None,
    "init_state": False,
    "recurrent_dropout": 0.0,
    "input_dropout": 0.0,
    "zoneout": 0.0,
}
SIDES = {"forward_layer": "forward.", "backward_layer": "backward."}  # options that are layers: names of parameters
FIRST = "weight_ih_l0"  # the parameter that every recurrent layer has


def kind(layer: Any) -> type[Any]:
    """Return the public class that a layer is an instance of, directly or through a subclass."""
    return public(type(layer))


def public(of: type[Any]) -> type[Any]:
    """Return the public class that a class is, or derives from."""
    return next(one for one in of.__mro__ if one in CLASSES.values())


def signature(of: type[Any]) -> dict[str, inspect.Parameter]:
    """Return the options of a class: the parameters of its constructor, except rng and init."""
    parameters = inspect.signature(of).parameters
    return {name: value for name, value in parameters.items() if name not in ("rng", "init")}


def options(layer: Any) -> dict[str, Any]:
    """Return the constructor's arguments for a layer like this one, except rng and init."""
    return {name: getattr(layer, name) for name in signature(kind(layer))}


def describe(layer: Any) -> str:
    """Return the constructor call of a layer like this one, without options that have their default values."""
    given: list[str] = []
    for name, parameter in signature(kind(layer)).items():
        value = getattr(layer, name)
        if parameter.kind is parameter.VAR_POSITIONAL:
            given.extend(describe(one) for one in value)
        elif value != parameter.default:
            text = describe(value) if isinstance(value, tuple(CLASSES.values())) else repr(_plain(value))
            text = text if len(text) <= 500 else f"<array of shape {np.shape(value)}>"
            given.append(text if parameter.default is parameter.empty else f"{name}={text}")
    return f"{type(layer).__name__}({', '.join(given)})"


def to_json(layer: Any) -> dict[str, Any]:
    """Return the class and options of a layer as JSON types."""
    if hasattr(layer, "_saves_class") and not layer._saves_class():  # its constructor can take any arguments
        return {"class": "Model", "name": type(layer).__name__, "layers": dict(map(_named_json, layer.named_layers()))}
    given = {name: _plain(value) for name, value in options(layer).items()}
    # Earlier versions, which lack an option, can read the file of a layer that does not use it.
    return {"class": kind(layer).__name__} | {name: value for name, value in given.items() if _matters(name, value)}


NARROW = [kind for kind in narrow.KINDS.values() if kind != "full"]


def _named_json(item: tuple[str, Any]) -> tuple[str, dict[str, Any]]:
    return item[0], to_json(item[1])


def _plain(option: Any) -> Any:
    """Return an option as JSON types."""
    if isinstance(option, tuple):
        return [_plain(one) for one in option]
    if isinstance(option, np.dtype):
        return option.name
    return to_json(option) if isinstance(option, tuple(CLASSES.values())) else option


def _matters(name: str, value: Any) -> bool:
    return name not in LATER or value != LATER[name]


def _essence(description: Any, free: tuple[str, ...] = FREE) -> Any:
    """Return the part of a description that affects results."""
    if isinstance(description, list):
        return [_essence(one) for one in description]
    if not isinstance(description, dict):
        return description
    essence = {name: _essence(value, free) for name, value in description.items() if name not in free}
    return {name: value for name, value in essence.items() if _matters(name, value)}


def parts(layer: Any) -> list[Any]:
    """Return the layers with parameters of their own that a layer or model consists of."""
    if hasattr(layer, "named_layers"):
        return [part for _, one in layer.named_layers() for part in parts(one)]
    if hasattr(layer, "forward_layer"):
        return [getattr(layer, name) for name in SIDES]
    return [layer] if hasattr(layer, "_kind") else []


def _matrices(layer: Any) -> dict[Any, list[str]]:
    """Return the names in `layer.parameters` of the weights of each part."""
    names = {id(array): str(name) for name, array in layer.parameters.items()}
    return {
        part: [names[id(array)] for name, array in part.parameters.items() if narrow.is_matrix(name)]
        for part in parts(layer)
    }


def contents(layer: Any) -> tuple[dict[str, Any], Mapping[str, Array]]:
    """Return the header and the arrays of the file of a layer."""
    header = {"format": 1, "layer": to_json(layer)}
    kinds = {name: part._kind() for part, names in _matrices(layer).items() for name in names}
    kinds = {name: kind for name, kind in kinds.items() if kind not in (None, "full")}
    if not kinds:
        return header, layer.parameters
    arrays: dict[str, Array] = {}
    for name, array in layer.parameters.items():
        encoded = narrow.encode(kinds[name], array) if name in kinds else {"": array}
        arrays |= {f"{name}{end}": part for end, part in encoded.items()}
    return {**header, "format": 2, "weights": kinds}, arrays


def _kinds(archive: files.Archive) -> dict[str, str]:
    """Return the kinds of the weights that a file holds in fewer bytes."""
    kinds = archive.about.get("weights", {})
    if not isinstance(kinds, dict):
        raise ValueError("the kinds of its weights must be a JSON object")
    return kinds


def _take(archive: files.Archive, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """Read a parameter."""
    kind = _kinds(archive).get(name)
    if kind is None:
        return archive.take(name, shape, dtype)
    if kind not in NARROW:
        known = f"{', '.join(NARROW[:-1])} or {NARROW[-1]}"
        raise ValueError(f"the kind of its array {name!r} must be {known}, got {kind!r}")
    if dtype != np.float32 or len(shape) != 2:
        raise ValueError(f"its array {name!r} must be a matrix of a layer of dtype float32 to have the kind {kind!r}")
    parts = {end: archive.take(name + end, *of) for end, of in narrow.stored(kind, shape).items()}
    return narrow.decode_exactly(kind, name, parts)


def _by_part(layer: Any, kinds: Mapping[str, str]) -> dict[Any, str]:
    """Return the kind of the weights of each part that has such weights in a file."""
    found = {}
    for part, names in _matrices(layer).items():
        own = {kinds.get(name) for name in names}
        if own - {None}:
            if len(own) > 1:
                raise ValueError(f"the weights {', '.join(names)} must be of one kind")
            given = narrow.arguments_of(str(own.pop()))
            found[part] = narrow.kind_of(*given, part.dtype, type(part).__name__)
    return found


def create(
    of: type[Any], source: Callable[[Any, dict[str, tuple[int, ...]]], dict[str, Array]], /, **given: Any
) -> Any:
    """Create a layer whose parameters are what `source` returns for the layer and their shapes. Nothing is drawn."""
    layer: Any = object.__new__(of)
    layer._source = source
    layer.__init__(**given)
    return layer


def construct(of: type[Any], archive: files.Archive, prefix: str = "", /, **given: Any) -> Any:
    """Create a layer whose parameters are read from an archive, where their names start with `prefix`.

    Nothing is drawn, and no array is allocated that does not have the shape and dtype that the options imply.
    """
    layers, arrays = given.get("num_layers"), len(archive.shapes)
    if isinstance(layers, int) and layers > arrays:
        raise ValueError(f"num_layers is {layers}, but it has only {arrays} arrays")
    return create(
        of,
        lambda layer, shapes: {
            name: _take(archive, prefix + name, shape, layer.dtype) for name, shape in shapes.items()
        },
        **given,
    )


def _from_json(description: Any, archive: files.Archive, prefix: str = "") -> Any:
    """Create a layer from the description that `to_json` returned."""
    if isinstance(description, dict) and description.get("class") in ("Model", "Sequential"):
        importlib.import_module("rnnfast.models")  # which registers them
    if not isinstance(description, dict) or description.get("class") not in CLASSES:
        raise ValueError("it does not describe a layer of rnnfast")
    if description["class"] == "Model":
        raise ValueError(
            f"it holds the parameters of a model of the class {description.get('name')!r}, which it does not contain: "
            "create such a model, and call its load(path)"
        )
    of = CLASSES[description["class"]]
    known = signature(of).keys()
    given = {name: value for name, value in description.items() if name != "class"}
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"{of.__name__} has no option {unknown[0]!r}")
    sides = {
        name: _from_json(given.get(name), archive, prefix + start) for name, start in SIDES.items() if name in known
    }
    if "layers" in known:
        return of(*(_from_json(one, archive, f"{prefix}{k}.") for k, one in enumerate(given["layers"])))
    return construct(of, archive, prefix, **given) if hasattr(of, "_source") else of(**given | sides)


def _dtype_of(description: Any) -> Any:
    """Return the dtype in a description, which is that of all layers, or None."""
    if isinstance(description, dict):
        if "dtype" in description:
            return arguments.dtype(description["dtype"])
        description = list(description.values())
    if isinstance(description, list):
        return next((found for one in description if (found := _dtype_of(one)) is not None), None)
    return None


def read(path: Path, own: Any = None) -> tuple[Any, dict[Any, str]]:
    """Create the layer in a file; return it, and the kinds of weights that are in fewer bytes there by its parts.

    If `own` is a layer, require that both compute the same from the same parameters, and return the kinds by its parts.
    """
    with files.opening(path) as archive:
        if not {"format", "layer"} <= archive.about.keys():
            raise ValueError("it does not hold a layer of rnnfast")
        version, description = archive.about["format"], archive.about["layer"]
        if version not in (1, 2):
            raise ValueError(
                f"it has format {version!r}, but this version of rnnfast reads formats 1 and 2: install a newer one"
            )
        kinds = _kinds(archive)
        if not isinstance(description, dict):
            raise ValueError("it does not describe a layer of rnnfast")
        if own is not None and _essence(description) != _essence(to_json(own)):
            theirs, ours = _differences(_essence(description), _essence(to_json(own)))
            raise ValueError(
                f"it holds a layer with {theirs}, but this one has {ours}; rnnfast.load(path) creates that layer"
            )
        if hasattr(own, "named_layers"):
            dtype = _dtype_of(description)
            parameters = {
                str(name): _take(archive, str(name), array.shape, dtype or array.dtype)
                for name, array in own.parameters.items()
            }
            layer = types.SimpleNamespace(parameters=parameters)
        else:
            layer = _from_json(description, archive)
        archive.finish()
        if extra := kinds.keys() - layer.parameters.keys():
            raise ValueError(f"it has the kind of an array {min(extra)!r} that it does not hold")
        found = _by_part(layer if own is None else own, kinds)
        if own is None:
            for part, kind in found.items():
                part._freeze_as(kind)
    return layer, found


def _differences(*essences: Any) -> list[str]:
    """Return the parts of two descriptions of layers that differ, as text."""
    if not all(isinstance(essence, dict) for essence in essences):
        return [repr(essence) for essence in essences]
    names = [name for name in {**essences[0], **essences[1]} if essences[0].get(name) != essences[1].get(name)]
    names = ["class"] if "class" in names else names
    return [", ".join(f"{name}={one.get(name, LATER.get(name))!r}" for name in names) for one in essences]


def differences(layer: Any, other: Any, free: tuple[str, ...]) -> tuple[str, str]:
    """Return the class or the options in which two layers differ, as text for each; empty if only `free` ones do."""
    if kind(layer) is not kind(other):
        return f"the class {kind(layer).__name__}", f"the class {kind(other).__name__}"
    theirs, ours = _differences(_essence(to_json(layer), free), _essence(to_json(other), free))
    return theirs, ours


def load(path: Path) -> Any:
    """Create a layer from a file that ``save`` wrote, with the class, options and parameters in the file.

    Parameters
    ----------
    path : str or os.PathLike
        A file that ``layer.save(path)`` wrote.

    Returns
    -------
    layer or Sequential
        The layer has a new random generator for dropout. It is frozen if it was saved with weights in fewer bytes.

    Raises
    ------
    ValueError
        If the file was not saved by a layer of rnnfast, or is damaged. The file of another model than a Sequential does
        not contain its class: create such a model, and call its ``load``.
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
    return read(path)[0]


# ------------------------------------------------------------------------------------------------ arrays by their names


def from_state_dict(arrays: Mapping[str, ArrayLike], prefix: str = "", **options: Any) -> Any:
    """Create a layer from its parameters. Their names and shapes determine its class and sizes.

    Parameters
    ----------
    arrays : mapping of str to array_like
        Real values under torch's names, such as a ``state_dict`` of rnnfast or torch, the result of
        :func:`load_arrays`, or an open ``.npz`` file. The values are copied.
    prefix : str, default ""
        The start of the names that belong to the layer, such as "encoder." in the ``state_dict`` of a whole model.
        Other names are ignored. The names of torch's cells, such as ``weight_ih``, mean those of a single layer.
    **options
        Options of the class that the arrays do not determine, such as batch_first, dropout, and dtype, which is by
        default float64 for arrays of float64, and float32 for others. For an RNN, nonlinearity="relu" must be passed,
        and for a GRU of another convention than torch's reset_after=False. Options that the arrays determine, such as
        hidden_size, can be passed, and must agree.

    Returns
    -------
    RNN, LSTM, GRU, Bidirectional, Linear or LayerNorm
        A recurrent layer has 1, 3 or 4 gates, which tell RNN, GRU and LSTM apart. ``forward.<name>`` and
        ``backward.<name>`` are those of a Bidirectional, a matrix ``weight`` with a ``bias`` is a Linear, and a vector
        ``weight`` is that of a LayerNorm.

    Raises
    ------
    ValueError
        If the names and shapes are not those of one of these classes, or contradict an option (the message lists all
        differences). A matrix ``weight`` without a bias can be an Embedding or a Linear: call ``from_state_dict`` of
        the class.
    TypeError
        If `arrays` is not a mapping, if its values are not real numbers, or if the class lacks an option.

    Examples
    --------
    >>> import rnnfast
    >>> arrays = {f"encoder.{k}": v for k, v in rnnfast.LSTM(4, 8, 2, bidirectional=True).parameters.items()}
    >>> rnnfast.from_state_dict(arrays, "encoder.", batch_first=True)
    LSTM(4, 8, num_layers=2, batch_first=True, bidirectional=True)  # 2560 parameters
    """
    found = selected(arrays, prefix, FIRST, "weight", *(side + FIRST for side in SIDES.values()))
    return _class_of({name: value.shape for name, value in found.items()}).from_state_dict(found, **options)


def selected(arrays: Any, prefix: Any, *firsts: str) -> dict[str, Array]:
    """Return the arrays whose names start with `prefix`, without it. One of `firsts` must be among them."""
    if not hasattr(arrays, "keys"):
        raise TypeError(f"arrays must be a mapping of names to arrays, got {type(arrays).__name__}")
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a string, got {prefix!r}")
    every = [name for name in arrays if isinstance(name, str)]
    names = {name.removeprefix(prefix): name for name in every if name.startswith(prefix)}
    if "weight_ih" in names:  # of torch's cells
        names = {f"{short}_l0": name for short, name in names.items()}
    if not names.keys() & set(firsts):
        ends = tuple(sorted(firsts, key=len, reverse=True))
        others = sorted({name.removesuffix(end) for name in every for end in ends if name.endswith(end)})
        remedy = f"set prefix to one of {_some(others)}" if others else f"they have {_some(every) or 'no names'}"
        raise ValueError(f"arrays have no {prefix + firsts[0]!r}, which a layer needs (torch's names): {remedy}")
    return {short: arguments.array(f"arrays[{name!r}]", arrays[name]) for short, name in names.items()}


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:9])) + (f" and {len(names) - 9} more" if len(names) > 9 else "")


def _class_of(shapes: dict[str, tuple[int, ...]]) -> type[Any]:
    """Return the class that the parameters of a layer belong to."""
    if FIRST in shapes:
        recurrent = {one: functional.CELLS[one._cell] for one in CLASSES.values() if hasattr(one, "_cell")}
        if "weight_hh_l0" not in shapes:
            elementwise = [f"rnnfast.{one.__name__}" for one, info in recurrent.items() if info.elementwise]
            raise ValueError(
                f"arrays have no 'weight_hh_l0', so they can be those of {' or '.join(elementwise)}: call "
                "from_state_dict of the class"
            )
        gates = recurrent_options(shapes)[1]
        kinds: dict[float, Any] = {len(info.gates): one for one, info in recurrent.items() if not info.elementwise}
        if gates not in kinds:
            counts = ", ".join(f"{count} ({kind.__name__})" for count, kind in kinds.items())
            raise ValueError(f"{said(shapes)}, but layers have {counts}")
        return cast("type[Any]", kinds[gates])
    if all(side + FIRST in shapes for side in SIDES.values()):
        return CLASSES["Bidirectional"]
    if "weight" in shapes and len(shapes["weight"]) == 1:
        return CLASSES["LayerNorm"]
    if "weight" in shapes and "bias" in shapes:
        return CLASSES["Linear"]
    raise ValueError(
        "arrays can be those of an Embedding, or of a Linear without bias: call rnnfast.Embedding.from_state_dict or "
        "rnnfast.Linear.from_state_dict"
        if "weight" in shapes
        else f"arrays must have both {' and '.join(side + FIRST for side in SIDES.values())}, as a Bidirectional has"
    )


def recurrent_options(
    shapes: Mapping[str, tuple[int, ...]], info: functional.CellInfo | None = None
) -> tuple[dict[str, Any], float]:
    """Return the options of a recurrent layer that its parameters determine, and the number of its gates.

    `info` is that of a cell of its class, which only a class with elementwise cells has to pass.
    """
    projection = ["weight_hr_l0"] if "weight_hr_l0" in shapes else []
    needed = _sized(info)
    for name in (*needed, *projection):
        if len(shapes.get(name, ())) != 2:
            got = f"shape {shapes[name]}" if name in shapes else f"only {_some(list(shapes)) or 'an empty mapping'}"
            raise ValueError(f"the parameters must contain a matrix {name} (torch's names), got {got}")
    if info is not None and len(needed) == 1:
        hidden_size = shapes[FIRST][0] // len(info.gates)
    else:
        hidden_size = shapes[(*projection, needed[-1])[0]][1]
    num_layers = 1
    while f"weight_ih_l{num_layers}" in shapes:
        num_layers += 1
    options = {
        "input_size": shapes[FIRST][1],
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "proj_size": shapes[projection[0]][0] if projection else 0,
        "bias": not shapes.keys().isdisjoint(("bias_ih_l0", "bias_hh_l0")),
        "bidirectional": f"{FIRST}_reverse" in shapes,
        "peepholes": "peephole_l0" in shapes and "peephole_l0" not in needed,
        "init_state": any(name.startswith(("h0_l", "c0_l")) for name in shapes),
    }
    return options, shapes[FIRST][0] / hidden_size if hidden_size else 0


def _sized(info: functional.CellInfo | None) -> list[str]:
    """Return the matrices that determine the sizes of a layer."""
    if info is None or not info.elementwise:
        return [FIRST, "weight_hh_l0"]
    return [FIRST, f"{info.extra}_l0"] if info.extra else [FIRST]


def said(shapes: Mapping[str, tuple[int, ...]], info: functional.CellInfo | None = None) -> str:
    """Return the number of gates as the beginning of a message."""
    _, gates = recurrent_options(shapes, info)
    named = " and ".join(f"{name} {shapes[name]}" for name in _sized(info))
    return f"the shapes of {named} imply {gates:g} gates"


def agreed(read: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a layer: those that its parameters determine, and those passed, which must agree."""
    for name, value in given.items():
        if name in read and (isinstance(value, np.ndarray) or value != read[name]):
            raise ValueError(
                f"{name}={value!r} contradicts the parameters, whose names and shapes imply {name}={read[name]!r}: "
                "leave it out"
            )
    return {**read, **given}


def fit(
    arrays: Mapping[str, ArrayLike], own: Mapping[str, tuple[int, ...]], layer: Any, strict: bool = True
) -> dict[str, Array]:
    """Return the arrays for the parameters of a layer in its dtype, without copies if possible.

    Parameters
    ----------
    own : mapping of str to tuple of int
        The shapes of the layer's parameters.
    """
    values, faults = {}, []
    for name in arrays:
        if name in own:
            value = arguments.real(f"arrays[{name!r}]", arrays[name], layer.dtype)
            if value.shape == own[name]:
                values[name] = value
            else:
                faults.append(f"{name} must have shape {own[name]} (torch's layout), got {value.shape}")
        elif strict:
            faults.append(f"{name} is not a parameter of this layer")
    if strict:
        faults.extend(f"{name} is missing" for name in own if name not in arrays)
    if faults:
        raise ValueError(f"arrays do not fit {describe(layer)}: {'; '.join(faults)}")
    return values
