"""Run scripts and commands in subprocesses."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import rnnfast

TESTS = Path(__file__).parents[1]


def run_script(script, timeout=600, **variables):
    """Run a script in a fresh process: it may crash, and no other library has started threads in it."""
    return _run(["-c", textwrap.dedent(script)], timeout, **variables)


def run_module(name, *arguments, timeout=1200):
    """Run a module of tests/ as a program in a fresh process."""
    return _run(["-m", name, *map(str, arguments)], timeout)


def _run(arguments, timeout, **variables):
    path = os.pathsep.join([str(TESTS), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-P", *arguments], env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(*arguments, code=None, **environment):
    """Run ``python -m rnnfast``, or other code, in a subprocess."""
    start = ["-m", "rnnfast"] if code is None else ["-c", code]
    inherited = {
        name: value
        for name, value in os.environ.items()
        if "NUM_THREADS" not in name and not name.startswith("RNNFAST_")
    }
    return subprocess.run(
        [sys.executable, "-P", *start, *map(str, arguments)],
        env={**inherited, "PYTHONPATH": str(Path(rnnfast.__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
    )
