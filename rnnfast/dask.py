"""Apply a model to Dask arrays and DataFrames, which can be larger than memory or spread over many machines.

>>> import dask.array as da, numpy as np, rnnfast
>>> from rnnfast.dask import predict
>>> layer = rnnfast.LSTM(4, 8, rng=0)
>>> x = da.ones((20, 1000, 4), chunks=(20, 250, 4), dtype=np.float32)  # (T, N, I) in chunks of 250 rows
>>> y, (h, c) = predict(layer, x)  # nothing is computed yet
>>> y.shape, y.chunks[1], h.shape
((20, 1000, 8), (250, 250, 250, 250), (1, 1000, 8))
>>> y[-1].mean(axis=0).compute().shape
(8,)

Each chunk is one Dask task, which calls the model once. Rows are independent, so the results of an rnnfast layer are
bitwise equal to those of one call on the whole array, for any chunks, on machines with the same instruction set.

If Dask runs several tasks at once in one process, as its threaded scheduler does, call ``rnnfast.set_num_threads(1)``,
or set ``RNNFAST_NUM_THREADS=1`` in the environment of the workers. Then each core works on its own chunks. Call a
layer's ``freeze()`` before `predict` to pack its weights once and not in each task, which matters for small chunks.

The model is a single key of the graph and is sent to each worker once. A pickled layer is only slightly larger than
its parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import arguments
from ._types import Array
from .layers import Bidirectional, Recurrent

try:
    import dask.array
    from dask.base import is_dask_collection
    from dask.delayed import delayed
except ImportError as error:
    raise ImportError("rnnfast.dask needs Dask: pip install 'rnnfast[dask]'") from error

if TYPE_CHECKING:
    from dask.array import Array as DaskArray

__all__ = ["predict", "predict_frame"]

da: Any = dask.array  # its functions have no annotations


def predict(model: Callable[..., Any], x: DaskArray, lengths: Any = None, *, batch_axis: int | None = None) -> Any:
    """Apply a model to each chunk of a Dask array, lazily.

    Compute results together, as in ``dask.compute(y, h)``, to call the model once for each chunk. The computation uses
    the parameters that the model has at that time.

    Parameters
    ----------
    model : recurrent layer, such as LSTM, Bidirectional, or another callable
        It is called with a chunk of `x`, and with ``lengths=`` if they are given. It returns an array, or nested tuples
        of arrays, with one row for each row of the chunk. Several tasks may call it at the same time. `predict` calls
        it with one and with two rows of zeros, to find the shapes and dtypes of the results.
    x : dask.array.Array
        For a layer (T, N, I), or (N, T, I) with batch_first. It must have a single chunk along all axes other than the
        batch axis.
    lengths : array_like of int or dask.array.Array, (N,), optional
        As in a call of the layer.
    batch_axis : int, optional
        The axis of the rows in `x`. By default 0 if the model's attribute ``batch_first`` is true, else 1.

    Returns
    -------
    dask.array.Array or nested tuples of them
        For a layer, y and the last state. They have the chunks of `x` along the batch axis.

    Raises
    ------
    TypeError
        If `model` is not callable, `x` is not a Dask array, or `lengths` are not integers.
    ValueError
        If `x` has the wrong number of axes or several chunks along an axis other than the batch axis, `lengths` have
        the wrong shape, or the results of the model have no axis for the rows. Other errors are raised by the model.

    Examples
    --------
    A model with several layers, from ids (N, T) to classes (N,):

    >>> import dask.array as da, rnnfast
    >>> from rnnfast.dask import predict
    >>> embedding, gru, readout = rnnfast.Embedding(50, 4, rng=0), rnnfast.GRU(4, 8, rng=0), rnnfast.Linear(8, 3, rng=0)
    >>> def classify(ids):
    ...     _, h = gru(embedding(ids.T))
    ...     return readout(h[-1]).argmax(axis=-1)
    >>> ids = da.random.default_rng(0).integers(0, 50, (100, 7), chunks=(25, 7))
    >>> classes = predict(classify, ids, batch_axis=0)
    >>> classes.shape, classes.chunks
    ((100,), ((25, 25, 25, 25),))
    """
    if not callable(model):
        raise TypeError(f"model must be a layer or another callable, got {type(model).__name__}")
    if not isinstance(x, da.Array):
        raise TypeError(f"x must be a dask array, got {type(x).__name__}: use dask.array.from_array(x)")
    # Bidirectional itself has no batch_first, but its layers do.
    batch_first = bool(getattr(getattr(model, "forward_layer", model), "batch_first", False))
    if isinstance(model, (Recurrent, Bidirectional)) and x.ndim != 3:
        layout = "(N, T, I)" if batch_first else "(T, N, I)"
        raise ValueError(f"x must have layout {layout} for this {type(model).__name__}, got shape {x.shape}")
    if batch_axis is None:
        batch_axis = 0 if batch_first else 1
    batch = arguments.size("batch_axis", batch_axis, least=0)
    if batch >= x.ndim:
        raise ValueError(f"batch_axis must be below {x.ndim}, the number of axes of x, got {batch}")
    _require_one_chunk(x, batch)
    given = {} if lengths is None else {"lengths": _lengths(lengths, x, batch)}

    samples = []
    for rows in (1, 2):
        shape = (*x.shape[:batch], rows, *x.shape[batch + 1 :])
        samples.append(model(np.zeros(shape, x.dtype), **{name: np.ones(rows, np.intp) for name in given}))
    axes = tuple(range(x.ndim))
    pairs = [pair for name, array in given.items() for pair in (array, (batch,))]
    meta: Array = np.empty((0,) * x.ndim, object)
    # As a separate key of the graph, the model is sent to each worker once and not with every task.
    once = delayed(model, traverse=False)
    results = da.blockwise(_run, axes, x, axes, *pairs, model=once, dtype=object, meta=meta, align_arrays=False)

    arrays = []
    for index, (one, two) in enumerate(zip(*map(_leaves, samples), strict=True)):
        axis = _row_axis(one.shape, two.shape)
        new = {x.ndim + k: size for k, size in enumerate(one.shape)}
        del new[x.ndim + axis]
        out = tuple(batch if k == axis else x.ndim + k for k in range(one.ndim))
        meta = np.empty((0,) * one.ndim, one.dtype)
        arrays.append(da.blockwise(_select, out, results, axes, index=index, new_axes=new, dtype=one.dtype, meta=meta))
    return _in_form_of(samples[0], iter(arrays))


def predict_frame(model: Callable[[Any], Any], frame: Any, columns: Sequence[str]) -> Any:
    """Apply a model to each partition of a Dask DataFrame with one column for each time step, lazily.

    Parameters
    ----------
    model : callable
        It is called with the values (N, T) of a partition, and returns an array (N, len(columns)), or (N,) for one
        column. `predict_frame` calls it with one row of zeros, to find the dtype of the result.
    frame : dask.dataframe.DataFrame
        With T numeric columns, one for each time step.
    columns : sequence of str
        The column names of the result.

    Returns
    -------
    dask.dataframe.DataFrame
        With these columns, and the index and the partitions of `frame`.

    Raises
    ------
    TypeError
        If `model` is not callable, or `frame` is not a Dask DataFrame of NumPy's numeric dtypes.
    ValueError
        If `columns` are not unique, or the model returns a different number of columns.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> from rnnfast.dask import predict_frame
    >>> lstm, readout = rnnfast.LSTM(1, 8, rng=0), rnnfast.Linear(8, 2, rng=0)
    >>> def forecast(values):
    ...     y, _ = lstm(values.T[..., np.newaxis])  # time first, one feature
    ...     return readout(y[-1])
    >>> forecasts = predict_frame(forecast, frame, ["mean", "spread"])  # doctest: +SKIP
    """
    if not callable(model):
        raise TypeError(f"model must be callable, got {type(model).__name__}")
    if not (is_dask_collection(frame) and hasattr(frame, "map_partitions") and getattr(frame, "ndim", 0) == 2):
        raise TypeError(f"frame must be a dask.dataframe.DataFrame, got {type(frame).__name__}")
    others = [
        str(name) for name, dtype in frame.dtypes.items() if not isinstance(dtype, np.dtype) or dtype.kind not in "fiub"
    ]
    if others:
        raise TypeError(
            "frame must have only columns of NumPy's numeric dtypes, one for each time step, but these have others: "
            f"{', '.join(others)}; drop them, or convert pandas dtypes with frame.astype('float64')"
        )
    columns = [str(name) for name in columns]
    if len(set(columns)) < len(columns):
        raise ValueError(f"columns must be unique, got {columns}")
    values = frame._meta.to_numpy()
    sample = _columns(np.zeros((1, values.shape[1]), values.dtype), model, columns)
    meta = frame._meta.iloc[:, :0].assign(**dict.fromkeys(columns, np.empty(0, sample.dtype)))
    return frame.map_partitions(_run_partition, delayed(model, traverse=False), columns, meta=meta)


def _run_partition(part: Any, model: Callable[[Any], Any], columns: list[str]) -> Any:
    results = _columns(part.to_numpy(), model, columns)
    return part.iloc[:, :0].assign(**dict(zip(columns, results.T, strict=True)))


def _columns(values: Array, model: Callable[[Any], Any], columns: list[str]) -> Array:
    """Return the model's results with shape (N, len(columns))."""
    results = np.asarray(model(values))
    shape = len(values), len(columns)
    if results.shape != shape and not (results.ndim == 1 and (*results.shape, 1) == shape):
        raise ValueError(f"model must return an array of shape (N, {shape[1]}) for N={shape[0]}, got {results.shape}")
    return results.reshape(shape)


