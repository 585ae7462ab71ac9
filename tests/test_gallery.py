"""examples/gallery: each program is short, reaches its score, and draws its picture."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import CHECKOUT, EXAMPLES

import rnnfast

GALLERY = EXAMPLES / "gallery"
PROGRAMS = sorted(path.stem for path in GALLERY.glob("*.py") if path.stem != "picture")
QUICK = ("classifier", "detector")


def run(name, *options):
    """Run a program with one thread and return what it prints."""
    variables = {"PYTHONPATH": str(Path(rnnfast.__file__).parents[1]), "RNNFAST_NUM_THREADS": "1"}
    command = [sys.executable, str(GALLERY / f"{name}.py"), *options]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(text):
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d.,]*\d|\d", text)]


def lines(text):
    return [line for line in text.splitlines() if line.strip()]


def program(name):
    """Return a program up to its picture."""
    return (GALLERY / f"{name}.py").read_text(encoding="utf-8").partition("\nif path:")[0]


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in PROGRAMS]
)
def test_program_reaches_its_score(name):
    printed = run(name)
    values = numbers(printed)
    if name == "autoencoder":
        normal, *anomalies = values
        assert normal < 3, printed
        assert min(anomalies) > 90, printed
    elif name == "detector":
        found, chirps, false, samples = values
        assert samples == 20_000
        assert found >= 0.95 * chirps > 50, printed
        assert false <= 0.2 * chirps, printed
    else:
        assert values[-1 if name == "policy" else 0] > 95, printed


@pytest.mark.full
def test_picture_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    for name in PROGRAMS:
        run(name, "--output", str(tmp_path / "picture.png"))
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "picture.png").unlink()


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_is_short_and_in_the_documentation(name):
    assert len(lines(program(name))) < 40
    if (CHECKOUT / "docs").is_dir():
        assert (CHECKOUT / "docs" / "gallery" / f"{name}.png").stat().st_size < 60_000
        assert f"{name}.py" in (CHECKOUT / "docs" / "gallery.md").read_text(encoding="utf-8")


def test_model_and_training_of_the_autoencoder_take_twelve_lines():
    _, _, rest = program("autoencoder").partition("class Autoencoder")
    assert len(lines(rest.partition("\ngroups = ")[0])) <= 12
