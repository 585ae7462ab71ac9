"""Let threadpoolctl see and limit the threads of rnnfast, as it does those of BLAS and OpenMP.

`register` makes rnnfast known to threadpoolctl for the rest of the process::

    import rnnfast.threads, threadpoolctl

    rnnfast.threads.register()
    with threadpoolctl.threadpool_limits(1):  # BLAS, OpenMP and rnnfast
        y, state = layer(x)

``threadpool_limits(1, user_api="rnnfast")`` limits only rnnfast. The limit holds for all Python threads, like that of
``rnnfast.set_num_threads``. threadpoolctl lists libraries when it is called, so a ``ThreadpoolController`` made before
`register` does not know rnnfast. Importing `rnnfast.sklearn` calls `register`.
"""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["register"]


@functools.cache  # threadpoolctl would list a library once for each registration
def register() -> None:
    """Make rnnfast known to threadpoolctl. Further calls have no effect.

    Raises
    ------
    ImportError
        If threadpoolctl is not installed, or is older than 3.2.
    """
    try:
        import threadpoolctl
        from threadpoolctl import LibController
    except ImportError as error:
        raise ImportError("rnnfast.threads needs threadpoolctl: pip install 'threadpoolctl>=3.2'") from error

    class Controller(LibController):  # type: ignore[misc]
        # Not "openmp", as rnnfast has its own thread group: limits on one of them do not affect the other.
        user_api = internal_api = "rnnfast"
        filename_prefixes = ("_core.",)  # other packages use this name too; the symbols identify rnnfast's
        check_symbols = ("rnnfast_get_num_threads", "rnnfast_set_num_threads")

        def get_num_threads(self) -> Any:
            return self.dynlib.rnnfast_get_num_threads()

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.rnnfast_set_num_threads(num_threads)

        def get_version(self) -> Any:
            from rnnfast import __version__

            return __version__

    threadpoolctl.register(Controller)
