"""Check the kernels of AArch64, whose base instruction set is NEON, on another machine: cross-compile and emulate them.

    python tests/neon_check.py             # names the Debian packages that are missing
    python tests/neon_check.py --native    # the same check with this machine's gcc and instruction sets

The reference makes problems and their results, and neon_check.c runs the kernels on them. The exit status is 1 if a
result is wrong or if the base kernels contain no NEON.
"""

import argparse
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from support.cells import DIRECTIONS, VARIANTS, gates_of
from support.guards import pair
from support.problems import EDGES, TOLERANCE, solved

from rnnfast import functional

DRIVER = Path(__file__).with_suffix(".c")
CSRC = DRIVER.parents[1] / "csrc"
CROSS = "aarch64-linux-gnu-"
EMULATOR = "qemu-aarch64"
# The parameters in the order of rnnfast.h; the per-unit extras of a cell follow.
KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
FLOAT32, FLOAT64 = TOLERANCE


def output_of(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def missing(prefix=CROSS):
    """Say in one line what must be installed first; empty if nothing is missing."""
    if not prefix:
        return "" if shutil.which("gcc") else "gcc is missing: apt-get install gcc"
    has_gcc = shutil.which(CROSS + "gcc")
    there = {
        "gcc-aarch64-linux-gnu": has_gcc,
        "libc6-dev-arm64-cross": has_gcc and Path(output_of(has_gcc, "-print-file-name=libc.a").strip()).is_file(),
        "qemu-user": shutil.which(EMULATOR),
    }
    packages = " ".join(package for package, found in there.items() if not found)
    return packages and f"emulating AArch64 needs more Debian packages: apt-get install {packages}"


# --- the problems


def golden():
    """Yield names, problems with their results, and factors on the tolerance."""

    def case(variant, T, N, I, H, direction, tolerance=1, **options):
        name = f"{variant} {direction} T={T} N={N} I={I} H={H}" + "".join(f" {k}={v}" for k, v in options.items())
        return name, *solved(variant, T, N, I, H, FLOAT32, direction, **options), tolerance

    for variant, (cell, _) in VARIANTS.items():
        for direction in DIRECTIONS:
            yield case(variant, 7, 5, 9, 12, direction)
            yield case(variant, 7, 5, 9, 12, direction, num_layers=2, dropout=True)
        yield case(variant, 3, 2, 4, 5, "bidirectional", num_layers=2, bias=False)
        for k, H in enumerate(EDGES):
            for N in (1, (5, 6, 7, 12, 13)[k % 5]):
                yield case(variant, 1 + k % 3, N, EDGES[-1 - k], H, list(DIRECTIONS)[k % 3])
        # Just enough work for a second thread: by rows; by units, with gates at whole vectors, and without.
        yield case(variant, 6, 96 // gates_of(cell), 60, 64, "bidirectional", 4)
        yield case(variant, 48 // gates_of(cell), 3, 32, 160, "forward", 4)
        yield case(variant, 48 // gates_of(cell), 3, 32, 163, "reverse", 4)


def write_golden(path):
    """Write all problems to a file in the format of neon_check.c."""
    cases = list(golden())
    with open(path, "wb") as file:

        def write(dtype, *values):
            file.write(np.asarray(values, dtype).tobytes())

        write(np.int64, len(cases))
        for name, p, results, times in cases:
            layers, directions = p.options["num_layers"], 1 + p.options["bidirectional"]
            ends = [f"_l{layer}{end}" for layer in range(layers) for end in ("", "_reverse")[:directions]]
            kinds = (*KINDS, functional.CELLS[p.cell].extra)
            parameters = [kind + end for end in ends for kind in kinds]
            arrays = [p.parameters.get(name) for name in parameters]
            arrays += [p.x, *pair(p.state), p.options["masks"], p.dy, *pair(p.dstate)]
            arrays += [results.get(name) for name in ("y", "state 0", "state 1", "dx", "dstate 0", "dstate 1")]
            arrays += [results.get(f"d{name}") for name in parameters]
            write("S96", name)
            write(np.int64, functional.CELLS[p.cell].id, directions, p.options["reverse"], layers)
            write(np.int64, p.input_size, p.hidden_size, p.proj_size or p.hidden_size, *p.x.shape[:2])
            write(np.float64, times * TOLERANCE[FLOAT32], times * TOLERANCE[FLOAT64])
            for values in arrays:
                write(np.int64, 0 if values is None else values.size)
                if values is not None:
                    write(np.float64, values)


# --- the driver


def flags_of(platform):
    """Return FLAGS and ISA_FLAGS of setup.py on a platform."""
    with mock.patch("setuptools.setup"), mock.patch("sysconfig.get_platform", return_value=platform):
        names = runpy.run_path(str(CSRC.parent / "setup.py"))
    return names["FLAGS"], names["ISA_FLAGS"]


def build(prefix, directory):
    """Compile the kernels and the driver; return the driver's path."""
    machine = output_of(prefix + "gcc", "-dumpmachine").partition("-")[0]
    flags, isa_flags = flags_of(f"linux-{machine}")
    sources = {source: [] for source in (DRIVER, CSRC / "dispatch.c", CSRC / "threads.c", CSRC / "order.c")}
    sources |= {CSRC / f"f{bits}_{isa}.c": own for isa, own in isa_flags.items() for bits in (32, 64)}
    objects = {source: directory / f"{source.stem}.o" for source in sources}
    for source, own in sources.items():
        output_of(prefix + "gcc", *flags, *own, f"-I{CSRC}", "-c", source, "-o", objects[source])
    # A static binary needs no system libraries of the other machine.
    link = ["-lm", "-pthread", "-Wl,--wrap=rnnfast_threads_run", *["-static"] * bool(prefix)]
    output_of(prefix + "gcc", *objects.values(), *link, "-o", directory / DRIVER.stem)
    return directory / DRIVER.stem


def count_neon(directory):
    """Count the fused multiply-adds of whole vectors in the base kernels, by element type."""
    counts = {}
    for bits, lanes in ((32, "4s"), (64, "2d")):
        code = output_of(CROSS + "objdump", "-d", directory / f"f{bits}_base.o")
        counts[f"fmla .{lanes}"] = len(re.findall(rf"\sfmla\s+v\d+\.{lanes}\b", code))
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--native", action="store_true", help="compile for this machine and run without an emulator")
    prefix = "" if parser.parse_args().native else CROSS
    if missing(prefix):
        sys.exit(missing(prefix))
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        driver = build(prefix, directory)
        write_golden(directory / "golden")
        status = subprocess.run([*[EMULATOR] * bool(prefix), driver, directory / "golden"]).returncode
        if prefix:
            counts = count_neon(directory)
            print("NEON in the base kernels:", ", ".join(f"{count} {name}" for name, count in counts.items()))
            status = status or not all(counts.values())
    return status


if __name__ == "__main__":
    sys.exit(main())
