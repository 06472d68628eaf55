"""The pages of a ledger, as a Starlette application behind its guard.

/                       runs
/runs/N                 one run: filters, table, running jobs
/runs/N/summary         its summary, plots
/runs/N/table.csv       its table as a file
/jobs/HASH              one job, with its report
../events               what changes, live
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from inversefed.errors import InputError, InversefedError, StorageError
from inversefed.experiments.browse import RUNS, Browse, Facet
from inversefed.experiments.ledger import Job, Ledger, Run, Standing
from inversefed.experiments.places import is_hash
from inversefed.experiments.schema import POINT
from inversefed.experiments.serve import job_files, live
from inversefed.experiments.serve.guard import Guard
from inversefed.experiments.serve.pages import ROWS, STATIC, View, policy_of_report, render
from inversefed.experiments.serve.study import axis, frontiers, points, strengths
from inversefed.experiments.serve.wording import same_for_all, scenario_lines, score_lines
from inversefed.experiments.table import csv_text, row_of, summary

__all__ = ["make_app"]

_GROUPS = 50
"""Settings of a page of a summary."""
_PICTURES = 32
"""Pictures of a job's page; its report has the rest."""


def make_app(
    ledger: Ledger, token: str, host: str = "127.0.0.1", cookie: str = "inversefed", ended: Callable[[], bool] = bool
) -> Guard:
    """The application.

    Args:
        ledger: what is shown.
        token: what a first visit must bring.
        host: where the server listens.
        cookie: the name of the cookie.
        ended: whether the server ends, and streams with it.
    """
    pages = _Pages(ledger, Browse(ledger), ended)
    routes = {
        "/": pages.runs,
        "/events": pages.runs_events,
        "/runs/{number:int}": pages.run,
        "/runs/{number:int}/events": pages.run_events,
        "/runs/{number:int}/summary": pages.summary,
        "/runs/{number:int}/table.csv": pages.table,
        "/jobs/{hash}": pages.job,
        "/jobs/{hash}/events": pages.job_events,
        "/jobs/{hash}/so_far.png": pages.so_far,
        "/jobs/{hash}/{name}": pages.file,
        "/static/{name}": pages.static,
    }
    app = Starlette(
        routes=[Route(path, endpoint, methods=["GET"]) for path, endpoint in routes.items()],
        exception_handlers={HTTPException: _refused, InversefedError: _failed},
    )
    return Guard(app, token, host, cookie)


