"""The whole line, and the only place where world, attack and judgement meet.

freeze -> client -> defenses -> observe -> attack -> controls -> align -> metrics -> verdict -> Report
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Generator, Tensor, nn

from inversefed.arguments import check_attack, check_nulls, check_taken_up, check_truth, checked_others
from inversefed.assessment import Case
from inversefed.attacks import Attack, recipes
from inversefed.attacks.matching_error import completed
from inversefed.controls.runs import SHARE, Trials
from inversefed.evaluation.score import score
from inversefed.fl.checks import check_threat
from inversefed.fl.clients import Client, FedSGD
from inversefed.fl.defenses import Defense
from inversefed.fl.foreign import Callback, foreign_code
from inversefed.fl.network import Loss
from inversefed.fl.settings import describe_observation, describe_setting, setting_findings
from inversefed.fl.simulate import observed
from inversefed.fl.threat import Observation, ThreatModel
from inversefed.report import environment
from inversefed.report.model import Report
from inversefed.types import Batch, Budget, Finding, Step

__all__ = ["audit", "audit_observation"]


def audit(
    module: nn.Module,
    images: Tensor,
    labels: Tensor,
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
    others: Batch | None = None,
    on_control: Callable[[int, int], object] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Report:
    """Let a client make an update from private pictures, attack it as the server would, and compare.

    Args:
        module: any classifier, in the mode (train or eval) that the client uses; it is not changed.
        images: the private pictures, `[n, c, h, w]`, pixel space, [0, 1].
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
        others: public pictures of the same kind, with labels, none of them private: for more controls.
        on_control: told of the control runs (done, of how many); a true answer ends them.
        config: how to run this audit again, kept in the report as it is.

    Raises:
        InputError: pictures or labels that cannot be used, an update that is not finite, or a checkpoint of another
            search.
        UnsupportedNetworkError: the module cannot be audited.
        ThreatModelError: the attack needs what the threat model hides.

    >>> import torch
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    >>> report = audit(net, torch.rand(1, 3, 4, 4), torch.tensor([1]), attack=recipes.linear())
    >>> bool(report.scores["peak_signal_noise_ratio"] > 80)
    True
    """
    attack = recipes.best() if attack is None else attack
    check_attack(attack)
    check_taken_up(resume)
    observation, truth = observed(
        module,
        images,
        labels,
        mean=mean,
        std=std,
        client=client,
        defenses=defenses,
        threat=threat,
        loss=loss,
        seed=seed,
    )
    network = observation.network
    return audit_observation(
        observation,
        truth=truth,
        attack=attack,
        threat=threat,
        seed=seed,
        time_budget=time_budget,
        max_iterations=max_iterations,
        on_step=on_step,
        checkpoint=checkpoint,
        resume=resume,
        nulls=nulls,
        others=others,
        on_control=on_control,
        findings=setting_findings(network, defenses, truth, client, threat),
        scenario=describe_setting(network, client, defenses, threat, truth, seed),
        config=config,
    )


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
    others: Batch | None = None,
    on_control: Callable[[int, int], object] | None = None,
    findings: Sequence[Finding] = (),
    scenario: Mapping[str, Any] | None = None,
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
        others: public pictures of the same kind, with labels: for the mean picture, for another example's update, and
            to tell how often the true picture is the nearest of several. Those that are a truth are left out.
        on_control: told of the control runs (done, of how many); a true answer ends them.
        findings: what is known of the setting, for the report.
        scenario: what was audited, for the report, beside what the observation tells.
        config: how to run this again, for the report.

    Raises:
        InputError: truths that do not fit the observation, or a checkpoint of another search.
        ThreatModelError: the attack needs what the threat model hides.

    >>> import torch
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    >>> from inversefed.fl.simulate import observed
    >>> observation, truth = observed(net, torch.rand(1, 3, 4, 4), torch.tensor([1]))
    >>> audit_observation(observation, truth=truth, attack=recipes.linear()).verdict.leaked
    True
    """
    attack = recipes.best() if attack is None else attack
    check_attack(attack)
    check_threat(threat, seed)
    check_taken_up(resume)
    check_nulls(nulls)
    check_truth(observation, truth)
    others = checked_others(observation, others, truth)
    kept, taken_up = (None if path is None else Path(path) for path in (checkpoint, resume))
    told, controlled = (None if each is None else Callback(each) for each in (on_step, on_control))
    stopper = Stopper(told)
    watching = None if on_step is None else stopper
    share = time_budget if time_budget is None or nulls == 0 else SHARE * time_budget
    budget = Budget(share, max_iterations, watching, kept, taken_up)
    with foreign_code("the audit", told, controlled):
        began = time.perf_counter()
        reconstruction = attack(observation, Generator().manual_seed(2 * seed + 1), budget)
        reconstruction = completed(reconstruction, attack, observation)
        seconds = time.perf_counter() - began

        case = Case(observation, truth, threat, reconstruction, others)
        left = None if time_budget is None else time_budget - seconds
        runs = case.trials(attack, budget, nulls, seed, left, controlled, stopper.stopped)
        described = describe_observation(observation, threat, seed) | dict(scenario or {})
        return reported(case, runs, repr(attack), seconds, described, findings, config)


def reported(
    case: Case,
    runs: Trials,
    attack: str,
    seconds: float,
    scenario: Mapping[str, Any],
    findings: Sequence[Finding],
    config: Mapping[str, Any] | None,
) -> Report:
    """The last part of the line: what an attack and its controls came to, scored and judged."""
    features, truth, pictures = case.observation.network.features, case.truth, case.pictures(runs)
    return Report(
        scenario=scenario,
        attack=attack,
        reconstruction=case.reconstruction,
        truth=truth,
        permutation=case.order,
        scores={} if truth is None else score(case.found, truth, features),
        baselines={} if truth is None else {name: score(guess, truth, features) for name, guess in pictures.items()},
        findings=(*findings, *case.reconstruction.findings, *case.findings(runs)),
        seconds=seconds,
        config=dict(config or {}),
        environment=environment.describe(),
        verdict=case.verdict(runs, attack, seconds, scenario),
        agreement=case.agreement(runs),
        reproduces=case.reproduces,
        controls=pictures,
    )


@dataclass(eq=False)
class Stopper:
    """Passes steps on, and remembers whether its watcher asked for the end."""

    on_step: Callback[[Step], object] | None
    stopped: bool = False

    def __call__(self, step: Step) -> bool:
        """Whether to stop."""
        self.stopped = bool(self.on_step and self.on_step(step)) or self.stopped
        return self.stopped
