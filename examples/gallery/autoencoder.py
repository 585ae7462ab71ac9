"""Autoencoder that finds anomalies: heartbeats that it reconstructs badly, after training on normal ones alone."""

import numpy as np
from picture import output, picture

from rnnfast import GRU, Linear, Model
from rnnfast.training import Adam, fit, mean_squared_error

path, rng = output(__doc__), np.random.default_rng(0)
T = np.arange(60)[:, np.newaxis]


def beats(count, late=0.0, last=0.35):
    """Return noisy beats (count, 60, 1): three waves, the last of which comes late or is missing in anomalies."""
    waves = [(0.15, 12, 3), (1.0, 25, 1.5), (last, 42 + late, 4)]
    shift = rng.normal(0, 1, count)
    y = sum(rng.normal(a, 0.03, count) * np.exp(-(((T - centre - shift) / width) ** 2)) for a, centre, width in waves)
    return (y + rng.normal(0, 0.02, y.shape)).T[..., np.newaxis].astype(np.float32)


class Autoencoder(Model):
    def __init__(self):
        self.encoder, self.decoder = GRU(1, 12, rng=0), GRU(12, 24, rng=1)
        self.readout = Linear(24, 1, rng=2)

    def call(self, x):
        _, code = self.encoder(x)
        return self.readout(self.decoder(np.concatenate([code] * len(x)))[0])


model, normal = Autoencoder(), beats(1000)
fit(model, (normal, normal), loss=mean_squared_error, optimizer=Adam(model, lr=0.01), epochs=60, clip=1.0, rng=3)

groups = {"normal": beats(500), "late": beats(500, late=6), "missing": beats(500, last=0.0)}
errors = {name: ((model(x.swapaxes(0, 1)).swapaxes(0, 1) - x) ** 2).mean(axis=(1, 2)) for name, x in groups.items()}
threshold = np.quantile(errors["normal"], 0.98)
found = {name: (error > threshold).mean() for name, error in errors.items()}
print("reported: " + ", ".join(f"{share:.1%} of {name}" for name, share in found.items()) + " beats")
if path:
    with picture(path) as (examples, histogram):
        for k, (name, x) in enumerate(groups.items()):
            examples.plot(x[0] + 1.2 * k, color="0.7", label=None if k else "beat")
            examples.plot(model(x[:1].swapaxes(0, 1))[:, 0] + 1.2 * k, "C0", label=None if k else "reconstruction")
            histogram.hist(np.log10(errors[name]), bins=30, alpha=0.7, color=("C2", "C1", "C3")[k], label=name)
        examples.set(xlabel="step", yticks=[0, 1.2, 2.4], yticklabels=groups)
        histogram.axvline(np.log10(threshold), color="k", linewidth=0.8)
        histogram.set(xlabel="log10 of the mean squared error", ylabel="beats")
        examples.legend(fontsize="small")
        histogram.legend(fontsize="small")
