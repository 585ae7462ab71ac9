"""training.fit: equality with a loop written by hand, lengths, validation, interruptions, checkpoints."""

import signal

import numpy as np
import pytest

from rnnfast import GRU, LSTM, Dropout, Embedding, Linear, Model, Pool, Sequential, files, training
from rnnfast.training import Adam, History, fit, mean_squared_error, plot_history, softmax_cross_entropy
from rnnfast.training.batches import shuffled


def classifier(seed=0, **options):
    return Sequential(
        GRU(2, 6, rng=seed, **options), Pool("last", **options), Dropout(0.3, rng=5), Linear(6, 3, rng=seed)
    )


def problem(rng, count=23, longest=9):
    x = [rng.standard_normal((length, 2)).astype(np.float32) for length in rng.integers(1, longest, count)]
    return x, rng.integers(0, 3, count)


def run(data, model=None, **options):
    """The model and the history of a short training."""
    model = model or classifier()
    options = {"loss": softmax_cross_entropy, "epochs": 4, "batch_size": 5, "rng": 1, "verbose": False} | options
    return model, fit(model, data, **options)


def same(model, other):
    return all(np.array_equal(array, other.parameters[name]) for name, array in model.parameters.items())


def test_loop_by_hand(rng):
    x, target = problem(rng)
    got, history = run((x, target), clip=0.1)
    model, order = classifier(), np.random.default_rng(1)
    adam, losses = Adam(model.parameters), []
    lengths = np.array(list(map(len, x)))
    for _ in range(4):
        total = 0.0
        for which in shuffled(lengths, 5, order):
            padded = np.zeros((max(lengths[which]), len(which), 2), np.float32)
            for n, k in enumerate(which):
                padded[: len(x[k]), n] = x[k]
            y, _, tape = model.forward(padded, lengths=lengths[which])
            loss, dy = softmax_cross_entropy(y, target[which])
            gradients = model.backward(tape, dy).parameters
            training.clip_grad_norm(gradients, 0.1)
            adam.step(gradients)
            total += loss * len(which)
        losses.append(total / len(x))
    np.testing.assert_allclose(history.loss, losses, rtol=1e-12)
    np.testing.assert_allclose(
        got.parameters["0.weight_hh_l0"], model.parameters["0.weight_hh_l0"], rtol=1e-6, atol=1e-7
    )


def test_every_sequence_is_in_one_batch_of_similar_lengths(rng):
    lengths = rng.integers(1, 50, 995)
    batches = list(shuffled(lengths, 10, rng))
    assert sorted(map(len, batches)) == [5] + [10] * 99
    assert sorted(np.concatenate(batches)) == list(range(995))
    assert np.mean([np.ptp(lengths[which]) for which in batches]) < 6
    again = list(shuffled(lengths, 10, rng))
    assert {tuple(sorted(which)) for which in batches} != {tuple(sorted(which)) for which in again}


@pytest.mark.parametrize("batch_first", [False, True])
def test_targets_of_steps_are_masked(batch_first, rng):
    x = [rng.standard_normal((length, 2)) for length in (3, 5, 4)]
    target = [row[:, :1] for row in x]
    seen = []

    def loss(y, target, mask=None):
        seen.append((target, mask))
        return mean_squared_error(y, target, mask)

    model = Sequential(LSTM(2, 4, batch_first=batch_first, rng=0), Linear(4, 1, rng=0))
    run((x, target), model, loss=loss, epochs=1)
    ((padded, mask),) = seen
    if batch_first:
        padded, mask = padded.swapaxes(0, 1), mask.swapaxes(0, 1)
    assert padded.shape == (5, 3, 1)
    np.testing.assert_array_equal(mask.sum(axis=0), [3, 5, 4])
    for n, row in enumerate(target):
        np.testing.assert_array_equal(padded[: len(row), n], row)