def _require_one_chunk(x: DaskArray, batch: int) -> None:
    """Raise if x has several chunks, or an unknown size, along an axis other than the batch axis."""
    several = [axis for axis in range(x.ndim) if axis != batch and len(x.chunks[axis]) > 1]
    if several:
        wanted = ", ".join(f"{axis}: " + ("'auto'" if axis == batch else "-1") for axis in range(x.ndim))
        raise ValueError(
            f"x has {len(x.chunks[several[0]])} chunks along axis {several[0]}, but only the batch axis, {batch}, may "
            f"have several: use x.rechunk({{{wanted}}})"
        )
    unknown = [axis for axis, size in enumerate(x.shape) if axis != batch and np.isnan(size)]
    if unknown:
        raise ValueError(f"x must have a known size along axis {unknown[0]}: call x.compute_chunk_sizes() first")


def _lengths(lengths: Any, x: DaskArray, batch: int) -> Any:
    """Return lengths as a Dask array with the chunks of the batch axis."""
    rows = x.shape[batch]
    if np.isnan(rows):
        raise ValueError("x must have known sizes if lengths are given: call x.compute_chunk_sizes() first")
    array = lengths if isinstance(lengths, da.Array) else arguments.array("lengths", lengths)
    if array.dtype.kind not in "iu":
        raise TypeError(f"lengths must be integers, got dtype {array.dtype}")
    if array.shape != (rows,):
        raise ValueError(f"lengths must have shape (N,) = ({rows},), got {array.shape}")
    chunks = (x.chunks[batch],)
    return array.rechunk(chunks) if isinstance(array, da.Array) else da.from_array(array, chunks=chunks)


