"""The default attack: what it chooses, what it says of it, and what becomes of a budget."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Generator, nn

from benchmarks.small_networks import SMALL_NETWORKS
from inversefed import Batch, Budget, FedAvg, FedSGD, Observation, Status, ThreatModel, freeze, observe, recipes
from inversefed.attacks import auto
from inversefed.attacks.exact.peel.attack import Peel
from inversefed.attacks.matching_error import matching_error
from inversefed.attacks.rules import Rule
from inversefed.attacks.search import precision, restart_pruning
from inversefed.attacks.search.inversion import GradientInversion
from inversefed.attacks.simulations import OptimizedMasks
from inversefed.errors import ThreatModelError
from inversefed.networks.architecture import architecture
from inversefed.types import Candidate, Reconstruction, Step
from inversefed.zoo import pictures

SHAPE = (3, 8, 8)
with torch.random.fork_rng():
    torch.manual_seed(1)  # how many numbers an update holds depends on which ReLUs are dead
    HEADS = {
        "smooth": [nn.Conv2d(3, 12, 3), nn.GELU(), nn.Flatten(), nn.Linear(432, 4)],
        "kinked": [nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(432, 4)],
        "pooled": [nn.Conv2d(3, 12, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(108, 4)],
        "averaged": [nn.Conv2d(3, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)],
    }


def observed(layers: list[nn.Module], count: int = 1) -> Observation:
    torch.manual_seed(0)
    network = freeze(nn.Sequential(*layers).eval(), SHAPE, mean=0.5, std=0.25)
    batch = Batch(torch.rand(count, *SHAPE), torch.arange(count))
    update = FedSGD()(network, batch.images, batch.labels)
    return observe(network, FedSGD(), update, batch, ThreatModel(labels="known"))


@dataclass(frozen=True)
class Guess:
    """An attack that returns one color, and may raise."""

    color: float
    exact: bool = False
    error: Exception | None = None
    status: Status = Status.FINISHED

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        if self.error is not None:
            raise self.error
        images = torch.full(observation.batch_shape, self.color)
        candidate = Candidate(images, observation.labels, 0.0, self.status, 1, (0.0,))
        return Reconstruction(images, observation.labels, 0.0, self.status, (candidate,), proven=self.exact)


SEARCHES = {
    rule: recipes.best().searches[number]
    for number, rule in enumerate(
        (
            "bare-unknown",
            "bare-smooth",
            "bare",
            "unknown",
            "shuffled",
            "training",
            "unplaced",
            "normalized",
            "fewest",
            "few",
            "several",
            "smooth",
            "averaged",
            "deep",
            "means",
            "kinked",
        )
    )
}


def trying(*methods: object, search: object = None, polish: object = None) -> object:
    """The default with these exact methods and no others, one search if it is given, and this behind it."""
    chosen = recipes.best()
    searches = [replace(rule, polish=polish, attack=search or rule.attack, also=()) for rule in chosen.searches]
    return replace(chosen, exact=tuple(Rule((), each, "") for each in methods), searches=tuple(searches))


@pytest.mark.parametrize(
    ("name", "chosen", "said"),
    [
        ("smooth", recipes.curvature(), "smooth"),
        ("kinked", SEARCHES["kinked"].attack, "ReLU"),
        ("pooled", SEARCHES["kinked"].attack, "MaxPool2d"),
        ("averaged", SEARCHES["averaged"].attack, "AdaptiveAvgPool2d"),
    ],
)
def test_the_network_decides_which_search(name: str, chosen: object, said: str) -> None:
    observation = observed(HEADS[name])
    assert recipes.best().search(observation) == chosen and said in recipes.best().plan(observation).why


def test_several_examples_have_a_search_of_their_own() -> None:
    plan = recipes.best().plan(observed(HEADS["smooth"], 3))
    assert plan.search == recipes.smoothed() and "3 examples" in plan.why
    batch = (recipes.sparse(), recipes.peel(), recipes.separated())
    for name in HEADS:
        observation = observed(HEADS[name], 3)
        assert recipes.best().plan(observation).attacks == (*batch, recipes.best().search(observation))


def test_an_update_of_few_numbers_has_a_search_with_a_strong_prior() -> None:
    torch.manual_seed(0)
    few = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 4)]
    for count, rule, said in ((1, "few", "78%"), (2, "fewest", "49%")):
        plan = recipes.best().plan(observed(few, count))
        assert plan.search == SEARCHES[rule].attack and plan.steady and said in plan.why
    averaged = observed(HEADS["averaged"], 3)
    assert recipes.best().search(averaged) == SEARCHES["averaged"].attack  # places are averaged: no strong prior


def test_a_small_network_that_averages_is_searched_in_pixels_and_a_larger_one_by_its_own(monkeypatch) -> None:
    observations = [observed(HEADS["averaged"], count) for count in (1, 3)]
    assert [recipes.best().search(each) for each in observations] == [SEARCHES["averaged"].attack] * 2
    monkeypatch.setattr(recipes, "_SMALL", 0.0)
    assert [recipes.best().search(each) for each in observations] == [SEARCHES["deep"].attack, SEARCHES["means"].attack]


def test_what_is_unknown_of_the_client_decides_which_search() -> None:
    chosen, client = recipes.best(), FedAvg(local_steps=2, batch_size=2, shuffle=True)
    network = freeze(nn.Sequential(*HEADS["kinked"]).eval(), SHAPE)
    batch = Batch(torch.rand(4, *SHAPE), torch.arange(4))
    update = client(network, batch.images, batch.labels)
    shuffled = observe(network, client, update, batch, ThreatModel(labels="known"))
    assert chosen.search(shuffled) == recipes.relaxed_order()
    unknown = observe(network, client, update, batch, ThreatModel(labels="known", client="unknown"))
    assert chosen.search(unknown) == recipes.surrogate()


def test_train_mode_decides_which_search() -> None:
    chosen = recipes.best()
    coupled = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)).train()
    dropped = nn.Sequential(*HEADS["smooth"][:-1], nn.Dropout(0.5), nn.Linear(432, 4)).train()
    searches = []
    for module in (coupled, dropped):
        network, batch = freeze(module, SHAPE), Batch(torch.rand(1, *SHAPE), torch.tensor([1]))
        update = FedSGD()(network, batch.images, batch.labels)
        searches.append(chosen.search(observe(network, FedSGD(), update, batch, ThreatModel(labels="known"))))
    assert searches == [recipes.train_mode(), replace(recipes.curvature(), simulation=OptimizedMasks())]


def test_exact_methods_come_first_and_under_max_pooling_last() -> None:
    chosen, kinked = recipes.best(), SEARCHES["kinked"].attack
    read = (recipes.linear(), recipes.patch_embedding(), recipes.april())
    assert chosen.plan(observed(HEADS["kinked"])).attacks == (
        *read, Peel(starts=0), recipes.separated(), recipes.peel(), kinked,
    )  # fmt: skip
    narrow = observed([nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4)])
    assert chosen.plan(narrow).attacks == (*read, recipes.peel(), chosen.search(narrow))
    assert chosen.plan(observed(HEADS["pooled"])).attacks == (chosen.pooled, *read, recipes.peel())
    no_chain = observed(
        [nn.Conv2d(3, 6, 3), nn.Softplus(), nn.MaxPool2d(2), nn.LayerNorm(3), nn.Flatten(), nn.Linear(54, 4)]
    )
    assert chosen.plan(no_chain).attacks == (SEARCHES["normalized"].attack,)


def test_what_is_exact_ends_it_and_what_does_not_apply_is_told() -> None:
    refused = Guess(0.0, error=ThreatModelError("needs something else"))
    chosen = trying(refused, Guess(0.3, exact=True))
    found = chosen(observed(HEADS["kinked"]), Generator().manual_seed(0))
    assert float(found.images.mean()) == pytest.approx(0.3)
    finding = found.findings[0]
    assert finding.code == "attack-chosen" and "needs something else" in finding.message
    assert finding.evidence["attack"] == repr(Guess(0.3, exact=True))


def test_the_better_match_wins_and_the_watcher_never_sees_a_worse_one() -> None:
    observation, shown = observed(HEADS["kinked"]), []
    good = recipes.spectral(200)(observation, Generator().manual_seed(0)).images.clamp(0, 1)
    watch = Budget(on_step=lambda step: shown.append(step.best()) and None)

    class Full(Guess):
        def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
            return replace(super().__call__(observation, generator, budget), images=good)

    chosen = trying(Full(0.5), search=recipes.spectral(3))
    found = chosen(observation, Generator().manual_seed(0), watch)
    assert torch.equal(found.images, good) and all(torch.equal(images, good) for images in shown) and len(shown) == 3
    worse = trying(Guess(0.9), search=recipes.spectral(100))
    assert not torch.equal(worse(observation, Generator().manual_seed(0)).images, torch.full((1, *SHAPE), 0.9))


@pytest.mark.parametrize("status", [Status.STOPPED, Status.INTERRUPTED])
def test_an_attack_that_was_ended_is_the_last(status: Status) -> None:
    chosen = trying(Guess(0.4, status=status))
    found = chosen(observed(HEADS["kinked"]), Generator().manual_seed(0))
    assert found.status is status and float(found.images.mean()) == pytest.approx(0.4)


def test_a_time_budget_is_shared_by_all_that_is_tried() -> None:
    left = []

    class Asked(Guess):
        def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
            left.append(budget.seconds)
            return super().__call__(observation, generator, budget)

    chosen = trying(Asked(0.1), Asked(0.2), search=recipes.spectral(2))
    chosen(observed(HEADS["kinked"]), Generator().manual_seed(0), Budget(seconds=5.0))
    assert 0 < left[1] < left[0] <= 5


def test_an_exact_method_gets_half_of_the_time_and_the_search_follows_what_was_cut() -> None:
    asked: list[float | None] = []

    class Slow(Guess):
        def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
            asked.append(budget.seconds)
            return super().__call__(observation, generator, budget)

    slow = Slow(-9.0, status=Status.STOPPED)
    chosen = trying(slow, slow, search=recipes.spectral(5))
    found = chosen(observed(HEADS["kinked"]), Generator().manual_seed(0), Budget(seconds=1000.0))
    assert all(490 < seconds <= 500 for seconds in asked) and len(asked) == 2
    assert found.status is Status.STOPPED and found.candidates[0].iterations == 5  # the search's own
    assert found.findings[0].evidence["cut"] == ["Slow"] and "For want of time" in found.findings[0].message
    exact = trying(slow, Guess(0.3, exact=True))
    done = exact(observed(HEADS["kinked"]), Generator().manual_seed(0), Budget(seconds=1000.0))
    assert done.status is Status.FINISHED and "cut" not in done.findings[0].evidence


def test_who_stops_an_exact_method_stops_the_attack_though_there_is_time_left() -> None:
    class Watched(Guess):
        def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
            step = Step(0, 1, 1, 1, 0.0, 0.0, lambda: torch.zeros(observation.batch_shape))
            assert budget.on_step(step)
            return super().__call__(observation, generator, budget)

    chosen = trying(Watched(0.4, status=Status.STOPPED))
    budget = Budget(seconds=1000.0, on_step=lambda step: True)
    found = chosen(observed(HEADS["kinked"]), Generator().manual_seed(0), budget)
    assert float(found.images.mean()) == pytest.approx(0.4) and "cut" not in found.findings[0].evidence


def test_its_searches_are_changed_together() -> None:
    chosen = recipes.best().with_settings(restarts=4, precision=precision.Double())
    for search in (*(rule.attack for rule in chosen.searches[8:]), chosen.pooled):
        assert search.restarts == 4 and search.precision == precision.Double()
        assert search.pruning == restart_pruning.SuccessiveHalving() and search.width is None
    assert chosen.exact == recipes.best().exact


def test_a_search_is_taken_up_again_through_the_choice(tmp_path) -> None:
    observation = observed(HEADS["averaged"])
    best = recipes.best()
    chosen = replace(best, searches=(Rule((), recipes.smoothed(20), ""),))
    whole = chosen(observation, Generator().manual_seed(0))
    stop = Budget(on_step=lambda step: step.iteration == 7, checkpoint=tmp_path / "state")
    assert chosen(observation, Generator().manual_seed(0), stop).status is Status.STOPPED
    resumed = chosen(observation, Generator().manual_seed(0), Budget(resume=tmp_path / "state"))
    assert torch.equal(resumed.images, whole.images) and resumed.loss == whole.loss


def test_kinks_and_averages_are_found_in_functions_too() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features = nn.functional.max_pool2d(torch.relu(self.convolution(images)), 2)
            return self.head(features.mean((2, 3)))

    network = freeze(Written().eval(), SHAPE)
    found = architecture(network)
    assert {"relu", "max_pool2d"} <= set(found.nonsmooth_layers)
    assert found.averages == ("mean",) and found.max_pools
    assert not architecture(observed(HEADS["kinked"]).network).max_pools
    assert not architecture(observed(HEADS["smooth"]).network).nonsmooth_layers


def test_a_number_of_iterations_is_that_of_the_search_and_does_not_end_it_before() -> None:
    observation, steps = observed(HEADS["averaged"]), []
    watch = Budget(max_iterations=3, on_step=lambda step: steps.append((step.iteration, step.seconds)) and None)
    assert recipes.best()(observation, Generator().manual_seed(0), watch).candidates[0].iterations == 3
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)]
    network, batch = freeze(nn.Sequential(*layers).eval(), SHAPE), Batch(torch.rand(1, *SHAPE), torch.tensor([1]))
    client = FedAvg(local_steps=3, lr=0.1)
    several_steps = observe(
        network, client, client(network, batch.images, batch.labels), batch, ThreatModel(labels="known")
    )
    found = recipes.best()(several_steps, Generator().manual_seed(0), Budget(max_iterations=4))
    assert "ReLU" in found.findings[0].message and found.status is not Status.STOPPED


@pytest.mark.parametrize("pooled", [False, True])
def test_a_dead_network_costs_no_result(pooled: bool) -> None:
    dead = nn.Conv2d(6, 4, 3)
    torch.nn.init.constant_(dead.bias, -10.0)
    pool = [nn.MaxPool2d(2)] if pooled else []
    head = nn.Linear(4 * (4 if pooled else 16), 4)
    observation = observed([nn.Conv2d(3, 6, 3), nn.ReLU(), dead, nn.ReLU(), *pool, nn.Flatten(), head])
    short = recipes.spectral(5)
    chosen = replace(recipes.best(), searches=(replace(SEARCHES["kinked"], attack=short),), pooled=short)
    found = chosen(observation, Generator().manual_seed(0))
    assert bool(found.images.isfinite().all()) and found.findings[0].code == "attack-chosen"


def test_what_was_found_survives_a_search_that_refuses_and_nothing_found_is_its_refusal() -> None:
    observation = replace(observed(HEADS["kinked"]), labels=None)
    refusing = replace(recipes.spectral(3), labels=_Refuses())
    kept = trying(Guess(0.4), search=refusing)
    with_labels = replace(observation, labels=torch.tensor([0]))
    assert float(kept(with_labels, Generator().manual_seed(0)).images.mean()) > -10
    nothing = trying(Guess(0.4, error=ThreatModelError("not this one")), search=refusing)
    with pytest.raises(ThreatModelError, match="no label"):
        nothing(observation, Generator().manual_seed(0))


class _Refuses:
    def __call__(self, observation: Observation) -> torch.Tensor:
        raise ThreatModelError("no label")


@pytest.mark.slow
def test_a_search_goes_on_in_pixels_and_what_is_hardly_nearer_does_not_count() -> None:
    module = SMALL_NETWORKS["two-linear"].build().eval()
    network = freeze(module, (3, 16, 16), mean=0.5, std=0.25)
    batch = Batch(pictures.photo("astronaut", (3, 16, 16))[None], torch.tensor([3]))
    update = FedSGD()(network, batch.images, batch.labels)
    observation = observe(network, FedSGD(), update, batch, ThreatModel(labels="known"))
    alone = trying()
    polished = trying(polish=SEARCHES["kinked"].polish)
    first, second = (each(observation, Generator().manual_seed(0)) for each in (alone, polished))
    before, after = (matching_error(observation, each.images, each.labels) for each in (first, second))
    assert after < 0.6 * before
    assert second.candidates[0].iterations == 600
    short = replace(SEARCHES["kinked"].polish.searches[0], max_iterations=1)
    hardly = trying(polish=replace(SEARCHES["kinked"].polish, searches=(short,)))
    assert torch.equal(hardly(observation, Generator().manual_seed(0)).images, first.images)


def test_searches_share_the_time_by_iterations_and_go_on_from_what_matches_best(monkeypatch) -> None:
    asked = []

    def noted(
        search: GradientInversion, observation: Observation, generator: Generator, budget: Budget, spare: float
    ) -> tuple[Reconstruction, str]:
        asked.append((search, budget.seconds, spare))
        return search(observation, generator, replace(budget, max_iterations=1)), ""

    monkeypatch.setattr(auto, "as_fits", noted)
    torch.manual_seed(0)
    network = freeze(nn.Sequential(*HEADS["kinked"]).eval(), SHAPE, mean=0.5, std=0.25)
    batch = Batch(torch.full((1, *SHAPE), 0.8), torch.tensor([0]))
    update = FedSGD()(network, batch.images, batch.labels)
    observation = observe(network, FedSGD(), update, batch, ThreatModel(labels="known"))
    chosen = trying(Guess(0.75), search=recipes.spectral(300), polish=SEARCHES["kinked"].polish)
    chosen(observation, Generator().manual_seed(0), Budget(seconds=9000.0))
    (_, first, others), (polish, second, _), *_ = asked
    assert (first, second, others) == pytest.approx((3000.0, 9000.0, 6000.0), rel=0.01)
    start = polish.start((1, 1, *SHAPE), Generator(), torch.float32)[0]
    torch.testing.assert_close(network.denormalize(start), torch.full((1, *SHAPE), 0.75))
