"""Which bound an update is under: what the client or its defenses promise, put into the bound of `evaluation.bounds`.

DP-SGD hides each example behind the noise of the steps it is in; a clipped update with Gaussian noise hides all of the
update. Without clipping nothing is bounded, whatever the noise. One update is bounded without credit for sampling, for
the server knows who took part; all rounds together with it, as epsilon is.
"""

from collections.abc import Sequence

from inversefed.errors import ConfigError
from inversefed.evaluation.bounds import Bound, Bounds, Mechanism, fano_bound, information, success_bound
from inversefed.fl.clients import Client
from inversefed.fl.defenses.protocols import Defense
from inversefed.fl.privacy import broken_by, clipped_noise, dp_client, noisy_steps
from inversefed.fl.threat_model import ThreatModel
from inversefed.thresholds import GUESSES

__all__ = ["bounds_of"]


def bounds_of(
    client: Client,
    defenses: Sequence[Defense] = (),
    num_examples: int = 1,
    num_classes: int = 0,
    threat: ThreatModel = ThreatModel(),
    guesses: Sequence[float] = GUESSES,
) -> Bounds | None:
    """The bounds that an update is under; nothing where nobody adds noise.

    Args:
        client: how the update is made.
        defenses: what is done to it before it leaves.
        num_examples: how many examples it is made of.
        num_classes: classes that a label may have, for Fano's bound; 0 for none.
        threat: what the server knows beside it.
        guesses: chances of a guess before the update for which the bound is stated, in (0, 1).

    Raises:
        ConfigError: a chance out of its range.

    >>> from inversefed import DPSGD, FedSGD, defenses
    >>> found = bounds_of(DPSGD(noise_multiplier=1.0, max_grad_norm=1.0), guesses=(0.01,))
    >>> [round(each, 3) for each in found.per_release.success]
    [0.092]
    >>> bounds_of(FedSGD(), (defenses.GaussianNoise(0.1),)).per_release.note
    'no bound: GaussianNoise(std=0.1) is added to an update of any length: clip it before'
    """
    chances, private = tuple(guesses), dp_client(client)
    if private is not None and private.noise_multiplier:
        steps = client.steps(num_examples)
        released = noisy_steps(private, num_examples if steps is None else steps.examples)
        one, every = (
            Mechanism(private.noise_multiplier, each.steps, each.sample_rate)
            for each in (released.per_release, released.cumulative)
        )
        broken = broken_by(defenses)
        rounds = private.accounting.rounds
    else:
        noise, broken = clipped_noise(defenses)
        if not noise:
            return Bounds(Bound(None, note=f"no bound: {broken}")) if broken else None
        one = every = Mechanism(noise, secret="all of an update")
        rounds = 1
    if threat.buffers == "sent":
        broken = "the running buffers are sent along without noise"
    if broken:
        return Bounds(Bound(None, note=f"no bound: {broken}"))
    return Bounds(_bound(one, chances, num_classes), None if rounds == 1 else _bound(every, chances, num_classes))


def _bound(mechanism: Mechanism, guesses: tuple[float, ...], num_classes: int) -> Bound:
    guess = 1 / num_classes if num_classes > 1 else None
    labels = None if guess is None else (guess, fano_bound(guess, information(mechanism)))
    try:
        return Bound(mechanism, guesses, success_bound(guesses, mechanism), labels)
    except ConfigError as error:
        return Bound(None, guesses, note=f"no bound: {error}")
