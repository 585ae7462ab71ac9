"""``rnnfast train text`` and ``rnnfast sample``: a language model that predicts the next character of a text."""

from __future__ import annotations

import argparse
import itertools
import math
import os
import threading
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

import rnnfast
from rnnfast import files
from rnnfast._types import NDArray, Path
from rnnfast.commands import program
from rnnfast.commands.program import CannotRun, Progress, count, option, printable
from rnnfast.layers import saving
from rnnfast.training import Adam, clip_grad_norm, softmax_cross_entropy, truncated_bptt

CELLS = {"gru": rnnfast.GRU, "lstm": rnnfast.LSTM}
LEARNING_RATES = {"gru": 0.003, "lstm": 0.006}
HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 100_000  # the end of the text, on which the model is evaluated
EVALUATIONS = 20  # per training run


class Model(rnnfast.Model):
    """An embedding, recurrent layers, and a readout that scores each character as a candidate for the next one.

    `sizes` holds the options cell, embedding, hidden and layers. The parameters are drawn from `rng`, or read from
    `archive`.
    """

    def __init__(
        self, characters: str, sizes: dict[str, Any], rng: Any = None, archive: files.Archive | None = None
    ) -> None:
        def make(part: str, kind: type[Any], **options: int) -> Any:
            if archive is None:
                return kind(**options, rng=rng)
            return saving.construct(kind, archive, f"{part}.", **options)

        self.characters, self.sizes = characters, sizes
        count, embedding, hidden = len(characters), sizes["embedding"], sizes["hidden"]
        self.embedding = make("embedding", rnnfast.Embedding, num_embeddings=count, embedding_dim=embedding)
        kind = CELLS[sizes["cell"]]
        self.recurrent = make("recurrent", kind, input_size=embedding, hidden_size=hidden, num_layers=sizes["layers"])
        self.readout = make("readout", rnnfast.Linear, in_features=hidden, out_features=count)

    def call(self, x: Any, state: Any = None) -> tuple[Any, Any]:
        hidden, state = self.recurrent(self.embedding(x), state)
        return self.readout(hidden), state

    def encode(self, text: str, source: str) -> NDArray[np.intp]:
        """Return the code of each character."""
        codes = {character: i for i, character in enumerate(self.characters)}
        if unknown := sorted(set(text) - codes.keys()):
            some = program.listed(unknown, " ")
            raise CannotRun(f"{source} contains characters that the training text does not: {some}; leave them out")
        return np.array([codes[character] for character in text], np.intp)

    def bits(self, codes: NDArray[Any], window: int = 256) -> float:
        """Return the mean of -log2 p(character | its column so far) over codes (T, N), without the first row."""
        total, state = 0.0, None
        for begin in range(0, len(codes) - 1, window):
            ahead = codes[begin + 1 : begin + 1 + window]
            scores, state = self(codes[begin : begin + len(ahead)], state)
            total += softmax_cross_entropy(scores, ahead)[0] * ahead.size
        return total / math.log(2) / codes[1:].size

    def write(self, start: str, length: int, temperature: float, rng: np.random.Generator) -> Iterator[str]:
        """Yield `length` characters that continue `start`, each sampled from the model's prediction.

        At temperature 0, each is the most probable character.
        """
        stream, read = self.stream(), self.encode(start, "--start")
        for _ in range(length):
            scores = stream(read[:, np.newaxis])[-1, 0].astype(float)
            if not np.isfinite(scores).all():
                raise CannotRun("the model's scores are not finite: train another model")
            if temperature == 0:
                read = scores.argmax(keepdims=True)
            else:
                with np.errstate(over="ignore"):
                    probabilities = np.exp((scores - scores.max()) / temperature)
                read = rng.choice(len(probabilities), 1, p=probabilities / probabilities.sum())
            yield self.characters[read[0]]

    def save(self, path: Path, **more: Any) -> None:
        about = {"kind": "text", "characters": self.characters, "sizes": self.sizes, "made_by": rnnfast.__version__}
        program.write_model(os.fsdecode(path), about | more, self.parameters)

    @classmethod
    def read(cls, path: str) -> Model:
        def build(archive: files.Archive) -> Model:
            characters, sizes = archive.about["characters"], archive.about["sizes"]
            if not isinstance(characters, str) or not characters or len(set(characters)) < len(characters):
                raise ValueError("its characters must be a string of one or more distinct characters")
            if not isinstance(sizes, dict) or sizes.keys() != {"cell", "embedding", "hidden", "layers"}:
                raise ValueError("its sizes must be cell, embedding, hidden and layers")
            model = cls(characters, sizes, archive=archive)
            if not all(np.isfinite(array).all() for array in model.parameters.values()):
                raise ValueError("its parameters are not finite")
            return model

        return cast("Model", program.read_model(path, "text", "train text FILE -o MODEL", build))


