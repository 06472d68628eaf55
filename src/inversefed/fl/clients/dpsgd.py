"""DP-SGD as the client runs it: every example's gradient is clipped, their sum is noised.

    g = (sum_i g_i min(1, C / |g_i|)  +  sigma C N(0, 1)) / L

with the norm over all tensors, sigma the noise multiplier and L the expected batch size: Abadi et al. (2016,
arXiv:1607.00133), each detail as Opacus has it (arXiv:2109.12298), whose names are used. It bounds what any one
example can change, so it is a client and no defense of a finished update. The noise comes from the network's private
seed, which no observation holds; the server simulates the same client with its draws left out (`believed`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor

from inversefed.errors import ConfigError, UnsupportedNetworkError
from inversefed.fl.accounting import Accounting
from inversefed.fl.asked import Asked
from inversefed.fl.clients.client import Client
from inversefed.fl.clients.fedavg import FedAvg
from inversefed.fl.clients.local_optimizers import LocalOptimizer, LocalSGD, State
from inversefed.fl.clients.local_steps import LocalSteps
from inversefed.fl.clients.per_example import clipped_sum, example_gradients
from inversefed.fl.network import Network
from inversefed.fl.threat_model import ThreatModel
from inversefed.fl.train_mode import batchnorm_by_batch
from inversefed.types import Inputs, Params, Targets

__all__ = ["DPSGD"]

_SALT = 0x5DEECE66
"""So that the noise is not the stream that dropout draws from the same seed."""


@dataclass(frozen=True)
class DPSGD(Client, Asked):
    """Clip each example's gradient, add noise to the sum, and send the gradient or what local steps with it come to.

    Args:
        noise_multiplier: the noise's standard deviation on the sum, over `max_grad_norm`; 0 for none.
        max_grad_norm: the norm, over all tensors, that an example's gradient is clipped to.
        expected_batch_size: what the sum is divided by; 0 for the number of examples in the step.
        loss_reduction: `"mean"`, or `"sum"` to leave the division out.
        local_steps: how many steps.
        batch_size: examples a step, in consecutive slices as in `FedAvg`; 0 for all of them.
        poisson_sampling: instead each step takes each example with a probability.
        lr: learning rate of the local steps.
        optimizer: their update rule, which sees only noised gradients.
        sends: `"gradient"` of a single step, `"delta"` for new minus old weights, or `"weights"` for the new ones.
        accounting: how epsilon is counted; it changes no number of the update.
        sample_rate: the probability of Poisson sampling, where it is not `expected_batch_size / n`: Opacus takes one
            over the number of batches, and rounds the expected size down.

    Raises:
        ConfigError: settings out of range, or that exclude each other.
        UnsupportedNetworkError: when called, BatchNorm that couples the examples of a batch.

    >>> from inversefed.fl.network import freeze
    >>> network = freeze(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5)), (3, 2, 2))
    >>> client = DPSGD(noise_multiplier=0.0, max_grad_norm=0.1)
    >>> update = client(network, torch.rand(1, 3, 2, 2), torch.tensor([2]))
    >>> torch.cat([part.flatten() for part in update.values()]).norm()
    tensor(0.1000)
    """

    noise_multiplier: float
    max_grad_norm: float
    expected_batch_size: int = 0
    loss_reduction: Literal["mean", "sum"] = "mean"
    local_steps: int = 1
    batch_size: int = 0
    poisson_sampling: bool = False
    lr: float = 0.1
    optimizer: LocalOptimizer = LocalSGD()
    sends: Literal["gradient", "delta", "weights"] = "gradient"
    accounting: Accounting = Accounting()
    sample_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.noise_multiplier < 0 or self.max_grad_norm <= 0 or self.expected_batch_size < 0 or self.lr <= 0:
            raise ConfigError(
                "DPSGD needs noise_multiplier >= 0, max_grad_norm > 0, expected_batch_size >= 0 and lr > 0; got "
                f"{self.noise_multiplier}, {self.max_grad_norm}, {self.expected_batch_size} and {self.lr}"
            )
        if self.local_steps < 1 or self.batch_size < 0:
            raise ConfigError(f"DPSGD needs local_steps >= 1 and batch_size >= 0; got {self!r}")
        if self.poisson_sampling and (self.batch_size or not self.expected_batch_size):
            raise ConfigError("DPSGD with poisson_sampling needs expected_batch_size, and no batch_size")
        if not 0 <= self.sample_rate <= 1 or (self.sample_rate and not self.poisson_sampling):
            raise ConfigError(
                f"DPSGD needs a sample_rate in (0, 1], and poisson_sampling=True beside it; got {self.sample_rate} and "
                f"{self.poisson_sampling}"
            )
        if self.sends not in ("gradient", "delta", "weights") or self.loss_reduction not in ("mean", "sum"):
            raise ConfigError(
                "DPSGD sends 'gradient', 'delta' or 'weights' and reduces by 'mean' or 'sum'; got "
                f"{self.sends!r} and {self.loss_reduction!r}"
            )
        if self.sends == "gradient" and self.local_steps > 1:
            raise ConfigError(
                f"{self.local_steps} local steps have no one gradient; let DPSGD send its 'delta' or 'weights'"
            )

    def __call__(self, network: Network, images: Inputs, labels: Targets) -> Params:
        """Take the local steps and return what is sent.

        Raises:
            UnsupportedNetworkError: BatchNorm that couples the examples of a batch.
        """
        check_no_coupling(network)
        differentiable = torch.is_grad_enabled() and (images.requires_grad or labels.requires_grad)
        with torch.set_grad_enabled(differentiable):
            return self._trained(network, images, labels)

    def as_gradient(self, network: Network, update: Params, num_examples: int) -> Params:
        """Read the update as the mean of the examples' clipped gradients, averaged over the local steps."""
        if self.sends == "weights":
            update = {name: new - network.params[name].detach() for name, new in update.items()}
        expected, size = self._divisor(num_examples), self._step_size(num_examples)
        scale = (1 if self.loss_reduction == "sum" else expected) / size
        if self.sends != "gradient":
            scale /= -self.lr * self.local_steps
        return {name: part * scale for name, part in update.items()}

    def believed(self, threat: ThreatModel, num_examples: int, seed: int) -> "DPSGD":
        """The client as a server simulates it that knows all of it but what it draws.

        Without noise; where steps are Poisson samples, each step is replaced by its mean, which takes all examples.
        """
        if not self.poisson_sampling:
            return replace(self, noise_multiplier=0.0)
        divisor = round(self.expected_batch_size / self.sample_rate) if self.sample_rate else 0
        return replace(self, noise_multiplier=0.0, poisson_sampling=False, expected_batch_size=divisor, sample_rate=0.0)

    def noise_std(self, num_examples: int) -> float:
        """Standard deviation of the noise in each entry of one step's gradient."""
        divisor = 1 if self.loss_reduction == "sum" else self._divisor(num_examples)
        return self.noise_multiplier * self.max_grad_norm / divisor

    def sampled(self, num_examples: int) -> float:
        """The probability with which a step takes an example, where that is drawn; else 1."""
        if not self.poisson_sampling:
            return 1.0
        return self.sample_rate or min(1.0, self.expected_batch_size / num_examples)

    def steps(self, num_examples: int) -> LocalSteps:
        """The local steps, on all examples where it is drawn which of them a step takes.

        Raises:
            ConfigError: fewer examples than one slice holds.
        """
        taken = FedAvg(self.local_steps, self.lr, self.batch_size, optimizer=self.optimizer).steps(num_examples)
        return replace(taken, keep_graphs=None, additive=False, noise=self.noise_std(num_examples))

    def _trained(self, network: Network, images: Inputs, labels: Targets) -> Params:
        generator, params = self._generator(network), network.params
        state: State = {}
        for step, part in enumerate(self._parts(len(images), generator)):
            gradient = self._gradient(network.at_step(step), params, images[part], labels[part], generator)
            if self.sends == "gradient":
                return gradient
            params, state = self.optimizer(params, gradient, state, self.lr, step)
        if self.sends == "weights":
            return params
        return {name: new - network.params[name].detach() for name, new in params.items()}

    def _gradient(
        self, network: Network, params: Params, images: Inputs, labels: Targets, generator: Generator | None
    ) -> Params:
        if len(images):
            total = clipped_sum(example_gradients(network, params, images, labels), self.max_grad_norm)
        else:  # as Opacus does where a Poisson sample is empty: noise alone
            total = {name: torch.zeros_like(weight) for name, weight in params.items()}
        if self.noise_multiplier and generator is not None:
            std = self.noise_multiplier * self.max_grad_norm
            total = {name: part + std * _normal_like(part, generator) for name, part in total.items()}
        divisor = 1 if self.loss_reduction == "sum" else self.expected_batch_size or len(images)
        return {name: part / divisor for name, part in total.items()}

    def _parts(self, num_examples: int, generator: Generator | None) -> Sequence[slice | Tensor]:
        if not self.poisson_sampling or generator is None:
            return self.steps(num_examples).slices
        if self.expected_batch_size > num_examples and not self.sample_rate:
            raise ConfigError(
                f"DPSGD cannot draw {self.expected_batch_size} of {num_examples} examples on average; lower "
                "expected_batch_size"
            )
        rate = self.sampled(num_examples)
        draws = torch.rand((self.local_steps, num_examples), generator=generator)
        return [(row < rate).nonzero().flatten() for row in draws]

    def _generator(self, network: Network) -> Generator | None:
        """What the client draws from; none where it draws nothing."""
        if not self.noise_multiplier and not self.poisson_sampling:
            return None
        return Generator().manual_seed(network.mask_seed ^ _SALT)

    def _divisor(self, num_examples: int) -> int:
        return self.expected_batch_size or self.batch_size or num_examples

    def _step_size(self, num_examples: int) -> float:
        """Examples a step, on average."""
        if self.poisson_sampling:
            return num_examples * self.sampled(num_examples)
        return float(self.batch_size or num_examples)


def check_no_coupling(network: Network) -> None:
    """Refuse what gives no example a gradient of its own.

    Raises:
        UnsupportedNetworkError: BatchNorm that normalizes by the batch's statistics.
    """
    for name in batchnorm_by_batch(network.module):
        raise UnsupportedNetworkError(
            f"DP-SGD clips the gradient of each example, and {name or 'the network'}, BatchNorm in train mode, "
            "normalizes an example by the others of its batch, so that none has a gradient of its own; put it in "
            "eval mode, or take GroupNorm instead (Opacus' ModuleValidator.fix replaces it so)"
        )


def _normal_like(part: Tensor, generator: Generator) -> Tensor:
    return torch.randn(part.shape, generator=generator, dtype=part.dtype, device=generator.device).to(part.device)
