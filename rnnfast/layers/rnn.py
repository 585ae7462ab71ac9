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

    Each step computes, with f = tanh or relu::

        h = f(W_ih x + b_ih + W_hh h_before + b_hh)

    With a `leak` alpha it is a leaky RNN, the continuous-time RNN (CTRNN) of neuroscience::

        h = (1 - alpha) h_before + alpha f(W_ih x + b_ih + W_hh h_before + b_hh)

    which is ``tau dh/dt = -h + f(...)`` in Euler's method with steps of ``dt = alpha * tau``.

    Sources: J. Elman, "Finding structure in time", 1990; the form of ``torch.nn.RNN``. The leaky RNN: H. Jaeger et al.,
    "Optimization and applications of echo state networks with leaky-integrator neurons", 2007; H. F. Song, G. R. Yang
    and X.-J. Wang, "Training excitatory-inhibitory recurrent neural networks for cognitive tasks: a simple and flexible
    framework", 2016.

    Parameters
    ----------
    input_size : int
        I, features of x at a step.
    hidden_size : int
        H, units of a layer.
    num_layers : int, default 1
        L, the layers of the stack; each takes the outputs of the one below.
    nonlinearity : {"tanh", "relu"}
        f above.
    bias : bool, default True
        Whether to add b_ih and b_hh.
    batch_first : bool, default False
        x and y are (N, T, ...) instead of (T, N, ...). States are never batch-first.
    dropout : float from 0 to 1, default 0
        The fraction of the outputs of all layers but the last that ``forward`` drops; the others are scaled by
        1 / (1 - dropout). A call of the layer drops nothing.
    bidirectional : bool, default False
        Each layer runs in both directions; y has the outputs of both side by side, forward first.
    reverse : bool, default False
        The layer runs from the last step to the first; y stays in the order of x.
    activations : list, optional
        The function f, which replaces `nonlinearity`, as a list of one name; bidirectional also of two, the second for
        the reverse direction. A name is sigmoid, tanh, relu, affine, leaky_relu, thresholded_relu, scaled_tanh,
        hard_sigmoid, elu, softsign or softplus, as defined by the ONNX standard. To set alpha and beta, pass a tuple
        (name, alpha) or (name, alpha, beta).
    clip : float, optional
        Limits the input of every activation to [-clip, clip].
    leak : float or array_like, optional
        alpha of the leaky RNN below, above 0 and at most 1: one number, one for each unit (H,), or anything that
        broadcasts to (L*D, H). It is fixed: saved as an option, not trained, and not in ``state_dict``. Mutually
        exclusive with `activations` and `clip`.
    dtype : {numpy.float32, numpy.float64}
    rng : None, int or numpy.random.Generator
        The source of the initial values, and then of dropout.
    init : str, default "torch"
        The scheme of the initial values. It acts at construction alone, and is not saved.

        - "torch": all uniform in (-1/sqrt(H), 1/sqrt(H)), as in torch.
        - "keras": ``weight_ih`` (G*H, I) of G gates uniform in (-b, b), b = sqrt(6 / (I + G*H)); orthonormal columns
          in ``weight_hh``; biases 0. As in Keras.
        - "orthogonal": an orthogonal matrix in ``weight_hh``, one for each gate; else as torch's.
        - "identity", for relu: the identity in ``weight_hh``, biases 0, ``weight_ih`` normal with a deviation of 0.001.
          As in Le et al., 2015.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        ``weight_ih_l{k}`` (H, I or D*H), ``weight_hh_l{k}`` (H, H), ``bias_ih_l{k}`` and ``bias_hh_l{k}`` (H,) of layer
        k, and the same with ``_reverse`` of its other direction when bidirectional.

    Raises
    ------
    ValueError, TypeError
        If an option is not as described.
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
        bidirectional: bool = False,
        reverse: bool = False,
        activations: Sequence[Any] | None = None,
        clip: float | None = None,
        leak: ArrayLike | None = None,
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