class Training:
    """Train a model on a text, which is read at several positions in parallel."""

    def __init__(self, text: str, arguments: argparse.Namespace) -> None:
        self.batch, self.window, self.lr = arguments.batch, arguments.window, arguments.lr
        sizes = {name: getattr(arguments, name) for name in ("cell", "embedding", "hidden", "layers")}
        held_out = min(math.ceil(HELD_OUT_SHARE * len(text)), HELD_OUT_MOST)
        self.steps_per_epoch = (len(text) - held_out - 1) // (self.batch * self.window)
        if self.steps_per_epoch < 1 or held_out < 2:
            least = math.ceil((self.batch * self.window + 1) / (1 - HELD_OUT_SHARE)) + 1
            raise CannotRun(
                f"the text has {len(text):,} characters, but --batch {self.batch} and --window {self.window} need "
                f"at least {max(least, 40):,}; use a longer text, or a smaller batch or window"
            )
        self.rng = np.random.default_rng(arguments.seed)
        try:
            self.model = Model("".join(sorted(set(text))), sizes, self.rng)
        except ValueError as error:
            raise CannotRun(
                f"--hidden {arguments.hidden}, --layers {arguments.layers} and --embedding {arguments.embedding} "
                f"cannot be used: {error}; use smaller sizes"
            ) from None
        codes = self.model.encode(text, "the text")
        self.codes = codes[:-held_out]
        lanes = min(12, held_out // 2)
        self.held_out = codes[-held_out:][: held_out // lanes * lanes].reshape(lanes, -1).T
        self.steps = max(1, round(arguments.epochs * self.steps_per_epoch))
        self.step = 0
        self.best = math.inf
        self.guessing = math.log2(len(self.model.characters))  # bits per character of a uniform prediction

    def epoch(self) -> Iterator[tuple[Any, NDArray[Any]]]:
        """Yield windows and their targets, the next characters; each epoch starts at another offset."""
        length = self.steps_per_epoch * self.window
        begin = int(self.rng.integers(len(self.codes) - self.batch * length))
        x, targets = (
            self.codes[start : start + self.batch * length].reshape(self.batch, length).T
            for start in (begin, begin + 1)
        )
        for steps, scores, _, tape in truncated_bptt(self.model, x, self.window):
            yield (scores, tape), targets[steps]

    @np.errstate(over="ignore", invalid="ignore")  # divergence is detected below
    def run(self, path: str, interrupted: threading.Event, bar: Progress) -> None:
        """Train until all steps are done or `interrupted` is set, and keep the best model so far in the file."""
        optimizer = Adam(self.model.parameters)
        losses: list[float] = []
        evaluations = 0
        while self.step < self.steps:
            for (scores, tape), targets in self.epoch():
                loss, dscores = softmax_cross_entropy(scores, targets)
                if not math.isfinite(loss):
                    raise CannotRun(f"training diverged at step {self.step}: use an --lr below {self.lr}")
                gradients = self.model.backward(tape, dscores).parameters
                clip_grad_norm(gradients, 1.0)
                # Linear warm-up over the first 3% of the steps, then cosine decay to zero.
                warm_up = min(1.0, (self.step + 1) / (0.03 * self.steps))
                optimizer.lr = self.lr * warm_up * (1 + math.cos(math.pi * self.step / self.steps)) / 2
                optimizer.step(gradients)
                self.step += 1
                losses.append(loss / math.log(2))
                bar.step()
                if evaluations < EVALUATIONS * self.step // self.steps or interrupted.is_set():
                    evaluations += 1
                    bits = self.model.bits(self.held_out)
                    if bits < self.best and (bits <= self.guessing or interrupted.is_set()):
                        self.best = bits
                        self.model.save(path, bits=bits)
                    bar.note(
                        f"epoch {self.step / self.steps_per_epoch:.2f}: {sum(losses) / len(losses):.3f} bits per "
                        f"character, held-out {bits:.3f}"
                    )
                    losses.clear()
                if interrupted.is_set() or self.step == self.steps:
                    if not math.isfinite(self.best):
                        raise CannotRun(
                            f"training did not improve on a uniform prediction: {bits:.3f} bits per character, against "
                            f"{self.guessing:.3f}; use an --lr below {self.lr}, or more --epochs"
                        )
                    return


def configure_train(parser: argparse.ArgumentParser) -> None:
    """Train a recurrent network to predict the next character of a text. The last 5% of the text are held out for
    evaluation, and the model that is best on them is saved. Ctrl-C stops the training and keeps the best model.

    Examples:
      rnnfast train text book.txt -o book.npz
      rnnfast train text book.txt -o book.npz --cell lstm --hidden 512 --epochs 10
      rnnfast sample book.npz --length 300
    """
    parser.add_argument("file", metavar="FILE", help="text to train on, in UTF-8; byte order marks are ignored")
    parser.add_argument(
        "-o", "--output", metavar="MODEL", type=program.file_name, required=True, help="file to save the model to"
    )
    group = parser.add_argument_group("model")
    group.add_argument("--cell", choices=CELLS, default="gru", help="recurrent cell (default: %(default)s)")
    option(group, "--hidden", count, 256, "units per layer")
    option(group, "--layers", count, 1, "stacked layers")
    option(group, "--embedding", count, 48, "size of the embedding")
    group = parser.add_argument_group("training")
    option(group, "--epochs", program.positive, 3.0, "epochs")
    option(group, "--batch", count, 12, "positions read in parallel")
    option(group, "--window", count, 64, "characters per update")
    rates = ", ".join(f"{cell}: {rate}" for cell, rate in LEARNING_RATES.items())
    option(group, "--lr", program.positive, None, f"peak learning rate (default: {rates})")
    option(group, "--seed", program.whole(0), 0, "random seed")
    option(group, "--threads", count, None, "number of threads (default: see info)")
    parser.set_defaults(run=train)


def train(arguments: argparse.Namespace) -> int:
    if arguments.threads:
        rnnfast.set_num_threads(arguments.threads)
    arguments.lr = arguments.lr or LEARNING_RATES[arguments.cell]
    program.require_distinct({"FILE": arguments.file, "--output": arguments.output})
    text = program.read_text(arguments.file)
    program.require_writable(arguments.output)
    training = Training(text, arguments)
    parameters = sum(array.size for array in training.model.parameters.values())
    print(f"{printable(arguments.file, keep='')}: {len(text):,} characters, {len(training.model.characters)} distinct")
    print(
        f"{arguments.cell.upper()}, {arguments.layers} x {arguments.hidden} units: {parameters:,} parameters",
        flush=True,
    )
    interrupted = threading.Event()
    with program.interruptible(interrupted.set), Progress(training.steps) as bar:
        training.run(arguments.output, interrupted, bar)
    stopped = "Stopped by Ctrl-C. " if training.step < training.steps else ""
    saved = f"{stopped}Saved to {printable(arguments.output, keep='')}"
    print(f"{saved}: {training.best:.3f} bits per character on the held-out text")
    return 130 if stopped else 0


def configure_sample(parser: argparse.ArgumentParser) -> None:
    """Write text with a model that "train text" has saved. Control characters except newlines and tabs are
    printed as escapes such as \\x1b.

    Examples:
      rnnfast sample book.npz
      rnnfast sample book.npz --length 1000 --temperature 0.5 --start "Once upon" --seed 7
    """
    parser.add_argument("model", metavar="MODEL", help="file saved by train text")
    option(parser, "--length", program.whole(0), 500, "characters to write")
    option(parser, "--temperature", program.non_negative, 0.8, "sampling temperature; 0: the most probable")
    parser.add_argument("--start", metavar="TEXT", help="text to continue (default: a new line)")
    option(parser, "--seed", program.whole(0), 0, "random seed")
    parser.set_defaults(run=sample)


def sample(arguments: argparse.Namespace) -> int:
    model = Model.read(arguments.model)
    first = "\n" if "\n" in model.characters else model.characters[0]
    start = (arguments.start or "").replace(program.MARK, "") or first
    model.encode(start, "--start")  # reports unknown characters before anything is printed
    written = model.write(start, arguments.length, arguments.temperature, np.random.default_rng(arguments.seed))
    for piece in itertools.chain([start.lstrip("\n")], written):
        print(printable(piece), end="", flush=True)
    print()
    return 0
