"""Random problems for the kernels, and their solutions by the reference."""

from copy import copy
from functools import cache
from types import SimpleNamespace

import numpy as np

from rnnfast import reference
from rnnfast.functional import CELLS
from support.cells import DIRECTIONS, VARIANTS, is_trained, parameter_shapes
from support.compare import members, named

# Errors against the reference in float64 are rounding: a few hundred units in the last place of the largest value.
TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-13}

# These hold, for every number of lanes from 1 to 16 and every tile of 1 to 4 vectors, the numbers beside its edge.
EDGES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65]

# The results that have a part for every row of the batch.
PER_ROW = {"y", "dx", "state 0", "state 1", "dstate 0", "dstate 1"}


def problem(
    cell,
    T,
    N,
    I,
    H,
    *,
    proj_size=0,
    num_layers=1,
    bidirectional=False,
    reverse=False,
    bias=True,
    dropout=False,
    recurrent_dropout=False,
    zoneout=None,
    dtype=np.float64,
    weights="full",
    seed=0,
):
    """Random parameters, x, state, dropout masks, dy and dstate, with the options as the reference takes them.

    zoneout: "masks" for random ones, or "rates" for expectations.
    """
    rng = np.random.default_rng(seed)
    directions = 1 + bidirectional
    width, info = proj_size or H, CELLS[cell]

    def values(*shape, scale=1.0):
        return (scale * rng.uniform(-1, 1, shape)).astype(dtype)

    def states():
        h = values(num_layers * directions, N, width)
        return (h, values(num_layers * directions, N, H)) if info.has_c else h

    shapes = parameter_shapes(
        cell, I, H, proj_size=proj_size, num_layers=num_layers, bidirectional=bidirectional, bias=bias
    )
    keep = rng.random((num_layers - 1, T, N, directions * width)) < 0.75
    made = SimpleNamespace(
        cell=cell,
        dtype=np.dtype(dtype),
        weights=weights,
        input_size=I,
        hidden_size=H,
        proj_size=proj_size,
        bias=bias,
        parameters={
            # Per-unit extras, such as a leak, are positive and below 1.
            name: values(*shape, scale=shape[-1] ** -0.5)
            if not info.extra or not name.startswith(info.extra)
            else rng.uniform(0.1, 0.9, shape).astype(dtype)
            for name, shape in shapes.items()
        },
        x=values(T, N, I),
        state=states(),
        dy=values(T, N, directions * width),
        dstate=states(),
        options={
            "num_layers": num_layers,
            "bidirectional": bidirectional,
            "reverse": reverse,
            "masks": (keep / 0.75).astype(dtype) if dropout else None,
        },
    )
    if recurrent_dropout:  # not only 0 and one other value, so that every error shows
        made.options["recurrent_masks"] = values(num_layers * directions, N, width)
    made.zoneout = (0.25, 0.5 * info.has_c) if zoneout else (0.0, 0.0)
    if zoneout:
        shares = made.zoneout[: 1 + info.has_c]
        if zoneout == "masks":
            shape = num_layers * directions, T, N
            shares = [rng.random((*shape, size)) < rate for rate, size in zip(shares, (width, H), strict=False)]
        made.options["zoneout"] = tuple(np.asarray(share, dtype) for share in shares)
    return made


def zoneout_masks(p):
    """The masks of zoneout as the engine takes them: for each row, the bits of h, then those of c; None for rates."""
    shares = p.options.get("zoneout", ())
    if not shares or shares[0].ndim == 0:
        return None
    padded = [np.pad(share, [(0, 0)] * 3 + [(0, -share.shape[3] % 64)]) for share in shares]
    return np.packbits(np.concatenate(padded, axis=3) != 0, axis=3, bitorder="little")


def variant_problem(variant, T, N, I, H, **options):
    """A problem for one of VARIANTS. With a projection it has H + 1 units, because P must be less than H."""
    cell, projected = VARIANTS[variant]
    return problem(cell, T, N, I, H + projected, proj_size=H * projected, **options)


def run_reference(p, dtype=None):
    """The results of the reference by name, computed in the dtype of the problem or in another one."""
    cast = (lambda a: a) if dtype is None else (lambda a: a.astype(dtype))
    state, dstate = (tuple(map(cast, members(s))) if isinstance(s, tuple) else cast(s) for s in (p.state, p.dstate))
    options = dict(p.options)
    for name in ("masks", "recurrent_masks"):
        if options.get(name) is not None:
            options[name] = cast(options[name])
    if "zoneout" in options:
        options["zoneout"] = tuple(map(cast, options["zoneout"]))
    parameters = {name: cast(value) for name, value in p.parameters.items()}
    y, end, tape = reference.forward(p.cell, parameters, cast(p.x), state, **options)
    dx, dstart, dparameters = reference.backward(tape, cast(p.dy), dstate)
    return named(y, end, dx, dstart, {name: d for name, d in dparameters.items() if is_trained(p.cell, name)})


@cache
def solved(variant, T, N, I, H, dtype, direction="forward", **options):
    """A problem and its solution by the reference in float64, computed once for all instruction sets."""
    p = variant_problem(variant, T, N, I, H, dtype=dtype, **DIRECTIONS[direction], **options)
    return p, run_reference(p, np.float64)


def rows(p, which):
    """The problem restricted to some rows of the batch."""
    q = copy(p)
    q.x, q.dy = p.x[:, which], p.dy[:, which]
    q.state, q.dstate = (
        tuple(member[:, which].copy() for member in s) if isinstance(s, tuple) else s[:, which].copy()
        for s in (p.state, p.dstate)
    )
    if p.options["masks"] is not None:
        q.options = {**p.options, "masks": p.options["masks"][:, :, which].copy()}
    if "recurrent_masks" in p.options:
        q.options = {**q.options, "recurrent_masks": p.options["recurrent_masks"][:, which].copy()}
    if "zoneout" in p.options:
        shares = tuple(share[:, :, which] if share.ndim else share for share in p.options["zoneout"])
        q.options = {**q.options, "zoneout": shares}
    return q


def of_rows(results, which):
    """The results of some rows of the batch."""
    return {name: value[:, which] for name, value in results.items() if name in PER_ROW}


# (T, N, I, H, num_layers): between them, threads divide the work in every way that the schedule has.
SHAPES_FOR_THREADS = [
    (20, 64, 32, 48, 2),
    (6, 13, 200, 100, 2),
    (8, 1, 64, 700, 1),
    (2, 9000, 9, 8, 1),
    (400, 3, 40, 33, 1),
    # by units, with gates at whole vectors, for few rows and for weights that are far
    (12, 2, 30, 160, 1),
    (3, 13, 16, 896, 1),
]
