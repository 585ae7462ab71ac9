"""The equations of every cell as a person writes them, forward and backward, in plain Python and NumPy.

This is what the kernels are tested against and what they are timed against: a loop over time with a few matrix products
per step. One pair of functions per cell says what a step does and what its gradient is; the loop around them knows no
cell. A second loop is for sequences with lengths, masked steps or resets: it takes every row through every step and
selects, row by row, what the step changes. Parameters have torch's names, shapes and gate order (LSTM i, f, g, o; GRU
r, z, n), and all arithmetic is done in the dtype of the arrays given.

Sources: J. Elman, "Finding structure in time", 1990 (RNN). S. Hochreiter and J. Schmidhuber, "Long short-term memory",
1997, with the forget gate of F. Gers, J. Schmidhuber and F. Cummins, "Learning to forget", 2000 (LSTM). H. Sak,
A. Senior and F. Beaufays, "Long short-term memory recurrent neural network architectures for large scale acoustic
modeling", 2014 (its projection). K. Cho et al., "Learning phrase representations using RNN encoder-decoder for
statistical machine translation", 2014 (GRU, reset before the product). Reset after the product, names, layouts and the
two biases: the documentation of torch.nn.RNN, LSTM and GRU. H. Jaeger et al., "Optimization and applications of echo
state networks with leaky-integrator neurons", 2007 (leaky RNN).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from ._types import Array, ArrayLike

__all__ = ["backward", "forward", "sigmoid"]


def sigmoid(a: ArrayLike) -> Array:
    """The logistic function 1 / (1 + exp(-a)), without overflow and accurate at both ends.

    Parameters
    ----------
    a : array_like of float, any shape

    Returns
    -------
    ndarray
        Of the shape and dtype of `a`.

    Examples
    --------
    >>> sigmoid(np.array([-1000.0, 0.0, 1000.0]))
    array([0. , 0.5, 1. ])
    """
    e = np.exp(-np.abs(a))
    values: Array = np.where(np.less(a, 0), e, 1) / (1 + e)
    return values


# A step takes the parameters p of its layer and direction, a = W_ih x + b_ih (N, gates * H), and the state before it.
# It returns the state after it and the values that its gradient needs. The gradient takes these values and the gradient
# of the state after the step; it adds to the parameters' gradients d and returns the gradients of a and of the state
# before the step. In both a state is h (N, H or P) and, for LSTM, c (N, H).


def _rnn_tanh_step(p, a, h):
    after = np.tanh(a + h @ p.weight_hh.T + p.bias_hh)
    return (after,), (h, 1 - after * after)


def _rnn_relu_step(p, a, h):
    after = np.maximum(a + h @ p.weight_hh.T + p.bias_hh, 0)
    return (after,), (h, ~(after <= 0))


def _rnn_gradient(p, d, kept, dh):
    h, slope = kept
    da = dh * slope
    d.weight_hh += da.T @ h
    d.bias_hh += da.sum(0)
    return da, (da @ p.weight_hh,)


def _rnn_tanh_leaky_step(p, a, h):
    (after,), kept = _rnn_tanh_step(p, a, h)
    return ((1 - p.leak) * h + p.leak * after,), kept


def _rnn_relu_leaky_step(p, a, h):
    (after,), kept = _rnn_relu_step(p, a, h)
    return ((1 - p.leak) * h + p.leak * after,), kept


def _rnn_leaky_gradient(p, d, kept, dh):
    da, (dh_before,) = _rnn_gradient(p, d, kept, p.leak * dh)
    return da, ((1 - p.leak) * dh + dh_before,)


def _lstm_step(p, a, h, c):
    i, f, g, o = np.split(a + h @ p.weight_hh.T + p.bias_hh, 4, axis=1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c_after = f * c + i * g
    tanh_c = np.tanh(c_after)
    h_after = o * tanh_c
    if p.weight_hr is not None:
        h_after = h_after @ p.weight_hr.T
    return (h_after, c_after), (h, c, i, f, g, o, tanh_c)


def _lstm_gradient(p, d, kept, dh, dc):
    h, c, i, f, g, o, tanh_c = kept
    if p.weight_hr is not None:
        d.weight_hr += dh.T @ (o * tanh_c)
        dh = dh @ p.weight_hr
    dc = dc + dh * o * (1 - tanh_c * tanh_c)
    di = dc * g * i * (1 - i)
    df = dc * c * f * (1 - f)
    dg = dc * i * (1 - g * g)
    do = dh * tanh_c * o * (1 - o)
    da = np.concatenate([di, df, dg, do], axis=1)
    d.weight_hh += da.T @ h
    d.bias_hh += da.sum(0)
    return da, (da @ p.weight_hh, dc * f)


def _gru_step(p, a, h):
    a_r, a_z, a_n = np.split(a, 3, axis=1)
    q_r, q_z, q_n = np.split(h @ p.weight_hh.T + p.bias_hh, 3, axis=1)
    r, z = sigmoid(a_r + q_r), sigmoid(a_z + q_z)
    n = np.tanh(a_n + r * q_n)
    return ((1 - z) * n + z * h,), (h, r, z, n, q_n)


def _gru_gradient(p, d, kept, dh):
    h, r, z, n, q_n = kept
    dn = dh * (1 - z) * (1 - n * n)
    dr = dn * q_n * r * (1 - r)
    dz = dh * (h - n) * z * (1 - z)
    dq = np.concatenate([dr, dz, dn * r], axis=1)
    d.weight_hh += dq.T @ h
    d.bias_hh += dq.sum(0)
    return np.concatenate([dr, dz, dn], axis=1), (dh * z + dq @ p.weight_hh,)


def _gru_reset_before_step(p, a, h):
    H = h.shape[1]
    a_r, a_z, a_n = np.split(a + p.bias_hh, 3, axis=1)
    q_r, q_z = np.split(h @ p.weight_hh[: 2 * H].T, 2, axis=1)
    r, z = sigmoid(a_r + q_r), sigmoid(a_z + q_z)
    n = np.tanh(a_n + (r * h) @ p.weight_hh[2 * H :].T)
    return ((1 - z) * n + z * h,), (h, r, z, n)


def _gru_reset_before_gradient(p, d, kept, dh):
    h, r, z, n = kept
    H = h.shape[1]
    dn = dh * (1 - z) * (1 - n * n)
    drh = dn @ p.weight_hh[2 * H :]
    dr = drh * h * r * (1 - r)
    dz = dh * (h - n) * z * (1 - z)
    drz = np.concatenate([dr, dz], axis=1)
    da = np.concatenate([drz, dn], axis=1)
    d.weight_hh[: 2 * H] += drz.T @ h
    d.weight_hh[2 * H :] += dn.T @ (r * h)
    d.bias_hh += da.sum(0)
    return da, (dh * z + drh * r + drz @ p.weight_hh[: 2 * H],)


_CELLS: dict[str, Any] = {
    "rnn_tanh": (_rnn_tanh_step, _rnn_gradient),
    "rnn_relu": (_rnn_relu_step, _rnn_gradient),
    "lstm": (_lstm_step, _lstm_gradient),
    "gru": (_gru_step, _gru_gradient),
    "gru_reset_before": (_gru_reset_before_step, _gru_reset_before_gradient),
    "rnn_tanh_leaky": (_rnn_tanh_leaky_step, _rnn_leaky_gradient),
    "rnn_relu_leaky": (_rnn_relu_leaky_step, _rnn_leaky_gradient),
}

_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "leak")


def _run(step, p, x, state):
    """One direction of one layer: y (T, N, H or P), the states, the values kept. Time as it is walked."""
    inputs = x @ p.weight_ih.T + p.bias_ih
    states, kept = [], []
    for a in inputs:
        state, values = step(p, a, *state)
        states.append(state)
        kept.append(values)
    return np.stack([h for h, *_ in states]), states, kept


def _run_gradient(gradient, p, d, x, kept, dy, dstate):
    """The gradients of x, of the state before the first step and of every h; adds the parameters' to d.

    Time as it was walked.
    """
    dinputs, dhs = [], []
    for values, dy_t in zip(reversed(kept), reversed(dy), strict=True):
        dh, *dc = dstate
        dh = dh + dy_t
        da, dstate = gradient(p, d, values, dh, *dc)
        dinputs.append(da)
        dhs.append(dh)
    return _input_gradient(p, d, x, dinputs), dstate, dhs[::-1]


def _input_gradient(p, d, x, dinputs):
    """The gradient of x from those of a = W_ih x + b_ih, last step first; adds the parameters' to d."""
    da = np.stack(dinputs[::-1])
    d.weight_ih += np.tensordot(da, x, axes=([0, 1], [0, 1]))
    d.bias_ih += da.sum((0, 1))
    return da @ p.weight_ih


