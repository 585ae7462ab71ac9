"""Invalid arguments of the estimators are rejected."""

import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: no estimators")

from support.estimators import ALL, SMALL, task

from rnnfast.sklearn import SequenceClassifier, SequenceForecaster, SequenceRegressor, SequenceTagger

BAD = [
    ("cell", "transformer", "cell must be one of"),
    ("hidden_size", 0, "hidden_size must be at least 1"),
    ("num_layers", 1.5, "num_layers must be an integer"),
    ("dropout", 1.0, "dropout must be at least 0 and below 1"),
    ("learning_rate", 0, "learning_rate must be above 0"),
    ("learning_rate", "fast", "learning_rate must be a number"),
    ("max_epochs", -1, "max_epochs must be at least 1"),
    ("batch_size", "auto", "batch_size must be an integer"),
    ("early_stopping", 1, "early_stopping must be True or False"),
    ("validation_fraction", 1.0, "validation_fraction must be above 0 and below 1"),
    ("n_iter_no_change", 0, "n_iter_no_change must be at least 1"),
    ("tol", -1e-3, "tol must be at least 0"),
    ("clip", 0.0, "clip must be above 0"),
    ("standardize", None, "standardize must be True or False"),
    ("verbose", -1, "verbose must be at least 0"),
    ("dtype", "int8", "dtype must be"),
    ("dtype", {"a": [1]}, "dtype must be"),
    ("random_state", "seed", "seed"),
]


OWN_BAD = [
    (SequenceClassifier, "pooling", "max", "pooling must be one of"),
    (SequenceRegressor, "pooling", None, "pooling must be one of"),
    (SequenceClassifier, "bidirectional", "yes", "bidirectional must be True or False"),
    (SequenceClassifier, "class_weight", "even", "class_weight must be"),
    (SequenceClassifier, "class_weight", {0: -1.0}, r"class_weight\[0\] must be at least 0"),
    (SequenceTagger, "class_weight", {"x": 1.0}, "class_weight has the key 'x', which is not one of the classes"),
    (SequenceClassifier, "embedding", "large", "embedding must be None, 'auto' or an integer, got 'large'"),
    (SequenceRegressor, "embedding", 0, "embedding must be at least 1"),
    (SequenceTagger, "embedding", 2.5, "embedding must be an integer"),
    (SequenceClassifier, "leak", 0.5, "leak=0.5 needs cell='rnn', got cell='lstm'"),
    (SequenceRegressor, "leak", 1.5, "leak must"),
    (SequenceTagger, "leak", "slow", "leak must be a number"),
    (SequenceForecaster, "horizon", 0, "horizon must be at least 1"),
    (SequenceForecaster, "window", 0, "window must be at least 1"),
    (SequenceForecaster, "differences", (1, 0), "each lag in differences must be at least 1"),
    (
        SequenceForecaster,
        "differences",
        "12",
        "differences must be 'auto', an integer or a tuple of integers, got '12'",
    ),
    (SequenceForecaster, "season", 12, "season=12 needs differences='auto'"),
    (SequenceForecaster, "season", 0, "season must be at least 1"),
    (SequenceForecaster, "bptt_steps", 2.0, "bptt_steps must be an integer"),
    (SequenceForecaster, "multivariate", "yes", "multivariate must be True or False"),
]


@pytest.mark.parametrize(
    ("kind", "name", "value", "match"), [(kind, *bad) for kind in ALL for bad in BAD] + OWN_BAD, ids=str
)
def test_bad_options_are_refused_in_fit_by_name(kind, name, value, match):
    estimator = kind(**{name: value})
    with pytest.raises((ValueError, TypeError), match=match):
        estimator.fit(*task(kind, np.random.default_rng(0), count=8))
    assert not hasattr(estimator, "layer_")


X3 = np.ones((4, 3, 2))


