"""Random ragged batches, and runs of layers on them."""

import contextlib
from copy import copy
from functools import cache

import numpy as np
from hypothesis import strategies as st

from rnnfast import functional, reference
from support import problems as plain
from support.cells import DIRECTIONS, VARIANTS, has_c, is_trained, make_layer
from support.compare import members, named
from support.problems import variant_problem

# The arguments that describe each kind of batch.
KINDS = {
    "lengths": ("lengths",),
    "mask": ("mask",),
    "zero_masked": ("mask", "zero_masked"),
    "reset": ("reset",),
    "mask and reset": ("mask", "reset"),
    "zero_masked and reset": ("mask", "zero_masked", "reset"),
    "lengths and reset": ("lengths", "reset"),
    "mask and reset to a state": ("mask", "reset", "reset_state"),
    "lengths and reset to a state": ("lengths", "reset", "reset_state"),
}
# Those whose resets go to the initial state.
WITHOUT_RESET_STATE = tuple(kind for kind, names in KINDS.items() if "reset_state" not in names)
UNEVEN = ("lengths", "mask", "reset", "reset_state", "zero_masked")


def draw_sequences(kind, T, N, seed=0):
    """Random lengths, mask or reset of N rows: some rows have every step, some none, others a part. No reset state."""
    rng = np.random.default_rng(seed)

    def flags():
        return rng.random((T, N)) < rng.choice([0, 0.1, 0.5, 0.9, 1], N)

    lengths = np.where(rng.random(N) < 0.3, T * rng.integers(0, 2, N), rng.integers(0, T + 1, N))
    arrays = {"lengths": lengths, "mask": flags(), "reset": flags(), "zero_masked": True}
    return {name: arrays[name] for name in KINDS[kind] if name != "reset_state"}


def draw_reset_state(p, seed=0):
    """A random reset state in the form of the problem's states."""
    rng = np.random.default_rng([seed, 1])
    return over_members(p.state, lambda member: rng.uniform(-1, 1, member.shape).astype(p.dtype))


def over_members(state, function):
    """Apply a function to the arrays of a state."""
    return tuple(map(function, state)) if isinstance(state, tuple) else function(state)


def uneven_problem(kind, variant, T, N, I, H, *, seed=0, **options):
    """A random problem on a ragged batch of a kind; None for a full batch."""
    p = variant_problem(variant, T, N, I, H, seed=seed, **options)
    p.variant = variant
    if kind is not None:
        p.options.update(draw_sequences(kind, T, N, seed))
        if "reset_state" in KINDS[kind]:
            p.options["reset_state"] = draw_reset_state(p, seed)
    return p


def uneven(p):
    """The arguments of a call that describe a ragged batch."""
    return {name: p.options[name] for name in UNEVEN if name in p.options}


def extras_of(p):
    """The per-unit extras of a cell that are an option of its layer, such as a leak."""
    extra = functional.CELLS[p.cell].extra
    values = [value for name, value in p.parameters.items() if not is_trained(p.cell, name)]
    return {extra: np.concatenate(values)} if values else {}


def layer_of(p, isa=None, **options):
    """A layer with the parameters and the dropout masks of a problem."""
    masks = p.options["masks"]
    with contextlib.nullcontext() if isa is None else functional.use_isa(isa):
        layer = make_layer(
            p.variant,
            p.input_size,
            p.proj_size or p.hidden_size,
            num_layers=p.options["num_layers"],
            bidirectional=p.options["bidirectional"],
            reverse=p.options["reverse"],
            bias=p.bias,
            dtype=p.dtype,
            **({} if masks is None else {"dropout": 0.25}),
            **({} if p.zoneout == (0, 0) else {"zoneout": p.zoneout if p.zoneout[1] else p.zoneout[0]}),
            **extras_of(p),
            **options,
        )
    layer.load_state_dict({name: value for name, value in p.parameters.items() if name in layer.parameters})
    if masks is not None:
        layer._masks = lambda _: masks
    if any(p.zoneout):
        layer._zoneout_masks = lambda _: plain.zoneout_masks(p)
    return layer


def spoil(p):
    """Leave NaN in free memory, where the next results may be placed."""
    states = p.options["num_layers"] * (1 + p.options["bidirectional"])
    for shape in (np.shape(p.dy), np.shape(p.x), (states, *np.shape(p.x)[:-1], p.hidden_size)):
        spoiled = [np.full(shape, np.nan, p.dtype) for _ in range(3)]
        del spoiled


def run(layer, p, checkpoint=None):
    """The results by name, with the gradient of every h and, if the tape keeps it, every c."""
    spoil(p)
    y, state, tape = layer.forward(p.x, p.state, **uneven(p), checkpoint=checkpoint)
    return {**run_backward(layer, p, y, state, tape), **cells_of(p, tape, checkpoint)}


def run_backward(layer, p, y, state, tape):
    spoil(p)
    grads = layer.backward(tape, p.dy, p.dstate, per_step=True)
    return {**named(y, state, *grads), "dh": grads.h, **named_reset(p, grads.reset_state)}


def named_reset(p, dreset_state):
    """The gradient of the reset state by name, if the problem has one."""
    assert (dreset_state is not None) == ("reset_state" in p.options)
    return {} if dreset_state is None else {f"dreset {i}": member for i, member in enumerate(members(dreset_state))}


def cells_of(p, tape, checkpoint=None):
    return {"cells": tape.cells} if has_c(p.cell) and checkpoint is None else {}


