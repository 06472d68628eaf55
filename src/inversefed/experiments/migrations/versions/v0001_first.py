"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make runs, jobs, which job is of which run, and results."""
    op.create_table(
        "run",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(100), nullable=False, unique=True),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("planned", sa.Boolean, nullable=False),
    )
    op.create_table(
        "job",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("kind", sa.String(10), nullable=False),
        sa.Column("scenario", sa.Text, nullable=False),
        *(sa.Column(name, sa.String, nullable=False) for name in ("network", "client", "defenses", "attack", "images")),
        sa.Column("num_images", sa.Integer, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("lost", sa.Integer, nullable=False),
        sa.Column("owner", sa.String),
        sa.Column("lease_until", sa.Double),
        sa.Column("progress", sa.Text),
        sa.Column("finished", sa.Double),
        sa.Column("error", sa.Text),
    )
    op.create_index("job_state", "job", ["state", "id"])
    op.create_table(
        "run_job",
        sa.Column("run_id", sa.Integer, sa.ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("job_id", sa.Integer, sa.ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
    )
    op.create_index("run_job_job", "run_job", ["job_id"])
    op.create_table(
        "result",
        sa.Column("job_id", sa.Integer, sa.ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("verdict", sa.String(20), nullable=False),
        sa.Column("psnr", sa.Double),
        sa.Column("margin", sa.Double),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
    )
