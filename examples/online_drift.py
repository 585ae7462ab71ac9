"""Follow a process that drifts: a learner that updates its weights at every step, beside truncated back-propagation.

    python examples/online_drift.py

A process answers random inputs with a gain and a time constant. While a network predicts its output, the time constant
grows from 10 to 100 steps, and the gain goes from 1 to -1. Every network is first trained offline on the process as it
is before the drift. Then each method predicts the drifting process step by step, and each prediction is made before its
target is used:

- frozen: no more updates.
- truncated BPTT: an update after each window of 20 steps (rnnfast.training.truncated_bptt).
- the same at every step: an update after each step, by the gradient of its loss through the last 20 steps.
- online: an update after each step, by rnnfast.online.Learner, which stores no past inputs. For minGRU it computes the
  exact gradient through all earlier steps (RTRL); for LSTM it approximates the gradient (e-prop).

The learning rate of each method is chosen on another series.
"""

import argparse
import copy
import sys
import time

import numpy as np

import rnnfast
from rnnfast.commands.program import count, option, run_program, whole
from rnnfast.online import Learner
from rnnfast.training import Adam, fit, mean_squared_error, truncated_bptt

NOISE = 0.1  # standard deviation, below which no error can be expected to fall
TIME_CONSTANTS = 10, 100  # at the start and at the end of the drift, in steps
RATES = 0.0003, 0.001, 0.003, 0.01, 0.03
CELLS = {"minGRU": rnnfast.MinGRU, "LSTM": rnnfast.LSTM}


def process(steps, drifts, rng):
    """Return inputs (steps, 1) and outputs (steps, 1) of the process, which drifts or stays at the start."""
    part = np.linspace(0, drifts, steps)
    keeps = np.exp(-1 / (TIME_CONSTANTS[0] * (TIME_CONSTANTS[1] / TIME_CONSTANTS[0]) ** part))
    x, y, state = rng.standard_normal(steps), rng.normal(0, NOISE, steps), 0.0
    for t, (keep, gain) in enumerate(zip(keeps, np.cos(np.pi * part), strict=True)):
        state = keep * state + np.sqrt(1 - keep * keep) * x[t]  # of variance 1
        y[t] += gain * state
    return x[:, np.newaxis].astype(np.float32), y[:, np.newaxis].astype(np.float32)


def trained(cell, options):
    """Return a model trained on the process before the drift."""
    rng = np.random.default_rng(options.seed)
    model = rnnfast.Sequential(CELLS[cell](1, options.hidden, rng=rng), rnnfast.Linear(options.hidden, 1, rng=rng))
    sequences = [process(200, 0, rng) for _ in range(40)]
    data = [x for x, _ in sequences], [y for _, y in sequences]
    adam = Adam(model, lr=0.01)
    fit(
        model,
        data,
        loss=mean_squared_error,
        optimizer=adam,
        epochs=options.epochs,
        batch_size=20,
        rng=rng,
        verbose=False,
    )
    return model


# --------------------------------------------------------------------------------------------------------- methods


def frozen(model, x, _y, _rate, _window):
    return model(x[:, np.newaxis])[0][:, 0]


def windows(model, x, y, rate, window):
    """Update after each window."""
    adam, predictions = Adam(model, lr=rate), []
    for steps, prediction, _, tape in truncated_bptt(model, x[:, np.newaxis], window):
        _, dy = mean_squared_error(prediction[:, 0], y[steps])
        adam.step(model.backward(tape, dy[:, np.newaxis]))
        predictions.append(prediction[:, 0])
    return np.concatenate(predictions)


def sliding_windows(model, x, y, rate, window):
    """Update after each step, by the gradient through the last `window` steps."""
    adam, predictions, state = Adam(model, lr=rate), [], None  # the state before the window
    for t in range(len(x)):
        first = max(0, t + 1 - window)
        outputs, _, tape = model.forward(x[first : t + 1, np.newaxis], state)
        dy = np.zeros_like(outputs)
        _, dy[-1] = mean_squared_error(outputs[-1], y[t : t + 1])
        adam.step(model.backward(tape, dy))
        predictions.append(outputs[-1, 0])
        if t + 1 >= window:
            _, state = model(x[first : first + 1, np.newaxis], state)
    return np.array(predictions)


def online(model, x, y, rate, _window):
    learner = Learner(model, optimizer=Adam(model, lr=rate))
    return np.array([learner.step(x_t, target) for x_t, target in zip(x, y, strict=True)])


METHODS = {
    "frozen": frozen,
    "truncated BPTT": windows,
    "the same at every step": sliding_windows,
    "online": online,
}


# --------------------------------------------------------------------------------------------------------- program


def score(method, model, series, rate, window):
    """Return the mean squared errors of the quarters of all series, and the seconds of a step."""
    errors, seconds = [], 0.0
    for x, y in series:
        own, began = copy.deepcopy(model), time.perf_counter()
        predictions = METHODS[method](own, x, y, rate, window)
        seconds += time.perf_counter() - began
        errors.append([part.mean() for part in np.array_split((predictions - y) ** 2, 4)])
    return np.mean(errors, axis=0), seconds / sum(len(x) for x, _ in series)


def compare(cell, options):
    """Return the rows of a table: method, learning rate, errors of the quarters, and seconds of a step."""
    model = trained(cell, options)
    rng = np.random.default_rng(options.seed + 1)
    series = [process(options.steps, 1, rng) for _ in range(1 + options.series)]
    validation, test = series[:1], series[1:]
    rows = []
    for method in METHODS:
        rates = RATES if method != "frozen" else [0.0]
        rate = min(rates, key=lambda rate: score(method, model, validation, rate, options.window)[0].mean())
        rows.append((method, rate, *score(method, model, test, rate, options.window)))
    return rows


def report(options):
    print(
        f"{options.hidden} units, windows of {options.window} steps, {options.series} series of {options.steps:,} "
        f"steps. The noise has a standard deviation of {NOISE}."
    )
    for cell in CELLS:
        print(f"\n{cell:24}{'rate':>8}   root mean squared error in each quarter     all   us a step", flush=True)
        for method, rate, errors, seconds in compare(cell, options):
            quarters = "".join(f"{error:>10.3f}" for error in np.sqrt(errors))
            shown = f"{rate:g}" if rate else ""
            print(f"  {method:22}{shown:>8}{quarters}{np.sqrt(errors.mean()):>10.3f}{seconds * 1e6:>10.0f}", flush=True)
    return 0


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        description="Follow a drifting process by online learning and by truncated back-propagation.",
        epilog="Exit status: 0 success, 2 error, 130 stopped by Ctrl-C.",
    )
    option(parser, "--steps", whole(4), 4000, "steps of a drifting series")
    option(parser, "--series", count, 2, "series to test on")
    option(parser, "--hidden", count, 16, "units")
    option(parser, "--window", count, 20, "steps of truncated back-propagation")
    option(parser, "--epochs", count, 150, "epochs of the training before the drift")
    option(parser, "--seed", whole(0), 0, "random seed")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the program and return the exit status."""
    return run_program("online_drift.py", report, parse_arguments(arguments))


if __name__ == "__main__":
    sys.exit(main())
