"""Gradient clipping and optimizers, which update arrays in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _core, arguments
from .._types import Array, Arrays, Parameters
from .arrays import (
    float_arrays,
    load_state,
    matching,
    require_disjoint,
    require_writeable,
    sum_of_squares,
)


def clip_grad_norm(gradients: Parameters, max_norm: float) -> float:
    """Scale all gradients in place so that their joint L2 norm is at most `max_norm`.

    As in PyTorch, the factor is ``max_norm / (norm + 1e-6)`` where that is below 1. Otherwise nothing is scaled.

    Parameters
    ----------
    gradients : mapping of str to ndarray, Gradients, or list of these
        Writeable arrays of float32 or float64, as for the ``step`` of an optimizer.
    max_norm : float
        At least 0. With ``math.inf``, the norm is computed but nothing is scaled.

    Returns
    -------
    norm : float
        The L2 norm of all elements of all arrays before scaling, computed in float64 without overflow or underflow in
        between. If a gradient is NaN or infinite, so is the norm, and nothing is scaled. Check it with
        ``math.isfinite`` to skip steps with bad gradients. The norm of finite float64 gradients can exceed the largest
        float64; it is then infinite, too, but the gradients are scaled.

    Raises
    ------
    TypeError
        If `gradients` are not float32 or float64 arrays in one of these forms, or `max_norm` is not a number.
    ValueError
        If an array is read-only or has masked elements, two arrays share memory, or `max_norm` is negative. Nothing is
        scaled.
    MemoryError
        If there is not enough memory for the scaled gradients next to the others. Nothing is scaled.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.training import clip_grad_norm
    >>> gradients = {"weight": np.array([3.0, 4.0])}
    >>> clip_grad_norm(gradients, 1.0)
    5.0
    >>> gradients["weight"].round(4)
    array([0.6, 0.8])
    """
    max_norm = arguments.number("max_norm", max_norm)
    arrays = float_arrays("gradients", gradients)
    require_writeable("gradients", arrays)
    require_disjoint("gradients", arrays)
    total, exponent = sum_of_squares(arrays.values())
    root = math.sqrt(total)
    with np.errstate(over="ignore"):
        norm = float(np.ldexp(root, exponent))
    if not math.isfinite(root):
        return norm
    # The factor is a quotient times a power of two: the norm can be too large for float64, and the factor too small.
    (numerator, up), (denominator, down) = math.frexp(max_norm), math.frexp(norm + 1e-6)
    if not math.isfinite(norm):
        denominator, down = math.frexp(root)
        down += exponent
    quotient, power = numerator / denominator, up - down
    factor = float(np.ldexp(quotient, power))
    if factor < 1:
        scaled = [np.empty(array.shape, array.dtype) for array in arrays.values()]
        for array, out in zip(arrays.values(), scaled, strict=True):
            if factor >= np.finfo(array.dtype).tiny:
                np.multiply(array, factor, out=out, casting="same_kind")
            else:  # the factor would lose precision in this dtype
                np.ldexp(np.multiply(array, quotient, dtype=np.float64), power, out=out, casting="same_kind")
        _core.assign(list(arrays.values()), scaled)  # all of them, or none if a signal handler raises before
    return norm


class _Optimizer:
    """Base class of the optimizers: parameters, their moments, and the number of steps.

    A step is taken in compiled code, which allocates nothing and is not interrupted by signal handlers once it has
    begun to write. If `step` or `load_state_dict` raises, because of an invalid argument, lack of memory or a signal
    handler (Ctrl-C), the parameters, the moments and the number of steps are those before the call or those after it.
    """

    _kind: str  # of `_core.optimize`
    _slots: tuple[str, ...]  # the moments that this kind can use, in the order of `_core.optimize`
    _weight_decay = 0.0  # for pickles from before this option

    def __init__(self, parameters: Parameters, lr: float, weight_decay: float, kinds: Sequence[str]) -> None:
        self.lr = arguments.number("lr", lr)
        self._weight_decay = arguments.number("weight_decay", weight_decay)
        self._parameters = float_arrays("parameters", parameters)
        require_disjoint("parameters", self._parameters)
        self._moments: dict[str, Array] = {
            f"{kind}.{name}": np.zeros_like(parameter, order="C")
            for kind in kinds
            for name, parameter in self._parameters.items()
        }
        self._kinds = kinds
        self._steps = np.zeros((), np.int64)

    def _describe(self, **options: Any) -> str:
        shown = {"lr": self.lr, **options, "weight_decay": self._weight_decay}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def _options(self, step: int) -> tuple[float, ...]:
        """Return the options of `_core.optimize` for a step, counted from 1."""
        raise NotImplementedError

    def step(self, gradients: Parameters) -> None:
        """Update all parameters in place.

        Parameters
        ----------
        gradients : mapping of str to ndarray, Gradients, or list of these
            Arrays of float32 or float64 with the names and shapes of the parameters: what ``layer.backward`` returns,
            or its ``parameters``. For a list of layers, a list in the same order, or one mapping with names such as
            ``"0.weight"``. They are not modified.

        Raises
        ------
        TypeError
            If `gradients` are not float32 or float64 arrays in one of these forms.
        ValueError
            If names or shapes differ from those of the parameters, two gradients share memory, a parameter is read-only
            because its layer is frozen, or `lr` is negative or not finite. Nothing is changed.
        MemoryError
            If there is not enough memory. Nothing is changed.
        """
        own = self._parameters
        arguments.number("lr", self.lr, below=math.inf)
        arrays = matching("gradients", gradients, {name: array.shape for name, array in own.items()})
        require_disjoint("gradients", arrays)
        require_writeable("parameters", own)
        _core.optimize(
            self._kind,
            list(own.values()),
            [np.ascontiguousarray(arrays[name], array.dtype) for name, array in own.items()],
            [[self._moments[f"{kind}.{name}"] for name in own] if kind in self._kinds else [] for kind in self._slots],
            self._steps,
            self._options(int(self._steps) + 1),
        )

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the step count and the moments as a flat dict of arrays.

        Together with the parameters, this is what a later run needs to resume training exactly. `lr` and the other
        options are not included: pass them to the constructor again.

        Returns
        -------
        dict of str to ndarray
            ``step``, the number of steps taken, and each moment under PyTorch's name for it followed by the name of
            the parameter, such as ``exp_avg.weight_ih_l0``.
        """
        return {"step": self._steps.copy(), **{name: moment.copy() for name, moment in self._moments.items()}}

    def load_state_dict(self, arrays: Arrays) -> None:
        """Restore the step count and the moments from a `state_dict`.

        Parameters
        ----------
        arrays : mapping of str to ndarray
            From `state_dict` of an optimizer of the same class, for parameters of the same names and shapes. The
            values are copied.

        Raises
        ------
        TypeError
            If `arrays` is not a mapping, a moment is not a float32 or float64 array, or ``step`` is not an integer.
        ValueError
            If names or shapes differ, or ``step`` is negative. The optimizer is left unchanged.
        """
        load_state(arrays, "step", self._steps, self._moments)


