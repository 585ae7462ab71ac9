"""Tagger: which of three waveforms does each step of a noisy signal belong to?"""

import itertools

import numpy as np
from picture import output, picture

from rnnfast import GRU, Linear, Sequential
from rnnfast.training import Adam, fit, softmax_cross_entropy

path, rng = output(__doc__), np.random.default_rng(0)
WAVES = {"sine": np.sin, "square": lambda t: np.sign(np.sin(t)), "sawtooth": lambda t: t / np.pi % 2 - 1}


def generate(count, T=120):
    """Return signals (count, T, 1) and the waveform at each step (count, T)."""
    x, tags = np.empty((count, T, 1), np.float32), np.empty((count, T), int)
    for signal, tag in zip(x, tags, strict=True):
        cuts = [0, *np.sort(rng.choice(np.arange(20, T - 20, 20), 3, replace=False)), T]
        for start, end in itertools.pairwise(cuts):
            tag[start:end] = rng.integers(0, 3)
        phase = rng.uniform(0, 2 * np.pi) + rng.uniform(0.5, 0.9) * np.arange(T)
        signal[:, 0] = np.choose(tag, [wave(phase) for wave in WAVES.values()]) + rng.normal(0, 0.3, T)
    return x, tags


model = Sequential(GRU(1, 24, bidirectional=True, rng=0), Linear(48, 3, rng=1))
history = fit(model, generate(400), loss=softmax_cross_entropy, optimizer=Adam(model, lr=0.01), epochs=20, rng=2)
x, tags = generate(200)
answers = model(x.swapaxes(0, 1))[0].argmax(axis=2).T
print(f"accuracy: {(answers == tags).mean():.1%} of steps")
if path:
    from matplotlib.colors import to_rgb

    with picture(path, 2, 1) as (above, below):
        shown = next(k for k in range(200) if len(set(tags[k])) == 3)
        above.plot(x[shown, :, 0], color="0.4", linewidth=0.8)
        above.set(title="Noisy signal of sine (blue), square (orange) and sawtooth (green)", xticks=[], xlim=(0, 119))
        colors = np.array([to_rgb(f"C{k}") for k in range(3)])
        below.imshow(colors[np.stack([tags[shown], answers[shown]])], aspect="auto")
        below.set(xlabel="step", yticks=[0, 1], yticklabels=["true", "predicted"])
