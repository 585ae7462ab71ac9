"""What a step of data-parallel training takes with one and with two processes, and on paper with a thousand.

    python benchmarks/data_parallel.py            measures, prints tables in Markdown
    python benchmarks/data_parallel.py --processes 500 --alpha 5e-6 --bandwidth 3e9

Each process has one thread, and a share of its own of the same size however many there are. It needs mpi4py and an
mpiexec: pip install 'rnnfast[mpi]'.
"""

import argparse
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

SIZES = {  # steps, rows in each process, units and features
    "T=50 N=16 H=64": (50, 16, 64),
    "T=64 N=32 H=256": (64, 32, 256),
    "T=20 N=32 H=512": (20, 32, 512),
}
NETWORKS = {  # seconds to start a message, bytes per second; of the kind, not of a machine that was measured
    "10 Gbit/s Ethernet (30 µs, 1.25 GB/s)": (30e-6, 1.25e9),
    "100 Gbit/s InfiniBand (2 µs, 12.5 GB/s)": (2e-6, 12.5e9),
}
ALLOWED = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
TURNS, SECONDS = 2, 2  # runs of each kind, and time for a size in each


def measure():
    """In each process: the least of many rounds, of the slower process, in seconds."""
    import numpy as np
    from mpi4py import MPI

    import rnnfast

    comm = MPI.COMM_WORLD
    found = {}
    for name, (T, N, H) in SIZES.items():
        rng = np.random.default_rng(comm.Get_rank())
        lstm = rnnfast.LSTM(H, H, rng=rng)
        parallel = rnnfast.training.DataParallel(lstm.parameters, comm)
        adam = rnnfast.training.Adam(lstm.parameters)
        x, target = (rng.normal(size=(T, N, H)).astype(np.float32) for _ in range(2))
        message = np.zeros(sum(array.size for array in lstm.parameters.values()) + 2, np.float32)
        times = {part: [] for part in ("compute", "update", "average", "Allreduce", "step")}
        rounds = math.inf
        for turn in itertools.count():
            comm.Barrier()
            marks, busy = [time.perf_counter()], [time.thread_time()]
            y, _, tape = lstm.forward(x)
            _, dy = rnnfast.training.mean_squared_error(y, target)
            gradients = lstm.backward(tape, dy).parameters
            busy.append(time.thread_time())
            averaged = parallel.average(gradients, N)
            busy.append(time.thread_time())
            adam.step(averaged)
            busy.append(time.thread_time())
            marks.append(time.perf_counter())
            comm.Barrier()  # to time the Allreduce without the wait for the slower process
            marks.append(time.perf_counter())
            comm.Allreduce(MPI.IN_PLACE, message)
            marks.append(time.perf_counter())
            if turn == 2:  # the first rounds warm up; process 0 says how many there are
                rounds = comm.bcast(3 + max(10, min(500, int(SECONDS / (marks[-1] - marks[0])))))
            elif turn > 2:
                compute, average, update = (b - a for a, b in itertools.pairwise(busy))
                step, _, allreduce = (b - a for a, b in itertools.pairwise(marks))
                for part, seconds in zip(times, (compute, update, average, allreduce, step), strict=True):
                    times[part].append(seconds)
            if turn + 1 == rounds:
                break
        found[name] = {part: comm.allreduce(min(values), MPI.MAX) for part, values in times.items()}
        found[name]["bytes"] = message.nbytes
        found[name]["sum"] = min(summing(np, message) for _ in range(5)) / message.nbytes
    if comm.Get_rank() == 0:
        print(json.dumps(found))


def summing(np, message):
    """Seconds to add an array of this size to another: what a process computes within an Allreduce."""
    other = np.zeros_like(message)
    start = time.perf_counter()
    np.add(message, other, out=other)
    return time.perf_counter() - start


def run(count):
    mpiexec = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if mpiexec is None:
        sys.exit("there is no mpiexec: pip install 'rnnfast[mpi]' brings that of Open MPI")
    environment = {**os.environ, **ALLOWED, **dict.fromkeys(("RNNFAST_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
    command = [mpiexec, "-n", str(count), sys.executable, "-m", "mpi4py", __file__, "--measure"]
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout)


def allreduce_on_paper(processes, nbytes, alpha, bandwidth, summing):
    """Halving and doubling: reduce-scatter, then all-gather, in log2(p) rounds each.

    Source: R. Thakur, R. Rabenseifner and W. Gropp, "Optimization of collective communication operations in MPICH",
    2005.
    """
    share = (processes - 1) / processes * nbytes
    return 2 * math.log2(processes) * alpha + 2 * share / bandwidth + share * summing


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=1000, help="on paper (default: 1000)")
    parser.add_argument("--alpha", type=float, help="seconds to start a message")
    parser.add_argument("--bandwidth", type=float, help="bytes per second of a process")
    arguments = parser.parse_args()
    if arguments.measure:
        measure()
        return
    networks = NETWORKS
    if arguments.alpha is not None and arguments.bandwidth is not None:
        networks = {f"{arguments.alpha:g} s, {arguments.bandwidth:g} bytes/s": (arguments.alpha, arguments.bandwidth)}
    load = os.getloadavg()[0]
    runs = [(run(1), run(2)) for _ in range(TURNS)]
    best = [
        {name: {part: min(pair[k][name][part] for pair in runs) for part in runs[0][k][name]} for name in SIZES}
        for k in range(2)
    ]
    print(f"LSTM in float32, Adam, one thread, {os.cpu_count()} processors, load before: {load:.1f}.")
    print("Milliseconds, the least of many rounds: of processor time for compute, copies and update; by the clock for")
    print("Allreduce and step.\n")
    print(
        "| | message | compute, of 1 | of 2 | copies | update | Allreduce | efficiency by parts | step, of 1 | of 2 |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name in SIZES:
        one, two = best[0][name], best[1][name]
        cells = [one["compute"], two["compute"], one["average"], two["update"], two["Allreduce"]]
        efficiency = (one["compute"] + one["update"]) / (sum(cells) - one["compute"])
        steps = f"{1e3 * one['step']:.3g} | {1e3 * two['step']:.3g}"
        milliseconds = " | ".join(f"{1e3 * seconds:.3g}" for seconds in cells)
        print(f"| {name} | {one['bytes'] / 1e6:.3g} MB | {milliseconds} | {efficiency:.0%} | {steps} |")

    print(f"\nOn paper, {arguments.processes} processes, one on each machine, the same share in each:\n")
    print("| | network | Allreduce, ms | step, ms | efficiency | rows in each process for 90% |")
    print("|---|---|---:|---:|---:|---:|")
    for name, (_, N, _) in SIZES.items():
        one = best[0][name]
        for network, (alpha, bandwidth) in networks.items():
            allreduce = allreduce_on_paper(arguments.processes, one["bytes"], alpha, bandwidth, one["sum"])
            alone, added = one["compute"] + one["update"], one["average"] + allreduce
            # Compute goes with the rows, all else does not: (compute n + update) / (... + added) = 0.9.
            rows = math.ceil(N * max(0, 9 * added - one["update"]) / one["compute"])
            figures = f"{1e3 * allreduce:.3g} | {1e3 * (alone + added):.3g} | {alone / (alone + added):.0%} | {rows}"
            print(f"| {name} | {network} | {figures} |")


if __name__ == "__main__":
    main()
