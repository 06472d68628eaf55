"""What the command line knows of each command: where it is carried out, and the page that explains it.

The pages are files of the repository, and this is the only place in the package that names them.
"""

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

__all__ = ["COMMANDS", "COMMAND_LINE", "OF_ERRORS", "Explained", "page"]

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
    "list": Explained(given.List, "list", "run_list", COMMAND_LINE),
}
"""Every command by its name."""

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
