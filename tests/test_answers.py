"""What a "no" means, in whole audits: the picture is in the update all the same, or it is not."""

from dataclasses import replace

import pytest
import torch
from torch import Generator, nn

import inversefed
from inversefed import Batch, Report, ThreatModel, defenses, recipes
from inversefed.controls.null_update import null_observation
from inversefed.evaluation.verdict import Answer, Verdict, answered
from inversefed.fl.simulate import observed
from inversefed.pipeline import audit_observation
from inversefed.report.gate import leakage, outcome
from inversefed.report.several_targets import judge
from inversefed.thresholds import IN_THE_UPDATE_DB, MISFIT, NOT_IN_THE_UPDATE_DB
from inversefed.types import Limit
from inversefed.zoo import pictures

CRIPPLED = recipes.geiping(max_iterations=5)
SHAPE = (3, 8, 8)


def photo(name: str = "chelsea") -> torch.Tensor:
    return pictures.photo(name, SHAPE)[None]


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)
    ).eval()


def trained() -> nn.Module:
    """One that knows the private picture's class for sure, so that its gradient is small."""
    module, images = convolutions(), torch.cat([photo(name) for name in pictures.photo_names()[:4]])
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module((images - 0.5) / 0.25), torch.arange(4)).backward()
        optimizer.step()
    return module


def audit(module: nn.Module, **settings: object) -> Report:
    return inversefed.audit(module, photo(), torch.tensor([1]), mean=0.5, std=0.25, attack=CRIPPLED, **settings)


def test_an_attack_that_was_crippled_does_not_make_a_picture_safe() -> None:
    report = audit(convolutions())
    assert report.verdict is not None
    assert report.verdict.answer == Answer.IN_THE_UPDATE
    assert not report.verdict.leaked
    assert report.limit is not None
    assert report.limit.limit_psnr[0] > 60
    assert report.limit.determined == (192,)
    assert report.digest.outcome == "present"
    first = (report.digest.mark, report.digest.subject, report.headline, report.verdict.sentence, report.summary())
    for each in first:
        assert "in the update" in " ".join(each.lower().split()) or "though it is in it" in each
    written = report.to_dict()
    assert written["verdict"]["answer"] == "in the update, not recovered"
    assert {"limit_psnr", "determined", "of", "noise", "at"} <= set(written["limit"])
    (below,), (over,) = (written["verdict"]["figures"][name] for name in ("below_limit", "limit_over_controls"))
    assert below == pytest.approx(report.limit.limit_psnr[0] - float(report.scores["peak_signal_noise_ratio"]))
    assert over > IN_THE_UPDATE_DB
    assert outcome(leakage(written)) == "unknown"
    assert outcome(leakage(written), 3.0) == "below"


def test_noise_far_above_the_signal_leaves_nothing_in_the_update() -> None:
    report = audit(convolutions(), defenses=(defenses.GaussianNoise(1e3),))
    assert report.verdict is not None
    assert report.verdict.answer == Answer.NOT_IN_THE_UPDATE
    assert report.digest.outcome == "absent"
    assert outcome(leakage(report.to_dict())) == "below"


def test_a_trained_network_that_knows_its_picture_does_not_read_as_safe() -> None:
    module = trained()
    assert torch.softmax(module((photo() - 0.5) / 0.25), dim=1)[0, pictures.photo_names().index("chelsea")] > 0.9
    label = torch.tensor([pictures.photo_names().index("chelsea")])
    report = inversefed.audit(module, photo(), label, mean=0.5, std=0.25, attack=CRIPPLED)
    assert report.verdict is not None
    assert report.verdict.answer == Answer.IN_THE_UPDATE
    assert report.limit is not None
    assert report.limit.limit_psnr[0] > 60


@pytest.mark.parametrize("seed", range(3))
def test_an_update_of_random_numbers_holds_no_picture(seed: int) -> None:
    observation, batch = observed(convolutions(), photo(), torch.tensor([1]), mean=0.5, std=0.25)
    nothing = null_observation(observation, Generator().manual_seed(seed))
    report = audit_observation(nothing, truth=batch, attack=CRIPPLED)
    assert report.verdict is not None
    assert report.verdict.answer != Answer.IN_THE_UPDATE


