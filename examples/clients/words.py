"""chars2vec: embeddings of words by two LSTMs in Keras, on Keras's NumPy backend.

    pip install 'rnnfast[keras]' h5py chars2vec && python examples/clients/words.py

This backend runs a Python loop over the steps of an LSTM; `enable` replaces the loop.
"""

import functools
import os

os.environ["KERAS_BACKEND"] = "numpy"

import chars2vec
import numpy as np
from comparison import compare

from rnnfast.backends.keras import enable

WORDS = ["natural", "language", "understanding", "needs", "words", "that", "nobody", "has", "ever", "written", "before"]


def embed(model):
    model.cache.clear()
    return model.vectorize_words(WORDS * 8)


def embed_fast(model):
    with enable():
        return embed(model)


def main():
    for name in ("eng_50", "eng_300"):
        model = chars2vec.load_model(name)
        network = model.embedding_model
        network.predict = functools.partial(network.predict, verbose=0)
        compare(
            f"{name}, {len(set(WORDS))} words",
            lambda model=model: embed(model),
            lambda model=model: embed_fast(model),
            lambda a, b: np.abs(a - b).max(),
        )


if __name__ == "__main__":
    main()
