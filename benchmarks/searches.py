"""Searches of several papers on the same pictures with the same number of steps: `python -m benchmarks.searches`.

Prints PSNR in dB for each of the first bundled photographs at 32x32, in order, through an untrained LeNetZhu, with the
best constant color beside it.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks import record
from inversefed import GradientInversion, ThreatModel, recipes
from inversefed.attacks.pieces import priors, projections
from inversefed.evaluation.metrics import peak_signal_noise_ratio
from inversefed.fl.simulate import observed
from inversefed.zoo import networks, pictures


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare searches of several papers on the same pictures."""

    steps: int = 300
    """Of each search."""
    pictures: int = 3
    """How many of the bundled photographs, in order."""


def attacks(steps: int) -> dict[str, GradientInversion]:
    """The searches that are compared."""
    geiping = recipes.geiping(1, steps)
    return {
        "geiping": geiping,
        "modern": recipes.modern(1, steps),
        "tag": recipes.tag(1, steps),
        "gradinversion, 2 restarts": recipes.gradinversion(2, steps),
        "deep_prior": recipes.deep_prior(1, steps),
        "geiping, DenoiserPrior(0.1) for the prior": replace(geiping, priors=(priors.DenoiserPrior(weight=0.1),)),
        "geiping, DenoiserStep() for the prior": replace(
            geiping, priors=(), projections=(projections.Box(), projections.DenoiserStep())
        ),
    }


def decibels(found: Tensor, truth: Tensor) -> float:
    """PSNR of one picture."""
    return float(peak_signal_noise_ratio(found.clamp(0, 1), truth))


def run(options: Options, _command: str = "") -> int:
    """Run and print a table; 0 if all was measured."""
    torch.set_num_threads(1)
    names = pictures.photo_names()[: options.pictures]
    truths = [pictures.photo(name, (3, 32, 32))[None] for name in names]
    print("| search | " + " | ".join(names) + " | CPU s |\n|---|" + "---:|" * (len(names) + 1))
    colors = [decibels(truth.mean(dim=(2, 3), keepdim=True).expand_as(truth).contiguous(), truth) for truth in truths]
    print("| best constant color | " + " | ".join(f"{value:.1f}" for value in colors) + " | |")
    for name, attack in attacks(options.steps).items():
        began, scores = time.process_time(), []
        for truth in truths:
            module = networks.build("LeNetZhu", seed=0).eval()
            threat = ThreatModel(labels="known")
            seen, _ = observed(module, truth, torch.tensor([0]), mean=0.5, std=0.25, threat=threat)
            scores.append(decibels(attack(seen, torch.Generator().manual_seed(0)).images, truth))
        seconds = (time.process_time() - began) / len(truths)
        print(f"| {name} | " + " | ".join(f"{score:.1f}" for score in scores) + f" | {seconds:.0f} |", flush=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all was measured, 2 for wrong usage or input, 130 if interrupted."""
    return record.command("searches", Options, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
