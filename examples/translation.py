"""Train a sequence-to-sequence model: an encoder and a decoder with attention, on two real tasks.

    pip install '.[examples]' && python examples/translation.py

learns the pronunciation of English words, and the dates that phrases in eight languages mean, in about three minutes.
Both models are compared with simple baselines on held-out words and dates. The program prints examples, and draws the
learning curves and the attention weights. The data come with packages, so nothing is downloaded:

- g2p, grapheme to phoneme: the CMU Pronouncing Dictionary in the wheel of pocketsphinx (BSD-2-Clause, Carnegie Mellon
  University; the licence is in the wheel).
- dates: phrases that babel (BSD-3-Clause) writes from the data of Unicode's CLDR (Unicode License V3; the licence is in
  babel's folder locale-data).

    python examples/translation.py --task g2p --epochs 10 --seconds 300

trains longer on one of them.
"""

import argparse
import datetime
import importlib.util
import itertools
import math
import re
import sys
import time
import unicodedata
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

import rnnfast
from rnnfast.commands.program import (
    CannotRun,
    Progress,
    count,
    option,
    positive,
    run_program,
    runtime,
    save_figure,
    save_picture,
    whole,
)
from rnnfast.training import Adam, clip_grad_norm, softmax_cross_entropy

LOCALES = ["en_US", "de", "fr", "es", "pl", "ru", "el", "ja"]
FORMATS = ["full", "long", "medium", "short"]
# Eighty years, in which a two-digit year is unambiguous.
FIRST_DAY, LAST_DAY = datetime.date(1980, 1, 1), datetime.date(2059, 12, 31)
MILESTONES = 12  # evaluations over a training
SHOWN = 10  # printed examples


# ---------------------------------------------------------------------------------------------------------- the tasks


class Task(NamedTuple):
    """Training pairs and held-out pairs; sources and targets are sequences of symbols."""

    title: str
    training: list  # pairs of a source and a target
    held_out: list  # pairs of a source and all correct targets
    separator: str  # between the symbols of a printed target
    baselines: object  # function of the task; returns the answers of each baseline by name
    shown: int  # index of the held-out pair whose attention is drawn

    def write(self, target):
        """Return a target as it is printed."""
        return self.separator.join(target)


def read_pronunciations(path):
    """Read the pronunciations of all words that consist of letters from a dictionary in CMU format."""
    words = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        entry, *phonemes = line.split()
        word = re.sub(r"\(\d+\)$", "", entry)  # "a(2)" is the second pronunciation of "a"
        if re.fullmatch("[a-z]+", word):
            words.setdefault(word, []).append(tuple(phonemes))
    return words


def g2p_task(size, rng):
    """Make the task of turning words into phonemes; `size` words are held out."""
    package = importlib.util.find_spec("pocketsphinx")
    if package is None:
        raise CannotRun("pocketsphinx, which contains the pronunciations, is not installed: pip install pocketsphinx")
    words = read_pronunciations(Path(package.submodule_search_locations[0]) / "model/en-us/cmudict-en-us.dict")
    order = rng.permutation(list(words)).tolist()
    held_out = [(word, words[word]) for word in order[:size]]
    training = [(word, phonemes) for word in order[size:] for phonemes in words[word]]
    shown = max(range(size), key=lambda index: (8 <= len(order[index]) <= 11, len(set(order[index]))))
    return Task("Pronunciation of English words", training, held_out, " ", g2p_baselines, shown)


def dates_task(size, rng, training=24_000):
    """Make the task of turning date phrases into ISO 8601; the days of `size` phrases are held out.

    The first symbol of a source is the name of its language.
    """
    try:
        from babel.dates import format_date
    except ImportError:
        raise CannotRun("babel, which writes the date phrases, is not installed: pip install babel") from None
    days = rng.permutation((LAST_DAY - FIRST_DAY).days + 1)
    spread = len(days) // 10  # a tenth of the days occur in held-out phrases only
    pairs = []
    for number, choice in ((size, days[:spread]), (training, days[spread:])):
        drawn = rng.choice(choice, number), rng.choice(LOCALES, number), rng.choice(FORMATS, number)
        for day, locale, form in zip(*(values.tolist() for values in drawn), strict=True):
            date = FIRST_DAY + datetime.timedelta(day)
            pairs.append(((f"{locale} ", *format_date(date, form, locale)), tuple(date.isoformat())))
    held_out = [(source, [target]) for source, target in pairs[:size]]
    shown = max(range(size), key=lambda index: (held_out[index][0][0] == "el ", len(held_out[index][0])))
    return Task("Dates in eight languages", pairs[size:], held_out, "", dates_baselines, shown)


