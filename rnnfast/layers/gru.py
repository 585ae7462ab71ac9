"""The gated recurrent unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rnnfast import arguments
from rnnfast._types import Array, DTypeLike, Init, Seed

from .recurrent import Recurrent

__all__ = ["GRU"]


class GRU(Recurrent[Array]):
    """The gated recurrent unit, with one or more layers, and with either convention for its reset gate.

    Each step computes, with the gates stacked in the order r, z, n in all parameters::

        r, z = sigmoid(W_ih x + b_ih + W_hh h_before + b_hh)
        n    = tanh(W_in x + b_in + r * (W_hn h_before + b_hn))      reset_after=True
        n    = tanh(W_in x + b_in + W_hn (r * h_before) + b_hn)      reset_after=False
        h    = (1 - z) * n + z * h_before

    With ``reset_after=True`` it is equivalent to ``torch.nn.GRU``, and to the GRU of cuDNN. Source: K. Cho et al.,
    "Learning phrase representations using RNN encoder-decoder for statistical machine translation", 2014
    (``reset_after=False``).

    Parameters
    ----------
    input_size, hidden_size, num_layers
        I, H and L as for :class:`RNN`.
    reset_after : bool, default True
        Whether the reset gate is applied after the product with W_hn, as in torch, or before it, as in the paper.
    activations : list, optional
        Two activation functions, specified as for :class:`RNN`: for the gates r and z, and for n. The default is
        sigmoid, tanh.
    zoneout, bias, batch_first, dropout, input_dropout, bidirectional, reverse, clip, init_state, dtype, rng
        As for :class:`RNN`.
    recurrent_dropout : float, default 0
        As for :class:`RNN`. Recurrent dropout acts on what W_hh multiplies: h_before, or r * h_before in W_hn's product
        with reset_after=False. It does not act on z * h_before.
    init : str, tuple or None, default "torch"
        How the parameters are initialised: "torch", "keras", "orthogonal" and None as for :class:`RNN`, or
        ("chrono", T_max). The latter sets ``b_z = log(u)``, where u is uniform in (1, T_max - 1) for each unit, so the
        untrained layer remembers over 2 to T_max steps. This bias is stored in ``bias_ih``, and the corresponding rows
        of ``bias_hh`` are 0. The rest is as for "torch".

    Attributes
    ----------
    parameters : mapping of str to ndarray
        ``weight_ih_l{k}`` (3*H, I or D*H), ``weight_hh_l{k}`` (3*H, H), ``bias_ih_l{k}`` and ``bias_hh_l{k}`` (3*H,)
        for each layer k; with `init_state` also ``h0_l{k}`` (H,), initially 0. The names for the reverse direction of a
        bidirectional layer end in ``_reverse``.

    Raises
    ------
    ValueError
        If an option is out of range, or options are mutually exclusive.
    TypeError
        If an option has the wrong type.
    MemoryError
        If the parameters do not fit into memory.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> layer = rnnfast.GRU(4, 8, batch_first=True, bidirectional=True, rng=0)
    >>> y, h = layer(np.ones((2, 5, 4)))
    >>> y.shape, h.shape
    ((2, 5, 16), (2, 2, 8))
    """

    _cell = "gru"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset_after: bool = True,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        input_dropout: float = 0.0,
        zoneout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        activations: Sequence[Any] | None = None,
        clip: float | None = None,
        init_state: bool = False,
        dtype: DTypeLike = np.float32,
        rng: Seed = None,
        init: Init = "torch",
    ) -> None:
        self.reset_after = arguments.flag("reset_after", reset_after)
        super().__init__("gru" if reset_after else "gru_reset_before", locals())
