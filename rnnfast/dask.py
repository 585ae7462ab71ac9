"""Dask: a model over arrays and frames that are larger than the memory, or that lie on many machines.

>>> import dask.array as da, numpy as np, rnnfast
>>> from rnnfast.dask import predict
>>> layer = rnnfast.LSTM(4, 8, rng=0)
>>> x = da.ones((20, 1000, 4), chunks=(20, 250, 4), dtype=np.float32)  # (T, N, I) in chunks of 250 rows
>>> y, (h, c) = predict(layer, x)  # nothing has been computed yet
>>> y.shape, y.chunks[1], h.shape
((20, 1000, 8), (250, 250, 250, 250), (1, 1000, 8))
>>> y[-1].mean(axis=0).compute().shape
(8,)

A chunk is one call of the model, a task of dask's. Rows do not depend on the rows beside them: with a layer of rnnfast
the results are the bits of one call on the whole array, whatever the chunks, on machines of one instruction set.

Set ``rnnfast.set_num_threads(1)`` where dask runs several tasks at once in one process, as its threads do; in the
environment of workers, ``RNNFAST_NUM_THREADS=1``. Each core is then busy with chunks of its own. To ``freeze()`` a
layer before saves each task the rearrangement of the weights, which counts where chunks are small.

The model is one key of the graph, and goes to a worker once. A layer pickles to little more than its parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import arguments, layers

try:
    import dask
    import dask.array as da
except ImportError as error:
    raise ImportError("rnnfast.dask needs Dask: pip install 'rnnfast[dask]'") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Array = np.ndarray[Any, Any]

__all__ = ["predict", "predict_frame"]


def predict(model: Callable[..., Any], x: da.Array, lengths: Any = None, *, batch_axis: int | None = None) -> Any:
    """What ``model(x)`` gives, as lazy arrays in chunks of the batch.

    What is computed together, ``dask.compute(y, h)``, calls the model once for each chunk. The parameters are those
    that the model has then.

    Parameters
    ----------
    model : RNN, LSTM, GRU, Bidirectional, or another callable
        It is called with a chunk of `x`, and ``lengths=`` where these are given, and returns an array, or nested tuples
        of arrays, with a row for each row of the chunk. Several tasks may call it at once. To learn the shapes and
        dtypes of its results, it is called here with one and with two rows of zeros.
    x : dask.array.Array
        For a layer (T, N, I), with batch_first (N, T, I). In one chunk along all axes but the batch.
    lengths : array_like of int or dask.array.Array, (N,), optional
        As for a call of the layer.
    batch_axis : int, optional
        Where the rows lie in `x`. By default 0 where the model has a true ``batch_first``, else 1.

    Returns
    -------
    dask.array.Array or nested tuples of them
        For a layer y and the last state. In the chunks of `x` along the batch.

    Raises
    ------
    TypeError
        `model` cannot be called, `x` is no dask array, or `lengths` are no integers.
    ValueError
        `x` has the wrong number of axes, or several chunks along another axis than the batch (the text says how to
        rechunk), `lengths` do not fit, or the model's results have no axis for the rows. What else does not fit the
        model, it refuses itself.

    Examples
    --------
    A model of several layers, from ids (N, T) to classes (N,):

    >>> import dask.array as da, rnnfast
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
        raise TypeError(f"x must be a dask array, got {type(x).__name__}: dask.array.from_array makes one of an array")
    # Bidirectional leaves the layout to its layers.
    batch_first = bool(getattr(getattr(model, "forward_layer", model), "batch_first", False))
    if isinstance(model, (layers.Recurrent, layers.Bidirectional)) and x.ndim != 3:
        layout = "(N, T, I)" if batch_first else "(T, N, I)"
        raise ValueError(f"x must have layout {layout} for this {type(model).__name__}, got shape {x.shape}")
    if batch_axis is None:
        batch_axis = 0 if batch_first else 1
    batch = arguments.size("batch_axis", batch_axis, least=0)
    if batch >= x.ndim:
        raise ValueError(f"batch_axis must be an axis of x, which has {x.ndim}, got {batch}")
    _require_one_chunk(x, batch)
    given = {} if lengths is None else {"lengths": _lengths(lengths, x, batch)}

    samples = []
    for rows in (1, 2):
        shape = (*x.shape[:batch], rows, *x.shape[batch + 1 :])
        samples.append(model(np.zeros(shape, x.dtype), **{name: np.ones(rows, np.intp) for name in given}))
    axes = tuple(range(x.ndim))
    pairs = [pair for name, array in given.items() for pair in (array, (batch,))]
    meta = np.empty((0,) * x.ndim, object)
    # A key of its own, so that a worker gets the model once and not with every task.
    once = dask.delayed(model, traverse=False)
    results = da.blockwise(_run, axes, x, axes, *pairs, model=once, dtype=object, meta=meta, align_arrays=False)

    arrays = []
    for place, (one, two) in enumerate(zip(*map(_leaves, samples), strict=True)):
        axis = _row_axis(one.shape, two.shape)
        new = {x.ndim + k: size for k, size in enumerate(one.shape)}
        del new[x.ndim + axis]
        out = tuple(batch if k == axis else x.ndim + k for k in range(one.ndim))
        meta = np.empty((0,) * one.ndim, one.dtype)
        arrays.append(da.blockwise(_member, out, results, axes, place=place, new_axes=new, dtype=one.dtype, meta=meta))
    return _in_form_of(samples[0], iter(arrays))