TASKS = {"g2p": g2p_task, "dates": dates_task}
EPOCHS = {"g2p": 2.5, "dates": 1.5}
SHARES = {"g2p": 0.8, "dates": 0.2}  # of the time limit, if both are trained


# ---------------------------------------------------------------------------------------------------------- the codes


class Alphabet:
    """Symbols and their codes from 1 on; 0 marks the start and the end of a sequence."""

    def __init__(self, sequences):
        self.symbols = [None, *sorted(set(itertools.chain.from_iterable(sequences)))]
        self.codes = {symbol: code for code, symbol in enumerate(self.symbols)}

    def encode(self, sequences):
        """Return codes (T, N), padded with zeros, and lengths (N,)."""
        lengths = np.array([len(sequence) for sequence in sequences])
        codes = np.zeros((lengths.max(initial=1), len(sequences)), np.intp)
        for column, sequence in enumerate(sequences):
            codes[: len(sequence), column] = [self.codes[symbol] for symbol in sequence]
        return codes, lengths

    def decode(self, codes):
        """Return the symbols of each column of codes (T, N) up to its first zero."""
        return [tuple(self.symbols[code] for code in itertools.takewhile(bool, column)) for column in codes.T.tolist()]


def edit_distance(a, b):
    """Return the least number of insertions, deletions and substitutions that turn a into b.

    Source: R. Wagner and M. Fischer, "The string-to-string correction problem", 1974.
    """
    above = range(len(b) + 1)
    for s, symbol in enumerate(a, start=1):
        row = [s]
        for t, other in enumerate(b):
            row.append(min(above[t + 1] + 1, row[t] + 1, above[t] + (symbol != other)))
        above = row
    return above[-1]


# ---------------------------------------------------------------------------------------------------------- the model


class Translator(rnnfast.Model):
    """A bidirectional encoder, a decoder that starts from its final states, and attention on top of the decoder.

    The contexts are not fed back to the decoder, so that one call of it processes the whole target in training:

        keys = encoder(source),            start = tanh(bridge(last states of the encoder))
        hidden = decoder(target, start),   contexts = attention(query(hidden), keys)
        scores = readout(tanh(mixer([contexts, hidden])))

    The attention is that of M.-T. Luong et al., "Effective approaches to attention-based neural machine translation",
    2015, with the score "general"; after D. Bahdanau et al., "Neural machine translation by jointly learning to align
    and translate", 2015.
    """

    def __init__(self, sources, targets, embedding, hidden, rng, dtype=np.float32):
        options = {"rng": rng, "dtype": dtype}
        self.source = rnnfast.Embedding(sources, embedding, **options)
        self.encoder = rnnfast.GRU(embedding, hidden, bidirectional=True, **options)
        self.bridge = rnnfast.Linear(2 * hidden, hidden, **options)
        self.target = rnnfast.Embedding(targets, embedding, **options)
        self.decoder = rnnfast.GRU(embedding, hidden, **options)
        self.query = rnnfast.Linear(hidden, 2 * hidden, bias=False, **options)
        self.attention = rnnfast.Attention(scale=1.0)
        self.mixer = rnnfast.Linear(3 * hidden, hidden, **options)
        self.readout = rnnfast.Linear(hidden, targets, **options)
        self.tanh = rnnfast.Activation("tanh")

    def call(self, source, lengths, target, counted):
        """Return scores (M, symbols) for the symbol after each of the M valid target symbols.

        The source is (S, N), with lengths (N,); target and the mask `counted` are (T, N).
        """
        keys, start = self.encode(source, lengths)
        hidden, _ = self.decoder(self.target(target), start, lengths=counted.sum(axis=0))
        return self.score(hidden, keys, lengths, counted)

    def encode(self, source, lengths):
        """Return the keys (S, N, K), and the state from which the decoder starts."""
        keys, ends = self.encoder(self.source(source), lengths=lengths)
        return keys, self.tanh(self.bridge(np.concatenate([*ends], axis=1)))[None]

    def score(self, hidden, keys, lengths, counted):
        """Return the scores (M, symbols) of the steps of the decoder that are counted."""
        contexts = self.attention(self.query(hidden), keys, lengths=lengths)
        return self.readout(self.tanh(self.mixer(np.concatenate([contexts, hidden], axis=2)[counted])))

    def translate(self, source, lengths, longest):
        """Decode greedily until all targets have ended or have `longest` symbols.

        Returns codes (T, N), which are 0 after the end, and attention weights (N, T, S).
        """
        keys, start = self.encode(source, lengths)
        codes, state, running = np.zeros((1, len(lengths)), np.intp), start, np.ones(len(lengths), bool)
        while running.any() and len(codes) <= longest:
            hidden, state = self.decoder(self.target(codes[-1:]), state)
            codes = np.pad(codes, ((0, 1), (0, 0)))
            codes[-1, running] = self.score(hidden, keys, lengths, running[None]).argmax(axis=1)
            running &= codes[-1] != 0
        hidden, _ = self.decoder(self.target(codes[:-1]), start)
        return codes[1:], self.attention.weights(self.query(hidden), keys, lengths=lengths)


