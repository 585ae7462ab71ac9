"""The reference against central differences, against torch, and against a GRU written number by number."""

import math
import warnings

import numpy as np
import pytest
from oracles import (
    DIRECTIONS,
    GATES,
    VARIANTS,
    assert_close,
    gradient_by_differences,
    members,
    problem,
    run_reference,
)

from rnnfast import reference

TORCH_CLASSES = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "lstm": "LSTM", "gru": "GRU"}


def run_forward(p):
    y, state, _ = reference.forward(p.cell, p.parameters, p.x, p.state, **p.options)
    return y, state


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_central_differences(variant, direction, num_layers):
    cell, projected = VARIANTS[variant]
    p = problem(
        cell,
        3,
        2,
        2,
        3,
        proj_size=2 * projected,
        num_layers=num_layers,
        dropout=num_layers > 1,
        **DIRECTIONS[direction],
    )
    results = run_reference(p)
    expected = gradient_by_differences(p, run_forward)
    assert_close({name: results[name] for name in expected}, expected, 1e-8)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("variant", [name for name, (cell, _) in VARIANTS.items() if cell in TORCH_CLASSES])
def test_agrees_with_torch(torch, variant, bidirectional, num_layers, bias):
    cell, projected = VARIANTS[variant]
    T, N, I, H = 7, 3, 5, 4
    options = {"num_layers": num_layers, "bidirectional": bidirectional}
    p = problem(cell, T, N, I, H, proj_size=2 * projected, bias=bias, **options)
    extra = {"nonlinearity": cell[4:]} if cell.startswith("rnn") else {"proj_size": 2} if projected else {}
    layer = getattr(torch.nn, TORCH_CLASSES[cell])(I, H, bias=bias, dtype=torch.float64, **options, **extra)
    layer.load_state_dict({name: torch.from_numpy(value) for name, value in p.parameters.items()})

    x = torch.from_numpy(p.x).requires_grad_()
    start = [torch.from_numpy(member).requires_grad_() for member in members(p.state)]
    y, end = layer(x, tuple(start) if cell == "lstm" else start[0])
    outputs = [y, *members(end)]
    torch.autograd.backward(outputs, [torch.from_numpy(d) for d in [p.dy, *members(p.dstate)]])
    expected = {"y": y, "dx": x.grad}
    expected.update({f"state {i}": member for i, member in enumerate(members(end))})
    expected.update({f"dstate {i}": member.grad for i, member in enumerate(start)})
    expected.update({f"d{name}": value.grad for name, value in layer.named_parameters()})
    assert_close(run_reference(p), {name: value.detach().numpy() for name, value in expected.items()}, 1e-10)


def test_gru_reset_before_number_by_number():
    """Torch has no such cell: the equations once more, on plain numbers."""
    T, N, I, H = 4, 2, 3, 2
    p = problem("gru_reset_before", T, N, I, H)
    w, u, b, c = (p.parameters[kind + "_l0"].tolist() for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    y, state = run_forward(p)

    def total(k, x, h):
        return b[k] + c[k] + sum(w[k][i] * x[i] for i in range(I)) + sum(u[k][j] * h[j] for j in range(H))

    for row in range(N):
        h = p.state[0, row].tolist()
        for t in range(T):
            x = p.x[t, row].tolist()
            r = [1 / (1 + math.exp(-total(j, x, h))) for j in range(H)]
            z = [1 / (1 + math.exp(-total(H + j, x, h))) for j in range(H)]
            n = [math.tanh(total(2 * H + j, x, [r[j] * h[j] for j in range(H)])) for j in range(H)]
            h = [(1 - z[j]) * n[j] + z[j] * h[j] for j in range(H)]
            np.testing.assert_allclose(y[t, row], h, rtol=1e-13)
        np.testing.assert_allclose(state[0, row], h, rtol=1e-13)


@pytest.mark.parametrize("cell", GATES)
def test_reverse_is_forward_on_flipped_time(cell):
    p = problem(cell, 5, 3, 2, 4)
    q = problem(cell, 5, 3, 2, 4, reverse=True)
    p.x, p.dy = p.x[::-1], p.dy[::-1]
    expected = run_reference(p)
    expected["y"], expected["dx"] = expected["y"][::-1], expected["dx"][::-1]
    assert_close(run_reference(q), expected, 1e-13)


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_computes_in_the_dtype_given(cell, dtype):
    p = problem(cell, 3, 2, 4, 5, dtype=dtype, num_layers=2, dropout=True)
    assert {value.dtype for value in run_reference(p).values()} == {np.dtype(dtype)}


@pytest.mark.parametrize("cell", GATES)
def test_none_means_zeros(cell):
    p = problem(cell, 3, 2, 4, 5, num_layers=2)
    zeros = [np.zeros_like(member) for member in members(p.state)]
    state = tuple(zeros) if cell == "lstm" else zeros[0]
    y, end, tape = reference.forward(cell, p.parameters, p.x, state, **p.options)
    bare_y, bare_end, bare_tape = reference.forward(cell, p.parameters, p.x, **p.options)
    assert_close({"y": bare_y}, {"y": y}, 0)
    assert_close(dict(enumerate(members(bare_end))), dict(enumerate(members(end))), 0)
    pairs = [((np.zeros_like(y), p.dstate), (None, p.dstate)), ((p.dy, state), (p.dy, None))]
    if cell == "lstm":
        pairs.append(((p.dy, (p.dstate[0], zeros[1])), (p.dy, (p.dstate[0], None))))
        pairs.append(((p.dy, (zeros[0], p.dstate[1])), (p.dy, (None, p.dstate[1]))))
    for given, bare in pairs:
        dx, dstart, dparameters = reference.backward(tape, *given)
        bare_dx, bare_dstart, bare_dparameters = reference.backward(bare_tape, *bare)
        assert_close({"dx": bare_dx, **bare_dparameters}, {"dx": dx, **dparameters}, 0)
        assert_close(dict(enumerate(members(bare_dstart))), dict(enumerate(members(dstart))), 0)


@pytest.mark.parametrize("cell", GATES)
def test_empty_batch(cell):
    results = run_reference(problem(cell, 3, 0, 4, 5, bidirectional=True, num_layers=2))
    assert results["y"].shape == (3, 0, 10)
    assert results["dx"].shape == (3, 0, 4)
    assert not any(value.any() for value in results.values())


def test_backward_twice_is_the_same():
    p = problem("lstm", 3, 2, 4, 5)
    _, _, tape = reference.forward(p.cell, p.parameters, p.x, p.state, **p.options)
    first, second = (reference.backward(tape, p.dy, p.dstate)[2] for _ in range(2))
    assert_close(first, second, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_at_the_ends(dtype):
    a = np.array([-np.inf, -1e4, -50, -1, 0, 1, 50, 1e4, np.inf, np.nan], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = reference.sigmoid(a)
    assert got.dtype == dtype
    expected = [0, 0, math.exp(-50), 1 / (1 + math.e), 0.5, 1 / (1 + math.exp(-1)), 1, 1, 1, math.nan]
    np.testing.assert_allclose(got, expected, rtol=4 * np.finfo(dtype).eps)
