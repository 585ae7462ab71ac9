"""How memory and time grow, and what a busy neighbour costs.

    python benchmarks/scaling.py memory                     peak of training, in each engine's own process
    python benchmarks/scaling.py growth -o growth.png       time per step, per row, and per multiply-add as sizes grow
    python benchmarks/scaling.py neighbour                  two threads while another process burns a processor

Engines that are not installed are left out, and named. Linux only: memory is read from /proc.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

MEMORY = {"T=1000 N=8 I=64 H=128": (1000, 8, 64, 128), "T=50 N=64 I=512 H=512": (50, 64, 512, 512)}
CELLS = ("lstm", "gru", "rnn_tanh")
NEIGHBOUR = {
    "lstm forward T=100 N=1 I=256 H=256": ("lstm", 100, 1, 256, 256, False),
    "lstm forward T=64 N=32 I=256 H=256": ("lstm", 64, 32, 256, 256, False),
    "gru training T=64 N=16 I=128 H=128": ("gru", 64, 16, 128, 128, True),
    "lstm training T=1000 N=8 I=64 H=128": ("lstm", 1000, 8, 64, 128, True),
}


def prepare(engine, cell, T, N, I, H, training, threads):
    """The call of an engine on random data; None where it is not installed."""
    import numpy as np
    import pytest
    from engines import ENGINES
    from support.problems import problem

    try:
        return ENGINES[engine](problem(cell, T, N, I, H, dtype=np.float32), training, threads)[0]
    except pytest.skip.Exception:
        return None


def seconds(call, least=0.05):
    """Of one call, the best of several turns of at least so long."""
    call()
    start = time.perf_counter()
    call()
    repeats = max(1, int(least / 3 / (time.perf_counter() - start)))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        best = min(best, (time.perf_counter() - start) / repeats)
    return best


def resident(name):
    """VmRSS or VmHWM, its peak, in MiB."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 1024


def report_memory(engine, cell, sizes):
    """In a process of its own: how much memory some steps of training add at the most."""
    tiny = prepare(engine, cell, 2, 2, 4, 4, True, 1)  # what is loaded at the first call is not the sequence's
    if tiny is None:
        print("null")
        return
    tiny()
    call = prepare(engine, cell, *sizes, True, 1)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    for _ in range(5):
        result = call()
    del result
    print(json.dumps(resident("VmHWM") - before))


