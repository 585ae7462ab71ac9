"""Show how gradients vanish, and what helps: recurrent layers on two tasks that need memory, at growing lags.

    python examples/vanishing.py

trains RNN, LSTM and GRU layers with several initialisations for about two minutes. It prints their scores, and draws
them next to the gradients before training. The tasks:

- Adding: two of a sequence of random numbers are marked, one in each half; the answer, after the last step, is their
  sum (Hochreiter and Schmidhuber 1997). Always answering 1 has a mean squared error of 1/6.
- Copy memory: ten symbols out of eight, as many blanks as the lag, and a mark, after which the ten symbols are to be
  repeated (Arjovsky et al. 2016). Predicting the blanks and guessing the symbols has a cross-entropy of
  10 ln(8) / (lag + 20) per step.
"""

import argparse
import math
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np

import rnnfast
from rnnfast.commands.program import Progress, count, option, run_program, save_figure, save_picture, whole
from rnnfast.diagnostics import gradient_flow, plot_gradient_flow
from rnnfast.training import Adam, fit, mean_squared_error, softmax_cross_entropy

MAX_NORM = 1.0  # of clipped gradients
FLOW_STEPS, FLOW_ROWS = 100, 4
TEST_ROWS = 2000
CLIPPING_LAG = 20  # of the adding task


# ------------------------------------------------------------------------------------------------ models and tasks


class Model(NamedTuple):
    """A layer with its initialisation, and the style of its lines."""

    kind: type
    init: str
    options: dict
    learning_rate: float
    color: str
    linestyle: str
    marker: str

    def build(self, inputs, hidden, lag, **options):
        init = ("chrono", max(lag, 2)) if self.init == "chrono" else self.init
        return self.kind(inputs, hidden, init=init, **self.options, **options)


MODELS = {
    "RNN": Model(rnnfast.RNN, "torch", {}, 0.002, "C3", "-", "o"),
    "RNN, orthogonal": Model(rnnfast.RNN, "orthogonal", {}, 0.002, "C3", "--", "s"),
    "RNN with relu, identity": Model(rnnfast.RNN, "identity", {"nonlinearity": "relu"}, 0.002, "C1", ":", "D"),
    "LSTM": Model(rnnfast.LSTM, "torch", {}, 0.01, "C0", "-", "o"),
    "LSTM, forget bias 1": Model(rnnfast.LSTM, "forget", {}, 0.01, "C0", "--", "s"),
    "LSTM, chrono": Model(rnnfast.LSTM, "chrono", {}, 0.01, "C0", ":", "D"),
    "GRU": Model(rnnfast.GRU, "torch", {}, 0.01, "C2", "-", "o"),
}
CLIPPED = ["RNN, orthogonal", "RNN with relu, identity", "GRU"]  # models that are also trained without clipping


class Adding:
    """Add two marked numbers; the answer is given after the last step."""

    name, inputs, outputs = "adding", 2, 1
    pool = (rnnfast.Pool("last"),)
    loss = staticmethod(mean_squared_error)

    @staticmethod
    def baseline(lag):  # noqa: ARG004
        return 1 / 6

    @staticmethod
    def memory(lag):
        """Return the number of steps for which the input must be remembered."""
        return lag

    @staticmethod
    def draw(lag, rows, rng):
        """Return x (T, N, 2), numbers and marks, and the sums (N, 1); T is the lag."""
        x = np.zeros((lag, rows, 2), np.float32)
        x[..., 0] = rng.random((lag, rows))
        every, half = np.arange(rows), lag // 2
        marked = rng.integers(0, half, rows), rng.integers(half, lag, rows)
        for position in marked:
            x[position, every, 1] = 1
        return x, sum(x[position, every, 0] for position in marked)[:, np.newaxis]


class Copy:
    """Repeat ten symbols after the lag; every step is scored."""

    name, inputs, outputs = "copy memory", 10, 9
    pool = ()
    loss = staticmethod(softmax_cross_entropy)

    @staticmethod
    def baseline(lag):
        return 10 * math.log(8) / (lag + 20)

    @staticmethod
    def memory(lag):
        return lag + 10

    @staticmethod
    def draw(lag, rows, rng):
        """Return x (T, N, 10), one-hot for blank, symbols and mark, and targets (T, N), 0 for blank; T is lag + 20."""
        symbols = rng.integers(1, 9, (10, rows))
        codes, targets = np.zeros((2, lag + 20, rows), int)
        codes[:10], codes[lag + 9], targets[-10:] = symbols, 9, symbols
        return np.eye(10, dtype=np.float32)[codes], targets


class Run(NamedTuple):
    """A training and its losses relative to the baseline; 1 means that nothing was learnt."""

    task: type
    lag: int
    model: str
    clipped: bool
    losses: list
    score: float  # loss on held-out sequences


