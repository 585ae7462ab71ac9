"""Models in the files of other programs: find their recurrent layers, and build what rnnfast can of the rest.

:func:`from_file` is ``rnnfast.from_file``. The content of a file determines its format, not its suffix.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from rnnfast import files, weights
from rnnfast._types import Array, Path
from rnnfast.layers import RNN, Bidirectional, Embedding, Linear, saving
from rnnfast.layers.recurrent import Recurrent
from rnnfast.models import Sequential
from rnnfast.models.sequential import features

from ._common import Content

__all__ = ["Found", "from_file", "read"]

MOST = 8  # layers whose order is searched for


class Found(NamedTuple):
    """What was built from a file."""

    form: str  # of the file, with its article
    layer: Any
    parts: dict[str, Any]  # of the layer, by their names in the file
    left_out: dict[str, str]
    notes: list[str]


def from_file(path: Path, name: str | Sequence[str] | None = None) -> Any:
    """Build a layer from a file of another program.

    Recurrent layers are built, and the Embedding, Linear and Activation layers around them if the file shows that the
    model is a plain chain. ``rnnfast convert`` does the same on the command line.

    Parameters
    ----------
    path : str or os.PathLike
        A file in one of these formats; what it needs is in brackets:

        - safetensors, or JSON: arrays under torch's names;
        - a ``state_dict`` or a checkpoint that ``torch.save`` wrote [torch], read with ``weights_only=True``;
        - ONNX [onnx];
        - Keras 1, 2 or 3, ``.keras``, ``.h5`` or ``.hdf5`` [h5py]: see :mod:`rnnfast.backends.keras_files`;
        - NAM, architecture LSTM; RTNeural and AIDA-X; Proteus and NeuralPi;
        - ``save`` of a layer of rnnfast.
    name : str or sequence of str, optional
        The name of a layer in the file, such as "encoder.lstm", or the start of the names of several. A sequence of
        names is a chain in this order. By default, the whole file.

    Returns
    -------
    RNN, LSTM, GRU, Bidirectional or Sequential
        A Sequential for a chain. With `name`, it can also be a Linear or an Embedding. Layers of a Keras model have
        batch_first=True, those of an ONNX model the layout of its input, and others batch_first=False.

    Warns
    -----
    UserWarning
        If parts of the file were left out, or if something that affects the results is not in it. The message lists
        both.

    Raises
    ------
    ValueError
        If the format is unknown, the file is damaged or holds no recurrent layer; if it holds several that form no
        chain; or if `name` is not in it. The message lists what was found.
    OSError
        If the file cannot be read, is not a regular file, or does not fit into memory.
    ImportError
        If the package that reads the format is not installed.

    Notes
    -----
    Arrays under torch's names do not say how the layers are connected. They form a chain if nothing else is in the
    file, and the numbers of features fit in one order only, or if the names are those of a ``torch.nn.Sequential``.
    What has no parameters, such as activations and the choice of the last step, is not in such a file: the warning
    says so. An ONNX chain is accepted only if it returns what the model returns for random inputs.

    For options that are not in the arrays, such as batch_first or the nonlinearity of an RNN, call
    :func:`rnnfast.from_state_dict` with the result of :func:`rnnfast.load_arrays`.

    Examples
    --------
    >>> import os, tempfile, rnnfast
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "model.safetensors")
    ...     rnnfast.save_arrays(path, {f"encoder.{k}": v for k, v in rnnfast.GRU(4, 8).parameters.items()})
    ...     rnnfast.from_file(path)
    GRU(4, 8)  # 336 parameters
    """
    found = read(path, name)
    left_out = _some([f"{one!r} ({what})" for one, what in found.left_out.items()])
    remarks = [*([f"left out: {left_out}"] if left_out else []), *found.notes]
    if remarks:
        built = _some([f"{one!r} ({saving.describe(part)})" for one, part in found.parts.items()])
        text = "; ".join([f"{os.fsdecode(path)!r} is {found.form}; built: {built}", *remarks])
        warnings.warn(text, stacklevel=2)
    return found.layer


def read(path: Path, name: str | Sequence[str] | None = None) -> Found:
    """Build a layer from a file, and report what was built and left out. See `from_file`."""
    names = [name.rstrip(".")] if isinstance(name, str) else list(name) if isinstance(name, Sequence) else None
    if name is not None and not (names and all(isinstance(one, str) for one in names)):
        raise TypeError(f"name must be a string or a sequence of strings, got {name!r}")
    with files.reading(path) as file:
        return _chosen(_content(file, os.fsdecode(path)), names)


# ---------------------------------------------------------------------------------------------------------- formats


def _content(file: BinaryIO, path: str) -> Content:
    """Read a file, whose first bytes tell its format."""
    known = files.format_of(file)
    if known is not None:
        return in_arrays(f"a {known}", weights.load_arrays(path))
    begin = file.read(200)
    if begin[30:41] == b"rnnfast.npy":
        own = saving.load(path)
        layers = own.layers if isinstance(own, Sequential) else (own,)
        return Content("a file of rnnfast", {str(k): layer for k, layer in enumerate(layers)}, {}, {}, True)
    if begin.startswith(b"\x89HDF\r\n\x1a\n") or (begin[:4] == b"PK\x03\x04" and _holds_keras(file)):
        from . import keras_files

        return keras_files.read_model(path)
    if begin.lstrip()[:1] == b"{":
        from . import _audio_files

        file.seek(0)
        about = files.json_object(str(file.read(), "utf-8"))
        found = _audio_files.read_model(about)
        return found if isinstance(found, Content) else in_arrays("a JSON file", found)
    if begin[:1] == b"\x08":  # the first field of a ModelProto, its version
        from .onnx import chains

        return chains.read_model(path)
    form = files.other_format(file)
    remedies = {
        "a TorchScript": "save its weights: torch.save(torch.jit.load(path).state_dict(), 'weights.pt')",
        "a zip": "if numpy.load reads it, pass numpy.load(path) to rnnfast.from_state_dict",
    }
    remedy = next((text for start, text in remedies.items() if form.startswith(start)), "")
    raise ValueError(
        f"it is {form}, but from_file reads safetensors, torch.save, ONNX, Keras, NAM, RTNeural and rnnfast's own files"
        f"{remedy and ': '}{remedy}"
    )


def _holds_keras(file: BinaryIO) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return "model.weights.h5" in archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError):
        return False


# ------------------------------------------------------------------------------------------- arrays under torch's names


def in_arrays(form: str, arrays: Mapping[str, Array]) -> Content:
    """Find the layers in arrays under torch's names, such as a ``state_dict``."""
    groups: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        prefix, _, short = name.rpartition(".")
        groups.setdefault(prefix, {})[short] = array
    for prefix in [one for one in groups if one.rpartition(".")[2] == "forward"]:
        parent = prefix.removesuffix("forward")
        both = {side: groups.get(f"{parent}{side}", {}) for side in ("forward", "backward")}
        if all(saving.FIRST in group for group in both.values()):
            for side in both:
                del groups[f"{parent}{side}"]
            groups[parent.removesuffix(".")] = {
                f"{side}.{short}": array for side, group in both.items() for short, array in group.items()
            }
    parts, left_out, notes = {}, {}, {}
    for prefix, group in groups.items():
        try:
            part = _part(prefix, group)
        except ValueError as error:
            left_out[prefix] = str(error)
            continue
        if part is None:
            left_out[prefix] = _some([f"{short} {array.shape}" for short, array in group.items()])
            continue
        parts[prefix] = part
        if len(group) == 1:
            kinds = ("an Embedding", "a Linear without bias")[:: 1 if isinstance(part, Embedding) else -1]
            notes[prefix] = f"{prefix!r} can be {kinds[0]} or {kinds[1]}: the name suggests {kinds[0]}"
        elif isinstance(part, RNN):
            notes[prefix] = f"the nonlinearity of {prefix!r} is not in the file: tanh is assumed"
    return Content(form, parts, left_out, notes, None)


