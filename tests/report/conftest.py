"""Small truths, reconstructions and reports for the tests of the judgement."""

from collections.abc import Callable

import pytest
import torch

from inversefed.evaluation import controls
from inversefed.evaluation.align import align
from inversefed.evaluation.score import score
from inversefed.report.model import Report
from inversefed.types import Batch, Candidate, Finding, Reconstruction, Status

HOSTILE = "</script><img src=x onerror=alert(1)><style>*{display:none}</style>`<b>|[x](javascript:alert(1))\x1b[2J"


def make_report(
    count: int = 1, noise: float = 0.02, status: Status = Status.FINISHED, text: str = "", **fields
) -> Report:
    """A report of noisy copies of random pictures, in another order; `text` is put wherever a name may be foreign."""
    random = torch.Generator().manual_seed(count)
    truth = Batch(torch.rand(count, 3, 16, 16, generator=random), torch.arange(count) % 10)
    order = torch.arange(count).flip(0)
    images = (truth.images + noise * torch.randn(truth.images.shape, generator=random))[order]
    candidates = tuple(
        Candidate(images, truth.labels[order], loss, Status.FINISHED, 3, (1.0, float("nan"), loss))
        for loss in (0.2, 0.1)
    )
    found = Reconstruction(images, truth.labels[order], 0.1, status, candidates)
    pairs = align(images, truth.images)
    defaults = {
        "attack": f"GradientInversion(restarts=2){text}",
        "reconstruction": found,
        "truth": truth,
        "permutation": pairs,
        "scores": score(Batch(images[pairs], found.labels[pairs]), truth, lambda x: x.flatten(1)),
        "baselines": {name: score(x, truth, lambda x: x.flatten(1)) for name, x in controls.guesses(truth).items()},
        "findings": (
            Finding("label" + text, "info", "A label." + text, {"layers" + text: ["bn1" + text], "x": float("nan")}),
        ),
        "seconds": 1.5,
        "scenario": {"network" + text: "LeNetZhu" + text, "shape": (3, 16, 16)},
        "config": {"seed": 0, "network": text},
        "environment": {"inversefed": "0.1.0", "machine": "x86" + text},
    }
    return Report(**defaults | fields)


@pytest.fixture
def report() -> Callable[..., Report]:
    return make_report


@pytest.fixture
def hostile() -> str:
    return HOSTILE
