"""`reconstruct_image.py` and `rec_mult.py`: from the options of 2020 to a printed line, rows of tables, pictures."""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

from inversefed.compat.options import options, rec_mult_options
from inversefed.compat.scene import DEMO
from inversefed.compat.session import Session, open_session
from inversefed.compat.utils import save_to_table
from inversefed.errors import ConfigError, InversefedError

__all__ = ["rec_mult_main", "reconstruct_image_main"]

SUCCESS, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
_ENDS = {"interrupted": INTERRUPTED, "non-finite": FAILED}


def reconstruct_image_main(argv: Sequence[str] | None = None) -> int:
    """Run one experiment.

    Args:
        argv: as typed after `reconstruct_image.py`; `None` for those of the process.

    Returns:
        0 for success, 1 where no restart stayed finite, 2 for wrong usage or input, 130 after Ctrl-C.
    """
    parser = options()
    parser.set_defaults(unsigned=False, soft_labels=False, lr=None, batch_size=0, local_lr=1e-4)
    return _guarded(lambda: _reconstruct_image(parser.parse_args(argv)))


def rec_mult_main(argv: Sequence[str] | None = None) -> int:
    """Run several experiments on consecutive pictures, and summarise them.

    Args:
        argv: as typed after `rec_mult.py`; `None` for those of the process.

    Returns:
        As `reconstruct_image_main`.
    """
    return _guarded(lambda: _rec_mult(rec_mult_options().parse_args(argv)))


def _guarded(job: Callable[[], int]) -> int:
    try:
        return job()
    except (InversefedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("interrupted before there was a result to keep", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:  # argparse has said why
        return int(stop.code or 0)


def _reconstruct_image(args: argparse.Namespace) -> int:
    session = open_session(args, "exp", {"ours": 24_000, "zhu": 300})
    outcome = session.experiment(args.target_id)
    session.close()
    return _status([outcome.status])


def _rec_mult(args: argparse.Namespace) -> int:
    if args.target_id == DEMO:
        raise ConfigError("rec_mult runs on consecutive pictures of the validation set: --target_id is 0 or more")
    if args.lr is not None and (args.optim == "zhu" or args.optimizer != "adam"):
        print("--lr is without effect here: the steps of sgd (0.01) and L-BFGS (1) are fixed.")
    args.save_image = True  # as in 2020
    session = open_session(args, "mul_exp", {"ours": 4_800, "zhu": 500})
    first, wanted = args.target_id or 0, args.num_exp * args.num_images
    session.require_pictures(first, wanted)
    outcomes = []
    for index in range(args.num_exp):
        outcomes.append(session.experiment(first + index * args.num_images, index))
        if outcomes[-1].status == "interrupted":
            break
    _summarize(session, [outcome.psnr for outcome in outcomes])
    session.close()
    return _status([outcome.status for outcome in outcomes])


def _summarize(session: Session, psnrs: Sequence[float]) -> None:
    summary: dict[str, Any] = {
        "mean": statistics.fmean(psnrs),
        "std": statistics.pstdev(psnrs),
        "max": max(psnrs),
        "min": min(psnrs),
        "median": statistics.median(psnrs),
    }
    print(f"PSNR of {len(psnrs)} experiments: " + " | ".join(f"{name} {value:4.2f}" for name, value in summary.items()))
    row = {"number_of_samples": len(psnrs), "timing": session.elapsed, **summary}
    save_to_table(session.args.table_path, f"psnr_stats_{session.args.name}", session.args.dryrun, **row)


def _status(statuses: Sequence[str]) -> int:
    """The exit status of experiments that ended so, and a word on those that did not end well."""
    if "interrupted" in statuses:
        print("interrupted: the result is the best so far", file=sys.stderr)
    if "non-finite" in statuses:
        print(
            "no restart stayed finite in one experiment or more; try --dtype double or more --restarts", file=sys.stderr
        )
    return max(_ENDS.get(status, SUCCESS) for status in statuses)
