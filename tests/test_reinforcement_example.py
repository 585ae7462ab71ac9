"""examples/reinforcement.py: PPO with a recurrent policy."""

import re

import numpy as np
import pytest
from support.checkout import load_example

example = load_example("reinforcement")


def run(picture, *options):
    return example.main(["--output", str(picture), *options])


def test_physics_are_those_of_gymnasium():
    gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: no comparison with it")
    theirs = gymnasium.make("CartPole-v1").unwrapped
    theirs.reset(seed=0)
    rng = np.random.default_rng(0)
    ours = example.CartPole(rng)
    ours._state[:, 0] = theirs.state
    for _ in range(100):
        actions = rng.integers(0, 2, example.N)
        observation, _, terminated, _, _ = theirs.step(int(actions[0]))
        ended, cut, last = ours.step(actions)
        assert ended[0] == terminated
        assert not cut.any()
        np.testing.assert_allclose(last[0], observation[::2] / example.LIMITS, rtol=1e-5)
        if terminated:
            break
        np.testing.assert_allclose(ours._state[:, 0], theirs.state, rtol=1e-12)
        np.testing.assert_array_equal(ours.observe()[0], last[0])
    assert terminated
    assert len(ours.finished) >= 1
    assert (np.abs(ours._state[:, 0]) <= 0.05).all()  # a new episode has started


def test_episodes_have_at_most_500_steps():
    carts = example.CartPole(np.random.default_rng(0))
    carts._age[:] = example.EPISODE - 1
    carts._state[2, 0] = 0.3  # this pole falls
    ended, cut, _ = carts.step(np.zeros(example.N, int))
    assert ended.all()
    np.testing.assert_array_equal(cut, np.arange(example.N) > 0)
    assert carts.finished == [example.EPISODE] * example.N


@pytest.fixture
def learner():
    return example.Learner(example.parse_arguments(["--hidden", "8"]))


def test_windows_continue_the_rollout(learner):
    """The policy computes in training what it computed while playing: the ratios of PPO start at 1."""
    for _ in range(2):
        played = learner.rollout()
        assert played.starts[1:].any()
        y, _, _ = learner.policy.forward(played.x, played.state, reset=played.starts)
        log = np.take_along_axis(example.log_softmax(y[..., :2]), played.actions[..., None], 2)[..., 0]
        np.testing.assert_array_equal(log, played.logs)
    assert played.state[0].any()


def test_advantages_are_sums_of_temporal_differences(learner):
    """With LAMBDA = 1 and values of 0, they are the discounted rewards of the rest of the episode."""
    learner.policy.parameters["readout.weight"][2] = learner.policy.parameters["readout.bias"][2] = 0
    before, example.LAMBDA = example.LAMBDA, 1
    try:
        played = learner.rollout()
    finally:
        example.LAMBDA = before
    end = np.flatnonzero(played.starts[1:, 0])[0]
    expected = example.REWARD * sum(example.GAMMA**k for k in range(end + 1))
    assert played.advantages[0, 0] == pytest.approx(expected)


def test_an_episode_that_is_cut_off_goes_on_in_the_values(learner):
    weight, bias = (learner.policy.parameters[f"readout.{name}"] for name in ("weight", "bias"))
    weight[2], bias[2] = 0, 2
    learner.carts._age[:] = example.EPISODE - 1
    played = learner.rollout()
    assert played.starts[1].all()
    np.testing.assert_allclose(played.advantages[0], example.REWARD + example.GAMMA * 2 - 2, rtol=1e-6)


def test_gradient_is_that_of_the_clipped_objective(learner):
    played, rows = learner.rollout(), np.arange(example.ROWS)
    rng = np.random.default_rng(1)
    y = rng.normal(0, 0.5, (example.STEPS, example.ROWS, 3))
    y[..., 2] *= 0.1

    def loss(y):
        log = example.log_softmax(y[..., :2])
        advantages = played.advantages[:, rows]
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        ratio = np.exp(np.take_along_axis(log, played.actions[:, rows, None], 2)[..., 0] - played.logs[:, rows])
        objective = np.minimum(ratio * advantages, np.clip(ratio, 1 - example.CLIP, 1 + example.CLIP) * advantages)
        entropy = -(np.exp(log) * log).sum(axis=2)
        error = (y[..., 2] - played.returns[:, rows]) ** 2
        return (-objective - example.ENTROPY * entropy + example.VALUE * error).mean()

    gradient = example.Learner.gradient(y, played, rows)
    for index in zip(*(rng.integers(0, size, 60) for size in y.shape), strict=True):
        kept, step = y[index], 1e-6
        y[index] = kept + step
        above = loss(y)
        y[index] = kept - step
        below = loss(y)
        y[index] = kept
        assert gradient[index] == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-10)


def test_run_from_end_to_end(tmp_path, capsys):
    assert run(tmp_path / "picture.png", "--updates", "2", "--hidden", "8") == 0
    report, errors = capsys.readouterr()
    assert not errors
    assert "2 updates, each after 128 steps of 16 environments" in report
    assert re.search(r"NumPy and rnnfast +\d+ +[\d.]+ ms +[\d.]+ ms +[\d.]+ ms +[\d.]+ s", report)


@pytest.mark.full
def test_policy_learns(tmp_path, capsys):
    assert run(tmp_path / "picture.png", "--seed", "1") == 0
    mean = float(re.search(r"NumPy and rnnfast +(\d+)", capsys.readouterr().out)[1])
    assert mean > 300


@pytest.mark.full
def test_process_sequence_is_the_loop_of_the_peer(torch):
    policies = pytest.importorskip("sb3_contrib.common.recurrent.policies", reason="sb3-contrib is not installed")
    from rnnfast.backends.torch import convert

    loop = policies.RecurrentActorCriticPolicy._process_sequence
    torch.manual_seed(0)
    model = torch.nn.ModuleList([torch.nn.LSTM(2, 8)])
    features, starts = torch.randn(3 * 5, 2), (torch.rand(3 * 5) < 0.4).float()
    states = tuple(torch.randn(2, 1, 3, 8))
    expected, ends = loop(features, states, starts, model[0])
    y, state = example.process_sequence(features, states, starts, convert(model)[0])
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state, ends)


@pytest.mark.full
def test_peer(tmp_path, capsys):
    pytest.importorskip("sb3_contrib", reason="sb3-contrib is not installed: no comparison with it")
    assert run(tmp_path / "picture.png", "--updates", "2", "--peer") == 0
    assert capsys.readouterr().out.count("RecurrentPPO") == 2
