"""What Flower's wrappers and mods hide from whom, as findings for a report.

Central differential privacy protects what the server publishes, and nothing from the server. Local noise is in what
the server sees. Under secure aggregation it sees a sum.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from inversefed.findings import Code, Finding

__all__ = ["protections"]


def protections(strategy: object, mods: Sequence[object] = ()) -> tuple[Finding, ...]:
    """What a strategy, what it wraps, and the clients' mods do to an update, and what the audit sees of it.

    Args:
        strategy: of the server; `None` where it is not known.
        mods: of the clients, outermost first; functions or values.
    """
    found = []
    while strategy is not None:
        name, held = type(strategy).__name__, _held(strategy)
        if name.startswith("DifferentialPrivacy"):
            found.append(_central(name, held))
        strategy = held.get("strategy")
    names = [_name(each) for each in mods]
    found += [_local(_held(each)) for each, name in zip(mods, names, strict=True) if name == "LocalDpMod"]
    if any(name in ("secaggplus_mod", "secagg_mod") for name in names):
        found.append(_summed())
    if any(name in ("fixedclipping_mod", "adaptiveclipping_mod") for name in names):
        message = "Clients clip their updates and add no noise: the server sees each clipped update."
        found.append(Finding(Code.CLIPPED, "info", message))
    return tuple(found)


def _central(name: str, held: Mapping[str, Any]) -> Finding:
    norm, noise, count = (held.get(each) for each in ("clipping_norm", "noise_multiplier", "num_sampled_clients"))
    who = (
        "Each client clips its update, and the server adds noise to the average"
        if "ClientSide" in name
        else "The server clips each update after it came, and adds noise to the average"
    )
    seen = "clipped, and without any noise" if "ClientSide" in name else "as the client sent it"
    std = noise * norm / count if norm and noise is not None and count else None
    size = "" if std is None else f", of standard deviation {std:.3g}"
    message = (
        f"{name}: {who}{size}. That protects what the server publishes. The server itself sees each update {seen}, and "
        "this is what is audited here."
    )
    evidence = {"clipping_norm": norm, "noise_multiplier": noise, "num_sampled_clients": count, "std_of_average": std}
    return Finding(Code.DIFFERENTIAL_PRIVACY, "warning", message, evidence)


def _local(held: Mapping[str, Any]) -> Finding:
    norm, sensitivity, epsilon, delta = (
        float(held[each]) for each in ("clipping_norm", "sensitivity", "epsilon", "delta")
    )
    std = sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon if epsilon and 0 < delta < 1.25 else math.inf
    limits = []
    if sensitivity < 2 * norm:
        limits.append(
            f"two clipped updates may differ by {2 * norm:g}, and the sensitivity is stated as {sensitivity:g}"
        )
    if epsilon > 1:
        limits.append("the formula for the noise is proven for an epsilon of at most 1")
    holds = f" That epsilon does not hold as stated: {'; '.join(limits)}." if limits else ""
    message = (
        f"LocalDpMod: each client clips its update to a norm of {norm:g} and adds noise of standard deviation "
        f"{std:.3g} to every number, BatchNorm's statistics among them, for epsilon {epsilon:g} at delta {delta:g} in "
        "each round. "
        f"The server sees no other update: this is what is audited here. Rounds add up.{holds}"
    )
    evidence = {"clipping_norm": norm, "std": std, "epsilon": epsilon, "delta": delta, "sensitivity": sensitivity}
    return Finding(Code.DIFFERENTIAL_PRIVACY, "warning" if limits else "info", message, evidence)


def _summed() -> Finding:
    message = (
        "SecAgg+: clients mask what they send, so that the server sees the sum over its clients, rounded at random to "
        "2^22 levels of values clipped to 8, and no single update. What is audited here is one client's part of the "
        "sum, from before it was masked: nobody else sees it, unless all others work together."
    )
    return Finding(Code.SECURE_AGGREGATION, "warning", message, {"levels": 2**22, "clipping_range": 8.0})


def _name(mod: object) -> str:
    return mod.__name__ if callable(mod) and hasattr(mod, "__name__") else type(mod).__name__


def _held(value: object) -> dict[str, Any]:
    """What a foreign value holds."""
    return vars(value) if hasattr(value, "__dict__") else {}
