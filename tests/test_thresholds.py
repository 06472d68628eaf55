"""What a verdict rests on is decided in one place, with a reason each."""

import ast
import math
from itertools import pairwise
from pathlib import Path

import inversefed
from inversefed import thresholds
from inversefed.evaluation import align

ROOT = Path(inversefed.__file__).parent


def assigned(file: Path) -> dict[str, object]:
    """Names of a module that are bound to a literal, and the number it is."""
    found = {}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.Tuple):
            for target in node.targets:
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
                pairs = zip(names, values, strict=False)
                found |= {n.id: v.value for n, v in pairs if isinstance(n, ast.Name) and isinstance(v, ast.Constant)}
    return found


def test_every_threshold_has_a_reason_and_no_other_module_binds_its_name() -> None:
    body = ast.parse((ROOT / "thresholds.py").read_text()).body
    reasoned = {
        node.targets[0].id
        for node, after in pairwise(body)
        if isinstance(node, ast.Assign) and isinstance(after, ast.Expr) and isinstance(node.targets[0], ast.Name)
    }
    assert set(thresholds.__all__) == reasoned
    for file in ROOT.rglob("*.py"):
        if file.name != "thresholds.py":
            own = {name for name in assigned(file) if name.lstrip("_") in thresholds.__all__}
            assert not own & set(thresholds.__all__), f"{file.relative_to(ROOT)} has its own {sorted(own)}"


def test_decibels_in_judgement_rooms_are_bound_here_alone() -> None:
    for room in ("evaluation", "report", "frontier", "controls"):
        for file in (ROOT / room).rglob("*.py"):
            assert not [name for name in assigned(file) if name.endswith("_DB")], file


def test_thresholds_agree_with_each_other_and_with_the_pairing() -> None:
    assert -10 * math.log10(thresholds.OPEN) == thresholds.EXACT_DB
    assert 1 / (thresholds.NULLS + 1) == 0.05
    assert math.isclose(-10 * math.log10(align._LEAST), thresholds.IDENTICAL_DB)
    assert thresholds.LEAST_DB < thresholds.PARTLY_DB < thresholds.CLEARLY_DB < thresholds.EXACT_DB
    assert thresholds.EXACT_DB < thresholds.SATURATED_DB < thresholds.IDENTICAL_DB
