"""The same layers as a loop over time in torch's own operators, for whatever the kernels do not differentiate or run.

The loop computes what the kernels compute, from the same record of a call, on any device, in any floating dtype and
under any transform. Autograd differentiates it any number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from ._call import Call, is_step, pattern_of

__all__ = ["run"]


class _Weights(NamedTuple):
    """The parameters of one layer and direction."""

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    hr: Tensor | None = None


def _weights(parameters: Sequence[Tensor]) -> _Weights:
    """The parameters of one layer and direction by name; there are 2, with biases 2 more, with a projection 1 more."""
    hr = parameters[-1] if len(parameters) % 2 else None
    bias_ih, bias_hh = parameters[2:4] if len(parameters) >= 4 else (None, None)
    return _Weights(parameters[0], parameters[1], bias_ih, bias_hh, hr)


def _rnn_tanh(a: Tensor, w: _Weights, h: Tensor) -> tuple[Tensor, ...]:
    return (torch.tanh(a + linear(h, w.hh, w.bias_hh)),)


def _rnn_relu(a: Tensor, w: _Weights, h: Tensor) -> tuple[Tensor, ...]:
    return (torch.relu(a + linear(h, w.hh, w.bias_hh)),)


def _lstm(a: Tensor, w: _Weights, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    i, f, g, o = (a + linear(h, w.hh, w.bias_hh)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return h if w.hr is None else linear(h, w.hr), c


def _gru(a: Tensor, w: _Weights, h: Tensor) -> tuple[Tensor, ...]:
    a_r, a_z, a_n = a.chunk(3, -1)
    q_r, q_z, q_n = linear(h, w.hh, w.bias_hh).chunk(3, -1)
    z = torch.sigmoid(a_z + q_z)
    n = torch.tanh(a_n + torch.sigmoid(a_r + q_r) * q_n)
    return ((1 - z) * n + z * h,)


_CELLS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "rnn_tanh": _rnn_tanh,
    "rnn_relu": _rnn_relu,
    "lstm": _lstm,
    "gru": _gru,
}


class _Steps(NamedTuple):
    """Booleans (T, N, 1) for each step of each row, in the order in which a direction processes them."""

    valid: Tensor
    repeats: Tensor  # y repeats the previous output
    starts: Tensor  # a new sequence starts

    def turned(self) -> _Steps:
        """The steps of the reverse direction: where a sequence starts, its predecessor ends."""
        starts = torch.cat([torch.zeros_like(self.starts[:1]), self.starts[1:].flip(0)])
        return _Steps(self.valid.flip(0), self.repeats.flip(0), starts)


def _steps(call: Call) -> _Steps | None:
    """The steps of a ragged batch; None if every step is valid and nothing is reset."""
    if call.batch_sizes is not None:
        valid = np.arange(int(call.batch_sizes[0])) < call.batch_sizes.numpy()[:, np.newaxis]
        repeats = starts = np.zeros_like(valid)
    else:
        pattern = pattern_of(call)
        if pattern is None:
            return None
        T, N, lengths, mask, reset, held = pattern
        inside = np.ones((T, N), bool) if lengths is None else np.arange(T)[:, np.newaxis] < lengths
        valid = inside if mask is None else mask
        repeats = ~valid if held and not call.zero_masked else np.zeros_like(valid)
        starts = np.zeros_like(valid) if reset is None else reset & inside
    device = call.x.device
    return _Steps(*(torch.from_numpy(part.copy()).to(device).unsqueeze(-1) for part in (valid, repeats, starts)))


def _select(rows: Tensor, state: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`state` in the selected rows, and `other` in the rest."""
    return tuple(torch.where(rows, one, instead) for one, instead in zip(state, other, strict=True))


