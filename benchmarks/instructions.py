"""Count the instructions of small calls and compare them with recorded counts.

    python benchmarks/instructions.py               compare; exit status 1 if a case is off by more than 3%
    python benchmarks/instructions.py --record      record new counts to compare with

On a busy machine a clock cannot show a change of a few percent, but the number of instructions is the same in every
run. Counted are forward and backward of the C interface with one thread on AVX2 (valgrind does not support AVX-512).
Counts depend on the compiler, so instructions.json has counts for each. Fewer instructions do not always take less
time: measure that too.

Needs Linux, valgrind, and a C compiler: cc, or the one that the environment variable CC names. CFLAGS are ignored.
"""

import argparse
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import rnnfast

DRIVER = Path(__file__).with_suffix(".c")
RECORD = Path(__file__).with_suffix(".json")
ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 0.03
CASES = [
    "rnn_tanh forward T=20 N=1 I=64 H=64",
    "rnn_tanh training T=20 N=5 I=13 H=51",
    "lstm forward T=1 N=1 I=64 H=64",
    "lstm forward T=20 N=1 I=64 H=64",
    "lstm forward T=8 N=1 I=256 H=256",
    "lstm forward T=8 N=16 I=64 H=64",
    "lstm training T=8 N=16 I=64 H=64",
    "lstm training T=20 N=5 I=13 H=51",
    "lstm training T=8 N=5 I=13 H=51 layers=2 bidirectional",
    "lstm training T=8 N=5 I=13 H=51 float64",
    "gru forward T=20 N=1 I=64 H=64",
    "gru forward T=8 N=16 I=64 H=64 float64",
    "gru training T=20 N=5 I=13 H=51",
    "gru training T=8 N=16 I=64 H=64",
]


class CannotCount(Exception):
    """This machine lacks something that the message names."""


def find_tools():
    """Return the commands that compile and count, and the name under which the compiler's counts are recorded."""
    compiler, valgrind = shlex.split(os.environ.get("CC") or "cc"), shutil.which("valgrind")
    if not shutil.which(compiler[0]):
        raise CannotCount(f"C compiler {compiler[0]} not found: install one, or set the environment variable CC")
    if not valgrind:
        raise CannotCount("valgrind is not installed: apt install valgrind, or the equivalent on your system")
    if "avx2" not in rnnfast.isas():
        raise CannotCount("this processor has no AVX2, the instruction set that is counted")
    version, *_ = subprocess.check_output([*compiler, "--version"], text=True).splitlines()
    # gcc prints first how it was called: cc, gcc-12, x86_64-linux-gnu-gcc.
    version = re.sub(r"^\S+ (?=\()", "gcc ", version)
    return compiler, valgrind, f"{version}, {platform.machine()}"


def read_record():
    """Read the recorded counts, by compiler and case."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}


def build(compiler, directory):
    """Compile the driver and the kernels that it needs, with the library's flags."""
    try:
        with mock.patch("setuptools.setup"):
            setup = runpy.run_path(str(ROOT / "setup.py"))
    except ImportError:
        raise CannotCount(
            "setuptools is missing, which setup.py needs for the flags: pip install 'setuptools>=77'"
        ) from None
    # Python's own flags, which come before those of setup.py, define NDEBUG.
    # The counts depend on the processor only where it multiplies quads of integers.
    common, csrc = [*compiler, "-DNDEBUG", "-DRNNFAST_NO_QUADS", *setup["FLAGS"]], ROOT / "csrc"
    units = [csrc / "f32_avx2.c", csrc / "f64_avx2.c"]
    rest = [DRIVER, csrc / "threads.c", *(f"{unit.stem}.o" for unit in units)]
    subprocess.run([*common, *setup["ISA_FLAGS"]["avx2"], "-c", *units], cwd=directory, check=True)
    subprocess.run([*common, f"-I{csrc}", *rest, "-lm", "-o", "instructions"], cwd=directory, check=True)


def count(compiler, valgrind):
    """Yield each case and its number of instructions."""
    options = ["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no", "--toggle-collect=counted"]
    with tempfile.TemporaryDirectory() as directory:
        build(compiler, directory)
        for case in CASES:
            command = [valgrind, *options, "./instructions", *case.split()]
            # An empty environment keeps out valgrind's options and debuginfod servers.
            done = subprocess.run(command, cwd=directory, env={}, capture_output=True, text=True)
            found = re.search(r"Collected : ([1-9]\d*)", done.stderr)
            if done.returncode or not found:
                raise subprocess.SubprocessError(f"valgrind could not count {case}:\n{done.stderr}")
            yield case, int(found[1])


def change(counted, recorded):
    return counted / recorded - 1


def complaints(counted, recorded):
    """Describe the cases that differ from the record. Both arguments map cases to counts."""
    new = [case for case in counted if case not in recorded]
    changes = {case: change(counted[case], recorded[case]) for case in counted if case in recorded}
    more = [f"{case} ({part:+.1%})" for case, part in changes.items() if part > TOLERANCE]
    fewer = [f"{case} ({part:+.1%})" for case, part in changes.items() if part < -TOLERANCE]
    record = "python benchmarks/instructions.py --record"
    said = {
        f"More instructions than recorded; if that is intended, record them: {record}": more,
        f"Fewer instructions than recorded; record them to keep it so: {record}": fewer,
        f"Not recorded yet: {record}": new,
    }
    return ["\n    ".join([what, *cases]) for what, cases in said.items() if cases]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="record the counts for this compiler")
    arguments = parser.parse_args()
    try:
        compiler, valgrind, name = find_tools()
        record = read_record()
        recorded, counted = record.get(name, {}), {}
        print(f"{name}\n\n{'case':58}{'instructions':>14}{'recorded':>14}{'change':>9}", flush=True)
        for case, number in count(compiler, valgrind):
            counted[case] = number
            then = f"{recorded[case]:14,}{change(number, recorded[case]):+9.2%}" if case in recorded else f"{'-':>14}"
            print(f"{case:58}{number:14,}{then}", flush=True)
    except (CannotCount, subprocess.SubprocessError) as error:
        sys.exit(f"{parser.prog}: {error}")
    print()
    if arguments.record:
        record = dict(sorted({**record, name: counted}.items()))
        RECORD.write_text(json.dumps(record, indent=4) + "\n", encoding="utf-8")
        print(f"Recorded in {RECORD.relative_to(ROOT)}.")
    elif not recorded:
        print("NOTHING WAS COMPARED: no counts are recorded for this compiler. Use --record without your change first.")
    elif wrong := complaints(counted, recorded):
        sys.exit("\n".join(wrong))
    else:
        print(f"All as recorded, within {TOLERANCE:.0%}.")


if __name__ == "__main__":
    main()
