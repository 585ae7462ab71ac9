"""Learn to turn one sequence into another: an encoder, a decoder, and attention between them, on two real tasks.

    pip install '.[examples]' && python examples/translation.py

learns in about three minutes how English words are pronounced, and which day a date phrase of one of eight
languages means. Both are compared, on words and days that were not learnt from, with what a person would try first. It
prints examples, and draws how the models learnt and what they looked at. Nothing is downloaded, as packages hold the
data:

- g2p, grapheme to phoneme: the CMU Pronouncing Dictionary in the wheel of pocketsphinx (BSD-2-Clause, Carnegie Mellon
  University; the licence is in the wheel).
- dates: phrases that babel (BSD-3-Clause) writes from the data of Unicode's CLDR (Unicode License V3; the licence is in
  babel's folder locale-data).

    python examples/translation.py --task g2p --epochs 10 --seconds 300

learns one of them for longer.
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
import program
from program import CannotRun, checked, exit_status, whole

import rnnfast
from rnnfast.training import Adam, clip_grad_norm, softmax_cross_entropy

LOCALES = ["en_US", "de", "fr", "es", "pl", "ru", "el", "ja"]
FORMATS = ["full", "long", "medium", "short"]
# Eighty years, so that a year in two digits is one of them alone.
FIRST_DAY, LAST_DAY = datetime.date(1980, 1, 1), datetime.date(2059, 12, 31)
MILESTONES = 12  # evaluations over a training
SHOWN = 10  # examples that are printed


# ---------------------------------------------------------------------------------------------------------- the tasks


class Task(NamedTuple):
    """Pairs to learn from and others to be tested with; sources and targets are sequences of symbols."""

    title: str
    learnt: list  # pairs of a source and a target
    held_out: list  # pairs of a source and all targets that are right
    separator: str  # between the symbols of a target where it is printed
    baselines: object  # from the task a dict: what a baseline is, and its answers to the sources held out
    shown: int  # the index of the held-out pair whose attention is drawn

    def write(self, target):
        """A target as it is printed."""
        return self.separator.join(target)


def read_pronunciations(path):
    """The words of letters alone in a dictionary of the CMU's form, each with all its pronunciations."""
    words = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        entry, *phonemes = line.split()
        word = re.sub(r"\(\d+\)$", "", entry)  # the second pronunciation of "a" is that of "a(2)"
        if re.fullmatch("[a-z]+", word):
            words.setdefault(word, []).append(tuple(phonemes))
    return words


def g2p_task(size, rng):
    """Words to phonemes; `size` of the words are held out."""
    package = importlib.util.find_spec("pocketsphinx")
    if package is None:
        raise CannotRun("the pronunciations come with pocketsphinx, which is missing: pip install pocketsphinx")
    words = read_pronunciations(Path(package.submodule_search_locations[0]) / "model/en-us/cmudict-en-us.dict")
    order = rng.permutation(list(words)).tolist()
    held_out = [(word, words[word]) for word in order[:size]]
    learnt = [(word, phonemes) for word in order[size:] for phonemes in words[word]]
    shown = max(range(size), key=lambda index: (8 <= len(order[index]) <= 11, len(set(order[index]))))
    return Task("Pronunciation of English words", learnt, held_out, " ", g2p_baselines, shown)


def dates_task(size, rng, learnt=24_000):
    """Phrases, each behind the name of its language, to ISO 8601; the days of `size` phrases are held out."""
    try:
        from babel.dates import format_date
    except ImportError:
        raise CannotRun("the date phrases are written by babel, which is missing: pip install babel") from None
    days = rng.permutation((LAST_DAY - FIRST_DAY).days + 1)
    spread = len(days) // 10  # a tenth of the days is in held-out phrases only
    pairs = []
    for count, choice in ((size, days[:spread]), (learnt, days[spread:])):
        drawn = rng.choice(choice, count), rng.choice(LOCALES, count), rng.choice(FORMATS, count)
        for day, locale, form in zip(*(values.tolist() for values in drawn), strict=True):
            date = FIRST_DAY + datetime.timedelta(day)
            pairs.append(((f"{locale} ", *format_date(date, form, locale)), tuple(date.isoformat())))
    held_out = [(source, [target]) for source, target in pairs[:size]]
    shown = max(range(size), key=lambda index: (held_out[index][0][0] == "el ", len(held_out[index][0])))
    return Task("Dates in eight languages", pairs[size:], held_out, "", dates_baselines, shown)