@pytest.mark.parametrize(
    ("X", "match"),
    [
        (np.ones((4, 3, 2, 1)), r"X must have shape \(N, T, F\)"),
        (np.ones((4, 0, 2)), "X must have shape|minimum of 1"),
        (np.where(np.arange(24).reshape(4, 3, 2) == 5, np.nan, 1), "Input X contains NaN"),
        ([np.ones(3), np.array([1, np.inf]), np.ones(1), np.ones(1)], "Input X contains infinity"),
        ([np.ones((3, 2)), np.ones((2, 1)), np.ones((3, 2)), np.ones((3, 2))], "same number of features"),
        ([np.ones((3, 2)), np.ones((0, 2)), np.ones((3, 2)), np.ones((3, 2))], r"T >= 1, got shape \(0, 2\)"),
        ([[[1, 2], [3]], [[1, 2]], [[1, 2]], [[1, 2]]], "steps of one sequence differ"),
        (np.ones(4), r"X must have shape .*got shape \(4,\)"),
    ],
)
@pytest.mark.parametrize("kind", [SequenceClassifier, SequenceRegressor, SequenceTagger])
def test_bad_sequences_are_refused_and_change_nothing(kind, X, match):
    y = [[0, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]] if kind is SequenceTagger else [0, 1, 1, 0]
    estimator = kind(**SMALL, max_epochs=1).fit(X3, y)
    before = vars(estimator).copy()
    with pytest.raises(ValueError, match=match):
        estimator.fit(X, y)
    assert vars(estimator).keys() == before.keys()
    assert all(vars(estimator)[name] is value for name, value in before.items())
    with pytest.raises(ValueError, match=match):
        estimator.predict(X)
    with pytest.raises(ValueError, match=r"X has 3 features, but Sequence.* is expecting 2 features"):
        estimator.predict(np.ones((4, 3, 3)))
    estimator.predict(X3)


def test_targets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"but X\[1\] has 2 steps and y\[1\] has shape \(3,\)"):
        SequenceTagger().fit([np.ones(3), np.ones(2)], [[0, 0, 1], [0, 1, 1]])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        SequenceTagger().fit(X3, [[0, 1, 1]] * 3)
    with pytest.raises(ValueError, match="y has 2 targets for each sequence, but the first call had 1"):
        SequenceRegressor(**SMALL).partial_fit(X3, np.ones(4)).partial_fit(X3, np.ones((4, 2)))
    with pytest.raises(ValueError, match=r"validation_fraction=0\.1 holds out 1 of 4"):
        SequenceRegressor(early_stopping=True).fit(X3, np.ones(4))
    with pytest.raises(ValueError, match="balanced' needs all data at once"):
        SequenceClassifier(class_weight="balanced").partial_fit(X3, [0, 1, 0, 1], classes=[0, 1])


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_nonfinite_loss_is_an_error():
    regressor = SequenceRegressor(**SMALL, standardize=False, clip=None, learning_rate=1e30)
    with pytest.raises(ValueError, match=r"diverged: after epoch \d, the loss is (inf|nan). Reduce learning_rate"):
        regressor.fit(np.random.default_rng(0).normal(size=(300, 3)), np.arange(300.0))
    assert not hasattr(regressor, "layer_")


def everything(estimator):
    """All state that later calls depend on, as bytes."""
    return pickle.dumps((vars(estimator), estimator._rng.bit_generator.state))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ALL)
def test_a_partial_fit_that_fails_changes_nothing(kind, error, monkeypatch):
    data = task(kind, np.random.default_rng(0), count=20)
    estimator = kind(**SMALL, batch_size=4, max_epochs=2, dropout=0.1).fit(*data)
    before, own = everything(estimator), vars(estimator).copy()
    answers = estimator.predict(*([3] if kind is SequenceForecaster else data[:1]))
    loss, calls = estimator._loss, []

    def fail(*given):
        calls.append(given)
        value, gradient = loss(*given)
        if len(calls) < 3:
            return value, gradient
        if error is KeyboardInterrupt:
            raise error
        return np.nan, gradient * np.nan

    with monkeypatch.context() as patch:
        patch.setattr(kind, "_loss", lambda _, *given: fail(*given))
        with pytest.raises(error):
            estimator.partial_fit(*data)
    assert len(calls) >= 3
    assert everything(estimator) == before
    assert all(vars(estimator)[name] is value for name, value in own.items())
    assert not estimator.layer_.parameters["weight_ih_l0"].flags.writeable
    again = estimator.predict(*([3] if kind is SequenceForecaster else data[:1]))
    for one, other in zip(answers, again, strict=True):
        np.testing.assert_array_equal(one, other)
    estimator.partial_fit(*data)
    assert len(estimator.loss_curve_) == 3


