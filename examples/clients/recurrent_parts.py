"""The recurrent parts of medaka (consensus of DNA reads) and kraken (recognition of handwriting), in PyTorch.

    pip install 'rnnfast[torch]' && python examples/clients/recurrent_parts.py

Their models must be downloaded, so networks of the same shapes with random weights stand in for them.
"""

import copy
import functools

import torch
from comparison import compare

from rnnfast.backends.torch import convert


class Kraken(torch.nn.Module):
    """Three layers on what four convolutions make of a line image that is 120 pixels high and 1,200 wide."""

    def __init__(self):
        super().__init__()
        sizes = [960, 2 * 200, 2 * 200]
        self.layers = torch.nn.ModuleList(torch.nn.LSTM(size, 200, bidirectional=True) for size in sizes)

    def forward(self, x):
        for layer in self.layers:
            x, _ = layer(x)
        return x


class Medaka(torch.nn.Module):
    """Two layers on ten features of each position in the genome."""

    def __init__(self, cell):
        super().__init__()
        self.layer = getattr(torch.nn, cell)(10, 128, num_layers=2, bidirectional=True)

    def forward(self, x):
        return self.layer(x)[0]


def main():
    torch.manual_seed(0)
    cases = [("kraken", Kraken(), torch.randn(150, N, 960)) for N in (1, 8)]
    for cell in ("GRU", "LSTM"):
        medaka = Medaka(cell)
        cases += [
            (f"medaka, {cell}", medaka, torch.randn(T, N, 10)) for T, N in [(10_000, 1), (1_000, 10), (1_000, 100)]
        ]
    for threads in (1, 2):
        torch.set_num_threads(threads)  # rnnfast uses as many
        for what, theirs, x in cases:
            ours = convert(copy.deepcopy(theirs), strict=True)
            with torch.no_grad():
                compare(
                    f"{what}, T={len(x)} N={x.shape[1]}, {threads} thread{'s' * (threads > 1)}",
                    functools.partial(theirs, x),
                    functools.partial(ours, x),
                    lambda a, b: float((a - b).abs().max()),
                )


if __name__ == "__main__":
    main()