TASKS = {"g2p": g2p_task, "dates": dates_task}
EPOCHS = {"g2p": 2.5, "dates": 1.5}
SHARES = {"g2p": 0.8, "dates": 0.2}  # of the time, where both are learnt


# ---------------------------------------------------------------------------------------------------------- the codes


class Alphabet:
    """Symbols as integers from 1 on; 0 is the end of a sequence, and what stands before its start."""

    def __init__(self, sequences):
        self.symbols = [None, *sorted(set(itertools.chain.from_iterable(sequences)))]
        self.codes = {symbol: code for code, symbol in enumerate(self.symbols)}

    def encode(self, sequences):
        """Codes (T, N), with zeros beyond the lengths (N,), which come with them."""
        lengths = np.array([len(sequence) for sequence in sequences])
        codes = np.zeros((lengths.max(initial=1), len(sequences)), np.intp)
        for column, sequence in enumerate(sequences):
            codes[: len(sequence), column] = [self.codes[symbol] for symbol in sequence]
        return codes, lengths

    def decode(self, codes):
        """The symbols (T, N) of each column up to its first zero."""
        return [tuple(self.symbols[code] for code in itertools.takewhile(bool, column)) for column in codes.T.tolist()]


def edit_distance(a, b):
    """How many insertions, deletions and substitutions turn a into b.

    Source: R. Wagner and M. Fischer, "The string-to-string correction problem", 1974.
    """
    above = range(len(b) + 1)
    for count, symbol in enumerate(a, start=1):
        row = [count]
        for t, other in enumerate(b):
            row.append(min(above[t + 1] + 1, row[t] + 1, above[t] + (symbol != other)))
        above = row
    return above[-1]


# ---------------------------------------------------------------------------------------------------------- the model


def attend(queries, keys, lengths):
    """For each query the mean of the keys, weighted by how well they fit it.

        weights = softmax over s of <query_t, key_s>,    context_t = sum over s of weights_ts key_s

    Source: M.-T. Luong et al., "Effective approaches to attention-based neural machine translation", 2015, the score
    "general", whose matrix is applied to the queries before; after D. Bahdanau et al., "Neural machine translation by
    jointly learning to align and translate", 2015.

    Queries are (T, N, K), keys (S, N, K), of which the first `lengths` (N,) count; so the contexts are (T, N, K) and
    the weights (N, T, S).
    """
    q, k = queries.swapaxes(0, 1), keys.swapaxes(0, 1)
    scores = q @ k.swapaxes(1, 2)
    scores[np.broadcast_to((np.arange(len(keys)) >= lengths[:, None])[:, None], scores.shape)] = -np.inf
    scores -= scores.max(axis=2, keepdims=True)
    weights = np.exp(scores, out=scores)
    weights /= weights.sum(axis=2, keepdims=True)
    return (weights @ k).swapaxes(0, 1), weights


def attend_backward(queries, keys, weights, dcontexts):
    """The gradients of queries and keys, from that of the contexts."""
    q, k, dc = (array.swapaxes(0, 1) for array in (queries, keys, dcontexts))
    dweights = dc @ k.swapaxes(1, 2)
    dscores = weights * (dweights - (weights * dweights).sum(axis=2, keepdims=True))
    dq = dscores @ k
    dk = dscores.swapaxes(1, 2) @ q + weights.swapaxes(1, 2) @ dc
    return dq.swapaxes(0, 1), dk.swapaxes(0, 1)


