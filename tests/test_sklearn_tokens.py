"""Estimators whose sequences consist of tokens."""

import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: no estimators")

from sklearn.model_selection import cross_val_score
from support.estimators import SMALL, assert_same_fit

from rnnfast.sklearn import SequenceClassifier, SequenceRegressor, SequenceTagger

SUPERVISED = [SequenceClassifier, SequenceRegressor, SequenceTagger]
WORDS = ["ab", "bca", "cc", "dabb", "a", "bd"]


def targets(kind, X):
    if kind is SequenceTagger:
        return [np.arange(len(x)) % 2 for x in X]
    return np.arange(len(X)) % 2


def by_hand(estimator, x):
    """Outputs for one sequence of strings, computed with the layers and a dict."""
    ids = {token: number for number, token in enumerate(estimator.vocabulary_.tolist(), start=1)}
    y, state = estimator.layer_(estimator.embedding_([ids.get(token, 0) for token in x]))
    return estimator.readout_(y if isinstance(estimator, SequenceTagger) else state[0][-1])


def raw(estimator, X):
    return estimator._outputs(estimator._read(X, reset=False))


@pytest.mark.parametrize("kind", SUPERVISED)
def test_predictions_are_those_of_each_sequence_alone(kind):
    options = {"bidirectional": False, **SMALL, "max_epochs": 2}
    estimator = kind(**options, embedding=3).fit(WORDS, targets(kind, WORDS))
    assert estimator.vocabulary_.tolist() == list("abcd")
    assert estimator.embedding_.parameters["weight"].shape == (5, 3)
    X = [*WORDS, "xaybz"]
    expected = [by_hand(estimator, x) for x in X]
    np.testing.assert_allclose(raw(estimator, X), np.vstack(expected), rtol=1e-5, atol=1e-6)
    again = pickle.loads(pickle.dumps(estimator))
    np.testing.assert_array_equal(raw(again, X), raw(estimator, X))
    assert len(estimator.predict(X)) == 7


def test_tokens_are_learnt_whatever_their_order():
    """The class is whether the token 7 occurs, which is neither the largest nor the smallest."""
    rng = np.random.default_rng(0)
    X = [rng.integers(0, 15, rng.integers(1, 8)) for _ in range(300)]
    y = [bool((x == 7).any()) for x in X]
    classifier = SequenceClassifier(embedding="auto", random_state=0)
    assert cross_val_score(classifier, X, y, cv=3).mean() > 0.97
    assert classifier.fit(X, y).embedding_.embedding_dim == 7  # 1.6 * 15**0.56


@pytest.mark.parametrize("kind", SUPERVISED)
def test_forms_of_the_same_tokens_give_the_same_fit(kind):
    table = np.random.default_rng(0).integers(3, 9, (12, 4))
    letters = np.array(list("abcdefghi"))[table]
    y = targets(kind, table)
    for forms in (
        (table, table.tolist(), list(table), table[..., np.newaxis], table.astype(np.uint8), list(table.astype("O"))),
        (
            letters,
            letters.tolist(),
            ["".join(row) for row in letters],
            letters.astype(object),
            list(map(tuple, letters)),
        ),
    ):
        fits = [kind(**SMALL, max_epochs=2, embedding=3).fit(X, y) for X in forms]
        for fit, X in zip(fits, forms, strict=True):
            assert_same_fit(fit, fits[0])
            np.testing.assert_array_equal(fit.predict(X), fits[0].predict(forms[0]))


def test_tables_of_pandas_hold_tokens():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: no tables")
    one = SequenceClassifier(**SMALL, max_epochs=1, embedding=2).fit(WORDS, range(6))
    assert_same_fit(one, SequenceClassifier(**SMALL, max_epochs=1, embedding=2).fit(pandas.Series(WORDS), range(6)))
    table = pandas.DataFrame([list("abc"), list("bca")], columns=["x", "y", "z"])
    assert SequenceClassifier(**SMALL, max_epochs=1, embedding=2).fit(table, [0, 1]).predict(table).shape == (2,)


def test_unknown_tokens_are_zero_until_they_are_trained():
    regressor = SequenceRegressor(**SMALL, max_epochs=3, embedding=3).fit(WORDS, np.arange(6.0))
    assert not regressor.embedding_.parameters["weight"][0].any()
    assert regressor.predict(["x"]) == regressor.predict(["y"])
    regressor.partial_fit([*WORDS, "xy"], np.arange(7.0))
    assert regressor.embedding_.parameters["weight"][0].any()
    assert regressor.vocabulary_.tolist() == list("abcd")


