"""Loss functions and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import arguments
from .._types import Array, ArrayLike
from .arrays import boolean, integers, require_shape, sum_of_squares


def softmax_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    mask: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    label_smoothing: float = 0.0,
) -> tuple[float, Array]:
    """Compute the mean softmax cross-entropy and its gradient.

    Parameters
    ----------
    logits : array_like of float, (..., C)
        Unnormalized scores of the C classes. Dtypes other than float32 and float64 are converted to float64.
    targets : array_like of int, (...)
        The class of each position, from 0 to C - 1.
    mask : array_like of bool, (...), optional
        True at the valid positions. Logits and targets of masked-out positions are never read. By default all
        positions are valid.
    weights : array_like of float, (...), optional
        A factor for the loss of each position. The mean is still taken over the number of valid positions; weights
        with a mean of 1 keep the scale of the loss. Logits of positions with weight 0 are never read.
    label_smoothing : float, default 0
        From 0 to 1: the share of each target that is spread evenly over all classes.

    Returns
    -------
    loss : float
        The mean of ``-log(softmax(logits)[target])`` over the valid positions; with label smoothing, its targets are a
        distribution over the classes: ``(1 - label_smoothing) * onehot(target) + label_smoothing / C``. It is infinite
        if the logit of a target is minus infinity, and NaN if a logit is NaN or plus infinity.
    dlogits : ndarray, (..., C), float32 or float64
        The gradient of `loss`: ``(softmax(logits) - onehot(targets)) / number_of_valid_positions``, multiplied by the
        weights. With label smoothing, its targets replace the one-hot ones. It is zero at masked-out positions.

    Raises
    ------
    TypeError
        If `logits` or `weights` are not real, `targets` are not integers, or `mask` is not boolean.
    ValueError
        If the shape of `targets`, `mask` or `weights` is not ``logits.shape[:-1]``, a target at a valid position is
        outside 0 to C - 1, no position is valid, or `label_smoothing` is not from 0 to 1.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.training import softmax_cross_entropy
    >>> logits = np.zeros((2, 4), np.float32)
    >>> loss, dlogits = softmax_cross_entropy(logits, [1, 3], mask=[True, False])
    >>> round(loss, 4)
    1.3863
    >>> dlogits
    array([[ 0.25, -0.75,  0.25,  0.25],
           [ 0.  ,  0.  ,  0.  ,  0.  ]], dtype=float32)
    """
    smoothing = arguments.fraction("label_smoothing", label_smoothing)
    scores, labels = arguments.floating("logits", logits), integers("targets", targets)
    if scores.ndim == 0 or scores.shape[-1] == 0:
        raise ValueError(f"logits must have shape (..., C) with at least one class C, got shape {scores.shape}")
    *positions, classes = scores.shape
    require_shape("targets", labels.shape, tuple(positions), "logits.shape[:-1]")
    rows, labels = scores.reshape(-1, classes), labels.reshape(-1)
    factors = chosen = None
    if weights is not None:
        factors = arguments.floating("weights", weights)
        require_shape("weights", factors.shape, tuple(positions), "logits.shape[:-1]")
        factors = factors.reshape(-1)
    if mask is not None:
        valid = boolean("mask", mask)
        require_shape("mask", valid.shape, tuple(positions), "logits.shape[:-1]")
        chosen = np.flatnonzero(valid)
        rows, labels = rows[chosen], labels[chosen]
        factors = None if factors is None else factors[chosen]
    if len(rows) == 0:
        raise ValueError(
            f"logits of shape {scores.shape} have no valid positions, so their mean loss is undefined: there must be "
            "at least one position, with mask=True where a mask is given"
        )
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        raise ValueError(
            f"targets must lie between 0 and {classes - 1}, because logits have {classes} classes, "
            f"got {labels[wrong.argmax()]}; use mask to exclude positions"
        )

    count = len(rows)
    if factors is not None and not factors.all():
        counted = np.flatnonzero(factors)
        rows, labels, factors = rows[counted], labels[counted], factors[counted]
        chosen = counted if chosen is None else chosen[counted]
    targeted = np.arange(len(rows)), labels
    largest = rows.max(axis=1, keepdims=True)
    with np.errstate(over="ignore"):  # to minus infinity, which is a probability of 0
        of_targets = np.subtract(rows[targeted], largest[:, 0], dtype=np.float64)
        rows = rows - largest
        if smoothing:
            of_targets = (1 - smoothing) * of_targets + smoothing * rows.mean(axis=1, dtype=np.float64)
    np.exp(rows, out=rows)
    totals = rows.sum(axis=1)
    terms = np.log(totals) - of_targets
    loss = float(np.sum(terms if factors is None else factors * terms) / count)
    rows *= (1 / (count * totals))[:, None]
    rows[targeted] -= rows.dtype.type((1 - smoothing) / count)
    if smoothing:
        rows -= rows.dtype.type(smoothing / (classes * count))
    if factors is not None:
        rows *= factors[:, None]
    if chosen is None:
        return loss, rows.reshape(scores.shape)
    dlogits = np.zeros((math.prod(positions), classes), rows.dtype)
    dlogits[chosen] = rows
    return loss, dlogits.reshape(scores.shape)


class _Elements:
    """The elements that an elementwise loss reads: those with mask True and a weight other than 0.

    Arrays have the shape `shape`. A mask or weights may have its first axes alone; they hold for all elements there.
    """

    def __init__(self, shape: tuple[int, ...], mask: ArrayLike | None, weights: ArrayLike | None, name: str) -> None:
        self._shape = shape
        self._chosen: Array | None = None
        self._factors: Array | None = None
        self.count = math.prod(shape)
        if mask is not None:
            self._chosen = self._spread("mask", boolean("mask", mask), name)
            self.count = int(np.count_nonzero(self._chosen))
        if weights is not None:
            factors = self._spread("weights", arguments.floating("weights", weights), name)
            counted = factors != 0
            self._chosen = counted if self._chosen is None else self._chosen & counted
            self._factors = self.select(factors)
        if self.count == 0:
            without = "" if mask is None else " and a mask without True"
            raise ValueError(f"{name} must have at least one element, got shape {shape}{without}")

    def _spread(self, argument: str, array: Array, name: str) -> Array:
        if array.shape != self._shape[: array.ndim]:
            raise ValueError(
                f"{argument} must have shape {self._shape}, equal to that of {name}, or the lengths of its first axes, "
                f"got shape {array.shape}"
            )
        return np.broadcast_to(array.reshape(array.shape + (1,) * (len(self._shape) - array.ndim)), self._shape)

    def select(self, array: Array) -> Array:
        """Return the elements that are read."""
        return array if self._chosen is None else np.broadcast_to(array, self._shape)[self._chosen]

    def weigh(self, terms: Array) -> Array:
        """Multiply by the weights."""
        return terms if self._factors is None else terms * self._factors

    def mean(self, terms: Array) -> float:
        """Sum, and divide by the number of valid elements. The sum may overflow if the mean does not."""
        total = float(np.sum(terms)) / self.count
        return total if math.isfinite(total) else float(np.sum(terms / self.count))

    def gradient(self, derivatives: Array, dtype: np.dtype[Any], factor: float = 1.0) -> Array:
        """Return the gradient of the mean; `factor` times `derivatives` are the derivatives of its terms."""
        values = self.weigh(derivatives) * (factor / self.count)
        if self._chosen is None:
            return np.asarray(values, dtype)
        whole = np.zeros(self._shape, dtype)
        whole[self._chosen] = values
        return whole


def _elementwise(
    y: ArrayLike,
    target: ArrayLike,
    mask: ArrayLike | None,
    weights: ArrayLike | None,
    terms: Callable[..., tuple[Array, Array]],
    *others: Array,
    name: str = "y",
) -> tuple[float, Array]:
    """Return the mean of a loss over elements, and its gradient.

    `terms` takes the elements that are read of the outputs, the targets and `others`, arrays that broadcast to the
    shape of `y`, in float64. It returns the loss of each element and its derivative.
    """
    outputs, wanted = arguments.floating(name, y), arguments.floating("target", target)
    require_shape("target", wanted.shape, outputs.shape, f"{name}.shape")
    elements = _Elements(outputs.shape, mask, weights, name)
    with np.errstate(over="ignore", under="ignore"):
        read = (elements.select(array).astype(np.float64, copy=False) for array in (outputs, wanted, *others))
        losses, derivatives = terms(*read)
        return elements.mean(elements.weigh(losses)), elements.gradient(derivatives, outputs.dtype)


def mean_squared_error(
    y: ArrayLike, target: ArrayLike, mask: ArrayLike | None = None, weights: ArrayLike | None = None
) -> tuple[float, Array]:
    """Compute the mean squared error and its gradient.

    Parameters
    ----------
    y : array_like of float, any shape
        Dtypes other than float32 and float64 are converted to float64.
    target : array_like of float, same shape as `y`
    mask : array_like of bool, optional
        True at the valid elements. Its shape is that of `y`, or the lengths of the first axes: (T, N) for `y` of shape
        (T, N, F). Elements of `y` and `target` that are masked out are never read.
    weights : array_like of float, optional
        A factor for the loss of each element, in a shape as for `mask`. The mean is still taken over the number of
        valid elements. Elements of `y` and `target` with weight 0 are never read.

    Returns
    -------
    loss : float
        The mean of ``(y - target)**2`` over the valid elements.
    dy : ndarray, same shape as `y`, float32 or float64
        The gradient of `loss`, ``2 * (y - target) / number_of_valid_elements``, multiplied by the weights. It is zero
        at masked-out elements.

    Raises
    ------
    TypeError
        If `y`, `target` or `weights` are not real, or `mask` is not boolean.
    ValueError
        If shapes do not match, no element is valid.

    Examples
    --------
    >>> from rnnfast.training import mean_squared_error
    >>> mean_squared_error([1.0, 2.0], [1.0, 4.0])
    (2.0, array([ 0., -2.]))
    """
    outputs, wanted = arguments.floating("y", y), arguments.floating("target", target)
    require_shape("target", wanted.shape, outputs.shape, "y.shape")
    elements = _Elements(outputs.shape, mask, weights, "y")
    read = np.asarray(elements.select(outputs))
    difference = np.subtract(read, elements.select(wanted), dtype=read.dtype, casting="same_kind")
    with np.errstate(over="ignore"):
        if weights is None:
            total, exponent = sum_of_squares([difference])
            loss = float(np.ldexp(total / elements.count, 2 * exponent))
        else:
            exact = difference.astype(np.float64)
            loss = elements.mean(elements.weigh(exact) * exact)
    return loss, elements.gradient(difference, outputs.dtype, factor=2.0)


def mean_absolute_error(
    y: ArrayLike, target: ArrayLike, mask: ArrayLike | None = None, weights: ArrayLike | None = None
) -> tuple[float, Array]:
    """Compute the mean absolute error and its gradient.

    Parameters
    ----------
    y : array_like of float, any shape
        Dtypes other than float32 and float64 are converted to float64.
    target : array_like of float, same shape as `y`
    mask : array_like of bool, optional
        True at the valid elements. Its shape is that of `y`, or the lengths of the first axes: (T, N) for `y` of shape
        (T, N, F). Elements of `y` and `target` that are masked out are never read.
    weights : array_like of float, optional
        A factor for the loss of each element, in a shape as for `mask`. The mean is still taken over the number of
        valid elements. Elements of `y` and `target` with weight 0 are never read.

    Returns
    -------
    loss : float
        The mean of ``abs(y - target)`` over the valid elements.
    dy : ndarray, same shape as `y`, float32 or float64
        The gradient of `loss`, ``sign(y - target) / number_of_valid_elements``, multiplied by the weights. It is zero
        at masked-out elements.

    Raises
    ------
    TypeError
        If `y`, `target` or `weights` are not real, or `mask` is not boolean.
    ValueError
        If shapes do not match, no element is valid.

    Examples
    --------
    >>> from rnnfast.training import mean_absolute_error
    >>> mean_absolute_error([1.0, 2.0], [1.0, 4.0])
    (1.0, array([ 0. , -0.5]))
    """
    return _elementwise(y, target, mask, weights, lambda y, t: (np.abs(y - t), np.sign(y - t)))


def huber(
    y: ArrayLike,
    target: ArrayLike,
    delta: float = 1.0,
    mask: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> tuple[float, Array]:
    """Compute the mean Huber loss, which is quadratic for small errors and linear for large ones, and its gradient.

    Source: P. Huber, "Robust estimation of a location parameter", 1964.

    Parameters
    ----------
    y : array_like of float, any shape
        Dtypes other than float32 and float64 are converted to float64.
    target : array_like of float, same shape as `y`
    delta : float, default 1
        The absolute error at which the loss becomes linear, above 0.
    mask : array_like of bool, optional
        True at the valid elements. Its shape is that of `y`, or the lengths of the first axes: (T, N) for `y` of shape
        (T, N, F). Elements of `y` and `target` that are masked out are never read.
    weights : array_like of float, optional
        A factor for the loss of each element, in a shape as for `mask`. The mean is still taken over the number of
        valid elements. Elements of `y` and `target` with weight 0 are never read.

    Returns
    -------
    loss : float
        The mean over the valid elements of ``e**2 / 2`` where ``e = abs(y - target)`` is at most `delta`, and of
        ``delta * (e - delta / 2)`` elsewhere.
    dy : ndarray, same shape as `y`, float32 or float64
        The gradient of `loss`, ``clip(y - target, -delta, delta) / number_of_valid_elements``, multiplied by the
        weights. It is zero at masked-out elements.

    Raises
    ------
    TypeError
        If `y`, `target` or `weights` are not real, or `mask` is not boolean.
    ValueError
        If shapes do not match, no element is valid, or `delta` is not above 0.

    Examples
    --------
    >>> from rnnfast.training import huber
    >>> huber([1.0, 2.0], [1.0, 4.0])
    (0.75, array([ 0. , -0.5]))
    """
    delta = arguments.number("delta", delta, positive=True)

    def terms(y: Array, t: Array) -> tuple[Array, Array]:
        error = np.abs(y - t)
        clipped = np.minimum(error, delta)
        return clipped * (error - clipped / 2), np.copysign(clipped, y - t)

    return _elementwise(y, target, mask, weights, terms)


def quantile_loss(
    y: ArrayLike,
    target: ArrayLike,
    quantiles: ArrayLike,
    mask: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> tuple[float, Array]:
    """Compute the mean quantile (pinball) loss, which predictions of quantiles minimize, and its gradient.

    Source: R. Koenker and G. Bassett, "Regression quantiles", 1978.

    Parameters
    ----------
    y : array_like of float, (..., Q)
        A prediction of each quantile. For a single number as `quantiles`, any shape (...). Dtypes other than float32
        and float64 are converted to float64.
    target : array_like of float, (...)
    quantiles : array_like of float, (Q,), or float
        From 0 to 1.
    mask : array_like of bool, optional
        True at the valid elements. Its shape is that of `y`, or the lengths of the first axes: (T, N) for `y` of shape
        (T, N, F). Elements of `y` and `target` that are masked out are never read.
    weights : array_like of float, optional
        A factor for the loss of each element, in a shape as for `mask`. The mean is still taken over the number of
        valid elements. Elements of `y` and `target` with weight 0 are never read.

    Returns
    -------
    loss : float
        The mean of ``max(q * (target - y), (q - 1) * (target - y))`` over the valid elements.
    dy : ndarray, same shape as `y`, float32 or float64
        The gradient of `loss`, ``((y > target) - q) / number_of_valid_elements``, multiplied by the weights. It is zero
        at masked-out elements and where `y` equals `target`.

    Raises
    ------
    TypeError
        If `y`, `target`, `quantiles` or `weights` are not real, or `mask` is not boolean.
    ValueError
        If shapes do not match, no element is valid, or a quantile is not from 0 to 1.

    Examples
    --------
    >>> from rnnfast.training import quantile_loss
    >>> quantile_loss([[1.0, 2.0]], [4.0], quantiles=[0.1, 0.5])
    (0.65, array([[-0.05, -0.25]]))
    """
    levels, outputs, wanted = (
        arguments.floating("quantiles", quantiles),
        arguments.floating("y", y),
        arguments.floating("target", target),
    )
    if not ((levels >= 0) & (levels <= 1)).all():
        raise ValueError(f"quantiles must be from 0 to 1, got {quantiles!r}")
    if levels.ndim:
        shape = (*wanted.shape, levels.size)
        if levels.ndim != 1 or outputs.shape != shape:
            raise ValueError(
                f"y must have shape {shape}, that of target followed by the number of quantiles, and quantiles one "
                f"axis, got shapes {outputs.shape} and {levels.shape}"
            )
        wanted = np.broadcast_to(wanted[..., np.newaxis], shape)

    def terms(y: Array, t: Array, q: Array) -> tuple[Array, Array]:
        slope = np.where(y > t, 1 - q, np.where(y < t, -q, (y - t)))  # 0 if equal, NaN if one is
        return np.where(y == t, 0, slope * (y - t)), slope

    return _elementwise(outputs, wanted, mask, weights, terms, np.broadcast_to(levels, outputs.shape))


def binary_cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    mask: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    pos_weight: ArrayLike = 1.0,
) -> tuple[float, Array]:
    """Compute the mean binary cross-entropy of logits and its gradient.

    Parameters
    ----------
    logits : array_like of float, any shape
        Scores; sigmoid(logits) are the probabilities of class 1. Dtypes other than float32 and float64 are converted to
        float64.
    target : array_like of float or bool, same shape as `logits`
        The class 0 or 1 of each element, or a probability of class 1.
    mask : array_like of bool, optional
        True at the valid elements. Its shape is that of `logits`, or the lengths of the first axes: (T, N) for `logits`
        of shape (T, N, F). Elements of `logits` and `target` that are masked out are never read.
    weights : array_like of float, optional
        A factor for the loss of each element, in a shape as for `mask`. The mean is still taken over the number of
        valid elements. Elements of `logits` and `target` with weight 0 are never read.
    pos_weight : array_like of float, default 1
        A factor for the loss of class 1, one number or one for each index of the last axis.

    Returns
    -------
    loss : float
        The mean of ``-pos_weight * target * log(p) - (1 - target) * log(1 - p)`` with ``p = sigmoid(logits)`` over the
        valid elements.
    dlogits : ndarray, same shape as `logits`, float32 or float64
        The gradient of `loss`, ``((1 - target) * p - pos_weight * target * (1 - p)) / number_of_valid_elements``,
        multiplied by the weights. It is zero at masked-out elements.

    Raises
    ------
    TypeError
        If `logits`, `target`, `weights` or `pos_weight` are not real, or `mask` is not boolean.
    ValueError
        If shapes do not match, no element is valid, a valid target is not from 0 to 1, or `pos_weight` is negative.

    Examples
    --------
    >>> from rnnfast.training import binary_cross_entropy
    >>> loss, dlogits = binary_cross_entropy([0.0, 0.0], [0, 1])
    >>> round(loss, 4), dlogits
    (0.6931, array([ 0.25, -0.25]))
    """
    scores, factor = arguments.floating("logits", logits), arguments.floating("pos_weight", pos_weight)
    if factor.ndim and factor.shape != scores.shape[-1:]:
        raise ValueError(
            f"pos_weight must be a number or have shape {scores.shape[-1:]}, one for each index of the last axis of "
            f"logits, got shape {factor.shape}"
        )
    if not (factor >= 0).all():
        raise ValueError(f"pos_weight must be at least 0, got {pos_weight!r}")

    def terms(x: Array, t: Array, factor: Array) -> tuple[Array, Array]:
        if not ((t >= 0) & (t <= 1)).all():
            raise ValueError("target must be from 0 to 1 at valid elements, because it is the probability of class 1")
        small = np.exp(-np.abs(x))
        rest = np.log1p(small)
        losses = factor * t * (np.maximum(-x, 0) + rest) + (1 - t) * (np.maximum(x, 0) + rest)
        larger, smaller = 1 / (1 + small), small / (1 + small)
        of_class_0, of_class_1 = np.where(x < 0, larger, smaller), np.where(x < 0, smaller, larger)
        return losses, (1 - t) * of_class_1 - factor * t * of_class_0

    return _elementwise(scores, target, mask, weights, terms, np.broadcast_to(factor, scores.shape), name="logits")


def gaussian_nll(
    y: ArrayLike,
    target: ArrayLike,
    mask: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    eps: float = 1e-6,
) -> tuple[float, Array]:
    """Compute the mean negative log-likelihood of a normal distribution, without its constant, and its gradient.

    A network predicts means and logarithms of variances, which may be any numbers: no activation has to keep a variance
    above 0. The loss is that of PyTorch's GaussianNLLLoss for ``var = exp(log_variance)``.

    Source: D. Nix and A. Weigend, "Estimating the mean and variance of the target probability distribution", 1994.

    Parameters
    ----------
    y : array_like of float, (..., 2 * F)
        The F means and then the logarithms of the F variances. Dtypes other than float32 and float64 are converted to
        float64.
    target : array_like of float, (..., F)
    mask : array_like of bool, optional
        True at the valid elements. Its shape is that of `target`, or the lengths of the first axes: (T, N) for targets
        of shape (T, N, F). Elements of `y` and `target` that are masked out are never read.
    weights : array_like of float, optional
        A factor for the loss of each element, in a shape as for `mask`. The mean is still taken over the number of
        valid elements. Elements of `y` and `target` with weight 0 are never read.
    eps : float, default 1e-6
        Smaller variances are replaced by this one, above 0. The gradient is then the one at this variance.

    Returns
    -------
    loss : float
        The mean of ``(log(variance) + (mean - target)**2 / variance) / 2`` over the valid elements of `target`.
    dy : ndarray, (..., 2 * F), float32 or float64
        The gradient of `loss`, for each valid element ``(mean - target) / variance`` and ``(1 - (mean - target)**2 /
        variance) / 2``, divided by their number and multiplied by the weights. It is zero at masked-out elements.

    Raises
    ------
    TypeError
        If `y`, `target` or `weights` are not real, or `mask` is not boolean.
    ValueError
        If shapes do not match, no element is valid, or `eps` is not above 0.

    Examples
    --------
    >>> from rnnfast.training import gaussian_nll
    >>> gaussian_nll([[1.0, 0.0]], [[3.0]])
    (2.0, array([[-2. , -1.5]]))
    """
    outputs, wanted = arguments.floating("y", y), arguments.floating("target", target)
    shape = (*wanted.shape[:-1], 2 * wanted.shape[-1]) if wanted.ndim else None
    if outputs.shape != shape:
        raise ValueError(
            "y must have shape (..., 2 * F), means and then logarithms of variances, for target of shape (..., F), got "
            f"shapes {outputs.shape} and {wanted.shape}"
        )
    least = math.log(arguments.number("eps", eps, positive=True))
    elements = _Elements(wanted.shape, mask, weights, "target")
    mean, spread, t = (
        elements.select(array).astype(np.float64, copy=False) for array in (*np.split(outputs, 2, axis=-1), wanted)
    )
    with np.errstate(over="ignore", under="ignore"):
        spread = np.maximum(spread, least)
        precision = np.exp(-spread)
        slope = (mean - t) * precision
        square = (mean - t) * slope
        parts = [elements.gradient(derivative, outputs.dtype) for derivative in (slope, (1 - square) / 2)]
        return elements.mean(elements.weigh((spread + square) / 2)), np.concatenate(parts, axis=-1)


def poisson_nll(
    y: ArrayLike,
    target: ArrayLike,
    mask: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    log_input: bool = True,
    eps: float = 1e-8,
) -> tuple[float, Array]:
    """Compute the mean negative log-likelihood of a Poisson distribution, without log(target!), and its gradient.

    Parameters
    ----------
    y : array_like of float, any shape
        The logarithm of the expected count, or with ``log_input=False`` the expected count itself. Dtypes other than
        float32 and float64 are converted to float64.
    target : array_like of float, same shape as `y`
        Counts.
    mask : array_like of bool, optional
        True at the valid elements. Its shape is that of `y`, or the lengths of the first axes: (T, N) for `y` of shape
        (T, N, F). Elements of `y` and `target` that are masked out are never read.
    weights : array_like of float, optional
        A factor for the loss of each element, in a shape as for `mask`. The mean is still taken over the number of
        valid elements. Elements of `y` and `target` with weight 0 are never read.
    log_input : bool, default True
        Whether `y` is a logarithm.
    eps : float, default 1e-8
        Added to the count in the logarithm with ``log_input=False``; above 0.

    Returns
    -------
    loss : float
        The mean of ``exp(y) - target * y`` over the valid elements, or with ``log_input=False`` of ``y - target * log(y
        + eps)``. It is infinite where exp(y) exceeds the largest float64.
    dy : ndarray, same shape as `y`, float32 or float64
        The gradient of `loss`, ``(exp(y) - target) / number_of_valid_elements`` or ``(1 - target / (y + eps)) /
        number_of_valid_elements``, multiplied by the weights. It is zero at masked-out elements.

    Raises
    ------
    TypeError
        If `y`, `target` or `weights` are not real, or `mask` is not boolean.
    ValueError
        If shapes do not match, no element is valid, or `eps` is not above 0.

    Examples
    --------
    >>> from rnnfast.training import poisson_nll
    >>> poisson_nll([0.0, 0.0], [1, 3])
    (1.0, array([ 0., -1.]))
    """
    eps = arguments.number("eps", eps, positive=True)
    if arguments.flag("log_input", log_input):
        return _elementwise(y, target, mask, weights, lambda y, t: (np.exp(y) - t * y, np.exp(y) - t))
    return _elementwise(y, target, mask, weights, lambda y, t: (y - t * np.log(y + eps), 1 - t / (y + eps)))
