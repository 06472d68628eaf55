"""inversefed: find out what a client's update gives away in federated learning.

The public surface, all of it imported on first use. `audit` is the whole line in one call; the pieces that
it is given live in `clients`, `defenses`, `recipes` and their neighbors. The last block speaks the dialect
of the 2020 code (see the documentation, `legacy`).
"""

import importlib
from typing import Any

__version__ = "1.0.0rc1"

_HOMES = {
    # the line of the program
    "audit": "pipeline",
    "audit_observation": "pipeline",
    "capture": "integrations.capture",
    "freeze": "fl.network",
    "observe": "fl.threat",
    "Network": "fl.network",
    "Observation": "fl.threat",
    "ThreatModel": "fl.threat_model",
    "Accounting": "fl.accounting",
    "DPSGD": "fl.clients.dpsgd",
    "FedAvg": "fl.clients",
    "FedSGD": "fl.clients",
    "LocalAdam": "fl.clients.local_optimizers",
    "LocalAdamW": "fl.clients.local_optimizers",
    "LocalSGD": "fl.clients.local_optimizers",
    "SumOfClients": "fl.clients.secure_sum",
    "GradientInversion": "attacks.search.inversion",
    "identify": "attacks.identifiability.identify",
    "limit": "attacks.identifiability.limit",
    "Identifiability": "attacks.identifiability.identify",
    "Report": "report.model",
    "Scenario": "scenario",
    "Verdict": "evaluation.verdict",
    "judge": "report.several_targets",
    "Membership": "evaluation.membership",
    "membership": "records",
    "Batch": "types",
    "Budget": "types",
    "Candidate": "types",
    "Finding": "findings",
    "Limit": "types",
    "Reconstruction": "types",
    "Status": "types",
    "Step": "types",
    # rooms with choices in them
    "defenses": "fl.defenses:",
    "inputs": "inputs:",
    "labels": "attacks.labels:",
    "objectives": "attacks.pieces.objectives:",
    "priors": "attacks.pieces.priors:",
    "recipes": "attacks.recipes:",
    # the 2020 dialect
    "FedAvgReconstructor": "compat.reconstruction_algorithms",
    "GradientReconstructor": "compat.reconstruction_algorithms",
    "construct_dataloaders": "compat.data",
    "construct_model": "compat.nn",
    "consts": "compat.consts:",
    "metrics": "compat.metrics:",
    "nn": "compat.nn:",
    "options": "compat.options",
    "reconstruction_algorithms": "compat.reconstruction_algorithms:",
    "train": "compat.training",
    "training": "compat.training:",
    "training_strategy": "compat.training",
    "utils": "compat.utils:",
}
"""Public name -> module that holds it; a colon at the end where the name is that module itself."""

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'inversefed' has no attribute {name!r}")
    module = importlib.import_module(f"inversefed.{home.rstrip(':')}")
    return module if home.endswith(":") else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
