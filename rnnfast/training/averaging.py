"""Averages of parameters over the steps of a training run."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Mapping

import numpy as np

from .. import _core, arguments
from .._types import Array, Arrays, Parameters
from .arrays import float_arrays, load_state, require_disjoint, require_writeable


class ExponentialMovingAverage:
    """Keep an exponential moving average of parameters, which often generalizes better than the last values.

    Call :meth:`update` after each step of the optimizer. The first update copies the parameters, each later one
    computes ``average += (1 - decay) * (parameter - average)``, as PyTorch's AveragedModel with
    ``get_ema_multi_avg_fn`` does. If a method raises any exception, parameters and averages are those before the call
    or those after it.

    Source: B. Polyak and A. Juditsky, "Acceleration of stochastic approximation by averaging", 1992, with exponential
    weights.

    Parameters
    ----------
    parameters : mapping of str to ndarray, layer, or list of these
        As for the optimizers.
    decay : float, default 0.999
        At least 0 and below 1.

    Raises
    ------
    TypeError
        If `parameters` are not float32 or float64 arrays in one of these forms, or `decay` is not a number.
    ValueError
        If `decay` is out of range, a layer occurs twice, or two parameters share memory.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.training import ExponentialMovingAverage
    >>> parameters = {"weight": np.array([1.0])}
    >>> average = ExponentialMovingAverage(parameters, decay=0.5)
    >>> for value in (1.0, 2.0, 3.0):
    ...     parameters["weight"][:] = value
    ...     average.update()
    >>> with average.applied():
    ...     print(parameters["weight"])
    [2.25]
    >>> print(parameters["weight"])
    [3.]
    """

    def __init__(self, parameters: Parameters, decay: float = 0.999) -> None:
        self._decay = arguments.number("decay", decay, below=1)
        self._own = float_arrays("parameters", parameters)
        require_disjoint("parameters", self._own)
        self._other = {name: array.copy(order="C") for name, array in self._own.items()}  # averages, unless swapped
        self._updates = np.zeros((), np.int64)
        self._swapped = np.zeros((), np.int64)  # an array, so that it changes together with the others

    def __repr__(self) -> str:
        return f"ExponentialMovingAverage(decay={self._decay})  # {self._updates} updates"

    @property
    def parameters(self) -> Mapping[str, Array]:
        """The averages by name, as a read-only mapping."""
        return types.MappingProxyType(self._own if self._swapped else self._other)

    def update(self) -> None:
        """Include the present values of the parameters.

        Raises
        ------
        RuntimeError
            If the averages are in the parameters, inside :meth:`applied` or after :meth:`swap`.
        """
        if self._swapped:
            raise RuntimeError("the parameters hold their averages: call update outside of applied()")
        rest = 1 - self._decay if self._updates else 1.0
        new = [old + (self._own[name] - old) * old.dtype.type(rest) for name, old in self._other.items()]
        _core.assign(
            [*self._other.values(), self._updates], [np.ascontiguousarray(array) for array in (*new, self._updates + 1)]
        )

    def swap(self) -> None:
        """Exchange the values of the parameters and of the averages. A second call exchanges them again.

        Raises
        ------
        ValueError
            If a parameter is read-only because its layer is frozen. Nothing is changed.
        """
        require_writeable("parameters", self._own)
        _core.swap(list(self._own.values()), list(self._other.values()), self._swapped)

    def applied(self) -> contextlib.AbstractContextManager[None]:
        """Put the averages into the parameters for the length of a ``with`` block, to evaluate or save the layers.

        Changes to the parameters inside the block are changes of the averages. The end of the block raises ValueError
        if a layer is frozen, and MemoryError if memory runs out. The averages then remain in the parameters until
        :meth:`swap`.

        Returns
        -------
        context manager

        Raises
        ------
        RuntimeError
            If the averages are in the parameters already.
        ValueError
            If a parameter is read-only because its layer is frozen.
        """
        if self._swapped:
            raise RuntimeError("the parameters hold their averages already: leave the other applied(), or call swap()")
        require_writeable("parameters", self._own)
        # Compiled, so that no exception of a signal handler can keep its end from running.
        return _core.swapped(list(self._own.values()), list(self._other.values()), self._swapped)

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the number of updates and of the averages.

        Returns
        -------
        dict of str to ndarray
            ``n_averaged``, and each average under the name of its parameter after ``module.``, as in PyTorch.
        """
        averages = {f"module.{name}": array.copy() for name, array in self.parameters.items()}
        return {"n_averaged": self._updates.copy(), **averages}

    def load_state_dict(self, arrays: Arrays) -> None:
        """Restore the number of updates and the averages from a `state_dict`.

        Parameters
        ----------
        arrays : mapping of str to ndarray
            From `state_dict`, for parameters of the same names and shapes. The values are copied.

        Raises
        ------
        TypeError
            If `arrays` is not a mapping, an average is not a float32 or float64 array, or ``n_averaged`` is not an
            integer.
        ValueError
            If names or shapes differ, or ``n_averaged`` is negative. Nothing is changed.
        """
        averages = {f"module.{name}": array for name, array in self.parameters.items()}
        load_state(arrays, "n_averaged", self._updates, averages)
