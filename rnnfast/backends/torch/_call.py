"""The record of a call of a layer or cell, which the operators and the loop of torch's own operators both run."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnfast import arguments, ragged

__all__ = [
    "DIFFERENTIABLE",
    "PARAMETERS",
    "Call",
    "array_of",
    "as_tensor",
    "from_flat",
    "is_step",
    "pattern_of",
    "sizes_of",
]


class Call(NamedTuple):
    """The arguments of rnnfast::infer and rnnfast::forward: the operators' schemas are built from this record.

    `axes` names the axes of x before its features: "TN", "NT", "T" for an unbatched sequence, "N" and "" for one step
    of a cell, or "packed" for the data of a PackedSequence. States have the axes (L*D, N, size), without N if x has
    none, and without L*D for a cell.
    """

    x: Tensor
    h0: Tensor | None
    c0: Tensor | None
    h_reset: Tensor | None  # from which sequences start at a reset; None stands for h0
    c_reset: Tensor | None
    dropout: Tensor | None  # factors for the outputs of all layers but the last, (L - 1, T, N, features)
    batch_sizes: Tensor | None  # of a PackedSequence
    lengths: Tensor | None
    mask: Tensor | None
    reset: Tensor | None
    parameters: list[Tensor]
    cell: str
    num_layers: int
    bidirectional: bool
    axes: str
    zero_masked: bool


DIFFERENTIABLE = Call._fields.index("dropout")  # x and the states, which have gradients, come before
PARAMETERS = Call._fields.index("parameters")  # single tensors come before, options after


def from_flat(options: tuple[Any, ...], tensors: tuple[Any, ...]) -> Call:
    """The call with all tensors in one sequence, the parameters last, and the other fields."""
    return Call._make((*tensors[:PARAMETERS], list(tensors[PARAMETERS:]), *options))


def is_step(axes: str) -> bool:
    """Whether x is one step, so that states have no axis of layers and directions."""
    return "T" not in axes and axes != "packed"


def sizes_of(call: Call) -> tuple[Any, Any]:
    """T and N of a call that is not packed."""
    shape, axes = call.x.shape, call.axes
    if axes == "TN":
        return shape[0], shape[1]
    if axes == "NT":
        return shape[1], shape[0]
    return (shape[0], 1) if axes == "T" else (1, shape[0] if axes else 1)


def pattern_of(call: Call) -> ragged.Pattern | None:
    """Check lengths, mask and reset; return None if every step is valid and nothing is reset."""
    if call.lengths is None and call.mask is None and call.reset is None:
        return None
    T, N = sizes_of(call)
    given = {"lengths": call.lengths, "mask": call.mask, "reset": call.reset}
    with torch._C._DisableFuncTorch():  # a transform of x would hide the memory of these tensors
        lengths, mask, reset = (None if one is None else array_of(_unwrapped(name, one)) for name, one in given.items())
    rows = None if call.axes == "T" else N
    return ragged.read(T, rows, call.axes == "NT", lengths, mask, reset, call.h_reset is not None)


def _unwrapped(name: str, tensor: Tensor) -> Tensor:
    """lengths, mask or reset without the wrappers of torch.func's transforms."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            raise ValueError(
                f"{name} is mapped by torch.func.vmap, but every call of the batch must have the same {name}: pass it "
                "with in_dims=None, or merge the batch with the rows of x and call the layer without vmap"
            )
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def array_of(tensor: Tensor) -> Any:
    """The memory of a tensor as an array.

    Raises
    ------
    RuntimeError
        If its storage was freed or cut off: the array would read memory that is not its own.
    """
    array, held = tensor.numpy(force=True), tensor.untyped_storage().nbytes()
    start = tensor.storage_offset()
    if held < (array.nbytes if array.flags.c_contiguous else _span(array)) + (start and start * array.itemsize):
        raise RuntimeError(
            f"a tensor of shape {tuple(tensor.shape)} and dtype {tensor.dtype} starts at element {start} of {held} "
            "bytes of storage, which do not hold its elements: restore the storage that untyped_storage().resize_() "
            "has freed or cut off"
        )
    return array


def _span(array: Any) -> int:
    """The bytes from the first element of an array to its last, which differ from those of its elements."""
    steps = zip(array.shape, array.strides, strict=True)
    return int(array.itemsize + sum((size - 1) * stride for size, stride in steps))


def as_tensor(name: str, value: Any) -> Tensor | None:
    """lengths, mask or reset as a tensor that the caller cannot change unnoticed."""
    if value is None or isinstance(value, Tensor):
        return value
    array = arguments.array(name, value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold integers or booleans, but its dtype is {array.dtype}")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
