"""Layers that combine the steps of a sequence: Pool and Attention. They are computed by NumPy."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from rnnfast import arguments, ragged
from rnnfast._types import Array, ArrayLike

from .base import Plain, Tape

__all__ = ["Attention", "Pool"]


def _valid(T: int, N: int | None, batch_first: bool, lengths: Any, mask: Any) -> Array | None:
    """Return the valid steps (T, N), or None if all of them are valid. N is None for unbatched sequences."""
    pattern = ragged.read(T, N, batch_first, lengths, mask, None)
    return None if pattern is None else pattern.valid()


def _sequence(name: str, value: Any, batch_first: bool) -> tuple[Array, int | None]:
    """Return a sequence as a view (T, N, F), with N = 1 if it is unbatched, and its N or None."""
    array = arguments.floating(name, value)
    if array.ndim not in (2, 3):
        layout = "(N, T, F)" if batch_first else "(T, N, F)"
        raise ValueError(f"{name} must have layout {layout}, or unbatched (T, F), got shape {array.shape}")
    if array.ndim == 2:
        return array[:, np.newaxis], None
    array = array.swapaxes(0, 1) if batch_first else array
    return array, array.shape[1]


class Pool(Plain):
    """Reduce a sequence to one vector per row: its last valid step, or the mean or maximum over its valid steps.

    A row without valid steps gives 0.

    Parameters
    ----------
    mode : {"last", "mean", "max"}
    batch_first : bool, default False
        Whether x is (N, T, F) instead of (T, N, F).
    bidirectional : bool, default False
        Only for "last": whether the second half of the features comes from a reverse direction, which ends at the first
        valid step. The result then is the final state of both directions.

    Raises
    ------
    ValueError
        If `mode` is unknown, or `bidirectional` is set for another mode than "last".
    TypeError
        If an option has the wrong type.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> x = np.arange(6.0).reshape(3, 2, 1)  # three steps of two rows
    >>> rnnfast.Pool("last")(x, lengths=[3, 1])
    array([[4.],
           [1.]])
    >>> rnnfast.Pool("mean")(x)
    array([[2.],
           [3.]])
    """

    reduces_steps = True  # so the targets of `training.fit` are one per sequence

    def __init__(
        self, mode: Literal["last", "mean", "max"], batch_first: bool = False, bidirectional: bool = False
    ) -> None:
        self.mode = arguments.choice("mode", mode, ("last", "mean", "max"))
        self.batch_first = arguments.flag("batch_first", batch_first)
        self.bidirectional = arguments.flag("bidirectional", bidirectional)
        if self.bidirectional and mode != "last":
            raise ValueError(f"bidirectional=True is for mode 'last' only, got mode {mode!r}: leave it out")
        self._built = True

    def __call__(self, x: ArrayLike, *, lengths: ArrayLike | None = None, mask: ArrayLike | None = None) -> Array:
        """Reduce the steps.

        Parameters
        ----------
        x : array_like of real numbers, (T, N, F), with batch_first (N, T, F), or unbatched (T, F)
            Dtypes other than float32 and float64 are converted to float64. T must be at least 1.
        lengths : array_like of int, (N,), unbatched one integer, optional
            The number of valid steps of each row, from 0 to T. Padding in x has no effect.
        mask : array_like of bool, (T, N), with batch_first (N, T), unbatched (T,), optional
            True at valid steps. Mutually exclusive with `lengths`.

        Returns
        -------
        ndarray, (N, F), unbatched (F,)

        Raises
        ------
        ValueError
            If a shape is wrong, or both `lengths` and `mask` are passed.
        TypeError
            If an argument has the wrong type.
        """
        return self._reduce(x, lengths, mask)[0]

    def forward(
        self, x: ArrayLike, *, lengths: ArrayLike | None = None, mask: ArrayLike | None = None
    ) -> tuple[Array, Tape]:
        """Reduce the steps, and keep what ``backward`` needs.

        Parameters
        ----------
        x, lengths, mask
            As for a call.

        Returns
        -------
        y : ndarray
            As for a call.
        tape : Tape
            Pass it to :meth:`backward`.

        Raises
        ------
        ValueError, TypeError
            As for a call.
        """
        y, kept = self._reduce(x, lengths, mask)
        return y, Tape(self, (y.shape, y.dtype, *kept))

    def _differentiate(
        self,
        dy: Array,
        _parameters: dict[str, Array],
        shape: tuple[int, int, int],
        batched: bool,
        share: Array,
        index: Any,
    ) -> Array:
        dx = np.zeros(shape, dy.dtype)
        rows = dy.reshape(shape[1:])
        if self.mode == "mean":
            np.multiply(rows, share, out=dx, where=share != 0)
        else:
            # share is 0 in rows without valid steps.
            dx[index] = np.where(share, rows, 0)
        if not batched:
            return dx[:, 0]
        return dx.swapaxes(0, 1) if self.batch_first else dx

    def _reduce(self, value: Any, lengths: Any, mask: Any) -> tuple[Array, Any]:
        """Return y, and the shape of x, whether it is batched, and how the gradient is shared among the steps.

        For the mean, that is a factor for each step (T, N, 1); otherwise whether a row has valid steps (N, 1), and the
        index in x of the elements of y.
        """
        x, N = _sequence("x", value, self.batch_first)
        T = len(x)
        if T == 0:
            raise ValueError(f"x must have at least one step, got shape {np.shape(value)}")
        valid = _valid(T, N, self.batch_first, lengths, mask)
        present = np.ones((x.shape[1], 1), bool) if valid is None else valid.any(axis=0, keepdims=True).T
        with np.errstate(all="ignore"):
            if self.mode == "mean":
                counted = np.ones((T, x.shape[1]), bool) if valid is None else valid
                share = (counted / np.maximum(counted.sum(axis=0), 1)).astype(x.dtype)[:, :, np.newaxis]
                terms = x if valid is None else np.where(valid[:, :, np.newaxis], x, 0)
                y = terms.sum(axis=0) / np.maximum(counted.sum(axis=0), 1).astype(x.dtype)[:, np.newaxis]
                index = None
            else:
                share, index = present, self._index(x, valid)
                y = np.where(present, x[index], x.dtype.type(0))
        return (y[0] if N is None else y), (x.shape, N is not None, share, index)

    def _index(self, x: Array, valid: Array | None) -> tuple[Array, ...]:
        """Return the index of the elements of the result, (N, F)."""
        T, N, F = x.shape
        rows = np.arange(N)
        if self.mode == "max":
            # NaN is the maximum, as in NumPy.
            candidates = x if valid is None else np.where(valid[:, :, np.newaxis], x, -np.inf)
            return candidates.argmax(axis=0), rows[:, np.newaxis], np.arange(F)
        last = np.full(N, T - 1) if valid is None else T - 1 - valid[::-1].argmax(axis=0)
        if not self.bidirectional:
            return last, rows
        first = np.zeros(N, np.intp) if valid is None else valid.argmax(axis=0)
        steps = np.where(np.arange(F) < F // 2, last[:, np.newaxis], first[:, np.newaxis])
        return steps, rows[:, np.newaxis], np.arange(F)


class Attention(Plain):
    """Dot-product attention: for each query, a mean of the steps of a memory, weighted by how well they match it.

    ::

        weights[n, t, s] = softmax over valid s of (scale * <query[t, n], memory[s, n]>)
        context[t, n]    = sum over s of weights[n, t, s] * memory[s, n]

    The memory is typically the output of an encoder. For the score "general" of Luong et al., apply a Linear without
    bias to the query first.

    Source: M.-T. Luong, H. Pham and C. Manning, "Effective approaches to attention-based neural machine translation",
    2015; the scale is that of A. Vaswani et al., "Attention is all you need", 2017, and of
    ``torch.nn.functional.scaled_dot_product_attention``.

    Parameters
    ----------
    batch_first : bool, default False
        Whether sequences are (N, T, F) instead of (T, N, F).
    scale : float, optional
        By default 1 / sqrt(F). Luong's scores have a scale of 1.

    Raises
    ------
    TypeError
        If an option has the wrong type.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> rng = np.random.default_rng(0)
    >>> query, memory = rng.standard_normal((5, 2, 8)), rng.standard_normal((7, 2, 8))
    >>> attention = rnnfast.Attention()
    >>> attention(query, memory, lengths=[7, 3]).shape
    (5, 2, 8)
    >>> attention.weights(query, memory, lengths=[7, 3])[1, 0].round(2)
    array([0.04, 0.88, 0.08, 0.  , 0.  , 0.  , 0.  ])
    """

    def __init__(self, batch_first: bool = False, scale: float | None = None) -> None:
        self.batch_first = arguments.flag("batch_first", batch_first)
        self.scale = None if scale is None else arguments.any_number("scale", scale)
        self._built = True

    def __call__(
        self, query: ArrayLike, memory: ArrayLike, *, lengths: ArrayLike | None = None, mask: ArrayLike | None = None
    ) -> Array:
        """Return the context of each query.

        Parameters
        ----------
        query : array_like of real numbers, (T, N, F), with batch_first (N, T, F), or unbatched (T, F)
        memory : array_like of real numbers, (S, N, F), with batch_first (N, S, F), or unbatched (S, F)
            S must be at least 1.
        lengths : array_like of int, (N,), unbatched one integer, optional
            The number of valid steps of each row of the memory. Padding has no effect. The context of a row without
            valid steps is 0.
        mask : array_like of bool, (S, N), with batch_first (N, S), unbatched (S,), optional
            True at valid steps of the memory. Mutually exclusive with `lengths`.

        Returns
        -------
        ndarray of the shape of `query`

        Raises
        ------
        ValueError
            If a shape is wrong, or both `lengths` and `mask` are passed.
        TypeError
            If an argument has the wrong type.
        """
        return self._attend(query, memory, lengths, mask)[0]

    def weights(
        self, query: ArrayLike, memory: ArrayLike, *, lengths: ArrayLike | None = None, mask: ArrayLike | None = None
    ) -> Array:
        """Return the weights of the steps of the memory.

        Parameters
        ----------
        query, memory, lengths, mask
            As for a call.

        Returns
        -------
        ndarray, (N, T, S), unbatched (T, S)
            Each row over S sums to 1, or is 0 if no step is valid.

        Raises
        ------
        ValueError, TypeError
            As for a call.
        """
        context, _, _, weights, _ = self._attend(query, memory, lengths, mask)
        return weights[0] if context.ndim == 2 else weights

    def forward(
        self, query: ArrayLike, memory: ArrayLike, *, lengths: ArrayLike | None = None, mask: ArrayLike | None = None
    ) -> tuple[Array, Tape]:
        """Return the context of each query, and keep what ``backward`` needs.

        Parameters
        ----------
        query, memory, lengths, mask
            As for a call. The tape holds the arrays by reference: do not change them before the last ``backward``.

        Returns
        -------
        context : ndarray
            As for a call.
        tape : Tape
            Pass it to :meth:`backward`.

        Raises
        ------
        ValueError, TypeError
            As for a call.
        """
        context, *kept = self._attend(query, memory, lengths, mask)
        return context, Tape(self, (context.shape, context.dtype, *kept))

    def _differentiate(
        self, dy: Array, _parameters: dict[str, Array], q: Array, k: Array, weights: Array, scale: Any
    ) -> tuple[Array, Array]:
        dcontext = self._rows(dy)
        dweights = dcontext @ k.swapaxes(1, 2)
        dscores = weights * (dweights - (weights * dweights).sum(axis=2, keepdims=True))
        dscores *= scale
        dq = dscores @ k
        dk = dscores.swapaxes(1, 2) @ q + weights.swapaxes(1, 2) @ dcontext
        return self._unrows(dq, dy.ndim), self._unrows(dk, dy.ndim)

    def _rows(self, array: Array) -> Array:
        """Return a view (N, T, F) of a sequence in the layout of the layer."""
        return array[np.newaxis] if array.ndim == 2 else array if self.batch_first else array.swapaxes(0, 1)

    def _unrows(self, array: Array, ndim: int) -> Array:
        """Undo `_rows`."""
        return array[0] if ndim == 2 else array if self.batch_first else array.swapaxes(0, 1)

    def _attend(self, query: Any, memory: Any, lengths: Any, mask: Any) -> tuple[Array, Array, Array, Array, Any]:
        """Return the contexts in the layout of the query, query and memory (N, T, F), the weights, and the scale."""
        q, N = _sequence("query", query, self.batch_first)
        k, rows = _sequence("memory", memory, self.batch_first)
        if k.shape[0] == 0 or rows != N or k.shape[1:] != q.shape[1:]:
            raise ValueError(
                "memory must have at least one step, and the rows and features of query; got shapes "
                f"{np.shape(memory)} and {np.shape(query)}"
            )
        dtype = np.result_type(q, k)
        valid = _valid(len(k), N, self.batch_first, lengths, mask)
        q, k = (np.asarray(array.swapaxes(0, 1), dtype) for array in (q, k))
        if valid is not None:
            k = k.copy()
            k[~valid.T] = 0
        scale = dtype.type(1 / np.sqrt(q.shape[2]) if self.scale is None else self.scale)
        with np.errstate(all="ignore"):
            scores = q @ k.swapaxes(1, 2)
            scores *= scale
            if valid is not None:
                np.copyto(scores, -np.inf, where=~valid.T[:, np.newaxis])
            largest = scores.max(axis=2, keepdims=True)
            weights = np.exp(scores - np.where(np.isneginf(largest), 0, largest), out=scores)
            weights /= np.maximum(weights.sum(axis=2, keepdims=True), np.finfo(dtype).tiny)
            context = weights @ k
        return self._unrows(context, 2 if N is None else 3), q, k, weights, scale
