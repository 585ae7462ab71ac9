"""examples/online_drift.py: online learning on a process that drifts."""

import copy
import re

import numpy as np
import pytest
from support.checkout import load_example

example = load_example("online_drift")

SMALL = ["--steps", "60", "--series", "1", "--hidden", "4", "--epochs", "2", "--window", "5"]


@pytest.fixture(scope="module")
def options():
    return example.parse_arguments(["--hidden", "8", "--epochs", "30"])


@pytest.fixture(scope="module")
def model(options):
    return example.trained("minGRU", options)


def test_process_has_a_gain_from_1_to_minus_1():
    x, y = example.process(40_000, 1, np.random.default_rng(0))
    noise = np.sqrt(example.NOISE)
    for part, gain in ((slice(0, 4000), 0.95), (slice(-4000, None), -0.95)):
        assert np.std(y[part]) == pytest.approx(1, abs=noise)
        keep = np.exp(-1 / (10 if gain > 0 else 100))
        response = (x[part, 0] * y[part, 0]).mean()  # of the current input
        assert response == pytest.approx(gain * np.sqrt(1 - keep * keep), abs=0.1)


@pytest.mark.parametrize("method", [name for name in example.METHODS if name != "frozen"])
def test_with_a_learning_rate_of_0_all_methods_are_frozen(method, model):
    x, y = example.process(50, 1, np.random.default_rng(0))
    predictions = example.METHODS[method](copy.deepcopy(model), x, y, 0.0, 7)
    np.testing.assert_allclose(predictions, example.frozen(model, x, y, 0.0, 7), rtol=1e-5, atol=1e-6)


def test_a_window_of_all_steps_has_the_gradient_of_the_online_learner(model):
    """As long as the weights hardly change."""
    x, y = example.process(30, 1, np.random.default_rng(0))
    changes = []
    for method in ("the same at every step", "online"):
        own = copy.deepcopy(model)
        example.METHODS[method](own, x, y, 1e-6, 30)
        changes.append(np.concatenate([(own.parameters[n] - a).ravel() for n, a in model.parameters.items()]))
    np.testing.assert_allclose(changes[0], changes[1], atol=2e-7)
    assert np.abs(changes[0]).max() > 1e-5


def test_online_learning_follows_the_drift(model):
    series = [example.process(2000, 1, np.random.default_rng(1))]
    errors = {
        name: example.score(name, model, series, 0.01, 20)[0].mean() for name in ("frozen", "truncated BPTT", "online")
    }
    assert errors["online"] < 0.3 * errors["truncated BPTT"] < 0.3 * errors["frozen"]


def test_run_from_end_to_end(capsys):
    assert example.main(SMALL) == 0
    report, errors = capsys.readouterr()
    assert not errors
    assert report.startswith("4 units, windows of 5 steps, 1 series of 60 steps.")
    for name in example.METHODS:
        assert len(re.findall(rf"^  {name} +[\d. ]+$", report, re.MULTILINE)) == len(example.CELLS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--steps", "3"], "must be an integer of at least 4, not '3'"), (["--window", "0"], "at least 1, not '0'")],
)
def test_invalid_options(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        example.main(arguments)
    assert message in capsys.readouterr().err
