"""Run scripts and commands in subprocesses."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import rnnfast

TESTS = Path(__file__).parents[1]


def run_script(script, **variables):
    """Run a script in a fresh process: it may crash, and no other library has started threads in it."""
    path = os.pathsep.join([str(TESTS), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment.update(variables)
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
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
