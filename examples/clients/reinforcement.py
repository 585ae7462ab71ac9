"""sb3-contrib: reinforcement learning with a recurrent policy (RecurrentPPO), whose LSTMs PyTorch runs.

    pip install 'rnnfast[torch]' sb3-contrib && python examples/clients/reinforcement.py

RecurrentPPO runs a Python loop over the steps of every sequence in which an episode starts. In training, episodes start
at the first step of a sequence only, so it is enough to clear the state there.
"""

import gymnasium
import numpy as np
import torch
from comparison import compare
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.env_util import make_vec_env

from rnnfast.backends.torch import convert

loop = RecurrentActorCriticPolicy._process_sequence


def process_sequence(features, states, episode_starts, lstm):
    """As RecurrentPPO's, without a loop: features (rows * T, I), states (1, rows, H), episode_starts (rows * T,)."""
    rows = states[0].shape[1]
    starts = episode_starts.reshape(rows, -1)
    if starts[:, 1:].any():
        return loop(features, states, episode_starts, lstm)
    x = features.reshape(rows, -1, lstm.input_size).swapaxes(0, 1)
    kept = 1 - starts[:, 0].view(1, rows, 1)
    y, states = lstm(x, tuple(kept * state for state in states))
    return y.transpose(0, 1).flatten(end_dim=1), states


def learn(fast, steps):
    """Train on CartPole without velocities; return the rewards of the last 100 episodes."""
    RecurrentActorCriticPolicy._process_sequence = staticmethod(process_sequence if fast else loop)
    torch.manual_seed(0)
    environments = make_vec_env("CartPole-v1", 8, seed=0, wrapper_class=WithoutVelocities)
    options = {"lstm_hidden_size": 64, "n_lstm_layers": 1}
    model = RecurrentPPO("MlpLstmPolicy", environments, n_steps=128, batch_size=128, seed=0, policy_kwargs=options)
    if fast:
        convert(model.policy, strict=True)
    model.learn(steps)
    return [info["r"] for info in model.ep_info_buffer]


class WithoutVelocities(gymnasium.ObservationWrapper):
    def __init__(self, environment):
        super().__init__(environment)
        space = environment.observation_space
        self.observation_space = gymnasium.spaces.Box(space.low[::2], space.high[::2], dtype=space.dtype)

    def observation(self, observation):
        return observation[::2]


def main():
    torch.set_num_threads(1)
    compare(
        "RecurrentPPO, 2048 steps",
        lambda: learn(False, 2048),
        lambda: learn(True, 2048),
        lambda a, b: np.abs(np.subtract(a, b)).max(),
        rounds=1,
    )


if __name__ == "__main__":
    main()
