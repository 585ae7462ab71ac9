"""Initial parameters of recurrent layers: a table of schemes, with a function for each kind of parameter.

Sources: torch.nn (uniform). X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward neural
networks", 2010, as in keras.layers. A. Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep
linear neural networks", 2014 (orthogonal). F. Gers et al., "Learning to forget", 2000, and R. Jozefowicz et al., "An
empirical exploration of recurrent network architectures", 2015 (forget gate bias). C. Tallec and Y. Ollivier, "Can
recurrent neural networks warp time?", 2018 (chrono). Q. Le et al., "A simple way to initialize recurrent networks of
rectified linear units", 2015 (identity).

The engine adds two biases, as torch does. If a scheme sets the bias of a gate, bias_ih has its value, and the rows of
bias_hh are 0.
"""

from __future__ import annotations

import math
import numbers
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from . import arguments
from ._types import Array

__all__ = ["Initializer", "blocks", "drawn", "read"]

BLOCK = 1 << 18  # elements that NumPy processes in one call: a few milliseconds at most
LONG_QR = 1 << 24  # multiply-adds of a QR decomposition: some milliseconds


def blocks(size: int, of_row: int = 1, least: int = 0) -> Iterator[slice]:
    """Divide rows of `of_row` elements into slices of few enough elements that Ctrl-C is honoured between them.

    A slice has at least `least` rows.
    """
    rows = max(BLOCK // of_row, least, 1)
    return (slice(begin, min(begin + rows, size)) for begin in range(0, size, rows))


def drawn(shape: tuple[int, ...], dtype: Any, draw: Callable[[int], Array]) -> Array:
    """Return an array of numbers; ``draw(n)`` returns the next n of them."""
    if math.prod(shape) <= BLOCK:
        return draw(math.prod(shape)).reshape(shape).astype(dtype, copy=False)
    array = np.empty(shape, dtype)
    flat = array.reshape(-1)
    for part in blocks(flat.size):
        flat[part] = draw(part.stop - part.start)
    return array


class _Place(NamedTuple):
    """A parameter to be initialised, and facts about its layer."""

    rng: np.random.Generator
    shape: tuple[int, ...]
    gates: str
    hidden_size: int
    value: float | None  # the number that was passed with the name of the scheme
    dtype: Any

    def rows(self, gate: str) -> slice:
        """Return the rows of a gate in the parameters."""
        first = self.gates.index(gate) * self.hidden_size
        return slice(first, first + self.hidden_size)


def _uniform(place: _Place) -> Array:
    """Return uniform values, as torch does for all parameters."""
    return _within(place, 1 / math.sqrt(place.hidden_size))


def _glorot(place: _Place) -> Array:
    """Return Glorot's uniform values. The rows of all gates count as outputs."""
    return _within(place, math.sqrt(6 / sum(place.shape)))


def _within(place: _Place, bound: float) -> Array:
    return drawn(place.shape, place.dtype, lambda n: place.rng.uniform(-bound, bound, n))


def _orthogonal(place: _Place) -> Array:
    """Return a random matrix with orthonormal columns, from the uniform distribution over such matrices."""
    q, r = _qr(drawn(place.shape, np.float64, place.rng.standard_normal))
    # Without the signs of R, the distribution would depend on the algorithm of the factorisation (Mezzadri 2007).
    signs, result = np.where(np.diag(r) < 0, -1, 1), np.empty(place.shape, place.dtype)
    for part in blocks(*place.shape):
        result[part] = q[part] * signs
    return result


def _qr(matrix: Array) -> tuple[Array, Array]:
    """Return Q and R of a matrix.

    LAPACK cannot be interrupted. A long factorisation runs in another thread, which ends by itself after Ctrl-C.
    """
    if matrix.size * matrix.shape[1] < LONG_QR:
        q, r = np.linalg.qr(matrix)
        return q, r
    results: list[Any] = []

    def factorise() -> None:
        try:
            results.append(np.linalg.qr(matrix))
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=factorise)  # not a daemon: LAPACK must not be at work when the process ends
    thread.start()
    while thread.is_alive():
        thread.join(0.05)  # without a limit, a signal that another thread receives would not end the wait
    if isinstance(results[0], BaseException):
        raise results[0]
    q, r = results[0]
    return q, r


def _orthogonal_gates(place: _Place) -> Array:
    """Return an orthogonal matrix for each gate, concatenated."""
    result = np.empty(place.shape, place.dtype)
    for gate in np.split(result, len(place.gates)):
        gate[...] = _orthogonal(place._replace(shape=gate.shape))
    return result


def _unit(place: _Place) -> Array:
    """Return uniform values between 0 and 1, with which units of an IndRNN keep their state for different times."""
    return drawn(place.shape, place.dtype, place.rng.random)


def _zeros(place: _Place) -> Array:
    return np.zeros(place.shape, place.dtype)


def _with(bias: Array, place: _Place, values: Mapping[str, Any]) -> Array:
    """Set the rows of some gates, if the cell has them."""
    for gate in set(values) & set(place.gates):
        bias[place.rows(gate)] = values[gate]
    return bias


def _chrono(place: _Place) -> Array:
    """Return a bias with which gates keep the state for a time that is uniform between 1 and T_max - 1 steps."""
    bias = _uniform(place)
    assert place.value is not None
    keeps = np.log(place.rng.uniform(1, place.value - 1, place.hidden_size))
    return _with(bias, place, {"f": keeps, "i": -keeps, "z": keeps, "u": -keeps})


