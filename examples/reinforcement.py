"""Reinforcement learning with a recurrent policy: CartPole without velocities, learned by PPO in NumPy.

    python examples/reinforcement.py

The policy sees the position of the cart and the angle of the pole, and must remember them to estimate how fast they
change. After each rollout, it is trained on windows in which episodes end and start: ``reset`` marks the first step of
an episode, and ``reset_state="zeros"`` lets it start from zeros, while the window continues the state of the rollout.

    pip install 'rnnfast[torch]' sb3-contrib && python examples/reinforcement.py --peer

trains the same task with RecurrentPPO of sb3-contrib as well, once on torch's LSTM and once converted to rnnfast.

Sources: J. Schulman et al., "Proximal policy optimization algorithms", 2017; J. Schulman et al., "High-dimensional
continuous control using generalized advantage estimation", 2015; A. Barto, R. Sutton and C. Anderson, "Neuronlike
adaptive elements that can solve difficult learning control problems", 1983 (the cart and the pole).
"""

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import rnnfast
from rnnfast.commands.program import Progress, count, option, run_program, save_figure, save_picture, whole
from rnnfast.training import Adam, clip_grad_norm

STEPS, N = 128, 16  # steps of a rollout, and environments
EPISODE, LIMITS = 500, (2.4, np.radians(12))  # most steps of an episode; largest position and angle
EPOCHS, ROWS = 4, 8  # passes over a rollout, and environments per mini-batch
RATE = 0.003  # learning rate, which falls to 0
GAMMA, LAMBDA = 0.99, 0.95  # discounts of rewards and of temporal differences
CLIP, ENTROPY, VALUE = 0.2, 0.001, 0.5  # range of the ratio, and weights of the entropy and of the values' loss
REWARD = 0.03  # of a step; returns then are of the order of 1
MAX_NORM = 0.5  # of the gradients


class CartPole:
    """N carts that balance a pole each. Equations and limits are those of gymnasium's CartPole-v1."""

    def __init__(self, rng):
        self._rng = rng
        self._state = rng.uniform(-0.05, 0.05, (4, N))  # position, velocity, angle, angular velocity
        self._age = np.zeros(N, int)
        self.finished = []  # lengths of the episodes that ended

    def observe(self):
        """Return positions and angles (N, 2), without the velocities, relative to their limits."""
        return (self._state[::2].T / LIMITS).astype(np.float32)

    def step(self, actions):
        """Push the carts to the left (0) or right (1), and restart the episodes that end.

        Returns which ended, which of these were cut off at the most steps, and the observations before the restart.
        """
        _, velocity, angle, turning = self._state
        force, sine, cosine = 20.0 * actions - 10.0, np.sin(angle), np.cos(angle)
        push = (force + 0.05 * turning**2 * sine) / 1.1
        angular = (9.8 * sine - cosine * push) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
        linear = push - 0.05 * angular * cosine / 1.1
        self._state = self._state + 0.02 * np.array([velocity, linear, turning, angular])
        self._age += 1
        last = self.observe()
        fell = (np.abs(self._state[::2].T) > LIMITS).any(axis=1)
        ended = fell | (self._age == EPISODE)
        self.finished.extend(self._age[ended].tolist())
        self._state[:, ended] = self._rng.uniform(-0.05, 0.05, (4, ended.sum()))
        self._age[ended] = 0
        return ended, ended & ~fell, last


class Policy(rnnfast.Model):
    """Returns the logits of both actions and the value of the state, (T, N, 3), and the final state of the LSTM."""

    def __init__(self, hidden, rng):
        self.lstm = rnnfast.LSTM(2, hidden, rng=rng)
        self.readout = rnnfast.Linear(hidden, 3, rng=rng)

    def call(self, x, state=None, reset=None):
        y, state = self.lstm(x, state, reset=reset, reset_state="zeros")
        return self.readout(y), state


def log_softmax(logits):
    logits = logits.astype(float)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


class Rollout(NamedTuple):
    x: np.ndarray  # observations (T, N, 2)
    starts: np.ndarray  # whether an episode starts (T, N)
    state: tuple  # before the first step
    actions: np.ndarray  # (T, N)
    logs: np.ndarray  # logarithms of the probabilities of the actions (T, N)
    advantages: np.ndarray  # (T, N)
    returns: np.ndarray  # estimated discounted returns (T, N)


