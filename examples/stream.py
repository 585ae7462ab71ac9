"""Run an LSTM over sound as it arrives, frame by frame, and measure the latency of a million steps.

    python examples/stream.py

makes ten seconds of sound (nothing is downloaded), checks that a stream gives the same bits as one call over the whole
sound, times every step, prints the latencies and draws them to stream_latency.png. Then it serves a hundred clients
that come and go as one batch. This takes a few seconds. The weights are random, as the time does not depend on them.
"""

import argparse
import gc
import sys
import time

import numpy as np

import rnnfast
from rnnfast.commands.program import option, run_program, runtime, save_figure, save_picture, whole

RATE, FRAME, FEATURES = 16_000, 160, 64  # samples per second, samples per frame of 10 ms, features per frame
FRAMES_PER_SECOND = RATE // FRAME
TICKS = 2000  # steps of the server with its clients


def make_frames(seconds, rng):
    """Make a tone that glides up and down in noise; return the log spectrum of each frame, (frames, FEATURES)."""
    clock = np.arange(seconds * RATE) / RATE
    pitch = 1500 + 1000 * np.sin(2 * np.pi * clock / 3)
    sound = np.sin(2 * np.pi * np.cumsum(pitch) / RATE) + 0.1 * rng.standard_normal(len(clock))
    spectrum = np.abs(np.fft.rfft(sound.reshape(-1, FRAME) * np.hanning(FRAME)))
    return np.log(spectrum[:, 1 : 1 + FEATURES] + 0.01).astype(np.float32)  # 100 Hz to 6.4 kHz


def same_bits(a, b):
    return a.tobytes() == b.tobytes()


def in_real_time(rate, what):
    return f"{rate:,.0f} {what} per second: one core serves {rate / FRAMES_PER_SECOND:,.0f} streams in real time"


def show_equal(model, frames):
    """Compare results frame by frame, in chunks, and in one call; return whether they are equal."""
    frames, stream = frames[:, np.newaxis], model.stream()
    at_once, single = model(frames)[0], np.stack([*map(model.stream().step, frames)])
    chunks = np.concatenate([stream(frames[at : at + 7]) for at in range(0, len(frames), 7)])
    equal = same_bits(single, at_once) and same_bits(chunks, at_once)
    verdict = "the same bits" if equal else "THEY DIFFER"
    print(f"{len(frames):,} frames one by one, in chunks of 7, and in one call: {verdict}.")
    return equal


def measure(step, frames, steps, units):
    """Return the nanoseconds of each step, and those of reading the clock, which they include."""
    inputs, y = list(frames), np.empty(units, np.float32)
    times, clock = np.ones(steps, np.int64), time.perf_counter_ns
    gc.disable()
    try:
        for frame in inputs:  # warm up
            step(frame, out=y)
        for at in range(steps):
            frame = inputs[at % len(inputs)]
            begin = clock()
            step(frame, out=y)
            times[at] = clock() - begin
        idle = []
        for _ in range(1001):
            begin = clock()
            idle.append(clock() - begin)
    finally:
        gc.enable()
    return times, np.median(idle)


def print_latencies(times, idle):
    median, p99, p999 = np.percentile(times, [50, 99, 99.9]) / 1000
    print(f"\nLatency of {len(times):,} steps in µs, called from Python (reading the clock takes {idle / 1000:.2f}):")
    print(f"  median {median:.2f}   p99 {p99:.2f}   p99.9 {p999:.2f}   max {times.max() / 1000:.1f}")
    print(f"  p99.9 is {p999 / median:.2f} times the median.")
    print(f"  {in_real_time(1e9 / times.mean(), 'steps')} (LSTM only, {FRAMES_PER_SECOND} frames per second).\n")

    edges = [mantissa * 10**decade for decade in range(-2, 8) for mantissa in (1, 1.5, 2, 3, 5, 7)]
    counts, _ = np.histogram(times / 1000, edges)
    filled = np.flatnonzero(counts)
    for row in range(filled[0], filled[-1] + 1):
        bar = "#" * round(6 * np.log10(counts[row]) + 1) if counts[row] else ""
        print(f"  {edges[row]:>8g} to {edges[row + 1]:<8g} µs {counts[row]:>11,}  {bar}".rstrip())
    print("  (logarithmic bars: each # stands for a factor of 1.5)")


