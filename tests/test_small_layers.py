"""Activation, Dropout, LayerNorm, Pool and Attention against torch, with their gradients."""

import numpy as np
import pytest
from support.compare import assert_close
from support.problems import TOLERANCE

import rnnfast

T, N, F = 5, 3, 4
LENGTHS = [5, 0, 2]


def compare(layer, x, expected, leaf, dtype, rng, **options):
    """Compare the output of a layer and its gradient with torch's; return the gradients of the parameters."""
    y, tape = layer.forward(x, **options)
    np.testing.assert_array_equal(layer(x, **options), y)
    assert y.dtype == dtype
    dy = rng.standard_normal(y.shape).astype(dtype)
    expected.backward(expected.new_tensor(dy))
    for _ in range(2):
        grads = layer.backward(tape, dy)
        wanted = {"y": expected.detach().numpy(), "dx": leaf.grad.numpy()}
        assert_close({"y": y, "dx": grads.x}, wanted, TOLERANCE[np.dtype(dtype)])
    assert not np.any(layer.backward(tape, None).x)
    return grads.parameters


@pytest.mark.parametrize("function", ["tanh", "sigmoid", "relu"])
def test_activation(torch, function, dtype, rng):
    x = np.append(rng.standard_normal((T, F)), [[0.0, 50.0, -50.0, 1.0]], axis=0).astype(dtype)
    leaf = torch.tensor(x, requires_grad=True)
    compare(rnnfast.Activation(function), x, getattr(torch, function)(leaf), leaf, dtype, rng)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(F,), (T, N, F), (0, F)])
def test_layer_norm(torch, shape, bias, dtype, rng):
    own = getattr(torch, np.dtype(dtype).name)
    other = torch.nn.LayerNorm(F, eps=1e-3, bias=bias, dtype=own)
    layer = rnnfast.LayerNorm(F, 1e-3, bias, dtype=dtype)
    for parameter in other.parameters():
        parameter.data = torch.tensor(rng.standard_normal(F), dtype=own)
    layer.load_state_dict(other.state_dict())
    x = rng.standard_normal(shape).astype(dtype)
    leaf = torch.tensor(x, requires_grad=True)
    parameters = compare(layer, x, other(leaf), leaf, dtype, rng)
    wanted = {name: parameter.grad.numpy() for name, parameter in other.named_parameters()}
    assert_close(parameters, wanted, TOLERANCE[np.dtype(dtype)])
    restored = rnnfast.from_state_dict(layer.state_dict(), eps=1e-3)
    np.testing.assert_array_equal(restored(x), layer(x))


def test_layer_norm_differentiates_with_the_weights_of_its_forward(rng):
    layer = rnnfast.LayerNorm(F)
    x = rng.standard_normal((T, F))
    y, tape = layer.forward(x)
    before = layer.backward(tape, y).x
    layer.parameters["weight"][...] = 9
    np.testing.assert_array_equal(layer.backward(tape, y).x, before)


def test_dropout():
    x = np.full((100, 1000), np.inf, np.float32)
    layer = rnnfast.Dropout(0.25, rng=0)
    y, tape = layer.forward(x)
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.01)  # 0 times infinity is 0 here
    ones = np.ones_like(x)
    dx = layer.backward(tape, ones).x
    np.testing.assert_array_equal(dx == 0, y == 0)
    np.testing.assert_array_equal(dx[y > 0], np.float32(1 / 0.75))
    assert dx.mean(dtype=float) == pytest.approx(1, abs=0.01)
    assert layer(x) is x
    assert not rnnfast.Dropout(1.0).forward(ones)[0].any()
    np.testing.assert_array_equal(rnnfast.Dropout(0.0).forward(ones)[0], ones)
    assert not np.array_equal(layer.forward(ones)[0], layer.forward(ones)[0])


