"""Elementwise losses and label smoothing against torch; masks, weights and extreme values of all losses."""

import math

import numpy as np
import pytest
from support.compare import central_differences

from rnnfast import training

DTYPES = [np.float32, np.float64]
QUANTILES = [0.1, 0.5, 0.9]


def torch_quantile_loss(y, target):
    import torch

    error = target[..., None] - y
    q = torch.tensor(QUANTILES, dtype=y.dtype)
    return torch.maximum(q * error, (q - 1) * error).mean()


def torch_gaussian(y, target):
    import torch

    mean, log_variance = y.chunk(2, -1)
    return torch.nn.functional.gaussian_nll_loss(mean, target, log_variance.exp())


# Name: the loss, the shape of its outputs for targets (4, 3, 2), and the same in torch, F is torch.nn.functional.
LOSSES = {
    "mean_squared_error": (training.mean_squared_error, (4, 3, 2), lambda F: F.mse_loss),
    "mean_absolute_error": (training.mean_absolute_error, (4, 3, 2), lambda F: F.l1_loss),
    "huber": (training.huber, (4, 3, 2), lambda F: F.huber_loss),
    "huber with delta": (
        lambda *args, **options: training.huber(*args, delta=0.4, **options),
        (4, 3, 2),
        lambda F: lambda y, t: F.huber_loss(y, t, delta=0.4),
    ),
    "binary_cross_entropy": (training.binary_cross_entropy, (4, 3, 2), lambda F: F.binary_cross_entropy_with_logits),
    "binary_cross_entropy with pos_weight": (
        lambda *args, **options: training.binary_cross_entropy(*args, pos_weight=[0.5, 3.0], **options),
        (4, 3, 2),
        lambda F: lambda y, t: F.binary_cross_entropy_with_logits(y, t, pos_weight=y.new_tensor([0.5, 3.0])),
    ),
    "poisson_nll": (training.poisson_nll, (4, 3, 2), lambda F: F.poisson_nll_loss),
    "poisson_nll of counts": (
        lambda y, *args, **options: training.poisson_nll(y, *args, log_input=False, **options),
        (4, 3, 2),
        lambda F: lambda y, t: F.poisson_nll_loss(y, t, log_input=False),
    ),
    "gaussian_nll": (training.gaussian_nll, (4, 3, 4), lambda _: torch_gaussian),
    "quantile_loss": (
        lambda y, target, **options: training.quantile_loss(y, target, QUANTILES, **options),
        (4, 3, 2, 3),
        lambda _: torch_quantile_loss,
    ),
}


def problem(name, dtype=np.float64):
    """A loss, outputs and targets from 0.05 to 0.95, of which no two are equal."""
    loss, shape, _ = LOSSES[name]
    rng = np.random.default_rng(0)
    y = rng.uniform(0.1, 2, shape) if name == "poisson_nll of counts" else rng.normal(size=shape)
    return loss, y.astype(dtype), rng.uniform(0.05, 0.95, (4, 3, 2)).astype(dtype)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_agree_with_torch(torch, name, dtype):
    loss, y, target = problem(name, dtype)
    value, gradient = loss(y, target)
    assert isinstance(value, float)
    assert gradient.dtype == dtype
    x = torch.from_numpy(y).requires_grad_()
    expected = LOSSES[name][2](torch.nn.functional)(x, torch.from_numpy(target))
    expected.backward()
    tolerance = 16 * float(np.finfo(dtype).eps)
    assert value == pytest.approx(expected.item(), rel=tolerance)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", LOSSES)
