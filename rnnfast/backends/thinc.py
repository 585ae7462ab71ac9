"""Run the LSTM layers of thinc, the library that spaCy uses, on rnnfast, forward and backward.

Importing this module registers the operations "rnnfast". Models created while they are the current ops use them:

>>> import numpy as np
>>> from thinc.api import LSTM, use_ops, with_padded
>>> import rnnfast.backends.thinc
>>> with use_ops("rnnfast"):
...     model = with_padded(LSTM(nO=8, nI=4, bi=True, depth=2)).initialize()
>>> outputs, backprop = model.begin_update([np.ones((5, 4), "f"), np.ones((3, 4), "f")])
>>> [y.shape for y in outputs], [dx.shape for dx in backprop(outputs)]
([(5, 8), (3, 8)], [(5, 4), (3, 4)])

``thinc.api.set_current_ops(thinc.api.get_ops("rnnfast"))`` makes them the ops of all later models. To switch an
existing model, set ``node.ops = get_ops("rnnfast")`` for each ``node`` of ``model.walk()``.

Outputs agree with thinc's up to rounding. Gradients do not, because thinc's are wrong: thinc 9.1.1 returns 0 for the
first step of X and adds the gradients of the weights to the weights themselves. Both biases of a gate have the same
gradient, and rnnfast returns it for both. thinc assigns it only to the first, so in thinc a training step moves their
sum half as far.

Supported: thinc 8.1 to 9.1, on the CPU. As in thinc, the initial state gets no gradient; thinc's H0 is the initial c
and its C0 the initial h. The second result of ``lstm_forward_training`` can be read like thinc's; the first reading
costs a second forward pass. All operations other than LSTM are those of NumpyOps.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rnnfast import arguments, buffers, functional, layers
from rnnfast._types import Array
from rnnfast.backends._common import positions, reject

try:
    from thinc.api import LSTM, Model, NumpyOps, registry
except ImportError as error:
    raise ImportError(
        "rnnfast.backends.thinc needs thinc 8.1 or newer: pip install 'rnnfast[thinc]', with a Python version that "
        "thinc has wheels for"
    ) from error


__all__ = ["RnnfastOps", "from_flat", "layer_from_thinc", "layer_to_thinc", "to_flat"]

GATES = positions("lstm", "fiog")  # thinc calls the last one c; the permutation is its own inverse


@registry.ops("RnnfastOps")
class RnnfastOps(NumpyOps):
    """NumpyOps whose three LSTM methods run on rnnfast; ``get_ops("rnnfast")`` creates it.

    All three methods use thinc's layout. `params` is the flat parameter vector. `H0` and `C0` have shape (depth, dirs,
    nO). `X` (M, nI) holds the rows of all steps, one step after another, and `size_at_t` (T,) is the number of rows at
    each step; sequences are sorted from longest to shortest. Arrays have the dtype of `params`, float32 or float64.
    """

    name = "rnnfast"

    def lstm_forward_inference(self, params: Any, H0: Any, C0: Any, X: Any, size_at_t: Any) -> Array:
        """Compute Y, (M, dirs * nO)."""
        return _Call(params, H0, C0, X, size_at_t).forward(training=False)

    def lstm_forward_training(
        self, params: Any, H0: Any, C0: Any, X: Any, size_at_t: Any
    ) -> tuple[Array, Sequence[Array]]:
        """Compute Y and the state that `backprop_lstm` needs, which keeps a reference to X.

        As in thinc, the state is a sequence of four arrays: h of all layers, (depth, dirs, M, nO); the gates f, i, o, c
        of each unit, (depth, dirs, M, nO * 4); the cell states, shaped as h; and X.
        """
        call = _Call(params, H0, C0, X, size_at_t)
        return call.forward(training=True), call

    def backprop_lstm(self, dY: Any, lengths: Any, params: Any, fwd_state: Any) -> tuple[Array, Array]:  # noqa: ARG002
        """Compute the gradients of X and params."""
        if not isinstance(fwd_state, _Call):
            raise TypeError(
                "fwd_state must be the second result of lstm_forward_training of the ops 'rnnfast', got "
                f"{type(fwd_state).__name__}: run both passes with the same ops"
            )
        return fwd_state.backward(dY)


@functools.lru_cache
def _engine(dtype: np.dtype[Any], nI: int, nO: int, depth: int, dirs: int) -> functional.Engine:
    return functional.Engine("lstm", dtype, nI, nO, num_layers=depth, bidirectional=dirs == 2)


_memory = buffers.ResultPool(16)  # reused between calls: enough for forward and backward of a few layers


class _Call(Sequence[Array]):
    """Forward and backward pass of one batch. As a sequence, it is thinc's state of the forward pass."""

    def __init__(self, params: Any, H0: Any, C0: Any, X: Any, size_at_t: Any) -> None:
        params = np.asarray(params)
        dtype = arguments.dtype(params.dtype)
        if np.ndim(H0) != 3:
            raise ValueError(f"H0 must have shape (depth, dirs, nO), got shape {np.shape(H0)}")
        depth, dirs, nO = np.shape(H0)
        x = arguments.real("X", X, dtype)[:, np.newaxis]
        self.engine = _engine(dtype, x.shape[2], nO, depth, dirs)
        self.parameters = _from_flat(self.engine, params)
        order = _order(np.asarray(size_at_t), len(x))
        self.sizes = self.engine.sizes(len(x), 1, order)

        def states(name: str, value: Any) -> Array:
            """An initial state for each sequence; thinc has one that all sequences share."""
            state: Any = arguments.shaped(name, value, dtype, (depth, dirs, nO), "the shape of H0, (depth, dirs, nO)")
            return np.repeat(state.reshape(-1, 1, nO), order.sequences, axis=1)

        # thinc uses C0 as the initial h, and H0 as the initial c.
        self.inputs = functional.Inputs(x, states("C0", C0), states("H0", H0), order=order)

    def forward(self, training: bool) -> Array:
        engine, sizes = self.engine, self.sizes
        packed = _memory.bytes(engine.packed_size)
        self.packed_back: Any = _memory.bytes(engine.packed_back_size) if training else None
        self.tape: Any = _memory.bytes(sizes.tape) if training else None
        self.y = _memory.empty((*self.inputs.x.shape[:2], engine.directions * engine.output_size), engine.dtype)
        last = np.empty_like(self.inputs.h0), np.empty_like(self.inputs.c0)
        workspace = _memory.bytes(sizes.forward_workspace)
        functional.pack(engine, list(self.parameters.values()), packed, self.packed_back)
        functional.forward(engine, packed, self.inputs, functional.Outputs(self.y, *last), workspace, self.tape)
        return self.y[:, 0]

    def backward(self, dY: Any) -> tuple[Array, Array]:
        engine = self.engine
        dy: Any = arguments.shaped("dY", dY, engine.dtype, self.y[:, 0].shape, "the shape of Y")
        dx = _memory.empty(self.inputs.x.shape, engine.dtype)
        dstart = np.empty_like(self.inputs.h0), np.empty_like(self.inputs.c0)
        gradients = {name: np.zeros_like(value) for name, value in self.parameters.items()}
        workspace = _memory.bytes(self.sizes.backward_workspace)
        given = functional.OutputGradients(dy[:, np.newaxis])
        found = functional.InputGradients(dx, *dstart, list(gradients.values()))
        functional.backward(engine, self.packed_back, self.inputs, self.y, self.tape, given, found, workspace)
        return dx[:, 0], _to_flat(engine, gradients)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: Any) -> Any:
        return self._state[index]

    @functools.cached_property
    def _state(self) -> tuple[Array, ...]:
        """h, gates, cell states and X, computed layer by layer, because a tape gives access only to cell states."""
        dirs, nO, order = self.engine.directions, self.engine.hidden_size, self.inputs.order
        assert order is not None
        before = _rows_before(order.begin)
        H0, C0 = (state[:, 0].reshape(-1, 1, dirs, nO) for state in (self.inputs.c0, self.inputs.h0))
        parameters = iter(self.parameters.values())
        x = X = self.inputs.x[:, 0]
        states: list[tuple[Array, ...]] = []
        for layer in range(self.engine.num_layers):
            engine = _engine(self.engine.dtype, x.shape[1], nO, 1, dirs)
            own = {name: next(parameters) for name in functional.parameter_shapes(engine)}
            call = _Call(_to_flat(engine, own), H0[layer], C0[layer], x, np.diff(order.begin))
            y = call.forward(training=True)
            h = y.reshape(-1, dirs, nO).swapaxes(0, 1)
            c, gates = np.empty(h.shape, engine.dtype), np.empty((*h.shape, len(GATES)), engine.dtype)
            functional.cells(engine, len(x), 1, call.tape, c, order)
            for d in range(dirs):
                weight_ih, weight_hh, bias_ih, bias_hh = list(own.values())[4 * d : 4 * d + 4]
                previous = np.concatenate([h[d], C0[layer, :, d]])[before[d]]
                a = x @ weight_ih.T + previous @ weight_hh.T + (bias_ih + bias_hh)
                a = a.reshape(-1, len(GATES), nO)[:, GATES]
                for gate, function in enumerate(["sigmoid", "sigmoid", "sigmoid", "tanh"]):
                    gates[d, ..., gate] = functional.activation(function, a[:, gate].copy())
            states.append((h, gates.reshape(dirs, len(x), -1), c))
            x = y
        return *(np.stack(arrays) for arrays in zip(*states, strict=True)), X


