"""The stateless interface to the kernels: buffers in, buffers out.

An `Engine` describes a stack of layers; it holds neither weights nor state. Its `sizes` method computes, from shapes
alone, the bytes that each buffer needs; `pack` rearranges weights for the kernels; `forward` and `backward` run them.
These functions do not check their arguments, and the kernels allocate nothing: `rnnfast.layers` does both, and adapters
to other frameworks may do it differently.

Arrays have the engine's dtype in native byte order and are aligned. `x`, `y`, `dy` and `dx` are (T, N, features) with
any strides on the first two axes, negative ones included, and unit stride on the last, so ``a.transpose(1, 0, 2)``
turns a batch-first array into one without a copy. States are C-contiguous (num_layers * directions, N, size). All other
arrays are C-contiguous, and flat buffers come from `empty`. T and N are at least 1. The functions release the GIL, can
be called from several threads at once, and raise KeyboardInterrupt on Ctrl-C, which leaves their outputs undefined.

pack(engine, parameters, packed, packed_back)
    `parameters`: arrays in the order of `parameter_shapes`. Forward reads `packed` (engine.packed_size bytes), backward
    reads `packed_back` (engine.packed_back_size bytes); either may be None.
forward(engine, packed, inputs, outputs, workspace, tape=None)
    Reads `Inputs`, writes `Outputs` and the tape, if one is given. `workspace` has `forward_workspace` bytes of
    `engine.sizes(T, N)`, or of `engine.sizes(T, N, inputs.order)`. Masked steps of an order are neither read nor
    written: see `order.fill` and `fold`.
backward(engine, packed_back, inputs, y, tape, output_gradients, input_gradients, workspace)
    Reads the same `Inputs`, y, the tape and `OutputGradients`, and writes `InputGradients`.
PreparedCall(engine, packed, shapes, ...)
    A call of `forward` whose set-up is done once: `run(x, state)`, or `step(x, out)`, which keeps the state.
order.fill(source, array), fold(engine, dy, order)
    Writes the masked steps of an array (T, N, features): zeros for 0, the values of the step before or after for -1 and
    1. Adds, in an array like dy, the masked steps to the steps that they repeat.
cells(engine, T, N, tape, out, order=None)
    Writes c of all steps, (num_layers * directions, T, N, hidden_size).
xla["forward"], xla["backward"]
    Capsules of both passes, as handlers for XLA's foreign-function interface. Their attribute is
    `engine.xla_call(...)`.

Examples
--------
>>> import numpy as np
>>> engine = Engine("lstm", np.dtype(np.float32), 4, 8)
>>> parameters = [np.full(shape, 0.1, np.float32) for shape in parameter_shapes(engine).values()]
>>> packed, sizes = empty(engine.packed_size), engine.sizes(T=3, N=2)
>>> pack(engine, parameters, packed, None)
>>> x, y = np.ones((3, 2, 4), np.float32), np.empty((3, 2, 8), np.float32)
>>> h_n, c_n = np.empty((2, 1, 2, 8), np.float32)
>>> forward(engine, packed, Inputs(x), Outputs(y, h_n, c_n), empty(sizes.forward_workspace))
>>> bool((y[-1] == h_n).all())
True
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from rnnfast._types import Array

try:
    from rnnfast import _core
except ImportError as error:
    here = os.path.dirname(os.path.abspath(__file__))
    raise ImportError(
        f"the compiled part of rnnfast is missing in {here}. In a checkout, install with `pip install -e .`, or run "
        "Python in another folder after `pip install .`"
    ) from error
from rnnfast._core import (
    CELLS,
    FUNCTIONS,
    SUM_ROWS,
    CellInfo,
    Engine,
    Order,
    PreparedCall,
    Sizes,
    backward,
    cells,
    fold,
    forward,
    get_num_threads,
    isas,
    pack,
    xla,
)
from rnnfast.buffers import empty

__all__ = [
    "CELLS",
    "FUNCTIONS",
    "SUM_ROWS",
    "CellInfo",
    "Engine",
    "InputGradients",
    "Inputs",
    "Order",
    "OutputGradients",
    "Outputs",
    "PreparedCall",
    "Sizes",
    "activation",
    "arrange",
    "backward",
    "cells",
    "empty",
    "fold",
    "forward",
    "get_num_threads",
    "isas",
    "linear_backward",
    "linear_forward",
    "linear_pack",
    "pack",
    "packed_order",
    "parameter_shapes",
    "set_num_threads",
    "thread_limits",
    "use_isa",
    "window",
    "xla",
]


class Inputs(NamedTuple):
    """What `forward` reads, and `backward` reads again.

    Attributes
    ----------
    x : ndarray, (T, N, input_size)
    h0, c0 : ndarray or None
        Initial states; None is zeros.
    masks : ndarray or None, (num_layers - 1, T, N, features of y)
        Factors for the outputs of all layers but the last.
    order : Order or None
        From `arrange`, for rows of different lengths; the states are then those of its sequences.
    """

    x: Any
    h0: Any = None
    c0: Any = None
    masks: Any = None
    order: Order | None = None


class Outputs(NamedTuple):
    """What `forward` writes: y (T, N, features) and the last states. c_n is None for a cell without c."""

    y: Any
    h_n: Any
    c_n: Any = None


class OutputGradients(NamedTuple):
    """Gradients with respect to `Outputs`, which `backward` reads. None is zeros."""

    dy: Any = None
    dh_n: Any = None
    dc_n: Any = None


class InputGradients(NamedTuple):
    """What `backward` writes.

    Attributes
    ----------
    dx, dh0, dc0 : ndarray
        Gradients with respect to `Inputs`; dc0 is None for a cell without c.
    dparameters : list of ndarray or None
        In the order of `parameter_shapes`; None for a parameter that is not trained. The gradients are added to the
        values of the arrays.
    dh : ndarray or None, (num_layers * directions, T, N, output_size)
        The total derivative with respect to h of every layer, direction and step; None to skip it.
    """

    dx: Any
    dh0: Any
    dc0: Any
    dparameters: Any
    dh: Any = None


def parameter_shapes(engine: Engine) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the parameters of an engine, in torch's flat order.

    Examples
    --------
    >>> import numpy as np
    >>> parameter_shapes(Engine("gru", np.dtype(np.float32), 3, 5, bias=False))
    {'weight_ih_l0': (15, 3), 'weight_hh_l0': (15, 5)}
    """
    shapes: dict[str, tuple[int, ...]] = {}
    features, rows = engine.input_size, engine.gates * engine.hidden_size
    for layer in range(engine.num_layers):
        for suffix in [f"_l{layer}", f"_l{layer}_reverse"][: engine.directions]:
            shapes["weight_ih" + suffix] = (rows, features)
            shapes["weight_hh" + suffix] = (rows, engine.output_size)
            if engine.bias:
                shapes["bias_ih" + suffix] = shapes["bias_hh" + suffix] = (rows,)
            if engine.proj_size:
                shapes["weight_hr" + suffix] = (engine.proj_size, engine.hidden_size)
            if engine.extra:
                shapes[engine.extra + suffix] = (engine.info.extra_rows, engine.hidden_size)
        features = engine.directions * engine.output_size
    return shapes


