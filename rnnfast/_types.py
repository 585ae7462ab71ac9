"""Names for the types in annotations. At run time most are Any, as importing numpy.typing would take time."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import ArrayLike as ArrayLike
    from numpy.typing import DTypeLike as DTypeLike
    from numpy.typing import NDArray as NDArray

    Array = NDArray[Any]
    Arrays = Mapping[str, Array]
    Path = str | bytes | os.PathLike[Any]
    Seed = int | np.random.Generator | None
else:
    Array = Arrays = ArrayLike = DTypeLike = NDArray = Path = Seed = Any

Init = str | tuple[str, float] | None
