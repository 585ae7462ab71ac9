"""The state from which sequences start at a reset: what stands for it, and runs that carry a state from call to call.

The values and gradients of any reset state are tested with the other kinds of ragged batches, in test_ragged.py.
"""

from itertools import pairwise

import numpy as np
import pytest
from support.cells import has_c
from support.compare import assert_same_bits, members, named
from support.layers import like, make, outputs
from support.ragged import over_members

import rnnfast

T, N, I = 9, 5, 4
RESET = np.random.default_rng(0).random((T, N)) < 0.3
RESET[0] = [False, True, False, True, False]
RESET[:, 2] = False
STACKS = {"plain": {}, "deep": {"num_layers": 2}, "reverse": {"reverse": True}, "both": {"bidirectional": True}}


def call(layer, x, state, dy, dstate, **given):
    """The results of a call, of forward and of backward by name, and the gradients."""
    y, end, tape = layer.forward(x, state, **given)
    grads = layer.backward(tape, dy, dstate)
    assert_same_bits(outputs(*layer(x, state, **given)), outputs(y, end))
    return named(y, end, *grads), grads


def problem(layer, rng):
    x = rng.standard_normal((T, N, I)).astype(layer.dtype)
    y, state = layer(x)
    return x, like(state, rng), like(y, rng), like(state, rng)


def row(state, n):
    return over_members(state, lambda member: member[:, n : n + 1])


@pytest.mark.parametrize("num_layers", [1, 2])
def test_resets_to_zeros_are_separate_runs(variant, num_layers, dtype, rng):
    """The first piece of a row starts from the state that is carried over, and the others start from zeros."""
    layer = make(variant, num_layers=num_layers, dtype=dtype)
    x, state, dy, dstate = problem(layer, rng)
    got, grads = call(layer, x, state, dy, dstate, reset=RESET, reset_state="zeros")
    for n in range(N):
        cuts = [0, *(t for t in range(1, T) if RESET[t, n]), T]
        start = None if RESET[0, n] else row(state, n)
        dinitial = over_members(row(state, n), np.zeros_like)
        for first, stop in pairwise(cuts):
            y, end, tape = layer.forward(x[first:stop, n : n + 1], start)
            piece = layer.backward(tape, dy[first:stop, n : n + 1], row(dstate, n) if stop == T else None)
            assert y[:, 0].tobytes() == got["y"][first:stop, n].tobytes()
            assert piece.x[:, 0].tobytes() == got["dx"][first:stop, n].tobytes()
            if start is not None:
                dinitial = piece.state
            start = None
        for i, member in enumerate(members(end)):
            assert member[:, 0].tobytes() == got[f"state {i}"][:, n].tobytes()
            assert members(dinitial)[i][:, 0].tobytes() == members(grads.state)[i][:, n].tobytes()


@pytest.mark.parametrize("stack", STACKS.values(), ids=list(STACKS))
def test_what_stands_for_a_reset_state(variant, stack, rng):
    layer = make(variant, **stack)
    x, state, dy, dstate = problem(layer, rng)
    zeros = over_members(state, np.zeros_like)
    expected, grads = call(layer, x, state, dy, dstate, reset=RESET, reset_state=zeros)
    for word in ("zeros", None):
        got, gradients = call(layer, x, state, dy, dstate, reset=RESET, reset_state=word)
        assert_same_bits(got, expected)
        assert all(map(np.array_equal, members(gradients.reset_state), members(grads.reset_state)))
    assert any(member.any() for member in members(grads.reset_state))
    assert len(grads) == 3
    got, gradients = call(layer, x, state, dy, dstate, reset=RESET, reset_state="initial")
    assert gradients.reset_state is None
    assert_same_bits(got, call(layer, x, state, dy, dstate, reset=RESET)[0])
    same, gradients = call(layer, x, state, dy, dstate, reset=RESET, reset_state=state)
    for name in ("y", "dx"):
        assert same[name].tobytes() == got[name].tobytes()
    sums = zip(members(gradients.state), members(gradients.reset_state), strict=True)
    for i, (one, other) in enumerate(sums):
        np.testing.assert_allclose(one + other, got[f"dstate {i}"], atol=1e-5)
    if has_c(variant):
        h, c = like(state, rng)
        got, _ = call(layer, x, state, dy, dstate, reset=RESET, reset_state=(h, None))
        assert_same_bits(got, call(layer, x, state, dy, dstate, reset=RESET, reset_state=(h, np.zeros_like(c)))[0])


