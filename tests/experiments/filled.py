"""Ledgers of many jobs, written as rows: no audit is run."""

import hashlib
import json
from itertools import product

from inversefed.experiments.ledger import Ledger, NewJob, Run
from inversefed.experiments.schema import job, result

DEFENSES = ("none", "GaussianNoise(0.01)", "GaussianNoise(0.03)", "GaussianNoise(0.1)", "TopK(0.1)")
NETWORKS = ("LeNetZhu", "ConvNet, 10 epochs of CIFAR10", "ResNet20", "MLP")
_VERDICTS = ("exact", "recovered", "not recovered", "undecided", "not judged")


def fill(ledger: Ledger, name: str, jobs: int, scenario: int = 2000, hostile: str = "") -> Run:
    """A run of so many jobs over 40 settings: most done, some failed, queued and running.

    Args:
        ledger: where.
        name: of the run.
        jobs: how many.
        scenario: bytes of each record, about as many as real ones have.
        hostile: put into every name.
    """
    run = ledger.add_run(name, "{}")
    settings = list(product(NETWORKS, DEFENSES, ("geiping(max_iterations=60)", "best")))
    record = json.dumps({"client": "FedSGD()", "defenses": [], "note" + hostile: "x" * scenario + hostile})
    new = [
        NewJob(
            hash=hashlib.sha256(f"{name} {number}".encode()).hexdigest(),
            scenario=record,
            network=network + hostile,
            client="FedSGD" + hostile,
            defenses=defenses + hostile,
            attack=attack + hostile,
            images=f"photos {number // len(settings)}{hostile}",
            num_images=1,
            seed=number % 7,
        )
        for number in range(jobs)
        for network, defenses, attack in [settings[number % len(settings)]]
    ]
    ledger.plan_jobs(run, new)
    with ledger._writing() as connection:
        ids = dict(connection.execute(job.select().with_only_columns(job.c.hash, job.c.id)).all())
        failed = [ids[each.hash] for number, each in enumerate(new) if number % 50 == 7]
        running = [ids[each.hash] for number, each in enumerate(new) if number % 50 == 8][:3]
        queued = [ids[each.hash] for number, each in enumerate(new) if number % 50 == 9]
        progress = json.dumps({"iteration": 30, "iterations": 60, "loss": 0.25, "remaining": 75.0})
        others = {*failed, *running, *queued}
        done = [(number, ids[each.hash]) for number, each in enumerate(new) if ids[each.hash] not in others]
        connection.execute(job.update().where(job.c.id.in_([each for _, each in done])).values(state="done"))
        error = "ConfigError: it cannot be" + hostile
        connection.execute(job.update().where(job.c.id.in_(failed)).values(state="failed", error=error, attempts=1))
        begun = {"state": "running", "progress": progress, "owner": "machine:1:a", "attempts": 1, "lease_until": 4e9}
        connection.execute(job.update().where(job.c.id.in_(running)).values(**begun))
        connection.execute(result.insert(), [_result(number, each) for number, each in done])
    return ledger.run(name)


def _result(number: int, job_id: int) -> dict:
    strength = number % 10 // 2
    psnr = 32.0 - 4.0 * strength + (number * 7919 % 101) / 25
    margin, verdict = psnr - 18.0, _VERDICTS[min(4, strength)]
    content = {
        "peak_signal_noise_ratio": psnr,
        "structural_similarity": 0.5,
        "margin": margin,
        "control_psnr": 18.0,
        "accuracy": 0.7 - 0.04 * strength,
        "verdict": verdict,
        "status": "finished",
        "iterations": 60,
        "seconds": 2.5,
    }
    values = {"verdict": verdict, "psnr": psnr, "margin": margin, "seconds": 2.5}
    return {"job_id": job_id, "content": json.dumps(content), **values}
