"""See gradients vanish, and what helps: recurrent layers on two tasks of long memory, at growing lags.

    python examples/vanishing.py

trains RNN, LSTM and GRU layers with several initial values for some two minutes, prints how they score, and draws it
beside the gradients that they begin with. The tasks:

- adding: of a sequence of random numbers two are marked, one in each half; the answer, after the last, is their sum
  (Hochreiter and Schmidhuber 1997). Always answering 1 has a mean squared error of 1/6.
- copy memory: ten symbols of eight kinds, blanks for the length of the lag, a mark; then the ten symbols are to be
  repeated (Arjovsky et al. 2016). To know where blanks stand and guess the rest costs 10 ln(8) / (lag + 20) a step.
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
from program import CannotRun, exit_status, whole

import rnnfast
from rnnfast.diagnostics import gradient_flow, plot_gradient_flow
from rnnfast.training import Adam, clip_grad_norm, mean_squared_error, softmax_cross_entropy

MAX_NORM = 1.0  # of the gradient, where it is clipped
FLOW_STEPS, FLOW_ROWS = 100, 4
TEST_ROWS = 2000
CLIPPING_LAG = 20  # of the adding task


# ---------------------------------------------------------------------------------------------- the models, the tasks


class Model(NamedTuple):
    """A kind of layer with its initial values, and how its lines are drawn."""

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
    "RNN of relu, identity": Model(rnnfast.RNN, "identity", {"nonlinearity": "relu"}, 0.002, "C1", ":", "D"),
    "LSTM": Model(rnnfast.LSTM, "torch", {}, 0.01, "C0", "-", "o"),
    "LSTM, forget bias 1": Model(rnnfast.LSTM, "forget", {}, 0.01, "C0", "--", "s"),
    "LSTM, chrono": Model(rnnfast.LSTM, "chrono", {}, 0.01, "C0", ":", "D"),
    "GRU": Model(rnnfast.GRU, "torch", {}, 0.01, "C2", "-", "o"),
}
CLIPPED = ["RNN, orthogonal", "RNN of relu, identity", "GRU"]  # those that are trained without clipping as well


class Adding:
    """The sum of two marked numbers; only the last step is scored."""

    name, inputs, outputs = "adding", 2, 1
    scored = slice(-1, None)
    loss = staticmethod(mean_squared_error)

    @staticmethod
    def baseline(lag):  # noqa: ARG004
        return 1 / 6

    @staticmethod
    def memory(lag):
        """The longest time for which something is to be kept."""
        return lag

    @staticmethod
    def draw(lag, rows, rng):
        """x (T, N, 2), numbers and marks, and the sums (1, N, 1); T is the lag."""
        x = np.zeros((lag, rows, 2), np.float32)
        x[..., 0] = rng.random((lag, rows))
        every, half = np.arange(rows), lag // 2
        marked = rng.integers(0, half, rows), rng.integers(half, lag, rows)
        for place in marked:
            x[place, every, 1] = 1
        return x, sum(x[place, every, 0] for place in marked)[np.newaxis, :, np.newaxis]


class Copy:
    """Ten symbols to be repeated after the lag; every step is scored."""

    name, inputs, outputs = "copy memory", 10, 9
    scored = slice(None)
    loss = staticmethod(softmax_cross_entropy)

    @staticmethod
    def baseline(lag):
        return 10 * math.log(8) / (lag + 20)

    @staticmethod
    def memory(lag):
        return lag + 10

    @staticmethod
    def draw(lag, rows, rng):
        """x (T, N, 10), one-hot: blank, the symbols, the mark; targets (T, N), 0 for blank; T is the lag + 20."""
        symbols = rng.integers(1, 9, (10, rows))
        codes, targets = np.zeros((2, lag + 20, rows), int)
        codes[:10], codes[lag + 9], targets[-10:] = symbols, 9, symbols
        return np.eye(10, dtype=np.float32)[codes], targets


class Run(NamedTuple):
    """What is trained, and how well it does: losses relative to the baseline, where 1 is to have learnt nothing."""

    task: type
    lag: int
    model: str
    clipped: bool
    losses: list
    score: float  # on sequences of its own


@np.errstate(over="ignore", invalid="ignore")  # a training that diverges is looked for
def train(task, lag, name, clipped, hidden, steps, rows, seed, stop):
    """One model on one task; the same seed gives the same sequences to all of them."""
    model, rng = MODELS[name], np.random.default_rng(seed)
    layer = model.build(task.inputs, hidden, task.memory(lag), rng=rng)
    readout = rnnfast.Linear(hidden, task.outputs, rng=rng)
    optimizer = Adam({**layer.parameters, **readout.parameters}, lr=model.learning_rate)
    data, losses, baseline = np.random.default_rng(seed + 1), [], task.baseline(lag)
    while len(losses) < steps and not stop.is_set():
        x, target = task.draw(lag, rows, data)
        h, _, tape = layer.forward(x)
        y, readout_tape = readout.forward(h[task.scored])
        loss, dy = task.loss(y, target)
        losses.append(loss / baseline)
        if not math.isfinite(loss):
            break
        from_readout = readout.backward(readout_tape, dy)
        dh = np.zeros_like(h)
        dh[task.scored] = from_readout.x
        gradients = {**layer.backward(tape, dh).parameters, **from_readout.parameters}
        if clipped:
            clip_grad_norm(gradients, MAX_NORM)
        optimizer.step(gradients)
    x, target = task.draw(lag, TEST_ROWS, np.random.default_rng(seed + 2))
    loss, _ = task.loss(readout(layer(x)[0][task.scored]), target)
    return Run(task, lag, name, clipped, losses, loss / baseline)


def train_all(options):
    """All runs, several at a time, each in a thread of its own: for small layers that is faster than to divide one."""
    shared = {"rows": options.batch, "seed": options.seed}
    settings = {
        Adding: {**shared, "hidden": options.hidden, "steps": options.steps},
        Copy: {**shared, "hidden": 2 * options.hidden, "steps": 2 * options.steps},
    }
    plans = [(Copy, lag, name, True) for lag in options.copy for name in MODELS]
    plans += [(Adding, lag, name, True) for lag in options.adding for name in MODELS]
    plans += [(Adding, CLIPPING_LAG, name, clipped) for name in CLIPPED for clipped in (True, False)]
    # Each once, and the long ones first, so that none is left alone at the end.
    plans = sorted(dict.fromkeys(plans), key=lambda plan: (plan[0] is Copy, plan[1]), reverse=True)
    stop, runs, began = threading.Event(), [], time.monotonic()
    rnnfast.set_num_threads(1)
    with ThreadPoolExecutor(options.threads) as pool:
        futures = [pool.submit(train, *plan, **settings[plan[0]], stop=stop) for plan in plans]
        try:
            for done in as_completed(futures):
                runs.append(done.result())
                show(len(runs), len(plans), runs[-1], time.monotonic() - began)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return runs


def measure(options):
    """The gradient flow of every model as it begins, on the adding task."""
    x, _ = Adding.draw(FLOW_STEPS, FLOW_ROWS, np.random.default_rng(options.seed))
    build = {"inputs": Adding.inputs, "hidden": options.hidden, "lag": FLOW_STEPS}
    return {
        name: gradient_flow(model.build(**build, rng=options.seed, dtype=np.float64), x)
        for name, model in MODELS.items()
    }


# -------------------------------------------------------------------------------------------------- what is to be seen


def show(count, total, run, seconds):
    """One line on a terminal, rewritten; elsewhere a line for every run."""
    terminal = sys.stderr.isatty()
    clipping = "" if run.clipped else ", not clipped"
    what = f"{run.task.name}, lag {run.lag}: {run.model}{clipping}"
    line = f"{count:3} of {total}  {seconds:4.0f} s  {what} {run.score:.3f}"
    sys.stderr.write(("\r\x1b[K" if terminal else "") + line + ("\n" if count == total or not terminal else ""))
    sys.stderr.flush()


def find(runs, task, lag, model, clipped=True):
    """The run of this kind."""
    return next(run for run in runs if run[:4] == (task, lag, model, clipped))


def written(score):
    """A score in a table."""
    return f"{score:.3f}" if score < 1000 else "diverged"


def print_tables(runs, flows, options):
    """What came out, as text."""
    print(f"\nAt the beginning, {FLOW_STEPS} steps of the adding task, {options.hidden} units:")
    print(f"  {'':24}{'norm of dL/dh at lag':>34}{'largest singular value of a step':>36}")
    lags = [0, 10, 50, FLOW_STEPS - 1]
    print(f"  {'':24}" + "".join(f"{lag:>10}" for lag in lags) + f"{'of h':>16}{'of (h, c)':>12}")
    for name, flow in flows.items():
        norms = "".join(f"{flow.norms['l0'][lag]:10.1e}" for lag in lags)
        values = [found["l0"].mean() for found in (flow.singular_values, flow.state_singular_values) if found]
        print(f"  {name:24}{norms}" + "".join(f"{v:{w}.2f}" for v, w in zip(values, (16, 12), strict=False)))
    for task, lags, unit in (
        (Adding, options.adding, "mean squared error / 0.167, which always answering 1 has"),
        (Copy, options.copy, "cross-entropy / (10 ln(8) / (lag + 20)), which guessing without memory has"),
    ):
        print(f"\nThe {task.name} task: {unit}; 1 is to have learnt nothing.")
        print(f"  {'lag':24}" + "".join(f"{lag:>10}" for lag in lags))
        for name in MODELS:
            print(f"  {name:24}" + "".join(f"{written(find(runs, task, lag, name).score):>10}" for lag in lags))
    print(f"\nThe adding task at lag {CLIPPING_LAG}, gradients clipped to a norm of {MAX_NORM:g} or not:")
    print(f"  {'':24}{'clipped':>10}{'not':>10}")
    for name in CLIPPED:
        scores = [written(find(runs, Adding, CLIPPING_LAG, name, clipped).score) for clipped in (True, False)]
        print(f"  {name:24}" + "".join(f"{score:>10}" for score in scores))


def draw(runs, flows, options, path):
    """The same as a picture of four panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 9), layout="constrained")
    (flow_axes, clip_axes), (adding_axes, copy_axes) = figure.subplots(2, 2)
    styles = {name: {key: getattr(model, key) for key in ("color", "linestyle")} for name, model in MODELS.items()}

    plot_gradient_flow(flows, flow_axes)
    for line, style in zip(flow_axes.lines, styles.values(), strict=True):
        line.set(**style)
    flow_axes.get_legend().remove()  # one for all panels stands below
    flow_axes.set(title="Gradients before training (adding task)", ylim=(1e-12, 1e2))

    for axes, task, lags in ((adding_axes, Adding, options.adding), (copy_axes, Copy, options.copy)):
        for name, style in styles.items():
            scores = [min(find(runs, task, lag, name).score, 10) for lag in lags]
            axes.plot(lags, scores, label=name, marker=MODELS[name].marker, markersize=5, **style)
        axes.axhline(1, color="gray", linewidth=0.8)
        place = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "xytext": (0, 5)}
        axes.annotate("learnt nothing", (0.02, 1), **place, color="0.4")
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
        title=f"Gradients clipped to a norm of {MAX_NORM:g} (adding, lag {CLIPPING_LAG})",
        xlabel="training steps",
        ylabel="mean squared error / 0.167",
        yscale="log",
    )
    clip_axes.legend(fontsize="small")
    for axes in (flow_axes, clip_axes, adding_axes, copy_axes):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*adding_axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise CannotRun(f"cannot draw {path}: {error}") from None


