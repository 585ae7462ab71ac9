"""Policy that needs memory: REINFORCE in a T-maze, where a sign at the entrance says which way to turn at the end."""

import numpy as np
from picture import output, picture

from rnnfast import GRU, Linear, Sequential
from rnnfast.training import Adam

path, rng = output(__doc__), np.random.default_rng(0)
LENGTH, N = 10, 64  # of the corridor, and number of episodes per update


def play(model):
    """Return observations (T, N, 3), actions (left, right, forward), rewards, and whether a step counts, (T, N)."""
    stream, place, sign, steps = model.stream(N), np.zeros(N, int), rng.integers(0, 2, N), []
    for _ in range(2 * LENGTH):
        end, inside = place == LENGTH, place <= LENGTH
        x = np.stack([(place == 0) * (2 * sign - 1), end, inside], axis=1).astype(np.float32)
        action = (stream.step(x) + rng.gumbel(size=(N, 3))).argmax(axis=1)  # samples from the softmax
        turns, walks = end & (action < 2), (place < LENGTH) & (action == 2)
        bumps = inside & ~turns & ~walks
        steps.append((x, action, np.where(turns, 2.0 * (action == sign) - 1, -0.1 * bumps), inside))
        place += turns | walks
    return map(np.array, zip(*steps, strict=True))


model = Sequential(GRU(3, 16, rng=0), Linear(16, 3, rng=1))
adam, solved = Adam(model, lr=0.01), []
for _ in range(400):
    x, actions, rewards, inside = play(model)
    returns = rewards[::-1].cumsum(axis=0)[::-1]
    advantages = (returns - returns.mean(axis=1, keepdims=True)) * inside
    y, _, tape = model.forward(x)
    p = np.exp(y - y.max(axis=2, keepdims=True))
    p /= p.sum(axis=2, keepdims=True)
    adam.step(model.backward(tape, (p - np.eye(3)[actions]) * advantages[..., np.newaxis] / N))
    solved.append((rewards == 1).any(axis=0).mean())
print(f"the last 50 updates: {np.mean(solved[-50:]):.1%} of episodes turn the right way")
if path:
    with picture(path) as (curve, memory):
        curve.plot(np.convolve(solved, np.full(10, 0.1), "valid"))
        curve.axhline(0.5, color="gray", linewidth=0.8)
        curve.set(title="Episodes that turn the right way", xlabel="updates", ylim=(0, 1.05))
        walk = np.zeros((LENGTH + 1, 2, 3), np.float32)  # to the junction, with either sign
        walk[0, :, 0], walk[-1, :, 1], walk[..., 2] = (-1, 1), 1, 1
        difference = np.subtract(*model[0](walk)[0].swapaxes(0, 1)).T
        memory.imshow(difference, aspect="auto", cmap="RdBu", vmin=-2, vmax=2)
        memory.set(title="What the state knows of the sign", xlabel="step in the maze", ylabel="unit", yticks=(0, 15))
