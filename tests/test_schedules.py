"""Learning-rate schedules against torch.optim.lr_scheduler."""

import math
import pickle

import numpy as np
import pytest

from rnnfast.training import schedules

STEPS = 40
# Name: a schedule, and the scheduler of torch (module L, optimizer o) that it is.
SCHEDULES = {
    "step": (schedules.step(0.5, 7, 0.3), lambda L, o: L.StepLR(o, 7, 0.3)),
    "exponential": (schedules.exponential(0.5, 0.9), lambda L, o: L.ExponentialLR(o, 0.9)),
    "cosine": (schedules.cosine(0.5, STEPS, 0.1), lambda L, o: L.CosineAnnealingLR(o, STEPS, 0.1)),
    "warmup": (schedules.warmup(0.5, 10), lambda L, o: L.LinearLR(o, 1 / 11, total_iters=10)),
    "warmup of a schedule": (
        schedules.warmup(schedules.cosine(0.5, STEPS), 10),
        lambda L, o: L.SequentialLR(
            o, [L.LinearLR(o, 1 / 11, total_iters=10), L.CosineAnnealingLR(o, STEPS)], milestones=[10]
        ),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # torch's SequentialLR itself
def test_schedules_agree_with_torch(torch, name):
    schedule, make = SCHEDULES[name]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose([schedule(step) for step in range(STEPS)], expected, rtol=1e-12)
    assert all(isinstance(schedule(step), float) for step in (0, 10, STEPS))


def test_cosine_stays_at_the_least():
    schedule = schedules.cosine(1.0, 10, 0.25)
    assert schedule(10) == schedule(11) == schedule(10**9) == 0.25


@pytest.mark.parametrize(
    "options",
    [
        {"patience": 2},
        {"factor": 0.5, "patience": 0, "cooldown": 3},
        {"factor": 0.5, "patience": 1, "threshold": 0.05, "min_lr": 0.2},
    ],
)
def test_plateaus_agree_with_torch(torch, options):
    rng = np.random.default_rng(0)
    losses = 3 * np.exp(-np.arange(60) / 10) + 0.1 * rng.random(60)
    losses[20] = math.nan
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **{"factor": 0.1, **options}, eps=0)
    plateau = schedules.ReduceOnPlateau(1.0, **options)
    rates = []
    for loss in losses:
        scheduler.step(loss)
        rates.append(plateau(loss))
        assert rates[-1] == plateau.lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
    assert len(set(rates)) > 2


def test_a_plateau_continues_from_a_pickle():
    plateau = schedules.ReduceOnPlateau(1.0, patience=1)
    for loss in (1.0, 1.0):
        plateau(loss)
    assert pickle.loads(pickle.dumps(plateau))(1.0) == plateau(1.0) == 0.1


@pytest.mark.parametrize(
    ("error", "words", "make"),
    [
        (ValueError, "lr must be at least 0, got -1", lambda: schedules.step(-1, 3)),
        (ValueError, "step_size must be at least 1, got 0", lambda: schedules.step(1, 0)),
        (TypeError, "steps must be an integer, got 2.5", lambda: schedules.cosine(1, 2.5)),
        (ValueError, "least must be at least 0", lambda: schedules.cosine(1, 2, -1)),
        (TypeError, "schedule must be a number, got 'cosine'", lambda: schedules.warmup("cosine", 3)),
        (ValueError, "factor must be at least 0 and below 1, got 1", lambda: schedules.ReduceOnPlateau(1, factor=1)),
        (ValueError, "patience must be at least 0", lambda: schedules.ReduceOnPlateau(1, patience=-1)),
        (TypeError, "loss must be a number, got None", lambda: schedules.ReduceOnPlateau(1)(None)),
    ],
)
def test_schedules_refuse(error, words, make):
    with pytest.raises(error, match=words):
        make()
