"""Models over dask arrays and frames against one call on all data; memory use and pickling."""

import os
import pickle
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

import rnnfast

dask = pytest.importorskip("dask", reason="dask is not installed: pip install 'rnnfast[dask]'")
da = pytest.importorskip("dask.array", reason="dask.array is not installed: pip install 'rnnfast[dask]'")

from rnnfast.dask import predict, predict_frame  # noqa: E402

T, N, I = 5, 23, 3
LAYERS = {
    "rnn": lambda **o: rnnfast.RNN(I, 4, **o),
    "lstm": lambda **o: rnnfast.LSTM(I, 4, 2, proj_size=2, **o),
    "gru": lambda **o: rnnfast.GRU(I, 4, bidirectional=True, **o),
    "bidirectional": lambda **o: rnnfast.Bidirectional(rnnfast.LSTM(I, 4, **o), rnnfast.GRU(I, 5, **o), merge=None),
}


def leaves(results):
    return [leaf for member in results for leaf in leaves(member)] if isinstance(results, tuple) else [results]


def form(results):
    return tuple(map(form, results)) if isinstance(results, tuple) else "array"


def assert_computes(lazy, expected, scheduler="threads"):
    """Require lazy arrays with the structure, shapes and bits of the expected arrays."""
    assert form(lazy) == form(expected)
    assert all(isinstance(leaf, da.Array) for leaf in leaves(lazy))
    computed = dask.compute(*leaves(lazy), scheduler=scheduler)
    for leaf, got, whole in zip(leaves(lazy), computed, leaves(expected), strict=True):
        assert leaf.shape == whole.shape
        assert leaf.dtype == whole.dtype
        np.testing.assert_array_equal(got, whole, strict=True)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("uneven", [None, "numpy", "dask", "list"])
@pytest.mark.parametrize("kind", LAYERS)
def test_results_are_the_bits_of_one_call(kind, uneven, batch_first, dtype):
    layer = LAYERS[kind](batch_first=batch_first, dtype=dtype, rng=1)
    rng = np.random.default_rng(0)
    batch = 0 if batch_first else 1
    shape = (N, T, I) if batch_first else (T, N, I)
    values = rng.normal(size=shape).astype(dtype)
    x = da.from_array(values, chunks=[6 if axis == batch else -1 for axis in range(3)])
    lengths = rng.integers(0, T + 1, N)
    given = {None: None, "numpy": lengths, "dask": da.from_array(lengths, chunks=10), "list": lengths.tolist()}[uneven]
    lazy = predict(layer, x, given)
    assert_computes(lazy, layer(values, lengths=lengths if uneven else None))
    y = leaves(lazy)[0]
    assert y.chunks[batch] == (6, 6, 6, 5)
    part = (slice(3, 15), 2) if batch_first else (2, slice(3, 15))
    np.testing.assert_array_equal(y[part].compute(), y.compute()[part])


def classify(ids):
    """A model of several layers on ids (N, T): the class of each row, and its odds with an axis of size 1."""
    embedding, gru, readout = rnnfast.Embedding(50, 4, rng=0), rnnfast.GRU(4, 8, rng=0), rnnfast.Linear(8, 3, rng=0)
    _, h = gru(embedding(ids.T))
    odds = readout(h[-1])
    return odds.argmax(axis=-1), odds.T[:, np.newaxis]


@pytest.mark.parametrize("scheduler", ["threads", "processes", "synchronous"])
def test_any_callable_and_scheduler(scheduler):
    ids = np.random.default_rng(0).integers(0, 50, (N, 7))
    classes, odds = lazy = predict(classify, da.from_array(ids, chunks=(6, 7)), batch_axis=0)
    assert_computes(lazy, classify(ids), scheduler)
    assert classes.chunks == ((6, 6, 6, 5),)
    assert odds.chunks == ((3,), (1,), (6, 6, 6, 5))


def test_an_array_for_an_array():
    readout = rnnfast.Linear(I, 4, rng=0)
    values = np.random.default_rng(0).normal(size=(N, I)).astype(np.float32)
    assert_computes(predict(readout, da.from_array(values, chunks=(7, I)), batch_axis=0), readout(values))


def test_batches_of_unknown_size():
    layer = LAYERS["gru"](rng=0)
    values = np.random.default_rng(0).normal(size=(T, N, I)).astype(np.float32)
    x = da.from_array(values, chunks=(T, 6, I))
    some = x[:, da.from_array(np.arange(N) % 3 > 0, chunks=6)]
    assert np.isnan(some.shape[1])
    y, h = predict(layer, some)
    for got, whole in zip(dask.compute(y, h), layer(values[:, np.arange(N) % 3 > 0]), strict=True):
        np.testing.assert_array_equal(got, whole, strict=True)
    with pytest.raises(ValueError, match=r"known sizes if lengths are given: call x.compute_chunk_sizes"):
        predict(layer, some, [1] * 15)
    with pytest.raises(ValueError, match=r"known size along axis 0: call x.compute_chunk_sizes"):
        predict(layer, x[da.from_array(np.arange(T) > 2, chunks=T)])