# ------------------------------------------------------------------------------------------------------- the training


class Training:
    """Training of a model on the pairs of a task."""

    def __init__(self, task, options, epochs, limit):
        self.task, self.options = task, options
        self.rng = np.random.default_rng(options.seed)
        answers = [target for _, targets in task.held_out for target in targets]
        self.sources = Alphabet(source for source, _ in task.training + task.held_out)
        self.targets = Alphabet([target for _, target in task.training] + answers)
        self.source, self.source_lengths = self.sources.encode([source for source, _ in task.training])
        self.target, self.target_lengths = self.targets.encode([target for _, target in task.training])
        self.target = np.pad(self.target, ((1, 1), (0, 0)))
        self.questions = self.sources.encode([source for source, _ in task.held_out])
        sizes = len(self.sources.symbols), len(self.targets.symbols)
        self.model = Translator(*sizes, options.embedding, options.hidden, self.rng)
        self.optimizer = Adam(self.model)
        self.steps_per_epoch = math.ceil(len(task.training) / options.batch)
        self.planned = self.steps = max(1, round(epochs * self.steps_per_epoch))
        self.seconds, self.limit = 0.0, limit
        self.losses = []  # of every step, in nats per symbol
        self.evaluations = []  # pairs of a step and the score on held-out pairs
        self.waiting = []  # remaining mini-batches of this epoch

    def shuffled(self):
        """Return all pairs in random mini-batches of similar lengths, which need little padding."""
        batch = self.options.batch
        order = self.rng.permutation(len(self.target_lengths))
        pool = np.arange(len(order)) // (20 * batch)
        order = order[np.lexsort([self.target_lengths[order], pool])]
        batches = np.split(order, range(batch, len(order), batch))
        return [batches[index] for index in self.rng.permutation(len(batches))]

    @property
    def step(self):
        return len(self.losses)

    @property
    def epoch(self):
        return self.step / self.steps_per_epoch

    def learning_rate(self):
        """Return the rate: linear warm-up over the first 3% of the steps, then cosine decay to zero."""
        warm_up = min(1.0, (self.step + 1) / (0.03 * self.steps))
        return self.options.lr * warm_up * (1 + math.cos(math.pi * self.step / self.steps)) / 2

    def advance(self):
        """Train on the next mini-batch."""
        if not self.waiting:
            self.waiting = self.shuffled()
        pairs = self.waiting.pop()
        lengths, ends = self.source_lengths[pairs], self.target_lengths[pairs] + 1
        source, target = self.source[: lengths.max(), pairs], self.target[: ends.max() + 1, pairs]
        counted = np.arange(len(target) - 1)[:, None] < ends
        scores, tape = self.model.forward(source, lengths, target[:-1], counted)
        loss, dscores = softmax_cross_entropy(scores, target[1:][counted])
        if not math.isfinite(loss):
            raise CannotRun(f"training diverged at step {self.step}: use an --lr below {self.options.lr}")
        gradients = self.model.backward(tape, dscores).parameters
        clip_grad_norm(gradients, 1.0)
        self.optimizer.lr = self.learning_rate()
        self.optimizer.step(gradients)
        self.losses.append(loss)

    def answer(self):
        """Return the model's answers to the held-out sources, and the attention weights."""
        codes, weights = self.model.translate(*self.questions, len(self.target) - 1)
        return self.targets.decode(codes), weights

    @np.errstate(over="ignore", invalid="ignore")  # divergence is detected in `advance`
    def run(self, bar):
        """Train until all steps are done; their number is reduced if they would exceed the time limit."""
        while self.step < self.steps:
            began = time.monotonic()
            self.advance()
            self.seconds += time.monotonic() - began
            if self.seconds > self.limit / 10:  # the pace is known now
                affordable = int(self.limit * self.step / self.seconds)
                self.steps = bar.total = max(self.step, min(self.planned, affordable))
            bar.step(self.describe)
            if len(self.evaluations) < MILESTONES * self.step // self.steps:
                self.evaluations.append((self.step, score(self.task, self.answer()[0])))
                bar.note(self.describe())

    def describe(self):
        """Describe the progress in one line."""
        recent = self.losses[-self.steps // MILESTONES :]
        correct = f"  correct {self.evaluations[-1][1].correct:.1%}" if self.evaluations else ""
        return f"epoch {self.epoch:.2f}  loss {sum(recent) / len(recent):.3f}{correct}"


class Score(NamedTuple):
    """Quality of answers, both from 0 to 1."""

    correct: float  # share of answers that are entirely correct
    errors: float  # edit distance to the correct answers, relative to their length


def score(task, answers):
    """Score the answers to the held-out sources; if there are several correct targets, against the closest."""
    correct = errors = symbols = 0
    for answer, (_, targets) in zip(answers, task.held_out, strict=True):
        distance, length = min((edit_distance(answer, target), len(target)) for target in targets)
        correct += distance == 0
        errors += distance
        symbols += length
    return Score(correct / len(answers), errors / symbols)


# -------------------------------------------------------------------------------------------------------- baselines


def g2p_baselines(task, widest=4):
    """Map each letter to the phonemes it most often stands for in the widest context seen in training.

    The training words are first aligned, with no, one or two phonemes per letter.
    """
    letters = Alphabet(source for source, _ in task.training + task.held_out)
    phonemes = Alphabet(target for _, target in task.training)
    pairs = [pair for pair in task.training if len(pair[1]) <= 2 * len(pair[0])]
    spelling, lengths = letters.encode([word for word, _ in pairs])
    sounds, ends = phonemes.encode([sound for _, sound in pairs])
    chunks = align(spelling, lengths, sounds, ends, len(letters.symbols), len(phonemes.symbols))
    rules, kinds = [], len(phonemes.symbols) ** 2
    for width in range(widest + 1):
        contexts = windows(spelling, width, len(letters.symbols))
        together, counts = np.unique((contexts * kinds + chunks)[spelling > 0], return_counts=True)
        seen, chunk = np.divmod(together[counts.argsort(kind="stable")], kinds)
        rules.append(dict(zip(seen.tolist(), chunk.tolist(), strict=True)))  # the last, most frequent one is kept
    rules.reverse()

    answers = []
    for word, _ in task.held_out:
        codes = letters.encode([word])[0]
        contexts = np.array([windows(codes, widest - k, len(letters.symbols))[:, 0] for k in range(widest + 1)])
        answer = []
        for seen in contexts.T.tolist():
            chunk = next(rule[context] for rule, context in zip(rules, seen, strict=True) if context in rule)
            answer += [phonemes.symbols[code] for code in divmod(chunk, len(phonemes.symbols)) if code]
        answers.append(tuple(answer))
    return {"letters in context": answers}


def windows(codes, width, size):
    """Number each of the codes (T, N) together with the `width` codes on either side."""
    padded = np.pad(codes, ((width, width), (0, 0)))
    return sum(padded[k : k + len(codes)] * size**k for k in range(2 * width + 1))


IMPOSSIBLE = -(10**9)  # far below any sum in `align`


def align(spelling, lengths, sounds, ends, letters, phonemes, rounds=4):
    """Return the phonemes of each letter (S, N), as the number first * phonemes + second, where 0 is none.

    The phonemes (T, N) are first spread evenly over the letters. Then each round finds the most likely alignment of
    every word under the letter-to-phoneme frequencies of the round before (Viterbi training).
    """
    padded = np.pad(sounds, ((0, 2), (0, 0)))
    # The number of phonemes before each letter, and before the end.
    cuts = np.minimum(np.arange(len(spelling) + 1)[:, None], lengths) * ends // lengths
    for _ in range(rounds):
        together = spelling * phonemes**2 + between(cuts, padded, phonemes)
        counts = np.bincount(together.ravel(), minlength=letters * phonemes**2).reshape(letters, -1) + 0.01
        # Integers, so that ties, as for doubled letters, are broken alike in all words.
        log_probabilities = np.round(1000 * np.log(counts / counts.sum(axis=1, keepdims=True))).astype(np.int32)
        for length in np.unique(lengths):
            words = np.flatnonzero(lengths == length)
            at = ends[words]
            heard = sounds[: at.max(), words]
            best = np.full((len(heard) + 1, len(words)), IMPOSSIBLE, np.int32)
            best[0] = 0
            taken = []
            for letter in spelling[:length, words]:
                ways = np.full((3, *best.shape), IMPOSSIBLE, np.int32)
                ways[0] = best + log_probabilities[letter, 0]
                ways[1, 1:] = best[:-1] + log_probabilities[letter, heard * phonemes]
                ways[2, 2:] = best[:-2] + log_probabilities[letter, heard[:-1] * phonemes + heard[1:]]
                taken.append(ways.argmax(axis=0))
                best = ways.max(axis=0)
            for s in reversed(range(length)):
                at = at - taken[s][at, np.arange(len(words))]
                cuts[s, words] = at
    return between(cuts, padded, phonemes)


def between(cuts, padded, phonemes):
    """Return the phonemes between cuts, numbered as in `align`."""
    first = np.take_along_axis(padded, cuts[:-1], axis=0) * (cuts[1:] > cuts[:-1])
    second = np.take_along_axis(padded, cuts[:-1] + 1, axis=0) * (cuts[1:] > cuts[:-1] + 1)
    return first * phonemes + second


def dates_baselines(task):
    """Return the answers of babel's parser and, if it is installed, dateutil's; empty where they fail."""
    from babel.dates import parse_date

    parsers = {"babel's parse_date": parse_date}
    try:
        from dateutil.parser import parse
    except ImportError:
        pass
    else:
        parsers["dateutil's parser"] = lambda text, locale: parse(text, dayfirst=locale != "en_US").date()

    def answer(parser, locale, *text):
        try:
            return tuple(parser("".join(text), locale.strip()).isoformat())
        except (ValueError, IndexError, OverflowError, AttributeError):
            return ()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dateutil warns of unknown time zones
        return {name: [answer(parser, *source) for source, _ in task.held_out] for name, parser in parsers.items()}


# ----------------------------------------------------------------------------------------------------------- output


def print_scores(scores):
    print("                               correct   symbol errors")
    for name, value in scores.items():
        print(f"  {name:20}{value.correct:16.1%}{value.errors:16.1%}")


def print_examples(task, answers):
    rows = [
        ("".join(source), task.write(answer), "" if answer in targets else f"correct: {task.write(targets[0])}")
        for (source, targets), answer in list(zip(task.held_out, answers, strict=True))[:SHOWN]
    ]
    columns = [max(map(width, column)) + 2 for column in zip(*rows, strict=True)]
    for row in rows:
        line = "".join(text + " " * (column - width(text)) for text, column in zip(row, columns, strict=True))
        print(f"  {line}".rstrip())


def width(text):
    """Return the width in a terminal, where Chinese characters take two columns."""
    return len(text) + sum(unicodedata.east_asian_width(character) in "WF" for character in text)


def draw(results, path):
    """Draw for each task the learning curve, and the attention weights of one answer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5 * len(results)), layout="constrained")
    rows = figure.subplots(len(results), 2, squeeze=False)
    for (training, scores, answers, weights), (curve, attention) in zip(results, rows, strict=True):
        task = training.task
        steps, correct = zip(*((step, 100 * value.correct) for step, value in training.evaluations), strict=True)
        curve.plot(np.array(steps) * training.options.batch / 1000, correct, "o-", markersize=4, label="network")
        for name, value in list(scores.items())[:-1]:
            curve.axhline(100 * value.correct, color="gray", linewidth=0.8, linestyle=":")
            curve.text(1, 100 * value.correct, f" {name}", transform=curve.get_yaxis_transform(), va="center")
        curve.set(xlabel="training pairs (thousands)", ylabel="correct held-out answers (%)", title=task.title)
        curve.set_ylim(0, 102)
        curve.legend(loc="lower right")
        curve.spines[["top", "right"]].set_visible(False)

        source, answer = task.held_out[task.shown][0], [*answers[task.shown], "end"]
        drawn = weights[task.shown, : len(answer), : len(source)]
        image = attention.imshow(drawn, aspect="auto", cmap="Blues", vmin=0, vmax=1)
        attention.set_xticks(range(len(source)), ["␣" if symbol == " " else symbol for symbol in source])
        attention.set_yticks(range(len(drawn)), answer[: len(drawn)])
        attention.set(xlabel="source", ylabel="answer", title="Attention for each symbol of the answer")
        figure.colorbar(image, ax=attention, label="attention weight")
    save_figure(figure, path, dpi=100)


# --------------------------------------------------------------------------------------------------------- the command


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        description="Learn pronunciations and dates with an encoder, a decoder, and attention between them.",
        epilog="Exit status: 0 success, 2 error, 130 stopped by Ctrl-C.",
    )
    epochs = ", ".join(f"{name}: {number}" for name, number in EPOCHS.items())
    parser.add_argument("--task", choices=[*TASKS, "both"], default="both", help="task (default: %(default)s)")
    option(parser, "--hidden", count, 128, "units per layer")
    option(parser, "--embedding", count, 48, "size of the embeddings")
    option(parser, "--batch", count, 64, "pairs per update")
    option(parser, "--epochs", positive, None, f"epochs (default: {epochs})")
    option(parser, "--lr", positive, 0.004, "peak learning rate")
    option(parser, "--seed", whole(0), 0, "random seed")
    option(parser, "--held-out", count, 1000, "held-out pairs")
    option(parser, "--seconds", positive, 150, "time limit of the training, which reduces the epochs")
    option(parser, "--threads", count, None, "number of threads (default: all cores)")
    parser.add_argument("--picture", metavar="FILE", default="translation.png", help="picture (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the program and return the exit status."""
    options = parse_arguments(arguments)
    return run_program("translation.py", report, options, smaller="values of --hidden or --batch")


def report(options):
    """Train the models, and report how good they are."""
    if options.threads:
        rnnfast.set_num_threads(options.threads)
    names = [*TASKS] if options.task == "both" else [options.task]
    # All data first, so that a missing package is reported before a long training.
    tasks = {name: TASKS[name](options.held_out, np.random.default_rng(options.seed)) for name in names}
    print(f"{runtime()}.")
    shares = sum(SHARES[name] for name in names)
    limits = {name: options.seconds * SHARES[name] / shares for name in names}
    results = []
    for name, task in tasks.items():
        training = Training(task, options, options.epochs or EPOCHS[name], limits[name])
        parameters = sum(array.size for array in training.model.parameters.values())
        print(f"\n{task.title}: {len(task.training):,} training pairs, {len(task.held_out):,} held out.")
        print(
            f"Model: bidirectional GRU encoder and GRU decoder, {options.hidden} units, {parameters:,} parameters.",
            flush=True,
        )
        with Progress(training.steps) as bar:
            training.run(bar)
        if training.steps < training.planned:
            print(f"Training was cut short to take {limits[name]:.0f} seconds; a higher --seconds allows more epochs.")
        print(f"Trained for {training.epoch:.2f} epochs in {training.seconds:.0f} seconds.")

        answers, weights = training.answer()
        scores = {kind: score(task, given) for kind, given in task.baselines(task).items()}
        scores["network"] = score(task, answers)
        print("\nOn the held-out pairs:")
        print_scores(scores)
        print("\nThe first of them, with the answers of the network:")
        print_examples(task, answers)
        results.append((training, scores, answers, weights))
    print()
    save_picture(options.picture, draw, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
