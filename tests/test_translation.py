"""examples/translation.py: translation of sequences with attention."""

import importlib.util
import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from support.checkout import load_example
from support.compare import central_differences

from rnnfast.training import softmax_cross_entropy

pytestmark = pytest.mark.usefixtures("threads")  # the programs set the number

translation = load_example("translation")

SMALL = ["--hidden", "6", "--embedding", "4", "--batch", "10", "--held-out", "12", "--epochs", "1", "--threads", "1"]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def random_batch(rng):
    """Variable-length sources and targets: codes, lengths, codes, and the mask of the targets."""
    lengths, ends = np.array([5, 1, 3]), np.array([2, 4, 1])
    source, target = rng.integers(1, 6, (5, 3)), rng.integers(1, 5, (4, 3))
    return source, lengths, target, np.arange(4)[:, None] < ends


# ---------------------------------------------------------------------------------------------------------- the model


def test_gradients_of_the_model_are_central_differences(rng):
    model = translation.Translator(6, 5, 3, 2, rng, np.float64)
    source, lengths, target, counted = random_batch(rng)
    follows = rng.integers(5, size=counted.sum())

    def loss():
        return softmax_cross_entropy(model.forward(source, lengths, target, counted)[0], follows)[0]

    scores, tape = model.forward(source, lengths, target, counted)
    gradients = model.backward(tape, softmax_cross_entropy(scores, follows)[1]).parameters
    assert gradients.keys() == model.parameters.keys()
    for name, parameter in model.parameters.items():
        assert gradients[name].any(), name
        expected = central_differences(loss, parameter)
        np.testing.assert_allclose(gradients[name], expected, rtol=0, atol=1e-8, err_msg=name)


def test_translation_takes_the_likeliest_symbol_after_those_before_it():
    rng = np.random.default_rng(36)
    model = translation.Translator(6, 5, 8, 7, rng, np.float64)
    source, lengths, _, _ = random_batch(rng)
    model.readout.parameters["bias"][0] += 0.1  # so that some end
    codes, weights = model.translate(source, lengths, longest=9)
    assert (codes != 0).sum(axis=0).tolist() == [9, 1, 4]
    assert weights.shape == (3, len(codes), 5)
    for n, length in enumerate(lengths):
        answer = [*itertools.takewhile(bool, codes[:, n])]
        assert not codes[len(answer) :, n].any()
        read = np.array([[0, *answer]]).T
        alone = source[:length, n, None], np.array([length]), read, np.ones(read.shape, bool)
        likeliest = model.forward(*alone)[0].argmax(axis=1).tolist()
        assert likeliest[: len(answer)] == answer
        assert len(answer) == 9 or likeliest[-1] == 0


def test_translation_ends_where_all_have(rng):
    model = translation.Translator(6, 5, 8, 7, rng)
    model.readout.parameters["bias"][0] = 100
    source, lengths, _, _ = random_batch(rng)
    assert model.translate(source, lengths, longest=9)[0].tolist() == [[0, 0, 0]]


# -------------------------------------------------------------------------------------------------------- the measures


def test_codes_round_trip():
    alphabet = translation.Alphabet(["abc", ("d",)])
    codes, lengths = alphabet.encode(["cab", "d", ""])
    assert codes.tolist() == [[3, 4, 0], [1, 0, 0], [2, 0, 0]]
    assert lengths.tolist() == [3, 1, 0]
    assert alphabet.decode(codes) == [tuple("cab"), ("d",), ()]


def test_edit_distance_is_the_shortest_way(rng):
    def shortest(a, b):
        if not a or not b:
            return len(a) + len(b)
        ways = shortest(a[1:], b) + 1, shortest(a, b[1:]) + 1, shortest(a[1:], b[1:]) + (a[0] != b[0])
        return min(ways)

    assert translation.edit_distance("kitten", "sitting") == 3
    for _ in range(50):
        a, b = (rng.integers(3, size=rng.integers(6)).tolist() for _ in range(2))
        assert translation.edit_distance(a, b) == shortest(a, b)