def test_arrays_windows_and_ids(rng):
    """One update after each window, with the state carried on."""
    codes = rng.integers(0, 7, (4, 12))
    model = Sequential(Embedding(7, 5, rng=0), GRU(5, 6, rng=0), Linear(6, 7, rng=0))
    shapes = []

    def loss(y, target):
        shapes.append(target.shape)
        return softmax_cross_entropy(y, target)

    _, history = run((codes, codes), model, loss=loss, window=5, epochs=30, optimizer=Adam(model, lr=0.05))
    assert shapes[:3] == [(5, 4), (5, 4), (2, 4)]
    assert history.loss[-1] < 0.2 * history.loss[0]


def test_windows_of_ragged_sequences(rng):
    x = [rng.standard_normal((length, 2)).astype(np.float32) for length in (7, 3, 12)]
    model = Sequential(GRU(2, 6, rng=0), Linear(6, 2, rng=0))
    weights = []

    def loss(y, target, mask=None):
        weights.append(y.shape[0] * y.shape[1] if mask is None else int(mask.sum()))
        return mean_squared_error(y, target, mask)

    run((x, x), model, loss=loss, window=5, epochs=1)
    assert weights == [5 + 3 + 5, 2 + 5, 2]
    with pytest.raises(ValueError, match="bidirectional"):
        run((x, x), Sequential(GRU(2, 1, bidirectional=True)), loss=loss, window=5)


def test_targets_per_sequence_or_per_step(rng):
    """A forecast of as many values as the sequence has steps needs per_step=False, or a Pool."""
    x = rng.standard_normal((6, 4, 1)).astype(np.float32)
    target = rng.standard_normal((6, 4)).astype(np.float32)
    seen = []

    def loss(y, target):
        seen.append(target)
        return mean_squared_error(y, target)

    run((x, target), Sequential(GRU(1, 4), Pool("last")), loss=loss, epochs=1, batch_size=6)
    np.testing.assert_array_equal(seen[0], target)

    class Last(Model):
        def __init__(self):
            self.gru = GRU(1, 4)

        def call(self, x):
            return self.gru(x)[0][-1]

    run((x, target), Last(), loss=loss, epochs=1, batch_size=6, per_step=False)
    np.testing.assert_array_equal(seen[1], target)
    with pytest.raises(ValueError, match="takes no lengths"):
        run(([x[0], x[1][:2]], target[:2]), Last(), loss=loss)
    with pytest.raises(ValueError, match="per_step=True"):
        run((x, target[:, 0]), Last(), loss=loss, per_step=True)


def test_lengths_are_passed_to_a_model_that_needs_them(rng):
    class Needing(Model):
        def __init__(self):
            self.gru, self.pool = GRU(2, 3), Pool("last")

        def call(self, x, lengths):
            return self.pool(self.gru(x, lengths=lengths)[0], lengths=lengths)

    _, history = run(([rng.standard_normal((4, 2))] * 6, [0] * 6), Needing())
    assert len(history.loss) == 4


def test_models_without_steps_get_rows(rng):
    x = rng.standard_normal((40, 3))
    model, history = run((x, x @ [[1.0], [2.0], [3.0]]), Linear(3, 1, rng=0), loss=mean_squared_error, epochs=60)
    assert history.loss[-1] < history.loss[0]
    assert model(x).shape == (40, 1)


def test_batches_of_a_function():
    def batches(generator):
        for k in range(3):
            x = generator.standard_normal((5, 2, 2)).astype(np.float32)
            yield (x, generator.integers(0, 3, 2), {"lengths": [5, 3]})[: 2 + k % 2]

    _, history = run(batches, validation=batches)
    assert len(history.loss) == len(history.validation) == 4


def test_best_parameters_are_restored(rng):
    data, held_out = problem(rng), problem(rng)
    first, second = classifier(), classifier()
    options = {"validation": held_out, "batch_size": 4}
    model, history = run(data, first, epochs=50, patience=3, optimizer=Adam(first, lr=0.03), **options)
    assert 4 < len(history.validation) < 50
    assert len(history.validation) - 1 - history.best == 3
    assert history.validation[history.best] == min(history.validation)
    again, short = run(data, second, epochs=history.best + 1, optimizer=Adam(second, lr=0.03), **options)
    assert same(model, again)
    assert short.loss == history.loss[: history.best + 1]