@pytest.mark.parametrize("given", [{}, {"reset": np.zeros((T, N), bool)}, {"lengths": [3, T, 0, 1, T]}])
def test_without_resets_it_has_no_effect(variant, given, rng):
    layer = make(variant, bidirectional=True)
    x, state, dy, dstate = problem(layer, rng)
    expected, _ = call(layer, x, state, dy, dstate, **given)
    for reset_state in ("zeros", None, like(state, rng)):
        got, grads = call(layer, x, state, dy, dstate, **given, reset_state=reset_state)
        assert_same_bits(got, expected)
        assert [member.shape for member in members(grads.reset_state)] == [member.shape for member in members(state)]
        assert not any(member.any() for member in members(grads.reset_state))


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("stack", STACKS.values(), ids=list(STACKS))
def test_learned_states(variant, stack, carried, rng):
    """None stands for the learned states, whose gradient adds up; "zeros" are zeros."""
    layer, plain = make(variant, init_state=True, **stack), make(variant, **stack)
    own = [name for name in layer.parameters if name not in plain.parameters]
    for name in own:
        layer.parameters[name][:] = rng.standard_normal(layer.parameters[name].shape)
    x, state, dy, dstate = problem(plain, rng)
    count = len(own) // len(members(state))
    kinds = [own[at : at + count] for at in range(0, len(own), count)]
    arrays = tuple(np.stack([layer.parameters[name] for name in kind])[:, None].repeat(N, axis=1) for kind in kinds)
    learned = arrays if isinstance(state, tuple) else arrays[0]
    start = state if carried else None
    for word, value in ((None, learned), ("zeros", "zeros")):
        got, grads = call(layer, x, start, dy, dstate, reset=RESET, reset_state=word)
        expected, of_plain = call(plain, x, state if carried else learned, dy, dstate, reset=RESET, reset_state=value)
        for name, array in expected.items():
            assert got[name].tobytes() == array.tobytes(), name
        given = [of_plain.state] * (not carried) + [of_plain.reset_state] * (word is None)
        for k, kind in enumerate(kinds):
            for j, name in enumerate(kind):
                total = sum(members(one)[k][j].sum(0, dtype=np.float64) for one in given)
                np.testing.assert_allclose(grads.parameters[name], total, rtol=1e-5, atol=1e-5)
                is_unused = k == 0 and variant == "sru_linear"  # the h of SRU
                assert grads.parameters[name].any() == (bool(given) and not is_unused)


@pytest.mark.parametrize("batch_first", [False, True])
def test_windows_with_a_carried_state(variant, batch_first, rng):
    """What a recurrent policy needs: windows with resets to zeros continue one another, as one call or step by step."""
    layer = make(variant, batch_first=batch_first)
    x, state, _, _ = problem(make(variant), rng)
    x, reset = (x.swapaxes(0, 1), RESET.T) if batch_first else (x, RESET)
    axis = int(batch_first)
    y, last = layer(x, state, reset=reset, reset_state="zeros")
    for size in (1, 4):
        state_now, parts = state, []
        for at in range(0, T, size):
            steps = (slice(None),) * axis + (slice(at, at + size),)
            part, state_now = layer(x[steps], state_now, reset=reset[steps], reset_state="zeros")
            parts.append(part)
        assert_same_bits(outputs(np.concatenate(parts, axis), state_now), outputs(y, last))
    state_now = state
    for t in range(T):
        state_now = over_members(state_now, lambda member: np.where(RESET[t][:, None], 0, member))  # noqa: B023
        _, state_now = layer(x.swapaxes(0, axis)[t : t + 1].swapaxes(0, axis), state_now)
    assert_same_bits(outputs(y, state_now), outputs(y, last))


def test_both_layers_of_a_bidirectional_have_reset_states(rng):
    layer = rnnfast.Bidirectional(make("lstm"), make("gru"))
    x, state, dy, dstate = problem(make("lstm", bidirectional=True), rng)
    dy = np.concatenate([dy[..., :6], dy[..., :6]], -1)
    pair = (tuple(member[:1] for member in state), state[0][:1])
    ends = (tuple(member[:1] for member in dstate), dstate[0][:1])

    def run(reset_state):
        y, end, tape = layer.forward(x, pair, reset=RESET, reset_state=reset_state)
        grads = layer.backward(tape, dy, ends)
        return y.tobytes(), [one.tobytes() for half in end for one in members(half)], grads

    zeros = run("zeros")
    assert zeros[:2] == run(("zeros", "zeros"))[:2] == run((None, "zeros"))[:2] == run(None)[:2]
    assert [type(one) for one in zeros[2].reset_state] == [tuple, np.ndarray]
    mixed = run(("initial", "zeros"))
    assert mixed[2].reset_state[0] is None
    assert mixed[2].reset_state[1].tobytes() == zeros[2].reset_state[1].tobytes()
    assert run("initial")[2].reset_state is None
    with pytest.raises(ValueError, match=r"reset_state\[1\] must have shape .* got \(1, 2, 6\)"):
        layer(x, reset=RESET, reset_state=("zeros", np.zeros((1, 2, 6))))
