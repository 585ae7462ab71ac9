"""Programs that run in processes of their own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import rnnfast

TESTS = Path(__file__).parents[1]


def run_script(script):
    """A script in a process of its own, which may end badly, and where no other library has made threads."""
    path = os.pathsep.join([str(TESTS), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
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
    """What comes of ``python -m rnnfast``, or of other code, in a process of its own."""
    start = ["-m", "rnnfast"] if code is None else ["-c", code]
    inherited = {
        name: value for name, value in os.environ.items() if "NUM_THREADS" not in name and name != "RNNFAST_ISA"
    }
    return subprocess.run(
        [sys.executable, "-P", *start, *map(str, arguments)],
        env={**inherited, "PYTHONPATH": str(Path(rnnfast.__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
    )
