"""The estimator that forecasts time series."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from .. import arguments, training
from .._types import Array
from .network import Network
from .sequences import Examples, Scale, Sequences, list_of_sequences, real_array

MAX_ORIGINS = 256  # held-out forecasts of each series from which a prediction interval is computed


class Form(NamedTuple):
    """The form of the caller's series; forecasts have the same form."""

    several: bool  # whether there are several series
    features: bool  # whether each series has an axis of variables
    epsilon: float = float(np.finfo(np.float64).eps)  # of their dtype


class SequenceForecaster(Network):
    """Forecast time series with a recurrent layer and a linear readout.

    After each step of a series, the network predicts the next `horizon` steps. It is trained with Adam on the mean
    squared error over all of these steps. Longer forecasts continue from the network's own forecasts.

    A recurrent network predicts poorly outside the range of its training data. Take differences of a series with a
    trend (``differences=1``) or a season (``differences=12``), so that the values stay in a constant range.

    What never changes is continued exactly, whatever its unit: a constant, and, after differences, a line or a season.
    This holds for each variable of each series of ``fit``. In other series, which are passed to ``predict``, it holds
    for variables that did not change in any of the series of ``fit``.

    A series is an array (T,), or (T, F) with F variables, all of which are forecast. Pass one series as (T,). Pass
    several as (N, T), as (N, T, F) or as a list of arrays of any lengths. With `multivariate`, pass one as (T, F).

    Parameters
    ----------
    cell, hidden_size and all options that are not listed here
        As for :class:`SequenceClassifier`. `standardize` is applied to the differences, with one mean and standard
        deviation for each variable over all series. A mini-batch consists of series, or of windows. The layer runs
        forward only.
    horizon : int, default 1
        Number of steps that the network predicts at once.
    window : int or None, default None
        If a number, each forecast reads this number of steps, from a zero state. If None, the state is carried along
        the whole series.
    differences : int or tuple of int, default ()
        Lags of the differences ``x[t] - x[t - lag]``, applied in sequence before any other processing. Forecasts
        are converted back by inverting the differences.
    multivariate : bool, default False
        Whether a 2-D array is one series (T, F) of F variables. If False, it is N series (N, T).
    bptt_steps : int, default 50
        With ``window=None``, the number of steps between two updates of the parameters, over which gradients are
        back-propagated (:func:`rnnfast.training.truncated_bptt`).
    early_stopping : bool, default True
        Whether to hold out the last part of each series, stop when the score on this held-out set no longer improves,
        and keep the parameters with the best score. The score is minus the mean squared error of the standardized next
        `horizon` steps. :meth:`predict_interval` needs the held-out set.
    validation_fraction : float, default 0.2
        Fraction of each series in the held-out set, between 0 and 1. Parameters are not trained on it, but forecasts
        continue from its end.

    Attributes
    ----------
    series_ : list of ndarray (T_i, F)
        The observed series, which forecasts continue. They are pickled with the forecaster.
    layer_, readout_, mean_, scale_, n_iter_, loss_curve_
        As for :class:`SequenceClassifier`.
    n_features_in_ : int
        F.
    validation_scores_ : list of float or None
        Score on the held-out set after each epoch; None without `early_stopping`.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.sklearn import SequenceForecaster
    >>> months = np.arange(240)
    >>> sales = 0.5 * months + 10 * np.sin(2 * np.pi * months / 12)
    >>> forecaster = SequenceForecaster(differences=12, random_state=0).fit(sales[:204])
    >>> bool(np.abs(forecaster.predict(36) - sales[204:]).max() < 0.5)
    True
    >>> lower, upper = forecaster.predict_interval(12, coverage=0.8)
    >>> lower.shape, bool((lower <= upper).all())
    ((12,), True)
    """

    bidirectional = False  # A forecast cannot read the future.
    _argument = "series"

    def __init__(
        self,
        cell: str = "lstm",
        *,
        leak: float | None = None,
        horizon: int = 1,
        window: int | None = None,
        differences: int | tuple[int, ...] = (),
        multivariate: bool = False,
        bptt_steps: int = 50,
        hidden_size: int = 32,
        num_layers: int = 1,
        dropout: float = 0.0,
        learning_rate: float = 0.01,
        max_epochs: int = 100,
        batch_size: int = 64,
        early_stopping: bool = True,
        validation_fraction: float = 0.2,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        clip: float | None = 1.0,
        standardize: bool = True,
        verbose: int = 0,
        random_state: Any = None,
        dtype: Any = "float32",
    ) -> None:
        self._set_options(locals())

    def _check_options(self) -> None:
        super()._check_options()
        arguments.size("horizon", self.horizon)
        arguments.size("bptt_steps", self.bptt_steps)
        arguments.flag("multivariate", self.multivariate)
        if self.window is not None:
            arguments.size("window", self.window)
        for lag in self._lags():
            arguments.size("each lag in differences", lag)

    def _lags(self) -> tuple[int, ...]:
        lags = self.differences
        return tuple(lags) if isinstance(lags, (tuple, list, np.ndarray)) else (lags,)

    def _structure(self) -> dict[str, Any]:
        return {**super()._structure(), "differences": self._lags()}

    def _pooling(self) -> str:
        return "steps" if self._option("window") is None else "last"

    def _evaluate(self, examples: Examples) -> float:
        squares = np.square(self._outputs(examples.sequences) - examples.targets, dtype=np.float64)
        return -float(np.average(squares, weights=examples.weights))

    def _passes(self, x: Array, lengths: Array) -> Iterator[tuple[slice, Array, Any, Any]]:
        if self._option("window") is not None:
            return super()._passes(x, lengths)
        return training.truncated_bptt(self.layer_, x, self.bptt_steps)

    # Series.

    def _read_series(self, series: Any) -> tuple[list[Array], Form]:
        """Return the series, each (T_i, F), and the form in which the caller passed them."""
        listed = list_of_sequences("series", series)
        options = {"allow_nd": True, "dtype": (np.float64, np.float32, np.float16)}
        members = [real_array("series", x, **options) for x in ([series] if listed is None else listed)]
        epsilon = max(float(np.finfo(x.dtype).eps) for x in members)  # of their own dtype, in which they were rounded
        members = [x.astype(np.float64, copy=False) for x in members]
        if listed is not None:
            form = Form(True, members[0].ndim == 2, epsilon)
        else:
            (array,) = members
            multivariate = array.ndim == 2 and self._option("multivariate")
            form = Form(array.ndim > 1 and not multivariate, array.ndim > 2 or multivariate, epsilon)
            members = list(array) if form.several else [array]
        for x in members:
            if x.ndim != 1 + form.features or not x.size:
                raise ValueError(
                    "series must be one array (T,), several as (N, T), (N, T, F) or a list of (T_i,) or (T_i, F), or, "
                    f"with multivariate=True, one array (T, F), got one of shape {x.shape}"
                )
        checked = [x if form.features else x[:, np.newaxis] for x in members]
        width = self.n_features_in_ if hasattr(self, "layer_") else checked[0].shape[1]
        for number, x in enumerate(checked):
            if x.shape[1] != width:
                raise ValueError(f"series {number} has {x.shape[1]} variables, expected {width}")
        return checked, form

    def _require_trainable(self, series: list[Array], held_out: list[int]) -> None:
        """Raise if a series, without its held-out last steps, is too short to train on."""
        lags, window, horizon = sum(self._option("differences")), self._option("window") or 1, self._option("horizon")
        least = lags + window + horizon
        for number, (x, out) in enumerate(zip(series, held_out, strict=True)):
            if len(x) - out < least:
                raise ValueError(
                    f"series {number} has {len(x)} steps, of which {out} are held out, but training needs at least "
                    f"{least}: {lags} for differences, {window} as input, {horizon} for horizon. (A 2-D array has one "
                    "series in each row, unless multivariate=True)"
                )

    def _require_history(self, series: list[Array]) -> None:
        """Raise if a series is too short to forecast from."""
        least = sum(self._option("differences")) + (self._option("window") or 1)
        for number, x in enumerate(series):
            if len(x) < least:
                raise ValueError(f"series {number} has {len(x)} steps, but a forecast needs at least {least}")

    def _require_form(self, series: list[Array], form: Form) -> None:
        if form.several != self._form[0] or len(series) != len(self.series_):
            raise ValueError(
                f"series must continue the {len(self.series_)} series of fit, in the same form, got {len(series)}"
            )

    def _examples(self, series: list[Array], since: list[int]) -> Examples:
        """Return inputs and, as targets, the next `horizon` steps from step `since` onwards, not standardized."""
        H, lags, window = self._option("horizon"), self._option("differences"), self._option("window")
        inputs, targets, weights = [], [], []
        for x, first in zip(series, since, strict=True):
            z = _differences(x, lags)[-1]
            steps = np.arange(1, len(z))[:, np.newaxis] + np.arange(H)
            counts = (steps < len(z)) & (steps + sum(lags) >= first)
            ahead = z[np.minimum(steps, len(z) - 1)].reshape(len(steps), -1)
            weight = np.repeat(counts, z.shape[1], axis=1).astype(np.float64)
            if window is None:
                inputs.append(z[:-1])
            else:
                rows = np.flatnonzero(counts.any(axis=1) & (np.arange(len(steps)) + 1 >= window))
                inputs.extend(z[row + 1 - window : row + 1] for row in rows)
                ahead, weight = ahead[rows], weight[rows]
            targets.append(ahead)
            weights.append(weight)
        return Examples(Sequences.join(inputs), np.concatenate(targets), np.concatenate(weights))

    def _output_scale(self) -> Scale:
        return self._scale.repeated(self._option("horizon"))

    def _scaled_targets(self, examples: Examples) -> Examples:
        targets = self._output_scale().standardize("series", examples.targets, self.layer_.dtype)
        return examples._replace(targets=targets)

    def _differences(self, series: list[Array], form: Form) -> tuple[list[Array], list[Array]]:
        """Return the differences of each series, and bounds of their errors, which stem from rounding the series."""
        lags = self._option("differences")
        of_each = [_differences(x, lags)[-1] for x in series]
        # A rounded sum or product has an error of at most one unit in the last place. Each difference doubles it.
        factor = 2.0 ** len(lags) * 2 * form.epsilon
        largest = [np.abs(x).max(axis=0) for x in series]
        return of_each, [np.broadcast_to(factor * top, z.shape) for top, z in zip(largest, of_each, strict=True)]

    # Training.

    def _build_for(self, series: list[Array], form: Form) -> None:
        self.n_features_in_ = series[0].shape[1]
        sequences, rounding = map(Sequences.join, self._differences(series, form))
        random, outputs = check_random_state(self.random_state), self._option("horizon") * self.n_features_in_
        self._build(sequences, np.ones(len(sequences.flat)), outputs, random, rounding.flat)
        self._form = form

    def fit(self, series: Any, y: Any = None) -> Self:  # noqa: ARG002
        """Train on one or several series, from fresh parameters.

        Parameters
        ----------
        series : array_like or list of array_like
            In one of the forms of the class's description.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If an option is invalid, or a series is too short or has NaN or infinity. The forecaster is left unchanged.
        Diverged
            If the loss or the parameters are no longer finite. The forecaster is left unchanged.
        """
        self._check_options()
        with self._restored_on_error():
            for name in ("layer_", "_built"):
                self.__dict__.pop(name, None)
            series, form = self._read_series(series)
            out = [max(1, round(self.validation_fraction * len(x))) if self.early_stopping else 0 for x in series]
            self._require_trainable(series, out)
            known = [x[: len(x) - count] for x, count in zip(series, out, strict=True)]
            self._build_for(known, form)
            examples, held_out = self._scaled_targets(self._examples(known, [0] * len(known))), None
            if self.early_stopping:
                held_out = self._scaled_targets(self._examples(series, [len(x) for x in known]))
            self._train(examples, held_out, self.max_epochs)
            self._set_series(series)
            self._held_out = [(len(x), len(whole)) for x, whole in zip(known, series, strict=True)]
        return self

    def partial_fit(self, series: Any, y: Any = None) -> Self:  # noqa: ARG002
        """Append new observations, as :meth:`update` does, and train on them for one epoch with the state of Adam.

        The layer runs over the whole series to get the state, so the cost is proportional to its length. On a
        forecaster that is not fitted, the first call trains on all of `series` without a held-out set. A variable that
        has not changed before gets its standard deviation from this call.

        Parameters
        ----------
        series : array_like or list of array_like
            At least one new step for each series, in the same form as in ``fit``.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            As for ``fit``.
        """
        self._check_options()
        with self._restored_on_error():
            if hasattr(self, "layer_"):
                self._require_structure()
                before = [len(x) for x in self.series_]
                self.update(series)
                whole, rounding = map(Sequences.join, self._differences(self.series_, Form(*self._form)))
                self._set_scale(self._scale.extended(whole.flat, np.ones(len(whole.flat)), rounding.flat))
            else:
                new, form = self._read_series(series)
                before = [0] * len(new)
                self._require_trainable(new, before)
                self._build_for(new, form)
                self._set_series(new)
                self._held_out = [(len(x), len(x)) for x in new]
            self._train(self._scaled_targets(self._examples(self.series_, before)), None, 1)
        return self

    def update(self, series: Any) -> Self:
        """Append new observations to the series, so that forecasts continue from them, without training.

        Parameters
        ----------
        series : array_like or list of array_like
            At least one new step for each series, in the same form as in ``fit``.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the form differs, or `series` has NaN or infinity.
        """
        check_is_fitted(self, "layer_")
        new, form = self._read_series(series)
        self._require_form(new, form)
        self._set_series([np.concatenate(pair) for pair in zip(self.series_, new, strict=True)])
        return self

    def _set_series(self, series: list[Array]) -> None:
        """Set the series that forecasts continue, and their constants, which are None if all variables changed."""
        constants = self._constants_of(series, Form(*self._form))
        # Both attributes are set at once, because a signal handler may raise.
        self.__dict__.update(series_=series, _constants=None if np.isnan(constants).all() else constants)

    def _constants_of(self, series: list[Array], form: Form) -> Array:
        """Return the differences of each variable of each series that never change, and NaN for others: (N, F)."""
        constants = []
        for z, bounds in zip(*self._differences(series, form), strict=True):
            with np.errstate(over="ignore"):
                steady = z.max(axis=0) - z.min(axis=0) <= 2 * bounds[0]
                constants.append(np.where(steady, z[0] + (z - z[0]).mean(axis=0) if steady.any() else 0, np.nan))
        return np.array(constants)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "series_" in state and "_constants" not in state:  # pickled by version 0.1
            self._set_series(self.series_)

    # Forecasts.

    def predict(self, horizon: int | None = None, series: Any = None) -> Array:
        """Forecast the next steps.

        Parameters
        ----------
        horizon : int, optional
            Number of steps; by default the current value of the option `horizon`. The network forecasts them in blocks
            of the horizon that it was trained with.
        series : array_like or list of array_like, optional
            Other series to continue, in one of the forms of the class's description. By default, those of ``fit`` and
            ``update``.

        Returns
        -------
        ndarray of float64
            (horizon,) for one series (T,), (horizon, F) for (T, F), (N, horizon) or (N, horizon, F) for several.

        Raises
        ------
        ValueError, TypeError
            If `horizon` is not a positive integer, or `series` is too short or has a different number of variables.
        """
        check_is_fitted(self, "layer_")
        known, form = (self.series_, Form(*self._form)) if series is None else self._read_series(series)
        self._require_history(known)
        constants, untrained = self._constants, self.scale_ == 0
        if series is not None:
            constants = np.where(untrained, self._constants_of(known, form), np.nan) if untrained.any() else None
        return _in_form(self._forecast(known, _ends(known), self._steps(horizon), constants), form)

    def _steps(self, horizon: Any) -> int:
        """Return the number of steps to forecast."""
        if isinstance(horizon, (list, tuple)) or getattr(horizon, "ndim", None):
            raise TypeError(
                "horizon must be an integer, got an array: the first argument of predict is the number of steps; pass "
                "another series as predict(series=...)"
            )
        return arguments.size("horizon", self.horizon if horizon is None else horizon)

    def predict_interval(self, horizon: int | None = None, coverage: float = 0.9) -> tuple[Array, Array]:
        """Compute prediction intervals: bounds that contain each of the next steps with a given probability.

        Parameters
        ----------
        horizon : int, optional
            As for :meth:`predict`.
        coverage : float, default 0.9
            The probability, between 0 and 1.

        Returns
        -------
        lower, upper : ndarray of float64
            Each has the shape of the result of :meth:`predict`.

        Raises
        ------
        ValueError
            If the held-out set is too small for `horizon` and `coverage`, or there is none.

        Notes
        -----
        The intervals are split-conformal. The network forecasts from at most 256 origins in the held-out part of each
        series. For each step ahead, the half-width of the interval is an order statistic of the n absolute errors of
        all series: the one with rank ``ceil((n + 1) * coverage)``. The coverage would be exact for exchangeable errors.
        Here it is approximate, because the errors of one series are dependent, and because the held-out set was also
        used to select the best epoch. It holds for each step separately, not for all steps jointly.

        Source: J. Lei et al., "Distribution-free predictive inference for regression", 2018.
        """
        check_is_fitted(self, "layer_")
        steps = self._steps(horizon)
        arguments.number("coverage", coverage, below=1, positive=True)
        origins = [_origins(first, last) for first, last in self._held_out]
        count = sum(
            sum(origin + steps <= last for origin in own)
            for own, (_, last) in zip(origins, self._held_out, strict=True)
        )
        if math.ceil((count + 1) * coverage) > count:
            raise ValueError(
                f"the held-out set has {count} forecasts of horizon={steps}, too few for coverage={coverage}: reduce "
                "horizon or coverage, or fit with early_stopping=True and a larger validation_fraction"
            )
        forecasts = self._forecast(self.series_, origins, steps, self._constants)
        truths, observed = [], []
        for x, own, (_, last) in zip(self.series_, origins, self._held_out, strict=True):
            for origin in own:
                ahead = origin + np.arange(steps)
                truths.append(x[np.minimum(ahead, last - 1)])
                observed.append(ahead < last)
        errors, within = np.abs(np.array(truths) - forecasts), np.array(observed)
        radius = np.empty(errors.shape[1:])
        for step in range(steps):
            measured = np.sort(errors[within[:, step], step], axis=0)
            radius[step] = measured[math.ceil((len(measured) + 1) * coverage) - 1]
        center = self._forecast(self.series_, _ends(self.series_), steps, self._constants)
        form = Form(*self._form)
        return _in_form(center - radius, form), _in_form(center + radius, form)

    def score(self, series: Any, y: Any = None) -> float:  # noqa: ARG002
        """Compute minus the mean absolute error of forecasts of the steps that follow the series of ``fit``.

        Parameters
        ----------
        series : array_like or list of array_like
            The true continuation, in the form of the series in ``fit``. For one series, ``TimeSeriesSplit`` yields it.
        y : ignored

        Returns
        -------
        float
            At most 0; higher is better.
        """
        check_is_fitted(self, "layer_")
        truth, form = self._read_series(series)
        self._require_form(truth, form)
        longest = max(map(len, truth))
        forecasts = self._forecast(self.series_, _ends(self.series_), longest, self._constants)
        errors = [np.abs(x - ahead[: len(x)]) for x, ahead in zip(truth, forecasts, strict=True)]
        return -float(np.mean(np.concatenate(errors)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = tags.input_tags.three_d_array = True
        return tags

    def _forecast(self, series: list[Array], origins: list[list[int]], steps: int, constants: Array | None) -> Array:
        """Forecast from each origin (a number of known steps) of each series: (number of origins, steps, F).

        `constants` is the result of `_constants_of`, or None if there are none.
        """
        window, horizon, lags = self._option("window"), self._option("horizon"), self._option("differences")
        # Run the layer up to each origin.
        states, recent = [], []
        tails: list[list[Array]] = [[] for _ in lags]  # for each lag, the last values before each origin
        levels_of_each = [_differences(x, lags) for x in series]
        flat = np.concatenate([levels[-1] for levels in levels_of_each])
        flat = self._scale.standardize("series", flat, self.layer_.dtype)
        shifts = list(itertools.accumulate(lags, initial=0))  # steps that the differences before each lag take
        for levels, own in zip(levels_of_each, origins, strict=True):
            z, flat = flat[: len(levels[-1])], flat[len(levels[-1]) :]
            state, done = None, 0
            for origin in own:
                end = origin - sum(lags)
                begin = done if window is None else end - window
                _, state = self.layer_(z[begin:end, np.newaxis], state if window is None else None)
                done = end
                states.append(state)
                recent.append(z[begin:end])
                for level, lag, tail, before in zip(levels, lags, tails, shifts, strict=False):
                    tail.append(level[origin - before - lag : origin - before])
        state = (
            tuple(np.concatenate(part, axis=1) for part in zip(*states, strict=True))
            if isinstance(states[0], tuple)
            else np.concatenate(states, axis=1)
        )
        # Forecast in blocks of the trained horizon; each block is the input for the next.
        blocks: list[Array] = []
        while True:
            block = self.readout_(self._last_state(state)).reshape(len(recent), horizon, -1)
            blocks.append(block)
            if horizon * len(blocks) >= steps:
                break
            x = block
            if window is not None:
                x = np.concatenate([np.array(recent), *blocks], axis=1)[:, -window:]
                state = None
            _, state = self.layer_(np.ascontiguousarray(x.transpose(1, 0, 2)), state)
        ahead = self._scale.restore(np.concatenate(blocks, axis=1)[:, :steps])
        if constants is not None:
            fixed = np.repeat(constants, [len(own) for own in origins], axis=0)[:, np.newaxis]
            ahead = np.where(np.isnan(fixed), ahead, fixed)
        # Invert the differences in reverse order.
        for lag, tail in zip(reversed(lags), reversed(tails), strict=True):
            known = np.concatenate([np.array(tail), ahead], axis=1)
            for step in range(lag, known.shape[1]):
                known[:, step] += known[:, step - lag]
            ahead = known[:, lag:]
        return ahead


def _ends(series: list[Array]) -> list[list[int]]:
    """Return the end of each series as its only origin."""
    return [[len(x)] for x in series]


def _origins(first: int, last: int) -> list[int]:
    """Return at most MAX_ORIGINS of the origins from `first` to `last` - 1, evenly spaced."""
    return sorted({*np.linspace(first, last - 1, min(MAX_ORIGINS, last - first)).round().astype(int).tolist()})


def _differences(x: Array, lags: tuple[int, ...]) -> list[Array]:
    """Return the series and its successive differences ``x[t] - x[t - lag]``."""
    levels = [x]
    with np.errstate(over="ignore", invalid="ignore"):
        for lag in lags:
            levels.append(levels[-1][lag:] - levels[-1][:-lag])
    if not np.isfinite(levels[-1]).all():
        raise ValueError("series has values that are too large: their differences must be finite")
    return levels


def _in_form(forecasts: Array, form: Form) -> Array:
    """Return forecasts (N, steps, F) without the axes that the caller's series do not have."""
    forecasts = forecasts if form.features else forecasts[..., 0]
    return forecasts if form.several else forecasts[0]
