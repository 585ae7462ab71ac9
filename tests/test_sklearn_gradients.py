"""The gradients with which the estimators train."""

import numpy as np
import pytest
from support.compare import central_differences

pytest.importorskip("sklearn", reason="scikit-learn is not installed: no estimators")

from sklearn.base import clone
from support.estimators import SMALL

from rnnfast.sklearn import SequenceClassifier, SequenceForecaster, SequenceRegressor, SequenceTagger


class Recorder:
    """An optimiser that records the gradients and changes nothing."""

    def step(self, gradients):
        self.gradients = {name: array.copy() for name, array in gradients.items()}


def examples_of(estimator, rng):
    """Scaled examples of a partly fitted estimator, with different lengths and weights."""
    if isinstance(estimator, SequenceForecaster):
        series = [rng.normal(size=(length, 2)) for length in (9, 6, 7)]
        estimator.partial_fit(series)
        examples = estimator._scaled_targets(estimator._examples(series, [0] * 3))
        return examples._replace(sequences=estimator._scaled(examples.sequences))
    X = [rng.normal(size=(length, 2)) for length in (4, 1, 6, 3, 4)]
    if estimator.embedding is not None:
        X = [list("abba"), list("c"), list("abcdea"), list("dad"), list("ecce")]
    y = [0, 1, 2, 1, 0]
    if isinstance(estimator, SequenceTagger):
        y = [rng.permutation(np.arange(len(x)) % 3) for x in X]
    elif isinstance(estimator, SequenceRegressor):
        y = rng.normal(size=(5, 2))
    weights = [1.0, 2.0, 0.5, 3.0, 0.25]
    given = {"classes": [0, 1, 2]} if hasattr(estimator, "class_weight") else {}
    estimator.partial_fit(X, y, sample_weight=weights, **given)
    examples = estimator._weigh(estimator._input(X, y, weights, first=False))
    return examples._replace(sequences=estimator._scaled(examples.sequences))


def loss_of(estimator, examples):
    """The loss by its formula, from the outputs of the estimator."""
    outputs, weights = estimator._outputs(examples.sequences), examples.weights
    if isinstance(estimator, (SequenceRegressor, SequenceForecaster)):
        return np.mean(weights * (outputs - examples.targets) ** 2)
    logarithms = outputs - np.log(np.exp(outputs).sum(axis=1, keepdims=True))
    return np.mean(weights * -logarithms[np.arange(len(outputs)), examples.targets])


NETWORKS = [
    SequenceClassifier(),
    SequenceClassifier("gru", pooling="mean", bidirectional=True, class_weight={0: 3.0}),
    SequenceClassifier(bidirectional=True, num_layers=2),
    SequenceRegressor("rnn", bidirectional=True),
    SequenceRegressor("rnn", leak=0.3, num_layers=2),
    SequenceRegressor(pooling="mean"),
    SequenceTagger("gru", class_weight={2: 2.0}),
    SequenceTagger(bidirectional=False),
    SequenceTagger(embedding=3),
    SequenceClassifier("gru", embedding="auto", pooling="mean", bidirectional=True),
    SequenceRegressor("rnn", embedding=2, num_layers=2),
    SequenceForecaster(horizon=2),
    SequenceForecaster("gru", horizon=2, window=3, differences=1),
]


@pytest.mark.parametrize("estimator", NETWORKS, ids=repr)
def test_gradients_are_central_differences(estimator):
    estimator = clone(estimator).set_params(hidden_size=3, dtype="float64", clip=None, random_state=0)
    examples, recorder = examples_of(estimator, np.random.default_rng(0)), Recorder()
    for layer in estimator._layers():
        layer.unfreeze()
    rows = np.arange(len(examples.sequences.lengths))
    [(loss, _)] = estimator._updates(examples, rows, recorder)
    assert loss == pytest.approx(loss_of(estimator, examples), rel=1e-12)
    parameters = estimator._parameters()
    assert recorder.gradients.keys() == parameters.keys()
    for name, array in parameters.items():
        expected = central_differences(lambda: loss_of(estimator, examples), array)
        np.testing.assert_allclose(recorder.gradients[name], expected, atol=1e-8, err_msg=name)


def test_gradients_with_dropout_are_central_differences():
    estimator = SequenceClassifier(hidden_size=4, dtype="float64", clip=None, random_state=0, dropout=0.5)
    examples, recorder = examples_of(estimator, np.random.default_rng(0)), Recorder()
    for layer in (estimator.layer_, estimator.readout_):
        layer.unfreeze()

    def loss():
        estimator._rng = np.random.default_rng(1)  # the same ones dropped in each call
        [(value, _)] = estimator._updates(examples, np.arange(5), recorder)
        return value

    parameters = {**estimator.layer_.parameters, **estimator.readout_.parameters}
    for name, array in parameters.items():
        expected = central_differences(loss, array)
        loss()
        np.testing.assert_allclose(recorder.gradients[name], expected, atol=1e-8, err_msg=name)


def test_dropout_before_the_readout_acts_in_training_only():
    X = np.random.default_rng(0).normal(size=(20, 4, 1))
    y = np.arange(20) % 2
    plain = SequenceClassifier(**SMALL, max_epochs=1).fit(X, y)
    dropped = SequenceClassifier(**SMALL, max_epochs=1, dropout=0.5).fit(X, y)
    assert plain.loss_curve_ != dropped.loss_curve_
    np.testing.assert_array_equal(dropped.predict_proba(X), dropped.predict_proba(X))
