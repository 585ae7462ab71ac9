"""Recognise nine speakers by their vowels: from a whole utterance, and frame by frame while it is spoken.

    pip install '.[examples]' && python examples/speech.py

Nine men say the vowels /ae/. A frame of 25.6 ms, one every 6.4 ms, has 12 features (LPC cepstrum), and an utterance has
7 to 29 frames. A bidirectional GRU reads whole utterances of different lengths, and is compared with the nearest
neighbour under dynamic time warping. Then a unidirectional GRU reads each utterance frame by frame, through
layer.stream(), and names the likely speaker after each frame. The program prints the results, and draws speech.png.

The settings are chosen on the last 10 of the 30 training utterances of each speaker, by networks trained on the first
20. The test utterances, recorded on other occasions, are used only after that, with networks of several seeds.

Data: "Japanese Vowels" of the UCI repository (doi.org/10.24432/C5NS47, licence CC BY 4.0), from M. Kudo, J. Toyama
and M. Shimbo, Multidimensional curve classification using passing-through regions, Pattern Recognition Letters 20,
1999. The package sktime (BSD-3-Clause) contains a copy, so nothing is downloaded.
"""

import argparse
import itertools
import sys
import time

import numpy as np

import rnnfast
from rnnfast.commands.program import CannotRun, Progress, option, run_program, runtime, save_figure, save_picture, whole

SPEAKERS = 9
UTTERANCES, KEPT = 30, 20  # per speaker in the training set; of these, used for training while settings are chosen
HIDDEN, LAYERS = (32, 64), (1, 2)  # settings to choose from
FIXED = {"cell": "gru", "dropout": 0.5, "learning_rate": 0.005, "batch_size": 32}


# ------------------------------------------------------------------------------------------------------------- data


def load(split):
    """Return the utterances of "train" or "test", each (frames, 12), and the speakers, from 0 on."""
    try:
        from sktime.datasets import load_japanese_vowels
    except ImportError:
        raise CannotRun("sktime, which contains the data, is not installed: pip install sktime") from None
    frames, speakers = load_japanese_vowels(split=split, return_type="df-list")
    return [frame.to_numpy(np.float32) for frame in frames], np.array(speakers).astype(int) - 1


def split_training(speakers):
    """Return the mask of the first utterances of each speaker, which train the networks that choose the settings."""
    number = np.empty(len(speakers), int)
    for speaker in range(SPEAKERS):
        own = speakers == speaker
        number[own] = np.arange(own.sum())
    return number < KEPT


# ---------------------------------------------------------------------------------------------------------- methods


def nearest_neighbours(known, utterances):
    """Return for each utterance the index of the nearest known one under dynamic time warping."""
    try:
        from dtaidistance import dtw_ndim
    except ImportError:
        raise CannotRun(
            "dtaidistance, which computes dynamic time warping, is not installed: pip install dtaidistance"
        ) from None
    both = [utterance.astype(float) for utterance in (*utterances, *known)]
    block = (0, len(utterances)), (len(utterances), len(both))
    distances = dtw_ndim.distance_matrix_fast(both, block=block, parallel=False)
    return distances[: len(utterances), len(utterances) :].argmin(axis=1)


def estimators():
    try:
        from rnnfast import sklearn
    except ImportError:
        raise CannotRun("scikit-learn is not installed: pip install scikit-learn") from None
    return sklearn


def classifier(settings, epochs, seed):
    return estimators().SequenceClassifier(
        bidirectional=True, pooling="mean", max_epochs=epochs, random_state=seed, **FIXED, **settings
    )


def choose(utterances, speakers, epochs, seeds, progress):
    """Return the settings with the highest mean accuracy on held-out training utterances, and all accuracies."""
    kept = split_training(speakers)
    training, held_out = ([utterances[at] for at in np.flatnonzero(part)] for part in (kept, ~kept))
    scores = {}
    for hidden, layers in itertools.product(HIDDEN, LAYERS):
        settings = {"hidden_size": hidden, "num_layers": layers}
        scores[hidden, layers] = []
        for seed in range(seeds):
            progress("choosing settings")
            model = classifier(settings, epochs, seed).fit(training, speakers[kept])
            scores[hidden, layers].append(model.score(held_out, speakers[~kept]))
    means = {key: np.mean(values) for key, values in scores.items()}
    hidden, layers = max(means, key=means.get)
    return {"hidden_size": hidden, "num_layers": layers}, means


