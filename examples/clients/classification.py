"""skorch: scikit-learn's interface for PyTorch, here for a classifier of sequences.

    pip install 'rnnfast[torch]' skorch && python examples/clients/classification.py

skorch creates the network inside `fit`, so `enable` lets torch.nn create layers that run on rnnfast.
"""

import contextlib
import functools

import numpy as np
import torch
from comparison import compare
from skorch import NeuralNetClassifier

from rnnfast.backends.torch import enable

CLASSES, STEPS, FEATURES = 4, 50, 8


class Network(torch.nn.Module):
    def __init__(self, cell, hidden_size):
        super().__init__()
        self.layer = getattr(torch.nn, cell)(FEATURES, hidden_size, batch_first=True)
        self.head = torch.nn.Linear(hidden_size, CLASSES)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1]).softmax(-1)


def fit(cell, x, y, fast=False):
    """Train a classifier; return the losses of all epochs and the probabilities of the classes."""
    torch.manual_seed(0)
    classifier = NeuralNetClassifier(
        Network, module__cell=cell, module__hidden_size=64, optimizer=torch.optim.Adam, max_epochs=5, verbose=0
    )
    with enable() if fast else contextlib.nullcontext():
        classifier.fit(x, y)
    return np.append(classifier.history[:, "train_loss"], classifier.predict_proba(x))


def main():
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    y = rng.integers(CLASSES, size=512)
    waves = np.sin(np.arange(STEPS) * (1 + y[:, np.newaxis]) / 4)
    x = (waves[..., np.newaxis] + rng.normal(size=(y.size, STEPS, FEATURES))).astype(np.float32)
    for cell in ("LSTM", "GRU"):
        compare(
            f"NeuralNetClassifier, {cell}, 5 epochs",
            functools.partial(fit, cell, x, y),
            functools.partial(fit, cell, x, y, fast=True),
            lambda a, b: np.abs(a - b).max(),
        )


if __name__ == "__main__":
    main()
