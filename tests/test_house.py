"""How the house is written: what a piece may say of itself is declared, and a file's name says one thing."""

import ast
from collections import Counter
from pathlib import Path

import inversefed

ROOT = Path(inversefed.__file__).parent
ASKED = {
    ("cli/__init__.py", "verbose"): "a line that could not be read as a command has no options",
    ("fl/apart.py", "__dict__"): "of any object of the user's",
    ("fl/network.py", "_fields"): "tells a named tuple that a user's network returned",
    ("integrations/flower_protections.py", "__dict__"): "of any mod or strategy of the user's",
    ("integrations/flower_protections.py", "__name__"): "of any mod, which may be a function",
    ("networks/graph.py", "__name__"): "of any function that torch.fx traced",
    ("networks/layer_chain.py", "weight"): "of any module of the user's",
    ("arguments.py", "__name__"): "of anything that was given as an attack",
    ("specs/registry.py", "__name__"): "of a type, which may be a union",
    ("specs/sources.py", "__origin__"): "of a type, which may be generic",
    ("specs/written.py", "__dict__"): "of any object of the user's",
    ("updates/diagnosis/names_and_shapes.py", "shape"): "of what a file holds in a tensor's place",
    ("updates/files/opening.py", "O_CLOEXEC"): "of an operating system",
    ("updates/files/opening.py", "O_NONBLOCK"): "of an operating system",
}
"""Attributes that may be missing and are asked for by name, each of something that is not ours to declare."""

TWICE = {
    "columns": "the file of `inputs` is the space of a table's rows; that of `labels` reads columns of a gradient",
    "controls": "the room makes control runs; the file of `evaluation` holds the pictures that control scores",
    "diagnosis": "the folder of `updates`, and its earlier home",
    "frontier": "the room measures a sweep; the file of `report` is its rows there",
    "gate": "the file of `cli` is the command of the one in `report`",
    "networks": "the room reads any network; the folder of `zoo` holds those that come with the package",
    "serve": "the file of `cli` is the command of the folder in `experiments`",
    "purge": "the file of `cli` is the command of the one in `report`",
    "text": "the folder of `attacks.exact` reads sentences; the file of `report` writes on the terminal",
    "updates": "the room, and its earlier home",
}
"""Names of several files or folders, and how the folder that they are in tells which is meant.

`compat` speaks the dialect of 2020 and has names of its own.
"""


def asked(file: Path) -> set[str]:
    """The names that a file asks for by `getattr` or `hasattr`, as far as they stand there as text."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant):
                found.add(str(name.value))
    return found


def test_no_interface_but_those_that_are_declared() -> None:
    files = [file for file in ROOT.rglob("*.py") if file.relative_to(ROOT).parts[0] != "compat"]
    found = {(str(file.relative_to(ROOT)), name) for file in files for name in asked(file)}
    new, gone = found - ASKED.keys(), ASKED.keys() - found
    assert not new, f"declare a Protocol, and read it by isinstance: {sorted(new)}"
    assert not gone, f"these are asked no longer: {sorted(gone)}"


def test_a_file_s_name_is_used_once() -> None:
    files = [file for file in ROOT.rglob("*.py") if file.relative_to(ROOT).parts[0] != "compat"]
    folders = {file.parent for file in files} - {ROOT}
    names = Counter([*(file.stem for file in files if file.stem != "__init__"), *(each.name for each in folders)])
    twice = {name for name, number in names.items() if number > 1}
    assert not twice - TWICE.keys(), f"say in the name what is in it: {sorted(twice - TWICE.keys())}"
    assert not TWICE.keys() - twice, f"these are used once: {sorted(TWICE.keys() - twice)}"