def test_parameters_that_the_last_update_broke_are_an_error(monkeypatch):
    X, y = task(SequenceRegressor, np.random.default_rng(0), count=20)
    regressor = SequenceRegressor(**SMALL, max_epochs=1, clip=None).fit(X, y)
    loss = SequenceRegressor._loss

    def broken(self, *given):
        value, gradient = loss(self, *given)
        return value, gradient * np.nan

    monkeypatch.setattr(SequenceRegressor, "_loss", broken)
    with pytest.raises(ValueError, match="diverged: after epoch 2, the parameters are not finite"):
        regressor.partial_fit(X, y)
    assert np.isfinite(regressor.predict(X)).all()


@pytest.mark.parametrize("factor", [1e39, 1e60, 1e300])
def test_numbers_beyond_the_dtype_are_refused_by_name(factor):
    X, y, s = np.random.default_rng(0).normal(size=(20, 5, 2)), np.arange(20) % 2, np.arange(40.0) % 7
    classifier = SequenceClassifier(**SMALL, max_epochs=1).fit(X, y)
    for answer in (classifier.predict, classifier.predict_proba, lambda X: classifier.score(X, y)):
        with pytest.raises(ValueError, match="X has values that are too large for dtype float32"):
            answer(X * factor)
    with pytest.raises(ValueError, match="X has values that are too large"):
        SequenceClassifier(standardize=False).fit(X * factor, y)
    regressor = SequenceRegressor(**SMALL).partial_fit(X, y)
    with pytest.raises(ValueError, match="y has values that are too large"):
        regressor.partial_fit(X, y * factor)
    forecaster = SequenceForecaster(**SMALL, max_epochs=1).fit(s)
    with pytest.raises(ValueError, match="series has values that are too large for dtype"):
        forecaster.predict(series=s * factor)
    with pytest.raises(ValueError, match="series has values that are too large: their differences must be finite"):
        SequenceForecaster(differences=1).fit([*s, 1.7e308, -1.7e308, *s])


@pytest.mark.parametrize(
    "X", [[], [1, 2, 3], [None, None], None, np.ones(3), np.ones((3, 2, 0)), [np.ones((2, 0))] * 3]
)
def test_invalid_sequences_are_rejected_by_name(X):
    with pytest.raises(ValueError, match=r"X must have shape \(N, T, F\)|X must have at least one feature"):
        SequenceRegressor().fit(X, [1.0, 2.0, 3.0])


def test_errors_name_the_argument():
    X, y = np.random.default_rng(0).normal(size=(20, 5, 2)), np.arange(20) % 2
    for classes in ([], [0, 1, np.nan]):
        with pytest.raises(ValueError, match="classes must be"):
            SequenceClassifier().partial_fit(X, y, classes=classes)
    for weights in ({0: 0, 1: 0}, {0: 1e308, 1: 1e308}):
        with pytest.raises(ValueError, match="class_weight gives weights with the sum"):
            SequenceClassifier(class_weight=weights).fit(X, y)
    with pytest.raises(ValueError, match="sample_weight is too large"):
        SequenceRegressor().fit(X, y, sample_weight=np.full(20, 1e308))
    # The second message is that of newer versions of scikit-learn.
    with pytest.raises(ValueError, match=r"sample_weight is 0|Sample weights must contain at least one"):
        SequenceRegressor().fit(X, y, sample_weight=np.zeros(20))
    with pytest.raises(ValueError, match="early_stopping=True cannot hold out validation_fraction"):
        SequenceClassifier(early_stopping=True).fit(X, [1] + [0] * 19)
    for value in (np.random.default_rng(0), -1):
        with pytest.raises(ValueError, match="random_state must be"):
            SequenceClassifier(random_state=value).fit(X, y)
    dates = np.arange(20).astype("datetime64[D]")
    with pytest.raises(TypeError, match="y must hold real numbers"):
        SequenceRegressor().fit(X, dates)
    with pytest.raises(TypeError, match="series must hold real numbers"):
        SequenceForecaster().fit(dates)
    with pytest.raises(TypeError, match="y must hold either strings or numbers"):
        SequenceTagger().fit([np.ones(2), np.ones(1)], [["u", "d"], [1]])
    with pytest.raises(ValueError, match=r"y has the label 'x', which is not one of the classes \['d', 'u'\]"):
        SequenceClassifier(**SMALL).partial_fit(X[:1], ["x"], classes=["u", "d"])
    tagger = SequenceTagger(**SMALL, max_epochs=1).fit(X, np.tile(y[:, None], 5))
    with pytest.raises(ValueError, match="Negative values in data passed to `sample_weight`"):
        tagger.score(X, np.tile(y[:, None], 5), sample_weight=-np.ones(20))
    with pytest.raises(ValueError, match=r"pass a single one as X\[0\]\[None\] or \[X\[0\]\]"):
        tagger.predict(X[0][:, :1] + np.ones(3))
    table = SequenceRegressor(**SMALL, max_epochs=1).fit([[1, 2], [3, 4]], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"pass arrays or shape \(N, T, 1\) to fit"):
        table.predict([[1, 2, 3], [3, 4, 5]])