def test_a_model_is_called_once_for_each_chunk_and_not_before():
    layer, sizes, lock = rnnfast.LSTM(I, 4, rng=0), [], threading.Lock()

    def model(x):
        with lock:
            sizes.append(x.shape[1])
        return layer(x)

    y, (h, c) = predict(model, da.ones((T, N, I), chunks=(T, 6, I)))
    assert sizes == [1, 2]  # the two looks at the shapes
    before = y[-1].compute()
    dask.compute(y, h, c)
    assert sorted(sizes[2:]) == sorted([6, 6, 6, 5] * 2)
    layer.parameters["bias_hh_l0"][...] = 1
    assert (y[-1].compute() != before).all()


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (TypeError, "model must be a layer or another callable, got str", {"model": "lstm"}),
        (TypeError, "x must be a dask array, got ndarray: use dask.array.from_array", {"x": np.zeros((T, N, I))}),
        (ValueError, r"layout \(T, N, I\) for this LSTM, got shape \(23, 3\)", {"x": da.zeros((N, I))}),
        (ValueError, "x has 4 features on its last axis, but this LSTM", {"x": da.zeros((T, N, 4))}),
        (ValueError, r"batch_axis must be below 3, the number of axes of x, got 3", {"batch_axis": 3}),
        (TypeError, "batch_axis must be an integer", {"batch_axis": "N"}),
        (TypeError, "lengths must be integers, got dtype float64", {"lengths": np.ones(N)}),
        (ValueError, r"lengths must have shape \(N,\) = \(23,\), got \(5,\)", {"lengths": [1] * T}),
        (ValueError, r"exactly one axis for the rows of x, but it returned shape \(\)", {"model": lambda x: x.sum()}),
        (
            ValueError,
            r"shape \(3, 1, 1\) for one row and \(3, 2, 2\) for two",
            {"model": lambda x: np.einsum("tni,tmi->inm", x, x)},
        ),
    ],
)
def test_refuses(error, words, change):
    given = {"model": rnnfast.LSTM(I, 4, rng=0), "x": da.zeros((T, N, I), chunks=(T, 6, I)), **change}
    with pytest.raises(error, match=words):
        predict(**given)


def test_invalid_data_is_rejected_at_compute_time():
    y, _ = predict(rnnfast.LSTM(I, 4, rng=0), da.zeros((T, N, I), chunks=(T, 6, I)), [T + 1] * N)
    with pytest.raises(ValueError, match="lengths"):
        y.compute()


@pytest.mark.parametrize("batch_first", [False, True])
def test_other_chunks_are_refused_with_a_call_that_mends_it(batch_first):
    layer = rnnfast.LSTM(I, 4, batch_first=batch_first, rng=0)
    x = da.ones((6, 6, I), chunks=(2, 3, 1))
    with pytest.raises(
        ValueError, match=r"chunks along axis \d, but only the batch axis, \d, may have several"
    ) as caught:
        predict(layer, x)
    mended = eval(re.search(r"use (x\.rechunk\(.*\))", str(caught.value))[1], {"x": x})
    assert_computes(predict(layer, mended), layer(np.ones((6, 6, I))))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_layer_pickles_to_its_parameters_and_little_more(kind, frozen):
    layer = LAYERS[kind](rng=0)
    if frozen:
        for one in (layer.forward_layer, layer.backward_layer) if kind == "bidirectional" else (layer,):
            one.freeze()
    layer(np.ones((100, 200, I)))  # its working memory stays behind
    parameters = sum(array.nbytes for array in layer.parameters.values())
    assert len(pickle.dumps(layer)) < parameters + 4000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc, which only Linux has")
