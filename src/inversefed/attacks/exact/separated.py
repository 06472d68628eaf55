"""Several pictures from what went into the head, which is solved for example by example.

    h_1 .. h_n = separate(gW, gb),    x = argmin sum_i |f(x)_i - h_i|^2 / sum_i |h_i|^2

Where the head sees at least as many numbers as a picture has, and no max pooling is on the way, the features of an
example determine its picture. A search brings the pictures near, and L-BFGS from there nearer than a search comes; how
near depends on how many kinks lie between. All pictures are found together, which BatchNorm in train mode needs. Own
derivation.
"""

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from inversefed.attacks.exact.features import invert_features
from inversefed.attacks.exact.verify import EXACT, exactness
from inversefed.attacks.exact.watch import Watch
from inversefed.attacks.inversion import GradientInversion
from inversefed.attacks.problem import relative_matching_cost
from inversefed.attacks.separate import Separated, separate
from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.kinks import pools
from inversefed.fl.network import Network
from inversefed.fl.threat import Observation
from inversefed.types import Budget, Candidate, Reconstruction, Status

__all__ = ["SeparatedFeatures"]


@dataclass(frozen=True)
class SeparatedFeatures:
    """Recover several pictures from one gradient, through what went into the head.

    Args:
        search: finds the pictures that the inversion starts from.
        evaluations: most evaluations of the network up to its head in that.
    """

    search: GradientInversion
    evaluations: int = 300

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        """Separate, search, then invert. A budget that ends it leaves the best so far.

        Raises:
            ThreatModelError: what went into the head cannot be solved for.
            UnsupportedNetworkError: the head sees fewer numbers than a picture has, or there is max pooling.
        """
        self.check(observation)
        began, known, network = time.monotonic(), separate(observation), observation.network
        observation = replace(observation, labels=known.labels)
        found = self.search(observation, generator, replace(budget, checkpoint=None, resume=None))
        if found.status not in (Status.FINISHED, Status.CONVERGED):
            return found
        rounds = self.evaluations // 10
        watch = Watch(budget, lambda inputs: _pictures(network, inputs), began=began, rounds=rounds)
        inputs, status = network.normalize(found.images).double(), Status.FINISHED
        try:
            inputs = _inverted(network, known, inputs, self.evaluations, watch)
        except KeyboardInterrupt:
            inputs, status = watch.kept[-1] if watch.kept else inputs, Status.INTERRUPTED
        return _nearest(observation, found, _pictures(network, inputs), known, watch, status)

    def check(self, observation: Observation) -> str:
        """Say what it would do, without solving anything.

        Raises:
            UnsupportedNetworkError: as when it is called.
        """
        network, pixels = observation.network, math.prod(observation.network.image_shape)
        if found := pools(network):
            raise UnsupportedNetworkError(f"features behind {', '.join(found)} do not determine their pictures")
        if network.head is None or f"{network.head}.weight" not in network.params:
            raise UnsupportedNetworkError("the network has no clear linear last layer with one row a class")
        width = math.prod(network.params[f"{network.head}.weight"].shape[1:])
        if width < pixels:
            raise UnsupportedNetworkError(f"{width} numbers go into the head, and a picture has {pixels}")
        return f"solves for the {width} numbers that go into the head for each example, and looks for pictures of them"


def _nearest(
    observation: Observation, found: Reconstruction, images: Tensor, known: Separated, watch: Watch, status: Status
) -> Reconstruction:
    """What matches the update better, the search's pictures or the inverted ones, verified."""
    before, loss = (relative_matching_cost(observation, each, known.labels) for each in (found.images, images))
    if before < loss:
        images, loss = found.images, before
    status = Status.STOPPED if watch.stopped and loss >= EXACT and status is Status.FINISHED else status
    how = f"what went into the head was solved for, for each of {len(images)} examples, and inverted"
    history = (*found.candidates[0].history, *watch.history)
    chosen = Candidate(images, known.labels, loss, status, len(history), history)
    finding = exactness(loss, how, {"residual_of_the_head": known.residual})
    return Reconstruction(images, known.labels, loss, status, (chosen,), (*found.findings, finding))


def _inverted(network: Network, known: Separated, start: Tensor, evaluations: int, watch: Watch) -> Tensor:
    trunk = network.to(torch.float64).without_head()
    eps = max(torch.finfo(network.dtype).eps, known.residual)
    return invert_features(
        lambda inputs: trunk.apply_normalized(trunk.params, inputs.to(trunk.device)),
        known.features.to(trunk.device),
        start.to(trunk.device),
        eps,
        evaluations,
        watch,
    )


def _pictures(network: Network, inputs: Tensor) -> Tensor:
    return network.denormalize(inputs.to(network.device, network.dtype))
