"""Initial values of recurrent layers: a table of schemes, and what each of them puts into which parameter.

Sources: the uniform values of torch.nn. X. Glorot and Y. Bengio, "Understanding the difficulty of training deep
feedforward neural networks", 2010, and the defaults of keras.layers. A. Saxe et al., "Exact solutions to the nonlinear
dynamics of learning in deep linear neural networks", 2014 (orthogonal). F. Gers et al., "Learning to forget", 2000, and
R. Jozefowicz et al., "An empirical exploration of recurrent network architectures", 2015 (a forget gate that begins
open). C. Tallec and Y. Ollivier, "Can recurrent neural networks warp time?", 2018 (chrono). Q. Le et al., "A simple way
to initialize recurrent networks of rectified linear units", 2015 (identity).

The engine adds two biases, as torch's layers do. Where a scheme gives a gate a value, bias_ih has that value and the
rows of bias_hh are 0, so that their sum is the value.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ._types import Array

__all__ = ["Initializer", "read"]


class _Place(NamedTuple):
    """The parameter that is drawn, and its layer."""

    rng: np.random.Generator
    shape: tuple[int, ...]
    gates: str
    hidden_size: int
    value: float | None  # the number that was given with the name of the scheme

    def rows(self, gate: str) -> slice:
        """Return the rows of a gate in the parameters."""
        first = self.gates.index(gate) * self.hidden_size
        return slice(first, first + self.hidden_size)


def _uniform(place: _Place) -> Array:
    """Uniform values, as in torch for all parameters."""
    bound = 1 / math.sqrt(place.hidden_size)
    return place.rng.uniform(-bound, bound, place.shape)


def _glorot(place: _Place) -> Array:
    """Glorot's uniform values, with the fans of the whole matrix: the rows of all gates count as outputs."""
    bound = math.sqrt(6 / sum(place.shape))
    return place.rng.uniform(-bound, bound, place.shape)


def _orthogonal(place: _Place) -> Array:
    """A matrix with orthonormal columns and at least as many rows, drawn uniformly from all such matrices."""
    q, r = np.linalg.qr(place.rng.standard_normal(place.shape))
    # The signs of R make the result independent of those that the factorisation chooses (Mezzadri 2007).
    return q * np.where(np.diag(r) < 0, -1, 1)


def _orthogonal_gates(place: _Place) -> Array:
    """A matrix that is orthogonal for each gate."""
    gate = place._replace(shape=(place.hidden_size, place.shape[1]))
    return np.concatenate([_orthogonal(gate) for _ in place.gates])


def _zeros(place: _Place) -> Array:
    return np.zeros(place.shape)


def _identity(place: _Place) -> Array:
    rows, columns = place.shape
    return np.eye(rows, columns)


def _small_normal(place: _Place) -> Array:
    return place.rng.normal(0, 0.001, place.shape)


def _zeros_but_forget(place: _Place) -> Array:
    """Zeros, and ones for a forget gate."""
    bias = np.zeros(place.shape)
    if "f" in place.gates:
        bias[place.rows("f")] = 1
    return bias


def _forget(place: _Place) -> Array:
    bias = _uniform(place)
    bias[place.rows("f")] = 1 if place.value is None else place.value
    return bias


def _forget_cleared(place: _Place) -> Array:
    bias = _uniform(place)
    bias[place.rows("f")] = 0
    return bias


# The gates that chrono sets, with their signs: those that keep the state, and the one that lets input into it.
_CHRONO = {"f": 1, "i": -1, "z": 1}


def _chrono(place: _Place) -> Array:
    """Gates that keep the state for a time that is uniform between 1 and T_max - 1 steps."""
    bias = _uniform(place)
    assert place.value is not None
    keeps = np.log(place.rng.uniform(1, place.value - 1, place.hidden_size))
    for gate in filter(_CHRONO.get, place.gates):
        bias[place.rows(gate)] = _CHRONO[gate] * keeps
    return bias


def _chrono_cleared(place: _Place) -> Array:
    bias = _uniform(place)
    for gate in filter(_CHRONO.get, place.gates):
        bias[place.rows(gate)] = 0
    return bias


class _Scheme(NamedTuple):
    """What a name stands for."""

    draws: Mapping[str, Callable[[_Place], Array]]  # by the kind of the parameter; torch's values in all others
    layer: str = ""  # the layers that it is for, in words; "" for all
    gates: str = ""  # a cell needs one of these gates; "" for no such condition
    relu: bool = False  # whether it is for RNNs of relu alone
    needs_bias: bool = False
    takes: str = ""  # the number that may or must be given with the name, in words
    least: float = -math.inf  # the least value of that number
    needs_value: bool = False


