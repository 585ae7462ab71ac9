"""Names for the types in annotations. At run time most are Any, as importing numpy.typing would take time."""

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import ArrayLike as ArrayLike
    from numpy.typing import DTypeLike as DTypeLike
    from numpy.typing import NDArray as NDArray

    Array = NDArray[Any]
    Arrays = Mapping[str, Array]

    class HasParameters(Protocol):  # a layer, a model, or the gradients of one
        @property
        def parameters(self) -> Arrays: ...

    Parameters = Arrays | HasParameters | Sequence[Arrays | HasParameters]
    Path = str | bytes | os.PathLike[Any]
    Seed = int | np.random.Generator | None
else:
    Array = Arrays = ArrayLike = DTypeLike = NDArray = Parameters = Path = Seed = Any

Init = str | tuple[str, float] | None