def _part(prefix: str, group: Mapping[str, Array]) -> Any:
    """Build the layer of one module; None if it is of another class."""
    if any(array.dtype.kind != "f" for array in group.values()):
        return None  # quantized, or counts
    if not {saving.FIRST, "weight_ih", f"forward.{saving.FIRST}"}.isdisjoint(group):
        return saving.from_state_dict(group)
    matrix = group.get("weight")
    if matrix is None or matrix.ndim != 2 or group.keys() - {"weight", "bias"}:
        return None
    is_embedding = len(group) == 1 and "emb" in prefix.rpartition(".")[2].lower()
    return (Embedding if is_embedding else Linear).from_state_dict(group)


# ------------------------------------------------------------------------------------------------- choice of the layers


def _chosen(content: Content, names: list[str] | None) -> Found:
    """Build the layer of these names, or of the whole file."""
    parts = content.parts
    if names is None:
        order = _order(content)
        if not order:
            order = [name for name, part in parts.items() if isinstance(part, (Recurrent, Bidirectional))]
            if len(order) != 1:
                what = f"{len(order)} recurrent layers, which form no plain chain" if order else "no recurrent layer"
                raise ValueError(
                    f"it is {content.form} with {what}: {_listed(content) or 'it is empty'}"
                    + ("; set name to one of them, or to a list of names in the order of the calls" if order else "")
                )
    elif len(names) > 1:
        order = [_one(content, name) for name in names]
    elif names[0] in parts:
        order = names
    else:
        start = f"{names[0]}."
        inner = {one: part for one, part in parts.items() if one.startswith(start)}
        rest = {one: what for one, what in content.left_out.items() if f"{one}.".startswith(start)}
        if not inner:
            _one(content, names[0])
        every = list(parts)
        begin = every.index(next(iter(inner)))
        plain = content.plain and every[begin : begin + len(inner)] == list(inner)
        part = content._replace(parts=inner, left_out=rest, plain=plain)
        return _chosen(part, None if len(inner) > 1 else list(inner))
    chosen = {name: parts[name] for name in order}
    notes = {name: note for name, note in content.notes.items() if name in ("", *chosen)}
    if len(order) > 1 and _is_table(*map(parts.get, order[:2])):
        chosen[order[0]] = Embedding.from_state_dict(parts[order[0]].parameters)
        notes[order[0]] = (
            f"{order[0]!r} can be an Embedding or a Linear without bias: only an Embedding fits what follows"
        )
    layers, remarks = list(chosen.values()), list(notes.values())
    others = {name: saving.describe(part) for name, part in parts.items() if name not in chosen}
    if content.plain is None and len(layers) > 1 and names is None:
        remarks.append(
            f"{content.form} does not hold the graph of the model: what lies between these layers, such as activations "
            "and the choice of the last step, is missing"
        )
    left_out = {**others, **content.left_out} if names is None else {}
    return Found(content.form, Sequential(*layers) if len(layers) > 1 else layers[0], chosen, left_out, remarks)


