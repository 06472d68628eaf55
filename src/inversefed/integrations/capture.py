"""Capture: the update that a training loop makes, recorded while it runs.

    capture(model, optimizer)      around one optimizer step or several, however they are made
    write(folder)                  before.safetensors, update.safetensors

What looks on is the recorder, what the steps come to is said by the metadata, and the client is the one that these
describe: whoever reads the files believes in the same.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from inversefed.errors import ConfigError
from inversefed.findings import Code
from inversefed.fl.apart import apart
from inversefed.fl.clients import Client
from inversefed.fl.foreign import foreign_code
from inversefed.fl.network import Loss, Network, freeze
from inversefed.fl.threat import Observation
from inversefed.inputs import InputSpace
from inversefed.integrations.recorded_steps import steps_in_words
from inversefed.integrations.recorder import Recorder
from inversefed.types import Finding, Inputs, Params, Targets
from inversefed.updates.described import described
from inversefed.updates.diagnosis import check_example
from inversefed.updates.files import write_tensors
from inversefed.updates.metadata import Kind, Metadata
from inversefed.updates.update import Update, as_observation, write_update

__all__ = ["Capture", "capture"]

_Constants = float | Sequence[float] | Tensor | None
_KINDS: Mapping[str, Kind] = {"gradient": "gradient", "delta": "weight_delta", "weights": "new_weights"}
_BEFORE, _UPDATE = "before.safetensors", "update.safetensors"


@dataclass(frozen=True, eq=False)
class _Result:
    tensors: Params = field(repr=False)
    metadata: Metadata
    findings: tuple[Finding, ...]


class Capture:
    """Record the update that a training loop makes, one optimizer step or several, and how it came to be.

    Nothing of the loop changes: its model, optimizer, random state and errors are its own. Where it ends by an error,
    nothing is written.

    Args:
        model: what the loop calls on its batches, wrapped or not; the first tensor that it is given is `[n, ..]`.
        optimizer: of its weights, or of some of them: the others are taken for frozen.
        sends: what the client sends: the `"gradient"` of a single step, `"delta"` for new minus old weights, or
            `"weights"` for the new ones, both with the running buffers. `None`: the gradient if there was one step,
            and the weights followed it and nothing else or no local step of ours would be the same; else the delta.
        steps: how many steps to record, the first ones; `None` for all within the `with`.
        num_examples: how many different examples the loop goes through; `None` if no step sees one again.
        loss_reduction: of the loop's loss over a batch; `None` for the mean.
        folder: where to write the files at the end; `None`: nowhere, until `write` is called.
        processes: how many processes put their gradients together before each step, with as many examples each; `None`
            for one, or those of a DistributedDataParallel. One of them is enough to write the files.

    Raises:
        ConfigError: no optimizer of this model, a setting that cannot be, or at the end of the `with`: no step was
            taken, or there is no one gradient of several.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with capture(model, optimizer) as update:
    ...     nn.functional.cross_entropy(model(torch.rand(2, 3, 2, 2)), torch.tensor([2, 0])).backward()
    ...     optimizer.step()
    >>> update.client, update.metadata.num_examples, list(update.tensors)
    (FedSGD(), 2, ['1.weight', '1.bias'])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        sends: Literal["gradient", "delta", "weights"] | None = None,
        steps: int | None = None,
        num_examples: int | None = None,
        loss_reduction: Literal["mean", "sum"] | None = None,
        folder: str | Path | None = None,
        processes: int | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigError(f"capture needs the model, a torch.nn.Module, and its optimizer; got {model!r}")
        if sends not in (None, *_KINDS) or (steps is not None and steps < 1):
            raise ConfigError(
                f"capture sends 'gradient', 'delta' or 'weights', of at least 1 step; got {sends!r} and {steps!r}"
            )
        self._stated = Metadata(num_examples=num_examples, loss_reduction=loss_reduction)
        self._sends, self._folder = sends, None if folder is None else Path(folder).expanduser()
        self._seen = Recorder(model, optimizer, steps, sends in (None, "gradient"), processes)
        self._found: _Result | None = None

    def __enter__(self) -> "Capture":
        """Look on from here."""
        self._seen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Look on no longer. An error of the loop passes as it is, and leaves nothing behind."""
        if error is not None:
            self._seen.abandon()
            return
        self._seen.stop()
        self._found = self._made()
        if self._folder is not None:
            self.write(self._folder)

    def examples(self, count: int, shape: Sequence[int] = ()) -> None:
        """Say that the next backward pass is of so many examples, where the model is not called as a whole.

        Args:
            count: in this process.
            shape: of one example.
        """
        self._seen.count(count, tuple(shape))

    @property
    def steps(self) -> int:
        """How many optimizer steps were taken so far."""
        return len(self._seen.taken)

    @property
    def complete(self) -> bool:
        """Whether as many steps were taken as are to be recorded."""
        return self._seen.complete

    @property
    def before(self) -> Params:
        """Weights and buffers from before the first step, by name; tied weights under each of their names."""
        self._result  # noqa: B018 - refuses before the end
        return self._seen.before

    @property
    def tensors(self) -> Params:
        """The update, by name: of the weights that the optimizer trains, and buffers where weights are sent."""
        return self._result.tensors

    @property
    def metadata(self) -> Metadata:
        """How the update came to be."""
        return self._result.metadata

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the metadata do not say exactly, and what makes the update hard to simulate."""
        return self._result.findings

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """The learning rate of each step; NaN where parameter groups differ."""
        return tuple(step.rate for step in self._seen.taken)

    @property
    def client(self) -> Client:
        """The client that makes this update of the same examples, in the order of the steps."""
        told = self.metadata
        summed = told.loss_reduction == "sum"
        return described(told, told.kind or "gradient", told.num_examples or told.batch_size or 1, summed)

    def write(self, folder: str | Path) -> Path:
        """Write the weights from before and the update, as `inversefed audit --weights .. --update ..` reads them.

        Returns:
            The folder. It is made where it is not there, and files of these names in it are replaced.

        Raises:
            InputError: it cannot be written to.
        """
        target = Path(folder).expanduser()
        write_tensors(target / _BEFORE, self.before, {})
        write_update(target / _UPDATE, Update(self.tensors, self.metadata))
        self._folder = target
        return target

    def command(self, network: str = "PACKAGE.MODULE:BUILD", mean: _Constants = None, std: _Constants = None) -> str:
        """The command line that audits the files.

        Args:
            network: where the shell finds the network: `pkg.mod:factory`, or a name of `inversefed list networks`.
            mean: what the loop's input normalization subtracts.
            std: what it divides by.

        Raises:
            ConfigError: the files were not written.
        """
        self._result  # noqa: B018 - refuses before the end
        if self._folder is None:
            raise ConfigError("the files of a capture have to be written before they are audited: update.write(folder)")
        words = ["inversefed", "audit", "--network", network, "--weights", str(self._folder / _BEFORE)]
        words += ["--update", str(self._folder / _UPDATE)]
        if len(self._seen.shape) == 3:
            words += ["--image-shape", *map(str, self._seen.shape)]
        for name, value in (("--mean", mean), ("--std", std)):
            words += (
                [] if value is None else [name, *(f"{each:g}" for each in torch.as_tensor(value).flatten().tolist())]
            )
        words += ["--train-mode"] if self._seen.modes.get("") else []
        return shlex.join(words)

    def network(
        self,
        *,
        mean: _Constants = None,
        std: _Constants = None,
        image_shape: Sequence[int] | None = None,
        loss: Loss | None = None,
        inputs: InputSpace | None = None,
    ) -> Network:
        """The network as it was before the first step, in the modes in which it then ran.

        Args:
            mean: what the loop's input normalization subtracts; `None` for 0.
            std: what it divides by; `None` for 1.
            image_shape: `(c, h, w)`; `None` for that of the examples that the model was given.
            loss: the training loss; `None` for the mean cross entropy.
            inputs: what the examples are, where they are no pictures; mean and std are then those of the space, if not
                given.

        Raises:
            UnsupportedNetworkError: the model cannot be copied, or does not map pictures to logits.
        """
        self._result  # noqa: B018 - refuses before the end
        module = apart(self._seen.module)
        with foreign_code("loading the weights from before into a copy of the model"):
            module.load_state_dict(dict(self._seen.before))
        for name, part in module.named_modules():
            part.training = self._seen.modes.get(name, part.training)
        for name, weight in module.named_parameters():
            weight.requires_grad_(name in self._seen.weights)
        module.register_forward_hook(_logits)
        return freeze(module, inputs or image_shape or self._seen.shape, mean=mean, std=std, loss=loss)

    def observation(
        self,
        *,
        mean: _Constants = None,
        std: _Constants = None,
        image_shape: Sequence[int] | None = None,
        loss: Loss | None = None,
        inputs: InputSpace | None = None,
        labels: Targets | None = None,
    ) -> Observation:
        """What a server sees that receives this update, for `inversefed.audit_observation`.

        Args:
            mean: as for `network`, and so are `std`, `image_shape`, `loss` and `inputs`.
            labels: where they are handed to the attack.

        Raises:
            UnsupportedNetworkError: the model cannot be copied, or does not map pictures to logits.
            InputError: an update that is not finite.
        """
        network = self.network(mean=mean, std=std, image_shape=image_shape, loss=loss, inputs=inputs)
        update = Update(self.tensors, self.metadata)
        return as_observation(network, update, num_examples=self.metadata.num_examples, labels=labels)

    def check(
        self,
        images: Inputs,
        labels: Targets,
        *,
        mean: _Constants = None,
        std: _Constants = None,
        loss: Loss | None = None,
        inputs: InputSpace | None = None,
    ) -> Finding:
        """Ask whether the client that was described makes this update of the loop's own examples.

        Args:
            images: all examples in the order of the steps, pixel space, `[n, c, h, w]`, or as the space has them.
            labels: their classes, or numbers as the loss takes them.
            mean: as for `network`, and so are `std`, `loss` and `inputs`.

        Returns:
            An info if so, with the cosine and the ratio of the norms as evidence; else an error that says what would
            make them match, if that was found.
        """
        network = self.network(mean=mean, std=std, image_shape=images.shape[1:], loss=loss, inputs=inputs)
        return check_example(network, self.tensors, self.metadata, images, labels)[0]

    @property
    def _result(self) -> _Result:
        if self._found is None:
            raise ConfigError("the update is there once the `with capture(..)` has ended, and without an error")
        return self._found

    def _made(self) -> _Result:
        """The update of the steps that were taken."""
        seen, sends = self._seen, self._sends_what()
        metadata, findings = steps_in_words(seen.taken, _KINDS[sends], seen.settings, self._stated.num_examples)
        found = [*findings, *_frozen(seen), *_random(seen)]
        modes = [seen.modes.get(name, False) for name in _normalizing(seen.module)]
        words: dict[str, Any] = {"loss_reduction": self._stated.loss_reduction}
        if modes and len(set(modes)) == 1:
            words["bn_mode"] = "train" if modes[0] else "eval"
        if seen.autocast is not None:
            words["autocast"] = str(seen.autocast).removeprefix("torch.")
        return _Result(self._tensors(sends), metadata.overridden(Metadata(**words)), tuple(found))

    def _sends_what(self) -> str:
        """What is sent.

        Raises:
            ConfigError: nothing, or not what was asked for.
        """
        seen = self._seen
        if not seen.taken:
            raise ConfigError(
                "the optimizer took no step within the capture"
                + (f", and left {seen.skipped} out, whose gradients were infinite" if seen.skipped else "")
                + "; call its step() there. A GradScaler leaves out steps whose gradients are infinite"
            )
        if self._sends == "gradient" and len(seen.taken) > 1:
            raise ConfigError(
                f"{len(seen.taken)} optimizer steps have no one gradient; record one, by steps=1, or send the 'delta'"
            )
        if self._sends is not None:
            return self._sends
        is_gradient = len(seen.taken) == 1 and (seen.settings.is_plain or self._unlike())
        return "gradient" if is_gradient else "delta"

    def _unlike(self) -> bool:
        """Whether no local step of ours would be the same."""
        told, _ = steps_in_words(self._seen.taken, "weight_delta", self._seen.settings, self._stated.num_examples)
        return told.learning_rate is None

    def _tensors(self, sends: str) -> Params:
        seen = self._seen
        if sends == "gradient":
            return seen.gradient
        frozen = {name for name, _ in seen.module.named_parameters(remove_duplicate=False)} - seen.weights.keys()
        after = {name: new for name, new in seen.after.items() if name not in frozen}
        return after if sends == "weights" else {name: new - seen.before[name] for name, new in after.items()}


