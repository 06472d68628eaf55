"""Gradients of single examples, and their sum after each was clipped.

    g_i = grad_w loss(f(w, x_i), y_i),      sum_i  g_i min(1, C / (|g_i| + 1e-6))

`torch.func.vmap` takes all of them at once; a network that it cannot run is taken example by example. Both can be
differentiated with respect to the pictures. The 1e-6 is Opacus' (Yousefpour et al. 2021, arXiv:2109.12298).
"""

from dataclasses import replace

import torch
from torch import Tensor

from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.clients.local_steps import loss_gradient
from inversefed.fl.network import Network
from inversefed.types import Inputs, Params, Targets

__all__ = ["clipped_sum", "example_gradients"]

_APART = 1_000_003
"""Between the seeds of two examples' dropout masks where the examples are taken one by one."""


def example_gradients(network: Network, params: Params, images: Inputs, labels: Targets) -> Params:
    """The gradient of each example's own loss: by name, `[n, ..]`.

    Layers that are random in train mode draw for each example.

    >>> from inversefed.fl.network import freeze
    >>> network = freeze(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5)), (3, 2, 2))
    >>> gradients = example_gradients(network, network.params, torch.rand(2, 3, 2, 2), torch.tensor([2, 0]))
    >>> {name: tuple(part.shape) for name, part in gradients.items()}
    {'1.weight': (2, 5, 12), '1.bias': (2, 5)}
    """
    if network.masks or network.carried is not None:  # given for each example, or written to
        return _one_by_one(network, params, images, labels)
    try:
        return _at_once(network, params, images, labels)
    except (RuntimeError, UnsupportedNetworkError):  # it writes in place, or branches on a value
        return _one_by_one(network, params, images, labels)


def clipped_sum(gradients: Params, max_grad_norm: float) -> Params:
    """Scale each example's gradient down to a norm, over all tensors, of at most `max_grad_norm`, and add them up.

    >>> clipped_sum({"w": torch.tensor([[3.0, 4.0], [0.3, 0.4]])}, 1.0)
    {'w': tensor([0.9000, 1.2000])}
    """
    norms = torch.stack([part.flatten(1).norm(dim=1) for part in gradients.values()], dim=1).norm(dim=1)
    factors = (max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
    return {name: torch.einsum("i,i...", factors.to(part.dtype), part) for name, part in gradients.items()}


def _at_once(network: Network, params: Params, images: Inputs, labels: Targets) -> Params:
    def loss(weights: Params, image: Tensor, label: Tensor) -> Tensor:
        return network.loss(network.apply(weights, image[None]), label[None])

    every = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0), randomness="different")
    gradients: Params = every(dict(params), images, labels)
    return gradients


def _one_by_one(network: Network, params: Params, images: Inputs, labels: Targets) -> Params:
    found, params = [], {n: w if w.requires_grad else w.detach().requires_grad_() for n, w in params.items()}
    for i in range(len(images)):
        masks = {name: mask[i : i + 1] for name, mask in network.masks.items()}
        own = replace(network, mask_seed=network.mask_seed + i * _APART, masks=masks)
        found.append(loss_gradient(own, params, images[i : i + 1], labels[i : i + 1]))
    return {name: torch.stack([each[name] for each in found]) for name in params}
