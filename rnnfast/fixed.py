"""Objects whose options are fixed when they are constructed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

__all__ = ["Fixed"]


class Fixed:
    """Base class of objects with attributes that can be neither assigned nor deleted after the constructor.

    The constructor sets `_built` last. Subclasses may have any other attributes.
    """

    _built: bool = False

    def _fixed(self) -> Collection[str]:
        """Return the names of the attributes."""
        raise NotImplementedError

    def _remedy(self, name: str) -> str:  # noqa: ARG002
        """Return what to do instead of changing an attribute."""
        return f"create another {type(self).__name__}"

    def _refusal(self, name: str) -> AttributeError:
        kind = type(self).__name__
        return AttributeError(
            f"{name} of this {kind} is fixed at construction and cannot be changed: {self._remedy(name)}"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if self._built and name in self._fixed():
            raise self._refusal(name)
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if self._built and name in self._fixed():
            raise self._refusal(name)
        object.__delattr__(self, name)