class Translator:
    """A bidirectional encoder, a decoder that starts from its last states, and attention on top of the decoder.

    As what is attended to does not enter the decoder, the whole target is one call of it:

        keys = encoder(source),            start = tanh(bridge(last states of the encoder))
        hidden = decoder(target, start),   contexts = attend(query(hidden), keys)
        scores = readout(tanh(mixer([contexts, hidden])))
    """

    PARTS = ("source", "encoder", "bridge", "target", "decoder", "query", "mixer", "readout")

    def __init__(self, sources, targets, embedding, hidden, rng, dtype=np.float32):
        options = {"rng": rng, "dtype": dtype}
        self.source = rnnfast.Embedding(sources, embedding, **options)
        self.encoder = rnnfast.GRU(embedding, hidden, bidirectional=True, **options)
        self.bridge = rnnfast.Linear(2 * hidden, hidden, **options)
        self.target = rnnfast.Embedding(targets, embedding, **options)
        self.decoder = rnnfast.GRU(embedding, hidden, **options)
        self.query = rnnfast.Linear(hidden, 2 * hidden, bias=False, **options)
        self.mixer = rnnfast.Linear(3 * hidden, hidden, **options)
        self.readout = rnnfast.Linear(hidden, targets, **options)
        self.parameters = self._join({part: getattr(self, part).parameters for part in self.PARTS})

    def _join(self, arrays):
        """The named arrays of all parts as one dict."""
        return {f"{part}.{name}": array for part in self.PARTS for name, array in arrays[part].items()}

    def forward(self, source, lengths, target, counted):
        """Scores (M, symbols) of what follows each of the M counted ones of the target, and a tape for the gradients.

        The source is (S, N) of lengths (N,); target and counted, which is boolean, are (T, N).
        """
        tapes = {}

        def run(part, *arguments, **options):
            *results, tapes[part] = getattr(self, part).forward(*arguments, **options)
            return results[0] if len(results) == 1 else results

        keys, ends = run("encoder", run("source", source), lengths=lengths)
        start = np.tanh(run("bridge", np.concatenate([*ends], axis=1)))
        hidden, _ = run("decoder", run("target", target), start[None], lengths=counted.sum(axis=0))
        queries = run("query", hidden)
        contexts, weights = attend(queries, keys, lengths)
        mixed = np.tanh(run("mixer", np.concatenate([contexts[counted], hidden[counted]], axis=1)))
        return run("readout", mixed), (tapes, keys, start, queries, weights, mixed, counted)

    def backward(self, tape, dscores):
        """The gradients of the parameters, from that of the scores that came with the tape."""
        tapes, keys, start, queries, weights, mixed, counted = tape
        gradients = {}

        def back(part, *arguments):
            gradient = getattr(self, part).backward(tapes[part], *arguments)
            gradients[part] = gradient.parameters
            return gradient

        dmixed = back("readout", dscores).x * (1 - mixed**2)
        dcontexts, dhidden = np.zeros_like(queries), np.zeros_like(queries, shape=(*counted.shape, start.shape[1]))
        dcontexts[counted], dhidden[counted] = np.split(back("mixer", dmixed).x, [keys.shape[2]], axis=1)
        dqueries, dkeys = attend_backward(queries, keys, weights, dcontexts)
        decoder = back("decoder", dhidden + back("query", dqueries).x)
        back("target", decoder.x)
        dstart = decoder.state[0] * (1 - start**2)
        dends = np.stack(np.split(back("bridge", dstart).x, 2, axis=1))
        back("source", back("encoder", dkeys, dends).x)
        return self._join(gradients)

    def translate(self, source, lengths, longest):
        """The likeliest symbol at each step, until all targets have ended or are too long: codes (T, N), 0 at the end.

        With them come the weights of the attention, (N, T, S).
        """
        keys, ends = self.encoder(self.source(source), lengths=lengths)
        state = np.tanh(self.bridge(np.concatenate([*ends], axis=1)))[None]
        codes, weights = [np.zeros(len(lengths), np.intp)], []
        running = np.ones(len(lengths), bool)
        while running.any() and len(weights) < longest:
            hidden, state = self.decoder(self.target(codes[-1][None]), state)
            contexts, looked = attend(self.query(hidden), keys, lengths)
            scores = self.readout(np.tanh(self.mixer(np.concatenate([contexts, hidden], axis=2))))
            codes.append(scores[0].argmax(axis=1) * running)
            weights.append(looked)
            running &= codes[-1] != 0
        return np.array(codes[1:]), np.concatenate(weights, axis=1)