def _is_table(part: Any, following: Any) -> bool:
    """Return whether a matrix that was taken for a Linear fits the layer that follows only as an Embedding."""
    if not isinstance(part, Linear) or part.bias:
        return False
    width = features(following)[0]
    return width is not None and width != part.out_features and width == part.in_features


def _one(content: Content, name: str) -> str:
    if name not in content.parts:
        raise ValueError(
            f"name must be that of a layer in the file, got {name!r}: it is {content.form} with {_listed(content)}"
        )
    return name


def _listed(content: Content) -> str:
    found = {name: saving.describe(part) for name, part in content.parts.items()} | content.left_out
    return _some([f"{name!r}: {what}" for name, what in found.items()])


def _some(texts: list[str]) -> str:
    return ", ".join(texts[:9]) + (f" and {len(texts) - 9} more" if len(texts) > 9 else "")


def _order(content: Content) -> list[str] | None:
    """Return the names of the layers of a chain; None if the file holds something else."""
    names = list(content.parts)
    if content.plain is not None:
        return names if content.plain else None
    if content.left_out or len(names) < 2:
        return None
    numbered = [re.fullmatch(r"(.*\.)?(\d{1,9})", name) for name in names]
    if all(numbered) and len({match[1] for match in numbered if match}) == 1:
        return sorted(names, key=lambda name: int(name.rpartition(".")[2]))
    if len(names) > MOST:
        return None
    fitting: list[list[str]] = []

    def extend(path: list[str]) -> None:
        rest = [name for name in names if name not in path]
        if len(fitting) > 1:
            return
        if not rest:
            fitting.append(path)
        for name in rest:
            width = features(content.parts[name])[0]
            if not path or (width is not None and width == features(content.parts[path[-1]])[1]):
                extend([*path, name])

    extend([])
    if len(fitting) > 1:
        raise ValueError(
            f"it is {content.form} with {_listed(content)}, whose sizes fit in several orders, such as "
            f"{' or '.join(map(repr, fitting[:2]))}: set name to a list of names in the order of the calls"
        )
    return fitting[0] if fitting else None
