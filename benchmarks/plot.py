"""Draw the results of the benchmarks, or print them as a table.

    pytest benchmarks --benchmark-json=speed.json
    python benchmarks/plot.py speed.json -o speed.png --only lstm
    python benchmarks/plot.py speed.json --table

The file may also be one of ``rnnfast bench --json``. Times are the minimum over all rounds. The other engines are
compared with the first one in the file: rnnfast with the best instruction set of the machine, unless -k left it out.
"""

import argparse
import json
import sys
from pathlib import Path

from rnnfast.commands.engines import Case
from rnnfast.commands.program import CannotRun, require_drawable, run_program
from rnnfast.commands.timing import draw, duration


def read(path, only):
    """Read the description of the machine, and the seconds of each case by engine, in the order of the file."""
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        machine = report.get("about") or report["machine_info"]
        processor = machine["cpu"] if "about" in report else machine.get("cpu", {}).get("brand_raw")
        cases = {}
        for name, case, seconds in times_in(report):
            if only in str(case):
                cases.setdefault(case, {})[name] = seconds
        threads, versions = machine["threads"], machine["versions"]
    except OSError as error:
        raise CannotRun(f"cannot read {path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise CannotRun(
            f"{path} does not hold results of the benchmarks ({error!r}): "
            f"make it with pytest benchmarks --benchmark-json={path}"
        ) from None
    if not cases:
        raise CannotRun(f"{path} has no case with {only!r} in its name: leave out --only to see all")
    base = next(iter(next(iter(cases.values()))))
    for case, seconds in cases.items():
        if base not in seconds:
            raise CannotRun(f"{path} has no time of {base} for {case}: measure all engines of a case in one run")
    about = f"{processor or 'unknown CPU'}, {threads} thread{'s' * (threads > 1)}"
    return about, versions, cases


def times_in(report):
    """Yield engine, case and seconds of each measurement."""
    for benchmark in report.get("benchmarks", []):
        yield benchmark["name"], Case(**benchmark["extra_info"]["case"]), benchmark["stats"]["min"]
    for result in report.get("cases", []):
        for name, seconds in result["seconds"].items():
            yield name, Case(**result["case"]), min(seconds)


def table(about, versions, cases):
    """Return a Markdown table: the time of the first engine, and the times of the others relative to it."""
    base, *others = dict.fromkeys(name for seconds in cases.values() for name in seconds)
    lines = [["", base, "GFLOP/s", *others], ["---", *["---:"] * (len(others) + 2)]]
    for case, seconds in cases.items():
        own = seconds[base]
        ratios = [f"{seconds[name] / own:.2f}x" if name in seconds else "" for name in others]
        lines.append([str(case), duration(own), f"{case.gflop() / own:.3g}", *ratios])
    installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{about}; {installed}."


def main():
    parser = argparse.ArgumentParser(description="Draw the results of the benchmarks, or print them as a table.")
    parser.add_argument("results", help="file written by pytest benchmarks --benchmark-json or rnnfast bench --json")
    parser.add_argument("-o", "--output", metavar="PICTURE", help="picture to draw (.png, .svg, .pdf)")
    parser.add_argument("--table", action="store_true", help="print a table in Markdown")
    parser.add_argument("--only", metavar="TEXT", default="", help="only cases with this in their names, such as lstm")
    arguments = parser.parse_args()
    if not (arguments.output or arguments.table):
        parser.error("nothing to do: give -o PICTURE, --table, or both")
    return run_program(parser.prog, report, arguments)


def report(arguments):
    require_drawable(arguments.output)
    about, versions, cases = read(arguments.results, arguments.only)
    if arguments.table:
        print(table(about, versions, cases))
    if arguments.output:
        draw({case.label(): seconds for case, seconds in cases.items()}, about, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
