"""The linear map on guarded buffers, and in NumPy."""

import numpy as np

from rnnfast import functional
from support.guards import Guards


def linear_problem(M, I, O, dtype, bias):
    rng = np.random.default_rng(0)
    x, weight, dy = (rng.uniform(-1, 1, shape).astype(dtype) for shape in ((M, I), (O, I), (M, O)))
    return x, weight, rng.uniform(-1, 1, O).astype(dtype) if bias else None, dy


def run_linear(x, weight, bias, dy, isa, *, start=0.0, layout="plain", guards=None, weights="full"):
    """y, dx, dweight and dbias, computed on guarded buffers."""
    guards = guards or Guards(x.dtype)

    def rows(values):
        return guards.sequence((1, *values.shape), layout)[0]

    held_x, held_dy = (guards.constant(values[None], layout)[0] for values in (x, dy))
    held_weight, held_bias = guards.constant(weight), guards.constant(bias)
    y, dx = rows(dy), rows(x)
    dweight, dbias = guards.array(weight.shape), None if bias is None else guards.array(bias.shape)
    for gradient in (dweight, dbias):
        if gradient is not None:
            gradient.fill(start)
    with functional.use_isa(isa):
        packed = functional.linear_pack(held_weight, held_bias, weights=weights)
        functional.linear_forward(held_x, packed, y, weights=weights)
        functional.linear_backward(held_x, held_weight, held_dy, dx, dweight, dbias)
    guards.check()
    results = {"y": y, "dx": dx, "dweight": dweight}
    return results if bias is None else {**results, "dbias": dbias}


def linear_by_numpy(x, weight, bias, dy):
    x, weight, dy = (a.astype(np.float64) for a in (x, weight, dy))
    results = {"y": x @ weight.T, "dx": dy @ weight, "dweight": dy.T @ x}
    return results if bias is None else {**results, "y": results["y"] + bias, "dbias": dy.sum(0)}
