"""Keras 3: run its recurrent layers on rnnfast, and convert layers and weights in both directions.

Keras's NumPy backend loops over time steps in Python. Between `enable` and `disable`, rnnfast runs LSTM, GRU,
SimpleRNN, RNN with one of their cells, and Bidirectional around any of them. Models need no changes:

>>> import keras, numpy as np
>>> import rnnfast.backends.keras
>>> layer = keras.layers.LSTM(8, return_sequences=True)
>>> with rnnfast.backends.keras.enable():
...     y = layer(np.ones((2, 5, 4), "float32"))
>>> y.shape, rnnfast.backends.keras.calls()
((2, 5, 8), 1)

Supported: Keras 3.10 or newer. `enable` needs the NumPy backend, ``KERAS_BACKEND=numpy``, which itself imports jax. The
conversions work with any backend.

`enable` replaces the method ``keras.layers.RNN.inner_loop``, the loop over time that all these layers share. The method
sees ``zero_output_for_mask``, which the hooks of Keras's backends do not, so masks of any pattern are supported.
Keras still handles everything around the loop: states and their checks, merging, ``use_cudnn``. These cases fall back
to Keras's own loop and are not counted by `calls`:

- activations other than the keys of `ACTIVATIONS`, and callables that are not Keras's own functions;
- other classes of cells, including subclasses, and stacked cells, ``RNN([cell, cell])``;
- training=True where the cell has dropout or recurrent_dropout;
- a compute dtype other than float32 and float64, or different from the dtype of the weights;
- complex x, and initial states or masks that Keras would have to broadcast.

Results agree with Keras's up to rounding. Those of float64 layers are accurate to float64, whereas Keras 3.12 and newer
round intermediate results to float32.

Weights are packed once. Every call compares them bitwise with a copy made at that time. ``assign``, ``set_weights``
and in-place writes to an array therefore take effect in the next call, at the cost of reading the weights twice.
"""

from __future__ import annotations

import contextlib
import io
import os
import weakref
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnfast._types import Array

try:
    import h5py
    import keras
except ModuleNotFoundError as error:
    raise ImportError(
        f"rnnfast.backends.keras needs the module {error.name!r}, which is not installed. It requires Keras 3.10 or "
        "newer, h5py and jax: pip install 'rnnfast[keras]', and set the environment variable KERAS_BACKEND=numpy"
    ) from error

from rnnfast import arguments, layers, options
from rnnfast.backends._common import positions, reject, reorder
from rnnfast.layers import saving

__all__ = [
    "ACTIVATIONS",
    "calls",
    "disable",
    "enable",
    "layer_from_keras",
    "layer_to_keras",
    "load_weights",
    "reset_calls",
]

if tuple(map(int, keras.__version__.split(".")[:2])) < (3, 10):
    raise ImportError(
        f"rnnfast.backends.keras needs Keras 3.10 or newer, found {keras.__version__}: pip install 'keras>=3.10'"
    )

# Keras's activation functions as values for the `activations` option of rnnfast's layers.
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
_FUNCTIONS = {id(getattr(keras.activations, name)): ours for name, ours in ACTIVATIONS.items()}


class _Kind(NamedTuple):
    """A layer type in both libraries."""

    name: str  # of Keras's layer
    ours: Any  # the class of rnnfast
    cell: str  # rnnfast's
    order: str  # of Keras's gates, in rnnfast's letters
    functions: tuple[str, ...]  # the Keras option that corresponds to each of rnnfast's `activations`
    shared: tuple[str, ...] = ()  # further options with the same name in both

    @property
    def gates(self) -> list[int]:
        return positions(self.cell, self.order)  # each of these permutations is its own inverse


_KINDS = (
    _Kind("SimpleRNN", layers.RNN, "rnn_tanh", "h", ("activation",)),
    _Kind("LSTM", layers.LSTM, "lstm", "ifgo", ("recurrent_activation", "activation", "activation")),
    _Kind("GRU", layers.GRU, "gru", "zrn", ("recurrent_activation", "activation"), ("reset_after",)),
)
_CELLS = {getattr(keras.layers, f"{kind.name}Cell"): kind for kind in _KINDS}

_MERGES = {"concat": "concat", "sum": "sum", "mul": "mul", "ave": "mean", None: None}

# ------------------------------------------------------------------------------------------- replacing Keras's loop

_KERAS_LOOP = keras.layers.RNN.inner_loop
_calls = 0


class _Packed(NamedTuple):
    options: tuple[Any, ...]
    weights: list[Array]
    layer: layers.Recurrent[Any]


