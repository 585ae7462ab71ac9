"""Calls of the command line, and the inputs that its tests share."""

import numpy as np

from rnnfast import __main__
from rnnfast.commands import text

main = __main__.main
TEXT = "".join(f"{n} times {n} is {n * n}.\n" for n in range(60))
SMALL = ["--hidden", "16", "--embedding", "4", "--batch", "3", "--window", "8", "--epochs", "2"]
FAST = ["--hidden", "4", "--epochs", "3", "--season", "4"]


def failure(capsys, *arguments):
    """Run a command that must fail, and return the one line that it prints."""
    assert main([str(argument) for argument in arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m rnnfast: ")
    return line


def random_model(cell="gru", layers=1):
    return text.Model("abcde", {"cell": cell, "embedding": 3, "hidden": 6, "layers": layers}, np.random.default_rng(0))


def train_csv(sheet, model, *arguments):
    return main(["train", "csv", str(sheet), "--column", "sold", "-o", str(model), *FAST, *arguments])