@pytest.mark.parametrize(
    ("X", "error", "match"),
    [
        ("abc", TypeError, "X must be a list of sequences of tokens, .* got str"),
        (None, TypeError, "X must be a list of sequences of tokens, .* got NoneType"),
        ([], ValueError, "X must have at least one sequence"),
        (["ab", ""], ValueError, r"X\[1\] must be a sequence of at least one token, got shape \(0,\)"),
        ([[1], [[1, 2]]], ValueError, r"X\[1\] must be a sequence .* got shape \(1, 2\)"),
        ([[1, 2], ["a"]], TypeError, "X must hold either strings or integers"),
        ([[1, "a"]], TypeError, r"X\[0\] must hold tokens, which are integers or strings"),
        (np.ones((3, 4)), TypeError, "its dtype is float64: convert it, or use embedding=None"),
        ([[True, False]], TypeError, "its dtype is bool"),
        ([[2**63]], TypeError, "its dtype is uint64"),
        ([np.ma.array([1, 2], mask=[0, 1])], ValueError, r"X\[0\] has masked elements"),
        ([["a", None]], TypeError, "its dtype is object"),
    ],
)
def test_what_is_no_token_is_refused(X, error, match):
    with pytest.raises(error, match=rf"^X.*{match}" if not match.startswith("X") else f"^{match}"):
        SequenceRegressor(embedding=2).fit(X, np.ones(1 if X is None else max(1, len(X))))
    fitted = SequenceRegressor(**SMALL, max_epochs=1, embedding=2).fit(WORDS, np.arange(6))
    with pytest.raises(error):
        fitted.predict(X)
    with pytest.raises(TypeError, match="X has integers, but the tokens in fit were strings"):
        fitted.predict([[1, 2]])


def test_strings_without_an_embedding_are_an_error_with_the_remedy():
    for X in (WORDS, [list(word) for word in WORDS], np.array([["a", "b"]] * 6)):
        with pytest.raises(ValueError, match="Use embedding='auto' to read strings as tokens"):
            SequenceRegressor().fit(X, np.arange(6))


def test_integers_that_look_like_tokens_draw_a_warning():
    ids = np.arange(40).reshape(10, 4) % 25
    y = np.arange(10) % 2
    for X in (ids, ids.tolist(), list(ids), ids[..., np.newaxis], ids.astype(np.uint16)):
        with pytest.warns(UserWarning, match="X has integers of one feature with 25 distinct values.*embedding='auto'"):
            fitted = SequenceClassifier(**SMALL, max_epochs=1).fit(X, y)
        fitted.predict(X)
    for X in (ids % 19, ids - 1, ids.astype(float), ids.astype(np.uint8), np.stack([ids, ids], axis=2), ids > 3):
        SequenceClassifier(**SMALL, max_epochs=1).fit(X, y)


def test_an_embedding_is_dropped_by_a_fit_without_it():
    classifier = SequenceClassifier(**SMALL, max_epochs=1, embedding=2).fit(WORDS, np.arange(6) % 2)
    X = np.random.default_rng(0).normal(size=(6, 3))
    classifier.set_params(embedding=None).fit(X, np.arange(6) % 2)
    assert not hasattr(classifier, "embedding_")
    assert_same_fit(classifier, SequenceClassifier(**SMALL, max_epochs=1).fit(X, np.arange(6) % 2))
    with pytest.raises(ValueError, match="embedding is 2, but the network was built with embedding=None"):
        classifier.set_params(embedding=2).partial_fit(X, np.arange(6) % 2)


def test_a_partial_fit_that_fails_restores_the_embedding(monkeypatch):
    regressor = SequenceRegressor(**SMALL, max_epochs=2, batch_size=2, embedding=2).fit(WORDS, np.arange(6))
    before, losses = regressor.embedding_.state_dict(), []

    def fail_the_third_time(*given):
        losses.append(given)
        return (np.nan if len(losses) == 3 else 1.0), np.ones_like(given[0])

    monkeypatch.setattr(regressor, "_loss", fail_the_third_time)
    with pytest.raises(ValueError, match="training diverged"):
        regressor.partial_fit(WORDS, np.arange(6))
    np.testing.assert_array_equal(regressor.embedding_.parameters["weight"], before["weight"])
    assert not regressor.embedding_.parameters["weight"].flags.writeable
