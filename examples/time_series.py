"""Forecast two well-known series, and compare the forecasts with those of standard methods.

    pip install '.[examples]' && python examples/time_series.py

The monthly mean of the carbon dioxide at Mauna Loa is forecast 24 months ahead, and the yearly number of sunspots 10
years ahead. Every method forecasts from many origins, at each of which it is fitted to the values before. The forecast
of the recurrent network is the mean over several seeds. The baselines are seasonal naive forecasts, exponential
smoothing (Holt-Winters if there is a season) and, for the sunspots, an autoregression.

No setting is chosen on the test set. The program chooses the cell and the size of the network on earlier origins,
whose forecasts end before the first origin of the test. The other settings were also chosen on these earlier origins,
when the program was written.

The package statsmodels (BSD-3-Clause) contains both series, which are in the public domain, so nothing is downloaded.
CO2: C.D. Keeling and T.P. Whorf, Atmospheric CO2 concentrations derived from flask air samples at sites in the SIO
network, 2004; weekly, 1958 to 2001. The five months without a value, all before 1965, are interpolated. Sunspots:
National Geophysical Data Center; yearly, 1700 to 2008.
"""

import argparse
import itertools
import sys
import time
import warnings
from typing import Any, NamedTuple

import numpy as np

import rnnfast
from rnnfast.commands.program import CannotRun, Progress, option, run_program, runtime, save_figure, save_picture, whole

CELLS, HIDDEN = ("rnn", "gru"), (16, 32)  # settings to choose from
COVERAGE = 0.9
SEASONS = 5  # years over which the season of the CO2 is averaged


# ------------------------------------------------------------------------------------------------------------- data


class Series(NamedTuple):
    """A series and how it is forecast. An origin is the index of the first value of a forecast."""

    name: str
    unit: str
    step: str
    times: np.ndarray  # in years
    values: np.ndarray
    horizon: int
    period: int  # steps of a season, approximately
    earlier: range  # origins on which settings are chosen
    origins: range  # origins of the test
    options: dict[str, Any]  # of the forecaster
    to_network: Any  # maps the values before an origin to the input of the network
    from_network: Any  # maps its forecast, and the values before the origin, to values
    baselines: dict[str, Any]


def season(values):
    """Return the seasonal component of the 12 months that follow the values.

    The trend is a moving average over 12 months; the remainder is averaged over the last years for each month.
    """
    weights = np.array([0.5, *[1] * 11, 0.5]) / 12
    rest = (values[6:-6] - np.convolve(values, weights, "valid"))[-12 * SEASONS :]
    months = rest.reshape(SEASONS, 12).mean(axis=0)
    return np.roll(months - months.mean(), -6)  # the remainder ends 7 months before the forecast


def without_season(values):
    return values - np.resize(season(values)[::-1], len(values))[::-1]


def with_season(forecast, values):
    return forecast + np.resize(season(values), len(forecast))


def square(forecast, values):  # noqa: ARG001
    return np.square(np.maximum(forecast, 0))


def load(quick):
    """Load the two series; a quick run has fewer origins."""
    try:
        from statsmodels.datasets import co2, sunspots
    except ImportError:
        raise CannotRun("statsmodels, which has the data, is not installed: pip install statsmodels") from None
    months = co2.load_pandas().data["co2"].resample("MS").mean().interpolate()
    years = sunspots.load_pandas().data
    times = np.asarray(months.index.year + (months.index.month - 0.5) / 12)
    month = {year: int(np.searchsorted(times, year)) for year in (1978, 1988, 1990, 2000)}
    stride = 8 if quick else 1
    return [
        Series(
            name="CO2 at Mauna Loa",
            unit="ppm",
            step="month",
            times=times,
            values=months.to_numpy(),
            horizon=24,
            period=12,
            earlier=range(month[1978], month[1988], 12 * stride + 5),
            origins=range(month[1990], month[2000] + 1, 6 * stride),
            options={"differences": 1, "horizon": 1, "learning_rate": 0.01},
            to_network=without_season,
            from_network=with_season,
            baselines={
                "seasonal naive": seasonal_naive(12),
                "Holt-Winters, additive season": smoothing(trend="add", seasonal="add", seasonal_periods=12),
                "Holt-Winters, multiplicative": smoothing(trend="add", seasonal="mul", seasonal_periods=12),
            },
        ),
        Series(
            name="Sunspots",
            unit="sunspots",
            step="year",
            times=years["YEAR"].to_numpy(),
            values=years["SUNACTIVITY"].to_numpy(),
            horizon=10,
            period=11,
            earlier=range(1880 - 1700, 1939 - 1700, 6 * stride),
            origins=range(1949 - 1700, 2000 - 1700, 2 * stride),
            options={"horizon": 10, "learning_rate": 0.003},
            to_network=np.sqrt,
            from_network=square,
            baselines={
                "naive": seasonal_naive(1),
                "seasonal naive, 11 years": seasonal_naive(11),
                "exponential smoothing": smoothing(),
                "smoothing, 11-year season": smoothing(seasonal="add", seasonal_periods=11),
                "AR(9) of the square root": autoregression,
            },
        ),
    ]