# --------------------------------------------------------------------------------------------------------- the command


def parse_arguments(arguments):
    """The options of this run."""
    parser = argparse.ArgumentParser(
        description="Train recurrent layers on tasks of long memory, and draw where they stop learning.",
        epilog="Exit status: 0 done, 2 cannot run, 130 ended by Ctrl-C.",
    )
    adding, copy = [10, 20, 40, 80], [5, 10, 20]
    parser.add_argument("--adding", metavar="LAG", type=whole(2), nargs="+", default=adding, help="(10 20 40 80)")
    parser.add_argument("--copy", metavar="LAG", type=whole(2), nargs="+", default=copy, help="(5 10 20)")
    parser.add_argument(
        "--steps", metavar="N", type=whole(1), default=1000, help="updates; twice as many for copy memory (%(default)s)"
    )
    parser.add_argument("--hidden", metavar="N", type=whole(1), default=32, help="units; twice for copy (%(default)s)")
    parser.add_argument("--batch", metavar="N", type=whole(1), default=20, help="sequences an update (%(default)s)")
    parser.add_argument("--seed", metavar="N", type=whole(0), default=0, help="of all random numbers (%(default)s)")
    parser.add_argument(
        "--threads", metavar="N", type=whole(1), default=os.cpu_count(), help="runs at a time (default: all cores)"
    )
    parser.add_argument("--picture", metavar="FILE", type=Path, default=Path("vanishing.png"), help="(%(default)s)")
    options = parser.parse_args(arguments)
    options.adding, options.copy = sorted(set(options.adding)), sorted(set(options.copy))
    return options


def main(arguments=None):
    """Run the command; the exit status."""
    options = parse_arguments(arguments)
    threads = rnnfast.get_num_threads()
    try:
        return exit_status("vanishing.py", report, options)
    finally:
        rnnfast.set_num_threads(threads)


def report(options):
    """Measure, train, print and draw."""
    print(
        f"{len(MODELS)} models, {options.hidden} units and {options.steps:,} updates of {options.batch} sequences for "
        f"adding, twice the units and updates for copy memory; {options.threads} runs at a time.",
        flush=True,
    )
    began, used = time.monotonic(), time.process_time()
    flows = measure(options)
    runs = train_all(options)
    began, used = time.monotonic() - began, time.process_time() - used
    print_tables(runs, flows, options)
    print(f"\nIt took {began:.0f} seconds, {used:.0f} of processor time.")
    try:
        draw(runs, flows, options, options.picture)
    except ImportError:
        print("Drew no picture, as matplotlib is missing: pip install matplotlib")
    else:
        print(f"Drew it to {options.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
