"""The network of every estimator (a recurrent layer and a linear readout) and its training."""

from __future__ import annotations

import functools
import importlib.util
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from .. import arguments, training
from .._types import Array
from ..layers import GRU, LSTM, RNN, Embedding, Linear
from ..training.batches import by_length, shuffled
from ..training.loop import Loop, progress
from .sequences import Examples, Scale, SequenceInput, Sequences, equal
from .tokens import embedding_size, encode, has_strings, read_tokens, resemble_tokens

CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
STRUCTURE = (  # options that determine the structure of the network, or the meaning of its inputs and outputs
    "cell",
    "leak",
    "embedding",
    "hidden_size",
    "num_layers",
    "bidirectional",
    "pooling",
    "standardize",
    "horizon",
    "window",
    "multivariate",
)
EVALUATION_BATCH = 256  # sequences that are run at a time outside training


class Diverged(ValueError):
    """Raised when the loss or the parameters are no longer finite during training."""


class _Restored:
    """A context that restores an estimator if its block raises.

    Not a generator: one that a signal handler's exception leaves suspended restores the estimator when it is collected,
    which may be after other changes.
    """

    def __init__(self, estimator: Network) -> None:
        self._estimator = estimator
        self._before = before = estimator.__dict__.copy()
        self._layers = [before[name] for name in ("layer_", "readout_", "embedding_") if name in before]
        self._parameters = [layer.state_dict() for layer in self._layers]
        self._kinds = [layer._kind() for layer in self._layers]
        self._random: Any = before["_rng"].bit_generator.state if self._layers else None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            return
        attributes = self._estimator.__dict__
        attributes.clear()
        attributes.update(self._before)
        for layer, arrays, kind in zip(self._layers, self._parameters, self._kinds, strict=True):
            layer.unfreeze()
            layer.load_state_dict(arrays)
            if kind is not None:
                layer._freeze_as(kind)
        if self._layers:
            attributes["_rng"].bit_generator.state = self._random


