"""Sequence to sequence with attention: written dates to ISO 8601."""

import datetime

import numpy as np
from picture import output, picture

from rnnfast import GRU, Activation, Attention, Embedding, Linear, Model, Sequential
from rnnfast.training import Adam, softmax_cross_entropy

path, rng = output(__doc__), np.random.default_rng(0)


def batch(N, digits):
    """Return codes of dates from 1900 to 2049 (S, N), their lengths, and codes of the ISO dates (10, N)."""
    days = [datetime.date.fromordinal(10 * ten + rng.choice(digits)) for ten in rng.integers(69_360, 74_838, N)]
    texts = [day.strftime(rng.choice(["%d %B %Y", "%B %d, %Y", "%d.%m.%Y", "%b %d %Y"])).encode() for day in days]
    source, target = [[*text.ljust(18)] for text in texts], [[*str(day).encode()] for day in days]
    return np.array(source).T, [len(text) for text in texts], np.array(target).T - ord("-")


class Translator(Model):
    def __init__(self, size=48):
        self.source, self.target = Embedding(128, 16, rng=0), Embedding(13, 16, rng=1)
        self.encoder, self.decoder = GRU(16, size // 2, bidirectional=True, rng=2), GRU(16, size, rng=3)
        self.attention = Attention()
        self.head = Sequential(Linear(2 * size, size, rng=4), Activation("tanh"), Linear(size, 13, rng=5))

    def call(self, x, target, lengths, state=None):
        memory, ends = self.encoder(self.source(x), lengths=lengths)
        state = np.concatenate([ends[:1], ends[1:]], axis=2) if state is None else state
        hidden, state = self.decoder(self.target(target), state)
        context = self.attention(hidden, memory, lengths=lengths)
        return self.head(np.concatenate([context, hidden], axis=2)), state


model, losses = Translator(), []
adam = Adam(model, lr=0.005)
for _ in range(800):
    x, lengths, target = batch(64, range(9))
    y, _, tape = model.forward(x, np.pad(target[:-1], ((1, 0), (0, 0)), constant_values=1), lengths)
    loss, dy = softmax_cross_entropy(y, target)
    adam.step(model.backward(tape, dy))
    losses.append(loss)

x, lengths, target = batch(1000, [9])
codes, state = np.ones((1, 1000), int), None  # 1 starts a date
while len(codes) <= 10:
    y, state = model(x, codes[-1:], lengths, state)
    codes = np.concatenate([codes, y.argmax(axis=2)])
print(f"{(codes[1:] == target).all(axis=0).mean():.1%} of 1,000 dates that did not occur in training are right")
if path:
    with picture(path) as (curve, alignment):
        curve.semilogy(losses)
        curve.set(xlabel="updates", ylabel="cross-entropy")
        memory, ends = model.encoder(model.source(x), lengths=lengths)
        hidden, _ = model.decoder(model.target(codes[:-1]), np.concatenate([ends[:1], ends[1:]], axis=2))
        longest = int(np.argmax(lengths))
        alignment.imshow(model.attention.weights(hidden, memory, lengths=lengths)[longest], cmap="Blues", vmin=0)
        alignment.set(title="Attention", xticks=range(18), xticklabels=map(chr, x[:, longest]))
        alignment.set(yticks=range(10), yticklabels=[chr(code + ord("-")) for code in codes[1:, longest]])