_packed: weakref.WeakKeyDictionary[Any, _Packed] = weakref.WeakKeyDictionary()


def enable() -> contextlib.ExitStack:
    """Run all of Keras's recurrent layers on rnnfast, existing and future ones.

    Returns
    -------
    context manager
        Optional. On exit it calls `disable`, unless rnnfast was already enabled before this call.

    Raises
    ------
    RuntimeError
        If Keras does not use its NumPy backend.
    """
    backend = keras.backend.backend()
    if backend != "numpy":
        raise RuntimeError(
            f"Keras uses the backend {backend!r}, but rnnfast can only replace the loops of its NumPy backend: set the "
            "environment variable KERAS_BACKEND=numpy before importing keras"
        )
    undo = contextlib.ExitStack()
    if keras.layers.RNN.inner_loop is not _inner_loop:
        keras.layers.RNN.inner_loop = _inner_loop
        undo.callback(disable)
    return undo


def disable() -> None:
    """Restore Keras's own loop."""
    keras.layers.RNN.inner_loop = _KERAS_LOOP
    _packed.clear()


def calls() -> int:
    """Return the number of loops over time that ran on rnnfast: one per call, layer and direction."""
    return _calls


def reset_calls() -> None:
    """Set the counter of `calls` to 0."""
    global _calls
    _calls = 0


def _inner_loop(self: Any, sequences: Any, initial_state: Any, mask: Any, training: Any = False) -> Any:
    """Replace ``keras.layers.RNN.inner_loop``: return the last output, all outputs and the final states."""
    states = list(initial_state) if isinstance(initial_state, (list, tuple)) else [initial_state]
    layer = _layer_for(self.cell, sequences, states, mask, training)
    if layer is None:
        return _KERAS_LOOP(self, sequences, initial_state, mask, training)
    global _calls
    _calls += 1
    order = slice(None, None, -1 if self.go_backwards else 1)
    uneven = {}
    if mask is not None:
        mask = mask[:, order].astype(bool)
        uneven = {"mask": mask, "zero_masked": bool(self.zero_output_for_mask) and not self.unroll}
    start = [state[np.newaxis] for state in states]
    y, end = layer(sequences[:, order], start if len(start) == 2 else start[0], **uneven)
    if mask is not None and not (self.unroll or self.zero_output_for_mask):
        # At masked steps before the first valid one, Keras's loop outputs the initial h; its unrolled loop and rnnfast
        # output zeros.
        np.copyto(y, states[0][:, np.newaxis], where=~np.logical_or.accumulate(mask, axis=1)[:, :, np.newaxis])
    end = [state[0] for state in (end if isinstance(end, tuple) else (end,))]
    return y[:, -1], y if self.return_sequences else y[:, -1:], end


def _layer_for(cell: Any, sequences: Any, states: list[Any], mask: Any, training: Any) -> layers.Recurrent[Any] | None:
    """The rnnfast layer that replaces Keras's loop; None if Keras has to run it."""
    try:
        kind, chosen = _options(cell)
    except _Unsupported:
        return None
    weights = [variable.value for variable in _variables(cell)]
    dtype, shape = weights[0].dtype, np.shape(sequences)
    if (
        dtype not in arguments.DTYPES
        or dtype.name != cell.compute_dtype
        or (training and (cell.dropout or cell.recurrent_dropout))
        or len(shape) != 3
        or shape[2] != len(weights[0])
        or sequences.dtype.kind not in "fiub"
        or any(np.shape(state) != (shape[0], cell.units) for state in states)
        or not (mask is None or np.shape(mask) == shape[:2])
    ):
        return None
    packed = _packed.get(cell)
    if packed is None or packed.options != chosen or not all(map(_same, packed.weights, weights)):
        copies = [weight.copy("K") for weight in weights]
        packed = _packed[cell] = _Packed(chosen, copies, _single(kind, dict(chosen), copies))
        packed.layer.freeze()
    return packed.layer


def _same(a: Array, b: Array) -> bool:
    """Whether two arrays are bitwise equal."""
    bits = f"u{a.itemsize}"
    return a.shape == b.shape and a.dtype == b.dtype and bool((a.view(bits) == b.view(bits)).all())


# ------------------------------------------------------------------------------------------------------- conversions


class _Unsupported(ValueError):
    """A feature that only one of the two libraries has."""


