"""Measure how gradients vanish or explode over time, and how saturated the gates of a layer are.

Sources: S. Hochreiter, "Untersuchungen zu dynamischen neuronalen Netzen", 1991, and Y. Bengio et al., "Learning
long-term dependencies with gradient descent is difficult", 1994 (gradients against the lag). R. Pascanu et al., "On the
difficulty of training recurrent neural networks", 2013 (singular values of the Jacobians). A. Karpathy et al.,
"Visualizing and understanding recurrent networks", 2015 (saturated gates).

Examples
--------
>>> import numpy as np, rnnfast
>>> from rnnfast.diagnostics import gradient_flow
>>> layer = rnnfast.GRU(4, 16, dtype=np.float64, rng=0)
>>> flow = gradient_flow(layer, np.random.default_rng(0).normal(size=(30, 8, 4)))
>>> flow.norms["l0"].shape
(30,)
>>> bool(flow.norms["l0"][29] < 0.01 * flow.norms["l0"][0])
True
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import arguments, figures, functional, reference
from ._types import Array, ArrayLike
from .layers import Bidirectional, Recurrent, execution, saving

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["GradientFlow", "Saturation", "gradient_flow", "plot_gradient_flow"]

CLOSED, OPEN = 0.05, 0.95
_MOST = 1 << 23  # maximum number of elements of the Jacobians that are in memory at a time

CANDIDATES = "hgns"  # letters in CellInfo.gates that are not gates: h of an RNN, g of an LSTM, n of a GRU, s of an SRU


class Saturation(NamedTuple):
    """The fractions of a gate's values, over all steps, rows and units, that are close to 0 or close to 1.

    The slope of a gate is at most 0.0475 there, compared with 0.25 at its centre, so it learns slowly.

    Attributes
    ----------
    closed : float
        Fraction of values below 0.05.
    open : float
        Fraction of values above 0.95.
    """

    closed: float
    open: float


@dataclass(frozen=True, eq=False, repr=False)
class GradientFlow:
    """The result of :func:`gradient_flow`. Its repr is a table.

    Each dict has one entry per layer and direction. The keys are the suffixes of the parameter names: ``l0``,
    ``l0_reverse``, ``l1``, and so on, or for :class:`rnnfast.Bidirectional` ``forward.l0``, ``backward.l0``, and so on.

    The lag of a step is its distance from the last step that the direction processes: T - 1 - t, or t for a reverse
    direction. Arrays are float64, indexed by the lag, and averaged over the batch.

    Attributes
    ----------
    layer : str
        The constructor call of the measured layer.
    norms : dict of str to ndarray, (T,)
        The norm of dL/dh, over the features of h, at each lag.
    singular_values : dict of str to ndarray, (T,)
        The largest singular value of the Jacobian dh/dh_before of the step at each lag, with c_before held constant.
        The step multiplies the norm of a gradient of h by at most this factor. Empty if ``jacobians=False``.
    state_singular_values : dict of str to ndarray, (T,)
        For LSTM only: the same for the Jacobian of (h, c) with respect to (h_before, c_before), which is the whole
        recurrence.
    saturation : dict of str to dict of str to Saturation
        For each gate by name: i, f and o of an LSTM, r and z of a GRU. Empty for an RNN, which has no gates.
    """

    layer: str
    norms: dict[str, Array]
    singular_values: dict[str, Array]
    state_singular_values: dict[str, Array]
    saturation: dict[str, dict[str, Saturation]]

    @property
    def decay(self) -> dict[str, float]:
        """The geometric mean of the factors between the norms at consecutive lags; NaN if it is undefined."""
        return {name: _rate(norms) for name, norms in self.norms.items()}

    def __repr__(self) -> str:
        steps = len(next(iter(self.norms.values())))
        table = [["", "norm at lag 0", f"at lag {steps - 1}", "factor per step"]]
        if self.singular_values:
            table[0].append("largest singular value: h")
        if self.state_singular_values:
            table[0].append("(h, c)")
        if any(self.saturation.values()):
            table[0].append("gates closed / open")
        for name, norms in self.norms.items():
            row = [name, f"{norms[0]:.3g}", f"{norms[-1]:.3g}", f"{self.decay[name]:.3f}"]
            found = [values for values in (self.singular_values, self.state_singular_values) if values]
            row += [f"{values[name].mean():.3f}" if name in values else "" for values in found]
            gates = self.saturation[name].items()
            row.append("   ".join(f"{gate} {share.closed:.0%} / {share.open:.0%}" for gate, share in gates))
            table.append(row[: len(table[0])])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        return "\n".join([f"Gradient flow of {self.layer}, T={steps}", *lines])


def _rate(norms: Array) -> float:
    if len(norms) == 1 or not norms[0] > 0:
        return math.nan
    return float((norms[-1] / norms[0]) ** (1 / (len(norms) - 1)))


def gradient_flow(
    layer: Recurrent[Any] | Bidirectional, x: ArrayLike, state: Any = None, dy: Any = None, *, jacobians: bool = True
) -> GradientFlow:
    """Measure how the gradient of a loss L vanishes or explodes over time, and how saturated the gates are.

    No dropout is applied, and the layer is not changed. The layer computes the norms in its own dtype: use float64 if
    they fall below 1e-38. Everything else is computed in float64 by :mod:`rnnfast.reference`.

    Parameters
    ----------
    layer : recurrent layer, such as LSTM, or Bidirectional
        Must not use the options activations, clip, peepholes, coupled and zoneout.
    x, state
        As for a call of the layer, with at least one row.
    dy : array_like of the shape of y, optional
        The gradient of L with respect to y. By default, L is the sum of the final h of the last layer, over all units
        and directions.
    jacobians : bool, default True
        Whether to compute the singular values. They account for most of the run time, which is proportional to
        T * N * H**3.

    Returns
    -------
    GradientFlow

    Raises
    ------
    ValueError
        If a shape does not match, `x` has no rows, `x` or y is not finite, or the layer uses one of the unsupported
        options.
    TypeError
        If `layer` is not one of the supported classes, or an argument does not hold real numbers.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> layer = rnnfast.RNN(1, 8, bias=False, init="orthogonal", dtype=np.float64, rng=0)
    >>> flow = gradient_flow(layer, np.zeros((100, 1, 1)))  # h stays 0, where the slope of tanh is 1
    >>> flow
    Gradient flow of RNN(1, 8, bias=False, dtype='float64'), T=100
        norm at lag 0  at lag 99  factor per step  largest singular value: h
    l0  2.83           2.83       1.000            1.000
    """
    if not isinstance(layer, (Recurrent, Bidirectional)):
        raise TypeError(f"layer must be a recurrent layer or a Bidirectional, got {type(layer).__name__}")
    jacobians = arguments.flag("jacobians", jacobians)
    call = saving.describe(layer)
    layer = _at_rest(layer)
    y, last, tape = layer.forward(x, state)
    if not np.isfinite(arguments.array("x", x)).all():
        raise ValueError("x must be finite, but contains NaN or infinity: remove such steps first")
    if not all(np.isfinite(part).all() for part in (y if isinstance(y, tuple) else (y,))):
        raise ValueError("y is not finite: the state or the parameters are not finite, or are too large")
    gradients = layer.backward(tape, dy, _last_h(layer, last) if dy is None else None, per_step=True)
    flow = GradientFlow(call, {}, {}, {}, {})
    if isinstance(layer, Bidirectional):
        states = (None, None) if state is None else state
        _measure(flow, "forward.", layer.forward_layer, x, states[0], gradients.h[0], False, jacobians)
        _measure(flow, "backward.", layer.backward_layer, x, states[1], gradients.h[1], True, jacobians)
    else:
        _measure(flow, "", layer, x, state, gradients.h, layer.reverse, jacobians)
    return flow


def _at_rest(layer: Any) -> Any:
    """Return the layer, or a copy without dropout if it has any."""
    if isinstance(layer, Bidirectional):
        sides = _at_rest(layer.forward_layer), _at_rest(layer.backward_layer)
        return Bidirectional(*sides, merge=layer.merge)
    if layer.engine.options is not None or layer.zoneout:
        raise ValueError(
            "layer must not use the options activations, clip, peepholes, coupled and zoneout, got "
            f"{saving.describe(layer)}: backward(tape, dy, per_step=True) returns the gradients of such layers too"
        )
    if any(getattr(layer, name) for name in saving.DROPOUTS):
        layer = copy.copy(layer)
        for name in saving.DROPOUTS:
            setattr(layer, name, 0.0)
    return layer


def _last_h(layer: Any, state: Any) -> Any:
    """Return the gradient of the sum of the last layer's h with respect to the last state."""
    if isinstance(layer, Bidirectional):
        return _last_h(layer.forward_layer, state[0]), _last_h(layer.backward_layer, state[1])
    h = state[0] if layer.engine.info.has_c else state
    dh = np.zeros_like(h)
    dh[-layer.engine.directions :] = 1
    return (dh, None) if layer.engine.info.has_c else dh