def predict_frame(model: Callable[[Any], Any], frame: Any, columns: Sequence[str]) -> Any:
    """What a model gives for wide rows, a column for each time step, as a lazy frame.

    Parameters
    ----------
    model : callable
        It is called with the numbers (N, T) of a partition, and returns an array (N, len(columns)), or (N,) for one
        column. To learn the dtype, it is called here with one row of zeros.
    frame : dask.dataframe.DataFrame
        Its columns are T steps, all of them numbers.
    columns : sequence of str
        Names of what the model returns.

    Returns
    -------
    dask.dataframe.DataFrame
        With these columns, and the index and the partitions of `frame`.

    Raises
    ------
    TypeError
        `model` cannot be called, or `frame` is no dask frame, or holds what is no number.
    ValueError
        The model's results do not have these columns.

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
    if not (dask.is_dask_collection(frame) and hasattr(frame, "map_partitions") and getattr(frame, "ndim", 0) == 2):
        raise TypeError(f"frame must be a dask.dataframe.DataFrame, got {type(frame).__name__}")
    others = [
        str(name) for name, dtype in frame.dtypes.items() if not isinstance(dtype, np.dtype) or dtype.kind not in "fiub"
    ]
    if others:
        raise TypeError(
            "frame must hold numbers of NumPy's types, a column for each time step, but these hold others: "
            f"{', '.join(others)}; frame.astype('float64') makes such numbers of pandas's own types"
        )
    columns = [str(name) for name in columns]
    if len(set(columns)) < len(columns):
        raise ValueError(f"columns must be different names, got {columns}")
    numbers = frame._meta.to_numpy()
    sample = _columns(np.zeros((1, numbers.shape[1]), numbers.dtype), model, columns)
    meta = frame._meta.iloc[:, :0].assign(**dict.fromkeys(columns, np.empty(0, sample.dtype)))
    return frame.map_partitions(_run_partition, dask.delayed(model, traverse=False), columns, meta=meta)


def _run_partition(part: Any, model: Callable[[Any], Any], columns: list[str]) -> Any:
    results = _columns(part.to_numpy(), model, columns)
    return part.iloc[:, :0].assign(**dict(zip(columns, results.T, strict=True)))


def _columns(values: Array, model: Callable[[Any], Any], columns: list[str]) -> Array:
    """The model's results, of shape (N, len(columns))."""
    results = np.asarray(model(values))
    shape = len(values), len(columns)
    if results.shape != shape and not (results.ndim == 1 and (*results.shape, 1) == shape):
        raise ValueError(f"model must return an array of shape (N, {shape[1]}) for N={shape[0]}, got {results.shape}")
    return results.reshape(shape)


def _require_one_chunk(x: da.Array, batch: int) -> None:
    several = [axis for axis in range(x.ndim) if axis != batch and len(x.chunks[axis]) > 1]
    if several:
        wanted = ", ".join(f"{axis}: " + ("'auto'" if axis == batch else "-1") for axis in range(x.ndim))
        raise ValueError(
            f"x must be chunked along the batch alone, axis {batch}, but has {len(x.chunks[several[0]])} chunks along "
            f"axis {several[0]}: give x.rechunk({{{wanted}}})"
        )
    unknown = [axis for axis, size in enumerate(x.shape) if axis != batch and np.isnan(size)]
    if unknown:
        raise ValueError(f"x must have a known size along axis {unknown[0]}: call x.compute_chunk_sizes() before")


def _lengths(lengths: Any, x: da.Array, batch: int) -> da.Array:
    """In the chunks of the batch."""
    rows = x.shape[batch]
    if np.isnan(rows):
        raise ValueError("x must have known sizes where lengths are given: call x.compute_chunk_sizes() before")
    array = lengths if isinstance(lengths, da.Array) else arguments.array("lengths", lengths)
    if array.dtype.kind not in "iu":
        raise TypeError(f"lengths must be integers, got dtype {array.dtype}")
    if array.shape != (rows,):
        raise ValueError(f"lengths must have shape (N,) = ({rows},), got {array.shape}")
    chunks = (x.chunks[batch],)
    return array.rechunk(chunks) if isinstance(array, da.Array) else da.from_array(array, chunks=chunks)


def _run(block: Array, *lengths: Array, model: Callable[..., Any]) -> tuple[Array, ...]:
    return _leaves(model(block, **({"lengths": lengths[0]} if lengths else {})))


def _member(results: Any, place: int) -> Array:
    """One of the results of a chunk, which dask hands in in a list for each axis that it has not got."""
    while isinstance(results, list):
        [results] = results
    return results[place]


def _leaves(results: Any) -> tuple[Array, ...]:
    """The arrays in nested tuples."""
    if not isinstance(results, tuple):
        if np.asarray(results).dtype == object:
            raise TypeError(f"model must return an array or nested tuples of arrays, got {type(results).__name__}")
        return (np.asarray(results),)
    return tuple(leaf for member in results for leaf in _leaves(member))


def _in_form_of(results: Any, arrays: Iterator[da.Array]) -> Any:
    """Nested tuples like `results` of these arrays."""
    return tuple(_in_form_of(member, arrays) for member in results) if isinstance(results, tuple) else next(arrays)


def _row_axis(one: tuple[int, ...], two: tuple[int, ...]) -> int:
    """The axis along which the results for two rows have two where those for one have one."""
    differing = [axis for axis, sizes in enumerate(zip(one, two, strict=False)) if sizes[0] != sizes[1]]
    if len(one) != len(two) or [(one[axis], two[axis]) for axis in differing] != [(1, 2)]:
        raise ValueError(
            "model must return arrays with a row for each row of x, along one axis, "
            f"but for one row it returned shape {one}, and for two {two}"
        )
    return differing[0]
