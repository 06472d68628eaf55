"""The targets of examples whose outputs, and the loss's derivative with respect to them, are known.

    dl/do (o, y) = s    =>    y

A loss with a link (`losses.Linked`) says so itself. Of any other, called on targets, each class is tried, or, where the
derivative is affine in the target, `s = J (y - mu(o))`, it is solved for. Own derivation.
"""

import torch
from torch import Tensor

from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.fl.losses import link_of
from inversefed.fl.network import Network
from inversefed.fl.targets import as_targets, class_count, forms, loss_slope
from inversefed.types import Logits, Targets

__all__ = ["recovered_targets"]

_AFFINE, _HARD = 1e-4, 1e-3
"""How far a derivative may be from affine in the target, relative; how near 0 or 1 an answer counts as that."""

_FAR = 4.0
"""An output at which a network is sure of an answer, and the prediction of a regression is no probability."""


def recovered_targets(network: Network, outputs: Logits, slopes: Tensor) -> Targets:
    """The targets under which the loss of a batch has a derivative, as the loss takes them.

    Answers of yes or no, and classes, are 0 and 1 where all come out near that.

    Args:
        network: for its loss, in the number format of what follows.
        outputs: what it says of the examples, `[n, k]`.
        slopes: the derivative of the loss of this batch with respect to them, `[n, k]`.

    Raises:
        ThreatModelError: the derivative does not tell the target, as beyond the delta of Huber's loss.

    >>> from torch import nn
    >>> from inversefed.fl.losses import MeanSquaredError
    >>> from inversefed.fl.network import freeze
    >>> network = freeze(nn.Sequential(nn.Flatten(), nn.Linear(12, 1)), (3, 2, 2), loss=MeanSquaredError())
    >>> outputs, targets = torch.zeros(2, 1), torch.tensor([[0.35], [7.0]])
    >>> recovered_targets(network, outputs, loss_slope(network, outputs, targets))
    tensor([0.3500, 7.0000])
    """
    taken, single = forms(network), network.num_classes == 1
    link = link_of(network.loss)
    if link is not None:
        rows = link.recover(outputs, slopes)
        open_ones = int(rows.isfinite().logical_not().sum())
        if open_ones:
            raise ThreatModelError(
                f"the derivative of the loss {network.loss!r} leaves {open_ones} of {rows.numel()} targets open: it is "
                "saturated there, and tells no more than their side; hand the labels over (known labels)"
            )
    elif "classes" in taken and not single:
        return _nearest_class(network, outputs, slopes)
    else:
        rows = _solved(network, outputs, slopes)
    rows = _whole(network, rows)
    if "classes" in taken and not single and ("rows" not in taken or _are_classes(rows)):
        return rows.argmax(dim=1)
    return rows.flatten() if "values" in taken and single else rows


def _are_classes(rows: Tensor) -> bool:
    return torch.equal(rows, torch.nn.functional.one_hot(rows.argmax(dim=1), rows.shape[1]).to(rows))


def _whole(network: Network, rows: Tensor) -> Tensor:
    """Shares rounded to 0 and 1 where all are near, and else within [0, 1]; other numbers as they are."""
    if not _predicts_shares(network, rows):
        return rows
    rounded = rows.clamp(0, 1).round()
    return rounded if bool(((rows - rounded).abs() < _HARD).all()) else rows.clamp(0, 1)


def _predicts_shares(network: Network, like: Tensor) -> bool:
    """Whether what the network predicts, the target without a derivative, lies in [0, 1] for all outputs."""
    far = torch.stack([like[0] * 0 - _FAR, like[0] * 0, like[0] * 0 + _FAR])
    link = link_of(network.loss)
    try:
        predicted = link.predict(far) if link is not None else _solved(network, far, 0 * far)
    except UnsupportedNetworkError:  # it takes no outputs but probabilities
        return True
    return bool(((predicted >= 0) & (predicted <= 1)).all())


def _refused(network: Network) -> ThreatModelError:
    return ThreatModelError(
        f"the derivative of the loss {network.loss!r} does not tell the labels; hand them over (known labels)"
    )


def _nearest_class(network: Network, outputs: Logits, slopes: Tensor) -> Targets:
    """For each example the class whose derivative is nearest.

    Raises:
        ThreatModelError: of some example another class has the same.
    """
    classes = as_targets(network, torch.arange(class_count(network), device=outputs.device))
    away = torch.stack([(loss_slope(network, outputs, y.expand(len(outputs))) - slopes).norm(dim=1) for y in classes])
    nearest = away.sort(dim=0)
    if bool((nearest.values[1] - nearest.values[0] <= _AFFINE * slopes.norm(dim=1)).any()):
        raise _refused(network)
    return classes[nearest.indices[0]]


def _solved(network: Network, outputs: Logits, slopes: Tensor) -> Tensor:
    """The numbers `[n, k]` whose derivative it is.

    Raises:
        ThreatModelError: the derivative is not affine in them, or the same for several.
    """
    taken, (count, width) = forms(network), outputs.shape
    values = "rows" not in taken
    if values and ("values" not in taken or width > 1):
        raise _refused(network)

    def slope(row: Tensor) -> Tensor:
        return loss_slope(network, outputs, row.expand(count) if values else row.expand(count, width))

    own = torch.eye(width, dtype=outputs.dtype, device=outputs.device)
    zero = slope(0 * own[0])
    jacobian = torch.stack([slope(each) - zero for each in own], dim=2)
    off = (slope(0.5 + 0 * own[0]) - zero - jacobian.sum(dim=2) / 2).norm()
    sizes = torch.linalg.svdvals(jacobian)
    if off > _AFFINE * jacobian.norm() or bool((sizes[:, -1] <= _AFFINE * sizes[:, 0]).any()):
        raise _refused(network)
    found: Tensor = torch.linalg.solve(jacobian, (slopes - zero)[..., None])[..., 0]
    return found
