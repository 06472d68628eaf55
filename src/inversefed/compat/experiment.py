"""One experiment of a script: make the update, attack it in the 2020 dialect, judge what was recovered."""

import argparse
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from inversefed.compat.reconstruction_algorithms import FedAvgReconstructor, GradientReconstructor, loss_steps
from inversefed.compat.scene import Facts, Targets
from inversefed.evaluation import metrics
from inversefed.fl.clients import FedSGD
from inversefed.fl.network import freeze

__all__ = ["Outcome", "attack_config", "run_experiment"]

DTYPES = {
    "float": torch.float,
    "float32": torch.float,
    "double": torch.double,
    "float64": torch.double,
    "half": torch.half,
    "float16": torch.half,
}


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an experiment came to.

    Args:
        images: the reconstructions, in pixel space, clamped to [0, 1].
        rec_loss: the score by which they were chosen.
        status: how the attack ended.
        test_mse: mean squared error of pixels in [0, 1].
        psnr: in dB, the mean over the pictures, each clamped to [0, 1].
        feat_mse: mean squared difference of the logits.
    """

    images: Tensor = field(repr=False)
    rec_loss: float
    status: str
    test_mse: float
    psnr: float
    feat_mse: float

    def __str__(self) -> str:
        return (
            f"Rec. loss: {self.rec_loss:2.4f} | MSE: {self.test_mse:2.4f} | "
            f"PSNR: {self.psnr:4.2f} | FMSE: {self.feat_mse:2.4e} |"
        )


def attack_config(args: argparse.Namespace, iterations: Mapping[str, int]) -> dict[str, Any]:
    """Return the 2020 config that the options describe.

    Args:
        args: the options.
        iterations: how many a restart, by `--optim`, where `--max_iterations` does not say.
    """
    common = {
        "restarts": args.restarts,
        "max_iterations": args.max_iterations or iterations[args.optim],
        "total_variation": args.tv,
        "init": args.init,
        "filter": "none",
        "scoring_choice": args.scoring_choice,
    }
    if args.optim == "zhu":
        fixed = {"signed": False, "boxed": False, "cost_fn": "l2", "indices": "def", "weights": "equal"}
        return {**common, **fixed, "optim": "LBFGS", "lr": 1e-4, "lr_decay": False}
    return {
        **common,
        "signed": args.signed and not args.unsigned,
        "boxed": args.boxed,
        "cost_fn": args.cost_fn,
        "indices": args.indices,
        "weights": args.weights,
        "optim": args.optimizer,
        "lr": args.lr or 0.1,
        "lr_decay": True,
    }


def run_experiment(
    args: argparse.Namespace,
    module: nn.Module,
    facts: Facts,
    targets: Targets,
    config: Mapping[str, Any],
    seed: int,
    setup: Mapping[str, Any],
) -> Outcome:
    """Attack the update that `module` makes of the targets.

    Args:
        args: `accumulation`, `local_lr`, `batch_size`, `num_images`, `dtype`, `soft_labels` and `dryrun` are read.
        module: the network, in eval mode and single precision; it is not changed.
        facts: how its input is normalized.
        targets: the pictures.
        config: of the reconstruction.
        seed: of the first guesses.
        setup: `device` and `dtype` in which the client works.
    """
    mean, std = (torch.tensor(values, **setup)[:, None, None] for values in (facts.mean, facts.std))
    truth, labels = targets.images.to(**setup), targets.labels.to(setup["device"])
    update = _update(args, module, (truth - mean) / std, labels)
    print(f"Full gradient norm is {float(torch.stack([part.norm() for part in update]).mean()):e}.")

    machine = _machine(args, module, (mean, std), config)
    machine.iDLG = not args.soft_labels
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        output, stats = machine.reconstruct(
            [part.to(DTYPES[args.dtype]) for part in update],
            None if args.soft_labels else labels,
            img_shape=tuple(truth.shape[1:]),
            dryrun=args.dryrun,
        )
    return _judge(module, truth, output.to(**setup) * std + mean, mean, std, stats)


def _update(args: argparse.Namespace, module: nn.Module, inputs: Tensor, labels: Tensor) -> Sequence[Tensor]:
    if args.accumulation:
        return loss_steps(
            module, inputs, labels, lr=args.local_lr, local_steps=args.accumulation, batch_size=args.batch_size
        )
    return list(FedSGD()(freeze(module, inputs.shape[1:]), inputs, labels).values())


def _machine(
    args: argparse.Namespace, module: nn.Module, mean_std: tuple[Tensor, Tensor], config: Mapping[str, Any]
) -> GradientReconstructor:
    dtype = DTYPES[args.dtype]
    if dtype != torch.float:
        print(f"Model and input parameter moved to {args.dtype}-precision.")
    attacked = copy.deepcopy(module).to(dtype)
    if not args.accumulation:
        return GradientReconstructor(attacked, mean_std, config, args.num_images)
    return FedAvgReconstructor(
        attacked,
        mean_std,
        args.accumulation,
        args.local_lr,
        config,
        num_images=args.num_images,
        batch_size=args.batch_size,
    )


def _judge(
    module: nn.Module, truth: Tensor, found: Tensor, mean: Tensor, std: Tensor, stats: Mapping[str, Any]
) -> Outcome:
    def logits(pixels: Tensor) -> Tensor:
        outputs: Tensor = module((pixels - mean) / std)
        return outputs

    return Outcome(
        images=found.clamp(0, 1),
        rec_loss=float(stats["opt"]),
        status=stats["status"],
        test_mse=float(metrics.mean_squared_error(found, truth).mean()),
        psnr=float(metrics.peak_signal_noise_ratio(found, truth).mean()),
        feat_mse=float(metrics.feature_mean_squared_error(found, truth, logits).mean()),
    )
