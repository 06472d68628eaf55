"""Records that are asked for in an audit: in the verdict, the first screen, the gate, and the scenario's hash."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator, nn

import inversefed
from inversefed import Batch, Report, defenses, recipes
from inversefed.cli import main
from inversefed.controls.null_update import null_observation
from inversefed.errors import ConfigError, InversefedError
from inversefed.evaluation.membership import judge_members
from inversefed.evaluation.verdict import Answer, Verdict, with_records
from inversefed.fl.simulate import observed
from inversefed.pipeline import audit_observation
from inversefed.report.gate import leakage, outcome
from inversefed.scenario import Scenario

SHORT = recipes.geiping(max_iterations=2)
IN, OUT = slice(0, 64), slice(64, 128)


@pytest.fixture(scope="module")
def data() -> Batch:
    """Noisy pictures of four patterns, 1x8x8."""
    random = Generator().manual_seed(0)
    patterns, labels = torch.rand(4, 1, 8, 8, generator=random), torch.arange(192) % 4
    return Batch(0.25 * patterns[labels] + 0.75 * torch.rand(192, 1, 8, 8, generator=random), labels)


@pytest.fixture(scope="module")
def trained(data: Batch) -> nn.Module:
    """Trained on all of them for a while."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    steps = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        steps.zero_grad()
        nn.functional.cross_entropy(net((data.images - 0.5) / 0.25), data.labels).backward()
        steps.step()
    return net.eval()


def part(data: Batch, chosen: slice) -> Batch:
    return Batch(data.images[chosen], data.labels[chosen])


def null_of(net: nn.Module, data: Batch, seed: int = 0) -> Report:
    """An audit of an update of random numbers."""
    seen, truth = observed(net, data.images[IN], data.labels[IN], mean=0.5, std=0.25)
    return audit_observation(
        null_observation(seen, Generator().manual_seed(seed)), truth=truth, attack=SHORT, nulls=1,
        candidates=part(data, IN), candidates_out=part(data, OUT),
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(trained: nn.Module, data: Batch) -> Report:
    """An audit of 64 pictures in strong noise, which hides the pictures and not who they are."""
    return inversefed.audit(
        trained, data.images[IN], data.labels[IN], mean=0.5, std=0.25, attack=SHORT, nulls=1,
        defenses=(defenses.GaussianNoise(1e-3),), candidates=part(data, slice(0, 96)),
        candidates_out=part(data, slice(96, 192)),
    )  # fmt: skip


def test_an_update_with_the_records_does_not_read_as_safe(found: Report) -> None:
    verdict, records = found.verdict, found.membership
    assert verdict is not None and records is not None and not verdict.leaked
    assert verdict.answer in (Answer.RECORDS, Answer.IN_THE_UPDATE)
    assert verdict.figures.records_asked == 96 and verdict.figures.records_p_value < 0.001
    assert records.members is not None and records.members.tolist() == [True] * 64 + [False] * 32
    assert int(records.called[:64].sum()) > 32 and int(records.called[64:].sum()) < 8
    assert verdict.sentence.startswith("The update shows that some of the 96 records that were asked for were in it")
    content = json.loads(found.to_json())
    assert content["verdict"]["figures"]["records_called"] == sum(content["membership"]["called"])


def test_an_update_that_says_nothing_shows_no_record(trained: nn.Module, data: Batch) -> None:
    report = null_of(trained, data)
    assert report.verdict is not None and report.membership is not None and not report.membership.found
    assert report.verdict.answer is not Answer.RECORDS and "Nothing shows that any of the 64" in report.verdict.sentence
    assert outcome(leakage(report.to_dict()), max_members=0) == outcome(leakage(report.to_dict()))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Answer.RECOVERED, Answer.RECOVERED),
        (Answer.IN_THE_UPDATE, Answer.IN_THE_UPDATE),
        (Answer.NOT_IN_THE_UPDATE, Answer.RECORDS),
        (Answer.UNDECIDED, Answer.RECORDS),
    ],
)
def test_what_is_said_of_the_pictures_stands_where_it_says_more(before: Answer, after: Answer) -> None:
    verdict = Verdict(before is Answer.RECOVERED, "Told.", "One attack.", answer=before)
    assert with_records(verdict, judge_members(torch.arange(20.0, 40.0), torch.arange(19.0))).answer is after
    assert with_records(verdict, judge_members(torch.arange(20.0), torch.arange(19.0, 40.0))).answer is before


