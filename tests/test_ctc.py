"""The CTC loss against torch, against the sum over all alignments, and against central differences."""

import itertools
import math

import numpy as np
import pytest
from support.compare import central_differences

from rnnfast import training

T, N, C, S = 9, 5, 4, 3
INPUTS, TARGETS = np.array([9, 7, 4, 1, 9]), np.array([3, 2, 0, 1, 1])


def problem(dtype=np.float64, seed=0, blank=0):
    rng = np.random.default_rng(seed)
    logits = (2 * rng.normal(size=(T, N, C))).astype(dtype)
    labels = np.array([label for label in range(C) if label != blank])
    targets = labels[rng.integers(0, C - 1, (N, S))]
    targets[0, 1] = targets[0, 0]  # a repeated label, which needs a blank
    return logits, targets


def of_torch(torch, logits, targets, inputs, lengths, blank=0, **options):
    x = torch.from_numpy(logits).requires_grad_()
    loss = torch.nn.functional.ctc_loss(
        x.log_softmax(2), *(torch.from_numpy(array) for array in (targets, inputs, lengths)), blank=blank, **options
    )
    loss.backward()
    return loss.item(), x.grad.numpy()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("blank", [0, 2, C - 1])
def test_loss_and_gradient_agree_with_torch(torch, dtype, blank):
    logits, targets = problem(dtype, blank=blank)
    loss, dlogits = training.ctc_loss(logits, targets, INPUTS, TARGETS, blank)
    assert isinstance(loss, float)
    assert dlogits.dtype == dtype
    expected, gradient = of_torch(torch, logits, targets, INPUTS, TARGETS, blank)
    tolerance = 32 * float(np.finfo(dtype).eps)
    assert loss == pytest.approx(expected, rel=tolerance)
    np.testing.assert_allclose(dlogits, gradient, atol=tolerance)


def test_the_loss_is_the_sum_over_all_alignments():
    logits, targets = problem()
    logits, targets = logits[:5, :1], targets[:1, :2]
    p = np.exp(logits[:, 0]) / np.exp(logits[:, 0]).sum(axis=1, keepdims=True)
    total = 0.0
    for path in itertools.product(range(C), repeat=5):
        labels = [label for label, _ in itertools.groupby(path) if label]
        total += math.prod(p[t, label] for t, label in enumerate(path)) if labels == targets[0].tolist() else 0
    assert training.ctc_loss(logits, targets)[0] == pytest.approx(-math.log(total) / 2, rel=1e-12)


def test_gradient_is_central_differences():
    logits, targets = problem(seed=1)
    _, dlogits = training.ctc_loss(logits, targets, INPUTS, TARGETS)
    expected = central_differences(lambda: training.ctc_loss(logits, targets, INPUTS, TARGETS)[0], logits)
    np.testing.assert_allclose(dlogits, expected, atol=1e-8)


@pytest.mark.parametrize("zero_infinity", [False, True])
def test_labels_that_do_not_fit_have_an_infinite_loss(torch, zero_infinity):
    logits, targets = problem()
    targets[1] = targets[1, 0]  # three equal labels need five steps
    inputs, lengths = np.array([9, 4, 2, 9, 9]), np.full(N, 3)
    loss, dlogits = training.ctc_loss(logits, targets, inputs, lengths, zero_infinity=zero_infinity)
    expected, gradient = of_torch(torch, logits, targets, inputs, lengths, zero_infinity=zero_infinity)
    assert loss == (pytest.approx(expected, rel=1e-13) if zero_infinity else math.inf)
    assert np.isnan(dlogits[:4, 1]).all() != zero_infinity
    assert not dlogits[4:, 1].any()
    np.testing.assert_allclose(dlogits, gradient, atol=1e-13)


def test_sequences_without_steps_or_labels():
    logits, targets = problem()
    inputs = np.zeros(N, int)
    loss, dlogits = training.ctc_loss(logits, targets, inputs, np.zeros(N, int))
    assert loss == 0
    assert not dlogits.any()
    assert training.ctc_loss(logits, targets, inputs, np.array([0, 0, 0, 0, 1]))[0] == math.inf
    loss, _ = training.ctc_loss(logits[:, :1], np.zeros((1, 0), int))
    log_p = logits[:, 0] - np.log(np.exp(logits[:, 0]).sum(axis=1, keepdims=True))
    assert loss == pytest.approx(-log_p[:, 0].sum(), rel=1e-13)  # only blanks


