"""Tell nine speakers by their vowels: from a whole utterance, and frame by frame while it is spoken.

    pip install 'rnnfast[examples]'
    python examples/speech.py

Nine men say the vowels /ae/; each frame of 25.6 ms, one every 6.4 ms, is 12 numbers (LPC cepstrum), and an utterance
has 7 to 29 of them. A GRU of both directions reads utterances of unequal lengths as they are, and is compared with
the nearest neighbour under dynamic time warping. Then a GRU that runs forwards only hears each utterance frame by
frame, through layer.stream(), and tells after each frame who it may be. The results are printed, and drawn to
speech.png.

The settings are chosen on the last 10 of the 30 training utterances of each speaker, by what is learnt from the 20
before them. The test utterances, recorded on other occasions, are looked at only afterwards, by networks of several
seeds.

Data: "Japanese Vowels" of the UCI repository (doi.org/10.24432/C5NS47, licence CC BY 4.0), from M. Kudo, J. Toyama
and M. Shimbo, Multidimensional curve classification using passing-through regions, Pattern Recognition Letters 20,
1999. A copy lies in the package sktime (BSD-3-Clause), so nothing is downloaded.
"""

import argparse
import itertools
import sys
import time

import numpy as np
from program import CannotRun, Progress, exit_status, whole

import rnnfast

SPEAKERS = 9
UTTERANCES, KEPT = 30, 20  # of each speaker in the training part; those that are learnt from while settings are chosen
HIDDEN, LAYERS = (32, 64), (1, 2)  # the settings to choose from
FIXED = {"cell": "gru", "dropout": 0.5, "learning_rate": 0.005, "batch_size": 32}


# ---------------------------------------------------------------------------------------------------------- the data


def load(split):
    """The utterances of "train" or "test", each (frames, 12), and who speaks in each, from 0 on."""
    try:
        from sktime.datasets import load_japanese_vowels
    except ImportError:
        raise CannotRun("the data come with sktime, which is missing: pip install sktime") from None
    frames, speakers = load_japanese_vowels(split=split, return_type="df-list")
    return [frame.to_numpy(np.float32) for frame in frames], np.array(speakers).astype(int) - 1


def split_training(speakers):
    """Which training utterances are kept to learn from while settings are chosen: the first of each speaker."""
    number = np.empty(len(speakers), int)
    for speaker in range(SPEAKERS):
        own = speakers == speaker
        number[own] = np.arange(own.sum())
    return number < KEPT


# ------------------------------------------------------------------------------------------------------- the methods


def nearest_neighbours(known, utterances):
    """For each utterance the place of that known one which is nearest under dynamic time warping."""
    try:
        from dtaidistance import dtw_ndim
    except ImportError:
        raise CannotRun(
            "dynamic time warping comes from dtaidistance, which is missing: pip install dtaidistance"
        ) from None
    both = [utterance.astype(float) for utterance in (*utterances, *known)]
    block = (0, len(utterances)), (len(utterances), len(both))
    distances = dtw_ndim.distance_matrix_fast(both, block=block, parallel=False)
    return distances[: len(utterances), len(utterances) :].argmin(axis=1)


def estimators():
    try:
        from rnnfast import sklearn
    except ImportError:
        raise CannotRun("scikit-learn is missing: pip install scikit-learn") from None
    return sklearn


def classifier(settings, epochs, seed):
    return estimators().SequenceClassifier(
        bidirectional=True, pooling="mean", max_epochs=epochs, random_state=seed, **FIXED, **settings
    )


def choose(utterances, speakers, epochs, seeds, progress):
    """The settings with the highest accuracy on utterances held out of the training part, mean over the seeds."""
    kept = split_training(speakers)
    learnt, held_out = ([utterances[at] for at in np.flatnonzero(part)] for part in (kept, ~kept))
    scores = {}
    for hidden, layers in itertools.product(HIDDEN, LAYERS):
        settings = {"hidden_size": hidden, "num_layers": layers}
        scores[hidden, layers] = []
        for seed in range(seeds):
            progress("choosing settings")
            model = classifier(settings, epochs, seed).fit(learnt, speakers[kept])
            scores[hidden, layers].append(model.score(held_out, speakers[~kept]))
    means = {key: np.mean(values) for key, values in scores.items()}
    hidden, layers = max(means, key=means.get)
    return {"hidden_size": hidden, "num_layers": layers}, means


