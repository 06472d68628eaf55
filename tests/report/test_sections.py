"""What a report says of records, labels and the bound, in all its forms."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import inversefed
from inversefed import DPSGD, Accounting, ThreatModel, defenses, recipes
from inversefed.bounded import bounds_of
from inversefed.evaluation.membership import judge_members
from inversefed.report.model import Report
from inversefed.types import Batch


def audited(**changes: object) -> Report:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    images, labels = torch.rand(4, 3, 4, 4), torch.tensor([0, 1, 2, 3])
    others = Batch(torch.rand(12, 3, 4, 4), torch.arange(12) % 4)
    return inversefed.audit(
        net, images, labels, attack=recipes.geiping(), max_iterations=2, nulls=1, others=others, **changes
    )


@pytest.fixture(scope="module")
def private() -> Report:
    return audited(client=DPSGD(1.0, 1.0, accounting=Accounting(rounds=9)))


def forms(report: Report) -> tuple[str, ...]:
    return " ".join(report.summary().split()), report.to_markdown().replace("\\", ""), report.to_html(images=False)


def test_the_bound_stands_beside_what_was_measured(private: Report) -> None:
    for text in forms(private):
        assert "What no attack can exceed" in text and "at most 0.3891, after all rounds at most 0.9" in text
        assert "Nearest of 13 candidates" in text and "Labels recovered" in text and "(Fano)" in text
    found = json.loads(private.to_json())["bounds"]
    assert found["per_release"]["success"][1] == pytest.approx(0.09236, abs=1e-4)
    assert found["cumulative"]["mechanism"]["steps"] == 9


def test_without_clipping_there_is_no_bound_and_it_is_said_so() -> None:
    noised = audited(defenses=(defenses.GaussianNoise(0.1),))
    for text in forms(noised):
        assert "There is no bound: GaussianNoise(std=0.1) is added to an update of any length: clip it before" in text
    assert json.loads(noised.to_json())["bounds"]["per_release"]["mechanism"] is None
    plain = audited()
    assert plain.bounds is None and "bounds" not in json.loads(plain.to_json())


def test_labels_are_judged_by_the_most_frequent_class_unless_they_were_granted() -> None:
    found = audited().label_leakage
    assert found is not None and found.total == 4 and found.majority == 0.25
    assert audited(threat=ThreatModel(labels="known")).label_leakage is None


def test_records_are_said_in_all_forms(private: Report) -> None:
    asked = judge_members(torch.tensor([9.0, 8.0, -1.0]), torch.arange(30.0) / 10)
    few = judge_members(torch.tensor([9.0]), torch.arange(5.0))
    for text in forms(replace(private, membership=asked)):
        assert "some of the 3 records that were asked for were in it" in text
        assert "2 of 3: number 0, 1; one that was not in it is called with chance 5%" in text
        assert "measuring this rate takes 1,000 of them" in text
    for text in forms(replace(private, membership=few)):
        assert "none can be called: that takes 19 records known to be out, and there are 5" in text
    found = json.loads(replace(private, membership=asked).to_json())["membership"]
    assert found["called"] == [True, True, False] and len(found["out_scores"]) == 30 and found["auc"]["high"] <= 1


BOUNDED = {
    "examples of several steps": (DPSGD(2.0, 1.0, local_steps=4, sends="delta"), (), 2.0 / 2),
    "an update": (inversefed.FedSGD(), (defenses.Clip(2.0), defenses.GaussianNoise(3.0), defenses.TopK(0.5)), 1.5),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_the_noise_is_that_over_the_clipped_length(name: str) -> None:
    client, done, ratio = BOUNDED[name]
    found = bounds_of(client, done, num_examples=4)
    assert found is not None and found.per_release.mechanism is not None
    assert 1 / found.per_release.mechanism.mu == pytest.approx(ratio)


UNBOUNDED = {
    "lengthened after the clip": (
        inversefed.FedSGD(),
        (defenses.Clip(1.0), defenses.SignQuantization(), defenses.GaussianNoise(1.0)),
        "clip it before",
    ),
    "mixed": (DPSGD(1.0, 1.0), (defenses.Mixup(1.0),), "mixes examples"),
    "read again": (
        inversefed.FedSGD(),
        (defenses.Clip(1.0), defenses.GaussianNoise(1.0), defenses.Soteria(0.5)),
        "looks at the private examples",
    ),
    "another noise": (inversefed.FedSGD(), (defenses.Clip(1.0), defenses.LaplaceNoise(1.0)), "not Gaussian"),
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_what_breaks_the_promise_breaks_the_bound(name: str) -> None:
    client, done, why = UNBOUNDED[name]
    found = bounds_of(client, done)
    assert found is not None and found.per_release.mechanism is None and why in found.per_release.note


def test_buffers_that_are_sent_along_are_not_bounded() -> None:
    found = bounds_of(DPSGD(1.0, 1.0), threat=ThreatModel(buffers="sent"))
    assert found is not None and "buffers" in found.per_release.note
