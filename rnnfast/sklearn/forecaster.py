"""The estimator that forecasts time series."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from .. import arguments, training
from .._types import Array
from .dates import Dates
from .differences import choose_differences, successive_differences
from .network import Network
from .sequences import Examples, Scale, Sequences, list_of_sequences, real_array

MAX_ORIGINS = 256  # held-out forecasts of each series from which intervals and quantiles are computed


class Form(NamedTuple):
    """The form of the caller's series; forecasts have the same form."""

    several: bool  # whether there are several series
    features: bool  # whether each series has an axis of variables
    epsilon: float = float(np.finfo(np.float64).eps)  # of their dtype
    dates: Dates | None = None  # of a pandas Series or DataFrame


class SequenceForecaster(Network):
    """Forecast time series with a recurrent layer and a linear readout.

    After each step of a series, the network predicts the next `horizon` steps. It is trained with Adam on the mean
    squared error over all of these steps. Longer forecasts continue from the network's own forecasts.

    A recurrent network predicts poorly outside the range of its training data. Take differences of a series with a
    trend (``differences=1``) or a season (``differences=12``), so that the values stay in a constant range, or let
    ``differences="auto"`` choose. :meth:`fit`, :meth:`update` and :meth:`predict` warn if the last part of a series
    (`validation_fraction`) has a mean outside the range of the training data.

    What never changes is continued exactly, whatever its unit: a constant, and, after differences, a line or a season.
    This holds for each variable of each series of ``fit``. In other series, which are passed to ``predict``, it holds
    for variables that did not change in any of the series of ``fit``.

    A series is an array (T,), or (T, F) with F variables, all of which are forecast. Pass one series as (T,). Pass
    several as (N, T), as (N, T, F) or as a list of arrays of any lengths. With `multivariate`, pass one as (T, F).

    A pandas Series with a DatetimeIndex or PeriodIndex is one series, and so is a DataFrame with a column for each
    variable. Forecasts are then tables whose dates continue the index, with its frequency or the inferred one. An error
    names missing periods and missing values. Tables in a list are read as arrays.

    Covariates are variables that the network reads but does not forecast: `past` ones are known up to the last step of
    the series, such as the weather, and `future` ones also for the steps to forecast, such as holidays and prices. For
    one series they have shape (T,) or (T, K); for several, pass (N, T), (N, T, K) or a list. The same differences are
    taken of them as of the series, as in a regression with autocorrelated errors. After step t, the network has read
    past covariates up to t and future ones up to ``t + horizon``; beyond the last row given, that row is repeated. With
    past covariates, a forecast has at most `horizon` steps.

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
    differences : int, tuple of int or "auto", default ()
        Lags of the differences ``x[t] - x[t - lag]``, applied in sequence before any other processing. Forecasts
        are converted back by inverting the differences. "auto" chooses among (), 1, `season` and both from the series
        without their held-out part, as :func:`choose_differences` describes.
    season : int, default 1
        With ``differences="auto"``, the period of a possible season, such as 12 for monthly data.
    multivariate : bool, default False
        Whether a 2-D array is one series (T, F) of F variables. If False, it is N series (N, T).
    bptt_steps : int, default 50
        With ``window=None``, the number of steps between two updates of the parameters, over which gradients are
        back-propagated (:func:`rnnfast.training.truncated_bptt`).
    early_stopping : bool, default True
        Whether to hold out the last part of each series, stop when the score on this held-out set no longer improves,
        and keep the parameters with the best score. The score is minus the mean squared error of the standardized next
        `horizon` steps. :meth:`predict_interval` and :meth:`predict_quantiles` need the held-out set.
    validation_fraction : float, default 0.2
        Fraction of each series in the held-out set, between 0 and 1. Parameters are not trained on it, but forecasts
        continue from its end.

    Attributes
    ----------
    series_ : list of ndarray (T_i, F)
        The observed series, which forecasts continue. They are pickled with the forecaster.
    past_, future_ : list of ndarray (T_i, K)
        Their covariates; K is 0 if there are none.
    differences_ : tuple of int
        Lags of the differences.
    layer_, readout_, n_iter_, loss_curve_
        As for :class:`SequenceClassifier`.
    mean_, scale_ : ndarray
        The mean and standard deviation of each input of the layer: the F variables, the past covariates, and the future
        covariates of each of the next `horizon` steps.
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
    _columns_of: dict[str, Any]  # the columns of the covariates, or None if they were no DataFrames

    def __init__(
        self,
        cell: str = "lstm",
        *,
        leak: float | None = None,
        horizon: int = 1,
        window: int | None = None,
        differences: int | tuple[int, ...] | str = (),
        season: int = 1,
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
        for lag in self._given_lags():
            arguments.size("each lag in differences", lag)
        if arguments.size("season", self.season) > 1 and not isinstance(self.differences, str):
            raise ValueError(f"season={self.season} needs differences='auto': use season=1, or season as a lag")

    def _given_lags(self) -> tuple[int, ...]:
        """Return the lags that the option `differences` lists; "auto" lists none."""
        lags = self.differences
        if isinstance(lags, str):
            if lags != "auto":
                raise ValueError(f"differences must be 'auto', an integer or a tuple of integers, got {lags!r}")
            return ()
        return tuple(lags) if isinstance(lags, (tuple, list, np.ndarray)) else (lags,)

    def _lags(self) -> tuple[int, ...]:
        """Return the lags of the network, if there is one."""
        lags: tuple[int, ...] = self.differences_ if hasattr(self, "differences_") else self._given_lags()
        return lags

    def _widths(self) -> tuple[int, int]:
        """Return the number of past and of future covariates."""
        return (self.past_[0].shape[1], self.future_[0].shape[1]) if hasattr(self, "past_") else (0, 0)

    def _structure(self) -> dict[str, Any]:
        lags = self.differences if isinstance(self.differences, str) else self._given_lags()
        return {**super()._structure(), "differences": lags, "season": self.season}

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

    def _read_series(self, series: Any, follows: bool = False) -> tuple[list[Array], Form]:
        """Return the series, each (T_i, F), and the form in which the caller passed them.

        `follows` says whether they must follow those of fit.
        """
        of_fit = Form(*self._form).dates if hasattr(self, "layer_") else None
        dates = Dates.of("series", series, of_fit)
        if of_fit is not None and dates is not None:
            if follows:
                of_fit.after(len(dates.rows)).require("series", series)
            _require_columns("series", series, of_fit.names if of_fit.variables else None)
        listed = list_of_sequences("series", series)
        options = {"allow_nd": True, "dtype": (np.float64, np.float32, np.float16)}
        members = [real_array("series", x, **options) for x in ([series] if listed is None else listed)]
        epsilon = max(float(np.finfo(x.dtype).eps) for x in members)  # of their own dtype, in which they were rounded
        members = [x.astype(np.float64, copy=False) for x in members]
        if listed is not None:
            form = Form(True, members[0].ndim == 2, epsilon)
        else:
            (array,) = members
            multivariate = array.ndim == 2 and (self._option("multivariate") or dates is not None)
            form = Form(array.ndim > 1 and not multivariate, array.ndim > 2 or multivariate, epsilon, dates)
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

    def _read_covariates(
        self, name: str, value: Any, form: Form, lengths: list[int], dates: Dates | None, first: bool = False
    ) -> list[Array]:
        """Return the covariates of each series, (T_i, K), with K = 0 if there are none.

        `lengths` and `dates` are those that they must have, and `first` is True in fit.
        """
        width = 0 if first else self._widths()[name == "future"]
        if value is None and not width:
            return [np.empty((length, 0)) for length in lengths]
        if value is None or not (width or first):
            must, called = ("must", "with") if width else ("cannot", "without")
            raise ValueError(f"{name} {must} be passed, because fit was called {called} it")
        columns = tuple(value.columns) if hasattr(value, "columns") else None
        if first:
            self._columns_of = {**self._columns_of, name: columns}
        else:
            _require_columns(name, value, self._columns_of[name])
        if dates is not None:
            dates.require(name, value)
        members = list(value) if form.several and np.ndim(value) != 0 else [value]
        if len(members) != len(lengths):
            raise ValueError(f"{name} must have covariates for each of {len(lengths)} series, got {len(members)}")
        checked = []
        for number, (member, length) in enumerate(zip(members, lengths, strict=True)):
            x = real_array(name, member, allow_nd=True, dtype=np.float64)
            x = x[:, np.newaxis] if x.ndim == 1 else x
            width = width or (x.shape[1] if x.ndim == 2 else 1)
            if x.shape != (length, width):
                raise ValueError(
                    f"{name} must have a row for each step and a column for each covariate, {(length, width)} for "
                    f"series {number}, got shape {x.shape}"
                )
            checked.append(x)
        return checked

    def _require_trainable(self, series: list[Array], held_out: list[int]) -> None:
        """Raise if a series, without its held-out last steps, is too short to train on."""
        lags, window, horizon = sum(self._lags()), self._option("window") or 1, self._option("horizon")
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
        least = sum(self._lags()) + (self._option("window") or 1)
        for number, x in enumerate(series):
            if len(x) < least:
                raise ValueError(f"series {number} has {len(x)} steps, but a forecast needs at least {least}")

    def _require_form(self, series: list[Array], form: Form) -> None:
        if form.several != self._form[0] or len(series) != len(self.series_):
            raise ValueError(
                f"series must continue the {len(self.series_)} series of fit, in the same form, got {len(series)}"
            )

    def _inputs(self, z: Array, future: Array) -> Array:
        """Return what the network reads at each step, from differences of the series and of its covariates.

        `future` has those of the future covariates, up to the last known step.
        """
        if not future.shape[1]:
            return z
        own = z[:, : z.shape[1] - future.shape[1]]
        return np.concatenate([own, _windows(future, np.arange(1, len(z) + 1), self._option("horizon"))], axis=1)

    def _examples(self, series: list[Array], since: list[int]) -> Examples:
        """Return inputs and, as targets, the next `horizon` steps from step `since` onwards, not standardized.

        The series have their covariates as further columns.
        """
        H, lags, window, (past, known) = self._option("horizon"), self._lags(), self._option("window"), self._widths()
        inputs, targets, weights = [], [], []
        for x, first in zip(series, since, strict=True):
            z = successive_differences(x, lags)[-1]
            F = z.shape[1] - past - known
            read = self._inputs(z, z[:, F + past :])
            steps = np.arange(1, len(z))[:, np.newaxis] + np.arange(H)
            counts = (steps < len(z)) & (steps + sum(lags) >= first)
            ahead = z[np.minimum(steps, len(z) - 1), :F].reshape(len(steps), -1)
            weight = np.repeat(counts, F, axis=1).astype(np.float64)
            if window is None:
                inputs.append(read[:-1])
            else:
                rows = np.flatnonzero(counts.any(axis=1) & (np.arange(len(steps)) + 1 >= window))
                inputs.extend(read[row + 1 - window : row + 1] for row in rows)
                ahead, weight = ahead[rows], weight[rows]
            targets.append(ahead)
            weights.append(weight)
        return Examples(Sequences.join(inputs), np.concatenate(targets), np.concatenate(weights))

    def _target_scale(self) -> Scale:
        """Return the scale of the differences of the variables, without that of the covariates."""
        return Scale(*(part[: self.n_features_in_] for part in self._scale))

    def _output_scale(self) -> Scale:
        return self._target_scale().repeated(self._option("horizon"))

    def _scaled_targets(self, examples: Examples) -> Examples:
        targets = self._output_scale().standardize("series", examples.targets, self.layer_.dtype)
        return examples._replace(targets=targets)

    def _differences(self, series: list[Array], form: Form) -> tuple[list[Array], list[Array]]:
        """Return the differences of each series, and bounds of their errors, which stem from rounding the series."""
        lags = self._lags()
        of_each = [successive_differences(x, lags)[-1] for x in series]
        # A rounded sum or product has an error of at most one unit in the last place. Each difference doubles it.
        factor = 2.0 ** len(lags) * 2 * form.epsilon
        largest = [np.abs(x).max(axis=0) for x in series]
        return of_each, [np.broadcast_to(factor * top, z.shape) for top, z in zip(largest, of_each, strict=True)]

    def _all_inputs(self, series: list[Array], form: Form) -> tuple[Sequences, Array]:
        """Return the inputs at all steps of series with their covariates, and bounds of their rounding errors."""
        first = series[0].shape[1] - self._widths()[1]
        both = self._differences(series, form)
        inputs, bounds = (Sequences.join([self._inputs(z, z[:, first:]) for z in part]) for part in both)
        return inputs, bounds.flat

    def _joined(self) -> list[Array]:
        """Return the series with their covariates as further columns."""
        if not any(self._widths()):
            return self.series_
        return _join(self.series_, self.past_, self.future_)

    # Training.

    def _build_for(self, series: list[Array], form: Form) -> None:
        """Build the network for series with their covariates."""
        sequences, rounding = self._all_inputs(series, form)
        random, outputs = check_random_state(self.random_state), self._option("horizon") * self.n_features_in_
        self._build(sequences, np.ones(len(sequences.flat)), outputs, random, rounding)
        self._range = self._range_of(series)

    def _begin(self, series: Any, past: Any, future: Any) -> tuple[list[Array], Form]:
        """Read the arguments of a first fit and set the attributes that hold them."""
        for name in ("layer_", "_built", "differences_"):
            self.__dict__.pop(name, None)
        self.series_, self._form = self._read_series(series)
        self.n_features_in_ = self.series_[0].shape[1]
        self._columns_of = {}
        lengths = [len(x) for x in self.series_]
        for name, value in (("past", past), ("future", future)):
            own = self._read_covariates(name, value, self._form, lengths, self._form.dates, first=True)
            setattr(self, f"{name}_", own)
        return self.series_, self._form

    def fit(self, series: Any, y: Any = None, *, past: Any = None, future: Any = None) -> Self:  # noqa: ARG002
        """Train on one or several series, from fresh parameters.

        Parameters
        ----------
        series : array_like, list of array_like, Series or DataFrame
            In one of the forms of the class's description.
        y : ignored
        past, future : array_like, list of array_like, Series or DataFrame, optional
            Covariates, with a row for each step of `series`.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If an option is invalid, a series is too short, has NaN or infinity or misses dates, or covariates do not
            have the same steps. The forecaster is left unchanged.
        Diverged
            If the loss or the parameters are no longer finite. The forecaster is left unchanged.
        """
        self._check_options()
        with self._restored_on_error():
            series, form = self._begin(series, past, future)
            ends = [len(x) - max(1, round(self.validation_fraction * len(x))) for x in series]
            starts = [x[:end] for x, end in zip(series, ends, strict=True)]
            whole = self._joined()
            known = [x[:end] for x, end in zip(whole, ends, strict=True)] if self.early_stopping else whole
            self._choose_differences([x[:, : self.n_features_in_] for x in known])
            self._require_trainable(series, [len(x) - len(part) for x, part in zip(series, known, strict=True)])
            self._build_for(known, form)
            self._warn_outside(series, self._range_of(starts))
            examples, held_out = self._scaled_targets(self._examples(known, [0] * len(known))), None
            if self.early_stopping:
                held_out = self._scaled_targets(self._examples(whole, [len(x) for x in known]))
            self._train(examples, held_out, self.max_epochs)
            self._set_series(series, self.past_, self.future_, form)
            self._held_out = [(len(x), len(everything)) for x, everything in zip(known, series, strict=True)]
        return self

    def _choose_differences(self, series: list[Array]) -> None:
        """Set the lags of the differences."""
        lags = self._given_lags()
        if isinstance(self.differences, str):
            columns = [column for x in series if len(x) for column in x.T]
            lags = choose_differences(columns, self.season) if columns else ()
        self.differences_ = lags

    def _range_of(self, series: list[Array]) -> tuple[Array, Array]:
        """Return the smallest and the largest difference of each variable; NaN if the series are too short."""
        lags = self._lags()
        levels = [successive_differences(x[:, : self.n_features_in_], lags)[-1] for x in series if len(x) > sum(lags)]
        z = np.concatenate(levels) if levels else np.full((1, self.n_features_in_), np.nan)
        return z.min(axis=0), z.max(axis=0)

    def _warn_outside(self, series: list[Array], known: tuple[Array, Array]) -> None:
        """Warn if the mean of the last part of a series lies outside the range of the training data."""
        low, high = known
        rounding = 1e-9 * np.maximum(np.abs(low), np.abs(high))
        for x in series:
            z = successive_differences(x, self._lags())[-1]
            recent = z[-max(1, round(self.validation_fraction * len(z))) :]
            mean = (recent / len(recent)).sum(axis=0)
            outside = np.flatnonzero(((mean < low) | (mean > high)) & (high > low + rounding))
            if len(outside):
                first, which = outside[0], "differences" if self._lags() else "values"
                warnings.warn(
                    "series leaves the range of the training data, where a recurrent network forecasts poorly: the "
                    f"mean of the last {self.validation_fraction:.0%} of its {which} is {mean[first]:.4g}, outside "
                    f"{low[first]:.4g} to {high[first]:.4g}. Use differences='auto', or fit again with newer data",
                    UserWarning,
                    stacklevel=3,
                )
                return

    def partial_fit(self, series: Any, y: Any = None, *, past: Any = None, future: Any = None) -> Self:  # noqa: ARG002
        """Append new observations, as :meth:`update` does, and train on them for one epoch with the state of Adam.

        The layer runs over the whole series to get the state, so the cost is proportional to its length. On a
        forecaster that is not fitted, the first call trains on all of `series` without a held-out set, and
        ``differences="auto"`` chooses from it. A variable that has not changed before gets its standard deviation from
        this call.

        Parameters
        ----------
        series : array_like, list of array_like, Series or DataFrame
            At least one new step for each series, in the same form as in ``fit``.
        y : ignored
        past, future : array_like, list of array_like, Series or DataFrame, optional
            Covariates of the new steps, if ``fit`` had any.

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
                self._set_series(*self._extended(series, past, future))
                whole = self._joined()
                inputs, rounding = self._all_inputs(whole, Form(*self._form))
                self._set_scale(self._scale.extended(inputs.flat, np.ones(len(inputs.flat)), rounding))
                self._range = self._range_of(whole)
            else:
                new, form = self._begin(series, past, future)
                before = [0] * len(new)
                self._choose_differences(new)
                self._require_trainable(new, before)
                whole = self._joined()
                self._build_for(whole, form)
                self._set_series(new, self.past_, self.future_, form)
                self._held_out = [(len(x), len(x)) for x in new]
            self._train(self._scaled_targets(self._examples(whole, before)), None, 1)
        return self

    def update(self, series: Any, *, past: Any = None, future: Any = None) -> Self:
        """Append new observations to the series, so that forecasts continue from them, without training.

        Parameters
        ----------
        series : array_like, list of array_like, Series or DataFrame
            At least one new step for each series, in the same form as in ``fit``.
        past, future : array_like, list of array_like, Series or DataFrame, optional
            Covariates of the new steps, if ``fit`` had any.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the form or the covariates differ, dates do not continue those of the series, or an array has NaN or
            infinity.
        """
        check_is_fitted(self, "layer_")
        extended = self._extended(series, past, future)
        self._warn_outside(extended[0], self._range)  # before any change, because a filter can make it an error
        self._set_series(*extended)
        return self

    def _extended(self, series: Any, past: Any, future: Any) -> tuple[list[Array], list[Array], list[Array], Form]:
        """Return the series and their covariates with new steps appended, and their form."""
        new, form = self._read_series(series, follows=True)
        self._require_form(new, form)
        dates, lengths = Form(*self._form).dates, [len(x) for x in new]
        after = None if dates is None else dates.after(lengths[0])
        past = self._read_covariates("past", past, form, lengths, after)
        future = self._read_covariates("future", future, form, lengths, after)
        series, past, future = (
            [np.concatenate(pair) for pair in zip(*both, strict=True)]
            for both in ((self.series_, new), (self.past_, past), (self.future_, future))
        )
        return series, past, future, Form(*self._form)._replace(dates=after)

    def _set_series(self, series: list[Array], past: list[Array], future: list[Array], form: Form) -> None:
        """Set the series that forecasts continue, and their constants, which are None if all variables changed."""
        constants = self._constants_of(series, form)
        # All attributes are set at once, because a signal handler may raise.
        self.__dict__.update(
            series_=series,
            past_=past,
            future_=future,
            _form=form if form.dates is None else form._replace(dates=form.dates.last()),
            _constants=None if np.isnan(constants).all() else constants,
        )

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
        if "series_" in state and "past_" not in state:  # pickled by an older version
            none = [np.empty((len(x), 0)) for x in self.series_]
            self.differences_, self._columns_of = self._option("differences"), {}
            self._range = self._range_of(self.series_)
            self._set_series(self.series_, none, none, Form(*self._form))

    # Forecasts.

    def predict(self, horizon: int | None = None, series: Any = None, *, past: Any = None, future: Any = None) -> Any:
        """Forecast the next steps.

        Parameters
        ----------
        horizon : int, optional
            Number of steps; by default the current value of the option `horizon`. The network forecasts them in blocks
            of the horizon that it was trained with.
        series : array_like, list of array_like, Series or DataFrame, optional
            Other series to continue, in one of the forms of the class's description. By default, those of ``fit`` and
            ``update``.
        past : array_like, list of array_like, Series or DataFrame, optional
            Past covariates of `series`, if ``fit`` had any. Those of ``fit`` and ``update`` are known.
        future : array_like, list of array_like, Series or DataFrame, optional
            Future covariates of the `horizon` steps to forecast, if ``fit`` had any. With `series`, they start at its
            first step.

        Returns
        -------
        ndarray of float64, Series or DataFrame
            (horizon,) for one series (T,), (horizon, F) for (T, F), (N, horizon) or (N, horizon, F) for several. For a
            table with dates, a table with the following dates.

        Raises
        ------
        ValueError, TypeError
            If `horizon` is not a positive integer, or above the trained one with past covariates; or if `series` is too
            short or misses dates, or it or the covariates have the wrong shape.
        """
        check_is_fitted(self, "layer_")
        steps = self._steps(horizon)
        if series is None:
            if past is not None:
                raise ValueError("past needs series: the past covariates of fit and update are known")
            form = Form(*self._form)
            ahead, known = self._ahead(steps, future), self._joined()
            constants = self._constants
        else:
            own, form = self._read_series(series)
            lengths, dates = [len(x) for x in own], form.dates
            reach = None if dates is None else dates.extended(steps)
            past = self._read_covariates("past", past, form, lengths, dates)
            future = self._read_covariates("future", future, form, [n + steps for n in lengths], reach)
            known = _join(own, past, [x[:n] for x, n in zip(future, lengths, strict=True)])
            ahead = [x[n:] for x, n in zip(future, lengths, strict=True)]
            untrained = self._target_scale().deviation == 0
            constants = np.where(untrained, self._constants_of(own, form), np.nan) if untrained.any() else None
        self._require_history(known)
        forecasts = self._forecast(known, _ends(known), steps, constants, ahead)
        if series is not None:
            self._warn_outside(own, self._range)
        return _in_form(forecasts, form)

    def _steps(self, horizon: Any) -> int:
        """Return the number of steps to forecast."""
        if isinstance(horizon, (list, tuple)) or getattr(horizon, "ndim", None):
            raise TypeError(
                "horizon must be an integer, got an array: the first argument of predict is the number of steps; pass "
                "another series as predict(series=...)"
            )
        steps = arguments.size("horizon", self.horizon if horizon is None else horizon)
        trained = self._option("horizon")
        if steps > trained and self._widths()[0]:
            raise ValueError(
                f"with past covariates, which are not known ahead, the network forecasts at most {trained} steps, got "
                f"horizon={steps}: fit with a larger horizon, or without past"
            )
        return steps

    def _ahead(self, steps: int, future: Any) -> list[Array]:
        """Return the future covariates of the next steps of the series of ``fit`` and ``update``."""
        form, lengths = Form(*self._form), [steps] * len(self.series_)
        dates = None if form.dates is None else form.dates.after(steps)
        return self._read_covariates("future", future, form, lengths, dates)

    def predict_interval(
        self, horizon: int | None = None, coverage: float = 0.9, *, future: Any = None
    ) -> tuple[Any, Any]:
        """Compute prediction intervals: bounds that contain each of the next steps with a given probability.

        Parameters
        ----------
        horizon, future
            As for :meth:`predict`.
        coverage : float, default 0.9
            The probability, between 0 and 1.

        Returns
        -------
        lower, upper : ndarray of float64, Series or DataFrame
            Each has the form of the result of :meth:`predict`.

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
        ahead, form = self._ahead(steps, future), Form(*self._form)
        count = self._held_out_count(steps)
        if math.ceil((count + 1) * coverage) > count:
            raise ValueError(_too_few(count, steps, f"coverage={coverage}", "reduce coverage"))
        center, errors = self._errors(steps, ahead)
        sizes = [np.sort(np.abs(own), axis=0) for own in errors]
        radius = np.array([own[math.ceil((len(own) + 1) * coverage) - 1] for own in sizes])
        return _in_form(center - radius, form), _in_form(center + radius, form)

    def predict_quantiles(self, quantiles: Sequence[float], horizon: int | None = None, *, future: Any = None) -> Any:
        """Compute quantiles of each of the next steps.

        Parameters
        ----------
        quantiles : sequence of float
            Probabilities, between 0 and 1.
        horizon, future
            As for :meth:`predict`.

        Returns
        -------
        ndarray of float64 or DataFrame
            The first axis has one element per quantile, each in the form of the result of :meth:`predict`. For a table
            with dates, a DataFrame with a column for each quantile, or for each pair of a variable and a quantile.

        Raises
        ------
        ValueError
            If the held-out set is too small for `horizon` and the quantiles, or there is none.

        Notes
        -----
        To the forecast is added a quantile of its signed errors from the same origins as in :meth:`predict_interval`,
        for each step ahead separately. Of n errors, the one with rank k estimates the quantile ``k / (n + 1)``, and
        others are interpolated: as for intervals, each value would exceed a new exchangeable error with the given
        probability. Unlike intervals, quantiles need not be symmetric about the forecast, and correct its bias.

        Source: R.J. Hyndman and Y. Fan, "Sample quantiles in statistical packages", 1996, definition 6.

        Examples
        --------
        >>> import numpy as np
        >>> from rnnfast.sklearn import SequenceForecaster
        >>> series = np.random.default_rng(0).exponential(size=300)
        >>> forecaster = SequenceForecaster(hidden_size=4, max_epochs=5, random_state=0).fit(series)
        >>> low, median, high = forecaster.predict_quantiles([0.1, 0.5, 0.9], 3)
        >>> low.shape, bool((high - median > median - low).all())
        ((3,), True)
        """
        check_is_fitted(self, "layer_")
        steps, levels = self._steps(horizon), [*quantiles]
        for level in levels:
            arguments.number("each of quantiles", level, below=1, positive=True)
        if not levels:
            raise ValueError("quantiles must have at least one element")
        ahead, form = self._ahead(steps, future), Form(*self._form)
        count = self._held_out_count(steps)
        for level in levels:
            if not 1 <= round((count + 1) * level, 9) <= count:
                raise ValueError(_too_few(count, steps, f"the quantile {level}", "use less extreme quantiles"))
        center, errors = self._errors(steps, ahead)
        offsets = np.array([np.quantile(own, levels, axis=0, method="weibull") for own in errors])  # (steps, Q, F)
        values = center + offsets.swapaxes(0, 1)[:, np.newaxis]
        if form.dates is not None:
            return form.dates.table(values[:, 0], levels)
        return np.array([_in_form(own, form) for own in values])

    def _held_out_count(self, steps: int) -> int:
        """Return the number of held-out forecasts of all steps."""
        parts = [(_origins(first, last), last) for first, last in self._held_out]
        return sum(origin + steps <= last for own, last in parts for origin in own)

    def _errors(self, steps: int, ahead: list[Array]) -> tuple[Array, list[Array]]:
        """Return the forecasts, (N, steps, F), and for each step ahead the errors of held-out forecasts, (n, F)."""
        known = self._joined()
        center = self._forecast(known, _ends(known), steps, self._constants, ahead)
        origins = [_origins(first, last) for first, last in self._held_out]
        forecasts = self._forecast(known, origins, steps, self._constants)
        truths, observed = [], []
        for x, own, (_, last) in zip(self.series_, origins, self._held_out, strict=True):
            for origin in own:
                following = origin + np.arange(steps)
                truths.append(x[np.minimum(following, last - 1)])
                observed.append(following < last)
        errors, within = np.array(truths) - forecasts, np.array(observed)
        return center, [errors[within[:, step], step] for step in range(steps)]

    def score(self, series: Any, y: Any = None, *, future: Any = None) -> float:  # noqa: ARG002
        """Compute minus the mean absolute error of forecasts of the steps that follow the series of ``fit``.

        Unlike R², this score is defined for a single step, and it does not reward a forecast for a trend. Its unit is
        that of the series, so compare scores of the same series only.

        Parameters
        ----------
        series : array_like, list of array_like, Series or DataFrame
            The true continuation, in the form of the series in ``fit``. For one series, ``TimeSeriesSplit`` yields it.
        y : ignored
        future : array_like, list of array_like, Series or DataFrame, optional
            Future covariates of its steps, if ``fit`` had any.

        Returns
        -------
        float
            At most 0; higher is better.
        """
        check_is_fitted(self, "layer_")
        truth, form = self._read_series(series, follows=True)
        self._require_form(truth, form)
        longest = self._steps(max(map(len, truth)))
        known = self._joined()
        forecasts = self._forecast(known, _ends(known), longest, self._constants, self._ahead(longest, future))
        errors = [np.abs(x - ahead[: len(x)]) for x, ahead in zip(truth, forecasts, strict=True)]
        return -float(np.mean(np.concatenate(errors)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = tags.input_tags.three_d_array = True
        return tags

    def _forecast(
        self,
        series: list[Array],
        origins: list[list[int]],
        steps: int,
        constants: Array | None,
        ahead: list[Array] | None = None,
    ) -> Array:
        """Forecast from each origin (a number of known steps) of each series: (number of origins, steps, F).

        The series have their covariates as further columns, and `ahead` has the future covariates of later steps.
        `constants` is the result of `_constants_of`, or None if there are none.
        """
        window, horizon, lags = self._option("window"), self._option("horizon"), self._lags()
        F, first = self.n_features_in_, series[0].shape[1] - self._widths()[1]
        # Run the layer up to each origin.
        states, recent = [], []
        tails: list[list[Array]] = [[] for _ in lags]  # for each lag, the last values before each origin
        levels_of_each = [successive_differences(x, lags) for x in series]
        futures = [x[:, first:] for x in series]
        if ahead is not None:
            futures = [np.concatenate(pair) for pair in zip(futures, ahead, strict=True)]
        futures = [successive_differences(x, lags)[-1] for x in futures]
        flat = np.concatenate(
            [self._inputs(levels[-1], future) for levels, future in zip(levels_of_each, futures, strict=True)]
        )
        flat = self._scale.standardize("series", flat, self.layer_.dtype)
        shifts = list(itertools.accumulate(lags, initial=0))  # steps that the differences before each lag take
        coming = []  # future covariates that the network reads along with its own forecasts
        for levels, future, own in zip(levels_of_each, futures, origins, strict=True):
            z, flat = flat[: len(levels[-1])], flat[len(levels[-1]) :]
            state, done = None, 0
            for origin in own:
                end = origin - sum(lags)
                begin = done if window is None else end - window
                _, state = self.layer_(z[begin:end, np.newaxis], state if window is None else None)
                done = end
                states.append(state)
                recent.append(z[begin:end])
                coming.append(_windows(future, end + 1 + np.arange(steps), horizon))
                for level, lag, tail, before in zip(levels, lags, tails, shifts, strict=False):
                    tail.append(level[origin - before - lag : origin - before, :F])
        state = (
            tuple(np.concatenate(part, axis=1) for part in zip(*states, strict=True))
            if isinstance(states[0], tuple)
            else np.concatenate(states, axis=1)
        )
        covariates = np.array(coming)
        if covariates.size:
            scale = Scale(*(part[-covariates.shape[2] :] for part in self._scale))
            covariates = scale.standardize("future", covariates, self.layer_.dtype)
        # Forecast in blocks of the trained horizon; each block is the input for the next.
        blocks: list[Array] = []
        read = np.array(recent) if window is not None else None
        while True:
            block = self.readout_(self._last_state(state)).reshape(len(recent), horizon, -1)
            blocks.append(block)
            if horizon * len(blocks) >= steps:
                break
            x = block
            if covariates.size:
                x = np.concatenate([block, covariates[:, horizon * (len(blocks) - 1) : horizon * len(blocks)]], axis=2)
            if read is not None:
                x = read = np.concatenate([read, x], axis=1)[:, -window:]
                state = None
            _, state = self.layer_(np.ascontiguousarray(x.transpose(1, 0, 2)), state)
        told = self._target_scale().restore(np.concatenate(blocks, axis=1)[:, :steps])
        if constants is not None:
            fixed = np.repeat(constants, [len(own) for own in origins], axis=0)[:, np.newaxis]
            told = np.where(np.isnan(fixed), told, fixed)
        # Invert the differences in reverse order.
        for lag, tail in zip(reversed(lags), reversed(tails), strict=True):
            known = np.concatenate([np.array(tail), told], axis=1)
            for step in range(lag, known.shape[1]):
                known[:, step] += known[:, step - lag]
            told = known[:, lag:]
        return told


def _ends(series: list[Array]) -> list[list[int]]:
    """Return the end of each series as its only origin."""
    return [[len(x)] for x in series]


def _origins(first: int, last: int) -> list[int]:
    """Return at most MAX_ORIGINS of the origins from `first` to `last` - 1, evenly spaced."""
    return sorted({*np.linspace(first, last - 1, min(MAX_ORIGINS, last - first)).round().astype(int).tolist()})


def _too_few(count: int, steps: int, what: str, remedy: str) -> str:
    return (
        f"the held-out set has {count} forecasts of horizon={steps}, too few for {what}: reduce horizon, {remedy}, or "
        "fit with early_stopping=True and a larger validation_fraction"
    )


def _join(*parts: list[Array]) -> list[Array]:
    """Return the columns of each series of several parts side by side."""
    return [np.concatenate(columns, axis=1) for columns in zip(*parts, strict=True)]


def _windows(future: Array, steps: Array, horizon: int) -> Array:
    """Return the rows of `horizon` steps from each of `steps` side by side; after the last row, it is repeated."""
    if not future.shape[1]:
        return np.empty((len(steps), 0))
    rows = np.minimum(steps[:, np.newaxis] + np.arange(horizon), len(future) - 1)
    return future[rows].reshape(len(steps), horizon * future.shape[1])


def _require_columns(name: str, table: Any, known: Any) -> None:
    """Raise if a table has other columns than in fit."""
    if known is not None and hasattr(table, "columns") and list(table.columns) != list(known):
        raise ValueError(f"{name} has the columns {list(table.columns)}, but those in fit were {list(known)}")


def _in_form(forecasts: Array, form: Form) -> Any:
    """Return forecasts (N, steps, F) in the form of the caller's series."""
    if form.dates is not None:
        return form.dates.table(forecasts[0])
    forecasts = forecasts if form.features else forecasts[..., 0]
    return forecasts if form.several else forecasts[0]