def listener(utterances, speakers, epochs, seed):
    """A network that runs forwards only, and has learnt to tell the speaker after every frame."""
    tagger = estimators().SequenceTagger(
        hidden_size=32, bidirectional=False, max_epochs=epochs, random_state=seed, **FIXED
    )
    return tagger.fit(utterances, [np.full(len(x), speaker) for x, speaker in zip(utterances, speakers, strict=True)])


def listen(tagger, utterance):
    """Step through an utterance; after each frame the probability of each speaker, (frames, speakers)."""
    stream = tagger.layer_.stream()
    probabilities = []
    for frame in utterance:  # as they would come from a microphone
        h = stream.step(((frame - tagger.mean_) / tagger.scale_).astype(np.float32))
        scores = tagger.readout_(h)
        chances = np.exp(scores - scores.max())
        probabilities.append(chances / chances.sum())
    return np.array(probabilities)


def accuracy_by_frames(heard, speakers):
    """The share that is right after 1, 2, ... frames; an utterance that is over keeps its last answer."""
    longest = max(map(len, heard))
    answers = np.array([row.argmax(axis=1)[np.minimum(np.arange(longest), len(row) - 1)] for row in heard])
    return (answers == speakers[:, np.newaxis]).mean(axis=0)


def telling(heard, speakers):
    """An utterance to show: the first on which the answer, wrong at the first frame, is right at the last."""
    for number, (row, speaker) in enumerate(zip(heard, speakers, strict=True)):
        if row[0].argmax() != speaker == row[-1].argmax():
            return number
    return 0


# -------------------------------------------------------------------------------------------------- what is to be seen


