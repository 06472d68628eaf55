import math

import pytest

from inversefed.errors import ConfigError, InputError
from inversefed.evaluation.verdict import Figures, Verdict
from inversefed.report.gate import Leakage, leakage, outcome
from inversefed.types import Status

NO_TRUTH = {"truth": None, "permutation": None, "scores": {}, "baselines": {}}


def judged(leaked: bool, **figures) -> Verdict:
    return Verdict(leaked, "A sentence.", "A scope.", Figures(**figures))


def test_the_worst_picture_over_its_best_control_decides(report):
    whole = report(3, noise=0.3).to_dict()
    psnr = "peak_signal_noise_ratio"
    whole["scores"][psnr] = [12.0, 25.0, 30.0]
    whole["baselines"] = {"gray": {psnr: [11.0, 10.0, 29.0]}, "null": {psnr: [14.0, 20.0, 5.0]}}
    found = leakage(whole)
    assert (found.decibels, found.picture, found.control) == (5.0, 1, "null")
    assert outcome(found, 4.9) == "above" and outcome(found, 5.0) == "below" and outcome(found) == "above"


@pytest.mark.parametrize(("null", "control"), [(4.0, "null runs"), (-4.0, "constant"), (None, "constant")])
def test_null_runs_raise_the_bar_where_they_beat_the_controls(report, null, control):
    bare = leakage(report(1).to_dict())
    for unit, counts in (("dB of PSNR over the best control", True), ("dB by which two independent runs agree", False)):
        found = leakage(report(1, verdict=judged(True, best_null=null, unit=unit)).to_dict())
        raised = counts and control == "null runs"
        assert found.decibels == pytest.approx(bare.decibels - (4.0 if raised else 0.0))
        assert found.control == (control if raised else bare.control)


def test_a_control_without_this_metric_is_left_out_and_without_any_the_score_itself_counts(report):
    whole = report(1).to_dict() | {"baselines": {"gray": {"mean_squared_error": [0.1]}}}
    found = leakage(whole)
    assert found.control == "none" and found.decibels == whole["scores"]["peak_signal_noise_ratio"][0]


@pytest.mark.parametrize(("leaked", "expected"), [(True, "above"), (False, "below")])
def test_without_a_limit_the_verdict_decides_and_with_one_the_margin(report, leaked, expected):
    found = leakage(report(1, verdict=judged(leaked)).to_dict())
    assert found.decibels > 10 and outcome(found) == expected
    assert outcome(found, 1.0) == "above" and outcome(found, 100.0) == "below"


def test_an_exact_recovery_is_above_every_limit_unless_the_verdict_denies_it(report):
    proven = {"proven": True}
    assert outcome(leakage(report(1).to_dict() | proven), 199.0) == "above"
    assert outcome(leakage(report(1, **NO_TRUTH).to_dict() | proven), 199.0) == "above"
    alone = judged(True, exact=True, pictures_exact=(0,))
    assert outcome(leakage(report(1, verdict=alone, **NO_TRUTH).to_dict()), 199.0) == "above"
    assert outcome(leakage(report(1, verdict=judged(False)).to_dict() | proven), 199.0) == "below"


def test_without_truth_the_verdict_stands_in_and_without_both_nothing_is_known(report):
    for leaked, expected in ((True, "above"), (False, "below")):
        assert outcome(leakage(report(1, verdict=judged(leaked), **NO_TRUTH).to_dict()), 3.0) == expected
    assert outcome(leakage(report(1, **NO_TRUTH).to_dict()), 3.0) == "unknown"


@pytest.mark.parametrize("status", [Status.INTERRUPTED, Status.NON_FINITE])
def test_an_attack_that_was_cut_short_may_fail_a_gate_but_never_pass_it(report, status):
    assert outcome(leakage(report(1, status=status).to_dict()), 3.0) == "above"
    assert outcome(leakage(report(1, noise=3.0, status=status).to_dict()), 3.0) == "unknown"
    assert outcome(leakage(report(1, noise=3.0, status=Status.STOPPED).to_dict()), 3.0) == "below"


def test_a_picture_without_a_score_is_not_below(report):
    whole = report(2, noise=3.0).to_dict()
    whole["scores"]["peak_signal_noise_ratio"][0] = None
    found = leakage(whole)
    assert "1 of its pictures" in found.evidence and outcome(found, 3.0) == "unknown"


@pytest.mark.parametrize("limit", [math.nan, math.inf, -math.inf])
def test_a_limit_is_a_number(limit):
    with pytest.raises(ConfigError, match="number of decibels"):
        outcome(Leakage(1.0), limit)


@pytest.mark.parametrize(
    "entries",
    [
        {"scores": [1, 2]},
        {"scores": {"peak_signal_noise_ratio": "30"}},
        {"scores": {"peak_signal_noise_ratio": [True]}},
        {"baselines": {"gray": 3}},
        {"baselines": {"gray": {"peak_signal_noise_ratio": [1.0, 2.0]}}},
        {"verdict": "fine"},
        {"verdict": {"leaked": "no"}},
        {"proven": "exact"},
    ],
)
def test_entries_of_another_kind_are_refused(report, entries):
    with pytest.raises(InputError, match=r"report|verdict"):
        leakage(report(1).to_dict() | entries)


def test_a_verdict_that_names_no_exact_picture_outweighs_the_attack_s_own_word(report):
    """Of an update that many pictures make, the attack's result is exact to the update alone."""
    leaked = Verdict(True, "It leaked.", "One attack.")
    assert not leakage(report(1, verdict=leaked).to_dict() | {"proven": True}).exact
    some = Verdict(True, "It leaked.", "One attack.", Figures(pictures_exact=(1,)))
    assert leakage(report(2, verdict=some).to_dict()).exact


def test_a_verdict_that_did_not_decide_is_no_evidence(report):
    found = leakage(report(1, verdict=Verdict(False, "Not decided.", "One attack.", Figures(decided=False))).to_dict())
    assert outcome(found) == "unknown" and "could not decide" in found.evidence