def test_the_update_of_another_picture_does_not_hold_this_one() -> None:
    observation, _ = observed(convolutions(), photo("coffee"), torch.tensor([1]), mean=0.5, std=0.25)
    report = audit_observation(observation, truth=Batch(photo(), torch.tensor([1])), attack=CRIPPLED)
    assert report.verdict is not None and report.limit is not None and report.limit.misfit is not None
    assert report.limit.misfit > MISFIT
    assert report.verdict.answer in (Answer.UNDECIDED, Answer.NOT_IN_THE_UPDATE)


def test_a_limit_far_above_the_controls_is_none_of_an_update_that_other_pictures_made() -> None:
    no = Verdict(False, "Not recovered by these attacks.", "One attack.")
    scores, controls = torch.tensor([7.0]), {"constant": torch.tensor([19.0])}
    for misfit, answer in ((MISFIT + 0.1, Answer.UNDECIDED), (1.0, Answer.IN_THE_UPDATE), (None, Answer.IN_THE_UPDATE)):
        limit = Limit((60.0,), (192,), 192, "rounding", "truth", 12.0, misfit=misfit)
        told = answered(no, limit, scores, controls)
        assert told.answer == answer
        assert ("Other pictures than the truth made this update" in told.sentence) == (answer is Answer.UNDECIDED)


def test_without_the_truth_the_report_says_where_the_limit_was_taken() -> None:
    threat = ThreatModel(labels="known")
    observation, _ = observed(convolutions(), photo(), torch.tensor([1]), mean=0.5, std=0.25, threat=threat)
    report = audit_observation(observation, attack=CRIPPLED, threat=threat)
    assert report.verdict is not None
    assert report.limit is not None
    assert report.limit.at == "stand-in"
    assert report.verdict.answer == Answer.IN_THE_UPDATE
    assert "picture made up" in report.verdict.sentence


def test_where_there_is_no_limit_the_report_says_why_and_a_no_stays_open() -> None:
    report = inversefed.audit(
        convolutions(), photo(), torch.tensor([1]), attack=recipes.surrogate(), max_iterations=3, nulls=1,
        threat=ThreatModel(client="unknown", labels="known"),
    )  # fmt: skip
    written = report.to_dict()
    assert written["limit"]["limit_psnr"] is None
    assert "client" in written["limit"]["why"]
    assert report.verdict is None or report.verdict.answer == Answer.UNDECIDED


@pytest.mark.parametrize(
    ("room", "answer"),
    [
        (IN_THE_UPDATE_DB + 0.1, Answer.IN_THE_UPDATE),
        (NOT_IN_THE_UPDATE_DB + 0.1, Answer.UNDECIDED),
        (NOT_IN_THE_UPDATE_DB - 0.1, Answer.NOT_IN_THE_UPDATE),
    ],
)
def test_the_answer_follows_from_the_limit_over_the_best_control(room: float, answer: Answer) -> None:
    found = Verdict(False, "Not recovered by these attacks within this budget.", "One attack.")
    limit = Limit((19.0 + room,), (7,), 192, "rounding to float32", "truth", 12.0)
    controls = {"gray": torch.tensor([15.0]), "constant": torch.tensor([19.0])}
    assert answered(found, limit, torch.tensor([9.0]), controls).answer == answer
    window = replace(limit, whole=False)
    assert answered(found, window, torch.tensor([9.0]), controls).answer in (answer, Answer.UNDECIDED)
    assert answered(found, window, torch.tensor([9.0]), controls).answer != Answer.IN_THE_UPDATE
    assert answered(found, None).answer == Answer.UNDECIDED
    assert Verdict(True, "Leaked.", "One attack.").answer == Answer.RECOVERED


def test_several_targets_are_told_how_many_answers_there_were_of_each() -> None:
    reports = [
        inversefed.audit(convolutions(), photo(name), torch.tensor([1]), mean=0.5, std=0.25, attack=CRIPPLED, nulls=1)
        for name in ("chelsea", "astronaut")
    ]
    found = judge(reports)
    assert sum(found.figures.answers.values()) == 2
    assert found.figures.answers.get(Answer.IN_THE_UPDATE, 0) >= 1
    assert "is in the update that was not recovered" in found.sentence
    assert isinstance(reports[0].truth, Batch)
