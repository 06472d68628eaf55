"""Memory that is known: the prediction against the tensors of a real step, and against the memory of a process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from inversefed import Batch, FedAvg, FedSGD, LocalAdam, ThreatModel, freeze, observe, recipes
from inversefed.attacks.search import memory
from inversefed.attacks.search.problem import Problem
from inversefed.zoo import networks

SHAPE = (3, 32, 32)


def problem(module: nn.Module, n: int, client: object) -> tuple[Problem, dict]:
    attack = recipes.geiping()
    network = freeze(module, SHAPE, mean=0.5, std=0.25)
    update = {name: torch.ones_like(weight) for name, weight in network.params.items()}
    batch = Batch(torch.full((n, *SHAPE), 0.5), torch.arange(n) % 4)
    observation = observe(network, client, update, batch, ThreatModel())
    posed = Problem.of(observation, attack.objective, attack.priors, attack.parametrization, attack.labels)
    return posed, posed.start(torch.zeros(n, *SHAPE), torch.Generator().manual_seed(0))


def pooled() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(1800, 4)).train()


@pytest.mark.parametrize(
    ("module", "n", "client"),
    [
        (pooled(), 2, FedSGD()),
        (pooled(), 3, FedAvg(local_steps=3, lr=0.1, batch_size=1, optimizer=LocalAdam(), keep_graphs=1)),
        (networks.build("LeNetZhu", num_classes=4), 2, FedAvg(local_steps=2, lr=0.1)),
        (networks.build("ResNet20", num_classes=4).eval(), 1, FedSGD()),
    ],
)
def test_the_prediction_is_that_of_the_tensors(module: nn.Module, n: int, client: object) -> None:
    posed, variables = problem(module, n, client)
    before = {name: weight.clone() for name, weight in posed.observation.network.params.items()}
    predicted = memory.live_bytes(posed.loss, variables)
    assert predicted == pytest.approx(memory.measured_live_bytes(posed.loss, variables), rel=0.02)
    assert all(torch.equal(weight, before[name]) for name, weight in posed.observation.network.params.items())


RISE = """
import ctypes, sys
sys.path.insert(0, {folder!r})
import torch
torch.set_num_threads(1)
from test_memory import FedAvg, FedSGD, memory, networks, nn, problem


def resident(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024


def run(posed, variables):
    variables = {{name: value.clone().requires_grad_() for name, value in variables.items()}}
    torch.autograd.grad(posed.loss(variables), list(variables.values()))


run(*problem(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 4)), 1, FedSGD()))
posed, variables = problem(networks.build({name!r}, num_classes=10).eval(), {n}, {client})
ctypes.CDLL(None).malloc_trim(0)
before = resident("VmRSS:")
for _ in range(2):
    run(posed, variables)
print(resident("VmHWM:") - before, memory.step_bytes(posed.loss, variables))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads resident memory as Linux tells it")
@pytest.mark.parametrize(
    ("name", "n", "client"),
    [
        ("ConvNet", 4, "FedSGD()"),
        ("ResNet20-4", 8, "FedSGD()"),
        ("ConvNet", 2, "FedAvg(4, lr=1e-2, batch_size=1)"),
    ],
)
def test_the_prediction_is_within_30_percent_of_what_a_process_takes(name: str, n: int, client: str) -> None:
    code = RISE.format(folder=str(Path(__file__).parent), name=name, n=n, client=client)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured, predicted = map(int, done.stdout.split())
    assert measured > 100e6
    assert predicted == pytest.approx(measured, rel=0.3)


def test_a_loss_that_reads_numbers_is_not_predicted() -> None:
    def loss(at: dict) -> torch.Tensor:
        return at["images"].sum() if at["images"].sum() > 0 else at["images"].exp().sum()

    def writes(at: dict) -> torch.Tensor:
        out = torch.zeros(3)
        out[:] = at["images"]
        return out.sum()

    variables = {"images": torch.ones(3)}
    assert memory.live_bytes(loss, variables) is None and memory.step_bytes(writes, variables) is None
    assert memory.measured_live_bytes(loss, variables) > 0


def test_free_memory_is_what_the_control_group_leaves(tmp_path: Path) -> None:
    assert memory.available_bytes(torch.device("cpu")) > 0
    own, group = tmp_path / "own", tmp_path / "a" / "b"
    own.write_text("0::/a/b\n")
    group.mkdir(parents=True)
    for place, limit, used in ((group, "max", 10), (group.parent, "1000", 300)):
        (place / "memory.max").write_text(f"{limit}\n")
        (place / "memory.current").write_text(f"{used}\n")
        (place / "memory.stat").write_text("anon 200\ninactive_file 100\n")
    assert memory._group_bytes(tmp_path, own) == [800]
    assert memory._group_bytes(tmp_path, tmp_path / "missing") == []


def test_at_least_one_restart_is_run() -> None:
    assert [memory.chunk(10, free, 8) for free in (5, 35, 1000)] == [1, 3, 8]
