"""Which threads run rnnfast's calls; and threadpoolctl's view of them.

rnnfast has threads of its own. In a program whose other parts use OpenMP, `use` runs calls on OpenMP's threads::

    rnnfast.threads.use("openmp")

They often wait actively for a few milliseconds after each parallel operation, and meanwhile would keep rnnfast's
threads off their processors. `rnnfast.backends.torch` always uses PyTorch's threads. Results are bitwise equal.

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
import re
import sys
from typing import Any

from . import _core

__all__ = ["register", "use"]

_RUNTIMES = re.compile(r"/[^/]*lib(?:gomp|iomp5|omp)[-.][^/]*$", re.MULTILINE)


def use(threads: str) -> None:
    """Choose the threads that run all calls of rnnfast in this process.

    With OpenMP, a call runs on OpenMP's whole team if that has no more threads than ``rnnfast.get_num_threads()``. If
    the team has a single thread, the call has too. Otherwise, in forked processes, and inside of OpenMP's parallel
    regions, it runs on rnnfast's own threads. A call on OpenMP's threads waits for each of them, even if other programs
    keep their processors busy; a call on rnnfast's own threads does not. If a signal handler forks during such a call
    and returns in the child, the child ends, with status 1.

    Parameters
    ----------
    threads : {"rnnfast", "openmp"}
        "rnnfast", the default, stands for rnnfast's own threads. "openmp" stands for those of the OpenMP runtime that
        this process has loaded; with several runtimes, PyTorch's if PyTorch is loaded, else the first.

    Raises
    ------
    ValueError
        If `threads` is neither.
    RuntimeError
        If no OpenMP runtime is loaded, or it cannot be found on this system. Runtimes are found on Linux.

    Examples
    --------
    >>> import rnnfast.threads
    >>> rnnfast.threads.use("rnnfast")
    """
    if threads not in ("rnnfast", "openmp"):
        raise ValueError(f"threads is {threads!r}; expected 'rnnfast' or 'openmp'")
    if threads == "openmp" and not any(map(_core.find_openmp, _libraries())):
        raise RuntimeError("no OpenMP runtime is loaded: import the library that uses one first, for example torch")
    _core.set_on_openmp(threads == "openmp")


def _libraries() -> list[str]:
    """Return the paths of loaded libraries that are or need an OpenMP runtime, the preferred ones first."""
    paths = []
    torch = sys.modules.get("torch")
    if torch is not None:
        paths.append(torch._C.__file__)
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            paths += [line.split(maxsplit=5)[5].rstrip("\n") for line in maps if _RUNTIMES.search(line)]
    except OSError:  # not Linux
        pass
    return paths


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
