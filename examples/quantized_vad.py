"""Find speech with silero-vad, whose LSTM runs on a stream in float32, bfloat16 and int8.

    pip install 'rnnfast[onnx]' && pip install --no-deps silero-vad
    python examples/quantized_vad.py speech.wav

The model comes from the package, whose code is not run. ONNX Runtime runs its convolutions. The LSTM behind them runs
frame by frame in ONNX Runtime, and on streams of rnnfast. The program compares the probabilities of speech and the
times per frame. Without a file (mono, 16 kHz, 16 bits), it makes up a voice: vowels and pauses.
"""

import argparse
import copy
import functools
import sys
import tempfile
import time
import wave
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np

import rnnfast
from rnnfast.commands.program import CannotRun, run_program, runtime
from rnnfast.quantization import MODES, report

RATE, FRAME, CONTEXT = 16_000, 512, 64  # samples: per second, per frame, and from the frame before
ROUNDS = 9  # timed runs over the sound, of which the fastest counts
VOWELS = {"a": (730, 1090, 2440), "i": (270, 2290, 3010), "u": (300, 870, 2240)}  # formants, Hz


def voice(seconds=20.0):
    """Return made-up speech: a train of pulses through resonators, half a second of vowels and one of silence."""
    rng, count = np.random.default_rng(0), int(seconds * RATE)
    times = np.arange(count) / RATE
    pitch = 120 + 15 * np.sin(2 * np.pi * 1.3 * times)
    source = np.diff(np.floor(np.cumsum(pitch) / RATE), prepend=0)
    sound = np.zeros(count)
    for k, formants in enumerate(VOWELS.values()):
        part = source
        for formant in formants:
            ringing = np.exp(-2 * np.pi * 40 * times[:1024]) * np.sin(2 * np.pi * formant * times[:1024])
            part = np.convolve(part, ringing)[:count]
        sound += part / np.abs(part).max() * ((6 * times).astype(int) % len(VOWELS) == k)
    sound *= times % 1.5 < 0.5
    return (0.5 * sound + 0.001 * rng.standard_normal(count)).astype(np.float32)


def read(path):
    """Return the samples of a WAV file, from -1 to 1."""
    try:
        with wave.open(path) as file:
            if (file.getnchannels(), file.getframerate(), file.getsampwidth()) != (1, RATE, 2):
                raise CannotRun(f"{path} must be mono, at {RATE} Hz, with 16 bits per sample: convert it")
            return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    except (OSError, EOFError, wave.Error) as error:
        raise CannotRun(f"cannot read {path}: {error}") from None


def frames_of(sound):
    """Return the frames, each with the end of the one before, (frames, CONTEXT + FRAME)."""
    count = len(sound) // FRAME
    if not count:
        raise CannotRun(f"the sound must have at least {FRAME} samples, got {len(sound)}")
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), sound])
    return padded[FRAME * np.arange(count)[:, None] + np.arange(CONTEXT + FRAME)]


def parts_of_model():
    """Return sessions of the convolutions and of the LSTM, and in rnnfast the LSTM and the readout behind it."""
    try:
        import onnx
        import onnxruntime

        from rnnfast.backends.onnx import layer_from_onnx
    except ImportError as error:
        raise CannotRun(f"{error.name} is not installed: pip install 'rnnfast[onnx]'") from None
    try:
        path = distribution("silero-vad").locate_file("silero_vad/data/silero_vad_16k_sequence.onnx")
    except PackageNotFoundError:
        raise CannotRun("silero-vad is not installed: pip install --no-deps silero-vad") from None
    model = onnx.load(path)
    node = next(node for node in model.graph.node if node.op_type == "LSTM")
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    sessions = []
    with tempfile.TemporaryDirectory() as folder:
        for inputs, outputs in (["input"], node.input[:1]), ([node.input[0], "h", "c"], node.output):
            part = str(Path(folder, "part.onnx"))
            onnx.utils.extract_model(str(path), part, list(inputs), list(outputs))
            sessions.append(onnxruntime.InferenceSession(part, options))
    readout = {"weight": arrays["output.weight"][..., 0], "bias": arrays["output.bias"]}
    return *sessions, layer_from_onnx(model), rnnfast.Linear.from_state_dict(readout)


def run_session(session, features):
    """Run the LSTM frame by frame in ONNX Runtime; return h of each frame."""
    name, found = session.get_inputs()[0].name, []
    h = c = np.zeros((1, 1, 128), np.float32)
    for frame in features:
        _, h, c = session.run(None, {name: frame[np.newaxis, np.newaxis], "h": h, "c": c})
        found.append(h[0, 0])
    return np.array(found)


def run_stream(lstm, features):
    """Run the LSTM frame by frame on a stream; return h of each frame."""
    stream = lstm.stream()
    return np.array([stream.step(frame) for frame in features])


def best_times(calls):
    """Call functions in turns; return the best time of each."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main(arguments=None):
    """Run the program and return the exit status."""
    parser = argparse.ArgumentParser(
        description="Find speech with silero-vad, whose LSTM has weights in fewer bytes.",
        epilog="Exit status: 0 success, 2 error, 130 stopped by Ctrl-C.",
    )
    parser.add_argument("sound", nargs="?", metavar="WAV", help="mono, 16 kHz, 16 bits (default: a made-up voice)")
    return run_program("quantized_vad.py", compare, parser.parse_args(arguments))


def compare(run):
    """Compare the modes with one another and with ONNX Runtime."""
    rnnfast.set_num_threads(1)
    convolutions, session, lstm, readout = parts_of_model()
    frames = frames_of(read(run.sound) if run.sound else voice())
    features = convolutions.run(None, {"input": frames})[0].reshape(len(frames), -1)
    calls = {"ONNX Runtime": functools.partial(run_session, session, features)}
    for mode, (weights, activations) in MODES.items():
        layer = copy.copy(lstm)
        layer.freeze(weights, activations)
        calls[mode] = functools.partial(run_stream, layer, features)
    probabilities = {name: 1 / (1 + np.exp(-readout(np.maximum(call(), 0))[:, 0])) for name, call in calls.items()}
    times, exact = best_times(calls), probabilities["ONNX Runtime"]
    print(f"{len(frames)} frames of {1000 * FRAME / RATE:.0f} ms. {runtime()}.")
    print(f"Speech in {(exact > 0.5).mean():.0%} of the frames, by ONNX Runtime.")
    print("              largest difference   frames on the other side of 0.5   time of the LSTM per frame")
    for name, found in probabilities.items():
        other = int(((found > 0.5) != (exact > 0.5)).sum())
        print(f"{name:14}{abs(found - exact).max():18.1e}{other:34}{1e6 * times[name] / len(frames):26.2f} µs")
    print(f"\n{report(lstm, features)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