def _rows_before(begin: Array) -> tuple[Array, Array]:
    """For each row of a packed batch, the row before it in each direction, or the number of rows if there is none."""
    M, sizes = begin[-1], np.diff(begin)
    forward, reverse = np.full((2, M), M)
    later = np.arange(begin[1], M)
    forward[later] = later - np.repeat(sizes[:-1], sizes[1:])
    reverse[forward[later]] = later
    return forward, reverse


def _order(size_at_t: Array, rows: int) -> functional.Order:
    """The order of a packed batch, step by step."""
    falling = size_at_t.ndim == 1 and len(size_at_t) > 0 and size_at_t[-1] > 0 and (np.diff(size_at_t) <= 0).all()
    if not falling or size_at_t.sum() != rows:
        raise ValueError(
            f"size_at_t is {size_at_t.tolist()}, but it must hold the number of rows of X at each step: at least one, "
            f"never increasing, and {rows} in total, as X has {rows} rows"
        )
    return functional.packed_order(size_at_t)


# --------------------------------------------------------------------------------------------------------- weights


def _parts(engine: functional.Engine, flat: Array) -> dict[str, Array]:
    """Views into a flat vector, (4, nO, ...) with the gates in thinc's order, by rnnfast's parameter names."""
    shapes = functional.parameter_shapes(engine)
    size = sum(np.prod(shape) for shape in shapes.values())
    if flat.shape != (size,):
        raise ValueError(
            f"params has shape {flat.shape}, but nI={engine.input_size}, nO={engine.hidden_size}, "
            f"depth={engine.num_layers} and dirs={engine.directions} need a vector of {size} elements"
        )
    names = list(shapes)
    parts, start = {}, 0
    for first in range(0, len(names), 4):
        weight_ih, weight_hh, bias_ih, bias_hh = names[first : first + 4]
        for name in (weight_ih, bias_ih, weight_hh, bias_hh):
            stop = start + int(np.prod(shapes[name]))
            parts[name] = flat[start:stop].reshape(len(GATES), -1, *shapes[name][1:])
            start = stop
    return parts


