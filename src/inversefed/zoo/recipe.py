"""How to train, as a value: optimizer, learning rate and its steps; two presets of 2020.

Reference:
    Geiping et al., "Inverting Gradients", NeurIPS 2020: `conservative` and `adam` in its published code.
"""

from dataclasses import dataclass, replace

from torch import nn, optim

from inversefed.errors import ConfigError, unknown_name

__all__ = ["Recipe", "adam", "conservative", "named"]


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Args:
        optimizer: `"sgd"` or `"adamw"`.
        lr: learning rate at its highest.
        momentum: of SGD.
        nesterov: SGD looks ahead.
        weight_decay: of either optimizer.
        batch_size: examples a step; a smaller rest is left out.
        epochs: passes over the training set.
        milestones: fractions of the epochs after which `lr` is multiplied by `gamma`.
        gamma: that factor.
        warmup: fraction of the epochs over which `lr` rises linearly to its height.

    Raises:
        ConfigError: a setting is out of range.
    """

    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    batch_size: int = 128
    epochs: int = 120
    milestones: tuple[float, ...] = (3 / 8, 5 / 8, 7 / 8)
    gamma: float = 0.1
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adamw"):
            raise ConfigError(f"an optimizer is 'sgd' or 'adamw', not {self.optimizer!r}")
        if self.lr <= 0 or self.batch_size < 1 or self.epochs < 1:
            raise ConfigError(
                f"lr above 0, batch_size and epochs of 1 or more are needed, not lr={self.lr}, "
                f"batch_size={self.batch_size}, epochs={self.epochs}"
            )

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0.

        >>> [round(conservative().rate(epoch), 6) for epoch in (0, 45, 75, 119)]
        [0.1, 0.01, 0.001, 0.0001]
        """
        steps = sum(epoch >= int(milestone * self.epochs) for milestone in self.milestones)
        rise = min(1.0, (epoch + 1) / max(1.0, self.warmup * self.epochs))
        return self.lr * rise * self.gamma**steps

    def optimizer_for(self, module: nn.Module) -> optim.Optimizer:
        """Return a fresh optimizer of the module's parameters."""
        weights, lr, decay = module.parameters(), self.lr, self.weight_decay
        if self.optimizer == "adamw":
            return optim.AdamW(weights, lr=lr, weight_decay=decay)
        return optim.SGD(weights, lr=lr, momentum=self.momentum, nesterov=self.nesterov, weight_decay=decay)


def conservative(lr: float = 0.1, epochs: int = 120) -> Recipe:
    """Return SGD with Nesterov momentum 0.9, weight decay 5e-4, batches of 128, x0.1 at 3/8, 5/8 and 7/8."""
    return Recipe(lr=lr, epochs=epochs)


def adam(lr: float = 1e-4, epochs: int = 120) -> Recipe:
    """Return AdamW with weight decay 5e-4 and a warm-up over the first twelfth of the epochs."""
    return Recipe(optimizer="adamw", lr=lr, epochs=epochs, warmup=1 / 12)


def named(name: str, epochs: int, batch_size: int = 128, lr: float | None = None) -> Recipe:
    """Return a preset by its name, with what a command or a plan changes of it.

    Args:
        name: `"conservative"` or `"adam"`.
        epochs: passes over the training set.
        batch_size: examples a step.
        lr: learning rate; `None` for the preset's.

    Raises:
        ConfigError: another name, or a setting out of range.
    """
    presets = {"conservative": conservative, "adam": adam}
    if name not in presets:
        raise unknown_name("training recipe", name, presets)
    chosen = replace(presets[name](epochs=epochs), batch_size=batch_size)
    return chosen if lr is None else replace(chosen, lr=lr)
