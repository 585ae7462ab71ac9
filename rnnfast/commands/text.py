"""``python -m rnnfast train text`` and ``sample``: a model that learns to predict the next character of a text."""

from __future__ import annotations

import argparse
import itertools
import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

import rnnfast
from rnnfast.commands import (
    CannotRun,
    Progress,
    count,
    file_name,
    interruptible,
    read,
    read_text,
    real,
    require_apart,
    require_writable,
    whole,
    write,
)
from rnnfast.training import Adam, clip_grad_norm, softmax_cross_entropy, truncated_bptt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

CELLS = {"gru": rnnfast.GRU, "lstm": rnnfast.LSTM}
LEARNING_RATES = {"gru": 0.003, "lstm": 0.006}
HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 100_000  # the tail of the text, which tells how good the model is
LOOKS = 20  # at the held-out text, over a training
MAKE_ONE = "python -m rnnfast train text FILE -o MODEL makes one"


class Model:
    """Embedding, recurrent layers, and a readout that scores every character as the next one.

    `sizes` are the cell, embedding, hidden and layers.
    """

    def __init__(self, characters: str, sizes: dict[str, Any], rng: Any = None) -> None:
        self.characters, self.sizes = characters, sizes
        self.embedding = rnnfast.Embedding(len(characters), sizes["embedding"], rng=rng)
        self.recurrent = CELLS[sizes["cell"]](sizes["embedding"], sizes["hidden"], sizes["layers"], rng=rng)
        self.readout = rnnfast.Linear(sizes["hidden"], len(characters), rng=rng)
        parts = {"embedding": self.embedding, "recurrent": self.recurrent, "readout": self.readout}
        self.parameters = {f"{part}.{name}": a for part, layer in parts.items() for name, a in layer.parameters.items()}

    def encode(self, text: str, source: str) -> NDArray[np.intp]:
        """The place of each character among those that the model knows."""
        places = {character: i for i, character in enumerate(self.characters)}
        if strange := sorted(set(text) - places.keys()):
            raise CannotRun(f"{source} has characters that the text has not: {' '.join(strange)}")
        return np.array([places[character] for character in text], np.intp)

    def forward(self, codes: NDArray[Any], state: Any = None) -> tuple[Any, Any, Any]:
        vectors, embedded = self.embedding.forward(codes)
        hidden, state, recurred = self.recurrent.forward(vectors, state)
        scores, read_out = self.readout.forward(hidden)
        return scores, state, (embedded, recurred, read_out)

    def backward(self, tape: Any, dscores: NDArray[Any]) -> dict[str, NDArray[Any]]:
        embedded, recurred, read_out = tape
        readout = self.readout.backward(read_out, dscores)
        recurrent = self.recurrent.backward(recurred, readout.x)
        embedding = self.embedding.backward(embedded, recurrent.x)
        arrays = [a for part in (embedding, recurrent, readout) for a in part.parameters.values()]
        return dict(zip(self.parameters, arrays, strict=True))

    def bits(self, codes: NDArray[Any], window: int = 256) -> float:
        """The mean of -log2 p(character | all before it in its column) over codes (T, N), but for the first row."""
        total, state = 0.0, None
        for begin in range(0, len(codes) - 1, window):
            ahead = codes[begin + 1 : begin + 1 + window]
            hidden, state = self.recurrent(self.embedding(codes[begin : begin + len(ahead)]), state)
            total += softmax_cross_entropy(self.readout(hidden), ahead)[0] * ahead.size
        return total / math.log(2) / codes[1:].size

    def write(self, start: str, length: int, temperature: float, rng: np.random.Generator) -> Iterator[str]:
        """So many characters after `start`, each drawn from what the model expects."""
        stream = self.recurrent.stream()
        code, *rest = self.encode(start, "--start")
        for _ in range(len(rest) + length):
            hidden = stream.step(self.embedding(code))
            if rest:
                code = rest.pop(0)
                continue
            scores = self.readout(hidden).astype(float)
            chances = np.exp((scores - scores.max()) / temperature)
            code = rng.choice(len(chances), p=chances / chances.sum())
            yield self.characters[code]

    def save(self, path: str, **more: Any) -> None:
        about = {"kind": "text", "characters": self.characters, "sizes": self.sizes, "made_by": rnnfast.__version__}
        write(path, about | more, self.parameters)

    @classmethod
    def load(cls, path: str) -> Model:
        about, arrays = read(path, "text", MAKE_ONE)
        try:
            model = cls(about["characters"], about["sizes"])
            for name, parameter in model.parameters.items():
                parameter[...] = arrays[name]
        except (KeyError, TypeError, ValueError):
            raise CannotRun(f"{path} is damaged: {MAKE_ONE}") from None
        return model


