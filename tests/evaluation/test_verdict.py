"""The rule of one target: what counts as leaked, what does not, and what is left open."""

import pytest
import torch

from inversefed.errors import InputError
from inversefed.evaluation.identification import nearest, unlike
from inversefed.evaluation.verdict import Evidence, decide, greatest, margins
from inversefed.report.scope import scope
from inversefed.types import Candidate, Reconstruction, Status


def scores(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def evidence(
    recovered=(8.0,), repeat=(7.0,), nulls=(-3.0,) * 19, exact=False, planned=19, reproduces=False, why=""
) -> Evidence:
    count = len(recovered or repeat or exact)
    return Evidence(
        torch.full((count,), exact) if isinstance(exact, bool) else torch.tensor(exact),
        None if recovered is None else scores(*recovered),
        None if repeat is None else scores(*repeat),
        [scores(*[each] * count) for each in nulls],
        planned,
        reproduces,
        why,
    )


@pytest.mark.parametrize(
    ("given", "leaked"),
    [
        ({}, True),
        ({"nulls": (-3.0,) * 18 + (7.5,)}, False),  # one null run is better than the repeat
        ({"nulls": (-3.0,) * 18 + (7.0,)}, False),  # a tie is no win
        ({"recovered": (-0.1,)}, False),  # a control is better than the full attack
        ({"recovered": (2.0,), "nulls": (3.0,) * 19}, False),  # a null run is better than the full attack
        ({"repeat": (-2.0,)}, True),
        ({"repeat": (float("nan"),)}, False),
        ({"recovered": (float("nan"),)}, False),
        ({"nulls": (float("-inf"),) * 19}, True),  # the attack refused all of them
        ({"recovered": (-9.0, 8.0), "repeat": (-9.0, 7.0)}, True),
        ({"exact": True, "nulls": (), "repeat": None}, True),
        ({"recovered": (0.05,)}, False),  # by rounding alone
        ({"exact": (True, False), "recovered": (90.0, -9.0), "repeat": (-9.0, -9.0)}, True),
        ({"recovered": (8.0, -9.0), "repeat": (-9.0, 7.0)}, False),  # not one and the same picture
        ({"recovered": None}, True),
        ({"recovered": None, "repeat": (2.9,)}, False),  # hardly more than a color is agreed on
    ],
)
def test_leaked(given: dict, leaked: bool) -> None:
    found = decide(evidence(**given), "One attack.")
    assert found is not None and found.leaked is leaked
    assert found.sentence.startswith(("Not recovered by these attacks within this budget", "Not decided")) is not leaked
    assert "private" not in found.sentence and "safe" not in found.sentence


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"nulls": (-3.0,) * 18}, "only 18 of 19 runs"),
        ({"repeat": None}, "there is no repeat"),
        ({"repeat": None, "recovered": None, "exact": (False,)}, "there is no repeat"),
        ({"why": "the attack was interrupted"}, ""),
        ({"recovered": (-5.0,), "repeat": (-5.0,), "why": "the attack was interrupted"}, "the attack was interrupted"),
    ],
)
def test_what_was_left_out_leaves_the_verdict_open_and_takes_no_yes_away(given: dict, said: str) -> None:
    found = decide(evidence(**given), "")
    assert found.leaked is not bool(said) and found.figures.decided is not bool(said)
    assert (found.figures.undecided_because or "").startswith(said)
    assert found.sentence.startswith(f"Not decided: {said}" if said else "Leaked")


def test_no_null_runs_asked_for_are_no_verdict() -> None:
    assert decide(evidence(nulls=(), planned=0), "") is None


def test_figures_state_the_bound_and_the_margin() -> None:
    figures = decide(evidence(nulls=(1.0,) + (-3.0,) * 19, planned=20), "").figures
    assert figures.nulls == 20 and figures.false_alarms_at_most == pytest.approx(1 / 21)
    assert figures.p_value == pytest.approx(1 / 21) and figures.margin_over_nulls == 6.0
    assert decide(evidence(nulls=(9.0, 8.0) + (-3.0,) * 17), "").figures.p_value == pytest.approx(3 / 20)


def test_pictures_of_a_batch_are_called_by_themselves_against_the_greatest_of_all_null_runs() -> None:
    found = decide(evidence(recovered=(9.0, 1.0, 4.0), repeat=(9.0, 0.0, 3.0), nulls=(2.0,) * 19), "")
    assert found.figures.pictures_leaked == (0, 2)
    assert found.sentence.startswith("Leaked: 2 of 3 pictures: the best picture is 9.0 dB above the best control")


