"""Gradient clipping and optimizers, which update arrays in place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .. import _core, arguments
from .._types import Array, Arrays
from .arrays import float_arrays, require_match, require_writeable, sum_of_squares


def clip_grad_norm(gradients: Arrays, max_norm: float) -> float:
    """Scale all gradients in place so that their joint L2 norm is at most `max_norm`.

    As in PyTorch, the factor is ``max_norm / (norm + 1e-6)`` where that is below 1. Otherwise nothing is scaled.

    Parameters
    ----------
    gradients : mapping of str to ndarray
        Writeable arrays of float32 or float64.
    max_norm : float
        At least 0. With ``math.inf``, the norm is computed but nothing is scaled.

    Returns
    -------
    norm : float
        The L2 norm of all elements of all arrays before scaling, computed in float64 without overflow or underflow. If
        a gradient is NaN or infinite, so is the norm, and nothing is scaled. Check it with ``math.isfinite`` to skip
        steps with bad gradients.

    Raises
    ------
    TypeError
        If `gradients` is not a mapping to float32 or float64 arrays, or `max_norm` is not a number.
    ValueError
        If an array is read-only or has masked elements, or `max_norm` is negative. Nothing is scaled.
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
    total, exponent = sum_of_squares(arrays.values())
    root = math.sqrt(total)
    with np.errstate(over="ignore"):
        norm = float(np.ldexp(root, exponent))
    # The norm of finite gradients can be too large for float64, unlike the factor.
    factor = max_norm / (norm + 1e-6) if math.isfinite(norm) else math.ldexp(max_norm / root, -exponent)
    if factor < 1 and math.isfinite(root):
        scaled = [np.empty(array.shape, array.dtype) for array in arrays.values()]
        for array, out in zip(arrays.values(), scaled, strict=True):
            # A factor below the smallest normal number of float32 would be inaccurate in it.
            dtype = array.dtype if factor >= np.finfo(array.dtype).tiny else np.float64
            np.multiply(array, factor, out=out, dtype=dtype, casting="same_kind")
        _core.assign(list(arrays.values()), scaled)  # all of them, or none if a signal handler raises before
    return norm


