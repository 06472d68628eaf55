"""Several targets: the unit is the target, the intervals hold what they should, and chance is told from leakage."""

import pytest
import torch

from inversefed.errors import InputError
from inversefed.evaluation.intervals import mean_interval
from inversefed.evaluation.score import score
from inversefed.evaluation.verdict import Evidence, decide
from inversefed.report.model import Report
from inversefed.report.several_targets import judge
from inversefed.types import Batch, Reconstruction, Status


def audited(target: int, margin: float = -5.0, null: float = -5.0, exact: bool = False, quality: float = 1.0) -> Report:
    """A report as an audit makes it: one picture, its margins, and 19 null runs around `null`."""
    random = torch.Generator().manual_seed(target)
    truth = Batch(torch.rand(1, 3, 4, 4, generator=random), torch.tensor([target % 4]))
    found = quality * truth.images + (1 - quality) * 0.5
    spread = torch.randn(19, 1, generator=random, dtype=torch.float64).clamp(-2, 2) * 0.1
    score_of = torch.tensor([margin], dtype=torch.float64)
    evidence = Evidence(torch.tensor([exact]), score_of, score_of, list(null + spread), 19)
    return Report(
        "attack()",
        Reconstruction(found, truth.labels, 0.1, Status.FINISHED),
        truth,
        scores=score(Batch(found, truth.labels), truth),
        scenario={"num_classes": 4, "threat_model": {"labels": "unknown"}},
        verdict=decide(evidence, "One attack."),
    )


def test_targets_that_come_back_are_leaked_with_intervals_above_zero() -> None:
    verdict = judge([audited(target, margin=4.0 + target / 10) for target in range(10)])
    figures = verdict.figures
    assert verdict.leaked and figures.targets == 10
    assert figures.margin_over_null.low > 8 and figures.margin_over_controls.low > 4
    assert figures.called.mean == 1.0 and figures.called.low < 0.75
    assert "95" not in verdict.sentence and "100% of 10 targets called" in verdict.sentence


def test_targets_like_their_null_runs_are_not_leaked() -> None:
    jitter = torch.randn(20, generator=torch.Generator().manual_seed(1)) * 0.1
    verdict = judge([audited(target, margin=-5.0 + float(jitter[target])) for target in range(20)])
    assert not verdict.leaked and verdict.sentence.startswith("Not recovered by these attacks within this budget")
    assert "private" not in verdict.sentence + verdict.scope


def test_one_exact_recovery_among_many_is_a_leak() -> None:
    reports = [audited(target) for target in range(19)] + [audited(19, margin=90.0, exact=True)]
    verdict = judge(reports)
    assert verdict.leaked and verdict.figures.exact.mean == pytest.approx(0.05)


def test_more_calls_than_chance_makes_are_a_leak_and_one_call_of_twenty_is_none() -> None:
    def calls(number: int) -> bool:
        return judge([audited(target, margin=0.5 if target < number else -8.0) for target in range(20)]).leaked

    assert not calls(1) and calls(5)


def test_seeds_of_one_target_are_averaged_first() -> None:
    reports = [audited(0, margin=10.0) for _ in range(8)] + [audited(1, margin=2.0)]
    figures = judge(reports).figures
    assert figures.targets == 2 and figures.audits == 9
    assert figures.margin_over_controls.mean == pytest.approx(6.0)


def test_identification_and_labels_stand_beside_chance() -> None:
    others = torch.rand(9, 3, 4, 4, generator=torch.Generator().manual_seed(99))
    sharp = judge([audited(target, quality=0.9) for target in range(6)], candidates=others).figures
    assert sharp.identified.mean == 1.0 and sharp.identified.by_chance == pytest.approx(0.1)
    flat = judge([audited(target, quality=0.0) for target in range(6)], candidates=others).figures
    assert flat.identified.mean < 0.6
    assert sharp.labels.mean == 1.0 and sharp.labels.by_chance == 0.25
    assert sharp.labels.majority == pytest.approx(1 / 3)


def test_candidates_that_are_truths_are_not_counted_and_none_but_truths_are_refused() -> None:
    reports = [audited(target, quality=0.9) for target in range(3)]
    truths = torch.cat([report.truth.images for report in reports])
    found = judge(reports, candidates=truths).figures.identified
    assert found.candidates == 3 and found.by_chance == pytest.approx(1 / 3) and found.mean == 1.0
    with pytest.raises(InputError, match="none is left"):
        judge(reports[:1], candidates=truths[:1])


@pytest.mark.parametrize(
    "reports", [[], [Report("a", Reconstruction(torch.zeros(1, 1, 2, 2), torch.tensor([0]), 0.0, Status.FINISHED))]]
)
def test_reports_that_cannot_be_judged_are_refused(reports: list) -> None:
    with pytest.raises(InputError, match=r"needs reports|no truth"):
        judge(reports)


@pytest.mark.parametrize(
    ("count", "skewed", "least"), [(6, False, 0.92), (6, True, 0.85), (10, False, 0.92), (10, True, 0.87)]
)
def test_intervals_hold_the_true_mean_as_often_as_they_say_or_nearly(count: int, skewed: bool, least: float) -> None:
    """The percentile bootstrap holds it in 0.86 (6 normal values), 0.80 (6 exponential), 0.90 and 0.87 of samples."""
    random, held = torch.Generator().manual_seed(count), 0
    for _ in range(600):
        values = torch.randn(count, generator=random)
        if skewed:
            values = -torch.rand(count, generator=random).log() - 1
        found = mean_interval(values.tolist())
        held += found.low <= 0 <= found.high
    assert least <= held / 600 <= 0.98


def test_few_targets_have_no_interval_and_the_sentence_says_so() -> None:
    for count in (1, 3, 5):
        for share in (False, True):
            found = mean_interval([1.0] * count, share=share)
            assert found.mean == 1.0 and found.low is None and found.high is None
    few = judge([audited(target, margin=4.0) for target in range(3)])
    assert few.leaked and few.figures.margin_over_null.low is None and "too few targets for intervals" in few.sentence
    assert "too few" not in judge([audited(target, margin=4.0) for target in range(6)]).sentence


def test_intervals_of_shares_stay_between_0_and_1() -> None:
    assert mean_interval([0.0] * 100, share=True).high == pytest.approx(0.0362, abs=1e-3)
    yes = mean_interval([1.0] * 5 + [0.0] * 5, share=True)
    assert (yes.low, yes.high) == (pytest.approx(0.187, abs=1e-3), pytest.approx(0.813, abs=1e-3))  # Clopper-Pearson
    parts = mean_interval([0.9, 1.0, 1.0, 1.0, 1.0, 0.5], share=True)
    assert 0 <= parts.low < 0.9 < parts.high == 1.0


def test_intervals_of_equal_values() -> None:
    assert mean_interval([3.0] * 6).low == 3.0
    assert mean_interval([1.0, 2.0, 3.0, 4.0, 5.0, float("nan")]).low is None
