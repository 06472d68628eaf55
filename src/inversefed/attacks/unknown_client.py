"""What the update itself tells of a client whose settings nobody stated: its steps, their rate, and its optimizer.

    one step, one example:   -d_b = lr (p - e_y),   p = softmax(W d_W^T d_b / |d_b|^2 + b)       for all classes at once
    any picture x^:          min over T, optimizer and lr of   |client(x^; T, lr) - d|^2 / |d|^2

The first needs no picture, and tells the rate of one step. The second compares readings by what they make of a picture
that was found under an earlier one, or without any (`Surrogate`). BatchNorm counts its batches: where its buffers came
back, they tell the number of steps.

To first order in the rate, T steps of rate lr, with momentum or not, are one of their summed rate. So what cannot be
told apart changes little of what is recovered, and readings of fewer steps come first.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch

from inversefed.attacks.head.gradient import read_head
from inversefed.errors import InversefedError, ThreatModelError, UnsupportedNetworkError
from inversefed.findings import Code
from inversefed.fl.clients import FedAvg
from inversefed.fl.clients.local_optimizers import LocalAdam, LocalSGD
from inversefed.fl.clients.views import inner_client, taken_for
from inversefed.fl.targets import made_up_targets
from inversefed.fl.threat import Observation
from inversefed.networks.natural_noise import natural_noise
from inversefed.numerics import float32_products
from inversefed.thresholds import SOLVED
from inversefed.types import Finding, Inputs, Reconstruction, Targets

__all__ = ["Reading", "attacked", "counted_steps", "of_one_step", "readings"]

Attacked: TypeAlias = Callable[[Observation, float], Reconstruction | None]
"""(the update of a client as it was read, share of the time that is left) -> what an attack came to; `None` where it is
not to go on."""

STEPS = (1, 2, 4, 8, 16)
"""Numbers of local steps that are tried where nothing counts them, until more of them fit worse."""
_COARSE, _FINE = 5, 10
"""Rates that are looked at for each reading, and for the likeliest."""
_FARTHEST = 20.0
"""Logarithm of a rate, up or down, beyond which none is looked at."""
_START = 1e-3
"""Summed rate that is tried first, so small that it makes steps nearly proportional to it."""
_WORSE = 30.0
"""How much worse than the best so far more steps must fit for still more of them not to be tried."""
POOR = 0.1
"""Matching error of the likeliest reading above which a picture is too far off to tell one from another."""
_FIRST = 0.4
"""Of the time, what is attacked before the settings are read from what was found."""
_ROUGH = 1e-3
"""Matching error from which on a search without any setting is tried too."""
_MORE = 2
"""Readings that are attacked, at most, beside that of one step."""
_SAME_RATE = 0.05
"""Logarithm of two rates whose attacks are taken to come to the same."""
_CLEARLY, _HALF = 0.1, 0.5
"""Share of the matching error before, below which the picture of a search without settings, and of more steps, counts:
a picture that explains a little more is as often farther from the truth."""
_AS_WELL = 2.0
"""How many times the matching error of the likeliest reading others may have to be named beside it."""
_FEWER = 0.8
"""Share of the matching error of fewer steps that more steps must come below to be preferred."""


@dataclass(frozen=True, eq=False)
class Reading:
    """Settings that a client may have had.

    Args:
        observation: the update, of a client with these settings.
        error: the matching error of the picture that they were fitted to; infinite where they follow without one.
    """

    observation: Observation = field(repr=False)
    error: float

    @property
    def client(self) -> FedAvg:
        """The settings."""
        inner = inner_client(self.observation.client)
        assert isinstance(inner, FedAvg)
        return inner

    def near(self, other: "Reading") -> bool:
        """Whether an attack on the other one was as good as on this."""
        ours, theirs = self.client, other.client
        return replace(ours, lr=1.0) == replace(theirs, lr=1.0) and abs(math.log(ours.lr / theirs.lr)) < _SAME_RATE

    def __str__(self) -> str:
        client, kind = self.client, type(self.client.optimizer).__name__.removeprefix("Local")
        steps = f"{client.local_steps} step{'s' if client.local_steps > 1 else ''} of {kind}"
        size = f" in batches of {client.batch_size}" if client.batch_size else ""
        return f"{steps}{size} with learning rate {client.lr:.3g}"


def attacked(observation: Observation, attack: Attacked, stop: Callable[[], bool] = lambda: False) -> Reconstruction:
    """Attack an update whose client's settings nobody stated: as of one step, and as of what that picture tells.

    What matches the update best under the reading that fits it best is the result.

    Args:
        observation: the update.
        attack: what is run on each reading.
        stop: whether the time for readings is over.

    Raises:
        InversefedError: as the attack raises.
    """
    one = of_one_step(observation)
    found = attack(one.observation, _FIRST)
    assert found is not None
    fitting: tuple[Reading, ...] = (one,)
    best = _read_as(found, one)
    if (best.matching_error or 0.0) >= SOLVED:
        with suppress(InversefedError):
            best, fitting = _read_anew(observation, best, one, attack, stop)
    return _told(best, fitting)


def _read_anew(
    observation: Observation, found: Reconstruction, one: Reading, attack: Attacked, stop: Callable[[], bool]
) -> tuple[Reconstruction, tuple[Reading, ...]]:
    """Read the settings from what was found as one step, and attack as the likeliest of them, and without any."""
    fitting = readings(observation, found.images, found.labels, stop) or (one,)
    best = _read_as(found, fitting[0])
    # A picture that was found under one reading fits that one best, so the next likeliest are attacked too.
    for each in [each for each in fitting if each.error < POOR and not each.near(one)][:_MORE]:
        if (best.matching_error or 0.0) >= SOLVED and (again := attack(each.observation, _FIRST)) is not None:
            near = readings(observation, again.images, again.labels, stop) or (each,)
            if near[0].error < _HALF * fitting[0].error:
                best, fitting = _read_as(again, near[0]), near
    if (best.matching_error or 0.0) >= _ROUGH and (again := attack(observation, _FIRST)) is not None:
        other = readings(observation, again.images, again.labels, stop)
        if other and other[0].error < _CLEARLY * fitting[0].error:
            best, fitting = _read_as(again, other[0]), other
    return best, fitting


def counted_steps(observation: Observation) -> int | None:
    """The local steps that BatchNorm counted, one for each batch it saw in train mode; `None` where it tells none."""
    if observation.buffers is None:
        return None
    counted = {
        int(observation.buffers[name]) - int(own)
        for name, own in observation.network.module.named_buffers()
        if name.rpartition(".")[2] == "num_batches_tracked" and name in observation.buffers
    }
    return next(iter(counted)) if len(counted) == 1 and min(counted) > 0 else None


def of_one_step(observation: Observation) -> Reading:
    """The reading as one plain step, the most favorable to an attacker, with its rate by the head or by stand-ins.

    Of one example the rate follows from the head's gradient. Of several, classes that are not in the batch tell it,

        -d_b = lr (p - n_c / n)   =>   lr = max_c -d_b_c / p_c   where some n_c = 0,

    as far as the examples have about the same p; near it, the rate whose n_c are nearest to whole numbers is taken.
    """
    unit = _taken_for(observation, FedAvg(1, 1.0))
    try:
        head = read_head(unit)
    except (ThreatModelError, UnsupportedNetworkError):
        head = None
    raw = None if head is None else head.bias_gradient
    if head is None or raw is None or len(raw) < 3 or not bool(raw.any()):
        return Reading(_taken_for(observation, FedAvg(1, _rate_of_stand_ins(unit))), math.inf)
    errors = head.softmax(raw @ head.weight_gradient / raw.square().sum()) - head.pull  # a row for each label
    if observation.num_examples == 1:
        rates = (errors @ raw / errors.square().sum(dim=1)).clamp(min=1e-12)
        left = (raw - rates[:, None] * errors).norm(dim=1) / raw.norm()
        best = int(left.argmin())
        return Reading(_taken_for(observation, FedAvg(1, float(rates[best]))), math.inf)
    shares = (errors + head.pull).mean(dim=0)
    near = float((raw / shares).max()) * torch.logspace(-0.3, 0.3, 121, dtype=torch.float64)
    counts = head.total * (shares - raw / near[:, None])
    off = (counts - counts.round().clamp(min=0)).square().sum(dim=1)
    return Reading(_taken_for(observation, FedAvg(1, float(near[off.argmin()]))), math.inf)


def _rate_of_stand_ins(unit: Observation) -> float:
    """The rate at which the gradient of natural noise is as long as the update."""
    network, count = unit.network, unit.num_examples
    images, labels = natural_noise(network, count), made_up_targets(network, count)
    ours, theirs = unit.client.as_gradient(network, unit.client(network, images, labels), count), unit.gradient
    first, second = (
        math.sqrt(sum(float(each.double().square().sum()) for each in part.values())) for part in (theirs, ours)
    )
    return first / second if first and second else 1.0


def readings(
    observation: Observation, images: Inputs, labels: Targets, stop: Callable[[], bool] = lambda: False
) -> tuple[Reading, ...]:
    """Settings with which a picture makes about the update, the likeliest first.

    Args:
        observation: the update of a client whose settings are not known.
        images: pictures that may be near the private ones, `[n, c, h, w]`.
        labels: theirs.
        stop: asked before each number of steps; the first is always tried.
    """
    counted, tried = counted_steps(observation), list[Reading]()
    for optimizer in (LocalSGD(), LocalAdam()):
        least = min((each.error for each in tried), default=math.inf)
        for steps in (STEPS if counted is None else (counted,)) if least > POOR else ():
            plain = FedAvg(steps, _START / steps, optimizer=optimizer)
            sizes = _sizes(observation.num_examples, steps) if not (tried and stop()) else ()
            found = [
                each for size in sizes for each in _fitted(observation, replace(plain, batch_size=size), images, labels)
            ]
            tried, own = [*tried, *found], min((each.error for each in found), default=math.inf)
            if own > _WORSE * least:
                break
            least = min(least, own)
    tried.sort(key=lambda each: each.error * _FEWER ** -math.log2(each.client.local_steps))
    best = _fitted(observation, tried[0].client, images, labels, _FINE) if tried and not stop() else []
    return (*(best or tried[:1]), *tried[1:])


def _read_as(found: Reconstruction, reading: Reading) -> Reconstruction:
    """A result of a client with the settings that were read."""
    error = min(reading.error, math.inf if found.matching_error is None else found.matching_error)
    return replace(found, client=reading.observation.client, matching_error=error)


def _told(found: Reconstruction, fitting: tuple[Reading, ...]) -> Reconstruction:
    """A result with what is said of its reading, the first, and of others that fit nearly as well."""
    best, *others = fitting
    also = [str(each) for each in others if each.error < _AS_WELL * best.error]
    message = (
        f"Nobody said how the client trained. Read from its update: {best}. "
        + (f"Nearly as well fit: {'; '.join(also)}. " if also else "")
        + "Momentum, and a larger rate without it, make about the same update, and change little of what is recovered. "
        "What is known, give: with the true settings more may be recovered."
    )
    evidence = {"readings": [{"client": repr(each.client), "matching_error": each.error} for each in fitting]}
    finding = Finding(Code.CLIENT_READ, "info", message, evidence)
    return replace(found, findings=(*found.findings, finding))


def _sizes(num_examples: int, steps: int) -> tuple[int, ...]:
    """Batch sizes of steps over so many examples: all of them, or one pass over them in parts."""
    parts = math.ceil(num_examples / steps)
    return (0,) if parts in (num_examples, 0) or parts * (steps - 1) >= num_examples else (0, parts)


def _fitted(
    observation: Observation, client: FedAvg, images: Inputs, labels: Targets, looks: int = _COARSE
) -> list[Reading]:
    """The reading of this client with the rate that fits best; none where none makes a finite update.

    The change u that a rate makes is nearly proportional to it. So `f = log <u, d> / <u, u>`, d the real change, is
    about what the rate's logarithm lacks, and the secant method finds where f is zero.
    """
    least, best, before = math.inf, None, None
    for _ in range(looks):
        seen = _taken_for(observation, client)
        with torch.no_grad(), float32_products(seen.network.device):
            sent = seen.client(seen.network, images, labels)
            u, d = (seen.client.as_gradient(seen.network, each, len(images)) for each in (sent, observation.update))
        along = sum(float((u[name] * d[name]).double().sum()) for name in u)
        length, whole = (sum(float(each.double().square().sum()) for each in part.values()) for part in (u, d))
        error = (length - 2 * along + whole) / whole if whole else math.inf
        if error < least:
            least, best = error, seen
        if not (length > 0 and 1e-12 < along / length < 1e12):
            break
        place, f = math.log(client.lr), math.log(along / length)
        slope = -1.0 if before is None or f == before[1] else (f - before[1]) / (place - before[0])
        before, place = (place, f), place - max(-3.0, min(3.0, f / min(slope, -0.2))) if before else place + f
        if abs(place - before[0]) < 1e-9 or not abs(place) < _FARTHEST:
            break
        client = replace(client, lr=math.exp(place))
    return [] if best is None else [Reading(best, max(least, 0.0))]


def _taken_for(observation: Observation, client: FedAvg) -> Observation:
    sends = observation.client.sends
    assert sends != "gradient"
    return replace(observation, client=taken_for(observation.client, replace(client, sends=sends)))
