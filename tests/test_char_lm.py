"""examples/char_lm.py: a character language model."""

import collections
import signal

import numpy as np
import pytest
from support import archives
from support.checkout import load_example

from rnnfast.training import softmax_cross_entropy

char_lm = load_example("char_lm")

TEXT = "".join(f"{number} times {number} is {number * number}.\n" for number in range(60))
SMALL = ["--hidden", "8", "--embedding", "4", "--batch", "3", "--window", "10", "--epochs", "2", "--sample", "20"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def run(text, model, *options):
    return char_lm.main(["--text", str(text), "--model", str(model), *SMALL, *options])


def contents(model):
    checkpoint, arrays = archives.contents(model)
    about = checkpoint["about"] | {"generators": checkpoint["generators"]}
    assert about.pop("seconds") > 0
    return about, arrays


def counted_one_by_one(codes, start, size):
    """Bits per character for each order, from counts in dictionaries; -1 precedes the first character."""
    codes = [-1] * char_lm.ORDERS + list(codes)
    start += char_lm.ORDERS
    counts = collections.defaultdict(collections.Counter)
    for end in range(char_lm.ORDERS, start):
        for length in range(char_lm.ORDERS):
            counts[tuple(codes[end - length : end])][codes[end]] += 1

    def chance(end, length):
        shorter = chance(end, length - 1) if length else 1 / size
        seen = counts[tuple(codes[end - length : end])]
        total, kinds = seen.total(), len(seen)
        return (seen[codes[end]] + kinds * shorter) / (total + kinds) if total else shorter

    return [-np.mean([np.log2(chance(end, n)) for end in range(start, len(codes))]) for n in range(char_lm.ORDERS)]


@pytest.mark.parametrize("size", [1, 2, 5, 300])
def test_ngrams_agree_with_counting_in_dictionaries(size):
    codes = (np.random.default_rng(size).random(400) ** 3 * size).astype(int)
    bits = char_lm.ngram_bits_per_character(codes, 350, size)
    np.testing.assert_allclose(bits, counted_one_by_one(codes.tolist(), 350, size), rtol=1e-12)


def test_characters_are_encoded_by_their_place():
    characters = "".join(sorted(set("naïve 𝄞 text\n")))
    codes = char_lm.encode("naïve 𝄞 text\n", characters)
    assert "".join(characters[code] for code in codes) == "naïve 𝄞 text\n"


@pytest.mark.parametrize("cell", char_lm.CELLS)
@pytest.mark.parametrize("lanes", [1, 7, 70])
def test_bits_per_character_agree_with_single_characters(cell, lanes):
    options = {"embedding": 3, "hidden": 5, "cell": cell, "layers": 2}
    model = char_lm.LanguageModel(6, options, np.random.default_rng(0))
    codes = np.random.default_rng(1).integers(6, size=150)
    start, window = 90, 8
    length = -(-(len(codes) - start) // lanes)
    expected = []
    for position in range(start, len(codes)):
        lane = start + (position - start) // length * length
        scores, _ = model(codes[lane - window : position, None])
        expected.append(softmax_cross_entropy(scores[-1], codes[[position]])[0] / np.log(2))
    assert model.bits_per_character(codes, start, lanes, window) == pytest.approx(np.mean(expected), rel=1e-6)


def test_gradients_of_the_loss():
    options = {"embedding": 3, "hidden": 4, "cell": "gru", "layers": 1}
    model = char_lm.LanguageModel(5, options, np.random.default_rng(0))
    codes = np.random.default_rng(1).integers(5, size=(9, 2))

    def forward():
        scores, _, tape = model.forward(codes[:-1], None)
        return *softmax_cross_entropy(scores, codes[1:]), tape

    loss, dscores, tape = forward()
    gradients = model.backward(tape, dscores).parameters
    assert gradients.keys() == model.parameters.keys()
    for name, parameter in model.parameters.items():
        before = parameter.copy()
        parameter -= 0.01 * gradients[name]
        assert forward()[0] < loss, name
        parameter[...] = before


@pytest.mark.parametrize("cell", char_lm.CELLS)
def test_run_from_end_to_end(text, tmp_path, capsys, cell):
    model = tmp_path / "model.npz"
    assert run(text, model, "--cell", cell, "--layers", "2", "--prompt", "7 times") == 0
    report, progress = capsys.readouterr()
    assert f"{len(TEXT):,} characters" in report
    assert "5-gram" in report
    assert cell.upper() in report
    assert "\n7 times" in report
    assert progress.splitlines()[-1].startswith("epoch 2.00  ")
    about, arrays = contents(model)
    bits = [value for _, value in about["evaluations"]]
    assert bits[-1] < bits[0]
    assert len(about["losses"]) == about["steps"]
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert sorted(path.name for path in tmp_path.glob("model*")) in (["model.npz"], ["model.npz", "model.png"])


def test_same_seed_gives_the_same_run(text, tmp_path):
    for name in "ab":
        assert run(text, tmp_path / name) == 0
    assert_equal_models(tmp_path / "a", tmp_path / "b")
    assert run(text, tmp_path / "c", "--seed", "1") == 0
    assert contents(tmp_path / "c")[0]["losses"] != contents(tmp_path / "a")[0]["losses"]


def assert_equal_models(first, second):
    (about, arrays), (other_about, other_arrays) = contents(first), contents(second)
    assert about == other_about
    assert arrays.keys() == other_arrays.keys()
    for name, array in arrays.items():
        assert array.tobytes() == other_arrays[name].tobytes(), name


@pytest.mark.parametrize("cell", char_lm.CELLS)
def test_interrupted_and_resumed_run_ends_like_one_in_one_go(text, tmp_path, capsys, monkeypatch, cell):
    whole, parts = tmp_path / "whole.npz", tmp_path / "parts.npz"
    assert run(text, whole, "--cell", cell) == 0

    class CtrlC(char_lm.Progress):
        def step(self, describe=None):
            super().step(describe)
            if self.done in (3, self.total // 2, self.total // 2 + 20):  # in the first epoch, at its end, in the second
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(char_lm, "Progress", CtrlC)
    assert run(text, parts, "--cell", cell) == 130
    assert f"--resume {parts}" in capsys.readouterr().out
    assert [char_lm.main(["--resume", str(parts), "--sample", "5"]) for _ in range(3)] == [130, 130, 0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_equal_models(whole, parts)


def test_second_ctrl_c_ends_the_run_at_once(text, tmp_path, monkeypatch, capsys):
    class CtrlC(char_lm.Progress):
        def step(self, describe=None):  # noqa: ARG002
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(char_lm, "Progress", CtrlC)
    assert run(text, tmp_path / "model.npz") == 130
    assert capsys.readouterr().err.endswith("\nStopped.\n")


def test_complete_run_resumed_writes_once_more(text, tmp_path, capsys):
    model = tmp_path / "model.npz"
    assert run(text, model) == 0
    before = model.read_bytes()
    capsys.readouterr()
    assert char_lm.main(["--resume", str(model), "--prompt", "59 ", "--temperature", "0.01", "--sample", "30"]) == 0
    assert "\n59 " in capsys.readouterr().out
    assert model.read_bytes() == before


def test_fewer_steps_where_time_runs_out(text, tmp_path, capsys):
    model = tmp_path / "model.npz"
    assert run(text, model, "--epochs", "1000", "--minutes", "0.01") == 0
    assert "--minutes" in capsys.readouterr().out
    about, _ = contents(model)
    assert len(about["losses"]) == about["steps"] < 20_000


def test_without_matplotlib_it_says_what_to_install(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(char_lm.sys.modules, "matplotlib.figure", None)
    assert run(text, tmp_path / "model.npz") == 0
    assert "pip install matplotlib" in capsys.readouterr().out


def failure(capsys, *arguments):
    """The last line that a failing run prints."""
    assert char_lm.main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_invalid_texts(tmp_path, capsys):
    path = tmp_path / "text"
    assert "No such file" in failure(capsys, "--text", path)
    assert "cannot read" in failure(capsys, "--text", tmp_path)
    path.write_text("")
    assert "is empty" in failure(capsys, "--text", path)
    path.write_bytes(b"caf\xe9")
    assert "not valid UTF-8: the byte at offset 3" in failure(capsys, "--text", path)
    path.write_text("A short text.")
    assert "the text has 13 characters, but" in failure(capsys, "--text", path)


def test_text_of_the_minimum_length_can_be_trained(tmp_path, capsys):
    path = tmp_path / "text"
    path.write_text("a")
    least = int(failure(capsys, "--text", path, *SMALL).split(" at least ")[1].split()[0].rstrip(";"))
    path.write_text("ab" * least)
    path.write_text(path.read_text()[:least])
    assert run(path, tmp_path / "model") == 0
    path.write_text(path.read_text()[: least - 2])
    assert "need at least" in failure(capsys, "--text", path, *SMALL)


def test_text_of_one_character_is_learnt(tmp_path, capsys):
    path = tmp_path / "text"
    path.write_text("a" * 500)
    assert run(path, tmp_path / "model") == 0
    assert "100%" in capsys.readouterr().out


def test_files_that_cannot_be_resumed_or_written(text, tmp_path, capsys):
    assert "No such file" in failure(capsys, "--resume", tmp_path / "none.npz")
    assert "is not a model" in failure(capsys, "--resume", text)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    assert "is not a model" in failure(capsys, "--resume", tmp_path / "other.npz")
    missing = tmp_path / "missing" / "model.npz"
    assert "cannot write" in failure(capsys, "--text", text, *SMALL, "--model", missing)


def test_changed_text_is_not_resumed(text, tmp_path, capsys):
    model = tmp_path / "model.npz"
    assert run(text, model) == 0
    text.write_text(TEXT.upper())
    capsys.readouterr()
    assert "another text" in failure(capsys, "--resume", model)


def test_prompt_of_strange_characters(text, capsys):
    assert "that the text does not: ! ß" in failure(capsys, "--text", text, *SMALL, "--prompt", "ß times!")


def test_picture_of_unknown_kind(text, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    line = failure(capsys, "--text", text, *SMALL, "--model", tmp_path / "model", "--picture", tmp_path / "picture.odd")
    assert "cannot draw" in line


@pytest.mark.parametrize("hidden", [10**6, 10**18])
def test_model_too_large_for_memory(text, capsys, hidden):
    assert "not enough memory" in failure(capsys, "--text", text, *SMALL, "--hidden", hidden)


def test_diverged_training_is_reported(text, tmp_path, capsys):
    line = failure(capsys, "--text", text, *SMALL, "--model", tmp_path / "model", "--cell", "rnn", "--lr", "1e38")
    assert "an --lr below" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden", "0"], "must be an integer of at least 1, not '0'"),
        (["--batch", "two"], "must be an integer of at least 1, not 'two'"),
        (["--lr", "nan"], "must be a number greater than 0, not 'nan'"),
        (["--seed", "-1"], "must be an integer of at least 0, not '-1'"),
        (["--cell", "elman"], "choose from"),
        (["--resume", "x.npz", "--hidden", "512"], "leave out --hidden"),
        (["--model", "x.png"], "would overwrite the model"),
    ],
)
def test_invalid_options(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        char_lm.main(arguments)
    assert message in capsys.readouterr().err
