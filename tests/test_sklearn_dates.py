"""Time series with dates, and their covariates."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: no estimators")
pandas = pytest.importorskip("pandas", reason="pandas is not installed: no tables with dates")

from support.estimators import SMALL  # noqa: E402

from rnnfast.sklearn import SequenceForecaster  # noqa: E402

SHORT = {**SMALL, "max_epochs": 1}


def series(index, name="sold"):
    return pandas.Series(np.random.default_rng(0).normal(size=len(index)), index, name=name)


@pytest.mark.full
def test_pandas_is_not_needed():
    code = (
        "import sys; sys.modules['pandas'] = None; import rnnfast.sklearn as s; s.SequenceForecaster().fit([0, 1] * 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "index",
    [pandas.date_range("2024-01-01", periods=43, freq=freq) for freq in ("D", "B", "h", "W-WED", "15D")]
    + [pandas.date_range("2024-01-01", periods=43, freq=pandas.offsets.MonthEnd(), tz="Europe/Berlin")]
    + [pandas.period_range("2024-01", periods=43, freq=freq) for freq in ("M", "Q", "h")],
    ids=lambda index: f"{type(index).__name__}-{index.freqstr}",
)
@pytest.mark.parametrize("keep", [True, False])
def test_forecasts_have_the_dates_that_follow(index, keep):
    whole = index
    if not keep and isinstance(index, pandas.DatetimeIndex):
        index = pandas.DatetimeIndex(list(index), name="when")  # without a frequency, which is inferred
    x = series(index)
    forecaster = SequenceForecaster(**SHORT).fit(x[:40])
    got = forecaster.predict(3)
    expected = SequenceForecaster(**SHORT).fit(x[:40].to_numpy()).predict(3)
    pandas.testing.assert_series_equal(got, pandas.Series(expected, index[40:], name="sold"), check_freq=False)
    assert got.index.freqstr == whole.freqstr
    again = pickle.loads(pickle.dumps(forecaster)).update(x[40:41])
    assert list(again.predict(2).index) == list(index[41:])
    assert forecaster.score(x[40:]) == pytest.approx(-np.abs(expected - x[40:]).mean())
    lower, upper = forecaster.predict_interval(2, 0.5)
    assert list(lower.index) == list(upper.index) == list(index[40:42])
    assert forecaster.predict(2, series=x[:20]).index[0] == index[20]


def test_columns_of_a_data_frame_are_variables():
    index = pandas.date_range("2024-01-01", periods=60, freq="D")
    table = pandas.DataFrame({"a": series(index), "b": series(index) ** 2})
    forecaster = SequenceForecaster(**SHORT, horizon=2).fit(table)
    plain = SequenceForecaster(**SHORT, horizon=2, multivariate=True).fit(table.to_numpy())
    expected = pandas.DataFrame(plain.predict(3), index[-1] + index.freq * np.arange(1, 4), table.columns)
    pandas.testing.assert_frame_equal(forecaster.predict(3), expected, check_freq=False)
    quantiles = forecaster.predict_quantiles([0.2, 0.8], 2)
    assert quantiles.columns.tolist() == [("a", 0.2), ("a", 0.8), ("b", 0.2), ("b", 0.8)]
    np.testing.assert_array_equal(quantiles["b"].T, plain.predict_quantiles([0.2, 0.8], 2)[..., 1])
    single = SequenceForecaster(**SHORT).fit(table["a"])
    assert single.predict_quantiles([0.2, 0.8], 2).columns.tolist() == [0.2, 0.8]
    with pytest.raises(ValueError, match=r"series has the columns \['b', 'a'\], but those in fit were \['a', 'b'\]"):
        forecaster.predict(2, series=table[["b", "a"]])


DAYS = pandas.date_range("2024-01-01", periods=40, freq="D")


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (
            series(DAYS).drop(DAYS[[3, 4, 9, 20]]),
            r"no row for 2024-01-04, 2024-01-05, 2024-01-10 and 1 more: .*series\.asfreq\('D'\)\.interpolate\(\)",
        ),
        (series(DAYS[:30].append(DAYS[31:])), "no row for 2024-01-31"),
        (
            series(pandas.period_range("2024-01", periods=40, freq="M").delete(3)),
            r"no row for 2024-04: .*reindex\(pandas\.period_range",
        ),
        (series(DAYS.append(DAYS[-1:] + pandas.Timedelta("11h"))), r"'D' and not 2024-02-09 11:00:00: .*resample"),
        (
            series(pandas.DatetimeIndex(["2024-01-01", "2024-01-05", "2024-02-17"])),
            "cannot be inferred from 2024-01-01",
        ),
        (
            series(DAYS[[14]].append([DAYS[[14]] + pandas.DateOffset(months=k) for k in range(1, 20)])),
            r"to_period\('M'\)",
        ),
        (series(DAYS[[0, 1, 1, 2]]), r"2024-01-02 follows 2024-01-02: use series\.sort_index\(\)"),
        (series(DAYS[::-1]), "2024-02-08 follows 2024-02-09"),
        (series(DAYS).mask(DAYS == "2024-01-05"), r"NaN at 2024-01-05: .*series\.interpolate\(\)"),
    ],
)
def test_dates_that_cannot_be_continued_are_refused(x, match):
    forecaster = SequenceForecaster(**SHORT)
    with pytest.raises(ValueError, match=rf"^series .*{match}"):
        forecaster.fit(x)
    assert not hasattr(forecaster, "layer_")


def test_an_update_must_continue_the_dates():
    x = series(DAYS)
    forecaster = SequenceForecaster(**SHORT).fit(x[:30])
    for method in (forecaster.update, forecaster.score, forecaster.partial_fit):
        with pytest.raises(ValueError, match="series has the date 2024-02-01 where 2024-01-31 was expected"):
            method(x[31:33])
    forecaster.partial_fit(x[30:31]).update(x[31:32].to_numpy())  # without dates: the next
    assert forecaster.predict(1).index[0] == DAYS[32]


# --- covariates


def effects(rng, steps=300):
    """A series that jumps in the steps in which its covariate is 1."""
    promotion = (rng.random(steps) < 0.3).astype(float)
    return 10 * promotion + rng.normal(0, 0.3, steps).cumsum(), promotion


@pytest.mark.parametrize("options", [{"differences": 1}, {"differences": 1, "horizon": 3, "window": 5}])
def test_future_covariates_are_learnt(options):
    x, promotion = effects(np.random.default_rng(0))
    options = {"random_state": 0, "max_epochs": 40, "learning_rate": 0.03, **options}
    with_it = SequenceForecaster(**options).fit(x[:290], future=promotion[:290])
    without = SequenceForecaster(**options).fit(x[:290])
    assert with_it.score(x[290:], future=promotion[290:]) > 0.5 * without.score(x[290:])
    known = with_it.predict(10, series=x[:290], future=promotion)
    np.testing.assert_allclose(known, with_it.predict(10, future=promotion[290:]), rtol=1e-6)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("differences", [(), (2,)])
def test_forecasts_read_covariates(window, differences):
    rng = np.random.default_rng(0)
    x, future = rng.normal(size=40), rng.normal(size=(45, 2))
    options = {**SHORT, "horizon": 2, "window": window, "differences": differences, "standardize": False}
    forecaster = SequenceForecaster(**options).fit(x, future=future[:40])
    lag = sum(differences)
    of_future = future[lag:] - future[:-lag] if lag else future
    z = list(x[lag:] - x[:-lag] if lag else x)
    while len(z) + lag < 45:
        coming = [of_future[np.minimum([row + 1, row + 2], len(of_future) - 1)].ravel() for row in range(len(z))]
        read = np.column_stack([z, coming])[-window if window else 0 :]
        z.extend(forecaster.readout_(forecaster.layer_(read)[0][-1]))
    whole = list(x)
    for step in range(40, 45):
        whole.append(z[step - lag] + (whole[step - lag] if lag else 0))
    np.testing.assert_allclose(forecaster.predict(5, future=future[40:]), whole[40:], rtol=1e-4, atol=1e-5)


def test_examples_have_the_covariates_of_their_steps():
    x, past, future = np.arange(20.0), np.arange(20.0) * 10, np.arange(20.0) * 100
    forecaster = SequenceForecaster(**SHORT, horizon=2, early_stopping=False)
    forecaster.fit(x % 7, past=past, future=future)
    examples = forecaster._examples(forecaster._joined(), [0])
    ahead = np.minimum(np.arange(19)[:, np.newaxis] + [1, 2], 19) * 100
    np.testing.assert_array_equal(examples.sequences.flat, np.column_stack([x[:19] % 7, past[:19], ahead]))
    np.testing.assert_array_equal(examples.targets[:18], np.column_stack([x[1:19], x[2:20]]) % 7)
    assert forecaster.predict(future=np.ones(2)).shape == (2,)


def test_held_out_forecasts_read_their_own_covariates():
    x, promotion = effects(np.random.default_rng(0), 200)
    forecaster = SequenceForecaster(**SHORT, differences=1).fit(x, future=promotion)
    ahead = np.zeros(2)
    errors = [
        x[at : at + 2] - forecaster.predict(2, series=x[:at], future=promotion[: at + 2]) for at in range(160, 199)
    ]
    values = forecaster.predict_quantiles([0.25, 0.5], 2, future=ahead) - forecaster.predict(2, future=ahead)
    first = [*np.array(errors)[:, 0], x[199] - forecaster.predict(1, series=x[:199], future=promotion)[0]]
    np.testing.assert_allclose(values[:, 0], np.quantile(first, [0.25, 0.5], method="weibull"), rtol=1e-4)
    np.testing.assert_allclose(
        values[:, 1], np.quantile(np.array(errors)[:, 1], [0.25, 0.5], method="weibull"), rtol=1e-4
    )


def test_covariates_of_several_series():
    rng = np.random.default_rng(0)
    x, future = rng.normal(size=(3, 30)), rng.normal(size=(3, 34, 2))
    forecaster = SequenceForecaster(**SHORT).fit(x, future=future[:, :30], past=x)
    assert forecaster.predict(1, future=future[:, 30:31]).shape == (3, 1)
    forecaster = SequenceForecaster(**SHORT).fit(list(x), future=list(future[:, :30]))
    np.testing.assert_array_equal(
        forecaster.predict(4, future=future[:, 30:])[1], forecaster.predict(4, series=x[1], future=future[1])
    )
    forecaster.update(x[:, :2], future=future[:, :2])
    assert [len(part) for part in (*forecaster.series_, *forecaster.future_)] == [32] * 6


def test_covariates_that_do_not_fit_are_refused():
    x, table = series(DAYS), pandas.DataFrame({"u": 1.0, "v": series(DAYS)})
    forecaster = SequenceForecaster(**SHORT, horizon=2).fit(x[:30], past=table[:30])
    before = vars(forecaster).copy()
    for call, match in [
        (lambda: forecaster.predict(3), "with past covariates.* at most 2 steps, got horizon=3"),
        (
            lambda: forecaster.predict(2, future=np.ones(2)),
            "future cannot be passed, because fit was called without it",
        ),
        (lambda: forecaster.predict(2, past=table), "past needs series"),
        (lambda: forecaster.predict(2, series=x), "past must be passed, because fit was called with it"),
        (lambda: forecaster.update(x[30:32], past=table[["v", "u"]][30:32]), r"past has the columns \['v', 'u'\]"),
        (lambda: forecaster.update(x[30:32], past=table[31:33]), "past has the date 2024-02-01 where 2024-01-31"),
        (
            lambda: forecaster.update(x[30:32], past=np.ones((2, 3))),
            r"past must have a row .*\(2, 2\) .* got shape \(2, 3\)",
        ),
        (
            lambda: forecaster.fit(x, future=np.ones(39)),
            r"future must have a row .* \(40, 1\) for series 0, got shape \(39,",
        ),
        (lambda: forecaster.fit(x, past=[np.nan] * 40), "past contains NaN"),
        (lambda: forecaster.fit([x, x], past=[x]), "past must have covariates for each of 2 series, got 1"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
        assert vars(forecaster).keys() == before.keys()
        assert all(vars(forecaster)[name] is value for name, value in before.items())
