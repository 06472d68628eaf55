"""Tables by name: those of scikit-learn that ship with it, and files."""

from collections.abc import Mapping
from pathlib import Path

from inversefed.errors import InputError, unknown_name
from inversefed.inputs import Table
from inversefed.inputs.table_file import Kind
from inversefed.specs.sources import BUNDLED

__all__ = ["NAMES", "load_table"]

NAMES = ("breast_cancer", "diabetes", "iris", "wine")
"""The tables of scikit-learn; the target of each is the column `target`."""


def load_table(source: str | Path, target: str | None = None, kinds: Mapping[str, Kind] | None = None) -> Table:
    """Read a table.

    Args:
        source: a CSV file with a header, a Parquet file, or `sklearn:` and one of `NAMES`.
        target: the column that the network is to tell; of scikit-learn's tables `None` for `target`.
        kinds: by column name, what a column is, instead of what is inferred.

    Raises:
        ConfigError: no such name, or no such kind of column.
        InputError: a file that cannot be used, or scikit-learn is not installed.
    """
    name = str(source).removeprefix(BUNDLED)
    if name == str(source):
        return Table.of(source, target, kinds)
    if name not in NAMES:
        raise unknown_name("table of scikit-learn's", name, NAMES)
    try:
        from sklearn import datasets
    except ImportError as error:
        raise InputError(
            f"{source} is a table of scikit-learn's, which is not installed: pip install 'inversefed[tables]'; or name "
            "a file"
        ) from error
    held = getattr(datasets, f"load_{name}")()
    targets = held.target if name == "diabetes" else [str(held.target_names[place]) for place in held.target]
    rows = [
        {**dict(zip(map(str, held.feature_names), row, strict=True)), "target": each}
        for row, each in zip(held.data.tolist(), targets, strict=True)
    ]
    return Table.of(rows, target or "target", kinds)
