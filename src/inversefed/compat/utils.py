"""Small services of the 2020 scripts: say where it runs, seed everything, append a row to a table."""

import csv
import datetime
import os
import random
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inversefed.errors import InputError

__all__ = ["folder", "save_to_table", "set_deterministic", "set_random_seed", "system_startup", "table_file"]


def system_startup(args: object = None, defs: object = None) -> dict[str, Any]:
    """Print the time, the machine and the settings, and choose a device.

    Args:
        args: printed, if given.
        defs: printed, if given.

    Returns:
        `device`, a GPU if there is one, and `dtype`, single precision: keywords of `torch.as_tensor` and `.to`.
    """
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    print("Currently evaluating -------------------------------:")
    print(f"{datetime.datetime.now():%A, %d. %B %Y %I:%M%p}")
    print(f"CPUs: {torch.get_num_threads()}, GPUs: {torch.cuda.device_count()} on {socket.gethostname()}.")
    for setting in (args, defs):
        if setting is not None:
            print(setting)
    if device.type == "cuda":
        print(f"GPU : {torch.cuda.get_device_name(device)}")
    return {"device": device, "dtype": torch.float}


def save_to_table(out_dir: str | os.PathLike[str], name: str, dryrun: bool, **kwargs: Any) -> None:
    """Append a row to `<out_dir>/table_<name>.csv`, tab-separated; a new table gets its header first.

    Args:
        out_dir: the folder, made if need be.
        name: which table.
        dryrun: say what would be written, and write nothing.
        **kwargs: the row, by column.

    Raises:
        InputError: the table is there and has other columns. It is never rewritten.
    """
    if dryrun:
        print(f"Would save results to {Path(out_dir) / f'table_{name}.csv'}.")
        print(f"Would save these keys: {list(kwargs)}.")
        return
    file = table_file(out_dir, name, list(kwargs))
    folder(file.parent)
    fresh = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(kwargs), delimiter="\t")
        if fresh:
            writer.writeheader()
        writer.writerow(kwargs)
    print(f"Results saved to {file}.")


def table_file(out_dir: str | os.PathLike[str], name: str, columns: Sequence[str]) -> Path:
    """Name the file of a table, and make sure that a row with these columns can go there.

    Raises:
        InputError: it is there and has other columns.
    """
    file = Path(out_dir).expanduser() / f"table_{name}.csv"
    if not file.exists():
        return file
    with file.open(newline="", encoding="utf-8") as stream:
        header = next(csv.reader(stream, delimiter="\t"), [])
    if header != list(columns):
        odd = sorted(set(header) ^ set(columns)) or ["their order"]
        raise InputError(
            f"{file} has {len(header)} other columns than the {len(columns)} of this row (they differ in "
            f"{', '.join(odd[:3])}); choose another name, or move the old table away"
        )
    return file


def folder(path: str | os.PathLike[str]) -> Path:
    """Return a folder that things can be written to; it is made if need be.

    Raises:
        InputError: it cannot be.
    """
    place = Path(path).expanduser()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{place} cannot be used as a folder ({error.strerror}); name another") from error
    if not os.access(place, os.W_OK):
        raise InputError(f"{place} may not be written to; name another folder")
    return place


def set_random_seed(seed: int = 233) -> None:
    """Seed every global generator, each with its own offset: torch + 1, CUDA + 2, + 3, + 5, numpy + 4, `random` + 6."""
    torch.manual_seed(seed + 1)
    torch.cuda.manual_seed(seed + 2)
    torch.cuda.manual_seed_all(seed + 3)
    np.random.seed(seed + 4)  # noqa: NPY002 - the global state is what this function is for
    torch.cuda.manual_seed_all(seed + 5)
    random.seed(seed + 6)


def set_deterministic() -> None:
    """Have cuDNN choose the same algorithms at every run."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