def draw(curves, example, confusion, lines, path):
    """Accuracy against frames, one utterance as it is heard, and who is taken for whom."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.1, 1.1, 1])
    frames = np.arange(1, curves.shape[1] + 1)
    left.plot(frames, curves.mean(axis=0), color="C0", label=f"GRU as a stream, mean over {len(curves)} seeds")
    left.fill_between(frames, curves.min(axis=0), curves.max(axis=0), color="C0", alpha=0.2, label="their range")
    for (name, value), style in zip(lines.items(), ("--", ":"), strict=True):
        left.axhline(value, color="black", linewidth=1, linestyle=style, label=f"whole utterance: {name}")
    left.set(xlabel="frames heard, one every 6.4 ms", ylabel="accuracy on the test part", title="How soon it knows")
    left.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    left.legend(loc="lower right")

    probabilities, speaker, number = example
    frames = np.arange(1, len(probabilities) + 1)
    middle.plot(frames, probabilities[:, speaker], color="C0", linewidth=3, label=f"speaker {speaker + 1}, who speaks")
    others = [other for other in range(SPEAKERS) if other != speaker]
    likely = [other for other in others if probabilities[:, other].max() >= 0.1]
    for color, other in enumerate(likely, start=1):
        middle.plot(frames, probabilities[:, other], color=f"C{color}", label=f"speaker {other + 1}")
    for at, other in enumerate(sorted({*others} - {*likely})):
        middle.plot(frames, probabilities[:, other], color="gray", linewidth=0.8, label="" if at else "the others")
    middle.set(
        xlabel="frames heard, one every 6.4 ms", ylabel="probability", title=f"Test utterance {number + 1}, as heard"
    )
    middle.set_ylim(-0.02, 1.3)  # room for the legend
    middle.set_yticks(np.linspace(0, 1, 6))
    middle.legend(loc="upper center", ncols=2)

    names = np.arange(1, SPEAKERS + 1)
    right.imshow(confusion, cmap="Blues", norm="log", extent=(0.5, SPEAKERS + 0.5, SPEAKERS + 0.5, 0.5))
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            color = "white" if count > confusion.max() / 4 else "black"
            right.text(column + 1, row + 1, str(count), ha="center", va="center", color=color, fontsize="small")
    right.set(
        xlabel="taken for speaker", ylabel="speaker", title="GRU of both directions, seed 0", xticks=names, yticks=names
    )
    for axes in (left, middle):
        axes.grid(color="#e4e4e4")
        axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise CannotRun(f"cannot draw {path}: {error}") from None


# --------------------------------------------------------------------------------------------------------- the command


def main(arguments=None):
    """Run the command; the exit status."""
    parser = argparse.ArgumentParser(
        description="Tell nine speakers by their vowels, from whole utterances and frame by frame.",
        epilog="Exit status: 0 done, 2 cannot run, 130 ended by Ctrl-C.",
    )
    parser.add_argument("--seeds", metavar="N", type=whole(1, 100), default=5, help="networks to test (%(default)s)")
    parser.add_argument(
        "--epochs",
        metavar="N",
        type=whole(1, 10_000),
        default=40,
        help="times to read the training part (%(default)s)",
    )
    parser.add_argument(
        "--threads", metavar="N", type=whole(1, 1024), help="threads to compute with (default: all cores)"
    )
    parser.add_argument("--picture", metavar="FILE", default="speech.png", help="where to draw (%(default)s)")
    return exit_status("speech.py", report, parser.parse_args(arguments))


def report(run):
    """Choose, learn, compare, listen, draw, and say so."""
    began = time.monotonic()
    if run.threads:
        rnnfast.set_num_threads(run.threads)
    estimators()  # what is missing is told at once
    (utterances, speakers), (unknown, truth) = load("train"), load("test")
    lengths = [len(x) for x in utterances + unknown]
    print(
        f"{len(utterances)} utterances to learn from and {len(unknown)} to test, "
        f"of {min(lengths)} to {max(lengths)} frames."
    )
    print(f"rnnfast {rnnfast.__version__} with {rnnfast.isas()[0]}, threads: {rnnfast.get_num_threads()}.", flush=True)

    choosing = min(run.seeds, 3)
    progress = Progress(sys.stderr, 1 + choosing * len(HIDDEN) * len(LAYERS) + 2 * run.seeds)
    progress("dynamic time warping")
    warped = (speakers[nearest_neighbours(utterances, unknown)] == truth).mean()
    settings, scores = choose(utterances, speakers, run.epochs, choosing, progress)
    accuracies, confusion = [], np.zeros((SPEAKERS, SPEAKERS), int)
    for seed in range(run.seeds):
        progress("learning from whole utterances")
        answers = classifier(settings, run.epochs, seed).fit(utterances, speakers).predict(unknown)
        accuracies.append((answers == truth).mean())
        if seed == 0:
            np.add.at(confusion, (truth, answers), 1)
    curves = []
    for seed in range(run.seeds):
        progress("learning to tell after every frame")
        tagger = listener(utterances, speakers, run.epochs, seed)
        heard = [listen(tagger, utterance) for utterance in unknown]
        curves.append(accuracy_by_frames(heard, truth))
        if seed == 0:
            shown = telling(heard, truth)
            example = heard[shown], truth[shown], shown
    progress.end()
    curves = np.array(curves)

    print(f"\nSettings, by the accuracy on held-out training utterances (seeds: {choosing}):")
    for (hidden, layers), score in scores.items():
        chosen = "  chosen" if settings == {"hidden_size": hidden, "num_layers": layers} else ""
        print(f"    {f'{hidden} units, layers: {layers}':37}{score:6.1%}{chosen}")
    print(f"\nAccuracy on the {len(unknown)} test utterances:")
    print(f"  {'nearest neighbour, time warping':39}{warped:6.1%}")
    print(f"  {f'GRU of both directions, seeds: {run.seeds}':39}{spread(accuracies)}")
    print(f"  GRU as a stream, seeds: {run.seeds}, after")
    for frames in sorted({*range(1, curves.shape[1], 4), curves.shape[1]}):
        heard_for = f"{frames} frame{'s'[: frames > 1]} ({25.6 + 6.4 * (frames - 1):.0f} ms)"
        print(f"    {heard_for:37}{spread(curves[:, frames - 1])}")
    print(f"\nTest utterance {shown + 1}, of speaker {example[1] + 1}, as it is heard:")
    for at, chances in enumerate(example[0]):
        best = chances.argmax()
        print(f"  frame {at + 1:2}: speaker {best + 1}, {chances[best]:4.0%}  {'#' * round(30 * chances[best])}")
    lines = {"GRU of both directions": np.mean(accuracies), "nearest neighbour, DTW": warped}
    try:
        draw(curves, example, confusion, lines, run.picture)
    except ImportError:
        print("\nDrew no picture, as matplotlib is missing: pip install matplotlib")
    else:
        print(f"\nDrew it to {run.picture}")
    print(f"It took {time.monotonic() - began:.0f} seconds.")
    return 0


def spread(values):
    """Mean and range, in words."""
    return f"{np.mean(values):6.1%}, from {min(values):.1%} to {max(values):.1%}"


if __name__ == "__main__":
    sys.exit(main())
