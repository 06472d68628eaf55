"""The page in a real browser: hostile names do nothing, and everything is there to be seen, wide and narrow."""

import io
from pathlib import Path

import pytest
from PIL import Image

from inversefed.evaluation.verdict import Figures, Verdict
from inversefed.report.frontier import Row
from inversefed.types import Finding, Status
from tests.report.chromium import CHROMIUM, Browser
from tests.report.conftest import make_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium")

PAYLOADS = {
    "script": '</script></style></title><script>alert(1)</script><img src="https://x.test/a" onerror="alert(2)">',
    "attribute": "\" ' onload=alert(3) style='position:fixed' x=\"><svg onload=alert(4)><iframe src=//x.test></iframe>",
    "policy": '<meta http-equiv=refresh content="0;url=https://x.test/"><link rel=stylesheet href=//x.test/c.css>',
    "template": "{{ 7*7 }}{% raw %}&lt;script&gt;alert(5)&#60;/script&#62;<!--<base href=https://x.test/>]]>",
    "unseen": "a\u2028b\u2029c\u202egnp.exe\u202c\u0000\ufeff\u200b\U000e0041\udce9",
    "long": "y" * 20_000,
    "words": "averylongname " * 500,
}

QUESTIONS = {
    "width": "document.documentElement.scrollWidth <= innerWidth",
    "pictures": "[...document.images].every(i => i.complete && i.naturalWidth > 0) && document.images.length",
    "foreign": "document.querySelectorAll('script,iframe,link,base,object,embed,form,[onerror],[onload]').length",
    "styled": "getComputedStyle(document.querySelector('.mark')).borderRadius",
    "title": "document.title.length > 0 && document.querySelectorAll('h1').length",
    "first": "document.querySelector('.row img').getBoundingClientRect().bottom",
    "measures": "document.querySelector('.measures h2').getBoundingClientRect().bottom",
    "address": "location.protocol",
}


@pytest.fixture(scope="module")
def browser():
    with Browser() as found:
        yield found


def hostile(text: str) -> str:
    """A page with the text wherever a name or a sentence may be foreign."""
    return make_report(
        2,
        text=text,
        status=Status.STOPPED,
        verdict=Verdict(True, text, text, Figures(undecided_because=text, unit=text)),
        findings=tuple(Finding(text, level, text, {text: [text]}) for level in ("info", "warning", "error")),
        scenario={text: text, "defenses": [text], "threat_model": {text: text, "labels": "unknown"}},
        frontier=(Row(text, 9.0, 9.5, 8.0, 0.5),),
        not_computed={text: text},
        config={text: [text, {text: text}]},
        environment={"inversefed": text, text: text},
    ).to_html()


def opened(browser: Browser, tmp_path: Path, page: str, size: tuple[int, int]):
    file = tmp_path / "report.html"
    file.write_bytes(page.encode(errors="backslashreplace"))
    return browser.visit(file, size, QUESTIONS)


@pytest.mark.parametrize("name", PAYLOADS)
def test_hostile_names_run_ask_for_and_hide_nothing(browser, tmp_path, name):
    seen = opened(browser, tmp_path, hostile(PAYLOADS[name]), (1280, 800))
    assert (seen.dialogs, seen.messages, seen.requests) == ([], [], [])
    assert seen.answers["foreign"] == 0 and seen.answers["address"] == "file:" and seen.answers["title"] == 1
    assert seen.answers["pictures"] == 2 * 5 + 2 * 2 and seen.answers["styled"] == "999px"
    assert seen.answers["width"] is True


@pytest.mark.parametrize("size", [(1280, 800), (360, 740)])
def test_the_first_screen_shows_what_leaked_and_nothing_is_cut_off(browser, tmp_path, size):
    seen = opened(browser, tmp_path, make_report(1).to_html(), size)
    assert (seen.dialogs, seen.messages, seen.requests) == ([], [], [])
    assert seen.answers["width"] is True and seen.answers["first"] < size[1]
    assert size[0] < 1000 or seen.answers["measures"] < size[1]
    picture = Image.open(io.BytesIO(seen.screenshot))
    assert picture.size == size and len(picture.convert("RGB").getcolors(2**20) or range(2**20)) > 100


def test_the_watch_itself_sees_dialogs_errors_and_requests(browser, tmp_path):
    bad = "<!doctype html><h1>x</h1><p class=mark>x</p><div class='row measures'><h2>x</h2><img src=none.png></div>"
    bad += "<script>setTimeout(() => { throw 1 }); alert('hello'); console.error('oh')</script>"
    seen = opened(browser, tmp_path, bad, (400, 400))
    assert seen.dialogs == ["hello"] and len(seen.messages) >= 2 and seen.requests[0].endswith("none.png")


def test_the_policy_itself_blocks_a_script_and_a_style_that_got_in(browser, tmp_path):
    page = make_report(1).to_html().replace("<main>", "<main><script>alert(1)</script><style>h1{color:red}</style>", 1)
    seen = opened(browser, tmp_path, page, (800, 600))
    assert seen.dialogs == [] and sum("Content Security Policy" in message for message in seen.messages) == 2
