"""Updates that hold only part of the gradient: some layers, or low-rank matrices; what is left, and what is lost."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from inversefed import Batch, Budget, FedAvg, FedSGD, Observation, ThreatModel, freeze, identify, observe, recipes
from inversefed.errors import ConfigError
from inversefed.evaluation.align import align
from inversefed.evaluation.metrics import peak_signal_noise_ratio
from inversefed.fl.clients.partial import Shares
from inversefed.networks.lora import low_rank
from inversefed.zoo import pictures

SHAPE = (3, 8, 8)


def seen(module: nn.Module, client: object, n: int) -> tuple[Observation, torch.Tensor]:
    images = torch.stack([pictures.photo(name, SHAPE) for name in pictures.photo_names()[:n]])
    network, labels = freeze(module, SHAPE, mean=0.5, std=0.25), torch.arange(n)
    update = client(network, images, labels)
    return observe(network, client, update, Batch(images, labels), ThreatModel(labels="known")), images


def reached(observation: Observation, truth: torch.Tensor, iterations: int = 60) -> float:
    images = recipes.curvature(iterations)(observation, torch.Generator().manual_seed(0)).images
    return float(peak_signal_noise_ratio(images[align(images, truth)], truth).mean())


def gray(truth: torch.Tensor) -> float:
    return float(peak_signal_noise_ratio(torch.full_like(truth, 0.5), truth).mean())


@pytest.mark.parametrize("names", [("0.*",), ("3.*",)])
def test_one_layer_s_part_of_a_fedavg_update_is_enough_for_one_picture(tiny: nn.Module, names: tuple) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(256, 4)).eval()
    observation, truth = seen(module, Shares(FedAvg(local_steps=2, lr=0.01), names), 1)
    assert reached(observation, truth, 40) > 40


def test_a_bias_alone_is_not_enough(tiny: nn.Module) -> None:
    observation, truth = seen(tiny, Shares(FedSGD(), ("3.bias",)), 1)
    assert reached(observation, truth, 20) < gray(truth) + 2


@pytest.mark.parametrize("names", [("0.*",), ("3.*",), ("*.weight",)])
def test_the_default_attack_and_the_counts_take_part_of_an_update(tiny: nn.Module, names: tuple) -> None:
    observation, _ = seen(tiny, Shares(FedSGD(), names), 1)
    assert identify(observation).entries == sum(part.numel() for part in observation.update.values())
    found = recipes.best()(observation, torch.Generator().manual_seed(0), Budget(max_iterations=3))
    assert found.images.shape == observation.batch_shape and found.loss < 1.5


def tuned(rank: int, trained: float) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.Tanh(), nn.Linear(64, 4)).eval()
    return low_rank(module, rank, ("1",), trained=trained)


@pytest.mark.parametrize(("rank", "n"), [(1, 1), (2, 2)])
def test_as_many_pictures_as_the_rank_are_reconstructed_from_a_low_rank_update(rank: int, n: int) -> None:
    observation, truth = seen(tuned(rank, 0.05), FedSGD(), n)
    assert set(observation.update) == {"1.down", "1.up"}
    assert reached(observation, truth) > 60


@pytest.mark.parametrize(("rank", "n", "trained"), [(1, 4, 0.05), (4, 1, 0.0)])
def test_more_pictures_than_the_rank_or_a_fresh_one_stay_hidden(rank: int, n: int, trained: float) -> None:
    observation, truth = seen(tuned(rank, trained), FedSGD(), n)
    assert reached(observation, truth, 20) < gray(truth) + 1
    down = torch.linalg.svdvals(observation.update["1.down"])
    assert int((down > 1e-6 * observation.update["1.up"].norm()).sum()) == (rank if trained else 0)


def test_low_rank_layers_compute_what_they_say_and_refuse_what_is_not_there(tiny: nn.Module) -> None:
    torch.manual_seed(1)
    plain = nn.Linear(6, 5)
    small = low_rank(nn.Sequential(plain), 2, scale=0.5, trained=1.0)[0]
    inputs = torch.rand(3, 6)
    weight = plain.weight + 0.5 * small.up @ small.down
    torch.testing.assert_close(small(inputs), inputs @ weight.T + plain.bias)
    fresh = low_rank(tiny, 3)
    torch.testing.assert_close(fresh(torch.ones(1, *SHAPE)), tiny(torch.ones(1, *SHAPE)))
    assert all(each.requires_grad for each in tiny.parameters()), "the caller's module is left alone"
    for rank, names in ((0, ("*",)), (1, ("0",))):
        with pytest.raises(ConfigError, match="low-rank updates need"):
            low_rank(tiny, rank, names)


PEAK = """
import sys
import torch
torch.set_num_threads(1)
from inversefed import FedAvg, freeze
from inversefed.zoo import networks


def resident(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024


steps, keep = int(sys.argv[1]), int(sys.argv[2])
network = freeze(networks.build("ConvNet16", seed=0).eval(), (3, 32, 32))
images = torch.full((1, 3, 32, 32), 0.4).requires_grad_()
before = resident("VmRSS:")
update = FedAvg(local_steps=steps, lr=1e-3, keep_graphs=keep)(network, images, torch.tensor([1]))
torch.autograd.grad(sum(part.square().sum() for part in update.values()), images)
print(resident("VmHWM:") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads resident memory as Linux tells it")
def test_many_local_steps_take_a_fraction_of_the_memory_of_their_graphs() -> None:
    def rise(keep: int) -> int:
        done = subprocess.run(
            [sys.executable, "-c", PEAK, "20", str(keep)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert rise(1) < 0.6 * rise(20)
