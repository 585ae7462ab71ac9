"""The definitions in csrc/ that a program needs to compute steps in plain C, without vectors and in float32.

`Sources` holds the C sources in which the conditions of the preprocessor are decided for LANES 1 and REAL_BITS 32, as
the instruction set "scalar" is compiled. `select` returns some of their definitions, with those that they need in turn.
A wheel holds what all cells need, in the file `BUNDLE`, which setup.py writes with this module; a checkout has csrc/.

This module imports nothing of rnnfast, because setup.py runs it before there is a package.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["BUNDLE", "Sources", "Stage"]

BUNDLE = "portable.h"
# In the order in which they are included.
FILES = (
    "rnnfast.h",
    "simd.h",
    "view.h",
    "activations.h",
    "cell.h",
    "elementwise_cells.h",
    "generic_cells.h",
    "cells.h",
    "standalone.h",
)
KNOWN = {"LANES": 1, "REAL_BITS": 32, "HAS_MASKS": 0}
COMPILERS = ("__GNUC__", "__clang__")  # conditions on them are kept; all other macros are undefined
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


class Stage(NamedTuple):
    """A stage of a cell's step, as in csrc/cell.h; `forward` names the pointwise function."""

    from_aux: bool
    first: int
    columns: int  # `count` in C
    forward: str | None


class Definition(NamedTuple):
    text: str  # with the comments and the blank line above it
    names: frozenset[str]
    needs: frozenset[str]


class Sources:
    """The definitions of the C sources in a folder: csrc/, or one with a bundle."""

    def __init__(self, folder: Path) -> None:
        bundle = folder / BUNDLE
        paths = [bundle] if bundle.is_file() else [folder / name for name in FILES]
        self._definitions: list[Definition] = []
        for path in paths:
            text = path.read_text(encoding="utf-8")
            text = re.sub(r",\s+\.(backward|add_extra_terms) = \w+", "", text)
            self._definitions += _definitions(_decided(text.splitlines()))

    def select(self, names: Iterable[str]) -> str:
        """Return the definitions of `names` and all that they need, in the order of the sources."""
        needed, known = set(names), 0
        while known != len(needed):
            known = len(needed)
            needed.update(*(one.needs for one in self._definitions if one.names & needed))
        chosen = "\n".join(one.text for one in self._definitions if one.names & needed)
        return re.sub(r"\n{3,}", "\n\n", chosen).strip() + "\n"

    def bundle(self) -> str:
        """Return what all cells need, and their registry."""
        everything = {
            "cells",
            "sigmoid",
            "hyperbolic_tangent",
            "relu",
            "add_product",
            "add_bfloat16_product",
            "add_int8_product",
        }
        return f"/* The parts of csrc/ that rnnfast.export uses. */\n#pragma once\n\n{self.select(everything)}"

    def cell(self, name: str) -> tuple[list[int], list[int], list[Stage]]:
        """Return ih, hh and the stages of a cell, from its entry in the registry (csrc/cells.h)."""
        [registry] = [one.text for one in self._definitions if "cells" in one.names]
        [entry] = [one for one in registry.split("[RNNFAST_") if f'.name = "{name}"' in one]
        ih, hh = ([int(gate) for gate in _member(entry, of).split(",")] for of in ("ih", "hh"))
        stages = []
        for text in re.findall(r"\{([^{}]*)\}", entry.partition(".stage = ")[2]):
            values: dict[str, Any] = dict(re.findall(r"\.(\w+) = (\w+)", text))
            from_aux, first, columns = (int(values.get(member, 0)) for member in ("from_aux", "first", "count"))
            stages.append(Stage(bool(from_aux), first, columns, values.get("forward")))
        return ih, hh, stages


def _member(entry: str, name: str) -> str:
    [value] = re.findall(rf"\.{name} = \{{([^}}]*)\}}", entry)
    return str(value)


def _decided(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines that remain when the conditions are decided."""
    conditions: list[tuple[bool | None, bool]] = []  # of each level: the branch holds (None: kept), one has held before
    for line in lines:
        word, _, expression = line.partition(" ")
        active = all(holds is not False for holds, _ in conditions)
        if word in ("#if", "#ifdef", "#ifndef"):
            value = _holds(word, expression) if active else False
            conditions.append((value, value is True))
        elif word in ("#elif", "#else") and conditions[-1][0] is not None:
            held = conditions.pop()[1]
            outside = all(holds is not False for holds, _ in conditions)
            value = outside and not held and (word == "#else" or bool(_holds(word, expression)))
            conditions.append((value, held or value))
            continue
        elif word == "#endif":
            if conditions.pop()[0] is not None:
                continue
        elif not active:
            continue
        if word.startswith("#if") and conditions[-1][0] is not None:
            continue
        if all(holds is not False for holds, _ in conditions):
            yield line


def _holds(word: str, expression: str) -> bool | None:
    """Decide a condition; None if it is about the compiler."""
    expression = COMMENT.sub("", expression)
    if any(name in expression for name in COMPILERS):
        return None
    if word != "#if" and word != "#elif":
        return (expression.strip() in KNOWN) == (word == "#ifdef")
    expression = re.sub(r"defined\((\w+)\)", lambda match: str(match[1] in KNOWN), expression)
    expression = expression.replace("&&", " and ").replace("||", " or ").replace("!", " not ").replace(" not =", "!=")
    return bool(eval(expression, {"__builtins__": {}}, KNOWN))


def _definitions(lines: Iterable[str]) -> Iterator[Definition]:
    """Split lines into definitions at the top level."""
    pending: list[str] = []
    for line in lines:
        if line.startswith(("#include", "#pragma once", "#undef")):
            pending = []
            continue
        pending.append(line)
        text = "\n".join(pending)
        code = COMMENT.sub("", text).strip()
        if not code or "/*" in code or not _is_complete(code):
            continue
        yield Definition(text.rstrip(), frozenset(_names(code)), frozenset(re.findall(r"[A-Za-z_]\w*", code)))
        pending = []


def _is_complete(code: str) -> bool:
    if code.startswith("#if"):
        return len(re.findall(r"^#if", code, re.MULTILINE)) == len(re.findall(r"^#endif", code, re.MULTILINE))
    if code.startswith("#"):
        return not code.endswith("\\")
    return code.endswith((";", "}")) and all(code.count(one) == code.count(other) for one, other in ("()", "{}"))


def _names(code: str) -> list[str]:
    """Return the names that a definition declares."""
    if code.startswith("#"):
        return re.findall(r"^#define (\w+)", code, re.MULTILINE)
    code = re.sub(r"__attribute__\(\(.*?\)\)\)?", "", code)
    names = []
    if re.match(r"(typedef )?enum", code):
        names += re.findall(r"(\w+)\s*(?:=[^,}]*)?[,}]", code.partition("{")[2])
    if code.startswith("typedef"):
        return names + re.findall(r"(\w+)\s*(?:\([^()]*\))?\s*;$", code)
    return names or re.findall(r"(\w+)[\[(]", code)[:1]
