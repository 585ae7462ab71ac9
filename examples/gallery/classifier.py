"""Classifier of variable-length sequences: which strings does the embedded Reber grammar generate?"""

import numpy as np
from picture import output, picture

from rnnfast import LSTM, Embedding, Linear, Pool, Sequential
from rnnfast.training import Adam, fit, plot_history, softmax_cross_entropy

path, rng = output(__doc__), np.random.default_rng(0)
# For each state, the symbols that can follow, each with the next state.
GRAMMAR = [{"T": 1, "P": 2}, {"S": 1, "X": 3}, {"T": 2, "V": 4}, {"X": 2, "S": 5}, {"P": 3, "V": 5}]


def generate(valid):
    """Return a string; the second symbol must return as the last but one, and an invalid string has the other one."""
    state, middle, first = 0, "", rng.choice(["T", "P"])
    while state < 5:
        symbol = rng.choice(list(GRAMMAR[state]))
        middle, state = middle + symbol, GRAMMAR[state][symbol]
    return "B" + first + "B" + middle + "E" + (first if valid else "TP".replace(first, "")) + "E"


def batch(count):
    target = rng.integers(0, 2, count)
    return [np.array(["BTPSXVE".index(symbol) for symbol in generate(valid)]) for valid in target], target


model = Sequential(Embedding(7, 8, rng=0), LSTM(8, 24, rng=1), Pool("last"), Linear(24, 2, rng=2))
data, test = batch(2000), batch(1000)
history = fit(
    model, data, loss=softmax_cross_entropy, optimizer=Adam(model, lr=0.01), epochs=10, clip=1.0, validation=0.1, rng=3
)
lengths, (x, target) = np.array([len(string) for string in test[0]]), test
padded = np.stack([np.pad(string, (0, lengths.max() - len(string))) for string in x], axis=1)
right = model(padded, lengths=lengths)[0].argmax(axis=1) == target
print(f"accuracy: {right.mean():.1%} of strings of {lengths.min()} to {lengths.max()} symbols")
if path:
    with picture(path) as (losses, scores):
        plot_history(history, losses)
        y = model(padded, lengths=lengths)[0]
        groups = [(y[:, 1] - y[:, 0])[target == valid] for valid in (0, 1)]
        scores.hist(groups, bins=40, stacked=True, color=["C3", "C2"], label=["invalid", "valid"])
        scores.set(title="Held-out strings", xlabel="logit of valid - logit of invalid", ylabel="strings")
        scores.legend()
