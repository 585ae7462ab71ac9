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
- training=True where Keras draws a mask of dropout for each gate: LSTM and GRU with recurrent_dropout, or with dropout
  and implementation=1;
- a compute dtype other than float32 and float64, or different from the dtype of the weights;
- complex x, and initial states or masks that Keras would have to broadcast.

Results agree with Keras's up to rounding. Those of float64 layers are accurate to float64, whereas Keras 3.12 and newer
round intermediate results to float32.

Weights are packed once, and stay packed while rnnfast is disabled, as long as their layer exists. Every call compares
them bitwise with a copy made when they were packed. ``assign``, ``set_weights`` and in-place writes to an array
therefore take effect in the next call, at the cost of reading the weights twice.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from typing import Any, NamedTuple

import numpy as np

from rnnfast._types import Array

try:
    import keras
except ModuleNotFoundError as error:
    raise ImportError(
        f"rnnfast.backends.keras needs the module {error.name!r}, which is not installed. It requires Keras 3.10 or "
        "newer, h5py and jax: pip install 'rnnfast[keras]', and set the environment variable KERAS_BACKEND=numpy"
    ) from error

from rnnfast import arguments, functional, layers, options
from rnnfast.backends._common import reorder, require_version
from rnnfast.backends.keras_files import (
    ACTIVATIONS,
    KINDS,
    MERGES,
    Kind,
    Side,
    directions_of,
    load_layers,
    load_weights,
    single,
    with_activations,
)

__all__ = [
    "ACTIVATIONS",
    "calls",
    "disable",
    "enable",
    "layer_from_keras",
    "layer_to_keras",
    "load_layers",
    "load_weights",
    "reset_calls",
]

require_version("rnnfast.backends.keras", "Keras", keras, (3, 10))

_FUNCTIONS = {id(getattr(keras.activations, name)): ours for name, ours in ACTIVATIONS.items()}
_CELLS = {getattr(keras.layers, f"{kind.name}Cell"): kind for kind in KINDS}

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
    """Restore Keras's own loop. Packed weights are kept for the next `enable`, as long as their layers exist."""
    keras.layers.RNN.inner_loop = _KERAS_LOOP


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
    run: Any = layer
    if training and (self.cell.dropout or self.cell.recurrent_dropout):
        masks = self.cell.get_dropout_mask(sequences[:, 0])
        if masks is not None:
            sequences = sequences * np.asarray(masks)[:, np.newaxis]
        run = functools.partial(_run_masked, layer, self.cell.get_recurrent_dropout_mask(states[0]))
    y, end = run(sequences[:, order], start if len(start) == 2 else start[0], **uneven)
    if mask is not None and not (self.unroll or self.zero_output_for_mask):
        # At masked steps before the first valid one, Keras's loop outputs the initial h; its unrolled loop and rnnfast
        # output zeros.
        np.copyto(y, states[0][:, np.newaxis], where=~np.logical_or.accumulate(mask, axis=1)[:, :, np.newaxis])
    end = [state[0] for state in (end if isinstance(end, tuple) else (end,))]
    return y[:, -1], y if self.return_sequences else y[:, -1:], end


def _run_masked(layer: layers.Recurrent[Any], masks: Any, x: Any, state: Any, **uneven: Any) -> Any:
    """Call a layer with a mask of recurrent dropout (N, H), or None."""
    call = layer.execution.read(x, state, **uneven)
    inputs = call.inputs
    masks = None if masks is None else np.ascontiguousarray(masks, layer.dtype)[np.newaxis]
    return layer._infer(call._replace(inputs=functional.Inputs(inputs.x, inputs.h0, inputs.c0, recurrent_masks=masks)))


def _draws_otherwise(cell: Any, dtype: Any) -> bool:
    """Whether the dropout of a cell in training is not that of rnnfast.

    With implementation=1, which recurrent_dropout selects, Keras's LSTM and GRU draw a mask for each gate.
    """
    rates = cell.dropout, cell.recurrent_dropout
    if not any(rates):
        return False
    return getattr(cell, "implementation", 2) == 1 or 1 in rates or dtype.name != cell.compute_dtype


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
        or (training and _draws_otherwise(cell, sequences.dtype))
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
        packed = _packed[cell] = _Packed(chosen, copies, single(kind, dict(chosen), copies))
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
        return layers.Bidirectional(*sides, merge=MERGES[layer.merge_mode])  # type: ignore[arg-type]
    if not isinstance(layer, keras.layers.RNN):
        raise TypeError(f"layer must be a keras.layers.LSTM, GRU, SimpleRNN, RNN or Bidirectional, got {layer!r}")
    kind, chosen = _options(layer.cell)
    if not layer.cell.built:
        raise ValueError(
            f"layer {layer.name!r} has no weights yet: call it or layer.build((None, None, features)) first"
        )
    weights = [keras.ops.convert_to_numpy(variable.value) for variable in _variables(layer.cell)]
    return single(kind, {**dict(chosen), "reverse": bool(layer.go_backwards)}, weights)


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
    sides = directions_of(layer)
    made = [_empty_keras_layer(side, keywords) for side in sides]
    whole = made[0]
    if len(sides) == 2:
        merge = layer.merge if isinstance(layer, layers.Bidirectional) else "concat"
        names = {ours: theirs for theirs, ours in MERGES.items()}
        whole = keras.layers.Bidirectional(made[0], merge_mode=names[merge], backward_layer=made[1])
        whole.build((None, None, sides[0].layer.input_size))
        made = [whole.forward_layer, whole.backward_layer]
    for side, target in zip(sides, made, strict=True):
        if not target.built:
            target.build((None, None, side.layer.input_size))
        for variable, array in zip(_variables(target.cell), _to_weights(side, layer.parameters), strict=True):
            variable.assign(array)
    return whole


def _options(cell: Any) -> tuple[Kind, tuple[Any, ...]]:
    """The kind of a Keras cell, and the options of the corresponding rnnfast layer as pairs."""
    kind = _CELLS.get(type(cell))
    if kind is None:
        classes = ", ".join(f"{kind.name}Cell" for kind in KINDS)
        raise _Unsupported(f"the cell of layer must be one of {classes}, got {type(cell).__name__}")
    functions = [getattr(cell, name) for name in kind.functions]
    names = tuple(_FUNCTIONS.get(id(function)) for function in functions)
    if None in names:
        raise _Unsupported(f"the activations of layer must be among Keras's {', '.join(ACTIVATIONS)}, got {functions}")
    chosen = with_activations(kind, names)
    shared = {name: getattr(cell, name) for name in kind.shared}
    return kind, (*chosen.items(), *shared.items(), ("bias", cell.use_bias))


def _variables(cell: Any) -> list[Any]:
    """The weights of a cell, in the order in which Keras saves them."""
    return [cell.kernel, cell.recurrent_kernel, *([] if cell.bias is None else [cell.bias])]


def _empty_keras_layer(side: Side, keywords: dict[str, Any]) -> Any:
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


def _to_weights(side: Side, parameters: Any) -> list[Array]:
    """Keras's kernel, recurrent_kernel and optional bias from the parameters of one direction."""
    names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if side.layer.bias else [])]
    arrays = [reorder(parameters[side.names.format(name)], side.kind.gates) for name in names]
    kernel, recurrent_kernel, *biases = arrays
    if biases:
        biases = [np.stack(biases) if getattr(side.layer, "reset_after", False) else biases[0] + biases[1]]
    return [kernel.T, recurrent_kernel.T, *biases]
