"""Draw, or print as a table, a side-by-side comparison against the limit of the machine.

    python benchmarks/roofline.py one.json -o roofline.png
    python benchmarks/roofline.py one.json --table

The file holds, for each case, the seconds of each engine in each round, and what the machine could do at the most:
{"cases": {case: {engine: {"seconds": [...], "agrees": true}}}, "limits": {case: [...]}, "about": {...}}. A case is
named like lstm-T64-N16-I128-H128-L1-bi0-train. docs/performance.md says how it is measured.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from statistics import geometric_mean, median

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
MARKS = {
    "rnnfast": ("#08519c", "o", 9),
    "torch": ("#d95f02", "D", 5),
    "onnxruntime": ("#1b9e77", "s", 5),
    "openvino": ("#7570b3", "^", 6),
    "jax": ("#e7298a", "v", 6),
}


def counts(case):
    """Multiply-adds that a case needs, and the bytes of weights that it must read from the caches to make them."""
    cell, *sizes, mode, double = re.fullmatch(
        r"(lstm|gru|rnn)-T(\d+)-N(\d+)-I(\d+)-H(\d+)-L(\d+)-bi([01])-(infer|train)(-f64)?", case
    ).groups()
    T, N, I, H, L, bi = map(int, sizes)
    products, read, features = 0, 0, I
    for _ in range(L):
        products += (1 + bi) * T * N * GATES[cell] * H * (features + H)
        read += (1 + bi) * GATES[cell] * H * (T * H + features)
        features = (1 + bi) * H
    passes = 3 if mode == "train" else 1
    return products * passes, read * passes * (8 if double else 4)


def ratios(other, own):
    """Of one round each, the median."""
    return median(a / b for a, b in zip(other, own, strict=True))


def rows(report):
    """Of each case: its name, rnnfast's seconds, each peer's time over rnnfast's, and rnnfast's share of the limit."""
    for case, engines in report["cases"].items():
        own = engines["rnnfast"]["seconds"]
        peers = {
            name: ratios(row["seconds"], own) for name, row in engines.items() if name in MARKS and row.get("agrees")
        }
        peers.pop("rnnfast")
        yield case, median(own), peers, ratios(report["limits"][case], own)


def duration(seconds):
    unit, scale = next((unit, scale) for unit, scale in [("s", 1), ("ms", 1e3), ("µs", 1e6)] if seconds * scale >= 1)
    return f"{seconds * scale:.3g} {unit}"


def table(report):
    """Markdown: times of the peers over rnnfast's, the lead over the fastest, and the share of the limit."""
    names = [name for name in MARKS if any(name in engines for engines in report["cases"].values())][1:]
    lines = [["", "rnnfast", "GFLOP/s", *names, "lead", "of limit"], ["---", *["---:"] * (len(names) + 4)]]
    leads, shares = [], []
    for case, seconds, peers, share in rows(report):
        leads.append(min(peers.values()))
        shares.append(share)
        others = [f"{peers[name]:.2f}x" if name in peers else "" for name in names]
        rate = f"{2e-9 * counts(case)[0] / seconds:.3g}"
        lines.append([case, duration(seconds), rate, *others, f"{leads[-1]:.2f}", f"{share:.0%}"])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\nLead: geometric mean {geometric_mean(leads):.2f}, least {min(leads):.2f}, {len(leads)} cases."


def draw(report, path, peak, bandwidths):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 6.5), layout="constrained")
    for name, (color, marker, size) in reversed(MARKS.items()):
        points = []
        for case, engines in report["cases"].items():
            row = engines.get(name, {})
            products, read = counts(case)
            if row.get("agrees") and products > 1e6:  # below, the call itself is what takes the time
                points.append((2 * products / read, 2e-9 * products / median(row["seconds"])))
        # Side by side, as many cases have one intensity.
        shift = 1 + 0.035 * (list(MARKS).index(name) - 2)
        axes.plot(
            [x * shift for x, _ in points], [y for _, y in points], marker, color=color, markersize=size, label=name
        )
    ends = [0.5, 150]
    for label, bandwidth in bandwidths.items():
        reach = [x for x in (0.5, peak / bandwidth) if x <= peak / bandwidth]
        axes.plot(reach, [x * bandwidth for x in reach], color="black", linewidth=1)
        axes.text(0.52, 0.55 * bandwidth, f"{label}, {bandwidth:.0f} GB/s", rotation=38, fontsize=9)
    axes.plot(ends, [peak, peak], color="black", linewidth=1.5)
    axes.text(ends[1], 1.04 * peak, f"multiply-adds, {peak:.0f} GFLOP/s", ha="right", fontsize=9)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=(2, 1.5 * peak))
    axes.set_xlabel("arithmetic for each byte of weights read, FLOP/byte: near the number of rows of the batch")
    axes.set_ylabel("GFLOP/s")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(which="both", color="#ececec")
    about = report["about"]
    threads = f"{about['threads']} thread{'s' * (about['threads'] > 1)}"
    axes.set_title(f"RNN, LSTM and GRU, inference and training, float32, {threads}, {about['cpu']}", fontsize=11)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="lower right")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="the file with the times")
    parser.add_argument("--table", action="store_true", help="print a table in Markdown")
    parser.add_argument("-o", "--output", metavar="PICTURE", help="draw into this file")
    parser.add_argument(
        "--peak", type=float, default=0, help="GFLOP/s of the machine (default: the best limit in the file)"
    )
    parser.add_argument(
        "--bandwidth", action="append", default=[], metavar="NAME=GB/s", help="a cache's; may be repeated"
    )
    arguments = parser.parse_args()
    if not (arguments.output or arguments.table):
        parser.error("say what is wanted: -o PICTURE, --table, or both")
    try:
        report = json.loads(Path(arguments.results).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: cannot read {arguments.results}: {error}")
    if arguments.table:
        print(table(report))
    if arguments.output:
        limits = report["limits"].items()
        peak = arguments.peak or max(2e-9 * counts(case)[0] / min(seconds) for case, seconds in limits)
        bandwidths = dict(text.split("=") for text in arguments.bandwidth)
        draw(report, arguments.output, peak, {name: float(rate) for name, rate in bandwidths.items()})


if __name__ == "__main__":
    main()
