"""Weights in fewer bytes: what they are rounded to, the results, and the layers that are frozen with them."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.cells import DIRECTIONS, make_layer
from support.compare import assert_same_bits, members
from support.concurrency import in_threads
from support.guards import LAYOUTS, Run, run_in_a_row
from support.layers import reference_parameters, refused
from support.linear import linear_problem, run_linear
from support.narrow import MAKERS, NARROW, bits, freeze, input_of, linear_of, rounded
from support.problems import EDGES, rows, variant_problem
from support.streams import I, sequence

import rnnfast
from rnnfast import diagnostics, functional, narrow, reference, training

TOLERANCE = {"bfloat16": 0, "int8": 2e-6, "int8_products": 0.02}  # of layers, against those with rounded weights
UNIT = 2.0**-24  # the largest relative error of one operation of float32

weights = pytest.mark.parametrize("weights", NARROW)
layers = pytest.mark.parametrize("name", MAKERS)


def round_weights(weights, layer):
    """Round the weights of a layer, whose results must then be those of the layer that is frozen with them."""
    for name, array in layer.parameters.items():
        if narrow.is_matrix(name) and array.ndim == 2:
            array[...] = rounded(weights, array)
    return layer


def special_weights(features=11):
    """Rows of zeros, of subnormal and of huge weights, of very different magnitudes, and of exact ties."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((140, features)).astype(np.float32)
    weight[:100] *= 10.0 ** rng.integers(-44, 38, (100, 1))
    weight[np.abs(weight) > 3e38] = 3e38
    weight[100] = 0
    weight[101, 0] = -0.0
    weight[102:110] *= 10.0 ** rng.integers(-30, 30, (8, features))
    weight[110:120] = np.ldexp(1 + (1 + 2 * rng.integers(0, 2**7, (10, features))) / 2**8, 3)  # ties of bfloat16
    weight[120:130] = rng.integers(-127, 127, (10, features)) + 0.5  # ties of int8 ...
    weight[120:130, 0] = 127  # ... whose scale is 1
    return weight


# ---- rounding


def test_bfloat16_is_the_nearest_multiple(rng):
    weight = np.concatenate([special_weights().ravel(), rng.standard_normal(1000).astype(np.float32)])
    got = rounded("bfloat16", weight).astype(np.float64)
    _, exponent = np.frexp(weight.astype(np.float64))
    unit = np.ldexp(1.0, np.maximum(exponent - 8, -133))
    np.testing.assert_array_equal(got, np.rint(weight / unit) * unit)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(weight))


def test_int8_are_the_nearest_multiples_of_a_scale():
    weight = special_weights()
    parts = narrow.encode("int8", weight)
    scale, largest = parts[".scale"].astype(np.float64), np.abs(weight).max(axis=1) / 127.0
    normal = largest > np.finfo(np.float32).tiny
    assert ((scale >= largest * (1 - UNIT)) & (scale <= largest * (1 + 2.0**-15)))[normal].all()
    used = scale > 0
    np.testing.assert_array_equal(parts[""][used], np.rint(weight[used] / scale[used, np.newaxis]))
    assert (np.abs(parts[""].astype(int)).max(axis=1)[normal] == 127).all()
    assert not parts[""][~used].any()
    assert np.abs(weight[~used]).max() < 127 * 2.0**-126 * (1 + UNIT)
    np.testing.assert_array_equal(narrow.decode("int8", parts), parts[""] * scale[:, np.newaxis])  # exact


@weights
@given(
    weight=arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 5)),
        elements=st.floats(-(2.0**127), 2.0**127, width=32),
    )
)
def test_rounding_twice_changes_nothing(weights, weight):
    once = rounded(weights, weight)
    assert rounded(weights, once).tobytes() == once.tobytes()
    parts = narrow.encode(weights, weight)
    narrow.decode_exactly(weights, "weight", parts)
    for end, (shape, dtype) in narrow.stored(weights, weight.shape).items():
        assert (parts[end].shape, parts[end].dtype) == (shape, dtype)