def test_masks_and_weights_are_factors_of_each_term(name):
    """Of positions (4, 3), or of elements (4, 3, 2). The mean is taken over what the mask leaves."""
    loss, y, target = problem(name)
    rng = np.random.default_rng(1)
    for shape in ((4, 3), (4, 3, 2)):
        mask, weights = rng.random(shape) < 0.7, rng.integers(0, 3, shape) * 0.5
        ones = np.ones(shape)
        whole, gradient = loss(y, target)
        weighted = loss(y, target, mask=mask, weights=weights)[1]
        factors = np.broadcast_to(
            (mask * weights * mask.size / mask.sum()).reshape(*shape, *[1] * (3 - len(shape))), (4, 3, 2)
        )
        wide = np.concatenate([factors] * 2, -1) if name == "gaussian_nll" else factors
        wide = factors[..., np.newaxis] if y.ndim == 4 else wide
        np.testing.assert_allclose(weighted, gradient * wide, rtol=1e-14, atol=1e-16)
        expected = central_differences(lambda m=mask, w=weights: loss(y, target, mask=m, weights=w)[0], y)
        np.testing.assert_allclose(weighted, expected, atol=1e-9)
        assert loss(y, target, mask=mask)[0] == pytest.approx(loss(y, target, mask=mask, weights=ones)[0], rel=1e-14)
        assert loss(y, target, weights=3 * ones)[0] == pytest.approx(3 * whole, rel=1e-14)
        parts = [(mask, mask.sum() / mask.size), (~mask, 1 - mask.sum() / mask.size)]
        assert sum(share * loss(y, target, mask=part)[0] for part, share in parts) == pytest.approx(whole, rel=1e-13)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_what_is_masked_out_has_no_effect(name, bad):
    loss, y, target = problem(name)
    mask = np.random.default_rng(2).random((4, 3)) < 0.5
    expected, gradient = loss(y, target, mask=mask)
    y[~mask] = bad
    target[~mask] = bad
    for options in ({"mask": mask}, {"weights": mask.astype(float)}):
        value, same = loss(y, target, **options)
        scale = 1 if "mask" in options else mask.sum() / mask.size
        assert value == pytest.approx(scale * expected, rel=1e-14)
        np.testing.assert_allclose(same, scale * gradient, rtol=1e-14)
        assert not same[~mask].any()


