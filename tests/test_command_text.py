"""``python -m rnnfast train text`` and ``sample``."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.archives import contents
from support.command_line import SMALL, TEXT, failure, main, random_model

import rnnfast
from rnnfast import reference
from rnnfast.commands import program, text

# --- the program


def test_not_enough_memory(tmp_path, capsys):
    path = tmp_path / "text"
    path.write_text(TEXT)
    line = failure(capsys, "train", "text", path, "-o", tmp_path / "model", *SMALL, "--hidden", 10**6)
    assert "not enough memory" in line


# --- train text, sample


@pytest.mark.parametrize("cell", text.CELLS)
def test_gradient_descends_in_every_parameter(cell):
    model = random_model(cell, 2)
    codes = np.random.default_rng(1).integers(5, size=(9, 2))

    def loss():
        scores, _, tape = model.forward(codes[:-1])
        return *text.softmax_cross_entropy(scores, codes[1:]), tape

    first, dscores, tape = loss()
    gradients = model.backward(tape, dscores).parameters
    assert gradients.keys() == model.parameters.keys()
    for name, parameter in model.parameters.items():
        before = parameter.copy()
        parameter -= 0.01 * gradients[name]
        assert loss()[0] < first, name
        parameter[...] = before


def test_bits_per_character_agree_with_the_reference():
    model = random_model("lstm")
    codes = np.random.default_rng(2).integers(5, size=(21, 3))
    own = {name: array.astype(float) for name, array in model.parameters.items()}
    recurrent = {name.partition(".")[2]: array for name, array in own.items() if name.startswith("recurrent.")}
    hidden = reference.forward("lstm", recurrent, own["embedding.weight"][codes[:-1]])[0]
    scores = hidden @ own["readout.weight"].T + own["readout.bias"]
    chances = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = -np.log2(np.take_along_axis(chances, codes[1:, :, None], 2)).mean()
    assert model.bits(codes) == pytest.approx(expected, rel=1e-5)
    assert model.bits(codes, window=7) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [0, 1e-4])
def test_cold_sample_is_the_most_likely_text(temperature):
    model = random_model("gru", 2)
    written = "da" + "".join(model.write("da", 12, temperature, np.random.default_rng(0)))
    scores, _, _ = model.forward(model.encode(written, "")[:, None])
    assert written[2:] == "".join(model.characters[code] for code in scores[1:-1, 0].argmax(-1))


def test_sample_at_temperature_0_does_not_depend_on_the_seed(trained, capsys):
    written = []
    for seed in "12":
        assert main(["sample", str(trained[0]), "--length", "40", "--temperature", "0", "--seed", seed]) == 0
        written.append(capsys.readouterr().out)
    assert written[0] == written[1]


def test_hot_sample_is_drawn_from_the_scores():
    model = random_model()
    scores = model.forward(model.encode("a", "")[:, None])[0][-1, 0].astype(float)
    chances = np.exp(scores / 0.5) / np.exp(scores / 0.5).sum()
    rng = np.random.default_rng(3)
    drawn = [next(iter(model.write("a", 1, 0.5, rng))) for _ in range(3000)]
    for character, chance in zip("abcde", chances, strict=True):
        assert abs(drawn.count(character) / 3000 - chance) < 5 * math.sqrt(chance * (1 - chance) / 3000)


def test_training_learns_and_keeps_the_best_model(trained):
    path, (report, progress) = trained
    held_out = [float(line.rpartition(" ")[2]) for line in progress.splitlines()]
    assert len(held_out) == text.EVALUATIONS
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert held_out[-1] < held_out[0]
    about, _ = contents(path)
    assert about["bits"] == pytest.approx(min(held_out), abs=1e-3)
    assert f"{len(TEXT):,} characters, {len(set(TEXT))} distinct" in report
    assert f"{min(held_out):.3f} bits per character" in report


def test_later_models_that_are_worse_are_not_kept(book, tmp_path, monkeypatch):
    told = iter([3.0, 2.0, *[2.5] * text.EVALUATIONS])
    monkeypatch.setattr(text.Model, "bits", lambda *_: next(told))
    path = tmp_path / "book.npz"
    assert main(["train", "text", str(book), "-o", str(path), *SMALL]) == 0
    assert contents(path)[0]["bits"] == 2.0


def test_model_that_is_read_is_the_one_that_was_written(tmp_path):
    model = random_model("lstm", 2)
    model.save(str(tmp_path / "model"))
    other = text.Model.read(str(tmp_path / "model"))
    assert (other.characters, other.sizes) == (model.characters, model.sizes)
    for name, parameter in model.parameters.items():
        assert parameter.tobytes() == other.parameters[name].tobytes(), name


def test_seed_gives_the_same_model_and_text(book, trained, tmp_path, capsys):
    path, _ = trained
    assert main(["train", "text", str(book), "-o", str(tmp_path / "again"), *SMALL]) == 0
    assert main(["train", "text", str(book), "-o", str(tmp_path / "other"), *SMALL, "--seed", "1"]) == 0
    arrays = [contents(file)[1] for file in (path, tmp_path / "again", tmp_path / "other")]
    assert all(array.tobytes() == arrays[1][name].tobytes() for name, array in arrays[0].items())
    assert any(array.tobytes() != arrays[2][name].tobytes() for name, array in arrays[0].items())

    def sample(seed):
        capsys.readouterr()
        assert main(["sample", str(path), "--length", "80", "--start", "7 times", "--seed", seed]) == 0
        return capsys.readouterr().out

    assert sample("0") == sample("0") != sample("1")
    assert sample("0").startswith("7 times")
    assert len(sample("0")) == len("7 times") + 80 + 1


def test_sample_starts_with_a_hidden_newline(trained, capsys):
    assert main(["sample", str(trained[0]), "--length", "0"]) == 0
    assert capsys.readouterr().out == "\n"


def test_ctrl_c_keeps_the_best_model_so_far(book, tmp_path, monkeypatch, capsys):
    class CtrlC(text.Progress):
        steps = 0

        def step(self):
            self.steps += 1
            if self.steps == 2:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(text, "Progress", CtrlC)
    path = tmp_path / "book.npz"
    assert main(["train", "text", str(book), "-o", str(path), *SMALL, "--epochs", "50"]) == 130
    report, progress = capsys.readouterr()
    assert "Stopped by Ctrl-C. Saved to" in report
    assert len(progress.splitlines()) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert main(["sample", str(path), "--length", "10"]) == 0


def test_second_ctrl_c_ends_at_once(book, tmp_path, monkeypatch, capsys):
    def step(_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(text.Progress, "step", step)
    assert main(["train", "text", str(book), "-o", str(tmp_path / "book.npz"), *SMALL]) == 130
    assert capsys.readouterr().err.endswith("\nStopped.\n")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_from_outside_leaves_no_traceback(book, tmp_path):
    path = tmp_path / "book.npz"
    command = [sys.executable, "-P", "-m", "rnnfast", "train", "text", book, "-o", path, *SMALL, "--epochs", "100000"]
    environment = {**os.environ, "PYTHONPATH": str(Path(rnnfast.__file__).parents[1])}
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment) as process:
        process.stdout.readline()
        process.stdout.readline()  # what it says before the first step
        process.send_signal(signal.SIGINT)
        report, progress = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in report + progress
    assert path.is_file() == ("Saved to" in report)


@pytest.mark.skipif(sys.platform == "win32", reason="of pipes of POSIX")
def test_closed_pipe_is_not_an_error(trained):
    command = [sys.executable, "-P", "-m", "rnnfast", "sample", trained[0], "--length", "100000"]
    environment = {**os.environ, "PYTHONPATH": str(Path(rnnfast.__file__).parents[1])}
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment) as process:
        process.stdout.read(5)
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_invalid_texts(tmp_path, capsys):
    path, model = tmp_path / "text", tmp_path / "model"
    assert "No such file" in failure(capsys, "train", "text", path, "-o", model)
    assert "cannot read" in failure(capsys, "train", "text", tmp_path, "-o", model)
    path.write_bytes(b"caf\xe9")
    assert "not valid UTF-8: the byte at offset 3, in line 1," in failure(capsys, "train", "text", path, "-o", model)
    for short in ("", "A short text."):
        path.write_text(short)
        assert f"the text has {len(short)} characters, but" in failure(capsys, "train", "text", path, "-o", model)
    assert not model.exists()


def test_text_of_the_minimum_length_can_be_trained(tmp_path, capsys):
    path = tmp_path / "text"
    path.write_text("a")
    for small in (SMALL, [*SMALL, "--batch", "1", "--window", "1"]):
        line = failure(capsys, "train", "text", path, "-o", tmp_path / "model", *small)
        least = int(line.split(" at least ")[1].split()[0].rstrip(";"))
        path.write_text("ab" * (least // 2) + "a" * (least % 2))
        assert main(["train", "text", str(path), "-o", str(tmp_path / "model"), *small]) == 0
        path.write_text(path.read_text()[: least // 2])
        capsys.readouterr()


def test_training_does_not_start_if_the_model_cannot_be_written(book, tmp_path, capsys):
    assert "No such file" in failure(capsys, "train", "text", book, "-o", tmp_path / "missing" / "model")
    assert "it is a directory" in failure(capsys, "train", "text", book, "-o", tmp_path)


def test_diverged_training_is_reported(book, tmp_path, capsys):
    arguments = ["train", "text", book, "-o", tmp_path / "model", *SMALL, "--lr", "1e38"]
    assert main([str(argument) for argument in arguments]) == 2
    assert "use an --lr below 1e+38" in capsys.readouterr().err.splitlines()[-1]


def test_files_that_are_no_models(book, trained, tmp_path, capsys):
    assert "No such file" in failure(capsys, "sample", tmp_path / "none.npz")
    assert "is not a model" in failure(capsys, "sample", book)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    assert "is not a model" in failure(capsys, "sample", tmp_path / "other.npz")
    rnnfast.GRU(2, 3).save(tmp_path / "layer.npz")
    assert "is not a model" in failure(capsys, "sample", tmp_path / "layer.npz")
    half = tmp_path / "half.npz"
    half.write_bytes(trained[0].read_bytes()[:3000])
    assert "is not a model" in failure(capsys, "sample", half)
    about, arrays = contents(trained[0])
    del arrays["readout.bias"]
    program.write_model(str(half), about, arrays)
    assert "is damaged" in failure(capsys, "sample", half)


def test_start_of_strange_characters(trained, capsys):
    line = failure(capsys, "sample", trained[0], "--start", "ß!")
    assert "--start contains characters that the training text does not: ! ß" in line
    line = failure(capsys, "sample", trained[0], "--start", "".join(map(chr, range(300, 10_000))))
    assert line.endswith(" ...; leave them out")
    assert len(line) < 200


# --- byte order marks

MARK = "\ufeff"


@pytest.mark.parametrize("marks", ["first", "twice", "between joined files"])
def test_byte_order_marks_are_no_characters_of_the_model(marks, trained, tmp_path, capsys):
    start, middle = {"first": (MARK, ""), "twice": (2 * MARK, ""), "between joined files": (MARK, MARK)}[marks]
    marked = tmp_path / "marked.txt"
    marked.write_text(start + TEXT[:500] + middle + TEXT[500:], encoding="utf-8")
    assert main(["train", "text", str(marked), "-o", str(tmp_path / "model"), *SMALL]) == 0
    (about, arrays), (plain, expected) = contents(tmp_path / "model"), contents(trained[0])
    assert about["characters"] == plain["characters"] == "".join(sorted(set(TEXT)))
    assert all(array.tobytes() == arrays[name].tobytes() for name, array in expected.items())

    def sample(text):
        capsys.readouterr()
        assert main(["sample", str(tmp_path / "model"), "--length", "20", *text]) == 0
        return capsys.readouterr().out

    assert sample(["--start", f"{MARK}7 times"]) == sample(["--start", "7 times"])
    assert sample(["--start", MARK]) == sample([])


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("mark", [MARK, ""], ids=["marked", "unmarked"])
def test_texts_in_other_encodings_are_refused_with_their_name(encoding, mark, tmp_path, capsys):
    path = tmp_path / "text"
    path.write_bytes(f"{mark}{TEXT}".encode(encoding))
    read = mark and encoding.startswith("utf-16")  # by train csv, as spreadsheets write it
    for command in (["text"], *([] if read else [["csv", "--column", "sold"]])):
        line = failure(capsys, "train", *command, path, "-o", tmp_path / "model")
        assert "is not valid UTF-8: the byte at offset " in line
        name = encoding[:6] if mark else encoding[:6] + encoding[-2:]
        assert f"with iconv -f {name.upper()} -t UTF-8" in line
    assert os.listdir(tmp_path) == ["text"]


def test_offsets_of_bytes_that_cannot_be_decoded_count_the_mark(tmp_path, capsys):
    path = tmp_path / "text"
    for content, where in {
        b"\xef\xbb\xbfab\n\xff": "the byte at offset 6, in line 2, cannot be decoded",
        b"ab\n\xff": "the byte at offset 3, in line 2, cannot be decoded",
        b"\xef\xbb\xbfab\n\0": "the byte at offset 6, in line 2, is null",
        b"ab\n\0": "the byte at offset 3, in line 2, is null",
        b"\xef\xbb": "the byte at offset 0, in line 1, cannot be decoded",
    }.items():
        path.write_bytes(content)
        assert where in failure(capsys, "train", "text", path, "-o", tmp_path / "model")


# --- files that are one


def test_layers_that_are_too_large_for_an_array(book, tmp_path, capsys):
    for hidden in (10**9, 10**12, 10**30):
        line = failure(capsys, "train", "text", book, "-o", tmp_path / "model", "--hidden", hidden)
        assert "use smaller" in line


def test_training_that_is_worse_than_guessing_is_not_saved(book, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(text.Model, "bits", lambda *_: 9.0)
    path = tmp_path / "model"
    path.write_text("an older model")
    assert main(["train", "text", str(book), "-o", str(path), *SMALL]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "use an --lr below 0.003" in line
    assert f"9.000 bits per character, against {math.log2(len(set(TEXT))):.3f}" in line
    assert path.read_text() == "an older model"


def test_start_is_checked_before_anything_is_printed(trained, capsys):
    assert main(["sample", str(trained[0]), "--start", "ß"]) == 2
    assert capsys.readouterr().out == ""


def test_threads_of_the_training(book, tmp_path, threads):
    threads(1)
    assert main(["train", "text", str(book), "-o", str(tmp_path / "model"), *SMALL, "--threads", "2"]) == 0
    assert rnnfast.get_num_threads() == 2
