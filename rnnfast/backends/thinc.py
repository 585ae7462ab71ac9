"""thinc, the library under spaCy: its LSTM layers run by rnnfast, forward and backward.

Importing this module registers the operations "rnnfast". Models that are made while they are the current ones use them:

>>> import numpy as np
>>> from thinc.api import LSTM, use_ops, with_padded
>>> import rnnfast.backends.thinc
>>> with use_ops("rnnfast"):
...     model = with_padded(LSTM(nO=8, nI=4, bi=True, depth=2)).initialize()
>>> outputs, backprop = model.begin_update([np.ones((5, 4), "f"), np.ones((3, 4), "f")])
>>> [y.shape for y in outputs], [dx.shape for dx in backprop(outputs)]
([(5, 8), (3, 8)], [(5, 4), (3, 4)])

``thinc.api.set_current_ops(thinc.api.get_ops("rnnfast"))`` makes them those of all models to come; one that is there
already is switched by ``node.ops = get_ops("rnnfast")`` for each ``node`` of ``model.walk()``.

Outputs are thinc's, to rounding. Gradients are the true ones, which thinc's own are not: thinc 9.1.1 gives 0 for the
first step of X and starts the gradients of the weights from the weights. Both biases of a gate get their gradient,
which is the same; thinc gives it to the first of them alone, so that a step of training moves their sum half as far
there.

Supported: thinc 8.1 to 9.1, on the CPU. As in thinc, the initial state gets no gradient, and what it calls H0 is the
initial c, C0 the initial h. The second result of ``lstm_forward_training`` is for ``backprop_lstm`` alone: it lacks the
members of thinc's. Everything but LSTM is thinc's NumpyOps.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast import arguments, buffers, functional, layers

try:
    from thinc.api import LSTM, Model, NumpyOps, registry
except ImportError as error:
    raise ImportError(
        "rnnfast.backends.thinc needs thinc from 8.1 on: pip install thinc, with a Python that it has a wheel for"
    ) from error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["RnnfastOps", "from_flat", "layer_from_thinc", "layer_to_thinc", "to_flat"]

# The places of torch's gates i, f, g, o among thinc's f, i, o, c; and of thinc's among torch's.
GATES = [1, 0, 3, 2]


@registry.ops("RnnfastOps")
class RnnfastOps(NumpyOps):
    """NumpyOps with the three methods of LSTM by rnnfast; ``get_ops("rnnfast")`` makes it.

    In all of them `params` is the flat vector, `H0` and `C0` are (depth, dirs, nO), `X` (M, nI) has the rows of all
    steps one after the other, and `size_at_t` (T,) says how many rows there are at each step: sequences go from the
    longest to the shortest. Numbers are of the dtype of `params`, float32 or float64.
    """

    name = "rnnfast"

    def lstm_forward_inference(self, params: Any, H0: Any, C0: Any, X: Any, size_at_t: Any) -> Array:
        """Y, (M, dirs * nO)."""
        return _Call(params, H0, C0, X, size_at_t).forward(training=False)

    def lstm_forward_training(self, params: Any, H0: Any, C0: Any, X: Any, size_at_t: Any) -> tuple[Array, tuple[Any]]:
        """Y and what `backprop_lstm` needs, which holds X by reference."""
        call = _Call(params, H0, C0, X, size_at_t)
        return call.forward(training=True), (call,)

    def backprop_lstm(self, dY: Any, lengths: Any, params: Any, fwd_state: tuple[Any]) -> tuple[Array, Array]:  # noqa: ARG002
        """The gradients of X and of params."""
        (call,) = fwd_state
        return call.backward(dY)


@functools.lru_cache
def _engine(dtype: np.dtype[Any], nI: int, nO: int, depth: int, dirs: int) -> functional.Engine:
    return functional.Engine("lstm", dtype, nI, nO, num_layers=depth, bidirectional=dirs == 2)


_memory = buffers.ResultPool(16)  # for the calls to come: some of a few layers, forward and backward


class _Call:
    """One batch on its way through a layer."""

    def __init__(self, params: Any, H0: Any, C0: Any, X: Any, size_at_t: Any) -> None:
        params = np.asarray(params)
        dtype = arguments.dtype(params.dtype)
        if np.ndim(H0) != 3:
            raise ValueError(f"H0 must have shape (depth, dirs, nO), got {np.shape(H0)}")
        depth, dirs, nO = np.shape(H0)
        self.x = arguments.real("X", X, dtype)[:, np.newaxis]
        self.engine = _engine(dtype, self.x.shape[2], nO, depth, dirs)
        self.parameters = _from_flat(self.engine, params)
        self.order = _order(np.asarray(size_at_t), len(self.x))
        self.sizes = self.engine.sizes(len(self.x), 1, self.order)
        # thinc hands H0 to the argument that it uses as c, and C0 to that of h.
        self.h0, self.c0 = (self._states(name, value, (depth, dirs, nO)) for name, value in (("C0", C0), ("H0", H0)))

    def _states(self, name: str, value: Any, shape: tuple[int, ...]) -> Array:
        """An initial state, which thinc has once for all sequences, for each of them."""
        state = arguments.shaped(name, value, self.engine.dtype, shape, "the shape of H0, (depth, dirs, nO)")
        return np.repeat(state.reshape(-1, 1, shape[-1]), self.order.sequences, axis=1)

    def forward(self, training: bool) -> Array:
        engine, sizes = self.engine, self.sizes
        packed = _memory.bytes(engine.packed_size)
        self.packed_back = _memory.bytes(engine.packed_back_size) if training else None
        self.tape = _memory.bytes(sizes.tape) if training else None
        self.y = _memory.empty((*self.x.shape[:2], engine.directions * engine.output_size), engine.dtype)
        last = np.empty_like(self.h0), np.empty_like(self.c0)
        workspace = _memory.bytes(sizes.forward_workspace)
        functional.pack(engine, list(self.parameters.values()), packed, self.packed_back)
        inputs = functional.Inputs(self.x, self.h0, self.c0, order=self.order)
        functional.forward(engine, packed, inputs, functional.Outputs(self.y, *last), workspace, self.tape)
        return self.y[:, 0]

    def backward(self, dY: Any) -> tuple[Array, Array]:
        engine = self.engine
        dy = arguments.shaped("dY", dY, engine.dtype, self.y[:, 0].shape, "the shape of Y")
        dx = _memory.empty(self.x.shape, engine.dtype)
        dstart = np.empty_like(self.h0), np.empty_like(self.c0)
        gradients = {name: np.zeros_like(value) for name, value in self.parameters.items()}
        workspace = _memory.bytes(self.sizes.backward_workspace)
        functional.backward(
            engine,
            self.packed_back,
            functional.Inputs(self.x, self.h0, self.c0, order=self.order),
            self.y,
            self.tape,
            functional.OutputGradients(dy[:, np.newaxis]),
            functional.InputGradients(dx, *dstart, list(gradients.values())),
            workspace,
        )
        return dx[:, 0], _to_flat(engine, gradients)


def _order(size_at_t: Array, rows: int) -> functional.Order:
    """The order of sequences whose entries lie one below the other, step after step."""
    falling = size_at_t.ndim == 1 and len(size_at_t) > 0 and size_at_t[-1] > 0 and (np.diff(size_at_t) <= 0).all()
    if not falling or size_at_t.sum() != rows:
        raise ValueError(
            "size_at_t must say how many rows of X there are at each step, from the most to the fewest, and one at "
            f"least; they must sum up to X's {rows}, got {size_at_t.tolist()}"
        )
    return functional.packed_order(size_at_t)


# --------------------------------------------------------------------------------------------------------- weights


def _parts(engine: functional.Engine, flat: Array) -> dict[str, Array]:
    """Views of what a flat vector holds, (4, nO, ...) with the gates in thinc's order, under rnnfast's names."""
    shapes = functional.parameter_shapes(engine)
    size = sum(np.prod(shape) for shape in shapes.values())
    if flat.shape != (size,):
        raise ValueError(
            f"params must be a vector of {size} numbers for nI={engine.input_size}, nO={engine.hidden_size}, "
            f"depth={engine.num_layers} and dirs={engine.directions}, got shape {flat.shape}"
        )
    names = list(shapes)
    parts, start = {}, 0
    for first in range(0, len(names), 4):
        weight_ih, weight_hh, bias_ih, bias_hh = names[first : first + 4]
        for name in (weight_ih, bias_ih, weight_hh, bias_hh):
            stop = start + int(np.prod(shapes[name]))
            parts[name] = flat[start:stop].reshape(4, -1, *shapes[name][1:])
            start = stop
    return parts


def _from_flat(engine: functional.Engine, flat: Array) -> dict[str, Array]:
    """The parameters in the engine's order, copied."""
    shapes, parts = functional.parameter_shapes(engine), _parts(engine, flat)
    return {name: parts[name][GATES].reshape(shape) for name, shape in shapes.items()}


