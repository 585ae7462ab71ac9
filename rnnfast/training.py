"""Losses, optimisers, gradient clipping, long sequences, many processes: training without another framework.

Formulas and defaults are torch's. Optimisers and clipping work in place on the arrays of mappings from names to arrays,
such as ``layer.parameters`` and ``grads.parameters``; to train several layers together, join theirs into one dict under
distinct names.

Examples
--------
Fit a line:

>>> import numpy as np
>>> x, target = np.array([[0.0], [1.0], [2.0]]), np.array([[1.0], [3.0], [5.0]])
>>> parameters = {"slope": np.zeros((1, 1)), "offset": np.zeros(1)}
>>> optimizer = Adam(parameters, lr=0.1)
>>> for _ in range(500):
...     loss, dy = mean_squared_error(x @ parameters["slope"] + parameters["offset"], target)
...     optimizer.step({"slope": x.T @ dy, "offset": dy.sum(0)})
>>> print(parameters["slope"].round(2), parameters["offset"].round(2))
[[2.]] [1.]
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import arguments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    Arrays = Mapping[str, NDArray[Any]]

__all__ = [
    "SGD",
    "Adam",
    "DataParallel",
    "Window",
    "clip_grad_norm",
    "mean_squared_error",
    "softmax_cross_entropy",
    "truncated_bptt",
]

# Elements that an optimiser or a norm takes at a time: few enough that they and the scratch beside them stay in cache.
_CHUNK = 32768

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def _real(name, value):
    """The values as a native float32 or float64 array: other real dtypes become float64."""
    array = arguments.array(name, value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    native = array.dtype.newbyteorder("=")
    return array.astype(native if native in _DTYPES else np.float64, copy=False)


def softmax_cross_entropy(
    logits: ArrayLike, targets: ArrayLike, mask: ArrayLike | None = None, weights: ArrayLike | None = None
) -> tuple[float, NDArray[Any]]:
    """The mean of -log(softmax(logits)[target]) over all positions that count, and its gradient.

    Parameters
    ----------
    logits : array_like of float, (..., C)
        Scores of the C classes, not normalised. Dtypes other than float32 and float64 are computed in float64.
    targets : array_like of int, (...)
        The class of each position, from 0 to C - 1.
    mask : array_like of bool, (...), optional
        True where a position counts; elsewhere logits and targets are not looked at and may be anything. All count
        when it is not given.
    weights : array_like of float, (...), optional
        A factor of each position's term. The mean is still over the number of positions: give weights whose mean is 1
        to keep the scale of the loss.

    Returns
    -------
    loss : float
    dlogits : ndarray, (..., C), float32 or float64
        The gradient of `loss`: (softmax(logits) - onehot(targets)) / the number of positions that count, times the
        weight, zero at those that do not.

    Raises
    ------
    TypeError
        `logits` or `weights` are not real numbers, `targets` not integers, `mask` not booleans.
    ValueError
        `targets`, `mask` or `weights` has another shape than ``logits.shape[:-1]``, a target that counts lies outside
        0 to C - 1, or no position counts.

    Examples
    --------
    >>> logits = np.zeros((2, 4), np.float32)
    >>> loss, dlogits = softmax_cross_entropy(logits, [1, 3], mask=[True, False])
    >>> round(loss, 4)
    1.3863
    >>> dlogits
    array([[ 0.25, -0.75,  0.25,  0.25],
           [ 0.  ,  0.  ,  0.  ,  0.  ]], dtype=float32)
    """
    logits = _real("logits", logits)
    targets = arguments.array("targets", targets)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must have shape (..., C) with at least one class C, got shape {logits.shape}")
    if targets.dtype.kind not in "iu":
        raise TypeError(f"targets must be integers, got dtype {targets.dtype}")
    _require_shape("targets", targets.shape, logits.shape[:-1], "logits.shape[:-1]")
    classes = logits.shape[-1]
    rows, targets = logits.reshape(-1, classes), targets.reshape(-1)
    counted = slice(None)
    if mask is not None:
        mask = arguments.array("mask", mask)
        if mask.dtype != bool:
            raise TypeError(f"mask must be booleans, True where a position counts, got dtype {mask.dtype}")
        _require_shape("mask", mask.shape, logits.shape[:-1], "logits.shape[:-1]")
        counted = np.flatnonzero(mask)
    if weights is not None:
        weights = _real("weights", weights)
        _require_shape("weights", weights.shape, logits.shape[:-1], "logits.shape[:-1]")
        weights = weights.reshape(-1)[counted]
    rows, targets = rows[counted], targets[counted]
    if len(rows) == 0:
        raise ValueError("logits and mask leave no position that counts: the mean over none is not defined")
    wrong = (targets < 0) | (targets >= classes)
    if wrong.any():
        raise ValueError(
            f"targets must lie between 0 and {classes - 1}, as logits have {classes} classes, "
            f"got {targets[wrong.argmax()]}; give a mask to leave positions out"
        )

    picked = np.arange(len(rows)), targets
    rows = rows - rows.max(axis=1, keepdims=True)
    chosen = rows[picked]
    np.exp(rows, out=rows)
    totals = rows.sum(axis=1)
    terms = np.log(totals) - chosen
    loss = float(np.mean(terms if weights is None else weights * terms, dtype=np.float64))
    rows *= (1 / (len(rows) * totals))[:, None]
    rows[picked] -= rows.dtype.type(1 / len(rows))
    if weights is not None:
        rows *= weights[:, None]
    if mask is None:
        return loss, rows.reshape(logits.shape)
    dlogits = np.zeros(logits.shape, rows.dtype)
    dlogits[mask] = rows
    return loss, dlogits


def mean_squared_error(y: ArrayLike, target: ArrayLike, weights: ArrayLike | None = None) -> tuple[float, NDArray[Any]]:
    """The mean of (y - target)**2 over all elements, and its gradient 2 (y - target) / size.

    Parameters
    ----------
    y : array_like of float, any shape
        Dtypes other than float32 and float64 are computed in float64.
    target : array_like of float, the shape of `y`
    weights : array_like of float, the shape of `y`, optional
        A factor of each element's square. The mean is still over the number of elements.

    Returns
    -------
    loss : float
    dy : ndarray, the shape of `y`, float32 or float64

    Raises
    ------
    TypeError
        `y`, `target` or `weights` are not real numbers.
    ValueError
        The shapes differ, or there are no elements.

    Examples
    --------
    >>> mean_squared_error([1.0, 2.0], [1.0, 4.0])
    (2.0, array([ 0., -2.]))
    """
    y, target = _real("y", y), _real("target", target)
    _require_shape("target", target.shape, y.shape, "y.shape")
    if y.size == 0:
        raise ValueError(f"y must have at least one element, got shape {y.shape}")
    difference = np.asarray(np.subtract(y, target, dtype=y.dtype, casting="same_kind"))
    if weights is None:
        loss = _sum_of_squares(difference) / y.size
    else:
        weights = _real("weights", weights)
        _require_shape("weights", weights.shape, y.shape, "y.shape")
        loss = float(np.mean(np.square(difference, dtype=np.float64) * weights))
        difference *= weights
    difference *= 2 / y.size
    return loss, difference


def _require_shape(name, shape, expected, source):
    if shape != expected:
        raise ValueError(f"{name} must have shape {expected}, that is {source}, got shape {shape}")


def _sum_of_squares(array):
    """In float64, a chunk at a time."""
    chunks = np.nditer(
        array, ["external_loop", "buffered", "zerosize_ok"], ["readonly"], op_dtypes=[np.float64], buffersize=_CHUNK
    )
    # einsum, as BLAS would wake threads of its own, which fight with ours for the cores
    return sum(float(np.einsum("i,i->", chunk, chunk)) for chunk in chunks)


def clip_grad_norm(gradients: Arrays, max_norm: float) -> float:
    """Scale all gradients in place so that their common norm is at most `max_norm`.

    As in torch, the factor is ``max_norm / (norm + 1e-6)`` where that is below 1, and nothing is done otherwise.

    Parameters
    ----------
    gradients : mapping of str to ndarray
        Float arrays that may be written to.
    max_norm : float
        At least 0; inf only measures.

    Returns
    -------
    norm : float
        The square root of the sum of the squares of all elements of all arrays before scaling, computed in float64. NaN
        where a gradient is NaN; then nothing is scaled. Look at it to skip a step whose gradients are not finite.

    Raises
    ------
    TypeError
        `gradients` is not a mapping to float32 or float64 arrays, or `max_norm` is no number.
    ValueError
        An array is read-only or `max_norm` is negative; nothing has been scaled then.

    Examples
    --------
    >>> gradients = {"weight": np.array([3.0, 4.0])}
    >>> clip_grad_norm(gradients, 1.0)
    5.0
    >>> gradients["weight"].round(4)
    array([0.6, 0.8])
    """
    max_norm = arguments.number("max_norm", max_norm)
    arrays = _float_arrays("gradients", gradients)
    for name, array in arrays.items():
        _require_writeable("gradients", name, array)
    norm = math.sqrt(sum(map(_sum_of_squares, arrays.values())))
    factor = max_norm / (norm + 1e-6)
    if factor < 1:
        for array in arrays.values():
            array *= factor
    return norm


def _float_arrays(argument, mapping):
    """The mapping as a dict, after a look at its values."""
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{argument} must be a mapping from names to arrays, got a {type(mapping).__name__}")
    for name, array in mapping.items():
        if not isinstance(array, np.ndarray) or array.dtype not in _DTYPES:
            came = f"an array of {array.dtype}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
            raise TypeError(f"{argument}[{name!r}] must be a NumPy array of float32 or float64, got {came}")
    return dict(mapping)


def _require_writeable(argument, name, array):
    if not array.flags.writeable:
        raise ValueError(
            f"{argument}[{name!r}] must be an array that may be written to, but is read-only "
            "(the arrays of a frozen layer are: unfreeze() it, or leave them out)"
        )


def _require_fit(argument, arrays, shapes):
    """The arrays have exactly the names and shapes asked for."""
    missing, extra = sorted(shapes.keys() - arrays.keys()), sorted(arrays.keys() - shapes.keys())
    if missing or extra:
        lists = [f"{words} {', '.join(names)}" for words, names in (("lacks", missing), ("also has", extra)) if names]
        raise ValueError(f"{argument} must have the names {', '.join(shapes)}, but it {' and '.join(lists)}")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{argument}[{name!r}] must have shape {shape}, got shape {arrays[name].shape}")


class _Optimizer:
    """What SGD and Adam share: parameters, moments of each parameter, and the walk over all of them."""

    def __init__(self, parameters, lr, kinds):
        self.lr = arguments.number("lr", lr)
        self._parameters = _float_arrays("parameters", parameters)
        self._moments = {
            f"{kind}.{name}": np.zeros_like(parameter, order="C")
            for kind in kinds
            for name, parameter in self._parameters.items()
        }
        self._kinds = kinds
        self._steps = 0

    def step(self, gradients: Arrays) -> None:
        """Update all parameters in place by one step.

        Parameters
        ----------
        gradients : mapping of str to ndarray
            Float arrays with the names and shapes of the parameters. They are only read.

        Raises
        ------
        TypeError
            `gradients` is not a mapping to float32 or float64 arrays.
        ValueError
            Names or shapes differ from those of the parameters, or a parameter is read-only (its layer is frozen).
            Nothing has changed then.
        """
        gradients = _float_arrays("gradients", gradients)
        _require_fit("gradients", gradients, {name: array.shape for name, array in self._parameters.items()})
        for name, parameter in self._parameters.items():
            _require_writeable("parameters", name, parameter)
        self._steps += 1
        for name, parameter in self._parameters.items():
            operands = [parameter, gradients[name], *(self._moments[f"{kind}.{name}"] for kind in self._kinds)]
            scratch = np.empty(_CHUNK, parameter.dtype)
            with np.nditer(
                operands,
                ["external_loop", "buffered", "zerosize_ok"],
                [["readwrite"], ["readonly"]] + [["readwrite"]] * (len(operands) - 2),
                op_dtypes=[parameter.dtype] * len(operands),
                casting="same_kind",
                buffersize=_CHUNK,
            ) as chunks:
                for chunk in chunks:
                    self._update(*chunk, scratch[: chunk[0].size])

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Copies of all that the optimiser has gathered so far, as a flat dict of arrays.

        With the parameters it is what a later run needs to go on along the same curve. `lr` and the other options are
        not in it: they come from whoever makes the optimiser.

        Returns
        -------
        dict of str to ndarray
            ``step``, the steps taken, and every moment under torch's word for it and the parameter's name, such as
            ``exp_avg.weight_ih_l0``.
        """
        return {"step": np.array(self._steps), **{name: moment.copy() for name, moment in self._moments.items()}}

    def load_state_dict(self, arrays: Arrays) -> None:
        """Go on from where the optimiser stood that gave this `state_dict`.

        Parameters
        ----------
        arrays : mapping of str to ndarray
            From `state_dict` of an optimiser of this class over parameters of the same names and shapes. The values are
            copied.

        Raises
        ------
        TypeError
            `arrays` is not a mapping, a moment is not an array of floats, or ``step`` is no integer.
        ValueError
            Names or shapes do not fit, or ``step`` is negative. Nothing has changed then.
        """
        if not isinstance(arrays, Mapping):
            raise TypeError(f"arrays must be a mapping from names to arrays, got a {type(arrays).__name__}")
        given = {name: np.asarray(array) for name, array in arrays.items()}
        _require_fit("arrays", given, {"step": (), **{name: moment.shape for name, moment in self._moments.items()}})
        step = given.pop("step")
        if step.dtype.kind not in "iu":
            raise TypeError(f"arrays['step'] must be an integer, got dtype {step.dtype}")
        if step < 0:
            raise ValueError(f"arrays['step'] must be at least 0, got {step}")
        _float_arrays("arrays", given)
        self._steps = int(step)
        for name, moment in self._moments.items():
            moment[...] = given[name]


