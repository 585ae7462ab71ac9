"""Training of a model on a set of sequences: `fit`, and its checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from .. import arguments
from .._types import Array, Path
from . import resuming
from .batches import Batch, sources
from .bptt import truncated_bptt
from .loop import History, Loop, mean_loss, progress
from .optimizers import Adam, clip_grad_norm
from .schedules import ReduceOnPlateau


def fit(
    model: Any,
    data: Any,
    *,
    loss: Callable[..., tuple[float, Array]],
    optimizer: Any = None,
    epochs: int = 10,
    batch_size: int = 32,
    validation: Any = None,
    patience: int | None = None,
    schedule: Any = None,
    clip: float | None = None,
    window: int | None = None,
    per_step: bool | None = None,
    callbacks: Iterable[Callable[[History], Any]] = (),
    checkpoint: Path | None = None,
    rng: Any = None,
    verbose: bool = True,
) -> History:
    """Train a model on sequences, in mini-batches of similar lengths.

    Parameters
    ----------
    model : layer or model
        With ``forward``, ``backward`` and ``parameters``, such as a :class:`rnnfast.Sequential`. Its first output is
        compared with the targets.
    data : pair (x, target), or callable
        `x` holds one sequence per element of its first axis, whatever the layout of the model: an array (N, T, ...), or
        a list of N arrays (T, ...) of any lengths. `target` holds one target per sequence, an array (N, ...), or one
        per step, in the form of `x`; see `per_step`. Sequences of a batch are padded to the longest one; the model gets
        their lengths as `lengths`, and the loss a `mask` of the valid steps. A model without layers for sequences, such
        as a :class:`rnnfast.Linear`, gets rows of `x` as they are.

        A callable is called with `rng` at the start of every epoch. It returns an iterable of mini-batches in the
        layout of the model: (x, target), or (x, target, options) with a dict of further arguments of ``forward``. In
        these, `x` can be what the model takes, and `target` what the loss takes.
    loss : callable
        ``loss(y, target)``, for targets of padded sequences ``loss(y, target, mask=mask)``, returns the mean loss and
        its gradient with respect to y, as the losses in :mod:`rnnfast.training` do.
    optimizer : optional
        By default ``Adam(model)``.
    epochs : int, default 10
        The number of passes over the data, including those of a checkpoint.
    batch_size : int, default 32
        The number of sequences in a mini-batch.
    validation : pair, callable or float, optional
        Data that are not trained on, in the form of `data`, or the fraction of `data` to draw for it, above 0 and below
        1. After every epoch, the loss on them is computed in inference mode. The parameters with the lowest one are
        restored at the end.
    patience : int, optional
        Stop when the validation loss (without validation data, the training loss) has not decreased for this many
        epochs.
    schedule : callable, optional
        Returns the learning rate for a number of updates, counted from 0, as those in :mod:`rnnfast.training.schedules`
        do. A ``ReduceOnPlateau`` is called after every epoch with the validation loss, or the training loss.
    clip : float, optional
        The largest norm of the gradients: see :func:`clip_grad_norm`.
    window : int, optional
        Train with truncated back-propagation through time, in windows of this many steps, with an update after each:
        see :func:`truncated_bptt`. Targets must be one per step.
    per_step : bool, optional
        Whether there is a target for each step. By default, there is one if the targets of each sequence have its
        length, and the model has no :class:`rnnfast.Pool`.
    callbacks : iterable of callable
        Called with the history after every epoch. If one returns True, the training ends.
    checkpoint : str or os.PathLike, optional
        A file that is written before the first epoch and after every one. If it exists, the training continues where it
        ended, with the same results, bit for bit, as without the interruption, provided that the data and the options
        are the same. Callbacks and averages must keep their own state.
    rng : None, int or numpy.random.Generator
        Draws the order of the data.
    verbose : bool, default True
        Whether to show the progress on standard error: with a bar of tqdm if it is installed, or else line by line.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        If the arguments do not fit each other, or the training diverges. If the loss or a parameter is not finite after
        an epoch, the parameters are those with the lowest validation loss, or those of the epoch before.
    TypeError
        If an argument has the wrong type.
    OSError
        If the checkpoint cannot be read or written.

    Notes
    -----
    Ctrl-C ends the training after the current update. As at its regular end, the best parameters are restored, and the
    history is returned.

    Examples
    --------
    Classify sequences of different lengths by the sign of their sum:

    >>> import numpy as np
    >>> from rnnfast import GRU, Linear, Pool, Sequential
    >>> from rnnfast.training import fit, softmax_cross_entropy
    >>> rng = np.random.default_rng(0)
    >>> x = [rng.standard_normal((length, 1)).astype(np.float32) for length in rng.integers(3, 10, 200)]
    >>> target = np.array([sequence.sum() > 0 for sequence in x], int)
    >>> model = Sequential(GRU(1, 8, rng=1), Pool("last"), Linear(8, 2, rng=2))
    >>> history = fit(model, (x, target), loss=softmax_cross_entropy, epochs=40, rng=3, verbose=False)
    >>> history.loss[0] > 0.6, history.loss[-1] < 0.4
    (True, True)
    """
    if not all(callable(getattr(model, name, None)) for name in ("forward", "backward")):
        raise TypeError(f"model must be a layer or model with forward and backward, got {type(model).__name__}")
    callbacks = list(callbacks)
    for name, function in (("loss", loss), ("schedule", schedule), *(("a callback", one) for one in callbacks)):
        if not (callable(function) or (name == "schedule" and function is None)):
            raise TypeError(f"{name} must be a function, got {function!r}")
    arguments.size("epochs", epochs, least=0)
    for name, count in (("patience", patience), ("window", window)):
        if count is not None:
            arguments.size(name, count)
    if clip is not None:
        arguments.number("clip", clip, positive=True)
    if per_step is not None:
        arguments.flag("per_step", per_step)
    batch_size, rng = arguments.size("batch_size", batch_size), arguments.generator(rng)
    optimizer = Adam(model) if optimizer is None else optimizer
    require_optimizer(optimizer, model)
    resumed = checkpoint if checkpoint is not None and os.path.exists(checkpoint) else None
    if resumed is not None:  # the fraction for validation is drawn again
        rng.bit_generator.state = resuming.about(resumed)["start"]
    start = rng.bit_generator.state
    training, held_out = sources(model, data, validation, batch_size, rng, per_step)
    plateau = schedule if isinstance(schedule, ReduceOnPlateau) else None
    run = _Run(model, loss, optimizer, clip, window, None if plateau else schedule, plateau, rng, start)
    evaluate = None if held_out is None else lambda: mean_loss("validation", run.test(held_out))
    loop = Loop(model.parameters, optimizer, partial(run.train, training), evaluate, _diverged)
    if resumed is not None:
        run.restore(resumed, loop)
    elif checkpoint is not None:
        run.save(checkpoint, loop)
    saving = [] if checkpoint is None else [lambda _: run.save(checkpoint, loop)]
    try:
        with progress(arguments.flag("verbose", verbose), epochs) as show:
            loop.run(epochs, lambda: patience or math.inf, [run.reduce_rate, *saving, show, *callbacks])
    except KeyboardInterrupt:
        loop.history.interrupted = True
    except BaseException:
        with contextlib.suppress(ValueError):  # if the model is frozen, the first error matters
            loop.restore_best()
        raise
    loop.restore_best()
    return loop.history


def require_optimizer(optimizer: Any, model: Any) -> None:
    """Raise unless the optimizer updates parameters of the model."""
    if isinstance(optimizer, type) or not all(hasattr(optimizer, name) for name in ("step", "lr")):
        raise TypeError(f"optimizer must be one such as Adam(model), got {optimizer!r}")
    own = {id(array) for array in model.parameters.values()}
    updated = getattr(optimizer, "_parameters", {}).values()
    if not all(id(array) in own for array in updated):
        raise ValueError(f"optimizer must update the parameters of the model, as Adam(model) does; got {optimizer!r}")


def _diverged(epoch: int, what: str) -> ValueError:
    return ValueError(
        f"training diverged in epoch {epoch}: {what}. Reduce the learning rate, pass clip=1.0, or look for NaN and "
        "very large values in the data"
    )


@dataclasses.dataclass
class _Run:
    """The updates, evaluations and checkpoints of a training."""

    model: Any
    loss: Callable[..., tuple[float, Array]]
    optimizer: Any
    clip: float | None
    window: int | None
    schedule: Callable[[int], float] | None
    plateau: ReduceOnPlateau | None
    rng: np.random.Generator
    start: Any  # the state of the generator before the first draw
    updates: int = 0

    def train(self, batches: Callable[[], Iterable[Batch]]) -> Iterator[tuple[float, float]]:
        """Train on batches; yield the loss of each update and its weight."""
        for batch in batches():
            if self.window is None:
                y, *_, tape = self.model.forward(batch.x, **batch.options)
                yield self._update(tape, y, batch.target, batch.mask), batch.weight
                continue
            axis = int(bool(getattr(self.model, "batch_first", False)))
            for steps, y, _, tape in truncated_bptt(self.model, batch.x, self.window, **batch.options):
                index = (slice(None), steps) if axis else steps
                mask = None if batch.mask is None else batch.mask[index]
                if mask is None or mask.any():
                    target = batch.target[index]
                    weight = target.shape[0] * target.shape[1] if mask is None else int(mask.sum())
                    yield self._update(tape, y, target, mask), weight

    def _update(self, tape: Any, y: Array, target: Array, mask: Array | None) -> float:
        loss, dy = self._compare(y, target, mask)
        gradients = self.model.backward(tape, dy)
        if self.clip is not None:
            clip_grad_norm(gradients, self.clip)
        if self.schedule is not None:
            self.optimizer.lr = self.schedule(self.updates)
        self.optimizer.step(gradients)
        self.updates += 1
        return float(loss)

    def _compare(self, y: Array, target: Array, mask: Array | None) -> tuple[float, Array]:
        """Return the loss and its gradient."""
        return self.loss(y, target) if mask is None else self.loss(y, target, mask=mask)

    def test(self, batches: Callable[[], Iterable[Batch]]) -> Iterator[tuple[float, float]]:
        """Yield the loss of each batch in inference mode, and its weight."""
        for batch in batches():
            output = self.model(batch.x, **batch.options)
            y = output[0] if isinstance(output, tuple) else output
            yield float(self._compare(y, batch.target, batch.mask)[0]), batch.weight

    def reduce_rate(self, history: History) -> None:
        """Call the schedule that is called after every epoch."""
        if self.plateau is not None:
            self.optimizer.lr = self.plateau((history.validation or history.loss)[-1])

    def save(self, path: Path, loop: Loop) -> None:
        about = {
            "history": loop.history._to_json(),
            "updates": self.updates,
            "start": resuming.plain(self.start),
            "validates": loop.validates,
            "schedule": self.plateau and {name: repr(value) for name, value in vars(self.plateau).items()},
        }
        best = {f"best.{name}": array for name, array in (loop.kept[0] or {}).items()}
        resuming.write(path, self.model, self.optimizer, [self.rng], about, best)

    def restore(self, path: Path, loop: Loop) -> None:
        own = vars(self.plateau) if self.plateau else {}
        with resuming.restoring(path, self.model, self.optimizer, [self.rng]) as (archive, about):
            history = History._from_json(about["history"])
            updates = arguments.size("its number of updates", about["updates"], least=0)
            schedule = about["schedule"] or {}
            if about["validates"] is not loop.validates:
                raise ValueError(f"it was saved {'with' if about['validates'] else 'without'} validation data")
            if schedule.keys() != own.keys():
                raise ValueError("it was saved with another kind of schedule")
            schedule = {name: type(own[name])(float(value)) for name, value in schedule.items()}
            kept = self.model.parameters if loop.validates and history["best"] >= 0 else {}
            best = {name: archive.take(f"best.{name}", array.shape, array.dtype) for name, array in kept.items()}
        vars(loop.history).update(history)
        loop.resume(best or None)
        self.updates = updates
        own.update(schedule)
