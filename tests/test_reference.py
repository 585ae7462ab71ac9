"""The reference against central differences, torch, and a GRU written out for single elements.

Ragged batches are compared with torch's packed sequences, where torch supports them, and with separate runs of every
part of every row.
"""

import itertools
import math
import warnings

import numpy as np
import pytest
from support.cells import ANY_INPUT, DIRECTIONS, TORCH_CLASSES, VARIANTS, has_c, is_trained
from support.compare import assert_close, central_differences, gradient_by_differences, members, named
from support.problems import problem, run_reference
from support.ragged import draw_reset_state, is_real, named_reset, run_all

from rnnfast import reference


def rows(*texts):
    """A bool array (T, N) from one string of 0 and 1 per row."""
    return np.array([[character == "1" for character in text] for text in texts]).T


# Four rows of four steps, with gaps at the start, inside, at the end and everywhere; with parts of one valid step and
# of none; with resets at masked-out steps and in the padding.
SEQUENCES = {
    "lengths": {"lengths": [2, 4, 0, 3]},
    "mask": {"mask": rows("0100", "1001", "0000", "1011")},
    "zero_masked": {"mask": rows("0100", "1001", "0000", "1011"), "zero_masked": True},
    "reset": {"reset": rows("1001", "0000", "0110", "0010")},
    "mask and reset": {
        "mask": rows("0100", "1001", "0011", "1011"),
        "reset": rows("0010", "0010", "0010", "0101"),
    },
    "lengths and reset": {"lengths": [2, 4, 0, 3], "reset": rows("0011", "0101", "0110", "0101")},
}
# The same with a reset state. It also matters at step 0, but not in a row without steps.
SEQUENCES |= {
    f"{kind} to a state": {**SEQUENCES[kind], "reset": SEQUENCES[kind]["reset"] | rows("0000", "1000", "1000", "1001")}
    for kind in ("mask and reset", "lengths and reset")
}


def random_sequences(kind, T, N):
    """Random arguments like those of SEQUENCES, for any number of rows."""
    rng = np.random.default_rng(0)
    arrays = {"lengths": rng.integers(0, T + 1, N), "mask": rng.random((T, N)) < 0.5, "reset": rng.random((T, N)) < 0.3}
    return {name: arrays.get(name, True) for name in SEQUENCES[kind]}


def sequences(kind, cell, *, T=4, N=4, direction="forward", projected=False, dtype=np.float64):
    """A problem of two layers on a ragged batch of a kind."""
    p = problem(
        cell,
        T,
        N,
        2,
        3,
        proj_size=2 * projected,
        num_layers=2,
        dropout=True,
        dtype=dtype,
        **DIRECTIONS[direction],
    )
    p.options.update(SEQUENCES[kind] if (T, N) == (4, 4) else random_sequences(kind, T, N))
    if kind.endswith("to a state"):
        p.options["reset_state"] = draw_reset_state(p)
    return p


def run_forward(p):
    y, state, _ = reference.forward(p.cell, p.parameters, p.x, p.state, **p.options)
    return y, state


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_central_differences(variant, direction, num_layers):
    cell, projected = VARIANTS[variant]
    p = problem(
        cell,
        3,
        2,
        2,
        3,
        proj_size=2 * projected,
        num_layers=num_layers,
        dropout=num_layers > 1,
        **DIRECTIONS[direction],
    )
    results = run_reference(p)
    expected = gradient_by_differences(p, run_forward)
    assert_close({name: results[name] for name in expected}, expected, 1e-8)