def arrange(
    T: int, N: int, lengths: Array | None = None, mask: Array | None = None, reset: Array | None = None
) -> tuple[Order, Array, Array]:
    """The order in which a batch of unequal rows is gone through.

    Parameters
    ----------
    lengths : ndarray of intp, (N,), C-contiguous, from 0 to T
        Steps from there on are in no sequence. None: all are.
    mask : ndarray of bool, (T, N)
        False where a step is in no sequence. None: all are.
    reset : ndarray of bool, (T, N)
        True where a new sequence of the row begins; step 0 begins one anyway. None: none does.

    Returns
    -------
    order : Order
        For `forward` and `backward`.
    sequences : ndarray of intp
        The numbers of all sequences, row after row, those of a row in the order of time. States are in the order of
        these numbers.
    rows : ndarray of intp, (N + 1,)
        Those of row n are ``sequences[rows[n]:rows[n + 1]]``, one at least.

    Examples
    --------
    >>> order, sequences, rows = arrange(5, 3, lengths=np.array([2, 0, 5]))
    >>> order.steps, order.sequences, order.begin.tolist(), sequences.tolist()
    (5, 3, [0, 2, 4, 5, 6, 7], [1, 2, 0])
    """
    steps, count, entries, masked = _core.count(T, N, lengths, mask, reset)
    sizes = steps + 1, 2 * entries, 2 * entries, steps + 1, 4 * masked
    begin, forward, reverse, edges, masked_list = (np.empty(size, np.intp) for size in sizes)
    sequences, rows, scratch = (np.empty(size, np.intp) for size in (count, N + 1, steps + 2 + count + T))
    arrays = begin, forward, reverse, edges, masked_list
    blocks = _core.arrange(T, N, lengths, mask, reset, *arrays, sequences, rows, scratch)
    places = forward.reshape(-1, 2), reverse.reshape(-1, 2)
    return Order(count, begin, places, edges[: blocks + 1], masked_list.reshape(-1, 4)), sequences, rows