class SGD(_Optimizer):
    """Stochastic gradient descent: ``buffer = momentum * buffer + gradient``, ``parameter -= lr * buffer``.

    Parameters
    ----------
    parameters : mapping of str to ndarray
        Arrays of float32 or float64, updated in place.
    lr : float
        The step size, at least 0. A plain attribute: it may be changed between steps.
    momentum : float
        At least 0 and below 1. At 0 no buffer is kept.

    Raises
    ------
    TypeError
        `parameters` is not a mapping to float32 or float64 arrays, or an option is no number.
    ValueError
        An option is out of its range.

    Examples
    --------
    >>> parameters = {"weight": np.array([1.0, 2.0])}
    >>> SGD(parameters, lr=0.5).step({"weight": np.array([2.0, 0.0])})
    >>> parameters["weight"]
    array([0., 2.])
    """

    def __init__(self, parameters: Arrays, lr: float, momentum: float = 0.0) -> None:
        self._momentum = arguments.number("momentum", momentum, below=1)
        super().__init__(parameters, lr, ["momentum_buffer"] if self._momentum else [])

    def __repr__(self):
        return f"SGD(lr={self.lr}, momentum={self._momentum})"

    def _update(self, parameter, gradient, *moments_and_scratch):
        *moments, scratch = moments_and_scratch
        for buffer in moments:
            buffer *= self._momentum
            buffer += gradient
            gradient = buffer
        np.multiply(gradient, self.lr, out=scratch)
        parameter -= scratch


