"""The training loop of `fit` and of the estimators, and its history."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core, arguments, figures
from .._types import Array
from .arrays import require_writeable

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class History:
    """The course of a training that :func:`fit` ran.

    Attributes
    ----------
    loss : list of float
        For each epoch the mean of the losses of its mini-batches, each measured before its update.
    validation : list of float
        For each epoch the loss on the validation data; empty without them.
    lr : list of float
        For each epoch the learning rate of its last update.
    seconds : float
        The duration of all epochs.
    best : int
        The epoch, counted from 0, with the lowest validation loss, or training loss without validation; -1 if there is
        none.
    interrupted : bool
        Whether Ctrl-C ended the training.
    """

    def __init__(self) -> None:
        self.loss: list[float] = []
        self.validation: list[float] = []
        self.lr: list[float] = []
        self.seconds = 0.0
        self.best = -1
        self.interrupted = False

    def _to_json(self) -> dict[str, Any]:
        # JSON has no infinity, which a validation loss can be.
        curves = {name: [repr(value) for value in getattr(self, name)] for name in ("loss", "validation", "lr")}
        return {**curves, "seconds": self.seconds, "best": self.best}

    @staticmethod
    def _from_json(saved: dict[str, Any]) -> dict[str, Any]:
        """Return attributes from what `_to_json` returned."""
        curves = {name: [float(value) for value in saved[name]] for name in ("loss", "validation", "lr")}
        epochs, validated = len(curves["loss"]), len(curves["validation"])
        best = saved["best"]
        if len(curves["lr"]) != epochs or validated not in (0, epochs) or best not in range(-1, epochs):
            raise ValueError("its history does not have the form of one that fit writes")
        return {**curves, "seconds": arguments.number("seconds", saved["seconds"]), "best": best}

    def __repr__(self) -> str:
        curve = self.validation or self.loss
        best = f", best {'validation ' if self.validation else ''}loss {curve[self.best]:.4g}" if curve else ""
        return f"History({len(self.loss)} epochs{best}{', interrupted' if self.interrupted else ''})"


class Loop:
    """Train in epochs until the loss stops improving, and keep the best parameters.

    `train` is called for every epoch, and yields the loss before each update and the weight of this loss in the mean.
    `evaluate` returns the loss on the validation data, or with `maximize` a score; None means no validation data.
    `diverged` returns an error, given the number of the epoch, from 0, and what is not finite. A loss that decreases by
    at most `tol` has not improved.
    """

    def __init__(
        self,
        parameters: Mapping[str, Array],
        optimizer: Any,
        train: Callable[[], Iterable[tuple[float, float]]],
        evaluate: Callable[[], float] | None,
        diverged: Callable[[int, str], ValueError],
        tol: float = 0.0,
        maximize: bool = False,
    ) -> None:
        self.validates = evaluate is not None
        self._parameters, self._optimizer = parameters, optimizer
        self._train, self._evaluate, self._diverged = train, evaluate, diverged
        self._tol, self._sign = tol, -1 if maximize else 1
        self.history = History()
        self.resume(None)

    def resume(self, best: dict[str, Array] | None) -> None:
        """Continue from the present history and parameters, given those of its best epoch; `tol` must be 0."""
        # Parameters of the best epoch, if there are validation data, and those of the last one.
        self.kept = best, self._copies()
        self._least = min(self.history.validation or self.history.loss, default=math.inf)
        self._stale = len(self.history.loss) - 1 - self.history.best  # epochs since the last improvement

    def run(self, epochs: int, patience: Callable[[], float], callbacks: Iterable[Callable[[History], Any]]) -> None:
        """Train until there are `epochs`, the last `patience()` ones have not improved, or a callback returns True."""
        history = self.history
        while len(history.loss) < epochs and not (history.loss and self._stale >= patience()):
            self._epoch()
            if True in [callback(history) for callback in callbacks]:
                break

    def restore_best(self) -> None:
        """Restore the parameters of the best epoch, if there are validation data or the training has diverged."""
        best, _ = self.kept
        if best is not None:
            require_writeable("parameters", self._parameters)
            _core.assign(list(self._parameters.values()), list(best.values()))

    def _epoch(self) -> None:
        began, history = time.perf_counter(), self.history
        mean, parameters = mean_loss("data", self._train()), self._copies()
        self._require(math.isfinite(mean), f"the loss is {mean}")
        # The loss is measured before the last update, so the parameters are checked separately.
        self._require(all(np.isfinite(array).all() for array in parameters.values()), "the parameters are not finite")
        validation = [] if self._evaluate is None else [self._evaluate()]
        value = self._sign * validation[0] if validation else mean
        self._require(not math.isnan(value), "the validation loss is nan")
        is_best = value < self._least or history.best < 0
        after = {
            "loss": [*history.loss, mean],
            "validation": [*history.validation, *validation],
            "lr": [*history.lr, float(self._optimizer.lr)],
            "seconds": history.seconds + time.perf_counter() - began,
            "best": len(history.loss) if is_best else history.best,
        }
        kept = parameters if is_best and validation else self.kept[0], parameters
        self._stale = 0 if value < self._least - self._tol or history.best < 0 else self._stale + 1
        self._least = min(value, self._least)
        # Each in one step, so that Ctrl-C leaves all of an epoch or none; the parameters first.
        self.kept = kept
        vars(history).update(after)

    def _require(self, finite: bool, what: str) -> None:
        if not finite:
            best, last = self.kept
            self.kept = best or last, last
            raise self._diverged(len(self.history.loss), what)

    def _copies(self) -> dict[str, Array]:
        return {name: array.copy(order="C") for name, array in self._parameters.items()}


def mean_loss(name: str, losses: Iterable[tuple[float, float]]) -> float:
    """Return the mean of losses with weights."""
    total = count = 0.0
    for loss, weight in losses:
        total += loss * weight
        count += weight
    if not count:
        raise ValueError(f"{name} must have at least one mini-batch in every epoch, got none")
    return total / count


@contextlib.contextmanager
def progress(verbose: bool, epochs: int, title: str | None = None) -> Iterator[Callable[[History], None]]:
    """Give a function that shows the progress, with a bar of tqdm if it is installed, or else line by line."""
    bar: Any = None

    def show(history: History) -> None:
        shown = {"loss": f"{history.loss[-1]:.4g}"}
        if history.validation:
            shown["validation"] = f"{history.validation[-1]:.4g}"
        if bar is not None:
            bar.set_postfix(shown, refresh=False)
            bar.update(len(history.loss) - bar.n)
        elif verbose:
            losses = "  ".join(f"{name} {value}" for name, value in shown.items())
            print(f"epoch {len(history.loss)}/{epochs}  {losses}  {history.seconds:.1f} s", file=sys.stderr)

    with contextlib.ExitStack() as stack:
        if verbose:
            with contextlib.suppress(ImportError):
                from tqdm.auto import tqdm

                bar = stack.enter_context(tqdm(total=epochs, desc=title, unit="epoch"))
        yield show


def plot_history(history: History, ax: Axes | None = None) -> Axes:
    """Plot the losses of a training against the epoch, and mark the best epoch.

    Needs matplotlib: ``pip install 'rnnfast[plot]'``.

    Parameters
    ----------
    history : History
    ax : matplotlib.axes.Axes, optional
        The axes to draw on. By default, pyplot creates a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError
        If `history` is not a History, or `ax` is not an Axes.
    """
    if not isinstance(history, History):
        raise TypeError(f"history must be a History, which fit returns, got {type(history).__name__}")
    ax = figures.axes(ax, "plot_history")
    for name, curve in (("training", history.loss), ("validation", history.validation)):
        if curve:
            ax.plot(range(1, len(curve) + 1), curve, label=name)
    if history.validation:
        ax.plot(history.best + 1, history.validation[history.best], "o", color="C1", label=f"best: {history.best + 1}")
    ax.set(xlabel="epoch", ylabel="loss")
    ax.legend()
    return ax