SCHEMES = {
    "torch": _Scheme({}),
    "keras": _Scheme(
        {
            "weight_ih": _glorot,
            "weight_hh": _orthogonal,
            "weight_hr": _glorot,
            "bias_ih": _zeros_but_forget,
            "bias_hh": _zeros,
            "peephole": _zeros,
        }
    ),
    "orthogonal": _Scheme({"weight_hh": _orthogonal_gates}),
    "chrono": _Scheme(
        {"bias_ih": _chrono, "bias_hh": _chrono_cleared},
        layer="an LSTM or a GRU",
        gates="fz",
        needs_bias=True,
        takes="T_max, the longest lag in steps",
        least=2,
        needs_value=True,
    ),
    "forget": _Scheme(
        {"bias_ih": _forget, "bias_hh": _forget_cleared},
        layer="an LSTM",
        gates="f",
        needs_bias=True,
        takes="the bias",
    ),
    "identity": _Scheme(
        {"weight_ih": _small_normal, "weight_hh": _identity, "bias_ih": _zeros, "bias_hh": _zeros},
        layer="an RNN of relu",
        relu=True,
    ),
}


class Initializer(NamedTuple):
    """A scheme and its number, checked for one cell."""

    scheme: _Scheme
    value: float | None
    gates: str

    def draw(self, rng: np.random.Generator, name: str, shape: tuple[int, ...], hidden_size: int) -> Array:
        """Return the initial values of a parameter, in float64."""
        draw = self.scheme.draws.get(name.partition("_l")[0], _uniform)
        return draw(_Place(rng, shape, self.gates, hidden_size, self.value))


def read(init: Any, gates: str, relu: bool, bias: bool, coupled: bool) -> Initializer:
    """Check the init option of a layer.

    Parameters
    ----------
    init : str or tuple of str and number
    gates : str
        The letters of the cell's gates, in the order of the parameters.
    relu : bool
        Whether the layer is an RNN whose activation is relu.
    bias, coupled : bool
        The layer's options.

    Raises
    ------
    ValueError
        If the scheme is unknown or does not fit the layer, or its number is missing, out of range, or not expected.
    TypeError
        If the value given with the name is not a number.

    Examples
    --------
    >>> initializer = read(("forget", 2), "ifgo", relu=False, bias=True, coupled=False)
    >>> initializer.draw(np.random.default_rng(0), "bias_ih_l0", (4,), hidden_size=1).round(2)
    array([ 0.27,  2.  , -0.92, -0.97])
    """
    name, *numbers_given = init if isinstance(init, (tuple, list)) and init else [init]
    if not isinstance(name, str) or name not in SCHEMES:
        raise ValueError(f"init must be one of {', '.join(map(repr, SCHEMES))}, got {init!r}")
    scheme = SCHEMES[name]
    if (scheme.gates and not set(scheme.gates) & set(gates)) or (scheme.relu and not relu):
        raise ValueError(f"init={init!r} is for {scheme.layer}: choose another for this layer")
    if scheme.needs_bias and not bias:
        raise ValueError(f"init={init!r} sets biases, but this layer has none: build it with bias=True")
    if name == "forget" and coupled:
        raise ValueError(f"init={init!r} sets the bias of the forget gate, which coupled=True replaces by 1 - i")
    return Initializer(scheme, _number(init, name, scheme, numbers_given), gates)


def _number(init: Any, name: str, scheme: _Scheme, given: list[Any]) -> float | None:
    """Check the number that was given with the name of a scheme."""
    if len(given) > bool(scheme.takes):
        takes = f"one number, {scheme.takes}" if scheme.takes else "no number"
        raise ValueError(f"init={name!r} takes {takes}, got {init!r}")
    if not given:
        if scheme.needs_value:
            raise ValueError(f"init={name!r} needs {scheme.takes}: give a tuple such as ({name!r}, 100)")
        return None
    [value] = given
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"init={name!r} takes a number, {scheme.takes}, got {init!r}")
    number = float(value)
    if not (math.isfinite(number) and number >= scheme.least):
        least = f" of at least {scheme.least:g}" if math.isfinite(scheme.least) else ""
        raise ValueError(f"init={name!r} takes a finite number{least}, {scheme.takes}, got {init!r}")
    return number