def memory(_):
    print("Growth of resident memory at the peak of training, MiB (5 steps, one thread)\n")
    print(f"{'':32s}{'rnnfast':>10s}{'torch':>10s}")
    for name, sizes in MEMORY.items():
        for cell in CELLS:
            peaks = []
            for engine in ("rnnfast", "torch"):
                command = [sys.executable, __file__, "memory-of", engine, cell, *map(str, sizes)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                peaks.append(json.loads(done.stdout.splitlines()[-1]))
            texts = ["not there" if peak is None else f"{peak:.1f}" for peak in peaks]
            print(f"{cell:9s} {name:22s}{texts[0]:>10s}{texts[1]:>10s}", flush=True)


def growth(arguments):
    """Each series: its title, the axis, and points (size, what the time is divided by, the call's sizes)."""
    steps = (100, 300, 1000, 3000, 10_000, 30_000, 100_000)
    rows = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    widths = (64, 96, 128, 192, 256, 384, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048)
    series = [
        ("forward, N=1 H=128", "steps T", "µs per step", [(T, T, (T, 1, 128, 128, False)) for T in steps]),
        ("training, N=8 H=64", "steps T", "µs per step", [(T, T, (T, 8, 64, 64, True)) for T in steps]),
        ("forward, T=20 H=128", "rows N", "µs per row", [(N, N, (20, N, 128, 128, False)) for N in rows]),
        ("training, T=20 H=128", "rows N", "µs per row", [(N, N, (20, N, 128, 128, True)) for N in rows]),
        *(
            (f"forward, T={T} N={N}", "units H", "ns per 1000 multiply-adds", [
                (H, T * N * 8 * H * H / 1e6, (T, N, H, H, False)) for H in widths
            ])
            for T, N in ((20, 1), (10, 32))
        ),
    ]  # fmt: skip
    drawn = []
    for title, axis, unit, points in series:
        times = []
        for size, parts, sizes in points:
            times.append(1e6 * seconds(prepare("rnnfast", "lstm", *sizes, arguments.threads)) / parts)
            print(f"LSTM {title:22s} {axis} = {size:<7d} {times[-1]:9.3f} {unit}", flush=True)
        spread = max(times) / min(times)
        print(f"LSTM {title}: greatest over least {spread:.2f}\n")
        drawn.append((f"{title} (greatest/least {spread:.2f})", axis, unit, [point[0] for point in points], times))
    if arguments.output:
        draw(drawn, arguments.output, arguments.threads)


def draw(drawn, path, threads):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 2, figsize=(11, 10), layout="constrained")
    for place, (title, axis, unit, sizes, times) in zip(axes.flat, drawn, strict=True):
        place.plot(sizes, times, "o-", color="#08519c")
        place.set(title=title, xlabel=axis, ylabel=unit, xscale="log", ylim=(0, 1.25 * max(times)))
        if axis == "units H":
            place.set_xticks([64, 128, 256, 512, 1024, 2048], ["64", "128", "256", "512", "1024", "2048"])
            place.minorticks_off()
        place.grid(color="#e4e4e4")
    figure.suptitle(f"LSTM in float32, {threads} thread{'s' * (threads > 1)}: time as sizes grow (flat is linear)")
    figure.savefig(path, dpi=110)


def burn():
    while True:
        pass


def neighbour(_):
    print("Time with 2 threads while another process burns a processor, over the undisturbed time with 1 thread\n")
    engines = ("rnnfast", "torch", "onnxruntime")
    print(f"{'':38s}" + "".join(f"{engine:>14s}" for engine in engines))
    for name, case in NEIGHBOUR.items():
        texts = []
        for engine in engines:
            *sizes, training = case
            command = [sys.executable, __file__, "neighbour-of", engine, *map(str, sizes), str(int(training))]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            ratio = json.loads(done.stdout.splitlines()[-1])
            texts.append("-" if ratio is None else f"x{ratio:.2f}")
        print(f"{name:38s}" + "".join(f"{text:>14s}" for text in texts), flush=True)


def report_neighbour(engine, case, training):
    """In a process of its own: the ratio, the two taken in turn."""
    if training and engine == "onnxruntime":
        print("null")
        return
    times = {1: [], 2: []}
    for _ in range(7):
        for threads in (1, 2):
            call = prepare(engine, *case, training, threads)
            if call is None:
                print("null")
                return
            burner = multiprocessing.Process(target=burn, daemon=True)
            if threads == 2:
                burner.start()
            call()
            start, calls = time.perf_counter(), 0
            while time.perf_counter() < start + 0.4:
                call()
                calls += 1
            times[threads].append((time.perf_counter() - start) / calls)
            if threads == 2:
                burner.kill()
                burner.join()
    print(json.dumps(median(times[2]) / median(times[1])))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "growth", "neighbour"])
    parser.add_argument("--threads", type=int, default=1, help="for growth (default: 1)")
    parser.add_argument("-o", "--output", metavar="PICTURE", help="for growth: draw into this file")
    arguments = parser.parse_args()
    {"memory": memory, "growth": growth, "neighbour": neighbour}[arguments.what](arguments)


if __name__ == "__main__":
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "2" if "neighbour-of" in sys.argv else "1")
    if sys.argv[1:2] == ["memory-of"]:
        report_memory(*sys.argv[2:4], list(map(int, sys.argv[4:])))
    elif sys.argv[1:2] == ["neighbour-of"]:
        cell, *sizes, training = sys.argv[3:]
        report_neighbour(sys.argv[2], (cell, *map(int, sizes)), training == "1")
    else:
        main()
