"""Time a program before and after its recurrent layers run on rnnfast."""

import argparse
import statistics
import time

parser = argparse.ArgumentParser(description="Compare a program with and without rnnfast.")
parser.add_argument(
    "--rounds",
    type=int,
    choices=range(10),
    default=9,
    help="at most as many timed calls of each kind (default: 9); 0 compares the results only",
)
parser.add_argument("--cpu", action="store_true", help="measure processor time, for a machine that others use, too")
OPTIONS = parser.parse_args()


def compare(what, before, after, error, rounds=9):
    """Call both functions in turns, and print the medians of their times and the largest difference of their results.

    Parameters
    ----------
    what : str
        What a call does, for the output.
    before, after : callable
    error : callable
        Called with both results, returns their largest difference.
    rounds : int, default 9
        Number of timed calls of each function; the option --rounds may lower it.
    """
    clock = time.process_time if OPTIONS.cpu else time.perf_counter
    difference = error(before(), after())
    times = {before: [], after: []}
    for _ in range(min(rounds, OPTIONS.rounds)):
        for function, taken in times.items():
            start = clock()
            function()
            taken.append(clock() - start)
    if times[before]:
        old, new = (statistics.median(taken) for taken in times.values())
        ratio = statistics.median(one / other for one, other in zip(*times.values(), strict=True))
        print(f"{what}: {1e3 * old:.3g} ms, with rnnfast {1e3 * new:.3g} ms, {ratio:.1f} times as fast")
    else:
        print(what)
    print(f"    largest difference {difference:.1e}")
