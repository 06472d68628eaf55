"""`GradientReconstructor` and its neighbors, as calls to the attack of this package.

A call leaves no trace: the model, its mode and its gradients, the config and the global random state are the
same afterwards. Starts are drawn from a copy of the global random state, so a seed gives the pictures of 2020.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inversefed.attacks.labels import JointLabels, RecoveredLabels
from inversefed.compat.config import DEFAULT_CONFIG, LowestInception, attack_of, objective, validated
from inversefed.compat.metrics import InceptionScore, total_variation
from inversefed.errors import UpdateMismatchError
from inversefed.fl.clients import Client, FedAvg, FedSGD
from inversefed.fl.losses import CrossEntropy
from inversefed.fl.network import Network, freeze
from inversefed.fl.targets import check_labels
from inversefed.fl.threat import Observation
from inversefed.types import Budget, Params, Reconstruction, Step

__all__ = ["DEFAULT_CONFIG", "FedAvgReconstructor", "GradientReconstructor", "loss_steps", "reconstruction_costs"]

Constants = float | int | Sequence[float] | Tensor
MeanStd = tuple[Constants, Constants]


class GradientReconstructor:
    """Recover pictures from one gradient.

    Args:
        model: the network that made the gradient.
        mean_std: what its input normalization subtracts and divides by: numbers, lists or `[c, 1, 1]` tensors.
        config: any part of the 2020 config dictionary; the rest is `DEFAULT_CONFIG`.
        num_images: how many pictures made the gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        mean_std: MeanStd = (0.0, 1.0),
        config: Mapping[str, Any] = DEFAULT_CONFIG,
        num_images: int = 1,
    ) -> None:
        self.model = model
        self.mean_std = mean_std
        self.config = validated(config)
        self.num_images = num_images
        self.iDLG = True

    def reconstruct(
        self,
        input_data: Sequence[Tensor],
        labels: Tensor | None,
        img_shape: Sequence[int] = (3, 32, 32),
        dryrun: bool = False,
        eval: bool = True,
        tol: float | int | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Attack a gradient, given as tensors in the order of the model's parameters.

        Args:
            input_data: the gradient.
            labels: the labels, or `None` to recover them.
            img_shape: `(c, h, w)` of one picture.
            dryrun: stop after one iteration of one restart.
            eval: run the model in eval mode.
            tol: a matching cost at which no further restart is begun.

        Returns:
            The pictures in the network's normalized space, and `stats` with `opt`, the chosen score, `labels`,
            those that were used or found, and `status`, how it ended (`"finished"`, `"interrupted"`, ..).

        Raises:
            UpdateMismatchError: the gradient does not fit the model.
            InputError: it is not finite, labels are too few or out of range, or the trained network that
                `scoring_choice="inception"` needs cannot be had.
        """
        if self.config["scoring_choice"] == "inception":
            InceptionScore(batch_size=1)  # fails now rather than after the last restart
        network = self._network(img_shape, eval)
        update = _by_name(network, input_data)
        given = None if labels is None else self._given(labels, network)
        observation = Observation(network, self._client(), update, self.num_images, given)
        rule = RecoveredLabels() if self.num_images == 1 and self.iDLG else JointLabels(shared=True)
        attack = attack_of(self.config, rule, None if tol is None else float(tol))
        # The global stream is the dialect's source of randomness; the fork puts it back.
        with torch.random.fork_rng():
            result = attack(observation, torch.default_generator, Budget(on_step=_report(dryrun)))
        stats: dict[str, Any] = defaultdict(list)
        stats["opt"], stats["labels"] = self._score(result, observation), result.labels
        stats["status"] = result.status.value
        return result.images.detach(), stats

    def _network(self, img_shape: Sequence[int], eval_mode: bool) -> Network:
        mean, std = (torch.as_tensor(value, dtype=self._dtype).cpu() for value in self.mean_std)
        model = copy.deepcopy(self.model).eval() if eval_mode else self.model
        return freeze(model, img_shape, low=-mean / std, high=(1 - mean) / std)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def _given(self, labels: Tensor, network: Network) -> Tensor:
        check_labels(labels, self.num_images, network)
        return labels.to(network.device).long()

    def _client(self) -> Client:
        return FedSGD()

    def _score(self, result: Reconstruction, observation: Observation) -> float:
        choice = self.config["scoring_choice"]
        if choice == "tv":
            return float(total_variation(result.images))
        if choice == "inception":
            return float(LowestInception()(result.images, observation))
        if choice in ("pixelmean", "pixelmedian") and result.candidates[0].soft_labels is not None:
            return self._score_of_combined(result.images, observation)
        return result.loss

    def _score_of_combined(self, images: Tensor, observation: Observation) -> float:
        """With open labels, 2020 scored a combined picture by the network's own predictions, through softmax twice."""
        targets = observation.network.features(images).softmax(dim=1).softmax(dim=1)
        cost = objective(*(self.config[key] for key in ("cost_fn", "indices", "weights")))
        with torch.no_grad():
            return float(cost(observation.client(observation.network, images, targets), observation.update))


class FedAvgReconstructor(GradientReconstructor):
    """Recover pictures from a weight update of several local steps.

    Args:
        model: the network before the update.
        mean_std: as for `GradientReconstructor`.
        local_steps: how many steps the client took.
        local_lr: its learning rate.
        config: as for `GradientReconstructor`.
        num_images: how many pictures it holds.
        use_updates: whether the input is new minus old weights, or the new weights.
        batch_size: pictures a step, walked through in consecutive slices; 0 for all.
    """

    def __init__(
        self,
        model: nn.Module,
        mean_std: MeanStd = (0.0, 1.0),
        local_steps: int = 2,
        local_lr: float | int = 1e-4,
        config: Mapping[str, Any] = DEFAULT_CONFIG,
        num_images: int = 1,
        use_updates: bool = True,
        batch_size: int = 0,
    ) -> None:
        super().__init__(model, mean_std, config, num_images)
        self.local_steps = local_steps
        self.local_lr = local_lr
        self.use_updates = use_updates
        self.batch_size = batch_size

    def _client(self) -> Client:
        return _local_client(self.local_steps, self.local_lr, self.batch_size, self.use_updates)


def loss_steps(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    lr: float | int = 1e-4,
    local_steps: int = 4,
    use_updates: bool = True,
    batch_size: int = 0,
) -> list[Tensor]:
    """Take local steps and return the weights' change, or the new weights, in the order of the parameters.

    Args:
        model: the network, in the mode that is wanted; it is not changed.
        inputs: normalized pictures.
        labels: their classes.
        loss_fn: (logits, labels) -> loss; summed if it is not a scalar. Mean cross entropy by default.
        lr: learning rate.
        local_steps: number of steps.
        use_updates: the change instead of the new weights.
        batch_size: pictures a step; 0 for all.
    """
    loss = CrossEntropy() if loss_fn is None else lambda logits, targets: loss_fn(logits, targets).sum()
    network = freeze(model, inputs.shape[1:], loss=loss)
    update = _local_client(local_steps, lr, batch_size, use_updates)(network, inputs, labels)
    return list(update.values())


def reconstruction_costs(
    gradients: Sequence[Sequence[Tensor]],
    input_gradient: Sequence[Tensor],
    cost_fn: str = "l2",
    indices: str | Sequence[int] = "def",
    weights: str = "equal",
) -> Tensor:
    """Mean matching cost of several gradients against one.

    Args:
        gradients: a list of gradients, each in the order of the parameters.
        input_gradient: what they are compared with.
        cost_fn: sim, l2, l1, max or simlocal.
        indices: a name of the dialect, or positions.
        weights: equal, linear or exp.
    """
    cost = objective(cost_fn, indices, weights)
    observed = _numbered(input_gradient)
    return torch.stack([torch.as_tensor(cost(_numbered(gradient), observed)) for gradient in gradients]).mean()


def _local_client(local_steps: int, lr: float | int, batch_size: int, use_updates: bool) -> FedAvg:
    return FedAvg(local_steps, float(lr), batch_size, sends="delta" if use_updates else "weights")


def _numbered(tensors: Sequence[Tensor]) -> Params:
    return {str(position): tensor for position, tensor in enumerate(tensors)}


def _by_name(network: Network, tensors: Sequence[Tensor]) -> Params:
    if len(tensors) != len(network.params):
        raise UpdateMismatchError(
            f"the model has {len(network.params)} trainable parameters, but the input holds {len(tensors)} tensors"
        )
    return {name: tensor.detach() for name, tensor in zip(network.params, tensors, strict=True)}


def _report(dryrun: bool) -> Callable[[Step], bool]:
    """Say how far it is, as 2020 did: at the start, every 500 iterations and at the end."""

    def tell(step: Step) -> bool:
        if (step.iteration - 1) % 500 == 0 or step.iteration == step.iterations:
            print(f"It: {step.iteration - 1}. Rec. loss: {step.loss:2.4f}.")
        return dryrun

    return tell
