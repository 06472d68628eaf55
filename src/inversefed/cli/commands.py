"""What the command line knows of each command: where it is carried out, the page that explains it, and examples.

The pages are files of the repository, and this is the only place in the package that names them.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from inversefed.cli import options as given
from inversefed.errors import (
    InversefedError,
    MetadataError,
    StorageError,
    ThreatModelError,
    UnsafeFileError,
    UnsupportedNetworkError,
    UpdateMismatchError,
)

__all__ = ["COMMANDS", "COMMAND_LINE", "EXAMPLES", "OF_ERRORS", "Explained", "after_help", "page"]

COMMAND_LINE = "docs/reference/command-line.md"


@dataclass(frozen=True)
class Explained:
    """A command.

    Args:
        options: what its options are read into.
        module: the module of `inversefed.cli` that carries it out.
        function: the function there that takes the options and returns the exit status.
        page: the page of the documentation that explains it.
    """

    options: type[given.Command]
    module: str
    function: str
    page: str


COMMANDS = {
    "audit": Explained(given.Audit, "audit", "run_audit", COMMAND_LINE),
    "gate": Explained(given.Gate, "gate", "run_gate", "docs/guides/gate.md"),
    "inspect": Explained(given.Inspect, "inspect", "run_inspect", "docs/guides/inspect.md"),
    "defend": Explained(given.Defend, "defend", "run_defend", "docs/guides/defend.md"),
    "convert": Explained(given.Convert, "convert", "run_convert", "docs/guides/own-update.md"),
    "purge": Explained(given.Purge, "purge", "run_purge", "docs/guides/report.md"),
    "train": Explained(given.Train, "train", "run_train", "docs/guides/train.md"),
    "sweep": Explained(given.Sweep, "sweep", "run_sweep", "docs/guides/sweep.md"),
    "resume": Explained(given.Resume, "sweep", "run_resume", "docs/guides/sweep.md"),
    "watch": Explained(given.Watch, "watch_run", "run_watch", "docs/guides/frameworks.md"),
    "status": Explained(given.ShowStatus, "ledger_views", "run_status", "docs/guides/sweep.md"),
    "results": Explained(given.Results, "ledger_views", "run_results", "docs/guides/sweep.md"),
    "runs": Explained(given.Runs, "ledger_views", "run_runs", "docs/guides/sweep.md"),
    "serve": Explained(given.Serve, "serve", "run_serve", "docs/guides/serve.md"),
    "demo": Explained(given.Demo, "demo", "run_demo", "docs/start/shell.md"),
    "doctor": Explained(given.Doctor, "doctor", "run_doctor", "docs/start/install.md"),
    "list": Explained(given.List, "list", "run_list", COMMAND_LINE),
}
"""Every command by its name."""

FIRST = (
    "inversefed doctor",
    "inversefed demo",
    "inversefed audit --help",
    "source <(inversefed --tyro-print-completion bash)",
)
"""What stands at the end of the help of `inversefed` itself; the last one completes commands and options in bash."""

EXAMPLES = """
inversefed audit --output runs/first
inversefed audit --images photo.jpg --network ConvNet --client "FedAvg(local_steps=4, lr=0.01)"
inversefed gate runs/first --max-leakage 3
inversefed gate --network ConvNet --images photo.jpg --no-images --time-budget 5m
inversefed inspect --network ResNet18 --num-images 4
inversefed inspect --network ConvNet --weights weights.safetensors --update update.safetensors
inversefed defend --points "GaussianNoise(0.1)" "Clip(1.0) + GaussianNoise(0.01)" --no-utility
inversefed defend --sweep --time-budget 30s --output runs/defenses
inversefed convert update.pt update.safetensors --kind gradient --num-examples 4
inversefed purge --dry-run
inversefed purge runs/first --older-than 30d --yes
inversefed train --network ConvNet --dataset CIFAR10 --download --epochs 20
inversefed sweep plan.yaml --dry-run
inversefed sweep plan.yaml --run first --workers 2
inversefed resume first
inversefed resume first --retry
inversefed watch first
inversefed status first --watch
inversefed results first --summary
inversefed results first --csv --output first.csv
inversefed runs
inversefed runs --remove first
inversefed serve
inversefed serve --ledger runs/ledger.db --port 0
inversefed demo
inversefed demo --table --open off
inversefed doctor
inversefed doctor --json
inversefed list attacks
inversefed list networks
""".strip().splitlines()
"""What stands at the end of each command's help, as typed into a shell."""

OF_ERRORS: dict[type[InversefedError], str] = {
    MetadataError: "docs/guides/own-update.md",
    UpdateMismatchError: "docs/guides/diagnose.md",
    UnsafeFileError: "docs/guides/own-update.md",
    StorageError: "docs/guides/sweep.md",
    ThreatModelError: "docs/concepts/threat-model.md",
    UnsupportedNetworkError: "docs/guides/own-network.md",
}
"""Kinds of errors that a page explains, whichever command they end; of the others the command's own page does."""


def page(error: InversefedError, arguments: Sequence[str]) -> str:
    """The page that explains an error.

    Args:
        error: what ended the command.
        arguments: as typed after `inversefed`.

    >>> page(UpdateMismatchError("another shape"), ["audit"]), page(InversefedError("no such run"), ["status", "x"])
    ('docs/guides/diagnose.md', 'docs/guides/sweep.md')
    """
    of_kind = next((OF_ERRORS[kind] for kind in type(error).__mro__ if kind in OF_ERRORS), None)
    command = COMMANDS.get(arguments[0]) if arguments else None
    return of_kind or (COMMAND_LINE if command is None else command.page)


def after_help(arguments: Sequence[str]) -> str:
    """What stands below a page of help: how to use it, and where to read more.

    Args:
        arguments: as typed after `inversefed`.

    >>> print(after_help(["status", "--help"]))
    examples:
      inversefed status first --watch
    more: docs/guides/sweep.md
    """
    command = COMMANDS.get(arguments[0]) if arguments else None
    shown = FIRST if command is None else [line for line in EXAMPLES if shlex.split(line)[1] == arguments[0]]
    return "\n  ".join(["examples:", *shown]) + f"\nmore: {COMMAND_LINE if command is None else command.page}"
