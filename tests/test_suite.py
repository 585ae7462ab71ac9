"""The rules that the tests themselves keep."""

import ast
from itertools import combinations, product

import pytest
from support.cells import LAYERS
from support.processes import TESTS
from support.selection import cover

from rnnfast import functional, reference

MODULES = [path for folder in (".", "support", "fuzz") for path in (TESTS / folder).glob("*.py")]


def imports_of(path):
    """The full names of the modules that a module imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_modules_are_short_and_import_no_test_module(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 800
    assert not {path.stem for path in TESTS.glob("test_*.py")} & set(imports_of(path))


def test_every_cell_of_the_registry_has_equations_and_a_layer():
    assert reference._CELLS.keys() == functional.CELLS.keys()
    missing = functional.CELLS.keys() - LAYERS.keys()
    assert not missing, f"add to OPTIONS of tests/support/cells.py the layers of {missing}"


@pytest.mark.parametrize("strength", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", [(3,), (4, 2), (2, 3, 4), (5, 1, 3, 2), (2, 2, 2, 2, 2)])
def test_chosen_cases_have_every_combination_of_values(sizes, strength):
    cases = list(product(*map(range, sizes)))[:-1]
    chosen = cover(cases, strength)
    assert chosen == sorted(set(chosen))
    for columns in combinations(range(len(sizes)), min(strength, len(sizes))):
        every, some = (
            {tuple(case[i] for i in columns) for case in rows} for rows in (cases, [cases[i] for i in chosen])
        )
        assert some == every


def test_few_cases_are_chosen():
    cases = list(product(range(6), range(7), range(3), range(2), range(2), range(4)))
    assert len(cover(cases, 1)) == 7
    assert 6 * 7 <= len(cover(cases, 2)) < 50
    assert 6 * 7 * 4 <= len(cover(cases, 3)) < 200
