"""darts: forecasts of time series by RNN, LSTM and GRU layers in PyTorch.

    pip install 'rnnfast[torch]' darts pytorch-lightning && python examples/clients/forecasting.py

darts creates its layers inside `fit`, so `enable` lets torch.nn create layers that run on rnnfast.
"""

import contextlib
import functools
import logging
import warnings

import numpy as np
import torch
from comparison import compare
from darts import TimeSeries
from darts.models import BlockRNNModel, RNNModel
from pytorch_lightning import Callback

from rnnfast.backends.torch import enable


class Losses(Callback):
    """Keeps the loss of each epoch."""

    def __init__(self):
        self.values = []

    def on_train_epoch_end(self, trainer, _):
        self.values.append(float(trainer.callback_metrics["train_loss"]))


def fit(create, series, fast=False):
    """Train a model; return the losses of all epochs and the next 24 values."""
    losses = Losses()
    quiet = dict.fromkeys(["enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"], False)
    model = create(
        input_chunk_length=48,
        n_epochs=3,
        random_state=0,
        pl_trainer_kwargs={"accelerator": "cpu", "callbacks": [losses], **quiet},
    )
    with enable() if fast else contextlib.nullcontext():
        model.fit(series)
    return np.append(losses.values, model.predict(24, verbose=False).values())


def main():
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|torch\.utils")
    steps, rng = np.arange(600), np.random.default_rng(0)
    series = TimeSeries.from_values((np.sin(steps / 6) + 0.1 * rng.normal(size=steps.size)).astype(np.float32))
    kinds = [(RNNModel, {"training_length": 72}), (BlockRNNModel, {"output_chunk_length": 24})]
    for kind, options in kinds:
        for cell in ("LSTM", "GRU"):
            create = functools.partial(kind, model=cell, hidden_dim=64, **options)
            compare(
                f"{kind.__name__}, {cell}, 3 epochs",
                functools.partial(fit, create, series),
                functools.partial(fit, create, series, fast=True),
                lambda a, b: np.abs(a - b).max(),
            )


if __name__ == "__main__":
    main()