class Adam(_Optimizer):
    """Adam: steps of about `lr`, by averages of the gradient and of its square (Kingma and Ba, 2015, algorithm 1).

    With t the number of steps, this one included::

        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        parameter -= lr * m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + eps)

    Parameters
    ----------
    parameters : mapping of str to ndarray
        Arrays of float32 or float64, updated in place. Two more of each size are kept.
    lr : float
        The step size, at least 0. A plain attribute: it may be changed between steps.
    betas : pair of float
        Each at least 0 and below 1.
    eps : float
        At least 0.

    Raises
    ------
    TypeError
        `parameters` is not a mapping to float32 or float64 arrays, `betas` no pair, or an option is no number.
    ValueError
        An option is out of its range.

    Examples
    --------
    >>> parameters = {"weight": np.array([1.0, 2.0])}
    >>> Adam(parameters, lr=0.5).step({"weight": np.array([2.0, 0.0])})
    >>> parameters["weight"].round(6)
    array([0.5, 2. ])
    """

    def __init__(
        self, parameters: Arrays, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        try:
            beta1, beta2 = betas
        except (TypeError, ValueError):
            raise TypeError(f"betas must be a pair of numbers, got {betas!r}") from None
        self._betas = arguments.number("betas[0]", beta1, below=1), arguments.number("betas[1]", beta2, below=1)
        self._eps = arguments.number("eps", eps)
        super().__init__(parameters, lr, ["exp_avg", "exp_avg_sq"])

    def __repr__(self):
        return f"Adam(lr={self.lr}, betas={self._betas}, eps={self._eps})"

    def _update(self, parameter, gradient, m, v, scratch):
        beta1, beta2 = self._betas
        correction1, correction2 = 1 - beta1**self._steps, math.sqrt(1 - beta2**self._steps)
        np.multiply(gradient, 1 - beta1, out=scratch)
        m *= beta1
        m += scratch
        np.multiply(gradient, 1 - beta2, out=scratch)
        scratch *= gradient
        v *= beta2
        v += scratch
        # Both corrections as one factor on the quotient, which leaves eps to be scaled.
        np.sqrt(v, out=scratch)
        scratch += self._eps * correction2
        np.divide(m, scratch, out=scratch)
        scratch *= self.lr * correction2 / correction1
        parameter -= scratch


class DataParallel:
    """Gradients of a batch that is spread over the processes of MPI: each has a share of its rows.

    Every process holds a copy of the parameters, runs forward and backward on its own rows, and hands its gradients to
    :meth:`average`. All get the gradients of the joined batch back, the same bits on each, so all take the same step
    and the copies stay alike. One Allreduce goes per step, on one buffer that holds all gradients.

    Making one is collective, as is :meth:`average`: all processes of `comm` must do it. It checks that they all have
    the same parameters, and copies the values of process 0 to the others. So layers may be made with another seed in
    each process, as dropout wants it.

    Run the program with ``mpiexec -n 2 python -m mpi4py train.py``. With ``-m mpi4py`` an error that one process alone
    meets, in a layer, say, ends all of them; else the others would wait for it for ever.

    Source: MPI: A Message-Passing Interface Standard 4.1, section 6.9 (MPI_Allreduce).

    Parameters
    ----------
    parameters : mapping of str to ndarray
        Arrays of float32 or float64 that may be written to, those that the optimiser has. The same names, shapes and
        dtypes in each process, in any order.
    comm : mpi4py.MPI.Intracomm
        Such as ``MPI.COMM_WORLD``.

    Raises
    ------
    ImportError
        mpi4py is not installed.
    TypeError
        `comm` is no such communicator, or `parameters` is not a mapping to float32 or float64 arrays.
    ValueError
        A parameter is read-only, or a process has other parameters than process 0. Nothing has changed then.
    RuntimeError
        Another process raised one of these; the text says which, and what.

    Examples
    --------
    ``docs/parallel.md`` has a whole program. Its step, in each process:

    >>> from mpi4py import MPI  # doctest: +SKIP
    >>> parallel = DataParallel(layer.parameters, MPI.COMM_WORLD)  # doctest: +SKIP
    >>> y, state, tape = layer.forward(x)  # doctest: +SKIP
    >>> loss, dy = mean_squared_error(y, target)  # doctest: +SKIP
    >>> grads = layer.backward(tape, dy)  # doctest: +SKIP
    >>> optimizer.step(parallel.average(grads.parameters, weight=x.shape[1]))  # doctest: +SKIP
    """

    def __init__(self, parameters: Arrays, comm: Any) -> None:
        try:
            from mpi4py import MPI
        except ImportError as error:
            raise ImportError("training.DataParallel needs mpi4py: pip install 'rnnfast[mpi]'") from error
        if not isinstance(comm, MPI.Intracomm):
            raise TypeError(f"comm must be a communicator of mpi4py such as MPI.COMM_WORLD, got {comm!r}")
        self._comm, self._in_place = comm, MPI.IN_PLACE
        fault, own, forms = None, {}, None
        try:
            own = _float_arrays("parameters", parameters)
            for name, array in own.items():
                _require_writeable("parameters", name, array)
            forms = {name: (array.shape, array.dtype.name) for name, array in own.items()}
        except (TypeError, ValueError) as error:
            fault = error
        expected = comm.bcast(forms)
        if fault is None and expected is not None:
            fault = self._difference(own, expected)
        self._raise_together(fault)

        own = {name: own[name] for name in expected}
        # Behind the gradients lie the sum of the weights, and how many processes have failed.
        size = sum(array.size for array in own.values()) + 2
        self._buffer = np.zeros(size, np.result_type(np.float32, *own.values()))
        self._views, start = {}, 0
        for name, array in own.items():
            self._views[name] = self._buffer[start : start + array.size].reshape(array.shape)
            self._views[name][...] = array
            start += array.size
        comm.Bcast(self._buffer)
        for name, array in own.items():
            array[...] = self._views[name]

    def average(self, gradients: Arrays | None, weight: float) -> dict[str, NDArray[Any]]:
        """The gradients of the joined batch: the mean of all processes' gradients by their weights.

        Parameters
        ----------
        gradients : mapping of str to ndarray, or None
            Float arrays with the names and shapes of the parameters: the gradients of the mean of the loss over this
            process's share. They are only read. None, or what is passed over, where `weight` is 0.
        weight : float
            Over how many that mean was taken: rows or, where these are of unequal lengths, targets that count. 0 where
            this process has none of the batch.

        Returns
        -------
        dict of str to ndarray
            They may be written to, by :func:`clip_grad_norm` for one. The next call overwrites them: copy what is to
            be kept.

        Raises
        ------
        TypeError
            `gradients` is not a mapping to float32 or float64 arrays, or `weight` is no number.
        ValueError
            Names or shapes differ from those of the parameters, `weight` is negative or not finite, or `weight` is 0 in
            all processes.
        RuntimeError
            Another process raised one of these; the text says which, and what.
        """
        fault = None
        try:
            self._fill(gradients, weight)
        except Exception as error:  # whatever it is, the others wait for this process
            fault = error
            self._buffer[:-1] = 0
            self._buffer[-1] = 1
        self._comm.Allreduce(self._in_place, self._buffer)
        if self._buffer[-1]:
            self._raise_together(fault)
        if not self._buffer[-2]:
            raise ValueError("weight is 0 in all processes: the mean over none of the batch is not defined")
        self._buffer /= self._buffer[-2]
        return dict(self._views)

    def _fill(self, gradients, weight):
        """The sum over this share into the buffer."""
        weight = arguments.number("weight", weight)
        if not math.isfinite(weight):
            raise ValueError(f"weight must be finite, got {weight}")
        if weight:
            if gradients is None:
                raise ValueError(f"gradients must be given where weight is above 0, got None with weight={weight}")
            gradients = _float_arrays("gradients", gradients)
            _require_fit("gradients", gradients, {name: view.shape for name, view in self._views.items()})
            for name, view in self._views.items():
                np.multiply(gradients[name], weight, out=view)
        else:
            self._buffer[:-2] = 0
        self._buffer[-2:] = weight, 0

    def _difference(self, own, expected):
        """The error to raise where the parameters are not of the forms of process 0, else None."""
        try:
            _require_fit("parameters", own, {name: shape for name, (shape, _) in expected.items()})
            for name, (_, dtype) in expected.items():
                if own[name].dtype != dtype:
                    raise ValueError(f"parameters[{name!r}] must be of {dtype}, got {own[name].dtype}")
        except ValueError as error:
            return ValueError(f"process {self._comm.Get_rank()} must have the parameters of process 0: {error}")
        return None

    def _raise_together(self, fault):
        """Raise this process's error; without one, what another reports."""
        reports = self._comm.allgather(None if fault is None else str(fault))
        if fault is not None:
            raise fault
        for rank, report in enumerate(reports):
            if report is not None:
                raise RuntimeError(f"process {rank} of {len(reports)} failed: {report}")


class Window(NamedTuple):
    """What :func:`truncated_bptt` gives for each window.

    Attributes
    ----------
    steps : slice
        The time steps of the window, with start and stop: ``target[steps]`` are the targets of `y` where the time of
        `target` is axis 0.
    y : ndarray
        The outputs at these steps, as the layer's ``forward`` returned them.
    state : ndarray, or for LSTM the pair (h, c)
        The state after the last of them, from which the next window goes on. What is written into it acts there: zeros,
        say, where another sequence begins.
    tape
        For the layer's ``backward``.
    """

    steps: slice
    y: Any
    state: Any
    tape: Any


def truncated_bptt(layer: Any, x: ArrayLike, window: int, state: Any = None) -> Iterator[Window]:
    """Go through a long sequence in windows, to learn from each: truncated back-propagation through time.

    The state is carried from window to window, gradients are not. So the outputs are those of one run over the whole
    sequence (as long as the parameters stay as they are, and where no dropout acts), but memory and the time to the
    next update are those of a window, and what is learnt are effects over at most `window` steps.

    Each window is run when the loop asks for it: an update of the parameters acts from the next one on.

    Source: R. Williams and J. Peng, "An efficient gradient-based algorithm for on-line training of recurrent network
    trajectories", 1990.

    Parameters
    ----------
    layer : RNN, LSTM or GRU, or a model with such layers
        Of a model ``forward(x, state)`` is called, which must return ``(y, state, tape)``, and take the None that
        `state` may be; its attribute ``batch_first`` is heeded if it has one. Nothing in it may run backwards in time.
    x : array_like, (T, ...), with batch_first and three axes or more (N, T, ...)
        As the layer takes it, at least one time step. An array is not copied, nor is its dtype changed; tapes hold
        parts of it by reference, so leave it as it is until the last ``backward``.
    window : int
        Time steps of a window, at least 1. The last window is shorter where T is no multiple of it.
    state : optional
        The initial state, as the layer takes it: None is zeros, the state of an earlier run goes on from there.

    Returns
    -------
    iterator of Window
        ``(steps, y, state, tape)`` of one window after the other.

    Raises
    ------
    TypeError
        `layer` has no ``forward``, or `window` is no integer.
    ValueError
        `layer` runs backwards, `x` has no time steps or is no array, or `window` is below 1. What else does not fit the
        layer, it refuses itself, when the first window is asked for.

    Examples
    --------
    Learn to continue a sine by one step:

    >>> import numpy as np, rnnfast
    >>> wave = np.sin(np.arange(2001) / 5).astype(np.float32).reshape(-1, 1, 1)
    >>> x, target = wave[:-1], wave[1:]
    >>> layer, readout = rnnfast.LSTM(1, 8, rng=0), rnnfast.Linear(8, 1, rng=1)
    >>> optimizer = Adam({**layer.parameters, **readout.parameters}, lr=0.01)
    >>> losses = []
    >>> for steps, y, state, tape in truncated_bptt(layer, x, window=20):
    ...     prediction, readout_tape = readout.forward(y)
    ...     loss, dprediction = mean_squared_error(prediction, target[steps])
    ...     after = readout.backward(readout_tape, dprediction)
    ...     before = layer.backward(tape, after.x)
    ...     optimizer.step({**before.parameters, **after.parameters})
    ...     losses.append(loss)
    >>> len(losses), losses[0] > 0.3, losses[-1] < 0.01
    (100, True, True)
    """
    name = type(layer).__name__
    if not callable(getattr(layer, "forward", None)):
        raise TypeError(
            "layer must be an RNN, LSTM or GRU, or a model whose forward(x, state) returns (y, state, tape), "
            f"got {name}"
        )
    # Layers are known by their attributes, as this module does not import them; the last is Bidirectional's.
    for option in ("bidirectional", "reverse", "backward_layer"):
        if getattr(layer, option, False):
            came = name if option == "backward_layer" else f"{name} with {option}=True"
            raise ValueError(
                f"layer must run forwards in time only, got {came}: a reverse direction starts at the end of the "
                "sequence, so no state can be carried to it from the window before; take a layer of one direction, "
                "or run this one over the whole sequence at once"
            )
    x = arguments.array("x", x)
    batch_first = bool(getattr(layer, "batch_first", False)) and x.ndim >= 3
    axis = 1 if batch_first else 0
    if x.ndim == 0 or x.shape[axis] == 0:
        layout = "(N, T, ...)" if batch_first else "(T, ...)"
        raise ValueError(f"x must have at least one time step: layout {layout} with T >= 1, got shape {x.shape}")
    return _windows(layer, x, axis, _window_length(window), state)


def _window_length(window):
    try:
        length = operator.index(window)
    except TypeError:
        length = None
    if length is None or isinstance(window, (bool, np.bool_)):
        raise TypeError(f"window must be an integer, the time steps of a window, got {window!r}")
    if length < 1:
        raise ValueError(f"window must be at least 1, got {length}")
    return length


def _windows(layer, x, axis, length, state):
    for start in range(0, x.shape[axis], length):
        steps = slice(start, min(start + length, x.shape[axis]))
        y, state, tape = layer.forward(x[:, steps] if axis else x[steps], state)
        yield Window(steps, y, state, tape)
        del y, tape  # the caller may have done with them, and then their memory serves the next window
