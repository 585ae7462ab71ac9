"""The cases and engines that ``rnnfast bench`` and the benchmarks time.

An engine is a function of a case and the number of threads. It prepares everything that can be prepared once, and
returns two functions: the call to be timed, and one that turns the result of a call into named NumPy arrays. These are
y and the final state and, in training, the gradients of x and of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import rnnfast
from rnnfast import reference
from rnnfast._types import NDArray
from rnnfast.commands.program import CannotRun

if TYPE_CHECKING:
    Results = dict[str, NDArray[Any]]
    Engine = tuple[Callable[[], Any], Callable[[Any], Results]]

# The class of the layer, in rnnfast and in torch, and the cell of the reference.
CELLS = {"lstm": ("LSTM", "lstm"), "gru": ("GRU", "gru"), "rnn": ("RNN", "rnn_tanh")}
MODES = ("inference", "training")
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}  # relative to the largest element of each array
SQUARE = 512  # rows and columns of the matrix product that measures the machine's limit


class Case(NamedTuple):
    """A layer, its input, and whether to time inference or training (forward and backward)."""

    cell: str
    T: int
    N: int
    I: int
    H: int
    layers: int = 1
    bidirectional: bool = False
    mode: str = "inference"
    dtype: str = "float32"

    def __str__(self) -> str:
        stack = f" layers={self.layers}" * (self.layers > 1) + " bidirectional" * self.bidirectional
        return f"{self.cell} {self.mode} T={self.T} N={self.N} I={self.I} H={self.H}{stack}"

    def label(self) -> str:
        """Return a short name for plots, which omits I if it equals H."""
        stack = f" layers={self.layers}" * (self.layers > 1) + " bidir" * self.bidirectional
        features = f" I={self.I}" * (self.I != self.H)
        return f"{self.cell} {self.mode[:5]} T={self.T} N={self.N}{features} H={self.H}{stack}"

    def make(self, package: Any, **options: Any) -> Any:
        """Make the layer with the classes of rnnfast or of torch.nn."""
        options |= {"num_layers": self.layers, "bidirectional": self.bidirectional}
        return getattr(package, CELLS[self.cell][0])(self.I, self.H, **options)

    def layer(self) -> Any:
        """Make rnnfast's layer; the parameters are the same in every process."""
        return self.make(rnnfast, dtype=self.dtype, rng=0)

    def values(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return x and the gradient of y."""
        rng = np.random.default_rng(1)
        shapes = (self.T, self.N, self.I), (self.T, self.N, self.H * (1 + self.bidirectional))
        x, dy = (rng.uniform(-1, 1, shape).astype(self.dtype) for shape in shapes)
        return x, dy

    def gflop(self) -> float:
        """Count the multiply-adds of the equations: one per weight, step and row; training takes three times that."""
        weights = sum(array.size for array in self.layer().parameters.values() if array.ndim == 2)
        return 2e-9 * self.T * self.N * int(weights) * (3 if self.mode == "training" else 1)


def _named(y: Any, state: Any, dx: Any = None, dparameters: Any = None) -> Results:
    parts = state if isinstance(state, tuple) else (state,)
    gradients = {} if dx is None else {"dx": dx, **{f"d{name}": array for name, array in dparameters.items()}}
    return {"y": y, **{f"state {i}": part for i, part in enumerate(parts)}, **gradients}


def with_rnnfast(case: Case, threads: int) -> Engine:
    rnnfast.set_num_threads(threads)
    layer, (x, dy) = case.layer(), case.values()

    def train() -> Any:
        y, state, tape = layer.forward(x)
        gradients = layer.backward(tape, dy)
        return y, state, gradients.x, gradients.parameters

    if case.mode == "training":
        return train, lambda result: _named(*result)
    layer.freeze()
    return lambda: layer(x), lambda result: _named(*result)


def with_reference(case: Case, threads: int, dtype: Any = None) -> Engine:  # noqa: ARG001 (BLAS sets its own)
    cell = CELLS[case.cell][1]
    options: dict[str, Any] = {"num_layers": case.layers, "bidirectional": case.bidirectional}
    dtype = dtype or case.dtype
    parameters = {name: array.astype(dtype) for name, array in case.layer().parameters.items()}
    x, dy = (array.astype(dtype) for array in case.values())

    def call() -> Any:
        y, state, tape = reference.forward(cell, parameters, x, **options)
        if case.mode == "inference":
            return y, state
        dx, _, dparameters = reference.backward(tape, dy)
        return y, state, dx, dparameters

    return call, lambda result: _named(*result)


def with_torch(case: Case, threads: int) -> Engine:
    import torch

    torch.set_num_threads(threads)
    own, values = case.layer(), case.values()
    layer = case.make(torch.nn).to(getattr(torch, case.dtype))
    layer.load_state_dict({name: torch.from_numpy(array) for name, array in own.state_dict().items()})
    x, dy = map(torch.from_numpy, values)

    def infer() -> Any:
        with torch.inference_mode():
            return layer(x)

    def train() -> Any:
        y, state = layer(x)
        return y, state, torch.autograd.grad(y, [x, *layer.parameters()], dy)

    def answer(result: Any) -> Results:
        y, state, *gradients = result
        state = tuple(part.detach().numpy() for part in (state if isinstance(state, tuple) else (state,)))
        if not gradients:
            return _named(y.numpy(), state)
        dx, *rest = (array.numpy() for array in gradients[0])
        return _named(y.detach().numpy(), state, dx, dict(zip(own.parameters, rest, strict=True)))

    x.requires_grad_(case.mode == "training")
    return train if case.mode == "training" else infer, answer


def with_onnxruntime(case: Case, threads: int) -> Engine:
    import onnxruntime

    if case.mode == "training":
        raise CannotRun("it supports inference only")
    if case.dtype != "float32":
        raise CannotRun("it has these cells in float32 only")
    try:
        from rnnfast.backends.onnx import to_onnx
    except ImportError as error:
        raise CannotRun(f"no model can be made for it: {error}") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    model = to_onnx(case.layer()).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = {"x": case.values()[0]}
    return lambda: session.run(None, inputs), lambda result: _named(result[0], tuple(result[1:]))


def with_numpy_product(case: Case, threads: int) -> Engine:  # noqa: ARG001
    a, b = _squares(case)
    out = np.empty_like(a)
    return lambda: np.matmul(a, b, out=out), lambda _: {}


def with_own_product(case: Case, threads: int) -> Engine:
    rnnfast.set_num_threads(threads)
    a, b = _squares(case)
    product = rnnfast.Linear(SQUARE, SQUARE, bias=False, dtype=case.dtype, rng=0)
    product.parameters["weight"][...] = b
    product.freeze()
    return lambda: product(a), lambda _: {}


def _squares(case: Case) -> Any:
    return np.random.default_rng(0).uniform(-1, 1, (2, SQUARE, SQUARE)).astype(case.dtype)


ENGINES = {"rnnfast": with_rnnfast, "reference": with_reference, "torch": with_torch, "onnxruntime": with_onnxruntime}
LIMITS = {"NumPy's product": with_numpy_product, "rnnfast's product": with_own_product}


def expected(case: Case) -> Results:
    """Compute the results of the reference in float64, with which all others are compared."""
    call, answer = with_reference(case, 0, np.float64)
    return answer(call())


def disagreement(got: Results, want: Results, dtype: str) -> str | None:
    """Return why results are wrong, or None if they are within the tolerance of their dtype."""
    if got.keys() != want.keys():
        return f"it returns {', '.join(got)} instead of {', '.join(want)}"
    for name, array in want.items():
        if got[name].shape != array.shape:
            return f"its {name} has shape {got[name].shape} instead of {array.shape}"
        error = float(np.abs(got[name] - array).max(initial=0) / max(1e-30, np.abs(array).max(initial=0)))
        if not error <= TOLERANCE[dtype]:
            return f"its {name} is wrong by {error:.1g} of the largest element"
    return None
