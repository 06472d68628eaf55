"""Each null run stands by itself: seeded by (seed, role, number), whatever else runs."""

import torch
from torch import Generator, nn

from inversefed import recipes
from inversefed.controls.runs import ControlPlan, null_run, run
from inversefed.fl.simulate import observed
from inversefed.seeds import seed_for


def test_a_null_run_alone_is_the_same_as_among_twenty(tiny: nn.Module) -> None:
    images = torch.rand(1, 3, 8, 8, generator=Generator().manual_seed(0))
    observation, _ = observed(tiny, images, torch.tensor([1]))
    twenty = ControlPlan(recipes.geiping(max_iterations=2), 2, 20, seed=3)
    done = run(twenty, observation, prior=False)
    assert len(done.nulls) == 20
    for number in (0, 7, 19):
        (alone,) = null_run(twenty, observation, number)
        assert torch.equal(alone.images, done.nulls[number][0].images) and alone.loss == done.nulls[number][0].loss
    few = run(ControlPlan(twenty.attack, 2, 3, seed=3), observation, prior=True)
    for number, (null,) in enumerate(few.nulls):  # neither how many there are nor the prior alone changes them
        assert torch.equal(null.images, done.nulls[number][0].images)
    assert len({float(null.images.sum()) for (null,) in done.nulls}) == 20


def test_seeds_of_roles_numbers_and_audits_differ() -> None:
    named = [(seed, role, number) for seed in range(5) for role in ("null", "prior", "pace") for number in range(20)]
    assert len({seed_for(*each) for each in named}) == len(named)