def _measure(
    flow: GradientFlow, prefix: str, layer: Any, x: Any, state: Any, dh: Array, reverse: bool, jacobians: bool
) -> None:
    """Add the measurements of a layer, or of one of the two layers of a Bidirectional, to `flow`."""
    (inputs, plan, *_), _ = layer._started(layer.execution.read(x, state))
    if not plan.N:
        raise ValueError(f"x must have at least one row, got shape {inputs.x.shape}")
    viewed = execution.engine_view(plan, inputs.x, inputs.h0, inputs.c0)
    x, h0, c0 = (None if a is None else a.astype(np.float64) for a in viewed)
    cell, info, directions = layer.engine.cell, layer.engine.info, layer.engine.directions
    every = {**layer.parameters, **layer.execution.extras}
    parameters = {name: array.astype(np.float64) for name, array in every.items()}
    stack = {"num_layers": layer.num_layers, "bidirectional": layer.bidirectional, "reverse": reverse}
    _, _, tape = reference.forward(cell, parameters, x, (h0, c0) if info.has_c else h0, **stack)
    dh = dh.reshape(layer.num_layers * directions, plan.T, plan.N, -1).astype(np.float64)
    runs = [run for runs in tape.layers for run in runs]
    for run, gradient in zip(runs, dh, strict=True):
        name = prefix + run.suffix.removeprefix("_")
        norms = np.linalg.norm(gradient, axis=2).mean(axis=1)
        flow.norms[name] = norms[run.way][::-1].copy()
        kept = [np.stack(values) for values in zip(*run.kept, strict=True)]
        flow.saturation[name] = {
            gate: Saturation(float((kept[place] < CLOSED).mean()), float((kept[place] > OPEN).mean()))
            # In the values that the reference keeps, the gates follow the state before the step.
            for place, gate in enumerate(info.gates, 1 + info.has_c)
            if gate not in CANDIDATES
        }
        if jacobians:
            values = _singular_values(cell, run.p, kept, dh.shape[-1])
            flow.singular_values[name] = values[0, ::-1].copy()
            if info.has_c:
                flow.state_singular_values[name] = values[1, ::-1].copy()