@weights
@pytest.mark.parametrize("value", [3.19355e-40, 9e-41, 1.17e-38, 1.2e-36, 1.49e-36, 1.5e-36, 3.3799e38, 3.37994e38])
def test_the_smallest_and_largest_weights_survive_a_file(weights, value, tmp_path):
    layer, x = rnnfast.LSTM(4, 5, rng=0), np.ones((3, 2, 4), np.float32)
    layer.parameters["weight_hh_l0"][2] = value
    freeze(layer, weights)
    layer.save(tmp_path / "file")
    for _ in range(2):  # also what was loaded survives
        loaded = rnnfast.load(tmp_path / "file")
        assert bits(loaded(x)) == bits(layer(x))
        loaded.save(tmp_path / "file")


@weights
def test_numpy_settings_do_not_matter(weights):
    cases = np.full((4, 3), 1e-44, np.float32), special_weights()
    with np.errstate(all="raise"):
        for weight in cases:
            embedding = rnnfast.Embedding(*weight.shape, rng=0)
            embedding.load_state_dict({"weight": weight})
            for layer in (linear_of(weight), embedding):
                freeze(layer, weights)
        weight[0, 0] = np.nan
        with pytest.raises(ValueError, match="weight must be finite"):
            freeze(linear_of(weight), weights)


@weights
@pytest.mark.parametrize("features", [1, 2, 3, 4, 5, 7, 11])
def test_the_kernels_round_as_numpy(weights, features, isa):
    """The product with the identity is the weight."""
    weight, identity = special_weights(features), np.eye(features, dtype=np.float32)
    expected = rounded(weights, weight).T
    for count in (1, 3, 15, 16, 17, 33, 63, 100, len(weight)):
        with functional.use_isa(isa):
            layer = linear_of(weight[-count:])
        freeze(layer, weights)
        error = 3 * UNIT if weights == "int8_products" else 0  # of the scale of the identity
        np.testing.assert_allclose(layer(identity), expected[:, -count:], rtol=error)
        for k in range(features):
            np.testing.assert_allclose(layer(identity[k]), expected[k, -count:], rtol=error)


# ---- results


@pytest.mark.parametrize("sizes", [(1, 1), (2, 3), (3, 7), (5, 16), (7, 33), (16, 20)])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_bfloat16_gives_the_bits_of_rounded_weights(variant, direction, sizes, isa, rng):
    with functional.use_isa(isa):
        layer = make_layer(variant, *sizes, num_layers=2, **DIRECTIONS[direction])
        expected = round_weights("bfloat16", copy.deepcopy(layer))
    expected.freeze()
    layer.freeze("bfloat16")
    for N in (1, 2, 3, 5, 7, 13):
        x = sequence(rng, 4, N, features=sizes[0])
        for _ in range(3):  # the later calls are prepared
            assert bits(layer(x)) == bits(expected(x))
        assert bits(layer(x, lengths=np.arange(N) % 5)) == bits(expected(x, lengths=np.arange(N) % 5))


@pytest.mark.parametrize("sizes", [(1, 1), (2, 3), (3, 7), (5, 16), (7, 33), (70, 20)])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_int8_agrees_with_the_reference(variant, direction, sizes, isa, rng):
    """A sum of K terms has an error of at most K + 2 roundings of the sum of their magnitudes; each step adds one."""
    options = {"num_layers": 2, **DIRECTIONS[direction]}
    with functional.use_isa(isa):
        layer = make_layer(variant, *sizes, **options)
    expected = {
        name: array.astype(np.float64)
        for name, array in reference_parameters(round_weights("int8", copy.deepcopy(layer))).items()
    }
    layer.freeze("int8")
    T, K = 5, sum(sizes) + sizes[1]
    for N in (1, 3, 13):
        x = sequence(rng, T, N, features=sizes[0])
        largest = sum(np.abs(array).sum(axis=1).max() for name, array in expected.items() if narrow.is_matrix(name))
        bound = 2 * T * (K + 2) * UNIT * largest * max(1, np.abs(x).max())
        y, state, _ = reference.forward(layer.engine.cell, expected, x.astype(np.float64), None, **options)
        got, end = layer(x)
        for one, other in zip([got, *members(end)], [y, *members(state)], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=bound * max(1, np.abs(other).max()))


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("M", [1, 2, 5, 13])
def test_linear_has_a_small_error(weights, M, isa):
    for k, O in enumerate(EDGES):
        x, weight, bias, _ = linear_problem(M, EDGES[-1 - k], O, np.float32, True)
        with functional.use_isa(isa):
            layer = linear_of(weight)
        layer.parameters["bias"][...] = bias
        freeze(layer, weights)
        a, b = x.astype(np.float64), rounded(weights, weight).astype(np.float64).T
        bound = (len(b) + 2) * UNIT * (np.abs(a) @ np.abs(b) + np.abs(bias))
        assert (np.abs(layer(x) - (a @ b + bias)) <= bound).all()
        if weights == "bfloat16":
            with functional.use_isa(isa):
                plain = linear_of(rounded(weights, weight))
            plain.parameters["bias"][...] = bias
            assert layer(x).tobytes() == plain(x).tobytes()