def test_data_frames_of_other_columns_are_refused():
    pandas = pytest.importorskip("pandas")
    X = [pandas.DataFrame(np.ones((n, 2)), columns=["a", "b"]) for n in (2, 3)]
    regressor = SequenceRegressor(**SMALL, max_epochs=1).fit(X, [1.0, 2.0])
    regressor.predict(X)
    with pytest.raises(ValueError, match="same columns in the same order"):
        regressor.predict([x[["b", "a"]] for x in X])


def masked(array):
    """A masked array whose first element is masked."""
    return np.ma.array(array, mask=np.arange(np.size(array)).reshape(np.shape(array)) == 0)


@pytest.mark.parametrize("kind", [SequenceClassifier, SequenceRegressor, SequenceTagger])
def test_masked_elements_are_refused(kind):
    X = np.random.default_rng(0).normal(size=(20, 5, 2))
    y = np.arange(20) % 2
    y = np.tile(y[:, np.newaxis], 5) if kind is SequenceTagger else y
    weights = np.ones(20)
    estimator = kind(**SMALL, max_epochs=1).fit(X, y)
    whole = {"X": X, "y": y, "sample_weight": weights}
    for name, array in whole.items():
        for form in (masked(array), list(masked(array))):
            for method in (estimator.fit, estimator.partial_fit, estimator.score):
                with pytest.raises(ValueError, match=f"^{name} has masked elements"):
                    method(**{**whole, name: form})
    for form in (masked(X), list(masked(X)), masked(X[..., 0]), np.array([None, *masked(X)], object)[1:]):
        with pytest.raises(ValueError, match=r"^X has masked elements"):
            estimator.predict(form)
    if kind is not SequenceRegressor:
        with pytest.raises(ValueError, match=r"^classes has masked elements"):
            kind().partial_fit(X, y, classes=masked([0, 1]))
    unmasked = {name: np.ma.array(array) for name, array in whole.items()}
    assert estimator.fit(**unmasked).score(**unmasked) == kind(**SMALL, max_epochs=1).fit(**whole).score(**whole)


def test_masked_elements_of_series_are_refused():
    x = np.random.default_rng(0).normal(size=60)
    forecaster = SequenceForecaster(**SMALL, max_epochs=1).fit(x)
    forms = [masked(x), masked([x, x]), [x, masked(x)], [*x, np.ma.masked], np.array([x[1:], masked(x)], object)]
    for form in forms:
        for method in (forecaster.fit, forecaster.partial_fit, forecaster.update, forecaster.score):
            with pytest.raises(ValueError, match=r"^series has masked elements"):
                method(form)
        with pytest.raises(ValueError, match=r"^series has masked elements"):
            forecaster.predict(3, series=form)
    np.testing.assert_array_equal(forecaster.fit(np.ma.array(x)).series_[0][:, 0], x)


