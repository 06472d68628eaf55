"""The notebooks run from top to bottom, shortly; what is committed of each comes from a full run."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 400_000
"""Bytes of a committed notebook."""

SHORT = {
    "cifar100-hundred": {"iterations": 2},
    "local-steps": {"iterations": 2, "default_iterations": 2},
    "recover-a-picture": {"iterations": 3, "default_iterations": 3},
    "resnets-at-224": {"iterations_18": 1, "iterations_152": 1, "side": 32},
    "several-pictures": {"iterations": 3, "default_iterations": 3},
    "my-update-from-flower": {"iterations": 2, "side": 16},
    "defense-and-adaptive-attack": {"iterations": 2, "side": 8},
    "limit-and-rehearsal": {"iterations": 2, "stand_ins": 1},
    "text": {"words_at_most": 9, "noises": (1e-3,)},
    "table": {"wines": 4, "people": 4},
}
"""What replaces the budget of each notebook's first code cell, its `parameters`."""

SLOW = frozenset(
    {
        "cifar100-hundred",
        "defense-and-adaptive-attack",
        "limit-and-rehearsal",
        "local-steps",
        "my-update-from-flower",
        "resnets-at-224",
    }
)
"""Those whose short run takes long too."""

HOMES = ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR")
"""Where Jupyter and Matplotlib look for the user's settings: in the tests, in an empty folder."""


def read(path: Path) -> NotebookNode:
    """A notebook, valid by its published schema."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in code(notebook) for output in cell.outputs]


def assigned(source: str) -> set[str]:
    """The names that a cell sets, each by a plain assignment."""
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
    assert all(line.split(" = ")[0].isidentifier() for line in lines), source
    return {line.split(" = ")[0] for line in lines}


def is_complaint(output: NotebookNode) -> bool:
    return output.output_type == "error" or output.get("name") == "stderr"


@pytest.fixture
def kernel() -> Iterator[AsyncKernelManager]:
    """A process of its own for a notebook, which finds nothing of the user's."""
    with tempfile.TemporaryDirectory(prefix="nb") as folder, pytest.MonkeyPatch.context() as patch:
        for name in HOMES:
            patch.setenv(name, folder)
        patch.setenv("OMP_NUM_THREADS", "1")
        manager = AsyncKernelManager(transport="ipc", connection_file=str(Path(folder, "kernel.json")))
        yield manager
        run_sync(manager.shutdown_kernel)(now=True)


def marked(path: Path) -> object:
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])


def test_each_notebook_has_a_short_budget() -> None:
    assert NOTEBOOKS and {path.stem for path in NOTEBOOKS} == SHORT.keys()
    assert SHORT.keys() >= SLOW


@pytest.mark.parametrize("path", [marked(path) for path in NOTEBOOKS])
def test_a_notebook_runs_to_its_end(path: Path, kernel: AsyncKernelManager, tmp_path: Path) -> None:
    notebook = read(path)
    budget = SHORT[path.stem]
    first = code(notebook)[0]
    assert first.metadata.get("tags") == ["parameters"] and budget.keys() <= assigned(first.source)
    first.source += "".join(f"\n{name} = {value!r}" for name, value in budget.items())
    for cell in code(notebook):
        cell.outputs, cell.execution_count = [], None

    client = NotebookClient(notebook, km=kernel, timeout=250, resources={"metadata": {"path": str(tmp_path)}})
    try:
        client.execute()
    finally:
        client.kc.stop_channels()

    assert all(cell.execution_count for cell in code(notebook))
    assert outputs(notebook) and not [output for output in outputs(notebook) if is_complaint(output)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_comes_from_one_full_run(path: Path) -> None:
    notebook = read(path)
    assert path.stat().st_size < LARGEST
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    shown = outputs(notebook)
    assert not [output for output in shown if is_complaint(output)]
    assert [output for output in shown if "image/png" in output.get("data", {})]
    assert "seconds" in shown[-1].text or " s on " in shown[-1].text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_page_of_the_documentation(path: Path) -> None:
    rooms = ROOT / "docs" / "notebooks"
    assert (rooms / path.name).resolve() == path.resolve()
    index = (rooms / "index.md").read_text(encoding="utf-8")
    assert f"\n{path.stem}\n" in index and f"<{path.stem}>`" in index
    head, _, rest = read(path).cells[0].source.partition("\n")
    assert head.startswith("# ") and "full run" in rest and "core" in rest
