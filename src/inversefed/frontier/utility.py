"""What a defense costs: the accuracy of a network trained for a short time by clients that run it.

Each round, enough clients for `batch_size` examples send their defended updates; the server averages them, read as
gradients, and takes a step of Adam (FedAdam, Reddi et al. 2021, arXiv:2003.00295), whose steps do not depend on the
scale of an update: a defense that rescales is not blamed for the learning rate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor

from inversefed.errors import ConfigError
from inversefed.fl.clients import Client
from inversefed.fl.defenses.protocols import Defense, network_defenses
from inversefed.fl.network import Network
from inversefed.fl.simulate import defended, prepared
from inversefed.types import Batch, Inputs, Labels, Params

__all__ = ["Data", "accuracy_of"]

_BETAS, _EPSILON = (0.9, 0.99), 1e-8
_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Data:
    """What is trained and tested on.

    Args:
        name: what the data are called.
        train: `(images, labels)` at these places of the training part.
        train_size: how many there are.
        test: images and labels to measure on.
    """

    name: str
    train: Callable[[Sequence[int]], tuple[Inputs, Labels]] = field(repr=False)
    train_size: int
    test: tuple[Inputs, Labels] = field(repr=False)


def accuracy_of(
    network: Network,
    client: Client,
    defenses: Sequence[Defense],
    data: Data,
    *,
    num_images: int = 1,
    batch_size: int = 32,
    rounds: int = 100,
    lr: float = 1e-2,
    generator: Generator,
    on_round: Callable[[int, int], object] | None = None,
) -> float:
    """Train with the defense and measure on the test part.

    Args:
        network: as it is before any defense.
        client: how each client makes its update.
        defenses: what each client runs.
        data: real pictures.
        num_images: examples a client.
        batch_size: examples a round, shared by as many clients as that takes.
        rounds: server steps.
        lr: of the server's Adam.
        generator: the only source of randomness.
        on_round: told of each round: how many are done, of how many.

    Returns:
        The share of test pictures that are labeled rightly, in [0, 1].

    Raises:
        ConfigError: less than one round or example.
    """
    if rounds < 1 or batch_size < 1 or num_images < 1:
        raise ConfigError(f"training needs rounds and examples; got {rounds}, {batch_size} and {num_images}")
    for change in network_defenses(defenses):
        network = change(network)
    params = {name: weight.detach().clone() for name, weight in network.params.items()}
    moments = [{name: torch.zeros_like(weight) for name, weight in params.items()} for _ in range(2)]
    for done in range(1, rounds + 1):
        current = replace(network, params={name: weight.requires_grad_() for name, weight in params.items()})
        parts = range(max(1, batch_size // num_images))
        sent = [_gradient(current, client, defenses, data, num_images, generator) for _ in parts]
        gradient = {name: torch.stack([each[name] for each in sent]).mean(dim=0) for name in sent[0]}
        params = _adam(params, gradient, moments, lr, done)
        if on_round is not None:
            on_round(done, rounds)
    return _accuracy(replace(network, params=params), *data.test)


def _gradient(
    network: Network, client: Client, defenses: Sequence[Defense], data: Data, num_images: int, generator: Generator
) -> Params:
    """One client's defended update of examples of its own, read as a gradient."""
    places = torch.randint(data.train_size, (num_images,), generator=generator).tolist()
    images, labels = data.train(places)
    batch = Batch(images.to(network.device, network.dtype), labels.to(network.device))
    own = network.with_masks(int(torch.randint(2**62, (), generator=generator)))
    inputs, targets = prepared(own, batch, defenses, generator)
    update = client(own, inputs, targets)
    update = defended(update, own, Batch(inputs, batch.labels), defenses, generator)
    return client.as_gradient(own, {name: part.detach() for name, part in update.items()}, num_images)


def _adam(
    params: Params, gradient: Params, moments: list[dict[str, Tensor]], lr: float, step: int
) -> dict[str, Tensor]:
    """One step of Adam; the moments, which belong to the caller's loop, move along."""
    new = {}
    for name, weight in params.items():
        if name not in gradient:
            new[name] = weight.detach()
            continue
        for moment, beta, value in zip(moments, _BETAS, (gradient[name], gradient[name].square()), strict=True):
            moment[name] = beta * moment[name] + (1 - beta) * value
        first, second = (moment[name] / (1 - beta**step) for moment, beta in zip(moments, _BETAS, strict=True))
        new[name] = weight.detach() - lr * first / (second.sqrt() + _EPSILON)
    return new


def _accuracy(network: Network, images: Inputs, labels: Labels) -> float:
    parts = (images[start : start + _AT_ONCE] for start in range(0, len(images), _AT_ONCE))
    guesses = [network.features(part.to(network.device, network.dtype)).argmax(dim=1).cpu() for part in parts]
    return float((torch.cat(guesses) == labels.cpu()).double().mean())
