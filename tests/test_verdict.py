"""The verdict of whole audits: known leaks are called, updates that say nothing are not."""

import functools
import json
import time
from dataclasses import replace

import pytest
import torch
from torch import Generator, nn

import inversefed
from inversefed import ThreatModel, defenses, recipes
from inversefed.attacks.rules import Rule
from inversefed.controls.null_update import null_observation
from inversefed.errors import ConfigError, InputError
from inversefed.fl.simulate import observed
from inversefed.fl.threat import Observation
from inversefed.pipeline import audit_observation
from inversefed.report import gate
from inversefed.report.model import Report
from inversefed.types import Batch, Budget, Reconstruction, Status
from inversefed.zoo import networks, pictures

SHORT = recipes.geiping(max_iterations=3)
SPECTRAL = recipes.spectral(16)
SHAPE = (3, 8, 8)


@functools.cache
def photos(side: int = 8) -> torch.Tensor:
    return torch.stack([pictures.photo(name, (3, side, side)) for name in pictures.photo_names()])


@pytest.fixture
def others() -> Batch:
    return Batch(photos()[3:], torch.arange(5) % 4)


def convolutions(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 4)).eval()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_false_alarms_on_null_updates_are_at_most_five_percent_over_100_seeds() -> None:
    """Two counts: the verdict's, which has the controls to pass too, and that of the null runs alone.

    The latter must be near one in twenty, no more and hardly less, or the repeats are not exchangeable.
    """
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 12), nn.Sigmoid(), nn.Linear(12, 4)).eval()
    truth = pictures.photo("chelsea", (3, 4, 4))[None]
    threat, short = ThreatModel(labels="known"), recipes.geiping(max_iterations=4)
    attack = replace(short, optimizer=replace(short.optimizer, lr=0.5))  # far enough from the start for runs to differ
    observation, batch = observed(module, truth, torch.tensor([1]), mean=0.5, std=0.25, threat=threat)
    verdicts = []
    for seed in range(100):
        nothing = null_observation(observation, Generator().manual_seed(seed))
        verdicts.append(audit_observation(nothing, truth=batch, attack=attack, threat=threat, seed=seed).verdict)
    p_values = torch.tensor([verdict.figures.p_value for verdict in verdicts])
    assert all(verdict.figures.nulls == 19 for verdict in verdicts)
    assert sum(verdict.leaked for verdict in verdicts) <= 5
    assert int((p_values <= 0.05).sum()) <= 11  # binomial (100, 1/20): more has a chance of 0.4 %
    assert 0.43 < float(p_values.mean()) < 0.62  # uniform on 1/20 .. 1: 0.525, with a deviation of 0.029


@pytest.mark.parametrize("seed", range(2))
def test_a_picture_that_comes_back_is_called(seed: int, others: Batch) -> None:
    report = inversefed.audit(
        convolutions(seed), photos()[seed : seed + 1], torch.tensor([1]), mean=0.5, std=0.25,
        attack=SPECTRAL, seed=seed, others=Batch(others.images, others.labels),
    )  # fmt: skip
    verdict = report.verdict
    assert verdict.leaked and verdict.figures.p_value == 0.05 and verdict.figures.nulls == 19
    assert verdict.figures.best_null < 0 < verdict.figures.score
    assert set(report.baselines) == {"gray", "constant", "mean", "prior", "other", "null"} == set(report.controls)
    assert report.to_dict()["verdict"]["leaked"] is True
    assert verdict.sentence in " ".join(report.summary().split())
    assert all(len(line) <= 100 for line in report.summary().splitlines())
    assert "20 audits" in report.to_markdown() and "<html" in report.to_html()


@pytest.mark.slow
@pytest.mark.parametrize(("network", "seed"), [("LeNetZhu", 0), ("LeNetZhu", 1), ("ConvNet", 0)])
def test_a_photograph_through_an_untrained_network_is_called(network: str, seed: int) -> None:
    """In few iterations; `python -m benchmarks.verdict` has more networks, seeds and iterations."""
    attack = recipes.curvature(8) if network == "LeNetZhu" else recipes.spectral(6)
    report = inversefed.audit(
        networks.build(network, 10, seed=seed).eval(), photos(32)[seed : seed + 1], torch.tensor([1]),
        mean=0.5, std=0.25, attack=attack, seed=seed, threat=ThreatModel(labels="known"),
    )  # fmt: skip
    assert report.verdict.leaked, report.verdict


