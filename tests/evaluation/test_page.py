import base64
import hashlib
import io
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from inversefed.types import Candidate, Reconstruction, Status

ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "p", "h1", "h2", "section", "div", "article",
    "figure", "figcaption", "img", "span", "table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "small",
    "details", "summary", "em", "strong", "ul", "li", "dl", "dt", "dd", "pre", "svg", "desc", "line",
    "text", "polyline",
}  # fmt: skip
VOID = {"meta", "img", "line", "polyline"}


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
    assert text == "" or hostile.replace("\x1b", "") in "".join(page.words).replace("\x1b", "")


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
        "Target",
        "Recovered",
        "Difference",
        "Constant",
        "Gray",
    ]
    opened = [Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) for image in images]
    assert {picture.size for picture in opened} == {(16, 16)}
    second_target = torch.tensor(list(opened[5].tobytes())).view(16, 16, 3).permute(2, 0, 1) / 255
    assert (second_target - found.truth.images[1]).abs().max() < 0.51 / 255
    assert set(opened[4].tobytes()) == {128}


def test_first_screen_says_what_came_back_before_any_picture(report):
    body = report(1).to_html().split("<body>")[1]
    said = body.index("<h1>A picture came back from the client&#39;s update.</h1>")
    assert said < body.index(" dB, where the best constant color scores ") < body.index("<img")


def test_a_long_gallery_is_cut_and_says_so(report):
    text = report(100).to_html()
    assert len(Page(text).all("article")) == 16 and "84 more pictures are not shown here" in text
    assert '<th scope="row">99</th>' in text


@pytest.mark.parametrize("count", [1, 4])
def test_words(report, count):
    text = report(count).to_html()
    assert text.lower().count("private") == 1
    assert "Not recovered by these attacks within this budget is not the same as private." in text
    assert ("the total squared error is least" in text) == (count > 1)
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
    assert len(page.all("polyline")) == 2 and page.all("svg")[0]["role"] == "img"
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
