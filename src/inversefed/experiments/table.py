"""Results as rows: one a job, and one a group of jobs that differ only in target and seed.

summary = mean, standard deviation, 95 % interval, n, failures, share of targets recovered
"""

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from inversefed.errors import ConfigError
from inversefed.evaluation.intervals import mean_interval
from inversefed.evaluation.metrics import FACTS
from inversefed.experiments.ledger import Job, Outcome
from inversefed.experiments.schema import DONE
from inversefed.report.model import Report
from inversefed.report.to_json import plain

__all__ = ["GROUP", "MEANS", "PSNR", "Row", "csv_text", "markdown", "outcome_of", "row_of", "summary", "to_parquet"]

Row = Mapping[str, Any]
"""Values by the column's name."""

PSNR = "peak_signal_noise_ratio"

MEANS = (PSNR, "margin", "structural_similarity", "accuracy", "seconds")
"""What a summary has means of; accuracy is that of points of the frontier, whose margin is their leakage."""

GROUP = ("network", "client", "defenses", "attack", "num_images")
"""What the jobs of a line of the summary share."""


def outcome_of(report: Report, seconds: float) -> Outcome:
    """What a ledger keeps of a report: every score, the verdict, and how it came about."""
    content: dict[str, Any] = {}
    for metric, values in sorted(report.scores.items()):
        content[metric] = _mean(values.tolist())
        if len(values) > 1:
            pick = max if FACTS[metric].higher_is_better else min
            content[f"best_{metric}"] = _finite(pick(values.tolist()))
    controls = [scores.get(PSNR) for scores in report.baselines.values()]
    best = [max(each) for each in zip(*(each.tolist() for each in controls if each is not None), strict=True)]
    found = report.scores.get(PSNR)
    psnr = None if found is None else _finite(max(found.tolist()))
    gaps = [] if found is None or not best else [a - b for a, b in zip(found.tolist(), best, strict=True)]
    margin = _finite(max(gaps)) if gaps else None
    content |= {
        "control_psnr": _mean(best) if best else None,
        "margin": margin,
        "matching_error": report.reconstruction.matching_error,
        "loss": report.reconstruction.loss,
        "status": str(report.status),
        "iterations": sum(each.iterations for each in report.reconstruction.candidates),
        "made_by": report.reconstruction.made_by.partition("(")[0],
        "verdict": verdict_of(report),
    }
    figures = None if report.verdict is None else report.verdict.figures
    content |= {
        "nulls": 0 if figures is None else figures.nulls,
        "p_value": None if figures is None else figures.p_value,
        "false_alarms_at_most": None if figures is None else figures.false_alarms_at_most,
        "pictures_leaked": 0 if figures is None else len(figures.pictures_leaked),
        "answer": None if report.verdict is None else str(report.verdict.answer),
        "limit_psnr": None if report.limit is None else report.limit.limit_psnr[0],
        "determined": None if report.limit is None else report.limit.determined[0],
        "seconds": seconds,
    }
    content = {name: plain(value) for name, value in content.items()}
    return Outcome(content["verdict"], psnr, margin, seconds, content)


def verdict_of(report: Report) -> str:
    """The verdict in one or two words."""
    if report.verdict is None:
        return "not judged"
    figures = report.verdict.figures
    if report.verdict.leaked:
        return "exact" if figures.pictures_exact else "recovered"
    return "not recovered" if figures.decided else "undecided"


def row_of(job: Job, content: Mapping[str, Any] | None) -> Row:
    """A job as a row: its scenario, its state, and its result where there is one."""
    return {
        "network": job.network,
        "client": job.client,
        "defenses": job.defenses,
        "attack": job.attack,
        "images": job.images,
        "num_images": job.num_images,
        "seed": job.seed,
        "state": job.state,
        **(content or {}),
        "attempts": job.attempts,
        "error": job.error,
        "scenario": job.hash,
    }


def summary(rows: Iterable[Row]) -> list[Row]:
    """One row a group of jobs that share network, client, defenses, attack and batch size.

    Args:
        rows: as `row_of` makes them.

    Returns:
        For each group n, failures, the share with a leak, and mean, deviation and 95 % interval of the PSNR, its margin
        over the best control, SSIM, accuracy and seconds. An interval of fewer than six values is none.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in GROUP), []).append(row)
    return [_summed(key, members) for key, members in groups.items()]


def _summed(key: Sequence[Any], members: Sequence[Row]) -> Row:
    done = [each for each in members if each["state"] == DONE]
    found: dict[str, Any] = dict(zip(GROUP, key, strict=True))
    found |= {"n": len(done), "failed": sum(each["state"] == "failed" for each in members)}
    found["open"] = len(members) - found["n"] - found["failed"]
    leaked = [float(each["verdict"] in ("exact", "recovered")) for each in done if each["verdict"] != "not judged"]
    found["leaked"] = sum(leaked) / len(leaked) if leaked else None
    for name in MEANS:
        values = [float(each[name]) for each in done if each.get(name) is not None]
        if not values:
            found |= {name: None, f"{name}_sd": None, f"{name}_low": None, f"{name}_high": None}
            continue
        interval = mean_interval(values)
        found |= {
            name: interval.mean,
            f"{name}_sd": statistics.stdev(values) if len(values) > 1 else None,
            f"{name}_low": interval.low,
            f"{name}_high": interval.high,
        }
    return found


def csv_text(rows: Sequence[Row]) -> str:
    """Rows as CSV; a cell that a spreadsheet would run as a formula is quoted as text."""
    out = io.StringIO()
    names = columns(rows)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    return out.getvalue()


def markdown(rows: Sequence[Row], only: Sequence[str] | None = None) -> str:
    """Rows as a table in Markdown, numbers rounded; columns in which nothing stands are left out."""
    names = [name for name in only or columns(rows) if any(row.get(name) not in (None, "") for row in rows)]
    lines = [names, ["---"] * len(names), *([_short(row.get(name)) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def to_parquet(rows: Sequence[Row], path: Path) -> None:
    """Write rows as a Parquet file.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ConfigError("Parquet needs pyarrow, which is not installed: pip install 'inversefed[parquet]'") from error
    names = columns(rows)
    parquet.write_table(pyarrow.table({name: [row.get(name) for row in rows] for name in names}), path)


def columns(rows: Iterable[Row]) -> list[str]:
    """All columns, in the order in which they first stand, those about the job last."""
    names = dict.fromkeys(name for row in rows for name in row)
    last = [name for name in ("seconds", "attempts", "error", "scenario") if name in names]
    return [name for name in names if name not in last] + last


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return "" if value is None else value


def _short(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _mean(values: Sequence[float]) -> float | None:
    return _finite(sum(values) / len(values)) if values else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