@pytest.mark.parametrize(("attack", "nulls"), [(recipes.best(), 1), (recipes.peel(), 0)])
def test_an_exact_result_needs_no_statistics(tiny: nn.Module, attack: object, nulls: int) -> None:
    report = inversefed.audit(tiny, photos()[:1], torch.tensor([2]), mean=0.5, std=0.25, attack=attack)
    figures = report.verdict.figures
    assert report.verdict.leaked and figures.exact and figures.matching_error < 1e-8
    assert figures.nulls == nulls and figures.p_value is None
    assert "exactly" in report.verdict.sentence


def test_a_picture_that_makes_the_same_update_and_is_not_the_truth_is_no_exact_leak() -> None:
    """Behind an average over the picture, its mean color makes the same update as the picture."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3, 4))
    truth = photos()[:1]

    def flat(observation: object, generator: Generator, budget: object) -> Reconstruction:
        images = truth.mean(dim=(2, 3), keepdim=True).expand_as(truth).contiguous()
        return Reconstruction(images, torch.tensor([1]), 0.0, Status.FINISHED)

    report = inversefed.audit(module, truth, torch.tensor([1]), attack=flat)
    assert report.verdict is None or not report.verdict.leaked
    assert "same-update" in {finding.code for finding in report.findings}
    observation, _ = observed(module, truth, torch.tensor([1]))
    unknown = audit_observation(observation, attack=flat)
    assert unknown.verdict is None or not unknown.verdict.figures.exact


SMALL = {"mean": 0.5, "std": 0.25}
OPEN = {
    "average": lambda: nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 10)),
    "stride": lambda: nn.Sequential(nn.Conv2d(3, 32, 3, 2), nn.LeakyReLU(), nn.Flatten(), nn.Linear(288, 4)),
}


@pytest.mark.parametrize("name", OPEN)
def test_one_of_many_pictures_that_make_the_update_is_not_called_exact(name: str) -> None:
    """Behind an average, and where a stride leaves out the last row, the client's own picture is one of many."""
    torch.manual_seed(0)
    module = OPEN[name]().eval()
    attack = recipes.best() if name == "average" else recipes.peel()
    observation, truth = observed(module, photos()[:1], torch.tensor([1]), **SMALL)
    known = audit_observation(observation, truth=truth, attack=attack, max_iterations=40, nulls=1)
    assert known.scores["peak_signal_noise_ratio"][0] < 40
    assert not known.verdict.figures.exact and known.verdict.figures.nulls == 1
    unknown = audit_observation(observation, attack=attack, max_iterations=40, nulls=1)
    for report in (known, unknown):
        told = report.digest
        said = " ".join([told.verdict, told.subject, told.scores, told.meaning])
        assert "exactly" not in said and "read out" not in said
        assert "same-update" in {finding.code for finding in report.findings}
    assert unknown.verdict is None or not unknown.verdict.figures.decided or unknown.verdict.leaked


def test_a_null_run_decides_where_a_result_makes_the_update_and_is_not_the_truth() -> None:
    torch.manual_seed(0)
    report = inversefed.audit(OPEN["average"]().eval(), photos()[:1], torch.tensor([1]), **SMALL, max_iterations=40)
    assert report.verdict.figures.nulls == 19 and report.verdict.figures.p_value is not None


@pytest.mark.parametrize("name", ["linear", "LeNetZhu"])
def test_without_a_truth_a_picture_that_the_update_settles_is_called(name: str) -> None:
    torch.manual_seed(0)
    side = 32 if name == "LeNetZhu" else 8
    module = networks.build(name, 10, seed=0) if side == 32 else nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    observation, truth = observed(module.eval(), photos(side)[:1], torch.tensor([1]), **SMALL)
    report = audit_observation(observation, attack=recipes.peel())
    figures = report.verdict.figures
    assert report.verdict.leaked and figures.exact and figures.pictures_leaked == (0,) and figures.unseen < 1e-6
    assert "no other picture near it" in report.verdict.sentence
    assert (report.images - truth.images).square().mean() < 1e-4