# ---------------------------------------------------------------------------------------------------------- methods


def seasonal_naive(period):
    """Return a forecaster that repeats the last season."""
    return lambda values, horizon: np.resize(values[-period:], horizon)


def smoothing(**options):
    """Return a forecaster by exponential smoothing, with parameters fitted to the values."""

    def forecast(values, horizon):
        from statsmodels.tsa.holtwinters import ExponentialSmoothing

        return ExponentialSmoothing(values, **options).fit().forecast(horizon)

    return forecast


def autoregression(values, horizon):
    from statsmodels.tsa.ar_model import AutoReg

    return square(AutoReg(np.sqrt(values), 9).fit().forecast(horizon), values)


def forecasters(series, values, settings, seeds):
    """Train networks of several seeds on the values."""
    try:
        from rnnfast.sklearn import SequenceForecaster
    except ImportError:
        raise CannotRun("scikit-learn is not installed: pip install scikit-learn") from None
    options = {"max_epochs": 200, "n_iter_no_change": 20, "validation_fraction": 0.2, **series.options, **settings}
    known = series.to_network(values)
    return [SequenceForecaster(random_state=seed, **options).fit(known) for seed in range(seeds)]


def network(series, values, settings, seeds):
    """Return the mean of the networks' forecasts, and the mean bounds of their 90% prediction intervals."""
    models = forecasters(series, values, settings, seeds)
    intervals = [model.predict_interval(series.horizon, COVERAGE) for model in models]
    forecasts = [model.predict(series.horizon) for model in models]
    lower, upper = np.mean(intervals, axis=0)
    return tuple(series.from_network(ahead, values) for ahead in (np.mean(forecasts, axis=0), lower, upper))


def choose(series, seeds, progress):
    """Return the settings with the lowest error from the earlier origins, and the errors of all settings."""
    scores = {}
    for cell, hidden in itertools.product(CELLS, HIDDEN):
        errors = []
        for origin in series.earlier:
            progress(f"{series.name}: choosing settings on earlier origins")
            known = series.values[:origin]
            forecast, *_ = network(series, known, {"cell": cell, "hidden_size": hidden}, seeds)
            errors.append(np.abs(forecast - series.values[origin : origin + series.horizon]).mean())
        scores[cell, hidden] = np.mean(errors)
    cell, hidden = min(scores, key=scores.get)
    return {"cell": cell, "hidden_size": hidden}, scores


def roll(series, settings, seeds, progress):
    """Return the forecasts of each method, (origins, horizon), and the bounds of the network's intervals."""
    forecasts, bounds = {name: [] for name in series.baselines}, []
    forecasts["rnnfast"] = []
    for origin in series.origins:
        progress(f"{series.name}: forecasting from the test origins")
        known = series.values[:origin]
        for name, method in series.baselines.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # statsmodels warns if an optimiser stops early
                forecasts[name].append(method(known, series.horizon))
        ahead, lower, upper = network(series, known, settings, seeds)
        forecasts["rnnfast"].append(ahead)
        bounds.append((lower, upper))
    return {name: np.array(ahead) for name, ahead in forecasts.items()}, np.array(bounds)


def truths(series):
    return np.array([series.values[origin : origin + series.horizon] for origin in series.origins])


def scales(series):
    """Return the scale of MASE: the mean error of the seasonal naive forecast before each origin."""
    step = np.abs(series.values[series.period :] - series.values[: -series.period])
    return np.array([step[: origin - series.period].mean() for origin in series.origins])


# ----------------------------------------------------------------------------------------------------------- output


