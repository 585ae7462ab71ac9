"""examples/speech.py: recognition of speakers by their vowels."""

import re

import numpy as np
import pytest
from support.checkout import load_example

pytest.importorskip("sklearn")

pytestmark = pytest.mark.usefixtures("threads")  # the program sets the number

speech = load_example("speech")


@pytest.fixture(scope="module")
def utterances():
    """Five utterances of each of nine speakers, as noise around a point for each speaker; and the speakers."""
    rng = np.random.default_rng(0)
    speakers = np.repeat(np.arange(speech.SPEAKERS), 5)
    places = rng.standard_normal((speech.SPEAKERS, 12))
    noise = [0.3 * rng.standard_normal((length, 12)) for length in rng.integers(3, 9, len(speakers))]
    return [(places[speaker] + x).astype(np.float32) for speaker, x in zip(speakers, noise, strict=True)], speakers


def warped(a, b):
    """The distance under dynamic time warping, cell by cell of its table (Sakoe and Chiba 1978)."""
    cost = np.full((len(a) + 1, len(b) + 1), np.inf)
    cost[0, 0] = 0
    for i in range(len(a)):
        for j in range(len(b)):
            step = np.square(a[i].astype(float) - b[j]).sum()
            cost[i + 1, j + 1] = step + min(cost[i, j], cost[i, j + 1], cost[i + 1, j])
    return cost[-1, -1]


def test_neighbours_are_the_nearest_under_warping(utterances):
    pytest.importorskip("dtaidistance")
    x, _ = utterances
    known, unknown = x[::2], x[1::2]
    expected = [np.argmin([warped(a, b) for b in known]) for a in unknown]
    np.testing.assert_array_equal(speech.nearest_neighbours(known, unknown), expected)


def test_settings_are_chosen_on_the_last_utterances_of_each_speaker():
    speakers = np.array([0] * 30 + [4] * 30 + [2] * 30)
    kept = speech.split_training(speakers)
    np.testing.assert_array_equal(kept, ([True] * 20 + [False] * 10) * 3)


def test_frame_by_frame_agrees_with_the_tagger_on_whole_utterances(utterances):
    x, speakers = utterances
    tagger = speech.listener(x, speakers, epochs=15, seed=0)
    heard = [speech.listen(tagger, utterance) for utterance in x]
    for row, whole in zip(heard, tagger.predict_proba(x), strict=True):
        np.testing.assert_allclose(row, whole, atol=1e-5)
    assert speech.accuracy_by_frames(heard, speakers)[-1] > 0.9


def test_accuracy_keeps_the_last_prediction_of_finished_utterances():
    heard = [np.eye(3)[[0, 1]], np.eye(3)[[2, 0, 1, 1]]]
    np.testing.assert_array_equal(speech.accuracy_by_frames(heard, np.array([1, 1])), [0, 0.5, 1, 1])


def test_utterance_to_show_is_one_on_which_the_answer_turns_right():
    heard = [np.eye(3)[[1, 1]], np.eye(3)[[0, 2]], np.eye(3)[[0, 1]]]
    assert speech.telling(heard, np.array([1, 1, 1])) == 2
    assert speech.telling(heard[:2], np.array([1, 1])) == 0


def test_data_are_the_ones_of_the_repository():
    pytest.importorskip("sktime")
    utterances, speakers = speech.load("train")
    np.testing.assert_array_equal(np.bincount(speakers), [30] * 9)
    assert {x.shape[1] for x in utterances} == {12}
    unknown, truth = speech.load("test")
    np.testing.assert_array_equal(np.bincount(truth), [31, 35, 88, 44, 29, 24, 40, 50, 29])
    lengths = [len(x) for x in utterances + unknown]
    assert (min(lengths), max(lengths)) == (7, 29)


@pytest.fixture
def small(monkeypatch, utterances):
    """The example on a few utterances, without the search for settings."""
    pytest.importorskip("dtaidistance")
    monkeypatch.setattr(speech, "load", lambda split: utterances)  # noqa: ARG005
    monkeypatch.setattr(speech, "KEPT", 3)
    monkeypatch.setattr(speech, "HIDDEN", (16,))


@pytest.mark.usefixtures("small")
def test_run_from_end_to_end(tmp_path, capsys):
    picture = tmp_path / "speech.png"
    arguments = ["--seeds", "1", "--epochs", "12", "--threads", "1", "--picture", str(picture)]
    assert speech.main(arguments) == 0
    report, progress = capsys.readouterr()
    assert "16 units, layers: 2" in report
    assert report.count("  chosen") == 1
    # Each of these utterances is known, so its nearest neighbour is itself.
    assert re.search(r"time warping +100.0%", report)
    assert "frame  1: speaker" in report
    assert "choosing settings" in progress
    assert speech.main(arguments) == 0
    again = capsys.readouterr().out
    assert again.splitlines()[:-1] == report.splitlines()[:-1]  # but for the seconds


@pytest.mark.usefixtures("small")
def test_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    few = ["--seeds", "1", "--epochs", "1", "--picture"]
    assert speech.main([*few, str(tmp_path / "speech.png")]) == 0
    assert (tmp_path / "speech.png").stat().st_size > 10_000
    assert speech.main([*few, str(tmp_path / "speech.odd")]) == 2
    assert "cannot draw" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_without_matplotlib_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(speech.sys.modules, "matplotlib.figure", None)
    assert speech.main(["--seeds", "1", "--epochs", "1", "--picture", str(tmp_path / "speech.png")]) == 0
    assert "pip install matplotlib" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "package"),
    [("sktime.datasets", "sktime"), ("rnnfast.sklearn", "scikit-learn"), ("dtaidistance", "dtaidistance")],
)
def test_missing_packages_are_one_line(module, package, capsys, monkeypatch, utterances):
    if module == "dtaidistance":
        monkeypatch.setattr(speech, "load", lambda split: utterances)  # noqa: ARG005
    monkeypatch.delattr(speech.rnnfast, "sklearn", raising=False)
    monkeypatch.setitem(speech.sys.modules, module, None)
    assert speech.main([]) == 2
    assert f"pip install {package}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--epochs", "many"], ["--threads", "-1"]])
def test_invalid_options(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        speech.main(arguments)
    assert "must be an integer from 1 to" in capsys.readouterr().err
