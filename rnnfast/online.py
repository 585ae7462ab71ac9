"""Online learning: a stream whose weights are updated at every step, without back-propagation through time.

A :class:`Learner` keeps a trace for each parameter: the derivative of the state with respect to it. Traces are carried
forward in time with the state, so an update needs neither the past inputs nor a window, and the memory does not grow
with the length of the sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np

from . import _core, arguments, files, functional, narrow
from ._types import Array, ArrayLike, Path
from .fixed import Fixed
from .functional import InputGradients, Inputs, OutputGradients, Outputs
from .layers import Activation, Embedding, LayerNorm, Linear, saving
from .layers.base import Layer
from .layers.recurrent import Recurrent
from .models import Sequential
from .models.sequential import features
from .streams import rows_of
from .training import Adam, clip_grad_norm, mean_squared_error, resuming
from .training.arrays import require_match
from .training.fitting import require_optimizer

__all__ = ["Learner"]


class _Moment(NamedTuple):
    """The state of all rows between two steps, and its derivatives with respect to the parameters: the traces."""

    h: Array  # (N, H_out)
    c: Array | None  # (N, H)
    memory: Array  # the traces, flat
    traces: dict[str, Array]  # (N, *shape) for each parameter, under the names of the engine
    views: list[Array]  # of those that are not always 0, (N, groups, H, width)

    def named(self) -> dict[str, Array]:
        states = {"h": self.h} if self.c is None else {"h": self.h, "c": self.c}
        return states | {f"trace.{name}": array for name, array in self.traces.items()}


class _Recurrence:
    """One layer of a recurrent layer, with the state and the traces of N rows.

    The rows are members of an ensemble, each with one step of one row, because `backward` of an ensemble writes the
    gradients of each member separately. With a gradient of 1 for the whole state, these are the terms that a step adds
    to the traces, and the gradient of the state before the step is the factor of the traces. So no equation of a cell
    occurs here. There are two moments, before and after the last step, which take turns.
    """

    def __init__(self, layer: Recurrent[Any], k: int, N: int, prefix: str) -> None:
        width = layer.engine.output_size if k else layer.input_size
        self.engine = engine = layer._new_engine(width, 1, isa=layer.engine.isa)
        self.prefix, self._layer, self._k = prefix, layer, k
        every = {**layer.execution.extras, **layer.parameters}
        self.names = {name: f"{name[:-1]}{k}" for name in functional.parameter_shapes(engine)}
        used = [every[name] for name in self.names.values()]
        self._trained = [str(name) for name, full in self.names.items() if full in layer.parameters]
        self._pointers = functional.Pointers(engine, used)
        self._pointers_back = self._pointers
        if not engine.info.elementwise:  # the paths through weight_hh are dropped
            names = self.names
            cut = [np.zeros_like(a) if n.startswith("weight_hh") else a for n, a in zip(names, used, strict=True)]
            self._pointers_back = functional.Pointers(engine, cut)
        # A learned initial state of h, or of c where the cell has it, is the state itself before the first step.
        self._learned = f"{'c' if engine.info.has_c else 'h'}0_l" if layer.init_state else ""

        H, P, dtype = engine.hidden_size, engine.output_size, engine.dtype
        sizes = engine.sizes(1, 1)
        self._packed = functional.empty(engine.packed_size)
        self._packed_back = functional.empty(engine.packed_back_size)
        self._tape = functional.empty(N * sizes.tape)
        workspace = max(sizes.forward_workspace, sizes.backward_workspace)
        self._workspace = functional.empty(workspace * min(N, functional.get_num_threads()))
        self._x, self._dx = np.zeros((2, N, 1, 1, width), dtype)
        self._y, self._dy = np.zeros((2, N, 1, 1, P), dtype)
        self._dh, self._dc = np.zeros((N, P), dtype), np.zeros((N, H), dtype) if engine.info.has_c else None
        self.moments = self._new_moment(N), self._new_moment(N)
        self._inputs = [Inputs(self._x, one.h, one.c) for one in self.moments]
        self._outputs = [Outputs(self._y, one.h, one.c) for one in self.moments]
        self._terms = [
            InputGradients(self._dx, self._dh, self._dc, [one.traces.get(name) for name in self.names])
            for one in self.moments
        ]
        ones = np.ones((N, H), dtype)
        self._of_state = OutputGradients(None, None, ones) if engine.info.has_c else OutputGradients(None, ones)
        self._of_y = OutputGradients(self._dy)
        self._factors = self._dh if self._dc is None else self._dc

    def _new_moment(self, N: int) -> _Moment:
        engine, dtype = self.engine, self.engine.dtype
        shapes = {name: self._layer.parameters[self.names[name]].shape for name in self._trained}
        if self._learned:
            shapes[f"{self._learned}0"] = (engine.hidden_size,)
        H = engine.hidden_size
        size = sum(math.prod(shape) for shape in shapes.values())
        memory = np.zeros((N, size), dtype)
        flat, traces, views = memory.reshape(-1), {}, []
        for name, shape in shapes.items():
            part, flat = np.split(flat, [N * math.prod(shape)])
            traces[name] = part.reshape(N, *shape)
            if not name.startswith("weight_hr"):  # h alone depends on it
                width = shape[1] if name.startswith("weight") else 1
                views.append(part.reshape(N, -1, H, width))
        h, c = np.zeros((N, engine.output_size), dtype), np.zeros((N, H), dtype) if engine.info.has_c else None
        return _Moment(h, c, memory, traces, views)

    def full_names(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return parts of a moment under their names in the model, such as 0.h_l1 and 0.trace.bias_ih_l1."""
        return {f"{self.prefix}{name.removesuffix('_l0')}_l{self._k}": value for name, value in values.items()}

    def initial(self) -> dict[str, Any]:
        """Return the initial state and its traces, under the names of a moment, in shapes that broadcast to its rows.

        The state depends on no parameter, except that a learned initial state is itself.
        """
        h, c = self._layer._initial()
        values = {"h": h[self._k]} if c is None else {"h": h[self._k], "c": c[self._k]}
        traces = self.moments[0].traces
        return values | {f"trace.{n}": bool(self._learned) and n.startswith(self._learned) for n in traces}

    def step(self, x: Array, before: int) -> Array:
        """Compute the moment after a step with x (N, I). Return y (N, H_out)."""
        engine, after = self.engine, 1 - before
        N = len(self._x)
        self._x[:, 0, 0] = x
        if self._pointers_back is self._pointers:
            functional.pack(engine, self._pointers, self._packed, self._packed_back)
        else:
            functional.pack(engine, self._pointers, self._packed, None)
            functional.pack(engine, self._pointers_back, None, self._packed_back)
        inputs, moment = self._inputs[before], self.moments[after]
        _core.forward_members(
            engine, None, self._packed, None, inputs, self._outputs[after], self._workspace, self._tape
        )
        moment.memory.fill(0)
        self._backward(inputs, self._of_state, self._terms[after])
        _core.add_scaled(moment.views, self._factors, self.moments[before].views)
        y: Array = self._y.reshape(N, -1)
        return y

    def _backward(self, inputs: Inputs, of_outputs: OutputGradients, of_inputs: InputGradients) -> None:
        _core.backward_members(
            self.engine, self._packed_back, inputs, self._y, self._tape, of_outputs, of_inputs, self._workspace
        )

    def backward(self, dy: Array, before: int) -> tuple[Array, dict[str, Array]]:
        """Return the gradients of x, and of the parameters by their names in the model, from that of y (N, H_out)."""
        N, moment = len(self._x), self.moments[before]
        self._dy[:, 0, 0] = dy
        gradients = {name: np.zeros_like(array) for name, array in moment.traces.items()}
        ordered = [gradients.get(name) for name in self.names]
        self._backward(self._inputs[before], self._of_y, InputGradients(self._dx, self._dh, self._dc, ordered))
        with np.errstate(all="ignore"):  # infinities and NaN are valid data
            totals = {name: one[0] if N == 1 else one.sum(axis=0) for name, one in gradients.items()}
        traced = [total for name, total in totals.items() if not name.startswith("weight_hr")]
        _core.add_scaled(traced, self._factors, moment.views)
        named = {f"{self.prefix}{name[:-1]}{self._k}": total for name, total in totals.items()}
        return self._dx.reshape(N, -1), named


