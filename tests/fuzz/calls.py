"""Calls and gradients: of RNN, LSTM and GRU against the reference, and of all layers against themselves."""

import itertools

import numpy as np
from support.cells import DIRECTIONS, VARIANTS, make_layer
from support.compare import assert_close, assert_same, members
from support.problems import TOLERANCE
from support.ragged import (
    KINDS,
    in_float64,
    layer_of,
    of_rows,
    rows,
    run,
    run_all,
    swapped,
    uneven,
    uneven_problem,
    without_cells,
)

import rnnfast
from fuzz import assume
from rnnfast import functional, options

ERROR = {dtype: 5 * bound for dtype, bound in TOLERANCE.items()}  # of any of the shapes drawn here
MERGES = ["concat", "sum", "mul", "mean"]


def generate(random):
    what = random.choices(["stack", "options", "bidirectional", "linear"], [6, 3, 2, 1])[0]
    num_layers = random.choice([1, 1, 2, 3])
    T, N = random.choice([(random.randint(1, 8), random.randint(1, 9))] * 4 + [(40, 9), (3, 140), (300, 2)])
    case = {
        "what": what,
        "variant": random.choice(list(VARIANTS)),
        "kind": random.choice([None, *KINDS]),
        "direction": random.choice(list(DIRECTIONS)),
        "T": T,
        "N": N,
        "I": random.choice([1, random.randint(1, 9), random.randint(1, 40)]),
        "H": random.choice([1, random.randint(1, 20), random.randint(1, 70)]),
        "num_layers": num_layers,
        "dropout": num_layers > 1 and random.random() < 0.4,
        "bias": random.random() < 0.8,
        "dtype": random.choice(["float32", "float64"]),
        "isa": random.randrange(8),
        "threads": random.choice([1, 2, 3, 8]),
        "checkpoint": random.choice(["auto", 1, 2, 5, 1000]),
        "seed": random.getrandbits(30),
    }
    if what == "options":
        case["dropout"] = False
        case["options"] = drawn_options(random)
    if what == "bidirectional":
        case["other"], case["merge"] = random.choice(list(VARIANTS)), random.choice(MERGES)
    return case


def drawn_options(random):
    def activation():
        name = random.choice(list(options.FUNCTIONS))
        numbers = [round(random.uniform(0.1, 1.5), 2) for _ in options.FUNCTIONS[name]]
        return random.choice([name, [name, *numbers]])

    chosen = {}
    if random.random() < 0.7:
        chosen["activations"] = [activation() for _ in range(6)]
    if random.random() < 0.5:
        chosen["clip"] = random.choice([0.5, 2.0, 1e-3, 1e30])
    chosen["peepholes"], chosen["coupled"] = random.random() < 0.5, random.random() < 0.3
    return chosen


def check(case):
    sizes = [case[name] for name in ("T", "N", "I", "H", "num_layers", "threads")]
    assume(min(sizes) >= 1 and case["checkpoint"] and not (case["dropout"] and case["num_layers"] == 1))
    isas = functional.isas()
    isa = isas[case["isa"] % len(isas)]
    before = functional.get_num_threads()
    try:
        with functional.use_isa(isa):
            {"stack": stack, "options": generic, "bidirectional": bidirectional, "linear": linear}[case["what"]](case)
    finally:
        functional.set_num_threads(before)


def problem(case, variant, **ways):
    return uneven_problem(
        case["kind"],
        variant,
        *(case[name] for name in "TNIH"),
        seed=case["seed"],
        dtype=np.dtype(case["dtype"]),
        num_layers=case["num_layers"],
        dropout=case["dropout"],
        bias=case["bias"],
        **ways,
    )


def stack(case):
    p = problem(case, case["variant"], **DIRECTIONS[case["direction"]])
    layer = layer_of(p)
    results = run(layer, p)
    assert_close(results, run_all(in_float64(p)), ERROR[p.dtype])
    assert_consistent(layer, p, results, case)


