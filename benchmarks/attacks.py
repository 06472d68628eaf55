"""Every attack in every setting: what each brings back, beside a gray picture.

python -m benchmarks.attacks --images FOLDER --attacks best,geiping --limit 3 --json OUT

Each row is the mean over `--limit` updates. Labels are hidden: the attack recovers them. Where an attack does not
apply, its row holds nulls and the reason. The file is written anew after each row, so nothing finished is lost.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

import inversefed
from benchmarks import pictures, record
from benchmarks.cases import chosen
from benchmarks.labels import right
from benchmarks.pictures import CLASSES, Example
from benchmarks.settings import SETTINGS, Setting
from inversefed.attacks import Attack
from inversefed.errors import InversefedError
from inversefed.report.model import Report
from inversefed.specs import registry
from inversefed.zoo import checkpoints, constants, networks

__all__ = ["Options", "Row", "main", "run"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure what every attack brings back in every setting, beside a gray picture."""

    images: Path | None = None
    """Folder of square pictures, PNG or JPEG, resized to 32x32, with labels from the last _N of their names; by default
    the photographs that ship with scikit-image."""
    attacks: str = "best,geiping"
    """Which attacks, with commas, as `inversefed list attacks` names them."""
    cases: str = ""
    """Which settings, with commas; all by default."""
    limit: int = 1
    """How many updates a setting; a batch takes consecutive pictures, starting again at the first."""
    network_seed: int = 0
    """Draws the networks' weights."""
    trained_weights: Path | None = None
    """Weights for the trained settings; the network is the one that the .json beside them names, else AllConv."""
    threads: int = 1
    """Threads of PyTorch."""
    time_budget: float | None = None
    """Seconds an attack may take for one update; by default until it ends."""
    json: Path | None = None
    """File for the figures."""


@dataclass(frozen=True)
class Row:
    """One attack in one setting, means over the updates; nulls and a reason where it does not apply.

    Args:
        attack: its name.
        case: the setting's name.
        psnr: decibels, higher is better.
        ssim: 1 for the same picture.
        label_accuracy: share of labels that are right, counted with multiplicity.
        seconds: an update.
        gray_psnr: of a gray picture.
        constant_psnr: of the best picture of one color, which is taken from the truth.
        updates: how many.
        per_update: the PSNR of each.
        reason: why there is nothing.
    """

    attack: str
    case: str
    psnr: float | None = None
    ssim: float | None = None
    label_accuracy: float | None = None
    seconds: float | None = None
    gray_psnr: float | None = None
    constant_psnr: float | None = None
    updates: int = 0
    per_update: tuple[float, ...] = ()
    reason: str | None = None


def run(options: Options, command: str = "") -> int:
    """Measure, print and write, row by row; 0 if all was measured.

    Raises:
        ConfigError: an unknown attack or case, or a number out of range.
        InputError: files that cannot be used.
    """
    settings = chosen(options.cases, SETTINGS) if options.cases else dict(SETTINGS)
    attacks = [name.strip() for name in options.attacks.split(",") if name.strip()]
    built = {name: registry.build("attack", name) for name in attacks}
    examples = pictures.read_folder(options.images) if options.images else pictures.bundled()
    pictures.first(examples, options.limit)
    torch.set_num_threads(options.threads)
    document: dict[str, Any] = {"command": command, "machine": record.machine(), "rows": []}
    _write(options.json, document)
    print("| case | attack | PSNR, dB | SSIM | labels right | seconds | gray, dB | best constant, dB |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for row in rows(options, settings, built, examples):
        document["rows"].append(asdict(row))
        _write(options.json, document)
        print(shown(row), flush=True)
    return 0


def rows(
    options: Options, settings: dict[str, Setting], attacks: dict[str, Attack], examples: Sequence[Example]
) -> Iterator[Row]:
    """Each setting, attack by attack."""
    for case, setting in settings.items():
        if setting.trained and options.trained_weights is None:
            yield from (Row(name, case, reason="skipped: no --trained-weights") for name in attacks)
            continue
        module, setting = network(setting, options)
        for name, attack in attacks.items():
            iterations = setting.iterations if name == "geiping" else None
            yield measured(name, case, setting, module, attack, iterations, examples, options)


def network(setting: Setting, options: Options) -> tuple[nn.Module, Setting]:
    """The network in its mode, and the setting with its name."""
    if setting.trained and options.trained_weights is not None:
        setting = replace(setting, network=named_beside(options.trained_weights) or setting.network)
    module = networks.build(setting.network, num_classes=CLASSES, seed=options.network_seed)
    if setting.trained and options.trained_weights is not None:
        module = checkpoints.load_weights(module, options.trained_weights)
    return module.train(setting.train_mode), setting


def named_beside(weights: Path) -> str | None:
    """The network that the settings beside a file of weights name, if they do."""
    try:
        return str(json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))["network"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def measured(
    name: str,
    case: str,
    setting: Setting,
    module: nn.Module,
    attack: Attack,
    iterations: int | None,
    examples: Sequence[Example],
    options: Options,
) -> Row:
    """Audit the setting's updates one after the other; what one refuses is refused for all."""
    reports: list[Report] = []
    for number in range(options.limit):
        batch = setting.batch(examples, number)
        try:
            reports.append(
                inversefed.audit(
                    module,
                    batch.images,
                    batch.labels,
                    mean=constants.cifar10_mean,
                    std=constants.cifar10_std,
                    client=setting.client,
                    attack=attack,
                    seed=number,
                    max_iterations=iterations,
                    time_budget=options.time_budget,
                    nulls=0,
                )
            )
        except InversefedError as error:
            return Row(name, case, reason=str(error))
    return averaged(name, case, reports)


def averaged(name: str, case: str, reports: Sequence[Report]) -> Row:
    """The means of the reports' scores."""

    def mean(metric: str, of: str | None = None) -> float:
        parts = [report.scores if of is None else report.baselines[of] for report in reports]
        return fmean(float(part[metric].mean()) for part in parts)

    decibels = "peak_signal_noise_ratio"
    return Row(
        name,
        case,
        psnr=mean(decibels),
        ssim=mean("structural_similarity"),
        label_accuracy=fmean(matching(report) for report in reports),
        seconds=fmean(report.seconds for report in reports),
        gray_psnr=mean(decibels, "gray"),
        constant_psnr=mean(decibels, "constant"),
        updates=len(reports),
        per_update=tuple(float(report.scores[decibels].mean()) for report in reports),
    )


def matching(report: Report) -> float:
    """Share of the labels that were recovered, whichever picture they were given to."""
    assert report.truth is not None
    return right(report.reconstruction.labels, report.truth.labels)


def shown(row: Row) -> str:
    """A line of the table."""
    if row.psnr is None or row.ssim is None or row.label_accuracy is None:
        return f"| {row.case} | {row.attack} | | | | | | {row.reason} |"
    cells = [f"{row.psnr:.1f}", f"{row.ssim:.2f}", f"{row.label_accuracy:.0%}", f"{row.seconds:.1f}"]
    return f"| {row.case} | {row.attack} | {' | '.join(cells)} | {row.gray_psnr:.1f} | {row.constant_psnr:.1f} |"


def _write(path: Path | None, document: dict[str, Any]) -> None:
    if path is not None:
        record.write(path, document)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all was measured, 2 for wrong usage or input, 130 if interrupted."""
    return record.command("attacks", Options, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