class _Step(NamedTuple):
    """The last step, from which `learn` computes the gradients."""

    before: int  # the index of the moment before it
    y: Array  # in the form of the caller
    tapes: list[Any]  # for each part, None for a recurrence


class Learner(Fixed):
    """A stream that learns while it predicts: each step can also update the weights.

    Call :meth:`step` with the features of a step to predict, and :meth:`learn` with the target once it is known, at any
    time before the next step.

    With one recurrent layer whose recurrence is elementwise (:class:`~rnnfast.MinGRU`, :class:`~rnnfast.MinLSTM`,
    :class:`~rnnfast.SRU`, :class:`~rnnfast.IndRNN`), gradients are those of real-time recurrent learning (RTRL): exact,
    through all earlier steps. For RNN, LSTM and GRU they are those of e-prop, an approximation that drops all paths
    through ``weight_hh``. From layer to layer, gradients pass within the current step only. So those of layers before
    the last recurrent layer are approximations, too. See Notes.

    Parameters
    ----------
    model : recurrent layer, or Sequential
        A Sequential may hold recurrent layers, Linear, Embedding, LayerNorm and Activation. Recurrent layers run
        forward in time, without dropout and zoneout, a GRU with ``reset_after=True``.
    readout : layer, optional
        Maps the output of the layer to the prediction, as a :class:`~rnnfast.Linear` does. ``Learner(layer, readout)``
        is the same as ``Learner(Sequential(layer, readout))``.
    optimizer : optimizer of rnnfast.training, optional
        Built for parameters of these layers, in any form: ``Adam(model)``, ``SGD([layer, readout], lr=0.01)``, or
        ``Adam(readout)`` to train the readout alone. By default ``Adam(model)``.
    loss : callable, optional
        ``loss(y, target)`` returns the loss and its gradient with respect to y, as the losses in
        :mod:`rnnfast.training` do, which average over the rows. By default ``mean_squared_error``.
    clip : float, optional
        The largest norm of the gradients of a step: see :func:`~rnnfast.training.clip_grad_norm`.
    batch_size : int, default 1
        N, the number of rows: independent streams that share the weights. Memory and time are proportional to it.

    Attributes
    ----------
    model : recurrent layer or Sequential
        Its parameters are updated in place; use it for inference at any time.
    optimizer, batch_size
        Read-only, like `model`. The learning rate can be changed: ``learner.optimizer.lr = 0.001``.
    loss, clip
        They can be assigned.
    last_loss : float or None
        The loss of the last update.

    Raises
    ------
    ValueError
        If a layer of the model is not supported, an option is out of range, or the optimizer updates other arrays than
        parameters of the model.
    TypeError
        If an argument has the wrong type.
    MemoryError
        If the traces do not fit into memory.

    Notes
    -----
    Let s be the state that a layer carries from step to step (c for LSTM and SRU, h for the others), and p a parameter.
    The trace of p, which has the size of p for each row, is updated at every step by ::

        trace[t] = D[t] * trace[t-1] + ds[t]/dp        with s[t-1] fixed

    where D is the diagonal of ds[t]/ds[t-1] without the paths through weight_hh. The gradient of the loss L of step t
    is ::

        dL/dp = (dL/dp with s[t-1] fixed) + dL/ds[t-1] * trace[t-1]

    where dL/ds[t-1] is computed within step t, also without the paths through weight_hh. The recurrence of minGRU,
    minLSTM, SRU and IndRNN is elementwise: nothing is dropped, and for the last recurrent layer and those after it, the
    sum over all steps equals the gradient of back-propagation through time, as long as the weights do not change. As
    they do, traces combine derivatives at different weights, as in all online learning; small learning rates keep the
    difference small.

    A recurrent layer has traces of its own parameters only. Through the state of a later layer, a parameter also acts
    on later steps; this is dropped. A layer that is not recurrent, such as an Embedding before a recurrent layer, has
    no traces and learns from the current step.

    For LSTM the equations are those of e-prop: D is the forget gate, and the path through peepholes. For GRU, D is z;
    for a leaky RNN, 1 - alpha; and for a plain RNN 0, so that only the current step counts. The gradient of a
    projection is that of the current step, and that of the learned initial h of an LSTM is 0.

    Costs of a step: about those of forward and two backward passes over one step, and reading and writing the traces.

    Sources: R. Williams and D. Zipser, "A learning algorithm for continually running fully recurrent neural networks",
    1989 (RTRL); M. Mozer, "A focused backpropagation algorithm for temporal pattern recognition", 1989 (elementwise
    recurrence); K. Irie, A. Gopalakrishnan and J. Schmidhuber, "Exploring the promise and limits of real-time recurrent
    learning", 2023; N. Zucchet et al., "Online learning of long-range dependencies", 2023 (several layers); G. Bellec
    et al., "A solution to the learning dilemma for recurrent networks of spiking neurons", 2020 (e-prop).

    A step computes y with the weights of that time, and :meth:`learn` differentiates at the same weights. Only one
    thread at a time may use a learner.

    Examples
    --------
    Predict the next value of a wave whose frequency drifts:

    >>> import numpy as np, rnnfast
    >>> from rnnfast.online import Learner
    >>> from rnnfast.training import Adam
    >>> t = np.arange(1501)
    >>> wave = np.sin(t * (0.1 + t / 30000))
    >>> layer, readout = rnnfast.MinGRU(1, 12, rng=0), rnnfast.Linear(12, 1, rng=1)
    >>> learner = Learner(layer, readout, optimizer=Adam([layer, readout], lr=0.01))
    >>> losses = []
    >>> for value, following in zip(wave[:-1], wave[1:]):
    ...     prediction = learner.step([value])
    ...     losses.append(learner.learn([following]))
    >>> bool(np.mean(losses[-500:]) < 0.2 * np.mean(losses[:100]))
    True
    """

    def __init__(
        self,
        model: Any,
        readout: Any = None,
        *,
        optimizer: Any = None,
        loss: Callable[..., tuple[float, Array]] = mean_squared_error,
        clip: float | None = None,
        batch_size: int = 1,
    ) -> None:
        if readout is not None:
            for name, layer in (("model", model), ("readout", readout)):
                if not isinstance(layer, Layer):
                    raise TypeError(f"{name} must be a layer of rnnfast, got {type(layer).__name__}")
            model = Sequential(model, readout)
        self.batch_size = N = arguments.size("batch_size", batch_size)
        layers = dict(_flat(model, ""))
        for prefix, layer in layers.items():
            _check(prefix, layer)
        if not any(isinstance(layer, Recurrent) for layer in layers.values()):
            raise ValueError(
                f"model must have a recurrent layer, got {saving.describe(model)}: use its backward and an optimizer"
            )
        if not callable(loss):
            raise TypeError(f"loss must be a function, got {loss!r}")
        self.model, self.loss = model, loss
        self.clip = None if clip is None else arguments.number("clip", clip, positive=True)
        self.optimizer = Adam(model) if optimizer is None else optimizer
        require_optimizer(self.optimizer, model)
        self._shapes = {str(name): array.shape for name, array in model.parameters.items()}
        names = {id(array): str(name) for name, array in model.parameters.items()}
        self._updated = {name: names[id(array)] for name, array in self.optimizer._parameters.items()}
        self.last_loss: float | None = None
        self._parts: list[tuple[str, Any]] = []
        for prefix, layer in layers.items():
            count = layer.num_layers if isinstance(layer, Recurrent) else 0
            self._parts += [(prefix, _Recurrence(layer, k, N, prefix)) for k in range(count)] or [(prefix, layer)]
        self._recurrences: list[_Recurrence] = [part for _, part in self._parts if isinstance(part, _Recurrence)]
        self._now = 0  # the index of the moment after the last step
        self._last: _Step | None = None  # None if there is nothing to learn from
        self.reset()
        self._built = True

    def _fixed(self) -> tuple[str, ...]:
        return "model", "optimizer", "batch_size"

    def __repr__(self) -> str:
        return f"Learner({saving.describe(self.model)}, optimizer={self.optimizer!r}, batch_size={self.batch_size})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Learner can be neither pickled nor copied: save it, and load it into a new learner")

    def step(self, x: ArrayLike, target: Any = None, **options: Any) -> Array:
        """Predict, and advance the state by one step. With a target, also learn.

        Parameters
        ----------
        x : array_like of real numbers, (N, I), with batch_size=1 also (I,)
            The features of one step, or for a model that starts with an Embedding integers (N,).
        target, **options
            Passed to :meth:`learn`. The prediction does not depend on them.

        Returns
        -------
        ndarray, (N, out), or (out,) if x is a single row without the axis of rows
            The prediction, by the weights before the update.

        Raises
        ------
        ValueError
            If `x` has the wrong shape, or for the reasons of :meth:`learn`.
        TypeError
            If `x` does not hold real numbers, or for the reasons of :meth:`learn`.

        Notes
        -----
        If a call raises, neither the state nor the weights have changed, but if the error occurs after `x` was checked,
        it is too late to learn from the step before. There is one exception: if a signal handler raises (Ctrl-C) right
        after an update, the weights have changed and the state has not.
        """
        if options and target is None:
            raise TypeError(f"{next(iter(options))} is an option of the loss, which needs a target")
        step = self._predict(x)
        if target is not None:
            self._learn(step, target, options)
        self._last = None
        self._now = 1 - step.before
        self._last = step if target is None else None
        return step.y.copy()

    def learn(self, target: Any, **options: Any) -> float:
        """Update the weights by the gradients of the loss of the last step.

        Parameters
        ----------
        target : array_like
            What the prediction of the last step is compared with, in the form that the loss takes.
        **options
            Passed to the loss, such as ``mask=`` for rows without a target, or ``weights=``.

        Returns
        -------
        float
            The loss of the last step, before the update.

        Raises
        ------
        RuntimeError
            If there was no step since the last update.
        ValueError, TypeError
            As the loss and the optimizer do, for example if `target` has the wrong shape, or the layer is frozen.
            Nothing is changed.

        Notes
        -----
        As everywhere in :mod:`rnnfast.training`, NaN and infinities are not errors: a target that is not finite makes
        the weights NaN. Leave out missing targets, or pass a mask.
        """
        self._learn(self._require_step(), target, options)
        self._last = None
        assert self.last_loss is not None
        return self.last_loss

    def backward(self, dy: ArrayLike) -> dict[str, Array]:
        """Return the gradients of a scalar of the last step, without an update.

        Parameters
        ----------
        dy : array_like, of the shape of the prediction
            The gradient of the scalar with respect to the prediction.

        Returns
        -------
        dict of str to ndarray
            The gradients with respect to the parameters, under their names in ``model.parameters``.

        Raises
        ------
        RuntimeError
            If there was no step since the last update.
        ValueError
            If `dy` has the wrong shape.
        TypeError
            If `dy` does not hold real numbers.
        """
        return self._differentiate(self._require_step(), dy)

    def reset(self, rows: Any = None) -> None:
        """Set the state of all rows, or of some rows, to the initial one, and forget what it depended on.

        The optimizer is not reset. It is still possible to learn from the last step.

        Parameters
        ----------
        rows : int, array_like of int, or array_like of bool (N,), optional
            The rows to reset, as an index into the batch axis. By default, all of them.

        Raises
        ------
        IndexError
            If `rows` is not a valid index into the batch axis.
        """
        which = rows_of(rows, self.batch_size)
        own = self._state()
        initial = {name: value for one in self._recurrences for name, value in one.full_names(one.initial()).items()}
        values = [array.copy() for array in own.values()]
        for name, value in zip(own, values, strict=True):
            value[which] = initial[name]
        _core.assign(list(own.values()), values)

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the states and traces, under the names of the model: ``0.h_l0``, ``0.trace.weight_ih_l0``.

        Returns
        -------
        dict of str to ndarray
            h (N, H_out), c (N, H), and for each parameter its trace (N, ...).
        """
        return {name: array.copy() for name, array in self._state().items()}

    def load_state_dict(self, arrays: Mapping[str, ArrayLike]) -> None:
        """Restore the states and traces from a `state_dict`. If this raises, nothing is changed.

        Parameters
        ----------
        arrays : mapping of str to array_like
            From a learner with a model and a batch_size like those of this one. The values are copied.

        Raises
        ------
        ValueError
            If names or shapes differ.
        TypeError
            If `arrays` is not a mapping, or a value does not hold real numbers.
        """
        if not isinstance(arrays, Mapping):
            raise TypeError(f"arrays must be a mapping from names to arrays, got a {type(arrays).__name__}")
        own = self._state()
        given = {name: arguments.real(f"arrays[{name!r}]", arrays[name], self._dtype) for name in arrays}
        require_match("arrays", given, {name: array.shape for name, array in own.items()})
        values = [np.array(given[name], self._dtype, order="C") for name in own]
        self._last = None
        _core.assign(list(own.values()), values)

    def save(self, path: Path) -> None:
        """Save everything that a later run needs to continue exactly: parameters, optimizer, states and traces.

        The file is renamed to `path` when it is complete on disk, so a crash leaves an existing file unchanged.

        Parameters
        ----------
        path : str or os.PathLike
            No suffix is added.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        state = {f"online.{name}": array for name, array in self.state_dict().items()}
        resuming.write(path, self.model, self.optimizer, [], None, state)

    def load(self, path: Path) -> None:
        """Restore what :meth:`save` saved. If the file is invalid, nothing is changed.

        If a signal handler raises (Ctrl-C) at the end, only a part may be restored: load it again.

        Parameters
        ----------
        path : str or os.PathLike
            The file of a learner with a model, an optimizer and a batch_size like those of this one.

        Raises
        ------
        ValueError
            If the file is not that of such a learner, or is damaged.
        OSError
            If the file cannot be read.
        """
        with resuming.restoring(path, self.model, self.optimizer, []) as (archive, _):
            state = self._taken(archive)
        self.load_state_dict(state)

    # ---- internals

    @property
    def _dtype(self) -> np.dtype[Any]:
        return self._recurrences[0].engine.dtype

    def _state(self) -> dict[str, Array]:
        """Return the states and traces of the present moment."""
        return {
            name: array
            for one in self._recurrences
            for name, array in one.full_names(one.moments[self._now].named()).items()
        }

    def _taken(self, archive: files.Archive) -> dict[str, Array]:
        return {n: archive.take(f"online.{n}", a.shape, a.dtype) for n, a in self._state().items()}

    def _input(self, x: Any) -> tuple[Array, bool]:
        """Return a copy of x with an axis of rows, and whether the caller left that axis out."""
        first = self._parts[0][1]
        layer = first._layer if isinstance(first, _Recurrence) else first
        width = features(layer)[0]
        x = np.array(arguments.array("x", x))
        expected = (self.batch_size,) if isinstance(layer, Embedding) else (self.batch_size, width)
        alone = self.batch_size == 1 and x.ndim == len(expected) - 1
        if alone:
            x = x[np.newaxis]
        if x.ndim != len(expected) or any(want not in (None, got) for want, got in zip(expected, x.shape, strict=True)):
            got = x.shape[1:] if alone else x.shape
            shape = "(rows,)" if len(expected) == 1 else "(rows, features)"
            wanted = ", ".join("any" if want is None else str(want) for want in expected)
            raise ValueError(f"x must hold one step, of shape {shape} = ({wanted}), got {got}")
        if not isinstance(layer, Embedding):
            x = arguments.real("x", x, self._dtype)
        return x, alone

    def _predict(self, x: Any) -> _Step:
        """Compute a step, without changing the present moment."""
        array, alone = self._input(x)
        tapes = []
        for _, part in self._parts:
            tape = None
            if isinstance(part, _Recurrence):
                self._last = None  # what it refers to is overwritten
                array = part.step(array, self._now)
            else:
                array, tape = part.forward(array)
            tapes.append(tape)
        return _Step(self._now, array[0] if alone else array, tapes)

    def _require_step(self) -> _Step:
        if self._last is None:
            raise RuntimeError("there is no step to learn from: call step first; each step allows one call of learn")
        return self._last

    def _learn(self, step: _Step, target: Any, options: dict[str, Any]) -> None:
        loss, dy = self.loss(step.y.copy(), target, **options)
        gradients = self._differentiate(step, dy)
        if self.clip is not None:
            clip_grad_norm(gradients, self.clip)
        self.optimizer.step({name: gradients[own] for name, own in self._updated.items()})
        self.last_loss = float(loss)

    def _differentiate(self, step: _Step, dy: Any) -> dict[str, Array]:
        gradient = arguments.real("dy", dy, self._dtype)
        if gradient.shape != step.y.shape:
            raise ValueError(f"dy must have the shape of the prediction, {step.y.shape}, got {gradient.shape}")
        gradient = gradient.reshape(self.batch_size, -1)
        gradients: dict[str, Array] = {}
        for (prefix, part), tape in zip(reversed(self._parts), reversed(step.tapes), strict=True):
            if isinstance(part, _Recurrence):
                gradient, found = part.backward(gradient, step.before)
                gradients |= found
            else:
                results = part.backward(tape, gradient)
                gradient = results.x
                gradients |= {f"{prefix}{name}": array for name, array in results.parameters.items()}
        # The h of a learned initial state has no effect on later steps where the state is c.
        for name in self._shapes.keys() - gradients.keys():
            gradients[name] = np.zeros(self._shapes[name], self._dtype)
        return gradients


