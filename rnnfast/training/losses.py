"""Loss functions and their gradients."""

from __future__ import annotations

import math

import numpy as np

from .. import arguments
from .._types import Array, ArrayLike
from .arrays import real, require_shape, sum_of_squares


def softmax_cross_entropy(
    logits: ArrayLike, targets: ArrayLike, mask: ArrayLike | None = None, weights: ArrayLike | None = None
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

    Returns
    -------
    loss : float
        The mean of ``-log(softmax(logits)[target])`` over the valid positions. It is infinite if the logit of a target
        is minus infinity, and NaN if a logit is NaN or plus infinity.
    dlogits : ndarray, (..., C), float32 or float64
        The gradient of `loss`: ``(softmax(logits) - onehot(targets)) / number_of_valid_positions``, multiplied by the
        weights. It is zero at masked-out positions.

    Raises
    ------
    TypeError
        If `logits` or `weights` are not real, `targets` are not integers, or `mask` is not boolean.
    ValueError
        If the shape of `targets`, `mask` or `weights` is not ``logits.shape[:-1]``, a target at a valid position is
        outside 0 to C - 1, or no position is valid.

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
    scores, labels = real("logits", logits), arguments.array("targets", targets)
    if scores.ndim == 0 or scores.shape[-1] == 0:
        raise ValueError(f"logits must have shape (..., C) with at least one class C, got shape {scores.shape}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"targets must be integers, got dtype {labels.dtype}")
    *positions, classes = scores.shape
    require_shape("targets", labels.shape, tuple(positions), "logits.shape[:-1]")
    valid = None if mask is None else arguments.array("mask", mask)
    rows, labels = scores.reshape(-1, classes), labels.reshape(-1)
    factors = chosen = None
    if weights is not None:
        factors = real("weights", weights)
        require_shape("weights", factors.shape, tuple(positions), "logits.shape[:-1]")
        factors = factors.reshape(-1)
    if valid is not None:
        if valid.dtype != bool:
            raise TypeError(f"mask must be boolean, with True at valid positions, got dtype {valid.dtype}")
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
    np.exp(rows, out=rows)
    totals = rows.sum(axis=1)
    terms = np.log(totals) - of_targets
    loss = float(np.sum(terms if factors is None else factors * terms) / count)
    rows *= (1 / (count * totals))[:, None]
    rows[targeted] -= rows.dtype.type(1 / count)
    if factors is not None:
        rows *= factors[:, None]
    if chosen is None:
        return loss, rows.reshape(scores.shape)
    dlogits = np.zeros((math.prod(positions), classes), rows.dtype)
    dlogits[chosen] = rows
    return loss, dlogits.reshape(scores.shape)


def mean_squared_error(y: ArrayLike, target: ArrayLike, weights: ArrayLike | None = None) -> tuple[float, Array]:
    """Compute the mean squared error and its gradient.

    Parameters
    ----------
    y : array_like of float, any shape
        Dtypes other than float32 and float64 are converted to float64.
    target : array_like of float, same shape as `y`
    weights : array_like of float, same shape as `y`, optional
        A factor for the square of each element. The mean is still taken over the number of elements. Elements of `y`
        and `target` with weight 0 are never read.

    Returns
    -------
    loss : float
        The mean of ``(y - target)**2`` over all elements.
    dy : ndarray, same shape as `y`, float32 or float64
        The gradient of `loss`, ``2 * (y - target) / y.size``, multiplied by the weights.

    Raises
    ------
    TypeError
        If `y`, `target` or `weights` are not real.
    ValueError
        If the shapes differ or `y` is empty.

    Examples
    --------
    >>> from rnnfast.training import mean_squared_error
    >>> mean_squared_error([1.0, 2.0], [1.0, 4.0])
    (2.0, array([ 0., -2.]))
    """
    y, target = real("y", y), real("target", target)
    require_shape("target", target.shape, y.shape, "y.shape")
    if y.size == 0:
        raise ValueError(f"y must have at least one element, got shape {y.shape}")
    difference: Array = np.zeros_like(y)
    if weights is None:
        np.subtract(y, target, out=difference, casting="same_kind", dtype=y.dtype)
        total, exponent = sum_of_squares([difference])
        with np.errstate(over="ignore"):
            loss = float(np.ldexp(total / y.size, 2 * exponent))
    else:
        weights = real("weights", weights)
        require_shape("weights", weights.shape, y.shape, "y.shape")
        np.subtract(y, target, out=difference, where=weights != 0, casting="same_kind", dtype=y.dtype)
        loss = float(np.mean(np.multiply(difference, weights, dtype=np.float64) * difference))
        difference *= weights
    difference *= 2 / y.size
    return loss, difference
