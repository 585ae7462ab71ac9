"""rnnfast's threads under threadpoolctl: its ``threadpool_info`` lists them, its ``threadpool_limits`` bounds them.

One line makes rnnfast known, from then on and for the whole process::

    import rnnfast.threads, threadpoolctl

    rnnfast.threads.register()
    with threadpoolctl.threadpool_limits(1):  # BLAS, OpenMP and rnnfast
        y, state = layer(x)

``threadpool_limits(1, user_api="rnnfast")`` bounds rnnfast alone. The number is one for all Python threads, as that of
``rnnfast.set_num_threads`` is. threadpoolctl looks for libraries when it is called: what was made of it before
`register`, such as a ``ThreadpoolController``, does not know rnnfast. `rnnfast.sklearn` calls it when it is imported.
"""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["register"]


@functools.cache  # threadpoolctl would list a library as often as it is registered
def register() -> None:
    """Make rnnfast known to threadpoolctl; to call it again does nothing.

    Raises
    ------
    ImportError
        When threadpoolctl is not installed, or older than 3.2.
    """
    try:
        import threadpoolctl
        from threadpoolctl import LibController
    except ImportError as error:
        raise ImportError(
            "rnnfast.threads needs threadpoolctl 3.2 or newer: pip install 'threadpoolctl>=3.2'"
        ) from error

    class Controller(LibController):
        # Not "openmp", as the team is rnnfast's own: what is said of one of the two need not hold for the other.
        user_api = internal_api = "rnnfast"
        filename_prefixes = ("_core.",)  # of many packages: the symbols tell which is rnnfast's
        check_symbols = ("rnnfast_get_num_threads", "rnnfast_set_num_threads")

        def get_num_threads(self) -> int:
            return self.dynlib.rnnfast_get_num_threads()

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.rnnfast_set_num_threads(num_threads)

        def get_version(self) -> Any:
            from rnnfast import __version__

            return __version__

    threadpoolctl.register(Controller)