def draw(results, path):
    """Draw a forecast of each series with its interval and the outcome, and the errors by horizon."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8), layout="constrained")
    for (left, right), (series, _, _, forecasts, bounds) in zip(
        figure.subplots(2, 2, width_ratios=[1.2, 1]), results, strict=True
    ):
        shown = len(series.origins) // 2
        origin = series.origins[shown]
        past = slice(max(0, origin - 3 * series.period), origin)
        ahead = slice(origin, origin + series.horizon)
        left.plot(series.times[past], series.values[past], color="black", linewidth=1.2, label="known")
        left.plot(series.times[ahead], series.values[ahead], "o", color="black", markersize=3.5, label="outcome")
        left.plot(series.times[ahead], forecasts["rnnfast"][shown], color="C0", linewidth=2, label="rnnfast")
        left.fill_between(
            series.times[ahead],
            *bounds[shown],
            color="C0",
            alpha=0.2,
            linewidth=0,
            label=f"{COVERAGE:.0%} interval",
        )
        rival = list(series.baselines)[-1]
        left.plot(series.times[ahead], forecasts[rival][shown], "--", color="C1", label=rival)
        left.set(xlabel="year", ylabel=series.unit, title=f"{series.name}: a test forecast")
        low, high = left.get_ylim()
        left.set_ylim(low, high + 0.3 * (high - low))  # space for the legend
        left.legend(loc="upper left", ncols=3)

        steps = np.arange(1, series.horizon + 1)
        for number, (name, forecast) in enumerate(forecasts.items(), start=1):
            own = name == "rnnfast"
            errors = np.abs(forecast - truths(series)).mean(axis=0)
            look = {"color": "C0", "linewidth": 2.5} if own else {"color": f"C{number}", "dashes": (5, number)}
            right.plot(steps, errors, label=name, **look)  # dashes keep overlapping lines visible
        right.set(
            xlabel=f"{series.step}s ahead",
            ylabel=f"mean absolute error, {series.unit}",
            title=f"Mean error over {len(series.origins)} origins",
        )
        right.set_ylim(bottom=0)
        right.legend(loc="upper left", bbox_to_anchor=(1, 1))
        for axes in (left, right):
            axes.grid(color="#e4e4e4")
            axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, dpi=100)


def tell(series, settings, scores, forecasts, bounds):
    """Print the results of a series."""
    first, last = (series.times[origin] for origin in (series.origins[0], series.origins[-1]))
    print(
        f"\n{series.name}, {series.horizon} {series.step}s ahead, "
        f"from {len(series.origins)} origins, {first:.0f} to {last:.0f}."
    )
    print(f"Error (MAE) of the settings from {len(series.earlier)} earlier origins:")
    for (cell, hidden), score in scores.items():
        chosen = "  chosen" if settings == {"cell": cell, "hidden_size": hidden} else ""
        print(f"  {cell.upper()}, {hidden} units{score:10.3f}{chosen}")
    print(f"Test results:{f'MAE ({series.unit})':>29}{'MASE':>10}")
    for name, forecast in forecasts.items():
        errors = np.abs(forecast - truths(series))
        print(f"  {name:30}{errors.mean():10.3f}{(errors.mean(axis=1) / scales(series)).mean():10.3f}")
    lower, upper = bounds.swapaxes(0, 1)
    inside = (lower <= truths(series)) & (truths(series) <= upper)
    print(f"Coverage of the {COVERAGE:.0%} prediction intervals of rnnfast: {inside.mean():.0%}.")


# ---------------------------------------------------------------------------------------------------------- program


def main(arguments=None):
    """Run the program and return the exit status."""
    parser = argparse.ArgumentParser(
        description="Forecast two well-known series from many origins, and compare with standard methods.",
        epilog="Exit status: 0 success, 2 error, 130 stopped by Ctrl-C.",
    )
    option(parser, "--seeds", whole(1, 100), 5, "networks to average")
    parser.add_argument("--quick", action="store_true", help="use an eighth of the origins")
    option(parser, "--threads", whole(1, 1024), 1, "number of threads")
    parser.add_argument("--picture", metavar="FILE", default="time_series.png", help="picture (default: %(default)s)")
    return run_program("time_series.py", report, parser.parse_args(arguments))


def report(run):
    """Choose the settings, forecast, and report the results."""
    began = time.monotonic()
    rnnfast.set_num_threads(run.threads)
    both = load(run.quick)
    print(f"{runtime()}.", flush=True)
    total = sum(len(CELLS) * len(HIDDEN) * len(series.earlier) + len(series.origins) for series in both)
    results = []
    with Progress(total) as progress:
        for series in both:
            settings, scores = choose(series, min(run.seeds, 3), progress.begin)
            forecasts, bounds = roll(series, settings, run.seeds, progress.begin)
            results.append((series, settings, scores, forecasts, bounds))
    for result in results:
        tell(*result)
    print()
    save_picture(run.picture, draw, results)
    print(f"Time: {time.monotonic() - began:.0f} seconds.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
