"""examples/quantized_vad.py: speech found by an LSTM with weights in fewer bytes."""

import importlib.util
import re
import wave

import numpy as np
import pytest
from support.checkout import load_example

example = load_example("quantized_vad")


def write(path, sound, rate=example.RATE):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return str(path)


def test_sound_is_read_and_cut_into_frames(tmp_path):
    sound = example.voice(0.1)
    read = example.read(write(tmp_path / "voice.wav", sound))
    assert np.abs(read - sound).max() < 1e-4
    frames = example.frames_of(read)
    assert frames.shape == (3, 576)
    assert np.array_equal(frames[0, :64], np.zeros(64))
    assert np.array_equal(frames[2], read[2 * 512 - 64 : 3 * 512])


@pytest.mark.parametrize("name", ["none.wav", "text.wav", "fast.wav"])
def test_other_files_are_refused(name, tmp_path):
    write(tmp_path / "fast.wav", example.voice(0.1), rate=44_100)
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(example.CannotRun, match=name):
        example.read(str(tmp_path / name))


@pytest.mark.full
def test_run_from_end_to_end(tmp_path, capsys, monkeypatch, threads):  # noqa: ARG001 (puts the number of threads back)
    pytest.importorskip("onnxruntime")
    if importlib.util.find_spec("silero_vad") is None:  # only its files are needed
        pytest.skip("silero-vad is not installed")
    monkeypatch.setattr(example, "ROUNDS", 1)
    assert example.main([write(tmp_path / "voice.wav", example.voice(6.0))]) == 0
    report, errors = capsys.readouterr()
    assert not errors
    share = int(re.search(r"Speech in (\d+)% of the frames", report)[1])
    assert 20 <= share <= 50  # the vowels take a third
    rows = re.findall(r"^(float32|bfloat16|int8|int8 products) +([\d.e+-]+) +(\d+) +[\d.]+ µs$", report, re.MULTILINE)
    for (mode, difference, other), bound in zip(rows, (1e-5, 2e-2, 2e-1, 2e-1), strict=True):
        assert float(difference) < bound, mode
        assert int(other) <= 3, mode
    assert "rms error of y if only one part is rounded" in report
