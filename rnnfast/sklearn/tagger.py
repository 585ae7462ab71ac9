"""The estimator that predicts a class for each step."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from .. import arguments
from .._types import Array
from .sequences import Sequences, equal, reading
from .supervised import Labels, check_weights


class SequenceTagger(Labels):
    """Classify each step of a sequence with a recurrent layer, bidirectional by default, and a softmax readout.

    For scikit-learn this estimator is not a classifier, because a classifier predicts one class for each row.

    Parameters
    ----------
    cell, hidden_size and all options that are not listed here
        As for :class:`SequenceClassifier`. All steps have the same weight, regardless of the length of their sequence.
        The held-out set of `early_stopping` consists of whole sequences.
    bidirectional : bool, default True
        If False, the class of a step depends only on that step and the steps before it.

    Attributes
    ----------
    classes_, layer_, readout_ and all other attributes
        As for :class:`SequenceClassifier`.

    Examples
    --------
    Predict whether the next value is larger:

    >>> import numpy as np
    >>> from rnnfast.sklearn import SequenceTagger
    >>> rng = np.random.default_rng(0)
    >>> X = [rng.normal(size=length) for length in rng.integers(2, 9, 200)]
    >>> y = [np.append(np.where(x[1:] > x[:-1], "up", "down"), "end") for x in X]
    >>> tagger = SequenceTagger(hidden_size=16, random_state=0).fit(X, y)
    >>> tagger.score(X, y) > 0.95
    True
    >>> tagger.predict([np.array([0.0, 2.0, -2.0])])
    [array(['up', 'down', 'end'], dtype='<U4')]
    """

    def __init__(
        self,
        cell: str = "lstm",
        *,
        leak: float | None = None,
        embedding: int | str | None = None,
        hidden_size: int = 32,
        num_layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.0,
        learning_rate: float = 0.01,
        max_epochs: int = 100,
        batch_size: int = 64,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        clip: float | None = 1.0,
        class_weight: dict[Any, float] | str | None = None,
        standardize: bool = True,
        verbose: int = 0,
        random_state: Any = None,
        dtype: Any = "float32",
    ) -> None:
        self._set_options(locals())

    def _pooling(self) -> str:
        return "steps"

    def _targets(self, y: Any, sequences: Sequences, first: bool) -> Array:  # noqa: ARG002
        return self._encode(_flat_labels(y, sequences))

    def predict_proba(self, X: Any) -> Any:
        """Predict the probability of each class at each step.

        Parameters
        ----------
        X : sequences
            In one of the forms that :mod:`rnnfast.sklearn` lists.

        Returns
        -------
        ndarray of float64, (N, T, number of classes), or list of ndarray (T_i, number of classes)
            A list if X is a list. Classes are in the order of ``classes_``.
        """
        sequences, probabilities = self._probabilities(X)
        return _in_form_of(X, sequences, probabilities)

    def predict(self, X: Any) -> Any:
        """Predict the most probable class of each step.

        Parameters
        ----------
        X : sequences
            In one of the forms that :mod:`rnnfast.sklearn` lists.

        Returns
        -------
        ndarray, (N, T), or list of ndarray (T_i,)
            A list if X is a list.
        """
        sequences, probabilities = self._probabilities(X)
        return _in_form_of(X, sequences, self.classes_[probabilities.argmax(axis=1)])

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Compute the fraction of steps with the correct class.

        Parameters
        ----------
        X, y
            As for ``fit``.
        sample_weight : array_like (N,), optional
            The weight of the steps of each sequence.

        Returns
        -------
        float
            Between 0 and 1; higher is better.
        """
        sequences, probabilities = self._probabilities(X)
        check_consistent_length(sequences.lengths, y)
        weights = np.repeat(check_weights(sample_weight, sequences.lengths), sequences.lengths)
        predicted = self.classes_[probabilities.argmax(axis=1)]
        return float(accuracy_score(_flat_labels(y, sequences), predicted, sample_weight=weights))


def _flat_labels(y: Any, sequences: Sequences) -> Array:
    """Return the labels of all steps, concatenated."""
    rows = [arguments.array("y", labels) for labels in (y if isinstance(y, (list, tuple)) else arguments.array("y", y))]
    for number, (row, length) in enumerate(zip(rows, sequences.lengths, strict=True)):
        if row.shape != (length,):
            raise ValueError(
                f"y must have a label for each step, but X[{number}] has {length} steps and y[{number}] has shape "
                f"{row.shape}"
            )
    if len({row.dtype.kind in "US" for row in rows}) > 1 and all(row.dtype != object for row in rows):
        raise TypeError("y must hold either strings or numbers, got strings in some sequences and numbers in others")
    with reading("y"):
        labels: Array = column_or_1d(np.concatenate(rows))
        check_classification_targets(labels)
    return labels


def _in_form_of(X: Any, sequences: Sequences, flat: Array) -> Any:
    """Return values of all steps in the form of X: as a list, or as an array (N, T, ...)."""
    if isinstance(X, (list, tuple)) or not equal(sequences.lengths):
        return sequences.split(flat)
    return flat.reshape(len(sequences.lengths), -1, *flat.shape[1:])