def train(task, lag, name, clipped, hidden, steps, rows, seed, stop):
    """Train one model on one task; a seed gives the same sequences to all models."""
    rng, losses, baseline = np.random.default_rng(seed), [], task.baseline(lag)
    layer = MODELS[name].build(task.inputs, hidden, task.memory(lag), rng=rng)
    model = rnnfast.Sequential(layer, *task.pool, rnnfast.Linear(hidden, task.outputs, rng=rng))

    def note(history):
        losses.append(history.loss[-1] / baseline)
        return stop.is_set()

    def draw(data_rng):  # an epoch is one mini-batch of new sequences
        return [task.draw(lag, rows, data_rng)]

    options = {"optimizer": Adam(model, MODELS[name].learning_rate), "clip": MAX_NORM if clipped else None}
    try:
        fit(model, draw, loss=task.loss, epochs=steps, callbacks=[note], rng=seed + 1, verbose=False, **options)
    except ValueError:  # the loss is not finite
        return Run(task, lag, name, clipped, losses, math.inf)
    x, target = task.draw(lag, TEST_ROWS, np.random.default_rng(seed + 2))
    return Run(task, lag, name, clipped, losses, task.loss(model(x)[0], target)[0] / baseline)


def train_all(options):
    """Train all models, each in one thread, which for small layers is faster than dividing their work."""
    shared = {"rows": options.batch, "seed": options.seed}
    settings = {
        Adding: {**shared, "hidden": options.hidden, "steps": options.steps},
        Copy: {**shared, "hidden": 2 * options.hidden, "steps": 2 * options.steps},
    }
    plans = [(Copy, lag, name, True) for lag in options.copy for name in MODELS]
    plans += [(Adding, lag, name, True) for lag in options.adding for name in MODELS]
    plans += [(Adding, CLIPPING_LAG, name, clipped) for name in CLIPPED for clipped in (True, False)]
    # Without duplicates; long ones first, so that all threads are busy until the end.
    plans = sorted(dict.fromkeys(plans), key=lambda plan: (plan[0] is Copy, plan[1]), reverse=True)
    stop, runs, began = threading.Event(), [], time.monotonic()
    rnnfast.set_num_threads(1)
    with ThreadPoolExecutor(options.threads) as pool, Progress(len(plans)) as progress:
        futures = [pool.submit(train, *plan, **settings[plan[0]], stop=stop) for plan in plans]
        try:
            for done in as_completed(futures):
                runs.append(done.result())
                progress.step()
                progress.note(f"{len(runs):3} of {len(plans)}  {time.monotonic() - began:4.0f} s  {title(runs[-1])}")
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return runs


def measure(options):
    """Measure the gradient flow of every model before training, on the adding task."""
    x, _ = Adding.draw(FLOW_STEPS, FLOW_ROWS, np.random.default_rng(options.seed))
    build = {"inputs": Adding.inputs, "hidden": options.hidden, "lag": FLOW_STEPS}
    return {
        name: gradient_flow(model.build(**build, rng=options.seed, dtype=np.float64), x)
        for name, model in MODELS.items()
    }


# ----------------------------------------------------------------------------------------------------------- output


def title(run):
    """Describe a run and its score."""
    clipping = "" if run.clipped else ", not clipped"
    return f"{run.task.name}, lag {run.lag}: {run.model}{clipping} {run.score:.3f}"


def find(runs, task, lag, model, clipped=True):
    """Return the run with these settings."""
    return next(run for run in runs if run[:4] == (task, lag, model, clipped))


def written(score):
    """Format a score."""
    return f"{score:.3f}" if score < 1000 else "diverged"


def print_tables(runs, flows, options):
    """Print the results."""
    print(f"\nGradients before training, {FLOW_STEPS} steps of the adding task, {options.hidden} units:")
    print(f"  {'':24}{'norm of dL/dh at lag':>34}{'largest singular value per step':>36}")
    lags = [0, 10, 50, FLOW_STEPS - 1]
    print(f"  {'':24}" + "".join(f"{lag:>10}" for lag in lags) + f"{'of h':>16}{'of (h, c)':>12}")
    for name, flow in flows.items():
        norms = "".join(f"{flow.norms['l0'][lag]:10.1e}" for lag in lags)
        values = [found["l0"].mean() for found in (flow.singular_values, flow.state_singular_values) if found]
        print(f"  {name:24}{norms}" + "".join(f"{v:{w}.2f}" for v, w in zip(values, (16, 12), strict=False)))
    for task, lags, unit in (
        (Adding, options.adding, "mean squared error / 0.167 (the error of always answering 1)"),
        (Copy, options.copy, "cross-entropy / (10 ln(8) / (lag + 20)) (the loss without memory)"),
    ):
        print(f"\nThe {task.name} task: {unit}; 1 means that nothing was learnt.")
        print(f"  {'lag':24}" + "".join(f"{lag:>10}" for lag in lags))
        for name in MODELS:
            print(f"  {name:24}" + "".join(f"{written(find(runs, task, lag, name).score):>10}" for lag in lags))
    print(f"\nThe adding task at lag {CLIPPING_LAG}, with and without clipping gradients to a norm of {MAX_NORM:g}:")
    print(f"  {'':24}{'with':>10}{'without':>10}")
    for name in CLIPPED:
        scores = [written(find(runs, Adding, CLIPPING_LAG, name, clipped).score) for clipped in (True, False)]
        print(f"  {name:24}" + "".join(f"{score:>10}" for score in scores))


