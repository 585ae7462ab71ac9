"""A program that uses the public API. mypy --strict checks it; it is not run.

`assert_type` states the types that users rely on. A NumPy array of any shape and dtype is `Array`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import rnnfast
from rnnfast import GRU, LSTM, RNN, Bidirectional, Embedding, Gradients, Linear, Stream, StreamPool, Tape
from rnnfast.diagnostics import GradientFlow, Saturation, gradient_flow
from rnnfast.quantization import MODES, Mode, Report, Size, choose, report
from rnnfast.sklearn import (
    SequenceClassifier,
    SequenceForecaster,
    SequenceRegressor,
    SequenceTagger,
    choose_differences,
)
from rnnfast.training import SGD, Adam, AdamW, DataParallel, ExponentialMovingAverage, RMSprop, Window

Array = NDArray[Any]

x = np.zeros((5, 2, 4), np.float32)


def facts() -> None:
    assert_type(rnnfast.__version__, str)
    assert_type(rnnfast.get_include(), str)
    assert_type(rnnfast.isas(), list[str])
    assert_type(rnnfast.get_num_threads(), int)
    rnnfast.set_num_threads(2)


def recurrent_layers() -> None:
    rnn = RNN(4, 8, nonlinearity="relu", rng=0)
    y, h = rnn(x)
    assert_type(y, Array)
    assert_type(h, Array)

    gru = GRU(4, 8, 2, bidirectional=True, reset_after=False, dtype=np.float64, rng=np.random.default_rng(0))
    y, h = gru(x, h, lengths=[5, 3])
    assert_type(h, Array)

    lstm = LSTM(4, 8, 2, dropout=0.1, proj_size=3, batch_first=True, init="orthogonal", rng=None)
    y, (h, c) = lstm(x)
    assert_type(c, Array)
    y, state, tape = lstm.forward(x.tolist(), (h, c), mask=np.ones((5, 2), bool), checkpoint="auto")
    assert_type(y, Array)
    assert_type(state, tuple[Array, Array])
    assert_type(tape, Tape)
    gradients = lstm.backward(tape, np.ones_like(y), per_step=True)
    assert_type(gradients, Gradients)
    assert_type(gradients.parameters, dict[str, Any])


def parameters_and_files(folder: Path) -> None:
    layer = LSTM(4, 8)
    assert_type(layer.parameters, Mapping[str, Array])
    assert_type(layer.state_dict(), dict[str, Array])
    layer.load_state_dict(layer.state_dict(), strict=True)
    layer.freeze()
    layer.unfreeze()
    layer.save(folder / "layer.npz")
    layer.load(folder / "layer.npz")
    again: LSTM = rnnfast.load(str(folder / "layer.npz"))
    again(x)
    rnnfast.save_arrays(folder / "layer.safetensors", layer.state_dict())
    arrays = rnnfast.load_arrays(folder / "layer.safetensors")
    assert_type(arrays, dict[str, Array])
    assert_type(LSTM.from_state_dict(arrays, prefix="", batch_first=True), LSTM)
    assert_type(Linear.from_state_dict(arrays, "head."), Linear)
    found: GRU = rnnfast.from_state_dict(arrays)
    found = rnnfast.from_file(folder / "model.onnx", name="encoder")
    found(x)


def other_layers() -> None:
    both = Bidirectional(LSTM(4, 8), GRU(4, 8), merge="sum")
    y, _, tape = both.forward(x)
    assert_type(both.backward(tape, y), Gradients)

    linear = Linear(4, 3, bias=False)
    assert_type(linear(x), Array)
    y, tape = linear.forward(x)
    assert_type(linear.backward(tape, y), Gradients)

    embedding = Embedding(10, 4, rng=1)
    y, tape = embedding.forward(np.zeros((5, 2), int))
    assert_type(y, Array)


def streams() -> None:
    layer = GRU(4, 8)
    stream = layer.stream(batch_size=2)
    assert_type(stream, Stream)
    assert_type(stream.step(x[0], out=np.empty((2, 8), np.float32)), Array)
    stream.reset(rows=[0])
    stream.state = stream.state

    pool = StreamPool(layer, capacity=3)
    first = pool.join()
    assert_type(first, int)
    assert_type(pool.step([first], x[0, :1]), Array)
    pool.update()
    pool.leave(first)


def training(layer: LSTM) -> None:
    y, _, tape = layer.forward(x)
    loss, dy = rnnfast.training.mean_squared_error(y, np.zeros_like(y))
    assert_type(loss, float)
    assert_type(dy, Array)
    loss, dy = rnnfast.training.softmax_cross_entropy(y, np.zeros((5, 2), int), mask=np.ones((5, 2), bool))
    gradients = layer.backward(tape, dy).parameters
    assert_type(rnnfast.training.clip_grad_norm(gradients, 1.0), float)
    for optimizer in (Adam(layer.parameters, lr=1e-3), SGD(layer, lr=0.1, momentum=0.9), RMSprop(layer)):
        optimizer.step(gradients)
        optimizer.step(layer.backward(tape, dy))
    optimizer = AdamW([layer, layer.parameters])
    optimizer.step([layer.backward(tape, dy), gradients])
    optimizer.lr = rnnfast.training.schedules.cosine(0.1, steps=5)(0)
    average = ExponentialMovingAverage([layer])
    with average.applied():
        assert_type(average.state_dict(), dict[str, Array])
    assert_type(rnnfast.training.ctc_loss(y, [[1], [1]]), tuple[float, Array])
    for window in rnnfast.training.truncated_bptt(layer, x, 2):
        assert_type(window, Window)
    rnnfast.training.truncated_bptt(layer, x, 2, lengths=[5, 3], reset=np.ones((5, 2), bool), reset_state="zeros")
    parallel = DataParallel(layer.parameters, comm=None)
    parallel.average(gradients, weight=2)


def diagnostics(layer: LSTM) -> None:
    flow = gradient_flow(layer, x)
    assert_type(flow, GradientFlow)
    assert_type(flow.decay, dict[str, float])
    for gates in flow.saturation.values():
        assert_type(gates, dict[str, Saturation])


def quantization(layer: LSTM) -> None:
    found = report(layer, x, lengths=[5, 3])
    assert_type(found, Report)
    assert_type(found.modes, dict[str, Mode])
    assert_type(found.modes["int8"].state, Size | None)
    layer.freeze(weights=choose(layer, x, tolerance=0.01))
    layer.freeze(weights="int8", activations="int8")
    layer.freeze(*MODES["int8 products"])


def estimators() -> None:
    target = np.array([0, 1])
    classifier = SequenceClassifier(hidden_size=8, max_epochs=2, random_state=0).fit(x, target)
    assert_type(classifier, SequenceClassifier)
    classifier.predict(x)
    classifier.predict_proba(x)
    SequenceRegressor("gru").fit(x, target).predict(x)
    SequenceTagger().fit(list(x), list(np.zeros((5, 2), int))).predict(list(x))
    SequenceClassifier(embedding="auto").fit([["a", "b"], ["c"]], target)
    SequenceForecaster(horizon=3).fit(np.arange(50.0), future=np.ones(50)).predict(future=np.ones(3))
    assert_type(choose_differences(np.arange(50.0), season=12), tuple[int, ...])


def main() -> None:
    facts()
    recurrent_layers()
    parameters_and_files(Path())
    other_layers()
    streams()
    training(LSTM(4, 8))
    diagnostics(LSTM(4, 8))
    quantization(LSTM(4, 8))
    estimators()
