"""Train a character language model: a recurrent network that learns to predict the next character of a text.

    python examples/char_lm.py

trains for about a minute on English text that comes with every CPython (the help topics of pydoc). It compares the
model with n-gram models on held-out text, prints a sample of text, saves the network, and draws the learning curve.

    python examples/char_lm.py --text my_book.txt --minutes 10
    python examples/char_lm.py --resume char_lm.npz

train on your own text, and continue a run that was stopped by Ctrl-C. If that run was complete, it only writes another
sample.
"""

import argparse
import math
import os
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np

import rnnfast
from rnnfast.commands.program import (
    CannotRun,
    Progress,
    count,
    interruptible,
    option,
    positive,
    run_program,
    runtime,
    save_figure,
    save_picture,
    whole,
)
from rnnfast.commands.program import read_text as read_file
from rnnfast.training import (
    Adam,
    clip_grad_norm,
    load_checkpoint,
    save_checkpoint,
    softmax_cross_entropy,
    truncated_bptt,
)

CELLS = {"lstm": rnnfast.LSTM, "gru": rnnfast.GRU, "rnn": rnnfast.RNN}
LEARNING_RATES = {"lstm": 0.006, "gru": 0.003, "rnn": 0.002}
ORDERS = 5  # the n-gram models have orders 1 to 5
HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 100_000  # the end of the text, held out for the comparison
MILESTONES = 20  # evaluations over a run, each followed by a save


# ---------------------------------------------------------------------------------------------------------- the text


def read_text(path):
    """Read a file, or, without a path, pydoc's help topics, which come with every CPython."""
    if path is None:
        from pydoc_data.topics import topics

        return "".join(topics.values())
    text = read_file(path)
    if not text:
        raise CannotRun(f"{path} is empty: use a file with text in it")
    return text


def encode(text, characters):
    """Return the index of each character of the text in `characters`, which are sorted."""
    alphabet, points = (np.frombuffer(string.encode("utf-32-le"), "<u4") for string in (characters, text))
    return np.searchsorted(alphabet, points)


# --------------------------------------------------------------------------------------------------------- the models


class LanguageModel(rnnfast.Sequential):
    """An embedding, recurrent layers, and a linear readout that scores every possible next character."""

    def __init__(self, size, options, rng):
        super().__init__(
            rnnfast.Embedding(size, options["embedding"], rng=rng),
            CELLS[options["cell"]](options["embedding"], options["hidden"], options["layers"], rng=rng),
            rnnfast.Linear(options["hidden"], size, rng=rng),
        )

    def bits_per_character(self, codes, start, lanes=12, window=256):
        """Return the mean of -log2 p(character | text before it) over codes[start:].

        For speed, these are split into lanes that form a batch. Each lane starts with a window of the text before it.
        """
        length = math.ceil((len(codes) - start) / lanes)
        positions = start + length * np.arange(lanes) + np.arange(-min(start, window), length)[:, None]
        # The last lanes may be short; they are padded with the last character, which is not counted.
        counted = positions < len(codes)
        counted[:-length] = False
        lines = codes[np.minimum(positions, len(codes) - 1)]
        read, targets, counted = lines[:-1], lines[1:], counted[1:]
        total, state = 0.0, None
        for begin in range(0, len(read), window):
            now = slice(begin, begin + window)
            scores, state = self(read[now], state)
            if counted[now].any():
                loss, _ = softmax_cross_entropy(scores, targets[now], mask=counted[now])
                total += loss * counted[now].sum()
        return total / math.log(2) / (len(codes) - start)

    def write(self, codes, length, temperature, rng):
        """Return the codes and `length` more, each sampled from the model's prediction."""
        codes, stream = list(codes), self.stream()
        unread = codes
        for _ in range(length):
            scores = stream(np.array(unread)[:, None])[-1, 0].astype(float)
            probabilities = np.exp((scores - scores.max()) / temperature)
            unread = [rng.choice(len(probabilities), p=probabilities / probabilities.sum())]
            codes += unread
        return codes


def ngram_bits_per_character(codes, start, size):
    """Return the mean of -log2 p over codes[start:] for n-gram models of orders 1, 2, ..., trained on codes[:start].

    Witten-Bell interpolation: if a context was seen `total` times, followed by `kinds` distinct characters,

        p_n(character | context) = (count + kinds * p_{n-1}(character | shorter context)) / (total + kinds)

    with p_0 = 1 / size. Source: I. Witten and T. Bell, "The zero-frequency problem", 1991, method C.
    """
    probabilities = np.full(len(codes) - start, 1 / size)
    contexts = np.zeros(len(codes), np.int64)  # the n - 1 characters before each position, numbered
    bits = []
    for _ in range(ORDERS):
        _, first, grams = np.unique(contexts * size + codes, return_index=True, return_inverse=True)
        counts = np.bincount(grams[:start], minlength=len(first))[grams[start:]]
        totals = np.bincount(contexts[:start], minlength=contexts.max() + 1)[contexts[start:]]
        kinds = np.bincount(contexts[first[first < start]], minlength=contexts.max() + 1)[contexts[start:]]
        probabilities = np.where(
            totals, (counts + kinds * probabilities) / np.maximum(totals + kinds, 1), probabilities
        )
        bits.append(-np.log2(probabilities).mean())
        contexts = np.concatenate([[len(first)], grams[:-1]])  # the first position has its own context
    return bits