def _flat(model: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Return the layers of a model in the order of their calls, under the prefixes of their parameters."""
    if isinstance(model, Sequential) and model._saves_class():
        for k, layer in enumerate(model.layers):
            yield from _flat(layer, f"{prefix}{k}.")
    else:
        yield prefix, model


def _check(prefix: str, layer: Any) -> None:
    """Raise if a layer of a model cannot learn online."""
    name = f"layer {prefix[:-1]} of model" if prefix else "model"
    if not isinstance(layer, (Recurrent, Linear, Embedding, LayerNorm, Activation)):
        kind = saving.describe(layer) if isinstance(layer, Layer) else type(layer).__name__
        raise TypeError(
            f"{name} must be a recurrent layer, Linear, Embedding, LayerNorm or Activation, or a Sequential of these, "
            f"got {kind}: train other models with truncated_bptt"
        )
    if not isinstance(layer, Recurrent):
        return
    described = saving.describe(layer)
    if layer.bidirectional or layer.reverse:
        raise ValueError(
            f"{name}, {described}, runs backward in time, so it cannot learn online: use a layer with "
            "bidirectional=False and reverse=False"
        )
    if any(getattr(layer, option) for option in saving.DROPOUTS):
        raise ValueError(f"{name}, {described}, has dropout, which a learner does not apply: set it to 0")
    if layer.zoneout:
        raise ValueError(f"{name}, {described}, has zoneout, which a learner does not support: build it without")
    if not getattr(layer, "reset_after", True):
        raise ValueError(
            f"{name}, {described}, applies its reset gate before the product with weight_hh, whose paths e-prop drops: "
            "use reset_after=True"
        )
    narrow.require_full(layer.engine.weights, layer)
