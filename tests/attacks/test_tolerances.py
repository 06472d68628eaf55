"""The numbers that exact methods decide by: one frozen value a method, with a reason for each, and none between."""

import ast
import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from inversefed.attacks import exact

FILES = sorted(Path(exact.__file__).parent.rglob("*.py"))
HELD = [file for file in FILES if "class Tolerances" in file.read_text()]
PLAIN = (0.0, 1.0, 0.5, 2.0)
"""Figures that are arithmetic: nothing, the whole and the half."""


def module_of(file: Path) -> str:
    return ".".join(["inversefed.attacks.exact", *file.relative_to(FILES[0].parent).with_suffix("").parts])


@pytest.mark.parametrize("file", HELD, ids=lambda file: file.stem)
def test_each_number_has_a_reason_and_none_stands_beside(file: Path) -> None:
    tolerances = importlib.import_module(module_of(file)).TOLERANCES
    with pytest.raises(dataclasses.FrozenInstanceError):
        tolerances.none = 1.0
    reasons = dict(re.findall(r"^ {8}(\w+): (.+)", type(tolerances).__doc__ or "", re.MULTILINE))
    assert reasons.keys() == {field.name for field in dataclasses.fields(tolerances)}
    assert all(len(reason) > 15 for reason in reasons.values())
    functions = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]
    figures = [each for node in functions for part in node.body for each in ast.walk(part)]
    found = {each.value for each in figures if isinstance(each, ast.Constant) and isinstance(each.value, float)}
    assert not [each for each in found if each not in PLAIN], file.stem


def test_most_methods_have_theirs() -> None:
    assert len(HELD) >= 15