@weights
def test_peepholes_and_learned_states(weights, isa, rng):
    with functional.use_isa(isa):
        layer = rnnfast.LSTM(5, 9, 2, peepholes=True, init_state=True, clip=2.0, rng=0)
        for name, array in layer.parameters.items():
            if not narrow.is_matrix(name):
                array[...] = rng.uniform(-1, 1, array.shape)
        expected = round_weights(weights, copy.deepcopy(layer))
    freeze(layer, weights)
    x = sequence(rng, 6, 3)
    for got, want in zip(members(layer(x)), members(expected(x)), strict=True):
        for one, other in zip(members(got), members(want), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE[weights])


@weights
def test_bidirectional_and_models(weights, rng):
    layers = [
        rnnfast.Bidirectional(rnnfast.LSTM(5, 6, rng=0), rnnfast.GRU(5, 6, rng=1)),
        rnnfast.Sequential(rnnfast.Embedding(9, 5, rng=0), rnnfast.RNN(5, 6, rng=0), rnnfast.LayerNorm(6)),
    ]
    for layer, x in zip(layers, (sequence(rng, 4, 3), rng.integers(0, 9, (4, 3))), strict=True):
        expected = round_weights(weights, copy.deepcopy(layer))
        freeze(layer, weights)
        np.testing.assert_allclose(layer(x)[0], expected(x)[0], rtol=0, atol=TOLERANCE[weights])


@weights
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_embedding_rows_are_decoded(weights, shape, rng):
    layer = rnnfast.Embedding(*special_weights().shape, rng=0)
    layer.load_state_dict({"weight": special_weights()})
    ids = rng.integers(0, 140, shape)
    freeze(layer, weights)
    y = layer(ids)
    assert y.tobytes() == rounded(weights, special_weights())[ids].tobytes()
    y[...] = 7
    assert not (layer(ids) == 7).any()
    with pytest.raises(ValueError, match="ids from 0 to"):
        layer([140])


# ---- the same bits


@weights
@pytest.mark.parametrize("sizes", [(3, 5), (11, 70)])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_a_row_has_the_same_bits_in_any_batch(weights, variant, direction, sizes, isa):
    p = variant_problem(
        variant, 5, 13, *sizes, num_layers=2, dtype=np.float32, weights=weights, **DIRECTIONS[direction]
    )
    batch = Run(p, isa).forward_results()
    for N in (1, 2, 3, 5, 7):
        which = slice(13 - N, 13)
        got = Run(rows(p, which), isa).forward_results()
        assert_same_bits(got, {name: np.ascontiguousarray(value[:, which]) for name, value in batch.items()})


@weights
@pytest.mark.parametrize("shape", [(12, 26, 100, 60), (30, 1, 40, 200), (6, 3, 33, 130)])
def test_any_number_of_threads(weights, threads, variant, shape, isa):
    p = variant_problem(variant, *shape, num_layers=2, dtype=np.float32, weights=weights, bidirectional=True)
    threads(1)
    expected = run_in_a_row(p, isa)
    for count in (2, 3):
        threads(count)
        assert_same_bits(run_in_a_row(p, isa), expected)