def test_the_first_screen_tells_of_records_before_anything_else(found: Report) -> None:
    hidden = replace(found, verdict=replace(found.verdict, answer=Answer.RECORDS), limit=None)
    assert hidden.digest.outcome in ("records", "none") and hidden.digest.mark
    alone = replace(hidden, verdict=None)
    for report in (hidden, alone):
        assert report.digest.outcome == "records" and "records that were asked for are in it" in report.headline
        assert report.digest.subject.startswith("Records that were asked for are in the update")
        assert "Do not take this for safety" in report.digest.meaning
        assert 'class="mark records"' in report.to_html(images=False)


def test_the_gate_counts_records_that_are_called(found: Report, tmp_path: Path) -> None:
    told = leakage(found.to_dict())
    assert told.members == int(found.membership.called.sum()) and told.members_found
    assert outcome(told) == outcome(told, 100.0) == outcome(told, 100.0, max_members=told.members - 1) == "above"
    assert outcome(told, 100.0, max_members=told.members) == "below"
    found.save(tmp_path / "run")
    for option, status in (([], 3), (["--max-members", "96"], 0), (["--max-members", "3"], 3)):
        assert main(["gate", str(tmp_path / "run"), "--max-leakage", "100", *option]) == status
    content = found.to_dict()
    del content["membership"]
    (tmp_path / "none.json").write_text(json.dumps(content))
    assert main(["gate", str(tmp_path / "none.json"), "--max-leakage", "100", "--max-members", "3"]) == 2
    assert main(["gate", "--max-members", "3", "--output", str(tmp_path / "never")]) == 2
    with pytest.raises(ConfigError, match="number from 0"):
        outcome(told, max_members=-1)


def test_records_are_part_of_the_hash_and_left_out_of_a_record_without_them(trained: nn.Module, data: Batch) -> None:
    def scenario(**asked: Batch) -> Scenario:
        return Scenario(attack=SHORT, nulls=0).of(
            trained, data.images[:1], data.labels[:1], mean=0.5, std=0.25, **asked
        )

    plain, out = scenario(), part(data, OUT)
    assert not {"candidates", "candidates_out"} & plain.to_dict()["sha256"].keys()
    asked = [scenario(candidates=part(data, slice(0, n)), candidates_out=out) for n in (1, 2, 2)]
    other = scenario(candidates=Batch(data.images[:2], data.labels[:2] + 1), candidates_out=out)
    hashes = [each.hash() for each in (plain, *asked, other)]
    assert hashes[2] == hashes[3] and len(set(hashes)) == 4
    again = Scenario.from_dict(json.loads(json.dumps(asked[1].to_dict())))
    assert again.hash() == hashes[2]
    refused = (data.images[:1], data.labels[:1])
    with pytest.raises(InversefedError, match="candidates"):
        again.of(trained, *refused, None, 0.5, 0.25, part(data, slice(0, 1)), out)


def test_records_that_are_out_need_some_that_are_asked_for_and_the_reverse(trained: nn.Module, data: Batch) -> None:
    given = {"attack": SHORT, "nulls": 0, "mean": 0.5, "std": 0.25}
    for asked in ({"candidates_out": part(data, OUT)}, {"candidates": part(data, IN)}):
        with pytest.raises(ConfigError, match=r"--candidates"):
            inversefed.audit(trained, data.images[:1], data.labels[:1], **given, **asked)