@dataclass(frozen=True)
class _Pages:
    """What is answered; everything that reads the ledger runs in a thread."""

    ledger: Ledger
    browse: Browse
    ended: Callable[[], bool]

    def runs(self, request: Request) -> Response:
        """All runs."""
        count, newest = self.browse.runs_there()
        pages = max(1, math.ceil(count / RUNS))
        view = View(page=min(View.of(request.query_params).page, pages))
        found = self.browse.runs((view.page - 1) * RUNS)
        return _page(
            "runs",
            runs=found,
            view=view,
            pages=pages,
            live=self._of_runs(found, newest, newest),
            events=f"/events?newest={newest}&page={view.page}",
            is_open=any(standing.open for _, standing in found),
        )

    def runs_events(self, request: Request) -> Response:
        """How far they are."""
        text = request.query_params.get("newest", "")
        newest = int(text) if text.isdecimal() and len(text) < 10 else 0
        offset = (View.of(request.query_params).page - 1) * RUNS
        return self._stream(lambda: self._of_runs(self.browse.runs(offset), newest, self.browse.runs_there()[1]))

    def run(self, request: Request) -> Response:
        """One run."""
        run, view = self._run(request), View.of(request.query_params)
        total = self.browse.count(run, view.filters)
        view = view.at(min(view.page, max(1, math.ceil(total / ROWS))))
        offset = (view.page - 1) * ROWS
        lines = self.browse.page(run, view.filters, view.sort, offset, ROWS)
        facets = self.browse.facets(run)
        running = self.browse.running(run, live.SLOTS)
        standing = self.ledger.standing(run)
        values = live.of_standing(standing, run.planned)
        values |= live.of_lines(lines) | live.of_running(self.ledger, running)
        return _page(
            "run",
            run=run,
            view=view,
            total=total,
            offset=offset,
            pages=max(1, math.ceil(total / ROWS)),
            lines=lines,
            facets=facets,
            columns=_varying(facets),
            same=same_for_all(facets),
            slots=range(live.SLOTS),
            live=values,
            failed=standing.counts["failed"],
            is_open=bool(standing.open) or not run.planned,
            events=f"/runs/{run.id}/events{view.query()}",
        )

    def run_events(self, request: Request) -> Response:
        """How far it is, and what became of the jobs on the page."""
        run, view = self._run(request), View.of(request.query_params)
        shown = self.browse.page(run, view.filters, view.sort, (view.page - 1) * ROWS, ROWS)
        hashes = tuple(each.hash for each in shown)

        def values() -> live.Values:
            standing = self.ledger.standing(run)
            running = self.browse.running(run, live.SLOTS)
            found = live.of_standing(standing, run.planned)
            found |= live.of_running(self.ledger, running)
            return found | live.of_lines(self.browse.lines(hashes)) | {"over": not standing.open and run.planned}

        return self._stream(values)

    def summary(self, request: Request) -> Response:
        """The settings of a run, summed up and drawn."""
        run, view = self._run(request), View.of(request.query_params)
        count = self.browse.group_count(run, view.filters)
        pages = max(1, math.ceil(count / _GROUPS))
        view = view.at(min(view.page, pages))
        rows = self.browse.group_rows(run, view.filters, (view.page - 1) * _GROUPS, _GROUPS)
        summed = summary(rows)
        drawn, trades = points(summed, rows), frontiers(summed, rows)
        facets = self.browse.facets(run)
        ends = [x for each in drawn for x in (each.mean, each.low, each.high, each.control) if x is not None]
        return _page(
            "summary",
            run=run,
            view=view,
            pages=pages,
            count=count,
            facets=facets,
            columns=_varying(facets),
            same=same_for_all(facets),
            points=drawn,
            axis=axis(ends) if ends else None,
            frontiers=trades,
            strengths=strengths(summed),
            View=View,
        )

    def table(self, request: Request) -> Response:
        """The table of a run as CSV, as far as the filters let it through."""
        run, view = self._run(request), View.of(request.query_params)
        text = csv_text([row_of(job, content) for job, content in self.browse.rows(run, view.filters)])
        headers = {"Content-Disposition": f'attachment; filename="run-{run.id}.csv"'}
        return Response(text, media_type="text/csv; charset=utf-8", headers=headers)

    def job(self, request: Request) -> Response:
        """One job."""
        job = self._job(request)
        content = self.ledger.result(job)
        names = job_files.pictures(self.ledger.folder, job.hash)
        values = live.of_job(self.ledger, job)
        return _page(
            "job",
            job=job,
            runs=self.browse.runs_of(job.hash),
            verdict=None if content is None else content.get("verdict"),
            is_point=job.kind == POINT,
            scores=score_lines(content or {}),
            scenario=scenario_lines(job),
            record=json.dumps(json.loads(job.scenario), indent=2, ensure_ascii=False),
            pictures=_pairs(names[:_PICTURES]),
            more=max(0, len(names) - _PICTURES),
            has_report=job_files.read(self.ledger.folder, job.hash, "report.html") is not None,
            live=values,
            is_open=not values["over"],
            events=f"/jobs/{job.hash}/events",
        )

    def job_events(self, request: Request) -> Response:
        """How far it is."""
        hash = self._job(request).hash
        return self._stream(lambda: live.of_job(self.ledger, self.ledger.job(hash)))

    def so_far(self, request: Request) -> Response:
        """The picture of a running search."""
        return _file(job_files.so_far(self.ledger.folder, request.path_params["hash"]), "so_far.png")

    def file(self, request: Request) -> Response:
        """A file of a job's report."""
        name = request.path_params["name"]
        return _file(job_files.read(self.ledger.folder, request.path_params["hash"], name), name)

    def static(self, request: Request) -> Response:
        """Style, script and icon."""
        found = STATIC.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404)
        return Response(found[0], media_type=found[1])

    def _of_runs(self, found: Sequence[tuple[Run, Standing]], known: int, newest: int) -> live.Values:
        values: live.Values = {"news": newest > known}
        for run, standing in found:
            values |= live.of_standing(standing, run.planned, f"run-{run.id}-")
        return values

    def _stream(self, values: Callable[[], live.Values]) -> Response:
        return StreamingResponse(live.events(values, self.ended), media_type="text/event-stream")

    def _run(self, request: Request) -> Run:
        found = self.browse.run(request.path_params["number"])
        if found is None:
            raise HTTPException(404, "The ledger has no such run.")
        return found

    def _job(self, request: Request) -> Job:
        hash = request.path_params["hash"]
        if not is_hash(hash):
            raise HTTPException(404, "A job is named by 64 hexadecimal digits.")
        try:
            return self.ledger.job(hash)
        except StorageError:
            raise
        except InputError as error:
            raise HTTPException(404, "The ledger has no such job.") from error


def _page(name: str, **values: Any) -> Response:
    return HTMLResponse(render(name, **values))


def _file(found: job_files.Found | None, name: str) -> Response:
    if found is None:
        raise HTTPException(404, "There is no such file.")
    kind = {"html": "text/html; charset=utf-8", "json": "application/json", "png": "image/png"}[name.rpartition(".")[2]]
    headers = {"Content-Security-Policy": policy_of_report(found.content)} if kind.startswith("text/html") else {}
    return Response(found.content, media_type=kind, headers=headers)


def _varying(facets: tuple[Facet, ...]) -> tuple[str, ...]:
    """The columns that tell jobs of a run apart."""
    return tuple(each.name for each in facets if each.is_choice and each.name not in ("verdict", "state"))


def _pairs(names: tuple[str, ...]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Pictures by their number, the private one first: (number, [(what it is, file)])."""
    numbers = sorted({each.rpartition("_")[2].removesuffix(".png") for each in names}, key=int)
    kinds = {"target": "private picture", "reconstruction": "recovered"}
    return [
        (number, [(text, file) for kind, text in kinds.items() if (file := f"{kind}_{number}.png") in names])
        for number in numbers
    ]


def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    page = render("message", title="Not found" if error.status_code == 404 else "Refused", text=error.detail)
    return HTMLResponse(page, error.status_code)


def _failed(_: Request, error: Exception) -> Response:
    return HTMLResponse(render("message", title="The ledger cannot be read", text=str(error)), 503)
