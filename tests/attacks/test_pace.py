"""Searches in less time than they need: how their pace is told, and what becomes of their iterations."""

import math
import time
from dataclasses import replace

import pytest
import torch
from torch import Generator, nn

from inversefed import Batch, Budget, FedSGD, Observation, Status, ThreatModel, freeze, observe, recipes
from inversefed.attacks.pieces.selection import AgreedMean
from inversefed.attacks.search.time_schedule import Pace, as_fits
from inversefed.types import Step

SHAPE = (3, 8, 8)


class Clock:
    """Tells a time that passes only when a step is taken."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        return self.now

    def step(self, step: Step) -> None:
        self.now += self.tick


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock(1.0)
    monkeypatch.setattr(time, "monotonic", made)
    return made


@pytest.fixture
def observation() -> Observation:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)).eval()
    network, batch = freeze(module, SHAPE, mean=0.5, std=0.25), Batch(torch.rand(1, *SHAPE), torch.tensor([1]))
    update = FedSGD()(network, batch.images, batch.labels)
    return observe(network, FedSGD(), update, batch, ThreatModel(labels="known"))


def a_step(number: int) -> Step:
    return Step(0, 1, number, 9, 0.0, 0.0, lambda: torch.zeros(1))


def test_the_pace_leaves_out_what_comes_before_the_first_step(clock: Clock) -> None:
    pace = Pace(seconds=0.0)
    assert pace.step == math.inf
    for number, now in enumerate((10.0, 12.0, 14.0), start=1):
        clock.now = now
        assert not pace(a_step(number))
    assert pace.step == 2.0 and pace.setup == 8.0 and pace.measured


@pytest.mark.parametrize(("seconds", "iterations", "fewer"), [(100.0, 40, ""), (20.0, 14, "14 of 40 iterations")])
def test_a_search_has_as_many_iterations_as_fit(
    clock: Clock, observation: Observation, seconds: float, iterations: int, fewer: str
) -> None:
    """Two steps tell that they do not fit; of the 18 s that are left four fifths are planned for."""
    budget = Budget(seconds, on_step=clock.step)
    found, told = as_fits(recipes.spectral(40), observation, Generator().manual_seed(0), budget)
    assert found.status is Status.FINISHED and len(found.candidates[0].history) == iterations and told == fewer
    alone = recipes.spectral(iterations)(observation, Generator().manual_seed(0))
    assert torch.equal(found.images, alone.images)


def test_restarts_are_given_up_before_iterations(clock: Clock, observation: Observation) -> None:
    search = recipes.geiping(restarts=4, max_iterations=10)
    found, told = as_fits(search, observation, Generator().manual_seed(0), Budget(20.0, on_step=clock.step))
    assert len(found.candidates) == 1 and told == "10 of 10 iterations in 1 of 4 restarts"


def test_restarts_that_must_agree_are_kept_before_iterations(clock: Clock, observation: Observation) -> None:
    search = replace(recipes.geiping(restarts=4, max_iterations=200), selection=AgreedMean())
    found, told = as_fits(search, observation, Generator().manual_seed(0), Budget(200.0, on_step=clock.step))
    assert len(found.candidates) == 2 and told == "78 of 200 iterations in 2 of 4 restarts"


@pytest.mark.parametrize("kind", ["constant", "checkpoint", "none"])
def test_a_search_whose_steps_stay_the_same_or_whose_state_is_kept_runs_as_it_is(
    clock: Clock, observation: Observation, kind: str, tmp_path
) -> None:
    search = recipes.curvature(6) if kind == "constant" else recipes.spectral(6)
    kept = tmp_path / "state" if kind == "checkpoint" else None
    budget = Budget(None if kind == "none" else 3.5, on_step=clock.step, checkpoint=kept)
    found, told = as_fits(search, observation, Generator().manual_seed(0), budget)
    assert told == "" and (found.status is Status.STOPPED) == (kind != "none")


@pytest.mark.parametrize("answer", [True, False])
def test_a_watcher_that_stops_a_search_is_not_asked_again(clock: Clock, observation: Observation, answer: bool) -> None:
    seen = []

    def watch(step: Step) -> bool:
        clock.step(step)
        seen.append(step.iteration)
        return answer and step.iteration == 2

    as_fits(recipes.spectral(40), observation, Generator().manual_seed(0), Budget(20.0, on_step=watch))
    assert seen == [1, 2] if answer else seen == [1, 2, *range(1, 15)]


def test_a_first_picture_takes_what_it_needs_of_the_time_of_those_that_follow(
    clock: Clock, observation: Observation
) -> None:
    """Its part has room for five steps, which show nothing; of what is spare it takes no more than it needs."""
    search = recipes.spectral(400)
    budget = Budget(5.0, on_step=clock.step)
    found, told = as_fits(search, observation, Generator().manual_seed(0), budget, spare=200.0)
    assert len(found.candidates[0].history) >= search.first_picture and told.endswith("of 400 iterations")
    assert clock.now < 1.5 * search.first_picture
