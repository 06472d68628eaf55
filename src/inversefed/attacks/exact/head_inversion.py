"""Several images from the inputs of the classification head, which are recovered example by example.

    h_1 .. h_n = recover_head_inputs(gW, gb),    x = argmin sum_i |f(x)_i - h_i|^2 / sum_i |h_i|^2

Where the head sees at least as many numbers as a picture has, and no max pooling is on the way, the features of an
example determine its picture. A search brings the pictures near, and L-BFGS from there nearer than a search comes; how
near depends on how many kinks lie between. Own derivation.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from inversefed.attacks.exact.peel.feature_inversion import invert_features, solve_features
from inversefed.attacks.exact.verify import matched, verified
from inversefed.attacks.exact.watch import Watch
from inversefed.attacks.head.head_inputs import HeadInputs, recover_head_inputs
from inversefed.attacks.search.inversion import GradientInversion
from inversefed.attacks.search.time_schedule import as_fits
from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.hooks import record
from inversefed.fl.network import Network
from inversefed.fl.threat import Observation
from inversefed.networks.architecture import architecture
from inversefed.thresholds import EXACT
from inversefed.types import Budget, Candidate, Reconstruction, Status

__all__ = ["SeparatedFeatures"]


@dataclass(frozen=True)
class Tolerances:
    """The numbers that it decides by, each with its reason.

    Args:
        solving: share of the time that solving for what went into the head may take: the search needs the rest.
        patience: rounds of ten evaluations after which L-BFGS ends if they gained less than a hundredth.
        sure: share of the features' size above which a ReLU was on, and not a zero that was rounded.
    """

    solving: float = 0.5
    patience: int = 5
    sure: float = 1e-3


TOLERANCES = Tolerances()


@dataclass(frozen=True)
class SeparatedFeatures:
    """Recover several pictures from one gradient, through what went into the head.

    Args:
        initial: the search for the pictures that the inversion starts from.
        evaluations: most evaluations of the network up to its head in that.
    """

    initial: GradientInversion
    evaluations: int = 1500

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        """Separate, search, then invert. A budget that ends it leaves the best so far.

        Raises:
            ThreatModelError: what went into the head cannot be solved for.
            UnsupportedNetworkError: the head sees fewer numbers than a picture has, or there is max pooling.
        """
        self.check(observation)
        began, network = time.monotonic(), observation.network
        known = recover_head_inputs(observation, budget.within(TOLERANCES.solving))
        observation = replace(observation, labels=known.labels)
        found, fewer = as_fits(self.initial, observation, generator, replace(budget, checkpoint=None, resume=None))
        if found.status not in (Status.FINISHED, Status.CONVERGED):
            return replace(found, made_by=repr(self))
        rounds = self.evaluations // 10
        watch = Watch(budget, lambda inputs: _pictures(network, inputs), began=began, rounds=rounds)
        inputs, status = network.normalize(found.images).double(), Status.FINISHED
        try:
            inputs = _inverted(network, known, inputs, self.evaluations, watch)
        except KeyboardInterrupt:
            inputs, status = watch.kept[-1] if watch.kept else inputs, Status.INTERRUPTED
        status = Status.STOPPED if status is Status.FINISHED and (fewer or watch.stopped) else status
        return self._nearest(observation, found, _pictures(network, inputs), known, watch, status)

    def _nearest(
        self,
        observation: Observation,
        found: Reconstruction,
        images: Tensor,
        known: HeadInputs,
        watch: Watch,
        status: Status,
    ) -> Reconstruction:
        """What matches the update better, the search's pictures or the inverted ones, verified."""
        tried = [matched(observation, each, known.labels, watch.stop) for each in (images, found.images)]
        images, loss = min(tried, key=lambda pair: pair[1])
        if loss < EXACT and status is Status.STOPPED:  # nothing is left to do
            status = Status.FINISHED
        how = f"what went into the head was solved for, for each of {len(images)} examples, and inverted"
        history = (*found.candidates[0].history, *watch.history)
        chosen = Candidate(images, known.labels, loss, status, len(history), history)
        result = verified(self, chosen, how, {"residual_of_the_head": known.residual})
        return replace(result, findings=(*found.findings, *result.findings))

    def check(self, observation: Observation) -> str:
        """Say what it would do, without solving anything.

        Raises:
            UnsupportedNetworkError: as when it is called.
        """
        network, pixels = observation.network, math.prod(observation.network.image_shape)
        traits = architecture(network)
        if traits.max_pools:
            raise UnsupportedNetworkError(
                f"features behind {', '.join(traits.max_pools)} do not determine their pictures"
            )
        if traits.first_batchnorm_trains:
            raise UnsupportedNetworkError("features behind BatchNorm in train mode do not hold a picture's contrast")
        if traits.first_norm_by_channel:
            raise UnsupportedNetworkError("features behind a first norm of each channel do not hold its contrast")
        if network.head is None or f"{network.head}.weight" not in network.params:
            raise UnsupportedNetworkError("the network has no clear linear last layer with one row a class")
        width = math.prod(network.params[f"{network.head}.weight"].shape[1:])
        if width < pixels:
            raise UnsupportedNetworkError(f"{width} numbers go into the head, and a picture has {pixels}")
        return f"solves for the {width} numbers that go into the head for each example, and looks for pictures of them"


def _inverted(network: Network, known: HeadInputs, start: Tensor, evaluations: int, watch: Watch) -> Tensor:
    trunk = network.to(torch.float64).without_head()
    features = known.features.to(trunk.device)
    eps = max(torch.finfo(network.dtype).eps, known.residual)
    reached = _reaching(trunk, features)
    near = invert_features(reached, features, start.to(trunk.device), eps, evaluations, watch, TOLERANCES.patience)
    return near if watch.stop() else solve_features(reached, features, near, eps, watch)


def _reaching(trunk: Network, features: Tensor) -> Callable[[Tensor], Tensor]:
    """Features of images; where a ReLU comes last and was on, what goes into it, which has a slope on either side."""
    opened = _without_last_relu(trunk)
    if opened is None:
        return lambda inputs: trunk.apply_normalized(trunk.params, inputs)
    on, inner = features > TOLERANCES.sure * features.square().mean().sqrt(), opened

    def reached(inputs: Tensor) -> Tensor:
        values = inner.apply_normalized(inner.params, inputs)
        return torch.where(on, values, values.relu())

    return reached


def _without_last_relu(trunk: Network) -> Network | None:
    """The network without the ReLU layer that its outputs come from; nothing where there is no such layer."""
    relus = {name: layer for name, layer in trunk.module.named_modules() if isinstance(layer, nn.ReLU)}
    probe = torch.rand((2, *trunk.image_shape), generator=Generator().manual_seed(0), dtype=trunk.dtype)
    outputs, runs = record(relus, lambda: trunk.features(probe), lambda *_: None)
    once = [name for name, count in Counter(run.name for run in runs).items() if count == 1]
    made = {run.name: run.outputs.flatten(1) for run in runs}
    last = [name for name in once if torch.equal(made[name], outputs)]
    return trunk.without(last[-1]) if last else None


def _pictures(network: Network, inputs: Tensor) -> Tensor:
    return network.denormalize(inputs.to(network.device, network.dtype))