@weights
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("H", [1, 5, 16, 21])
def test_guarded_buffers_and_layouts(weights, variant, layout, H, isa):
    p = variant_problem(variant, 5, 7, 3, H, num_layers=2, dtype=np.float32, weights=weights)
    got = Run(p, isa, layout=layout, keep_tape=False).forward_results()
    assert_same_bits(got, Run(p, isa).forward_results())
    assert all(np.isfinite(array).all() for array in got.values())


@weights
def test_linear_gives_the_same_bits(weights, threads, isa):
    for M, features, O in ((9, 5, 7), (900, 40, 50), (1, 300, 900), (64, 130, 300)):
        x, weight, bias, dy = linear_problem(M, features, O, np.float32, True)
        threads(1)
        expected = run_linear(x, weight, bias, dy, isa, weights=weights)["y"]
        threads(2)
        for layout in ("plain", "gaps", "backwards"):
            assert run_linear(x, weight, bias, dy, isa, weights=weights, layout=layout)["y"].tobytes() == bits(expected)
        for row in {0, M // 2, M - 1}:
            which = slice(row, row + 1)
            alone = run_linear(x[which].copy(), weight, bias, dy[which].copy(), isa, weights=weights)
            assert alone["y"].tobytes() == expected[which].tobytes()


@weights
@pytest.mark.parametrize("H", [5, 40])
def test_chunks_streams_and_pools(weights, variant, H, isa, rng):
    with functional.use_isa(isa):
        layer = make_layer(variant, I, H, num_layers=2)
    freeze(layer, weights)
    T, N = 9, 5
    x = sequence(rng, T, N)
    y, end = layer(x)
    for cut in (1, 4):
        first, state = layer(x[:cut])
        second, state = layer(x[cut:], state)
        assert bits(np.concatenate([first, second])) == bits(y)
        assert bits(state) == bits(end)
    with functional.use_isa(isa):
        streams = [layer.stream(N), copy.deepcopy(layer).stream(N)]
    pool = rnnfast.StreamPool(layer, N)
    ids = [pool.join() for _ in range(N)]
    for t in range(T):
        for stream in streams:
            assert bits(stream.step(x[t])) == bits(y[t])
        assert bits(pool.step(ids[::-1], x[t, ::-1])[::-1].copy()) == bits(y[t])
        if t == 3:
            layer.unfreeze()  # streams keep their weights
    for stream in streams:
        assert bits(stream.state) == bits(end)


@weights
def test_streams_keep_their_kind_of_weights(weights, rng):
    layer, other = (make_layer("gru", I, 9, rng=seed) for seed in (0, 1))
    x = sequence(rng, 3, 2)
    full = layer.stream(2)
    freeze(layer, weights)
    stream, pool = layer.stream(2), rnnfast.StreamPool(layer, 2)
    ids = [pool.join(), pool.join()]
    plain, narrowed = other(x)[0], copy.deepcopy(other)
    freeze(narrowed, weights)
    expected = narrowed(x)[0]
    for source in (other, narrowed):  # frozen or not
        for one, want in ((full, plain), (stream, expected), (pool, expected)):
            one.update(source)
            for x_t, y_t in zip(x, want, strict=True):
                step = (ids, x_t) if one is pool else (x_t,)
                assert bits(one.step(*step)) == bits(y_t)
            if one is pool:
                for k in ids:
                    one.leave(k)
                ids = [pool.join(), pool.join()]
            else:
                one.reset()
    other.parameters["weight_hh_l0"][0, 0] = np.inf
    before = bits(stream.state)
    for one in (stream, pool):
        with pytest.raises(ValueError, match="weight_hh_l0 must be finite"):
            one.update(other)
    assert bits(stream.state) == before


@weights
def test_ragged_batches(weights, variant, isa, rng):
    with functional.use_isa(isa):
        layer = make_layer(variant, I, 7, num_layers=2, bidirectional=True)
    freeze(layer, weights)
    T, lengths = 6, [6, 2, 0, 1, 5]
    x = sequence(rng, T, len(lengths))
    alone = [layer(x[:length, n : n + 1])[0][:, 0] if length else x[:0, 0, :0] for n, length in enumerate(lengths)]
    y, _ = layer(x, lengths=lengths)
    mask = np.arange(T)[:, np.newaxis] < lengths
    masked, _ = layer(x, mask=mask, zero_masked=True)
    for n, length in enumerate(lengths):
        assert bits(y[:length, n].copy()) == alone[n].tobytes()
        assert not y[length:, n].any()
        assert bits(masked[:, n].copy()) == bits(y[:, n].copy())
    reset = np.zeros((T, len(lengths)), bool)
    reset[[2, 4]] = True
    pieces = [layer(x[part])[0] for part in (slice(0, 2), slice(2, 4), slice(4, 6))]
    assert bits(layer(x, reset=reset, reset_state="zeros")[0]) == bits(np.concatenate(pieces))


# ---- freezing


@layers
def test_switching_keeps_the_parameters(name):
    layer, x = MAKERS[name](), input_of(name)
    before, parameters = bits(layer(x)), layer.state_dict()
    results = {None: before, "full": before}
    for weights in NARROW:
        freeze(layer, weights)
        results[weights] = bits(layer(x))
        layer.unfreeze()
    assert len(set(map(str, results.values()))) == (3 if name == "Embedding" else 4)
    for weights in (
        "bfloat16",
        "int8",
        "int8_products",
        "full",
        "int8",
        None,
        "bfloat16",
        "bfloat16",
        "full",
        None,
        None,
    ):
        kept = weights
        if weights is None:
            layer.unfreeze()
            assert all(array.flags.writeable for array in layer.parameters.values())
        else:
            freeze(layer, weights)
            layer.freeze()  # leaves it as it is
            assert not any(array.flags.writeable for array in layer.parameters.values())
            with pytest.raises(ValueError, match="frozen"):
                layer.load_state_dict(parameters)
        for _ in range(3):
            assert bits(layer(x)) == results[kept]
        layer.release()
        assert_same_bits(layer.state_dict(), parameters)
    layer.load_state_dict({key: 2 * array for key, array in parameters.items()})
    assert bits(layer(x)) != before


@layers
@weights
def test_training_is_refused(name, weights):
    layer, x = MAKERS[name](), input_of(name)
    freeze(layer, weights)
    frozen = "weights='int8', activations='int8'" if weights == "int8_products" else f"weights='{weights}'"
    if name == "Sequential":
        with pytest.raises(ValueError, match=f"frozen with {frozen}: call unfreeze"):
            layer.forward(x)
    else:
        refused(layer, lambda: layer.forward(x), ValueError, f"frozen with {frozen}: call unfreeze")
    layer.unfreeze()
    layer.forward(x)


@weights
@pytest.mark.parametrize("checkpoint", [None, 2])
def test_backward_after_freezing(weights, checkpoint, rng):
    """A tape keeps the weights of its forward."""
    layer, x = rnnfast.LSTM(I, 9, 2, rng=0), sequence(rng, 6, 3)

    def gradients(tape):
        found = layer.backward(tape, np.ones((6, 3, 9)))
        return [bits(array) for array in (found.x, found.state, *found.parameters.values())]

    *_, tape = layer.forward(x, checkpoint=checkpoint)
    expected = gradients(tape)
    cells = tape.cells if checkpoint is None else None
    freeze(layer, weights)
    assert gradients(tape) == expected
    if cells is not None:
        np.testing.assert_array_equal(tape.cells, cells)


@layers
@weights
def test_copies(name, weights):
    layer, x = MAKERS[name](), input_of(name)
    freeze(layer, weights)
    expected = bits(layer(x))
    others = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    if name not in ("Bidirectional", "Sequential"):  # whose shallow copies share the layers
        others.append(copy.copy(layer))
    for other in others:
        assert bits(other(x)) == expected
        other.unfreeze()
        assert bits(other(x)) != expected
    assert bits(layer(x)) == expected


@pytest.mark.parametrize(
    ("change", "weights", "match"),
    [
        (None, ["float16"], "weights must be"),
        (None, [8], "weights"),
        (None, ["int8", "bfloat16"], "activations must be one of 'float32', 'int8', got 'bfloat16'"),
        (None, ["bfloat16", "int8"], "activations='int8' needs weights='int8', got weights='bfloat16'"),
        (None, [None, "int8"], "activations='int8' needs weights='int8', got weights='float32'"),
        ("nan", ["int8"], "weight_hh_l0 must be finite"),
        ("nan", ["int8", "int8"], "weight_hh_l0 must be finite"),
        ("inf", ["bfloat16"], "weight_hh_l0 must be finite"),
        ("3.39e38", ["bfloat16"], "weight_hh_l0 must be finite"),
    ],
)
def test_refused_weights_change_nothing(change, weights, match):
    layers = [rnnfast.GRU(I, 4, rng=0), rnnfast.Linear(4, 4, rng=0), rnnfast.LSTM(4, 3, rng=0)]
    layers[1].freeze()
    model, x = rnnfast.Sequential(*layers), sequence(np.random.default_rng(0), 3, 2)
    if change is not None:
        layers[2].parameters["weight_hh_l0"][1, 1] = float(change)
    before = bits(model(x))
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match=match):
            model.freeze(*weights)
        assert [layer._kind() for layer in layers] == [None, "full", None]
        assert layers[0].parameters["weight_hh_l0"].flags.writeable
        assert bits(model(x)) == before