class Network(SequenceInput):
    """Base class of all estimators: options, network, training, evaluation.

    Subclasses define the loss and the score, what the readout reads, and how targets are encoded.
    """

    _argument = "X"  # the name of the sequences in error messages
    leak: float | None = None  # Estimators pickled by versions without this option lack the attribute.

    validation_scores_: list[float] | None
    _scale: Scale  # of the inputs

    def _set_options(self, options: dict[str, Any]) -> None:
        """Set the arguments of the constructor, passed as its locals(), as attributes."""
        self.__dict__.update({name: value for name, value in options.items() if name != "self"})

    def _restored_on_error(self) -> _Restored:
        """Restore the attributes, parameters and random generator if the block raises, including on Ctrl-C."""
        return _Restored(self)

    def _check_options(self) -> None:
        arguments.choice("cell", self.cell, tuple(CELLS))
        if hasattr(self, "pooling"):
            arguments.choice("pooling", self.pooling, ("last", "mean"))
        if self.leak is not None:
            arguments.fraction("leak", self.leak)
            if self.cell != "rnn":
                raise ValueError(f"leak={self.leak} needs cell='rnn', got cell={self.cell!r}: use leak=None, or an RNN")
        if getattr(self, "embedding", None) not in (None, "auto"):
            if isinstance(self.embedding, str):
                raise ValueError(f"embedding must be None, 'auto' or an integer, got {self.embedding!r}")
            arguments.size("embedding", self.embedding)
        for name in ("hidden_size", "num_layers", "max_epochs", "batch_size", "n_iter_no_change"):
            arguments.size(name, getattr(self, name))
        for name in ("bidirectional", "early_stopping", "standardize"):
            arguments.flag(name, getattr(self, name))
        arguments.number("dropout", self.dropout, below=1)
        arguments.number("learning_rate", self.learning_rate, below=math.inf, positive=True)
        arguments.number("validation_fraction", self.validation_fraction, below=1, positive=True)
        arguments.number("tol", self.tol, below=math.inf)
        if self.clip is not None:
            arguments.number("clip", self.clip, below=math.inf, positive=True)
        if not isinstance(self.verbose, (bool, np.bool_)):
            arguments.size("verbose", self.verbose, least=0)
        if self.verbose and importlib.util.find_spec("tqdm") is None:
            raise ImportError("verbose=1 needs tqdm for its progress bar: pip install tqdm, or set verbose=0")
        try:
            check_random_state(self.random_state)
        except ValueError as error:
            raise ValueError(
                "random_state must be None, an integer from 0 to 2**32 - 1 or a numpy.random.RandomState, got "
                f"{self.random_state!r}"
            ) from error
        arguments.dtype(self.dtype)

    def _structure(self) -> dict[str, Any]:
        """Return the current values of the options that the network depends on."""
        options = {name: getattr(self, name) for name in STRUCTURE if hasattr(self, name)}
        return {**options, "dtype": arguments.dtype(self.dtype)}

    def _option(self, name: str) -> Any:
        """Return the value of such an option when the network was built; set_params does not change the network."""
        return (self._built if hasattr(self, "_built") else self._structure()).get(name)

    def _require_structure(self) -> None:
        for name, value in self._structure().items():
            if value != self._option(name):
                raise ValueError(
                    f"{name} is {value!r}, but the network was built with {name}={self._option(name)!r}: call fit to "
                    f"build a new network, or restore {name} before calling partial_fit"
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "mean_" in state and "_scale" not in state:  # pickled by version 0.1
            self._scale = Scale(np.zeros_like(self.mean_), self.mean_, self.scale_)

    # Hooks for subclasses.

    def _pooling(self) -> str:
        """Return the input of the readout: the "last" state, the "mean" over the steps, or all "steps"."""
        return str(self._option("pooling"))

    def _loss(self, output: Array, targets: Array, weights: Array) -> tuple[float, Array]:
        """Return the loss and its gradient; the mean squared error unless a subclass overrides it."""
        return training.mean_squared_error(output, targets, weights=weights)

    def _output_scale(self) -> Scale | None:
        """Return the scale of the outputs of the readout, if they are numbers."""
        return None

    def _evaluate(self, examples: Examples) -> float:
        """Return the score on the held-out set; higher is better."""
        raise NotImplementedError

    def _passes(self, x: Array, lengths: Array) -> Iterator[tuple[slice, Array, Any, Any]]:
        """Run the layer over a mini-batch; yield (steps, y, state, tape) for each update of the parameters."""
        yield slice(None), *self.layer_.forward(x, lengths=None if equal(lengths) else lengths)

    # The network.

    def _read(self, X: Any, reset: bool) -> Sequences:
        """Return the sequences of X: quantities, (sum of lengths, F), or ids of tokens, (sum of lengths,)."""
        if (self.embedding if reset else self._option("embedding")) is not None:
            tokens, lengths = read_tokens("X", X)
            if reset:
                self.vocabulary_ = np.unique(tokens)
                self.n_features_in_ = 1
                self.__dict__.pop("feature_names_in_", None)
            return Sequences(encode(tokens, self.vocabulary_), lengths)
        try:
            sequences = super()._read(X, reset)
        except (TypeError, ValueError) as error:
            if not has_strings(X):
                raise
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{error}. Use embedding='auto' to read strings as tokens") from error
        if reset and resemble_tokens(X, sequences.flat):
            count = len(np.unique(sequences.flat))
            warnings.warn(
                f"X has integers of one feature with {count} distinct values, which are read as quantities: use "
                "embedding='auto' if they are tokens, or pass them as float64 if not",
                UserWarning,
                stacklevel=4,
            )
        return sequences

    def _scaled(self, sequences: Sequences) -> Sequences:
        if hasattr(self, "embedding_"):
            return sequences
        return sequences._replace(flat=self._scale.standardize(self._argument, sequences.flat, self.layer_.dtype))

    def _set_scale(self, scale: Scale) -> None:
        self._scale = scale
        self.mean_, self.scale_ = scale.offset + scale.mean, scale.deviation

    def _build(
        self,
        sequences: Sequences,
        weights: Array,
        outputs: int,
        random: np.random.RandomState,
        rounding: Array | None = None,
    ) -> None:
        """Create a network with fresh parameters, and set the scale of X.

        `weights` has one weight per step, and `rounding` is that of `Scale.of`.
        """
        self._built = self._structure()
        self._rng = np.random.default_rng(random.randint(np.iinfo(np.int32).max))
        self.__dict__.pop("embedding_", None)
        embedding = self._option("embedding")
        if embedding is None:
            self.__dict__.pop("vocabulary_", None)
            features = sequences.flat.shape[1]
        else:
            count = len(self.vocabulary_)
            features = embedding_size(embedding, count)
            self.embedding_ = Embedding(count + 1, features, dtype=self.dtype, rng=self._rng)
            self.embedding_.parameters["weight"][0] = 0
        standardize = self.standardize and embedding is None
        self._set_scale(Scale.of(sequences.flat, weights, rounding) if standardize else Scale.identity(features))
        self.layer_ = CELLS[self.cell](
            features,
            self.hidden_size,
            self.num_layers,
            dropout=self.dropout if self.num_layers > 1 else 0.0,
            bidirectional=bool(self.bidirectional),
            dtype=self.dtype,
            rng=self._rng,
            **({} if self.leak is None else {"leak": self.leak}),
        )
        width = self.hidden_size * (1 + bool(self.bidirectional))
        self.readout_ = Linear(width, outputs, dtype=self.dtype, rng=self._rng)
        scale = self._output_scale()
        if scale is not None:
            # An output without spread stays exactly at its mean, with no error to train on, until it has one.
            for array in self.readout_.parameters.values():
                array[scale.deviation == 0] = 0
        self._moments: dict[str, Array] | None = None
        self.n_iter_ = 0
        self.loss_curve_: list[float] = []
        self.validation_scores_ = None

    def _layers(self) -> list[Any]:
        return [self.layer_, self.readout_, *([self.embedding_] if hasattr(self, "embedding_") else [])]

    def _parameters(self) -> dict[str, Array]:
        embedding = {"embedding": self.embedding_.parameters["weight"]} if hasattr(self, "embedding_") else {}
        return {**self.layer_.parameters, **self.readout_.parameters, **embedding}

    def _pool(self, y: Array, state: Any, lengths: Array) -> Array:
        """Return the input of the readout: (n, D*H), or (T, n, D*H) if it reads all steps."""
        pooling = self._pooling()
        if pooling == "steps":
            return y
        if pooling == "mean":
            mean: Array = y.sum(axis=0) / lengths[:, np.newaxis].astype(y.dtype)
            return mean
        return self._last_state(state)

    def _last_state(self, state: Any) -> Array:
        """Return h of the last layer with the directions concatenated, (n, D*H)."""
        h: Array = state[0] if isinstance(state, tuple) else state
        return h[-(1 + bool(self._option("bidirectional"))) :].transpose(1, 0, 2).reshape(h.shape[1], -1)

    def _unpool(self, dfeatures: Array, y: Array, state: Any, lengths: Array) -> tuple[Array | None, Any]:
        """Return the gradients of y and of the state, given the gradient of the result of `_pool`."""
        pooling = self._pooling()
        if pooling == "steps":
            return dfeatures, None
        if pooling == "mean":
            return np.broadcast_to(dfeatures / lengths[:, np.newaxis].astype(y.dtype), y.shape), None
        pair = isinstance(state, tuple)
        dh = np.zeros_like(state[0] if pair else state)
        directions = 1 + bool(self._option("bidirectional"))
        dh[-directions:] = dfeatures.reshape(len(dfeatures), directions, -1).transpose(1, 0, 2)
        return None, (dh, None) if pair else dh

    def _outputs(self, sequences: Sequences) -> Array:
        """Return the output of the readout for scaled sequences, (N, outputs), or (sum of lengths, outputs)."""
        steps = self._pooling() == "steps"
        count = len(sequences.flat if steps else sequences.lengths)
        outputs = np.empty((count, self.readout_.out_features), self.layer_.dtype)
        for rows in by_length(sequences.lengths, EVALUATION_BATCH):
            indices, lengths = sequences.padded_indices(rows), sequences.lengths[rows]
            x = sequences.flat[indices]
            x = self.embedding_(x) if hasattr(self, "embedding_") else x
            y, state = self.layer_(x, lengths=None if equal(lengths) else lengths)
            output = self.readout_(self._pool(y, state, lengths))
            if steps:
                valid = np.arange(len(indices))[:, np.newaxis] < lengths
                outputs[indices[valid]] = output[valid]
            else:
                outputs[rows] = output
        return outputs

    # Training.

    def _train(self, examples: Examples, held_out: Examples | None, epochs: int) -> None:
        """Train for at most `epochs` epochs, until the score stops improving. Sequences are not yet standardized."""
        examples = examples._replace(sequences=self._scaled(examples.sequences))
        if held_out is not None:
            held_out = held_out._replace(sequences=self._scaled(held_out.sequences))
        for layer in self._layers():
            layer.unfreeze()
        parameters = self._parameters()
        adam = training.Adam(parameters, lr=self.learning_rate)
        if self._moments is not None:
            adam.load_state_dict(self._moments)
        evaluate = None if held_out is None else functools.partial(self._evaluate, held_out)
        train = functools.partial(self._epoch, examples, adam)
        loop = Loop(parameters, adam, train, evaluate, self._diverged, self.tol, maximize=held_out is not None)
        with progress(bool(self.verbose), epochs, type(self).__name__) as show:
            # n_iter_no_change is read after every epoch, so that setting it to 0 ends the training.
            loop.run(epochs, lambda: self.n_iter_no_change, [show])
        loop.restore_best()
        self.n_iter_ += len(loop.history.loss)
        self.loss_curve_ = [*self.loss_curve_, *loop.history.loss]
        if held_out is not None:
            self.validation_scores_ = loop.history.validation
        self._moments = adam.state_dict()
        for layer in self._layers():
            layer.freeze()

    def _diverged(self, epoch: int, what: str) -> Diverged:
        return Diverged(
            f"training diverged: after epoch {self.n_iter_ + epoch + 1}, {what}. Reduce learning_rate or clip, or "
            "scale the data"
        )

    def _epoch(self, examples: Examples, adam: training.Adam) -> Iterator[tuple[float, int]]:
        """Train on all examples once; yield the loss of each update and the number of targets in it."""
        for rows in shuffled(examples.sequences.lengths, self.batch_size, self._rng):
            yield from self._updates(examples, rows, adam)

    def _updates(self, examples: Examples, rows: Array, adam: training.Adam) -> Iterator[tuple[float, int]]:
        """Train on a mini-batch; yield the loss of each update and the number of targets in it."""
        sequences, targets, weights = examples
        lengths = sequences.lengths[rows]
        steps = self._pooling() == "steps"
        indices = sequences.padded_indices(rows)
        targets, weights = (array[indices if steps else rows] for array in (targets, weights))
        valid = np.arange(len(indices))[:, np.newaxis] < lengths
        x, embedded = sequences.flat[indices], None
        if hasattr(self, "embedding_"):
            x, embedded = self.embedding_.forward(x)
        for window, y, state, tape in self._passes(x, lengths):
            features = self._pool(y, state, lengths)
            if self.dropout:
                kept = self._rng.random(features.shape, np.float32) >= self.dropout
                kept = np.multiply(kept, 1 / (1 - self.dropout), dtype=features.dtype)
                features = features * kept
            output, readout_tape = self.readout_.forward(features)
            expected, factors, count = targets[window], weights[window], len(rows)
            if steps:
                within = valid[window]
                count = int(within.sum())
                axes = (1,) * (factors.ndim - 2)
                factors = np.where(within.reshape(within.shape + axes), factors, 0) * (within.size / count)
                if not factors.any():
                    continue
            loss, doutput = self._loss(output, expected, factors)
            of_readout = self.readout_.backward(readout_tape, doutput)
            dfeatures = of_readout.x * kept if self.dropout else of_readout.x
            of_layer = self.layer_.backward(tape, *self._unpool(dfeatures, y, state, lengths))
            gradients = {**of_layer.parameters, **of_readout.parameters}
            if embedded is not None:
                gradients["embedding"] = self.embedding_.backward(embedded, of_layer.x).parameters["weight"]
            if self.clip is not None:
                training.clip_grad_norm(gradients, self.clip)
            adam.step(gradients)
            yield loss, count