def pooled(torch, mode, leaf, valid):
    """Pool a sequence (T, N, F) with torch."""
    rows = []
    for n in range(N):
        steps = np.flatnonzero(valid[:, n])
        if len(steps) == 0:
            rows.append(torch.zeros_like(leaf[0, n]))
        elif mode == "mean":
            rows.append(leaf[steps, n].mean(0))
        elif mode == "max":
            rows.append(leaf[steps, n].max(0).values)
        elif mode == "last":
            rows.append(leaf[steps[-1], n])
        else:
            rows.append(torch.cat([leaf[steps[-1], n, : F // 2], leaf[steps[0], n, F // 2 :]]))
    return torch.stack(rows)


@pytest.mark.parametrize("mode", ["last", "mean", "max", "both"])
@pytest.mark.parametrize("steps", ["all", "lengths", "mask"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_pool(torch, mode, steps, batch_first, dtype, rng):
    valid = np.ones((T, N), bool)
    given = {}
    if steps == "lengths":
        valid, given = np.arange(T)[:, None] < LENGTHS, {"lengths": LENGTHS}
    elif steps == "mask":
        valid = rng.random((T, N)) < 0.5
        valid[:, 1] = False
        given = {"mask": valid.T if batch_first else valid}
    x = rng.standard_normal((T, N, F)).astype(dtype)
    leaf = torch.tensor(x, requires_grad=True)
    expected = pooled(torch, mode, leaf, valid)
    x[~valid] = np.nan  # padding is not read
    layer = rnnfast.Pool("last" if mode == "both" else mode, batch_first, bidirectional=mode == "both")
    if batch_first:
        x, dx = x.swapaxes(0, 1), expected.new_zeros(0)
        y, tape = layer.forward(x, **given)
        dy = rng.standard_normal(y.shape).astype(dtype)
        expected.backward(expected.new_tensor(dy))
        dx = layer.backward(tape, dy).x.swapaxes(0, 1)
        wanted = {"y": expected.detach().numpy(), "dx": leaf.grad.numpy()}
        assert_close({"y": y, "dx": dx}, wanted, TOLERANCE[np.dtype(dtype)])
    else:
        compare(layer, x, expected, leaf, dtype, rng, **given)
    row = (x[0] if batch_first else x[:, 0])[valid[:, 0]]
    if len(row):
        np.testing.assert_array_equal(layer(row), layer(x, **given)[0])


@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("batch_first", [False, True])
def test_attention(torch, scale, batch_first, dtype, rng):
    S, lengths = 7, [7, 3, 1]
    query, memory = (rng.standard_normal((N, steps, F)).astype(dtype) for steps in (T, S))
    leaves = [torch.tensor(array, requires_grad=True) for array in (query, memory)]
    mask = torch.tensor(np.arange(S) < np.array(lengths)[:, None])[:, None]
    expected = torch.nn.functional.scaled_dot_product_attention(*leaves, leaves[1], attn_mask=mask, scale=scale)
    dy = rng.standard_normal(query.shape).astype(dtype)
    expected.backward(torch.tensor(dy))
    for n, length in enumerate(lengths):
        memory[n, length:] = np.nan

    layer = rnnfast.Attention(batch_first, scale)

    def turn(array):
        return array if batch_first else array.swapaxes(0, 1)

    y, tape = layer.forward(turn(query), turn(memory), lengths=lengths)
    np.testing.assert_array_equal(layer(turn(query), turn(memory), lengths=lengths), y)
    dquery, dmemory = layer.backward(tape, turn(dy)).x
    got = {"y": turn(y), "dquery": turn(dquery), "dmemory": turn(dmemory)}
    wanted = [expected.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]
    assert_close(got, dict(zip(got, wanted, strict=True)), TOLERANCE[np.dtype(dtype)])
    weights = layer.weights(turn(query), turn(memory), lengths=lengths)
    np.testing.assert_allclose(weights.sum(axis=2), 1, rtol=1e-6)
    assert not weights[1, :, 3:].any()
    valid = np.arange(S)[:, None] < lengths
    np.testing.assert_array_equal(layer(turn(query), turn(memory), mask=valid.T if batch_first else valid), y)
    np.testing.assert_array_equal(layer(query[1], memory[1, :3]), turn(y)[1])
    assert not layer(turn(query), turn(memory), lengths=[0, 0, 0]).any()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: rnnfast.Activation("gelu"), ValueError, "function must be one of 'tanh', 'sigmoid', 'relu'"),
        (lambda: rnnfast.Dropout(1.5), ValueError, "p must be from 0 to 1"),
        (lambda: rnnfast.LayerNorm(0), ValueError, "normalized_shape must be at least 1"),
        (lambda: rnnfast.LayerNorm(3)(np.ones((2, 4))), ValueError, r"normalized_shape=3, got shape \(2, 4\)"),
        (lambda: rnnfast.Pool("sum"), ValueError, "mode must be one of"),
        (lambda: rnnfast.Pool("mean", bidirectional=True), ValueError, "for mode 'last' only"),
        (lambda: rnnfast.Pool("mean")(np.ones(3)), ValueError, r"layout \(T, N, F\)"),
        (lambda: rnnfast.Pool("mean")(np.ones((0, 2, 3))), ValueError, "at least one step"),
        (lambda: rnnfast.Pool("max")(np.ones((2, 3, 4)), lengths=[1, 2]), ValueError, r"shape \(N,\) = \(3,\)"),
        (lambda: rnnfast.Pool("max")(np.ones((2, 1, 4)), lengths=[3]), ValueError, "from 0 to T = 2, .*got 3"),
        (lambda: rnnfast.Pool("max")(np.ones((2, 1, 4)), lengths=[1.5]), TypeError, "lengths must hold integers"),
        (lambda: rnnfast.Pool("max")(np.ones((2, 1, 4)), mask=[[1], [0]]), TypeError, "mask must hold booleans"),
        (lambda: rnnfast.Pool("max")(np.ones((2, 1, 4)), mask=[True, False]), ValueError, r"shape \(T, N\) = \(2, 1\)"),
        (lambda: rnnfast.Pool("max")(np.ones((1, 1, 4)), lengths=[1], mask=[[True]]), ValueError, "mutually exclusive"),
        (lambda: rnnfast.Attention()(np.ones((2, 1, 4)), np.ones((2, 2, 4))), ValueError, "rows and features of query"),
        (lambda: rnnfast.Attention(scale="one"), TypeError, "scale must be a number"),
        (lambda: rnnfast.Activation("tanh")(["a"]), TypeError, "must hold real numbers"),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