class Training:
    """A model on its way through a text, which is read at several places side by side."""

    def __init__(self, text: str, arguments: argparse.Namespace) -> None:
        self.batch, self.window, self.lr = arguments.batch, arguments.window, arguments.lr
        sizes = {name: getattr(arguments, name) for name in ("cell", "embedding", "hidden", "layers")}
        held_out = min(math.ceil(HELD_OUT_SHARE * len(text)), HELD_OUT_MOST)
        self.steps_per_epoch = (len(text) - held_out - 1) // (self.batch * self.window)
        if self.steps_per_epoch < 1 or held_out < 2:
            least = math.ceil((self.batch * self.window + 1) / (1 - HELD_OUT_SHARE)) + 1
            raise CannotRun(
                f"a text of {len(text):,} characters is too short: --batch {self.batch} and --window {self.window} "
                f"take {max(least, 40):,} or more; use a longer text, or a smaller batch or window"
            )
        self.rng = np.random.default_rng(arguments.seed)
        try:
            self.model = Model("".join(sorted(set(text))), sizes, self.rng)
        except ValueError as error:
            raise CannotRun(
                f"no layers can be made of --hidden {arguments.hidden}, --layers {arguments.layers} and --embedding "
                f"{arguments.embedding}: {error}; use smaller ones"
            ) from None
        codes = self.model.encode(text, "the text")
        self.codes = codes[:-held_out]
        lanes = min(12, held_out // 2)
        self.held_out = codes[-held_out:][: held_out // lanes * lanes].reshape(lanes, -1).T
        self.steps = max(1, round(arguments.epochs * self.steps_per_epoch))
        self.step = 0
        self.best = math.inf
        self.guessing = math.log2(len(self.model.characters))  # bits per character where all are equally likely

    def epoch(self) -> Iterator[tuple[Any, NDArray[Any]]]:
        """Windows of all places with what follows each of their characters; every epoch is cut elsewhere."""
        length = self.steps_per_epoch * self.window
        begin = int(self.rng.integers(len(self.codes) - self.batch * length))
        x, targets = (
            self.codes[start : start + self.batch * length].reshape(self.batch, length).T
            for start in (begin, begin + 1)
        )
        for steps, scores, _, tape in truncated_bptt(self.model, x, self.window):
            yield (scores, tape), targets[steps]

    @np.errstate(over="ignore", invalid="ignore")  # a training that diverges is looked for
    def run(self, path: str, interrupted: threading.Event, bar: Progress) -> None:
        """Train until all steps are done or `interrupted` is set; the file holds the best model so far."""
        optimizer = Adam(self.model.parameters)
        losses: list[float] = []
        looks = 0
        while self.step < self.steps:
            for (scores, tape), targets in self.epoch():
                loss, dscores = softmax_cross_entropy(scores, targets)
                if not math.isfinite(loss):
                    raise CannotRun(f"the training diverged at step {self.step}: use a lower --lr than {self.lr}")
                gradients = self.model.backward(tape, dscores)
                clip_grad_norm(gradients, 1.0)
                # It rises over the first 3% of the steps, then falls along a cosine to zero.
                rise = min(1.0, (self.step + 1) / (0.03 * self.steps))
                optimizer.lr = self.lr * rise * (1 + math.cos(math.pi * self.step / self.steps)) / 2
                optimizer.step(gradients)
                self.step += 1
                losses.append(loss / math.log(2))
                bar.step()
                if looks < LOOKS * self.step // self.steps or interrupted.is_set():
                    looks += 1
                    bits = self.model.bits(self.held_out)
                    if bits < self.best and (bits <= self.guessing or interrupted.is_set()):
                        self.best = bits
                        self.model.save(path, bits=bits)
                    bar.note(
                        f"epoch {self.step / self.steps_per_epoch:.2f}: {sum(losses) / len(losses):.3f} bits per "
                        f"character, held out {bits:.3f}"
                    )
                    losses.clear()
                if interrupted.is_set() or self.step == self.steps:
                    if not math.isfinite(self.best):
                        raise CannotRun(
                            f"the training came to nothing: {bits:.3f} bits per character, and {self.guessing:.3f} by "
                            f"guessing; use a lower --lr than {self.lr}, or more --epochs"
                        )
                    return


def configure_train(parser: argparse.ArgumentParser) -> None:
    """Train a recurrent network to predict the next character of a text. The last 5% of the text are held out to
    judge it; the file holds the model that was best on them. Ctrl-C ends the training and keeps that.

    Examples:
      python -m rnnfast train text book.txt -o book.npz
      python -m rnnfast train text book.txt -o book.npz --cell lstm --hidden 512 --epochs 10
      python -m rnnfast sample book.npz --length 300
    """
    parser.add_argument("file", metavar="FILE", help="text to learn, in UTF-8")
    parser.add_argument(
        "-o", "--output", metavar="MODEL", type=file_name, required=True, help="file to write the model to"
    )
    group = parser.add_argument_group("the model")
    group.add_argument("--cell", choices=CELLS, default="gru", help="kind of the recurrent layers (%(default)s)")
    group.add_argument("--hidden", metavar="N", type=count, default=256, help="units in each of them (%(default)s)")
    group.add_argument("--layers", metavar="N", type=count, default=1, help="how many, stacked (%(default)s)")
    group.add_argument(
        "--embedding", metavar="N", type=count, default=48, help="numbers that stand for a character (%(default)s)"
    )
    group = parser.add_argument_group("the training")
    group.add_argument("--epochs", metavar="X", type=real, default=3.0, help="times to read the text (%(default)s)")
    group.add_argument("--batch", metavar="N", type=count, default=12, help="places read side by side (%(default)s)")
    group.add_argument(
        "--window", metavar="N", type=count, default=64, help="characters between two updates (%(default)s)"
    )
    rates = ", ".join(f"{cell}: {rate}" for cell, rate in LEARNING_RATES.items())
    group.add_argument("--lr", metavar="X", type=real, help=f"highest learning rate ({rates})")
    group.add_argument("--seed", metavar="N", type=whole, default=0, help="of all random numbers (%(default)s)")
    group.add_argument("--threads", metavar="N", type=count, help="threads to compute with (default: see info)")
    parser.set_defaults(run=train)


def train(arguments: argparse.Namespace) -> int:
    if arguments.threads:
        rnnfast.set_num_threads(arguments.threads)
    arguments.lr = arguments.lr or LEARNING_RATES[arguments.cell]
    require_apart({"FILE": arguments.file, "--output": arguments.output})
    text = read_text(arguments.file)
    require_writable(arguments.output)
    training = Training(text, arguments)
    parameters = sum(array.size for array in training.model.parameters.values())
    print(f"{arguments.file}: {len(text):,} characters, {len(training.model.characters)} different ones")
    print(
        f"{arguments.cell.upper()}, {arguments.layers} x {arguments.hidden} units: {parameters:,} parameters",
        flush=True,
    )
    interrupted = threading.Event()
    with interruptible(interrupted.set), Progress(training.steps, "step") as bar:
        training.run(arguments.output, interrupted, bar)
    stopped = "Stopped by Ctrl-C. " if training.step < training.steps else ""
    print(
        f"{stopped}Saved to {arguments.output}: {training.best:.3f} bits per character on the held-out end of the text"
    )
    return 130 if stopped else 0


def configure_sample(parser: argparse.ArgumentParser) -> None:
    """Let a model that "train text" made write.

    Examples:
      python -m rnnfast sample book.npz
      python -m rnnfast sample book.npz --length 1000 --temperature 0.5 --start "Once upon" --seed 7
    """
    parser.add_argument("model", metavar="MODEL", help="file that train text has written")
    parser.add_argument("--length", metavar="N", type=whole, default=500, help="characters to write (%(default)s)")
    parser.add_argument(
        "--temperature", metavar="X", type=real, default=0.8, help="above 1 bolder, below 1 safer (%(default)s)"
    )
    parser.add_argument("--start", metavar="TEXT", help="what the text begins with (default: a new line)")
    parser.add_argument(
        "--seed", metavar="N", type=whole, default=0, help="another one gives another text (%(default)s)"
    )
    parser.set_defaults(run=sample)


def sample(arguments: argparse.Namespace) -> int:
    model = Model.load(arguments.model)
    start = arguments.start or ("\n" if "\n" in model.characters else model.characters[0])
    model.encode(start, "--start")  # an error before anything is printed
    written = model.write(start, arguments.length, arguments.temperature, np.random.default_rng(arguments.seed))
    for piece in itertools.chain([start.lstrip("\n")], written):
        print(piece, end="", flush=True)
    print()
    return 0