# ------------------------------------------------------------------------------------------------------- the training


class Training:
    """A model on its way through the pairs of a task."""

    def __init__(self, task, options, epochs, limit):
        self.task, self.options = task, options
        self.rng = np.random.default_rng(options.seed)
        answers = [target for _, targets in task.held_out for target in targets]
        self.sources = Alphabet(source for source, _ in task.learnt + task.held_out)
        self.targets = Alphabet([target for _, target in task.learnt] + answers)
        self.source, self.source_lengths = self.sources.encode([source for source, _ in task.learnt])
        self.target, self.target_lengths = self.targets.encode([target for _, target in task.learnt])
        self.target = np.pad(self.target, ((1, 1), (0, 0)))
        self.questions = self.sources.encode([source for source, _ in task.held_out])
        sizes = len(self.sources.symbols), len(self.targets.symbols)
        self.model = Translator(*sizes, options.embedding, options.hidden, self.rng)
        self.optimizer = Adam(self.model.parameters)
        self.steps_per_epoch = math.ceil(len(task.learnt) / options.batch)
        self.planned = self.steps = max(1, round(epochs * self.steps_per_epoch))
        self.seconds, self.limit = 0.0, limit
        self.losses = []  # of every step, in nats per symbol
        self.evaluations = []  # pairs of a step and the score on the pairs held out
        self.waiting = []  # batches that this epoch has not come to yet

    def shuffled(self):
        """All pairs in random batches; those in a batch are of similar lengths, so that few places are empty."""
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
        """It rises over the first 3% of the steps, then falls along a cosine to zero."""
        rise = min(1.0, (self.step + 1) / (0.03 * self.steps))
        return self.options.lr * rise * (1 + math.cos(math.pi * self.step / self.steps)) / 2

    def advance(self):
        """One step: learn from the next few pairs."""
        if not self.waiting:
            self.waiting = self.shuffled()
        pairs = self.waiting.pop()
        lengths, ends = self.source_lengths[pairs], self.target_lengths[pairs] + 1
        source, target = self.source[: lengths.max(), pairs], self.target[: ends.max() + 1, pairs]
        counted = np.arange(len(target) - 1)[:, None] < ends
        scores, tape = self.model.forward(source, lengths, target[:-1], counted)
        loss, dscores = softmax_cross_entropy(scores, target[1:][counted])
        if not math.isfinite(loss):
            raise CannotRun(f"the training diverged at step {self.step}: use a lower --lr than {self.options.lr}")
        gradients = self.model.backward(tape, dscores)
        clip_grad_norm(gradients, 1.0)
        self.optimizer.lr = self.learning_rate()
        self.optimizer.step(gradients)
        self.losses.append(loss)

    def answer(self):
        """What the model says to the sources held out, and where it looked."""
        codes, weights = self.model.translate(*self.questions, len(self.target) - 1)
        return self.targets.decode(codes), weights

    @np.errstate(over="ignore", invalid="ignore")  # a training that diverges is looked for
    def run(self, bar):
        """Train until all steps are done; there will be fewer where they would take longer than the time there is."""
        while self.step < self.steps:
            began = time.monotonic()
            self.advance()
            self.seconds += time.monotonic() - began
            if self.seconds > self.limit / 10:  # now the pace is known
                affordable = int(self.limit * self.step / self.seconds)
                self.steps = max(self.step, min(self.planned, affordable))
            milestone = len(self.evaluations) < MILESTONES * self.step // self.steps
            if milestone:
                self.evaluations.append((self.step, score(self.task, self.answer()[0])))
            bar.show(self, milestone)