def test_other_dtypes_are_refused():
    layers = [
        rnnfast.GRU(I, 4, dtype=np.float64),
        rnnfast.Linear(I, 4, dtype=np.float64),
        rnnfast.Embedding(I, 4, dtype=np.float64),
        rnnfast.LayerNorm(4, dtype=np.float64),
    ]
    for layer in layers:
        for weights in ("full", *NARROW):
            with pytest.raises(ValueError, match=r"needs a layer of dtype float32, but this .* has dtype float64"):
                freeze(layer, weights)
            assert layer._kind() is None
        layer.freeze()


def test_a_bias_may_be_anything():
    layer = linear_of(np.ones((3, 2), np.float32))
    layer.parameters["bias"][...] = [np.nan, np.inf, 3.4e38]
    for weights in NARROW:
        freeze(layer, weights)
        np.testing.assert_array_equal(layer([0, 0]), layer.parameters["bias"])


@pytest.mark.parametrize("rounds", [60, pytest.param(2000, marks=pytest.mark.full)])
def test_calls_while_others_freeze_and_unfreeze(rng, rounds):
    """Every call has the results of one kind of weights."""
    layer, other = make_layer("lstm", I, 9, num_layers=2), rnnfast.Linear(I, 9, rng=0)
    xs = [sequence(rng, T, 3) for T in (1, 2, 5)]
    tasks = [lambda x=x: layer(x) for x in xs] + [lambda x=x: layer(x, lengths=[1, 0, 1]) for x in xs]
    tasks += [lambda x=x: layer.stream(3)(x) for x in xs] + [lambda x=x: other(x) for x in xs]
    expected = [[] for _ in tasks]
    for weights in ("full", *NARROW):
        freeze(layer, weights)
        freeze(other, weights)
        for found, task in zip(expected, tasks, strict=True):
            found.append(bits(task()))
    changes = [
        part for weights in ("int8", "full", "int8_products", None) for part in ((layer, weights), (other, weights))
    ]

    def work(k):
        for i in range(rounds):
            if k == 0:
                part, weights = changes[i % len(changes)]
                part.unfreeze() if weights is None else freeze(part, weights)
            else:
                at = (k + i) % len(tasks)
                assert bits(tasks[at]()) in expected[at]

    in_threads(4, work)


