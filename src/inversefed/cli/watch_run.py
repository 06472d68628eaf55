"""`inversefed watch`: audit the updates of a federation as they are kept."""

import os

import torch

from inversefed.cli.options import Watch
from inversefed.cli.progress import progress
from inversefed.cli.sweep import again
from inversefed.errors import ConfigError
from inversefed.experiments.ledger import Ledger
from inversefed.experiments.words import said
from inversefed.integrations.federated_audits import watch
from inversefed.integrations.federation import folder_of, read_federation

__all__ = ["run_watch"]


def run_watch(options: Watch) -> int:
    """Audit until the federation is over.

    Returns:
        0, also where another process audits the run already; 1 if an audit failed; 130 after Ctrl-C.
    """
    if options.threads < 1:
        raise ConfigError("--threads must be at least 1")
    folder = folder_of(options.name, options.ledger, options.ledger_folder)
    federation = read_federation(folder)
    os.nice(options.nice)
    torch.set_num_threads(options.threads)
    ledger = Ledger(federation.ledger, folder.parent.parent)
    try:
        with progress(options.name, options.quiet) as tell:
            standing = watch(
                folder,
                ledger,
                options.trust_code,
                lambda now: tell(now.total - now.open, now.total, "audits of kept updates"),
            )
    except KeyboardInterrupt:
        return 130
    finally:
        ledger.close()
    if standing is None:
        print(f"another process audits {options.name} already")
        return 0
    if not options.quiet:
        print(said(standing))
        print(f"results: {again(options, options.name, 'results')}")
    return 1 if standing.counts["failed"] else 0
