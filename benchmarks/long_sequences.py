"""Time and memory of forward and backward through long sequences, with checkpoints, without, and with torch.

    python benchmarks/long_sequences.py --plot long_sequences.png

For each number of steps, and each way to go, a process of its own makes x and dy, runs a short sequence so that all
code is loaded, notes its peak of memory, runs forward and backward once, and notes the peak again. What it rose by,
less y and dx, is what the gradient costs in memory; it tells nothing below half a MiB. Then it repeats the call for the
time: the median. At the end checkpoints are timed against none in turns, at T=1000 N=16. One thread; Linux and macOS.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from statistics import median

WAYS = {
    "auto": ("rnnfast, checkpointed", "#08519c", "o"),
    "full": ("rnnfast, all steps kept", "#6baed6", "s"),
    "torch": ("torch", "#d95f02", "D"),
}
LEAST = 0.5  # MiB that can be told from none


class CannotMeasure(Exception):
    """Something the user can mend; its text says what."""


def train_with_rnnfast(layer, x, dy, checkpoint):
    y, _, tape = layer.forward(x, checkpoint=checkpoint)
    return y, layer.backward(tape, dy)


def prepare(way, size):
    """A function of x and dy that goes forward and backward; None where torch is not installed."""
    if way != "torch":
        import rnnfast

        rnnfast.set_num_threads(1)
        layer = rnnfast.LSTM(size, size, rng=0)
        return lambda x, dy: train_with_rnnfast(layer, x, dy, "auto" if way == "auto" else None)
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
    """The most memory that this process has held, in MiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def seconds_of(call, *inputs):
    begin = time.perf_counter()
    call(*inputs)
    return time.perf_counter() - begin


def report_one(way, T, N, size):
    """In a process of its own: microseconds per step, and MiB."""
    call = prepare(way, size)
    if call is None:
        return None
    call(*arrays(20, N, size))
    x, dy = arrays(T, N, size)
    before = peak()
    first = seconds_of(call, x, dy)
    memory = peak() - before - 2 * x.nbytes / 2**20
    repeats = min(200, max(3 if first < 3 else 0, int(1 / first)))
    seconds = [seconds_of(call, x, dy) for _ in range(repeats)] or [first]
    return 1e6 * median(seconds) / T, memory


def report_ratio(T=1000, N=16, size=128, rounds=15):
    """Time with checkpoints over that without, in turns."""
    ways = [prepare(way, size) for way in ("auto", "full")]
    x, dy = arrays(T, N, size)
    for way in ways:
        way(x, dy)
    return median(seconds_of(ways[0], x, dy) / seconds_of(ways[1], x, dy) for _ in range(rounds))


def in_own_process(*arguments):
    """What this program prints with these arguments. A child's peak begins with its parent's, so that stays small."""
    done = subprocess.run([sys.executable, __file__, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise CannotMeasure(f"the process for {' '.join(map(str, arguments))} ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def draw(results, size, N, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    times, memory = figure.subplots(1, 2)
    for way, (name, color, marker) in WAYS.items():
        points = [(T, *values) for T, values in results[way].items()]
        if points:
            steps, micros, mebibytes = zip(*points, strict=True)
            look = {"color": color, "marker": marker, "label": name}
            times.plot(steps, micros, **look)
            seen = [(T, value) for T, value in zip(steps, mebibytes, strict=True) if value >= LEAST]
            if seen:
                memory.plot(*zip(*seen, strict=True), **look)
    for axes in (times, memory):
        axes.set(xscale="log", xlabel="steps T")
        axes.grid(color="#e4e4e4")
        axes.spines[["top", "right"]].set_visible(False)
    times.set(title="Time (flat is linear in T)", ylabel="µs per step")
    times.set_ylim(0, 1.3 * times.get_ylim()[1])  # room for the legend
    memory.set(title="Peak of memory beyond x, y, dy and dx", ylabel="MiB", yscale="log")
    memory.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    times.legend(frameon=False)
    figure.suptitle(f"LSTM, forward and backward, N={N} I=H={size}, float32, one thread")
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise CannotMeasure(f"cannot draw {path}: {error}") from None


def count(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, not {text}")
    return int(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", nargs="+", type=count, default=[100, 1000, 10_000, 100_000], metavar="T", help="lengths to measure"
    )
    parser.add_argument("--rows", type=count, default=1, metavar="N", help="of the batch (default: %(default)s)")
    parser.add_argument("--size", type=count, default=128, metavar="H", help="inputs and units (default: %(default)s)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="which to run (default: all)")
    parser.add_argument("--plot", metavar="FILE", help="draw into this file (.png, .svg, .pdf)")
    options = parser.parse_args()
    try:
        if options.plot and not importlib.util.find_spec("matplotlib"):
            raise CannotMeasure("the picture needs matplotlib: pip install matplotlib (or leave out --plot)")
        report(options)
    except CannotMeasure as error:
        sys.exit(f"{parser.prog}: {error}")


def report(options):
    print(f"LSTM, forward and backward, N={options.rows} I=H={options.size}, float32, one thread:")
    print("µs per step, and MiB of memory at the peak beyond x, y, dy and dx\n")
    print(f"{'T':>9s}" + "".join(f"{WAYS[way][0]:>28s}" for way in options.ways))
    results = {way: {} for way in WAYS}
    for T in sorted(options.steps):
        texts = []
        for way in options.ways:
            result = in_own_process("of", way, T, options.rows, options.size)
            if result is None:
                texts.append("not installed")
                continue
            results[way][T] = result
            micros, mebibytes = result
            texts.append(f"{micros:.2f} µs" + (f"{mebibytes:9.1f} MiB" if mebibytes >= LEAST else f"   < {LEAST} MiB"))
        print(f"{T:>9,d}" + "".join(f"{text:>28s}" for text in texts), flush=True)
    print(f"\nTime with checkpoints over that without, T=1000 N=16 I=H=128: {in_own_process('ratio'):.2f}")
    if options.plot:
        draw(results, options.size, options.rows, options.plot)


if __name__ == "__main__":
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    if sys.argv[1:2] == ["of"]:
        print(json.dumps(report_one(sys.argv[2], *map(int, sys.argv[3:]))))
    elif sys.argv[1:2] == ["ratio"]:
        print(json.dumps(report_ratio()))
    else:
        main()
