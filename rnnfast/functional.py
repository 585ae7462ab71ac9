"""The stateless interface to the kernels: buffers in, buffers out.

An `Engine` describes a stack of layers. It holds neither weights nor state. Its method `sizes` computes the size of
each buffer in bytes, from the shapes alone. `pack` rearranges weights for the kernels, and `forward` and `backward` run
them. These functions check the shapes and element sizes of arrays, but not the numbers in an `Order` or in packed
weights and tapes, which must come from this module. The kernels do not allocate memory. The layers in `rnnfast.layers`
check everything and allocate, and adapters to other frameworks can do so in their own way.

Arrays have the dtype of the engine in native byte order, and are aligned. `x`, `y`, `dy` and `dx` are (T, N, features)
with unit stride on the last axis and any strides on the others, including negative ones, so ``a.transpose(1, 0, 2)``
converts a batch-first array without a copy. States are C-contiguous (num_layers * directions, N, size). All other
arrays are C-contiguous, and flat buffers come from `empty`. T and N are at least 1. The functions release the GIL and
can be called from several threads at once. On Ctrl-C they raise KeyboardInterrupt, and their outputs are undefined.

pack(engine, parameters, packed, packed_back)
    Pack `parameters`, arrays in the order of `parameter_shapes`, into `packed` (engine.packed_size bytes) for forward
    and into `packed_back` (engine.packed_back_size bytes) for backward. Either buffer may be None. `parameters` may
    also be ``Pointers(engine, parameters)``, which are checked once and keep the arrays alive.
forward(engine, packed, inputs, outputs, workspace, tape=None)
    Read `Inputs`, and write `Outputs` and the tape, if one is passed. `workspace` has the ``forward_workspace`` bytes
    of ``engine.sizes(T, N, inputs.order)``, and the tape its ``tape`` bytes. With an order, masked-out steps are
    neither read nor written: see `order.fill` and `fold`.
backward(engine, packed_back, inputs, y, tape, output_gradients, input_gradients, workspace)
    Read the inputs and y of a forward pass, its tape and `OutputGradients`, and write `InputGradients`. `workspace` has
    the ``backward_workspace`` bytes of the sizes.
PreparedCall(engine, packed, shapes, ...)
    A forward pass whose set-up is done once, for many calls with the same shapes: ``run(x, state)``, or
    ``step(x, out)``, which keeps the state between calls. With ``parameters=`` instead of `packed`, `run` packs the
    present values of these arrays.
order.fill(source, array), fold(engine, dy, order)
    `fill` writes the masked-out steps of an array (T, N, features): zeros if `source` is 0, the values of the previous
    or the next valid step if it is -1 or 1. `fold` is its derivative: it adds the masked-out steps of an array like dy
    to the steps that they repeat.
cells(engine, T, N, tape, out, order=None)
    Write the cell state c of all steps, (num_layers * directions, T, N, hidden_size).
xla["forward"], xla["backward"]
    Capsules with the handlers of both passes for XLA's foreign-function interface. They take one attribute, the result
    of ``engine.host_call(...)``.

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
from typing import SupportsIndex

import numpy as np

from rnnfast import _core
from rnnfast._core import (
    CELLS,
    FUNCTIONS,
    SUM_ROWS,
    CellInfo,
    Engine,
    InputGradients,
    Inputs,
    Order,
    OutputGradients,
    Outputs,
    Pointers,
    PreparedCall,
    Sizes,
    backward,
    cells,
    fold,
    forward,
    get_default_isa,
    get_num_threads,
    isas,
    pack,
    use_isa,
    xla,
)
from rnnfast._types import Array
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
    "Pointers",
    "PreparedCall",
    "Sizes",
    "activation",
    "arrange",
    "backward",
    "cells",
    "empty",
    "fold",
    "forward",
    "get_default_isa",
    "get_num_threads",
    "isas",
    "linear_backward",
    "linear_forward",
    "linear_pack",
    "pack",
    "packed_order",
    "parameter_shapes",
    "set_num_threads",
    "state_shapes",
    "suffixes",
    "thread_limits",
    "use_isa",
    "window",
    "xla",
]


def suffixes(engine: Engine, layer: int) -> list[str]:
    """Return how the names of the parameters of a layer end, for each direction."""
    return [f"_l{layer}", f"_l{layer}_reverse"][: engine.directions]


def state_shapes(engine: Engine) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of learned initial states: h of all layers and directions, then c, if the cell has it.

    Examples
    --------
    >>> import numpy as np
    >>> state_shapes(Engine("lstm", np.dtype(np.float32), 3, 5))
    {'h0_l0': (5,), 'c0_l0': (5,)}
    """
    ends = [suffix for layer in range(engine.num_layers) for suffix in suffixes(engine, layer)]
    widths = {"h0": engine.output_size} | ({"c0": engine.hidden_size} if engine.info.has_c else {})
    return {kind + end: (width,) for kind, width in widths.items() for end in ends}


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
        for suffix in suffixes(engine, layer):
            shapes["weight_ih" + suffix] = (rows, features)
            if not engine.info.elementwise:
                shapes["weight_hh" + suffix] = (rows, engine.output_size)
            if engine.bias:
                shapes["bias_ih" + suffix] = (rows,)
            if engine.bias and not engine.info.elementwise:
                shapes["bias_hh" + suffix] = (rows,)
            if engine.proj_size:
                shapes["weight_hr" + suffix] = (engine.proj_size, engine.hidden_size)
            if engine.extra:
                shapes[engine.extra + suffix] = (engine.info.extra_rows, engine.hidden_size)
        features = engine.directions * engine.output_size
    return shapes


