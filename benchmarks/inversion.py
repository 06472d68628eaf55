"""How fast and how well single pictures come back: `best()` beside the paper's recipe, in one process.

python -m benchmarks.inversion --images FOLDER --cases lenet,allconv --limit 3 --json OUT

Networks are untrained, in eval mode; one picture, its label known, its gradient computed by the client. For every case
the file holds what the reference reached in which time, what `best()` held at that time, and how much sooner it held as
much (`speedup`); beside it lies the plot. The file is written anew after each case, so nothing finished is lost.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import pictures, plot, record
from benchmarks.cases import CASES, Case, chosen
from benchmarks.measure import World, measure
from benchmarks.restarts import measure_restarts
from inversefed.errors import ConfigError

__all__ = ["Options", "main", "run"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure how fast and how well single pictures come back from their gradients, beside the paper's recipe."""

    json: Path
    """File for the figures; the plot goes beside it, as .png."""
    images: Path | None = None
    """Folder of square pictures, PNG or JPEG, resized to 32x32, with labels from the last _N of their names; by default
    the photographs that ship with scikit-image."""
    cases: str = ",".join(CASES)
    """Which cases, with commas."""
    limit: int | None = None
    """The first so many pictures, by name; all by default."""
    network_seed: int = 0
    """Draws the networks' weights."""
    threads: int = 1
    """Threads of PyTorch."""
    restarts: int = 0
    """Measure also what so many starts cost and bring; 0 for not."""


def run(options: Options, command: str = "", cases: Mapping[str, Case] = CASES) -> int:
    """Measure, and write after each case; 0 if all was measured.

    Args:
        options: what the command line says.
        command: the command line, for the file.
        cases: those that `options.cases` may name.

    Raises:
        ConfigError: an unknown case, or a number out of range.
        InputError: pictures that cannot be used, or a file that cannot be written.
    """
    _check(options)
    wanted = chosen(options.cases, cases)
    examples = pictures.read_folder(options.images) if options.images else pictures.bundled()
    examples = pictures.first(examples, options.limit)
    torch.set_num_threads(options.threads)
    document: dict[str, Any] = {"command": command, "machine": record.machine(), "cases": {}}
    _require_writable(options.json, document)
    for name, case in wanted.items():
        _tell(f"{name}: {case.network}, {len(examples)} pictures")
        figures = document["cases"][name] = measure(case, examples, options.network_seed, tell=_tell)
        _write(options.json, document)
        if options.restarts:
            world = World.of(case.network, options.network_seed, examples)
            figures["restarts"] = measure_restarts(world, options.restarts, tell=_tell)
            _write(options.json, document)
        _tell(_row(name, figures))
    return 0


def _check(options: Options) -> None:
    if options.json.suffix == ".png":
        raise ConfigError(f"--json names the file for the figures, and the plot goes beside it; got {options.json}")
    if options.threads < 1:
        raise ConfigError(f"--threads is at least 1; got {options.threads}")
    if options.restarts < 0 or options.restarts == 1:
        raise ConfigError(f"--restarts is a number of starts, at least 2, or 0 for none; got {options.restarts}")


def _require_writable(path: Path, document: Mapping[str, Any]) -> None:
    """Find out before hours are spent; a file that is there stays until the first case is done."""
    with record.refusing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.open("a").close()
        else:
            _write(path, document)


def _write(path: Path, document: Mapping[str, Any]) -> None:
    """The figures, and the plot beside them."""
    record.write(path, document)
    if document["cases"]:
        with record.refusing(path):
            plot.save(plot.draw(document["cases"]), path.with_suffix(".png"))


def _row(name: str, figures: Mapping[str, Any]) -> str:
    reached = figures["best_seconds_to_reference_psnr"]
    return (
        f"{name}: reference {figures['reference_psnr']:.2f} dB in {figures['reference_seconds']:.2f} s; best "
        f"{figures['best_psnr_at_reference_seconds']:.2f} dB by then, {figures['best_final_psnr']:.2f} dB after "
        f"{figures['best_final_seconds']:.2f} s; as good "
        + ("never" if reached is None else f"after {reached:.2f} s: {figures['speedup']:.1f} times as fast")
        + f" (gray {figures['gray_psnr']:.2f}, best constant {figures['constant_psnr']:.2f} dB)"
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all was measured, 2 for wrong usage or input, 130 if interrupted."""
    return record.command("inversion", Options, run, arguments, "what was finished is in the file of --json")


if __name__ == "__main__":
    sys.exit(main())
