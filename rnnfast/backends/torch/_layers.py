"""torch's recurrent layers and cells as subclasses that replace `forward`."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from rnnfast import arguments, functional
from rnnfast.ragged import INITIAL, RESET_STATES

from . import _loop, _operators
from ._call import Call, as_tensor

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # the parameters of a cell
_CELLS = {cell.upper(): cell for cell in functional.CELLS}  # by the names that torch has for a layer's mode


@functools.cache
def _warn_once(what: str) -> None:
    warnings.warn(
        f"{what} fall back to torch's own forward: rnnfast runs float32 and float64 tensors on the CPU",
        RuntimeWarning,
        stacklevel=4,
    )


def _runs(x: Tensor, *others: Any) -> bool:
    """Whether rnnfast runs a call with these tensors. Of the parameters, one is enough: they must agree."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    dtype = x.dtype
    if dtype not in _operators.DTYPES or not x.is_cpu:
        _warn_once(f"{dtype} tensors on {x.device.type}")
        return False
    for one in others:  # noqa: SIM110 - a generator takes longer
        if not isinstance(one, Tensor) or one.dtype is not dtype or not one.is_cpu:
            return False
    return True


def _permuted(state: Tensor, indices: Tensor | None) -> Tensor:
    return state if indices is None else state.index_select(1, indices)


class Fast(torch.nn.Module):
    """Base class of all layers and cells that rnnfast runs.

    Attributes
    ----------
    torch_class : type
        The class that `revert` restores. Each class sets its own.
    """

    torch_class: type[torch.nn.Module]


