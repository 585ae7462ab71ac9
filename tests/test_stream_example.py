"""examples/stream.py: latency of the steps of a stream."""

import re

import numpy as np
import pytest
from support.checkout import load_example

example = load_example("stream")

SMALL = ["--steps", "2000", "--hidden", "8", "--clients", "5"]


@pytest.fixture(autouse=True)
def _few_ticks(monkeypatch, threads):  # noqa: ARG001 (puts the number of threads back)
    monkeypatch.setattr(example, "TICKS", 300)


def run(picture, *options):
    return example.main([*SMALL, "--plot", str(picture), *options])


def test_run_from_end_to_end(tmp_path, capsys):
    assert run(tmp_path / "picture.png") == 0
    report, errors = capsys.readouterr()
    assert not errors
    assert "1,000 frames one by one, in chunks of 7, and in one call: the same bits." in report
    assert "Latency of 2,000 steps in µs" in report
    median, p99, p999, most = map(
        float, re.search(r"median ([\d.]+)   p99 ([\d.]+)   p99.9 ([\d.]+)   max ([\d.]+)\n", report).groups()
    )
    assert 0 < median <= p99 <= p999 <= most + 0.05
    assert "times the median" in report
    assert report.count("streams in real time") == 2
    assert "each had the same bits as a separate stream" in report
    rows = re.findall(r"µs +([\d,]+)(  #+)?$", report, re.MULTILINE)
    assert sum(int(count.replace(",", "")) for count, _ in rows) == 2000
    assert all((count == "0") == (not bar) for count, bar in rows)


def test_plot_is_written(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert run(tmp_path / "picture.png") == 0
    assert f"Saved the picture to {tmp_path / 'picture.png'}" in capsys.readouterr().out
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("name", "verb"), [("picture.odd", "draw"), ("missing/picture.png", "write")])
def test_plot_that_cannot_be_written(tmp_path, capsys, name, verb):
    pytest.importorskip("matplotlib")
    assert run(tmp_path / name) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"stream.py: cannot {verb} {tmp_path / name}: ")


def test_without_matplotlib_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(example.sys.modules, "matplotlib.figure", None)
    assert run(tmp_path / "picture.png") == 0
    assert "pip install matplotlib" in capsys.readouterr().out
    assert not (tmp_path / "picture.png").exists()


@pytest.mark.parametrize("options", [["--steps", "1"], ["--clients", "1"], ["--hidden", "1"], ["--seed", "7"]])
def test_least_values(tmp_path, options):
    assert run(tmp_path / "picture.png", *options) == 0


def test_different_results_are_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(example, "same_bits", lambda a, b: False)  # noqa: ARG005
    assert run(tmp_path / "picture.png") == 1
    report = capsys.readouterr().out
    assert "THEY DIFFER" in report
    assert "NOT ALL had the same bits" in report


def test_ctrl_c_ends_it_in_a_word(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(example, "measure", interrupted)
    assert run(tmp_path / "picture.png") == 130
    assert capsys.readouterr().err == "\nStopped.\n"


def test_garbage_collection_is_enabled_after_an_error():
    def failing(frame, out):  # noqa: ARG001
        raise ValueError("no step")

    with pytest.raises(ValueError, match="no step"):
        example.measure(failing, np.zeros((2, 3), np.float32), 5, 4)
    assert example.gc.isenabled()


def test_frames_follow_the_tone():
    frames = example.make_frames(3, np.random.default_rng(0))
    assert frames.shape == (300, example.FEATURES)
    seconds = (np.arange(300) + 0.5) / example.FRAMES_PER_SECOND
    pitch = 1500 + 1000 * np.sin(2 * np.pi * seconds / 3)
    loudest = 100 * (1 + frames.argmax(axis=1))  # features lie 100 Hz apart, from 100 Hz on
    assert abs(loudest - pitch).max() <= 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps: must be an integer from 1 to 100,000,000, not '0'"),
        (["--steps", "many"], "--steps: must be an integer from 1 to 100,000,000, not 'many'"),
        (["--hidden", "1.5"], "--hidden: must be an integer from 1 to 4,096, not '1.5'"),
        (["--clients", "-1"], "--clients: must be an integer from 1 to 1,000, not '-1'"),
        (["--seed", "-1"], "--seed: must be an integer from 0 to"),
        (["--speed", "3"], "unrecognized arguments: --speed 3"),
    ],
)
def test_invalid_options(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        example.main(arguments)
    assert message in capsys.readouterr().err.splitlines()[-1]