def _from_flat(engine: functional.Engine, flat: Array) -> dict[str, Array]:
    """Copies of the parameters, in the engine's order."""
    shapes, parts = functional.parameter_shapes(engine), _parts(engine, flat)
    return {name: parts[name][GATES].reshape(shape) for name, shape in shapes.items()}


def _to_flat(engine: functional.Engine, arrays: Any) -> Array:
    flat = np.empty(sum(array.size for array in arrays.values()), engine.dtype)
    for name, part in _parts(engine, flat).items():
        part[...] = arrays[name].reshape(part.shape)[GATES]
    return flat


def to_flat(layer: layers.LSTM) -> Array:
    """Convert the parameters of a layer to thinc's flat vector.

    Parameters
    ----------
    layer : rnnfast.LSTM
        With default values of proj_size, reverse, activations, clip, peepholes and coupled.

    Returns
    -------
    ndarray, flat, of the layer's dtype
        For each layer and direction: Wx (4*nO, nI), bx (4*nO,), Wh (4*nO, nO), bh (4*nO,), with rows in the order
        f, i, o, c. Biases are zeros if the layer has none.

    Raises
    ------
    TypeError
        If `layer` is not an rnnfast.LSTM.
    ValueError
        If it has an option that thinc's LSTM lacks.

    Examples
    --------
    >>> import rnnfast
    >>> layer = rnnfast.LSTM(4, 8, rng=0)
    >>> flat = to_flat(layer)
    >>> flat.shape, bool((from_flat(flat, 4, 8).parameters["bias_hh_l0"] == layer.parameters["bias_hh_l0"]).all())
    ((448,), True)
    """
    if not isinstance(layer, layers.LSTM):
        raise TypeError(f"layer must be an rnnfast.LSTM, thinc's only recurrent layer, got {type(layer).__name__}")
    reject(layer, "thinc's LSTM", "num_layers")
    engine = _engine(layer.dtype, layer.input_size, layer.hidden_size, layer.num_layers, 1 + layer.bidirectional)
    shapes = functional.parameter_shapes(engine)
    arrays = {name: layer.parameters.get(name, np.zeros(shape, layer.dtype)) for name, shape in shapes.items()}
    return _to_flat(engine, arrays)


