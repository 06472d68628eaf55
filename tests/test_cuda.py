"""The same line on a GPU; skipped, with the reason, where there is none."""

import pytest
import torch
from torch import nn

import inversefed
from inversefed import FedAvg, FedSGD, recipes

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.mark.parametrize("client", [FedSGD(), FedAvg(local_steps=2, lr=0.05)])
@pytest.mark.parametrize("attack", [recipes.geiping(max_iterations=20), recipes.idlg(max_iterations=3)])
def test_an_audit_on_the_gpu_agrees_with_the_cpu(tiny: nn.Module, client: object, attack: object) -> None:
    images, labels = torch.rand(1, 3, 8, 8), torch.tensor([2])
    tiny = tiny.double()
    here, there = (
        inversefed.audit(tiny.to(device), images, labels, client=client, attack=attack) for device in ("cpu", "cuda")
    )
    assert there.images.device.type == "cuda"
    torch.testing.assert_close(there.images.cpu(), here.images, rtol=1e-3, atol=1e-3)
    assert there.to_dict()["scores"]["peak_signal_noise_ratio"][0] == pytest.approx(
        here.to_dict()["scores"]["peak_signal_noise_ratio"][0], abs=0.1
    )


def test_random_layers_follow_the_mask_seed_on_the_gpu() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4)).train().cuda()
    network = inversefed.freeze(module, (3, 8, 8))
    images, state = torch.rand(1, 3, 8, 8), torch.cuda.get_rng_state()
    assert torch.equal(network.features(images), network.features(images))
    assert not torch.equal(network.features(images), network.with_masks(1).features(images))
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_peeling_takes_an_update_from_the_gpu(tiny: nn.Module) -> None:
    images = torch.rand(1, 3, 8, 8)
    report = inversefed.audit(tiny.double().cuda(), images, torch.tensor([2]), attack=recipes.peel())
    assert float(report.scores["peak_signal_noise_ratio"]) > 100
