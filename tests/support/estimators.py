"""Data and comparisons for the tests of the estimators."""

import numpy as np

from rnnfast.sklearn import SequenceClassifier, SequenceForecaster, SequenceRegressor, SequenceTagger

ALL = [SequenceClassifier, SequenceRegressor, SequenceTagger, SequenceForecaster]
SMALL = {"hidden_size": 8, "random_state": 0}


def bits(rng, lengths):
    return [rng.integers(0, 2, length) for length in lengths]


def learnt(estimator):
    return {**estimator.layer_.state_dict(), **estimator.readout_.state_dict()}


def assert_same_fit(one, other):
    assert one.loss_curve_ == other.loss_curve_
    for name, array in learnt(one).items():
        np.testing.assert_array_equal(array, learnt(other)[name], err_msg=name)


def task(kind, rng, count=150):
    """Training data for an estimator class."""
    X = [rng.normal(size=(length, 2)) for length in rng.integers(1, 12, count)]
    if kind is SequenceForecaster:
        return ([rng.normal(size=length).cumsum() for length in (150, 90, 120)],)
    if kind is SequenceTagger:
        return X, [(x[:, 0] > 0).astype(int) for x in X]
    if kind is SequenceRegressor:
        return X, [x.sum() for x in X]
    return X, [int(x.sum() > 0) for x in X]
