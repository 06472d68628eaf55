"""The constant-color images that explain an update best: the baseline that every attack has to beat.

    c^ = argmin_c  |client(network, c, y^) - u|^2 / |u|^2,    one color an example

Color is what an update gives away first. A search that explains less than this has found nothing.
"""

import time
from contextlib import suppress

import torch
from torch import Tensor

from inversefed.attacks.matching_error import matching_error, widened
from inversefed.attacks.pieces.objectives import RelativeSquaredError
from inversefed.attacks.search.minimize import differentiate
from inversefed.fl.threat import Observation
from inversefed.types import Images, Params

__all__ = ["matched_color"]

_EVALUATIONS, _FEWEST = 40, 3
"""Most evaluations of the client, and those that are made however little time there is."""


def matched_color(observation: Observation, labels: Tensor, seconds: float | None = None) -> tuple[Images, float]:
    """Find one color an example by matching the update, from gray, by L-BFGS.

    Args:
        observation: what the server sees; its client can be run.
        labels: the labels that go with the examples.
        seconds: about how long it may take; `None` for no limit.

    Returns:
        The pictures, `[n, c, h, w]` in pixel space, and their `matching_error`.

    Raises:
        UnsupportedNetworkError: the client cannot be differentiated.

    >>> from inversefed.fl.clients import FedSGD
    >>> from inversefed.fl.network import freeze
    >>> network = freeze(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4)), (3, 4, 4))
    >>> red = torch.tensor([0.9, 0.2, 0.1]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    >>> update = FedSGD()(network, red, torch.tensor([2]))
    >>> images, _ = matched_color(Observation(network, FedSGD(), update, 1), torch.tensor([2]))
    >>> [round(value, 2) for value in images[0, :, 0, 0].tolist()]
    [0.9, 0.2, 0.1]
    """
    network, began, lowest, best, used = observation.network, time.monotonic(), float("inf"), None, 0
    format_ = torch.promote_types(network.dtype, torch.float32)  # in 16 bits L-BFGS overflows
    logits = torch.zeros(observation.num_examples, network.image_shape[0], 1, 1, dtype=format_, device=network.device)
    logits.requires_grad_()

    def pictures(at: Tensor) -> Tensor:
        colors = network.low + (network.high - network.low) * at.sigmoid()
        return colors.to(network.dtype).expand(observation.batch_shape)

    def distance(variables: Params) -> Tensor:
        update = observation.client(network, pictures(variables["logits"]), labels)
        return RelativeSquaredError()(widened(update), widened(observation.update))

    def closure() -> float:
        nonlocal lowest, best, used
        used += 1
        cost, slopes = differentiate(distance, {"logits": logits})
        if cost < lowest:
            lowest, best = cost, logits.detach().clone()
        if seconds is not None and used >= _FEWEST and time.monotonic() - began > seconds:
            raise TimeoutError
        logits.grad = slopes["logits"]
        return cost

    optimizer = torch.optim.LBFGS(
        [logits], max_iter=_EVALUATIONS, max_eval=_EVALUATIONS, line_search_fn="strong_wolfe", tolerance_grad=0.0
    )
    with suppress(TimeoutError):  # the best so far is the result
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    images = pictures(logits.detach() if best is None else best).contiguous()
    return images, matching_error(observation, images, labels)