def listener(utterances, speakers, epochs, seed):
    """Train a unidirectional network to name the speaker after every frame."""
    tagger = estimators().SequenceTagger(
        hidden_size=32, bidirectional=False, max_epochs=epochs, random_state=seed, **FIXED
    )
    return tagger.fit(utterances, [np.full(len(x), speaker) for x, speaker in zip(utterances, speakers, strict=True)])


def listen(tagger, utterance):
    """Step through an utterance and return the probabilities of the speakers after each frame, (frames, speakers)."""
    stream = rnnfast.Sequential(tagger.layer_, tagger.readout_).stream()
    frames = ((utterance - tagger.mean_) / tagger.scale_)[:, np.newaxis]
    scores = np.concatenate([stream.step(frame) for frame in frames])  # as they would arrive from a microphone
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def accuracy_by_frames(heard, speakers):
    """Return the accuracy after 1, 2, ... frames; an utterance that has ended keeps its last answer."""
    longest = max(map(len, heard))
    answers = np.array([row.argmax(axis=1)[np.minimum(np.arange(longest), len(row) - 1)] for row in heard])
    return (answers == speakers[:, np.newaxis]).mean(axis=0)


def telling(heard, speakers):
    """Return the first utterance whose answer is wrong after the first frame and correct after the last."""
    for number, (row, speaker) in enumerate(zip(heard, speakers, strict=True)):
        if row[0].argmax() != speaker == row[-1].argmax():
            return number
    return 0


# ----------------------------------------------------------------------------------------------------------- output


