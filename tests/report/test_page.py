import base64
import hashlib
import io
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from inversefed.evaluation.verdict import Figures, Verdict
from inversefed.report import gallery
from inversefed.types import Candidate, Reconstruction, Status

NO_TRUTH = {"truth": None, "permutation": None, "scores": {}, "baselines": {}}

ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "p", "h1", "h2", "section", "div", "article",
    "figure", "figcaption", "img", "span", "table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "small",
    "details", "summary", "em", "strong", "ul", "li", "dl", "dt", "dd", "pre", "svg", "desc", "g", "path",
    "text", "ol", "code", "footer",
}  # fmt: skip
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Collects elements, and fails where they are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.mark.parametrize("count", [1, 3, 100])
@pytest.mark.parametrize("text", ["", "HOSTILE"])
def test_only_our_own_elements_without_script_handler_or_network(report, hostile, count, text):
    page = Page(report(count, text=text and hostile).to_html())
    assert {tag for tag, _ in page.elements} <= ALLOWED
    attributes = {name for _, found in page.elements for name in found}
    assert not {name for name in attributes if name.startswith("on")} | (attributes & {"style", "href", "action"})
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert text == "" or hostile.replace("\x1b", "\\u001b") in "".join(page.words)


def test_policy_names_the_hash_of_the_very_style(report):
    text = report(1).to_html()
    style = text.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = (meta["content"] for meta in Page(text).all("meta") if "http-equiv" in meta)
    assert policy.startswith(f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'")
    assert "http:" not in text and "https:" not in text and "url(" not in style and "@import" not in style


def test_pictures_are_those_of_the_truth_in_its_order_with_the_controls(report):
    found = report(2)
    images = Page(found.to_html()).all("img")
    assert [image["alt"].split(",")[0] for image in images[:5]] == [
        "Private picture",
        "Recovered",
        "Difference",
        "Best single color",
        "Plain gray",
    ]
    opened = [Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) for image in images]
    assert {picture.size for picture in opened} == {(16, 16)} and len(opened) == 2 * 5 + 2 * 2
    second_target = torch.tensor(list(opened[5].tobytes())).view(16, 16, 3).permute(2, 0, 1) / 255
    assert (second_target - found.truth.images[1]).abs().max() < 0.51 / 255
    assert set(opened[4].tobytes()) == {128}


def test_first_screen_says_what_came_back_before_any_picture(report):
    body = report(1).to_html().split("<body>")[1]
    said = body.index("<h1>A picture was recovered from the client&#39;s update.</h1>")
    assert said < body.index("<img") < body.index(" dB, where the best constant color scores ")
    assert body.index("What would stop it") < body.index("<h2>Scores")
    where = "Commands are typed in the folder of this page."
    assert (where in body) == ("<code>inversefed" in body.split("What would stop it")[1].split("<h2>Verdict")[0])


def test_a_long_gallery_is_cut_and_says_so(report):
    text = report(100).to_html()
    assert len(Page(text).all("article")) == 16 + 2 and "84 more pictures are not shown here" in text
    assert '<th scope="row">99</th>' in text


@pytest.mark.parametrize("count", [1, 4])
def test_words(report, count):
    text = report(count).to_html()
    assert "is private" not in text.lower() and "safe" not in text.lower().replace("none is safe by itself", "")
    assert "Not recovered by these attacks within this budget is not the same as private." in text
    assert ("their total PSNR is greatest" in text) == (count > 1)
    assert "PSNR" in text and "SSIM" in text


def test_every_metric_stands_beside_what_the_controls_score(report):
    found = report(1)
    text = found.to_html()
    for table in found.tables:
        cells = "".join(f"<td>{cell}</td>" for cell in table.cells(table.mean))
        assert f"{cells}" in text


def test_columns_are_right_where_the_first_metric_has_no_controls(report):
    found = report(1)
    scores = {name: found.scores[name] for name in ("label_accuracy", "mean_squared_error")}
    head, labels, errors = report(1, scores=scores).to_html().split("<tr>")[1:4]
    assert head.count("<th") == 4
    assert (labels.count("<td"), errors.count("<td")) == (3, 3)


