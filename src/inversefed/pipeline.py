"""The whole line, and the only place where world, attack and judgement meet.

freeze -> client -> defenses -> observe -> attack -> controls -> align -> metrics -> verdict -> Report
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from inversefed.assessment import Case
from inversefed.attacks import Attack, recipes
from inversefed.controls.runs import SHARE, Trials
from inversefed.errors import ConfigError, InputError
from inversefed.evaluation.identification import unlike
from inversefed.evaluation.score import score
from inversefed.fl.batchnorm import sent_buffers
from inversefed.fl.clients import Client, FedSGD
from inversefed.fl.clients.client import check_client
from inversefed.fl.defenses import Context, Defense, data_defenses, network_defenses, update_defenses
from inversefed.fl.foreign import Callback, foreign_code
from inversefed.fl.losses import CrossEntropy
from inversefed.fl.network import Loss, Network, freeze
from inversefed.fl.settings import describe_observation, describe_setting, setting_findings
from inversefed.fl.targets import as_rows, as_targets, check_labels
from inversefed.fl.threat import Observation, ThreatModel, observe
from inversefed.numerics import float32_products
from inversefed.report import environment
from inversefed.report.model import Report
from inversefed.types import Batch, Budget, Finding, Images, Labels, Params, SoftLabels, Step

__all__ = ["audit", "audit_observation", "observed"]


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
    check_pieces(attack=attack)
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
    >>> observation, truth = observed(net, torch.rand(1, 3, 4, 4), torch.tensor([1]))
    >>> audit_observation(observation, truth=truth, attack=recipes.linear()).verdict.leaked
    True
    """
    attack = recipes.best() if attack is None else attack
    check_pieces(attack=attack)
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
        controls=pictures,
    )


def observed(
    module: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    mean: float | Sequence[float] | Tensor | None = None,
    std: float | Sequence[float] | Tensor | None = None,
    client: Client = FedSGD(),
    defenses: Sequence[Defense] = (),
    threat: ThreatModel = ThreatModel(),
    loss: Loss | None = None,
    seed: int = 0,
) -> tuple[Observation, Batch]:
    """The first half of the line: what the server sees, and the truth that it does not see.

    Arguments and errors are those of `audit`.
    """
    check_pieces(client=client, loss=CrossEntropy() if loss is None else loss, defenses=defenses)
    check_client(client)
    check_threat(threat, seed)
    network = freeze(module, check_images(images), mean=mean, std=std, loss=loss)
    check_labels(labels, images.shape[0], network)
    truth = Batch(images.detach().to(network.device, network.dtype), as_targets(network, labels))
    world = Generator().manual_seed(2 * seed)

    # Far from 0 and the steps that follow it, which are the masks that the server simulates.
    private = network.with_masks(int(torch.randint(2**31, 2**62, (), generator=world)))
    for change in network_defenses(defenses):
        private = change(private)
    images, targets = prepared(private, truth, defenses, world)
    # A module may keep what it sees; the server's copy of it never sees the private pictures.
    own = replace(private, module=copy.deepcopy(private.module))
    with float32_products(network.device):
        update = computed(client, own, images, targets)
        update = defended(update, own, Batch(images, truth.labels), defenses, world)
        buffers = sent_buffers(client, own, images, targets) if threat.buffers == "sent" else None
    return observe(private, client, update, truth, threat, buffers, defenses), truth


def prepared(
    network: Network, batch: Batch, defenses: Sequence[Defense], generator: Generator
) -> tuple[Images, Labels | SoftLabels]:
    """What the client computes with: its batch after the defenses of the data, in order."""
    images, labels = batch.images, batch.labels
    for defense in data_defenses(defenses):
        if getattr(defense, "mixes_labels", False) and not labels.is_floating_point():
            labels = as_targets(network, as_rows(network, labels))
        images, labels = defense(images, labels, generator)
    return images, labels


def computed(client: Client, network: Network, images: Images, labels: Labels | SoftLabels) -> Params:
    """The client's update of what it computes with.

    Raises:
        UnsupportedNetworkError: network, loss and client do not go together.
    """
    with foreign_code("the client's update of this batch"):
        return client(network, images, labels)