def test_padding_is_never_read():
    logits, targets = problem()
    expected, gradient = training.ctc_loss(logits, targets, INPUTS, TARGETS)
    logits[np.arange(T)[:, None] >= INPUTS] = np.nan
    targets[np.arange(S) >= TARGETS[:, None]] = -1
    loss, dlogits = training.ctc_loss(logits, targets, INPUTS, TARGETS)
    assert loss == expected
    np.testing.assert_array_equal(dlogits, gradient)


def test_long_sequences_and_large_logits(torch):
    """Probabilities far below the smallest float64, and scores whose exponentials overflow."""
    rng = np.random.default_rng(2)
    logits, targets = 20 * rng.normal(size=(600, 2, 6)), rng.integers(1, 6, (2, 40))
    loss, dlogits = training.ctc_loss(logits, targets)
    expected, gradient = of_torch(torch, logits, targets, np.full(2, 600), np.full(2, 40))
    assert loss == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(dlogits, gradient, atol=1e-11)
    loss, dlogits = training.ctc_loss(np.array([[[1e300, -1e300]], [[-1e300, 1e300]]]), [[1]])
    assert loss == 0
    assert not dlogits.any()


def test_a_network_learns_to_label():
    logits, targets = problem()
    lengths = np.array([3, 3, 2, 1, 2])
    for _ in range(200):
        logits -= 5 * training.ctc_loss(logits, targets, target_lengths=lengths)[1]
    decoded = training.ctc_greedy_decode(logits)
    assert [labels.tolist() for labels in decoded] == [
        row[:length].tolist() for row, length in zip(targets, lengths, strict=True)
    ]


def test_greedy_decoding_merges_repetitions_and_drops_blanks():
    best = np.array([[1, 0, 2], [1, 0, 2], [0, 0, 1], [1, 0, 2]])
    decoded = training.ctc_greedy_decode(np.eye(3)[best], [4, 4, 3])
    assert [labels.tolist() for labels in decoded] == [[1, 1], [], [2, 1]]
    assert [labels.tolist() for labels in training.ctc_greedy_decode(np.eye(3)[best], blank=2)] == [
        [1, 0, 1],
        [0],
        [1],
    ]
    assert [labels.tolist() for labels in training.ctc_greedy_decode(np.zeros((0, 2, 3)))] == [[], []]


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (ValueError, r"logits must have shape \(T, N, C\)", {"logits": np.zeros((T, C))}),
        (ValueError, r"logits must have shape \(T, N, C\)", {"logits": np.zeros((T, N, 0))}),
        (ValueError, r"targets must have shape \(N, S\) with N = 5", {"targets": np.ones((4, 3), int)}),
        (TypeError, "targets must be integers, got dtype float64", {"targets": np.ones((N, S))}),
        (
            ValueError,
            "targets must lie between 0 and 3, .* differ from blank=0, got 4",
            {"targets": np.full((N, S), 4)},
        ),
        (ValueError, "targets must .* got 0", {"targets": np.zeros((N, S), int)}),
        (ValueError, "input_lengths must lie between 0 and 9", {"input_lengths": [10] * N}),
        (ValueError, r"input_lengths must have shape \(5,\)", {"input_lengths": [9]}),
        (TypeError, "input_lengths must be integers", {"input_lengths": [1.0] * N}),
        (ValueError, "target_lengths must lie between 0 and 3", {"target_lengths": [-1] * N}),
        (ValueError, "blank must lie between 0 and 3", {"blank": C}),
        (TypeError, "zero_infinity must be True or False", {"zero_infinity": 1}),
    ],
)
def test_ctc_refuses(error, words, change):
    logits, targets = problem()
    with pytest.raises(error, match=words):
        training.ctc_loss(**{"logits": logits, "targets": targets, **change})
