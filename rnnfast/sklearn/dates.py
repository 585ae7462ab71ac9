"""Dates of pandas' tables: their frequency, the dates that follow, and forecasts as tables.

pandas is not imported: what it has made shows its module.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from .._types import Array

INDICES = ("DatetimeIndex", "PeriodIndex")
NAMED = 3  # missing dates that an error names
WINDOWS = 100  # parts of an irregular index in which its frequency is searched


def index_of(table: Any) -> Any:
    """Return the index of a Series or DataFrame whose rows have dates, or None for anything else."""
    index = getattr(table, "index", None)
    return index if hasattr(table, "to_numpy") and type(index).__name__ in INDICES else None


class Dates(NamedTuple):
    """The dates and names of a series, and the tables that continue it."""

    rows: Any  # an index, of which an estimator keeps the last element
    frequency: Any
    names: Any  # the name of a Series or the columns of a DataFrame
    variables: bool  # whether it was a DataFrame

    @classmethod
    def of(cls, name: str, table: Any, known: Dates | None = None) -> Dates | None:
        """Return the dates of a table, or None if it has none. `known` has the frequency, if the table is too short.

        Raise if a period is missing or has no value.
        """
        index = index_of(table)
        if index is None or not len(index):
            return None
        frequency = index.freq or index.inferred_freq if type(index).__name__ == INDICES[0] else index.freq
        if frequency is None and known is not None:
            frequency = known.frequency
        _require_regular(name, index, frequency)
        absent = np.asarray(table.isna()).reshape(len(table), -1).any(axis=1)
        if absent.any():
            raise ValueError(
                f"{name} contains NaN at {_named(index[absent])}: fill them, for example with {name}.interpolate()"
            )
        variables = table.ndim == 2
        return cls(index, frequency or index.freq, table.columns if variables else table.name, variables)

    def after(self, steps: int) -> Dates:
        """Return the dates of the steps that follow."""
        return self._replace(rows=_range(self.rows, self.frequency, self.rows[-1], periods=steps + 1)[1:])

    def extended(self, steps: int) -> Dates:
        """Return the dates and those of the steps that follow."""
        return self._replace(rows=self.rows.append(self.after(steps).rows))

    def last(self) -> Dates:
        """Return the last date alone."""
        return self._replace(rows=self.rows[-1:])

    def require(self, name: str, table: Any) -> None:
        """Raise if a table with dates has others than these."""
        index = index_of(table)
        if index is None or index.equals(self.rows):
            return
        for expected, found in zip(self.rows, index, strict=False):
            if expected != found:
                raise ValueError(f"{name} has the date {_text(found)} where {_text(expected)} was expected")

    def table(self, values: Array, quantiles: list[float] | None = None) -> Any:
        """Return forecasts (steps, F), or (Q, steps, F) of each quantile, as a table that continues the series."""
        pandas, index = sys.modules["pandas"], self.after(values.shape[-2]).rows
        if quantiles is None:
            if self.variables:
                return pandas.DataFrame(values, index, self.names)
            return pandas.Series(values[:, 0], index, name=self.names)
        flat = values.transpose(1, 2, 0).reshape(len(index), -1)
        columns = pandas.MultiIndex.from_product([self.names, quantiles]) if self.variables else quantiles
        return pandas.DataFrame(flat, index, columns)


def _range(index: Any, frequency: Any, *bounds: Any, **options: Any) -> Any:
    """Return a regular index of the type of another."""
    pandas = sys.modules["pandas"]
    make = pandas.date_range if type(index).__name__ == INDICES[0] else pandas.period_range
    return make(*bounds, freq=frequency, name=index.name, **options)


def _require_regular(name: str, index: Any, frequency: Any) -> None:
    """Raise if dates do not increase, or if a period is missing between the first and the last."""
    wrong = np.flatnonzero(~(index[1:] > index[:-1]))
    if len(wrong):
        before, after = index[wrong[0]], index[wrong[0] + 1]
        raise ValueError(
            f"{name} must have increasing dates, but {_text(after)} follows {_text(before)}: use {name}.sort_index(), "
            "and keep one value for each date"
        )
    frequency = frequency or _frequent(index)
    grid = index if frequency is None else _range(index, frequency, index[0], index[-1])
    beside = index.difference(grid)
    if frequency is None or 2 * len(beside) > len(index):
        raise ValueError(
            f"{name} must have dates of a regular frequency, which cannot be inferred from {_named(index)}: use "
            f"periods, for example {name}.to_period('M'), or aggregate them, for example {name}.resample('D').mean()"
        )
    if len(beside):
        raise ValueError(
            f"{name} must have dates of a regular frequency, but most have {str(frequency)!r} and not "
            f"{_named(beside)}: aggregate them, for example with {name}.resample({str(frequency)!r}).mean()"
        )
    missing = grid.difference(index)
    if len(missing):
        fill = f"{name}.asfreq({str(frequency)!r})"
        if type(index).__name__ != INDICES[0]:
            fill = f"{name}.reindex(pandas.period_range({name}.index[0], {name}.index[-1]))"
        raise ValueError(
            f"{name} has no row for {_named(missing)}: add them, for example with {fill}.interpolate(), or resample it"
        )


def _frequent(index: Any) -> Any:
    """Return the frequency of most parts of an irregular index, or None."""
    for width in (8, 3):  # 8 business days include a weekend
        starts = range(0, len(index) - width + 1, max(1, len(index) // WINDOWS))
        found = Counter(filter(None, (index[start : start + width].inferred_freq for start in starts)))
        if found:
            return found.most_common(1)[0][0]
    return None


def _text(date: Any) -> str:
    return str(date).removesuffix(" 00:00:00")


def _named(dates: Any) -> str:
    more = len(dates) - NAMED
    return ", ".join(map(_text, dates[:NAMED])) + (f" and {more} more" if more > 0 else "")