def _steps(T, N, lengths, mask, reset, zero_masked):
    """What each step of each row is, as arrays of bool (T, N, 1).

    The step is real; its output repeats the one before it; it is inside the row's length; a cut lies just before it.
    """
    every = np.ones((T, N), bool)
    inside = every if lengths is None else np.arange(T)[:, None] < np.asarray(lengths)
    real = inside if mask is None else inside & np.asarray(mask, bool)
    cut = ~every if reset is None else inside & np.asarray(reset, bool)
    cut[:1] = False
    repeats = ~every if zero_masked else inside & ~real
    return SimpleNamespace(
        real=real[..., None], repeats=repeats[..., None], inside=inside[..., None], cut=cut[..., None]
    )


def _walk(steps, way):
    """The steps of one direction, in the order in which it walks, and whether the state starts anew at each of them."""
    # Backwards, the first step behind the cut before t is t - 1. No cut lies before step 0, so it may roll to the end.
    anew = steps.cut if way.step is None else np.roll(steps.cut, -1, axis=0)
    return list(zip(steps.real[way], steps.repeats[way], anew[way], strict=True))


def _select(rows, state, other):
    """The state in the rows chosen, the other elsewhere."""
    return [np.where(rows, member, instead) for member, instead in zip(state, other, strict=True)]


