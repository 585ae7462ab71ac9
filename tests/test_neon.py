"""The base kernels of AArch64, cross-compiled and emulated: what tests/neon_check.py finds."""

import subprocess
import sys

import neon_check
import pytest


def test_base_kernels_on_neon():
    if not neon_check.CSRC.is_dir():
        pytest.skip("the tests do not lie in a checkout of rnnfast, so there is nothing to compile")
    if neon_check.missing():
        pytest.skip(neon_check.missing())
    result = subprocess.run([sys.executable, neon_check.__file__], capture_output=True, text=True)
    found = [line for line in result.stdout.splitlines() if not line.endswith(": right")]
    assert result.returncode == 0, "\n".join([*found, result.stderr])