def packed_order(batch_sizes: Array) -> Order:
    """The order of a packed batch: the entries of all steps one below the other, as an array (entries, 1, features).

    Parameters
    ----------
    batch_sizes : ndarray of integers, (T,)
        How many sequences have each step, from the most to the fewest, one at least.

    Examples
    --------
    >>> order = packed_order(np.array([3, 2, 2]))
    >>> order.sequences, order.positions[0][:, 0].tolist(), order.positions[1][:, 0].tolist()
    (3, [0, 1, 2, 3, 4, 5, 6], [5, 6, 2, 3, 4, 0, 1])
    """
    T, N = len(batch_sizes), int(batch_sizes[0])
    lengths = (T - np.searchsorted(batch_sizes[::-1], np.arange(N), side="right")).astype(np.intp, copy=False)
    order, _, _ = arrange(T, N, lengths)
    entries = [order.begin[places[:, 0]] + places[:, 1] for places in order.positions]
    places = tuple(np.stack([entry, np.zeros_like(entry)], axis=1) for entry in entries)
    return Order(N, order.begin, places, order.edges, order.masked_steps[:0])


def window(order: Order, first: int, last: int) -> Order:
    """Blocks first .. last-1 of an order as an order of its own, of those sequences that have come to the first."""
    edges = order.edges[first : last + 1]
    begin = order.begin[edges[0] : edges[-1] + 1]
    places = tuple(places[begin[0] : begin[-1]] for places in order.positions)
    return Order(int(begin[1] - begin[0]), begin, places, edges - edges[0], order.masked_steps[:0])


def linear_pack(weight: Array, bias: Array | None) -> Array:
    """Pack weight (O, I) and bias (O,) or None, both C-contiguous, for `linear_forward`."""
    rows, columns = weight.shape
    packed = empty(_core.linear_sizes(1, columns, rows, weight.itemsize)[0])
    _core.linear_pack(weight, bias, packed)
    return packed


def linear_forward(x: Array, packed: Array, y: Array) -> None:
    """Compute y = x weight' + bias for x (M, I) and y (M, O), with any strides between rows."""
    _core.linear_forward(x, packed, y)


def linear_backward(x: Array, weight: Array, dy: Array, dx: Array, dweight: Array, dbias: Array | None) -> None:
    """Write dx, and add the gradients of weight and bias (or None) to dweight and dbias."""
    _, size = _core.linear_sizes(x.shape[0], x.shape[1], dy.shape[1], x.itemsize)
    _core.linear_backward(x, weight, dy, dx, dweight, dbias, empty(size))


def activation(name: str, a: Array, isa: str | None = None) -> Array:
    """Apply "sigmoid" or "tanh" to a contiguous array, as the cells compute it."""
    out = np.empty_like(a)
    _core.activation(name, a, out, isa)
    return out


@contextlib.contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Use an instruction set for engines made in this context and for the linear functions, in all threads."""
    before = _core.get_default_isa()
    _choose_isa(name, "isa")
    try:
        yield
    finally:
        _core.set_default_isa(before)


def _choose_isa(name: str, source: str) -> None:
    if name not in isas():
        raise ValueError(f"{source} is {name!r}, which does not run here; choose one of {', '.join(isas())}")
    _core.set_default_isa(name)


def set_num_threads(n: SupportsIndex) -> None:
    """Set the number of threads that a call may use from now on.

    Raises
    ------
    ValueError, TypeError
        If n is not a positive integer.
    """
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"n, the number of threads, must be an integer, not {type(n).__name__}")
    if not 1 <= n.__index__() <= 1 << 20:
        raise ValueError(f"n, the number of threads, must be from 1 to {1 << 20}, not {n}")
    _core.set_num_threads(n.__index__())


def thread_limits() -> dict[str, int]:
    """Return the limits on the number of threads: the processors of this process, its cgroup quota, the environment.

    The default number of threads is the least of them, but at least 1.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = {"processors": processors}
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/cpu.max") as file:
        quota, period = file.read().split()
        limits["cgroup quota"] = -(-int(quota) // int(period))
    for name in ["RNNFAST_NUM_THREADS", "OMP_NUM_THREADS"]:
        with contextlib.suppress(ValueError):
            limits[name] = int(os.environ.get(name, "").split(",")[0])
    return limits


if os.environ.get("RNNFAST_ISA"):
    _choose_isa(os.environ["RNNFAST_ISA"], "The environment variable RNNFAST_ISA")
set_num_threads(max(1, min(thread_limits().values())))
