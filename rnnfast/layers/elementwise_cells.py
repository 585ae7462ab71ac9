"""Layers whose recurrence is elementwise: minGRU, minLSTM, SRU and IndRNN.

Without a product with h_before, all products are over whole sequences, and a step costs little more than its gates.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from rnnfast import arguments
from rnnfast._types import Array, DTypeLike, Init, Seed

from .recurrent import Recurrent

__all__ = ["SRU", "IndRNN", "MinGRU", "MinLSTM"]


class MinGRU(Recurrent[Array]):
    """The minimal gated recurrent unit, whose gate depends on the input only.

    Each step computes, with the gates stacked in the order u, n in all parameters::

        u = sigmoid(W_ih x + b_ih)
        n = g(W_ih x + b_ih)
        h = (1 - u) * h_before + u * n

    where g(a) is a + 1/2 for a >= 0 and sigmoid(a) otherwise, or with ``candidate="identity"`` a itself. Source: L.
    Feng et al., "Were RNNs all we needed?", 2024, which calls the gate z and introduces g for computation in the
    logarithmic domain. In rnnfast the letter is u, because a gate z keeps the state in every GRU.

    Parameters
    ----------
    input_size, hidden_size, num_layers
        I, H and L as for :class:`RNN`.
    candidate : {"positive", "identity"}, default "positive"
        The function g. With "positive", h stays positive if the initial state is.
    bias : bool, default True
        Whether to add the bias b_ih.
    batch_first, dropout, input_dropout, zoneout, bidirectional, reverse, init_state, dtype, rng
        As for :class:`RNN`.
    init : str, tuple or None, default "torch"
        How the parameters are initialised: "torch", "keras" and None as for :class:`RNN`, or ("chrono", T_max), which
        sets ``b_u = -log(t)``, where t is uniform in (1, T_max - 1) for each unit, so the untrained layer remembers
        over 2 to T_max steps.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        ``weight_ih_l{k}`` (2*H, I or D*H) and ``bias_ih_l{k}`` (2*H,) for each layer k; with `init_state` also
        ``h0_l{k}`` (H,), initially 0. The names for the reverse direction of a bidirectional layer end in ``_reverse``.

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
    >>> layer = rnnfast.MinGRU(4, 8, rng=0)
    >>> layer
    MinGRU(4, 8)  # 80 parameters
    >>> y, h = layer(np.ones((5, 2, 4)))
    >>> y.shape, h.shape
    ((5, 2, 8), (1, 2, 8))
    """

    _cell = "mingru_positive"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        candidate: Literal["positive", "identity"] = "positive",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        zoneout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        init_state: bool = False,
        dtype: DTypeLike = np.float32,
        rng: Seed = None,
        init: Init = "torch",
    ) -> None:
        self.candidate = arguments.choice("candidate", candidate, ("positive", "identity"))
        super().__init__("mingru_positive" if candidate == "positive" else "mingru", locals())


class MinLSTM(Recurrent[Array]):
    """The minimal LSTM, whose gates depend on the input only and are normalised.

    Each step computes, with the gates stacked in the order f, i, n in all parameters::

        f, i = sigmoid(W_ih x + b_ih)
        n    = g(W_ih x + b_ih)
        h    = f / (f + i) * h_before + i / (f + i) * n

    with g as for :class:`MinGRU`. The state is h alone. Source: L. Feng et al., "Were RNNs all we needed?", 2024.

    Parameters
    ----------
    input_size, hidden_size, num_layers
        I, H and L as for :class:`RNN`.
    candidate : {"positive", "identity"}, default "positive"
        The function g. With "positive", h stays positive if the initial state is.
    bias : bool, default True
        Whether to add the bias b_ih.
    batch_first, dropout, input_dropout, zoneout, bidirectional, reverse, init_state, dtype, rng
        As for :class:`RNN`.
    init : str, tuple or None, default "torch"
        How the parameters are initialised: "torch", "keras" and None as for :class:`RNN`, or "forget" and "chrono" as
        for :class:`LSTM`.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        ``weight_ih_l{k}`` (3*H, I or D*H) and ``bias_ih_l{k}`` (3*H,) for each layer k; with `init_state` also
        ``h0_l{k}`` (H,), initially 0. The names for the reverse direction of a bidirectional layer end in ``_reverse``.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for :class:`MinGRU`.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> layer = rnnfast.MinLSTM(4, 8, bidirectional=True, rng=0)
    >>> y, h = layer(np.ones((5, 2, 4)))
    >>> y.shape, h.shape
    ((5, 2, 16), (2, 2, 8))
    """

    _cell = "minlstm_positive"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        candidate: Literal["positive", "identity"] = "positive",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        zoneout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        init_state: bool = False,
        dtype: DTypeLike = np.float32,
        rng: Seed = None,
        init: Init = "torch",
    ) -> None:
        self.candidate = arguments.choice("candidate", candidate, ("positive", "identity"))
        super().__init__("minlstm_positive" if candidate == "positive" else "minlstm", locals())


class SRU(Recurrent[tuple[Array, Array]]):
    """The simple recurrent unit: an elementwise recurrence and a highway connection.

    Each step computes, with the gates stacked in the order f, r, n in all parameters::

        f, r = sigmoid(W_ih x + b_ih + v * c_before)
        n    = W_ih x + b_ih
        c    = f * c_before + (1 - f) * n
        h    = r * c + (1 - r) * s

    where s is x itself, or with ``highway="linear"`` a fourth product ``W_is x + b_is``. The state is (h, c) as for
    :class:`LSTM`. A step reads c alone: the h of an initial state has no effect, and its gradient is 0. Source: T. Lei
    et al., "Simple recurrent units for highly parallelizable recurrence", 2018. In that paper, n has no bias, and x may
    have a constant factor, which a linear highway can represent.

    Parameters
    ----------
    input_size, hidden_size, num_layers
        I, H and L as for :class:`RNN`.
    highway : {"auto", "identity", "linear"}, default "auto"
        What s is. "identity" requires that the input of every layer has H features: ``input_size == hidden_size``, and
        one layer if it is bidirectional. "auto" is "identity" where that is possible, and "linear" otherwise.
    bias : bool, default True
        Whether to add the bias b_ih.
    batch_first, dropout, input_dropout, zoneout, bidirectional, reverse, init_state, dtype, rng
        As for :class:`RNN`.
    init : str, tuple or None, default "torch"
        How the parameters are initialised: "torch", "keras" and None as for :class:`RNN`, or "forget" and "chrono" as
        for :class:`LSTM`.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        ``weight_ih_l{k}`` (3*H or 4*H, I or D*H), ``bias_ih_l{k}`` (3*H,) or (4*H,), and ``peephole_l{k}`` (2, H), with
        rows for f and r, for each layer k; with `init_state` also ``h0_l{k}`` and ``c0_l{k}`` (H,), initially 0. The
        names for the reverse direction of a bidirectional layer end in ``_reverse``.

    Raises
    ------
    ValueError
        As for :class:`MinGRU`, or if ``highway="identity"`` is not possible.
    TypeError, MemoryError
        As for :class:`MinGRU`.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> layer = rnnfast.SRU(8, 8, num_layers=2, rng=0)
    >>> y, (h, c) = layer(np.ones((5, 2, 8)))
    >>> y.shape, c.shape
    ((5, 2, 8), (2, 2, 8))
    """

    _cell = "sru_linear"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        highway: Literal["auto", "identity", "linear"] = "auto",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        init_state: bool = False,
        dtype: DTypeLike = np.float32,
        rng: Seed = None,
        init: Init = "torch",
    ) -> None:
        self.highway = arguments.choice("highway", highway, ("auto", "identity", "linear"))
        sizes = arguments.size("input_size", input_size), arguments.size("hidden_size", hidden_size)
        layers = arguments.size("num_layers", num_layers)
        fits = sizes[0] == sizes[1] and not (arguments.flag("bidirectional", bidirectional) and layers > 1)
        if highway == "identity" and not fits:
            raise ValueError(
                "highway='identity' adds the input of each layer to its output, so input_size must equal hidden_size, "
                f"and a bidirectional SRU must have one layer, got input_size={input_size}, hidden_size={hidden_size}, "
                f"num_layers={num_layers} and bidirectional={bidirectional}: use highway='linear'"
            )
        super().__init__("sru_linear" if highway == "linear" or not fits else "sru", locals())

    @classmethod
    def _variants(cls) -> tuple[str, ...]:
        return "sru", "sru_linear"


class IndRNN(Recurrent[Array]):
    """The independently recurrent network: each unit sees only its own state.

    Each step computes, where f is relu or tanh and w is a vector::

        h = f(W_ih x + b_ih + w * h_before)

    Source: S. Li et al., "Independently recurrent neural network (IndRNN): building a longer and deeper RNN", 2018.
    Over T steps, the gradient is multiplied by up to ``max(abs(w)) ** T``, so that paper limits abs(w) to
    ``2 ** (1 / T)``.

    Parameters
    ----------
    input_size, hidden_size, num_layers
        I, H and L as for :class:`RNN`.
    nonlinearity : {"relu", "tanh"}, default "relu"
        The function f.
    bias : bool, default True
        Whether to add the bias b_ih.
    batch_first, dropout, input_dropout, zoneout, bidirectional, reverse, init_state, dtype, rng
        As for :class:`RNN`.
    init : str or None, default "torch"
        How the parameters are initialised: "torch", "keras", "identity" and None as for :class:`RNN`. w is uniform in
        (0, 1), or with "identity" it is 1.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        ``weight_ih_l{k}`` (H, I or D*H), ``bias_ih_l{k}`` (H,) and ``recurrent_l{k}`` (1, H), which is w, for each
        layer k; with `init_state` also ``h0_l{k}`` (H,), initially 0. The names for the reverse direction of a
        bidirectional layer end in ``_reverse``.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for :class:`MinGRU`.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> layer = rnnfast.IndRNN(4, 8, rng=0)
    >>> y, h, tape = layer.forward(np.ones((5, 2, 4)))
    >>> layer.backward(tape, np.ones_like(y)).parameters["recurrent_l0"].shape
    (1, 8)
    """

    _cell = "indrnn_relu"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: Literal["relu", "tanh"] = "relu",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        zoneout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        init_state: bool = False,
        dtype: DTypeLike = np.float32,
        rng: Seed = None,
        init: Init = "torch",
    ) -> None:
        self.nonlinearity = arguments.choice("nonlinearity", nonlinearity, ("relu", "tanh"))
        super().__init__(f"indrnn_{nonlinearity}", locals())
