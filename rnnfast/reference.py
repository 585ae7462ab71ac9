"""Reference implementation of all cells, forward and backward, in plain Python and NumPy.

The kernels are tested against it, and their speed is compared with it: a loop over time with a few matrix products per
step. Two functions per cell compute one step and its gradient. The loop over time is the same for all cells. A second
loop handles lengths, masks and resets: it computes every step for all rows, and then selects the rows that the step
changes. Parameters have torch's names, shapes and gate order (LSTM i, f, g, o; GRU r, z, n). All arithmetic is done in
the dtype of the arguments.

Sources: J. Elman, "Finding structure in time", 1990 (RNN). S. Hochreiter and J. Schmidhuber, "Long short-term memory",
1997, with the forget gate of F. Gers, J. Schmidhuber and F. Cummins, "Learning to forget", 2000 (LSTM). H. Sak,
A. Senior and F. Beaufays, "Long short-term memory recurrent neural network architectures for large scale acoustic
modeling", 2014 (its projection). K. Cho et al., "Learning phrase representations using RNN encoder-decoder for
statistical machine translation", 2014 (GRU, reset before the product). The documentation of torch.nn.RNN, LSTM and GRU
(reset after the product, names, layouts, two biases). H. Jaeger et al., "Optimization and applications of echo
state networks with leaky-integrator neurons", 2007 (leaky RNN). L. Feng et al., "Were RNNs all we needed?", 2024
(minGRU, minLSTM). T. Lei et al., "Simple recurrent units for highly parallelizable recurrence", 2018 (SRU). S. Li et
al., "Independently recurrent neural network (IndRNN): building a longer and deeper RNN", 2018. Y. Gal and
Z. Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", 2016 (input and recurrent
dropout). D. Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", 2016.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from ._types import Array, ArrayLike

__all__ = ["backward", "forward", "sigmoid"]


def sigmoid(a: ArrayLike) -> Array:
    """Compute the logistic function 1 / (1 + exp(-a)) without overflow, accurately even where it is close to 0 or 1.

    Parameters
    ----------
    a : array_like of float, any shape

    Returns
    -------
    ndarray, of the shape and dtype of `a`

    Examples
    --------
    >>> sigmoid(np.array([-1000.0, 0.0, 1000.0]))
    array([0. , 0.5, 1. ])
    """
    e = np.exp(-np.abs(a))
    values: Array = np.where(np.less(a, 0), e, 1) / (1 + e)
    return values


# The step of a cell takes the parameters p of a layer and direction, a = W_ih x + b_ih (N, gates * H), and the state
# before the step. It returns the state after the step, and the values that the gradient needs. The gradient takes these
# values and the gradient of the state after the step. It adds the gradients of the parameters to d, and returns the
# gradients of a and of the state before the step. A state is h (N, H or P) and, for LSTM, c (N, H).


def _masked(p, values):
    """Return values that the recurrent product reads, or their gradients, times the mask of recurrent dropout."""
    return values if p.recurrent_mask is None else values * p.recurrent_mask


def _rnn_tanh_step(p, a, h):
    after = np.tanh(a + _masked(p, h) @ p.weight_hh.T + p.bias_hh)
    return (after,), (h, 1 - after * after)


def _rnn_relu_step(p, a, h):
    after = np.maximum(a + _masked(p, h) @ p.weight_hh.T + p.bias_hh, 0)
    return (after,), (h, ~(after <= 0))


def _rnn_gradient(p, d, kept, dh):
    h, slope = kept
    da = dh * slope
    d.weight_hh += da.T @ _masked(p, h)
    d.bias_hh += da.sum(0)
    return da, (_masked(p, da @ p.weight_hh),)


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
    i, f, g, o = np.split(a + _masked(p, h) @ p.weight_hh.T + p.bias_hh, 4, axis=1)
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
    d.weight_hh += da.T @ _masked(p, h)
    d.bias_hh += da.sum(0)
    return da, (_masked(p, da @ p.weight_hh), dc * f)


def _gru_step(p, a, h):
    a_r, a_z, a_n = np.split(a, 3, axis=1)
    q_r, q_z, q_n = np.split(_masked(p, h) @ p.weight_hh.T + p.bias_hh, 3, axis=1)
    r, z = sigmoid(a_r + q_r), sigmoid(a_z + q_z)
    n = np.tanh(a_n + r * q_n)
    return ((1 - z) * n + z * h,), (h, r, z, n, q_n)


def _gru_gradient(p, d, kept, dh):
    h, r, z, n, q_n = kept
    dn = dh * (1 - z) * (1 - n * n)
    dr = dn * q_n * r * (1 - r)
    dz = dh * (h - n) * z * (1 - z)
    dq = np.concatenate([dr, dz, dn * r], axis=1)
    d.weight_hh += dq.T @ _masked(p, h)
    d.bias_hh += dq.sum(0)
    return np.concatenate([dr, dz, dn], axis=1), (dh * z + _masked(p, dq @ p.weight_hh),)


def _gru_reset_before_step(p, a, h):
    H = h.shape[1]
    a_r, a_z, a_n = np.split(a + p.bias_hh, 3, axis=1)
    q_r, q_z = np.split(_masked(p, h) @ p.weight_hh[: 2 * H].T, 2, axis=1)
    r, z = sigmoid(a_r + q_r), sigmoid(a_z + q_z)
    n = np.tanh(a_n + _masked(p, r * h) @ p.weight_hh[2 * H :].T)
    return ((1 - z) * n + z * h,), (h, r, z, n)


def _gru_reset_before_gradient(p, d, kept, dh):
    h, r, z, n = kept
    H = h.shape[1]
    dn = dh * (1 - z) * (1 - n * n)
    drh = _masked(p, dn @ p.weight_hh[2 * H :])
    dr = drh * h * r * (1 - r)
    dz = dh * (h - n) * z * (1 - z)
    drz = np.concatenate([dr, dz], axis=1)
    da = np.concatenate([drz, dn], axis=1)
    d.weight_hh[: 2 * H] += drz.T @ _masked(p, h)
    d.weight_hh[2 * H :] += dn.T @ _masked(p, r * h)
    d.bias_hh += da.sum(0)
    return da, (dh * z + drh * r + _masked(p, drz @ p.weight_hh[: 2 * H]),)


def _identity(a):
    return a, np.ones_like(a)


def _positive(a):
    """Return g(a) and its slope."""
    s = sigmoid(a)
    return np.where(a >= 0, a + 0.5, s).astype(a.dtype), np.where(a >= 0, 1, s * (1 - s)).astype(a.dtype)


def _mingru_step(_, a, h, g=_identity):
    a_u, a_n = np.split(a, 2, axis=1)
    u, (n, slope) = sigmoid(a_u), g(a_n)
    return ((1 - u) * h + u * n,), (h, u, n, slope)


def _mingru_positive_step(p, a, h):
    return _mingru_step(p, a, h, _positive)


def _mingru_gradient(_, __, kept, dh):
    h, u, n, slope = kept
    return np.concatenate([dh * (n - h) * u * (1 - u), dh * u * slope], axis=1), (dh * (1 - u),)


def _minlstm_step(_, a, h, g=_identity):
    a_f, a_i, a_n = np.split(a, 3, axis=1)
    # log (f / i) = log(1 + e^-a_i) - log(1 + e^-a_f) is accurate where both gates vanish
    share = sigmoid(np.logaddexp(0, -a_i) - np.logaddexp(0, -a_f))
    n, slope = g(a_n)
    return (share * h + (1 - share) * n,), (h, sigmoid(a_f), sigmoid(a_i), n, share, slope)


def _minlstm_positive_step(p, a, h):
    return _minlstm_step(p, a, h, _positive)


def _minlstm_gradient(_, __, kept, dh):
    h, f, i, n, share, slope = kept
    dshare = dh * (h - n) * share * (1 - share)
    return np.concatenate([dshare * (1 - f), -dshare * (1 - i), dh * (1 - share) * slope], axis=1), (dh * share,)


def _sru_step(p, a, h, c):
    a_f, a_r, n, s = np.split(a, 4, axis=1)
    f, r = sigmoid(a_f + p.peephole[0] * c), sigmoid(a_r + p.peephole[1] * c)
    c_after = f * c + (1 - f) * n
    return (r * c_after + (1 - r) * s, c_after), (h, c, f, r, n, s, c_after)


def _sru_gradient(p, d, kept, dh, dc):
    _, c, f, r, n, s, c_after = kept
    dr = dh * (c_after - s) * r * (1 - r)
    dc = dc + dh * r
    df = dc * (c - n) * f * (1 - f)
    d.peephole += np.stack([(df * c).sum(0), (dr * c).sum(0)])
    da = np.concatenate([df, dr, dc * (1 - f), dh * (1 - r)], axis=1)
    return da, (np.zeros_like(dh), dc * f + df * p.peephole[0] + dr * p.peephole[1])


def _indrnn_tanh_step(p, a, h):
    after = np.tanh(a + p.recurrent * h)
    return (after,), (h, 1 - after * after)


def _indrnn_relu_step(p, a, h):
    after = np.maximum(a + p.recurrent * h, 0)
    return (after,), (h, ~(after <= 0))


def _indrnn_gradient(p, d, kept, dh):
    h, slope = kept
    da = dh * slope
    d.recurrent += (da * h).sum(0, keepdims=True)
    return da, (da * p.recurrent,)


_CELLS: dict[str, Any] = {
    "rnn_tanh": (_rnn_tanh_step, _rnn_gradient),
    "rnn_relu": (_rnn_relu_step, _rnn_gradient),
    "lstm": (_lstm_step, _lstm_gradient),
    "gru": (_gru_step, _gru_gradient),
    "gru_reset_before": (_gru_reset_before_step, _gru_reset_before_gradient),
    "rnn_tanh_leaky": (_rnn_tanh_leaky_step, _rnn_leaky_gradient),
    "rnn_relu_leaky": (_rnn_relu_leaky_step, _rnn_leaky_gradient),
    "mingru": (_mingru_step, _mingru_gradient),
    "mingru_positive": (_mingru_positive_step, _mingru_gradient),
    "minlstm": (_minlstm_step, _minlstm_gradient),
    "minlstm_positive": (_minlstm_positive_step, _minlstm_gradient),
    "sru": (_sru_step, _sru_gradient),
    "sru_linear": (_sru_step, _sru_gradient),
    "indrnn_tanh": (_indrnn_tanh_step, _indrnn_gradient),
    "indrnn_relu": (_indrnn_relu_step, _indrnn_gradient),
}
_HAS_C = ("lstm", "sru", "sru_linear")
_ROWS = {"mingru": 2, "mingru_positive": 2, "minlstm": 3, "minlstm_positive": 3, "sru": 3, "sru_linear": 4}  # gates

_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "leak", "peephole", "recurrent")


def _inputs(p, x):
    """Return a = W_ih x + b_ih of all steps, with x appended if the cell reads it."""
    a = x @ p.weight_ih.T + p.bias_ih
    return np.concatenate([a, x], axis=2) if p.reads_x else a


def _step_zoned(step, p, a, state, zoneout):
    """Run a step, after which the state keeps the shares `zoneout` of the state before."""
    after, values = step(p, a, *state)
    if zoneout is not None:
        after = tuple(z * old + (1 - z) * new for z, old, new in zip(zoneout, state, after, strict=True))
    return after, values


def _gradient_zoned(gradient, p, d, values, dstate, zoneout):
    """Return the gradients of a and of the state before a step of `_step_zoned`; add those of p to d."""
    if zoneout is None:
        return gradient(p, d, values, *dstate)
    da, before = gradient(p, d, values, *((1 - z) * member for z, member in zip(zoneout, dstate, strict=True)))
    return da, tuple(one + z * member for one, z, member in zip(before, zoneout, dstate, strict=True))


def _run(step, p, x, state):
    """Run one direction of one layer, in the order of x; return y (T, N, H or P), the states and the values kept."""
    inputs = _inputs(p, x)
    states, kept = [], []
    for a, zoneout in zip(inputs, p.zoneout, strict=True):
        state, values = _step_zoned(step, p, a, state, zoneout)
        states.append(state)
        kept.append(values)
    return np.stack([h for h, *_ in states]), states, kept


def _run_gradient(gradient, p, d, x, kept, dy, dstate):
    """Return the gradients of x, the initial state and every h, in the order of `_run`; add those of p to d."""
    dinputs, dhs = [], []
    for values, dy_t, zoneout in zip(reversed(kept), reversed(dy), reversed(p.zoneout), strict=True):
        dh, *dc = dstate
        dh = dh + dy_t
        da, dstate = _gradient_zoned(gradient, p, d, values, (dh, *dc), zoneout)
        dinputs.append(da)
        dhs.append(dh)
    return _input_gradient(p, d, x, dinputs), dstate, dhs[::-1]


def _input_gradient(p, d, x, dinputs):
    """Return the gradient of x from those of a = W_ih x + b_ih, last step first; add those of p to d."""
    da = np.stack(dinputs[::-1])
    da, dx = np.split(da, [len(p.weight_ih)], axis=2)
    d.weight_ih += np.tensordot(da, x, axes=([0, 1], [0, 1]))
    d.bias_ih += da.sum((0, 1))
    return da @ p.weight_ih + dx if p.reads_x else da @ p.weight_ih


def _steps(T, N, lengths, mask, reset, zero_masked):
    """Return arrays of bool (T, N, 1) that describe each step of each row.

    ``valid``: x is read. ``repeats``: the output is that of the previous step. ``inside``: the step is within the
    length of the row. ``starts``: a new sequence starts here, from the reset state.
    """
    every = np.ones((T, N), bool)
    inside = every if lengths is None else np.arange(T)[:, None] < np.asarray(lengths)
    valid = inside if mask is None else inside & np.asarray(mask, bool)
    starts = ~every if reset is None else inside & np.asarray(reset, bool)
    repeats = ~every if zero_masked else inside & ~valid
    return SimpleNamespace(
        valid=valid[..., None], repeats=repeats[..., None], inside=inside[..., None], starts=starts[..., None]
    )


def _order(steps, way):
    """Return (valid, repeats, starts) for the steps of one direction, in the order in which it processes them."""
    # If a sequence starts at t, the reverse direction starts the previous one at t - 1.
    starts = steps.starts
    if way.step is not None:
        starts = np.concatenate([starts[1:], np.zeros_like(starts[:1])])
    return list(zip(steps.valid[way], steps.repeats[way], starts[way], strict=True))


def _select(rows, state, other):
    """Return `state` in the selected rows, and `other` in the rest."""
    return [np.where(rows, member, instead) for member, instead in zip(state, other, strict=True)]


def _run_selected(step, p, x, state, reset_state, order):
    """Do the same as `_run` for rows with different steps. x is 0 at steps that are not valid."""
    inputs = _inputs(p, x)
    zeros = [np.zeros_like(member) for member in state]
    last = zeros[0]
    outputs, states, kept = [], [], []
    for a, zoneout, (valid, repeats, starts) in zip(inputs, p.zoneout, order, strict=True):
        state = _select(starts, reset_state, state)
        last = np.where(starts, 0, last)
        # Rows without this step compute on zeros, so that their state cannot affect the gradients of the parameters.
        after, values = _step_zoned(step, p, a, _select(valid, state, zeros), zoneout)
        state = _select(valid, after, state)
        last = np.where(valid, after[0], last)
        outputs.append(np.where(valid | repeats, last, 0))
        states.append(state)
        kept.append(values)
    return np.stack(outputs), states, kept


def _run_selected_gradient(gradient, p, d, x, kept, dy, dstate, order):
    """Do the same as `_run_gradient`, after `_run_selected`; return also the gradient of the reset state."""
    zeros = [np.zeros_like(member) for member in dstate]
    dreset, dlast = zeros, zeros[0]
    dinputs, dhs = [], []
    steps = zip(reversed(kept), reversed(dy), reversed(p.zoneout), reversed(order), strict=True)
    for values, dy_t, zoneout, (valid, repeats, starts) in steps:
        dlast = dlast + np.where(valid | repeats, dy_t, 0)
        dh, *dc = _select(valid, dstate, zeros)
        dh = dh + np.where(valid, dlast, 0)
        da, dbefore = _gradient_zoned(gradient, p, d, values, (dh, *dc), zoneout)
        dstate = _select(valid, dbefore, dstate)
        dlast = np.where(valid | starts, 0, dlast)
        dreset = [total + np.where(starts, member, 0) for total, member in zip(dreset, dstate, strict=True)]
        dstate = _select(starts, zeros, dstate)
        dinputs.append(da)
        dhs.append(dh)
    return _input_gradient(p, d, x, dinputs), dstate, dhs[::-1], dreset


def _gather(cell, parameters, suffix, recurrent_mask):
    """Return the parameters of a layer and direction by kind, with zeros for missing biases, its mask, and reads_x."""
    p = SimpleNamespace(**{kind: parameters.get(kind + suffix) for kind in _KINDS}, recurrent_mask=recurrent_mask)
    zeros = np.zeros_like(p.weight_ih[:, 0])
    p.bias_ih = zeros if p.bias_ih is None else p.bias_ih
    p.bias_hh = zeros if p.bias_hh is None else p.bias_hh
    p.reads_x = cell == "sru"
    return p


def _members(cell, state):
    """Return the parts of a state: h, or h and c."""
    if cell not in _HAS_C:
        return (state,)
    return (None, None) if state is None else state


def _stack(cell, states):
    """Combine the states of all layers and directions into one."""
    members = tuple(np.stack(member) for member in zip(*states, strict=True))
    return members if cell in _HAS_C else members[0]


class _Tape(SimpleNamespace):
    """The values of a `forward` that `backward` needs."""

    @property
    def cells(self) -> Array:
        """c of an LSTM after every step, (layers * directions, T, N, H): kept at masked-out steps, 0 at padded ones."""
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
    input_masks: Sequence[Array] | None = None,
    recurrent_masks: Array | None = None,
    zoneout: Sequence[Any] | None = None,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    reset: ArrayLike | None = None,
    reset_state: Any = "initial",
    zero_masked: bool = False,
) -> tuple[Array, Any, Any]:
    """Run a stack of layers over a sequence.

    A step of each layer and direction computes these equations, where x and h of a row are column vectors, * is the
    elementwise product and sigma is `sigmoid`:

    - rnn_tanh: h' = tanh(W_ih x + b_ih + W_hh h + b_hh). rnn_relu has max(0, .) instead of tanh.
    - rnn_tanh_leaky: h' = (1 - leak) * h + leak * tanh(W_ih x + b_ih + W_hh h + b_hh), for a fixed leak.
      rnn_relu_leaky has max(0, .) instead of tanh.
    - lstm: i, f, o = sigma(W_ih x + b_ih + W_hh h + b_hh), and g = tanh of the same sum; c' = f * c + i * g;
      h' = o * tanh(c'), or with a projection h' = W_hr (o * tanh(c')).
    - gru: r, z = sigma(W_ih x + b_ih + W_hh h + b_hh); n = tanh(W_in x + b_in + r * (W_hn h + b_hn));
      h' = (1 - z) * n + z * h.
    - gru_reset_before: as gru, but n = tanh(W_in x + b_in + W_hn (r * h) + b_hn).

    The remaining cells have neither W_hh nor b_hh. Their g is the identity, or in names that end in _positive a + 1/2
    where a >= 0 and sigma(a) otherwise:

    - mingru: u = sigma(W_iu x + b_iu); n = g(W_in x + b_in); h' = (1 - u) * h + u * n.
    - minlstm: f, i = sigma(W_ih x + b_ih); n = g(W_in x + b_in); h' = (f * h + i * n) / (f + i).
    - sru: f, r = sigma(W_ih x + b_ih + v * c); c' = f * c + (1 - f) * (W_in x + b_in); h' = r * c' + (1 - r) * x.
      sru_linear has W_is x + b_is instead of x in the last term.
    - indrnn_tanh: h' = tanh(W_ih x + b_ih + w * h). indrnn_relu has max(0, .) instead of tanh.

    Rows can have different steps, which are the same for all layers and directions: x is read at valid steps only, and
    the state is kept at the others.

    Parameters
    ----------
    cell : str
        One of the names above.
    parameters : mapping of str to ndarray
        For each layer k, ``weight_ih_l{k}`` (gates * H, I_k), ``weight_hh_l{k}`` (gates * H, H or P), and optionally
        ``bias_ih_l{k}`` and ``bias_hh_l{k}`` (gates * H,). An LSTM with a projection also has ``weight_hr_l{k}``
        (P, H), a leaky RNN ``leak_l{k}`` (1, H), an SRU ``peephole_l{k}`` (2, H), which is v for f and r, and an IndRNN
        ``recurrent_l{k}`` (1, H), which is w. Names for the second direction end in ``_reverse``. I_0 is I, and
        for k > 0, I_k is the number of directions times H (or P).
    x : ndarray, (T, N, I), T >= 1
    state : ndarray, (layers * directions, N, H or P), or for lstm and sru a pair with c (..., H), optional
        The initial state, with index = layer * directions + direction. None, for the state or for one of the pair,
        means zeros.
    num_layers : int
    bidirectional : bool
        Whether a second direction runs from the last step to the first. Its outputs are appended to those of the first.
    reverse : bool
        Whether the only direction runs from the last step to the first. y remains in the order of x.
    masks : ndarray, (num_layers - 1, T, N, directions * (H or P)), optional
        Dropout factors for the outputs of all layers but the last.
    input_masks : sequence of ndarray, (N, I_k) for each layer k, optional
        Factors for the input of each layer, the same for all steps (input dropout).
    recurrent_masks : ndarray, (layers * directions, N, H or P), optional
        Factors for what the products with W_hh and its parts read, h or r * h, the same for all steps (recurrent
        dropout). In gru, the last term z * h is not affected, nor is (1 - leak) * h.
    zoneout : sequence of array_like, optional
        For h, and for lstm and sru also for c, the shares z of the state before that a step keeps: h' of the equations
        above is replaced by z * h + (1 - z) * h'. Arrays that broadcast to (layers * directions, T, N, H or P), of 0
        and 1 in training, or else a probability. h' follows from the c' of the equations, before it is replaced.
    lengths : array_like of int, (N,), optional
        The number of valid steps of each row, from 0 to T. The rest is padding, where y is 0. Mutually exclusive with
        `mask`.
    mask : array_like of bool, (T, N), optional
        True at valid steps. At the others, y repeats the output of the previous step of the direction. It is 0 if the
        sequence has had no valid step so far.
    reset : array_like of bool, (T, N), optional
        True where a new sequence starts within a row, from the reset state. Values in padding are ignored.
    reset_state : "initial", "zeros", or a state in the form of `state`
        The reset state. "initial" stands for the initial state. A row that is reset at step 0 ignores the initial
        state, but for a reverse direction, which starts its last sequence from it.
    zero_masked : bool
        Whether y is 0 at all steps that are not valid.

    Returns
    -------
    y : ndarray, (T, N, directions * (H or P))
    state : ndarray, or for lstm a pair
        The state after the last step that each direction processes, in the layout of the initial state.
    tape : object
        Pass it to `backward`. It references the parameters, x and all masks: do not change them before. For lstm,
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
    shared = isinstance(reset_state, str) and reset_state == "initial"
    if isinstance(reset_state, str):
        reset_state = {"initial": state, "zeros": None}[reset_state]
    plain = shared and lengths is None and mask is None and reset is None
    steps = None if plain else _steps(T, N, lengths, mask, reset, zero_masked)
    suffixes = ("", "_reverse") if bidirectional else ("",)
    layers: list[Any] = []
    ends: list[Any] = []
    y = x
    for layer in range(num_layers):
        if layer > 0 and masks is not None:
            y = y * masks[layer - 1]
        if input_masks is not None:
            y = y * input_masks[layer]
        if steps is not None:
            y = np.where(steps.valid, y, 0)
        runs, outputs = [], []
        for suffix in suffixes:
            recurrent_mask = None if recurrent_masks is None else recurrent_masks[len(ends)]
            p = _gather(cell, parameters, f"_l{layer}{suffix}", recurrent_mask)
            p.zoneout = [None] * T
            if p.weight_hh is None:
                widths = (len(p.weight_ih) // _ROWS.get(cell, 1),) * (1 + (cell in _HAS_C))
            else:
                rows, width = p.weight_hh.shape
                widths = (width, rows // 4) if cell == "lstm" else (width,)
            start, restart = (
                [
                    np.zeros((N, size), x.dtype) if member is None else member[len(ends)]
                    for size, member in zip(widths, _members(cell, given), strict=True)
                ]
                for given in (state, reset_state)
            )
            way = slice(None, None, -1) if reverse or suffix else slice(None)
            if zoneout is not None:
                states, sizes = num_layers * len(suffixes), [member.shape[1] for member in start]
                shares = [np.broadcast_to(z, (states, T, N, H))[len(ends)] for z, H in zip(zoneout, sizes, strict=True)]
                p.zoneout = list(zip(*(of_steps[way] for of_steps in shares), strict=True))
            if steps is None:
                output, states, kept = _run(step, p, y[way], start)
            else:
                output, states, kept = _run_selected(step, p, y[way], start, restart, _order(steps, way))
            runs.append(SimpleNamespace(suffix=f"_l{layer}{suffix}", p=p, x=y[way], way=way, states=states, kept=kept))
            outputs.append(output[way])
            ends.append(states[-1])
        layers.append(runs)
        y = np.concatenate(outputs, axis=2)
    state = _stack(cell, ends)
    names = [name for name in parameters if not name.startswith("leak_l")]
    tape = _Tape(cell=cell, names=names, layers=layers, steps=steps, shared=shared, y=y, state=state)
    tape.masks, tape.input_masks = masks, input_masks
    return y, state, tape


def backward(tape: Any, dy: Array | None, dstate: Any = None, *, per_step: bool = False) -> tuple[Any, ...]:
    """Compute the gradients of sum(y * dy) + sum(state * dstate) by back-propagation through time.

    Parameters
    ----------
    tape : object
        From `forward`. It can be used again.
    dy : ndarray of the shape of y, or None for zeros
        Ignored at steps that are not valid, if y is 0 there.
    dstate : ndarray, or for lstm a pair, optional
        None means zeros, for the state or for one of the pair.
    per_step : bool
        Whether to return `dh`.

    Returns
    -------
    dx : ndarray, (T, N, I)
        0 at steps that are not valid.
    dstate : ndarray, or for lstm a pair
        The gradient of the initial state.
    dparameters : dict of str to ndarray
        By the names of the parameters. A leak is fixed and has no gradient.
    dh : ndarray, (layers * directions, T, N, H or P), only with `per_step`
        The total derivative with respect to h after every step, as an output, as a repeated output and as a state, in
        the order of x. 0 at steps that are not valid.
    dreset_state : ndarray, or for lstm a pair, only unless `reset_state` was "initial"
        The gradient of the reset state. The last result.

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
    restarts: list[Any] = []
    dhs: list[Any] = []
    dparameters: dict[str, Array] = {}
    for layer, runs in reversed(list(enumerate(tape.layers))):
        dx: Any = 0
        before, resets, dhs_layer = [], [], []
        for direction, (run, dy_run) in enumerate(zip(runs, np.split(dy, len(runs), axis=2), strict=True)):
            held = {kind: getattr(run.p, kind) for kind in _KINDS}
            d = SimpleNamespace(**{kind: None if a is None else np.zeros_like(a) for kind, a in held.items()})
            end = [member[layer * len(runs) + direction] for member in ends]
            given = gradient, run.p, d, run.x, run.kept, dy_run[run.way], end
            if tape.steps is None:
                dx_run, start, dhs_run = _run_gradient(*given)
            else:
                dx_run, start, dhs_run, restart = _run_selected_gradient(*given, _order(tape.steps, run.way))
                if tape.shared:
                    start = [one + other for one, other in zip(restart, start, strict=True)]
                resets.append(restart)
            dx = dx + dx_run[run.way]
            before.append(start)
            dhs_layer.append((dhs_run, run.way))
            dparameters.update({kind + run.suffix: value for kind, value in vars(d).items()})
        starts, restarts = before + starts, resets + restarts
        dhs = dhs_layer + dhs
        if tape.input_masks is not None:
            dx = dx * tape.input_masks[layer]
        if layer > 0 and tape.masks is not None:
            dx = dx * tape.masks[layer - 1]
        if tape.steps is not None:
            dx = np.where(tape.steps.valid, dx, 0)
        dy = dx
    results: tuple[Any, ...] = dx, _stack(tape.cell, starts), {name: dparameters[name] for name in tape.names}
    if per_step:
        results += (np.stack([np.stack(dhs_run)[way] for dhs_run, way in dhs]),)
    return results if tape.shared else (*results, _stack(tape.cell, restarts))