def generic(case):
    """Options that the reference does not have."""
    p = problem(case, case["variant"], **DIRECTIONS[case["direction"]])
    chosen, info = dict(case["options"]), functional.CELLS[p.cell]
    assume(set(chosen) <= {"activations", "clip", "peepholes", "coupled"})
    if p.cell != "lstm":
        del chosen["peepholes"], chosen["coupled"]
    if "activations" in chosen:
        count = len(options.DEFAULTS[p.cell]) * (1 + p.options["bidirectional"])
        assume(len(chosen["activations"]) >= count)
        chosen["activations"] = [one if isinstance(one, str) else tuple(one) for one in chosen["activations"][:count]]
    if info.elementwise:
        chosen = {}
    if info.extra == "leak":
        chosen = {"leak": np.random.default_rng(case["seed"]).uniform(0.1, 1, p.hidden_size)}
    layer = make_layer(
        case["variant"],
        p.input_size,
        p.proj_size or p.hidden_size,
        num_layers=case["num_layers"],
        bias=p.bias,
        dtype=p.dtype,
        **DIRECTIONS[case["direction"]],
        **chosen,
    )
    assert_consistent(layer, p, run(layer, p), case)


def assert_consistent(layer, p, results, case):
    """Require the same bits in every way to compute the same."""
    functional.set_num_threads(case["threads"])
    assert_same(run(layer, p), results)  # other threads
    assert_same(without_cells(run(layer, p, case["checkpoint"])), without_cells(results))
    y, state = layer(p.x, p.state, **uneven(p))
    called = {"y": y, **{f"state {i}": member for i, member in enumerate(members(state))}}
    if p.options["masks"] is None:
        assert_same(called, {name: results[name] for name in called})
    layer.freeze()
    assert_same(run(layer, p), results)
    for _ in range(2):  # the second call is a prepared one
        y, state = layer(p.x, p.state, **uneven(p))
        assert_same(called, {"y": y, **{f"state {i}": member for i, member in enumerate(members(state))}})
    layer.unfreeze()
    if p.options["masks"] is None:
        which = np.random.default_rng(case["seed"]).permutation(case["N"])[: 1 + case["seed"] % case["N"]]
        q = rows(p, which)
        assert_same(of_rows(run(layer, q), range(len(which))), of_rows(results, which))
        in_chunks(layer, p, called)
        swap(layer, p, called)
        if p.dtype == np.float32:
            narrowed(layer, p, which, case)


def narrowed(layer, p, which, case):
    """Weights in fewer bytes: other threads, other rows, and one step at a time."""

    def called(q):
        y, state = layer(q.x, q.state, **uneven(q))
        return {"y": y, **{f"state {i}": member for i, member in enumerate(members(state))}}

    layer.freeze(*[("bfloat16",), ("int8",), ("int8", "int8")][case["seed"] % 3])
    results = called(p)
    functional.set_num_threads(1)
    assert_same(called(p), results)
    assert_same(of_rows(called(rows(p, which)), range(len(which))), of_rows(results, which))
    in_chunks(layer, p, results)
    layer.unfreeze()


def in_chunks(layer, p, called):
    """One step at a time, with the state of the step before."""
    if uneven(p) or layer.reverse or layer.bidirectional or len(p.x) > 50:
        return
    state, outputs = p.state, []
    for x in p.x:
        y, state = layer(x[np.newaxis], state)
        outputs.append(y)
    ends = {f"state {i}": member for i, member in enumerate(members(state))}
    assert_same({"y": np.concatenate(outputs), **ends}, called)


def swap(layer, p, called):
    """Batch first."""
    first = type(layer)(**{**rnnfast.layers.saving.options(layer), "batch_first": True})
    first.load_state_dict(layer.state_dict())
    q = swapped(p)
    y, state = first(q.x, q.state, **uneven(q))
    ends = {f"state {i}": member for i, member in enumerate(members(state))}
    assert_same({"y": y.swapaxes(0, 1), **ends}, called)