def _to_flat(engine: functional.Engine, arrays: Any) -> Array:
    flat = np.empty(sum(array.size for array in arrays.values()), engine.dtype)
    for name, part in _parts(engine, flat).items():
        part[...] = arrays[name].reshape(part.shape)[GATES]
    return flat


def to_flat(layer: layers.LSTM) -> Array:
    """The parameters of a layer as thinc's flat vector.

    Parameters
    ----------
    layer : rnnfast.LSTM
        Without projection, `reverse` and the options of the ONNX standard.

    Returns
    -------
    ndarray, flat, of the layer's dtype
        For each layer and direction Wx (4*nO, nI), bx (4*nO,), Wh (4*nO, nO), bh (4*nO,), rows in the order f, i, o, c.
        Biases are zeros where the layer has none.

    Raises
    ------
    TypeError, ValueError
        When it is another layer, or one that thinc has not.

    Examples
    --------
    >>> import rnnfast
    >>> layer = rnnfast.LSTM(4, 8, rng=0)
    >>> flat = to_flat(layer)
    >>> flat.shape, bool((from_flat(flat, 4, 8).parameters["bias_hh_l0"] == layer.parameters["bias_hh_l0"]).all())
    ((448,), True)
    """
    if not isinstance(layer, layers.LSTM):
        raise TypeError(f"layer must be an rnnfast.LSTM, which is all that thinc has, got {type(layer).__name__}")
    plain = {"proj_size": 0, "reverse": False, "activations": None, "clip": None, "peepholes": False, "coupled": False}
    declined = [f"{name}={getattr(layer, name)!r}" for name, value in plain.items() if getattr(layer, name) != value]
    if declined:
        raise ValueError(f"layer has {', '.join(declined)}, which thinc's LSTM has not: make one without")
    engine = _engine(layer.dtype, layer.input_size, layer.hidden_size, layer.num_layers, 1 + layer.bidirectional)
    shapes = functional.parameter_shapes(engine)
    arrays = {name: layer.parameters.get(name, np.zeros(shape, layer.dtype)) for name, shape in shapes.items()}
    return _to_flat(engine, arrays)


