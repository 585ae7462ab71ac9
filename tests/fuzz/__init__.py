"""Fuzz targets, which ``tools/fuzz`` runs: random cases for one part of rnnfast, and what must hold for each of them.

A target is a module of this package with two functions. ``generate(random)`` draws a case, a dict of JSON values, from
a `random.Random`. ``check(case)`` raises an exception if rnnfast is at fault. A case holds everything that the check
depends on, so it can be stored: ``corpus/`` has a file for each target, whose lines are the cases that found a fault,
with a note on the fault.
"""

import contextlib
import importlib
import json
import random
import signal
import tempfile
import time
import warnings
from pathlib import Path

TARGETS = {
    "order": "order.c: the sequences of ragged and packed batches, windows, fill and fold, against a model in Python",
    "calls": "calls and gradients of all layers, options and instruction sets, against the reference and themselves",
    "streams": "streams and pools after any sequence of operations, right and wrong ones, against calls",
    "files": "files of layers and of the command line, with damaged bytes, archives, arrays and descriptions",
    "models": "safetensors files and models in JSON, damaged, for rnnfast.from_file and rnnfast convert",
    "onnx": "recurrent nodes of ONNX, valid and invalid ones, against the equations of the standard and ONNX Runtime",
    "commands": "train csv, predict, train text and sample, on any file",
    "parameters": "load_state_dict with any arrays under any names: all or nothing",
    "estimators": "inputs of the estimators: documented errors, or finite predictions in the unit of the data",
    "arguments": "any object passed as any argument of the public functions and methods",
}
CASE_SECONDS = 20  # a case that takes longer is a fault, on a busy machine too
MEMORY = 6 << 30  # of the process: more is a fault

CORPUS = Path(__file__).parent / "corpus"


class TooSlow(BaseException):
    """A case took longer than CASE_SECONDS. Not an Exception, so that the code under test does not handle it."""


class Invalid(Exception):
    """The case makes no sense, such as a smaller one whose parts do not fit; it is not checked."""


def assume(condition):
    if not condition:
        raise Invalid


def load(name):
    """Import a target; raises ImportError if it needs a package that is not installed."""
    return importlib.import_module(f"fuzz.{name}")


def case_of(target, seed):
    return target.generate(random.Random(seed))


class FromBytes(random.Random):
    """A random generator whose bits are those of a string, and 0 after its end, so that a guided fuzzer can choose."""

    def __init__(self, data):
        super().__init__(0)
        self._bits, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def getrandbits(self, k):
        value, self._bits = self._bits & ((1 << k) - 1), self._bits >> k
        # Drawing below n repeats while a number is too large, which zeros never are.
        self._left -= k
        return value

    def random(self):
        return self.getrandbits(53) / (1 << 53)


@contextlib.contextmanager
def time_limit(seconds):
    def stop(*_):
        raise TooSlow(f"the case took longer than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check(target, case):
    """Check a case in limited time."""
    # NumPy's warnings depend on the data, and are not faults; a target that knows better raises its own error.
    with time_limit(CASE_SECONDS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target.check(case)


def fault_of(target, case):
    """Return the exception that a case raises, or None."""
    try:
        check(target, case)
    except Invalid:
        return None
    except (Exception, TooSlow) as error:
        return error
    return None


# ---- smaller cases


def place(error):
    """Return where an exception was raised, to tell whether two faults are the same."""
    at = error.__traceback__
    while at.tb_next:
        at = at.tb_next
    return type(error), at.tb_frame.f_code.co_filename, at.tb_lineno


def _simpler(value):
    """Yield values of the same kind that are simpler."""
    if isinstance(value, bool):
        if value:
            yield False
    elif isinstance(value, int):
        for other in (0, 1, value // 2, *([value - 1] if abs(value) < 20 else [])):
            if abs(other) < abs(value):
                yield other
    elif isinstance(value, (str, list)):
        for size in (len(value), len(value) // 2, len(value) // 4, 1):
            for first in range(0, len(value), size) if size else ():
                yield value[:first] + value[first + size :]
        for at, one in enumerate(value if isinstance(value, list) else ()):
            for other in _simpler(one):
                yield [*value[:at], other, *value[at + 1 :]]
    elif isinstance(value, dict):
        for name, one in value.items():
            for other in () if isinstance(one, str) else _simpler(one):  # such a string is a choice, not content
                yield {**value, name: other}


def shrink(target, case, fault, seconds=20):
    """Return the simplest case found that raises the same exception at the same place."""
    wanted, end = place(fault), time.monotonic() + seconds
    smaller = True
    while smaller:
        smaller = False
        for other in _simpler(case):
            if time.monotonic() > end:
                return case
            found = fault_of(target, other)
            if found is not None and place(found) == wanted:
                case, smaller = other, True
                break
    return case


# ---- the corpus


def corpus(name):
    """Return the cases that found a fault in the past, as pairs of the note and the case."""
    path = CORPUS / f"{name}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [(entry.pop("note"), entry) for entry in map(json.loads, lines)]


# ---- helpers of the targets


def outcome(call, *errors):
    """Return (result, None), or (None, error) if the call raises one of the documented errors."""
    try:
        return call(), None
    except errors as error:
        return None, error


@contextlib.contextmanager
def memory_limit(more):
    """Let the process use only `more` bytes of address space in addition to those that it has."""
    import resource

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def run_command(*arguments):
    """Run the command line; return its exit status, standard output and standard error."""
    import io

    from rnnfast.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse's, for options that cannot be parsed
            status = error.code
    return status, out.getvalue(), err.getvalue()


def require_command(status, out, err):
    """Require that a command succeeded, or failed with one line that says why."""
    assert status in (0, 2), (status, err)
    if status == 2:
        assert err, "no message"
        program, _, message = err.splitlines()[-1].partition(": ")  # after the usage, if argparse says it
        assert program.startswith("python -m rnnfast"), err
        assert message.strip(), err
    assert "Traceback" not in out + err, err


@contextlib.contextmanager
def folder():
    with tempfile.TemporaryDirectory(prefix="rnnfast-fuzz-") as path:
        yield Path(path)