capture = Capture
"""The name by which it is called: `with inversefed.capture(model, optimizer) as update:`."""


def _logits(_: nn.Module, __: object, outputs: Any) -> Any:
    """The logits of outputs that have them by that name, as those of `transformers` do; anything else as it is."""
    return outputs["logits"] if isinstance(outputs, Mapping) and "logits" in outputs else outputs


def _normalizing(module: nn.Module) -> list[str]:
    """Names of the BatchNorm layers."""
    return [name for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def _frozen(seen: Recorder) -> list[Finding]:
    """Weights that would be trained by what the module says, and are not by its optimizer."""
    left = [
        name for name, weight in seen.module.named_parameters() if weight.requires_grad and name not in seen.weights
    ]
    if not left:
        return []
    message = (
        f"The optimizer does not hold {len(left)} weights that require grad, {left[0]} first. They are frozen in what "
        "is audited here; from the shell, build the network with requires_grad_(False) on them."
    )
    return [Finding(Code.FROZEN, "warning", message, {"parameters": left[:10]})]


def _random(seen: Recorder) -> list[Finding]:
    """What no other run of the same examples repeats, or not to the last digit."""
    found = []
    dropping = [name for name, part in seen.module.named_modules() if isinstance(part, nn.modules.dropout._DropoutNd)]
    if any(seen.modes.get(name) and seen.module.get_submodule(name).p for name in dropping):
        message = "Dropout was on, and its masks are not recorded: a simulated client draws others."
        found.append(Finding(Code.DROPOUT_TRAIN_MODE, "warning", message))
    if seen.autocast is not None:
        message = (
            f"Operations ran in {str(seen.autocast).removeprefix('torch.')} by autocast, so that the update has two or "
            "three digits."
        )
        found.append(Finding(Code.QUANTIZED, "info", message))
    return found
