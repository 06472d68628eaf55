"""Ways to evaluate a step: each is proven against the eager one, and given up with a word where it fails."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator, nn

from inversefed import Batch, Budget, FedSGD, GradientInversion, Observation, ThreatModel, freeze, observe, recipes
from inversefed.attacks.search import step_evaluator
from inversefed.attacks.search.minimize import differentiate
from inversefed.attacks.search.precision import Native
from inversefed.attacks.search.problem import Problem
from inversefed.attacks.search.step_evaluator import Evaluator

SHAPE = (3, 8, 8)


@pytest.fixture
def observation(tiny: nn.Module) -> Observation:
    torch.manual_seed(1)
    network, batch = freeze(tiny, SHAPE, mean=0.5, std=0.25), Batch(torch.rand(1, *SHAPE), torch.tensor([1]))
    update = FedSGD()(network, batch.images, batch.labels)
    return observe(network, FedSGD(), update, batch, ThreatModel(labels="known"))


def attacked(observation: Observation, attack: GradientInversion, **budget: object):
    return attack(observation, Generator().manual_seed(0), Budget(**budget))


def codes(found) -> set[str]:
    return {finding.code for finding in found.findings}


COMPILED = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from torch import Generator, nn
from inversefed import Batch, Budget, FedSGD, ThreatModel, freeze, observe, recipes

torch.set_num_threads(1)
torch.manual_seed(0)
tiny = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(96, 4)).eval()
network, batch = freeze(tiny, (3, 8, 8), mean=0.5, std=0.25), Batch(torch.rand(1, 3, 8, 8), torch.tensor([1]))
update = FedSGD()(network, batch.images, batch.labels)
observation = observe(network, FedSGD(), update, batch, ThreatModel(labels="known"))
attack = replace(eval(sys.argv[1]), compilation="on")

def run(attack, **budget):
    return attack(observation, Generator().manual_seed(0), Budget(**budget))

eager, found = run(replace(attack, compilation="off")), run(attack)
codes = {finding.code for finding in found.findings}
assert "compiled" in codes and "compiled-fallback" not in codes, found.findings
assert float((eager.images - found.images).abs().max()) < 1e-2  # forty evaluations of L-BFGS amplify rounding
cut = run(attack, checkpoint=Path(sys.argv[2]), on_step=lambda step: step.iteration == 2)
assert cut.candidates[0].iterations == 2
resumed = run(attack, resume=Path(sys.argv[2]))
assert torch.equal(resumed.images, found.images) and resumed.loss == found.loss
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(
    "attack",
    [
        pytest.param("recipes.curvature(4)", marks=pytest.mark.slow),
        "recipes.spectral(4)",
    ],  # half a minute each to compile
)
def test_a_compiled_step_agrees_with_the_eager_one_and_is_taken_up_again(tmp_path: Path, attack: str) -> None:
    command = [sys.executable, "-c", COMPILED, attack, tmp_path / "state"]  # without this test run's type checks
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_a_compiler_the_search_goes_on_eagerly_and_says_so(observation, monkeypatch) -> None:
    def broken(*_: object, **__: object) -> object:
        def step(*_: object) -> None:
            raise RuntimeError("no compiler\nand more lines")

        return step

    monkeypatch.setattr(torch, "compile", broken)
    found = attacked(observation, replace(recipes.geiping(max_iterations=5), compilation="on"))
    (finding,) = (finding for finding in found.findings if finding.code == "compiled-fallback")
    assert "no compiler" in finding.message and "more lines" not in finding.message
    assert torch.equal(found.images, attacked(observation, recipes.geiping(max_iterations=5)).images)


def test_a_compiled_step_that_computes_something_else_is_not_used(observation, monkeypatch) -> None:
    def wrong(step: object, **_: object) -> object:
        def changed(*arguments: object) -> object:
            gradients, loss = step(*arguments)  # type: ignore[operator]
            return {name: 1.01 * gradient for name, gradient in gradients.items()}, loss

        return changed

    monkeypatch.setattr(torch, "compile", wrong)
    found = attacked(observation, replace(recipes.geiping(max_iterations=5), compilation="on"))
    (finding,) = (finding for finding in found.findings if finding.code == "compiled-fallback")
    assert finding.evidence["relative_difference"] == pytest.approx(0.01, rel=1e-3)
    assert torch.equal(found.images, attacked(observation, recipes.geiping(max_iterations=5)).images)


@pytest.mark.parametrize(("planned", "compiles"), [(50, False), (10**9, True)])
def test_auto_compiles_only_where_that_pays(observation, monkeypatch, planned: int, compiles: bool) -> None:
    asked = []

    def counted(step: object, **_: object) -> object:
        asked.append(step)
        return step

    monkeypatch.setattr(torch, "compile", counted)
    problem = Problem.of(observation, *(getattr(recipes.geiping(), name) for name in NAMES))
    tried = Evaluator(problem, Native(), "auto", planned, planned, {})
    point = problem.start(torch.zeros(observation.batch_shape), Generator())
    for iteration in range(step_evaluator._TRIALS + 2):
        tried([point], [()], iteration)
    assert bool(asked) is compiles and len(asked) <= 1


NAMES = ("objective", "priors", "parametrization", "labels")


def test_the_second_backward_pass_computes_no_gradient_of_a_weight(observation: Observation) -> None:
    problem = Problem.of(observation, *(getattr(recipes.geiping(), name) for name in NAMES))
    point = problem.start(torch.rand(observation.batch_shape, generator=Generator().manual_seed(0)), Generator())
    kernels = []
    for repeats in (1, 2):  # the first backward pass alone, and the whole step
        with torch.profiler.profile() as profile:
            if repeats == 1:
                observation.client(observation.network, problem.images(point), observation.labels)
            else:
                differentiate(problem.loss, point)
        calls = {each.key: each.count for each in profile.key_averages()}
        kernels.append(calls)
    forward, step = kernels
    assert forward["aten::convolution"] == 1 and forward["aten::convolution_backward"] == 1
    # The second pass: through the forward convolution, and through its backward, each once and for inputs only.
    assert step["aten::convolution_backward"] <= 3


def test_restarts_that_cannot_be_vectorized_run_one_after_another(observation, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise RuntimeError("no batching rule")

    attack = recipes.geiping(2, 5)
    alone = attacked(observation, attack)
    monkeypatch.setattr(torch, "vmap", refuse)
    found = attacked(observation, replace(attack, width=2))
    assert "vectorized-fallback" in codes(found) and torch.equal(found.images, alone.images)
