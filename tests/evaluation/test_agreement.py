"""Agreement of starts: it tells the pictures that came back from those that were made up."""

import pytest
import torch
from torch import nn

import inversefed
from inversefed import recipes
from inversefed.evaluation.agreement import agreement
from inversefed.evaluation.metrics import peak_signal_noise_ratio
from inversefed.report.sentences import believed
from inversefed.zoo import pictures


def photos(count: int, side: int = 8) -> torch.Tensor:
    names = pictures.photo_names()[:count]
    return torch.stack([pictures.photo(name, (3, side, side)) for name in names])


def test_the_same_pictures_in_another_order_agree_and_others_do_not() -> None:
    truth = photos(4)
    shuffled = truth[[2, 0, 3, 1]] + 1e-3
    made_up = torch.cat([shuffled[:3], truth[1:2].mean(dim=(2, 3), keepdim=True).expand(1, 3, 8, 8)])
    agreed = agreement(truth, [shuffled])
    assert bool((agreed > 20).all())
    mixed = agreement(truth, [made_up])
    assert bool((mixed[[0, 2, 3]] > 20).all()) and float(mixed[1]) < 1


def test_the_median_of_several_starts_counts() -> None:
    truth, noise = photos(2), torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    alone = agreement(truth, [truth])
    torch.testing.assert_close(agreement(truth, [truth, noise, truth + 1e-6]), agreement(truth, [truth + 1e-6]))
    assert bool((agreement(truth, [noise, noise, truth]) < alone).all())


def test_a_sentence_names_what_is_to_be_believed() -> None:
    told = believed(torch.tensor([14.7, 0.2, 6.0]))
    assert "the same pictures 0 (14.7 dB) and 2 (6.0 dB), and to another picture 1 (0.2 dB)." in told
    assert believed(None) == believed(torch.tensor([4.0])) == ""
    assert "and 2 more" in believed(torch.full((10,), 5.0))


@pytest.mark.parametrize("restarts", [1, 3])
def test_a_batch_is_told_which_pictures_came_back(restarts: int) -> None:
    """By what another start comes to, be it a further restart or a control run."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 24, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1536, 4)).eval()
    attack = recipes.spectral(40)
    report = inversefed.audit(
        module,
        photos(2),
        torch.tensor([1, 2]),
        mean=0.5,
        std=0.25,
        attack=attack.with_settings(restarts=restarts),
        nulls=1,
    )
    agreed, margin = report.agreed, report.verdict.figures.margins
    assert agreed is not None and agreed.shape == (2,)
    assert report.to_dict()["agreement"] == pytest.approx(agreed.tolist())
    assert bool(((agreed > 3) == (torch.as_tensor(margin) > 3)).all()), (agreed, margin)
    for form in (" ".join(report.summary().split()), report.to_markdown(), report.to_html()):
        assert "Other starts of the attack come" in form


def test_no_other_start_no_agreement() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval()
    report = inversefed.audit(module, photos(1), torch.tensor([1]), attack=recipes.linear())
    assert report.agreed is None and report.to_dict()["agreement"] is None
    assert float(peak_signal_noise_ratio(report.images, photos(1))) > 80
