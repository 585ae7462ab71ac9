"""Forms of sequences that the estimators accept, and the form of their predictions."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: no estimators")

from support.estimators import SMALL, assert_same_fit, bits

from rnnfast.sklearn import SequenceClassifier, SequenceRegressor, SequenceTagger

# --- forms of sequences


def by_hand(estimator, x):
    """Outputs for one sequence, computed with the layers."""
    x = (np.asarray(x, float).reshape(len(x), -1) - estimator.mean_) / estimator.scale_
    y, state = estimator.layer_(x)
    h = state[0] if isinstance(state, tuple) else state
    if isinstance(estimator, SequenceTagger):
        return estimator.readout_(y)
    last = h[-2:].reshape(-1) if estimator.bidirectional else h[-1]
    return estimator.readout_(last if estimator.pooling == "last" else y.mean(axis=0))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_predictions_are_those_of_each_sequence_alone(pooling, bidirectional):
    rng = np.random.default_rng(0)
    X = [rng.normal(3, 2, size=(length, 2)) for length in rng.integers(1, 20, 300)]
    options = {**SMALL, "max_epochs": 2, "bidirectional": bidirectional}
    regressor = SequenceRegressor(**options, pooling=pooling).fit(X, [len(x) for x in X])
    predicted = regressor.predict(X)
    expected = [by_hand(regressor, x)[0] * regressor.target_scale_[0] + regressor.target_mean_[0] for x in X]
    np.testing.assert_allclose(predicted, expected, rtol=1e-5)
    np.testing.assert_array_equal(predicted[:7], regressor.predict(X[:7]))


def test_tags_agree_with_each_sequence_alone():
    rng = np.random.default_rng(0)
    X = bits(rng, rng.integers(1, 9, 50))
    y = [np.array(list("ab"))[x] for x in X]
    tagger = SequenceTagger(**SMALL, max_epochs=2).fit(X, y)
    for x, tags, probabilities in zip(X, tagger.predict(X), tagger.predict_proba(X), strict=True):
        outputs = by_hand(tagger, x).astype(float)
        expected = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
        np.testing.assert_array_equal(tags, tagger.classes_[expected.argmax(axis=1)])


def test_forms_of_the_same_sequences_give_the_same_bits():
    X = np.random.default_rng(0).normal(size=(30, 5))
    y = np.arange(30) % 3
    fits = [
        SequenceClassifier(**SMALL, max_epochs=3).fit(form, y) for form in (X, X[..., np.newaxis], list(X), X.tolist())
    ]
    assert [fit.n_features_in_ for fit in fits] == [5, 1, 1, 5]
    expected = fits[0].predict_proba(X)
    for fit in fits:
        for form in (X, X[..., np.newaxis], list(X), [x[:, np.newaxis] for x in X]):
            np.testing.assert_array_equal(fit.predict_proba(form), expected)
    assert fits[0].predict([X[0, :2], X[1]]).shape == (2,)


def test_columns_of_a_table_keep_their_names():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(np.random.default_rng(0).normal(size=(12, 3)), columns=list("abc"))
    regressor = SequenceRegressor(**SMALL, max_epochs=1).fit(table, np.arange(12))
    assert regressor.feature_names_in_.tolist() == ["a", "b", "c"]
    with pytest.raises(ValueError, match="feature names"):
        regressor.predict(table.rename(columns={"a": "d"}))
    regressor.fit([np.ones(3), np.ones(2)], [0, 1])
    assert not hasattr(regressor, "feature_names_in_")
    regressor.fit(table, np.arange(12))


def test_tagger_answers_in_the_form_of_its_input():
    X = np.random.default_rng(0).normal(size=(6, 4, 2))
    y = np.array([[0, 1, 1, 0]] * 6)
    tagger = SequenceTagger(**SMALL, max_epochs=1).fit(X, y)
    assert tagger.predict(X).shape == (6, 4)
    assert tagger.predict_proba(X).shape == (6, 4, 2)
    assert [tags.shape for tags in tagger.predict(list(X))] == [(4,)] * 6
    assert [values.shape for values in tagger.predict_proba([X[0], X[1, :2]])] == [(4, 2), (2, 2)]
    assert tagger.score(X, y, sample_weight=[1, 0, 0, 0, 0, 0]) == np.mean(tagger.predict(X)[0] == y[0])


# --- rejected arguments


def test_a_series_of_arrays_is_a_list():
    pandas = pytest.importorskip("pandas")
    X = [np.arange(3.0), np.arange(2.0)]
    one, other = (SequenceRegressor(**SMALL, max_epochs=1).fit(x, [1.0, 2.0]) for x in (X, pandas.Series(X)))
    assert_same_fit(one, other)
