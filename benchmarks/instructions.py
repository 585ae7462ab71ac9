"""Count the instructions of some small calls and compare them with those recorded.

    python benchmarks/instructions.py               compare; exit status 1 if a case is off by more than 3%
    python benchmarks/instructions.py --record      record them anew, to be compared with from now on

A clock shows no change of a few percent on a machine that does other things as well; the number of instructions is the
same in every run. Counted is what happens inside forward and backward of the C interface: one thread, instruction set
AVX2 (valgrind knows no AVX-512). The number depends on the compiler, so instructions.json has figures for each. Fewer
instructions do not always take less time: measure that too.

Needs Linux, valgrind, and a C compiler: cc, or what the environment variable CC says. CFLAGS are not heeded.
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
    """This machine lacks something; the text says what."""


def find_tools():
    """The commands that compile and count, and the name under which the compiler's figures are recorded."""
    compiler, valgrind = shlex.split(os.environ.get("CC") or "cc"), shutil.which("valgrind")
    if not shutil.which(compiler[0]):
        raise CannotCount(f"no C compiler {compiler[0]}: install one, or name yours in the environment variable CC")
    if not valgrind:
        raise CannotCount("valgrind is not installed: apt install valgrind, or what does the same on your system")
    if "avx2" not in rnnfast.isas():
        raise CannotCount("this processor has no AVX2, whose instructions are counted")
    version, *_ = subprocess.check_output([*compiler, "--version"], text=True).splitlines()
    # gcc says first how it was called: cc, gcc-12, x86_64-linux-gnu-gcc.
    version = re.sub(r"^\S+ (?=\()", "gcc ", version)
    return compiler, valgrind, f"{version}, {platform.machine()}"


def read_record():
    """By compiler, then by case."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}


def build(compiler, directory):
    """Compile the driver and what it needs of the library, with the library's own flags."""
    try:
        with mock.patch("setuptools.setup"):
            setup = runpy.run_path(str(ROOT / "setup.py"))
    except ImportError:
        raise CannotCount("setup.py, which has the flags, needs setuptools: pip install 'setuptools>=77'") from None
    # Python's own flags, which come before those of setup.py, leave out the assertions.
    common, csrc = [*compiler, "-DNDEBUG", *setup["FLAGS"]], ROOT / "csrc"
    units = [csrc / "f32_avx2.c", csrc / "f64_avx2.c"]
    rest = [DRIVER, csrc / "threads.c", *(f"{unit.stem}.o" for unit in units)]
    subprocess.run([*common, *setup["ISA_FLAGS"]["avx2"], "-c", *units], cwd=directory, check=True)
    subprocess.run([*common, f"-I{csrc}", *rest, "-lm", "-o", "instructions"], cwd=directory, check=True)


def count(compiler, valgrind):
    """Pairs of a case and its instructions, one after the other."""
    options = ["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no", "--toggle-collect=counted"]
    with tempfile.TemporaryDirectory() as directory:
        build(compiler, directory)
        for case in CASES:
            command = [valgrind, *options, "./instructions", *case.split()]
            # No environment: neither options of valgrind nor a server of debug symbols come in.
            done = subprocess.run(command, cwd=directory, env={}, capture_output=True, text=True)
            found = re.search(r"Collected : ([1-9]\d*)", done.stderr)
            if done.returncode or not found:
                raise subprocess.SubprocessError(f"valgrind could not count {case}:\n{done.stderr}")
            yield case, int(found[1])


def change(counted, recorded):
    return counted / recorded - 1


def complaints(counted, recorded):
    """What is not as recorded, in words; both are numbers by case."""
    new = [case for case in counted if case not in recorded]
    changes = {case: change(counted[case], recorded[case]) for case in counted if case in recorded}
    more = [f"{case} ({part:+.1%})" for case, part in changes.items() if part > TOLERANCE]
    fewer = [f"{case} ({part:+.1%})" for case, part in changes.items() if part < -TOLERANCE]
    record = "python benchmarks/instructions.py --record"
    said = {
        f"More instructions than recorded; if that cannot be helped, {record} accepts it": more,
        f"Fewer instructions than recorded; so that they stay fewer, record them anew: {record}": fewer,
        f"Not recorded yet: {record}": new,
    }
    return ["\n    ".join([what, *cases]) for what, cases in said.items() if cases]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="record what is counted as the figures of this compiler")
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
        print(
            "NOTHING WAS COMPARED: no figures are recorded for this compiler. --record some without your change first."
        )
    elif wrong := complaints(counted, recorded):
        sys.exit("\n".join(wrong))
    else:
        print(f"All as recorded, within {TOLERANCE:.0%}.")


if __name__ == "__main__":
    main()
