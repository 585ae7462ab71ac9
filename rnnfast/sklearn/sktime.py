"""SktimeForecaster: rnnfast's forecaster in sktime's pipelines, tuning and evaluation.

It needs sktime 1.0 or newer, and is imported on request only.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import clone

from . import SequenceForecaster

try:
    import pandas as pd
    from sktime.forecasting.base import BaseForecaster, ForecastingHorizon
except ImportError as error:
    raise ImportError("rnnfast.sklearn.sktime needs sktime 1.0 or newer: pip install 'rnnfast[sktime]'") from error

from .._types import Array

__all__ = ["SktimeForecaster"]


class SktimeForecaster(BaseForecaster):
    """Forecast time series in sktime with a :class:`~rnnfast.sklearn.SequenceForecaster`.

    One network forecasts all columns of y. X has the future covariates, with a row for every step up to the last of the
    horizon. Quantiles and intervals are those of ``SequenceForecaster.predict_quantiles``. ``update`` appends new steps
    and, with ``update_params=True``, trains on them for one epoch. A panel or hierarchy of series gets a network for
    each of them.

    Parameters
    ----------
    estimator : SequenceForecaster or None, default None
        The forecaster, of which ``fit`` trains a copy with ``multivariate=True``. None means one with default options.

    Attributes
    ----------
    estimator_ : SequenceForecaster
        The trained forecaster.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from rnnfast.sklearn import SequenceForecaster
    >>> from rnnfast.sklearn.sktime import SktimeForecaster
    >>> months = pd.period_range("2010-01", periods=120, freq="M")
    >>> sales = pd.Series(np.arange(120) + 10 * np.sin(np.arange(120) * np.pi / 6), months)
    >>> forecaster = SktimeForecaster(SequenceForecaster(differences=12, random_state=0)).fit(sales[:108])
    >>> bool((forecaster.predict(fh=range(1, 13)) - sales[108:]).abs().max() < 0.5)
    True
    """

    _tags = {  # noqa: RUF012 (sktime's convention)
        "authors": "the rnnfast developers",
        "y_inner_mtype": "pd.DataFrame",
        "X_inner_mtype": "pd.DataFrame",
        "capability:multivariate": True,
        "capability:exogenous": True,
        "capability:non_contiguous_X": False,
        "capability:categorical_in_X": False,
        "capability:insample": False,
        "capability:pred_int": True,
        "capability:pred_int:insample": False,
        "capability:update": True,
        "requires-fh-in-fit": False,
    }

    def __init__(self, estimator: SequenceForecaster | None = None) -> None:
        self.estimator = estimator
        super().__init__()

    def _fit(self, y: Any, X: Any, fh: Any) -> Self:  # noqa: ARG002
        estimator = SequenceForecaster() if self.estimator is None else clone(self.estimator)
        self.estimator_ = estimator.set_params(multivariate=True).fit(y.to_numpy(), future=_values(X))
        self._end = y.index[[-1]]
        return self

    def _update(self, y: Any, X: Any = None, update_params: bool = True) -> Self:
        new = y.index > self._end[0]
        if new.any():
            steps = _steps(ForecastingHorizon(y.index[new], is_relative=False), self._end)
            if steps[-1] != len(steps):
                first = ", ".join(map(str, y.index[new][:3]))
                raise ValueError(f"y must continue after {self._end[0]} without a gap, but has {first}")
            extend = self.estimator_.partial_fit if update_params else self.estimator_.update
            extend(y[new].to_numpy(), future=_values(None if X is None else X.loc[y.index[new]]))
            self._end = y.index[[-1]]
        return self

    def _predict(self, fh: Any, X: Any) -> Any:
        steps, future = self._ahead(fh, X)
        forecasts = self.estimator_.predict(int(steps[-1]), future=future)[steps - 1]
        return pd.DataFrame(forecasts, fh.to_absolute_index(self.cutoff), self._get_columns())

    def _predict_quantiles(self, fh: Any, X: Any, alpha: list[float]) -> Any:
        steps, future = self._ahead(fh, X)
        values = self.estimator_.predict_quantiles(alpha, int(steps[-1]), future=future)[:, steps - 1]
        columns = self._get_columns("predict_quantiles", alpha=alpha)
        flat = values.transpose(1, 2, 0).reshape(len(steps), -1)
        return pd.DataFrame(flat, fh.to_absolute_index(self.cutoff), columns)

    def _ahead(self, fh: Any, X: Any) -> tuple[Array, Array | None]:
        """Return the steps of a horizon, and the covariates of all steps up to the last."""
        steps = _steps(fh, self.cutoff)
        if X is None:
            return steps, None
        rows = ForecastingHorizon(np.arange(1, steps[-1] + 1)).to_absolute_index(self.cutoff)
        missing = rows.difference(X.index)
        if len(missing):
            raise ValueError(f"X must have a row for every step up to the last of fh, but has none for {missing[0]}")
        return steps, _values(X.loc[rows])

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:  # noqa: ARG003
        """Return options for sktime's tests: small networks, and a held-out set that suffices for quantiles.

        Parameters
        ----------
        parameter_set : str
            Ignored.

        Returns
        -------
        list of dict
        """
        # Of the shortest series, 13 of 15 and 20 of 22 steps are held out: the latter have a quantile of 0.05.
        small: dict[str, Any] = {"hidden_size": 2, "max_epochs": 1, "validation_fraction": 0.89, "random_state": 0}
        return [{"estimator": SequenceForecaster(**small)}, {"estimator": SequenceForecaster("gru", window=1, **small)}]


def _steps(fh: Any, cutoff: Any) -> Array:
    """Return the steps of a horizon as integers, 1 for the first after the cutoff."""
    steps: Array = np.asarray(fh.to_relative(cutoff).to_pandas()).astype(int)
    return steps


def _values(X: Any) -> Array | None:
    values: Array | None = None if X is None else X.to_numpy()
    return values
