"""Defenses of the data: mixtures and transforms do what their names say, and the line runs them before the client."""

import pytest
import torch
from torch import nn

from inversefed import Batch, FedSGD, ThreatModel, defenses, freeze
from inversefed.errors import ConfigError
from inversefed.fl.defenses.augmentation import TRANSFORMS
from inversefed.fl.simulate import observed

IMAGES, LABELS = torch.rand((4, 3, 8, 8), generator=torch.Generator().manual_seed(0)), torch.tensor([3, 1, 0, 2])


def test_mixup_mixes_pictures_and_labels_at_one_share_and_nobody_with_itself() -> None:
    labels = torch.eye(4)[LABELS]
    images, targets = defenses.Mixup(1.0)(IMAGES, labels, torch.Generator().manual_seed(1))
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))
    share = targets.gather(1, LABELS[:, None]).flatten()
    assert torch.allclose(share, share[0].expand(4)) and 0 < share[0] < 1
    for image, target, own, label in zip(images, targets, IMAGES, LABELS, strict=True):
        partner = int((target * (torch.arange(4) != label)).argmax())
        other = IMAGES[(partner == LABELS).nonzero().item()]
        torch.testing.assert_close(image, share[0] * own + (1 - share[0]) * other)


def test_mixup_s_share_follows_its_beta_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    for alpha in (0.3, 2.0):
        draws = torch.tensor([defenses.Mixup(alpha).drawn(generator) for _ in range(2000)])
        assert draws.mean() == pytest.approx(0.5, abs=0.03)
        assert draws.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_mixup_refuses_class_indices() -> None:
    with pytest.raises(ConfigError, match="probabilities"):
        defenses.Mixup()(IMAGES, LABELS, torch.Generator())


@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_a_transform_changes_the_picture_keeps_its_range_and_has_a_gradient(name: str) -> None:
    images = (0.25 + IMAGES / 2).requires_grad_()
    changed = defenses.ATS((name,)).transformed(images)
    assert changed.shape == images.shape and changed.min() >= 0 and changed.max() <= 1
    assert not torch.allclose(changed, images)
    (slope,) = torch.autograd.grad(changed.sum(), images)
    assert bool(slope.isfinite().all()) and (name == "flip" or float(slope.abs().sum()) > 0)


def test_a_magnitude_can_be_given_and_nonsense_is_refused() -> None:
    torch.testing.assert_close(defenses.ATS(("brightness:0",)).transformed(IMAGES), IMAGES)
    for policy in ((), ("nonsense",), ("rotate:far",)):
        with pytest.raises(ConfigError):
            defenses.ATS(policy)


def test_the_line_runs_them_before_the_client_and_keeps_the_truth(tiny: nn.Module) -> None:
    policy = defenses.ATS(("flip",))
    seen, truth = observed(tiny, IMAGES, LABELS, defenses=(policy,))
    network = freeze(tiny, (3, 8, 8))
    expected = FedSGD()(network, IMAGES.flip(-1), LABELS)
    torch.testing.assert_close(dict(seen.update), dict(expected))
    assert torch.equal(truth.images, IMAGES) and seen.defenses == ()
    told, _ = observed(tiny, IMAGES, LABELS, defenses=(policy,), threat=ThreatModel(defenses="known"))
    assert told.defenses == (policy,)


def test_the_line_gives_mixup_probabilities(tiny: nn.Module) -> None:
    plain, _ = observed(tiny, IMAGES, LABELS)
    mixed, truth = observed(tiny, IMAGES, LABELS, defenses=(defenses.Mixup(),))
    assert torch.equal(truth.labels, LABELS) and isinstance(truth, Batch)
    assert not torch.allclose(plain.update["3.bias"], mixed.update["3.bias"])
    assert mixed.update["3.bias"].sum().abs() < 1e-6  # still cross entropy of probabilities