def test_exact_pictures_are_named_one_by_one_without_any_null_run() -> None:
    found = decide(evidence(exact=(False, True, False), recovered=(3.0, 90.0, -9.0), repeat=None, nulls=()), "")
    assert found.figures.pictures_exact == found.figures.pictures_leaked == (1,) and not found.figures.exact
    assert found.sentence.startswith("Leaked: 1 of 3 pictures was recovered exactly")
    found = decide(evidence(exact=(True, True), recovered=(80.0, 90.0), repeat=None, nulls=()), "")
    assert found.figures.exact and found.sentence.startswith("Leaked: all 2 pictures were recovered exactly")
    found = decide(evidence(exact=(True, False, False), recovered=(80.0, 9.0, -9.0), repeat=(0.0, 7.0, 7.0)), "")
    assert found.figures.pictures_leaked == (0, 1) and "1 more is above all controls" in found.sentence


def test_a_picture_is_named_only_if_its_own_repeat_is_above_the_null_runs() -> None:
    found = decide(evidence(recovered=(20.0, 1.5), repeat=(9.0, -4.0), nulls=(1.0,) * 19), "")
    assert found.figures.pictures_leaked == (0,)
    assert found.sentence.startswith("Leaked: 1 of 2 pictures: the best picture is 20.0 dB above")
    found = decide(evidence(recovered=None, repeat=(9.0, 2.0, 4.0), nulls=(3.5,) * 19), "")
    assert found.figures.pictures_leaked == (0, 2) and "settles 2 of 3 pictures" in found.sentence


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"recovered": (10.0,), "repeat": (-2.0,), "nulls": (-1.0,) * 19}, "more iterations"),
        ({"recovered": None, "repeat": (-2.0,), "nulls": (-1.0,) * 19, "reproduces": True}, "without the truth"),
    ],
)
def test_what_the_null_runs_cannot_tell_is_not_decided_and_never_not_recovered(given: dict, said: str) -> None:
    found = decide(evidence(**given), "")
    assert not found.leaked and not found.figures.decided
    assert found.sentence.startswith("Not decided") and said in found.sentence
    assert "Not recovered" not in found.sentence


def test_score_and_margins() -> None:
    assert greatest(scores(float("nan"), float("-inf"))) == float("-inf")
    found = margins(scores(20.0, 5.0), {"gray": scores(10.0, 6.0), "mean": scores(12.0, 1.0)})
    assert found.tolist() == [8.0, -1.0]


def test_nearest_of_several() -> None:
    true = torch.tensor([0.2, 0.8]).view(2, 1, 1, 1)
    others = torch.tensor([0.2, 0.5, 0.9]).view(3, 1, 1, 1)  # the first is a truth, which is left out
    found = torch.tensor([0.25, 0.9]).view(2, 1, 1, 1)
    assert nearest(found, true, others).tolist() == [True, False]
    assert nearest(torch.full_like(found, float("nan")), true, others).tolist() == [False, False]


@pytest.mark.parametrize("count", [2, 60])
def test_a_truth_among_the_candidates_is_left_out_however_many_there_are(count: int) -> None:
    """`cdist` of more than 25 rows multiplies matrices, which leaves equal pictures a distance above 0."""
    data = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    near = (data[:1] + 0.01).clamp(0, 1)
    assert unlike(data, data[:1]).tolist() == [False] + [True] * (count - 1)
    assert nearest(near, data[:1], data).tolist() == [True]
    with pytest.raises(InputError, match="none is left"):
        nearest(near, data[:1], data[:1].expand(count, -1, -1, -1))


def test_scope_names_what_was_tried_given_and_kept() -> None:
    images, labels = torch.zeros(1, 1, 2, 2), torch.tensor([0])
    tried = (Candidate(images, labels, 0.1, iterations=3), Candidate(images, labels, 0.2, iterations=4))
    found = Reconstruction(images, labels, 0.1, Status.FINISHED, tried, made_by="Peel(evaluations=9)")
    said = scope("AutoAttack(exact=())", found, 2.0, {"labels": "known", "client": "unknown"}, 1, "Repeated.")
    assert said == (
        "Tried: AutoAttack, which chose Peel, 2 restarts of 7 iterations together, for 2.0 s. Repeated. "
        "Given: the network, its weights, the number of examples, the labels. "
        "Not given: the client's settings, the defenses."
    )
