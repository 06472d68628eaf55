"""The hooks that look on while a loop trains, and what they keep.

A hook of the optimizer tells of each step once it was taken: then its gradients are there, added up over micro-batches,
no longer scaled by a `GradScaler`, and also where the optimizer runs the loop's closure itself. Hooks of the model tell
of how many examples each backward pass was, in which mode and number format. Of the examples their number and shape are
kept, and nothing else.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from inversefed.errors import ConfigError
from inversefed.fl.second_derivatives import unwrapped
from inversefed.integrations.optimizer_settings import OptimizerSettings, inner_optimizer, rate_of, settings_of
from inversefed.integrations.recorded_steps import StepTaken

__all__ = ["Recorder", "tensors_in"]


class Recorder:
    """What is seen of a loop, from `start` to `stop`.

    Args:
        model: what the loop calls.
        optimizer: of its weights, or of some of them.
        limit: how many steps are recorded; `None` for all.
        keeps_gradient: whether the gradient of the first step is kept, as long as it is the only one.
        processes: how many put their gradients together before each step; `None` to ask DistributedDataParallel.

    Raises:
        ConfigError: no optimizer of this model.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, limit: int | None, keeps_gradient: bool, processes: int | None
    ) -> None:
        self.module = unwrapped(model)
        """The model without its wrappers."""
        self.settings = OptimizerSettings({})
        """Of the optimizer, before the first step."""
        self.taken: list[StepTaken] = []
        """The steps so far."""
        self.skipped = 0
        """Steps that a `GradScaler` left out within the optimizer."""
        self.before: dict[str, Tensor] = {}
        """Weights and buffers at the start, by name."""
        self.after: dict[str, Tensor] = {}
        """The same at the end."""
        self.gradient: dict[str, Tensor] = {}
        """Of the only step, as the optimizer saw it."""
        self.modes: dict[str, bool] = {}
        """Which parts of the module were in train mode when it first ran."""
        self.shape: tuple[int, ...] = ()
        """Of one example, as the model was given it."""
        self.autocast: torch.dtype | None = None
        """What operations were lowered to."""
        self._model, self._optimizer = model, inner_optimizer(optimizer)
        self._limit, self._keeps_gradient = limit, keeps_gradient
        self._processes = _processes(model) if processes is None else processes
        self._handles: list[RemovableHandle] = []
        self._parts: list[int] = []
        self._is_told = False
        self.weights = _trained(self.module, self._optimizer)
        """The weights that the optimizer trains, by name."""

    @property
    def complete(self) -> bool:
        """Whether all steps were taken that are asked for."""
        return len(self.taken) == self._limit

    def start(self) -> None:
        """Keep the weights, and look on from now."""
        self.settings = settings_of(self._optimizer, self._ids())
        self.before = _state(self.module)
        holders = {name.rpartition(".")[0] for name in self.weights}
        self._handles = [
            self._model.register_forward_hook(self._ran, with_kwargs=True),
            self._model.register_forward_pre_hook(self._looked_at),
            *(self.module.get_submodule(each).register_forward_pre_hook(self._looked_at) for each in sorted(holders)),
            self._optimizer.register_step_post_hook(self._stepped),
        ]

    def stop(self) -> None:
        """Look on no longer; keep the weights as they are, unless they were kept at the last step."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if not self.after:
            self.after = _state(self.module)

    def abandon(self) -> None:
        """Look on no longer, and keep nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.before, self.after, self.gradient = [], {}, {}, {}

    def count(self, examples: int, shape: tuple[int, ...] = ()) -> None:
        """Be told that the next backward pass is of so many examples; from then on nothing else is counted."""
        if not self._is_told:
            self._parts.clear()
        self._is_told, self.shape = True, shape or self.shape
        self._add(examples)

    def _ids(self) -> dict[int, str]:
        return {id(weight): name for name, weight in self.weights.items()}

    def _looked_at(self, *_: object) -> None:
        """Before a part of the model runs: modes, and the number format of its operations."""
        if self.complete or not torch.is_grad_enabled():
            return
        device = next(iter(self.weights.values())).device.type
        if torch.is_autocast_enabled(device):
            self.autocast = torch.get_autocast_dtype(device)
        self.modes = self.modes or _modes(self.module)

    def _ran(self, _: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        """After the model ran: its examples count once a gradient comes back to its outputs."""
        given = next(tensors_in((args, kwargs)), None)
        if self.complete or given is None or not given.ndim or not torch.is_grad_enabled():
            return
        shape = tuple(given.shape)
        back: list[bool] = []

        def reached(_: Tensor) -> None:
            if not back:
                back.append(True)
                self._reached(shape)

        for each in tensors_in(outputs):
            if each.requires_grad:
                each.register_hook(reached)  # type: ignore[no-untyped-call]

    def _reached(self, shape: tuple[int, ...]) -> None:
        """A gradient came back to outputs of inputs of that shape."""
        self.shape = self.shape or shape[1:]
        if not self._is_told:
            self._add(shape[0])

    def _add(self, examples: int) -> None:
        if self.complete:
            return
        if not any(weight.grad is not None and bool(weight.grad.any()) for weight in self.weights.values()):
            self._parts.clear()  # the gradients so far were dropped, as where a GradScaler leaves out a step
        self._parts.append(examples)

    def _stepped(self, optimizer: Optimizer, *_: object) -> None:
        """After a step."""
        if self.complete:
            return
        infinite = vars(optimizer).get("found_inf")  # a GradScaler's, where the optimizer takes the scale off itself
        if isinstance(infinite, Tensor) and bool(infinite):
            self.skipped += 1
            return
        self.modes = self.modes or _modes(self.module)
        self.taken.append(StepTaken(tuple(self._parts) * self._processes, rate_of(optimizer, self._ids())))
        self._parts.clear()
        self.gradient = self._gradients() if self._keeps_gradient and len(self.taken) == 1 else {}
        self.after = _state(self.module) if len(self.taken) == self._limit else {}

    def _gradients(self) -> dict[str, Tensor]:
        """As they are; zeros where the loss did not depend on a weight."""
        return {
            name: (torch.zeros_like(weight) if weight.grad is None else weight.grad).detach().clone()
            for name, weight in self.weights.items()
        }


def _trained(module: nn.Module, optimizer: Optimizer) -> Mapping[str, Tensor]:
    """The weights of a module that an optimizer trains, by name.

    Raises:
        ConfigError: there are none.
    """
    own = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    named = {name: weight for name, weight in module.named_parameters() if weight.requires_grad and id(weight) in own}
    if not named:
        raise ConfigError(
            f"the optimizer, {type(optimizer).__name__}, holds no trained weight of the model, "
            f"{type(module).__name__}; build it from the parameters() of that model. Weights that are dealt out to "
            "several processes (FSDP, DeepSpeed) cannot be captured"
        )
    return named


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Copies of weights and buffers, by name."""
    state: Mapping[str, object] = module.state_dict()
    return {name: value.detach().clone() for name, value in state.items() if isinstance(value, Tensor)}


def _modes(module: nn.Module) -> dict[str, bool]:
    return {name: part.training for name, part in module.named_modules()}


def _processes(model: nn.Module) -> int:
    """How many processes put their gradients together before each step."""
    return torch.distributed.get_world_size() if isinstance(model, nn.parallel.DistributedDataParallel) else 1


def tensors_in(value: object) -> Iterator[Tensor]:
    """The tensors in arguments or outputs, however these are nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from tensors_in(each)
