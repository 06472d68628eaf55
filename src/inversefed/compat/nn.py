"""Networks by their names of 2020, and `MetaMonkey`: a network as a function of its weights."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from inversefed.errors import UpdateMismatchError
from inversefed.zoo import networks

__all__ = ["MetaMonkey", "construct_model"]


def construct_model(
    model: str, num_classes: int = 10, seed: int | None = None, num_channels: int = 3, modelkey: int | None = None
) -> tuple[nn.Module, int]:
    """Build a network on the CPU, in train mode; a seed gives the weights that it gave in 2020.

    Args:
        model: a name of 2020 or, in lower case, one of torchvision's.
        num_classes: number of logits.
        seed: `None` draws a fresh one; the global random state is neither used nor changed.
        num_channels: channels of the pictures.
        modelkey: another name for the seed; it goes before `seed`.

    Returns:
        The module, and the seed that its weights come from.

    Raises:
        ConfigError: an unknown name, or a number of channels that this network cannot take.
        UnsupportedNetworkError: a network that was named in 2020 but never defined.

    >>> module, seed = construct_model("ConvNet8", seed=0)
    >>> module.training, seed
    (True, 0)
    """
    chosen = next((key for key in (modelkey, seed) if key is not None), None)
    key = networks.draw_seed() if chosen is None else chosen
    return networks.build(model, num_classes, num_channels, key), key


class MetaMonkey:
    """A network that can be called with other weights than its own, and differentiated in them.

    Args:
        net: any module; of 2020's kinds of layer only, silently, it is no longer.

    Attributes:
        parameters: the network's own, by name, to be changed and handed back to the call.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.parameters = OrderedDict(net.named_parameters())

    def __call__(self, inputs: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Any:
        """Run the network.

        Args:
            inputs: normalized pictures, `[n, c, h, w]`.
            parameters: every weight by name; `None` for the network's own.

        Raises:
            UpdateMismatchError: a name is missing, or is not the network's.
        """
        if parameters is None:
            return self.net(inputs)
        odd = sorted(self.parameters.keys() ^ parameters.keys())
        if odd:
            raise UpdateMismatchError(
                f"expected the network's {len(self.parameters)} parameters by name, got {len(parameters)}; "
                f"missing or unknown: {', '.join(odd[:3])}"
            )
        return functional_call(self.net, dict(parameters), (inputs,))
