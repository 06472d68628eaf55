"""Several restarts: together or alone, pruned or not, interrupted and taken up again."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator, nn

from inversefed import (
    Batch,
    Budget,
    FedSGD,
    GradientInversion,
    Observation,
    Status,
    ThreatModel,
    freeze,
    observe,
    recipes,
)
from inversefed.attacks import labels
from inversefed.attacks.pieces import optimizers, selection, starts
from inversefed.attacks.pieces.group_consistency import GroupConsistency
from inversefed.attacks.search import checkpoint, convergence, precision, restart_pruning
from inversefed.attacks.search.restarts import planned_steps
from inversefed.errors import ConfigError, InputError
from inversefed.fl.simulate import observed

SHAPE = (3, 8, 8)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture
def observation(tiny: nn.Module) -> Observation:
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 8), torch.linspace(0, 3, 8), indexing="ij")
    images = 0.5 + 0.4 * torch.stack([rows.sin(), columns.cos(), (rows - columns).sin()])[None]
    network, batch = freeze(tiny, SHAPE, mean=0.5, std=0.25), Batch(images, torch.tensor([1]))
    update = FedSGD()(network, batch.images, batch.labels)
    return observe(network, FedSGD(), update, batch, ThreatModel(labels="known"))


def many(restarts: int = 8, iterations: int = 40, **changes: object) -> GradientInversion:
    return replace(recipes.geiping(restarts, iterations), **changes)


def test_halving_gives_the_winner_of_all_restarts_at_a_fraction_of_the_steps(observation: Observation) -> None:
    halved, full = many(pruning=restart_pruning.SuccessiveHalving()), many()
    found, everything = halved(observation, seeded()), full(observation, seeded())
    spent = sum(candidate.iterations for candidate in found.candidates)
    assert spent == planned_steps(8, halved.pruning(8, 40)) < 0.3 * 8 * 40
    assert [c.status for c in found.candidates].count(Status.PRUNED) == 7
    ended = next(c for c in found.candidates if c.status is Status.FINISHED)
    same = everything.candidates[found.candidates.index(ended)]
    assert torch.equal(ended.images, same.images) and found.loss == ended.loss
    assert found.loss <= 1.2 * everything.loss


def test_a_pruned_restart_was_matched_worse_when_it_was_pruned(observation: Observation) -> None:
    attack = many(pruning=restart_pruning.SuccessiveHalving(at=(0.25,), keep=(0.5,)))
    found = attack(observation, seeded())
    pruned = [c for c in found.candidates if c.status is Status.PRUNED]
    kept = [c for c in found.candidates if c.status is not Status.PRUNED]
    assert {c.iterations for c in pruned} == {10} and len(pruned) == len(kept) == 4
    assert min(c.history[9] for c in pruned) > max(c.history[9] for c in kept)


@pytest.mark.parametrize("width", [2, 3, None])
def test_restarts_that_advance_together_are_those_that_run_alone(observation: Observation, width: int | None) -> None:
    smooth = replace(many(3, 20), optimizer=optimizers.Adam(0.1, signed=False))
    alone, together = (replace(smooth, width=each)(observation, seeded()) for each in (1, width))
    for one, other in zip(alone.candidates, together.candidates, strict=True):
        assert float((one.images - other.images).abs().max()) < 1e-4
        assert one.history == pytest.approx(other.history, rel=1e-4)
    assert not [finding for finding in together.findings if "fallback" in finding.code]
    again = replace(smooth, width=width)(observation, seeded())
    assert torch.equal(again.images, together.images)


def test_several_restarts_advance_in_one_call_where_they_are_told_to(observation: Observation) -> None:
    order = []
    look = Budget(on_step=lambda step: order.append((step.restart, step.iteration)) and None)
    many(4, 2, width=2)(observation, seeded(), look)
    assert order == [(0, 1), (1, 1), (0, 2), (1, 2), (2, 1), (3, 1), (2, 2), (3, 2)]


def test_dropout_masks_are_not_lost_when_restarts_advance_together() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.Dropout(), nn.Flatten(), nn.Linear(216, 4)).train()
    network, batch = freeze(module, SHAPE), Batch(torch.rand(1, *SHAPE), torch.tensor([2]))
    update = FedSGD()(network, batch.images, batch.labels)
    observation = observe(network, FedSGD(), update, batch, ThreatModel(labels="known"))
    found = many(2, 3, width=2)(observation, seeded())
    assert torch.equal(found.images, many(2, 3)(observation, seeded()).images)
    assert "vectorized-fallback" in {finding.code for finding in found.findings}


class _Stop(Exception):
    pass


ATTACKS = {
    "adam": many(5, 12, pruning=restart_pruning.SuccessiveHalving((0.2, 0.5), (0.6, 0.2))),
    "together": many(4, 12, width=2, pruning=restart_pruning.SuccessiveHalving((0.3,), (0.5,))),
    "joint labels": many(2, 8, labels=labels.JointLabels()),
    "lbfgs": replace(recipes.curvature(3), restarts=2, start=starts.Normal()),
    "spectral": recipes.spectral(10),
}


@pytest.mark.parametrize("name", list(ATTACKS))
@pytest.mark.parametrize("how", ["callback", "interrupt"])
def test_a_search_that_is_taken_up_again_ends_with_the_same_bits(
    observation: Observation, tmp_path: Path, name: str, how: str
) -> None:
    attack, path = ATTACKS[name], tmp_path / "state"
    steps: list[int] = []
    whole = attack(observation, seeded(), Budget(on_step=lambda step: steps.append(step.iteration) and None))

    for at in (1, len(steps) // 3, len(steps) - 2):
        seen = 0

        def look(_: object, at: int = at) -> bool:
            nonlocal seen
            seen += 1
            if seen == at and how == "interrupt":
                raise KeyboardInterrupt
            return seen == at

        cut = attack(observation, seeded(), Budget(on_step=look, checkpoint=path))
        assert cut.status is (Status.INTERRUPTED if how == "interrupt" else Status.STOPPED)
        done = sum(candidate.iterations for candidate in cut.candidates)
        rest: list[int] = []
        resumed = attack(
            observation, seeded(), Budget(on_step=lambda step, r=rest: r.append(step.iteration) and None, resume=path)
        )
        assert torch.equal(resumed.images, whole.images) and resumed.loss == whole.loss
        assert resumed.status is whole.status and done + len(rest) == len(steps)
        assert [c.history for c in resumed.candidates] == [c.history for c in whole.candidates]
        assert [c.status for c in resumed.candidates] == [c.status for c in whole.candidates]


def test_an_interrupt_in_the_middle_of_a_line_search_leaves_a_whole_state(
    observation: Observation, tmp_path: Path
) -> None:
    attack, path = recipes.curvature(5), tmp_path / "state"
    whole, calls = attack(observation, seeded()), 0

    def breaks(images: torch.Tensor, _: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise KeyboardInterrupt
        return images.sum() * 0.0

    def silent(images: torch.Tensor, _: object) -> torch.Tensor:
        return images.sum() * 0.0

    priors: Sequence[object] = (_Switch(breaks, silent),)
    shaky = replace(attack, priors=tuple(priors))
    assert shaky(observation, seeded(), Budget(checkpoint=path)).status is Status.INTERRUPTED
    resumed = shaky(observation, seeded(), Budget(resume=path))
    assert torch.equal(resumed.images, whole.images)


class _Switch:
    """A prior whose repr does not change between two runs of one attack."""

    def __init__(self, first: object, then: object) -> None:
        self.first, self.then = first, then

    def __repr__(self) -> str:
        return "_Switch()"

    def __call__(self, images: torch.Tensor, observation: Observation) -> torch.Tensor:
        try:
            value: torch.Tensor = self.first(images, observation)  # type: ignore[operator]
        except KeyboardInterrupt:
            self.first = self.then
            raise
        return value


def test_a_checkpoint_of_another_search_is_refused(observation: Observation, tmp_path: Path) -> None:
    path = tmp_path / "state"
    many(2, 5)(observation, seeded(), Budget(checkpoint=path))
    assert path.stat().st_mode & 0o077 == 0
    for attack, seed in ((many(2, 6), 0), (many(3, 5), 0), (many(2, 5), 1)):
        with pytest.raises(InputError, match="checkpoint of another search"):
            attack(observation, seeded(seed), Budget(resume=path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="no checkpoint"):
        many(2, 5)(observation, seeded(), Budget(resume=path))
    with pytest.raises(InputError, match="cannot read"):
        many(2, 5)(observation, seeded(), Budget(resume=tmp_path / "missing"))
    with pytest.raises(InputError, match="cannot write"):
        many(2, 5)(observation, seeded(), Budget(checkpoint=tmp_path / "no" / "folder"))


def test_a_search_that_stands_still_has_converged(observation: Observation) -> None:
    still = recipes.geiping(max_iterations=500)
    slow, stalled = optimizers.Adam(1e-12, signed=False), convergence.Stalled(patience=5, gain=1e-3)
    still = replace(still, optimizer=slow, projections=(), convergence=stalled)
    found = still(observation, seeded())
    assert found.status is Status.CONVERGED and found.candidates[0].iterations == 6
    assert not convergence.Stalled(5, 1e-3)([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert not convergence.Never()([1.0] * 1000)


def test_what_is_left_is_told_and_the_best_of_all_restarts_is_at_hand(observation: Observation) -> None:
    told = []

    def look(step: object) -> None:
        told.append((step.remaining, step.loss, step.best()))

    found = many(3, 10, selection=selection.LowestLoss(), priors=())(observation, seeded(), Budget(on_step=look))
    left = [remaining for remaining, _, _ in told]
    assert left[-1] == 0 and all(0 <= each < 1e3 for each in left)
    lowest = min(range(len(told)), key=lambda index: told[index][1])
    assert float((told[-1][2] - found.images).abs().max()) < 0.2 and lowest > 0
    within = []
    many(1, 10**6)(observation, seeded(), Budget(seconds=0.2, on_step=lambda s: within.append(s.remaining) and None))
    assert max(within) <= 0.2


def test_double_precision_searches_in_float64_and_answers_in_the_network_s_own() -> None:
    torch.manual_seed(0)
    module, image = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval(), torch.rand(1, 3, 8, 8)
    observation, _ = observed(module, image, torch.tensor([1]), threat=ThreatModel(labels="known"))
    attack = replace(recipes.curvature(20), convergence=convergence.Never())
    found = replace(attack, precision=precision.Double())(observation, seeded())
    assert found.images.dtype is torch.float32
    assert found.loss < 1e-12, "one linear layer comes to the rounding of its update in a few steps"
    seen = []

    def prior(images: torch.Tensor, _: object) -> torch.Tensor:
        seen.append(images.dtype)
        return images.sum() * 0

    replace(attack, priors=(prior,), precision=precision.Double(), max_iterations=1)(observation, seeded())
    assert set(seen) == {torch.float64}


def test_bfloat16_comes_first_and_the_network_s_own_format_finishes(observation: Observation) -> None:
    seen = []

    class Watched:
        def __call__(self, predicted: object, observed: object) -> torch.Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return recipes.geiping().objective(predicted, observed)

    attack = many(1, 10, objective=Watched(), precision=precision.EarlyBFloat16(until=0.6))
    found = attack(observation, seeded())
    assert seen[:2] == [False, True]  # the proof: once in the network's format, once in bfloat16
    assert seen[2:12] == [True] * 6 + [False] * 4
    assert not [finding for finding in found.findings if "fallback" in finding.code]


@pytest.mark.parametrize(("native", "enough", "used"), [(True, 0.0, True), (False, 0.0, False), (True, 1e12, False)])
def test_bfloat16_can_be_left_to_machines_and_networks_that_it_serves(
    observation: Observation, monkeypatch: pytest.MonkeyPatch, native: bool, enough: float, used: bool
) -> None:
    monkeypatch.setattr(precision, "computes_bfloat16", lambda device: native)
    monkeypatch.setattr(precision, "_ENOUGH", enough)
    found = many(1, 5, precision=precision.EarlyBFloat16(worthwhile=True))(observation, seeded())
    plain = many(1, 5)(observation, seeded())
    assert torch.equal(found.images, plain.images) is not used


def test_bfloat16_is_not_used_where_its_gradient_is_wrong(observation: Observation) -> None:
    attack = many(1, 5, precision=precision.EarlyBFloat16(tolerance=1e-9))
    found = attack(observation, seeded())
    assert "bfloat16-fallback" in {finding.code for finding in found.findings}
    assert torch.equal(found.images, many(1, 5)(observation, seeded()).images)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: restart_pruning.SuccessiveHalving((0.5, 0.1), (0.5, 0.1)),
        lambda: restart_pruning.SuccessiveHalving((0.5,), ()),
        lambda: convergence.Stalled(0),
        lambda: precision.EarlyBFloat16(2.0),
        lambda: many(2, 5, width=0),
        lambda: many(2, 5, compilation="yes"),
        lambda: many(2, 5, precision="double"),
        lambda: many(2, 5, noise=0.1),
    ],
)
def test_what_makes_no_sense_is_refused(bad: object, unchecked: None) -> None:
    with pytest.raises(ConfigError):
        bad()  # type: ignore[operator]


def test_a_checkpoint_that_cannot_be_written_is_told_before_the_work_or_costs_nothing(
    observation: Observation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    look = lambda step: steps.append(step.iteration) and None  # noqa: E731
    with pytest.raises(InputError, match="cannot write"):
        many(1, 5)(observation, seeded(), Budget(on_step=look, checkpoint=tmp_path / "no" / "folder"))
    assert not steps

    def full(path: Path, *_: object) -> None:
        if path.exists():
            raise InputError("cannot write the checkpoint: disk full")
        path.touch()

    monkeypatch.setattr(checkpoint, "write", full)
    found = many(1, 5)(observation, seeded(), Budget(checkpoint=tmp_path / "state"))
    assert found.status is Status.FINISHED and "checkpoint-failed" in {finding.code for finding in found.findings}


def test_a_checkpoint_knows_labels_and_noise(observation: Observation, tmp_path: Path) -> None:
    attack, path = recipes.spectral(4), tmp_path / "state"
    attack(observation, seeded(), Budget(checkpoint=path))
    for other, seed in ((replace(observation, labels=torch.tensor([2])), 0), (observation, 1)):
        with pytest.raises(InputError, match="another search"):
            attack(other, seeded(seed), Budget(resume=path))


def test_restarts_that_are_lost_take_no_place_and_are_not_hidden(observation: Observation) -> None:
    def explodes(images: torch.Tensor, _: object) -> torch.Tensor:
        return images.sum() * float("nan")

    lost = many(4, 10, priors=(explodes,), pruning=restart_pruning.SuccessiveHalving((0.2,), (0.5,)))(
        observation, seeded()
    )
    assert lost.status is Status.NON_FINITE
    assert {candidate.status for candidate in lost.candidates} == {Status.NON_FINITE}


def test_settings_keep_what_it_was_told() -> None:
    changed = recipes.geiping().with_settings(restarts=8, width=4)
    assert changed.width == 4 and changed.pruning == restart_pruning.SuccessiveHalving()
    assert recipes.geiping().with_settings(restarts=8).width is None


def test_a_trial_of_vectorized_random_layers_leaves_the_random_state_alone() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.Dropout(), nn.Flatten(), nn.Linear(216, 4)).train()
    network, batch = freeze(module, SHAPE), Batch(torch.rand(1, *SHAPE), torch.tensor([2]))
    update = FedSGD()(network, batch.images, batch.labels)
    before = torch.get_rng_state()
    many(2, 3, width=2)(observe(network, FedSGD(), update, batch, ThreatModel(labels="known")), seeded())
    assert torch.equal(torch.get_rng_state(), before)


AFTER = 3
"""Evaluations that tell what a restart is worth, when it has ended."""


class Slow(nn.Module):
    """Each evaluation takes a second of a clock that stands still otherwise."""

    now = 0.0

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Slow.now += 1.0
        return self.module(x)


@pytest.fixture
def slow(observation: Observation, monkeypatch: pytest.MonkeyPatch) -> Observation:
    monkeypatch.setattr(Slow, "now", 0.0)
    monkeypatch.setattr(time, "monotonic", lambda: Slow.now)
    network = freeze(Slow(observation.network.module), SHAPE, mean=0.5, std=0.25)
    update = {f"module.{name}": part for name, part in observation.update.items()}
    return replace(observation, network=network, update=update)


def started(attack: GradientInversion, observation: Observation) -> float:
    return attack(observation, seeded(), Budget(max_iterations=1, seconds=1e-9)).loss


@pytest.mark.parametrize("search", [recipes.curvature(), recipes.dlg()], ids=["line search", "fixed steps"])
def test_the_clock_ends_an_iteration_of_many_evaluations(slow: Observation, search: GradientInversion) -> None:
    """Issue: one iteration of L-BFGS, ten to twenty evaluations, was carried out to its end."""
    start, began = started(search, slow), Slow.now
    found = search(slow, seeded(), Budget(seconds=6.5))
    assert found.status is Status.STOPPED and found.candidates[0].iterations == 1
    assert Slow.now - began <= 7 + AFTER
    assert found.loss < start


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_best_that_a_cut_iteration_came_to_is_the_result(slow: Observation, keep: str) -> None:
    losses, search = list[float](), replace(recipes.curvature(), keep=keep)
    for seconds in range(1, 25):
        began = Slow.now
        found = search(slow, seeded(), Budget(seconds=seconds + 0.5))
        assert Slow.now - began <= seconds + 1 + AFTER
        losses.append(found.loss)
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.5 * losses[0]


def test_a_search_cut_within_an_iteration_goes_on_to_the_same_bits(slow: Observation, tmp_path: Path) -> None:
    search, path = recipes.curvature(6), tmp_path / "state"
    whole = search(slow, seeded())
    for seconds in (4.5, 17.5, 30.5):
        cut = search(slow, seeded(), Budget(seconds=seconds, checkpoint=path))
        assert cut.status is Status.STOPPED and cut.loss > whole.loss
        resumed = search(slow, seeded(), Budget(resume=path))
        assert (
            torch.equal(resumed.images, whole.images) and resumed.candidates[0].history == whole.candidates[0].history
        )


def test_restarts_that_go_side_by_side_ask_the_clock_one_by_one(slow: Observation) -> None:
    search = many(6, 10, consistency=GroupConsistency())
    began = Slow.now
    found = search(slow, seeded(), Budget(seconds=8.5))
    assert found.status is Status.STOPPED and Slow.now - began <= 9 + AFTER * 6


def test_what_comes_before_the_first_step_counts_as_time(slow: Observation) -> None:
    def unhurried(observation: Observation) -> torch.Tensor:
        Slow.now += 100.0
        return torch.tensor([1])

    search = replace(recipes.geiping(1, 50), labels=unhurried)
    found = search(replace(slow, labels=None), seeded(), Budget(seconds=50.0))
    assert found.candidates[0].iterations == 1
