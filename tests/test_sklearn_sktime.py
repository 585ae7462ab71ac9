"""The forecaster for sktime passes sktime's checks."""

import doctest
import warnings

import numpy as np
import pytest

pytestmark = [
    pytest.mark.full,  # importing sktime takes seconds
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture
def sktime():
    pytest.importorskip("sktime", minversion="1.0", reason="sktime is not installed: no SktimeForecaster")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import rnnfast.sklearn.sktime

        return rnnfast.sklearn.sktime


def test_checks_of_sktime(sktime):
    from sktime.utils.estimator_checks import check_estimator

    results = check_estimator(sktime.SktimeForecaster, verbose=False)
    assert {name: result for name, result in results.items() if result != "PASSED"} == {}
    assert len(results) > 500


def test_examples(sktime):
    assert doctest.testmod(sktime).failed == 0


def test_forecasts_are_those_of_the_estimator(sktime):
    import pandas

    rng = np.random.default_rng(0)
    index = pandas.date_range("2024-01-01", periods=90, freq="D")
    y = pandas.DataFrame(rng.normal(size=(90, 2)), index, ["a", "b"])
    X = pandas.DataFrame({"u": rng.normal(size=90)}, index)
    options = {"hidden_size": 4, "max_epochs": 2, "random_state": 0}
    own = sktime.SequenceForecaster(**options).fit(y[:80], future=X[:80])
    forecaster = sktime.SktimeForecaster(sktime.SequenceForecaster(**options)).fit(y[:80], X=X[:80])
    pandas.testing.assert_frame_equal(
        forecaster.predict(fh=[1, 3], X=X[80:]), own.predict(3, future=X[80:83]).iloc[[0, 2]], check_freq=False
    )
    quantiles = forecaster.predict_quantiles(fh=[2], X=X[80:], alpha=[0.2, 0.7])
    expected = own.predict_quantiles([0.2, 0.7], 2, future=X[80:82]).iloc[[1]]
    pandas.testing.assert_frame_equal(quantiles, expected, check_freq=False)
    for train in (False, True):
        at = 81 + train
        forecaster.update(y[at - 1 : at], X=X[at - 1 : at], update_params=train)
        (own.partial_fit if train else own.update)(y[at - 1 : at], future=X[at - 1 : at])
        expected = own.predict(1, future=X[at : at + 1])
        pandas.testing.assert_frame_equal(forecaster.predict(fh=1, X=X[at:]), expected, check_freq=False)
    with pytest.raises(ValueError, match="X must have a row for every step up to the last of fh, but has none for"):
        forecaster.predict(fh=[3], X=X[84:])
    with pytest.raises(ValueError, match=r"y must continue after 2024-03-2.* without a gap, but has 2024-03-2"):
        forecaster.update(y[84:], X=X[84:])
