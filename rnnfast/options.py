"""Options of cells: the leak, and activations, clipping, peepholes and coupled gates as in the ONNX standard."""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import numpy as np

from . import arguments
from .functional import CELLS

__all__ = ["Options", "read"]

# The activation functions of the ONNX standard, with its default values of alpha and beta.
FUNCTIONS: dict[str, tuple[float, ...]] = {
    "sigmoid": (),
    "tanh": (),
    "relu": (),
    "affine": (1.0, 0.0),
    "leaky_relu": (0.01,),
    "thresholded_relu": (1.0,),
    "scaled_tanh": (1.0, 1.0),
    "hard_sigmoid": (0.2, 0.5),
    "elu": (1.0,),
    "softsign": (),
    "softplus": (),
}

CLIP_LEAST = 2.0**-126  # smaller values could become 0 in float32, with which the engine does not clip

DEFAULTS = {name: info.functions for name, info in CELLS.items()}


class Options(NamedTuple):
    """The options in the form of the engine, with three activations (function, alpha, beta) per direction."""

    activations: tuple[tuple[str, float, float], ...]
    clip: float | None
    peepholes: bool
    coupled: bool

    def of_direction(self, direction: int) -> Options:
        """Return the options of one direction of a bidirectional layer."""
        return self._replace(activations=self.activations[3 * direction : 3 * direction + 3])


def activations(value: Any, cell: str, directions: int) -> tuple[Any, ...] | None:
    """Check the option; return a tuple of names, or tuples (name, alpha) or (name, alpha, beta)."""
    if value is None:
        return None
    count = len(DEFAULTS[cell])
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise TypeError(f"activations must be a list with {count} names, got {value!r}")
    if len(value) not in {count, count * directions}:
        twice = f", or {count * directions} with those of the reverse direction last" if directions == 2 else ""
        raise ValueError(f"activations must have length {count}{twice}, for this cell, got {len(value)}: {value!r}")
    return tuple(_activation(f"activations[{i}]", one) for i, one in enumerate(value))


def _activation(name: str, value: Any) -> Any:
    function, *given = value if isinstance(value, (list, tuple)) and value else [value]
    if not isinstance(function, str) or function not in FUNCTIONS:
        names = ", ".join(FUNCTIONS)
        raise ValueError(f"{name} must be one of {names}, or a tuple (name, alpha, beta), got {value!r}")
    if len(given) > len(FUNCTIONS[function]):
        takes = ("neither alpha nor beta", "only alpha", "alpha and beta")[len(FUNCTIONS[function])]
        raise ValueError(f"{name}: {function} takes {takes}, got {value!r}")
    if any(isinstance(number, bool) or not isinstance(number, numbers.Real) for number in given):
        raise TypeError(f"{name} must have numbers as alpha and beta, got {value!r}")
    given = [arguments.any_number(name, number) for number in given]
    if not all(map(math.isfinite, given)):
        raise ValueError(f"{name} must have finite numbers as alpha and beta, got {value!r}")
    return (function, *given) if given else function


def leak(value: Any, states: int, hidden_size: int, dtype: np.dtype[Any]) -> Any:
    """Check the option; return None, a number, or nested tuples of numbers. `states` is num_layers * directions."""
    if value is None:
        return None
    alpha = arguments.real("leak", value, np.dtype(np.float64))
    if np.asarray(value).dtype == bool:
        raise TypeError(f"leak must be a number or an array of numbers, got {value!r}")
    with np.errstate(over="ignore"):
        valid = (alpha.astype(dtype) > 0) & (alpha <= 1)
    if not valid.all():
        raise ValueError(f"leak must be above 0 and at most 1, in {dtype}, got {alpha[~valid][0]:g}")
    try:
        np.broadcast_to(alpha, (states, hidden_size))
    except ValueError:
        raise ValueError(
            f"leak must be one number, or an array that broadcasts to (num_layers * directions, hidden_size) = "
            f"{(states, hidden_size)}, got shape {alpha.shape}"
        ) from None
    return _tuples(alpha.tolist())


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def zoneout(value: Any, has_c: bool) -> float | tuple[float, float]:
    """Check the option; return the probability of h, or those of h and c unless that of c is 0."""
    if not isinstance(value, (list, tuple)):
        return arguments.fraction("zoneout", value)
    if not has_c:
        raise TypeError(f"zoneout must be one number, as this layer's state is h alone, got {value!r}")
    if len(value) != 2:
        raise ValueError(f"zoneout must be a number, or a pair of h's and c's, got {value!r}")
    of_h, of_c = (arguments.fraction(f"zoneout[{i}]", one) for i, one in enumerate(value))
    return (of_h, of_c) if of_c else of_h


def clip(value: Any) -> float | None:
    """Check the option."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"clip must be a number or None, got {value!r}")
    limit = arguments.any_number("clip", value)
    if not CLIP_LEAST <= limit < math.inf:
        raise ValueError(f"clip must be None, or a finite number of at least 2**-126, got {value!r}")
    return limit


def read(
    cell: str, directions: int, functions: Any, limit: float | None, peepholes: bool, coupled: bool
) -> Options | None:
    """Return the options of a generic cell, or None if they are the defaults, so that the standard cell is used."""
    names = DEFAULTS[cell]
    plain = functions is None or all(one == names[i % len(names)] for i, one in enumerate(functions))
    if plain and limit is None and not peepholes and not coupled:
        return None
    chosen = list(functions or names)
    if len(chosen) == len(names):
        chosen *= directions
    full: list[tuple[str, float, float]] = []
    for i, one in enumerate(chosen):
        function, *given = (one,) if isinstance(one, str) else one
        alpha, beta = (*given, *FUNCTIONS[function][len(given) :], 0.0, 0.0)[:2]
        full.append((function, alpha, beta))
        if i % len(names) == len(names) - 1:
            full += [("tanh", 0.0, 0.0)] * (3 - len(names))
    return Options(tuple(full), limit, peepholes, coupled)