def _run(block: Array, *lengths: Array, model: Callable[..., Any]) -> tuple[Array, ...]:
    return _leaves(model(block, **({"lengths": lengths[0]} if lengths else {})))


def _select(results: Any, index: int) -> Any:
    """Return one of the results of a chunk, which Dask nests in a list for each axis that the result lacks."""
    while isinstance(results, list):
        [results] = results
    return results[index]


def _leaves(results: Any) -> tuple[Array, ...]:
    """Return the arrays in nested tuples."""
    if not isinstance(results, tuple):
        if np.asarray(results).dtype == object:
            raise TypeError(f"model must return an array or nested tuples of arrays, got {type(results).__name__}")
        return (np.asarray(results),)
    return tuple(leaf for member in results for leaf in _leaves(member))


def _in_form_of(results: Any, arrays: Iterator[Any]) -> Any:
    """Return the arrays in nested tuples like `results`."""
    return tuple(_in_form_of(member, arrays) for member in results) if isinstance(results, tuple) else next(arrays)


def _row_axis(one: tuple[int, ...], two: tuple[int, ...]) -> int:
    """Return the axis of the rows, given the shapes of the results for one row and for two rows."""
    differing = [axis for axis, sizes in enumerate(zip(one, two, strict=False)) if sizes[0] != sizes[1]]
    if len(one) != len(two) or [(one[axis], two[axis]) for axis in differing] != [(1, 2)]:
        raise ValueError(
            "model must return arrays with exactly one axis for the rows of x, but it returned shape "
            f"{one} for one row and {two} for two rows"
        )
    return differing[0]
