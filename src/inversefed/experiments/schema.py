"""The tables of a ledger; `migrations` bring an older file to them.

run ──< run_job >── job ── result
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

__all__ = [
    "AUDIT",
    "DONE",
    "FAILED",
    "HEAD",
    "POINT",
    "QUEUED",
    "RUNNING",
    "STATES",
    "job",
    "metadata",
    "result",
    "run",
    "run_job",
]

HEAD = "0001"
"""The schema that this version writes: the last of `migrations/versions`."""

QUEUED, RUNNING, DONE, FAILED = STATES = ("queued", "running", "done", "failed")
"""What a job may be; all else about it follows from its other columns."""

AUDIT, POINT = "audit", "point"
"""What a job is: an audit, or a point of the privacy-utility frontier."""

metadata = MetaData()

run = Table(
    "run",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(100), nullable=False, unique=True),
    Column("plan", Text, nullable=False),  # JSON, as `Plan.to_dict` has it
    Column("created", Double, nullable=False),
    Column("planned", Boolean, nullable=False),  # whether all its jobs are there
)

job = Table(
    "job",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),  # of its scenario: no audit is run twice
    Column("kind", String(10), nullable=False),  # AUDIT or POINT
    Column("scenario", Text, nullable=False),  # JSON, as `Scenario.to_dict` or `PointSpec.to_dict` has it
    Column("network", String, nullable=False),
    Column("client", String, nullable=False),
    Column("defenses", String, nullable=False),
    Column("attack", String, nullable=False),
    Column("images", String, nullable=False),  # what the private pictures are called
    Column("num_images", Integer, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),  # memory that it is predicted to take, 0 where nothing tells
    Column("state", String(10), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("lost", Integer, nullable=False),  # attempts that ended with their process
    Column("owner", String),
    Column("lease_until", Double),  # seconds since 1970, by the database's clock
    Column("progress", Text),  # JSON: iteration, iterations, loss, remaining
    Column("finished", Double),
    Column("error", Text),
    Index("job_state", "state", "id"),
)

run_job = Table(
    "run_job",
    metadata,
    Column("run_id", Integer, ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    Column("job_id", Integer, ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, nullable=False),  # in the plan, from 0; later ones of the same number come after
    Index("run_job_job", "job_id"),
)

result = Table(
    "result",
    metadata,
    Column("job_id", Integer, ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    Column("verdict", String(20), nullable=False),
    Column("psnr", Double),  # of the best picture, dB
    Column("margin", Double),  # of the best picture over the best control, dB
    Column("seconds", Double, nullable=False),
    Column("content", Text, nullable=False),  # JSON: the row of the table
)