@pytest.mark.parametrize("known", [True, False])
def test_exactness_is_judged_picture_by_picture(known: bool) -> None:
    """A bright picture switches all units off, so that any bright one makes the same update beside the dark one."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 40), nn.ReLU(), nn.Linear(40, 4)).eval()
    with torch.no_grad():
        module[1].weight.copy_(-torch.rand(40, 192))
        module[1].bias.copy_(-module[1].weight.sum(dim=1) * 0.6)
    images = torch.cat([0.5 * photos()[:1], 0.8 + 0.2 * photos()[1:2]])
    observation, truth = observed(module, images, torch.tensor([1, 2]))
    found = torch.cat([images[:1], 0.8 + 0.2 * photos()[2:3]])[[1, 0]]

    def half(observation: object, generator: Generator, budget: object) -> Reconstruction:
        return Reconstruction(found, torch.tensor([2, 1]), 0.0, Status.FINISHED)

    report = audit_observation(observation, truth=truth if known else None, attack=half, nulls=0)
    figures, place = report.verdict.figures, 0 if known else 1
    assert report.verdict.leaked and not figures.exact
    assert figures.pictures_exact == figures.pictures_leaked == (place,)
    assert "1 of 2 pictures was" in report.verdict.sentence or "1 of 2 of them" in report.verdict.sentence
    assert not report.digest.subject.startswith(("All 2", "2 pictures"))


def test_without_a_truth_the_repeat_stands_in_the_order_of_the_result() -> None:
    """The runs of a repeat come in an order of their own, and only one of two pictures is agreed on."""
    runs = iter(range(100))
    same, random = photos()[:1], Generator().manual_seed(3)

    def search(observation: object, generator: Generator, budget: object) -> Reconstruction:
        other = torch.rand(1, *SHAPE, generator=random)
        images = torch.cat([other, same] if next(runs) == 0 else [same, other])
        return Reconstruction(images, torch.tensor([1, 2]), 0.0, Status.FINISHED)

    observation, _ = observed(convolutions(), photos()[:2], torch.tensor([1, 2]), **SMALL)
    case = audit_observation(observation, attack=search, nulls=1).verdict
    repeat = case.figures.margins_of_repeat
    assert repeat[1] > repeat[0]


def test_somebody_else_s_update_is_not_called_though_it_is_solved_exactly(tiny: nn.Module) -> None:
    other, _ = observed(tiny, photos()[4:5], torch.tensor([1]), mean=0.5, std=0.25)
    truth = Batch(photos()[:1], torch.tensor([1]))
    verdict = audit_observation(other, truth=truth, attack=recipes.peel(), nulls=2).verdict
    assert not verdict.leaked and not verdict.figures.exact


def test_noise_that_hides_the_picture_is_not_called() -> None:
    report = inversefed.audit(
        convolutions(), photos()[:1], torch.tensor([1]), mean=0.5, std=0.25, attack=SPECTRAL,
        defenses=(defenses.GaussianNoise(10.0),),
    )  # fmt: skip
    assert not report.verdict.leaked
    assert "Not given: the labels, the defenses." in report.verdict.scope


@pytest.mark.parametrize("null", [False, True])
def test_without_a_truth_two_runs_must_agree_on_a_picture_that_explains_the_update(null: bool) -> None:
    observation, _ = observed(convolutions(), photos()[:1], torch.tensor([1]), mean=0.5, std=0.25)
    if null:
        observation = null_observation(observation, Generator().manual_seed(5))
    report = audit_observation(observation, attack=SPECTRAL)
    assert report.verdict.leaked is not null
    assert "without the truth" in report.verdict.sentence and report.scores == {} and report.baselines == {}
    assert "<html" in report.to_html() and report.to_json()


def test_the_same_seed_gives_the_same_verdict(tiny: nn.Module) -> None:
    first, second = (
        inversefed.audit(tiny, photos()[:1], torch.tensor([1]), attack=SHORT, nulls=3, seed=4) for _ in range(2)
    )
    assert first.verdict.figures.margins_of_nulls == second.verdict.figures.margins_of_nulls
    assert torch.equal(first.controls["null"], second.controls["null"])


def test_the_repeat_runs_on_the_terms_of_the_null_runs(tiny: nn.Module) -> None:
    long = recipes.geiping(max_iterations=40)
    report = inversefed.audit(tiny, photos()[:1], torch.tensor([1]), attack=long, nulls=1)
    figures = report.verdict.figures
    assert figures.null_iterations == 30 and report.reconstruction.candidates[0].iterations == 40
    alone = inversefed.audit(tiny, photos()[:1], torch.tensor([1]), attack=replace(long, max_iterations=30), nulls=0)
    bars = [report.baselines[name]["peak_signal_noise_ratio"] for name in ("gray", "constant", "prior")]
    expected = alone.scores["peak_signal_noise_ratio"] - torch.stack(bars).amax(dim=0)
    assert figures.margins_of_repeat.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_no_null_runs_no_verdict_and_only_plain_controls(tiny: nn.Module) -> None:
    report = inversefed.audit(tiny, photos()[:1], torch.tensor([1]), attack=SHORT, nulls=0)
    assert report.verdict is None and set(report.baselines) == {"gray", "constant"}
    assert report.to_dict()["verdict"] is None


def test_null_runs_count_in_the_time_budget_and_what_is_cut_short_is_not_decided(tiny: nn.Module) -> None:
    report = inversefed.audit(
        tiny, photos()[:1], torch.tensor([1]), attack=recipes.geiping(), time_budget=0.3, nulls=5000
    )
    assert not report.verdict.figures.decided and report.status == "stopped"
    assert report.verdict.sentence.startswith("Not decided: ") and "of 5000 runs" in report.verdict.sentence
    finding = next(finding for finding in report.findings if finding.code == "null-runs-cut")
    assert finding.evidence["nulls"] < 5000


def test_the_watcher_of_the_controls_is_told_and_may_end_them(tiny: nn.Module) -> None:
    seen: list[tuple[int, int]] = []

    def watch(done: int, total: int) -> bool:
        seen.append((done, total))
        return done == 3

    report = inversefed.audit(tiny, photos()[:1], torch.tensor([1]), attack=SHORT, nulls=5, on_control=watch)
    assert seen == [(1, 6), (2, 6), (3, 6)]  # the prior, and five null runs; the attack is its own repeat
    assert not report.verdict.leaked and "2 of 5 runs" in report.verdict.figures.undecided_because


def ended(status: Status) -> object:
    """An attack that ends so, as by Ctrl-C or with a loss that is no number."""

    def attack(observation: object, generator: Generator, budget: object) -> Reconstruction:
        color = float("nan") if status is Status.NON_FINITE else 0.5
        return Reconstruction(torch.full((1, *SHAPE), color), torch.tensor([1]), color, status)

    return attack


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"attack": recipes.geiping(), "on_step": lambda step: step.iteration == 2}, "stopped by whoever watched it"),
        ({"attack": ended(Status.INTERRUPTED)}, "interrupted"),
        ({"attack": ended(Status.NON_FINITE)}, "NaN or infinite"),
    ],
)
def test_an_attack_that_was_ended_has_no_null_runs_and_a_verdict_that_says_why(
    tiny: nn.Module, given: dict, said: str
) -> None:
    report = inversefed.audit(tiny, photos()[:1], torch.tensor([1]), **given)
    assert not report.verdict.leaked and not report.verdict.figures.decided and not report.verdict.figures.nulls
    assert said in report.verdict.figures.undecided_because and said in report.summary().replace("\n        ", " ")
    told = report.digest
    assert told.outcome == "open" and "not decided" in f"{told.subject} {told.meaning}"
    assert "<html" in report.to_html() and said in report.to_json() and "Not decided" in report.to_markdown()
    side = gate.outcome(gate.leakage(json.loads(report.to_json())))
    assert side == "unknown"


class Clock:
    """A machine that is busy: each look at the clock costs time, as work does."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def clocked(monkeypatch: pytest.MonkeyPatch, tick: float) -> None:
    clock = Clock(tick)
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(time, "perf_counter", clock)


