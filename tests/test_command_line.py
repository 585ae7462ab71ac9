"""The command line as a whole: help, options and the output."""

import shlex

import pytest
from support.command_line import main
from support.processes import python

import rnnfast
from rnnfast import __main__


def commands_of(parser, words=()):
    """The words of all commands, found as a reader of --help finds them."""
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
        (["sample", "x", "--seed", "-1"], "must be an integer of at least 0, not '-1'"),
    ],
)
def test_options_that_cannot_be(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_nothing_heavy_is_imported_before_it_is_used():
    heavy = "{'torch', 'onnx', 'onnxruntime', 'matplotlib', 'sklearn', 'pandas', 'tqdm'}"
    code = f"import sys, rnnfast.__main__ as m; m.make_parser(); print({heavy} & sys.modules.keys())"
    assert python(code=code).stdout == "set()\n"
    assert python(code="import sys, rnnfast; print('rnnfast.commands' in sys.modules)").stdout == "False\n"
