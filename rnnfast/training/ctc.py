"""Connectionist temporal classification: a loss for label sequences that are not aligned with the steps."""

from __future__ import annotations

import numpy as np

from .. import arguments
from .._types import Array, ArrayLike
from .arrays import integers, require_shape


def ctc_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike | None = None,
    target_lengths: ArrayLike | None = None,
    blank: int = 0,
    zero_infinity: bool = False,
) -> tuple[float, Array]:
    """Compute the connectionist temporal classification loss and its gradient.

    The loss of a sequence is ``-log(p)``, where p is the probability of its labels, summed over all alignments with the
    steps: each label takes one or more steps, and steps between two labels may be blank; equal neighbours have a blank
    between them. The sums are taken in the logarithmic domain in float64.

    Source: A. Graves, S. Fernandez, F. Gomez and J. Schmidhuber, "Connectionist temporal classification: labelling
    unsegmented sequence data with recurrent neural networks", ICML 2006, equations 6 to 16.

    Parameters
    ----------
    logits : array_like of float, (T, N, C)
        Unnormalized scores; the softmax over the C classes is included in the loss. Dtypes other than float32 and
        float64 are converted to float64.
    targets : array_like of int, (N, S)
        The labels of each sequence, from 0 to C - 1 without `blank`. Elements beyond a target length are never read.
    input_lengths : array_like of int, (N,), optional
        The number of valid steps of each sequence, from 0 to T; by default T. Logits of later steps are never read.
    target_lengths : array_like of int, (N,), optional
        The number of labels of each sequence, from 0 to S; by default S.
    blank : int, default 0
        The class that stands for no label.
    zero_infinity : bool, default False
        Set infinite losses and their gradients to 0. A loss is infinite if the labels do not fit into the steps.

    Returns
    -------
    loss : float
        The mean over the sequences of the loss divided by the target length, or by 1 if that is 0, as PyTorch's
        ``reduction="mean"``.
    dlogits : ndarray, (T, N, C), float32 or float64
        The gradient of `loss`. It is zero at padded steps. The gradient of a sequence with an infinite loss is NaN at
        its valid steps, unless `zero_infinity` is set.

    Raises
    ------
    TypeError
        If `logits` are not real, or targets or lengths are not integers.
    ValueError
        If shapes do not match, N or C is 0, or a label, a length or `blank` is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.training import ctc_loss
    >>> loss, dlogits = ctc_loss(np.zeros((2, 1, 3)), [[1]])  # alignments 11, 1- and -1 of 9
    >>> round(float(np.exp(-loss)), 4)
    0.3333
    """
    scores, labels, steps, lengths = _arguments(logits, targets, input_lengths, target_lengths, blank)
    N = scores.shape[1]
    zero_infinity = arguments.flag("zero_infinity", zero_infinity)
    with np.errstate(over="ignore", invalid="ignore"):  # of infinite losses
        losses, gradient = _losses(scores, labels, steps, lengths, blank)
    weights = 1 / (N * np.maximum(lengths, 1))
    if zero_infinity:
        kept = losses != np.inf
        losses, gradient = np.where(kept, losses, 0), np.where(kept[:, np.newaxis], gradient, 0)
    gradient *= weights[:, np.newaxis]
    return float(np.sum(losses * weights)), gradient.astype(scores.dtype, copy=False)


def _losses(scores: Array, labels: Array, steps: Array, lengths: Array, blank: int) -> tuple[Array, Array]:
    """Return the loss of each sequence, (N,), and the gradient of their sum with respect to the logits."""
    T, N, C = scores.shape
    valid = np.arange(T)[:, np.newaxis] < steps
    log_p = np.where(valid[..., np.newaxis], scores, 0).astype(np.float64)
    log_p -= log_p.max(axis=2, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=2, keepdims=True))

    # The states of an alignment are the labels, with a blank before, between and after them.
    states = 2 * labels.shape[1] + 1
    symbols = np.full((N, states), blank)
    symbols[:, 1::2] = labels
    can_skip = (symbols[:, 2:] != blank) & (symbols[:, 2:] != symbols[:, :-2])
    skip = np.where(can_skip, 0, -np.inf)
    emitted = np.take_along_axis(log_p, symbols[np.newaxis], axis=2)

    # alpha[t] are the log probabilities of the first t steps by their last state; before step 0, that is the first.
    alpha = np.full((T + 1, N, states), -np.inf)
    alpha[0, :, 0] = 0
    for t in range(T):
        alpha[t + 1] = np.where(valid[t, :, np.newaxis], _advance(alpha[t], skip) + emitted[t], alpha[t])
    # beta are those of the later steps, by the state of this one: at the end, 1 for the last label and the last blank.
    behind = 2 * lengths[:, np.newaxis] - np.arange(states)
    beta = np.where((behind == 0) | (behind == 1), 0, -np.inf)
    losses = -np.logaddexp.reduce(alpha[T] + beta, axis=1)

    gradient = np.exp(log_p)
    cells = np.arange(N)[:, np.newaxis] * C + symbols  # the class of each state, in an array (N, C)
    for t in range(T - 1, -1, -1):
        posterior = np.exp(alpha[t + 1] + beta + losses[:, np.newaxis])
        gradient[t] -= np.bincount(cells.ravel(), posterior.ravel(), N * C).reshape(N, C)
        earlier = _advance((beta + emitted[t])[:, ::-1], skip[:, ::-1])[:, ::-1]
        beta = np.where(valid[t, :, np.newaxis], earlier, beta)
    gradient[:, np.isinf(losses)] = np.nan
    gradient[~valid] = 0
    return losses, gradient