class Score(NamedTuple):
    """How good answers are, both from 0 to 1."""

    right: float  # the share of those that are right in full
    errors: float  # insertions, deletions and substitutions that the answers lack to be right, by their symbols


def score(task, answers):
    """Compare answers with those that are right; where there are several, with the closest."""
    right = errors = symbols = 0
    for answer, (_, targets) in zip(answers, task.held_out, strict=True):
        distance, length = min((edit_distance(answer, target), len(target)) for target in targets)
        right += distance == 0
        errors += distance
        symbols += length
    return Score(right / len(answers), errors / symbols)


# ------------------------------------------------------------------------------------ what a person would try first


def g2p_baselines(task, widest=4):
    """For each letter what it stood for most often among those around it, as many as have been seen together.

    The learnt words are first aligned: each letter stands for no phoneme, one, or two.
    """
    letters = Alphabet(source for source, _ in task.learnt + task.held_out)
    phonemes = Alphabet(target for _, target in task.learnt)
    pairs = [pair for pair in task.learnt if len(pair[1]) <= 2 * len(pair[0])]
    spelling, lengths = letters.encode([word for word, _ in pairs])
    sounds, ends = phonemes.encode([sound for _, sound in pairs])
    chunks = align(spelling, lengths, sounds, ends, len(letters.symbols), len(phonemes.symbols))
    rules, kinds = [], len(phonemes.symbols) ** 2
    for width in range(widest + 1):
        contexts = windows(spelling, width, len(letters.symbols))
        together, counts = np.unique((contexts * kinds + chunks)[spelling > 0], return_counts=True)
        seen, chunk = np.divmod(together[counts.argsort(kind="stable")], kinds)
        rules.append(dict(zip(seen.tolist(), chunk.tolist(), strict=True)))  # the last, most frequent one stays
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
    """Each of the codes (T, N) with as many before and behind it, as one number."""
    padded = np.pad(codes, ((width, width), (0, 0)))
    return sum(padded[k : k + len(codes)] * size**k for k in range(2 * width + 1))


IMPOSSIBLE = -(10**9)  # far below all that `align` adds up


def align(spelling, lengths, sounds, ends, letters, phonemes, rounds=4):
    """What each letter (S, N) stands for, as the number first * phonemes + second, in which 0 is none.

    At first the phonemes (T, N) are spread evenly over the letters. Then, in each round, every word is aligned in the
    likeliest way under the frequencies with which letters stood for phonemes in the round before (Viterbi training).
    """
    padded = np.pad(sounds, ((0, 2), (0, 0)))
    # How many phonemes lie before each letter, and behind the last.
    cuts = np.minimum(np.arange(len(spelling) + 1)[:, None], lengths) * ends // lengths
    for _ in range(rounds):
        together = spelling * phonemes**2 + between(cuts, padded, phonemes)
        counts = np.bincount(together.ravel(), minlength=letters * phonemes**2).reshape(letters, -1) + 0.01
        # Integers, so that equal ways, as for a letter that is doubled, are equal in all words.
        chances = np.round(1000 * np.log(counts / counts.sum(axis=1, keepdims=True))).astype(np.int32)
        for length in np.unique(lengths):
            words = np.flatnonzero(lengths == length)
            at = ends[words]
            heard = sounds[: at.max(), words]
            best = np.full((len(heard) + 1, len(words)), IMPOSSIBLE, np.int32)
            best[0] = 0
            taken = []
            for letter in spelling[:length, words]:
                ways = np.full((3, *best.shape), IMPOSSIBLE, np.int32)
                ways[0] = best + chances[letter, 0]
                ways[1, 1:] = best[:-1] + chances[letter, heard * phonemes]
                ways[2, 2:] = best[:-2] + chances[letter, heard[:-1] * phonemes + heard[1:]]
                taken.append(ways.argmax(axis=0))
                best = ways.max(axis=0)
            for s in reversed(range(length)):
                at = at - taken[s][at, np.arange(len(words))]
                cuts[s, words] = at
    return between(cuts, padded, phonemes)


