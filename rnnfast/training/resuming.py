"""Checkpoints of a training: files with everything that a later run needs to continue it exactly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .. import arguments, files
from .._types import Array, Path
from .arrays import layers_of


def save_checkpoint(path: Path, model: Any, optimizer: Any, *, rng: Any = None, about: Any = None) -> None:
    """Save the state of a training: parameters, moments of the optimizer, and random generators.

    The file is renamed to `path` when it is complete on disk, so a crash leaves an existing file unchanged.

    Parameters
    ----------
    path : str or os.PathLike
        No suffix is added.
    model : layer or model
        The generators that its layers use for dropout are saved, too.
    optimizer : optimizer of rnnfast.training
        Built for `model`.
    rng : numpy.random.Generator, optional
        Another generator that the training uses, for example to shuffle data.
    about : optional
        Anything else that JSON can represent, such as the number of epochs and a list of losses. JSON has neither NaN
        nor infinity, and its objects have strings as keys.

    Raises
    ------
    TypeError
        If JSON cannot represent `about`, or `rng` is not a generator.
    ValueError
        If `about` holds NaN or infinity.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import os, tempfile, rnnfast
    >>> from rnnfast.training import Adam, load_checkpoint, save_checkpoint
    >>> model = rnnfast.GRU(4, 8, rng=0)
    >>> adam = Adam(model)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "checkpoint")
    ...     save_checkpoint(path, model, adam, about={"epoch": 3})
    ...     load_checkpoint(path, model, adam)
    {'epoch': 3}
    """
    write(path, model, optimizer, [] if rng is None else [_generator(rng)], about, {})


def load_checkpoint(path: Path, model: Any = None, optimizer: Any = None, *, rng: Any = None) -> Any:
    """Restore what :func:`save_checkpoint` saved. If the file is invalid, nothing is changed.

    If a signal handler raises (Ctrl-C) at the end, the model may be restored but the optimizer not: load it again.

    Parameters
    ----------
    path : str or os.PathLike
    model, optimizer, rng
        Like those that were saved: with parameters of the same names, shapes and dtypes, and the same generators.
        Leave all of them out to read `about` alone, for example the options from which the model is created.

    Returns
    -------
    object
        What was passed as `about`.

    Raises
    ------
    ValueError
        If the file is not a checkpoint, is damaged, or is that of another model or optimizer.
    TypeError
        If only some of `model`, `optimizer` and `rng` are passed, or `rng` is not a generator.
    OSError
        If the file cannot be read.
    """
    if model is None and optimizer is None and rng is None:
        return about(path)
    if model is None or optimizer is None:
        raise TypeError("load_checkpoint needs both the model and the optimizer: leave both out to read about alone")
    with restoring(path, model, optimizer, [] if rng is None else [_generator(rng)]) as (_, found):
        return found


def _generator(rng: Any) -> np.random.Generator:
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator, got {rng!r}")
    return rng


def _generators(model: Any, others: Iterable[np.random.Generator]) -> list[np.random.Generator]:
    """Return all generators of a training, each once, in a fixed order."""
    sides = ("forward_layer", "backward_layer")  # of a Bidirectional
    parts = [getattr(layer, side, layer) for layer in layers_of(model).values() for side in sides]
    found = [*others, *(part._rng for part in parts if isinstance(getattr(part, "_rng", None), np.random.Generator))]
    return list({id(one): one for one in found}.values())


def about(path: Path) -> Any:
    """Return what was saved as `about`."""
    with files.opening(path) as archive:
        return _header(archive)["about"]


def plain(state: Any) -> Any:
    """Return the state of a generator as JSON types."""
    if isinstance(state, dict):
        return {name: plain(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, (np.ndarray, np.generic)) else state


def write(
    path: Path, model: Any, optimizer: Any, rngs: list[np.random.Generator], about: Any, more: dict[str, Array]
) -> None:
    """Save the state of a training, and more arrays."""
    moments = optimizer.state_dict()
    header = {
        "format": 1,
        "checkpoint": type(optimizer).__name__,
        "step": int(moments.pop("step")),
        "lr": float(optimizer.lr),
        "generators": [plain(one.bit_generator.state) for one in _generators(model, rngs)],
        "about": about,
    }
    arrays = {f"model.{name}": array for name, array in model.parameters.items()}
    arrays |= {f"optimizer.{name}": array for name, array in moments.items()}
    files.write(path, header, arrays | more)


@contextlib.contextmanager
def restoring(
    path: Path, model: Any, optimizer: Any, rngs: list[np.random.Generator]
) -> Iterator[tuple[files.Archive, Any]]:
    """Read a checkpoint; restore the training when the block, which reads the other arrays, has ended."""
    generators = _generators(model, rngs)
    with files.opening(path) as archive:
        header = _header(archive)
        if header["checkpoint"] != type(optimizer).__name__:
            raise ValueError(f"it was saved with {header['checkpoint']}, but the optimizer is {optimizer!r}")
        if len(header["generators"]) != len(generators):
            raise ValueError(
                f"it has the states of {len(header['generators'])} random generators, but this training has "
                f"{len(generators)}"
            )
        # Invalid states are found on copies.
        states = [_checked_state(one, state) for one, state in zip(generators, header["generators"], strict=True)]
        parameters, moments = (
            {str(name): archive.take(f"{kind}.{name}", array.shape, array.dtype) for name, array in own.items()}
            for kind, own in (("model", model.parameters), ("optimizer", _moments(optimizer)))
        )
        step = np.array(arguments.size("its number of steps", header["step"], least=0), np.int64)
        lr = arguments.number("its learning rate", header["lr"])
        yield archive, header["about"]
        archive.finish()
    before = {str(name): array.copy() for name, array in model.parameters.items()}
    model.load_state_dict(parameters)
    try:
        optimizer.load_state_dict({"step": step, **moments})
    except BaseException:
        model.load_state_dict(before)
        raise
    optimizer.lr = lr
    for one, state in zip(generators, states, strict=True):
        one.bit_generator.state = state


def _header(archive: files.Archive) -> dict[str, Any]:
    if "checkpoint" not in archive.about or archive.about.get("format") != 1:
        raise ValueError("it is not a checkpoint of a training")
    return archive.about


def _moments(optimizer: Any) -> dict[str, Array]:
    return {name: array for name, array in optimizer.state_dict().items() if name != "step"}


def _checked_state(generator: np.random.Generator, state: Any) -> Any:
    """Return the state of a generator after checking that the generator accepts it."""
    copied = type(generator.bit_generator)()
    copied.state = state
    return copied.state