class _Recurrent(Fast, torch.nn.RNNBase):
    """The forward method of all three layers. It precedes torch's class in the order of inheritance."""

    def forward(
        self,
        input: Any,  # noqa: A002
        hx: Any = None,
        *,
        lengths: Any = None,
        mask: Any = None,
        reset: Any = None,
        reset_state: Any = INITIAL,
        zero_masked: bool = False,
    ) -> Any:
        """Run the layer, with torch's arguments and results, and those of rnnfast's layers for ragged batches.

        Parameters
        ----------
        input : Tensor (T, N, I), with batch_first (N, T, I), or unbatched (T, I); or PackedSequence
        hx : Tensor (L*D, N, H_out), unbatched (L*D, H_out); for LSTM a pair with (L*D, N, H), optional
            The initial state; zeros by default.
        lengths : Tensor or array_like of int, (N,), unbatched one integer, optional
            The number of steps of each row, from 0 to T, in any order. Padding is never read, and output is 0 there.
            The final state is the state after the last valid step. A row of length 0 returns its initial state.
        mask : Tensor or array_like of bool, (T, N), with batch_first (N, T), unbatched (T,), optional
            True at valid steps. At masked-out steps the state is kept, and output repeats that of the previous step of
            the same direction, or is 0 if there is none. Mutually exclusive with `lengths`.
        reset : Tensor or array_like of bool, of the shape of `mask`, optional
            True at each step where a new sequence starts within the row. That step starts from `reset_state`, and no
            state, output or gradient crosses the boundary.
        reset_state : {"initial", "zeros"}, None, or tensors in the form of `hx`, default "initial"
            The state from which sequences start at a reset: "initial" means `hx`, and "zeros" and None mean zeros.
            Gradients flow to tensors. Unless it is "initial", only the first sequence of a row starts from `hx`, and a
            row that is reset at step 0 ignores `hx`. In a reverse direction, only the last sequence of a row starts
            from `hx`. Without `reset`, the argument has no effect.
        zero_masked : bool, default False
            Whether output is 0 at masked-out steps, instead of repeating.

        Returns
        -------
        output : Tensor (T, N, D*H_out), in the layout of `input`; or PackedSequence
        hx : Tensor, or for LSTM the pair of h and c
            The final state, in the layout of the initial state.

        Raises
        ------
        ValueError, RuntimeError
            Where torch's own forward raises them. ValueError also if lengths, mask, reset or reset_state have a wrong
            shape or value, or come with a PackedSequence.
        TypeError
            If lengths are not integers, mask or reset are not booleans, or reset_state does not consist of tensors.
        """
        own = self._parameters  # a look-up here is faster than getattr, the fallback for replaced parameters
        parameters: list[Any] = [own[name] if name in own else getattr(self, name) for name in self._flat_weights_names]
        pair = self.mode == "LSTM"
        states: Sequence[Any] = () if hx is None else tuple(hx) if pair else (hx,)
        ragged = lengths is not None or mask is not None or reset is not None or zero_masked is not False
        ragged = ragged or reset_state is not INITIAL
        if isinstance(input, PackedSequence):
            if ragged:
                raise ValueError(
                    "lengths, mask and reset describe the steps of a padded tensor, but input is a PackedSequence, "
                    "which holds its own lengths: pass a padded tensor"
                )
            x, batch_sizes, sorted_indices, unsorted_indices = input
            axes = "packed"
        else:
            x, batch_sizes, sorted_indices, unsorted_indices = input, None, None, None
            axes = ("NT" if self.batch_first else "TN") if x.dim() == 3 else "T"
        if not self._fits(x, batch_sizes, states) or (not ragged and torch.is_autocast_enabled("cpu")):
            return super().forward(input, hx)
        run, resets = _operators.run, self._resets(reset_state, x) if ragged else ()
        if reset is None:
            resets = ()
        if not _runs(x, parameters[0], *states, *resets) or x.numel() == 0:
            if not ragged or x.numel() == 0:
                return super().forward(input, hx)
            run = _loop.run
        if sorted_indices is not None:
            states = [_permuted(state, sorted_indices) for state in states]
        if ragged:
            zero_masked = arguments.flag("zero_masked", zero_masked)
            lengths, mask, reset = as_tensor("lengths", lengths), as_tensor("mask", mask), as_tensor("reset", reset)
        h0, c0 = (*states, None, None)[:2]
        h_reset, c_reset = (*resets, None, None)[:2]
        call = Call(
            x,
            h0,
            c0,
            h_reset,
            c_reset,
            self._dropout_factors(x, axes),
            batch_sizes,
            lengths,
            mask,
            reset,
            parameters,
            _CELLS[self.mode],
            self.num_layers,
            self.bidirectional,
            axes,
            zero_masked,
        )
        try:
            y, *last = run(call)
        except _operators.Misfit:
            if ragged:
                raise
            return super().forward(input, hx)
        if batch_sizes is not None:
            y = PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices)
            last = [_permuted(state, unsorted_indices) for state in last[: 1 + pair]]
        return y, (last[0], last[1]) if pair else last[0]

    def _fits(self, x: Any, batch_sizes: Any, states: Any) -> bool:
        """Whether the shapes fit the layer. If not, torch's forward raises the error."""
        if x.dim() not in ((2, 3) if batch_sizes is None else (2,)) or x.shape[-1] != self.input_size:
            return False
        if batch_sizes is not None and not (
            isinstance(batch_sizes, Tensor)
            and batch_sizes.dim() == 1
            and batch_sizes.dtype is torch.int64
            and batch_sizes.is_cpu
            and len(batch_sizes)
        ):
            return False
        if not states:
            return True
        return [getattr(state, "shape", None) for state in states] == self._shapes(x, batch_sizes)

    def _shapes(self, x: Any, batch_sizes: Any = None) -> list[tuple[int, ...]]:
        """The shapes of h and, for an LSTM, c."""
        batch = (
            [x.shape[not self.batch_first]] if x.dim() == 3 else [] if batch_sizes is None else [int(batch_sizes[0])]
        )
        L = self.num_layers * (1 + self.bidirectional)
        widths = (self.proj_size or self.hidden_size, self.hidden_size)[: 1 + (self.mode == "LSTM")]
        return [(L, *batch, width) for width in widths]

    def _resets(self, reset_state: Any, x: Tensor) -> Sequence[Tensor]:
        """Check a reset state; return its tensors, none for "initial"."""
        if isinstance(reset_state, str) and arguments.choice("reset_state", reset_state, RESET_STATES) == INITIAL:
            return ()
        shapes = self._shapes(x)
        if reset_state is None or isinstance(reset_state, str):
            return [x.new_zeros(shape) for shape in shapes]
        given = tuple(reset_state) if isinstance(reset_state, (tuple, list)) else (reset_state,)
        if not all(isinstance(one, Tensor) for one in given):
            raise TypeError(
                f"reset_state must consist of tensors, as hx does, got {[type(one).__name__ for one in given]}"
            )
        if [tuple(one.shape) for one in given] != shapes:
            expected, got = (" and ".join(map(str, some)) for some in (shapes, [tuple(one.shape) for one in given]))
            raise ValueError(f"reset_state must have the shape of hx, {expected}, got {got}")
        return given

    def _dropout_factors(self, x: Tensor, axes: str) -> Tensor | None:
        """Dropout factors for the outputs of all layers but the last, drawn layer by layer as torch draws them."""
        if not (self.training and self.dropout and self.num_layers > 1):
            return None
        rows = x.shape[1::-1] if axes == "NT" else x.shape[:-1]
        width = (1 + self.bidirectional) * (self.proj_size or self.hidden_size)
        kept = 1 - self.dropout
        factors = [x.new_empty((*rows, width)).bernoulli_(kept) for _ in range(self.num_layers - 1)]
        return torch.stack(factors).div_(kept or 1)


