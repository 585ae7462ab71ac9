"""Differences of time series: taking them, and choosing which to take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import arguments
from .._types import Array

KPSS_CRITICAL = 0.463  # of the statistic for stationarity around a level, at 5%
STRONG_SEASON = 0.64  # of the variance that the trend leaves


def successive_differences(x: Array, lags: tuple[int, ...]) -> list[Array]:
    """Return the series and its successive differences ``x[t] - x[t - lag]``."""
    levels = [x]
    with np.errstate(over="ignore", invalid="ignore"):
        for lag in lags:
            levels.append(levels[-1][lag:] - levels[-1][:-lag])
    if not np.isfinite(levels[-1]).all():
        raise ValueError("series has values that are too large: their differences must be finite")
    return levels


def choose_differences(series: Any, season: int = 1) -> tuple[int, ...]:
    """Choose the lags of the differences that make time series stationary: the rule of ``differences="auto"``.

    Parameters
    ----------
    series : array_like (T,), or list of array_like (T_i,)
        One or several series. For several, the choice is that of at least half of them.
    season : int, default 1
        Period of a possible season, such as 12 for monthly data; 1 for none.

    Returns
    -------
    tuple of int
        (), (1,), (season,) or (season, 1), for the option `differences` of :class:`SequenceForecaster`.

    Raises
    ------
    ValueError, TypeError
        If `series` does not consist of finite real numbers, or `season` is not a positive integer.

    Notes
    -----
    The two steps are those of the functions ``nsdiffs`` and ``ndiffs`` of the R package forecast, which automatic ARIMA
    models use, but with at most one difference for each:

    1. Take seasonal differences if the season explains at least 64% of the variance around the trend. The trend is the
       centred moving average over one season, and the season is the mean around it for each phase. The variances are
       adjusted for degrees of freedom, and two seasons around the trend are needed.
    2. Take differences with lag 1 if the KPSS test rejects, at 5%, that the result is stationary around a level. The
       long-run variance has Bartlett weights up to lag ``floor(3 * sqrt(T) / 13)``.

    Sources: R.J. Hyndman and Y. Khandakar, "Automatic time series forecasting: the forecast package for R", 2008.
    X. Wang, K.A. Smith and R.J. Hyndman, "Characteristic-based clustering for time series data", 2006 (strength of a
    season). D. Kwiatkowski et al., "Testing the null hypothesis of stationarity against the alternative of a unit
    root", 1992.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.sklearn import choose_differences
    >>> noise = np.random.default_rng(0).normal(size=120)
    >>> choose_differences(noise), choose_differences(noise + 0.1 * np.arange(120))
    ((), (1,))
    >>> choose_differences(noise + 5 * np.sin(2 * np.pi * np.arange(120) / 12), season=12)
    (12,)
    """
    arguments.size("season", season)
    several = isinstance(series, (list, tuple)) and len(series) and np.ndim(series[0])
    members = [arguments.real("series", x, arguments.DTYPES[1]) for x in (series if several else [series])]
    for x in members:
        if x.ndim != 1 or not x.size or not np.isfinite(x).all():
            raise ValueError(
                f"series must be one array (T,), or a list of them, of finite numbers, got one of shape {x.shape}"
            )
    lags: tuple[int, ...] = ()
    if season > 1 and _most(_season_strength(_scaled(x), season) >= STRONG_SEASON for x in members):
        lags = (season,)
    if _most(_is_unsteady(_scaled(x), lags) for x in members):
        lags = (*lags, 1)
    return lags


def _most(votes: Any) -> bool:
    return float(np.mean(list(votes))) >= 0.5


def _scaled(x: Array) -> Array:
    """Return the series divided by a power of two, so that no square overflows or underflows."""
    scaled: Array = np.ldexp(x, -np.frexp(np.abs(x).max())[1])
    return scaled


def _season_strength(x: Array, season: int) -> float:
    """Return the fraction of the variance around the trend that the season explains."""
    half = season // 2
    weights = np.full(2 * half + 1, 1 / season)
    if season % 2 == 0:
        weights[[0, -1]] /= 2
    if len(x) < 2 * season + 2 * half:
        return 0.0
    rest = x[half : len(x) - half] - np.convolve(x, weights, "valid")
    phases = np.arange(len(rest)) % season
    of_season = np.bincount(phases, rest) / np.bincount(phases)
    total, left = np.square(rest - rest.mean()).sum(), np.square(rest - of_season[phases]).sum()
    if not total > len(rest) * (season * np.finfo(x.dtype).eps) ** 2:  # nothing but rounding
        return 0.0
    return float(1 - left / (len(rest) - season) * (len(rest) - 1) / total)


def _is_unsteady(x: Array, lags: tuple[int, ...]) -> bool:
    """Return whether the KPSS test rejects that the differences are stationary around a level."""
    z = successive_differences(x, lags)[-1]
    if not z.size or np.ptp(z) <= 2.0 ** (len(lags) + 2) * np.finfo(x.dtype).eps:  # nothing but rounding
        return False
    z = z - z.mean()
    last = math.floor(3 * math.sqrt(len(z)) / 13)
    products = [z[lag:] @ z[: len(z) - lag] for lag in range(last + 1)]
    long_run = products[0] + 2 * sum((1 - lag / (last + 1)) * products[lag] for lag in range(1, last + 1))
    return bool(np.square(z.cumsum()).sum() > KPSS_CRITICAL * len(z) * long_run)
