"""Learning-rate schedules: functions from the number of a step, counted from 0, to the learning rate of that step.

A step may be an update or an epoch, whatever the caller counts. Schedules hold no optimizer: assign what they return.

Examples
--------
>>> import numpy as np
>>> from rnnfast.training import SGD, schedules
>>> parameters = {"weight": np.ones(1)}
>>> optimizer = SGD(parameters, lr=0.1)
>>> schedule = schedules.warmup(schedules.cosine(0.1, steps=80), steps=20)
>>> for step in range(100):
...     optimizer.lr = schedule(step)
...     optimizer.step({"weight": 2 * parameters["weight"]})
>>> [round(schedule(step), 4) for step in (0, 20, 60, 99)]
[0.0048, 0.1, 0.05, 0.0]
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .. import arguments

__all__ = ["ReduceOnPlateau", "cosine", "exponential", "step", "warmup"]

Schedule = Callable[[int], float]


def step(lr: float, step_size: int, gamma: float = 0.1) -> Schedule:
    """Multiply the learning rate by `gamma` every `step_size` steps, as PyTorch's StepLR does.

    Parameters
    ----------
    lr : float
        The learning rate of step 0, at least 0.
    step_size : int
        At least 1.
    gamma : float, default 0.1
        At least 0.

    Returns
    -------
    callable
        ``schedule(step)`` is ``lr * gamma ** (step // step_size)``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not a number of this kind.

    Examples
    --------
    >>> from rnnfast.training import schedules
    >>> schedule = schedules.step(1.0, step_size=10, gamma=0.5)
    >>> schedule(9), schedule(10), schedule(25)
    (1.0, 0.5, 0.25)
    """
    lr, gamma = arguments.number("lr", lr), arguments.number("gamma", gamma)
    step_size = arguments.size("step_size", step_size)
    return lambda step: lr * gamma ** (step // step_size)


def exponential(lr: float, gamma: float) -> Schedule:
    """Multiply the learning rate by `gamma` at every step, as PyTorch's ExponentialLR does.

    Parameters
    ----------
    lr : float
        The learning rate of step 0, at least 0.
    gamma : float
        At least 0.

    Returns
    -------
    callable
        ``schedule(step)`` is ``lr * gamma ** step``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not a number of this kind.

    Examples
    --------
    >>> from rnnfast.training import schedules
    >>> schedules.exponential(1.0, gamma=0.5)(3)
    0.125
    """
    return step(lr, 1, gamma)


def cosine(lr: float, steps: int, least: float = 0.0) -> Schedule:
    """Decrease the learning rate along half a period of a cosine.

    It is PyTorch's CosineAnnealingLR up to step `steps`; later steps keep the learning rate `least`.

    Source: I. Loshchilov and F. Hutter, "SGDR: Stochastic gradient descent with warm restarts", ICLR 2017, equation 5.

    Parameters
    ----------
    lr : float
        The learning rate of step 0, at least 0.
    steps : int
        The step that reaches `least`, at least 1.
    least : float, default 0
        At least 0.

    Returns
    -------
    callable
        ``schedule(step)`` is ``least + (lr - least) * (1 + cos(pi * min(step / steps, 1))) / 2``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not a number of this kind.

    Examples
    --------
    >>> from rnnfast.training import schedules
    >>> schedule = schedules.cosine(1.0, steps=100)
    >>> schedule(0), schedule(100), schedule(1000)
    (1.0, 0.0, 0.0)
    """
    lr, least = arguments.number("lr", lr), arguments.number("least", least)
    steps = arguments.size("steps", steps)
    return lambda step: least + (lr - least) * (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2


def warmup(schedule: Schedule | float, steps: int) -> Schedule:
    """Increase the learning rate linearly over the first steps, before another schedule begins.

    It is PyTorch's SequentialLR of ``LinearLR(start_factor=1 / (steps + 1), total_iters=steps)`` and the schedule.

    Parameters
    ----------
    schedule : callable or float
        The schedule that begins after the warm-up, with its step 0, or a constant learning rate.
    steps : int
        The number of steps with a lower learning rate, at least 0.

    Returns
    -------
    callable
        ``schedule(0) * (step + 1) / (steps + 1)`` for the first `steps` steps, then ``schedule(step - steps)``.

    Raises
    ------
    TypeError, ValueError
        If `schedule` is neither callable nor a number that is at least 0, or `steps` is not such an integer.

    Examples
    --------
    >>> from rnnfast.training import schedules
    >>> schedule = schedules.warmup(0.5, steps=4)
    >>> [round(schedule(step), 2) for step in range(6)]
    [0.1, 0.2, 0.3, 0.4, 0.5, 0.5]
    """
    later = schedule if callable(schedule) else exponential(arguments.number("schedule", schedule), 1.0)
    steps = arguments.size("steps", steps, least=0)
    return lambda step: later(0) * (step + 1) / (steps + 1) if step < steps else later(step - steps)


class ReduceOnPlateau:
    """Multiply the learning rate by `factor` when the loss has stopped decreasing.

    Unlike the other schedules it is called with a loss, usually that of the validation data after an epoch, and keeps
    what it has seen. A loss is an improvement if it is below ``best * (1 - threshold)``; NaN is not. The learning rate
    is reduced after more than `patience` losses in a row without improvement. PyTorch's scheduler of this name gives
    the same values, with the exception that it ignores reductions by less than 1e-8.

    Parameters
    ----------
    lr : float
        The initial learning rate, at least 0.
    factor : float, default 0.1
        At least 0 and below 1.
    patience : int, default 10
        At least 0.
    threshold : float, default 1e-4
        The relative improvement that counts, at least 0.
    cooldown : int, default 0
        The number of losses after a reduction that are not counted.
    min_lr : float, default 0
        The learning rate is not reduced below this value.

    Attributes
    ----------
    lr : float
        The current learning rate.

    Raises
    ------
    TypeError, ValueError
        If an argument is not a number of this kind.

    Examples
    --------
    >>> from rnnfast.training import schedules
    >>> plateau = schedules.ReduceOnPlateau(0.1, factor=0.5, patience=1)
    >>> [plateau(loss) for loss in (3.0, 2.0, 2.0, 2.5, 1.0)]
    [0.1, 0.1, 0.1, 0.05, 0.05]
    """

    def __init__(
        self,
        lr: float,
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        self.lr = arguments.number("lr", lr)
        self._factor = arguments.number("factor", factor, below=1)
        self._patience = arguments.size("patience", patience, least=0)
        self._threshold = arguments.number("threshold", threshold)
        self._cooldown = arguments.size("cooldown", cooldown, least=0)
        self._min_lr = arguments.number("min_lr", min_lr)
        self._best = math.inf
        self._bad = 0  # losses in a row without improvement
        self._cooling = 0  # losses that remain of the cooldown

    def __call__(self, loss: float) -> float:
        """Take the next loss, and return the learning rate from now on."""
        loss = arguments.any_number("loss", loss)
        improved = loss < (self._best if math.isinf(self._best) else self._best * (1 - self._threshold))
        if improved:
            self._best = loss
        self._bad = 0 if improved or self._cooling else self._bad + 1
        self._cooling = max(self._cooling - 1, 0)
        if self._bad > self._patience:
            self.lr = min(self.lr, max(self.lr * self._factor, self._min_lr))
            self._bad, self._cooling = 0, self._cooldown
        return self.lr
