"""`inversefed audit`: options in, a report in a folder out."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from inversefed.attacks import SearchAttack
from inversefed.cli.flags import granted, pick_device, read_rehearsals, read_seconds, set_threads
from inversefed.cli.options import Audit, to_config
from inversefed.cli.progress import Tell, progress
from inversefed.errors import ConfigError
from inversefed.evaluation.lpips import read_perceptual
from inversefed.pipeline import audit
from inversefed.report.folder import check_folder, check_writable
from inversefed.report.frontier import read_sweep
from inversefed.report.model import Report
from inversefed.report.perceptual import judged
from inversefed.report.read import read_json
from inversefed.scenario import Hashes, Scenario
from inversefed.specs import registry
from inversefed.specs.record import ASKED, read_hashes
from inversefed.specs.sources import absolute, records_of, sources_of
from inversefed.specs.written import written
from inversefed.types import Status, Step

__all__ = ["carry_out", "exit_status", "free_folder", "loaded", "run_audit"]


def run_audit(options: Audit) -> int:
    """Audit, write the report, say what was found.

    Returns:
        0; 1 if every restart was lost to NaN; 130 if Ctrl-C ended the attack, the best so far written.
    """
    return exit_status(carry_out(options))


def exit_status(report: Report) -> int:
    """What the command returns for a report, by how its attack ended."""
    return {Status.INTERRUPTED: 130, Status.NON_FINITE: 1}.get(report.status, 0)


def carry_out(options: Audit) -> Report:
    """The audit itself: run, written and shown.

    Raises:
        ConfigError: a checkpoint, which holds pixels, where none may be written.
    """
    if options.no_images and options.checkpoint is not None:
        raise ConfigError("a checkpoint holds the pictures of its search: leave out --checkpoint, or --no-images")
    scenario = loaded(options)
    assert scenario.held is not None
    network = options.network.replace(":", ".").replace("/", ".")
    folder = options.output or free_folder(f"{network}_{scenario.held.name}_{options.index}_seed{options.seed}")
    check_folder(folder, options.overwrite)
    check_writable(folder)
    frontier = read_sweep(options.frontier) if options.frontier else ()
    perceptual = read_perceptual(options.lpips_weights) if options.lpips_weights else None
    report = replace(_run(options, scenario), frontier=frontier)
    if perceptual is not None:
        report = judged(report, perceptual)
    report.save(folder, options.overwrite, images=not options.no_images)
    _show(report, folder, options)
    return report


def loaded(options: Audit) -> Scenario:
    """The audit that the options describe, with its network and examples on the device that it runs on.

    Raises:
        ConfigError: a piece that there is not, or an option that the attack has no use for.
        InputError: files that cannot be used.
    """
    scenario = read_scenario(options)
    return replace(scenario, sha256=recorded(options, scenario)).loaded(
        pick_device(options.device), before=lambda module: set_threads(module, options.threads)
    )


def read_scenario(options: Audit) -> Scenario:
    """The audit that the options describe, written out in full; nothing of it is loaded yet.

    Raises:
        ConfigError: a piece that there is not, or an option that the attack has no use for.
    """
    if options.threads is not None and options.threads < 1:
        raise ConfigError("--threads must be at least 1")
    rehearsals, limit = read_rehearsals(options.rehearse)
    client, loss = (registry.build(kind, getattr(options, kind), options.trust_code) for kind in ("client", "loss"))
    inputs = None if options.inputs is None else registry.build("inputs", options.inputs, options.trust_code)
    return Scenario(
        replace(sources_of(options), client=written(client)),
        client=client,
        defenses=tuple(registry.build("defense", each, options.trust_code) for each in options.defenses),
        threat=granted(options),
        loss=loss,
        mean=options.mean,
        std=options.std,
        inputs=inputs,
        seed=options.seed,
        attack=_attack(options),
        time_budget=read_seconds(options.time_budget),
        max_iterations=options.max_iterations,
        nulls=options.nulls,
        rehearsals=rehearsals,
        rehearsal_time=limit,
        choose=options.choose,
        records=records_of(options),
    )


def recorded(options: Audit, scenario: Scenario) -> Hashes:
    """The hashes that network, pictures and update had in the report of --config, where the same ones are named."""
    content = {} if options.config is None else read_json(options.config, "a config")
    record = (content.get("scenario") or content) if isinstance(content, dict) else {}
    if not isinstance(record, dict) or "sha256" not in record:
        return Hashes()
    now, found = scenario.to_dict(), read_hashes(record)
    same = all(record.get(name) == now[name] for name in ("sources", "seed", "loss"))
    if record.get("records") != now.get("records"):
        found = replace(found, **dict.fromkeys(ASKED))
    return found if same and record.get("threat_model", {}).get("labels") == scenario.threat.labels else Hashes()


def _resolve(options: Audit, scenario: Scenario) -> Audit:
    """The same options written out in full, so that neither new defaults nor another folder change a rerun."""
    assert scenario.sources is not None
    return replace(
        options,
        **vars(absolute(scenario.sources)),
        frontier=_absolute(options.frontier),
        candidates=_absolute(options.candidates),
        candidates_out=_absolute(options.candidates_out),
        lpips_weights=tuple(path.expanduser().absolute() for path in options.lpips_weights),
        defenses=tuple(written(each) for each in scenario.defenses),
        attack=written(scenario.attack),
        restarts=None,
        precision=None,
        compile=None,
        loss=written(scenario.loss),
    )


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().absolute()


def _attack(options: Audit) -> Any:
    """The attack, with what the options change about its search.

    Raises:
        ConfigError: an option that the attack has no use for.
    """
    attack = registry.build("attack", options.attack, options.trust_code)
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


def _run(options: Audit, scenario: Scenario) -> Report:
    with progress("attack", options.quiet) as tell:
        return audit(
            scenario,
            on_step=lambda step: _tell(tell, step),
            checkpoint=options.checkpoint,
            resume=options.resume,
            rehearsal_cache=options.rehearsal_cache,
            on_control=lambda done, total: tell(done, total, "runs for the controls"),
            config=to_config(_resolve(options, scenario)),
        )


def _tell(tell: Tell, step: Step) -> None:
    which = "" if step.restarts == 1 else f"restart {step.restart + 1}  "
    left = f"  {step.remaining:.0f} s left" if math.isfinite(step.remaining) else ""
    tell(step.iteration, step.iterations, f"{which}loss {step.loss:.4g}  {step.rate:.1f} it/s{left}")


def free_folder(name: str) -> Path:
    """A folder under runs/ of that name, or of that name and a number, which is not there yet."""
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
