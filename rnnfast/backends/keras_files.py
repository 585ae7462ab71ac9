"""Files of models and weights that Keras 1, 2 and 3 write. Reading them needs h5py, but neither Keras nor TensorFlow.

>>> import numpy as np
>>> from rnnfast.backends.keras_files import load_layers
>>> layers = load_layers("model.h5")  # doctest: +SKIP
>>> y, (h, c) = layers["lstm_1"](np.zeros((1, 20, 59)))  # doctest: +SKIP

The formats are the HDF5 files of ``model.save("model.h5")`` and ``model.save_weights("weights.h5")`` of Keras 1, 2 and
3 and of tf.keras, and the ``.keras`` and ``.weights.h5`` files of Keras 3. A file of a whole model also holds the
options of its layers, such as their activations. A file of weights does not.

The weights of CuDNNLSTM and CuDNNGRU are converted to the layout of the other layers, and so are the separate matrices
of each gate in files of Keras 1.

A damaged HDF5 file can crash the C library on which h5py is built. Open only files that you trust.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from rnnfast import files, layers, options
from rnnfast._types import Array, Path
from rnnfast.backends._common import ACTIVATION_LAYERS, Content, positions, reject, reorder
from rnnfast.layers import saving

try:
    import h5py
except ModuleNotFoundError as error:
    raise ImportError("rnnfast.backends.keras_files needs h5py: pip install 'rnnfast[h5py]'") from error

__all__ = ["load_layers", "load_weights"]

# Keras 3's activation functions as values for the `activations` option of rnnfast's layers.
ACTIVATIONS: dict[str, Any] = {
    "linear": ("affine", 1.0, 0.0),
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "relu": "relu",
    "leaky_relu": ("leaky_relu", 0.2),
    "hard_sigmoid": ("hard_sigmoid", 1 / 6, 0.5),
    "elu": ("elu", 1.0),
    "softsign": "softsign",
    "softplus": "softplus",
}
BEFORE_KERAS_3 = {**ACTIVATIONS, "hard_sigmoid": ("hard_sigmoid", 0.2, 0.5)}
MERGES = {"concat": "concat", "sum": "sum", "mul": "mul", "ave": "mean", None: None}


class Kind(NamedTuple):
    """A layer type in both libraries."""

    name: str  # of Keras's layer
    ours: Any  # the class of rnnfast
    cell: str  # rnnfast's
    order: str  # of Keras's gates, in rnnfast's letters
    functions: tuple[str, ...]  # the Keras option that corresponds to each of rnnfast's `activations`
    separate: str  # the letters of the gates in names of Keras 1, in the order of `order`
    shared: tuple[str, ...] = ()  # further options with the same name in both

    @property
    def gates(self) -> list[int]:
        return positions(self.cell, self.order)  # each of these permutations is its own inverse


KINDS = (
    Kind("SimpleRNN", layers.RNN, "rnn_tanh", "h", ("activation",), ""),
    Kind("LSTM", layers.LSTM, "lstm", "ifgo", ("recurrent_activation", "activation", "activation"), "ifco"),
    Kind("GRU", layers.GRU, "gru", "zrn", ("recurrent_activation", "activation"), "zrh", ("reset_after",)),
)
NEUTRAL = ("InputLayer", "Dropout", "SpatialDropout1D", "Masking")  # they keep the values of x in inference
_BY_GATES: dict[float, Kind] = {len(kind.order): kind for kind in KINDS}
_CLASSES = {f"{prefix}{kind.name}" for kind in KINDS for prefix in ("", "CuDNN")}
_CELLS = {f"{kind.name}Cell" for kind in KINDS}

# ------------------------------------------------------------------------------------------------- public functions


def load_layers(
    path: str | os.PathLike[str],
    config: str | bytes | Mapping[str, Any] | None = None,
    recurrent_activation: str | None = None,
) -> dict[str, Any]:
    """Create layers of rnnfast from a file of Keras: recurrent layers, Bidirectional, Dense and Embedding.

    Parameters
    ----------
    path : str or os.PathLike
        A file in one of the formats of :mod:`rnnfast.backends.keras_files`.
    config : str, bytes or mapping, optional
        The options of the layers, for a file that holds only weights: the JSON text of ``model.to_json()``, or its
        content. By default, the options in the file.
    recurrent_activation : str, optional
        The activation of the gates of LSTM and GRU layers, for a file that holds only weights, without `config`:
        "sigmoid", the default of Keras since version 2.3, or "hard_sigmoid", the default before. CuDNN layers always
        use sigmoid. The other options are then assumed to have Keras's defaults.

    Returns
    -------
    dict of str to RNN, LSTM, GRU, Bidirectional, Linear or Embedding
        By the names of the layers in Keras, in the order of the file. The names of several layers within a layer, such
        as a model within a model, are "outer/inner", or in files of Keras 3 "inner"; if a name occurs twice, the second
        layer is listed by its path in the file. A Dense becomes a Linear, without its activation. The recurrent layers
        have batch_first=True, and return the outputs of all steps and the state, as in
        :func:`rnnfast.backends.keras.layer_from_keras`. Layers of other classes are left out.

    Raises
    ------
    ValueError
        If the file is in another format, which the message names, if it is damaged, if it holds none of these layers,
        or if one of them has an activation that rnnfast lacks.
    TypeError
        If `config` has another type.
    OSError
        If the file cannot be read.

    Notes
    -----
    ``hard_sigmoid`` is max(0, min(1, 0.2 x + 0.5)) in Keras 1 and 2, and max(0, min(1, x / 6 + 0.5)) in Keras 3. The
    version of Keras that wrote the file decides.
    """
    about = json.loads(config) if isinstance(config, (str, bytes)) else config
    if not (about is None or isinstance(about, Mapping)):
        raise TypeError(f"config must be the text of model.to_json(), or its content, got {type(about).__name__}")
    with _opened(path) as model:
        if about is not None:
            model = model._replace(options=_options_by_name(about))
            if "keras_version" in about:
                model = model._replace(activations=_activations(_major(about["keras_version"])))
        if recurrent_activation is not None and recurrent_activation not in model.activations:
            raise ValueError(
                f"recurrent_activation must be one of {', '.join(model.activations)}, got {recurrent_activation!r}"
            )
        return model.build(recurrent_activation)


def load_weights(layer: Any, path: str | os.PathLike[str], name: str | None = None) -> None:
    """Copy the weights of one recurrent layer from a file of Keras into a layer of rnnfast.

    Parameters
    ----------
    layer : rnnfast.LSTM, GRU, RNN or Bidirectional
        With num_layers=1. The weights of a keras.layers.Bidirectional need a layer with two directions.
    path : str or os.PathLike
        A file in one of the formats of :mod:`rnnfast.backends.keras_files`.
    name : str, optional
        The name of the Keras layer in the model, or its path in the file, such as "layers/lstm_1". Optional if the file
        contains only one such layer.

    Raises
    ------
    ValueError
        If the file is in another format, which the message names, if it does not contain exactly one matching layer
        (the error lists the layers found), or if the arrays do not fit `layer`.
    TypeError
        If `layer` is not one of these.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import rnnfast
    >>> layer = rnnfast.LSTM(4, 8, batch_first=True)
    >>> load_weights(layer, "model.weights.h5", "encoder")  # doctest: +SKIP
    """
    directions = directions_of(layer)
    with _opened(path) as model:
        places = [one for one in model.found if one.recurrent and len(one.parts) == len(directions)]
        if len(directions) == 1:
            places += [half for one in model.found for half in one.halves()]
        chosen = [one for one in places if name in (None, one.place, one.name)]
        if len(chosen) != 1:
            listed = ", ".join(f"{one.name!r} at {one.place!r}" for one in places) or "none"
            raise ValueError(
                f"it contains {len(chosen)} recurrent layers {'' if name is None else f'named {name!r} '}for "
                f"{saving.describe(layer)}, but exactly one is needed: set name to the name or path of one of these: "
                f"{listed}"
            )
        values: dict[str, Array] = {}
        for side, part in zip(directions, chosen[0].parts, strict=True):
            arrays = _canonical(part)
            _check(side, arrays, repr(chosen[0].place))
            values.update(to_parameters(side.kind, arrays, side.names))
    layer.load_state_dict(values)


def read_model(path: Path) -> Content:
    """Build the layers of a file. They form a plain chain in a Sequential model of layers that rnnfast has."""
    with _opened(path) as model:
        if model.options is None:
            raise ValueError(
                "it holds weights, but not the options of the layers: call rnnfast.backends.keras_files.load_layers "
                "with recurrent_activation or config, or convert the file of the whole model"
            )
        built, form = model.build(), "a file of Keras"
        try:
            return Content(form, *_chain(built, model.config), True)
        except _NoChainError:
            return Content(form, built, _other_classes(model.config, built), {}, False)


class _NoChainError(Exception):
    """The model is more than a chain of layers that rnnfast has."""


def _listed(config: Any) -> list[dict[str, Any]]:
    """The descriptions of the layers in that of a model."""
    inner = config.get("config") if isinstance(config, dict) else None
    listed = inner.get("layers") if isinstance(inner, dict) else inner  # Keras 1 has only the list
    return [one for one in listed if isinstance(one, dict) and "name" in one.get("config", ())] if listed else []


def _other_classes(config: Any, built: Mapping[str, Any]) -> dict[str, str]:
    return {
        one["config"]["name"]: str(one["class_name"])
        for one in _listed(config)
        if one["config"]["name"] not in built and one["class_name"] not in NEUTRAL
    }


def _chain(built: Mapping[str, Any], config: Any) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """The layers of a Sequential model in order, an activation that is left out, and notes."""
    if not isinstance(config, dict) or config.get("class_name") != "Sequential":
        raise _NoChainError
    parts: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    notes = {}
    for one in _listed(config):
        name, kind, given = one["config"]["name"], one["class_name"], one["config"]
        while kind in ("TimeDistributed", "Bidirectional"):
            kind, given = given["layer"]["class_name"], {**given, **given["layer"]["config"]}
        if left_out or (name not in built and kind not in ("Activation", *NEUTRAL)):
            raise _NoChainError
        if kind == "Masking" or given.get("mask_zero"):
            notes[name] = f"{name!r} of the Keras model masks steps: pass lengths or mask to a call"
        if name in built:
            parts[name] = built[name]
        if kind in ("Dense", "Activation"):
            function = given.get("activation") or "linear"
            if function in ACTIVATION_LAYERS:
                parts[f"{name}.activation"] = layers.Activation(function)  # type: ignore[arg-type]
            elif function != "linear":
                left_out[f"{name}.activation"] = str(function)
        elif name in built and kind != "Embedding":
            parts |= _last(name, built[name], given)
    if not built.keys() <= parts.keys():
        raise _NoChainError
    return parts, left_out, notes


def _last(name: str, layer: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The layer that takes the last output of a recurrent layer, unless that returns all outputs."""
    sides = [layer.forward_layer, layer.backward_layer] if isinstance(layer, layers.Bidirectional) else []
    if sides and (layer.merge is None or sides[0].hidden_size != sides[1].hidden_size):
        raise _NoChainError
    if given.get("return_sequences"):
        if given.get("go_backwards"):  # Keras returns the outputs of the last step first
            raise _NoChainError
        return {}
    if given.get("go_backwards") or (sides and layer.merge != "concat"):
        raise _NoChainError
    return {f"{name}.last": layers.Pool("last", batch_first=True, bidirectional=bool(sides))}


