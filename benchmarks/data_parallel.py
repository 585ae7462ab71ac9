"""Time a step of data-parallel training with one and two processes, and estimate it for many.

    python benchmarks/data_parallel.py            measures, and prints tables in Markdown
    python benchmarks/data_parallel.py --processes 500 --alpha 5e-6 --bandwidth 3e9

Each process has one thread and its own rows, as many as in a single process (weak scaling). Needs mpi4py and mpiexec:
pip install 'rnnfast[mpi]'.
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

SIZES = {  # time steps, rows per process, units and features
    "T=50 N=16 H=64": (50, 16, 64),
    "T=64 N=32 H=256": (64, 32, 256),
    "T=20 N=32 H=512": (20, 32, 512),
}
NETWORKS = {  # latency in seconds, bytes per second; typical values
    "10 Gbit/s Ethernet (30 µs, 1.25 GB/s)": (30e-6, 1.25e9),
    "100 Gbit/s InfiniBand (2 µs, 12.5 GB/s)": (2e-6, 12.5e9),
}
ALLOWED = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
TURNS, SECONDS = 2, 2  # runs of each kind, and seconds per size


def measure():
    """Print the minimum seconds over many rounds, of the slower process; runs in each process."""
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
            comm.Barrier()  # so that Allreduce is timed without waiting for the slower process
            marks.append(time.perf_counter())
            comm.Allreduce(MPI.IN_PLACE, message)
            marks.append(time.perf_counter())
            if turn == 2:  # the first rounds warm up; process 0 chooses their number
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
    """Time the addition of two arrays of this size, which is the arithmetic of an Allreduce."""
    other = np.zeros_like(message)
    start = time.perf_counter()
    np.add(message, other, out=other)
    return time.perf_counter() - start


def run(count):
    mpiexec = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if mpiexec is None:
        sys.exit("mpiexec is not installed: pip install 'rnnfast[mpi]' installs that of Open MPI")
    environment = {**os.environ, **ALLOWED, **dict.fromkeys(("RNNFAST_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
    command = [mpiexec, "-n", str(count), sys.executable, "-m", "mpi4py", __file__, "--measure"]
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout)


def estimate_allreduce(processes, nbytes, alpha, bandwidth, summing):
    """Estimate an Allreduce by halving and doubling: reduce-scatter, then all-gather, in log2(p) rounds each.

    Source: R. Thakur, R. Rabenseifner and W. Gropp, "Optimization of collective communication operations in MPICH",
    2005.
    """
    share = (processes - 1) / processes * nbytes
    return 2 * math.log2(processes) * alpha + 2 * share / bandwidth + share * summing


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=1000, help="processes in the estimate (default: 1000)")
    parser.add_argument("--alpha", type=float, help="latency of a message in seconds")
    parser.add_argument("--bandwidth", type=float, help="bandwidth of a process in bytes per second")
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
    print(f"LSTM in float32, Adam, one thread, {os.cpu_count()} processors, load average before: {load:.1f}.")
    print("Milliseconds, the minimum of many rounds: CPU time for compute, copies and update; elapsed time for")
    print("Allreduce and step.\n")
    print("| | message | compute, 1 process | 2 | copies | update | Allreduce | efficiency | step, 1 process | 2 |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name in SIZES:
        one, two = best[0][name], best[1][name]
        cells = [one["compute"], two["compute"], one["average"], two["update"], two["Allreduce"]]
        efficiency = (one["compute"] + one["update"]) / (sum(cells) - one["compute"])
        steps = f"{1e3 * one['step']:.3g} | {1e3 * two['step']:.3g}"
        milliseconds = " | ".join(f"{1e3 * seconds:.3g}" for seconds in cells)
        print(f"| {name} | {one['bytes'] / 1e6:.3g} MB | {milliseconds} | {efficiency:.0%} | {steps} |")

    print(f"\nEstimate for {arguments.processes} processes, one per machine, with the same rows each:\n")
    print("| | network | Allreduce, ms | step, ms | efficiency | rows per process for 90% |")
    print("|---|---|---:|---:|---:|---:|")
    for name, (_, N, _) in SIZES.items():
        one = best[0][name]
        for network, (alpha, bandwidth) in networks.items():
            allreduce = estimate_allreduce(arguments.processes, one["bytes"], alpha, bandwidth, one["sum"])
            alone, added = one["compute"] + one["update"], one["average"] + allreduce
            # Only compute grows with the rows: solve (compute n + update) / (compute n + update + added) = 0.9.
            rows = math.ceil(N * max(0, 9 * added - one["update"]) / one["compute"])
            figures = f"{1e3 * allreduce:.3g} | {1e3 * (alone + added):.3g} | {alone / (alone + added):.0%} | {rows}"
            print(f"| {name} | {network} | {figures} |")


if __name__ == "__main__":
    main()