@functools.cache
def sixteen_bits(kind: str) -> tuple[Observation, Batch]:
    """An update rounded to 16 bits, which no exact method brings back exactly; or one of random numbers."""
    torch.manual_seed(0)
    activation = nn.ReLU() if kind == "kinked" else nn.Sigmoid()
    module = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), activation, nn.Flatten(), nn.Linear(1024, 4)).eval()
    observation, truth = observed(module, photos()[:1], torch.tensor([1]), **SMALL)
    update = {name: part.to(torch.bfloat16).to(part.dtype) for name, part in observation.update.items()}
    observation = replace(observation, update=update)
    return (null_observation(observation, Generator().manual_seed(5)) if kind == "random" else observation), truth


@functools.cache
def unlimited(kind: str, known: bool) -> bool:
    observation, truth = sixteen_bits(kind)
    return audit_observation(observation, truth=truth if known else None, nulls=1, attack=QUICK).verdict.leaked


RULES = recipes.best().searches
QUICK = replace(recipes.best(), searches=(*RULES[:-1], replace(RULES[-1], attack=recipes.spectral(32))))


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("kind", ["kinked", "smooth", "random"])
@pytest.mark.parametrize("tick", [1e-4, 0.02, 10.0])
def test_a_slow_machine_answers_as_a_fast_one_or_leaves_it_open(
    monkeypatch: pytest.MonkeyPatch, kind: str, known: bool, tick: float
) -> None:
    expected, (observation, truth) = unlimited(kind, known), sixteen_bits(kind)
    clocked(monkeypatch, tick)
    report = audit_observation(observation, truth=truth if known else None, nulls=1, attack=QUICK, time_budget=10.0)
    verdict = report.verdict
    assert verdict is not None and bool(report.images.isfinite().all())
    assert verdict.leaked == expected or not verdict.figures.decided
    assert verdict.figures.decided or verdict.figures.undecided_because or "without the truth" in verdict.sentence
    if tick == 1e-4:
        assert verdict.leaked == expected and verdict.figures.decided