def _advance(log_p: Array, skip: Array) -> Array:
    """Return the log probability of each state after a transition: from itself, the one before, or past a blank."""
    after = log_p.copy()
    np.logaddexp(after[:, 1:], log_p[:, :-1], out=after[:, 1:])
    np.logaddexp(after[:, 2:], log_p[:, :-2] + skip, out=after[:, 2:])
    return after


def _arguments(
    logits: ArrayLike, targets: ArrayLike, input_lengths: ArrayLike | None, target_lengths: ArrayLike | None, blank: int
) -> tuple[Array, Array, Array, Array]:
    """Return logits, labels with blanks beyond the target lengths, and both lengths."""
    scores, steps = _sequences(logits, input_lengths, blank)
    N, C = scores.shape[1:]
    labels = integers("targets", targets)
    if labels.ndim != 2 or len(labels) != N:
        raise ValueError(f"targets must have shape (N, S) with N = {N}, as logits have, got shape {labels.shape}")
    lengths = _lengths("target_lengths", target_lengths, N, labels.shape[1])
    read = np.arange(labels.shape[1]) < lengths[:, np.newaxis]
    labels = np.where(read, labels, blank)
    wrong = read & ((labels < 0) | (labels >= C) | (labels == blank))
    if wrong.any():
        raise ValueError(
            f"targets must lie between 0 and {C - 1}, because logits have {C} classes, and differ from blank={blank}, "
            f"got {labels[wrong][0]}; use target_lengths to exclude padding"
        )
    return scores, labels, steps, lengths


def _sequences(logits: ArrayLike, input_lengths: ArrayLike | None, blank: int) -> tuple[Array, Array]:
    """Return logits and their lengths."""
    scores = arguments.floating("logits", logits)
    if scores.ndim != 3 or 0 in scores.shape[1:]:
        raise ValueError(f"logits must have shape (T, N, C) with N and C at least 1, got shape {scores.shape}")
    T, N, C = scores.shape
    if arguments.size("blank", blank, least=0) >= C:
        raise ValueError(f"blank must lie between 0 and {C - 1}, because logits have {C} classes, got {blank}")
    return scores, _lengths("input_lengths", input_lengths, N, T)


def _lengths(name: str, value: ArrayLike | None, count: int, most: int) -> Array:
    if value is None:
        return np.full(count, most)
    lengths = integers(name, value)
    require_shape(name, lengths.shape, (count,), "the number of sequences in logits")
    if (lengths < 0).any() or (lengths > most).any():
        raise ValueError(f"{name} must lie between 0 and {most}, the padded length, got {lengths.tolist()}")
    return lengths.astype(np.int64)


def ctc_greedy_decode(logits: ArrayLike, input_lengths: ArrayLike | None = None, blank: int = 0) -> list[Array]:
    """Decode the most probable alignment: the best class of each step, without repetitions and blanks.

    Parameters
    ----------
    logits, input_lengths, blank
        As for :func:`ctc_loss`.

    Returns
    -------
    list of ndarray of int
        The labels of each sequence.

    Raises
    ------
    TypeError, ValueError
        As for :func:`ctc_loss`.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.training import ctc_greedy_decode
    >>> best = [1, 1, 0, 1, 2, 2]
    >>> ctc_greedy_decode(np.eye(3)[best][:, np.newaxis])
    [array([1, 1, 2])]
    """
    scores, lengths = _sequences(logits, input_lengths, blank)
    best = scores.argmax(axis=2)
    changed = np.ones(best.shape, bool)
    changed[1:] = best[1:] != best[:-1]
    kept = changed & (best != blank) & (np.arange(len(best))[:, np.newaxis] < lengths)
    return [best[kept[:, n], n] for n in range(best.shape[1])]
