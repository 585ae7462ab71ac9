"""Time and memory of training on long sequences, with checkpoints, without them, and with torch.

    python benchmarks/long_sequences.py --plot long_sequences.png

Each number of steps and each method runs in its own process. It makes x and dy, runs a short sequence to load all code,
then runs forward and backward once and measures by how much the peak memory rises. This, less y and dx, is the memory
that the gradient needs; less than half a MiB cannot be measured. Then the call is repeated for the time, which is the
median. At the end, checkpoints and no checkpoints are timed in turns at T=1000 N=16. One thread; Linux and macOS.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from statistics import median

from rnnfast.commands.program import CannotRun, count, option, run_program, save_figure
from rnnfast.commands.timing import MARKS, ratio, take_turns, timed

METHODS = {
    "auto": ("rnnfast, checkpoints", *MARKS["rnnfast"][:2]),
    "full": ("rnnfast, no checkpoints", "#6baed6", "s"),
    "torch": ("torch", *MARKS["torch"][:2]),
}
LEAST = 0.5  # MiB that can be measured


def train_with_rnnfast(layer, x, dy, checkpoint):
    y, _, tape = layer.forward(x, checkpoint=checkpoint)
    return y, layer.backward(tape, dy)


def prepare(method, size):
    """Return a function of x and dy that runs forward and backward; None if torch is not installed."""
    if method != "torch":
        import rnnfast

        rnnfast.set_num_threads(1)
        layer = rnnfast.LSTM(size, size, rng=0)
        return lambda x, dy: train_with_rnnfast(layer, x, dy, "auto" if method == "auto" else None)
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    layer = torch.nn.LSTM(size, size)

    def train(x, dy):
        x = torch.from_numpy(x).requires_grad_()
        y, _ = layer(x)
        return y, torch.autograd.grad(y, [x, *layer.parameters()], torch.from_numpy(dy))

    return train


def arrays(T, N, size):
    import numpy as np

    rng = np.random.default_rng(0)
    return [rng.standard_normal((T, N, size), np.float32) for _ in range(2)]


def peak():
    """Return the peak memory of this process in MiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def report_one(method, T, N, size):
    """Return microseconds per step, and MiB; runs in its own process."""
    call = prepare(method, size)
    if call is None:
        return None
    call(*arrays(20, N, size))
    x, dy = arrays(T, N, size)
    before = peak()
    start = time.perf_counter()
    call(x, dy)
    first = time.perf_counter() - start
    memory = peak() - before - 2 * x.nbytes / 2**20
    repeats = 1 if first >= 3 else max(3, min(200, int(1 / first)))
    seconds = [first] if repeats == 1 else [timed(lambda: call(x, dy)) for _ in range(repeats)]
    return 1e6 * median(seconds) / T, memory


def report_ratio(T=1000, N=16, size=128, rounds=15):
    """Return the time with checkpoints relative to that without."""
    methods = {method: prepare(method, size) for method in ("auto", "full")}
    x, dy = arrays(T, N, size)
    timers = {method: lambda call=call: timed(lambda: call(x, dy)) for method, call in methods.items()}
    seconds = take_turns(timers, rounds)
    return ratio(seconds["auto"], seconds["full"])


def in_own_process(*arguments):
    """Run this program with arguments, and return what it prints.

    The peak memory of a process starts at that of its parent, which therefore must stay small.
    """
    done = subprocess.run([sys.executable, __file__, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise CannotRun(f"the process of {' '.join(map(str, arguments))} failed with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def draw(results, size, N, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    times, memory = figure.subplots(1, 2)
    for method, (name, color, marker) in METHODS.items():
        points = [(T, *values) for T, values in results[method].items()]
        if points:
            steps, micros, mebibytes = zip(*points, strict=True)
            look = {"color": color, "marker": marker, "label": name}
            times.plot(steps, micros, **look)
            seen = [(T, value) for T, value in zip(steps, mebibytes, strict=True) if value >= LEAST]
            if seen:
                memory.plot(*zip(*seen, strict=True), **look)
    for axes in (times, memory):
        axes.set(xscale="log", xlabel="time steps T")
        axes.grid(color="#e4e4e4")
        axes.spines[["top", "right"]].set_visible(False)
    times.set(title="Time (flat means linear in T)", ylabel="µs per step")
    times.set_ylim(0, 1.3 * times.get_ylim()[1])  # space for the legend
    memory.set(title="Peak memory beyond x, y, dy, dx", ylabel="MiB", yscale="log")
    memory.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    times.legend(loc="upper left", frameon=False)
    figure.suptitle(f"LSTM, forward and backward, N={N} I=H={size}, float32, one thread")
    save_figure(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps",
        nargs="+",
        type=count,
        default=[100, 1000, 10_000, 100_000],
        metavar="T",
        help="numbers of time steps",
    )
    option(parser, "--rows", count, 1, "batch size")
    option(parser, "--size", count, 128, "input features and hidden units")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="methods to run (default: all)"
    )
    parser.add_argument("--plot", metavar="FILE", help="picture to draw (.png, .svg, .pdf)")
    options = parser.parse_args()
    return run_program(parser.prog, report, options)


def report(options):
    if options.plot and not importlib.util.find_spec("matplotlib"):
        raise CannotRun("--plot needs matplotlib: pip install matplotlib")
    print(f"LSTM, forward and backward, N={options.rows} I=H={options.size}, float32, one thread:")
    print("µs per step, and peak memory beyond x, y, dy and dx\n")
    print(f"{'T':>9s}" + "".join(f"{METHODS[method][0]:>28s}" for method in options.methods))
    results = {method: {} for method in METHODS}
    for T in sorted(options.steps):
        texts = []
        for method in options.methods:
            result = in_own_process("of", method, T, options.rows, options.size)
            if result is None:
                texts.append("not installed")
                continue
            results[method][T] = result
            micros, mebibytes = result
            texts.append(f"{micros:.2f} µs" + (f"{mebibytes:9.1f} MiB" if mebibytes >= LEAST else f"   < {LEAST} MiB"))
        print(f"{T:>9,d}" + "".join(f"{text:>28s}" for text in texts), flush=True)
    print(f"\nTime with checkpoints relative to that without, T=1000 N=16 I=H=128: {in_own_process('ratio'):.2f}")
    if options.plot:
        draw(results, options.size, options.rows, options.plot)
    return 0


if __name__ == "__main__":
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    if sys.argv[1:2] == ["of"]:
        print(json.dumps(report_one(sys.argv[2], *map(int, sys.argv[3:]))))
    elif sys.argv[1:2] == ["ratio"]:
        print(json.dumps(report_ratio()))
    else:
        sys.exit(main())
