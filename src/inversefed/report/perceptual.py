"""A report's images and controls scored by a perceptual distance as well, whose weights the user brings."""

from dataclasses import replace

from inversefed.evaluation.controls import guesses
from inversefed.evaluation.lpips import METRIC, Perceptual
from inversefed.evaluation.metrics import learned_perceptual_image_patch_similarity
from inversefed.report.model import Report
from inversefed.types import Images, Scores

__all__ = ["judged"]


def judged(report: Report, perceptual: Perceptual) -> Report:
    """The report with its pictures and its controls scored by this distance as well, and the weights named in it.

    Args:
        report: what is scored; one without a truth, or with pictures that the network does not take, only says so.
        perceptual: the distance.
    """
    used = {"perceptual": f"{perceptual.name}, sha256 {', '.join(perceptual.sha256)}"}
    truth = report.truth
    reason = "no truth" if truth is None else perceptual.refuses(truth.images)
    if truth is None or reason:
        environment = {**report.environment, **used}
        return replace(report, not_computed={**report.not_computed, METRIC: reason}, environment=environment)

    def scored(images: Images) -> dict[str, Scores]:
        return {METRIC: learned_perceptual_image_patch_similarity(images, truth.images, perceptual)}

    pictures = report.controls or guesses(truth)
    return replace(
        report,
        scores={**report.scores, **scored(report.images)},
        baselines={
            name: {**found, **(scored(pictures[name]) if name in pictures else {})}
            for name, found in report.baselines.items()
        },
        not_computed={name: why for name, why in report.not_computed.items() if name != METRIC},
        environment={**report.environment, **used},
    )