def test_patience_counts_the_epochs_of_a_checkpoint(tmp_path, rng):
    data, path = problem(rng), tmp_path / "checkpoint"
    losses = []

    def loss(y, target):
        value, dy = softmax_cross_entropy(y, target)
        losses.append(value)
        return len(losses), dy

    options = {"loss": loss, "patience": 2, "checkpoint": path, "batch_size": len(data[0])}
    assert run(data, epochs=2, **options)[1].loss == [1, 2]
    for _ in range(2):  # the second of which begins after the end
        _, history = run(data, epochs=9, **options)
        assert (history.loss, history.best) == ([1, 2, 3], 0)


def test_a_fraction_is_held_out(rng):
    _, history = run(problem(rng), validation=0.2)
    assert len(history.validation) == 4
    with pytest.raises(ValueError, match="below 1"):
        run(problem(rng), validation=1.5)


def test_schedule_and_callbacks(rng):
    rates, seen = [], []

    def schedule(step):
        rates.append(step)
        return 0.1 / (1 + step)

    def stop(history):
        seen.append(len(history.loss))
        return len(history.loss) == 2

    _, history = run(problem(rng), schedule=schedule, callbacks=iter([stop]))
    assert seen == [1, 2]
    assert rates == list(range(10))
    assert history.lr == [0.1 / 5, 0.1 / 10]


def test_reduce_on_plateau_is_called_after_every_epoch(tmp_path, rng):
    data, path = problem(rng), tmp_path / "checkpoint"

    def plateau():
        return training.schedules.ReduceOnPlateau(1e-3, factor=0.5, patience=0, threshold=0.5)

    _, whole = run(data, schedule=plateau(), epochs=5)
    assert whole.lr == [1e-3, 1e-3, 5e-4, 2.5e-4, 1.25e-4]  # the lr of an epoch is that of its updates
    run(data, schedule=plateau(), epochs=3, checkpoint=path)
    _, history = run(data, schedule=plateau(), epochs=5, checkpoint=path)
    assert history.lr == whole.lr
    assert history.loss == whole.loss
    with pytest.raises(ValueError, match="another kind of schedule"):
        run(data, checkpoint=path)


def test_ctrl_c_leaves_the_best_parameters(rng):
    data = problem(rng)

    def interrupt(history):
        if len(history.loss) == 3:
            signal.raise_signal(signal.SIGINT)

    model, history = run(data, validation=data, epochs=50, callbacks=[interrupt])
    assert history.interrupted
    assert len(history.loss) == 3
    expected, _ = run(data, validation=data, epochs=history.best + 1)
    assert same(model, expected)
    assert "interrupted" in repr(history)


@pytest.mark.parametrize("validation", [False, True])
@pytest.mark.parametrize("fault", ["loss", "rate", "data"])
def test_divergence_is_an_error_and_leaves_the_last_finite_parameters(fault, validation, rng):
    data = problem(rng)
    calls = []

    def loss(y, target):
        calls.append(None)
        value, dy = softmax_cross_entropy(y, target)
        return (np.nan, np.full_like(dy, np.nan)) if fault == "loss" and len(calls) > 15 else (value, dy)

    def schedule(step):
        return 1e308 if fault == "rate" and step >= 11 else 1e-3

    if fault == "data":
        data[0][7][0] = np.nan
    model = classifier()
    before = model.state_dict()
    held_out = (data[0][:5], data[1][:5]) if validation else None
    match = "in epoch 0" if fault == "data" else r"in epoch [23]"
    options = {"optimizer": training.SGD(model, lr=0.1), "schedule": schedule} if fault == "rate" else {}
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=f"diverged {match}: .*look for NaN"):
        run(data, model, loss=loss, validation=held_out, **options)
    assert all(np.isfinite(array).all() for array in model.parameters.values())
    if fault == "data":
        assert all(np.array_equal(array, model.parameters[name]) for name, array in before.items())


