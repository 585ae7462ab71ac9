"""Ways to pass the same elements as an array."""

import numpy as np


def _misaligned(array):
    memory = bytearray(array.nbytes + 1)
    odd = np.frombuffer(memory, array.dtype, array.size, offset=1).reshape(array.shape)
    odd[...] = array
    assert not odd.flags.aligned
    return odd


def _padded(array):
    memory = np.full([2 * size + 1 for size in array.shape], np.nan if array.dtype.kind == "f" else 1, array.dtype)
    view = memory[tuple(slice(1, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def _rows_apart(array):
    record = np.zeros(array.shape[:-1], [("pad", np.int8), ("row", array.dtype, array.shape[-1:])])
    record["row"] = array
    return record["row"]


def _read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


FORMS = {
    "list": np.ndarray.tolist,
    "fortran": np.asfortranarray,
    "padded": _padded,
    "backwards": lambda a: a[::-1].copy()[::-1],
    "backwards along all axes": lambda a: np.flip(np.flip(a).copy()),
    "last axis backwards": lambda a: a[..., ::-1].copy()[..., ::-1],
    "batch inside": lambda a: np.moveaxis(np.moveaxis(a, -2, 0).copy(), 0, -2),
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "misaligned": _misaligned,
    "rows apart by no whole number of items": _rows_apart,
    "read-only": _read_only,
    "float64": lambda a: a.astype(np.float64),
    "longdouble": lambda a: a.astype(np.longdouble),
    "subclass": lambda a: a.view(np.recarray),
    "own dtype object": lambda a: a.astype(np.dtype(a.dtype.str, metadata={"unit": "m"})),
}

# The forms that work for any element type and for one-dimensional arrays.
FORMS_OF_FLAGS = ["list", "fortran", "padded", "backwards", "backwards along all axes", "subclass", "read-only"]
