"""Rules by which an attack is chosen: what must hold of an observation, the attack for it, and why.

A condition is a value; it is asked of `Facts`, which reads network, client and update once, and answers in words that
the reason of its rule may quote. Nothing here sees a truth, a network's name or a measured time.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, TypeVar

import torch
from torch import Generator, nn

from inversefed.attacks import Attack, ExactMethod
from inversefed.attacks.head.head_inputs import recover_head_inputs
from inversefed.attacks.identifiability.layer_counts import independent_numbers
from inversefed.attacks.search.inversion import GradientInversion
from inversefed.attacks.simulations import Simulation
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.fl.dropout import dropout_layers
from inversefed.fl.losses import is_plain_cross_entropy
from inversefed.fl.threat import Observation
from inversefed.inputs import Columns, Tokens, pictured
from inversefed.networks.architecture import Architecture, architecture
from inversefed.networks.layer_chain import Concatenation, chain, flat

__all__ = [
    "Applies",
    "AtMost",
    "AveragesPlaces",
    "ClientUnknown",
    "ContrastHidden",
    "FewNumbers",
    "HasKinks",
    "KeepsPlaces",
    "KeepsPlacesNormalized",
    "NoPictures",
    "OneExample",
    "OrderUnknown",
    "Polish",
    "Rule",
    "Sentences",
    "SeveralExamples",
    "Smooth",
    "StepsUnknown",
    "Table",
]

_PLACED = 16
"""Most examples whose places are searched: each step of the simulated client sees all of them."""
_MATTERS = 0.75
"""What the order must change of an update's norm, as momentum makes it do: below, more is lost by searching the order
than by a wrong one."""


@dataclass(frozen=True, eq=False)
class Facts:
    """What conditions ask of an observation, each read once.

    Args:
        observation: what the server sees.
        stop: asked while equations are solved, which may take long.
    """

    observation: Observation
    stop: Callable[[], bool] = lambda: False

    @cached_property
    def architecture(self) -> Architecture:
        """What the network's layers hide."""
        return architecture(self.observation.network)

    @cached_property
    def max_pools(self) -> tuple[str, ...]:
        """Names of the max poolings that an exact method has to see through: none where other ways hold all of them."""
        named = self.architecture.max_pools
        with suppress(UnsupportedNetworkError):
            layers = chain(self.observation.network) if named else ()
            own = flat(tuple(layer for layer in layers if not isinstance(layer.module, Concatenation)))
            return named if any(isinstance(layer.module, nn.MaxPool2d) for layer in own) else ()
        return named

    @property
    def sentences(self) -> bool:
        """Whether the network is fed token ids."""
        return isinstance(self.observation.network.space, Tokens)

    @cached_property
    def share_known(self) -> float:
        """Independent numbers of the update, at most, over the values of its pictures."""
        return independent_numbers(self.observation) / math.prod(self.observation.batch_shape)


Condition = Callable[[Facts], str | None]
"""What it found, in words; `None` where it does not hold."""

A_co = TypeVar("A_co", bound=Attack, covariant=True)


@dataclass(frozen=True)
class Polish:
    """Searches that go on from what was found, each from where the one before it came.

    Args:
        searches: in order.
        share: of the matching error before, what they must not leave to count.
        operations: of a forward pass of all examples, up to which they are worth their time; `None` for any.
    """

    searches: tuple[GradientInversion, ...]
    share: float = 1.0
    operations: float | None = None

    def suits(self, observation: Observation) -> bool:
        """Whether they are worth their time here."""
        if self.operations is None:
            return True
        return observation.network.operations() * observation.num_examples < self.operations


@dataclass(frozen=True)
class Rule(Generic[A_co]):
    """An attack, and when it is the one.

    Args:
        when: conditions, all of which must hold.
        attack: what is run then.
        why: the reason; `{}` stands for what a condition found, in the order of the conditions.
        masks: how the search simulates a client whose dropout is on; `None` for as it is.
        polish: what goes on from what the search found.
        bounded: of a search: it keeps to the range of pixels, and so is a first picture under max pooling as well.
        steady: of a search: its prior says what the update does not, so that it is given up for pictures of one color
            only where these explain more.
        also: searches that are run from their own start besides: what matches best counts.
        late: of an exact method: it is left out where something was found that is nearer than any search comes.
    """

    when: tuple[Condition, ...]
    attack: A_co
    why: str
    masks: Simulation | None = None
    polish: Polish | None = None
    bounded: bool = False
    steady: bool = False
    also: tuple[GradientInversion, ...] = ()
    late: bool = False

    def holds(self, facts: Facts) -> str | None:
        """The reason with what was found; `None` where a condition does not hold, and those after it are not asked.

        Of sentences only those rules hold that name them: ids are no numbers.
        """
        if facts.sentences and not any(isinstance(condition, Sentences) for condition in self.when):
            return None
        found = []
        for condition in self.when:
            if (told := condition(facts)) is None:
                return None
            found.append(told)
        return self.why.format(*found)


@dataclass(frozen=True)
class OneExample:
    """One example."""

    def __call__(self, facts: Facts) -> str | None:
        """Nothing to quote."""
        return "" if facts.observation.num_examples == 1 else None


@dataclass(frozen=True)
class SeveralExamples:
    """Several examples."""

    def __call__(self, facts: Facts) -> str | None:
        """How many."""
        count = facts.observation.num_examples
        return f"{count} examples" if count > 1 else None


@dataclass(frozen=True)
class Table:
    """Rows of a table."""

    def __call__(self, facts: Facts) -> str | None:
        """How many columns."""
        space = facts.observation.network.space
        return f"{len(space.columns)} columns" if isinstance(space, Columns) else None