class _Scheme(NamedTuple):
    """The meaning of a name."""

    draws: Mapping[str, Callable[[_Place], Array]]  # by kind of parameter
    layer: str = ""  # the layers that support it, for messages; "" for all
    gates: str = ""  # the cell must have one of these gates; "" for any cell
    relu: bool = False  # whether the layer must be an RNN with relu
    needs_bias: bool = False
    takes: str = ""  # the number that is passed with the name, for messages; "" for none
    least: float = -math.inf  # the least value of that number
    needs_value: bool = False  # whether that number is required
    others: Callable[[_Place], Array] = _uniform  # for the other kinds of parameters


SCHEMES: dict[str | None, _Scheme] = {
    "torch": _Scheme({}),
    "keras": _Scheme(
        {
            "weight_ih": _glorot,
            "weight_hh": _orthogonal,
            "weight_hr": _glorot,
            "bias_ih": lambda place: _with(_zeros(place), place, {"f": 1}),
            "bias_hh": _zeros,
            "peephole": _zeros,
        }
    ),
    "orthogonal": _Scheme({"weight_hh": _orthogonal_gates}),
    "chrono": _Scheme(
        {"bias_ih": _chrono, "bias_hh": lambda place: _with(_uniform(place), place, {"f": 0, "i": 0, "z": 0})},
        layer="a gated layer",
        gates="fzu",
        needs_bias=True,
        takes="T_max, the longest lag in steps",
        least=2,
        needs_value=True,
    ),
    "forget": _Scheme(
        {
            "bias_ih": lambda place: _with(_uniform(place), place, {"f": 1 if place.value is None else place.value}),
            "bias_hh": lambda place: _with(_uniform(place), place, {"f": 0}),
        },
        layer="a layer with a forget gate",
        gates="f",
        needs_bias=True,
        takes="the bias",
    ),
    "identity": _Scheme(
        {
            "weight_ih": lambda place: drawn(place.shape, place.dtype, lambda n: place.rng.normal(0, 0.001, n)),
            "weight_hh": lambda place: np.eye(*place.shape, dtype=place.dtype),
            "recurrent": lambda place: np.ones(place.shape, place.dtype),
            "bias_ih": _zeros,
            "bias_hh": _zeros,
        },
        layer="an RNN with relu",
        relu=True,
    ),
    None: _Scheme({}, others=_zeros),
}


class Initializer(NamedTuple):
    """A scheme and its number, checked for a layer."""

    scheme: _Scheme
    value: float | None
    gates: str

    def draw(
        self, rng: np.random.Generator, name: str, shape: tuple[int, ...], hidden_size: int, dtype: Any = np.float64
    ) -> Array:
        """Return the initial values of a parameter."""
        kind = name.partition("_l")[0]
        others = _unit if kind == "recurrent" and self.scheme.others is _uniform else self.scheme.others
        return self.scheme.draws.get(kind, others)(_Place(rng, shape, self.gates, hidden_size, self.value, dtype))


def read(init: Any, gates: str, relu: bool, bias: bool, coupled: bool) -> Initializer:
    """Check the option init of a layer.

    Parameters
    ----------
    init : str, tuple of str and number, or None
    gates : str
        The letters of the cell's gates, in the order of the parameters.
    relu : bool
        Whether the layer is an RNN whose activation is relu.
    bias, coupled : bool
        The layer's options.

    Raises
    ------
    ValueError
        If the scheme is unknown or does not support the layer, or its number is missing, out of range or unexpected.
    TypeError
        If the value passed with the name is not a number.

    Examples
    --------
    >>> initializer = read(("forget", 2), "ifgo", relu=False, bias=True, coupled=False)
    >>> initializer.draw(np.random.default_rng(0), "bias_ih_l0", (4,), hidden_size=1).round(2)
    array([ 0.27,  2.  , -0.92, -0.97])
    """
    name, *numbers_given = init if isinstance(init, (tuple, list)) and init else [init]
    if not (name is None or isinstance(name, str)) or name not in SCHEMES:
        raise ValueError(f"init must be one of {', '.join(map(repr, SCHEMES))}, got {init!r}")
    scheme = SCHEMES[name]
    if (scheme.gates and not set(scheme.gates) & set(gates)) or (scheme.relu and not relu):
        raise ValueError(f"init={init!r} is for {scheme.layer} only: choose another scheme for this layer")
    if scheme.needs_bias and not bias:
        raise ValueError(f"init={init!r} sets biases, but this layer has bias=False: use bias=True, or another scheme")
    if name == "forget" and coupled:
        raise ValueError(f"init={init!r} sets the bias of the forget gate, but with coupled=True that gate is 1 - i")
    return Initializer(scheme, _number(init, name, scheme, numbers_given), gates)


def _number(init: Any, name: str | None, scheme: _Scheme, given: list[Any]) -> float | None:
    """Check the number that was passed with the name of a scheme."""
    if len(given) > bool(scheme.takes):
        takes = f"one number, {scheme.takes}" if scheme.takes else "no number"
        raise ValueError(f"init={name!r} takes {takes}, got {init!r}")
    if not given:
        if scheme.needs_value:
            raise ValueError(f"init={name!r} needs {scheme.takes}: pass a tuple such as ({name!r}, 100)")
        return None
    [value] = given
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"init={name!r} takes a number, {scheme.takes}, got {init!r}")
    number = arguments.any_number(f"init={name!r}", value)
    if not (math.isfinite(number) and number >= scheme.least):
        least = f" of at least {scheme.least:g}" if math.isfinite(scheme.least) else ""
        raise ValueError(f"init={name!r} takes a finite number{least}, {scheme.takes}, got {init!r}")
    return number
