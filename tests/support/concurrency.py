"""Run the same work in several threads that start together and switch often."""

import sys
import threading
from contextlib import contextmanager


@contextmanager
def eager_switching():
    """Let threads take turns every few bytecodes. Without a GIL they run at the same time anyway."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def in_threads(count, work):
    """Call work(k) for k = 0 ... count - 1, each in its own thread; return the results, or raise the first error."""
    gate, results, errors = threading.Barrier(count), [None] * count, []

    def run(k):
        try:
            gate.wait()
            results[k] = work(k)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(count)]
    with eager_switching():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return results
