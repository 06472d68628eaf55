"""`inversefed audit`: options in, a report in a folder out."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from inversefed.attacks import SearchAttack
from inversefed.cli.load import Setting, granted, read_seconds, read_setting
from inversefed.cli.load_update import is_received, receive
from inversefed.cli.options import Audit, to_config
from inversefed.cli.progress import Tell, progress
from inversefed.cli.public_images import stand_ins
from inversefed.errors import ConfigError
from inversefed.evaluation.lpips import read_perceptual
from inversefed.pipeline import audit, audit_observation
from inversefed.report.folder import check_folder, check_writable
from inversefed.report.frontier import read_sweep
from inversefed.report.model import Report
from inversefed.report.perceptual import judged
from inversefed.specs import registry
from inversefed.types import Status, Step

__all__ = ["carry_out", "run_audit"]


def run_audit(options: Audit) -> int:
    """Audit, write the report, say what was found.

    Returns:
        0; 1 if every restart was lost to NaN; 130 if Ctrl-C ended the attack, the best so far written.
    """
    report = carry_out(options)
    return {Status.INTERRUPTED: 130, Status.NON_FINITE: 1}.get(report.status, 0)


def carry_out(options: Audit) -> Report:
    """The audit itself: run, written and shown.

    Raises:
        ConfigError: a checkpoint, which holds pixels, where none may be written.
    """
    if options.no_images and options.checkpoint is not None:
        raise ConfigError("a checkpoint holds the pictures of its search: leave out --checkpoint, or --no-images")
    pieces = _resolve(options)
    setting = read_setting(options)
    folder = options.output or _new_folder(options, setting)
    check_folder(folder, options.overwrite)
    check_writable(folder)
    frontier = read_sweep(options.frontier) if options.frontier else ()
    perceptual = read_perceptual(options.lpips_weights) if options.lpips_weights else None
    report = replace(_run(options, setting, pieces), frontier=frontier)
    if perceptual is not None:
        report = judged(report, perceptual)
    report.save(folder, options.overwrite, images=not options.no_images)
    _show(report, folder, options)
    return report


def _resolve(options: Audit) -> Audit:
    """The same options written out in full, so that neither new defaults nor another folder change a rerun."""
    return replace(
        options,
        images=tuple(path.absolute() for path in options.images),
        frontier=None if options.frontier is None else options.frontier.expanduser().absolute(),
        lpips_weights=tuple(path.expanduser().absolute() for path in options.lpips_weights),
        data_path=options.data_path.expanduser().absolute(),
        update=_absolute(options.update),
        after=_absolute(options.after),
        truth=tuple(path.expanduser().absolute() for path in options.truth),
        client=repr(registry.build("client", options.client)),
        defenses=tuple(repr(registry.build("defense", defense)) for defense in options.defenses),
        attack=repr(_attack(options)),
        restarts=None,
        precision=None,
        compile=None,
        loss=repr(registry.build("loss", options.loss)),
    )


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().absolute()


def _attack(options: Audit) -> Any:
    """The attack, with what the options change about its search.

    Raises:
        ConfigError: an option that the attack has no use for.
    """
    attack = registry.build("attack", options.attack)
    changes = {
        "restarts": options.restarts,
        "precision": None if options.precision is None else registry.build("precision", options.precision),
        "compilation": options.compile,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    if not changes:
        return attack
    if not isinstance(attack, SearchAttack):
        raise ConfigError(f"{options.attack} is no search, so --restarts, --precision and --compile mean nothing to it")
    return attack.with_settings(**changes)


def _run(options: Audit, setting: Setting, resolved: Audit) -> Report:
    received = receive(options, setting) if is_received(options) else None
    channels, height, width = setting.images.shape[1:]
    with progress("attack", options.quiet) as tell:
        same: dict[str, Any] = {
            "attack": registry.build("attack", resolved.attack),
            "seed": options.seed,
            "time_budget": read_seconds(options.time_budget),
            "max_iterations": options.max_iterations,
            "on_step": lambda step: _tell(tell, step),
            "checkpoint": options.checkpoint,
            "resume": options.resume,
            "nulls": options.nulls,
            "others": stand_ins(options, (channels, height, width)),
            "on_control": lambda done, total: tell(done, total, "runs for the controls"),
            "config": to_config(resolved),
        }
        if received is not None:
            return audit_observation(
                received.observation,
                truth=received.truth,
                findings=received.findings,
                threat=received.threat,
                **same,
            )
        return audit(
            setting.module,
            setting.images,
            setting.labels,
            mean=setting.mean,
            std=setting.std,
            client=registry.build("client", resolved.client),
            defenses=[registry.build("defense", defense) for defense in resolved.defenses],
            threat=granted(options),
            loss=registry.build("loss", resolved.loss),
            **same,
        )


def _tell(tell: Tell, step: Step) -> None:
    which = "" if step.restarts == 1 else f"restart {step.restart + 1}  "
    left = f"  {step.remaining:.0f} s left" if math.isfinite(step.remaining) else ""
    tell(step.iteration, step.iterations, f"{which}loss {step.loss:.4g}  {step.rate:.1f} it/s{left}")


def _new_folder(options: Audit, setting: Setting) -> Path:
    """A folder under runs/ that is not there yet, named after what is audited."""
    network = options.network.replace(":", ".").replace("/", ".")
    name = f"{network}_{setting.source}_{options.index}_seed{options.seed}"
    tries = (Path("runs") / (name if number == 1 else f"{name}_{number}") for number in range(1, 10**6))
    return next(folder for folder in tries if not folder.exists())


def _show(report: Report, folder: Path, options: Audit) -> None:
    if options.json:
        sys.stdout.write(report.to_json())
    elif not options.quiet:
        print(report.summary())
    if report.status is Status.INTERRUPTED:
        kept = options.checkpoint is not None and options.checkpoint.exists()
        on = f"; go on with --resume {options.checkpoint}" if kept else ""
        print(f"inversefed: interrupted; the best result so far was kept{on}", file=sys.stderr)
    if report.status is Status.NON_FINITE:
        print("inversefed: failed: the loss became NaN in every restart; try a smaller lr in --attack", file=sys.stderr)
    if not options.quiet:
        print(f"report: {folder / 'report.html'}", file=sys.stderr if options.json else sys.stdout)