def between(cuts, padded, phonemes):
    """The phonemes between cuts, as one number: see `align`."""
    first = np.take_along_axis(padded, cuts[:-1], axis=0) * (cuts[1:] > cuts[:-1])
    second = np.take_along_axis(padded, cuts[:-1] + 1, axis=0) * (cuts[1:] > cuts[:-1] + 1)
    return first * phonemes + second


def dates_baselines(task):
    """The answers of babel's own parser, and of dateutil's where that is installed; an empty one where they fail."""
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
        warnings.simplefilter("ignore")  # of words that may be time zones
        return {name: [answer(parser, *source) for source, _ in task.held_out] for name, parser in parsers.items()}


# -------------------------------------------------------------------------------------------------- what is to be seen


class ProgressBar(program.ProgressBar):
    milestones = MILESTONES

    def describe(self, training, loss):
        right = f"  right {training.evaluations[-1][1].right:.1%}" if training.evaluations else ""
        return f"loss {loss:.3f}{right}"


def print_scores(scores):
    print("                         right in full   wrong symbols")
    for name, value in scores.items():
        print(f"  {name:20}{value.right:16.1%}{value.errors:16.1%}")


def print_examples(task, answers):
    rows = [
        ("".join(source), task.write(answer), "" if answer in targets else f"right: {task.write(targets[0])}")
        for (source, targets), answer in list(zip(task.held_out, answers, strict=True))[:SHOWN]
    ]
    columns = [max(map(width, column)) + 2 for column in zip(*rows, strict=True)]
    for row in rows:
        line = "".join(text + " " * (room - width(text)) for text, room in zip(row, columns, strict=True))
        print(f"  {line}".rstrip())


def width(text):
    """Columns of a terminal: Chinese characters take two."""
    return len(text) + sum(unicodedata.east_asian_width(character) in "WF" for character in text)


