"""The command line as a whole: help, options and version."""

import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.command_line import main
from support.processes import python

import rnnfast
from rnnfast import __main__


def commands_of(parser, words=()):
    """The words of every command, as --help lists them."""
    for action in parser._actions:
        if hasattr(action, "_name_parser_map"):
            for name, below in action._name_parser_map.items():
                yield from commands_of(below, (*words, name))
            return
    yield words


@pytest.mark.parametrize("words", list(commands_of(__main__.make_parser())))
def test_help_explains_a_command_with_examples_that_parse(words, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--help"])
    said = capsys.readouterr().out
    examples = said.partition("\nExamples:\n")[2].splitlines()
    assert any(line.startswith(f"  python -m rnnfast {' '.join(words)}") for line in examples)
    for line in examples:
        assert __main__.make_parser().parse_args(shlex.split(line.partition(" -m rnnfast ")[2])).run


def test_help_of_the_program_names_all_commands(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    said = capsys.readouterr().out
    for words in commands_of(__main__.make_parser()):
        assert f"\n    {words[0]} " in said


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"rnnfast {rnnfast.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["train"], "required: KIND"),
        (["train", "text", "x"], "required: -o/--output"),
        (["bench", "--H", "0"], "must be an integer of at least 1, not '0'"),
        (["bench", "--H", "1_000"], "must be an integer of at least 1, not '1_000'"),
        (["bench", "--cell", "elman"], "invalid choice: 'elman'"),
        (["train", "text", "x", "-o", "y", "--lr", "nan"], "must be a number greater than 0, not 'nan'"),
        (
            ["train", "csv", "x", "--column", "y", "-o", "z", "--seed", "9999999999"],
            "--seed: must be an integer from 0 to 4,294,967,295, not '9999999999'",
        ),
        (["sample", "x", "--seed", "-1"], "must be an integer of at least 0, not '-1'"),
    ],
)
def test_invalid_options(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_nothing_heavy_is_imported_before_it_is_used():
    heavy = "{'torch', 'onnx', 'onnxruntime', 'matplotlib', 'sklearn', 'pandas', 'tqdm'}"
    code = f"import sys, rnnfast.__main__ as m; m.make_parser(); print({heavy} & sys.modules.keys())"
    assert python(code=code).stdout == "set()\n"
    assert python(code="import sys, rnnfast; print('rnnfast.commands' in sys.modules)").stdout == "False\n"


@pytest.mark.parametrize(
    ("started_as", "name"),
    [
        ("/venv/bin/rnnfast", "rnnfast"),
        (r"C:\venv\Scripts\rnnfast.exe" if os.name == "nt" else "rnnfast.exe", "rnnfast"),
        ("/site-packages/rnnfast/__main__.py", "python -m rnnfast"),
    ],
)
def test_texts_name_the_program_as_it_was_started(started_as, name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [started_as])
    assert main(["sample", "missing.npz"]) == 2
    assert capsys.readouterr().err.startswith(f"{name}: cannot read missing.npz")
    with pytest.raises(SystemExit, match="0"):
        main(["sample", "--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: {name} sample ")
    assert f"\n  {name} sample book.npz\n" in said


def test_console_command_runs_main():
    [entry] = importlib.metadata.entry_points(group="console_scripts", name="rnnfast")
    assert entry.load() is main


AS_COMMAND = "import sys; sys.argv = ['/venv/bin/rnnfast', 'info']; from rnnfast.__main__ import main; sys.exit(main())"


@pytest.mark.parametrize("code", [None, AS_COMMAND])
def test_unusable_instruction_set_is_a_one_line_error(code):
    result = python(*(["info"] if code is None else []), code=code, RNNFAST_ISA="foo")
    assert result.returncode == 2
    name = "python -m rnnfast" if code is None else "rnnfast"
    [line] = result.stderr.splitlines()
    assert line.startswith(f"{name}: ")
    assert "'foo'" in line


def test_checkout_that_is_not_built_is_a_one_line_error(tmp_path):
    package = Path(rnnfast.__file__).parent
    shutil.copytree(package, tmp_path / "rnnfast", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    # -S: without the import hooks of an editable install, which would find the compiled extension elsewhere.
    path = os.pathsep.join([str(tmp_path), str(Path(np.__file__).parents[1])])
    result = subprocess.run(
        [sys.executable, "-S", "-m", "rnnfast", "info"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("python -m rnnfast: rnnfast is not built: ")
    assert "pip install -e ." in line