@pytest.mark.parametrize("lengths", [None, [4, 7, 1, 5, 7]])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("variant", [name for name, (cell, _) in VARIANTS.items() if cell in TORCH_CLASSES])
def test_agrees_with_torch(torch, variant, bidirectional, num_layers, bias, lengths):
    cell, projected = VARIANTS[variant]
    T, N, I, H = 7, 5, 5, 4
    options = {"num_layers": num_layers, "bidirectional": bidirectional}
    p = problem(cell, T, N, I, H, proj_size=2 * projected, bias=bias, **options)
    p.options["lengths"] = lengths
    extra = {"nonlinearity": cell[4:]} if cell.startswith("rnn") else {"proj_size": 2} if projected else {}
    layer = getattr(torch.nn, TORCH_CLASSES[cell])(I, H, bias=bias, dtype=torch.float64, **options, **extra)
    layer.load_state_dict({name: torch.from_numpy(value) for name, value in p.parameters.items()})

    x = torch.from_numpy(p.x).requires_grad_()
    start = [torch.from_numpy(member).requires_grad_() for member in members(p.state)]
    pack, pad = torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence
    given = x if lengths is None else pack(x, torch.tensor(lengths), enforce_sorted=False)
    y, end = layer(given, tuple(start) if has_c(cell) else start[0])
    y = y if lengths is None else pad(y, total_length=T)[0]
    outputs = [y, *members(end)]
    torch.autograd.backward(outputs, [torch.from_numpy(d) for d in [p.dy, *members(p.dstate)]])
    expected = {"y": y, "dx": x.grad}
    expected.update({f"state {i}": member for i, member in enumerate(members(end))})
    expected.update({f"dstate {i}": member.grad for i, member in enumerate(start)})
    expected.update({f"d{name}": value.grad for name, value in layer.named_parameters()})
    assert_close(run_reference(p), {name: value.detach().numpy() for name, value in expected.items()}, 1e-10)


@pytest.mark.cover(1)
@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_sequence_gradients_are_central_differences(variant, direction, kind):
    cell, projected = VARIANTS[variant]
    p = sequences(kind, cell, direction=direction, projected=projected)
    results = run_all(p)
    expected = gradient_by_differences(p, run_forward)
    assert_close({name: results[name] for name in expected}, expected, 1e-8)


@pytest.mark.cover(1)
@pytest.mark.parametrize("kind", [None, *SEQUENCES])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_step_gradients_are_central_differences(variant, direction, kind, monkeypatch):
    """Adding to h inside a step changes the loss by the gradient of that h times the change."""
    cell, projected = VARIANTS[variant]
    p = sequences(kind or "lengths", cell, direction=direction, projected=projected)
    if kind is None:
        del p.options["lengths"]
    _, _, tape = reference.forward(cell, p.parameters, p.x, p.state, **p.options)
    dh = reference.backward(tape, p.dy, p.dstate, per_step=True)[3]

    added = np.zeros_like(dh)
    backwards = [False, True] if p.options["bidirectional"] else [p.options["reverse"]]
    ways = [-1 if back else 1 for back in backwards] * p.options["num_layers"]
    step, gradient = reference._CELLS[cell]
    to_add = []

    def step_and_add(*given):
        (h, *c), values = step(*given)
        return (h + to_add.pop(0), *c), values

    def loss():
        to_add.extend(a for run, way in zip(added, ways, strict=True) for a in run[::way])
        y, state = run_forward(p)
        ends = zip(members(state), members(p.dstate), strict=True)
        return np.vdot(y, p.dy) + sum(np.vdot(end, d) for end, d in ends)

    monkeypatch.setitem(reference._CELLS, cell, (step_and_add, gradient))
    expected = central_differences(loss, added)
    assert_close({"dh": dh}, {"dh": expected}, 1e-8)
    assert not dh[:, ~is_real(p)].any()


