"""Files with arrays and a description: ``.npz`` archives with an additional entry "rnnfast", which holds JSON."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from typing import Any

import numpy as np

from ._types import Array, Path

__all__ = ["read", "write"]


def write(path: Path, about: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write a file under a temporary name, and rename it to `path` when it is complete on disk.

    Raises
    ------
    OSError
        If the file cannot be written, or `path` exists and is not a regular file. No partial file is left behind.
    """
    import json  # here, so that importing rnnfast stays fast

    path = os.path.realpath(os.fsdecode(path))
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(
            f"{path!r} is not a regular file: pass the path of a regular file, or of one that does not exist yet"
        )
    unfinished = os.path.join(os.path.dirname(path), f".rnnfast-{os.urandom(8).hex()}")
    try:
        with open(unfinished, "xb") as file:
            np.savez(file, rnnfast=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(path):
            os.chmod(unfinished, stat.S_IMODE(os.stat(path).st_mode))
        os.replace(unfinished, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        if isinstance(error, OSError) and error.filename == unfinished:
            error.filename = path  # the name that the caller knows
        raise


def read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the description and the arrays that `write` wrote.

    Raises
    ------
    ValueError
        If the file was not saved by rnnfast, or is damaged.
    OSError
        If the file cannot be read.
    """
    import json

    try:
        with open(os.fsdecode(path), "rb") as file, np.load(file, allow_pickle=False) as content:
            arrays = dict(content)
        return dict(json.loads(arrays.pop("rnnfast").item())), arrays
    except (OSError, MemoryError):
        raise
    except Exception as error:  # the type of the error depends on where reading fails
        raise ValueError(f"{path!r} is not a file that rnnfast saved, or it is damaged") from error