# ----------------------------------------------------------------------------------------- conversion of the weights


class Side(NamedTuple):
    """One direction of a layer."""

    layer: layers.Recurrent[Any]
    kind: Kind
    names: str  # format string for the names of its parameters; {} stands for "weight_ih" and so on
    functions: Sequence[Any]
    backwards: bool


def directions_of(layer: Any) -> list[Side]:
    """The directions of a layer of rnnfast. Raises an error if Keras has no equivalent."""
    if isinstance(layer, layers.Bidirectional):
        forward, backward = directions_of(layer.forward_layer), directions_of(layer.backward_layer)
        return [
            forward[0]._replace(names="forward." + forward[0].names),
            backward[0]._replace(names="backward." + backward[0].names, backwards=True),
        ]
    kind = next((kind for kind in KINDS if isinstance(layer, kind.ours)), None)
    if kind is None:
        raise TypeError(f"layer must be an rnnfast LSTM, GRU, RNN or Bidirectional, got {type(layer).__name__}")
    hint = "use a layer without, and convert a stack as one layer for each of its layers"
    reject(layer, "Keras", "reverse", "activations", "nonlinearity", "reset_after", hint=hint)
    functions, count = layer.activations or options.DEFAULTS[layer.engine.cell], len(kind.functions)
    forward_side = Side(layer, kind, "{}_l0", functions[:count], layer.reverse)
    if not layer.bidirectional:
        return [forward_side]
    return [forward_side, Side(layer, kind, "{}_l0_reverse", functions[-count:], True)]