@dataclass(frozen=True)
class Sentences:
    """Sentences as token ids."""

    def __call__(self, facts: Facts) -> str | None:
        """Nothing to quote."""
        return "" if facts.sentences else None


@dataclass(frozen=True)
class NoPictures:
    """Inputs that are no pictures."""

    def __call__(self, facts: Facts) -> str | None:
        """What they are."""
        space = facts.observation.network.space
        return None if pictured(space) else f"{space.noun}s"


@dataclass(frozen=True)
class ClientUnknown:
    """The client's settings unknown."""

    def __call__(self, facts: Facts) -> str | None:
        """Nothing to quote."""
        return None if facts.observation.client_known else ""


@dataclass(frozen=True)
class OrderUnknown:
    """A client that shuffles, in an order that is not known."""

    def __call__(self, facts: Facts) -> str | None:
        """Nothing to quote."""
        steps = facts.observation.unrolled
        several = steps is not None and steps.shuffles and len(steps.one_pass) > 1
        return "" if several and is_plain_cross_entropy(facts.observation.network.loss) else None


@dataclass(frozen=True)
class ContrastHidden:
    """BatchNorm in train mode behind a first convolution."""

    def __call__(self, facts: Facts) -> str | None:
        """Nothing to quote."""
        return "" if facts.architecture.first_batchnorm_trains else None


@dataclass(frozen=True)
class StepsUnknown:
    """Local steps whose order matters, and labels that are only counted."""

    def __call__(self, facts: Facts) -> str | None:
        """Nothing to quote."""
        return "" if _unplaced(facts.observation, facts.stop) else None


@dataclass(frozen=True)
class KeepsPlaces:
    """Places kept up to the head."""

    def __call__(self, facts: Facts) -> str | None:
        """Nothing to quote."""
        return None if facts.architecture.averages else ""


@dataclass(frozen=True)
class KeepsPlacesNormalized:
    """Features that are normalized by what they are (GroupNorm, LayerNorm, BatchNorm in train mode), places kept."""

    def __call__(self, facts: Facts) -> str | None:
        """What normalizes them."""
        return (
            ", ".join(facts.architecture.normalizations)
            if facts.architecture.normalizations and not facts.architecture.averages
            else None
        )


@dataclass(frozen=True)
class FewNumbers:
    """An update of few independent numbers for the values of its pictures.

    Args:
        below: so many of them, as a share.
    """

    below: float = 1.0

    def __call__(self, facts: Facts) -> str | None:
        """How many there are."""
        return f"{facts.share_known:.0%} of the pictures' values" if facts.share_known < self.below else None


@dataclass(frozen=True)
class Smooth:
    """A smooth network."""

    def __call__(self, facts: Facts) -> str | None:
        """Nothing to quote."""
        return None if facts.architecture.nonsmooth_layers else ""


@dataclass(frozen=True)
class HasKinks:
    """A network with kinks (ReLU, max pooling)."""

    def __call__(self, facts: Facts) -> str | None:
        """What has them."""
        return ", ".join(facts.architecture.nonsmooth_layers) or None


@dataclass(frozen=True)
class AveragesPlaces:
    """Places averaged before the head (ResNets)."""

    def __call__(self, facts: Facts) -> str | None:
        """What averages them."""
        return ", ".join(facts.architecture.averages) or None


@dataclass(frozen=True)
class AtMost:
    """A network of a few operations.

    Args:
        operations: of a forward pass of all examples.
    """

    operations: float

    def __call__(self, facts: Facts) -> str | None:
        """Nothing to quote."""
        observation = facts.observation
        return "" if observation.network.operations() * observation.num_examples < self.operations else None


@dataclass(frozen=True)
class Applies:
    """A network that the method takes.

    Args:
        method: an exact one, asked by its `check`.
    """

    method: ExactMethod

    def __call__(self, facts: Facts) -> str | None:
        """Nothing to quote."""
        return "" if applies(self.method, facts.observation) else None


def applies(method: Attack, observation: Observation) -> bool:
    """Whether an exact method would take this observation, as far as it can say without solving anything."""
    try:
        return not isinstance(method, ExactMethod) or bool(method.check(observation))
    except (ThreatModelError, UnsupportedNetworkError):
        return False


def _unplaced(observation: Observation, stop: Callable[[], bool]) -> bool:
    """Whether it matters which local step saw which label, and neither the server nor the head's gradient tells."""
    steps, network, count = observation.unrolled, observation.network, observation.num_examples
    if observation.labels is not None or steps is None or len(steps.one_pass) < 2:
        return False
    if not is_plain_cross_entropy(network.loss) or dropout_layers(network.module) or count > _PLACED:
        return False
    try:
        recover_head_inputs(observation, stop)
    except (ThreatModelError, UnsupportedNetworkError):
        return _order_matters(observation)
    return False


def _order_matters(observation: Observation) -> bool:
    """Whether the client would send something else for stand-in examples in reversed order."""
    client, network = observation.client, observation.network
    images = network.held(network.space.stand_ins(observation.num_examples, Generator().manual_seed(0)))
    labels = torch.arange(observation.num_examples, device=network.device) % network.num_classes
    sent, reverse = (
        replace(observation, update=client(network, *examples)).gradient
        for examples in ((images, labels), (images.flip(0), labels.flip(0)))
    )
    apart = sum(float((sent[name] - reverse[name]).square().sum()) for name in sent)
    return apart > _MATTERS**2 * sum(float(part.square().sum()) for part in sent.values())