class SGD(_Optimizer):
    """Stochastic gradient descent with momentum.

    A step computes::

        gradient += weight_decay * parameter
        buffer = momentum * buffer + gradient
        parameter -= lr * buffer

    With `nesterov`, the last line is ``parameter -= lr * (gradient + momentum * buffer)``.

    Parameters
    ----------
    parameters : mapping of str to ndarray, layer, or list of these
        Arrays of float32 or float64, which are updated in place. A layer or model is any object whose attribute
        ``parameters`` is such a mapping. In a list, a name starts with the index of its layer: ``"0.weight"``.
    lr : float
        The learning rate, at least 0. It is a plain attribute and can be changed between steps.
    momentum : float, default 0
        At least 0 and below 1. With 0, no buffer is allocated.
    weight_decay : float, default 0
        Coefficient of the L2 penalty, at least 0.
    nesterov : bool, default False
        Use Nesterov's momentum, which must then be above 0.

    Raises
    ------
    TypeError
        If `parameters` are not float32 or float64 arrays in one of these forms, or an option is not a number.
    ValueError
        If an option is out of range, a layer occurs twice, or two parameters share memory.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.training import SGD
    >>> parameters = {"weight": np.array([1.0, 2.0])}
    >>> SGD(parameters, lr=0.5).step({"weight": np.array([2.0, 0.0])})
    >>> parameters["weight"]
    array([0., 2.])
    """

    _kind = "sgd"
    _slots = ("momentum_buffer",)
    _nesterov = False

    def __init__(
        self,
        parameters: Parameters,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        self._momentum = arguments.number("momentum", momentum, below=1)
        self._nesterov = arguments.flag("nesterov", nesterov)
        if self._nesterov and not self._momentum:
            raise ValueError("nesterov=True needs a momentum above 0, got momentum=0")
        super().__init__(parameters, lr, weight_decay, ["momentum_buffer"] if self._momentum else [])

    def __repr__(self) -> str:
        return self._describe(momentum=self._momentum, nesterov=self._nesterov)

    def _options(self, step: int) -> tuple[float, ...]:  # noqa: ARG002
        return self._momentum, self.lr, self._weight_decay, self._nesterov


class Adam(_Optimizer):
    """Adam: steps scaled by running averages of the gradient and of its square.

    At step t, counted from 1::

        gradient += weight_decay * parameter
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        parameter -= lr * m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + eps)

    If the square of a gradient overflows the dtype, v becomes infinite and the parameter element no longer
    changes, as in PyTorch; clip such gradients.

    Source: D. Kingma and J. Ba, "Adam: A method for stochastic optimization", ICLR 2015, algorithm 1.

    Parameters
    ----------
    parameters : mapping of str to ndarray, layer, or list of these
        As for :class:`SGD`. For each array, Adam allocates two more of its size.
    lr : float, default 0.001
        The learning rate, at least 0. It is a plain attribute and can be changed between steps.
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the two averages, each at least 0 and below 1.
    eps : float, default 1e-8
        Added to the denominator; at least 0.
    weight_decay : float, default 0
        Coefficient of the L2 penalty, at least 0. :class:`AdamW` decays parameters apart from the averages.

    Raises
    ------
    TypeError
        If `parameters` are not float32 or float64 arrays in one of these forms, `betas` is not a pair, or an option is
        not a number.
    ValueError
        If an option is out of range, a layer occurs twice, or two parameters share memory.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.training import Adam
    >>> parameters = {"weight": np.array([1.0, 2.0])}
    >>> Adam(parameters, lr=0.5).step({"weight": np.array([2.0, 0.0])})
    >>> parameters["weight"].round(6)
    array([0.5, 2. ])
    """

    _kind = "adam"
    _slots = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        try:
            beta1, beta2 = betas
        except (TypeError, ValueError):
            raise TypeError(f"betas must be a pair of numbers, got {betas!r}") from None
        self._betas = arguments.number("betas[0]", beta1, below=1), arguments.number("betas[1]", beta2, below=1)
        self._eps = arguments.number("eps", eps)
        super().__init__(parameters, lr, weight_decay, self._slots)

    def __repr__(self) -> str:
        return self._describe(betas=self._betas, eps=self._eps)

    def _options(self, step: int) -> tuple[float, ...]:
        beta1, beta2 = self._betas
        correction1, correction2 = 1 - beta1**step, math.sqrt(1 - beta2**step)
        # Both bias corrections are combined into one factor of the quotient, which requires scaling eps.
        scales = self._eps * correction2, self.lr * correction2 / correction1
        return beta1, 1 - beta1, beta2, 1 - beta2, *scales, *self._decay()

    def _decay(self) -> tuple[float, float]:
        """Return the coefficient of the L2 penalty and the factor of the parameter."""
        return self._weight_decay, 1.0


class AdamW(Adam):
    """Adam with decoupled weight decay.

    A step is that of :class:`Adam` without an L2 penalty, after ``parameter *= 1 - lr * weight_decay``. Unlike the
    penalty, this decay is not scaled by the averages.

    Source: I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2.

    Parameters
    ----------
    parameters, lr, betas, eps
        As for :class:`Adam`.
    weight_decay : float, default 0.01
        At least 0.

    Raises
    ------
    TypeError, ValueError
        As for :class:`Adam`.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.training import AdamW
    >>> parameters = {"weight": np.array([1.0, 2.0])}
    >>> AdamW(parameters, lr=0.5, weight_decay=0.2).step({"weight": np.array([2.0, 0.0])})
    >>> parameters["weight"].round(6)
    array([0.4, 1.8])
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def _decay(self) -> tuple[float, float]:
        return 0.0, 1 - self.lr * self._weight_decay


class RMSprop(_Optimizer):
    """RMSprop: steps scaled by a running average of the square of the gradient.

    A step computes::

        gradient += weight_decay * parameter
        v = alpha * v + (1 - alpha) * gradient**2
        buffer = momentum * buffer + gradient / (sqrt(v) + eps)
        parameter -= lr * buffer

    With `centered`, sqrt(v - m**2) replaces sqrt(v), where m is the running average of the gradient. Where rounding
    makes this variance negative, it is taken as 0.

    Source: T. Tieleman and G. Hinton, "Lecture 6.5 - RMSProp", Coursera, 2012; `centered`: A. Graves, "Generating
    sequences with recurrent neural networks", 2013, equations 38 to 45, with PyTorch's place of `eps`.

    Parameters
    ----------
    parameters : mapping of str to ndarray, layer, or list of these
        As for :class:`SGD`. For each array, RMSprop allocates one more of its size, one with `momentum` and one with
        `centered`.
    lr : float, default 0.01
        The learning rate, at least 0. It is a plain attribute and can be changed between steps.
    alpha : float, default 0.99
        Decay rate of the averages, at least 0 and below 1.
    eps : float, default 1e-8
        Added to the denominator; at least 0.
    weight_decay : float, default 0
        Coefficient of the L2 penalty, at least 0.
    momentum : float, default 0
        At least 0 and below 1.
    centered : bool, default False
        Divide by the standard deviation of the gradient.

    Raises
    ------
    TypeError
        If `parameters` are not float32 or float64 arrays in one of these forms, or an option is not a number.
    ValueError
        If an option is out of range, a layer occurs twice, or two parameters share memory.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.training import RMSprop
    >>> parameters = {"weight": np.array([1.0, 2.0])}
    >>> RMSprop(parameters, lr=0.05).step({"weight": np.array([2.0, 0.0])})
    >>> parameters["weight"].round(6)
    array([0.5, 2. ])
    """

    _kind = "rmsprop"
    _slots = ("square_avg", "grad_avg", "momentum_buffer")

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        self._alpha = arguments.number("alpha", alpha, below=1)
        self._eps = arguments.number("eps", eps)
        self._momentum = arguments.number("momentum", momentum, below=1)
        self._centered = arguments.flag("centered", centered)
        used = True, self._centered, self._momentum
        kinds = [kind for kind, use in zip(self._slots, used, strict=True) if use]
        super().__init__(parameters, lr, weight_decay, kinds)

    def __repr__(self) -> str:
        return self._describe(alpha=self._alpha, eps=self._eps, momentum=self._momentum, centered=self._centered)

    def _options(self, step: int) -> tuple[float, ...]:  # noqa: ARG002
        return self._alpha, 1 - self._alpha, self._eps, self._momentum, self.lr, self._weight_decay
