"""What a page of a ledger shows, by queries that filter, sort and cut in the database.

A run may have tens of thousands of jobs; nothing here reads more of them than are shown, but for the numbers of the
groups of a study, of which there are few.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from inversefed.experiments.ledger import Job, Ledger, Run, Standing
from inversefed.experiments.schema import RUNNING, job, result, run, run_job
from inversefed.experiments.table import GROUP, PSNR, Row

__all__ = ["FACETS", "RUNS", "SORTS", "Browse", "Facet", "Filters", "Line", "Sort"]

_COLUMNS: Mapping[str, sa.ColumnElement[Any]] = {
    "network": job.c.network,
    "client": job.c.client,
    "defenses": job.c.defenses,
    "attack": job.c.attack,
    "num_images": job.c.num_images,
    "verdict": result.c.verdict,
    "state": job.c.state,
}
FACETS = tuple(_COLUMNS)
"""By what jobs are filtered."""

_SORTED: Mapping[str, sa.ColumnElement[Any]] = {
    "position": run_job.c.position,
    "images": job.c.images,
    "seed": job.c.seed,
    **_COLUMNS,
    "psnr": result.c.psnr,
    "margin": result.c.margin,
    "seconds": result.c.seconds,
}
SORTS = tuple(_SORTED)
"""By what they are sorted."""

_MOST_VALUES = 200
"""Values of a column that a filter offers."""
RUNS = 100
"""Runs of a page."""


@dataclass(frozen=True)
class Filters:
    """Which jobs of a run; `None` stands for any.

    Args:
        network: as tables name it.
        client: likewise.
        defenses: likewise.
        attack: likewise.
        num_images: how many pictures share an update.
        verdict: of its result.
        state: of the job.
    """

    network: str | None = None
    client: str | None = None
    defenses: str | None = None
    attack: str | None = None
    num_images: int | None = None
    verdict: str | None = None
    state: str | None = None

    def given(self) -> dict[str, str | int]:
        """What is asked for."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}


@dataclass(frozen=True)
class Sort:
    """The order of jobs; those without the value come last.

    Args:
        by: one of `SORTS`; `"position"` is the order of the plan.
        falling: the largest first.
    """

    by: str = "position"
    falling: bool = False


@dataclass(frozen=True)
class Line:
    """A job as a line of a table shows it; see `Job` and `Outcome`."""

    hash: str
    network: str
    client: str
    defenses: str
    attack: str
    images: str
    num_images: int
    seed: int
    state: str
    progress: str | None
    error: str | None
    verdict: str | None
    psnr: float | None
    margin: float | None
    seconds: float | None


@dataclass(frozen=True)
class Facet:
    """The values that a column has in a run.

    Args:
        name: of the column.
        values: each with the number of its jobs, sorted.
        all: whether these are all values that there are.
    """

    name: str
    values: tuple[tuple[str | int, int], ...]
    all: bool = True

    @property
    def is_choice(self) -> bool:
        """Whether there is something to choose."""
        return len(self.values) > 1


_LINE = [job.c[each.name] for each in fields(Line) if each.name in job.c] + [
    result.c[name] for name in ("verdict", "psnr", "margin", "seconds")
]


