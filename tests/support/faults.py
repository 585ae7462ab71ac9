"""Allocations and threads that fail, by the library faults.c, which is preloaded into a subprocess."""

import ctypes
import functools
import gc
import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from support.interruptions import Fault, finalizers_ignored, observed, outcomes, points
from support.processes import run_script

SOURCE = Path(__file__).with_name("faults.c")
# What CPython reports if NumPy returns an error without an exception, as it does where some of its allocations fail.
NUMPYS = ("error return without exception set", "returned NULL without setting an exception", "Py_BuildValue")


def run_with_faults(script, folder, **variables):
    """Compile the library, and run a script in a process with it."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        pytest.skip("the library that lets allocations fail needs glibc")
    if compiler is None:
        pytest.skip("needs a C compiler, to build the library that makes allocations fail")
    if os.environ.get("LD_PRELOAD"):
        pytest.skip("another library is preloaded, which may have its own malloc")
    library = str(folder / "faults.so")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return run_script(script, timeout=1200, LD_PRELOAD=library, **variables)


class Library:
    """The library in the process into which it is preloaded."""

    def __init__(self):
        self._library = library = ctypes.PyDLL(os.environ["LD_PRELOAD"])
        library.faults_call.restype = ctypes.py_object
        sizes = [ctypes.c_long, ctypes.c_long, ctypes.c_size_t]
        # Iteration over the items of a dict crashes CPython if it has no memory for the pair that it reuses:
        # dictiter_new() in Objects/dictobject.c deallocates an iterator that the garbage collector does not track yet.
        library.faults_spare(ctypes.c_size_t(sys.getsizeof((None, None))))
        library.faults_call.argtypes = [ctypes.c_void_p, ctypes.py_object, *sizes]
        library.faults_seen.restype = library.faults_blocks.restype = ctypes.c_long
        self._call = ctypes.cast(ctypes.pythonapi.PyObject_CallNoArgs, ctypes.c_void_p)
        self.refuse_threads = library.faults_threads
        gc.freeze()  # makes collections short

    def call(self, function, first, last=None, least=0):
        """Call a function; of its allocations of at least `least` bytes, number `first` fails, or those to `last`."""
        return self._library.faults_call(self._call, function, first, first if last is None else last, least)

    @property
    def seen(self):
        """The number of allocations in the last call."""
        return self._library.faults_seen()

    @property
    def blocks(self):
        """The number of blocks in use, after a collection of garbage."""
        gc.collect()
        return self._library.faults_blocks()


def is_expected(error, action):
    """Whether a call may raise this error if an allocation fails."""
    if isinstance(error, SystemError):
        return "cyfunction" not in str(error) and any(part in str(error) for part in NUMPYS)
    if isinstance(error, RuntimeError):
        return str(error).startswith("can't allocate")  # CPython's error where it cannot make a lock
    return isinstance(error, (MemoryError, OSError) if action.files else MemoryError)


def failures(library, action, most=sys.maxsize, least=0, rest=False):
    """Let each allocation of a call fail in turn, or `most` of them, or (with `rest`) all from each one on.

    Yields the number of the allocation, the error or None, and the object.
    """
    subject = action.make()
    library.call(functools.partial(action.act, subject), 0, least=least)
    for point in points(library.seen, most):
        subject, error = action.make(), None
        try:
            library.call(functools.partial(action.act, subject), point, sys.maxsize if rest else point, least)
        except Exception as caught:
            error = caught.with_traceback(None)
        if library.seen >= point:
            yield point, error, subject


def broken_by_allocations(library, action, most=sys.maxsize, least=0, rest=False):
    """Return the number of failed allocations, and a Counter of what was wrong after one.

    A call that fails must leave the object as it was before, one that succeeds nevertheless as it is afterwards.
    """
    before, after = outcomes(action)
    count, wrong = 0, Counter()
    with finalizers_ignored() as ignored:
        for point, error, subject in failures(library, action, most, least, rest):
            count += 1
            if error is not None and not is_expected(error, action):
                wrong[f"{type(error).__name__}: {error}, at {point}"] += 1
            look = observed(action, subject)
            # A file that has been replaced stays so.
            if look not in ([after] if error is None else [before, after] if action.files else [before]):
                wrong[look if isinstance(look, Fault) else f"torn, at {point}"] += 1
    wrong.update(text for text in ignored if not text.startswith("MemoryError"))  # which a finalizer cannot raise
    return count, wrong


def growth(library, action, most=sys.maxsize):
    """Return the number of allocations of a call that fail, and by how many blocks that makes memory grow each time.

    Code, caches and the arenas of objects can grow at first; what leaks grows in each of several runs.
    """
    least = sys.maxsize
    for _ in range(5):
        before = library.blocks
        count = sum(1 for _ in failures(library, action, most))
        least = min(least, library.blocks - before)
        if least <= 0:
            break
    return count, max(least, 0)
