"""Resemblyzer: embeddings of speakers by three layers of LSTM in PyTorch.

pip install 'rnnfast[torch]' resemblyzer 'setuptools<80' && python examples/clients/speaker.py
"""

import copy

import numpy as np
import torch
from comparison import compare
from resemblyzer import VoiceEncoder

from rnnfast.backends.torch import convert

RATE, SECONDS = 16_000, 20


def main():
    sound = np.random.default_rng(0).standard_normal(RATE * SECONDS).astype(np.float32) * 0.05
    theirs = VoiceEncoder("cpu", verbose=False)
    ours = convert(copy.deepcopy(theirs), strict=True)
    parts = torch.randn(16, 160, 40)
    for threads in (1, 2):
        torch.set_num_threads(threads)  # rnnfast uses as many
        print(f"{threads} thread{'s' * (threads > 1)}")
        with torch.no_grad():
            compare(
                "LSTM, 16 parts of 1.6 s",
                lambda: theirs.lstm(parts)[0],
                lambda: ours.lstm(parts)[0],
                lambda a, b: float((a - b).abs().max()),
            )
        compare(
            f"embedding of {SECONDS} s",
            lambda: theirs.embed_utterance(sound),
            lambda: ours.embed_utterance(sound),
            lambda a, b: np.abs(a - b).max(),
        )


if __name__ == "__main__":
    main()