def from_flat(flat: Any, nI: int, nO: int, depth: int = 1, bi: bool = False) -> layers.LSTM:
    """Create a layer from thinc's flat parameter vector: the inverse of `to_flat`.

    Parameters
    ----------
    flat : array_like
    nI : int
        Number of input features.
    nO : int
        Units of one direction. thinc's dimension nO counts both.
    depth : int, default 1
    bi : bool, default False

    Returns
    -------
    rnnfast.LSTM
        Of the dtype of `flat`.

    Raises
    ------
    ValueError
        If the size of `flat` does not match the other arguments, or its dtype is not float32 or float64.
    """
    flat = np.asarray(flat)
    layer = layers.LSTM(nI, nO, depth, bidirectional=bi, dtype=flat.dtype, init=None)
    layer.load_state_dict(_from_flat(_engine(layer.dtype, nI, nO, depth, 1 + bi), flat))
    return layer


def layer_from_thinc(model: Model[Any, Any]) -> layers.LSTM:
    """Convert the LSTM of a thinc model to a layer of rnnfast.

    Parameters
    ----------
    model : thinc.api.Model
        An initialised LSTM, or a model that contains one, such as ``with_padded(LSTM(...))``.

    Returns
    -------
    rnnfast.LSTM
        With batch_first=False. thinc's dropout acts on weights and is not converted.

    Raises
    ------
    ValueError
        If the model does not contain exactly one LSTM, is not initialised, or has a nonzero initial state, which a
        layer cannot store.

    Examples
    --------
    >>> model = LSTM(nO=8, nI=4, bi=True).initialize()
    >>> layer_from_thinc(model)
    LSTM(4, 4, bidirectional=True)  # 320 parameters
    """
    nodes = [node for node in model.walk() if "LSTM" in node.param_names]
    if len(nodes) != 1:
        raise ValueError(f"model must contain exactly one LSTM, got {model.name!r} with {len(nodes)}")
    (node,) = nodes
    if not node.has_param("LSTM"):
        raise ValueError(f"model {model.name!r} has no parameters yet: call its initialize() first")
    if np.any(node.get_param("HC0")):
        raise ValueError(
            "model has a nonzero initial state HC0, but a layer does not store one: set HC0 to zeros and pass HC0[1] "
            "as h and HC0[0] as c to each call of the layer, repeated for each row"
        )
    sizes = {name: node.get_dim(name) for name in ("nI", "nO", "depth", "dirs")}
    dirs = sizes.pop("dirs")
    return from_flat(node.get_param("LSTM"), sizes["nI"], sizes["nO"] // dirs, sizes["depth"], dirs == 2)


def layer_to_thinc(layer: layers.LSTM) -> Model[Any, Any]:
    """Convert a layer to an initialised LSTM of thinc, with the current ops.

    Parameters
    ----------
    layer : rnnfast.LSTM
        As for `to_flat`.

    Returns
    -------
    thinc.api.Model
        ``LSTM(...)`` in float32, thinc's dtype. Wrap it in ``with_padded`` to run it on lists of sequences.

    Raises
    ------
    TypeError, ValueError
        As for `to_flat`.

    Examples
    --------
    >>> import rnnfast
    >>> layer_to_thinc(rnnfast.LSTM(4, 8, 2)).get_dim("depth")
    2
    """
    flat = to_flat(layer)
    nO = layer.hidden_size * (1 + layer.bidirectional)
    model = LSTM(nO, layer.input_size, bi=layer.bidirectional, depth=layer.num_layers).initialize()
    model.set_param("LSTM", model.ops.asarray1f(flat))
    return model
