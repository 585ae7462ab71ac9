"""Names of parameters that remember the parameter, so that collisions in merged dicts are found."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping

from ._types import Array

__all__ = ["ParameterName", "named", "register", "require_distinct"]


class ParameterName(str):
    """The name of a parameter in ``layer.parameters``, with the parameter itself.

    If dicts of several layers with a common name are merged, ``{**a.parameters, **b.parameters}`` keeps the name object
    of the first layer and the array of the last one, by which :func:`require_distinct` detects the collision.
    """

    __slots__ = ("array",)
    array: Array

    def __new__(cls, name: str, array: Array) -> ParameterName:
        self = super().__new__(cls, name)
        self.array = array
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


class _Mark(weakref.ref[Array]):
    """A reference that marks an array as a parameter until the array dies.

    Marks are told apart by identity. So no Python code runs where an array dies: Python drops the exception of a signal
    handler that runs in there, such as KeyboardInterrupt.
    """

    __slots__ = ()
    __hash__ = object.__hash__
    __eq__ = object.__eq__


_marks: set[_Mark] = set()  # of the parameters of all layers


def register(arrays: Iterable[Array]) -> None:
    """Remember that these arrays are parameters of a layer."""
    _marks.update(_Mark(array, _marks.discard) for array in arrays if not _is_parameter(array))


def _is_parameter(array: Array) -> bool:
    return any(isinstance(reference, _Mark) for reference in weakref.getweakrefs(array))


def named(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return parameters under names that remember them."""
    return {ParameterName(name, array): array for name, array in arrays.items()}


def require_distinct(argument: str, arrays: Mapping[str, Array]) -> None:
    """Raise if the parameter of a layer was replaced by another layer's of the same name."""
    for name, array in arrays.items():
        if isinstance(name, ParameterName) and name.array is not array and _is_parameter(array):
            raise ValueError(
                f"{argument} were merged from layers that both have a parameter {str(name)!r}, of which only the last "
                "one is left: pass the layers in a list, as in Adam([embedding, lstm, readout])"
            )