def _singular_values(cell: str, p: Any, kept: list[Array], outputs: int) -> Array:
    """Return the largest singular value of each step, averaged over the batch, for h and for the whole state."""
    T, N, _ = kept[0].shape
    widths = (outputs, kept[1].shape[2]) if functional.CELLS[cell].has_c else (outputs,)
    rows = [values.reshape(T * N, -1) for values in kept]
    chunk = max(1, _MOST // sum(widths) ** 2)
    found = []
    for first in range(0, T * N, chunk):
        jacobians = _jacobians(cell, p, [values[first : first + chunk] for values in rows], widths)
        maps = (jacobians[:, :outputs, :outputs], jacobians)[: len(widths)]
        found.append([np.linalg.svd(one, compute_uv=False)[:, 0] for one in maps])
    values: Array = np.concatenate(found, axis=1).reshape(-1, T, N).mean(axis=2)
    return values


def _jacobians(cell: str, p: Any, kept: list[Array], widths: tuple[int, ...]) -> Array:
    """Return the Jacobians of the state after a step, (rows, sum of widths, sum of widths).

    Each call of the reference's gradient of a step returns the row of one unit of the state in all Jacobians.
    """
    gradient: Any = reference._CELLS[cell][1]
    count = len(kept[0])
    jacobians = np.empty((count, sum(widths), sum(widths)))
    unused = SimpleNamespace(**{kind: None if a is None else np.zeros_like(a) for kind, a in vars(p).items()})
    after = np.zeros((count, sum(widths)))
    for unit in range(sum(widths)):
        after[:, unit] = 1
        _, before = gradient(p, unused, kept, *np.split(after, widths[:-1], axis=1))
        jacobians[:, unit] = np.concatenate(before, axis=1)
        after[:, unit] = 0
    return jacobians


def plot_gradient_flow(flows: GradientFlow | Mapping[str, GradientFlow], ax: Axes | None = None) -> Axes:
    """Plot the norm of dL/dh against the lag, on a logarithmic axis.

    A straight line means a constant factor per step.

    Needs matplotlib: ``pip install 'rnnfast[plot]'``.

    Parameters
    ----------
    flows : GradientFlow or mapping of str to GradientFlow
        Each layer and direction becomes a line, labelled with its name. If `flows` is a mapping, the label is the name
        of the flow, followed by that of the layer and direction if the flow has several.
    ax : matplotlib.axes.Axes, optional
        The axes to draw on. By default, pyplot creates a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError
        If `flows` is neither a GradientFlow nor a mapping to them, or `ax` is not an Axes.
    ValueError
        If `flows` is empty.
    """
    named = flows if isinstance(flows, Mapping) else {"": flows}
    if not named:
        raise ValueError("flows must contain at least one GradientFlow, but it is empty")
    for label, flow in named.items():
        if not isinstance(flow, GradientFlow):
            place = f" under {label!r}" if label else ""
            raise TypeError(
                f"flows must be a GradientFlow, or a mapping of names to them, got {type(flow).__name__}{place}"
            )
    ax = figures.axes(ax, "plot_gradient_flow")
    for label, flow in named.items():
        for name, norms in flow.norms.items():
            text = f"{label} {name}".strip() if len(flow.norms) > 1 or not label else label
            # A norm of 0 has no logarithm, so the line ends there.
            ax.plot(np.arange(len(norms)), np.where(norms > 0, norms, np.nan), label=text)
    ax.set(xlabel="lag (steps before the loss)", ylabel="norm of dL/dh", yscale="log")
    ax.legend()
    return ax
