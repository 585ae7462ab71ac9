"""Check an installed rnnfast: gradients against differences, on every instruction set that runs here, and saving.

Needs nothing but rnnfast and NumPy. Run it outside of a checkout, so that the installed package is imported.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import rnnfast


def check(layer: rnnfast.RNN | rnnfast.LSTM | rnnfast.GRU) -> None:
    x = np.random.default_rng(0).standard_normal((7, 3, 5))
    y, _, tape = layer.forward(x)
    np.testing.assert_array_equal(y, layer(x)[0])
    gradients = layer.backward(tape, y)
    weight, at, eps = layer.parameters["weight_hh_l0"], (2, 1), 1e-6
    losses = []
    for change in (eps, -2 * eps):
        weight[at] += change
        losses.append((layer(x)[0] ** 2).sum() / 2)
    weight[at] += eps
    np.testing.assert_allclose(gradients.parameters["weight_hh_l0"][at], (losses[0] - losses[1]) / (2 * eps), rtol=1e-5)

    with tempfile.TemporaryDirectory() as folder:
        layer.save(Path(folder, "model.npz"))
        np.testing.assert_array_equal(rnnfast.load(Path(folder, "model.npz"))(x)[0], y)


def main() -> None:
    headers = {path.name for path in Path(rnnfast.get_include()).iterdir()}
    assert {"rnnfast.h", "rnnfast_python.h", "portable.h"} <= headers, headers
    assert "lstm_forward" in rnnfast.export.c_source(rnnfast.LSTM(5, 8)).source
    for cell in (rnnfast.RNN, rnnfast.LSTM, rnnfast.GRU):
        check(cell(5, 8, 2, dtype=np.float64, bidirectional=True, rng=0))
    print(f"rnnfast {rnnfast.__version__} in {Path(rnnfast.__file__).parent} works on {os.environ['RNNFAST_ISA']}")


if __name__ == "__main__":
    if "RNNFAST_ISA" in os.environ:
        main()
    else:
        for name in rnnfast.isas():
            subprocess.run([sys.executable, __file__], env={**os.environ, "RNNFAST_ISA": name}, check=True)