def test_score_takes_the_closest_of_several_right_answers():
    task = SimpleNamespace(held_out=[("x", ["abcd", "xy"]), ("y", ["abc"]), ("z", ["ab"])])
    correct, errors = translation.score(task, ["xy", "abx", ""])
    assert correct == pytest.approx(1 / 3)
    assert errors == pytest.approx((0 + 1 + 2) / (2 + 3 + 2))


def spelling_task(rng, held_out=60, learnt=600):
    """Words of a regular language: a letter has no sound, one, two, or one that depends on the next letter."""
    words = ["".join(rng.choice(list("abcde"), rng.integers(2, 6))) for _ in range(learnt + held_out)]
    sounds = {"a": "A", "b": "B", "c": "", "d": "DZ"}

    def say(word):
        return tuple("".join(sounds.get(x, "I" if then == "a" else "E") for x, then in itertools.pairwise(word + ".")))

    pairs = [(word, say(word)) for word in words]
    tests = [(word, [sound]) for word, sound in pairs[:held_out]]
    return translation.Task("Spelling", pairs[held_out:], tests, " ", translation.g2p_baselines, 0)


def test_letters_in_context_say_a_regular_language(rng):
    task = spelling_task(rng)
    [answers] = task.baselines(task).values()
    assert translation.score(task, answers) == (1, 0)


def train(task, seed=0, epochs=1, seconds=60, **options):
    options = {"embedding": 8, "hidden": 24, "batch": 16, "lr": 0.02, "seed": seed, **options}
    training = translation.Training(task, SimpleNamespace(**options), epochs, seconds)
    training.run(SimpleNamespace(step=lambda *_: None, note=lambda *_: None))
    return training


def test_network_learns_a_regular_language(rng):
    task = spelling_task(rng)
    training = train(task, epochs=8)
    answers, weights = training.answer()
    assert translation.score(task, answers).correct > 0.9
    assert training.evaluations[-1] == (training.step, translation.score(task, answers))
    np.testing.assert_allclose(weights.sum(axis=2), 1, rtol=1e-5)


def test_same_seed_gives_the_same_training(rng):
    task = spelling_task(rng, learnt=100)
    first, again, other = (train(task, seed, epochs=2) for seed in (0, 0, 1))
    assert first.losses == again.losses
    assert first.answer()[0] == again.answer()[0]
    assert all(
        first.model.parameters[name].tobytes() == array.tobytes() for name, array in again.model.parameters.items()
    )
    assert first.losses != other.losses


def test_every_pair_is_read_once_in_an_epoch(rng, monkeypatch):
    task = spelling_task(rng, learnt=100)
    read = []
    forward = translation.Translator.forward

    def noted(model, source, lengths, target, counted):
        read.extend(zip(map(tuple, source.T.tolist()), counted.sum(axis=0).tolist(), strict=True))
        return forward(model, source, lengths, target, counted)

    monkeypatch.setattr(translation.Translator, "forward", noted)
    training = train(task, epochs=1)
    assert training.step == 7
    words = [training.sources.decode(np.array([word]).T)[0] for word, _ in read]
    expected = [(tuple(word), len(sound) + 1) for word, sound in task.training]
    assert sorted(zip(words, [count for _, count in read], strict=True)) == sorted(expected)


def test_fewer_steps_where_time_runs_out(rng):
    training = train(spelling_task(rng), epochs=1000, seconds=0.3)
    assert training.step == training.steps < training.planned
    assert training.seconds < 2


# ------------------------------------------------------------------------------------------------------------ the data


def test_pronunciations_are_grouped_by_word(tmp_path):
    path = tmp_path / "dict"
    path.write_text("a AH\na(2) EY\na's EY Z\nabbe AE B IY\n", encoding="utf-8")
    assert translation.read_pronunciations(path) == {"a": [("AH",), ("EY",)], "abbe": [("AE", "B", "IY")]}


