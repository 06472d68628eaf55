"""A surrogate client: one gradient in place of all local steps."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from inversefed.attacks.simulations.simulation import Compared, Simulation
from inversefed.errors import ConfigError
from inversefed.fl.clients.local_steps import loss_gradient
from inversefed.fl.clients.views import new_weights
from inversefed.fl.threat import Observation
from inversefed.types import Inputs

__all__ = ["Surrogate"]


@dataclass(frozen=True)
class Surrogate(Simulation):
    """Match a whole FedAvg update with one gradient, at a point between the old weights and the new ones.

        w(a) = (1 - a) w_0 + a w_T,    w_0 - w_T  ~  grad L(w(a); x, y)

    SME, Zhu et al. (2023), arXiv:2306.00127: neither learning rate nor number of steps nor slices are needed. Only the
    direction means something, so the objective must not see scale: `Cosine()`.

    Args:
        rate: how far a unit step of the search moves `a` from where it starts, 0.5; the paper's `a` learns with 1e-3
            where its images learn with 1.

    A client that sends a gradient has no new weights; its update is matched at the old ones.
    """

    rate: float = 1e-3

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ConfigError(f"Surrogate needs rate > 0, got {self.rate}")

    def start(self, observation: Observation, generator: Generator) -> Mapping[str, Tensor]:
        """`between`, zero where `a` is 0.5."""
        if new_weights(observation.client, observation.network, observation.update) is None:
            return {}
        like = next(iter(observation.network.params.values()))
        return {"between": torch.zeros((), dtype=like.dtype, device=like.device)}

    def __call__(
        self, observation: Observation, variables: Mapping[str, Tensor], images: Inputs, labels: Tensor
    ) -> Compared:
        """The gradient at w(a) beside the update read as a gradient."""
        network = observation.network
        ends = new_weights(observation.client, network, observation.update)
        start = {name: weight.detach() for name, weight in network.params.items()}
        share = self.share(variables).to(next(iter(start.values())))
        between = start if ends is None else {name: torch.lerp(start[name], ends[name], share) for name in start}
        if not network.functional:
            between = {name: w if w.requires_grad else w.requires_grad_() for name, w in between.items()}
        gradient = loss_gradient(network.at_step(0), between, images, labels)
        return Compared({name: gradient[name] for name in observation.update}, observation.gradient)

    def share(self, variables: Mapping[str, Tensor]) -> Tensor:
        """`a`, in (0, 1)."""
        return torch.sigmoid(4 * self.rate * variables.get("between", torch.zeros(())))
