"""Time a program before and after its recurrent layers run on rnnfast."""

import statistics
import time


def compare(what, before, after, error, rounds=9):
    """Call both functions in turns, and print the medians of their times and the largest difference of their results.

    Parameters
    ----------
    what : str
        What a call does, for the output.
    before, after : callable
    error : callable
        Called with both results, returns their largest difference.
    """
    difference = error(before(), after())
    times = {before: [], after: []}
    for _ in range(rounds):
        for function, taken in times.items():
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    old, new = (statistics.median(taken) for taken in times.values())
    ratio = statistics.median(one / other for one, other in zip(*times.values(), strict=True))
    print(f"{what}: {1e3 * old:.3g} ms, with rnnfast {1e3 * new:.3g} ms, {ratio:.1f} times as fast")
    print(f"    largest difference {difference:.1e}")
