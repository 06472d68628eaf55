"""Who may import whom (the house's plan): no truth can leak into an attack."""

import ast
from pathlib import Path

import inversefed

ROOT = Path(inversefed.__file__).parent
GROUND = {"types", "errors"}
MAY = {
    "types": {"errors"},
    "errors": set(),
    "fl": GROUND,
    "attacks": GROUND | {"fl"},
    "evaluation": GROUND,
    "zoo": GROUND,
    "frontier": GROUND | {"fl", "attacks", "evaluation", "trials", "pipeline"},
    "cli": GROUND | {"fl", "attacks", "evaluation", "zoo", "pipeline", "frontier"},
    "trials": GROUND | {"fl", "attacks", "evaluation"},
    "pipeline": GROUND | {"fl", "attacks", "evaluation", "trials"},
    "compat": GROUND | {"fl", "attacks", "evaluation", "zoo", "pipeline"},
    "__main__": {"cli"},
    "__init__": set(),
}
ATTACK_PIECES_MAY = {
    "objectives": {"layers"},
    "selection": {"priors", "registration"},
    "consistency": {"registration"},
    "priors": {"denoisers"},
    "projections": {"denoisers"},
    "minimize": {"optimizers"},
    "evaluate": {"minimize", "precision", "problem"},
    "restarts": {"checkpoint", "minimize", "pruning"},
    "problem": {"labels", "objectives", "separate", "simulations"},
    "separate": {"head_equations", "head_order", "labels"},
    "head_equations": {"labels"},
    "head_order": {"head_equations"},
    "simulations": {"separate"},
    "blind": {"inversion", "pruning"},
    "choice": {"adaptive", "constant_color", "equations", "inversion", "pace", "problem", "separate", "simulations"},
    "constant_color": {"evaluate", "objectives", "problem"},
    "pace": {"inversion", "pruning", "restarts", "schedules"},
    "inversion": None,
    "adaptive": None,
    "recipes": None,
    "exact": None,
    "identify": {"equations", "exact", "hidden"},
    "hidden": {"equations"},
}
"""Inside `attacks` pieces do not know each other, but for the parts that are their defaults; None: all of them."""


def imports(file: Path) -> set[tuple[str, ...]]:
    """All `inversefed.x.y` that a file imports, as paths."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "inversefed":
            path = tuple(node.module.split(".")[1:])
            found |= {(*path, alias.name) for alias in node.names} if len(path) < 2 else {path}
        elif isinstance(node, ast.Import):
            found |= {tuple(a.name.split(".")[1:]) for a in node.names if a.name.startswith("inversefed.")}
    return found


def test_rooms_import_only_what_the_plan_allows() -> None:
    for file in ROOT.rglob("*.py"):
        room = file.relative_to(ROOT).parts[0].removesuffix(".py")
        for path in imports(file):
            assert path[0] == room or path[0] in MAY[room], f"{file.relative_to(ROOT)} imports {'.'.join(path)}"


def test_pieces_of_an_attack_do_not_know_each_other() -> None:
    pieces = {path.stem for path in (ROOT / "attacks").glob("*.py")} | {"exact", "labels", "simulations"}
    for file in (ROOT / "attacks").rglob("*.py"):
        piece = file.relative_to(ROOT / "attacks").parts[0].removesuffix(".py")
        allowed = ATTACK_PIECES_MAY.get(piece, set())
        for path in imports(file):
            if path[0] == "attacks" and len(path) > 1 and path[1] in pieces and allowed is not None:
                assert path[1] in allowed | {piece}, f"{file.relative_to(ROOT)} imports {'.'.join(path)}"


def test_only_the_zoo_imports_torchvision_and_scikit_image() -> None:
    for file in ROOT.rglob("*.py"):
        if file.relative_to(ROOT).parts[0] == "zoo":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            assert not any(name.split(".")[0] in {"torchvision", "skimage"} for name in names), file
