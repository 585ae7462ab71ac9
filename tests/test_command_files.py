"""Files that commands read and write, and failures to write them."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.command_line import failure, main, random_model
from support.processes import python

import rnnfast
from rnnfast.commands import program, series, tables

# --- the program


def test_files_of_models_appear_complete_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "model"
    program.write_model(str(path), {"kind": "text"}, {"a": np.ones(2)})
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(program.os, "fsync", fail)
    with pytest.raises(program.CannotRun, match=r"cannot write .*model: No space left"):
        program.write_model(str(path), {"kind": "text"}, {"a": np.zeros(2)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- files that are one


@pytest.mark.parametrize("alias", ["itself", "relative", "symbolic link", "hard link"])
def test_no_command_overwrites_what_it_reads(alias, book, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    other = {"itself": book, "relative": Path("book.txt")}.get(alias, tmp_path / "other")
    if alias.endswith("link"):
        (other.symlink_to if alias[0] == "s" else other.hardlink_to)(book)
    before = book.read_bytes()
    for command in (
        ["train", "text", book, "-o", other],
        ["train", "csv", book, "--column", "sold", "-o", other],
        ["predict", book, "--output", other],
        ["predict", book, "--plot", other],
        ["predict", "model", "--output", book, "--plot", other],
        ["bench", "--json", book, "--plot", other],
    ):
        assert "are the same file" in failure(capsys, *command)
        assert book.read_bytes() == before


def test_names_that_no_file_can_have_are_refused_before_the_work(book, tmp_path, capsys):
    long = tmp_path / ("x" * 300)
    for command in (["train", "text", book, "-o", long], ["predict", "model", "--output", long]):
        assert "cannot write" in failure(capsys, *command)


def test_same_new_file_for_two_outputs(tmp_path, capsys):
    new = tmp_path / "new.png"
    assert "--output and --plot are the same file" in failure(capsys, "predict", "m", "--output", new, "--plot", new)


@pytest.mark.parametrize(
    "command",
    [
        ["train", "text", "x", "-o", ""],
        ["predict", "x", "--output", ""],
        ["bench", "--json", ""],
        ["bench", "--plot", ""],
    ],
)
def test_empty_names_of_files(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(command)
    assert "must be the name of a file, not an empty string" in capsys.readouterr().err


FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is full")


@FULL
@pytest.mark.parametrize("command", [["info"], ["--help"], ["sample", "--length", "5"], ["predict"]])
def test_full_device_in_place_of_the_output(command, tmp_path):
    if command[0] == "sample":
        random_model().save(str(tmp_path / "model"))
        command = [*command, str(tmp_path / "model")]
    if command[0] == "predict":
        pytest.importorskip("sklearn")
        table = tables.Table(np.sin(np.arange(40))[:, np.newaxis], None, tables.Reading(["y"]), [])
        forecaster = series.forecaster_of({"max_epochs": 1}).fit(table.values)
        series.save(str(tmp_path / "model"), forecaster, table, {})
        command = [*command, str(tmp_path / "model")]
    run = (
        f"import sys; sys.stdout = open('/dev/full', 'w'); from rnnfast.__main__ import main; sys.exit(main({command}))"
    )
    result = python(code=run)
    assert result.returncode == 2
    assert result.stderr.endswith("cannot write the output: No space left on device\n")
    assert "Traceback" not in result.stderr


@FULL
def test_full_device_in_place_of_a_file(book, capsys):
    arguments = ["bench", "--json", "/dev/full", "--T", "2", "--N", "1", "--I", "2", "--H", "2", "--rounds", "1"]
    result = python(*arguments)
    assert result.returncode == 2
    assert result.stderr.endswith("cannot write /dev/full: No space left on device\n")
    assert "Traceback" not in result.stderr
    assert "it is not a regular file" in failure(capsys, "train", "text", book, "-o", "/dev/full")


@pytest.mark.skipif(sys.platform == "win32", reason="of the shell of POSIX")
def test_output_that_is_closed():
    environment = {**os.environ, "PYTHONPATH": str(Path(rnnfast.__file__).parents[1])}
    for closing in (">&-", ">&- 2>&-"):
        result = subprocess.run(
            f"{shlex.quote(sys.executable)} -P -m rnnfast info {closing}",
            shell=True,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 2
        assert result.stderr in (
            "python -m rnnfast: standard output is closed: open it, or redirect it to a file\n",
            "",
        )
