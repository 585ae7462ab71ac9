"""Run rnnfast for a long time: memory must not grow, results must not change, and the slowest calls are shown.

    python benchmarks/soak.py                               10^8 stream steps and 10^6 calls: about 15 minutes
    python benchmarks/soak.py --steps 1000000 --calls 10000
    python benchmarks/soak.py --minutes 600                 repeat it for ten hours

Steps are those of streams of all cells, in turns, with one row. Calls have random shapes and kinds: inference, frozen
or not, training, variable-length, with checkpoints, and the life of streams and of a pool. Each tenth of the work
starts with calls whose results are compared with those at the start, bit by bit.

The program fails if a result differs, or if the resident memory grows by more than 1 MiB during the steps or 4 MiB
during the calls. Before that, a warm-up fills the pools of buffers. Linux only: memory is read from /proc.
"""

import argparse
import random
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

import rnnfast
from rnnfast.commands.program import CannotRun, count, option, positive, run_program, runtime

PARTS = 100  # of each kind of work; memory is read after each
GROWTH = {"steps": 1.0, "calls": 4.0}  # MiB
WARM_UP = {"steps": 100_000, "calls": 20_000}
FRACTIONS = (50, 99, 99.9)
CELLS = {"lstm": rnnfast.LSTM, "gru": rnnfast.GRU, "rnn": rnnfast.RNN}
FINE = 64  # bins of the histogram for each doubling of the time, so percentiles are exact to 1%


def resident():
    """Return the resident memory of this process in MiB."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


class Latencies:
    """A histogram of times in nanoseconds, which takes the same memory for any number of them."""

    def __init__(self):
        self.bins = np.zeros(FINE * 45, np.int64)
        self.longest = 0

    def add(self, times):
        places = np.log2(np.maximum(times, 1)) * FINE
        self.bins += np.bincount(places.astype(np.intp), minlength=len(self.bins))
        self.longest = max(self.longest, int(times.max()))

    def percentile(self, percent):
        """Return the time within which this share of the calls ends."""
        place = np.searchsorted(self.bins.cumsum(), percent / 100 * self.bins.sum())
        return min(2 ** ((place + 1) / FINE), self.longest)


def measured(call, times):
    """Call a function as often as `times` has elements, and write the time of each call there."""
    clock = time.perf_counter_ns
    for i in range(len(times)):
        start = clock()
        call()
        times[i] = clock() - start


class Steps:
    """Steps of streams of all cells, in turns."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.streams = [layer(16, 32, 2, rng=0).stream() for layer in CELLS.values()]
        self.x = rng.standard_normal((64, 16)).astype(np.float32)

    def run(self, number, latencies):
        times = np.empty(min(number, 10_000), np.int64)
        out = np.empty(32, np.float32)
        turn = 0
        while number > 0:
            stream, x = self.streams[turn % len(self.streams)], self.x[turn % len(self.x)]
            part = times[:number]
            measured(lambda stream=stream, x=x: stream.step(x, out), part)
            latencies.add(part)
            number -= len(part)
            turn += 1


class Calls:
    """Calls of random kinds and shapes."""

    def __init__(self):
        self.rng = random.Random(0)
        numbers = np.random.default_rng(0)
        self.x = numbers.standard_normal((64, 32, 16)).astype(np.float32)
        options = {}, {"bidirectional": True}, {"num_layers": 2}
        self.layers = [make(16, 24, rng=0, **given) for make in CELLS.values() for given in options]
        self.frozen = [make(16, 24, rng=0) for make in CELLS.values()]
        for layer in self.frozen:
            layer.freeze()
        self.pool = rnnfast.StreamPool(self.frozen[0], 8)
        self.kinds = [self.infer, self.frozen_call, self.train, self.ragged, self.checkpoints, self.stream, self.join]

    def input(self):
        """Return x of random lengths."""
        return self.x[: self.rng.randint(1, 64), : self.rng.randint(1, 32)]

    def infer(self):
        return self.rng.choice(self.layers)(self.input())

    def frozen_call(self):
        return self.rng.choice(self.frozen)(self.input())

    def train(self, **options):
        layer = self.rng.choice(self.layers)
        y, _, tape = layer.forward(self.input(), **options)
        return layer.backward(tape, y)

    def ragged(self):
        layer, x = self.rng.choice(self.layers), self.input()
        y, _, tape = layer.forward(x, lengths=[self.rng.randint(0, len(x)) for _ in range(x.shape[1])])
        return layer.backward(tape, y)

    def checkpoints(self):
        return self.train(checkpoint="auto")

    def stream(self):
        x = self.input()
        stream = self.rng.choice(self.frozen).stream(x.shape[1])
        stream.step(x[0])
        y = stream(x)
        stream.state = stream.state
        stream.reset(0)
        return y, stream.state

    def join(self):
        ids = [self.pool.join() for _ in range(self.rng.randint(1, 8))]
        y = self.pool.step(ids, self.x[0, : len(ids)])
        return y, [self.pool.leave(one) for one in ids]

    def run(self, number, latencies):
        times = np.empty(number, np.int64)
        measured(lambda: self.rng.choice(self.kinds)(), times)
        latencies.add(times)