def draw(runs, flows, options, path):
    """Draw the results in four panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 9), layout="constrained")
    (flow_axes, clip_axes), (adding_axes, copy_axes) = figure.subplots(2, 2)
    styles = {name: {key: getattr(model, key) for key in ("color", "linestyle")} for name, model in MODELS.items()}

    plot_gradient_flow(flows, flow_axes)
    for line, style in zip(flow_axes.lines, styles.values(), strict=True):
        line.set(**style)
    flow_axes.get_legend().remove()  # one legend for all panels is below
    flow_axes.set(title="Gradients before training (adding)", ylim=(1e-12, 1e2))

    for axes, task, lags in ((adding_axes, Adding, options.adding), (copy_axes, Copy, options.copy)):
        for name, style in styles.items():
            scores = [min(find(runs, task, lag, name).score, 10) for lag in lags]
            axes.plot(lags, scores, label=name, marker=MODELS[name].marker, markersize=5, **style)
        axes.axhline(1, color="gray", linewidth=0.8)
        position = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "xytext": (0, 5)}
        axes.annotate("nothing learnt", (0.02, 1), **position, color="0.4")
        axes.set_xscale("log")
        axes.set_xticks(lags, labels=[str(lag) for lag in lags])
        axes.minorticks_off()
    adding_axes.set(
        title="Adding task, after training", xlabel="lag (steps)", ylabel="mean squared error / 0.167", yscale="log"
    )
    copy_axes.set(
        title="Copy memory, after training", xlabel="lag (steps)", ylabel="cross-entropy / (10 ln(8) / (lag + 20))"
    )
    copy_axes.set_ylim(bottom=0)

    width = max(1, options.steps // 25)
    for name in CLIPPED:
        for clipped in (True, False):
            losses = np.array(find(runs, Adding, CLIPPING_LAG, name, clipped).losses)
            if len(losses) < width:
                continue
            smooth = np.convolve(losses, np.full(width, 1 / width), "valid")
            label = f"{name}, {'clipped' if clipped else 'not clipped'}"
            look = {"color": MODELS[name].color, "linestyle": "-" if clipped else ":"}
            clip_axes.plot(np.arange(len(smooth)) + (width + 1) / 2, smooth, label=label, **look)
    clip_axes.set(
        title=f"With and without gradient clipping (adding, lag {CLIPPING_LAG})",
        xlabel="training steps",
        ylabel="mean squared error / 0.167",
        yscale="log",
    )
    clip_axes.legend(loc="center right", fontsize="small")
    for axes in (flow_axes, clip_axes, adding_axes, copy_axes):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*adding_axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    save_figure(figure, path)


# ---------------------------------------------------------------------------------------------------------- program


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        description="Train recurrent layers on tasks that need memory, and show where they stop learning.",
        epilog="Exit status: 0 success, 2 error, 130 stopped by Ctrl-C.",
    )
    for name, lags in {"--adding": [10, 20, 40, 80], "--copy": [5, 10, 20]}.items():
        default = f"lags of the task (default: {' '.join(map(str, lags))})"
        parser.add_argument(name, metavar="LAG", type=whole(2), nargs="+", default=lags, help=default)
    option(parser, "--steps", count, 1000, "updates; twice as many for copy memory")
    option(parser, "--hidden", count, 32, "units; twice as many for copy memory")
    option(parser, "--batch", count, 20, "sequences per update")
    option(parser, "--seed", whole(0), 0, "random seed")
    option(parser, "--threads", count, os.cpu_count(), "models to train at the same time")
    option(parser, "--picture", Path, Path("vanishing.png"), "picture")
    options = parser.parse_args(arguments)
    options.adding, options.copy = sorted(set(options.adding)), sorted(set(options.copy))
    return options


def main(arguments=None):
    """Run the program and return the exit status."""
    options = parse_arguments(arguments)
    threads = rnnfast.get_num_threads()
    try:
        return run_program("vanishing.py", report, options)
    finally:
        rnnfast.set_num_threads(threads)


def report(options):
    """Measure the gradients, train the models, and report the results."""
    print(
        f"{len(MODELS)} models, {options.threads} at a time. Adding: {options.hidden} units, {options.steps:,} updates "
        f"of {options.batch} sequences. Copy memory: twice the units and updates.",
        flush=True,
    )
    began, used = time.monotonic(), time.process_time()
    flows = measure(options)
    runs = train_all(options)
    began, used = time.monotonic() - began, time.process_time() - used
    print_tables(runs, flows, options)
    print(f"\nTime: {began:.0f} seconds, {used:.0f} seconds of CPU time.")
    save_picture(options.picture, draw, runs, flows, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