def layer_from_keras(layer: Any) -> Any:
    """Convert a Keras layer to a layer of rnnfast with the same weights and options.

    Parameters
    ----------
    layer : keras.layers.LSTM, GRU, SimpleRNN, RNN with one of their cells, or Bidirectional of two of these
        Must be built.

    Returns
    -------
    rnnfast.LSTM, GRU, RNN or Bidirectional
        With batch_first=True, and with the dtype and copies of the weights. It returns the outputs of all steps and the
        state, whatever return_sequences and return_state are. A layer with go_backwards becomes one with reverse=True,
        whose outputs are in the order of x; Keras returns them in the order of processing. Dropout, stateful and
        zero_output_for_mask are not converted. The single bias of Keras's LSTM, SimpleRNN and GRU with
        reset_after=False becomes bias_ih; bias_hh is -0.0, because adding -0.0 never changes a value.

    Raises
    ------
    TypeError
        If `layer` is not one of these.
    ValueError
        If it is not built, has an activation that is not a key of `ACTIVATIONS`, has weights that are neither float32
        nor float64, or is a Bidirectional whose forward layer goes backwards.

    Examples
    --------
    >>> import keras
    >>> layer = keras.layers.GRU(8, reset_after=False)
    >>> layer.build((None, None, 4))
    >>> layer_from_keras(layer)
    GRU(4, 8, reset_after=False, batch_first=True)  # 336 parameters
    """
    if isinstance(layer, keras.layers.Bidirectional):
        if layer.forward_layer.go_backwards:
            raise _Unsupported("layer is a Bidirectional whose forward_layer goes backwards: swap its two layers")
        sides = layer_from_keras(layer.forward_layer), layer_from_keras(layer.backward_layer)
        return layers.Bidirectional(*sides, merge=_MERGES[layer.merge_mode])  # type: ignore[arg-type]
    if not isinstance(layer, keras.layers.RNN):
        raise TypeError(f"layer must be a keras.layers.LSTM, GRU, SimpleRNN, RNN or Bidirectional, got {layer!r}")
    kind, chosen = _options(layer.cell)
    if not layer.cell.built:
        raise ValueError(
            f"layer {layer.name!r} has no weights yet: call it or layer.build((None, None, features)) first"
        )
    weights = [keras.ops.convert_to_numpy(variable.value) for variable in _variables(layer.cell)]
    return _single(kind, {**dict(chosen), "reverse": bool(layer.go_backwards)}, weights)


def layer_to_keras(layer: Any, **keywords: Any) -> Any:
    """Convert a layer of rnnfast to a Keras layer with the same weights and options.

    Parameters
    ----------
    layer : rnnfast.LSTM, GRU, RNN or Bidirectional
        With num_layers=1. A layer with bidirectional=True also becomes a keras.layers.Bidirectional.
    **keywords
        Further options for Keras's layers, such as return_state or stateful, applied to both directions.
        return_sequences is True by default.

    Returns
    -------
    keras.layers.LSTM, GRU, SimpleRNN or Bidirectional
        Built, with the dtype of `layer`. A layer with reverse=True becomes one with go_backwards=True, which returns
        outputs in the order of processing. Where Keras has a single bias, it is the sum of both.

    Raises
    ------
    TypeError
        If `layer` is not one of these.
    ValueError
        If it has a feature that Keras lacks: several layers, proj_size, peepholes, coupled gates, clip, a leak,
        activations that are not values of `ACTIVATIONS`, or an LSTM with different activations for g and c.

    Examples
    --------
    >>> import rnnfast
    >>> layer_to_keras(rnnfast.GRU(4, 8, bidirectional=True)).get_config()["merge_mode"]
    'concat'
    """
    keywords = {"return_sequences": True, **keywords}
    sides = _sides(layer)
    made = [_empty_keras_layer(side, keywords) for side in sides]
    whole = made[0]
    if len(sides) == 2:
        merge = layer.merge if isinstance(layer, layers.Bidirectional) else "concat"
        names = {ours: theirs for theirs, ours in _MERGES.items()}
        whole = keras.layers.Bidirectional(made[0], merge_mode=names[merge], backward_layer=made[1])
        whole.build((None, None, sides[0].layer.input_size))
        made = [whole.forward_layer, whole.backward_layer]
    for side, target in zip(sides, made, strict=True):
        if not target.built:
            target.build((None, None, side.layer.input_size))
        for variable, array in zip(_variables(target.cell), _to_weights(side, layer.parameters), strict=True):
            variable.assign(array)
    return whole