def bits(results):
    """Return the bits of the arrays in nested tuples, lists and dicts."""
    if isinstance(results, np.ndarray):
        return results.tobytes()
    if isinstance(results, dict):
        results = results.values()
    return None if results is None else [bits(one) for one in results]


def sample(calls):
    """Return the bits of the results of some calls, the same each time."""
    calls.rng.seed(1)
    return [bits(kind()) for _ in range(3) for kind in calls.kinds]


def soak(work, name, number, end, check):
    """Do `number` pieces of work, or less if time is up; return the latencies, the number done and the memory."""
    work.run(WARM_UP[name], Latencies())
    latencies, memory, done = Latencies(), [], 0
    for part in range(PARTS):
        if part % 10 == 0 and not check():
            raise CannotRun(f"results differ from those at the start after {done:,} {name}")
        share = number * (part + 1) // PARTS - done
        if share:
            work.run(share, latencies)
        done += share
        memory.append(resident())
        if time.monotonic() > end:
            break
    return latencies, done, memory


def duration(ns):
    """Return a time in nanoseconds as text."""
    return f"{ns / 1e3:.2f} µs" if ns < 1e6 else f"{ns / 1e6:.2f} ms"


def report(options):
    if not Path("/proc/self/status").exists():
        raise CannotRun("the resident memory is read from /proc: run this on Linux")
    rnnfast.set_num_threads(options.threads)
    print(runtime())
    print(f"\n{'':6s}{'number':>13s}" + "".join(f"{f'p{percent:g}':>11s}" for percent in FRACTIONS), end="")
    print(f"{'max':>11s}{'seconds':>9s}   resident memory, MiB", flush=True)
    samples = Calls()
    expected = sample(samples)
    failed, start = False, time.monotonic()
    end = start + 60 * options.minutes if options.minutes else float("inf")
    while True:
        for name, kind, number in (("steps", Steps, options.steps), ("calls", Calls, options.calls)):
            begin = time.monotonic()
            latencies, done, memory = soak(kind(), name, number, end, lambda: sample(samples) == expected)
            # Medians of some readings, because the memory that the allocator keeps goes up and down a little.
            before, after = median(memory[:5]), median(memory[-5:])
            grown = after - before > GROWTH[name]
            failed = failed or grown
            times = [*map(latencies.percentile, FRACTIONS), latencies.longest]
            print(f"{name:6s}{done:>13,d}" + "".join(f"{duration(ns):>11s}" for ns in times), end="")
            print(
                f"{time.monotonic() - begin:>9.0f}   {before:.1f} to {after:.1f}{', GROWS' if grown else ''}",
                flush=True,
            )
        if not options.minutes or time.monotonic() > end:
            return int(failed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option(parser, "--steps", count, 100_000_000, "number of stream steps")
    option(parser, "--calls", count, 1_000_000, "number of calls of varied shapes")
    option(parser, "--minutes", positive, None, "repeat, and stop after this time")
    option(parser, "--threads", count, 2, "number of threads of a call")
    return run_program(parser.prog, report, parser.parse_args(), smaller="numbers")


if __name__ == "__main__":
    sys.exit(main())
