"""The pages of a ledger in a real browser: hostile names do nothing, and everything works by keyboard and narrow."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from inversefed.cli.serve import config, listen
from inversefed.experiments.ledger import Ledger, Outcome
from inversefed.experiments.places import Places
from inversefed.experiments.serve.app import make_app
from tests.experiments.asgi import TOKEN
from tests.experiments.filled import fill
from tests.report.chromium import CHROMIUM
from tests.report.conftest import make_report

sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium")

HOSTILE = (
    '</script></title></select><img src=x onerror=alert(1)><script>alert(2)</script>" onfocus=alert(3) autofocus x="'
    "<meta http-equiv=refresh content='0;url=https://x.test/'><link rel=stylesheet href=//x.test/c.css>{{ 7*7 }}"
    "' style='position:fixed' \u202egnp\u202c\x00"
)
WIDE, NARROW = (1280, 800), (375, 740)
CONTRAST = """() => {
  const light = (c) => { const [r, g, b] = c.match(/[0-9.]+/g).slice(0, 3).map((x) => x / 255)
      .map((x) => (x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const under = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
      if (!/rgba\\(.*, 0\\)/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
  return [...document.querySelectorAll('p, a, span, td, th, dt, dd, h1, h2, button, label, summary')]
    .filter((e) => e.innerText && e.offsetParent && !e.classList.contains('unseen')).map((e) => {
      const a = light(getComputedStyle(e).color), b = light(under(e));
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML.slice(0, 120)]; })
    .filter(([ratio]) => ratio < 4.5).map(([ratio, text]) => `${ratio.toFixed(2)} ${text}`);
}"""


@dataclass
class Watch:
    """What a page did that it must not."""

    base: str
    dialogs: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def on(self, page: Any) -> None:
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda said: self.errors.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda asked: None if self._own(asked.url) else self.foreign.append(asked.url))

    def _own(self, url: str) -> bool:
        return url.startswith((self.base + "/", "data:"))

    def saw(self) -> tuple[list[str], list[str], list[str]]:
        return self.dialogs, self.errors, self.foreign


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@contextmanager
def served(ledger: Ledger) -> Iterator[str]:
    """The ledger's address while it is served from a thread."""
    import uvicorn

    listening = listen("127.0.0.1", 0)
    servers: list[uvicorn.Server] = []
    app = make_app(ledger, TOKEN, ended=lambda: bool(servers and servers[0].should_exit))
    servers.append(uvicorn.Server(config(app)))
    thread = threading.Thread(target=servers[0].run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        servers[0].should_exit = True
        thread.join(30)
        listening.close()
        assert not thread.is_alive()


@contextmanager
def opened(browser: Any, base: str, size: tuple[int, int] = WIDE, **options: Any) -> Iterator[tuple[Any, Watch]]:
    """A page at the runs, with the cookie set, watched."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
    page, watch = context.new_page(), Watch(base)
    page.set_default_timeout(60_000)
    watch.on(page)
    page.goto(f"{base}/?token={TOKEN}")
    assert page.url == base + "/"
    yield page, watch
    context.close()


def ledger_of(folder: Path, hostile: str = "", jobs: int = 100) -> Ledger:
    """A ledger with one report, one picture so far, and one audit that failed."""
    ledger = Ledger(str(folder / "ledger.db"))
    run = fill(ledger, "study" + hostile, jobs, scenario=20, hostile=hostile)
    places = Places(ledger.folder)
    kept = places.job(ledger.jobs(run, "done")[0].hash)
    kept.parent.mkdir(parents=True)
    make_report(1, text=hostile).save(kept)
    preview = places.preview(ledger.jobs(run, "running")[0].hash)
    preview.parent.mkdir(parents=True)
    preview.write_bytes((kept / "reconstruction_00.png").read_bytes())
    return ledger


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ledger, str]]:
    ledger = ledger_of(tmp_path_factory.mktemp("study"))
    with served(ledger) as base:
        yield ledger, base


def pages_of(ledger: Ledger) -> list[str]:
    run = ledger.runs()[0]
    jobs = [ledger.jobs(run, state)[0].hash for state in ("done", "failed", "running")]
    return ["/", "/runs/1", "/runs/1?state=failed", "/runs/1/summary", *(f"/jobs/{hash}" for hash in jobs), "/runs/7"]


def is_narrow_enough(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.mark.slow  # every page twice, a second each for what would run late
@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_hostile_names_run_ask_for_and_hide_nothing(browser: Any, tmp_path: Path, size: tuple[int, int]) -> None:
    ledger = ledger_of(tmp_path, HOSTILE, jobs=60)
    with served(ledger) as base, opened(browser, base, size) as (page, watch):
        for path in pages_of(ledger)[:-1]:
            page.goto(base + path)
            page.wait_for_timeout(700)
            assert page.url == base + path and is_narrow_enough(page), path
            assert page.locator("h1").count() == 1 and "onerror=alert(1)" in page.inner_text("body")
            odd = page.locator(
                "[onerror], [onfocus], [autofocus], script:not([src='/static/live.js']), base, meta[http-equiv]"
            )
            assert odd.count() == 0
        assert watch.saw() == ([], [], [])


def test_the_watch_itself_sees_dialogs_errors_and_requests(browser: Any, study: tuple[Ledger, str]) -> None:
    with opened(browser, study[1]) as (page, watch):
        page.evaluate("() => { alert('hello'); console.error('oh'); fetch('http://127.0.0.1:9/x').catch(() => 0); }")
        page.evaluate(
            "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=alert(1)><p style=color:red>x')"
        )
        page.wait_for_timeout(300)
        dialogs, errors, foreign = watch.saw()
        assert dialogs == ["hello"] and "oh" in errors  # and the handler of the picture did not run
        assert any("Content Security Policy" in each for each in errors) and not foreign
        assert len(page.evaluate(CONTRAST.replace("< 4.5", "< 22"))) > 5


def test_every_page_is_readable_narrow_light_and_dark(browser: Any, study: tuple[Ledger, str]) -> None:
    ledger, base = study
    for size, scheme in ((NARROW, "dark"), (WIDE, "light")):
        with opened(browser, base, size, color_scheme=scheme, reduced_motion="reduce") as (page, watch):
            for path in pages_of(ledger):
                watch.errors.clear()
                page.goto(base + path)
                assert is_narrow_enough(page), path
                assert page.evaluate(CONTRAST) == [], (path, scheme)
                assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
                    "rgb(251, 250, 247)" if scheme == "light" else "rgb(21, 23, 26)"
                )
                unnamed = page.locator(
                    "th:not([scope]), img:not([alt]), select:not(label select), progress:not([aria-label])"
                )
                assert unnamed.count() == 0, path
            assert watch.errors == ["Failed to load resource: the server responded with a status of 404 (Not Found)"]
            assert (watch.dialogs, watch.foreign) == ([], [])


def tab_to(page: Any, wanted: Callable[[str], bool]) -> None:
    """Press Tab until what is focused is wanted; all on the way must show that it has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        at = page.evaluate(
            "() => { const e = document.activeElement; const s = getComputedStyle(e);"
            "const seen = e.matches(':focus-visible') && s.outlineStyle !== 'none';"
            "return [e.getAttribute('href') || '', seen, e.tagName]; }"
        )
        assert at[1] or at[2] in ("IFRAME", "BODY"), at
        if wanted(at[0]):
            return
    raise AssertionError("the keyboard does not reach it")


def test_the_keyboard_alone_leads_from_the_runs_to_a_report(browser: Any, study: tuple[Ledger, str]) -> None:
    ledger, base = study
    hash = ledger.jobs(ledger.runs()[0], "done")[0].hash
    with opened(browser, base) as (page, watch):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        tab_to(page, lambda href: href == "/runs/1")
        page.keyboard.press("Enter")
        page.wait_for_url(base + "/runs/1")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # to the content, past the navigation
        assert page.evaluate("document.activeElement.id") == "content"
        tab_to(page, lambda href: href == f"/jobs/{hash}")
        page.keyboard.press("Enter")
        page.wait_for_url(f"{base}/jobs/{hash}")
        tab_to(page, lambda href: href.endswith("/report.html"))
        frame = page.frame_locator("iframe")
        page.locator("iframe").scroll_into_view_if_needed()
        assert "What an update gives away" in frame.locator(".over").inner_text()
        page.keyboard.press("Enter")
        page.wait_for_url(f"{base}/jobs/{hash}/report.html")
        assert page.evaluate("getComputedStyle(document.querySelector('.mark')).borderRadius") == "999px"
        assert page.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
        assert watch.saw() == ([], [], [])


def test_without_script_filters_and_pages_work(browser: Any, study: tuple[Ledger, str]) -> None:
    ledger, base = study
    failed = ledger.standing(ledger.runs()[0]).counts["failed"]
    with opened(browser, base, java_script_enabled=False) as (page, watch):
        page.goto(base + "/runs/1?sort=-psnr")
        page.locator("select[name=state]").select_option("failed")
        page.get_by_role("button", name="Filter").click()
        page.wait_for_url("**state=failed**")
        assert "sort=-psnr" in page.url and page.locator("tbody tr").count() == failed
        page.get_by_role("link", name="Show all").click()
        page.wait_for_url(base + "/runs/1")
        assert page.locator("tbody tr").count() == 100
        assert '<noscript><meta http-equiv="refresh" content="10"></noscript>' in page.content()
        assert watch.saw() == ([], [], [])


def test_a_point_of_a_plot_leads_to_the_audits_behind_it(browser: Any, study: tuple[Ledger, str]) -> None:
    _, base = study
    with opened(browser, base) as (page, watch):
        for section, defenses in (("frontier-1", "none"), ("family-1", "GaussianNoise")):
            page.goto(base + "/runs/1/summary")
            page.locator(f"[aria-labelledby={section}] .frame a").first.click()
            page.wait_for_url(f"**/runs/1?**defenses={defenses}**")
            assert 0 < page.locator("tbody tr").count() < 10
        assert watch.saw() == ([], [], [])


def test_what_happens_is_seen_without_a_reload(browser: Any, tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    run = ledger.runs()[0]
    first, second = ledger.jobs(run, "running")
    with served(ledger) as base, opened(browser, base) as (page, watch):
        page.goto(base + "/runs/1")
        page.evaluate("document.body.dataset.same = 'yes'")
        done = ledger.standing(run).counts["done"]
        assert page.locator(".slots .card:visible").count() == 2
        assert ledger.beat(first, {"iteration": 45, "iterations": 60, "loss": 0.125, "remaining": 20.0})
        page.get_by_text("iteration 45 of 60, loss 0.125, 20 s left").wait_for()
        assert ledger.finish(first, Outcome("recovered", 31.5, 12.25, 3.0, {"verdict": "recovered"}))
        page.get_by_text(f"{done + 1} of 100 audits done").wait_for()
        row = page.locator("tr", has=page.locator(f"a[href='/jobs/{first.hash}']"))
        assert "recovered" in row.inner_text() and "+12.2" in row.inner_text()
        assert row.locator(".mark").get_attribute("data-value") == "recovered"
        assert (
            page.locator(".slots .card:visible").count() == 1 and page.evaluate("document.body.dataset.same") == "yes"
        )
        page.goto(f"{base}/jobs/{second.hash}")
        page.wait_for_timeout(500)
        assert ledger.fail(second, "it broke")
        page.get_by_role("link", name="Show what came of it").click()
        page.get_by_text("it broke").wait_for()
        assert watch.saw() == ([], [], [])


@pytest.mark.slow  # ten thousand rows take seconds to write
def test_ten_thousand_jobs_are_a_page_of_a_hundred(browser: Any, tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger.db"))
    fill(ledger, "many", 10_000, scenario=300)
    with served(ledger) as base, opened(browser, base, NARROW) as (page, watch):
        page.goto(base + "/runs/1")
        assert page.locator("tbody tr").count() == 100 and is_narrow_enough(page)
        page.get_by_role("link", name="Last").click()
        page.get_by_text("Page 100 of 100").wait_for()
        page.goto(base + "/runs/1/summary")
        assert page.locator("ol.points li").count() == 40 and is_narrow_enough(page)
        assert watch.saw() == ([], [], [])