def without_cells(results):
    return {name: value for name, value in results.items() if name != "cells"}


def cast(value, dtype):
    return tuple(member.astype(dtype) for member in value) if isinstance(value, tuple) else value.astype(dtype)


def in_float64(p):
    q = copy(p)
    q.x, q.dy, q.state, q.dstate = (cast(value, np.float64) for value in (p.x, p.dy, p.state, p.dstate))
    q.parameters = {name: cast(value, np.float64) for name, value in p.parameters.items()}
    masks = p.options["masks"]
    q.options = {**p.options, "masks": None if masks is None else cast(masks, np.float64)}
    if "reset_state" in p.options:
        q.options["reset_state"] = cast(p.options["reset_state"], np.float64)
    if "zoneout" in p.options:
        q.options["zoneout"] = cast(p.options["zoneout"], np.float64)
    return q


def is_real(p):
    """Which steps are valid, (T, N)."""
    T, N, _ = p.x.shape
    mask = p.options.get("mask", np.ones((T, N), bool))
    return mask & (np.arange(T)[:, None] < np.array(p.options.get("lengths", [T] * N)))


def run_all(p):
    """The results of the reference by name, with the gradient of every h and, for an LSTM, every c."""
    y, state, tape = reference.forward(p.cell, p.parameters, p.x, p.state, **p.options)
    *results, dh = reference.backward(tape, p.dy, p.dstate, per_step=True)[:4]
    dreset_state = reference.backward(tape, p.dy, p.dstate)[-1] if "reset_state" in p.options else None
    results = {**named(y, state, *results), "dh": dh, **named_reset(p, dreset_state)}
    return {**results, **({"cells": tape.cells} if has_c(p.cell) else {})}


@cache
def solved(kind, variant, direction, T, N, I, H, dtype, **options):
    """A problem and its solution by the reference in float64, computed once for all instruction sets."""
    p = uneven_problem(kind, variant, T, N, I, H, dtype=dtype, **DIRECTIONS[direction], **options)
    return p, run_all(in_float64(p))


def rows(p, which):
    """The problem restricted to some rows of the batch."""
    q = plain.rows(p, which)
    parts = {
        name: np.asarray(uneven(p)[name])[..., which] for name in ("lengths", "mask", "reset") if name in uneven(p)
    }
    q.options = {**q.options, **parts}
    if "reset_state" in p.options:
        q.options["reset_state"] = over_members(p.options["reset_state"], lambda member: member[:, which].copy())
    return q


def of_rows(results, which):
    """The results of some rows of the batch."""
    axes = {"y": 1, "dx": 1, "dh": 2, "cells": 2}
    axes |= {f"{kind} {k}": 1 for kind in ("state", "dstate", "dreset") for k in range(2)}
    return {name: value.take(which, axes[name]) for name, value in results.items() if name in axes}


def shown(p):
    """Where y shows a step, (T, N, D*H_out); it is 0 elsewhere."""
    T, N, width = p.dy.shape
    suffixes = ("_l0", "_l0_reverse") if p.options["bidirectional"] else ("_l0",)
    parameters = {f"{kind}{end}": np.ones((1, 1)[: 1 + ("weight" in kind)]) for end in suffixes for kind in PARAMETERS}
    options = {**p.options, "num_layers": 1, "masks": None, "zoneout": None}
    options.pop("reset_state", None)
    y, _, _ = reference.forward("rnn_tanh", parameters, np.ones((T, N, 1)), **options)
    return np.repeat(y != 0, width // y.shape[2], axis=2)


PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@st.composite
def problems(draw, kinds=tuple(KINDS), directions=tuple(DIRECTIONS), large=True):
    """Problems of any small shape, and some whose weight gradients are summed in several blocks."""
    sizes = st.tuples(st.integers(1, 7), st.integers(1, 9))
    T, N = draw(st.one_of(sizes, sizes, st.sampled_from([(40, 9), (3, 140), (300, 2)])) if large else sizes)
    num_layers = draw(st.integers(1, 2))
    return uneven_problem(
        draw(st.sampled_from(kinds)),
        draw(st.sampled_from(list(VARIANTS))),
        T,
        N,
        draw(st.integers(1, 9)),
        draw(st.integers(1, 20)),
        seed=draw(st.integers(0, 1 << 30)),
        dtype=draw(st.sampled_from([np.float32, np.float64])),
        num_layers=num_layers,
        dropout=num_layers > 1 and draw(st.booleans()),
        bias=draw(st.booleans()),
        **DIRECTIONS[draw(st.sampled_from(directions))],
    )


isas = st.sampled_from(functional.isas())
seeds = st.integers(0, 1 << 30)


def swapped(p):
    """The same problem for a batch-first layer."""
    q = copy(p)
    q.x, q.dy = p.x.swapaxes(0, 1), p.dy.swapaxes(0, 1)
    q.options = {**p.options, **{name: value.T for name, value in uneven(p).items() if name in ("mask", "reset")}}
    return q


def unbatched(p):
    q = rows(p, slice(0, 1))
    q.x, q.dy = q.x[:, 0], q.dy[:, 0]
    q.state, q.dstate = (over_members(s, lambda member: member[:, 0]) for s in (q.state, q.dstate))
    for name, value in uneven(q).items():
        if name == "reset_state":
            q.options[name] = over_members(value, lambda member: member[:, 0])
        elif name != "zero_masked":
            q.options[name] = value[..., 0]
    return q
