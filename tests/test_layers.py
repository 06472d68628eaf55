"""Who may import whom (the plan in docs/internals/layers.md): no truth leaks into an attack, no room looks back up."""

import ast
from pathlib import Path

import inversefed

ROOT = Path(inversefed.__file__).parent
GROUND = {"types", "findings", "errors", "numerics", "seeds", "thresholds", "inputs"}
MAY = {
    "errors": set(),
    "findings": set(),
    "types": {"findings", "errors"},
    "numerics": {"types", "errors"},
    "seeds": set(),
    "inputs": {"types", "findings", "errors"},
    "thresholds": set(),
    "fl": GROUND,
    "networks": GROUND | {"fl"},
    "updates": GROUND | {"fl", "networks"},
    "attacks": GROUND | {"fl", "networks"},
    "controls": GROUND | {"fl", "attacks"},
    "evaluation": GROUND,
    "report": GROUND | {"evaluation"},
    "assessment": GROUND | {"fl", "attacks", "controls", "evaluation", "report"},
    "arguments": GROUND | {"fl", "attacks", "evaluation"},
    "bounded": GROUND | {"fl", "evaluation"},
    "records": GROUND | {"fl", "attacks", "evaluation"},
    "scenario": GROUND | {"fl", "attacks", "report", "specs"},
    "pipeline": GROUND
    | {"arguments", "bounded", "fl", "attacks", "controls", "evaluation", "report", "scenario"}
    | {"assessment", "records", "rehearsed"},
    "rehearsed": GROUND
    | {"arguments", "assessment", "attacks", "controls", "evaluation", "fl", "scenario"}
    | {"rehearsal_cache", "report", "specs"},
    "rehearsal_cache": GROUND | {"evaluation"},
    "specs": GROUND | {"fl", "attacks", "updates", "zoo"},
    "zoo": GROUND,
    "frontier": GROUND | {"bounded", "fl", "attacks", "evaluation", "report", "assessment"},
    "experiments": GROUND
    | {"fl", "attacks", "evaluation", "report", "scenario", "specs", "pipeline", "zoo", "frontier"},
    "integrations": GROUND
    | {"fl", "networks", "updates", "attacks", "evaluation", "report", "specs", "scenario", "pipeline"}
    | {"experiments", "zoo"},
    "cli": GROUND
    | {"fl", "updates", "attacks", "controls", "evaluation", "report", "zoo", "specs"}
    | {"scenario", "pipeline", "frontier", "experiments", "integrations"},
    "compat": GROUND | {"fl", "attacks", "evaluation", "report", "zoo", "pipeline"},
    "__main__": {"cli"},
    "__init__": set(),
}
"""Rooms, and the rooms that each may import."""
OLD_HOMES = {"fl/updates.py", "fl/diagnosis.py"}
"""Import paths that scripts in use name; each only hands on the names of `updates`."""

PIECES = {"head", "labels", "pieces"}
ATTACKS_MAY = {
    "head": set(),
    "pieces": set(),
    "matching_error": {"pieces"},
    "labels": {"head", "matching_error"},
    "simulations": {"head"},
    "search": PIECES | {"simulations"},
    "membership_scores": set(),
    "constant_color": {"matching_error", "pieces", "search"},
    "exact": PIECES | {"matching_error", "search"},
    "identifiability": {"exact", "head"},
    "unknown_client": {"head"},
    "adaptive": {"pieces", "search", "simulations"},
    "rules": {"head", "identifiability", "search", "simulations"},
    "auto": {"adaptive", "constant_color", "identifiability", "matching_error", "rules", "search", "unknown_client"},
    "recipes": PIECES | {"auto", "exact", "rules", "search", "simulations"},
    "portfolio": {"auto", "pieces", "recipes", "search"},
    "shown": {"adaptive", "auto", "portfolio", "recipes", "search", "simulations"},
}
"""Inside `attacks`."""
PIECES_MAY = {
    "objectives": {"tensor_weights"},
    "selection": {"priors", "registration"},
    "group_consistency": {"registration"},
    "priors": {"denoisers"},
    "projections": {"denoisers"},
}
"""Inside `attacks.pieces`: pieces do not know each other, but for the parts that are their defaults."""


def imports(file: Path) -> set[tuple[str, ...]]:
    """All `inversefed.x.y` that a file imports, as paths."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "inversefed":
            path = tuple(node.module.split(".")[1:])
            found |= {(*path, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {tuple(a.name.split(".")[1:]) for a in node.names if a.name.startswith("inversefed.")}
    return found


def named(file: Path, below: Path) -> str:
    return file.relative_to(below).parts[0].removesuffix(".py")


def test_rooms_import_only_what_the_plan_allows() -> None:
    for file in ROOT.rglob("*.py"):
        if str(file.relative_to(ROOT)) not in OLD_HOMES:
            room = named(file, ROOT)
            for path in imports(file):
                assert path[0] == room or path[0] in MAY[room], f"{file.relative_to(ROOT)} imports {'.'.join(path)}"


def test_the_plans_have_no_circle() -> None:
    for plan in (MAY, ATTACKS_MAY, PIECES_MAY):
        open_rooms = dict(plan)
        while open_rooms:
            free = {room for room, seen in open_rooms.items() if not seen & open_rooms.keys()}
            assert free, f"these rooms import each other: {sorted(open_rooms)}"
            open_rooms = {room: seen for room, seen in open_rooms.items() if room not in free}


def test_the_rooms_of_attacks_import_only_what_the_plan_allows() -> None:
    below = ROOT / "attacks"
    for plan, home in ((ATTACKS_MAY, below), (PIECES_MAY, below / "pieces")):
        rooms = {named(file, home) for file in home.rglob("*.py")} - {"__init__"}
        for file in home.rglob("*.py"):
            room = named(file, home)
            for path in imports(file):
                inner = path[len(home.relative_to(ROOT).parts) :]
                if path[: len(path) - len(inner)] == home.relative_to(ROOT).parts and inner and inner[0] in rooms:
                    allowed = plan.get(room, set()) | {room}
                    assert inner[0] in allowed, f"{file.relative_to(ROOT)} imports {'.'.join(path)}"


def test_old_homes_only_hand_on() -> None:
    for name in OLD_HOMES:
        body = ast.parse((ROOT / name).read_text()).body
        assert all(isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign) for node in body), name


def test_only_the_zoo_imports_torchvision_and_scikit_image() -> None:
    for file in ROOT.rglob("*.py"):
        if file.relative_to(ROOT).parts[0] == "zoo":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            assert not any(name.split(".")[0] in {"torchvision", "skimage"} for name in names), file
