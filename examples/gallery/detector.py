"""Streaming detector: find a rising chirp in noise, one sample at a time."""

import numpy as np
from picture import output, picture

from rnnfast import GRU, Linear, Sequential
from rnnfast.training import Adam, fit, softmax_cross_entropy

path, rng = output(__doc__), np.random.default_rng(0)
CHIRP = np.sin(np.cumsum(np.linspace(0.2, 1.2, 40)))


def generate(count, T):
    """Return signals (count, T, 1) with rising and falling chirps, and 1 in the second half of each rising one."""
    x, target = rng.normal(0, 0.4, (count, T)), np.zeros((count, T), int)
    for row, start in np.ndindex(count, T // 100):
        steps = 100 * start + rng.integers(10, 60) + np.arange(40)
        rising = rng.random() < 0.5
        x[row, steps] += CHIRP if rising else CHIRP[::-1]
        target[row, steps[20:]] = rising
    return x[..., np.newaxis].astype(np.float32), target


model = Sequential(GRU(1, 24, rng=0), Linear(24, 2, rng=1))
fit(model, generate(200, 300), loss=softmax_cross_entropy, optimizer=Adam(model, lr=0.01), epochs=20, rng=2)

(signal,), (target,) = generate(1, 20_000)
stream = model.stream()
logits = np.array([stream.step(sample[np.newaxis])[0] for sample in signal])
alarm = logits[:, 1] > logits[:, 0]
starts, alarms = (np.flatnonzero(np.diff(flags.astype(int)) == 1) + 1 for flags in (target, alarm))
found = [alarm[start : start + 30].any() for start in starts]
false = [not target[max(0, step - 10) : step + 1].any() for step in alarms]
print(f"found {sum(found)} of {len(starts)} chirps, with {sum(false)} false alarms in {len(signal):,} samples")
if path:
    with picture(path, 2, 1) as (above, below):
        shown = slice(0, 600)
        above.plot(signal[shown, 0], color="0.4", linewidth=0.8)
        above.set(title="Signal with chirps, of which rising ones count", xticks=[])
        below.fill_between(range(600), target[shown], color="C2", alpha=0.3, label="rising chirp, second half")
        below.plot(1 / (1 + np.exp(logits[shown, 0] - logits[shown, 1])), color="C0", label="probability")
        below.set(xlabel="sample", ylim=(0, 1.3))
        below.legend(loc="upper center", ncols=2, fontsize="small", frameon=False)
