"""examples/vanishing.py: vanishing gradients."""

import threading

import numpy as np
import pytest
from support.checkout import load_example

import rnnfast

vanishing = load_example("vanishing")

SMALL = ["--adding", "4", "6", "--copy", "3", "--steps", "3", "--hidden", "4", "--batch", "2", "--threads", "2"]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(vanishing, "FLOW_STEPS", 60)
    monkeypatch.setattr(vanishing, "TEST_ROWS", 20)


def run(picture, *options):
    return vanishing.main([*SMALL, "--picture", str(picture), *options])


def train(task, name, lag, steps, clipped=True, hidden=16, rows=20):
    return vanishing.train(task, lag, name, clipped, hidden, steps, rows, 0, threading.Event())


def rows_of(report, heading):
    """The cells of the table below a heading, by model."""
    lines = report[report.index(heading) :].split("\n\n")[0].splitlines()
    return {line[2:26].strip(): line[26:].split() for line in lines if line[2:26].strip() in vanishing.MODELS}


def test_adding_is_the_sum_of_the_marked():
    x, target = vanishing.Adding.draw(9, 400, np.random.default_rng(0))
    assert x.shape == (9, 400, 2)
    np.testing.assert_allclose(target[:, 0], (x[..., 0] * x[..., 1]).sum(0), rtol=1e-6)
    assert (x[:4, :, 1].sum(0) == 1).all()
    assert (x[4:, :, 1].sum(0) == 1).all()
    assert x[..., 1].any(1).all()  # each step is marked in some of the rows
    assert np.mean((target - 1) ** 2) == pytest.approx(vanishing.Adding.baseline(9), rel=0.15)


def test_copy_repeats_after_the_lag():
    x, targets = vanishing.Copy.draw(7, 50, np.random.default_rng(0))
    codes = x.argmax(2)
    assert (x.sum(2) == 1).all()
    assert codes.shape == targets.shape == (27, 50)
    np.testing.assert_array_equal(targets[-10:], codes[:10])
    assert set(codes[:10].ravel()) == set(range(1, 9))
    assert (codes[16] == 9).all()
    assert not codes[10:16].any()
    assert not codes[17:].any()
    assert not targets[:-10].any()


def test_baseline_of_copy_is_that_of_guessing():
    _, targets = vanishing.Copy.draw(7, 50, np.random.default_rng(0))
    logits = np.full((27, 50, 9), -40.0)
    logits[:-10, :, 0] = 40
    logits[-10:, :, 1:] = 40
    loss, _ = vanishing.Copy.loss(logits, targets)
    assert loss == pytest.approx(vanishing.Copy.baseline(7))


@pytest.mark.parametrize("task", [vanishing.Adding, vanishing.Copy])
@pytest.mark.parametrize("name", vanishing.MODELS)
def test_losses_fall(task, name):
    run = train(task, name, 4, 60)
    assert np.mean(run.losses[-5:]) < np.mean(run.losses[:5])
    assert run.score < run.losses[0]


def test_short_sums_are_learnt():
    assert train(vanishing.Adding, "GRU", 4, 400).score < 0.1


def test_clipping_acts(monkeypatch):
    monkeypatch.setattr(vanishing, "MAX_NORM", 1e-12)  # below Adam's eps, so that nothing moves
    assert train(vanishing.Adding, "RNN", 4, 30).losses != train(vanishing.Adding, "RNN", 4, 30, clipped=False).losses


def test_divergence_ends_a_run(monkeypatch):
    model = vanishing.MODELS["RNN with relu, identity"]
    monkeypatch.setitem(vanishing.MODELS, "RNN with relu, identity", model._replace(learning_rate=1e30))
    run = train(vanishing.Adding, "RNN with relu, identity", 8, 20, clipped=False)
    assert len(run.losses) < 20
    assert vanishing.written(run.score) == "diverged"


@pytest.mark.parametrize("name", vanishing.MODELS)
def test_lag_reaches_chrono_alone(name):
    short, long = (vanishing.MODELS[name].build(2, 3, lag, rng=0).parameters for lag in (10, 1000))
    same = all((short[key] == long[key]).all() for key in short)
    assert same == (name != "LSTM, chrono")


def test_run_from_end_to_end(tmp_path, capsys):
    threads = rnnfast.get_num_threads()
    assert run(tmp_path / "picture.png") == 0
    report, progress = capsys.readouterr()
    count = len(vanishing.MODELS) * 3 + len(vanishing.CLIPPED) * 2
    assert progress.splitlines()[-1].startswith(f"{count:3} of {count}")
    assert "norm of dL/dh at lag" in report
    assert list(rows_of(report, "The adding task: mean")) == list(vanishing.MODELS)
    assert list(rows_of(report, "The copy memory task:")) == list(vanishing.MODELS)
    assert list(rows_of(report, "The adding task at lag 20")) == vanishing.CLIPPED
    assert rnnfast.get_num_threads() == threads


def test_same_seed_gives_the_same_scores_with_any_threads(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(vanishing, "draw", lambda *_: None)  # to be quick
    reports = []
    for options in ((), ("--threads", "1"), ("--seed", "1")):
        assert run(tmp_path / "picture.png", *options) == 0
        reports.append(rows_of(capsys.readouterr().out, "The adding task: mean"))
    assert reports[0] == reports[1] != reports[2]


def test_plot_is_written(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert run(tmp_path / "picture.png") == 0
    assert f"Saved the picture to {tmp_path / 'picture.png'}" in capsys.readouterr().out
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_plot_that_cannot_be_written(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert run(tmp_path / "picture.odd") == 2
    assert "cannot draw" in capsys.readouterr().err.splitlines()[-1]


def test_without_matplotlib_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(vanishing.sys.modules, "matplotlib.figure", None)
    assert run(tmp_path / "picture.png") == 0
    assert "pip install matplotlib" in capsys.readouterr().out


def test_ctrl_c_ends_it(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(vanishing, "as_completed", interrupt)
    assert run(tmp_path / "picture.png", "--steps", "100000") == 130
    assert "Stopped." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adding", "1"], "must be an integer of at least 2, not '1'"),
        (["--hidden", "0"], "must be an integer of at least 1, not '0'"),
        (["--seed", "-1"], "must be an integer of at least 0, not '-1'"),
    ],
)
def test_invalid_options(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        vanishing.main(arguments)
    assert message in capsys.readouterr().err