def test_validation_loss_that_is_nan_is_named(rng):
    x, target = problem(rng)
    held_out = [np.full((2, 2), np.nan)], [0]
    with pytest.raises(ValueError, match="diverged in epoch 0: the validation loss is nan"):
        run((x, target), validation=held_out)


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("validation", [None, 0.25])
def test_checkpoint_continues_bit_for_bit(tmp_path, stop, validation, rng):
    data, path = problem(rng), tmp_path / "checkpoint"
    whole, expected = run(data, validation=validation, epochs=6)
    run(data, validation=validation, epochs=stop, checkpoint=path)
    # A new process has a new model, whose values and generators are others.
    model = classifier(seed=9)
    model[2]._rng.random(7)
    _, history = run(data, model, validation=validation, epochs=6, checkpoint=path)
    assert history.loss == expected.loss
    assert history.validation == expected.validation
    assert history.best == expected.best
    assert same(model, whole)


def test_checkpoint_of_another_training_changes_nothing(tmp_path, rng):
    path = tmp_path / "checkpoint"
    data = problem(rng)
    run(data, epochs=1, checkpoint=path)
    other = Sequential(GRU(2, 7, rng=0), Pool("last"), Dropout(0.3), Linear(7, 3, rng=0))
    before = other.state_dict()
    for options, match in (({}, "must have shape"), ({"optimizer": training.SGD(other, lr=0.1)}, "saved with Adam")):
        with pytest.raises(ValueError, match=match):
            run(data, other, checkpoint=path, **options)
        assert all(np.array_equal(array, other.parameters[name]) for name, array in before.items())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot load"):
        run(data, checkpoint=path)


def test_checkpoint_with_a_fraction_for_validation_draws_it_again(tmp_path, rng):
    """Also if the generator of the second run is another one."""
    data, path = problem(rng), tmp_path / "checkpoint"
    _, whole = run(data, validation=0.3, epochs=4)
    run(data, validation=0.3, epochs=2, checkpoint=path)
    _, history = run(data, validation=0.3, epochs=4, checkpoint=path, rng=None)
    assert history.validation == whole.validation
    with pytest.raises(ValueError, match="saved with validation data"):
        run(data, checkpoint=path)


def test_checkpoint_of_infinite_losses(tmp_path, rng):
    data, path = problem(rng), tmp_path / "checkpoint"
    calls = []

    def loss(y, target):
        value, dy = softmax_cross_entropy(y, target)
        calls.append(None)
        return (np.inf if len(calls) == 6 else value), dy  # of the first validation

    def note(history):
        history.accuracy = np.float32(1)  # is not saved

    held_out = data[0][:5], data[1][:5]
    options = {"loss": loss, "validation": held_out, "checkpoint": path, "callbacks": [note]}
    _, history = run(data, epochs=2, **options)
    assert history.validation[0] == np.inf
    _, again = run(data, epochs=3, **options)
    assert again.validation[:2] == history.validation


def test_checkpoint_that_cannot_be_written_is_found_before_training(tmp_path, rng):
    seen = []
    with pytest.raises(OSError, match="No such file"):
        run(problem(rng), checkpoint=tmp_path / "no" / "checkpoint", callbacks=[seen.append])
    assert not seen


@pytest.mark.parametrize("change", [{"best": 99}, {"loss": []}, {"updates": -1}, {"updates": "x"}, {"lr": None}])
def test_forged_history_is_refused(tmp_path, change, rng):
    data, path = problem(rng), tmp_path / "checkpoint"
    model, _ = run(data, epochs=2, checkpoint=path)
    with files.opening(path) as archive:
        about = archive.about
        arrays = {name: archive.take(name, shape, np.float32) for name, shape in archive.shapes.items()}
    target = about["about"] if "updates" in change else about["about"]["history"]
    target.update(change)
    files.write(path, about, arrays)
    before = model.state_dict()
    with pytest.raises(ValueError, match="cannot load"):
        run(data, model, checkpoint=path)
    assert all(np.array_equal(array, model.parameters[name]) for name, array in before.items())