class OnlyArray:
    """An array of another library."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def unreadable(array):
    """Yield forms of an array that hold something else than real numbers."""
    objects = array.astype(object)
    for element in (None, "text", 1j, 10**400, [1, 2], object()):
        objects[(0,) * array.ndim] = element
        yield objects.copy()
    yield from (array + 1j, array.astype("m8[s]"), list(array.ravel().astype("M8[s]")))
    yield from (np.zeros(array.shape, [("a", "f8")]), OnlyArray(array.astype("m8[s]")), {"a": array}, {1, 2})
    masked_array = np.ma.array(array, mask=True)
    yield from (
        masked_array,
        OnlyArray(masked_array),
        [1.0, np.ma.masked],
        np.array([[masked_array], None], object)[:1],
    )


@pytest.mark.parametrize("kind", ALL)
def test_errors_name_the_argument_that_cannot_be_read(kind):
    """Errors of scikit-learn's and NumPy's conversions, which name no argument, too."""
    if kind is SequenceForecaster:
        x = np.random.default_rng(0).normal(size=40)
        forecaster = kind(**SMALL, max_epochs=1).fit(x)
        calls = {"series": (x, [kind(**SMALL).fit, lambda x: forecaster.predict(2, x), forecaster.update])}
    else:
        X, y = task(kind, np.random.default_rng(0), count=8)
        X, y = np.array([x[:1] for x in X]), [label[:1] for label in y] if kind is SequenceTagger else y
        estimator, weights = kind(**SMALL, max_epochs=1).fit(X, y), np.ones(8)
        calls = {
            "X": (X, [lambda X: kind(**SMALL).fit(X, y), estimator.predict, lambda X: estimator.score(X, y)]),
            "sample_weight": (weights, [lambda w: kind(**SMALL).fit(X, y, w), lambda w: estimator.score(X, y, w)]),
        }
        if kind is SequenceRegressor:
            calls["y"] = (np.array(y), [lambda y: kind(**SMALL).fit(X, y), lambda y: estimator.score(X, y)])
    for name, (array, functions) in calls.items():
        for function in functions:
            for form in unreadable(array):
                with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b|inconsistent numbers of samples"):
                    function(form)


@pytest.mark.parametrize("kind", [SequenceClassifier, SequenceTagger])
def test_labels_that_cannot_be_compared_are_refused_by_name(kind):
    X, y = np.zeros((4, 1)), [["a"], [None], ["a"], [1.0]]
    y = y if kind is SequenceTagger else [labels[0] for labels in y]
    with pytest.raises(TypeError, match=r"^y cannot be read: '<' not supported between"):
        kind().fit(X, y)
    with pytest.raises(TypeError, match=r"^classes cannot be read: '<' not supported between"):
        kind().partial_fit(X, y, classes=["a", None])
    fitted = kind(**SMALL, max_epochs=1).fit(X, [[1]] * 4 if kind is SequenceTagger else [1] * 4)
    with pytest.raises(ValueError, match="Negative values in data passed to `sample_weight`"):
        fitted.score(X, [[1]] * 4 if kind is SequenceTagger else [1] * 4, -np.ones(4))


def test_dates_in_tables_are_refused():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: no tables")
    dates = pandas.date_range("2026-01-01", periods=40)
    for table in (pandas.DataFrame({"a": dates}), pandas.DataFrame({"a": 1.0, "b": dates - dates[0]})):
        for fit in (SequenceClassifier().fit, SequenceRegressor().fit):
            for X in (table, [table] * 40):
                with pytest.raises(TypeError, match="X must hold real numbers, got dtype"):
                    fit(X, np.arange(40) % 2)
        with pytest.raises(TypeError, match="y must hold real numbers, got dtype"):
            SequenceRegressor().fit(np.zeros((40, 2)), table)
        with pytest.raises(TypeError, match="series must hold real numbers, got dtype"):
            SequenceForecaster(multivariate=True).fit(table)


def test_dates_are_refused():
    dates = np.arange(20).astype("datetime64[D]").reshape(4, 5)
    for X in (dates, dates[..., np.newaxis], list(dates)):
        with pytest.raises(TypeError, match="X must hold real numbers, got dtype datetime64"):
            SequenceRegressor().fit(X, np.arange(4.0))


@pytest.mark.parametrize("horizon", [[1, 2], [[1, 2], [3]], np.zeros(3), np.zeros((2, 2))], ids=str)
def test_an_array_is_not_a_horizon(horizon):
    forecaster = SequenceForecaster(**SMALL, max_epochs=1).fit(np.arange(30) % 3)
    with pytest.raises(TypeError, match="horizon must be an integer, got an array"):
        forecaster.predict(horizon)
