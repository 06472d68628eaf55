"""What a plan will take, before it is begun: one audit of each kind is begun, and its rate and memory are looked at.

    seconds = planned seconds of the attack x (1 + share of the null runs)

Audits of one kind differ only in target and seed. The rate is that of a machine with nothing else to do; an exact
method is run to its end, since it has no rate. A point of the frontier takes its attack twice for each update, as it is
and adapted; its short training is not counted.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from inversefed.attacks.shown import shown
from inversefed.errors import InversefedError
from inversefed.experiments.plan import Plan
from inversefed.experiments.planning import predicted_bytes
from inversefed.pipeline import audit
from inversefed.scenario import Scenario
from inversefed.specs.short import short
from inversefed.types import Step

__all__ = ["Kind", "estimate"]

_LOOK = 2.0
"""Seconds of a search whose rate is taken."""
_NULLS = 19
"""Null runs of a verdict, where a plan does not say, each about as long as the attack at most."""


@dataclass(frozen=True)
class Kind:
    """Audits that differ only in target and seed.

    Args:
        name: network, client, defenses and attack.
        count: how many.
        seconds: of each, at the rate of the first seconds; `None` where the first of them failed.
        bytes: memory of a step of its search; 0 where shapes alone do not tell.
    """

    name: str
    count: int
    seconds: float | None
    bytes: int


def estimate(plan: Plan, tell: Callable[[int, int, str], None] = lambda *_: None) -> tuple[Kind, ...]:
    """Predict time and memory of each kind of audit of a plan.

    Networks that the plan trains are looked at untrained: an audit of them takes as long.

    Args:
        plan: which audits.
        tell: told after each kind (done, of how many).
    """
    untrained = replace(
        plan,
        models=tuple(replace(each, train=None, label=each.network) for each in plan.models),
    )
    kinds: dict[tuple[str, int], list[Scenario]] = {}
    for (scenario, times, _), (_, _, model) in zip(_attacked(untrained), _attacked(plan), strict=True):
        assert scenario.sources is not None
        many = scenario.sources.num_images if not scenario.sources.images else len(scenario.sources.images)
        pieces = [*map(short, (scenario.client, *scenario.defenses)), shown(scenario.attack)]
        name = ", ".join([model, "1 picture" if many == 1 else f"{many} pictures", *pieces])
        kinds.setdefault((name, times), []).append(scenario)
    found = []
    for done, ((name, times), members) in enumerate(kinds.items()):
        try:
            loaded = members[0].loaded()
            found.append(Kind(name, len(members), times * _seconds(loaded), predicted_bytes(loaded)))
        except InversefedError:
            found.append(Kind(name, len(members), None, 0))
        tell(done + 1, len(kinds), "kinds of audit")
    return tuple(found)


def _attacked(plan: Plan) -> Iterator[tuple[Scenario, int, str]]:
    """Every audit, or an audit of each point with how many attacks as long a point takes; and its network's name."""
    yield from ((spec.scenario(), 2 * spec.targets, model) for spec, model in plan.specs())
    if not plan.points:
        yield from ((cell.scenario, 1, cell.model) for cell in plan.cells())


def _seconds(scenario: Scenario) -> float:
    began, planned = time.perf_counter(), math.nan

    def look(step: Step) -> bool:
        nonlocal planned
        planned = step.seconds + step.remaining
        return step.seconds > _LOOK

    audit(replace(scenario, nulls=0, time_budget=None), on_step=look)
    took = time.perf_counter() - began
    attack = max(took, planned) if math.isfinite(planned) else took
    nulls = _NULLS if scenario.nulls is None else scenario.nulls
    whole = attack * (1 + (nulls + 1 if nulls else 0))
    return whole if scenario.time_budget is None else min(whole, scenario.time_budget)
