"""Named arrays in the files of other programs: safetensors files, and those that PyTorch saves.

The reader of safetensors files follows the format's specification (huggingface.co/docs/safetensors) strictly: the
arrays fill the file without gaps or overlaps, so the memory that it allocates is proportional to the size of the file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from . import arguments, files
from ._types import Array, ArrayLike, Path

__all__ = ["load_arrays", "save_arrays"]

LONGEST = 100_000_000  # bytes of a header, by the specification
DTYPES = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
}  # fmt: skip
NAMES = {np.dtype(ours): name for name, ours in DTYPES.items()}


def load_arrays(path: Path) -> dict[str, Array]:
    """Read all arrays of a safetensors file, or of a file that ``torch.save`` wrote.

    :func:`from_state_dict` builds layers from them. The content determines the format, not the suffix of the path.

    Parameters
    ----------
    path : str or os.PathLike
        A safetensors file; or a file of ``torch.save``, such as ``model.pt``, where PyTorch is installed.

    Returns
    -------
    dict of str to ndarray
        New arrays in native byte order. Elements of type bfloat16, which NumPy lacks, become float32 without rounding.
        The names of nested dicts in a file of PyTorch are joined by dots, such as "state_dict.encoder.weight_ih_l0",
        and entries that are not tensors are left out.

    Raises
    ------
    ValueError
        If the file is in neither format, is damaged, or has elements of another type, such as float8. PyTorch's files
        are read with ``weights_only=True``, which refuses pickled objects other than tensors and plain containers.
    OSError
        If the file cannot be read, is not a regular file, or does not fit into memory.
    ImportError
        If it is a file of PyTorch, and PyTorch is not installed.

    Examples
    --------
    >>> import os, tempfile, rnnfast
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "model.safetensors")
    ...     rnnfast.save_arrays(path, {f"encoder.{k}": v for k, v in rnnfast.GRU(4, 8).parameters.items()})
    ...     arrays = rnnfast.load_arrays(path)
    >>> rnnfast.from_state_dict(arrays, "encoder.")
    GRU(4, 8)  # 336 parameters
    """
    with files.reading(path) as file:
        found = files.format_of(file)
        if found == files.TORCH:
            return _of_torch(file, os.fsdecode(path))
        if found is None:
            raise ValueError(
                f"it is neither a {files.SAFETENSORS} nor a {files.TORCH}: rnnfast.load reads files that a layer of "
                "rnnfast saved, and numpy.load reads .npz archives"
            )
        return _of_safetensors(file)


def save_arrays(path: Path, arrays: Mapping[str, ArrayLike]) -> None:
    """Write arrays to a safetensors file, which many programs read.

    The file is renamed to `path` when it is complete on disk, as for ``save`` of a layer.

    Parameters
    ----------
    path : str or os.PathLike
        No suffix is added.
    arrays : mapping of str to array_like
        Such as ``layer.state_dict()``. Booleans, integers, real numbers of 2 to 8 bytes, and complex64.

    Raises
    ------
    TypeError
        If `arrays` is not a mapping, a name is not a string, or an array has another dtype.
    ValueError
        If a name is "__metadata__", which has another meaning in the format, or is not valid Unicode.
    OSError
        If the file cannot be written. No partial file is left behind.

    Examples
    --------
    >>> import os, tempfile, rnnfast
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "gru.safetensors")
    ...     rnnfast.save_arrays(path, rnnfast.GRU(4, 8).state_dict())
    ...     list(rnnfast.load_arrays(path))
    ['weight_ih_l0', 'weight_hh_l0', 'bias_ih_l0', 'bias_hh_l0']
    """
    if not hasattr(arrays, "keys"):
        raise TypeError(f"arrays must be a mapping of names to arrays, got {type(arrays).__name__}")
    contents: dict[str, Array] = {}
    for name, value in arrays.items():
        if not isinstance(name, str):
            raise TypeError(f"arrays must have strings as names, got {name!r}")
        if name == "__metadata__":
            raise ValueError("arrays has the name '__metadata__', which safetensors files cannot have: rename it")
        array = arguments.array(f"arrays[{name!r}]", value)
        array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        if array.dtype not in NAMES:
            raise TypeError(f"arrays[{name!r}] must have one of the dtypes {[*map(str, NAMES)]}, got {array.dtype}")
        contents[name] = array
    header, end = {}, 0
    # Each array is aligned to its elements. Within a dtype, torch's order of the parameters is kept.
    ordered = sorted(contents, key=lambda name: -contents[name].itemsize)
    for name in ordered:
        array = contents[name]
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype], "shape": array.shape, "data_offsets": (begin, end)}
    import json  # here, so that importing rnnfast stays fast

    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with files.replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            file.write(contents[name].reshape(-1).view(np.uint8).data)


def _of_safetensors(file: BinaryIO) -> dict[str, Array]:
    length = int.from_bytes(file.read(8), "little")
    if length > LONGEST:
        raise ValueError(f"its header has {length} bytes, more than the {LONGEST} that the format allows")
    text = file.read(length)
    size = os.fstat(file.fileno()).st_size - 8 - length
    header = files.json_object(str(text, "utf-8"))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its __metadata__ must be an object of strings")
    entries = sorted((_entry(name, about) for name, about in header.items()), key=lambda entry: entry[3:])
    at = 0
    for name, _, _, begin, end in entries:
        if begin != at:
            raise ValueError(f"its array {name!r} must begin at byte {at} of the data, but begins at {begin}")
        at = end
    if at != size:
        raise ValueError(f"its arrays take {at} bytes, but {size} bytes follow its header")
    return {name: _read(file, name, dtype, shape) for name, dtype, shape, _, _ in entries}


def _entry(name: str, about: Any) -> tuple[str, str, tuple[int, ...], int, int]:
    """Check the description of an array: return its name, dtype, shape, begin and end."""
    if not isinstance(about, dict) or about.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"its array {name!r} must have exactly a dtype, a shape and data_offsets, got {about!r}")
    dtype, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
    if not isinstance(dtype, str) or not (dtype in DTYPES or dtype == "BF16"):
        raise ValueError(f"its array {name!r} has dtype {dtype!r}, but rnnfast reads {', '.join(DTYPES)} and BF16")
    for what, sizes in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
            raise ValueError(f"its array {name!r} has the {what} {sizes!r}, which is not a list of sizes")
    if len(shape) > 32:  # the most that all versions of NumPy support
        raise ValueError(f"its array {name!r} has {len(shape)} axes, more than 32")
    nbytes = math.prod(shape) * _stored(dtype).itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != nbytes:
        raise ValueError(f"its array {name!r} takes {nbytes} bytes, but has the data_offsets {offsets}")
    return name, dtype, tuple(shape), *offsets


def _stored(dtype: str) -> np.dtype[Any]:
    return np.dtype("<u2" if dtype == "BF16" else DTYPES[dtype])


def _read(file: BinaryIO, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
    """Read the next array."""
    array = np.empty(shape, _stored(dtype))
    content = array.reshape(-1).view(np.uint8)
    if file.readinto(content.data) != content.size:  # type: ignore[attr-defined]
        raise ValueError(f"its array {name!r} is cut off")
    if dtype == "BF16":  # the upper halves of float32
        bits = array.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    if dtype == "BOOL":
        return np.not_equal(content, 0).reshape(shape)  # NumPy's own booleans must be 0 or 1
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _of_torch(file: BinaryIO, name: str) -> dict[str, Array]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"{name!r} is a {files.TORCH}, which PyTorch reads: pip install 'rnnfast[torch]'") from error
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # of any class, as PyTorch does not document them
        raise ValueError(f"torch.load(weights_only=True) raises {type(error).__name__}: {error}") from error
    tensors: dict[str, Any] = {}
    pending, seen = [("", content)], set()
    while pending:
        prefix, value = pending.pop()
        if isinstance(value, torch.Tensor):
            if prefix in tensors:
                raise ValueError(f"it has two tensors with the name {prefix!r}")
            tensors[prefix] = value.detach()
        elif isinstance(value, Mapping) and id(value) not in seen:  # a dict can contain itself
            seen.add(id(value))
            pending += [(f"{prefix}.{key}" if prefix else str(key), value[key]) for key in reversed(value)]
    if not tensors:
        raise ValueError(f"it holds no tensors under names, but an object of type {type(content).__name__}")
    return {
        name: arguments.array(
            f"the tensor {name!r}", tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        ).copy()
        for name, tensor in tensors.items()
    }
