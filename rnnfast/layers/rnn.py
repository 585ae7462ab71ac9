"""Elman's recurrent network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from rnnfast import arguments
from rnnfast._types import Array, ArrayLike, DTypeLike, Init, Seed

from .recurrent import Recurrent

__all__ = ["RNN"]


class RNN(Recurrent[Array]):
    """Elman's recurrent network, with one or more layers.

    Each step computes, where f is tanh or relu::

        h = f(W_ih x + b_ih + W_hh h_before + b_hh)

    With `leak` = alpha, it is a leaky RNN, known in neuroscience as a continuous-time RNN (CTRNN)::

        h = (1 - alpha) h_before + alpha f(W_ih x + b_ih + W_hh h_before + b_hh)

    This is the differential equation ``tau dh/dt = -h + f(...)``, solved by Euler's method with time steps of
    ``dt = alpha * tau``.

    Equivalent to ``torch.nn.RNN``, except for the leak. Sources: J. Elman, "Finding structure in time", 1990. H. Jaeger
    et al., "Optimization and applications of echo state networks with leaky-integrator neurons", 2007, and H. F. Song,
    G. R. Yang and X.-J. Wang, "Training excitatory-inhibitory recurrent neural networks for cognitive tasks: a simple
    and flexible framework", 2016 (leaky RNN).

    Parameters
    ----------
    input_size : int
        I, the number of input features.
    hidden_size : int
        H, the number of units in each layer.
    num_layers : int, default 1
        L, the number of stacked layers. Each layer reads the outputs of the layer below.
    nonlinearity : {"tanh", "relu"}, default "tanh"
        The function f.
    bias : bool, default True
        Whether to add the biases b_ih and b_hh.
    batch_first : bool, default False
        If True, x and y have shape (N, T, ...) instead of (T, N, ...). The layout of the state does not change.
    dropout : float, default 0
        Dropout probability, from 0 to 1, for the outputs of all layers but the last in ``forward``. The remaining
        outputs are scaled by 1 / (1 - dropout). Calling the layer applies no dropout.
    recurrent_dropout : float, default 0
        Dropout probability for the h_before that W_hh multiplies, in ``forward``. Each row, unit, layer and direction
        has one mask for all steps (Y. Gal and Z. Ghahramani, "A theoretically grounded application of dropout in
        recurrent neural networks", 2016). The direct path from h_before to h, as in a leaky RNN, is not affected.
    input_dropout : float, default 0
        Dropout probability for the input of each layer, in ``forward``. Each row, feature and layer has one mask for
        all steps. Between layers, it acts in addition to `dropout`.
    zoneout : float, default 0
        The probability with which a unit of h keeps its value of the step before in ``forward``, drawn for each row and
        step (D. Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", 2016). A call
        of the layer, and a stream, compute the expectation: ``z * h_before + (1 - z) * h``. Unlike dropout, it
        therefore changes them too, and cannot be assigned.
    bidirectional : bool, default False
        Whether each layer runs in both directions. Their outputs are concatenated in y, forward direction first.
    reverse : bool, default False
        Whether the layer runs from the last step to the first. y remains in the order of x.
    activations : list, optional
        Replaces `nonlinearity`: a list with the name of f. A bidirectional layer also accepts two names, the second for
        the reverse direction. Names are sigmoid, tanh, relu, affine, leaky_relu, thresholded_relu, scaled_tanh,
        hard_sigmoid, elu, softsign and softplus, as defined by the ONNX standard. To set alpha and beta, pass a tuple
        (name, alpha) or (name, alpha, beta) instead of a name.
    clip : float, optional
        Limits the input of every activation to [-clip, clip].
    leak : float or array_like, optional
        The leak alpha, above 0 and at most 1: a number, an array (H,) with one per unit, or any array that broadcasts
        to (L*D, H). It is an option, not a parameter: it is saved with the layer, but not trained and not part of
        ``state_dict``. Mutually exclusive with `activations` and `clip`.
    init_state : bool, default False
        Whether the initial state is learned: it is then a parameter, in place of zeros, wherever no state is passed.
    dtype : {numpy.float32, numpy.float64}, default numpy.float32
    rng : None, int or numpy.random.Generator
        Draws the initial parameters, and later the dropout masks.
    init : str or None, default "torch"
        How the parameters are initialised. This option is used by the constructor only, and is not saved.

        - "torch": all parameters are uniform in (-1/sqrt(H), 1/sqrt(H)), as in torch.
        - "keras": as in Keras. ``weight_ih`` (G*H, I), for G gates, is uniform in (-b, b) with b = sqrt(6 / (I + G*H)).
          ``weight_hh`` has orthonormal columns. Biases are 0.
        - "orthogonal": each gate's block of ``weight_hh`` is an orthogonal matrix. The rest is as for "torch".
        - "identity", for relu only: ``weight_hh`` is the identity, biases are 0, and ``weight_ih`` is normal with a
          standard deviation of 0.001, as in Le et al., 2015.
        - None: all parameters are 0, for a layer whose values are loaded next. Nothing is drawn, which takes almost no
          time. :func:`rnnfast.load` and ``from_state_dict`` do not draw values either.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        ``weight_ih_l{k}`` (H, I or D*H), ``weight_hh_l{k}`` (H, H), ``bias_ih_l{k}`` and ``bias_hh_l{k}`` (H,) for
        each layer k; with `init_state` also ``h0_l{k}`` (H,), initially 0. The names for the reverse direction of a
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
    >>> layer = rnnfast.RNN(4, 8, rng=0)
    >>> layer
    RNN(4, 8)  # 112 parameters
    >>> y, h = layer(np.ones((5, 2, 4)))
    >>> y.shape, h.shape
    ((5, 2, 8), (1, 2, 8))
    >>> rnnfast.RNN(4, 8, nonlinearity="relu", leak=0.2, rng=0)  # dt = 20 ms, tau = 100 ms
    RNN(4, 8, nonlinearity='relu', leak=0.2)  # 112 parameters
    """

    _cell = "rnn_tanh"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
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
        leak: ArrayLike | None = None,
        init_state: bool = False,
        dtype: DTypeLike = np.float32,
        rng: Seed = None,
        init: Init = "torch",
    ) -> None:
        self.nonlinearity = arguments.choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        if leak is not None and (activations is not None or clip is not None):
            other = "clip" if activations is None else "activations"
            raise ValueError(f"leak and {other} are mutually exclusive: a leaky RNN has the nonlinearity tanh or relu")
        cell = f"rnn_{nonlinearity}" + ("" if leak is None else "_leaky")
        super().__init__(cell, locals())
