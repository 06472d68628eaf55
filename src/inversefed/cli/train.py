"""`inversefed train`: a zoo network on a data set, to a checkpoint with its settings beside it."""

import sys
from dataclasses import asdict
from pathlib import Path

from torch import Generator

from inversefed.cli.flags import pick_device
from inversefed.cli.options import Train
from inversefed.cli.progress import progress
from inversefed.errors import ConfigError, InputError
from inversefed.report.folder import check_writable
from inversefed.zoo import datasets, networks, recipe, training
from inversefed.zoo.datasets import Dataset

__all__ = ["run_train"]


def run_train(options: Train) -> int:
    """Train, say how well, save."""
    if options.epochs < 1 or options.batch_size < 1:
        raise ConfigError("--epochs and --batch-size must be at least 1")
    file = options.output or Path("models") / f"{options.network}_{options.dataset}_{options.epochs}.safetensors"
    if file.suffix != ".safetensors":
        raise ConfigError(f"--output must end in .safetensors, got {file}")
    if file.exists() and not options.overwrite:
        raise InputError(f"{file} exists; name another --output, or give --overwrite")
    check_writable(file.parent)
    train_set, test_set = _data(options)
    trained = _train(options, train_set, test_set)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
    training.save_checkpoint(file, trained.module, {**settings, "accuracy": trained.accuracy})
    if not options.quiet:
        print(f"test accuracy {trained.accuracy:.1%}; weights: {file}")
    if trained.accuracy < 1.5 / train_set.num_classes:
        print("inversefed: warning: hardly better than chance; try a smaller --lr or more --epochs", file=sys.stderr)
    return 0


def _data(options: Train) -> tuple[Dataset, Dataset]:
    """Training and test part, in the network's size and the data set's own channels."""
    shape = networks.input_shape(options.network)
    train_set, test_set = (
        datasets.load(options.dataset, options.data_path, split, download=options.download)
        for split in ("train", "test")
    )
    fitted = (len(train_set.mean), *shape[1:])
    return train_set.fitted(fitted), test_set.fitted(fitted)


def _train(options: Train, train_set: Dataset, test_set: Dataset) -> training.Trained:
    module = networks.build(options.network, train_set.num_classes, len(train_set.mean), options.seed)
    with progress("training", options.quiet) as tell:
        return training.train(
            module,
            train_set,
            test_set,
            recipe.named(options.recipe, options.epochs, options.batch_size, options.lr),
            generator=Generator().manual_seed(options.seed),
            device=pick_device(options.device),
            on_batch=lambda now: tell(
                now.epoch - 1, options.epochs, f"epochs; batch {now.batch}/{now.batches}, loss {now.loss:.3f}"
            ),
            on_epoch=lambda now: tell(now.epoch, now.epochs, f"epochs; test accuracy {now.test_accuracy:.1%}"),
        )
