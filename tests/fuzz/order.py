"""The order of a ragged batch, as order.c computes it, against the same in plain Python."""

import itertools
from collections import namedtuple

import numpy as np

from fuzz import assume
from rnnfast import functional

LAYOUTS = ["plain", "fortran", "reversed", "strided", "broadcast"]

Sequence = namedtuple("Sequence", "row steps masked number")


def generate(random):
    if random.random() < 0.2:
        T, N = random.randint(1, 70), random.randint(1, 40)
    else:
        T, N = random.randint(1, 12), random.randint(1, 7)
    case = {"T": T, "N": N, "lengths": None, "mask": None, "reset": None, "layout": random.choice(LAYOUTS)}
    if random.random() < 0.5:
        case["lengths"] = [random.choice([0, T, random.randint(0, T)]) for _ in range(N)]
    for name in ("mask", "reset"):
        if random.random() < 0.6:
            shares = [random.choice([0, 0.05, 0.5, 0.95, 1]) for _ in range(N)]
            case[name] = ["".join("01"[random.random() < share] for share in shares) for _ in range(T)]
    case["turned"] = random.choice([[False], [True], [False, True]])
    case["first"], case["last"] = random.random(), random.random()
    return case


def laid_out(flags, layout):
    """An array of bool (T, N) with other strides, among flags that must not be read."""
    if layout == "fortran":
        return np.asfortranarray(flags)
    if layout == "reversed":
        return flags[::-1, ::-1].copy()[::-1, ::-1]
    if layout == "strided":
        around = np.ones([2 * size + 1 for size in flags.shape], bool)
        around[1::2, 1::2] = flags
        return around[1::2, 1::2]
    if layout == "broadcast":
        return np.broadcast_to(flags[:, :1], flags.shape)
    return flags


def sequences_of(T, lengths, mask, reset):
    """All sequences, row by row, with their numbers: the longest first, and among equal ones in this order."""
    found = []
    for row, length in enumerate(lengths):
        cuts = [0, *(t for t in range(1, length) if reset[t][row]), length]
        for begin, end in itertools.pairwise(cuts):
            if begin == end and begin:
                continue
            valid = [t for t in range(begin, end) if mask[t][row]]
            masked = []
            for t in set(range(begin, end)) - set(valid):
                before, after = [s for s in valid if s < t], [s for s in valid if s > t]
                masked.append((t, row, before[-1] if before else -1, after[0] if after else -1))
            found.append([row, valid, masked, None])
        found[-1][2] += [(t, row, -1, -1) for t in range(length, T)]
    for number, sequence in enumerate(sorted(found, key=lambda one: -len(one[1]))):
        sequence[3] = number
    return [Sequence(*one) for one in found]


def blocks_of(counts):
    """The first step of each block of a weight gradient's sum: as many steps as have SUM_ROWS entries, at least one."""
    edges, rows = [], 0
    for step, count in enumerate(counts):
        if not edges or rows + count > functional.SUM_ROWS:
            edges.append(step)
            rows = 0
        rows += count
    return [*edges, len(counts)]


def check_order(order, sequences, places, masked):
    """Require that an order lists these sequences; `places` maps (t, n) to the position in the array."""
    longest = max((len(one.steps) for one in sequences), default=0)
    counts = [sum(len(one.steps) > step for one in sequences) for step in range(longest)]
    assert order.sequences == len(sequences)
    assert order.steps == longest
    assert order.begin.tolist() == [sum(counts[:step]) for step in range(longest + 1)]
    assert order.edges.tolist() == blocks_of(counts)
    by_number = sorted(sequences, key=lambda one: one.number)
    for direction, positions in enumerate(order.positions):
        expected = [
            places(one.steps[-1 - step if direction else step], one.row)
            for step in range(longest)
            for one in by_number
            if len(one.steps) > step
        ]
        assert list(map(tuple, positions.tolist())) == expected, f"positions of direction {direction}"
    assert list(map(tuple, order.masked_steps.tolist())) == masked