@dataclass(frozen=True)
class Browse:
    """Reads a ledger a page at a time.

    Args:
        ledger: which.
    """

    ledger: Ledger

    def runs(self, offset: int = 0, limit: int = RUNS) -> tuple[tuple[Run, Standing], ...]:
        """Runs with how far they are, the newest first."""
        chosen = sa.select(run).order_by(run.c.id.desc()).offset(offset).limit(limit)
        with self.ledger.reading() as connection:
            found = [Run(**row._asdict()) for row in connection.execute(chosen)]
        standings = self.ledger.standings([each.id for each in found])
        return tuple((each, standings[each.id]) for each in found)

    def runs_there(self) -> tuple[int, int]:
        """How many runs there are, and the number of the newest; 0 where there is none."""
        with self.ledger.reading() as connection:
            count, newest = connection.execute(sa.select(sa.func.count(), sa.func.max(run.c.id))).one()
        return int(count), int(newest or 0)

    def run(self, number: int) -> Run | None:
        """The run of a number."""
        with self.ledger.reading() as connection:
            row = connection.execute(sa.select(run).where(run.c.id == number)).first()
        return None if row is None else Run(**row._asdict())

    def runs_of(self, hash: str) -> tuple[Run, ...]:
        """The runs that a job is part of."""
        has = sa.select(run_job.c.run_id).join(job, job.c.id == run_job.c.job_id).where(job.c.hash == hash)
        with self.ledger.reading() as connection:
            found = connection.execute(sa.select(run).where(run.c.id.in_(has)).order_by(run.c.id).limit(RUNS))
            return tuple(Run(**row._asdict()) for row in found)

    def count(self, of: Run, filters: Filters = Filters()) -> int:
        """How many jobs of a run the filters let through."""
        with self.ledger.reading() as connection:
            return int(connection.execute(_chosen(of, filters, sa.func.count())).scalar_one())

    def page(self, of: Run, filters: Filters, sort: Sort, offset: int, limit: int) -> tuple[Line, ...]:
        """Some of the jobs that the filters let through."""
        column = _SORTED[sort.by]
        order = (column.desc() if sort.falling else column.asc()).nulls_last()
        chosen = _chosen(of, filters, *_LINE, results=True).order_by(order, run_job.c.position)
        chosen = chosen.offset(offset).limit(limit)
        with self.ledger.reading() as connection:
            return tuple(Line(**row._asdict()) for row in connection.execute(chosen))

    def lines(self, hashes: Sequence[str]) -> tuple[Line, ...]:
        """The jobs of these hashes, in any order."""
        joined = job.outerjoin(result, result.c.job_id == job.c.id)
        with self.ledger.reading() as connection:
            found = connection.execute(sa.select(*_LINE).select_from(joined).where(job.c.hash.in_(hashes)))
            return tuple(Line(**row._asdict()) for row in found)

    def running(self, of: Run, limit: int) -> tuple[Line, ...]:
        """Some of the jobs that run."""
        return self.page(of, Filters(state=RUNNING), Sort(), 0, limit)

    def facets(self, of: Run) -> tuple[Facet, ...]:
        """By what the jobs of a run can be filtered, with the values that there are."""
        columns = list(_COLUMNS.values())
        counted = _chosen(of, Filters(), *columns, sa.func.count(), results=True).group_by(*columns)
        with self.ledger.reading() as connection:
            rows = connection.execute(counted).all()
        found = []
        for number, name in enumerate(_COLUMNS):
            counts: Counter[str | int] = Counter()
            for row in rows:
                if row[number] is not None:
                    counts[row[number]] += row[-1]
            values = sorted(counts.items())
            found.append(Facet(name, tuple(values[:_MOST_VALUES]), len(values) <= _MOST_VALUES))
        return tuple(found)

    def group_count(self, of: Run, filters: Filters = Filters()) -> int:
        """How many settings, each the jobs that differ only in target and seed, the filters let through."""
        groups = _chosen(of, filters, *(_COLUMNS[name] for name in GROUP)).distinct().subquery()
        with self.ledger.reading() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(groups)).scalar_one())

    def group_rows(self, of: Run, filters: Filters, offset: int, limit: int) -> list[Row]:
        """The jobs of some of the settings, with the numbers that `table.summary` sums up, in the order of the plan."""
        columns = [_COLUMNS[name] for name in GROUP]
        first = sa.func.min(run_job.c.position)
        groups = _chosen(of, filters, *columns).group_by(*columns).order_by(first).offset(offset).limit(limit)
        names = (PSNR, "structural_similarity", "control_psnr", "accuracy")
        numbers = [*map(self._number, names), result.c.margin, result.c.seconds]
        shown = [*columns, job.c.state, job.c.hash.label("scenario"), result.c.verdict, *numbers]
        with self.ledger.reading() as connection:
            keys = [tuple(row) for row in connection.execute(groups)]
            if not keys:
                return []
            chosen = _chosen(of, filters, *shown, results=True).where(sa.tuple_(*columns).in_(keys))
            return [row._asdict() for row in connection.execute(chosen.order_by(run_job.c.position))]

    def rows(self, of: Run, filters: Filters) -> Iterable[tuple[Job, dict[str, Any] | None]]:
        """All jobs that the filters let through, with their results, for a file."""
        return self.ledger.rows(of, _conditions(filters))

    def _number(self, name: str) -> sa.ColumnElement[Any]:
        """A number of a result's row, by name."""
        if self.ledger.is_sqlite:
            return sa.func.json_extract(result.c.content, f"$.{name}", type_=sa.Double).label(name)
        text = sa.cast(result.c.content, postgresql.JSONB)[name].astext
        return sa.cast(text, sa.Double).label(name)


def _chosen(of: Run, filters: Filters, *columns: Any, results: bool = False) -> sa.Select[Any]:
    joined: sa.FromClause = run_job.join(job, run_job.c.job_id == job.c.id)
    if results or filters.verdict is not None:
        joined = joined.outerjoin(result, result.c.job_id == job.c.id)
    return sa.select(*columns).select_from(joined).where(run_job.c.run_id == of.id, *_conditions(filters))


def _conditions(filters: Filters) -> list[sa.ColumnElement[bool]]:
    return [_COLUMNS[name] == value for name, value in filters.given().items()]