@pytest.mark.parametrize("seconds", [1e-3, 0.01, 0.3])
@pytest.mark.parametrize("count", [1, 2])
def test_hardly_any_time_leaves_a_picture_and_an_open_verdict(tiny: nn.Module, seconds: float, count: int) -> None:
    report = inversefed.audit(tiny, photos()[:count], torch.tensor([1, 2])[:count], time_budget=seconds)
    assert report.images.shape == (count, *SHAPE) and bool(report.images.isfinite().all())
    assert report.verdict.leaked or not report.verdict.figures.decided


def test_repeats_have_the_pace_of_the_search_and_not_of_an_exact_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peeling takes most of the time and is one iteration; there is time for all iterations of a repeat."""
    observation, _ = sixteen_bits("smooth")

    def slow(observation: Observation, generator: Generator, budget: Budget) -> Reconstruction:
        found = recipes.peel()(observation, generator, Budget())
        time.monotonic.now += 5.0
        return found

    clocked(monkeypatch, 1e-4)
    attack = replace(recipes.best(), exact=(Rule((), slow, "slow"),))
    figures = audit_observation(observation, attack=attack, nulls=2, time_budget=10.0).verdict.figures
    assert figures.null_iterations == figures.null_iterations_without_limit == 5


def test_repeats_begin_anew_with_fewer_iterations_where_the_machine_slows_down(
    monkeypatch: pytest.MonkeyPatch, tiny: nn.Module
) -> None:
    clocked(monkeypatch, 1e-3)

    def slower(done: int, total: int) -> bool:
        time.monotonic.tick = 1.7e-3 if done == 2 else time.monotonic.tick
        return False

    report = inversefed.audit(
        tiny, photos()[:1], torch.tensor([1]), attack=recipes.geiping(max_iterations=32), time_budget=2.0, nulls=9,
        on_control=slower,
    )  # fmt: skip
    figures = report.verdict.figures
    assert figures.nulls == 9 and figures.null_iterations < figures.null_iterations_without_limit == 30


def test_a_report_of_a_batch_pairs_the_controls_with_the_truth(others: Batch) -> None:
    report = inversefed.audit(
        convolutions(), photos()[:2], torch.tensor([1, 2]), mean=0.5, std=0.25, attack=SPECTRAL, others=others, nulls=4
    )
    assert all(images.shape == (2, *SHAPE) for images in report.controls.values())
    assert report.verdict.figures.candidates == 6 and len(report.verdict.figures.margins_of_nulls) == 4
    assert isinstance(report, Report)


def test_a_truth_among_the_others_is_no_control(tiny: nn.Module) -> None:
    others = Batch(photos()[:4], torch.arange(4))
    report = inversefed.audit(
        tiny, photos()[:1], torch.tensor([1]), mean=0.5, std=0.25, attack=recipes.peel(), nulls=1, others=others
    )
    assert report.verdict.leaked and report.verdict.figures.candidates == 4
    assert torch.equal(report.controls["mean"], photos()[1:4].mean(dim=0, keepdim=True))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"nulls": -1}, ConfigError, "number of null runs"),
        ({"nulls": True}, ConfigError, "number of null runs"),
        ({"truth": Batch(torch.rand(2, *SHAPE), torch.tensor([0, 1]))}, InputError, "all pictures behind the update"),
        ({"others": Batch(torch.rand(1, 3, 4, 4), torch.tensor([0]))}, InputError, "others"),
        ({"others": Batch(photos()[:1], torch.tensor([0]))}, InputError, "none is left"),
    ],
)
def test_bad_input_is_one_clear_error(tiny: nn.Module, given: dict, error: type, message: str) -> None:
    observation, truth = observed(tiny, photos()[:1], torch.tensor([1]))
    with pytest.raises(error, match=message):
        audit_observation(observation, **{"truth": truth, "attack": SHORT} | given)