class _Cell(Fast, torch.nn.RNNCellBase):
    """The forward method of all three cells. It precedes torch's class in the order of inheritance."""

    def forward(self, input: Any, hx: Any = None) -> Any:  # noqa: A002
        """Run one step, with torch's arguments and results.

        Parameters
        ----------
        input : Tensor (N, I), or unbatched (I,)
        hx : Tensor (N, H), unbatched (H,); for LSTMCell a pair of these, optional
            The state before the step; zeros by default.

        Returns
        -------
        Tensor, or for LSTMCell the pair of h and c
            The state after the step.

        Raises
        ------
        ValueError, RuntimeError
            Where torch's own forward raises them.
        """
        own, names = self._parameters, _NAMES if self.bias else _NAMES[:2]
        parameters: list[Any] = [own[name] if name in own else getattr(self, name) for name in names]
        cell = self._cell_name()
        pair = cell == "lstm"
        states: Sequence[Any] = () if hx is None else tuple(hx) if pair else (hx,)
        shape = (*input.shape[:-1], self.hidden_size)
        if (
            input.dim() not in (1, 2)
            or input.shape[-1] != self.input_size
            or cell not in functional.CELLS
            or [one.shape for one in states] != [shape] * (len(states) and 1 + pair)
            or not _runs(input, parameters[0], *states)
            or input.numel() == 0
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(input, hx)
        h0, c0 = (*states, None, None)[:2]
        axes = "N" if input.dim() == 2 else ""
        call = Call(input, h0, c0, *(None,) * 7, parameters, cell, 1, False, axes, False)
        try:
            _, h, *others = _operators.run(call)  # y has the values of h, but backward needs it unchanged
        except _operators.Misfit:
            return super().forward(input, hx)
        return (h, others[0]) if pair else h

    def _cell_name(self) -> str:
        raise NotImplementedError


class RNN(_Recurrent, torch.nn.RNN):
    """torch.nn.RNN run by rnnfast, with the same constructor.

    Examples
    --------
    >>> import torch
    >>> from rnnfast.backends.torch import RNN
    >>> output, h_n = RNN(4, 8, nonlinearity="relu")(torch.ones(5, 2, 4))
    >>> output.shape, h_n.shape
    (torch.Size([5, 2, 8]), torch.Size([1, 2, 8]))
    """

    torch_class = torch.nn.RNN


class LSTM(_Recurrent, torch.nn.LSTM):
    """torch.nn.LSTM run by rnnfast, with the same constructor.

    Examples
    --------
    >>> import torch
    >>> from rnnfast.backends.torch import LSTM
    >>> layer = LSTM(4, 8, num_layers=2, batch_first=True, bidirectional=True, proj_size=3)
    >>> output, (h_n, c_n) = layer(torch.ones(2, 5, 4))
    >>> output.shape, h_n.shape, c_n.shape
    (torch.Size([2, 5, 6]), torch.Size([4, 2, 3]), torch.Size([4, 2, 8]))
    """

    torch_class = torch.nn.LSTM


class GRU(_Recurrent, torch.nn.GRU):
    """torch.nn.GRU run by rnnfast, with the same constructor.

    Examples
    --------
    >>> import torch
    >>> from rnnfast.backends.torch import GRU
    >>> layer = GRU(4, 8)
    >>> output, h_n = layer(torch.ones(5, 2, 4))
    >>> output.sum().backward()
    >>> layer.weight_hh_l0.grad.shape
    torch.Size([24, 8])
    """

    torch_class = torch.nn.GRU


class RNNCell(_Cell, torch.nn.RNNCell):
    """torch.nn.RNNCell run by rnnfast, with the same constructor.

    Examples
    --------
    >>> import torch
    >>> from rnnfast.backends.torch import RNNCell
    >>> RNNCell(4, 8, nonlinearity="relu")(torch.ones(2, 4)).shape
    torch.Size([2, 8])
    """

    torch_class = torch.nn.RNNCell

    def _cell_name(self) -> str:
        return f"rnn_{self.nonlinearity}"


class LSTMCell(_Cell, torch.nn.LSTMCell):
    """torch.nn.LSTMCell run by rnnfast, with the same constructor.

    Examples
    --------
    >>> import torch
    >>> from rnnfast.backends.torch import LSTMCell
    >>> cell, state = LSTMCell(4, 8), None
    >>> for step in torch.ones(5, 2, 4):
    ...     state = cell(step, state)
    >>> state[0].shape, state[1].shape
    (torch.Size([2, 8]), torch.Size([2, 8]))
    """

    torch_class = torch.nn.LSTMCell

    def _cell_name(self) -> str:
        return "lstm"


class GRUCell(_Cell, torch.nn.GRUCell):
    """torch.nn.GRUCell run by rnnfast, with the same constructor.

    Examples
    --------
    >>> import torch
    >>> from rnnfast.backends.torch import GRUCell
    >>> GRUCell(4, 8)(torch.ones(4)).shape
    torch.Size([8])
    """

    torch_class = torch.nn.GRUCell

    def _cell_name(self) -> str:
        return "gru"


with contextlib.suppress(ImportError):  # torch.compiler.disable would do the same, but imports the whole compiler
    from torch._C._dynamo import eval_frame

    # Where torch.compile breaks the graph at a layer, it must not compile these functions or their callees.
    _SKIP = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)
    for _function in (_Recurrent.forward, _Cell.forward, *_operators.COMPILED):
        eval_frame.set_code_exec_strategy(_function.__code__, _SKIP)