def run_alone(p):
    """The results of `run_all`, from separate runs of every part of every row on its valid steps."""
    T, N, _ = p.x.shape
    options = {name: p.options[name] for name in ("num_layers", "bidirectional", "reverse")}
    directions = [False, True] if p.options["bidirectional"] else [p.options["reverse"]]
    D, width = len(directions), members(p.state)[0].shape[2]
    layers = p.options["num_layers"] * D
    lengths = p.options.get("lengths", [T] * N)
    reset = p.options.get("reset", np.zeros((T, N), bool))
    real = is_real(p)

    def whole(parts):
        return tuple(parts) if has_c(p.cell) else parts[0]

    y, dx, dh = np.zeros_like(p.dy), np.zeros_like(p.x), np.zeros((layers, T, N, width))
    cells = np.zeros((layers, T, N, p.hidden_size))
    state = [member.copy() for member in members(p.state)]
    dstate, dreset = ([np.zeros_like(member) for member in state] for _ in range(2))
    restart = members(p.options.get("reset_state", p.state))
    trained = {name: value for name, value in p.parameters.items() if is_trained(p.cell, name)}
    dparameters = {name: np.zeros_like(value) for name, value in trained.items()}
    for n in range(N):
        one = slice(n, n + 1)
        initial, fresh = [member[:, one] for member in members(p.state)], lengths[n] > 0 and reset[0, n]
        cuts = [0, *(t for t in range(1, lengths[n]) if reset[t, n]), lengths[n]]
        for first, stop in itertools.pairwise(cuts):
            steps = [t for t in range(first, stop) if real[t, n]]
            # The state after this part is the row's for a direction that walks it last.
            last = np.array([first == 0 if back else stop == lengths[n] for back in directions] * (layers // D))
            ending = [np.where(last[:, None, None], member[:, one], 0) for member in members(p.dstate)]
            # Each direction starts the part that it walks first from the initial state of the row.
            first_of = [stop == lengths[n] if back else first == 0 and not fresh for back in directions]
            carried = np.array(first_of * (layers // D))[:, None, None]
            start = [np.where(carried, *both) for both in zip(initial, (m[:, one] for m in restart), strict=True)]
            # By direction and step, the real step whose output and state it has.
            sources = {}
            for k, back in enumerate(directions):
                for t in range(first, stop):
                    walked = [s for s in steps if (s >= t if back else s <= t)]
                    if walked:
                        sources[k, t] = walked[0] if back else walked[-1]
            if has_c(p.cell):
                cells[:, first:stop, n] = start[1]
            if not steps:
                for k, member in enumerate(ending):
                    dstate[k][:, one] += np.where(carried, member, 0)
                    dreset[k][:, one] += np.where(carried, 0, member)
                    state[k][:, one] = np.where(last[:, None, None], start[k], state[k][:, one])
                continue
            masks = p.options["masks"][:, steps, one]
            part_y, end, tape = reference.forward(
                p.cell, p.parameters, p.x[steps, one], whole(start), masks=masks, **options
            )
            part_dy = np.zeros_like(part_y)
            for (k, t), source in sources.items():
                i, columns = steps.index(source), slice(k * width, (k + 1) * width)
                if t == source or not p.options.get("zero_masked"):
                    y[t, n, columns] = part_y[i, 0, columns]
                    part_dy[i, 0, columns] += p.dy[t, n, columns]
                if has_c(p.cell):
                    cells[k::D, t, n] = tape.cells[k::D, i, 0]
            part_dx, part_dstate, part_dparameters, part_dh = reference.backward(
                tape, part_dy, whole(ending), per_step=True
            )
            dx[steps, one], dh[:, steps, one] = part_dx, part_dh
            for member, after in zip(state, members(end), strict=True):
                member[last, one] = after[last]
            for k, member in enumerate(members(part_dstate)):
                dstate[k][:, one] += np.where(carried, member, 0)
                dreset[k][:, one] += np.where(carried, 0, member)
            for name, value in part_dparameters.items():
                dparameters[name] += value
    if "reset_state" not in p.options:
        dstate = [one + other for one, other in zip(dstate, dreset, strict=True)]
    results = named(y, whole(state), dx, whole(dstate), dparameters)
    results |= named_reset(p, whole(dreset) if "reset_state" in p.options else None)
    return {**results, "dh": dh, **({"cells": cells} if has_c(p.cell) else {})}


@pytest.mark.parametrize("N", [4, 30])
@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_sequences_are_runs_of_their_parts(variant, direction, kind, N):
    cell, projected = VARIANTS[variant]
    p = sequences(kind, cell, T=4 if N == 4 else 7, N=N, direction=direction, projected=projected)
    assert_close(run_all(p), run_alone(p), 1e-13)


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cell", ANY_INPUT)
def test_nan_at_masked_out_steps_affects_nothing(cell, direction, kind):
    p = sequences(kind, cell, direction=direction)
    expected = run_all(p)
    real = is_real(p)
    # The outputs of the other cells are 0 by their steps alone; those of rnn_relu by chance as well.
    ignored = run_all(sequences(kind, "lstm", direction=direction))["y"] == 0
    assert not ignored[real].any()
    assert ignored.any() == (kind != "reset")
    p.x[~real] = p.dy[ignored] = p.options["masks"][:, ~real] = np.nan
    got = run_all(p)
    assert_close(got, expected, 0)
    assert not got["dx"][~real].any()


@pytest.mark.parametrize("kind", ["lengths", "mask"])
@pytest.mark.parametrize("cell", ANY_INPUT)
def test_nan_in_the_state_of_a_row_without_real_steps(cell, kind):
    p = sequences(kind, cell, direction="bidirectional")
    expected = run_all(p)
    assert not is_real(p)[:, 2].any()
    for member in members(p.state):
        member[:, 2] = np.nan
    got = run_all(p)
    for name, value in got.items():
        if name.startswith("state") or (name, kind) == ("cells", "mask"):
            assert np.isnan(value[..., 2, :]).all(), name
            value[..., 2, :] = expected[name][..., 2, :]
    assert_close(got, expected, 0)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_sequences_that_are_plain(variant, direction):
    """If every step is valid and nothing is reset, the bits are those of a full batch."""
    cell, projected = VARIANTS[variant]
    T, N = 4, 3
    p = problem(cell, T, N, 2, 3, proj_size=2 * projected, num_layers=2, dropout=True, **DIRECTIONS[direction])
    expected = run_all(p)
    options, every = p.options, np.ones((T, N), bool)
    for more in [{"lengths": [T] * N}, {"mask": every}, {"reset": ~every}, {"mask": every, "zero_masked": True}]:
        p.options = {**options, **more}
        assert_close(run_all(p), expected, 0)
    p.options = {**options, "reset": np.arange(T)[:, None] == np.zeros(N)}
    assert_close(run_all(p), expected, 0)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("projected", [False, True])
def test_cells_are_states_of_shorter_runs(projected, direction):
    p = problem("lstm", 4, 3, 2, 3, proj_size=2 * projected, **DIRECTIONS[direction])
    _, _, tape = reference.forward(p.cell, p.parameters, p.x, p.state, **p.options)
    for index, back in enumerate([False, True] if direction == "bidirectional" else [direction == "reverse"]):
        for t in range(4):
            x = p.x[t:] if back else p.x[: t + 1]
            _, (_, c), _ = reference.forward(p.cell, p.parameters, x, p.state, **p.options)
            np.testing.assert_allclose(tape.cells[index, t], c[index], rtol=1e-13)


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("cell", ANY_INPUT)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sequences_in_the_dtype_given(cell, dtype, kind):
    p = sequences(kind, cell, direction="bidirectional", dtype=dtype)
    assert {value.dtype for value in run_all(p).values()} == {np.dtype(dtype)}


def test_gru_reset_before_number_by_number():
    """torch lacks this cell, so the equations are written out again for single elements."""
    T, N, I, H = 4, 2, 3, 2
    p = problem("gru_reset_before", T, N, I, H)
    w, u, b, c = (p.parameters[kind + "_l0"].tolist() for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    y, state = run_forward(p)

    def total(k, x, h):
        return b[k] + c[k] + sum(w[k][i] * x[i] for i in range(I)) + sum(u[k][j] * h[j] for j in range(H))

    for row in range(N):
        h = p.state[0, row].tolist()
        for t in range(T):
            x = p.x[t, row].tolist()
            r = [1 / (1 + math.exp(-total(j, x, h))) for j in range(H)]
            z = [1 / (1 + math.exp(-total(H + j, x, h))) for j in range(H)]
            n = [math.tanh(total(2 * H + j, x, [r[j] * h[j] for j in range(H)])) for j in range(H)]
            h = [(1 - z[j]) * n[j] + z[j] * h[j] for j in range(H)]
            np.testing.assert_allclose(y[t, row], h, rtol=1e-13)
        np.testing.assert_allclose(state[0, row], h, rtol=1e-13)


@pytest.mark.parametrize("cell", ANY_INPUT)
def test_reverse_is_forward_on_flipped_time(cell):
    p = problem(cell, 5, 3, 2, 4)
    q = problem(cell, 5, 3, 2, 4, reverse=True)
    p.x, p.dy = p.x[::-1], p.dy[::-1]
    expected = run_reference(p)
    expected["y"], expected["dx"] = expected["y"][::-1], expected["dx"][::-1]
    assert_close(run_reference(q), expected, 1e-13)


@pytest.mark.parametrize("cell", ANY_INPUT)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_computes_in_the_dtype_given(cell, dtype):
    p = problem(cell, 3, 2, 4, 5, dtype=dtype, num_layers=2, dropout=True)
    assert {value.dtype for value in run_reference(p).values()} == {np.dtype(dtype)}


@pytest.mark.parametrize("cell", ANY_INPUT)
def test_none_means_zeros(cell):
    p = problem(cell, 3, 2, 4, 5, num_layers=2)
    zeros = [np.zeros_like(member) for member in members(p.state)]
    state = tuple(zeros) if has_c(cell) else zeros[0]
    y, end, tape = reference.forward(cell, p.parameters, p.x, state, **p.options)
    bare_y, bare_end, bare_tape = reference.forward(cell, p.parameters, p.x, **p.options)
    assert_close({"y": bare_y}, {"y": y}, 0)
    assert_close(dict(enumerate(members(bare_end))), dict(enumerate(members(end))), 0)
    pairs = [((np.zeros_like(y), p.dstate), (None, p.dstate)), ((p.dy, state), (p.dy, None))]
    if has_c(cell):
        pairs.append(((p.dy, (p.dstate[0], zeros[1])), (p.dy, (p.dstate[0], None))))
        pairs.append(((p.dy, (zeros[0], p.dstate[1])), (p.dy, (None, p.dstate[1]))))
    for given, bare in pairs:
        dx, dstart, dparameters = reference.backward(tape, *given)
        bare_dx, bare_dstart, bare_dparameters = reference.backward(bare_tape, *bare)
        assert_close({"dx": bare_dx, **bare_dparameters}, {"dx": dx, **dparameters}, 0)
        assert_close(dict(enumerate(members(bare_dstart))), dict(enumerate(members(dstart))), 0)


@pytest.mark.parametrize("cell", ANY_INPUT)
def test_empty_batch(cell):
    results = run_reference(problem(cell, 3, 0, 4, 5, bidirectional=True, num_layers=2))
    assert results["y"].shape == (3, 0, 10)
    assert results["dx"].shape == (3, 0, 4)
    assert not any(value.any() for value in results.values())


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("cell", ANY_INPUT)
def test_empty_batch_of_sequences(cell, kind):
    results = run_all(sequences(kind, cell, N=0, direction="bidirectional"))
    assert results["y"].shape == (4, 0, 6)
    assert results["dx"].shape == (4, 0, 2)
    assert not any(value.any() for value in results.values())


@pytest.mark.parametrize("kind", [None, *SEQUENCES])
def test_backward_twice_is_the_same(kind):
    p = problem("lstm", 3, 2, 4, 5) if kind is None else sequences(kind, "lstm")
    _, _, tape = reference.forward(p.cell, p.parameters, p.x, p.state, **p.options)
    first, second = (named(tape.y, tape.state, *reference.backward(tape, p.dy, p.dstate)[:3]) for _ in range(2))
    assert_close(first, second, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_at_the_ends(dtype):
    a = np.array([-np.inf, -1e4, -50, -1, 0, 1, 50, 1e4, np.inf, np.nan], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = reference.sigmoid(a)
    assert got.dtype == dtype
    expected = [0, 0, math.exp(-50), 1 / (1 + math.e), 0.5, 1 / (1 + math.exp(-1)), 1, 1, 1, math.nan]
    np.testing.assert_allclose(got, expected, rtol=4 * np.finfo(dtype).eps)
