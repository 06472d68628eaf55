"""A network as a value: a private snapshot of a module, called as a function of its weights.

    logits = f(params, (images - mean) / std)

`freeze` copies any `torch.nn.Module` once, and `Network.apply` runs the copy by
`torch.func.functional_call`: no layer type is special, and the caller's module, its gradients and
its buffers are never written. Pictures come in pixel space; the normalization belongs to the network.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from inversefed.errors import InputError, UnsupportedNetworkError
from inversefed.fl.apart import apart
from inversefed.fl.asked import Asked
from inversefed.fl.dropout import given_masks
from inversefed.fl.foreign import foreign_code
from inversefed.fl.hooks import record
from inversefed.fl.losses import Loss, as_loss, in_precision, labels_are_inputs
from inversefed.fl.second_derivatives import TwiceDifferentiable, twice_differentiable, unwrap_parts, unwrapped
from inversefed.inputs import Images, InputSpace
from inversefed.types import Inputs, Logits, Params, PlaceLogits

__all__ = ["Loss", "Network", "eval_mode", "freeze"]

_Constants: TypeAlias = float | Sequence[float] | Tensor | None


@dataclass(frozen=True, eq=False)
class Network(Asked):
    """A frozen classifier and all that its owner knows of it.

    Args:
        module: the private copy; nothing outside this file calls it.
        params: the trainable weights by name; leaves that require grad.
        loss: what the client minimizes.
        mean: subtracted from pictures, `[c, 1, 1]`; of another input space `[side, 1, ..]` for its first side.
        std: divides them, of the same shape.
        low: the least value of a pixel, broadcastable to a picture.
        high: the greatest.
        space: what it takes.
        num_classes: width of the logits.
        head: name of the last layer, whose rows are the classes; `None` where that is unclear.
        mask_seed: fixes what random layers in train mode (dropout) draw, so that `apply` is a function, and the order
            in which a client shuffles: what a client draws for itself.
        replaces: operations that torch cannot differentiate twice run in an equal form that it can.
        masks: what dropout layers multiply by instead, where it is given: by layer name, `[steps, n, ..]`, or
            `[n, ..]` within a step.
        functional: let clients differentiate by `torch.func`, for transforms and compilers that take a whole step;
            random layers are not fixed then.
        carried: running buffers by name, where they are to be taken from one call to the next: each call starts from
            them and leaves in this dictionary what it made of them. `None`: each starts from the module's own.
        micro_batch: how many pictures the module is run on at once, one such part of a batch after another, as a
            client that accumulates gradients does; 0 for the whole batch. It tells where BatchNorm normalizes by what
            it is given, and in the last digits.
        autocast: the number format that `torch.autocast` lowers operations to, in the kernels that PyTorch chooses,
            some of which cannot be differentiated twice; `None` for none.
    """

    module: nn.Module = field(repr=False)
    params: Params = field(repr=False)
    loss: Loss
    mean: Tensor = field(repr=False)
    std: Tensor = field(repr=False)
    low: Tensor = field(repr=False)
    high: Tensor = field(repr=False)
    space: InputSpace
    num_classes: int = 0
    head: str | None = None
    mask_seed: int = 0
    functional: bool = False
    carried: dict[str, Tensor] | None = field(default=None, repr=False)
    replaces: bool = False
    masks: Params = field(default_factory=dict, repr=False)
    micro_batch: int = 0
    autocast: torch.dtype | None = None

    _is_plain: bool = field(init=False, repr=False)
    """Pixels are inputs as they are; a product with 1 would still round the gradient in another order."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_is_plain", not bool(self.mean.any()) and bool((self.std == 1).all()))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one example: `(c, h, w)` of a picture."""
        return self.space.shape

    @property
    def grid(self) -> tuple[int, int, int]:
        """One example read as a picture, `(c, h, w)`: a series has height one, a row of numbers a single place.

        Raises:
            UnsupportedNetworkError: it is no such thing, as ids are not.
        """
        shape = self.space.shape
        if not self.space.middle(1).is_floating_point() or len(shape) > 3:
            raise UnsupportedNetworkError(f"this needs real numbers, and the network takes {self.space.noun}s")
        channels, *places = shape
        height, width = (1, 1, *places)[-2:]
        return channels, height, width

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.params.values()), self.mean).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' number format, in which everything is computed."""
        return next(iter(self.params.values()), self.mean).dtype

    def apply(self, params: Params, images: Inputs) -> Logits | PlaceLogits:
        """Run the network on pictures with the given weights.

        Args:
            params: all trainable weights, by name.
            images: pictures in pixel space.
        """
        return self.apply_normalized(params, self.normalize(images))

    def apply_normalized(self, params: Params, inputs: Tensor) -> Tensor:
        """Run the network on inputs that are normalized already.

        Raises:
            UnsupportedNetworkError: the module's forward pass raises an error, or returns anything but one tensor.
        """
        if self.functional:  # transforms and compilers take the whole step, and have errors of their own
            return self._run(params, inputs)
        with foreign_code(f"the network's forward pass on inputs of shape {tuple(inputs.shape)}"):
            return self._run(params, inputs)

    def _run(self, params: Params, inputs: Tensor) -> Tensor:
        if self.micro_batch and len(inputs) > self.micro_batch:
            places = range(0, len(inputs), self.micro_batch)
            parts = [slice(start, start + self.micro_batch) for start in places]
            return torch.cat([self._masked(part)._run_at_once(params, inputs[part]) for part in parts])
        return self._run_at_once(params, inputs)

    def _masked(self, part: slice) -> "Network":
        """The same network with the masks of a part of the batch."""
        return replace(self, masks={name: mask[part] for name, mask in self.masks.items()}) if self.masks else self

    def _run_at_once(self, params: Params, inputs: Tensor) -> Tensor:
        before = self.module.named_buffers() if self.carried is None else self.carried.items()
        buffers = {name: buffer.clone() for name, buffer in before}
        # Fused attention kernels have no double backward; in a lower format they round otherwise.
        attention = sdpa_kernel(SDPBackend.MATH) if self.autocast is None else nullcontext()
        fixed = nullcontext() if self.functional else self._fixed_masks()
        twice = TwiceDifferentiable() if self.replaces else nullcontext()
        with attention, fixed, given_masks(self.module, self.masks), twice, self._lowered():
            # A first layer that works in place would write into the caller's pictures.
            outputs = functional_call(self.module, {**params, **buffers}, (inputs.clone(),))
        if not isinstance(outputs, Tensor):
            raise _no_tensor(outputs)
        if self.carried is not None:
            self.carried.update(buffers)
        return outputs if self.autocast is None else outputs.to(self.dtype)

    def normalize(self, images: Tensor) -> Tensor:
        """Take pictures from pixel space into the network's input space."""
        if self._is_plain:
            return images
        return (images - self.mean) / self.std

    def denormalize(self, inputs: Tensor) -> Tensor:
        """Take network inputs back into pixel space."""
        if self._is_plain:
            return inputs
        return inputs * self.std + self.mean

    def held(self, images: Tensor) -> Tensor:
        """Examples on the network's device: real numbers in its number format, ids as they are."""
        return images.to(self.device, self.dtype) if images.is_floating_point() else images.to(self.device)

    def features(self, images: Inputs) -> Logits | PlaceLogits:
        """Logits of pictures under the network's own weights, without a graph."""
        with torch.no_grad():
            return self.apply(self.params, self.held(images))

    def without_head(self) -> "Network":
        """The same network up to what goes into its head: its outputs are features `[n, d]` instead of logits."""
        return replace(self.without(str(self.head)), head=None)

    def without(self, name: str) -> "Network":
        """The same network, its layer of that name passing on what it is given."""
        module = apart(self.module)
        path, _, last = name.rpartition(".")
        setattr(module.get_submodule(path), last, nn.Identity())
        own = {each for each, _ in module.named_parameters()}
        return replace(self, module=module, params={n: p for n, p in self.params.items() if n in own})

    def linear_layers(self) -> tuple[str, ...]:
        """Names of all `torch.nn.Linear` layers, in the order of the module."""
        return tuple(name for name, layer in self.module.named_modules() if isinstance(layer, nn.Linear))

    def linear_inputs(self, images: Inputs) -> dict[str, Tensor]:
        """What goes into each linear layer that runs on these pictures, in the order they run."""
        layers = {name: self.module.get_submodule(name) for name in self.linear_layers()}
        at_once = replace(self, micro_batch=0)
        _, runs = record(layers, lambda: at_once.features(images), lambda _, __, inputs: inputs.detach())
        return {run.name: run.inputs for run in runs}

    def operations(self) -> int:
        """Floating-point operations of one picture's forward pass, those of matrix products and convolutions.

        Counted in eval mode: in train mode BatchNorm refuses one picture where a layer has one value a channel.
        """
        with FlopCounterMode(display=False) as counter, eval_mode(self.module):
            self.features(self.space.middle(1))
        return int(counter.get_total_flops())

    def with_masks(self, seed: int) -> "Network":
        """The same network with other draws in its random layers."""
        return replace(self, mask_seed=seed)

    def at_step(self, step: int) -> "Network":
        """The same network as local step number `step`, from 0, sees it: with draws or masks of its own."""
        if not self.masks and (step == 0 or self.functional):
            return self  # a compiled step cannot make another value
        masks = {name: mask[step] for name, mask in self.masks.items()}
        return replace(self, mask_seed=self.mask_seed + step, masks=masks)

    def to(self, dtype: torch.dtype) -> "Network":
        """The same network in another number format."""
        params = {name: weight.detach().to(dtype).requires_grad_() for name, weight in self.params.items()}
        constants = {name: getattr(self, name).to(dtype) for name in ("mean", "std", "low", "high")}
        loss = in_precision(self.loss, self.num_classes, self.dtype, dtype, self.device)
        return replace(self, module=apart(self.module).to(dtype), params=params, loss=loss, **constants)

    def _lowered(self) -> AbstractContextManager[object]:
        """Operations run in a lower number format; without a cache, for each part of a batch casts weights anew."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast, cache_enabled=False)

    @contextmanager
    def _fixed_masks(self) -> Iterator[None]:
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            # Not torch.manual_seed: it queues a call for every accelerator that is not there.
            torch.default_generator.manual_seed(self.mask_seed)
            if self.device.type == "cuda":
                torch.cuda.default_generators[self.device.index or 0].manual_seed(self.mask_seed)
            yield


def freeze(
    module: nn.Module,
    space: InputSpace | Sequence[int],
    *,
    mean: _Constants = None,
    std: _Constants = None,
    loss: Loss | None = None,
    low: _Constants = 0.0,
    high: _Constants = 1.0,
) -> Network:
    """Snapshot a module as a `Network`; the module is left as it was.

    Wrappers are taken off: what `torch.compile`, DataParallel and DistributedDataParallel hold computes the same.

    Args:
        module: any classifier, in the mode (train or eval) that the client uses.
        space: what it takes; `(c, h, w)` for pictures of that shape.
        mean: what its input normalization subtracts, a number or one a channel; `None` for that of the space, 0 for
            pictures.
        std: what it divides by; `None` for that of the space, 1 for pictures.
        loss: the client's training loss; `None` for the mean cross entropy.
        low: the least value of a pixel.
        high: the greatest.

    Raises:
        UnsupportedNetworkError: the module cannot be copied, has nothing to train or lazy layers that were never
            built, or does not map pictures of that shape to `[n, classes]`.
        InputError: the normalization does not fit the number of channels.

    >>> network = freeze(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2), mean=0.5, std=0.25)
    >>> network.num_classes, network.head, network.normalize(torch.full((3, 1, 1), 0.75)).flatten().tolist()
    (5, '1', [1.0, 1.0, 1.0])
    """
    space = space if isinstance(space, InputSpace) else Images(tuple(space))
    own_mean, own_std = space.normalization()
    private = _copy(unwrapped(module))
    params = {name: p.detach().requires_grad_() for name, p in private.named_parameters() if p.requires_grad}
    if not params:
        raise UnsupportedNetworkError(
            "the network has no trainable parameters, so it has no update; call requires_grad_(True) on those it trains"
        )
    first = next(iter(params.values()))
    if not first.is_floating_point() or first.is_meta:
        raise UnsupportedNetworkError(f"weights must be real numbers on a device; got {first.dtype} on {first.device}")

    def constant(value: _Constants, default: float | Tensor, name: str) -> Tensor:
        return _per_channel(default if value is None else value, space.shape, name).to(first.device, first.dtype)

    network = Network(
        private,
        params,
        as_loss(loss),
        mean=constant(mean, own_mean, "mean"),
        std=constant(std, own_std, "std"),
        low=constant(low, 0.0, "low"),
        high=constant(high, 1.0, "high"),
        space=space,
    )
    if not bool((network.std > 0).all()):
        raise InputError(f"std must be positive in every channel, but is {network.std.flatten().tolist()}")
    with TwiceDifferentiable() as mode:
        num_classes, head = _probe(network)
    minimized = twice_differentiable(network.loss, num_classes, first.detach())
    return replace(network, loss=minimized, num_classes=num_classes, head=head, replaces=mode.replaced)


def _copy(module: nn.Module) -> nn.Module:
    if any(nn.parameter.is_lazy(each) for each in module.parameters()):
        raise UnsupportedNetworkError(
            "the network has lazy layers that were never built, so there are no weights yet; call it once on a batch"
        )
    try:
        private = copy.deepcopy(module)
    except Exception as error:  # a module may hold anything, and define how it is copied
        raise UnsupportedNetworkError(
            f"the network cannot be copied ({error}); remove old-style weight_norm, or give a freshly built module"
        ) from error
    unwrap_parts(private)
    return private


def _per_channel(value: float | Sequence[float] | Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    channels = shape[0]
    try:
        constants = torch.as_tensor(value, dtype=torch.float64).detach().flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must be numbers, one for all channels or one a channel; got {value!r}") from error
    if constants.numel() not in (1, channels):
        raise InputError(f"{name} must be one number or {channels}, one a channel; got {constants.numel()}")
    if not bool(constants.isfinite().all()):
        raise InputError(f"{name} must be finite; got {constants.tolist()}")
    return constants.expand(channels).reshape(channels, *(1 for _ in shape[1:]))


def _probe(network: Network) -> tuple[int, str | None]:
    """Run the network once in eval mode: how wide are the logits, and which layer makes them?"""
    named = network.module.named_modules()
    layers = {name: layer for name, layer in named if isinstance(layer, nn.Linear | nn.Conv2d)}
    doing = f"the network cannot run on {network.space.noun}s of shape {network.image_shape}: its forward pass"
    with foreign_code(doing), torch.no_grad(), eval_mode(network.module):
        inputs = network.normalize(network.held(network.space.middle(2)))
        logits, runs = record(
            layers, lambda: network._run(network.params, inputs), lambda name, *_: len(layers[name].weight)
        )
    _check_logits(logits, network)
    heads = [run.name for run in runs if run.inputs == logits.shape[-1]]
    head = heads[-1] if heads and f"{heads[-1]}.weight".lstrip(".") in network.params else None
    return logits.shape[-1], head


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Within it, all parts of a module are in eval mode; each is put back then."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def _check_logits(logits: Tensor, network: Network) -> None:
    if labels_are_inputs(network.loss):
        if logits.shape[:-1] != (2, *network.space.shape):
            raise UnsupportedNetworkError(
                f"for {network.loss!r} a network must map 2 sentences to logits {[2, *network.space.shape]} and one a "
                f"token of the vocabulary; this one gave shape {tuple(logits.shape)}"
            )
        return
    if logits.ndim == 3:
        raise UnsupportedNetworkError(
            f"this network gave logits of shape {tuple(logits.shape)}, which are those of every place; for sentences "
            "give loss=NextToken(pad=..), else let it return logits [n, classes]"
        )
    if logits.ndim != 2 or logits.shape[0] != 2:
        raise UnsupportedNetworkError(
            f"a network must map 2 images to logits [2, classes]; this one gave shape {tuple(logits.shape)}"
        )


def _no_tensor(outputs: object) -> UnsupportedNetworkError:
    """The error for what a module returned that is no tensor: what came, and how to have the logits alone."""
    parts = _parts(outputs)
    came = type(outputs).__name__ + (f" of {', '.join(parts[:8])}" if parts else "")
    wrap = "wrap the module in one whose forward returns the logits alone"
    if "logits" in parts:
        by_key = isinstance(outputs, Mapping) and not is_dataclass(outputs)
        wrap += ", outputs['logits']" if by_key else ", outputs.logits"
    if any(name.startswith("aux_logits") for name in parts):  # torchvision's GoogLeNet and Inception
        wrap = f"build the network with aux_logits=False, or call .eval(); or {wrap}"
    return UnsupportedNetworkError(
        f"a network must return one tensor of logits [n, classes]; this one gave {came}; {wrap}"
    )


def _parts(outputs: object) -> tuple[str, ...]:
    """What a container of outputs holds: its fields or keys by name, or the kinds of its entries."""
    if isinstance(outputs, Mapping):
        return tuple(map(str, outputs))
    if is_dataclass(outputs):
        return tuple(each.name for each in fields(outputs))
    if isinstance(outputs, tuple | list):
        named = getattr(outputs, "_fields", None)  # what tells a namedtuple
        return tuple(named or (f"{type(each).__name__}{_shape(each)}" for each in outputs))
    return ()


def _shape(part: object) -> str:
    return str(list(part.shape)) if isinstance(part, Tensor) else ""


def first_names(module: nn.Module) -> dict[str, str]:
    """Every name of a tied parameter to the one that the network knows it by."""
    first: dict[int, str] = {}
    both = module.named_parameters(remove_duplicate=False)
    return {name: first.setdefault(id(weight), name) for name, weight in both}