def draw(results, path):
    """For each task how the model learnt, and where it looked for each symbol of one answer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5 * len(results)), layout="constrained")
    rows = figure.subplots(len(results), 2, squeeze=False)
    for (training, scores, answers, weights), (curve, look) in zip(results, rows, strict=True):
        task = training.task
        steps, right = zip(*((step, 100 * value.right) for step, value in training.evaluations), strict=True)
        curve.plot(np.array(steps) * training.options.batch / 1000, right, "o-", markersize=4, label="the network")
        for name, value in list(scores.items())[:-1]:
            curve.axhline(100 * value.right, color="gray", linewidth=0.8, linestyle=":")
            curve.text(1, 100 * value.right, f" {name}", transform=curve.get_yaxis_transform(), va="center")
        curve.set(xlabel="thousands of pairs read", ylabel="held-out answers right in full (%)", title=task.title)
        curve.set_ylim(0, 102)
        curve.legend(loc="lower right")
        curve.spines[["top", "right"]].set_visible(False)

        source, answer = task.held_out[task.shown][0], [*answers[task.shown], "end"]
        looked = weights[task.shown, : len(answer), : len(source)]
        image = look.imshow(looked, aspect="auto", cmap="Blues", vmin=0, vmax=1)
        look.set_xticks(range(len(source)), ["␣" if symbol == " " else symbol for symbol in source])
        look.set_yticks(range(len(looked)), answer[: len(looked)])
        look.set(xlabel="what was read", ylabel="what was written", title="Where each symbol looked")
        figure.colorbar(image, ax=look, label="weight of the attention")
    try:
        figure.savefig(path, dpi=100)
    except (OSError, ValueError) as error:
        raise CannotRun(f"cannot draw {path}: {error}") from None


# --------------------------------------------------------------------------------------------------------- the command


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        description="Learn pronunciations and dates with an encoder, a decoder, and attention between them.",
        epilog="Exit status: 0 done, 2 cannot run, 130 ended by Ctrl-C.",
    )
    real = checked(float, lambda value: 0 < value < math.inf, "a number above 0")
    epochs = ", ".join(f"{name}: {number}" for name, number in EPOCHS.items())
    parser.add_argument("--task", choices=[*TASKS, "both"], default="both", help="what to learn (%(default)s)")
    parser.add_argument("--hidden", metavar="N", type=whole(1), default=128, help="units of each layer (%(default)s)")
    parser.add_argument(
        "--embedding", metavar="N", type=whole(1), default=48, help="size of a symbol's vector (%(default)s)"
    )
    parser.add_argument(
        "--batch", metavar="N", type=whole(1), default=64, help="pairs between two updates (%(default)s)"
    )
    parser.add_argument("--epochs", metavar="N", type=real, help=f"times to read the pairs ({epochs})")
    parser.add_argument("--lr", metavar="N", type=real, default=0.004, help="highest learning rate (%(default)s)")
    parser.add_argument("--seed", metavar="N", type=whole(0), default=0, help="of all random numbers (%(default)s)")
    parser.add_argument("--held-out", metavar="N", type=whole(1), default=1000, help="pairs to test with (%(default)s)")
    parser.add_argument(
        "--seconds", metavar="N", type=real, default=150, help="train no longer: take fewer epochs (%(default)s)"
    )
    parser.add_argument("--threads", metavar="N", type=whole(1), help="threads to compute with (default: all cores)")
    parser.add_argument(
        "--picture", metavar="FILE", default="translation.png", help="where to draw what was learnt (%(default)s)"
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the command; the exit status."""
    options = parse_arguments(arguments)
    return exit_status("translation.py", report, options, smaller="--hidden or --batch")


def report(options):
    """Train, compare, show, draw, and say so."""
    if options.threads:
        rnnfast.set_num_threads(options.threads)
    names = [*TASKS] if options.task == "both" else [options.task]
    # All data first: what is missing is said before a long training.
    tasks = {name: TASKS[name](options.held_out, np.random.default_rng(options.seed)) for name in names}
    print(f"rnnfast {rnnfast.__version__} with {rnnfast.isas()[0]}, threads: {rnnfast.get_num_threads()}.")
    whole = sum(SHARES[name] for name in names)
    limits = {name: options.seconds * SHARES[name] / whole for name in names}
    results = []
    for name, task in tasks.items():
        training = Training(task, options, options.epochs or EPOCHS[name], limits[name])
        parameters = sum(array.size for array in training.model.parameters.values())
        print(f"\n{task.title}: {len(task.learnt):,} pairs to learn from, {len(task.held_out):,} held out.")
        print(
            f"Model: GRU of {options.hidden} units, both ways, to GRU of {options.hidden}: {parameters:,} parameters."
        )
        sys.stdout.flush()
        training.run(ProgressBar(sys.stderr))
        if training.steps < training.planned:
            print(f"More epochs would have taken longer than {limits[name]:.0f} seconds: raise --seconds for them.")
        print(f"Read {training.epoch:.2f} times through the pairs in {training.seconds:.0f} seconds.")

        answers, weights = training.answer()
        scores = {kind: score(task, given) for kind, given in task.baselines(task).items()}
        scores["the network"] = score(task, answers)
        print("\nOn the pairs held out:")
        print_scores(scores)
        print("\nThe first of them, and what the network answers:")
        print_examples(task, answers)
        results.append((training, scores, answers, weights))
    try:
        draw(results, options.picture)
    except ImportError:
        print("\nDrew no picture, as matplotlib is missing: pip install matplotlib")
    else:
        print(f"\nDrew how the models learnt, and where they looked, to {options.picture}")
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal may lack characters that the languages have
    sys.exit(main())