def test_loss_curve_is_drawn_with_its_title(report):
    page = Page(report(1).to_html())
    assert {"front", "back"} <= {each.get("class") for each in page.all("g")}
    assert page.all("svg")[0]["role"] == "img"
    images = torch.rand(1, 1, 4, 4)
    silent = Candidate(images, torch.tensor([0]), 0.1)
    found = Reconstruction(images, torch.tensor([0]), 0.1, Status.FINISHED, (silent,))
    assert not Page(
        report(1, reconstruction=found, truth=None, permutation=None, scores={}, baselines={}).to_html()
    ).all("svg")


def test_one_channel(report):
    found = report(1)
    gray = Reconstruction(found.reconstruction.images[:, :1], torch.tensor([0]), 0.1, Status.FINISHED)
    shown = report(1, reconstruction=gray, truth=None, permutation=None, scores={}, baselines={})
    (image,) = Page(shown.to_html()).all("img")
    assert Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))).mode == "L"


def judged(leaked: bool, **figures) -> Verdict:
    return Verdict(leaked, "The sentence of the verdict.", "The scope of the verdict.", Figures(**figures))


def test_without_the_truth_the_first_advice_is_to_compare_with_it(report):
    brought = report(1, **NO_TRUTH, config={"update": "update.npz"}).to_html()
    assert brought.index("Compare with the private picture") < brought.index("Attack harder")
    assert "--truth PICTURE.png" in brought and "--truth" not in report(1, **NO_TRUTH).to_html()
    assert "Compare with the private picture" not in report(1, noise=3.0).to_html()


@pytest.mark.parametrize(
    ("fields", "said", "title"),
    [
        ({"noise": 1e-3, "reproduces": True}, "The private picture was read out of the update.", "would stop it"),
        ({"reproduces": True}, "A picture was recovered from the client&#39;s update.", "What would stop it"),  # 34 dB
        ({"verdict": judged(False, decided=False)}, "It is not decided whether a private picture", "make this surer"),
        ({"verdict": judged(True, exact=False)}, "A picture was recovered from", "would stop it"),
        ({"verdict": judged(False)}, "No private picture was recovered by these attacks.", "make this surer"),
        ({"noise": 3.0}, "The picture was not recovered from the client&#39;s update.", "make this surer"),
        ({"noise": 3.0, "verdict": judged(True)}, "Something of the private data was recovered", "would stop it"),
        ({"noise": 3.0, "reproduces": True}, "The picture was not recovered", "make this surer"),
        (NO_TRUTH, "The attack produced 1 picture, and there is no truth to compare with.", "make this surer"),
        (NO_TRUTH | {"verdict": judged(True)}, "The update settles a picture; whether", "would stop it"),
        (NO_TRUTH | {"verdict": judged(True, exact=True)}, "A picture was read out of the update, and", "stop it"),
        (NO_TRUTH | {"verdict": judged(False)}, "Nothing shows that these attacks recovered", "make this surer"),
        (NO_TRUTH | {"verdict": judged(False, decided=False)}, "The update comes out the same from", "surer"),
        (NO_TRUTH | {"reproduces": True}, "The update comes out the same from a picture", "make this surer"),
    ],
)
def test_first_sentence_and_measures_follow_the_verdict_and_else_the_scores(report, fields, said, title):
    text = report(1, **fields).to_html()
    assert f"<h1>{said}" in text and title in text.split("<h2>Verdict")[0]
    assert ("The scope of the verdict." in text) == ("verdict" in fields)


def test_a_defense_that_did_not_stop_it_is_named_and_one_that_did_is_to_be_attacked_with_knowledge(report):
    scenario = {"defenses": ["Clip(max_norm=1.0)"]}
    assert "Clip(max_norm=1.0) did not stop it" in report(1, scenario=scenario).to_html()
    assert "Attack with knowledge of the defense" in report(1, noise=3.0, scenario=scenario).to_html()


def test_controls_that_run_the_attack_are_shown_and_explained(report):
    bare = report(1)
    pictures = {"gray": torch.zeros(1, 3, 16, 16), "null": torch.ones(1, 3, 16, 16)}
    baselines = {"gray": bare.baselines["gray"], "null": bare.baselines["constant"]}
    text = report(1, controls=pictures, baselines=baselines).to_html()
    assert "Attack on a random update, Picture 0" in text and "Best single color" not in text
    assert "<em>Attack on a random update</em> is the best of what it finds in updates of random numbers." in text
    assert "Attack without an update" not in text


