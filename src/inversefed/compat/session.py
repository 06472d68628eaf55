"""What the experiments of one script share: options, network, data set, tables; all that can fail early fails first."""

import argparse
import datetime
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from inversefed.compat.experiment import DTYPES, Outcome, attack_config, run_experiment
from inversefed.compat.scene import DEMO, Facts, Targets, demo_picture, facts_of, targets_of, validation_set
from inversefed.compat.trained import network_of
from inversefed.compat.utils import folder, save_to_table, set_deterministic, system_startup, table_file
from inversefed.errors import InputError
from inversefed.report.png import png
from inversefed.zoo.datasets import Dataset

__all__ = ["COLUMNS", "Session", "open_session"]

COLUMNS = (
    *("model", "dataset", "trained", "accumulation", "restarts", "OPTIM", "cost_fn", "indices", "weights", "scoring"),
    *("init", "tv", "rec_loss", "psnr", "test_mse", "feat_mse", "target_id", "seed", "timing", "dtype", "epochs"),
    *("val_acc", "rec_img", "gt_img"),
)
"""Of the table of experiments, as in 2020, so that a table of then is continued."""


@dataclass(frozen=True, eq=False)
class Session:
    """One call of a script.

    Args:
        args: its options.
        config: the 2020 config of every reconstruction.
        setup: device and dtype of the client.
        facts: constants of the data set.
        dataset: the validation pictures; `None` where only the demo picture is attacked.
        module: the network, in eval mode.
        seed: of its first weights, and of the first guesses.
        table: the name of the table of experiments.
        began: `time.monotonic()` at the start.
    """

    args: argparse.Namespace
    config: Mapping[str, Any]
    setup: Mapping[str, Any]
    facts: Facts
    dataset: Dataset | None
    module: nn.Module = field(repr=False)
    seed: int
    table: str
    began: float

    @property
    def elapsed(self) -> str:
        """Time since the start."""
        return str(datetime.timedelta(seconds=time.monotonic() - self.began))

    def experiment(self, first: int | None, index: int = 0) -> Outcome:
        """Attack the pictures from `first` on (`None`: from a random place), print the line, and keep the results.

        Raises:
            InputError: there are no such pictures.
        """
        targets = self._targets(first)
        outcome = run_experiment(
            self.args, self.module, self.facts, targets, self.config, self.seed + index, self.setup
        )
        print(outcome)
        files = self._save_pictures(targets, outcome)
        save_to_table(self.args.table_path, self.table, self.args.dryrun, **self._row(targets, outcome, files))
        return outcome

    def require_pictures(self, first: int, count: int) -> None:
        """Refuse a plan that the validation set has too few pictures for.

        Raises:
            InputError: it has fewer than `first + count`.
        """
        there = 0 if self.dataset is None else len(self.dataset)
        if first + count > there:
            raise InputError(
                f"{self.args.dataset} has {there} validation pictures, and {count} from --target_id {first} on are "
                f"asked for; lower --num_exp or --num_images"
            )

    def _targets(self, first: int | None) -> Targets:
        if self.dataset is None:
            return demo_picture(self.args, self.facts)
        return targets_of(self.args, self.facts, self.dataset, first)

    def _save_pictures(self, targets: Targets, outcome: Outcome) -> tuple[str | None, str | None]:
        """Write reconstruction and truth, several pictures side by side; return the names of the files."""
        args = self.args
        if args.dryrun or not args.save_image:
            return None, None
        place = folder(args.image_path)
        trained = "trained" if args.trained_model else ""
        found = f"{targets.title}_{trained}{args.model}_{args.cost_fn}-{targets.first}.png"
        true = f"{targets.title}_ground_truth-{targets.first}.png"
        for name, images in ((found, outcome.images), (true, targets.images)):
            (place / name).write_bytes(png(torch.cat(list(images), dim=2)))
        return found, true

    def _row(self, targets: Targets, outcome: Outcome, files: tuple[str | None, str | None]) -> dict[str, Any]:
        args = self.args
        asked = (args.model, args.dataset, args.trained_model, args.accumulation, args.restarts, args.optim)
        how = (args.cost_fn, args.indices, args.weights, args.scoring_choice, args.init, args.tv)
        scores = (outcome.rec_loss, outcome.psnr, outcome.test_mse, outcome.feat_mse)
        rest = (targets.first, self.seed, self.elapsed, DTYPES[args.dtype], args.epochs, None)
        return dict(zip(COLUMNS, (*asked, *how, *scores, *rest, *files), strict=True))

    def close(self) -> None:
        """Print when it ended and how long it took."""
        print(f"{datetime.datetime.now():%A, %d. %B %Y %I:%M%p}")
        print("---------------------------------------------------")
        print(f"Finished computations with time: {self.elapsed}")
        print("-------------Job finished.-------------------------")


def open_session(args: argparse.Namespace, table: str, iterations: Mapping[str, int]) -> Session:
    """Read, build and, if asked for, train what the experiments need.

    Args:
        args: the options.
        table: the kind of table.
        iterations: of a restart, by `--optim`, where `--max_iterations` does not say.

    Raises:
        ConfigError: an unknown name.
        InputError: data, weights or folders that cannot be used.
    """
    began = time.monotonic()
    if args.deterministic:
        set_deterministic()
    setup = system_startup(args)
    facts = facts_of(args.dataset)
    if args.target_id == DEMO:
        demo_picture(args, facts)
        dataset = None
    else:
        dataset = validation_set(args, facts)
    name = f"{table}_{args.name}"
    if not args.dryrun:
        table_file(folder(args.table_path), name, COLUMNS)
        if args.save_image:
            folder(args.image_path)
    module, seed = network_of(args, facts, setup)
    return Session(args, attack_config(args, iterations), setup, facts, dataset, module, seed, name, began)