def load_weights(layer: Any, path: str | os.PathLike[str], name: str | None = None) -> None:
    """Copy the weights of one recurrent layer from a Keras model file into a layer of rnnfast.

    The model is neither built nor run.

    Parameters
    ----------
    layer : rnnfast.LSTM, GRU, RNN or Bidirectional
        With num_layers=1. The weights of a keras.layers.Bidirectional need a layer with two directions.
    path : str or os.PathLike
        A file written by ``model.save_weights("....weights.h5")`` or ``model.save("....keras")``.
    name : str, optional
        The name of the Keras layer in the model, or its path in the file, such as "layers/lstm_1". Optional if the file
        contains only one such layer.

    Raises
    ------
    ValueError
        If the file is not one of these, if it does not contain exactly one matching layer (the error lists the layers
        found), or if the arrays do not fit `layer`.
    TypeError
        If `layer` is not one of these.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import os, tempfile, keras, rnnfast
    >>> model = keras.Sequential([keras.Input((None, 4)), keras.layers.LSTM(8), keras.layers.Dense(3)])
    >>> layer = rnnfast.LSTM(4, 8, batch_first=True)
    >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +SKIP
    ...     path = os.path.join(folder, "model.weights.h5")
    ...     model.save_weights(path)
    ...     load_weights(layer, path)
    """
    sides = _sides(layer)
    groups = ["forward_layer/", "backward_layer/"] if len(sides) == 2 else [""]
    with _opened(path) as file:
        places = [place for place in _places(file) if all(f"{place}/{group}cell/vars/1" in file for group in groups)]
        names = {place: file[place].get("vars", file).attrs.get("name") for place in places}
        found = [place for place in places if name in (None, place, names[place])]
        if len(found) != 1:
            listed = ", ".join(f"{names[place]!r} at {place!r}" for place in places) or "none"
            raise ValueError(
                f"{path!r} contains {len(found)} recurrent layers {'' if name is None else f'named {name!r} '}for "
                f"{saving.describe(layer)}, but exactly one is needed: set name to the name or path of one of these: "
                f"{listed}"
            )
        values: dict[str, Array] = {}
        for side, group in zip(sides, groups, strict=True):
            variables = file[f"{found[0]}/{group}cell/vars"]
            arrays = [variables[str(k)][()] for k in range(len(variables))]
            _check(side, arrays, f"{path!r} at {found[0]!r}")
            values.update(_to_parameters(side.kind, arrays, side.names))
    layer.load_state_dict(values)


def _options(cell: Any) -> tuple[_Kind, tuple[Any, ...]]:
    """The kind of a Keras cell, and the options of the corresponding rnnfast layer as pairs."""
    kind = _CELLS.get(type(cell))
    if kind is None:
        classes = ", ".join(f"{kind.name}Cell" for kind in _KINDS)
        raise _Unsupported(f"the cell of layer must be one of {classes}, got {type(cell).__name__}")
    functions = [getattr(cell, name) for name in kind.functions]
    names = tuple(_FUNCTIONS.get(id(function)) for function in functions)
    if None in names:
        raise _Unsupported(f"the activations of layer must be among Keras's {', '.join(ACTIVATIONS)}, got {functions}")
    chosen: dict[str, Any] = {} if names == options.DEFAULTS[kind.cell] else {"activations": names}
    if kind.ours is layers.RNN and names == ("relu",):
        chosen = {"nonlinearity": "relu"}
    shared = {name: getattr(cell, name) for name in kind.shared}
    return kind, (*chosen.items(), *shared.items(), ("bias", cell.use_bias), ("batch_first", True))


def _variables(cell: Any) -> list[Any]:
    """The weights of a cell, in the order in which Keras saves them."""
    return [cell.kernel, cell.recurrent_kernel, *([] if cell.bias is None else [cell.bias])]


def _single(kind: _Kind, chosen: dict[str, Any], weights: Sequence[Array]) -> layers.Recurrent[Any]:
    """A layer of rnnfast with these options and with Keras's weights."""
    I, H = weights[0].shape[0], weights[1].shape[0]
    layer: layers.Recurrent[Any] = kind.ours(I, H, dtype=weights[0].dtype, init=None, **chosen)
    layer.load_state_dict(_to_parameters(kind, weights, "{}_l0"))
    return layer


class _Side(NamedTuple):
    """One direction of a layer."""

    layer: layers.Recurrent[Any]
    kind: _Kind
    names: str  # format string for the names of its parameters; {} stands for "weight_ih" and so on
    functions: Sequence[Any]
    backwards: bool


