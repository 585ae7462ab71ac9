"""Train a character language model: a recurrent network that learns to predict the next character of a text.

    python examples/char_lm.py

trains for about a minute on the English text that ships inside every CPython (the help topics of pydoc), compares the
model with n-gram models on text that neither has seen, lets it write a few lines, saves it, and draws how it learnt.

    python examples/char_lm.py --text my_book.txt --minutes 10
    python examples/char_lm.py --resume char_lm.npz

train on a text of yours, and go on with a run that Ctrl-C ended (or, where it was complete, let it write once more).
"""

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import program
from program import CannotRun, checked, exit_status, whole

import rnnfast
from rnnfast.training import Adam, clip_grad_norm, softmax_cross_entropy, truncated_bptt

CELLS = {"lstm": rnnfast.LSTM, "gru": rnnfast.GRU, "rnn": rnnfast.RNN}
LEARNING_RATES = {"lstm": 0.006, "gru": 0.003, "rnn": 0.002}
ORDERS = 5  # of the n-gram models
HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 100_000  # the tail of the text that is kept for the comparison
MILESTONES = 20  # evaluations over a run, each followed by a save


# ---------------------------------------------------------------------------------------------------------- the text


def read_text(path):
    """The text of a file; without a path that of pydoc's help topics, which every CPython carries."""
    if path is None:
        from pydoc_data.topics import topics

        return "".join(topics.values())
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise CannotRun(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CannotRun(f"{path} is not text in UTF-8: see byte {error.start}, counted from 0") from None
    if not text:
        raise CannotRun(f"{path} is empty")
    return text


def encode(text, characters):
    """Each character of the text as its place in `characters`, which are sorted."""
    alphabet, points = (np.frombuffer(string.encode("utf-32-le"), "<u4") for string in (characters, text))
    return np.searchsorted(alphabet, points)


# --------------------------------------------------------------------------------------------------------- the models


class LanguageModel:
    """Embedding, recurrent layers, and a linear readout that gives a score to every possible next character."""

    PARTS = ("embedding", "recurrent", "readout")

    def __init__(self, size, options, rng):
        self.embedding = rnnfast.Embedding(size, options["embedding"], rng=rng)
        self.recurrent = CELLS[options["cell"]](options["embedding"], options["hidden"], options["layers"], rng=rng)
        self.readout = rnnfast.Linear(options["hidden"], size, rng=rng)
        self.parameters = self._join(*(getattr(self, part).parameters for part in self.PARTS))

    def _join(self, *arrays):
        """The named arrays of all parts as one dict."""
        return {f"{part}.{name}": own[name] for part, own in zip(self.PARTS, arrays, strict=True) for name in own}

    def __call__(self, codes, state=None):
        """Scores (T, N, size) of what follows each of the codes (T, N), and the state after them."""
        hidden, state = self.recurrent(self.embedding(codes), state)
        return self.readout(hidden), state

    def forward(self, codes, state=None):
        """As a call, with a tape of what the gradients need."""
        vectors, embedding_tape = self.embedding.forward(codes)
        hidden, state, recurrent_tape = self.recurrent.forward(vectors, state)
        scores, readout_tape = self.readout.forward(hidden)
        return scores, state, (embedding_tape, recurrent_tape, readout_tape)

    def backward(self, tape, dscores):
        """The gradients of the parameters, from that of the scores that came with the tape."""
        embedding_tape, recurrent_tape, readout_tape = tape
        readout = self.readout.backward(readout_tape, dscores)
        recurrent = self.recurrent.backward(recurrent_tape, readout.x)
        embedding = self.embedding.backward(embedding_tape, recurrent.x)
        return self._join(embedding.parameters, recurrent.parameters, readout.parameters)

    def bits_per_character(self, codes, start, lanes=12, window=256):
        """The mean of -log2 p(character | all before it) over codes[start:].

        For speed they are cut into lanes that are read side by side, each with a window of text before it as context.
        """
        length = math.ceil((len(codes) - start) / lanes)
        positions = start + length * np.arange(lanes) + np.arange(-min(start, window), length)[:, None]
        # The last lanes may end early: there they repeat the last character, which is then not counted.
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
        """The codes and `length` more, each drawn from what the model expects."""
        codes, state = list(codes), None
        unread = codes
        self.recurrent.freeze()
        for _ in range(length):
            scores, state = self(np.array(unread)[:, None], state)
            scores = scores[-1, 0].astype(float)
            chances = np.exp((scores - scores.max()) / temperature)
            unread = [rng.choice(len(chances), p=chances / chances.sum())]
            codes += unread
        self.recurrent.unfreeze()
        return codes


def ngram_bits_per_character(codes, start, size):
    """The mean of -log2 p over codes[start:] under n-gram models of order 1, 2, ..., that have counted codes[:start].

    Witten-Bell interpolation: where a context was seen `total` times, followed by `kinds` different characters,

        p_n(character | context) = (count + kinds * p_{n-1}(character | shorter context)) / (total + kinds)

    with p_0 = 1 / size (Witten and Bell 1991, The zero-frequency problem, method C).
    """
    chances = np.full(len(codes) - start, 1 / size)
    contexts = np.zeros(len(codes), np.int64)  # the n - 1 characters before each position, as one number
    bits = []
    for _ in range(ORDERS):
        _, first, grams = np.unique(contexts * size + codes, return_index=True, return_inverse=True)
        counts = np.bincount(grams[:start], minlength=len(first))[grams[start:]]
        totals = np.bincount(contexts[:start], minlength=contexts.max() + 1)[contexts[start:]]
        kinds = np.bincount(contexts[first[first < start]], minlength=contexts.max() + 1)[contexts[start:]]
        chances = np.where(totals, (counts + kinds * chances) / np.maximum(totals + kinds, 1), chances)
        bits.append(-np.log2(chances).mean())
        contexts = np.concatenate([[len(first)], grams[:-1]])  # a number of its own where nothing stands before
    return bits


# ------------------------------------------------------------------------------------------------------- the training


class Training:
    """A model on its way through a text, with all that a resumed run needs to go on along the same curve."""

    KEPT = ("options", "checksum", "characters", "steps", "seconds", "losses", "evaluations", "offset")

    def __init__(self, options, text):
        batch, window = options["batch"], options["window"]
        self.options = options
        self.checksum = zlib.crc32(text.encode())
        self.characters = "".join(sorted(set(text)))
        self.codes = encode(text, self.characters)
        self.held_out = len(text) - min(math.ceil(HELD_OUT_SHARE * len(text)), HELD_OUT_MOST)  # where that tail starts
        self.steps_per_epoch = (self.held_out - window) // (batch * window)
        if self.steps_per_epoch < 1:
            least = math.ceil((batch + 1) * window / (1 - HELD_OUT_SHARE)) + 1
            raise CannotRun(
                f"a text of {len(text):,} characters is too short: --batch {batch} and --window {window} "
                f"take {least} or more; use a longer text, or a smaller batch or window"
            )
        self.rng = np.random.default_rng(options["seed"])
        try:
            self.model = LanguageModel(len(self.characters), options, self.rng)
        except ValueError:
            raise MemoryError from None  # sizes that no memory holds
        self.optimizer = Adam(self.model.parameters)
        self.planned = max(1, round(options["epochs"] * self.steps_per_epoch))
        self.steps = self.planned  # in all; fewer where time would run out
        self.seconds = 0.0
        self.losses = []  # of every step, in bits per character
        self.evaluations = []  # pairs of a step and the bits per character on the held-out text
        self.offset, self.state = 0, None
        self.reading = None  # what is left of the epoch: its windows, and what follows each of their characters

    @property
    def name(self):
        return self.options["cell"].upper()

    @property
    def source(self):
        """The text, in words."""
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
        """It rises over the first 3% of the steps, then falls along a cosine to zero."""
        rise = min(1.0, (self.step + 1) / (0.03 * self.steps))
        return self.options["lr"] * rise * (1 + math.cos(math.pi * self.step / self.steps)) / 2

    def rest_of_epoch(self):
        """The windows from where the training stands, and what follows each of their characters."""
        batch, window = self.options["batch"], self.options["window"]
        length, begin = self.steps_per_epoch * window, self.step % self.steps_per_epoch * window
        # Read side by side: (time, batch), views of the codes.
        codes, targets = (
            self.codes[first : first + batch * length].reshape(batch, length).T[begin:]
            for first in (self.offset, self.offset + 1)
        )
        return truncated_bptt(self.model, codes, window, self.state), targets

    @np.errstate(over="ignore", invalid="ignore")  # a training that diverges is looked for
    def advance(self):
        """One step: read on by a window at each of the places in the text, and learn from it."""
        if self.step % self.steps_per_epoch == 0:
            # Each epoch starts a little further into the text, so that the windows are cut elsewhere.
            self.offset, self.state, self.reading = int(self.rng.integers(self.options["window"])), None, None
        if self.reading is None:
            self.reading = self.rest_of_epoch()
        windows, targets = self.reading
        steps, scores, self.state, tape = next(windows)
        loss, dscores = softmax_cross_entropy(scores, targets[steps])
        if not math.isfinite(loss):
            raise CannotRun(f"the training diverged at step {self.step}: use a lower --lr than {self.options['lr']}")
        gradients = self.model.backward(tape, dscores)
        clip_grad_norm(gradients, 1.0)
        self.optimizer.lr = self.learning_rate()
        self.optimizer.step(gradients)
        self.losses.append(loss / math.log(2))

    def run(self, minutes, interrupted, bar, path):
        """Train until all steps are done or `interrupted` is set, and save at every milestone and at the end.

        There will be fewer steps where all of them would take longer than `minutes`.
        """
        began = time.monotonic() - self.seconds
        while self.step < self.steps and not interrupted.is_set():
            self.advance()
            self.seconds = time.monotonic() - began
            if self.seconds > 6 * minutes:  # after a tenth of the time the pace is known
                affordable = int(60 * minutes * self.step / self.seconds)
                self.steps = max(self.step, min(self.planned, affordable))
            milestone = len(self.evaluations) < MILESTONES * self.step // self.steps
            if milestone:
                bits = self.model.bits_per_character(self.codes, self.held_out)
                self.evaluations.append((self.step, bits))
                self.save(path)
            bar.show(self, milestone)
        if self.step < self.steps:
            self.save(path)

    def save(self, path):
        """Write all of this into one file, which takes its name only when it is complete."""
        about = {name: getattr(self, name) for name in self.KEPT} | {"rng": self.rng.bit_generator.state}
        state = self.state if isinstance(self.state, tuple) else (self.state,)
        arrays = {f"model.{name}": array for name, array in self.model.parameters.items()}
        arrays |= {f"optimizer.{name}": array for name, array in self.optimizer.state_dict().items()}
        arrays |= {f"state.{index}": array for index, array in enumerate(state)}
        unfinished = f"{path}.unfinished"
        try:
            with open(unfinished, "wb") as file:
                np.savez(file, about=np.array(json.dumps(about)), **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except OSError as error:
            raise CannotRun(f"cannot write {path}: {error.strerror}") from None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(unfinished)

    @classmethod
    def resume(cls, path):
        """The training that `save` wrote."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            about = json.loads(arrays.pop("about").item())
            text = read_text(about["options"]["text"])
            training = cls(about["options"], text)
            if training.checksum != about["checksum"]:
                raise CannotRun(f"{path} has learnt from another text than {training.source} is now: train anew")
            groups = {"model": {}, "optimizer": {}, "state": {}}
            for name, array in arrays.items():
                group, _, rest = name.partition(".")
                groups[group][rest] = array
            for name, parameter in training.model.parameters.items():
                parameter[...] = groups["model"][name]
            training.optimizer.load_state_dict(groups["optimizer"])
            state = tuple(groups["state"].values())
            training.state = state if len(state) > 1 else state[0]
            training.rng.bit_generator.state = about["rng"]
            for name in cls.KEPT:
                setattr(training, name, about[name])
        except (CannotRun, MemoryError):
            raise
        except OSError as error:
            raise CannotRun(f"cannot read {path}: {error.strerror}") from None
        except Exception:  # a file that is not ours can fail anywhere above
            raise CannotRun(f"{path} is not a model that this program saved") from None
        return training


# -------------------------------------------------------------------------------------------------- what is to be seen


class ProgressBar(program.ProgressBar):
    milestones = MILESTONES

    def describe(self, training, loss):
        text = f"{loss:.3f} bits/char"
        if training.evaluations:
            text += f"  held out {training.evaluations[-1][1]:.3f}"
        return f"{text}  {training.characters_read / training.seconds:,.0f} chars/s"


def draw(training, ngrams, path):
    """The learning curve as a picture."""
    from matplotlib.figure import Figure

    steps, bits = np.array(training.evaluations).reshape(-1, 2).T / [[training.steps_per_epoch], [1]]
    # Each point of the mean stands at the middle of the steps that it is taken over.
    width = math.ceil(training.step / MILESTONES)
    smooth = np.convolve(training.losses, np.full(width, 1 / width), "valid")
    middles = (np.arange(len(smooth)) + (width + 1) / 2) / training.steps_per_epoch

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(middles, smooth, color="C0", alpha=0.4, label=f"{training.name}, on the text it is learning")
    axes.plot(steps, bits, "o-", color="C0", markersize=4, label=f"{training.name}, on held-out text")
    axes.set(xlabel="epochs", ylabel="bits per character", title=f"Learning {training.source}")
    top = ngrams[1] + 0.3
    axes.set_ylim(min(*smooth, *bits, *ngrams) - 0.1, top)
    for order, value in enumerate(ngrams, start=1):
        if value < top:
            axes.axhline(value, color="gray", linewidth=0.8, linestyle=":")
            axes.text(1, value, f" {order}-gram", transform=axes.get_yaxis_transform(), va="center", color="gray")
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise CannotRun(f"cannot draw {path}: {error}") from None


# --------------------------------------------------------------------------------------------------------- the command


def parse_arguments(arguments):
    """The options of this run, and those of a training that it begins."""
    parser = argparse.ArgumentParser(
        description="Train a character language model on a text, and compare it with n-gram models.",
        epilog="Ctrl-C ends the training early and saves it. Exit status: 0 done, 2 cannot run, 130 ended by Ctrl-C.",
    )
    real = checked(float, lambda value: 0 < value < math.inf, "a number above 0")
    rates = ", ".join(f"{cell}: {rate}" for cell, rate in LEARNING_RATES.items())
    group = parser.add_argument_group("the training (a resumed one keeps those it began with)")
    kept = [
        group.add_argument("--text", metavar="FILE", help="text to learn, in UTF-8 (default: the help inside CPython)"),
        group.add_argument("--cell", choices=CELLS, default="gru", help="kind of the recurrent layer (%(default)s)"),
        group.add_argument(
            "--hidden", metavar="N", type=whole(1), default=384, help="units in each recurrent layer (%(default)s)"
        ),
        group.add_argument(
            "--layers", metavar="N", type=whole(1), default=1, help="recurrent layers, stacked (%(default)s)"
        ),
        group.add_argument(
            "--embedding", metavar="N", type=whole(1), default=64, help="size of a character's vector (%(default)s)"
        ),
        group.add_argument(
            "--batch", metavar="N", type=whole(1), default=12, help="places read side by side (%(default)s)"
        ),
        group.add_argument(
            "--window", metavar="N", type=whole(1), default=64, help="characters between two updates (%(default)s)"
        ),
        group.add_argument(
            "--epochs", metavar="N", type=real, default=5.0, help="times to read the text (%(default)s)"
        ),
        group.add_argument("--lr", metavar="N", type=real, help=f"highest learning rate ({rates})"),
        group.add_argument("--seed", metavar="N", type=whole(0), default=0, help="of all random numbers (%(default)s)"),
    ]
    group = parser.add_argument_group("this run")
    group.add_argument(
        "--minutes", metavar="N", type=real, default=1.75, help="train no longer: take fewer epochs (%(default)s)"
    )
    group.add_argument("--threads", metavar="N", type=whole(1), help="threads to compute with (default: all cores)")
    group.add_argument("--resume", metavar="MODEL", help="go on with the training saved there")
    group.add_argument("--model", metavar="FILE", help="where to save (default: char_lm.npz, or the one resumed)")
    group.add_argument("--picture", metavar="FILE", help="where to draw the learning curve (default: MODEL, as .png)")
    group.add_argument(
        "--sample", metavar="N", type=whole(0), default=500, help="characters to write at the end (%(default)s)"
    )
    group.add_argument("--prompt", metavar="TEXT", help="what the sample begins with")
    group.add_argument(
        "--temperature", metavar="N", type=real, default=0.7, help="above 1 bolder, below 1 safer (%(default)s)"
    )

    # Those still None afterwards were not given.
    names = [action.dest for action in kept]
    run = parser.parse_args(arguments, argparse.Namespace(**dict.fromkeys(names)))
    given = {name: value for name in names if (value := vars(run).pop(name)) is not None}
    if run.resume and given:
        parser.error(f"--resume goes on with the options of {run.resume}: leave out --{', --'.join(given)}")
    training = {action.dest: action.default for action in kept} | given
    training["text"] = training["text"] and os.path.abspath(training["text"])
    training["lr"] = training["lr"] or LEARNING_RATES[training["cell"]]
    run.model = Path(run.model or run.resume or "char_lm.npz")
    run.picture = Path(run.picture or run.model.with_suffix(".png"))
    if run.picture == run.model:
        parser.error(f"the picture would overwrite the model: give --picture another name than {run.model}")
    return run, training


@contextlib.contextmanager
def interruptible():
    """Inside, Ctrl-C sets the event that this gives; a second Ctrl-C raises KeyboardInterrupt as ever."""
    interrupted = threading.Event()

    def note(*_):
        interrupted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def main(arguments=None):
    """Run the command; the exit status."""
    run, options = parse_arguments(arguments)
    return exit_status("char_lm.py", report, run, options, smaller="--hidden, --batch or --window")


def report(run, options):
    """Train, compare, write, save, draw, and say so."""
    if run.threads:
        rnnfast.set_num_threads(run.threads)
    training = Training.resume(run.resume) if run.resume else Training(options, read_text(options["text"]))
    codes, characters, held_out = training.codes, training.characters, training.held_out
    prompt = run.prompt or ("\n" if "\n" in characters else characters[0])
    if strange := sorted(set(prompt) - set(characters)):
        raise CannotRun(f"--prompt has characters that the text has not: {' '.join(strange)}")

    layers = f"{training.name} of {' + '.join([str(training.options['hidden'])] * training.options['layers'])} units"
    parameters = sum(array.size for array in training.model.parameters.values())
    print(f"Text: {training.source}, {len(codes):,} characters, {len(characters)} different ones.")
    print(f"Model: embedding of {training.options['embedding']}, {layers}, readout: {parameters:,} parameters.")
    print(f"rnnfast {rnnfast.__version__} with {rnnfast.isas()[0]}, threads: {rnnfast.get_num_threads()}.", flush=True)
    with interruptible() as interrupted:
        training.run(run.minutes, interrupted, ProgressBar(sys.stderr), run.model)
    if training.step < training.steps:
        print(f"\nStopped by Ctrl-C in epoch {training.epoch:.2f}, and saved to {run.model}. To go on:")
        print(f"python {sys.argv[0]} --resume {run.model}")
        return 130
    if training.steps < training.planned:
        print(f"More epochs would have taken longer than {run.minutes:g} minutes: raise --minutes for a better model.")
    print(
        f"Read {training.epoch:.2f} times through all but the last {len(codes) - held_out:,} characters "
        f"in {training.seconds:.0f} seconds, {training.characters_read / training.seconds:,.0f} characters a second."
    )

    ngrams = ngram_bits_per_character(codes, held_out, len(characters))
    print("\nOn those last characters, from which none of the models has learnt:")
    print("            bits per character   chance given to the right one (geometric mean)")
    rows = [(f"{order}-gram", value) for order, value in enumerate(ngrams, start=1)]
    for name, value in [*rows, (training.name, training.evaluations[-1][1])]:
        print(f"  {name:8}{value:12.3f}{2**-value:20.0%}")

    print(f"\nWhat it writes (temperature {run.temperature:g}):\n")
    rng = np.random.default_rng(training.options["seed"])
    written = training.model.write(encode(prompt, characters), run.sample, run.temperature, rng)
    print("".join(characters[code] for code in written).strip("\n"))

    print(f"\nSaved the model to {run.model}")
    try:
        draw(training, ngrams, run.picture)
    except ImportError:
        print("Drew no learning curve, as matplotlib is missing: pip install matplotlib")
    else:
        print(f"Drew the learning curve to {run.picture}")
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal may lack characters that the text has
    sys.exit(main())
