"""Labels left to the search: optimized together with the images."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from inversefed.attacks.head.gradient import pulls
from inversefed.errors import ThreatModelError
from inversefed.fl.network import Network
from inversefed.fl.targets import as_rows, as_targets, class_count, forms, loss_slope, made_up_outputs
from inversefed.fl.threat import Observation
from inversefed.types import SoftLabels

__all__ = ["JointLabels"]


@dataclass(frozen=True)
class JointLabels:
    """Not a rule: leave the labels open and optimize softmax logits together with the images.

    DLG, Zhu et al. (2019), arXiv:1906.08935.

    Args:
        shared: one row of logits for the whole batch, as the 2020 code had it, instead of one an example.
    """

    shared: bool = False

    def start(self, observation: Observation, generator: Generator) -> Tensor:
        """Normal logits, `[n, k]`, or `[k]` where shared."""
        network = observation.network
        rows = () if self.shared else (observation.num_examples,)
        shape = (*rows, network.num_classes)
        return torch.randn(shape, generator=generator, dtype=network.dtype, device=generator.device).to(network.device)

    def decode(self, logits: Tensor, num_examples: int) -> SoftLabels:
        """Probabilities, `[n, k]`: of all classes, or of yes where there is a single output."""
        found = logits.sigmoid() if logits.shape[-1] == 1 else logits.softmax(dim=-1)
        return found.expand(num_examples, -1)

    def check(self, network: Network, guessed: bool = False) -> None:
        """Refuse a loss that takes no probabilities.

        Args:
            network: for its loss.
            guessed: nobody asked for open labels: they also have to be probabilities of classes, so that the loss of
                a class is that of its probability 1.

        Raises:
            ThreatModelError: it is such a loss.
        """
        taken = forms(network)
        rows = "rows" in taken or (network.num_classes == 1 and "values" in taken)
        if rows and (not guessed or _probabilities(network)):
            return
        raise ThreatModelError(
            f"the labels are unknown, no rule finds them, and the loss {network.loss!r} cannot be searched over class "
            "probabilities; hand the labels over (known labels)"
        )


def _probabilities(network: Network) -> bool:
    """Whether the loss of a class is that of its probability 1; of one output, whether it is binary cross entropy.

    The squared error of one output also takes 0 and 1, but every other number as well.
    """
    if network.num_classes == 1:
        return pulls(network) is not None
    if "classes" not in forms(network):
        return False
    outputs = made_up_outputs(network)
    labels = torch.arange(len(outputs), device=outputs.device) % class_count(network)
    both = labels, as_targets(network, as_rows(network, labels))
    hard, soft = (loss_slope(network, outputs, each) for each in both)
    return torch.allclose(hard, soft, rtol=1e-3, atol=1e-6)