def draw(times, layer, path):
    """Draw the latencies."""
    from matplotlib.figure import Figure

    micros = times / 1000
    median, p999 = np.percentile(micros, [50, 99.9])
    low, high = micros.min(), micros.max() * 1.05
    edges = np.geomspace(low, high, 1 + max(10, int(np.log(high / low) / 0.03)))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(micros, edges, color="#6baed6")
    axes.axvline(median, color="#08519c", label=f"median {median:.2f} µs")
    axes.axvline(p999, color="#d95f02", linestyle="--", label=f"p99.9 {p999:.2f} µs")
    axes.set(xscale="log", yscale="log", xlabel="latency of a step (µs)", ylabel="number of steps")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.set_title(f"Latency of {len(times):,} steps of a stream, LSTM({FEATURES}, {layer.hidden_size}), one thread")
    axes.legend(loc="upper right", frameon=False)
    axes.grid(color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def serve(layer, frames, clients, rng):
    """Serve clients that come and go as one batch; return whether each gets the same bits as a separate stream."""
    pool = rnnfast.StreamPool(layer, clients)
    heard = {}  # by client: its first frame, and the number of frames it has heard
    y = np.empty((clients, layer.hidden_size), np.float32)
    joining, served, seconds, left, equal = (clients + 1) // 2, 0, 0.0, 0, True
    for _ in range(TICKS):
        for _ in range(joining):
            heard[pool.join()] = [int(rng.integers(len(frames))), 0]
        joining = rng.binomial(clients - len(pool), 0.01)
        if not heard:
            continue
        ids = list(heard)
        x = frames[[(begin + count) % len(frames) for begin, count in heard.values()]]
        start = time.perf_counter()
        pool.step(ids, x, out=y[: len(ids)])
        seconds += time.perf_counter() - start
        served += len(ids)
        for at, client in enumerate(ids):
            heard[client][1] += 1
            if rng.random() < 0.01:
                begin, count = heard.pop(client)
                pool.leave(client)
                alone, _ = layer(frames.take(range(begin, begin + count), axis=0, mode="wrap"))
                left, equal = left + 1, equal and same_bits(y[at], alone[-1])
    print(f"\nA pool of {served / TICKS:.0f} clients on average, which join and leave at random, as one batch:")
    print(f"  {in_real_time(served / seconds, 'frames')}.")
    print(f"  {left:,} clients left; {'each' if equal else 'NOT ALL'} had the same bits as a separate stream.")
    return equal


def main(arguments=None):
    """Run the program and return the exit status."""
    parser = argparse.ArgumentParser(
        description="Run an LSTM over sound as it arrives, and measure the latency of each step.",
        epilog="Exit status: 0 success, 1 results differ, 2 error, 130 stopped by Ctrl-C.",
    )
    option(parser, "--steps", whole(1, 10**8), 1_000_000, "steps to time")
    option(parser, "--hidden", whole(1, 4096), 64, "units of the LSTM")
    option(parser, "--clients", whole(1, 1000), 100, "capacity of the pool")
    option(parser, "--seed", whole(0, 2**32), 0, "random seed")
    parser.add_argument("--plot", metavar="FILE", default="stream_latency.png", help="picture (default: %(default)s)")
    return run_program("stream.py", report, parser.parse_args(arguments))


def report(run):
    """Check the results, measure the latencies, serve the clients, and report all of it."""
    rnnfast.set_num_threads(1)
    rng = np.random.default_rng(run.seed)
    frames = make_frames(10, rng)
    layer = rnnfast.LSTM(FEATURES, run.hidden, rng=rng)
    model = rnnfast.Sequential(layer, rnnfast.Linear(run.hidden, 2, rng=rng))
    model.freeze()  # constant weights are packed once
    print(f"Sound: 10 seconds in frames of 10 ms with {FEATURES} features.")
    print(f"Model: LSTM({FEATURES}, {run.hidden}) and Linear({run.hidden}, 2).")
    print(f"{runtime()}.\n")
    equal = show_equal(model, frames)
    times, idle = measure(layer.stream().step, frames, run.steps, run.hidden)
    print_latencies(times, idle)
    print()
    save_picture(run.plot, draw, times, layer)
    equal &= serve(layer, frames, run.clients, rng)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
