"""The network of a script: with fresh weights, loaded, or trained first and kept for the next time."""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inversefed.compat.data import Loader, class_loaders
from inversefed.compat.losses import Loss
from inversefed.compat.nn import construct_model
from inversefed.compat.scene import Facts, input_shape
from inversefed.compat.strategy import TrainingStrategy, training_strategy
from inversefed.compat.training_routine import train
from inversefed.compat.utils import folder
from inversefed.errors import ConfigError, InputError
from inversefed.zoo import networks
from inversefed.zoo.checkpoints import load_weights

__all__ = ["network_of", "weights_file"]


def network_of(args: argparse.Namespace, facts: Facts, setup: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """Return the network in eval mode on the device, and the seed of its first weights.

    Raises:
        ConfigError: an unknown name, or a training that diverged.
        InputError: no trained weights, and no data set to train on.
    """
    if args.dataset == "ImageNet":
        seed = networks.draw_seed()
        weights = "IMAGENET1K_V1" if args.trained_model else None  # what `pretrained=True` meant in 2020
        module = networks.build_imagenet(args.model, weights, facts.num_classes, seed)
    else:
        module, seed = construct_model(args.model, facts.num_classes, num_channels=facts.num_channels)
        if args.trained_model:
            module = _trained(args, facts, module, setup)
    return module.to(setup["device"]).eval(), seed


def weights_file(args: argparse.Namespace) -> Path:
    """Name the file that trained weights are loaded from and saved to."""
    return Path(args.model_path).expanduser() / f"{args.model}_{args.dataset}_{args.epochs}.pth"


def _trained(args: argparse.Namespace, facts: Facts, module: nn.Module, setup: Mapping[str, Any]) -> nn.Module:
    file = weights_file(args)
    if file.exists():
        loaded = load_weights(module, file)
        print(f"Model loaded from file {file}.")
        return loaded
    defs = training_strategy("conservative", epochs=args.epochs, dryrun=args.dryrun)
    loss_fn, trainloader, validloader = _training_data(args, facts, defs)
    if not args.dryrun:
        folder(file.parent)
    print(f"Training the model ...\n{defs}")
    stats = train(module.to(setup["device"]), loss_fn, trainloader, validloader, defs, setup)
    if not math.isfinite(stats["train_losses"][-1]):
        raise ConfigError(
            f"training {args.model} on {args.dataset} diverged, and nothing was saved; try another --model"
        )
    if not args.dryrun:
        _save(module, file)
    return module


def _training_data(args: argparse.Namespace, facts: Facts, defs: TrainingStrategy) -> tuple[Loss, Loader, Loader]:
    try:
        return class_loaders(args.dataset, defs, args.data_path, size=input_shape(args, facts))
    except InputError as error:
        raise InputError(
            f"--trained_model needs the weights {weights_file(args)}, which are not there, or the pictures of "
            f"{args.dataset} in --data_path {args.data_path}, to train on first: {error}"
        ) from error


def _save(module: nn.Module, file: Path) -> None:
    unfinished = file.with_suffix(".partial")  # an interrupted run leaves no half file under the final name
    torch.save({name: tensor.cpu() for name, tensor in module.state_dict().items()}, unfinished)
    unfinished.replace(file)
    print(f"Model saved to file {file}.")