def _direction(
    cell: str,
    w: _Weights,
    x: Tensor,
    state: tuple[Tensor, ...],
    reset_state: tuple[Tensor, ...],
    steps: _Steps | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one direction of one layer, in the order of x; return y and the final state."""
    step, outputs = _CELLS[cell], []
    zeros = tuple(torch.zeros_like(member) for member in state)
    last = zeros[0]
    for t, a in enumerate(linear(x, w.ih, w.bias_ih)):
        if steps is None:
            state = step(a, w, *state)
            outputs.append(state[0])
            continue
        valid, repeats, starts = (part[t] for part in steps)
        state, last = _select(starts, reset_state, state), torch.where(starts, zeros[0], last)
        # Rows without this step compute on zeros, so that their state cannot affect the gradients of the parameters.
        after = step(a, w, *_select(valid, state, zeros))
        state, last = _select(valid, after, state), torch.where(valid, after[0], last)
        outputs.append(torch.where(valid | repeats, last, zeros[0]))
    return torch.stack(outputs), state


def run(call: Call) -> tuple[Tensor, ...]:
    """y, h_n and c_n, with the shapes that the operators give them; c_n is empty for cells without c."""
    steps = _steps(call)
    y, factors = _time_first(call.x, call, steps), call.dropout
    if factors is not None and call.batch_sizes is not None:
        factors = torch.stack([_time_first(one, call, steps) for one in factors])
    directions = 1 + call.bidirectional
    count = len(call.parameters) // (call.num_layers * directions)
    weights = [_weights(call.parameters[at : at + count]) for at in range(0, len(call.parameters), count)]
    initial = _states(call, weights[0], y, call.h0, call.c0)
    resets = initial if call.h_reset is None else _states(call, weights[0], y, call.h_reset, call.c_reset)
    ends = []
    for layer in range(call.num_layers):
        if layer and factors is not None:
            y = y * factors[layer - 1].reshape(y.shape)
        if steps is not None:
            y = torch.where(steps.valid, y, torch.zeros_like(y))
        outputs = []
        for direction in range(directions):
            at = layer * directions + direction
            start, restart = (tuple(member[at] for member in states) for states in (initial, resets))
            given = (y, steps) if direction == 0 else (y.flip(0), None if steps is None else steps.turned())
            output, end = _direction(call.cell, weights[at], given[0], start, restart, given[1])
            outputs.append(output.flip(0) if direction else output)
            ends.append(end)
        y = torch.cat(outputs, -1)
    h, *c = (torch.stack(member) for member in zip(*ends, strict=True))
    return _as_given(y, call, steps), _unbatched(h, call), _unbatched(c[0], call) if c else h.new_empty(0)


def _states(call: Call, w: _Weights, x: Tensor, h: Tensor | None, c: Tensor | None) -> tuple[Tensor, ...]:
    """h, and c for an LSTM, (layers * directions, N, size); zeros in place of None."""
    states = call.num_layers * (1 + call.bidirectional)
    widths = [w.hh.shape[1], w.ih.shape[0] // 4][: 1 + (call.cell == "lstm")]
    return tuple(
        x.new_zeros(states, x.shape[1], width) if member is None else member.reshape(states, x.shape[1], width)
        for member, width in zip((h, c), widths, strict=False)
    )


def _time_first(x: Tensor, call: Call, steps: _Steps | None) -> Tensor:
    """x as (T, N, features)."""
    if call.batch_sizes is not None:
        assert steps is not None
        valid = steps.valid.squeeze(-1)
        return x.new_zeros(*valid.shape, x.shape[-1]).index_put(torch.nonzero(valid, as_tuple=True), x)
    if call.axes == "NT":
        return x.transpose(0, 1)
    T, N = (dict(zip(call.axes, x.shape, strict=False)).get(axis, 1) for axis in "TN")
    return x.reshape(T, N, x.shape[-1])


def _as_given(y: Tensor, call: Call, steps: _Steps | None) -> Tensor:
    """Undo `_time_first`."""
    if call.batch_sizes is not None:
        assert steps is not None
        return y[steps.valid.squeeze(-1)]
    return y.transpose(0, 1) if call.axes == "NT" else y.reshape(*call.x.shape[:-1], y.shape[-1])


def _unbatched(state: Tensor, call: Call) -> Tensor:
    """A state without the axes that the caller's states do not have."""
    state = state.squeeze(0) if is_step(call.axes) else state
    return state if "N" in call.axes or call.batch_sizes is not None else state.squeeze(-2)