class _Optimizer:
    """Base class of the optimizers: parameters, their moments, and the number of steps.

    A step is taken in compiled code, which allocates nothing and is not interrupted by signal handlers once it has
    begun to write. If `step` or `load_state_dict` raises, because of an invalid argument, lack of memory or a signal
    handler (Ctrl-C), the parameters, the moments and the number of steps are those before the call or those after it.
    """

    def __init__(self, parameters: Arrays, lr: float, kinds: Sequence[str]) -> None:
        self.lr = arguments.number("lr", lr)
        self._parameters = float_arrays("parameters", parameters)
        self._moments: dict[str, Array] = {
            f"{kind}.{name}": np.zeros_like(parameter, order="C")
            for kind in kinds
            for name, parameter in self._parameters.items()
        }
        self._kinds = kinds
        self._steps = np.zeros((), np.int64)

    def _options(self, step: int) -> tuple[float, ...]:
        """Return the options of `_core.optimize` for a step, counted from 1."""
        raise NotImplementedError

    def step(self, gradients: Arrays) -> None:
        """Update all parameters in place.

        Parameters
        ----------
        gradients : mapping of str to ndarray
            Arrays of float32 or float64 with the names and shapes of the parameters. They are not modified.

        Raises
        ------
        TypeError
            If `gradients` is not a mapping to float32 or float64 arrays.
        ValueError
            If names or shapes differ from those of the parameters, or a parameter is read-only because its layer is
            frozen. Nothing is changed.
        MemoryError
            If there is not enough memory. Nothing is changed.
        """
        gradients = float_arrays("gradients", gradients)
        require_match("gradients", gradients, {name: array.shape for name, array in self._parameters.items()})
        require_writeable("parameters", self._parameters)
        own = self._parameters
        _core.optimize(
            list(own.values()),
            [np.ascontiguousarray(gradients[name], array.dtype) for name, array in own.items()],
            [[self._moments[f"{kind}.{name}"] for name in own] for kind in self._kinds],
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
        if not isinstance(arrays, Mapping):
            raise TypeError(f"arrays must be a mapping from names to arrays, got a {type(arrays).__name__}")
        given = {name: arguments.array(f"arrays[{name!r}]", array) for name, array in arrays.items()}
        require_match("arrays", given, {"step": (), **{name: moment.shape for name, moment in self._moments.items()}})
        step = given.pop("step")
        if step.dtype.kind not in "iu":
            raise TypeError(f"arrays['step'] must be an integer, got dtype {step.dtype}")
        if step < 0:
            raise ValueError(f"arrays['step'] must be at least 0, got {step}")
        float_arrays("arrays", given)
        moments = [np.array(given[name], moment.dtype, order="C") for name, moment in self._moments.items()]
        _core.assign([self._steps, *self._moments.values()], [step.astype(np.int64), *moments])


class SGD(_Optimizer):
    """Stochastic gradient descent with momentum.

    A step computes ``buffer = momentum * buffer + gradient`` and ``parameter -= lr * buffer``.

    Parameters
    ----------
    parameters : mapping of str to ndarray
        Arrays of float32 or float64, which are updated in place.
    lr : float
        The learning rate, at least 0. It is a plain attribute and can be changed between steps.
    momentum : float, default 0
        At least 0 and below 1. With 0, no buffer is allocated.

    Raises
    ------
    TypeError
        If `parameters` is not a mapping to float32 or float64 arrays, or an option is not a number.
    ValueError
        If an option is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.training import SGD
    >>> parameters = {"weight": np.array([1.0, 2.0])}
    >>> SGD(parameters, lr=0.5).step({"weight": np.array([2.0, 0.0])})
    >>> parameters["weight"]
    array([0., 2.])
    """

    def __init__(self, parameters: Arrays, lr: float, momentum: float = 0.0) -> None:
        self._momentum = arguments.number("momentum", momentum, below=1)
        super().__init__(parameters, lr, ["momentum_buffer"] if self._momentum else [])

    def __repr__(self) -> str:
        return f"SGD(lr={self.lr}, momentum={self._momentum})"

    def _options(self, step: int) -> tuple[float, ...]:  # noqa: ARG002
        return self._momentum, self.lr


class Adam(_Optimizer):
    """Adam: steps scaled by running averages of the gradient and of its square.

    At step t, counted from 1::

        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        parameter -= lr * m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + eps)

    If the square of a gradient overflows the dtype, v becomes infinite and the parameter element no longer
    changes, as in PyTorch; clip such gradients.

    Source: D. Kingma and J. Ba, "Adam: A method for stochastic optimization", ICLR 2015, algorithm 1.

    Parameters
    ----------
    parameters : mapping of str to ndarray
        Arrays of float32 or float64, which are updated in place. For each, Adam allocates two more arrays of its size.
    lr : float, default 0.001
        The learning rate, at least 0. It is a plain attribute and can be changed between steps.
    betas : pair of float, default (0.9, 0.999)
        Decay rates of the two averages, each at least 0 and below 1.
    eps : float, default 1e-8
        Added to the denominator; at least 0.

    Raises
    ------
    TypeError
        If `parameters` is not a mapping to float32 or float64 arrays, `betas` is not a pair, or an option is not a
        number.
    ValueError
        If an option is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.training import Adam
    >>> parameters = {"weight": np.array([1.0, 2.0])}
    >>> Adam(parameters, lr=0.5).step({"weight": np.array([2.0, 0.0])})
    >>> parameters["weight"].round(6)
    array([0.5, 2. ])
    """

    def __init__(
        self, parameters: Arrays, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        try:
            beta1, beta2 = betas
        except (TypeError, ValueError):
            raise TypeError(f"betas must be a pair of numbers, got {betas!r}") from None
        self._betas = arguments.number("betas[0]", beta1, below=1), arguments.number("betas[1]", beta2, below=1)
        self._eps = arguments.number("eps", eps)
        super().__init__(parameters, lr, ["exp_avg", "exp_avg_sq"])

    def __repr__(self) -> str:
        return f"Adam(lr={self.lr}, betas={self._betas}, eps={self._eps})"

    def _options(self, step: int) -> tuple[float, ...]:
        beta1, beta2 = self._betas
        correction1, correction2 = 1 - beta1**step, math.sqrt(1 - beta2**step)
        # Both bias corrections are combined into one factor of the quotient, which requires scaling eps.
        return beta1, 1 - beta1, beta2, 1 - beta2, self._eps * correction2, self.lr * correction2 / correction1