@pytest.mark.parametrize("name", LOSSES)
def test_nan_that_counts_is_seen(name):
    loss, y, target = problem(name)
    y[1, 1] = np.nan
    value, gradient = loss(y, target)
    assert math.isnan(value)
    assert np.isnan(gradient[1, 1]).all()
    assert np.isfinite(np.delete(gradient, 1, axis=0)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_exponentials_of_finite_numbers_do_not_overflow(dtype):
    top = float(np.finfo(dtype).max)
    loss, dlogits = training.binary_cross_entropy(np.array([top, -top, top, -top], dtype), [1, 0, 0, 1])
    assert loss == pytest.approx(top / 2, rel=1e-6)
    np.testing.assert_array_equal(dlogits, np.array([0, 0, 0.25, -0.25], dtype))
    loss, dlogits = training.binary_cross_entropy(np.array([-50.0], dtype), [0.0])
    assert loss == dlogits[0] == pytest.approx(math.exp(-50), rel=1e-6)  # not 1 - 1
    y = np.array([[1.0, -top], [1.0, top]], dtype)
    loss, dy = training.gaussian_nll(y, [[1.0], [3.0]])
    assert loss == pytest.approx((math.log(1e-6) + top) / 4, rel=1e-6)
    np.testing.assert_array_equal(dy, np.array([[0, 0.25], [0, 0.25]], dtype))
    loss, dy = training.poisson_nll(np.array([-top, 0], dtype), [0.0, 1.0])
    assert loss == 0.5
    np.testing.assert_array_equal(dy, np.array([0, 0], dtype))
    assert training.poisson_nll(np.array([1000.0], dtype), [0.0])[0] == math.inf


def test_the_variance_has_a_floor(torch):
    """The gradient below it is that at the floor, so the variance can grow again."""
    loss, dy = training.gaussian_nll([[2.0, -100.0]], [[1.0]], eps=0.25)
    variance = torch.tensor([1e-9], requires_grad=True)
    expected = torch.nn.functional.gaussian_nll_loss(torch.tensor([2.0]), torch.tensor([1.0]), variance, eps=0.25)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    np.testing.assert_allclose(dy, [[4.0, 0.25 * variance.grad.item()]], rtol=1e-6)


def test_one_quantile_and_ties():
    loss, dy = training.quantile_loss([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], 0.25)
    assert loss == pytest.approx((0.25 + 0.75) / 3)
    np.testing.assert_allclose(dy, np.array([-0.25, 0, 0.75]) / 3)
    rng = np.random.default_rng(3)
    target, y = rng.normal(size=1001), np.zeros(1)
    for _ in range(500):
        y -= 0.5 * training.quantile_loss(np.repeat(y, target.size), target, 0.9)[1].sum(keepdims=True)
    assert y[0] == pytest.approx(np.quantile(target, 0.9), abs=0.03)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_label_smoothing_agrees_with_torch(torch, dtype, masked, smoothing):
    rng = np.random.default_rng(4)
    logits, targets = (3 * rng.normal(size=(4, 3, 5))).astype(dtype), rng.integers(0, 5, (4, 3))
    mask = rng.random((4, 3)) < 0.7 if masked else None
    loss, dlogits = training.softmax_cross_entropy(logits, targets, mask, label_smoothing=smoothing)
    x = torch.from_numpy(logits).requires_grad_()
    wanted = torch.from_numpy(targets if mask is None else np.where(mask, targets, -100)).reshape(-1)
    expected = torch.nn.functional.cross_entropy(x.reshape(-1, 5), wanted, label_smoothing=smoothing)
    expected.backward()
    tolerance = 8 * float(np.finfo(dtype).eps)
    assert loss == pytest.approx(expected.item(), rel=tolerance)
    np.testing.assert_allclose(dlogits, x.grad.numpy(), atol=tolerance)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_take_lists_and_keep_their_arguments(name):
    loss, y, target = problem(name)
    kept = y.copy(), target.copy()
    y.setflags(write=False)
    target.setflags(write=False)
    value, gradient = loss(y, target)
    same, same_gradient = loss(y.tolist(), target.tolist())
    assert value == same
    np.testing.assert_array_equal(gradient, same_gradient)
    np.testing.assert_array_equal(y, kept[0])
    np.testing.assert_array_equal(target, kept[1])


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ValueError, r"target must have shape \(2,\), equal to y.shape", lambda: training.huber([1, 2], [[1], [2]])),
        (ValueError, "delta must be above 0, got 0", lambda: training.huber([1.0], [1.0], delta=0)),
        (TypeError, "delta must be a number", lambda: training.huber([1.0], [1.0], delta="1")),
        (
            ValueError,
            r"y must have at least one element, got shape \(0,\)",
            lambda: training.mean_absolute_error(np.zeros(0), np.zeros(0)),
        ),
        (
            ValueError,
            r"y must have at least one element, got shape \(2,\) and a mask without True",
            lambda: training.mean_squared_error([1.0, 2.0], [1.0, 2.0], mask=[False, False]),
        ),
        (
            ValueError,
            r"mask must have shape \(2, 3\), .* first axes, got shape \(3,\)",
            lambda: training.mean_squared_error(np.ones((2, 3)), np.ones((2, 3)), mask=[True] * 3),
        ),
        (
            TypeError,
            "mask must be boolean, .* float64",
            lambda: training.mean_squared_error([1.0], [1.0], [1.0]),
        ),
        (
            ValueError,
            "target must be from 0 to 1",
            lambda: training.binary_cross_entropy([1.0, 0.0], [2, 0]),
        ),
        (
            ValueError,
            r"target must have shape \(1,\), equal to logits.shape",
            lambda: training.binary_cross_entropy([1.0], [2, 0]),
        ),
        (
            ValueError,
            "pos_weight must be at least 0, got -1",
            lambda: training.binary_cross_entropy([1.0], [0], pos_weight=-1),
        ),
        (
            ValueError,
            r"pos_weight must be a number or have shape \(2,\)",
            lambda: training.binary_cross_entropy(np.ones((1, 2)), np.ones((1, 2)), pos_weight=[1, 2, 3]),
        ),
        (
            ValueError,
            r"y must have shape \(..., 2 \* F\)",
            lambda: training.gaussian_nll(np.ones((3, 3)), np.ones((3, 2))),
        ),
        (ValueError, "eps must be above 0", lambda: training.gaussian_nll([[1.0, 1.0]], [[1.0]], eps=0)),
        (ValueError, "quantiles must be from 0 to 1", lambda: training.quantile_loss([1.0], [1.0], 1.5)),
        (ValueError, r"y must have shape \(3, 2\)", lambda: training.quantile_loss(np.ones(3), np.ones(3), [0.1, 0.9])),
        (TypeError, "log_input must be True or False", lambda: training.poisson_nll([1.0], [1.0], log_input=1)),
        (
            ValueError,
            "label_smoothing must be from 0 to 1, got 2",
            lambda: training.softmax_cross_entropy([[1.0]], [0], label_smoothing=2),
        ),
    ],
)
def test_losses_refuse(error, words, call):
    with pytest.raises(error, match=words):
        call()
