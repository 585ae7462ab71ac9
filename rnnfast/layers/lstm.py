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

    Equivalent to ``torch.nn.LSTM``. Sources: S. Hochreiter and J. Schmidhuber, "Long short-term memory", 1997. F. Gers
    et al., "Learning to forget", 2000 (forget gate). H. Sak et al., "Long short-term memory recurrent neural network
    architectures for large scale acoustic modeling", 2014 (projection).

    Parameters
    ----------
    input_size, hidden_size, num_layers
        I, H and L as for :class:`RNN`.
    proj_size : int, default 0
        P, the size to which h is projected, below H. 0 means no projection.
    activations : list, optional
        Three activation functions, specified as for :class:`RNN`: for the gates i, f and o, for g, and for the
        activation of c in the equation of h. The default is sigmoid, tanh, tanh.
    peepholes : bool, default False
        Whether to add ``p * c_before`` to the inputs of i and f, and ``p * c`` to that of o, with one weight p per gate
        and unit.
    coupled : bool, default False
        Whether the forget gate is 1 - i. The rows of f in the parameters are then unused.
    zoneout : float or (float, float), default 0
        As for :class:`RNN`; a pair holds the probabilities of h and of c. h follows from the c that the step computes,
        not from the one that it keeps. With a projection, the units of h are those of the projection.
    bias, batch_first, dropout, recurrent_dropout, input_dropout, bidirectional, reverse, clip, init_state, dtype, rng
        As for :class:`RNN`.
    init : str, tuple or None, default "torch"
        How the parameters are initialised: "torch", "keras", "orthogonal" and None as for :class:`RNN`, or one of those
        below. With "keras", the bias of the forget gate is 1, ``weight_hr`` is initialised like ``weight_ih``, and
        ``peephole`` is 0. As the two biases of a gate are added, a bias set by a scheme is stored in ``bias_ih``, and
        the corresponding rows of ``bias_hh`` are 0.

        - "forget" or ("forget", value): the bias of the forget gate is 1, or `value`. The rest is as for "torch".
        - ("chrono", T_max): ``b_f = log(u)`` and ``b_i = -log(u)``, where u is uniform in (1, T_max - 1) for each unit,
          so the untrained layer remembers over 2 to T_max steps. The rest is as for "torch".

    Attributes
    ----------
    parameters : mapping of str to ndarray
        ``weight_ih_l{k}`` (4*H, I or D*H_out), ``weight_hh_l{k}`` (4*H, H_out), ``bias_ih_l{k}`` and ``bias_hh_l{k}``
        (4*H,) for each layer k; with a projection also ``weight_hr_l{k}`` (P, H), and with peepholes ``peephole_l{k}``
        (3, H), with rows for i, f and o; with `init_state` also ``h0_l{k}`` (H_out,) and ``c0_l{k}`` (H,), initially 0.
        The names for the reverse direction of a bidirectional layer end in ``_reverse``.

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
    >>> layer = rnnfast.LSTM(4, 8, num_layers=2, rng=0)
    >>> y, (h, c), tape = layer.forward(np.ones((5, 2, 4), np.float32))
    >>> grads = layer.backward(tape, np.ones_like(y))
    >>> grads.x.shape, grads.parameters["weight_hh_l1"].shape
    ((5, 2, 4), (32, 8))
    """

    _cell = "lstm"

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
        recurrent_dropout: float = 0.0,
        input_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        activations: Sequence[Any] | None = None,
        clip: float | None = None,
        peepholes: bool = False,
        coupled: bool = False,
        init_state: bool = False,
        dtype: DTypeLike = np.float32,
        rng: Seed = None,
        init: Init = "torch",
    ) -> None:
        super().__init__("lstm", locals())
