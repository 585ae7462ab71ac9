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

    def _require_free(self, name: str) -> None:
        """Raise AttributeError if an attribute is fixed."""
        if self._built and name in self._fixed():
            raise AttributeError(
                f"{name} of this {type(self).__name__} is fixed at construction and cannot be changed: "
                f"{self._remedy(name)}"
            )

    def __setattr__(self, name: str, value: Any) -> None:
        self._require_free(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._require_free(name)
        super().__delattr__(name)
