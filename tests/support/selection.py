"""Chooses which cases of the parametrized tests run.

Most faults show with one value of a parameter or with a pair of values; few need three (D. R. Kuhn, D. R. Wallace and
A. M. Gallo, "Software fault interactions and implications for software testing", IEEE Transactions on Software
Engineering 30, 2004). A plain run therefore takes the fewest cases of each test that have every pair of values, and a
run with --full the fewest that have every triple.
"""

import heapq
from itertools import combinations


def cover(cases, strength):
    """Choose a few cases that have every combination of `strength` values that occurs in any case.

    Parameters
    ----------
    cases : sequence of tuple
        The value of each parameter.
    strength : int
        How many parameters are combined. With no more parameters than that, every case is chosen.

    Returns
    -------
    list of int
        Indices of the chosen cases, in order. The choice is greedy and the same in every run.
    """
    columns = list(dict.fromkeys(zip(*cases, strict=True)))
    columns = [column for column in columns if len(set(column)) > 1]
    if strength >= len(columns):
        return list(range(len(cases)))
    rows = list(zip(*columns, strict=True))
    places = list(combinations(range(len(columns)), strength))
    wanted = [{(at, *(row[i] for i in at)) for at in places} for row in rows]
    missing = set().union(*wanted)
    # The heap holds gains that may be out of date. Gains only shrink, so a current gain on top is the largest.
    heap = [(-len(tuples), scattered(i), i) for i, tuples in enumerate(wanted)]
    heapq.heapify(heap)
    chosen = []
    while missing:
        _, order, i = heapq.heappop(heap)
        gain = len(wanted[i] & missing)
        if heap and gain < -heap[0][0]:
            if gain:
                heapq.heappush(heap, (-gain, order, i))
            continue
        chosen.append(i)
        missing -= wanted[i]
    return sorted(chosen)


def scattered(i):
    """A key that breaks ties: neighbours in a product differ in one value only, so their order is mixed."""
    return i * 0x9E3779B1 % 2**32


def values_of(item, together):
    """The values of a case: one for `together`, one for each `parametrize` and one for each parametrized fixture."""
    values = {name: id(value) for name, value in item.callspec.params.items()}
    names = [marker.args[0] for marker in item.iter_markers("parametrize")]
    joint = [[name.strip() for name in group.split(",")] if isinstance(group, str) else group for group in names]
    parts = [tuple(values.pop(name) for name in group if name in values) for group in (together, *joint)]
    return (*parts, *values.values())


def select(items, full):
    """Split pytest's items into those that run and those that do not.

    A test or a case with the marker `full` runs with --full only. The marker `cover(strength, together=[],
    full=strength + 1)` sets how many parameters are combined; every combination of those in `together` runs.
    """
    left_out = set() if full else {item for item in items if item.get_closest_marker("full") is not None}
    groups = {}
    for item in items:
        if item not in left_out and hasattr(item, "callspec"):
            groups.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for group in groups.values():
        marker = group[0].get_closest_marker("cover")
        (strength,), options = (marker.args, marker.kwargs) if marker else ((2,), {})
        if full:
            strength = options.get("full", strength + 1)
        chosen = set(cover([values_of(item, options.get("together", ())) for item in group], strength))
        left_out.update(item for i, item in enumerate(group) if i not in chosen)
    return [item for item in items if item not in left_out], [item for item in items if item in left_out]