def _run_selected(step, p, x, initial, walk):
    """As `_run`, for rows whose steps differ. x is 0 at the steps that are not real."""
    inputs = x @ p.weight_ih.T + p.bias_ih
    zeros = [np.zeros_like(member) for member in initial]
    state, last = initial, zeros[0]
    outputs, states, kept = [], [], []
    for a, (real, repeats, anew) in zip(inputs, walk, strict=True):
        state = _select(anew, initial, state)
        last = np.where(anew, 0, last)
        # The rows that stand still compute on zeros: whatever they hold must not reach the parameters' gradients.
        after, values = step(p, a, *_select(real, state, zeros))
        state = _select(real, after, state)
        last = np.where(real, after[0], last)
        outputs.append(np.where(real | repeats, last, 0))
        states.append(state)
        kept.append(values)
    return np.stack(outputs), states, kept


def _run_selected_gradient(gradient, p, d, x, kept, dy, dstate, walk):
    """As `_run_gradient`, after `_run_selected`."""
    zeros = [np.zeros_like(member) for member in dstate]
    dinitial, dlast = zeros, zeros[0]
    dinputs, dhs = [], []
    for values, dy_t, (real, repeats, anew) in zip(reversed(kept), reversed(dy), reversed(walk), strict=True):
        dlast = dlast + np.where(real | repeats, dy_t, 0)
        dh, *dc = _select(real, dstate, zeros)
        dh = dh + np.where(real, dlast, 0)
        da, dbefore = gradient(p, d, values, dh, *dc)
        dstate = _select(real, dbefore, dstate)
        dlast = np.where(real | anew, 0, dlast)
        dinitial = [total + np.where(anew, member, 0) for total, member in zip(dinitial, dstate, strict=True)]
        dstate = _select(anew, zeros, dstate)
        dinputs.append(da)
        dhs.append(dh)
    dinitial = [total + member for total, member in zip(dinitial, dstate, strict=True)]
    return _input_gradient(p, d, x, dinputs), dinitial, dhs[::-1]


def _gather(parameters, suffix):
    """The parameters of one layer and direction by their kinds, zeros for absent biases."""
    p = SimpleNamespace(**{kind: parameters.get(kind + suffix) for kind in _KINDS})
    zeros = np.zeros_like(p.weight_hh[:, 0])
    p.bias_ih = zeros if p.bias_ih is None else p.bias_ih
    p.bias_hh = zeros if p.bias_hh is None else p.bias_hh
    return p


def _members(cell, state):
    """The parts of a state: h, or h and c."""
    if cell != "lstm":
        return (state,)
    return (None, None) if state is None else state


def _stack(cell, states):
    """One state from those of every layer and direction."""
    members = tuple(np.stack(member) for member in zip(*states, strict=True))
    return members if cell == "lstm" else members[0]


class _Tape(SimpleNamespace):
    """What `backward` needs of a `forward`."""

    @property
    def cells(self) -> Array:
        """For lstm c after every step, (layers * directions, T, N, H), as held at masked steps, 0 at padded ones."""
        runs = [run for layer in self.layers for run in layer]
        cells = np.stack([np.stack([c for _, c in run.states])[run.way] for run in runs])
        return cells if self.steps is None else np.where(self.steps.inside, cells, 0)


