"""The whole line, and the only place where world, attack and judgement meet.

freeze -> client -> defenses -> observe -> attack -> align -> metrics -> Report
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from inversefed.attacks import Attack, recipes
from inversefed.errors import ConfigError, InputError, InversefedError, UnsupportedNetworkError
from inversefed.evaluation import align, controls, environment
from inversefed.evaluation.report import Report
from inversefed.evaluation.score import score
from inversefed.fl.arithmetic import float32_products
from inversefed.fl.batchnorm import sent_buffers
from inversefed.fl.clients import Client, FedSGD
from inversefed.fl.defenses import Context, Defense, data_defenses, network_defenses, update_defenses
from inversefed.fl.losses import CrossEntropy
from inversefed.fl.network import Loss, Network, freeze
from inversefed.fl.settings import describe_observation, describe_setting, setting_findings
from inversefed.fl.threat import Observation, ThreatModel, check_labels, observe
from inversefed.types import Batch, Budget, Finding, Images, Labels, Params, Reconstruction, SoftLabels, Step

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
    config: Mapping[str, Any] | None = None,
) -> Report:
    """Let a client make an update from private pictures, attack it as the server would, and compare.

    Args:
        module: any classifier, in the mode (train or eval) that the client uses; it is not changed.
        images: the private pictures, `[n, c, h, w]`, pixel space, [0, 1].
        labels: their classes, `[n]`; the attack sees them only if `threat` says so.
        mean: what the client's input normalization subtracts, one number or one a channel; `None` for 0.
        std: what it divides by; `None` for 1.
        client: how the update is made.
        defenses: what is done to it before it leaves, in order.
        threat: what the server knows beside it.
        attack: how the server attacks; `None` for `recipes.best()`.
        loss: the client's training loss, (logits, labels) -> scalar; `None` for the mean cross entropy.
        seed: fixes all randomness; the global random state is neither used nor changed.
        time_budget: seconds for the attack; the best so far counts.
        max_iterations: replaces the attack's own number.
        on_step: told of every iteration; a true answer stops.
        checkpoint: a file that the state of the search is written to, if the attack comes to one: before its first
            step, every 20 seconds and at its end. It holds pictures on their way to the private ones.
        resume: such a file, of the same audit; the search goes on from there and ends with the same bits.
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
    kept, taken_up = (None if path is None else Path(path) for path in (checkpoint, resume))
    if taken_up is not None and not taken_up.is_file():
        raise InputError(f"cannot read the checkpoint {taken_up}: there is no such file")
    budget = Budget(time_budget, max_iterations, on_step, kept, taken_up)
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
    network, attacker = observation.network, Generator().manual_seed(2 * seed + 1)
    began = time.perf_counter()
    reconstruction = attack(observation, attacker, budget)
    seconds = time.perf_counter() - began

    order = paired(reconstruction, truth, threat)
    found = Batch(reconstruction.images[order], reconstruction.labels[order])
    return Report(
        scenario=describe_setting(network, client, defenses, threat, truth, seed),
        attack=repr(attack),
        reconstruction=reconstruction,
        truth=truth,
        permutation=order,
        scores=score(found, truth, network.features),
        baselines={name: score(guess, truth, network.features) for name, guess in controls.guesses(truth).items()},
        findings=(*setting_findings(network, defenses, truth, client, threat), *reconstruction.findings),
        seconds=seconds,
        config=dict(config or {}),
        environment=environment.describe(),
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
    findings: Sequence[Finding] = (),
    scenario: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Report:
    """Attack an update that came from outside, and compare with the truth where there is one.

    Args:
        observation: what the server sees, such as `fl.updates.as_observation` makes of a file.
        truth: the private examples, where their owner has them; only the judgement sees them.
        attack: how the server attacks; `None` for `recipes.best()`.
        threat: what the server knows beside the update, for the report.
        seed: fixes the attack's randomness.
        time_budget: seconds for the attack; the best so far counts.
        max_iterations: replaces the attack's own number.
        on_step: told of every iteration; a true answer stops.
        checkpoint: a file that the state of the search is written to.
        resume: such a file, of the same audit.
        findings: what is known of the update already.
        scenario: what the report says was audited, beside what the observation tells.
        config: how to run this audit again, kept in the report as it is.

    Raises:
        InputError: a checkpoint of another search, or a truth that does not fit the observation.
        ThreatModelError: the attack needs what the threat model hides.
    """
    attack = recipes.best() if attack is None else attack
    check_pieces(attack=attack)
    check_threat(threat, seed)
    network = observation.network
    if truth is not None and truth.images.shape != observation.batch_shape:
        raise InputError(
            f"the truth has shape {tuple(truth.images.shape)}, and the update is one of {observation.batch_shape}; "
            "give as many pictures as --num-examples says"
        )
    kept, taken_up = (None if path is None else Path(path) for path in (checkpoint, resume))
    budget = Budget(time_budget, max_iterations, on_step, kept, taken_up)
    began = time.perf_counter()
    reconstruction = attack(observation, Generator().manual_seed(2 * seed + 1), budget)
    seconds = time.perf_counter() - began
    report = Report(
        scenario=describe_observation(observation, threat, seed) | dict(scenario or {}),
        attack=repr(attack),
        reconstruction=reconstruction,
        findings=(*findings, *reconstruction.findings),
        seconds=seconds,
        config=dict(config or {}),
        environment=environment.describe(),
    )
    if truth is None:
        return report
    order = paired(reconstruction, truth, threat)
    found = Batch(reconstruction.images[order], reconstruction.labels[order])
    scores = score(found, truth, network.features)
    baselines = {name: score(guess, truth, network.features) for name, guess in controls.guesses(truth).items()}
    return replace(report, truth=truth, permutation=order, scores=scores, baselines=baselines)


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
    check_threat(threat, seed)
    network = freeze(module, check_images(images), mean=mean, std=std, loss=loss)
    check_labels(labels, images.shape[0], network.num_classes)
    truth = Batch(images.detach().to(network.device, network.dtype), labels.detach().to(network.device).long())
    world = Generator().manual_seed(2 * seed)

    # Far from 0 and the steps that follow it, which are the masks that the server simulates.
    private = network.with_masks(int(torch.randint(2**31, 2**62, (), generator=world)))
    for change in network_defenses(defenses):
        private = change(private)
    images, targets = prepared(private, truth, defenses, world)
    with float32_products(network.device):
        update = computed(client, private, images, targets)
        update = defended(update, private, Batch(images, truth.labels), defenses, world)
        buffers = sent_buffers(client, private, images, targets) if threat.buffers == "sent" else None
    return observe(private, client, update, truth, threat, buffers, defenses), truth


def prepared(
    network: Network, batch: Batch, defenses: Sequence[Defense], generator: Generator
) -> tuple[Images, Labels | SoftLabels]:
    """What the client computes with: its batch after the defenses of the data, in order."""
    images, labels = batch.images, batch.labels
    for defense in data_defenses(defenses):
        if getattr(defense, "mixes_labels", False) and not labels.is_floating_point():
            labels = F.one_hot(labels, network.num_classes).to(images.dtype)
        images, labels = defense(images, labels, generator)
    return images, labels


def computed(client: Client, network: Network, images: Images, labels: Labels | SoftLabels) -> Params:
    """The client's update of what it computes with.

    Raises:
        UnsupportedNetworkError: network, loss and client do not go together.
    """
    try:
        return client(network, images, labels)
    except InversefedError:
        raise
    except Exception as error:  # the network and the loss are foreign code: whatever they raise means the same
        raise UnsupportedNetworkError(f"the client cannot compute its update of this batch: {error}") from error


def defended(
    update: Params, network: Network, batch: Batch, defenses: Sequence[Defense], generator: Generator
) -> Params:
    """Apply those defenses that act on the update, in order."""
    for defense in update_defenses(defenses):
        update = defense(update, Context(network, batch), generator)
    return update


def paired(reconstruction: Reconstruction, truth: Batch, threat: ThreatModel) -> align.Permutation:
    """Which reconstruction belongs to which truth: by pixels, and within a label where labels were granted."""
    if threat.labels != "known":
        return align.align(reconstruction.images, truth.images)
    return align.align(
        reconstruction.images,
        truth.images,
        reconstruction_labels=reconstruction.labels,
        target_labels=truth.labels,
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
