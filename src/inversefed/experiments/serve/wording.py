"""Names of what the pages show."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from inversefed.evaluation.metrics import FACTS
from inversefed.experiments.browse import Facet
from inversefed.experiments.ledger import Job
from inversefed.experiments.table import GROUP

__all__ = ["TITLES", "same_for_all", "scenario_lines", "score_lines"]

TITLES: Mapping[str, str] = {
    "network": "Network",
    "client": "Client",
    "defenses": "Defenses",
    "attack": "Attack",
    "num_images": "Pictures an update",
    "verdict": "Verdict",
    "state": "State",
}
"""Columns by name."""

_SCORES: Mapping[str, tuple[str, str]] = {
    "control_psnr": ("Best control", "{:.1f} dB"),
    "margin": ("Above the best control", "{:+.1f} dB"),
    "plain": ("PSNR of the attack that ignores the defenses", "{:.1f} dB"),
    "adaptive": ("PSNR of the attack that knows them", "{:.1f} dB"),
    "accuracy": ("Accuracy of a network trained so", "{:.1%}"),
    "epsilon": ("Epsilon of one release", "{:.3g}"),
    "delta": ("Delta", "{:.3g}"),
    "targets": ("Updates attacked", "{}"),
    "note": ("Note", "{}"),
    "matching_error": ("Matching error", "{:.3g}"),
    "loss": ("Loss", "{:.4g}"),
    "status": ("Search", "{}"),
    "iterations": ("Iterations", "{:,}"),
    "made_by": ("Made by", "{}"),
    "nulls": ("Null runs", "{}"),
    "p_value": ("P-value", "{:.3g}"),
    "false_alarms_at_most": ("False alarms, at most", "{:.3g}"),
    "pictures_leaked": ("Pictures leaked", "{}"),
    "answer": ("Answer", "{}"),
    "limit_psnr": ("Limit of the update, dB", "{:.1f}"),
    "determined": ("Directions told", "{}"),
    "seconds": ("Time", "{:.1f} s"),
}


_ELSEWHERE = ("verdict", "control", "leakage")
"""What stands elsewhere on the page; those of a point are the best control and what is above it."""


def score_lines(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What came of a job, as title and text; what is not known is left out, and the verdict stands elsewhere."""
    found = []
    for name, value in content.items():
        if value in (None, "") or name in _ELSEWHERE:
            continue
        metric = name.removeprefix("best_")
        if metric in FACTS:
            fact = FACTS[metric]
            title = f"{fact.title}, best picture" if metric != name else fact.title
            found.append((title, f"{value:{fact.format}} {fact.unit}".rstrip()))
        elif name in _SCORES:
            title, form = _SCORES[name]
            found.append((title, form.format(value)))
        else:
            found.append((name.replace("_", " "), str(value)))
    return found


def scenario_lines(job: Job) -> list[tuple[str, str]]:
    """What a job audits, as title and text."""
    record = json.loads(job.scenario)
    threat = record.get("threat_model")
    told = ", ".join(f"{name}: {value}" for name, value in threat.items()) if isinstance(threat, dict) else ""
    lines = [
        ("Private pictures", job.images),
        *((TITLES[name], str(getattr(job, name))) for name in GROUP),
        ("Seed", str(job.seed)),
        ("What the server knows", told),
        ("Begun", f"{job.attempts} times" if job.attempts != 1 else "once"),
        ("Lost with its process", f"{job.lost} times" if job.lost else ""),
        ("Predicted memory", f"{job.bytes / 1e6:,.1f} MB" if job.bytes else ""),
        ("Hash of the scenario", job.hash),
    ]
    return [line for line in lines if line[1]]


def same_for_all(facets: Iterable[Facet]) -> list[tuple[str, str]]:
    """What all jobs of a run share, as title and text."""
    return [
        (TITLES[each.name], str(each.values[0][0]))
        for each in facets
        if len(each.values) == 1 and each.name not in ("verdict", "state")
    ]