def test_engines_check_the_kind():
    for dtype, kind, match in (
        (np.float64, "int8", "needs a dtype of float32"),
        (np.float32, "float32", "expected one of full, bfloat16, int8, int8_products"),
    ):
        array = np.ones((3, 3), dtype)
        with pytest.raises(ValueError, match=match):
            functional.Engine("gru", np.dtype(dtype), 3, 4, weights=kind)
        for call in (functional.linear_pack, functional.linear_forward):
            given = (array, None) if call is functional.linear_pack else (array, functional.empty(4096), array)
            with pytest.raises(ValueError, match=match):
                call(*given, weights=kind)
    array = np.ones((40, 70), np.float32)
    packed = functional.linear_pack(array, None, weights="int8")
    with pytest.raises(ValueError, match="bytes, but"):
        functional.linear_forward(np.ones((2, 70), np.float32), packed, np.ones((2, 40), np.float32))


# ---- what uses layers


def test_exports_hold_the_parameters():
    """Layers of other libraries compute with the parameters, which keep their float32 values."""
    layer = rnnfast.LSTM(3, 4, rng=0)
    plain = copy.deepcopy(layer)
    layer.freeze("int8")
    onnx = pytest.importorskip("rnnfast.backends.onnx", exc_type=ImportError)
    assert onnx.to_onnx(layer).SerializeToString() == onnx.to_onnx(plain).SerializeToString()
    thinc = pytest.importorskip("rnnfast.backends.thinc", exc_type=ImportError)
    np.testing.assert_array_equal(thinc.to_flat(layer), thinc.to_flat(plain))
    jax = pytest.importorskip("rnnfast.backends.jax", exc_type=ImportError)
    x = sequence(np.random.default_rng(0), 3, 2, features=3)
    np.testing.assert_array_equal(jax.lstm(x, layer.parameters)[0], plain(x)[0])