@pytest.mark.parametrize("shared", [False, True], ids=["one thread", "two threads"])
def test_memory_is_that_of_a_few_chunks(shared):
    """An array of 64 chunks is created, processed and summed, with only a few chunks in memory at a time."""
    code = """
        import sys, dask, dask.array as da, numpy as np, rnnfast
        from pathlib import Path
        from rnnfast.dask import predict

        def resident(name):
            [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
            return int(line.split()[1]) / 1024

        def total(chunks):
            x = da.random.default_rng(0).random((64, 512 * chunks, 32), chunks=(64, 512, 32), dtype=np.float32)
            y, (h, c) = predict(layer, x)
            return y.sum(axis=(0, 2)), h

        rnnfast.set_num_threads(1)
        layer = rnnfast.LSTM(32, 32, rng=0)
        with dask.config.set(scheduler="threads", num_workers=int(sys.argv[1])):
            dask.compute(*total(4))  # what is loaded and started at the first call
            before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            sums, h = dask.compute(*total(64))
        assert sums.shape == (512 * 64,) and h.shape == (1, 512 * 64, 32)
        print(resident("VmHWM") - before)
    """
    workers = 1 + shared
    command = [sys.executable, "-P", "-c", textwrap.dedent(code), str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(Path(rnnfast.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    chunk = 64 * 512 * 32 * 4 / 2**20  # 4 MiB, of x as of y; there are 256 MiB of each
    print(f"{float(done.stdout):.1f} MiB of growth, {float(done.stdout) / chunk:.1f} chunks")
    # For each worker x, y and what is between; and h as a whole, one chunk.
    assert float(done.stdout) < (4 * workers + 4) * chunk


# ---- frames


@pytest.fixture
def frame():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: pip install 'dask[dataframe]'")
    values = np.random.default_rng(0).normal(size=(N, T))
    return pandas.DataFrame(values, columns=[f"t{k}" for k in range(T)], index=np.arange(100, 100 + N))


@pytest.fixture
def dd():
    return pytest.importorskip(
        "dask.dataframe", reason="dask.dataframe is not installed: pip install 'dask[dataframe]'"
    )


def forecast(values):
    """A mean and a spread for each row."""
    y, _ = rnnfast.LSTM(1, 8, rng=0)(values.T[..., np.newaxis])
    return rnnfast.Linear(8, 2, rng=0)(y[-1])


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_frames(dd, frame, scheduler):
    lazy = predict_frame(forecast, dd.from_pandas(frame, npartitions=4), ["mean", "spread"])
    assert list(lazy.columns) == ["mean", "spread"]
    got = lazy.compute(scheduler=scheduler)
    assert (got.dtypes == np.float32).all()
    assert (lazy.dtypes == np.float32).all()
    np.testing.assert_array_equal(got.index, frame.index)
    np.testing.assert_array_equal(got.to_numpy(), forecast(frame.to_numpy()))
    one = predict_frame(lambda values: forecast(values)[:, 0], dd.from_pandas(frame, npartitions=4), ["mean"])
    np.testing.assert_array_equal(one.compute()["mean"], got["mean"])


def test_a_model_that_returns_no_arrays():
    with pytest.raises(TypeError, match="model must return an array or nested tuples of arrays, got NoneType"):
        predict(lambda x: None, da.ones((2, 3, 4)))  # noqa: ARG005


def test_frames_as_arrays(dd, frame):
    values = dd.from_pandas(frame, npartitions=4).to_dask_array()
    np.testing.assert_array_equal(predict(forecast, values, batch_axis=0).compute(), forecast(frame.to_numpy()))


def test_frames_that_are_refused(dd, frame):
    lazy = dd.from_pandas(frame, npartitions=4)
    with pytest.raises(TypeError, match="model must be callable, got str"):
        predict_frame("lstm", lazy, ["mean"])
    with pytest.raises(TypeError, match=r"frame must be a dask.dataframe.DataFrame, got DataFrame"):
        predict_frame(forecast, frame, ["mean"])
    others = dd.from_pandas(frame.assign(name="a", when=np.datetime64("2000-01-01")), npartitions=4)
    with pytest.raises(TypeError, match=r"these have others: name, when;"):
        predict_frame(forecast, others, ["mean"])
    with pytest.raises(ValueError, match=r"columns must be unique, got \['m', 'm'\]"):
        predict_frame(forecast, lazy, ["m", "m"])
    assert list(predict_frame(forecast, lazy, [1, 2]).compute().columns) == ["1", "2"]
    with pytest.raises(ValueError, match=r"shape \(N, 1\) for N=1, got \(1, 2\)"):
        predict_frame(forecast, lazy, ["mean"])


def test_without_dask_the_error_says_what_to_install():
    code = "import sys; sys.modules['dask'] = None; import rnnfast; import rnnfast.dask"
    environment = {**os.environ, "PYTHONPATH": str(Path(rnnfast.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "ImportError: rnnfast.dask needs Dask: pip install 'rnnfast[dask]'"


def test_the_model_is_one_key_of_the_graph():
    """The model is a single key of the graph, so each worker receives it once."""
    layer = rnnfast.LSTM(64, 64, rng=0)
    y, _ = predict(layer, da.ones((T, N, 64), chunks=(T, 2, 64)))
    sizes = [len(pickle.dumps(task)) for task in dict(y.__dask_graph__()).values()]
    assert len(sizes) > 2 * len(y.chunks[1])
    assert sum(size > layer.parameters["weight_hh_l0"].nbytes for size in sizes) == 1


def test_the_examples_in_the_documentation_run(threads, dd):  # noqa: ARG001
    page = Path(__file__).resolve().parents[1] / "docs" / "parallel.md"
    if not page.is_file():
        pytest.skip("the tests do not lie in a checkout of rnnfast, so there is no docs/parallel.md")
    text = page.read_text(encoding="utf-8").partition("## Inference")[2]
    names = {}
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(code, names)
    assert names["last"].shape == (1, 4096, 64)
    assert names["forecasts"].shape == (100, 2)