def defended(
    update: Params, network: Network, batch: Batch, defenses: Sequence[Defense], generator: Generator
) -> Params:
    """Apply those defenses that act on the update, in order."""
    for defense in update_defenses(defenses):
        update = defense(update, Context(network, batch), generator)
    return update


def checked_others(observation: Observation, others: Batch | None, truth: Batch | None) -> Batch | None:
    """Other pictures without those that are private ones: a control that knows the truth would hide any leak.

    Raises:
        InputError: none, another shape, or none but truths.
    """
    if others is None:
        return None
    if check_images(others.images) != tuple(observation.network.image_shape):
        expected, found = tuple(observation.network.image_shape), tuple(others.images.shape)
        raise InputError(f"others must be pictures of the network's shape {expected}; got {found}")
    if truth is None:
        return others
    public = unlike(others.images, truth.images)
    return Batch(others.images[public], others.labels[public.to(others.labels.device)])


@dataclass(eq=False)
class Stopper:
    """Passes steps on, and remembers whether its watcher asked for the end."""

    on_step: Callback[[Step], object] | None
    stopped: bool = False

    def __call__(self, step: Step) -> bool:
        """Whether to stop."""
        self.stopped = bool(self.on_step and self.on_step(step)) or self.stopped
        return self.stopped


def check_taken_up(resume: str | Path | None) -> None:
    """Refuse a checkpoint that is not there, before any work.

    Raises:
        InputError: there is no such file.
    """
    if resume is not None and not Path(resume).is_file():
        raise InputError(f"cannot read the checkpoint {resume}: there is no such file")


def check_nulls(nulls: object) -> None:
    """Refuse what is no number of null runs.

    Raises:
        ConfigError: it is none.
    """
    if nulls is not None and (type(nulls) is not int or nulls < 0):
        raise ConfigError(
            f"nulls is a number of null runs from 0 (19 bound false alarms by 5 %), or None; got {nulls!r}"
        )


def check_truth(observation: Observation, truth: Batch | None) -> None:
    """Refuse truths that are not those of the observation.

    Raises:
        InputError: another number of pictures, or another shape.
    """
    if truth is None:
        return
    check_images(truth.images)
    if tuple(truth.images.shape) != observation.batch_shape:
        raise InputError(
            f"the truth must be all pictures behind the update, {observation.batch_shape}; "
            f"got {tuple(truth.images.shape)}"
        )


def check_threat(threat: object, seed: object) -> None:
    """Refuse what is no threat model or no seed.

    Raises:
        ConfigError: either is of another kind.
    """
    if not isinstance(threat, ThreatModel) or type(seed) is not int or not 0 <= seed < 2**62:
        raise ConfigError(f"threat must be a ThreatModel and seed an integer from 0; got {threat!r} and {seed!r}")


def check_pieces(**pieces: object) -> None:
    """Refuse names, classes and functions that were not called where values are expected.

    Raises:
        ConfigError: a piece that cannot be used as it is.
    """
    defenses = pieces.pop("defenses", ())
    if not isinstance(defenses, tuple | list):
        raise ConfigError(f"defenses must be a tuple of values such as (defenses.Clip(1.0),); got {defenses!r}")
    for name, piece in [*pieces.items(), *(("defenses", defense) for defense in defenses)]:
        recipe = getattr(recipes, getattr(piece, "__name__", ""), None)
        if not callable(piece) or isinstance(piece, type) or recipe is piece:
            raise ConfigError(f"{name} must be a value such as recipes.geiping() or FedSGD(), called; got {piece!r}")


def check_images(images: Tensor) -> tuple[int, int, int]:
    """Refuse anything but a batch of pictures in pixel space, and return the shape of one.

    Raises:
        InputError: wrong rank or type, no picture, NaN, or pixels outside [0, 1].
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        what = f"shape {tuple(images.shape)} of {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError(
            f"only images are audited for now: a floating-point tensor [n, c, h, w] in [0, 1] is expected, got {what}"
        )
    if images.shape[0] == 0:
        raise InputError("an audit needs at least one image, got none")
    low, high = images.detach().aminmax()
    if not bool((low >= 0) & (high <= 1)):
        raise InputError(
            f"pixels must lie in [0, 1] (pixel space, not normalized; give mean= and std= instead); got "
            f"{float(low):.3g} to {float(high):.3g}"
        )
    channels, height, width = images.shape[1:]
    return channels, height, width