def check(case):
    T, N = case["T"], case["N"]
    assume(min(T, N) > 0 and case["layout"] in LAYOUTS and case["turned"])
    assume(case["lengths"] is None or (len(case["lengths"]) == N and max(case["lengths"]) <= T))
    assume(
        all(
            len(case[name] or range(T)) == T and {len(row) for row in case[name] or ()} <= {N}
            for name in ("mask", "reset")
        )
    )
    flags = {}
    for name in ("mask", "reset"):
        rows = case[name]
        flags[name] = (
            None if rows is None else laid_out(np.array([[c == "1" for c in row] for row in rows]), case["layout"])
        )
    lengths = None if case["lengths"] is None else np.array(case["lengths"], np.intp)
    every = np.ones((T, N), bool)
    mask = every if flags["mask"] is None else flags["mask"]
    reset = ~every if flags["reset"] is None else flags["reset"]
    sequences = sequences_of(T, case["lengths"] or [T] * N, mask.tolist(), reset.tolist())
    order, numbers, rows = functional.arrange(T, N, lengths, flags["mask"], flags["reset"])

    masked = sorted(step for one in sequences for step in one.masked)
    assert numbers.tolist() == [one.number for one in sequences]
    starts = [next(i for i, one in enumerate(sequences) if one.row == row) for row in range(N)]
    assert rows.tolist() == [*starts, len(sequences)]
    check_order(order, sequences, lambda t, n: (t, n), masked)
    check_fill(order, masked, T, N, case["turned"])
    check_window(order, sequences, case)
    if flags["mask"] is None and flags["reset"] is None and order.steps:
        check_packed(order)


def check_fill(order, masked, T, N, turned):
    values = np.arange(1, T * N * 3 + 1, dtype=np.float64).reshape(T, N, 3)
    for source in (0, -1, 1):
        filled, expected = values.copy(), values.copy()
        order.fill(source, filled)
        for t, n, before, after in masked:
            found = {0: -1, -1: before, 1: after}[source]
            expected[t, n] = values[found, n] if found >= 0 else 0
        assert (filled == expected).all(), f"fill({source})"
    ways = {"reverse": turned[0]} if len(turned) == 1 else {"bidirectional": True}
    engine = functional.Engine("gru", np.dtype(np.float64), 1, 2, **ways)
    dy = np.arange(1, T * N * 2 * len(turned) + 1, dtype=np.float64).reshape(T, N, -1)
    folded, expected = dy.copy(), dy.copy()
    functional.fold(engine, folded, order)
    for t, n, before, after in masked:
        for k, reverse in enumerate(turned):
            found, columns = after if reverse else before, slice(2 * k, 2 * k + 2)
            if found >= 0:
                expected[found, n, columns] += dy[t, n, columns]
    valid = np.ones((T, N), bool)
    valid[[step[0] for step in masked], [step[1] for step in masked]] = False
    assert (folded[valid] == expected[valid]).all(), "fold"


def check_window(order, sequences, case):
    blocks = len(order.edges) - 1
    if not blocks:
        return
    first = int(case["first"] * blocks)
    last = first + 1 + int(case["last"] * (blocks - first))
    begin, end = order.edges[first], order.edges[last]
    part = functional.window(order, first, last)
    inside = [one for one in sequences if len(one.steps) > begin]
    longest = min(end, order.steps) - begin
    counts = [sum(len(one.steps) > begin + step for one in inside) for step in range(longest)]
    assert part.sequences == len(inside)
    assert (part.begin - part.begin[0]).tolist() == [sum(counts[:step]) for step in range(longest + 1)]
    assert part.edges.tolist() == [edge - begin for edge in order.edges[first : last + 1].tolist()]
    for whole, own in zip(order.positions, part.positions, strict=True):
        assert (own == whole[order.begin[begin] : order.begin[end]]).all()
    assert not len(part.masked_steps)


def check_packed(order):
    """A packed batch of as many sequences at each step: entry e of the array is at place (e, 0)."""
    sizes = np.diff(order.begin)
    packed = functional.packed_order(sizes)
    lengths = [int((sizes > n).sum()) for n in range(sizes[0])]
    starts = order.begin.tolist()
    sequences = [Sequence(n, list(range(length)), [], n) for n, length in enumerate(lengths)]
    check_order(packed, sequences, lambda t, n: (starts[t] + n, 0), [])