class Learner:
    """A policy, its environments and its optimizer."""

    def __init__(self, options):
        self.rng = np.random.default_rng(options.seed)
        self.policy = Policy(options.hidden, self.rng)
        self.adam = Adam(self.policy, lr=RATE)
        self.carts = CartPole(self.rng)
        self.starts = np.ones(N, bool)  # whether an episode starts at the next step
        self.state = tuple(np.zeros((2, 1, N, options.hidden), np.float32))

    def rollout(self):
        """Play, and estimate the advantages of the actions."""
        x, values = np.empty((STEPS, N, 2), np.float32), np.empty((STEPS + 1, N))
        starts, actions, logs = np.empty((STEPS + 1, N), bool), np.empty((STEPS, N), int), np.empty((STEPS, N))
        rewards, first = np.full((STEPS, N), REWARD), self.state
        for t in range(STEPS):
            x[t], starts[t] = self.carts.observe(), self.starts
            y, self.state = self.policy(x[t : t + 1], self.state, reset=starts[t : t + 1])
            log = log_softmax(y[0, :, :2])
            actions[t] = self.rng.random(N) < np.exp(log[:, 1])
            logs[t], values[t] = log[np.arange(N), actions[t]], y[0, :, 2]
            self.starts, cut, last = self.carts.step(actions[t])
            if cut.any():  # the rewards that would have followed
                rewards[t] += GAMMA * cut * self.policy(last[None], self.state)[0][0, :, 2]
        starts[STEPS] = self.starts
        values[STEPS] = self.policy(self.carts.observe()[None], self.state, reset=self.starts[None])[0][0, :, 2]
        advantages, later = np.empty((STEPS, N)), 0.0
        for t in reversed(range(STEPS)):
            going = ~starts[t + 1]
            later = rewards[t] + GAMMA * going * (values[t + 1] + LAMBDA * later) - values[t]
            advantages[t] = later
        return Rollout(x, starts[:STEPS], first, actions, logs, advantages, advantages + values[:STEPS])

    def update(self, played):
        """Train the policy on a rollout, in mini-batches of environments."""
        for _ in range(EPOCHS):
            for rows in np.split(self.rng.permutation(N), N // ROWS):
                state = tuple(part[:, rows] for part in played.state)
                y, _, tape = self.policy.forward(played.x[:, rows], state, reset=played.starts[:, rows])
                gradients = self.policy.backward(tape, self.gradient(y, played, rows)).parameters
                clip_grad_norm(gradients, MAX_NORM)
                self.adam.step(gradients)

    @staticmethod
    def gradient(y, played, rows):
        """Return the gradient of the loss with respect to y: clipped objective, entropy and error of the values."""
        log, actions = log_softmax(y[..., :2]), played.actions[:, rows, None]
        p, advantages = np.exp(log), played.advantages[:, rows]
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        ratio = np.exp(np.take_along_axis(log, actions, 2)[..., 0] - played.logs[:, rows])
        clipped = np.where(advantages > 0, ratio > 1 + CLIP, ratio < 1 - CLIP)
        weight = np.where(clipped, 0, ratio * advantages)[..., None]
        dlogits = weight * (p - (np.arange(2) == actions))
        dlogits += ENTROPY * p * (log - (p * log).sum(axis=2, keepdims=True))
        dvalue = VALUE * 2 * (y[..., 2] - played.returns[:, rows])
        return np.concatenate([dlogits, dvalue[..., None]], axis=2) / dvalue.size


class Training(NamedTuple):
    """The course of a training."""

    name: str
    returns: list  # for each update, of the episodes that ended during its rollout
    playing: float  # mean CPU seconds per rollout
    learning: float  # mean CPU seconds per update


def train(options, bar):
    """Train a policy with NumPy and rnnfast."""
    learner, returns, seconds = Learner(options), [], np.zeros(2)
    for update in range(options.updates):
        learner.adam.lr = RATE * (1 - update / options.updates)
        began = time.process_time()
        played = learner.rollout()
        between = time.process_time()
        learner.update(played)
        seconds += between - began, time.process_time() - between
        returns.append(learner.carts.finished)
        learner.carts.finished = []
        bar.step()
    return Training("NumPy and rnnfast", returns, *(seconds / options.updates))


# ------------------------------------------------------------------------------------------------------------ the peer


def process_sequence(features, states, episode_starts, lstm):
    """As RecurrentPPO's, without a loop: features (rows * T, I), states (1, rows, H), episode_starts (rows * T,)."""
    rows = states[0].shape[1]
    x, starts = features.reshape(rows, -1, lstm.input_size), episode_starts.reshape(rows, -1) > 0
    y, states = lstm(x.swapaxes(0, 1), states, reset=starts.T, reset_state="zeros")
    return y.swapaxes(0, 1).flatten(end_dim=1), states


def train_peer(name, converted, options, bar):
    """Train RecurrentPPO of sb3-contrib on the same task; it has an LSTM each for the policy and the values."""
    import gymnasium
    import torch
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    from rnnfast.backends.torch import convert

    class Watch(BaseCallback):
        """Measures the rollouts, and the time between them; collects the returns of episodes."""

        def __init__(self):
            super().__init__()
            self.times, self.returns = [], []

        def _on_rollout_start(self):
            self.times.append(time.process_time())

        def _on_rollout_end(self):
            self.times.append(time.process_time())
            self.returns.append([info["r"] for info in self.model.ep_info_buffer])
            self.model.ep_info_buffer.clear()
            bar.step()

        def _on_step(self):
            return True

    def blind(environment):
        """Hide the velocities, and scale observations and rewards."""
        space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        seen = gymnasium.wrappers.TransformObservation(environment, lambda state: state[::2] / LIMITS, space)
        return gymnasium.wrappers.TransformReward(seen, lambda reward: REWARD * reward)

    torch.set_num_threads(1)
    environments = make_vec_env("CartPole-v1", N, seed=options.seed, wrapper_class=blind)
    policy = {"lstm_hidden_size": options.hidden, "net_arch": []}
    algorithm = {"n_epochs": EPOCHS, "gamma": GAMMA, "gae_lambda": LAMBDA, "clip_range": CLIP, "ent_coef": ENTROPY}
    algorithm |= {"vf_coef": VALUE, "max_grad_norm": MAX_NORM, "learning_rate": lambda left: RATE * left}
    model = RecurrentPPO(
        "MlpLstmPolicy", environments, n_steps=STEPS, batch_size=STEPS * ROWS, seed=options.seed, policy_kwargs=policy,
        stats_window_size=N * STEPS, **algorithm,
    )  # fmt: skip
    if converted:
        convert(model.policy, strict=True)
        model.policy._process_sequence = process_sequence
    watch = Watch()
    model.learn(options.updates * STEPS * N, callback=watch)
    seconds = np.diff([*watch.times, time.process_time()]).reshape(-1, 2).mean(axis=0)
    return Training(name, watch.returns, *seconds)


# ---------------------------------------------------------------------------------------------------------- the output


def smooth(returns, width=10):
    """Return for each update the mean return of the episodes that ended in the last `width` ones."""
    windows = [list(itertools.chain(*returns[max(0, k - width + 1) : k + 1])) for k in range(len(returns))]
    return [np.mean(window) if window else np.nan for window in windows]


def draw(trainings, path):
    """Draw the returns and the times of an update."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    curves, bars = figure.subplots(1, 2, width_ratios=[3, 2])
    for color, training in zip(("C0", "C3", "C1"), trainings, strict=False):
        steps = STEPS * N / 1000 * np.arange(1, len(training.returns) + 1)
        curves.plot(steps, smooth(training.returns), color, label=training.name)
    curves.axhline(EPISODE, color="gray", linewidth=0.8)
    curves.set(
        title="CartPole without velocities",
        xlabel="steps of all environments, in thousands",
        ylabel="mean return",
        ylim=0,
    )
    curves.legend(loc="lower right")
    names = [training.name.replace(" and ", "\nand ").replace(", ", ",\n") for training in trainings]
    times = 1e3 * np.array([[training.playing, training.learning] for training in trainings])
    bars.barh(names, times[:, 0], color="0.75", label="rollout")
    bars.barh(names, times[:, 1], left=times[:, 0], color="0.45", label="training")
    for row, (playing, learning) in enumerate(times):
        bars.annotate(f" {playing + learning:.0f}", (playing + learning, row), va="center")
    bars.invert_yaxis()
    bars.margins(x=0.12)
    bars.set(title=f"Time per update, {STEPS * N:,} steps", xlabel="ms of CPU time")
    bars.legend(loc="upper right")
    for axes in (curves, bars):
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, dpi=80)


def report(options):
    """Train the policies and report the results."""
    rnnfast.set_num_threads(1)
    trainings = []
    with Progress(options.updates * (3 if options.peer else 1)) as bar:
        trainings.append(train(options, bar))
        if options.peer:
            trainings.append(train_peer("RecurrentPPO, torch", False, options, bar))
            trainings.append(train_peer("RecurrentPPO, converted", True, options, bar))
    print(f"{options.updates} updates, each after {STEPS} steps of {N} environments; one thread, CPU times.\n")
    print(f"{'':26}{'mean return':>12}{'rollout':>12}{'training':>12}{'per update':>12}{'in all':>9}")
    for name, returns, playing, learning in trainings:
        times = f"{1e3 * playing:9.1f} ms{1e3 * learning:9.1f} ms{1e3 * (playing + learning):9.1f} ms"
        print(f"{name:26}{smooth(returns)[-1]:12.0f}{times}{options.updates * (playing + learning):7.1f} s")
    save_picture(options.output, draw, trainings)
    return 0


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        description="Train a recurrent policy on CartPole without velocities, with PPO in NumPy.",
        epilog="Exit status: 0 success, 2 error, 130 stopped by Ctrl-C.",
    )
    option(parser, "--updates", count, 100, f"rollouts of {STEPS} steps in {N} environments, each with an update")
    option(parser, "--hidden", count, 64, "units of the LSTM")
    option(parser, "--seed", whole(0), 0, "random seed")
    parser.add_argument("--peer", action="store_true", help="also train RecurrentPPO of sb3-contrib")
    option(parser, "--output", Path, Path("reinforcement.png"), "picture")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the program and return the exit status."""
    options = parse_arguments(arguments)
    threads = rnnfast.get_num_threads()
    try:
        return run_program("reinforcement.py", report, options)
    finally:
        rnnfast.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