def _sides(layer: Any) -> list[_Side]:
    """The directions of a layer of rnnfast. Raises an error if Keras has no equivalent."""
    if isinstance(layer, layers.Bidirectional):
        forward, backward = _sides(layer.forward_layer), _sides(layer.backward_layer)
        return [
            forward[0]._replace(names="forward." + forward[0].names),
            backward[0]._replace(names="backward." + backward[0].names, backwards=True),
        ]
    kind = next((kind for kind in _KINDS if isinstance(layer, kind.ours)), None)
    if kind is None:
        raise TypeError(f"layer must be an rnnfast LSTM, GRU, RNN or Bidirectional, got {type(layer).__name__}")
    hint = "use a layer without, and convert a stack as one layer for each of its layers"
    reject(layer, "Keras", "reverse", "activations", "nonlinearity", "reset_after", hint=hint)
    functions, count = layer.activations or options.DEFAULTS[layer.engine.cell], len(kind.functions)
    forward_side = _Side(layer, kind, "{}_l0", functions[:count], layer.reverse)
    if not layer.bidirectional:
        return [forward_side]
    return [forward_side, _Side(layer, kind, "{}_l0_reverse", functions[-count:], True)]


def _empty_keras_layer(side: _Side, keywords: dict[str, Any]) -> Any:
    """A Keras layer with the options of one direction."""
    theirs = {_full(ours): name for name, ours in ACTIVATIONS.items()}
    chosen: dict[str, str] = {}
    for option, function in zip(side.kind.functions, side.functions, strict=True):
        name = theirs.get(_full(function))
        if name is None or chosen.setdefault(option, name) != name:
            raise _Unsupported(
                f"layer has activations {tuple(side.functions)} for the options {side.kind.functions} of Keras's "
                f"{side.kind.name}, but each option needs a single value among {list(ACTIVATIONS.values())}"
            )
    shared = {name: getattr(side.layer, name) for name in side.kind.shared}
    common = {"use_bias": side.layer.bias, "go_backwards": side.backwards, "dtype": side.layer.dtype.name}
    return getattr(keras.layers, side.kind.name)(side.layer.hidden_size, **chosen, **shared, **common, **keywords)


def _full(function: Any) -> tuple[Any, ...]:
    """One of `activations` with its alpha and beta, filled in from the defaults."""
    name, *given = (function,) if isinstance(function, str) else function
    return (name, *given, *options.FUNCTIONS[name][len(given) :])


def _to_parameters(kind: _Kind, weights: Sequence[Array], names: str) -> dict[str, Array]:
    """The parameters of one direction from Keras's kernel, recurrent_kernel and optional bias."""
    kernel, recurrent_kernel, *biases = weights
    arrays = {"weight_ih": kernel.T, "weight_hh": recurrent_kernel.T}
    for bias in biases:
        arrays["bias_ih"], arrays["bias_hh"] = bias if bias.ndim == 2 else (bias, np.full_like(bias, -0.0))
    return {names.format(name): reorder(array, kind.gates) for name, array in arrays.items()}


def _to_weights(side: _Side, parameters: Any) -> list[Array]:
    """Keras's kernel, recurrent_kernel and optional bias from the parameters of one direction."""
    names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if side.layer.bias else [])]
    arrays = [reorder(parameters[side.names.format(name)], side.kind.gates) for name in names]
    kernel, recurrent_kernel, *biases = arrays
    if biases:
        biases = [np.stack(biases) if getattr(side.layer, "reset_after", False) else biases[0] + biases[1]]
    return [kernel.T, recurrent_kernel.T, *biases]


def _check(side: _Side, arrays: list[Array], where: str) -> None:
    """Raise an error if arrays from a file do not fit a layer."""
    I, H, G = side.layer.input_size, side.layer.hidden_size, len(side.kind.gates)
    bias = (2, G * H) if getattr(side.layer, "reset_after", False) else (G * H,)
    shapes = [(I, G * H), (H, G * H), *([bias] if side.layer.bias else [])]
    if [array.shape for array in arrays] != shapes:
        raise ValueError(
            f"{where} has arrays of shapes {[array.shape for array in arrays]}, but {saving.describe(side.layer)} "
            f"needs {shapes}: use a layer of matching sizes and options (a GRU's bias of shape (2, ...) needs "
            "reset_after=True)"
        )


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open the HDF5 file at a path, or the one inside a .keras archive."""
    with contextlib.ExitStack() as stack:
        source: Any = stack.enter_context(open(path, "rb"))
        try:
            if zipfile.is_zipfile(source):
                with zipfile.ZipFile(source) as archive:
                    source = io.BytesIO(archive.read("model.weights.h5"))
            file = stack.enter_context(h5py.File(source, "r"))
        except (KeyError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path!r} is neither a .keras nor a .weights.h5 file of Keras 3: {error}") from error
        yield file


def _places(file: Any) -> list[str]:
    """The paths of all groups in a file."""
    places: list[str] = []
    file.visititems(lambda place, item: places.append(place) if isinstance(item, h5py.Group) else None)
    return places
