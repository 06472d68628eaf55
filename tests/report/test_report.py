import json
import math
import re

import pytest
import torch

from inversefed.report.model import Report
from inversefed.types import Finding, Reconstruction, Status

NAMES = {
    "scores", "baselines", "attack", "seconds", "status", "findings", "scenario", "config", "environment", "labels",
    "loss", "candidates", "version",
}  # fmt: skip


def strict(text: str) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)


def test_images_and_labels_are_in_the_order_of_the_truth(report):
    found = report(5)
    assert not torch.equal(found.reconstruction.labels, found.truth.labels)
    assert torch.equal(found.labels, found.truth.labels)
    assert (found.images - found.truth.images).abs().max() < 0.2
    assert torch.equal(report(5, permutation=None).images, found.reconstruction.images)


def test_json_holds_the_promised_names(report):
    found = strict(report(3).to_json())
    assert found.keys() >= NAMES
    assert len(found["scores"]["peak_signal_noise_ratio"]) == 3
    assert len(found["baselines"]["gray"]["structural_similarity"]) == 3
    assert found["labels"] == {"recovered": [0, 1, 2], "true": [0, 1, 2]}
    expected = {"loss": pytest.approx(0.1), "status": "finished", "iterations": 3, "restart": 0, "seed": None}
    assert found["candidates"][1] == expected
    assert found["findings"][0].keys() == {"code", "level", "message", "evidence"}
    assert found["status"] == "finished" and found["version"] == "0.1.0" and found["scenario"]["shape"] == [3, 16, 16]


def test_what_is_not_finite_is_null(report):
    found = report(2)
    images = found.reconstruction.images.clone()
    images[0] = float("nan")
    broken = Reconstruction(images, found.reconstruction.labels, float("inf"), Status.NON_FINITE)
    scores = {name: values.clone() for name, values in found.scores.items()}
    scores["peak_signal_noise_ratio"][1] = float("nan")
    whole = report(2, reconstruction=broken, scores=scores, config={"x": math.inf})
    parsed = strict(whole.to_json())
    assert parsed["loss"] is None and parsed["config"] == {"x": None} and parsed["status"] == "non-finite"
    assert parsed["scores"]["peak_signal_noise_ratio"][1] is None
    assert parsed["findings"][0]["evidence"]["x"] is None
    assert "n/a" in whole.summary() and "n/a" in whole.to_markdown() and "n/a" in whole.to_html()


def test_without_a_truth_nothing_is_scored(report):
    found = report(2, truth=None, permutation=None, scores={}, baselines={})
    parsed = strict(found.to_json())
    assert parsed["scores"] == {} and parsed["labels"]["true"] is None and parsed["permutation"] is None
    for text in (found.summary(), found.to_markdown(), found.to_html()):
        assert "no truth to compare" in text
        assert "pairing" not in text


def test_summary_of_one_picture_sets_the_controls_beside_each_score(report):
    found = report(1)
    lines = found.summary().splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("Peak signal-noise"))
    assert lines[row].split()[-3:] == ["recovered", "constant", "gray"]
    expected = [found.scores, found.baselines["constant"], found.baselines["gray"]]
    assert lines[row + 1].split() == [f"{scores['peak_signal_noise_ratio'].item():.2f}" for scores in expected]
    assert "mean" not in [line.strip() for line in lines] and max(map(len, lines)) <= 100
    assert "info: A label." in lines


def test_summary_of_many_pictures_has_rows_and_means_and_stays_short(report):
    lines = report(20).summary().splitlines()
    assert sum(line.startswith("  mean") for line in lines) == 5
    assert sum(line.startswith("  image 15 ") for line in lines) == 5
    assert not any(line.startswith("  image 16 ") for line in lines)
    assert lines.count("  ... 4 more in report.json") == 5


@pytest.mark.parametrize("status", [Status.INTERRUPTED, Status.STOPPED, Status.NON_FINITE])
def test_an_early_end_is_said_plainly_in_every_form(report, status):
    found = report(1, status=status)
    assert strict(found.to_json())["status"] == status.value
    assert f"<strong>{status.value.capitalize()}.</strong>" in found.to_html()
    assert f"**{status.value.capitalize()}.**" in found.to_markdown()
    assert status.value in found.summary()


def test_no_hostile_text_becomes_a_link_a_mention_or_a_strike_in_a_pull_request(report):
    text = report(1, text=" https://evil.example/x ftp://a.b WWW.evil.example me@evil.example @octocat #1 ~~x~~ !2")
    prose = re.sub(r"`[^`]*`", "", text.to_markdown())  # in code there are neither links nor mentions
    assert "evil" in prose
    assert not re.search(r"://|www\.|@\w|#\d(?!\d*;)|!\d|(?<!\\)~", prose, flags=re.IGNORECASE)
    MarkdownIt = pytest.importorskip("markdown_it").MarkdownIt  # what is read is the same
    page = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").render(text.to_markdown())
    assert "@\u200boctocat #\u200b1 ~~\u200bx~~ !\u200b2" in page and "<a " not in page and "<s>" not in page


def test_hostile_text_is_inert_in_markdown_and_on_the_terminal(report, hostile):
    found = report(1, text=hostile)
    assert "\x1b" not in found.summary()
    text = found.to_markdown()
    outside = re.sub(r"\\.|`[^`]*`", "", text.replace("**", ""))
    assert not re.search(r"[<>`\\\x1b]|\]\(", outside)
    assert strict(found.to_json())["scenario"]["network" + hostile] == "LeNetZhu" + hostile


def test_report_is_a_value_that_cannot_be_changed(report):
    found = report(1)
    with pytest.raises(AttributeError):
        found.seconds = 2.0
    assert found.tables is found.tables
    assert "Report(attack='GradientInversion" in repr(found)


def test_the_shortest_report_renders():
    images = torch.rand(1, 1, 4, 4)
    bare = Report("none", Reconstruction(images, torch.tensor([0]), 0.0, Status.FINISHED))
    assert strict(bare.to_json())["version"] is None
    assert "Nothing about the setting stood out" in bare.to_html() and "None." in bare.to_markdown()


def test_findings_come_with_the_worst_first(report):
    levels = ("info", "error", "warning")
    page = report(1, findings=tuple(Finding(level, level, f"It is {level}.") for level in levels)).to_html()
    assert page.index("It is error") < page.index("It is warning") < page.index("It is info")
