"""The pages of a ledger: who gets them, what they read, and what is in them."""

import csv
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from benchmarks.serve import seconds_of_pages
from inversefed.cli import main
from inversefed.experiments.browse import FACETS, RUNS, Browse, Filters, Sort
from inversefed.experiments.ledger import Ledger, NewJob, Outcome
from inversefed.experiments.places import Places
from inversefed.experiments.schema import POINT, job
from inversefed.experiments.serve import job_files
from inversefed.experiments.serve.app import make_app
from inversefed.experiments.serve.guard import POLICY, Guard
from inversefed.experiments.serve.pages import ROWS, View
from inversefed.experiments.serve.study import axis, frontiers, strengths
from inversefed.experiments.table import row_of, summary
from tests.experiments.asgi import COOKIE, TOKEN, get
from tests.experiments.filled import fill
from tests.report.conftest import HOSTILE, make_report

MANY = 10_000


def test_what_a_page_reads_of_all_runs_is_what_the_ledger_says(few: Ledger, tmp_path: Path) -> None:
    fill(few, "other", 60, scenario=20)
    with few._writing() as connection:
        connection.execute(job.update().where(job.c.hash == hash_of(few, "running")).values(lease_until=1.0))
    for run, standing in Browse(few).runs():
        expected = few.standing(run)
        assert (standing.counts, standing.late) == (expected.counts, expected.late)
        assert standing.seconds == pytest.approx(expected.seconds)
    assert {standing.late for _, standing in Browse(few).runs()} == {0, 1}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    ledger = Ledger(str(tmp_path_factory.mktemp("many") / "ledger.db"))
    fill(ledger, "many", MANY, scenario=300)
    return ledger


@pytest.fixture
def few(tmp_path: Path) -> Ledger:
    ledger = Ledger(str(tmp_path / "ledger.db"))
    fill(ledger, "few", 120, scenario=20)
    return ledger


@pytest.fixture
def app(few: Ledger) -> Guard:
    return make_app(few, TOKEN)


def hash_of(ledger: Ledger, state: str = "done") -> str:
    return ledger.jobs(ledger.runs()[-1], state)[0].hash


# -- who gets an answer ------------------------------------------------------------------------------------------------


def test_the_token_sets_a_cookie_and_leaves_the_address(app: Guard) -> None:
    first = get(app, f"/runs/1?state=done&token={TOKEN}&sort=-psnr", headers={})
    assert first.status == 303 and first.header("location") == "/runs/1?state=done&sort=-psnr"
    cookie = first.header("set-cookie")
    assert cookie is not None
    assert cookie.startswith(f"inversefed={TOKEN};") and {"httponly", "samesite=strict"} <= set(
        cookie.lower().replace(" ", "").split(";")
    )
    assert get(app, "/runs/1", headers=COOKIE).status == 200


def test_the_redirect_stays_on_this_server(app: Guard) -> None:
    for path in ("//evil.test/", "///evil.test/", "/\\evil.test/"):
        location = get(app, f"{path}?token={TOKEN}", headers={}).header("location")
        assert location is not None and re.match(r"/[^/\\]", location)


@pytest.mark.parametrize("headers", [{}, {"cookie": "inversefed=no"}, {"cookie": "other=" + TOKEN}])
@pytest.mark.parametrize(
    "path", ["/", "/runs/1", "/events", "/runs/1/table.csv", "/static/serve.css", "/none", "/?token=no"]
)
def test_without_token_or_cookie_there_is_nothing(app: Guard, path: str, headers: dict) -> None:
    answer = get(app, path, headers=headers)
    assert answer.status == 403 and b"few" not in answer.body and answer.header("set-cookie") is None