def test_labels_that_were_hidden_and_found_are_said(report):
    hidden = {"scenario": {"threat_model": {"labels": "unknown"}}}
    assert "It also named the right class." in report(1, **hidden).to_html()
    assert "It named the right class of 3 of 3." in report(3, **hidden).to_html()
    assert "But it named the right class." in report(1, noise=3.0, **hidden).to_html()
    assert "right class" not in report(1, scenario={"threat_model": {"labels": "known"}}).to_html()


def test_no_command_is_offered_that_the_report_cannot_run(report):
    noise, batch = "--defenses &#34;Clip(1.0)&#34;", "--num-images 16"
    text = report(1).to_html()
    assert noise in text and batch in text
    own = report(1, config={"images": ["a.png"]}).to_html()
    assert noise in own and batch not in own
    for config in ({"update": "update.safetensors"}, {"after": "after.npz"}, {}):
        text = report(1, config=config).to_html()
        assert noise not in text and batch not in text and "Noise, before the update is sent" in text


def test_every_restart_is_shown_with_its_cost_the_best_match_first(report):
    images = torch.rand(2, 3, 16, 16)
    costs = [0.5, float("nan"), *(0.4 + i / 100 for i in range(20)), 0.1]
    found = tuple(Candidate(images, torch.tensor([0, 1]), cost) for cost in costs)
    shown = report(2, reconstruction=Reconstruction(images, torch.tensor([0, 1]), 0.1, Status.FINISHED, found))
    rows = gallery.restarts(shown, labels_known=False)
    assert [row[0].split(":")[0] for row in rows[:2]] == ["Restart 22, chosen", "Restart 2"] and len(rows) == 16
    assert rows[0][0].endswith("cost 0.1, finished") and rows[0][1][0].score.endswith(" dB")
    assert "The 16 that match best are shown." in shown.to_html()
    alone = Reconstruction(images, torch.tensor([0, 1]), 0.1, Status.FINISHED)
    assert gallery.restarts(report(1, reconstruction=alone), labels_known=False) == []


def test_without_images_no_pixel_is_in_the_page(report):
    text = report(3).to_html(images=False)
    page = Page(text)
    assert not page.all("img") and "data:image" not in text
    assert "asked to leave none on the disk" in text and "are not shown here" not in text


def test_what_is_not_seen_is_written_out(report):
    text = report(1, text="a\u202eb\u2028c\u0000d\u200be\U000e0041").to_html()
    assert not set(text) & set("\u202e\u2028\u0000\u200b\U000e0041")
    assert r"a\u202eb\u2028c\u0000d\u200be\udb40\udc41" in text


def test_the_figures_of_a_verdict_are_said_in_words_and_none_is_missing_by_name(report):
    figures = {"nulls": 19, "nulls_planned": 19, "p_value": 0.05, "score": 9.0, "best_null": -2.0, "unseen": None}
    text = report(1, verdict=judged(True, false_alarms_at_most=0.05, **figures)).to_html()
    verdict = text.split("<h2>Verdict")[1].split("</section>")[0]
    for name, said in (
        ("Chance of a false alarm", "at most 5.0%: once in 20 audits of updates that say nothing"),
        ("Runs on random updates", "19"),
        ("Result", "9.0 dB above the best control"),
        ("Best run on a random update", "2.0 dB below the best control"),
    ):
        assert f"<dt>{name}</dt><dd>{said}</dd>" in verdict
    assert "n/a" not in verdict and "None" not in verdict and "Left open" not in verdict and "_" not in verdict


def test_each_form_says_what_the_one_summary_says(report):
    found = report(3, verdict=judged(False, decided=False), agreement=torch.tensor([14.7, 0.2, 3.0]))
    said = found.digest
    assert said is found.digest and said.mark == "not decided" and not said.labels_known
    for text in (found.summary(), found.to_markdown(), found.to_html()):
        plain = " ".join(text.replace("\\", "").replace("&#39;", "'").split())
        assert said.verdict in plain and said.scope in plain and said.believed in plain
    known = report(1, scenario={"threat_model": {"labels": "known"}, "num_classes": 10, "defenses": ["Clip(1.0)"]})
    assert known.digest.labels_known and known.digest.audited.num_classes == 10
    assert known.digest.audited.defenses == ("Clip(1.0)",)