def from_flat(flat: Any, nI: int, nO: int, depth: int = 1, bi: bool = False) -> layers.LSTM:
    """A layer with the parameters of thinc's flat vector, the inverse of `to_flat`.

    Parameters
    ----------
    flat : array_like
    nI : int
        Features of the input.
    nO : int
        Units of one direction; thinc's dimension nO is that of both.
    depth : int, default 1
    bi : bool, default False

    Returns
    -------
    rnnfast.LSTM
        Of the dtype of `flat`.

    Raises
    ------
    ValueError
        When `flat` has not as many numbers as that takes, or is not of float32 or float64.
    """
    flat = np.asarray(flat)
    layer = layers.LSTM(nI, nO, depth, bidirectional=bi, dtype=flat.dtype)
    layer.load_state_dict(_from_flat(_engine(layer.dtype, nI, nO, depth, 1 + bi), flat))
    return layer


def layer_from_thinc(model: Model[Any, Any]) -> layers.LSTM:
    """The LSTM of a thinc model as a layer of rnnfast.

    Parameters
    ----------
    model : thinc.api.Model
        An initialised LSTM, or a model with one inside, such as ``with_padded(LSTM(...))``.

    Returns
    -------
    rnnfast.LSTM
        Time first; thinc's dropout acts on weights, and is not carried over.

    Raises
    ------
    ValueError
        When the model has no LSTM or several, when it is not initialised, or when its initial state is not zero: a
        layer has none of its own.

    Examples
    --------
    >>> model = LSTM(nO=8, nI=4, bi=True).initialize()
    >>> layer_from_thinc(model)
    LSTM(4, 4, bidirectional=True)  # 320 parameters
    """
    nodes = [node for node in model.walk() if "LSTM" in node.param_names]
    if len(nodes) != 1:
        raise ValueError(f"model must have one LSTM of thinc inside, got {model.name!r} with {len(nodes)}")
    (node,) = nodes
    if not node.has_param("LSTM"):
        raise ValueError(f"model {model.name!r} has no parameters yet: call its initialize()")
    if np.any(node.get_param("HC0")):
        raise ValueError(
            "model has an initial state, HC0, that is not zero, and a layer has none of its own: set it to zeros, and "
            "give the layer HC0[1] as h and HC0[0] as c at each call, repeated for each row"
        )
    sizes = {name: node.get_dim(name) for name in ("nI", "nO", "depth", "dirs")}
    dirs = sizes.pop("dirs")
    return from_flat(node.get_param("LSTM"), sizes["nI"], sizes["nO"] // dirs, sizes["depth"], dirs == 2)


def layer_to_thinc(layer: layers.LSTM) -> Model[Any, Any]:
    """A layer as an initialised LSTM of thinc, with the ops that are current.

    Parameters
    ----------
    layer : rnnfast.LSTM
        As for `to_flat`.

    Returns
    -------
    thinc.api.Model
        ``LSTM(...)``; ``with_padded`` around it takes lists of sequences. In float32, as thinc's arrays are.

    Raises
    ------
    TypeError, ValueError
        As `to_flat`.

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