# ------------------------------------------------------------------------------------------------------- the training


class Training:
    """Training of a model on a text, with the state that a resumed run needs to continue exactly."""

    KEPT = ("options", "checksum", "characters", "steps", "seconds", "losses", "evaluations", "offset")

    def __init__(self, options, text):
        batch, window = options["batch"], options["window"]
        self.options = options
        self.checksum = zlib.crc32(text.encode())
        self.characters = "".join(sorted(set(text)))
        self.codes = encode(text, self.characters)
        self.held_out = len(text) - min(math.ceil(HELD_OUT_SHARE * len(text)), HELD_OUT_MOST)  # where that part starts
        self.steps_per_epoch = (self.held_out - window) // (batch * window)
        if self.steps_per_epoch < 1:
            least = math.ceil((batch + 1) * window / (1 - HELD_OUT_SHARE)) + 1
            raise CannotRun(
                f"the text has {len(text):,} characters, but --batch {batch} and --window {window} need at least "
                f"{least}; use a longer text, or a smaller batch or window"
            )
        self.rng = np.random.default_rng(options["seed"])
        try:
            self.model = LanguageModel(len(self.characters), options, self.rng)
        except ValueError:
            raise MemoryError from None  # sizes beyond any memory
        self.optimizer = Adam(self.model)
        self.planned = max(1, round(options["epochs"] * self.steps_per_epoch))
        self.steps = self.planned  # fewer than planned if time runs out
        self.seconds = 0.0
        self.losses = []  # of every step, in bits per character
        self.evaluations = []  # pairs of a step and the bits per character on held-out text
        self.offset, self.state = 0, None
        self.reading = None  # the rest of the epoch: windows and targets

    @property
    def name(self):
        return self.options["cell"].upper()

    @property
    def source(self):
        """Describe the text."""
        return self.options["text"] or f"the help topics of CPython {sys.version_info.major}.{sys.version_info.minor}"

    @property
    def step(self):
        return len(self.losses)

    @property
    def epoch(self):
        return self.step / self.steps_per_epoch

    @property
    def characters_read(self):
        return self.step * self.options["batch"] * self.options["window"]

    def learning_rate(self):
        """Return the rate: linear warm-up over the first 3% of the steps, then cosine decay to zero."""
        warm_up = min(1.0, (self.step + 1) / (0.03 * self.steps))
        return self.options["lr"] * warm_up * (1 + math.cos(math.pi * self.step / self.steps)) / 2

    def rest_of_epoch(self):
        """Return the windows from the current position on, and the targets, which are the next characters."""
        batch, window = self.options["batch"], self.options["window"]
        length, begin = self.steps_per_epoch * window, self.step % self.steps_per_epoch * window
        # Views of the codes, (time, batch).
        codes, targets = (
            self.codes[first : first + batch * length].reshape(batch, length).T[begin:]
            for first in (self.offset, self.offset + 1)
        )
        return truncated_bptt(self.model, codes, window, self.state), targets

    @np.errstate(over="ignore", invalid="ignore")  # divergence is detected below
    def advance(self):
        """Train on the next window of each position in the text."""
        if self.step % self.steps_per_epoch == 0:
            # Each epoch starts at another offset, so that the windows differ.
            self.offset, self.state, self.reading = int(self.rng.integers(self.options["window"])), None, None
        if self.reading is None:
            self.reading = self.rest_of_epoch()
        windows, targets = self.reading
        steps, scores, self.state, tape = next(windows)
        loss, dscores = softmax_cross_entropy(scores, targets[steps])
        if not math.isfinite(loss):
            raise CannotRun(f"training diverged at step {self.step}: use an --lr below {self.options['lr']}")
        gradients = self.model.backward(tape, dscores).parameters
        clip_grad_norm(gradients, 1.0)
        self.optimizer.lr = self.learning_rate()
        self.optimizer.step(gradients)
        self.losses.append(loss / math.log(2))

    def run(self, minutes, interrupted, bar, path):
        """Train until all steps are done or `interrupted` is set; save at every milestone and at the end.

        The number of steps is reduced if the planned ones would take longer than `minutes`.
        """
        began = time.monotonic() - self.seconds
        while self.step < self.steps and not interrupted.is_set():
            self.advance()
            self.seconds = time.monotonic() - began
            if self.seconds > 6 * minutes:  # the pace is known after a tenth of the time
                affordable = int(60 * minutes * self.step / self.seconds)
                self.steps = bar.total = max(self.step, min(self.planned, affordable))
            bar.step(self.describe)
            if len(self.evaluations) < MILESTONES * self.step // self.steps:
                bits = self.model.bits_per_character(self.codes, self.held_out)
                self.evaluations.append((self.step, bits))
                self.save(path)
                bar.note(self.describe())
        if self.step < self.steps:
            self.save(path)

    def describe(self):
        """Describe the progress in one line."""
        recent = self.losses[-self.steps // MILESTONES :]
        text = f"epoch {self.epoch:.2f}  {sum(recent) / len(recent):.3f} bits/char"
        if self.evaluations:
            text += f"  held-out {self.evaluations[-1][1]:.3f}"
        return f"{text}  {self.characters_read / self.seconds:,.0f} chars/s"

    def save(self, path):
        """Write everything to one file, which gets its name only when it is complete."""
        about = {name: getattr(self, name) for name in self.KEPT} | {"state": np.asarray(self.state).tolist()}
        try:
            save_checkpoint(path, self.model, self.optimizer, rng=self.rng, about=about)
        except OSError as error:
            raise CannotRun(f"cannot write {path}: {error.strerror or error}") from None

    @classmethod
    def resume(cls, path):
        """Load a training that `save` wrote."""
        try:
            about = load_checkpoint(path)
            training = cls(about["options"], read_text(about["options"]["text"]))
            if training.checksum != about["checksum"]:
                raise CannotRun(f"{path} was trained on another text: {training.source} has changed; train a new model")
            load_checkpoint(path, training.model, training.optimizer, rng=training.rng)
            for name in cls.KEPT:
                setattr(training, name, about[name])
            state = np.array(about["state"], np.float32)
            training.state = tuple(state) if state.ndim > 3 else state
        except (CannotRun, MemoryError):
            raise
        except OSError as error:
            raise CannotRun(f"cannot read {path}: {error.strerror}") from None
        except Exception:  # an unrelated file can fail anywhere above
            raise CannotRun(f"{path} is not a model that this program saved: give one to --resume") from None
        return training


# ----------------------------------------------------------------------------------------------------------- output


def draw(training, ngrams, path):
    """Draw the learning curve."""
    from matplotlib.figure import Figure

    steps, bits = np.array(training.evaluations).reshape(-1, 2).T / [[training.steps_per_epoch], [1]]
    # Each point of the moving average is drawn in the middle of its steps.
    width = math.ceil(training.step / MILESTONES)
    smooth = np.convolve(training.losses, np.full(width, 1 / width), "valid")
    middles = (np.arange(len(smooth)) + (width + 1) / 2) / training.steps_per_epoch

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(middles, smooth, color="C0", alpha=0.4, label=f"{training.name}, training text")
    axes.plot(steps, bits, "o-", color="C0", markersize=4, label=f"{training.name}, held-out text")
    axes.set(xlabel="epochs", ylabel="bits per character", title=f"Learning {training.source}")
    top = ngrams[1] + 0.3
    axes.set_ylim(min(*smooth, *bits, *ngrams) - 0.1, top)
    for order, value in enumerate(ngrams, start=1):
        if value < top:
            axes.axhline(value, color="gray", linewidth=0.8, linestyle=":")
            axes.text(1, value, f" {order}-gram", transform=axes.get_yaxis_transform(), va="center", color="gray")
    axes.legend(loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


# --------------------------------------------------------------------------------------------------------- the command


def parse_arguments(arguments):
    """Return the options of this run, and those of the training that it starts."""
    parser = argparse.ArgumentParser(
        description="Train a character language model on a text, and compare it with n-gram models.",
        epilog="Ctrl-C stops the training early and saves it. Exit status: 0 success, 2 error, 130 stopped by Ctrl-C.",
    )
    rates = ", ".join(f"{cell}: {rate}" for cell, rate in LEARNING_RATES.items())
    group = parser.add_argument_group("training (a resumed training keeps its options)")
    kept = [
        group.add_argument("--text", metavar="FILE", help="text in UTF-8 (default: CPython's help topics)"),
        group.add_argument("--cell", choices=CELLS, default="gru", help="recurrent cell (default: %(default)s)"),
        option(group, "--hidden", count, 384, "units per layer"),
        option(group, "--layers", count, 1, "stacked layers"),
        option(group, "--embedding", count, 64, "size of the embedding"),
        option(group, "--batch", count, 12, "positions read in parallel"),
        option(group, "--window", count, 64, "characters per update"),
        option(group, "--epochs", positive, 5.0, "epochs"),
        option(group, "--lr", positive, None, f"peak learning rate (default: {rates})"),
        option(group, "--seed", whole(0), 0, "random seed"),
    ]
    group = parser.add_argument_group("this run")
    option(group, "--minutes", positive, 1.75, "time limit of the training, which reduces the epochs")
    option(group, "--threads", count, None, "number of threads (default: all cores)")
    group.add_argument("--resume", metavar="MODEL", help="continue the training saved in this file")
    group.add_argument("--model", metavar="FILE", help="where to save (default: char_lm.npz, or the resumed file)")
    group.add_argument("--picture", metavar="FILE", help="learning curve to draw (default: MODEL, as .png)")
    option(group, "--sample", whole(0), 500, "length of the text sample in characters")
    group.add_argument("--prompt", metavar="TEXT", help="start of the text sample")
    option(group, "--temperature", positive, 0.7, "sampling temperature")

    # Options that are still None after parsing were not given.
    names = [action.dest for action in kept]
    run = parser.parse_args(arguments, argparse.Namespace(**dict.fromkeys(names)))
    given = {name: value for name in names if (value := vars(run).pop(name)) is not None}
    if run.resume and given:
        parser.error(f"--resume keeps the options of {run.resume}: leave out --{', --'.join(given)}")
    training = {action.dest: action.default for action in kept} | given
    training["text"] = training["text"] and os.path.abspath(training["text"])
    training["lr"] = training["lr"] or LEARNING_RATES[training["cell"]]
    run.model = Path(run.model or run.resume or "char_lm.npz")
    run.picture = Path(run.picture or run.model.with_suffix(".png"))
    if run.picture == run.model:
        parser.error(f"the picture would overwrite the model {run.model}: give --picture another name")
    return run, training


def main(arguments=None):
    """Run the program and return the exit status."""
    run, options = parse_arguments(arguments)
    return run_program("char_lm.py", report, run, options, smaller="values of --hidden, --batch or --window")


def report(run, options):
    """Train the model, and report how good it is."""
    if run.threads:
        rnnfast.set_num_threads(run.threads)
    training = Training.resume(run.resume) if run.resume else Training(options, read_text(options["text"]))
    codes, characters, held_out = training.codes, training.characters, training.held_out
    prompt = run.prompt or ("\n" if "\n" in characters else characters[0])
    if unknown := sorted(set(prompt) - set(characters)):
        raise CannotRun(f"--prompt contains characters that the text does not: {' '.join(unknown)}; leave them out")

    layers = f"{training.name} of {' + '.join([str(training.options['hidden'])] * training.options['layers'])} units"
    parameters = sum(array.size for array in training.model.parameters.values())
    print(f"Text: {training.source}, {len(codes):,} characters, {len(characters)} distinct.")
    print(f"Model: embedding of {training.options['embedding']}, {layers}, readout: {parameters:,} parameters.")
    print(f"{runtime()}.", flush=True)
    interrupted = threading.Event()
    with interruptible(interrupted.set), Progress(training.steps, training.step) as bar:
        training.run(run.minutes, interrupted, bar, run.model)
    if training.step < training.steps:
        print(f"\nStopped by Ctrl-C in epoch {training.epoch:.2f}; saved to {run.model}. To continue:")
        print(f"python {sys.argv[0]} --resume {run.model}")
        return 130
    if training.steps < training.planned:
        print(
            f"Training stopped early to keep within {run.minutes:g} minutes; a higher --minutes gives a better model."
        )
    print(
        f"Trained for {training.epoch:.2f} epochs in {training.seconds:.0f} seconds, "
        f"{training.characters_read / training.seconds:,.0f} characters per second."
    )

    ngrams = ngram_bits_per_character(codes, held_out, len(characters))
    print(f"\nOn the last {len(codes) - held_out:,} characters, which are held out from all models:")
    print("            bits per character   probability of the correct character (geometric mean)")
    rows = [(f"{order}-gram", value) for order, value in enumerate(ngrams, start=1)]
    for name, value in [*rows, (training.name, training.evaluations[-1][1])]:
        print(f"  {name:8}{value:12.3f}{2**-value:20.0%}")

    print(f"\nSample (temperature {run.temperature:g}):\n")
    rng = np.random.default_rng(training.options["seed"])
    written = training.model.write(encode(prompt, characters), run.sample, run.temperature, rng)
    print("".join(characters[code] for code in written).strip("\n"))

    print(f"\nSaved the model to {run.model}")
    save_picture(run.picture, draw, training, ngrams)
    return 0


if __name__ == "__main__":
    sys.exit(main())
