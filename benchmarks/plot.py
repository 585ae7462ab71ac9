"""Draw, or print as a table, what the benchmarks measured.

    pytest benchmarks --benchmark-json=speed.json
    python benchmarks/plot.py speed.json -o speed.png
    python benchmarks/plot.py speed.json --table --only lstm

Times are the least of all rounds. The engine that comes first in the file, which is rnnfast with the machine's best
instruction set unless -k left it out, is what the others are compared with.
"""

import argparse
import json
import sys
from pathlib import Path


class CannotDraw(Exception):
    """Something the user can mend; its text says what."""


def read(path, only):
    """What the numbers hold for, the engines' names, and each case's results by engine; all in the order run."""
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        cases, engines = {}, {}
        for benchmark in report["benchmarks"]:
            if only in benchmark["group"]:
                engines[benchmark["name"]] = True
                cases.setdefault(benchmark["group"], {})[benchmark["name"]] = {
                    "seconds": benchmark["stats"]["min"],
                    "GFLOP/s": benchmark["extra_info"]["GFLOP/s"],
                }
        machine = report["machine_info"]
        threads = machine["threads"]
        versions = [f"{name} {version}" for name, version in machine["versions"].items() if version]
    except OSError as error:
        raise CannotDraw(f"cannot read {path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise CannotDraw(f"{path} was not written by pytest benchmarks --benchmark-json={path}: {error!r}") from None
    if not cases:
        raise CannotDraw(f"{path} holds no case with {only!r} in its name")
    base = next(iter(engines))
    for case, timed in cases.items():
        if base not in timed:
            raise CannotDraw(f"{path} has no time of {base} for {case}: measure all engines of a case in one run")
    processor = machine.get("cpu", {}).get("brand_raw", machine.get("machine", "unknown processor"))
    return f"{processor}, {threads} thread{'s' * (threads > 1)}; {', '.join(versions)}", list(engines), cases


def duration(seconds):
    unit, scale = next((unit, scale) for unit, scale in [("s", 1), ("ms", 1e3), ("µs", 1e6)] if seconds * scale >= 1)
    return f"{seconds * scale:.3g} {unit}"


def table(about, engines, cases):
    """Markdown: the time of the first engine, and how many times as long the others take."""
    base, *others = engines
    lines = [["", base, "GFLOP/s", *others], ["---", *["---:"] * (len(engines) + 1)]]
    for case, timed in cases.items():
        seconds = timed[base]["seconds"]
        ratios = [f"{timed[name]['seconds'] / seconds:.2f}x" if name in timed else "" for name in others]
        lines.append([case, duration(seconds), f"{timed[base]['GFLOP/s']:.3g}", *ratios])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{about}."


def draw(about, engines, cases, path):
    """A row for each case, a mark for each engine."""
    try:
        import matplotlib
    except ImportError:
        raise CannotDraw("the picture needs matplotlib: pip install matplotlib (--table does without)") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    base = engines[0]
    own = [name for name in engines if name.startswith("rnnfast")]
    blues = dict(zip(own, matplotlib.colormaps["Blues"]([0.95, 0.7, 0.5, 0.3]), strict=False))
    others = {"torch": ("#d95f02", "D"), "onnxruntime": ("#1b9e77", "s"), "reference": ("#7f7f7f", "X")}

    figure, axes = pyplot.subplots(figsize=(11, 1.9 + 0.27 * len(cases)), layout="constrained")
    for name in engines:
        color, marker = others.get(name, (blues.get(name), "o"))
        rows = [row for row, timed in enumerate(cases.values()) if name in timed]
        ratios = [timed[name]["seconds"] / timed[base]["seconds"] for timed in cases.values() if name in timed]
        axes.plot(ratios, rows, marker, color=color, markersize=7, label=name, zorder=3 + (name == base))

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}x")
    axes.xaxis.set_minor_formatter(lambda ratio, _: f"{ratio:g}x" if f"{ratio:e}"[0] in "25" else "")
    axes.tick_params(axis="x", which="both", labeltop=len(cases) > 20)
    axes.set_xlabel(
        f"time of a call over that of {base} (left of 1x: faster); on the right {base}'s own\n"
        "T steps, batch N, input size I, hidden size H, of a linear layer output size O"
    )
    axes.set_yticks(range(len(cases)), cases)
    axes.set_ylim(len(cases) - 0.4, -0.6)
    axes.axvline(1, color=blues.get(base, "black"), linewidth=1)
    axes.grid(axis="both", color="#e4e4e4")
    cells = [case.split()[0] for case in cases]
    for row in range(1, len(cells)):
        if cells[row] != cells[row - 1]:
            axes.axhline(row - 0.5, color="black", linewidth=0.8)

    right = axes.secondary_yaxis("right")
    texts = [f"{duration(timed[base]['seconds'])}, {timed[base]['GFLOP/s']:.3g} GFLOP/s" for timed in cases.values()]
    right.set_yticks(range(len(cases)), texts)
    # The title is the legend's: the layout keeps a legend and a title of the figure from each other in no other way.
    title = f"Time of a call, side by side\n{about}"
    look = {"frameon": False, "columnspacing": 1.2, "handletextpad": 0.2}
    legend = figure.legend(loc="outside upper center", ncols=len(engines), title=title, title_fontsize=11, **look)
    legend.get_title().set_multialignment("center")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description="Draw, or print as a table, what the benchmarks measured.")
    parser.add_argument("results", help="the file that pytest benchmarks --benchmark-json=FILE wrote")
    parser.add_argument("-o", "--output", metavar="PICTURE", help="draw into this file (.png, .svg, .pdf)")
    parser.add_argument("--table", action="store_true", help="print a table in Markdown")
    parser.add_argument("--only", metavar="TEXT", default="", help="the cases with this in their names, such as lstm")
    arguments = parser.parse_args()
    if not (arguments.output or arguments.table):
        parser.error("say what is wanted: -o PICTURE, --table, or both")
    try:
        results = read(arguments.results, arguments.only)
        if arguments.table:
            print(table(*results))
        if arguments.output:
            draw(*results, arguments.output)
    except CannotDraw as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