def bidirectional(case):
    """Two layers by themselves, and joined."""
    p, q = problem(case, case["variant"]), problem(case, case["other"], reverse=True)
    assume(case["merge"] in MERGES)
    with_masks = p.options["masks"] is not None
    assume(not with_masks)
    ours, other = layer_of(p), layer_of(q)
    joined = rnnfast.Bidirectional(ours, other, merge=case["merge"])
    y, state, tape = joined.forward(p.x, (p.state, q.state), **uneven_of_both(p, q))
    one, one_end, one_tape = ours.forward(p.x, p.state, **uneven(p))
    two, two_end, two_tape = other.forward(p.x, q.state, **uneven(q))
    merged = {
        "concat": lambda: np.concatenate([one, two], 2),
        "sum": lambda: one + two,
        "mul": lambda: one * two,
        "mean": lambda: (one + two) / 2,
    }[case["merge"]]()
    dy = np.random.default_rng(case["seed"]).standard_normal(merged.shape).astype(p.dtype)
    parts = {
        "concat": lambda: (dy[..., : one.shape[2]], dy[..., one.shape[2] :]),
        "sum": lambda: (dy, dy),
        "mul": lambda: (dy * two, dy * one),
        "mean": lambda: (dy / 2, dy / 2),
    }[case["merge"]]()
    got = joined.backward(tape, dy, (p.dstate, q.dstate))
    of_one, of_two = ours.backward(one_tape, parts[0], p.dstate), other.backward(two_tape, parts[1], q.dstate)
    assert_same({"y": y, "dx": got.x}, {"y": merged, "dx": of_one.x + of_two.x})
    for ends, expected in ((state, (one_end, two_end)), (got.state, (of_one.state, of_two.state))):
        flat, wanted = (itertools.chain(*map(members, pair)) for pair in (ends, expected))
        assert_same(dict(enumerate(flat)), dict(enumerate(wanted)))
    expected = {f"forward.{name}": d for name, d in of_one.parameters.items()}
    expected |= {f"backward.{name}": d for name, d in of_two.parameters.items()}
    assert_same(got.parameters, expected)
    turned(case, joined, p, q, y, state, got, dy)


def uneven_of_both(p, q):
    """The arguments of a call of both layers."""
    given = uneven(p)
    return given | ({"reset_state": (given["reset_state"], q.options["reset_state"])} if "reset_state" in given else {})


def turned(case, joined, p, q, y, state, got, dy):
    """The same with a second layer that does not know that it runs backward."""
    plain = problem(case, case["other"])
    assume(all((plain.parameters[name] == value).all() for name, value in q.parameters.items()))
    other = rnnfast.Bidirectional(joined.forward_layer, layer_of(plain), merge=case["merge"])
    y2, state2, tape = other.forward(p.x, (p.state, q.state), **uneven_of_both(p, q))
    assert_same({"y": y2}, {"y": y})
    for one, two in zip(itertools.chain(*map(members, state)), itertools.chain(*map(members, state2)), strict=True):
        np.testing.assert_array_equal(one, two)
    again = other.backward(tape, dy, (p.dstate, q.dstate))
    # Sums over steps, also over those that repeat an output, have another order.
    assert_close({"x": again.x, **again.parameters}, {"x": got.x, **got.parameters}, ERROR[p.dtype])


def linear(case):
    rng, dtype = np.random.default_rng(case["seed"]), np.dtype(case["dtype"])
    layer = rnnfast.Linear(case["I"], case["H"], case["bias"], dtype=dtype, rng=rng)
    x = rng.uniform(-1, 1, (case["T"], case["N"], case["I"])).astype(dtype)
    dy = rng.uniform(-1, 1, (case["T"], case["N"], case["H"])).astype(dtype)
    y, tape = layer.forward(x)
    got = layer.backward(tape, dy)
    flat, dflat = x.reshape(-1, case["I"]).astype(float), dy.reshape(-1, case["H"]).astype(float)
    weight = layer.parameters["weight"].astype(float)
    expected = {"y": flat @ weight.T + layer.parameters.get("bias", 0), "dx": dflat @ weight, "weight": dflat.T @ flat}
    if case["bias"]:
        expected["bias"] = dflat.sum(0)
    results = {"y": y.reshape(dflat.shape), "dx": got.x.reshape(flat.shape), **got.parameters}
    assert_close(results, expected, ERROR[dtype] * (1 + len(flat) / 50))
    functional.set_num_threads(case["threads"])
    layer.freeze()
    assert_same({"y": layer(x), "part": layer(x[:, -1])}, {"y": y, "part": y[:, -1]})
    again = layer.backward(layer.forward(x)[1], dy)
    assert_same({"dx": again.x, **again.parameters}, {"dx": got.x, **got.parameters})
