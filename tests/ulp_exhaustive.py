"""The errors of sigmoid and tanh over all 2**32 float32 inputs, on every instruction set that runs here.

    python tests/ulp_exhaustive.py                  # some minutes
    python tests/ulp_exhaustive.py --isa avx2 --sample 100

An error is in ulp, the distance of neighbouring float32 numbers around the exact result. A fall is a pair of
neighbouring inputs whose results are in the wrong order. The exit status is 1 if anything is found that must not be.
"""

import argparse
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from rnnfast import functional

BLOCK = 1 << 18  # inputs looked at together
SIGN = 1 << 31  # as a bit
LARGEST_ERROR = {"sigmoid": 2.5, "tanh": 2.0}  # ulp
OUTERMOST_FALLS = {"sigmoid": (-2.0, 14.0), "tanh": (-6.1, 6.1)}  # beyond these inputs the functions are monotone


@dataclass
class Findings:
    """What is known of one function on one instruction set."""

    error: float = 0.0  # the largest, in ulp
    error_at: float = 0.0
    falls: int = 0
    outermost_falls: tuple = (0.0, 0.0)  # left and right of zero
    faults: list = field(default_factory=list)

    def add(self, other):
        if other.error > self.error:
            self.error, self.error_at = other.error, other.error_at
        self.falls += other.falls
        (left, right), (other_left, other_right) = self.outermost_falls, other.outermost_falls
        self.outermost_falls = min(left, other_left), max(right, other_right)
        self.faults += other.faults


def exact(function, x):
    """In float64, whose own error is some 1e-8 of a float32's ulp."""
    x = x.astype(np.float64)
    if function == "tanh":
        return np.tanh(x)
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def float32_ulp(a):
    """Distance of neighbouring float32 numbers around the float64 numbers a."""
    power_of_two = (a.view(np.int64) & (0x7FF << 52)).view(np.float64)
    return np.maximum(power_of_two * 2.0**-23, 2.0**-149)


def examine(function, isas, bits):
    """Findings, by instruction set, for the inputs of these bits: ascending and of one sign; for tanh, of both."""
    x = bits.view(np.float32)  # of growing magnitude; NaN comes last
    numbers = np.count_nonzero(~np.isnan(x))
    negative = bits[0] >= SIGN
    right = exact(function, x[:numbers])
    ulp = float32_ulp(right)
    findings = {}
    for isa in isas:
        found = findings[isa] = Findings()
        results = functional.activation(function, x, isa)
        y = results[:numbers]
        place = f"{isa}: {function} between {x[0]} and {x[-1]}"
        if function == "tanh":
            mirrored = functional.activation(function, -x, isa)
            if ((y.view(np.uint32) ^ mirrored[:numbers].view(np.uint32)) != SIGN).any():
                found.faults.append(f"{place} is not odd")
            results = np.append(results, mirrored[numbers:])
        if not np.isnan(results[numbers:]).all():
            found.faults.append(f"{isa}: {function}(NaN) is not NaN")
        if not numbers:
            continue
        error = np.abs(y - right) / ulp
        if function == "sigmoid":  # it may give 0 for a subnormal number
            error[(y == 0) & (right < np.finfo(np.float32).tiny)] = 0
        worst = error.argmax()  # the first NaN, if there is one
        found.error, found.error_at = float(error[worst]), float(x[worst])
        if not found.error <= LARGEST_ERROR[function]:
            found.faults.append(f"{isa}: {function}({found.error_at}) is wrong by {found.error} ulp")
        if not (np.abs(y) <= 1).all() or (function == "sigmoid" and np.signbit(y).any()):
            found.faults.append(f"{place} leaves its range")
        falls = np.flatnonzero(y[1:] > y[:-1] if negative else y[1:] < y[:-1])
        if len(falls):
            outermost = float(x[falls[-1]])
            found.falls = len(falls)
            found.outermost_falls = (outermost, 0.0) if negative else (0.0, outermost)
            if function == "tanh":
                found.falls, found.outermost_falls = 2 * len(falls), (-outermost, outermost)
            lowest, highest = OUTERMOST_FALLS[function]
            if not lowest < outermost < highest:
                found.faults.append(f"{isa}: {function} falls at {outermost}")
    return findings


def examine_block(isas, block):
    function, start = block
    stop = min(start + BLOCK + 1, (start & SIGN) + SIGN)  # with the first of the next block, if that has the same sign
    return function, examine(function, isas, np.arange(start, stop, dtype=np.uint64).astype(np.uint32))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--isa", action="append", choices=functional.isas(), help="only this one (may be repeated)")
    parser.add_argument("--sample", type=int, default=1, metavar="N", help="only every N-th block of 2**18 inputs")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), metavar="N")
    arguments = parser.parse_args()
    if arguments.sample < 1 or arguments.processes < 1:
        parser.error("--sample and --processes are positive")
    isas = arguments.isa or functional.isas()
    last = {"sigmoid": 2 * SIGN, "tanh": SIGN}
    work = [(function, start) for function in last for start in range(0, last[function], BLOCK * arguments.sample)]
    totals = {(function, isa): Findings() for function in last for isa in isas}
    begin = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for done, (function, findings) in enumerate(pool.imap_unordered(partial(examine_block, isas), work, 8), 1):
            for isa, found in findings.items():
                totals[function, isa].add(found)
            if done % 100 == 0 or done == len(work):
                progress = f"\r{done / len(work):4.0%} {time.monotonic() - begin:.0f} s"
                print(progress, end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print("| function | instruction set | largest error (ulp) | at x = | falls | outermost falls |")
    print("|---|---|---|---|---|---|")
    for (function, isa), found in totals.items():
        error, (left, right) = f"{found.error:.4f} | {found.error_at:.9g}", found.outermost_falls
        print(f"| {function} | {isa} | {error} | {found.falls} | {left:.5g}, {right:.5g} |")
    faults = [fault for found in totals.values() for fault in found.faults]
    print("\n".join(faults[:20] or ["Bounds, range, oddness, NaN: as they must be."]))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