def with_activations(kind: Kind, functions: tuple[Any, ...]) -> dict[str, Any]:
    """The options of a layer of rnnfast with these activations."""
    if functions == options.DEFAULTS[kind.cell]:
        return {}
    return {"nonlinearity": "relu"} if functions == ("relu",) else {"activations": functions}


def single(kind: Kind, chosen: Mapping[str, Any], weights: Sequence[Array]) -> layers.Recurrent[Any]:
    """A layer of rnnfast with these options and with Keras's weights."""
    layer: layers.Recurrent[Any] = kind.ours.from_state_dict(
        to_parameters(kind, weights, "{}_l0"), dtype=weights[0].dtype, batch_first=True, **chosen
    )
    return layer


def to_parameters(kind: Kind, weights: Sequence[Array], names: str) -> dict[str, Array]:
    """The parameters of one direction from Keras's kernel, recurrent_kernel and optional bias."""
    kernel, recurrent_kernel, *biases = weights
    arrays = {"weight_ih": kernel.T, "weight_hh": recurrent_kernel.T}
    for bias in biases:
        arrays["bias_ih"], arrays["bias_hh"] = bias if bias.ndim == 2 else (bias, np.full_like(bias, -0.0))
    return {names.format(name): reorder(array, kind.gates) for name, array in arrays.items()}