@pytest.mark.parametrize(
    ("listens", "asked", "status"),
    [
        ("127.0.0.1", "localhost:8765", 200),
        ("127.0.0.1", "[::1]:8765", 200),
        ("127.0.0.1", "evil.test", 403),
        ("127.0.0.1", "127.0.0.1.evil.test:8765", 403),
        ("127.0.0.1", "10.0.0.5", 403),
        ("127.0.0.1", "", 403),
        ("10.0.0.5", "10.0.0.5:8765", 200),
        ("10.0.0.5", "localhost", 403),
        ("0.0.0.0", "10.0.0.5:8765", 200),
        ("0.0.0.0", "evil.test:8765", 403),
        ("::", "[fd00::1]:8765", 200),
    ],
)
def test_a_foreign_host_is_refused(few: Ledger, listens: str, asked: str, status: int) -> None:
    assert get(make_app(few, TOKEN, listens), "/", headers=COOKIE | {"host": asked}).status == status


def test_what_another_site_asks_for_is_refused(app: Guard) -> None:
    image = {"sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
    link = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    for site in ("cross-site", "same-site"):
        assert get(app, "/", headers=COOKIE | image | {"sec-fetch-site": site}).status == 403
        assert get(app, "/", headers=COOKIE | link | {"sec-fetch-site": site}).status == 200
    assert get(app, "/", headers=COOKIE | image | {"sec-fetch-site": "same-origin"}).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(app: Guard, method: str) -> None:
    assert get(app, "/", method=method).status == 405


def test_every_answer_has_the_headers(app: Guard, few: Ledger) -> None:
    paths = [
        "/",
        "/runs/1",
        "/runs/1/summary",
        "/runs/1/table.csv",
        "/static/live.js",
        "/none",
        f"/jobs/{hash_of(few)}",
    ]
    answers = [get(app, path) for path in paths] + [get(app, "/", headers={}), get(app, "/", method="POST")]
    few.engine.dispose()
    Path(few.url.removeprefix("sqlite:///")).write_bytes(b"no database")
    answers.append(get(app, "/"))
    assert answers[-1].status == 503 and "not a ledger" in answers[-1].text
    for answer in answers:
        assert answer.header("content-security-policy") == POLICY
        assert answer.header("x-content-type-options") == "nosniff"
        assert answer.header("referrer-policy") == "no-referrer"
        assert answer.header("cache-control") == "no-store"
        assert TOKEN not in answer.text
    assert "default-src 'none'" in POLICY and "unsafe" not in POLICY and "http" not in POLICY


# -- pages -------------------------------------------------------------------------------------------------------------


def test_every_link_of_every_page_leads_somewhere(app: Guard, few: Ledger) -> None:
    seen: dict[str, int] = {}
    open_ = ["/"]
    while open_ and len(seen) < 80:
        address = open_.pop(0).partition("#")[0]
        if not address or address in seen or address.endswith((".css", ".svg")):
            continue
        answer = get(app, address)
        seen[address] = answer.status
        if address.startswith(("/runs/1", "/?")) or address == "/":
            open_ += [each for each in answer.links() if each.startswith("/")]
    assert len(seen) > 60 and set(seen.values()) == {200}
    assert not [each for each in get(app, "/runs/1/summary").links() if not each.startswith(("/", "#"))]


def test_filters_sort_and_pages_are_those_of_the_table(few: Ledger) -> None:
    browse, run = Browse(few), few.run("few")
    rows = [row_of(job, content) for job, content in few.rows(run)]
    filters = Filters(network="LeNetZhu", state="done")
    lines = browse.page(run, filters, Sort("psnr", falling=True), 0, ROWS)
    expected = [row for row in rows if row["network"] == "LeNetZhu" and row["state"] == "done"]
    assert browse.count(run, filters) == len(lines) == len(expected) > 10
    assert [each.psnr for each in lines] == sorted((row["peak_signal_noise_ratio"] for row in expected), reverse=True)
    every = [each for start in range(0, 120, 7) for each in browse.page(run, Filters(), Sort("psnr"), start, 7)]
    assert len({each.hash for each in every}) == 120
    there = [each.psnr for each in every if each.psnr is not None]
    assert there == sorted(there) and every[-1].psnr is None  # those without a number are last, up or down
    facets = {each.name: dict(each.values) for each in browse.facets(run)}
    assert tuple(facets) == FACETS and facets["state"]["done"] == sum(row["state"] == "done" for row in rows)
    assert sum(facets["network"].values()) == 120
    for name, values in facets.items():
        for value, count in values.items():
            assert browse.count(run, Filters(**{name: value})) == count


def test_the_summary_is_that_of_the_table(few: Ledger) -> None:
    browse, run = Browse(few), few.run("few")
    expected = summary(row_of(job, content) for job, content in few.rows(run))
    assert browse.group_count(run) == len(expected) == 40
    pages = [each for start in range(0, 40, 9) for each in summary(browse.group_rows(run, Filters(), start, 9))]
    assert pages == expected


def test_a_view_is_read_from_an_address_and_written_to_one() -> None:
    view = View.of({"network": "a & b", "num_images": "4", "sort": "-psnr", "page": "3", "evil": "x", "client": ""})
    assert view == View(Filters(network="a & b", num_images=4), Sort("psnr", True), 3)
    assert view.query() == "?network=a+%26+b&num_images=4&sort=-psnr&page=3"
    for bad in ({"page": "-1"}, {"page": "9" * 30}, {"page": "x"}, {"sort": "scenario"}, {"sort": "-"}):
        assert View.of(bad) == View()
    assert View.of({"num_images": "many"}).filters.num_images == -1  # which no job has


def test_the_file_is_the_table_filtered(app: Guard, few: Ledger) -> None:
    answer = get(app, "/runs/1/table.csv?state=failed")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert {row["state"] for row in rows} == {"failed"} and len(rows) == few.standing(few.run("few")).counts["failed"]
    assert answer.header("content-disposition") == 'attachment; filename="run-1.csv"'
    assert len(get(app, "/runs/1/table.csv").text.splitlines()) == 121


def test_a_failed_audit_says_why(app: Guard, few: Ledger) -> None:
    assert "ConfigError: it cannot be" in get(app, "/runs/1?state=failed").text
    assert "ConfigError: it cannot be" in get(app, f"/jobs/{hash_of(few, 'failed')}").text


def test_an_empty_ledger_says_how_to_begin(tmp_path: Path) -> None:
    assert "inversefed sweep demo" in get(make_app(Ledger(str(tmp_path / "new.db")), TOKEN), "/").text


@pytest.mark.parametrize(
    "path",
    ["/runs/2", "/runs/2/summary", "/runs/x", "/jobs/" + "0" * 64, "/jobs/" + "0" * 63, "/jobs/" + "A" * 64, "/x"],
)
def test_what_is_not_there_is_not_found(app: Guard, path: str) -> None:
    assert get(app, path).status == 404


def test_names_from_outside_are_text(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger.db"))
    fill(ledger, HOSTILE, 100, scenario=20, hostile=HOSTILE)
    app = make_app(ledger, TOKEN)
    paths = ["/", "/runs/1", "/runs/1?state=failed", "/runs/1/summary"]
    paths += [f"/jobs/{hash_of(ledger, state)}" for state in ("done", "failed", "running")]
    for path in paths:
        text = get(app, path).text
        assert "&lt;img src=x onerror" in text
        assert "<img src=x" not in text and "</script><img" not in text and "\x1b" not in text
        assert set(re.findall(r"<script[^>]*>", text)) <= {'<script src="/static/live.js" defer>'}
        assert " style=" not in text and "<style" not in text
    for link in (each for each in get(app, "/runs/1/summary").links() if "network=" in each):
        assert "No audit is like that" not in get(app, link).text


def test_strengths_of_a_defense_are_a_figure(many: Ledger) -> None:
    run = many.run("many")
    (family,) = strengths(summary(Browse(many).group_rows(run, Filters(attack="best"), 0, 50)))
    assert family.defense == "GaussianNoise(..)" and family.across.logarithmic
    assert len(family.lines) == 4
    for _, marks in family.lines:
        assert [mark.strength for mark in marks] == [0.01, 0.03, 0.1]
        places = [family.across.at(mark.strength) for mark in marks]
        assert places == sorted(places) and places[0] > 0 and places[-1] < 100
    assert not strengths(summary(Browse(many).group_rows(run, Filters(defenses="TopK(0.1)"), 0, 50)))


def frontier(folder: Path, seeds: int = 1) -> Ledger:
    """A run of points: leakage falls and accuracy falls with the strength of the noise."""
    ledger = Ledger(str(folder / f"frontier{seeds}.db"))
    run = ledger.add_run("frontier", "{}")
    points = [("FedSGD", "none", 1, 40.0, 0.7), ("FedSGD", "GaussianNoise(std=0.1)", 1, 4.0, 0.65)]
    points += [("FedSGD", "GaussianNoise(std=0.01)", 1, 13.0, 0.66), ("FedAvg(local_steps=4)", "none", 1, 9.0, 0.6)]
    points += [("FedSGD", "TopK(keep=0.1)", 4, 5.0, None)]
    for number, (client, defenses, many, leakage, accuracy) in enumerate(points):
        for seed in range(seeds):
            hash = hashlib.sha256(f"{number} {seed}".encode()).hexdigest()
            new = NewJob(hash, "{}", "LeNetZhu", client, defenses, "best()", "photos 0", many, seed, kind=POINT)
            ledger.plan_jobs(run, [new])
            taken = ledger.claim(run, "test", only=hash)
            assert taken is not None
            content = {"peak_signal_noise_ratio": 12 + leakage, "control_psnr": 12.0, "margin": leakage}
            content |= {
                "plain": 11.0,
                "adaptive": 12 + leakage,
                "accuracy": accuracy,
                "verdict": "not judged",
                "note": "",
            }
            assert ledger.finish(taken, Outcome("not judged", 12 + leakage, leakage, 1.0, content))
    return ledger


def test_a_frontier_is_drawn_and_each_point_leads_to_its_job(tmp_path: Path) -> None:
    ledger = frontier(tmp_path)
    run, browse = ledger.run("frontier"), Browse(ledger)
    rows = browse.group_rows(run, Filters(), 0, 50)
    (drawn,) = frontiers(summary(rows), rows)
    assert [name for name, _ in drawn.lines] == ["none", "GaussianNoise(std=..)", "FedAvg(local_steps=4)"]
    assert [[mark.label for mark in marks] for _, marks in drawn.lines] == [["1"], ["2: 0.01", "2: 0.1"], ["3"]]
    weak, strong = drawn.lines[1][1]
    assert (weak.leakage, strong.leakage) == (13.0, 4.0) and drawn.across.at(weak.leakage) > drawn.across.at(4.0) > 0
    assert weak.accuracy == pytest.approx(66.0) and drawn.up.at(66.0) > drawn.up.at(strong.accuracy)
    same = [{**rows[0], "defenses": f"Clip(max_norm={number}.0) + TopK(keep=0.1)"} for number in range(4)]
    (close,) = frontiers(summary(same), same)
    assert [mark.aside for _, marks in close.lines for mark in marks] == [0, -1, -2, -3], "no label hides another"
    app = make_app(ledger, TOKEN)
    page = get(app, "/runs/1/summary")
    links = [each for each in page.links() if each.startswith("/jobs/")]
    assert sorted(links) == sorted(f"/jobs/{mark.only}" for _, marks in drawn.lines for mark in marks)
    assert 'aria-label="GaussianNoise(std=0.01): leakage +13.0 dB, accuracy 66.0 %"' in page.text
    assert "<td>66.0 %</td>" in page.text and "Leakage against the strength of GaussianNoise" in page.text
    text = get(app, links[0]).text
    assert "Accuracy of a network trained so" in text and "leaves no report" in text and "Note" not in text


def test_a_point_of_a_frontier_that_several_jobs_measured_leads_to_all_of_them(tmp_path: Path) -> None:
    app = make_app(frontier(tmp_path, seeds=2), TOKEN)
    page = get(app, "/runs/1/summary")
    assert not [each for each in page.links() if each.startswith("/jobs/")]
    (link,) = {each for each in page.links() if "std%3D0.01" in each}
    assert get(app, link).text.count("<tr>") == 1 + 2


def test_older_runs_are_on_further_pages(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger.db"))
    for number in range(RUNS + 3):
        ledger.add_run(f"number {number}", "{}")
    app = make_app(ledger, TOKEN)
    first = get(app, "/")
    assert "number 3<" in first.text and "number 2<" not in first.text and "/?page=2" in first.links()
    for address in ("/?page=2", "/?page=9"):
        last = get(app, address).text
        assert all(f"number {number}<" in last for number in range(3)) and "number 3<" not in last
        assert "Page 2 of 2" in last
    events = events_of(get(app, f"/events?newest={RUNS + 3}&page=2", until=bool).body)[0]
    assert "run-1-said" in events and f"run-{RUNS}-said" not in events and events["news"] is False
    assert events_of(get(app, f"/events?newest={RUNS}&page=2", until=bool).body)[0]["news"] is True


@pytest.mark.parametrize("values", [[3.0], [0.0], [-7.0, -6.9], [1e-9, 2e-9], [12.0, 48.0], [1e6, -1e6]])
def test_an_axis_holds_its_values(values: list[float]) -> None:
    scale = axis(values)
    assert all(0 <= scale.at(value) <= 100 for value in values) and 2 <= len(scale.ticks) <= 9


# -- ten thousand jobs -------------------------------------------------------------------------------------------------


@contextmanager
def statements(ledger: Ledger):
    seen: list[str] = []

    def note(connection, cursor, statement, *_):
        seen.append(" ".join(statement.split()))

    sa.event.listen(ledger.engine, "before_cursor_execute", note)
    yield seen
    sa.event.remove(ledger.engine, "before_cursor_execute", note)


@pytest.mark.parametrize(
    ("path", "most"), [("/", 4), ("/runs/1", 9), ("/runs/1?network=MLP&verdict=exact&sort=-psnr&page=2", 9)]
)
def test_a_first_screen_of_ten_thousand_jobs_reads_a_hundred_of_them(many: Ledger, path: str, most: int) -> None:
    app = make_app(many, TOKEN)
    with statements(many) as seen:
        answer = get(app, path)
    assert answer.status == 200 and len(answer.body) < 200_000
    queries = [each for each in seen if each.startswith("SELECT")]
    assert 0 < len(queries) <= most
    for query in queries:  # each counts, or is cut
        assert re.search(r"LIMIT|count\(|avg\(|WHERE run.id = ", query), query
    assert not any("job.scenario" in query for query in queries)
    if path != "/":
        assert answer.text.count("<tr>") == ROWS + 1
    else:
        assert "10000 audits" in answer.text


def test_ten_thousand_jobs_page_by_page_are_ten_thousand(many: Ledger) -> None:
    browse, run = Browse(many), many.run("many")
    seen = {each.hash for start in range(0, MANY, 500) for each in browse.page(run, Filters(), Sort(), start, 500)}
    assert len(seen) == browse.count(run) == MANY
    text = get(make_app(many, TOKEN), "/runs/1?page=999999").text
    assert "Page 100 of 100" in text and "10,000 of 10,000" in text


def test_the_benchmark_asks_for_every_page(tmp_path: Path) -> None:
    found = seconds_of_pages(tmp_path, jobs=250, repeats=1)
    assert len(found) == 6 and all(first > 0 for first, _ in found.values())


# -- live --------------------------------------------------------------------------------------------------------------


def events_of(body: bytes) -> list[dict]:
    return [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: ")]


def test_what_changes_is_sent_and_nothing_else(few: Ledger, app: Guard) -> None:
    run = few.run("few")
    job = few.jobs(run, "running")[0]
    done = few.standing(run).counts["done"]

    def until(body: bytes) -> bool:
        found = events_of(body)
        if len(found) == 1 and few.job(job.hash).state == "running":
            assert few.finish(job, Outcome("recovered", 31.5, 12.25, 3.0, {"verdict": "recovered"}))
        return len(found) == 2

    first, second = events_of(get(app, "/runs/1/events", until=until).body)
    assert first["said"].startswith(f"{done} of 120") and first["slot-0-text"].startswith("iteration 30 of 60")
    assert first[f"{job.hash}-result"] == "running, 50%"
    assert second["said"].startswith(f"{done + 1} of 120")
    assert second[f"{job.hash}-result"] == "recovered" and second[f"{job.hash}-margin"] == "+12.2"
    assert not any(name.startswith("slot-1") and name.endswith("fraction") for name in second)
    assert len(second) < 25 < 400 < len(first)


def test_a_running_job_shows_its_picture_and_its_end(few: Ledger, app: Guard) -> None:
    job = few.jobs(few.run("few"), "running")[0]
    picture = Places(few.folder).live(job.hash) / "so_far.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"\x89PNG one")
    page = get(app, f"/jobs/{job.hash}").text
    (address,) = re.findall(r'src="(/jobs/[^"]*so_far.png[^"]*)"', page)
    shown = get(app, address)
    assert shown.body == b"\x89PNG one" and shown.header("content-type") == "image/png"
    assert "30 of 60" in page and "0.25" in page and "about 75 s" in page

    def until(body: bytes) -> bool:
        if few.job(job.hash).state == "running":
            assert few.fail(job, "it broke")
        return False

    events = events_of(get(app, f"/jobs/{job.hash}/events", until=until).body)
    assert events[0]["picture"] == address and events[-1]["over"] is True and events[-1]["state"] == "failed"


def test_streams_end_with_the_server_and_with_the_run(few: Ledger) -> None:
    assert get(make_app(few, TOKEN, ended=lambda: True), "/events").body == b""
    over = Ledger(str(few.folder / "other.db"))
    over.add_run("nothing", "{}")
    over.plan_jobs(over.run("nothing"), [])
    assert events_of(get(make_app(over, TOKEN), "/runs/1/events").body)[-1]["over"] is True


def test_a_new_run_is_told(few: Ledger, app: Guard) -> None:
    seen = events_of(get(app, "/events?newest=0", until=bool).body)[0]
    assert seen["news"] is True and seen["run-1-said"].endswith("2 queued, 2 failed") is False
    assert events_of(get(app, "/events?newest=1", until=bool).body)[0]["news"] is False


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(few: Ledger) -> tuple[str, Path]:
    hash = hash_of(few)
    folder = Places(few.folder).job(hash)
    folder.parent.mkdir(parents=True)
    make_report(2).save(folder, tensors=True)
    return hash, folder


def test_a_report_is_served_under_its_own_policy_and_in_a_sandbox(app: Guard, saved: tuple[str, Path]) -> None:
    hash, folder = saved
    page = get(app, f"/jobs/{hash}").text
    assert f'<iframe title="Report" src="/jobs/{hash}/report.html" sandbox' in page
    assert page.count("<figcaption>") == 4 and page.index("target_00.png") < page.index("reconstruction_00.png")
    report = get(app, f"/jobs/{hash}/report.html")
    assert report.body == (folder / "report.html").read_bytes()
    policy = report.header("content-security-policy")
    assert (
        policy is not None and policy.startswith("sandbox; default-src 'none'") and "frame-ancestors 'self'" in policy
    )
    (own,) = re.findall(r"style-src ('sha256-[^']+')", report.text)
    assert f"style-src {own};" in policy and "script" not in policy
    assert get(app, f"/jobs/{hash}/report.json").header("content-type") == "application/json"
    assert get(app, f"/jobs/{hash}/target_01.png").body.startswith(b"\x89PNG")


def test_a_report_that_was_tampered_with_cannot_loosen_its_policy(app: Guard, saved: tuple[str, Path]) -> None:
    hash, folder = saved
    for text in ("style-src 'unsafe-inline'", "style-src 'sha256-x'; script-src *", "no policy"):
        (folder / "report.html").write_text(text)
        policy = get(app, f"/jobs/{hash}/report.html").header("content-security-policy")
        assert policy is not None and "style-src 'none'" in policy and "*" not in policy and "unsafe" not in policy


@pytest.mark.parametrize(
    "name",
    ["reconstruction.safetensors", "report.md", "notes.txt", "..", "%2e%2e%2fledger.db", "..%2f..%2f..%2fledger.db"],
)
def test_only_what_a_report_shows_is_served(app: Guard, saved: tuple[str, Path], name: str) -> None:
    (saved[1] / "notes.txt").write_text("mine")
    assert get(app, f"/jobs/{saved[0]}/{name}").status == 404


def test_no_link_is_followed_and_nothing_but_plain_files_read(few: Ledger, app: Guard, saved: tuple[str, Path]) -> None:
    hash, folder = saved
    secret = few.folder / "secret.png"
    secret.write_bytes(b"\x89PNG secret")
    (folder / "target_00.png").unlink()
    (folder / "target_00.png").symlink_to(secret)
    (folder / "target_01.png").unlink()
    os.mkfifo(folder / "target_01.png")
    (folder / "target_02.png").mkdir()
    for number in range(3):
        assert get(app, f"/jobs/{hash}/target_0{number}.png").status == 404
    moved = few.folder / "moved"
    folder.rename(moved)
    folder.symlink_to(moved, target_is_directory=True)
    assert get(app, f"/jobs/{hash}/report.html").status == 404 and job_files.pictures(few.folder, hash) == ()
    assert "No report." in get(app, f"/jobs/{hash}").text


# -- the command -------------------------------------------------------------------------------------------------------


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 2
    assert "pip install 'inversefed[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--port", "65536"], ["--host", "no.such.host.invalid"]])
def test_where_nothing_can_listen_is_refused(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert main(["serve", "--ledger", str(tmp_path / "ledger.db"), *arguments]) == 2
    assert "port" in capsys.readouterr().err


def test_the_address_it_prints_opens_and_ctrl_c_ends_it(few: Ledger) -> None:
    command = [sys.executable, "-m", "inversefed", "serve", "--port", "0", "--ledger", few.url, "--host", "0.0.0.0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stderr is not None
        try:
            address = server.stdout.readline().strip().replace("0.0.0.0", "127.0.0.1")
            browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            with browser.open(address, timeout=30) as answer:
                assert answer.status == 200 and "few" in answer.read().decode() and "token" not in answer.url
                assert answer.headers["server"] is None
            with browser.open(address.partition("?")[0] + "events", timeout=30) as stream:
                assert stream.readline().startswith(b"data: ")  # one that is open does not keep the server
                server.send_signal(signal.SIGINT)
                assert server.wait(60) == 0
            assert "can be reached from other machines" in server.stderr.read()
        finally:
            server.kill()


def test_two_servers_of_a_machine_do_not_share_a_cookie(few: Ledger) -> None:
    one, other = make_app(few, TOKEN, cookie="inversefed_1"), make_app(few, TOKEN, cookie="inversefed_2")
    cookie = get(one, f"/?token={TOKEN}", headers={}).header("set-cookie")
    assert cookie is not None and get(other, "/", headers={"cookie": cookie.partition(";")[0]}).status == 403
