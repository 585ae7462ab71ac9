"""Sequences of tokens: reading them, encoding them, and recognising numbers that may be tokens."""

from __future__ import annotations

from numbers import Number
from typing import Any

import numpy as np

from .. import arguments
from .._types import Array
from .sequences import list_of_sequences

DISTINCT = 20  # values from which integers look like tokens


def embedding_size(embedding: int | str, count: int) -> int:
    """Return the size of the vectors of `count` tokens.

    "auto" is the rule of fastai: J. Howard and S. Gugger, "fastai: a layered API for deep learning", 2020.
    """
    return min(600, round(1.6 * count**0.56)) if isinstance(embedding, str) else embedding


def read_tokens(name: str, X: Any) -> tuple[Array, Array]:
    """Return the tokens of all sequences, concatenated, as int64 or strings, and the lengths of the sequences."""
    if not isinstance(X, (list, tuple)) and not (hasattr(X, "ndim") and X.ndim):
        raise TypeError(f"{name} must be a list of sequences of tokens, or an array (N, T), got {type(X).__name__}")
    members = list(X.to_numpy() if hasattr(X, "columns") else X)
    if not members:
        raise ValueError(f"{name} must have at least one sequence, got none")
    arrays = [_read_sequence(f"{name}[{number}]", x) for number, x in enumerate(members)]
    if len({array.dtype.kind for array in arrays}) > 1:
        raise TypeError(
            f"{name} must hold either strings or integers, got strings in some sequences and integers in others"
        )
    return np.concatenate(arrays), np.array([len(array) for array in arrays])


def _read_sequence(name: str, x: Any) -> Array:
    """Return the tokens of a sequence: the elements of a list or array, or the characters of a string."""
    array = arguments.array(name, list(x) if isinstance(x, str) else x)
    if array.dtype.kind in "OT":  # objects, or strings of any length
        x = array.tolist()
        array = arguments.array(name, x)
    array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name} must be a sequence of at least one token, got shape {array.shape}")
    if array.dtype.kind in "iu" and np.can_cast(array.dtype, np.int64):
        return array.astype(np.int64)
    # NumPy converts numbers among strings to strings.
    if array.dtype.kind == "U" and not (isinstance(x, (list, tuple)) and any(isinstance(token, Number) for token in x)):
        return array
    raise TypeError(
        f"{name} must hold tokens, which are integers or strings, because embedding is not None, but its dtype is "
        f"{array.dtype}: convert it, or use embedding=None for quantities"
    )


def encode(tokens: Array, vocabulary: Array) -> Array:
    """Return the id of each token: its position in the vocabulary plus 1, and 0 if it is not in it."""
    if tokens.dtype.kind != vocabulary.dtype.kind:
        kinds = {"i": "integers", "U": "strings"}
        raise TypeError(f"X has {kinds[tokens.dtype.kind]}, but the tokens in fit were {kinds[vocabulary.dtype.kind]}")
    positions = np.minimum(np.searchsorted(vocabulary, tokens), len(vocabulary) - 1)
    ids: Array = np.where(vocabulary[positions] == tokens, positions + 1, 0)
    return ids


def has_strings(X: Any) -> bool:
    """Return whether the first sequence of X is a string or starts with one."""
    while (isinstance(X, (list, tuple)) or (isinstance(X, np.ndarray) and X.ndim)) and len(X):
        X = X[0]
    return isinstance(X, str)


def resemble_tokens(X: Any, values: Array) -> bool:
    """Return whether quantities look like tokens: one feature of non-negative integers, of 16 bits or more, in X.

    There must be at least 20 distinct values; small integers can be codes without an embedding, and bytes are samples.
    """
    members = [X.to_numpy()] if hasattr(X, "columns") else list_of_sequences("X", X) or [np.asarray(X)]
    wide = all(x.dtype.kind in "iu" and x.dtype.itemsize > 1 for x in members)
    return wide and values.shape[1] == 1 and bool(values.min() >= 0) and len(np.unique(values)) >= DISTINCT