def draw(curves, example, confusion, lines, path):
    """Draw the accuracy by frames, one utterance frame by frame, and the confusion matrix."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.1, 1.1, 1])
    frames = np.arange(1, curves.shape[1] + 1)
    left.plot(frames, curves.mean(axis=0), color="C0", label=f"GRU on a stream, mean of {len(curves)} seeds")
    left.fill_between(frames, curves.min(axis=0), curves.max(axis=0), color="C0", alpha=0.2, label="range of the seeds")
    for (name, value), style in zip(lines.items(), ("--", ":"), strict=True):
        left.axhline(value, color="black", linewidth=1, linestyle=style, label=f"whole utterance: {name}")
    left.set(xlabel="frames (one every 6.4 ms)", ylabel="test accuracy", title="Accuracy by frames")
    left.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    left.legend(loc="lower right")

    probabilities, speaker, number = example
    frames = np.arange(1, len(probabilities) + 1)
    middle.plot(frames, probabilities[:, speaker], color="C0", linewidth=3, label=f"speaker {speaker + 1} (correct)")
    others = [other for other in range(SPEAKERS) if other != speaker]
    likely = [other for other in others if probabilities[:, other].max() >= 0.1]
    for color, other in enumerate(likely, start=1):
        middle.plot(frames, probabilities[:, other], color=f"C{color}", label=f"speaker {other + 1}")
    for at, other in enumerate(sorted({*others} - {*likely})):
        middle.plot(frames, probabilities[:, other], color="gray", linewidth=0.8, label="" if at else "others")
    middle.set(xlabel="frames (one every 6.4 ms)", ylabel="probability", title=f"Test utterance {number + 1}")
    middle.set_ylim(-0.02, 1.3)  # space for the legend
    middle.set_yticks(np.linspace(0, 1, 6))
    middle.legend(loc="upper center", ncols=2)

    names = np.arange(1, SPEAKERS + 1)
    right.imshow(confusion, cmap="Blues", norm="log", extent=(0.5, SPEAKERS + 0.5, SPEAKERS + 0.5, 0.5))
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            color = "white" if count > confusion.max() / 4 else "black"
            right.text(column + 1, row + 1, str(count), ha="center", va="center", color=color, fontsize="small")
    right.set(
        xlabel="predicted speaker", ylabel="speaker", title="Bidirectional GRU, seed 0", xticks=names, yticks=names
    )
    for axes in (left, middle):
        axes.grid(color="#e4e4e4")
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, dpi=110)


# ---------------------------------------------------------------------------------------------------------- program


def main(arguments=None):
    """Run the program and return the exit status."""
    parser = argparse.ArgumentParser(
        description="Recognise nine speakers by their vowels, from whole utterances and frame by frame.",
        epilog="Exit status: 0 success, 2 error, 130 stopped by Ctrl-C.",
    )
    option(parser, "--seeds", whole(1, 100), 5, "networks to test")
    option(parser, "--epochs", whole(1, 10_000), 40, "epochs")
    option(parser, "--threads", whole(1, 1024), None, "number of threads (default: all cores)")
    parser.add_argument("--picture", metavar="FILE", default="speech.png", help="picture (default: %(default)s)")
    return run_program("speech.py", report, parser.parse_args(arguments))


def report(run):
    """Choose the settings, train and test the networks, and report the results."""
    began = time.monotonic()
    if run.threads:
        rnnfast.set_num_threads(run.threads)
    estimators()  # reports a missing package at once
    (utterances, speakers), (unknown, truth) = load("train"), load("test")
    lengths = [len(x) for x in utterances + unknown]
    print(
        f"{len(utterances)} training utterances and {len(unknown)} test utterances of "
        f"{min(lengths)} to {max(lengths)} frames."
    )
    print(f"{runtime()}.", flush=True)

    choosing = min(run.seeds, 3)
    with Progress(1 + choosing * len(HIDDEN) * len(LAYERS) + 2 * run.seeds) as progress:
        progress.begin("dynamic time warping")
        warped = (speakers[nearest_neighbours(utterances, unknown)] == truth).mean()
        settings, scores = choose(utterances, speakers, run.epochs, choosing, progress.begin)
        accuracies, confusion = [], np.zeros((SPEAKERS, SPEAKERS), int)
        for seed in range(run.seeds):
            progress.begin("training on whole utterances")
            answers = classifier(settings, run.epochs, seed).fit(utterances, speakers).predict(unknown)
            accuracies.append((answers == truth).mean())
            if seed == 0:
                np.add.at(confusion, (truth, answers), 1)
        curves = []
        for seed in range(run.seeds):
            progress.begin("training on every frame")
            tagger = listener(utterances, speakers, run.epochs, seed)
            heard = [listen(tagger, utterance) for utterance in unknown]
            curves.append(accuracy_by_frames(heard, truth))
            if seed == 0:
                shown = telling(heard, truth)
                example = heard[shown], truth[shown], shown
    curves = np.array(curves)

    print(f"\nAccuracy of the settings on held-out training utterances, seeds: {choosing}:")
    for (hidden, layers), score in scores.items():
        chosen = "  chosen" if settings == {"hidden_size": hidden, "num_layers": layers} else ""
        print(f"    {f'{hidden} units, layers: {layers}':37}{score:6.1%}{chosen}")
    print(f"\nAccuracy on the {len(unknown)} test utterances:")
    print(f"  {'nearest neighbour, time warping':39}{warped:6.1%}")
    print(f"  {f'bidirectional GRU, seeds: {run.seeds}':39}{spread(accuracies)}")
    print(f"  GRU on a stream, seeds: {run.seeds}, after")
    for frames in sorted({*range(1, curves.shape[1], 4), curves.shape[1]}):
        heard_for = f"{frames} frame{'s'[: frames > 1]} ({25.6 + 6.4 * (frames - 1):.0f} ms)"
        print(f"    {heard_for:37}{spread(curves[:, frames - 1])}")
    print(f"\nTest utterance {shown + 1}, of speaker {example[1] + 1}, frame by frame:")
    for at, row in enumerate(example[0]):
        best = row.argmax()
        print(f"  frame {at + 1:2}: speaker {best + 1}, {row[best]:4.0%}  {'#' * round(30 * row[best])}")
    lines = {"bidirectional GRU": np.mean(accuracies), "nearest neighbour": warped}
    print()
    save_picture(run.picture, draw, curves, example, confusion, lines)
    print(f"Time: {time.monotonic() - began:.0f} seconds.")
    return 0


def spread(values):
    """Describe the mean and the range."""
    return f"{np.mean(values):6.1%} ({min(values):.1%} to {max(values):.1%})"


if __name__ == "__main__":
    sys.exit(main())
