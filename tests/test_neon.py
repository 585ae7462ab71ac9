"""The base kernels for AArch64, cross-compiled and run in an emulator by tests/neon_check.py."""

import subprocess
import sys

import neon_check
import pytest


@pytest.mark.full
def test_base_kernels_on_neon():
    if not neon_check.CSRC.is_dir():
        pytest.skip("the tests do not lie in a checkout of rnnfast, so there is nothing to compile")
    if neon_check.missing():
        pytest.skip(neon_check.missing())
    result = subprocess.run([sys.executable, neon_check.__file__], capture_output=True, text=True)
    found = [line for line in result.stdout.splitlines() if not line.endswith(": right")]
    assert result.returncode == 0, "\n".join([*found, result.stderr])
