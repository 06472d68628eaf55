"""The command-line options of `reconstruct_image.py`, and those that `rec_mult.py` adds.

Names and defaults are those of 2020; new are the switches that can be turned off (`--no-signed`, `--no-boxed`), which
2020's could not be turned on, and `--max_iterations`. A value that does not exist is refused at once.
"""

import argparse
import math
from collections.abc import Callable, Collection
from typing import Any

from inversefed.compat.config import COSTS, INDICES, SELECTIONS, STARTS, WEIGHTS
from inversefed.errors import unknown_name

__all__ = ["options", "rec_mult_options"]

OPTIMIZERS = ("adam", "sgd", "LBFGS")
DTYPES = ("float", "float32", "double", "float64", "half", "float16")


def options() -> argparse.ArgumentParser:
    """Return the parser of `reconstruct_image.py`; a script may add options, also by a name that is taken.

    >>> options().parse_args(["--cost_fn", "l2", "--no-boxed"]).boxed
    False
    """
    parser = argparse.ArgumentParser(
        description="Reconstruct a picture from the update that a model makes of it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        conflict_handler="resolve",
    )
    _add_central(parser)
    _add_attack(parser)
    _add_files(parser)
    return parser


def rec_mult_options() -> argparse.ArgumentParser:
    """Return the parser of `rec_mult.py`."""
    parser = options()
    add = parser.add_argument_group("several experiments").add_argument
    add("--unsigned", action="store_true", help="the same as --no-signed")
    add("--soft_labels", action="store_true", help="keep the labels from the attack, which then finds them as well")
    add("--lr", type=_number(above=True), help="step size instead of 0.1; those of sgd and L-BFGS are fixed")
    add("--num_exp", type=_count(1), default=10, help="how many experiments, on consecutive pictures")
    add("--max_iterations", type=_count(1), help="iterations a restart; None is 4800 for ours, 500 for zhu")
    add("--batch_size", type=_count(0), default=0, help="pictures a local step of federated averaging; 0 is all")
    add("--local_lr", type=_number(above=True), default=1e-4, help="learning rate of the local steps")
    return parser


def _add_central(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is attacked").add_argument
    add("--model", default="ConvNet", help="network; for ImageNet one of torchvision's")
    add("--dataset", default="CIFAR10", help="data set")
    add("--dtype", default="float", **_named("dtype", DTYPES, "number format of the attack (not of training)"))
    add("--trained_model", action="store_true", help="load a trained model from --model_path, or train it first")
    add("--epochs", type=_count(1), default=120, help="how long the trained model was, or will be, trained")
    add("--accumulation", type=_count(0), default=0, help="0: attack a gradient; else this many local steps")
    add("--num_images", type=_count(1), default=1, help="how many consecutive pictures share the update")
    add("--target_id", type=_count(-1), help="first validation picture; -1 is a demo picture, none a random one")
    add("--label_flip", action="store_true", help="compute the update for wrong labels")


def _add_attack(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how").add_argument
    switch = argparse.BooleanOptionalAction
    add("--optim", default="ours", **_named("optim", ("ours", "zhu"), "the paper's method, or DLG"))
    add("--restarts", type=_count(1), default=1, help="how many restarts")
    add("--cost_fn", default="sim", **_named("cost_fn", COSTS, "cost function"))
    add("--indices", default="def", **_named("indices", INDICES, "which tensors of the update count"))
    add("--weights", default="equal", **_named("weights", WEIGHTS, "how much each of them counts"))
    add("--optimizer", default="adam", **_named("optimizer", OPTIMIZERS, "optimizer of ours"))
    add("--signed", action=switch, default=True, help="step on the gradient's signs")
    add("--boxed", action=switch, default=True, help="keep pixels within a picture's range")
    add("--scoring_choice", default="loss", **_named("scoring_choice", SELECTIONS, "choice between restarts"))
    add("--init", default="randn", **_named("init", STARTS, "first guess"))
    add("--tv", type=_number(), default=1e-4, help="weight of total variation")
    add("--max_iterations", type=_count(1), help="iterations a restart; None is 24000 for ours, 300 for zhu")


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("files").add_argument
    add("--save_image", action="store_true", help="write reconstruction and ground truth")
    add("--image_path", default="images/", help="folder for pictures")
    add("--model_path", default="models/", help="folder with trained models")
    add("--table_path", default="tables/", help="folder for tables")
    add("--data_path", default="~/data", help="folder with the data set")
    add("--name", default="iv", help="part of the table's name")
    add("--deterministic", action="store_true", help="no free choice of algorithms for cuDNN")
    add("--dryrun", action="store_true", help="one step of everything, and nothing written")


def _named(kind: str, choices: Collection[str], meaning: str) -> dict[str, Any]:
    """What argparse is told of an option whose values are names."""
    return {"type": _one_of(kind, choices), "help": f"{meaning}: {', '.join(choices)}"}


def _one_of(kind: str, choices: Collection[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(str(unknown_name(kind, text, choices)))
        return text

    return read


def _count(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"expected a whole number, {least} or more, not {text!r}")
        return number

    return read


def _number(least: float = 0.0, above: bool = False) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and (number > least or (number == least and not above))):
            wanted = f"a number above {least:g}" if above else f"a number, {least:g} or more"
            raise argparse.ArgumentTypeError(f"expected {wanted}, not {text!r}")
        return number

    return read
