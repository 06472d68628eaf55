"""One point of the frontier: a client, its defenses and its number of examples, attacked twice and trained with.

    leakage = PSNR of the reconstruction - PSNR of the better control (gray, or the picture's own mean color)

Both attacks see the same update; only the adaptive one is told of the defenses. A control is what no gradient would
give, so leakage at or below 0 dB is none that this attack found.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Generator, Tensor, nn

from inversefed.assessment import paired
from inversefed.attacks import SearchAttack
from inversefed.attacks.adaptive import Adaptive
from inversefed.bounded import bounds_of
from inversefed.errors import ConfigError, InputError, InversefedError
from inversefed.evaluation import controls, metrics
from inversefed.fl.clients import Client, FedSGD
from inversefed.fl.defenses.protocols import Defense
from inversefed.fl.network import Loss, freeze
from inversefed.fl.privacy import broken_by, dp_client, privacy_of
from inversefed.fl.simulate import observed
from inversefed.fl.threat import Observation, ThreatModel
from inversefed.frontier.utility import Data, accuracy_of
from inversefed.report.frontier import Row, finite
from inversefed.thresholds import SATURATED_DB
from inversefed.types import Batch, Budget, Reconstruction, Status

__all__ = ["Point", "measure"]

_GUESS = 0.01
"""The chance of a guess before the update, whose bound is a column."""


@dataclass(frozen=True)
class Point:
    """What a client does.

    Args:
        name: what it is called in tables; how it was written.
        client: how it makes its update.
        defenses: what it runs.
        num_images: how many examples it has.
    """

    name: str
    client: Client = FedSGD()
    defenses: tuple[Defense, ...] = ()
    num_images: int = 1

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ConfigError(f"a point needs at least one image, got {self.num_images}")


def measure(
    module: nn.Module,
    images: Tensor,
    labels: Tensor,
    point: Point,
    *,
    attack: SearchAttack,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    threat: ThreatModel = ThreatModel(),
    loss: Loss | None = None,
    seed: int = 0,
    targets: int = 1,
    budget: Budget = Budget(),
    data: Data | str = "no data were given",
    rounds: int = 100,
    on_round: Callable[[int, int], object] | None = None,
) -> Row:
    """Attack a point's updates with both attacks, and train with it.

    Args:
        module: the network.
        images: private pictures, `[n, c, h, w]`, in [0, 1]; each target takes the next `num_images` of them.
        labels: their classes.
        point: what the client does.
        attack: what the server runs: as it is, not told of the defenses, and adapted to them.
        mean: what the input normalization subtracts.
        std: what it divides by.
        threat: what else the server knows.
        loss: what the client minimizes.
        seed: fixes all randomness.
        targets: how many updates are attacked, each of pictures of its own.
        budget: of each attack.
        data: what to train with, or why there is none.
        rounds: of the training.
        on_round: told of each.

    Raises:
        InputError: fewer pictures than targets need.
    """
    needed = targets * point.num_images
    if len(images) < needed:
        raise InputError(
            f"{point.name}: {targets} targets of {point.num_images} images need {needed}; {len(images)} given"
        )
    began = time.perf_counter()
    scores: list[dict[str, float]] = []
    for target in range(targets):
        part = slice(target * point.num_images, (target + 1) * point.num_images)
        observation, truth = observed(
            module,
            images[part],
            labels[part],
            mean=mean,
            std=std,
            client=point.client,
            defenses=point.defenses,
            threat=replace(threat, defenses="known"),
            loss=loss,
            seed=seed + target,
        )
        scores.append(_leakage(observation, truth, threat, attack, seed + target, budget))
    means = {key: finite(sum(each[key] for each in scores) / len(scores)) for key in scores[0]}
    lost = [name for name, value in means.items() if value is None]
    accuracy, note = _utility(module, images, point, mean, std, loss, data, rounds, seed, on_round)
    epsilon, delta, missing = _privacy(point)
    bound, unbounded = _bound(point, threat)
    diverged = f"no number came of the {' and the '.join(lost)} attack" if lost else ""
    note = "; ".join(each for each in (diverged, note, missing, unbounded) if each)
    return Row(
        point.name, **means, accuracy=accuracy, epsilon=epsilon, delta=delta, targets=targets, note=note,
        seconds=time.perf_counter() - began, bound=bound,
    )  # fmt: skip


def _leakage(
    observation: Observation,
    truth: Batch,
    threat: ThreatModel,
    attack: SearchAttack,
    seed: int,
    budget: Budget,
) -> dict[str, float]:
    """Decibels of both attacks and of the better control, each the mean over the pictures."""
    adaptive, blind = Adaptive(attack), replace(observation, defenses=())
    plain = attack(blind, Generator().manual_seed(2 * seed + 1), budget)
    found = uninterrupted(plain)
    if adaptive.told(observation):
        informed = uninterrupted(adaptive.informed(observation, Generator().manual_seed(2 * seed + 1), budget))
        found = adaptive.better(observation, informed, plain)
    scores = {
        name: _decibels(each.images[paired(each, truth, threat)], truth)
        for name, each in {"plain": plain, "adaptive": found}.items()
    }
    return {**scores, "control": max(_decibels(guess, truth) for guess in controls.guesses(truth).values())}


def uninterrupted(found: Reconstruction) -> Reconstruction:
    """The result; an attack keeps what it has on Ctrl-C, but half an attack is no measurement.

    Raises:
        KeyboardInterrupt: it was cut short so.
    """
    if found.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    return found


def _decibels(images: Tensor, truth: Batch) -> float:
    return float(metrics.peak_signal_noise_ratio(images.clamp(0, 1), truth.images).clamp(max=SATURATED_DB).mean())


def _utility(
    module: nn.Module,
    images: Tensor,
    point: Point,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    loss: Loss | None,
    data: Data | str,
    rounds: int,
    seed: int,
    on_round: Callable[[int, int], object] | None,
) -> tuple[float | None, str]:
    """The accuracy, or why there is none."""
    if isinstance(data, str):
        return None, f"utility skipped: {data}"
    network = freeze(module, images.shape[1:], mean=mean, std=std, loss=loss)
    try:
        return accuracy_of(
            network,
            point.client,
            point.defenses,
            data,
            num_images=point.num_images,
            rounds=rounds,
            generator=Generator().manual_seed(seed),
            on_round=on_round,
        ), ""
    except InversefedError as error:
        return None, f"utility skipped: {error}"


def _privacy(point: Point) -> tuple[float | None, float | None, str]:
    """Epsilon and delta of one release, where the client has them."""
    client = dp_client(point.client)
    if client is None or not client.noise_multiplier:
        return None, None, ""
    if broken := broken_by(point.defenses):
        return None, None, f"no epsilon: {broken}"
    steps = point.client.steps(point.num_images)
    try:
        spent = privacy_of(client, point.num_images if steps is None else steps.examples).per_release
    except ConfigError as error:
        return None, None, f"epsilon skipped: {error}"
    return spent.epsilon, spent.delta, ""


def _bound(point: Point, threat: ThreatModel) -> tuple[float | None, str]:
    """The most that a guess of 1 % becomes by any attack on one update, or why nothing bounds it."""
    found = bounds_of(point.client, point.defenses, point.num_images, threat=threat, guesses=(_GUESS,))
    if found is None:
        return None, ""
    return (found.per_release.success or (None,))[0], found.per_release.note