def arrange(
    T: int, N: int, lengths: Array | None = None, mask: Array | None = None, reset: Array | None = None
) -> tuple[Order, Array, Array]:
    """Return the order in which the kernels process a ragged batch.

    A row holds one or more sequences. Steps that belong to no sequence are masked out. States are those of sequences,
    so the caller decides from which state each one starts. No other thread may change the arrays during the call: pass
    copies of arrays that others can reach.

    Parameters
    ----------
    T, N : int
    lengths : ndarray of intp, (N,), C-contiguous, from 0 to T
        The number of steps of each row. None if all rows have T steps.
    mask : ndarray of bool, (T, N)
        False at masked-out steps. None if no step is masked out.
    reset : ndarray of bool, (T, N)
        True at the first step of each sequence. Step 0 always starts a sequence. None if each row is one sequence.

    Returns
    -------
    order : Order
        Pass it to `forward` and `backward`.
    sequences : ndarray of intp
        The indices of all sequences, row by row, and within a row in temporal order. A sequence's index is its position
        in the arrays of states.
    rows : ndarray of intp, (N + 1,)
        The sequences of row n are ``sequences[rows[n]:rows[n + 1]]``, at least one.

    Examples
    --------
    >>> order, sequences, rows = arrange(5, 3, lengths=np.array([2, 0, 5]))
    >>> order.steps, order.sequences, order.begin.tolist(), sequences.tolist()
    (5, 3, [0, 2, 4, 5, 6, 7], [1, 2, 0])
    """
    begin, positions, edges, masked_steps, sequences, rows = _core.arrange(
        T, N, lengths, mask, reset, lambda size: np.empty(size, np.intp)
    )
    return Order(len(sequences), begin, positions, edges, masked_steps), sequences, rows