@weights
def test_training_with_frozen_layers(weights, tmp_path, rng):
    model = rnnfast.Sequential(rnnfast.GRU(I, 6, rng=0), rnnfast.Linear(6, 2, rng=0))
    x, path = sequence(rng, 4, 3), tmp_path / "checkpoint"
    adam, average = training.Adam(model), training.ExponentialMovingAverage(model)
    before = bits(model(x))
    training.save_checkpoint(path, model, adam)
    freeze(model, weights)
    expected = bits(model(x))
    average.update()  # reads only
    training.save_checkpoint(path, model, adam)
    stream = model.stream(3)
    assert bits(np.stack([stream.step(x_t) for x_t in x])) == expected[0]
    data = x, np.zeros((4, 3, 2), np.float32)
    for change in (
        average.swap,
        lambda: training.load_checkpoint(path, model, adam),
        lambda: next(iter(training.truncated_bptt(model.layers[0], x, 2))),
        lambda: diagnostics.gradient_flow(model.layers[0], x),
        lambda: training.fit(model, data, loss=training.mean_squared_error, epochs=1, verbose=False),
    ):
        with pytest.raises(ValueError, match="unfreeze"):
            change()
        assert bits(model(x)) == expected
    model.unfreeze()
    training.load_checkpoint(path, model, adam)
    assert bits(model(x)) == before


@weights
def test_estimators(weights, estimators, rng):
    X = [rng.standard_normal((6, 2)) for _ in range(20)]
    y = np.array([one.sum() > 0 for one in X])
    estimator = estimators.SequenceClassifier(hidden_size=4, max_epochs=2, random_state=0).fit(X, y)
    plain = estimator.predict_proba(X)
    for layer in (estimator.layer_, estimator.readout_):
        freeze(layer, weights)
    expected = estimator.predict_proba(X)
    assert not np.array_equal(expected, plain)
    np.testing.assert_allclose(expected, plain, atol=0.02)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(estimator)).predict_proba(X), expected)
    estimator._epoch = lambda *_: 1 / 0  # after the layers were unfrozen
    with pytest.raises(ZeroDivisionError):
        estimator.partial_fit(X, y)
    np.testing.assert_array_equal(estimator.predict_proba(X), expected)


@weights
def test_dask(weights, rng):
    array = pytest.importorskip("dask.array")
    dask = pytest.importorskip("rnnfast.dask")
    layer, x = rnnfast.GRU(I, 6, rng=0), sequence(rng, 4, 6)
    freeze(layer, weights)
    chunks = array.from_array(x, chunks=(4, 2, I))
    y = dask.predict(lambda x: layer(x)[0], chunks, batch_axis=1).compute()
    np.testing.assert_array_equal(y, layer(x)[0])