def forward(
    cell: str,
    parameters: Mapping[str, Array],
    x: Array,
    state: Any = None,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    reverse: bool = False,
    masks: Array | None = None,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    reset: ArrayLike | None = None,
    zero_masked: bool = False,
) -> tuple[Array, Any, Any]:
    """Run a stack of layers over a sequence.

    Each layer and direction steps through its input by these equations, where x and h of one batch entry are column
    vectors, * goes element by element and sigma is `sigmoid`:

    - rnn_tanh: h' = tanh(W_ih x + b_ih + W_hh h + b_hh); rnn_relu has max(0, .) in place of tanh.
    - rnn_tanh_leaky: h' = (1 - leak) * h + leak * tanh(W_ih x + b_ih + W_hh h + b_hh), for a fixed leak; rnn_relu_leaky
      has max(0, .) in place of tanh.
    - lstm: i, f, o = sigma(W_ih x + b_ih + W_hh h + b_hh), g = tanh(the same); c' = f * c + i * g;
      h' = o * tanh(c'), with a projection h' = W_hr (o * tanh(c')).
    - gru: r, z = sigma(W_ih x + b_ih + W_hh h + b_hh); n = tanh(W_in x + b_in + r * (W_hn h + b_hn));
      h' = (1 - z) * n + z * h.
    - gru_reset_before: as gru, but n = tanh(W_in x + b_in + W_hn (r * h) + b_hn).

    The rows of the batch may be sequences of their own. In all layers and directions alike a step of a row is real or
    not: x is read at the real ones only, and the state stays as it is at the others.

    Parameters
    ----------
    cell : {"rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before", "rnn_tanh_leaky", "rnn_relu_leaky"}
    parameters : mapping of str to ndarray
        ``weight_ih_l{k}`` (gates * H, I_k), ``weight_hh_l{k}`` (gates * H, H or P) and, where present,
        ``bias_ih_l{k}``, ``bias_hh_l{k}`` (gates * H,), for a projected LSTM ``weight_hr_l{k}`` (P, H) and for a leaky
        RNN ``leak_l{k}`` (1, H), of every layer k; with a trailing ``_reverse`` for the second direction. I_0 = I; for
        k > 0, I_k is the directions times H (or P).
    x : ndarray, (T, N, I), T >= 1
    state : ndarray, (layers * directions, N, H or P), or for lstm a pair with c (..., H), optional
        The state before the first step; index = layer * directions + direction. Zeros where it, or a member of the
        pair, is None.
    num_layers : int
    bidirectional : bool
        A second direction runs from the last step to the first; its outputs stand behind the first's.
    reverse : bool
        The only direction runs from the last step to the first. y stays in the order of x.
    masks : ndarray, (num_layers - 1, T, N, directions * (H or P)), optional
        Multiplied into the outputs of all layers but the last, as dropout does.
    lengths : array_like of int, (N,), optional
        The steps t < lengths[n] of row n are real, the others padding: y is 0 there. From 0 to T; not with `mask`.
    mask : array_like of bool, (T, N), optional
        The real steps. At the others y repeats the output of the step walked before, and is 0 where the row, or its
        part between two resets, has had no real step so far.
    reset : array_like of bool, (T, N), optional
        Cuts row n before every step t >= 1 where it is true, padding apart. Each part is walked on its own, from the
        initial state.
    zero_masked : bool
        y is 0 at all steps that are not real.

    Returns
    -------
    y : ndarray, (T, N, directions * (H or P))
    state : as above
        After the last step that each direction walks.
    tape : object
        For `backward`. It refers to the parameters, x and masks given: leave them as they are until then. For lstm
        ``tape.cells`` is c after every step, (layers * directions, T, N, H), in the order of x; 0 at padding.

    Examples
    --------
    >>> parameters = {"weight_ih_l0": np.array([[0.5]]), "weight_hh_l0": np.array([[2.0]])}
    >>> y, state, tape = forward("rnn_relu", parameters, np.ones((3, 1, 1)))
    >>> y.ravel(), state.ravel()
    (array([0.5, 1.5, 3.5]), array([3.5]))
    >>> forward("rnn_relu", parameters, np.ones((3, 1, 1)), lengths=[2])[0].ravel()
    array([0.5, 1.5, 0. ])
    >>> forward("rnn_relu", parameters, np.ones((3, 1, 1)), mask=[[True], [False], [True]])[0].ravel()
    array([0.5, 0.5, 1.5])
    >>> forward("rnn_relu", parameters, np.ones((3, 1, 1)), reset=[[False], [False], [True]])[0].ravel()
    array([0.5, 1.5, 0.5])
    """
    step, _ = _CELLS[cell]
    T, N, _ = x.shape
    plain = lengths is None and mask is None and reset is None
    steps = None if plain else _steps(T, N, lengths, mask, reset, zero_masked)
    suffixes = ("", "_reverse") if bidirectional else ("",)
    layers: list[Any] = []
    ends: list[Any] = []
    y = x
    for layer in range(num_layers):
        if layer > 0 and masks is not None:
            y = y * masks[layer - 1]
        if steps is not None:
            y = np.where(steps.real, y, 0)
        runs, outputs = [], []
        for suffix in suffixes:
            p = _gather(parameters, f"_l{layer}{suffix}")
            rows, width = p.weight_hh.shape
            widths = (width, rows // 4) if cell == "lstm" else (width,)
            start = [
                np.zeros((N, size), x.dtype) if member is None else member[len(ends)]
                for size, member in zip(widths, _members(cell, state), strict=True)
            ]
            way = slice(None, None, -1) if reverse or suffix else slice(None)
            if steps is None:
                output, states, kept = _run(step, p, y[way], start)
            else:
                output, states, kept = _run_selected(step, p, y[way], start, _walk(steps, way))
            runs.append(SimpleNamespace(suffix=f"_l{layer}{suffix}", p=p, x=y[way], way=way, states=states, kept=kept))
            outputs.append(output[way])
            ends.append(states[-1])
        layers.append(runs)
        y = np.concatenate(outputs, axis=2)
    state = _stack(cell, ends)
    names = [name for name in parameters if not name.startswith("leak_l")]
    return y, state, _Tape(cell=cell, names=names, layers=layers, masks=masks, steps=steps, y=y, state=state)


def backward(tape: Any, dy: Array | None, dstate: Any = None, *, per_step: bool = False) -> tuple[Any, ...]:
    """The gradients of sum(y * dy) + sum(state * dstate) of one `forward`, by backpropagation through time.

    Parameters
    ----------
    tape : object
        From `forward`. May be used again.
    dy : ndarray, the shape of y, or None for zeros
        Ignored where y is 0 because its step is not real.
    dstate : the structure of state, or None
        Zeros where it, or a member of the pair, is None.
    per_step : bool
        Return `dh` too.

    Returns
    -------
    dx : ndarray, (T, N, I)
        0 at the steps that are not real.
    dstate : the structure of state
        The gradient of the initial state.
    dparameters : dict of str to ndarray
        Under the names of the parameters; a leak is fixed and has no gradient.
    dh : ndarray, (layers * directions, T, N, H or P), only with `per_step`
        The gradient of h after every step, by all ways from it: as an output, and repeated as one, and as a state. In
        the order of x; 0 at the steps that are not real.

    Examples
    --------
    >>> parameters = {"weight_ih_l0": np.array([[0.5]]), "weight_hh_l0": np.array([[2.0]])}
    >>> y, state, tape = forward("rnn_relu", parameters, np.ones((3, 1, 1)))
    >>> dx, dstate, dparameters = backward(tape, None, np.ones((1, 1, 1)))
    >>> dx.ravel(), dstate.ravel(), dparameters["weight_hh_l0"].ravel()
    (array([2. , 1. , 0.5]), array([8.]), array([2.5]))
    """
    _, gradient = _CELLS[tape.cell]
    if dy is None:
        dy = np.zeros_like(tape.y)
    ends = [
        np.zeros_like(after) if member is None else member
        for after, member in zip(_members(tape.cell, tape.state), _members(tape.cell, dstate), strict=True)
    ]
    starts: list[Any] = []
    dhs: list[Any] = []
    dparameters: dict[str, Array] = {}
    for layer, runs in reversed(list(enumerate(tape.layers))):
        dx: Any = 0
        before, dhs_layer = [], []
        for direction, (run, dy_run) in enumerate(zip(runs, np.split(dy, len(runs), axis=2), strict=True)):
            d = SimpleNamespace(**{kind: None if a is None else np.zeros_like(a) for kind, a in vars(run.p).items()})
            end = [member[layer * len(runs) + direction] for member in ends]
            given = gradient, run.p, d, run.x, run.kept, dy_run[run.way], end
            if tape.steps is None:
                dx_run, start, dhs_run = _run_gradient(*given)
            else:
                dx_run, start, dhs_run = _run_selected_gradient(*given, _walk(tape.steps, run.way))
            dx = dx + dx_run[run.way]
            before.append(start)
            dhs_layer.append((dhs_run, run.way))
            dparameters.update({kind + run.suffix: value for kind, value in vars(d).items()})
        starts = before + starts
        dhs = dhs_layer + dhs
        if layer > 0 and tape.masks is not None:
            dx = dx * tape.masks[layer - 1]
        if tape.steps is not None:
            dx = np.where(tape.steps.real, dx, 0)
        dy = dx
    results = dx, _stack(tape.cell, starts), {name: dparameters[name] for name in tape.names}
    return (*results, np.stack([np.stack(dhs_run)[way] for dhs_run, way in dhs])) if per_step else results