def packed_order(batch_sizes: Array) -> Order:
    """Return the order of a packed batch, an array (entries, 1, features) that concatenates the entries of all steps.

    Parameters
    ----------
    batch_sizes : ndarray of integers, (T,)
        The number of sequences at each step, at least 1, and never increasing.

    Examples
    --------
    >>> order = packed_order(np.array([3, 2, 2]))
    >>> order.sequences, order.positions[0][:, 0].tolist(), order.positions[1][:, 0].tolist()
    (3, [0, 1, 2, 3, 4, 5, 6], [5, 6, 2, 3, 4, 0, 1])
    """
    batch_sizes = np.array(batch_sizes)  # another thread may write to the argument
    T, N = len(batch_sizes), int(batch_sizes[0])
    lengths = (T - np.searchsorted(batch_sizes[::-1], np.arange(N), side="right")).astype(np.intp, copy=False)
    order, _, _ = arrange(T, N, lengths)
    entries = [order.begin[part[:, 0]] + part[:, 1] for part in order.positions]
    positions = tuple(np.stack([entry, np.zeros_like(entry)], axis=1) for entry in entries)
    return Order(N, order.begin, positions, order.edges, order.masked_steps[:0])


def window(order: Order, first: int, last: int) -> Order:
    """Return blocks first .. last-1 as an order of the sequences that have a step in the first of these blocks."""
    edges = order.edges[first : last + 1]
    begin = order.begin[edges[0] : edges[-1] + 1]
    positions = tuple(part[begin[0] : begin[-1]] for part in order.positions)
    return Order(int(begin[1] - begin[0]), begin, positions, edges - edges[0], order.masked_steps[:0])


def linear_pack(weight: Array, bias: Array | None, isa: str | None = None, weights: str = "full") -> Array:
    """Return weight (O, I) and bias (O,) or None, both C-contiguous, packed for `linear_forward` with the same `isa`.

    `isa` names an instruction set; None stands for the default, which `use_isa` changes.
    """
    rows, columns = weight.shape
    isa = isa or _core.get_default_isa()  # once, because another thread may change it
    packed = empty(_core.linear_sizes(1, columns, rows, weight.itemsize, isa, weights)[0])
    _core.linear_pack(weight, bias, packed, isa, weights)
    return packed


def linear_forward(x: Array, packed: Array, y: Array, isa: str | None = None, weights: str = "full") -> None:
    """Compute y = x weight' + bias for x (M, I) and y (M, O). The strides of the rows are arbitrary."""
    _core.linear_forward(x, packed, y, isa, weights)


def linear_backward(
    x: Array, weight: Array, dy: Array, dx: Array, dweight: Array, dbias: Array | None, isa: str | None = None
) -> None:
    """Write dx, and add the gradients of weight and bias to dweight and dbias, which may be None."""
    isa = isa or _core.get_default_isa()
    _, size = _core.linear_sizes(x.shape[0], x.shape[1], dy.shape[1], x.itemsize, isa)
    _core.linear_backward(x, weight, dy, dx, dweight, dbias, empty(size), isa)


def activation(name: str, a: Array, isa: str | None = None) -> Array:
    """Apply "sigmoid" or "tanh" to a contiguous array, with the functions of the cells."""
    out = np.empty_like(a)
    _core.activation(name, a, out, isa)
    return out


def set_num_threads(n: SupportsIndex) -> None:
    """Set the maximum number of threads of each call from now on.

    Raises
    ------
    ValueError
        If `n` is not from 1 to 2**20.
    TypeError
        If `n` is not an integer.
    """
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"n, the number of threads, must be an integer, got {type(n).__name__}")
    if not 1 <= n.__index__() <= 1 << 20:
        raise ValueError(f"n, the number of threads, must be from 1 to {1 << 20}, got {n}")
    _core.set_num_threads(n.__index__())


def thread_limits() -> dict[str, int]:
    """Return the limits on the number of threads: processors of this process, cgroup quota, environment variables.

    The default number of threads is the smallest of these limits, but at least 1.
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


if isa := os.environ.get("RNNFAST_ISA"):
    try:
        _core.set_default_isa(isa)
    except ValueError as error:
        raise ValueError(f"The environment variable RNNFAST_ISA is wrong: {error}") from None
set_num_threads(max(1, min(thread_limits().values())))