def test_words_held_out_are_not_learnt(rng):
    pytest.importorskip("pocketsphinx")
    task = translation.g2p_task(500, rng)
    assert len(task.training) > 100_000
    assert not {word for word, _ in task.training} & {word for word, _ in task.held_out}
    assert all(targets for _, targets in task.held_out)


def test_dates_match_their_phrases_and_held_out_days_are_not_in_training(rng):
    dates = pytest.importorskip("babel.dates")
    task = translation.dates_task(300, rng, training=600)
    assert not {target for _, target in task.training} & {target for _, [target] in task.held_out}
    pairs = task.training + [(source, target) for source, [target] in task.held_out]
    assert {source[0].strip() for source, _ in pairs} == set(translation.LOCALES)
    for (locale, *text), target in pairs:
        day = translation.datetime.date.fromisoformat("".join(target))
        phrases = [dates.format_date(day, form, locale.strip()) for form in translation.FORMATS]
        assert "".join(text) in phrases
    # Parsers that know the order of a language are right where a phrase is of digits alone.
    answers = task.baselines(task)["babel's parse_date"]
    digits = [index for index, (source, _) in enumerate(task.held_out) if source[0] == "pl " and source.count(".") == 2]
    assert digits
    assert all(answers[index] == task.held_out[index][1][0] for index in digits)


# --------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def few(monkeypatch):
    """A small data set, so that a run is short."""
    read, dates = translation.read_pronunciations, translation.TASKS["dates"]
    monkeypatch.setattr(translation, "read_pronunciations", lambda path: dict(list(read(path).items())[:5000:20]))
    monkeypatch.setitem(translation.TASKS, "dates", lambda size, rng: dates(size, rng, training=60))


def run(tmp_path, *options):
    return translation.main([*SMALL, "--picture", str(tmp_path / "picture.png"), *options])


@pytest.mark.usefixtures("few")
def test_run_from_end_to_end(tmp_path, capsys):
    pytest.importorskip("pocketsphinx")
    pytest.importorskip("babel")
    assert run(tmp_path) == 0
    report, progress = capsys.readouterr()
    assert "letters in context" in report
    assert "babel's parse_date" in report
    assert report.count("  network  ") == 2
    assert progress.splitlines()[-1].startswith("epoch 1.00  ")
    drawn = importlib.util.find_spec("matplotlib") is not None
    assert (tmp_path / "picture.png").is_file() == drawn
    assert ("pip install matplotlib" in report) != drawn


@pytest.mark.usefixtures("few")
def test_plot_that_cannot_be_written(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("babel")
    assert run(tmp_path, "--task", "dates", "--picture", str(tmp_path / "picture.odd")) == 2
    assert "cannot draw" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.usefixtures("few")
def test_without_matplotlib_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    pytest.importorskip("babel")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(tmp_path, "--task", "dates") == 0
    assert "pip install matplotlib" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "module", "package"), [("g2p", "pocketsphinx", "pocketsphinx"), ("dates", "babel.dates", "babel")]
)
def test_without_its_data_it_says_what_to_install(tmp_path, capsys, monkeypatch, task, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    assert run(tmp_path, "--task", task) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(f"is not installed: pip install {package}")


@pytest.mark.usefixtures("few")
def test_diverged_training_is_reported(tmp_path, capsys):
    pytest.importorskip("babel")
    assert run(tmp_path, "--task", "dates", "--lr", "1e38") == 2
    assert "an --lr below" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden", "0"], "must be an integer of at least 1, not '0'"),
        (["--seconds", "nan"], "must be a number greater than 0, not 'nan'"),
        (["--seed", "-1"], "must be an integer of at least 0, not '-1'"),
        (["--task", "poems"], "choose from"),
    ],
)
def test_invalid_options(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        translation.main(arguments)
    assert message in capsys.readouterr().err