def test_checkpoint_by_hand(tmp_path):
    model, generator = GRU(2, 3, rng=0), np.random.default_rng(3)
    adam = Adam(model, lr=0.5)
    adam.step(model.parameters)
    training.save_checkpoint(tmp_path / "c", model, adam, rng=generator, about=[1, {"a": None}])
    assert training.load_checkpoint(tmp_path / "c") == [1, {"a": None}]
    kept, draws = model.state_dict(), generator.random(3)
    other, fresh = GRU(2, 3), np.random.default_rng()
    optimizer = Adam(other, lr=0.1)
    assert training.load_checkpoint(tmp_path / "c", other, optimizer, rng=fresh) == [1, {"a": None}]
    assert same(other, model)
    assert optimizer.lr == 0.5
    assert all(np.array_equal(a, adam.state_dict()[n]) for n, a in optimizer.state_dict().items())
    np.testing.assert_array_equal(fresh.random(3), draws)
    assert kept.keys() == other.state_dict().keys()
    with pytest.raises(ValueError, match="has the states of 2 random generators, but this training has 1"):
        training.load_checkpoint(tmp_path / "c", other, optimizer)
    with pytest.raises(TypeError, match="needs both the model and the optimizer"):
        training.load_checkpoint(tmp_path / "c", other)
    with pytest.raises(ValueError, match="not JSON compliant"):
        training.save_checkpoint(tmp_path / "c", model, adam, about=np.inf)
    model.save(tmp_path / "model")
    for restored in ((), (other, optimizer)):
        with pytest.raises(ValueError, match="not a checkpoint"):
            training.load_checkpoint(tmp_path / "model", *restored)


@pytest.mark.parametrize("tqdm", [True, False])
def test_progress(tqdm, rng, capsys, monkeypatch):
    if tqdm:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(__import__("sys").modules, "tqdm.auto", None)
    run(problem(rng), verbose=True, validation=0.3)
    shown = capsys.readouterr().err
    assert "validation" in shown
    assert "4/4" in shown


@pytest.mark.parametrize(
    ("data", "options", "error", "match"),
    [
        (([], []), {}, ValueError, "at least one sequence"),
        (([np.ones((2, 2))], [0, 1]), {}, ValueError, "one target for each of the 1 sequences, got 2"),
        (([np.ones((2, 2)), np.ones((2, 3))], [0, 1]), {}, ValueError, "same features"),
        (([np.ones((2, 2))] * 2, [[0], [1, 2, 3]]), {}, ValueError, "targets of equal shapes"),
        (np.ones(3), {}, ValueError, r"data must be the pair \(x, target\)"),
        (([np.ones((2, 2))], [0]), {"loss": None}, TypeError, "loss must be a function"),
        (([np.ones((2, 2))], [0]), {"schedule": 3}, TypeError, "schedule must be a function"),
        (([np.ones((2, 2))], [0]), {"callbacks": [3]}, TypeError, "a callback must be a function"),
        (([np.ones((2, 2))], [0]), {"optimizer": "adam"}, TypeError, r"optimizer must be one such as Adam\(model\)"),
        (([np.ones((2, 2))], [0]), {"optimizer": Adam}, TypeError, r"optimizer must be one such as Adam\(model\)"),
        (([np.ones((2, 2))], [0]), {"optimizer": Adam(GRU(2, 3))}, ValueError, "update the parameters of the model"),
        (([np.ones((2, 2))] * 9, [0] * 9), {"schedule": lambda _: np.nan}, ValueError, "lr must be at least 0"),
        (lambda _: [3], {}, TypeError, r"a batch of data must be \(x, target\)"),
        (([np.ones((2, 2))], [0]), {"patience": 0}, ValueError, "patience must be at least 1"),
        (([np.ones((2, 2))], [0]), {"validation": 0.5}, ValueError, "at least two sequences"),
        (lambda _: [], {}, ValueError, "at least one mini-batch"),
    ],
)
def test_errors(data, options, error, match):
    with pytest.raises(error, match=match):
        run(data, **options)
    with pytest.raises(TypeError, match="model must be a layer"):
        fit(len, data, loss=mean_squared_error)


def test_plot_history(rng):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    _, history = run(problem(rng), validation=0.3)
    ax = plot_history(history, Figure().subplots())
    assert [line.get_label() for line in ax.lines] == ["training", "validation", f"best: {history.best + 1}"]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), history.loss)
    with pytest.raises(TypeError, match="history must be a History"):
        plot_history([1.0])
    assert repr(History()) == "History(0 epochs)"
