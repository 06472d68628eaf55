"""The pipeline, the only place where world, attack and judgement meet.

    scenario -> observation -> attack -> controls -> verdict -> Report

`scenario.Scenario` is all that an audit is; `fl.simulate` is the world, from the private batch to what the server sees.
The line itself is `carried_out`; `audit` and `audit_observation` are its doors, from Python values to a scenario.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Generator, Tensor, nn

from inversefed.arguments import Watchers, check_nulls, check_rehearsals, checked_others, checked_out
from inversefed.assessment import Assessment
from inversefed.attacks import Attack, recipes
from inversefed.attacks.matching_error import completed
from inversefed.attacks.shown import shown
from inversefed.bounded import bounds_of
from inversefed.controls.runs import SHARE, ControlRuns
from inversefed.errors import ConfigError, InputError
from inversefed.evaluation.choice import Choice
from inversefed.evaluation.label_leakage import LabelLeakage, label_leakage
from inversefed.evaluation.membership import Membership
from inversefed.evaluation.power import Rehearsed
from inversefed.evaluation.score import score
from inversefed.evaluation.verdict import with_records
from inversefed.findings import Code
from inversefed.fl.checks import check_pieces
from inversefed.fl.clients import Client, FedSGD
from inversefed.fl.defenses import Defense
from inversefed.fl.foreign import foreign_code
from inversefed.fl.losses import CrossEntropy
from inversefed.fl.network import Loss
from inversefed.fl.targets import class_count
from inversefed.fl.threat import Observation, ThreatModel
from inversefed.inputs import InputSpace
from inversefed.records import are_of, membership
from inversefed.rehearsed import StandIns
from inversefed.report import environment
from inversefed.report.model import Report
from inversefed.scenario import Scenario
from inversefed.types import Batch, Finding, Limit, Step

__all__ = ["audit", "audit_observation"]

LIMIT_SECONDS = 10.0
"""For the limit of an update beside a short attack."""
LIMIT_SHARE = 0.2
"""Of a time budget."""


def carried_out(scenario: Scenario, watch: Watchers, config: Mapping[str, Any] | None = None) -> Report:
    """Attack what the server saw in a scenario whose tensors are at hand, run the controls, and judge."""
    check_nulls(scenario.nulls)
    check_rehearsals(scenario.rehearsals, scenario.nulls)
    held, seed, seconds_in_all = scenario.at_hand, scenario.seed, scenario.time_budget
    observation, truth = scenario.observe().anew(), held.truth
    others = checked_others(observation, held.others, truth)
    asked = _asked(scenario, observation, others)
    share = seconds_in_all if seconds_in_all is None or scenario.nulls == 0 else SHARE * seconds_in_all
    budget = watch.budget(share, scenario.max_iterations)
    stand_ins = StandIns(scenario, observation, others, budget, watch)
    with foreign_code("the audit", watch.told, watch.controlled):
        attack, choice = stand_ins.choice()
        began = time.perf_counter()
        reconstruction = attack(observation, Generator().manual_seed(2 * seed + 1), budget)
        reconstruction = completed(reconstruction, attack, observation)
        seconds = time.perf_counter() - began

        left = None if seconds_in_all is None else seconds_in_all - seconds
        until = None if left is None else time.monotonic() + left / 2
        case = Assessment(observation, truth, scenario.threat, reconstruction, others, until)
        runs = case.trials(attack, budget, scenario.nulls, seed, left, watch.controlled, watch.stopper.stopped)
        rehearsed = stand_ins.rehearsed(attack, choice)
        told = (*_told(choice), *stand_ins.cache.findings)
        return reported(scenario, case, runs, seconds, config, attack, rehearsed, choice, told, asked)


def _asked(scenario: Scenario, observation: Observation, others: Batch | None) -> Membership | None:
    """Whether records that were asked for were in the update; looked at before the attack, which takes longer."""
    held = scenario.at_hand
    out = checked_out(held.candidates, held.candidates_out, others)
    if held.candidates is None or out is None:
        return None
    members = None if held.truth is None else are_of(held.candidates.images, held.truth)
    return membership(observation, held.candidates, out=out, members=members)


def reported(
    scenario: Scenario,
    case: Assessment,
    runs: ControlRuns,
    seconds: float,
    config: Mapping[str, Any] | None,
    attack: Attack | None = None,
    rehearsed: Rehearsed = Rehearsed(),
    choice: Choice | None = None,
    told: tuple[Finding, ...] = (),
    asked: Membership | None = None,
) -> Report:
    """The last part of the line: what an attack and its controls came to, scored and judged."""
    attack = scenario.attack if attack is None else attack
    features, truth, pictures = case.observation.network.features, case.truth, case.pictures(runs)
    facts, findings = scenario.described(case.observation)
    limit = _limit(scenario, case, seconds)
    known, space = None if isinstance(limit, str) else limit, case.observation.network.space
    scores = {} if truth is None else score(case.found, truth, features, space=space)
    network, count = case.observation.network, case.observation.num_examples
    verdict = case.verdict(runs, repr(attack), seconds, facts, rehearsed, known)
    return Report(
        scenario=facts,
        attack=shown(attack),
        reconstruction=case.reconstruction,
        truth=truth,
        inputs=space,
        permutation=case.order,
        scores=scores,
        baselines={}
        if truth is None
        else {name: score(guess, truth, features, space=space) for name, guess in pictures.items()},
        findings=(*findings, *told, *case.reconstruction.findings, *case.findings(runs)),
        seconds=seconds,
        config=dict(config or {}),
        environment=environment.describe(),
        verdict=verdict if verdict is None or asked is None else with_records(verdict, asked),
        limit=known,
        without_limit=limit if isinstance(limit, str) else "",
        agreement=case.agreement(runs),
        reproduces=case.reproduces,
        controls=pictures,
        membership=asked,
        label_leakage=labels_recovered(scenario, case, scores.get("label_accuracy")),
        choice=choice,
        bounds=bounds_of(scenario.client, scenario.defenses, count, network.num_classes, scenario.threat),
    )


def _told(choice: Choice | None) -> tuple[Finding, ...]:
    """What rehearsals say of the attack."""
    if choice is None:
        return ()
    evidence = {"attack": choice.attack, "tried": len(choice.attacks), "stand_ins": choice.stand_ins}
    return (Finding(Code.CHOSEN_BY_REHEARSAL, "info", str(choice), evidence),)


def _limit(scenario: Scenario, case: Assessment, seconds: float) -> Limit | str:
    """The limit of the update, in the time of the attack, or ten seconds for a short one; of a budget a fifth."""
    if scenario.nulls == 0:
        return "no null runs were asked for, so that nothing is judged; inversefed.limit computes it alone"
    budget = scenario.time_budget
    allowed = max(LIMIT_SECONDS, seconds) if budget is None else min(LIMIT_SECONDS, LIMIT_SHARE * budget)
    return case.limit(scenario.defenses, allowed)


def labels_recovered(scenario: Scenario, case: Assessment, right: Tensor | None) -> LabelLeakage | None:
    """How sure it is that labels which nobody granted were recovered; of classes alone, for numbers have no share."""
    if scenario.threat.labels == "known" or right is None or case.truth is None or case.truth.labels.ndim != 1:
        return None
    classes = class_count(case.observation.network)
    public = None if case.others is None else case.others.labels
    majority = 1 / classes
    if public is not None and not public.is_floating_point() and len(public):
        majority = max(majority, float(public.long().bincount().max()) / len(public))
    return label_leakage(int(right.sum()), len(right), majority)


def audit(
    module: nn.Module | Scenario,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    mean: float | Sequence[float] | Tensor | None = None,
    std: float | Sequence[float] | Tensor | None = None,
    client: Client = FedSGD(),
    defenses: Sequence[Defense] = (),
    threat: ThreatModel = ThreatModel(),
    attack: Attack | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    time_budget: float | None = None,
    max_iterations: int | None = None,
    on_step: Callable[[Step], object] | None = None,
    checkpoint: str | Path | None = None,
    resume: str | Path | None = None,
    nulls: int | None = None,
    rehearsals: int | None = None,
    rehearsal_time: float | None = None,
    choose: bool = False,
    rehearsal_cache: str | Path | None = None,
    others: Batch | None = None,
    candidates: Batch | None = None,
    candidates_out: Batch | None = None,
    on_control: Callable[[int, int], object] | None = None,
    config: Mapping[str, Any] | None = None,
    inputs: InputSpace | None = None,
) -> Report:
    """Let a client make an update from private pictures, attack it as the server would, and compare.

    Args:
        module: any classifier, in the mode (train or eval) that the client uses; it is not changed. Or a `Scenario`,
            which holds all that an audit is: then nothing stands beside it but callbacks and checkpoints.
        images: the private pictures, `[n, c, h, w]`, pixel space, [0, 1]; or the examples of another input space.
        labels: their classes, `[n]`, or numbers, `[n]` or `[n, k]`, as the loss takes them; the attack sees them only
            if `threat` says so.
        mean: what the client's input normalization subtracts, one number or one a channel; `None` for 0.
        std: what it divides by; `None` for 1.
        client: how the update is made.
        defenses: what is done to it before it leaves, in order.
        threat: what the server knows beside it.
        attack: how the server attacks; `None` for `recipes.best()`.
        loss: the client's training loss, (outputs, labels) -> scalar; `None` for the mean cross entropy.
        seed: fixes all randomness; the global random state is neither used nor changed.
        time_budget: seconds for attack and null runs together; the best so far counts.
        max_iterations: replaces the attack's own number.
        on_step: told of every iteration; a true answer stops.
        checkpoint: a file that the state of the search is written to, if the attack comes to one: before its first
            step, every 20 seconds and at its end. It holds pictures on their way to the private ones.
        resume: such a file, of the same audit; the search goes on from there and ends with the same bits.
        nulls: how many null runs the verdict rests on; `None` for 19, or at most 1 beside an exact result; 0 for none.
        rehearsals: how many updates of public pictures, those of `others`, are attacked in the same way, to tell how
            often the verdict calls a leak where there is one, its power; `None` for none.
        rehearsal_time: seconds for all of them, beside `time_budget`; `None` for no limit.
        choose: whether the attack's search and the weight of its prior are chosen by how several do on updates of
            public pictures, those of `others`; it takes about as long as a dozen attacks, or two. It is not asked what
            the private update holds.
        rehearsal_cache: a folder that keeps what rehearsals came to, in figures alone: a later audit of the same
            setting, whatever its private pictures, takes them from there. `None` keeps nothing.
        others: public pictures of the same kind, with labels, none of them private: for more controls.
        candidates: records that are asked for, whether they were in the update, with labels, -1 where one is not known;
            the verdict says so where the update shows that some of them were (see `membership`).
        candidates_out: records of the same kind that are known not to be in it, 19 or more; `None` for `others`.
        on_control: told of the control runs (done, of how many); a true answer ends them.
        config: the options of a command line that runs this again, kept in the report as they are.
        inputs: what the examples are, such as `inputs.Columns(..)` for rows of a table; `None` for pictures.

    Raises:
        InputError: pictures or labels that cannot be used, an update that is not finite, a checkpoint of another
            search, or a scenario whose network or pictures are not those that it recorded.
        UnsupportedNetworkError: the module cannot be audited.
        ThreatModelError: the attack needs what the threat model hides.

    >>> import torch
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    >>> report = audit(net, torch.rand(1, 3, 4, 4), torch.tensor([1]), attack=recipes.linear())
    >>> bool(report.scores["peak_signal_noise_ratio"] > 80)
    True
    """
    watch = Watchers(on_step, on_control, checkpoint, resume, rehearsal_cache)
    if isinstance(module, Scenario):
        given = (images, labels, mean, std, attack, loss, time_budget, max_iterations, nulls, others)
        more = (rehearsals, rehearsal_time, choose or None, candidates, candidates_out, inputs)
        if any(each is not None for each in (*given, *more)) or (client, tuple(defenses), threat, seed) != _USUAL:
            raise ConfigError("a scenario holds all settings of its audit; change one by replace(scenario, seed=1)")
        watch.check(module.attack)
        return carried_out(module.loaded(), watch, config)
    attack = recipes.best() if attack is None else attack
    watch.check(attack)
    check_pieces(defenses=defenses)
    scenario = Scenario(
        client=client, defenses=tuple(defenses), threat=threat, loss=CrossEntropy() if loss is None else loss,
        attack=attack, seed=seed, time_budget=time_budget, max_iterations=max_iterations, nulls=nulls,
        rehearsals=rehearsals, rehearsal_time=rehearsal_time, choose=choose,
    )  # fmt: skip
    if images is None or labels is None:
        raise InputError("an audit needs private pictures and their labels beside a module; or give a Scenario")
    asked = (candidates, candidates_out)
    return carried_out(scenario.of(module, images, labels, others, mean, std, *asked, inputs), watch, config)


def audit_observation(
    observation: Observation,
    *,
    truth: Batch | None = None,
    attack: Attack | None = None,
    threat: ThreatModel = ThreatModel(),
    seed: int = 0,
    time_budget: float | None = None,
    max_iterations: int | None = None,
    on_step: Callable[[Step], object] | None = None,
    checkpoint: str | Path | None = None,
    resume: str | Path | None = None,
    nulls: int | None = None,
    rehearsals: int | None = None,
    rehearsal_time: float | None = None,
    choose: bool = False,
    rehearsal_cache: str | Path | None = None,
    others: Batch | None = None,
    candidates: Batch | None = None,
    candidates_out: Batch | None = None,
    on_control: Callable[[int, int], object] | None = None,
    findings: Sequence[Finding] = (),
    client: Client | None = None,
    config: Mapping[str, Any] | None = None,
) -> Report:
    """Attack what a server saw, run the controls, and judge.

    Args:
        observation: the update, with all that the attacker is given.
        truth: the pictures that made it, where its owner has them; they are compared, and never attacked with.
        attack: how the server attacks; `None` for `recipes.best()`.
        threat: what `observation` grants, for the report; and whether pictures are paired within labels.
        seed: fixes all randomness.
        time_budget: seconds for attack and null runs together.
        max_iterations: replaces the attack's own number; no repeat is longer.
        on_step: told of every iteration of the attack; a true answer stops it, and leaves out the null runs.
        checkpoint: as for `audit`.
        resume: as for `audit`.
        nulls: how many null runs; `None` for 19, or at most 1 beside an exact result; 0 for none.
        rehearsals: as for `audit`; stand-ins have no defense, for who sees an update knows of none.
        rehearsal_time: as for `audit`.
        choose: as for `audit`.
        rehearsal_cache: as for `audit`.
        others: public pictures of the same kind, with labels: for the mean picture, for another example's update, and
            to tell how often the true picture is the nearest of several. Those that are a truth are left out.
        candidates: as for `audit`.
        candidates_out: as for `audit`.
        on_control: told of the control runs (done, of how many); a true answer ends them.
        findings: what is known of the update, for the report.
        client: the client as its owner knows it, for what it promises: epsilon, and the bound on any attack; `None` for
            the one that the observation holds, without noise. The attack is not told of it.
        config: the options of a command line that runs this again, for the report.

    Raises:
        InputError: truths that do not fit the observation, or a checkpoint of another search.
        ThreatModelError: the attack needs what the threat model hides.

    >>> import torch
    >>> from inversefed.fl.simulate import observed
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    >>> observation, truth = observed(net, torch.rand(1, 3, 4, 4), torch.tensor([1]))
    >>> audit_observation(observation, truth=truth, attack=recipes.linear()).verdict.leaked
    True
    """
    attack, watch = (
        recipes.best() if attack is None else attack,
        Watchers(on_step, on_control, checkpoint, resume, rehearsal_cache),
    )
    watch.check(attack)
    scenario = Scenario(
        client=observation.client if client is None else client, threat=threat, loss=observation.network.loss,
        attack=attack, seed=seed, time_budget=time_budget, max_iterations=max_iterations, nulls=nulls,
        rehearsals=rehearsals, rehearsal_time=rehearsal_time, choose=choose,
    )  # fmt: skip
    asked = (candidates, candidates_out)
    return carried_out(scenario.received(observation, truth, others, findings, *asked), watch, config)


_USUAL = (FedSGD(), (), ThreatModel(), 0)
"""Client, defenses, threat and seed where nobody gives any."""