def _check(side: Side, arrays: Sequence[Array], where: str) -> None:
    """Raise an error if arrays from a file do not fit a layer."""
    I, H, G = side.layer.input_size, side.layer.hidden_size, len(side.kind.gates)
    bias = (2, G * H) if getattr(side.layer, "reset_after", False) else (G * H,)
    needed = [(I, G * H), (H, G * H), *([bias] if side.layer.bias else [])]
    shapes = [array.shape for array in arrays]
    # cuDNN's LSTM has two biases, as ours has.
    if shapes != needed and not (side.kind.name == "LSTM" and shapes == [*needed[:2], (2, G * H)][: len(needed)]):
        raise ValueError(
            f"{where} has arrays of shapes {shapes}, but {saving.describe(side.layer)} needs {needed}: use a layer of "
            "matching sizes and options (a GRU's bias of shape (2, ...) needs reset_after=True)"
        )


def _canonical(part: Mapping[str, Any]) -> list[Array]:
    """Keras 3's kernel, recurrent_kernel and optional bias from the arrays of a layer, in the layout of any version.

    The bias of a CuDNNLSTM becomes (2, 4*H), which Keras 3 does not have.
    """
    arrays = {name: _read(dataset) for name, dataset in part.items()}
    for kind in KINDS:  # Keras 1: one array for each gate
        if kind.separate and {f"W_{gate}" for gate in kind.separate} <= arrays.keys():
            arrays = {
                name: np.concatenate([arrays[f"{name}_{gate}"] for gate in kind.separate], axis=-1)
                for name in ("W", "U", "b")
            }
    arrays = {{"W": "kernel", "U": "recurrent_kernel", "b": "bias"}.get(name, name): arrays[name] for name in arrays}
    kernel, recurrent = arrays["kernel"], arrays["recurrent_kernel"]
    if kernel.ndim != 2 or recurrent.ndim != 2 or not recurrent.size or kernel.shape[1] != recurrent.shape[1]:
        raise ValueError(f"kernels of shapes {kernel.shape} and {recurrent.shape} are not those of a recurrent layer")
    (I, width), H = kernel.shape, len(recurrent)
    if "bias" not in arrays:
        return [kernel, recurrent]
    bias = arrays["bias"]
    if bias.shape not in ((width,), (2, width), (2 * width,)):
        raise ValueError(
            f"a bias of shape {bias.shape} does not fit kernels of shapes {kernel.shape}, {recurrent.shape}"
        )
    if width in (3 * H, 4 * H) and bias.shape == (2 * width,):  # cuDNN
        # For each gate, cuDNN's matrices lie in this memory as ours do, (H, I) and (H, H).
        blocks = [block.reshape(H, I).T for block in np.split(kernel, width // H, axis=1)]
        kernel = np.concatenate(blocks, axis=1)
        recurrent = np.concatenate([block.T for block in np.split(recurrent, width // H, axis=1)], axis=1)
        bias = bias.reshape(2, width)
    return [kernel, recurrent, bias]


def _read(dataset: Any) -> Array:
    if dataset.dtype.kind != "f":
        raise ValueError(f"its dataset {dataset.name!r} has dtype {dataset.dtype}, not one of real numbers")
    if dataset.nbytes > 2000 * dataset.id.get_storage_size():  # more than compression saves
        raise ValueError(f"its dataset {dataset.name!r} has {dataset.nbytes} bytes, but they are not in the file")
    array: Array = dataset[()]
    return array.astype(np.float64 if array.itemsize > 4 else np.float32, copy=False)


# ------------------------------------------------------------------------------------------------ layers in a file


class _Model(NamedTuple):
    """A file: its layers, their options by name if it holds them, and the activations of the version that wrote it."""

    found: list[_Found]
    options: dict[str, dict[str, Any]] | None  # like {"class_name": "LSTM", "config": {...}}
    activations: Mapping[str, Any]
    config: Any = None  # the description of the whole model, if the file holds it

    def build(self, recurrent_activation: str | None = None) -> dict[str, Any]:
        """The layers of rnnfast, by their names."""
        built = {}
        for found in self.found:
            layer = found.build(self, recurrent_activation)
            if layer is not None:
                built[found.place if found.name in built else found.name] = layer
        if not built:
            raise ValueError("it contains no recurrent, Dense or Embedding layer")
        return built


class _Found(NamedTuple):
    """A layer in a file."""

    name: str
    place: str  # path in the file
    parts: list[dict[str, Any]]  # the datasets by name: one dict, or two of a Bidirectional
    others: tuple[str, ...] = ()  # further names under which the file may hold its options
    inner: tuple[tuple[str, str], ...] = ()  # names and places of the layers of a Bidirectional

    @property
    def recurrent(self) -> bool:
        return any("recurrent_kernel" in part or any(name[:1] == "U" for name in part) for part in self.parts)

    def halves(self) -> list[_Found]:
        """The layers of a Bidirectional."""
        return [_Found(*named, [part]) for named, part in zip(self.inner, self.parts, strict=False)]

    def build(self, model: _Model, recurrent_activation: str | None) -> Any:
        """A layer of rnnfast; None if this is a layer of another class."""
        about = None
        if model.options is not None:
            names = [name for name in (self.name, *self.others) if name in model.options]
            if not names:
                return None
            about = model.options[names[0]]
        try:
            if self.recurrent:
                return self._recurrent(about, model.activations, recurrent_activation)
            return self._pointwise(about)
        except (ValueError, TypeError) as error:
            raise ValueError(f"layer {self.name!r} at {self.place!r}: {error}") from error

    def _recurrent(
        self, about: Mapping[str, Any] | None, activations: Mapping[str, Any], recurrent_activation: str | None
    ) -> Any:
        if len(self.parts) == 1:
            return _single(self.parts[0], about, activations, recurrent_activation)
        config = {} if about is None else about["config"]
        forward = config.get("layer")
        backward = config.get("backward_layer") or (
            forward and {**forward, "config": {**forward["config"], "go_backwards": True}}
        )
        made = [
            _single(part, inner, activations, recurrent_activation, reverse)
            for part, inner, reverse in zip(self.parts, (forward, backward), (False, True), strict=True)
        ]
        merge: Any = MERGES[config.get("merge_mode", "concat")]
        return layers.Bidirectional(made[0], made[1], merge)

    def _pointwise(self, about: Mapping[str, Any] | None) -> Any:
        [part] = self.parts
        named = {"W": "embeddings"} if about and about["class_name"] == "Embedding" else {"W": "kernel", "b": "bias"}
        arrays = {named.get(name, name): dataset for name, dataset in part.items()}
        if arrays.keys() == {"embeddings"}:
            return layers.Embedding.from_state_dict({"weight": _read(arrays["embeddings"])})
        if arrays.keys() in ({"kernel"}, {"kernel", "bias"}) and arrays["kernel"].ndim == 2:
            if about is None and part.keys() == {"W"}:
                return None  # a Dense or an Embedding
            bias = {"bias": _read(arrays["bias"])} if "bias" in arrays else {}
            return layers.Linear.from_state_dict({"weight": _read(arrays["kernel"]).T, **bias})
        return None


def _single(
    part: Mapping[str, Any],
    about: Mapping[str, Any] | None,
    activations: Mapping[str, Any],
    recurrent_activation: str | None,
    reverse: bool = False,
) -> layers.Recurrent[Any]:
    """A recurrent layer of one direction."""
    weights = _canonical(part)
    kind = _BY_GATES.get(weights[0].shape[1] / len(weights[1]))
    if kind is None:
        raise ValueError(f"kernels of shapes {weights[0].shape} and {weights[1].shape} have no known number of gates")
    cudnn = "bias" in part and part["bias"].shape == (2 * weights[0].shape[1],)
    given: dict[str, Any] = {"activation": "tanh", "go_backwards": reverse}
    if about is not None:
        config = about["config"]
        given |= {**config, **config.get("cell", {}).get("config", {})}
        given.setdefault("recurrent_activation", given.get("inner_activation", "sigmoid"))
    elif cudnn:
        given["recurrent_activation"] = "sigmoid"
    elif kind.name != "SimpleRNN":
        if recurrent_activation is None:
            raise ValueError(
                'the file holds weights, but not the options of the layers: pass recurrent_activation="sigmoid", the '
                'default of Keras since version 2.3, or "hard_sigmoid", the default before; or pass the text of '
                "model.to_json() as config"
            )
        given["recurrent_activation"] = recurrent_activation
    names = [given[name] or "linear" for name in kind.functions]
    if not all(isinstance(name, str) and name in activations for name in names):
        raise ValueError(f"its activations must be among {', '.join(activations)}, got {names}")
    chosen = with_activations(kind, tuple(activations[name] for name in names))
    if kind.shared:  # reset_after
        if len(weights) == 2 and about is None:
            raise ValueError("a GRU without bias does not tell its reset_after: use load_weights with a layer")
        chosen["reset_after"] = weights[2].ndim == 2 if len(weights) == 3 else bool(given.get("reset_after", False))
    return single(kind, {**chosen, "bias": len(weights) == 3, "reverse": bool(given["go_backwards"])}, weights)


def _options_by_name(config: Any) -> dict[str, dict[str, Any]]:
    """The options of all layers of known classes in the description of a model."""
    known: dict[str, dict[str, Any]] = {}
    pending: list[Any] = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            pending += value.values()
            inner = value
            while inner.get("class_name") == "TimeDistributed":
                inner = inner["config"]["layer"]
            if _is_known(inner) and isinstance(value.get("config"), dict):
                known.setdefault(str(value["config"].get("name")), inner)
    return known


def _is_known(about: Any) -> bool:
    if not isinstance(about, dict) or not isinstance(about.get("config"), dict):
        return False
    name, config = about.get("class_name"), about["config"]
    if name == "RNN":
        return isinstance(config.get("cell"), dict) and config["cell"].get("class_name") in _CELLS
    if name == "Bidirectional":
        backward = config.get("backward_layer")
        return _is_known(config.get("layer")) and (backward is None or _is_known(backward))
    return isinstance(name, str) and (name in _CLASSES or name in ("Dense", "Embedding"))


# ------------------------------------------------------------------------------------------------------ the formats


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Model]:
    """Read the structure of a file in any of the formats."""
    if os.path.isdir(path) and os.path.exists(os.path.join(os.fsdecode(path), "saved_model.pb")):
        raise ValueError(f"{os.fspath(path)!r} is a TensorFlow SavedModel: save its weights to an HDF5 file in Keras")
    with files.reading(path) as file, contextlib.ExitStack() as stack:
        try:
            source, config = _contents(file)
            root = stack.enter_context(h5py.File(source, "r"))
        except (KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"it is {files.other_format(file)}, not a file of Keras") from error
        try:
            if "layer_names" in root.attrs or "layer_names0" in root.attrs or "model_weights" in root:
                model = _before_keras_3(root)
            else:
                known = None if config is None else _options_by_name(config)
                model = _Model(list(_keras_3(root)), known, ACTIVATIONS, config)
                if not model.found:
                    other = "a weight file of Keras 0" if "nb_layers" in root.attrs else "HDF5 without layers of Keras"
                    raise ValueError(f"it is {other}, not a file of Keras 1 to 3")
            yield model
        except (OSError, RuntimeError) as error:  # h5py raises these for damaged files
            raise ValueError(f"it is a damaged HDF5 file: {error}") from error


def _contents(file: BinaryIO) -> tuple[BinaryIO, Any]:
    """The HDF5 file itself, or the one in a ``.keras`` archive, and the description of the model in that."""
    if not zipfile.is_zipfile(file):
        file.seek(0)
        return file, None
    with zipfile.ZipFile(file) as archive:
        weights = io.BytesIO(archive.read("model.weights.h5"))
        return weights, json.loads(archive.read("config.json"))


def _keras_3(root: Any) -> Iterator[_Found]:
    """The layers in a ``.weights.h5`` file of Keras 3, which has a group for each attribute that is a layer."""
    places: list[str] = []
    root.visititems(lambda place, item: places.append(place) if isinstance(item, h5py.Group) else None)

    def variables(place: str, *names: str) -> dict[str, Any]:
        group = root.get(f"{place}/vars")
        return dict(zip(names, (group[str(k)] for k in range(len(group))), strict=False)) if group else {}

    def named(place: str) -> tuple[str, str]:
        return str(root[place].get("vars", root).attrs.get("name")), place

    for place in places:
        if place.endswith(("/forward_layer", "/backward_layer", "/cell")):
            continue
        name, _ = named(place)
        inner = tuple(f"{place}/{side}_layer" for side in ("forward", "backward"))
        cells = [
            variables(f"{one}/cell", "kernel", "recurrent_kernel", "bias")
            for one in (inner if f"{inner[0]}/cell" in root else (place,))
        ]
        if all("recurrent_kernel" in cell for cell in cells):  # else no recurrent layer, or one of stacked cells
            yield _Found(name, place, cells, inner=tuple(map(named, inner)) if len(cells) == 2 else ())
        elif part := variables(place, "W", "b", "more"):
            yield _Found(name, place, [part])


def _before_keras_3(root: Any) -> _Model:
    """The layers in the HDF5 format of Keras 1 and 2, which has a group for each layer of the outermost model."""
    weights = root.get("model_weights", root)
    # The first releases of Keras 1 do not write their version.
    version = _major(weights.attrs.get("keras_version", root.attrs.get("keras_version", "1")))
    text = root.attrs.get("model_config")
    config = None if text is None else json.loads(_text(text))
    found = []
    for layer in _names(weights, "layer_names"):
        group = weights[layer]
        parts: dict[str, dict[str, Any]] = {}
        for name in _names(group, "weight_names"):
            prefix, key = _split(name, version)
            parts.setdefault(prefix, {})[key] = group[name]
        found += _joined(group.name.strip("/"), layer, parts)
    return _Model(
        found,
        None if config is None else _options_by_name(config),
        _activations(version),
        config,
    )


def _major(version: Any) -> int:
    return int(_text(version).partition(".")[0])


def _activations(version: int) -> dict[str, Any]:
    return ACTIVATIONS if version >= 3 else BEFORE_KERAS_3


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _names(group: Any, name: str) -> list[str]:
    """A list of names, which Keras splits if it is long."""
    if name in group.attrs:
        return [_text(one) for one in group.attrs[name]]
    chunks = itertools.takewhile(group.attrs.__contains__, (f"{name}{k}" for k in itertools.count()))
    return [_text(one) for chunk in chunks for one in group.attrs[chunk]]


_KERAS_1 = re.compile(r"(.*)_([WUb](?:_[ifcozrh])?)")
_CELL = re.compile(r"/(?:lstm|gru|simple_rnn)_cell(?:_\d+)?$")


def _split(name: str, version: int) -> tuple[str, str]:
    """Divide the name of a weight into that of its layer and that of the array."""
    name = name.removesuffix(":0")
    match = _KERAS_1.fullmatch(name) if version == 1 else None
    if match:
        return match[1], match[2]
    prefix, _, key = name.rpartition("/")
    return prefix, key


def _joined(place: str, layer: str, parts: dict[str, dict[str, Any]]) -> list[_Found]:
    """The layers in the group of a layer: usually one, more for a model within a model."""
    groups: list[tuple[str, list[str]]] = []  # the prefix of a layer, and those of its parts
    for prefix in parts:
        side = re.search(r"(?:^|/)(forward|backward)_[^/]*", prefix)
        before = groups[-1] if groups else ("", [])
        parent = prefix[: side.start()] if side else ""
        if side and side[1] == "backward" and len(before[1]) == 1 and re.search(r"(?:^|/)forward_", before[1][0]):
            groups[-1] = (parent or layer, [*before[1], prefix])
        else:
            groups.append((prefix, [prefix]))
    found = []
    for prefix, members in groups:
        short = _CELL.sub("", prefix)
        inner = short.removeprefix(f"{layer}/")
        name = layer if len(groups) == 1 else f"{layer}/{inner}"
        paths = [f"{place}/{_CELL.sub('', member)}" for member in members]
        named = tuple((path.rpartition("/")[2], path) for path in paths) if len(paths) == 2 else ()
        others = (*reversed(short.split("/")), layer) if len(groups) > 1 else (layer, *reversed(short.split("/")))
        joined = paths[0] if len(paths) == 1 else f"{place}/{prefix}"
        found.append(_Found(name, joined, [parts[member] for member in members], others, named))
    return found
