"""Draw a comparison of libraries against the limits of the machine, or print it as a table.

    python benchmarks/roofline.py one.json -o roofline.png
    python benchmarks/roofline.py one.json --table

The file holds, for each case, the seconds of each engine in each round, and the seconds that the machine needs at
least: {"cases": {case: {engine: {"seconds": [...], "agrees": true}}}, "limits": {case: [...]}, "about": {...}}.
Cases have names such as lstm-T64-N16-I128-H128-L1-bi0-train. docs/performance.md describes the measurement.
"""

import argparse
import functools
import json
import re
import sys
from pathlib import Path
from statistics import fmean, geometric_mean, median

from rnnfast.commands.engines import Case
from rnnfast.commands.program import CannotRun, run_program, save_figure
from rnnfast.commands.timing import MARKS, duration, ratio

ENGINES = {
    "rnnfast": MARKS["rnnfast"],
    "torch": MARKS["torch"],
    "onnxruntime": MARKS["onnxruntime"],
    "openvino": ("#7570b3", "^", 8),
    "jax": ("#e7298a", "v", 8),
}
LEAST = 2e-3  # GFLOP; in smaller cases the overhead of a call dominates


@functools.cache
def counts(name):
    """Return the GFLOP of a case, and the GB of weights that must be read from the caches."""
    cell, *sizes, mode, double = re.fullmatch(
        r"(lstm|gru|rnn)-T(\d+)-N(\d+)-I(\d+)-H(\d+)-L(\d+)-bi([01])-(infer|train)(-f64)?", name
    ).groups()
    T, N, I, H, layers, bidirectional = map(int, sizes)
    modes = {"infer": "inference", "train": "training"}
    case = Case(cell, T, N, I, H, layers, bool(bidirectional), modes[mode], "float64" if double else "float32")
    parameters = case.layer().parameters.items()
    # The recurrent weights are read at every step, those of the input once.
    nbytes = sum(a.nbytes * (T if name.startswith("weight_hh") else 1) for name, a in parameters if a.ndim == 2)
    return case.gflop(), 1e-9 * nbytes * (3 if mode == "train" else 1)


def rows_of(name):
    """Return the batch size of a case."""
    return int(re.search(r"-N(\d+)-", name)[1])


def rows(report):
    """Yield each case with rnnfast's seconds, the relative times of the others, and rnnfast's share of the limit."""
    for case, engines in report["cases"].items():
        own = engines["rnnfast"]["seconds"]
        peers = {
            name: ratio(row["seconds"], own) for name, row in engines.items() if name in ENGINES and row.get("agrees")
        }
        peers.pop("rnnfast")
        yield case, median(own), peers, ratio(report["limits"][case], own)


def table(report):
    """Return a Markdown table: relative times, speed-up over the fastest of the others, share of the roofline."""
    names = [name for name in ENGINES if any(name in engines for engines in report["cases"].values())][1:]
    lines = [["", "rnnfast", "GFLOP/s", *names, "speed-up", "% of roofline"], ["---", *["---:"] * (len(names) + 4)]]
    leads, shares = [], []
    for case, seconds, peers, share in rows(report):
        leads.append(min(peers.values()))
        shares.append(share)
        others = [f"{peers[name]:.2f}x" if name in peers else "" for name in names]
        rate = f"{counts(case)[0] / seconds:.3g}"
        lines.append([case, duration(seconds), rate, *others, f"{leads[-1]:.2f}", f"{share:.0%}"])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    summary = f"geometric mean {geometric_mean(leads):.2f}, lowest {min(leads):.2f}, {len(leads)} cases"
    return f"{text}\n\nSpeed-up over the fastest: {summary}."


def draw(report, path, peak, bandwidths):
    """Draw the rates of the engines, one mark per case, by arithmetic intensity.

    The cases of one batch size are drawn at their mean intensity, and those of one engine are joined by a line, so
    that the engines can be told apart in a small picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5.4), layout="constrained")
    axes = figure.add_subplot()
    intensities = {}
    for case in report["cases"]:
        gflop, nbytes = counts(case)
        if gflop > LEAST:
            intensities.setdefault(rows_of(case), []).append(gflop / nbytes)
    for shift, (name, (color, marker, size)) in enumerate(ENGINES.items(), start=-2):
        rates = {}
        for case, engines in report["cases"].items():
            row, gflop = engines.get(name, {}), counts(case)[0]
            if row.get("agrees") and gflop > LEAST:
                rates.setdefault(rows_of(case), []).append(gflop / median(row["seconds"]))
        for N, values in rates.items():
            x = fmean(intensities[N]) * 1.07**shift  # side by side
            axes.plot([x, x], [min(values), max(values)], color=color, linewidth=1.2, alpha=0.6)
            axes.plot([x] * len(values), values, marker, color=color, markersize=size - 2)
        axes.plot([], [], marker, color=color, markersize=size, label=name)
    ends = (0.6, 120)
    for bandwidth in bandwidths.values():
        reach = [ends[0], peak / bandwidth]
        axes.plot(reach, [x * bandwidth for x in reach], color="black", linewidth=1)
    for name, bandwidth in bandwidths.items():
        axes.annotate(
            f"{name} cache, {bandwidth:.0f} GB/s",
            (peak / bandwidth, peak),
            xytext=(peak / bandwidth, peak * (1.45 if bandwidth == max(bandwidths.values()) else 1.15)),
            fontsize=11,
        )
    axes.plot(ends, [peak, peak], color="black", linewidth=1.5)
    axes.text(ends[1], 1.15 * peak, f"peak, {peak:.0f} GFLOP/s", ha="right", fontsize=11)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=(3, 2 * peak))
    axes.set_xlabel("FLOP per byte of weights (about the batch size)", fontsize=12)
    axes.set_ylabel("GFLOP/s", fontsize=12)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.tick_params(labelsize=12)
    axes.grid(color="#ececec")
    axes.spines[["top", "right"]].set_visible(False)
    about = report["about"]
    axes.set_title(f"{about['cpu']}, {about['threads']} thread{'s' * (about['threads'] > 1)}, float32", fontsize=12)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=11, columnspacing=1, handletextpad=0.2)
    save_figure(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="file with the times")
    parser.add_argument("--table", action="store_true", help="print a table in Markdown")
    parser.add_argument("-o", "--output", metavar="PICTURE", help="picture to draw")
    parser.add_argument(
        "--peak", type=float, default=0, help="GFLOP/s of the machine (default: the highest limit in the file)"
    )
    parser.add_argument(
        "--bandwidth", action="append", default=[], metavar="NAME=GB/s", help="bandwidth of a cache; may be repeated"
    )
    arguments = parser.parse_args()
    if not (arguments.output or arguments.table):
        parser.error("nothing to do: give -o PICTURE, --table, or both")
    return run_program(parser.prog, report_on, arguments)


def report_on(arguments):
    try:
        report = json.loads(Path(arguments.results).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CannotRun(f"cannot read {arguments.results}: {error}") from None
    if arguments.table:
        print(table(report))
    if arguments.output:
        limits = report["limits"].items()
        peak = arguments.peak or max(counts(case)[0] / min(seconds) for case, seconds in limits)
        bandwidths = dict(text.split("=") for text in arguments.bandwidth)
        draw(report, arguments.output, peak, {name: float(rate) for name, rate in bandwidths.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
