"""How memory and time grow with the sizes, and what a noisy neighbour costs.

    python benchmarks/scaling.py memory                     peak memory of training, by engine
    python benchmarks/scaling.py growth -o growth.png       time per step, row and multiply-add as sizes grow
    python benchmarks/scaling.py neighbour                  two threads while another process keeps a core busy

Engines that are not installed are left out. Linux only: memory is read from /proc.
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

MEMORY = {"T=1000 N=8 I=64 H=128": (1000, 8, 64, 128), "T=50 N=64 I=512 H=512": (50, 64, 512, 512)}
CELLS = ("lstm", "gru", "rnn")
NEIGHBOUR = [
    ("lstm", 100, 1, 256, 256, "inference"),
    ("lstm", 64, 32, 256, 256, "inference"),
    ("gru", 64, 16, 128, 128, "training"),
    ("lstm", 1000, 8, 64, 128, "training"),
]


def prepare(engine, cell, T, N, I, H, mode, threads):
    """Return the call of an engine on random data; None if it cannot run the case."""
    from rnnfast.commands.engines import ENGINES, Case
    from rnnfast.commands.program import CannotRun

    try:
        return ENGINES[engine](Case(cell, T, N, I, H, mode=mode), threads)[0]
    except (CannotRun, ImportError):
        return None


def seconds(call):
    """Time a call: the best of several turns of some milliseconds."""
    from rnnfast.commands.timing import timed

    return min(timed(call, 0.017) for _ in range(5))


def resident(name):
    """Return VmRSS or VmHWM, its peak, in MiB."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 1024


def report_memory(engine, cell, sizes):
    """Print by how much training raises the peak memory; runs in its own process."""
    tiny = prepare(engine, cell, 2, 2, 4, 4, "training", 1)  # loads the code, which is not counted
    if tiny is None:
        print("null")
        return
    tiny()
    call = prepare(engine, cell, *sizes, "training", 1)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    for _ in range(5):
        result = call()
    del result
    print(json.dumps(resident("VmHWM") - before))


def memory(_):
    print("Growth of the peak resident memory in training, MiB (5 updates, one thread)\n")
    print(f"{'':32s}{'rnnfast':>10s}{'torch':>10s}")
    for name, sizes in MEMORY.items():
        for cell in CELLS:
            peaks = []
            for engine in ("rnnfast", "torch"):
                command = [sys.executable, __file__, "memory-of", engine, cell, *map(str, sizes)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                peaks.append(json.loads(done.stdout.splitlines()[-1]))
            texts = ["-" if peak is None else f"{peak:.1f}" for peak in peaks]
            print(f"{cell:9s} {name:22s}{texts[0]:>10s}{texts[1]:>10s}", flush=True)


def growth(arguments):
    """Time calls of growing sizes, and draw the time per step, row or multiply-add."""
    steps = (100, 300, 1000, 3000, 10_000, 30_000, 100_000)
    rows = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    widths = (64, 96, 128, 192, 256, 384, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048)
    # For each series: title, axis, unit, and points (size, divisor of the time, sizes of the call).
    series = [
        ("inference, N=1 H=128", "steps T", "µs per step", [(T, T, (T, 1, 128, 128, "inference")) for T in steps]),
        ("training, N=8 H=64", "steps T", "µs per step", [(T, T, (T, 8, 64, 64, "training")) for T in steps]),
        ("inference, T=20 H=128", "batch size N", "µs per row", [(N, N, (20, N, 128, 128, "inference")) for N in rows]),
        ("training, T=20 H=128", "batch size N", "µs per row", [(N, N, (20, N, 128, 128, "training")) for N in rows]),
        *(
            (f"inference, T={T} N={N}", "units H", "ns per 1000 multiply-adds", [
                (H, T * N * 8 * H * H / 1e6, (T, N, H, H, "inference")) for H in widths
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
        print(f"LSTM {title}: maximum / minimum {spread:.2f}\n")
        drawn.append((f"{title} (max/min {spread:.2f})", axis, unit, [point[0] for point in points], times))
    if arguments.output:
        draw(drawn, arguments.output, arguments.threads)


def draw(drawn, path, threads):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 2, figsize=(8.5, 8.5), layout="constrained")
    for panel, (title, axis, unit, sizes, times) in zip(axes.flat, drawn, strict=True):
        panel.plot(sizes, times, "o-", color="#08519c")
        panel.set(title=title, xlabel=axis, ylabel=unit, xscale="log", ylim=(0, 1.25 * max(times)))
        if axis == "units H":
            panel.set_xticks([64, 128, 256, 512, 1024, 2048], ["64", "128", "256", "512", "1024", "2048"])
            panel.minorticks_off()
        panel.grid(color="#e4e4e4")
    figure.suptitle(f"LSTM in float32, {threads} thread{'s' * (threads > 1)}: time as sizes grow (flat means linear)")
    figure.savefig(path, dpi=110)


def burn():
    while True:
        pass


def neighbour(_):
    print("Time of 2 threads while another process keeps a core busy, relative to 1 thread undisturbed\n")
    engines = ("rnnfast", "torch", "onnxruntime")
    print(f"{'':38s}" + "".join(f"{engine:>14s}" for engine in engines))
    for case in NEIGHBOUR:
        texts = []
        for engine in engines:
            command = [sys.executable, __file__, "neighbour-of", engine, *map(str, case)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            ratio = json.loads(done.stdout.splitlines()[-1])
            texts.append("-" if ratio is None else f"x{ratio:.2f}")
        cell, T, N, I, H, mode = case
        name = f"{cell} {mode} T={T} N={N} I={I} H={H}"
        print(f"{name:38s}" + "".join(f"{text:>14s}" for text in texts), flush=True)


def report_neighbour(engine, case):
    """Print the ratio of the two times, which are taken in turns; runs in its own process."""
    times = {1: [], 2: []}
    for _ in range(7):
        for threads in (1, 2):
            call = prepare(engine, *case, threads)
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
    parser.add_argument("--threads", type=int, default=1, help="growth: number of threads (default: 1)")
    parser.add_argument("-o", "--output", metavar="PICTURE", help="growth: picture to draw")
    arguments = parser.parse_args()
    {"memory": memory, "growth": growth, "neighbour": neighbour}[arguments.what](arguments)


if __name__ == "__main__":
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "2" if "neighbour-of" in sys.argv else "1")
    if sys.argv[1:2] == ["memory-of"]:
        report_memory(*sys.argv[2:4], list(map(int, sys.argv[4:])))
    elif sys.argv[1:2] == ["neighbour-of"]:
        cell, *sizes, mode = sys.argv[3:]
        report_neighbour(sys.argv[2], (cell, *map(int, sizes), mode))
    else:
        main()
