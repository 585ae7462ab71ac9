"""Long short-term memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rnnfast._types import Array, DTypeLike, Init, Seed

from .recurrent import Recurrent

__all__ = ["LSTM"]


class LSTM(Recurrent[tuple[Array, Array]]):
    """Long short-term memory, with one or more layers and an optional projection.

    Each step computes, with the gates stacked in the order i, f, g, o in all parameters::

        i, f, o = sigmoid(W_ih x + b_ih + W_hh h_before + b_hh)
        g       = tanh(W_ih x + b_ih + W_hh h_before + b_hh)
        c       = f * c_before + i * g
        h       = o * tanh(c)                 with proj_size: W_hr (o * tanh(c))

    Sources: S. Hochreiter and J. Schmidhuber, "Long short-term memory", 1997; the forget gate: F. Gers et al.,
    "Learning to forget", 2000; the projection: H. Sak et al., "Long short-term memory recurrent neural network
    architectures for large scale acoustic modeling", 2014; the form of ``torch.nn.LSTM``.

    Parameters
    ----------
    input_size, hidden_size, num_layers
        I, H and L as for :class:`RNN`.
    proj_size : int, default 0
        P, the width of h, below H; 0 for no projection.
    activations : list of three, optional
        The functions of the gates, of g, and of c on its way to h, as for :class:`RNN`: sigmoid, tanh, tanh.
    peepholes : bool, default False
        Whether i and f depend on c_before and o on c, unit by unit: W... + p * c.
    coupled : bool, default False
        Whether f is 1 - i; the rows of f in the parameters are then unused.
    bias, batch_first, dropout, bidirectional, reverse, clip, dtype, rng
        As for :class:`RNN`.
    init : str or tuple, default "torch"
        "torch", "keras" and "orthogonal" as for :class:`RNN`; keras has ones in the rows of f of ``bias_ih``, glorot's
        values in ``weight_hr`` and zeros in ``peephole``. "forget", or ("forget", value), is torch's with a bias of 1,
        or value, in the forget gate. ("chrono", T_max) is torch's with ``b_f = log(u)`` and ``b_i = -log(u)``, u
        uniform in (1, T_max - 1) for each unit: the layer begins with memories of 2 to T_max steps. Both biases are
        added, so ``bias_ih`` has such a value and these rows of ``bias_hh`` are 0.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        ``weight_ih_l{k}`` (4*H, I or D*H_out), ``weight_hh_l{k}`` (4*H, H_out), ``bias_ih_l{k}`` and ``bias_hh_l{k}``
        (4*H,), with a projection ``weight_hr_l{k}`` (P, H), with peepholes ``peephole_l{k}`` (3, H) of i, f and o, and
        the same with ``_reverse`` when bidirectional.

    Raises
    ------
    ValueError, TypeError
        If an option is not as described.
    MemoryError
        If the parameters do not fit into memory.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> layer = rnnfast.LSTM(4, 8, num_layers=2, rng=0)
    >>> y, (h, c), tape = layer.forward(np.ones((5, 2, 4), np.float32))
    >>> grads = layer.backward(tape, np.ones_like(y))
    >>> grads.x.shape, grads.parameters["weight_hh_l1"].shape
    ((5, 2, 4), (32, 8))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        proj_size: int = 0,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        activations: Sequence[Any] | None = None,
        clip: float | None = None,
        peepholes: bool = False,
        coupled: bool = False,
        dtype: DTypeLike = np.float32,
        rng: Seed = None,
        init: Init = "torch",
    ) -> None:
        super().__init__("lstm", locals())
